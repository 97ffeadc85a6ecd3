//! The probes' maps, as user space uses them.

use std::borrow::{Borrow, BorrowMut};
use std::collections::HashSet;
use std::os::fd::AsFd;

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use tracker_common::layout::Setup;
use tracker_common::table::{CgroupSlot, Known, Shared, Slot};

/// A type of the ABI, as aya takes it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Plain<T: Copy>(pub(crate) T);

// SAFETY: integers without padding, as asserted in `tracker-common`: every byte pattern is a value.
unsafe impl aya::Pod for Plain<Known> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Slot> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<CgroupSlot> {}
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
    /// All keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.keys().flatten()
    }

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
pub struct SlotTable {
    map: HashMap<MapData, u32, Plain<Slot>>,
    /// Slots that are older than this were made for another owner, and nobody may have seen their end.
    since: u64,
}

impl SlotTable {
    pub(crate) fn open(map: &MapData, since: u64) -> Result<Self, MapError> {
        Ok(Self { map: HashMap::try_from(reopen(map, Map::HashMap)?)?, since })
    }

    /// The slot of a mount namespace.
    pub fn get(&self, mntns: u32) -> Option<Slot> {
        self.map.get(&mntns, 0).ok().map(|slot| slot.0)
    }

    /// Enters a namespace that a scan found, unless the number is taken by a later one.
    pub(crate) fn adopt(&mut self, mntns: u32, slot: Slot) -> Room {
        let flag = match self.get(mntns) {
            Some(held) if held.generation == slot.generation => return Room::Enough,
            // Left over from a former holder of the number.
            Some(held) if held.born < slot.born => BPF_EXIST,
            _ => BPF_NOEXIST,
        };
        match self.map.insert(mntns, Plain(slot), flag) {
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::E2BIG) => Room::Full,
            // Else it was taken meanwhile: by its own birth, or by a later one's.
            _ => Room::Enough,
        }
    }

    /// Frees the slots of numbers whose holders have ended, or were another owner's, and that are not `alive`. Slots are kept until then: most
    /// numbers have a next holder soon, and who asks late still finds the former one.
    pub(crate) fn reclaim(&mut self, alive: &HashSet<u32>) {
        let since = self.since;
        let is_over = |slot: Slot| slot.flags & Slot::ENDED != 0 || slot.born < since;
        let slots = self.map.iter().flatten();
        let over = slots.filter(|(mntns, slot)| is_over(slot.0) && !alive.contains(mntns)).map(|(mntns, _)| mntns);
        for mntns in over.collect::<Vec<u32>>() {
            // The number may have a new holder since.
            if self.get(mntns).is_some_and(is_over) {
                let _ = self.map.remove(&mntns);
            }
        }
    }
}

/// Whether a table took something in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// It is there now, or something newer is.
    Enough,
    /// It is full.
    Full,
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
