//! Facts: the closed list of what a source may state.
//!
//! A fact is one typed statement by one source about one entity at one moment. Applying facts is idempotent and does
//! not depend on their order, so a source may repeat itself and sources need not agree on who speaks first. A source
//! states *all it knows* about a container at once: its next [`Statement`] replaces its former one, so what it no
//! longer says is gone.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use crate::container::{
    Cgroup, ContainerKey, Details, Exit, Grade, Image, Kind, Labels, Namespaces, Pod, Runtime, State, Str, TaskId,
};
use crate::enrich::recognise::Recognised;
use crate::time::BootTime;

/// Who reports facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Source {
    /// The eBPF probes and the task iterator.
    Kernel,
    /// The fanotify barrier: the OCI runtimes' own command lines and bundles.
    Barrier,
    /// What was read from `/proc` and the runtimes' state directories.
    Proc,
    /// containerd's API.
    Containerd,
    /// The CRI.
    Cri,
    /// Docker's API.
    Docker,
    /// Podman's REST service.
    Podman,
    /// The Kubernetes API.
    Kubernetes,
    /// Registrations by people and programs.
    Manual,
}

impl Source {
    /// All sources, in the order of their numbers.
    pub const ALL: [Source; 9] = [
        Source::Kernel,
        Source::Barrier,
        Source::Proc,
        Source::Containerd,
        Source::Cri,
        Source::Docker,
        Source::Podman,
        Source::Kubernetes,
        Source::Manual,
    ];

    /// Its name, as in the glossary.
    pub fn name(self) -> &'static str {
        match self {
            Source::Kernel => "kernel",
            Source::Barrier => "barrier",
            Source::Proc => "proc",
            Source::Containerd => "containerd",
            Source::Cri => "cri",
            Source::Docker => "docker",
            Source::Podman => "podman",
            Source::Kubernetes => "kubernetes",
            Source::Manual => "manual",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of sources.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SourceSet(u16);

impl SourceSet {
    /// No source.
    pub const EMPTY: SourceSet = SourceSet(0);

    /// Adds `source`.
    pub fn insert(&mut self, source: Source) {
        self.0 |= 1 << source as u16;
    }

    /// Takes `source` out.
    pub fn remove(&mut self, source: Source) {
        self.0 &= !(1 << source as u16);
    }

    /// Whether `source` is in the set.
    pub fn contains(self, source: Source) -> bool {
        self.0 & (1 << source as u16) != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The sources in it, in the order of [`Source::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Source> {
        Source::ALL.into_iter().filter(move |source| self.contains(*source))
    }
}

impl FromIterator<Source> for SourceSet {
    fn from_iter<I: IntoIterator<Item = Source>>(sources: I) -> Self {
        let mut set = SourceSet::EMPTY;
        sources.into_iter().for_each(|source| set.insert(source));
        set
    }
}

impl fmt::Debug for SourceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Serialize for SourceSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// One statement by one source at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// Who says so.
    pub source: Source,
    /// When it was so: the event's own time where it has one, else the time of reading.
    pub at: BootTime,
    /// What is stated.
    pub what: What,
}

/// What a fact states.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A mount namespace other than the host's was seen for the first time, with the task it was seen on
    /// (`kernel`, `proc`, `manual`).
    Born(Birth),
    /// A task executed in such a namespace: the first to do so, or its init process for the first time.
    Executed(Execution),
    /// The last thread of an init process ended.
    Ended(End),
    /// A cgroup directory was made.
    CgroupMade {
        /// Id in the cgroup v2 hierarchy.
        id: u64,
        /// Path below the hierarchy's root.
        path: Str,
    },
    /// The last task left a cgroup, or the cgroup was removed: whoever lived there has gone.
    CgroupEmptied {
        /// Id in the cgroup v2 hierarchy.
        id: u64,
    },
    /// Everything that a scan found alive in mount namespaces that are not the host's.
    /// A process that was born before the fact's moment and is not in it has ended.
    Scanned {
        /// One process of each namespace: the one that stands for it.
        inits: Vec<Birth>,
        /// All processes, those included.
        tasks: Vec<TaskId>,
    },
    /// All that the source knows about a container; replaces its former statement about it.
    Stated {
        /// The container as its runtime names it.
        key: ContainerKey,
        /// All the source knows.
        statement: Box<Statement>,
    },
    /// The source no longer knows the container: its statements are taken back, and only its own.
    Withdrawn {
        /// The container as its runtime names it.
        key: ContainerKey,
    },
    /// The source's whole list for one scope: containers of that scope that it stated before and that are not in the
    /// list are withdrawn.
    Listed {
        /// The scope of the list ([`ContainerKey::scope`]).
        scope: Str,
        /// All containers in it.
        keys: Vec<ContainerKey>,
    },
    /// A container was being created and never came to life.
    Aborted {
        /// The container as its runtime names it.
        key: ContainerKey,
        /// Why, for people.
        reason: Str,
    },
    /// How a held start ended.
    Graded {
        /// The container as its runtime names it.
        key: ContainerKey,
        /// `held` or `let-go`.
        grade: Grade,
    },
    /// What an init process shows of itself that no runtime describes (`proc`).
    Looked {
        /// The process.
        task: TaskId,
        /// What it shows.
        look: Box<Look>,
    },
    /// Whether the source will report: a source that is not live is not awaited.
    Live(bool),
    /// Something worth a line in a container's story that changes nothing else.
    Noted {
        /// The container as its runtime names it.
        key: ContainerKey,
        /// The line, for people.
        note: Str,
    },
}

/// A task in a mount namespace that is not the host's, as the kernel shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Birth {
    /// The task's process.
    pub task: TaskId,
    /// Its parent process at that moment, as the kernel has it (`real_parent`, not the caller of `clone`: runc's
    /// helper clones its init with `CLONE_PARENT`), with the parent's own start time. An OCI runtime's container is
    /// bound to its `create` by this alone, so an unknown parent must be `None` rather than a pid without a start time.
    pub parent: Option<TaskId>,
    /// The mount namespace of that parent at that moment, where somebody could still look: whose it is, the container was
    /// started in.
    pub outer: Option<u32>,
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// The mount namespace's never-reused id, where the kernel has one (`mnt_namespace.seq` up to 6.17,
    /// `ns_common.ns_id` from 6.18).
    pub generation: Option<u64>,
    /// Its cgroup in the v2 hierarchy; may still be its creator's at birth.
    pub cgroup_id: Option<u64>,
    /// Real kernel uid of the task (initial user namespace's numbering).
    pub uid: u32,
    /// When the namespace was first seen; for a scan, when the task started.
    pub born_at: BootTime,
    /// Whether the init process has executed its entrypoint, as far as the reporter can tell.
    pub executed: bool,
}

/// An exec in a mount namespace that is not the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execution {
    /// The task as it is after the exec. Its `born_at` is the namespace's birth.
    pub task: Birth,
    /// Whether the executing process is the one that the namespace's birth was seen on.
    pub by_init: bool,
}

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The process.
    pub task: TaskId,
    /// Its mount namespace.
    pub mntns: u32,
    /// The mount namespace's never-reused id.
    pub generation: Option<u64>,
    /// How it ended.
    pub exit: Exit,
}

/// What a look at an init process shows. Counts as long as nobody vouches for its container.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    /// What it is, and what manages it as far as that shows.
    pub recognised: Recognised,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// What it was started with.
    pub command: Option<Arc<[Str]>>,
}

/// All that one source knows about one container. Absent means that the source does not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statement {
    /// Container or sandbox.
    pub kind: Option<Kind>,
    /// The init process; the claim binds to the kernel's task with this identity.
    pub task: Option<TaskId>,
    /// A process that is about to make the container: an init process born from it is this container's.
    pub creator: Option<TaskId>,
    /// Namespaces of the init process, where the source read them.
    pub namespaces: Option<Namespaces>,
    /// State as the source sees it.
    pub state: Option<State>,
    /// Human name.
    pub name: Option<Str>,
    /// What manages it.
    pub runtime: Option<Runtime>,
    /// Image.
    pub image: Option<Image>,
    /// Pod.
    pub pod: Option<Pod>,
    /// Labels.
    pub labels: Option<Labels>,
    /// Annotations.
    pub annotations: Option<Labels>,
    /// How its runtime set it up; boxed, since many statements say nothing of it.
    pub details: Option<Box<Details>>,
    /// Whether it shares the host's net namespace.
    pub host_network: Option<bool>,
    /// Cgroup.
    pub cgroup: Option<Cgroup>,
    /// OCI bundle directory.
    pub bundle: Option<Str>,
    /// Creation.
    pub created_at: Option<BootTime>,
    /// Start.
    pub started_at: Option<BootTime>,
    /// End of the init process.
    pub exited_at: Option<BootTime>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Why a field that one would expect is missing, for `explain`: (field, reason).
    pub missing: Vec<(&'static str, Str)>,
}
