//! The one thread that changes the state: takes what is queued, applies all of it, publishes once, then tells.
//!
//! ```text
//! queue ─▶ apply … apply ─▶ settle ─▶ view, plane and selections published ─▶ hooks get their turns, holds are released
//!       ─▶ feeds
//! ```
//!
//! It never waits for anybody it tells: feeds and hooks have bounded queues of their own.

use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::config::Config;
use super::door::{Ask, CloserLook, Deliveries, Delivery, HeldStep, Hold};
use super::feed::{Feeds, Offer};
use super::hook::Hook;
use super::state::{Counts, RowChange, State};
use super::story;
use super::view::{Host, Published, Reader, Row, View};
use crate::container::{Container, State as LifeState, Str};
use crate::fact::{Fact, Source, What};
use crate::filter::Filter;
use crate::histogram::Histogram;
use crate::plane::Plane;
use crate::plane::selection::{self, Selections};
use crate::time::BootTime;

/// Facts applied before publishing: bounds how long a reader waits for the first of many.
const BATCH_LEN: usize = 4_096;

/// What the collection counts while it runs; read by metrics without asking the writer.
#[derive(Debug, Default)]
pub struct Stats {
    /// Facts applied, by source.
    pub facts: [AtomicU64; Source::ALL.len()],
    /// Publications.
    pub publications: AtomicU64,
    /// Changes published.
    pub changes: AtomicU64,
    /// Changes that a feed was too slow for.
    pub feed_lags: AtomicU64,
    /// Requests for a closer look that found the queue full.
    pub closer_looks_dropped: AtomicU64,
    /// How long it took from the end of a container's init to the publication that tells it.
    pub end_times: Histogram,
}

/// Figures that only the writer has.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Ends and births that only a scan brought to light.
    pub corrections: u64,
    /// Births without a vouching source that were not taken in: their share was used up.
    pub unvouched_refused: u64,
    /// Claims on an init process outside of the claim's domain.
    pub foreign_claims: u64,
    /// Tombstones dropped early, for want of room.
    pub tombstones_evicted: u64,
    /// Containers that lived without this witness having seen them.
    pub missed_by: Vec<(Source, u64)>,
    /// Items that wait in each feed.
    pub feed_backlogs: Vec<(Str, usize)>,
    /// Facts that wait for the writer.
    pub queue_backlog: usize,
    /// How each selection is doing, by its name.
    pub selections: Vec<(Str, selection::Figures)>,
}

/// Everything that the writer thread owns.
pub(crate) struct Writer {
    state: State,
    view: View,
    published: Arc<Published>,
    deliveries: Deliveries,
    own_queue: mpsc::WeakSender<Delivery>,
    feeds: Feeds,
    hooks: Vec<Hook>,
    selections: Selections,
    closer: mpsc::Sender<CloserLook>,
    /// Absent where other programs are not to look up.
    plane: Option<Plane>,
    /// A scan was applied and not published yet.
    scanned: bool,
    stats: Arc<Stats>,
}

impl Writer {
    /// What `filter` excludes is not published. `closer` takes requests to find out what an init process is that nobody
    /// vouches for, or not everybody who could.
    pub(crate) fn new(
        config: Config,
        filter: Filter,
        host: Host,
        deliveries: Deliveries,
        own_queue: mpsc::WeakSender<Delivery>,
        closer: mpsc::Sender<CloserLook>,
        stats: Arc<Stats>,
    ) -> Self {
        let view = View::new(host);
        let published = Published::new(view.clone());
        Writer {
            state: State::new(config, filter, host),
            view,
            published,
            deliveries,
            own_queue,
            feeds: Feeds::default(),
            hooks: Vec::new(),
            selections: Selections::default(),
            closer,
            plane: None,
            scanned: false,
            stats,
        }
    }

    /// The same, written to a plane as well.
    pub(crate) fn with_plane(self, plane: Option<Plane>) -> Self {
        Writer { plane, ..self }
    }

    pub(crate) fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published)
    }

    /// Runs until it is told to end or nobody is left to deliver. `async` only to wait with a deadline.
    pub(crate) async fn run(mut self) {
        loop {
            let expiry = self.state.next_expiry().map(|at| at.since(BootTime::now()).max(Duration::from_millis(100)));
            let beat = self.plane.as_ref().map(|plane| plane.next_beat().since(BootTime::now()));
            let delivery = match expiry.into_iter().chain(beat).min() {
                Some(time) => timeout(time, self.deliveries.next()).await,
                None => Ok(self.deliveries.next().await),
            };
            match delivery {
                Ok(Some(delivery)) => {
                    if self.batch(delivery).is_break() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(_) => {
                    self.state.expire(BootTime::now());
                    self.publish(Vec::new());
                }
            }
            self.beat();
        }
    }

    /// Shows those who look up in the plane that somebody writes it.
    fn beat(&mut self) {
        let Some(plane) = self.plane.as_mut().filter(|plane| plane.next_beat() <= BootTime::now()) else { return };
        if plane.beat() {
            plane.fill(self.state.rows());
        }
    }

    /// Applies what is queued, up to a bound, and publishes it in one step; in two where somebody asks in between, who
    /// is to find what was stated before and nothing that was stated after.
    fn batch(&mut self, first: Delivery) -> ControlFlow<()> {
        let mut holds = Vec::new();
        let more = std::iter::from_fn(|| self.deliveries.next_if_ready()).take(BATCH_LEN);
        // Collected first: what arrives while these are applied belongs to the next step.
        let deliveries: Vec<Delivery> = std::iter::once(first).chain(more).collect();
        for delivery in deliveries {
            match delivery {
                Delivery::Facts(facts) => self.apply(facts),
                Delivery::Hold(mut hold) => {
                    self.apply(mem::take(&mut hold.facts));
                    let run = self.state.held(&hold.key, BootTime::now(), hold.step);
                    holds.push((hold, run));
                }
                Delivery::Ask(ask) => {
                    self.publish(mem::take(&mut holds));
                    self.answer(ask)?;
                }
            }
        }
        self.state.expire(BootTime::now());
        self.publish(holds);
        ControlFlow::Continue(())
    }

    fn apply(&mut self, facts: Vec<Fact>) {
        for fact in facts {
            self.stats.facts[fact.source as usize].fetch_add(1, Ordering::Relaxed);
            self.scanned |= matches!(fact.what, What::Scanned { .. });
            self.state.apply(fact);
        }
    }

    fn publish(&mut self, holds: Vec<(Hold, Option<u64>)>) {
        let changes = self.state.settle();
        if !changes.is_empty() {
            // Those that leave make room before others enter: a number may pass from one to the other in one step.
            for change in changes.iter().filter(|change| change.after.is_none()) {
                self.view.change(change.before.as_ref(), None);
            }
            for change in changes.iter().filter(|change| change.after.is_some()) {
                self.view.change(change.before.as_ref(), change.after.as_ref());
            }
            self.view.sequence = self.state.sequence();
            self.published.publish(self.view.clone());
            self.plane.iter_mut().for_each(|plane| plane.publish(&changes, self.state.sequence()));
            self.stats.publications.fetch_add(1, Ordering::Relaxed);
            self.stats.changes.fetch_add(changes.len() as u64, Ordering::Relaxed);
            self.count_ends(&changes);
        }
        self.selections.publish(&self.view, &changes);
        if self.scanned {
            self.plane.iter_mut().for_each(Plane::scanned);
        }
        self.give_turns(holds);
        self.tell_unheld_starts(&changes);
        self.look_closer(&changes);
        let offers: Vec<Offer<'_>> = changes.iter().filter_map(offer).collect();
        let lagged = self.feeds.offer(&offers, &self.state);
        self.stats.feed_lags.fetch_add(lagged, Ordering::Relaxed);
    }

    /// Ends of containers that were known alive: how long ago they were, now that they are published.
    fn count_ends(&self, changes: &[RowChange]) {
        let ended = changes.iter().filter_map(|change| {
            let (before, after) = (change.before.as_ref()?, change.after.as_ref()?);
            after.container.exited_at.filter(|_| before.container.exited_at.is_none())
        });
        for exited_at in ended {
            self.stats.end_times.add(BootTime::now().since(exited_at));
        }
    }

    fn give_turns(&mut self, holds: Vec<(Hold, Option<u64>)>) {
        for (hold, run) in holds {
            if let Some(container) = run.and_then(|run| self.state.container(run)) {
                let step = hold.step;
                self.call_hooks(&container, step, Some(&hold));
                if step == HeldStep::Start {
                    self.state.mark_start_announced(container.instance);
                }
            }
            hold.latch.published();
        }
    }

    /// A start that nothing held is told to the same subscribers, only not in time.
    fn tell_unheld_starts(&mut self, changes: &[RowChange]) {
        if self.hooks.is_empty() {
            return;
        }
        for change in changes {
            let Some(after) = change.after.as_ref().and_then(Row::published) else { continue };
            let runs = after.kind.is_vouched_for() && after.state == LifeState::Running;
            if runs && self.state.mark_start_announced(after.instance) {
                let container = Arc::clone(after);
                self.call_hooks(&container, HeldStep::Start, None);
            }
        }
    }

    fn call_hooks(&mut self, container: &Arc<Container>, step: HeldStep, hold: Option<&Hold>) {
        self.hooks.retain_mut(|hook| {
            let wanted = hook.step == step && hook.selector.matches(container);
            !wanted || hook.call(container, hold.map(|hold| (&hold.latch, hold.deadline)))
        });
    }

    /// Asks about those that are new, and about those of which a source is awaited that has to be shown them; at each scan
    /// about all: a look may have been dropped, or have failed for want of descriptors, and its files may be there now.
    fn look_closer(&mut self, changes: &[RowChange]) {
        let looks: Vec<CloserLook> = if mem::take(&mut self.scanned) {
            self.state.all_closer_looks().collect()
        } else {
            let new = changes.iter().filter(|change| is_new(change)).filter_map(|change| change.after.as_ref());
            new.filter_map(|row| self.state.closer_look(row.container.instance)).collect()
        };
        for look in looks {
            if self.closer.try_send(look).is_err() {
                self.stats.closer_looks_dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn answer(&mut self, ask: Ask) -> ControlFlow<()> {
        // Who asked may have given up meanwhile: an answer that nobody takes is no error.
        match ask {
            Ask::Subscribe(options, reply) => {
                if let Some(queue) = self.own_queue.upgrade() {
                    let _ = reply.send(self.feeds.open(options, &self.state, &mut self.view.all(), queue));
                }
            }
            Ask::Resync(id) => self.feeds.resync(id, &self.state, &mut self.view.all()),
            Ask::Hook(hook) => self.hooks.push(hook),
            Ask::Select(upkept, reply) => {
                self.selections.add(upkept, &self.view);
                let _ = reply.send(());
            }
            Ask::Explain(who, reply) => {
                let instance = story::find(&mut Reader::new(self.published()), &who);
                let _ = reply.send(instance.and_then(|instance| story::tell(&self.state, instance)));
            }
            Ask::ShownInit(key, reply) => {
                let _ = reply.try_send(self.state.shown_init(&key));
            }
            Ask::Figures(reply) => {
                let _ = reply.send(self.figures());
            }
            Ask::LeavePlane(reply) => {
                self.plane = None;
                let _ = reply.try_send(());
            }
            Ask::End => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn figures(&self) -> Figures {
        let Counts { corrections, unvouched_refused, foreign_claims, tombstones_evicted, missed_by } =
            self.state.counts;
        Figures {
            corrections,
            unvouched_refused,
            foreign_claims,
            tombstones_evicted,
            missed_by: Source::ALL.into_iter().zip(missed_by).collect(),
            feed_backlogs: self.feeds.backlogs(),
            queue_backlog: self.deliveries.backlog(),
            selections: self.selections.figures(),
        }
    }
}

/// Whether a change may make a closer look worth while.
fn is_new(change: &RowChange) -> bool {
    let shown = |row: &Row| (row.container.task, row.container.awaiting);
    // What its first process shows of itself is not its maker's any more.
    let has_begun = |row: &Row| row.container.started_at.is_some();
    match (&change.before, &change.after) {
        (None, _) => true,
        (Some(before), Some(after)) => {
            shown(before) != shown(after) && !after.container.awaiting.is_empty()
                || !has_begun(before) && has_begun(after)
        }
        (Some(_), None) => false,
    }
}

fn offer(change: &RowChange) -> Option<Offer<'_>> {
    // What begins to be excluded is removed for those who follow, what ceases to be is added.
    let before = change.before.as_ref().and_then(Row::published);
    let after = change.after.as_ref().and_then(Row::published);
    Some(Offer { instance: after.or(before)?.instance, sequence: change.sequence, before, after })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collection::door::Facts;
    use crate::container::{ContainerId, ContainerKey, Domain, Exit, Namespaces, TaskId};
    use crate::fact::{Birth, End, Execution, Statement};

    fn birth() -> Birth {
        Birth {
            task: TaskId { pid: 7, start_ticks: 70 },
            parent: None,
            outer: None,
            namespaces: Namespaces { mnt: 700, ..Namespaces::default() },
            generation: Some(1),
            cgroup_id: None,
            uid: 0,
            born_at: BootTime(700_000_000),
            executed: true,
        }
    }

    fn writer() -> (Writer, mpsc::Receiver<CloserLook>) {
        let (facts, deliveries) = Facts::queue();
        let (closer, looks) = mpsc::channel(4);
        let queue = facts.sender().downgrade();
        let filter = Filter::default();
        let host = Host::default();
        (Writer::new(Config::default(), filter, host, deliveries, queue, closer, Arc::default()), looks)
    }

    #[test]
    fn how_late_an_end_is_published_is_counted_once_for_whom_was_seen_alive() {
        let birth = birth();
        let end = |exit| What::Ended(End { task: birth.task, mntns: 700, generation: Some(1), exit });
        let fact = |what| Fact { source: Source::Kernel, at: BootTime(800_000_000), what };
        let (mut writer, _looks) = writer();
        for (what, ended) in [(What::Born(birth), 0), (end(Exit::default()), 1), (end(Exit::default()), 1)] {
            writer.apply(vec![fact(what)]);
            writer.publish(Vec::new());
            assert_eq!(writer.stats.end_times.counts().iter().sum::<u64>(), ended);
        }
        assert!(writer.stats.end_times.sum() > Duration::ZERO);
    }

    #[test]
    fn what_was_born_is_looked_at_again_when_it_has_executed_something() {
        let birth = birth();
        let executed = Execution { task: Birth { executed: true, ..birth }, by_init: true };
        let (mut writer, mut looks) = writer();
        for (what, is_looked_at) in
            [(What::Born(birth), true), (What::Executed(executed), true), (What::Executed(executed), false)]
        {
            writer.apply(vec![Fact { source: Source::Kernel, at: BootTime(800_000_000), what }]);
            writer.publish(Vec::new());
            let look = looks.try_recv().ok();
            assert_eq!(look, is_looked_at.then_some(CloserLook { birth, is_claimed: false, lacks_bundle: true }));
        }
    }

    #[test]
    fn what_a_daemon_vouches_for_is_looked_at_until_its_bundle_is_known() {
        let birth = birth();
        let (mut writer, mut looks) = writer();
        let key = ContainerKey {
            domain: Domain::Host,
            scope: "containerd/moby".into(),
            id: ContainerId::new("web").unwrap(),
        };
        let mut scan = |source, bundle: Option<&str>| {
            let statement =
                Statement { task: Some(birth.task), bundle: bundle.map(Into::into), ..Statement::default() };
            let stated = What::Stated { key: key.clone(), statement: Box::new(statement) };
            let scanned = What::Scanned { inits: vec![birth], tasks: vec![birth.task] };
            let fact = |source, what| Fact { source, at: BootTime(800_000_000), what };
            writer.apply(vec![fact(source, stated), fact(Source::Kernel, scanned)]);
            writer.publish(Vec::new());
            looks.try_recv().ok()
        };
        let claimed = CloserLook { birth, is_claimed: true, lacks_bundle: true };
        assert_eq!(scan(Source::Docker, None), Some(claimed));
        assert_eq!(scan(Source::Proc, Some("/b")), None);
    }

    #[test]
    fn each_scan_asks_again_about_what_nobody_vouches_for() {
        let birth = birth();
        let (mut writer, mut looks) = writer();
        for _ in 0..2 {
            let what = What::Scanned { inits: vec![birth], tasks: vec![birth.task] };
            writer.apply(vec![Fact { source: Source::Kernel, at: BootTime(800_000_000), what }]);
            writer.publish(Vec::new());
            assert_eq!(looks.try_recv(), Ok(CloserLook { birth, is_claimed: false, lacks_bundle: true }));
            assert!(looks.try_recv().is_err(), "asked once at a time");
        }
        writer.publish(Vec::new());
        assert!(looks.try_recv().is_err(), "nothing was scanned");
    }
}
