//! When to look into the ring buffer without having been woken: pure.
//!
//! A record without wake-up is only emitted while something else is going on: a cgroup is made 1 ms before its container
//! is born and emptied when it ends, and a foreign process is denied its wake-up only within 20 ms of one. So after each
//! drain that found something there are a few ticks, and then silence.
//!
//! Sustained traffic has ticks of 20 ms, the kernel side's own interval for foreign wake-ups: a loop of `unshare` wakes
//! the thread about 50 times a second, not 150.

use std::time::Duration;

const TICK: Duration = Duration::from_millis(10);
const BUSY_TICK: Duration = Duration::from_millis(20);
/// Ticks after the last record: together they outlast the interval within which wake-ups are denied.
const TICKS: u32 = 3;
/// Drains in a row that found something, after which traffic is sustained.
const SUSTAINED: u32 = 8;

/// Decides when to wake next.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    ticks_left: u32,
    busy: u32,
}

impl Pace {
    /// The kernel side woke us because there is something. The drain that follows may still find nothing: the record may
    /// stand behind one that another processor has begun and not finished, and that will not wake us when it is.
    pub(crate) fn woken(&mut self) {
        self.ticks_left = TICKS;
    }

    /// A drain found this many records.
    pub(crate) fn drained(&mut self, records: usize) {
        if records > 0 {
            self.ticks_left = TICKS;
            self.busy = self.busy.saturating_add(1);
        } else {
            self.ticks_left = self.ticks_left.saturating_sub(1);
            self.busy = 0;
        }
    }

    /// How long to sleep at most; `None` is for ever.
    pub(crate) fn sleep(&self) -> Option<Duration> {
        match (self.ticks_left, self.busy) {
            (0, _) => None,
            (_, SUSTAINED..) => Some(BUSY_TICK),
            _ => Some(TICK),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_last_record_there_are_three_ticks_and_then_silence() {
        let mut pace = Pace::default();
        assert_eq!(pace.sleep(), None);
        pace.drained(5);
        for _ in 0..3 {
            assert_eq!(pace.sleep(), Some(TICK));
            pace.drained(0);
        }
        assert_eq!(pace.sleep(), None);
    }

    #[test]
    fn what_woke_us_is_looked_for_again_when_it_cannot_be_read_yet() {
        let mut pace = Pace::default();
        pace.woken();
        pace.drained(0);
        assert_eq!(pace.sleep(), Some(TICK));
    }

    #[test]
    fn sustained_traffic_slows_the_ticks() {
        let mut pace = Pace::default();
        (0..SUSTAINED).for_each(|_| pace.drained(1));
        assert_eq!(pace.sleep(), Some(BUSY_TICK));
        pace.drained(0);
        assert_eq!(pace.sleep(), Some(TICK));
    }
}
