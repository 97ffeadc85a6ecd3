//! The task that is held: who it is, and what it is about to execute.
//!
//! A task blocked in `execve` still shows its *old* program everywhere in `/proc`. What it is about to run is known only
//! from the system call's arguments (`/proc/<tid>/syscall`) and the memory they point to. Reading that memory can sleep
//! for ever when it lies on a file system that does not answer, so it happens in a thread that may be lost, and only
//! after [`Caller::identify`] found that the task is the host's root, or root inside a container that is known: a
//! *nested* caller, whose paths are walked below its own root directory and who speaks for that container's domain alone.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::stat;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::argv::{MAX_ARGUMENTS, MAX_BYTES};
use crate::container::{Domain, Namespaces, TaskId};
use crate::source::file::{Walk, read_regular};
use crate::source::task::{Task, host_namespaces, own_namespaces};

/// Inode number of the initial user namespace, fixed since Linux 3.8 (`PROC_USER_INIT_INO`).
/// <https://github.com/torvalds/linux/blob/v6.12/include/linux/proc_ns.h#L45>
const INITIAL_USER_NS: u32 = 0xEFFF_FFFD;
/// The first and the longest pause while `/proc` says that the task runs: the event can be read before the task has gone
/// to sleep. On a busy machine that may take it a while, and threads that ask before everybody else, at real-time
/// priority and without a pause, would be what keeps it from doing so.
const RUNNING_PAUSES: (Duration, Duration) = (Duration::from_micros(30), Duration::from_millis(2));
const PAGE: u64 = 4096;
/// How far up a nested caller's parents are followed to find the container that it is in: a shim, a supervisor, an init.
const MOST_ANCESTORS: usize = 16;

/// A container that a caller may be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Its init process.
    pub init: TaskId,
    /// Whether a runtime or a person says that it is a container.
    pub is_vouched_for: bool,
}

/// Tells which container a mount namespace belongs to, by its inode number.
pub type Outers = dyn Fn(u32) -> Option<Outer> + Send + Sync;

/// What the host's own processes have: the tracker's namespaces and root directory.
#[derive(Clone, Debug)]
pub(super) struct Host {
    namespaces: Namespaces,
    root: (u64, u64),
}

/// Why a caller is not read any further: it is answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stranger {
    /// Not uid 0 of the initial user namespace, in any of its four uids.
    User,
    /// In another user namespace.
    UserNamespace,
    /// In another mount or pid namespace, or below another root directory, and in no container that is known: its paths
    /// and pids mean something else.
    Nested,
}

/// A held task that may be read: root of the host, or of a container.
#[derive(Debug)]
pub(super) struct Caller {
    tid: i32,
    /// Its process, which becomes the OCI runtime.
    pub(super) task: Task,
    pub(super) id: TaskId,
    /// For whom it speaks.
    pub(super) domain: Domain,
    /// What its paths are below.
    pub(super) root: Root,
}

/// Where the paths that a caller names begin.
#[derive(Debug)]
pub(super) enum Root {
    Host,
    Nested(OwnedFd),
}

impl Root {
    /// The content of a regular file of at most `max_len` bytes, found as the caller would.
    pub(super) fn read(&self, path: &Path, max_len: u64) -> io::Result<Vec<u8>> {
        match self {
            Root::Host => read_regular(AT_FDCWD, path, Walk::Free, max_len),
            Root::Nested(dir) => read_regular(dir, path, Walk::InRoot, max_len),
        }
    }
}

/// What became of [`Caller::identify`].
#[derive(Debug)]
pub(super) enum Identity {
    Root(Caller),
    Stranger(Stranger),
}

impl Host {
    /// The tracker's own view, which must be the host's.
    pub(super) fn own() -> io::Result<Self> {
        Ok(Self { namespaces: own_namespaces()?, root: identity(Path::new("/"))? })
    }

    /// Whether it is in the initial user namespace: elsewhere no uid that it reads is the kernel's.
    pub(super) fn is_initial(&self) -> bool {
        self.namespaces.user == INITIAL_USER_NS
    }

    /// Whether the host's mount namespace is another one, as far as that can be known: then its own callers are strangers.
    pub(super) fn is_elsewhere(&self) -> bool {
        host_namespaces().is_some_and(|host| !self.has_mount_ns(host.mnt))
    }

    /// Whether this is the host's mount namespace.
    pub(super) fn has_mount_ns(&self, mnt: u32) -> bool {
        self.namespaces.mnt == mnt
    }

    /// Whether a process with these namespaces is one of the host's own.
    pub(super) fn is_home_of(&self, namespaces: &Namespaces) -> bool {
        let own = self.namespaces;
        (namespaces.user, namespaces.mnt, namespaces.pid) == (own.user, own.mnt, own.pid)
    }

    fn stranger(&self, tid: i32, namespaces: Namespaces, uids: [u32; 4]) -> io::Result<Option<Stranger>> {
        let own = self.namespaces;
        Ok(if namespaces.user != own.user {
            Some(Stranger::UserNamespace)
        } else if uids != [0; 4] {
            Some(Stranger::User)
        } else if (namespaces.mnt, namespaces.pid) != (own.mnt, own.pid)
            || identity(Path::new(&format!("/proc/{tid}/root")))? != self.root
        {
            Some(Stranger::Nested)
        } else {
            None
        })
    }

    /// The init process of the container that a task is in: the nearest that somebody vouches for, from its own mount
    /// namespace upwards through its parents, else the nearest at all.
    ///
    /// A process cannot choose who is above it: orphans go to their pid namespace's init, or to whoever on the host
    /// started the container, and there the search ends.
    fn outer(&self, task: &Task, id: TaskId, outers: &Outers) -> Option<TaskId> {
        let mut nearest = None;
        let mut namespaces = task.namespaces();
        let mut parent = task.parent();
        for _ in 0..MOST_ANCESTORS {
            if self.has_mount_ns(namespaces.mnt) {
                break;
            }
            // A process alone in a mount namespace of its own is not inside a container.
            if let Some(outer) = outers(namespaces.mnt).filter(|outer| outer.init != id) {
                if outer.is_vouched_for {
                    return Some(outer.init);
                }
                nearest.get_or_insert(outer.init);
            }
            let Some(above) = parent.and_then(|parent| Task::open(parent.pid).ok()) else { break };
            (namespaces, parent) = (above.namespaces(), above.parent());
        }
        nearest
    }
}

impl Caller {
    /// Who the task is, without touching its memory or any path that it names.
    pub(super) fn identify(tid: i32, host: &Host, outers: &Outers) -> io::Result<Identity> {
        let (tgid, uids) = status(tid)?;
        let task = Task::open(tgid)?;
        let stranger = host.stranger(tid, task.namespaces(), uids)?;
        let id = task.id()?;
        let (domain, root) = match stranger {
            None => (Domain::Host, Root::Host),
            Some(Stranger::Nested) => match host.outer(&task, id, outers) {
                Some(init) => (Domain::Container(init), Root::Nested(task.open_root()?)),
                None => return Ok(Identity::Stranger(Stranger::Nested)),
            },
            Some(stranger) => return Ok(Identity::Stranger(stranger)),
        };
        Ok(Identity::Root(Caller { tid, task, id, domain, root }))
    }

    /// Its working directory, as it names it itself.
    pub(super) fn cwd(&self) -> io::Result<PathBuf> {
        let cwd = self.task.cwd()?;
        match self.root {
            Root::Host => Ok(cwd),
            // Both names are relative to its mount namespace's root, which `chroot` leaves behind.
            Root::Nested(_) => match cwd.strip_prefix(self.task.root()?) {
                Ok(below) => Ok(Path::new("/").join(below)),
                Err(_) => Err(io::Error::other("its working directory is outside of its root directory")),
            },
        }
    }

    /// The argument list of the program that it is about to execute, while it is held. `None` when it executes nothing
    /// (any more): then [`Caller::arguments_now`] is what it runs.
    pub(super) fn arguments_to_be(&self, deadline: Instant) -> io::Result<Option<Vec<OsString>>> {
        let Some(list) = argument_list(self.tid, deadline)? else { return Ok(None) };
        Memory::of(self.tid).strings(list).map(Some)
    }

    /// The arguments of the program that it runs now.
    pub(super) fn arguments_now(&self) -> io::Result<Vec<OsString>> {
        self.task.arguments(MAX_BYTES as u64)
    }
}

/// Device and inode number of a file, links followed.
pub(super) fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let stat = stat(path)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// A thread's process and its real, effective, saved and file system uid.
fn status(tid: i32) -> io::Result<(u32, [u32; 4])> {
    let text = proc_file(tid, "status")?;
    parse_status(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an unknown form of `status`"))
}

fn parse_status(text: &[u8]) -> Option<(u32, [u32; 4])> {
    // `Name:` comes first, and the kernel escapes line breaks in it: nobody forges a line.
    let line = |name: &[u8]| text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name));
    let numbers = |line| str::from_utf8(line).ok().map(str::split_ascii_whitespace);
    let tgid = numbers(line(b"Tgid:")?)?.next()?.parse().ok()?;
    let mut uids = numbers(line(b"Uid:")?)?.map(|uid| uid.parse().ok());
    Some((tgid, [uids.next()??, uids.next()??, uids.next()??, uids.next()??]))
}

/// Where the argument list lies of the `execve` or `execveat` that the thread is in.
fn argument_list(tid: i32, deadline: Instant) -> io::Result<Option<u64>> {
    let (mut pause, longest) = RUNNING_PAUSES;
    loop {
        let text = proc_file(tid, "syscall")?;
        if !text.starts_with(b"running") {
            return Ok(parse_syscall(&text));
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(longest);
    }
}

fn parse_syscall(text: &[u8]) -> Option<u64> {
    let mut words = str::from_utf8(text).ok()?.split_ascii_whitespace();
    let number: libc::c_long = words.next()?.parse().ok()?;
    let argument = match number {
        libc::SYS_execve => 1,
        libc::SYS_execveat => 2,
        _ => return None,
    };
    u64::from_str_radix(words.nth(argument)?.strip_prefix("0x")?, 16).ok()
}

fn proc_file(tid: i32, name: &str) -> io::Result<Vec<u8>> {
    read_regular(AT_FDCWD, Path::new(&format!("/proc/{tid}/{name}")), Walk::Free, PAGE * 4)
}

/// Another process's memory, fetched by pages, each once.
struct Memory {
    pid: Pid,
    pages: HashMap<u64, Box<[u8; PAGE as usize]>>,
}

impl Memory {
    fn of(tid: i32) -> Self {
        Self { pid: Pid::from_raw(tid), pages: HashMap::new() }
    }

    /// A list of pointers to strings, ended by a null pointer, as `execve` takes it.
    fn strings(&mut self, list: u64) -> io::Result<Vec<OsString>> {
        let mut strings = Vec::new();
        let mut left = MAX_BYTES;
        let mut at = list;
        // One more than is parsed, so that the parser sees that there are too many.
        while strings.len() <= MAX_ARGUMENTS {
            let pointer = self.pointer(at)?;
            if pointer == 0 {
                break;
            }
            let string = self.string(pointer, left)?;
            left = left.saturating_sub(string.len() + 1);
            strings.push(OsString::from_vec(string));
            at = at.wrapping_add(size_of::<u64>() as u64);
        }
        Ok(strings)
    }

    fn pointer(&mut self, at: u64) -> io::Result<u64> {
        let mut bytes = [0; size_of::<u64>()];
        for (i, byte) in bytes.iter_mut().enumerate() {
            let at = at.wrapping_add(i as u64);
            *byte = self.page(at)?[(at % PAGE) as usize];
        }
        Ok(u64::from_ne_bytes(bytes))
    }

    /// The bytes up to a NUL, at most `max_len` and one.
    fn string(&mut self, mut at: u64, max_len: usize) -> io::Result<Vec<u8>> {
        let mut string = Vec::new();
        while string.len() <= max_len {
            let rest = &self.page(at)?[(at % PAGE) as usize..];
            let end = rest.iter().position(|byte| *byte == 0);
            string.extend_from_slice(&rest[..end.unwrap_or(rest.len())]);
            if end.is_some() {
                return Ok(string);
            }
            at = at.wrapping_add(rest.len() as u64);
        }
        Ok(string)
    }

    fn page(&mut self, at: u64) -> io::Result<&[u8; PAGE as usize]> {
        let base = at & !(PAGE - 1);
        if !self.pages.contains_key(&base) {
            let mut page = Box::new([0; PAGE as usize]);
            let there = RemoteIoVec { base: base as usize, len: page.len() };
            let len = process_vm_readv(self.pid, &mut [IoSliceMut::new(page.as_mut_slice())], &[there])?;
            if len < page.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.pages.insert(base, page);
        }
        Ok(&self.pages[&base])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_four_uids_and_the_process_come_from_status() {
        let text = b"Name:\tUid:\\n1\nTgid:\t42\nPid:\t43\nUid:\t0\t1\t2\t3\nGid:\t9\n";
        assert_eq!(parse_status(text), Some((42, [0, 1, 2, 3])));
        assert_eq!(parse_status(b"Tgid:\t42\nUid:\t0\t0\t0\n"), None);
    }

    #[test]
    fn the_argument_list_is_the_second_or_third_argument() {
        let execve = format!("{} 0x1 0xabc 0x3 0x0 0x0 0x0 0x7ffc 0x7f00\n", libc::SYS_execve);
        assert_eq!(parse_syscall(execve.as_bytes()), Some(0xabc));
        let execveat = format!("{} 0x5 0x1 0xdef 0x3 0x1000 0x0 0x7ffc 0x7f00\n", libc::SYS_execveat);
        assert_eq!(parse_syscall(execveat.as_bytes()), Some(0xdef));
        assert_eq!(parse_syscall(b"0 0x5 0x1 0xdef 0x3 0x1000 0x0 0x7ffc 0x7f00\n"), None);
        assert_eq!(parse_syscall(b"-1 0x7ffc 0x7f00\n"), None);
    }

    #[test]
    fn strings_are_read_across_pages_and_up_to_the_limits() {
        let long = vec![b'x'; 3 * PAGE as usize];
        let words: Vec<Vec<u8>> =
            [b"runc".to_vec(), b"".to_vec(), long].into_iter().map(|mut word| (word.push(0), word).1).collect();
        let list: Vec<usize> = words.iter().map(|word| word.as_ptr() as usize).chain([0]).collect();
        let mut memory = Memory::of(std::process::id() as i32);
        let read = memory.strings(list.as_ptr() as u64).unwrap();
        let expected: Vec<OsString> =
            words.iter().map(|word| OsString::from_vec(word[..word.len() - 1].to_vec())).collect();
        assert_eq!(read, expected);
        assert!(memory.strings(8).is_err(), "nothing is mapped there");
    }

    #[test]
    fn this_process_is_no_stranger_to_itself() {
        let host = Host::own().unwrap();
        assert_eq!(host.stranger(std::process::id() as i32, host.namespaces, [0; 4]).unwrap(), None);
        let elsewhere = Namespaces { mnt: 1, ..host.namespaces };
        assert_eq!(host.stranger(std::process::id() as i32, elsewhere, [0; 4]).unwrap(), Some(Stranger::Nested));
        let user = host.stranger(std::process::id() as i32, elsewhere, [0, 1000, 0, 0]).unwrap();
        assert_eq!(user, Some(Stranger::User));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text: Vec<u8>) {
            parse_status(&text);
            parse_syscall(&text);
        }
    }
}
