//! Mount namespaces that are the host's without being its first one: of a service with mounts of its own, and of a snap.
//!
//! A daemon in such a one is the host's root all the same, where its uid, its user namespace and its pid namespace say so;
//! root in a container, with the host's pids, is not. What tells them apart is what only the host's root can have made:
//! a root directory that is the host's own, or a place among the mount namespaces that snapd keeps. No file of the process
//! is touched, which may be on a file system that never answers.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use procfs::process::MountInfo;

/// Whose files are the host's: its first process, and the kernel's, where we may not look at that one.
const HOSTS: [u32; 2] = [1, 2];
/// Where snapd keeps the mount namespaces of snaps, each as `NAME.mnt`; it is root's.
const SNAPS: &str = "run/snapd/ns";
const MAX_SNAPS: usize = 1_024;
/// Bytes that are read of a list of mounts. One that is longer tells nothing.
const MAX_LEN: u64 = 1 << 20;

/// Whether the mount namespace `mnt` of a process is one of those. The process may end meanwhile, which is for the caller
/// to see.
pub(super) fn are_hosts(pid: u32, mnt: u32) -> bool {
    let of_host = || HOSTS.into_iter().find_map(root_of);
    // A container that was given the host's files has them below a directory of its own, and may make that its root.
    let changed_root = fs::read_link(format!("/proc/{pid}/root")).map_or(true, |root| root != Path::new("/"));
    if changed_root {
        return false;
    }
    let snaps = HOSTS.into_iter().map(|host| Path::new("/proc").join(host.to_string()).join("root").join(SNAPS));
    root_of(pid).is_some_and(|root| of_host() == Some(root)) || snaps.into_iter().any(|snaps| is_kept_in(&snaps, mnt))
}

/// A process's root directory: its file system, and which directory of that it is.
fn root_of(pid: u32) -> Option<(String, String)> {
    let mounts = File::open(format!("/proc/{pid}/mountinfo")).ok()?.take(MAX_LEN + 1);
    root_in(BufReader::new(mounts))
}

/// The last one mounted on `/` covers those before.
fn root_in(mut mounts: impl BufRead) -> Option<(String, String)> {
    let (mut line, mut len, mut root) = (Vec::new(), 0, None);
    while mounts.read_until(b'\n', &mut line).ok()? > 0 {
        len += line.len() as u64;
        let mount = MountInfo::from_line(String::from_utf8_lossy(&line).trim_end()).ok();
        root = mount.filter(|mount| mount.mount_point == Path::new("/")).map(|it| (it.majmin, it.root)).or(root);
        line.clear();
    }
    root.filter(|_| len <= MAX_LEN)
}

fn is_kept_in(snaps: &Path, mnt: u32) -> bool {
    // Inode numbers mean something on their own file system alone.
    let Some(namespaces) = fs::metadata("/proc/self/ns/mnt").ok().map(|own| own.dev()) else { return false };
    let files = fs::read_dir(snaps).into_iter().flatten().flatten().take(MAX_SNAPS).map(|file| file.path());
    files
        .filter(|path| path.extension().is_some_and(|end| end == "mnt"))
        .any(|path| fs::metadata(path).is_ok_and(|file| file.dev() == namespaces && file.ino() == u64::from(mnt)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::source::task::own_namespaces;

    #[test]
    fn a_root_directory_is_a_directory_of_a_file_system() {
        let mounts = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                      30 22 0:26 / /run rw - tmpfs tmpfs rw\n";
        let host = Some(("254:0".to_owned(), "/".to_owned()));
        assert_eq!(root_in(mounts.as_bytes()), host);
        let covered =
            format!("{mounts}40 22 254:0 /rootfs / rw - ext4 /dev/vda rw\n31 22 0:27 / /tmp rw - tmpfs tmpfs rw\n");
        assert_eq!(root_in(covered.as_bytes()), Some(("254:0".to_owned(), "/rootfs".to_owned())));
        assert_eq!(root_in(&b"31 22 0:27 / /tmp rw - tmpfs tmpfs rw\n\xff\n"[..]), None, "it changed its root alone");
        let long = mounts.repeat(1 + MAX_LEN as usize / mounts.len());
        assert_eq!(root_in(long.as_bytes()), None);
        assert!(root_of(std::process::id()).is_some());
    }

    #[test]
    fn what_snapd_keeps_is_told_by_file_system_and_number() {
        let snaps = tempfile::tempdir().unwrap();
        let own = own_namespaces().unwrap().mnt;
        assert!(!is_kept_in(snaps.path(), own) && !is_kept_in(Path::new("/no-such-directory"), own));
        let plain = snaps.path().join("plain.mnt");
        fs::write(&plain, "").unwrap();
        let number = u32::try_from(fs::metadata(plain).unwrap().ino()).unwrap();
        assert!(!is_kept_in(snaps.path(), number));
        symlink("/proc/self/ns/mnt", snaps.path().join("docker.info")).unwrap();
        assert!(!is_kept_in(snaps.path(), own));
        symlink("/proc/self/ns/mnt", snaps.path().join("docker.mnt")).unwrap();
        assert!(is_kept_in(snaps.path(), own) && !is_kept_in(snaps.path(), own + 1));
    }
}
