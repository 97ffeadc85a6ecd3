//! The demo runtime is a runtime like any other, and fails as it is told.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tracker::source::task::Task;
use tracker_tests::demo::{Place, arguments};
use tracker_tests::require;
use tracker_tests::requirement::{demo_runtime, root};
use tracker_tests::wait::eventually;

#[test]
fn a_container_lives_as_with_any_runtime() {
    require!(root(), demo_runtime());
    let place = Place::new();
    let cgroup = format!("/tracker-demo-test-{}", std::process::id());
    let init = place.created("web", |config| config["linux"]["cgroupsPath"] = json!(cgroup));

    let own = Task::open(std::process::id()).unwrap().view().unwrap();
    let view = Task::open(init).unwrap().view().unwrap();
    for (theirs, ours) in [
        (view.namespaces.mnt, own.namespaces.mnt),
        (view.namespaces.net, own.namespaces.net),
        (view.namespaces.pid, own.namespaces.pid),
    ] {
        assert!(theirs != 0 && theirs != ours);
    }
    assert_eq!(view.cgroup.path.as_deref(), Some(&*cgroup));
    assert!(view.cgroup.id.is_some() && view.cgroup.id != own.cgroup.id);
    assert_eq!(place.status("web"), "created");
    assert!(arguments(init).contains(" create "), "its entrypoint has not run");
    assert!(place.fail("", &["delete", "web"]).contains("is not stopped"));

    place.succeed(&["start", "web"]);
    eventually("the entrypoint runs", || (arguments(init) == "tracker-demo-runtime init").then_some(()));
    assert_eq!(place.status("web"), "running");
    assert_eq!(Task::open(init).unwrap().view().unwrap().namespaces, view.namespaces);
    assert!(place.fail("", &["start", "web"]).contains("has been started already"));

    // As with any runtime, a signal does not reach the first process of a pid namespace before that waits for it.
    eventually("init ends when told to", || {
        place.run("", &["kill", "web"]);
        (place.status("web") == "stopped").then_some(())
    });
    place.succeed(&["delete", "web"]);
    assert!(place.fail("", &["state", "web"]).contains("does not exist"));
    assert!(!Path::new("/sys/fs/cgroup/unified").join(&cgroup[1..]).exists());
    assert!(!Path::new("/sys/fs/cgroup").join(&cgroup[1..]).exists());
}

#[test]
fn a_container_runs_what_its_bundle_says() {
    require!(root(), demo_runtime());
    let place = Place::new();
    let script = format!("hostname > {0}.new; mv {0}.new {0}; exec sleep 60", place.path("told").display());
    place.created("web", |config| {
        config["process"]["args"] = json!(["/bin/sh", "-c", script]);
        config["process"]["env"] = json!(["PATH=/usr/bin:/bin"]);
    });
    assert!(!place.path("told").exists());
    place.succeed(&["start", "web"]);
    let told = eventually("the entrypoint tells its host name", || fs::read_to_string(place.path("told")).ok());
    assert_eq!(told.trim(), "web");
}

#[test]
fn containers_of_a_pod_share_a_net_namespace() {
    require!(root(), demo_runtime());
    let place = Place::new();
    let sandbox = place.created("sandbox", |_| ());
    let joined =
        json!([{"type": "mount"}, {"type": "pid"}, {"type": "network", "path": format!("/proc/{sandbox}/ns/net")}]);
    let web = place.created("web", |config| config["linux"]["namespaces"] = joined);
    let [sandbox, web] = [sandbox, web].map(|pid| Task::open(pid).unwrap().namespaces());
    assert_eq!(sandbox.net, web.net);
    assert_ne!(sandbox.mnt, web.mnt);
}

#[test]
fn what_is_no_container_is_refused_and_leaves_nothing() {
    require!(root(), demo_runtime());
    let place = Place::new();
    let bundle = place.bundle("web", |_| ());
    assert_eq!(place.create("", &bundle, "..").status.code(), Some(2));
    for (name, namespaces) in [
        ("no-mount", json!([{"type": "pid"}])),
        ("user", json!([{"type": "mount"}, {"type": "user"}])),
        ("nowhere", json!([{"type": "mount"}, {"type": "network", "path": "/nonexistent"}])),
    ] {
        let cgroup = format!("tracker-demo-test-{}-{name}", std::process::id());
        let bundle = place.bundle(name, |config| {
            config["linux"]["namespaces"] = namespaces;
            config["linux"]["cgroupsPath"] = json!(format!("/{cgroup}"));
        });
        assert_eq!(place.create("", &bundle, name).status.code(), Some(1), "{name}");
        let hierarchies = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        assert!(!hierarchies.iter().any(|hierarchy| hierarchy.join(&cgroup).exists()), "{name}");
        assert!(!place.path("state").join(name).exists(), "{name}");
        assert!(!place.pid_file(name).exists(), "{name}");
    }
    place.created("web", |_| ());
    let again = place.create("", &bundle, "web");
    assert!(String::from_utf8_lossy(&again.stderr).contains("already exists"));
    assert_eq!(place.status("web"), "created", "a second attempt leaves the first one alone");
}

#[test]
fn faults_happen_where_they_are_told_to() {
    require!(root(), demo_runtime());
    let place = Place::new();
    let bundle = place.bundle("bundle", |_| ());
    let waits_in_state = |id: &str| place.path("state").join(id).join("exec.fifo").exists();

    assert_eq!(place.create("create-begins:fail", &bundle, "a").status.code(), Some(1));
    assert!(!waits_in_state("a"));

    assert_eq!(place.create("init-born:fail", &bundle, "b").status.code(), Some(1));
    assert!(!waits_in_state("b"));
    eventually("the init of a failed create ends", || place.waiting().is_empty().then_some(()));

    assert_eq!(place.create("init-born:crash", &bundle, "c").status.signal(), Some(9));
    assert!(waits_in_state("c") && !place.pid_file("c").exists());
    assert_eq!(place.waiting().len(), 1, "a crash leaves init behind");

    assert_eq!(place.create("create-ends:crash", &bundle, "d").status.signal(), Some(9));
    assert_eq!(place.status("d"), "created");
    assert!(place.pid_file("d").exists());

    fs::write(place.pid_file("e"), "stale").unwrap();
    assert!(place.create("pid-file=none", &bundle, "e").status.success());
    assert_eq!(fs::read_to_string(place.pid_file("e")).unwrap(), "stale");
    assert!(place.create("pid-file=1", &bundle, "f").status.success());
    assert_eq!(fs::read_to_string(place.pid_file("f")).unwrap(), "1");

    assert!(place.create("init=dies", &bundle, "g").status.success());
    eventually("init ends by itself", || (place.status("g") == "stopped").then_some(()));
    assert!(place.fail("", &["start", "g"]).contains("has ended"));

    assert!(place.create("state-file=late-start", &bundle, "h").status.success());
    let state: Value = serde_json::from_slice(&fs::read(place.root().join("h/state.json")).unwrap()).unwrap();
    let init: u32 = fs::read_to_string(place.pid_file("h")).unwrap().parse().unwrap();
    assert_ne!(state["init_process_start"], Task::open(init).unwrap().id().unwrap().start_ticks);
    assert_eq!(place.status("h"), "created", "the runtime does not deceive itself");

    let before = Instant::now();
    assert_eq!(place.run("start-begins:delay=300,start-ends:crash", &["start", "d"]).status.signal(), Some(9));
    assert!(before.elapsed() >= Duration::from_millis(300));
    assert_eq!(place.status("d"), "running");

    assert!(place.fail("start-begins:jump", &["start", "d"]).contains("unknown fault"));
}
