//! Boot time to wall-clock time and back, for people.
//!
//! The collection knows one clock, `CLOCK_BOOTTIME`. Two reads of two clocks are never taken at the same instant, so
//! converting afresh each time would show the same moment with other last digits in every answer, and a moment copied
//! out of an answer would not be found again. [`WallClock`] therefore keeps one difference between the clocks, and
//! takes a new one only when the wall clock was set or has drifted by more than [`TOLERANCE_NS`].

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::time::BootTime;

/// How far the kept difference may be off before it is renewed.
const TOLERANCE_NS: u64 = 1_000_000;

/// The difference between the wall clock and boot time, kept steady.
#[derive(Debug, Default)]
pub struct WallClock {
    /// Wall-clock time of the boot in nanoseconds since the Unix epoch; 0 before the first use.
    epoch: AtomicU64,
}

impl WallClock {
    /// A clock that reads the difference at its first use.
    pub fn new() -> Self {
        Self::default()
    }

    /// `moment` as people write it.
    pub fn wall(&self, moment: BootTime) -> Wall {
        let nanoseconds = i128::from(self.boot_epoch()) + i128::from(moment.0);
        Wall(Timestamp::from_nanosecond(nanoseconds).unwrap_or(Timestamp::MAX))
    }

    /// The boot time of `wall`; a moment before boot becomes [`BootTime::ZERO`].
    pub fn boot(&self, wall: Wall) -> BootTime {
        let nanoseconds = wall.0.as_nanosecond() - i128::from(self.boot_epoch());
        BootTime(u64::try_from(nanoseconds.max(0)).unwrap_or(u64::MAX))
    }

    fn boot_epoch(&self) -> u64 {
        let fresh = u64::try_from(BootTime::ZERO.to_unix().as_nanos()).unwrap_or(u64::MAX);
        let kept = self.epoch.load(Ordering::Relaxed);
        let steady = steady(kept, fresh);
        if steady != kept {
            self.epoch.store(steady, Ordering::Relaxed);
        }
        steady
    }
}

/// The difference to use: the kept one unless it is off by too much.
fn steady(kept: u64, fresh: u64) -> u64 {
    if kept.abs_diff(fresh) > TOLERANCE_NS { fresh } else { kept }
}

/// A moment in wall-clock time: RFC 3339 in UTC with nine digits of fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wall(pub Timestamp);

impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.9}", self.0)
    }
}

impl FromStr for Wall {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Wall)
    }
}

impl Serialize for Wall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Wall {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_survives_the_way_to_text_and_back() {
        let clock = WallClock::new();
        for moment in [0, 1, 999_999_999, 86_400_000_000_123] {
            let text = clock.wall(BootTime(moment)).to_string();
            assert_eq!(clock.boot(text.parse().unwrap()), BootTime(moment), "{text}");
        }
    }

    #[test]
    fn moments_show_nine_digits() {
        assert_eq!(Wall(Timestamp::UNIX_EPOCH).to_string(), "1970-01-01T00:00:00.000000000Z");
    }

    #[test]
    fn jitter_keeps_the_difference_and_a_set_clock_renews_it() {
        assert_eq!(steady(5_000_000, 5_000_090), 5_000_000);
        assert_eq!(steady(5_000_000, 3_000_000), 3_000_000);
        assert_eq!(steady(0, 1_700_000_000_000_000_000), 1_700_000_000_000_000_000);
    }

    #[test]
    fn the_far_ends_of_time_are_answered() {
        let clock = WallClock::new();
        clock.wall(BootTime::MAX);
        assert_eq!(clock.boot(Wall(Timestamp::MIN)), BootTime::ZERO);
        clock.boot(Wall(Timestamp::MAX));
    }
}
