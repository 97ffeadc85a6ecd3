//! What both halves of `execsnoop` agree on: the bytes of one exec. The kernel half (`tracker-ebpf/src/bin/execsnoop.rs`)
//! includes this file, too: nothing here needs more than `core`.

use super::head::Head;

/// Bytes kept of a file's name, with its closing NUL; longer ones are cut.
pub(crate) const FILENAME_LEN: usize = 256;

/// One exec, at the moment when the new program is loaded and has not run. No padding: every byte is written.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Exec {
    /// When, where, and by whom; the task has its new name already.
    pub head: Head,
    /// The file that was executed, as its caller named it, ended by a NUL. What follows that has no meaning.
    pub filename: [u8; FILENAME_LEN],
}

const _: () = assert!(size_of::<Exec>() == size_of::<Head>() + FILENAME_LEN);

// The kernel half has no use for these.
#[allow(dead_code)]
impl Exec {
    /// Takes the bytes of one record apart; `None` when they are too few.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Exec> {
        let (head, bytes) = Head::decode(bytes)?;
        Some(Exec { head, filename: *bytes.first_chunk()? })
    }

    /// The file's name. Any bytes: whoever shows it escapes.
    pub(crate) fn filename(&self) -> &[u8] {
        super::head::until_nul(&self.filename)
    }
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
        let Head { time, cgroup, selected, pid, mntns, .. } = exec.head;
        assert_eq!((time, cgroup, selected, pid, mntns), (101, 102, 103, 3, 4));
        assert_eq!((exec.head.comm(), exec.filename()), (&b"sleep"[..], &b"/bin/sleep"[..]));
        assert!((0..bytes.len()).all(|len| Exec::decode(&bytes[..len]).is_none()));
        // A name without an end is the whole field.
        let endless = Exec { filename: [b'x'; FILENAME_LEN], ..exec };
        assert_eq!(endless.filename().len(), FILENAME_LEN);
    }
}
