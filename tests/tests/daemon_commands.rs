//! A daemon and the commands that ask it, as a person uses them: a container of the real runc from its held start to its
//! end, a second daemon on the same socket, and an orderly end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tracker_tests::bundle::{Bundle, RootFs};
use tracker_tests::process::Process;
use tracker_tests::runc::{Kind, Runtime};
use tracker_tests::wait::eventually;
use tracker_tests::{require, requirement};

/// A daemon with a socket, a log and a marked runc of its own: others on this machine are not held by it.
struct Daemon {
    process: Process,
    program: PathBuf,
    socket: PathBuf,
    runtime: Runtime,
    temp: TempDir,
}

impl Daemon {
    fn start() -> Result<Daemon> {
        let temp = tempfile::tempdir()?;
        let runtime = Runtime::copy(Kind::Runc, temp.path())?;
        let config = temp.path().join("tracker.toml");
        let marked = runtime.program().display().to_string();
        fs::write(&config, format!("[barrier]\nknown-paths = false\nlearn = false\nruntimes = ['{marked}']\n"))?;
        let socket = temp.path().join("tracker.sock");
        let program = requirement::tracker().map_err(anyhow::Error::msg)?;
        let mut command = Command::new(&program);
        command.arg("run").arg("--config").arg(&config).arg("--socket").arg(&socket);
        let process = Process::start(&mut command, &temp.path().join("log"))?;
        let daemon = Daemon { process, program, socket, runtime, temp };
        eventually("the daemon holds starts", || {
            let sources = daemon.json(&["sources", "-o", "json"]).ok()?;
            let barrier = sources.as_array()?.iter().find(|line| line["source"] == "barrier")?;
            barrier["detail"].as_str()?.contains(&marked).then_some(())
        });
        Ok(daemon)
    }

    fn ask(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(&self.program).args(arguments).env("TRACKER_SOCKET", &self.socket).output().context("ask")
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.ask(arguments)?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn directory(&self) -> &Path {
        self.temp.path()
    }
}

#[test]
fn a_container_is_told_from_its_held_start_to_its_end() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), Kind::Runc.requirement());
    let daemon = Daemon::start()?;
    let root = RootFs::create(daemon.directory())?;
    let bundle = Bundle::create(daemon.directory(), "b", &root, &["sleep", "1000"])?;
    let id = format!("told-{}", std::process::id());
    let container = daemon.runtime.create(&bundle, &id)?;
    container.start()?;

    let listed = daemon.json(&["ps", "-o", "json"])?;
    let one = listed.as_array().context("an array")?.iter().find(|one| one["id"] == *id).context("it is listed")?;
    assert_eq!((&one["grade"], &one["state"]), (&"held".into(), &"running".into()));
    assert_eq!(one["pid"], container.pid());
    assert_eq!(one["bundle"], bundle.path().display().to_string());
    let mntns = one["mntns"].to_string();
    for (option, number) in
        [("--mntns", &mntns), ("--netns", &one["netns"].to_string()), ("--pid", &one["pid"].to_string())]
    {
        let found = daemon.json(&["lookup", option, number, "-o", "json"])?;
        assert_eq!((&found["answer"], &found["containers"][0]["id"]), (&"containers".into(), &one["id"]), "{option}");
    }
    let oci = daemon.json(&["inspect", &id, "--oci"])?;
    assert_eq!(oci["process"]["args"][0], "sleep");
    let story = String::from_utf8(daemon.ask(&["explain", &id])?.stdout)?;
    assert!(story.contains("held its start") && story.contains("What is missing"), "{story}");

    container.kill("KILL")?;
    let exit = eventually("its end is known", || {
        let one = daemon.json(&["inspect", &id]).ok()?;
        one.get("exit").cloned()
    });
    assert_eq!((&exit["code"], &exit["signal"]), (&137.into(), &9.into()));
    Ok(())
}

#[test]
fn a_second_daemon_is_refused_and_the_first_ends_in_order() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), Kind::Runc.requirement());
    let mut daemon = Daemon::start()?;
    let second = daemon.ask(&["run"])?;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1));
    assert!(said.contains("another tracker") && said.contains(&daemon.process.pid().to_string()), "{said}");
    assert!(daemon.ask(&["ps"])?.status.success(), "the first goes on");
    assert_eq!(daemon.ask(&["lookup", "--mntns", "1"])?.status.code(), Some(3));

    daemon.process.signal(Signal::SIGTERM)?;
    assert!(daemon.process.wait(Duration::from_secs(30))?.success());
    assert!(!daemon.socket.exists());
    assert_eq!(daemon.ask(&["ps"])?.status.code(), Some(1));
    Ok(())
}
