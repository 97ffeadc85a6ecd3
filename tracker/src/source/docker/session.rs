//! One connection's life: subscribe, list, reconcile, follow.
//!
//! ```text
//!  ping ─▶ subscribe ─▶ list ─▶ Live ─▶ inspect, follow
//!              └─ events wait in the stream meanwhile, and are applied after the list ─┘
//! ```
//!
//! dockerd answers a subscription a moment before it begins, so that a second list shortly after the first closes that
//! gap. From then on a list is an audit, every few minutes, or sooner while an inspection was not answered.
//!
//! A list tells most of every container in one answer, so that all of them are stated with it. What only an inspection
//! tells (the init process, limits, how it ended) is asked for one by one, those that run first. While a call that
//! everything waits for is in flight, the inspections that were asked for go on beside it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tracing::{debug, warn};

use super::Peer;
use super::client::Client;
use super::describe::{self, Description, Frame};
use super::events::{self, Event, Garbled};
use super::images::{self, Known};
use super::ledger::Wish;
use super::namespace;
use super::queue::Queue;
use super::runtimes::Runtimes;
use super::wire::{Image, Inspection, Summary};
use crate::container::{ContainerId, ContainerKey, Str};
use crate::enrich::scope;
use crate::fact::{Fact, Source, Statement, What};
use crate::source::http::{CallError, Object, Objects};
use crate::source::peer::{FileId, file_id};
use crate::source::process::identity_in;
use crate::source::supervise::End;
use crate::time::BootTime;

/// Inspections, of containers and images, at the same time; with the one call that everything waits for, four.
const CONCURRENT_INSPECTIONS: usize = 3;
/// Events applied in one step, before what they changed is stated.
const MAX_BATCH: usize = 1024;
/// After the first list, the second one comes this soon; and so does a list of images after something changed.
const SETTLE: Duration = Duration::from_secs(1);

/// Runs until the connection is of no more use.
pub(super) async fn run(peer: &mut Peer) -> End {
    let found = file_id(&peer.path);
    if found.is_none() && peer.is_optional && !peer.was_seen {
        return End::Unnoticed;
    }
    peer.was_seen = true;
    let end = match Session::open(peer).await {
        Ok(mut session) => {
            let end = match session.follow(found).await {
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
    frame: Frame,
    scope: Str,
    events: Objects,
    queue: Queue,
    inspections: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// What the daemon's names for OCI runtimes mean, once that had to be asked.
    runtimes: Option<Runtimes>,
    /// Images whose platforms are to be asked for, while no container waits; and how many are being asked for.
    images_to_ask: VecDeque<Str>,
    images_asked: usize,
    /// When images were last changed, if they have not been listed since.
    images_changed: Option<Instant>,
    server: String,
    is_live: bool,
}

/// What came of an inspection.
enum Answer {
    Container(Box<Inspected>),
    Image(Str, Result<Image, CallError>),
}

/// What came of a container's, which event was the last when it was asked for, and when that was.
struct Inspected {
    id: ContainerId,
    asked: u64,
    at: BootTime,
    inspection: Result<Inspection, CallError>,
}

impl<'a> Session<'a> {
    async fn open(peer: &'a mut Peer) -> Result<Self, End> {
        let mut client = Client::new(&peer.path, peer.domain, &peer.config, Arc::clone(&peer.stats));
        let greeting = client.ping().await?;
        if !greeting.is_docker() {
            let detail = format!("{}: no dockerd: it calls itself `{}`", peer.path.display(), greeting.server);
            return Err(End::Unsuitable(detail));
        }
        client.speak_with(&greeting);
        let events = client.events().await?;
        let namespace = match &peer.config.containerd_namespace {
            Some(namespace) => namespace.clone(),
            None => namespace::find(&client).await,
        };
        let scope = scope::containerd(&namespace);
        let frame = Frame { namespace, env_allow: peer.env_allow.clone() };
        Ok(Self {
            peer,
            client,
            frame,
            scope,
            events,
            queue: Queue::default(),
            inspections: FuturesUnordered::new(),
            runtimes: None,
            images_to_ask: VecDeque::new(),
            images_asked: 0,
            images_changed: None,
            server: greeting.server,
            is_live: false,
        })
    }

    async fn follow(&mut self, socket: Option<FileId>) -> Result<Infallible, End> {
        self.list_images().await?;
        self.list().await?;

        let alive_interval = self.peer.config.alive_interval();
        let mut alive = tokio::time::interval_at(Instant::now() + alive_interval, alive_interval);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let audit_interval = self.peer.config.audit_interval();
        let mut audit = tokio::time::interval_at(Instant::now() + SETTLE.min(audit_interval), audit_interval);
        audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // One that could not be inspected may have got unstuck, of which no event tells.
        let recheck = audit_interval.min(alive_interval * 6);
        let mut heard = false;
        loop {
            self.begin_inspections();
            let due = self.queue.next_due().filter(|_| self.inspections.len() < CONCURRENT_INSPECTIONS);
            let images_due = self.images_changed.map(|changed| changed + SETTLE);
            tokio::select! {
                event = self.events.next() => {
                    heard = true;
                    self.events(event?).await?;
                }
                Some(answer) = self.inspections.next(), if !self.inspections.is_empty() => {
                    heard = true;
                    if self.answered(answer).await? == Told::Late {
                        audit.reset_after(recheck);
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                () = sleep_until(images_due.unwrap_or_else(Instant::now)), if images_due.is_some() => {
                    self.list_images().await?;
                }
                _ = alive.tick() => {
                    if file_id(&self.peer.path).is_some_and(|now| Some(now) != socket) {
                        return Err(End::Lost(format!("{}: the socket was replaced", self.peer.path.display())));
                    }
                    if !std::mem::take(&mut heard) {
                        let client = self.client.clone();
                        self.beside_inspections(client.ping()).await?;
                    }
                }
                _ = audit.tick() => self.list().await?,
            }
        }
    }

    /// Awaits `call` while the inspections that were asked for go on.
    async fn beside_inspections<T>(&mut self, call: impl Future<Output = Result<T, CallError>>) -> Result<T, End> {
        let mut call = std::pin::pin!(call);
        loop {
            tokio::select! {
                biased;
                answer = &mut call => return Ok(answer?),
                Some(answer) = self.inspections.next(), if !self.inspections.is_empty() => {
                    // Late or not: the call that everything waits for tells whether the daemon is well.
                    self.answered_beside(answer).await?;
                }
            }
        }
    }

    /// Lists all containers and states them; what was there before and is no more, is withdrawn.
    async fn list(&mut self) -> Result<(), End> {
        let at = BootTime::now();
        let client = self.client.clone();
        let mut summaries = vec![];
        let unread = self.beside_inspections(client.each_container(|summary: Summary| summaries.push(summary)));
        let unread = unread.await?;

        if self.peer.scope.as_ref().is_some_and(|former| *former != self.scope) {
            // Another daemon took the socket over. Its containers are others, whatever they are called.
            self.peer.ledger = Default::default();
        }
        let mut facts = vec![];
        if let Some(former) = self.peer.scope.replace(Str::clone(&self.scope)).filter(|former| *former != self.scope) {
            facts.extend(self.whole_list(at, former, vec![]));
        }
        let containers = summaries.into_iter().filter_map(|summary| {
            let id = ContainerId::new(&summary.id).ok()?;
            let (mut description, present) = describe::summary(&id, summary, &self.frame);
            self.add_digest(&mut description.statement);
            Some((id, description, present))
        });
        let containers: Vec<_> = containers.collect();
        let left_out = containers.iter().map(|(_, description, _)| description.left_out).sum();
        self.peer.stats.left_out.fetch_add(left_out, Relaxed);
        let keys = containers.iter().map(|(id, ..)| self.key(id)).collect();
        let wishes = self.peer.ledger.listed(at, containers, !self.is_live);
        // What cannot be read is there all the same: then nothing is withdrawn.
        let whole = if unread == 0 { self.whole_list(at, Str::clone(&self.scope), keys) } else { vec![] };
        self.grant_all(wishes, &mut facts);
        facts.extend(whole);
        self.peer.stats.lists.fetch_add(1, Relaxed);

        // What happened meanwhile goes into the same step, so that nobody sees what is over already.
        self.apply_ready(&mut facts)?;
        if self.peer.roster.set_live(&self.peer.path, true) {
            facts.push(live(true));
        }
        self.is_live = true;
        self.peer.facts.state(facts).await?;
        match unread {
            0 => self.peer.line.live(&self.server),
            unread => {
                let detail = format!("{}; {unread} containers that cannot be read are left out", self.server);
                self.peer.line.degraded(&detail);
            }
        }
        Ok(())
    }

    /// The facts by which a list of all that there is in a scope takes back what is no more.
    fn whole_list(&self, at: BootTime, scope: Str, keys: Vec<ContainerKey>) -> Vec<Fact> {
        let taken_back = self.peer.roster.listed(&self.peer.path, self.peer.domain, scope, keys);
        taken_back.into_iter().map(|what| fact(at, what)).collect()
    }

    async fn list_images(&mut self) -> Result<(), End> {
        self.images_changed = None;
        let client = self.client.clone();
        let mut all = vec![];
        let (images, cache) = match self.beside_inspections(client.each_image(|image| all.push(image))).await {
            Ok(()) => images::listed(all, &self.peer.images),
            // A daemon that cannot list them (its store is broken) may be well otherwise.
            Err(End::Lost(reason)) => {
                if self.peer.complaints.due("images") {
                    warn!(socket = %self.peer.shown, reason, "no list of images");
                }
                return Ok(());
            }
            Err(end) => return Err(end),
        };
        self.peer.images = cache;
        self.images_to_ask = self.peer.images.not_asked().cloned().collect();
        self.peer.stored.replace(Source::Docker, &self.peer.shown, None, images);
        Ok(())
    }

    /// Applies an event and those that are ready behind it, then states what they changed.
    async fn events(&mut self, first: Option<Object>) -> Result<(), End> {
        let mut facts = vec![];
        let Some(first) = first else {
            return Err(End::Lost(format!("{}: the event stream ended", self.peer.path.display())));
        };
        self.event(&first, &mut facts);
        let more = self.apply_ready(&mut facts);
        self.state(facts).await?;
        more
    }

    /// Applies events that are there already.
    fn apply_ready(&mut self, facts: &mut Vec<Fact>) -> Result<(), End> {
        for _ in 0..MAX_BATCH {
            match self.events.ready()? {
                Some(object) => self.event(&object, facts),
                None => break,
            }
        }
        Ok(())
    }

    fn event(&mut self, object: &Object, facts: &mut Vec<Fact>) {
        self.peer.stats.events.fetch_add(1, Relaxed);
        let message = object.read().ok_or(Garbled::TooLong);
        let event = message.and_then(|message| events::decode(message?));
        let (id, at, what) = match event {
            Ok(Some(Event::Container { id, at, what })) => (id, at, what),
            Ok(Some(Event::ImagesChanged)) => {
                self.images_changed = Some(self.images_changed.unwrap_or_else(Instant::now));
                return;
            }
            Ok(Some(Event::Reloaded)) => {
                self.runtimes = None;
                return;
            }
            Ok(None) => return,
            Err(error) => {
                self.peer.stats.events_garbled.fetch_add(1, Relaxed);
                if self.peer.complaints.due("event") {
                    warn!(socket = %self.peer.shown, %error, "an event that cannot be read");
                }
                return;
            }
        };
        let mut left_out = 0;
        let describe = |id: &ContainerId, attributes| {
            let description = describe::attributes(id, attributes, &self.frame);
            left_out = description.left_out;
            description
        };
        let wishes = self.peer.ledger.apply(id, at, what, describe);
        self.peer.stats.left_out.fetch_add(left_out, Relaxed);
        self.grant_all(wishes, facts);
    }

    fn grant_all(&mut self, wishes: Vec<Wish>, facts: &mut Vec<Fact>) {
        for wish in wishes {
            self.grant(wish, facts);
        }
    }

    fn grant(&mut self, wish: Wish, facts: &mut Vec<Fact>) {
        match wish {
            Wish::State { id, at, statement } => {
                let key = self.key(&id);
                self.peer.roster.add(&self.peer.path, key.clone());
                facts.push(fact(at, What::Stated { key, statement }));
            }
            Wish::Withdraw { id, at } => {
                self.queue.remove(&id);
                let key = self.key(&id);
                if self.peer.roster.remove(&self.peer.path, &key) {
                    facts.push(fact(at, What::Withdrawn { key }));
                }
            }
            Wish::Inspect(id) => self.queue.add(id),
            Wish::InspectLater(id) => self.queue.add_later(id, Instant::now()),
        }
    }

    fn begin_inspections(&mut self) {
        while self.inspections.len() < CONCURRENT_INSPECTIONS {
            let client = self.client.clone();
            if let Some(id) = self.queue.next(Instant::now()) {
                let (asked, at) = (self.peer.ledger.events(), BootTime::now());
                let inspect = async move {
                    let inspection = client.inspect(&id).await;
                    Answer::Container(Box::new(Inspected { id, asked, at, inspection }))
                };
                self.inspections.push(inspect.boxed());
            } else if let Some(id) = self.images_to_ask.pop_front() {
                self.images_asked += 1;
                let inspect = async move {
                    let image = client.image(&id).await;
                    Answer::Image(id, image)
                };
                self.inspections.push(inspect.boxed());
            } else {
                break;
            }
        }
    }

    async fn answered(&mut self, answer: Answer) -> Result<Told, End> {
        let late = self.answered_beside(answer).await?;
        if late == Told::Late {
            // A container that is stuck explains that; a daemon that hangs would, too.
            let client = self.client.clone();
            self.beside_inspections(client.ping()).boxed().await?;
        }
        Ok(late)
    }

    async fn answered_beside(&mut self, answer: Answer) -> Result<Told, End> {
        match answer {
            Answer::Container(inspected) => self.inspected(*inspected).await,
            Answer::Image(id, image) => self.image_told(id, image),
        }
    }

    fn image_told(&mut self, id: Str, image: Result<Image, CallError>) -> Result<Told, End> {
        self.images_asked -= 1;
        match image {
            Ok(image) => self.peer.images.insert(id, Known::inspected(&image)),
            Err(error) if error.is_not_found() => self.peer.images.insert(id, Known::gone()),
            // The next list asks again.
            Err(CallError::Refused { .. } | CallError::Garbled { .. } | CallError::Deadline { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        if self.images_asked == 0 && self.images_to_ask.is_empty() {
            let Peer { images, stored, shown, .. } = &*self.peer;
            stored.add_platforms(Source::Docker, shown, |id| images.platform(id));
        }
        Ok(Told::InTime)
    }

    async fn inspected(&mut self, inspected: Inspected) -> Result<Told, End> {
        let Inspected { id, asked, at, inspection } = inspected;
        let (wish, end) = match inspection {
            Ok(inspection) => {
                let (mut description, present) = describe::inspection(&id, inspection, &self.frame);
                self.peer.stats.left_out.fetch_add(description.left_out, Relaxed);
                self.look_up_digest(&mut description.statement).await?;
                self.look_up_runtime(&mut description).await?;
                let identity = present.pid.and_then(|pid| identity_in(self.peer.domain, pid, at));
                debug!(container = %id, "inspected");
                (self.peer.ledger.inspected(id, at, asked, (description, present), identity), Told::InTime)
            }
            // It was removed meanwhile: an event says so, or has said so.
            Err(error) if error.is_not_found() => return Ok(Told::InTime),
            Err(error @ (CallError::Refused { .. } | CallError::Garbled { .. })) => {
                if self.peer.complaints.due("inspection") {
                    warn!(socket = %self.peer.shown, container = %id, %error, "no inspection");
                }
                (self.peer.ledger.not_inspected(id, at, error.to_string()), Told::InTime)
            }
            Err(error @ CallError::Deadline { .. }) => {
                if self.peer.complaints.due("late inspection") {
                    warn!(socket = %self.peer.shown, container = %id, %error, "no inspection");
                }
                (self.peer.ledger.not_inspected(id, at, error.to_string()), Told::Late)
            }
            Err(error) => return Err(error.into()),
        };
        let mut facts = vec![];
        if let Some(wish) = wish {
            self.grant(wish, &mut facts);
        }
        self.state(facts).await?;
        Ok(end)
    }

    /// Adds the digest of its image, if the image is known.
    fn add_digest(&self, statement: &mut Statement) -> bool {
        let Some(image) = &mut statement.image else { return true };
        let Some(digests) = image.id.as_ref().and_then(|id| self.peer.images.digests(id)) else {
            return image.id.is_none();
        };
        image.digest = images::digest(digests, image.name.as_deref());
        if image.digest.is_none() {
            let reason = "the image was never pulled or pushed: no registry has given it one";
            statement.missing.push(("image.digest", reason.into()));
        }
        true
    }

    /// The same, and asks for the image if it has to: once for each that is made between two lists of images.
    async fn look_up_digest(&mut self, statement: &mut Statement) -> Result<(), End> {
        if self.add_digest(statement) {
            return Ok(());
        }
        let Some(id) = statement.image.as_ref().and_then(|image| image.id.clone()) else { return Ok(()) };
        match self.client.image(&id).await {
            Ok(image) => self.peer.images.insert(id, Known::inspected(&image)),
            Err(error) if error.is_not_found() => self.peer.images.insert(id, Known::gone()),
            Err(error @ (CallError::Refused { .. } | CallError::Garbled { .. } | CallError::Deadline { .. })) => {
                statement.missing.push(("image.digest", error.to_string().into()));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        self.add_digest(statement);
        Ok(())
    }

    /// Adds which OCI runtime ran it, and asks what the daemon's names mean if it has to: once, and again after the
    /// daemon has read its configuration again.
    async fn look_up_runtime(&mut self, description: &mut Description) -> Result<(), End> {
        let Some(alias) = &description.alias else { return Ok(()) };
        let statement = &mut description.statement;
        if self.runtimes.is_none() {
            match self.client.runtimes().await {
                Ok(runtimes) => self.runtimes = Some(runtimes),
                Err(error @ (CallError::Refused { .. } | CallError::Garbled { .. } | CallError::Deadline { .. })) => {
                    statement.missing.push(("runtime.oci", error.to_string().into()));
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        let program = self.runtimes.as_ref().and_then(|runtimes| runtimes.program(alias));
        match &mut statement.runtime {
            Some(runtime) if program.is_some() => runtime.oci = program,
            _ => {
                let reason = format!("no program is configured for Docker's runtime `{alias}`");
                statement.missing.push(("runtime.oci", reason.into()));
            }
        }
        Ok(())
    }

    fn key(&self, id: &ContainerId) -> ContainerKey {
        ContainerKey { domain: self.peer.domain, scope: Str::clone(&self.scope), id: id.clone() }
    }

    async fn state(&mut self, facts: Vec<Fact>) -> Result<(), End> {
        if facts.is_empty() {
            return Ok(());
        }
        Ok(self.peer.facts.state(facts).await?)
    }
}

/// Whether an inspection was answered in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    InTime,
    Late,
}

fn fact(at: BootTime, what: What) -> Fact {
    Fact { source: Source::Docker, at, what }
}

fn live(live: bool) -> Fact {
    fact(BootTime::now(), What::Live(live))
}
