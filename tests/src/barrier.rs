//! A barrier alone: the real keeper, the real fanotify group, marks on private copies of runtimes only, and a listener
//! in the place of the collection.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracker::barrier::{self, Stats};
use tracker::collection::door::{Heard, HeldFacts, HeldStep, Listener};
use tracker::container::Grade;
use tracker::fact::{Fact, Statement, What};
use tracker::source::health::HealthBoard;

use crate::wait::{PATIENCE, eventually};

/// What the barrier allows itself beyond its budget.
pub const GRACE: Duration = Duration::from_millis(100);

/// A running barrier, stopped when dropped.
pub struct Barrier {
    /// Its handle.
    pub handle: barrier::Barrier,
    /// Its counters.
    pub stats: Arc<Stats>,
    /// What it reports of itself.
    pub health: HealthBoard,
    /// How often it asked for an audit.
    pub audits: Arc<AtomicU64>,
    heard: Arc<Ear>,
    threads: Vec<JoinHandle<()>>,
}

/// What has been stated so far.
#[derive(Default)]
struct Ear {
    // Protects what was heard, and the answering of held steps.
    state: Mutex<Hearing>,
    changed: Condvar,
    deaf: AtomicBool,
}

#[derive(Default)]
struct Hearing {
    facts: Vec<Fact>,
    held: Vec<HeldFacts>,
    /// Held steps so far.
    holds: usize,
}

/// What happens to held steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// They are released at once.
    AtOnce,
    /// They are kept until [`Barrier::release_all`].
    Never,
}

impl Barrier {
    /// Starts one that holds `runtimes` and nothing else.
    pub fn start(keeper: &str, runtimes: &[&Path], budget: Duration, answer: Answer) -> Result<Barrier> {
        Barrier::start_with(keeper, runtimes, budget, answer, |_| ())
    }

    /// The same with another config.
    pub fn start_with(
        keeper: &str,
        runtimes: &[&Path],
        budget: Duration,
        answer: Answer,
        change: impl FnOnce(&mut barrier::Config),
    ) -> Result<Barrier> {
        let mut config = barrier::Config {
            budget_ms: budget.as_millis() as u64,
            runtimes: runtimes.iter().map(|path| path.to_path_buf()).collect(),
            known_paths: false,
            keeper_program: Some(keeper.into()),
            ..barrier::Config::default()
        };
        change(&mut config);
        let (facts, mut listener) = Listener::new();
        let (health, stats, audits) = (HealthBoard::new(), Arc::new(Stats::default()), Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&audits);
        let audit = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let (tell, told) = sync_channel(1);
        let (board, counters) = (health.clone(), Arc::clone(&stats));
        let supervise = thread::spawn(move || {
            match barrier::Barrier::start(config, facts, board, counters, audit, Box::new(|_| None)) {
                Ok((handle, supervisor)) => {
                    if tell.send(Ok(handle)).is_ok() {
                        supervisor.run();
                    }
                }
                Err(error) => drop(tell.send(Err(error))),
            }
        });
        let handle = told.recv()?.context("start a barrier")?;
        let heard = Arc::new(Ear::default());
        heard.deaf.store(answer == Answer::Never, Ordering::Relaxed);
        let ear = Arc::clone(&heard);
        let listen = thread::spawn(move || {
            barrier::raise_priority();
            while let Some(heard) = listener.hear() {
                ear.hear(heard);
            }
        });
        let barrier = Barrier { handle, stats, health, audits, heard, threads: vec![supervise, listen] };
        barrier.wait_for_marks(runtimes.len());
        Ok(barrier)
    }

    /// Waits until so many binaries are marked.
    pub fn wait_for_marks(&self, count: usize) {
        eventually("all binaries are marked", || (self.handle.marked().len() == count).then_some(()));
    }

    /// The keeper's pid.
    pub fn keeper(&self) -> u32 {
        self.handle.keeper_pid().expect("a keeper has been started")
    }

    /// Answers held steps at once from now on, and those that are held now.
    pub fn release_all(&self) {
        self.heard.deaf.store(false, Ordering::Relaxed);
        let held = std::mem::take(&mut self.heard.hearing().held);
        held.into_iter().for_each(HeldFacts::release);
    }

    /// How many steps have been held.
    pub fn holds(&self) -> usize {
        self.heard.hearing().holds
    }

    /// Everything that was stated so far.
    pub fn facts(&self) -> Vec<Fact> {
        self.heard.hearing().facts.clone()
    }

    /// Waits until there are more facts than `known`, or until `time` is over.
    pub fn wait_for_more(&self, known: usize, time: Duration) {
        let state = self.heard.hearing();
        drop(self.heard.changed.wait_timeout_while(state, time, |state| state.facts.len() <= known).unwrap());
    }

    /// Waits for a fact that `pick` picks.
    pub fn fact<T>(&self, what: &str, mut pick: impl FnMut(&What) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.heard.hearing();
        loop {
            if let Some(found) = state.facts.iter().find_map(|fact| pick(&fact.what)) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{what}: not stated within {PATIENCE:?}, but: {:#?}; {:?}",
                state.facts,
                self.stats
            );
            state = self.heard.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// The first statement about `id` that has a process.
    pub fn statement_with_task(&self, id: &str) -> Statement {
        self.fact("a statement with a process", |what| match what {
            What::Stated { key, statement } if key.id.as_str() == id && statement.task.is_some() => {
                Some((**statement).clone())
            }
            _ => None,
        })
    }

    /// The grade of `id`.
    pub fn grade(&self, id: &str) -> Grade {
        self.fact("a grade", |what| match what {
            What::Graded { key, grade } if key.id.as_str() == id => Some(*grade),
            _ => None,
        })
    }
}

impl Ear {
    /// What was heard. A test that failed while it looked has changed nothing, and is cleared up after all the same.
    fn hearing(&self) -> MutexGuard<'_, Hearing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, heard: Heard) {
        let mut state = self.hearing();
        match heard {
            Heard::Facts(facts) => state.facts.extend(facts),
            Heard::Held(held) => {
                state.holds += 1;
                state.facts.extend(held.facts.iter().cloned());
                match self.deaf.load(Ordering::Relaxed) && held.step == HeldStep::Start {
                    true => state.held.push(held),
                    false => held.release(),
                }
            }
        }
        self.changed.notify_all();
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        self.release_all();
        self.handle.stop();
        // The listener ends with the last source, which may be a thread of the barrier's that is lost.
        let supervisor = self.threads.swap_remove(0);
        if supervisor.join().is_err() && !thread::panicking() {
            panic!("the supervisor panicked");
        }
    }
}
