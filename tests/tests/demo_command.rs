//! `tracker demo` shows containers on a host without any runtime, and leaves nothing behind.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
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
fn a_demo_that_is_told_to_end_cleans_up_too() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), requirement::demo_runtime());
    let temp = tempfile::tempdir()?;
    let mut command = Command::new(requirement::tracker().map_err(anyhow::Error::msg)?);
    // Held up in its first `create`, it cannot have ended before it is told to.
    command.args(["demo", "--once"]).env("TRACKER_DEMO_FAULT", "init-born:delay=500");
    let mut demo = Process::start(&mut command, &temp.path().join("log"))?;
    let place = format!("/run/tracker-demo-{}", demo.pid());
    let state = Path::new(&place).join("state/web-0-nginx");
    eventually("its first container is being made", || state.exists().then_some(()));
    demo.signal(Signal::SIGTERM)?;
    assert!(demo.wait(Duration::from_secs(30))?.success());
    assert!(!Path::new(&place).exists());
    Ok(())
}
