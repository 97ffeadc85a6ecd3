//! Keys and values of the BPF maps.
//!
//! [`Slot`] is public: a tracer's own BPF programs may look up the map `MOUNT_NAMESPACES` by the `u32` inode number of a
//! task's mount namespace, from the container's first event on. The other tables are the tracker's own.

use core::mem::size_of;

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

const _: () = {
    assert!(size_of::<Slot>() == 24);
    assert!(size_of::<Known>() == 40);
    assert!(size_of::<Shared>() == 72);
    assert!(Loss::ALL.len() == 5);
};
