//! Ways into a net ns, and going in: by a thread of its own, which opens a socket there and ends.
//!
//! A way is a name (a process, a path) and names are reused, so whoever goes in looks where it has come out: the inode
//! number, and the namespace's never-reused id as its sockets tell it. No thread that does anything else ever changes
//! its net ns.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, fstat, stat};
use nix::sys::statfs::{FsType, fstatfs};

use super::error::RouteError;
use super::socket::Socket;
use crate::container::TaskId;
use crate::source::task::Task;

/// A way into a net ns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The host's: that of pid 1; where that may not be looked at, that of the kernel's own threads, else our own.
    Host,
    /// That of whichever process has this pid now.
    Pid(u32),
    /// That of this very process, and, where an inode number is given, only if it is that one.
    Task {
        /// The process.
        task: TaskId,
        /// The net ns that it is expected in.
        inode: Option<u32>,
    },
    /// Whichever way leads to the net ns with this inode number now.
    Inode(u32),
    /// A file that a net ns is mounted on, such as `/run/netns/blue`, or `/proc/7/ns/net`.
    Path(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Host => f.write_str("the host's net ns"),
            Place::Pid(pid) => write!(f, "the net ns of pid {pid}"),
            Place::Task { task, inode: Some(inode) } => write!(f, "net ns {inode} of pid {}", task.pid),
            Place::Task { task, inode: None } => write!(f, "the net ns of pid {}", task.pid),
            Place::Inode(inode) => write!(f, "net ns {inode}"),
            Place::Path(path) => write!(f, "`{}`", path.display().to_string().escape_debug()),
        }
    }
}

/// Which net ns it is. Never the same for two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Its inode number, which is reused.
    pub inode: u32,
    /// Its id, which is not (`SO_NETNS_COOKIE`, Linux 5.14).
    pub cookie: u64,
}

/// What one who went in brings back. Both descriptors keep the net ns alive: to be dropped soon.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) identity: Identity,
    pub(super) socket: Socket,
    pub(super) netns: OwnedFd,
}

impl Place {
    /// The inode number of the net ns that is there now, without going in or holding it.
    pub(super) fn inode(&self) -> Result<u32, RouteError> {
        let inode = match self {
            Place::Path(path) => stat(path.as_path()).map(|stat| stat.st_ino as u32).map_err(io::Error::from),
            _ => self.task().and_then(|task| task.netns()),
        };
        let inode = inode.map_err(|error| self.failed("find", error))?;
        self.expect(inode)?;
        Ok(inode)
    }

    /// Goes in on a thread of its own, opens a socket, and tells where it has been.
    pub(super) fn enter(&self) -> Result<Entered, RouteError> {
        Ok(self.enter_with(|| Ok(()))?.0)
    }

    /// The same, and opens one thing more.
    pub(super) fn enter_with<T: Send + 'static>(
        &self,
        open: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<(Entered, T), RouteError> {
        let place = self.clone();
        let enter = move || {
            let entered = place.enter_here()?;
            Ok((entered, open().map_err(|error| place.failed("listen in", error))?))
        };
        let thread = std::thread::Builder::new().name("tracker-netns".into()).spawn(enter);
        let thread = thread.map_err(|error| self.failed("start a thread for", error))?;
        thread.join().unwrap_or_else(|_| Err(self.failed("enter", io::Error::other("the thread panicked"))))
    }

    /// Moves the calling thread, which is to end soon.
    fn enter_here(&self) -> Result<Entered, RouteError> {
        let netns = self.open().map_err(|error| self.failed("open", error))?;
        let inode = fstat(&netns).map_err(|errno| self.failed("look at", errno.into()))?.st_ino as u32;
        self.expect(inode)?;
        setns(&netns, CloneFlags::CLONE_NEWNET).map_err(|errno| self.failed("enter", errno.into()))?;
        let socket = Socket::open().map_err(|error| self.failed("open a netlink socket in", error))?;
        let cookie = socket.cookie().map_err(|error| self.failed("ask for the id of", error))?;
        Ok(Entered { identity: Identity { inode, cookie }, socket, netns })
    }

    fn open(&self) -> io::Result<OwnedFd> {
        let Place::Path(path) = self else { return self.task()?.open_netns() };
        // Looked at before it is opened: to open a device or a pipe may do something.
        let file = open(path.as_path(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        if fstatfs(&file)?.filesystem_type() != NSFS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a namespace"));
        }
        let file = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(open(file.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
    }

    fn task(&self) -> io::Result<Task> {
        match self {
            Place::Host => host(),
            Place::Pid(pid) => Task::open(*pid),
            Place::Task { task: wanted, .. } => {
                let task = Task::open(wanted.pid)?;
                // What is read below is bound to the process that was opened, so one look is enough.
                match task.is(*wanted) {
                    true => Ok(task),
                    false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
                }
            }
            Place::Path(_) | Place::Inode(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn expect(&self, found: u32) -> Result<(), RouteError> {
        match self {
            Place::Task { inode: Some(expected), .. } if *expected != found => {
                Err(RouteError::Gone { what: self.to_string(), why: format!("the process is in net ns {found}") })
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, doing: &'static str, error: io::Error) -> RouteError {
        // A path in which the process was found a moment ago.
        if error.raw_os_error() == Some(libc::ESRCH) {
            return RouteError::Gone { what: self.to_string(), why: "the process has ended".into() };
        }
        RouteError::Open { doing, what: self.to_string(), error }
    }
}

/// A process in the host's net ns. Pid 1 may have a capability that we lack, and is then not ours to look at.
fn host() -> io::Result<Task> {
    let open = |pid| Task::open(pid).and_then(|task| task.open_netns().map(|_| task));
    open(1).or_else(|_| open(2)).or_else(|_| open(std::process::id()))
}

/// The file system of namespaces (`NSFS_MAGIC` in `linux/magic.h`).
const NSFS: FsType = FsType(0x6e73_6673);
