//! The source against a fake server: what it states, what it asks, and what it survives.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::fake::{Manner, Server, socket};
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
            poll_interval_ms: 100,
            alive_interval_ms: 100,
            backoff_first_ms: 10,
            backoff_cap_ms: 100,
            ..Config::default()
        }
    }

    fn with(config: Config) -> Self {
        let (facts, deliveries) = Facts::queue();
        let (health, stats, cancel) = (HealthBoard::new(), Arc::new(Stats::default()), CancellationToken::new());
        let (_, sockets) = watch::channel(config.endpoints(&[]).into());
        let task = tokio::spawn(run(
            config,
            EnvAllow::default(),
            sockets,
            None,
            facts,
            health.clone(),
            Arc::clone(&stats),
            cancel.clone(),
        ));
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
            panic!("not in time: {what}; stated {:#?}, health {:?}", self.stated.keys(), self.health.lines());
        }
    }

    async fn until_state(&mut self, id: &str, state: State) -> Statement {
        let key = format!("containerd/k8s.io/{id}");
        self.until(id, |it| it.stated.get(&key).is_some_and(|stated| stated.state == Some(state))).await;
        self.stated[&key].clone()
    }

    async fn until_gone(&mut self, id: &str) {
        let key = format!("containerd/k8s.io/{id}");
        self.until(id, |it| !it.stated.contains_key(&key)).await;
    }

    async fn until_condition(&mut self, condition: Condition, detail: &str) {
        self.until(detail, |it| {
            it.health.lines().iter().any(|line| line.condition == condition && line.detail.contains(detail))
        })
        .await;
    }

    fn take(&mut self, fact: Fact) {
        assert_eq!(fact.source, Source::Cri);
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
            other => panic!("a CRI server does not state {other:?}"),
        }
    }

    async fn stop(self) {
        self.cancel.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn pods_from_before_and_new_ones_come_out_alike() {
    let (_directory, path) = socket();
    let server = Server::new("1.6.20");
    server.run("s1", "10.0.0.1");
    server.start("s1", "before");
    let _fake = server.serve(&path);
    let mut watched = Watched::on(&path);
    let before = watched.until_state("before", State::Running).await;
    watched.until("live", |it| it.live).await;
    server.start("s1", "after");
    let after = watched.until_state("after", State::Running).await;
    assert_eq!((before.kind, before.name.as_deref()), (Some(Kind::Container), Some("name-of-before")));
    for statement in [&before, &after] {
        let pod = statement.pod.as_ref().unwrap();
        assert_eq!((pod.name.as_deref(), pod.uid.as_deref()), (Some("pod-s1"), Some("uid-s1")));
        assert_eq!(pod.sandbox_id.as_deref(), Some("s1"));
        assert_eq!(pod.labels.as_ref().and_then(|labels| labels.get("app")).map(|value| &**value), Some("s1"));
        let addresses = statement.details.as_ref().unwrap().addresses.as_ref().unwrap();
        assert_eq!(addresses[0].ip.to_string(), "10.0.0.1");
    }
    let named = |statement: Statement| Statement { name: None, ..statement };
    assert_eq!(named(before), named(after));
    assert_eq!(watched.until_state("s1", State::Running).await.kind, Some(Kind::Sandbox));
    // A server that gives each event to one caller alone is not asked for them.
    assert_eq!(server.calls("GetContainerEvents"), 0);
    watched.stop().await;
}

#[tokio::test]
async fn a_pod_of_one_costs_three_calls_and_ends_withdrawn() {
    let (_directory, path) = socket();
    let server = Server::new("2.1.0");
    let _fake = server.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until_condition(Condition::Live, "follows its events").await;
    let lives = 20;
    for life in 0..lives {
        let (pod, id) = (format!("s{life}"), format!("c{life}"));
        server.run(&pod, "10.0.0.1");
        watched.until_state(&pod, State::Running).await;
        server.start(&pod, &id);
        watched.until_state(&id, State::Running).await;
        server.end(&id, 137, "OOMKilled");
        let over = watched.until_state(&id, State::Exited).await;
        assert_eq!(over.exit.map(|exit| (exit.code, exit.oom)), Some((137, Some(true))));
        server.end_pod(&pod);
        let over = watched.until_state(&pod, State::Exited).await;
        assert!(over.details.unwrap().addresses.is_some(), "what its status told stays");
        server.remove(&id);
        server.remove_pod(&pod);
        watched.until_gone(&id).await;
        watched.until_gone(&pod).await;
    }
    assert_eq!([server.calls("ContainerStatus"), server.calls("PodSandboxStatus")], [2 * lives, lives]);
    assert_eq!([server.calls("ListContainers"), server.calls("GetContainerEvents")], [1, 1]);
    watched.stop().await;
}

#[tokio::test]
async fn a_thousand_containers_are_told_whole_with_four_calls_in_flight() {
    let (_directory, path) = socket();
    let server = Server::new("1.6.20");
    let pods = 500_usize;
    for pod in 0..pods {
        server.replay(&format!("s{pod}"), &[format!("c{pod}-0"), format!("c{pod}-1")]);
    }
    // As long as a real one takes: whoever asks for more at a time does so now.
    server.answer("", Manner::Late(Duration::from_millis(2)));
    let _fake = server.serve(&path);
    let rarely = Config { poll_interval_ms: 600_000, alive_interval_ms: 600_000, ..Watched::config(&path) };
    let mut watched = Watched::with(rarely);
    let is_told = |told: &Statement| told.details.as_ref().is_some_and(|details| details.addresses.is_some());
    watched.until("all are told", |it| it.stated.len() == 3 * pods && it.stated.values().all(is_told)).await;

    for pod in 0..pods {
        let sandbox_id = format!("s{pod}");
        let sandbox = &watched.stated[&format!("containerd/k8s.io/{sandbox_id}")];
        assert_eq!((sandbox.kind, sandbox.state), (Some(Kind::Sandbox), Some(State::Running)));
        let ports: Vec<_> =
            sandbox.details.iter().flat_map(|details| details.ports.iter()).flat_map(|all| all.iter()).collect();
        assert_eq!((ports.len(), ports[0].container, ports[0].host), (1, 80, Some(18_080)));
        for which in 0..2 {
            let told = &watched.stated[&format!("containerd/k8s.io/c{pod}-{which}")];
            assert_eq!((told.kind, told.state), (Some(Kind::Container), Some(State::Running)));
            assert_eq!((told.name.as_deref(), told.task), (Some("front"), None), "its pid is nobody's here");
            let of = told.pod.as_ref().unwrap();
            assert_eq!((of.name.as_deref(), of.namespace.as_deref()), (Some("web"), Some("shop")));
            assert_eq!((of.uid.as_deref(), of.sandbox_id.as_deref()), (Some("uid-of-shop-web"), Some(&*sandbox_id)));
            assert_eq!(of.labels, Some([("app", "web")].into_iter().collect()));
            assert_eq!(told.annotations, Some([("note/container", "front")].into_iter().collect()));
            let image = told.image.as_ref().unwrap();
            assert_eq!(image.name.as_deref(), Some("docker.io/library/busybox:test"));
            assert!(image.id.as_deref().is_some_and(|id| id.starts_with("sha256:")));
            assert_eq!(told.host_network, Some(false));
            let details = told.details.as_ref().unwrap();
            let addresses: Vec<_> =
                details.addresses.iter().flat_map(|all| all.iter()).map(|it| it.ip.to_string()).collect();
            assert_eq!((addresses, details.hostname.as_deref()), (vec!["192.0.2.1".to_owned()], Some("web")));
            assert_eq!((details.restart_count, details.privileged), (Some(3), Some(false)));
            let resources = details.resources.as_ref().unwrap();
            assert_eq!((resources.memory, resources.cpu_millis), (Some(64 << 20), Some(500)));
            assert_eq!(details.mounts.as_ref().unwrap().len(), 1);
        }
    }
    let calls =
        ["ContainerStatus", "PodSandboxStatus", "ListContainers", "ListPodSandbox"].map(|call| server.calls(call));
    assert_eq!(calls, [2 * pods as u32, pods as u32, 1, 1]);
    let most = server.most_in_flight();
    assert!((2..=4).contains(&most), "{most} calls in flight");
    watched.stop().await;
}

#[tokio::test]
async fn a_server_with_events_switched_off_is_polled() {
    let (_directory, path) = socket();
    let server = Server::new("2.1.0");
    server.answer("GetContainerEvents", Manner::Unknown);
    let _fake = server.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until_condition(Condition::Live, "listed every").await;
    server.run("s1", "");
    server.start("s1", "c1");
    watched.until_state("c1", State::Running).await;
    server.remove("c1");
    watched.until_gone("c1").await;
    watched.stop().await;
}

#[tokio::test]
async fn a_server_that_comes_late_is_killed_and_comes_back_newer_is_followed() {
    let (_directory, path) = socket();
    let mut watched = Watched::on(&path);
    watched.until_condition(Condition::Waiting, "connect to").await;
    let server = Server::new("1.6.20");
    server.run("s1", "10.0.0.1");
    for id in ["stays", "goes"] {
        server.start("s1", id);
    }
    let fake = server.serve(&path);
    watched.until_state("stays", State::Running).await;
    watched.until_state("goes", State::Running).await;

    fake.kill();
    watched.until("not live", |it| !it.live).await;
    assert_eq!(watched.stated.len(), 3, "a server's death is not its containers'");
    server.remove("goes");
    server.start("s1", "comes");
    // A newer one may tell more.
    server.inform("stays", r#"{"runtimeType":"io.containerd.kata.v2"}"#);
    server.upgrade("2.1.0");
    let _fake = server.serve(&path);
    watched.until_state("comes", State::Running).await;
    watched.until_gone("goes").await;
    watched
        .until("asked anew", |it| {
            let runtime = it.stated["containerd/k8s.io/stays"].runtime.as_ref();
            runtime.is_some_and(|runtime| runtime.handler.as_deref() == Some("io.containerd.kata.v2"))
        })
        .await;
    watched.stop().await;
}

#[tokio::test]
async fn a_server_that_falls_silent_is_noticed_and_survived() {
    let (_directory, path) = socket();
    let server = Server::new("2.1.0");
    let _fake = server.serve(&path);
    let mut watched = Watched::with(Config { call_deadline_ms: 300, ..Watched::config(&path) });
    watched.until("live", |it| it.live).await;
    server.answer("", Manner::Silent);
    watched.until_condition(Condition::Waiting, "Version: no answer within 300ms").await;
    watched.until("not live", |it| !it.live).await;
    server.answer("", Manner::Proper);
    watched.until("live", |it| it.live).await;
    watched.stop().await;
}

#[tokio::test]
async fn one_status_that_hangs_costs_that_one() {
    let (_directory, path) = socket();
    let server = Server::new("1.6.20");
    server.run("s1", "10.0.0.1");
    server.start("s1", "c1");
    server.answer("PodSandboxStatus", Manner::Silent);
    let _fake = server.serve(&path);
    let mut watched = Watched::with(Config { call_deadline_ms: 400, ..Watched::config(&path) });
    let container = watched.until_state("c1", State::Running).await;
    assert_eq!(container.pod.unwrap().name.as_deref(), Some("pod-s1"), "the list knows the pod");
    // Named as far as the list does, and why the rest is missing.
    let sandbox = watched.until_state("s1", State::Running).await;
    assert!(sandbox.missing.iter().any(|(_, reason)| reason.contains("no answer within 400ms")), "{sandbox:?}");
    assert!(watched.live);
    watched.stop().await;
}

#[tokio::test]
async fn garbage_costs_what_it_describes_and_nothing_else() {
    let (_directory, path) = socket();
    let server = Server::new("1.6.20");
    server.run("s1", "10.0.0.1");
    for id in ["spoilt", "sound"] {
        server.start("s1", id);
    }
    server.inform("spoilt", "{\"pid\":");
    server.inform("sound", r#"{"sandboxID":"s1","config":{"linux":{"security_context":{"privileged":true}}}}"#);
    server.answer("ListContainers", Manner::Garbage);
    let _fake = server.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until_condition(Condition::Waiting, "ListContainers").await;
    server.answer("ListContainers", Manner::Proper);
    let spoilt = watched.until_state("spoilt", State::Running).await;
    assert!(spoilt.missing.iter().any(|(field, _)| *field == "pid"), "{spoilt:?}");
    assert_eq!(spoilt.pod.unwrap().sandbox_id.as_deref(), Some("s1"), "the list knows the pod");
    let sound = watched.until_state("sound", State::Running).await;
    assert_eq!((sound.missing.len(), sound.details.unwrap().privileged), (0, Some(true)));

    server.answer("ContainerStatus", Manner::Garbage);
    server.start("s1", "unreadable");
    let unreadable = watched.until_state("unreadable", State::Running).await;
    assert!(unreadable.missing.iter().any(|(_, reason)| reason.contains("ContainerStatus")), "{unreadable:?}");
    watched.stop().await;
}

#[tokio::test]
async fn hostile_labels_are_left_out_and_counted() {
    let (_directory, path) = socket();
    let server = Server::new("1.6.20");
    server.run("s1", "10.0.0.1");
    let many = (0..5_000).map(|n| (format!("key-{n}"), "v".to_owned())).collect();
    server.create("s1", "many", many);
    let long = [("long", "x".repeat(1 << 20)), ("bell", "\u{7}\n\u{1b}[2J".into())];
    server.create("s1", "long", long.into_iter().map(|(key, value)| (key.to_owned(), value)).collect());
    server.change("long", |status| status.metadata.as_mut().unwrap().name = "\u{1b}]0;owned\u{7}".into());
    let _fake = server.serve(&path);
    let mut watched = Watched::on(&path);
    let statement = watched.until_state("many", State::Created).await;
    let kept = statement.labels.unwrap().len();
    assert!(kept < 5_000);
    let statement = watched.until_state("long", State::Created).await;
    let labels = statement.labels.unwrap();
    assert_eq!((labels.get("bell").map(|value| &**value), labels.len()), (Some("\u{7}\n\u{1b}[2J"), 1));
    assert!(statement.missing.iter().any(|(field, _)| *field == "labels"));
    // Whoever prints it escapes it.
    assert_eq!(statement.name.as_deref(), Some("\u{1b}]0;owned\u{7}"));
    assert_eq!(watched.stats.left_out.load(Relaxed), 5_000 - kept as u64 + 1);
    watched.stop().await;
}

#[tokio::test]
async fn a_container_removed_between_list_and_status_is_not_told() {
    let (_directory, path) = socket();
    let server = Server::new("1.6.20");
    server.run("s1", "10.0.0.1");
    server.start("s1", "c1");
    // The list has it, and then it is gone.
    server.answer("ContainerStatus", Manner::NotFound);
    let _fake = server.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until("asked more than once", |_| server.calls("ContainerStatus") >= 2).await;
    watched.until_state("s1", State::Running).await;
    assert_eq!(watched.stated.len(), 1, "nothing is told of it");
    server.answer("ContainerStatus", Manner::Proper);
    watched.until_state("c1", State::Running).await;
    server.answer("ContainerStatus", Manner::NotFound);
    server.end("c1", 0, "Completed");
    watched.until_gone("c1").await;
    watched.stop().await;
}

#[tokio::test]
async fn a_socket_without_the_cri_is_asked_once() {
    let (_directory, path) = socket();
    let server = Server::new("1.6.20");
    server.answer("Version", Manner::Unknown);
    let fake = server.serve(&path);
    let mut watched = Watched::on(&path);
    watched.until_condition(Condition::Refused, "CRI plugin").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(server.calls("Version"), 1);
    // Another daemon on the same path may know it.
    fake.kill();
    server.answer("Version", Manner::Proper);
    let _fake = server.serve(&path);
    watched.until("live", |it| it.live).await;
    watched.stop().await;
}

#[tokio::test]
async fn a_peer_that_speaks_no_grpc_is_waited_for() {
    let (_directory, path) = socket();
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = (&stream).write_all(b"SSH-2.0-OpenSSH_9.2\r\n\0\0\0\x7f");
        }
    });
    let mut watched = Watched::on(&path);
    watched.until_condition(Condition::Waiting, "").await;
    watched.stop().await;
}

#[test]
fn each_containerd_s_socket_is_asked_unless_that_is_switched_off() {
    let containerds = Endpoint::configured(&["/c.sock".into()], &["/k3s.sock".into()]);
    let shown = |config: &Config| -> Vec<_> {
        let all = config.endpoints(&containerds).into_iter();
        all.map(|endpoint| (endpoint.path.display().to_string(), endpoint.is_expected)).collect()
    };
    let config = Config { sockets: vec!["/c.sock".into()], sockets_if_present: vec![], ..Config::default() };
    assert_eq!(shown(&config), [("/c.sock".to_owned(), true), ("/k3s.sock".to_owned(), false)]);
    assert_eq!(shown(&Config { containerds: false, ..config }), [("/c.sock".to_owned(), true)]);
}
