//! The tracker as a whole: starts every long-lived thread and task, and ends them.
//!
//! ```text
//!  kernel ─┐                      ┌▶ Reader   look-ups
//!  barrier ┼─ Facts ─▶ writer ────┼▶ hooks    while a start is held
//!  proc    ┤           (a thread) └▶ Feed     subscribers, debug socket
//!  runtimes┘
//! ```
//!
//! Start-up is: the writer, then what attaches, then what scans, then what asks runtimes; facts may come in any order.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::barrier::{self, Barrier};
use crate::collection::door::{Ask, CloserLook, Delivery, Facts};
use crate::collection::view::{Host, Reader};
use crate::collection::writer::Writer;
use crate::config::Config;
use crate::container::Container;
use crate::fact::Source;
use crate::filter::{BadPatterns, Filter};
use crate::plane::Plane;
use crate::plane::pins::Pinning;
use crate::route::{Place, Routes};
use crate::source::find::{Api, Finder, Wanted};
use crate::source::health::{Condition, HealthBoard};
use crate::source::images::Images;
use crate::source::kernel::{Kernel, KernelError, Machine};
use crate::source::scan::{AuditInbox, AuditRequest, Scanner};
use crate::source::task::{Task, host_namespaces, root_cgroup_id};
use crate::source::{self, kernel, scan};
use crate::sys;

mod handle;

mod stats;

pub use handle::Handle;
pub use stats::Stats;

/// Requests for a closer look that may wait; more are counted and left to the next scan.
const CLOSER_LOOKS: usize = 1_024;

/// Why the tracker cannot start at all. A source that cannot start is not among these: it is a line of
/// [`Handle::health`], and the rest works.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A thread could not be started.
    #[error("start the thread `{name}`: {error}")]
    Thread {
        /// Which one.
        name: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The configuration's filter has patterns that cannot be used: all of them are told.
    #[error(transparent)]
    Filter(#[from] BadPatterns),
    /// Pid 1 could not be looked at, so the host's own namespaces are unknown.
    #[error("read the namespaces of pid 1: {0}")]
    Host(io::Error),
}

impl StartError {
    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            StartError::Thread { .. } => "raise the limits of open files and processes",
            StartError::Filter(_) => "correct the patterns; `tracker filter test -f FILE` tells what they would do",
            StartError::Host(_) => "run as root with CAP_SYS_PTRACE, in the host's pid namespace, with /proc mounted",
        }
    }
}

/// A running tracker. Dropping it ends it.
pub struct Tracker {
    handle: Handle,
    cancel: CancellationToken,
    runtime: Option<Runtime>,
    writer: Option<JoinHandle<()>>,
    /// Threads of sources; they end when `stop` is readable or nobody can ask for an audit any more.
    threads: Vec<JoinHandle<()>>,
    stop: Arc<EventFd>,
    audits: Option<AuditRequest>,
    barrier: Option<Barrier>,
    /// What the probes share with the plane's pinned maps; until they are loaded.
    pinning: Option<Pinning>,
}

impl Tracker {
    /// Starts the tracker on threads of its own. Blocks for some milliseconds.
    pub fn start(config: Config) -> Result<Tracker, StartError> {
        let host = look_at_host().map_err(StartError::Host)?;
        let (mut tracker, closer_looks) = Self::start_collection(&config, host)?;
        let (audits, inbox) = scan::audits();
        tracker.audits = Some(audits.clone());
        // Held from here on; what it cannot prove yet, the probes and the scan below will show.
        tracker.start_barrier(&config, audits)?;
        tracker.start_kernel(&config, inbox)?;
        tracker.start_routes(&config)?;
        kernel::return_freed_memory();
        tracker.start_tasks(config, closer_looks);
        Ok(tracker)
    }

    /// Starts a collection alone, for sources of one's own ([`Handle::facts`]), tests and benchmarks. Needs no privilege.
    pub fn without_sources(config: &Config, host: Host) -> Result<Tracker, StartError> {
        Ok(Self::start_collection(config, host)?.0)
    }

    fn start_collection(config: &Config, host: Host) -> Result<(Tracker, mpsc::Receiver<CloserLook>), StartError> {
        let filter = Filter::new(&config.filter)?;
        filter.warnings().iter().for_each(|warning| tracing::warn!(%warning, "a rule of the filter is left aside"));
        let node = config.node.clone().unwrap_or_else(host_name).into();
        let stats = Stats::default();
        let health = HealthBoard::new();
        let cancel = CancellationToken::new();
        let (facts, deliveries) = Facts::queue();
        let (closer, closer_looks) = mpsc::channel(CLOSER_LOOKS);

        let queue = facts.sender().downgrade();
        let collection = Arc::clone(&stats.collection);
        let plane = config.plane.is_enabled().then(|| {
            Plane::open(
                &config.plane,
                host,
                config.collection.linger(),
                config.kernel.max_namespaces,
                Arc::clone(&stats.plane),
            )
        });
        let pinning = plane.as_ref().and_then(Plane::pinning);
        let writer = Writer::new(config.collection.clone(), filter, host, deliveries, queue, closer, collection)
            .with_plane(plane);
        let published = writer.published();
        let writer = start_writer(writer)?;

        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("tracker-io").enable_all().build();
        let runtime = runtime.map_err(|error| StartError::Thread { name: "tracker-io", error })?;
        let images = Images::default();
        let plane = Arc::new(config.plane.clone());
        let handle = Handle { node, facts, published, health, images, stats, plane, routes: None };
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let stop = stop.map_err(|errno| StartError::Thread { name: "tracker-kernel", error: errno.into() })?;
        let tracker = Tracker {
            handle,
            cancel,
            runtime: Some(runtime),
            writer: Some(writer),
            threads: Vec::new(),
            stop: Arc::new(stop),
            audits: None,
            barrier: None,
            pinning,
        };
        Ok((tracker, closer_looks))
    }

    fn start_barrier(&mut self, config: &Config, audits: AuditRequest) -> Result<(), StartError> {
        let Handle { facts, health, stats, .. } = self.handle.clone();
        let published = Arc::clone(&self.handle.published);
        let outers = Box::new(move |mntns| {
            let mut reader = Reader::new(Arc::clone(&published));
            let outer = reader.holder_of_mntns(mntns)?;
            Some(barrier::Outer { init: outer.task?, is_vouched_for: outer.kind.is_vouched_for() })
        });
        let audit = move || audits.ask();
        let config = config.barrier.clone();
        let (tell, told) = sync_channel(1);
        // By the supervisor's own thread: the keeper dies with the thread that started it.
        self.start_thread("tracker-barrier", move || {
            match Barrier::start(config, facts, health, stats.barrier, audit, outers) {
                Ok((barrier, supervisor)) => {
                    if tell.send(Ok(barrier)).is_ok() {
                        supervisor.run();
                    }
                }
                Err(error) => drop(tell.send(Err(error))),
            }
        })?;
        match told.recv().expect("the thread tells before it ends") {
            Ok(barrier) => {
                self.state_live(Source::Barrier, barrier.keeper_pid().is_some());
                self.barrier = Some(barrier);
            }
            // What it is, and what to do about it, is on the health board; the rest works without.
            Err(error) => tracing::warn!(%error, "starts are not held"),
        }
        Ok(())
    }

    /// Attaches the probes, then scans: what is born in between is seen twice rather than not at all.
    fn start_kernel(&mut self, config: &Config, inbox: AuditInbox) -> Result<(), StartError> {
        let pinning = self.pinning.take();
        let refuse = |error: &KernelError| {
            let detail = format!("{}: {}", chain(error), error.remedy());
            self.handle.health.report(Source::Kernel, "tp_btf", Condition::Refused, &detail);
            tracing::error!(detail, "containers are found by scans and runtimes only");
        };
        let (kernel, scanner) = match Machine::examine() {
            Ok(machine) => {
                let mut kernel = load_probes(config, &machine, pinning.as_ref()).inspect_err(refuse).ok();
                if let Some(kernel) = &mut kernel {
                    let Handle { facts, stats, .. } = &self.handle;
                    // An error says that the collection has ended, which whoever comes next will find, too.
                    let _ = kernel.catch_up(|batch| facts.state_blocking(batch), &stats.kernel);
                }
                let scanner = Scanner::new(Ok(&machine), kernel.as_ref());
                (kernel, scanner)
            }
            Err(error) => {
                refuse(&error);
                (None, Scanner::new(Err(error), None))
            }
        };
        if let Some(kernel) = kernel {
            self.start_probes(kernel)?;
        }
        let Handle { facts, health, stats, .. } = self.handle.clone();
        let config = config.scan.clone();
        match scanner {
            Ok(scanner) => self.start_thread("tracker-scan", move || {
                scan::run(scanner, &config, &facts, &inbox, &stats.scan, &health);
            }),
            Err(error) => {
                let detail = format!("{}: {}", chain(&error), error.remedy());
                health.report(Source::Proc, "/proc", Condition::Refused, &detail);
                Ok(())
            }
        }
    }

    fn start_probes(&mut self, kernel: Kernel) -> Result<(), StartError> {
        let Handle { facts, health, stats, .. } = self.handle.clone();
        let (stop, audits) = (Arc::clone(&self.stop), self.audits.clone().expect("it is there until the end"));
        // Before the thread runs, so that its first birth already finds a kernel that is believed.
        self.state_live(Source::Kernel, true);
        let handle = self.handle.clone();
        self.start_thread("tracker-kernel", move || {
            sys::raise_priority();
            if let Err(error) = kernel.run(&facts, stop.as_fd(), &audits, &stats.kernel, &health) {
                tracing::error!(error = chain(&error), "the probes are no longer read");
                handle.state_live(Source::Kernel, false);
            }
        })
    }

    /// Opens what routes need. Where that is not allowed, the rest works without.
    fn start_routes(&mut self, config: &Config) -> Result<(), StartError> {
        let published = Arc::clone(&self.handle.published);
        let ways = Box::new(move || {
            let mut reader = Reader::new(Arc::clone(&published));
            let mut seen = HashSet::new();
            // A way may lead through a container that is not to be shown.
            let excluded: Vec<_> = reader.excluded().map(|excluded| Arc::clone(excluded.container)).collect();
            let containers = reader.all().chain(&excluded).filter(|container| seen.insert(container.namespaces.net));
            [Place::Host].into_iter().chain(containers.filter_map(|container| place_of(container))).collect()
        });
        let started = Routes::start(config.route.clone(), Some(ways), Arc::clone(&self.handle.stats.route));
        let routes = match started {
            Ok((routes, listening)) => {
                let stop = Arc::clone(&self.stop);
                self.start_thread("tracker-routes", move || listening.run(stop.as_fd()))?;
                Ok(routes)
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "routes are not told");
                Err(error)
            }
        };
        self.handle.routes = Some(Arc::new(routes));
        Ok(())
    }

    fn start_thread(&mut self, name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(body);
        self.threads.push(thread.map_err(|error| StartError::Thread { name, error })?);
        Ok(())
    }

    fn start_tasks(&self, config: Config, mut closer_looks: mpsc::Receiver<CloserLook>) {
        let runtime = self.runtime.as_ref().expect("it is there until the tracker ends");
        let Handle { facts, health, stats, .. } = &self.handle;
        let (facts, health, cancel) = (|| facts.clone(), || health.clone(), || self.cancel.clone());
        let proc = Arc::clone(&stats.proc);
        // Who nobody vouches for is looked for in the runtimes' files, and may have been started by a runtime whose
        // binary is not marked yet.
        let (found_by_proc, proc_looks) = mpsc::channel(CLOSER_LOOKS);
        // Of podman's containers, podman's own files tell more than the runtimes'.
        let (found_by_podman, podman_looks) = mpsc::channel(CLOSER_LOOKS);
        let barrier = self.barrier.clone();
        let hints = Arc::new(Notify::new());
        let hint = Arc::clone(&hints);
        runtime.spawn(async move {
            while let Some(CloserLook { birth, is_claimed, lacks_bundle }) = closer_looks.recv().await {
                // A full queue drops it: the next scan brings it again.
                let _ = found_by_podman.try_send(birth);
                if !is_claimed {
                    hint.notify_one();
                    barrier.iter().for_each(|barrier| barrier.learn(&birth));
                }
                if (!is_claimed || lacks_bundle) && found_by_proc.send(birth).await.is_err() {
                    return;
                }
            }
        });
        runtime.spawn(source::proc::run(config.proc.clone(), proc_looks, facts(), health(), proc, cancel()));
        let kinds = |api| wanted(&config, api);
        let published = Arc::clone(&self.handle.published);
        let whose = Box::new(move |mntns| {
            let mut reader = Reader::new(Arc::clone(&published));
            reader.by_mntns(mntns).container().filter(|container| container.kind.is_vouched_for())?.task
        });
        let (finder, sockets) = Finder::new(config.find.clone(), kinds, whose, health(), Arc::clone(&stats.find));
        runtime.spawn(finder.run(hints, cancel()));
        #[cfg(feature = "cri")]
        {
            let stats = Arc::clone(&stats.cri);
            let (handle, facts, health, cancel) = (self.handle.clone(), facts(), health(), cancel());
            let env_allow = config.env_allow.clone();
            runtime.spawn(async move {
                // What others see is when to look.
                let others = handle.subscribe(source::cri::hints::options()).await.ok();
                source::cri::run(config.cri, env_allow, sockets.cri, others, facts, health, stats, cancel).await;
            });
        }
        let podman = Arc::clone(&stats.podman);
        let of_podman = sockets.podman.clone();
        let podman = source::podman::run(
            config.podman,
            config.env_allow.clone(),
            of_podman,
            podman_looks,
            facts(),
            health(),
            podman,
            cancel(),
        );
        runtime.spawn(podman);
        #[cfg(feature = "containerd")]
        {
            let containerd = Arc::clone(&stats.containerd);
            let source = source::containerd::run(
                config.containerd,
                config.env_allow.clone(),
                sockets.containerd,
                facts(),
                health(),
                self.handle.images.clone(),
                containerd,
                cancel(),
            );
            runtime.spawn(source);
        }
        #[cfg(feature = "docker")]
        {
            let docker = Arc::clone(&stats.docker);
            let source = source::docker::run(
                config.docker,
                config.env_allow,
                sockets.docker,
                facts(),
                health(),
                self.handle.images.clone(),
                docker,
                cancel(),
            );
            runtime.spawn(source);
        }
    }

    /// Ends it: nothing is held any more, all threads and tasks are over when this returns.
    pub fn shutdown(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // While the sources end, one after the other, what happens is not seen any more: nobody is to read that the plane
        // is still true, nor its next owner that it was until then.
        let (left, is_left) = sync_channel(1);
        if self.handle.facts.sender().blocking_send(Delivery::Ask(Ask::LeavePlane(left))).is_ok() {
            // Over as soon as the writer is: nobody answers any more. And whatever the writer does meanwhile ends.
            let _ = is_left.recv_timeout(Duration::from_secs(2));
        }
        self.cancel.cancel();
        if let Some(barrier) = self.barrier.take() {
            barrier.stop();
        }
        self.audits = None;
        // An eventfd that is full is readable all the same.
        let _ = self.stop.write(1);
        if let Some(runtime) = self.runtime.take() {
            // A task that does not end in time is waiting for something outside; it holds nothing of ours.
            runtime.shutdown_timeout(Duration::from_secs(2));
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a source's thread panicked");
            }
        }
        let ended = self.handle.facts.sender().blocking_send(Delivery::Ask(Ask::End));
        if let (Ok(()), Some(writer)) = (ended, self.writer.take())
            && writer.join().is_err()
        {
            tracing::error!("the collection's writer panicked");
        }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.end();
    }
}

impl Deref for Tracker {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl fmt::Debug for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker").field("node", &self.handle.node).finish_non_exhaustive()
    }
}

/// What the configuration says about runtimes of one kind.
fn wanted(config: &Config, api: Api) -> Wanted {
    match api {
        #[cfg(feature = "containerd")]
        Api::Containerd => {
            let Config { containerd, .. } = config;
            Wanted { enabled: containerd.enabled, configured: containerd.endpoints(), containerds: false }
        }
        #[cfg(feature = "docker")]
        Api::Docker => {
            let Config { docker, .. } = config;
            Wanted { enabled: docker.enabled, configured: docker.endpoints(), containerds: false }
        }
        #[cfg(feature = "cri")]
        Api::Cri => {
            let containerds = wanted(config, Api::Containerd);
            let containerds = if containerds.enabled { containerds.configured } else { Vec::new() };
            let Config { cri, .. } = config;
            Wanted { enabled: cri.enabled, configured: cri.endpoints(&containerds), containerds: cri.containerds }
        }
        Api::Podman => {
            let Config { podman, .. } = config;
            Wanted { enabled: podman.enabled, configured: podman.endpoints(), containerds: false }
        }
        #[cfg(not(all(feature = "containerd", feature = "cri", feature = "docker")))]
        _ => Wanted::default(),
    }
}

/// The way into a container's net ns, by its init: as long as that lives, and is in the net ns that it was born in.
pub fn place_of(container: &Container) -> Option<Place> {
    let task = container.task.filter(|_| !container.state.is_over())?;
    Some(Place::Task { task, inode: Some(container.namespaces.net).filter(|inode| *inode != 0) })
}

fn start_writer(writer: Writer) -> Result<JoinHandle<()>, StartError> {
    let failed = |error| StartError::Thread { name: "tracker-writer", error };
    let waits = Builder::new_current_thread().enable_time().build().map_err(failed)?;
    let thread = std::thread::Builder::new().name("tracker-writer".into());
    let body = move || {
        // A held start waits for it, whatever else the machine does.
        sys::raise_priority();
        waits.block_on(writer.run());
    };
    thread.spawn(body).map_err(failed)
}

/// Loads the probes, with the pinned maps, if there are any. Where those cannot be used, without.
fn load_probes(config: &Config, machine: &Machine, pinning: Option<&Pinning>) -> Result<Kernel, KernelError> {
    match Kernel::load_pinned(&config.kernel, machine, pinning) {
        Err(error @ KernelError::Keep(_)) => {
            let (remedy, error) = (error.remedy(), chain(&error));
            tracing::warn!(error, remedy, "the probes share nothing with the pinned maps");
            Kernel::load(&config.kernel, machine)
        }
        loaded => loaded,
    }
}

/// An error and all its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The host's namespaces are those of pid 1; its cgroup is the v2 hierarchy's root.
fn look_at_host() -> io::Result<Host> {
    // What can be opened and shows no namespaces is not for us.
    let unreadable = || Task::open(1).err().unwrap_or_else(|| io::ErrorKind::PermissionDenied.into());
    let namespaces = host_namespaces().ok_or_else(unreadable)?;
    Ok(Host { namespaces, cgroup_id: root_cgroup_id().unwrap_or(0) })
}

fn host_name() -> String {
    nix::unistd::gethostname().map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned())
}
