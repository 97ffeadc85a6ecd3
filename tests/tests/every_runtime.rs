//! One machine with all of them: containerd with `ctr` and with pods, dockerd on a containerd of its own, podman with its
//! service and without. Whoever was there first, `tracker ps` lists every container with the right runtime, name, image,
//! digest and pod; and whatever happens to a daemon, no row is wrong or missing once it is back.
//!
//! The tracker is the real daemon with the configuration that nobody wrote: it finds all sockets by looking. What others
//! run on this machine is in its answers, too; only what the test started is judged.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stderr, reason = "what was measured is told")]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tracker_tests::containerd::{Containerd, IMAGE};
use tracker_tests::daemon::Daemon;
use tracker_tests::docker::Docker;
use tracker_tests::kubelet::{Kubelet, Network, Pod};
use tracker_tests::podman::Podman;
use tracker_tests::wait::{PATIENCE, eventually, within};
use tracker_tests::{kernel, process, require, requirement};

const SLEEP: &[&str] = &["/bin/sleep", "100000"];

/// A daemon that something happens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Containerd,
    Dockerd,
    DockersContainerd,
    PodmansService,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// It is asked to end, and comes back later.
    Stopped,
    /// It is killed, and comes back later.
    Killed,
    /// It is killed, and its next one is there at once.
    Restarted,
}

/// The truth about a container.
#[derive(Clone, Debug)]
struct Row {
    runtime: &'static str,
    name: Option<String>,
    image: String,
    digest: String,
    /// Name, namespace, uid and sandbox.
    pod: Option<[String; 4]>,
    pid: u32,
}

/// All of it.
struct Machine {
    containerd: Containerd,
    /// Of [`IMAGE`], there as in podman.
    digest: String,
    docker: Docker,
    /// One whose containers have their conmons alone, and one with its REST service.
    podmans: [Podman; 2],
    pods: Vec<Pod>,
    /// What runs, by id.
    running: Vec<(String, Row)>,
    /// What ran.
    over: Vec<String>,
    count: u32,
}

impl Machine {
    fn start() -> Result<Machine> {
        let containerd = Containerd::start_with_cri()?;
        let digest = containerd.import_image("default")?;
        let mut podmans = [Podman::start()?, Podman::start()?];
        podmans[1].serve()?;
        let docker = Docker::start()?;
        Ok(Machine { containerd, digest, docker, podmans, pods: vec![], running: vec![], over: vec![], count: 0 })
    }

    /// A name that no container beside it has.
    fn name(&mut self, of: &str) -> String {
        self.count += 1;
        format!("every-{of}-{}-{}", self.count, std::process::id())
    }

    /// Starts a container of each kind.
    fn start_one_of_each(&mut self) -> Result<()> {
        self.run_ctr()?;
        self.run_pod()?;
        self.run_docker()?;
        self.run_podman(0)?;
        self.run_podman(1)
    }

    fn run_ctr(&mut self) -> Result<()> {
        let id = self.name("ctr");
        self.containerd.run("default", &id, &[], SLEEP)?;
        let pid = self.containerd.pid("default", &id)?;
        let image = IMAGE.to_owned();
        let row = Row { runtime: "containerd", name: None, image, digest: self.digest.clone(), pod: None, pid };
        self.running.push((id, row));
        Ok(())
    }

    /// A pod of two containers.
    fn run_pod(&mut self) -> Result<()> {
        let name = self.name("pod");
        let mut kubelet = Kubelet::connect(&self.containerd)?;
        let pod = kubelet.run_pod("shop", &name, Network::Host)?;
        for container in ["front", "back"] {
            let id = kubelet.start(&pod, container, 0, SLEEP)?;
            let row = Row {
                runtime: "containerd",
                name: Some(container.to_owned()),
                image: IMAGE.to_owned(),
                digest: self.digest.clone(),
                pod: Some([name.clone(), "shop".to_owned(), pod.uid.clone(), pod.id.clone()]),
                pid: kubelet.status(&id)?.pid,
            };
            self.running.push((id, row));
        }
        self.pods.push(pod);
        Ok(())
    }

    fn run_docker(&mut self) -> Result<()> {
        let name = self.name("docker");
        let id = self.docker.cli(&[&["create", "--name", &name, self.docker.image()], SLEEP].concat())?;
        // Docker itself needs a moment to find its containerd again.
        eventually("docker starts a container", || self.docker.cli(&["start", &id]).ok());
        let (image, digest) = (self.docker.image().to_owned(), self.docker.digest().to_owned());
        let row = Row { runtime: "docker", name: Some(name), image, digest, pod: None, pid: self.docker.pid(&id)? };
        self.running.push((id, row));
        Ok(())
    }

    fn run_podman(&mut self, which: usize) -> Result<()> {
        let name = self.name("podman");
        let podman = &self.podmans[which];
        let id = podman.run(&name, &[], SLEEP)?;
        let pid = podman.podman(&["inspect", "--format", "{{.State.Pid}}", &id])?.trim().parse().context("a pid")?;
        let digest = fs::read_to_string(podman.path("layout/digest"))?;
        let row = Row { runtime: "podman", name: Some(name), image: IMAGE.to_owned(), digest, pod: None, pid };
        self.running.push((id, row));
        Ok(())
    }

    /// Ends the last container of a kind, from the outside: whether its daemon is there or not.
    fn end_one(&mut self, which: Which) -> Result<()> {
        let is_it = |row: &Row| match which {
            Which::Containerd => row.runtime == "containerd" && row.pod.is_none(),
            Which::Dockerd | Which::DockersContainerd => row.runtime == "docker",
            Which::PodmansService => row.runtime == "podman",
        };
        let at = self.running.iter().rposition(|(_, row)| is_it(row)).context("one to end")?;
        let (id, row) = self.running.remove(at);
        kill(process::pid(row.pid), Signal::SIGKILL).context("end a container")?;
        self.over.push(id);
        Ok(())
    }

    /// Starts a container that a daemon has a hand in. Podman's are started without its service.
    fn start_one(&mut self, which: Which) -> Result<()> {
        match which {
            Which::Containerd => self.run_ctr().and_then(|()| self.run_pod()),
            Which::Dockerd | Which::DockersContainerd => self.run_docker(),
            Which::PodmansService => self.run_podman(1),
        }
    }

    fn socket(&self, which: Which) -> PathBuf {
        match which {
            Which::Containerd => self.containerd.socket(),
            Which::Dockerd => self.docker.socket(),
            Which::DockersContainerd => self.docker.containerd().socket(),
            Which::PodmansService => self.podmans[1].socket(),
        }
    }

    fn end_daemon(&mut self, which: Which, what: What) -> Result<()> {
        let is_asked = what == What::Stopped;
        match which {
            Which::Containerd if is_asked => self.containerd.stop()?,
            Which::Containerd => self.containerd.kill(),
            Which::Dockerd if is_asked => self.docker.stop()?,
            Which::Dockerd => self.docker.kill(),
            Which::DockersContainerd if is_asked => self.docker.containerd_mut().stop()?,
            Which::DockersContainerd => self.docker.containerd_mut().kill(),
            Which::PodmansService if is_asked => self.podmans[1].stop_service()?,
            Which::PodmansService => self.podmans[1].kill_service(),
        }
        Ok(())
    }

    /// Returns when it answers.
    fn start_daemon(&mut self, which: Which) -> Result<()> {
        match which {
            Which::Containerd => self.containerd.restart(),
            Which::Dockerd => self.docker.restart(),
            Which::DockersContainerd => self.docker.containerd_mut().restart(),
            Which::PodmansService => self.podmans[1].serve(),
        }
    }

    /// What is wrong with the rows of `tracker ps`, if anything is.
    fn wrong(&self, daemon: &Daemon) -> Option<String> {
        let (listed, all) =
            match (daemon.ask_json(&["ps", "-o", "json"]), daemon.ask_json(&["ps", "--all", "-o", "json"])) {
                (Ok(listed), Ok(all)) => (listed, all),
                (Err(error), _) | (_, Err(error)) => return Some(format!("{error:#}")),
            };
        fn rows<'a>(list: &'a Value, id: &str) -> Vec<&'a Value> {
            list.as_array().into_iter().flatten().filter(|row| row["id"] == id).collect()
        }
        for (id, truth) in &self.running {
            let [row] = rows(&listed, id)[..] else {
                return Some(format!("{} rows of {truth:?}", rows(&listed, id).len()));
            };
            if let Some(what) = truth.differs(row) {
                return Some(format!("{what}: {truth:?} is told as {row:#}"));
            }
        }
        // Pods' sandboxes are there, and are not asked for.
        for pod in &self.pods {
            let is_hidden = rows(&listed, &pod.id).is_empty();
            let [row] = rows(&all, &pod.id)[..] else { return Some(format!("the sandbox of {}", pod.uid)) };
            if !is_hidden || row["kind"] != "sandbox" || row["state"] != "running" {
                return Some(format!("the sandbox of {}: {row:#}", pod.uid));
            }
        }
        let is_over = |row: &&Value| row["state"] == "exited" && row["exit"]["code"] == 137;
        for id in &self.over {
            // Known for a while, or forgotten already.
            if !rows(&listed, id).iter().all(is_over) {
                return Some(format!("{id} is over, and told as {:#?}", rows(&listed, id)));
            }
        }
        None
    }
}

impl Row {
    /// What of it is told otherwise.
    fn differs(&self, row: &Value) -> Option<&'static str> {
        let pod = self.pod.as_ref().map(|pod| {
            let [name, namespace, uid, sandbox] = pod;
            json!({"name": name, "namespace": namespace, "uid": uid, "sandbox_id": sandbox})
        });
        let has_pod = match &pod {
            None => row.get("pod").is_none(),
            Some(pod) => pod.as_object().unwrap().iter().all(|(key, value)| row["pod"][key] == *value),
        };
        let checks = [
            ("kind", row["kind"] == "container"),
            ("state", row["state"] == "running"),
            ("runtime", row["runtime"]["name"] == self.runtime),
            ("name", row.get("name") == self.name.clone().map(Value::from).as_ref()),
            ("image", row["image"]["name"] == *self.image),
            ("digest", row["image"]["digest"] == *self.digest),
            ("pod", has_pod),
            ("pid", row["pid"] == self.pid),
        ];
        checks.into_iter().find(|(_, is_right)| !is_right).map(|(what, _)| what)
    }
}

/// Waits until all rows are right, and tells how long that took.
#[track_caller]
fn until_right(machine: &Machine, daemon: &Daemon, when: &str) -> Duration {
    let (begun, mut last) = (Instant::now(), None);
    let right = within(PATIENCE, || {
        last = machine.wrong(daemon);
        last.is_none().then_some(())
    });
    assert!(right.is_some(), "{when}: {}", last.unwrap_or_default());
    begun.elapsed()
}

/// The line of `tracker sources` about a daemon.
fn line(machine: &Machine, daemon: &Daemon, which: Which) -> Option<Value> {
    let source = match which {
        Which::Containerd | Which::DockersContainerd => "containerd",
        Which::Dockerd => "docker",
        Which::PodmansService => "podman",
    };
    let socket = machine.socket(which).display().to_string();
    daemon.sources(source).ok()?.into_iter().find(|line| line["what"] == *socket)
}

#[test]
fn all_runtimes_are_listed_truly_whoever_was_there_first_and_whatever_happens_to_their_daemons() -> Result<()> {
    require!(Podman::requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    require!(requirement::program("containerd"), requirement::program("ctr"));
    require!(Docker::requirement());
    let mut machine = Machine::start()?;
    machine.start_one_of_each()?;
    let daemon = Daemon::start("[find]\n")?;
    machine.start_one_of_each()?;
    eprintln!("all listed after {:?}", until_right(&machine, &daemon, "all of them"));

    for which in [Which::Containerd, Which::Dockerd, Which::DockersContainerd, Which::PodmansService] {
        let live = eventually(&format!("{which:?} is asked"), || {
            line(&machine, &daemon, which).filter(|line| line["condition"] == "live")
        });
        assert!(live["origin"].as_str().is_some_and(|origin| origin.starts_with("process ")), "{live:#}");
        let mut changes = live["changes"].as_u64();
        for what in [What::Stopped, What::Killed, What::Restarted] {
            machine.end_daemon(which, what)?;
            machine.end_one(which)?;
            if what != What::Restarted {
                eventually(&format!("the absence of {which:?} is told"), || {
                    line(&machine, &daemon, which).filter(|line| line["condition"] == "waiting")
                });
                until_right(&machine, &daemon, &format!("{which:?} is away"));
            }
            machine.start_daemon(which)?;
            let back = Instant::now();
            // Before the tracker can know of it.
            machine.start_one(which)?;
            until_right(&machine, &daemon, &format!("{which:?} was {what:?} and is back"));
            let right = back.elapsed();
            let line = eventually(&format!("{which:?} is told as live again"), || {
                let is_again = |line: &Value| line["condition"] == "live" && line["changes"].as_u64() > changes;
                line(&machine, &daemon, which).filter(is_again)
            });
            let live = back.elapsed();
            // What it tells of the time when it was not heard changes nothing.
            until_right(&machine, &daemon, &format!("{which:?} was {what:?} and is heard"));
            eprintln!(
                "{which:?} {what:?}: after it is back, one is started and all is right in {right:?}, live in {live:?}"
            );
            changes = line["changes"].as_u64();
        }
    }
    until_right(&machine, &daemon, "the end");
    Ok(())
}
