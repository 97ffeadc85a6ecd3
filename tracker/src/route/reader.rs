//! Look-ups by one thread, which remembers its own latest answers: no lock and no counter that threads share.
//!
//! What it remembers is checked like what the cache keeps, so it is never older; it saves the way there.

use std::fmt;

use quick_cache::DefaultHashBuilder;

use super::answer::Route;
use super::cache::{Entry, Key};
use super::clock::Millis;
use super::query::RouteQuery;
use super::{Netns, Routes};

/// Answers that are remembered. A power of two, so that a hash is an index.
const SLOTS: usize = 4_096;
/// Hits that are counted here before they are told.
const TOLD_EACH: u64 = 256;

/// One thread's look-ups, see [`Routes::reader`].
pub struct Reader {
    routes: Routes,
    hasher: DefaultHashBuilder,
    slots: Box<[Option<(Key, Entry)>]>,
    hits: u64,
}

impl Reader {
    pub(super) fn new(routes: Routes) -> Self {
        let slots = std::iter::repeat_with(|| None).take(SLOTS).collect();
        Self { routes, hasher: DefaultHashBuilder::default(), slots, hits: 0 }
    }

    /// Where a packet goes, if that is known. Never asks, never waits, see [`Routes::lookup_cached`].
    #[inline]
    pub fn lookup_cached(&mut self, netns: &Netns, query: &RouteQuery) -> Option<&Route> {
        let key = Key::new(&netns.0, &query.normal());
        let now = Millis::now();
        // Two places for each, so that two keys seldom drive each other out.
        let hash = self.hasher.hash_one(key);
        let places = [hash as usize % SLOTS, (hash >> 32) as usize % SLOTS];
        let is_it = |slot: &Option<(Key, Entry)>| slot.as_ref().is_some_and(|(known, _)| *known == key);
        let place = match places.into_iter().find(|place| is_it(&self.slots[*place])) {
            Some(place) if self.slots[place].as_ref().is_some_and(|(_, entry)| entry.is_true(now)) => place,
            known => self.fetch(key, known, places, now)?,
        };
        self.hits += 1;
        if self.hits == TOLD_EACH {
            self.tell();
        }
        self.slots[place].as_ref().map(|(_, entry)| &entry.kept.route)
    }

    /// Takes over what the cache keeps.
    #[cold]
    fn fetch(&mut self, key: Key, known: Option<usize>, places: [usize; 2], now: Millis) -> Option<usize> {
        let found = self.routes.cache.get(&key, now);
        let is_free = |place: &usize| self.slots[*place].as_ref().is_none_or(|(_, entry)| !entry.is_true(now));
        let place = known.or_else(|| places.into_iter().find(is_free)).unwrap_or(places[0]);
        // What is no longer true is let go of, whether there is something else or not.
        let is_stale = known.is_some();
        match found {
            Some(entry) => self.slots[place] = Some((key, entry)),
            None if is_stale => self.slots[place] = None,
            None => {}
        }
        self.slots[place].as_ref().filter(|(known, _)| *known == key).map(|_| place)
    }

    fn tell(&mut self) {
        self.routes.registry.stats.hits.add(std::mem::take(&mut self.hits));
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.tell();
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("routes", &self.routes).finish_non_exhaustive()
    }
}
