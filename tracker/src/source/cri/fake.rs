//! A CRI server for component tests: the calls that the source makes, on a socket of its own, over real HTTP/2 and gRPC.
//!
//! It answers with k8s-cri's own messages, and how it answers each call can be changed while it runs. It owns its runtime,
//! so that [`Fake::kill`] ends it as `kill -9` ends a real one; what it has outlives it.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request as HttpRequest;
use axum::response::Response as HttpResponse;
use axum::routing::post_service;
use k8s_cri::v1 as cri;
use prost::Message;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::codegen::BoxStream;
use tonic::server::Grpc;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// How a fake answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// As a real one does.
    Proper,
    /// Not at all: the request is taken, and that is it.
    Silent,
    /// With bytes that are no message.
    Garbage,
    /// That it does not know the call.
    Unknown,
    /// That there is no such thing.
    NotFound,
    /// As a real one does, after a while.
    Late(Duration),
}

/// What containerd 1.6 answered when it was asked for the status of a pod and of a container in it, verbosely.
const POD: &[u8] = include_bytes!("recorded/pod-status.bin");
const CONTAINER: &[u8] = include_bytes!("recorded/container-status.bin");
/// More than a pid can be: the recorded ones may be somebody's here.
const NO_PID: u32 = 5_000_000;

type Event = cri::ContainerEventResponse;

/// What a server has.
#[derive(Debug, Default)]
struct World {
    version: String,
    pods: BTreeMap<String, cri::PodSandboxStatus>,
    containers: BTreeMap<String, (String, cri::ContainerStatus)>,
    /// The verbose part of a container's or a pod's status.
    infos: BTreeMap<String, String>,
    subscribers: Vec<mpsc::Sender<Result<Event, Status>>>,
    calls: BTreeMap<&'static str, u32>,
    in_flight: usize,
    most_in_flight: usize,
    manners: BTreeMap<&'static str, Manner>,
}

/// A handle to what a server has.
#[derive(Clone, Debug, Default)]
pub(super) struct Server {
    world: Arc<Mutex<World>>,
}

/// A server that runs.
pub(super) struct Fake {
    runtime: Option<Runtime>,
    server: Server,
}

impl Server {
    /// A containerd of this version.
    pub(super) fn new(version: &str) -> Self {
        let server = Self::default();
        server.world(|world| world.version = version.into());
        server
    }

    fn world<T>(&self, work: impl FnOnce(&mut World) -> T) -> T {
        work(&mut self.world.lock().unwrap())
    }

    /// It calls itself so from now on.
    pub(super) fn upgrade(&self, version: &str) {
        self.world(|world| world.version = version.into());
    }

    /// Runs a pod.
    pub(super) fn run(&self, id: &str, ip: &str) {
        let metadata = cri::PodSandboxMetadata {
            name: format!("pod-{id}"),
            namespace: "shop".into(),
            uid: format!("uid-{id}"),
            attempt: 0,
        };
        let network = cri::PodSandboxNetworkStatus { ip: ip.into(), additional_ips: vec![] };
        let labels = HashMap::from([("app".to_owned(), id.to_owned())]);
        let (metadata, network, id) = (Some(metadata), Some(network), id.to_owned());
        let status =
            cri::PodSandboxStatus { id: id.clone(), metadata, network, labels, created_at: 1, ..Default::default() };
        self.world(|world| world.pods.insert(id.clone(), status));
        self.announce(&id, &id, cri::ContainerEventType::ContainerStartedEvent);
    }

    /// Has a pod like the recorded one, with containers like the recorded one.
    pub(super) fn replay(&self, pod: &str, containers: &[String]) {
        let cri::PodSandboxStatusResponse { status, info, .. } = Message::decode(POD).unwrap();
        let mut status = status.unwrap();
        let recorded_pod = std::mem::replace(&mut status.id, pod.into());
        self.inform(pod, &with_ids(&info["info"], &[(&recorded_pod, pod)]));
        self.world(|world| world.pods.insert(pod.into(), status));
        for id in containers {
            let cri::ContainerStatusResponse { status, info } = Message::decode(CONTAINER).unwrap();
            let mut status = status.unwrap();
            let recorded = std::mem::replace(&mut status.id, id.clone());
            self.inform(id, &with_ids(&info["info"], &[(&recorded_pod, pod), (&recorded, id)]));
            self.world(|world| world.containers.insert(id.clone(), (pod.into(), status)));
        }
    }

    /// How many calls were under way at one time.
    pub(super) fn most_in_flight(&self) -> usize {
        self.world(|world| world.most_in_flight)
    }

    /// Creates a container in a pod.
    pub(super) fn create(&self, pod: &str, id: &str, labels: HashMap<String, String>) {
        let metadata = Some(cri::ContainerMetadata { name: format!("name-of-{id}"), attempt: 0 });
        let status = cri::ContainerStatus { id: id.into(), metadata, labels, ..Default::default() };
        self.world(|world| world.containers.insert(id.into(), (pod.into(), status)));
        self.announce(pod, id, cri::ContainerEventType::ContainerCreatedEvent);
    }

    /// Creates and starts a container in a pod.
    pub(super) fn start(&self, pod: &str, id: &str) {
        self.create(pod, id, HashMap::new());
        self.change(id, |status| status.state = cri::ContainerState::ContainerRunning as i32);
        self.announce(pod, id, cri::ContainerEventType::ContainerStartedEvent);
    }

    /// Ends a container.
    pub(super) fn end(&self, id: &str, code: i32, reason: &str) {
        self.change(id, |status| {
            status.state = cri::ContainerState::ContainerExited as i32;
            (status.exit_code, status.reason) = (code, reason.into());
        });
        let pod = self.world(|world| world.containers[id].0.clone());
        self.announce(&pod, id, cri::ContainerEventType::ContainerStoppedEvent);
    }

    /// Ends a pod's sandbox.
    pub(super) fn end_pod(&self, id: &str) {
        let over = cri::PodSandboxState::SandboxNotready as i32;
        self.world(|world| world.pods.get_mut(id).unwrap().state = over);
        self.announce(id, id, cri::ContainerEventType::ContainerStoppedEvent);
    }

    /// Removes a pod's sandbox.
    pub(super) fn remove_pod(&self, id: &str) {
        self.world(|world| world.pods.remove(id));
        self.announce(id, id, cri::ContainerEventType::ContainerDeletedEvent);
    }

    /// Removes a container.
    pub(super) fn remove(&self, id: &str) {
        let pod = self.world(|world| world.containers.remove(id)).map(|(pod, _)| pod).unwrap_or_default();
        self.announce(&pod, id, cri::ContainerEventType::ContainerDeletedEvent);
    }

    /// Changes a container without a word.
    pub(super) fn change(&self, id: &str, change: impl FnOnce(&mut cri::ContainerStatus)) {
        self.world(|world| change(&mut world.containers.get_mut(id).unwrap().1));
    }

    /// What verbose answers about one carry.
    pub(super) fn inform(&self, id: &str, json: &str) {
        self.world(|world| world.infos.insert(id.into(), json.into()));
    }

    fn announce(&self, pod: &str, id: &str, kind: cri::ContainerEventType) {
        let pod_sandbox_status = self.world(|world| world.pods.get(pod).cloned());
        let event = Event {
            container_id: id.into(),
            container_event_type: kind as i32,
            pod_sandbox_status,
            ..Default::default()
        };
        self.world(|world| world.subscribers.retain(|to| to.try_send(Ok(event.clone())).is_ok()));
    }

    /// How often a call was made.
    pub(super) fn calls(&self, call: &str) -> u32 {
        self.world(|world| world.calls.get(call).copied().unwrap_or_default())
    }

    /// Changes how a call is answered from now on; all of them, where it is empty.
    pub(super) fn answer(&self, call: &'static str, manner: Manner) {
        self.world(|world| world.manners.insert(call, manner));
    }

    /// Starts a server on `path`; a socket that is there is replaced.
    pub(super) fn serve(&self, path: &Path) -> Fake {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let _ = std::fs::remove_file(path);
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(path).unwrap()
        };
        let routes = tonic::service::Routes::from(self.router());
        runtime.spawn(async move {
            tonic::transport::Server::builder()
                .add_routes(routes)
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        Fake { runtime: Some(runtime), server: self.clone() }
    }

    fn router(&self) -> Router {
        Router::new()
            .merge(self.unary("Version", |world, _: cri::VersionRequest| {
                Ok(cri::VersionResponse {
                    runtime_name: "containerd".into(),
                    runtime_version: world.version.clone(),
                    ..Default::default()
                })
            }))
            .merge(self.unary("ListPodSandbox", |world, _: cri::ListPodSandboxRequest| {
                let items = world.pods.values().map(row_of_pod).collect();
                Ok(cri::ListPodSandboxResponse { items })
            }))
            .merge(self.unary("ListContainers", |world, _: cri::ListContainersRequest| {
                let containers = world.containers.values().map(|(pod, status)| row_of_container(pod, status)).collect();
                Ok(cri::ListContainersResponse { containers })
            }))
            .merge(self.unary("PodSandboxStatus", |world, request: cri::PodSandboxStatusRequest| {
                let status = world.pods.get(&request.pod_sandbox_id).cloned();
                let status = Some(status.ok_or_else(|| Status::not_found("no such pod"))?);
                let info = info(world, &request.pod_sandbox_id);
                Ok(cri::PodSandboxStatusResponse { status, info, ..Default::default() })
            }))
            .merge(self.unary("ContainerStatus", |world, request: cri::ContainerStatusRequest| {
                let status = world.containers.get(&request.container_id).map(|(_, status)| status.clone());
                let status = Some(status.ok_or_else(|| Status::not_found("no such container"))?);
                Ok(cri::ContainerStatusResponse { status, info: info(world, &request.container_id) })
            }))
            .merge(self.events())
    }

    fn unary<Q, A>(
        &self,
        call: &'static str,
        answer: impl Fn(&mut World, Q) -> Result<A, Status> + Copy + Send + Sync + 'static,
    ) -> Router
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let server = self.clone();
        self.route(call, move |request| {
            let server = server.clone();
            async move {
                let service = tower::service_fn(move |request: Request<Q>| {
                    let answer = server.world(|world| answer(world, request.into_inner()));
                    async move { answer.map(Response::new) }
                });
                Grpc::new(ProstCodec::<A, Q>::default()).unary(service, request).await
            }
        })
    }

    fn events(&self) -> Router {
        let server = self.clone();
        self.route("GetContainerEvents", move |request| {
            let server = server.clone();
            async move {
                let service = tower::service_fn(move |_: Request<cri::GetEventsRequest>| {
                    let (sender, receiver) = mpsc::channel(1_000);
                    server.world(|world| world.subscribers.push(sender));
                    async move { Ok(Response::new(Box::pin(ReceiverStream::new(receiver)) as BoxStream<Event>)) }
                });
                let codec = ProstCodec::<Event, cri::GetEventsRequest>::default();
                Grpc::new(codec).server_streaming(service, request).await
            }
        })
    }

    fn route<F>(&self, call: &'static str, proper: impl Fn(HttpRequest) -> F + Clone + Send + Sync + 'static) -> Router
    where
        F: Future<Output = HttpResponse<tonic::body::Body>> + Send + 'static,
    {
        let server = self.clone();
        let service = tower::service_fn(move |request: HttpRequest| {
            let proper = proper.clone();
            let manner = server.world(|world| {
                *world.calls.entry(call).or_default() += 1;
                world.in_flight += 1;
                world.most_in_flight = world.most_in_flight.max(world.in_flight);
                world.manners.get(call).or(world.manners.get("")).copied().unwrap_or(Manner::Proper)
            });
            let server = server.clone();
            async move {
                let bare = || HttpResponse::builder().header("content-type", "application/grpc");
                let answer = match manner {
                    Manner::Proper => proper(request).await.map(Body::new),
                    Manner::Late(time) => {
                        tokio::time::sleep(time).await;
                        proper(request).await.map(Body::new)
                    }
                    Manner::Silent => std::future::pending().await,
                    // A frame of four bytes: field 1, five bytes long, of which two are there.
                    Manner::Garbage => bare().body(Body::from(&b"\0\0\0\0\x04\x0a\x05\xff\xff"[..])).unwrap(),
                    Manner::Unknown => bare().header("grpc-status", "12").body(Body::empty()).unwrap(),
                    Manner::NotFound => bare().header("grpc-status", "5").body(Body::empty()).unwrap(),
                };
                server.world(|world| world.in_flight -= 1);
                Ok::<_, Infallible>(answer)
            }
        });
        Router::new().route(&format!("/runtime.v1.RuntimeService/{call}"), post_service(service))
    }
}

impl Fake {
    /// Ends the server at once: its connections break, its socket file stays.
    pub(super) fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
        self.server.world(|world| world.subscribers.clear());
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A recorded text about others than the recorded ones.
fn with_ids(recorded: &str, ids: &[(&str, &str)]) -> String {
    let text = ids.iter().fold(recorded.to_owned(), |text, (former, id)| text.replace(former, id));
    let mut info: serde_json::Value = serde_json::from_str(&text).unwrap();
    info["pid"] = NO_PID.into();
    info.to_string()
}

fn info(world: &World, id: &str) -> HashMap<String, String> {
    world.infos.get(id).map(|json| ("info".to_owned(), json.clone())).into_iter().collect()
}

fn row_of_pod(status: &cri::PodSandboxStatus) -> cri::PodSandbox {
    let cri::PodSandboxStatus { id, metadata, state, created_at, labels, annotations, runtime_handler, .. } =
        status.clone();
    cri::PodSandbox { id, metadata, state, created_at, labels, annotations, runtime_handler }
}

fn row_of_container(pod: &str, status: &cri::ContainerStatus) -> cri::Container {
    let cri::ContainerStatus { id, metadata, state, created_at, labels, annotations, image_ref, .. } = status.clone();
    let pod_sandbox_id = pod.to_owned();
    cri::Container {
        id,
        pod_sandbox_id,
        metadata,
        state,
        created_at,
        labels,
        annotations,
        image_ref,
        ..Default::default()
    }
}

/// A directory with a socket's path in it.
pub(super) fn socket() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cri.sock");
    (directory, path)
}
