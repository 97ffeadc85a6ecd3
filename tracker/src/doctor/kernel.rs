//! What this kernel offers: BTF, BPF, fanotify permission events.

use std::fs::{self, File};
use std::io::Write;

use aya::maps::MapType;
use aya::sys::is_map_supported;
use nix::errno::Errno;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};

use super::{Check, Verdict};
use crate::source::kernel;

pub(super) fn checks() -> Vec<Check> {
    vec![release(), btf(), ring_buffer(), probes(), lockdown(), fanotify(), ptrace_scope()]
}

const NO_KERNEL_SOURCE: &str = "no kernel source: nothing is known before a scan of /proc finds it (grade observed)";
const NO_BARRIER: &str = "no barrier: starts are not held (grade first-exec at best)";

fn release() -> Check {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    match version(&release) {
        Some(version) if version >= (6, 1) => Check::ok("kernel", release),
        _ => Check::lacking(
            Verdict::Warn,
            "kernel",
            release,
            "not tested: the kernel side is tested on 6.1, 6.12 and 6.18",
            "use Linux 6.1 or newer",
        ),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn btf() -> Check {
    let path = "/sys/kernel/btf/vmlinux";
    match File::open(path) {
        Ok(_) => Check::ok("BTF", path),
        Err(error) => Check::lacking(
            Verdict::Fail,
            "BTF",
            format!("open `{path}`: {error}"),
            NO_KERNEL_SOURCE,
            "use a kernel with CONFIG_DEBUG_INFO_BTF=y, and mount /sys",
        ),
    }
}

fn ring_buffer() -> Check {
    let remedy = "use Linux 5.8 or newer with CONFIG_BPF_SYSCALL=y, as root";
    let lacking = |found| Check::lacking(Verdict::Fail, "BPF ring buffer", found, NO_KERNEL_SOURCE, remedy);
    match is_map_supported(MapType::RingBuf) {
        Ok(true) => Check::ok("BPF ring buffer", "can be made"),
        Ok(false) => lacking("this kernel has none".to_owned()),
        Err(error) => lacking(format!("make a map: {}", chain(&error))),
    }
}

/// Loads and attaches the very probes that the kernel source uses. They are gone when this returns.
fn probes() -> Check {
    let config = kernel::Config { ring_bytes: 4096, max_namespaces: 64, ..kernel::Config::default() };
    let loaded = kernel::Machine::examine().and_then(|machine| kernel::Kernel::load(&config, &machine));
    match loaded {
        Ok(probes) => {
            let unique = if probes.machine().has_unique_ids() { "with" } else { "without" };
            Check::ok("probes", format!("can be loaded and attached; {unique} never-reused ids of namespaces"))
        }
        Err(error) => Check::lacking(
            Verdict::Fail,
            "probes",
            chain(&error),
            NO_KERNEL_SOURCE,
            "see the lines above; `dmesg` may tell more",
        ),
    }
}

fn lockdown() -> Check {
    let mode = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if mode.contains("[confidentiality]") {
        return Check::lacking(
            Verdict::Warn,
            "lockdown",
            "confidentiality",
            "BPF programs may not read kernel memory by helpers: no command names, no cgroup paths in records",
            "boot with lockdown=integrity or without",
        );
    }
    let shown = ["[integrity]", "[none]"].into_iter().find(|word| mode.contains(word));
    Check::ok("lockdown", shown.map_or("not shown here", |word| word.trim_matches(['[', ']'])))
}

/// Makes a group as the keeper does, and marks a file of our own with it. Nobody executes that file.
fn fanotify() -> Check {
    let subject = "fanotify permission events";
    match try_fanotify() {
        Ok(()) => Check::ok(subject, "a file can be marked with FAN_OPEN_EXEC_PERM"),
        Err((step, Errno::EPERM)) => Check::lacking(
            Verdict::Warn,
            subject,
            format!("{step}: EPERM"),
            NO_BARRIER,
            "run as root with CAP_SYS_ADMIN in the initial user namespace",
        ),
        Err((step, errno)) => Check::lacking(
            Verdict::Warn,
            subject,
            format!("{step}: {errno}"),
            NO_BARRIER,
            "use Linux 5.0 or newer with CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y",
        ),
    }
}

fn try_fanotify() -> Result<(), (&'static str, Errno)> {
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or_default());
    let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_REPORT_TID | InitFlags::FAN_CLOEXEC;
    let group = Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC);
    let group = group.map_err(|errno| ("make a group", errno))?;
    let path = std::env::temp_dir().join(format!(".tracker-doctor-{}", std::process::id()));
    // Never an existing file or a link: in /tmp others may have prepared one.
    let mut file = File::create_new(&path).map_err(|error| ("make a file to mark", errno(error)))?;
    let marked = file.write_all(b"\n").map_err(|error| ("write a file to mark", errno(error))).and_then(|()| {
        group
            .mark(MarkFlags::FAN_MARK_ADD, MaskFlags::FAN_OPEN_EXEC_PERM, &file, None::<&str>)
            .map_err(|errno| ("mark a file", errno))
    });
    let _ = fs::remove_file(&path);
    marked
}

fn ptrace_scope() -> Check {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match scope.trim() {
        "3" => Check::lacking(
            Verdict::Warn,
            "ptrace scope",
            "3: nobody may read another process's memory",
            NO_BARRIER,
            "set kernel.yama.ptrace_scope to 2 or less; going down from 3 needs a reboot",
        ),
        "" => Check::ok("ptrace scope", "not restricted"),
        scope => Check::ok("ptrace scope", scope),
    }
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn releases_are_read_up_to_the_second_number() {
        for (release, expected) in [
            ("6.1.0-42-amd64", Some((6, 1))),
            ("6.18.44+", Some((6, 18))),
            ("7.0", Some((7, 0))),
            ("linux", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
