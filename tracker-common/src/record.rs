//! Records: fixed-size bytes that the kernel side emits, and a decoder that takes any bytes.
//!
//! Every record starts with its [`Kind`]. Numbers are in the machine's own byte order, there is no hidden padding, and
//! all times are nanoseconds of `CLOCK_BOOTTIME`. Records leave through one ring buffer and arrive in the order in which
//! the kernel reserved them; [`TaskFacts`] alone is also what the task iterator writes, one per task.

use core::mem::{offset_of, size_of};

/// Bytes of a task's name, as `TASK_COMM_LEN` in the kernel.
pub const COMM_LEN: usize = 16;

/// Bytes kept of a cgroup's path. Kubernetes' longest usual ones have some 200; longer ones are cut and flagged.
pub const PATH_LEN: usize = 512;

/// What a record is about.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A process was forked into a mount namespace that was not known.
    Fork = 1,
    /// A process executed in a mount namespace that is not the host's; with [`ProcessRecord::BORN`], it was not known.
    Exec = 2,
    /// The last thread of the process that a namespace's birth was seen on is ending.
    Exit = 3,
    /// A cgroup was made.
    CgroupMade = 4,
    /// A cgroup was removed.
    CgroupRemoved = 5,
    /// The last task left a cgroup and all cgroups below it.
    CgroupEmptied = 6,
}

/// All that is read from a task.
///
/// Namespaces are inode numbers as under `/proc/<pid>/ns`; 0 means that the task has none (any more).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskFacts {
    /// Never-reused id of its mount namespace (`ns_common.ns_id`, before Linux 6.18 `mnt_namespace.seq`); 0 where the
    /// kernel has none.
    pub mntns_id: u64,
    /// Id of its cgroup in the v2 hierarchy (`kernfs_node.id`), which is the directory's inode number.
    pub cgroup_id: u64,
    /// Start of its process (`start_boottime` of the thread group's leader).
    pub start_ns: u64,
    /// Start of its parent process.
    pub parent_start_ns: u64,
    /// Process id in the host's pid namespace.
    pub tgid: u32,
    /// Thread id in the host's pid namespace.
    pub pid: u32,
    /// Process id of its parent in the host's pid namespace.
    pub parent_tgid: u32,
    /// Its pid in its own pid namespace; 1 is that namespace's init.
    pub pid_in_ns: u32,
    /// Real uid in the initial user namespace's numbering.
    pub uid: u32,
    /// `task_struct.flags` (`PF_…`).
    pub flags: u32,
    /// Mount namespace.
    pub mntns: u32,
    /// Net namespace.
    pub netns: u32,
    /// Pid namespace of the task itself.
    pub pidns: u32,
    /// Cgroup namespace.
    pub cgroupns: u32,
    /// User namespace of its credentials.
    pub userns: u32,
    /// Always 0.
    pub reserved: u32,
    /// Its name, ended by a NUL unless it fills the array.
    pub comm: [u8; COMM_LEN],
}

impl TaskFacts {
    /// In [`TaskFacts::flags`]: forked, and has not executed anything since (`PF_FORKNOEXEC`).
    pub const FORKED_NOT_EXECUTED: u32 = 0x40;
    /// In [`TaskFacts::flags`]: a thread of the kernel's own (`PF_KTHREAD`).
    pub const KERNEL_THREAD: u32 = 0x0020_0000;

    /// Reads facts from the front of `bytes`; `None` when they are too short.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        Some(Self {
            mntns_id: reader.u64()?,
            cgroup_id: reader.u64()?,
            start_ns: reader.u64()?,
            parent_start_ns: reader.u64()?,
            tgid: reader.u32()?,
            pid: reader.u32()?,
            parent_tgid: reader.u32()?,
            pid_in_ns: reader.u32()?,
            uid: reader.u32()?,
            flags: reader.u32()?,
            mntns: reader.u32()?,
            netns: reader.u32()?,
            pidns: reader.u32()?,
            cgroupns: reader.u32()?,
            userns: reader.u32()?,
            reserved: reader.u32()?,
            comm: *reader.array::<COMM_LEN>()?,
        })
    }

    /// Whether the process has executed a program since it was forked.
    pub fn has_executed(&self) -> bool {
        self.flags & Self::FORKED_NOT_EXECUTED == 0
    }
}

/// A process was born, executed or ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessRecord {
    /// [`Kind::Fork`], [`Kind::Exec`] or [`Kind::Exit`].
    pub kind: u32,
    /// [`ProcessRecord::BORN`] and its siblings.
    pub flags: u32,
    /// When it happened.
    pub time: u64,
    /// When the mount namespace's birth was seen.
    pub born: u64,
    /// The process. For an exit, as it was just before it gave up its namespaces.
    pub task: TaskFacts,
    /// For an exit: what `wait` reports, signal in the low 7 bits, exit code in bits 8 to 15. Else 0.
    pub status: u32,
    /// Always 0.
    pub reserved: u32,
}

impl ProcessRecord {
    /// The mount namespace was not known before: this record is its birth.
    pub const BORN: u32 = 1;
    /// The process is the one that the namespace's birth was seen on.
    pub const BY_INIT: u32 = 2;
    /// The out-of-memory killer chose the process.
    pub const OOM: u32 = 4;
    /// This kernel can tell whether the out-of-memory killer chose the process.
    pub const OOM_KNOWN: u32 = 8;
}

/// A cgroup was made, removed or emptied.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupRecord {
    /// [`Kind::CgroupMade`], [`Kind::CgroupRemoved`] or [`Kind::CgroupEmptied`].
    pub kind: u32,
    /// Bytes of `path` that hold the path; what follows them has no meaning.
    pub path_len: u32,
    /// When it happened.
    pub time: u64,
    /// Id of the cgroup in its hierarchy.
    pub id: u64,
    /// Id of the hierarchy; 0 is v2.
    pub hierarchy: u32,
    /// [`CgroupRecord::TRUNCATED`].
    pub flags: u32,
    /// Path below the hierarchy's root.
    pub path: [u8; PATH_LEN],
}

impl CgroupRecord {
    /// The path was longer than [`PATH_LEN`] and is cut.
    pub const TRUNCATED: u32 = 1;
}

const _: () = {
    assert!(size_of::<TaskFacts>() == 96 && offset_of!(TaskFacts, comm) == 80);
    assert!(size_of::<ProcessRecord>() == 128 && offset_of!(ProcessRecord, status) == 120);
    assert!(size_of::<CgroupRecord>() == 32 + PATH_LEN && offset_of!(CgroupRecord, path) == 32);
};

/// A record taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A process was born, executed or ended.
    Process(Kind, ProcessRecord),
    /// A cgroup was made, removed or emptied.
    Cgroup {
        /// Which of the three.
        kind: Kind,
        /// When it happened.
        time: u64,
        /// Id of the cgroup in its hierarchy.
        id: u64,
        /// Id of the hierarchy; 0 is v2.
        hierarchy: u32,
        /// Path below the hierarchy's root, as the kernel spells it: not always UTF-8.
        path: &'a [u8],
        /// Whether the path is cut.
        truncated: bool,
    },
}

/// Bytes that are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Fewer bytes than the kind needs.
    Short,
    /// A kind that this version does not know.
    Kind(u32),
    /// A path longer than its field.
    Path(u32),
}

impl<'a> Record<'a> {
    /// Takes any bytes apart. Bytes behind the record are ignored: the ring buffer rounds lengths up.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        Self::decode_known(bytes).unwrap_or(Err(Malformed::Short))
    }

    /// `None` when the bytes are too short.
    fn decode_known(bytes: &'a [u8]) -> Option<Result<Self, Malformed>> {
        let mut reader = Reader(bytes);
        let number = reader.u32()?;
        let Some(kind) = Kind::from_number(number) else {
            return Some(Err(Malformed::Kind(number)));
        };
        Some(Ok(match kind {
            Kind::Fork | Kind::Exec | Kind::Exit => {
                let (flags, time, born) = (reader.u32()?, reader.u64()?, reader.u64()?);
                let task = TaskFacts::decode(reader.array::<{ size_of::<TaskFacts>() }>()?)?;
                let (status, reserved) = (reader.u32()?, reader.u32()?);
                Record::Process(kind, ProcessRecord { kind: number, flags, time, born, task, status, reserved })
            }
            Kind::CgroupMade | Kind::CgroupRemoved | Kind::CgroupEmptied => {
                let path_len = reader.u32()?;
                let (time, id) = (reader.u64()?, reader.u64()?);
                let (hierarchy, flags) = (reader.u32()?, reader.u32()?);
                let Some(path) = reader.array::<PATH_LEN>()?.get(..path_len as usize) else {
                    return Some(Err(Malformed::Path(path_len)));
                };
                let truncated = flags & CgroupRecord::TRUNCATED != 0;
                Record::Cgroup { kind, time, id, hierarchy, path, truncated }
            }
        }))
    }
}

impl Kind {
    fn from_number(number: u32) -> Option<Self> {
        [Kind::Fork, Kind::Exec, Kind::Exit, Kind::CgroupMade, Kind::CgroupRemoved, Kind::CgroupEmptied]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

/// Takes numbers from the front of bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (front, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(front)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(|bytes| u32::from_ne_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(|bytes| u64::from_ne_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// A process record whose every field has a value of its own, written down field by field.
    fn exit_bytes() -> Vec<u8> {
        let mut bytes = Vec::new();
        let put32 = |bytes: &mut Vec<u8>, numbers: &[u32]| {
            numbers.iter().for_each(|number| bytes.extend(number.to_ne_bytes()));
        };
        let put64 = |bytes: &mut Vec<u8>, numbers: &[u64]| {
            numbers.iter().for_each(|number| bytes.extend(number.to_ne_bytes()));
        };
        put32(&mut bytes, &[Kind::Exit as u32, ProcessRecord::OOM | ProcessRecord::OOM_KNOWN]);
        put64(&mut bytes, &[101, 102, 103, 104, 105, 106]);
        put32(&mut bytes, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0]);
        bytes.extend(*b"sleep\0garbage\0\0\0");
        put32(&mut bytes, &[9, 0]);
        bytes
    }

    #[test]
    fn every_field_is_read_from_its_place() {
        let bytes = exit_bytes();
        assert_eq!(bytes.len(), size_of::<ProcessRecord>());
        let Ok(Record::Process(Kind::Exit, record)) = Record::decode(&bytes) else { panic!("not an exit") };
        assert_eq!((record.time, record.born, record.status, record.flags), (101, 102, 9, 12));
        let task = record.task;
        assert_eq!((task.mntns_id, task.cgroup_id, task.start_ns, task.parent_start_ns), (103, 104, 105, 106));
        assert_eq!((task.tgid, task.pid, task.parent_tgid, task.pid_in_ns, task.uid, task.flags), (1, 2, 3, 4, 5, 6));
        assert_eq!((task.mntns, task.netns, task.pidns, task.cgroupns, task.userns), (7, 8, 9, 10, 11));
        assert!(task.comm.starts_with(b"sleep\0"));
    }

    #[test]
    fn a_record_cut_anywhere_is_short() {
        let bytes = exit_bytes();
        for len in 0..bytes.len() {
            assert_eq!(Record::decode(&bytes[..len]), Err(Malformed::Short), "cut at {len}");
        }
    }

    #[test]
    fn a_path_longer_than_its_field_is_refused() {
        let mut bytes = std::vec![0_u8; size_of::<CgroupRecord>()];
        bytes[..4].copy_from_slice(&(Kind::CgroupMade as u32).to_ne_bytes());
        bytes[4..8].copy_from_slice(&(PATH_LEN as u32 + 1).to_ne_bytes());
        assert_eq!(Record::decode(&bytes), Err(Malformed::Path(513)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(kind in 0_u32..8, tail in proptest::collection::vec(any::<u8>(), 0..700)) {
            let mut bytes = kind.to_ne_bytes().to_vec();
            bytes.extend(tail);
            match Record::decode(&bytes) {
                Ok(Record::Process(..)) => prop_assert!((1..=3).contains(&kind)),
                Ok(Record::Cgroup { path, .. }) => prop_assert!((4..=6).contains(&kind) && path.len() <= PATH_LEN),
                Err(Malformed::Kind(unknown)) => prop_assert_eq!(unknown, kind),
                Err(Malformed::Short | Malformed::Path(_)) => {}
            }
        }
    }
}
