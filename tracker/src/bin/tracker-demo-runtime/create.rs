//! `create`: a new process in namespaces of its own, which prepares itself and then waits to be started.
//!
//! Init is cloned directly by `create`, as crun does it: its parent is the process that the tracker saw beginning, and
//! its first exec is the entrypoint's.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, clone, setns};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::wait;
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, execve, pipe2, sethostname, setsid};
use tracker::ContainerId;
use tracker::source::task::{Task, v2_mount_point};

use crate::bundle::Bundle;
use crate::fault::{Faults, Lie, Step};
use crate::state::{Failure, StateDir, StateFile, replace};

/// Enough for what init does before its entrypoint, many times over.
const STACK_LEN: usize = 1 << 20;

/// This program, from inside a container: the mount namespace has a `/proc` of its own.
const SELF: &CStr = c"/proc/self/exe";

/// Makes a container. What is left of a failed attempt is removed, except by a crash.
pub(crate) fn create(
    root: &Path,
    id: &ContainerId,
    bundle: &Path,
    pid_file: Option<&Path>,
    faults: &Faults,
) -> Result<(), Failure> {
    let bundle = Bundle::read(bundle)?;
    let state_dir = StateDir::create(root, id)?;
    let (mut init, mut cgroup) = (None, None);
    let created = (|| {
        cgroup = bundle.cgroup.as_deref().map(make_cgroup).transpose()?.flatten();
        let pid = clone_init(&bundle, &state_dir, cgroup.as_deref(), faults)?;
        init = Some(pid);
        faults.reach(Step::InitBorn)?;
        write_state(&state_dir, pid, &bundle, cgroup.clone(), faults)?;
        faults.reach(Step::StateWritten)?;
        match (pid_file, &faults.pid_file) {
            (None, _) | (_, Some(Lie::None)) => Ok(()),
            (Some(path), Some(Lie::Text(text))) => replace(path, text.as_bytes()),
            (Some(path), None) => replace(path, pid.to_string().as_bytes()),
        }
    })();
    if created.is_err() {
        if let Some(pid) = init {
            // It may have ended by itself.
            let _ = kill(pid, Signal::SIGKILL);
        }
        // The only children that there are, until there is none.
        while wait().is_ok() {}
        if let Some(cgroup) = cgroup {
            // Others may have entered it.
            let _ = fs::remove_dir(cgroup);
        }
        state_dir.remove()?;
    }
    created
}

fn write_state(
    state_dir: &StateDir,
    pid: Pid,
    bundle: &Bundle,
    cgroup: Option<PathBuf>,
    faults: &Faults,
) -> Result<(), Failure> {
    if faults.no_state_file {
        return Ok(());
    }
    let task = Task::open(pid.as_raw() as u32).and_then(|task| task.id());
    let task = task.map_err(|error| Failure::of(format!("read the start time of {pid}"), error))?;
    state_dir.write(&StateFile::new(state_dir.id(), task, faults.late_start.into(), &bundle.path, cgroup))
}

/// Makes a directory in the v2 hierarchy. A host without one has containers without cgroups of their own.
fn make_cgroup(path: &Path) -> Result<Option<PathBuf>, Failure> {
    let Some(mount_point) = v2_mount_point() else { return Ok(None) };
    let path = mount_point.join(path);
    fs::create_dir_all(&path).map_err(|error| Failure::of(format!("create `{}`", path.display()), error))?;
    Ok(Some(path))
}

/// The init process, when it is ready and waits.
fn clone_init(bundle: &Bundle, state_dir: &StateDir, cgroup: Option<&Path>, faults: &Faults) -> Result<Pid, Failure> {
    // Closed in init by its exec at the latest.
    let (ready, report) = pipe2(OFlag::O_CLOEXEC).map_err(|error| Failure::of("make a pipe", error))?;
    let mut stack = vec![0; STACK_LEN];
    let (mut ready, mut report) = (File::from(ready), Some(report));
    let init = Box::new(|| match report.take().map(|report| run_init(bundle, state_dir, cgroup, faults, report)) {
        Some(Err(_)) | None => 1,
    });
    // SAFETY: the stack is large enough, and this process has a single thread, so that its copy may do what it may.
    let pid = unsafe { clone(init, &mut stack, bundle.new_namespaces, Some(Signal::SIGCHLD as i32)) }
        .map_err(|error| Failure::of("clone init", error))?;
    // Ours has to be closed, for the end of the pipe to be seen.
    drop(report);

    // Nothing but its end, when all went well; else what went wrong.
    let mut said = String::new();
    ready.read_to_string(&mut said).map_err(|error| Failure::of("wait for init", error))?;
    match said.strip_prefix("ready") {
        Some("") => Ok(pid),
        _ => Err(Failure::of("prepare the container", if said.is_empty() { "init ended" } else { &said })),
    }
}

/// Init: tells through `report` whether it is ready, waits, and becomes the entrypoint.
fn run_init(
    bundle: &Bundle,
    state_dir: &StateDir,
    cgroup: Option<&Path>,
    faults: &Faults,
    report: OwnedFd,
) -> Result<Infallible, Failure> {
    let mut report = File::from(report);
    if let Err(failure) = prepare(bundle, cgroup) {
        // The reader is the only one who could be told.
        let _ = report.write_all(failure.to_string().as_bytes());
        return Err(failure);
    }
    let _ = report.write_all(b"ready");
    drop(report);
    if faults.init_dies {
        return Err(Failure::new("told to end"));
    }

    // Opening blocks until `start` opens the other end.
    let fifo = OpenOptions::new().write(true).open(state_dir.fifo()).and_then(|mut fifo| fifo.write_all(b"0"));
    fifo.map_err(|error| Failure::of("wait to be started", error))?;

    let own = [CString::from(c"tracker-demo-runtime"), CString::from(c"init")];
    let (program, arguments) = match bundle.arguments.as_deref() {
        Some(arguments) if !arguments.is_empty() => (arguments[0].as_c_str(), arguments),
        _ => (SELF, &own[..]),
    };
    execve(program, arguments, &bundle.environment)
        .map_err(|error| Failure::of(format!("execute `{}`", program.to_string_lossy()), error))
}

fn prepare(bundle: &Bundle, cgroup: Option<&Path>) -> Result<(), Failure> {
    if let Some(cgroup) = cgroup {
        // 0 stands for the writer, in whichever pid namespace it is.
        fs::write(cgroup.join("cgroup.procs"), "0").map_err(|error| Failure::of("enter the cgroup", error))?;
    }
    for (kind, path) in &bundle.joined_namespaces {
        let tried = || format!("join the namespace `{}`", path.display());
        let namespace = File::open(path).map_err(|error| Failure::of(tried(), error))?;
        setns(namespace, *kind).map_err(|error| Failure::of(tried(), error))?;
    }
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(|error| Failure::of("make the mounts private", error))?;
    if bundle.new_namespaces.contains(CloneFlags::CLONE_NEWPID) {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), "/proc", Some("proc"), flags, nothing)
            .map_err(|error| Failure::of("mount `/proc`", error))?;
    }
    if let Some(hostname) = bundle.hostname.as_deref()
        && bundle.new_namespaces.contains(CloneFlags::CLONE_NEWUTS)
    {
        sethostname(hostname).map_err(|error| Failure::of("set the host name", error))?;
    }
    setsid().map_err(|error| Failure::of("start a session", error))?;
    detach().map_err(|error| Failure::of("let go of the terminal", error))?;
    SigSet::empty().thread_set_mask().map_err(|error| Failure::of("unblock signals", error))
}

/// Whoever started the runtime must not wait for the container's end at a pipe.
fn detach() -> std::io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}
