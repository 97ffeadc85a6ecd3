//! Turns of nested callers: how many of them are looked at at a time, and for how long.
//!
//! What runs inside a container is trusted less than the host's root, and may well put something in our way that never
//! answers: its argument list on a page that it withholds, its bundle on a file system of its own. That must cost the host
//! nothing. So nested callers together get [`MOST_TURNS`] turns, half as many as threads may be lost; and who is looked at
//! without end is let go by the supervisor before the keeper's budget is over, for then the keeper would let go the
//! host's starts, too, until it hears from us.
//!
//! Leaves to others: looking, and answering in time ([`held`](super::held)).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::line::Deputy;
use super::pool::MOST_LOST;

/// Most turns at a time; further callers are let go unread.
const MOST_TURNS: usize = MOST_LOST / 2;

/// How long a nested caller is held for, of a budget.
pub(super) fn budget_of(budget: Duration) -> Duration {
    budget / 2
}

/// When the supervisor lets a nested caller go that nobody has answered.
fn end_of(budget: Duration) -> Duration {
    budget * 3 / 4
}

/// All turns.
#[derive(Debug, Default)]
pub(super) struct Turns {
    // Protects the turns; held for moments.
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    turns: HashMap<u64, Option<Held>>,
    next: u64,
}

/// Who answers for a task that is held, and when.
#[derive(Debug)]
struct Held {
    deputy: Deputy,
    until: Instant,
}

/// One turn; over when dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    number: u64,
}

impl Turns {
    /// A turn to look at a held task, if there is one left.
    pub(super) fn take_for(&self, deputy: Deputy, since: Instant, budget: Duration) -> Option<Turn<'_>> {
        self.take_turn(Some(Held { deputy, until: since + end_of(budget) }))
    }

    /// A turn to look at what nobody is held for.
    pub(super) fn take(&self) -> Option<Turn<'_>> {
        self.take_turn(None)
    }

    fn take_turn(&self, held: Option<Held>) -> Option<Turn<'_>> {
        let mut open = self.lock();
        if open.turns.len() >= MOST_TURNS {
            return None;
        }
        open.next += 1;
        let number = open.next;
        open.turns.insert(number, held);
        Some(Turn { turns: self, number })
    }

    /// When to call [`Turns::let_go`] next.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.lock().turns.values().flatten().map(|held| held.until).min()
    }

    /// Lets go every task that has been looked at for too long. The turn goes on: its thread may be lost.
    pub(super) fn let_go(&self, now: Instant) {
        for held in self.lock().turns.values_mut() {
            if let Some(over) = held.take_if(|held| held.until <= now) {
                over.deputy.dismiss();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.lock().turns.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::barrier::line::Line;
    use crate::barrier::wire::{self, Message, Received};

    #[test]
    fn there_are_so_many_turns_and_no_more() {
        let turns = Turns::default();
        let mut taken: Vec<Turn<'_>> = (0..MOST_TURNS).map(|_| turns.take().unwrap()).collect();
        assert!(turns.take().is_none());
        taken.pop();
        assert!(turns.take().is_some());
    }

    #[test]
    fn a_task_looked_at_for_too_long_is_let_go_once() {
        let (ours, theirs) = wire::pair().unwrap();
        let (turns, line) = (Turns::default(), Line::new(ours));
        let (since, budget) = (Instant::now(), Duration::from_secs(1));
        let turn = turns.take_for(Deputy::new(Arc::clone(&line), 7), since, budget).unwrap();
        let end = turns.next_end().unwrap();
        assert!(since + budget_of(budget) < end && end < since + budget);
        let heard = || wire::receive(std::os::fd::AsFd::as_fd(&theirs));
        turns.let_go(end - Duration::from_nanos(1));
        assert!(matches!(heard(), Received::Nothing));
        turns.let_go(end);
        assert!(matches!(heard(), Received::Message(Message::Allow { event: 7 }, None)));
        turns.let_go(end);
        assert!(matches!(heard(), Received::Nothing) && turns.next_end().is_none());
        drop(turn);
    }
}
