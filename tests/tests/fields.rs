//! The table of `docs/operating.md` that tells which source fills which field, per runtime, held to what real containers
//! show: there before the tracker, or new.
//!
//! A cell names sources by letters. Each of its fields must be there by the word of one of them, as `tracker explain` tells
//! it; where the cell names nobody, it must not be there. CRI-O's column is left to `pods.rs`: it is not packaged, so what
//! it tells is told by its conmon's stand-in there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tracker_tests::containerd::Containerd;
use tracker_tests::daemon::Daemon;
use tracker_tests::docker::Docker;
use tracker_tests::kubelet::{ContainerOptions, Kubelet, Pod, PodOptions};
use tracker_tests::net::subnets;
use tracker_tests::podman::Podman;
use tracker_tests::wait::{PATIENCE, within};
use tracker_tests::{kernel, require, requirement};

/// Containers that were there before the tracker, and new ones.
const BEFORE: &str = "before";
const AFTER: &str = "after";
const SLEEP: &[&str] = &["/bin/sleep", "100000"];
const CONFIG: &str = "env-allow = ['STAGE']\n[find]\n";
/// The letters of sources, and the sources.
const LETTERS: [(&str, &[&str]); 7] = [
    ("K", &["kernel"]),
    ("B", &["barrier", "proc"]),
    ("c", &["containerd"]),
    ("D", &["docker"]),
    ("R", &["cri"]),
    ("P", &["podman"]),
    ("p", &["podman"]),
];

/// A field as the table names it: where it is in a container, and what explanations call it.
const FIELDS: [(&str, &str, &[&str]); 28] = [
    ("state", "/state", &["state"]),
    // Whoever shows the namespaces showed them of this process.
    ("pid", "/pid", &["namespaces"]),
    ("namespaces", "/mntns", &["namespaces"]),
    ("cgroup", "/cgroup", &["cgroup.id", "cgroup", "cgroup.path", "cgroup.v1_path"]),
    ("created_at", "/created_at", &["created_at"]),
    ("started_at", "/started_at", &["started_at"]),
    ("exited_at", "/exited_at", &["exited_at"]),
    ("exit", "/exit/code", &["exit"]),
    ("oom", "/exit/oom", &["exit.oom", "exit"]),
    ("name", "/name", &["name"]),
    ("image.name", "/image/name", &["image.name"]),
    ("image.id", "/image/id", &["image.id"]),
    ("image.digest", "/image/digest", &["image.digest"]),
    ("labels", "/labels", &["labels"]),
    ("annotations", "/annotations", &["annotations"]),
    ("bundle", "/bundle", &["bundle"]),
    ("runtime.oci", "/runtime/oci", &["runtime.oci"]),
    ("hostname", "/hostname", &["hostname"]),
    ("mounts", "/mounts", &["mounts"]),
    ("resources", "/resources", &["resources"]),
    ("restart_count", "/restart_count", &["restart_count"]),
    ("privileged", "/privileged", &["privileged"]),
    ("health", "/health", &["health"]),
    ("addresses", "/addresses", &["addresses"]),
    ("ports", "/ports", &["ports"]),
    ("env", "/env", &["env"]),
    ("kind", "/kind", &["kind"]),
    ("pod", "/pod/name", &["pod.name"]),
];

/// One field of one runtime's containers, and who fills it.
#[derive(Clone, Debug)]
struct Cell {
    field: String,
    letters: Vec<&'static str>,
}

/// A column of the table, read from the page that people read: of containers that were there before, or of new ones.
fn column(runtime: &str, is_new: bool) -> Result<Vec<Cell>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md");
    let page = fs::read_to_string(page).context("read the page")?;
    let parts = |line: &'_ str| -> Vec<String> {
        line.trim().trim_matches('|').split('|').map(|part| part.trim().to_owned()).collect()
    };
    let mut lines = page.lines().skip_while(|line| !line.starts_with("| field | Docker")).map(parts);
    let head = lines.next().context("the table")?;
    let at = head.iter().position(|name| name == runtime).with_context(|| format!("`{runtime}` in {head:?}"))?;
    let mut cells = Vec::new();
    for row in lines.skip(1).take_while(|row| row.len() == head.len()) {
        let groups: Vec<&str> = row[0].split('·').collect();
        let said: Vec<&str> = row[at].split('·').collect();
        ensure!(said.len() == groups.len() || said.len() == 1, "as many cells as fields: {row:?}");
        for (number, group) in groups.iter().enumerate() {
            let letters = letters(said.get(number).unwrap_or(&said[0]), is_new);
            for field in group.split(',').map(name) {
                cells.push(Cell { field, letters: letters.clone() });
            }
        }
    }
    Ok(cells)
}

/// The name of a field: in backticks, or the only word that is not a remark.
fn name(field: &str) -> String {
    let quoted = field.split('`').nth(1);
    quoted.unwrap_or(field.trim()).to_owned()
}

/// The letters of sources in a cell, but for what it says of sandboxes alone, and, of what was there before, for what it
/// says of new ones alone.
fn letters(said: &str, is_new: bool) -> Vec<&'static str> {
    let is_said = |clause: &&str| !clause.contains("of a sandbox") && (is_new || !clause.contains("of new ones"));
    let words = said.split(';').filter(is_said).flat_map(str::split_whitespace);
    let words = words.map(|word| word.trim_matches([':', ',']));
    words.filter_map(|word| LETTERS.iter().map(|(letter, _)| *letter).find(|letter| *letter == word)).collect()
}

/// A container that was given everything that its runtime can give, and is over at the end.
struct Subject {
    what: &'static str,
    id: String,
    cells: Vec<Cell>,
}

impl Subject {
    /// `but` are fields that this one cannot have here.
    fn new(what: &'static str, id: String, runtime: &str, but: &[&str]) -> Result<Subject> {
        let mut cells = column(runtime, what == AFTER)?;
        cells.retain(|cell| !but.contains(&&*cell.field));
        Ok(Subject { what, id, cells })
    }

    /// The same where these sources are not there.
    fn without(mut self, absent: &[&str]) -> Subject {
        self.cells.iter_mut().for_each(|cell| cell.letters.retain(|letter| !absent.contains(letter)));
        self
    }

    /// What is not as the table says, of these of its fields.
    fn wrong(&self, daemon: &Daemon, of: impl Fn(&str) -> bool) -> Vec<String> {
        let story = match daemon.ask_json(&["explain", &self.id, "-o", "json"]) {
            Ok(story) => story,
            Err(error) => return vec![format!("{error:#}")],
        };
        let is_of = |cell: &&Cell| of(&cell.field);
        self.cells.iter().filter(is_of).filter_map(|cell| differs(cell, &story)).collect()
    }

    /// Waits until all of these fields are as the table says.
    #[track_caller]
    fn check(&self, daemon: &Daemon, when: &str, of: impl Fn(&str) -> bool) {
        let mut wrong = Vec::new();
        let right = within(PATIENCE, || {
            wrong = self.wrong(daemon, &of);
            wrong.is_empty().then_some(())
        });
        if right.is_none() {
            let story = daemon.ask(&["explain", &self.id]).map(|said| said.out + &said.err);
            panic!("{}, {when}: {wrong:#?}\n{}\n{}", self.what, story.unwrap_or_default(), daemon.log());
        }
    }
}

/// In what a story differs from the table.
fn differs(cell: &Cell, story: &Value) -> Option<String> {
    let Cell { field, letters } = cell;
    let named = FIELDS.iter().find(|(name, ..)| name == field);
    // Parts of a pod are where their names say.
    let (pointer, called) = match named {
        Some((_, pointer, called)) => ((*pointer).to_owned(), called.to_vec()),
        None => (format!("/{}", field.replace('.', "/")), vec![field.as_str()]),
    };
    let value = story["container"].pointer(&pointer).filter(|value| !is_empty(value));
    let words: Vec<&str> = story["fields"]
        .as_array()?
        .iter()
        .filter_map(|word| called.contains(&word["field"].as_str()?).then(|| word["source"].as_str())?)
        .collect();
    let may = |word: &&str| letters.iter().any(|letter| LETTERS.iter().any(|(l, of)| l == letter && of.contains(word)));
    match value {
        None if letters.is_empty() => None,
        None => Some(format!("{field} is not there; {letters:?} should have told it")),
        Some(value) if letters.is_empty() => {
            Some(format!("{field} is {value}, by {words:?}, and nobody should know it"))
        }
        Some(_) if !words.is_empty() && words.iter().all(may) => None,
        Some(value) => Some(format!("{field} is {value} by the word of {words:?}, not of {letters:?}")),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        _ => false,
    }
}

fn is_of_the_end(field: &str) -> bool {
    ["exited_at", "exit", "oom"].contains(&field)
}

/// Holds the containers to the table while they run, ends them, and holds their ends to it.
fn check(daemon: &Daemon, subjects: &[Subject], end: impl Fn(&Subject) -> Result<()>) -> Result<()> {
    for subject in subjects {
        subject.check(daemon, "while it runs", |field| !is_of_the_end(field));
    }
    for subject in subjects {
        end(subject)?;
        subject.check(daemon, "when it is over", is_of_the_end);
    }
    Ok(())
}

#[test]
fn the_table_is_read_as_it_is_written() -> Result<()> {
    let of = |runtime: &str, field: &str, is_new: bool| {
        let cells = column(runtime, is_new).unwrap();
        cells.into_iter().find(|cell| cell.field == field).map(|cell| cell.letters)
    };
    assert_eq!(of("Docker", "pid", true), Some(vec!["K", "B", "D", "c"]));
    assert_eq!(of("containerd", "restart_count", true), Some(vec![]));
    assert_eq!([true, false].map(|is_new| of("containerd", "started_at", is_new)), [Some(vec!["K"]), Some(vec![])]);
    assert_eq!(of("podman", "privileged", true), Some(vec!["P", "p"]));
    assert_eq!(of("podman", "pod", true), Some(vec!["P"]));
    assert_eq!(of("pods under containerd", "ports", true), Some(vec![]));
    assert!(column("rkt", true).is_err());
    // Every field of the table is one that can be checked.
    for cell in column("Docker", true)? {
        let is_known = FIELDS.iter().any(|(name, ..)| *name == cell.field) || cell.field.starts_with("pod.");
        assert!(is_known, "{cell:?}");
    }
    Ok(())
}

#[test]
fn dockers_containers_have_the_fields_of_the_table() -> Result<()> {
    require!(Docker::requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    let docker = Docker::start()?;
    let (v4, _) = subnets(0);
    docker.cli(&["network", "create", "--driver", "bridge", "--subnet", &v4[0], "fields"])?;
    let run = |what: &'static str| -> Result<Subject> {
        let identity = ["--name", what, "--label", "tier=test", "--env", "STAGE=blue", "--memory", "64m"];
        let setup = ["--volume", "/proc:/data:ro", "--network", "fields", "--publish", "127.0.0.1::80"];
        let health = ["--health-cmd", "true", "--health-interval", "1s"];
        let id = docker.run(&[&identity[..], &setup, &health].concat(), SLEEP)?;
        // Docker gives annotations from 24.0 on, and those of a pod to cri-dockerd's containers alone.
        Subject::new(what, id, "Docker", &["annotations", "pod", "pod.labels", "pod.annotations"])
    };
    let before = run(BEFORE)?;
    let daemon = Daemon::start(CONFIG)?;
    check(&daemon, &[before, run(AFTER)?], |subject| docker.cli(&["kill", &subject.id]).map(drop))
}

#[test]
fn containerds_containers_have_the_fields_of_the_table() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    require!(requirement::program("containerd"), requirement::program("ctr"), requirement::program("runc"));
    let containerd = Containerd::start()?;
    containerd.import_image("default")?;
    let run = |what: &'static str| -> Result<Subject> {
        let id = format!("fields-{what}-{}", std::process::id());
        let labels = ["--label", "nerdctl/name=web", "--label", "tier=test", "--annotation", "note=this"];
        let mount = ["--mount", "type=bind,src=/proc,dst=/data,options=rbind:ro"];
        let rest = ["--memory-limit", "67108864", "--env", "STAGE=blue"];
        containerd.run("default", &id, &[&labels[..], &mount, &rest].concat(), SLEEP)?;
        // `ctr` makes no pods and gives no host name but the host's own.
        Subject::new(what, id, "containerd", &["pod", "pod.labels", "pod.annotations", "hostname"])
    };
    let before = run(BEFORE)?;
    let daemon = Daemon::start(CONFIG)?;
    check(&daemon, &[before, run(AFTER)?], |subject| {
        containerd.ctr("default", &["tasks", "kill", "--signal", "SIGKILL", &subject.id]).map(drop)
    })
}

#[test]
fn podmans_containers_have_the_fields_of_the_table_with_a_service_and_without() -> Result<()> {
    require!(Podman::requirement(), Podman::network_requirement());
    require!(requirement::tracker(), kernel::btf(), kernel::permission_events());
    for has_service in [true, false] {
        let mut podman = Podman::start()?;
        if has_service {
            podman.serve()?;
        }
        let network = format!("fields{}", std::process::id() * 2 + u32::from(has_service));
        podman.create_network(&network, &[&subnets(1).0[usize::from(has_service)]])?;
        let run = |what: &'static str| -> Result<Subject> {
            let pod = format!("pod-{what}");
            podman.podman(&["pod", "create", "--name", &pod, "--infra=false", "--label", "tier=front"])?;
            let name = format!("fields-{what}-{}", std::process::id());
            let identity =
                ["--name", &name, "--label", "tier=test", "--annotation", "note=this", "--env", "STAGE=blue"];
            let setup = ["--volume", "/proc:/data:ro", "--memory", "64m", "--pod", &pod];
            let net = ["--network", &network, "--publish", "127.0.0.1::80"];
            let health = ["--health-cmd", "CMD-SHELL true", "--health-interval", "disable"];
            let id = podman.make("run", &[&["--detach"], &identity[..], &setup, &net, &health].concat(), SLEEP)?;
            podman.podman(&["healthcheck", "run", &id])?;
            let subject = Subject::new(what, id, "podman", &[])?;
            Ok(if has_service { subject } else { subject.without(&["P"]) })
        };
        let before = run(BEFORE)?;
        let daemon = Daemon::start(CONFIG)?;
        check(&daemon, &[before, run(AFTER)?], |subject| podman.podman(&["kill", &subject.id]).map(drop))?;
    }
    Ok(())
}

#[test]
fn pods_of_containerds_have_the_fields_of_the_table() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    require!(requirement::program("containerd"), requirement::program("ctr"), requirement::program("runc"));
    let containerd = Containerd::start_with_cri()?;
    let mut kubelet = Kubelet::connect(&containerd)?;
    let mut run = |what: &'static str| -> Result<(Pod, Subject)> {
        let pod = kubelet.run_pod_with(
            "shop",
            &format!("{what}-{}", std::process::id()),
            PodOptions { port: Some((0, 80)), ..PodOptions::default() },
        )?;
        let options = ContainerOptions {
            mount: Some(("/proc", "/data")),
            memory: 64 << 20,
            env: &[("STAGE", "blue")],
            ..ContainerOptions::default()
        };
        let id = kubelet.start_with(&pod, "front", SLEEP, options)?;
        Ok((pod, Subject::new(what, id, "pods under containerd", &[])?))
    };
    let (_, before) = run(BEFORE)?;
    let daemon = Daemon::start(CONFIG)?;
    let (_, after) = run(AFTER)?;
    check(&daemon, &[before, after], |subject| {
        containerd.ctr("k8s.io", &["tasks", "kill", "--signal", "SIGKILL", &subject.id]).map(drop)
    })
}
