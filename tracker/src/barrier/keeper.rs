//! The keeper: the small single-threaded process that owns the fanotify group.
//!
//! A permission event must be answered whatever happens to whoever looks at it, and looking at it (a caller's memory, a
//! bundle's path) can sleep for ever: in D state, past `kill -9`, with the group still open and every start on the host
//! blocked. So the group belongs to a process that touches nothing but the group, one socket and its own locked memory.
//! It promises:
//!
//! - It only ever *allows*.
//! - No task is held longer than the budget, and at most 64 are held ([`custody`](super::custody)).
//! - When the tracker ends or closes the socket, the keeper ends: closing the group lets everything go on. The socket alone
//!   would not tell: what the tracker's process forked shares it until it executes something, and that may be held. So
//!   it waits for the process as well, and for the case that it is itself stopped then, the kernel is told to kill it.
//! - A read never fails for want of an fd, which the kernel would turn into a *denied* exec: before each read there
//!   is room for one, from a spare if need be, and a keeper that can make no room ends instead of reading.
//!
//! It leaves all else (which files, what a task is about to do) to the tracker.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

use super::custody::Custody;
use super::wire::{self, Message, Received, Step};
use crate::sys;

/// `argv[0]` of the keeper, by which [`keeper_entry`] knows it.
pub(crate) const KEEPER_NAME: &str = "tracker-keeper";
/// Above the tracker's own raised threads: nothing that they do may delay an answer that is due.
const PRIORITY: i32 = 3;
/// Messages of the tracker that are handled before the group is looked at again.
const MESSAGES_PER_TURN: usize = 256;
/// The metadata of one event, and nothing behind it: a buffer of this size makes `read` return one event.
const EVENT_LEN: usize = size_of::<libc::fanotify_event_metadata>();

static ENTERED: AtomicBool = AtomicBool::new(false);

/// Becomes the keeper when this process was started as one, and then never returns. To be called first in `main` of every
/// program that starts a [`Barrier`](super::Barrier); without the call the barrier is refused.
///
/// The barrier starts the program that it is part of once more, under another name, so that the process that
/// answers the kernel is a small one of its own. In every other process this function does nothing.
pub fn keeper_entry() {
    ENTERED.store(true, Ordering::Relaxed);
    let mut arguments = std::env::args_os();
    if arguments.next().is_none_or(|name| name != KEEPER_NAME) {
        return;
    }
    let mut number = || arguments.next()?.to_str()?.parse::<u32>().ok();
    let ended = match (number(), number()) {
        (Some(budget_ms), Some(tracker)) => become_keeper(Duration::from_millis(budget_ms.into()), tracker),
        _ => Err(End),
    };
    std::process::exit(if ended.is_ok() { 0 } else { 1 });
}

/// Whether [`keeper_entry`] was called in this process.
pub(crate) fn is_entered() -> bool {
    ENTERED.load(Ordering::Relaxed)
}

/// Why the keeper ends. Nobody reads it but the code that decides between exit codes.
#[derive(Debug)]
struct End;

fn become_keeper(budget: Duration, tracker: u32) -> Result<(), End> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().map_err(|_| End)?;
    if !wire::is_ours(&socket) {
        return Err(End);
    }
    // The clone has the lowest free number, and what lies above is nobody's.
    sys::close_fds_from(socket.as_raw_fd().unsigned_abs() + 1);
    // A keeper that is stopped when the tracker dies could not end by itself, and all starts would wait for it.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    let tracker_end = sys::pidfd_open(tracker).map_err(|_| End)?;
    // The tracker had ended before: its number may be another's, and this process has another parent.
    if nix::unistd::getppid().as_raw().unsigned_abs() != tracker {
        return Err(End);
    }
    // Out of the terminal's and the session's signals, and not where a stuck unmount could find us.
    let _ = nix::unistd::setsid();
    let _ = std::env::set_current_dir("/");
    let _ = nix::sys::prctl::set_name(c"tracker-keeper");
    let _ = raise_fd_limit();
    let realtime = sys::raise_priority_with_children(PRIORITY);

    let tell = |message| wire::send(socket.as_fd(), message, None).map_err(|_| End);
    let flags =
        InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_REPORT_TID | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
    let group = match Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC | EventFFlags::O_LARGEFILE) {
        Ok(group) => group,
        Err(errno) => {
            tell(Message::Refused { step: Step::Group, errno: errno as i32 })?;
            return Err(End);
        }
    };
    let spare = match nix::fcntl::open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty()) {
        Ok(spare) => spare,
        Err(errno) => {
            tell(Message::Refused { step: Step::Reserve, errno: errno as i32 })?;
            return Err(End);
        }
    };
    // What has been touched stays: no page of ours is fetched from a disk while someone waits.
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    let _ = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault);
    tell(Message::Ready { realtime })?;
    let custody = Custody::new(u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX));
    Keeper { socket, tracker_end, group, spare: Some(spare), custody, next: 0 }.run()
}

/// As many fds as this process may have: 64 held ones must always fit.
fn raise_fd_limit() -> Result<(), Errno> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("this clock exists on every Linux");
    u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX)
}

struct Keeper {
    socket: OwnedFd,
    /// Readable when the tracker's process has ended.
    tracker_end: OwnedFd,
    group: Fanotify,
    /// Closed to make room for an event's fd when there is none.
    spare: Option<OwnedFd>,
    /// What answers an event is its fd's number: the fd is closed after the answer.
    custody: Custody<OwnedFd>,
    next: u64,
}

impl Keeper {
    fn run(mut self) -> Result<(), End> {
        loop {
            let tracker_ended = self.wait()?;
            if tracker_ended || !self.listen()? {
                // Said rather than left to the end of the process: the kernel would allow them just the same.
                let held: Vec<_> = self.custody.drain().collect();
                return held.into_iter().try_for_each(|held| self.allow(held.task));
            }
            while let Some(held) = self.custody.expired(now_ns()) {
                self.allow(held.task)?;
            }
            self.read_one()?;
        }
    }

    /// Sleeps until there is something to do; `true` when the tracker has ended.
    fn wait(&self) -> Result<bool, End> {
        let timeout = match self.custody.deadline() {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left_ms = deadline.saturating_sub(now_ns()).div_ceil(1_000_000);
                PollTimeout::try_from(left_ms).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut fds = [self.tracker_end.as_fd(), self.socket.as_fd(), self.group.as_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, timeout) {
            Ok(_) => Ok(fds[0].any().unwrap_or(true)),
            Err(Errno::EINTR) => Ok(false),
            Err(_) => Err(End),
        }
    }

    /// Does what the tracker says; `false` when it has gone.
    fn listen(&mut self) -> Result<bool, End> {
        for _ in 0..MESSAGES_PER_TURN {
            let (message, fd) = match wire::receive(self.socket.as_fd()) {
                Received::Message(message, fd) => (message, fd),
                Received::Nothing => return Ok(true),
                Received::Closed => return Ok(false),
            };
            match message {
                Message::Mark { request } => self.mark(request, MarkFlags::FAN_MARK_ADD, fd),
                Message::Unmark { request } => self.mark(request, MarkFlags::FAN_MARK_REMOVE, fd),
                Message::Allow { event } => {
                    let held = self.custody.answered(event);
                    let in_time = held.is_some();
                    held.map_or(Ok(()), |held| self.allow(held.task))?;
                    self.tell(Message::Released { event, in_time });
                }
                Message::Ping { number } => self.tell(Message::Pong { number, let_go: self.custody.let_go() }),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn mark(&self, request: u64, flags: MarkFlags, fd: Option<OwnedFd>) {
        let marked = match fd {
            Some(fd) => self.group.mark(flags, MaskFlags::FAN_OPEN_EXEC_PERM, fd, None::<&Path>),
            None => Err(Errno::EMFILE),
        };
        self.tell(Message::Marked { request, errno: marked.err().map_or(0, |errno| errno as i32) });
    }

    /// Reads one event and holds its task, or lets it go at once.
    fn read_one(&mut self) -> Result<(), End> {
        let roomy = self.make_room()?;
        let mut bytes = [0; EVENT_LEN];
        match nix::unistd::read(&self.group, &mut bytes) {
            Ok(EVENT_LEN) => {}
            Err(Errno::EAGAIN | Errno::EINTR) => return self.restore_spare(),
            // The kernel has denied an exec already; the next keeper has a new table and, it may be, more memory.
            _ => return Err(End),
        }
        let metadata = Metadata::from(bytes);
        if metadata.mask & libc::FAN_Q_OVERFLOW != 0 {
            self.tell(Message::Overflow);
            return self.restore_spare();
        }
        if metadata.fd < 0 {
            return Err(End);
        }
        // SAFETY: the kernel has just put this fd into our table with the event, and nobody else knows its number.
        let fd = unsafe { OwnedFd::from_raw_fd(metadata.fd) };
        let (event, tid, since_ns) = (self.next, metadata.tid, now_ns());
        self.next += 1;
        let holding = roomy && !self.custody.is_impatient();
        let message = match holding {
            true => Message::Event { event, tid, since_ns },
            false => Message::Passed { event, tid, since_ns },
        };
        // Without the fd when it cannot be sent: too many in flight is the tracker's trouble, not the caller's.
        let told = match wire::send(self.socket.as_fd(), message, Some(fd.as_fd())) {
            Err(Errno::ETOOMANYREFS | Errno::ENOMEM) => wire::send(self.socket.as_fd(), message, None),
            told => told,
        };
        let released = if holding && told.is_ok() {
            self.custody.hold(event, since_ns, fd).map(|oldest| oldest.task)
        } else {
            self.custody.passed();
            Some(fd)
        };
        released.map_or(Ok(()), |fd| self.allow(fd))?;
        self.restore_spare()
    }

    /// Makes sure that one more fd fits, or ends. Returns whether the spare is still there: without it the event must
    /// not be held, since the next one would find no room.
    fn make_room(&mut self) -> Result<bool, End> {
        let fits = |keeper: &Self| keeper.socket.try_clone().is_ok();
        if fits(self) || (raise_fd_limit().is_ok() && fits(self)) {
            return Ok(self.spare.is_some());
        }
        self.spare = None;
        if fits(self) { Ok(false) } else { Err(End) }
    }

    fn restore_spare(&mut self) -> Result<(), End> {
        if self.spare.is_none() {
            self.spare = self.socket.try_clone().ok();
        }
        Ok(())
    }

    /// Lets the task go on whose event has this fd. An answer that the kernel refuses is to an event that has gone: the
    /// task was killed while it waited.
    fn allow(&self, fd: OwnedFd) -> Result<(), End> {
        let mut answer = [0; size_of::<libc::fanotify_response>()];
        answer[0..4].copy_from_slice(&fd.as_raw_fd().to_ne_bytes());
        answer[4..8].copy_from_slice(&libc::FAN_ALLOW.to_ne_bytes());
        loop {
            return match nix::unistd::write(&self.group, &answer) {
                Ok(_) | Err(Errno::ENOENT) => Ok(()),
                Err(Errno::EINTR) => continue,
                Err(_) => Err(End),
            };
        }
    }

    /// Tells the tracker, if it listens: what does not fit into its buffer is something that it can do without.
    fn tell(&self, message: Message) {
        let _ = wire::send(self.socket.as_fd(), message, None);
    }
}

/// The fields of `fanotify_event_metadata` that matter here.
struct Metadata {
    mask: u64,
    fd: i32,
    tid: i32,
}

impl From<[u8; EVENT_LEN]> for Metadata {
    fn from(bytes: [u8; EVENT_LEN]) -> Self {
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        let mut mask = [0; 8];
        mask.copy_from_slice(&bytes[8..16]);
        Metadata { mask: u64::from_ne_bytes(mask), fd: i32::from_ne_bytes(word(16)), tid: i32::from_ne_bytes(word(20)) }
    }
}
