//! One connection to one containerd: its calls, which all have a deadline and are counted.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use containerd_client::services::v1::{
    Container, GetContainerRequest, GetImageRequest, ListContainersRequest, ListImagesRequest, ListNamespacesRequest,
    ListTasksRequest, ReadContentRequest, SubscribeRequest,
};
use containerd_client::types::Envelope;
use containerd_client::types::v1::Process;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use super::Stats;
use super::images::MAX_MANIFEST_LEN;
use crate::container::{ContainerId, Domain, Str};
use crate::source::grpc::{self, CallError, within};

/// Bytes of one answer; containerd sends at most 16 MiB.
const MAX_ANSWER_LEN: usize = 16 << 20;
/// Containers and tasks of one namespace that are listed.
pub(super) const MAX_CONTAINERS: usize = 100_000;

/// A connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Client {
    channel: Channel,
    deadline: Duration,
    list_deadline: Duration,
    stats: Arc<Stats>,
}

impl Client {
    /// Connects, and looks who is there.
    pub(super) async fn connect(
        path: &Path,
        domain: Domain,
        deadline: Duration,
        list_deadline: Duration,
        stats: Arc<Stats>,
    ) -> Result<Self, CallError> {
        Ok(Self { channel: grpc::connect(path, domain, deadline).await?, deadline, list_deadline, stats })
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

    /// A blob, which has to be a small one. `calls` counts it.
    pub(super) async fn blob(
        &self,
        namespace: &str,
        digest: &Str,
        calls: fn(&Stats) -> &AtomicU64,
    ) -> Result<Vec<u8>, CallError> {
        const CALL: &str = "Content.Read";
        calls(&self.stats).fetch_add(1, Relaxed);
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
