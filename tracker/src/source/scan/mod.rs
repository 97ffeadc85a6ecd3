//! The scan: everything in a mount namespace that is not the host's, and which process is its init.
//!
//! Runs at start, every minute as an audit, and when something was lost. One read of the BPF task iterator sees every
//! task; where it cannot load, `/proc` tells the same, 30 times slower and a little later.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tracker_common::record::TaskFacts;

use crate::collection::door::Facts;
use crate::fact::{Birth, Fact, Source, What};
use crate::source::health::{Condition, HealthBoard};
use crate::source::kernel::setup::host_namespace;
use crate::source::kernel::translate::{birth, task_id};
use crate::source::kernel::{Kernel, KernelError, Machine};
use crate::source::task::mount_namespace_of;
use crate::time::BootTime;

mod adopt;

mod choose;

mod iterator;

mod proc;

use adopt::Adoption;
use iterator::TaskIterator;

/// How the scan is set up.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Seconds between two audits.
    pub audit_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { audit_seconds: 60 }
    }
}

/// Audits that were asked for follow each other no faster than this.
const AUDIT_PAUSE: Duration = Duration::from_secs(1);

/// What the scans counted. Read by the metrics.
#[derive(Debug, Default)]
pub struct Stats {
    /// Scans done.
    pub scans: AtomicU64,
    /// Scans that failed.
    pub failed: AtomicU64,
    /// Namespaces that a scan found after the first one and that the probes did not know: what was lost, repaired.
    pub corrections: AtomicU64,
    /// How long the last scan took, in microseconds.
    pub last_micros: AtomicU64,
    /// Namespaces that the last scan found.
    pub last_found: AtomicU64,
}

/// Why a scan told nothing.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The task iterator's file could not be read.
    #[error("read the BPF task iterator")]
    Iterator(#[source] io::Error),
    /// The task iterator could not be attached again.
    #[error("attach the BPF task iterator")]
    Attach(#[source] Box<aya::programs::ProgramError>),
    /// `/proc` could not be listed.
    #[error("list `/proc`")]
    Proc(#[source] io::Error),
}

/// Reads all tasks and picks the init process of each mount namespace that is not the host's.
pub struct Scanner {
    iterator: Result<TaskIterator, KernelError>,
    adoption: Option<Adoption>,
    v2: bool,
    host_mntns: u32,
    first_done: bool,
}

impl std::fmt::Debug for Scanner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scanner").field("iterator", &self.iterator.is_ok()).finish_non_exhaustive()
    }
}

impl Scanner {
    /// A scanner with the task iterator if it loads, else with `/proc`. With the probes it makes known to them, at
    /// once, what was there before, so that a fork in an old container is not taken for a birth: to be called before
    /// [`Kernel::run`].
    pub fn new(machine: Result<&Machine, KernelError>, probes: Option<&Kernel>) -> Result<Self, KernelError> {
        let adoption = probes.map(Adoption::of).transpose()?;
        let host_mntns = match &machine {
            Ok(machine) => machine.host_mntns,
            Err(_) => host_namespace("mnt")?,
        };
        let v2 = machine.as_ref().map_or(true, |machine| machine.hierarchy == 0);
        let iterator = machine.and_then(TaskIterator::load);
        let mut scanner = Self { iterator, adoption, v2, host_mntns, first_done: false };
        if scanner.adoption.is_some()
            && let Err(error) = scanner.scan()
        {
            tracing::warn!(%error, "what was there before the probes is not known to them yet");
        }
        Ok(scanner)
    }

    /// A scanner that reads `/proc` alone.
    pub fn of_proc() -> Result<Self, KernelError> {
        let refused = KernelError::Object("scan");
        Ok(Self {
            iterator: Err(refused),
            adoption: None,
            v2: true,
            host_mntns: host_namespace("mnt")?,
            first_done: false,
        })
    }

    /// Why the task iterator is not used.
    pub fn why_not_iterator(&self) -> Option<&KernelError> {
        self.iterator.as_ref().err()
    }

    /// Who states what a scan finds.
    pub fn source(&self) -> Source {
        if self.iterator.is_ok() { Source::Kernel } else { Source::Proc }
    }

    /// One birth per mount namespace that has a living process and is not the host's.
    ///
    /// What was born before the call and lives until it returns is in it.
    pub fn scan(&mut self) -> Result<Vec<Birth>, ScanError> {
        let tasks = self.tasks()?;
        Ok(self.births(tasks))
    }

    /// The same as a fact, with all processes.
    fn state(&mut self) -> Result<What, ScanError> {
        let tasks = self.tasks()?;
        let ids = tasks.iter().map(task_id).collect();
        Ok(What::Scanned { inits: self.births(tasks), tasks: ids })
    }

    fn births(&mut self, tasks: Vec<TaskFacts>) -> Vec<Birth> {
        // What the probes took for a birth before the first scan may be a fork in a namespace that was there before them.
        let known = |key| self.adoption.as_ref().filter(|_| self.first_done)?.known(key);
        let inits = choose::inits(tasks, |key| known(key).map(|known| (known.init_tgid, known.init_start)));
        self.first_done = true;
        if let Some(adoption) = &mut self.adoption
            && adoption.adopt(&inits)
        {
            // A second look fills the slots of those that were born while others were freed. It fills at most as many as
            // there is room for now, and reports nothing: its births have records of their own, or are in the next scan.
            let again = self.tasks().map(|tasks| choose::inits(tasks, |_| None)).unwrap_or_default();
            self.adoption.as_mut().map(|adoption| adoption.adopt(&again));
        }
        // `/proc` rounds start times down, into the life of the number's former holder.
        let started =
            |init: &TaskFacts| if self.iterator.is_ok() { init.start_ns } else { task_id(init).started_by().0 };
        let birth_of = |init| {
            let born = self.adoption.as_ref().and_then(|adoption| adoption.born(init)).unwrap_or_else(|| started(init));
            let birth = birth(init, born, init.has_executed(), self.v2);
            Birth { outer: birth.parent.and_then(mount_namespace_of), ..birth }
        };
        inits.iter().map(birth_of).collect()
    }

    /// Every process in a mount namespace that is not the host's.
    pub fn tasks(&mut self) -> Result<Vec<TaskFacts>, ScanError> {
        match &mut self.iterator {
            Ok(iterator) => iterator.read(),
            Err(_) => proc::read(self.host_mntns),
        }
    }

    /// Namespaces that scans found and the probes did not know.
    pub fn corrections(&self) -> u64 {
        self.adoption.as_ref().map_or(0, Adoption::corrections)
    }
}

/// Asks for an audit. Cheap to clone; asking twice before one begins asks once.
#[derive(Clone, Debug)]
pub struct AuditRequest(SyncSender<()>);

/// Where requests arrive. The scan ends when every [`AuditRequest`] is gone.
#[derive(Debug)]
pub struct AuditInbox(Receiver<()>);

/// A way to ask for audits; it holds one request.
pub fn audits() -> (AuditRequest, AuditInbox) {
    let (sender, receiver) = sync_channel(1);
    (AuditRequest(sender), AuditInbox(receiver))
}

impl AuditRequest {
    /// Asks; returns at once.
    pub fn ask(&self) {
        match self.0.try_send(()) {
            // Full: an audit is about to begin, and will see what this one would.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }
}

impl AuditInbox {
    /// Waits until an audit is asked for; `false` when the time is over first, or nobody can ask any more.
    pub fn wait(&self, time: Duration) -> bool {
        self.0.recv_timeout(time).is_ok()
    }
}

/// Scans at once, then as often as configured, and when asked to: at most once per second.
///
/// For a thread of its own; ends when nobody can ask any more, or the collection has ended.
pub fn run(
    mut scanner: Scanner,
    config: &Config,
    facts: &Facts,
    inbox: &AuditInbox,
    stats: &Stats,
    health: &HealthBoard,
) {
    let source = scanner.source();
    let what = if source == Source::Kernel { "iter/task" } else { "/proc" };
    let detail = match scanner.why_not_iterator() {
        Some(error) => format!("{error}: {}", error.remedy()),
        None => String::new(),
    };
    let mut known_before = None;
    loop {
        let (at, begun) = (BootTime::now(), Instant::now());
        match scanner.state() {
            Ok(what_is_alive) => {
                stats.scans.fetch_add(1, Ordering::Relaxed);
                stats.last_micros.store(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
                if let What::Scanned { inits, .. } = &what_is_alive {
                    stats.last_found.store(inits.len() as u64, Ordering::Relaxed);
                }
                // The first scan finds what was there before us: nothing to correct.
                let before = known_before.replace(scanner.corrections());
                let corrected = before.map_or(0, |before| scanner.corrections() - before);
                stats.corrections.fetch_add(corrected, Ordering::Relaxed);
                if facts.state_blocking(vec![Fact { source, at, what: what_is_alive }]).is_err() {
                    return;
                }
                let condition = if detail.is_empty() { Condition::Live } else { Condition::Degraded };
                health.report(source, what, condition, &detail);
            }
            Err(error) => {
                stats.failed.fetch_add(1, Ordering::Relaxed);
                let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
                if health.report(source, what, Condition::Waiting, &format!("{error}{cause}")) {
                    tracing::warn!(%error, cause, "the scan told nothing");
                }
            }
        }
        // An audit that is asked for meanwhile waits out the pause: one per second is enough to repair what was lost.
        match inbox.0.recv_timeout(Duration::from_secs(config.audit_seconds.max(1))) {
            Ok(()) => std::thread::sleep(AUDIT_PAUSE.saturating_sub(begun.elapsed())),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
