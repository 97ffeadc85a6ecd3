//! Churn: containers come and go as fast as the machine can, with the tracker beside it and without.
//!
//! The bench makes its own truth: it knows each container's id, mount ns and a moment at which it was running, and asks
//! the tracker about exactly that, right then and again at the end, when the number may have been reused many times.
//! What it prints goes into `docs/benchmarks.md`. Run it with `cargo xtask bench churn`.

#![allow(clippy::print_stdout, reason = "prints a table")]

mod figures;
mod witness;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use tracker::{BootTime, Config, Lookup, Reader, Tracker};
use tracker_tests::buckets::Buckets;
use tracker_tests::lives::{Life, Place, Starter, Way};

use figures::{Figures, Percentiles};
use witness::Witness;

#[derive(Parser)]
#[command(about = "Containers come and go as fast as the machine can")]
struct Arguments {
    /// What runs the containers: runc, crun (create and start), run (`runc run`), containerd, docker, podman, cri; without it,
    /// all of them
    #[arg(long, value_delimiter = ',', default_values = Way::ALL.map(Way::name))]
    runtime: Vec<Way>,
    /// Fraction of the full numbers: 10,000 by runc, 1,000 by crun, run and containerd, 300 by each of the others
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Containers at once
    #[arg(long, default_value_t = 4)]
    parallel: usize,
    /// Only with the tracker, without the baseline
    #[arg(long)]
    no_baseline: bool,
}

/// What the tracker said about one life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Right,
    Wrong,
    Missed,
}

/// One life, and what was answered while it lasted.
struct Lived {
    life: Life,
    answer: Answer,
}

fn main() -> Result<()> {
    // The barrier starts this program once more as its keeper.
    tracker::barrier::keeper_entry();
    let arguments = Arguments::parse();
    let place = Place::create(&arguments.runtime)?;

    println!(
        "| way | tracker | lives | per second | seen | held | let-go | first-exec | observed | missed | wrong | start p50 | p99 | max | exit p50 | p99 | max |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut besides = Vec::new();
    for way in arguments.runtime {
        let lives = ((full_number(way) as f64 * arguments.scale) as usize).max(1);
        if !arguments.no_baseline {
            churn(way, lives, arguments.parallel, &place, None)?.print(way, "no");
        }
        let tracker = start_tracker(&place)?;
        churn(way, lives, arguments.parallel, &place, Some(&tracker))?.print(way, "yes");
        besides.push(aside(way, lives, &tracker));
        tracker.shutdown();
    }
    println!("\n{}", besides.join("\n"));
    Ok(())
}

/// As many as take some minutes.
fn full_number(way: Way) -> usize {
    match way {
        Way::Runc => 10_000,
        Way::Crun | Way::Run | Way::Containerd => 1_000,
        Way::Docker | Way::Podman | Way::Cri => 300,
    }
}

/// What the tracker itself counted while it was beside.
fn aside(way: Way, lives: usize, tracker: &Tracker) -> String {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let stats = tracker.stats();
    let calls = [
        ("containerd", count(&stats.containerd.calls_container) + count(&stats.containerd.calls_image)),
        ("docker", count(&stats.docker.calls_inspect) + count(&stats.docker.calls_image)),
        ("podman", count(&stats.podman.calls_inspect) + count(&stats.podman.calls_pod)),
        ("cri", count(&stats.cri.calls_status)),
        ("cri, lists", count(&stats.cri.calls_list)),
    ];
    let calls = calls.into_iter().filter(|(_, calls)| *calls > 0);
    let calls: Vec<String> = calls.map(|(who, calls)| format!("{:.2} ({who})", calls as f64 / lives as f64)).collect();
    let calls = if calls.is_empty() { "none".to_owned() } else { calls.join(", ") };
    let barrier = &tracker.stats().barrier;
    let held = Buckets(barrier.hold_times.counts().into());
    format!(
        "{}: calls per life: {calls}; read to answer of {} events: p50 {}, p99 {}, max {}",
        way.name(),
        held.total(),
        held.at(0.5),
        held.at(0.99),
        held.at(1.0),
    )
}

fn start_tracker(place: &Place) -> Result<Tracker> {
    // Dead containers are kept until the end, when all of them are asked for again.
    let config = format!(
        "[collection]\nlinger-ms = 3600000\ntombstone-bytes = 1073741824\nmax-containers = 65536\n{}",
        place.config()
    );
    let config: Config = toml::from_str(&config).context("understand the bench's own configuration")?;
    Tracker::start(config).context("start the tracker")
}

/// Runs `number` lives and says how they went.
fn churn(way: Way, number: usize, parallel: usize, place: &Place, tracker: Option<&Tracker>) -> Result<Figures> {
    let witness = tracker.map(Witness::start).transpose()?;
    let next = AtomicUsize::new(0);
    // Ids are not used twice, not even by the baseline and the run it is for.
    let run = BootTime::now().0;
    let lived = Mutex::new(Vec::with_capacity(number));
    let start = Instant::now();
    let failures: Vec<anyhow::Error> = thread::scope(|scope| {
        let worker = || -> Result<()> {
            let mut reader = tracker.map(|tracker| tracker.reader());
            let mut starter = Starter::new(place, way)?;
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= number {
                    return Ok(());
                }
                let id = format!("churn-{}-{run}-{index}", way.name());
                let one = live(&mut starter, reader.as_mut(), &id)?;
                lived.lock().expect("a worker that panics ends the bench").push(one);
            }
        };
        let workers: Vec<_> = (0..parallel).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().filter_map(|worker| worker.join().expect("workers do not panic").err()).collect()
    });
    let took = start.elapsed();
    if let Some(failure) = failures.into_iter().next() {
        return Err(failure);
    }
    let mut lived = lived.into_inner().expect("a worker that panics ends the bench");

    let mut seen = Default::default();
    if let (Some(witness), Some(tracker)) = (witness, tracker) {
        seen = witness.end(&lived, Duration::from_secs(5));
        let mut reader = tracker.reader();
        for Lived { life, answer } in &mut lived {
            // A wrong answer stays one, whatever is said later.
            if *answer != Answer::Wrong && ask(&mut reader, life) == Answer::Wrong {
                *answer = Answer::Wrong;
            }
        }
    }
    Ok(Figures::new(took, &lived, &seen))
}

fn live(starter: &mut Starter<'_>, reader: Option<&mut Reader>, name: &str) -> Result<Lived> {
    let running = starter.begin(name)?;
    let answer = reader.map_or(Answer::Missed, |reader| ask(reader, running.life()));
    Ok(Lived { life: starter.end(running)?, answer })
}

fn ask(reader: &mut Reader, life: &Life) -> Answer {
    match reader.by_mntns_at(life.mntns, life.at) {
        Lookup::Container(container) if *container.id == *life.id => Answer::Right,
        Lookup::Container(_) | Lookup::Host => Answer::Wrong,
        Lookup::Unknown => Answer::Missed,
    }
}

/// How long each of many took.
fn percentiles(durations: impl Iterator<Item = Duration>) -> Percentiles {
    Percentiles::of(durations.collect())
}
