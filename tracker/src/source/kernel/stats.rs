//! What the kernel source counted. Read by the metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use tracker_common::table::{Loss, Shared};

/// Counters, all since the probes were loaded; of probes that went on without a tracker, since the former one ended.
#[derive(Debug, Default)]
pub struct Stats {
    /// Records decoded.
    pub records: AtomicU64,
    /// Records that could not be decoded; always 0, or the object is not the one that this program was built with.
    pub malformed: AtomicU64,
    /// Cgroup records whose path was cut.
    pub cut_paths: AtomicU64,
    /// Births of processes in namespaces that the scan had found already.
    pub superseded: AtomicU64,
    /// Times that the thread woke.
    pub wakes: AtomicU64,
    /// Births, executions and ends that the kernel side reported or lost.
    pub process_records: AtomicU64,
    /// Cgroup records that the kernel side emitted or lost.
    pub cgroup_records: AtomicU64,
    /// For how long nobody watched before this start, in milliseconds: since the former tracker's last heartbeat, unless
    /// its probes went on.
    pub unwatched_ms: AtomicU64,
    /// Mount namespaces that came and went meanwhile, as far as their ids tell.
    pub unseen: AtomicU64,
    /// Losses, in the order of [`Loss::ALL`].
    lost: [AtomicU64; Loss::ALL.len()],
}

impl Stats {
    /// Losses of one cause.
    pub fn lost(&self, loss: Loss) -> u64 {
        self.lost[loss as usize].load(Ordering::Relaxed)
    }

    /// Losses by the cause's name.
    pub fn losses(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Loss::ALL.into_iter().map(|loss| (loss.name(), self.lost(loss)))
    }

    /// Takes over the kernel side's counters; whether it lost anything since the last time.
    pub(crate) fn take(&self, shared: &Shared) -> bool {
        self.process_records.store(shared.process_records, Ordering::Relaxed);
        self.cgroup_records.store(shared.cgroup_records, Ordering::Relaxed);
        let mut more = false;
        for loss in Loss::ALL {
            let now = shared.lost[loss as usize];
            more |= self.lost[loss as usize].swap(now, Ordering::Relaxed) != now;
        }
        more
    }
}
