//! A container's directory in the root: its state file, in the form of runc's, and the FIFO its init waits at.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde::{Deserialize, Serialize};
use tracker::ContainerId;
use tracker::container::TaskId;

/// What was tried, on what, and what came back.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    pub(crate) fn of(tried: impl fmt::Display, error: impl fmt::Display) -> Self {
        Self(format!("{tried}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `<root>/<id>`.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    id: ContainerId,
}

/// The state file. runc's names, so that what reads runc's files reads these.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StateFile {
    id: String,
    init_process_pid: u32,
    /// What others read. It may be a lie: the runtime itself goes by `true_start`.
    init_process_start: u64,
    true_start: u64,
    config: Config,
    /// What wrote it, since it is not runc.
    runtime: String,
    /// The cgroup's directory, to be removed at the end.
    pub(crate) cgroup: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Config {
    labels: Vec<String>,
}

impl StateFile {
    /// The state of a container, whose init seems to have started `late_ticks` later than it did.
    pub(crate) fn new(id: &ContainerId, task: TaskId, late_ticks: u64, bundle: &Path, cgroup: Option<PathBuf>) -> Self {
        Self {
            id: id.as_str().to_owned(),
            init_process_pid: task.pid,
            init_process_start: task.start_ticks + late_ticks,
            true_start: task.start_ticks,
            config: Config { labels: vec![format!("bundle={}", bundle.display())] },
            runtime: env!("CARGO_BIN_NAME").to_owned(),
            cgroup,
        }
    }

    pub(crate) fn task(&self) -> TaskId {
        TaskId { pid: self.init_process_pid, start_ticks: self.true_start }
    }

    pub(crate) fn bundle(&self) -> &str {
        self.config.labels.iter().find_map(|label| label.strip_prefix("bundle=")).unwrap_or_default()
    }
}

impl StateDir {
    /// Makes it; there must be none yet.
    pub(crate) fn create(root: &Path, id: &ContainerId) -> Result<Self, Failure> {
        fs::create_dir_all(root).map_err(|error| Failure::of(format!("create `{}`", root.display()), error))?;
        let dir = Self { path: root.join(id.as_str()), id: id.clone() };
        fs::create_dir(&dir.path).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Failure::new(format!("container `{id}` already exists")),
            _ => Failure::of(format!("create `{}`", dir.path.display()), error),
        })?;
        let fifo = dir.fifo();
        mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|error| Failure::of(format!("create `{}`", fifo.display()), error))?;
        Ok(dir)
    }

    /// The one of a container that exists.
    pub(crate) fn open(root: &Path, id: &ContainerId) -> Result<Self, Failure> {
        let dir = Self { path: root.join(id.as_str()), id: id.clone() };
        if dir.path.is_dir() { Ok(dir) } else { Err(Failure::new(format!("container `{id}` does not exist"))) }
    }

    pub(crate) fn id(&self) -> &ContainerId {
        &self.id
    }

    /// The FIFO that init waits at; removed when it has been started.
    pub(crate) fn fifo(&self) -> PathBuf {
        self.path.join("exec.fifo")
    }

    /// Replaces the state file.
    pub(crate) fn write(&self, state: &StateFile) -> Result<(), Failure> {
        let text = serde_json::to_vec(state).map_err(|error| Failure::of("write the state as JSON", error))?;
        replace(&self.path.join("state.json"), &text)
    }

    /// Reads the state file.
    pub(crate) fn read(&self) -> Result<StateFile, Failure> {
        let path = self.path.join("state.json");
        let tried = || format!("read `{}`", path.display());
        let text = fs::read(&path).map_err(|error| Failure::of(tried(), error))?;
        serde_json::from_slice(&text).map_err(|error| Failure::of(tried(), error))
    }

    /// Removes everything.
    pub(crate) fn remove(&self) -> Result<(), Failure> {
        fs::remove_dir_all(&self.path)
            .or_else(|error: io::Error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
            .map_err(|error| Failure::of(format!("remove `{}`", self.path.display()), error))
    }
}

/// Writes a file so that whoever reads it sees all of it or nothing, as runc writes its state and pid files.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(path.file_name().unwrap_or_default());
    let temporary = path.with_file_name(hidden);
    fs::write(&temporary, content)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|error| Failure::of(format!("write `{}`", path.display()), error))
}
