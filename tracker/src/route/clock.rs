//! Milliseconds since boot by the cheapest clock that there is (4 ns): good to a timer tick, which is 1 to 10 ms.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A moment, or a time between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Millis(pub(super) u64);

impl Millis {
    #[inline]
    pub(super) fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("this clock exists on every Linux");
        Millis(now.tv_sec() as u64 * 1_000 + now.tv_nsec() as u64 / 1_000_000)
    }

    /// The time from `earlier` to `self`; none when `earlier` is later.
    pub(super) fn since(self, earlier: Millis) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }

    pub(super) fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}
