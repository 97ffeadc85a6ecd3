//! What the barrier remembers of containers between their `create` and their `start`.
//!
//! Bounded: [`MOST_ENTRIES`] containers, the longest unused is forgotten for a new one. What is forgotten is read again
//! from the runtime's state directory when its `start` comes. Nested callers have [`MOST_NESTED`] of these among
//! themselves, so that none of them can make us forget the host's.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::container::{ContainerId, ContainerKey, Domain, TaskId};
use crate::fact::Statement;
use crate::time::BootTime;

/// Most containers remembered.
const MOST_ENTRIES: usize = 4096;

/// Most containers remembered whose callers are nested.
const MOST_NESTED: usize = 512;

/// How an OCI runtime knows a container: by its state directory and the id in it. The same directory is another one in
/// another domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) domain: Domain,
    pub(super) root: PathBuf,
    pub(super) id: ContainerId,
}

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

impl Place {
    /// Whether it is inside a container.
    pub(super) fn is_nested(&self) -> bool {
        self.domain != Domain::Host
    }
}

impl Shelf {
    fn count(&self, which: impl Fn(&Place) -> bool) -> usize {
        self.entries.keys().filter(|place| which(place)).count()
    }

    fn forget_oldest(&mut self, which: impl Fn(&Place) -> bool) {
        let candidates = self.entries.iter().filter(|(place, _)| which(place));
        if let Some(place) = candidates.min_by_key(|(_, (_, used))| *used).map(|(place, _)| place.clone()) {
            self.entries.remove(&place);
        }
    }
}

impl Book {
    /// Remembers a container; returns the one that had its place.
    pub(super) fn insert(&self, entry: &Arc<Entry>) -> Option<Arc<Entry>> {
        let mut shelf = self.lock();
        if entry.place.is_nested() && shelf.count(Place::is_nested) >= MOST_NESTED {
            shelf.forget_oldest(Place::is_nested);
        } else if shelf.entries.len() >= MOST_ENTRIES {
            shelf.forget_oldest(|_| true);
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

    fn entry_in(domain: Domain, number: usize) -> Arc<Entry> {
        let id = ContainerId::new(&format!("c{number}")).unwrap();
        let key = ContainerKey { domain, scope: "oci/run/runc".into(), id: id.clone() };
        let place = Place { domain, root: "/run/runc".into(), id };
        Entry::new(key, place, None, None, Statement::default())
    }

    fn entry(number: usize) -> Arc<Entry> {
        entry_in(Domain::Host, number)
    }

    #[test]
    fn nested_callers_neither_take_a_host_containers_place_nor_make_it_forgotten() {
        let book = Book::default();
        let outer = |pid| Domain::Container(TaskId { pid, start_ticks: 7 });
        let host = entry(0);
        book.insert(&host);
        assert!(book.insert(&entry_in(outer(1), 0)).is_none());
        assert!(book.insert(&entry_in(outer(2), 0)).is_none());
        assert_eq!(book.get(&host.place).unwrap().key, host.key);
        for number in 1..2 * MOST_NESTED {
            book.insert(&entry_in(outer(1), number));
        }
        assert!(book.get(&host.place).is_some());
        assert!(book.get(&entry_in(outer(2), 0).place).is_none(), "the longest unused of theirs");
        assert!(book.get(&entry_in(outer(1), 2 * MOST_NESTED - 1).place).is_some());
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
