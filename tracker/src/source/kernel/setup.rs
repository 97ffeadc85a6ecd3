//! What the probes are told before they load: offsets, and what this machine's host is.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use tracker_common::layout::{Field, Need, Setup};

use super::btf::{self, Found};
use super::{Config, KernelError};

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// What was found out about the running kernel and its host.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What its type information tells.
    pub found: Found,
    /// The host's mount namespace.
    pub host_mntns: u32,
    /// The initial user namespace.
    pub host_userns: u32,
    /// The hierarchy whose cgroups are reported: 0 is v2.
    pub hierarchy: u32,
}

impl Machine {
    /// Reads the running kernel's type information and the host's namespaces.
    ///
    /// The host is where pid 1 lives: the tracker has to see the host's pid namespace.
    pub fn examine() -> Result<Self, KernelError> {
        let found = btf::find(&type_information()?)?;
        Ok(Self {
            found,
            host_mntns: host_namespace("mnt")?,
            host_userns: host_namespace("user")?,
            hierarchy: hierarchy(&read("/proc/self/mountinfo")?, &read("/proc/1/cgroup")?),
        })
    }

    /// Whether mount namespaces have a never-reused id here.
    pub fn has_unique_ids(&self) -> bool {
        let layout = &self.found.layout;
        layout.ns_common_ns_id != tracker_common::layout::ABSENT
            || layout.mnt_namespace_seq != tracker_common::layout::ABSENT
    }

    /// The probes' setup.
    pub(crate) fn setup(&self, config: &Config) -> Setup {
        Setup {
            layout: self.found.layout,
            exit_tells_group_dead: self.found.exit_tells_group_dead.into(),
            host_mntns: self.host_mntns.into(),
            host_userns: self.host_userns.into(),
            hierarchy: self.hierarchy.into(),
            foreign_max: config.foreign_max(),
            foreign_wake_ns: 1_000_000_000 / u64::from(config.foreign_wakes_per_second.max(1)),
            ring_wake_bytes: u64::from(config.ring_bytes() / 4),
            keep_ns: 0,
        }
    }
}

/// Byte offsets of fields in the running kernel, for probes of one's own: each field as (struct, field), in the kernel's
/// spelling. One that is missing is an error that names it.
pub fn offsets<const N: usize>(fields: [(&'static str, &'static str); N]) -> Result<[u64; N], KernelError> {
    let fields = fields.map(|(structure, field)| Field { structure, field, need: Need::Must });
    Ok(btf::offsets(&type_information()?, fields)?)
}

fn type_information() -> Result<Vec<u8>, KernelError> {
    fs::read(BTF).map_err(|source| KernelError::NoBtf { path: BTF, source })
}

/// Inode number of a namespace of the host, by its name under `/proc/<pid>/ns`.
///
/// Pid 1 is the host's. It may have capabilities that the caller lacks, and then does not show its namespaces: the kernel's
/// own thread 2 does, and lives in the same ones.
pub fn host_namespace(name: &'static str) -> Result<u32, KernelError> {
    let refused = match inode(&format!("/proc/1/ns/{name}")) {
        Ok(inode) => return Ok(inode),
        Err(error) => error,
    };
    let is_kernel_thread = fs::read("/proc/2/comm").is_ok_and(|comm| comm == b"kthreadd\n");
    match inode(&format!("/proc/2/ns/{name}")) {
        Ok(inode) if is_kernel_thread => Ok(inode),
        _ => Err(KernelError::Read { path: "/proc/1/ns", source: refused }),
    }
}

fn inode(path: &str) -> io::Result<u32> {
    // Inode numbers of namespaces are 32 bits wide in the kernel.
    u32::try_from(fs::metadata(path)?.ino()).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn read(path: &'static str) -> Result<String, KernelError> {
    let bytes = fs::read(path).map_err(|source| KernelError::Read { path, source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The hierarchy to report: v2 where it is mounted, else systemd's own, else the first.
fn hierarchy(mountinfo: &str, cgroup: &str) -> u32 {
    if mountinfo.lines().any(|line| line.contains(" - cgroup2 ")) {
        return 0;
    }
    let named = |wanted: Option<&str>| {
        cgroup.lines().find_map(|line| {
            let mut words = line.splitn(3, ':');
            let (id, controllers) = (words.next()?, words.next()?);
            wanted.is_none_or(|wanted| controllers == wanted).then(|| id.parse().ok()).flatten()
        })
    };
    named(Some("name=systemd")).or_else(|| named(None)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hierarchy_is_chosen() {
        let v2 = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let v1 = "30 23 0:26 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let cgroup = "12:pids:/\n3:name=systemd:/init.scope\n";
        assert_eq!(hierarchy(v2, cgroup), 0);
        assert_eq!(hierarchy(v1, cgroup), 3);
        assert_eq!(hierarchy(v1, "12:pids:/\n"), 12);
        assert_eq!(hierarchy("", "nonsense"), 0);
    }
}
