//! What is counted.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Everything that routes count.
#[derive(Debug, Default)]
pub struct Stats {
    /// Look-ups that the cache answered.
    pub hits: Striped,
    /// Look-ups for which the kernel was asked.
    pub misses: Striped,
    /// Requests to the kernel.
    pub exchanges: Striped,
    /// Requests that the kernel refused, by errno.
    pub errnos: Errnos,
    /// Look-ups that ended without an answer.
    pub errors: AtomicU64,
    /// Messages from net namespaces that are known; each moves a generation.
    pub moves: AtomicU64,
    /// Messages from net namespaces that nobody has asked about.
    pub strangers: AtomicU64,
    /// Times that messages were lost and everything known was forgotten.
    pub overruns: AtomicU64,
    /// Times that a net ns was muted.
    pub muted: AtomicU64,
    /// Net namespaces that are known now.
    pub known: AtomicU64,
    /// Net namespaces that a socket of ours is open in now.
    pub open: AtomicU64,
    /// Times that a net ns was entered.
    pub entered: AtomicU64,
    /// Look-ups in a cloud's own words for subnets, by how they ended.
    pub subnets: SubnetStats,
}

/// Look-ups of a cloud's name for a subnet.
#[derive(Debug, Default)]
pub struct SubnetStats {
    /// Asked, and named.
    pub found: AtomicU64,
    /// Asked, and there is no such thing.
    pub none: AtomicU64,
    /// Asked, and no answer in time, or a broken one.
    pub failed: AtomicU64,
    /// Known from before, failures included.
    pub cached: AtomicU64,
}

/// A counter for many threads at once: each has a line of memory of its own.
#[derive(Default)]
pub struct Striped([Line; STRIPES]);

const STRIPES: usize = 16;

#[derive(Default)]
#[repr(align(128))]
struct Line(AtomicU64);

impl Striped {
    #[inline]
    pub(super) fn add(&self, count: u64) {
        thread_local! {
            static STRIPE: usize = {
                static NEXT: AtomicUsize = AtomicUsize::new(0);
                NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES
            };
        }
        // A thread that is ending counts with the first.
        let stripe = STRIPE.try_with(|stripe| *stripe).unwrap_or(0);
        self.0[stripe].0.fetch_add(count, Ordering::Relaxed);
    }

    /// The sum.
    pub fn sum(&self) -> u64 {
        self.0.iter().map(|line| line.0.load(Ordering::Relaxed)).sum()
    }
}

impl fmt::Debug for Striped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sum().fmt(f)
    }
}

/// How often each errno came.
#[derive(Debug, Default)]
pub struct Errnos {
    // Protects the counts; held for one addition. There are as many as there are errnos.
    counts: Mutex<BTreeMap<i32, u64>>,
}

impl Errnos {
    pub(super) fn add(&self, errno: i32) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(errno).or_default() += 1;
    }

    /// All that have come.
    pub fn counts(&self) -> BTreeMap<i32, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
