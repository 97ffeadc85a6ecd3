//! `tracker demo`: a live list on a host without any container runtime.
//!
//! Runs a tracker in this process and starts containers with the demo runtime, which it knows and holds like any
//! other. On a terminal the list lives until Ctrl-C; elsewhere it is printed once. All that the demo made is removed
//! at its end, however it ends; after a `kill -9`, by the next demo.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use clap::Args;
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracker::server::api::Container as Shown;
use tracker::server::clock::WallClock;
use tracker::{Config, Container, Feed, FeedItem, FeedOptions, Handle, Selector, Tracker};

use super::columns::CONTAINER;
use super::error::Failure;
use super::output::{self, Format, ListOptions};
use super::run::live;
use super::run::log::{self, LogFormat, Recent};

/// Start a few containers of our own and show how they are seen. Needs root, and no container runtime.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Print the list once all containers are seen, and end.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    list: ListOptions,
}

/// The pod namespace of all its containers.
const POD_NAMESPACE: &str = "demo";

/// What runs all the time: pod, container, and whose net namespace it shares.
const SCENE: [(&str, &str, Option<&str>); 4] = [
    ("web-0", "nginx", None),
    ("web-0", "log-shipper", Some("web-0-nginx")),
    ("db-0", "postgres", None),
    ("cache-0", "redis", None),
];

/// How long it may take until all of it is seen.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two runs of the job that ends by itself.
const PAUSE: Duration = Duration::from_secs(4);

pub(crate) fn run(demo: &Demo, out: &mut impl Write) -> Result<(), Failure> {
    if !nix::unistd::Uid::effective().is_root() {
        let remedy = "run it with sudo: containers need new namespaces, and the tracker reads them".to_owned();
        return Err(Failure::Other { error: "the demo needs root".into(), remedy: Some(remedy) });
    }
    let is_live = !demo.once && demo.list.output == Format::Table && io::stdout().is_terminal();
    let recent = is_live.then(Recent::default);
    log::start(LogFormat::Text, recent.clone())?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before anything is made that would have to be removed.
    let mut told = runtime.block_on(async { Told::listen() })?;
    let stage = Stage::set()?;
    let tracker = Tracker::start(stage.config())?;
    let shown = thread::scope(|scope| {
        let (stop, stopped) = sync_channel(0);
        let (report, failed) = oneshot::channel();
        let stage = &stage;
        scope.spawn(move || {
            let played = if is_live { stage.play_until(&stopped) } else { stage.play_scene() };
            // There is nobody to be told when the list has ended first.
            let _ = played.map_err(|failure| report.send(failure));
        });
        let show = async {
            match &recent {
                Some(recent) => Ok(live::show(&tracker, recent).await?),
                None => print_once(&tracker, &stage.dir, &demo.list, out).await,
            }
        };
        let shown = runtime.block_on(async {
            tokio::select! {
                shown = show => shown,
                Ok(failure) = failed => Err(failure),
                () = told.end() => Ok(()),
            }
        });
        drop(stop);
        shown
    });
    // Outside of the runtime: it waits for threads.
    tracker.shutdown();
    shown
}

/// SIGTERM, Ctrl-C, and the end of the terminal.
struct Told {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Told {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// Prints the scene's containers as soon as all of them run. Another demo's have the same names: ours have their bundles
/// in `dir`.
async fn print_once(tracker: &Handle, dir: &Path, list: &ListOptions, out: &mut impl Write) -> Result<(), Failure> {
    let ours = |container: &Container| container.bundle.as_deref().is_some_and(|path| Path::new(path).starts_with(dir));
    let selector = Selector::parse("state=running").map_err(Failure::other)?;
    let options = FeedOptions { selector: selector.clone(), ..FeedOptions::new("demo") };
    let mut feed = tracker.subscribe(options).await.map_err(Failure::other)?;
    if timeout(PATIENCE, all_seen(&mut feed, ours)).await.is_err() {
        let remedy = Some("`tracker doctor` says what does not work here".to_owned());
        let error = format!("not all of the demo's containers were seen within {PATIENCE:?}");
        return Err(Failure::Other { error, remedy });
    }
    let (clock, node) = (WallClock::new(), tracker.node().into());
    let mut reader = tracker.reader();
    let shown = reader
        .select(&selector)
        .filter(|container| ours(container))
        .map(|container| Shown::new(container, &node, &clock))
        .collect();
    output::list(out, shown, CONTAINER, |container| &container.id, list)
}

async fn all_seen(feed: &mut Feed, ours: impl Fn(&Container) -> bool) {
    let mut seen = BTreeSet::new();
    while seen.len() < SCENE.len() {
        let news = match feed.next().await {
            Some(FeedItem::Bundle { containers, .. }) => containers,
            Some(FeedItem::Change(change)) => change.after.into_iter().collect(),
            Some(FeedItem::Lagged { .. }) => continue,
            None => return,
        };
        seen.extend(news.iter().filter(|container| ours(container)).map(|container| container.id.clone()));
    }
}

/// Where each demo makes its directory: a file system that is empty after a restart, whatever happened to us.
const PLACE: &str = "/run";
/// Before the demo's pid, in its directory's name.
const PREFIX: &str = "tracker-demo-";

/// Directories of demos that were killed. One that lives keeps its own; and no other process has our pid.
fn left_behind() -> impl Iterator<Item = PathBuf> {
    fs::read_dir(PLACE).into_iter().flatten().flatten().filter_map(|entry| {
        let owner: u32 = entry.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
        let lives = owner != std::process::id() && Path::new("/proc").join(owner.to_string()).exists();
        (!lives).then(|| entry.path())
    })
}

/// Directories of the demo's own, and the runtime that works in them.
struct Stage {
    runtime: PathBuf,
    dir: PathBuf,
}

impl Stage {
    fn set() -> Result<Self, Failure> {
        let runtime = std::env::current_exe()?.with_file_name("tracker-demo-runtime");
        if !runtime.is_file() {
            let remedy = "it is built with the tracker and belongs beside it".to_owned();
            return Err(Failure::Other { error: format!("find `{}`", runtime.display()), remedy: Some(remedy) });
        }
        for dir in left_behind() {
            // Of several demos that begin now, one sees to it.
            let Ok(opened) = File::open(&dir) else { continue };
            if let Ok(_lock) = Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
                drop(Self { runtime: runtime.clone(), dir });
            }
        }
        let dir = Path::new(PLACE).join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&dir).map_err(|error| Failure::other(format!("create `{}`: {error}", dir.display())))?;
        Ok(Self { runtime, dir })
    }

    /// A tracker's configuration that holds this runtime's starts and nobody else's.
    fn config(&self) -> Config {
        let mut config = Config::default();
        config.proc.roots.push(self.root());
        config.barrier.runtimes = vec![self.runtime.clone()];
        config.barrier.known_paths = false;
        config.barrier.learn = false;
        // Where neither probes nor the barrier work, scans are all that there is.
        config.scan.audit_seconds = 1;
        config
    }

    /// Names of cgroups are the whole host's.
    fn cgroup(&self, id: &str) -> String {
        format!("/tracker-demo-{}-{id}", std::process::id())
    }

    fn root(&self) -> PathBuf {
        self.dir.join("state")
    }

    fn play_scene(&self) -> Result<(), Failure> {
        SCENE.iter().try_for_each(|(pod, name, shares)| self.start(pod, name, *shares, &[]))
    }

    /// The scene, and a job that comes and goes until told to stop.
    fn play_until(&self, stopped: &Receiver<()>) -> Result<(), Failure> {
        self.play_scene()?;
        loop {
            self.start("report", "job", None, &["--seconds", "2", "--exit-code", "3"])?;
            match stopped.recv_timeout(PAUSE) {
                Err(RecvTimeoutError::Timeout) => self.runtime(&["delete", "--force", "report-job"])?,
                _ => return Ok(()),
            }
        }
    }

    /// Creates and starts the container `<pod>-<name>`.
    fn start(&self, pod: &str, name: &str, shares: Option<&str>, arguments: &[&str]) -> Result<(), Failure> {
        let id = format!("{pod}-{name}");
        let bundle = self.dir.join(&id);
        fs::create_dir_all(&bundle)?;
        let mut network = json!({"type": "network"});
        if let Some(other) = shares {
            let pid = fs::read_to_string(self.dir.join(other).join("pid"))?;
            network["path"] = json!(format!("/proc/{pid}/ns/net"));
        }
        let runtime = self.runtime.to_string_lossy();
        let arguments = [&[&*runtime, "init"], arguments].concat();
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": arguments,
                "cwd": "/",
            },
            "root": {"path": "/"},
            "hostname": pod,
            "annotations": {
                "io.kubernetes.container.name": name,
                "io.kubernetes.pod.name": pod,
                "io.kubernetes.pod.namespace": POD_NAMESPACE,
            },
            "linux": {"cgroupsPath": self.cgroup(&id), "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, network]},
        });
        fs::write(bundle.join("config.json"), config.to_string())?;
        let (bundle, pid_file) = (bundle.to_string_lossy(), bundle.join("pid"));
        self.runtime(&["create", "--bundle", &bundle, "--pid-file", &pid_file.to_string_lossy(), &id])?;
        self.runtime(&["start", &id])
    }

    fn runtime(&self, arguments: &[&str]) -> Result<(), Failure> {
        let mut command = Command::new(&self.runtime);
        command.arg("--root").arg(self.root()).args(arguments).stdin(Stdio::null());
        // Ctrl-C is for the demo, which ends what it began.
        command.process_group(0);
        let output = command.output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Failure::other(format!("{}: {}", arguments.join(" "), said.trim())))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for container in fs::read_dir(self.root()).into_iter().flatten().flatten() {
            if let Err(failure) = self.runtime(&["delete", "--force", &container.file_name().to_string_lossy()]) {
                tracing::warn!("remove a container of the demo: {failure}");
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!("remove `{}`: {error}", self.dir.display());
        }
    }
}
