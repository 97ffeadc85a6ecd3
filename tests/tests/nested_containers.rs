//! Containers made inside containers, by a runtime that has other paths and other pids than the host: they are known before
//! they run, and speak for nobody else's.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tracker_tests::bundle::Bundle;
use tracker_tests::daemon::Daemon;
use tracker_tests::house::{House, PATIENT};
use tracker_tests::process::{self, Process};
use tracker_tests::runc::Kind as Oci;
use tracker_tests::wait::{PATIENCE, eventually};
use tracker_tests::{kernel, require};

/// Which pids there are in a place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pids {
    Own,
    Hosts,
}

/// A place like a container on the same paths: a mount namespace of its own, in which the house's state directory and the
/// directory `bundles` are others than the host's.
struct Place<'a> {
    house: &'a House,
    /// Its first process, in the host's numbering.
    pid: u32,
    /// Containers to delete.
    ids: Vec<String>,
    /// Killed when all else is done, and everybody in its pid namespace with it.
    _init: Process,
}

impl<'a> Place<'a> {
    /// Makes one, which the tracker knows.
    fn new(house: &'a House, daemon: &Daemon, pids: Pids) -> Result<Place<'a>> {
        let inside = house.path("inside");
        let (state, bundles) = (inside.join("state"), inside.join("bundles"));
        for directory in [&state, &bundles, &house.path("bundles")] {
            fs::create_dir_all(directory)?;
        }
        let bind = |what: &Path, at: &Path| format!("mount --bind {} {} && ", what.display(), at.display());
        let proc = if pids == Pids::Own { "mount -t proc proc /proc && " } else { "" };
        let script = bind(&state, house.runtime().root())
            + &bind(&bundles, &house.path("bundles"))
            + proc
            + "echo ready && exec sleep 1000";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--fork", "--kill-child"]);
        command.args((pids == Pids::Own).then_some("--pid")).args(["sh", "-c", &script]);
        let log = inside.join("log");
        let init = Process::start(&mut command, &log)?;
        eventually("the place is there", || fs::read_to_string(&log).ok()?.contains("ready").then_some(()));
        let children = format!("/proc/{0}/task/{0}/children", init.pid());
        let pid = fs::read_to_string(children)?.trim().parse().context("its first process")?;
        let mntns = kernel::namespace(pid, "mnt")?.to_string();
        eventually("it is known", || daemon.ask(&["lookup", "--mntns", &mntns]).ok().filter(|said| said.code == 0));
        Ok(Place { house, pid, ids: Vec::new(), _init: init })
    }

    /// A command inside.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--mount", "--pid", "--"]).arg(program);
        command
    }

    /// The runtime inside, as everybody calls it there: by the host's own words.
    fn runtime(&self) -> Command {
        let mut command = self.command(self.house.runtime().program());
        command.arg("--root").arg(self.house.runtime().root());
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

    /// How the tracker shows whose a container is.
    fn domain(&self) -> Result<Value> {
        Ok(json!({"container": {"pid": self.pid, "start_ticks": kernel::start_ticks(self.pid)?}}))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        for id in &self.ids {
            let _ = process::run(self.runtime().args(["delete", "--force", id]));
        }
        // Those without a pid namespace outlive the one that started them.
        let _ = kill(process::pid(self.pid), Signal::SIGKILL);
    }
}

/// What the host calls `bundles` of the place.
fn inside(house: &House) -> PathBuf {
    house.path("inside/bundles")
}

/// Writes a bundle that says who wrote it and runs for that long: what finds its process, whoever counts pids.
fn write_bundle(house: &House, directory: &Path, name: &str, who: &str, seconds: u32) -> Result<Bundle> {
    Bundle::create_with(directory, name, house.root(), &["sleep", &seconds.to_string()], |config| {
        config["annotations"] = json!({ "who": who });
        // A runtime kills whoever is in its container's cgroup: those of one id are to have their own.
        config["linux"]["cgroupsPath"] = json!(format!("/nested-{who}-{seconds}"));
    })
}

/// The pid, for the host, of the process that sleeps for so long.
fn sleeper(seconds: u32) -> u32 {
    let wanted = format!("sleep\0{seconds}\0");
    eventually("it runs", || {
        let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let line = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cmdline"));
        pids.into_iter().find(|pid| line(*pid).is_ok_and(|line| line == wanted))
    })
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

fn held(daemon: &Daemon, id: &str, who: &str) -> Value {
    eventually("it is held", || by(daemon, id, who).filter(|found| found["grade"] == "held"))
}

#[test]
fn containers_with_one_id_on_the_host_and_inside_another_are_two_and_both_are_held() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    let house = House::new(Oci::Runc)?;
    let daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let mut place = Place::new(&house, &daemon, Pids::Own)?;
    let id = "nested-twin";
    write_bundle(&house, &inside(&house), "twin", "inside", 714_001)?;
    let bundle = write_bundle(&house, &house.path("bundles"), "twin", "host", 714_002)?;

    let host = house.runtime().create(&bundle, id)?;
    place.create(bundle.path(), id)?;
    place.start(id)?;
    host.start()?;

    let (nested, own) = (held(&daemon, id, "inside"), held(&daemon, id, "host"));
    let pid = sleeper(714_001);
    assert_eq!((&nested["pid"], &own["pid"]), (&json!(pid), &json!(host.pid())), "{nested:#} {own:#}");
    assert_eq!(nested["mntns"], json!(kernel::namespace(pid, "mnt")?));
    assert_eq!(nested["netns"], json!(kernel::namespace(pid, "net")?));
    assert_eq!((&nested["domain"], &own["domain"]), (&place.domain()?, &Value::Null));
    assert_eq!(all(&daemon, id).len(), 2);
    Ok(())
}

/// The same id, the same `--root`, the same paths: what is said inside is not about the host's.
#[test]
fn a_runtime_inside_cannot_start_or_delete_the_hosts_container() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    let house = House::new(Oci::Runc)?;
    let daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let place = Place::new(&house, &daemon, Pids::Own)?;
    let id = "nested-shadow";
    let bundle = write_bundle(&house, &house.path("bundles"), "shadow", "host", 714_003)?;
    let host = house.runtime().create(&bundle, id)?;
    let unproven = || daemon.metric("tracker_barrier_not_held_total").unwrap();
    let before = unproven();
    place.start(id).expect_err("there is none inside");
    eventually("it was looked at", || (unproven() > before).then_some(()));
    process::run(place.runtime().args(["delete", "--force", id]))?;
    let created = eventually("it is known", || by(&daemon, id, "host"));
    assert_eq!(created["state"], "created", "{created:#}");

    host.start()?;
    let started = held(&daemon, id, "host");
    assert_eq!((&started["pid"], &started["domain"]), (&json!(host.pid()), &Value::Null));
    assert_eq!(all(&daemon, id).len(), 1);
    Ok(())
}

/// Its pid file, rewritten before its start, names what it likes: an init of the host's in the host's numbering.
fn a_pid_file_inside_is_not_believed(pids: Pids, id: &str, seconds: u32) -> Result<()> {
    let house = House::new(Oci::Runc)?;
    let daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let mut place = Place::new(&house, &daemon, pids)?;
    write_bundle(&house, &inside(&house), "liar", "inside", seconds)?;
    place.create(&house.path("bundles/liar"), id)?;
    // Younger than the liar's `create`, so that its age does not speak against it.
    let victim = format!("{id}-victim");
    let bundle = write_bundle(&house, &house.path("bundles"), "victim", "host", seconds + 1)?;
    let host = house.runtime().create(&bundle, &victim)?;
    host.start()?;
    fs::write(inside(&house).join("liar/pid"), host.pid().to_string())?;
    place.start(id)?;

    let liar = held(&daemon, id, "inside");
    assert_eq!((&liar["pid"], &liar["domain"]), (&json!(sleeper(seconds)), &place.domain()?), "{liar:#}");
    let victim = held(&daemon, &victim, "host");
    assert_eq!((&victim["pid"], &victim["domain"]), (&json!(host.pid()), &Value::Null), "{victim:#}");
    Ok(())
}

#[test]
fn a_pid_file_in_another_pid_namespace_is_not_believed() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    a_pid_file_inside_is_not_believed(Pids::Own, "nested-liar", 714_004)
}

#[test]
fn a_pid_file_in_the_hosts_pid_namespace_is_not_believed_either() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    a_pid_file_inside_is_not_believed(Pids::Hosts, "nested-liar-too", 714_006)
}

/// A bundle that is reached through another process's root directory is the host's file, not the container's.
#[test]
fn a_bundle_named_through_the_hosts_root_is_not_read() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    let house = House::new(Oci::Runc)?;
    let daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let mut place = Place::new(&house, &daemon, Pids::Hosts)?;
    let secret = write_bundle(&house, &house.path("bundles"), "secret", "host", 714_008)?;
    let id = "nested-burglar";
    let magic = format!("/proc/{}/root{}", std::process::id(), secret.path().display());
    // runc reads it, and stumbles over its working directory only then.
    place.create(Path::new(&magic), id).expect_err("its working directory is in no mount namespace of its own");
    let found = eventually("it is aborted", || daemon.in_state(id, "aborted"));
    assert_eq!((&found["annotations"], &found["domain"]), (&json!({}), &place.domain()?), "{found:#}");
    let said = daemon.ask(&["explain", id])?;
    assert!(said.out.contains("config.json"), "and says so: {said:#?}, the log:\n{}", daemon.log());
    Ok(())
}

#[test]
fn a_create_that_fails_inside_ends_its_container() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    let house = House::new(Oci::Runc)?;
    let daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let mut place = Place::new(&house, &daemon, Pids::Own)?;
    let id = "nested-stillborn";
    Bundle::create(&inside(&house), "stillborn", house.root(), &["no-such-program"])?;
    place.create(&house.path("bundles/stillborn"), id).expect_err("there is no such program");
    // The kernel saw its init, which did not come to execute anything.
    let ended = eventually("it has ended", || daemon.in_state(id, "exited"));
    assert_eq!((&ended["domain"], &ended["grade"]), (&place.domain()?, &json!("first-exec")), "{ended:#}");
    Ok(())
}

#[test]
fn what_was_created_inside_unseen_is_not_held_and_not_claimed() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    let house = House::new(Oci::Runc)?;
    let mut daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let mut place = Place::new(&house, &daemon, Pids::Own)?;
    let id = "nested-foundling";
    write_bundle(&house, &inside(&house), "foundling", "inside", 714_009)?;
    daemon.process().signal(Signal::SIGKILL)?;
    daemon.process().wait(PATIENCE)?;
    place.create(&house.path("bundles/foundling"), id)?;
    daemon.restart()?;
    let looked_at = || daemon.metric("tracker_barrier_not_held_total").unwrap();
    eventually("the runtime is marked", || {
        place.start("nobody").expect_err("there is no such container");
        (looked_at() > 0.0).then_some(())
    });
    place.start(id)?;
    let pid = sleeper(714_009).to_string();
    let found = eventually("it is seen to run", || {
        let found = daemon.ask_json(&["lookup", "--pid", &pid, "-o", "json"]).ok()?["containers"][0].clone();
        (found["state"] == "running").then_some(found)
    });
    assert_eq!((&found["kind"], &found["annotations"]), (&json!("unmanaged"), &json!({})), "{found:#}");
    assert!(all(&daemon, id).is_empty());
    Ok(())
}

/// What hangs whoever looks at it, inside, costs the host's starts nothing.
#[test]
fn a_caller_inside_that_withholds_its_arguments_is_let_go_and_the_host_is_held_on() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    let house = House::new(Oci::Runc)?;
    let budget = PATIENT / 2;
    let daemon = Daemon::start(&house.config(budget, ""))?;
    let place = Place::new(&house, &daemon, Pids::Own)?;
    let id = "nested-neighbour";
    let bundle = write_bundle(&house, &house.path("bundles"), "neighbour", "host", 714_012)?;
    let host = house.runtime().create(&bundle, id)?;
    let mut command = place.command(Path::new(env!("CARGO_BIN_EXE_hung_caller")));
    command.arg("never").arg(house.runtime().program()).args(["start", "nothing"]);
    let log = house.path("hung");
    let hung = Process::start(&mut command, &log)?;
    let allowed = eventually("it is allowed", || fs::read_to_string(&log).ok()?.trim().parse::<u64>().ok());
    assert!(allowed < budget.as_millis() as u64, "before the keeper lets all go: {allowed} ms");
    // Nobody has answered anything since.
    host.start()?;
    let own = held(&daemon, id, "host");
    assert_eq!((&own["pid"], daemon.metric("tracker_barrier_let_go_total")?), (&json!(host.pid()), 0.0));
    drop(hung);
    Ok(())
}

/// A bundle of a real container in which the runtime is `/runtime`, with the libraries it needs, and the house's directory
/// `own` is `/own`.
fn outer_bundle(house: &House) -> Result<Bundle> {
    let own = house.path("own");
    fs::create_dir(&own)?;
    // Whoever comes in from the host brings all privileges along: it needs none itself.
    house.bundle_with("outer", &["sleep", "1000"], |config| {
        config["root"]["readonly"] = json!(false);
        let mounts = config["mounts"].as_array_mut().unwrap();
        let mut bind = |from: &Path, to: &str| {
            mounts.push(json!({"destination": to, "type": "bind", "source": from, "options": ["rbind"]}));
        };
        ["/usr", "/lib", "/lib64", "/sys"].into_iter().for_each(|path| bind(Path::new(path), path));
        bind(house.runtime().program(), "/runtime");
        bind(&own, "/own");
    })
}

/// Deletes a container by a runtime inside another one when dropped.
struct Deleted<'a, Run: Fn(&[&str]) -> Result<Duration>> {
    run: &'a Run,
    id: &'a str,
}

impl<Run: Fn(&[&str]) -> Result<Duration>> Drop for Deleted<'_, Run> {
    fn drop(&mut self) {
        let _ = (self.run)(&["delete", "--force", self.id]);
    }
}

/// Its bundle is named by a relative path, and is a link to where the host has another one.
#[test]
fn a_runtime_in_a_real_container_finds_its_own_files_under_the_hosts_names() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    let house = House::new(Oci::Runc)?;
    let daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let place = house.path("bundles");
    write_bundle(&house, &place, "same", "host", 714_010)?;
    let within = house.root().path().join(place.strip_prefix("/")?);
    let theirs = write_bundle(&house, &within, "same", "inside", 714_011)?;
    let outer = house.runtime().create(&outer_bundle(&house)?, "nested-outer")?;
    outer.start()?;
    let own = house.path("own");
    symlink(place.join("same"), own.join("absolute"))?;
    symlink(Path::new("../../../..").join(place.join("same").strip_prefix("/")?), own.join("upward"))?;
    // The container in it gets a root file system that is not the one around it.
    process::run(Command::new("cp").arg("-a").arg(house.root().path().join("bin")).arg(&own))?;
    for name in ["rootfs/proc", "rootfs/dev"] {
        fs::create_dir_all(own.join(name))?;
    }
    fs::rename(own.join("bin"), own.join("rootfs/bin"))?;
    let config = theirs.path().join("config.json");
    let mut changed: Value = serde_json::from_slice(&fs::read(&config)?)?;
    changed["root"]["path"] = json!("/own/rootfs");
    fs::write(&config, changed.to_string())?;

    let run = |words: &[&str]| {
        let mut command = Command::new("nsenter");
        command.args(["--target", &outer.pid().to_string(), "--mount", "--pid", "--root", "--wdns=/own"]);
        process::run(command.args(["/runtime", "--root", "state"]).args(words))
    };
    for bundle in ["absolute", "upward"] {
        let id = format!("nested-{bundle}");
        run(&["create", "--bundle", bundle, &id])?;
        let _deleted = Deleted { run: &run, id: &id };
        run(&["start", &id])?;
        let (pid, found) = (sleeper(714_011), held(&daemon, &id, "inside"));
        let init = json!({"container": {"pid": outer.pid(), "start_ticks": kernel::start_ticks(outer.pid())?}});
        assert_eq!((&found["pid"], &found["domain"]), (&json!(pid), &init), "{found:#}");
        assert_eq!(found["bundle"], format!("/own/{bundle}"));
    }
    Ok(())
}
