//! Binaries that nobody named are learnt from what they started, and only such as root alone can write.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;
use tracker::container::Grade;
use tracker::source::health::Condition;
use tracker::source::task::Task;
use tracker_tests::barrier::{Answer, Barrier};
use tracker_tests::bundle::{Bundle, RootFs};
use tracker_tests::runc::{Kind as Oci, Runtime};
use tracker_tests::wait::{eventually, within};
use tracker_tests::{kernel, require};

const KEEPER: &str = env!("CARGO_BIN_EXE_keeper");
const PATIENT: Duration = Duration::from_secs(10);

/// A container in the foreground of a runtime that is not marked; killed in the end.
struct Unseen<'a> {
    runtime: &'a Runtime,
    child: Child,
    init: u32,
}

impl<'a> Unseen<'a> {
    fn run(runtime: &'a Runtime, bundle: &Bundle) -> Result<Unseen<'a>> {
        let pid_file = bundle.path().join("pid");
        let mut command = runtime.command();
        command.args(["run", "--bundle"]).arg(bundle.path()).arg("--pid-file").arg(&pid_file).arg("unseen");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut unseen = Unseen { runtime, child, init: 0 };
        unseen.init = eventually("its init", || fs::read_to_string(&pid_file).ok()?.trim().parse().ok());
        Ok(unseen)
    }
}

impl Drop for Unseen<'_> {
    fn drop(&mut self) {
        let mut delete = self.runtime.command();
        let _ = delete.args(["delete", "--force", "unseen"]).stderr(Stdio::null()).status();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_started_an_unseen_container_is_marked_and_dropped_when_it_is_no_runtime() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    let temp = TempDir::new()?;
    let (root, runtime) = (RootFs::create(temp.path())?, Runtime::copy(Oci::Runc, temp.path())?);
    let bundle = Bundle::create(temp.path(), "bundle", &root, &["sleep", "100"])?;
    let barrier = Barrier::start(KEEPER, &[], PATIENT, Answer::AtOnce)?;
    let unseen = Unseen::run(&runtime, &bundle)?;
    let birth = Task::open(unseen.init)?.view()?.birth(true);

    barrier.handle.learn(&birth);
    eventually("it is marked", || (barrier.handle.marked() == [runtime.program()]).then_some(()));
    assert_eq!(barrier.stats.learnt.load(Ordering::Relaxed), 1);
    let name = runtime.program().display().to_string();
    eventually("it is listed", || {
        let lines = barrier.health.lines();
        lines.into_iter().find(|line| *line.what == *name && line.condition == Condition::Live)
    });
    let held = Bundle::create(temp.path(), "held", &root, &["true"])?;
    let container = runtime.create(&held, "held")?;
    container.start()?;
    assert_eq!(barrier.grade("held"), Grade::Held);
    drop(container);

    for _ in 0..3 {
        assert_eq!(barrier.handle.marked().len(), 1);
        assert!(!Command::new(runtime.program()).arg("bogus").stderr(Stdio::null()).status()?.success());
    }
    eventually("it is dropped", || barrier.handle.marked().is_empty().then_some(()));
    let lines = barrier.health.lines();
    assert!(!lines.iter().any(|line| *line.what == *name && line.condition == Condition::Live), "{lines:?}");
    let events = barrier.stats.events.load(Ordering::Relaxed);
    assert!(!Command::new(runtime.program()).arg("bogus").stderr(Stdio::null()).status()?.success());
    assert_eq!(barrier.stats.events.load(Ordering::Relaxed), events, "its executions are nobody's business any more");
    Ok(())
}

#[test]
fn a_binary_that_others_can_write_is_not_learnt() -> Result<()> {
    require!(Oci::Runc.requirement(), kernel::permission_events());
    let temp = TempDir::new()?;
    let (root, runtime) = (RootFs::create(temp.path())?, Runtime::copy(Oci::Runc, temp.path())?);
    let bundle = Bundle::create(temp.path(), "bundle", &root, &["sleep", "100"])?;
    fs::set_permissions(runtime.program(), fs::Permissions::from_mode(0o775))?;
    let barrier = Barrier::start(KEEPER, &[], PATIENT, Answer::AtOnce)?;
    let unseen = Unseen::run(&runtime, &bundle)?;
    let birth = Task::open(unseen.init)?.view()?.birth(true);
    barrier.handle.learn(&birth);
    assert_eq!(within(Duration::from_millis(300), || barrier.handle.marked().pop()), None);

    // The same, once it is fit: what made the difference is who may write it.
    fs::set_permissions(runtime.program(), fs::Permissions::from_mode(0o755))?;
    barrier.handle.learn(&birth);
    eventually("it is marked", || barrier.handle.marked().pop());
    Ok(())
}
