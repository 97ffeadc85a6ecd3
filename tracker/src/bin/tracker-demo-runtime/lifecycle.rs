//! What happens to a container after `create`.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read};
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{self, SigSet, Signal};
use nix::unistd::{Pid, alarm};
use serde_json::json;
use tracker::container::TaskId;
use tracker::source::task::Task;

use crate::state::{Failure, StateDir};

/// How long init may take to answer a `start`, or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lets init go on to its entrypoint.
pub(crate) fn start(dir: &StateDir) -> Result<(), Failure> {
    let path = dir.fifo();
    // Not waiting for init at the open: it may have died.
    let fifo = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path);
    let mut fifo = fifo.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Failure::new(format!("container `{}` has been started already", dir.id())),
        _ => Failure::of(format!("open `{}`", path.display()), error),
    })?;
    let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    let mut waiting = [PollFd::new(fifo.as_fd(), PollFlags::POLLIN)];
    if dir.read().is_ok_and(|state| !lives(state.task())) {
        return Err(Failure::new(format!("the init process of `{}` has ended", dir.id())));
    }
    poll(&mut waiting, patience).map_err(|error| Failure::of("wait for init", error))?;
    let mut byte = [0];
    match fifo.read(&mut byte) {
        Ok(1) => fs::remove_file(&path).map_err(|error| Failure::of(format!("remove `{}`", path.display()), error)),
        _ => Err(Failure::new(format!("the init process of `{}` does not answer", dir.id()))),
    }
}

/// The state, as the OCI runtime specification wants it.
pub(crate) fn state(dir: &StateDir) -> Result<String, Failure> {
    let state = dir.read()?;
    let status = match (lives(state.task()), dir.fifo().exists()) {
        (false, _) => "stopped",
        (true, true) => "created",
        (true, false) => "running",
    };
    let pid = if status == "stopped" { 0 } else { state.task().pid };
    let state = json!({"ociVersion": "1.0.2", "id": dir.id().as_str(), "status": status, "pid": pid,
        "bundle": state.bundle()});
    Ok(state.to_string())
}

/// Sends a signal to init.
pub(crate) fn kill(dir: &StateDir, signal: &str) -> Result<(), Failure> {
    send(dir.read()?.task(), named(signal)?)
}

/// Removes what is left of a container.
pub(crate) fn delete(dir: &StateDir, force: bool) -> Result<(), Failure> {
    // Without a state file there is only a directory.
    let Ok(state) = dir.read() else { return dir.remove() };
    if lives(state.task()) {
        if !force {
            return Err(Failure::new(format!("container `{}` is not stopped", dir.id())));
        }
        send(state.task(), Signal::SIGKILL)?;
        eventually("end init", || !lives(state.task()))?;
    }
    if let Some(cgroup) = &state.cgroup {
        // The last task may still be leaving.
        let removed = || match fs::remove_dir(cgroup) {
            Ok(()) => true,
            Err(error) => error.kind() == ErrorKind::NotFound,
        };
        eventually(&format!("remove `{}`", cgroup.display()), removed)?;
    }
    dir.remove()
}

/// The entrypoint of containers that have none of their own: init of a pid namespace, without children. Ends when it
/// is told to, or by itself after some time.
pub(crate) fn init(seconds: Option<NonZeroU32>, exit_code: u8) -> Result<ExitCode, Failure> {
    let mut ends = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGALRM] {
        ends.add(signal);
    }
    // What is not blocked does not reach the first process of a pid namespace at all.
    ends.thread_block().map_err(|error| Failure::of("block signals", error))?;
    if let Some(seconds) = seconds {
        alarm::set(seconds.get());
    }
    let signal = ends.wait().map_err(|error| Failure::of("wait for a signal", error))?;
    Ok(if signal == Signal::SIGALRM { ExitCode::from(exit_code) } else { ExitCode::SUCCESS })
}

fn named(signal: &str) -> Result<Signal, Failure> {
    let by_number = signal.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    let by_name = || Signal::from_str(&format!("SIG{}", signal.trim_start_matches("SIG"))).ok();
    by_number.or_else(by_name).ok_or_else(|| Failure::new(format!("unknown signal `{signal}`")))
}

fn send(task: TaskId, signal: Signal) -> Result<(), Failure> {
    if !lives(task) {
        return Err(Failure::new("the init process has ended"));
    }
    match signal::kill(Pid::from_raw(task.pid as i32), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(Failure::of(format!("send {signal} to {}", task.pid), error)),
    }
}

/// Whether it is this very process and no zombie: that has no mount namespace any more.
fn lives(task: TaskId) -> bool {
    Task::open(task.pid).is_ok_and(|found| found.is(task) && found.namespaces().mnt != 0)
}

fn eventually(tried: &str, mut done: impl FnMut() -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        if Instant::now() > deadline {
            return Err(Failure::new(format!("{tried}: not within {PATIENCE:?}")));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
