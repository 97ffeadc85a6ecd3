//! One connection's life: see who answers, list, ask about what is new, follow.
//!
//! ```text
//!  connect ─▶ Version ─▶ list ─▶ Live ─▶ follow ──▶ a status, a list, a question whether it is alive
//!                                            ▲          at most four at a time; the loop waits for none of them
//!          events, hints, the time for a list ┘
//! ```
//!
//! Where the server's events may be asked for (see [`server`](super::server)), a list is an audit, every few minutes. Else
//! lists are what finds everything in the end, every ten seconds, and hints from the collection are what finds it soon.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use k8s_cri::v1::{
    ContainerEventResponse, ContainerEventType, ContainerStatusResponse, PodSandboxStatusResponse, VersionResponse,
};
use tokio::sync::broadcast;
use tokio::time::{Duration, Instant, sleep_until};
use tonic::{Code, Streaming};
use tracing::{debug, info, warn};

use super::Peer;
use super::client::{Client, List, next_event};
use super::describe::{container_row, container_status, pod_row, pod_status};
use super::hints::Heard;
use super::ledger::{Hint, NoStatus, Phase, Subject, Told, Wish};
use super::server::Server;
use crate::container::{ContainerId, Domain, Kind, Str};
use crate::fact::{Fact, Source, What};
use crate::source::grpc::CallError;
use crate::source::health::Condition;
use crate::source::peer::{FileId, file_id, file_version};
use crate::source::process::identity;
use crate::source::supervise::End;
use crate::time::BootTime;

/// Calls that may be under way.
const MAX_CALLS: usize = 4;
/// Between two lists there is at least this, whatever is heard.
const LIST_GAP: Duration = Duration::from_secs(1);

/// Runs until the connection is of no more use.
pub(super) async fn run(peer: &mut Peer) -> End {
    let found = file_id(&peer.path);
    if found.is_none() && peer.is_optional && !peer.was_seen
        || found.is_some() && file_version(&peer.path) == peer.without_cri
    {
        return End::Unnoticed;
    }
    peer.was_seen = true;
    let end = match Session::open(peer, found).await {
        Ok(mut session) => {
            let end = match session.follow().await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            if session.is_live {
                session.peer.stats.sessions_lost.fetch_add(1, Relaxed);
            }
            end
        }
        Err(end) => end,
    };
    if peer.roster.set_live(&peer.path, false) && peer.facts.state(vec![live(false)]).await.is_err() {
        return End::Nobody;
    }
    end
}

struct Session<'a> {
    peer: &'a mut Peer,
    client: Client,
    server: Server,
    socket: Option<FileId>,
    hints: broadcast::Receiver<Heard>,
    events: Events,
    calls: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// A list is wanted, or under way.
    list: Listing,
    last_list: Instant,
    is_live: bool,
}

/// What came of a call.
enum Answer {
    List { at: BootTime, asked: Instant, list: Result<List, CallError> },
    Pod { id: ContainerId, at: BootTime, status: Result<Box<PodSandboxStatusResponse>, CallError> },
    Container { id: ContainerId, at: BootTime, status: Result<Box<ContainerStatusResponse>, CallError> },
    Alive(Result<VersionResponse, CallError>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Listing {
    Not,
    Wanted,
    UnderWay,
    /// And wanted again: what made somebody want it may have happened after it began.
    UnderWayAndWanted,
}

/// The event stream.
enum Events {
    /// There is none for us.
    None,
    /// Asked for; the server may not answer before the first event.
    Asked(BoxFuture<'static, Result<Streaming<ContainerEventResponse>, CallError>>),
    Open(Box<Streaming<ContainerEventResponse>>),
}

impl Events {
    /// The next event; waits for ever where there are none. `Ok(None)` when there are to be no more. Safe to drop and call
    /// again.
    async fn next(&mut self) -> Result<Option<ContainerEventResponse>, CallError> {
        loop {
            match self {
                Self::None => return std::future::pending().await,
                Self::Asked(asked) => match asked.await {
                    Ok(stream) => *self = Self::Open(Box::new(stream)),
                    // A server that does not know the call, or has it switched off.
                    Err(CallError::Answer { .. }) => return Ok(None),
                    Err(error) => return Err(error),
                },
                Self::Open(stream) => return next_event(stream).await,
            }
        }
    }
}

impl<'a> Session<'a> {
    async fn open(peer: &'a mut Peer, socket: Option<FileId>) -> Result<Self, End> {
        if peer.ledger.domain() != Domain::Host {
            return Err(End::Unsuitable("only the host's own CRI servers are asked".to_owned()));
        }
        let (deadline, list_deadline) = (peer.config.deadline(), peer.config.list_deadline());
        // From here on: what is heard while the list is made is newer than that.
        let hints = peer.hints.subscribe();
        let client = Client::connect(&peer.path, deadline, list_deadline, Arc::clone(&peer.stats)).await?;
        let version = match client.version().await {
            Ok(version) => version,
            Err(CallError::Answer { code: Code::Unimplemented, .. }) => {
                without_cri(peer);
                return Err(End::Unnoticed);
            }
            Err(error) => return Err(error.into()),
        };
        let server = Server::new(&version.runtime_name, &version.runtime_version);
        if peer.server.as_ref().is_some_and(|former| *former != server) {
            peer.ledger.ask_anew();
        }
        peer.ledger.begin(server.common_scope());
        peer.server = Some(server.clone());
        let events = match server.has_events_for_all() {
            true => Events::Asked(client.events().boxed()),
            false => Events::None,
        };
        Ok(Self {
            peer,
            client,
            server,
            socket,
            hints,
            events,
            calls: FuturesUnordered::new(),
            list: Listing::Wanted,
            last_list: Instant::now(),
            is_live: false,
        })
    }

    async fn follow(&mut self) -> Result<Infallible, End> {
        let mut heard_at = Instant::now();
        let mut alive_asked = false;
        loop {
            self.begin_calls(&mut alive_asked, heard_at);
            let wake = self.next_wake(alive_asked, heard_at);
            tokio::select! {
                Some(answer) = self.calls.next(), if !self.calls.is_empty() => {
                    heard_at = Instant::now();
                    alive_asked &= !matches!(answer, Answer::Alive(_));
                    self.answer(answer).await?;
                }
                event = self.events.next() => {
                    heard_at = Instant::now();
                    match event? {
                        Some(event) => self.event(event).await?,
                        None => {
                            debug!(socket = %self.peer.path.display(), "no events: it is polled");
                            self.events = Events::None;
                            self.want_list();
                            self.tell_condition();
                        }
                    }
                }
                heard = self.hints.recv() => match heard {
                    Ok(Heard::Hint(hint)) => {
                        self.peer.stats.hints.fetch_add(1, Relaxed);
                        self.peer.ledger.hinted(hint, Instant::now(), true);
                    }
                    Ok(Heard::Much) | Err(broadcast::error::RecvError::Lagged(_)) => self.want_list(),
                    // The source as a whole has ended.
                    Err(broadcast::error::RecvError::Closed) => return Err(End::Nobody),
                },
                () = sleep_until(wake) => {
                    if file_id(&self.peer.path).is_some_and(|now| Some(now) != self.socket) {
                        return Err(End::Lost(format!("{}: the socket was replaced", self.peer.path.display())));
                    }
                }
            }
        }
    }

    fn list_interval(&self) -> Duration {
        match self.events {
            Events::None => self.peer.config.poll_interval(),
            Events::Asked(_) | Events::Open(_) => self.peer.config.audit_interval(),
        }
    }

    /// When there is something to do without anybody's calling: a list, a status, a question. What there is no room for is
    /// not waited for: an answer makes room, and wakes.
    fn next_wake(&self, alive_asked: bool, heard_at: Instant) -> Instant {
        let list = match self.list {
            // The first one goes out at once.
            Listing::Wanted if !self.is_live => None,
            Listing::Wanted => Some(self.last_list + LIST_GAP.min(self.list_interval())),
            Listing::Not => Some(self.last_list + self.list_interval()),
            Listing::UnderWay | Listing::UnderWayAndWanted => None,
        };
        let has_room = self.calls.len() < MAX_CALLS;
        let (list, status) = (list.filter(|_| has_room), self.peer.ledger.next_due().filter(|_| has_room));
        let is_idle = !alive_asked && self.calls.is_empty();
        let alive = is_idle.then(|| heard_at + self.peer.config.alive_interval());
        let longest = Instant::now() + self.peer.config.poll_interval().max(Duration::from_secs(60));
        [list, status, alive].into_iter().flatten().min().unwrap_or(longest)
    }

    /// Begins what is due, as far as there is room.
    fn begin_calls(&mut self, alive_asked: &mut bool, heard_at: Instant) {
        let now = Instant::now();
        let since = now.duration_since(self.last_list);
        let is_time = match self.list {
            Listing::Wanted => !self.is_live || since >= LIST_GAP.min(self.list_interval()),
            Listing::Not => since >= self.list_interval(),
            Listing::UnderWay | Listing::UnderWayAndWanted => false,
        };
        if is_time && self.calls.len() < MAX_CALLS {
            (self.list, self.last_list) = (Listing::UnderWay, now);
            let (client, at) = (self.client.clone(), BootTime::now());
            self.calls.push(async move { Answer::List { at, asked: now, list: client.list().await } }.boxed());
        }
        if !*alive_asked && now.duration_since(heard_at) >= self.peer.config.alive_interval() && self.calls.is_empty() {
            *alive_asked = true;
            let client = self.client.clone();
            self.calls.push(async move { Answer::Alive(client.version().await) }.boxed());
        }
        for subject in self.peer.ledger.ask(now, MAX_CALLS.saturating_sub(self.calls.len())) {
            let (client, at) = (self.client.clone(), BootTime::now());
            self.calls.push(match subject {
                Subject::Sandbox(id) => async move {
                    let status = client.pod_status(&id).await.map(Box::new);
                    Answer::Pod { id, at, status }
                }
                .boxed(),
                Subject::Container(id) => async move {
                    let status = client.container_status(&id).await.map(Box::new);
                    Answer::Container { id, at, status }
                }
                .boxed(),
            });
        }
    }

    fn want_list(&mut self) {
        self.list = match self.list {
            Listing::Not | Listing::Wanted => Listing::Wanted,
            Listing::UnderWay | Listing::UnderWayAndWanted => Listing::UnderWayAndWanted,
        };
    }

    async fn answer(&mut self, answer: Answer) -> Result<(), End> {
        match answer {
            Answer::List { at, asked, list } => self.listed(at, asked, list?).await,
            Answer::Alive(version) => {
                version?;
                Ok(())
            }
            Answer::Pod { id, at, status } => {
                let server = self.server.clone();
                let told = self.told(&id, at, status, |answer| {
                    let status = answer.status.ok_or("an answer without a status")?;
                    Ok(pod_status(&server, &id, status, &answer.info))
                })?;
                self.status(&id, at, told).await
            }
            Answer::Container { id, at, status } => {
                let (server, env_allow) = (self.server.clone(), self.peer.env_allow.clone());
                let told = self.told(&id, at, status, |answer| {
                    let status = answer.status.ok_or("an answer without a status")?;
                    Ok(container_status(&server, status, &answer.info, &env_allow))
                })?;
                self.status(&id, at, told).await
            }
        }
    }

    /// A status's answer, and who the process is that it names; an error is only what makes the connection useless.
    fn told<T>(
        &mut self,
        id: &ContainerId,
        at: BootTime,
        answer: Result<T, CallError>,
        describe: impl FnOnce(T) -> Result<super::describe::Description, &'static str>,
    ) -> Result<Result<Told, NoStatus>, End> {
        let described = match answer {
            Ok(answer) => describe(answer).map_err(Str::from),
            Err(error) if error.is_not_found() => {
                // Two servers on one host hear the same hints.
                let key = self.peer.ledger.key_of(id);
                let is_another_s = key.is_some_and(|key| self.peer.roster.is_known(&key));
                return Ok(Err(if is_another_s { NoStatus::Elsewhere } else { NoStatus::Gone }));
            }
            // One that takes too long may be waiting for a shim that hangs, which says nothing about the server: that is
            // asked whether it is alive when nothing else is heard of it.
            Err(error @ (CallError::Answer { .. } | CallError::Deadline { .. })) => {
                if self.peer.complaints.due("status") {
                    warn!(socket = %self.peer.path.display(), container = %id, %error, "no status");
                }
                Err(error.to_string().into())
            }
            Err(error) => return Err(error.into()),
        };
        Ok(match described {
            Ok(description) => {
                self.peer.stats.left_out.fetch_add(description.left_out, Relaxed);
                let identity = description.pid.and_then(|pid| identity(pid, at.max(BootTime::now())));
                let scope = self.server.scope(id, identity.map(|identity| identity.task));
                Ok(Told { description, identity, scope })
            }
            Err(reason) => Err(NoStatus::Failed(reason)),
        })
    }

    async fn status(&mut self, id: &ContainerId, at: BootTime, told: Result<Told, NoStatus>) -> Result<(), End> {
        let wishes = self.peer.ledger.answered(id, at, Instant::now(), told);
        self.peer.stats.behind.fetch_add(self.peer.ledger.takes_behind(), Relaxed);
        if self.peer.ledger.takes_list() {
            self.want_list();
        }
        let facts = wishes.into_iter().filter_map(|wish| self.grant(wish)).collect();
        self.state(facts).await
    }

    async fn listed(&mut self, at: BootTime, asked: Instant, (pods, containers): List) -> Result<(), End> {
        self.peer.stats.lists.fetch_add(1, Relaxed);
        let server = &self.server;
        let pods = pods.into_iter().filter_map(|row| {
            let id = ContainerId::new(&row.id).ok()?;
            let description = pod_row(server, &id, row);
            Some((id, description))
        });
        let containers = containers.into_iter().filter_map(|row| {
            let id = ContainerId::new(&row.id).ok()?;
            Some((id, container_row(server, row)))
        });
        let rows = pods.chain(containers).collect();
        let wishes = self.peer.ledger.listed(at, asked, rows);
        let mut facts: Vec<Fact> = wishes.into_iter().filter_map(|wish| self.grant(wish)).collect();
        self.state_keys(at, &mut facts);
        if self.peer.roster.set_live(&self.peer.path, true) {
            facts.push(live(true));
        }
        self.list = match self.list {
            Listing::UnderWayAndWanted => Listing::Wanted,
            _ => Listing::Not,
        };
        self.is_live = true;
        self.tell_condition();
        self.state(facts).await
    }

    /// Says which containers there are at all, so that what another session of this server stated and is no more is
    /// withdrawn.
    fn state_keys(&mut self, at: BootTime, facts: &mut Vec<Fact>) {
        let mut by_scope = std::collections::BTreeMap::<Str, Vec<_>>::new();
        for key in self.peer.ledger.keys() {
            by_scope.entry(Arc::clone(&key.scope)).or_default().push(key);
        }
        for (scope, keys) in by_scope {
            let keys = self.peer.roster.replace(&self.peer.path, &scope, keys);
            facts.push(Fact { source: Source::Cri, at, what: What::Listed { scope, keys } });
        }
    }

    fn tell_condition(&self) {
        if !self.is_live {
            return;
        }
        let how = match self.events {
            Events::None => format!("listed every {} s, and on a hint", self.peer.config.poll_interval().as_secs()),
            Events::Asked(_) | Events::Open(_) => "follows its events".to_owned(),
        };
        let detail = format!("{}; {how}", self.server.shown());
        if self.peer.ledger.has_nameless() {
            let lack = "containers of which no conmon tells where their OCI runtime keeps its state are left out";
            self.peer.line.degraded(&format!("{detail}; {lack}"));
        } else {
            self.peer.line.live(&detail);
        }
    }

    async fn event(&mut self, event: ContainerEventResponse) -> Result<(), End> {
        self.peer.stats.events.fetch_add(1, Relaxed);
        let Ok(id) = ContainerId::new(&event.container_id) else { return Ok(()) };
        let sandbox = event.pod_sandbox_status.as_ref().map(|status| status.id.as_str());
        let is_sandbox = sandbox == Some(id.as_str());
        let phase = match ContainerEventType::try_from(event.container_event_type) {
            Ok(ContainerEventType::ContainerCreatedEvent) => Phase::Created,
            Ok(ContainerEventType::ContainerStartedEvent) => Phase::Running,
            Ok(ContainerEventType::ContainerStoppedEvent) => Phase::Over,
            Ok(ContainerEventType::ContainerDeletedEvent) => {
                let wish = self.peer.ledger.removed(&id, BootTime::now());
                let facts = wish.and_then(|wish| self.grant(wish)).into_iter().collect();
                return self.state(facts).await;
            }
            Err(_) => return Ok(()),
        };
        // A created container has nothing to tell that it does not have when it starts, which it is about to.
        if phase > Phase::Created {
            if is_sandbox && phase == Phase::Over {
                let wish = self.peer.ledger.sandbox_over(&id, BootTime::now());
                let facts = wish.and_then(|wish| self.grant(wish)).into_iter().collect();
                self.state(facts).await?;
            }
            let kind = if is_sandbox { Kind::Sandbox } else { Kind::Container };
            let hint = Hint { id, kind, phase, sandbox_id: sandbox.map(Str::from) };
            self.peer.ledger.hinted(hint, Instant::now(), false);
        }
        Ok(())
    }

    fn grant(&mut self, wish: Wish) -> Option<Fact> {
        let fact = |at, what| Some(Fact { source: Source::Cri, at, what });
        match wish {
            Wish::State { key, at, statement } => {
                self.peer.roster.add(&self.peer.path, key.clone());
                fact(at, What::Stated { key, statement })
            }
            Wish::Withdraw { key, at } => {
                let is_last = self.peer.roster.remove(&self.peer.path, &key);
                is_last.then(|| fact(at, What::Withdrawn { key })).flatten()
            }
        }
    }

    async fn state(&mut self, facts: Vec<Fact>) -> Result<(), End> {
        if facts.is_empty() {
            return Ok(());
        }
        Ok(self.peer.facts.state(facts).await?)
    }
}

/// Nobody on this socket knows the CRI: a containerd without its plugin. It is looked at again when the socket is another
/// one.
fn without_cri(peer: &mut Peer) {
    peer.without_cri = file_version(&peer.path);
    let (what, detail) = (peer.path.display().to_string(), "has no CRI plugin, or it is switched off");
    if peer.health.report(Source::Cri, &what, Condition::Refused, detail) {
        info!(socket = what, "no CRI here");
    }
}

fn live(live: bool) -> Fact {
    Fact { source: Source::Cri, at: BootTime::now(), what: What::Live(live) }
}
