//! Containers that were there before the tracker come out as if it had seen them begin: found by their init process
//! in the state directories of the real runtimes of the distribution.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::Result;
use serde_json::{Value, json};
use tracker::container::{Kind, State};
use tracker::fact::{Fact, Source, What};
use tracker::source::task::Task;
use tracker::{BootTime, Config, Container, Tracker};
use tracker_tests::bundle::{Bundle, RootFs};
use tracker_tests::containerd::Containerd;
use tracker_tests::process::Process;
use tracker_tests::runc::{Kind as Runc, Runtime};
use tracker_tests::wait::eventually;
use tracker_tests::{process, require, requirement};

/// A tracker that knows nothing but these root directories.
fn tracker(roots: Vec<PathBuf>) -> Result<Tracker> {
    let mut config = Config::default();
    config.proc.roots = roots;
    config.proc.usual_roots = false;
    config.containerd.enabled = false;
    config.find.enabled = false;
    Ok(Tracker::start(config)?)
}

/// States what a scan finds: a process in a mount namespace of its own.
fn show(tracker: &Tracker, pid: u32) -> Result<()> {
    let birth = Task::open(pid)?.view()?.birth(true);
    let fact = Fact { source: Source::Proc, at: BootTime::now(), what: What::Born(birth) };
    Ok(tracker.facts().state_blocking(vec![fact])?)
}

/// The container with this init process, once it is vouched for.
#[track_caller]
fn vouched_for(tracker: &Tracker, pid: u32) -> Container {
    let mut reader = tracker.reader();
    eventually("the container is vouched for", || {
        let container = reader.by_pid(pid).container()?;
        (container.kind != Kind::Unmanaged && container.is_stated_by(Source::Proc)).then(|| container.clone())
    })
}

fn annotated(config: &mut Value) {
    config["annotations"] = json!({
        "io.kubernetes.container.name": "nginx",
        "io.kubernetes.pod.name": "web-0",
        "io.kubernetes.pod.namespace": "shop",
    });
}

fn found_with_all_that_its_bundle_says(kind: Runc) -> Result<()> {
    let temp = tempfile::tempdir()?;
    let runtime = Runtime::copy(kind, temp.path())?;
    let rootfs = RootFs::create(temp.path())?;
    let bundle = Bundle::create_with(temp.path(), "bundle", &rootfs, &["sleep", "600"], annotated)?;
    let id = format!("tracker-test-{}-{}", kind.name(), std::process::id());
    let container = runtime.create(&bundle, &id)?;

    let before = tracker(vec![runtime.root().to_owned()])?;
    show(&before, container.pid())?;
    assert_eq!(vouched_for(&before, container.pid()).runtime.oci.as_deref(), Some(kind.name()));
    before.shutdown();

    container.start()?;
    let tracker = tracker(vec![runtime.root().to_owned()])?;
    show(&tracker, container.pid())?;
    let found = vouched_for(&tracker, container.pid());
    assert_eq!(&*found.id, id);
    assert_eq!(found.kind, Kind::Container);
    assert_eq!(found.state, State::Running);
    assert_eq!(found.name.as_deref(), Some("nginx"));
    let pod = found.pod.expect("the bundle names it");
    assert_eq!((pod.namespace.as_deref(), pod.name.as_deref()), (Some("shop"), Some("web-0")));
    assert_eq!(found.bundle.as_deref(), bundle.path().to_str());
    assert_eq!(found.host_network, Some(false));
    assert_eq!(found.namespaces, Task::open(container.pid())?.namespaces());
    assert_eq!(tracker.stats().proc.unreadable_bundles.load(Relaxed), 0);
    Ok(())
}

#[test]
fn a_container_of_runc_is_found_with_all_that_its_bundle_says() -> Result<()> {
    require!(Runc::Runc.requirement());
    found_with_all_that_its_bundle_says(Runc::Runc)
}

#[test]
fn a_container_of_crun_is_found_with_all_that_its_bundle_says() -> Result<()> {
    require!(Runc::Crun.requirement());
    found_with_all_that_its_bundle_says(Runc::Crun)
}

#[test]
fn a_container_of_containerd_is_found_through_its_shim_alone() -> Result<()> {
    require!(requirement::root(), requirement::program("containerd"), Runc::Runc.requirement());
    let mut containerd = Containerd::start()?;
    containerd.import_image("tests")?;
    containerd.run("tests", "c1", &["--annotation", "io.kubernetes.container.name=nginx"], &["sleep", "600"])?;
    let pid = containerd.pid("tests", "c1")?;
    containerd.kill();

    // No root directory is configured: the shim above the container names it.
    let tracker = tracker(vec![])?;
    show(&tracker, pid)?;
    let found = vouched_for(&tracker, pid);
    assert_eq!(&*found.id, "c1");
    assert_eq!(found.runtime.name.as_deref(), Some("containerd"));
    assert_eq!(found.runtime.namespace.as_deref(), Some("tests"));
    assert!(found.bundle.expect("it has one").ends_with("io.containerd.runtime.v2.task/tests/c1"));
    assert!(found.cgroup.path.expect("it has one of its own").ends_with("/tests/c1"));
    Ok(())
}

#[test]
fn a_container_of_a_runtime_of_unknown_name_and_state_is_known_by_the_command_line_above_it() -> Result<()> {
    require!(Runc::Runc.requirement());
    let temp = tempfile::tempdir()?;
    let (rootfs, program) = (RootFs::create(temp.path())?, temp.path().join("myrt"));
    process::copy_program(&requirement::program("runc").map_err(anyhow::Error::msg)?, &program)?;
    let id = format!("tracker-test-myrt-{}", std::process::id());
    let bundle = Bundle::create_with(temp.path(), "bundle", &rootfs, &["sleep", "600"], annotated)?;
    let mut command = Command::new(&program);
    command.args(["--root", "state", "run", "--bundle", "bundle", &id]).current_dir(temp.path());
    let runtime = Process::start(&mut command, &temp.path().join("log"))?;
    let state = temp.path().join("state").join(&id).join("state.json");
    let init = eventually("it runs", || {
        let state: Value = serde_json::from_slice(&fs::read(&state).ok()?).ok()?;
        let pid = u32::try_from(state["init_process_pid"].as_u64()?).ok()?;
        fs::read_to_string(format!("/proc/{pid}/comm")).ok().filter(|name| name == "sleep\n").map(|_| pid)
    });
    // Nobody else reads what it keeps.
    let kept = fs::read(&state)?;
    fs::remove_file(&state)?;
    let tracker = tracker(Vec::new())?;
    show(&tracker, init)?;
    let container = vouched_for(&tracker, init);
    assert_eq!((&*container.id, container.name.as_deref()), (&*id, Some("nginx")));
    assert_eq!(container.bundle.as_deref(), bundle.path().to_str());
    assert_eq!(container.runtime.oci.as_deref(), Some("myrt"));
    assert_eq!(container.task.map(|task| task.pid), Some(init));
    drop(tracker);

    // Somebody else's program says what it likes.
    std::os::unix::fs::chown(&program, Some(65_534), None)?;
    let strict = self::tracker(Vec::new())?;
    show(&strict, init)?;
    let looked_at = || strict.stats().proc.unknown.load(Relaxed);
    eventually("it has been looked for", || (looked_at() > 0).then_some(()));
    assert_eq!(strict.reader().by_pid(init).container().map(|container| container.kind), Some(Kind::Unmanaged));

    fs::write(&state, kept)?;
    process::run(Command::new(&program).args(["--root", "state", "delete", "--force", &id]).current_dir(temp.path()))?;
    drop(runtime);
    Ok(())
}

#[test]
fn what_no_runtime_knows_stays_unmanaged() -> Result<()> {
    require!(requirement::root(), requirement::program("unshare"));
    let temp = tempfile::tempdir()?;
    let roots = vec![temp.path().join("nothing"), Path::new("/proc").to_owned()];
    let mut unshare = Command::new("unshare");
    let child = Process::start(unshare.args(["--mount", "sleep", "600"]), &temp.path().join("log"))?;
    let own = fs::read_link("/proc/self/ns/mnt")?;
    let theirs = format!("/proc/{}/ns/mnt", child.pid());
    eventually("it is in a mount namespace of its own", || (fs::read_link(&theirs).ok()? != own).then_some(()));

    let tracker = tracker(roots)?;
    show(&tracker, child.pid())?;
    let stats = &tracker.stats().proc;
    eventually("it was looked for often enough", || (stats.unknown.load(Relaxed) >= 1).then_some(()));
    let mut reader = tracker.reader();
    let container = reader.by_pid(child.pid()).container().expect("it is shown all the same");
    assert_eq!(container.kind, Kind::Unmanaged);
    Ok(())
}
