//! What can be asked of a running tracker.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{StartError, Stats};
use crate::collection::door::{Ask, Delivery, Ended, Facts, HeldStep};
use crate::collection::enrichment::Enrich;
use crate::collection::feed::{Feed, FeedOptions};
use crate::collection::hook::{Callback, Hook, HookStats};
use crate::collection::story::{Story, Who};
use crate::collection::view::{Published, Reader};
use crate::collection::writer::Figures;
use crate::container::{Container, Str};
use crate::fact::{Fact, Source, What};
use crate::plane;
use crate::plane::selection::{Selection, SelectionError, SelectionMaps};
use crate::route::{RouteError, Routes};
use crate::selector::Selector;
use crate::source::health::{Health, HealthBoard};
use crate::source::images::{Images, StoredImage};
use crate::source::manual::{self, RegisterError, Registration};
use crate::time::BootTime;

/// How long it may take to look at what is registered.
const LONGEST_LOOK: Duration = Duration::from_secs(2);

/// What can be asked of a running tracker. Cheap to clone, and useless once the tracker has ended.
#[derive(Clone)]
pub struct Handle {
    pub(super) node: Str,
    pub(super) facts: Facts,
    pub(super) published: Arc<Published>,
    pub(super) health: HealthBoard,
    pub(super) images: Images,
    pub(super) stats: Stats,
    pub(super) plane: Arc<plane::Config>,
    /// The routes, or why there are none; absent in a collection alone.
    pub(super) routes: Option<Arc<Result<Routes, RouteError>>>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Handle {
    /// Look-ups for one thread.
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.published))
    }

    /// Name of this node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// How each source is doing.
    pub fn health(&self) -> Vec<Health> {
        self.health.lines()
    }

    /// The images that runtimes have stored.
    pub fn images(&self) -> Vec<StoredImage> {
        self.images.all()
    }

    /// What is counted.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Where facts go: for sources of one's own, and tests.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Follows the collection: one bundle, then changes.
    pub async fn subscribe(&self, options: FeedOptions) -> Result<Feed, Ended> {
        self.ask(|reply| Ask::Subscribe(options, reply)).await
    }

    /// [`Handle::subscribe`] for threads. Panics inside an async task.
    pub fn subscribe_blocking(&self, options: FeedOptions) -> Result<Feed, Ended> {
        self.ask_blocking(|reply| Ask::Subscribe(options, reply))
    }

    /// A container's story; `None` where nobody is meant by `who`.
    pub async fn explain(&self, who: Who) -> Result<Option<Story>, Ended> {
        self.ask(|reply| Ask::Explain(who, reply)).await
    }

    /// [`Handle::explain`] for threads. Panics inside an async task.
    pub fn explain_blocking(&self, who: Who) -> Result<Option<Story>, Ended> {
        self.ask_blocking(|reply| Ask::Explain(who, reply))
    }

    /// Figures that only the writer has.
    pub async fn figures(&self) -> Result<Figures, Ended> {
        self.ask(Ask::Figures).await
    }

    /// Where packets go. `None` for a collection alone; an error where routes may not be asked for.
    pub fn routes(&self) -> Option<Result<&Routes, &RouteError>> {
        self.routes.as_ref().map(|routes| routes.as_ref().as_ref())
    }

    /// What tracers fill their events from. Cheap; give each thread its own.
    pub fn enrich(&self) -> Enrich {
        Enrich::new(self.node.clone(), self.reader())
    }

    /// Makes known as a container what no source can see, after asking the kernel whether it exists. Registering the
    /// same id again replaces the registration. What the kernel does not tell within two seconds is refused.
    pub async fn register(&self, registration: &Registration) -> Result<(), RegisterError> {
        let (about, mut known) = (registration.clone(), self.reader());
        // On a thread that may be lost: what it is asked to look at may lie on a file system that does not answer. Only
        // root may ask.
        let look = tokio::task::spawn_blocking(move || manual::check(&about, &mut known));
        let unseen = |source| RegisterError::Look { what: format!("what `{}` stands for", registration.id), source };
        let fact = match tokio::time::timeout(LONGEST_LOOK, look).await {
            Ok(Ok(checked)) => checked?,
            Ok(Err(panicked)) => return Err(unseen(io::Error::other(panicked))),
            Err(_) => return Err(unseen(io::ErrorKind::TimedOut.into())),
        };
        Ok(self.facts.state(vec![fact]).await?)
    }

    /// Takes a registration back. One that does not exist is no error.
    pub async fn unregister(&self, id: &str) -> Result<(), RegisterError> {
        let what = What::Withdrawn { key: manual::key(id)? };
        Ok(self.facts.state(vec![Fact { source: Source::Manual, at: BootTime::now(), what }]).await?)
    }

    /// Calls `callback` for each container that `selector` picks and whose `create` is held, before that goes on: its
    /// bundle is known, it has no process yet. See [`Handle::on_start`].
    pub fn on_create(
        &self,
        name: &str,
        selector: Selector,
        budget: Duration,
        callback: impl FnMut(&Arc<Container>) + Send + 'static,
    ) -> Result<Arc<HookStats>, StartError> {
        self.hook(name, HeldStep::Create, selector, budget, Box::new(callback))
    }

    /// Calls `callback` once for each container that `selector` picks: before its first instruction where its start
    /// is held, else as soon as it is seen running.
    ///
    /// The callback runs on a thread of its own, in parallel with those of others. A held start waits for it until
    /// `budget`, clipped to the barrier's own, is over; until a late callback returns, further containers are skipped
    /// for it and counted. A panic is contained, counted and logged with `name`. The thread ends with the tracker.
    pub fn on_start(
        &self,
        name: &str,
        selector: Selector,
        budget: Duration,
        callback: impl FnMut(&Arc<Container>) + Send + 'static,
    ) -> Result<Arc<HookStats>, StartError> {
        self.hook(name, HeldStep::Start, selector, budget, Box::new(callback))
    }

    fn hook(
        &self,
        name: &str,
        step: HeldStep,
        selector: Selector,
        budget: Duration,
        callback: Callback,
    ) -> Result<Arc<HookStats>, StartError> {
        let (hook, thread, stats) = Hook::new(name, step, selector, budget, callback);
        let builder = std::thread::Builder::new().name(format!("hook-{name}"));
        builder.spawn(|| thread.run()).map_err(|error| StartError::Thread { name: "hook", error })?;
        // After the end there is nothing to be called for.
        let _ = self.facts.sender().blocking_send(Delivery::Ask(Ask::Hook(hook)));
        Ok(stats)
    }

    /// A live set of the containers that `selector` picks, as BPF maps with room for as many as the plane has. They hold what
    /// is there when this returns, and follow: see [`crate::plane::selection`]. Needs CAP_BPF.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let tracker = tracker::Tracker::start(tracker::Config::default())?;
    /// let web = tracker.selection_blocking("web", "image=*nginx*".parse()?)?;
    /// // For a loader that takes maps from pins; `selection_in` needs none.
    /// web.pin("/sys/fs/bpf/my-tracer".as_ref())?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn selection(&self, name: &str, selector: Selector) -> Result<Selection, SelectionError> {
        self.selection_in(name, selector, self.selection_maps()?).await
    }

    /// [`Handle::selection`] for threads. Panics inside an async task.
    pub fn selection_blocking(&self, name: &str, selector: Selector) -> Result<Selection, SelectionError> {
        self.selection_in_blocking(name, selector, self.selection_maps()?)
    }

    /// [`Handle::selection`] in maps that a program has already: nothing needs to be pinned then.
    pub async fn selection_in(
        &self,
        name: &str,
        selector: Selector,
        maps: SelectionMaps,
    ) -> Result<Selection, SelectionError> {
        let (selection, upkept) = Selection::new(name, selector, maps)?;
        self.ask(|reply| Ask::Select(upkept, reply)).await?;
        Ok(selection)
    }

    /// [`Handle::selection_in`] for threads. Panics inside an async task.
    pub fn selection_in_blocking(
        &self,
        name: &str,
        selector: Selector,
        maps: SelectionMaps,
    ) -> Result<Selection, SelectionError> {
        let (selection, upkept) = Selection::new(name, selector, maps)?;
        self.ask_blocking(|reply| Ask::Select(upkept, reply))?;
        Ok(selection)
    }

    fn selection_maps(&self) -> Result<SelectionMaps, SelectionError> {
        SelectionMaps::create(self.plane.rows() as u32)
    }

    /// How the plane is set up.
    pub(crate) fn plane(&self) -> &plane::Config {
        &self.plane
    }

    pub(super) fn state_live(&self, source: Source, live: bool) {
        // After the end of the collection there is nobody to tell.
        let _ = self.facts.state_blocking(vec![Fact { source, at: BootTime::now(), what: What::Live(live) }]);
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Ended> {
        let (reply, answer) = oneshot::channel();
        self.facts.sender().send(Delivery::Ask(ask(reply))).await.map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }

    fn ask_blocking<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Ended> {
        let (reply, answer) = oneshot::channel();
        self.facts.sender().blocking_send(Delivery::Ask(ask(reply))).map_err(|_| Ended)?;
        answer.blocking_recv().map_err(|_| Ended)
    }
}

#[cfg(test)]
use {
    super::start_writer, crate::collection::view::Host, crate::collection::writer::Writer, crate::filter::Filter,
    tokio::sync::mpsc,
};

#[cfg(test)]
impl Handle {
    /// A collection alone: tests state the facts. Its writer ends with the last handle.
    pub(crate) fn without_sources(host: Host) -> Handle {
        Self::with_filter(host, Filter::default())
    }

    /// The same, with a filter.
    pub(crate) fn with_filter(host: Host, filter: Filter) -> Handle {
        let stats = Stats::default();
        let (facts, deliveries) = Facts::queue();
        let (closer, _) = mpsc::channel(1);
        let queue = facts.sender().downgrade();
        let collection = Arc::clone(&stats.collection);
        let writer = Writer::new(Default::default(), filter, host, deliveries, queue, closer, collection);
        let published = writer.published();
        start_writer(writer).expect("a thread can be started");
        let (health, images) = (HealthBoard::new(), Images::default());
        Handle { node: "node-1".into(), facts, published, health, images, stats, plane: Arc::default(), routes: None }
    }

    /// Where tests report sources' conditions.
    pub(crate) fn health_board(&self) -> &HealthBoard {
        &self.health
    }
}
