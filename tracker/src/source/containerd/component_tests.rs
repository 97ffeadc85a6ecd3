//! The source against a fake containerd: what it states, what it asks, and what it survives.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use containerd_client::events::TaskExit;
use prost_types::Any;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::fake::{Containerd, Manner, container, socket};
use super::*;
use crate::collection::door::{Deliveries, Delivery};
use crate::container::{ContainerKey, Kind, State};
use crate::fact::{Fact, Statement, What};
use crate::source::health::Condition;

/// Longer than anything here takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The source, running, and what it has stated so far.
struct Watched {
    deliveries: Deliveries,
    stated: HashMap<String, Statement>,
    live: bool,
    health: HealthBoard,
    images: Images,
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
        let (facts, deliveries) = Facts::queue();
        let (health, stats, cancel) = (HealthBoard::new(), Arc::new(Stats::default()), CancellationToken::new());
        let images = Images::default();
        let (_, sockets) = watch::channel(config.endpoints().into());
        let task = tokio::spawn(run(
            config,
            EnvAllow::default(),
            sockets,
            facts,
            health.clone(),
            images.clone(),
            Arc::clone(&stats),
            cancel.clone(),
        ));
        Self { deliveries, stated: HashMap::new(), live: false, health, images, stats, cancel, task }
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
            panic!("not in time: {what}; stated {:#?}, health {:?}", self.stated, self.health.lines());
        }
    }

    async fn until_state(&mut self, key: &str, state: State) -> Statement {
        self.until(key, |it| it.stated.get(key).is_some_and(|stated| stated.state == Some(state))).await;
        self.stated[key].clone()
    }

    async fn until_condition(&mut self, condition: Condition, detail: &str) {
        self.until(detail, |it| {
            it.health.lines().iter().any(|line| line.condition == condition && line.detail.contains(detail))
        })
        .await;
    }

    fn take(&mut self, fact: Fact) {
        assert_eq!(fact.source, Source::Containerd);
        let shown = |key: &ContainerKey| key.to_string();
        match fact.what {
            What::Stated { key, statement } => drop(self.stated.insert(shown(&key), *statement)),
            What::Withdrawn { key } => drop(self.stated.remove(&shown(&key))),
            What::Listed { scope, keys } => {
                let keys: Vec<_> = keys.iter().map(shown).collect();
                let of_scope = |key: &String| key.rsplit_once('/').is_some_and(|(of, _)| of == &*scope);
                self.stated.retain(|key, _| !of_scope(key) || keys.contains(key));
            }
            What::Live(live) => self.live = live,
            other => panic!("containerd does not state {other:?}"),
        }
    }

    async fn stop(self) {
        self.cancel.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn containers_from_before_and_new_ones_come_out_alike() {
    let (_directory, path) = socket();
    let containerd = Containerd::default();
    containerd.put("sha256:index", r#"{"manifests":[{"digest":"sha256:manifest"}]}"#);
    containerd.put("sha256:manifest", r#"{"config":{"digest":"sha256:config"}}"#);
    containerd.tag("k8s.io", "bb:1", "sha256:index");
    let labels = [("io.cri-containerd.kind", "container"), ("io.kubernetes.container.name", "web")];
    containerd.create("k8s.io", container("before", "bb:1", &labels));
    containerd.start("k8s.io", "before", 4_000_001);
    let _fake = containerd.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until_state("containerd/k8s.io/before", State::Running).await;
    watched.until("live", |it| it.live).await;

    containerd.create("k8s.io", container("after", "bb:1", &labels));
    watched.until_state("containerd/k8s.io/after", State::Created).await;
    containerd.start("k8s.io", "after", 4_000_002);
    let after = watched.until_state("containerd/k8s.io/after", State::Running).await;
    assert_eq!(after.bundle.as_deref(), Some("/run/bundles/k8s.io/after"));
    assert!(after.started_at.is_some());

    let before = watched.stated["containerd/k8s.io/before"].clone();
    assert_eq!((before.name.as_deref(), before.kind), (Some("web"), Some(Kind::Container)));
    let image = before.image.as_ref().unwrap();
    assert_eq!((image.id.as_deref(), image.digest.as_deref()), (Some("sha256:config"), Some("sha256:index")));
    // What only an event tells is all that differs.
    let told = |statement: Statement| Statement { bundle: None, started_at: None, ..statement };
    assert_eq!(told(before), told(after));
    watched.stop().await;
}

#[tokio::test]
async fn an_image_s_blobs_are_read_once_however_often_images_are_listed() {
    let (_directory, path) = socket();
    let containerd = Containerd::default();
    let _fake = containerd.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until("live", |it| it.live).await;
    containerd.put("sha256:m", r#"{"config":{"digest":"sha256:config"}}"#);
    containerd.put("sha256:config", r#"{"os":"linux","architecture":"amd64"}"#);
    for name in ["bb:1", "bb:2", "bb:3"] {
        containerd.tag("default", name, "sha256:m");
        // Each is a list of its own.
        let is_listed = |it: &Watched| it.images.all().iter().any(|image| image.names.iter().any(|of| **of == *name));
        watched.until(name, is_listed).await;
    }
    let image = &watched.images.all()[0];
    assert_eq!((image.id.as_deref(), image.platform.as_deref()), (Some("sha256:config"), Some("linux/amd64")));
    // The manifest and the config.
    assert_eq!(watched.stats.calls_catalog.load(Relaxed), 2);
    watched.stop().await;
}

#[tokio::test]
async fn a_thousand_containers_are_told_whole_with_four_calls_in_flight_there_before_or_new() {
    let (_directory, path) = socket();
    let containerd = Containerd::default();
    containerd.put("sha256:index", r#"{"manifests":[{"digest":"sha256:manifest"}]}"#);
    containerd.put("sha256:manifest", r#"{"config":{"digest":"sha256:config"}}"#);
    containerd.put("sha256:config", r#"{"os":"linux","architecture":"amd64"}"#);
    containerd.tag("k8s.io", "docker.io/library/busybox:test", "sha256:index");
    let begin = |id: &str| {
        containerd.replay("k8s.io", id);
        // More than a pid can be.
        containerd.start("k8s.io", id, 5_000_000);
    };
    let number = 1_000_usize;
    (0..number).for_each(|n| begin(&format!("before-{n}")));
    // As long as a real one takes: whoever asks for more at a time does so now.
    containerd.answer("", Manner::Late(Duration::from_millis(2)));
    let _fake = containerd.serve(&path);
    let mut watched = Watched::on(&path);
    let is_told = |told: &Statement| {
        told.state == Some(State::Running) && told.image.as_ref().is_some_and(|image| image.id.is_some())
    };
    let all = |number| move |it: &Watched| it.live && it.stated.len() == number && it.stated.values().all(is_told);
    watched.until("all from before", all(number)).await;
    assert_eq!(containerd.calls("Containers.Get"), 0, "a list tells all of them");
    (0..number).for_each(|n| begin(&format!("new-{n}")));
    watched.until("all new ones", all(2 * number)).await;
    let told = containerd.calls("Containers.Get");
    // A list that was asked for before one was made costs that one another call.
    assert!((1..=2 * number as u32).contains(&told), "{told} calls for {number} new ones");

    for (key, told) in &watched.stated {
        assert_eq!((told.kind, told.name.as_deref(), told.task), (Some(Kind::Container), Some("front"), None), "{key}");
        let pod = told.pod.as_ref().unwrap();
        assert_eq!((pod.name.as_deref(), pod.namespace.as_deref()), (Some("web"), Some("shop")));
        assert!(pod.uid.is_some() && pod.sandbox_id.is_some() && told.annotations.is_some(), "{key}");
        let image = told.image.as_ref().unwrap();
        assert_eq!((image.id.as_deref(), image.digest.as_deref()), (Some("sha256:config"), Some("sha256:index")));
        let runtime = told.runtime.as_ref().unwrap();
        assert_eq!((runtime.handler.as_deref(), runtime.oci.as_deref()), (Some("io.containerd.runc.v2"), Some("runc")));
        let details = told.details.as_ref().unwrap();
        assert!(details.mounts.is_some() && details.resources.as_ref().is_some_and(|it| it.memory == Some(64 << 20)));
    }
    // For all that are made from an image, not for each.
    assert!(containerd.calls("Content.Read") <= 20, "{} blobs", containerd.calls("Content.Read"));
    // On a slow machine, a list of tasks is left waiting beside them.
    let most = containerd.most_in_flight();
    assert!((2..=5).contains(&most), "{most} calls in flight");
    watched.stop().await;
}

#[tokio::test]
async fn a_life_costs_one_call_and_ends_withdrawn() {
    let (_directory, path) = socket();
    let containerd = Containerd::default();
    let _fake = containerd.serve(&path);
    let mut watched = Watched::on(&path);
    // A list that was asked for before a container was made does not have it, which costs that one another call.
    watched.until("its second list is over", |it| it.live && it.stats.lists.load(Relaxed) >= 2).await;
    containerd.put("sha256:m", r#"{"config":{"digest":"sha256:config"}}"#);
    containerd.tag("default", "bb:1", "sha256:m");
    let lives = 50;
    for n in 0..lives {
        let id = format!("c{n}");
        let key = format!("containerd/default/{id}");
        containerd.create("default", container(&id, "bb:1", &[]));
        watched.until_state(&key, State::Created).await;
        containerd.start("default", &id, 4_000_000 + n);
        // Somebody looks into it, and leaves again.
        let exec = TaskExit { container_id: id.clone(), id: "shell".into(), pid: 5, exit_status: 1, exited_at: None };
        containerd.announce("default", &exec);
        watched.until_state(&key, State::Running).await;
        // Some programs keep their notes in labels, and change them often.
        containerd.label("default", &id, &[("nerdctl/name", "noted")]);
        watched.until("noted", |it| it.stated[&key].name.as_deref() == Some("noted")).await;
        containerd.end("default", &id, 137);
        let exited = watched.until_state(&key, State::Exited).await;
        assert_eq!(exited.exit.map(|exit| exit.code), Some(137));
        assert!(exited.exited_at >= exited.started_at);
        containerd.delete("default", &id);
        watched.until("withdrawn", |it| !it.stated.contains_key(&key)).await;
    }
    // More where a slow machine had it list again meanwhile, which the counts of lists and of images' names show.
    let lists = watched.stats.lists.load(Relaxed);
    let [records, names] = ["Containers.Get", "Images.Get"].map(|call| containerd.calls(call));
    assert!(records == lives || lists > 2 && records <= 3 * lives, "{records} for {lives}, {lists} lists");
    assert!(names == 1 || lists > 2, "{names} names, {lists} lists");
    // The image's name and its manifest; the list of what is stored reads for itself, and only what is new.
    assert_eq!(watched.stats.calls_image.load(Relaxed), u64::from(names) + 1);
    assert_eq!(watched.stats.exec_exits.load(Relaxed), u64::from(lives));
    watched.stop().await;
}

#[tokio::test]
async fn an_image_that_is_tagged_anew_is_asked_for_anew() {
    let (_directory, path) = socket();
    let containerd = Containerd::default();
    let _fake = containerd.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until("live", |it| it.live).await;
    for (id, digest) in [("first", "sha256:1"), ("second", "sha256:2")] {
        containerd.put(digest, r#"{"config":{"digest":"sha256:config"}}"#);
        containerd.tag("default", "bb:latest", digest);
        containerd.create("default", container(id, "bb:latest", &[]));
        let statement = watched.until_state(&format!("containerd/default/{id}"), State::Created).await;
        assert_eq!(statement.image.unwrap().digest.as_deref(), Some(digest));
    }
    containerd.create("default", container("third", "gone:1", &[]));
    let statement = watched.until_state("containerd/default/third", State::Created).await;
    assert_eq!(statement.missing.iter().filter(|(field, _)| *field == "image.id").count(), 1);
    watched.stop().await;
}

#[tokio::test]
async fn a_namespace_created_later_is_followed() {
    let (_directory, path) = socket();
    let containerd = Containerd::default();
    let _fake = containerd.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until("live", |it| it.live).await;
    containerd.create("later", container("c1", "", &[]));
    watched.until_state("containerd/later/c1", State::Created).await;
    watched.stop().await;
}

#[tokio::test]
async fn a_daemon_that_comes_late_is_killed_and_comes_back_changed_is_followed() {
    let (_directory, path) = socket();
    let mut watched = Watched::on(&path);
    watched.until_condition(Condition::Waiting, "connect to").await;
    let containerd = Containerd::default();
    containerd.create("default", container("stays", "", &[]));
    containerd.create("default", container("goes", "", &[]));
    containerd.create("other", container("goes-too", "", &[]));
    containerd.start("default", "stays", 4_000_001);
    let fake = containerd.serve(&path);
    watched.until("three", |it| it.stated.len() == 3 && it.live).await;

    let containerd = fake.kill();
    watched.until("not live", |it| !it.live).await;
    assert_eq!(watched.stated.len(), 3, "a daemon's death is not its containers'");
    containerd.delete("default", "goes");
    containerd.delete("other", "goes-too");
    containerd.create("default", container("comes", "", &[]));
    let _fake = containerd.serve(&path);
    watched.until("live again", |it| it.live && it.stated.contains_key("containerd/default/comes")).await;
    watched.until("two", |it| it.stated.len() == 2).await;
    assert_eq!(watched.stated["containerd/default/stays"].state, Some(State::Running));
    watched.stop().await;
}

#[tokio::test]
async fn an_event_stream_that_ends_is_asked_for_again() {
    let (_directory, path) = socket();
    let containerd = Containerd::default();
    let _fake = containerd.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until("live", |it| it.live).await;
    containerd.end_streams();
    containerd.create("default", container("missed", "", &[]));
    watched.until_state("containerd/default/missed", State::Created).await;
    assert!(watched.stats.sessions_lost.load(Relaxed) >= 1);
    watched.stop().await;
}

#[tokio::test]
async fn a_daemon_that_falls_silent_is_noticed_and_survived() {
    let (_directory, path) = socket();
    let containerd = Containerd::default();
    let _fake = containerd.serve(&path);
    let mut watched = Watched::with(Config { call_deadline_ms: 300, ..Watched::config(&path) });
    watched.until("live", |it| it.live).await;
    containerd.answer("", Manner::Silent);
    watched.until_condition(Condition::Waiting, "Version: no answer within 300ms").await;
    watched.until("not live", |it| !it.live).await;
    containerd.answer("", Manner::Proper);
    watched.until("live", |it| it.live).await;
    watched.stop().await;
}

#[tokio::test]
async fn a_socket_that_is_replaced_under_a_living_daemon_is_noticed() {
    let (_directory, path) = socket();
    let old = Containerd::default();
    let _old = old.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until("live", |it| it.live).await;
    let new = Containerd::default();
    new.create("default", container("on-the-new-one", "", &[]));
    let _new = new.serve(&path);
    watched.until_state("containerd/default/on-the-new-one", State::Created).await;
    watched.stop().await;
}

#[tokio::test]
async fn a_peer_that_speaks_no_grpc_is_waited_for() {
    let (_directory, path) = socket();
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = (&stream).write_all(b"SSH-2.0-OpenSSH_9.2\r\n\0\0\0\x7f");
        }
    });
    let mut watched = Watched::on(&path);
    watched.until_condition(Condition::Waiting, "").await;
    watched.stop().await;
}

#[tokio::test]
async fn garbage_costs_what_it_describes_and_nothing_else() {
    let (_directory, path) = socket();
    let containerd = Containerd::default();
    containerd.create("default", container("before", "", &[]));
    containerd.answer("Containers.ListStream", Manner::Garbage);
    let _fake = containerd.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until_condition(Condition::Degraded, "Containers.ListStream").await;

    containerd.announce_any("default", Any { type_url: "containerd.events.TaskExit".into(), value: vec![0x0a, 9] });
    containerd.answer("Containers.Get", Manner::Garbage);
    containerd.create("default", container("unreadable", "", &[]));
    let statement = watched.until_state("containerd/default/unreadable", State::Created).await;
    assert_eq!(statement.missing.first().map(|(field, _)| *field), Some("labels"));
    assert_eq!(watched.stats.events_garbled.load(Relaxed), 1);

    containerd.answer("Containers.Get", Manner::Proper);
    containerd.create("default", container("readable", "", &[]));
    watched.until_state("containerd/default/readable", State::Created).await;
    watched.stop().await;
}

#[tokio::test]
async fn hostile_labels_are_left_out_and_counted() {
    let (_directory, path) = socket();
    let containerd = Containerd::default();
    let many: Vec<_> = (0..5_000).map(|n| (format!("key-{n}"), "v")).collect();
    let many: Vec<_> = many.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    let long = "x".repeat(1 << 20);
    let hostile = [("long", long.as_str()), ("bell", "\u{7}\n\u{1b}[2J")];
    containerd.create("default", container("many", "", &many));
    let _fake = containerd.serve(&path);
    let mut watched = Watched::on(&path);
    let statement = watched.until_state("containerd/default/many", State::Created).await;
    let kept = statement.labels.unwrap().len() as u64;
    assert_eq!(watched.stats.left_out.load(Relaxed), 5_000 - kept);

    watched.until("live", |it| it.live).await;
    containerd.create("default", container("long", "", &hostile));
    let statement = watched.until_state("containerd/default/long", State::Created).await;
    let labels = statement.labels.unwrap();
    assert_eq!((labels.get("bell").map(|value| &**value), labels.len()), (Some(hostile[1].1), 1));
    assert!(statement.missing.iter().any(|(field, _)| *field == "labels"));
    watched.stop().await;
}

#[tokio::test]
async fn a_shim_that_hangs_costs_the_tasks_and_not_the_containers() {
    let (_directory, path) = socket();
    let containerd = Containerd::default();
    containerd.create("default", container("c1", "", &[]));
    containerd.start("default", "c1", 4_000_001);
    containerd.answer("Tasks.List", Manner::Silent);
    let _fake = containerd.serve(&path);
    let mut watched = Watched::with(Config { list_deadline_ms: 600, ..Watched::config(&path) });
    let statement = watched.until_state("containerd/default/c1", State::Created).await;
    assert!(statement.missing.iter().any(|(field, _)| *field == "task"));
    watched.until("live", |it| it.live).await;
    containerd.answer("Tasks.List", Manner::Proper);
    let statement = watched.until_state("containerd/default/c1", State::Running).await;
    assert!(statement.missing.is_empty(), "{:?}", statement.missing);
    watched.stop().await;
}

#[tokio::test]
async fn tasks_that_are_listed_late_are_told_late() {
    let (_directory, path) = socket();
    let containerd = Containerd::default();
    for (id, pid) in [("quiet", 4_000_001), ("ends", 4_000_002)] {
        containerd.create("default", container(id, "", &[]));
        containerd.start("default", id, pid);
    }
    containerd.answer("Tasks.List", Manner::Late(Duration::from_millis(450)));
    let _fake = containerd.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until_state("containerd/default/quiet", State::Created).await;
    watched.until("live", |it| it.live).await;
    containerd.end("default", "ends", 0);
    let running = watched.until_state("containerd/default/quiet", State::Running).await;
    assert!(running.missing.is_empty());
    watched.until_state("containerd/default/ends", State::Exited).await;
    watched.stop().await;
}

#[tokio::test]
async fn an_expected_socket_is_reported_and_an_optional_one_is_not() {
    let (directory, path) = socket();
    let optional = directory.path().join("k3s.sock");
    let mut watched = Watched::with(Config {
        sockets: vec![path.clone()],
        sockets_if_present: vec![optional.clone()],
        backoff_first_ms: 10,
        backoff_cap_ms: 50,
        ..Config::default()
    });
    watched.until_condition(Condition::Waiting, "containerd.sock").await;
    assert_eq!(watched.health.lines().len(), 1);
    let k3s = Containerd::default();
    k3s.create("k8s.io", container("c1", "", &[]));
    let _fake = k3s.serve(&optional);
    watched.until_state("containerd/k8s.io/c1", State::Created).await;
    assert_eq!(watched.health.lines().len(), 2);
    watched.stop().await;
}
