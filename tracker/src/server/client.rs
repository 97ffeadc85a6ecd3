//! The debug socket's client: one request, one answer, or one stream of lines.
//!
//! Errors say what to do about them: they are what a person reads who typed `tracker ps`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::api::{Refusal, WatchLine};

/// Where the tracker listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/tracker/tracker.sock";

/// Time for connecting and for an answer's head.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for the whole of an answer that is not a stream.
const BODY_PATIENCE: Duration = Duration::from_secs(60);
/// The largest answer that is read: some hundred thousand containers.
const MAX_ANSWER: usize = 512 << 20;
/// The longest line of a stream; a bundle is one line.
const MAX_LINE: usize = MAX_ANSWER;

/// Asks a tracker through its debug socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens there.
    #[error("no tracker answers at {}: {source}", socket.display())]
    NotThere {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file system does not let us in.
    #[error("not permitted to ask the tracker at {}", socket.display())]
    NotPermitted {
        /// The socket.
        socket: PathBuf,
    },
    /// It accepted and then did not answer.
    #[error("the tracker at {} does not answer within {} s", socket.display(), PATIENCE.as_secs())]
    Silent {
        /// The socket.
        socket: PathBuf,
    },
    /// It answered with an error.
    #[error("{}", refusal.error)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        refusal: Box<Refusal>,
    },
    /// What came back is no answer of a tracker.
    #[error("what answers at {} does not speak like a tracker: {what}", socket.display())]
    Garbled {
        /// The socket.
        socket: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl ClientError {
    /// What to do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            ClientError::NotThere { .. } => Some(
                "start one with `tracker run` (as root), or name its socket with --socket or TRACKER_SOCKET".to_owned(),
            ),
            ClientError::NotPermitted { .. } => {
                Some("ask as root, or let the tracker give its socket to one of your groups".to_owned())
            }
            ClientError::Silent { .. } => Some("see whether it is stopped or starved: `tracker doctor`".to_owned()),
            ClientError::Refused { refusal, .. } => refusal.remedy.clone(),
            ClientError::Garbled { .. } => Some("name the tracker's socket with --socket or TRACKER_SOCKET".to_owned()),
        }
    }
}

impl Client {
    /// A client of the tracker that listens at `socket`. Connects with each request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Where it asks.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET`s one JSON value. `path` begins with a slash; `query` is encoded here.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T, ClientError> {
        let body = self.get_bytes(path, query).await?;
        serde_json::from_slice(&body).map_err(|error| self.garbled(error))
    }

    /// `GET`s an answer as it is.
    pub async fn get_bytes(&self, path: &str, query: &[(&str, &str)]) -> Result<Bytes, ClientError> {
        let response = self.send(Method::GET, &with_query(path, query), Bytes::new()).await?;
        self.read(response).await
    }

    /// Sends `body` as JSON and reads one JSON value.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.garbled(error))?;
        let response = self.send(Method::POST, path, body.into()).await?;
        let body = self.read(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.garbled(error))
    }

    /// `DELETE`s, and reads one JSON value: what there was.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.send(Method::DELETE, path, Bytes::new()).await?;
        let body = self.read(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.garbled(error))
    }

    /// `GET`s a stream of JSON lines, for as long as both sides like.
    pub async fn watch(&self, query: &[(&str, &str)]) -> Result<Watch, ClientError> {
        self.lines("/v1/watch", query).await
    }

    /// `GET`s the stream of JSON lines that another path has.
    pub async fn lines(&self, path: &str, query: &[(&str, &str)]) -> Result<Watch, ClientError> {
        let response = self.send(Method::GET, &with_query(path, query), Bytes::new()).await?;
        Ok(Watch { client: self.clone(), body: response.into_body(), pending: Vec::new(), searched: 0 })
    }

    /// Sends a request and reads the answer's head; an answer that is not 2xx becomes an error.
    async fn send(&self, method: Method, target: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let silent = || ClientError::Silent { socket: self.socket.clone() };
        let head = tokio::time::timeout(PATIENCE, self.exchange(method, target, body));
        let response = head.await.map_err(|_| silent())??;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.read(response).await?;
        let refusal: Refusal = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Refusal { error: format!("the tracker answered {status}"), ..Refusal::default() });
        Err(ClientError::Refused { status: status.as_u16(), refusal: Box::new(refusal) })
    }

    async fn exchange(&self, method: Method, target: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::NotPermitted { socket: self.socket.clone() },
            _ => ClientError::NotThere { socket: self.socket.clone(), source },
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.garbled(error))?;
        // Ends with the answer, or with the runtime: a client asks and goes.
        tokio::spawn(connection);
        let body = if body.is_empty() { Empty::new().boxed() } else { Full::new(body).boxed() };
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "tracker")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| self.garbled(error))?;
        sender.send_request(request).await.map_err(|error| self.garbled(error))
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect();
        let body = tokio::time::timeout(BODY_PATIENCE, body).await;
        let body = body.map_err(|_| ClientError::Silent { socket: self.socket.clone() })?;
        Ok(body.map_err(|error| self.garbled(error))?.to_bytes())
    }

    fn garbled(&self, what: impl std::fmt::Display) -> ClientError {
        ClientError::Garbled { socket: self.socket.clone(), what: what.to_string() }
    }
}

/// A stream of lines.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    body: Incoming,
    pending: Vec<u8>,
    /// Bytes of `pending` that hold no line break.
    searched: usize,
}

impl Watch {
    /// The next line; `None` when the tracker ended the stream.
    pub async fn next(&mut self) -> Result<Option<WatchLine>, ClientError> {
        match self.next_text().await? {
            Some(line) => serde_json::from_slice(&line).map(Some).map_err(|error| self.client.garbled(error)),
            None => Ok(None),
        }
    }

    /// The next line as it came, with its line break.
    pub async fn next_text(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        loop {
            if let Some(end) = self.pending[self.searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(self.searched + end + 1);
                self.searched = 0;
                return Ok(Some(std::mem::replace(&mut self.pending, rest)));
            }
            self.searched = self.pending.len();
            if self.pending.len() > MAX_LINE {
                return Err(self.client.garbled("a line without end"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) if error.is_incomplete_message() => return Ok(None),
                Some(Err(error)) => return Err(self.client.garbled(error)),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.pending.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

fn with_query(path: &str, query: &[(&str, &str)]) -> String {
    if query.is_empty() {
        return path.to_owned();
    }
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    format!("{path}?{query}")
}

/// `segment` as one segment of a path.
pub fn encode_segment(segment: &str) -> String {
    // What form encoding leaves alone is allowed in a path; its `+` for a blank is not the same there.
    form_urlencoded::byte_serialize(segment.as_bytes()).collect::<String>().replace('+', "%20")
}

/// Whether an answer's status means that the thing asked for is not there.
pub fn is_not_found(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { status, .. } if *status == StatusCode::NOT_FOUND.as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_tracker_comes_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let client = Client::new(directory.path().join("none.sock"));
        let error = client.get::<Refusal>("/v1/sources", &[]).await.unwrap_err();
        assert!(matches!(error, ClientError::NotThere { .. }), "{error}");
        assert!(error.to_string().contains("none.sock"), "{error}");
        assert!(error.remedy().unwrap().contains("tracker run"));
    }

    #[test]
    fn ids_and_selectors_are_encoded() {
        assert_eq!(encode_segment("a/b c%"), "a%2Fb%20c%25");
        assert_eq!(with_query("/x", &[("selector", "a=b,c in (d)")]), "/x?selector=a%3Db%2Cc+in+%28d%29");
        assert_eq!(with_query("/x", &[]), "/x");
    }
}
