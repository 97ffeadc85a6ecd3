//! Failing creates leave nothing behind: neither descriptors nor memory, in the tracker or its keeper. Alone in its file: what
//! other tests start at the same time would show as growth, too.

use std::fs;

use anyhow::{Context, Result};
use tracker_tests::daemon::Daemon;
use tracker_tests::house::{House, PATIENT};
use tracker_tests::process::run;
use tracker_tests::runc::Kind;
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

/// Failing creates before the first look: threads, stacks and buffers have grown to what they stay at.
const FIRST: u64 = 130;
/// Looks after that, and failing creates between two of them.
const LOOKS: u64 = 10;
const BATCH: u64 = 26;
/// What one of them may leave behind: the statements or the story of a single one are several times that. What stays by
/// design is the path of its cgroup, within a bound.
const MOST_BYTES: u64 = 512;

/// What a process has of its own.
#[derive(Clone, Copy, Debug)]
struct Burden {
    descriptors: usize,
    threads: usize,
    bytes: u64,
}

impl Burden {
    fn of(pid: u32) -> Result<Burden> {
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map(Iterator::count);
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("read its memory")?;
        let dirty = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")?.split_whitespace().next());
        let kib: u64 = dirty.context("a size")?.parse()?;
        Ok(Burden { descriptors: count("fd")?, threads: count("task")?, bytes: kib * 1024 })
    }
}

#[test]
fn failing_creates_leave_neither_descriptors_nor_memory_behind() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    // What is over is kept for a while by design, and the plane takes pages of its file as it comes to use them: that is not
    // what is looked for.
    let plane = format!("[plane]\npath = '{}'\npins = ''\ncapacity = 64\n", house.path("plane").display());
    let mut daemon = Daemon::start(&house.config(PATIENT, &format!("[collection]\nlinger-ms = 1\n{plane}")))?;
    let tracker = daemon.process().pid();
    let keeper = eventually("a keeper", || daemon.keeper());
    let bundle = house.bundle_with("failing", &["no-such-program"], |_| ())?;
    let fail = |number: u64| {
        let mut command = house.runtime().command();
        command.args(["create", "--bundle"]).arg(bundle.path()).arg(format!("failing-{number}"));
        assert!(run(&mut command).is_err(), "there is no such program");
    };
    let none_is_left = || {
        let all = daemon.ask_json(&["ps", "--all", "-o", "json"]).ok()?;
        let ours = |id: &str| id.starts_with("failing-");
        (!all.as_array()?.iter().any(|container| container["id"].as_str().is_some_and(ours))).then_some(())
    };
    let look = || -> Result<[Burden; 2]> {
        eventually("those that failed are gone", none_is_left);
        Ok([Burden::of(tracker)?, Burden::of(keeper)?])
    };
    (0..FIRST).for_each(fail);
    let mut looks = vec![look()?];
    for batch in 0..LOOKS {
        (0..BATCH).for_each(|number| fail(FIRST + batch * BATCH + number));
        looks.push(look()?);
    }
    for process in 0..2 {
        let steps = || looks.windows(2).map(move |pair| (pair[0][process], pair[1][process]));
        // What grows with each create grows in every batch. A table that doubles, or somebody else's containers, which
        // every tracker sees, show in some of them.
        let least = steps().map(|(before, after)| after.bytes.saturating_sub(before.bytes)).min();
        assert!(least < Some(BATCH * MOST_BYTES), "{looks:#?}");
        let opened = steps().map(|(before, after)| after.descriptors.saturating_sub(before.descriptors)).min();
        let started = steps().map(|(before, after)| after.threads.saturating_sub(before.threads)).min();
        assert_eq!((opened, started), (Some(0), Some(0)), "{looks:#?}");
    }
    Ok(())
}
