//! One net ns that we know: who it is, how often it has changed, and the socket by which it is asked.
//!
//! ```text
//!            a message                     a message
//!  known ─────────────▶ generation + 1 ─────────────▶ …
//!    │ its end is announced, or messages were lost
//!    ▼
//!  gone: for ever; whoever still means it must find it again
//! ```
//!
//! A socket keeps its net ns alive, so it is closed one second after it was opened, however often it is used
//! ([`super::registry`] does that); then the next question goes in again, by the way that is remembered here, and checks
//! that it has come out in the same place.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::answer::Prefix;
use super::cache::Shared;
use super::clock::Millis;
use super::error::RouteError;
use super::memory::Epoch;
use super::place::{Entered, Identity, Place};
use super::query::RouteQuery;
use super::reply::{Address, Chosen, Link, Matched};
use super::request::Request;
use super::socket::{AskError, Socket};
use super::stats::Stats;

/// The generation of a net ns that is no longer known.
const GONE: u64 = u64::MAX;
/// Above so many messages in a second a net ns is muted: what it says is not kept.
pub(super) const MUTED_ABOVE: u64 = 1_000;
/// For so long after a message an answer is given but not kept: the kernel announces some changes a moment before it makes
/// them (the removal of an IPv4 route is one), and nothing tells when that moment is over.
const SETTLING: Millis = Millis(20);
/// Interfaces that are remembered of one net ns.
const MAX_REMEMBERED: usize = 4_096;
/// How long an interface is believed to be as it was, if nothing is heard.
pub(super) const OLDEST: Millis = Millis(60_000);

/// A net ns.
pub(super) struct Namespace {
    pub(super) identity: Identity,
    /// Its number in the net ns that listens; that one itself has none.
    pub(super) nsid: Option<i32>,
    generation: AtomicU64,
    /// Moves after the generation, and after all others'.
    epoch: Arc<Epoch>,
    /// Moves with what is said about interfaces and addresses alone, so that a change of routes costs no more questions.
    interfaces: AtomicU64,
    moved: AtomicU64,
    /// Messages in the second that began at `second`, both written by whoever drains the listener.
    messages: AtomicU64,
    second: AtomicU64,
    muted_until: AtomicU64,
    /// When it was last looked up, for which to forget first.
    pub(super) used: AtomicU64,
    // Protects the way in; held for a copy.
    place: Mutex<Place>,
    // Protects what is remembered of interfaces; held for a look.
    memory: Mutex<Memory>,
    /// Its answers that are kept.
    pub(super) answers: Shared,
    // Protects the socket: one question at a time, its reply included. Taken before all other locks but `place`.
    socket: Mutex<Option<Socket>>,
}

#[derive(Default)]
struct Memory {
    links: HashMap<u32, (Link, Millis)>,
    addresses: HashMap<u32, (Arc<[Address]>, Millis)>,
    /// Other net namespaces by the numbers that they have in this one.
    peers: HashMap<i32, Arc<Namespace>>,
}

impl Namespace {
    pub(super) fn new(identity: Identity, nsid: Option<i32>, place: Place, epoch: Arc<Epoch>) -> Self {
        Self {
            identity,
            nsid,
            generation: AtomicU64::new(0),
            epoch,
            interfaces: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            second: AtomicU64::new(0),
            muted_until: AtomicU64::new(0),
            used: AtomicU64::new(0),
            place: Mutex::new(place),
            memory: Mutex::default(),
            answers: Shared::default(),
            socket: Mutex::new(None),
        }
    }

    /// How often it has changed. What was learnt at one generation is true only while it is that one.
    #[inline]
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.generation() == GONE
    }

    /// Whether what it says now may be kept.
    pub(super) fn is_settled(&self, now: Millis) -> bool {
        !self.is_muted(now) && now.since(Millis(self.moved.load(Ordering::Acquire))) > SETTLING
    }

    /// Whether it talks too much for anything about it to be kept.
    pub(super) fn is_muted(&self, now: Millis) -> bool {
        now < Millis(self.muted_until.load(Ordering::Relaxed))
    }

    /// It has said something; about an interface, or not. Whether it is muted by that and was not before.
    pub(super) fn has_changed(&self, interface: Option<u32>, now: Millis) -> bool {
        self.moved.store(now.0, Ordering::Release);
        if let Some(index) = interface {
            self.interfaces.fetch_add(1, Ordering::AcqRel);
            let mut memory = self.memory();
            memory.links.remove(&index);
            memory.addresses.remove(&index);
        }
        // One that is gone stays gone.
        let next = |generation: u64| (generation != GONE).then(|| generation + 1);
        let _ = self.generation.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
        self.epoch.advance();
        self.count(now)
    }

    fn count(&self, now: Millis) -> bool {
        if now.since(Millis(self.second.load(Ordering::Relaxed))) >= Millis(1_000) {
            self.second.store(now.0, Ordering::Relaxed);
            self.messages.store(0, Ordering::Relaxed);
        }
        let count = self.messages.fetch_add(1, Ordering::Relaxed) + 1;
        if count <= MUTED_ABOVE {
            return false;
        }
        let was_muted = self.is_muted(now);
        // Until one whole second was quieter.
        self.muted_until.store(self.second.load(Ordering::Relaxed) + 2_000, Ordering::Relaxed);
        !was_muted
    }

    /// Something about it is lost, which may have been anything.
    pub(super) fn forget_interfaces(&self, now: Millis) {
        self.interfaces.fetch_add(1, Ordering::AcqRel);
        *self.memory() = Memory::default();
        self.has_changed(None, now);
    }

    /// It has ended, or it is not known any more whether it has.
    pub(super) fn forget(&self) {
        self.generation.store(GONE, Ordering::Release);
        self.epoch.advance();
        *self.memory() = Memory::default();
        self.answers.clear();
    }

    /// Remembers a way in, the latest being the likeliest to last.
    pub(super) fn found_at(&self, place: &Place) {
        let mut known = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        // The host's own is the one that lasts for ever.
        if *known != *place && *known != Place::Host {
            *known = place.clone();
        }
    }

    pub(super) fn place(&self) -> Place {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer that has this number here.
    pub(super) fn peer(&self, nsid: i32) -> Option<Arc<Namespace>> {
        self.memory().peers.get(&nsid).filter(|peer| !peer.is_gone()).cloned()
    }

    pub(super) fn remember_peer(&self, nsid: i32, peer: &Arc<Namespace>) {
        let mut memory = self.memory();
        if memory.peers.len() < MAX_REMEMBERED {
            memory.peers.insert(nsid, Arc::clone(peer));
        }
    }

    /// Puts in a socket that somebody who went in has brought back. Whether there was none.
    pub(super) fn keep(&self, socket: Socket) -> bool {
        match self.socket.try_lock() {
            Ok(mut kept) if kept.is_none() => {
                *kept = Some(socket);
                true
            }
            // One is there already, or being opened: this one is not needed.
            _ => false,
        }
    }

    /// Closes the socket; false where it is in use at this moment.
    pub(super) fn close(&self) -> bool {
        match self.socket.try_lock() {
            Ok(mut socket) => {
                *socket = None;
                true
            }
            Err(_) => false,
        }
    }

    /// Takes the socket for some questions; goes in where there is none. `opened` is called then.
    pub(super) fn session<'n>(
        self: &'n Arc<Self>,
        stats: &'n Stats,
        opened: impl FnOnce(&Arc<Namespace>),
    ) -> Result<Session<'n>, RouteError> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_gone() {
            let why = "it has ended, or messages about it were lost".into();
            return Err(RouteError::Gone { what: format!("net ns {}", self.identity.inode), why });
        }
        if socket.is_none() {
            let place = self.place();
            let Entered { identity, socket: fresh, netns } = place.enter()?;
            drop(netns);
            if identity != self.identity {
                let why = format!("net ns {} is there now, another one", identity.inode);
                return Err(RouteError::Gone { what: place.to_string(), why });
            }
            *socket = Some(fresh);
            opened(self);
        }
        Ok(Session { namespace: self, socket, stats })
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace").field("identity", &self.identity).field("nsid", &self.nsid).finish_non_exhaustive()
    }
}

/// A net ns that is being asked. Nobody else asks it meanwhile.
pub(super) struct Session<'n> {
    namespace: &'n Arc<Namespace>,
    socket: MutexGuard<'n, Option<Socket>>,
    stats: &'n Stats,
}

impl Session<'_> {
    fn netns(&self) -> u32 {
        self.namespace.identity.inode
    }

    fn ask<T>(
        &mut self,
        question: impl FnOnce() -> String,
        ask: impl FnOnce(&mut Socket) -> Result<T, AskError>,
    ) -> Result<T, RouteError> {
        let socket = self.socket.as_mut().expect("a session begins with a socket");
        self.stats.exchanges.add(1);
        let answer = ask(socket);
        // Whatever is in a socket that failed would be taken for the next answer.
        if let Err(AskError::Socket(_) | AskError::Garbled(_)) = &answer {
            *self.socket = None;
        }
        answer.map_err(|error| {
            if let Some(errno) = error.errno() {
                self.stats.errnos.add(errno);
            }
            RouteError::asked(self.netns(), question(), error)
        })
    }

    /// What it does with a packet, and by which route; both as the kernel says it, errors included.
    pub(super) fn route(
        &mut self,
        query: &RouteQuery,
    ) -> Result<(Result<Chosen, AskError>, Option<Matched>), RouteError> {
        let requests = [&Request::route(query), &Request::matching_route(query)];
        // The second of the two.
        self.stats.exchanges.add(1);
        let question = || format!("for the route to {}", query.destination);
        let (chosen, matched) =
            self.ask(question, |socket| socket.ask_both(requests, Chosen::decode, Matched::decode))?;
        if let Err(error) = &chosen {
            self.stats.errnos.add(error.errno().unwrap_or_default());
        }
        // What goes to everybody has no route to show.
        Ok((chosen, matched.ok()))
    }

    /// What it does with a packet, alone.
    pub(super) fn choice(&mut self, query: &RouteQuery) -> Result<Result<Chosen, AskError>, RouteError> {
        let question = || format!("for the route to {}", query.destination);
        self.ask(question, |socket| match socket.ask(&Request::route(query), Chosen::decode) {
            Err(error @ (AskError::Socket(_) | AskError::Garbled(_))) => Err(error),
            answer => Ok(answer),
        })
    }

    /// An interface, asked for or remembered.
    pub(super) fn link(&mut self, index: u32) -> Result<Link, RouteError> {
        let now = Millis::now();
        if let Some((link, since)) = self.namespace.memory().links.get(&index)
            && now.since(*since) < OLDEST
        {
            return Ok(link.clone());
        }
        let before = self.namespace.interfaces.load(Ordering::Acquire);
        let question = || format!("for interface {index}");
        let link = self.ask(question, |socket| socket.ask(&Request::link(index), Link::decode))?;
        self.remember(before, |memory| {
            memory.links.insert(index, (link.clone(), now));
        });
        Ok(link)
    }

    /// An interface by its name, always asked for.
    pub(super) fn link_named(&mut self, name: &str) -> Result<Link, RouteError> {
        let question = || format!("for interface `{}`", name.escape_debug());
        self.ask(question, |socket| socket.ask(&Request::link_named(name), Link::decode))
    }

    /// The interfaces below a bridge, always asked for.
    pub(super) fn ports(&mut self, bridge: u32) -> Result<Vec<Link>, RouteError> {
        let question = || format!("for the ports of interface {bridge}");
        let ports = self.ask(question, |socket| socket.list(&Request::ports(bridge), Link::decode))?;
        Ok(ports.into_iter().filter(|port| port.master == Some(bridge)).collect())
    }

    /// The addresses of an interface, asked for or remembered.
    pub(super) fn addresses(&mut self, index: u32) -> Result<Arc<[Address]>, RouteError> {
        let now = Millis::now();
        if let Some((addresses, since)) = self.namespace.memory().addresses.get(&index)
            && now.since(*since) < OLDEST
        {
            return Ok(Arc::clone(addresses));
        }
        let before = self.namespace.interfaces.load(Ordering::Acquire);
        let question = || format!("for the addresses of interface {index}");
        let addresses = self.ask(question, |socket| socket.list(&Request::addresses(index), Address::decode))?;
        let addresses: Arc<[Address]> = addresses.into_iter().filter(|address| address.interface == index).collect();
        self.remember(before, |memory| {
            memory.addresses.insert(index, (Arc::clone(&addresses), now));
        });
        Ok(addresses)
    }

    /// The longest prefix of an interface's addresses that holds the gateway, else the source.
    pub(super) fn subnet(
        &mut self,
        index: u32,
        gateway: Option<std::net::IpAddr>,
        source: Option<std::net::IpAddr>,
    ) -> Result<Option<Prefix>, RouteError> {
        let addresses = self.addresses(index)?;
        let holding = |wanted: Option<std::net::IpAddr>| {
            let prefixes = addresses.iter().map(|address| address.prefix);
            prefixes.filter(|prefix| wanted.is_some_and(|wanted| prefix.contains(wanted))).max_by_key(|p| p.length)
        };
        Ok(holding(gateway).or_else(|| holding(source)))
    }

    /// The number that a net ns has in this one.
    pub(super) fn nsid_of(&mut self, netns: u32) -> Result<Option<i32>, RouteError> {
        let question = || "for the number of another net ns".to_owned();
        let answer = self.ask(question, |socket| socket.ask(&Request::nsid_of(netns), super::reply::Nsid::decode))?;
        Ok(answer.number)
    }

    /// Keeps what was learnt, unless something was said about interfaces since `before`.
    fn remember(&self, before: u64, keep: impl FnOnce(&mut Memory)) {
        let mut memory = self.namespace.memory();
        // Under the lock that the listener takes to forget, so that it forgets this or is seen here.
        if self.namespace.interfaces.load(Ordering::Acquire) == before && !self.namespace.is_gone() {
            if memory.links.len() + memory.addresses.len() >= MAX_REMEMBERED {
                memory.links.clear();
                memory.addresses.clear();
            }
            keep(&mut memory);
        }
    }
}
