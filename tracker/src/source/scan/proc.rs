//! `/proc` in the iterator's place: the same facts about the same tasks, read process by process.
//!
//! A process that ends while it is read is left out, and is never mixed with the next holder of its pid: everything is
//! read as [`Task`] reads it.

use std::fs;
use std::io;

use tracker_common::record::{COMM_LEN, TaskFacts};

use super::ScanError;
use crate::container::TaskId;
use crate::source::task::{Task, root_cgroup_id};

pub(super) fn read(host_mntns: u32) -> Result<Vec<TaskFacts>, ScanError> {
    let entries = fs::read_dir("/proc").map_err(ScanError::Proc)?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter_map(|pid| facts(pid, host_mntns).ok().flatten()).collect())
}

/// Facts about a process; `None` about one in the host's mount namespace, and about one that has none any more.
fn facts(pid: u32, host_mntns: u32) -> io::Result<Option<TaskFacts>> {
    let process = Task::open(pid)?;
    let threads_own = match process.namespaces().mnt {
        // An ended first thread of a living process.
        0 => process.threads()?.find(|thread| thread.namespaces().mnt != 0),
        _ => None,
    };
    let shown = threads_own.as_ref().unwrap_or(&process);
    let namespaces = shown.namespaces();
    if namespaces.mnt == host_mntns || namespaces.mnt == 0 {
        return Ok(None);
    }
    let view = process.view()?;
    let is_in_root = || view.cgroup.path.as_deref() == Some("/");
    let cgroup_id = view.cgroup.id.or_else(|| root_cgroup_id().filter(|_| is_in_root()));
    let nanoseconds = |task: TaskId| task.started_from().0;
    let mut comm = [0; COMM_LEN];
    comm.iter_mut().zip(process.name()?).for_each(|(place, byte)| *place = byte);
    Ok(Some(TaskFacts {
        mntns_id: shown.generation().unwrap_or(0),
        cgroup_id: cgroup_id.unwrap_or(0),
        start_ns: nanoseconds(view.task),
        parent_start_ns: view.parent.map_or(0, nanoseconds),
        tgid: pid,
        pid,
        parent_tgid: view.parent.map_or(0, |parent| parent.pid),
        pid_in_ns: process.pid_in_namespace()?.unwrap_or(0),
        uid: view.uid,
        flags: process.flags()?,
        mntns: namespaces.mnt,
        netns: namespaces.net,
        pidns: namespaces.pid,
        cgroupns: namespaces.cgroup,
        userns: namespaces.user,
        reserved: 0,
        comm,
    }))
}
