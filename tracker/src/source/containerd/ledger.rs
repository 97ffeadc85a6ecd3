//! What is known about every container under one containerd: pure, no IO.
//!
//! The ledger outlives connections. Events and lists go in, facts and wishes come out; the session does what the wishes
//! say. A container is stated once its record has been read (`Described`), and again whenever its statement changes.
//!
//! ```text
//!            Made, or any task event                   described
//!  unknown ─────────────────────────────▶ undescribed ───────────▶ described ──▶ stated with every change
//!     ▲            (wish: Describe)            │                        │
//!     └────────────────── Deleted ─────────────┴──── Deleted, or not listed (Withdraw)
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use super::describe::{Description, relabel};
use super::events::{Event, Happened, TaskEvent};
use crate::container::{ContainerId, Exit, Image, Kind, State, Str};
use crate::fact::Statement;
use crate::source::process::Identity;
use crate::time::BootTime;

/// SIGKILL's exit status, which is all that the OOM killer leaves behind.
const KILLED: u32 = 128 + 9;

/// A container under one containerd.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub namespace: Str,
    pub id: ContainerId,
}

/// A container's task, as a list shows it.
#[derive(Clone, Debug)]
pub(super) struct ListedTask {
    pub pid: u32,
    pub identity: Option<Identity>,
    pub state: Option<State>,
    pub exit: Option<(u32, Option<BootTime>)>,
}

/// What is to be done after something was applied.
#[derive(Debug, PartialEq)]
pub(super) enum Wish {
    /// State this about the container.
    State { name: Name, at: BootTime, statement: Box<Statement> },
    /// Take back what was stated about it.
    Withdraw { name: Name, at: BootTime },
    /// Read its record, then call [`Ledger::described`].
    Describe(Name),
    /// The image's name may point elsewhere now.
    ForgetImage { namespace: Str, name: Str },
    /// The namespace is empty.
    ForgetNamespace(Str),
}

/// The containers.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: HashMap<Name, Entry>,
    /// Counts events, to tell what came after what.
    events: u64,
}

#[derive(Debug, Default)]
struct Entry {
    described: bool,
    /// Pid of the present or last task, also when its identity could not be read any more.
    pid: Option<u32>,
    /// The last event about its task.
    task_event: u64,
    /// The OOM killer has struck in the present task's container.
    out_of_memory: bool,
    /// The latest moment that the statement is about. Events carry containerd's moments and answers our own, so that one
    /// can arrive before a later-stamped other; what is stated last must never look older than what it replaces.
    at: BootTime,
    statement: Statement,
}

impl Ledger {
    /// Applies one event. `identity` is that of the pid the event carries ([`Event::pid`]).
    pub(super) fn apply(&mut self, event: Event, identity: Option<Identity>) -> Vec<Wish> {
        let Event { at, namespace, what } = event;
        self.events += 1;
        match what {
            Happened::Made(id) => {
                let name = Name { namespace, id };
                self.entries.entry(name.clone()).or_default();
                vec![Wish::Describe(name)]
            }
            Happened::Changed { id, image, labels } => {
                let name = Name { namespace, id };
                let entry = self.entries.entry(name.clone()).or_default();
                if !entry.described {
                    return vec![Wish::Describe(name)];
                }
                let Some(description) = relabel(&name.namespace, &name.id, &entry.statement, image, labels) else {
                    return vec![Wish::Describe(name)];
                };
                if entry.describe(description) { vec![entry.state(name, at)] } else { vec![] }
            }
            Happened::Deleted(id) => {
                let name = Name { namespace, id };
                match self.entries.remove(&name) {
                    Some(entry) if entry.described => vec![Wish::Withdraw { name, at: at.max(entry.at) }],
                    _ => vec![],
                }
            }
            Happened::Task(id, what) => {
                let name = Name { namespace, id };
                let known = self.entries.contains_key(&name);
                let entry = self.entries.entry(name.clone()).or_default();
                entry.task_event = self.events;
                let changed = entry.task_event(at, what, identity);
                if !known {
                    vec![Wish::Describe(name)]
                } else if changed && entry.described {
                    vec![entry.state(name, at)]
                } else {
                    vec![]
                }
            }
            Happened::ImageChanged(name) => vec![Wish::ForgetImage { namespace, name }],
            Happened::NamespaceDeleted => {
                self.entries.retain(|name, _| name.namespace != namespace);
                vec![Wish::ForgetNamespace(namespace)]
            }
            Happened::ExecExited => vec![],
        }
    }

    /// A container's record was read. Nothing to do if the container has gone meanwhile.
    pub(super) fn described(&mut self, name: Name, at: BootTime, description: Description) -> Option<Wish> {
        let description = self.with_pod_labels(&name.namespace, description);
        let entry = self.entries.get_mut(&name)?;
        entry.describe(description).then(|| entry.state(name, at))
    }

    /// A container was found in a list that is not a whole one.
    pub(super) fn found(&mut self, name: Name, at: BootTime, description: Description) -> Wish {
        let description = self.with_pod_labels(&name.namespace, description);
        let entry = self.entries.entry(name.clone()).or_default();
        entry.describe(description);
        entry.state(name, at)
    }

    /// Applies a whole list of a namespace; `tasks` is `None` where they could not be listed. Returns statements about all
    /// that are in it; what is not in it is forgotten.
    pub(super) fn listed(
        &mut self,
        namespace: &Str,
        at: BootTime,
        mut containers: Vec<(ContainerId, Description)>,
        tasks: Option<HashMap<ContainerId, ListedTask>>,
    ) -> Vec<Wish> {
        let mut former: HashMap<_, _> = self.entries.extract_if(|name, _| name.namespace == *namespace).collect();
        let mut wishes = Vec::with_capacity(containers.len());
        // Sandboxes first: they know what the containers of their pods do not.
        containers.sort_by_key(|(_, description)| description.statement.kind != Some(Kind::Sandbox));
        for (id, description) in containers {
            let name = Name { namespace: Arc::clone(namespace), id };
            let mut entry = former.remove(&name).unwrap_or_default();
            entry.describe(self.with_pod_labels(namespace, description));
            match &tasks {
                Some(tasks) => entry.listed_task(tasks.get(&name.id)),
                None => entry.task_unknown(),
            }
            wishes.push(entry.state(name.clone(), at));
            self.entries.insert(name, entry);
        }
        wishes
    }

    /// Adds what only the record of a pod's sandbox tells: the labels of the pod. It is made, and described, before its
    /// containers.
    fn with_pod_labels(&self, namespace: &Str, mut description: Description) -> Description {
        if let Some(pod) = &mut description.statement.pod
            && pod.labels.is_none()
            && let Some(id) = pod.sandbox_id.as_deref().and_then(|id| ContainerId::new(id).ok())
        {
            let sandbox = self.entries.get(&Name { namespace: Arc::clone(namespace), id });
            pod.labels = sandbox.and_then(|sandbox| sandbox.statement.pod.as_ref()?.labels.clone());
        }
        description
    }

    /// The present moment among events, for [`Ledger::tasks_listed`].
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// Applies a namespace's tasks that were asked for when [`Ledger::events`] was `asked` and came late: what events told
    /// since is newer. Returns statements about all that changed.
    pub(super) fn tasks_listed(
        &mut self,
        namespace: &Str,
        at: BootTime,
        asked: u64,
        tasks: &HashMap<ContainerId, ListedTask>,
    ) -> Vec<Wish> {
        let mut wishes = vec![];
        for (name, entry) in &mut self.entries {
            if name.namespace == *namespace && entry.described && entry.task_event <= asked {
                let former = entry.statement.clone();
                entry.statement.missing.retain(|missing| *missing != task_missing());
                entry.listed_task(tasks.get(&name.id));
                if entry.statement != former {
                    wishes.push(entry.state(name.clone(), at));
                }
            }
        }
        wishes
    }

    /// Whether a task is known to be unknown.
    pub(super) fn awaits_tasks(&self) -> bool {
        self.entries.values().any(|entry| entry.statement.missing.contains(&task_missing()))
    }

    /// All namespaces that have containers here.
    pub(super) fn namespaces(&self) -> Vec<Str> {
        let mut namespaces: Vec<_> = self.entries.keys().map(|name| Arc::clone(&name.namespace)).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        namespaces
    }
}

impl Event {
    /// The pid whose identity helps to apply this event: that of a process that should be alive.
    pub(super) fn pid(&self) -> Option<u32> {
        match self.what {
            Happened::Task(_, TaskEvent::Created { pid, .. } | TaskEvent::Started { pid }) => Some(pid),
            _ => None,
        }
    }
}

impl Entry {
    fn state(&mut self, name: Name, at: BootTime) -> Wish {
        self.at = self.at.max(at);
        Wish::State { name, at: self.at, statement: Box::new(self.statement.clone()) }
    }

    /// Takes over what the record says and keeps what the task told. Returns whether there is something new.
    fn describe(&mut self, description: Description) -> bool {
        let old = std::mem::replace(&mut self.statement, description.statement);
        let first = !std::mem::replace(&mut self.described, true);
        let new = &mut self.statement;
        new.task = old.task;
        new.namespaces = old.namespaces;
        new.state = old.state.or(Some(State::Created));
        new.bundle = old.bundle.clone();
        new.started_at = old.started_at;
        new.exited_at = old.exited_at;
        new.exit = old.exit;
        new.created_at = BootTime::steady(old.created_at, new.created_at);
        first || *new != old
    }

    fn begin(&mut self, pid: u32, identity: Option<Identity>) {
        self.pid = Some(pid);
        self.out_of_memory = false;
        let statement = &mut self.statement;
        statement.task = identity.map(|identity| identity.task);
        statement.namespaces = identity.map(|identity| identity.namespaces);
        statement.bundle = None;
        statement.started_at = None;
        statement.exited_at = None;
        statement.exit = None;
        statement.state = Some(State::Created);
    }

    fn end(&mut self, status: u32, at: Option<BootTime>) {
        self.statement.state = Some(State::Exited);
        self.statement.exited_at = BootTime::steady(self.statement.exited_at, at);
        let oom = (self.out_of_memory && status == KILLED).then_some(true);
        // Whether 137 was a signal or the program's own choice, containerd does not tell.
        self.statement.exit = Some(Exit { code: status, signal: None, oom });
    }

    /// Whether the present task is over.
    fn is_over(&self) -> bool {
        self.statement.state.is_some_and(State::is_over)
    }

    /// Returns whether the statement has changed.
    fn task_event(&mut self, at: BootTime, event: TaskEvent, identity: Option<Identity>) -> bool {
        match event {
            TaskEvent::Created { pid, bundle } => {
                // A list can be ahead of events that waited for it: it has shown this task running.
                if self.pid != Some(pid) || self.is_over() {
                    self.begin(pid, identity);
                }
                self.statement.bundle = bundle;
            }
            TaskEvent::Started { pid } => {
                if self.pid != Some(pid) {
                    self.begin(pid, identity);
                }
                self.statement.started_at = Some(at);
                // A short life's exit can be reported before its start.
                if !self.is_over() {
                    self.statement.state = Some(State::Running);
                }
            }
            TaskEvent::Exited { pid, status, at: exited_at } => {
                if self.pid.is_some_and(|present| present != pid) {
                    return false;
                }
                self.pid = Some(pid);
                self.end(status, exited_at.or(Some(at)));
            }
            TaskEvent::Deleted { pid, status, at: exited_at } => {
                if self.pid.is_some_and(|present| present != pid) || self.is_over() {
                    return false;
                }
                self.pid = Some(pid);
                self.end(status, exited_at.or(Some(at)));
            }
            TaskEvent::OutOfMemory => {
                self.out_of_memory = true;
                return false;
            }
            TaskEvent::Paused if !self.is_over() => self.statement.state = Some(State::Paused),
            TaskEvent::Resumed if !self.is_over() => self.statement.state = Some(State::Running),
            TaskEvent::Paused | TaskEvent::Resumed => return false,
        }
        true
    }

    fn task_unknown(&mut self) {
        if self.pid.is_none() {
            self.statement.missing.push(task_missing());
        }
    }

    fn listed_task(&mut self, task: Option<&ListedTask>) {
        let Some(task) = task else {
            // No task: if there was one, its end was missed, and nobody remembers its status.
            if self.pid.is_some() && !self.is_over() {
                self.statement.state = Some(State::Exited);
            }
            return;
        };
        if task.pid == 0 {
            // Its shim did not answer containerd in time: it is there, and nothing else is known.
            self.task_unknown();
            return;
        }
        let other = |identity: Identity| self.statement.task.is_some_and(|known| known != identity.task);
        if self.pid != Some(task.pid) || task.identity.is_some_and(other) {
            self.begin(task.pid, task.identity);
        }
        match task.exit {
            Some((status, at)) => self.end(status, at),
            None => self.statement.state = task.state.or(self.statement.state),
        }
    }
}

/// Why nothing is known about a task.
fn task_missing() -> (&'static str, Str) {
    ("task", "containerd has not listed its tasks: one of its shims does not answer".into())
}

/// Puts what was found out about the image into a description.
pub(super) fn with_image(mut description: Description, image: Result<Image, Str>) -> Description {
    match image {
        Ok(image) => description.statement.image = Some(image),
        Err(reason) => description.statement.missing.push(("image.id", reason)),
    }
    description
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

    fn name(id: &str) -> Name {
        Name { namespace: "default".into(), id: ContainerId::new(id).unwrap() }
    }

    fn identity(pid: u32) -> Option<Identity> {
        Some(Identity {
            task: TaskId { pid, start_ticks: 1 },
            namespaces: Namespaces { mnt: pid, ..Default::default() },
        })
    }

    fn task(ms: u64, what: TaskEvent) -> Event {
        let Name { namespace, id } = name("c1");
        Event { at: after(ms), namespace, what: Happened::Task(id, what) }
    }

    fn created(pid: u32) -> TaskEvent {
        TaskEvent::Created { pid, bundle: Some("/b".into()) }
    }

    fn exited(pid: u32, status: u32) -> TaskEvent {
        TaskEvent::Exited { pid, status, at: None }
    }

    /// A described container, and what happened to it.
    fn ledger(events: &[(u64, TaskEvent)]) -> Ledger {
        let mut ledger = Ledger::default();
        let Name { namespace, id } = name("c1");
        ledger.apply(Event { at: AT, namespace, what: Happened::Made(id) }, None);
        ledger.described(name("c1"), AT, Description::default()).unwrap();
        for (ms, what) in events {
            let event = task(*ms, what.clone());
            let identity = event.pid().and_then(identity);
            ledger.apply(event, identity);
        }
        ledger
    }

    #[test]
    fn containers_have_the_labels_of_their_pod_from_its_sandbox() {
        use crate::container::{Labels, Pod};

        let labels: Labels = [("app", "web")].into_iter().collect();
        let of_pod = |kind, sandbox: &str, labels| Description {
            statement: Statement {
                kind: Some(kind),
                pod: Some(Pod { sandbox_id: Some(sandbox.into()), labels, ..Pod::default() }),
                ..Statement::default()
            },
            left_out: 0,
        };
        let sandbox = || of_pod(Kind::Sandbox, "s1", Some(labels.clone()));
        let container = |sandbox| of_pod(Kind::Container, sandbox, None);
        let known = |ledger: &Ledger, id| ledger.entries[&name(id)].statement.pod.as_ref().unwrap().labels.clone();

        let mut ledger = Ledger::default();
        for (id, description) in [("s1", sandbox()), ("c1", container("s1")), ("c2", container("other"))] {
            let made = Happened::Made(name(id).id);
            ledger.apply(Event { at: AT, namespace: "default".into(), what: made }, None);
            ledger.described(name(id), AT, description).unwrap();
        }
        assert_eq!((known(&ledger, "c1"), known(&ledger, "c2")), (Some(labels.clone()), None));

        // Whatever the order of a list.
        let mut ledger = Ledger::default();
        let all = vec![(name("c1").id, container("s1")), (name("s1").id, sandbox())];
        ledger.listed(&"default".into(), AT, all, None);
        assert_eq!(known(&ledger, "c1"), Some(labels));
    }

    #[test]
    fn a_life_is_told_by_its_events() {
        let start = |pid| TaskEvent::Started { pid };
        type Case<'a> = (&'a str, &'a [TaskEvent], State, Option<(u32, Option<bool>)>, Option<u32>);
        let cases: &[Case<'_>] = &[
            ("created", &[created(7)], State::Created, None, Some(7)),
            ("running", &[created(7), start(7)], State::Running, None, Some(7)),
            ("start without create", &[start(7)], State::Running, None, Some(7)),
            ("created, told late", &[start(7), created(7)], State::Running, None, Some(7)),
            ("paused", &[created(7), start(7), TaskEvent::Paused], State::Paused, None, Some(7)),
            ("resumed", &[start(7), TaskEvent::Paused, TaskEvent::Resumed], State::Running, None, Some(7)),
            ("exited", &[created(7), start(7), exited(7, 3)], State::Exited, Some((3, None)), Some(7)),
            ("exit before start", &[created(7), exited(7, 3), start(7)], State::Exited, Some((3, None)), Some(7)),
            (
                "resumed after the exit",
                &[start(7), exited(7, 0), TaskEvent::Resumed],
                State::Exited,
                Some((0, None)),
                Some(7),
            ),
            (
                "killed for memory",
                &[start(7), TaskEvent::OutOfMemory, exited(7, 137)],
                State::Exited,
                Some((137, Some(true))),
                Some(7),
            ),
            ("another was", &[start(7), TaskEvent::OutOfMemory, exited(7, 0)], State::Exited, Some((0, None)), Some(7)),
            ("started again", &[start(7), exited(7, 3), created(8), start(8)], State::Running, None, Some(8)),
            (
                "a late exit of the former",
                &[start(7), created(8), start(8), exited(7, 3)],
                State::Running,
                None,
                Some(8),
            ),
            (
                "deleted without an exit",
                &[created(7), TaskEvent::Deleted { pid: 7, status: 9, at: None }],
                State::Exited,
                Some((9, None)),
                Some(7),
            ),
        ];
        for (what, events, state, exit, pid) in cases {
            let events: Vec<_> = (1..).zip(events.iter().cloned()).collect();
            let ledger = ledger(&events);
            let statement = &ledger.entries[&name("c1")].statement;
            assert_eq!(statement.state, Some(*state), "{what}");
            assert_eq!(statement.exit.map(|exit| (exit.code, exit.oom)), *exit, "{what}");
            assert_eq!(statement.task.map(|task| task.pid), *pid, "{what}");
            assert_eq!(statement.exited_at.is_some(), exit.is_some(), "{what}");
        }
    }

    #[test]
    fn a_container_is_described_once_and_then_stated() {
        let mut ledger = Ledger::default();
        // A task event of a container whose creation was missed.
        assert_eq!(ledger.apply(task(1, created(7)), identity(7)), [Wish::Describe(name("c1"))]);
        assert_eq!(ledger.apply(task(2, TaskEvent::Started { pid: 7 }), identity(7)), []);
        let stated = ledger.described(name("c1"), AT, Description::default());
        assert!(matches!(stated, Some(Wish::State { statement, .. }) if statement.state == Some(State::Running)));
        assert_eq!(ledger.described(name("c1"), AT, Description::default()), None, "nothing new");
        assert!(matches!(&ledger.apply(task(3, TaskEvent::Paused), None)[..], [Wish::State { .. }]));
        assert_eq!(ledger.described(name("gone"), AT, Description::default()), None);
    }

    #[test]
    fn what_is_stated_last_is_never_older() {
        let mut ledger = ledger(&[(500, created(7))]);
        // An answer is stamped when it was asked for, which may be before the last event.
        let left_out =
            Description { statement: Statement { name: Some("n".into()), ..Default::default() }, left_out: 0 };
        let Some(Wish::State { at, .. }) = ledger.described(name("c1"), AT, left_out) else {
            panic!("it has a name now")
        };
        assert_eq!(at, after(500));
        let Name { namespace, id } = name("c1");
        let gone = ledger.apply(Event { at: AT, namespace, what: Happened::Deleted(id) }, None);
        assert_eq!(gone, [Wish::Withdraw { name: name("c1"), at: after(500) }]);
    }

    #[test]
    fn a_list_repairs_what_was_missed_and_keeps_what_is_known() {
        let running = |pid| ListedTask { pid, identity: identity(pid), state: Some(State::Running), exit: None };
        let stopped = ListedTask { exit: Some((5, None)), identity: None, ..running(7) };
        let id = || ContainerId::new("c1").unwrap();
        let list = |ledger: &mut Ledger, task: Option<Option<ListedTask>>| {
            let tasks = task.map(|task| task.map(|task| (id(), task)).into_iter().collect());
            let wishes = ledger.listed(&"default".into(), after(10), vec![(id(), Description::default())], tasks);
            let [Wish::State { statement, .. }] = &wishes[..] else { panic!("{wishes:?}") };
            (**statement).clone()
        };
        let before = || ledger(&[(1, created(7)), (2, TaskEvent::Started { pid: 7 })]);

        let same = list(&mut before(), Some(Some(running(7))));
        assert_eq!(
            (same.state, same.started_at, same.bundle.as_deref()),
            (Some(State::Running), Some(after(2)), Some("/b"))
        );
        let ended = list(&mut before(), Some(Some(stopped)));
        assert_eq!((ended.state, ended.exit.unwrap().code, ended.task.unwrap().pid), (Some(State::Exited), 5, 7));
        let other = list(&mut before(), Some(Some(running(8))));
        assert_eq!((other.task.unwrap().pid, other.started_at), (8, None));
        let gone = list(&mut before(), Some(None));
        assert_eq!((gone.state, gone.exit), (Some(State::Exited), None));
        let unknown = list(&mut before(), None);
        assert_eq!((unknown.state, unknown.task.unwrap().pid), (Some(State::Running), 7));

        let hung = ListedTask { pid: 0, identity: None, state: None, exit: None };
        let hung = list(&mut before(), Some(Some(hung)));
        assert_eq!((hung.state, hung.task.unwrap().pid), (Some(State::Running), 7));

        // The same list, but late: an event that came after it was asked for is newer.
        let mut late = before();
        let asked = late.events();
        let tasks = HashMap::from([(id(), running(7))]);
        assert_eq!(late.tasks_listed(&"default".into(), after(10), asked, &tasks), []);
        late.apply(task(3, exited(7, 0)), None);
        assert_eq!(late.tasks_listed(&"default".into(), after(10), asked, &tasks), []);
        let tasks = HashMap::from([(id(), running(8))]);
        let asked = late.events();
        assert!(matches!(&late.tasks_listed(&"default".into(), after(10), asked, &tasks)[..], [Wish::State { .. }]));

        let mut empty = before();
        assert_eq!(empty.listed(&"default".into(), after(10), vec![], None), []);
        assert!(empty.namespaces().is_empty());
    }

    proptest! {
        /// Whatever the order: an end stays an end until another task begins, and moments never go back.
        #[test]
        fn any_order_of_events_is_survived(events in prop::collection::vec((0..9_u8, 1..4_u32, 0..1_000_u64), 0..40)) {
            let mut ledger = ledger(&[]);
            let mut last = BootTime::ZERO;
            for (kind, pid, ms) in events {
                let what = match kind {
                    0 => created(pid),
                    1 => TaskEvent::Started { pid },
                    2 => exited(pid, 137),
                    3 => TaskEvent::Deleted { pid, status: 0, at: None },
                    4 => TaskEvent::OutOfMemory,
                    5 => TaskEvent::Paused,
                    6 => TaskEvent::Resumed,
                    _ => exited(pid, 0),
                };
                for wish in ledger.apply(task(ms, what), identity(pid)) {
                    let Wish::State { at, statement, .. } = wish else { panic!("it is described") };
                    prop_assert!(at >= last);
                    last = at;
                    prop_assert_eq!(statement.state == Some(State::Exited), statement.exit.is_some());
                }
            }
        }
    }
}
