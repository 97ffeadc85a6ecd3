//! What a process in namespaces of its own is, when no runtime vouches for it.
//!
//! Services with private mounts, snaps, flatpaks and sandboxes of browsers have a mount ns of their own and are no
//! containers: they are *sandboxed processes*, and kept apart. Whoever is in doubt is `unmanaged`, which is shown.
//!
//! A container must not get out of sight by looking like one of these. So only that counts which the kernel shows of the
//! host's side: the cgroup's path in the host's hierarchy, the real uid, whether the pid ns is the host's, and the
//! program of the process above it where that is the host's and root's. A process's own name and arguments are shown, and
//! decide nothing.

use crate::container::{Kind, Str};

use super::caps;

/// What the kernel shows of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shown<'a> {
    /// Path of its cgroup in the host's hierarchy.
    pub cgroup: &'a str,
    /// Its real uid in the initial user ns.
    pub uid: u32,
    /// Whether it is in the host's pid ns.
    pub has_host_pids: bool,
    /// Whether it is in the host's user ns.
    pub has_host_users: bool,
    /// The process above it, where that is in the host's mount ns and its program's file is root's alone.
    pub parent: Option<Parent<'a>>,
}

/// A process of the host's.
#[derive(Clone, Copy, Debug)]
pub struct Parent<'a> {
    /// Its pid.
    pub pid: u32,
    /// Name of its program's file.
    pub program: &'a str,
    /// What it was started with.
    pub arguments: &'a [String],
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// `unmanaged` or `sandboxed-process`.
    pub kind: Kind,
    /// What manages it, if that shows.
    pub runtime: Option<Str>,
    /// What that calls it.
    pub name: Option<Str>,
}

/// Programs that put others into a sandbox and stay above them.
const SANDBOXERS: [&str; 8] =
    ["bwrap", "flatpak", "firejail", "firefox", "firefox-esr", "chrome", "chromium", "electron"];
/// systemd, and what it starts services by.
const SYSTEMD: [&str; 2] = ["systemd", "systemd-executor"];

/// What a process is, as far as the host shows it.
pub fn recognise(shown: &Shown<'_>) -> Recognised {
    machine(shown).or_else(|| sandboxed(shown)).unwrap_or(Recognised {
        kind: Kind::Unmanaged,
        runtime: None,
        name: None,
    })
}

/// A machine of systemd-nspawn or of LXC.
fn machine(shown: &Shown<'_>) -> Option<Recognised> {
    let of = |runtime: &str, name: &str| {
        Some(Recognised { kind: Kind::Unmanaged, runtime: Some(runtime.into()), name: caps::name(name) })
    };
    // The first level below the host's slices: what is further down may have been made by the machine itself.
    let level = shown.cgroup.split('/').find(|level| !level.is_empty() && !level.ends_with(".slice")).unwrap_or("");
    if let Some(name) = level.strip_prefix("lxc.payload.") {
        return of("lxc", name);
    }
    if let Some(name) = level.strip_prefix("systemd-nspawn@").and_then(|name| name.strip_suffix(".service")) {
        return of("systemd-nspawn", &unescaped(name));
    }
    let parent = shown.parent.as_ref();
    let option = |program: &str, names: &[&str]| {
        parent.filter(|parent| parent.program == program).map(|parent| value(parent.arguments, names).unwrap_or(""))
    };
    if let Some(name) = option("systemd-nspawn", &["-M", "--machine"]) {
        return of("systemd-nspawn", name);
    }
    if let Some(name) = option("lxc-start", &["-n", "--name"]) {
        return of("lxc", name);
    }
    let name = level.strip_prefix("machine-").and_then(|name| name.strip_suffix(".scope"))?;
    // Whatever else registers machines: virtual machines have no mount ns of their own that would be seen here.
    of("machined", &unescaped(name))
}

fn sandboxed(shown: &Shown<'_>) -> Option<Recognised> {
    let unit = unit(shown).unwrap_or("");
    let is_service = unit.ends_with(".service");
    let is_unit = is_service || unit.ends_with(".scope");
    let below = |slice: &str| shown.cgroup.starts_with(&format!("/{slice}/"));
    let is_own_users = shown.uid != 0 && below(&format!("user.slice/user-{}.slice", shown.uid));
    let parent = shown.parent.as_ref();
    let found = |runtime: &str| {
        let name = if is_unit { caps::name(unit) } else { None };
        Some(Recognised { kind: Kind::SandboxedProcess, runtime: Some(runtime.into()), name })
    };
    // A service's processes share the host's pids; what has a pid ns of its own in there is somebody's container.
    let is_systemds = parent.is_some_and(|parent| parent.pid == 1 || SYSTEMD.contains(&parent.program));
    if is_service && shown.has_host_pids && is_systemds {
        if below("system.slice") && shown.has_host_users {
            return found("systemd");
        }
        // A user's manager has to make a user ns for whatever it hides from its services.
        if is_own_users {
            return found("systemd");
        }
    }
    if is_unit && unit.starts_with("snap.") && shown.has_host_pids && (below("system.slice") || below("user.slice")) {
        return found("snap");
    }
    if is_own_users && unit.starts_with("app-flatpak-") && unit.ends_with(".scope") {
        return found("flatpak");
    }
    // An unprivileged user's sandbox; root's may be anything.
    let sandboxer = parent.map(|parent| parent.program).filter(|program| SANDBOXERS.contains(program))?;
    (shown.uid != 0).then(|| found(sandboxer)).flatten()
}

/// The systemd unit that a process is in, if its cgroup is the unit's own: what is further down may have been made by
/// whoever is in there, and be called anything.
fn unit<'a>(shown: &Shown<'a>) -> Option<&'a str> {
    let (above, unit) = shown.cgroup.rsplit_once('/')?;
    let manager = format!("user@{}.service", shown.uid);
    above.split('/').skip(1).all(|level| level.ends_with(".slice") || level == manager).then_some(unit)
}

/// The value of an option, written as `-M name`, `-Mname` or `--machine=name`.
fn value<'a>(arguments: &'a [String], names: &[&str]) -> Option<&'a str> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        for name in names {
            let glued = match argument.strip_prefix(name) {
                Some("") => return rest.next().map(String::as_str),
                Some(glued) if name.starts_with("--") => glued.strip_prefix('='),
                glued => glued,
            };
            if let Some(glued) = glued {
                return Some(glued);
            }
        }
    }
    None
}

/// A unit's name without systemd's escapes (`\x2d` for a dash).
fn unescaped(name: &str) -> String {
    let mut text = String::new();
    let mut rest = name;
    while let Some(at) = rest.find("\\x") {
        text.push_str(&rest[..at]);
        let code = rest.get(at + 2..at + 4).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => {
                text.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                text.push_str("\\x");
                rest = &rest[at + 2..];
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SERVICE: &str = "/system.slice/x.service";

    #[track_caller]
    fn check(shown: Shown<'_>, kind: Kind, runtime: Option<&str>, name: Option<&str>) {
        let expected = Recognised { kind, runtime: runtime.map(Str::from), name: name.map(Str::from) };
        assert_eq!(recognise(&shown), expected, "{shown:?}");
    }

    fn below(program: &str) -> Option<Parent<'_>> {
        Some(Parent { pid: 77, program, arguments: &[] })
    }

    #[test]
    fn services_snaps_and_sandboxes_are_kept_apart() {
        let check = |shown, runtime, name| check(shown, Kind::SandboxedProcess, Some(runtime), name);
        let host = Shown { has_host_pids: true, has_host_users: true, ..Shown::default() };
        let first = Some(Parent { pid: 1, program: "init", arguments: &[] });
        check(Shown { cgroup: SERVICE, parent: first, ..host }, "systemd", Some("x.service"));
        check(
            Shown { cgroup: SERVICE, parent: below("systemd-executor"), uid: 33, ..host },
            "systemd",
            Some("x.service"),
        );
        let users = "/user.slice/user-1000.slice/user@1000.service/app.slice/y.service";
        let of_user = Shown { uid: 1000, has_host_users: false, ..host };
        check(Shown { cgroup: users, parent: below("systemd"), ..of_user }, "systemd", Some("y.service"));
        check(Shown { cgroup: "/user.slice/user-0.slice/snap.lxd.x.scope", ..host }, "snap", Some("snap.lxd.x.scope"));
        let flatpak = "/user.slice/user-1000.slice/user@1000.service/app.slice/app-flatpak-org.a-1.scope";
        let own_pids = Shown { uid: 1000, ..Shown::default() };
        check(Shown { cgroup: flatpak, ..own_pids }, "flatpak", Some("app-flatpak-org.a-1.scope"));
        check(Shown { parent: below("bwrap"), ..own_pids }, "bwrap", None);
    }

    #[test]
    fn whoever_is_in_doubt_is_shown() {
        let check = |shown| check(shown, Kind::Unmanaged, None, None);
        let host = Shown { has_host_pids: true, has_host_users: true, ..Shown::default() };
        let systemds = Shown { cgroup: SERVICE, parent: below("systemd"), ..host };
        check(host);
        // Made by something else in the service, or with pids or users of its own.
        check(Shown { parent: below("bash"), ..systemds });
        check(Shown { parent: None, ..systemds });
        check(Shown { has_host_pids: false, ..systemds });
        check(Shown { has_host_users: false, ..systemds });
        // A cgroup that a container made below its own, and one of another user's.
        check(Shown { cgroup: "/docker/0123/system.slice/x.service", ..systemds });
        check(Shown { cgroup: "/system.slice/docker-0123.scope/x.service", ..systemds });
        check(Shown { cgroup: "/system.slice/docker-0123.scope/snap.a.scope", ..host });
        check(Shown { cgroup: "/kubepods/pod1/c/lxc.payload.evil", ..systemds });
        check(Shown { cgroup: "/docker/0123/snap.a.scope", ..host });
        let users = "/user.slice/user-1000.slice/user@1000.service/app-flatpak-a.scope";
        check(Shown { cgroup: users, uid: 1001, ..Shown::default() });
        check(Shown { cgroup: users, uid: 0, ..Shown::default() });
        check(Shown { parent: below("bwrap"), uid: 0, ..Shown::default() });
        check(Shown { cgroup: "/system.slice/ssh.service/c1", ..systemds });
    }

    #[test]
    fn machines_have_names() {
        let check = |shown, runtime, name| check(shown, Kind::Unmanaged, Some(runtime), name);
        let own = Shown { has_host_users: true, ..Shown::default() };
        check(Shown { cgroup: "/lxc.payload.web", ..own }, "lxc", Some("web"));
        check(Shown { cgroup: "/lxc.payload.web/system.slice/x.service", ..own }, "lxc", Some("web"));
        let unit = "/machine.slice/systemd-nspawn@my\\x2dweb.service/payload/init.scope";
        check(Shown { cgroup: unit, ..own }, "systemd-nspawn", Some("my-web"));
        check(Shown { cgroup: "/machine.slice/machine-a\\x2db.scope/payload", ..own }, "machined", Some("a-b"));
        let lines = [
            (&["systemd-nspawn", "-M", "web", "-D", "/r"][..], Some("web")),
            (&["systemd-nspawn", "-Mweb"], Some("web")),
            (&["systemd-nspawn", "--machine=web"], Some("web")),
            (&["systemd-nspawn", "-D", "/r"], None),
            (&["systemd-nspawn", "--machine"], None),
        ];
        let arguments = lines.map(|(line, _)| line.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        for (arguments, (_, name)) in arguments.iter().zip(lines) {
            let parent = Some(Parent { pid: 9, program: "systemd-nspawn", arguments });
            check(Shown { cgroup: "/machine.slice/machine-x.scope", parent, ..own }, "systemd-nspawn", name);
        }
    }

    proptest! {
        #[test]
        fn nothing_that_a_process_is_called_panics_and_root_is_not_hidden_by_a_sandboxer(
            cgroup in "(/(system.slice|user.slice|a.service|snap.x.scope|\\PC{0,9})){0,4}",
            words in proptest::collection::vec("(-M|--machine=?|\\PC{0,9}){1,2}", 0..4),
            program in "(systemd-nspawn|lxc-start|bwrap|\\PC{0,9})",
        ) {
            let parent = Some(Parent { pid: 7, program: &program, arguments: &words });
            let found = recognise(&Shown { cgroup: &cgroup, parent, ..Shown::default() });
            // With pids of its own and as root, it may be somebody's container.
            prop_assert_eq!(found.kind, Kind::Unmanaged);
        }
    }

    #[test]
    fn escapes_that_are_none_stay() {
        for (name, expected) in
            [("a\\x2db", "a-b"), ("a\\x2", "a\\x2"), ("\\xff\\x", "\\xff\\x"), ("\\xé", "\\xé"), ("", "")]
        {
            assert_eq!(unescaped(name), expected);
        }
    }
}
