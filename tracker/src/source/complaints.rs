//! Says the same thing at most once a minute: for input from outside that is broken again and again.
//!
//! Counting is the business of each module's `Stats`; this only decides whether a warning is due. It remembers one
//! moment for each kind of complaint, and kinds are names in the code: a peer cannot make it grow.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long one kind of complaint stays quiet after a warning.
const QUIET: Duration = Duration::from_secs(60);

/// When each kind of complaint was last uttered.
#[derive(Debug, Default)]
pub struct Complaints {
    // Protects the moments; held for one look-up.
    uttered: Mutex<HashMap<&'static str, Instant>>,
}

impl Complaints {
    /// Whether a warning of this kind is due; if so, the next one is due in a minute.
    pub fn due(&self, kind: &'static str) -> bool {
        self.due_at(kind, Instant::now())
    }

    fn due_at(&self, kind: &'static str, now: Instant) -> bool {
        let mut uttered = self.uttered.lock().unwrap_or_else(PoisonError::into_inner);
        match uttered.get(kind) {
            Some(last) if now.duration_since(*last) < QUIET => false,
            _ => {
                uttered.insert(kind, now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_due_once_a_minute() {
        let complaints = Complaints::default();
        let start = Instant::now();
        assert!(complaints.due_at("label", start));
        assert!(!complaints.due_at("label", start + QUIET / 2));
        assert!(complaints.due_at("event", start + QUIET / 2));
        assert!(complaints.due_at("label", start + QUIET));
    }
}
