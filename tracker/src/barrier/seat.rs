//! A cgroup of its own for the keeper, where that is possible.
//!
//! What freezes, throttles or starves the tracker's cgroup must not do so to the process that lets starts go on. A child
//! cgroup would share that fate, so the seat is directly below the root of each hierarchy that can do it: version 2, and of
//! version 1 the freezer and the memory controller. Where there is none (no write access, a cgroup namespace), the
//! keeper stays where the tracker is.

use std::fs;
use std::path::{Path, PathBuf};

/// What the directories' names begin with; the tracker's pid follows.
const NAME: &str = "tracker-keeper-";
/// Controllers of version 1 through which a process can be made to stand still.
const V1_CONTROLLERS: [&str; 2] = ["freezer", "memory"];

/// The cgroups made for one keeper. Removed when dropped, which must be after its end.
#[derive(Debug, Default)]
pub(super) struct Seat {
    directories: Vec<PathBuf>,
}

impl Seat {
    /// Moves the process `pid` into cgroups of its own.
    pub(super) fn take(pid: u32) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut seat = Seat::default();
        for hierarchy in hierarchies(&mounts) {
            let directory = hierarchy.join(format!("{NAME}{}", std::process::id()));
            let made = fs::create_dir(&directory).is_ok() || directory.is_dir();
            if made && fs::write(directory.join("cgroup.procs"), pid.to_string()).is_ok() {
                seat.directories.push(directory);
            } else if made {
                let _ = fs::remove_dir(&directory);
            }
        }
        seat
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        for directory in &self.directories {
            // One that is still populated is removed by whoever comes next.
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Removes what trackers left behind that were killed. Not what belongs to one that lives: it may be about to put its
/// keeper there. A cgroup in which something lives cannot be removed.
pub(super) fn remove_stale() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    hierarchies(&mounts).for_each(remove_stale_in);
}

fn remove_stale_in(hierarchy: &Path) {
    for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
        let owner = entry.file_name().to_str().and_then(|name| name.strip_prefix(NAME)?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner.to_string()).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Where the roots of the hierarchies are mounted that can stop a process.
fn hierarchies(mountinfo: &str) -> impl Iterator<Item = &Path> {
    mountinfo.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, mount_point) = (mount.next()?, mount.next()?);
        let mut words = file_system.split(' ');
        let (kind, options) = (words.next()?, words.nth(1)?);
        let can_stop = match kind {
            "cgroup2" => true,
            "cgroup" => options.split(',').any(|option| V1_CONTROLLERS.contains(&option)),
            _ => false,
        };
        // A backslash escapes a blank or the like, which no one's cgroup mount has.
        (can_stop && root == "/" && !mount_point.contains('\\')).then_some(Path::new(mount_point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roots_that_can_stop_a_process_are_found() {
        let mountinfo = "\
            30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw shared:1 - cgroup2 cgroup2 rw,nsdelegate\n\
            32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            33 30 0:29 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
            34 30 0:30 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            35 30 0:27 /a /mnt/a\\040b rw - cgroup2 cgroup2 rw\n\
            broken";
        let found: Vec<_> = hierarchies(mountinfo).collect();
        assert_eq!(found, [Path::new("/sys/fs/cgroup/unified"), Path::new("/sys/fs/cgroup/freezer")]);
    }

    #[test]
    fn only_what_the_dead_left_empty_is_removed() {
        let hierarchy = tempfile::tempdir().unwrap();
        // Pids end at 2^22.
        let (own, dead, populated) = (std::process::id(), (1 << 22) + 1, (1 << 22) + 2);
        let kept = [format!("{NAME}{own}"), format!("{NAME}{populated}"), format!("{NAME}x"), NAME.to_owned()];
        for name in kept.iter().chain([&format!("{NAME}{dead}"), &format!("other-{dead}")]) {
            fs::create_dir(hierarchy.path().join(name)).unwrap();
        }
        // A directory that cannot be removed, as is a cgroup with a process in it.
        fs::write(hierarchy.path().join(&kept[1]).join("something"), "").unwrap();
        remove_stale_in(hierarchy.path());
        let exists = |name: &str| hierarchy.path().join(name).exists();
        assert!(kept.iter().all(|name| exists(name)));
        assert!(exists(&format!("other-{dead}")) && !exists(&format!("{NAME}{dead}")));
    }
}
