//! The kernel that runs the test: what it is and what it can do.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags};

use crate::wait;

/// Major and minor version.
pub fn version() -> (u32, u32) {
    let release = release();
    let mut numbers = release.split(['.', '-', '+']).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The release, as `uname -r` says it.
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim_end().to_owned()
}

/// Type information of the running kernel (`CONFIG_DEBUG_INFO_BTF`).
pub fn btf() -> Result<(), String> {
    fs::metadata("/sys/kernel/btf/vmlinux").map(drop).map_err(|error| format!("needs /sys/kernel/btf/vmlinux: {error}"))
}

/// Permission events of fanotify (`CONFIG_FANOTIFY_ACCESS_PERMISSIONS`, `CAP_SYS_ADMIN`).
pub fn permission_events() -> Result<(), String> {
    Fanotify::init(InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC, EventFFlags::O_RDONLY)
        .map(drop)
        .map_err(|error| format!("needs fanotify's permission events: {error}"))
}

/// Whether `/sys/fs/cgroup` is cgroup v2 alone, and not v1 with or without v2 beside it.
pub fn only_cgroup2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// What crun needs of v1 machines: it refuses to work where cgroup v2, mounted beside v1, still owns a controller.
///
/// The last such controller is moved to v1, where other v1 machines have it, and stays there: taking it back would take
/// it from containers that others started since.
pub fn v2_without_controllers() -> Result<(), String> {
    let owned = || fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").unwrap_or_default();
    for controller in owned().split_whitespace() {
        let directory = Path::new("/sys/fs/cgroup").join(controller);
        fs::create_dir_all(&directory).map_err(|error| format!("create `{}`: {error}", directory.display()))?;
        let mounted = mount(Some("cgroup"), &directory, Some("cgroup"), MsFlags::empty(), Some(controller));
        // Another test may have been faster.
        if let (Err(error), true) = (mounted, owned().split_whitespace().any(|left| left == controller)) {
            return Err(format!("needs `{controller}` mounted as a cgroup v1 hierarchy: {error}"));
        }
    }
    Ok(())
}

/// Removes a top-level cgroup and what is in it, from every hierarchy, as far as no process is left in it.
pub fn remove_cgroup(name: &str) {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in std::iter::once(Path::new("/sys/fs/cgroup").to_path_buf()).chain(hierarchies) {
        let cgroup = hierarchy.join(name);
        if cgroup.is_dir() {
            // Processes that were just killed may still be leaving.
            wait::within(Duration::from_secs(2), || remove_tree(&cgroup).ok());
        }
    }
}

/// Cgroups vanish with `rmdir`, children first; the files in them are not there to be removed.
fn remove_tree(cgroup: &Path) -> std::io::Result<()> {
    for child in fs::read_dir(cgroup)? {
        let child = child?;
        if child.file_type()?.is_dir() {
            remove_tree(&child.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// The inode number of a process's namespace: `mnt`, `net`, `pid`, `cgroup`, `user`.
pub fn namespace(pid: u32, kind: &str) -> std::io::Result<u32> {
    use std::os::unix::fs::MetadataExt;
    let inode = fs::metadata(format!("/proc/{pid}/ns/{kind}"))?.ino();
    Ok(u32::try_from(inode).expect("namespace inode numbers are 32 bits wide"))
}

/// When a process started, in clock ticks since boot: what tells it from another of the same pid.
pub fn start_ticks(pid: u32) -> std::io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command's name stands in parentheses and may hold anything, parentheses and spaces included.
    let rest = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    let ticks = rest.split(' ').nth(19).and_then(|ticks| ticks.parse().ok());
    ticks.ok_or_else(|| std::io::Error::other(format!("`/proc/{pid}/stat` without a start time: {stat}")))
}

/// Whether a process is there and not a zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
