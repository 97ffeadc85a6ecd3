//! What is known about every container under one dockerd: pure, no IO.
//!
//! The ledger outlives connections. Events, lists and inspections go in, wishes come out; the session does what they
//! say. A container is stated as soon as anything is known about it, and again whenever its statement changes.
//!
//! ```text
//!            create (wish: InspectLater)              start (wish: Inspect)
//!  unknown ─────────────────────────────▶ told ─────────────────────────────▶ inspected ──▶ stated with each change
//!     ▲            or a list                │                                     │
//!     └────────────── destroy ──────────────┴─────── destroy, or not listed (Withdraw)
//! ```
//!
//! Each run costs one inspection, after its `start`: never before, since dockerd answers none as long as it is starting
//! the container. One that is created and then left alone is inspected after a while.

use std::collections::{BTreeMap, HashMap};

use super::describe::{Description, Present};
use super::events::Happened;
use crate::container::{ContainerId, Exit, Health, State};
use crate::fact::Statement;
use crate::source::process::Identity;
use crate::time::BootTime;

/// SIGKILL's exit status, which is all that the OOM killer leaves behind.
const KILLED: u32 = 128 + 9;

/// What is to be done after something was applied.
#[derive(Debug, PartialEq)]
pub(super) enum Wish {
    /// State this about the container.
    State { id: ContainerId, at: BootTime, statement: Box<Statement> },
    /// Take back what was stated about it.
    Withdraw { id: ContainerId, at: BootTime },
    /// Inspect it, then call [`Ledger::inspected`].
    Inspect(ContainerId),
    /// The same, unless it is started meanwhile.
    InspectLater(ContainerId),
}

/// The containers.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: HashMap<ContainerId, Entry>,
    /// Counts events, to tell what came after what.
    events: u64,
}

#[derive(Debug, Default)]
struct Entry {
    is_inspected: bool,
    /// The last event about its runs.
    run_event: u64,
    /// The OOM killer has struck in the present run.
    out_of_memory: bool,
    /// The latest moment that the statement is about: what is stated last must never look older than what it replaces.
    at: BootTime,
    statement: Statement,
}

impl Ledger {
    /// The present moment among events, for [`Ledger::inspected`].
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// Applies one event. `describe` says what the attributes of a creation mean.
    pub(super) fn apply(
        &mut self,
        id: ContainerId,
        at: BootTime,
        what: Happened,
        describe: impl FnOnce(&ContainerId, BTreeMap<String, String>) -> Description,
    ) -> Vec<Wish> {
        self.events += 1;
        if what == Happened::Destroyed {
            let gone = self.entries.remove(&id);
            return gone.map(|entry| Wish::Withdraw { id, at: at.max(entry.at) }).into_iter().collect();
        }
        let is_known = self.entries.contains_key(&id);
        let entry = self.entries.entry(id.clone()).or_default();
        let inspect = |wish: fn(ContainerId) -> Wish| Some(wish(id.clone()));
        let (changed, wish) = match what {
            Happened::Created(attributes) if !is_known => {
                entry.describe(describe(&id, attributes));
                entry.statement.created_at = Some(at);
                (true, inspect(Wish::InspectLater))
            }
            Happened::Created(_) => (false, None),
            Happened::Started => {
                entry.run_event = self.events;
                entry.begin();
                entry.statement.state = Some(State::Running);
                entry.statement.started_at = Some(at);
                (true, inspect(Wish::Inspect))
            }
            // An inspection can be ahead of events: this end is a former run's.
            Happened::Died(_) if entry.statement.started_at.is_some_and(|started| started > at) => (false, None),
            Happened::Died(code) => {
                entry.run_event = self.events;
                entry.end(code, Some(at), None);
                (true, None)
            }
            Happened::OutOfMemory => (entry.out_of_memory(), None),
            Happened::Paused => (entry.pause(State::Paused), None),
            Happened::Unpaused => (entry.pause(State::Running), None),
            Happened::Renamed(name) => {
                let changed = entry.statement.pod.is_none() && entry.statement.name.as_ref() != Some(&name);
                if changed {
                    entry.statement.name = Some(name);
                }
                (changed, None)
            }
            Happened::Health(health) => (entry.set_health(health), None),
            // While it is not running, an inspection is due anyway, or nothing that matters has changed.
            Happened::Changed if entry.is_inspected && entry.is_live() => (false, inspect(Wish::Inspect)),
            Happened::Changed => (false, None),
            Happened::Destroyed => (false, None),
        };
        // Its creation was missed: nothing but this event is known.
        let wish = wish.or_else(|| (!is_known).then(|| Wish::Inspect(id.clone())));
        let state = changed.then(|| entry.state(id, at));
        state.into_iter().chain(wish).collect()
    }

    /// Applies a whole list. Returns statements about all that are in it; what is not in it is forgotten. What runs is
    /// wished to be inspected again if `anew`: nobody knows what happened since the last list.
    pub(super) fn listed(
        &mut self,
        at: BootTime,
        containers: Vec<(ContainerId, Description, Present)>,
        anew: bool,
    ) -> Vec<Wish> {
        let mut former = std::mem::take(&mut self.entries);
        let (mut wishes, mut running, mut others) = (vec![], vec![], vec![]);
        for (id, description, present) in containers {
            let mut entry = former.remove(&id).unwrap_or_default();
            let is_news = entry.list(description, present.state);
            let is_due = !entry.is_inspected || is_news || (anew && entry.is_live());
            match entry.statement.state {
                _ if !is_due => {}
                // It may be about to start.
                Some(State::Created) => others.push(Wish::InspectLater(id.clone())),
                Some(State::Running | State::Paused) => running.push(Wish::Inspect(id.clone())),
                _ => others.push(Wish::Inspect(id.clone())),
            }
            wishes.push(entry.state(id.clone(), at));
            self.entries.insert(id, entry);
        }
        wishes.append(&mut running);
        wishes.append(&mut others);
        wishes
    }

    /// Applies an inspection that was asked for when [`Ledger::events`] was `asked`: what events told since is newer.
    /// `identity` is that of its pid. Nothing to do if the container has gone meanwhile.
    pub(super) fn inspected(
        &mut self,
        id: ContainerId,
        at: BootTime,
        asked: u64,
        (description, present): (Description, Present),
        identity: Option<Identity>,
    ) -> Option<Wish> {
        let entry = self.entries.get_mut(&id)?;
        let former = entry.statement.clone();
        entry.describe(description);
        entry.is_inspected = true;
        if entry.run_event <= asked {
            entry.present(&present, identity);
        }
        (entry.statement != former).then(|| entry.state(id, at))
    }

    /// An inspection brought nothing, for this reason. It is wished for again with the next list.
    pub(super) fn not_inspected(&mut self, id: ContainerId, at: BootTime, reason: String) -> Option<Wish> {
        let entry = self.entries.get_mut(&id)?;
        entry.is_inspected = false;
        let missing = ("details", reason.into());
        if entry.statement.missing.contains(&missing) {
            return None;
        }
        entry.statement.missing.push(missing);
        Some(entry.state(id, at))
    }
}

impl Entry {
    fn state(&mut self, id: ContainerId, at: BootTime) -> Wish {
        self.at = self.at.max(at);
        Wish::State { id, at: self.at, statement: Box::new(self.statement.clone()) }
    }

    fn is_live(&self) -> bool {
        matches!(self.statement.state, Some(State::Running | State::Paused))
    }

    fn is_over(&self) -> bool {
        self.statement.state.is_some_and(State::is_over)
    }

    /// Takes over what does not belong to a run.
    fn describe(&mut self, description: Description) {
        let old = std::mem::replace(&mut self.statement, description.statement);
        let new = &mut self.statement;
        new.task = old.task;
        new.namespaces = old.namespaces;
        new.state = old.state.or(Some(State::Created));
        new.started_at = old.started_at;
        new.exited_at = old.exited_at;
        new.exit = old.exit;
        // The first inspection is the first to tell it exactly.
        new.created_at = match self.is_inspected {
            true => BootTime::steady(old.created_at, new.created_at),
            false => new.created_at.or(old.created_at),
        };
        if let (Some(new), Some(old)) = (&mut new.image, &old.image) {
            new.name = new.name.take().or_else(|| old.name.clone());
            new.digest = new.digest.take().or_else(|| old.digest.clone().filter(|_| new.id == old.id));
        }
        // Of a container that is over, Docker forgets where it was joined to; what it was is more worth than nothing.
        if self.is_over()
            && let (Some(new), Some(old)) = (&mut self.statement.details, old.details)
            && new.addresses.as_ref().is_some_and(|addresses| addresses.is_empty())
        {
            new.addresses = old.addresses;
        }
    }

    /// Takes over a list's entry. Returns whether it shows that something was missed.
    fn list(&mut self, description: Description, state: Option<State>) -> bool {
        let is_news = state.is_some() && self.statement.state != state;
        if is_news {
            match state {
                Some(State::Running | State::Paused) if !self.is_live() => self.begin(),
                Some(State::Exited) => self.end(None, None, None),
                _ => {}
            }
            self.statement.state = state;
        }
        if !self.is_inspected {
            // A list tells it in seconds.
            let created_at = self.statement.created_at;
            self.describe(description);
            self.statement.created_at = created_at.or(self.statement.created_at);
            return is_news;
        }
        // A list tells less than an inspection did. What can change without an event that was heard is taken over.
        let listed = description.statement;
        self.statement.name = listed.name.or(self.statement.name.take());
        if self.is_live()
            && let (Some(known), Some(listed)) = (&mut self.statement.details, listed.details)
        {
            known.health = listed.health;
            known.addresses = listed.addresses.or(known.addresses.take());
        }
        is_news
    }

    fn begin(&mut self) {
        self.out_of_memory = false;
        let statement = &mut self.statement;
        statement.task = None;
        statement.namespaces = None;
        statement.started_at = None;
        statement.exited_at = None;
        statement.exit = None;
        statement.missing.retain(|(field, _)| *field != "details");
    }

    fn end(&mut self, code: Option<u32>, at: Option<BootTime>, oom: Option<bool>) {
        self.statement.state = Some(State::Exited);
        self.statement.exited_at = BootTime::steady(self.statement.exited_at, at);
        // Docker takes the moment of a start when it has heard of it, which can be after a short life's end.
        self.statement.started_at = self.statement.started_at.map(|at| at.min(self.statement.exited_at.unwrap_or(at)));
        let Some(code) = code else { return };
        // Docker tells of any process that the OOM killer took; its init was taken only if it was killed.
        let oom = oom.map(|oom| oom && code == KILLED).or((self.out_of_memory && code == KILLED).then_some(true));
        // Whether 137 was a signal or the program's own choice, Docker does not tell.
        self.statement.exit = Some(Exit { code, signal: None, oom });
    }

    /// Takes over what an inspection says of the present run.
    fn present(&mut self, present: &Present, identity: Option<Identity>) {
        let statement = &mut self.statement;
        statement.state = present.state.or(statement.state);
        // Told again it is the same, but for the clock's wandering; an event tells it a little later than it was.
        statement.started_at = BootTime::steady(statement.started_at, present.started_at);
        match statement.state {
            Some(State::Exited) => self.end(present.exit_code, present.finished_at, present.oom),
            Some(State::Running | State::Paused) => {
                // Its pid has another holder by now, or it has ended: then an event will say so.
                statement.task = identity.map(|identity| identity.task).or(statement.task);
                statement.namespaces = identity.map(|identity| identity.namespaces).or(statement.namespaces);
                statement.exited_at = None;
                statement.exit = None;
            }
            _ => {}
        }
    }

    /// Returns whether the statement has changed.
    fn pause(&mut self, state: State) -> bool {
        let changed = !self.is_over() && self.statement.state != Some(state);
        if changed {
            self.statement.state = Some(state);
        }
        changed
    }

    /// Returns whether the statement has changed.
    fn set_health(&mut self, health: Option<Health>) -> bool {
        let Some(details) = &mut self.statement.details else { return false };
        let changed = details.health != health;
        details.health = health;
        changed
    }

    /// Returns whether the statement has changed: the news can be later than the end that it explains.
    fn out_of_memory(&mut self) -> bool {
        self.out_of_memory = true;
        match &mut self.statement.exit {
            Some(exit) if exit.code == KILLED && exit.oom != Some(true) => {
                exit.oom = Some(true);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::container::{Namespaces, TaskId};

    const AT: BootTime = BootTime(1_000_000_000_000);

    fn after(ms: u64) -> BootTime {
        BootTime(AT.0 + ms * 1_000_000)
    }

    fn id() -> ContainerId {
        ContainerId::new("c1").unwrap()
    }

    fn identity(pid: u32) -> Option<Identity> {
        let namespaces = Namespaces { mnt: pid, ..Default::default() };
        Some(Identity { task: TaskId { pid, start_ticks: 1 }, namespaces })
    }

    fn described(name: &str) -> Description {
        let statement = Statement { name: Some(name.into()), details: Some(Box::default()), ..Default::default() };
        Description { statement, left_out: 0, alias: None }
    }

    fn present(state: State) -> Present {
        Present { state: Some(state), ..Present::default() }
    }

    fn apply(ledger: &mut Ledger, ms: u64, what: Happened) -> Vec<Wish> {
        ledger.apply(id(), after(ms), what, |_, _| described("web"))
    }

    fn inspect(ledger: &mut Ledger, asked: u64, present: Present, pid: Option<u32>) -> Option<Wish> {
        ledger.inspected(id(), AT, asked, (described("web"), present), pid.and_then(identity))
    }

    /// A container that runs as this pid and was inspected.
    fn running(pid: u32) -> Ledger {
        let mut ledger = Ledger::default();
        apply(&mut ledger, 0, Happened::Created(BTreeMap::new()));
        apply(&mut ledger, 1, Happened::Started);
        let asked = ledger.events();
        inspect(&mut ledger, asked, Present { started_at: Some(after(1)), ..present(State::Running) }, Some(pid));
        ledger
    }

    fn statement(ledger: &Ledger) -> &Statement {
        &ledger.entries[&id()].statement
    }

    #[test]
    fn each_run_is_inspected_once_and_none_before_its_start() {
        let mut ledger = Ledger::default();
        let made = apply(&mut ledger, 0, Happened::Created(BTreeMap::new()));
        assert!(matches!(&made[..], [Wish::State { .. }, Wish::InspectLater(_)]), "{made:?}");
        assert_eq!(apply(&mut ledger, 1, Happened::Changed), [], "it was joined to its networks");
        let started = apply(&mut ledger, 2, Happened::Started);
        assert!(matches!(&started[..], [Wish::State { .. }, Wish::Inspect(_)]), "{started:?}");
        let mut ledger = running(7);
        for (what, wishes) in [
            (Happened::Paused, 1),
            (Happened::Paused, 0),
            (Happened::Unpaused, 1),
            (Happened::Renamed("other".into()), 1),
            (Happened::Renamed("other".into()), 0),
            (Happened::Health(Some(Health::Healthy)), 1),
            (Happened::Died(Some(0)), 1),
            (Happened::Changed, 0),
        ] {
            let told = apply(&mut ledger, 5, what.clone());
            assert!(told.len() == wishes && told.iter().all(|wish| matches!(wish, Wish::State { .. })), "{what:?}");
        }
        let again = apply(&mut ledger, 9, Happened::Started);
        assert!(matches!(&again[..], [Wish::State { .. }, Wish::Inspect(_)]), "{again:?}");
        assert_eq!((statement(&ledger).task, statement(&ledger).exit), (None, None), "another run");
        assert!(matches!(&apply(&mut ledger, 10, Happened::Destroyed)[..], [Wish::Withdraw { .. }]));
        assert_eq!(apply(&mut ledger, 11, Happened::Destroyed), []);
    }

    #[test]
    fn an_end_is_the_run_s_that_it_ended() {
        let mut ledger = running(7);
        // An inspection was ahead of the events: it has told of the second run.
        let asked = ledger.events();
        let second = Present { started_at: Some(after(5_000)), ..present(State::Running) };
        inspect(&mut ledger, asked, second, Some(8));
        assert_eq!(apply(&mut ledger, 4_000, Happened::Died(Some(1))), []);
        assert_eq!(statement(&ledger).state, Some(State::Running));
        // And one that was asked for before the end tells of a run that is over.
        let asked = ledger.events();
        apply(&mut ledger, 6_000, Happened::Died(Some(2)));
        inspect(&mut ledger, asked, present(State::Running), Some(8));
        assert_eq!((statement(&ledger).state, statement(&ledger).exit.unwrap().code), (Some(State::Exited), 2));
    }

    #[test]
    fn only_a_kill_is_for_memory_whenever_that_is_told() {
        for (events, expected) in [
            (vec![Happened::OutOfMemory, Happened::Died(Some(137))], Some(true)),
            (vec![Happened::Died(Some(137)), Happened::OutOfMemory], Some(true)),
            (vec![Happened::OutOfMemory, Happened::Died(Some(1))], None),
            (vec![Happened::Died(Some(137))], None),
        ] {
            let mut ledger = running(7);
            for (ms, what) in (10..).zip(events.clone()) {
                apply(&mut ledger, ms, what);
            }
            assert_eq!(statement(&ledger).exit.unwrap().oom, expected, "{events:?}");
        }
        let mut ledger = running(7);
        let asked = ledger.events();
        let killed = Present { exit_code: Some(137), oom: Some(true), ..present(State::Exited) };
        inspect(&mut ledger, asked, killed, None);
        assert_eq!(statement(&ledger).exit.unwrap().oom, Some(true));
    }

    #[test]
    fn a_short_life_does_not_end_before_it_starts() {
        let mut ledger = Ledger::default();
        apply(&mut ledger, 0, Happened::Started);
        let asked = ledger.events();
        let over = Present {
            started_at: Some(after(9_000)),
            finished_at: Some(after(8_990)),
            exit_code: Some(0),
            ..present(State::Exited)
        };
        inspect(&mut ledger, asked, over, None);
        let statement = statement(&ledger);
        assert_eq!((statement.started_at, statement.exited_at), (Some(after(8_990)), Some(after(8_990))));
    }

    #[test]
    fn a_list_repairs_what_was_missed_and_keeps_what_is_known() {
        let list = |ledger: &mut Ledger, state, anew| {
            let wishes = ledger.listed(after(9), vec![(id(), described("web"), present(state))], anew);
            assert!(matches!(&wishes[0], Wish::State { .. }));
            wishes.into_iter().skip(1).collect::<Vec<_>>()
        };
        let mut same = running(7);
        assert_eq!(list(&mut same, State::Running, false), []);
        assert_eq!(statement(&same).task.unwrap().pid, 7);
        assert_eq!(list(&mut same, State::Running, true), [Wish::Inspect(id())], "it may be another run");
        assert_eq!(list(&mut same, State::Exited, false), [Wish::Inspect(id())], "how it ended is not told");
        assert_eq!((statement(&same).state, statement(&same).exit), (Some(State::Exited), None));
        assert_eq!(list(&mut same, State::Running, false), [Wish::Inspect(id())]);
        assert_eq!(statement(&same).task, None, "another run");
        assert_eq!(list(&mut Ledger::default(), State::Created, true), [Wish::InspectLater(id())]);

        let mut stuck = running(7);
        assert!(stuck.not_inspected(id(), after(10), "no answer".into()).is_some());
        assert_eq!(stuck.not_inspected(id(), after(10), "no answer".into()), None, "said once");
        assert_eq!(list(&mut stuck, State::Running, false), [Wish::Inspect(id())]);
        assert_eq!(stuck.listed(after(11), vec![], false), []);
        assert!(stuck.entries.is_empty());
    }

    proptest! {
        /// Whatever the order: an end has no process that goes on, and moments never go back.
        #[test]
        fn any_order_of_events_is_survived(events in prop::collection::vec((0..12_u8, 0..1_000_u64), 0..40)) {
            let mut ledger = Ledger::default();
            let mut last = BootTime::ZERO;
            for (kind, ms) in events {
                let what = match kind {
                    0 => Happened::Created(BTreeMap::new()),
                    1 | 2 => Happened::Started,
                    3 => Happened::Died(Some(137)),
                    4 => Happened::Died(None),
                    5 => Happened::OutOfMemory,
                    6 => Happened::Paused,
                    7 => Happened::Unpaused,
                    8 => Happened::Renamed("n".into()),
                    9 => Happened::Health(None),
                    10 => Happened::Changed,
                    _ => Happened::Destroyed,
                };
                for wish in apply(&mut ledger, ms, what) {
                    match wish {
                        Wish::State { at, statement, .. } => {
                            prop_assert!(at >= last);
                            last = at;
                            prop_assert!(statement.exit.is_none() || statement.state == Some(State::Exited));
                            prop_assert!(statement.exited_at.is_none() || statement.started_at <= statement.exited_at);
                        }
                        Wish::Withdraw { at, .. } => {
                            prop_assert!(at >= last);
                            last = BootTime::ZERO;
                        }
                        Wish::Inspect(_) | Wish::InspectLater(_) => {}
                    }
                }
            }
        }
    }
}
