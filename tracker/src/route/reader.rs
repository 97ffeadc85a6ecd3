//! Look-ups by one thread, which lends what it remembers instead of handing it out.

use std::fmt;

use super::answer::Route;
use super::clock::Millis;
use super::memory::Memory;
use super::query::RouteQuery;
use super::{Netns, Routes};

/// One thread's look-ups, see [`Routes::reader`].
pub struct Reader {
    routes: Routes,
    memory: Memory,
}

impl Reader {
    pub(super) fn new(routes: Routes) -> Self {
        let memory = routes.memory();
        Self { routes, memory }
    }

    /// Where a packet goes, if that is known. Never asks, never waits, see [`Routes::lookup_cached`].
    #[inline]
    pub fn lookup_cached(&mut self, netns: &Netns, query: &RouteQuery) -> Option<&Route> {
        let key = self.routes.key(netns, query);
        let now = Millis::now();
        let (held, _) = self.memory.get(&key, now, &self.routes.cache)?.answer(now)?;
        Some(&held.route)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("routes", &self.routes).finish_non_exhaustive()
    }
}
