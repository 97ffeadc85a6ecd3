//! How soon containers that were there before the tracker are known with all their fields.
//!
//! The bench starts them and knows each one's id and mount ns. A container counts when a look-up by its mount ns answers
//! with its id, it is running, and, where its runtime knows images, its image has a name and an id. The baseline is the
//! runtime's own command that lists its containers. Run it with `cargo xtask bench present`.

#![allow(clippy::print_stdout, reason = "prints a table")]

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use tracker::container::State;
use tracker::{Config, Container, Lookup, Reader, Tracker};
use tracker_tests::lives::{Life, Place, Running, Starter, Way};

#[derive(Parser)]
#[command(about = "How soon containers that were there before are known")]
struct Arguments {
    /// What runs the containers; without it, all that `--help` of `churn` lists but `run`
    #[arg(long, value_delimiter = ',', default_values = Way::ALL.into_iter().filter(|way| *way != Way::Run).map(Way::name))]
    runtime: Vec<Way>,
    /// Fraction of the full numbers: 1,000 of runc and of crun, 200 of each of the others
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Trackers started one after the other, of which each is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// Longer than any tracker may need; then something is wrong, and what is missing is told.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    // The barrier starts this program once more as its keeper.
    tracker::barrier::keeper_entry();
    let arguments = Arguments::parse();
    println!(
        "| runtime | containers | its own list | all known, best | median | worst | of this, start of the tracker |"
    );
    println!("|---|---|---|---|---|---|---|");
    for way in arguments.runtime {
        let full = if way.has_images() { 200 } else { 1_000 };
        let number = ((f64::from(full) * arguments.scale) as usize).max(1);
        let place = Place::create(&[way])?;
        let mut starter = Starter::new(&place, way)?;
        let running = start(&place, way, number)?;
        let truth: HashMap<u32, &Life> = running.iter().map(|running| (running.life().mntns, running.life())).collect();
        let list = place.list(way)?;
        let mut rounds = (0..arguments.rounds).map(|_| measure(&place, way, &truth)).collect::<Result<Vec<_>>>()?;
        rounds.sort_unstable();
        let ms = |duration: Duration| format!("{:.0} ms", duration.as_secs_f64() * 1e3);
        let median = rounds[rounds.len() / 2];
        println!(
            "| {} | {number} | {} | {} | {} | {} | {} |",
            way.name(),
            ms(list),
            ms(rounds[0].0),
            ms(median.0),
            ms(rounds[rounds.len() - 1].0),
            ms(median.1),
        );
        drop(truth);
        running.into_iter().try_for_each(|running| starter.end(running).map(drop))?;
    }
    Ok(())
}

/// Starts so many, four at a time.
fn start(place: &Place, way: Way, number: usize) -> Result<Vec<Running<'_>>> {
    let (next, all) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(number)));
    let worker = || -> Result<()> {
        let mut starter = Starter::new(place, way)?;
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= number {
                return Ok(());
            }
            let running = starter.begin(&format!("present-{}-{}-{index}", way.name(), std::process::id()))?;
            all.lock().expect("a worker that panics ends the bench").push(running);
        }
    };
    let ended: Vec<Result<()>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().expect("workers do not panic")).collect()
    });
    ended.into_iter().collect::<Result<()>>()?;
    Ok(all.into_inner().expect("a worker that panics ends the bench"))
}

/// From the call that starts the tracker until all are known; and how much of that the call itself took.
fn measure(place: &Place, way: Way, truth: &HashMap<u32, &Life>) -> Result<(Duration, Duration)> {
    let config: Config = toml::from_str(&place.config()).context("understand the bench's own configuration")?;
    // Others may run runtimes on this machine.
    let begun = Instant::now();
    let tracker = Tracker::start(config).context("start the tracker")?;
    let started = begun.elapsed();
    let mut reader = tracker.reader();
    loop {
        let missing = truth.values().find(|life| !is_known(&mut reader, way, life));
        let Some(missing) = missing else { break };
        if begun.elapsed() > PATIENCE {
            bail!("{} is not known after {PATIENCE:?}: {:?}", missing.id, reader.by_mntns(missing.mntns));
        }
        thread::sleep(Duration::from_millis(1));
    }
    let took = begun.elapsed();
    tracker.shutdown();
    Ok((took, started))
}

fn is_known(reader: &mut Reader, way: Way, life: &Life) -> bool {
    let Lookup::Container(container) = reader.by_mntns(life.mntns) else { return false };
    *container.id == *life.id && container.state == State::Running && (!way.has_images() || has_image(container))
}

fn has_image(container: &Container) -> bool {
    container.image.as_ref().is_some_and(|image| image.name.is_some() && image.id.is_some())
}
