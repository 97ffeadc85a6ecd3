//! The tracker's own daemon and its commands, as a person uses them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::Process;
use crate::requirement;
use crate::wait::{PATIENCE, within};

/// A running `tracker run` with a socket of its own. Ends when dropped.
pub struct Daemon {
    process: Process,
    program: PathBuf,
    directory: TempDir,
}

/// What a command printed and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Daemon {
    /// Starts it with this configuration (TOML) and waits until it answers.
    pub fn start(config: &str) -> Result<Daemon> {
        let program = requirement::tracker().map_err(anyhow::Error::msg)?;
        let directory =
            tempfile::Builder::new().prefix("trk-").tempdir().context("create a directory for the tracker")?;
        let file = directory.path().join("config.toml");
        fs::write(&file, config).with_context(|| format!("write `{}`", file.display()))?;
        let socket = directory.path().join("sock");
        let mut command = Command::new(&program);
        command.arg("--socket").arg(&socket).arg("run").arg("--config").arg(&file);
        let process = Process::start(&mut command, &directory.path().join("log"))?;
        let mut daemon = Daemon { process, program, directory };
        let ready = within(PATIENCE, || match daemon.process.ended() {
            Ok(None) => daemon.ask(&["sources"]).ok().filter(|said| said.code == 0).map(|_| true),
            _ => Some(false),
        });
        if ready != Some(true) {
            bail!("the tracker does not answer: {}", daemon.log());
        }
        Ok(daemon)
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its debug socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Runs one of its commands: `ask(&["ps", "-o", "json"])`.
    pub fn ask(&self, arguments: &[&str]) -> Result<Said> {
        ask(&self.program, &self.socket(), arguments)
    }

    /// Runs one of its commands and understands what it prints as JSON.
    pub fn ask_json(&self, arguments: &[&str]) -> Result<Value> {
        let said = self.ask(arguments)?;
        if said.code != 0 {
            bail!("`tracker {}` ended with {}: {}", arguments.join(" "), said.code, said.err.trim_end());
        }
        serde_json::from_str(&said.out).with_context(|| format!("understand `{}`", said.out))
    }

    /// Ends it as an operator does, and returns its exit code.
    pub fn stop(mut self) -> Result<Option<i32>> {
        self.process.signal(Signal::SIGTERM)?;
        Ok(self.process.wait(PATIENCE)?.code())
    }
}

/// Runs a command of the tracker against a socket, whether somebody answers there or not.
pub fn ask(program: &Path, socket: &Path, arguments: &[&str]) -> Result<Said> {
    let mut command = Command::new(program);
    command.arg("--socket").arg(socket).args(arguments).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    Ok(Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
