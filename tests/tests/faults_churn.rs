//! Containers come and go as fast as the machine can, numbers are used again, the tracker is restarted, records are lost:
//! what is said about a number at a moment stays true, and what lives is known.
//!
//! The tests make the truth themselves: they know whose namespace and whose pid it was, and a moment at which it was.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use tracker::container::State;
use tracker::{BootTime, Lookup, Reader};
use tracker_tests::child::Child;
use tracker_tests::daemon::Daemon;
use tracker_tests::house::{House, PATIENT};
use tracker_tests::runc::Kind;
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

const KEEPER: &str = env!("CARGO_BIN_EXE_keeper");

/// One container's numbers, and two moments between which they were its own.
#[derive(Clone, Debug)]
struct Truth {
    id: String,
    pid: u32,
    mntns: u32,
    from: BootTime,
    until: BootTime,
}

/// What look-ups said.
#[derive(Debug, Default)]
struct Answers {
    right: AtomicUsize,
    unknown: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl Answers {
    fn note(&self, truth: &Truth, at: BootTime, what: &str, answer: Lookup<'_>) {
        match answer {
            Lookup::Container(container) if *container.id == *truth.id => {
                self.right.fetch_add(1, Ordering::Relaxed);
            }
            Lookup::Unknown => {
                self.unknown.fetch_add(1, Ordering::Relaxed);
            }
            Lookup::Container(_) | Lookup::Host => {
                let wrong = format!("{what} of {truth:?} at {at:?} is {answer:?}");
                self.wrong.lock().expect("no panic while it is held").push(wrong);
            }
        }
    }

    /// Asks about both numbers at the beginning, in the middle and at the end.
    fn ask(&self, reader: &mut Reader, truth: &Truth) {
        let middle = BootTime(truth.from.0 + (truth.until.0 - truth.from.0) / 2);
        for at in [truth.from, middle, truth.until] {
            self.note(truth, at, "mount ns", reader.by_mntns_at(truth.mntns, at));
            self.note(truth, at, "pid", reader.by_pid_at(truth.pid, at));
        }
    }
}

/// One life, from `create` to `delete`.
fn live(house: &House, id: &str) -> Result<Truth> {
    let container = house.started(id)?;
    let from = BootTime::now();
    let pid = container.pid();
    let mntns = kernel::namespace(pid, "mnt")?;
    let truth = Truth { id: id.to_owned(), pid, mntns, from, until: BootTime::now() };
    container.kill("KILL")?;
    Ok(truth)
}

/// Where the kernel looks for the next free pid from. To set it back makes pids be used again, and harms nobody: those that
/// are in use are passed over.
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

#[test]
fn numbers_that_are_used_again_are_never_told_for_another_container() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::btf(), kernel::permission_events());
    require!(fs::metadata(LAST_PID).map_err(|error| format!("needs `{LAST_PID}`: {error}")));
    const LIVES: usize = 240;
    let house = House::new(Kind::Runc)?;
    let tracker = house.tracker(KEEPER, "[collection]\nlinger-ms = 600000\n")?;
    let (answers, next, over) = (Answers::default(), AtomicUsize::new(0), AtomicBool::new(false));
    let truths: Mutex<Vec<Truth>> = Mutex::default();
    let first_pid = fs::read_to_string(LAST_PID)?;
    thread::scope(|scope| -> Result<()> {
        let churn = || -> Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= LIVES {
                    return Ok(());
                }
                if number % 8 == 0 {
                    fs::write(LAST_PID, &first_pid)?;
                }
                let truth = live(&house, &format!("reuse-{number}"))?;
                truths.lock().expect("no panic while it is held").push(truth);
            }
        };
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(churn)).collect();
        for seed in 0..2 {
            let (mut reader, answers, over, truths) = (tracker.reader(), &answers, &over, &truths);
            scope.spawn(move || {
                let mut at = seed;
                while !over.load(Ordering::Relaxed) {
                    let sample = {
                        let truths = truths.lock().expect("no panic while it is held");
                        truths.get(at % truths.len().max(1)).cloned()
                    };
                    // A large odd step visits old and new ones alike.
                    at += 7_919;
                    match sample {
                        Some(truth) => answers.ask(&mut reader, &truth),
                        None => thread::yield_now(),
                    }
                }
            });
        }
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join().expect("no panic")).collect();
        over.store(true, Ordering::Relaxed);
        ended.into_iter().collect()
    })?;

    let wrong = answers.wrong.into_inner()?;
    assert!(wrong.is_empty(), "{} wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    let (right, unknown) = (answers.right.into_inner(), answers.unknown.into_inner());
    // A record may be lost or late, and then nothing is claimed; but that is the exception.
    assert!(unknown * 100 <= right, "{unknown} unknown, {right} right");

    let truths = truths.into_inner()?;
    for (what, number) in [("mount ns", (|truth| truth.mntns) as fn(&Truth) -> u32), ("pid", |truth| truth.pid)] {
        let distinct: HashSet<u32> = truths.iter().map(number).collect();
        assert!(distinct.len() < truths.len(), "no {what} has been used again: this shows nothing");
    }
    // All of it once more, now that everything is over.
    let (answers, mut reader) = (Answers::default(), tracker.reader());
    truths.iter().for_each(|truth| answers.ask(&mut reader, truth));
    assert_eq!(answers.wrong.into_inner()?, [""; 0]);
    assert_eq!(answers.unknown.into_inner(), 0, "what is over is still known, and nothing of it was lost");
    let mut over: Vec<_> = reader.all().filter(|container| container.id.starts_with("reuse-")).collect();
    over.retain(|container| container.state != State::Exited || container.exit.map(|exit| exit.code) != Some(137));
    assert!(over.is_empty(), "all have ended by SIGKILL, but: {over:#?}");
    Ok(())
}

#[test]
fn records_lost_in_a_tiny_ring_buffer_are_counted_and_repaired() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf());
    const CONTAINERS: usize = 8;
    // 4 KiB hold fewer than 40 records.
    const RECORDS: usize = 100;
    let house = House::new(Kind::Runc)?;
    // Not held: the probes are the only witness of births.
    let config =
        house.config(PATIENT, "[kernel]\nring-bytes = 4096\n").replace("[barrier]", "[barrier]\nenabled = false");
    let mut daemon = Daemon::start(&config)?;
    let scans = daemon.metric("tracker_scans_total")?;

    // The probes go on while nobody reads what they record.
    daemon.process().signal(Signal::SIGSTOP)?;
    for _ in 0..RECORDS {
        Child::exiting(libc::CLONE_NEWNS, 0)?.finish()?;
    }
    let containers =
        (0..CONTAINERS).map(|number| house.started(&format!("ring-{number}"))).collect::<Result<Vec<_>>>()?;
    daemon.process().signal(Signal::SIGCONT)?;

    let counted = |name: &str, least: f64| daemon.metric(name).ok().filter(|count| *count >= least).map(drop);
    eventually("losses are counted", || counted("tracker_probe_losses_total", CONTAINERS as f64));
    eventually("a loss is answered with an audit", || counted("tracker_scans_total", scans + 1.0));
    for container in &containers {
        let known = eventually(&format!("{} is known", container.id()), || daemon.in_state(container.id(), "running"));
        assert_eq!(known["pid"], container.pid());
        assert_eq!(known["mntns"], kernel::namespace(container.pid(), "mnt")?);
    }
    Ok(())
}

#[test]
fn a_tracker_that_is_restarted_amid_churn_denies_nobody_and_catches_up() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    // A budget that a killed tracker may cost, and no more than that.
    let mut daemon = Daemon::start(&house.config(Duration::from_millis(200), ""))?;
    let over = AtomicBool::new(false);
    let (mut living, mut ended) = (BTreeMap::new(), BTreeMap::new());
    thread::scope(|scope| -> Result<()> {
        let churn = |worker: usize| {
            let (house, over) = (&house, &over);
            move || -> Result<(Vec<_>, Vec<Truth>)> {
                let (mut living, mut ended, mut number) = (Vec::new(), Vec::new(), 0);
                while !over.load(Ordering::Relaxed) {
                    let id = format!("restart-{worker}-{number}");
                    // Whatever is denied fails here.
                    if number % 3 == 0 {
                        living.push(house.started(&id)?);
                    } else {
                        ended.push(live(house, &id)?);
                    }
                    number += 1;
                }
                Ok((living, ended))
            }
        };
        let workers: Vec<_> = (0..2).map(|worker| scope.spawn(churn(worker))).collect();
        let mut restarts = || -> Result<()> {
            for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
                daemon.process().signal(signal)?;
                daemon.process().wait(PATIENT * 3)?;
                daemon.restart()?;
            }
            Ok(())
        };
        let restarted = restarts();
        over.store(true, Ordering::Relaxed);
        for worker in workers {
            let (lives, ends) = worker.join().expect("no panic")?;
            living.extend(lives.into_iter().map(|container| (container.id().to_owned(), container)));
            ended.extend(ends.into_iter().map(|truth| (truth.id.clone(), truth)));
        }
        restarted
    })?;
    assert!(!living.is_empty() && !ended.is_empty());

    for (id, container) in &living {
        let known = eventually(&format!("{id} is known"), || daemon.in_state(id, "running"));
        assert_eq!(known["pid"], container.pid(), "{known}");
        assert_eq!(known["mntns"], kernel::namespace(container.pid(), "mnt")?, "{known}");
        let grade = known["grade"].as_str().context("a grade")?;
        assert!(["held", "let-go", "first-exec", "observed"].contains(&grade), "{known}");
    }
    let alive = |container: &Value| {
        let id = container["id"].as_str().unwrap_or_default();
        ended.contains_key(id) && !["exited", "aborted"].map(Value::from).contains(&container["state"])
    };
    eventually("nothing that has ended is said to live", || {
        let all = daemon.ask_json(&["ps", "--all", "-o", "json"]).ok()?;
        (!all.as_array()?.iter().any(alive)).then_some(())
    });
    Ok(())
}
