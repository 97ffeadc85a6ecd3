//! Routes: where a packet goes that is sent in a net ns, as the kernel itself says, and never stale.
//!
//! A question is a net ns and a [`RouteQuery`]; the answer is a [`Route`]: what each net ns on the way does with the
//! packet, up to where it leaves the host. Nothing here knows of containers: whoever asks names net namespaces by a
//! [`Place`].
//!
//! ```text
//!  place ──▶ registry: the net ns, known or made known     listen: one socket hears all of them
//!  query ──▶ hops: asks each net ns on the way ◀──────────  namespace: its generation, its socket
//!              │ request, reply: bytes
//!              ▼
//!            answer
//! ```
//!
//! A net ns is entered by a thread of its own, which opens a socket there and ends; the socket is used from outside and
//! closed after a second, since it keeps the net ns alive.

mod answer;
mod clock;
mod error;
mod hops;
mod listen;
mod namespace;
mod place;
mod query;
mod registry;
mod reply;
mod request;
mod socket;
mod stats;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

pub use self::answer::{Found, Hop, Interface, Kind, Mac, NextHop, Prefix, Route, Subnet, Via};
use self::clock::Millis;
pub use self::error::RouteError;
use self::hops::Walked;
use self::namespace::Namespace;
pub use self::place::{Identity, Place};
pub use self::query::{NotAnAddress, RouteQuery, parse_address};
use self::registry::Registry;
pub use self::registry::Ways;
pub use self::reply::Garbled;
pub use self::stats::{Errnos, Stats, Striped, SubnetStats};

/// How often a way is asked for again that changed while it was asked for.
const ATTEMPTS: usize = 3;

/// The configuration of routes. In the config file under `[route]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Directories whose files net namespaces are mounted on: where it is looked when a veth leads to one that is not
    /// known.
    pub directories: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self { directories: ["/run/netns", "/run/docker/netns"].map(PathBuf::from).to_vec() }
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
#[derive(Clone)]
pub struct Routes {
    registry: Arc<Registry>,
}

/// The half that listens: to be run on a thread of its own, for as long as routes are asked for. Without it nothing is
/// kept and sockets are not closed.
pub struct Listening(Arc<Registry>);

impl Listening {
    /// Listens until `stop` is readable.
    pub fn run(self, stop: BorrowedFd<'_>) {
        self.0.run(stop);
    }
}

impl Routes {
    /// Opens what is needed to ask and to listen. `ways` lead to net namespaces that nobody has asked about, where a veth
    /// ends in one.
    pub fn start(config: Config, ways: Option<Ways>, stats: Arc<Stats>) -> Result<(Routes, Listening), RouteError> {
        let registry = Arc::new(Registry::start(config.directories, ways, stats)?);
        Ok((Routes { registry: Arc::clone(&registry) }, Listening(registry)))
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

    /// Asks the kernel all the way, whatever is known already.
    pub fn ask(&self, netns: &Netns, query: &RouteQuery) -> Result<Found, RouteError> {
        let query = query.normal();
        if let Some(source_address) = query.source.filter(|_| !query.is_of_one_family()) {
            return Err(RouteError::TwoFamilies { source_address, destination: query.destination });
        }
        let Walked { route, .. } = self.settled(netns, &query)?;
        Ok(Found { route: Arc::new(route), cached: false, age: Duration::ZERO })
    }

    /// A way during whose asking nothing on it changed.
    fn settled(&self, netns: &Netns, query: &RouteQuery) -> Result<Walked, RouteError> {
        for _ in 0..ATTEMPTS {
            let walked = match hops::walk(&self.registry, &netns.0, query) {
                // An interface or a net ns that went away meanwhile is a reason to look again, too.
                Err(RouteError::Refused { .. }) if self.has_moved(netns) => continue,
                walked => walked?,
            };
            self.registry.drain();
            if walked.seen.iter().all(|(namespace, generation)| namespace.generation() == *generation) {
                return Ok(walked);
            }
        }
        let what = format!("net ns {} for the route to {}", netns.0.identity.inode, query.destination);
        Err(RouteError::Unsettled { what, attempts: ATTEMPTS })
    }

    fn has_moved(&self, netns: &Netns) -> bool {
        self.registry.drain();
        !netns.0.is_settled(Millis::now())
    }
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
