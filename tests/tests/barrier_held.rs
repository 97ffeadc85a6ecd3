//! Starts are held until the collection knows the container, with the real runtimes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;
use tracker::container::{Grade, Kind, State};
use tracker::fact::What;
use tracker_tests::barrier::{Answer, Barrier};
use tracker_tests::bundle::{Bundle, RootFs};
use tracker_tests::process::run;
use tracker_tests::runc::{Kind as Oci, Runtime};
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require};

const KEEPER: &str = env!("CARGO_BIN_EXE_keeper");
/// Long enough that nothing is let go on a machine that does other things as well.
const BUDGET: Duration = Duration::from_secs(5);

fn is_held_before_its_first_instruction(oci: Oci) -> Result<()> {
    let temp = TempDir::new()?;
    let runtime = Runtime::copy(oci, temp.path())?;
    let root = RootFs::create(temp.path())?;
    let bundle = Bundle::create_with(temp.path(), "bundle", &root, &["sleep", "100"], |config| {
        config["annotations"] = serde_json::json!({"io.kubernetes.cri.container-type": "sandbox"});
    })?;
    let barrier = Barrier::start(KEEPER, &[runtime.program()], BUDGET, Answer::Never)?;
    let container = runtime.create(&bundle, "c1")?;

    // `create` was stated with all that the bundle says, and who makes it, before the runtime began.
    let created = barrier.fact("the create", |what| match what {
        What::Stated { statement, .. } if statement.creator.is_some() => Some((**statement).clone()),
        _ => None,
    });
    assert_eq!((created.state, created.kind), (Some(State::Created), Some(Kind::Sandbox)));
    assert_eq!(created.bundle.as_deref(), bundle.path().to_str());
    assert_eq!(created.runtime.unwrap().oci.as_deref(), Some(oci.name()));
    // Once `create` has ended, its init is known; it has not started.
    let stated = barrier.statement_with_task("c1");
    assert_eq!(stated.state, Some(State::Created));
    let task = stated.task.unwrap();
    assert_eq!(task.pid, container.pid());
    assert_eq!(task.start_ticks, kernel::start_ticks(task.pid)?);
    assert_eq!(stated.namespaces.unwrap().mnt, kernel::namespace(task.pid, "mnt")?);

    // While `start` is held, the entrypoint has not run: the init is still the runtime's.
    let program = || fs::read_to_string(format!("/proc/{}/cmdline", task.pid)).unwrap_or_default();
    std::thread::scope(|scope| -> Result<()> {
        let start = scope.spawn(|| container.start());
        barrier.fact("the start", |what| match what {
            What::Stated { statement, .. } if statement.state == Some(State::Running) => Some(()),
            _ => None,
        });
        assert!(!program().starts_with("sleep"), "it runs already: {}", program());
        barrier.release_all();
        start.join().expect("no panic")?;
        Ok(())
    })?;
    assert_eq!(barrier.grade("c1"), Grade::Held);
    eventually("the entrypoint runs", || program().starts_with("sleep").then_some(()));
    Ok(())
}

#[test]
fn runc_is_held_before_the_containers_first_instruction() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    is_held_before_its_first_instruction(Oci::Runc)
}

#[test]
fn crun_is_held_before_the_containers_first_instruction() -> Result<()> {
    require!(Oci::Crun.requirement(), kernel::permission_events());
    is_held_before_its_first_instruction(Oci::Crun)
}

/// Relative paths mean what the runtime makes of them: runc writes its pid file below the working directory, crun below the
/// bundle.
fn relative_paths_are_the_runtimes_own(oci: Oci) -> Result<()> {
    let temp = TempDir::new()?;
    let runtime = Runtime::copy(oci, temp.path())?;
    let root = RootFs::create(temp.path())?;
    let bundle = Bundle::create(temp.path(), "bundle", &root, &["sleep", "100"])?;
    let cwd = temp.path().join("cwd");
    fs::create_dir(&cwd)?;
    let barrier = Barrier::start(KEEPER, &[runtime.program()], BUDGET, Answer::AtOnce)?;
    let mut create = runtime.command();
    create.current_dir(&cwd).args(["create", "--bundle", "./x/../../bundle", "--pid-file", "pid.here", "held-2-c1"]);
    fs::create_dir(cwd.join("x"))?;
    let made = run(&mut create);
    let directory = if oci == Oci::Runc { &cwd } else { bundle.path() };
    let pid: u32 = fs::read_to_string(directory.join("pid.here"))?.trim().parse()?;
    let stated = barrier.statement_with_task("held-2-c1");
    let deleted = run(runtime.command().args(["delete", "--force", "held-2-c1"]));
    made?;
    deleted?;
    assert_eq!(stated.task.map(|task| task.pid), Some(pid));
    assert_eq!(stated.bundle.as_deref(), bundle.path().to_str());
    assert!(stated.missing.is_empty(), "{:?}", stated.missing);
    Ok(())
}

#[test]
fn relative_paths_are_those_of_runc() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    relative_paths_are_the_runtimes_own(Oci::Runc)
}

#[test]
fn relative_paths_are_those_of_crun() -> Result<()> {
    require!(Oci::Crun.requirement(), kernel::permission_events());
    relative_paths_are_the_runtimes_own(Oci::Crun)
}

#[test]
fn a_container_that_was_created_unseen_is_held_when_it_starts() -> Result<()> {
    require!(Oci::Crun.requirement(), kernel::permission_events());
    let temp = TempDir::new()?;
    let runtime = Runtime::copy(Oci::Crun, temp.path())?;
    let root = RootFs::create(temp.path())?;
    let bundle = Bundle::create(temp.path(), "bundle", &root, &["sleep", "100"])?;
    let container = runtime.create(&bundle, "held-5-c1")?;
    let barrier = Barrier::start(KEEPER, &[runtime.program()], BUDGET, Answer::AtOnce)?;
    container.start()?;
    assert_eq!(barrier.grade("held-5-c1"), Grade::Held);
    let stated = barrier.statement_with_task("held-5-c1");
    assert_eq!(stated.task.map(|task| task.pid), Some(container.pid()));
    assert_eq!(stated.bundle.as_deref(), bundle.path().to_str());
    Ok(())
}

#[test]
fn a_run_is_stated_before_it_makes_its_container() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    let temp = TempDir::new()?;
    let runtime = Runtime::copy(Oci::Runc, temp.path())?;
    let root = RootFs::create(temp.path())?;
    let bundle = Bundle::create(temp.path(), "bundle", &root, &["sleep", "100"])?;
    let barrier = Barrier::start(KEEPER, &[runtime.program()], BUDGET, Answer::Never)?;
    let container = runtime.run(&bundle, "held-6-c1")?;
    // Nothing was held, though nobody answers; who makes it was known first, its process afterwards.
    let facts = barrier.facts();
    let Some(What::Stated { statement, .. }) =
        facts.iter().map(|fact| &fact.what).find(|what| matches!(what, What::Stated { .. }))
    else {
        panic!("it is stated when `run` has ended: {facts:?}")
    };
    assert!(statement.creator.is_some() && statement.task.is_none());
    assert_eq!(barrier.statement_with_task("held-6-c1").task.map(|task| task.pid), Some(container.pid()));
    Ok(())
}
