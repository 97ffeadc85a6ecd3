//! How long the barrier holds: `barrier_bench [ROUNDS]` starts containers of a private crun, one at a time and fifty at once,
//! answers them as a collection without subscribers would, and prints the time from the keeper's reading of the event to
//! the answer, and the time of the whole `start` with and without the barrier.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;
use tracker::barrier::{HOLD_BUCKETS_US, Stats};
use tracker_tests::barrier::{Answer, Barrier};
use tracker_tests::bundle::{Bundle, RootFs};
use tracker_tests::runc::{Container, Kind, Runtime};

const AT_ONCE: usize = 50;

fn main() -> Result<()> {
    let rounds = std::env::args().nth(1).map_or(Ok(10), |rounds| rounds.parse())?;
    let temp = TempDir::new()?;
    let (root, runtime) = (RootFs::create(temp.path())?, Runtime::copy(Kind::Crun, temp.path())?);
    let bundle = Bundle::create(temp.path(), "bundle", &root, &["true"])?;
    println!("{:<28} {:>10} {:>10} {:>10} {:>8}", "", "p50", "p99", "max", "let go");
    for (name, at_once) in [("one start", 1), ("50 starts at once", AT_ONCE)] {
        let bare = churn(&runtime, &bundle, at_once, rounds, || ())?;
        let keeper = std::env::current_exe()?.with_file_name("keeper").display().to_string();
        let barrier = Barrier::start(&keeper, &[runtime.program()], Duration::from_millis(200), Answer::AtOnce)?;
        let mut before = Buckets::default();
        let mut held = Buckets::default();
        let with = churn(&runtime, &bundle, at_once, rounds, || {
            // Called before and after the starts of each round.
            let now = Buckets::of(&barrier.stats);
            match before.total() {
                0 => before = now,
                _ => held.add(&now.since(&std::mem::take(&mut before))),
            }
        })?;
        let let_go = barrier.stats.let_go.load(Ordering::Relaxed);
        println!("{name}, read to answer {:>10} {:>10} {:>10} {let_go:>8}", held.at(0.5), held.at(0.99), held.at(1.0));
        print_times(&format!("{name}, whole, held"), with);
        print_times(&format!("{name}, whole, bare"), bare);
    }
    Ok(())
}

/// Creates containers and starts them all at once, again and again; returns how long each start took.
fn churn(
    runtime: &Runtime,
    bundle: &Bundle,
    at_once: usize,
    rounds: usize,
    mut around: impl FnMut(),
) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    for _ in 0..rounds.max(200 / at_once) {
        let containers: Vec<Container<'_>> =
            (0..at_once).map(|number| runtime.create(bundle, &format!("c{number}"))).collect::<Result<_>>()?;
        around();
        let times: Vec<Result<Duration>> = std::thread::scope(|scope| {
            let starting: Vec<_> = containers.iter().map(|container| scope.spawn(|| container.start())).collect();
            starting.into_iter().map(|starting| starting.join().expect("no panic")).collect()
        });
        around();
        took.extend(times.into_iter().collect::<Result<Vec<_>>>()?);
    }
    took.sort();
    Ok(took)
}

fn print_times(name: &str, sorted: Vec<Duration>) {
    let at = |share: f64| format!("{:.2} ms", sorted[((sorted.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3);
    println!("{name:<28} {:>10} {:>10} {:>10}", at(0.5), at(0.99), at(1.0));
}

/// The hold time's histogram.
#[derive(Clone, Default)]
struct Buckets(Vec<u64>);

impl Buckets {
    fn of(stats: &Stats) -> Buckets {
        Buckets(stats.hold_buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect())
    }

    fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    fn since(&self, before: &Buckets) -> Buckets {
        Buckets(self.0.iter().zip(&before.0).map(|(now, before)| now - before).collect())
    }

    fn add(&mut self, other: &Buckets) {
        self.0.resize(other.0.len(), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(sum, more)| *sum += more);
    }

    /// The bound below which this share lies.
    fn at(&self, share: f64) -> String {
        let wanted = (self.total() as f64 * share).ceil() as u64;
        let mut sum = 0;
        for (bucket, count) in self.0.iter().enumerate() {
            sum += count;
            if sum >= wanted {
                return HOLD_BUCKETS_US.get(bucket).map_or("more".into(), |bound| format!("≤{bound} us"));
            }
        }
        "-".into()
    }
}
