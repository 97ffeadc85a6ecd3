//! One connection to one containerd: who is at the other end, and calls that all have a deadline and are counted.
//!
//! The connection is made once. When it breaks, every call fails and the session ends: nothing reconnects behind
//! our back, since events would be missed without anybody knowing.

use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use containerd_client::services::v1::{
    Container, GetContainerRequest, GetImageRequest, ListContainersRequest, ListImagesRequest, ListNamespacesRequest,
    ListTasksRequest, ReadContentRequest, SubscribeRequest,
};
use containerd_client::types::Envelope;
use containerd_client::types::v1::Process;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status, Streaming};

use super::Stats;
use super::images::MAX_MANIFEST_LEN;
use crate::container::{ContainerId, Str};

/// Bytes of one answer; containerd sends at most 16 MiB.
const MAX_ANSWER_LEN: usize = 16 << 20;
/// Containers and tasks of one namespace that are listed.
pub(super) const MAX_CONTAINERS: usize = 100_000;

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// There is no socket, or nobody listens on it.
    #[error("connect to {path}: {source}")]
    Absent { path: String, source: std::io::Error },
    /// Somebody listens who must not speak for the host.
    #[error("{path}: {reason}")]
    Unsuitable { path: String, reason: String },
    /// Not a gRPC connection.
    #[error("speak HTTP/2 on {path}: {source}")]
    Protocol { path: String, source: tonic::transport::Error },
    /// No answer in time.
    #[error("{call}: no answer within {after:?}")]
    Deadline { call: &'static str, after: Duration },
    /// The connection broke.
    #[error("{call}: connection lost: {reason}")]
    Lost { call: &'static str, reason: String },
    /// The daemon answered with an error, or with what cannot be read.
    #[error("{call}: {code:?}: {reason}")]
    Answer { call: &'static str, code: Code, reason: String },
}

impl CallError {
    /// Whether there is no such thing as was asked for.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Answer { code: Code::NotFound, .. })
    }

    fn new(call: &'static str, status: Status) -> Self {
        // A status with a source was made on this side, from a broken connection; what the daemon answers has none.
        let lost = std::error::Error::source(&status).is_some()
            || matches!(status.code(), Code::Unavailable | Code::Cancelled);
        // Answers come from outside: what ends up in a log line or in `sources` is bounded.
        let reason: String = status.message().chars().take(200).collect();
        if lost { Self::Lost { call, reason } } else { Self::Answer { call, code: status.code(), reason } }
    }
}

/// A connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Client {
    channel: Channel,
    deadline: Duration,
    list_deadline: Duration,
    stats: Arc<Stats>,
}

/// Which file a path led to.
pub(super) type FileId = (u64, u64);

/// The socket file's device and inode; `None` when there is none.
pub(super) fn file_id(path: &Path) -> Option<FileId> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Client {
    /// Connects, and looks who is there.
    pub(super) async fn connect(
        path: &Path,
        deadline: Duration,
        list_deadline: Duration,
        stats: Arc<Stats>,
    ) -> Result<Self, CallError> {
        let shown = path.display().to_string();
        let stream = within("connect", deadline, UnixStream::connect(path))
            .await?
            .map_err(|source| CallError::Absent { path: shown.clone(), source })?;
        check_peer(&stream).map_err(|reason| CallError::Unsuitable { path: shown.clone(), reason })?;

        let mut stream = Some(stream);
        let connector = tower::service_fn(move |_: Uri| {
            let stream = stream.take().ok_or_else(|| std::io::Error::other("one connection for each session"));
            async move { stream.map(TokioIo::new) }
        });
        // The name is not used for anything; this is the one that containerd's own clients send.
        let endpoint = Endpoint::from_static("http://[::]");
        let channel = within("connect", deadline, endpoint.connect_with_connector(connector))
            .await?
            .map_err(|source| CallError::Protocol { path: shown, source })?;
        Ok(Self { channel, deadline, list_deadline, stats })
    }

    /// Asks for all events of all namespaces. containerd sends no headers before the first event, so that this does not
    /// return before something happens, and has no deadline: poll it beside the calls that come after.
    pub(super) fn subscribe(&self) -> impl Future<Output = Result<Streaming<Envelope>, CallError>> + Send + use<> {
        let mut client = containerd_client::services::v1::events_client::EventsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ANSWER_LEN);
        async move {
            let request = SubscribeRequest { filters: vec![] };
            client
                .subscribe(request)
                .await
                .map(Response::into_inner)
                .map_err(|status| CallError::new(SUBSCRIBE, status))
        }
    }

    /// The daemon's version. The cheapest call there is: also the question whether it is alive.
    pub(super) async fn version(&self) -> Result<String, CallError> {
        self.stats.calls_alive.fetch_add(1, Relaxed);
        let mut client = containerd_client::services::v1::version_client::VersionClient::new(self.channel.clone());
        let answer = self.answer("Version", self.deadline, client.version(())).await?;
        Ok(answer.version.chars().take(64).collect())
    }

    /// All namespaces' names.
    pub(super) async fn namespaces(&self) -> Result<Vec<String>, CallError> {
        self.stats.calls_list.fetch_add(1, Relaxed);
        let mut client =
            containerd_client::services::v1::namespaces_client::NamespacesClient::new(self.channel.clone());
        let request = ListNamespacesRequest { filter: String::new() };
        let answer = self.answer("Namespaces.List", self.list_deadline, client.list(request)).await?;
        Ok(answer.namespaces.into_iter().map(|namespace| namespace.name).collect())
    }

    /// One container's record.
    pub(super) async fn container(&self, namespace: &str, id: &ContainerId) -> Result<Container, CallError> {
        const CALL: &str = "Containers.Get";
        self.stats.calls_container.fetch_add(1, Relaxed);
        let mut client =
            containerd_client::services::v1::containers_client::ContainersClient::new(self.channel.clone())
                .max_decoding_message_size(MAX_ANSWER_LEN);
        let request = in_namespace(CALL, namespace, GetContainerRequest { id: id.to_string() })?;
        let answer = self.answer(CALL, self.deadline, client.get(request)).await?;
        answer.container.ok_or_else(|| empty(CALL))
    }

    /// All containers of a namespace, one by one: a list of many in one answer would exceed what an answer may have.
    pub(super) async fn each_container(
        &self,
        namespace: &str,
        mut each: impl FnMut(Container),
    ) -> Result<(), CallError> {
        const CALL: &str = "Containers.ListStream";
        self.stats.calls_list.fetch_add(1, Relaxed);
        let mut client =
            containerd_client::services::v1::containers_client::ContainersClient::new(self.channel.clone())
                .max_decoding_message_size(MAX_ANSWER_LEN);
        let request = in_namespace(CALL, namespace, ListContainersRequest { filters: vec![] })?;
        let read = async {
            let mut stream = client.list_stream(request).await?.into_inner();
            let mut count = 0;
            while let Some(message) = stream.message().await? {
                count += 1;
                if count > MAX_CONTAINERS {
                    return Err(Status::resource_exhausted("more containers than are listed"));
                }
                message.container.into_iter().for_each(&mut each);
            }
            Ok(())
        };
        within(CALL, self.list_deadline, read).await?.map_err(|status| self.failed(CALL, status))
    }

    /// All tasks of a namespace. containerd asks every shim for this, one after the other: one that hangs makes the whole
    /// list late, which says nothing about the daemon.
    pub(super) async fn tasks(&self, namespace: &str) -> Result<Vec<Process>, CallError> {
        const CALL: &str = "Tasks.List";
        self.stats.calls_list.fetch_add(1, Relaxed);
        let mut client = containerd_client::services::v1::tasks_client::TasksClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ANSWER_LEN);
        let request = in_namespace(CALL, namespace, ListTasksRequest { filter: String::new() })?;
        Ok(self.answer(CALL, self.list_deadline, client.list(request)).await?.tasks)
    }

    /// All image names of a namespace with their targets' digests.
    pub(super) async fn image_targets(&self, namespace: &str) -> Result<Vec<(String, String)>, CallError> {
        const CALL: &str = "Images.List";
        self.stats.calls_list.fetch_add(1, Relaxed);
        let mut client = containerd_client::services::v1::images_client::ImagesClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ANSWER_LEN);
        let request = in_namespace(CALL, namespace, ListImagesRequest { filters: vec![] })?;
        let images = self.answer(CALL, self.list_deadline, client.list(request)).await?.images;
        Ok(images.into_iter().filter_map(|image| Some((image.name, image.target?.digest))).collect())
    }

    /// Digest of what an image's name stands for.
    pub(super) async fn image_target(&self, namespace: &str, name: &str) -> Result<String, CallError> {
        const CALL: &str = "Images.Get";
        self.stats.calls_image.fetch_add(1, Relaxed);
        let mut client = containerd_client::services::v1::images_client::ImagesClient::new(self.channel.clone());
        let request = in_namespace(CALL, namespace, GetImageRequest { name: name.to_owned() })?;
        let image = self.answer(CALL, self.deadline, client.get(request)).await?.image;
        image.and_then(|image| image.target).map(|target| target.digest).ok_or_else(|| empty(CALL))
    }

    /// A blob, which has to be a small one.
    pub(super) async fn blob(&self, namespace: &str, digest: &Str) -> Result<Vec<u8>, CallError> {
        const CALL: &str = "Content.Read";
        self.stats.calls_image.fetch_add(1, Relaxed);
        let mut client = containerd_client::services::v1::content_client::ContentClient::new(self.channel.clone());
        let request = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let request = in_namespace(CALL, namespace, request)?;
        let read = async {
            let mut stream = client.read(request).await?.into_inner();
            let mut blob = vec![];
            while let Some(message) = stream.message().await? {
                if blob.len() + message.data.len() > MAX_MANIFEST_LEN {
                    return Err(Status::resource_exhausted("too large for a manifest"));
                }
                blob.extend_from_slice(&message.data);
            }
            Ok(blob)
        };
        within(CALL, self.deadline, read).await?.map_err(|status| self.failed(CALL, status))
    }

    async fn answer<T>(
        &self,
        call: &'static str,
        deadline: Duration,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        let answer = within(call, deadline, answer).await.inspect_err(|_| {
            self.stats.calls_late.fetch_add(1, Relaxed);
        })?;
        answer.map(Response::into_inner).map_err(|status| self.failed(call, status))
    }

    fn failed(&self, call: &'static str, status: Status) -> CallError {
        if status.code() != Code::NotFound {
            self.stats.calls_failed.fetch_add(1, Relaxed);
        }
        CallError::new(call, status)
    }
}

/// How the subscription is called in errors.
const SUBSCRIBE: &str = "Events.Subscribe";

/// The next event of a subscription; waits as long as nothing happens.
pub(super) async fn next_event(stream: &mut Streaming<Envelope>) -> Result<Envelope, CallError> {
    match stream.message().await {
        Ok(Some(envelope)) => Ok(envelope),
        Ok(None) => Err(CallError::Lost { call: SUBSCRIBE, reason: "the event stream ended".into() }),
        Err(status) => Err(CallError::new(SUBSCRIBE, status)),
    }
}

async fn within<T>(call: &'static str, after: Duration, work: impl Future<Output = T>) -> Result<T, CallError> {
    tokio::time::timeout(after, work).await.map_err(|_| CallError::Deadline { call, after })
}

fn in_namespace<T>(call: &'static str, namespace: &str, message: T) -> Result<Request<T>, CallError> {
    let value: MetadataValue<Ascii> = namespace.parse().map_err(|_| CallError::Answer {
        call,
        code: Code::InvalidArgument,
        reason: "a namespace's name that fits into no header".into(),
    })?;
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", value);
    Ok(request)
}

fn empty(call: &'static str) -> CallError {
    CallError::Answer { call, code: Code::DataLoss, reason: "an answer without content".into() }
}

/// Whether the listener may speak for the host. The kernel recorded who called `listen`: what the socket file looks like
/// does not matter, nor does it matter who replaces it between a look and the connect.
fn check_peer(stream: &UnixStream) -> Result<(), String> {
    let peer = stream.peer_cred().map_err(|error| format!("ask who listens: {error}"))?;
    // Who runs the tracker as another user than root, to try it out, may use that user's daemons.
    let ours = nix::unistd::geteuid().as_raw();
    if peer.uid() != 0 && peer.uid() != ours {
        return Err(format!("its listener runs as uid {}, only root may speak for the host", peer.uid()));
    }
    let pid_ns = |process: String| std::fs::metadata(format!("/proc/{process}/ns/pid")).ok().map(|ns| ns.ino());
    let listener = peer.pid().and_then(|pid| pid_ns(pid.to_string()));
    if listener.is_some() && listener != pid_ns("self".into()) {
        return Err("its listener lives in another pid namespace: its pids are not the host's".into());
    }
    Ok(())
}
