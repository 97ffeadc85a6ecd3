//! Whom the keeper holds, for how long, and when it stops waiting: the rules alone, without kernel, clock or socket.
//!
//! ```text
//!            ┌──────────── an answer of the tracker ───────────┐
//!            ▼                                                 │
//!        patient ── the first event outlives its budget ──▶ impatient
//!      (holds events)                                  (lets everything go at once)
//! ```
//!
//! Promises: no event is held longer than the budget, at most [`MOST_HELD`] are held, and each is released exactly once.

/// Most events held at a time. One more makes room by letting the oldest go: it has had the longest chance.
pub(crate) const MOST_HELD: usize = 64;

/// Moments and times are nanoseconds of `CLOCK_MONOTONIC`.
type Nanos = u64;

/// A held event: its number, the moment it was read, and what is needed to answer it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Held<T> {
    pub(crate) event: u64,
    since: Nanos,
    pub(crate) task: T,
}

/// The held events, oldest first.
#[derive(Debug)]
pub(crate) struct Custody<T> {
    budget: Nanos,
    held: Vec<Held<T>>,
    impatient: bool,
    let_go: u64,
}

impl<T> Custody<T> {
    pub(crate) fn new(budget: Nanos) -> Self {
        Self { budget, held: Vec::with_capacity(MOST_HELD), impatient: false, let_go: 0 }
    }

    /// Whether the next event is to be let go at once.
    pub(crate) fn is_impatient(&self) -> bool {
        self.impatient
    }

    /// Events let go before the tracker answered.
    pub(crate) fn let_go(&self) -> u64 {
        self.let_go
    }

    /// Counts an event that was answered without being held.
    pub(crate) fn passed(&mut self) {
        self.let_go += 1;
    }

    /// Holds one more; returns the oldest when there are too many.
    pub(crate) fn hold(&mut self, event: u64, now: Nanos, task: T) -> Option<Held<T>> {
        let oldest = (self.held.len() >= MOST_HELD).then(|| self.held.remove(0));
        self.let_go += u64::from(oldest.is_some());
        self.held.push(Held { event, since: now, task });
        oldest
    }

    /// The tracker answered `event`: patience is back, and the event is returned if it was still held.
    pub(crate) fn answered(&mut self, event: u64) -> Option<Held<T>> {
        self.impatient = false;
        let at = self.held.iter().position(|held| held.event == event)?;
        Some(self.held.remove(at))
    }

    /// One event whose budget is over, if there is one. Ends all patience: after the first, those still held are over too.
    pub(crate) fn expired(&mut self, now: Nanos) -> Option<Held<T>> {
        let oldest = self.held.first()?;
        if !self.impatient && now < oldest.since.saturating_add(self.budget) {
            return None;
        }
        self.impatient = true;
        self.let_go += 1;
        Some(self.held.remove(0))
    }

    /// When to look for expired events again; `None` while nothing is held.
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        self.held.first().map(|oldest| oldest.since.saturating_add(self.budget))
    }

    /// All that are held, for the end.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Held<T>> + '_ {
        self.held.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUDGET: Nanos = 200;

    #[test]
    fn the_first_expiry_lets_all_go_until_an_answer() {
        let mut custody = Custody::new(BUDGET);
        custody.hold(1, 0, ());
        custody.hold(2, 150, ());
        assert_eq!(custody.deadline(), Some(200));
        assert!(custody.expired(199).is_none());
        assert_eq!(custody.expired(200).map(|held| held.event), Some(1));
        assert_eq!(custody.expired(200).map(|held| held.event), Some(2));
        assert!(custody.is_impatient());
        assert!(custody.answered(1).is_none(), "it has been let go");
        assert!(!custody.is_impatient());
        assert_eq!(custody.let_go(), 2);
    }

    #[test]
    fn one_too_many_frees_the_oldest() {
        let mut custody = Custody::new(BUDGET);
        assert!((0..MOST_HELD as u64).all(|event| custody.hold(event, event, ()).is_none()));
        assert_eq!(custody.hold(99, 99, ()).map(|held| held.event), Some(0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Hold,
        Answer(u64),
        Wait(Nanos),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![Just(Step::Hold), (0u64..80).prop_map(Step::Answer), (0u64..150).prop_map(Step::Wait)]
    }

    proptest! {
        #[test]
        fn each_event_is_released_once_and_within_its_budget(steps in prop::collection::vec(step(), 0..200)) {
            let mut custody = Custody::new(BUDGET);
            let (mut now, mut next, mut released) = (0, 0, Vec::new());
            for step in steps {
                match step {
                    Step::Hold => {
                        released.extend(custody.hold(next, now, ()).map(|held| held.event));
                        next += 1;
                    }
                    Step::Answer(event) => released.extend(custody.answered(event).map(|held| held.event)),
                    Step::Wait(time) => {
                        now += time;
                        while let Some(held) = custody.expired(now) {
                            released.push(held.event);
                        }
                        prop_assert!(custody.deadline().is_none_or(|deadline| deadline > now));
                    }
                }
                prop_assert!(custody.held.len() <= MOST_HELD);
            }
            released.extend(custody.drain().map(|held| held.event));
            released.sort_unstable();
            prop_assert_eq!(released, (0..next).collect::<Vec<_>>());
        }
    }
}
