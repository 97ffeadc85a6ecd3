//! HTTP/1.1 with a daemon that speaks JSON on a unix socket: who is at the other end, and answers that are bounded.
//!
//! Each call has a connection of its own, which is looked at before anything is asked: what answers there may have been
//! replaced since the last call. No answer is read past its cap, and lists and event streams are cut into their objects
//! as they arrive, so that one object that is too long or broken costs no other. Deadlines are the caller's.

mod objects;

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

pub(crate) use self::objects::Object;
use self::objects::Splitter;
use super::peer::check;
use super::supervise::End;
use crate::container::Domain;

/// Bytes of a refusal's text that are read.
const MAX_REFUSAL: usize = 64 << 10;
/// Bytes of an answer's head.
const MAX_HEAD: usize = 64 << 10;

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// There is no socket, or nobody listens on it.
    #[error("connect to {path}: {source}")]
    Absent { path: String, source: std::io::Error },
    /// Somebody listens who must not speak for whom the socket stands for.
    #[error("{path}: {reason}")]
    Unsuitable { path: String, reason: String },
    /// No answer in time.
    #[error("{call}: no answer within {after:?}")]
    Deadline { call: &'static str, after: Duration },
    /// The connection broke, or never was one of HTTP.
    #[error("{call}: connection lost: {reason}")]
    Lost { call: &'static str, reason: String },
    /// The daemon answered with an error.
    #[error("{call}: {status}: {reason}")]
    Refused { call: &'static str, status: StatusCode, reason: String },
    /// The daemon answered with what cannot be read.
    #[error("{call}: {reason}")]
    Garbled { call: &'static str, reason: String },
}

impl CallError {
    /// Whether there is no such thing as was asked for.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, .. })
    }

    fn lost(call: &'static str, reason: impl ToString) -> Self {
        Self::Lost { call, reason: brief(&reason.to_string()) }
    }

    fn garbled(call: &'static str, reason: impl ToString) -> Self {
        Self::Garbled { call, reason: brief(&reason.to_string()) }
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

/// Whom calls go to. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    path: Arc<PathBuf>,
    domain: Domain,
}

impl Daemon {
    /// Whoever listens on a socket, if he may speak for `domain`.
    pub(crate) fn at(path: &Path, domain: Domain) -> Self {
        Self { path: Arc::new(path.to_owned()), domain }
    }

    /// `GET`s an answer of at most `max` bytes, and its headers.
    pub(crate) async fn get(
        &self,
        call: &'static str,
        target: &str,
        deadline: Duration,
        max: usize,
    ) -> Result<(HeaderMap, Bytes), CallError> {
        let exchange = async {
            let mut answer = self.send(call, target).await?;
            let body = answer.read(call, max).await?;
            Ok((answer.headers, body))
        };
        within(call, deadline, exchange).await?
    }

    /// `GET`s an answer of at most `max` bytes of JSON.
    pub(crate) async fn json<T: for<'de> Deserialize<'de>>(
        &self,
        call: &'static str,
        target: &str,
        deadline: Duration,
        max: usize,
    ) -> Result<T, CallError> {
        let (_, body) = self.get(call, target, deadline, max).await?;
        serde_json::from_slice(&body).map_err(|error| CallError::garbled(call, error))
    }

    /// `GET`s a list or a stream of JSON objects, each of at most `max` bytes. The deadline is that of its head.
    pub(crate) async fn objects(
        &self,
        call: &'static str,
        target: &str,
        deadline: Duration,
        max: usize,
    ) -> Result<Objects, CallError> {
        let answer = within(call, deadline, self.send(call, target)).await??;
        Ok(Objects { call, answer, splitter: Splitter::new(max) })
    }

    /// The process that listens there, if it can be told.
    pub(crate) async fn listener(&self, deadline: Duration) -> Option<u32> {
        let connected = within("connect", deadline, UnixStream::connect(&*self.path)).await.ok()?.ok()?;
        connected.peer_cred().ok()?.pid().and_then(|pid| u32::try_from(pid).ok())
    }

    async fn send(&self, call: &'static str, target: &str) -> Result<Answer, CallError> {
        let shown = || self.path.display().to_string();
        let stream = UnixStream::connect(&*self.path).await;
        let stream = stream.map_err(|source| CallError::Absent { path: shown(), source })?;
        check(&stream, self.domain).map_err(|reason| CallError::Unsuitable { path: shown(), reason })?;
        let mut builder = http1::Builder::new();
        let handshake = builder.max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| CallError::lost(call, error))?;
        let mut connection: Connection = connection.map(drop).boxed();
        let request = Request::get(target).header(header::HOST, "daemon").header(header::CONNECTION, "close");
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| CallError::garbled(call, error))?;
        let response = drive(&mut connection, sender.send_request(request)).await;
        let response = response.map_err(|error| CallError::lost(call, error))?;
        let status = response.status();
        let mut answer = Answer::new(response, connection);
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer.read(call, MAX_REFUSAL).await?;
        Err(CallError::Refused { call, status, reason: brief(&reason(&text)) })
    }
}

/// What moves the bytes of one connection; it ends with it, and how is seen by whoever reads the answer.
type Connection = BoxFuture<'static, ()>;

/// An answer whose head has arrived.
struct Answer {
    headers: HeaderMap,
    body: Incoming,
    connection: Connection,
}

impl Answer {
    fn new(response: Response<Incoming>, connection: Connection) -> Self {
        let (parts, body) = response.into_parts();
        // One that has ended must not be polled again: nothing is left to be moved then.
        Self { headers: parts.headers, body, connection }
    }

    async fn read(&mut self, call: &'static str, max: usize) -> Result<Bytes, CallError> {
        let body = Limited::new(&mut self.body, max).collect();
        match drive(&mut self.connection, body).await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                Err(CallError::garbled(call, format!("an answer of more than {max} bytes")))
            }
            Err(error) => Err(CallError::lost(call, error)),
        }
    }
}

/// A list or a stream of JSON objects.
pub(crate) struct Objects {
    call: &'static str,
    answer: Answer,
    splitter: Splitter,
}

impl Objects {
    /// The next object; `None` when the list is complete, or the daemon has ended the stream. Safe to drop and call
    /// again.
    pub(crate) async fn next(&mut self) -> Result<Option<Object>, CallError> {
        loop {
            if let Some(object) = self.splitter.next().map_err(|error| CallError::garbled(self.call, error))? {
                return Ok(Some(object));
            }
            let body = &mut self.answer.body;
            let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
            match drive(&mut self.answer.connection, frame).await {
                None if self.splitter.is_between() => return Ok(None),
                None => return Err(CallError::lost(self.call, "it ended in the middle of an object")),
                Some(Err(error)) => return Err(CallError::lost(self.call, error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.splitter.push(&data);
                    }
                }
            }
        }
    }

    /// The next object, if all of it has arrived.
    pub(crate) fn ready(&mut self) -> Result<Option<Object>, CallError> {
        self.next().now_or_never().unwrap_or(Ok(None))
    }
}

/// Awaits `work` while `connection` moves its bytes.
async fn drive<T>(connection: &mut Connection, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|context: &mut Context<'_>| {
        // What it read before it ended is there for `work`.
        if connection.as_mut().poll(context).is_ready() {
            *connection = std::future::pending().boxed();
        }
        match work.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// `work`, or an error when it takes longer than `after`.
pub(crate) async fn within<T>(
    call: &'static str,
    after: Duration,
    work: impl Future<Output = T>,
) -> Result<T, CallError> {
    tokio::time::timeout(after, work).await.map_err(|_| CallError::Deadline { call, after })
}

/// What a daemon says of its refusal: Docker and Podman put it into an object.
fn reason(text: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    match serde_json::from_slice::<Refusal>(text) {
        Ok(refusal) => refusal.message,
        Err(_) => String::from_utf8_lossy(text).trim().to_owned(),
    }
}

/// Answers come from outside: what ends up in a log line or in `sources` is bounded.
fn brief(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// Answers one call with these bytes, and closes.
    fn answering(answer: impl Into<Vec<u8>>) -> (tempfile::TempDir, Daemon) {
        let answer = answer.into();
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("sock")).unwrap();
        let daemon = Daemon::at(&directory.path().join("sock"), Domain::Host);
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&answer);
        });
        (directory, daemon)
    }

    async fn get(answer: impl Into<Vec<u8>>) -> Result<Bytes, CallError> {
        let (_directory, daemon) = answering(answer);
        daemon.get("Get", "/x", SOON, 16).await.map(|(_, body)| body)
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn an_answer_is_read_to_its_cap() {
        assert_eq!(get(ok("sixteen bytes...")).await.unwrap(), "sixteen bytes...");
        let error = get(ok("seventeen bytes..")).await.unwrap_err();
        assert!(matches!(&error, CallError::Garbled { reason, .. } if reason.contains("16")), "{error}");
        let until_closed = "HTTP/1.1 200 OK\r\n\r\nto the end";
        assert_eq!(get(until_closed).await.unwrap(), "to the end");
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        for (answer, expected) in [
            (
                "HTTP/1.1 404 Not Found\r\nContent-Length: 21\r\n\r\n{\"message\":\"no such\"}\n",
                "404 Not Found: no such",
            ),
            ("HTTP/1.1 500 Oops\r\n\r\nplain", "500 Internal Server Error: plain"),
            ("220 mail.example ESMTP\r\n", "connection lost"),
            ("", "connection lost"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "connection lost"),
        ] {
            let error = get(answer).await.unwrap_err();
            assert!(error.to_string().contains(expected), "{answer:?}: {error}");
            assert_eq!(error.is_not_found(), answer.contains("404"));
        }
    }

    #[tokio::test]
    async fn a_list_comes_object_by_object() {
        let chunks: String = ["[{\"a\":", "1},\n", "{\"b\":\"}", "\"}]\n"]
            .map(|chunk| format!("{:x}\r\n{chunk}\r\n", chunk.len()))
            .concat();
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (_directory, daemon) = answering(format!("{head}{chunks}0\r\n\r\n"));
        let mut objects = daemon.objects("List", "/x", SOON, 16).await.unwrap();
        let mut all = vec![];
        while let Some(object) = objects.next().await.unwrap() {
            all.push(object);
        }
        let whole = |text: &str| Object::Whole(text.as_bytes().to_vec());
        assert_eq!(all, [whole("{\"a\":1}"), whole("{\"b\":\"}\"}")]);

        let (_directory, daemon) = answering(format!("{head}{chunks}"));
        let mut objects = daemon.objects("List", "/x", SOON, 16).await.unwrap();
        let end = loop {
            match objects.next().await {
                Ok(Some(_)) => {}
                end => break end,
            }
        };
        assert!(matches!(end, Err(CallError::Lost { .. })), "it was cut off");
    }

    #[tokio::test]
    async fn nobody_there_and_nobody_who_answers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sock");
        let daemon = Daemon::at(&path, Domain::Host);
        let call = || daemon.get("Get", "/x", Duration::from_millis(50), 16);
        assert!(matches!(call().await, Err(CallError::Absent { .. })));
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(call().await, Err(CallError::Deadline { .. })));
    }
}
