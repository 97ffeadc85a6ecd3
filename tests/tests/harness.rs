//! The harness does what its users rely on: containers come to life and are gone afterwards.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tracker_tests::bundle::{Bundle, RootFs};
use tracker_tests::containerd::Containerd;
use tracker_tests::process::Process;
use tracker_tests::runc::{Kind, Runtime};
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

fn a_created_container_starts_and_is_gone_when_dropped(kind: Kind) -> Result<()> {
    require!(kind.requirement());
    let directory = tempfile::tempdir()?;
    let runtime = Runtime::copy(kind, directory.path())?;
    let root = RootFs::create(directory.path())?;
    let bundle = Bundle::create(directory.path(), "a", &root, &["/bin/sleep", "1000"])?;

    let container = runtime.create(&bundle, "harness-a")?;
    let pid = container.pid();
    assert_ne!(kernel::namespace(pid, "mnt")?, kernel::namespace(std::process::id(), "mnt")?);
    let command_line = || std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert!(!command_line().starts_with("/bin/sleep"), "it waits for its start");
    container.start()?;
    eventually("the entrypoint runs", || command_line().starts_with("/bin/sleep").then_some(()));

    drop(container);
    eventually("its init is gone", || (!kernel::is_alive(pid)).then_some(()));
    Ok(())
}

#[test]
fn runc_containers_live_and_die() -> Result<()> {
    a_created_container_starts_and_is_gone_when_dropped(Kind::Runc)
}

#[test]
fn crun_containers_live_and_die() -> Result<()> {
    a_created_container_starts_and_is_gone_when_dropped(Kind::Crun)
}

#[test]
fn containerd_runs_the_image_and_takes_its_containers_along() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::program("containerd"), requirement::program("ctr"));
    let mut containerd = Containerd::start()?;
    assert!(containerd.import_image("default")?.starts_with("sha256:"));
    containerd.run("default", "one", &["--label", "tier=test"], &["/bin/sleep", "1000"])?;
    let pid = containerd.pid("default", "one")?;
    assert!(kernel::is_alive(pid));

    containerd.kill();
    assert!(kernel::is_alive(pid), "containers outlive the daemon");
    containerd.restart()?;
    assert_eq!(containerd.pid("default", "one")?, pid);

    drop(containerd);
    eventually("its container is gone", || (!kernel::is_alive(pid)).then_some(()));
    Ok(())
}

#[test]
fn a_process_ends_with_its_guard() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut sleeper = Process::start(Command::new("sleep").arg("1000"), &directory.path().join("log"))?;
    let pid = sleeper.pid();
    assert!(kernel::start_ticks(pid)? > 0);
    assert!(sleeper.wait(Duration::from_millis(1)).is_err());
    drop(sleeper);
    assert!(!kernel::is_alive(pid));
    Ok(())
}
