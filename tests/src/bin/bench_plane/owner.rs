//! The process that writes: a collection that this program states facts to, its plane, and its debug socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tracker::collection::view::Host;
use tracker::container::{Domain, Exit, Image, Namespaces, State, TaskId};
use tracker::fact::{Birth, End, Execution, Fact, Source, Statement, What};
use tracker::server::Server;
use tracker::{BootTime, Config, ContainerId, ContainerKey, FeedOptions, Tracker};

const HOST: Host = Host { namespaces: Namespaces { mnt: 1, net: 2, pid: 3, cgroup: 4, user: 5 }, cgroup_id: 1 };
/// The mount ns of container 0; the next have the next numbers.
pub(crate) const FIRST_MNTNS: u32 = 4_026_532_000;
/// The cgroup of container 0.
pub(crate) const FIRST_CGROUP: u64 = 1_000_000;

pub(crate) struct Owner {
    tracker: Arc<Tracker>,
    containers: u32,
    pins: PathBuf,
    directory: TempDir,
    // Ends the socket when dropped.
    _serving: tokio_util::sync::DropGuard,
}

/// Somebody who changes rows at a steady pace.
pub(crate) struct Steady {
    thread: JoinHandle<()>,
    is_over: Arc<AtomicBool>,
    changed: Arc<AtomicU64>,
}

impl Steady {
    pub(crate) fn stop(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        self.changed.load(Ordering::Relaxed)
    }
}

impl Owner {
    pub(crate) fn start(containers: u32) -> Result<Owner> {
        let directory = tempfile::Builder::new().prefix("trk-plane-").tempdir().context("make a directory")?;
        let pins = PathBuf::from(format!("/sys/fs/bpf/trk-bench-{}", std::process::id()));
        let mut config = Config::default();
        config.collection.max_containers = 1 << 20;
        config.collection.linger_ms = 0;
        config.plane.enabled = Some(true);
        config.plane.path = directory.path().join("plane");
        config.plane.pins = pins.clone();
        config.plane.capacity = config.plane.capacity.max(containers * 5 / 4);
        config.server.socket = directory.path().join("sock");
        let server = Server::bind(config.server.clone()).context("bind the debug socket")?;
        let tracker = Arc::new(Tracker::without_sources(&config, HOST).context("start a collection")?);
        let (cancel, handle) = (CancellationToken::new(), (**tracker).clone());
        let serving = cancel.clone().drop_guard();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| runtime.block_on(server.serve(handle, cancel)))
        });
        let owner = Owner { tracker, containers, pins, directory, _serving: serving };
        owner.state(vec![(Source::Kernel, What::Live(true))])?;
        for number in 0..containers {
            owner.begin(number)?;
        }
        owner.settle()?;
        Ok(owner)
    }

    pub(crate) fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    pub(crate) fn containers(&self) -> u32 {
        self.containers
    }

    pub(crate) fn plane(&self) -> PathBuf {
        self.directory.path().join("plane")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.pins.clone()
    }

    /// Gives containers new names, evenly over time, until it is stopped.
    pub(crate) fn change_steadily(&self, per_second: u32) -> Steady {
        let (is_over, changed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (over, count) = (Arc::clone(&is_over), Arc::clone(&changed));
        let (tracker, containers) = (Arc::clone(&self.tracker), self.containers);
        let thread = std::thread::spawn(move || {
            let begun = Instant::now();
            for number in (0..containers).cycle() {
                let turn = count.fetch_add(1, Ordering::Relaxed) as u32;
                std::thread::sleep((begun + turn * Duration::from_secs(1) / per_second).duration_since(Instant::now()));
                let fact = named(number, &format!("container-{number}-{turn}"));
                if over.load(Ordering::Relaxed) || tracker.facts().state_blocking(vec![fact]).is_err() {
                    return;
                }
            }
        });
        Steady { thread, is_over, changed }
    }

    /// Each change is published by itself.
    pub(crate) fn rename_one_by_one(&self, changes: u32) -> Result<()> {
        for change in 0..changes {
            let fact = named(change % self.containers, &format!("renamed-{change}"));
            self.tracker.facts().state_blocking(vec![fact])?;
            if change % 64 == 0 {
                self.settle()?;
            }
        }
        self.settle()
    }

    /// Others come and go.
    pub(crate) fn live_and_die(&self, lives: u32) -> Result<()> {
        for life in 0..lives {
            let number = self.containers + life;
            self.begin(number)?;
            let birth = birth(number);
            let exit = Exit { code: 0, signal: None, oom: None };
            let ended = End { task: birth.task, mntns: birth.namespaces.mnt, generation: birth.generation, exit };
            self.state(vec![
                (Source::Kernel, What::Ended(ended)),
                (Source::Kernel, What::CgroupEmptied { id: birth.cgroup_id.unwrap_or(0) }),
            ])?;
            self.state(vec![(Source::Containerd, What::Withdrawn { key: key(number) })])?;
            if life % 16 == 0 {
                self.settle()?;
            }
        }
        self.settle()
    }

    /// Names of all lengths; returns each container's mount ns and the name that it had last.
    pub(crate) fn rename_at_random(&self, changes: u32) -> Result<Vec<(u32, String)>> {
        let mut truth: Vec<String> = vec![String::new(); self.containers as usize];
        let mut random = fastrand::Rng::with_seed(7);
        for change in 0..changes {
            let number = random.u32(..self.containers);
            // Most have room in their rows; there are places for an eighth that have not, and for some of the longest.
            let len = if random.u8(..) < 16 { random.usize(150..900) } else { random.usize(10..150) };
            let mut name = format!("{change}-");
            name.extend(std::iter::repeat_n('x', len));
            self.tracker.facts().state_blocking(vec![named(number, &name)])?;
            truth[number as usize] = name;
        }
        self.settle()?;
        let named = truth.into_iter().enumerate().filter(|(_, name)| !name.is_empty());
        Ok(named.map(|(number, name)| (FIRST_MNTNS + number as u32, name)).collect())
    }

    fn begin(&self, number: u32) -> Result<()> {
        let birth = birth(number);
        let executed = Birth { executed: true, ..birth };
        self.tracker.facts().state_blocking(vec![
            fact(Source::Kernel, What::Born(birth)),
            named(number, &format!("container-{number}")),
            fact(Source::Kernel, What::Executed(Execution { task: executed, by_init: true })),
        ])?;
        Ok(())
    }

    fn state(&self, facts: Vec<(Source, What)>) -> Result<()> {
        Ok(self.tracker.facts().state_blocking(facts.into_iter().map(|(source, what)| fact(source, what)).collect())?)
    }

    /// Waits until everything stated so far is published: a feed's bundle comes after it.
    fn settle(&self) -> Result<()> {
        let mut feed = self.tracker.subscribe_blocking(FeedOptions::new("settle")).context("the collection runs")?;
        feed.next_blocking().context("the collection runs")?;
        Ok(())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = remove(&self.pins);
    }
}

/// A BPF file system knows no recursive removal.
fn remove(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)?.flatten() {
        let path = entry.path();
        if path.is_dir() { remove(&path)? } else { std::fs::remove_file(path)? }
    }
    std::fs::remove_dir(directory)
}

fn birth(number: u32) -> Birth {
    Birth {
        task: TaskId { pid: 1_000 + number, start_ticks: 100 },
        parent: Some(TaskId { pid: 2_000_000 + number, start_ticks: 99 }),
        outer: None,
        namespaces: Namespaces {
            mnt: FIRST_MNTNS + number,
            net: 3_000_000 + number,
            pid: 5_000_000 + number,
            cgroup: 4,
            user: 5,
        },
        generation: Some(u64::from(number) + 1),
        cgroup_id: Some(FIRST_CGROUP + u64::from(number)),
        uid: 0,
        born_at: BootTime(1_000_000_000),
        executed: false,
    }
}

fn key(number: u32) -> ContainerKey {
    let id = ContainerId::new(&format!("{number:064x}")).expect("hexadecimal digits are valid");
    ContainerKey { domain: Domain::Host, scope: "containerd/k8s.io".into(), id }
}

fn named(number: u32, name: &str) -> Fact {
    let statement = Statement {
        task: Some(birth(number).task),
        state: Some(State::Running),
        name: Some(name.into()),
        image: Some(Image { name: Some("registry.example/app:1.2".into()), ..Image::default() }),
        ..Statement::default()
    };
    fact(Source::Containerd, What::Stated { key: key(number), statement: Box::new(statement) })
}

fn fact(source: Source, what: What) -> Fact {
    Fact { source, at: BootTime::now(), what }
}
