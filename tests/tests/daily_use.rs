//! The whole line, as a person sees it: start the tracker, start a container, ask about it, end it.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tracker_tests::bundle::{Bundle, RootFs};
use tracker_tests::containerd::{Containerd, IMAGE};
use tracker_tests::daemon::{self, Daemon};
use tracker_tests::runc::{Kind, Runtime};
use tracker_tests::wait::{eventually, within};
use tracker_tests::{kernel, process, require, requirement};

/// A tracker that knows of these runtimes and this containerd, and need not be told of others.
fn config(runtimes: &[&Runtime], containerd: Option<&Containerd>) -> String {
    let paths: Vec<_> = runtimes.iter().map(|runtime| format!("{:?}", runtime.program())).collect();
    let roots: Vec<_> = runtimes.iter().map(|runtime| format!("{:?}", runtime.root())).collect();
    let sockets: Vec<_> = containerd.iter().map(|containerd| format!("{:?}", containerd.socket())).collect();
    format!(
        "node = 'here'\n[barrier]\nruntimes = [{}]\n[proc]\nroots = [{}]\n[containerd]\nsockets = [{}]\n",
        paths.join(", "),
        roots.join(", "),
        sockets.join(", ")
    )
}

/// The container of this id, when it is in this state.
fn in_state(daemon: &Daemon, id: &str, state: &str) -> Option<Value> {
    let containers = daemon.ask_json(&["ps", "--all", "-o", "json"]).ok()?;
    containers.as_array()?.iter().find(|container| container["id"] == id && container["state"] == state).cloned()
}

#[test]
fn a_container_of_containerd_is_known_by_all_its_numbers_and_to_its_end() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::program("containerd"), requirement::program("ctr"));
    require!(requirement::tracker(), kernel::btf(), kernel::permission_events());
    let containerd = Containerd::start()?;
    let digest = containerd.import_image("default")?;
    let daemon = Daemon::start(&config(&[containerd.runtime()], Some(&containerd)))?;

    containerd.run("default", "c1", &["--label", "tier=web"], &["/bin/sleep", "1000"])?;
    // Its start was held until it was known: nobody has to wait.
    let listed = daemon.ask_json(&["ps", "-o", "json"])?;
    let known = listed.as_array().into_iter().flatten().find(|container| container["id"] == "c1").cloned();
    let known = known.with_context(|| format!("find c1 in {listed}; the log:\n{}", daemon.log()))?;
    assert_eq!(known["grade"], "held", "{known}");
    let pid = containerd.pid("default", "c1")?;
    let mntns = kernel::namespace(pid, "mnt")?;
    assert_eq!(known["pid"], pid);
    assert_eq!(known["mntns"], mntns);
    assert_eq!(known["netns"], kernel::namespace(pid, "net")?);
    assert_eq!(known["runtime"]["namespace"], "default");
    let cgroup = known["cgroup"].to_string();
    assert!(cgroup.contains(&containerd.cgroup()), "{cgroup}");

    // containerd's own statements follow.
    let known = eventually("containerd has spoken", || {
        let known = in_state(&daemon, "c1", "running")?;
        (known["image"]["name"] == IMAGE && known["labels"]["tier"] == "web").then_some(known)
    });
    assert_eq!(known["image"]["digest"], digest.as_str(), "{known}");

    for lookup in [["--mntns", &mntns.to_string()], ["--pid", &pid.to_string()]] {
        let answer = daemon.ask_json(&["lookup", lookup[0], lookup[1], "-o", "json"])?;
        assert_eq!(answer["containers"][0]["id"], "c1", "{answer}");
    }
    let own = kernel::namespace(std::process::id(), "mnt")?;
    assert_eq!(daemon.ask_json(&["lookup", "--mntns", &own.to_string(), "-o", "json"])?["answer"], "host");
    let story = daemon.ask(&["explain", "c1"])?;
    assert_eq!(story.code, 0, "{}", story.err);
    for witness in ["kernel", "barrier", "containerd"] {
        assert!(story.out.contains(witness), "{witness} is not in: {}", story.out);
    }

    kill(process::pid(pid), Signal::SIGKILL)?;
    let over = eventually("the end is noticed", || in_state(&daemon, "c1", "exited"));
    assert_eq!((&over["exit"]["code"], &over["exit"]["signal"]), (&Value::from(137), &Value::from(9)), "{over}");
    assert_eq!(over["pid"], pid, "numbers stay on a container that has ended");
    assert!(daemon.metric("tracker_end_seconds_count")? >= 1.0, "how long that took is counted");
    assert_eq!(daemon.stop()?, Some(0));
    Ok(())
}

#[test]
fn containers_of_runc_and_crun_are_held_and_told_apart() -> Result<()> {
    require!(Kind::Runc.requirement(), Kind::Crun.requirement(), requirement::tracker());
    require!(kernel::btf(), kernel::permission_events());
    let directory = tempfile::tempdir()?;
    let root = RootFs::create(directory.path())?;
    let runtimes = [Runtime::copy(Kind::Runc, directory.path())?, Runtime::copy(Kind::Crun, directory.path())?];
    let daemon = Daemon::start(&config(&[&runtimes[0], &runtimes[1]], None))?;

    let mut containers = Vec::new();
    for (runtime, id) in runtimes.iter().zip(["daily-runc", "daily-crun"]) {
        let bundle = Bundle::create(directory.path(), id, &root, &["/bin/sleep", "1000"])?;
        let container = runtime.create(&bundle, id)?;
        assert!(in_state(&daemon, id, "created").is_some(), "{id} is created; the log:\n{}", daemon.log());
        container.start()?;
        containers.push(container);
    }
    for container in &containers {
        let known = daemon.ask_json(&["lookup", "--pid", &container.pid().to_string(), "-o", "json"])?;
        assert_eq!(known["containers"][0]["id"], container.id(), "{known}");
        assert_eq!(known["containers"][0]["grade"], "held", "{known}; the log:\n{}", daemon.log());
        let runtime = container.id().trim_start_matches("daily-");
        assert_eq!(known["containers"][0]["runtime"]["name"], runtime, "nothing else manages it: {known}");
    }
    Ok(())
}

#[test]
fn containers_from_before_the_tracker_are_found() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker());
    let directory = tempfile::tempdir()?;
    let root = RootFs::create(directory.path())?;
    let runtime = Runtime::copy(Kind::Runc, directory.path())?;
    let bundle = Bundle::create(directory.path(), "daily-before", &root, &["/bin/sleep", "1000"])?;
    let container = runtime.run(&bundle, "daily-before")?;

    let daemon = Daemon::start(&config(&[&runtime], None))?;
    let known = eventually("it is found", || in_state(&daemon, "daily-before", "running"));
    assert_eq!(known["pid"], container.pid(), "{known}");
    assert_eq!(known["grade"], "observed", "{known}");
    assert_eq!(known["mntns"], kernel::namespace(container.pid(), "mnt")?);
    assert_eq!(known["bundle"].as_str(), bundle.path().to_str());
    Ok(())
}

#[test]
fn a_second_tracker_on_the_same_socket_is_refused() -> Result<()> {
    require!(requirement::root(), requirement::tracker());
    let daemon = Daemon::start("")?;
    let program = requirement::tracker().map_err(anyhow::Error::msg)?;
    let second = daemon::ask(&program, &daemon.socket(), &["run"])?;
    assert_eq!(second.code, 1, "{}", second.err);
    assert!(second.err.contains(&*daemon.socket().to_string_lossy()), "{}", second.err);
    assert_eq!(daemon.ask(&["ps"])?.code, 0, "the first one goes on");
    Ok(())
}

#[test]
fn nobody_there_is_said_with_a_remedy() -> Result<()> {
    require!(requirement::tracker());
    let directory = tempfile::tempdir()?;
    let program = requirement::tracker().map_err(anyhow::Error::msg)?;
    let said = daemon::ask(&program, &directory.path().join("sock"), &["ps"])?;
    assert_eq!(said.code, 1);
    assert!(said.err.contains("tracker run"), "{}", said.err);
    Ok(())
}

#[test]
fn a_killed_tracker_leaves_nothing_that_holds_starts() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker(), kernel::permission_events());
    let directory = tempfile::tempdir()?;
    let root = RootFs::create(directory.path())?;
    let runtime = Runtime::copy(Kind::Runc, directory.path())?;
    let mut daemon = Daemon::start(&config(&[&runtime], None))?;
    daemon.process().signal(Signal::SIGKILL)?;
    daemon.process().wait(Duration::from_secs(5))?;

    let bundle = Bundle::create(directory.path(), "daily-after", &root, &["/bin/sleep", "1000"])?;
    let took = within(Duration::from_secs(20), || {
        let container = runtime.create(&bundle, "daily-after").ok()?;
        Some((container.took(), container.start().ok()?))
    });
    let (create, start) = took.context("a container starts without a tracker")?;
    // Far more than a start takes, far less than a hold that nobody ends.
    assert!(create + start < Duration::from_secs(10), "{create:?} {start:?}");
    Ok(())
}
