//! Who has a pid that a runtime named: believed only if it can be the one.

use super::task::{Task, own_namespaces};
use crate::container::{Namespaces, TaskId};
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_the_host_and_later_ones_are_not_believed() {
        let own = std::process::id();
        assert_eq!(identity(own, BootTime::now()), None, "it shares our mount namespace");
        assert_eq!(identity(0, BootTime::now()), None);
        assert_eq!(identity(u32::MAX, BootTime::now()), None);
    }
}
