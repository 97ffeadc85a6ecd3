//! Containers' whole lives, whatever runs them: for benchmarks that start many. Each ends by a SIGKILL to its init.

use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use tracker::BootTime;

use crate::bundle::{Bundle, RootFs};
use crate::containerd::Containerd;
use crate::docker::Docker;
use crate::kubelet::{Kubelet, Network, Pod};
use crate::podman::Podman;
use crate::runc::{Container, Kind, Runtime};
use crate::wait::{PATIENCE, within};
use crate::{kernel, process};

/// How a container is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `runc create`, then `runc start`.
    Runc,
    /// `crun create`, then `crun start`.
    Crun,
    /// `runc run`, which no `start` follows.
    Run,
    /// `ctr run`.
    Containerd,
    /// `docker run`, without a network.
    Docker,
    /// `podman run` by root, without a network, beside its REST service.
    Podman,
    /// A pod of one container, as a kubelet asks containerd's CRI plugin for it.
    Cri,
}

const SLEEP: [&str; 2] = ["/bin/sleep", "1000000"];

impl Way {
    /// All of them.
    pub const ALL: [Way; 7] = [Way::Runc, Way::Crun, Way::Run, Way::Containerd, Way::Docker, Way::Podman, Way::Cri];

    /// Its name, as typed and printed.
    pub fn name(self) -> &'static str {
        match self {
            Way::Runc => "runc",
            Way::Crun => "crun",
            Way::Run => "run",
            Way::Containerd => "containerd",
            Way::Docker => "docker",
            Way::Podman => "podman",
            Way::Cri => "cri",
        }
    }
}

impl Way {
    /// Whether its runtime knows images.
    pub fn has_images(self) -> bool {
        !matches!(self, Way::Runc | Way::Crun | Way::Run)
    }
}

impl FromStr for Way {
    type Err = String;

    fn from_str(name: &str) -> Result<Way, String> {
        let all = || Way::ALL.map(Way::name).join(", ");
        Way::ALL.into_iter().find(|way| way.name() == name).ok_or_else(|| format!("one of {}", all()))
    }
}

/// What all lives share: files, and the daemons that the chosen ways need.
pub struct Place {
    root: RootFs,
    runc: Runtime,
    crun: Option<Runtime>,
    containerd: Option<Containerd>,
    docker: Option<Docker>,
    podman: Option<Podman>,
    // Last: what lies in it is in use until the rest has gone.
    directory: tempfile::TempDir,
}

impl Place {
    /// Starts what these ways need.
    pub fn create(ways: &[Way]) -> Result<Place> {
        let directory = tempfile::Builder::new().prefix("lives-").tempdir().context("create a directory")?;
        let uses = |wanted: &[Way]| ways.iter().any(|way| wanted.contains(way));
        let containerd = match (uses(&[Way::Cri]), uses(&[Way::Containerd])) {
            (true, _) => Some(Containerd::start_with_cri()?),
            (false, true) => Some(Containerd::start()?),
            (false, false) => None,
        };
        if let Some(containerd) = &containerd {
            containerd.import_image("default")?;
        }
        let crun = uses(&[Way::Crun]).then(|| Runtime::copy(Kind::Crun, directory.path())).transpose()?;
        let docker = uses(&[Way::Docker]).then(Docker::start).transpose()?;
        let mut podman = uses(&[Way::Podman]).then(Podman::start).transpose()?;
        podman.as_mut().map(Podman::serve).transpose()?;
        Ok(Place {
            root: RootFs::create(directory.path())?,
            runc: Runtime::copy(Kind::Runc, directory.path())?,
            crun,
            containerd,
            docker,
            podman,
            directory,
        })
    }

    /// A tracker's configuration (TOML) that knows the runtimes and daemons of this place, and no others.
    pub fn config(&self) -> String {
        let containerds = [self.containerd.as_ref(), self.docker.as_ref().map(Docker::containerd)];
        let containerds: Vec<&Containerd> = containerds.into_iter().flatten().collect();
        let runtimes = [Some(&self.runc), self.crun.as_ref()].into_iter().flatten();
        let runtimes = runtimes.chain(containerds.iter().map(|containerd| containerd.runtime()));
        let (runtimes, roots): (Vec<&Path>, Vec<&Path>) =
            runtimes.map(|runtime| (runtime.program(), runtime.root())).unzip();
        let sockets: Vec<_> = containerds.iter().map(|containerd| containerd.socket()).collect();
        let docker: Vec<_> = self.docker.iter().map(Docker::socket).collect();
        let podman: Vec<_> = self.podman.iter().map(Podman::socket).collect();
        let cri: Vec<_> = self.containerd.iter().map(Containerd::socket).collect();
        format!(
            "[find]\nenabled = false\n[barrier]\nruntimes = {runtimes:?}\n[proc]\nroots = {roots:?}\n\
             [containerd]\nsockets = {sockets:?}\nsockets-if-present = []\n\
             [docker]\nsockets = {docker:?}\nsockets-if-present = []\n\
             [podman]\nsockets = {podman:?}\nsockets-if-present = []\n\
             [cri]\nsockets = {cri:?}\nsockets-if-present = []\n"
        )
    }

    /// Has the runtime itself list its containers, as a person would; returns how long that takes.
    pub fn list(&self, way: Way) -> Result<Duration> {
        let start = Instant::now();
        match way {
            Way::Runc | Way::Run => process::run(self.runc.command().arg("list")).map(drop)?,
            Way::Crun => {
                let crun = self.crun.as_ref().context("this place has no crun")?;
                process::run(crun.command().arg("list")).map(drop)?;
            }
            Way::Containerd => self.containerd()?.ctr("default", &["tasks", "list"]).map(drop)?,
            Way::Docker => self.docker()?.cli(&["ps", "--all"]).map(drop)?,
            Way::Podman => self.podman()?.podman(&["ps", "--all"]).map(drop)?,
            Way::Cri => self.containerd()?.ctr("k8s.io", &["tasks", "list"]).map(drop)?,
        }
        Ok(start.elapsed())
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn docker(&self) -> Result<&Docker> {
        self.docker.as_ref().context("this place has no dockerd")
    }

    fn podman(&self) -> Result<&Podman> {
        self.podman.as_ref().context("this place has no podman")
    }

    fn containerd(&self) -> Result<&Containerd> {
        self.containerd.as_ref().context("this place has no containerd")
    }
}

/// One who starts containers, one after the other.
pub struct Starter<'a> {
    place: &'a Place,
    way: Way,
    kubelet: Option<Kubelet>,
}

/// What is known about one container, by having started it.
#[derive(Clone, Debug)]
pub struct Life {
    /// The id that its runtime gave it.
    pub id: String,
    /// Its mount namespace.
    pub mntns: u32,
    /// A moment at which its entrypoint was running, or about to.
    pub at: BootTime,
    /// How long the command took that a tracker could hold.
    pub start: Duration,
    /// When it was killed.
    pub killed: BootTime,
}

/// A container that is running.
pub struct Running<'a> {
    life: Life,
    pid: u32,
    ends: Ends<'a>,
}

enum Ends<'a> {
    Runtime { container: Container<'a>, bundle: Bundle },
    Containerd(&'a Containerd),
    Docker(&'a Docker),
    Podman(&'a Podman),
    Pod(Box<Pod>),
}

impl<'a> Starter<'a> {
    /// For containers of this way.
    pub fn new(place: &'a Place, way: Way) -> Result<Starter<'a>> {
        let kubelet = match way {
            Way::Cri => Some(Kubelet::connect(place.containerd()?)?),
            _ => None,
        };
        Ok(Starter { place, way, kubelet })
    }

    /// Brings a container to life.
    pub fn begin(&mut self, name: &str) -> Result<Running<'a>> {
        match self.way {
            Way::Runc => self.create_and_start(&self.place.runc, name),
            Way::Crun => self.create_and_start(self.place.crun.as_ref().context("this place has no crun")?, name),
            Way::Run => {
                let bundle = self.bundle(name)?;
                let container = self.place.runc.run(&bundle, name)?;
                Running::new(name, container.pid(), container.took(), Ends::Runtime { container, bundle })
            }
            Way::Containerd => self.by_containerd(name),
            Way::Docker => {
                let docker = self.place.docker()?;
                let start = Instant::now();
                let id = docker.run(&["--network", "none", "--name", name], &SLEEP)?;
                let start = start.elapsed();
                Running::new(&id, docker.pid(&id)?, start, Ends::Docker(docker))
            }
            Way::Podman => {
                let podman = self.place.podman()?;
                let start = Instant::now();
                let id = podman.run(name, &[], &SLEEP)?;
                let start = start.elapsed();
                let pid = podman.podman(&["inspect", "--format", "{{.State.Pid}}", &id])?;
                let pid = pid.trim().parse().with_context(|| format!("a pid, not `{pid}`"))?;
                Running::new(&id, pid, start, Ends::Podman(podman))
            }
            Way::Cri => self.by_cri(name),
        }
    }

    /// Kills a container and cleans up.
    pub fn end(&mut self, running: Running<'a>) -> Result<Life> {
        let Running { mut life, pid, ends } = running;
        life.killed = BootTime::now();
        kill(process::pid(pid), Signal::SIGKILL).with_context(|| format!("kill {pid}"))?;
        match ends {
            Ends::Runtime { container, bundle } => {
                drop(container);
                fs::remove_dir_all(bundle.path()).context("remove a bundle")?;
            }
            Ends::Containerd(containerd) => {
                containerd.ctr("default", &["tasks", "delete", "--force", &life.id])?;
                containerd.ctr("default", &["containers", "delete", &life.id])?;
            }
            Ends::Docker(docker) => docker.cli(&["rm", "--force", &life.id]).map(drop)?,
            Ends::Podman(podman) => {
                // Which fails as long as its conmon has not noted the end.
                let mut said = Ok(());
                let removed = within(PATIENCE, || {
                    said = podman.podman(&["rm", "--force", "--time", "0", &life.id]).map(drop);
                    said.is_ok().then_some(())
                });
                removed.map_or(said, Ok)?;
            }
            Ends::Pod(pod) => self.kubelet()?.remove_pod(&pod)?,
        }
        Ok(life)
    }

    fn create_and_start(&self, runtime: &'a Runtime, name: &str) -> Result<Running<'a>> {
        let bundle = self.bundle(name)?;
        let container = runtime.create(&bundle, name)?;
        let start = container.start()?;
        Running::new(name, container.pid(), start, Ends::Runtime { container, bundle })
    }

    fn by_containerd(&self, name: &str) -> Result<Running<'a>> {
        let containerd = self.place.containerd()?;
        let pid_file = self.place.directory().join(format!("{name}.pid"));
        let start = Instant::now();
        containerd.run("default", name, &["--pid-file", &pid_file.to_string_lossy()], &SLEEP)?;
        let start = start.elapsed();
        let pid = fs::read_to_string(&pid_file).with_context(|| format!("read `{}`", pid_file.display()))?;
        fs::remove_file(&pid_file).with_context(|| format!("remove `{}`", pid_file.display()))?;
        let pid = pid.trim().parse().with_context(|| format!("a pid, not `{pid}`"))?;
        Running::new(name, pid, start, Ends::Containerd(containerd))
    }

    fn by_cri(&mut self, name: &str) -> Result<Running<'a>> {
        let kubelet = self.kubelet()?;
        let pod = kubelet.run_pod("bench", name, Network::Host)?;
        let start = Instant::now();
        let id = kubelet.start(&pod, "only", 0, &SLEEP)?;
        let start = start.elapsed();
        let pid = kubelet.status(&id)?.pid;
        Running::new(&id, pid, start, Ends::Pod(Box::new(pod)))
    }

    fn kubelet(&mut self) -> Result<&mut Kubelet> {
        self.kubelet.as_mut().context("only pods have a kubelet")
    }

    fn bundle(&self, name: &str) -> Result<Bundle> {
        Bundle::create(self.place.directory(), name, &self.place.root, &SLEEP)
    }
}

impl<'a> Running<'a> {
    fn new(id: &str, pid: u32, start: Duration, ends: Ends<'a>) -> Result<Running<'a>> {
        let mntns = kernel::namespace(pid, "mnt").with_context(|| format!("read the mount ns of {pid}"))?;
        let at = BootTime::now();
        Ok(Running { life: Life { id: id.to_owned(), mntns, at, start, killed: at }, pid, ends })
    }

    /// What is known about it.
    pub fn life(&self) -> &Life {
        &self.life
    }
}
