//! The daemon itself stopped, frozen, killed, starved, or fed with failures: starts go on within the budget, none is denied,
//! and afterwards all that lives is known, with an honest grade.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tracker_tests::barrier::GRACE;
use tracker_tests::daemon::Daemon;
use tracker_tests::house::{House, PATIENT};
use tracker_tests::process::pid;
use tracker_tests::runc::{Container, Kind};
use tracker_tests::silent_fs::{self, SilentFs};
use tracker_tests::wait::{PATIENCE, eventually, within};
use tracker_tests::{kernel, require, requirement};

const BUDGET: Duration = Duration::from_millis(200);
/// What executions of a runtime may take on a machine that does a lot else.
const RUN: Duration = Duration::from_secs(20);

macro_rules! require_daemon {
    () => {
        require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    };
}

/// Makes and starts so many containers, all at once; whatever is denied is an error. Returns how long the slowest took
/// for both.
fn start_at_once<'a>(house: &'a House, prefix: &str, number: usize) -> Result<(Vec<Container<'a>>, Duration)> {
    let started: Vec<Result<(Container<'a>, Duration)>> = thread::scope(|scope| {
        let start = |number: usize| {
            let id = format!("{prefix}-{number}");
            move || -> Result<_> {
                let bundle = house.bundle(&id)?;
                let begun = Instant::now();
                let container = house.runtime().create(&bundle, &id)?;
                container.start()?;
                Ok((container, begun.elapsed()))
            }
        };
        let starting: Vec<_> = (0..number).map(|number| scope.spawn(start(number))).collect();
        starting.into_iter().map(|starting| starting.join().expect("no panic")).collect()
    });
    let started = started.into_iter().collect::<Result<Vec<_>>>()?;
    let slowest = started.iter().map(|(_, took)| *took).max().unwrap_or_default();
    Ok((started.into_iter().map(|(container, _)| container).collect(), slowest))
}

/// Each is known to run, by its right process and namespace; and its grade is one of these, or `observed` if the probes
/// say that they lost something.
#[track_caller]
fn all_are_known(daemon: &Daemon, containers: &[Container<'_>], grades: &[&str]) {
    for container in containers {
        let id = container.id();
        let known = eventually(&format!("{id} is known to run"), || daemon.in_state(id, "running"));
        assert_eq!(known["pid"], container.pid(), "{known}");
        let mntns = kernel::namespace(container.pid(), "mnt").expect("it sleeps");
        assert_eq!(known["mntns"], mntns, "{known}");
        let lost = || daemon.metric("tracker_probe_losses_total").is_ok_and(|losses| losses > 0.0);
        let honest = grades.iter().any(|grade| known["grade"] == *grade) || known["grade"] == "observed" && lost();
        assert!(honest, "{grades:?}: {known}");
    }
}

/// What comes next is held again.
#[track_caller]
fn holds_again(daemon: &Daemon, house: &House, id: &str) {
    // The keeper lets everything go until the tracker answers again, which it may not have done yet.
    eventually("starts are held again", || {
        let next = format!("{id}-{}", tracker::BootTime::now().0);
        let _container = house.started(&next).expect("none is denied");
        (daemon.find(&next)?["grade"] == "held").then_some(())
    });
}

#[test]
fn stopped_amid_66_creates_it_delays_them_by_no_more_than_its_budgets() -> Result<()> {
    require_daemon!();
    let house = House::new(Kind::Runc)?;
    let mut daemon = Daemon::start(&house.config(BUDGET, ""))?;
    daemon.process().signal(Signal::SIGSTOP)?;
    let started = start_at_once(&house, "stopped", 66);
    daemon.process().signal(Signal::SIGCONT)?;
    let (containers, slowest) = started?;
    // A `create` and a `start`, each held once at most, and not one after the other's.
    assert!(slowest < (BUDGET + GRACE) * 2 + RUN, "{slowest:?}");
    // Held is what nobody may say of them: the answer came from the keeper.
    all_are_known(&daemon, &containers, &["let-go", "first-exec"]);
    holds_again(&daemon, &house, "stopped-after");
    Ok(())
}

/// The cgroups that this tracker's keeper has, or had.
fn seats(tracker: u32) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    let seat = |hierarchy: PathBuf| hierarchy.join(format!("tracker-keeper-{tracker}"));
    hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).map(seat).filter(|seat| seat.is_dir()).collect()
}

#[test]
fn killed_amid_creates_it_lets_all_go_and_finds_them_when_it_is_back() -> Result<()> {
    require_daemon!();
    let house = House::new(Kind::Runc)?;
    let mut daemon = Daemon::start(&house.config(BUDGET, ""))?;
    let killed = daemon.process().pid();
    assert!(!seats(killed).is_empty(), "its keeper has cgroups of its own");
    let (containers, slowest) = thread::scope(|scope| {
        let starting = scope.spawn(|| start_at_once(&house, "killed", 24));
        // In the middle: some are known already, others are still to come.
        eventually("the first is known", || daemon.find("killed-0").or_else(|| daemon.find("killed-1")));
        daemon.process().signal(Signal::SIGKILL).expect("it is there");
        starting.join().expect("no panic")
    })?;
    assert!(slowest < (BUDGET + GRACE) * 2 + RUN, "{slowest:?}");
    let is_empty = |seat: &PathBuf| fs::read(seat.join("cgroup.procs")).is_ok_and(|processes| processes.is_empty());
    eventually("its keeper has ended", || seats(killed).iter().all(is_empty).then_some(()));
    daemon.restart()?;
    all_are_known(&daemon, &containers, &["observed"]);
    eventually("what it left behind is removed", || seats(killed).is_empty().then_some(()));
    holds_again(&daemon, &house, "killed-after");
    Ok(())
}

/// A cgroup whose processes stand still, in whichever hierarchy can do that; gone when dropped.
struct Freezer {
    directory: PathBuf,
    file: PathBuf,
    words: [&'static str; 2],
}

impl Freezer {
    fn create(name: &str) -> Result<Freezer, String> {
        let v1 = PathBuf::from("/sys/fs/cgroup/freezer");
        let v2 = match kernel::only_cgroup2() {
            true => PathBuf::from("/sys/fs/cgroup"),
            false => PathBuf::from("/sys/fs/cgroup/unified"),
        };
        let (hierarchy, file, words) = match v1.join("cgroup.procs").exists() {
            true => (v1, "freezer.state", ["FROZEN", "THAWED"]),
            false => (v2, "cgroup.freeze", ["1", "0"]),
        };
        let directory = hierarchy.join(name);
        fs::create_dir(&directory).map_err(|error| format!("needs a freezer `{}`: {error}", directory.display()))?;
        let file = directory.join(file);
        match file.exists() {
            true => Ok(Freezer { directory, file, words }),
            false => Err(format!("needs `{}`", file.display())),
        }
    }

    fn add(&self, pid: u32) -> Result<()> {
        fs::write(self.directory.join("cgroup.procs"), pid.to_string()).context("move a process into a freezer")
    }

    fn freeze(&self, frozen: bool) -> Result<()> {
        fs::write(&self.file, self.words[usize::from(!frozen)]).context("tell a freezer")
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = self.freeze(false);
        let parent = self.directory.parent().expect("a cgroup below the root").join("cgroup.procs");
        for pid in fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(&parent, pid);
        }
        let _ = fs::remove_dir(&self.directory);
    }
}

#[test]
fn frozen_it_holds_up_nobody() -> Result<()> {
    require_daemon!();
    let house = House::new(Kind::Runc)?;
    let mut daemon = Daemon::start(&house.config(BUDGET, ""))?;
    let freezer = match Freezer::create(&format!("tracker-frozen-{}", std::process::id())) {
        Ok(freezer) => freezer,
        Err(missing) => {
            require!(Err::<(), _>(missing));
            return Ok(());
        }
    };
    // The tracker alone: its keeper is a process of its own.
    freezer.add(daemon.process().pid())?;
    freezer.freeze(true)?;
    let started = start_at_once(&house, "frozen", 8);
    freezer.freeze(false)?;
    let (containers, slowest) = started?;
    assert!(slowest < (BUDGET + GRACE) * 2 + RUN, "{slowest:?}");
    all_are_known(&daemon, &containers, &["let-go", "first-exec"]);
    holds_again(&daemon, &house, "frozen-after");
    Ok(())
}

#[test]
fn starved_of_descriptors_it_denies_nobody_and_recovers() -> Result<()> {
    require_daemon!();
    let house = House::new(Kind::Runc)?;
    let mut daemon = Daemon::start(&house.config(BUDGET, "[scan]\naudit-seconds = 1\n"))?;
    let process = daemon.process().pid().to_string();
    let limit = |limit: &str| -> Result<()> {
        let set = Command::new("prlimit").args(["--pid", &process, &format!("--nofile={limit}:")]).status()?;
        ensure!(set.success(), "prlimit: {set}");
        Ok(())
    };
    // Below what it has open already: it gets not one more.
    limit("3")?;
    let started = start_at_once(&house, "starved", 8);
    limit("4096")?;
    let (containers, slowest) = started?;
    assert!(slowest < (BUDGET + GRACE) * 2 + RUN, "{slowest:?}");
    // The probes need no descriptor more than they have.
    all_are_known(&daemon, &containers, &["held", "let-go", "first-exec"]);
    holds_again(&daemon, &house, "starved-after");
    Ok(())
}

#[test]
fn with_its_keeper_stopped_or_killed_starts_go_on_and_are_held_again() -> Result<()> {
    require_daemon!();
    let house = House::new(Kind::Runc)?;
    let daemon = Daemon::start(&house.config(BUDGET, ""))?;
    for (prefix, signal) in [("keeper-stopped", Signal::SIGSTOP), ("keeper-killed", Signal::SIGKILL)] {
        let old = eventually("a keeper", || daemon.keeper());
        kill(pid(old), signal)?;
        let (containers, slowest) = start_at_once(&house, prefix, 8)?;
        assert!(slowest < (BUDGET + GRACE) * 2 + RUN, "{prefix}: {slowest:?}");
        all_are_known(&daemon, &containers, &["held", "let-go", "first-exec"]);
        eventually("another keeper", || daemon.keeper().filter(|new| *new != old));
        holds_again(&daemon, &house, prefix);
    }
    assert!(daemon.metric("tracker_keeper_restarts_total")? >= 2.0);
    Ok(())
}

#[test]
fn two_hundred_creates_at_once_are_all_there_and_right() -> Result<()> {
    require_daemon!();
    let house = House::new(Kind::Runc)?;
    let daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let ids: Vec<String> = (0..200).map(|number| format!("many-{number}")).collect();
    let bundles = ids.iter().map(|id| house.bundle(id)).collect::<Result<Vec<_>>>()?;
    let containers: Vec<Container<'_>> = thread::scope(|scope| {
        let runtime = house.runtime();
        let creating: Vec<_> =
            ids.iter().zip(&bundles).map(|(id, bundle)| scope.spawn(move || runtime.create(bundle, id))).collect();
        // Whatever is denied fails here.
        creating.into_iter().map(|creating| creating.join().expect("no panic")).collect::<Result<_>>()
    })?;
    let all = || -> Option<HashMap<String, Value>> {
        let all = daemon.ask_json(&["ps", "--all", "-o", "json"]).ok()?;
        let by_id = |container: &Value| Some((container["id"].as_str()?.to_owned(), container.clone()));
        Some(all.as_array()?.iter().filter_map(by_id).collect())
    };
    let in_state = |state: &str| {
        eventually(&format!("all are {state}"), || {
            let known = all()?;
            containers
                .iter()
                .all(|container| known.get(container.id()).is_some_and(|known| known["state"] == state))
                .then_some(known)
        })
    };
    let created = in_state("created");
    for container in &containers {
        let known = &created[container.id()];
        assert_eq!(known["pid"], container.pid(), "{known}");
        assert_eq!(known["mntns"], kernel::namespace(container.pid(), "mnt")?, "{known}");
    }

    thread::scope(|scope| -> Result<()> {
        let starting: Vec<_> = containers.iter().map(|container| scope.spawn(|| container.start())).collect();
        starting.into_iter().try_for_each(|starting| starting.join().expect("no panic").map(drop))
    })?;
    in_state("running");
    // Of more than 64 at a time the oldest is let go: whether there are so many depends on the machine, and is said.
    all_are_known(&daemon, &containers, &["held", "let-go", "first-exec"]);
    holds_again(&daemon, &house, "many-after");
    Ok(())
}

#[test]
fn stuck_on_a_file_system_that_does_not_answer_it_holds_up_nobody_else() -> Result<()> {
    require_daemon!();
    require!(silent_fs::requirement());
    let house = House::new(Kind::Runc)?;
    let daemon = Daemon::start(&house.config(BUDGET, ""))?;
    let fs = SilentFs::mount(env!("CARGO_BIN_EXE_silent_fs"), house.directory())?;
    let mut caller = Command::new(env!("CARGO_BIN_EXE_fuse_caller"));
    caller.arg("root").arg(fs.path("arguments")).arg(fs.path("environment")).arg(house.runtime().program());
    let mut create = house.runtime().command();
    create.args(["create", "--bundle"]).arg(fs.path("bundle")).arg("silent");
    // Each is looked at by the tracker, lost for that time, and let go.
    let mut callers = Vec::new();
    for (command, name) in [(&mut caller, "arguments"), (&mut create, "config.json")] {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        callers.push(Asleep(command.spawn().context("the execution was denied")?));
        eventually("it is asked for", || fs.next_question().ok().filter(|question| question.name == name));
    }
    let (containers, slowest) = start_at_once(&house, "silent", 8)?;
    assert!(slowest < (BUDGET + GRACE) * 2 + RUN, "{slowest:?}");
    all_are_known(&daemon, &containers, &["held", "let-go", "first-exec"]);
    holds_again(&daemon, &house, "silent-amid");
    drop(fs);
    holds_again(&daemon, &house, "silent-after");
    Ok(())
}

/// A process that may sleep past any signal until a file system has gone.
struct Asleep(Child);

impl Drop for Asleep {
    fn drop(&mut self) {
        let _ = self.0.kill();
        within(PATIENCE, || self.0.try_wait().transpose());
    }
}
