//! The order that makes a container known before it runs: published, then the synchronous subscribers, then the start.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tracker::barrier::{self, Barrier, Stats};
use tracker::collection::view::{Host, Lookup};
use tracker::container::{Grade, State};
use tracker::source::health::HealthBoard;
use tracker::source::task::own_namespaces;
use tracker::{Config, Selector, Tracker};
use tracker_tests::bundle::{Bundle, RootFs};
use tracker_tests::runc::{Kind as Oci, Runtime};
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require};

const KEEPER: &str = env!("CARGO_BIN_EXE_keeper");
const BUDGET: Duration = Duration::from_secs(5);

/// A collection with a barrier as its only source, over one private runtime.
struct House {
    temp: TempDir,
    root: RootFs,
    runtime: Runtime,
    tracker: Tracker,
    barrier: Barrier,
    supervisor: Option<JoinHandle<()>>,
}

impl House {
    fn new(oci: Oci, budget: Duration) -> Result<House> {
        let temp = TempDir::new()?;
        let (root, runtime) = (RootFs::create(temp.path())?, Runtime::copy(oci, temp.path())?);
        let tracker =
            Tracker::without_sources(&Config::default(), Host { namespaces: own_namespaces()?, cgroup_id: 0 })?;
        let config = barrier::Config {
            budget_ms: budget.as_millis() as u64,
            runtimes: vec![runtime.program().to_owned()],
            known_paths: false,
            keeper_program: Some(KEEPER.into()),
            ..barrier::Config::default()
        };
        let stats = Arc::new(Stats::default());
        let (barrier, supervisor) =
            Barrier::start(config, tracker.facts().clone(), HealthBoard::new(), stats, || (), Box::new(|_| None))?;
        let supervisor = Some(thread::spawn(move || supervisor.run()));
        let house = House { temp, root, runtime, tracker, barrier, supervisor };
        eventually("the runtime is marked", || (house.barrier.marked().len() == 1).then_some(()));
        Ok(house)
    }

    /// Creates and starts a container that sleeps; returns how long `start` took.
    fn start(&self, id: &str) -> Result<Duration> {
        let bundle = Bundle::create(self.temp.path(), id, &self.root, &["sleep", "100"])?;
        let container = self.runtime.create(&bundle, id)?;
        let took = container.start()?;
        let mut reader = self.tracker.reader();
        eventually("it is graded", || {
            let lookup = reader.by_mntns(kernel::namespace(container.pid(), "mnt").ok()?);
            matches!(lookup, Lookup::Container(found) if found.grade.is_some()).then_some(())
        });
        Ok(took)
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.barrier.stop();
        if let Some(supervisor) = self.supervisor.take() {
            let ended = supervisor.join();
            assert!(ended.is_ok() || thread::panicking(), "the supervisor panicked");
        }
    }
}

/// What a subscriber found when it was called.
#[derive(Debug)]
struct Found {
    id: String,
    state: State,
    /// What the reader says about the container's mount namespace.
    known_as: Option<String>,
    /// The program that the init process ran.
    program: String,
}

fn subscribe(house: &House) -> Result<Receiver<Found>> {
    let (tell, told) = sync_channel(16);
    let reader = Mutex::new(house.tracker.reader());
    house.tracker.on_start("test", Selector::default(), BUDGET, move |container| {
        let known_as = match reader.lock().unwrap().by_mntns(container.namespaces.mnt) {
            Lookup::Container(found) => Some(found.id.to_string()),
            _ => None,
        };
        let program = fs::read_to_string(format!("/proc/{}/cmdline", container.pid().unwrap_or(0)));
        let found = Found {
            id: container.id.to_string(),
            state: container.state,
            known_as,
            program: program.unwrap_or_default(),
        };
        let _ = tell.try_send(found);
    })?;
    Ok(told)
}

fn known_before_it_runs(oci: Oci) -> Result<()> {
    let house = House::new(oci, BUDGET)?;
    let told = subscribe(&house)?;
    let bundle = Bundle::create(house.temp.path(), "bundle", &house.root, &["sleep", "100"])?;
    let container = house.runtime.create(&bundle, "c1")?;
    container.start()?;
    // It was called before `start` returned, so its word is there.
    let found = told.try_recv().context("the subscriber ran before the start went on")?;
    assert_eq!((found.id.as_str(), found.known_as.as_deref()), ("c1", Some("c1")), "{found:?}");
    assert_eq!(found.state, State::Running);
    assert!(!found.program.starts_with("sleep"), "the entrypoint had not run: {found:?}");
    let mntns = kernel::namespace(container.pid(), "mnt")?;
    let mut reader = house.tracker.reader();
    eventually("the grade is held", || match reader.by_mntns(mntns) {
        Lookup::Container(found) => (found.grade == Some(Grade::Held)).then_some(()),
        _ => None,
    });
    Ok(())
}

#[test]
fn a_container_of_runc_is_published_and_told_before_it_runs() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    known_before_it_runs(Oci::Runc)
}

#[test]
fn a_container_of_crun_is_published_and_told_before_it_runs() -> Result<()> {
    require!(Oci::Crun.requirement(), kernel::permission_events());
    known_before_it_runs(Oci::Crun)
}

#[test]
fn a_subscriber_that_sleeps_costs_its_own_budget_once() -> Result<()> {
    require!(Oci::Crun.requirement(), kernel::permission_events());
    let house = House::new(Oci::Crun, BUDGET)?;
    let (hold, released) = sync_channel::<()>(0);
    let released = Mutex::new(released);
    let budget = Duration::from_millis(300);
    house.tracker.on_start("sleeper", Selector::default(), budget, move |_| {
        let _ = released.lock().unwrap().recv();
    })?;
    let told = subscribe(&house)?;
    let begun = Instant::now();
    let first = house.start("first")?;
    assert!(first >= budget - Duration::from_millis(20), "it was waited for: {first:?}");
    house.start("second")?;
    house.start("third")?;
    // Its further containers are skipped, and the other subscriber gets them all.
    assert!(begun.elapsed() < BUDGET, "{:?}", begun.elapsed());
    assert_eq!(told.try_iter().map(|found| found.id).collect::<Vec<_>>(), ["first", "second", "third"]);
    drop(hold);
    Ok(())
}
