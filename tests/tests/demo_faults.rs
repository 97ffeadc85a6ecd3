//! Runtimes that are slow, crash or lie, with the whole tracker watching: no start is denied, and no container is ever
//! bound to a process that is not its own.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use tracker::container::{Grade, Kind, State};
use tracker::{Config, Container, Tracker};
use tracker_tests::demo::Place;
use tracker_tests::require;
use tracker_tests::requirement::{demo_runtime, root};
use tracker_tests::wait::{eventually, within};

const KEEPER: &str = env!("CARGO_BIN_EXE_keeper");

/// A tracker that holds what this place's runtime starts.
fn tracker(place: &Place) -> Tracker {
    let mut config = Config::default();
    config.barrier.runtimes = vec![place.program().to_owned()];
    config.barrier.known_paths = false;
    config.barrier.learn = false;
    config.barrier.keeper_program = Some(PathBuf::from(KEEPER));
    config.proc.roots = vec![place.root()];
    config.proc.usual_roots = false;
    config.containerd.enabled = false;
    config.find.enabled = false;
    let tracker = Tracker::start(config).expect("it starts");
    eventually("the barrier holds starts", || {
        let lines = tracker.health();
        lines.iter().any(|line| line.detail.contains("tracker-demo-runtime")).then_some(())
    });
    tracker
}

fn find(tracker: &Tracker, id: &str) -> Option<Arc<Container>> {
    let mut reader = tracker.reader();
    reader.all().find(|container| &*container.id == id).cloned()
}

/// The pid of the process that is init, whatever the runtime says: it has not run its entrypoint yet.
fn init_of(place: &Place, id: &str) -> Option<u32> {
    let named = |pid: &u32| tracker_tests::demo::arguments(*pid).ends_with(&format!(" {id}"));
    place.waiting().into_iter().find(named)
}

/// Makes and starts a container with faults; what comes out has the right init process, and an honest grade.
#[track_caller]
fn check(place: &Place, tracker: &Tracker, id: &str, fault: &str) -> Arc<Container> {
    let name = format!("name-of-{id}");
    let bundle = place.bundle(id, |config| config["annotations"] = json!({"io.kubernetes.container.name": name}));
    let created = place.create(fault, &bundle, id);
    assert!(created.status.success(), "{fault}: {}", String::from_utf8_lossy(&created.stderr));
    let init = init_of(place, id).expect("init waits");
    let started = place.run("", &["start", id]);
    assert!(started.status.success(), "{fault}: {}", String::from_utf8_lossy(&started.stderr));

    let found = eventually(&format!("{fault}: `{id}` runs"), || {
        find(tracker, id).filter(|container| container.state == State::Running)
    });
    assert_eq!(found.pid(), Some(init), "{fault}");
    assert_eq!(found.kind, Kind::Container, "{fault}");
    assert_eq!(found.name.as_deref(), Some(&*name), "{fault}");
    let mut reader = tracker.reader();
    assert_eq!(reader.by_pid(init).container().map(|container| &*container.id), Some(id), "{fault}");
    assert_eq!(reader.by_mntns(found.namespaces.mnt).container().map(|container| &*container.id), Some(id), "{fault}");
    found
}

#[test]
fn lies_about_the_init_process_are_not_believed() {
    require!(root(), demo_runtime());
    let place = Place::new();
    let tracker = tracker(&place);
    let honest = check(&place, &tracker, "honest", "");
    assert!(matches!(honest.grade, Some(Grade::Held | Grade::LetGo)), "{:?}", honest.grade);

    check(&place, &tracker, "silent", "pid-file=none");
    check(&place, &tracker, "of-the-host", &format!("pid-file={}", std::process::id()));
    check(&place, &tracker, "of-another", &format!("pid-file={}", honest.pid().expect("it runs")));
    check(&place, &tracker, "no-pid", "pid-file=init");
    check(&place, &tracker, "stateless", "state-file=none");
    check(&place, &tracker, "late", "state-file=late-start");
    check(&place, &tracker, "late-and-silent", "state-file=late-start,pid-file=none");
    fs::write(place.pid_file("stale"), honest.pid().expect("it runs").to_string()).expect("a stale pid file");
    check(&place, &tracker, "stale", "pid-file=none,state-file=none");

    let after = find(&tracker, "honest").expect("it is still there");
    assert_eq!((after.pid(), after.namespaces, after.instance), (honest.pid(), honest.namespaces, honest.instance));
}

#[test]
fn slow_runtimes_are_waited_for_without_harm() {
    require!(root(), demo_runtime());
    let place = Place::new();
    let tracker = tracker(&place);
    for (id, fault) in [
        ("slow-begin", "create-begins:delay=300"),
        ("slow-init", "init-born:delay=300"),
        ("slow-state", "state-written:delay=300"),
        ("slow-end", "create-ends:delay=300"),
    ] {
        check(&place, &tracker, id, fault);
    }
}

#[test]
fn what_never_comes_to_life_is_never_shown_as_running() {
    require!(root(), demo_runtime());
    let place = Place::new();
    let tracker = tracker(&place);
    let bundle = place.bundle("bundle", |_| ());
    for (id, fault) in
        [("fails", "create-begins:fail"), ("fails-late", "init-born:fail"), ("crashes", "create-begins:crash")]
    {
        assert!(!place.create(fault, &bundle, id).status.success(), "{fault}");
    }
    assert!(place.create("init=dies", &bundle, "dies").status.success());
    assert!(!place.run("", &["start", "dies"]).status.success());
    check(&place, &tracker, "after", "");

    // Nothing of it may take longer than what came after it.
    for id in ["fails", "fails-late", "crashes", "dies"] {
        let over = |container: &Arc<Container>| container.state.is_over();
        let found = within(tracker_tests::wait::PATIENCE, || match find(&tracker, id) {
            Some(container) if !over(&container) => None,
            found => Some(found),
        });
        assert!(found.is_some(), "{id}: {:?}", find(&tracker, id).map(|container| container.state));
    }
}
