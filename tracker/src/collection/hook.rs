//! Synchronous subscribers: called before a held container may go on, each on its own thread, in parallel.
//!
//! A callback has a budget, clipped to the hold's own. One that exceeds it is late: the container goes on without it,
//! and until it returns its further containers are skipped and counted. One that panics is contained and named. Nobody
//! else pays for either.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::door::{HeldStep, Latch, Turn};
use crate::container::{Container, Str};
use crate::selector::Selector;

/// Containers that may wait for a hook that is still busy within its budget; more are skipped and counted.
const QUEUE_LEN: usize = 64;

/// What a hook is called with.
pub type Callback = Box<dyn FnMut(&Arc<Container>) + Send>;

/// How a hook is doing.
#[derive(Debug, Default)]
pub struct HookStats {
    /// Calls that returned.
    pub called: AtomicU64,
    /// Containers that did not wait for it to the end.
    pub late: AtomicU64,
    /// Containers it was not called for, because it was still busy with an earlier one.
    pub skipped: AtomicU64,
    /// Calls that ended in a panic.
    pub panicked: AtomicU64,
}

/// The writer's end of one hook.
#[derive(Debug)]
pub(crate) struct Hook {
    pub step: HeldStep,
    pub selector: Selector,
    budget: Duration,
    jobs: SyncSender<Job>,
    /// The number of the last job.
    last: u64,
    progress: Arc<Progress>,
    stats: Arc<HookStats>,
}

/// How far a hook is, by the numbers of its jobs. Numbers rather than a flag: that a job is late may be noticed only after
/// it has ended.
#[derive(Debug, Default)]
struct Progress {
    late: AtomicU64,
    done: AtomicU64,
}

impl Progress {
    fn is_late(&self) -> bool {
        self.late.load(Ordering::Acquire) > self.done.load(Ordering::Acquire)
    }
}

#[derive(Debug)]
struct Job {
    number: u64,
    container: Arc<Container>,
    turn: Option<Turn>,
}

/// The thread's end; [`HookThread::run`] is its body.
pub(crate) struct HookThread {
    name: Str,
    jobs: Receiver<Job>,
    progress: Arc<Progress>,
    stats: Arc<HookStats>,
    callback: Callback,
}

impl Hook {
    /// A hook and what its thread runs.
    pub(crate) fn new(
        name: &str,
        step: HeldStep,
        selector: Selector,
        budget: Duration,
        callback: Callback,
    ) -> (Hook, HookThread, Arc<HookStats>) {
        let (jobs, receiver) = sync_channel(QUEUE_LEN);
        let stats = Arc::new(HookStats::default());
        let progress = Arc::<Progress>::default();
        let thread = HookThread {
            name: name.into(),
            jobs: receiver,
            progress: Arc::clone(&progress),
            stats: Arc::clone(&stats),
            callback,
        };
        let hook = Hook { step, selector, budget, jobs, last: 0, progress, stats: Arc::clone(&stats) };
        (hook, thread, stats)
    }

    /// Calls the hook for a container, and makes the hold wait for it; without a hold it is only told.
    /// Returns whether the hook is still there.
    pub(super) fn call(&mut self, container: &Arc<Container>, hold: Option<(&Arc<Latch>, Instant)>) -> bool {
        if self.progress.is_late() {
            self.stats.skipped.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        self.last += 1;
        let number = self.last;
        let turn = hold.map(|(latch, deadline)| {
            let (stats, progress) = (Arc::clone(&self.stats), Arc::clone(&self.progress));
            latch.turn(deadline.min(Instant::now() + self.budget), move || {
                progress.late.fetch_max(number, Ordering::AcqRel);
                stats.late.fetch_add(1, Ordering::Relaxed);
            })
        });
        match self.jobs.try_send(Job { number, container: Arc::clone(container), turn }) {
            Ok(()) => true,
            Err(std::sync::mpsc::TrySendError::Full(_)) => {
                self.stats.skipped.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(std::sync::mpsc::TrySendError::Disconnected(_)) => false,
        }
    }
}

impl HookThread {
    /// Calls the callback until the collection has ended.
    pub(crate) fn run(mut self) {
        while let Ok(job) = self.jobs.recv() {
            // Whoever waited for this one has gone on; its container is skipped rather than told too late.
            if job.turn.as_ref().is_some_and(Turn::is_over) {
                self.stats.skipped.fetch_add(1, Ordering::Relaxed);
                self.progress.done.store(job.number, Ordering::Release);
                continue;
            }
            match catch_unwind(AssertUnwindSafe(|| (self.callback)(&job.container))) {
                Ok(()) => self.stats.called.fetch_add(1, Ordering::Relaxed),
                Err(_) => {
                    tracing::error!(hook = &*self.name, container = &*job.container.id, "a subscriber panicked");
                    self.stats.panicked.fetch_add(1, Ordering::Relaxed)
                }
            };
            self.progress.done.store(job.number, Ordering::Release);
            drop(job.turn);
        }
    }
}
