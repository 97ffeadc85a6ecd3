//! The state: all runs of all containers, and the one place where facts change it. Pure: no IO, no clock.
//!
//! ```text
//! Fact ─▶ apply ─▶ runs (joined by init task, creator or id) ─▶ settle ─▶ changes of rows
//! ```
//!
//! A *claim* is what runtimes call a container: a key and statements. A *run* is what the kernel shows: an init process
//! in a mount namespace. They are joined by the identity of the init process or of the process that made it, never by a
//! number alone and never by who spoke first, so the same facts give the same containers in whatever order they come.

mod claims;
mod outer;
mod shown;
mod tombstones;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::config::Config;
use super::door::{CloserLook, HeldStep};
use super::journal::{Event, Line};
use super::merge::{self, CgroupSeen, Context, Provenance};
use super::pause::PauseImages;
use super::pool::Pool;
use super::run::{Run, Statements};
use super::view::{Host, Row};
use crate::container::{Container, ContainerKey, Grade, Kind, Str, TaskId};
use crate::enrich::recognise::Recognised;
use crate::fact::{Fact, Source, SourceSet, Statement, What};
use crate::filter::{Filter, Subject};
use crate::time::BootTime;

/// A row as it was and as it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RowChange {
    pub sequence: u64,
    pub before: Option<Row>,
    pub after: Option<Row>,
}

/// What the state counts for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Ends, births and numbers that only a scan brought to light.
    pub corrections: u64,
    /// Births without a vouching source that were not taken in: their share was used up.
    pub unvouched_refused: u64,
    /// Claims on an init process that is not in the claim's domain.
    pub foreign_claims: u64,
    /// Tombstones dropped before their time, for want of room.
    pub tombstones_evicted: u64,
    /// Containers that lived without this witness having seen them, by source.
    pub missed_by: [u64; Source::ALL.len()],
}

/// See the module.
#[derive(Debug)]
pub(crate) struct State {
    config: Config,
    pauses: PauseImages,
    /// Absent where everything is published.
    filter: Option<Filter>,
    host: Host,
    live: SourceSet,
    // Boxed: a hash table keeps room for up to as many again.
    runs: HashMap<u64, Box<Run>>,
    claims: HashMap<ContainerKey, Claim>,
    /// The texts of all statements.
    pool: Pool,
    by_task: HashMap<TaskId, u64>,
    by_unproven_task: HashMap<TaskId, u64>,
    by_creator: HashMap<TaskId, u64>,
    by_parent: HashMap<TaskId, Vec<u64>>,
    by_generation: HashMap<u64, u64>,
    /// The run that was born last with a mount namespace number, while its interval is open.
    by_mntns: HashMap<u32, u64>,
    /// The runs whose makers lived in a mount namespace.
    by_outer: HashMap<u32, Vec<u64>>,
    by_pid: HashMap<u32, u64>,
    by_cgroup: HashMap<u64, Vec<u64>>,
    cgroups: HashMap<u64, CgroupSeen>,
    cgroup_order: VecDeque<u64>,
    unvouched_by_uid: HashMap<u32, usize>,
    dirty: Vec<u64>,
    removed: Vec<Row>,
    /// When what is over may be forgotten; of those, the ones that are not the host's.
    expiries: BTreeSet<(BootTime, u64)>,
    guest_expiries: BTreeSet<(BootTime, u64)>,
    tombstone_bytes: usize,
    guest_bytes: usize,
    next_instance: u64,
    sequence: u64,
    pub(crate) counts: Counts,
}

/// What runtimes call a container: statements about it that are not about one of its runs, and its runs.
#[derive(Debug, Default)]
struct Claim {
    statements: Statements,
    runs: Vec<u64>,
}

/// Cgroups whose path is remembered.
const MAX_CGROUPS: usize = 16_384;
impl State {
    pub(crate) fn new(config: Config, filter: Filter, host: Host) -> Self {
        State {
            pauses: PauseImages::new(&config.pause_images),
            config,
            filter: Some(filter).filter(|filter| !filter.keeps_everything()),
            host,
            live: SourceSet::EMPTY,
            runs: HashMap::new(),
            claims: HashMap::new(),
            pool: Pool::default(),
            by_task: HashMap::new(),
            by_unproven_task: HashMap::new(),
            by_creator: HashMap::new(),
            by_parent: HashMap::new(),
            by_generation: HashMap::new(),
            by_mntns: HashMap::new(),
            by_outer: HashMap::new(),
            by_pid: HashMap::new(),
            by_cgroup: HashMap::new(),
            cgroups: HashMap::new(),
            cgroup_order: VecDeque::new(),
            unvouched_by_uid: HashMap::new(),
            dirty: Vec::new(),
            removed: Vec::new(),
            expiries: BTreeSet::new(),
            guest_expiries: BTreeSet::new(),
            tombstone_bytes: 0,
            guest_bytes: 0,
            next_instance: 1,
            sequence: 0,
            counts: Counts::default(),
        }
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Takes in one fact. Nothing is visible before [`State::settle`].
    pub(crate) fn apply(&mut self, fact: Fact) {
        let Fact { source, at, what } = fact;
        match what {
            What::Born(birth) => {
                self.born(source, at, birth, Event::Born);
            }
            What::Executed(execution) => self.executed(source, at, execution),
            What::Ended(end) => self.ended(source, at, end),
            What::CgroupMade { id, path } => {
                self.cgroup(id).path = Some(path);
                self.touch_cgroup(id);
            }
            What::CgroupEmptied { id } => {
                self.cgroup(id).emptied(at);
                for run in self.by_cgroup.get(&id).cloned().unwrap_or_default() {
                    self.tell(run, source, at, Event::Gone);
                }
            }
            What::Scanned { inits, tasks } => self.scanned(source, at, &inits, &tasks.into_iter().collect()),
            What::Stated { key, mut statement } => {
                self.pool.share(&mut statement);
                self.stated(source, at, key, statement.into());
            }
            What::Withdrawn { key } => self.withdrawn(source, at, &key),
            What::Listed { scope, keys } => self.listed(source, at, &scope, &keys.into_iter().collect()),
            What::Aborted { key, reason } => {
                if let Some(run) = self.latest(&key).filter(|run| self.runs[run].shown.birth.is_none()) {
                    self.run(run).aborted.get_or_insert((at, reason.clone()));
                    self.tell(run, source, at, Event::Aborted(reason));
                }
            }
            What::Graded { key, grade } => {
                if let Some(run) = self.latest(&key) {
                    // A start that was let go once is not held by a second look at it.
                    let run_grade = &mut self.run(run).grade;
                    *run_grade = if *run_grade == Some(Grade::LetGo) { *run_grade } else { Some(grade) };
                    self.tell(run, source, at, Event::Graded(grade));
                }
            }
            What::Noted { key, note } => {
                if let Some(run) = self.latest(&key) {
                    self.tell(run, source, at, Event::Noted(note));
                }
            }
            What::Looked { task, look } => {
                let run = self.by_task.get(&task).copied().filter(|run| {
                    let run = &self.runs[run];
                    run.keys.is_empty() && run.look.as_ref() != Some(&look)
                });
                if let Some(run) = run {
                    let Recognised { kind, runtime, .. } = &look.recognised;
                    let by = runtime.as_ref().map_or(String::new(), |runtime| format!(", of {runtime}"));
                    self.tell(
                        run,
                        source,
                        at,
                        Event::Noted(format!("no runtime knows it: {}{by}", kind.name()).into()),
                    );
                    self.run(run).look = Some(look);
                    self.touch(run);
                }
            }
            What::Live(live) => self.set_live(source, live),
        }
    }

    /// Notes that the start of `key` stands still until what was applied is published.
    pub(crate) fn held(&mut self, key: &ContainerKey, at: BootTime, step: HeldStep) -> Option<u64> {
        let run = self.latest(key)?;
        self.tell(run, Source::Barrier, at, Event::Held(step));
        if step == HeldStep::Start {
            // The barrier takes it back if it turns out to have let go before the answer.
            self.run(run).grade.get_or_insert(Grade::Held);
        }
        Some(run)
    }

    fn new_run(&mut self, at: BootTime) -> u64 {
        let instance = self.next_instance;
        self.next_instance += 1;
        self.runs.insert(instance, Box::new(Run::new(instance, at)));
        instance
    }

    fn new_claimed_run(&mut self, key: &ContainerKey, at: BootTime) -> u64 {
        let run = self.new_run(at);
        self.add_claim(run, key);
        run
    }

    fn add_claim(&mut self, run: u64, key: &ContainerKey) {
        self.run(run).add_key(key.clone());
        let claim = self.claims.entry(key.clone()).or_default();
        if !claim.runs.contains(&run) {
            claim.runs.reserve_exact(1);
            claim.runs.push(run);
        }
        let share = self.run(run).unvouched_uid.take();
        self.release_share(share);
        self.touch(run);
    }

    fn release_share(&mut self, uid: Option<u32>) {
        let Some(uid) = uid else { return };
        if let Some(count) = self.unvouched_by_uid.get_mut(&uid) {
            *count -= 1;
            if *count == 0 {
                self.unvouched_by_uid.remove(&uid);
            }
        }
    }

    fn set_task(&mut self, run: u64, task: TaskId) {
        self.run(run).task = Some(task);
        self.by_task.insert(task, run);
        let former = self.by_pid.insert(task.pid, run).filter(|former| *former != run);
        if let Some(former) = former.filter(|former| self.runs.contains_key(former)) {
            // Two processes with one pid: the one that started first has been reaped before the other began.
            let former_task = self.runs[&former].task.unwrap_or(task);
            let (old, new, heir) = match former_task.start_ticks <= task.start_ticks {
                true => (former, run, task),
                false => (run, former, former_task),
            };
            self.run(old).shown.pid_reused_at = Some(heir.started_by());
            self.by_pid.insert(task.pid, new);
            self.touch(old);
        }
        self.touch(run);
    }

    /// Makes one run of two that turned out to be the same; the elder keeps its instance.
    fn join(&mut self, run: u64, other: Option<u64>) -> u64 {
        let Some(other) = other.filter(|other| *other != run && self.runs.contains_key(other)) else {
            return run;
        };
        let (elder, younger) = (run.min(other), run.max(other));
        let absorbed = self.forget(younger);
        self.inherit_inner(younger, elder, absorbed.shown.birth.as_ref());
        for key in &absorbed.keys {
            let claim = self.claims.entry(key.clone()).or_default();
            claim.runs.retain(|run| *run != younger && *run != elder);
            claim.runs.push(elder);
        }
        self.run(elder).absorb(*absorbed);
        if !self.runs[&elder].keys.is_empty() {
            let share = self.run(elder).unvouched_uid.take();
            self.release_share(share);
        }
        let joined = &self.runs[&elder];
        let (task, creator, birth) = (joined.task, joined.creator, joined.shown.birth);
        if let Some(task) = task {
            self.by_task.insert(task, elder);
            self.by_pid.insert(task.pid, elder);
        }
        if let Some(task) = self.runs[&elder].unproven_task {
            self.by_unproven_task.insert(task, elder);
        }
        if let Some(creator) = creator {
            self.by_creator.insert(creator, elder);
        }
        if let Some(birth) = birth {
            self.show(elder, birth);
        }
        self.touch(elder);
        elder
    }

    /// Takes a run out of everything but the claims.
    fn forget(&mut self, instance: u64) -> Box<Run> {
        let mut run = self.runs.remove(&instance).expect("only known runs are forgotten");
        self.release_share(run.unvouched_uid.take());
        let remove_if_own = |map: &mut HashMap<TaskId, u64>, key: Option<TaskId>| {
            if let Some(key) = key.filter(|key| map.get(key) == Some(&instance)) {
                map.remove(&key);
            }
        };
        remove_if_own(&mut self.by_task, run.task);
        remove_if_own(&mut self.by_unproven_task, run.unproven_task);
        remove_if_own(&mut self.by_creator, run.creator);
        if let Some(pid) = run.task.map(|task| task.pid).filter(|pid| self.by_pid.get(pid) == Some(&instance)) {
            self.by_pid.remove(&pid);
        }
        if let Some(birth) = run.shown.birth {
            if let Some(generation) = birth.generation.filter(|id| self.by_generation.get(id) == Some(&instance)) {
                self.by_generation.remove(&generation);
            }
            if self.by_mntns.get(&birth.namespaces.mnt) == Some(&instance) {
                self.by_mntns.remove(&birth.namespaces.mnt);
            }
            self.leave_outer(instance, &birth);
            if let Some(parent) = birth.parent
                && let Some(children) = self.by_parent.get_mut(&parent)
            {
                children.retain(|child| *child != instance);
                if children.is_empty() {
                    self.by_parent.remove(&parent);
                }
            }
        }
        if let Some(row) = &run.row {
            self.unindex(instance, row);
            self.removed.push(row.clone());
        }
        run
    }

    fn unindex(&mut self, instance: u64, row: &Row) {
        if let Some(expiry) = self.expiry(row) {
            self.unschedule(expiry, instance, row);
        }
        if let Some(id) = row.container.cgroup.id
            && let Some(runs) = self.by_cgroup.get_mut(&id)
        {
            runs.retain(|run| *run != instance);
            if runs.is_empty() {
                self.by_cgroup.remove(&id);
            }
        }
    }

    fn latest(&self, key: &ContainerKey) -> Option<u64> {
        self.claims.get(key)?.runs.iter().copied().max_by_key(|run| self.runs[run].age())
    }

    fn run(&mut self, run: u64) -> &mut Run {
        self.runs.get_mut(&run).expect("an instance number is only kept while its run exists")
    }

    fn is_open(&self, run: u64) -> bool {
        self.runs[&run].row.as_ref().is_none_or(|row| row.here.is_open())
    }

    fn touch(&mut self, instance: u64) {
        let run = self.run(instance);
        if !std::mem::replace(&mut run.dirty, true) {
            self.dirty.push(instance);
        }
    }

    fn tell(&mut self, run: u64, source: Source, at: BootTime, event: Event) {
        self.run(run).journal.add(Line { at, source, event });
        self.touch(run);
    }

    fn cgroup(&mut self, id: u64) -> &mut CgroupSeen {
        if !self.cgroups.contains_key(&id) {
            self.cgroup_order.push_back(id);
            if self.cgroup_order.len() > MAX_CGROUPS
                && let Some(oldest) = self.cgroup_order.pop_front()
            {
                self.cgroups.remove(&oldest);
            }
        }
        self.cgroups.entry(id).or_default()
    }

    fn touch_cgroup(&mut self, id: u64) {
        for run in self.by_cgroup.get(&id).cloned().unwrap_or_default() {
            self.touch(run);
        }
    }

    /// Derives what the applied facts changed, and gives each change its sequence number.
    pub(crate) fn settle(&mut self) -> Vec<RowChange> {
        let mut changes = Vec::new();
        for row in std::mem::take(&mut self.removed) {
            self.sequence += 1;
            changes.push(RowChange { sequence: self.sequence, before: Some(row), after: None });
        }
        // What one change brings about may join the list behind it.
        let mut next = 0;
        while let Some(instance) = self.dirty.get(next).copied() {
            next += 1;
            let Some(run) = self.runs.get_mut(&instance) else { continue };
            run.dirty = false;
            let before = run.row.clone();
            let Some(mut after) = self.derive(instance, None, None) else { continue };
            self.note_emptied(instance, &after);
            after.excluded = self.exclusion(before.as_ref(), &after);
            let container = Arc::get_mut(&mut after.container).expect("just derived, nobody has it yet");
            if let Some(before) = &before {
                container.sequence = before.container.sequence;
                if *before == after {
                    // Nothing to see, but a runtime that forgot it may have made it expire.
                    self.schedule(instance, &after);
                    continue;
                }
                self.unindex(instance, before);
            }
            self.sequence += 1;
            let container = Arc::get_mut(&mut after.container).expect("just derived, nobody has it yet");
            container.sequence = self.sequence;
            self.index(instance, &after);
            self.run(instance).row = Some(after.clone());
            self.touch_inner(instance, before.as_ref(), &after);
            changes.push(RowChange { sequence: self.sequence, before, after: Some(after) });
        }
        self.dirty.clear();
        changes
    }

    /// The rule by which a row is left out; decided anew when something changed that rules look at.
    fn exclusion(&self, before: Option<&Row>, after: &Row) -> Option<Str> {
        if after.container.kind == Kind::SandboxedProcess && !self.config.sandboxed_processes {
            return Some("`collection.sandboxed-processes`, which is off".into());
        }
        let filter = self.filter.as_ref()?;
        let subject = Subject::from(&*after.container);
        match before {
            Some(before) if Subject::from(&*before.container) == subject => before.excluded.clone(),
            _ => filter.decide(&subject).excluded_by(),
        }
    }

    /// Keeps with the run when its cgroup emptied, which the cgroup itself will have forgotten one day.
    fn note_emptied(&mut self, instance: u64, row: &Row) {
        let Some(ended_at) = row.container.exited_at else { return };
        let Some(seen) = row.container.cgroup.id.and_then(|id| self.cgroups.get(&id)) else { return };
        let run = self.runs.get_mut(&instance).expect("it was just derived");
        let emptied_at = seen.emptied_after(run, row.here.opened, ended_at);
        run.shown.emptied_at = run.shown.emptied_at.into_iter().chain(emptied_at).min();
    }

    fn index(&mut self, instance: u64, row: &Row) {
        self.schedule(instance, row);
        if let Some(id) = row.container.cgroup.id {
            self.by_cgroup.entry(id).or_insert_with(|| Vec::with_capacity(1)).push(instance);
        }
    }

    /// A run as it would be published, whole or by one source's own view.
    pub(crate) fn derive(&self, run: u64, only: Option<Source>, provenance: Option<&mut Provenance>) -> Option<Row> {
        let run = self.runs.get(&run)?;
        let container = run.keys.first().and_then(|key| self.claims.get(key)).map(|claim| &claim.statements);
        let parent = self.parent_of(run);
        let (host, live, pauses, parent) = (self.host, self.live, &self.pauses, parent.as_ref());
        let mut context = Context { host, live, cgroup: None, only, pauses, parent };
        let mut row = merge::derive(run, container, context, None)?;
        if let Some(seen) = row.container.cgroup.id.and_then(|id| self.cgroups.get(&id)) {
            context.cgroup = Some(seen);
            row = merge::derive(run, container, context, None)?;
        }
        if provenance.is_some() {
            merge::derive(run, container, context, provenance);
        }
        Some(row)
    }

    /// The init process of a container's latest run, once the kernel has shown it to be in the claim's domain; `None` when
    /// it has ended.
    pub(crate) fn shown_init(&self, key: &ContainerKey) -> Option<TaskId> {
        let run = &self.runs[&self.latest(key)?];
        let birth = run.shown.birth.filter(|_| run.shown.ended.is_none())?;
        self.admits(key.domain, Some(&birth), run.creator).then_some(birth.task)
    }

    /// A run as it is published, if it is.
    pub(crate) fn container(&self, instance: u64) -> Option<Arc<Container>> {
        Some(Arc::clone(self.runs.get(&instance)?.row.as_ref()?.published()?))
    }

    /// All rows, excluded ones included.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.runs.values().filter_map(|run| run.row.as_ref())
    }

    /// Whether this is the first time that the start of a run is told.
    pub(crate) fn mark_start_announced(&mut self, instance: u64) -> bool {
        self.runs.get_mut(&instance).is_some_and(|run| !std::mem::replace(&mut run.start_announced, true))
    }

    /// A run's story: its lines, and whose word each field is.
    pub(crate) fn story(&self, instance: u64) -> Option<(Arc<Container>, Provenance, &Run)> {
        let mut provenance = Provenance::new();
        self.derive(instance, None, Some(&mut provenance));
        let run = self.runs.get(&instance)?;
        Some((Arc::clone(&run.row.as_ref()?.container), provenance, run))
    }

    /// Statements about missing fields, of all who speak about the run, each with who says so.
    pub(crate) fn missing(&self, instance: u64) -> Vec<(Source, &'static str, Str)> {
        let Some(run) = self.runs.get(&instance) else { return Vec::new() };
        let container = run.keys.first().and_then(|key| self.claims.get(key)).map(|claim| &claim.statements);
        let of = |source| run.statements.of(source, true).or_else(|| container?.of(source, true));
        let said = Source::ALL.into_iter().filter_map(|source| Some((source, of(source)?)));
        let missing = |(source, statement): (Source, &Statement)| {
            let of_source = move |(field, reason): &(&'static str, Str)| (source, *field, Str::clone(reason));
            statement.missing.iter().map(of_source).collect::<Vec<_>>()
        };
        said.flat_map(missing).collect()
    }

    /// What is to be looked at more closely about a run, if anything is.
    pub(crate) fn closer_look(&self, instance: u64) -> Option<CloserLook> {
        closer_look(self.runs.get(&instance)?)
    }

    /// All of those.
    pub(crate) fn all_closer_looks(&self) -> impl Iterator<Item = CloserLook> {
        self.runs.values().filter_map(|run| closer_look(run))
    }
}

/// A run that lives, and that nobody vouches for, or of which files tell what nobody has told yet.
fn closer_look(run: &Run) -> Option<CloserLook> {
    let birth = run.shown.birth.filter(|_| run.shown.ended.is_none())?;
    let container = run.row.as_ref().map(|row| &row.container);
    let is_claimed = !run.keys.is_empty();
    let is_sandboxed = run.look.as_ref().is_some_and(|look| look.recognised.kind == Kind::SandboxedProcess);
    let lacks_bundle = container.is_none_or(|container| container.bundle.is_none());
    let awaits_podman = container.is_some_and(|container| container.awaiting.contains(Source::Podman));
    let is_wanted = if is_claimed { lacks_bundle || awaits_podman } else { !is_sandboxed || awaits_podman };
    is_wanted.then_some(CloserLook { birth, is_claimed, lacks_bundle })
}

#[cfg(test)]
mod tests;
