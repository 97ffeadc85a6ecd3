//! What both halves of `execsnoop` agree on: the bytes of one exec. The kernel half (`tracker-ebpf/src/bin/execsnoop.rs`)
//! includes this file, too: nothing here needs more than `core`.

/// Bytes of a task's name, as `TASK_COMM_LEN` in the kernel.
pub(crate) const COMM_LEN: usize = 16;

/// Bytes kept of a file's name, with its closing NUL; longer ones are cut.
pub(crate) const FILENAME_LEN: usize = 256;

/// One exec, at the moment when the new program is loaded and has not run. No padding: every byte is written.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Exec {
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
    /// The task's new name, ended by a NUL.
    pub comm: [u8; COMM_LEN],
    /// The file that was executed, as its caller named it, ended by a NUL. What follows that has no meaning.
    pub filename: [u8; FILENAME_LEN],
}

const _: () = assert!(size_of::<Exec>() == 32 + COMM_LEN + FILENAME_LEN);

// The kernel half has no use for these.
#[allow(dead_code)]
impl Exec {
    /// Takes the bytes of one record apart; `None` when they are too few.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Exec> {
        let (time, bytes) = bytes.split_first_chunk()?;
        let (cgroup, bytes) = bytes.split_first_chunk()?;
        let (selected, bytes) = bytes.split_first_chunk()?;
        let (pid, bytes) = bytes.split_first_chunk()?;
        let (mntns, bytes) = bytes.split_first_chunk()?;
        let (comm, bytes) = bytes.split_first_chunk()?;
        Some(Exec {
            time: u64::from_ne_bytes(*time),
            cgroup: u64::from_ne_bytes(*cgroup),
            selected: u64::from_ne_bytes(*selected),
            pid: u32::from_ne_bytes(*pid),
            mntns: u32::from_ne_bytes(*mntns),
            comm: *comm,
            filename: *bytes.first_chunk()?,
        })
    }

    /// The task's name. Any bytes: whoever shows it escapes.
    pub(crate) fn comm(&self) -> &[u8] {
        until_nul(&self.comm)
    }

    /// The file's name. Any bytes, as above.
    pub(crate) fn filename(&self) -> &[u8] {
        until_nul(&self.filename)
    }
}

#[allow(dead_code)]
fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_read_from_its_place_and_a_cut_record_is_refused() {
        let mut bytes = [101_u64, 102, 103].map(u64::to_ne_bytes).concat();
        bytes.extend([3_u32.to_ne_bytes(), 4_u32.to_ne_bytes()].concat());
        bytes.extend(b"sleep\0garbage\0\0\0");
        bytes.extend(b"/bin/sleep\0");
        bytes.resize(size_of::<Exec>(), b'x');
        let exec = Exec::decode(&bytes).unwrap();
        assert_eq!((exec.time, exec.cgroup, exec.selected, exec.pid, exec.mntns), (101, 102, 103, 3, 4));
        assert_eq!((exec.comm(), exec.filename()), (&b"sleep"[..], &b"/bin/sleep"[..]));
        assert!((0..bytes.len()).all(|len| Exec::decode(&bytes[..len]).is_none()));
        // A name without an end is the whole field.
        let endless = Exec { filename: [b'x'; FILENAME_LEN], ..exec };
        assert_eq!(endless.filename().len(), FILENAME_LEN);
    }
}
