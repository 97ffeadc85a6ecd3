//! The state: all runs of all containers, and the one place where facts change it. Pure: no IO, no clock.
//!
//! ```text
//! Fact ─▶ apply ─▶ runs (joined by init task, creator or id) ─▶ settle ─▶ changes of rows
//! ```
//!
//! A *claim* is what runtimes call a container: a key and statements. A *run* is what the kernel shows: an init process
//! in a mount namespace. They are joined by the identity of the init process or of the process that made it, never by a
//! number alone and never by who spoke first, so the same facts give the same containers in whatever order they come.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::config::Config;
use super::door::HeldStep;
use super::journal::{Event, Line};
use super::merge::{self, CgroupSeen, Context, Provenance};
use super::run::{Run, Statements};
use super::view::{Host, Row};
use crate::container::{Container, ContainerKey, Domain, Grade, Str, TaskId};
use crate::fact::{Birth, End, Execution, Fact, Source, SourceSet, Statement, What};
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
    host: Host,
    live: SourceSet,
    runs: HashMap<u64, Run>,
    claims: HashMap<ContainerKey, Claim>,
    by_task: HashMap<TaskId, u64>,
    by_unproven_task: HashMap<TaskId, u64>,
    by_creator: HashMap<TaskId, u64>,
    by_parent: HashMap<TaskId, Vec<u64>>,
    by_generation: HashMap<u64, u64>,
    /// The run that was born last with a mount namespace number, while its interval is open.
    by_mntns: HashMap<u32, u64>,
    by_pid: HashMap<u32, u64>,
    by_cgroup: HashMap<u64, Vec<u64>>,
    cgroups: HashMap<u64, CgroupSeen>,
    cgroup_order: VecDeque<u64>,
    unvouched_by_uid: HashMap<u32, usize>,
    dirty: Vec<u64>,
    removed: Vec<Row>,
    expiries: BTreeSet<(BootTime, u64)>,
    tombstone_bytes: usize,
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
/// A rough size of a tombstone without its maps: the row, the run, its index entries.
const TOMBSTONE_BASE_BYTES: usize = 2_048;
/// How long an announced container may take to come to life before it is forgotten.
const ANNOUNCED_FOR: Duration = Duration::from_secs(600);

impl State {
    pub(crate) fn new(config: Config, host: Host) -> Self {
        State {
            config,
            host,
            live: SourceSet::EMPTY,
            runs: HashMap::new(),
            claims: HashMap::new(),
            by_task: HashMap::new(),
            by_unproven_task: HashMap::new(),
            by_creator: HashMap::new(),
            by_parent: HashMap::new(),
            by_generation: HashMap::new(),
            by_mntns: HashMap::new(),
            by_pid: HashMap::new(),
            by_cgroup: HashMap::new(),
            cgroups: HashMap::new(),
            cgroup_order: VecDeque::new(),
            unvouched_by_uid: HashMap::new(),
            dirty: Vec::new(),
            removed: Vec::new(),
            expiries: BTreeSet::new(),
            tombstone_bytes: 0,
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
                let seen = self.cgroup(id);
                seen.emptied_at = seen.emptied_at.max(Some(at));
                for run in self.by_cgroup.get(&id).cloned().unwrap_or_default() {
                    self.tell(run, source, at, Event::Gone);
                }
            }
            What::Scanned(births) => self.scanned(source, at, &births),
            What::Stated { key, statement } => self.stated(source, at, key, statement.into()),
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

    // ---- what the kernel shows

    fn born(&mut self, source: Source, at: BootTime, birth: Birth, event: Event) -> Option<u64> {
        let known = birth.generation.and_then(|generation| self.by_generation.get(&generation).copied());
        let of_task = self.by_task.get(&birth.task).copied();
        let made = birth.parent.and_then(|parent| self.by_creator.get(&parent).copied());
        let made = made.filter(|run| self.runs[run].task.is_none_or(|task| task == birth.task));
        let unproven = self.by_unproven_task.get(&birth.task).copied();
        let proven = unproven.filter(|run| self.runs[run].keys.iter().all(|key| admits(key.domain, Some(&birth))));
        let run = match known.or(of_task).or(made).or(proven) {
            Some(run) => run,
            None if !self.admits_unvouched(birth.uid) => {
                self.counts.unvouched_refused += 1;
                return None;
            }
            None => {
                let run = self.new_run(at);
                *self.unvouched_by_uid.entry(birth.uid).or_default() += 1;
                self.run(run).unvouched_uid = Some(birth.uid);
                run
            }
        };
        let seen_live = event != Event::Scanned && source == Source::Kernel && self.runs[&run].shown.birth.is_none();
        self.tell(run, source, at, event);
        let run = self.join(run, of_task);
        let run = self.join(run, made);
        let run = self.join(run, proven);
        self.show(run, birth);
        let shown = &mut self.run(run).shown;
        shown.seen_live |= seen_live;
        if birth.executed {
            shown.executed_at.get_or_insert(BootTime::ZERO);
        }
        Some(run)
    }

    fn executed(&mut self, source: Source, at: BootTime, execution: Execution) {
        let event = Event::Executed { by_init: execution.by_init };
        // What another process than init shows is not a picture of the container's init.
        let known = execution.task.generation.and_then(|generation| self.by_generation.get(&generation).copied());
        let run = match known.filter(|_| !execution.by_init) {
            Some(run) => {
                self.tell(run, source, at, event);
                return;
            }
            None => self.born(source, at, Birth { executed: execution.by_init, ..execution.task }, event),
        };
        if let Some(run) = run.filter(|_| execution.by_init) {
            let executed_at = &mut self.run(run).shown.executed_at;
            // The first one counts; one that a scan inferred has no time.
            *executed_at = match *executed_at {
                Some(first) if first != BootTime::ZERO => Some(first.min(at)),
                _ => Some(at),
            };
        }
    }

    fn ended(&mut self, source: Source, at: BootTime, end: End) {
        let Some(run) = self.by_task.get(&end.task).copied() else {
            return;
        };
        let shown = &mut self.run(run).shown;
        // A scan may have missed it first, without knowing how it ended.
        shown.ended = match shown.ended {
            Some((missed_at, None)) => Some((missed_at.min(at), Some(end.exit))),
            Some(ended) => Some(ended),
            None => Some((at, Some(end.exit))),
        };
        self.tell(run, source, at, Event::Ended(end.exit));
    }

    /// Compares what is alive with what the state believes, and corrects the state.
    fn scanned(&mut self, source: Source, at: BootTime, births: &[Birth]) {
        let before: HashSet<u64> = self.runs.keys().copied().collect();
        let alive: HashSet<u64> =
            births.iter().filter_map(|birth| self.born(source, at, *birth, Event::Scanned)).collect();
        let first_scan = before.is_empty();
        if !first_scan && self.live.contains(Source::Kernel) {
            // Whoever was born after the scan was read is not new to the probes, only not yet told.
            self.counts.corrections += alive.difference(&before).count() as u64;
        }
        let tasks: HashSet<TaskId> = births.iter().map(|birth| birth.task).collect();
        let started_before = |task: TaskId| BootTime((task.start_ticks + 1).saturating_mul(10_000_000)) < at;
        let gone: Vec<u64> = self
            .runs
            .values()
            .filter(|run| run.task.is_some_and(|task| started_before(task) && !tasks.contains(&task)))
            .filter(|run| run.shown.birth.is_none_or(|birth| birth.born_at < at))
            .map(|run| run.instance)
            .collect();
        for run in gone {
            if self.runs[&run].shown.ended.is_none() {
                self.run(run).shown.ended = Some((at, None));
                self.counts.corrections += 1;
                self.tell(run, source, at, Event::Missing);
            }
            // Others of its mount namespace may live on; they were found under its generation.
            if !alive.contains(&run) && self.runs[&run].shown.gone_at.is_none() && self.is_open(run) {
                self.run(run).shown.gone_at = Some(at);
                self.tell(run, source, at, Event::Gone);
            }
        }
    }

    /// Puts a picture of the kernel's into a run, and closes whoever had its numbers before.
    fn show(&mut self, run: u64, birth: Birth) {
        if self.runs[&run].task.is_none() {
            self.set_task(run, birth.task);
        }
        let shown = &mut self.run(run).shown;
        // The namespace's init is what it was born on; who lives on after it is not a picture of it.
        if shown.birth.is_some_and(|former| former.task != birth.task && former.born_at <= birth.born_at) {
            return;
        }
        shown.show(birth);
        let born_at = shown.birth.map_or(birth.born_at, |birth| birth.born_at);
        if let Some(generation) = birth.generation {
            self.by_generation.insert(generation, run);
        }
        if let Some(parent) = birth.parent {
            let children = self.by_parent.entry(parent).or_default();
            if !children.contains(&run) {
                children.push(run);
            }
        }
        self.succeed(run, birth.namespaces.mnt, born_at);
    }

    /// A mount namespace's number is on `run` since `born_at`: whoever had it before has gone by then.
    fn succeed(&mut self, run: u64, mntns: u32, born_at: BootTime) {
        let before =
            self.by_mntns.get(&mntns).copied().filter(|before| *before != run && self.runs.contains_key(before));
        let Some(other) = before else {
            self.by_mntns.insert(mntns, run);
            return;
        };
        let other_born_at = self.runs[&other].shown.birth.map_or(BootTime::ZERO, |birth| birth.born_at);
        let (old, close_at) = if other_born_at <= born_at { (other, born_at) } else { (run, other_born_at) };
        let gone_at = &mut self.run(old).shown.gone_at;
        *gone_at = Some(gone_at.map_or(close_at, |gone_at| gone_at.min(close_at)));
        if old == other {
            self.by_mntns.insert(mntns, run);
        }
    }

    fn admits_unvouched(&self, uid: u32) -> bool {
        let share = self.config.max_containers / 8;
        let of_all: usize = self.unvouched_by_uid.values().sum();
        let of_uid = self.unvouched_by_uid.get(&uid).copied().unwrap_or(0);
        of_all < share && (uid == 0 || of_uid < share / 4)
    }

    // ---- what sources state

    fn stated(&mut self, source: Source, at: BootTime, key: ContainerKey, statement: Arc<Statement>) {
        let run = match (statement.task, statement.creator) {
            (None, None) => {
                let claim = self.claims.entry(key.clone()).or_default();
                claim.statements.put(source, at, statement);
                let runs = claim.runs.clone();
                runs.iter().for_each(|run| self.touch(*run));
                match self.latest(&key) {
                    Some(run) => run,
                    None => self.new_claimed_run(&key, at),
                }
            }
            (task, creator) => {
                let run = self.claimed_run(&key, at, task, creator);
                if self.run(run).statements.put(source, at, Arc::clone(&statement)) {
                    self.touch(run);
                }
                run
            }
        };
        self.tell(run, source, at, Event::Stated);
    }

    /// The run of `key` with this init process or maker; joins what turns out to be the same, makes one where none is.
    fn claimed_run(&mut self, key: &ContainerKey, at: BootTime, task: Option<TaskId>, creator: Option<TaskId>) -> u64 {
        let own = |state: &Self, wanted: &dyn Fn(&Run) -> bool| {
            state.claims.get(key)?.runs.iter().copied().find(|run| wanted(&state.runs[run]))
        };
        let with_task = task.and_then(|task| self.by_task.get(&task).copied());
        let with_task = with_task.filter(|run| {
            let admitted = admits(key.domain, self.runs[run].shown.birth.as_ref());
            self.counts.foreign_claims += u64::from(!admitted);
            admitted
        });
        let with_creator = creator.and_then(|creator| self.by_creator.get(&creator).copied());
        let child = creator.and_then(|creator| self.by_parent.get(&creator)?.first().copied());
        let child = child.filter(|run| {
            let run = &self.runs[run];
            admits(key.domain, run.shown.birth.as_ref()) && run.creator.is_none()
        });
        // A container that was only announced has come to life.
        let announced =
            own(self, &|run: &Run| run.task.is_none() && run.creator.is_none() && run.unproven_task.is_none());
        let waiting = || {
            task?;
            own(self, &|run: &Run| {
                run.task.is_none() && run.aborted.is_none() && run.creator.is_none_or(|made| Some(made) == creator)
            })
        };
        let found = with_task.or(with_creator).or(child).or_else(waiting).or(announced);
        let mut run = match found {
            Some(run) => run,
            None => self.new_run(at),
        };
        for same in [with_task, with_creator, child, announced] {
            run = self.join(run, same);
        }
        if let (Some(task), None) = (task, self.runs[&run].task) {
            match key.domain {
                Domain::Host => self.set_task(run, task),
                _ => {
                    self.run(run).unproven_task = Some(task);
                    self.by_unproven_task.entry(task).or_insert(run);
                }
            }
        }
        if let (Some(creator), None) = (creator, self.runs[&run].creator) {
            self.run(run).creator = Some(creator);
            self.by_creator.insert(creator, run);
        }
        self.add_claim(run, key);
        run
    }

    fn withdrawn(&mut self, source: Source, at: BootTime, key: &ContainerKey) {
        let Some(claim) = self.claims.get_mut(key) else { return };
        claim.statements.withdraw(source, at);
        for run in claim.runs.clone() {
            self.run(run).statements.withdraw(source, at);
            self.tell(run, source, at, Event::Withdrawn);
        }
    }

    fn listed(&mut self, source: Source, at: BootTime, scope: &str, keys: &HashSet<ContainerKey>) {
        let missing: Vec<ContainerKey> = self
            .claims
            .iter()
            .filter(|(key, _)| &*key.scope == scope && !keys.contains(*key))
            .filter(|(_, claim)| {
                let stands = |statements: &Statements| statements.standing().contains(source);
                stands(&claim.statements) || claim.runs.iter().any(|run| stands(&self.runs[run].statements))
            })
            .map(|(key, _)| key.clone())
            .collect();
        missing.iter().for_each(|key| self.withdrawn(source, at, key));
    }

    fn set_live(&mut self, source: Source, live: bool) {
        if live == self.live.contains(source) {
            return;
        }
        match live {
            true => self.live.insert(source),
            false => self.live.remove(source),
        }
        let all: Vec<u64> = self.runs.keys().copied().collect();
        all.into_iter().for_each(|run| self.touch(run));
    }

    // ---- runs

    fn new_run(&mut self, at: BootTime) -> u64 {
        let instance = self.next_instance;
        self.next_instance += 1;
        self.runs.insert(instance, Run::new(instance, at));
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
            let starts = |run: &Run| run.task.map_or(0, |task| task.start_ticks);
            let (old, new) = match starts(&self.runs[&former]) <= task.start_ticks {
                true => (former, run),
                false => (run, former),
            };
            let reused_at = BootTime(starts(&self.runs[&new]).saturating_mul(10_000_000));
            self.run(old).shown.pid_reused_at = Some(reused_at);
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
        for key in &absorbed.keys {
            let claim = self.claims.entry(key.clone()).or_default();
            claim.runs.retain(|run| *run != younger && *run != elder);
            claim.runs.push(elder);
        }
        self.run(elder).absorb(absorbed);
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
    fn forget(&mut self, instance: u64) -> Run {
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
        if let Some(expiry) = self.expiry(row)
            && self.expiries.remove(&(expiry, instance))
        {
            self.tombstone_bytes -= tombstone_bytes(row);
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

    // ---- out

    /// Derives what the applied facts changed, and gives each change its sequence number.
    pub(crate) fn settle(&mut self) -> Vec<RowChange> {
        let mut changes = Vec::new();
        for row in std::mem::take(&mut self.removed) {
            self.sequence += 1;
            changes.push(RowChange { sequence: self.sequence, before: Some(row), after: None });
        }
        for instance in std::mem::take(&mut self.dirty) {
            let Some(run) = self.runs.get_mut(&instance) else { continue };
            run.dirty = false;
            let before = run.row.clone();
            let Some(mut after) = self.derive(instance, None, None) else { continue };
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
            changes.push(RowChange { sequence: self.sequence, before, after: Some(after) });
        }
        changes
    }

    fn schedule(&mut self, instance: u64, row: &Row) {
        if let Some(expiry) = self.expiry(row)
            && self.expiries.insert((expiry, instance))
        {
            self.tombstone_bytes += tombstone_bytes(row);
        }
    }

    fn index(&mut self, instance: u64, row: &Row) {
        self.schedule(instance, row);
        if let Some(id) = row.container.cgroup.id {
            self.by_cgroup.entry(id).or_default().push(instance);
        }
    }

    /// A run as it would be published, whole or by one source's own view.
    pub(crate) fn derive(&self, run: u64, only: Option<Source>, provenance: Option<&mut Provenance>) -> Option<Row> {
        let run = self.runs.get(&run)?;
        let container = run.keys.first().and_then(|key| self.claims.get(key)).map(|claim| &claim.statements);
        let mut context = Context { host: self.host, live: self.live, cgroup: None, only };
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

    /// When a row that is over may be forgotten, as far as the row tells.
    fn expiry(&self, row: &Row) -> Option<BootTime> {
        let container = &row.container;
        let linger = self.config.linger();
        let add = |at: BootTime, time: Duration| BootTime(at.0.saturating_add(time.as_nanos() as u64));
        match (container.state.is_over(), container.task) {
            // While its last processes have not gone, its numbers are its own; ten times the linger bounds that.
            (true, Some(_)) if row.here.is_open() => container.exited_at.map(|at| add(at, linger * 10)),
            (true, Some(_)) => Some(add(row.here.closed.max(container.exited_at.unwrap_or_default()), linger)),
            (true, None) => Some(add(row.here.opened.max(container.exited_at.unwrap_or_default()), linger)),
            (false, None) => Some(add(row.here.opened, ANNOUNCED_FOR)),
            (false, Some(_)) => None,
        }
    }

    /// The next moment at which [`State::expire`] has something to do.
    pub(crate) fn next_expiry(&self) -> Option<BootTime> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// Forgets what has been over for long enough, and the oldest of that where it is too much.
    pub(crate) fn expire(&mut self, now: BootTime) {
        loop {
            let Some((at, instance)) = self.expiries.first().copied() else { return };
            let crowded = self.tombstone_bytes > self.config.tombstone_bytes;
            if at > now && !crowded {
                return;
            }
            self.expiries.remove(&(at, instance));
            let Some(row) = self.runs.get(&instance).and_then(|run| run.row.clone()) else { continue };
            self.tombstone_bytes -= tombstone_bytes(&row);
            if self.is_vouched_elsewhere(instance) && !crowded {
                continue;
            }
            self.counts.tombstones_evicted += u64::from(at > now);
            self.bury(instance);
        }
    }

    /// Whether a runtime still lists the container whose latest run this is.
    fn is_vouched_elsewhere(&self, instance: u64) -> bool {
        let run = &self.runs[&instance];
        let runtime = |set: SourceSet| {
            set.iter().any(|source| !matches!(source, Source::Kernel | Source::Barrier | Source::Proc))
        };
        run.keys.iter().any(|key| {
            self.latest(key) == Some(instance)
                && (runtime(run.statements.standing())
                    || self.claims.get(key).is_some_and(|claim| runtime(claim.statements.standing())))
        })
    }

    fn bury(&mut self, instance: u64) {
        self.count_missing_witnesses(instance);
        let run = self.forget(instance);
        for key in run.keys {
            if let Some(claim) = self.claims.get_mut(&key) {
                claim.runs.retain(|run| *run != instance);
                if claim.runs.is_empty() {
                    self.claims.remove(&key);
                }
            }
        }
    }

    fn count_missing_witnesses(&mut self, instance: u64) {
        let run = &self.runs[&instance];
        let Some(row) = run.row.as_ref().filter(|row| row.container.kind.is_vouched_for()) else { return };
        let container = &row.container;
        let mut missed = container.awaiting;
        if container.task.is_some() && !run.shown.seen_live && container.grade != Some(Grade::Observed) {
            missed.insert(Source::Kernel);
        }
        if run.shown.seen_live && !container.is_stated_by(Source::Barrier) && self.live.contains(Source::Barrier) {
            missed.insert(Source::Barrier);
        }
        missed.iter().for_each(|source| self.counts.missed_by[source as usize] += 1);
    }

    /// A run as it is published.
    pub(crate) fn container(&self, instance: u64) -> Option<Arc<Container>> {
        Some(Arc::clone(&self.runs.get(&instance)?.row.as_ref()?.container))
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

    /// Statements about missing fields, of all who speak about the run.
    pub(crate) fn missing(&self, instance: u64) -> Vec<(&'static str, Str)> {
        let Some(run) = self.runs.get(&instance) else { return Vec::new() };
        let said = Source::ALL.iter().filter_map(|source| run.statements.of(*source, true));
        said.flat_map(|statement| statement.missing.iter().cloned()).collect()
    }

    /// The runs of all containers with this mount ns or init pid that nobody vouches for: to be looked at more closely.
    pub(crate) fn unclaimed(&self, instance: u64) -> Option<Birth> {
        let run = self.runs.get(&instance)?;
        run.shown.birth.filter(|_| run.keys.is_empty() && run.shown.ended.is_none())
    }
}

/// Whether a source that speaks for `domain` may say what the kernel shows.
fn admits(domain: Domain, birth: Option<&Birth>) -> bool {
    match domain {
        Domain::Host => true,
        Domain::User(uid) => birth.is_some_and(|birth| birth.uid == uid),
        Domain::Container(_) => false,
    }
}

fn tombstone_bytes(row: &Row) -> usize {
    let maps = [&row.container.labels, &row.container.annotations];
    let of_maps = maps.iter().flat_map(|map| map.iter()).map(|(key, value)| key.len() + value.len() + 64);
    TOMBSTONE_BASE_BYTES + of_maps.sum::<usize>()
}

#[cfg(test)]
mod tests;
