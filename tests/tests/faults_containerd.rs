//! A containerd that is away, comes back or never answers: the barrier and the probes go on naming containers.

use std::os::unix::net::UnixListener;
use std::thread;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use tracker_tests::containerd::{Containerd, IMAGE};
use tracker_tests::daemon::Daemon;
use tracker_tests::house::{House, PATIENT};
use tracker_tests::runc::Kind;
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

macro_rules! require_daemon {
    () => {
        require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    };
}

/// Waits for this condition of the only containerd.
#[track_caller]
fn until(daemon: &Daemon, condition: &str) -> Value {
    eventually(&format!("containerd is {condition}"), || {
        daemon.sources("containerd").ok()?.into_iter().find(|line| line["condition"] == condition)
    })
}

/// The container is known as soon as its start has returned, by what the barrier and the probes know.
#[track_caller]
fn is_held(daemon: &Daemon, id: &str, pid: u32) -> Result<()> {
    let known = daemon.find(id).with_context(|| format!("{id} is known: {}", daemon.log()))?;
    assert_eq!((&known["grade"], &known["pid"]), (&Value::from("held"), &Value::from(pid)), "{known}");
    assert_eq!(known["mntns"], kernel::namespace(pid, "mnt")?, "{known}");
    Ok(())
}

#[test]
fn one_that_accepts_and_never_answers_keeps_nothing_from_being_named() -> Result<()> {
    require_daemon!();
    let house = House::new(Kind::Runc)?;
    let socket = house.path("silent");
    let listener = UnixListener::bind(&socket)?;
    // Whoever connects is kept waiting until the test is over.
    thread::spawn(move || {
        let mut kept = Vec::new();
        for connection in listener.incoming() {
            kept.push(connection);
        }
    });
    let containerd = format!(
        "[containerd]\nsockets = [{socket:?}]\nsockets-if-present = []\ncall-deadline-ms = 500\nbackoff-cap-ms = 500\n"
    );
    let daemon = Daemon::start(&house.config(PATIENT, &containerd))?;
    let line = until(&daemon, "waiting");
    assert!(line["detail"].as_str().is_some_and(|detail| detail.contains("no answer")), "{line}");

    let container = house.started("silent-containerd")?;
    is_held(&daemon, "silent-containerd", container.pid())?;
    container.kill("KILL")?;
    let over = eventually("its end", || daemon.in_state("silent-containerd", "exited"));
    assert_eq!(over["exit"]["code"], 137, "{over}");
    Ok(())
}

#[test]
fn what_starts_while_it_is_away_or_stopped_is_held_and_described_later() -> Result<()> {
    require_daemon!();
    require!(requirement::program("containerd"), requirement::program("ctr"));
    const SLEEP: &[&str] = &["/bin/sleep", "1000"];
    let mut containerd = Containerd::start()?;
    containerd.import_image("default")?;
    let house = House::new(Kind::Runc)?;
    let config = format!(
        "[barrier]\nbudget-ms = {}\nruntimes = [{:?}, {:?}]\nknown-paths = false\nlearn = false\n\
         [proc]\nroots = [{:?}]\nusual-roots = false\n[containerd]\nsockets = [{:?}]\nsockets-if-present = []\n\
         alive-interval-ms = 500\ncall-deadline-ms = 1000\nbackoff-cap-ms = 500\n",
        PATIENT.as_millis(),
        house.runtime().program(),
        containerd.runtime().program(),
        house.runtime().root(),
        containerd.socket(),
    );
    let daemon = Daemon::start(&config)?;
    until(&daemon, "live");
    containerd.run("default", "away-before", &[], SLEEP)?;

    containerd.kill();
    until(&daemon, "waiting");
    let container = house.started("away-by-hand")?;
    is_held(&daemon, "away-by-hand", container.pid())?;
    assert!(daemon.in_state("away-before", "running").is_some(), "a daemon's end is not its containers'");

    containerd.restart()?;
    containerd.run("default", "away-after", &[], SLEEP)?;
    is_held(&daemon, "away-after", containerd.pid("default", "away-after")?)?;
    until(&daemon, "live");
    for id in ["away-before", "away-after"] {
        let described = || daemon.in_state(id, "running").filter(|known| known["image"]["name"] == IMAGE);
        let known = eventually(&format!("{id} is described"), described);
        assert_eq!(known["pid"], containerd.pid("default", id)?, "{known}");
    }

    let process = containerd.daemon().context("a daemon")?;
    process.signal(Signal::SIGSTOP)?;
    let line = until(&daemon, "waiting");
    assert!(line["detail"].as_str().is_some_and(|detail| detail.contains("no answer")), "{line}");
    let container = house.started("away-stopped")?;
    is_held(&daemon, "away-stopped", container.pid())?;
    containerd.daemon().context("a daemon")?.signal(Signal::SIGCONT)?;
    until(&daemon, "live");
    Ok(())
}
