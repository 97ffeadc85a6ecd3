//! Answers that are kept, and what they are true for.
//!
//! An answer is true as long as each net ns on its way has the generation that it had before it was asked; a look at
//! these numbers is all that a hit needs. Nothing is removed when something changes: what is no longer true is a miss, is
//! replaced by the next look-up, or makes room in its turn.

use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::mem::size_of;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quick_cache::sync::{Cache as Shards, GuardResult, PlaceholderGuard};
use quick_cache::{OptionsBuilder, Weighter};

use super::answer::{Hop, NextHop, Route};
use super::clock::Millis;
use super::key::{ByKey, Key};
use super::namespace::Namespace;

/// Different answers that are shared by what is kept of one net ns; beyond, each is kept for itself.
const MAX_SHARED: usize = 256;
/// What the cache itself needs for an entry, as measured: its place in the table and in the queue.
const OVERHEAD: usize = 48;

/// Keeps answers.
pub(super) struct Cache {
    shards: Shards<Key, Entry, ByBytes, ByKey>,
}

/// A net ns, and the generation that it had.
pub(super) type Seen = (Arc<Namespace>, u64);

/// An answer and what it is true for.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) route: Route,
    seen: Box<[Seen]>,
}

impl Kept {
    pub(super) fn new(route: Route, seen: Vec<Seen>) -> Self {
        Self { route, seen: seen.into() }
    }

    /// Whether nothing has been heard since that could have changed it.
    #[inline]
    pub(super) fn is_true(&self) -> bool {
        self.seen.iter().all(|(namespace, generation)| namespace.generation() == *generation)
    }

    /// Whether somebody was told otherwise just now; then nothing that was learnt in these net namespaces is true.
    pub(super) fn is_contradicted(&self, by: &Kept, now: Millis) -> bool {
        let is_other = self.route != by.route;
        if is_other {
            for (namespace, _) in self.seen.iter().chain(&by.seen) {
                namespace.has_changed(None, now);
            }
        }
        is_other
    }

    /// Whether it may be kept at all.
    pub(super) fn is_settled(&self, now: Millis) -> bool {
        self.seen.iter().all(|(namespace, _)| namespace.is_settled(now))
    }

    /// Whether a net ns on the way talks so much that it is not kept.
    pub(super) fn is_muted(&self, now: Millis) -> bool {
        self.seen.iter().any(|(namespace, _)| namespace.is_muted(now))
    }

    fn bytes(&self) -> usize {
        let of_hop = |hop: &Hop| size_of::<Hop>() + hop.nexthops.len() * size_of::<NextHop>() + 64;
        size_of::<Self>() + size_of_val(&*self.seen) + self.route.hops.iter().map(of_hop).sum::<usize>()
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        let same = |((a, at), (b, bt)): (&Seen, &Seen)| Arc::ptr_eq(a, b) && at == bt;
        self.seen.len() == other.seen.len() && self.seen.iter().zip(&other.seen).all(same) && self.route == other.route
    }
}

impl Eq for Kept {}

impl Hash for Kept {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.route.hash(state);
    }
}

/// What is kept under a key.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) kept: Arc<Kept>,
    /// When the kernel said so.
    pub(super) asked: Millis,
    /// From when on it is not believed, whatever was heard.
    pub(super) until: Millis,
    /// Bytes that it takes; those of an answer that others share, too, count with the first.
    bytes: u32,
}

impl Entry {
    /// Whether it may still be told.
    #[inline]
    pub(super) fn is_true(&self, now: Millis) -> bool {
        now < self.until && self.kept.is_true()
    }
}

/// Weighs an entry.
#[derive(Clone)]
pub(super) struct ByBytes;

impl Weighter<Key, Entry> for ByBytes {
    fn weight(&self, _: &Key, entry: &Entry) -> u64 {
        entry.bytes.into()
    }
}

/// The right to ask for a key. While one has it, others that want the same wait.
pub(super) type Turn<'c> =
    PlaceholderGuard<'c, Key, Entry, ByBytes, ByKey, quick_cache::sync::DefaultLifecycle<Key, Entry>>;

/// What there is to a key.
pub(super) enum Taken<'c> {
    /// An answer that is true.
    Found(Entry),
    /// None, and it is the caller's turn to ask.
    Missing(Turn<'c>),
    /// None, and who had the turn did not come back in time.
    Late,
}

impl Cache {
    pub(super) fn new(bytes: u64) -> Self {
        let typical = size_of::<Key>() + size_of::<Entry>() + OVERHEAD;
        let options = OptionsBuilder::new()
            .weight_capacity(bytes)
            .estimated_items_capacity((bytes / typical as u64) as usize)
            .build()
            .expect("both capacities are given");
        Self { shards: Shards::with_options(options, ByBytes, ByKey::default(), Default::default()) }
    }

    /// What is kept, if it is true. Never waits for an exchange.
    #[inline]
    pub(super) fn get(&self, key: &Key, now: Millis) -> Option<Entry> {
        self.shards.get(key).filter(|entry| entry.is_true(now))
    }

    /// What is kept, if it is true, or the right to ask; waits for whoever is asking.
    pub(super) fn take(&self, key: &Key, patience: Duration) -> Taken<'_> {
        loop {
            match self.shards.get_value_or_guard(key, Some(patience)) {
                GuardResult::Value(entry) if entry.is_true(Millis::now()) => return Taken::Found(entry),
                // Unless somebody has replaced it by now.
                GuardResult::Value(stale) => {
                    self.shards.remove_if(key, |entry| Arc::ptr_eq(&entry.kept, &stale.kept));
                }
                GuardResult::Guard(turn) => return Taken::Missing(turn),
                GuardResult::Timeout => return Taken::Late,
            }
        }
    }

    /// Puts an answer in, whatever is there.
    pub(super) fn put(&self, key: Key, entry: Entry) {
        self.shards.insert(key, entry);
    }

    /// Entries, true or not, and their bytes.
    pub(super) fn size(&self) -> (u64, u64) {
        (self.shards.len() as u64, self.shards.weight())
    }
}

/// The answers of a net ns that are kept, each once.
#[derive(Debug, Default)]
pub(super) struct Shared {
    // Protects the set; held for a look.
    answers: Mutex<HashSet<Arc<Kept>>>,
}

impl Shared {
    /// An entry for an answer, which is shared with an equal one.
    pub(super) fn entry(&self, kept: Kept, asked: Millis, until: Millis) -> Entry {
        let mut bytes = size_of::<Key>() + size_of::<Entry>() + OVERHEAD;
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = match answers.get(&kept) {
            Some(shared) => Arc::clone(shared),
            None => {
                bytes += kept.bytes();
                let kept = Arc::new(kept);
                if answers.len() >= MAX_SHARED {
                    answers.retain(|kept| kept.is_true());
                }
                if answers.len() < MAX_SHARED {
                    answers.insert(Arc::clone(&kept));
                }
                kept
            }
        };
        Entry { kept, asked, until, bytes: u32::try_from(bytes).unwrap_or(u32::MAX) }
    }

    /// Lets go of all of them.
    pub(super) fn clear(&self) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("entries", &self.shards.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::route::answer::Via;
    use crate::route::key::Secret;
    use crate::route::place::{Identity, Place};
    use crate::route::query::RouteQuery;

    const SOON: Millis = Millis(u64::MAX);

    fn namespace(cookie: u64) -> Arc<Namespace> {
        Arc::new(Namespace::new(Identity { inode: 1, cookie }, Some(1), Place::Host, Arc::default()))
    }

    fn to(address: &str) -> RouteQuery {
        RouteQuery::to(address.parse().unwrap())
    }

    fn key(namespace: &Namespace, query: &RouteQuery) -> Key {
        static SECRET: LazyLock<Secret> = LazyLock::new(Secret::new);
        SECRET.key(namespace.identity.cookie, query)
    }

    fn kept(seen: &[&Arc<Namespace>]) -> Kept {
        let seen = seen.iter().map(|namespace| (Arc::clone(namespace), namespace.generation())).collect();
        let via = Via { gateway: "10.0.0.1".parse().unwrap(), subnet: None };
        Kept::new(Route { hops: vec![], via: Some(via), unfinished: None }, seen)
    }

    fn put(cache: &Cache, key: Key, kept: Kept, until: Millis) {
        cache.put(key, Shared::default().entry(kept, Millis(0), until));
    }

    #[test]
    fn a_chain_is_true_only_while_all_of_its_net_namespaces_are_as_they_were() {
        let cache = Cache::new(1 << 20);
        let (inner, outer, other) = (namespace(1), namespace(2), namespace(3));
        let asked = key(&inner, &to("8.8.8.8"));
        put(&cache, asked, kept(&[&inner, &outer]), SOON);
        other.has_changed(None, Millis(1));
        assert!(cache.get(&asked, Millis(1)).is_some());
        outer.has_changed(None, Millis(1));
        assert!(cache.get(&asked, Millis(1)).is_none());
        put(&cache, asked, kept(&[&inner, &outer]), SOON);
        assert!(cache.get(&asked, Millis(1)).is_some());
        inner.forget();
        assert!(cache.get(&asked, Millis(1)).is_none());
        // One that is gone stays so, and nothing that was learnt of it then is ever true.
        inner.has_changed(None, Millis(2));
        assert!(inner.is_gone());
    }

    #[test]
    fn age_ends_what_nothing_was_heard_of() {
        let cache = Cache::new(1 << 20);
        let namespace = namespace(1);
        let asked = key(&namespace, &to("8.8.8.8"));
        put(&cache, asked, kept(&[&namespace]), Millis(60_000));
        assert!(cache.get(&asked, Millis(59_999)).is_some());
        assert!(cache.get(&asked, Millis(60_000)).is_none());
    }

    #[test]
    fn a_net_ns_that_just_spoke_is_not_settled_and_one_that_speaks_too_much_is_muted() {
        let namespace = namespace(1);
        let now = Millis(10_000);
        assert!(kept(&[&namespace]).is_settled(now));
        namespace.has_changed(None, now);
        assert!(!kept(&[&namespace]).is_settled(now));
        assert!(kept(&[&namespace]).is_settled(Millis(10_500)));
        let muted = (0..1_000).filter(|_| namespace.has_changed(None, Millis(10_500))).count();
        assert_eq!(muted, 1, "it is said once");
        assert!(!kept(&[&namespace]).is_settled(Millis(11_500)) && kept(&[&namespace]).is_muted(Millis(11_500)));
        assert!(kept(&[&namespace]).is_settled(Millis(13_000)));
    }

    #[test]
    fn equal_answers_are_kept_once() {
        let (a, b) = (namespace(1), namespace(2));
        let shared = Shared::default();
        let first = shared.entry(kept(&[&a]), Millis(0), SOON);
        let second = shared.entry(kept(&[&a]), Millis(5), SOON);
        assert!(Arc::ptr_eq(&first.kept, &second.kept) && second.bytes < first.bytes && second.bytes <= 200);
        let other = shared.entry(kept(&[&b]), Millis(5), SOON);
        assert!(!Arc::ptr_eq(&first.kept, &other.kept));
        a.has_changed(None, Millis(1));
        let later = shared.entry(kept(&[&a]), Millis(5), SOON);
        assert!(!Arc::ptr_eq(&first.kept, &later.kept), "it is true for another generation");
    }

    #[test]
    fn one_asks_and_others_wait_for_it() {
        let cache = Cache::new(1 << 20);
        let namespace = namespace(1);
        let asked = key(&namespace, &to("8.8.8.8"));
        let Taken::Missing(turn) = cache.take(&asked, Duration::from_secs(10)) else { panic!("nothing is kept yet") };
        assert!(matches!(cache.take(&asked, Duration::from_millis(1)), Taken::Late));
        std::thread::scope(|scope| {
            let others: Vec<_> = (0..4).map(|_| scope.spawn(|| cache.take(&asked, Duration::from_secs(30)))).collect();
            turn.insert(Shared::default().entry(kept(&[&namespace]), Millis(0), SOON)).unwrap();
            for other in others {
                assert!(matches!(other.join().unwrap(), Taken::Found(_)));
            }
        });
        namespace.has_changed(None, Millis(0));
        assert!(
            matches!(cache.take(&asked, Duration::from_secs(10)), Taken::Missing(_)),
            "what is stale is asked anew"
        );
    }

    #[test]
    fn it_stays_within_its_bytes() {
        let cache = Cache::new(100_000);
        let namespace = namespace(1);
        for address in 0..10_000_u32 {
            let query = RouteQuery::to(std::net::IpAddr::V4(address.into()));
            put(&cache, key(&namespace, &query), kept(&[&namespace]), SOON);
        }
        let (entries, bytes) = cache.size();
        assert!(bytes <= 100_000 && entries > 100, "{entries} entries, {bytes} bytes");
    }
}
