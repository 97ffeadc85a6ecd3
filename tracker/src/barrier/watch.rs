//! Waiting for the ends of processes: of the runtimes that make containers.
//!
//! One epoll instance over pidfds, which the supervisor's poll contains. Bounded: beyond [`MOST_WATCHED`] processes a
//! further one is not watched, which is counted; what its end would have told is told by the container's `start`. Those
//! of nested callers are at most [`MOST_NESTED`] of them.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::book::Entry;

/// Most runtimes watched at a time.
const MOST_WATCHED: usize = 1024;
/// Most of them inside containers.
const MOST_NESTED: usize = 128;

/// The runtimes that are making containers.
#[derive(Debug)]
pub(super) struct Watch {
    epoll: Epoll,
    // Protects the map; held for moments.
    creators: Mutex<Creators>,
}

#[derive(Debug, Default)]
struct Creators {
    watched: HashMap<u64, (OwnedFd, Arc<Entry>)>,
    next: u64,
}

impl Watch {
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, creators: Mutex::default() })
    }

    /// Readable when a watched process has ended.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Waits for the end of the process that makes `entry`. `false` when there are too many.
    pub(super) fn add(&self, pidfd: OwnedFd, entry: Arc<Entry>) -> bool {
        let mut creators = self.lock();
        let nested = || creators.watched.values().filter(|(_, entry)| entry.place.is_nested()).count();
        if creators.watched.len() >= MOST_WATCHED || (entry.place.is_nested() && nested() >= MOST_NESTED) {
            return false;
        }
        creators.next += 1;
        let number = creators.next;
        if self.epoll.add(&pidfd, EpollEvent::new(EpollFlags::EPOLLIN, number)).is_err() {
            return false;
        }
        creators.watched.insert(number, (pidfd, entry));
        true
    }

    /// Whose makers have ended since the last call.
    pub(super) fn ended(&self) -> Vec<Arc<Entry>> {
        let mut events = [EpollEvent::empty(); 64];
        let Ok(len) = self.epoll.wait(&mut events, EpollTimeout::ZERO) else { return Vec::new() };
        let mut creators = self.lock();
        let taken = events[..len].iter().filter_map(|event| creators.watched.remove(&event.data()));
        let told = taken.map(|(pidfd, entry)| {
            // Closing it is not enough: while a process that was forked in this moment has a copy of it, it would go on to be
            // ready, and the supervisor would spin, before everybody else.
            self.epoll.delete(&pidfd).expect("what was added is there while its fd is open");
            entry
        });
        told.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Creators> {
        self.creators.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::barrier::book::Place;
    use crate::container::{ContainerId, ContainerKey, Domain};
    use crate::fact::Statement;
    use crate::sys;

    #[test]
    fn the_end_of_a_watched_process_is_told_once() {
        let id = ContainerId::new("c1").unwrap();
        let key = ContainerKey { domain: Domain::Host, scope: "oci/r".into(), id: id.clone() };
        let place = Place { domain: Domain::Host, root: "/r".into(), id };
        let entry = Entry::new(key, place, None, None, Statement::default());
        let watch = Watch::new().unwrap();
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pidfd = sys::pidfd_open(child.id()).unwrap();
        let copy = pidfd.try_clone().expect("as every fork makes one");
        assert!(watch.add(pidfd, entry));
        assert!(watch.ended().is_empty());
        drop(child.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut ended = Vec::new();
        while ended.is_empty() && Instant::now() < deadline {
            ended = watch.ended();
            std::thread::yield_now();
        }
        assert_eq!(ended.len(), 1);
        assert_eq!(watch.epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO), Ok(0), "nobody is woken again");
        drop(copy);
        child.wait().unwrap();
    }
}
