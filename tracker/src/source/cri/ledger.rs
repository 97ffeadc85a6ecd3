//! What is known about every sandbox and container of one CRI server, and what is still to be asked: pure, no IO.
//!
//! Lists, statuses and hints go in; what to state and whom to ask about comes out. Each of them says how far in its life
//! something is (its *phase*); a status is asked for when somebody says a phase that no status has told yet:
//!
//! ```text
//!             claimed by a list, an event or a hint         told by a status
//!   phase:    Created ──▶ Running ──▶ Over          ≥       Created ──▶ Running ──▶ Over
//!                 claimed > told: ask (a hint is given time to come true)
//! ```
//!
//! So a container costs one status while it runs and one when it is over, whatever the number of hints, and a third one
//! where the server was once behind what the kernel showed. After that a list decides: what the server lists, it knows.
//! A sandbox costs one status: of its end a status tells nothing that a row or an event does not, and that it has no exit.
//! Nothing is stated of what no status was asked for: the rest of it would be missing, and nobody would know that it is
//! to come.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::describe::Description;
use crate::container::{Address, ContainerId, ContainerKey, Domain, Kind, Pod, Str};
use crate::enrich::kubelet::{POD_NAME, POD_NAMESPACE, POD_UID};
use crate::fact::Statement;
use crate::source::process::Identity;
use crate::time::BootTime;

/// How long after a hint the server is asked: it learns of a start when the OCI runtime has returned, which is some
/// milliseconds after the kernel has seen it.
const SETTLE: Duration = Duration::from_millis(200);
/// After an answer that was behind a hint, it is asked again this much later: once in a life.
const RETRY: Duration = Duration::from_secs(1);
/// How long after a status that could not be had the next one is asked for.
const AGAIN: Duration = Duration::from_secs(60);
/// Containers and sandboxes of one server.
pub(super) const MAX_ENTRIES: usize = 100_000;

/// How far in its life something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    #[default]
    Created,
    Running,
    Over,
}

/// What a sandbox knows for the containers of its pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct OfPod {
    pub pod: Pod,
    pub addresses: Option<Arc<[Address]>>,
    pub hostname: Option<Str>,
    pub host_network: Option<bool>,
}

/// Whom a status is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    Sandbox(ContainerId),
    Container(ContainerId),
}

/// A sign of life from somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hint {
    pub id: ContainerId,
    pub kind: Kind,
    pub phase: Phase,
    /// The sandbox of its pod.
    pub sandbox_id: Option<Str>,
}

/// Why there is no status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoStatus {
    /// There is no such thing.
    Gone,
    /// There is no such thing here, and another server has it.
    Elsewhere,
    /// The server cannot tell at present.
    Failed(Str),
}

/// A status, and what was found out about the process that it names.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub description: Description,
    pub identity: Option<Identity>,
    /// Whose id it is, where each has its own; absent where nobody tells.
    pub scope: Option<Str>,
}

/// What is to be stated.
#[derive(Debug, PartialEq)]
pub(super) enum Wish {
    State { key: ContainerKey, at: BootTime, statement: Box<Statement> },
    Withdraw { key: ContainerKey, at: BootTime },
}

/// All that is known.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    domain: Domain,
    /// Whose ids they are, where all of them are one's.
    scope: Option<Str>,
    entries: HashMap<ContainerId, Entry>,
    /// Who is to be asked about, and when.
    due: BTreeSet<(Instant, ContainerId)>,
    /// Somebody knows more than the server told when it was asked.
    wants_list: bool,
    /// Who is asked once more for that reason.
    behind: u64,
}

#[derive(Debug)]
struct Entry {
    kind: Kind,
    claimed: Phase,
    told: Option<Phase>,
    /// Whether an answer was behind a hint, and it was asked again.
    was_retried: bool,
    /// When it is asked about; in [`Ledger::due`], too.
    due: Option<Instant>,
    /// Whether a list has shown it.
    is_listed: bool,
    /// When the server was last asked something to which it answered that this is there.
    seen: Option<BootTime>,
    scope: Option<Str>,
    /// The newest row or status.
    said: Statement,
    of_pod: Option<OfPod>,
    /// The latest moment that was stated: what is stated last must never look older than what it replaces.
    at: BootTime,
    /// What was stated last.
    stated: Option<Box<Statement>>,
}

impl Ledger {
    pub(super) fn new(domain: Domain) -> Self {
        Self { domain, ..Self::default() }
    }

    /// Whom the server may speak for.
    pub(super) fn domain(&self) -> Domain {
        self.domain
    }

    /// A new connection: `scope` is whose ids they are, where all of them are one's. What was being asked on the former
    /// one has no answer; what nobody but a hint told of is left to the list.
    pub(super) fn begin(&mut self, scope: Option<Str>) {
        self.scope = scope;
        self.due.clear();
        self.entries.retain(|_, entry| entry.seen.is_some());
        for entry in self.entries.values_mut() {
            entry.due = None;
            // The list asks about it, unless it is as it was.
            entry.claimed = entry.told.unwrap_or_default();
        }
    }

    /// Takes over a whole list that was asked for at `asked`. Returns what has changed; what is no longer there is
    /// withdrawn.
    pub(super) fn listed(&mut self, at: BootTime, asked: Instant, rows: Vec<(ContainerId, Description)>) -> Vec<Wish> {
        let mut wishes = vec![];
        let mut listed: HashMap<ContainerId, Description> = rows.into_iter().take(MAX_ENTRIES).collect();
        // What the server told of after it was asked for the list may be younger than that; what it has not told of at all
        // is still being asked about.
        let is_older = |entry: &Entry| entry.seen.is_some_and(|seen| seen < at);
        let gone = self.entries.iter().filter(|(id, entry)| !listed.contains_key(*id) && is_older(entry));
        let gone: Vec<ContainerId> = gone.map(|(id, _)| id.clone()).collect();
        for id in gone {
            wishes.extend(self.forget(&id, at));
        }
        for (id, row) in listed.drain() {
            let kind = row.statement.kind.unwrap_or_default();
            let entry = self.entries.entry(id.clone()).or_insert_with(|| Entry::new(kind));
            entry.is_listed = true;
            entry.seen = entry.seen.max(Some(at));
            entry.kind = kind;
            if entry.lacks(row.phase) {
                entry.claimed = entry.claimed.max(row.phase);
                self.schedule(&id, asked);
            }
            let entry = self.entries.get_mut(&id).expect("it was put in above");
            if entry.told.is_none() {
                entry.said = row.statement;
                entry.of_pod = row.of_pod;
            } else {
                entry.amend(row);
                wishes.extend(self.state(&id, at));
            }
        }
        wishes
    }

    /// Somebody else has seen it in this phase.
    pub(super) fn hinted(&mut self, hint: Hint, now: Instant, settle: bool) {
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(&hint.id) {
            return;
        }
        let entry = self.entries.entry(hint.id.clone()).or_insert_with(|| Entry::new(hint.kind));
        if !entry.is_listed && entry.told.is_none() {
            entry.kind = hint.kind;
        }
        if let Some(sandbox_id) = hint.sandbox_id
            && entry.told.is_none()
        {
            entry.said.pod.get_or_insert_default().sandbox_id.get_or_insert(sandbox_id);
        }
        if entry.lacks(hint.phase) && (entry.claimed < hint.phase || entry.due.is_none()) {
            entry.claimed = entry.claimed.max(hint.phase);
            self.schedule(&hint.id, if settle { now + SETTLE } else { now });
        }
    }

    /// The server says that a sandbox is over, which is all that there is to tell of it.
    pub(super) fn sandbox_over(&mut self, id: &ContainerId, at: BootTime) -> Option<Wish> {
        self.entries.get_mut(id)?.end_sandbox(Phase::Over);
        self.entries[id].told.is_some().then(|| self.state(id, at)).flatten()
    }

    /// The server says that it has gone.
    pub(super) fn removed(&mut self, id: &ContainerId, at: BootTime) -> Option<Wish> {
        self.forget(id, at)
    }

    /// Whom to ask about now: at most `max`.
    pub(super) fn ask(&mut self, now: Instant, max: usize) -> Vec<Subject> {
        let mut subjects = vec![];
        while subjects.len() < max
            && let Some((due, _)) = self.due.first()
            && *due <= now
            && let Some((_, id)) = self.due.pop_first()
        {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.due = None;
            subjects.push(if entry.kind == Kind::Sandbox { Subject::Sandbox(id) } else { Subject::Container(id) });
        }
        subjects
    }

    /// Whether a list is to decide about what hints and answers disagree on; not again until they do.
    pub(super) fn takes_list(&mut self) -> bool {
        std::mem::take(&mut self.wants_list)
    }

    /// How many are asked once more, since the server was behind what others had seen; not again until there are more.
    pub(super) fn takes_behind(&mut self) -> u64 {
        std::mem::take(&mut self.behind)
    }

    /// When there is next somebody to ask about.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Takes over a status that was asked for at `at`. Returns what has changed.
    pub(super) fn answered(
        &mut self,
        id: &ContainerId,
        at: BootTime,
        now: Instant,
        answer: Result<Told, NoStatus>,
    ) -> Vec<Wish> {
        let Some(entry) = self.entries.get_mut(id) else { return vec![] };
        let is_behind = match answer {
            Ok(Told { description, identity, scope }) => {
                entry.told = Some(description.phase);
                entry.seen = entry.seen.max(Some(at));
                entry.scope = scope.or(entry.scope.take());
                entry.take(description, identity);
                entry.lacks(entry.claimed)
            }
            // It was heard of alone, and the server does not know it yet.
            Err(NoStatus::Gone) if !entry.is_listed && entry.told.is_none() && entry.claimed < Phase::Over => true,
            // Whoever is over by the word of others, and not known, was removed before anybody could ask.
            Err(NoStatus::Gone | NoStatus::Elsewhere) => return self.forget(id, at).into_iter().collect(),
            Err(NoStatus::Failed(reason)) => {
                let what = ("details", reason);
                entry.said.missing.retain(|(field, _)| *field != what.0);
                entry.said.missing.push(what);
                // Asked again later, and meanwhile told as far as it is known.
                self.schedule(id, now + AGAIN);
                return if self.entries[id].is_listed { self.state(id, at).into_iter().collect() } else { vec![] };
            }
        };
        if is_behind && !std::mem::replace(&mut entry.was_retried, true) {
            self.behind += 1;
            self.schedule(id, now + RETRY);
        } else if is_behind {
            // Whoever claimed more was wrong, or the list brings it.
            entry.claimed = entry.told.unwrap_or_default();
            self.wants_list = true;
            if self.entries[id].told.is_none() {
                self.forget(id, at);
                return vec![];
            }
        }
        if self.entries[id].told.is_none() {
            return vec![];
        }
        let mut wishes: Vec<Wish> = self.state(id, at).into_iter().collect();
        if self.entries[id].kind == Kind::Sandbox {
            let of_it = |entry: &Entry| entry.stated.is_some() && entry.sandbox_id() == Some(id.as_str());
            let containers = self.entries.iter().filter(|(other, entry)| *other != id && of_it(entry));
            let containers: Vec<ContainerId> = containers.map(|(other, _)| other.clone()).collect();
            wishes.extend(containers.iter().filter_map(|container| self.state(container, at)));
        }
        wishes
    }

    /// Everything is asked about anew: another version of the server may say more.
    pub(super) fn ask_anew(&mut self) {
        for entry in self.entries.values_mut() {
            entry.told = None;
        }
    }

    /// All keys that were stated.
    pub(super) fn keys(&self) -> Vec<ContainerKey> {
        let stated = self.entries.iter().filter(|(_, entry)| entry.stated.is_some());
        stated.filter_map(|(id, entry)| self.key(id, entry)).collect()
    }

    /// Whether there are some that cannot be stated, since nobody tells whose ids theirs are.
    pub(super) fn has_nameless(&self) -> bool {
        let is_nameless = |entry: &Entry| entry.told == Some(Phase::Running) && entry.scope.is_none();
        self.scope.is_none() && self.entries.values().any(is_nameless)
    }

    /// As whose it is known, as far as that is known.
    pub(super) fn key_of(&self, id: &ContainerId) -> Option<ContainerKey> {
        self.key(id, self.entries.get(id)?)
    }

    fn key(&self, id: &ContainerId, entry: &Entry) -> Option<ContainerKey> {
        let scope = self.scope.clone().or_else(|| entry.scope.clone())?;
        Some(ContainerKey { domain: self.domain, scope, id: id.clone() })
    }

    fn schedule(&mut self, id: &ContainerId, when: Instant) {
        if let Some(entry) = self.entries.get_mut(id) {
            if let Some(former) = entry.due.replace(when) {
                self.due.remove(&(former, id.clone()));
            }
            self.due.insert((when, id.clone()));
        }
    }

    fn forget(&mut self, id: &ContainerId, at: BootTime) -> Option<Wish> {
        let entry = self.entries.remove(id)?;
        if let Some(due) = entry.due {
            self.due.remove(&(due, id.clone()));
        }
        entry.stated.as_ref()?;
        Some(Wish::Withdraw { key: self.key(id, &entry)?, at: at.max(entry.at) })
    }

    /// States it, if that is news.
    fn state(&mut self, id: &ContainerId, at: BootTime) -> Option<Wish> {
        let entry = self.entries.get(id)?;
        let of_pod = entry.sandbox_id().and_then(|sandbox| {
            let sandbox = ContainerId::new(sandbox).ok()?;
            self.entries.get(&sandbox)?.of_pod.clone()
        });
        let key = self.key(id, entry)?;
        let statement = Box::new(entry.composed(of_pod));
        let entry = self.entries.get_mut(id)?;
        if entry.stated.as_ref() == Some(&statement) {
            return None;
        }
        entry.at = entry.at.max(at);
        entry.stated = Some(statement.clone());
        Some(Wish::State { key, at: entry.at, statement })
    }
}

impl Entry {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            claimed: Phase::default(),
            told: None,
            was_retried: false,
            due: None,
            is_listed: false,
            seen: None,
            scope: None,
            said: Statement::default(),
            of_pod: None,
            at: BootTime::ZERO,
            stated: None,
        }
    }

    /// Whether it takes a status to tell of this phase.
    fn lacks(&self, phase: Phase) -> bool {
        match self.told {
            None => true,
            Some(told) if self.kind == Kind::Sandbox => told < phase.min(Phase::Running),
            Some(told) => told < phase,
        }
    }

    /// Takes over that a sandbox whose status is known is in this phase, if that is its end.
    fn end_sandbox(&mut self, phase: Phase) {
        if self.kind == Kind::Sandbox && phase == Phase::Over && self.told.is_some() {
            self.told = Some(phase);
            self.said.state = Some(phase.state());
        }
    }

    fn sandbox_id(&self) -> Option<&str> {
        self.said.pod.as_ref()?.sandbox_id.as_deref()
    }

    /// Takes over a status. What only a row or a former status told stays: the process of one that has ended is not named
    /// any more.
    fn take(&mut self, description: Description, identity: Option<Identity>) {
        let former = std::mem::replace(&mut self.said, description.statement);
        let said = &mut self.said;
        let of_former = |identity: Identity| (identity.task, identity.namespaces);
        let (task, namespaces) = identity.map(of_former).unzip();
        (said.task, said.namespaces) = (task.or(former.task), namespaces.or(former.namespaces));
        said.created_at = steady(former.created_at, said.created_at);
        said.started_at = steady(former.started_at, said.started_at);
        said.exited_at = steady(former.exited_at, said.exited_at);
        if let (Some(pod), Some(former)) = (&mut said.pod, former.pod) {
            pod.sandbox_id = pod.sandbox_id.take().or(former.sandbox_id);
        }
        if let (Some(image), Some(former)) = (&mut said.image, former.image) {
            image.id = image.id.take().or(former.id);
        }
        self.of_pod = description.of_pod;
    }

    /// Takes over what may have changed in a row of one whose status is known.
    fn amend(&mut self, row: Description) {
        self.end_sandbox(row.phase);
        let has_image_id = self.said.image.as_ref().is_some_and(|image| image.id.is_some());
        if let Some(image) = row.statement.image.filter(|_| !has_image_id) {
            self.said.image.get_or_insert_default().id = image.id;
        }
        if let Some(pod) = row.statement.pod {
            let own = self.said.pod.get_or_insert_default();
            own.sandbox_id = own.sandbox_id.take().or(pod.sandbox_id);
        }
    }

    /// What it says itself, and what its sandbox says for the whole pod.
    fn composed(&self, of_pod: Option<OfPod>) -> Statement {
        let mut statement = self.said.clone();
        if self.kind == Kind::Sandbox {
            return statement;
        }
        let label = |key: &str| statement.labels.as_ref()?.get(key).cloned();
        let of_labels =
            Pod { name: label(POD_NAME), namespace: label(POD_NAMESPACE), uid: label(POD_UID), ..Pod::default() };
        let sandbox_id = self.sandbox_id().map(Str::from);
        let OfPod { pod, addresses, hostname, host_network } =
            of_pod.unwrap_or_else(|| OfPod { pod: of_labels, ..OfPod::default() });
        statement.pod = Some(Pod { sandbox_id, ..pod });
        statement.host_network = statement.host_network.or(host_network);
        let details = statement.details.get_or_insert_default();
        details.addresses = addresses;
        details.hostname = details.hostname.take().or(hostname);
        statement
    }
}

/// The moment known before, if the new one is the same but for the wall clock's wandering: a moment that is told again
/// must not look like a change.
fn steady(old: Option<BootTime>, new: Option<BootTime>) -> Option<BootTime> {
    const WANDERING_NS: u64 = 1_000_000_000;
    match (old, new) {
        (Some(old), Some(new)) if old.0.abs_diff(new.0) < WANDERING_NS => Some(old),
        (old, None) => old,
        (_, new) => new,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::container::State;
    use crate::enrich::scope;

    fn id(name: &str) -> ContainerId {
        ContainerId::new(name).unwrap()
    }

    fn at(ms: u64) -> BootTime {
        BootTime(1_000_000_000 + ms * 1_000_000)
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(Domain::Host);
        ledger.begin(Some(scope::containerd("k8s.io")));
        ledger
    }

    fn described(kind: Kind, phase: Phase) -> Description {
        let state = match phase {
            Phase::Created => State::Created,
            Phase::Running => State::Running,
            Phase::Over => State::Exited,
        };
        let pod = Some(Pod { sandbox_id: Some("s1".into()), ..Pod::default() });
        let of_pod = (kind == Kind::Sandbox)
            .then(|| OfPod { pod: Pod { name: Some("web".into()), ..Pod::default() }, ..OfPod::default() });
        let statement = Statement { kind: Some(kind), state: Some(state), pod, ..Statement::default() };
        Description { statement, phase, of_pod, ..Description::default() }
    }

    fn told(kind: Kind, phase: Phase) -> Result<Told, NoStatus> {
        Ok(Told { description: described(kind, phase), ..Told::default() })
    }

    fn hint(name: &str, phase: Phase) -> Hint {
        Hint { id: id(name), kind: Kind::Container, phase, sandbox_id: Some("s1".into()) }
    }

    fn stated(wishes: &[Wish]) -> Vec<(String, Option<State>)> {
        let state = |wish: &Wish| match wish {
            Wish::State { key, statement, .. } => (key.id.to_string(), statement.state),
            Wish::Withdraw { key, .. } => (key.id.to_string(), None),
        };
        wishes.iter().map(state).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_life_is_asked_about_twice_whatever_is_hinted() {
        let (mut ledger, now) = (ledger(), Instant::now());
        for _ in 0..5 {
            ledger.hinted(hint("c1", Phase::Running), now, true);
        }
        assert_eq!(ledger.ask(now, 4), [], "it is given time to come true");
        let settled = now + SETTLE;
        assert_eq!(ledger.ask(settled, 4), [Subject::Container(id("c1"))]);
        let wishes = ledger.answered(&id("c1"), at(1), settled, told(Kind::Container, Phase::Running));
        assert_eq!(stated(&wishes), [("c1".to_owned(), Some(State::Running))]);
        ledger.hinted(hint("c1", Phase::Running), settled, true);
        assert_eq!(ledger.next_due(), None, "that is known");
        ledger.hinted(hint("c1", Phase::Over), settled, false);
        assert_eq!(ledger.ask(settled, 4).len(), 1);
        let wishes = ledger.answered(&id("c1"), at(2), settled, told(Kind::Container, Phase::Over));
        assert_eq!(stated(&wishes), [("c1".to_owned(), Some(State::Exited))]);
        assert_eq!(
            stated(&ledger.removed(&id("c1"), at(3)).into_iter().collect::<Vec<_>>()),
            [("c1".to_owned(), None)]
        );
        assert_eq!(ledger.removed(&id("c1"), at(3)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_behind_is_asked_once_more_and_then_a_list_decides() {
        let (mut ledger, now) = (ledger(), Instant::now());
        ledger.hinted(hint("c1", Phase::Running), now, false);
        assert_eq!(ledger.ask(now, 4).len(), 1);
        ledger.answered(&id("c1"), at(1), now, told(Kind::Container, Phase::Created));
        let again = ledger.next_due().unwrap();
        assert_eq!((again, ledger.ask(again, 4).len(), ledger.takes_list()), (now + RETRY, 1, false));
        assert_eq!([ledger.takes_behind(), ledger.takes_behind()], [1, 0]);
        ledger.answered(&id("c1"), at(2), again, told(Kind::Container, Phase::Created));
        assert_eq!((ledger.next_due(), ledger.takes_list(), ledger.takes_list()), (None, true, false));
        let row = vec![(id("c1"), described(Kind::Container, Phase::Running))];
        ledger.listed(at(3), again, row);
        assert_eq!(ledger.ask(again, 4).len(), 1, "what it lists, it knows");

        // Heard of, and never known: another's, or too young to be known. What was over is not waited for.
        for (ghost, phase, calls) in [("young", Phase::Running, 2), ("over", Phase::Over, 1)] {
            ledger.hinted(hint(ghost, phase), now, false);
            for _ in 0..calls {
                let due = ledger.next_due().unwrap();
                assert_eq!(ledger.ask(due, 4).len(), 1);
                assert_eq!(ledger.answered(&id(ghost), at(4), due, Err(NoStatus::Gone)), []);
            }
            assert_eq!((ledger.next_due(), ledger.entries.len()), (None, 1), "{ghost}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_is_asked_about_once_and_its_end_is_told_by_lists_and_events() {
        let of_sandbox = |name: &str, phase| Hint { kind: Kind::Sandbox, ..hint(name, phase) };
        for by_list in [true, false] {
            let (mut ledger, now) = (ledger(), Instant::now());
            assert_eq!(ledger.sandbox_over(&id("s1"), at(1)), None, "nobody knows it");
            ledger.hinted(of_sandbox("s1", Phase::Running), now, false);
            assert_eq!(ledger.ask(now, 4), [Subject::Sandbox(id("s1"))]);
            ledger.answered(&id("s1"), at(1), now, told(Kind::Sandbox, Phase::Running));
            ledger.hinted(of_sandbox("s1", Phase::Over), now, false);
            assert_eq!(ledger.next_due(), None);
            let over = match by_list {
                true => ledger.listed(at(2), now, vec![(id("s1"), described(Kind::Sandbox, Phase::Over))]),
                false => ledger.sandbox_over(&id("s1"), at(2)).into_iter().collect(),
            };
            assert_eq!(stated(&over), [("s1".to_owned(), Some(State::Exited))]);
            assert_eq!(ledger.next_due(), None);
            // One that was over before anybody asked has a status to give, too.
            ledger.listed(at(3), now, vec![(id("s2"), described(Kind::Sandbox, Phase::Over))]);
            assert_eq!(ledger.ask(now, 4), [Subject::Sandbox(id("s2"))]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_being_asked_when_a_connection_broke_is_asked_by_the_next_list() {
        let (mut ledger, now) = (ledger(), Instant::now());
        ledger.listed(at(1), now, vec![(id("listed"), described(Kind::Container, Phase::Running))]);
        ledger.hinted(hint("hinted", Phase::Running), now, false);
        assert_eq!(ledger.ask(now, 4).len(), 2);
        ledger.begin(Some(scope::containerd("k8s.io")));
        assert_eq!((ledger.entries.len(), ledger.next_due()), (1, None));
        let rows = ["listed", "hinted"].map(|name| (id(name), described(Kind::Container, Phase::Running)));
        ledger.listed(at(2), now, rows.into());
        assert_eq!(ledger.ask(now, 4).len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_brings_what_is_new_and_takes_back_what_is_gone() {
        let (mut ledger, now) = (ledger(), Instant::now());
        let rows = |names: &[&str]| -> Vec<_> {
            names.iter().map(|name| (id(name), described(Kind::Container, Phase::Running))).collect()
        };
        assert_eq!(ledger.listed(at(1), now, rows(&["a", "b"])), [], "nothing is told of what was not asked about");
        assert_eq!(ledger.ask(now, 1).len(), 1);
        assert_eq!(ledger.ask(now, 4).len(), 1);
        for name in ["a", "b"] {
            assert_eq!(ledger.answered(&id(name), at(2), now, told(Kind::Container, Phase::Running)).len(), 1);
        }
        // Younger than the list that does not have it.
        ledger.hinted(hint("c", Phase::Running), now, false);
        assert_eq!(ledger.ask(now, 4).len(), 1);
        ledger.answered(&id("c"), at(5), now, told(Kind::Container, Phase::Running));
        assert_eq!(stated(&ledger.listed(at(4), now, rows(&["a"]))), [("b".to_owned(), None)]);
        let mut known: Vec<_> = ledger.keys().into_iter().map(|key| key.id.to_string()).collect();
        known.sort();
        assert_eq!((known, ledger.next_due()), (vec!["a".to_owned(), "c".to_owned()], None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_is_told_anew_when_its_sandbox_is_known() {
        let (mut ledger, now) = (ledger(), Instant::now());
        let rows = vec![
            (id("c1"), described(Kind::Container, Phase::Running)),
            (id("s1"), described(Kind::Sandbox, Phase::Running)),
        ];
        ledger.listed(at(1), now, rows);
        ledger.answered(&id("c1"), at(2), now, told(Kind::Container, Phase::Running));
        let addresses: Arc<[Address]> =
            Arc::new([Address { network: None, ip: [10, 0, 0, 1].into(), prefix_len: None }]);
        let mut sandbox = described(Kind::Sandbox, Phase::Running);
        sandbox.of_pod.as_mut().unwrap().addresses = Some(Arc::clone(&addresses));
        let wishes = ledger.answered(&id("s1"), at(3), now, Ok(Told { description: sandbox, ..Told::default() }));
        let of_container = wishes.iter().find_map(|wish| match wish {
            Wish::State { key, statement, .. } if key.id == id("c1") => Some(statement),
            _ => None,
        });
        let statement = of_container.unwrap();
        assert_eq!(statement.details.as_ref().unwrap().addresses, Some(addresses));
        assert_eq!(statement.pod.as_ref().unwrap().name.as_deref(), Some("web"));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Hint(u8, u8),
        List(Vec<(u8, u8)>),
        Answer(u8, Option<u8>),
        Removed(u8),
        Ask,
    }

    fn step() -> impl Strategy<Value = Step> {
        let (who, phase) = (0..4_u8, 0..3_u8);
        prop_oneof![
            (who.clone(), phase.clone()).prop_map(|(who, phase)| Step::Hint(who, phase)),
            prop::collection::vec((who.clone(), phase.clone()), 0..4).prop_map(Step::List),
            (who.clone(), prop::option::of(phase)).prop_map(|(who, phase)| Step::Answer(who, phase)),
            who.prop_map(Step::Removed),
            Just(Step::Ask),
        ]
    }

    proptest! {
        /// Whatever is heard in whatever order: moments of one container never go back, only what was stated is withdrawn, and
        /// whoever is due is known.
        #[test]
        fn any_order_is_survived(steps in prop::collection::vec(step(), 0..60)) {
            let phase = |phase| [Phase::Created, Phase::Running, Phase::Over][phase as usize];
            let name = |who: u8| id(&format!("c{who}"));
            let (mut ledger, mut now) = (ledger(), Instant::now());
            let mut stands = HashMap::<ContainerId, BootTime>::new();
            for (number, step) in steps.into_iter().enumerate() {
                let moment = at(number as u64);
                now += Duration::from_millis(100);
                let wishes: Vec<Wish> = match step {
                    Step::Hint(who, of) => {
                        ledger.hinted(Hint { id: name(who), ..hint("x", phase(of)) }, now, true);
                        vec![]
                    }
                    Step::List(rows) => {
                        let row = |(who, of)| (name(who), described(Kind::Container, phase(of)));
                        ledger.listed(moment, now, rows.into_iter().map(row).collect())
                    }
                    Step::Answer(who, Some(of)) => {
                        ledger.answered(&name(who), moment, now, told(Kind::Container, phase(of)))
                    }
                    Step::Answer(who, None) => ledger.answered(&name(who), moment, now, Err(NoStatus::Gone)),
                    Step::Removed(who) => ledger.removed(&name(who), moment).into_iter().collect(),
                    Step::Ask => {
                        prop_assert!(ledger.ask(now, 4).len() <= 4);
                        vec![]
                    }
                };
                for wish in wishes {
                    match wish {
                        Wish::State { key, at, .. } => {
                            prop_assert!(stands.insert(key.id, at).is_none_or(|before| before <= at));
                        }
                        Wish::Withdraw { key, .. } => prop_assert!(stands.remove(&key.id).is_some()),
                    }
                }
                prop_assert_eq!(ledger.keys().len(), stands.len());
                for (due, id) in &ledger.due {
                    prop_assert_eq!(ledger.entries.get(id).and_then(|entry| entry.due), Some(*due));
                }
                prop_assert_eq!(ledger.due.len(), ledger.entries.values().filter(|entry| entry.due.is_some()).count());
            }
        }
    }
}
