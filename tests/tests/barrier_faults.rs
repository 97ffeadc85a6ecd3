//! Whatever becomes of the tracker, the keeper or what they look at: starts go on within the budget, none is denied, and what
//! comes afterwards is held again.
//!
//! Times are measured against the budget plus the grace that the barrier allows itself, plus what a loaded machine needs to
//! run the runtime at all ([`RUN`]).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tracker::container::Grade;
use tracker::fact::What;
use tracker::source::health::Condition;
use tracker_tests::barrier::{Answer, Barrier, GRACE};
use tracker_tests::bundle::Bundle;
use tracker_tests::house::House;
use tracker_tests::process::{copy_program, pid, run};
use tracker_tests::runc::Kind;
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require};

const KEEPER: &str = env!("CARGO_BIN_EXE_keeper");
const BUDGET: Duration = Duration::from_millis(200);
/// What an execution of a runtime may take on a machine that does a lot else.
const RUN: Duration = Duration::from_secs(5);
/// For tests in which nothing may be let go.
const PATIENT: Duration = Duration::from_secs(10);

// Ids differ between tests: a runtime puts containers of one id into one cgroup, whatever its `--root`.

fn barrier_over(house: &House, budget: Duration, answer: Answer) -> Result<Barrier> {
    Barrier::start(KEEPER, &[house.runtime().program()], budget, answer)
}

/// Sends a signal to a process that this test started.
fn signal(to: u32, signal: Signal) {
    kill(pid(to), signal).expect("the process is there");
}

/// The container is held again, and graded so.
fn holds_again(house: &House, barrier: &Barrier, id: &str) -> Result<()> {
    barrier.release_all();
    let bundle = house.bundle(&format!("bundle-{id}"))?;
    let container = house.runtime().create(&bundle, id)?;
    container.start()?;
    assert_eq!(barrier.grade(id), Grade::Held);
    Ok(())
}

#[test]
fn a_start_that_nobody_answers_goes_on_when_the_budget_is_over() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let barrier = barrier_over(&house, BUDGET, Answer::Never)?;
    let container = house.runtime().create(&house.bundle("bundle")?, "faults-1-c1")?;
    let took = container.start()?;
    assert!(took >= BUDGET - Duration::from_millis(20), "it was held, not {took:?}");
    assert!(took <= BUDGET + GRACE + RUN, "{took:?}");
    assert_eq!(barrier.grade("faults-1-c1"), Grade::LetGo);
    holds_again(&house, &barrier, "faults-1-c2")
}

#[test]
fn a_stopped_keeper_is_replaced_within_the_budget() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let barrier = barrier_over(&house, PATIENT.min(BUDGET), Answer::AtOnce)?;
    let stopped = barrier.keeper();
    signal(stopped, Signal::SIGSTOP);
    let took = house.execute()?;
    assert!(took <= BUDGET + GRACE + RUN, "{took:?}");
    eventually("another keeper", || (barrier.keeper() != stopped).then_some(()));
    barrier.wait_for_marks(1);
    holds_again(&house, &barrier, "faults-2-c1")
}

#[test]
fn a_killed_keeper_lets_go_at_once_and_is_replaced() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let barrier = barrier_over(&house, PATIENT, Answer::Never)?;
    let container = house.runtime().create(&house.bundle("bundle")?, "faults-3-c1")?;
    let killed = barrier.keeper();
    thread::scope(|scope| -> Result<()> {
        let holds = barrier.holds();
        let start = scope.spawn(|| container.start());
        eventually("the start is held", || (barrier.holds() > holds).then_some(()));
        let begun = Instant::now();
        signal(killed, Signal::SIGKILL);
        start.join().expect("no panic")?;
        assert!(begun.elapsed() < PATIENT / 2, "{:?}", begun.elapsed());
        Ok(())
    })?;
    barrier.release_all();
    assert_eq!(barrier.grade("faults-3-c1"), Grade::LetGo);
    eventually("another keeper", || (barrier.keeper() != killed).then_some(()));
    barrier.wait_for_marks(1);
    holds_again(&house, &barrier, "faults-3-c2")
}

#[test]
fn a_keeper_without_descriptors_denies_nobody() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let barrier = barrier_over(&house, PATIENT, Answer::AtOnce)?;
    for limit in ["7:7", "0:0"] {
        let limited = Command::new("prlimit")
            .args(["--pid", &barrier.keeper().to_string(), &format!("--nofile={limit}")])
            .status()?;
        assert!(limited.success());
        for _ in 0..5 {
            house.execute()?;
        }
    }
    // The one without any room ended rather than read, and the next has its own table.
    eventually("another keeper", || (barrier.stats.keeper_restarts.load(Ordering::Relaxed) > 0).then_some(()));
    barrier.wait_for_marks(1);
    holds_again(&house, &barrier, "faults-4-c1")
}

#[test]
fn an_upgraded_binary_is_held_at_once() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let barrier = barrier_over(&house, PATIENT, Answer::AtOnce)?;
    let inode = |path: &Path| fs::metadata(path).map(|file| std::os::unix::fs::MetadataExt::ino(&file));
    let old = inode(house.runtime().program())?;
    let new = house.directory().join("bin/runc.new");
    copy_program(house.runtime().program(), &new)?;
    fs::rename(&new, house.runtime().program())?;
    assert_ne!(inode(house.runtime().program())?, old);
    // Far sooner than the next scan of all candidates.
    let before = barrier.stats.events.load(Ordering::Relaxed);
    eventually("the new binary is marked", || {
        house.execute().ok()?;
        (barrier.stats.events.load(Ordering::Relaxed) > before).then_some(())
    });
    holds_again(&house, &barrier, "faults-5-c1")
}

#[test]
fn a_stale_pid_file_is_not_believed() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let barrier = barrier_over(&house, PATIENT, Answer::AtOnce)?;
    let bundle = house.bundle("bundle")?;
    let container = house.runtime().create(&bundle, "faults-6-c1")?;
    barrier.statement_with_task("faults-6-c1");
    // This test's own pid: older than the create, and on the host.
    fs::write(bundle.path().join("pid"), std::process::id().to_string())?;
    container.start()?;
    assert_eq!(barrier.grade("faults-6-c1"), Grade::Held);
    let stated = barrier.facts().into_iter().filter_map(|fact| match fact.what {
        What::Stated { statement, .. } => statement.task,
        _ => None,
    });
    let pids: Vec<u32> = stated.map(|task| task.pid).collect();
    assert!(pids.iter().all(|stated| *stated == container.pid()), "{pids:?}");
    Ok(())
}

#[test]
fn neither_pid_file_nor_state_file_means_no_hold_and_a_reason() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let barrier = barrier_over(&house, PATIENT, Answer::AtOnce)?;
    let bundle = house.bundle("bundle")?;
    let container = house.runtime().create(&bundle, "faults-7-c1")?;
    barrier.statement_with_task("faults-7-c1");
    let state = house.runtime().root().join("faults-7-c1/state.json");
    let kept = fs::read(&state)?;
    fs::write(bundle.path().join("pid"), std::process::id().to_string())?;
    fs::write(&state, "{")?;
    assert!(container.start().is_err(), "runc needs it, too");
    let note = barrier.fact("the reason", |what| match what {
        What::Noted { note, .. } if note.contains("not held") => Some(note.clone()),
        _ => None,
    });
    assert!(note.contains(&std::process::id().to_string()), "{note}");
    fs::write(&state, kept)?;
    Ok(())
}

#[test]
fn a_fifo_as_config_or_pid_file_hangs_nobody() -> Result<()> {
    require!(Kind::Crun.requirement(), kernel::permission_events());
    let house = House::new(Kind::Crun)?;
    let barrier = barrier_over(&house, PATIENT, Answer::AtOnce)?;
    let bundle = house.bundle("bundle")?;
    let container = house.runtime().create(&bundle, "faults-8-c1")?;
    barrier.statement_with_task("faults-8-c1");
    fs::remove_file(bundle.path().join("pid"))?;
    mkfifo(&bundle.path().join("pid"), Mode::S_IRWXU)?;
    container.start()?;
    assert_eq!(barrier.grade("faults-8-c1"), Grade::Held, "the state file has proof");

    // The runtime itself would wait for a writer: it is killed once it is past the barrier.
    let hollow = house.directory().join("hollow");
    fs::create_dir(&hollow)?;
    mkfifo(&hollow.join("config.json"), Mode::S_IRWXU)?;
    let mut command = house.runtime().command();
    command.args(["create", "--bundle"]).arg(&hollow).arg("faults-8-c2").stdin(Stdio::null()).stderr(Stdio::null());
    let mut child = Reaped(command.spawn().context("the execution was denied")?);
    let missing = barrier.fact("the create", |what| match what {
        What::Stated { key, statement } if key.id.as_str() == "faults-8-c2" => Some(statement.missing.clone()),
        _ => None,
    });
    assert!(missing.iter().any(|(field, why)| *field == "bundle" && why.contains("regular")), "{missing:?}");
    child.0.kill()?;
    Ok(())
}

/// A child that is killed and reaped in the end.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_an_unprivileged_user_runs_is_not_looked_at() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    fs::set_permissions(house.directory(), fs::Permissions::from_mode(0o755))?;
    let barrier = barrier_over(&house, PATIENT, Answer::Never)?;
    let bundle = house.bundle("bundle")?;
    let mut command = house.runtime().command();
    command.args(["create", "--bundle"]).arg(bundle.path()).arg("faults-9-c1");
    std::os::unix::process::CommandExt::uid(&mut command, 65_534);
    let begun = Instant::now();
    let status = command.stdin(Stdio::null()).stderr(Stdio::null()).status().context("the execution was denied")?;
    assert!(!status.success(), "nobody may not make containers");
    assert!(begun.elapsed() < RUN);
    assert!(barrier.stats.refused_user.load(Ordering::Relaxed) > 0);
    let stated = barrier.facts().into_iter().any(|fact| matches!(fact.what, What::Stated { .. }));
    assert!(!stated, "it speaks for nobody");
    Ok(())
}

#[test]
fn a_caller_in_a_mount_namespace_of_its_own_is_not_looked_at() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let barrier = barrier_over(&house, PATIENT, Answer::Never)?;
    let mut command = Command::new("unshare");
    command.arg("--mount").arg(house.runtime().program()).args(["start", "faults-10-c1"]);
    let status = command.stdin(Stdio::null()).stderr(Stdio::null()).status()?;
    assert_eq!(status.code(), Some(1), "the runtime ran: there is no such container");
    assert_eq!(barrier.stats.refused_nested.load(Ordering::Relaxed), 1);
    Ok(())
}

#[test]
fn failing_creates_leave_neither_descriptors_nor_memory_behind() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let barrier = barrier_over(&house, PATIENT, Answer::AtOnce)?;
    let bundle = Bundle::create(house.directory(), "bundle", house.root(), &["no-such-program"])?;
    let fail = |number: usize| {
        let mut command = house.runtime().command();
        command.args(["create", "--bundle"]).arg(bundle.path()).arg(format!("faults-11-c{number}"));
        assert!(run(&mut command).is_err(), "there is no such program");
    };
    let descriptors = |of: &str| fs::read_dir(format!("/proc/{of}/fd")).map(Iterator::count);
    let aborted = |least: usize| {
        eventually("each is told to have been aborted", || {
            let facts = barrier.facts();
            let aborted = facts.iter().filter(|fact| matches!(fact.what, What::Aborted { .. })).count();
            (aborted >= least).then_some(())
        });
    };
    (0..10).for_each(fail);
    aborted(10);
    let keeper = barrier.keeper().to_string();
    let before = (descriptors("self")?, descriptors(&keeper)?);
    (10..130).for_each(fail);
    aborted(130);
    let after = (descriptors("self")?, descriptors(&keeper)?);
    // Some of this process's own threads and tests run beside: a leak would show as a hundred.
    assert!(after.0 < before.0 + 60 && after.1 <= before.1 + 1, "{before:?} became {after:?}");
    Ok(())
}

#[test]
fn two_hundred_creates_at_once_are_stated_or_counted_and_none_denied() -> Result<()> {
    require!(Kind::Crun.requirement(), kernel::permission_events());
    let house = House::new(Kind::Crun)?;
    let barrier = barrier_over(&house, PATIENT, Answer::AtOnce)?;
    let bundle = Bundle::create(house.directory(), "bundle", house.root(), &["no-such-program"])?;
    let mut children = Vec::new();
    for number in 0..200 {
        let mut command = house.runtime().command();
        command.args(["create", "--bundle"]).arg(bundle.path()).arg(format!("faults-12-c{number}"));
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        children.push(Reaped(command.spawn().context("the execution was denied")?));
    }
    for child in &mut children {
        child.0.wait()?;
    }
    let seen = barrier.facts().into_iter().filter(|fact| match &fact.what {
        What::Stated { statement, .. } => statement.creator.is_some(),
        _ => false,
    });
    // On a machine so busy that more than 64 wait at a time, the oldest is let go before its arguments were read.
    let unread = barrier.stats.unread.load(Ordering::Relaxed) as usize;
    assert!(seen.count() + unread >= 200, "each was stated, or counted: {unread} were not read in time");
    assert_eq!(barrier.stats.refused_jobs.load(Ordering::Relaxed), 0);
    holds_again(&house, &barrier, "faults-12-after")
}

#[test]
fn the_health_board_names_what_is_held() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let barrier = barrier_over(&house, PATIENT, Answer::AtOnce)?;
    let program = house.runtime().program().display().to_string();
    eventually("a line", || {
        let lines = barrier.health.lines();
        lines.into_iter().find(|line| line.condition == Condition::Live && line.detail.contains(&program))
    });
    Ok(())
}
