//! The Docker source against the real dockerd of the distribution: its own containerd, data, socket and image.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tracker::container::{Address, Details, Grade, Health as Checked, Mount, Resources, State};
use tracker::fact::Source as By;
use tracker::source::health::{Condition, Health};
use tracker::source::{containerd, docker};
use tracker::{ById, Config, Container, Reader, Tracker};
use tracker_tests::docker::{CRUN, Docker, RUNC};
use tracker_tests::net::subnets;
use tracker_tests::runc::Kind as Oci;
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

const SLEEP: &[&str] = &["/bin/sleep", "1000"];

/// A tracker that asks this dockerd and no other.
struct Source {
    tracker: Tracker,
    reader: Reader,
}

impl Source {
    /// Asks the daemon alone.
    fn start(docker: &Docker) -> Result<Source> {
        Self::with(docker, |_| ())
    }

    fn with(docker: &Docker, change: impl FnOnce(&mut Config)) -> Result<Source> {
        let docker = docker::Config {
            sockets: vec![docker.socket()],
            sockets_if_present: vec![],
            alive_interval_ms: 500,
            call_deadline_ms: 2_000,
            backoff_cap_ms: 500,
            ..Default::default()
        };
        let containerd = containerd::Config { sockets: vec![], sockets_if_present: vec![], ..Default::default() };
        let env_allow = ["STAGE"].into_iter().collect();
        let mut config = Config { docker, containerd, env_allow, ..Config::default() };
        // But for the test of that, nothing is held: what Docker says shall be seen, and no better word.
        config.barrier.enabled = false;
        // Others may run runtimes on this machine.
        config.find.enabled = false;
        change(&mut config);
        let tracker = Tracker::start(config)?;
        let mut source = Source { reader: tracker.reader(), tracker };
        source.until_line("it is live", |line| line.condition == Condition::Live);
        Ok(source)
    }

    /// Holds the starts of its containers, and asks its containerd, too.
    fn holding(docker: &Docker) -> Result<Source> {
        let containerd = docker.containerd();
        let runtimes = [Some(containerd.runtime()), containerd.crun()].into_iter().flatten();
        let source = Self::with(docker, |config| {
            config.containerd.sockets = vec![containerd.socket()];
            config.barrier.runtimes = runtimes.map(|runtime| runtime.program().to_owned()).collect();
            config.barrier.enabled = true;
            config.barrier.keeper_program = requirement::tracker().ok();
            config.barrier.known_paths = false;
        })?;
        for by in [By::Barrier, By::Containerd] {
            eventually(&format!("{by} is live"), || {
                let is_live = |line: &Health| line.source == by && line.condition == Condition::Live;
                source.tracker.health().into_iter().find(is_live)
            });
        }
        Ok(source)
    }

    #[track_caller]
    fn until_line(&mut self, what: &str, is_so: impl Fn(&Health) -> bool) -> Health {
        let of_docker = |line: &Health| line.source == By::Docker && is_so(line);
        eventually(what, || self.tracker.health().into_iter().find(of_docker))
    }

    /// Waits until a container is as it should be.
    #[track_caller]
    fn until(&mut self, id: &str, what: &str, is_so: impl Fn(&Container) -> bool) -> Container {
        let told = format!("{id}: {what}");
        eventually(&told, || {
            let mut all = self.reader.all();
            let found = all.find(|container| &*container.id == id && is_so(container));
            found.map(|container| Container::clone(container))
        })
    }

    #[track_caller]
    fn until_state(&mut self, id: &str, state: State) -> Container {
        self.until(id, &format!("{state:?}"), |container| container.state == state)
    }

    /// Waits until an inspection has told about it.
    #[track_caller]
    fn until_inspected(&mut self, id: &str, state: State) -> Container {
        let is_told = |container: &Container| container.state == state && container.details.privileged.is_some();
        self.until(id, &format!("{state:?} and inspected"), is_told)
    }

    fn stats(&self) -> &docker::Stats {
        &self.tracker.stats().docker
    }
}

/// What both ways of meeting a container must agree on.
fn alike(container: &Container) -> impl PartialEq + std::fmt::Debug + use<> {
    let details = Details { hostname: None, addresses: None, ports: None, ..(*container.details).clone() };
    (
        (container.kind, container.state, container.runtime.clone(), container.image.clone()),
        (container.pod.clone(), container.labels.clone(), container.host_network, details),
    )
}

#[test]
fn containers_from_before_and_new_ones_are_told_alike_and_truly() -> Result<()> {
    require!(Docker::requirement());
    let docker = Docker::start()?;
    let before = docker.run(&options("before"), SLEEP)?;
    let mut source = Source::start(&docker)?;
    let before = source.until_inspected(&before, State::Running);
    let after = docker.run(&options("after"), SLEEP)?;
    let after = source.until_inspected(&after, State::Running);
    assert_eq!(alike(&before), alike(&after));

    let image_id = docker.cli(&["image", "inspect", "--format", "{{.Id}}", docker.image()])?;
    for (container, name) in [(&before, "before"), (&after, "after")] {
        let pid = docker.pid(&container.id)?;
        let task = container.task.context("an init process")?;
        assert_eq!((task.pid, task.start_ticks), (pid, kernel::start_ticks(pid)?));
        assert_eq!(container.namespaces.mnt, kernel::namespace(pid, "mnt")?);
        assert_eq!(container.name.as_deref(), Some(name));
        assert!(container.created_at.is_some() && container.started_at >= container.created_at);
        assert_eq!((container.exited_at, container.exit), (None, None));

        let image = container.image.as_ref().context("an image")?;
        assert_eq!(image.name.as_deref(), Some(docker.image()));
        assert_eq!((image.id.as_deref(), image.digest.as_deref()), (Some(&*image_id), Some(docker.digest())));
        assert_eq!(container.labels.get("tier").map(|label| &**label), Some("test"));
        assert_eq!(container.host_network, Some(false));
        assert_eq!(container.runtime.name.as_deref(), Some("docker"));
        assert_eq!(container.runtime.namespace.as_deref(), Some("moby"));
        assert_eq!(container.runtime.oci.as_deref(), Some("runc"), "and not what this daemon calls it");

        let details = &container.details;
        assert_eq!(details.hostname.as_deref(), Some(format!("host-{name}").as_str()));
        assert_eq!((details.privileged, details.restart_count), (Some(false), Some(0)));
        let limits = Resources {
            cpu_millis: Some(500),
            cpu_shares: Some(512),
            cpuset: Some("0".into()),
            memory: Some(64 << 20),
            pids: Some(50),
        };
        assert_eq!(details.resources, Some(limits));
        let mount = |destination: &str, source: Option<&str>, read_only| Mount {
            destination: destination.into(),
            source: source.map(Into::into),
            read_only,
        };
        let mounts = [mount("/data", Some("/proc"), true), mount("/scratch", None, false)];
        assert_eq!(details.mounts.as_deref(), Some(&mounts[..]));
        assert_eq!(details.env, Some([("STAGE", "blue")].into_iter().collect()), "and not TOKEN");
    }
    assert_eq!((before.grade, after.grade), (Some(Grade::Observed), Some(Grade::FirstExec)));
    let images = source.tracker.images();
    let image = images.iter().find(|image| image.id.as_deref() == Some(&*image_id)).context("the image is listed")?;
    assert_eq!(image.names, [docker.image().into()]);
    Ok(())
}

fn options(name: &str) -> Vec<&str> {
    let hostname = if name == "before" { "host-before" } else { "host-after" };
    let named = ["--name", name, "--hostname", hostname, "--label", "tier=test"];
    let limits =
        ["--cpus", "0.5", "--cpu-shares", "512", "--cpuset-cpus", "0", "--memory", "64m", "--pids-limit", "50"];
    let mounts = ["--volume", "/proc:/data:ro", "--tmpfs", "/scratch", "--env", "STAGE=blue", "--env", "TOKEN=secret"];
    [&named[..], &limits, &mounts].concat()
}

#[test]
fn what_is_created_or_over_is_told_alike_before_and_after() -> Result<()> {
    require!(Docker::requirement());
    let docker = Docker::start()?;
    let make = || -> Result<[String; 2]> {
        let created = docker.cli(&["create", "--privileged", docker.image(), "/bin/true"])?;
        let ended = docker.run(&[], &["/bin/sh", "-c", "exit 3"])?;
        docker.cli(&["wait", &ended])?;
        Ok([created, ended])
    };
    let before = make()?;
    let mut source = Source::start(&docker)?;
    let after = make()?;
    for [created, ended] in [before, after] {
        let created = source.until_inspected(&created, State::Created);
        assert!(created.created_at.is_some() && created.image.is_some_and(|image| image.digest.is_some()));
        assert_eq!(created.details.privileged, Some(true));
        let ended = source.until(&ended, "its exit", |it| it.exit.is_some() && it.image.is_some());
        assert_eq!((ended.state, ended.exit.map(|exit| exit.code)), (State::Exited, Some(3)));
        assert!(ended.started_at.is_some() && ended.exited_at >= ended.started_at);
    }
    Ok(())
}

#[test]
fn a_life_is_followed_for_at_most_two_calls() -> Result<()> {
    require!(Docker::requirement());
    let docker = Docker::start()?;
    let mut source = Source::start(&docker)?;
    let first = docker.run(&[], SLEEP)?;
    source.until_inspected(&first, State::Running);
    let calls = || source.stats().calls_inspect.load(Relaxed) + source.stats().calls_image.load(Relaxed);
    let before = calls();

    let life = docker.run(&["--name", "life"], SLEEP)?;
    let mut source = Source { reader: source.tracker.reader(), tracker: source.tracker };
    source.until_inspected(&life, State::Running);
    let exec = docker.cli(&["exec", &life, "/bin/sh", "-c", "exit 7"]);
    exec.expect_err("docker passes the exit code on");
    docker.cli(&["pause", &life])?;
    source.until_state(&life, State::Paused);
    docker.cli(&["unpause", &life])?;
    let running = source.until_state(&life, State::Running);
    assert_eq!(running.exit, None, "an exec's exit is not the container's");
    docker.cli(&["rename", &life, "renamed"])?;
    source.until(&life, "its new name", |it| it.name.as_deref() == Some("renamed"));
    docker.cli(&["kill", "--signal", "KILL", &life])?;
    let exited = source.until(&life, "its exit", |it| it.state == State::Exited && it.exit.is_some());
    let exit = exited.exit.context("an exit")?;
    assert_eq!((exit.code, exit.signal), (137, Some(9)), "Docker tells the code, the kernel the signal");
    assert!(exited.exited_at > exited.started_at);
    docker.cli(&["rm", &life])?;
    let calls = source.stats().calls_inspect.load(Relaxed) + source.stats().calls_image.load(Relaxed) - before;
    assert!(calls <= 2, "{calls} calls for a life");
    Ok(())
}

#[test]
fn a_restart_policy_keeps_the_id_and_makes_a_new_instance() -> Result<()> {
    require!(Docker::requirement());
    let docker = Docker::start()?;
    let mut source = Source::start(&docker)?;
    let id = docker.run(&["--restart", "always", "--name", "again"], SLEEP)?;
    let first = source.until_inspected(&id, State::Running);
    // As its own end, and not by Docker's hand, which would leave it stopped.
    let pid = first.pid().context("a pid")?;
    nix::sys::signal::kill(tracker_tests::process::pid(pid), Signal::SIGKILL)?;
    let is_next = |it: &Container| it.instance != first.instance && it.state == State::Running;
    let next =
        source.until(&id, "its second run, told by Docker", |it| is_next(it) && it.details.restart_count == Some(1));
    assert_eq!(next.name.as_deref(), Some("again"));
    assert_ne!(next.pid(), first.pid());
    assert_eq!((next.exit, next.exited_at), (None, None));
    Ok(())
}

/// Waits for a file, then ends as told; the file is not there for the next run.
fn when_told(then: &str) -> String {
    format!("until [ -e /tmp/told ]; do sleep 0.02; done; rm /tmp/told; {then}")
}

fn tell(docker: &Docker, id: &str) -> Result<()> {
    docker.cli(&["exec", id, "/bin/sh", "-c", ": > /tmp/told"]).map(drop)
}

#[test]
fn a_container_that_fails_is_run_again_by_its_policy_and_each_run_has_its_own_end() -> Result<()> {
    require!(Docker::requirement());
    let docker = Docker::start()?;
    let mut source = Source::start(&docker)?;
    let id = docker.run(&["--restart", "on-failure"], &["/bin/sh", "-c", &when_told("exit 5")])?;
    let first = source.until_inspected(&id, State::Running);
    let exec = docker.cli(&["exec", &id, "/bin/sh", "-c", "exit 3"]);
    exec.expect_err("docker passes the exit code on");
    tell(&docker, &id)?;
    let second = source.until(&id, "its second run, told by Docker", |it| {
        it.instance != first.instance && it.state == State::Running && it.details.restart_count == Some(1)
    });
    assert_eq!((second.exit, second.exited_at), (None, None));
    let is_first = |it: &Container| it.instance == first.instance;
    let over = source.until(&id, "its first run's end", |it| is_first(it) && it.exit.is_some());
    assert_eq!(over.exit.map(|exit| (exit.code, exit.signal)), Some((5, None)), "and not the exec's");
    Ok(())
}

#[test]
fn who_fills_its_memory_is_killed_for_that_by_the_word_of_the_kernel_and_of_docker() -> Result<()> {
    require!(Docker::requirement());
    let docker = Docker::start()?;
    let mut source = Source::start(&docker)?;
    let limits = ["--memory", "64m", "--memory-swap", "64m", "--shm-size", "256m"];
    let until_over = |source: &mut Source, id: &str| {
        source.until(id, "its exit", |it| it.state == State::Exited && it.exit.is_some())
    };
    let whose_exit = |source: &Source, id: &str| -> Result<Option<By>> {
        let story = source.tracker.explain_blocking(tracker::Who::Id(id.into()))?.context("a story")?;
        Ok(story.provenance.iter().find(|(of, _)| *of == "exit").map(|(_, by)| *by))
    };
    let mut filled = vec![];
    // Pages of its own, and files that are kept in memory.
    for fill in ["exec tail /dev/zero", "exec dd if=/dev/zero of=/dev/shm/all bs=1M"] {
        let id = docker.run(&limits, &["/bin/sh", "-c", &when_told(fill)])?;
        source.until_inspected(&id, State::Running);
        tell(&docker, &id)?;
        let exit = until_over(&mut source, &id).exit.context("an exit")?;
        assert_eq!((exit.code, exit.signal, exit.oom), (137, Some(9), Some(true)), "{fill}");
        assert_eq!(whose_exit(&source, &id)?, Some(By::Kernel));
        filled.push(id);
    }

    // Here it was another process; and its init is killed for another reason, though by the same signal.
    let id = docker.run(&limits, &["/bin/sh", "-c", &when_told("exit 0")])?;
    let pid = source.until_inspected(&id, State::Running).pid().context("a pid")?;
    docker.cli(&["exec", &id, "/bin/tail", "/dev/zero"]).expect_err("it was killed");
    nix::sys::signal::kill(tracker_tests::process::pid(pid), Signal::SIGKILL)?;
    let exit = until_over(&mut source, &id).exit.context("an exit")?;
    assert_eq!((exit.code, exit.signal, exit.oom), (137, Some(9), Some(false)), "Docker would say so");

    // Who comes later has Docker's word alone, which tells no signal.
    let mut later = Source::start(&docker)?;
    for id in &filled {
        let exit = until_over(&mut later, id).exit.context("an exit")?;
        assert_eq!((exit.code, exit.signal, exit.oom), (137, None, Some(true)));
        assert_eq!(whose_exit(&later, id)?, Some(By::Docker));
    }
    Ok(())
}

#[test]
fn health_and_limits_follow_what_changes_them() -> Result<()> {
    require!(Docker::requirement());
    let docker = Docker::start()?;
    let mut source = Source::start(&docker)?;
    let check = ["--health-cmd", "test -e /tmp/well", "--health-interval", "200ms", "--health-retries", "1"];
    let id = docker.run(&check, SLEEP)?;
    let health = |wanted| move |it: &Container| it.details.health == Some(wanted);
    source.until(&id, "it is unhealthy", health(Checked::Unhealthy));
    docker.cli(&["exec", &id, "/bin/sh", "-c", ": > /tmp/well"])?;
    source.until(&id, "it is healthy", health(Checked::Healthy));
    docker.cli(&["update", "--cpu-shares", "333", &id])?;
    let limits = |it: &Container| it.details.resources.as_ref().and_then(|limits| limits.cpu_shares);
    source.until(&id, "its new limit", |it| limits(it) == Some(333));
    Ok(())
}

#[test]
fn addresses_and_ports_of_every_network_are_told() -> Result<()> {
    require!(Docker::requirement());
    let docker = Docker::start()?;
    let mut source = Source::start(&docker)?;
    let (v4, v6) = subnets(0);
    for (name, subnets) in [("one", vec![v4[0].as_str(), &v6]), ("two", vec![v4[1].as_str()])] {
        let mut create = vec!["network", "create", "--driver", "bridge", name];
        if subnets.len() > 1 {
            create.push("--ipv6");
        }
        create.extend(subnets.iter().flat_map(|subnet| ["--subnet", subnet]));
        docker.cli(&create)?;
    }
    let id = docker.run(&["--network", "one", "--publish", "127.0.0.1::80", "--expose", "53/udp"], SLEEP)?;
    let container = source.until_inspected(&id, State::Running);
    let told = |network: &str, v6: bool| -> Result<Address> {
        let field = if v6 { "GlobalIPv6" } else { "IP" };
        let [ip, length] = ["Address", "PrefixLen"].map(|end| format!("{field}{end}"));
        let format = format!(
            "{{{{with index .NetworkSettings.Networks \"{network}\"}}}}{{{{.{ip}}}}} {{{{.{length}}}}}{{{{end}}}}"
        );
        let text = docker.cli(&["inspect", "--format", &format, &id])?;
        let (ip, length) = text.split_once(' ').with_context(|| format!("an address, not `{text}`"))?;
        Ok(Address { network: Some(network.into()), ip: ip.parse::<IpAddr>()?, prefix_len: Some(length.parse()?) })
    };
    let one = [told("one", false)?, told("one", true)?];
    assert_eq!(container.details.addresses.as_deref(), Some(&one[..]));
    let ports = container.details.ports.as_deref().context("ports")?;
    let [dns, web] = ports else { panic!("{ports:?}") };
    assert_eq!((dns.container, &*dns.protocol, dns.host), (53, "udp", None));
    assert_eq!((web.container, &*web.protocol, web.host_ip), (80, "tcp", Some([127, 0, 0, 1].into())));
    assert!(web.host.is_some());

    docker.cli(&["network", "connect", "two", &id])?;
    let all = [one.to_vec(), vec![told("two", false)?]].concat();
    source.until(&id, "its address in the second network", |it| it.details.addresses.as_deref() == Some(&all[..]));
    docker.cli(&["network", "disconnect", "one", &id])?;
    source.until(&id, "its last address", |it| it.details.addresses.as_deref() == Some(&all[2..]));

    let host = docker.run(&["--network", "host"], SLEEP)?;
    let host = source.until_inspected(&host, State::Running);
    assert_eq!((host.host_network, host.details.addresses.as_deref()), (Some(true), Some(&[][..])));
    Ok(())
}

#[test]
fn a_held_container_is_whole_before_it_runs_and_is_one_entry_of_two_sources() -> Result<()> {
    require!(Docker::requirement());
    require!(requirement::tracker());
    let docker = Docker::start()?;
    let mut source = Source::holding(&docker)?;
    let (tell, told) = std::sync::mpsc::sync_channel(8);
    let image = docker.image().to_owned();
    let selector = format!("image={image}").parse()?;
    let _hook = source.tracker.on_start("test", selector, Duration::from_millis(100), move |container| {
        let _ = tell.try_send(Container::clone(container));
    })?;
    let id = docker.run(&["--name", "whole", "--label", "tier=test"], SLEEP)?;
    let container = source.until(&id, "both told of it", |it| {
        it.awaiting.is_empty()
            && [By::Docker, By::Containerd, By::Kernel, By::Barrier].iter().all(|by| it.sources.contains(*by))
    });
    assert_eq!(container.grade, Some(Grade::Held));
    let early = told.recv_timeout(tracker_tests::wait::PATIENCE)?;
    assert_eq!((&*early.id, early.name.as_deref()), (&*id, Some("whole")), "before its first instruction");
    assert_eq!(early.image.and_then(|image| image.name).as_deref(), Some(&*image));
    assert_eq!(early.labels.get("tier").map(|label| &**label), Some("test"));
    let all = source.reader.all().filter(|it| *it.id == *id).count();
    assert_eq!(all, 1, "one entry");
    let story = source.tracker.explain_blocking(tracker::Who::Id(id.as_str().into()))?.context("a story")?;
    let whose = |field: &str| story.provenance.iter().find(|(of, _)| *of == field).map(|(_, by)| *by);
    assert_eq!((whose("name"), whose("image.name")), (Some(By::Docker), Some(By::Docker)));
    assert_eq!(whose("runtime.handler"), Some(By::Containerd));
    assert_eq!(story.missing, [], "nothing of it is");
    Ok(())
}

#[test]
fn whichever_oci_runtime_runs_it_a_container_is_held_and_told_whole() -> Result<()> {
    require!(Docker::requirement());
    require!(requirement::tracker(), Oci::Crun.requirement());
    let docker = Docker::start()?;
    let image_id = docker.cli(&["image", "inspect", "--format", "{{.Id}}", docker.image()])?;
    let mut source = Source::holding(&docker)?;
    for (runtime, oci, code) in [(RUNC, Oci::Runc, 3), (CRUN, Oci::Crun, 4)] {
        let name = format!("by-{}", oci.name());
        let id = docker
            .run(&["--runtime", runtime, "--name", &name], &["/bin/sh", "-c", &when_told(&format!("exit {code}"))])?;
        let container = source.until(&id, "all told of it", |it| {
            it.awaiting.is_empty() && it.details.privileged.is_some() && it.sources.contains(By::Containerd)
        });
        assert_eq!((container.state, container.grade), (State::Running, Some(Grade::Held)), "{name}");
        assert_eq!((container.name.as_deref(), container.pid()), (Some(&*name), Some(docker.pid(&id)?)));
        let known = (container.runtime.name.as_deref(), container.runtime.oci.as_deref());
        assert_eq!(known, (Some("docker"), Some(oci.name())));
        let image = container.image.as_ref().context("an image")?;
        assert_eq!(image.name.as_deref(), Some(docker.image()));
        assert_eq!((image.id.as_deref(), image.digest.as_deref()), (Some(&*image_id), Some(docker.digest())));

        tell(&docker, &id)?;
        let over = source.until(&id, "its exit", |it| it.state == State::Exited && it.exit.is_some());
        let exit = over.exit.context("an exit")?;
        assert_eq!((exit.code, exit.signal, over.grade), (code, None, Some(Grade::Held)), "{name}");
    }
    Ok(())
}

#[test]
fn a_killed_daemon_comes_back_on_a_new_socket_with_what_changed_meanwhile() -> Result<()> {
    require!(Docker::requirement());
    let [before, after] = what_changed_behind_a_killed_daemon_is_told(Docker::start()?)?;
    assert_ne!(before, after);
    Ok(())
}

#[test]
fn a_killed_daemon_comes_back_on_the_same_socket_with_what_changed_meanwhile() -> Result<()> {
    require!(Docker::requirement());
    let [before, after] = what_changed_behind_a_killed_daemon_is_told(Docker::start_activated()?)?;
    assert_eq!(before, after, "the socket is handed from one daemon to the next");
    Ok(())
}

/// Returns the socket's inode before and after, each with when it was made: its number may come back at once.
fn what_changed_behind_a_killed_daemon_is_told(mut docker: Docker) -> Result<[(u64, i64, i64); 2]> {
    let stays = docker.run(&["--name", "stays"], SLEEP)?;
    let [killed, stopped] = [docker.run(&[], SLEEP)?, docker.run(&[], SLEEP)?];
    let removed = docker.cli(&["create", docker.image(), "/bin/true"])?;
    let started = docker.cli(&["create", "--name", "old", docker.image(), "/bin/sleep", "1000"])?;
    let mut source = Source::start(&docker)?;
    let before = source.until_inspected(&stays, State::Running);
    let killed_pid = source.until_inspected(&killed, State::Running).pid().context("a pid")?;
    source.until_inspected(&stopped, State::Running);
    source.until_inspected(&removed, State::Created);
    source.until_inspected(&started, State::Created);
    let inode =
        |docker: &Docker| std::fs::metadata(docker.socket()).map(|file| (file.ino(), file.ctime(), file.ctime_nsec()));
    let old = inode(&docker)?;

    docker.kill();
    source.until_line("its absence is noticed", |line| line.condition == Condition::Waiting);
    source.until_state(&stays, State::Running);
    nix::sys::signal::kill(tracker_tests::process::pid(killed_pid), Signal::SIGKILL)?;
    source.until_state(&killed, State::Exited);
    // No event of all this is heard.
    docker.restart_elsewhere()?;
    docker.cli(&["kill", "--signal", "KILL", &stopped])?;
    docker.cli(&["rm", &removed])?;
    docker.cli(&["rename", "old", "new"])?;
    docker.cli(&["start", "new"])?;
    let comes = docker.run(&["--name", "comes"], SLEEP)?;
    let silent = source.tracker.health().into_iter().filter(|line| line.source == By::Docker);
    assert!(silent.into_iter().all(|line| line.condition == Condition::Waiting));

    docker.restart()?;
    // Started before the tracker can know that the daemon is back.
    let last = docker.run(&["--name", "last"], SLEEP)?;
    source.until_line("it is live again", |line| line.condition == Condition::Live);
    for (id, name) in [(&started, "new"), (&comes, "comes"), (&last, "last")] {
        let container = source.until_inspected(id, State::Running);
        assert_eq!((container.name.as_deref(), container.pid()), (Some(name), Some(docker.pid(id)?)));
    }
    let after = source.until_inspected(&stays, State::Running);
    assert_eq!((after.instance, &after.name, alike(&after)), (before.instance, &before.name, alike(&before)));
    for id in [&killed, &stopped] {
        let ended = source.until(id, "its exit", |it| it.exit.is_some());
        assert_eq!((ended.state, ended.exit.map(|exit| exit.code)), (State::Exited, Some(137)));
    }
    let removed = source.until(&removed, "it is over", |it| it.state.is_over());
    assert_eq!((removed.exit, removed.started_at), (None, None), "it never ran");
    Ok([old, inode(&docker)?])
}

#[test]
fn ids_of_two_runtimes_that_begin_alike_are_told_apart() -> Result<()> {
    require!(Docker::requirement());
    require!(requirement::program("ctr"));
    let docker = Docker::start()?;
    let long = docker.run(&["--name", "long"], SLEEP)?;
    // What people call Docker's is the whole id of one of containerd's own.
    let short = &long[..12];
    let containerd = docker.containerd();
    containerd.import_image("default")?;
    containerd.run("default", short, &[], SLEEP)?;
    let mut source = Source::with(&docker, |config| config.containerd.sockets = vec![containerd.socket()])?;
    source.until_inspected(&long, State::Running);
    source.until(short, "containerd told of it", |it| it.image.is_some() && it.state == State::Running);
    let pids = [docker.pid(&long)?, containerd.pid("default", short)?];
    let reader = &mut source.reader;
    for (asked, expected) in [(&*long, Some(pids[0])), (&long[..13], Some(pids[0])), (short, Some(pids[1]))] {
        let ById::Found(found) = reader.by_id(asked) else { panic!("{asked} is one") };
        assert_eq!(found.pid(), expected, "{asked}");
    }
    let ById::Ambiguous(both) = reader.by_id(&long[..11]) else { panic!("which?") };
    let both: BTreeSet<_> = both.iter().map(|container| &*container.id).collect();
    assert_eq!(both, BTreeSet::from([&*long, short]));
    Ok(())
}

#[test]
fn a_stopped_daemon_is_noticed_and_picked_up_again() -> Result<()> {
    require!(Docker::requirement());
    let docker = Docker::start()?;
    let stays = docker.run(&[], SLEEP)?;
    let mut source = Source::start(&docker)?;
    source.until_inspected(&stays, State::Running);
    let daemon = docker.daemon().context("a daemon")?;
    daemon.signal(Signal::SIGSTOP)?;
    let line = source.until_line("it is noticed", |line| line.condition == Condition::Waiting);
    assert!(line.detail.contains("no answer within"), "{}", line.detail);
    daemon.signal(Signal::SIGCONT)?;
    source.until_line("it is live again", |line| line.condition == Condition::Live);
    let comes = docker.run(&[], SLEEP)?;
    source.until_inspected(&comes, State::Running);
    source.until_state(&stays, State::Running);
    Ok(())
}

#[test]
fn a_listener_that_is_not_root_is_refused() -> Result<()> {
    require!(requirement::root());
    const NOBODY: libc::uid_t = 65_534;
    let directory = tempfile::tempdir()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777))?;
    let socket = directory.path().join("sock");
    let bound = socket.clone();
    let listen = std::thread::spawn(move || {
        // SAFETY: the bare system call, other than libc's wrapper, changes this thread alone, which ends here.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1, NOBODY, -1) };
        assert_eq!(changed, 0);
        UnixListener::bind(bound)
    });
    let _listener = listen.join().expect("the thread does not panic")?;

    let docker = docker::Config { sockets: vec![socket], sockets_if_present: vec![], ..Default::default() };
    let find = tracker::source::find::Config { enabled: false, ..Default::default() };
    let tracker = Tracker::start(Config { docker, find, ..Config::default() })?;
    let mut source = Source { reader: tracker.reader(), tracker };
    let line = source.until_line("it is refused", |line| line.condition == Condition::Refused);
    assert!(line.detail.contains("uid 65534"), "{}", line.detail);
    Ok(())
}
