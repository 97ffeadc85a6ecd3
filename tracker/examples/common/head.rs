//! What every event of the examples begins with. The kernel halves include this file, too: nothing here needs more than
//! `core`.

/// Bytes of a task's name, as `TASK_COMM_LEN` in the kernel.
pub(crate) const COMM_LEN: usize = 16;

/// When, where, and who. No padding: every byte is written.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Head {
    /// When, in nanoseconds of `CLOCK_BOOTTIME`: the tracker's clock, so that no conversion is needed.
    pub time: u64,
    /// Id of the cgroup in the v2 hierarchy.
    pub cgroup: u64,
    /// What stood under the mount namespace in the selection: its never-reused number. 0 where nothing is selected.
    pub selected: u64,
    /// Process id in the host's pid namespace.
    pub pid: u32,
    /// Inode number of the mount namespace: what the container is found by.
    pub mntns: u32,
    /// The task's name, ended by a NUL.
    pub comm: [u8; COMM_LEN],
}

const _: () = assert!(size_of::<Head>() == 32 + COMM_LEN);

// The kernel halves have no use for these.
#[allow(dead_code)]
impl Head {
    /// Takes the first bytes of a record apart, and returns the others; `None` when they are too few.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Head, &[u8])> {
        let (time, bytes) = bytes.split_first_chunk()?;
        let (cgroup, bytes) = bytes.split_first_chunk()?;
        let (selected, bytes) = bytes.split_first_chunk()?;
        let (pid, bytes) = bytes.split_first_chunk()?;
        let (mntns, bytes) = bytes.split_first_chunk()?;
        let (comm, bytes) = bytes.split_first_chunk()?;
        let head = Head {
            time: u64::from_ne_bytes(*time),
            cgroup: u64::from_ne_bytes(*cgroup),
            selected: u64::from_ne_bytes(*selected),
            pid: u32::from_ne_bytes(*pid),
            mntns: u32::from_ne_bytes(*mntns),
            comm: *comm,
        };
        Some((head, bytes))
    }

    /// The task's name. Any bytes: whoever shows it escapes.
    pub(crate) fn comm(&self) -> &[u8] {
        until_nul(&self.comm)
    }
}

/// A text of the kernel's, without what follows its end.
#[allow(dead_code)]
pub(crate) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}
