//! Containers made inside containers, by a runtime that has other paths and other pids than the host: they are known before
//! they run, and speak for nobody else's.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tracker_tests::bundle::Bundle;
use tracker_tests::daemon::Daemon;
use tracker_tests::house::{House, PATIENT};
use tracker_tests::process::{self, Process};
use tracker_tests::runc::Kind as Oci;
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require};

/// A place like a container on the same paths: a mount and a pid namespace of its own, in which the house's state directory
/// and the directory `bundles` are others than the host's.
struct Place<'a> {
    house: &'a House,
    init: Process,
    pid: u32,
    ids: Vec<String>,
}

impl<'a> Place<'a> {
    /// Makes one whose state and bundles are, for the host, below `inside/<name>`.
    fn new(house: &'a House, name: &str) -> Result<Place<'a>> {
        let inside = house.path("inside").join(name);
        let (state, bundles) = (inside.join("state"), inside.join("bundles"));
        for directory in [&state, &bundles, &house.path("bundles")] {
            fs::create_dir_all(directory)?;
        }
        let log = inside.join("log");
        let script = format!(
            "mount --bind {} {} && mount --bind {} {} && mount -t proc proc /proc && echo ready && exec sleep 1000",
            state.display(),
            house.runtime().root().display(),
            bundles.display(),
            house.path("bundles").display(),
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c", &script]);
        let init = Process::start(&mut command, &log)?;
        eventually("the place is there", || fs::read_to_string(&log).ok()?.contains("ready").then_some(()));
        let children = format!("/proc/{0}/task/{0}/children", init.pid());
        let pid = fs::read_to_string(children)?.trim().parse().context("its first process")?;
        Ok(Place { house, init, pid, ids: Vec::new() })
    }

    /// What the host calls a path in its `bundles`.
    fn bundles(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid)).join(below(&self.house.path("bundles"))).join(name)
    }

    /// The runtime, inside, as everybody there calls it.
    fn runtime(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--mount", "--pid", "--"]);
        command.arg(self.house.runtime().program()).arg("--root").arg(self.house.runtime().root());
        command
    }

    fn create(&mut self, bundle: &Path, id: &str) -> Result<()> {
        self.ids.push(id.to_owned());
        let mut command = self.runtime();
        command.arg("create").arg("--bundle").arg(bundle).arg("--pid-file").arg(bundle.join("pid")).arg(id);
        process::run(&mut command).map(drop)
    }

    fn start(&self, id: &str) -> Result<()> {
        process::run(self.runtime().args(["start", id])).map(drop)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        for id in &self.ids {
            let _ = process::run(self.runtime().args(["delete", "--force", id]));
        }
        let _ = &self.init;
    }
}

fn below(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap()
}

/// Writes a bundle that says who wrote it and runs for that long: what finds its process, whoever counts pids.
fn write_bundle(house: &House, directory: &Path, name: &str, who: &str, seconds: u32) -> Result<Bundle> {
    Bundle::create_with(directory, name, house.root(), &["sleep", &seconds.to_string()], |config| {
        config["annotations"] = json!({ "who": who });
    })
}

/// The pid, for the host, of the process that sleeps for so long.
fn sleeper(seconds: u32) -> u32 {
    let wanted = format!("sleep\0{seconds}\0");
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found =
        pids.filter(|pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted));
    found.next().expect("it runs")
}

fn all(daemon: &Daemon, id: &str) -> Vec<Value> {
    let containers = daemon.ask_json(&["ps", "--all", "-o", "json"]).unwrap();
    containers.as_array().unwrap().iter().filter(|container| container["id"] == id).cloned().collect()
}

/// The only container with this id of the one who wrote its bundle.
fn by(daemon: &Daemon, id: &str, who: &str) -> Option<Value> {
    let mut all = all(daemon, id).into_iter().filter(|container| container["annotations"]["who"] == who);
    let found = all.next();
    assert!(all.next().is_none(), "told once");
    found
}

#[test]
fn containers_with_one_id_on_the_host_and_inside_another_are_two_and_both_are_held() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    let house = House::new(Oci::Runc)?;
    let daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let mut place = Place::new(&house, "a")?;
    let mntns = kernel::namespace(place.pid, "mnt")?.to_string();
    eventually("the place is known", || daemon.ask(&["lookup", "--mntns", &mntns]).ok().filter(|said| said.code == 0));
    let id = "nested-twin";
    let theirs = house.path("bundles").join("twin");
    write_bundle(&house, &place.bundles(""), "twin", "inside", 714_001)?;
    let ours = write_bundle(&house, &house.path("bundles"), "twin", "host", 714_002)?;
    assert_eq!(ours.path(), theirs, "one path");

    let host = house.runtime().create(&ours, id)?;
    place.create(&theirs, id)?;
    place.start(id)?;
    host.start()?;

    let graded = |who| eventually("it is graded", || by(&daemon, id, who).filter(|found| found["grade"] == "held"));
    let (nested, own) = (graded("inside"), graded("host"));
    let pid = sleeper(714_001);
    assert_eq!((&nested["pid"], &own["pid"]), (&json!(pid), &json!(host.pid())), "{nested:#} {own:#}");
    assert_eq!(nested["mntns"], json!(kernel::namespace(pid, "mnt")?));
    let domain = json!({"container": {"pid": place.pid, "start_ticks": kernel::start_ticks(place.pid)?}});
    assert_eq!((&nested["domain"], &own["domain"]), (&domain, &Value::Null));
    assert_eq!(all(&daemon, id).len(), 2);
    Ok(())
}
