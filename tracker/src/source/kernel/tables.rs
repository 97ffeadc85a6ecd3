//! The probes' maps, as user space uses them.

use std::borrow::{Borrow, BorrowMut};
use std::os::fd::AsFd;

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use tracker_common::layout::Setup;
use tracker_common::table::{Known, Shared, Slot};

/// A type of the ABI, as aya takes it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Plain<T: Copy>(pub(crate) T);

// SAFETY: integers without padding, as asserted in `tracker-common`: every byte pattern is a value.
unsafe impl aya::Pod for Plain<Known> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Slot> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Shared> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Setup> {}

const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;

/// Namespaces that the kernel side knows.
pub struct KnownTable<T = MapData>(HashMap<T, u64, Plain<Known>>);

impl KnownTable {
    /// A table of its own over the same map.
    pub(crate) fn open(map: &MapData) -> Result<Self, MapError> {
        Ok(Self(HashMap::try_from(reopen(map, Map::HashMap)?)?))
    }
}

impl<T: Borrow<MapData>> KnownTable<T> {
    /// What is known under a key (`tracker_common::life::key`).
    pub fn get(&self, key: u64) -> Option<Known> {
        self.0.get(&key, 0).ok().map(|known| known.0)
    }
}

impl<T: BorrowMut<MapData>> KnownTable<T> {
    /// Makes known what a scan found, unless it is known; whether it was not.
    pub(crate) fn adopt(&mut self, key: u64, known: Known) -> bool {
        self.0.insert(key, Plain(known), BPF_NOEXIST).is_ok()
    }

    /// Replaces what is known, if anything is.
    pub(crate) fn correct(&mut self, key: u64, known: Known) {
        // Gone meanwhile: its process has ended, and there is nothing to correct.
        let _ = self.0.insert(key, Plain(known), BPF_EXIST);
    }
}

/// The table that other BPF programs look up.
pub struct SlotTable(HashMap<MapData, u32, Plain<Slot>>);

impl SlotTable {
    pub(crate) fn open(map: &MapData) -> Result<Self, MapError> {
        Ok(Self(HashMap::try_from(reopen(map, Map::HashMap)?)?))
    }

    /// The slot of a mount namespace.
    pub fn get(&self, mntns: u32) -> Option<Slot> {
        self.0.get(&mntns, 0).ok().map(|slot| slot.0)
    }

    /// Enters a namespace that a scan found, unless the number is taken by a later one.
    pub(crate) fn adopt(&mut self, mntns: u32, slot: Slot) {
        if self.get(mntns).is_some_and(|held| held.generation != slot.generation && held.born < slot.born) {
            // Left over from a former holder of the number.
            let _ = self.0.insert(mntns, Plain(slot), BPF_EXIST);
        } else {
            // Taken meanwhile: by its own birth, or by a later one's.
            let _ = self.0.insert(mntns, Plain(slot), BPF_NOEXIST);
        }
    }
}

/// Counters.
pub(crate) struct SharedTable(Array<MapData, Plain<Shared>>);

impl SharedTable {
    pub(crate) fn open(map: Map) -> Result<Self, MapError> {
        Ok(Self(Array::try_from(map)?))
    }

    pub(crate) fn read(&self) -> Shared {
        self.0.get(&0, 0).map_or_else(|_| Shared::default(), |shared| shared.0)
    }
}

fn reopen(map: &MapData, kind: impl FnOnce(MapData) -> Map) -> Result<Map, MapError> {
    let fd = map.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError)?;
    Ok(kind(MapData::from_fd(fd)?))
}
