//! `execsnoop`: every exec on the host, with the container that it happens in.
//!
//! An example of a tracer. Its kernel half knows numbers only: a mount namespace and a moment. The library, running
//! inside of this process, turns them into a container, pod and image. Copy what is useful:
//!
//! - `event.rs`: the bytes that the kernel half sends, and how they are taken apart;
//! - `probe.rs`: loading the kernel half without knowing the kernel's version;
//! - `line.rs`: what a line looks like;
//! - this file: asking the tracker at the right moment.
//!
//! ```text
//!  sched_process_exec ─▶ selected? ─▶ ring buffer ─▶ Waiting ─▶ enrich.by_mntns_at(ns, time) ─▶ a line
//! ```

#![allow(clippy::print_stderr, reason = "a command speaks to its terminal")]

mod event;
mod line;
mod probe;

use std::collections::VecDeque;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use tracker::container::Kind;
use tracker::plane::selection::SelectionMaps;
use tracker::source::health::Condition;
use tracker::{BootTime, Config, Enrich, Enrichment, Selector, Tracker, Verdict};

use event::Exec;
use line::Format;
use probe::Probe;

/// Shows every exec on this host and the container that it happens in, until Ctrl-C. Needs root.
#[derive(Parser)]
#[command(name = "execsnoop")]
struct Arguments {
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// The tracker's configuration, a file of TOML; without it everything has its default
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only execs in containers that this selector picks, for example `image=*nginx*`: filtered in the kernel
    #[arg(short, long, value_name = "SELECTOR")]
    select: Option<Selector>,
    /// At the end, tell what the probe has cost
    #[arg(long)]
    stats: bool,
}

/// How long an exec that cannot be answered yet is kept.
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

/// Execs that may wait: more than the ring buffer has room for. When there are more, they stay in there.
const MAX_WAITING: usize = 4096;

fn main() -> ExitCode {
    // First of all: the keeper, the small process that holds containers' starts, is this program once more. Without this
    // line everything else works, but no start is held.
    tracker::barrier::keeper_entry();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("execsnoop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let config = arguments.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
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
            eprintln!(
                "execsnoop: {} ({}) is {}: {}",
                source.source,
                source.what,
                source.condition.name(),
                source.detail
            );
        }
    }
    let mut probe = Probe::load(arguments.select.as_ref().map(|_| capacity))?;
    // From here on the map is right before a held container's first instruction. One whose start nothing holds, as with
    // `runc run`, may have executed something before anybody knows what it is: those execs are not seen.
    let selection = match &arguments.select {
        None => None,
        Some(selector) => {
            let maps = SelectionMaps::from_fds(Some(probe.selected()?), None)?;
            Some(tracker.selection_in_blocking("execsnoop", selector.clone(), maps)?)
        }
    };
    // The kernel counts for as long as this is open.
    let _counting = arguments.stats.then(|| aya::sys::enable_stats(aya::sys::Stats::RunTime)).transpose()?;
    probe.attach()?;
    eprintln!("execsnoop: watching; Ctrl-C ends it");

    let mut snoop = Snoop {
        enrich: tracker.enrich(),
        format: arguments.output,
        out: BufWriter::new(io::stdout().lock()),
        waiting: VecDeque::new(),
        shown: 0,
    };
    let outcome = snoop.run(&mut probe, &ended);
    eprintln!("execsnoop: {} execs shown, {} lost", snoop.shown, probe.lost()?);
    if let Some(missing) = selection.map(|selection| selection.figures().missing).filter(|missing| *missing > 0) {
        eprintln!("execsnoop: {missing} selected containers found no room in the map");
    }
    if arguments.stats {
        let (runs, time) = probe.cost()?;
        let each = time.as_nanos().checked_div(runs.into()).unwrap_or(0);
        eprintln!("execsnoop: the probe ran {runs} times, for {each} ns each");
    }
    match outcome {
        // Who reads the output has enough: `execsnoop | head`.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => Ok(()),
        outcome => outcome,
    }
    // The tracker ends when it is dropped, and lets go what it holds.
}

/// Execs on their way from the ring buffer to the output, in their order.
struct Snoop<W: Write> {
    enrich: Enrich,
    format: Format,
    out: W,
    /// Each with the moment at which it is shown whatever is known.
    waiting: VecDeque<(Instant, Exec)>,
    shown: u64,
}

impl<W: Write> Snoop<W> {
    fn run(&mut self, probe: &mut Probe, ended: &SignalFd) -> Result<()> {
        self.format.head(&mut self.out)?;
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

    /// Takes execs out of the ring buffer, which counts what it has no room for.
    fn read(&mut self, probe: &mut Probe) {
        while self.waiting.len() < MAX_WAITING {
            let Some(exec) = probe.next() else { return };
            self.waiting.push_back((Instant::now() + PATIENCE, exec));
        }
    }

    /// Shows the oldest ones up to the first that has to wait: lines come in the order of the execs.
    fn show(&mut self, now: Instant) -> Result<()> {
        while let Some((deadline, exec)) = self.waiting.front() {
            // The number and the moment of the event: mount namespaces' numbers are reused, often at once.
            let known = self.enrich.by_mntns_at(exec.mntns, BootTime(exec.time));
            if !is_settled(&known) && now < *deadline {
                break;
            }
            if is_selected(exec, &known) {
                self.format.line(&mut self.out, exec, &known)?;
                self.shown += 1;
            }
            self.waiting.pop_front();
        }
        Ok(self.out.flush()?)
    }

    /// Sleeps until there is something to do; returns whether that is to end.
    fn sleep(&self, probe: &Probe, ended: &SignalFd) -> Result<bool> {
        let mut files = [PollFd::new(ended.as_fd(), PollFlags::POLLIN), PollFd::new(probe.as_fd(), PollFlags::POLLIN)];
        // While something waits, new execs wait behind it: looking for both once in a while is enough.
        let (files, timeout) = match self.waiting.is_empty() {
            true => (&mut files[..], PollTimeout::NONE),
            false => (&mut files[..1], PAUSE.into()),
        };
        match poll(files, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(files[0].any().unwrap_or(false)),
            Err(errno) => Err(errno).context("wait for an exec"),
        }
    }
}

/// Whether an exec that the kernel let through is a selected container's: the mount namespace's number may have had a new
/// holder in the moment before the selection was told.
fn is_selected(exec: &Exec, known: &Enrichment<'_>) -> bool {
    let generation = known.container.and_then(|container| container.generation);
    exec.selected == 0 || generation.is_none_or(|generation| generation == exec.selected)
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
