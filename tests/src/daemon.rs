//! The tracker's own daemon and its commands, as a person uses them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
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
    wrapper: Vec<OsString>,
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
    /// Starts it with this configuration (TOML) and waits until it answers. It looks for no runtimes, of which others may
    /// run on this machine, unless the configuration has a section `[find]`, and has a plane of its own without anything
    /// pinned ([`Daemon::plane`]), unless it has a section `[plane]`.
    pub fn start(config: &str) -> Result<Daemon> {
        Self::start_by(&[], config)
    }

    /// The same through another program, which is given the tracker's command line as its last arguments and executes it.
    pub fn start_by(wrapper: &[&OsStr], config: &str) -> Result<Daemon> {
        let program = requirement::tracker().map_err(anyhow::Error::msg)?;
        let directory =
            tempfile::Builder::new().prefix("trk-").tempdir().context("create a directory for the tracker")?;
        let file = directory.path().join("config.toml");
        let unless_told = if config.contains("[find]") { "" } else { "\n[find]\nenabled = false\n" };
        let plane = format!("\n[plane]\npath = '{}'\npins = ''\n", directory.path().join("plane").display());
        let plane = if config.contains("[plane]") { "" } else { &plane };
        fs::write(&file, format!("{config}{unless_told}{plane}"))
            .with_context(|| format!("write `{}`", file.display()))?;
        let wrapper: Vec<OsString> = wrapper.iter().map(OsString::from).collect();
        let process = run(&wrapper, &program, directory.path())?;
        let mut daemon = Daemon { process, program, wrapper, directory };
        daemon.wait_until_it_answers()?;
        Ok(daemon)
    }

    /// Starts it again, killed or still running, on the same socket with the same configuration.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.ended()?.is_none() {
            self.process.signal(Signal::SIGKILL)?;
            self.process.wait(PATIENCE)?;
        }
        self.process = run(&self.wrapper, &self.program, self.directory.path())?;
        self.wait_until_it_answers()
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let ready = within(PATIENCE, || match self.process.ended() {
            Ok(None) => self.ask(&["sources"]).ok().filter(|said| said.code == 0).map(|_| true),
            _ => Some(false),
        });
        if ready != Some(true) {
            bail!("the tracker does not answer: {}", self.log());
        }
        Ok(())
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The process that owns its fanotify group, while there is one.
    pub fn keeper(&self) -> Option<u32> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.process.pid())).ok()?.flatten();
        let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        let pids: Vec<u32> = children.flat_map(|list| numbers(&list)).collect();
        pids.into_iter().find(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "tracker-keeper")
        })
    }

    /// Its debug socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    /// Its plane, unless the configuration told another.
    pub fn plane(&self) -> PathBuf {
        self.directory.path().join("plane")
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

    /// The container of this id, or what stands for a mount ns or a pid, if it is known at all: its latest run.
    pub fn find(&self, id: &str) -> Option<Value> {
        let containers = self.ask_json(&["ps", "--all", "-o", "json"]).ok()?;
        containers.as_array()?.iter().find(|container| container["id"] == id).cloned()
    }

    /// The container of this id, when it is in this state.
    pub fn in_state(&self, id: &str, state: &str) -> Option<Value> {
        self.find(id).filter(|container| container["state"] == state)
    }

    /// The lines of `tracker sources` about one source.
    pub fn sources(&self, source: &str) -> Result<Vec<Value>> {
        let lines = self.ask_json(&["sources", "-o", "json"])?;
        let lines = lines.as_array().with_context(|| format!("a list, not {lines}"))?;
        Ok(lines.iter().filter(|line| line["source"] == source).cloned().collect())
    }

    /// Asks its socket as any program may, and returns the status and the whole answer.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let mut stream = UnixStream::connect(self.socket()).context("connect to the tracker")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: tracker\r\nconnection: close\r\n");
        // It may be refused before all of it was read.
        let _ = write!(stream, "{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}");
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("an answer to `{method} {path}`, not `{answer}` ({read:?})"))?;
        Ok((status, answer))
    }

    /// The sum of a counter or gauge over all its labels, as `/metrics` has it.
    pub fn metric(&self, name: &str) -> Result<f64> {
        self.sum(name, |line| line.split(['{', ' ']).next() == Some(name))
    }

    /// A counter of calls of one source that are for this.
    pub fn calls(&self, source: &str, call: &str) -> Result<f64> {
        let sample = format!("tracker_{source}_calls_total{{call=\"{call}\"}} ");
        self.sum(&sample, |line| line.starts_with(&sample))
    }

    fn sum(&self, name: &str, is_it: impl Fn(&str) -> bool) -> Result<f64> {
        let (_, text) = self.request("GET", "/metrics", "")?;
        let mut values = text.lines().filter(|line| is_it(line)).peekable();
        values.peek().with_context(|| format!("find `{name}` in: {text}"))?;
        Ok(values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
    }

    /// Ends it as an operator does, and returns its exit code.
    pub fn stop(mut self) -> Result<Option<i32>> {
        self.process.signal(Signal::SIGTERM)?;
        Ok(self.process.wait(PATIENCE)?.code())
    }
}

fn numbers(list: &str) -> Vec<u32> {
    list.split(' ').filter_map(|number| number.parse().ok()).collect()
}

/// Starts `tracker run` with what lies in `directory`.
fn run(wrapper: &[OsString], program: &Path, directory: &Path) -> Result<Process> {
    let mut words = wrapper.iter().map(OsString::as_os_str).chain([program.as_os_str()]);
    let mut command = Command::new(words.next().expect("the program at least"));
    command.args(words).arg("--socket").arg(directory.join("sock")).arg("run");
    command.arg("--config").arg(directory.join("config.toml"));
    Process::start(&mut command, &directory.join("log"))
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
