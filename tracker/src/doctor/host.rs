//! Who we are on this host: user, namespaces, capabilities, cgroups.

use std::fs;
use std::path::Path;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use procfs::process::Process;

use super::{Check, Verdict};
use crate::source::task::{host_namespaces, own_namespaces};

pub(super) fn checks() -> Vec<Check> {
    let mut checks = vec![root(), pid_namespace(), mount_namespace()];
    checks.extend(capabilities());
    checks.push(cgroups());
    checks
}

fn root() -> Check {
    let costs = "nothing can be observed but our own processes";
    let uid = nix::unistd::geteuid();
    if !uid.is_root() {
        return Check::lacking(Verdict::Fail, "root", format!("running as uid {uid}"), costs, "run as root");
    }
    match fs::read_link("/proc/self/ns/user") {
        Ok(ns) if ns == Path::new(INITIAL_USER_NS) => Check::ok("root", "uid 0 in the initial user namespace"),
        Ok(ns) => {
            let found = format!("uid 0 of another user namespace, {}", ns.display());
            Check::lacking(Verdict::Fail, "root", found, costs, "run on the host, outside of user namespaces")
        }
        Err(error) => {
            let found = format!("read `/proc/self/ns/user`: {error}");
            Check::lacking(Verdict::Fail, "root", found, costs, "mount /proc")
        }
    }
}

/// The first user and pid namespaces have fixed numbers (`PROC_USER_INIT_INO`, `PROC_PID_INIT_INO` in
/// `include/linux/proc_ns.h`, since Linux 3.8).
const INITIAL_USER_NS: &str = "user:[4026531837]";
const INITIAL_PID_NS: &str = "pid:[4026531836]";

fn pid_namespace() -> Check {
    let costs = "pids of containers outside of it are not known, so nothing binds to them";
    match fs::read_link("/proc/self/ns/pid") {
        Ok(ns) if ns == Path::new(INITIAL_PID_NS) => Check::ok("host pid namespace", "yes"),
        Ok(ns) => Check::lacking(
            Verdict::Fail,
            "host pid namespace",
            format!("in another one, {}", ns.display()),
            costs,
            "run on the host, or in a container with the host's pid namespace (`--pid host`)",
        ),
        Err(error) => {
            let found = format!("read `/proc/self/ns/pid`: {error}");
            Check::lacking(Verdict::Fail, "host pid namespace", found, costs, "mount /proc")
        }
    }
}

fn mount_namespace() -> Check {
    let subject = "host mount namespace";
    match host_namespaces() {
        Some(host) if own_namespaces().is_ok_and(|own| own.mnt == host.mnt) => Check::ok(subject, "yes"),
        Some(_) => Check::lacking(
            Verdict::Warn,
            subject,
            "in another one than pid 1",
            "only starts from this one are held, and paths of bundles may mean other files",
            "run on the host itself: `nsenter --target 1 --mount tracker run`",
        ),
        None => Check::lacking(
            Verdict::Fail,
            subject,
            "the namespaces of pid 1 cannot be read",
            "what is the host's cannot be told from what is a container's: the tracker does not start",
            "run as root with CAP_SYS_PTRACE, and with /proc mounted",
        ),
    }
}

/// Numbers from `include/uapi/linux/capability.h`; what each is for is told in docs/operating.md too.
const CAPABILITIES: [(u32, &str, Verdict, &str); 8] = [
    (
        39,
        "CAP_BPF",
        Verdict::Fail,
        "no kernel source: nothing is known before a scan of /proc finds it (grade observed)",
    ),
    (
        38,
        "CAP_PERFMON",
        Verdict::Fail,
        "no kernel source: nothing is known before a scan of /proc finds it (grade observed)",
    ),
    (
        21,
        "CAP_SYS_ADMIN",
        Verdict::Warn,
        "no barrier: starts are not held (grade first-exec at best); no routes, for net namespaces cannot be entered",
    ),
    (11, "CAP_NET_BROADCAST", Verdict::Warn, "no routes: changes in net namespaces are not heard"),
    (12, "CAP_NET_ADMIN", Verdict::Warn, "no routes but the host's: other net namespaces cannot be told apart there"),
    (
        19,
        "CAP_SYS_PTRACE",
        Verdict::Fail,
        "others' namespaces cannot be read, not even the host's: the tracker does not start",
    ),
    (
        2,
        "CAP_DAC_READ_SEARCH",
        Verdict::Warn,
        "bundles that only their owner may read stay unread: no image, pod or labels from them",
    ),
    (
        23,
        "CAP_SYS_NICE",
        Verdict::Warn,
        "the held path runs at normal priority: on a busy host starts wait some milliseconds longer",
    ),
];

fn capabilities() -> Vec<Check> {
    let effective = Process::myself().and_then(|me| me.status()).map(|status| status.capeff);
    let effective = match effective {
        Ok(effective) => effective,
        Err(error) => {
            let found = format!("read `/proc/self/status`: {error}");
            return vec![Check::lacking(
                Verdict::Fail,
                "capabilities",
                found,
                "nothing is known of them",
                "mount /proc",
            )];
        }
    };
    let check = |(number, name, verdict, costs)| {
        if has(effective, number) {
            Check::ok(name, "effective")
        } else {
            Check::lacking(
                verdict,
                name,
                "not effective",
                costs,
                "run as root with the full set, or add this capability",
            )
        }
    };
    CAPABILITIES.into_iter().map(check).collect()
}

fn has(effective: u64, number: u32) -> bool {
    // Root of old had CAP_SYS_ADMIN for what CAP_BPF and CAP_PERFMON are now; the kernel still accepts it.
    let in_its_place = matches!(number, 38 | 39) && effective & (1 << 21) != 0;
    effective & (1 << number) != 0 || in_its_place
}

fn cgroups() -> Check {
    let is_v2 = |path: &str| statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
    if is_v2("/sys/fs/cgroup") {
        return Check::ok("cgroups", "v2 at /sys/fs/cgroup");
    }
    if is_v2("/sys/fs/cgroup/unified") {
        return Check::ok("cgroups", "hybrid: v2 at /sys/fs/cgroup/unified beside the v1 hierarchies");
    }
    Check::lacking(
        Verdict::Warn,
        "cgroups",
        "v1 only",
        "cgroup ids are not known, so `lookup --cgroup` answers unknown, and an instance's end is seen a little later",
        "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sys_admin_stands_for_bpf_and_perfmon_alone() {
        let admin = 1 << 21;
        assert!(has(admin, 38) && has(admin, 39) && has(admin, 21));
        assert!(!has(admin, 19));
        assert!(has(1 << 39, 39) && !has(1 << 39, 38));
    }
}
