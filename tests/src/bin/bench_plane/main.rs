//! The plane as another process sees it: look-ups in the mapped file beside `bpf()` calls and the debug socket, while its
//! owner changes rows; what a change costs the owner; and how many changes a name outlives. Prints tables for
//! docs/benchmarks.md.
//!
//! `bench_plane [containers] [changes]`, 10,000 and 1,000,000 by default; needs root.
#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

mod look;
mod owner;

use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use tracker_common::plane::{Geometry, Row};
use tracker_common::reader::{Answer, Plane, TextBuffer, When};

use owner::Owner;

/// Changes in a second while others look up.
const CHANGES_PER_SECOND: u32 = 200;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == look::WORD) {
        return look::run(&arguments[1..]);
    }
    let mut numbers = arguments.iter().map(|number| number.parse::<u32>());
    let containers = numbers.next().transpose().context("a number of containers")?.unwrap_or(10_000);
    let changes = numbers.next().transpose().context("a number of changes")?.unwrap_or(1_000_000);
    let owner = Owner::start(containers)?;
    looked_up(&owner)?;
    written(&owner)?;
    outlived(&owner, changes)
}

/// Look-ups by another process, while rows change.
fn looked_up(owner: &Owner) -> Result<()> {
    let steady = owner.change_steadily(CHANGES_PER_SECOND);
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(program);
    command.arg(look::WORD).args([owner.plane(), owner.socket(), owner.pins()]).arg(owner.containers().to_string());
    let status = command.stdout(Stdio::inherit()).status().context("start the process that looks up")?;
    ensure!(
        status.success(),
        "the process that looks up ended with {status}: a system call where there is to be none?"
    );
    let changed = steady.stop();
    println!("\nMeanwhile the owner changed {changed} rows, {CHANGES_PER_SECOND} a second.");
    Ok(())
}

/// What a change costs the one who writes it.
fn written(owner: &Owner) -> Result<()> {
    let stats = &owner.tracker().stats().plane;
    println!("\n| what is written | changes | µs each |\n|---|---|---|");
    for (what, names) in [("a new name", 20_000_u32), ("a life: born, named, run, ended, forgotten", 0)] {
        let before = (stats.changes.load(Ordering::Relaxed), stats.write_ns.load(Ordering::Relaxed));
        match names {
            0 => owner.live_and_die(5_000)?,
            names => owner.rename_one_by_one(names)?,
        }
        let changes = stats.changes.load(Ordering::Relaxed) - before.0;
        let nanos = stats.write_ns.load(Ordering::Relaxed) - before.1;
        println!("| {what} | {changes} | {:.2} |", nanos as f64 / changes as f64 / 1e3);
    }
    let capacity = 16_384;
    let len = Geometry::of(capacity).file_len;
    println!("\nThe file has {len} bytes, {:.1} MiB, for {capacity} rows.", len as f64 / f64::from(1 << 20));
    Ok(())
}

/// Changes of names and images of all lengths: in the end each row says what was said last.
fn outlived(owner: &Owner, changes: u32) -> Result<()> {
    let truth = owner.rename_at_random(changes)?;
    let plane = Plane::open(owner.plane())?;
    let mut texts = TextBuffer::new();
    let (mut right, mut cut, mut wrong) = (0, 0, 0);
    for (mntns, name) in truth {
        match plane.by_mntns_with_texts(mntns, When::Now, &mut texts) {
            Answer::Container((row, texts)) if row.flags & Row::TRUNCATED == 0 => {
                *(if texts.name == name { &mut right } else { &mut wrong }) += 1;
            }
            Answer::Container((_, texts)) if name.starts_with(texts.name) => cut += 1,
            _ => wrong += 1,
        }
    }
    println!(
        "\nAfter {changes} changes of names, of 10 to 900 bytes: {right} right, {cut} cut and flagged, {wrong} wrong."
    );
    ensure!(wrong == 0, "a name was lost");
    Ok(())
}
