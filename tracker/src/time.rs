//! Moments: nanoseconds of `CLOCK_BOOTTIME`, the one clock of all facts.
//!
//! The kernel source reports boot time (`bpf_ktime_get_boot_ns`), which goes on through suspend and never jumps.
//! Tracers that stamp events with `CLOCK_MONOTONIC`, and runtimes that report wall-clock time, are converted at the door.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Nanoseconds since boot, suspend included (`CLOCK_BOOTTIME`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct BootTime(pub u64);

impl BootTime {
    /// Before everything.
    pub const ZERO: BootTime = BootTime(0);
    /// After everything: the close of an interval that is still open.
    pub const MAX: BootTime = BootTime(u64::MAX);

    /// The present moment.
    pub fn now() -> Self {
        BootTime(nanos(ClockId::CLOCK_BOOTTIME))
    }

    /// Converts a `CLOCK_MONOTONIC` stamp (`bpf_ktime_get_ns`) by the clocks' present difference.
    ///
    /// Exact unless the machine was suspended between the stamp and now; then the stamp comes out late by the time asleep.
    pub fn from_monotonic(nanoseconds: u64) -> Self {
        let offset = nanos(ClockId::CLOCK_BOOTTIME).saturating_sub(nanos(ClockId::CLOCK_MONOTONIC));
        BootTime(nanoseconds.saturating_add(offset))
    }

    /// Converts wall-clock time since the Unix epoch by the clocks' present difference: as exact as the wall clock is steady.
    /// A moment before boot becomes [`BootTime::ZERO`].
    pub fn from_unix(since_epoch: Duration) -> Self {
        let boot_epoch = nanos(ClockId::CLOCK_REALTIME).saturating_sub(nanos(ClockId::CLOCK_BOOTTIME));
        let wall = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
        BootTime(wall.saturating_sub(boot_epoch))
    }

    /// Wall-clock time since the Unix epoch, by the clocks' present difference.
    pub fn to_unix(self) -> Duration {
        let boot_epoch = nanos(ClockId::CLOCK_REALTIME).saturating_sub(nanos(ClockId::CLOCK_BOOTTIME));
        Duration::from_nanos(self.0.saturating_add(boot_epoch))
    }

    /// The moment known before, if the new one is the same but for the wall clock's wandering: a moment that is told
    /// again must not look like a change.
    #[cfg(any(feature = "containerd", feature = "docker"))]
    pub(crate) fn steady(old: Option<BootTime>, new: Option<BootTime>) -> Option<BootTime> {
        const WANDERING_NS: u64 = 1_000_000_000;
        match (old, new) {
            (Some(old), Some(new)) if old.0.abs_diff(new.0) < WANDERING_NS => Some(old),
            (old, None) => old,
            (_, new) => new,
        }
    }

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: BootTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

fn nanos(clock: ClockId) -> u64 {
    let now = clock_gettime(clock).expect("these clocks exist on every Linux since 2.6.39");
    Duration::from(now).as_nanos() as u64
}
