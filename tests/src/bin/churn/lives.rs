//! The ways in which a container comes to life, and how it ends: by a SIGKILL to its init, always.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use tracker::BootTime;
use tracker_tests::bundle::{Bundle, RootFs};
use tracker_tests::containerd::Containerd;
use tracker_tests::runc::{Container, Kind, Runtime};
use tracker_tests::{kernel, process};

/// How a container is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// `runc create`, then `runc start`
    CreateStart,
    /// `ctr run`
    Containerd,
    /// `runc run`
    Run,
}

/// What all lives share.
pub(crate) struct Place<'a> {
    directory: &'a Path,
    root: RootFs,
    runtime: Runtime,
    containerd: &'a Containerd,
}

/// What the bench knows about one container, by having started it.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) id: String,
    pub(crate) mntns: u32,
    /// A moment at which its entrypoint was running, or about to.
    pub(crate) at: BootTime,
    /// How long the command took that a tracker could hold.
    pub(crate) start: Duration,
    pub(crate) killed: BootTime,
}

/// A container that is running.
pub(crate) struct Running<'a> {
    life: Life,
    pid: u32,
    ends: Ends<'a>,
}

enum Ends<'a> {
    Runtime { container: Container<'a>, bundle: Bundle },
    Containerd(&'a Containerd),
}

impl Way {
    pub(crate) const ALL: [Way; 3] = [Way::CreateStart, Way::Containerd, Way::Run];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::CreateStart => "create-start",
            Way::Containerd => "containerd",
            Way::Run => "run",
        }
    }

    pub(crate) fn full_number(self) -> usize {
        match self {
            Way::CreateStart => 10_000,
            Way::Containerd | Way::Run => 1_000,
        }
    }

    /// Brings a container to life.
    pub(crate) fn begin<'a>(self, place: &'a Place<'_>, id: &str) -> Result<Running<'a>> {
        let arguments = ["/bin/sleep", "1000"];
        let bundle = || Bundle::create(place.directory, id, &place.root, &arguments);
        match self {
            Way::CreateStart => {
                let bundle = bundle()?;
                let container = place.runtime.create(&bundle, id)?;
                let start = container.start()?;
                Running::new(id, container.pid(), start, Ends::Runtime { container, bundle })
            }
            Way::Run => {
                let bundle = bundle()?;
                let container = place.runtime.run(&bundle, id)?;
                Running::new(id, container.pid(), container.took(), Ends::Runtime { container, bundle })
            }
            Way::Containerd => {
                let pid_file = place.directory.join(format!("{id}.pid"));
                let start = Instant::now();
                place.containerd.run("default", id, &["--pid-file", &pid_file.to_string_lossy()], &arguments)?;
                let start = start.elapsed();
                let pid = fs::read_to_string(&pid_file).with_context(|| format!("read `{}`", pid_file.display()))?;
                fs::remove_file(&pid_file).with_context(|| format!("remove `{}`", pid_file.display()))?;
                let pid = pid.trim().parse().with_context(|| format!("a pid, not `{pid}`"))?;
                Running::new(id, pid, start, Ends::Containerd(place.containerd))
            }
        }
    }
}

impl<'a> Place<'a> {
    pub(crate) fn create(directory: &'a Path, containerd: &'a Containerd) -> Result<Place<'a>> {
        let runtime = Runtime::copy(Kind::Runc, directory)?;
        Ok(Place { directory, root: RootFs::create(directory)?, runtime, containerd })
    }

    /// Tells a tracker of the runtimes and the daemon that are used here.
    pub(crate) fn config(&self, containerd: &Containerd) -> String {
        format!(
            "[barrier]\nruntimes = [{:?}, {:?}]\n[containerd]\nsockets = [{:?}]\n",
            self.runtime.program(),
            containerd.runtime().program(),
            containerd.socket()
        )
    }
}

impl<'a> Running<'a> {
    fn new(id: &str, pid: u32, start: Duration, ends: Ends<'a>) -> Result<Running<'a>> {
        let mntns = kernel::namespace(pid, "mnt").with_context(|| format!("read the mount ns of {pid}"))?;
        let at = BootTime::now();
        Ok(Running { life: Life { id: id.to_owned(), mntns, at, start, killed: at }, pid, ends })
    }

    pub(crate) fn life(&self) -> &Life {
        &self.life
    }

    /// Kills it and cleans up.
    pub(crate) fn end(mut self) -> Result<Life> {
        self.life.killed = BootTime::now();
        kill(process::pid(self.pid), Signal::SIGKILL).with_context(|| format!("kill {}", self.pid))?;
        match self.ends {
            Ends::Runtime { container, bundle } => {
                drop(container);
                fs::remove_dir_all(bundle.path()).context("remove a bundle")?;
            }
            Ends::Containerd(containerd) => {
                containerd.ctr("default", &["tasks", "delete", "--force", &self.life.id])?;
                containerd.ctr("default", &["containers", "delete", &self.life.id])?;
            }
        }
        Ok(self.life)
    }
}
