//! One process as `/proc` shows it, read so that a reused pid cannot mix two processes.
//!
//! [`Task::open`] opens the process's directory once; everything is read below that descriptor, which stays bound to
//! this very process: when it has gone, reads fail with `ESRCH`, also when the pid has a new holder.
//!
//! Nothing here opens a file that a container could have put there, except for [`Task::cwd`] and the like, which only
//! read the name. What is read has a size limit. Serves the barrier, the `proc` source and the runtimes' sources.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{Mode, fstatat, stat};

use crate::container::{Cgroup, Namespaces, TaskId};
use crate::enrich::{cgroup, task};
use crate::fact::Birth;
use crate::sys;

/// `stat`, `status` and `cgroup` are far shorter, whatever a process does.
const MAX_FILE_LEN: u64 = 64 << 10;

/// A process that existed when it was opened.
#[derive(Debug)]
pub struct Task {
    pid: u32,
    dir: OwnedFd,
}

/// What one look at a process shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskView {
    /// Its identity.
    pub task: TaskId,
    /// Its parent, where that is visible and was still there.
    pub parent: Option<TaskId>,
    /// Its namespaces; 0 where they may not be read.
    pub namespaces: Namespaces,
    /// Its mount namespace's never-reused id, from Linux 6.12 on.
    pub generation: Option<u64>,
    /// Its real uid.
    pub uid: u32,
    /// Its cgroups.
    pub cgroup: Cgroup,
}

impl Task {
    /// The process `pid` of this pid namespace.
    pub fn open(pid: u32) -> io::Result<Self> {
        let path = format!("/proc/{pid}");
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { pid, dir: open(path.as_str(), flags, Mode::empty())? })
    }

    /// Its identity, while it lives. A zombie still has one.
    pub fn id(&self) -> io::Result<TaskId> {
        Ok(TaskId { pid: self.pid, start_ticks: self.stat()?.start_ticks })
    }

    /// Whether it is `task` and no later process with the same pid.
    pub fn is(&self, task: TaskId) -> bool {
        self.id().is_ok_and(|id| id == task)
    }

    /// All that is read of it in one go.
    pub fn view(&self) -> io::Result<TaskView> {
        let stat = self.stat()?;
        Ok(TaskView {
            task: TaskId { pid: self.pid, start_ticks: stat.start_ticks },
            parent: parent_of(stat),
            namespaces: self.namespaces(),
            generation: self.generation(),
            uid: self.uid()?,
            cgroup: self.cgroup()?,
        })
    }

    /// Inode numbers of its namespaces; 0 where it may not be asked (or has none any more, as a zombie).
    pub fn namespaces(&self) -> Namespaces {
        // stat follows the magic link to the namespace itself, without opening and so without pinning it.
        let inode = |name: &str| fstatat(self.dir.as_fd(), name, AtFlags::empty()).map_or(0, |stat| stat.st_ino as u32);
        Namespaces {
            mnt: inode("ns/mnt"),
            net: inode("ns/net"),
            pid: inode("ns/pid"),
            cgroup: inode("ns/cgroup"),
            user: inode("ns/user"),
        }
    }

    /// Inode number of its net namespace, which is not held by asking.
    pub fn netns(&self) -> io::Result<u32> {
        Ok(fstatat(self.dir.as_fd(), "ns/net", AtFlags::empty())?.st_ino as u32)
    }

    /// Its net namespace itself. Keeps it alive: not to be kept.
    pub fn open_netns(&self) -> io::Result<OwnedFd> {
        Ok(openat(&self.dir, "ns/net", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
    }

    /// Its mount namespace's never-reused id; absent before Linux 6.12, and where it may not be asked.
    pub fn generation(&self) -> Option<u64> {
        let namespace = openat(&self.dir, "ns/mnt", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
        sys::mount_namespace_id(&namespace).ok()
    }

    /// Its real uid, in this process's user namespace.
    pub fn uid(&self) -> io::Result<u32> {
        task::uid(&self.read("status", MAX_FILE_LEN)?).ok_or_else(|| malformed("status"))
    }

    /// Its pid in its own pid namespace; absent in a kernel without pid namespaces.
    pub(crate) fn pid_in_namespace(&self) -> io::Result<Option<u32>> {
        Ok(task::pid_in_namespace(&self.read("status", MAX_FILE_LEN)?))
    }

    /// Its pids, from this process's pid namespace down to its own.
    pub(crate) fn pids_in_namespaces(&self) -> io::Result<Vec<u32>> {
        Ok(task::pids_in_namespaces(&self.read("status", MAX_FILE_LEN)?))
    }

    /// Whether its pid namespace is the one with this inode number, or below it.
    pub(crate) fn is_in_pid_namespace(&self, inode: u32) -> io::Result<bool> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let mut namespace = openat(&self.dir, "ns/pid", flags, Mode::empty())?;
        // The kernel has no deeper ones.
        for _ in 0..=32 {
            if nix::sys::stat::fstat(&namespace)?.st_ino as u32 == inode {
                return Ok(true);
            }
            // There is nothing above our own that we might see.
            let Ok(above) = sys::parent_namespace(&namespace) else { return Ok(false) };
            namespace = above;
        }
        Ok(false)
    }

    /// Its flags (`PF_…`).
    pub(crate) fn flags(&self) -> io::Result<u32> {
        Ok(self.stat()?.flags)
    }

    /// Its name, which is its own choice.
    pub(crate) fn name(&self) -> io::Result<Vec<u8>> {
        let mut name = self.read("comm", MAX_FILE_LEN)?;
        name.pop_if(|last| *last == b'\n');
        Ok(name)
    }

    /// Its threads, each as a process of its own would show itself.
    pub(crate) fn threads(&self) -> io::Result<impl Iterator<Item = Task>> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let list = Dir::openat(&self.dir, "task", flags, Mode::empty())?;
        let flags = flags | OFlag::O_PATH;
        Ok(list.into_iter().flatten().filter_map(move |thread| {
            let number = thread.file_name().to_str().ok().filter(|name| !name.starts_with('.'))?;
            let dir = openat(&self.dir, format!("task/{number}").as_str(), flags, Mode::empty()).ok()?;
            Some(Task { pid: self.pid, dir })
        }))
    }

    /// Its cgroups.
    pub fn cgroup(&self) -> io::Result<Cgroup> {
        let text = self.read("cgroup", MAX_FILE_LEN)?;
        let membership = cgroup::parse(&text);
        let path = |path: &std::ffi::OsStr| path.to_string_lossy().into();
        // The kernel puts every task into the root of a v2 hierarchy that nobody mounted: that says nothing.
        let v2 = v2_mount_point().zip(membership.v2);
        Ok(Cgroup {
            id: v2.and_then(|(mount_point, path)| cgroup_id(mount_point, path)),
            path: v2.map(|(_, v2)| path(v2)),
            v1_path: membership.v1.map(path),
        })
    }

    /// Its arguments, as it shows them now: at most `max_len` bytes of them.
    pub fn arguments(&self, max_len: u64) -> io::Result<Vec<OsString>> {
        let text = self.read("cmdline", max_len)?;
        Ok(task::arguments(&text).into_iter().map(OsString::from).collect())
    }

    /// The name of its working directory, as seen from this process's root.
    pub fn cwd(&self) -> io::Result<PathBuf> {
        Ok(readlinkat(&self.dir, "cwd")?.into())
    }

    /// The name of its root directory: `/`, but for one that did `chroot`.
    pub fn root(&self) -> io::Result<PathBuf> {
        Ok(readlinkat(&self.dir, "root")?.into())
    }

    /// Its root directory itself, to walk paths as it does. Holds the file system: not to be kept.
    pub fn open_root(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(openat(&self.dir, "root", flags, Mode::empty())?)
    }

    /// Its parent, where that is visible and still there.
    pub fn parent(&self) -> Option<TaskId> {
        parent_of(self.stat().ok()?)
    }

    /// The name of its program, as seen from this process's root.
    pub fn exe(&self) -> io::Result<PathBuf> {
        Ok(readlinkat(&self.dir, "exe")?.into())
    }

    /// Whether nobody but root could have written its program.
    pub(crate) fn program_is_roots(&self) -> bool {
        // Follows the magic link to the file itself, wherever it is.
        fstatat(self.dir.as_fd(), "exe", AtFlags::empty())
            .is_ok_and(|stat| stat.st_uid == 0 && stat.st_mode & 0o022 == 0)
    }

    fn stat(&self) -> io::Result<task::Stat> {
        task::stat(&self.read("stat", MAX_FILE_LEN)?).ok_or_else(|| malformed("stat"))
    }

    fn read(&self, name: &str, max_len: u64) -> io::Result<Vec<u8>> {
        let file: File = openat(&self.dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into();
        let mut bytes = Vec::new();
        file.take(max_len).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl TaskView {
    /// What a scan states about a task in a mount namespace of its own; `executed` is for the caller to judge.
    pub fn birth(&self, executed: bool) -> Birth {
        Birth {
            task: self.task,
            parent: self.parent,
            outer: self.parent.and_then(mount_namespace_of),
            namespaces: self.namespaces,
            generation: self.generation,
            cgroup_id: self.cgroup.id,
            uid: self.uid,
            born_at: self.task.started_by(),
            executed,
        }
    }
}

/// The mount namespace of a process, as long as it is there.
pub(crate) fn mount_namespace_of(task: TaskId) -> Option<u32> {
    let process = Task::open(task.pid).ok()?;
    let mnt = fstatat(process.dir.as_fd(), "ns/mnt", AtFlags::empty()).ok()?.st_ino as u32;
    // Asked afterwards: then it was this one all the time.
    process.is(task).then_some(mnt)
}

/// This process's own namespaces: the host's, for a tracker that runs as it should.
pub fn own_namespaces() -> io::Result<Namespaces> {
    Ok(Task::open(std::process::id())?.namespaces())
}

/// The namespaces of the host: those of pid 1. `None` where its processes may not be looked at.
pub fn host_namespaces() -> Option<Namespaces> {
    // Pid 1 may have a capability that we lack, and is then not ours to look at; kthreadd (pid 2) shares its namespaces
    // and has none of its own.
    let of = |pid| Task::open(pid).map(|task| task.namespaces()).ok().filter(|namespaces| namespaces.mnt != 0);
    of(1).or_else(|| of(2))
}

fn parent_of(stat: task::Stat) -> Option<TaskId> {
    let pid = Some(stat.parent_pid).filter(|pid| *pid != 0)?;
    let parent = Task::open(pid).ok()?.id().ok()?;
    // One that started later is another process that got the number since.
    (parent.start_ticks <= stat.start_ticks).then_some(parent)
}

fn malformed(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("`{name}` of a process has an unknown form"))
}

/// Where cgroup v2 is mounted. Looked up once: no runtime moves it while it runs.
pub fn v2_mount_point() -> Option<&'static Path> {
    static MOUNT_POINT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || Some(PathBuf::from(cgroup::v2_mount_point(&std::fs::read("/proc/self/mountinfo").ok()?)?));
    MOUNT_POINT.get_or_init(find).as_deref()
}

/// A cgroup of the v2 hierarchy, by its directory or by its path below the hierarchy's root.
pub fn cgroup_of(path: &Path) -> io::Result<Cgroup> {
    let mount_point = v2_mount_point().ok_or(io::ErrorKind::NotFound)?;
    let below = path.strip_prefix(mount_point).or_else(|_| path.strip_prefix("/")).unwrap_or(path);
    if below.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let id = stat(&mount_point.join(below))?.st_ino;
    Ok(Cgroup { id: Some(id), path: Some(format!("/{}", below.display()).into()), v1_path: None })
}

/// The id of the v2 hierarchy's root: the host's own cgroup. Absent where only v1 is mounted.
pub fn root_cgroup_id() -> Option<u64> {
    Some(stat(v2_mount_point()?).ok()?.st_ino)
}

/// The id of a cgroup in the v2 hierarchy is its directory's inode number. The root's says nothing about a container:
/// it is the host's own.
fn cgroup_id(mount_point: &Path, path: &std::ffi::OsStr) -> Option<u64> {
    let relative = Path::new(path).strip_prefix("/").ok()?;
    if relative.as_os_str().as_bytes().is_empty() {
        return None;
    }
    Some(stat(&mount_point.join(relative)).ok()?.st_ino)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use super::*;

    /// Ends and reaps the process when the test is over.
    struct Sleep(Child);

    impl Sleep {
        fn start() -> Self {
            Self(Command::new("sleep").arg("60").spawn().unwrap())
        }
    }

    impl Drop for Sleep {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_child_has_this_process_as_parent_and_its_namespaces() {
        let child = Sleep::start();
        let view = Task::open(child.0.id()).unwrap().view().unwrap();
        let own = Task::open(std::process::id()).unwrap().view().unwrap();
        assert_eq!(view.parent, Some(own.task));
        assert_eq!(view.namespaces, own.namespaces);
        assert!(view.namespaces.mnt != 0 && view.namespaces.net != 0);
        assert_eq!((view.generation, view.uid, &view.cgroup), (own.generation, own.uid, &own.cgroup));
        assert!(view.task.start_ticks >= own.task.start_ticks);
    }

    #[test]
    fn a_process_that_has_gone_is_never_another_one() {
        let child = Sleep::start();
        let task = Task::open(child.0.id()).unwrap();
        let id = task.id().unwrap();
        assert!(task.is(id));
        assert!(!task.is(TaskId { start_ticks: id.start_ticks + 1, ..id }));
        drop(child);
        assert!(!task.is(id));
        assert_eq!(task.id().unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn arguments_and_working_directory_are_those_of_the_process() {
        let child = Sleep::start();
        let task = Task::open(child.0.id()).unwrap();
        assert_eq!(task.cwd().unwrap(), std::env::current_dir().unwrap());
        // The parent goes on before the child's new arguments can be seen.
        let deadline = Instant::now() + Duration::from_secs(10);
        while task.arguments(4096).unwrap() != ["sleep", "60"] {
            assert!(Instant::now() < deadline, "it shows {:?}", task.arguments(4096));
            std::thread::yield_now();
        }
        assert_eq!(task.arguments(5).unwrap(), ["sleep"], "no more than was asked for is read");
    }
}
