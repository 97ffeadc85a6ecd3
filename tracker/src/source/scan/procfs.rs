//! `/proc` in the iterator's place: the same facts about the same tasks, read process by process.
//!
//! A process that ends while it is read is left out. Everything comes from files that the kernel writes; names in them
//! are the processes' own, and are taken as bytes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use procfs::process::{MountInfo, Process};
use tracker_common::record::{COMM_LEN, TaskFacts};

use super::ScanError;

const NANOS_PER_TICK: u64 = 10_000_000;

// The never-reused id of a mount namespace, from Linux 6.12 on: what the probes read too.
nix::ioctl_read!(mount_namespace_id, 0xb7, 5, u64);

pub(super) fn read(host_mntns: u32) -> Result<Vec<TaskFacts>, ScanError> {
    let failed = |error: procfs::ProcError| ScanError::Proc(io::Error::other(error));
    let cgroup_root = cgroup_v2_root();
    let mut ids = HashMap::new();
    let mut tasks = Vec::new();
    for process in procfs::process::all_processes().map_err(failed)? {
        let Ok(process) = process else { continue };
        let Some(namespaces) = Namespaces::read(process.pid).filter(|found| found.mnt != host_mntns) else { continue };
        let id = *ids.entry(namespaces.mnt).or_insert_with(|| unique_id(&namespaces.dir));
        tasks.extend(facts(&process, &namespaces, id, cgroup_root.as_deref()));
    }
    Ok(tasks)
}

/// Namespaces of a process, and the directory that they were read from.
struct Namespaces {
    dir: PathBuf,
    mnt: u32,
}

impl Namespaces {
    /// Of the first thread that has any: an ended first thread of a living process has none.
    fn read(pid: i32) -> Option<Self> {
        let of = |dir: PathBuf| inode(&dir.join("mnt")).map(|mnt| Namespaces { dir, mnt });
        of(PathBuf::from(format!("/proc/{pid}/ns"))).or_else(|| {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
            threads.flatten().find_map(|thread| of(thread.path().join("ns")))
        })
    }

    fn get(&self, name: &str) -> u32 {
        inode(&self.dir.join(name)).unwrap_or(0)
    }
}

fn facts(process: &Process, namespaces: &Namespaces, id: u64, cgroup_root: Option<&Path>) -> Option<TaskFacts> {
    let (stat, status) = (process.stat().ok()?, process.status().ok()?);
    let cgroup = process.cgroups().ok().and_then(|groups| groups.into_iter().find(|group| group.hierarchy == 0));
    let cgroup_id = cgroup.zip(cgroup_root).and_then(|(group, root)| {
        fs::metadata(root.join(group.pathname.trim_start_matches('/'))).ok().map(|metadata| metadata.ino())
    });
    // A parent that ends now leaves its number to another: without a start time it is nobody.
    let parent = Process::new(stat.ppid).and_then(|parent| parent.stat()).ok();
    let parent_tgid = parent.as_ref().and_then(|parent| u32::try_from(parent.pid).ok()).unwrap_or(0);
    let mut comm = [0; COMM_LEN];
    comm.iter_mut().zip(stat.comm.bytes()).for_each(|(place, byte)| *place = byte);
    let pid = u32::try_from(process.pid).ok()?;
    Some(TaskFacts {
        mntns_id: id,
        cgroup_id: cgroup_id.unwrap_or(0),
        start_ns: stat.starttime.saturating_mul(NANOS_PER_TICK),
        parent_start_ns: parent.map_or(0, |parent| parent.starttime.saturating_mul(NANOS_PER_TICK)),
        tgid: pid,
        pid,
        parent_tgid,
        pid_in_ns: status.nspid.and_then(|pids| u32::try_from(*pids.last()?).ok()).unwrap_or(0),
        uid: status.ruid,
        flags: stat.flags,
        mntns: namespaces.mnt,
        netns: namespaces.get("net"),
        pidns: namespaces.get("pid"),
        cgroupns: namespaces.get("cgroup"),
        userns: namespaces.get("user"),
        reserved: 0,
        comm,
    })
}

/// Inode number of the namespace that a link under `/proc/<pid>/ns` leads to.
fn inode(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().and_then(|metadata| u32::try_from(metadata.ino()).ok())
}

/// 0 before Linux 6.12. The file is closed at once: an open one keeps the namespace and its disks.
fn unique_id(dir: &Path) -> u64 {
    let Ok(file) = File::open(dir.join("mnt")) else { return 0 };
    let mut id = 0;
    // SAFETY: `id` is a `u64`, as the request wants; another kernel's refusal leaves it alone.
    let answer = unsafe { mount_namespace_id(std::os::fd::AsRawFd::as_raw_fd(&file), &mut id) };
    if answer.is_ok() { id } else { 0 }
}

fn cgroup_v2_root() -> Option<PathBuf> {
    let mounts = Process::myself().and_then(|process| process.mountinfo()).ok()?;
    mounts.0.into_iter().find(|mount: &MountInfo| mount.fs_type == "cgroup2").map(|mount| mount.mount_point)
}
