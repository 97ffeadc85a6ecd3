//! OCI runtimes, run by hand the way their callers run them.
//!
//! Each test uses a private copy of the binary: a barrier may mark it without holding anybody else's containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bundle::Bundle;
use crate::{kernel, process, requirement};

/// Which runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `runc`
    Runc,
    /// `crun`
    Crun,
}

impl Kind {
    /// Its program's name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Runc => "runc",
            Kind::Crun => "crun",
        }
    }

    /// What it needs of the machine.
    pub fn requirement(self) -> Result<PathBuf, String> {
        requirement::root()?;
        requirement::program("busybox")?;
        if self == Kind::Crun {
            kernel::v2_without_controllers()?;
        }
        requirement::program(self.name())
    }
}

/// A private copy of a runtime, with a state directory of its own.
pub struct Runtime {
    program: PathBuf,
    root: PathBuf,
}

impl Runtime {
    /// Copies the machine's runtime into `directory`.
    pub fn copy(kind: Kind, directory: &Path) -> Result<Runtime> {
        let original = kind.requirement().map_err(anyhow::Error::msg)?;
        let program = directory.join("bin").join(kind.name());
        let root = directory.join(format!("{}-state", kind.name()));
        fs::create_dir_all(directory.join("bin")).context("create a directory for a runtime")?;
        fs::create_dir_all(&root).context("create a state directory for a runtime")?;
        process::copy_program(&original, &program)?;
        Ok(Runtime { program, root })
    }

    /// The private copy.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its state directory, as given with `--root`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The runtime with its global options, to be completed with a verb.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root);
        command
    }

    /// `create`: its init waits until [`Container::start`].
    pub fn create<'a>(&'a self, bundle: &Bundle, id: &str) -> Result<Container<'a>> {
        self.make("create", &[], bundle, id)
    }

    /// `run --detach`
    pub fn run<'a>(&'a self, bundle: &Bundle, id: &str) -> Result<Container<'a>> {
        self.make("run", &["--detach"], bundle, id)
    }

    fn make<'a>(&'a self, verb: &str, options: &[&str], bundle: &Bundle, id: &str) -> Result<Container<'a>> {
        let pid_file = bundle.path().join("pid");
        // Made first: whatever is left of a failed attempt is removed, too.
        let mut container = Container { runtime: self, id: id.to_owned(), pid: 0, took: Duration::ZERO };
        let mut command = self.command();
        command.arg(verb).args(options).arg("--bundle").arg(bundle.path()).arg("--pid-file").arg(&pid_file).arg(id);
        container.took = process::run(&mut command)?;
        let pid = fs::read_to_string(&pid_file).with_context(|| format!("read `{}`", pid_file.display()))?;
        container.pid = pid.trim().parse().with_context(|| format!("a pid, not `{pid}`"))?;
        Ok(container)
    }
}

/// A container that is deleted, running or not, when dropped.
pub struct Container<'a> {
    runtime: &'a Runtime,
    id: String,
    pid: u32,
    took: Duration,
}

impl Container<'_> {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its init's pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How long `create` or `run` took.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// `start`; returns how long it took.
    pub fn start(&self) -> Result<Duration> {
        process::run(self.runtime.command().args(["start", &self.id]))
    }

    /// `kill` with a signal's name.
    pub fn kill(&self, signal: &str) -> Result<()> {
        process::run(self.runtime.command().args(["kill", &self.id, signal])).map(drop)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // It may never have come to life, or be gone already.
        let _ = process::run(self.runtime.command().args(["delete", "--force", &self.id]));
    }
}
