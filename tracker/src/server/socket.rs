//! The socket's place in the file system: made once, by one tracker, with the right mode from its first moment on.
//!
//! A lock file beside the socket decides who may serve it: its lock ends with the process, so a crash leaves nothing
//! to clean up. The socket is bound under another name, given its mode and group, and renamed into place: there is no
//! moment at which a wrong peer could connect, and a socket file that a crash left behind is replaced.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::Group;

/// A bound socket, and the lock that keeps other trackers away from it. Dropping it removes the socket.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    _lock: Flock<File>,
}

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another tracker has it.
    #[error(
        "another tracker{} already serves {}; stop it, or give this one another --socket",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), path.display()
    )]
    Taken {
        /// The socket.
        path: PathBuf,
        /// The other's pid, where it wrote it down.
        pid: Option<u32>,
    },
    /// Something else is in its place.
    #[error("{} exists and is not a socket; remove it, or give another --socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A path that has no place for a lock file beside it.
    #[error("{} does not name a file", path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// There is no such group.
    #[error("there is no group named {name} that could get the socket {}", path.display())]
    NoGroup {
        /// The socket.
        path: PathBuf,
        /// The group's name.
        name: String,
    },
    /// The file system refused a step.
    #[error("{step} {}: {source}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
}

impl BindError {
    /// Whether it is for want of permission.
    pub fn is_denied(&self) -> bool {
        matches!(self, BindError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

impl Socket {
    /// Makes `path` a listening socket with mode 0600, or 0660 when a `group` gets it. Its directory is made when missing.
    pub fn bind(path: &Path, group: Option<&str>) -> Result<Self, BindError> {
        let at = |step: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| BindError::Io { step, path, source }
        };
        let no_name = || BindError::NoName { path: path.to_owned() };
        let name = path.file_name().ok_or_else(no_name)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let group = group.map(|name| find_group(name, path)).transpose()?;

        // Others may list the directory (they are told "not permitted" by the socket itself), only its owner may write.
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(at("make directory", directory))?;
        let lock = lock(path)?;
        refuse_if_alive(path)?;

        let mut temporary_name = name.to_owned();
        temporary_name.push(".new");
        let temporary = directory.join(temporary_name);
        // We hold the lock: whatever bears this name was left behind by a tracker that died half way.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at("remove", &temporary)(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&temporary).map_err(at("bind socket", &temporary))?;
        if let Some(gid) = group {
            chown(&temporary, None, Some(gid)).map_err(at("give socket to its group", &temporary))?;
        }
        let mode = if group.is_some() { 0o660 } else { 0o600 };
        fs::set_permissions(&temporary, Permissions::from_mode(mode)).map_err(at("set mode of", &temporary))?;
        let inode = fs::symlink_metadata(&temporary).map_err(at("look at", &temporary))?.ino();
        fs::rename(&temporary, path).map_err(at("put socket in place", path))?;
        listener.set_nonblocking(true).map_err(at("make non-blocking", path))?;
        Ok(Self { listener, path: path.to_owned(), inode, _lock: lock })
    }

    /// The listening end.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Only our own: someone may have put another file in its place by hand.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The name of the lock file that belongs to the socket `path`.
fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn lock(path: &Path) -> Result<Flock<File>, BindError> {
    let lock_path = lock_path(path);
    let at = |step: &'static str| {
        let path = lock_path.clone();
        move |source: io::Error| BindError::Io { step, path, source }
    };
    // The file stays when the tracker ends: were it removed, two trackers could each lock a file of that name.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(&lock_path)
        .map_err(at("open lock file"))?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(mut file, errno)| match errno {
        Errno::EWOULDBLOCK => BindError::Taken { path: path.to_owned(), pid: read_pid(&mut file) },
        errno => at("lock")(errno.into()),
    })?;
    let pid = std::process::id();
    lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{pid}")).map_err(at("write"))?;
    Ok(lock)
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The lock is ours; still, a server that knows no lock file may have the socket.
fn refuse_if_alive(path: &Path) -> Result<(), BindError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::Taken { path: path.to_owned(), pid: None }),
        Err(_) => Ok(()),
    }
}

fn find_group(name: &str, path: &Path) -> Result<u32, BindError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(BindError::NoGroup { path: path.to_owned(), name: name.to_owned() }),
        Err(errno) => Err(BindError::Io { step: "find the group for", path: path.to_owned(), source: errno.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_for_its_owner_alone_and_goes_with_the_tracker() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/on/the/way/tracker.sock");
        let socket = Socket::bind(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_second_tracker_is_told_who_has_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tracker.sock");
        let _first = Socket::bind(&path, None).unwrap();
        let error = Socket::bind(&path, None).unwrap_err();
        let BindError::Taken { pid, .. } = &error else { panic!("{error}") };
        assert_eq!(*pid, Some(std::process::id()));
        assert!(error.to_string().contains("--socket"), "{error}");
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_server_without_a_lock_file_keeps_its_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tracker.sock");
        let _other = UnixListener::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path, None), Err(BindError::Taken { pid: None, .. })));
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_a_crash_left_behind_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tracker.sock");
        drop(UnixListener::bind(&path).unwrap());
        drop(UnixListener::bind(directory.path().join("tracker.sock.new")).unwrap());
        fs::write(lock_path(&path), "12345678\n").unwrap();
        let _socket = Socket::bind(&path, None).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(fs::read_to_string(lock_path(&path)).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tracker.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Socket::bind(&path, None), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_lock_file_that_is_a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tracker.sock");
        let victim = directory.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, lock_path(&path)).unwrap();
        assert!(matches!(Socket::bind(&path, None), Err(BindError::Io { .. })));
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }

    #[test]
    fn a_group_that_does_not_exist_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tracker.sock");
        let error = Socket::bind(&path, Some("no-such-group-here")).unwrap_err();
        assert!(error.to_string().contains("no-such-group-here"), "{error}");
    }
}
