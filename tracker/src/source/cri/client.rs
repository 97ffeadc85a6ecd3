//! One connection to one CRI server: its calls, which all have a deadline and are counted.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    Container, ContainerEventResponse, ContainerStatusRequest, ContainerStatusResponse, GetEventsRequest,
    ListContainersRequest, ListPodSandboxRequest, PodSandbox, PodSandboxStatusRequest, PodSandboxStatusResponse,
    VersionRequest, VersionResponse,
};
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use super::Stats;
use crate::container::{ContainerId, Domain};
use crate::source::grpc::{self, CallError, within};

/// Bytes of one answer; kubelets take as many.
const MAX_ANSWER_LEN: usize = 16 << 20;
/// How the event stream is called in errors.
const EVENTS: &str = "GetContainerEvents";

/// A connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Client {
    cri: RuntimeServiceClient<Channel>,
    deadline: Duration,
    list_deadline: Duration,
    stats: Arc<Stats>,
}

/// A whole list: all pods' sandboxes, and all containers.
pub(super) type List = (Vec<PodSandbox>, Vec<Container>);

impl Client {
    /// Connects, and looks who is there.
    pub(super) async fn connect(
        path: &Path,
        deadline: Duration,
        list_deadline: Duration,
        stats: Arc<Stats>,
    ) -> Result<Self, CallError> {
        let channel = grpc::connect(path, Domain::Host, deadline).await?;
        let cri = RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_LEN);
        Ok(Self { cri, deadline, list_deadline, stats })
    }

    /// Who answers. The cheapest call there is: also the question whether it is alive.
    pub(super) async fn version(&self) -> Result<VersionResponse, CallError> {
        self.stats.calls_alive.fetch_add(1, Relaxed);
        let mut cri = self.cri.clone();
        self.answer("Version", self.deadline, cri.version(VersionRequest { version: "v1".into() })).await
    }

    /// Lists everything. Sandboxes are listed first: a container that is listed then has its sandbox in the list, unless
    /// the pod is younger than that.
    pub(super) async fn list(&self) -> Result<List, CallError> {
        self.stats.calls_list.fetch_add(2, Relaxed);
        let mut cri = self.cri.clone();
        let request = ListPodSandboxRequest { filter: None };
        let pods = self.answer("ListPodSandbox", self.list_deadline, cri.list_pod_sandbox(request)).await?.items;
        let request = ListContainersRequest { filter: None };
        let containers = self.answer("ListContainers", self.list_deadline, cri.list_containers(request)).await?;
        Ok((pods, containers.containers))
    }

    /// All about one sandbox.
    pub(super) async fn pod_status(&self, id: &ContainerId) -> Result<PodSandboxStatusResponse, CallError> {
        self.stats.calls_status.fetch_add(1, Relaxed);
        let mut cri = self.cri.clone();
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_string(), verbose: true };
        self.answer("PodSandboxStatus", self.deadline, cri.pod_sandbox_status(request)).await
    }

    /// All about one container.
    pub(super) async fn container_status(&self, id: &ContainerId) -> Result<ContainerStatusResponse, CallError> {
        self.stats.calls_status.fetch_add(1, Relaxed);
        let mut cri = self.cri.clone();
        let request = ContainerStatusRequest { container_id: id.to_string(), verbose: true };
        self.answer("ContainerStatus", self.deadline, cri.container_status(request)).await
    }

    /// Asks for all events. The server may send no headers before the first event, so that this does not return before
    /// something happens, and has no deadline.
    pub(super) fn events(
        &self,
    ) -> impl Future<Output = Result<Streaming<ContainerEventResponse>, CallError>> + Send + use<> {
        let mut cri = self.cri.clone();
        async move {
            let events = cri.get_container_events(GetEventsRequest {}).await;
            events.map(Response::into_inner).map_err(|status| CallError::new(EVENTS, status))
        }
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
        answer.map(Response::into_inner).map_err(|status| {
            if !matches!(status.code(), Code::NotFound | Code::Unimplemented) {
                self.stats.calls_failed.fetch_add(1, Relaxed);
            }
            CallError::new(call, status)
        })
    }
}

/// The next event; `None` when the server has no more to tell. Waits as long as nothing happens.
pub(super) async fn next_event(
    stream: &mut Streaming<ContainerEventResponse>,
) -> Result<Option<ContainerEventResponse>, CallError> {
    stream.message().await.map_err(|status| CallError::new(EVENTS, status))
}
