//! The supervisor: one thread that keeps a keeper alive and passes on what it says.
//!
//! It waits in one `poll` on the keeper's socket, its end, the ends of watched runtimes, changes in watched directories and
//! the order to stop; whatever could hang goes to the pool. The keeper's death shows at once, its being stopped or
//! frozen in an unanswered ping: both ways it is killed (the kernel then allows what is pending) and replaced, with
//! growing pauses if it keeps dying, for ever.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::time::{ClockId, clock_gettime};

use super::book::Book;
use super::caller::{Host, Outers};
use super::held::{self, HeldPath};
use super::keeper::{self, KEEPER_NAME};
use super::line::{HeldTask, Line};
use super::marks::{Marks, RESCAN};
use super::nested::Turns;
use super::pool::Pool;
use super::seat::{self, Seat};
use super::watch::Watch;
use super::wire::{self, Message, Received, Step};
use super::{BarrierError, Config, Stats, bundle};
use crate::collection::door::Facts;
use crate::fact::{Birth, Fact, Source, What};
use crate::source::health::{Condition, HealthBoard};
use crate::source::task::Task;
use crate::sys;
use crate::time::BootTime;

/// The health board's name for the barrier itself.
const WHAT: &str = "fanotify";
/// How long a keeper may take to come up.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before a keeper that died young is replaced: doubled each time, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A keeper that lived this long did not die young.
const OF_AGE: Duration = Duration::from_secs(10);
/// A keeper that is runnable and does not get to run is given this long: killing it would not make it run.
const STARVED_FOR: Duration = Duration::from_secs(2);
/// Between the keeper and the threads that look at what is held: it hands them their work.
const PRIORITY: i32 = 2;
/// Messages handled before anything else is looked at again.
const MESSAGES_PER_TURN: usize = 256;
/// How far up a container's birth is followed to find what started it.
const ANCESTORS: usize = 4;

/// A handle on the running barrier. Cheap to clone.
#[derive(Clone)]
pub struct Barrier {
    shared: Arc<Shared>,
}

/// The barrier's thread, to be given one: [`Supervisor::run`] ends when [`Barrier::stop`] was called.
pub struct Supervisor {
    shared: Arc<Shared>,
    keeper: Option<Keeper>,
    /// When the next keeper may be started, and the pause after it if that one dies young.
    retry_at: Instant,
    pause: Duration,
    rescan_at: Instant,
}

struct Shared {
    config: Config,
    health: HealthBoard,
    path: Arc<HeldPath>,
    pool: Pool,
    audit: Box<dyn Fn() + Send + Sync>,
    stop: EventFd,
    /// Whether the present keeper runs with real-time priority.
    realtime: AtomicBool,
    // Protects the present keeper's line, for those who are not the supervisor; held for moments.
    line: Mutex<Option<Arc<Line>>>,
}

/// A running keeper.
struct Keeper {
    child: Child,
    pidfd: OwnedFd,
    line: Arc<Line>,
    born: Instant,
    realtime: bool,
    /// The last ping, until it is answered.
    asked: Option<(u64, Instant)>,
    pings: u64,
    next_ping: Instant,
    /// Removed after its end: fields are dropped after `end` has reaped it.
    _seat: Seat,
}

impl Barrier {
    /// Starts a keeper and prepares everything else; then [`Supervisor::run`] has to be called, by the same thread: the
    /// keeper is killed when the thread ends that started it.
    ///
    /// An error is for good. Where a keeper could not be started just now, that is reported to `health` and the
    /// supervisor goes on trying.
    ///
    /// `audit` is called when the kernel reports that it dropped events: what was missed has to be found by a scan.
    /// `outers` tells which container a caller's mount namespace belongs to; callers in one that it does not know are
    /// let go unread.
    pub fn start(
        config: Config,
        facts: Facts,
        health: HealthBoard,
        stats: Arc<Stats>,
        audit: impl Fn() + Send + Sync + 'static,
        outers: Box<Outers>,
    ) -> Result<(Barrier, Supervisor), BarrierError> {
        let started = Self::prepare(config, facts, &health, stats, Box::new(audit), outers);
        if let Err(error) = &started {
            health.report(Source::Barrier, WHAT, Condition::Refused, &error.to_string());
        }
        started
    }

    fn prepare(
        config: Config,
        facts: Facts,
        health: &HealthBoard,
        stats: Arc<Stats>,
        audit: Box<dyn Fn() + Send + Sync>,
        outers: Box<Outers>,
    ) -> Result<(Barrier, Supervisor), BarrierError> {
        if !config.enabled {
            return Err(BarrierError::Disabled);
        }
        if config.keeper_program.is_none() && !keeper::is_entered() {
            return Err(BarrierError::NoEntry);
        }
        let host = Host::own().map_err(BarrierError::Prepare)?;
        if !host.is_initial() {
            return Err(BarrierError::UserNamespace);
        }
        let prepare = |errno: Errno| BarrierError::Prepare(errno.into());
        let path = Arc::new(HeldPath {
            facts,
            stats: Arc::clone(&stats),
            host,
            outers,
            turns: Turns::default(),
            budget: config.budget(),
            health: health.clone(),
            marks: Marks::new(&config.runtimes, config.known_paths),
            book: Book::default(),
            watch: Watch::new().map_err(prepare)?,
        });
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(prepare)?;
        let pool = Pool::new(stats);
        let health = health.clone();
        let (realtime, line) = (AtomicBool::new(false), Mutex::new(None));
        let shared = Arc::new(Shared { config, health, path, pool, audit, stop, realtime, line });
        let now = Instant::now();
        let mut supervisor = Supervisor {
            shared: Arc::clone(&shared),
            keeper: None,
            retry_at: now,
            pause: FIRST_PAUSE,
            rescan_at: now + RESCAN,
        };
        match supervisor.start_keeper() {
            Ok(()) => {}
            // The supervisor tries again: short of memory or processes is a state, not an end.
            Err(error) if error.is_transient() => supervisor.put_off(&error),
            Err(error) => return Err(error),
        }
        Ok((Barrier { shared }, supervisor))
    }

    /// Looks at what gave birth to a container that no held command line announced, and marks its binary if it is an OCI
    /// runtime that root runs on the host. Returns at once; what is decided shows in the health board.
    pub fn learn(&self, birth: &Birth) {
        if !self.shared.config.learn {
            return;
        }
        let (shared, birth) = (Arc::clone(&self.shared), *birth);
        // Refused when too many threads are lost: there will be other containers.
        let _ = self.shared.pool.run(move || shared.learn(&birth));
    }

    /// The keeper's pid, while there is one.
    pub fn keeper_pid(&self) -> Option<u32> {
        match self.shared.path.stats.keeper_pid.load(Ordering::Relaxed) {
            0 => None,
            pid => u32::try_from(pid).ok(),
        }
    }

    /// The binaries that are marked now, by name.
    pub fn marked(&self) -> Vec<PathBuf> {
        self.shared.path.marks.list().into_iter().map(|(path, _)| path).collect()
    }

    /// Ends the supervisor and the keeper; all that is held is let go.
    pub fn stop(&self) {
        // Fails only when the counter is full, and then the supervisor has been told before.
        let _ = self.shared.stop.write(1);
    }
}

impl Supervisor {
    /// Runs until [`Barrier::stop`].
    pub fn run(mut self) {
        sys::raise_priority_with_children(PRIORITY);
        while self.wait() {
            self.listen();
            self.examine_keeper();
            self.shared.path.turns.let_go(Instant::now());
            for entry in self.shared.path.watch.ended() {
                let path = Arc::clone(&self.shared.path);
                // Refused: the container's `start` reads the same files.
                let _ = self.shared.pool.run(move || path.creator_ended(&entry));
            }
            let now = Instant::now();
            if self.shared.path.marks.is_concerned() || now >= self.rescan_at {
                self.rescan_at = now + RESCAN;
                self.scan();
            }
            if self.keeper.is_none()
                && now >= self.retry_at
                && let Err(error) = self.start_keeper()
            {
                self.put_off(&error);
            }
        }
        self.shared.set_line(None);
        self.shared.pool.close();
        if let Some(keeper) = self.keeper.take() {
            keeper.end();
        }
    }

    /// Sleeps until there is something to do; `false` when that is to stop.
    fn wait(&self) -> bool {
        let now = Instant::now();
        let next = match &self.keeper {
            Some(keeper) => keeper.next_ping.min(self.rescan_at),
            None => self.retry_at.min(self.rescan_at),
        };
        let next = self.shared.path.turns.next_end().map_or(next, |end| end.min(next));
        let left_ms = next.saturating_duration_since(now).as_micros().div_ceil(1000);
        let timeout = PollTimeout::try_from(left_ms).unwrap_or(PollTimeout::MAX);
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let shared = &self.shared;
        let mut fds = vec![readable(shared.stop.as_fd()), readable(shared.path.watch.as_fd())];
        fds.extend(shared.path.marks.watches().map(|watches| readable(watches.as_fd())));
        if let Some(keeper) = &self.keeper {
            fds.extend([readable(keeper.line.as_fd()), readable(keeper.pidfd.as_fd())]);
        }
        // Interrupted or short of memory: look at everything.
        let _ = poll(&mut fds, timeout);
        shared.stop.read().is_err()
    }

    /// Handles what the keeper said.
    fn listen(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        for _ in 0..MESSAGES_PER_TURN {
            match keeper.line.receive() {
                Received::Message(Message::Pong { number, .. }, _) => {
                    keeper.asked = keeper.asked.filter(|(asked, _)| *asked != number);
                }
                Received::Message(message, fd) => self.shared.handle(&keeper.line, message, fd),
                Received::Nothing => return,
                Received::Closed => return self.lose("it has ended"),
            }
        }
    }

    /// Asks the keeper whether it is there, and replaces one that is not.
    fn examine_keeper(&mut self) {
        let now = Instant::now();
        let interval = self.shared.config.budget() / 2;
        let Some(keeper) = &mut self.keeper else { return };
        if now < keeper.next_ping {
            return;
        }
        if let Some((_, since)) = keeper.asked {
            // One that could run and does not get to is starved, like everybody else, and no other would fare better.
            let starved = state_of(keeper.child.id()) == Some('R') && now - since < STARVED_FOR;
            if now - since >= interval && !starved {
                return self.lose("it does not answer");
            }
        } else {
            keeper.pings += 1;
            keeper.asked = Some((keeper.pings, now));
            if keeper.line.send(Message::Ping { number: keeper.pings }, None).is_err() {
                return self.lose("its socket takes nothing");
            }
        }
        keeper.next_ping = now + interval;
    }

    /// Ends a keeper; the kernel lets go what it held.
    fn lose(&mut self, why: &str) {
        let Some(keeper) = self.keeper.take() else { return };
        self.shared.set_line(None);
        self.shared.path.marks.forget();
        if keeper.born.elapsed() >= OF_AGE {
            self.pause = FIRST_PAUSE;
            self.retry_at = Instant::now();
        } else {
            self.postpone();
        }
        keeper.end();
        self.shared.report(Condition::Waiting, &format!("the keeper is being replaced: {why}"));
    }

    /// There is no keeper, for this reason; another attempt follows.
    fn put_off(&mut self, error: &BarrierError) {
        let condition = if error.is_transient() { Condition::Waiting } else { Condition::Degraded };
        self.shared.report(condition, &error.to_string());
        self.postpone();
    }

    fn postpone(&mut self) {
        self.retry_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    fn start_keeper(&mut self) -> Result<(), BarrierError> {
        let stats = &self.shared.path.stats;
        let keeper = Keeper::start(&self.shared.config)?;
        if stats.keeper_pid.swap(keeper.child.id().into(), Ordering::Relaxed) != 0 {
            stats.keeper_restarts.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.set_line(Some(Arc::clone(&keeper.line)));
        self.shared.realtime.store(keeper.realtime, Ordering::Relaxed);
        self.keeper = Some(keeper);
        self.scan();
        Ok(())
    }

    /// Marks what has no mark.
    fn scan(&self) {
        let Some(line) = self.shared.line() else { return };
        let path = Arc::clone(&self.shared.path);
        let shared = Arc::clone(&self.shared);
        // Refused when too many threads are lost; the next scan comes.
        let _ = self.shared.pool.run(move || {
            if shared.config.own_cgroup {
                seat::remove_stale();
            }
            path.marks.scan(&line);
            shared.report_marks();
        });
    }
}

impl Shared {
    fn handle(&self, line: &Arc<Line>, message: Message, fd: Option<OwnedFd>) {
        let stats = &self.path.stats;
        match message {
            Message::Event { event, tid, since_ns } => self.dispatch(line, (event, tid, since_ns), fd, false),
            Message::Passed { event, tid, since_ns } => self.dispatch(line, (event, tid, since_ns), fd, true),
            Message::Released { event, in_time } => line.released(event, in_time),
            Message::Marked { request, errno } => {
                if let Some((path, errno)) = self.path.marks.answered(request, errno) {
                    tracing::warn!(binary = %path.display(), %errno, "a runtime's binary cannot be marked");
                }
                self.report_marks();
            }
            Message::Overflow => {
                stats.overflows.fetch_add(1, Ordering::Relaxed);
                (self.audit)();
            }
            // A keeper says none of these once it is ready.
            _ => tracing::warn!(?message, "an unexpected message of the keeper"),
        }
    }

    fn dispatch(&self, line: &Arc<Line>, (event, tid, since_ns): (u64, i32, u64), fd: Option<OwnedFd>, passed: bool) {
        let since = Instant::now() - Duration::from_nanos(monotonic_ns().saturating_sub(since_ns));
        let stats = Arc::clone(&self.path.stats);
        let held = HeldTask::new(Arc::clone(line), stats, (event, tid, since), fd, passed);
        let path = Arc::clone(&self.path);
        // A refused job is dropped, and the task with it let go.
        if self.pool.run(move || path.handle(held)).is_err() {
            self.path.stats.refused_jobs.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn learn(&self, birth: &Birth) {
        let Some(line) = self.line() else { return };
        let mut next = Some(birth.task.pid);
        for _ in 0..ANCESTORS {
            let Some(task) = next.and_then(|pid| Task::open(pid).ok()) else { return };
            let Ok(view) = task.view() else { return };
            if let Some(binary) = self.teacher(&task, &view.namespaces, view.uid) {
                if self.path.marks.learn(&binary, &line).is_ok() {
                    self.path.stats.learnt.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(binary = %binary.display(), "learnt an OCI runtime from a container that it started");
                }
                return;
            }
            next = view.parent.map(|parent| parent.pid);
        }
    }

    /// The binary of a process that is root's on the host and makes a container from a readable bundle.
    fn teacher(&self, task: &Task, namespaces: &crate::container::Namespaces, uid: u32) -> Option<PathBuf> {
        if uid != 0 || !self.path.host.is_home_of(namespaces) {
            return None;
        }
        let binary = task.exe().ok()?;
        let argv = task.arguments(super::argv::MAX_BYTES as u64).ok()?;
        let bundle = held::makes_container(&binary, &argv, &task.cwd().ok()?)?;
        bundle::is_readable(&bundle).then_some(binary)
    }

    fn report_marks(&self) {
        if self.path.marks.is_asking() {
            // The answer to the last request reports them all.
            return;
        }
        let marked = self.path.marks.list();
        let names: Vec<_> = marked.iter().map(|(path, _)| path.display().to_string()).collect();
        let priority = if self.realtime.load(Ordering::Relaxed) { "" } else { "; without real-time priority" };
        match names.as_slice() {
            [] => self.report(Condition::Degraded, "no OCI runtime found at the usual places: see `barrier.runtimes`"),
            names if self.path.host.is_elsewhere() => {
                let detail = "holds only starts from this process's own mount namespace, which is not that of pid 1";
                self.report(Condition::Degraded, &format!("{detail}; by {}{priority}", names.join(", ")));
            }
            names => self.report(Condition::Live, &format!("holds starts by {}{priority}", names.join(", "))),
        }
        for (path, _) in marked.iter().filter(|(_, learnt)| *learnt) {
            let what = path.display().to_string();
            self.health.report(Source::Barrier, &what, Condition::Live, "learnt from a container that it started");
        }
    }

    fn report(&self, condition: Condition, detail: &str) {
        if !self.health.report(Source::Barrier, WHAT, condition, detail) {
            return;
        }
        match condition {
            Condition::Live => tracing::info!(detail, "barrier"),
            _ => tracing::warn!(detail, "barrier"),
        }
        let what = What::Live(condition == Condition::Live);
        let (facts, fact) = (self.path.facts.clone(), Fact { source: Source::Barrier, at: BootTime::now(), what });
        // In the pool, for the queue may be full: the keeper is waiting for this thread.
        let _ = self.pool.run(move || {
            let _ = facts.state_blocking(vec![fact]);
        });
    }

    fn line(&self) -> Option<Arc<Line>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whoever waits for an answer on the former line gets none.
    fn set_line(&self, line: Option<Arc<Line>>) {
        let former = std::mem::replace(&mut *self.line.lock().unwrap_or_else(PoisonError::into_inner), line);
        if let Some(former) = former {
            former.hang_up();
        }
    }
}

impl Keeper {
    fn start(config: &Config) -> Result<Self, BarrierError> {
        let (ours, theirs) = wire::pair().map_err(|errno| BarrierError::Keeper(errno.into()))?;
        let program = config.keeper_program.as_deref().unwrap_or(Path::new("/proc/self/exe"));
        let child = Command::new(program)
            .arg0(KEEPER_NAME)
            .args([config.budget().as_millis().to_string(), std::process::id().to_string()])
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(BarrierError::Keeper)?;
        let (pidfd, line) = (sys::pidfd_open(child.id()).map_err(BarrierError::Keeper)?, Line::new(ours));
        let seat = if config.own_cgroup { Seat::take(child.id()) } else { Seat::default() };
        let now = Instant::now();
        let mut keeper = Keeper {
            child,
            pidfd,
            line,
            born: now,
            realtime: false,
            asked: None,
            pings: 0,
            next_ping: now,
            _seat: seat,
        };
        match keeper.wait_until_ready() {
            Ok(realtime) => {
                keeper.realtime = realtime;
                Ok(keeper)
            }
            Err(error) => {
                keeper.end();
                Err(error)
            }
        }
    }

    fn wait_until_ready(&mut self) -> Result<bool, BarrierError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            match self.line.receive() {
                Received::Message(Message::Ready { realtime }, _) => return Ok(realtime),
                Received::Message(Message::Refused { step: Step::Group, errno }, _) => {
                    return Err(match Errno::from_raw(errno) {
                        errno @ Errno::EPERM => BarrierError::Privilege(errno),
                        errno => BarrierError::Unsupported(errno),
                    });
                }
                Received::Message(Message::Refused { step: Step::Reserve, errno }, _) => {
                    return Err(BarrierError::Keeper(Errno::from_raw(errno).into()));
                }
                Received::Message(..) | Received::Closed => {
                    return Err(BarrierError::Keeper(io::Error::other("the program that was started is no keeper")));
                }
                Received::Nothing => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(BarrierError::Keeper(io::ErrorKind::TimedOut.into()));
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(self.line.as_fd(), PollFlags::POLLIN)], timeout);
        }
    }

    /// Kills and reaps it. It touches nothing that could keep it from dying; should it be in a frozen cgroup of
    /// version 1 it dies when thawed, and until then is a zombie to be.
    fn end(mut self) {
        self.line.hang_up();
        let _ = self.child.kill();
        let gone = poll(&mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(1000u16));
        if gone.is_ok_and(|ready| ready > 0) {
            let _ = self.child.wait();
        }
    }
}

/// A process's state as one letter.
fn state_of(pid: u32) -> Option<char> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 2;
    stat.get(after_name).map(|letter| char::from(*letter))
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("this clock exists on every Linux");
    u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX)
}
