//! Callers who put what the tracker reads on a file system that does not answer: the thread that looks is lost until the
//! file system has gone, and nobody else waits for it longer than the budget.
//!
//! What was held, and who sleeps where, is told by the file system itself: no time but the budget's is measured.

use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracker::BootTime;
use tracker::container::Grade;
use tracker_tests::barrier::{Answer, Barrier, GRACE};
use tracker_tests::house::{House, PATIENT};
use tracker_tests::process::run;
use tracker_tests::runc::Kind;
use tracker_tests::silent_fs::{self, SilentFs};
use tracker_tests::wait::{PATIENCE, eventually, within};
use tracker_tests::{kernel, require};

const KEEPER: &str = env!("CARGO_BIN_EXE_keeper");
const SILENT_FS: &str = env!("CARGO_BIN_EXE_silent_fs");
const BUDGET: Duration = Duration::from_millis(200);
/// What an execution of a runtime may take on a machine that does a lot else.
const RUN: Duration = Duration::from_secs(10);

/// What sleeps in the kernel past any signal has the machine to itself.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

macro_rules! require_silence {
    () => {
        require!(Kind::Runc.requirement(), kernel::permission_events(), silent_fs::requirement());
    };
}

/// A process that may sleep where no signal reaches it: it is killed, and ends when the file system has gone.
struct Sleeper(Child);

impl Sleeper {
    /// Returns when it executes its program, and so was allowed to.
    fn start(command: &mut Command) -> Result<Sleeper> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Sleeper(command.spawn().context("the execution was denied")?))
    }

    /// One that executes the runtime with arguments on `fs`.
    fn with_arguments_on(fs: &SilentFs, who: &str, house: &House) -> Result<Sleeper> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fuse_caller"));
        command.arg(who).arg(fs.path("arguments")).arg(fs.path("environment")).arg(house.runtime().program());
        Sleeper::start(&mut command)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        within(PATIENCE, || self.0.try_wait().transpose());
    }
}

/// Starts are held and answered, though others sleep.
#[track_caller]
fn holds_again(house: &House, barrier: &Barrier) {
    // The keeper lets everything go until it is answered again: the first of these is what it is answered for.
    eventually("starts are held again", || {
        let id = format!("again-{}", BootTime::now().0);
        let _container = house.started(&id).expect("none is denied");
        (barrier.grade(&id) == Grade::Held).then_some(())
    });
}

/// The thread that slept is back.
#[track_caller]
fn nobody_is_lost(house: &House, barrier: &Barrier) {
    eventually("threads are there again", || {
        let _ = run(house.runtime().command().args(["start", "nothing"]));
        (barrier.stats.lost_threads.load(Ordering::Relaxed) == 0).then_some(())
    });
}

#[test]
fn a_users_arguments_on_a_silent_file_system_are_not_touched() -> Result<()> {
    require_silence!();
    let (_alone, house) = (alone(), House::new(Kind::Runc)?);
    let barrier = Barrier::start(KEEPER, &[house.runtime().program()], PATIENT, Answer::Never)?;
    let fs = SilentFs::mount(SILENT_FS, house.directory())?;
    let caller = Sleeper::with_arguments_on(&fs, "user", &house)?;
    let question = fs.next_question()?;
    assert_eq!(
        (&*question.name, question.tid),
        ("environment", caller.0.id()),
        "`execve` went on, and nobody had read"
    );
    assert_eq!(barrier.stats.refused_user.load(Ordering::Relaxed), 1);
    assert_eq!((barrier.holds(), barrier.stats.lost_threads.load(Ordering::Relaxed)), (0, 0));
    barrier.release_all();
    holds_again(&house, &barrier);
    drop(fs);
    Ok(())
}

#[test]
fn roots_arguments_on_a_silent_file_system_cost_a_thread_and_one_budget() -> Result<()> {
    require_silence!();
    let (_alone, house) = (alone(), House::new(Kind::Runc)?);
    let barrier = Barrier::start(KEEPER, &[house.runtime().program()], BUDGET, Answer::AtOnce)?;
    let fs = SilentFs::mount(SILENT_FS, house.directory())?;
    let begun = Instant::now();
    let caller = Sleeper::with_arguments_on(&fs, "root", &house)?;
    let question = fs.next_question()?;
    assert_eq!(question.name, "arguments");
    assert!(question.is_by(std::process::id()), "a thread of the barrier reads them: {question:?}");
    let question = fs.next_question()?;
    assert_eq!((&*question.name, question.tid), ("environment", caller.0.id()), "it was let go");
    assert!(begun.elapsed() <= BUDGET + GRACE + RUN, "{:?}", begun.elapsed());
    holds_again(&house, &barrier);
    drop(fs);
    nobody_is_lost(&house, &barrier);
    Ok(())
}

#[test]
fn a_bundle_on_a_silent_file_system_costs_a_thread_and_one_budget() -> Result<()> {
    require_silence!();
    let (_alone, house) = (alone(), House::new(Kind::Runc)?);
    for (bundle, kind, name) in [("nowhere", "lookup", "nowhere"), ("bundle", "read", "config.json")] {
        let barrier = Barrier::start(KEEPER, &[house.runtime().program()], BUDGET, Answer::AtOnce)?;
        let fs = SilentFs::mount(SILENT_FS, house.directory())?;
        let begun = Instant::now();
        let mut create = house.runtime().command();
        create.args(["create", "--bundle"]).arg(fs.path(bundle)).arg("sleeps");
        let _caller = Sleeper::start(&mut create)?;
        assert!(begun.elapsed() <= BUDGET + GRACE + RUN, "{bundle}: {:?}", begun.elapsed());
        let question = fs.next_question()?;
        assert_eq!((&*question.kind, &*question.name), (kind, name));
        assert!(question.is_by(std::process::id()), "{bundle}: the barrier looked first: {question:?}");
        holds_again(&house, &barrier);
        drop(fs);
        nobody_is_lost(&house, &barrier);
        std::fs::remove_dir(house.path("silent"))?;
    }
    Ok(())
}

#[test]
fn a_pid_file_on_a_silent_file_system_lets_its_container_go_with_an_honest_grade() -> Result<()> {
    require_silence!();
    let (_alone, house) = (alone(), House::new(Kind::Runc)?);
    let barrier = Barrier::start(KEEPER, &[house.runtime().program()], BUDGET, Answer::AtOnce)?;
    let fs = SilentFs::mount(SILENT_FS, house.directory())?;
    let bundle = house.bundle("sleeps")?;
    let container = house.runtime().create(&bundle, "sleeps")?;
    let created = barrier.statement_with_task("sleeps");
    // The runtime has written it where it was told to; since then the way there has changed.
    std::fs::rename(bundle.path(), house.path("moved"))?;
    symlink(fs.path("nowhere"), bundle.path())?;
    let took = container.start()?;
    assert!(took <= BUDGET + GRACE + RUN, "{took:?}");
    let question = fs.next_question()?;
    assert_eq!((&*question.kind, &*question.name), ("lookup", "nowhere"));
    assert!(question.is_by(std::process::id()), "{question:?}");
    holds_again(&house, &barrier);
    drop(fs);
    // Told by who looked, now that there is an answer: it was not held to the end.
    assert_eq!(barrier.grade("sleeps"), Grade::LetGo);
    let running = barrier.fact("that it runs", |what| match what {
        tracker::fact::What::Stated { key, statement }
            if key.id.as_str() == "sleeps" && statement.state == Some(tracker::container::State::Running) =>
        {
            Some(statement.task)
        }
        _ => None,
    });
    assert_eq!(running.map(|task| task.pid), Some(container.pid()));
    assert_eq!(running, created.task, "the state file has the proof");
    nobody_is_lost(&house, &barrier);
    Ok(())
}
