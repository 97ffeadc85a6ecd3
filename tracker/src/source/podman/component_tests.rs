//! The source against a stand-in for podman's service: what it asks, and how much at a time. What the stand-in answers was
//! recorded from a real one (4.3).

use std::collections::HashMap;
use std::sync::Mutex as Lock;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::collection::door::Delivery;
use crate::container::{Health, State};
use crate::fact::Statement;

/// Longer than anything here takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

const ROW: &str = include_str!("recorded/row.json");
const INSPECTION: &str = include_str!("recorded/inspection.json");

/// A recorded answer about the container of this number. Its pid is more than one can be: the recorded one may be
/// somebody's here.
fn about(number: usize, recorded: &str) -> Value {
    let recorded_id = serde_json::from_str::<Value>(ROW).unwrap()["Id"].as_str().unwrap().to_owned();
    let mut answer: Value = serde_json::from_str(&recorded.replace(&recorded_id, &id(number))).unwrap();
    if answer["Names"].is_array() {
        (answer["Names"][0], answer["Pid"]) = (format!("web-{number}").into(), 5_000_000.into());
    } else {
        (answer["Name"], answer["State"]["Pid"]) = (format!("web-{number}").into(), 5_000_000.into());
    }
    answer
}

fn id(number: usize) -> String {
    format!("{number:064x}")
}

#[derive(Default)]
struct Counts {
    inspections: HashMap<String, usize>,
    lists: usize,
    in_flight: usize,
    most_in_flight: usize,
}

/// A stand-in that has this many containers.
#[derive(Clone)]
struct Fake {
    containers: usize,
    // Protects what is counted; held for a moment.
    counts: Arc<Lock<Counts>>,
}

impl Fake {
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

    fn count<T>(&self, work: impl FnOnce(&mut Counts) -> T) -> T {
        work(&mut self.counts.lock().unwrap())
    }

    async fn answer(&self, mut stream: UnixStream) -> std::io::Result<()> {
        let mut request = vec![];
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await?);
        }
        let request = String::from_utf8(request).unwrap();
        let path = request.split(' ').nth(1).and_then(|path| path.strip_prefix("/v4.0.0/libpod/")).unwrap();
        if path.starts_with("events") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
            return std::future::pending().await;
        }
        self.count(|counts| {
            counts.in_flight += 1;
            counts.most_in_flight = counts.most_in_flight.max(counts.in_flight);
        });
        // As long as a real one takes: whoever asks for more at a time does so now.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let body = self.resource(path).to_string();
        self.count(|counts| counts.in_flight -= 1);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await
    }

    fn resource(&self, path: &str) -> Value {
        match path {
            "info" => serde_json::json!({ "version": { "Version": "4.3.1" } }),
            "_ping" => "OK".into(),
            "containers/json?all=true" => {
                self.count(|counts| counts.lists += 1);
                (0..self.containers).map(|number| about(number, ROW)).collect()
            }
            _ => {
                let id = path.strip_prefix("containers/").and_then(|path| path.strip_suffix("/json")).unwrap();
                self.count(|counts| *counts.inspections.entry(id.to_owned()).or_default() += 1);
                about(usize::from_str_radix(id, 16).unwrap(), INSPECTION)
            }
        }
    }
}

#[tokio::test]
async fn a_thousand_containers_are_told_whole_with_four_calls_in_flight() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sock");
    let fake = Fake { containers: 1_000, counts: Arc::default() };
    let _serving = fake.serve(&path);

    let config = Config { sockets: vec![path], sockets_if_present: vec![], ..Config::default() };
    let (facts, mut deliveries) = Facts::queue();
    let (_, sockets) = watch::channel(config.endpoints().into());
    let (_nobody, wishes) = mpsc::channel(1);
    let (stats, cancel) = (Arc::new(Stats::default()), CancellationToken::new());
    let env_allow = ["STAGE"].into_iter().collect();
    let task = tokio::spawn(run(
        config,
        env_allow,
        sockets,
        wishes,
        facts,
        HealthBoard::new(),
        Arc::clone(&stats),
        cancel.clone(),
    ));
    let mut stated = HashMap::<String, Statement>::new();
    let is_inspected = |told: &Statement| told.details.as_ref().is_some_and(|details| details.restart_count.is_some());
    let wait = async {
        while stated.len() < 1_000 || !stated.values().all(is_inspected) {
            let Some(Delivery::Facts(facts)) = deliveries.next().await else { panic!("the source delivers facts") };
            for fact in facts {
                if let What::Stated { key, statement } = fact.what {
                    stated.insert(key.to_string(), *statement);
                }
            }
        }
    };
    if tokio::time::timeout(PATIENCE, wait).await.is_err() {
        panic!("{} of 1,000 were stated", stated.len());
    }

    for number in 0..1_000 {
        let told = &stated[&format!("oci/run/crun/{}", id(number))];
        assert_eq!((told.name.as_deref(), told.state), (Some(&*format!("web-{number}")), Some(State::Running)));
        assert_eq!(told.task, None, "its pid is nobody's here");
        assert_eq!(told.labels, Some([("app", "web")].into_iter().collect()));
        assert!(told.created_at.is_some() && told.started_at.is_some() && told.annotations.is_some());
        assert!(told.bundle.as_deref().is_some_and(|bundle| bundle.contains(&id(number))));
        let image = told.image.as_ref().unwrap();
        assert_eq!(image.name.as_deref(), Some("localhost/bb:1"));
        assert!(image.id.is_some() && image.digest.is_some());
        let details = told.details.as_ref().unwrap();
        let addresses: Vec<_> = details.addresses.iter().flat_map(|all| all.iter()).collect();
        let addresses: Vec<_> = addresses.iter().map(|it| (it.network.as_deref(), it.ip.to_string())).collect();
        assert_eq!(addresses, [(Some("front"), "10.77.3.2".to_owned()), (Some("front"), "fd00:77:3::2".to_owned())]);
        let ports: Vec<_> = details.ports.iter().flat_map(|all| all.iter()).map(|it| (it.container, it.host)).collect();
        assert_eq!(ports, [(53, None), (80, Some(18_999))]);
        assert_eq!((details.hostname.as_deref(), details.health), (Some("door"), Some(Health::Healthy)));
        assert_eq!((details.privileged, details.restart_count), (Some(false), Some(0)));
        let resources = details.resources.as_ref().unwrap();
        assert_eq!((resources.memory, resources.cpu_millis, resources.pids), (Some(64 << 20), Some(500), Some(50)));
        assert_eq!(details.mounts.as_ref().unwrap().len(), 1);
        assert_eq!(details.env, Some([("STAGE", "test")].into_iter().collect()));
    }
    let counts = fake.count(std::mem::take);
    let twice = counts.inspections.values().filter(|calls| **calls > 1).count();
    assert_eq!(twice, 0, "inspected more than once; {} lists", counts.lists);
    assert_eq!((counts.inspections.len(), stats.calls_inspect.load(Relaxed)), (1_000, 1_000));
    assert!((2..=4).contains(&counts.most_in_flight), "{} calls in flight", counts.most_in_flight);
    cancel.cancel();
    tokio::time::timeout(PATIENCE, task).await.expect("it ends when it is told to").unwrap();
}
