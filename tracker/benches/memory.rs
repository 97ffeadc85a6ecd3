//! Memory per container, beside what its labels alone take as text.

#![allow(clippy::print_stdout, reason = "its figures are what it is for")]

#[allow(dead_code, reason = "each benchmark needs a part of it")]
mod lives;

use lives::{filled, settle, start};

const CONTAINERS: u32 = 10_000;

fn main() {
    // A filter that names another benchmark.
    if std::env::args().skip(1).any(|argument| !argument.starts_with('-') && !"memory".contains(&argument)) {
        return;
    }
    memory();
}

fn memory() {
    // The second ten thousand: what the way there needs for moments is in use, and free again, after the first. Not all
    // at once: what waits in the queue is not what a container takes.
    let tracker = filled(CONTAINERS, 0);
    let before = resident();
    for n in CONTAINERS..2 * CONTAINERS {
        tracker.facts().state_blocking(start(n, 1)).expect("it runs");
        if n % 100 == 0 {
            settle(&tracker);
        }
    }
    settle(&tracker);
    let each = (resident() - before) / u64::from(CONTAINERS);
    assert_eq!(tracker.reader().all().count(), 2 * CONTAINERS as usize);
    let plain: u64 = (0..CONTAINERS)
        .map(|n| {
            serde_json::to_vec(&(0..12).map(|l| format!("example.org/label-{l}: value-{l}-{n}")).collect::<Vec<_>>())
        })
        .map(|json| json.map_or(0, |json| json.len() as u64))
        .sum::<u64>()
        / u64::from(CONTAINERS);
    println!("| per container with 12 labels and all statements, bytes | its labels as JSON, bytes |\n|---|---|");
    println!("| {each} | {plain} |");
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc is there");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("field 2 counts pages");
    pages * 4_096
}
