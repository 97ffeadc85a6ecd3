//! Podman's REST service on a unix socket: who is at the other end, and calls that all have a deadline, a size, and are
//! counted.
//!
//! Each call has a connection of its own, as podman's own client makes them, so that one that hangs keeps no other from
//! its answer, and so that who answers is looked at each time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Fuse};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Stats;
use super::answer::{Info, Inspection, PodAnswer, Row};
use super::ledger::Name;
use crate::container::Domain;
use crate::source::peer;
use crate::source::supervise::End;

/// Bytes of an answer about one container or pod. Podman allows labels of any length.
const MAX_ANSWER_LEN: usize = 16 << 20;
/// Bytes of a list: some thousand bytes for each of a hundred thousand containers.
const MAX_LIST_LEN: usize = 128 << 20;
/// Bytes of one event, which repeats all labels of its container.
const MAX_EVENT_LEN: usize = 16 << 20;

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// There is no socket, or nobody listens on it.
    #[error("connect to {path}: {source}")]
    Absent { path: String, source: std::io::Error },
    /// Somebody listens who must not speak for these containers.
    #[error("{path}: {reason}")]
    Unsuitable { path: String, reason: String },
    /// No answer in time.
    #[error("{call}: no answer within {after:?}")]
    Deadline { call: &'static str, after: Duration },
    /// The connection broke, or what came back is no HTTP.
    #[error("{call}: connection lost: {reason}")]
    Lost { call: &'static str, reason: String },
    /// The service answered with an error, or with what cannot be read.
    #[error("{call}: {status}: {reason}")]
    Answer { call: &'static str, status: StatusCode, reason: String },
}

impl CallError {
    /// Whether there is no such thing as was asked for.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Answer { status: StatusCode::NOT_FOUND, .. })
    }
}

impl From<CallError> for End {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unsuitable { .. } => End::Unsuitable(error.to_string()),
            _ => End::Lost(error.to_string()),
        }
    }
}

/// Asks one service. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Client {
    path: Arc<Path>,
    domain: Domain,
    deadline: Duration,
    list_deadline: Duration,
    stats: Arc<Stats>,
}

impl Client {
    pub(super) fn new(
        path: Arc<Path>,
        domain: Domain,
        deadline: Duration,
        list_deadline: Duration,
        stats: Arc<Stats>,
    ) -> Self {
        Self { path, domain, deadline, list_deadline, stats }
    }

    /// The service's version.
    pub(super) async fn version(&self) -> Result<String, CallError> {
        let info: Info =
            self.get("info", &self.stats.calls_alive, "/v4.0.0/libpod/info", self.deadline, MAX_ANSWER_LEN).await?;
        Ok(info.version.version.chars().take(64).collect())
    }

    /// Whether it lives. The cheapest call there is.
    pub(super) async fn ping(&self) -> Result<(), CallError> {
        self.stats.calls_alive.fetch_add(1, Relaxed);
        self.within("ping", self.deadline, async {
            let call = self.open("ping", "/v4.0.0/libpod/_ping").await?;
            call.read("ping", MAX_ANSWER_LEN).await.map(drop)
        })
        .await
    }

    /// All containers, those that do not run included.
    pub(super) async fn list(&self) -> Result<Vec<Row>, CallError> {
        let target = "/v4.0.0/libpod/containers/json?all=true";
        let rows: Option<_> =
            self.get("list", &self.stats.calls_list, target, self.list_deadline, MAX_LIST_LEN).await?;
        Ok(rows.unwrap_or_default())
    }

    /// All about one container.
    pub(super) async fn inspect(&self, name: &Name) -> Result<Inspection, CallError> {
        // An id is made of characters that a path may have.
        let target = format!("/v4.0.0/libpod/containers/{}/json", name.id);
        self.get("inspect", &self.stats.calls_inspect, &target, self.deadline, MAX_ANSWER_LEN).await
    }

    /// All about one pod.
    pub(super) async fn pod(&self, id: &str) -> Result<PodAnswer, CallError> {
        let target = format!("/v4.0.0/libpod/pods/{id}/json");
        self.get("pod", &self.stats.calls_pod, &target, self.deadline, MAX_ANSWER_LEN).await
    }

    /// Everything that happens from now on.
    pub(super) async fn events(&self) -> Result<Events, CallError> {
        let call =
            self.within("events", self.deadline, self.open("events", "/v4.0.0/libpod/events?stream=true")).await?;
        Ok(Events { call, pending: vec![], searched: 0 })
    }

    async fn get<T: DeserializeOwned>(
        &self,
        call: &'static str,
        counter: &AtomicU64,
        target: &str,
        deadline: Duration,
        max_len: usize,
    ) -> Result<T, CallError> {
        counter.fetch_add(1, Relaxed);
        let body =
            self.within(call, deadline, async { self.open(call, target).await?.read(call, max_len).await }).await;
        let answer = body.and_then(|body| {
            serde_json::from_slice(&body).map_err(|error| CallError::Answer {
                call,
                status: StatusCode::OK,
                reason: short(&error.to_string()),
            })
        });
        answer.inspect_err(|error| match error {
            CallError::Answer { .. } if !error.is_not_found() => _ = self.stats.calls_failed.fetch_add(1, Relaxed),
            _ => {}
        })
    }

    /// Connects, sends the request, and reads the answer's head.
    async fn open(&self, call: &'static str, target: &str) -> Result<Call, CallError> {
        let shown = || self.path.display().to_string();
        let stream =
            UnixStream::connect(&*self.path).await.map_err(|source| CallError::Absent { path: shown(), source })?;
        peer::check(&stream, self.domain).map_err(|reason| CallError::Unsuitable { path: shown(), reason })?;
        let lost = |error: hyper::Error| CallError::Lost { call, reason: short(&error.to_string()) };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        // The connection is driven by whoever waits for the answer: it needs no task of its own.
        let mut connection = connection.map(drop).boxed().fuse();
        let request = Request::builder().uri(target).header(header::HOST, "d").body(Empty::<Bytes>::new());
        let request = request.map_err(|error| CallError::Lost { call, reason: error.to_string() })?;
        let asked = sender.send_request(request);
        let response = beside(&mut connection, asked).await.map_err(lost)?;
        let call_and_head = Call { response, connection, _sender: sender };
        let status = call_and_head.response.status();
        if status.is_success() {
            return Ok(call_and_head);
        }
        let body = call_and_head.read(call, MAX_ANSWER_LEN).await?;
        #[derive(Default, serde::Deserialize)]
        struct Refusal {
            message: String,
        }
        let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
        Err(CallError::Answer { call, status, reason: short(&refusal.message) })
    }

    async fn within<T>(
        &self,
        call: &'static str,
        after: Duration,
        work: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        tokio::time::timeout(after, work).await.unwrap_or_else(|_| {
            self.stats.calls_late.fetch_add(1, Relaxed);
            Err(CallError::Deadline { call, after })
        })
    }
}

/// An answer whose head was read.
struct Call {
    response: Response<Incoming>,
    connection: Driven,
    /// A connection ends with who asks.
    _sender: http1::SendRequest<Empty<Bytes>>,
}

impl Call {
    async fn read(self, call: &'static str, max_len: usize) -> Result<Bytes, CallError> {
        let Self { response, mut connection, _sender } = self;
        let body = Limited::new(response.into_body(), max_len).collect();
        let body = beside(&mut connection, body).await;
        body.map(|body| body.to_bytes()).map_err(|error| CallError::Lost { call, reason: short(&error.to_string()) })
    }
}

/// Waits for `work`, and drives the connection that it needs.
async fn beside<T>(connection: &mut Driven, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| {
        // When the connection is over, what it brought is still to be taken.
        let _ = connection.poll_unpin(context);
        work.as_mut().poll(context)
    })
    .await
}

/// A connection, which is quiet when it is over.
type Driven = Fuse<BoxFuture<'static, ()>>;

/// The stream of events.
pub(super) struct Events {
    call: Call,
    pending: Vec<u8>,
    /// Bytes of `pending` that hold no line break.
    searched: usize,
}

impl Events {
    /// The next event's line; waits as long as nothing happens. Safe to drop and call again.
    pub(super) async fn next(&mut self) -> Result<Vec<u8>, CallError> {
        const CALL: &str = "events";
        let lost = |reason: &str| CallError::Lost { call: CALL, reason: reason.into() };
        loop {
            if let Some(end) = self.pending[self.searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(self.searched + end + 1);
                self.searched = 0;
                return Ok(std::mem::replace(&mut self.pending, rest));
            }
            self.searched = self.pending.len();
            if self.pending.len() > MAX_EVENT_LEN {
                return Err(lost("an event without end"));
            }
            let Call { response, connection, .. } = &mut self.call;
            match beside(connection, response.body_mut().frame()).await {
                None => return Err(lost("the stream of events ended")),
                Some(Err(error)) => return Err(lost(&short(&error.to_string()))),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.pending.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

/// Answers come from outside: what ends up in a log line or in `sources` is bounded.
fn short(text: &str) -> String {
    text.chars().take(200).collect()
}
