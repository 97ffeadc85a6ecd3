//! The loop of the kernel source's thread: wait, drain, decode, state facts.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{MapData, RingBuf};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tracker_common::life;
use tracker_common::record::{ProcessRecord, Record};

use super::keep::Heritage;
use super::pace::Pace;
use super::translate::translate;
use super::{Kernel, KernelError, KnownTable, Machine, Stats};
use crate::collection::door::{Ended, Facts};
use crate::fact::{Fact, Source, What};
use crate::source::health::{Condition, HealthBoard};
use crate::source::scan::AuditRequest;
use crate::source::task::mount_namespace_of;

/// Facts of one step; a burst beyond it is stated in several.
const BATCH: usize = 1024;

/// Batches of one drain. More than this keeps coming: the tick after the drain goes on.
const BATCHES: usize = 64;

/// What ended a wait.
const RING: u64 = 0;
const STOP: u64 = 1;

impl Kernel {
    /// Reports records as facts until `stop` becomes readable (an eventfd, or a pipe's end) or the collection has ended.
    /// For a thread of its own.
    ///
    /// Waits while the collection's queue is full; the ring buffer then fills, and counts its loss.
    pub fn run(
        self,
        facts: &Facts,
        stop: BorrowedFd<'_>,
        audits: &AuditRequest,
        stats: &Stats,
        health: &HealthBoard,
    ) -> Result<(), KernelError> {
        let (condition, detail) = self.condition();
        health.report(Source::Kernel, "tp_btf", condition, &detail);
        let ended = self.run_with(|batch| facts.state_blocking(batch), stop, audits, stats);
        match &ended {
            Ok(()) => health.report(Source::Kernel, "tp_btf", Condition::Refused, "stopped"),
            Err(error) => health.report(Source::Kernel, "tp_btf", Condition::Refused, &error.to_string()),
        };
        ended
    }

    /// States what the former owner's probes left, before anything is scanned: without it the order would be another one.
    pub fn catch_up(
        &mut self,
        mut state: impl FnMut(Vec<Fact>) -> Result<(), Ended>,
        stats: &Stats,
    ) -> Result<(), Ended> {
        let Some(heritage) = &mut self.heritage else { return Ok(()) };
        if let Some(time) = heritage.unwatched {
            stats.unwatched_ms.store(time.as_millis() as u64, Ordering::Relaxed);
            tracing::warn!(seconds = time.as_secs_f64(), "nobody watched: what came and went meanwhile is not known");
        }
        if let Some(mut leftover) = heritage.leftover.take() {
            let Self { heritage, known, machine, .. } = self;
            drain(&mut leftover, Reading { heritage, known, machine, stats, is_leftover: true }, &mut state)?;
        }
        self.drain(&mut state, stats)?;
        Ok(())
    }

    /// The same without a collection: `state` is called with each batch, and ends the loop with an error.
    pub fn run_with(
        mut self,
        mut state: impl FnMut(Vec<Fact>) -> Result<(), Ended>,
        stop: BorrowedFd<'_>,
        audits: &AuditRequest,
        stats: &Stats,
    ) -> Result<(), KernelError> {
        let epoll = self.watch(stop).map_err(|source| KernelError::Wait { what: "watch the ring buffer", source })?;
        let mut pace = Pace::default();
        let mut events = [EpollEvent::empty(); 4];
        loop {
            let Ok(drained) = self.drain(&mut state, stats) else { return Ok(()) };
            let shared = self.shared.read();
            let ours = self.heritage.as_ref().map_or(shared, |heritage| heritage.ours(&shared));
            if stats.take(&ours) {
                audits.ask();
            }
            self.heritage.iter().for_each(|heritage| heritage.note_taken(&shared));
            (self.flush_log)();
            pace.drained(drained);
            let timeout = pace
                .sleep()
                .map_or(EpollTimeout::NONE, |sleep| EpollTimeout::try_from(sleep).unwrap_or(EpollTimeout::MAX));
            let ready = match epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(errno) => {
                    return Err(KernelError::Wait { what: "wait for the ring buffer", source: errno.into() });
                }
            };
            stats.wakes.fetch_add(1, Ordering::Relaxed);
            let ended_by = |what| events[..ready].iter().any(|event| event.data() == what);
            if ended_by(STOP) {
                return Ok(());
            }
            if ended_by(RING) {
                pace.woken();
            }
        }
    }

    fn watch(&self, stop: BorrowedFd<'_>) -> io::Result<Epoll> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        // Edge-triggered: only a wake-up by the kernel side counts, not that something unread lies there.
        epoll.add(self.ring.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, RING))?;
        epoll.add(stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        Ok(epoll)
    }

    fn condition(&self) -> (Condition, String) {
        if self.machine.has_unique_ids() {
            let unwatched = self.heritage.as_ref().and_then(|heritage| heritage.unwatched);
            let detail = unwatched.map(|time| format!("nobody watched for {} s before this start", time.as_secs()));
            return (Condition::Live, detail.unwrap_or_default());
        }
        let detail =
            "mount namespaces have no unique ids here: a reused number is told apart by its time of birth alone";
        (Condition::Degraded, detail.into())
    }

    /// States what lies in the ring buffer; returns how many records that were.
    fn drain(&mut self, state: &mut impl FnMut(Vec<Fact>) -> Result<(), Ended>, stats: &Stats) -> Result<usize, Ended> {
        let Self { ring, heritage, known, machine, .. } = self;
        drain(ring, Reading { heritage, known, machine, stats, is_leftover: false }, state)
    }
}

/// What is needed beside the records to make facts of them.
struct Reading<'a> {
    heritage: &'a mut Option<Heritage>,
    known: &'a KnownTable,
    machine: &'a Machine,
    stats: &'a Stats,
    /// Whether a former owner's probes left them.
    is_leftover: bool,
}

fn drain(
    ring: &mut RingBuf<MapData>,
    reading: Reading<'_>,
    state: &mut impl FnMut(Vec<Fact>) -> Result<(), Ended>,
) -> Result<usize, Ended> {
    let Reading { heritage, known, machine, stats, is_leftover } = reading;
    let v2 = machine.hierarchy == 0;
    let mut total = 0;
    for _ in 0..BATCHES {
        let mut batch: Vec<Fact> = Vec::new();
        while batch.len() < BATCH {
            let Some(bytes) = ring.next() else { break };
            total += 1;
            let record = Record::decode(&bytes);
            if let (Ok(Record::Process(_, record)), Some(heritage)) = (&record, heritage.as_mut())
                && record.flags & ProcessRecord::BORN != 0
            {
                heritage.note_birth(record.task.mntns_id, is_leftover, known, stats);
            }
            match record {
                Ok(Record::Process(_, record)) if is_superseded(known, &record) => count(&stats.superseded),
                Ok(record) => {
                    if matches!(record, Record::Cgroup { truncated: true, .. }) {
                        count(&stats.cut_paths);
                    }
                    translate(&record, v2, &mut batch);
                }
                Err(_) => count(&stats.malformed),
            }
        }
        if batch.is_empty() {
            break;
        }
        look_around(&mut batch);
        state(batch)?;
    }
    stats.records.fetch_add(total as u64, Ordering::Relaxed);
    Ok(total)
}

/// Whether the birth is that of a later process in a namespace that was there before us, which the scan has found since:
/// the first fork in such a namespace looks like its birth.
fn is_superseded(known: &KnownTable, record: &ProcessRecord) -> bool {
    record.flags & ProcessRecord::BORN != 0
        && known.get(life::key(&record.task)).is_some_and(|known| known.init_start < record.task.start_ns)
}

/// Looks in which mount namespace the parents of the newborn are: soon, since many live no longer than their child's birth.
/// Who has gone by then is looked for by the next audit, among whoever adopted the child.
fn look_around(batch: &mut [Fact]) {
    for fact in batch {
        if let What::Born(birth) = &mut fact.what {
            birth.outer = birth.parent.and_then(mount_namespace_of);
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
