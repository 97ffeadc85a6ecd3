//! All net namespaces that are known, what is heard about them, and which of them a socket is open in.
//!
//! A net ns is known from the moment that somebody asks about it: it gets a number in the host's net ns, by which it is
//! heard, and is forgotten at its end, or when messages were lost, or when too many are known. Who knows it by its inode
//! number and has drained the listener knows it truly: its end is announced before its number is free for another.
//!
//! Sockets are closed a second after they were opened, at most [`MAX_OPEN`] are open at one time. Locks are taken in this
//! order: a namespace's socket, `hearing`, `table`, `open`, a namespace's memory.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::watch;

use super::clock::Millis;
use super::error::RouteError;
use super::listen::{Ear, Heard};
use super::memory::Epoch;
use super::namespace::{MUTED_ABOVE, Namespace, Session};
use super::place::{Entered, Place};
use super::reply::Nsid;
use super::request::Request;
use super::socket::{AskError, Socket};
use super::stats::Stats;
use crate::sys;

/// Sockets that are open in net namespaces at one time; one more closes the oldest.
pub(super) const MAX_OPEN: usize = 256;
/// How long a socket may keep a net ns alive.
pub(super) const OPEN_FOR: Millis = Millis(1_000);
/// Between two attempts to close a socket that is in use.
const IN_USE: Millis = Millis(10);
/// Net namespaces that are known at one time; one more, and the one that was not used for longest is forgotten.
const MAX_KNOWN: usize = 16_384;
/// So many messages at once are more than a change brings about, and the pause after them.
const CROWD: u64 = 256;
const CROWD_PAUSE: Duration = Duration::from_millis(2);
/// Ways that are tried to find out where a veth leads.
const MAX_TRIED: usize = 1_024;

/// Ways into net namespaces that may be looked at when a veth leads to one that is not known.
pub type Ways = Box<dyn Fn() -> Vec<Place> + Send + Sync>;

/// The net namespaces.
pub(super) struct Registry {
    /// The net ns that listens: the host's.
    pub(super) host: Arc<Namespace>,
    /// Moves with every generation.
    pub(super) epoch: Arc<Epoch>,
    // Protects the listening socket and all that is done in the order of its messages.
    hearing: Mutex<Hearing>,
    // Protects who is known; held for a look.
    table: Mutex<Table>,
    // Protects the order in which sockets were opened; held for a look.
    open: Mutex<VecDeque<(Millis, Arc<Namespace>)>>,
    directories: Vec<PathBuf>,
    ways: Option<Ways>,
    /// Tells the listening thread that there is a socket to be closed later.
    wake: EventFd,
    /// Whether somebody reads what is said.
    is_heard: AtomicBool,
    /// Moves with every message that matters, for those who wait for a change.
    changes: watch::Sender<()>,
    pub(super) stats: Arc<Stats>,
}

struct Hearing {
    ear: Ear,
    /// Asks and orders in the host's net ns.
    orders: Socket,
    /// The host's net ns itself, to be recognised by others. It ends with the host.
    host: OwnedFd,
}

#[derive(Default)]
struct Table {
    by_cookie: HashMap<u64, Arc<Namespace>>,
    by_inode: HashMap<u32, Arc<Namespace>>,
    by_nsid: HashMap<i32, Arc<Namespace>>,
}

impl Registry {
    pub(super) fn start(directories: Vec<PathBuf>, ways: Option<Ways>, stats: Arc<Stats>) -> Result<Self, RouteError> {
        // From within the host's net ns, wherever the tracker itself lives.
        let (Entered { identity, socket, netns }, ear) = Place::Host.enter_with(Ear::open)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let failed = |error| RouteError::Open { doing: "make an eventfd for", what: Place::Host.to_string(), error };
        let wake = wake.map_err(|errno| failed(errno.into()))?;
        let epoch = Arc::<Epoch>::default();
        let host = Arc::new(Namespace::new(identity, None, Place::Host, Arc::clone(&epoch)));
        let registry = Self {
            host: Arc::clone(&host),
            epoch,
            hearing: Mutex::new(Hearing { ear, orders: socket, host: netns }),
            table: Mutex::default(),
            open: Mutex::default(),
            directories,
            ways,
            wake,
            is_heard: AtomicBool::new(false),
            changes: watch::Sender::new(()),
            stats,
        };
        registry.table().enter(host);
        registry.count_known();
        Ok(registry)
    }

    fn hearing(&self) -> MutexGuard<'_, Hearing> {
        self.hearing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything learnt may be kept: somebody listens.
    pub(super) fn is_heard(&self) -> bool {
        self.is_heard.load(Ordering::Acquire)
    }

    /// Is told of every change from now on.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Takes note of all that was said until now. False when it was too much to be read to its end.
    pub(super) fn drain(&self) -> bool {
        self.drain_held(&mut self.hearing())
    }

    fn drain_held(&self, hearing: &mut Hearing) -> bool {
        let now = Millis::now();
        hearing.ear.drain(|heard| self.note(heard, now))
    }

    fn note(&self, heard: Heard, now: Millis) {
        self.take_note(heard, now);
        // Nobody may be waiting.
        let _ = self.changes.send(());
    }

    fn take_note(&self, heard: Heard, now: Millis) {
        match heard {
            Heard::Change { nsid, interface } => {
                let namespace = match nsid {
                    None => Some(Arc::clone(&self.host)),
                    Some(nsid) => self.table().by_nsid.get(&nsid).cloned(),
                };
                let Some(namespace) = namespace else {
                    self.stats.strangers.fetch_add(1, Ordering::Relaxed);
                    return;
                };
                self.stats.moves.fetch_add(1, Ordering::Relaxed);
                if namespace.has_changed(interface, now) {
                    self.stats.muted.fetch_add(1, Ordering::Relaxed);
                    let inode = namespace.identity.inode;
                    tracing::warn!(netns = inode, "above {MUTED_ABOVE} changes in a second: its routes are not kept");
                }
            }
            Heard::End { nsid } => {
                let ended = self.table().by_nsid.get(&nsid).cloned();
                if let Some(ended) = ended {
                    self.forget(&ended);
                }
            }
            Heard::Lost => {
                self.stats.overruns.fetch_add(1, Ordering::Relaxed);
                self.forget_all();
            }
        }
    }

    /// Somebody's end may be among what was lost, and somebody else may have its numbers: nobody is known any more. The
    /// host's own net ns has no end.
    fn forget_all(&self) {
        let known = std::mem::take(&mut *self.table());
        for namespace in known.by_cookie.values().filter(|known| !Arc::ptr_eq(known, &self.host)) {
            namespace.forget();
        }
        self.host.forget_interfaces(Millis::now());
        self.table().enter(Arc::clone(&self.host));
        self.count_known();
    }

    fn forget(&self, namespace: &Arc<Namespace>) {
        namespace.forget();
        self.table().leave(namespace);
        self.count_known();
    }

    fn count_known(&self) {
        self.stats.known.store(self.table().by_cookie.len() as u64, Ordering::Relaxed);
    }

    /// The net ns that is at a place now: known, or made known.
    pub(super) fn find(&self, place: &Place) -> Result<Arc<Namespace>, RouteError> {
        if let Place::Inode(inode) = place {
            return self.find_inode(*inode);
        }
        let inode = place.inode()?;
        // All ends until now are noted, that of an earlier holder of the number among them; and the one that is known by
        // it now had it already when the place was looked at.
        if self.drain()
            && let Some(known) = self.known(inode)
        {
            known.found_at(place);
            return Ok(known);
        }
        let entered = place.enter()?;
        self.register(entered, place)
    }

    /// The net ns with this inode number, by whichever way leads to it.
    fn find_inode(&self, inode: u32) -> Result<Arc<Namespace>, RouteError> {
        if self.drain()
            && let Some(known) = self.known(inode)
        {
            return Ok(known);
        }
        let leads_there = |place: &Place| place.inode().is_ok_and(|found| found == inode);
        let place = self.places().chain(processes()).find(leads_there);
        let found = place.ok_or(RouteError::Unknown { inode }).and_then(|place| self.find(&place))?;
        if found.identity.inode != inode {
            let why = format!("net ns {} is there by now", found.identity.inode);
            return Err(RouteError::Gone { what: format!("net ns {inode}"), why });
        }
        Ok(found)
    }

    /// The net ns that has this inode number, if it is known. As true as what was heard.
    pub(super) fn known(&self, inode: u32) -> Option<Arc<Namespace>> {
        let known = self.table().by_inode.get(&inode).cloned()?;
        known.used.store(Millis::now().0, Ordering::Relaxed);
        Some(known)
    }

    fn register(&self, entered: Entered, place: &Place) -> Result<Arc<Namespace>, RouteError> {
        let Entered { identity, socket, netns } = entered;
        let refused = |request: &str, error| RouteError::asked(self.host.identity.inode, request, error);
        self.stats.entered.fetch_add(1, Ordering::Relaxed);
        let namespace = {
            let mut hearing = self.hearing();
            let known = self.table().by_cookie.get(&identity.cookie).cloned();
            match known {
                Some(known) => known,
                None => {
                    let fd = netns.as_raw_fd() as u32;
                    match hearing.orders.order(&Request::assign_nsid(fd)) {
                        // It has one, by a veth or by somebody who asked for it: as good as ours.
                        Err(AskError::Refused { errno: libc::EEXIST, .. }) => {}
                        ordered => ordered.map_err(|error| refused("to number another net ns", error))?,
                    }
                    let nsid = hearing.orders.ask(&Request::nsid_of(fd), Nsid::decode);
                    let nsid = nsid.map_err(|error| refused("for the number of another net ns", error))?.number;
                    let Some(nsid) = nsid else {
                        let error =
                            AskError::Garbled(super::reply::Garbled("a net ns without the number it was given"));
                        return Err(refused("for the number of another net ns", error));
                    };
                    // Before it is known by its number: what was said of an earlier holder is not about it.
                    self.drain_held(&mut hearing);
                    let namespace =
                        Arc::new(Namespace::new(identity, Some(nsid), place.clone(), Arc::clone(&self.epoch)));
                    self.enter(&namespace);
                    namespace
                }
            }
        };
        namespace.found_at(place);
        namespace.used.store(Millis::now().0, Ordering::Relaxed);
        if namespace.keep(socket) {
            self.opened(&namespace);
        }
        Ok(namespace)
    }

    fn enter(&self, namespace: &Arc<Namespace>) {
        let mut table = self.table();
        let replaced = table.enter(Arc::clone(namespace));
        let longest_unused = (table.by_cookie.len() > MAX_KNOWN).then(|| {
            let others =
                table.by_cookie.values().filter(|known| known.nsid.is_some() && !Arc::ptr_eq(known, namespace));
            others.min_by_key(|known| known.used.load(Ordering::Relaxed)).cloned()
        });
        drop(table);
        for gone in replaced.into_iter().chain(longest_unused.flatten()) {
            self.forget(&gone);
        }
        self.count_known();
    }

    /// Takes a net ns for some questions.
    pub(super) fn session<'n>(&'n self, namespace: &'n Arc<Namespace>) -> Result<Session<'n>, RouteError> {
        namespace.session(&self.stats, |namespace| {
            self.stats.entered.fetch_add(1, Ordering::Relaxed);
            self.opened(namespace);
        })
    }

    fn opened(&self, namespace: &Arc<Namespace>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = open.is_empty();
        open.push_back((Millis::now(), Arc::clone(namespace)));
        while open.len() > MAX_OPEN {
            // One that is in use at this moment goes later; there are never so many.
            let Some((since, oldest)) = open.pop_front() else { break };
            if !oldest.close() {
                open.push_back((since, oldest));
                break;
            }
        }
        self.stats.open.store(open.len() as u64, Ordering::Relaxed);
        drop(open);
        if is_first {
            // Full means that it is awake.
            let _ = self.wake.write(1);
        }
    }

    /// Closes sockets whose time is over, and tells how long to wait for the next one.
    fn close_expired(&self) -> Option<Millis> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Millis::now();
        let mut in_use = VecDeque::new();
        while let Some((since, _)) = open.front()
            && now.since(*since) >= OPEN_FOR
        {
            let Some((since, namespace)) = open.pop_front() else { break };
            if !namespace.close() {
                in_use.push_back((since, namespace));
            }
        }
        let next = match in_use.is_empty() {
            false => Some(IN_USE),
            true => open.front().map(|(since, _)| OPEN_FOR.since(now.since(*since))),
        };
        in_use.append(&mut open);
        *open = in_use;
        self.stats.open.store(open.len() as u64, Ordering::Relaxed);
        next
    }

    /// Reads what is said and closes sockets, until `stop` is readable.
    pub(super) fn run(&self, stop: BorrowedFd<'_>) {
        // Until a message is read, what it is about is told as it was.
        sys::raise_priority();
        // However this ends: what nobody hears about is not believed any more.
        let _deaf = Deaf(self);
        self.drain();
        self.is_heard.store(true, Ordering::Release);
        // The socket lives as long as the registry; its number is read once, so that nothing is locked while we wait.
        let ear = match self.hearing().ear.as_fd().try_clone_to_owned() {
            Ok(ear) => ear,
            Err(error) => {
                tracing::error!(%error, "duplicate the descriptor of the listening socket: routes are not kept");
                return;
            }
        };
        loop {
            let next = self.close_expired();
            // A tick more, so that the time is over when we look.
            let timeout = next.map_or(PollTimeout::NONE, |next| {
                PollTimeout::try_from(next.0.saturating_add(5)).unwrap_or(PollTimeout::MAX)
            });
            let watched = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut fds = [watched(ear.as_fd()), watched(stop), watched(self.wake.as_fd())];
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "wait for messages about routes: they are not kept");
                    return;
                }
            }
            let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
            if is_ready(&fds[1]) {
                return;
            }
            if is_ready(&fds[2]) {
                let _ = self.wake.read();
            }
            if fds[0].revents().is_some_and(|events| !events.is_empty()) {
                let before = self.stats.moves.load(Ordering::Relaxed) + self.stats.strangers.load(Ordering::Relaxed);
                self.drain();
                let after = self.stats.moves.load(Ordering::Relaxed) + self.stats.strangers.load(Ordering::Relaxed);
                if after - before > CROWD {
                    // Anybody who is root in a net ns can talk without end, and this thread goes before all others: many
                    // are read at once rather than each at its time. Who asks reads by itself.
                    std::thread::sleep(CROWD_PAUSE);
                }
            }
        }
    }

    /// The net ns that has the number `nsid` in `namespace`; `None` where nobody knows a way into it.
    pub(super) fn peer(&self, namespace: &Arc<Namespace>, nsid: i32) -> Result<Option<Arc<Namespace>>, RouteError> {
        if let Some(peer) = namespace.peer(nsid) {
            return Ok(Some(peer));
        }
        let found = match namespace.nsid {
            // A number of the host's is the one that it is known by.
            None => self.find_peer(|| Ok(Some(nsid)))?,
            Some(here) => {
                let host = {
                    // A duplicate, so that nothing is locked while somebody else is asked.
                    let host = self.hearing().host.try_clone();
                    host.map_err(|error| RouteError::Open {
                        doing: "duplicate the descriptor of",
                        what: Place::Host.to_string(),
                        error,
                    })?
                };
                if self.session(namespace)?.nsid_of(host.as_raw_fd() as u32)? == Some(nsid) {
                    Some(Arc::clone(&self.host))
                } else {
                    self.find_peer(|| self.number_here(here, nsid))?
                }
            }
        };
        if let Some(found) = &found {
            namespace.remember_peer(nsid, found);
        }
        Ok(found)
    }

    /// The number that the host has for whom net ns `there` calls `nsid`.
    fn number_here(&self, there: i32, nsid: i32) -> Result<Option<i32>, RouteError> {
        let numbers = self.hearing().orders.list(&Request::nsids_in(there), Nsid::decode);
        let question = "for the numbers in another net ns";
        let numbers = numbers.map_err(|error| RouteError::asked(self.host.identity.inode, question, error))?;
        Ok(numbers.into_iter().find(|known| known.number == Some(nsid)).and_then(|known| known.here))
    }

    /// Whoever has the number that `here` tells, by going into all places where it might be. Whoever is entered gets a
    /// number.
    fn find_peer(
        &self,
        here: impl Fn() -> Result<Option<i32>, RouteError>,
    ) -> Result<Option<Arc<Namespace>>, RouteError> {
        let known = |number: Option<i32>| number.and_then(|number| self.table().by_nsid.get(&number).cloned());
        self.drain();
        let number = here()?;
        if let Some(found) = known(number) {
            return Ok(Some(found));
        }
        for place in self.places() {
            // Somebody else's way that leads nowhere is no error of ours.
            let Ok(found) = self.find(&place) else { continue };
            let number = match number {
                Some(number) => Some(number),
                None => here()?,
            };
            if number.is_some() && found.nsid == number {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn places(&self) -> impl Iterator<Item = Place> {
        let given = self.ways.iter().flat_map(|ways| ways());
        let files = self.directories.iter().filter_map(|directory| std::fs::read_dir(directory).ok()).flatten();
        given.chain(files.flatten().map(|file| Place::Path(file.path()))).take(MAX_TRIED)
    }
}

/// Every process there is.
fn processes() -> impl Iterator<Item = Place> {
    let entries = std::fs::read_dir("/proc").ok().into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Place::Pid))
}

/// Makes nothing believed any more, when nobody listens any more.
struct Deaf<'r>(&'r Registry);

impl Drop for Deaf<'_> {
    fn drop(&mut self) {
        self.0.is_heard.store(false, Ordering::Release);
        self.0.forget_all();
    }
}

impl Table {
    /// Makes it known by all of its names; returns who had one of them.
    fn enter(&mut self, namespace: Arc<Namespace>) -> Vec<Arc<Namespace>> {
        let identity = namespace.identity;
        let replaced = [
            self.by_cookie.insert(identity.cookie, Arc::clone(&namespace)),
            self.by_inode.insert(identity.inode, Arc::clone(&namespace)),
            namespace.nsid.and_then(|nsid| self.by_nsid.insert(nsid, Arc::clone(&namespace))),
        ];
        replaced.into_iter().flatten().filter(|replaced| !Arc::ptr_eq(replaced, &namespace)).collect()
    }

    fn leave(&mut self, namespace: &Arc<Namespace>) {
        let is_it = |known: &Arc<Namespace>| Arc::ptr_eq(known, namespace);
        let identity = namespace.identity;
        self.by_cookie.retain_one(&identity.cookie, is_it);
        self.by_inode.retain_one(&identity.inode, is_it);
        if let Some(nsid) = namespace.nsid {
            self.by_nsid.retain_one(&nsid, is_it);
        }
    }
}

/// Removes an entry only if it is the one that is meant.
trait RetainOne<K> {
    fn retain_one(&mut self, key: &K, is_meant: impl Fn(&Arc<Namespace>) -> bool);
}

impl<K: std::hash::Hash + Eq> RetainOne<K> for HashMap<K, Arc<Namespace>> {
    fn retain_one(&mut self, key: &K, is_meant: impl Fn(&Arc<Namespace>) -> bool) {
        if self.get(key).is_some_and(is_meant) {
            self.remove(key);
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("host", &self.host).finish_non_exhaustive()
    }
}
