//! A process that ends with the test.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::{PATIENCE, within};

/// A child that is killed and waited for when dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts it, without standard input; what it prints goes to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Process> {
        Self::start_with(command, Stdio::null(), log)
    }

    /// The same with this standard input.
    pub fn start_with(command: &mut Command, input: Stdio, log: &Path) -> Result<Process> {
        let out = fs::File::create(log).with_context(|| format!("create `{}`", log.display()))?;
        let err = out.try_clone().context("duplicate the log's descriptor")?;
        let child = command.stdin(input).stdout(out).stderr(err).spawn();
        Ok(Process { child: child.with_context(|| format!("start {command:?}"))? })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(pid(self.pid()), signal).with_context(|| format!("send {signal} to {}", self.pid()))
    }

    /// Kills its children: `nsenter` leaves the one behind that it waits for.
    pub fn kill_children(&self) {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid())).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
            let _ = kill(pid(child), Signal::SIGKILL);
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Asks it to end, as an operator does, and waits until it has.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.wait(PATIENCE).map(drop)
    }

    /// Waits for its end.
    pub fn wait(&mut self, time: Duration) -> Result<ExitStatus> {
        let ended = within(time, || self.child.try_wait().transpose());
        ended
            .with_context(|| format!("process {} has not ended within {time:?}", self.child.id()))?
            .context("wait for a child")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended and was waited for, which is what they are for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end without capturing through pipes: a container it leaves behind would hold them open.
/// Returns how long it took.
pub fn run(command: &mut Command) -> Result<Duration> {
    let log = tempfile::NamedTempFile::new().context("create a file for a command's output")?;
    let (out, err) = (log.reopen()?, log.reopen()?);
    let start = std::time::Instant::now();
    let status = command.stdin(Stdio::null()).stdout(out).stderr(err).status();
    let took = start.elapsed();
    let status = status.with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}: {}", fs::read_to_string(log.path()).unwrap_or_default().trim_end());
    }
    Ok(took)
}

/// Copies a program that is going to be executed.
///
/// By another process: a program that this one has open for writing cannot be executed, and a test that forks at that
/// moment keeps it open a little longer.
pub fn copy_program(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("--").arg(from).arg(to)).map(drop)
}

/// A pid as nix takes it.
pub fn pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("pids are below 2^22"))
}
