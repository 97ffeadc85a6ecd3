//! A sorted, persistent sequence: cloning it is one reference count, and a change after a clone copies one chunk and the
//! list of chunks. So ten thousand containers on one net ns cost little more than ten thousand on their own, and five
//! thousand lives on one mount ns are searched in memory that lies together.

use std::sync::Arc;

const CHUNK_LEN: usize = 64;

/// What it is sorted by. No two items have the same.
pub(crate) trait Keyed {
    fn key(&self) -> u64;
}

/// A clone shares everything with its original until one of them changes. Never holds an empty list or an empty chunk.
#[derive(Clone, Debug)]
pub(crate) struct Chunks<T>(Option<Arc<Vec<Chunk<T>>>>);

#[derive(Clone, Debug)]
struct Chunk<T> {
    first: u64,
    items: Arc<Vec<T>>,
}

impl<T: Keyed> Chunk<T> {
    fn of(items: Vec<T>) -> Self {
        Chunk { first: items[0].key(), items: Arc::new(items) }
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
        Iter { chunks: self.chunks().iter(), chunk: [].iter() }
    }

    /// The last item whose key is at most `key`.
    pub(crate) fn up_to(&self, key: u64) -> Option<&T> {
        let chunks = self.chunks();
        let items = &chunks.get(chunks.partition_point(|chunk| chunk.first <= key).checked_sub(1)?)?.items;
        items.get(items.partition_point(|item| item.key() <= key).checked_sub(1)?)
    }

    pub(crate) fn get(&self, key: u64) -> Option<&T> {
        self.up_to(key).filter(|item| item.key() == key)
    }

    /// Enters an item, in place of the one with its key if there is one.
    pub(crate) fn put(&mut self, item: T) {
        let key = item.key();
        let at = self.chunk_of(key);
        let Some(chunks) = &mut self.0 else {
            self.0 = Some(Arc::new(vec![Chunk::of(vec![item])]));
            return;
        };
        let chunks = Arc::make_mut(chunks);
        let items = Arc::make_mut(&mut chunks[at].items);
        match items.binary_search_by_key(&key, T::key) {
            Ok(same) => items[same] = item,
            Err(place) => items.insert(place, item),
        }
        // The newest usually comes last: leave the old chunk full, so that appending fills chunks.
        let tail = (items.len() > CHUNK_LEN).then(|| items.split_off(CHUNK_LEN));
        chunks[at].first = chunks[at].items[0].key();
        if let Some(tail) = tail {
            chunks.insert(at + 1, Chunk::of(tail));
        }
    }

    pub(crate) fn remove(&mut self, key: u64) {
        if self.get(key).is_none() {
            return;
        }
        let at = self.chunk_of(key);
        let Some(chunks) = &mut self.0 else { return };
        let chunks = Arc::make_mut(chunks);
        if chunks[at].items.len() > 1 {
            let items = Arc::make_mut(&mut chunks[at].items);
            items.retain(|item| item.key() != key);
            chunks[at].first = items[0].key();
        } else if chunks.len() > 1 {
            chunks.remove(at);
        } else {
            self.0 = None;
        }
    }

    fn chunks(&self) -> &[Chunk<T>] {
        self.0.as_ref().map_or(&[], |chunks| chunks.as_slice())
    }

    /// Index of the chunk where `key` is or belongs, if there is any chunk.
    fn chunk_of(&self, key: u64) -> usize {
        self.chunks().partition_point(|chunk| chunk.first <= key).saturating_sub(1)
    }
}

/// All items, in order. Iterating allocates nothing.
#[derive(Debug)]
pub(crate) struct Iter<'a, T> {
    chunks: std::slice::Iter<'a, Chunk<T>>,
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
            self.chunk = self.chunks.next()?.items.iter();
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
