//! Runtimes are found by looking, whoever was there first; and a socket's name gives nobody a say.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use tracker_tests::containerd::{Containerd, IMAGE};
use tracker_tests::daemon::Daemon;
use tracker_tests::wait::eventually;
use tracker_tests::{require, requirement};

/// A tracker that looks often and knows of no socket beforehand.
fn tracker(more: &str) -> Result<Daemon> {
    Daemon::start(&format!(
        "[barrier]\nenabled = false\n[proc]\nusual-roots = false\n[containerd]\nsockets = []\nsockets-if-present = []\n\
         backoff-cap-ms = 500\n[find]\ninterval-ms = 500\n{more}",
    ))
}

/// The line of `tracker sources` about this socket, once it is so.
#[track_caller]
fn line(daemon: &Daemon, source: &str, socket: &Path, condition: &str) -> Value {
    let wanted = socket.display().to_string();
    eventually(&format!("{source} {wanted} is {condition}"), || {
        let lines = daemon.sources(source).ok()?;
        lines.into_iter().find(|line| line["what"] == *wanted && line["condition"] == condition)
    })
}

#[test]
fn a_containerd_at_an_unusual_path_is_found_by_its_process_and_forgotten_when_it_has_gone() -> Result<()> {
    require!(requirement::root(), requirement::program("containerd"), requirement::program("runc"));
    let daemon = tracker("forget-ms = 1000\n")?;
    let mut containerd = Containerd::start()?;
    let found = line(&daemon, "containerd", &containerd.socket(), "live");
    let pid = containerd.daemon().unwrap().pid();
    assert_eq!(found["origin"], format!("process {pid}"), "{found:#}");
    // The one that speaks another protocol is none.
    let lines = daemon.sources("containerd")?;
    let directory = containerd.socket().parent().unwrap().display().to_string();
    let of_ours = lines.iter().filter(|line| line["what"].as_str().unwrap().starts_with(&directory));
    assert_eq!(of_ours.count(), 1, "{lines:#?}");

    containerd.import_image("default")?;
    containerd.run("default", "found-by-looking", &[], &["sleep", "1000"])?;
    let container = eventually("its container is known", || {
        daemon.in_state("found-by-looking", "running").filter(|container| container["image"]["name"] == IMAGE)
    });
    assert_eq!(container["domain"], Value::Null);

    containerd.kill();
    std::fs::remove_file(containerd.socket())?;
    let wanted = containerd.socket().display().to_string();
    eventually("its line has gone", || {
        let lines = daemon.sources("containerd").ok()?;
        (!lines.iter().any(|line| line["what"] == *wanted)).then_some(())
    });
    containerd.restart()?;
    line(&daemon, "containerd", &containerd.socket(), "live");
    Ok(())
}
