//! Memory per container, beside what its labels alone take as text.

#![allow(clippy::print_stdout, reason = "its figures are what it is for")]

#[allow(dead_code, reason = "each benchmark needs a part of it")]
mod lives;

use lives::filled;

fn main() {
    // A filter that names another benchmark.
    if std::env::args().skip(1).any(|argument| !argument.starts_with('-') && !"memory".contains(&argument)) {
        return;
    }
    memory();
}

fn memory() {
    let containers = 10_000;
    let base = resident();
    let tracker = filled(containers, 0);
    let after = resident();
    assert_eq!(tracker.reader().all().count(), containers as usize);
    let plain: u64 = (0..containers)
        .map(|n| {
            serde_json::to_vec(&(0..12).map(|l| format!("example.org/label-{l}: value-{l}-{n}")).collect::<Vec<_>>())
        })
        .map(|json| json.map_or(0, |json| json.len() as u64))
        .sum::<u64>()
        / u64::from(containers);
    println!("| per container with 12 labels and all statements, bytes | its labels as JSON, bytes |\n|---|---|");
    println!("| {} | {plain} |", (after - base) / u64::from(containers));
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc is there");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("field 2 counts pages");
    pages * 4_096
}
