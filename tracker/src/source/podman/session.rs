//! One service's life: subscribe, list, reconcile, follow.
//!
//! ```text
//!  subscribe ─▶ ask for the version ─▶ list ─▶ Live ─▶ follow: events, inspections, an audit now and then
//!      └─ events wait in the stream meanwhile, and are applied after the list
//! ```
//!
//! A list is stated at once, with what it tells; what only an inspection tells comes container by container, each once,
//! a few at a time. While a container is being created or started podman holds its lock, and whoever asks about it
//! waits: so it is asked about after the event that says that it runs.
//!
//! Podman does not acknowledge a subscription, so that a second list shortly after the first closes the gap. A service
//! whose events are turned off is listed again every few seconds instead, and is reported as degraded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tracing::{debug, warn};

use super::Peer;
use super::answer::{Inspection, PodAnswer};
use super::client::{CallError, Client, Events};
use super::event::{self, Happened};
use super::ledger::{Init, Inspect, Name};
use crate::container::{ContainerId, Pod, Str};
use crate::fact::{Fact, What};
use crate::source::peer::{FileId, file_id};
use crate::source::process::identity;
use crate::source::supervise::End;
use crate::time::BootTime;

/// Inspections in flight; with a list or a question for the service's life there are four calls at most.
const CONCURRENT_QUESTIONS: usize = 3;
/// Events applied in one step, before what they changed is stated.
const MAX_BATCH: usize = 1024;
/// After the first list, the second one comes this soon.
const SETTLE: Duration = Duration::from_secs(1);
/// Between two lists of a service that tells no events.
const WITHOUT_EVENTS: Duration = Duration::from_secs(5);

/// Runs until the service is of no more use.
pub(super) async fn run(peer: &mut Peer) -> End {
    let socket = file_id(&peer.endpoint.path);
    if socket.is_none() && !peer.endpoint.is_expected && !peer.was_seen {
        return End::Unnoticed;
    }
    peer.was_seen = true;
    let config = &peer.shared.config;
    let client = Client::new(
        Arc::clone(&peer.path),
        peer.endpoint.domain,
        config.deadline(),
        config.list_deadline(),
        Arc::clone(&peer.shared.stats),
    );
    let mut session = Session {
        peer,
        client,
        due: BTreeMap::new(),
        asking: BTreeSet::new(),
        pods: VecDeque::new(),
        questions: FuturesUnordered::new(),
        is_live: false,
    };
    let end = match session.follow(socket).await {
        Ok(never) => match never {},
        Err(end) => end,
    };
    if session.is_live {
        session.peer.shared.stats.sessions_lost.fetch_add(1, Relaxed);
    }
    end
}

struct Session<'a> {
    peer: &'a mut Peer,
    client: Client,
    /// Containers to be inspected, and when. Bounded by the number of containers.
    due: BTreeMap<Name, Instant>,
    /// Those that are being inspected.
    asking: BTreeSet<Name>,
    /// Pods to be asked for. Bounded by the number of containers.
    pods: VecDeque<Str>,
    questions: FuturesUnordered<BoxFuture<'static, Answer>>,
    is_live: bool,
}

/// What came of a question.
enum Answer {
    Container(Name, BootTime, Box<Result<Inspection, CallError>>),
    Pod(Str, Result<PodAnswer, CallError>),
}

impl Session<'_> {
    async fn follow(&mut self, socket: Option<FileId>) -> Result<Infallible, End> {
        let mut events = match self.client.events().await {
            Ok(events) => Ok(events),
            Err(error @ CallError::Answer { .. }) => Err(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        let version = format!("podman {}", self.client.version().await?);
        self.list().await?;
        match &events {
            Ok(_) => self.peer.line.live(&version),
            Err(reason) => {
                let seconds = WITHOUT_EVENTS.as_secs();
                self.peer
                    .line
                    .degraded(&format!("{version}; listed every {seconds} s, for it tells no events: {reason}"));
            }
        }
        self.is_live = true;

        let config = &self.peer.shared.config;
        let audit_interval = if events.is_ok() { config.audit_interval() } else { WITHOUT_EVENTS };
        let mut audit = interval_at(Instant::now() + SETTLE.min(audit_interval), audit_interval);
        audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut alive = interval_at(Instant::now() + config.alive_interval(), config.alive_interval());
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = false;
        loop {
            self.begin_questions();
            let due = self.due.values().min().copied().filter(|_| self.questions.len() < CONCURRENT_QUESTIONS);
            tokio::select! {
                line = next(&mut events) => {
                    heard = true;
                    self.events(line?, &mut events).await?;
                }
                Some(answer) = self.questions.next(), if !self.questions.is_empty() => {
                    heard = true;
                    self.answered(answer).await?;
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                _ = audit.tick() => {
                    heard = true;
                    self.list().await?;
                }
                _ = alive.tick() => {
                    // A new service under the old name, while the former one still holds our connection.
                    if file_id(&self.peer.endpoint.path) != socket {
                        return Err(End::Lost("its socket was replaced".into()));
                    }
                    if !std::mem::take(&mut heard) {
                        self.client.ping().await?;
                    }
                }
            }
        }
    }

    async fn list(&mut self) -> Result<(), End> {
        let at = BootTime::now();
        let rows = self.client.list().await?;
        let stats = &self.peer.shared.stats;
        stats.lists.fetch_add(1, Relaxed);
        let domain = self.peer.endpoint.domain;
        let rows: Vec<_> = rows
            .into_iter()
            .filter_map(|row| {
                let id = ContainerId::new(&row.id).ok()?;
                let told = row.told();
                stats.left_out.fetch_add(told.left_out, Relaxed);
                Some((id, told))
            })
            .collect();
        let (facts, wishes) = self.peer.shared.ledger().listed(&self.peer.path, domain, at, rows, find_init);
        for wish in wishes {
            // A list that comes while one is being inspected has nothing to add to the answer.
            if !self.asking.contains(&wish.name) {
                self.wish(wish);
            }
        }
        self.state(facts).await
    }

    /// Applies an event and those that are ready behind it, then states what they changed.
    async fn events(&mut self, first: Vec<u8>, events: &mut Result<Events, String>) -> Result<(), End> {
        let mut facts = vec![];
        self.event(&first, &mut facts);
        for _ in 0..MAX_BATCH {
            // An error is left for the next who asks.
            let Some(Ok(line)) = next(events).now_or_never() else { break };
            self.event(&line, &mut facts);
        }
        self.state(facts).await
    }

    fn event(&mut self, line: &[u8], facts: &mut Vec<Fact>) {
        let shared = &self.peer.shared;
        shared.stats.events.fetch_add(1, Relaxed);
        let event = match event::decode(line) {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                shared.stats.events_garbled.fetch_add(1, Relaxed);
                if shared.complaints.due("event") {
                    warn!(socket = %self.peer.path.display(), %error, "an event that cannot be read");
                }
                return;
            }
        };
        match event.what {
            Happened::ExecDied => _ = shared.stats.exec_exits.fetch_add(1, Relaxed),
            Happened::Removed => {
                self.due.remove(&Name { domain: self.peer.endpoint.domain, id: event.id.clone() });
            }
            _ => {}
        }
        let (changed, wish) = shared.ledger().happened(&self.peer.path, self.peer.endpoint.domain, event);
        facts.extend(changed);
        wish.into_iter().for_each(|wish| self.wish(wish));
    }

    /// The latest wish about a container is the one that counts.
    fn wish(&mut self, Inspect { name, after }: Inspect) {
        self.due.insert(name, Instant::now() + after);
    }

    fn begin_questions(&mut self) {
        while self.questions.len() < CONCURRENT_QUESTIONS {
            let client = self.client.clone();
            if let Some(id) = self.pods.pop_front() {
                self.questions.push(async move { Answer::Pod(Str::clone(&id), client.pod(&id).await) }.boxed());
                continue;
            }
            let now = Instant::now();
            let is_due = |(name, at): &(&Name, &Instant)| **at <= now && !self.asking.contains(*name);
            let Some(name) = self.due.iter().find(is_due).map(|(name, _)| name.clone()) else { return };
            self.due.remove(&name);
            self.asking.insert(name.clone());
            let at = BootTime::now();
            let ask = async move {
                let answer = client.inspect(&name).await;
                Answer::Container(name, at, Box::new(answer))
            };
            self.questions.push(ask.boxed());
        }
    }

    async fn answered(&mut self, answer: Answer) -> Result<(), End> {
        let domain = self.peer.endpoint.domain;
        let facts = match answer {
            Answer::Container(name, at, answer) => {
                self.asking.remove(&name);
                self.inspected(&name, at, *answer)?
            }
            Answer::Pod(id, answer) => {
                let pod = match answer {
                    Ok(answer) => answer.pod(),
                    // Removed meanwhile, or unreadable: not asked for again.
                    Err(CallError::Answer { .. }) => Pod { uid: Some(Str::clone(&id)), ..Pod::default() },
                    Err(error) => return Err(error.into()),
                };
                self.peer.shared.ledger().pod_told(domain, id, BootTime::now(), pod)
            }
        };
        self.state(facts).await
    }

    fn inspected(
        &mut self,
        name: &Name,
        at: BootTime,
        answer: Result<Inspection, CallError>,
    ) -> Result<Vec<Fact>, End> {
        let shared = &self.peer.shared;
        let told = match answer {
            Ok(answer) => answer.told(name.domain, &shared.env_allow),
            // It was removed meanwhile: an event says so, or has said so.
            Err(error) if error.is_not_found() => return Ok(vec![]),
            // It is being started, which takes its time; or its labels are longer than what is read.
            Err(error @ (CallError::Answer { .. } | CallError::Deadline { .. })) => {
                if shared.complaints.due("inspect") {
                    warn!(socket = %self.peer.path.display(), container = %name.id, %error, "no answer about a container");
                }
                return Ok(shared.ledger().not_inspected(name, BootTime::now(), error.to_string().into()));
            }
            Err(error) => return Err(error.into()),
        };
        shared.stats.left_out.fetch_add(told.left_out, Relaxed);
        debug!(container = %name.id, "inspected");
        let pod = told.statement.pod.as_ref().and_then(|pod| pod.uid.clone());
        let mut ledger = shared.ledger();
        if let Some(pod) = pod
            && ledger.lacks_pod(name.domain, &pod)
            && !self.pods.contains(&pod)
        {
            self.pods.push_back(pod);
        }
        Ok(ledger.inspected(&self.peer.path, name, at, told, find_init))
    }

    async fn state(&mut self, facts: Vec<Fact>) -> Result<(), End> {
        debug_assert!(facts.iter().all(|fact| matches!(fact.what, What::Stated { .. } | What::Withdrawn { .. })));
        if facts.is_empty() {
            return Ok(());
        }
        self.peer.shared.facts.state(facts).await.map_err(|_| End::Nobody)
    }
}

/// The next line, or never where there are no events.
async fn next(events: &mut Result<Events, String>) -> Result<Vec<u8>, CallError> {
    match events {
        Ok(events) => events.next().await,
        Err(_) => std::future::pending().await,
    }
}

fn find_init(pid: u32) -> Option<Init> {
    identity(pid, BootTime::now()).map(|found| Init { task: found.task, namespaces: found.namespaces })
}
