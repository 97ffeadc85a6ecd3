//! Keeps one source of facts going for ever: run a session, say how it ended, back off, run the next one.
//!
//! A session is one connection's life: connect, subscribe, list, reconcile, follow. It never ends well: it ends because
//! its peer is absent, unsuitable, hung or gone. Each of these is a condition on the health board, and none is the end.
//! What a session does is its source's business; when to try again, and that this is reported and logged once per
//! change, is decided here.
//!
//! ```text
//!            session ends                       backoff over
//!  session ───────────────▶ Waiting | Refused ───────────────▶ session
//!     └── it calls Line::live() when it has listed and follows
//! ```

use std::future::Future;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::collection::door::Ended;
use crate::container::Str;
use crate::fact::Source;
use crate::source::health::{Condition, HealthBoard};

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// There is nothing to connect to, and nobody has to know: not even a line on the health board.
    Unnoticed,
    /// The peer is absent, hung or gone, with what was tried and what came back.
    Lost(String),
    /// The peer is there and must not be used, with the reason. It is looked at again, since it may be replaced.
    Unsuitable(String),
    /// There is nobody left to tell facts: the collection has ended.
    Nobody,
}

impl From<Ended> for End {
    fn from(_: Ended) -> Self {
        End::Nobody
    }
}

/// One source's line on the health board. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Line {
    health: HealthBoard,
    source: Source,
    what: Str,
}

impl Line {
    /// The line of one peer of `source`, for example a socket's path.
    pub fn new(health: HealthBoard, source: Source, what: &str) -> Self {
        Self { health, source, what: what.into() }
    }

    /// It works.
    pub fn live(&self, detail: &str) {
        if self.health.report(self.source, &self.what, Condition::Live, detail) {
            info!(source = %self.source, what = %self.what, detail, "live");
        }
    }

    /// It works with less than it could have.
    pub fn degraded(&self, detail: &str) {
        if self.health.report(self.source, &self.what, Condition::Degraded, detail) {
            warn!(source = %self.source, what = %self.what, detail, "degraded");
        }
    }

    /// Nothing to work with at present.
    pub fn waiting(&self, detail: &str) {
        if self.health.report(self.source, &self.what, Condition::Waiting, detail) {
            info!(source = %self.source, what = %self.what, detail, "waiting");
        }
    }

    /// Must not be used.
    pub fn refused(&self, detail: &str) {
        if self.health.report(self.source, &self.what, Condition::Refused, detail) {
            warn!(source = %self.source, what = %self.what, detail, "refused");
        }
    }
}

/// Waits between attempts: twice as long each time up to a cap, each shortened at random by up to a half, so that what
/// broke together does not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts with `first` and never exceeds `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first: first.min(cap), cap, next: first.min(cap) }
    }

    /// How long to wait now.
    pub fn delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.cap);
        delay.mul_f64(1.0 - 0.5 * fastrand::f64())
    }

    /// The next wait is a first one.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Runs sessions until `cancel`, or until there is nobody left to tell.
///
/// A session that lasted longer than the backoff's cap was a success: the next wait is a short one.
pub async fn supervise<S>(line: &Line, mut backoff: Backoff, cancel: &CancellationToken, mut session: impl FnMut() -> S)
where
    S: Future<Output = End>,
{
    loop {
        let began = Instant::now();
        let end = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            end = session() => end,
        };
        match end {
            End::Unnoticed => {}
            End::Lost(detail) => line.waiting(&detail),
            End::Unsuitable(detail) => line.refused(&detail),
            End::Nobody => return,
        }
        if began.elapsed() > backoff.cap {
            backoff.reset();
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(backoff.delay()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_are_jittered_downwards() {
        let (first, cap) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, cap);
        for full in [100, 200, 400, 800, 1000, 1000] {
            let delay = backoff.delay();
            assert!(delay <= Duration::from_millis(full) && delay * 2 >= Duration::from_millis(full), "{delay:?}");
        }
        backoff.reset();
        assert!(backoff.delay() <= first);
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_follow_each_other_until_nobody_listens() {
        let health = HealthBoard::new();
        let line = Line::new(health.clone(), Source::Containerd, "x.sock");
        let count = AtomicU32::new(0);
        let ends = [End::Lost("gone".into()), End::Unsuitable("not root's".into()), End::Nobody];
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8));
        let cancel = CancellationToken::new();
        supervise(&line, backoff, &cancel, || {
            let end = ends[count.fetch_add(1, Ordering::Relaxed) as usize].clone();
            async move { end }
        })
        .await;
        assert_eq!(count.load(Ordering::Relaxed), 3);
        let lines = health.lines();
        assert_eq!((lines[0].condition, &*lines[0].detail), (Condition::Refused, "not root's"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancel_ends_a_session_and_a_wait() {
        let line = Line::new(HealthBoard::new(), Source::Containerd, "x.sock");
        let backoff = Backoff::new(Duration::from_secs(3600), Duration::from_secs(3600));
        let cancel = CancellationToken::new();
        let stop = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            cancel.cancel();
        };
        tokio::join!(supervise(&line, backoff.clone(), &cancel, std::future::pending), stop);
        let cancel = CancellationToken::new();
        let stop = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            cancel.cancel();
        };
        tokio::join!(supervise(&line, backoff, &cancel, || async { End::Lost("gone".into()) }), stop);
    }
}
