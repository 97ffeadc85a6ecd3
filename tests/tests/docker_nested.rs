//! A dockerd in a container of another dockerd: what it says is about the containers in there, and about no others.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tracker::container::{Domain, State, TaskId};
use tracker::fact::Source as By;
use tracker::source::health::Condition;
use tracker::source::{containerd, docker};
use tracker::{Config, Container, Reader, Tracker};
use tracker_tests::docker::Docker;
use tracker_tests::process::{self, Process};
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

const SLEEP: &[&str] = &["/bin/sleep", "1000"];

/// A tracker that asks the host's dockerd, and those inside containers that it finds.
struct Watch {
    tracker: Tracker,
    reader: Reader,
}

impl Watch {
    fn start(outer: &Docker) -> Result<Watch> {
        let docker = docker::Config {
            sockets: vec![outer.socket()],
            sockets_if_present: vec![],
            backoff_cap_ms: 500,
            ..Default::default()
        };
        let containerd = containerd::Config { sockets: vec![], sockets_if_present: vec![], ..Default::default() };
        let mut config = Config { docker, containerd, ..Config::default() };
        (config.find.nested, config.find.interval_ms) = (true, 500);
        // Docker's word shall do.
        config.barrier.enabled = false;
        let tracker = Tracker::start(config)?;
        Ok(Watch { reader: tracker.reader(), tracker })
    }

    #[track_caller]
    fn until(&mut self, id: &str, what: &str, is_so: impl Fn(&Container) -> bool) -> Container {
        eventually(&format!("{id}: {what}"), || {
            let found = self.reader.all().find(|container| &*container.id == id && is_so(container));
            found.map(|container| Container::clone(container))
        })
    }

    #[track_caller]
    fn until_inspected(&mut self, id: &str, state: State) -> Container {
        let is_told = |it: &Container| it.state == state && it.task.is_some() && it.details.privileged.is_some();
        self.until(id, &format!("{state:?} and inspected"), is_told)
    }

    /// Waits until the daemon at this path, as it is called inside, is asked.
    fn until_asked(&self, socket: &Path) {
        eventually("it is asked", || {
            let lines = self.tracker.health();
            let is_it = |what: &str| what.starts_with("/proc") && what.ends_with(&socket.display().to_string());
            let mut lines = lines.into_iter().filter(|line| line.source == By::Docker && is_it(&line.what));
            lines.find(|line| line.condition == Condition::Live)
        });
    }

    /// The container that a process is of.
    fn by_pid(&mut self, pid: u32) -> Option<(String, Option<String>, Domain)> {
        let found = self.reader.by_pid(pid).container()?;
        Some((found.id.to_string(), found.name.as_deref().map(str::to_owned), found.domain))
    }
}

fn task(pid: u32) -> Result<TaskId> {
    Ok(TaskId { pid, start_ticks: kernel::start_ticks(pid)? })
}

#[test]
fn a_dockerd_inside_a_container_speaks_for_what_is_in_there() -> Result<()> {
    require!(Docker::requirement(), requirement::program("nsenter"));
    let outer = Docker::start()?;
    let around = outer.run_host(&["--name", "web"])?;
    let init = outer.pid(&around)?;
    let inner = Docker::start_inside(init)?;
    let before = inner.run(&["--name", "before"], SLEEP)?;
    let mut watch = Watch::start(&outer)?;
    watch.until_inspected(&around, State::Running);
    watch.until_asked(&inner.socket());
    // It has a name that is the outer one's already.
    let after = inner.run(&["--name", "web"], SLEEP)?;

    for (id, name) in [(&before, "before"), (&after, "web")] {
        let container = watch.until_inspected(id, State::Running);
        assert_eq!(container.domain, Domain::Container(task(init)?), "{name}");
        assert_eq!(container.parent.as_ref().map(|parent| &*parent.id), Some(&*around));
        assert_eq!((container.name.as_deref(), container.runtime.name.as_deref()), (Some(name), Some("docker")));
        let image = container.image.as_ref().context("an image")?;
        assert_eq!((image.name.as_deref(), image.digest.as_deref()), (Some(inner.image()), Some(inner.digest())));
        // Docker counts its pids as they are counted in there.
        let pid = container.pid().context("a pid")?;
        assert_ne!(inner.pid(id)?, pid);
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/cmdline"))?, "/bin/sleep\x001000\0");
        assert_eq!(container.namespaces.mnt, kernel::namespace(pid, "mnt")?);
        assert_eq!(watch.by_pid(pid), Some((id.clone(), Some(name.to_owned()), container.domain)));
    }
    assert_eq!(watch.by_pid(init), Some((around.clone(), Some("web".to_owned()), Domain::Host)));
    let named: HashSet<_> = watch.reader.by_name("web").iter().map(|container| container.id.to_string()).collect();
    assert_eq!(named, HashSet::from([around, after.clone()]));

    inner.cli(&["kill", "--signal", "KILL", &after])?;
    let over = watch.until(&after, "its end", |it| it.state == State::Exited && it.exit.is_some());
    assert_eq!(over.exit.map(|exit| exit.code), Some(137));
    Ok(())
}

/// It replays what the outer daemon says of its containers, under other names.
#[test]
fn a_daemon_inside_that_claims_the_outer_ones_containers_is_not_believed() -> Result<()> {
    require!(Docker::requirement(), requirement::program("nsenter"));
    let outer = Docker::start()?;
    let around = outer.run_host(&["--name", "around"])?;
    let victim = outer.run(&["--name", "victim"], SLEEP)?;
    let init = outer.pid(&around)?;
    let directory = tempfile::Builder::new().prefix("liar-").tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let mut listed: Vec<Value> = serde_json::from_str(&outer.api("/containers/json?all=1")?)?;
    for summary in &mut listed {
        let id = summary["Id"].as_str().context("an id")?.to_owned();
        let mut inspection: Value = serde_json::from_str(&outer.api(&format!("/containers/{id}/json"))?)?;
        (summary["Names"], inspection["Name"]) = (json!(["/stolen"]), json!("/stolen"));
        fs::write(path(&format!("containers_{id}_json")), inspection.to_string())?;
        // And one of its own making, whose process is that in which all this happens.
        inspection["State"]["Pid"] = json!(1);
        (summary["Id"], inspection["Id"]) = (json!("feigned"), json!("feigned"));
        fs::write(path("containers_feigned_json"), inspection.to_string())?;
    }
    let feigned = listed.last().cloned();
    let mut listed: Vec<Value> = serde_json::from_str(&outer.api("/containers/json?all=1")?)?;
    listed.iter_mut().for_each(|summary| summary["Names"] = json!(["/stolen"]));
    listed.extend(feigned);
    fs::write(path("containers_json"), json!(listed).to_string())?;
    fs::write(path("images_json"), "[]")?;
    // By this name, and by no telling one of its socket, a process inside is taken for a dockerd.
    let liar = path("dockerd");
    process::copy_program(Path::new(env!("CARGO_BIN_EXE_replay")), &liar)?;
    let mut command = Command::new("nsenter");
    command.args(["--target", &init.to_string(), "--mount", "--pid", "--"]).arg(&liar);
    let socket = path("sock");
    let _liar = Process::start(command.arg(&socket).arg(directory.path()), &path("log"))?;

    let mut watch = Watch::start(&outer)?;
    let honest = [(&around, "around"), (&victim, "victim")];
    for (id, _) in honest {
        watch.until_inspected(id, State::Running);
    }
    watch.until_asked(&socket);
    let within = Domain::Container(task(init)?);
    for id in [&around, &victim, "feigned"] {
        // It has said so, and that is all.
        let claim = watch.until(id, "the liar's", |it| it.domain == within && it.details.privileged.is_some());
        assert_eq!((claim.name.as_deref(), claim.task), (Some("stolen"), None));
    }
    assert!(watch.tracker.stats().docker.calls_inspect.load(Relaxed) >= 5);
    for (id, name) in honest {
        let pid = outer.pid(id)?;
        assert_eq!(watch.by_pid(pid), Some((id.clone(), Some(name.to_owned()), Domain::Host)));
        let mntns = kernel::namespace(pid, "mnt")?;
        let found = watch.reader.by_mntns(mntns).container().context("a container")?;
        assert_eq!((&*found.id, found.name.as_deref()), (&**id, Some(name)));
        assert!(found.parent.is_none());
    }
    Ok(())
}
