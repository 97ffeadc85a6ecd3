//! A sorted, persistent sequence: cloning it is one reference count, and a change after a clone copies one chunk and the
//! list of chunks. So ten thousand containers on one net ns cost little more than ten thousand on their own, and five
//! thousand lives on one mount ns are searched in memory that lies together.

use std::sync::Arc;

const CHUNK_LEN: usize = 16;

/// What it is sorted by. No two items have the same.
pub(crate) trait Keyed {
    fn key(&self) -> u64;
}

/// A clone shares everything with its original until one of them changes.
#[derive(Clone, Debug)]
pub(crate) struct Chunks<T>(Option<Arc<List<T>>>);

/// Never empty, and no chunk is.
#[derive(Clone, Debug)]
struct List<T> {
    /// The first key of each chunk, on their own: a search touches few cache lines.
    firsts: Vec<u64>,
    chunks: Vec<Arc<[T]>>,
}

impl<T: Keyed + Clone> List<T> {
    fn of(item: T) -> Self {
        List { firsts: vec![item.key()], chunks: vec![Arc::from([item])] }
    }

    /// Number of the chunk where `key` is or belongs.
    #[inline]
    fn chunk_of(&self, key: u64) -> usize {
        self.firsts.partition_point(|first| *first <= key).saturating_sub(1)
    }

    fn set(&mut self, at: usize, items: Vec<T>) {
        self.firsts[at] = items[0].key();
        self.chunks[at] = items.into();
    }
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Chunks(None)
    }
}

impl<T: Keyed + Clone> Chunks<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn iter(&self) -> Iter<'_, T> {
        let chunks = self.0.as_ref().map_or(&[][..], |list| &list.chunks);
        Iter { chunks: chunks.iter(), chunk: [].iter() }
    }

    /// The last item whose key is at most `key`.
    #[inline]
    pub(crate) fn up_to(&self, key: u64) -> Option<&T> {
        let list = self.0.as_ref()?;
        let items = &list.chunks[list.chunk_of(key)];
        // Counting has no branch to guess wrong, and no load that waits for another.
        items.get(items.iter().filter(|item| item.key() <= key).count().checked_sub(1)?)
    }

    pub(crate) fn get(&self, key: u64) -> Option<&T> {
        self.up_to(key).filter(|item| item.key() == key)
    }

    /// Enters an item, in place of the one with its key if there is one.
    pub(crate) fn put(&mut self, item: T) {
        let Some(list) = &mut self.0 else {
            self.0 = Some(Arc::new(List::of(item)));
            return;
        };
        let list = Arc::make_mut(list);
        let at = list.chunk_of(item.key());
        let mut items = list.chunks[at].to_vec();
        match items.binary_search_by_key(&item.key(), T::key) {
            Ok(same) => items[same] = item,
            Err(place) => items.insert(place, item),
        }
        // The newest usually comes last: leave the old chunk full, so that appending fills chunks.
        if items.len() > CHUNK_LEN {
            let tail = items.split_off(CHUNK_LEN);
            list.firsts.insert(at + 1, tail[0].key());
            list.chunks.insert(at + 1, tail.into());
        }
        list.set(at, items);
    }

    pub(crate) fn remove(&mut self, key: u64) {
        if self.get(key).is_none() {
            return;
        }
        let Some(list) = &mut self.0 else { return };
        let list = Arc::make_mut(list);
        let at = list.chunk_of(key);
        let items: Vec<T> = list.chunks[at].iter().filter(|item| item.key() != key).cloned().collect();
        if !items.is_empty() {
            list.set(at, items);
        } else if list.chunks.len() > 1 {
            list.firsts.remove(at);
            list.chunks.remove(at);
        } else {
            self.0 = None;
        }
    }
}

/// All items, in order. Iterating allocates nothing.
#[derive(Debug)]
pub(crate) struct Iter<'a, T> {
    chunks: std::slice::Iter<'a, Arc<[T]>>,
    chunk: std::slice::Iter<'a, T>,
}

impl<T> Clone for Iter<'_, T> {
    fn clone(&self) -> Self {
        Iter { chunks: self.chunks.clone(), chunk: self.chunk.clone() }
    }
}

impl<T> Default for Iter<'_, T> {
    fn default() -> Self {
        Iter { chunks: [].iter(), chunk: [].iter() }
    }
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            if let Some(item) = self.chunk.next() {
                return Some(item);
            }
            self.chunk = self.chunks.next()?.iter();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl Keyed for (u64, u8) {
        fn key(&self) -> u64 {
            self.0
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds_and_a_clone_stays_as_it_was(
            steps in prop::collection::vec((0u64..300, prop::option::weighted(0.7, 0u8..4)), 0..600),
        ) {
            let (mut chunks, mut truth) = (Chunks::default(), BTreeMap::new());
            let (mut clone, mut clone_truth) = (Chunks::default(), BTreeMap::new());
            for (step, (key, value)) in steps.iter().enumerate() {
                if step == steps.len() / 2 {
                    (clone, clone_truth) = (chunks.clone(), truth.clone());
                }
                match value {
                    Some(value) => {
                        chunks.put((*key, *value));
                        truth.insert(*key, *value);
                    }
                    None => {
                        chunks.remove(*key);
                        truth.remove(key);
                    }
                }
            }
            for (chunks, truth) in [(&chunks, &truth), (&clone, &clone_truth)] {
                prop_assert!(chunks.iter().copied().eq(truth.iter().map(|(key, value)| (*key, *value))));
                prop_assert_eq!(chunks.is_empty(), truth.is_empty());
                for key in 0..301 {
                    let before = truth.range(..=key).next_back().map(|(key, value)| (*key, *value));
                    prop_assert_eq!(chunks.up_to(key).copied(), before);
                    prop_assert_eq!(chunks.get(key).map(|item| item.1), truth.get(&key).copied());
                }
            }
        }
    }
}
