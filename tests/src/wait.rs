//! Waiting for what is eventual: by asking again, with a deadline.
//!
//! Where the thing waited for can announce itself (a pipe, a child's end, a feed) wait for that instead.

use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes on a loaded two-core machine, emulated ones included.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until there is an answer, and panics with `what` when there is none within [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    match within(PATIENCE, ask) {
        Some(answer) => answer,
        None => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// Asks until there is an answer or the time is over.
pub fn within<T>(time: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + time;
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        let left = deadline.checked_duration_since(Instant::now())?;
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_the_wait_and_time_does_too() {
        let mut asked = 0;
        assert_eq!(
            eventually("three", || {
                asked += 1;
                (asked == 3).then_some(asked)
            }),
            3
        );
        assert_eq!(within(Duration::from_millis(5), || None::<()>), None);
    }
}
