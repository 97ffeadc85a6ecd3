//! What the barrier counts, for metrics and tests. Plain counters; reading them costs nobody anything.

use std::sync::atomic::AtomicU64;

use crate::histogram::Histogram;

/// The barrier's counters since it began.
#[derive(Debug, Default)]
pub struct Stats {
    /// Executions of marked binaries that were looked at.
    pub events: AtomicU64,
    /// Held `create`s and `start`s that were given to the collection.
    pub holds: AtomicU64,
    /// How long answers took, from the keeper's reading to ours.
    pub hold_times: Histogram,
    /// Answers that came after the keeper had let go.
    pub let_go: AtomicU64,
    /// Times that the kernel's queue ran over: it allowed what it dropped.
    pub overflows: AtomicU64,
    /// Executions let go because no thread was to be had for them.
    pub refused_jobs: AtomicU64,
    /// Callers let go unread: not uid 0.
    pub refused_user: AtomicU64,
    /// Callers let go unread: in another user namespace.
    pub refused_user_namespace: AtomicU64,
    /// Callers let go unread: in another mount or pid namespace, or below another root directory, and in no container
    /// that is known; or there were too many of them, or no kernel source to bind what they say.
    pub refused_nested: AtomicU64,
    /// Callers inside containers that were read: not the host's root, but root in a container that is known.
    pub nested: AtomicU64,
    /// Callers that had gone, or whose command line could not be read.
    pub unread: AtomicU64,
    /// Command lines that no OCI runtime takes.
    pub argv_errors: AtomicU64,
    /// A runtime executing itself: `runc init`, crun's second execution.
    pub itself: AtomicU64,
    /// `start`s let go because no process could be proven to be the container's.
    pub unproven: AtomicU64,
    /// Runtimes whose end is not waited for, since too many are.
    pub unwatched: AtomicU64,
    /// Threads that are lost at this moment (a gauge).
    pub lost_threads: AtomicU64,
    /// Panics contained in the pool.
    pub panics: AtomicU64,
    /// The present keeper's pid, or the last one's (a gauge).
    pub keeper_pid: AtomicU64,
    /// Keepers started after the first one.
    pub keeper_restarts: AtomicU64,
    /// Binaries learnt from what they started.
    pub learnt: AtomicU64,
}
