//! The tracker itself stopped, killed, starved, or stuck on what a caller put in its way: starts go on, none is denied, and
//! afterwards they are held again.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use tracker_tests::barrier::{Answer, Barrier, GRACE};
use tracker_tests::bundle::Bundle;
use tracker_tests::house::House;
use tracker_tests::process::pid;
use tracker_tests::runc::{Kind, Runtime};
use tracker_tests::wait::{eventually, within};
use tracker_tests::{kernel, require, requirement};

const KEEPER: &str = env!("CARGO_BIN_EXE_keeper");
const BUDGET: Duration = Duration::from_millis(200);
/// What executions of a runtime may take on a machine that does a lot else.
const RUN: Duration = Duration::from_secs(10);

/// A tracker in a process of its own.
struct Holder {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    keeper: u32,
}

impl Holder {
    fn start(runtime: &Runtime, budget: Duration, answer: &str) -> Result<Holder> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_holder"))
            .arg(KEEPER)
            .arg(runtime.program())
            .args([&budget.as_millis().to_string(), answer])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().context("its standard input")?;
        let output = BufReader::new(child.stdout.take().context("its standard output")?);
        let mut holder = Holder { child, input: Some(input), output, keeper: 0 };
        let line = holder.line()?;
        holder.keeper = line.strip_prefix("ready ").context("readiness")?.parse()?;
        Ok(holder)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// What it says next about a container.
    fn says(&mut self, id: &str) -> Result<String> {
        loop {
            let line = self.line()?;
            ensure!(!line.is_empty(), "it has ended");
            if let Some((_, said)) = line.split_once(' ').filter(|(about, _)| *about == id) {
                return Ok(said.to_owned());
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(pid(self.child.id()), signal).expect("it is there");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It ends with its input and clears up; what was stopped or killed cannot.
        drop(self.input.take());
        within(RUN, || self.child.try_wait().transpose());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// Ids differ between tests: a runtime puts containers of one id into one cgroup, whatever its `--root`.

#[test]
fn a_tracker_stopped_amid_66_creates_delays_them_by_one_budget() -> Result<()> {
    require!(Kind::Crun.requirement(), kernel::permission_events());
    let house = House::new(Kind::Crun)?;
    let mut holder = Holder::start(house.runtime(), BUDGET, "at-once")?;
    holder.signal(Signal::SIGSTOP);
    let bundles: Vec<Bundle> = (0..66)
        .map(|number| Bundle::create(house.directory(), &format!("b{number}"), house.root(), &["true"]))
        .collect::<Result<_>>()?;
    let begun = Instant::now();
    let took: Vec<Duration> = std::thread::scope(|scope| {
        let creating: Vec<_> = bundles
            .iter()
            .enumerate()
            .map(|(number, bundle)| {
                let runtime = house.runtime();
                scope.spawn(move || {
                    runtime.create(bundle, &format!("tracker-1-c{number}")).map(|container| container.took())
                })
            })
            .collect();
        creating.into_iter().map(|creating| creating.join().expect("no panic")).collect::<Result<_>>()
    })?;
    assert_eq!(took.len(), 66, "none was denied");
    // Each is two executions, and the first expiry lets go all others: not 66 budgets one after the other.
    assert!(begun.elapsed() < BUDGET + GRACE + RUN, "{took:?}");
    holder.signal(Signal::SIGCONT);
    let _after = house.started("tracker-1-after")?;
    assert_eq!(
        (holder.says("tracker-1-after")?.as_str(), holder.says("tracker-1-after")?.as_str()),
        ("starts", "Held")
    );
    Ok(())
}

/// A cgroup of version 2 with one process in it, thawed and removed in the end.
struct Cgroup(PathBuf);

impl Cgroup {
    fn with(root: &Path, pid: u32) -> Result<Cgroup> {
        let cgroup = Cgroup(root.join(format!("tracker-tests-{}", std::process::id())));
        fs::create_dir(&cgroup.0)?;
        fs::write(cgroup.0.join("cgroup.procs"), pid.to_string())?;
        Ok(cgroup)
    }

    fn freeze(&self, frozen: bool) -> Result<()> {
        Ok(fs::write(self.0.join("cgroup.freeze"), if frozen { "1" } else { "0" })?)
    }

    fn is_frozen(&self) -> Option<()> {
        fs::read_to_string(self.0.join("cgroup.events")).ok()?.contains("frozen 1").then_some(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = self.freeze(false);
        // Whoever is in it goes back to where everybody is, so that it can be removed.
        let root = self.0.with_file_name("cgroup.procs");
        for pid in fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(&root, pid);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_frozen_tracker_does_not_freeze_its_keeper() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let mut holder = Holder::start(house.runtime(), BUDGET, "at-once")?;
    let Some(root) = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(Path::new)
        .into_iter()
        .find(|root| root.join("cgroup.controllers").exists())
    else {
        requirement::cannot_run("needs cgroup v2");
        return Ok(());
    };
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", holder.keeper))?;
    assert!(cgroups.contains(&format!("/tracker-keeper-{}", holder.child.id())), "{cgroups}");

    let cgroup = Cgroup::with(root, holder.child.id())?;
    cgroup.freeze(true)?;
    eventually("it is frozen", || cgroup.is_frozen());
    let took = house.execute()?;
    assert!(took < BUDGET + GRACE + RUN, "{took:?}");
    cgroup.freeze(false)?;
    let _after = house.started("tracker-2-after")?;
    assert_eq!(
        (holder.says("tracker-2-after")?.as_str(), holder.says("tracker-2-after")?.as_str()),
        ("starts", "Held")
    );

    let seat = root.join(format!("tracker-keeper-{}", holder.child.id()));
    assert!(seat.is_dir());
    drop(holder);
    drop(cgroup);
    Ok(())
}

#[test]
fn a_killed_tracker_lets_go_what_it_held_and_its_keeper_ends() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let patient = RUN * 3;
    let mut holder = Holder::start(house.runtime(), patient, "never")?;
    let bundle = Bundle::create(house.directory(), "tracker-3-c1", house.root(), &["true"])?;
    let container = house.runtime().create(&bundle, "tracker-3-c1")?;
    std::thread::scope(|scope| -> Result<()> {
        let start = scope.spawn(|| container.start());
        assert_eq!(holder.says("tracker-3-c1")?, "starts");
        assert!(!start.is_finished(), "it is held");
        let begun = Instant::now();
        holder.signal(Signal::SIGKILL);
        start.join().expect("no panic")?;
        assert!(begun.elapsed() < RUN);
        Ok(())
    })?;
    let keeper = format!("/proc/{}", holder.keeper);
    eventually("the keeper ends", || {
        let comm = fs::read_to_string(format!("{keeper}/comm")).unwrap_or_default();
        (comm.trim() != "tracker-keeper").then_some(())
    });
    house.execute()?;
    Ok(())
}

#[test]
fn a_stopped_keeper_holds_nobody_when_the_tracker_is_killed() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let holder = Holder::start(house.runtime(), BUDGET, "at-once")?;
    // Neither sees what becomes of the other.
    holder.signal(Signal::SIGSTOP);
    kill(pid(holder.keeper), Signal::SIGSTOP)?;
    std::thread::scope(|scope| -> Result<()> {
        let execution = scope.spawn(|| house.execute());
        assert!(within(BUDGET * 3, || execution.is_finished().then_some(())).is_none(), "nobody can let it go");
        holder.signal(Signal::SIGKILL);
        execution.join().expect("no panic")?;
        Ok(())
    })
}

#[test]
fn a_tracker_without_descriptors_denies_nobody() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let mut holder = Holder::start(house.runtime(), BUDGET, "at-once")?;
    let limit = |limit: &str| -> Result<()> {
        let pid = holder.child.id().to_string();
        ensure!(Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={limit}:")]).status()?.success());
        Ok(())
    };
    limit("3")?;
    for _ in 0..5 {
        let took = house.execute()?;
        assert!(took < BUDGET + GRACE + RUN, "{took:?}");
    }
    limit("4096")?;
    let _after = house.started("tracker-4-after")?;
    assert_eq!(
        (holder.says("tracker-4-after")?.as_str(), holder.says("tracker-4-after")?.as_str()),
        ("starts", "Held")
    );
    Ok(())
}

/// A caller that puts its argument list where nobody can read it.
struct HungCaller(Child);

impl HungCaller {
    fn start(mode: &str, runtime: &Runtime) -> Result<HungCaller> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hung_caller"));
        command.arg(mode).arg(runtime.program()).args(["start", "nothing"]);
        Ok(HungCaller(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?))
    }

    /// Milliseconds until `execve` was allowed.
    fn allowed_after(&mut self) -> Result<Duration> {
        let mut line = String::new();
        BufReader::new(self.0.stdout.take().context("its standard output")?).read_line(&mut line)?;
        Ok(Duration::from_millis(line.trim().parse().with_context(|| format!("milliseconds, not `{line}`"))?))
    }
}

impl Drop for HungCaller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_caller_whose_arguments_cannot_be_read_goes_on_when_the_budget_is_over() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let barrier = Barrier::start(KEEPER, &[house.runtime().program()], BUDGET, Answer::AtOnce)?;
    let mut hung = HungCaller::start("deliver", house.runtime())?;
    let allowed = hung.allowed_after()?;
    assert!(allowed >= BUDGET - Duration::from_millis(20), "it was held: {allowed:?}");
    assert!(allowed <= BUDGET + GRACE + RUN, "{allowed:?}");
    drop(hung);
    drop(barrier);
    Ok(())
}

#[test]
fn a_user_whose_arguments_cannot_be_read_is_not_waited_for() -> Result<()> {
    require!(Kind::Runc.requirement());
    let house = House::new(Kind::Runc)?;
    fs::set_permissions(house.directory(), fs::Permissions::from_mode(0o755))?;
    let barrier = Barrier::start(KEEPER, &[house.runtime().program()], RUN, Answer::AtOnce)?;
    let mut hung = HungCaller::start("user", house.runtime())?;
    let allowed = hung.allowed_after()?;
    assert!(allowed < RUN / 2, "its memory was not even looked at: {allowed:?}");
    assert_eq!(barrier.stats.refused_user.load(Ordering::Relaxed), 1);
    assert_eq!(barrier.stats.lost_threads.load(Ordering::Relaxed), 0);
    Ok(())
}

#[test]
fn so_many_such_callers_that_all_threads_are_lost_hold_up_nobody() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let barrier = Barrier::start(KEEPER, &[house.runtime().program()], BUDGET, Answer::AtOnce)?;
    let mut hung: Vec<HungCaller> = Vec::new();
    // One after the other: while the keeper is impatient, an execution is let go before anybody reads its arguments. An
    // ordinary one makes it patient again.
    eventually("threads are lost", || {
        house.execute().expect("it is not denied");
        if barrier.stats.lost_threads.load(Ordering::Relaxed) >= 16 {
            return Some(());
        }
        let mut caller = HungCaller::start("never", house.runtime()).expect("it can be started");
        caller.allowed_after().expect("it is allowed in the end");
        hung.push(caller);
        None
    });
    let refused = barrier.stats.refused_jobs.load(Ordering::Relaxed);
    let took = house.execute()?;
    assert!(took < RUN);
    assert!(barrier.stats.refused_jobs.load(Ordering::Relaxed) > refused, "let go unread");
    // The lost threads come back when what they wait for does.
    drop(hung);
    eventually("threads are there again", || {
        house.execute().ok()?;
        (barrier.stats.lost_threads.load(Ordering::Relaxed) == 0).then_some(())
    });
    let bundle = Bundle::create(house.directory(), "tracker-7-after", house.root(), &["true"])?;
    house.runtime().create(&bundle, "tracker-7-after")?.start()?;
    assert_eq!(barrier.grade("tracker-7-after"), tracker::container::Grade::Held);
    Ok(())
}
