//! A containerd for component tests: the calls that the source makes, on a socket of its own, over real HTTP/2 and gRPC.
//!
//! It owns its runtime, so that [`Fake::kill`] ends it as `kill -9` ends the real one: every connection breaks at once.
//! What it has outlives it, and a successor on the same path is started from it.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request as HttpRequest;
use axum::response::Response as HttpResponse;
use axum::routing::post_service;
use containerd_client::events;
use containerd_client::services::v1 as api;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use containerd_client::types::{Descriptor, Envelope};
use prost::{Message, Name};
use prost_types::Any;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::codegen::BoxStream;
use tonic::server::Grpc;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// A pod's container in containerd 1.6's own words.
const RECORD: &[u8] = include_bytes!("recorded/record.bin");

/// How a fake answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// As the real one does.
    Proper,
    /// Not at all: the request is taken, and that is it.
    Silent,
    /// After a while.
    Late(Duration),
    /// With bytes that are no message.
    Garbage,
}

/// What a containerd has.
#[derive(Debug, Default)]
pub(super) struct World {
    namespaces: BTreeSet<String>,
    containers: BTreeMap<(String, String), api::Container>,
    tasks: BTreeMap<(String, String), Process>,
    images: BTreeMap<(String, String), String>,
    blobs: BTreeMap<String, Vec<u8>>,
    subscribers: Vec<mpsc::Sender<Result<Envelope, Status>>>,
    calls: BTreeMap<&'static str, u32>,
    in_flight: usize,
    most_in_flight: usize,
    manners: BTreeMap<&'static str, Manner>,
}

/// A handle to what a containerd has. Each change is announced to subscribers, as the real one does.
#[derive(Clone, Debug, Default)]
pub(super) struct Containerd {
    world: Arc<Mutex<World>>,
}

/// A containerd that runs.
pub(super) struct Fake {
    runtime: Option<Runtime>,
    containerd: Containerd,
}

impl Containerd {
    fn world<T>(&self, work: impl FnOnce(&mut World) -> T) -> T {
        work(&mut self.world.lock().unwrap())
    }

    /// Makes a container's record; its namespace too, if there is none.
    pub(super) fn create(&self, namespace: &str, container: api::Container) {
        let event = events::ContainerCreate { id: container.id.clone(), image: container.image.clone(), runtime: None };
        self.world(|world| {
            world.namespaces.insert(namespace.into());
            world.containers.insert((namespace.into(), container.id.clone()), container);
        });
        self.announce(namespace, &event);
    }

    /// Makes a record like the recorded one.
    pub(super) fn replay(&self, namespace: &str, id: &str) {
        let recorded: api::Container = Message::decode(RECORD).unwrap();
        self.create(namespace, api::Container { id: id.into(), ..recorded });
    }

    /// How many calls were under way at one time.
    pub(super) fn most_in_flight(&self) -> usize {
        self.world(|world| world.most_in_flight)
    }

    /// Changes a container's labels.
    pub(super) fn label(&self, namespace: &str, id: &str, labels: &[(&str, &str)]) {
        let changed = self.world(|world| {
            let record = world.containers.get_mut(&(namespace.to_owned(), id.to_owned())).unwrap();
            record.labels = container(id, "", labels).labels;
            record.clone()
        });
        let api::Container { id, image, labels, .. } = changed;
        self.announce(namespace, &events::ContainerUpdate { id, image, labels, snapshot_key: String::new() });
    }

    /// Removes a container's record.
    pub(super) fn delete(&self, namespace: &str, id: &str) {
        self.world(|world| world.containers.remove(&(namespace.into(), id.into())));
        self.announce(namespace, &events::ContainerDelete { id: id.into() });
    }

    /// Makes a task, and starts it.
    pub(super) fn start(&self, namespace: &str, id: &str, pid: u32) {
        let process = Process { id: id.into(), pid, status: TaskStatus::Running as i32, ..Default::default() };
        self.world(|world| world.tasks.insert((namespace.into(), id.into()), process));
        let bundle = format!("/run/bundles/{namespace}/{id}");
        self.announce(namespace, &events::TaskCreate { container_id: id.into(), bundle, pid, ..Default::default() });
        self.announce(namespace, &events::TaskStart { container_id: id.into(), pid });
    }

    /// Ends a task and removes it.
    pub(super) fn end(&self, namespace: &str, id: &str, exit_status: u32) {
        let task = self.world(|world| world.tasks.remove(&(namespace.into(), id.into())));
        let pid = task.map(|task| task.pid).unwrap_or_default();
        let (container_id, id) = (id.to_owned(), id.to_owned());
        self.announce(
            namespace,
            &events::TaskExit { container_id: container_id.clone(), id: id.clone(), pid, exit_status, exited_at: None },
        );
        self.announce(namespace, &events::TaskDelete { container_id, id, pid, exit_status, exited_at: None });
    }

    /// Points an image's name to a blob; makes its namespace, too, if there is none.
    pub(super) fn tag(&self, namespace: &str, name: &str, digest: &str) {
        self.world(|world| {
            world.namespaces.insert(namespace.into());
            world.images.insert((namespace.into(), name.into()), digest.into());
        });
        self.announce(namespace, &api::ImageUpdate { name: name.into(), labels: Default::default() });
    }

    /// Puts a blob into the store.
    pub(super) fn put(&self, digest: &str, blob: &str) {
        self.world(|world| world.blobs.insert(digest.into(), blob.into()));
    }

    /// Sends an event to every subscriber.
    pub(super) fn announce<M: Message + Name>(&self, namespace: &str, event: &M) {
        self.announce_any(namespace, Any { type_url: M::full_name(), value: event.encode_to_vec() });
    }

    /// Sends anything as an event.
    pub(super) fn announce_any(&self, namespace: &str, event: Any) {
        let timestamp = Some(std::time::SystemTime::now().into());
        let envelope = Envelope { timestamp, namespace: namespace.into(), topic: String::new(), event: Some(event) };
        self.world(|world| world.subscribers.retain(|to| to.try_send(Ok(envelope.clone())).is_ok()));
    }

    /// Ends all event streams.
    pub(super) fn end_streams(&self) {
        self.world(|world| world.subscribers.clear());
    }

    /// How often a call was made.
    pub(super) fn calls(&self, call: &str) -> u32 {
        self.world(|world| world.calls.get(call).copied().unwrap_or_default())
    }

    /// Changes how a call is answered from now on.
    pub(super) fn answer(&self, call: &'static str, manner: Manner) {
        self.world(|world| world.manners.insert(call, manner));
    }

    /// Starts a daemon on `path`; a socket that is there is replaced.
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
        Fake { runtime: Some(runtime), containerd: self.clone() }
    }

    fn router(&self) -> Router {
        use api::{
            GetContainerRequest, GetContainerResponse, GetImageRequest, GetImageResponse, ListContainerMessage,
            ListContainersRequest, ListImagesRequest, ListImagesResponse, ListNamespacesRequest,
            ListNamespacesResponse, ListTasksRequest, ListTasksResponse, Namespace, ReadContentRequest,
            ReadContentResponse, SubscribeRequest, VersionResponse,
        };
        Router::new()
            .merge(self.unary("/containerd.services.version.v1.Version/Version", "Version", |_, _, (): ()| {
                Ok(VersionResponse { version: "fake".into(), revision: String::new() })
            }))
            .merge(self.unary(
                "/containerd.services.namespaces.v1.Namespaces/List",
                "Namespaces.List",
                |world, _, _: ListNamespacesRequest| {
                    let named = |name: &String| Namespace { name: name.clone(), ..Default::default() };
                    Ok(ListNamespacesResponse { namespaces: world.namespaces.iter().map(named).collect() })
                },
            ))
            .merge(self.unary(
                "/containerd.services.containers.v1.Containers/Get",
                "Containers.Get",
                |world, namespace, request: GetContainerRequest| {
                    let container = world.containers.get(&(namespace, request.id)).cloned();
                    let container = Some(container.ok_or_else(|| Status::not_found("no such container"))?);
                    Ok(GetContainerResponse { container })
                },
            ))
            .merge(self.streaming(
                "/containerd.services.containers.v1.Containers/ListStream",
                "Containers.ListStream",
                |world, namespace, _: ListContainersRequest| {
                    let of_namespace = world.containers.iter().filter(|((of, _), _)| *of == namespace);
                    let messages = of_namespace.map(|(_, c)| Ok(ListContainerMessage { container: Some(c.clone()) }));
                    Ok(tokio_stream::iter(messages.collect::<Vec<_>>()))
                },
            ))
            .merge(self.unary(
                "/containerd.services.tasks.v1.Tasks/List",
                "Tasks.List",
                |world, namespace, _: ListTasksRequest| {
                    let of_namespace = world.tasks.iter().filter(|((of, _), _)| *of == namespace);
                    Ok(ListTasksResponse { tasks: of_namespace.map(|(_, task)| task.clone()).collect() })
                },
            ))
            .merge(self.unary(
                "/containerd.services.images.v1.Images/List",
                "Images.List",
                |world, namespace, _: ListImagesRequest| {
                    let of_namespace = world.images.iter().filter(|((of, _), _)| *of == namespace);
                    Ok(ListImagesResponse { images: of_namespace.map(|((_, name), to)| image(name, to)).collect() })
                },
            ))
            .merge(self.unary(
                "/containerd.services.images.v1.Images/Get",
                "Images.Get",
                |world, namespace, request: GetImageRequest| {
                    let target = world.images.get(&(namespace, request.name.clone()));
                    let target = target.ok_or_else(|| Status::not_found("no such image"))?;
                    Ok(GetImageResponse { image: Some(image(&request.name, target)) })
                },
            ))
            .merge(self.streaming(
                "/containerd.services.content.v1.Content/Read",
                "Content.Read",
                |world, _, request: ReadContentRequest| {
                    let blob = world.blobs.get(&request.digest).ok_or_else(|| Status::not_found("no such blob"))?;
                    // In small pieces, as a large blob would come.
                    let pieces =
                        blob.chunks(16).map(|piece| Ok(ReadContentResponse { offset: 0, data: piece.to_vec() }));
                    Ok(tokio_stream::iter(pieces.collect::<Vec<_>>()))
                },
            ))
            .merge(self.streaming(
                "/containerd.services.events.v1.Events/Subscribe",
                "Events.Subscribe",
                |world, _, _: SubscribeRequest| {
                    let (sender, receiver) = mpsc::channel(10_000);
                    world.subscribers.push(sender);
                    Ok(ReceiverStream::new(receiver))
                },
            ))
    }

    /// Counts a call, and finds out how to answer it.
    fn enter(&self, call: &'static str) -> Manner {
        self.world(|world| {
            *world.calls.entry(call).or_default() += 1;
            world.in_flight += 1;
            world.most_in_flight = world.most_in_flight.max(world.in_flight);
            world.manners.get(call).or(world.manners.get("")).copied().unwrap_or(Manner::Proper)
        })
    }

    fn unary<Q, A>(
        &self,
        path: &str,
        call: &'static str,
        answer: impl Fn(&mut World, String, Q) -> Result<A, Status> + Copy + Send + Sync + 'static,
    ) -> Router
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let containerd = self.clone();
        self.route(path, call, move |request| {
            let containerd = containerd.clone();
            async move {
                let service = tower::service_fn(move |request: Request<Q>| {
                    let namespace = namespace_of(&request);
                    let answer = containerd.world(|world| answer(world, namespace, request.into_inner()));
                    async move { answer.map(Response::new) }
                });
                Grpc::new(ProstCodec::<A, Q>::default()).unary(service, request).await
            }
        })
    }

    fn streaming<Q, A, S>(
        &self,
        path: &str,
        call: &'static str,
        answer: impl Fn(&mut World, String, Q) -> Result<S, Status> + Copy + Send + Sync + 'static,
    ) -> Router
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
        S: Stream<Item = Result<A, Status>> + Send + 'static,
    {
        let containerd = self.clone();
        self.route(path, call, move |request| {
            let containerd = containerd.clone();
            async move {
                let service = tower::service_fn(move |request: Request<Q>| {
                    let namespace = namespace_of(&request);
                    let answer = containerd.world(|world| answer(world, namespace, request.into_inner()));
                    async move { answer.map(|stream| Response::new(Box::pin(stream) as BoxStream<A>)) }
                });
                Grpc::new(ProstCodec::<A, Q>::default()).server_streaming(service, request).await
            }
        })
    }

    fn route<F>(
        &self,
        path: &str,
        call: &'static str,
        proper: impl Fn(HttpRequest) -> F + Clone + Send + Sync + 'static,
    ) -> Router
    where
        F: Future<Output = HttpResponse<tonic::body::Body>> + Send + 'static,
    {
        let containerd = self.clone();
        let service = tower::service_fn(move |request: HttpRequest| {
            let (manner, proper, containerd) = (containerd.enter(call), proper.clone(), containerd.clone());
            async move {
                let answer = match manner {
                    Manner::Proper => proper(request).await.map(Body::new),
                    Manner::Silent => std::future::pending().await,
                    Manner::Late(time) => {
                        tokio::time::sleep(time).await;
                        proper(request).await.map(Body::new)
                    }
                    // A frame of four bytes: field 1, five bytes long, of which two are there.
                    Manner::Garbage => HttpResponse::builder()
                        .header("content-type", "application/grpc")
                        .body(Body::from(&b"\0\0\0\0\x04\x0a\x05\xff\xff"[..]))
                        .unwrap(),
                };
                containerd.world(|world| world.in_flight -= 1);
                Ok::<_, Infallible>(answer)
            }
        });
        Router::new().route(path, post_service(service))
    }
}

impl Fake {
    /// Ends the daemon at once: its connections break, its socket file stays.
    pub(super) fn kill(mut self) -> Containerd {
        self.runtime.take().unwrap().shutdown_background();
        self.containerd.end_streams();
        self.containerd.clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A container's record with labels.
pub(super) fn container(id: &str, image: &str, labels: &[(&str, &str)]) -> api::Container {
    let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    api::Container { id: id.into(), image: image.into(), labels, ..Default::default() }
}

fn image(name: &str, digest: &str) -> api::Image {
    let target = Some(Descriptor { digest: digest.into(), ..Default::default() });
    api::Image { name: name.into(), target, ..Default::default() }
}

fn namespace_of<T>(request: &Request<T>) -> String {
    let header = request.metadata().get("containerd-namespace");
    header.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// A directory with a socket's path in it.
pub(super) fn socket() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("containerd.sock");
    (directory, path)
}
