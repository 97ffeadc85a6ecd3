//! Threads that may be lost.
//!
//! Whoever reads what others choose (a caller's memory, a bundle's path) may sleep in the kernel for ever, past any
//! signal. So that work runs here: a thread that does not come back is counted as lost and replaced. Bounded in every
//! direction: [`MOST_THREADS`] at work, [`MOST_LOST`] lost ones, [`MOST_WAITING`] jobs waiting. Beyond that a job
//! is refused, and whoever it was for is let go at once.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Stats;
use crate::sys;

/// Threads at work at a time: as many as the keeper holds, since each may wait for a slow subscriber.
const MOST_THREADS: usize = super::custody::MOST_HELD;
/// Threads that may be lost before nothing is looked at any more.
pub(super) const MOST_LOST: usize = 16;
/// Jobs that wait for a thread: none does for longer than the budget.
const MOST_WAITING: usize = 256;
/// Threads that wait for the next job without a time limit; the others end when there is none for [`IDLE`].
const KEPT: usize = 4;
const IDLE: Duration = Duration::from_secs(5);
/// Nothing but a file system that does not answer takes that long.
const LOST_AFTER: Duration = Duration::from_secs(1);

type Job = Box<dyn FnOnce() + Send>;

/// The job was not taken: too many threads are lost, or too many jobs wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused;

/// The pool. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    // Protects the queue and the book of threads; held for moments only, never while a job runs.
    state: Mutex<State>,
    work: Condvar,
    stats: Arc<Stats>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    idle: usize,
    /// Since when each thread has been at its job.
    busy: HashMap<u64, Instant>,
    next: u64,
    closed: bool,
}

impl State {
    fn lost(&self, now: Instant) -> usize {
        self.busy.values().filter(|since| now.saturating_duration_since(**since) > LOST_AFTER).count()
    }
}

impl Pool {
    pub(super) fn new(stats: Arc<Stats>) -> Self {
        Self { inner: Arc::new(Inner { state: Mutex::default(), work: Condvar::new(), stats }) }
    }

    /// Hands a job to an idle thread, or to a new one.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Refused> {
        let mut state = self.inner.lock();
        let lost = state.lost(Instant::now());
        self.inner.stats.lost_threads.store(lost as u64, Ordering::Relaxed);
        if state.closed || lost >= MOST_LOST || state.waiting.len() >= MOST_WAITING {
            return Err(Refused);
        }
        state.waiting.push_back(Box::new(job));
        if state.idle >= state.waiting.len() {
            self.inner.work.notify_one();
        } else if state.busy.len() - lost + state.idle < MOST_THREADS {
            let inner = Arc::clone(&self.inner);
            let spawned = thread::Builder::new().name("tracker-held".into()).spawn(move || inner.work());
            // No thread to be had: the job waits for one of those there are, and goes when there is none.
            if spawned.is_err() && state.busy.is_empty() && state.idle == 0 {
                state.waiting.pop_back();
                return Err(Refused);
            }
        }
        Ok(())
    }

    /// Lets all threads end that are not lost. Jobs that wait are dropped.
    pub(super) fn close(&self) {
        let mut state = self.inner.lock();
        state.closed = true;
        state.waiting.clear();
        self.inner.work.notify_all();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        sys::raise_priority();
        let mut state = self.lock();
        loop {
            if let Some(job) = state.waiting.pop_front() {
                let me = state.next;
                state.next += 1;
                state.busy.insert(me, Instant::now());
                drop(state);
                // A panic ends the job, not the thread: whatever the job held is released by its drop.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                    self.stats.panics.fetch_add(1, Ordering::Relaxed);
                }
                state = self.lock();
                state.busy.remove(&me);
                continue;
            }
            if state.closed {
                return;
            }
            state.idle += 1;
            let timed_out;
            if state.idle <= KEPT {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                timed_out = false;
            } else {
                let (woken, wait) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
                (state, timed_out) = (woken, wait.timed_out());
            }
            state.idle -= 1;
            if timed_out && state.waiting.is_empty() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn jobs_run_side_by_side_and_a_panic_stays_in_its_job() {
        let pool = Pool::new(Arc::default());
        let (done, all) = sync_channel(64);
        let (go, gate) = (Arc::new((Mutex::new(false), Condvar::new())), 32);
        for _ in 0..gate {
            let (done, go) = (done.clone(), Arc::clone(&go));
            pool.run(move || {
                drop(go.1.wait_while(go.0.lock().unwrap(), |open| !*open).unwrap());
                done.send(()).unwrap();
            })
            .unwrap();
        }
        pool.run(|| panic!("a job that breaks")).unwrap();
        *go.0.lock().unwrap() = true;
        go.1.notify_all();
        for _ in 0..gate {
            all.recv_timeout(Duration::from_secs(30)).unwrap();
        }
        let (done, last) = sync_channel(1);
        pool.run(move || done.send(()).unwrap()).unwrap();
        last.recv_timeout(Duration::from_secs(30)).unwrap();
        pool.close();
        assert_eq!(pool.run(|| ()), Err(Refused));
    }

    #[test]
    fn too_many_lost_threads_refuse_all_further_jobs() {
        let pool = Pool::new(Arc::default());
        let long_ago = Instant::now().checked_sub(LOST_AFTER * 2).unwrap();
        for worker in 0..MOST_LOST as u64 {
            pool.inner.lock().busy.insert(u64::MAX - worker, long_ago);
        }
        assert_eq!(pool.run(|| ()), Err(Refused));
        // One came back.
        pool.inner.lock().busy.remove(&u64::MAX);
        assert_eq!(pool.run(|| ()), Ok(()));
        pool.close();
    }
}
