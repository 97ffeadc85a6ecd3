//! The barrier: holding an OCI runtime's own `create` and `start` until the collection knows the container.
//!
//! containerd, Docker, Podman and CRI-O all run the OCI runtime twice: `create`, later `start`. At the exec of `start` the
//! container's init exists, its namespaces and cgroup are final, and it waits. So the binaries of OCI runtimes are
//! marked with `FAN_OPEN_EXEC_PERM`: the kernel asks before each execution, and the answer is given when the
//! collection has published the container and all synchronous subscribers have run, or when the budget is over.
//!
//! ```text
//!   runc start ──▶ kernel ──▶ keeper ──event──▶ supervisor ──▶ pool ──▶ held path ──▶ collection
//!     (waits)        ▲          │ ▲                                        │
//!                    └──allow───┘ └────────────────allow──────────────────┘
//!                      (or when the budget is over)
//! ```
//!
//! It promises that nothing of it makes a start fail and that no start waits longer than the budget plus 100 ms, whatever
//! becomes of this process or the keeper. One case is left over: both frozen in one cgroup. It does not promise to see
//! everything: `run` has no `start` to hold, callers that are neither the host's root nor root in a container that is known
//! are let go unread, and a runtime's binary that nobody named is learnt only from the first container that it starts. For
//! all those the kernel source is the witness.
//!
//! Files, in reading order: [`argv`] (command lines), `wire`, `custody` and `keeper` (the process that owns the fanotify
//! group), `line` and `supervise` (its other end), `seat` (its cgroup), `pool` (threads that may be lost), `caller`,
//! `bundle`, `init`,
//! `book`, `nested`, `held` (what happens while a start is held), `marks` (which binaries).

pub mod argv;
mod custody;
mod keeper;
mod wire;

mod line;
mod pool;
mod seat;
mod supervise;

mod book;
mod bundle;
mod caller;
mod held;
mod init;
mod marks;
mod nested;
mod stats;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use serde::Deserialize;

pub use caller::{Outer, Outers};
pub use keeper::keeper_entry;
pub(crate) use marks::KNOWN as KNOWN_RUNTIMES;
pub use stats::Stats;
pub use supervise::{Barrier, Supervisor};

pub use crate::sys::raise_priority;

/// Settings of the barrier.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Whether starts are held at all. On by default.
    pub enabled: bool,
    /// How long a start may be held, in milliseconds: 200 by default, 10 to 10,000.
    pub budget_ms: u64,
    /// Paths of OCI runtimes' binaries besides the usual ones.
    pub runtimes: Vec<PathBuf>,
    /// Whether the usual paths of runc, crun and their like are marked. On by default.
    pub known_paths: bool,
    /// Whether binaries are learnt from containers that they started unseen. On by default.
    pub learn: bool,
    /// Whether the keeper gets cgroups of its own, directly below the hierarchies' roots, so that what freezes or throttles
    /// the tracker's does not stop it. On by default.
    pub own_cgroup: bool,
    /// The program to start as keeper, instead of this one. Its `main` must begin with [`keeper_entry`].
    pub keeper_program: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            budget_ms: 200,
            runtimes: Vec::new(),
            known_paths: true,
            learn: true,
            own_cgroup: true,
            keeper_program: None,
        }
    }
}

impl Config {
    /// The budget within its limits.
    pub fn budget(&self) -> Duration {
        Duration::from_millis(self.budget_ms.clamp(10, 10_000))
    }
}

/// Why starts cannot be held. The rest of the tracker works without: containers come out as `first-exec`.
#[derive(Debug, thiserror::Error)]
pub enum BarrierError {
    /// The config says so.
    #[error("holding starts is switched off (`barrier.enabled`)")]
    Disabled,
    /// `main` does not begin with [`keeper_entry`].
    #[error(
        "this program does not call `tracker::barrier::keeper_entry()` first in its `main`: \
         call it, or name another program in `barrier.keeper-program`"
    )]
    NoEntry,
    /// Uids mean nothing here.
    #[error("this process is not in the initial user namespace: run the tracker on the host")]
    UserNamespace,
    /// `fanotify_init` was refused for want of privilege.
    #[error("create a fanotify group: {0}: holding starts needs CAP_SYS_ADMIN, run the tracker as root")]
    Privilege(Errno),
    /// The kernel has no permission events.
    #[error(
        "create a fanotify group: {0}: the kernel has no permission events \
         (CONFIG_FANOTIFY_ACCESS_PERMISSIONS); starts are not held on it"
    )]
    Unsupported(Errno),
    /// The keeper could not be started, or did not answer.
    #[error("start the keeper: {0}")]
    Keeper(#[source] std::io::Error),
    /// Something that the supervisor needs.
    #[error("prepare the barrier: {0}")]
    Prepare(#[source] std::io::Error),
}

impl BarrierError {
    /// Whether trying again later could help.
    fn is_transient(&self) -> bool {
        matches!(self, BarrierError::Keeper(_))
    }
}
