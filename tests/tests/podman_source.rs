//! The podman source against the real podman of the distribution, root's and a user's, with its service and without.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::{fs, thread};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tracker::collection::story::Who;
use tracker::container::{Domain, Health, Kind as ContainerKind, State};
use tracker::source::find;
use tracker::source::health::{Condition, Health as Line};
use tracker::source::podman::{self, Stats};
use tracker::{Config, Container, Reader, Tracker};
use tracker_tests::net::subnets;
use tracker_tests::podman::{IMAGE, PAUSE_IMAGE, Podman};
use tracker_tests::process::Process;
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

/// A tracker that asks these services and no others.
struct Source {
    tracker: Tracker,
    reader: Reader,
}

impl Source {
    fn start(sockets: &[PathBuf]) -> Result<Source> {
        let podman = podman::Config {
            sockets: sockets.to_vec(),
            sockets_if_present: vec![],
            alive_interval_ms: 500,
            call_deadline_ms: 2_000,
            backoff_cap_ms: 500,
            ..Default::default()
        };
        let env_allow = ["COLOUR"].into_iter().collect();
        let find = find::Config { enabled: false, ..Default::default() };
        let tracker = Tracker::start(Config { podman, find, env_allow, ..Config::default() })?;
        Ok(Source { reader: tracker.reader(), tracker })
    }

    #[track_caller]
    fn until_line(&mut self, socket: &Path, what: &str, is_so: impl Fn(&Line) -> bool) -> Line {
        let socket = socket.display().to_string();
        let is_it = |line: &Line| line.source == tracker::fact::Source::Podman && *line.what == *socket && is_so(line);
        eventually(what, || self.tracker.health().into_iter().find(is_it))
    }

    #[track_caller]
    fn until_live(&mut self, socket: &Path) {
        self.until_line(socket, "the service is live", |line| line.condition == Condition::Live);
    }

    /// Waits until a container is as it should be.
    #[track_caller]
    fn until(&mut self, id: &str, what: &str, is_so: impl Fn(&Container) -> bool) -> Container {
        let mut last = vec![];
        let found = tracker_tests::wait::within(tracker_tests::wait::PATIENCE, || {
            let of_id = self.reader.all().filter(|container| &*container.id == id);
            let all: Vec<Container> = of_id.map(|container| Container::clone(container)).collect();
            let found = all.iter().find(|container| is_so(container)).cloned();
            last = all;
            found
        });
        found.unwrap_or_else(|| panic!("{id}: {what}: not in time, but {last:#?}"))
    }

    #[track_caller]
    fn until_state(&mut self, id: &str, state: State) -> Container {
        self.until(id, &format!("{state:?}"), |container| container.state == state)
    }

    /// Entries with this id, whoever they belong to.
    fn count(&mut self, id: &str) -> usize {
        self.reader.all().filter(|container| &*container.id == id).count()
    }

    fn stats(&self) -> &Stats {
        &self.tracker.stats().podman
    }
}

fn is_by_podman(container: &Container) -> bool {
    container.is_stated_by(tracker::fact::Source::Podman)
}

/// A name that no test beside this one has.
fn name(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

const SLEEP: [&str; 2] = ["sleep", "1000000"];

#[test]
fn without_a_service_podmans_files_tell_name_image_and_setup() -> Result<()> {
    require!(Podman::requirement());
    let podman = Podman::start()?;
    let options = |runtime| {
        let of_all = ["--label", "app=web", "--hostname", "door", "--memory", "64m", "--pids-limit", "50"];
        [&["--runtime", runtime, "--env", "COLOUR=blue", "--env", "SECRET=hidden"], &of_all[..]].concat()
    };
    let before: Vec<String> = ["runc", "crun"]
        .map(|runtime| podman.run(&name(&format!("before-{runtime}")), &options(runtime), &SLEEP))
        .into_iter()
        .collect::<Result<_>>()?;
    let mut source = Source::start(&[])?;
    let after: Vec<String> = ["runc", "crun"]
        .map(|runtime| podman.run(&name(&format!("after-{runtime}")), &options(runtime), &SLEEP))
        .into_iter()
        .collect::<Result<_>>()?;
    let digest = fs::read_to_string(podman.path("layout/digest"))?;
    for (when, ids) in [("before", before), ("after", after)] {
        for (id, runtime) in ids.iter().zip(["runc", "crun"]) {
            let container = source.until(id, "podman has told of it", |container| {
                is_by_podman(container) && container.state == State::Running
            });
            assert_eq!(container.name.as_deref(), Some(&*name(&format!("{when}-{runtime}"))));
            assert_eq!((container.domain, container.kind), (Domain::Host, ContainerKind::Container));
            assert_eq!(container.runtime.name.as_deref(), Some("podman"));
            assert_eq!(container.runtime.oci.as_deref(), Some(runtime));
            let image = container.image.clone().context("an image")?;
            assert_eq!((image.name.as_deref(), image.digest.as_deref()), (Some(IMAGE), Some(&*digest)));
            assert!(image.id.is_some_and(|id| id.starts_with("sha256:")), "its config's digest");
            let details = &container.details;
            assert_eq!((details.hostname.as_deref(), details.privileged), (Some("door"), Some(false)));
            let resources = details.resources.clone().context("limits")?;
            assert_eq!((resources.memory, resources.pids), (Some(64 << 20), Some(50)));
            assert!(details.mounts.as_ref().is_some_and(|mounts| mounts.is_empty()), "none but podman's own");
            assert_eq!(details.env, Some([("COLOUR", "blue")].into_iter().collect()), "what is allowed of it");
            assert!(container.awaiting.is_empty(), "{:?}", container.awaiting);
            assert_eq!(source.count(id), 1, "podman, the barrier and the state directories speak about one container");
            let story = source.tracker.explain_blocking(Who::Id(id.as_str().into()))?.context("a story")?;
            assert!(story.missing.iter().any(|(field, _)| *field == "labels"), "{:?}", story.missing);
        }
    }
    Ok(())
}

#[test]
fn a_service_tells_all_there_is_of_those_before_and_of_new_ones() -> Result<()> {
    require!(Podman::requirement());
    let mut podman = Podman::start()?;
    podman.serve()?;
    fs::create_dir(podman.path("shared"))?;
    let shared = podman.path("shared");
    let volume = format!("{}:/shared:ro", shared.display());
    let options = [
        "--label",
        "app=web",
        "--env",
        "COLOUR=blue",
        "--env",
        "SECRET=hidden",
        "--volume",
        &volume,
        "--cpus",
        "0.5",
        "--privileged",
        "--health-cmd",
        "none",
    ];
    let before = podman.run(&name("before"), &options, &SLEEP)?;
    let mut source = Source::start(&[podman.socket()])?;
    source.until_live(&podman.socket());
    let after = podman.run(&name("after"), &options, &SLEEP)?;
    for (name_is, id) in [("before", &before), ("after", &after)] {
        let container = source.until(id, "the service has told all", |container| {
            container.details.restart_count.is_some() && container.state == State::Running
        });
        assert_eq!(container.name.as_deref(), Some(&*name(name_is)));
        assert_eq!(container.labels.get("app").map(|value| &**value), Some("web"));
        let details = &container.details;
        let env = details.env.clone().context("what is allowed of the environment")?;
        assert_eq!((env.get("COLOUR").map(|value| &**value), env.len()), (Some("blue"), 1));
        assert_eq!((details.restart_count, details.privileged), (Some(0), Some(true)));
        let mounts = details.mounts.clone().context("mounts")?;
        assert_eq!(mounts.len(), 1, "{mounts:?}");
        assert_eq!((&*mounts[0].destination, mounts[0].source.as_deref()), ("/shared", shared.to_str()));
        assert!(mounts[0].read_only);
        assert_eq!(details.resources.as_ref().and_then(|resources| resources.cpu_millis), Some(500));
        assert_eq!(details.ports.as_deref(), Some(&[][..]));
        let image = container.image.clone().context("an image")?;
        assert!(image.id.is_some() && image.digest.is_some() && image.name.as_deref() == Some(IMAGE), "{image:?}");
        assert_eq!(source.count(id), 1);
    }
    let lives = 5;
    let calls = |source: &Source| source.stats().calls_inspect.load(Relaxed);
    let asked = calls(&source);
    for life in 0..lives {
        let id = podman.run(&name(&format!("life-{life}")), &[], &SLEEP)?;
        source.until(&id, "the service has told all", |container| container.details.restart_count.is_some());
        podman.podman(&["rm", "--force", "--time", "0", &id])?;
        source.until_state(&id, State::Exited);
    }
    assert!(calls(&source) - asked <= 2 * lives, "at most one inspection for each start, and one for a killed one");
    Ok(())
}

#[test]
fn a_life_is_followed_through_every_state() -> Result<()> {
    require!(Podman::requirement());
    let mut podman = Podman::start()?;
    podman.serve()?;
    let mut source = Source::start(&[podman.socket()])?;
    source.until_live(&podman.socket());

    let id = podman.make("create", &["--network", "none", "--name", &name("life")], &SLEEP)?;
    podman.podman(&["init", &id])?;
    let created = source.until(&id, "it is created, and podman has told of it", |container| {
        container.state == State::Created && container.name.is_some() && container.task.is_some()
    });
    podman.podman(&["start", &id])?;
    let running = source.until_state(&id, State::Running);
    assert_eq!((running.pid(), running.instance), (created.pid(), created.instance));

    podman.podman(&["exec", &id, "true"])?;
    eventually("the exec's end was heard of", || (source.stats().exec_exits.load(Relaxed) > 0).then_some(()));
    source.until_state(&id, State::Running);

    podman.podman(&["pause", &id])?;
    source.until_state(&id, State::Paused);
    podman.podman(&["unpause", &id])?;
    source.until_state(&id, State::Running);

    podman.podman(&["rename", &id, &name("renamed")])?;
    source.until(&id, "it has its new name", |container| container.name.as_deref() == Some(&*name("renamed")));

    podman.podman(&["restart", "--time", "0", &id])?;
    let again = source.until(&id, "another instance runs", |container| {
        container.state == State::Running && container.instance != running.instance
    });
    assert_ne!(again.pid(), running.pid());
    assert_eq!(again.name.as_deref(), Some(&*name("renamed")));
    let first =
        source.reader.all().find(|container| container.instance == running.instance).map(|c| Container::clone(c));
    let exit = first.and_then(|first| first.exit).context("the first run's exit")?;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));

    podman.podman(&["kill", "--signal", "KILL", &id])?;
    let is_second = |container: &Container| container.instance == again.instance && container.state == State::Exited;
    let over = source.until(&id, "it is over", is_second);
    assert_eq!(over.exit.map(|exit| (exit.code, exit.signal)), Some((137, Some(9))));
    Ok(())
}

#[test]
fn pods_have_a_name_an_infra_container_and_members() -> Result<()> {
    require!(Podman::requirement());
    let mut podman = Podman::start()?;
    let (pod, member) = (name("pod"), name("member"));
    let create = |pod: &str| {
        let infra = ["--infra-image", PAUSE_IMAGE, "--infra-command", "/bin/sleep 1000000"];
        podman.podman(
            &[&["pod", "create", "--name", pod, "--network", "none", "--label", "tier=front"], &infra[..]].concat(),
        )
    };
    let of_pod = create(&pod)?.trim_end().to_owned();
    let member = podman.make("run", &["--detach", "--pod", &pod, "--name", &member], &SLEEP)?;
    let inspected = podman.podman(&["pod", "inspect", "--format", "{{.InfraContainerID}}", &pod])?;
    let infra = inspected.trim_end().to_owned();

    // Files tell who is whose sandbox.
    let mut source = Source::start(&[podman.socket()])?;
    let known = |container: &Container| is_by_podman(container) && container.pod.is_some();
    let container = source.until(&member, "it is in a pod", known);
    assert_eq!(container.pod.and_then(|pod| pod.sandbox_id).as_deref(), Some(&*infra));
    let sandbox = source.until(&infra, "podman has told of it", is_by_podman);
    assert_eq!((sandbox.kind, sandbox.namespaces.net), (ContainerKind::Sandbox, container.namespaces.net));

    // The service tells what it is called, and its labels.
    podman.serve()?;
    source.until_live(&podman.socket());
    for id in [&member, &infra] {
        let has_name = |container: &Container| container.pod.as_ref().is_some_and(|pod| pod.name.is_some());
        let told = source.until(id, "its pod has a name", has_name).pod.context("a pod")?;
        assert_eq!((told.name.as_deref(), told.uid.as_deref()), (Some(&*pod), Some(&*of_pod)));
        assert_eq!(told.sandbox_id.as_deref(), Some(&*infra));
        assert_eq!(told.labels.context("labels")?.get("tier").map(|value| &**value), Some("front"));
    }

    // A pod that is made while the service is followed is asked for once.
    let other = name("other-pod");
    let infra = ["--infra-image", PAUSE_IMAGE, "--infra-command", "/bin/sleep 1000000"];
    podman.podman(&[&["pod", "create", "--name", &other, "--network", "none"], &infra[..]].concat())?;
    let member = podman.make("run", &["--detach", "--pod", &other], &SLEEP)?;
    source.until(&member, "its pod has a name", |container| {
        container.pod.as_ref().is_some_and(|pod| pod.name.as_deref() == Some(&*other))
    });
    Ok(())
}

#[test]
fn containers_of_two_users_and_of_root_stay_apart_though_they_have_one_name() -> Result<()> {
    require!(Podman::requirement());
    let podmans = [Podman::start()?, Podman::start_for_user(1)?, Podman::start_for_user(2)?];
    let web = name("web");
    let before: Vec<String> =
        podmans[..2].iter().map(|podman| podman.run(&web, &["--label", "app=web"], &SLEEP)).collect::<Result<_>>()?;
    let sockets = [podmans[1].socket()];
    let mut source = Source::start(&sockets)?;
    let after = podmans[2].run(&web, &["--label", "app=web"], &SLEEP)?;
    let ids = [&before[0], &before[1], &after];
    for (id, podman) in ids.iter().zip(&podmans) {
        let container = source.until(id, "podman has told of it", is_by_podman);
        let domain = if podman.uid() == 0 { Domain::Host } else { Domain::User(podman.uid()) };
        assert_eq!((container.name.as_deref(), container.domain), (Some(&*web), domain));
        assert_eq!(container.image.as_ref().and_then(|image| image.name.as_deref()), Some(IMAGE));
        assert_eq!(container.runtime.name.as_deref(), Some("podman"));
        assert_eq!(source.count(id), 1);
        let pid = container.pid().context("a pid")?;
        let found = source.reader.by_mntns(container.namespaces.mnt);
        assert_eq!(found.container().map(|container| &*container.id), Some(&***id), "{pid}");
    }
    assert_eq!(source.reader.by_name(&web).len(), 3);

    // A user's service tells the rest of that user's containers.
    let mut podmans = podmans;
    podmans[1].serve()?;
    source.until_live(&sockets[0]);
    let served = source.until(&before[1], "its labels", |container| !container.labels.is_empty());
    assert_eq!(served.domain, Domain::User(podmans[1].uid()));
    assert_eq!(source.count(&before[1]), 1);
    Ok(())
}

#[test]
fn of_one_name_root_s_and_a_users_stay_apart_whichever_runtime_runs_them() -> Result<()> {
    require!(Podman::requirement());
    let podmans = [Podman::start()?, Podman::start_for_user(5)?];
    // Each runtime for each of them, beside the other one's of the same name.
    let pairs = [["runc", "crun"], ["crun", "runc"], ["runc", "runc"], ["crun", "crun"]];
    let run = |when: &str| -> Result<Vec<(String, [String; 2])>> {
        let run = |runtimes: [&str; 2]| -> Result<(String, [String; 2])> {
            let called = name(&format!("{when}-{}", runtimes.join("-")));
            let run = |who: usize| podmans[who].run(&called, &["--runtime", runtimes[who]], &SLEEP);
            Ok((called.clone(), [run(0)?, run(1)?]))
        };
        pairs.into_iter().map(run).collect()
    };
    let before = run("before")?;
    let mut source = Source::start(&[])?;
    let after = run("after")?;
    for (runtimes, (called, ids)) in pairs.iter().cycle().zip(before.iter().chain(&after)) {
        for ((id, podman), runtime) in ids.iter().zip(&podmans).zip(runtimes) {
            let container = source.until(id, "podman has told of it", is_by_podman);
            let domain = if podman.uid() == 0 { Domain::Host } else { Domain::User(podman.uid()) };
            assert_eq!((container.domain, container.name.as_deref()), (domain, Some(&**called)));
            assert_eq!(container.runtime.oci.as_deref(), Some(*runtime), "{called}");
            assert_eq!(says(podman, id, "{{.State.Pid}}")?, container.pid().context("a pid")?.to_string());
            assert_eq!(source.count(id), 1, "{called}");
        }
        assert_eq!(source.reader.by_name(called).len(), 2, "{called}");
    }

    // The end of a user's is the end of that one.
    let (called, [of_root, of_user]) = &after[0];
    podmans[1].podman(&["kill", of_user])?;
    source.until_state(of_user, State::Exited);
    let alive = source.until_state(of_root, State::Running);
    assert_eq!((alive.domain, alive.name.as_deref()), (Domain::Host, Some(&**called)));
    Ok(())
}

#[test]
fn a_users_service_may_not_speak_for_root() -> Result<()> {
    require!(Podman::requirement());
    let mut user = Podman::start_for_user(3)?;
    user.serve()?;
    // Root's configuration names a path that leads to a user's socket.
    let link = user.path("link");
    std::os::unix::fs::symlink(user.socket(), &link)?;
    let mut source = Source::start(std::slice::from_ref(&link))?;
    let line = source.until_line(&link, "it is refused", |line| line.condition == Condition::Refused);
    assert!(line.detail.contains(&user.uid().to_string()), "{}", line.detail);
    Ok(())
}

#[test]
fn a_users_program_called_conmon_speaks_for_nobody_else() -> Result<()> {
    require!(Podman::requirement());
    let (podman, user) = (Podman::start()?, Podman::start_for_user(4)?);
    let id = podman.run(&name("roots"), &[], &SLEEP)?;
    let bundle = podman.path("root/overlay-containers").join(&id).join("userdata");
    // It claims root's container, bundle and store, under another name, with a process of its own as the container.
    let program = user.path("conmon");
    tracker_tests::process::copy_program(&requirement::program("busybox").map_err(anyhow::Error::msg)?, &program)?;
    let script = "unshare -m -p -f -U -r sleep 1000000";
    let mut command = Command::new(&program);
    command.arg0("sh").args(["-c", script, "conmon", "-c", &id, "-r", "/usr/bin/crun", "-n", "impostor", "-b"]);
    command.arg(&bundle).args(["--exit-command", "/usr/bin/podman"]).uid(user.uid()).gid(user.uid());
    let mut source = Source::start(&[])?;
    source.until(&id, "root's is known", is_by_podman);
    let impostor = Process::start(&mut command, &user.path("home/log"))?;
    let child = eventually("the impostor's child", || {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", impostor.pid())).ok()?;
        children.split(' ').find_map(|child| child.parse::<u32>().ok())
    });
    let looked = eventually("it is known in its namespace", || {
        let mntns = kernel::namespace(child, "mnt").ok()?;
        source.reader.by_mntns(mntns).container().cloned()
    });
    assert_eq!(looked.domain, Domain::User(user.uid()));
    let container = source.until_state(&id, State::Running);
    assert_eq!((container.domain, container.name.as_deref()), (Domain::Host, Some(&*name("roots"))));
    for container in source.reader.all().filter(|container| container.name.as_deref() == Some("impostor")) {
        assert_eq!(container.domain, Domain::User(user.uid()));
    }
    Ok(())
}

#[test]
fn a_service_that_is_killed_and_started_again_is_caught_up_with() -> Result<()> {
    require!(Podman::requirement());
    let mut podman = Podman::start()?;
    podman.serve()?;
    let stays = podman.run(&name("stays"), &["--label", "app=web"], &SLEEP)?;
    let goes = podman.run(&name("goes"), &[], &SLEEP)?;
    let mut source = Source::start(&[podman.socket()])?;
    source.until_live(&podman.socket());
    for id in [&stays, &goes] {
        source.until(id, "the service has told all", |container| container.details.restart_count.is_some());
    }
    podman.kill_service();
    source.until_line(&podman.socket(), "it is gone", |line| line.condition == Condition::Waiting);
    let container = source.until_state(&stays, State::Running);
    assert!(!container.labels.is_empty(), "what was told stays told");
    podman.podman(&["rm", "--force", "--time", "0", &goes])?;
    let meanwhile = podman.run(&name("meanwhile"), &["--label", "app=web"], &SLEEP)?;
    source.until_state(&goes, State::Exited);
    let container = source.until(&meanwhile, "its files tell of it", is_by_podman);
    assert!(container.name.is_some() && container.labels.is_empty());

    podman.serve()?;
    source.until_live(&podman.socket());
    source.until(&meanwhile, "its labels", |container| !container.labels.is_empty());
    assert_eq!(source.count(&stays), 1);
    Ok(())
}

#[test]
fn labels_without_measure_are_left_out_and_counted() -> Result<()> {
    require!(Podman::requirement());
    let mut podman = Podman::start()?;
    podman.serve()?;
    // Together 1 MiB: one argument has at most 128 KiB, and podman reads shorter lines from files.
    let long: Vec<String> = (0..10).map(|n| format!("--label=long{n}={}", "x".repeat(105_000))).collect();
    let long: Vec<&str> = long.iter().map(String::as_str).chain(["--label=short=1"]).collect();
    let id = podman.run(&name("long"), &long, &SLEEP)?;
    let many: String = (0..5_000).map(|n| format!("k{n}=v\n")).collect();
    let more = podman.path("more");
    fs::write(&more, many)?;
    let other = podman.run(&name("many"), &["--label-file", &more.display().to_string()], &SLEEP)?;
    let mut source = Source::start(&[podman.socket()])?;
    let told = |container: &Container| container.details.restart_count.is_some();
    let container = source.until(&id, "the service has told all", told);
    assert_eq!(container.labels.len(), 1, "{:?}", container.labels);
    let container = source.until(&other, "the service has told all", told);
    assert!(!container.labels.is_empty() && container.labels.len() < 5_000);
    assert!(source.stats().left_out.load(Relaxed) > 4_000);
    Ok(())
}

#[test]
fn a_new_name_shows_soon_without_a_service() -> Result<()> {
    require!(Podman::requirement());
    let podman = Podman::start()?;
    let (renamed, stays) = (podman.run(&name("old"), &[], &SLEEP)?, podman.run(&name("stays"), &[], &SLEEP)?);
    let mut source = Source::start(&[])?;
    let is = |called: String| move |it: &Container| is_by_podman(it) && it.name.as_deref() == Some(&*called);
    for (id, called) in [(&renamed, name("old")), (&stays, name("stays"))] {
        source.until(id, "its name", is(called));
    }
    // Well before everything is looked at again, which is after a minute.
    for new in [name("new"), name("newer")] {
        podman.podman(&["rename", &renamed, &new])?;
        source.until(&renamed, "its new name", is(new));
    }
    source.until(&stays, "the other's name", is(name("stays")));
    Ok(())
}

/// What podman itself says of a container, by a template of its own.
fn says(podman: &Podman, id: &str, template: &str) -> Result<String> {
    Ok(podman.podman(&["inspect", "--format", template, id])?.trim_end().to_owned())
}

#[test]
fn addresses_and_ports_of_every_network_are_told_beside_a_service_alone() -> Result<()> {
    require!(Podman::requirement(), Podman::network_requirement());
    let mut podman = Podman::start()?;
    let (v4, v6) = subnets(1);
    let networks = [name("one"), name("two")];
    podman.create_network(&networks[0], &[&v4[0], &v6])?;
    podman.create_network(&networks[1], &[&v4[1]])?;
    let both = networks.join(",");
    let options = ["--detach", "--network", &both, "--publish", "127.0.0.1::80", "--expose", "53/udp"];
    let before = podman.make("run", &options, &SLEEP)?;
    let mut source = Source::start(&[podman.socket()])?;

    // Without a service, networks are in podman's database alone.
    let container = source.until(&before, "podman's files have told of it", is_by_podman);
    assert_eq!((container.details.addresses.as_ref(), container.details.ports.as_ref()), (None, None));

    podman.serve()?;
    source.until_live(&podman.socket());
    let after = podman.make("run", &options, &SLEEP)?;
    let of_host = podman.make("run", &["--detach", "--network", "host"], &SLEEP)?;
    for id in [&before, &after] {
        let container = source.until(id, "the service has told all", |it| it.details.restart_count.is_some());
        let told = |network: &str, field: &str| -> Result<tracker::container::Address> {
            let [ip, length] = ["Address", "PrefixLen"].map(|end| format!("{field}{end}"));
            let template = format!(
                "{{{{with index .NetworkSettings.Networks \"{network}\"}}}}{{{{.{ip}}}}} {{{{.{length}}}}}{{{{end}}}}"
            );
            let text = says(&podman, id, &template)?;
            let (ip, length) = text.split_once(' ').with_context(|| format!("an address, not `{text}`"))?;
            let (ip, prefix_len) = (ip.parse()?, Some(length.parse()?));
            Ok(tracker::container::Address { network: Some(network.into()), ip, prefix_len })
        };
        let expected = [told(&networks[0], "IP")?, told(&networks[0], "GlobalIPv6")?, told(&networks[1], "IP")?];
        assert_eq!(container.details.addresses.as_deref(), Some(&expected[..]));
        let ports = container.details.ports.as_deref().context("ports")?;
        let [dns, web] = ports else { panic!("{ports:?}") };
        assert_eq!((dns.container, &*dns.protocol, dns.host), (53, "udp", None));
        assert_eq!((web.container, &*web.protocol, web.host_ip), (80, "tcp", Some([127, 0, 0, 1].into())));
        let published = says(&podman, id, "{{(index (index .NetworkSettings.Ports \"80/tcp\") 0).HostPort}}")?;
        assert_eq!(web.host, Some(published.parse()?));
    }
    let container = source.until(&of_host, "the service has told all", |it| it.details.restart_count.is_some());
    assert_eq!((container.host_network, container.details.addresses.as_deref()), (Some(true), Some(&[][..])));
    Ok(())
}

#[test]
fn health_is_what_the_last_check_found() -> Result<()> {
    require!(Podman::requirement());
    let mut podman = Podman::start()?;
    let options =
        ["--health-cmd", "CMD-SHELL test -e /tmp/well", "--health-retries", "1", "--health-interval", "disable"];
    let (before, never) = (podman.run(&name("checked"), &options, &SLEEP)?, podman.run(&name("never"), &[], &SLEEP)?);
    podman.podman(&["exec", &before, "sh", "-c", ">/tmp/well"])?;
    podman.podman(&["healthcheck", "run", &before])?;
    podman.serve()?;
    let mut source = Source::start(&[podman.socket()])?;
    source.until_live(&podman.socket());
    let is = |health| move |container: &Container| container.details.health == Some(health);
    source.until(&before, "healthy from before", is(Health::Healthy));
    let after = podman.run(&name("checked-after"), &options, &SLEEP)?;
    source.until(&after, "not checked yet", is(Health::Starting));
    podman.podman(&["healthcheck", "run", &after]).expect_err("it is not well");
    source.until(&after, "its first check", is(Health::Unhealthy));
    podman.podman(&["exec", &after, "sh", "-c", ">/tmp/well"])?;
    podman.podman(&["healthcheck", "run", &after])?;
    source.until(&after, "its second check", is(Health::Healthy));
    let container = source.until(&never, "the service has told all", |it| it.details.restart_count.is_some());
    assert_eq!(container.details.health, None);
    Ok(())
}

#[test]
fn ends_by_the_oom_killer_and_restarts_are_told_with_a_service_and_without() -> Result<()> {
    require!(Podman::requirement(), kernel::btf());
    let eats = ["sh", "-c", "x=aaaaaaaa; sleep 3; while :; do x=$x$x; done"];
    for is_served in [false, true] {
        let mut podman = Podman::start()?;
        if is_served {
            podman.serve()?;
        }
        let sockets: Vec<PathBuf> = is_served.then(|| podman.socket()).into_iter().collect();
        let mut source = Source::start(&sockets)?;
        let ends = podman.run(&name("eats"), &["--memory", "32m"], &eats)?;
        let over = source.until(&ends, "its end", |it| it.state == State::Exited && it.exit.is_some());
        let exit = over.exit.context("an exit")?;
        assert_eq!((exit.code, exit.signal, exit.oom), (137, Some(9), Some(true)), "with a service: {is_served}");

        let again = podman.run(&name("again"), &["--restart", "on-failure:2"], &["sh", "-c", "sleep 0.5; exit 7"])?;
        // Its first run and two more, each an instance of its own.
        let instances = |source: &mut Source| {
            let of_it = source.reader.all().filter(|it| *it.id == *again && it.exit.is_some_and(|exit| exit.code == 7));
            of_it.map(|it| it.instance).collect::<std::collections::BTreeSet<_>>().len()
        };
        eventually("it has ended three times", || (instances(&mut source) == 3).then_some(()));
        if is_served {
            source.until(&again, "how often it was restarted", |it| it.details.restart_count == Some(2));
            assert_eq!(says(&podman, &again, "{{.RestartCount}}")?, "2");
        } else {
            assert!(source.reader.all().all(|it| *it.id != *again || it.details.restart_count.is_none()));
        }
        let id = podman.run(&name("ends"), &[], &["sh", "-c", "sleep 0.3; exit 42"])?;
        let over = source.until(&id, "its end", |it| it.state == State::Exited && it.exit.is_some());
        assert_eq!(over.exit.map(|exit| (exit.code, exit.signal)), Some((42, None)));
        assert_ne!(over.exit.and_then(|exit| exit.oom), Some(true));
    }
    Ok(())
}

/// A stand-in for what a real service cannot be made to do: answers each request, by its path, as it is told; one
/// without an answer waits for ever.
struct StandIn {
    directory: tempfile::TempDir,
}

impl StandIn {
    fn start(answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Result<StandIn> {
        let directory = tempfile::Builder::new().prefix("pod-").tempdir()?;
        let listener = UnixListener::bind(directory.path().join("sock"))?;
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = Arc::clone(&answer);
                thread::spawn(move || speak(stream, &*answer));
            }
        });
        Ok(StandIn { directory })
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }
}

fn speak(mut stream: UnixStream, answer: &dyn Fn(&str) -> Option<String>) {
    let Ok(again) = stream.try_clone() else { return };
    let mut lines = BufReader::new(again).lines().map_while(|line| line.ok());
    let Some(path) = lines.next().and_then(|request| request.split(' ').nth(1).map(str::to_owned)) else { return };
    lines.by_ref().take_while(|line| !line.is_empty()).for_each(drop);
    if let Some(answer) = answer(&path) {
        // Whoever asked may have given up.
        let _ = stream.write_all(answer.as_bytes());
        if !path.contains("/events") {
            return;
        }
    }
    // Until whoever asked closes the connection.
    lines.for_each(drop);
}

fn ok(body: &str) -> Option<String> {
    Some(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

/// What a service says that has these containers; without an end, for events.
fn well(path: &str, list: &str) -> Option<String> {
    match path {
        path if path.contains("/events") => Some("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".into()),
        path if path.ends_with("/info") => ok(r#"{"version":{"Version":"9.9.9"}}"#),
        path if path.ends_with("/_ping") => ok("OK"),
        path if path.contains("/containers/json") => ok(list),
        _ => Some("HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}".into()),
    }
}

#[test]
fn services_that_hang_or_talk_nonsense_are_waited_for_and_harm_nobody() -> Result<()> {
    require!(Podman::requirement());
    let mut podman = Podman::start()?;
    podman.serve()?;
    let garbage = "\u{1}\u{2}{\"}\r\n".repeat(999);
    let nonsense = garbage.clone();
    let stand_ins = [
        ("hangs", StandIn::start(|_| None)?),
        ("talks nonsense", StandIn::start(move |_| Some(nonsense.clone()))?),
        ("answers nonsense", StandIn::start(move |_| ok(&garbage))?),
        (
            "hangs at the list",
            StandIn::start(|path| if path.contains("/containers/") { None } else { well(path, "") })?,
        ),
        (
            "claims more than it sends",
            StandIn::start(|_| Some("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n[".into()))?,
        ),
    ];
    let sockets: Vec<PathBuf> =
        stand_ins.iter().map(|(_, stand_in)| stand_in.socket()).chain([podman.socket()]).collect();
    let mut source = Source::start(&sockets)?;
    source.until_live(&podman.socket());
    for (what, stand_in) in &stand_ins {
        let line = source.until_line(&stand_in.socket(), what, |line| line.condition == Condition::Waiting);
        assert!(!line.detail.is_empty(), "{what}");
    }
    let id = podman.run(&name("beside"), &[], &SLEEP)?;
    source.until(&id, "the service has told all", |container| container.details.restart_count.is_some());
    Ok(())
}

#[test]
fn a_container_that_is_removed_between_list_and_inspection_is_no_error() -> Result<()> {
    require!(Podman::requirement());
    let id = format!("{:064x}", std::process::id());
    let list = format!(r#"[{{"Id":"{id}","Names":["{}"],"State":"running","Pid":0}}]"#, name("brief"));
    let stand_in = StandIn::start(move |path| well(path, &list))?;
    let mut source = Source::start(&[stand_in.socket()])?;
    source.until_live(&stand_in.socket());
    eventually("it was asked about", || (source.stats().calls_inspect.load(Relaxed) > 0).then_some(()));
    eventually("it is listed again", || (source.stats().lists.load(Relaxed) > 1).then_some(()));
    source.until_live(&stand_in.socket());
    assert_eq!(source.stats().calls_failed.load(Relaxed), 0);
    assert_eq!(source.count(&id), 0, "where its runtime keeps it was never told");
    Ok(())
}

#[test]
fn an_end_by_its_own_word_is_no_signal() -> Result<()> {
    require!(Podman::requirement());
    let mut podman = Podman::start()?;
    podman.serve()?;
    let mut source = Source::start(&[podman.socket()])?;
    source.until_live(&podman.socket());
    let id = podman.run(&name("ends"), &[], &["sh", "-c", "sleep 0.3; exit 42"])?;
    let over = source.until_state(&id, State::Exited);
    assert_eq!(over.exit.map(|exit| (exit.code, exit.signal)), Some((42, None)));
    if let Some(service) = podman.service() {
        service.signal(Signal::SIGTERM)?;
    }
    source.until_line(&podman.socket(), "it has ended in order", |line| line.condition == Condition::Waiting);
    Ok(())
}
