//! What the probes cost processes that are none of the tracker's business: a host's forks, execs and exits.
//!
//! Two measures in one run: the kernel's own run-time statistics of each probe, and the wall time of a whole spawn with
//! and without the probes, in alternating rounds so that a machine that slows down slows both. The statistics themselves
//! cost some 20 ns a run, and are off while wall time is measured.

#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tracker::source::kernel::{Config, Kernel, Machine};
use tracker_tests::requirement;

/// Spawns per round; `bench_exec 100` is a quick run.
const SPAWNS: u32 = 2_000;
const ROUNDS: usize = 5;
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

fn main() -> Result<()> {
    let spawns = match std::env::args().nth(1) {
        Some(given) => given.parse().with_context(|| format!("a number of spawns, not `{given}`"))?,
        None => SPAWNS,
    };
    // Static where there is one: the loader's work would drown what is measured.
    let program = requirement::program("busybox").or_else(|_| requirement::program("true"));
    let program = program.map_err(anyhow::Error::msg)?;
    let mut command = Command::new(&program);
    // Busybox does nothing under this name.
    command.arg0("true").stdin(Stdio::null()).stdout(Stdio::null());

    let machine = Machine::examine()?;
    let load = || Kernel::load(&Config::default(), &machine).context("load the probes");
    let (mut without, mut with) = (Vec::new(), Vec::new());
    round(&mut command, spawns)?;
    for _ in 0..ROUNDS {
        without.push(round(&mut command, spawns)?);
        let probes = load()?;
        with.push(round(&mut command, spawns)?);
        drop(probes);
    }
    let (without, with) = (median(&mut without), median(&mut with));

    let statistics = Statistics::enable()?;
    let probes = load()?;
    round(&mut command, spawns)?;
    let costs = probes.costs();
    drop(statistics);

    println!("| probe | runs | ns per run |\n|---|---|---|");
    for cost in costs.iter().filter(|cost| cost.runs > 0) {
        let each = cost.time.as_nanos() / u128::from(cost.runs);
        println!("| {} | {} | {each} |", cost.tracepoint, cost.runs);
    }
    println!("\n| spawn of `{}`, median of {ROUNDS} rounds of {spawns} | µs |\n|---|---|", program.display());
    println!("| without probes | {:.1} |", micros(without));
    println!("| with probes | {:.1} |", micros(with));
    println!("| difference | {:+.2} |", micros(with) - micros(without));
    let ran = |name| costs.iter().any(|cost| cost.tracepoint == name && cost.runs >= u64::from(spawns));
    ensure!(ran("sched_process_exec") && ran("sched_process_fork"), "the probes ran for each spawn");
    Ok(())
}

/// Time per spawn, from before the fork to after the wait.
fn round(command: &mut Command, spawns: u32) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..spawns {
        command.status().context("spawn")?;
    }
    Ok(start.elapsed() / spawns)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

/// The kernel's run-time statistics of BPF programs, for as long as this lives.
struct Statistics(Vec<u8>);

impl Statistics {
    fn enable() -> Result<Statistics> {
        let before = fs::read(STATISTICS).with_context(|| format!("read `{STATISTICS}`"))?;
        fs::write(STATISTICS, "1").with_context(|| format!("write `{STATISTICS}`"))?;
        Ok(Statistics(before))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        // Nothing depends on it but what measures.
        let _ = fs::write(STATISTICS, &self.0);
    }
}
