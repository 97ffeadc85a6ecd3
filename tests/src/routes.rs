//! Routes that listen on a thread of their own, as long as a test lasts.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Result;
use nix::sys::eventfd::EventFd;
use tracker::route::{Config, Found, Netns, Place, RouteError, RouteQuery, Routes, Stats, Ways};

use crate::net::Net;
use crate::wait::eventually;

/// Routes, and who listens for them.
pub struct Listened {
    /// What is asked.
    pub routes: Routes,
    /// What is counted.
    pub stats: Arc<Stats>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Listened {
    /// Starts to listen.
    pub fn start() -> Result<Listened> {
        Self::start_with(Config::default(), None)
    }

    /// The same with another configuration, and ways into net namespaces.
    pub fn start_with(config: Config, ways: Option<Ways>) -> Result<Listened> {
        let stats = Arc::<Stats>::default();
        let (routes, listening) = Routes::start(config, ways, Arc::clone(&stats))?;
        let stop = Arc::new(EventFd::new()?);
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || listening.run(stop.as_fd())
        });
        Ok(Listened { routes, stats, stop, thread: Some(thread) })
    }

    /// The net ns of a test.
    pub fn netns(&self, net: &Net) -> Result<Netns, RouteError> {
        self.routes.netns(&Place::Path(net.path()))
    }

    /// Asks the kernel.
    pub fn ask(&self, net: &Net, query: &RouteQuery) -> Result<Found, RouteError> {
        self.routes.ask_blocking(&self.netns(net)?, query)
    }

    /// Looks up until the answer is kept: what changed a moment ago is not, and on a busy machine others change the
    /// host's own net ns.
    pub fn until_kept(&self, netns: &Netns, query: &RouteQuery) -> Found {
        eventually("an answer is kept", || {
            self.routes.lookup_blocking(netns, query).expect("an answer");
            self.routes.lookup_cached(netns, query)
        })
    }
}

impl Drop for Listened {
    fn drop(&mut self) {
        // Full means that it has been told before.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the listener panicked");
        }
    }
}

/// A query of which nothing is known but where it goes.
pub fn to(address: &str) -> RouteQuery {
    RouteQuery::to(address.parse().expect("an address"))
}
