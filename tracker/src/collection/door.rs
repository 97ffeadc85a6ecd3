//! The way in: sources hand facts to the collection's one writer through [`Facts`].
//!
//! The queue is bounded. When it is full a source waits (its own queue, the kernel's ring buffer or a runtime's
//! event stream, then fills and counts its loss): facts are never dropped here. A held start overtakes nothing: facts
//! queued before it are applied before it is answered.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::feed::{Feed, FeedOptions};
use super::hook::Hook;
use super::story::{Story, Who};
use super::writer::Figures;
use crate::container::{ContainerKey, TaskId};
use crate::fact::{Birth, Fact};
use crate::plane::selection::Upkept;

/// Facts that may wait for the writer. At one microsecond a fact this is some 16 ms of work.
const QUEUE_LEN: usize = 16_384;

/// Hands facts to the collection. Cheap to clone; every source has one.
#[derive(Clone, Debug)]
pub struct Facts {
    queue: mpsc::Sender<Delivery>,
}

/// The collection has ended: there is nobody left to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the collection has ended")]
pub struct Ended;

/// What arrives at the writer.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// Statements, applied in one step.
    Facts(Vec<Fact>),
    /// Statements about a container whose OCI runtime is being held until they are published.
    Hold(Hold),
    /// Anything that is not a fact.
    Ask(Ask),
}

/// What else the writer is asked, after the facts that were queued before are published.
#[derive(Debug)]
pub(crate) enum Ask {
    /// A new feed.
    Subscribe(FeedOptions, oneshot::Sender<Feed>),
    /// A feed that lagged has been drained and wants a new bundle.
    Resync(u64),
    /// A new synchronous subscriber.
    Hook(Hook),
    /// A selection to keep up; answered when its maps are what is published.
    Select(Upkept, oneshot::Sender<()>),
    /// A container's story.
    Explain(Who, oneshot::Sender<Option<Story>>),
    /// The init process that the kernel shows of a container.
    ShownInit(ContainerKey, SyncSender<Option<TaskId>>),
    /// The writer's own figures.
    Figures(oneshot::Sender<Figures>),
    /// Publish what there is, and write the plane no more; answered when that is so.
    LeavePlane(SyncSender<()>),
    /// Publish what there is, and end.
    End,
}

/// A held `create` or `start`: apply, publish, give the synchronous subscribers their turns, then [`Latch::published`].
#[derive(Debug)]
pub(crate) struct Hold {
    /// What is known about the container.
    pub facts: Vec<Fact>,
    /// The container.
    pub key: ContainerKey,
    /// Which of its steps is held.
    pub step: HeldStep,
    /// When the caller stops waiting; synchronous subscribers' budgets are clipped to it.
    pub deadline: Instant,
    /// What the caller waits on.
    pub latch: Arc<Latch>,
}

/// The step of a container's life that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldStep {
    /// `create`: its bundle is noted; there is no process yet.
    Create,
    /// `start`: its init exists and waits to execute the entrypoint.
    Start,
}

/// How a held step ended for the one who holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldOutcome {
    /// Published, and every on-time subscriber ran.
    Done,
    /// The deadline passed first. The facts will be published all the same.
    Late,
}

/// Holds one thread until the writer has published and every subscriber that has the container is done or late.
#[derive(Debug)]
pub(crate) struct Latch {
    // Protects who is still waited for; held for the time of a look.
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug)]
struct Waiting {
    published: bool,
    turns: Vec<Arc<TurnState>>,
}

struct TurnState {
    deadline: Instant,
    over: AtomicBool,
    on_late: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for TurnState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TurnState").field("deadline", &self.deadline).field("over", &self.over).finish()
    }
}

/// One subscriber's part of a hold: over when it is dropped, or when its deadline passed.
#[derive(Debug)]
pub(crate) struct Turn {
    state: Arc<TurnState>,
    latch: Arc<Latch>,
}

impl Turn {
    /// Whether nobody waits for it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.state.over.load(Ordering::Acquire)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.state.over.swap(true, Ordering::AcqRel) {
            self.latch.changed();
        }
    }
}

impl Latch {
    /// Waits for the writer's [`Latch::published`] and for every [`Latch::turn`] handed out before it.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::new(Waiting { published: false, turns: Vec::new() }), changed: Condvar::new() })
    }

    /// One more to wait for, until `deadline` at the latest; `on_late` is called once if that passes first.
    pub(crate) fn turn(self: &Arc<Self>, deadline: Instant, on_late: impl Fn() + Send + Sync + 'static) -> Turn {
        let state = Arc::new(TurnState { deadline, over: AtomicBool::new(false), on_late: Box::new(on_late) });
        self.lock().turns.push(Arc::clone(&state));
        Turn { state, latch: Arc::clone(self) }
    }

    /// The facts are published, and every subscriber has its turn.
    pub(crate) fn published(&self) {
        self.lock().published = true;
        self.changed.notify_all();
    }

    /// Waits until it is published and all turns are over, or until `deadline`.
    ///
    /// [`HeldOutcome::Done`] when it was published and every subscriber had its budget; a subscriber that was late is
    /// not waited for and does not make the hold late.
    pub(crate) fn wait(&self, deadline: Instant) -> HeldOutcome {
        let mut waiting = self.lock();
        loop {
            let now = Instant::now();
            waiting.turns.retain(|turn| {
                let late = turn.deadline <= now && !turn.over.swap(true, Ordering::AcqRel);
                if late {
                    (turn.on_late)();
                }
                !late && !turn.over.load(Ordering::Acquire)
            });
            if waiting.published && waiting.turns.is_empty() {
                return HeldOutcome::Done;
            }
            if now >= deadline {
                return HeldOutcome::Late;
            }
            let next = waiting.turns.iter().map(|turn| turn.deadline).chain([deadline]).min().unwrap_or(deadline);
            let left = next.saturating_duration_since(now);
            waiting = self.changed.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn changed(&self) {
        // Taking the lock orders the notification after the waiter's last look.
        drop(self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer's end of the queue.
#[derive(Debug)]
pub(crate) struct Deliveries {
    queue: mpsc::Receiver<Delivery>,
}

impl Facts {
    /// The writer's queue itself, for what is not a fact.
    pub(crate) fn sender(&self) -> &mpsc::Sender<Delivery> {
        &self.queue
    }

    /// A queue: the sources' end and the writer's end.
    pub(crate) fn queue() -> (Facts, Deliveries) {
        let (sender, receiver) = mpsc::channel(QUEUE_LEN);
        (Facts { queue: sender }, Deliveries { queue: receiver })
    }

    /// States facts that belong together, from a thread; waits while the queue is full.
    ///
    /// Panics inside an async task: use [`Facts::state`] there.
    pub fn state_blocking(&self, facts: Vec<Fact>) -> Result<(), Ended> {
        self.queue.blocking_send(Delivery::Facts(facts)).map_err(|_| Ended)
    }

    /// States facts that belong together, from an async task; waits while the queue is full.
    pub async fn state(&self, facts: Vec<Fact>) -> Result<(), Ended> {
        self.queue.send(Delivery::Facts(facts)).await.map_err(|_| Ended)
    }

    /// States facts about a container whose OCI runtime is being held, and waits until they are published and the
    /// synchronous subscribers have run, or until `deadline`. To be called from a thread that may be lost.
    pub fn hold(&self, facts: Vec<Fact>, key: ContainerKey, step: HeldStep, deadline: Instant) -> HeldOutcome {
        let latch = Latch::new();
        let hold = Hold { facts, key, step, deadline, latch: Arc::clone(&latch) };
        match self.queue.blocking_send(Delivery::Hold(hold)) {
            Ok(()) => latch.wait(deadline),
            Err(_) => HeldOutcome::Late,
        }
    }

    /// The init process of a container's latest run, when the kernel has shown it to be in the key's domain and it lives.
    /// `None` otherwise, and when the collection does not answer until `deadline`. To be called from a thread that may be
    /// lost.
    pub fn shown_init(&self, key: ContainerKey, deadline: Instant) -> Option<TaskId> {
        let (reply, answer) = sync_channel(1);
        self.queue.blocking_send(Delivery::Ask(Ask::ShownInit(key, reply))).ok()?;
        answer.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?
    }
}

impl Deliveries {
    /// The next delivery; `None` when every sender is gone.
    pub(crate) async fn next(&mut self) -> Option<Delivery> {
        self.queue.recv().await
    }

    /// A delivery that is already there.
    pub(crate) fn next_if_ready(&mut self) -> Option<Delivery> {
        self.queue.try_recv().ok()
    }

    /// How many wait.
    pub(crate) fn backlog(&self) -> usize {
        self.queue.len()
    }
}

/// What sources state, seen from where the collection would be: to run one source alone, in tests of it.
#[derive(Debug)]
pub struct Listener {
    deliveries: Deliveries,
}

/// What a [`Listener`] hears.
#[derive(Debug)]
pub enum Heard {
    /// Statements that belong together.
    Facts(Vec<Fact>),
    /// Statements about a container whose OCI runtime is held until [`HeldFacts::release`].
    Held(HeldFacts),
}

/// The statements of a held step.
#[derive(Debug)]
pub struct HeldFacts {
    /// What is known about the container.
    pub facts: Vec<Fact>,
    /// The container.
    pub key: ContainerKey,
    /// The held step.
    pub step: HeldStep,
    latch: Arc<Latch>,
}

impl Listener {
    /// A door, and who listens behind it.
    pub fn new() -> (Facts, Listener) {
        let (facts, deliveries) = Facts::queue();
        (facts, Listener { deliveries })
    }

    /// Waits for the next statements; `None` when no source is left. What is asked of a collection goes unanswered.
    pub fn hear(&mut self) -> Option<Heard> {
        loop {
            match self.deliveries.queue.blocking_recv()? {
                Delivery::Facts(facts) => return Some(Heard::Facts(facts)),
                Delivery::Hold(Hold { facts, key, step, latch, .. }) => {
                    return Some(Heard::Held(HeldFacts { facts, key, step, latch }));
                }
                Delivery::Ask(_) => {}
            }
        }
    }
}

impl HeldFacts {
    /// Lets the held step go on.
    pub fn release(self) {
        self.latch.published();
    }
}

/// A wish to look closer at a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CloserLook {
    /// Its first process.
    pub birth: Birth,
    /// Whether somebody vouches for it already. Then podman may know more: it has no daemon that would tell by itself.
    pub is_claimed: bool,
    /// Whether nobody has told where its bundle is, as no daemon does.
    pub lacks_bundle: bool,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn a_latch_opens_when_it_is_published_and_every_turn_is_over() {
        let latch = Latch::new();
        let turn = latch.turn(soon(), || panic!("it was on time"));
        latch.published();
        assert_eq!(latch.wait(Instant::now()), HeldOutcome::Late);
        drop(turn);
        assert_eq!(latch.wait(soon()), HeldOutcome::Done);
    }

    #[test]
    fn who_is_late_is_told_once_and_holds_nobody() {
        let latch = Latch::new();
        let late = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&late);
        let turn = latch.turn(Instant::now(), move || assert!(!told.swap(true, Ordering::AcqRel)));
        latch.published();
        assert_eq!(latch.wait(soon()), HeldOutcome::Done);
        assert!(late.load(Ordering::Acquire) && turn.is_over());
    }
}
