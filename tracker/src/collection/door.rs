//! The way in: sources hand facts to the collection's one writer through [`Facts`].
//!
//! The queue is bounded. When it is full a source waits (its own queue, the kernel's ring buffer or a runtime's
//! event stream, then fills and counts its loss): facts are never dropped here. A held start overtakes nothing: facts
//! queued before it are applied before it is answered.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;

use crate::container::ContainerKey;
use crate::fact::Fact;

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
}

/// A held `create` or `start`: apply, publish, let the synchronous subscribers run, then [`Latch::release`].
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
    /// Released when all is done.
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

/// Counts down to zero once; one thread waits for that with a deadline.
///
/// The count is the writer's publication plus one for each synchronous subscriber that has the container.
#[derive(Debug)]
pub(crate) struct Latch {
    open: Mutex<usize>,
    changed: Condvar,
}

impl Latch {
    /// A latch that waits for `count` releases.
    pub(crate) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { open: Mutex::new(count), changed: Condvar::new() })
    }

    /// One more release to wait for. Must be called before the last [`Latch::release`].
    pub(crate) fn add(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    /// One done.
    pub(crate) fn release(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        *open = open.saturating_sub(1);
        if *open == 0 {
            self.changed.notify_all();
        }
    }

    /// Waits until all is released or `deadline` has passed.
    pub(crate) fn wait(&self, deadline: Instant) -> HeldOutcome {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        while *open > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return HeldOutcome::Late;
            };
            open = self.changed.wait_timeout(open, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        HeldOutcome::Done
    }
}

/// The writer's end of the queue.
#[derive(Debug)]
pub(crate) struct Deliveries {
    queue: mpsc::Receiver<Delivery>,
}

impl Facts {
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
        let latch = Latch::new(1);
        let hold = Hold { facts, key, step, deadline, latch: Arc::clone(&latch) };
        match self.queue.blocking_send(Delivery::Hold(hold)) {
            Ok(()) => latch.wait(deadline),
            Err(_) => HeldOutcome::Late,
        }
    }
}

impl Deliveries {
    /// The next delivery; `None` when every sender is gone. For the writer's thread.
    pub(crate) fn next(&mut self) -> Option<Delivery> {
        self.queue.blocking_recv()
    }

    /// A delivery that is already there.
    pub(crate) fn next_if_ready(&mut self) -> Option<Delivery> {
        self.queue.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_latch_opens_with_its_last_release() {
        let latch = Latch::new(1);
        latch.add();
        latch.release();
        assert_eq!(latch.wait(Instant::now()), HeldOutcome::Late);
        latch.release();
        assert_eq!(latch.wait(Instant::now() + Duration::from_secs(5)), HeldOutcome::Done);
    }
}
