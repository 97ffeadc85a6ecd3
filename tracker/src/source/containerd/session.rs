//! One connection's life: subscribe, list, reconcile, follow.
//!
//! ```text
//!  connect ─▶ subscribe ─▶ ask for the version ─▶ list every namespace ─▶ Live ─▶ follow
//!                 └─ events wait in the stream meanwhile, and are applied after the list ─┘
//! ```
//!
//! containerd does not acknowledge a subscription. Requests of one connection are begun in their order, and a whole
//! exchange lies between the subscription and the first list, so that a gap between the two is unlikely; a second list
//! shortly after the first closes it for certain. From then on a list is an audit, every few
//! minutes, or sooner while a shim that hung left a task unknown.
//!
//! A daemon that is stopped keeps its connection open. Go's gRPC servers close a connection that is pinged more than
//! every five minutes, so instead of HTTP/2 pings the version is asked for, whenever nothing else was heard for a while.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use containerd_client::types::Envelope;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, MissedTickBehavior};
use tonic::Streaming;
use tracing::{debug, warn};

use super::Peer;
use super::catalog::resolve;
use super::client::{Client, next_event};
use super::describe::{Description, describe};
use super::events::{self, boot_time};
use super::images;
use super::ledger::{ListedTask, Name, Wish, with_image};
use crate::collection::door::Ended;
use crate::container::{ContainerId, ContainerKey, Domain, State, Str};
use crate::enrich::env::EnvAllow;
use crate::enrich::scope;
use crate::fact::{Fact, Source, Statement, What};
use crate::source::grpc::CallError;
use crate::source::images::StoredImage;
use crate::source::peer::{FileId, file_id};
use crate::source::process::identity_in;
use crate::source::supervise::End;
use crate::time::BootTime;

/// Records read at the same time. More wait in the ledger's order. With a list and a list of images beside them, four calls
/// are under way, and no more unless shims hang.
const CONCURRENT_DESCRIPTIONS: usize = 2;
/// Events applied in one step, before what they changed is stated.
const MAX_BATCH: usize = 1024;
/// After the first list, the second one comes this soon.
const SETTLE: Duration = Duration::from_secs(1);
/// How long a list waits for the tasks. containerd asks every shim for them, one after the other, and waits two seconds
/// for each that hangs; the containers shall not wait for that, so that tasks that come later are applied later.
const TASKS_GRACE: Duration = Duration::from_millis(300);
/// Namespaces that are listed.
const MAX_NAMESPACES: usize = 1024;

/// Runs until the connection is of no more use.
pub(super) async fn run(peer: &mut Peer) -> End {
    let found = file_id(&peer.path);
    if found.is_none() && peer.is_optional && !peer.was_seen {
        return End::Unnoticed;
    }
    peer.was_seen = true;
    let end = match Session::open(peer).await {
        Ok(mut session) => {
            let end = session.follow(found).await;
            if session.is_live {
                session.peer.stats.sessions_lost.fetch_add(1, Relaxed);
            }
            end
        }
        Err(end) => end,
    };
    if leave(peer).await.is_err() {
        return End::Nobody;
    }
    end
}

/// This daemon no longer reports; nor does the source, if it was the last that did.
pub(super) async fn leave(peer: &Peer) -> Result<(), Ended> {
    if peer.roster.set_live(&peer.path, false) { peer.facts.state(vec![live(false)]).await } else { Ok(()) }
}

struct Session<'a> {
    peer: &'a mut Peer,
    client: Client,
    subscription: Subscription,
    describing: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Bounded by the number of containers: one that waits already is not added again.
    to_describe: VecDeque<(Name, BootTime)>,
    /// Lists of tasks that take their time: at most one per namespace and list.
    late_tasks: FuturesUnordered<BoxFuture<'static, LateTasks>>,
    /// Namespaces whose images may have changed since they were listed.
    images_changed: BTreeSet<Str>,
    /// The list of images that is being read: one at a time.
    listing_images: Option<BoxFuture<'static, ListedImages>>,
    version: String,
    is_live: bool,
}

/// A record that was read, with the name of its image.
type Described = (Description, Option<Str>);

/// What came of reading a record, and when it was asked for.
type Answer = (Name, BootTime, Result<Described, CallError>);

/// A namespace, which event was the last when its tasks were asked for, and when that was; and the tasks.
type LateTasks = (Str, u64, BootTime, Result<Vec<Process>, CallError>);

/// A namespace's images, and whether there are more.
type ListedImages = (Str, Result<(Vec<StoredImage>, bool), CallError>);

/// The event stream: asked for until the first event arrives, then open.
enum Subscription {
    Asked(BoxFuture<'static, Result<Streaming<Envelope>, CallError>>),
    Open(Box<Streaming<Envelope>>),
}

impl Subscription {
    /// The next event. Safe to drop and call again.
    async fn next(&mut self) -> Result<Envelope, CallError> {
        loop {
            match self {
                Self::Asked(asked) => *self = Self::Open(Box::new(asked.await?)),
                Self::Open(stream) => return next_event(stream).await,
            }
        }
    }

    /// Waits until the stream is open, for ever after.
    async fn open(&mut self) -> Result<(), CallError> {
        if let Self::Asked(asked) = self {
            *self = Self::Open(Box::new(asked.await?));
        }
        std::future::pending().await
    }
}

impl<'a> Session<'a> {
    async fn open(peer: &'a mut Peer) -> Result<Self, End> {
        let config = &peer.config;
        let list_deadline = config.list_deadline();
        let stats = Arc::clone(&peer.stats);
        let client = Client::connect(&peer.path, peer.domain, config.deadline(), list_deadline, stats).await?;
        let subscription = Subscription::Asked(client.subscribe().boxed());
        let (describing, late_tasks) = (FuturesUnordered::new(), FuturesUnordered::new());
        Ok(Self {
            peer,
            client,
            subscription,
            describing,
            to_describe: VecDeque::new(),
            late_tasks,
            images_changed: BTreeSet::new(),
            listing_images: None,
            version: String::new(),
            is_live: false,
        })
    }

    async fn follow(&mut self, socket: Option<FileId>) -> End {
        match self.try_follow(socket).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_follow(&mut self, socket: Option<FileId>) -> Result<std::convert::Infallible, End> {
        // The images' names may have changed while nobody listened.
        self.peer.images.forget_names();
        let client = self.client.clone();
        self.version = self.beside_subscription(client.version()).await?;
        self.list().await?;

        let alive_interval = self.peer.config.alive_interval();
        let mut alive = tokio::time::interval_at(Instant::now() + alive_interval, alive_interval);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let audit_interval = self.peer.config.audit_interval();
        let mut audit = tokio::time::interval_at(Instant::now() + SETTLE.min(audit_interval), audit_interval);
        audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A shim that hung may have come back, of which no event tells.
        let recheck = audit_interval.min(alive_interval * 6);
        // One list for all that one pull or prune changes.
        let mut images = tokio::time::interval(SETTLE);
        images.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = false;
        loop {
            self.begin_descriptions();
            tokio::select! {
                envelope = self.subscription.next() => {
                    heard = true;
                    self.events(envelope?).await?;
                }
                Some((name, at, described)) = self.describing.next(), if !self.describing.is_empty() => {
                    heard = true;
                    self.described(name, at, described).await?;
                }
                Some((namespace, asked, at, tasks)) = self.late_tasks.next(), if !self.late_tasks.is_empty() => {
                    self.late_tasks(&namespace, asked, at, tasks).await?;
                    if self.peer.ledger.awaits_tasks() {
                        audit.reset_after(recheck);
                    }
                }
                _ = images.tick(), if self.listing_images.is_none() && !self.images_changed.is_empty() => {
                    self.begin_images();
                }
                listed = listed_images(&mut self.listing_images) => {
                    heard = true;
                    self.listed_images(listed)?;
                }
                _ = alive.tick() => {
                    if file_id(&self.peer.path).is_some_and(|now| Some(now) != socket) {
                        return Err(End::Lost(format!("{}: the socket was replaced", self.peer.path.display())));
                    }
                    if !std::mem::take(&mut heard) {
                        self.client.version().await?;
                    }
                }
                _ = audit.tick() => {
                    self.list().await?;
                    if self.peer.ledger.awaits_tasks() {
                        audit.reset_after(recheck);
                    }
                }
            }
        }
    }

    /// Awaits `call` while the request for the subscription goes out before it.
    async fn beside_subscription<T>(
        &mut self,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        tokio::select! {
            biased;
            Err(error) = self.subscription.open() => Err(error),
            answer = call => answer,
        }
    }

    /// Lists every namespace and states what is there; what was there before and is no more, is withdrawn.
    async fn list(&mut self) -> Result<(), End> {
        let client = self.client.clone();
        let mut namespaces: Vec<Str> = vec![];
        for name in self.beside_subscription(client.namespaces()).await?.into_iter().take(MAX_NAMESPACES) {
            namespaces.push(name.into());
        }
        let mut facts = vec![];
        let mut unread = None;
        // Those that are still under way were asked for before; this list asks again.
        self.late_tasks.clear();
        for namespace in &namespaces {
            let at = BootTime::now();
            let listing =
                read_namespace(&client, self.peer.domain, namespace, &self.peer.env_allow, &mut self.peer.images);
            let listing = tokio::select! {
                biased;
                Err(error) = self.subscription.open() => Err(error),
                listing = listing => listing,
            }?;
            if let Some(tasks) = listing.late_tasks {
                let (namespace, asked) = (Arc::clone(namespace), self.peer.ledger.events());
                self.late_tasks.push(async move { (namespace, asked, at, tasks.await) }.boxed());
            }
            let left_out = listing.containers.iter().map(|(_, description)| description.left_out).sum();
            self.peer.stats.left_out.fetch_add(left_out, Relaxed);
            match listing.cut_short {
                None => {
                    let wishes = self.peer.ledger.listed(namespace, at, listing.containers, listing.tasks);
                    self.state_list(namespace, at, wishes, &mut facts);
                }
                // What could be read is worth having; what is missing from it may well be there.
                Some(reason) => {
                    for (id, description) in listing.containers {
                        let name = Name { namespace: Arc::clone(namespace), id };
                        let wish = self.peer.ledger.found(name, at, description);
                        self.grant(wish, &mut facts);
                    }
                    unread = Some(format!("namespace {namespace:?}: {reason}"));
                }
            }
        }
        for gone in self.peer.ledger.namespaces() {
            if !namespaces.contains(&gone) {
                let at = BootTime::now();
                let wishes = self.peer.ledger.listed(&gone, at, vec![], None);
                self.state_list(&gone, at, wishes, &mut facts);
            }
        }
        self.peer.stats.lists.fetch_add(1, Relaxed);
        let exists = |name: &str| namespaces.iter().any(|namespace| **namespace == *name);
        self.peer.stored.retain_namespaces(Source::Containerd, &self.peer.shown, exists);
        self.images_changed.extend(namespaces.iter().cloned());

        // What happened meanwhile goes into the same step, so that nobody sees what is over already.
        self.apply_ready(&mut facts);
        if self.peer.roster.set_live(&self.peer.path, true) {
            facts.push(live(true));
        }
        self.is_live = true;
        self.peer.facts.state(facts).await?;
        let version = format!("containerd {}", self.version);
        match unread {
            None => self.peer.line.live(&version),
            Some(reason) => self
                .peer
                .line
                .degraded(&format!("{version}; containers that were there before may be missing: {reason}")),
        }
        Ok(())
    }

    fn state_list(&mut self, namespace: &Str, at: BootTime, wishes: Vec<Wish>, facts: &mut Vec<Fact>) {
        let scope = scope::containerd(namespace);
        let keys = wishes.iter().filter_map(|wish| match wish {
            Wish::State { name, .. } => Some(self.key(name)),
            _ => None,
        });
        let whole = self.whole_list(scope, at, keys.collect());
        for wish in wishes {
            self.grant(wish, facts);
        }
        facts.extend(whole);
    }

    /// The facts by which a list of all that there is in a scope takes back what is no more.
    fn whole_list(&self, scope: Str, at: BootTime, keys: Vec<ContainerKey>) -> Vec<Fact> {
        let taken_back = self.peer.roster.listed(&self.peer.path, self.peer.domain, scope, keys);
        taken_back.into_iter().map(|what| Fact { source: Source::Containerd, at, what }).collect()
    }

    fn key(&self, name: &Name) -> ContainerKey {
        let scope = scope::containerd(&name.namespace);
        ContainerKey { domain: self.peer.domain, scope, id: name.id.clone() }
    }

    /// Applies an event and those that are ready behind it, then states what they changed.
    async fn events(&mut self, first: Envelope) -> Result<(), End> {
        let mut facts = vec![];
        self.event(first, &mut facts);
        self.apply_ready(&mut facts);
        self.state(facts).await
    }

    /// Applies events that are there already. An error is left for the next who asks.
    fn apply_ready(&mut self, facts: &mut Vec<Fact>) {
        for _ in 0..MAX_BATCH {
            match &mut self.subscription {
                Subscription::Open(stream) => match next_event(stream).now_or_never() {
                    Some(Ok(envelope)) => self.event(envelope, facts),
                    _ => return,
                },
                Subscription::Asked(_) => return,
            }
        }
    }

    fn event(&mut self, envelope: Envelope, facts: &mut Vec<Fact>) {
        self.peer.stats.events.fetch_add(1, Relaxed);
        let event = match events::decode(envelope) {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                self.peer.stats.events_garbled.fetch_add(1, Relaxed);
                if self.peer.complaints.due("event") {
                    warn!(socket = %self.peer.path.display(), %error, "an event that cannot be read");
                }
                return;
            }
        };
        if event.what == events::Happened::ExecExited {
            self.peer.stats.exec_exits.fetch_add(1, Relaxed);
        }
        let identity = event.pid().and_then(|pid| identity_in(self.peer.domain, pid, event.at));
        for wish in self.peer.ledger.apply(event, identity) {
            self.grant(wish, facts);
        }
    }

    fn grant(&mut self, wish: Wish, facts: &mut Vec<Fact>) {
        let fact = |at, what| Fact { source: Source::Containerd, at, what };
        match wish {
            Wish::State { name, at, statement } => {
                let key = self.key(&name);
                self.peer.roster.add(&self.peer.path, key.clone());
                facts.push(fact(at, What::Stated { key, statement }));
            }
            Wish::Withdraw { name, at } => {
                let key = self.key(&name);
                if self.peer.roster.remove(&self.peer.path, &key) {
                    facts.push(fact(at, What::Withdrawn { key }));
                }
            }
            Wish::Describe(name) => {
                if !self.to_describe.iter().any(|(waiting, _)| *waiting == name) {
                    self.to_describe.push_back((name, BootTime::now()));
                }
            }
            Wish::ForgetImage { namespace, name } => {
                self.peer.images.forget(&namespace, &name);
                self.images_changed.insert(namespace);
            }
            Wish::ForgetNamespace(namespace) => {
                let scope = scope::containerd(&namespace);
                facts.extend(self.whole_list(scope, BootTime::now(), vec![]));
            }
        }
    }

    fn begin_descriptions(&mut self) {
        while self.describing.len() < CONCURRENT_DESCRIPTIONS
            && let Some((name, at)) = self.to_describe.pop_front()
        {
            let (client, env_allow) = (self.client.clone(), self.peer.env_allow.clone());
            self.describing.push(
                async move {
                    let record = client.container(&name.namespace, &name.id).await;
                    let described = record.map(|record| {
                        let description = describe(&name.namespace, &name.id, record, &env_allow);
                        let image = image_name(&description.statement);
                        (description, image)
                    });
                    (name, at, described)
                }
                .boxed(),
            );
        }
    }

    async fn late_tasks(
        &mut self,
        namespace: &Str,
        asked: u64,
        at: BootTime,
        tasks: Result<Vec<Process>, CallError>,
    ) -> Result<(), End> {
        let domain = self.peer.domain;
        let tasks = match tasks {
            Ok(tasks) => tasks.into_iter().filter_map(|task| listed_task(task, domain, at)).collect(),
            Err(error @ (CallError::Deadline { .. } | CallError::Answer { .. })) => {
                if self.peer.complaints.due("tasks") {
                    warn!(socket = %self.peer.path.display(), %namespace, %error, "no list of tasks");
                }
                // A shim that hangs explains that; a daemon that hangs would, too.
                self.client.version().await?;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let mut facts = vec![];
        for wish in self.peer.ledger.tasks_listed(namespace, at, asked, &tasks) {
            self.grant(wish, &mut facts);
        }
        self.state(facts).await
    }

    async fn described(&mut self, name: Name, at: BootTime, answer: Result<Described, CallError>) -> Result<(), End> {
        let description = match answer {
            Ok((description, image)) => {
                self.peer.stats.left_out.fetch_add(description.left_out, Relaxed);
                match image {
                    Some(image) => {
                        let image = resolve(&self.client, &name.namespace, image, &mut self.peer.images).await?;
                        with_image(description, image)
                    }
                    None => description,
                }
            }
            // It was removed meanwhile: an event says so, or has said so.
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error @ CallError::Answer { .. }) => {
                if self.peer.complaints.due("record") {
                    warn!(socket = %self.peer.path.display(), container = %name.id, %error, "a record that cannot be read");
                }
                let mut statement = Statement::default();
                statement.missing.push(("labels", error.to_string().into()));
                Description { statement, left_out: 0 }
            }
            Err(error) => return Err(error.into()),
        };
        debug!(container = %name.id, namespace = %name.namespace, "described");
        let mut facts = vec![];
        if let Some(wish) = self.peer.ledger.described(name, at, description) {
            self.grant(wish, &mut facts);
        }
        self.state(facts).await
    }

    fn begin_images(&mut self) {
        let Some(namespace) = self.images_changed.pop_first() else { return };
        let (client, catalog) = (self.client.clone(), self.peer.catalog.clone());
        let list = async move {
            let listed = catalog.list(&client, &namespace).await;
            (namespace, listed)
        };
        self.listing_images = Some(list.boxed());
    }

    fn listed_images(&mut self, (namespace, listed): ListedImages) -> Result<(), End> {
        match listed {
            Ok((images, is_cut_short)) => {
                if is_cut_short && self.peer.complaints.due("images") {
                    warn!(socket = %self.peer.path.display(), %namespace, "more images than are listed");
                }
                self.peer.stored.replace(Source::Containerd, &self.peer.shown, Some(&namespace), images);
            }
            // What was listed before stays.
            Err(error @ CallError::Answer { .. }) => {
                if self.peer.complaints.due("images") {
                    warn!(socket = %self.peer.path.display(), %namespace, %error, "no list of images");
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn state(&mut self, facts: Vec<Fact>) -> Result<(), End> {
        if facts.is_empty() {
            return Ok(());
        }
        Ok(self.peer.facts.state(facts).await?)
    }
}

/// A namespace's containers.
struct Listing {
    containers: Vec<(ContainerId, Description)>,
    /// Absent when they could not be listed in time.
    tasks: Option<HashMap<ContainerId, ListedTask>>,
    /// Then this is what is left to wait for.
    late_tasks: Option<BoxFuture<'static, Result<Vec<Process>, CallError>>>,
    /// Why there may be more.
    cut_short: Option<CallError>,
}

/// Reads a whole namespace. An answer that cannot be read is no error here: only a connection that is of no more use is.
async fn read_namespace(
    client: &Client,
    domain: Domain,
    namespace: &Str,
    env_allow: &EnvAllow,
    images: &mut images::Images,
) -> Result<Listing, CallError> {
    // One call for all names; without it, each image is asked for by itself.
    match client.image_targets(namespace).await {
        Ok(targets) => {
            for (name, target) in targets {
                if let Some(target) = images::digest(&target) {
                    images.set_target(Arc::clone(namespace), name.into(), target);
                }
            }
        }
        Err(CallError::Answer { .. }) => {}
        Err(error) => return Err(error),
    }
    let mut containers = vec![];
    let read = client.each_container(namespace, |record| {
        if let Ok(id) = ContainerId::new(&record.id) {
            let description = describe(namespace, &id, record, env_allow);
            containers.push((id, description));
        }
    });
    let cut_short = match read.await {
        Ok(()) => None,
        Err(error @ CallError::Answer { .. }) => Some(error),
        Err(error) => return Err(error),
    };
    for (_, description) in &mut containers {
        if let Some(name) = image_name(&description.statement) {
            let image = resolve(client, namespace, name, images).await?;
            *description = with_image(std::mem::take(description), image);
        }
    }
    let at = BootTime::now();
    let mut listing_tasks = tasks(client.clone(), Arc::clone(namespace)).boxed();
    let (tasks, late_tasks) = match tokio::time::timeout(TASKS_GRACE, &mut listing_tasks).await {
        Ok(Ok(tasks)) => (Some(tasks.into_iter().filter_map(|task| listed_task(task, domain, at)).collect()), None),
        Ok(Err(CallError::Answer { .. })) => (None, None),
        Ok(Err(error)) => return Err(error),
        Err(_) => (None, Some(listing_tasks)),
    };
    Ok(Listing { containers, tasks, late_tasks, cut_short })
}

async fn tasks(client: Client, namespace: Str) -> Result<Vec<Process>, CallError> {
    client.tasks(&namespace).await
}

fn listed_task(task: Process, domain: Domain, at: BootTime) -> Option<(ContainerId, ListedTask)> {
    let id = if task.id.is_empty() { &task.container_id } else { &task.id };
    let id = ContainerId::new(id).ok()?;
    let status = TaskStatus::try_from(task.status).unwrap_or(TaskStatus::Unknown);
    let state = match status {
        TaskStatus::Created => Some(State::Created),
        TaskStatus::Running => Some(State::Running),
        TaskStatus::Paused | TaskStatus::Pausing => Some(State::Paused),
        TaskStatus::Stopped => Some(State::Exited),
        TaskStatus::Unknown => None,
    };
    let exit = (state == Some(State::Exited))
        .then(|| (task.exit_status, task.exited_at.as_ref().and_then(boot_time).map(|exited| exited.min(at))));
    let identity = if exit.is_none() { identity_in(domain, task.pid, at) } else { None };
    Some((id, ListedTask { pid: task.pid, identity, state, exit }))
}

/// Waits for the list of images that is being read, for ever where there is none.
async fn listed_images(listing: &mut Option<BoxFuture<'static, ListedImages>>) -> ListedImages {
    let Some(list) = listing else { return std::future::pending().await };
    let listed = list.await;
    *listing = None;
    listed
}

fn image_name(statement: &Statement) -> Option<Str> {
    statement.image.as_ref()?.name.clone()
}

fn live(live: bool) -> Fact {
    Fact { source: Source::Containerd, at: BootTime::now(), what: What::Live(live) }
}
