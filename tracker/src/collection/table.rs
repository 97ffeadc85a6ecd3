//! A persistent hash table from kernel numbers to values: cloning it is one reference count, and a change after a
//! clone copies only the path to one shard, so that publishing costs the size of the change.
//!
//! ```text
//! root: 64 branches ──▶ branch: 64 shards ──▶ shard: open-addressed slots, at most half full
//! ```
//!
//! Two fixed levels instead of a general trie: three dependent loads for a look-up whatever the size, and at 100,000
//! keys a shard still holds some 25. Keys are never 0, which marks an empty slot; the kernel hands out no such inode
//! number, cgroup id or pid.

use std::sync::Arc;

const FANOUT_BITS: u32 = 6;
const FANOUT: usize = 1 << FANOUT_BITS;

/// A clone shares everything with its original until one of them changes.
#[derive(Clone, Debug)]
pub(crate) struct Table<V> {
    root: Arc<[Branch<V>; FANOUT]>,
    len: usize,
}

type Branch<V> = Arc<[Shard<V>; FANOUT]>;
type Shard<V> = Arc<[Slot<V>]>;

#[derive(Clone, Debug)]
struct Slot<V> {
    /// 0 where it is empty; the value is then the default.
    key: u64,
    value: V,
}

/// Where a key lives. Multiplying by an odd constant moves the entropy of counters such as inode numbers to the top.
#[derive(Clone, Copy)]
struct Place {
    branch: usize,
    shard: usize,
    probe: usize,
}

impl Place {
    #[inline]
    fn of(key: u64) -> Self {
        let hash = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Place {
            branch: (hash >> (64 - FANOUT_BITS)) as usize,
            shard: (hash >> (64 - 2 * FANOUT_BITS)) as usize & (FANOUT - 1),
            probe: (hash >> 20) as usize,
        }
    }
}

impl<V: Clone + Default> Table<V> {
    pub(crate) fn new() -> Self {
        let shard: Shard<V> = Arc::from([Slot { key: 0, value: V::default() }]);
        let branch: Branch<V> = Arc::new(std::array::from_fn(|_| Arc::clone(&shard)));
        Table { root: Arc::new(std::array::from_fn(|_| Arc::clone(&branch))), len: 0 }
    }

    /// How many keys there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn get(&self, key: u64) -> Option<&V> {
        let place = Place::of(key);
        let shard = &self.root[place.branch][place.shard];
        let mask = shard.len() - 1;
        let mut at = place.probe & mask;
        loop {
            let slot = &shard[at];
            if slot.key == key {
                return (key != 0).then_some(&slot.value);
            }
            if slot.key == 0 {
                return None;
            }
            at = (at + 1) & mask;
        }
    }

    /// Changes the value of `key` where it lies, the default where it has none; `change` says whether it stays.
    pub(crate) fn change(&mut self, key: u64, change: impl FnOnce(&mut V) -> bool) {
        assert_ne!(key, 0, "0 marks an empty slot");
        let place = Place::of(key);
        let shard = &mut Arc::make_mut(&mut Arc::make_mut(&mut self.root)[place.branch])[place.shard];
        if let Some(at) = shard.iter().position(|slot| slot.key == key) {
            if !change(&mut Arc::make_mut(shard)[at].value) {
                *shard = rebuilt(shard.iter().filter(|slot| slot.key != key).cloned());
                self.len -= 1;
            }
            return;
        }
        let mut value = V::default();
        if change(&mut value) {
            enter(shard, Slot { key, value });
            self.len += 1;
        }
    }
}

fn enter<V: Clone + Default>(shard: &mut Shard<V>, slot: Slot<V>) {
    let occupied = shard.iter().filter(|slot| slot.key != 0).count();
    match (occupied + 1) * 2 <= shard.len() {
        true => put(Arc::make_mut(shard), slot),
        false => *shard = rebuilt(shard.iter().cloned().chain([slot])),
    }
}

/// A shard of the occupied ones of `slots`, at most half full, so that every probe ends at an empty slot.
fn rebuilt<V: Clone + Default>(slots: impl Iterator<Item = Slot<V>>) -> Shard<V> {
    let slots: Vec<Slot<V>> = slots.filter(|slot| slot.key != 0).collect();
    let len = (slots.len() * 2).next_power_of_two().max(1);
    let mut shard: Shard<V> = std::iter::repeat_n(Slot { key: 0, value: V::default() }, len).collect();
    let empty = Arc::make_mut(&mut shard);
    slots.into_iter().for_each(|slot| put(empty, slot));
    shard
}

fn put<V>(shard: &mut [Slot<V>], slot: Slot<V>) {
    let mask = shard.len() - 1;
    let mut at = Place::of(slot.key).probe & mask;
    while shard[at].key != 0 {
        at = (at + 1) & mask;
    }
    shard[at] = slot;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn set<V: Clone + Default>(table: &mut Table<V>, key: u64, value: Option<V>) {
        table.change(key, |slot| {
            let stays = value.is_some();
            *slot = value.unwrap_or_default();
            stays
        });
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds_and_a_clone_stays_as_it_was(
            steps in prop::collection::vec((1u64..200, prop::option::of(0u32..5)), 0..400),
        ) {
            let mut table = Table::new();
            let mut truth = BTreeMap::new();
            let (mut clone, mut clone_truth) = (table.clone(), truth.clone());
            for (step, (key, value)) in steps.into_iter().enumerate() {
                set(&mut table, key, value);
                match value {
                    Some(value) => truth.insert(key, value),
                    None => truth.remove(&key),
                };
                prop_assert_eq!(table.len(), truth.len());
                if step % 50 == 0 {
                    for key in 0..200 {
                        prop_assert_eq!(clone.get(key), clone_truth.get(&key));
                    }
                    (clone, clone_truth) = (table.clone(), truth.clone());
                }
            }
            for key in 1..200 {
                prop_assert_eq!(table.get(key), truth.get(&key));
            }
        }
    }

    #[test]
    fn keys_that_collide_in_one_shard_are_all_found() {
        let mut table = Table::new();
        let same_shard: Vec<u64> =
            (1..2_000_000).filter(|key| Place::of(*key).branch == 3 && Place::of(*key).shard == 7).take(300).collect();
        same_shard.iter().for_each(|key| set(&mut table, *key, Some(*key)));
        assert_eq!(same_shard.len(), 300);
        assert!(same_shard.iter().all(|key| table.get(*key) == Some(key)));
        same_shard.iter().for_each(|key| set(&mut table, *key, None));
        assert_eq!(table.len(), 0);
        assert!(same_shard.iter().all(|key| table.get(*key).is_none()));
    }
}
