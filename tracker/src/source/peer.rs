//! Who listens on a socket, and for whom that process may speak: the one check of all that connect to a runtime.
//!
//! Anybody may listen on a file with a runtime's name. So nothing about the file is believed: the kernel recorded who
//! called `listen`, and nobody who replaces the file between a look and the connect can change that. A listener's pids mean
//! what they mean in its own pid namespace, and root inside a container is the same uid as the host's; therefore its
//! namespaces are looked at, too, and in a mount namespace of its own whether its files are the host's.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};

use super::mounts;
use super::task::{Task, host_namespaces, own_namespaces};
use crate::container::{Domain, Namespaces};

/// Which file a path led to.
pub(crate) type FileId = (u64, u64);

/// Which file a path led to, and when it was last changed: another file may get the number of one that is gone.
#[cfg(feature = "cri")]
pub(crate) fn file_version(path: &Path) -> Option<(FileId, i64, i64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(((metadata.dev(), metadata.ino()), metadata.ctime(), metadata.ctime_nsec()))
}

/// The socket file's device and inode; `None` when there is none.
pub(crate) fn file_id(path: &Path) -> Option<FileId> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Whether the listener at the other end of `stream` may speak for `domain`; the error is for people.
pub(crate) fn check(stream: &impl AsFd, domain: Domain) -> Result<(), String> {
    let host = host_namespaces().or_else(|| own_namespaces().ok()).unwrap_or_default();
    let listener = Listener::of(stream, host).map_err(|error| format!("ask who listens: {error}"))?;
    match domain {
        Domain::Host => listener.is_hosts(host, nix::unistd::geteuid().as_raw()),
        Domain::User(uid) => listener.is_users(uid, host),
        Domain::Container(init) => {
            let inside = Task::open(init.pid).ok().map(|task| (task.namespaces(), task.is(init)));
            let inside = inside.and_then(|(namespaces, is_init)| is_init.then_some(namespaces));
            listener.is_inside(inside.ok_or("the container that it is in has ended")?)
        }
    }
}

/// Who called `listen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listener {
    /// As this process's user namespace numbers it.
    uid: u32,
    /// Where it is; absent when it has ended, or is in a pid namespace that cannot be seen from here.
    namespaces: Option<Namespaces>,
    /// Whether its mount namespace is one of the host's, if not its first one.
    has_hosts_mounts: bool,
}

impl Listener {
    fn of(stream: &impl AsFd, host: Namespaces) -> io::Result<Self> {
        let peer = getsockopt(stream, sockopt::PeerCredentials)?;
        // It may have handed its socket to others and ended, and its pid may have been given away: a pidfd tells (Linux
        // 6.5; before that the pid is all there is).
        let pidfd = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(pidfd) => Some(pidfd),
            Err(Errno::ENOPROTOOPT) => None,
            Err(errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) => return Err(errno.into()),
            Err(_) => return Ok(Self { uid: peer.uid(), namespaces: None, has_hosts_mounts: false }),
        };
        let pid = u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0);
        let namespaces = pid.and_then(|pid| Some(Task::open(pid).ok()?.namespaces()));
        let has_hosts_mounts = pid.zip(namespaces).is_some_and(|(pid, namespaces)| {
            namespaces.mnt == host.mnt || namespaces.user == host.user && mounts::are_hosts(pid, namespaces.mnt)
        });
        let has_ended = pidfd.is_some_and(|pidfd| {
            let mut end = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            poll(&mut end, PollTimeout::ZERO) != Ok(0)
        });
        Ok(Self { uid: peer.uid(), namespaces: namespaces.filter(|_| !has_ended), has_hosts_mounts })
    }

    fn is_hosts(self, host: Namespaces, ours: u32) -> Result<(), String> {
        // Who runs the tracker as another user than root, to try it out, may use that user's daemons.
        if self.uid != 0 && self.uid != ours {
            return Err(format!("its listener runs as uid {}, only root may speak for the host", self.uid));
        }
        let there = self.namespaces()?;
        self.counts_pids_as(host)?;
        if there.user != host.user {
            return Err("its listener lives in another user namespace: it is not the host's root".into());
        }
        if !self.has_hosts_mounts {
            return Err("its listener sees other files than the host's, as in a container".into());
        }
        Ok(())
    }

    /// Rootless daemons live in user and mount namespaces of their own.
    fn is_users(self, uid: u32, host: Namespaces) -> Result<(), String> {
        if self.uid != uid {
            return Err(format!("its listener runs as uid {}, not as {uid}, whom it would speak for", self.uid));
        }
        self.counts_pids_as(host)
    }

    fn is_inside(self, container: Namespaces) -> Result<(), String> {
        let there = self.namespaces()?;
        if there.mnt != container.mnt || there.pid != container.pid {
            return Err("its listener does not live in the container that it would speak for".into());
        }
        Ok(())
    }

    fn counts_pids_as(self, host: Namespaces) -> Result<(), String> {
        match self.namespaces()?.pid == host.pid {
            true => Ok(()),
            false => Err("its listener lives in another pid namespace: its pids are not the host's".into()),
        }
    }

    fn namespaces(self) -> Result<Namespaces, String> {
        // A zombie has none any more; nor has one that may not be looked at.
        let known = self.namespaces.filter(|namespaces| namespaces.mnt != 0);
        known.ok_or_else(|| "who began to listen has ended, or may not be looked at: nobody knows who it was".into())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::container::TaskId;

    const HOST: Namespaces = Namespaces { mnt: 1, net: 2, pid: 3, cgroup: 4, user: 5 };

    fn listener(uid: u32, namespaces: Namespaces) -> Listener {
        Listener { uid, namespaces: Some(namespaces), has_hosts_mounts: namespaces.mnt == HOST.mnt }
    }

    #[test]
    fn only_root_outside_of_containers_is_the_hosts() {
        let ours = 1000;
        for uid in [0, ours] {
            assert_eq!(listener(uid, HOST).is_hosts(HOST, ours), Ok(()));
        }
        for (uid, namespaces, said) in [
            (1001, HOST, "uid 1001"),
            (0, Namespaces { pid: 9, ..HOST }, "pid namespace"),
            (0, Namespaces { user: 9, ..HOST }, "user namespace"),
            (0, Namespaces { mnt: 9, ..HOST }, "other files"),
            (0, Namespaces::default(), "has ended"),
        ] {
            let refused = listener(uid, namespaces).is_hosts(HOST, ours).unwrap_err();
            assert!(refused.contains(said), "{refused}");
        }
        assert!(Listener { uid: 0, namespaces: None, has_hosts_mounts: true }.is_hosts(HOST, ours).is_err());
        // A service's, or a snap's.
        let service = Listener { has_hosts_mounts: true, ..listener(0, Namespaces { mnt: 9, ..HOST }) };
        assert_eq!(service.is_hosts(HOST, ours), Ok(()));
    }

    #[test]
    fn a_user_speaks_for_itself_from_any_mount_namespace_but_by_the_hosts_pids() {
        let rootless = Namespaces { mnt: 9, user: 9, ..HOST };
        assert_eq!(listener(1000, rootless).is_users(1000, HOST), Ok(()));
        assert!(listener(0, HOST).is_users(1000, HOST).unwrap_err().contains("not as 1000"));
        assert!(listener(1000, Namespaces { pid: 9, ..rootless }).is_users(1000, HOST).is_err());
    }

    #[test]
    fn who_listens_inside_a_container_lives_there() {
        let container = Namespaces { mnt: 7, pid: 8, ..HOST };
        assert_eq!(listener(0, container).is_inside(container), Ok(()));
        assert!(listener(0, HOST).is_inside(container).is_err());
    }

    #[test]
    fn a_listener_of_ours_is_known_by_what_the_kernel_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        let listener = Listener::of(&stream, HOST).unwrap();
        assert_eq!(listener.namespaces, own_namespaces().ok());
        assert_eq!(listener.uid, nix::unistd::geteuid().as_raw());
        assert!(check(&stream, Domain::User(listener.uid + 1)).is_err());
        let gone = TaskId { pid: std::process::id(), start_ticks: 1 };
        assert!(check(&stream, Domain::Container(gone)).unwrap_err().contains("has ended"));
    }
}
