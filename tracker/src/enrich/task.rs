//! The text of a process's files in `/proc`: `stat`, `status` and `cmdline`.
//!
//! A process names itself (`comm` may hold blanks, parentheses and line breaks), so each field is looked for where
//! the process has no say. Nothing here touches the file system; [`crate::source::task`] does.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What `/proc/<pid>/stat` says about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Its parent, in the reader's pid namespace; 0 when that is elsewhere.
    pub parent_pid: u32,
    /// Its flags: `PF_…` of the kernel's `linux/sched.h`.
    pub flags: u32,
    /// When it started, in ticks of 1/100 s since boot (field 22).
    pub start_ticks: u64,
}

/// Reads `/proc/<pid>/stat`.
///
/// ```
/// let stat = tracker::enrich::task::stat(b"7 (a) R 1 (b) S 3 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 42 0").unwrap();
/// assert_eq!((stat.parent_pid, stat.start_ticks), (3, 42));
/// ```
pub fn stat(text: &[u8]) -> Option<Stat> {
    // The process chose what is between the first parenthesis and the last one.
    let after_comm = text.iter().rposition(|b| *b == b')')? + 1;
    let mut fields = text[after_comm..].split(|b| b.is_ascii_whitespace()).filter(|field| !field.is_empty());
    // Field 3, the state, is the first one here.
    let parent_pid = number(fields.nth(1)?)?;
    let flags = number(fields.nth(9 - 5)?)?;
    let start_ticks = number(fields.nth(22 - 10)?)?;
    Some(Stat { parent_pid: u32::try_from(parent_pid).ok()?, flags: u32::try_from(flags).ok()?, start_ticks })
}

/// The pids in `/proc/<pid>/status`: in the reader's pid namespace, in the one below it, and so on down to the process's
/// own. None in a kernel without pid namespaces.
pub fn pids_in_namespaces(text: &[u8]) -> Vec<u32> {
    let line = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"NSpid:")).unwrap_or_default();
    let fields = line.split(|b| b.is_ascii_whitespace()).filter(|field| !field.is_empty());
    fields.filter_map(|field| u32::try_from(number(field)?).ok()).collect()
}

/// The pid in the process's own pid namespace, the last of those.
pub fn pid_in_namespace(text: &[u8]) -> Option<u32> {
    pids_in_namespaces(text).last().copied()
}

/// The real uid in `/proc/<pid>/status`, in the reader's user namespace.
pub fn uid(text: &[u8]) -> Option<u32> {
    // `Name:` comes first, and the kernel escapes line breaks in it.
    let line = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    let first = line.split(|b| b.is_ascii_whitespace()).find(|field| !field.is_empty())?;
    u32::try_from(number(first)?).ok()
}

/// The arguments in `/proc/<pid>/cmdline`. A process may write anything there.
pub fn arguments(text: &[u8]) -> Vec<&OsStr> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.is_empty() { Vec::new() } else { text.split(|b| *b == 0).map(OsStr::from_bytes).collect() }
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_process_cannot_choose_its_start_time() {
        let fields = "S 3 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 42 4096 1 18446744073709551615";
        for comm in ["sh", "a b", ") R 1 2 3 4 5 6 7 8 9", "((", "a\n) S 1"] {
            let text = format!("7 ({comm}) {fields}\n");
            assert_eq!(
                stat(text.as_bytes()),
                Some(Stat { parent_pid: 3, flags: 4_194_560, start_ticks: 42 }),
                "{comm}"
            );
        }
        assert_eq!(stat(b"7 (sh"), None);
        assert_eq!(stat(b"7 (sh) S 3"), None);
    }

    #[test]
    fn the_real_uid_is_the_first_of_four() {
        assert_eq!(uid(b"Name:\tUid:\\n9\nUmask:\t0022\nUid:\t1000\t0\t0\t0\nGid:\t5\n"), Some(1000));
        assert_eq!(uid(b"Name:\tx\n"), None);
        assert_eq!(uid(b"Uid:\t-1\n"), None);
    }

    #[test]
    fn the_pid_in_its_own_namespace_is_the_last() {
        assert_eq!(pid_in_namespace(b"Name:\tNSpid:\\n9\nNStgid:\t7\t1\nNSpid:\t7\t3\t1\nNSpgid:\t7\n"), Some(1));
        assert_eq!(pid_in_namespace(b"NSpid:\n"), None);
        assert_eq!(pid_in_namespace(b""), None);
    }

    #[test]
    fn arguments_may_be_empty() {
        assert_eq!(arguments(b"runc\0\0--root\0"), ["runc", "", "--root"]);
        assert!(arguments(b"").is_empty());
        assert_eq!(arguments(b"title without an end"), ["title without an end"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(text: Vec<u8>) {
            stat(&text);
            uid(&text);
            pid_in_namespace(&text);
            arguments(&text);
        }
    }
}
