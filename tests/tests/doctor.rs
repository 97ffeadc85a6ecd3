//! `tracker doctor` tells the truth: each thing that was taken away is found, with what it costs and a remedy, and what
//! it says the tracker can do without, the tracker does without.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use tracker_tests::daemon::Daemon;
use tracker_tests::process::Process;
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

/// A configuration under which nothing of the machine's is touched.
const ALONE: &str = "[barrier]\nknown-paths = false\nlearn = false\n[proc]\nusual-roots = false\n\
                     [containerd]\nenabled = false\n[find]\nenabled = false\n";

/// The checks of a doctor behind these words of a command line, and its exit code.
fn examine(wrapper: &[&str]) -> Result<(Vec<Value>, Option<i32>)> {
    let program = requirement::tracker().map_err(anyhow::Error::msg)?;
    let program = program.to_str().context("a path of text")?;
    let words = [wrapper, &[program, "doctor", "-o", "json"]].concat();
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output().context("start the doctor")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let checks = serde_json::from_slice(&output.stdout).with_context(|| format!("understand {output:?}: {said}"))?;
    Ok((checks, output.status.code()))
}

/// Whether a thing is lacking, and that this is told as it has to be.
fn is_lacking(checks: &[Value], subject: &str) -> Result<bool> {
    let check = checks.iter().find(|check| check["subject"] == subject);
    let check = check.with_context(|| format!("`{subject}` among {checks:?}"))?;
    let is_lacking = check["verdict"] != "ok";
    for field in ["costs", "remedy"] {
        assert_eq!(check[field].is_string(), is_lacking, "{check}");
    }
    Ok(is_lacking)
}

#[test]
fn each_thing_that_is_taken_away_is_found() -> Result<()> {
    require!(
        requirement::root(),
        requirement::tracker(),
        kernel::btf(),
        requirement::program("setpriv"),
        requirement::program("unshare"),
    );
    let (before, _) = examine(&["env"])?;
    let hide = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"", "sh"];
    let without = |capability| ["setpriv", "--bounding-set", capability];
    for (wrapper, subject, exit) in [
        (&hide[..], "BTF", 1),
        (&hide, "probes", 1),
        (&hide, "host mount namespace", 1),
        (&["unshare", "--user", "--map-root-user"], "root", 1),
        (&["unshare", "--pid", "--fork", "--mount-proc"], "host pid namespace", 1),
        (&without("-sys_ptrace"), "host mount namespace", 1),
        (&without("-sys_ptrace"), "CAP_SYS_PTRACE", 1),
        (&without("-sys_admin"), "fanotify permission events", 0),
        (&without("-sys_nice"), "CAP_SYS_NICE", 0),
        (&without("-net_broadcast"), "CAP_NET_BROADCAST", 0),
        (&without("-net_admin"), "CAP_NET_ADMIN", 0),
    ] {
        let told = format!("{subject} behind {wrapper:?}");
        assert!(!is_lacking(&before, subject)?, "{told}: it was not taken away yet");
        let (checks, code) = examine(wrapper)?;
        assert!(is_lacking(&checks, subject)?, "{told}: {checks:?}");
        assert_eq!(code, Some(exit), "{told}");
        for check in &checks {
            is_lacking(&checks, check["subject"].as_str().context("a subject")?)?;
        }
    }
    Ok(())
}

#[test]
fn the_tracker_does_without_what_it_is_said_to_do_without() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), kernel::btf(), requirement::program("setpriv"));
    for (capability, source, condition) in [
        // What CAP_SYS_ADMIN stands for, too.
        ("-bpf,-perfmon", "kernel", "live"),
        ("-sys_admin", "kernel", "live"),
        ("-sys_admin", "barrier", "refused"),
        ("-sys_admin,-bpf,-perfmon", "kernel", "refused"),
        ("-dac_read_search", "kernel", "live"),
        ("-sys_nice", "kernel", "live"),
    ] {
        let wrapper = ["setpriv", "--bounding-set", capability].map(AsRef::as_ref);
        let daemon = Daemon::start_by(&wrapper, ALONE)?;
        let found = eventually(&format!("{source} without {capability}"), || {
            let lines = daemon.sources(source).ok()?;
            lines.into_iter().find(|line| line["condition"] == condition)
        });
        if condition != "live" {
            assert!(found["detail"].as_str().is_some_and(|detail| detail.contains("CAP_")), "{found}");
        }
    }
    Ok(())
}

#[test]
fn routes_need_what_they_are_said_to_need() -> Result<()> {
    require!(requirement::root(), requirement::tracker());
    require!(requirement::program("setpriv"), requirement::program("unshare"));
    let log = tempfile::NamedTempFile::new()?;
    let other = Process::start(Command::new("unshare").args(["--net", "sleep", "1000"]), log.path())?;
    let namespace = |pid: u32| kernel::namespace(pid, "net").ok();
    let own = namespace(std::process::id());
    eventually("a net ns of its own", || (namespace(other.pid()) != own).then_some(()));
    let other = format!("/proc/{}/ns/net", other.pid());
    for (capability, lacks) in
        [("-sys_nice", false), ("-sys_admin", true), ("-net_broadcast", true), ("-net_admin", true)]
    {
        let wrapper = ["setpriv", "--bounding-set", capability].map(AsRef::as_ref);
        let said = Daemon::start_by(&wrapper, ALONE)?.ask(&["route", "127.0.0.1", "--netns", &other])?;
        let named = capability.replace('-', "CAP_").to_uppercase();
        assert_eq!(said.err.contains(&named), lacks, "{capability}: {said:?}");
    }
    Ok(())
}

#[test]
fn a_tracker_that_is_stopped_is_told_from_one_that_runs() -> Result<()> {
    require!(requirement::root(), requirement::tracker());
    let mut daemon = Daemon::start(ALONE)?;
    let tracker = |daemon: &Daemon| -> Result<Value> {
        let checks: Vec<Value> = serde_json::from_str(&daemon.ask(&["doctor", "-o", "json"])?.out)?;
        checks.into_iter().find(|check| check["subject"] == "tracker").context("it looks for a tracker")
    };
    assert_eq!(tracker(&daemon)?["verdict"], "ok");
    daemon.process().signal(Signal::SIGSTOP)?;
    let stopped = tracker(&daemon)?;
    assert_eq!(stopped["verdict"], "warn", "{stopped}");
    assert!(stopped["remedy"].is_string(), "{stopped}");
    Ok(())
}
