//! What is known about every container under one containerd: pure, no IO.
//!
//! The ledger outlives connections. Events and lists go in, facts and wishes come out; the session does what the wishes
//! say. A container is stated once its record has been read (`Described`), and again whenever its statement changes.
//!
//! ```text
//!            Changed, or any task event                described
//!  unknown ─────────────────────────────▶ undescribed ───────────▶ described ──▶ stated with every change
//!     ▲            (wish: Describe)            │                        │
//!     └────────────────── Deleted ─────────────┴──── Deleted, or not listed (Withdraw)
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use super::describe::Description;
use super::events::{Event, Happened, TaskEvent};
use crate::container::{ContainerId, Exit, Image, Namespaces, State, Str, TaskId};
use crate::fact::Statement;
use crate::time::BootTime;

/// SIGKILL's exit status, which is all that the OOM killer leaves behind.
const KILLED: u32 = 128 + 9;

/// A container under one containerd.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub namespace: Str,
    pub id: ContainerId,
}

/// A process that was found alive and in namespaces of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub task: TaskId,
    pub namespaces: Namespaces,
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
}

#[derive(Debug, Default)]
struct Entry {
    described: bool,
    /// Pid of the present or last task, also when its identity could not be read any more.
    pid: Option<u32>,
    /// The OOM killer has struck in the present task's container.
    out_of_memory: bool,
    statement: Statement,
}

impl Ledger {
    /// Applies one event. `identity` is that of the pid the event carries ([`Event::pid`]).
    pub(super) fn apply(&mut self, event: Event, identity: Option<Identity>) -> Vec<Wish> {
        let Event { at, namespace, what } = event;
        match what {
            Happened::Changed(id) => {
                let name = Name { namespace, id };
                self.entries.entry(name.clone()).or_default();
                vec![Wish::Describe(name)]
            }
            Happened::Deleted(id) => {
                let name = Name { namespace, id };
                match self.entries.remove(&name) {
                    Some(entry) if entry.described => vec![Wish::Withdraw { name, at }],
                    _ => vec![],
                }
            }
            Happened::Task(id, what) => {
                let name = Name { namespace, id };
                let known = self.entries.contains_key(&name);
                let entry = self.entries.entry(name.clone()).or_default();
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
        let entry = self.entries.get_mut(&name)?;
        entry.describe(description).then(|| entry.state(name, at))
    }

    /// A container was found in a list that is not a whole one.
    pub(super) fn found(&mut self, name: Name, at: BootTime, description: Description) -> Wish {
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
        containers: Vec<(ContainerId, Description)>,
        tasks: Option<HashMap<ContainerId, ListedTask>>,
    ) -> Vec<Wish> {
        let mut former: HashMap<_, _> = self.entries.extract_if(|name, _| name.namespace == *namespace).collect();
        let mut wishes = Vec::with_capacity(containers.len());
        for (id, description) in containers {
            let name = Name { namespace: Arc::clone(namespace), id };
            let mut entry = former.remove(&name).unwrap_or_default();
            entry.describe(description);
            match &tasks {
                Some(tasks) => entry.listed_task(tasks.get(&name.id)),
                None if entry.pid.is_none() => {
                    entry.statement.missing.push(("task", "its shim does not answer".into()))
                }
                None => {}
            }
            wishes.push(entry.state(name.clone(), at));
            self.entries.insert(name, entry);
        }
        wishes
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
    fn state(&self, name: Name, at: BootTime) -> Wish {
        Wish::State { name, at, statement: Box::new(self.statement.clone()) }
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
        new.created_at = steady(old.created_at, new.created_at);
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
        self.statement.exited_at = steady(self.statement.exited_at, at);
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
                self.begin(pid, identity);
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

    fn listed_task(&mut self, task: Option<&ListedTask>) {
        let Some(task) = task else {
            // No task: if there was one, its end was missed, and nobody remembers its status.
            if self.pid.is_some() && !self.is_over() {
                self.statement.state = Some(State::Exited);
            }
            return;
        };
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

/// The moment known before, if the new one is the same but for the wall clock's wandering: a moment that is told again must
/// not look like a change.
fn steady(old: Option<BootTime>, new: Option<BootTime>) -> Option<BootTime> {
    const WANDERING_NS: u64 = 1_000_000_000;
    match (old, new) {
        (Some(old), Some(new)) if old.0.abs_diff(new.0) < WANDERING_NS => Some(old),
        (old, None) => old,
        (_, new) => new,
    }
}

/// Puts what was found out about the image into a description.
pub(super) fn with_image(mut description: Description, image: Result<Image, Str>) -> Description {
    match image {
        Ok(image) => description.statement.image = Some(image),
        Err(reason) => description.statement.missing.push(("image.id", reason)),
    }
    description
}
