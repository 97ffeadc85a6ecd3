//! Subscribers that are slow or panic, and ends that nobody announced, with real held starts of a real runtime.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use tracker::container::{Exit, Grade, State};
use tracker::{Container, FeedItem, FeedOptions, Selector, Tracker};
use tracker_tests::house::{House, PATIENT};
use tracker_tests::process::pid;
use tracker_tests::runc::Kind;
use tracker_tests::wait::PATIENCE;
use tracker_tests::{kernel, require};

const KEEPER: &str = env!("CARGO_BIN_EXE_keeper");

fn find(tracker: &Tracker, id: &str) -> Option<Container> {
    let mut reader = tracker.reader();
    reader.all().find(|container| &*container.id == id).map(|container| Container::clone(container))
}

/// Containers whose ids begin so.
fn ours(container: &Container) -> bool {
    container.id.starts_with("subscriber-")
}

#[test]
fn one_that_sleeps_and_one_that_panics_hold_up_nobody_and_take_nothing_from_others() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::btf(), kernel::permission_events());
    const NAP: Duration = Duration::from_secs(5);
    let house = House::new(Kind::Runc)?;
    let tracker = house.tracker(KEEPER, "")?;
    let everything = Selector::everything;
    // Wakes up for the end of the test, too.
    let (wake, sleeps) = sync_channel::<()>(0);
    let sleeper = tracker.on_start("sleeper", everything(), Duration::from_millis(100), move |container| {
        if ours(container) {
            let _ = sleeps.recv_timeout(NAP);
        }
    })?;
    let panicker = tracker.on_start("panicker", everything(), PATIENT, |container| {
        assert!(!ours(container), "a subscriber of this test panics on purpose");
    })?;
    // Containers whose entrypoint had not run when it was called.
    let in_time: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = Arc::clone(&in_time);
    let good = tracker.on_start("good", everything(), PATIENT, move |container| {
        let arguments = fs::read(format!("/proc/{}/cmdline", container.pid().unwrap_or(0))).unwrap_or_default();
        if ours(container) && !arguments.is_empty() && !arguments.starts_with(b"sleep") {
            noted.lock().expect("no panic while it is held").push(container.id.to_string());
        }
    })?;

    let ids: Vec<String> = (0..4).map(|number| format!("subscriber-{number}")).collect();
    let mut containers = Vec::new();
    for id in &ids {
        let container = house.runtime().create(&house.bundle(id)?, id)?;
        let took = container.start()?;
        assert!(took < NAP, "the sleeper is not waited for: {took:?}");
        let known = find(&tracker, id).expect("it was published before it went on");
        assert_eq!((known.pid(), known.grade), (Some(container.pid()), Some(Grade::Held)));
        containers.push(container);
    }
    assert_eq!(*in_time.lock().expect("no panic while it is held"), ids, "each before its first instruction");
    assert!(sleeper.late.load(Relaxed) >= 1 && sleeper.skipped.load(Relaxed) + sleeper.late.load(Relaxed) >= 4);
    assert!(panicker.panicked.load(Relaxed) >= 4 && good.called.load(Relaxed) >= 4);
    assert_eq!(good.late.load(Relaxed) + good.panicked.load(Relaxed), 0);
    drop(wake);
    Ok(())
}

/// The end of each container, as the feed tells it.
struct Ends(Receiver<Arc<Container>>);

impl Ends {
    fn follow(tracker: &Tracker) -> Result<Ends> {
        let mut feed = tracker.subscribe_blocking(FeedOptions::new("ends"))?;
        let (sender, ends) = sync_channel(1024);
        std::thread::spawn(move || {
            while let Some(item) = feed.next_blocking() {
                if let FeedItem::Change(change) = item
                    && let Some(after) = change.after.filter(|after| after.state == State::Exited)
                    && sender.send(after).is_err()
                {
                    return;
                }
            }
        });
        Ok(Ends(ends))
    }

    #[track_caller]
    fn of(&self, id: &str) -> Exit {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let over = self.0.recv_timeout(left).unwrap_or_else(|error| panic!("the end of {id}: {error}"));
            if &*over.id == id {
                return over.exit.expect("one that has exited did so somehow");
            }
        }
    }
}

#[test]
fn ends_are_told_as_they_were() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::btf(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let tracker = house.tracker(KEEPER, "")?;
    let ends = Ends::follow(&tracker)?;

    let killed = house.started("end-killed")?;
    kill(pid(killed.pid()), Signal::SIGKILL)?;
    assert_eq!(ends.of("end-killed"), Exit { code: 137, signal: Some(9), oom: Some(false) });

    let bundle = house.bundle_with("end-code", &["sh", "-c", "exit 7"], |_| ())?;
    let container = house.runtime().create(&bundle, "end-code")?;
    container.start()?;
    assert_eq!(ends.of("end-code"), Exit { code: 7, signal: None, oom: Some(false) });
    Ok(())
}

/// That a runtime can limit a container's memory here.
fn memory_controller() -> Result<(), String> {
    let v1 = Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists();
    let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    match v1 || v2.split_whitespace().any(|controller| controller == "memory") {
        true => Ok(()),
        false => Err("needs the memory controller".to_owned()),
    }
}

#[test]
fn a_container_that_runs_out_of_memory_is_told_so() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::btf(), kernel::permission_events(), memory_controller());
    const LIMIT: u64 = 32 << 20;
    let house = House::new(Kind::Runc)?;
    let tracker = house.tracker(KEEPER, "")?;
    let ends = Ends::follow(&tracker)?;
    // Doubles what it holds, to eight times the limit at most.
    let grow =
        "x=0123456789abcdef; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24; do x=$x$x; done";
    let bundle = house.bundle_with("end-oom", &["sh", "-c", grow], |config| {
        let memory = match kernel::only_cgroup2() {
            true => serde_json::json!({ "limit": LIMIT, "swap": LIMIT }),
            false => serde_json::json!({ "limit": LIMIT, "swappiness": 0 }),
        };
        config["linux"]["resources"] = serde_json::json!({ "memory": memory });
        config["linux"]["cgroupsPath"] = format!("/tracker-end-oom-{}", std::process::id()).into();
    })?;
    let container = house.runtime().create(&bundle, "end-oom")?;
    container.start()?;
    assert_eq!(ends.of("end-oom"), Exit { code: 137, signal: Some(9), oom: Some(true) });
    Ok(())
}
