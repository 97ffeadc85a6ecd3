//! The kernel source alone: probes in a thread, and the facts they stated so far.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::eventfd::EventFd;
use tracker::collection::door::Ended;
use tracker::fact::{Fact, What};
use tracker::plane::pins::Pinning;
use tracker::source::kernel::{Config, Kernel, Machine, Stats};
use tracker::source::scan::{AuditInbox, Scanner, audits};

use crate::wait::PATIENCE;

/// Batches that may wait for the test; the probes' thread waits while there are more.
const BATCHES: usize = 4096;

/// Loads the probes and shows why they cannot be loaded.
pub fn load(config: &Config) -> Result<Kernel> {
    let machine = Machine::examine().map_err(with_remedy)?;
    Kernel::load(config, &machine).map_err(with_remedy)
}

fn with_remedy(error: tracker::source::kernel::KernelError) -> anyhow::Error {
    let remedy = error.remedy();
    anyhow::Error::new(error).context(remedy)
}

/// Running probes; they end when dropped.
pub struct Probes {
    /// What the probes' thread counted.
    pub stats: Arc<Stats>,
    /// Audits that the thread asked for.
    pub audits: AuditInbox,
    stop: Arc<EventFd>,
    batches: Receiver<Vec<Fact>>,
    facts: RefCell<Vec<Fact>>,
    thread: Option<JoinHandle<()>>,
}

impl Probes {
    /// Loads and runs them. What was there before is made known to them first.
    pub fn start() -> Result<Probes> {
        let kernel = load(&Config::default())?;
        Scanner::new(Ok(kernel.machine()), Some(&kernel))?;
        Probes::run(kernel)
    }

    /// The same as a tracker with pinned maps does it: what lies in them is told first.
    pub fn start_pinned(config: &Config, pinning: &Pinning) -> Result<Probes> {
        let machine = Machine::examine().map_err(with_remedy)?;
        let mut kernel = Kernel::load_pinned(config, &machine, Some(pinning)).map_err(with_remedy)?;
        let stats = Arc::new(Stats::default());
        let (sender, batches) = sync_channel(BATCHES);
        kernel.catch_up(|batch| sender.send(batch).map_err(|_| Ended), &stats).context("state what was left")?;
        Scanner::new(Ok(kernel.machine()), Some(&kernel))?;
        Self::run_with(kernel, stats, sender, batches)
    }

    /// Runs loaded ones.
    pub fn run(kernel: Kernel) -> Result<Probes> {
        let (sender, batches) = sync_channel(BATCHES);
        Self::run_with(kernel, Arc::default(), sender, batches)
    }

    fn run_with(
        kernel: Kernel,
        stats: Arc<Stats>,
        sender: SyncSender<Vec<Fact>>,
        batches: Receiver<Vec<Fact>>,
    ) -> Result<Probes> {
        let stop = Arc::new(EventFd::new().context("make an eventfd")?);
        let (request, audits) = audits();
        let thread = std::thread::spawn({
            let (stop, stats) = (Arc::clone(&stop), Arc::clone(&stats));
            move || {
                let state = |batch| sender.send(batch).map_err(|_| Ended);
                kernel.run_with(state, stop.as_fd(), &request, &stats).expect("the ring buffer can be watched");
            }
        });
        Ok(Probes { stats, audits, stop, batches, facts: RefCell::default(), thread: Some(thread) })
    }

    /// Waits until the facts stated so far give an answer, and panics with `what` when they do not.
    #[track_caller]
    pub fn until<T>(&self, what: &str, ask: impl Fn(&[Fact]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = ask(&self.facts.borrow()) {
                return answer;
            }
            match self.batches.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(batch) => self.facts.borrow_mut().extend(batch),
                Err(error) => panic!("{what}: {error} after {:#?}", self.facts.borrow()),
            }
        }
    }

    /// Waits for the end of a process, and returns all that was stated about it, in order.
    #[track_caller]
    pub fn life(&self, pid: u32) -> Vec<What> {
        self.until(&format!("the end of process {pid}"), |facts| {
            let life = about(facts, pid);
            matches!(life.last(), Some(What::Ended(_))).then_some(life)
        })
    }

    /// Asks the facts that were looked at so far.
    pub fn facts<T>(&self, ask: impl Fn(&[Fact]) -> T) -> T {
        ask(&self.facts.borrow())
    }

    /// All that was stated about a process so far.
    pub fn stated(&self, pid: u32) -> Vec<What> {
        about(&self.facts.borrow(), pid)
    }
}

fn about(facts: &[Fact], pid: u32) -> Vec<What> {
    facts.iter().filter(|fact| subject(&fact.what) == Some(pid)).map(|fact| fact.what.clone()).collect()
}

fn subject(what: &What) -> Option<u32> {
    match what {
        What::Born(birth) => Some(birth.task.pid),
        What::Executed(execution) => Some(execution.task.task.pid),
        What::Ended(end) => Some(end.task.pid),
        _ => None,
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        // Its thread may be waiting for us to take what it has.
        let (_, nobody) = sync_channel(0);
        self.batches = nobody;
        self.stop.write(1).expect("an eventfd takes a number");
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.expect("it is taken here alone").expect("the probes' thread has not panicked");
        }
    }
}
