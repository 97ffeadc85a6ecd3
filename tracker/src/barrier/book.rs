//! What the barrier remembers of containers between their `create` and their `start`.
//!
//! Bounded: [`MOST_ENTRIES`] containers, the longest unused is forgotten for a new one. What is forgotten is read again
//! from the runtime's state directory when its `start` comes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::container::{ContainerId, ContainerKey, TaskId};
use crate::fact::Statement;
use crate::time::BootTime;

/// Most containers remembered.
const MOST_ENTRIES: usize = 4096;

/// How an OCI runtime knows a container: by its state directory and the id in it.
pub(super) type Place = (PathBuf, ContainerId);

/// One container, from the moment we heard of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: ContainerKey,
    pub(super) place: Place,
    pub(super) pid_file: Option<PathBuf>,
    /// The `create` or `run` that makes it, and when that was seen; absent for a container that was there before.
    pub(super) creator: Option<(TaskId, BootTime)>,
    /// What the bundle says, without what only the init process shows.
    pub(super) statement: Statement,
    // Protects the order of statements about this container: whoever states something holds it while doing so.
    phase: Mutex<Phase>,
}

/// How far a container is, as far as the barrier saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is being made, or was made.
    Created,
    /// It came by `run` or `restore`.
    Running,
    /// Its `start` was held.
    Started,
    /// It was deleted, or another one has its place.
    Gone,
}

impl Entry {
    pub(super) fn new(
        key: ContainerKey,
        place: Place,
        pid_file: Option<PathBuf>,
        creator: Option<(TaskId, BootTime)>,
        statement: Statement,
    ) -> Arc<Self> {
        Arc::new(Self { key, place, pid_file, creator, statement, phase: Mutex::new(Phase::Created) })
    }

    pub(super) fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All entries.
#[derive(Debug, Default)]
pub(super) struct Book {
    // Protects the map; held for moments.
    shelf: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    entries: HashMap<Place, (Arc<Entry>, u64)>,
    uses: u64,
}

impl Book {
    /// Remembers a container; returns the one that had its place.
    pub(super) fn insert(&self, entry: &Arc<Entry>) -> Option<Arc<Entry>> {
        let mut shelf = self.lock();
        if shelf.entries.len() >= MOST_ENTRIES {
            let oldest = shelf.entries.iter().min_by_key(|(_, (_, used))| *used).map(|(place, _)| place.clone());
            oldest.and_then(|place| shelf.entries.remove(&place));
        }
        shelf.uses += 1;
        let used = shelf.uses;
        shelf.entries.insert(entry.place.clone(), (Arc::clone(entry), used)).map(|(former, _)| former)
    }

    pub(super) fn get(&self, place: &Place) -> Option<Arc<Entry>> {
        let mut shelf = self.lock();
        shelf.uses += 1;
        let now = shelf.uses;
        let (entry, used) = shelf.entries.get_mut(place)?;
        *used = now;
        Some(Arc::clone(entry))
    }

    pub(super) fn remove(&self, place: &Place) -> Option<Arc<Entry>> {
        self.lock().entries.remove(place).map(|(entry, _)| entry)
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Domain;

    fn entry(number: usize) -> Arc<Entry> {
        let id = ContainerId::new(&format!("c{number}")).unwrap();
        let key = ContainerKey { domain: Domain::Host, scope: "oci/run/runc".into(), id: id.clone() };
        Entry::new(key, ("/run/runc".into(), id), None, None, Statement::default())
    }

    #[test]
    fn the_longest_unused_container_is_forgotten_first() {
        let book = Book::default();
        let first = entry(0);
        book.insert(&first);
        for number in 1..MOST_ENTRIES {
            book.insert(&entry(number));
        }
        assert!(book.get(&first.place).is_some(), "now it is the one used last");
        book.insert(&entry(MOST_ENTRIES));
        assert!(book.get(&first.place).is_some());
        assert!(book.get(&entry(1).place).is_none());
        assert!(book.remove(&first.place).is_some());
        assert!(book.get(&first.place).is_none());
    }
}
