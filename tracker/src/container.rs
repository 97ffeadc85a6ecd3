//! What the tracker knows about one container: plain values, no behaviour, no IO.
//!
//! A [`Container`] is what readers get. It is derived from what the sources stated and from what the kernel
//! showed; nothing outside the collection makes or changes one. Absent means unknown: a field that no source
//! stated is `None`, never empty.

mod details;
mod labels;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use details::{Address, Details, Health, Mount, Port, Resources};
pub use labels::Labels;

use crate::fact::{Source, SourceSet};
use crate::time::BootTime;

/// An interned, cheaply cloned string.
pub type Str = Arc<str>;

/// Whom a source may speak for.
///
/// Facts of a domain bind only to containers whose init the kernel shows in that domain, and a container's key
/// contains its domain, so that an id cannot shadow the same id of another domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Domain {
    /// Root in the initial user namespace and the host's mount namespace: may speak for everything.
    #[default]
    Host,
    /// One user, by kernel uid.
    User(u32),
    /// Whatever runs inside the container with this init process: callers in its mount namespace, with its paths.
    Container(TaskId),
}

/// A container as its runtime names it. Two runtimes, or two namespaces of one runtime, may use the same id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerKey {
    /// Who says so.
    pub domain: Domain,
    /// The runtime's own scope for ids: `containerd/<containerd namespace>` where the bundle or the source tells it,
    /// else `oci<root directory of the OCI runtime>`, for example `oci/run/runc`.
    pub scope: Str,
    /// The id, valid inside the scope.
    pub id: ContainerId,
}

impl fmt::Display for ContainerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.scope, self.id)
    }
}

/// A container id that passed the rules of runc: 1 to 1024 characters out of `[A-Za-z0-9_+.-]`, and neither `.` nor `..`.
///
/// ```
/// use tracker::ContainerId;
/// assert!(ContainerId::new("web-1").is_ok());
/// assert!(ContainerId::new("..").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ContainerId(Str);

/// Why a string is not a [`ContainerId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Nothing at all.
    #[error("a container id must not be empty")]
    Empty,
    /// Longer than [`ContainerId::MAX_LEN`] bytes.
    #[error("a container id has at most {max} bytes, this one has {len}", max = ContainerId::MAX_LEN)]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// `.` or `..`, which would name a directory of the runtime's.
    #[error("a container id must not be `.` or `..`")]
    Dots,
    /// A byte that runc refuses, at this offset.
    #[error("a container id consists of letters, digits and `_+.-`; byte {0} is another")]
    Byte(usize),
}

impl ContainerId {
    /// Longer ids cannot be directory names, and are not read.
    pub const MAX_LEN: usize = 1024;

    /// Checks `id` by runc's rules.
    pub fn new(id: &str) -> Result<Self, InvalidId> {
        if id.is_empty() {
            return Err(InvalidId::Empty);
        }
        if id.len() > Self::MAX_LEN {
            return Err(InvalidId::TooLong { len: id.len() });
        }
        if id == "." || id == ".." {
            return Err(InvalidId::Dots);
        }
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+' | b'.' | b'-');
        match id.bytes().position(|b| !valid(b)) {
            Some(offset) => Err(InvalidId::Byte(offset)),
            None => Ok(Self(id.into())),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as text, without a copy.
    pub(crate) fn shared(&self) -> Str {
        Str::clone(&self.0)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One process, never mistaken for a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TaskId {
    /// Thread group id in the host's pid namespace.
    pub pid: u32,
    /// Start time in clock ticks of 1/100 s since boot: field 22 of `/proc/<pid>/stat`, or the kernel's
    /// `task_struct.start_boottime` divided by 10,000,000.
    pub start_ticks: u64,
}

impl TaskId {
    /// Nanoseconds in a tick: `/proc` counts in 1/100 s on every architecture that Linux has left.
    pub(crate) const TICK_NS: u64 = 10_000_000;

    /// The earliest moment at which it can have started.
    pub(crate) fn started_from(self) -> BootTime {
        BootTime(self.start_ticks.saturating_mul(Self::TICK_NS))
    }

    /// The moment by which it had started: up to one tick later than it did.
    pub(crate) fn started_by(self) -> BootTime {
        BootTime(self.start_ticks.saturating_add(1).saturating_mul(Self::TICK_NS))
    }
}

/// Inode numbers of a task's namespaces. 0 means unknown: the kernel never hands out 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Namespaces {
    /// Mount namespace.
    pub mnt: u32,
    /// Net namespace.
    pub net: u32,
    /// Pid namespace of the task itself (not the one for its children).
    pub pid: u32,
    /// Cgroup namespace.
    pub cgroup: u32,
    /// User namespace of the task's credentials.
    pub user: u32,
}

/// What an entity is. Whether `ps` shows it by default depends on this alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A container that a runtime vouches for.
    Container,
    /// A pod's sandbox ("pause") container.
    Sandbox,
    /// Namespaces of their own, and nobody vouches for them.
    #[default]
    Unmanaged,
    /// A process that some program (a systemd unit, a browser) put into namespaces of its own.
    SandboxedProcess,
}

impl Kind {
    /// Its name, as in the glossary and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Container => "container",
            Kind::Sandbox => "sandbox",
            Kind::Unmanaged => "unmanaged",
            Kind::SandboxedProcess => "sandboxed-process",
        }
    }

    /// Whether a runtime, or a person, says what it is.
    pub fn is_vouched_for(self) -> bool {
        matches!(self, Kind::Container | Kind::Sandbox)
    }
}

/// Where in its life a container is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The kernel saw it being born; no witness said yet what it is.
    #[default]
    Provisional,
    /// It exists, its entrypoint has not been allowed to run.
    Created,
    /// Its entrypoint runs.
    Running,
    /// Frozen.
    Paused,
    /// Its init process ended.
    Exited,
    /// It was being created and never came to life.
    Aborted,
}

impl State {
    /// Its name, as in the glossary and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            State::Provisional => "provisional",
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Exited => "exited",
            State::Aborted => "aborted",
        }
    }

    /// Whether the container's life is over.
    pub fn is_over(self) -> bool {
        matches!(self, State::Exited | State::Aborted)
    }
}

/// How early a container was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grade {
    /// Published, and every on-time subscriber ran, before its start was allowed.
    Held,
    /// Its start was caught, but allowed before all was done: the budget was over first.
    LetGo,
    /// The kernel source saw it be born or execute first; nothing held it.
    FirstExec,
    /// It was there before us, or only seen afterwards.
    Observed,
}

impl Grade {
    /// Its name, as in the glossary and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Grade::Held => "held",
            Grade::LetGo => "let-go",
            Grade::FirstExec => "first-exec",
            Grade::Observed => "observed",
        }
    }
}

/// The runtime that manages a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// `containerd`, `docker`, `podman`, `cri-o`, or the OCI runtime's own name where nothing manages it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Str>,
    /// The containerd namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Str>,
    /// The runtime handler, for example `io.containerd.runc.v2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler: Option<Str>,
    /// The OCI runtime: `runc`, `crun`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci: Option<Str>,
}

/// The image that a container was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its name as the runtime resolved it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Str>,
    /// Digest of the image's config, with its algorithm: `sha256:…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Str>,
    /// Digest of the image's manifest or index, with its algorithm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Str>,
}

/// The pod that a container belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Pod name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Str>,
    /// Pod namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Str>,
    /// Pod uid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<Str>,
    /// Id of the pod's sandbox container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<Str>,
    /// The pod's labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// The pod's annotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Labels>,
    /// What owns the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

/// The workload that owns a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// `Deployment`, `DaemonSet`, …
    pub kind: Str,
    /// Its name.
    pub name: Str,
}

/// The container that another one was started in: where the process that made it lived.
///
/// By the kernel's word alone. Who merely shares namespaces with a container, as those of a pod do, was not started in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its id.
    pub id: Str,
    /// The run of it ([`Container::instance`]).
    pub instance: u64,
}

/// A container's cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Id in the cgroup v2 hierarchy (the inode number of its directory); absent where only v1 is mounted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// Path in the v2 hierarchy, as seen from the host's cgroup root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Str>,
    /// Path in the v1 hierarchies, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v1_path: Option<Str>,
}

/// How a container's init ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal when a signal ended it, whatever the source says.
    pub code: u32,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<u32>,
    /// Whether the out-of-memory killer did it, where that could be known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom: Option<bool>,
}

/// One container, as of one sequence number of the collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The runtime's id; a made-up stable one (`mntns-<generation>`) where nobody vouches for it.
    pub id: Str,
    /// Who vouches for it.
    pub domain: Domain,
    /// One run of the container: a restart keeps the id and gets a new instance. Never reused by this tracker.
    pub instance: u64,
    /// Its human name: a runtime's or Kubernetes' name, not the id.
    pub name: Option<Str>,
    /// What it is.
    pub kind: Kind,
    /// Where in its life it is.
    pub state: State,
    /// How early it was known; absent until its first process exists.
    pub grade: Option<Grade>,
    /// Sequence number of the change that made this value.
    pub sequence: u64,
    /// Sources that will say something about it and have not yet.
    pub awaiting: SourceSet,
    /// Sources that have stated something about it.
    pub sources: SourceSet,
    /// What manages it.
    pub runtime: Runtime,
    /// What it was made from.
    pub image: Option<Image>,
    /// The pod it belongs to.
    pub pod: Option<Pod>,
    /// Labels of the container.
    pub labels: Labels,
    /// Annotations of the OCI bundle and of the runtime.
    pub annotations: Labels,
    /// How its runtime set it up.
    pub details: Arc<Details>,
    /// The container that it was started in; absent for one that was started on the host.
    pub parent: Option<Parent>,
    /// Its init process.
    pub task: Option<TaskId>,
    /// Namespaces of its init process; they stay after the exit.
    pub namespaces: Namespaces,
    /// The mount namespace's never-reused id, where the kernel has one.
    pub generation: Option<u64>,
    /// Whether it shares the host's net namespace.
    pub host_network: Option<bool>,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Directory of its OCI bundle.
    pub bundle: Option<Str>,
    /// Its birth: when its mount namespace was first seen, or its creation as the runtime tells it.
    pub created_at: Option<BootTime>,
    /// First exec by the init process.
    pub started_at: Option<BootTime>,
    /// When the init process ended.
    pub exited_at: Option<BootTime>,
    /// How the init process ended.
    pub exit: Option<Exit>,
}

impl Container {
    /// Whether two values differ in nothing but the sequence number.
    pub(crate) fn eq_but_sequence(&self, other: &Container) -> bool {
        let differ = |container: &Container| Container { sequence: 0, ..container.clone() };
        differ(self) == differ(other)
    }

    /// Whether it was there at a moment: born, and its init not ended. One whose birth is not known counts as born.
    pub fn was_there(&self, at: BootTime) -> bool {
        self.created_at.is_none_or(|born| born <= at)
            && match self.exited_at {
                Some(ended) => at < ended,
                None => !self.state.is_over(),
            }
    }

    /// Init pid in the host's pid namespace; stays after the exit.
    pub fn pid(&self) -> Option<u32> {
        self.task.map(|task| task.pid)
    }

    /// Name where there is one, else the id.
    pub fn display_name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.id)
    }

    /// Whether `source` has stated something about it.
    pub fn is_stated_by(&self, source: Source) -> bool {
        self.sources.contains(source)
    }
}
