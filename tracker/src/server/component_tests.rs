//! The debug socket as its peers see it: the real server and client around the real collection, with stated facts.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::api::{Answer, Container, Lookup, Probe, SourceLine, Story, WatchLine};
use super::client::{Client, ClientError};
use super::*;
use crate::collection::view::Host;
use crate::container::{ContainerId, ContainerKey, Domain, Exit, Image, Kind, Namespaces, Pod, Runtime, State, TaskId};
use crate::fact::{Birth, End, Fact, Source, Statement, What};
use crate::source::health::Condition;
use crate::time::BootTime;

const HOST_MNT: u32 = 1;
const HOST_NET: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(20);

/// A tracker without sources, and its debug socket.
struct Served {
    tracker: Handle,
    client: Client,
    cancel: CancellationToken,
    done: JoinHandle<io::Result<()>>,
    _directory: TempDir,
}

impl Served {
    fn start(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("tracker.sock");
        let namespaces = Namespaces { mnt: HOST_MNT, net: HOST_NET, ..Namespaces::default() };
        let tracker = Handle::without_sources(Host { namespaces, cgroup_id: 1 });
        let server = Server::bind(Config { socket: socket.clone(), group: None, limits }).unwrap();
        let cancel = CancellationToken::new();
        let done = tokio::spawn(server.serve(tracker.clone(), cancel.clone()));
        Self { tracker, client: Client::new(socket), cancel, done, _directory: directory }
    }

    async fn state(&self, facts: Vec<Fact>) {
        self.tracker.facts().state(facts).await.unwrap();
        // What is asked after facts is answered after they are published.
        self.tracker.figures().await.unwrap();
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> T {
        self.client.get(path, query).await.unwrap()
    }

    async fn refused(&self, path: &str, query: &[(&str, &str)]) -> (u16, api::Refusal) {
        match self.client.get::<Value>(path, query).await {
            Err(ClientError::Refused { status, refusal }) => (status, *refusal),
            other => panic!("{path}: {other:?}"),
        }
    }
}

fn key(id: &str) -> ContainerKey {
    ContainerKey { domain: Domain::Host, scope: "containerd/default".into(), id: ContainerId::new(id).unwrap() }
}

fn birth(number: u32, at: u64) -> Birth {
    Birth {
        task: TaskId { pid: 1000 + number, start_ticks: 7 },
        parent: None,
        outer: None,
        namespaces: Namespaces { mnt: 100 + number, net: 200, pid: 300 + number, cgroup: 0, user: 0 },
        generation: Some(u64::from(number)),
        cgroup_id: Some(400 + u64::from(number)),
        uid: 0,
        born_at: BootTime(at),
        executed: true,
    }
}

fn fact(source: Source, at: u64, what: What) -> Fact {
    Fact { source, at: BootTime(at), what }
}

/// A container that was born and that containerd describes.
fn container(id: &str, number: u32, at: u64) -> Vec<Fact> {
    let birth = birth(number, at);
    let statement = Statement {
        kind: Some(Kind::Container),
        task: Some(birth.task),
        state: Some(State::Running),
        name: Some(format!("name-of-{id}").into()),
        runtime: Some(Runtime { name: Some("containerd".into()), ..Runtime::default() }),
        image: Some(Image { name: Some("busybox".into()), ..Image::default() }),
        pod: Some(Pod { name: Some("shop".into()), namespace: Some("default".into()), ..Pod::default() }),
        ..Statement::default()
    };
    let stated = What::Stated { key: key(id), statement: Box::new(statement) };
    vec![fact(Source::Kernel, at, What::Born(birth)), fact(Source::Containerd, at + 1, stated)]
}

fn ended(number: u32, at: u64) -> Fact {
    let Birth { task, namespaces, generation, .. } = birth(number, 0);
    let exit = Exit { code: 137, signal: Some(9), oom: None };
    fact(Source::Kernel, at, What::Ended(End { task, mntns: namespaces.mnt, generation, exit }))
}

#[tokio::test]
async fn containers_are_listed_newest_first_and_shown_one_by_one() {
    let served = Served::start(Limits::default());
    served.state(container("aaa1", 1, 1_000)).await;
    served.state(container("aaa2", 2, 2_000)).await;
    // Nobody vouches for this one: it shows only when it is asked for.
    served.state(vec![fact(Source::Kernel, 3_000, What::Born(birth(3, 3_000)))]).await;

    let listed: Vec<Container> = served.get("/v1/containers", &[]).await;
    assert_eq!(listed.iter().map(|c| &*c.id).collect::<Vec<_>>(), ["aaa2", "aaa1"]);
    let all: Vec<Container> = served.get("/v1/containers", &[("all", "true")]).await;
    assert_eq!(all.len(), 3);
    let unmanaged: Vec<Container> = served.get("/v1/containers", &[("kind", "unmanaged")]).await;
    assert_eq!(unmanaged.len(), 1);
    let picked: Vec<Container> = served.get("/v1/containers", &[("selector", "id=*1")]).await;
    assert_eq!(picked.iter().map(|c| &*c.id).collect::<Vec<_>>(), ["aaa1"]);

    let one: Container = served.get("/v1/containers/aaa1", &[]).await;
    assert_eq!((one.pid, one.mntns, one.netns), (Some(1001), Some(101), Some(200)));
    assert_eq!(&*one.node, "node-1");
    assert_eq!(one.image.unwrap().name.as_deref(), Some("busybox"));
}

#[tokio::test]
async fn a_name_means_the_one_container_alive_that_has_it() {
    let served = Served::start(Limits::default());
    let named_web = |id, number| {
        let mut facts = container(id, number, 1_000);
        for fact in &mut facts {
            if let What::Stated { statement, .. } = &mut fact.what {
                statement.name = Some("web".into());
            }
        }
        facts
    };
    served.state(named_web("aaa1", 1)).await;
    served.state(named_web("aaa2", 2)).await;
    let (status, refusal) = served.refused("/v1/containers/web", &[]).await;
    assert_eq!((status, refusal.candidates.len()), (409, 2));
    assert_eq!(served.refused("/v1/explain/web", &[]).await.0, 409);

    served.state(vec![ended(2, 2_000)]).await;
    let one: Container = served.get("/v1/containers/web", &[]).await;
    let story: Story = served.get("/v1/explain/web", &[]).await;
    assert_eq!((&*one.id, &*story.container.id), ("aaa1", "aaa1"));
    served.state(vec![ended(1, 3_000)]).await;
    assert_eq!(served.refused("/v1/containers/web", &[]).await.0, 409, "both are over");
}

#[tokio::test]
async fn what_cannot_be_answered_says_why_and_what_to_do() {
    let served = Served::start(Limits::default());
    served.state(container("aaa1", 1, 1_000)).await;
    served.state(container("aaa2", 2, 2_000)).await;

    let (status, refusal) = served.refused("/v1/containers/aaa", &[]).await;
    assert_eq!((status, refusal.candidates.len()), (409, 2));
    let (status, refusal) = served.refused("/v1/containers/zzz", &[]).await;
    assert_eq!((status, refusal.remedy.is_some()), (404, true));
    let (status, refusal) = served.refused("/v1/containers", &[("selector", "id=a,,")]).await;
    assert_eq!((status, refusal.column), (400, Some(6)), "{refusal:?}");
    assert_eq!(served.refused("/v1/watch", &[("selector", "=")]).await.0, 400);
    assert_eq!(served.refused("/v1/lookup", &[]).await.0, 400);
    assert_eq!(served.refused("/v1/explain", &[("pid", "1")]).await.0, 404);
    assert_eq!(served.refused("/v1/explain/aaa", &[]).await.0, 409);
    assert_eq!(served.refused("/v1/containers/%ff", &[]).await.0, 400);
    assert_eq!(served.refused("/", &[]).await.0, 404);
    let Err(ClientError::Refused { status, .. }) = served.client.post::<Value>("/v1/sources", &json!({})).await else {
        panic!("a list was posted to")
    };
    assert_eq!(status, 405);
}

#[tokio::test]
async fn a_number_means_its_container_the_host_or_nothing() {
    let served = Served::start(Limits::default());
    let before = BootTime::now().0;
    served.state(container("aaa1", 1, before)).await;
    served.state(container("aaa2", 2, before)).await;

    let ask = async |name: &'static str, number: &str| -> Lookup { served.get("/v1/lookup", &[(name, number)]).await };
    assert_eq!(ask("mntns", "1").await.answer, Answer::Host);
    assert_eq!(ask("netns", "2").await.answer, Answer::Host);
    assert_eq!(ask("cgroup", "1").await.answer, Answer::Host);
    assert_eq!(ask("mntns", "999").await.answer, Answer::Unknown);
    for (name, number, expected) in [("mntns", "101", "aaa1"), ("pid", "1002", "aaa2"), ("cgroup", "402", "aaa2")] {
        let found = ask(name, number).await;
        assert_eq!(found.answer, Answer::Containers, "{name}");
        assert_eq!(found.containers.iter().map(|c| &*c.id).collect::<Vec<_>>(), [expected], "{name}");
    }
    let shared = ask("netns", "200").await;
    assert_eq!(shared.containers.len(), 2);
    assert_eq!(shared.pod.unwrap().name.as_deref(), Some("shop"));
}

#[tokio::test]
async fn a_sandbox_names_the_containers_of_its_pod() {
    let served = Served::start(Limits::default());
    let of_pod = |id, number, kind, sandbox: &str| {
        let mut facts = container(id, number, 1_000);
        for fact in &mut facts {
            if let What::Stated { statement, .. } = &mut fact.what {
                statement.kind = Some(kind);
                statement.pod = Some(Pod { sandbox_id: Some(sandbox.into()), ..Pod::default() });
            }
        }
        facts
    };
    served.state(of_pod("sand", 1, Kind::Sandbox, "sand")).await;
    for (id, number, sandbox) in [("front", 2, "sand"), ("back", 3, "sand"), ("over", 4, "sand"), ("other", 5, "dune")]
    {
        served.state(of_pod(id, number, Kind::Container, sandbox)).await;
    }
    served.state(vec![ended(4, 2_000)]).await;
    let one: Container = served.get("/v1/containers/sand", &[]).await;
    assert_eq!(one.containers, ["front", "back"].map(Into::into));
    let front: Container = served.get("/v1/containers/front", &[]).await;
    assert_eq!((front.containers.len(), front.pod.unwrap().sandbox_id.as_deref()), (0, Some("sand")));
    let shared: Lookup = served.get("/v1/lookup", &[("netns", "200")]).await;
    let sandbox = shared.containers.iter().find(|container| container.kind == Kind::Sandbox).unwrap();
    assert_eq!(sandbox.containers.len(), 2);
    let listed: Vec<Container> = served.get("/v1/containers", &[("kind", "sandbox")]).await;
    assert_eq!(listed[0].containers.len(), 2);
}

#[tokio::test]
async fn a_pod_means_the_containers_that_it_had_at_that_moment() {
    let served = Served::start(Limits::default());
    let before = BootTime::now().0;
    served.state(container("aaa1", 1, before)).await;
    served.state(container("aaa2", 2, before + 20)).await;
    served.state(vec![ended(1, before + 30)]).await;

    for (pod, at, expected) in [
        ("default/shop", None, &["aaa2"][..]),
        ("default/shop", Some(before - 1), &[]),
        ("default/shop", Some(before + 10), &["aaa1"]),
        ("default/shop", Some(before + 25), &["aaa1", "aaa2"]),
        ("default/shop", Some(before + 30), &["aaa2"]),
        ("other/shop", None, &[]),
        ("default/sho", None, &[]),
    ] {
        let at_text = at.map(|at| at.to_string());
        let mut query = vec![("pod", pod)];
        query.extend(at_text.as_deref().map(|at| ("at", at)));
        let found: Lookup = served.get("/v1/lookup", &query).await;
        assert_eq!(found.containers.iter().map(|c| &*c.id).collect::<Vec<_>>(), expected, "{pod} at {at:?}");
        assert_eq!(found.answer, if expected.is_empty() { Answer::Unknown } else { Answer::Containers }, "{pod}");
    }
    assert_eq!(served.refused("/v1/lookup", &[("pod", "shop")]).await.0, 400);
}

#[tokio::test]
async fn a_moment_in_an_answer_finds_the_same_container_again() {
    let served = Served::start(Limits::default());
    let born = BootTime::now().0;
    served.state(container("aaa1", 1, born)).await;
    let one: Container = served.get("/v1/containers/aaa1", &[]).await;
    let created_at = one.created_at.unwrap().to_string();

    let ask = async |at: &str| -> Lookup { served.get("/v1/lookup", &[("mntns", "101"), ("at", at)]).await };
    let found = ask(&created_at).await;
    assert_eq!((found.answer, found.at), (Answer::Containers, one.created_at.unwrap()));
    assert_eq!(ask(&born.to_string()).await.answer, Answer::Containers);
    assert_eq!(ask(&(born - 1).to_string()).await.answer, Answer::Unknown);
}

#[tokio::test]
async fn a_watch_begins_with_everything_and_goes_on_with_each_change() {
    let served = Served::start(Limits::default());
    served.state(container("aaa1", 1, 1_000)).await;
    let mut watch = served.client.watch(&[("selector", "state in (running,exited)")]).await.unwrap();
    let Some(WatchLine::Bundle { containers, .. }) = watch.next().await.unwrap() else { panic!("no bundle") };
    assert_eq!(containers.len(), 1);

    served.state(container("aaa2", 2, 2_000)).await;
    let Some(WatchLine::Added { after, .. }) = watch.next().await.unwrap() else { panic!("nothing added") };
    assert_eq!(&*after.id, "aaa2");
    served.state(vec![ended(2, BootTime::now().0)]).await;
    let Some(WatchLine::Updated { before, after, .. }) = watch.next().await.unwrap() else { panic!("nothing updated") };
    assert_eq!((before.state, after.state), (State::Running, State::Exited));
    assert_eq!(after.exit, Some(Exit { code: 137, signal: Some(9), oom: None }));

    served.cancel.cancel();
    let end = tokio::time::timeout(PATIENCE, watch.next()).await.expect("the stream ends with the tracker");
    assert_eq!(end.unwrap(), None);
}

#[tokio::test]
async fn a_watcher_too_many_is_told_so() {
    let served = Served::start(Limits { watchers: 1, ..Limits::default() });
    let mut watch = served.client.watch(&[]).await.unwrap();
    watch.next().await.unwrap();
    let Err(ClientError::Refused { status, .. }) = served.client.watch(&[]).await else { panic!("a second watcher") };
    assert_eq!(status, 503);
    // Lists are no watchers.
    let _: Vec<Container> = served.get("/v1/containers", &[]).await;
}

#[tokio::test]
async fn a_story_tells_who_saw_it_and_whose_word_each_field_is() {
    let served = Served::start(Limits::default());
    served.state(container("aaa1", 1, 1_000)).await;
    for (path, query) in [
        ("/v1/explain/aaa1", &[][..]),
        ("/v1/explain/name-of-aaa1", &[]),
        ("/v1/explain", &[("pid", "1001")]),
        ("/v1/explain", &[("mntns", "101")]),
    ] {
        let story: Story = served.get(path, query).await;
        assert_eq!(&*story.container.id, "aaa1", "{path}");
        assert_eq!((story.timeline[0].source, story.timeline[0].boot_ns), (Source::Kernel, 1_000));
        let image =
            story.fields.iter().find(|field| &*field.field == "image.name").unwrap_or_else(|| panic!("{story:#?}"));
        assert_eq!(image.source, Source::Containerd);
        assert!(story.missing.iter().any(|missing| &*missing.field == "bundle"), "{story:?}");
    }
}

#[tokio::test]
async fn sources_and_readiness_show_what_is_still_starting() {
    let served = Served::start(Limits::default());
    let board = served.tracker.health_board();
    board.report(Source::Containerd, "/run/c.sock", Condition::Starting, "");
    let (status, _) = served.refused("/readyz", &[]).await;
    assert_eq!(status, 503);
    board.report(Source::Containerd, "/run/c.sock", Condition::Waiting, "nobody listens there");
    let ready: Probe = served.get("/readyz", &[]).await;
    assert!(ready.ok);
    let live: Probe = served.get("/livez", &[]).await;
    assert!(live.ok);
    let sources: Vec<SourceLine> = served.get("/v1/sources", &[]).await;
    assert_eq!((sources[0].condition, &*sources[0].detail), (Condition::Waiting, "nobody listens there"));
}

#[tokio::test]
async fn metrics_and_dump_show_the_collection() {
    let served = Served::start(Limits::default());
    served.state(container("aaa1", 1, 1_000)).await;
    let text = served.client.get_bytes("/metrics", &[]).await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    for expected in [
        "tracker_containers{kind=\"container\",state=\"running\",grade=\"first-exec\"} 1.0",
        "tracker_facts_total{source=\"kernel\"} 1",
        "tracker_facts_total{source=\"containerd\"} 1",
    ] {
        assert!(text.lines().any(|line| line == expected), "{expected}\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    let dump: Value = served.get("/v1/dump", &[]).await;
    assert_eq!(dump["containers"][0]["id"], json!("aaa1"));
    assert_eq!(dump["node"], json!("node-1"));
}

#[tokio::test]
async fn the_socket_is_gone_when_serving_has_ended() {
    let served = Served::start(Limits::default());
    let _: Probe = served.get("/livez", &[]).await;
    served.cancel.cancel();
    let done = tokio::time::timeout(PATIENCE, served.done).await.expect("it ends");
    done.unwrap().unwrap();
    assert!(UnixStream::connect(served.client.socket()).is_err());
    assert!(!served.client.socket().exists());
}

#[cfg(feature = "containerd")]
#[tokio::test]
async fn every_metric_is_in_the_operators_manual_and_the_other_way_round() {
    let served = Served::start(Limits::default());
    let text = served.client.get_bytes("/metrics", &[]).await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE tracker_"));
    let mut exposed: Vec<String> = types
        .map(|line| match line.split_once(' ').unwrap() {
            (name, "counter") => format!("{name}_total"),
            (name, _) => name.to_owned(),
        })
        .collect();

    let manual = include_str!("../../../docs/operating.md");
    let table = manual.split("## Metrics").nth(1).unwrap().lines().filter(|line| line.starts_with("| `"));
    let cells = table.map(|line| line.split('|').nth(1).unwrap());
    let names = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let mut documented: Vec<String> = names.map(|name| name.split('{').next().unwrap().to_owned()).collect();
    exposed.sort();
    documented.sort();
    assert_eq!(exposed, documented);
}
