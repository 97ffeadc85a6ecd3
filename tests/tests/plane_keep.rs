//! A daemon that is killed while containers come and go, and the next one: with kept probes none is lost.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tracker_tests::bpf::{PinDirectory, Pinned};
use tracker_tests::child::Child;
use tracker_tests::daemon::Daemon;
use tracker_tests::wait::{PATIENCE, eventually};
use tracker_tests::{kernel, require, requirement};

/// So many are born and gone before the daemon is killed, until the next one is started, and in all.
const KILLED: usize = 200;
const STARTED: usize = 350;
const LET_ANSWER: usize = 400;
const ALL: usize = 500;

fn config(pins: &Path, keep: bool) -> String {
    let plane = pins.file_name().unwrap_or_default().to_string_lossy();
    format!("[plane]\npath = '/run/{plane}/plane'\npins = '{}'\nkeep = {keep}\n", pins.display())
}

/// Removes the plane's directory in the end.
struct PlaneDirectory(std::path::PathBuf);

impl PlaneDirectory {
    fn of(pins: &Path) -> Self {
        Self(Path::new("/run").join(pins.file_name().unwrap_or_default()))
    }
}

impl Drop for PlaneDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Pids of all that `ps` shows.
fn shown(daemon: &Daemon) -> Result<HashSet<u64>> {
    let containers = daemon.ask_json(&["ps", "-a", "-o", "json"])?;
    let containers = containers.as_array().context("a list")?;
    Ok(containers.iter().filter_map(|container| container["pid"].as_u64()).collect())
}

/// Kills a daemon in the middle of 500 births, starts it again, and returns how many of them none of the two knew.
fn missed(daemon: &mut Daemon) -> Result<usize> {
    let born = AtomicUsize::new(0);
    let (let_go, may_go) = mpsc::sync_channel::<()>(2);
    let counter = &born;
    thread::scope(|scope| {
        let births = scope.spawn(move || -> Result<Vec<u64>> {
            let mut pids = Vec::new();
            for number in 0..ALL {
                let child = Child::exiting(libc::CLONE_NEWNS, 0)?;
                pids.push(child.pid().into());
                child.finish()?;
                counter.store(number + 1, Ordering::Release);
                // What a killed daemon had read and not told anybody is gone with it: it is killed when that is nothing.
                if [KILLED, LET_ANSWER].contains(&(number + 1)) {
                    may_go.recv_timeout(PATIENCE).context("wait for the daemon")?;
                }
            }
            Ok(pids)
        });
        let until = |count| {
            eventually(&format!("{count} births"), || (counter.load(Ordering::Acquire) >= count).then_some(()));
        };
        until(KILLED);
        let before = eventually("all of them are shown", || shown(daemon).ok().filter(|pids| pids.len() >= KILLED));
        daemon.process().signal(Signal::SIGKILL)?;
        daemon.process().wait(PATIENCE)?;
        let_go.send(())?;
        until(STARTED);
        daemon.restart()?;
        let_go.send(())?;
        let pids = births.join().expect("the births' thread does not panic")?;
        let last = *pids.last().context("500 births")?;
        let after = eventually("the last one is shown", || shown(daemon).ok().filter(|pids| pids.contains(&last)));
        Ok(pids.iter().filter(|pid| !before.contains(pid) && !after.contains(pid)).count())
    })
}

#[test]
fn a_restart_in_the_middle_of_500_births_loses_none_with_keep() -> Result<()> {
    require!(requirement::root(), kernel::btf(), requirement::tracker());
    let pins = PinDirectory::new();
    let _plane = PlaneDirectory::of(pins.path());
    let mut daemon = Daemon::start(&config(pins.path(), true))?;
    assert_eq!(missed(&mut daemon)?, 0);
    assert_eq!(daemon.metric("tracker_probe_losses_total")?, 0.0);
    assert_eq!(daemon.metric("tracker_probe_unwatched_seconds")?, 0.0);
    Ok(())
}

#[test]
fn without_keep_those_born_and_gone_in_between_are_unknown_and_that_is_said() -> Result<()> {
    require!(requirement::root(), kernel::btf(), requirement::tracker());
    let pins = PinDirectory::new();
    let _plane = PlaneDirectory::of(pins.path());
    let mut daemon = Daemon::start(&config(pins.path(), false))?;
    let missed = missed(&mut daemon)?;
    assert!(missed >= STARTED - KILLED, "{missed}");
    assert!(daemon.metric("tracker_probe_unwatched_seconds")? > 0.0);
    assert!(daemon.log().contains("nobody watched"), "{}", daemon.log());
    if kernel::version() < (6, 18) {
        let counted = daemon.metric("tracker_probe_unseen_namespaces_total")?;
        assert!(counted >= missed as f64, "{counted} of {missed}");
    }
    let line = daemon.sources("kernel")?.into_iter().find(|line| line["what"] == "tp_btf").context("the probes")?;
    assert!(line["detail"].as_str().is_some_and(|detail| detail.starts_with("nobody watched for ")), "{line}");
    Ok(())
}

#[test]
fn cleanup_removes_everything_and_nothing_under_a_daemon() -> Result<()> {
    require!(requirement::root(), kernel::btf(), requirement::tracker());
    let pins = PinDirectory::new();
    let plane = PlaneDirectory::of(pins.path());
    let mut daemon = Daemon::start(&config(pins.path(), true))?;
    let file = plane.0.join("plane");
    let toml = plane.0.join("config.toml");
    std::fs::write(&toml, config(pins.path(), true))?;
    let toml = toml.to_str().context("a path of ours")?;
    let said = daemon.ask(&["cleanup", "--config", toml, "--plane"])?;
    assert_eq!((said.code, said.out.as_str()), (1, ""), "{}", said.err);
    assert!(said.err.contains("is written by a tracker that is running"), "{}", said.err);
    let said = daemon.ask(&["cleanup", "--pins", pins.path().to_str().context("a path of ours")?])?;
    assert_eq!((said.code, said.out.as_str()), (1, ""), "{}", said.err);
    assert!(said.err.contains("stop the tracker first; `--force`"), "{}", said.err);
    assert_eq!(pins.names().len(), 13);

    // A kept probe is attached for as long as it is pinned, whoever ends.
    daemon.process().signal(Signal::SIGKILL)?;
    daemon.process().wait(PATIENCE)?;
    assert_eq!(pins.names().len(), 13);
    // What is not the tracker's is left, and named.
    Pinned::open(&pins.path().join("rows"))?.pin(&pins.path().join("somebodys"))?;
    let said = daemon.ask(&["cleanup", "--config", toml, "--plane", "-o", "json"])?;
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    let done: serde_json::Value = serde_json::from_str(&said.out)?;
    assert_eq!(done["pins"].as_array().map(Vec::len), Some(13), "{done}");
    assert_eq!(done["left"], serde_json::json!([pins.path().join("somebodys")]));
    assert_eq!(done["plane"], serde_json::json!(file));
    assert!(!file.exists());
    assert_eq!(pins.names(), ["somebodys"]);
    std::fs::remove_file(pins.path().join("somebodys"))?;
    let said = daemon.ask(&["cleanup", "--config", toml, "--plane"])?;
    assert_eq!((said.code, said.out.as_str()), (0, "nothing to remove\n"));
    assert!(!pins.path().exists());
    Ok(())
}

#[test]
fn a_second_daemon_runs_without_the_first_ones_pins_and_takes_nothing_from_it() -> Result<()> {
    require!(requirement::root(), kernel::btf(), requirement::tracker());
    let pins = PinDirectory::new();
    let _plane = PlaneDirectory::of(pins.path());
    let first = Daemon::start(&config(pins.path(), true))?;
    let names = pins.names();
    let second = Daemon::start(&config(pins.path(), true))?;
    assert!(second.log().contains("belong to a tracker that is running"), "{}", second.log());
    assert_eq!(pins.names(), names);
    assert_eq!((first.metric("tracker_plane_pinned")?, second.metric("tracker_plane_pinned")?), (1.0, 0.0));
    // Both see what happens.
    let child = Child::exiting(libc::CLONE_NEWNS, 0)?;
    let pid = u64::from(child.pid());
    child.finish()?;
    for daemon in [&first, &second] {
        eventually("the child is shown", || shown(daemon).ok().filter(|pids| pids.contains(&pid)));
    }
    Ok(())
}
