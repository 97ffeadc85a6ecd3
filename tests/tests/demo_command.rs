//! `tracker demo` shows containers on a host without any runtime, and leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
use tracker_tests::kernel::is_alive;
use tracker_tests::process::Process;
use tracker_tests::wait::eventually;
use tracker_tests::{require, requirement};

#[test]
fn the_demo_lists_its_containers_and_removes_them() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), requirement::demo_runtime());
    let mut command = Command::new(requirement::tracker().map_err(anyhow::Error::msg)?);
    let child = command.args(["demo", "--once", "-o", "json"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let child = child.stderr(Stdio::piped()).spawn().context("start the demo")?;
    let place = format!("/run/tracker-demo-{}", child.id());
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }

    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("no OCI runtime"), "it has one: {said}");

    let containers: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    assert_eq!(containers.len(), 4);
    for container in &containers {
        assert_eq!(container["state"], "running");
        assert_eq!(container["pod"]["namespace"], "demo");
        assert_eq!(container["runtime"]["oci"], "tracker-demo-runtime");
        // A machine that is busy enough lets a start go; it is caught all the same.
        assert!(container["grade"] == "held" || container["grade"] == "let-go", "{}", container["grade"]);
        let pid = container["pid"].as_u64().context("a pid")?;
        eventually("init has ended", || (!Path::new(&format!("/proc/{pid}/ns/mnt")).exists()).then_some(()));
    }
    assert!(containers.iter().any(|container| container["grade"] == "held"));
    let of_pod: Vec<&Value> = containers.iter().filter(|container| container["pod"]["name"] == "web-0").collect();
    assert_eq!(of_pod.len(), 2);
    assert_eq!(of_pod[0]["netns"], of_pod[1]["netns"], "containers of a pod share a net namespace");
    assert!(!Path::new(&place).exists());
    Ok(())
}

#[test]
fn without_probes_and_the_barrier_the_demo_still_has_something_to_show() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), requirement::demo_runtime());
    let without = env!("CARGO_BIN_EXE_without_call");
    let mut command = Command::new(without);
    command.args([&libc::SYS_bpf.to_string(), &libc::EPERM.to_string(), without]);
    command.args([&libc::SYS_fanotify_init.to_string(), &libc::EPERM.to_string()]);
    command.arg(requirement::tracker().map_err(anyhow::Error::msg)?).args(["demo", "--once", "-o", "json"]);
    let output = command.stdin(Stdio::null()).output().context("start the demo")?;
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let containers: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    assert_eq!(containers.len(), 4);
    assert!(containers.iter().all(|container| container["grade"] == "observed"), "{containers:?}");
    Ok(())
}

/// A demo that is making its first container, held up there: it cannot have ended before it is told to.
fn interrupted(log: &Path) -> Result<(Process, PathBuf)> {
    let mut command = Command::new(requirement::tracker().map_err(anyhow::Error::msg)?);
    command.args(["demo", "--once"]).env("TRACKER_DEMO_FAULT", "init-born:delay=500");
    let demo = Process::start(&mut command, log)?;
    let place = PathBuf::from(format!("/run/tracker-demo-{}", demo.pid()));
    let state = place.join("state/web-0-nginx");
    eventually("its first container is being made", || state.exists().then_some(()));
    Ok((demo, place))
}

#[test]
fn a_demo_that_is_told_to_end_cleans_up_too() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), requirement::demo_runtime());
    let temp = tempfile::tempdir()?;
    // The last one is what a terminal sends that is closed.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let (mut demo, place) = interrupted(&temp.path().join("log"))?;
        demo.signal(signal)?;
        assert!(demo.wait(Duration::from_secs(30))?.success(), "{signal}");
        assert!(!place.exists(), "{signal}");
    }
    Ok(())
}

#[test]
fn the_next_demo_cleans_up_after_one_that_was_killed() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), requirement::demo_runtime());
    let temp = tempfile::tempdir()?;
    let (mut killed, place) = interrupted(&temp.path().join("log"))?;
    killed.signal(Signal::SIGKILL)?;
    killed.wait(Duration::from_secs(30))?;
    // The runtime lives on, and ends what it was told to do.
    let pid_file = place.join("web-0-nginx/pid");
    let init: u32 = eventually("its first container is there", || fs::read_to_string(&pid_file).ok()?.parse().ok());
    assert!(is_alive(init), "a kill leaves it behind");

    let (mut next, its_place) = interrupted(&temp.path().join("next"))?;
    // By this one or another that began meanwhile.
    eventually("what was left is removed", || (!place.exists() && !is_alive(init)).then_some(()));
    next.signal(Signal::SIGTERM)?;
    assert!(next.wait(Duration::from_secs(30))?.success());
    assert!(!its_place.exists());
    Ok(())
}
