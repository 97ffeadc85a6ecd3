//! One gRPC connection to a daemon's unix socket: who is at the other end, and how calls fail.
//!
//! The connection is made once. When it breaks, every call fails and the session ends: nothing reconnects behind
//! our back, since events would be missed without anybody knowing.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use super::peer;
use super::supervise::End;
use crate::container::Domain;

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
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
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Answer { code: Code::NotFound, .. })
    }

    pub(crate) fn new(call: &'static str, status: Status) -> Self {
        // A status with a source was made on this side, from a broken connection; what the daemon answers has none.
        let lost = std::error::Error::source(&status).is_some()
            || matches!(status.code(), Code::Unavailable | Code::Cancelled);
        // Answers come from outside: what ends up in a log line or in `sources` is bounded.
        let reason: String = status.message().chars().take(200).collect();
        if lost { Self::Lost { call, reason } } else { Self::Answer { call, code: status.code(), reason } }
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

/// Connects to a socket, and looks whether who is there may speak for `domain`.
pub(crate) async fn connect(path: &Path, domain: Domain, deadline: Duration) -> Result<Channel, CallError> {
    let shown = path.display().to_string();
    let stream = within("connect", deadline, UnixStream::connect(path))
        .await?
        .map_err(|source| CallError::Absent { path: shown.clone(), source })?;
    peer::check(&stream, domain).map_err(|reason| CallError::Unsuitable { path: shown.clone(), reason })?;

    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take().ok_or_else(|| std::io::Error::other("one connection for each session"));
        async move { stream.map(TokioIo::new) }
    });
    // The name is not used for anything; this is the one that containerd's own clients send.
    let endpoint = Endpoint::from_static("http://[::]");
    within("connect", deadline, endpoint.connect_with_connector(connector))
        .await?
        .map_err(|source| CallError::Protocol { path: shown, source })
}

/// `work`, or an error when it takes longer than `after`.
pub(crate) async fn within<T>(
    call: &'static str,
    after: Duration,
    work: impl Future<Output = T>,
) -> Result<T, CallError> {
    tokio::time::timeout(after, work).await.map_err(|_| CallError::Deadline { call, after })
}
