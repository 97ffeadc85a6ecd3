//! One run of a container, as the sources stated it and as the kernel showed it; what [`super::merge`] derives a
//! [`Container`](crate::container::Container) from.
//!
//! Lists that nearly always have one or two items grow one by one: a growing `Vec` would begin with room for four.

use std::sync::Arc;

use super::journal::Journal;
use super::view::Row;
use crate::container::{ContainerKey, Exit, Grade, Str, TaskId};
use crate::fact::{Birth, Look, Source, SourceSet, Statement};
use crate::time::BootTime;

/// The last statement of each source, with its moment. A later one replaces, an earlier one that comes late does not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Statements(Vec<Stated>);

#[derive(Clone, Debug)]
struct Stated {
    source: Source,
    at: BootTime,
    /// Taken back: kept only to describe a container whose life is over.
    withdrawn: bool,
    statement: Arc<Statement>,
}

impl Statements {
    /// Whether the statement was newer than what was there.
    pub(crate) fn put(&mut self, source: Source, at: BootTime, statement: Arc<Statement>) -> bool {
        let stated = Stated { source, at, withdrawn: false, statement };
        match self.0.iter_mut().find(|stated| stated.source == source) {
            Some(former) if former.at > at => return false,
            Some(former) => *former = stated,
            None => {
                let place = self.0.partition_point(|other| other.source < source);
                self.0.reserve_exact(1);
                self.0.insert(place, stated);
            }
        }
        true
    }

    /// Takes back what `source` stated up to `at`; whether there was something.
    pub(crate) fn withdraw(&mut self, source: Source, at: BootTime) -> bool {
        let Some(stated) = self.0.iter_mut().find(|stated| stated.source == source && stated.at <= at) else {
            return false;
        };
        (stated.withdrawn, stated.at) = (true, at);
        true
    }

    /// Takes out those statements that `wanted` picks.
    pub(crate) fn extract(&mut self, wanted: impl Fn(&Statement) -> bool) -> Statements {
        Statements(self.0.extract_if(.., |stated| wanted(&stated.statement)).collect())
    }

    /// What `source` stated about a container that is not the one it states `anew`, and when that began: it took the
    /// former statement back, or tells another time of creation.
    pub(crate) fn replaced_by(&self, source: Source, anew: &Statement) -> Option<(BootTime, Arc<Statement>)> {
        let stated = self.0.iter().find(|stated| stated.source == source)?;
        let created = anew.created_at.filter(|at| stated.statement.created_at.is_some_and(|former| former < *at));
        let since = if stated.withdrawn { Some(stated.at) } else { created }?;
        Some((since, Arc::clone(&stated.statement)))
    }

    pub(crate) fn absorb(&mut self, others: Statements) {
        for stated in others.0 {
            let (source, at, withdrawn) = (stated.source, stated.at, stated.withdrawn);
            if self.put(source, at, stated.statement) && withdrawn {
                self.withdraw(source, at);
            }
        }
    }

    pub(crate) fn of(&self, source: Source, and_withdrawn: bool) -> Option<&Statement> {
        let stated = self.0.iter().find(|stated| stated.source == source)?;
        (and_withdrawn || !stated.withdrawn).then_some(&*stated.statement)
    }

    /// What `source` states and has not taken back.
    pub(crate) fn shared(&self, source: Source) -> Option<Arc<Statement>> {
        let stated = self.0.iter().find(|stated| stated.source == source && !stated.withdrawn)?;
        Some(Arc::clone(&stated.statement))
    }

    /// When `source` last stated something.
    pub(crate) fn stated_at(&self, source: Source) -> Option<BootTime> {
        self.0.iter().find(|stated| stated.source == source && !stated.withdrawn).map(|stated| stated.at)
    }

    /// Who states something that was not taken back.
    pub(crate) fn standing(&self) -> SourceSet {
        self.0.iter().filter(|stated| !stated.withdrawn).map(|stated| stated.source).collect()
    }

    /// Who ever stated something.
    pub(crate) fn all(&self) -> SourceSet {
        self.0.iter().map(|stated| stated.source).collect()
    }
}

/// What the kernel showed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shown {
    /// The newest picture of the task; its `born_at` is the earliest ever seen.
    pub birth: Option<Birth>,
    /// Whether the probes, not a scan, saw it first.
    pub seen_live: bool,
    /// When init executed its entrypoint; [`BootTime::ZERO`] where that was before anybody looked.
    pub executed_at: Option<BootTime>,
    /// When init ended, and how where that was seen.
    pub ended: Option<(BootTime, Option<Exit>)>,
    /// When its cgroup was empty for the first time after its end. Kept here since a cgroup that is used again forgets.
    pub emptied_at: Option<BootTime>,
    /// When its last process had gone, or another namespace was born with its number.
    pub gone_at: Option<BootTime>,
    /// When its pid was seen on another process.
    pub pid_reused_at: Option<BootTime>,
}

impl Shown {
    fn absorb(&mut self, other: Shown) {
        let earlier = |a: Option<BootTime>, b: Option<BootTime>| a.into_iter().chain(b).min();
        if let Some(birth) = other.birth {
            self.show(birth);
        }
        self.seen_live |= other.seen_live;
        self.executed_at = self.executed_at.max(other.executed_at);
        self.ended = match (self.ended, other.ended) {
            (Some((at, exit)), Some((other_at, other_exit))) => Some((at.min(other_at), exit.or(other_exit))),
            (ended, other) => ended.or(other),
        };
        self.emptied_at = earlier(self.emptied_at, other.emptied_at);
        self.gone_at = earlier(self.gone_at, other.gone_at);
        self.pid_reused_at = earlier(self.pid_reused_at, other.pid_reused_at);
    }

    /// Takes in a picture of the task: what was seen after its exec replaces what was seen at its birth.
    pub(crate) fn show(&mut self, birth: Birth) {
        self.birth = Some(match self.birth {
            None => birth,
            Some(former) => {
                let (newer, older) = if birth.executed >= former.executed { (birth, former) } else { (former, birth) };
                Birth {
                    born_at: newer.born_at.min(older.born_at),
                    generation: newer.generation.or(older.generation),
                    // Whose it is shows at birth: the entrypoint may run as anybody.
                    uid: if former.born_at <= birth.born_at { former.uid } else { birth.uid },
                    // At birth the creator is the parent; later it may be whoever adopted the orphan.
                    parent: if former.born_at <= birth.born_at { former.parent } else { birth.parent },
                    outer: if former.born_at <= birth.born_at {
                        former.outer.or(birth.outer)
                    } else {
                        birth.outer.or(former.outer)
                    },
                    ..newer
                }
            }
        });
    }
}

/// One run of a container; also one that nobody vouches for, and one that is only announced.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub instance: u64,
    /// Who claims it, sorted; none while nobody vouches for it. More than one when two sources know it by different names.
    pub keys: Vec<ContainerKey>,
    /// Statements about this very run.
    pub statements: Statements,
    pub task: Option<TaskId>,
    /// The init process that a source names which may only speak for its own user: the kernel has to show it first.
    pub unproven_task: Option<TaskId>,
    pub creator: Option<TaskId>,
    /// The run that it was started in, as far as it is known: whoever had its maker's mount namespace at its birth.
    pub outer: Option<u64>,
    /// Whose share of what nobody vouches for it takes.
    pub unvouched_uid: Option<u32>,
    pub shown: Shown,
    /// What it shows of itself, where no runtime was found.
    pub look: Option<Box<Look>>,
    /// What the barrier did with its start.
    pub grade: Option<Grade>,
    pub aborted: Option<(BootTime, Str)>,
    pub first_fact_at: BootTime,
    pub journal: Journal,
    /// What of it is published.
    pub row: Option<Row>,
    pub dirty: bool,
    /// Whether the `on_start` subscribers have it.
    pub start_announced: bool,
}

impl Run {
    pub(crate) fn new(instance: u64, first_fact_at: BootTime) -> Self {
        Run {
            instance,
            keys: Vec::new(),
            statements: Statements::default(),
            task: None,
            unproven_task: None,
            creator: None,
            outer: None,
            unvouched_uid: None,
            shown: Shown::default(),
            look: None,
            grade: None,
            aborted: None,
            first_fact_at,
            journal: Journal::default(),
            row: None,
            dirty: false,
            start_announced: false,
        }
    }

    /// Orders the runs of one container: by when their makers or inits started.
    pub(crate) fn age(&self) -> (u64, u64) {
        (self.task.or(self.creator).map_or(0, |task| task.start_ticks), self.instance)
    }

    /// Takes in what turned out to be the same run.
    pub(crate) fn absorb(&mut self, other: Run) {
        for key in other.keys {
            self.add_key(key);
        }
        self.statements.absorb(other.statements);
        self.task = self.task.or(other.task);
        self.unproven_task = self.unproven_task.or(other.unproven_task);
        self.creator = self.creator.or(other.creator);
        self.outer = self.outer.or(other.outer);
        self.shown.absorb(other.shown);
        self.look = self.look.take().or(other.look);
        self.grade = self.grade.or(other.grade);
        self.aborted = self.aborted.take().or(other.aborted);
        self.first_fact_at = self.first_fact_at.min(other.first_fact_at);
        self.journal.absorb(other.journal);
        self.start_announced |= other.start_announced;
    }

    pub(crate) fn add_key(&mut self, key: ContainerKey) {
        if let Err(place) = self.keys.binary_search(&key) {
            self.keys.reserve_exact(1);
            self.keys.insert(place, key);
        }
    }
}
