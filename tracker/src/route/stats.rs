//! What is counted.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
pub struct Striped {
    lines: [Line; STRIPES],
    // Protects the list of counters that one thread alone adds to; held to begin one, and for a sum.
    own: Mutex<Vec<Arc<Line>>>,
}

const STRIPES: usize = 16;

#[derive(Debug, Default)]
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
        self.lines[stripe].0.fetch_add(count, Ordering::Relaxed);
    }

    /// A counter that counts with the others, for one thread at a time.
    pub(super) fn own(&self) -> Own {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of threads that have ended: nobody adds to them any more.
        own.retain(|line| {
            let is_in_use = Arc::strong_count(line) > 1;
            if !is_in_use {
                self.lines[0].0.fetch_add(line.0.load(Ordering::Acquire), Ordering::Relaxed);
            }
            is_in_use
        });
        let line = Arc::<Line>::default();
        own.push(Arc::clone(&line));
        Own(line)
    }

    /// The sum.
    pub fn sum(&self) -> u64 {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let own = own.iter().map(|line| &**line);
        self.lines.iter().chain(own).map(|line| line.0.load(Ordering::Relaxed)).sum()
    }
}

/// A part of a counter that only its owner adds to, which saves what it costs to let others do so at the same time.
#[derive(Debug)]
pub(super) struct Own(Arc<Line>);

impl Own {
    #[inline]
    pub(super) fn add_one(&mut self) {
        let count = self.0.0.load(Ordering::Relaxed);
        self.0.0.store(count + 1, Ordering::Release);
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
