//! What the tracker needs is not there: it says so, with a remedy, and does what can be done without.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;
use tracker_tests::daemon::{self, Daemon};
use tracker_tests::house::{House, PATIENT};
use tracker_tests::process::copy_program;
use tracker_tests::runc::Kind;
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

const NOBODY: &str = "65534";

/// The line of `tracker sources` about this source and this thing, once it has this condition.
fn line(daemon: &Daemon, source: &str, what: &str, condition: &str) -> Value {
    eventually(&format!("{source} {what} is {condition}"), || {
        let lines = daemon.sources(source).ok()?;
        lines.into_iter().find(|line| line["what"] == what && line["condition"] == condition)
    })
}

#[test]
fn without_root_it_says_what_it_needs_and_ends() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), requirement::program("setpriv"));
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))?;
    // Where the build is, others may not look.
    let program = directory.path().join("tracker");
    copy_program(&requirement::tracker().map_err(anyhow::Error::msg)?, &program)?;
    for socket in [directory.path().join("sock"), "/run/of-root-alone/tracker.sock".into()] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(&program);
        command.arg("--socket").arg(&socket).arg("run");
        let output = command.stdin(Stdio::null()).output().context("start setpriv")?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("error: ") && said.contains("remedy: run") && said.contains("as root"), "{said}");
    }
    Ok(())
}

#[test]
fn a_second_tracker_is_told_who_has_the_socket_and_the_first_goes_on() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let mut daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let before = house.started("second-before")?;
    let program = requirement::tracker().map_err(anyhow::Error::msg)?;
    let second = daemon::ask(&program, &daemon.socket(), &["run"])?;
    assert_eq!(second.code, 1, "{}", second.err);
    assert!(second.err.contains(&format!("pid {}", daemon.process().pid())), "{}", second.err);
    assert!(second.err.contains("--socket"), "what to do about it: {}", second.err);

    let after = house.started("second-after")?;
    for container in [&before, &after] {
        let known = eventually("it runs", || daemon.in_state(container.id(), "running"));
        assert_eq!((&known["grade"], &known["pid"]), (&Value::from("held"), &Value::from(container.pid())), "{known}");
    }
    Ok(())
}

#[test]
fn without_type_information_or_the_hosts_mount_ns_containers_are_found_by_scans() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf(), requirement::program("unshare"));
    let house = House::new(Kind::Runc)?;
    // In a mount namespace of its own, where something else lies over the directory of the type information.
    let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hide, "sh"].map(OsStr::new);
    let daemon = Daemon::start_by(&wrapper, &house.config(PATIENT, "[scan]\naudit-seconds = 1\n"))?;
    for (source, what, condition, reasons) in [
        ("kernel", "tp_btf", "refused", ["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"]),
        ("barrier", "fanotify", "degraded", ["own mount namespace", "not that of pid 1"]),
        ("proc", "/proc", "degraded", ["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"]),
    ] {
        let line = line(&daemon, source, what, condition);
        let detail = line["detail"].as_str().context("a reason")?;
        assert!(reasons.iter().all(|reason| detail.contains(reason)), "{line}");
    }

    let container = house.started("no-btf")?;
    let known = eventually("a scan finds it", || daemon.in_state("no-btf", "running"));
    assert_eq!((&known["grade"], &known["pid"]), (&Value::from("observed"), &Value::from(container.pid())), "{known}");
    container.kill("KILL")?;
    eventually("a scan brings its end to light", || daemon.in_state("no-btf", "exited"));
    Ok(())
}

#[test]
fn without_probes_starts_are_held_all_the_same() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let (call, errno) = (libc::SYS_bpf.to_string(), libc::EPERM.to_string());
    let wrapper = [env!("CARGO_BIN_EXE_without_call"), &call, &errno].map(OsStr::new);
    let daemon = Daemon::start_by(&wrapper, &house.config(PATIENT, "[scan]\naudit-seconds = 1\n"))?;
    let refused = line(&daemon, "kernel", "tp_btf", "refused");
    assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("CAP_BPF")), "{refused}");
    line(&daemon, "proc", "/proc", "degraded");

    let container = house.started("no-bpf")?;
    let known = daemon.find("no-bpf").with_context(|| format!("it is known: {}", daemon.log()))?;
    assert_eq!((&known["grade"], &known["pid"]), (&Value::from("held"), &Value::from(container.pid())), "{known}");
    container.kill("KILL")?;
    eventually("a scan brings its end to light", || daemon.in_state("no-bpf", "exited"));
    Ok(())
}

#[test]
fn without_a_log_that_can_be_written_it_works_on() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    // As on a disk that is full, or with a reader that has gone.
    let wrapper = ["sh", "-c", "exec \"$@\" 2>/dev/full", "sh"].map(OsStr::new);
    let mut daemon = Daemon::start_by(&wrapper, &house.config(PATIENT, ""))?;
    let container = house.started("no-log")?;
    let known = eventually("it runs", || daemon.in_state("no-log", "running"));
    assert_eq!((&known["grade"], &known["pid"]), (&Value::from("held"), &Value::from(container.pid())), "{known}");
    assert!(daemon.process().ended()?.is_none());
    Ok(())
}

#[test]
fn without_permission_events_containers_are_known_from_their_first_exec() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf());
    let house = House::new(Kind::Runc)?;
    for (errno, reason) in [(libc::EINVAL, "CONFIG_FANOTIFY_ACCESS_PERMISSIONS"), (libc::EPERM, "CAP_SYS_ADMIN")] {
        let call = libc::SYS_fanotify_init.to_string();
        let errno = errno.to_string();
        let wrapper = [env!("CARGO_BIN_EXE_without_call"), &call, &errno].map(OsStr::new);
        let daemon = Daemon::start_by(&wrapper, &house.config(PATIENT, ""))?;
        let refused = line(&daemon, "barrier", "fanotify", "refused");
        assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains(reason)), "{refused}");
        line(&daemon, "kernel", "tp_btf", "live");

        let id = format!("no-fanotify-{errno}");
        let container = house.started(&id)?;
        let known = eventually("it runs", || daemon.in_state(&id, "running"));
        assert_eq!((&known["grade"], &known["pid"]), (&Value::from("first-exec"), &Value::from(container.pid())));
        container.kill("KILL")?;
        let over = eventually("its end", || daemon.in_state(&id, "exited"));
        assert_eq!(over["exit"]["code"], 137, "{over}");
    }
    Ok(())
}

#[test]
fn a_keeper_that_cannot_be_started_is_waited_for_and_starts_are_held_then() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let keeper = house.path("keeper");
    let config = house.config(PATIENT, "").replace("[barrier]\n", &format!("[barrier]\nkeeper-program = {keeper:?}\n"));
    let daemon = Daemon::start(&config)?;
    let waiting = line(&daemon, "barrier", "fanotify", "waiting");
    assert!(waiting["detail"].as_str().is_some_and(|detail| detail.contains("start the keeper")), "{waiting}");
    let before = house.started("keeper-before")?;
    let known = eventually("it runs", || daemon.in_state("keeper-before", "running"));
    assert_eq!((&known["grade"], &known["pid"]), (&Value::from("first-exec"), &Value::from(before.pid())), "{known}");

    symlink(env!("CARGO_BIN_EXE_keeper"), &keeper)?;
    line(&daemon, "barrier", "fanotify", "live");
    let after = house.started("keeper-after")?;
    let known = eventually("it runs", || daemon.in_state("keeper-after", "running"));
    assert_eq!((&known["grade"], &known["pid"]), (&Value::from("held"), &Value::from(after.pid())), "{known}");
    Ok(())
}

#[test]
fn without_containerd_it_waits_for_one_and_the_rest_works() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let nowhere = house.path("no-such-socket");
    let containerd = format!("[containerd]\nsockets = [{nowhere:?}]\nsockets-if-present = []\n");
    let daemon = Daemon::start(&house.config(PATIENT, &containerd))?;
    line(&daemon, "containerd", &nowhere.to_string_lossy(), "waiting");
    let _container = house.started("no-containerd")?;
    let known = eventually("it runs", || daemon.in_state("no-containerd", "running"));
    assert_eq!(known["grade"], "held", "{known}");
    Ok(())
}
