//! A task's cgroups on cgroup v1, v2 and hybrid hosts: the text of `/proc/<pid>/cgroup` and `/proc/self/mountinfo`.
//!
//! These are parsed here rather than by the `procfs` crate because names are bytes: a cgroup or a mount point whose
//! name is not Unicode makes that crate refuse the whole file, and anybody may own one. Names may hold colons and
//! spaces; the kernel refuses line breaks in cgroups' names and escapes them in mount points.
//!
//! Nothing here touches the file system; [`crate::source::task`] does.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Paths longer than the kernel's own limit are not paths.
const MAX_PATH_LEN: usize = 4096;

/// Which v1 hierarchy's path is reported, first match first: the ones that every runtime puts containers into.
const V1_PREFERENCE: [&[u8]; 3] = [b"memory", b"pids", b"name=systemd"];

/// Where a task is in the cgroup hierarchies, as `/proc/<pid>/cgroup` spells it: below the hierarchy's root, as seen
/// from the reader's cgroup namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Membership<'a> {
    /// In the v2 hierarchy. The kernel reports one even where v2 is not mounted; then it is the root.
    pub v2: Option<&'a OsStr>,
    /// In the v1 hierarchies: in `memory`'s, else `pids`', else systemd's, else the first one.
    pub v1: Option<&'a OsStr>,
}

/// Reads `/proc/<pid>/cgroup`. Lines that are none are skipped.
///
/// ```
/// let membership = tracker::enrich::cgroup::parse(b"4:memory:/a\n0::/b:c\n");
/// assert_eq!(membership.v1.unwrap(), "/a");
/// assert_eq!(membership.v2.unwrap(), "/b:c");
/// ```
pub fn parse(text: &[u8]) -> Membership<'_> {
    let mut v2 = None;
    let mut v1: Option<(usize, &OsStr)> = None;
    for line in text.split(|b| *b == b'\n') {
        let mut fields = line.splitn(3, |b| *b == b':');
        let (Some(hierarchy), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        // `/..` comes first where the task is outside the reader's cgroup namespace: a path from nowhere.
        if !path.starts_with(b"/") || path.starts_with(b"/..") || path.len() > MAX_PATH_LEN {
            continue;
        }
        let path = OsStr::from_bytes(path);
        if hierarchy == b"0" {
            v2 = Some(path);
        } else {
            let rank = |name: &[u8]| V1_PREFERENCE.iter().position(|preferred| *preferred == name);
            let rank = controllers.split(|b| *b == b',').filter_map(rank).min().unwrap_or(V1_PREFERENCE.len());
            if v1.is_none_or(|(best, _)| rank < best) {
                v1 = Some((rank, path));
            }
        }
    }
    Membership { v2, v1: v1.map(|(_, path)| path) }
}

/// Where the whole cgroup v2 hierarchy is mounted, from the text of `/proc/self/mountinfo`: `/sys/fs/cgroup`, or
/// `/sys/fs/cgroup/unified` on a hybrid host. Absent where only v1 is mounted.
pub fn v2_mount_point(mountinfo: &[u8]) -> Option<OsString> {
    // proc_pid_mountinfo(5): id parent major:minor ROOT MOUNT-POINT options [tags…] - TYPE source super-options
    mountinfo.split(|b| *b == b'\n').find_map(|line| {
        let mut fields = line.split(|b| *b == b' ');
        let root = fields.nth(3)?;
        let mount_point = fields.next()?;
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        (kind == b"cgroup2" && root == b"/").then(|| unescape(mount_point))
    })
}

/// Undoes the kernel's octal escapes of blanks and backslashes.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if *first == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, v2: Option<&str>, v1: Option<&str>) {
        let expected = Membership { v2: v2.map(OsStr::new), v1: v1.map(OsStr::new) };
        assert_eq!(parse(text.as_bytes()), expected, "{text}");
    }

    #[test]
    fn each_layout_of_hierarchies_is_read() {
        check("0::/kubepods/pod1/c\n", Some("/kubepods/pod1/c"), None);
        check("5:cpu,cpuacct:/x\n4:memory:/docker/c\n1:name=systemd:/s\n", None, Some("/docker/c"));
        check("9:name=systemd:/s\n8:pids:/p\n2:cpu:/x\n0::/u\n", Some("/u"), Some("/p"));
        check("9:name=systemd:/s\n2:cpu:/x\n0::/\n", Some("/"), Some("/s"));
        check("2:freezer:/f\n3:cpu:/x\n", None, Some("/f"));
    }

    #[test]
    fn hostile_names_say_nothing_but_themselves() {
        check("4:memory:/a:0::/b\n0::/c:4:memory:/d (deleted)\n", Some("/c:4:memory:/d (deleted)"), Some("/a:0::/b"));
        check("4:memory:/../../other\n0::/../other\n", None, None);
        check("\n:\n::\n0:\n0::relative\nzero\n", None, None);
        let not_unicode = parse(b"0::/\xff\xfe\n");
        assert_eq!(not_unicode.v2.unwrap().as_bytes(), b"/\xff\xfe");
        check(&format!("0::/{}\n", "x".repeat(MAX_PATH_LEN)), None, None);
    }

    #[test]
    fn the_v2_mount_is_found_on_v2_and_hybrid_hosts_and_nowhere_else() {
        let v1 = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup c rw,memory\n";
        assert_eq!(v2_mount_point(v1.as_bytes()), None);
        let hybrid = format!("{v1}41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 master:1 - cgroup2 cgroup2 rw\n");
        assert_eq!(v2_mount_point(hybrid.as_bytes()).unwrap(), "/sys/fs/cgroup/unified");
        let part = "41 31 0:38 /docker/c /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(v2_mount_point(part.as_bytes()), None, "a part of the hierarchy is not its root");
        let escaped = b"41 31 0:38 / /c\\040g\\134\xff rw - cgroup2 cgroup2 rw\n";
        assert_eq!(v2_mount_point(escaped).unwrap().as_bytes(), b"/c g\\\xff");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(text in prop::collection::vec(prop_oneof![
            any::<u8>(), prop::sample::select(b"0:/\n -\\1".to_vec())], 0..200)) {
            parse(&text);
            v2_mount_point(&text);
        }
    }
}
