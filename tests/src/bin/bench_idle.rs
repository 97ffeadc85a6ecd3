//! What the tracker costs a host on which nothing happens: `bench_idle [CONTAINERS] [SECONDS]` counts the context switches of
//! each of its threads while that many containers sleep, and while there are none, and takes its memory.

#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tracker_tests::daemon::Daemon;
use tracker_tests::house::House;
use tracker_tests::runc::Kind;
use tracker_tests::wait::eventually;

/// The default: how often the keeper is asked whether it lives depends on it.
const BUDGET: Duration = Duration::from_millis(200);
/// Until what came with the start has been worked off: the looks in the runtimes' directories that follow it included.
const SETTLE: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<u64>());
    let containers = numbers.next().transpose()?.unwrap_or(100);
    let seconds = numbers.next().transpose()?.unwrap_or(10);
    let house = House::new(Kind::Runc)?;
    println!("| containers | context switches in {seconds} s | PSS of tracker and keeper, MiB |\n|---|---|---|");
    measure(&house, 0, seconds)?;
    let running = (0..containers).map(|number| house.started(&format!("idle-{number}"))).collect::<Result<Vec<_>>>()?;
    measure(&house, running.len(), seconds)
}

fn measure(house: &House, containers: usize, seconds: u64) -> Result<()> {
    let mut daemon = Daemon::start(&house.config(BUDGET, ""))?;
    eventually("all containers are known", || {
        (0..containers).all(|number| daemon.find(&format!("idle-{number}")).is_some()).then_some(())
    });
    let tracker = daemon.process().pid();
    let keeper = fs::read_to_string(format!("/proc/{tracker}/task/{tracker}/children"));
    let processes: Vec<u32> = keeper.iter().flat_map(|pids| pids.split_whitespace()).flat_map(str::parse).collect();
    let processes = [&[tracker][..], &processes].concat();
    // Not an event that is awaited: time without events is what is measured.
    thread::sleep(SETTLE);
    let before = switches(&processes)?;
    thread::sleep(Duration::from_secs(seconds));
    let after = switches(&processes)?;
    let mut told = Vec::new();
    for ((pid, thread, name), count) in &after {
        match count - before.get(&(*pid, *thread, name.clone())).unwrap_or(&0) {
            0 => {}
            more => told.push(format!("{name} {more}")),
        }
    }
    let told = if told.is_empty() { "none".to_owned() } else { told.join(", ") };
    let memory = processes.iter().map(|pid| pss_kib(*pid)).sum::<Result<f64>>()? / 1024.0;
    println!("| {containers} | {told} | {memory:.1} |");
    Ok(())
}

/// Context switches of all threads so far, by process, thread and name.
fn switches(processes: &[u32]) -> Result<BTreeMap<(u32, u32, String), u64>> {
    let mut switches = BTreeMap::new();
    for pid in processes {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let Some(tid) = thread.file_name().to_str().and_then(|tid| tid.parse().ok()) else { continue };
            let status = fs::read_to_string(thread.path().join("status"))?;
            let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
            let count = |key: &str| value(key).and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
            let name = value("Name:").unwrap_or_default().to_owned();
            let sum = count("voluntary_ctxt_switches:") + count("nonvoluntary_ctxt_switches:");
            switches.insert((*pid, tid, name), sum);
        }
    }
    Ok(switches)
}

fn pss_kib(pid: u32) -> Result<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("read the memory in use")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("a proportional set size")?;
    line.trim().trim_end_matches(" kB").parse().context("a number of KiB")
}
