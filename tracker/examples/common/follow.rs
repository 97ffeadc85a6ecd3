//! From the start to Ctrl-C: events out of the kernel, names out of the tracker, lines to whoever reads them.
//!
//! ```text
//!  tracepoint ─▶ selected? ─▶ ring buffer ─▶ Waiting ─▶ enrich.by_mntns_at(ns, time) ─▶ a line
//! ```

use std::collections::VecDeque;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use tracker::container::Kind;
use tracker::plane::selection::SelectionMaps;
use tracker::source::health::Condition;
use tracker::{BootTime, Config, Enrich, Enrichment, Selector, Tracker, Verdict};

use super::head::Head;
use super::probe::{Object, Probe};
use super::text::Format;

/// The options that every example has.
#[derive(Args)]
pub(crate) struct Options {
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
    /// The tracker's configuration, a file of TOML; without it everything has its default
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only what happens in containers that this selector picks, for example `image=*nginx*`: filtered in the kernel
    #[arg(short, long, value_name = "SELECTOR")]
    select: Option<Selector>,
    /// At the end, tell what the probe has cost
    #[arg(long)]
    stats: bool,
}

/// What an example follows.
pub(crate) struct Subject<E> {
    /// The example's name.
    pub(crate) name: &'static str,
    /// What its events are called.
    pub(crate) events: &'static str,
    /// Understands the bytes of one.
    pub(crate) decode: fn(&[u8]) -> Option<E>,
    /// What every event begins with.
    pub(crate) head: fn(&E) -> &Head,
}

/// Shows one event, and what is known about where it happened.
pub(crate) trait Show<E>: FnMut(&mut dyn Write, &E, &Enrichment<'_>) -> io::Result<()> {}
impl<E, F: FnMut(&mut dyn Write, &E, &Enrichment<'_>) -> io::Result<()>> Show<E> for F {}

/// How long an event that cannot be answered yet is kept.
///
/// A container whose start is held is in the collection before its first exec. Where nothing holds the start, as with
/// `runc run`, its birth is reported by the tracker's own probe, through a ring buffer of its own: which of the two
/// buffers is emptied first is a matter of microseconds. And a container of a runtime that the tracker does not hold yet
/// has no name until that runtime's files have been read. So `unknown` and nameless right after the event mean "not yet"
/// rather than "never": wait and ask again. The answer is for the event's time, so that asking later does not make it
/// another. The time is what a busy machine may need and a person does not notice.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long to sleep before asking again, in milliseconds. A look-up takes nanoseconds.
const PAUSE: u8 = 1;

/// Events that may wait: more than the ring buffer has room for. When there are more, they stay in there.
const MAX_WAITING: usize = 4096;

/// Says what went wrong, if anything did.
pub(crate) fn exit_code(name: &str, done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts a tracker of its own and shows events until Ctrl-C. `begin` is given the tracker, prints the first line, if any,
/// and returns what shows the others.
pub(crate) fn run<E, S: Show<E>>(
    subject: Subject<E>,
    options: &Options,
    object: &Object,
    begin: impl FnOnce(&Tracker, &mut dyn Write) -> io::Result<S>,
) -> Result<()> {
    let Subject { name, events, .. } = subject;
    let config = options.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
    // Before the tracker starts its threads, which inherit it: the signals come out of a file that can be polled.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block().context("block signals")?;
    let ended = SignalFd::new(&signals).context("make a file of signals")?;

    let capacity = config.plane.capacity;
    let tracker = Tracker::start(config).map_err(|error| {
        let remedy = error.remedy();
        anyhow::Error::new(error).context(remedy)
    })?;
    // What does not work makes answers missing, never wrong. Say it, so that nobody wonders.
    for source in tracker.health() {
        if matches!(source.condition, Condition::Degraded | Condition::Refused) {
            eprintln!("{name}: {} ({}) is {}: {}", source.source, source.what, source.condition.name(), source.detail);
        }
    }
    let mut probe = Probe::load(object, options.select.as_ref().map(|_| capacity))?;
    // From here on the map is right before a held container's first instruction. One whose start nothing holds, as with
    // `runc run`, may have done something before anybody knows what it is: that is not seen.
    let selection = match &options.select {
        None => None,
        Some(selector) => {
            let maps = SelectionMaps::from_fds(Some(probe.selected()?), None)?;
            Some(tracker.selection_in_blocking(name, selector.clone(), maps)?)
        }
    };
    // The kernel counts for as long as this is open.
    let _counting = options.stats.then(|| aya::sys::enable_stats(aya::sys::Stats::RunTime)).transpose()?;
    probe.attach()?;
    eprintln!("{name}: watching; Ctrl-C ends it");

    let mut out = BufWriter::new(io::stdout().lock());
    let show = begin(&tracker, &mut out)?;
    let mut follow = Follow { subject, enrich: tracker.enrich(), out, show, waiting: VecDeque::new(), shown: 0 };
    let outcome = follow.run(&mut probe, &ended);
    eprintln!("{name}: {} {events} shown, {} lost", follow.shown, probe.lost()?);
    if let Some(missing) = selection.map(|selection| selection.figures().missing).filter(|missing| *missing > 0) {
        eprintln!("{name}: {missing} selected containers found no room in the map");
    }
    if options.stats {
        let (runs, time) = probe.cost()?;
        let each = time.as_nanos().checked_div(runs.into()).unwrap_or(0);
        eprintln!("{name}: the probe ran {runs} times, for {each} ns each");
    }
    match outcome {
        // Who reads the output has enough: `execsnoop | head`.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => Ok(()),
        outcome => outcome,
    }
    // The tracker ends when it is dropped, and lets go what it holds.
}

/// Events on their way from the ring buffer to the output, in their order.
struct Follow<E, W: Write, S> {
    subject: Subject<E>,
    enrich: Enrich,
    out: W,
    show: S,
    /// Each with the moment at which it is shown whatever is known.
    waiting: VecDeque<(Instant, E)>,
    shown: u64,
}

impl<E, W: Write, S: Show<E>> Follow<E, W, S> {
    fn run(&mut self, probe: &mut Probe, ended: &SignalFd) -> Result<()> {
        loop {
            self.read(probe);
            self.show(Instant::now())?;
            if self.sleep(probe, ended)? {
                break;
            }
        }
        // What happened before the end is shown, too, without waiting any more: what waits, then what was not read yet.
        self.show(Instant::now() + PATIENCE)?;
        self.read(probe);
        self.show(Instant::now() + PATIENCE)
    }

    /// Takes events out of the ring buffer, which counts what it has no room for.
    fn read(&mut self, probe: &mut Probe) {
        while self.waiting.len() < MAX_WAITING {
            let Some(event) = probe.next(self.subject.decode) else { return };
            self.waiting.push_back((Instant::now() + PATIENCE, event));
        }
    }

    /// Shows the oldest ones up to the first that has to wait: lines come in the order of the events.
    fn show(&mut self, now: Instant) -> Result<()> {
        while let Some((deadline, event)) = self.waiting.front() {
            let head = (self.subject.head)(event);
            // The number and the moment of the event: mount namespaces' numbers are reused, often at once.
            let known = self.enrich.by_mntns_at(head.mntns, BootTime(head.time));
            if !is_settled(&known) && now < *deadline {
                break;
            }
            if is_selected(head, &known) {
                (self.show)(&mut self.out, event, &known)?;
                self.shown += 1;
            }
            self.waiting.pop_front();
        }
        Ok(self.out.flush()?)
    }

    /// Sleeps until there is something to do; returns whether that is to end.
    fn sleep(&self, probe: &Probe, ended: &SignalFd) -> Result<bool> {
        let mut files = [PollFd::new(ended.as_fd(), PollFlags::POLLIN), PollFd::new(probe.as_fd(), PollFlags::POLLIN)];
        // While something waits, new events wait behind it: looking for both once in a while is enough.
        let (files, timeout) = match self.waiting.is_empty() {
            true => (&mut files[..], PollTimeout::NONE),
            false => (&mut files[..1], PAUSE.into()),
        };
        match poll(files, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(files[0].any().unwrap_or(false)),
            Err(errno) => Err(errno).context("wait for an event"),
        }
    }
}

/// Whether an event that the kernel let through is a selected container's: the mount namespace's number may have had a new
/// holder in the moment before the selection was told.
fn is_selected(head: &Head, known: &Enrichment<'_>) -> bool {
    let generation = known.container.and_then(|container| container.generation);
    head.selected == 0 || generation.is_none_or(|generation| generation == head.selected)
}

/// Whether asking again would change nothing: it is the host's, a container's that somebody vouches for, or somebody's who
/// has been nameless for so long that nobody will.
fn is_settled(known: &Enrichment<'_>) -> bool {
    match (known.verdict, known.container) {
        (Verdict::Unknown, _) => false,
        (_, Some(container)) if container.kind == Kind::Unmanaged => {
            container.created_at.is_none_or(|born| BootTime::now().since(born) > PATIENCE)
        }
        _ => true,
    }
}
