//! Keys and values of the BPF maps.
//!
//! [`Slot`], [`CgroupSlot`] and [`Owner`] are public, as is [`BpfRow`](crate::plane::BpfRow): a tracer's own BPF programs
//! find them in pinned maps, by the `u32` inode number of a task's mount namespace or the `u64` id of its cgroup, from the
//! container's first event on. The other tables are the tracker's own.

use core::mem::{offset_of, size_of};

use crate::plane;
use crate::record::{CgroupRecord, ProcessRecord, TaskFacts};

/// What other BPF programs find under a mount namespace's inode number.
///
/// Inode numbers are reused at once: compare [`Slot::generation`] where it matters which holder is meant. A slot stays
/// until the number's next holder overwrites it, or, where the table is full, until an audit frees those that are over.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The namespace's never-reused id; where the kernel has none, the time of its birth.
    pub generation: u64,
    /// When its birth was seen, in nanoseconds of `CLOCK_BOOTTIME`.
    pub born: u64,
    /// The container's row in the plane, or [`Slot::NO_ROW`].
    pub row: u32,
    /// [`Slot::PROVISIONAL`] and [`Slot::ENDED`].
    pub flags: u32,
}

impl Slot {
    /// User space has not said yet which container this is.
    pub const NO_ROW: u32 = u32::MAX;
    /// Seen by the kernel side; no witness said yet what it is.
    pub const PROVISIONAL: u32 = 1;
    /// The process that the birth was seen on has ended. Others may live on in the namespace.
    pub const ENDED: u32 = 2;
}

/// How an attempt to fill in a slot's row ended: what the program `fill` returns.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// The slot has the row now.
    Done = 0,
    /// The number has no slot.
    Absent = 1,
    /// The slot is that of another holder of the number.
    Other = 2,
}

/// What other BPF programs find under the id of a cgroup in the v2 hierarchy.
///
/// Compare [`CgroupSlot::generation`] with that of the row: where they differ, the row has been given away meanwhile, and
/// the container is not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupSlot {
    /// [`BpfRow::generation`](crate::plane::BpfRow::generation) of the container.
    pub generation: u64,
    /// The container's row in the plane, or [`Slot::NO_ROW`].
    pub row: u32,
    /// [`CgroupSlot::SHARED`].
    pub flags: u32,
}

impl CgroupSlot {
    /// Several containers are in the cgroup, so that it names none of them: there is no row.
    pub const SHARED: u32 = 1;
}

/// Who keeps the pinned maps, and what its successor has to know. Written by user space, in units of 64 bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// [`SCHEMA`] of whoever made the maps: with another one they mean something else.
    pub schema: u64,
    /// [`Owner::SUPERSEDED`].
    pub flags: u64,
    /// When the owner was last seen, in nanoseconds of `CLOCK_BOOTTIME`: written each second.
    pub heartbeat: u64,
    /// For how many nanoseconds without a heartbeat the probes go on recording; 0: they end with the owner.
    pub keep_ns: u64,
    /// The newest never-reused id of a mount namespace that the owner was told of.
    pub newest_mntns: u64,
    /// [`Shared::process_records`] when the owner last looked.
    pub taken_process_records: u64,
    /// [`Shared::cgroup_records`] likewise.
    pub taken_cgroup_records: u64,
    /// [`Shared::lost`] likewise.
    pub taken_lost: [u64; 5],
}

impl Owner {
    /// In [`Owner::flags`]: other maps are pinned in the place of these. Open the pins again.
    pub const SUPERSEDED: u64 = 1;
}

/// What the kernel side remembers about a mount namespace while the process lives that its birth was seen on.
///
/// Keyed by the never-reused id of the namespace (its inode number where the kernel has none). Inserting with
/// `BPF_NOEXIST` decides who reports a birth, removing decides who reports the end.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// When the birth was seen.
    pub born: u64,
    /// Start of that process ([`crate::record::TaskFacts::start_ns`]).
    pub init_start: u64,
    /// Counts executions until the first was reported; only changed atomically.
    pub execs: u64,
    /// The process that the birth was seen on.
    pub init_tgid: u32,
    /// Inode number of the namespace.
    pub mntns: u32,
    /// [`Known::INIT_EXECUTED`] once that process has executed.
    pub init_executed: u32,
    /// [`Known::FOREIGN`].
    pub flags: u32,
}

impl Known {
    /// In [`Known::init_executed`]: reported.
    pub const INIT_EXECUTED: u32 = 1;
    /// In [`Known::flags`]: born outside the initial user namespace, counted in [`Shared::foreign`].
    pub const FOREIGN: u32 = 1;
}

/// What was lost, and why. Each cause is answered with an audit.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The ring buffer had no room for a process's record.
    ProcessRecord = 0,
    /// The ring buffer had no room for a cgroup's record.
    CgroupRecord = 1,
    /// The table of known namespaces was full.
    KnownFull = 2,
    /// The table of slots was full.
    SlotsFull = 3,
    /// Births outside the initial user namespace had used up their share of the table.
    ForeignShare = 4,
}

impl Loss {
    /// All causes, in the order of their counters.
    pub const ALL: [Loss; 5] =
        [Loss::ProcessRecord, Loss::CgroupRecord, Loss::KnownFull, Loss::SlotsFull, Loss::ForeignShare];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Loss::ProcessRecord => "process_record",
            Loss::CgroupRecord => "cgroup_record",
            Loss::KnownFull => "known_full",
            Loss::SlotsFull => "slots_full",
            Loss::ForeignShare => "foreign_share",
        }
    }
}

/// The kernel side's one word of shared state: counters that user space reads, and what the probes tell each other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// By [`Loss`]; only ever counted up.
    pub lost: [u64; 5],
    /// Births, executions and ends reported or lost.
    pub process_records: u64,
    /// Cgroup records emitted or lost.
    pub cgroup_records: u64,
    /// Known namespaces that were born outside the initial user namespace.
    pub foreign: u64,
    /// When a process outside the initial user namespace last woke user space.
    pub foreign_wake: u64,
}

/// Hash over what is in pinned maps and in records, and where: maps with the same one are used in the same way.
pub const SCHEMA: u64 = {
    let places = [
        offset_of!(Slot, generation),
        offset_of!(Slot, born),
        offset_of!(Slot, row),
        offset_of!(Slot, flags),
        offset_of!(CgroupSlot, generation),
        offset_of!(CgroupSlot, row),
        offset_of!(CgroupSlot, flags),
        offset_of!(Known, born),
        offset_of!(Known, init_start),
        offset_of!(Known, execs),
        offset_of!(Known, init_tgid),
        offset_of!(Known, mntns),
        offset_of!(Known, init_executed),
        offset_of!(Known, flags),
        offset_of!(Shared, process_records),
        offset_of!(Shared, cgroup_records),
        offset_of!(Shared, foreign),
        offset_of!(Shared, foreign_wake),
        offset_of!(Owner, heartbeat),
        offset_of!(Owner, keep_ns),
        offset_of!(Owner, newest_mntns),
        offset_of!(Owner, taken_process_records),
        offset_of!(Owner, taken_cgroup_records),
        offset_of!(Owner, taken_lost),
        size_of::<Slot>(),
        size_of::<CgroupSlot>(),
        size_of::<Known>(),
        size_of::<Shared>(),
        size_of::<Owner>(),
        size_of::<TaskFacts>(),
        size_of::<ProcessRecord>(),
        size_of::<CgroupRecord>(),
        // Raised when a field comes to mean something else and stays where it was.
        1,
    ];
    let mut hash = plane::SCHEMA;
    let mut at = 0;
    while at < places.len() {
        hash = plane::fold_bytes(hash, &(places[at] as u64).to_le_bytes());
        at += 1;
    }
    hash
};

const _: () = {
    assert!(size_of::<Slot>() == 24);
    assert!(size_of::<CgroupSlot>() == 16);
    assert!(size_of::<Owner>() == 96);
    assert!(size_of::<Known>() == 40);
    assert!(size_of::<Shared>() == 72);
    assert!(Loss::ALL.len() == 5);
};
