//! Routes: where a packet goes that is sent in a net ns, as the kernel itself says, and never stale.
//!
//! A question is a net ns and a [`RouteQuery`]; the answer is a [`Route`]: what each net ns on the way does with the
//! packet, up to where it leaves the host. Nothing here knows of containers: whoever asks names net namespaces by a
//! [`Place`].
//!
//! ```text
//!  place ──▶ registry: the net ns, known or made known     listen: one socket hears all of them
//!  query ──▶ cache: known, and still true, or
//!            hops: asks each net ns on the way ◀──────────  namespace: its generation, its socket
//!              │ request, reply: bytes
//!              ▼
//!            answer
//! ```
//!
//! A net ns is entered by a thread of its own, which opens a socket there and ends; the socket is used from outside and
//! closed after a second, since it keeps the net ns alive.

mod answer;
mod cache;
mod clock;
pub mod ec2;
mod error;
mod hops;
mod key;
mod listen;
mod memory;
mod namespace;
mod place;
mod query;
mod reader;
mod registry;
mod reply;
mod request;
mod socket;
mod stats;
mod subnet;

use std::cell::RefCell;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Deserialize;
use thread_local::ThreadLocal;
use tokio::sync::{Semaphore, watch};

pub use self::answer::{Found, Hop, Interface, Kind, Mac, NextHop, Prefix, Route, Subnet, Via};
use self::cache::{Cache, Entry, Kept, Seen, Taken};
use self::clock::Millis;
pub use self::error::RouteError;
use self::hops::Walked;
use self::key::{Key, Secret};
use self::memory::{Held, Memory};
use self::namespace::{Namespace, OLDEST};
pub use self::place::{Identity, Place};
pub use self::query::{NotAnAddress, RouteQuery, parse_address};
pub use self::reader::Reader;
use self::registry::Registry;
pub use self::registry::Ways;
pub use self::reply::Garbled;
pub use self::stats::{Errnos, Stats, Striped, SubnetStats};
use self::subnet::{Name, SubnetNames};

/// How often a way is asked for again that changed while it was asked for.
const ATTEMPTS: usize = 3;
/// How long anything may take that should take microseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Look-ups that are under way on threads of their own at one time; one more is refused.
const MAX_ASKING: usize = 64;

/// The configuration of routes. In the config file under `[route]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Directories whose files net namespaces are mounted on: where it is looked when a veth leads to one that is not
    /// known.
    pub directories: Vec<PathBuf>,
    /// Bytes of answers that are kept; 16 MiB by default, which is some hundred thousand. Those that were not used for
    /// long make room. Each thread that looks up remembers what it has found, in up to half as many bytes of its own.
    pub cache_bytes: u64,
    /// From which age on an answer is asked for again, whatever was heard: for what the kernel does not announce. 60,000 by
    /// default.
    pub oldest_ms: u64,
    /// EC2's names for subnets.
    pub ec2: ec2::Config,
}

impl Default for Config {
    fn default() -> Self {
        let directories = ["/run/netns", "/run/docker/netns"].map(PathBuf::from).to_vec();
        Self { directories, cache_bytes: 16 << 20, oldest_ms: OLDEST.0, ec2: ec2::Config::default() }
    }
}

/// A net ns that is known. It does not keep it alive.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Namespace>);

impl Netns {
    /// Which one it is.
    pub fn identity(&self) -> Identity {
        self.0.identity
    }

    /// Whether it has ended, or is no longer known for another reason. Then it is to be found again.
    pub fn is_gone(&self) -> bool {
        self.0.is_gone()
    }
}

/// The routes of all net namespaces. Cheap to clone.
///
/// ```no_run
/// use tracker::route::{Config, Place, RouteError, RouteQuery, Routes};
/// # fn main() -> Result<(), RouteError> {
/// let (routes, listening) = Routes::start(Config::default(), None, Default::default())?;
/// let (stop, _ends_when_dropped) = std::io::pipe().expect("two descriptors");
/// std::thread::spawn(move || listening.run(std::os::fd::AsFd::as_fd(&stop)));
/// let blue = routes.netns(&Place::Path("/run/netns/blue".into()))?;
/// let found = routes.lookup_blocking(&blue, &RouteQuery::to([8, 8, 8, 8].into()))?;
/// println!("{} hops, leaves via {:?}", found.hops.len(), found.via);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Routes {
    registry: Arc<Registry>,
    cache: Arc<Cache>,
    secret: Arc<Secret>,
    /// What each thread remembers that has looked something up.
    memories: Arc<ThreadLocal<RefCell<Memory>>>,
    memory_bytes: u64,
    oldest: Millis,
    subnet_names: Arc<SubnetNames>,
    /// First look-ups that are under way on threads of their own.
    slots: Arc<Semaphore>,
}

/// The half that listens: to be run on a thread of its own, for as long as routes are asked for. Without it nothing is
/// kept and sockets are not closed.
pub struct Listening(Arc<Registry>);

impl Listening {
    /// Listens until `stop` is readable. Puts the calling thread before ordinary ones, where that is allowed.
    pub fn run(self, stop: BorrowedFd<'_>) {
        self.0.run(stop);
    }
}

impl Routes {
    /// Opens what is needed to ask and to listen. `ways` lead to net namespaces that nobody has asked about, where a veth
    /// ends in one.
    pub fn start(config: Config, ways: Option<Ways>, stats: Arc<Stats>) -> Result<(Routes, Listening), RouteError> {
        let subnet_names = SubnetNames::new(config.ec2, Arc::clone(&stats));
        let registry = Arc::new(Registry::start(config.directories, ways, stats)?);
        let routes = Routes {
            registry: Arc::clone(&registry),
            cache: Arc::new(Cache::new(config.cache_bytes)),
            secret: Arc::new(Secret::new()),
            memories: Arc::default(),
            memory_bytes: config.cache_bytes / 2,
            oldest: Millis(config.oldest_ms),
            subnet_names: Arc::new(subnet_names),
            slots: Arc::new(Semaphore::new(MAX_ASKING)),
        };
        Ok((routes, Listening(registry)))
    }

    /// The host's own net ns.
    pub fn host(&self) -> Netns {
        Netns(Arc::clone(&self.registry.host))
    }

    /// The net ns at a place. Takes microseconds where it is known already, else a tenth of a millisecond.
    pub fn netns(&self, place: &Place) -> Result<Netns, RouteError> {
        self.registry.find(place).map(Netns)
    }

    /// The net ns with this inode number, if somebody has asked about it before. Never waits.
    pub fn known(&self, inode: u32) -> Option<Netns> {
        self.registry.known(inode).map(Netns)
    }

    /// Index of the interface with this name.
    pub fn interface(&self, netns: &Netns, name: &str) -> Result<u32, RouteError> {
        Ok(self.registry.session(&netns.0)?.link_named(name)?.index)
    }

    /// Where a packet goes, if that is known. Never asks, never waits.
    ///
    /// Each thread remembers what it has looked up: nothing is written that other threads use, too. A [`Reader`] saves what it
    /// costs to find the thread's memory and to count who has the answer.
    #[inline]
    pub fn lookup_cached(&self, netns: &Netns, query: &RouteQuery) -> Option<Found> {
        let memory = self.memories.get_or(|| RefCell::new(self.memory()));
        let (key, now) = (self.key(netns, query), Millis::now());
        // Nobody else's code runs while it is borrowed.
        let mut memory = memory.borrow_mut();
        let (held, age) = memory.get(&key, now, &self.cache)?.answer(now)?;
        Some(Found { held: held.clone(), cached: true, age: age.duration(), muted: false })
    }

    /// Look-ups for one thread that lend their answers: faster than [`Routes::lookup_cached`]. What it remembers keeps no net
    /// ns alive.
    pub fn reader(&self) -> Reader {
        Reader::new(self.clone())
    }

    /// Where a packet goes; asks the kernel only where that is not known. One asks for each question, others wait for it.
    ///
    /// For threads: it takes microseconds, or what it takes to enter the net namespaces on the way. See [`Routes::lookup`].
    pub fn lookup_blocking(&self, netns: &Netns, query: &RouteQuery) -> Result<Found, RouteError> {
        match self.lookup_cached(netns, query) {
            Some(found) => Ok(found),
            None => self.look(netns, query),
        }
    }

    /// The same for one that may not be known.
    fn look(&self, netns: &Netns, query: &RouteQuery) -> Result<Found, RouteError> {
        let key = self.key(netns, query);
        let query = query.normal();
        match self.cache.take(&key, PATIENCE) {
            Taken::Found(entry) => {
                self.registry.stats.hits.add(1);
                Ok(found(entry, Millis::now()))
            }
            Taken::Missing(turn) => {
                let Miss { kept, asked, until } = self.miss(netns, &query)?;
                Ok(match self.keepable(asked, &kept) {
                    true => {
                        let entry = netns.0.answers.entry(kept, asked, until);
                        // Somebody who asked anew may have put in a later answer.
                        let _ = turn.insert(entry.clone());
                        Found { cached: false, ..found(entry, asked) }
                    }
                    false => unkept(kept, asked),
                })
            }
            Taken::Late => Err(RouteError::TooSlow { what: self.what(netns, &query), time: PATIENCE }),
        }
    }

    /// Where a packet goes, asked all the way whatever is known: never stale. Keeps the answer for others;
    /// where it contradicts what was kept, without anything having been heard, all that is kept of these net namespaces is
    /// forgotten.
    pub fn ask_blocking(&self, netns: &Netns, query: &RouteQuery) -> Result<Found, RouteError> {
        let key = self.key(netns, query);
        let query = query.normal();
        // What is remembered of interfaces is used; what was said about them until now counts.
        if !self.registry.drain() {
            return Err(RouteError::Unsettled { what: self.what(netns, &query), attempts: 1 });
        }
        let Miss { kept, asked, until } = self.miss(netns, &query)?;
        if !self.keepable(asked, &kept) {
            return Ok(unkept(kept, asked));
        }
        // What is kept and says something else was true as far as anybody was told: then other answers are not, either.
        if self.cache.get(&key, Millis::now()).is_some_and(|known| known.kept.is_contradicted(&kept, Millis::now())) {
            return Ok(unkept(kept, asked));
        }
        let entry = netns.0.answers.entry(kept, asked, until);
        self.cache.put(key, entry.clone());
        Ok(Found { cached: false, ..found(entry, asked) })
    }

    /// [`Routes::lookup_blocking`] for tasks: what is not known is asked for on another thread. With `fresh`, it is
    /// [`Routes::ask_blocking`].
    pub async fn lookup(&self, netns: &Netns, query: &RouteQuery, fresh: bool) -> Result<Found, RouteError> {
        if let Some(found) = (!fresh).then(|| self.lookup_cached(netns, query)).flatten() {
            return Ok(found);
        }
        let (routes, netns, query) = (self.clone(), netns.clone(), *query);
        let what = self.what(&netns, &query);
        let look = move || match fresh {
            true => routes.ask_blocking(&netns, &query),
            false => routes.look(&netns, &query),
        };
        self.on_a_thread(what, look).await
    }

    /// [`Routes::netns`] for tasks.
    pub async fn find(&self, place: &Place) -> Result<Netns, RouteError> {
        let (routes, place) = (self.clone(), place.clone());
        self.on_a_thread(format!("find {place}"), move || routes.netns(&place)).await
    }

    /// [`Routes::interface`] for tasks.
    pub async fn find_interface(&self, netns: &Netns, name: &str) -> Result<u32, RouteError> {
        let (routes, netns, name) = (self.clone(), netns.clone(), name.to_owned());
        self.on_a_thread(format!("find interface `{}`", name.escape_debug()), move || routes.interface(&netns, &name))
            .await
    }

    /// Is told of every change in a net ns that is known, from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.registry.changes()
    }

    /// Answers that are kept, true or not, and their bytes.
    pub fn cache_size(&self) -> (u64, u64) {
        self.cache.size()
    }

    /// What is counted.
    pub fn stats(&self) -> &Stats {
        &self.registry.stats
    }

    /// Does what may wait for the kernel, or for a file system, on a thread that may be lost to it.
    async fn on_a_thread<T: Send + 'static>(
        &self,
        what: String,
        look: impl FnOnce() -> Result<T, RouteError> + Send + 'static,
    ) -> Result<T, RouteError> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| RouteError::Busy(MAX_ASKING))?;
        let looked = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            look()
        });
        match tokio::time::timeout(PATIENCE, looked).await {
            Ok(Ok(found)) => found,
            Ok(Err(panicked)) => Err(RouteError::Open { doing: "ask", what, error: std::io::Error::other(panicked) }),
            Err(_) => Err(RouteError::TooSlow { what, time: PATIENCE }),
        }
    }

    #[inline]
    fn key(&self, netns: &Netns, query: &RouteQuery) -> Key {
        self.secret.key(netns.0.identity.cookie, query)
    }

    fn memory(&self) -> Memory {
        Memory::new(self.memory_bytes, Arc::clone(&self.registry.epoch), self.registry.stats.hits.own())
    }

    fn miss(&self, netns: &Netns, query: &RouteQuery) -> Result<Miss, RouteError> {
        if let Some(source_address) = query.source.filter(|_| !query.is_of_one_family()) {
            return Err(RouteError::TwoFamilies { source_address, destination: query.destination });
        }
        self.registry.stats.misses.add(1);
        let asked = Millis::now();
        let walked = self.settled(netns, query);
        let Walked { mut route, seen, egress } = walked.inspect_err(|_| {
            self.registry.stats.errors.fetch_add(1, Ordering::Relaxed);
        })?;
        let mut until = Millis(asked.0.saturating_add(self.oldest.0));
        // Clouds know the host's interfaces.
        let leaves = egress.filter(|(namespace, _)| Arc::ptr_eq(namespace, &self.registry.host));
        if let Some(Name { name, until: believed }) = leaves.and_then(|(_, by)| self.subnet_names.of(&by)) {
            route.name_subnet(name);
            until = until.min(believed.unwrap_or(until));
        }
        Ok(Miss { kept: Kept::new(route, seen), asked, until })
    }

    /// Whether an answer may be used for others, who ask later.
    fn keepable(&self, asked: Millis, kept: &Kept) -> bool {
        self.registry.is_heard() && kept.is_settled(asked)
    }

    fn what(&self, netns: &Netns, query: &RouteQuery) -> String {
        format!("ask net ns {} for the route to {}", netns.0.identity.inode, query.destination)
    }

    /// A way during whose asking nothing on it changed.
    fn settled(&self, netns: &Netns, query: &RouteQuery) -> Result<Walked, RouteError> {
        let moves = || self.registry.stats.moves.load(Ordering::Relaxed);
        for _ in 0..ATTEMPTS {
            let before = moves();
            let walked = hops::walk(&self.registry, &netns.0, query);
            let is_all_heard = self.registry.drain();
            match walked {
                // An interface that went away meanwhile is a reason to look again, too.
                Err(RouteError::Refused { .. }) if moves() != before => {}
                Err(error) => return Err(error),
                Ok(walked) => {
                    let is_same = |(namespace, at): &Seen| namespace.generation() == *at;
                    if is_all_heard && walked.seen.iter().all(is_same) {
                        return Ok(walked);
                    }
                }
            }
        }
        Err(RouteError::Unsettled { what: self.what(netns, query), attempts: ATTEMPTS })
    }
}

/// What the kernel said.
struct Miss {
    kept: Kept,
    asked: Millis,
    /// From when on it is not believed any more.
    until: Millis,
}

fn found(entry: Entry, now: Millis) -> Found {
    Found { held: Held::new(entry.kept), cached: true, age: now.since(entry.asked).duration(), muted: false }
}

fn unkept(kept: Kept, now: Millis) -> Found {
    let muted = kept.is_muted(now);
    Found { held: Held::new(Arc::new(kept)), cached: false, age: Duration::ZERO, muted }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes").field("host", &self.registry.host).finish_non_exhaustive()
    }
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listening").finish_non_exhaustive()
    }
}
