//! Which containers are to be inspected, and when. Pure.
//!
//! Bounded by the number of containers: one that waits already is not added again.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::container::ContainerId;

/// How long one that was created may be left alone before it is inspected: most are started at once, and are inspected
/// then.
const LATER: Duration = Duration::from_secs(2);

/// Containers that wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    now: VecDeque<ContainerId>,
    /// In the order in which they are due.
    later: VecDeque<(Instant, ContainerId)>,
    waiting: HashSet<ContainerId>,
}

impl Queue {
    /// It is to be inspected as soon as possible.
    pub(super) fn add(&mut self, id: ContainerId) {
        if !self.waiting.insert(id.clone()) {
            if self.now.contains(&id) {
                return;
            }
            self.later.retain(|(_, waiting)| *waiting != id);
        }
        self.now.push_back(id);
    }

    /// It is to be inspected after a while.
    pub(super) fn add_later(&mut self, id: ContainerId, now: Instant) {
        if self.waiting.insert(id.clone()) {
            self.later.push_back((now + LATER, id));
        }
    }

    /// It is gone.
    pub(super) fn remove(&mut self, id: &ContainerId) {
        if self.waiting.remove(id) {
            self.now.retain(|waiting| waiting != id);
            self.later.retain(|(_, waiting)| waiting != id);
        }
    }

    /// When one becomes due that is not yet.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.later.front().map(|(due, _)| *due)
    }

    /// The next one to be inspected.
    pub(super) fn next(&mut self, now: Instant) -> Option<ContainerId> {
        let id = match self.now.pop_front() {
            Some(id) => id,
            None if self.next_due()? <= now => self.later.pop_front()?.1,
            None => return None,
        };
        self.waiting.remove(&id);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ContainerId {
        ContainerId::new(name).unwrap()
    }

    #[test]
    fn one_that_is_started_does_not_wait() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for name in ["a", "b", "c"] {
            queue.add_later(id(name), now);
        }
        queue.add(id("b"));
        queue.add(id("b"));
        queue.add_later(id("b"), now);
        queue.remove(&id("a"));
        assert_eq!((queue.next(now), queue.next(now)), (Some(id("b")), None));
        assert_eq!(queue.next_due(), Some(now + LATER));
        assert_eq!((queue.next(now + LATER), queue.next(now + LATER)), (Some(id("c")), None));
        assert_eq!(queue.next_due(), None);
    }
}
