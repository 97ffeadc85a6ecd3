//! Probes that go on without a tracker, and what the next one makes of it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::MapData;
use aya::programs::loaded_programs;
use tracker::BootTime;
use tracker::container::TaskId;
use tracker::fact::What;
use tracker::plane::Config;
use tracker::plane::pins::Pins;
use tracker::source::kernel::{self, Stats};
use tracker_common::table::Loss;
use tracker_tests::bpf::PinDirectory;
use tracker_tests::child::Child;
use tracker_tests::probes::Probes;
use tracker_tests::{kernel as machine, require, requirement, wait};

const MAPS: [&str; 4] = ["cgroups", "mount_namespaces", "owner", "rows"];
const KEPT: [&str; 13] = [
    "cgroups",
    "links/on_cgroup_mkdir",
    "links/on_cgroup_populated",
    "links/on_cgroup_rmdir",
    "links/on_exec",
    "links/on_exit",
    "links/on_fork",
    "mount_namespaces",
    "own/known",
    "own/records",
    "own/shared",
    "owner",
    "rows",
];

fn config(path: &Path, keep_for_seconds: Option<u64>) -> Config {
    let keep = keep_for_seconds.is_some();
    let keep_for_seconds = keep_for_seconds.unwrap_or(600);
    Config { pins: path.into(), capacity: 32, keep, keep_for_seconds, ..Config::default() }
}

/// An owner of pins with its probes, as in a tracker.
struct Owner {
    probes: Probes,
    pins: Pins,
}

impl Owner {
    fn start(config: &Config, kernel: &kernel::Config) -> Result<Owner> {
        let pins = Pins::open(config, kernel.max_namespaces, Arc::default())?;
        let probes = Probes::start_pinned(kernel, &pins.pinning())?;
        Ok(Owner { probes, pins })
    }

    /// Told births of those, and their ends.
    fn lives(&self, tasks: &[TaskId]) -> (usize, usize) {
        let is_one = |task: TaskId| tasks.contains(&task);
        self.probes.facts(|facts| {
            let count = |is_it: &dyn Fn(&What) -> bool| facts.iter().filter(|fact| is_it(&fact.what)).count();
            (
                count(&|what| matches!(what, What::Born(born) if is_one(born.task))),
                count(&|what| matches!(what, What::Ended(end) if is_one(end.task))),
            )
        })
    }
}

/// Children in mount namespaces of their own, each gone before the next one comes.
fn live(count: u32) -> Result<Vec<TaskId>> {
    let one = || -> Result<TaskId> {
        let child = Child::exiting(libc::CLONE_NEWNS, 0)?;
        let task = child.task()?;
        child.finish()?;
        Ok(task)
    };
    (0..count).map(|_| one()).collect()
}

/// One that is told of, and so are all before it.
fn mark(probes: &Probes) -> Result<()> {
    let task = live(1)?;
    probes.life(task[0].pid);
    Ok(())
}

fn count(stats: &Stats) -> (u64, u64) {
    (stats.unwatched_ms.load(Ordering::Relaxed), stats.unseen.load(Ordering::Relaxed))
}

/// Programs that use a pinned map.
fn users(pin: &Path) -> Result<usize> {
    let map = MapData::from_pin(pin)?.info()?.id();
    let uses = |maps: Option<Vec<u32>>| maps.is_some_and(|maps| maps.contains(&map));
    // Others' programs may end while they are listed.
    Ok(loaded_programs().flatten().filter(|program| program.map_ids().is_ok_and(uses)).count())
}

#[test]
fn what_happens_while_nobody_runs_is_told_by_the_next_one() -> Result<()> {
    require!(requirement::root(), machine::btf());
    let directory = PinDirectory::new();
    let (config, kernel) = (config(directory.path(), Some(600)), kernel::Config::default());
    let first = Owner::start(&config, &kernel)?;
    assert_eq!(directory.names(), KEPT);
    let survivor = Child::exiting(libc::CLONE_NEWNS, 5)?;
    let survivor_task = survivor.task()?;
    let seen = live(20)?;
    mark(&first.probes)?;
    assert_eq!(first.lives(&seen), (20, 20));
    drop(first);
    assert_eq!(directory.names(), KEPT);

    let unseen = live(200)?;
    survivor.finish()?;
    let second = Owner::start(&config, &kernel)?;
    assert!(second.pins.is_inherited());
    assert_eq!(directory.names(), KEPT);
    let after = live(20)?;
    mark(&second.probes)?;
    assert_eq!(second.lives(&unseen), (200, 200), "in the ring buffer, and in order");
    assert_eq!(second.lives(&after), (20, 20), "each once, although there were programs before");
    assert_eq!(second.lives(&seen), (0, 0), "told before");
    assert_eq!(second.lives(&[survivor_task]), (0, 1), "born before, ended while nobody ran");
    assert_eq!(count(&second.probes.stats), (0, 0), "nothing went unwatched");
    assert!(second.probes.stats.losses().all(|(_, lost)| lost == 0), "{:?}", second.probes.stats);
    wait::eventually("the end of the former programs: fork, exec and exit are left", || {
        (users(&directory.path().join("own/known")).ok()? == 3).then_some(())
    });
    drop(second);

    // Not kept any more: nothing of the probes stays.
    let third = Owner::start(&without_keep(&config), &kernel)?;
    assert_eq!(directory.names(), MAPS);
    assert_eq!(count(&third.probes.stats), (0, 0));
    drop(third);
    // The kernel lets programs go a little later than their links.
    wait::eventually("the programs' end", || (users(&directory.path().join("owner")).ok()? == 0).then_some(()));
    Ok(())
}

fn without_keep(config: &Config) -> Config {
    Config { keep: false, ..config.clone() }
}

#[test]
fn without_keep_what_came_and_went_is_counted_as_far_as_the_kernel_tells() -> Result<()> {
    require!(requirement::root(), machine::btf());
    let directory = PinDirectory::new();
    let (config, kernel) = (config(directory.path(), None), kernel::Config::default());
    let first = Owner::start(&config, &kernel)?;
    assert_eq!(count(&first.probes.stats), (0, 0), "nobody was here before: nothing is said about that");
    mark(&first.probes)?;
    first.pins.heartbeat(BootTime::now());
    drop(first);
    assert_eq!(directory.names(), MAPS);

    let gone = live(30)?;
    let alive = Child::exiting(libc::CLONE_NEWNS, 0)?;
    let second = Owner::start(&config, &kernel)?;
    mark(&second.probes)?;
    let (unwatched_ms, unseen) = count(&second.probes.stats);
    assert!(unwatched_ms > 0);
    if machine::version() < (6, 18) {
        // Others on this machine may make mount namespaces, too.
        assert!((30..1_000).contains(&unseen), "{unseen}");
    } else {
        assert_eq!(unseen, 0, "ids do not tell");
    }
    assert_eq!(second.lives(&gone), (0, 0));
    let ended = alive.task()?;
    alive.finish()?;
    second.probes.life(ended.pid);
    Ok(())
}

#[test]
fn probes_that_nobody_comes_back_to_stop() -> Result<()> {
    require!(requirement::root(), machine::btf());
    let directory = PinDirectory::new();
    let (config, kernel) = (config(directory.path(), Some(5)), kernel::Config::default());
    let first = Owner::start(&config, &kernel)?;
    first.pins.heartbeat(BootTime::now());
    drop(first);
    let in_time = live(3)?;
    // The time that they go on for has to pass.
    std::thread::sleep(Duration::from_millis(5_200));
    let too_late = live(3)?;
    let second = Owner::start(&config, &kernel)?;
    second.pins.heartbeat(BootTime::now());
    let after = live(3)?;
    mark(&second.probes)?;
    assert_eq!(second.lives(&in_time), (3, 3));
    assert_eq!(second.lives(&too_late), (0, 0));
    assert_eq!(second.lives(&after), (3, 3));
    assert!(count(&second.probes.stats).0 > 0, "from when they stopped");
    assert_eq!(directory.names(), KEPT);
    Ok(())
}

#[test]
fn what_did_not_fit_while_nobody_ran_is_counted_and_audited() -> Result<()> {
    require!(requirement::root(), machine::btf());
    let directory = PinDirectory::new();
    let config = config(directory.path(), Some(600));
    let kernel = kernel::Config { ring_bytes: 4096, ..kernel::Config::default() };
    drop(Owner::start(&config, &kernel)?);
    live(100)?;
    let second = Owner::start(&config, &kernel)?;
    assert!(second.probes.audits.wait(Duration::from_secs(10)), "an audit is asked for");
    let lost = second.probes.stats.lost(Loss::ProcessRecord);
    assert!(lost >= 150, "of 200 records, {lost}");
    mark(&second.probes)?;
    drop(second);
    // Told once: the next one counts what is new.
    let third = Owner::start(&config, &kernel)?;
    mark(&third.probes)?;
    assert_eq!(third.probes.stats.lost(Loss::ProcessRecord), 0);
    Ok(())
}

#[test]
fn records_of_a_ring_buffer_of_another_size_are_told_and_a_new_one_takes_its_place() -> Result<()> {
    require!(requirement::root(), machine::btf());
    let directory = PinDirectory::new();
    let config = config(directory.path(), Some(600));
    drop(Owner::start(&config, &kernel::Config::default())?);
    let meanwhile = live(10)?;
    let larger = kernel::Config { ring_bytes: 2 << 20, ..kernel::Config::default() };
    let second = Owner::start(&config, &larger)?;
    let after = live(10)?;
    mark(&second.probes)?;
    assert_eq!((second.lives(&meanwhile), second.lives(&after)), ((10, 10), (10, 10)));
    assert_eq!(directory.names(), KEPT);
    let records = MapData::from_pin(directory.path().join("own/records")).context("open the ring buffer")?;
    assert_eq!(records.info()?.max_entries(), 2 << 20);
    Ok(())
}
