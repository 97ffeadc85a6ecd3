//! The source against a stand-in for dockerd: what it asks, and what it survives. What the stand-in answers was recorded
//! from a real one (20.10).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Mutex as Lock;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use super::*;
use crate::collection::door::{Deliveries, Delivery};
use crate::container::{ContainerKey, Health, State};
use crate::fact::{Fact, Statement, What};
use crate::source::health::Condition;
use crate::source::task::Task;

/// Longer than anything here takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// How the stand-in answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Manner {
    #[default]
    Well,
    /// It accepts, reads, and never answers.
    Never,
    /// What it answers is not even HTTP.
    Garbage,
    /// It calls itself something else.
    Stranger,
}

#[derive(Default)]
struct World {
    manner: Manner,
    /// In a list, and by themselves; `None` for one that is gone when it is asked for.
    containers: BTreeMap<String, (Value, Option<Value>)>,
    /// Inspections of these are never answered.
    stuck: Vec<String>,
    /// Inspections of these are answered when all of them have been asked for.
    together: Vec<String>,
    /// How often each was asked for.
    inspected: HashMap<String, usize>,
    /// What its names for OCI runtimes mean.
    runtimes: Value,
    calls: HashMap<&'static str, usize>,
    in_flight: usize,
    most_in_flight: usize,
}

/// A stand-in for dockerd.
#[derive(Clone)]
struct Fake {
    // Protects what it has; held for an answer's making.
    world: Arc<Lock<World>>,
    events: broadcast::Sender<String>,
}

impl Fake {
    fn new() -> Self {
        Self { world: Arc::default(), events: broadcast::channel(1024).0 }
    }

    fn with<T>(&self, work: impl FnOnce(&mut World) -> T) -> T {
        work(&mut self.world.lock().unwrap())
    }

    /// Answers on `path` until the task is aborted.
    fn serve(&self, path: &Path) -> JoinHandle<()> {
        let (listener, fake) = (UnixListener::bind(path).unwrap(), self.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = fake.clone();
                tokio::spawn(async move { fake.answer(stream).await });
            }
        })
    }

    async fn answer(&self, mut stream: UnixStream) -> std::io::Result<()> {
        let mut request = vec![];
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await?);
        }
        let request = String::from_utf8(request).unwrap();
        let path = request.split(' ').nth(1).unwrap_or_default();
        match self.with(|world| world.manner) {
            Manner::Never => return std::future::pending().await,
            Manner::Garbage => return stream.write_all(b"\x00\x01 220 mail.example ESMTP\r\n").await,
            Manner::Well | Manner::Stranger => {}
        }
        if path == "/_ping" {
            self.count("ping");
            let server =
                if self.with(|world| world.manner) == Manner::Stranger { "Libpod/4.3.1" } else { "Docker/20.10.24" };
            let head = format!(
                "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nServer: {server} (linux)\r\nContent-Length: 2\r\n\r\nOK"
            );
            return stream.write_all(head.as_bytes()).await;
        }
        let path = path.strip_prefix("/v1.41").expect("the version that the stand-in speaks");
        if path.starts_with("/events?filters=") {
            let mut events = self.events.subscribe();
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").await?;
            while let Ok(event) = events.recv().await {
                stream.write_all(event.as_bytes()).await?;
            }
            return Ok(());
        }
        self.with(|world| {
            world.in_flight += 1;
            world.most_in_flight = world.most_in_flight.max(world.in_flight);
        });
        let answer = self.resource(path).await;
        // Others may be asked for meanwhile.
        tokio::task::yield_now().await;
        self.with(|world| world.in_flight -= 1);
        let (status, body) = match answer {
            Some(body) => ("200 OK", body),
            None => ("404 Not Found", json!({ "message": "No such container" })),
        };
        let body = body.to_string();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await
    }

    async fn resource(&self, path: &str) -> Option<Value> {
        if path.starts_with("/containers/json") {
            self.count("list");
            return Some(self.with(|world| world.containers.values().map(|(summary, _)| summary.clone()).collect()));
        }
        if path == "/images/json" {
            return Some(json!([{ "Id": IMAGE_ID, "RepoTags": ["bb:1"], "RepoDigests": ["bb@sha256:d"], "Size": 7 }]));
        }
        if path == format!("/images/{}/json", IMAGE_ID.replace(':', "%3A")) {
            self.count("image");
            return Some(json!({ "Id": IMAGE_ID, "Os": "linux", "Architecture": "amd64", "Variant": "" }));
        }
        if path == "/info" {
            self.count("info");
            return Some(self.with(|world| json!({ "ID": "x", "Runtimes": world.runtimes })));
        }
        let id = path.strip_prefix("/containers/")?.strip_suffix("/json")?;
        self.count("inspect");
        self.with(|world| *world.inspected.entry(id.to_owned()).or_default() += 1);
        let is_awaited = |world: &mut World| world.together.iter().any(|other| !world.inspected.contains_key(other));
        if self.with(|world| world.together.iter().any(|other| other == id)) {
            while self.with(is_awaited) {
                tokio::task::yield_now().await;
            }
        }
        if self.with(|world| world.stuck.iter().any(|stuck| stuck == id)) {
            std::future::pending::<()>().await;
        }
        self.with(|world| world.containers.get(id)?.1.clone())
    }

    fn count(&self, call: &'static str) {
        self.with(|world| *world.calls.entry(call).or_default() += 1);
    }

    fn calls(&self, call: &'static str) -> usize {
        self.with(|world| world.calls.get(call).copied().unwrap_or(0))
    }

    /// One more container like the recorded one.
    fn put(&self, id: &str, change: impl FnOnce(&mut Value, &mut Value)) {
        let mut summary: Value = serde_json::from_str(SUMMARY).unwrap();
        let mut inspection: Value = serde_json::from_str(INSPECTION).unwrap();
        (summary["Id"], inspection["Id"]) = (id.into(), id.into());
        (summary["Names"], inspection["Name"]) = (json!([format!("/{id}")]), format!("/{id}").into());
        // More than a pid can be: the recorded one may be somebody's here.
        inspection["State"]["Pid"] = 5_000_000.into();
        change(&mut summary, &mut inspection);
        self.with(|world| world.containers.insert(id.to_owned(), (summary, Some(inspection))));
    }

    fn tell(&self, id: &str, action: &str, attributes: Value) {
        let event = json!({
            "status": action, "id": id, "Type": "container", "Action": action,
            "Actor": { "ID": id, "Attributes": attributes }, "scope": "local",
        });
        // Nobody may listen at present.
        let _ = self.events.send(format!("{event}\n"));
    }
}

const SUMMARY: &str = include_str!("recorded/summary.json");
const INSPECTION: &str = include_str!("recorded/inspection.json");
const IMAGE_ID: &str = "sha256:d4ac81df658d03cc0d8c30c3d7f50eb0bdf31ddbc2b2277431b3dd621631f045";

/// The source, running, and what it has stated so far.
struct Watched {
    deliveries: Deliveries,
    stated: HashMap<String, Statement>,
    live: bool,
    health: HealthBoard,
    stats: Arc<Stats>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Watched {
    fn on(path: &Path) -> Self {
        Self::with(Self::config(path))
    }

    /// Patient where a slow machine would be, quick where waiting is what is tested.
    fn config(path: &Path) -> Config {
        Config {
            sockets: vec![path.into()],
            sockets_if_present: vec![],
            call_deadline_ms: 10_000,
            list_deadline_ms: 10_000,
            alive_interval_ms: 200,
            backoff_first_ms: 10,
            backoff_cap_ms: 100,
            ..Config::default()
        }
    }

    fn with(config: Config) -> Self {
        let endpoints = config.endpoints();
        Self::following(config, endpoints)
    }

    fn following(config: Config, endpoints: Vec<Endpoint>) -> Self {
        let (facts, deliveries) = Facts::queue();
        let (health, stats, cancel) = (HealthBoard::new(), Arc::new(Stats::default()), CancellationToken::new());
        let (_, sockets) = watch::channel(endpoints.into());
        let (env, images) = (EnvAllow::default(), Images::default());
        let source = run(config, env, sockets, facts, health.clone(), images, Arc::clone(&stats), cancel.clone());
        let task = tokio::spawn(source);
        Self { deliveries, stated: HashMap::new(), live: false, health, stats, cancel, task }
    }

    /// Waits until what was stated is as it should be.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let wait = async {
            while !is_so(self) {
                // The health board has no feed: it is looked at from time to time.
                tokio::select! {
                    delivery = self.deliveries.next() => match delivery {
                        Some(Delivery::Facts(facts)) => facts.into_iter().for_each(|fact| self.take(fact)),
                        other => panic!("a source that follows does not deliver {other:?}"),
                    },
                    () = tokio::time::sleep(Duration::from_millis(10)) => {}
                }
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("not in time: {what}; {} stated, health {:?}", self.stated.len(), self.health.lines());
        }
    }

    async fn until_stated(&mut self, id: &str, is_so: impl Fn(&Statement) -> bool) -> Statement {
        self.until(id, |it| it.stated.get(id).is_some_and(&is_so)).await;
        self.stated[id].clone()
    }

    async fn until_condition(&mut self, condition: Condition, detail: &str) {
        let is_so = |it: &Self| {
            it.health.lines().iter().any(|line| line.condition == condition && line.detail.contains(detail))
        };
        self.until(detail, is_so).await;
    }

    fn take(&mut self, fact: Fact) {
        assert_eq!(fact.source, Source::Docker);
        let shown = |key: &ContainerKey| {
            assert_eq!(&*key.scope, "containerd/moby");
            match key.domain {
                Domain::Host => key.id.to_string(),
                Domain::User(_) => format!("user's {}", key.id),
                Domain::Container(_) => format!("inner {}", key.id),
            }
        };
        match fact.what {
            What::Stated { key, statement } => drop(self.stated.insert(shown(&key), *statement)),
            What::Withdrawn { key } => drop(self.stated.remove(&shown(&key))),
            What::Listed { keys, .. } => {
                let keys: Vec<_> = keys.iter().map(shown).collect();
                // As the collection takes it: a list is about the host's.
                self.stated.retain(|id, _| keys.contains(id) || id.contains(' '));
            }
            What::Live(live) => self.live = live,
            other => panic!("a runtime's source does not state {other:?}"),
        }
    }

    async fn stop(self) {
        self.cancel.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("it ends when it is told to").unwrap();
    }
}

fn socket() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sock");
    (directory, path)
}

fn is_inspected(statement: &Statement) -> bool {
    statement.details.as_ref().is_some_and(|details| details.privileged.is_some())
}

#[tokio::test]
async fn a_thousand_containers_are_told_whole_with_four_calls_in_flight() {
    let ((_directory, path), fake) = (socket(), Fake::new());
    let id = |n: usize| format!("{n:064x}");
    let address = |n: usize| format!("172.29.{}.{}", n / 250, n % 250 + 1);
    for n in 0..1_000 {
        fake.put(&id(n), |summary, inspection| {
            (summary["Names"], inspection["Name"]) = (json!([format!("/web{n}")]), format!("/web{n}").into());
            for told in [summary, inspection] {
                told["NetworkSettings"]["Networks"]["lab"]["IPAddress"] = address(n).into();
            }
        });
    }
    // The first ones are answered when as many are asked for at a time.
    fake.with(|world| world.together = (0..3).map(id).collect());
    let _serving = fake.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until("all are inspected", |it| it.stated.len() == 1_000 && it.stated.values().all(is_inspected)).await;
    for n in 0..1_000 {
        let statement = &watched.stated[&id(n)];
        assert_eq!(statement.name.as_deref(), Some(&*format!("web{n}")));
        assert_eq!((statement.state, statement.host_network), (Some(State::Running), Some(false)));
        assert!(statement.created_at.is_some() && statement.started_at.is_some());
        assert_eq!(statement.labels, Some([("a", "b")].into_iter().collect()));
        let image = statement.image.as_ref().unwrap();
        assert_eq!((image.name.as_deref(), image.id.as_deref()), (Some("busybox:test"), Some(IMAGE_ID)));
        assert_eq!(image.digest.as_deref(), Some("sha256:d"));
        let runtime = statement.runtime.as_ref().unwrap();
        assert_eq!((runtime.name.as_deref(), runtime.oci.as_deref()), (Some("docker"), Some("runc")));
        let details = statement.details.as_ref().unwrap();
        let addresses: Vec<_> = details.addresses.iter().flat_map(|all| all.iter()).collect();
        assert_eq!(addresses.iter().map(|it| it.ip.to_string()).collect::<Vec<_>>(), [&address(n), "fd00:77::2"]);
        let ports: Vec<_> = details.ports.iter().flat_map(|all| all.iter()).map(|it| (it.container, it.host)).collect();
        assert_eq!(ports, [(80, Some(18_080))], "once for both families");
        let mounts: Vec<_> = details.mounts.iter().flat_map(|all| all.iter()).map(|it| &*it.destination).collect();
        assert_eq!(mounts, ["/data", "/scratch"]);
        let limits = details.resources.as_ref().unwrap();
        assert_eq!((limits.cpu_millis, limits.memory, limits.pids), (Some(500), Some(64 << 20), Some(50)));
        assert_eq!((details.hostname.as_deref(), details.restart_count), (Some("webby"), Some(0)));
        assert_eq!(statement.task, None, "its pid is nobody's here");
    }
    assert_eq!(fake.calls("inspect"), 1_000);
    assert!(fake.with(|world| world.inspected.values().all(|calls| *calls == 1)), "each once");
    let most = fake.with(|world| world.most_in_flight);
    assert!((3..=4).contains(&most), "{most} calls at a time");
    watched.stop().await;
}

#[tokio::test]
async fn a_life_costs_one_call_and_ends_withdrawn() {
    let ((_directory, path), fake) = (socket(), Fake::new());
    let _serving = fake.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until("live", |it| it.live).await;
    let lives = 20;
    for n in 0..lives {
        let id = format!("c{n}");
        fake.tell(&id, "create", json!({ "name": "web", "image": "bb:1", "tier": "front" }));
        let created = watched.until_stated(&id, |it| it.state == Some(State::Created)).await;
        assert_eq!(created.labels, Some([("tier", "front")].into_iter().collect()));
        assert_eq!((created.name.as_deref(), is_inspected(&created)), (Some("web"), false));
        fake.put(&id, |_, _| ());
        fake.tell(&id, "start", json!({}));
        watched.until_stated(&id, is_inspected).await;
        fake.tell(&id, "exec_die", json!({ "exitCode": "1" }));
        fake.tell(&id, "pause", json!({}));
        watched.until_stated(&id, |it| it.state == Some(State::Paused)).await;
        fake.tell(&id, "unpause", json!({}));
        fake.tell(&id, "health_status: unhealthy", json!({}));
        let unwell =
            |it: &Statement| it.details.as_ref().is_some_and(|details| details.health == Some(Health::Unhealthy));
        watched.until_stated(&id, unwell).await;
        fake.tell(&id, "oom", json!({}));
        fake.tell(&id, "die", json!({ "exitCode": "137" }));
        let over = watched.until_stated(&id, |it| it.exit.is_some()).await;
        let exit = over.exit.unwrap();
        assert_eq!((over.state, exit.code, exit.oom), (Some(State::Exited), 137, Some(true)));
        fake.with(|world| drop(world.containers.remove(&id)));
        fake.tell(&id, "destroy", json!({}));
        watched.until("withdrawn", |it| !it.stated.contains_key(&id)).await;
    }
    assert_eq!((fake.calls("inspect"), fake.calls("image")), (lives, 1), "and one for its image's platform, for ever");
    watched.stop().await;
}

#[tokio::test]
async fn hostile_names_and_labels_are_kept_within_bounds() {
    let ((_directory, path), fake) = (socket(), Fake::new());
    let long = "x".repeat(1 << 20);
    fake.put("long", |summary, inspection| {
        let labels = json!({ "long": long, "bell": "\u{7}\n\u{1b}[2J", "name\u{0}": "v" });
        (summary["Labels"], inspection["Config"]["Labels"]) = (labels.clone(), labels);
        summary["Names"] = json!(["/a/link", "/be\u{1b}ll"]);
        inspection["Name"] = "/be\u{1b}ll".into();
    });
    fake.put("many", |summary, inspection| {
        let labels: Value =
            (0..5_000).map(|n| (format!("key-{n}"), Value::from("v"))).collect::<serde_json::Map<_, _>>().into();
        (summary["Labels"], inspection["Config"]["Labels"]) = (labels.clone(), labels);
        inspection["Mounts"] =
            (0..5_000).map(|n| json!({ "Source": "/x", "Destination": format!("/{n}"), "RW": true })).collect();
    });
    fake.put("huge", |summary, _| summary["Command"] = "x".repeat(9 << 20).into());
    fake.put("odd", |summary, _| summary["State"] = json!(["not", "text"]));
    fake.put("../../etc", |_, _| ());
    let _serving = fake.serve(&path);
    let mut watched = Watched::on(&path);
    let told = watched.until_stated("long", is_inspected).await;
    assert_eq!(told.name.as_deref(), Some("be\u{1b}ll"), "data here: whoever prints it escapes it");
    let labels = told.labels.unwrap();
    assert_eq!((labels.len(), labels.contains_key("long")), (2, false));
    assert!(
        told.missing.iter().any(|(field, reason)| *field == "labels" && reason.contains('1')),
        "{:?}",
        told.missing
    );
    let many = watched.until_stated("many", is_inspected).await;
    assert_eq!((many.labels.unwrap().len(), many.details.unwrap().mounts.unwrap().len()), (256, 256));
    watched.until_condition(Condition::Degraded, "2 containers that cannot be read").await;
    assert_eq!(watched.stated.len(), 2);
    watched.stop().await;
}

#[tokio::test]
async fn one_that_is_gone_or_stuck_costs_no_other() {
    let ((_directory, path), fake) = (socket(), Fake::new());
    ["gone", "stuck", "well"].into_iter().for_each(|id| fake.put(id, |_, _| ()));
    fake.with(|world| {
        world.stuck.push("stuck".into());
        world.containers.get_mut("gone").unwrap().1 = None;
    });
    let _serving = fake.serve(&path);
    let mut watched = Watched::with(Config { call_deadline_ms: 300, ..Watched::config(&path) });
    watched.until_stated("well", is_inspected).await;
    // The list tells of both all the same.
    let told =
        |it: &Statement| it.missing.iter().any(|(field, reason)| *field == "details" && reason.contains("no answer"));
    let stuck = watched.until_stated("stuck", told).await;
    assert_eq!((stuck.name.as_deref(), stuck.state), (Some("stuck"), Some(State::Running)));
    assert!(watched.stated.contains_key("gone") && watched.live, "an event will say so");
    fake.with(|world| world.containers.remove("gone"));
    fake.tell("gone", "destroy", json!({}));
    watched.until("its removal", |it| !it.stated.contains_key("gone")).await;
    fake.with(|world| world.stuck.clear());
    let unstuck = watched.until_stated("stuck", is_inspected).await;
    assert_eq!(unstuck.missing.iter().filter(|(field, _)| *field == "details").count(), 0);
    watched.stop().await;
}

#[tokio::test]
async fn daemons_that_are_none_are_conditions() {
    let ((_directory, path), fake) = (socket(), Fake::new());
    fake.put("c1", |_, _| ());
    let mut watched = Watched::with(Config { call_deadline_ms: 200, ..Watched::config(&path) });
    watched.until_condition(Condition::Waiting, "connect to").await;
    fake.with(|world| world.manner = Manner::Never);
    let serving = fake.serve(&path);
    watched.until_condition(Condition::Waiting, "no answer within").await;
    fake.with(|world| world.manner = Manner::Garbage);
    watched.until_condition(Condition::Waiting, "connection lost").await;
    fake.with(|world| world.manner = Manner::Stranger);
    watched.until_condition(Condition::Refused, "it calls itself `Libpod").await;
    fake.with(|world| world.manner = Manner::Well);
    watched.until("it is live", |it| it.live && it.stated.contains_key("c1")).await;

    // It stops answering, its connection still open; and comes back as another, with other containers.
    fake.with(|world| world.manner = Manner::Never);
    watched.until("it is not live", |it| !it.live).await;
    assert!(watched.stated.contains_key("c1"), "what is known stays");
    serving.abort();
    std::fs::remove_file(&path).unwrap();
    let other = Fake::new();
    other.put("c2", |_, _| ());
    let _serving = other.serve(&path);
    watched.until("the other one's", |it| it.live && it.stated.keys().eq(["c2"])).await;
    watched.stop().await;
}

#[tokio::test]
async fn daemons_of_other_domains_speak_for_their_own_alone() {
    let directory = tempfile::tempdir().unwrap();
    // The stand-ins are this process: a user of that uid, and, as far as namespaces tell, in the container of that init.
    let own = Task::open(std::process::id()).unwrap().view().unwrap().task;
    let domains = [Domain::Host, Domain::User(nix::unistd::geteuid().as_raw()), Domain::Container(own)];
    let [host, users, inner] = [(); 3].map(|()| Fake::new());
    let mut endpoints = vec![];
    for (fake, domain) in [&host, &users, &inner].into_iter().zip(domains) {
        for id in ["same", "other"] {
            fake.put(id, |_, _| ());
        }
        let path = directory.path().join(endpoints.len().to_string());
        fake.serve(&path);
        endpoints.push(Endpoint { path, domain, is_expected: true });
    }
    let config = Config { audit_interval_ms: 1_000, ..Watched::config(directory.path()) };
    let mut watched = Watched::following(config, endpoints);
    let all = ["same", "other", "user's same", "user's other", "inner same", "inner other"];
    watched.until("all are inspected", |it| all.iter().all(|id| it.stated.get(*id).is_some_and(is_inspected))).await;

    // No event tells: the next list does.
    let forget = |fake: &Fake, id: &str| fake.with(|world| drop(world.containers.remove(id)));
    for (fake, gone) in [(&users, "user's other"), (&inner, "inner other"), (&host, "other")] {
        forget(fake, "other");
        watched.until(gone, |it| !it.stated.contains_key(gone)).await;
    }
    forget(&host, "same");
    watched.until("the host's", |it| !it.stated.contains_key("same")).await;
    assert_eq!(watched.stated.len(), 2, "the others of that id are there: {:?}", watched.stated.keys());
    watched.stop().await;
}

#[tokio::test]
async fn a_runtime_is_told_by_its_program_whatever_the_daemon_calls_it() {
    let ((_directory, path), fake) = (socket(), Fake::new());
    let run_by = |id: &str, runtime: &str| {
        fake.put(id, |_, inspection| inspection["HostConfig"]["Runtime"] = runtime.into());
    };
    let means = |path: &str| fake.with(|world| world.runtimes = json!({ "fast": { "path": path, "status": {} } }));
    for (id, name) in [("plain", "runc"), ("one", "fast"), ("two", "fast"), ("removed", "slow")] {
        run_by(id, name);
    }
    means("/opt/bin/crun");
    let _serving = fake.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until("all are inspected", |it| it.stated.len() == 4 && it.stated.values().all(is_inspected)).await;
    let oci = |it: &Statement| it.runtime.as_ref().and_then(|runtime| runtime.oci.as_deref().map(str::to_owned));
    let told = ["plain", "one", "two", "removed"].map(|id| oci(&watched.stated[id]));
    assert_eq!(told, [Some("runc"), Some("crun"), Some("crun"), None].map(|oci| oci.map(str::to_owned)));
    let [(field, reason)] = &watched.stated["removed"].missing[..] else { panic!("one reason") };
    assert_eq!((*field, reason.contains("`slow`")), ("runtime.oci", true));
    assert_eq!(fake.calls("info"), 1);

    means("/opt/bin/other");
    let reload = json!({ "Type": "daemon", "Action": "reload", "Actor": { "ID": "x" }, "scope": "local" });
    let _ = fake.events.send(format!("{reload}\n"));
    run_by("three", "fast");
    fake.tell("three", "start", json!({}));
    let three = watched.until_stated("three", is_inspected).await;
    assert_eq!((oci(&three).as_deref(), fake.calls("info")), (Some("other"), 2));
    watched.stop().await;
}

#[tokio::test]
async fn garbled_events_are_counted_and_left_out() {
    let ((_directory, path), fake) = (socket(), Fake::new());
    let _serving = fake.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until("live", |it| it.live).await;
    let labels = (0..5_000).map(|n| (format!("key-{n}"), "v".into())).collect::<serde_json::Map<String, Value>>();
    fake.tell("../x", "start", json!({}));
    fake.tell("long", "create", json!({ "name": "x".repeat(9 << 20) }));
    let _ = fake.events.send("{\"Type\":7}\n{\"Type\":\"container\"}\n".into());
    fake.tell("many", "create", Value::from(labels));
    let many = watched.until_stated("many", |_| true).await;
    assert_eq!(many.labels.unwrap().len(), 256);
    assert_eq!(watched.stats.events_garbled.load(Relaxed), 4);
    watched.stop().await;
}
