//! The `manual` source: people and programs say what no other source can see, and the kernel is asked whether it is so.
//!
//! A registration names a process, a net namespace or a cgroup, which must exist when it is made. It is a statement like
//! any other: merged by the same table, taken back when it is withdrawn.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::stat::stat;
use nix::sys::statfs::{FsType, statfs};
use serde::Deserialize;

use super::task::{Task, cgroup_of};
use crate::collection::view::{Host, Reader};
use crate::container::{Cgroup, ContainerId, ContainerKey, Domain, InvalidId, Kind, Namespaces, Runtime, State, Str};
use crate::fact::{Fact, Source, Statement, What};
use crate::time::BootTime;

/// Labels that a registration may have.
const MAX_LABELS: usize = 64;
/// Bytes of a name, a label's key or its value.
const MAX_TEXT_LEN: usize = 1_024;

/// `NSFS_MAGIC` of `linux/magic.h`: what a file in `/proc/<pid>/ns` or a bind mount of one lies on.
const NSFS: FsType = FsType(0x6e73_6673);

/// What is to be known as a container.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Registration {
    /// Its id, unique among registrations.
    pub id: String,
    /// Its human name.
    #[serde(default)]
    pub name: Option<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What in the kernel it is.
    #[serde(flatten)]
    pub by: By,
}

/// What in the kernel a registration is about.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// A process in a mount namespace of its own, by its pid in the host's pid namespace.
    Pid(u32),
    /// A net namespace, by a file such as `/run/netns/blue` or `/proc/7/ns/net`.
    Netns(PathBuf),
    /// A cgroup of the v2 hierarchy, by its directory or by its path below the hierarchy's root.
    Cgroup(PathBuf),
}

/// Why a registration is refused.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Not an id.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// Too much text.
    #[error("a registration has at most {MAX_LABELS} labels, and no text of more than {MAX_TEXT_LEN} bytes")]
    TooLong,
    /// There is no such process, file or cgroup, or it may not be looked at.
    #[error("look at {what}: {source}")]
    Look {
        /// What was looked at.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file that is not a namespace.
    #[error("`{0}` is not a namespace: name a file such as /run/netns/NAME or /proc/PID/ns/net")]
    NotANamespace(PathBuf),
    /// The host itself.
    #[error("{0} is the host's own, not a container's")]
    Host(String),
    /// It is known already: a number has one container.
    #[error("process {pid} is in the container `{container}`, which is known already")]
    Known {
        /// The process.
        pid: u32,
        /// Whose mount namespace it is in.
        container: Str,
    },
    /// The collection has ended.
    #[error(transparent)]
    Ended(#[from] crate::collection::door::Ended),
}

/// The key under which a registration is stated.
pub(crate) fn key(id: &str) -> Result<ContainerKey, InvalidId> {
    Ok(ContainerKey { domain: Domain::Host, scope: "manual".into(), id: ContainerId::new(id)? })
}

/// Asks the kernel, and says it as a fact. `known` is what is in the collection.
pub(crate) fn check(registration: &Registration, known: &mut Reader) -> Result<Fact, RegisterError> {
    let host = known.host();
    let key = key(&registration.id)?;
    let texts = registration.labels.iter().flat_map(|(key, value)| [key, value]).chain(&registration.name);
    if registration.labels.len() > MAX_LABELS || texts.into_iter().any(|text| text.len() > MAX_TEXT_LEN) {
        return Err(RegisterError::TooLong);
    }
    let labels = registration.labels.iter().map(|(key, value)| (Str::from(&**key), Str::from(&**value)));
    let mut statement = Statement {
        kind: Some(Kind::Container),
        state: Some(State::Running),
        name: registration.name.as_deref().map(Str::from),
        labels: Some(labels.collect()),
        runtime: Some(Runtime { name: Some("manual".into()), ..Runtime::default() }),
        ..Statement::default()
    };
    match &registration.by {
        By::Pid(pid) => state_process(&mut statement, *pid, &registration.id, known)?,
        By::Netns(path) => state_netns(&mut statement, path, host)?,
        By::Cgroup(path) => state_cgroup(&mut statement, path, host)?,
    }
    Ok(Fact { source: Source::Manual, at: BootTime::now(), what: What::Stated { key, statement: Box::new(statement) } })
}

fn state_process(statement: &mut Statement, pid: u32, id: &str, known: &mut Reader) -> Result<(), RegisterError> {
    let look = |source| RegisterError::Look { what: format!("process {pid}"), source };
    let view = Task::open(pid).and_then(|task| task.view()).map_err(look)?;
    if view.namespaces.mnt == 0 {
        return Err(look(io::ErrorKind::PermissionDenied.into()));
    }
    let mntns = view.namespaces.mnt;
    if mntns == known.host().namespaces.mnt {
        return Err(RegisterError::Host(format!("the mount namespace of process {pid}")));
    }
    statement.task = Some(view.task);
    // Another process of that namespace may stand for it: a second container on one number would hide the first.
    let holder = known.by_mntns(mntns).container().filter(|holder| holder.generation == view.generation);
    if let Some(holder) = holder {
        let is_own = &*holder.id == id && holder.is_stated_by(Source::Manual);
        if holder.kind.is_vouched_for() && !is_own {
            return Err(RegisterError::Known { pid, container: holder.id.clone() });
        }
        statement.task = holder.task;
    }
    statement.namespaces = Some(view.namespaces);
    statement.cgroup = Some(view.cgroup);
    Ok(())
}

fn state_netns(statement: &mut Statement, path: &Path, host: Host) -> Result<(), RegisterError> {
    let what = || format!("net namespace `{}`", path.display());
    let look = |errno: nix::Error| RegisterError::Look { what: what(), source: errno.into() };
    if statfs(path).map_err(look)?.filesystem_type() != NSFS {
        return Err(RegisterError::NotANamespace(path.to_owned()));
    }
    let inode = stat(path).map_err(look)?.st_ino as u32;
    if inode == host.namespaces.net {
        return Err(RegisterError::Host(what()));
    }
    statement.namespaces = Some(Namespaces { net: inode, ..Namespaces::default() });
    Ok(())
}

fn state_cgroup(statement: &mut Statement, path: &Path, host: Host) -> Result<(), RegisterError> {
    let what = || format!("cgroup `{}`", path.display());
    let cgroup = cgroup_of(path).map_err(|source| RegisterError::Look { what: what(), source })?;
    if cgroup.id == Some(host.cgroup_id) {
        return Err(RegisterError::Host(what()));
    }
    statement.cgroup = Some(Cgroup { v1_path: None, ..cgroup });
    Ok(())
}
