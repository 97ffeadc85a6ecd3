//! Who has a pid that a runtime named: believed only if it can be the one.

use std::fs;
use std::io;

use super::task::{Task, own_namespaces};
use crate::container::{Domain, Namespaces, TaskId};
use crate::time::BootTime;

/// A process that was found alive and in namespaces of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) task: TaskId,
    pub(crate) namespaces: Namespaces,
}

/// The process with this pid, if it was there at the moment when the runtime named it and has a mount namespace of its own.
///
/// Else the pid has been given to another process since, or belongs to one that is no container.
pub(crate) fn identity(pid: u32, named_at: BootTime) -> Option<Identity> {
    let process = Task::open(pid).ok()?;
    let task = process.id().ok()?;
    let namespaces = process.namespaces();
    let host = own_namespaces().ok()?;
    let was_there = task.started_from() <= named_at;
    let is_apart = namespaces.mnt != 0 && namespaces.mnt != host.mnt;
    // It was one process all the time, and still is: a zombie's namespaces are gone.
    (was_there && is_apart && process.is(task)).then_some(Identity { task, namespaces })
}

/// The same by the word of a runtime that speaks for `domain`: one inside a container counts the pids of that one.
#[cfg_attr(
    not(any(feature = "containerd", feature = "docker")),
    expect(dead_code, reason = "of runtimes inside containers, containerd and dockerd alone are asked")
)]
pub(crate) fn identity_in(domain: Domain, pid: u32, named_at: BootTime) -> Option<Identity> {
    match domain {
        Domain::Host | Domain::User(_) => identity(pid, named_at),
        Domain::Container(init) => identity(pid_inside(init, pid).ok()??, named_at),
    }
}

/// The pid here of who has `pid` in the pid namespace of `init`. Looks at all processes: whoever asks this asks it once for
/// a container's life.
fn pid_inside(init: TaskId, pid: u32) -> io::Result<Option<u32>> {
    let process = Task::open(init.pid)?;
    let (namespace, depth) = (process.namespaces().pid, process.pids_in_namespaces()?.len());
    if !process.is(init) || namespace == 0 || depth == 0 {
        return Ok(None);
    }
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_it = |other: &u32| {
        let Ok(other) = Task::open(*other) else { return false };
        let is_numbered_so = other.pids_in_namespaces().is_ok_and(|pids| pids.get(depth - 1) == Some(&pid));
        // Other containers' processes have the same numbers.
        is_numbered_so && other.is_in_pid_namespace(namespace).unwrap_or(false)
    };
    Ok(pids.into_iter().find(is_it))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_inside_is_looked_up_by_the_numbers_that_are_counted_there() {
        let own = Task::open(std::process::id()).unwrap();
        let (id, pids) = (own.id().unwrap(), own.pids_in_namespaces().unwrap());
        assert_eq!(pid_inside(id, *pids.last().unwrap()).unwrap(), Some(std::process::id()));
        assert_eq!(pid_inside(TaskId { start_ticks: 1, ..id }, *pids.last().unwrap()).unwrap(), None);
        assert!(own.is_in_pid_namespace(own.namespaces().pid).unwrap());
        assert!(!own.is_in_pid_namespace(1).unwrap());
    }

    #[test]
    fn processes_of_the_host_and_later_ones_are_not_believed() {
        let own = std::process::id();
        assert_eq!(identity(own, BootTime::now()), None, "it shares our mount namespace");
        assert_eq!(identity(0, BootTime::now()), None);
        assert_eq!(identity(u32::MAX, BootTime::now()), None);
    }
}
