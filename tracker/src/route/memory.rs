//! What one thread remembers of the cache: no lock, no counter and no line of memory that threads share, but one that
//! is read.
//!
//! A key has two buckets, each a line of the processor's cache with room for two answers. A look-up that is a hit reads
//! one or two of these lines, the clock, and the [`Epoch`]: as long as nothing at all was heard since an answer was last
//! checked, it is as true as then. Otherwise the generations on its way are looked at, as the cache does.
//!
//! It begins small, doubles when it is full, and stops at a bound; from there on an answer replaces another one.

use std::collections::HashMap;
use std::hint::select_unpredictable;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aligned_vec::{AVec, RuntimeAlign};

use super::cache::{Cache, Entry, Kept};
use super::clock::Millis;
use super::key::Key;
use super::stats::Own;
use crate::sys::advise_large_pages;

/// Answers in a bucket.
const WAYS: usize = 2;
/// Buckets in the beginning: 4 KiB.
const FEWEST: usize = 64;
/// Bytes of a page that is one entry of the level above on x86-64, and on arm64 with small ones of 4 KiB.
const LARGE_PAGE: usize = 2 << 20;
/// Answers that move at most to make room for one.
const MOVES: usize = 128;
/// Answers that are shared before it is looked whether they still are.
const SHARED: usize = 256;

/// Moves after each change of any net ns's generation. Who reads it first and then sees a generation unchanged need not
/// look at that again until it has moved.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Epoch(AtomicU64);

impl Epoch {
    #[inline]
    fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// A generation has changed.
    pub(super) fn advance(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// An answer. Clones are counted apart from those of other threads, which would wait for one another.
#[derive(Clone, Debug)]
#[expect(clippy::redundant_allocation, reason = "the outer one is counted by one thread, the inner one by all")]
pub(super) struct Held(Arc<Arc<Kept>>);

impl Held {
    pub(super) fn new(kept: Arc<Kept>) -> Self {
        Held(Arc::new(kept))
    }

    fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl Deref for Held {
    type Target = Kept;

    #[inline]
    fn deref(&self) -> &Kept {
        &self.0
    }
}

/// One answer in 32 bytes.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// The key, but for a quarter: one in 2⁹⁶ is taken for another one.
    low: u64,
    high: u32,
    /// The lower half of the epoch in which it was last seen to be true. The upper half is the same for all.
    epoch: u32,
    life: Life,
    held: Option<Held>,
}

const _: () = assert!(size_of::<Bucket>() == 64);

#[derive(Debug, Default)]
#[repr(align(64))]
struct Bucket([Slot; WAYS]);

impl Slot {
    #[inline]
    fn is(&self, key: &Key) -> bool {
        let differs = self.low ^ key.low | u64::from(self.high ^ key.high as u32);
        (differs == 0) & self.held.is_some()
    }

    fn is_true(&self, now: Millis) -> bool {
        self.life.lasts(now) && self.held.as_ref().is_some_and(|held| held.is_true())
    }

    /// The answer, and its age.
    #[inline]
    pub(super) fn answer(&self, now: Millis) -> Option<(&Held, Millis)> {
        Some((self.held.as_ref()?, self.life.age(now)))
    }
}

/// When the kernel said so (40 bits, of milliseconds) and for how long it is believed (24 bits, of 256 of them, rounded
/// down).
#[derive(Clone, Copy, Debug, Default)]
struct Life(u64);

impl Life {
    const BEGIN: u32 = 40;
    const MAX: u64 = (1 << Self::BEGIN) - 1;

    fn new(asked: Millis, until: Millis) -> Self {
        let length = (until.since(asked).0 >> 8).min(u64::MAX >> Self::BEGIN);
        Life(asked.0.min(Self::MAX) | length << Self::BEGIN)
    }

    #[inline]
    fn age(self, now: Millis) -> Millis {
        now.since(Millis(self.0 & Self::MAX))
    }

    #[inline]
    fn lasts(self, now: Millis) -> bool {
        self.age(now).0 >> 8 < self.0 >> Self::BEGIN
    }
}

/// What a thread remembers.
pub(super) struct Memory {
    buckets: Buckets,
    /// Buckets that there may be, and answers that there are, true or not.
    most: usize,
    used: usize,
    /// The upper half of the epoch in which all of them were checked.
    era: u64,
    epoch: Arc<Epoch>,
    hits: Own,
    /// Answers by where they are kept, so that each is held once.
    shared: HashMap<usize, Held>,
    shared_most: usize,
}

impl Memory {
    /// With at most so many bytes of slots.
    pub(super) fn new(bytes: u64, epoch: Arc<Epoch>, hits: Own) -> Self {
        let most = usize::try_from(bytes).unwrap_or(usize::MAX) / size_of::<Bucket>();
        // A power of two, so that a part of a key is an index; the largest one that is not too large.
        let most = (most.checked_ilog2().map_or(0, |bits| 1 << bits.min(32))).max(FEWEST);
        let era = epoch.now() >> 32 << 32;
        let buckets = empty(FEWEST);
        Self { buckets, most, used: 0, era, epoch, hits, shared: HashMap::new(), shared_most: SHARED }
    }

    /// What is known, if it is true: remembered, or kept by the cache. Never waits.
    #[inline]
    pub(super) fn get(&mut self, key: &Key, now: Millis, cache: &Cache) -> Option<&Slot> {
        // Before any generation is looked at.
        let epoch = self.epoch.now();
        let known = self.find(key);
        let place = match known {
            Some(place) if self.is_current(place, epoch, now) => place,
            _ => self.renew(key, known, epoch, now, cache)?,
        };
        self.hits.add_one();
        Some(self.slot(place))
    }

    #[inline]
    fn is_current(&self, place: Place, epoch: u64, now: Millis) -> bool {
        let slot = self.slot(place);
        u64::from(slot.epoch) ^ epoch == self.era && slot.life.lasts(now)
    }

    /// Which of the four it is, nobody can guess: it is computed rather than decided, and both lines are always read, so
    /// that the processor goes on with what comes next, such as another look-up, while it waits for them.
    #[inline]
    fn find(&self, key: &Key) -> Option<Place> {
        let places = self.places(key.low, key.high as u32);
        let [first, second] = places.map(|bucket| &self.buckets[bucket].0);
        let mut matching = 0;
        for (number, slot) in first.iter().chain(second).enumerate() {
            matching |= u32::from(slot.is(key)) << number;
        }
        if matching == 0 {
            return None;
        }
        let number = matching.trailing_zeros() as usize;
        Some(Place { bucket: select_unpredictable(number < WAYS, places[0], places[1]), way: number % WAYS })
    }

    /// The buckets of a key: any two, so that few keys have the same.
    #[inline]
    fn places(&self, low: u64, high: u32) -> [usize; 2] {
        let mask = self.buckets.len() - 1;
        [low as usize & mask, high as usize & mask]
    }

    #[inline]
    fn slot(&self, place: Place) -> &Slot {
        &self.buckets[place.bucket].0[place.way]
    }

    fn slot_mut(&mut self, place: Place) -> &mut Slot {
        &mut self.buckets[place.bucket].0[place.way]
    }

    /// Something was heard, or the thread has not asked for this yet.
    #[cold]
    fn renew(&mut self, key: &Key, known: Option<Place>, epoch: u64, now: Millis, cache: &Cache) -> Option<Place> {
        if epoch >> 32 << 32 != self.era {
            // So many changes ago the same lower half meant another epoch.
            self.clear();
            self.era = epoch >> 32 << 32;
            return self.fetch(key, None, epoch, now, cache);
        }
        let Some(place) = known else { return self.fetch(key, None, epoch, now, cache) };
        if !self.slot(place).is_true(now) {
            return self.fetch(key, known, epoch, now, cache);
        }
        self.slot_mut(place).epoch = epoch as u32;
        known
    }

    /// Takes over what the cache keeps; what is known but no longer true is let go of.
    fn fetch(&mut self, key: &Key, known: Option<Place>, epoch: u64, now: Millis, cache: &Cache) -> Option<Place> {
        let found = cache.get(key, now);
        if let Some(place) = known {
            *self.slot_mut(place) = Slot::default();
            self.used -= 1;
        }
        let Entry { kept, asked, until, .. } = found?;
        let held = Some(self.share(kept));
        let slot =
            Slot { low: key.low, high: key.high as u32, epoch: epoch as u32, life: Life::new(asked, until), held };
        self.put(key, slot, now)
    }

    /// The one that is held already, if it is.
    fn share(&mut self, kept: Arc<Kept>) -> Held {
        if self.shared.len() >= self.shared_most {
            self.shared.retain(|_, held| held.is_shared());
            self.shared_most = SHARED.max(self.shared.len() * 2);
        }
        // Nobody else is there while it is held.
        let address = Arc::as_ptr(&kept).addr();
        self.shared.entry(address).or_insert_with(|| Held::new(kept)).clone()
    }

    /// Puts an answer in, and tells where it is.
    fn put(&mut self, key: &Key, slot: Slot, now: Millis) -> Option<Place> {
        if self.is_full() {
            self.grow(now);
        }
        if let Some(homeless) = self.settle(slot) {
            self.grow(now);
            if let Some(homeless) = self.settle(homeless) {
                self.replace(homeless, now);
            }
        }
        self.find(key)
    }

    /// Whether it is hardly worth while to look for an empty place.
    fn is_full(&self) -> bool {
        self.used >= self.buckets.len() * WAYS / 8 * 7
    }

    /// Puts an answer into one of its buckets. If both are taken, another one moves to the other one of its own, and so on;
    /// returns who is left without a place in the end.
    fn settle(&mut self, mut slot: Slot) -> Option<Slot> {
        let most = if self.is_full() { 1 } else { MOVES };
        let mut before = usize::MAX;
        for left in (0..most).rev() {
            let places = self.places(slot.low, slot.high);
            if let Some(place) = places.into_iter().find_map(|bucket| self.free_in(bucket)) {
                *self.slot_mut(place) = slot;
                self.used += 1;
                return None;
            }
            if left > 0 {
                // Not to where it was just driven out; and in no order, or the same few would drive each other out.
                let bucket = if places[0] == before { places[1] } else { places[0] };
                std::mem::swap(self.slot_mut(Place { bucket, way: fastrand::usize(..WAYS) }), &mut slot);
                before = bucket;
            }
        }
        Some(slot)
    }

    fn free_in(&self, bucket: usize) -> Option<Place> {
        let way = self.buckets[bucket].0.iter().position(|slot| slot.held.is_none())?;
        Some(Place { bucket, way })
    }

    /// Puts an answer in the place of one that is no longer true, else of any that has the same buckets.
    fn replace(&mut self, slot: Slot, now: Millis) {
        let places = self.places(slot.low, slot.high);
        let mut taken = places.into_iter().flat_map(|bucket| (0..WAYS).map(move |way| Place { bucket, way }));
        let any = Place { bucket: places[slot.high as usize >> 31], way: slot.high as usize >> 30 & 1 };
        let place = taken.find(|place| !self.slot(*place).is_true(now)).unwrap_or(any);
        *self.slot_mut(place) = slot;
    }

    /// Makes room while that is allowed: what is not true is let go of, and if that is less than half, there are twice as
    /// many buckets.
    fn grow(&mut self, now: Millis) {
        if self.buckets.len() >= self.most {
            return;
        }
        let slots = self.buckets.iter().flat_map(|bucket| &bucket.0);
        let is_crowded = slots.filter(|slot| slot.is_true(now)).count() > self.buckets.len() * WAYS / 2;
        let count = if is_crowded { self.buckets.len() * 2 } else { self.buckets.len() };
        let mut before = std::mem::replace(&mut self.buckets, empty(count));
        self.used = 0;
        for slot in before.iter_mut().flat_map(|bucket| &mut bucket.0).filter(|slot| slot.is_true(now)) {
            // One that finds no place is found in the cache again.
            self.settle(std::mem::take(slot));
        }
    }

    fn clear(&mut self) {
        self.buckets = empty(FEWEST);
        self.used = 0;
        self.shared.clear();
    }
}

/// Where a slot is.
#[derive(Clone, Copy, Debug)]
struct Place {
    bucket: usize,
    way: usize,
}

/// Buckets, in large pages as soon as they fill one.
type Buckets = AVec<Bucket, RuntimeAlign>;

fn empty(count: usize) -> Buckets {
    let is_large = count * size_of::<Bucket>() >= LARGE_PAGE;
    let mut buckets = Buckets::with_capacity(if is_large { LARGE_PAGE } else { align_of::<Bucket>() }, count);
    if let Some(begin) = NonNull::new(buckets.as_mut_ptr()).filter(|_| is_large) {
        // Before the first of them is written, and a small page behind it.
        advise_large_pages(begin.cast(), count * size_of::<Bucket>());
    }
    (0..count).for_each(|_| buckets.push(Bucket::default()));
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::answer::Route;
    use crate::route::namespace::Namespace;
    use crate::route::place::{Identity, Place as Way};
    use crate::route::stats::Striped;

    const NOW: Millis = Millis(1_000);
    const SOON: Millis = Millis(u64::MAX);

    /// A thread's memory, a cache, and a net ns.
    struct House {
        memory: Memory,
        cache: Cache,
        epoch: Arc<Epoch>,
        namespace: Arc<Namespace>,
        hits: Striped,
    }

    impl House {
        fn new(bytes: u64) -> House {
            let (epoch, hits) = (Arc::<Epoch>::default(), Striped::default());
            House {
                memory: Memory::new(bytes, Arc::clone(&epoch), hits.own()),
                cache: Cache::new(64 << 20),
                namespace: namespace(&epoch),
                epoch,
                hits,
            }
        }

        fn keep(&self, key: Key, until: Millis) -> Arc<Kept> {
            let seen = vec![(Arc::clone(&self.namespace), self.namespace.generation())];
            let entry = self.namespace.answers.entry(Kept::new(Route::default(), seen), NOW, until);
            self.cache.put(key, entry.clone());
            entry.kept
        }

        /// Whether the cache has it, for the memory has what it once had.
        fn is_known(&mut self, key: Key, now: Millis) -> bool {
            self.memory.get(&key, now, &self.cache).is_some()
        }

        /// Whether the memory has it by itself.
        fn is_remembered(&mut self, key: Key, now: Millis) -> bool {
            self.memory.get(&key, now, &Cache::new(1 << 10)).is_some()
        }
    }

    fn namespace(epoch: &Arc<Epoch>) -> Arc<Namespace> {
        Arc::new(Namespace::new(Identity { inode: 1, cookie: 1 }, Some(1), Way::Host, Arc::clone(epoch)))
    }

    fn keys(count: usize) -> Vec<Key> {
        let mut rng = fastrand::Rng::with_seed(7);
        (0..count).map(|_| Key { low: rng.u64(..), high: rng.u64(..) }).collect()
    }

    #[test]
    fn what_the_cache_keeps_is_remembered_until_something_is_heard() {
        let mut house = House::new(1 << 20);
        let (a, b) = (keys(2)[0], keys(2)[1]);
        assert!(!house.is_known(a, NOW));
        house.keep(a, SOON);
        assert!(house.is_known(a, NOW) && house.is_remembered(a, NOW) && !house.is_remembered(b, NOW));
        // Somebody else's change.
        namespace(&house.epoch).has_changed(None, NOW);
        assert!(house.is_remembered(a, NOW));
        house.namespace.has_changed(None, NOW);
        assert!(!house.is_known(a, NOW) && !house.is_remembered(a, NOW));
        house.keep(a, SOON);
        assert!(house.is_known(a, NOW));
        house.namespace.forget();
        assert!(!house.is_known(a, NOW));
        assert_eq!(house.hits.sum(), 4);
        drop(house.memory);
        let _another = house.hits.own();
        assert_eq!(house.hits.sum(), 4, "what a thread that has ended counted is not lost");
    }

    #[test]
    fn age_ends_what_is_remembered_and_never_later_than_it_should() {
        let mut house = House::new(1 << 20);
        for (key, until) in keys(40).into_iter().zip((0..).map(|n| NOW.0 + n * 100)) {
            house.keep(key, Millis(until));
            for now in (NOW.0..until + 600).step_by(50).map(Millis) {
                let remembered = house.is_remembered(key, now);
                assert!(!remembered || now.0 < until, "{now:?} of {until}");
                assert_eq!(house.is_known(key, now), now.0 < until, "{now:?} of {until}");
            }
        }
        let life = Life::new(Millis(5), SOON);
        assert!(life.lasts(Millis(5 + (3 << 30))) && life.age(Millis(25)) == Millis(20));
        assert!(!Life::new(SOON, SOON).lasts(SOON));
    }

    #[test]
    fn an_epoch_whose_lower_half_comes_again_is_another_one() {
        let mut house = House::new(1 << 20);
        let key = keys(1)[0];
        house.keep(key, SOON);
        assert!(house.is_known(key, NOW));
        house.namespace.has_changed(None, NOW);
        // As many changes later as there are lower halves.
        house.epoch.0.store(1 << 32, Ordering::Release);
        assert!(!house.is_remembered(key, NOW));
        house.keep(key, SOON);
        assert!(house.is_known(key, NOW) && house.is_remembered(key, NOW));
    }

    #[test]
    fn it_grows_with_what_it_is_asked_for_and_not_beyond_its_bound() {
        let mut house = House::new(1 << 20);
        assert_eq!(house.memory.buckets.len(), FEWEST);
        let keys = keys(100_000);
        for key in &keys {
            house.keep(*key, SOON);
        }
        for key in &keys[..20_000] {
            assert!(house.is_known(*key, NOW));
        }
        let size = size_of_val(&*house.memory.buckets);
        assert!(size == 1 << 20, "{size} bytes for 20,000 answers");
        let remembered = keys[..20_000].iter().filter(|key| house.is_remembered(**key, NOW)).count();
        assert!(remembered >= 19_990, "{remembered} of 20,000");
        for key in &keys {
            assert!(house.is_known(*key, NOW), "what finds no place replaces something");
        }
        assert_eq!(size_of_val(&*house.memory.buckets), 1 << 20);
        let used = house.memory.buckets.iter().flat_map(|bucket| &bucket.0).filter(|slot| slot.held.is_some()).count();
        assert_eq!(house.memory.used, used);
        assert!(used > 28_000 && house.memory.shared.len() == 1, "{used}");
    }

    #[test]
    fn a_hundred_thousand_answers_are_remembered_in_four_mebibytes() {
        let mut house = House::new(8 << 20);
        for key in keys(100_000) {
            house.keep(key, SOON);
            assert!(house.is_known(key, NOW));
        }
        assert_eq!((house.memory.used, size_of_val(&*house.memory.buckets)), (100_000, 4 << 20));
    }

    #[test]
    fn what_is_no_longer_true_makes_room_first() {
        let mut house = House::new(1 << 20);
        let keys = keys(1_000);
        let (old, new) = keys.split_at(500);
        for (round, keys) in [old, new].into_iter().enumerate() {
            for key in keys {
                house.keep(*key, SOON);
                assert!(house.is_known(*key, NOW), "round {round}");
            }
            house.namespace.has_changed(None, NOW);
        }
        assert_eq!(house.memory.buckets.len() * WAYS, 1_024, "500 answers at a time");
    }

    #[test]
    fn clones_are_counted_apart_from_those_of_other_threads() {
        let mut house = House::new(1 << 20);
        let keys = keys(10);
        let kept: Vec<_> = keys.iter().map(|key| house.keep(*key, SOON)).collect();
        assert!(kept.iter().all(|other| Arc::ptr_eq(other, &kept[0])));
        let before = Arc::strong_count(&kept[0]);
        let held: Vec<_> = keys
            .iter()
            .map(|key| house.memory.get(key, NOW, &house.cache).unwrap().answer(NOW).unwrap().0.clone())
            .collect();
        assert!(held.iter().all(|other| Arc::ptr_eq(&other.0, &held[0].0)));
        assert_eq!(Arc::strong_count(&kept[0]), before + 1);
    }
}
