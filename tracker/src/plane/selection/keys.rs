//! What is in one map of a selection, and what should be.
//!
//! The map is written only where that makes a difference. A write that fails, for want of room above all, stays
//! *pending* and is tried again when that may help; nothing is forgotten and nothing is evicted.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Of the room, an eighth for containers that nobody vouches for, which anybody may make.
const UNVOUCHED_SHARE: usize = 8;

/// Whose key it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// What stands under the key.
    pub(super) generation: u64,
    pub(super) is_vouched: bool,
}

/// A table that may be full or refuse.
pub(super) trait Table<K> {
    /// Whether `value` stands under `key` now.
    fn put(&mut self, key: K, value: u64) -> bool;
    /// Whether nothing stands under `key` now.
    fn take(&mut self, key: K) -> bool;
}

/// See the module.
#[derive(Debug)]
pub(super) struct Keys<K, T> {
    table: T,
    capacity: usize,
    held: HashMap<K, Member>,
    /// Of those.
    unvouched: usize,
    pending: BTreeMap<K, Option<Member>>,
    /// Something happened that may have made room for what is pending.
    may_help: bool,
}

impl<K: Copy + Eq + Hash + Ord, T: Table<K>> Keys<K, T> {
    /// Over a table with room for `capacity` keys, which has these in it.
    pub(super) fn new(table: T, capacity: usize, found: impl IntoIterator<Item = (K, u64)>) -> Self {
        let member = |(key, generation)| (key, Member { generation, is_vouched: true });
        let held = found.into_iter().map(member).collect();
        Self { table, capacity, held, unvouched: 0, pending: BTreeMap::new(), may_help: false }
    }

    /// Says what should stand under `key`.
    pub(super) fn set(&mut self, key: K, wanted: Option<Member>) {
        self.pending.remove(&key);
        if !self.write(key, wanted) {
            self.pending.insert(key, wanted);
            // Where it was not for want of room, the next time may be better.
            self.may_help |= self.is_refused(key, wanted);
        }
    }

    /// Tries again what is pending, if that may help: first what goes, then what somebody vouches for.
    pub(super) fn repair(&mut self) {
        if self.pending.is_empty() || !std::mem::take(&mut self.may_help) {
            return;
        }
        let urgency = |key: &K, wanted: &Option<Member>| match wanted {
            Some(member) if !self.held.contains_key(key) => 1 + u8::from(!member.is_vouched),
            _ => 0,
        };
        let mut pending: Vec<_> =
            self.pending.iter().map(|(key, wanted)| (urgency(key, wanted), *key, *wanted)).collect();
        pending.sort_by_key(|(urgency, ..)| *urgency);
        for (_, key, wanted) in pending {
            if self.write(key, wanted) {
                self.pending.remove(&key);
            } else if self.is_refused(key, wanted) {
                // The table itself refuses: so it would the others.
                self.may_help = true;
                break;
            }
        }
    }

    /// Takes everything out.
    pub(super) fn clear(&mut self) {
        self.pending.clear();
        for key in self.keys() {
            self.write(key, None);
        }
    }

    pub(super) fn keys(&self) -> Vec<K> {
        self.held.keys().copied().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// How many should be in and are not.
    pub(super) fn missing(&self) -> usize {
        self.pending.values().flatten().count()
    }

    /// Whether what could not be written would have had room.
    fn is_refused(&self, key: K, wanted: Option<Member>) -> bool {
        wanted.is_none_or(|member| self.held.contains_key(&key) || self.has_room(member))
    }

    fn has_room(&self, member: Member) -> bool {
        let has_share = member.is_vouched || self.unvouched < self.capacity.div_ceil(UNVOUCHED_SHARE);
        has_share && self.held.len() < self.capacity
    }

    fn write(&mut self, key: K, wanted: Option<Member>) -> bool {
        let held = self.held.get(&key).copied();
        let is_written = match (held, wanted) {
            (None, None) => return true,
            (Some(_), None) => self.table.take(key),
            (None, Some(member)) => self.has_room(member) && self.table.put(key, member.generation),
            (Some(held), Some(member)) => {
                held.generation == member.generation || self.table.put(key, member.generation)
            }
        };
        if is_written {
            let is_unvouched = |member: Option<Member>| usize::from(member.is_some_and(|member| !member.is_vouched));
            self.unvouched = self.unvouched + is_unvouched(wanted) - is_unvouched(held);
            match wanted {
                Some(member) => self.held.insert(key, member),
                None => self.held.remove(&key),
            };
            self.may_help |= wanted.is_none_or(|member| member.is_vouched);
        }
        is_written
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A table that refuses when it is told to, and counts calls.
    #[derive(Debug, Default)]
    struct Fake {
        held: HashMap<u32, u64>,
        refuses: bool,
        calls: usize,
    }

    impl Table<u32> for Fake {
        fn put(&mut self, key: u32, value: u64) -> bool {
            self.calls += 1;
            !self.refuses && {
                self.held.insert(key, value);
                true
            }
        }

        fn take(&mut self, key: u32) -> bool {
            self.calls += 1;
            !self.refuses && {
                self.held.remove(&key);
                true
            }
        }
    }

    fn keys(capacity: usize) -> Keys<u32, Fake> {
        Keys::new(Fake::default(), capacity, [])
    }

    fn member(generation: u64) -> Option<Member> {
        Some(Member { generation, is_vouched: true })
    }

    fn unvouched(generation: u64) -> Option<Member> {
        Some(Member { generation, is_vouched: false })
    }

    #[test]
    fn only_what_makes_a_difference_is_written() {
        let mut keys = keys(16);
        for (wanted, calls) in [(None, 0), (member(1), 1), (member(1), 1), (unvouched(1), 1), (member(2), 2), (None, 3)]
        {
            keys.set(7, wanted);
            assert_eq!(keys.table.calls, calls, "{wanted:?}");
        }
    }

    #[test]
    fn what_finds_no_room_is_counted_and_comes_in_when_there_is_some() {
        let mut keys = keys(2);
        (1..=4).for_each(|key| keys.set(key, member(key.into())));
        assert_eq!((keys.len(), keys.missing()), (2, 2));
        let calls = keys.table.calls;
        (0..10).for_each(|_| keys.repair());
        assert_eq!(keys.table.calls, calls, "while it is full nothing is tried");
        keys.set(1, None);
        keys.set(4, None);
        keys.repair();
        assert_eq!((keys.len(), keys.missing()), (2, 0));
        assert_eq!(keys.table.held, HashMap::from([(2, 2), (3, 3)]));
    }

    #[test]
    fn what_nobody_vouches_for_has_an_eighth_and_waits_behind_the_others() {
        let mut keys = keys(16);
        (0..4).for_each(|key| keys.set(key, unvouched(1)));
        assert_eq!((keys.len(), keys.missing()), (2, 2));
        (100..115).for_each(|key| keys.set(key, member(1)));
        assert_eq!((keys.len(), keys.missing()), (16, 3));
        keys.set(0, None);
        keys.repair();
        assert!(keys.held.contains_key(&114) && !keys.held.contains_key(&2), "{keys:?}");
        // Somebody vouches for it now.
        keys.set(1, member(1));
        keys.set(100, None);
        keys.repair();
        assert_eq!((keys.unvouched, keys.missing()), (1, 1));
    }

    #[test]
    fn what_was_refused_is_tried_again() {
        let mut keys = keys(4);
        keys.set(1, member(1));
        keys.table.refuses = true;
        keys.set(1, None);
        keys.set(2, member(2));
        keys.repair();
        assert_eq!((keys.len(), keys.missing()), (1, 1));
        keys.table.refuses = false;
        keys.repair();
        assert_eq!(keys.table.held, HashMap::from([(2, 2)]));
    }

    #[test]
    fn what_was_there_before_stays_where_it_is_right() {
        let mut keys =
            Keys::new(Fake { held: HashMap::from([(1, 1), (2, 2)]), ..Fake::default() }, 4, [(1, 1), (2, 2)]);
        keys.set(1, member(1));
        keys.set(2, None);
        assert_eq!((keys.table.calls, &keys.table.held), (1, &HashMap::from([(1, 1)])));
        keys.clear();
        assert!(keys.table.held.is_empty());
    }

    proptest! {
        /// Whatever is asked for in whatever order: what is in the table is right, and all of it that finds room is in.
        #[test]
        fn what_fits_is_in_and_nothing_else(
            capacity in 1_usize..12,
            steps in proptest::collection::vec((0_u32..16, proptest::option::of((1_u64..4, any::<bool>())), any::<bool>()), 1..200),
        ) {
            let (mut keys, mut truth) = (keys(capacity), HashMap::new());
            for (key, wanted, refuses) in steps {
                let wanted = wanted.map(|(generation, is_vouched)| Member { generation, is_vouched });
                keys.table.refuses = refuses;
                keys.set(key, wanted);
                keys.repair();
                truth.insert(key, wanted);
            }
            keys.table.refuses = false;
            (0..3).for_each(|_| { keys.may_help = true; keys.repair() });
            let truth: HashMap<u32, Member> = truth.into_iter().filter_map(|(key, wanted)| Some((key, wanted?))).collect();
            for (key, generation) in &keys.table.held {
                prop_assert_eq!(truth.get(key).map(|member| member.generation), Some(*generation));
            }
            prop_assert_eq!(keys.len(), keys.table.held.len());
            prop_assert_eq!(keys.len() + keys.missing(), truth.len());
            let vouched = truth.values().filter(|member| member.is_vouched).count();
            prop_assert_eq!(keys.len() - keys.unvouched, vouched.min(capacity - keys.unvouched));
        }
    }
}
