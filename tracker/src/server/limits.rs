//! How much the debug socket lets its peers have, and the accept loop that sees to it.
//!
//! Whatever peers do, the tracker goes on: connections, watchers, header and body sizes and the time to send them are
//! bounded. Who is over a bound gets an answer that says so: 431 for headers, 413 for a body, 503 for one connection too
//! many; a peer that sends its request slower than `header-seconds`, or leaves our answer unread for `stall-seconds`, is
//! disconnected.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::Refused;

/// The bounds of the debug socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Limits {
    /// Connections at the same time; one more is answered 503.
    pub connections: usize,
    /// Connections among them that watch; one more is answered 503.
    pub watchers: usize,
    /// Registrations at the same time; one more is answered 503.
    pub registrations: usize,
    /// Pinned selections at the same time; one more is answered 503. Each takes some 160 bytes of the kernel's memory for
    /// each row of the plane.
    pub selections: usize,
    /// Bytes of a request's line and headers. At least 8192.
    pub header_bytes: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Seconds that a peer may take for its request's headers, its body, or between two requests.
    pub header_seconds: u64,
    /// Seconds that an answer may wait for a peer that does not read.
    pub stall_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            watchers: 16,
            registrations: 256,
            selections: 32,
            header_bytes: 16 * 1024,
            body_bytes: 64 * 1024,
            header_seconds: 10,
            stall_seconds: 300,
        }
    }
}

impl Limits {
    /// The same, where each bound is one that clocks and counters can keep: a day, 65,536 peers.
    pub(super) fn in_reason(self) -> Self {
        const MOST: usize = 1 << 16;
        const DAY: u64 = 86_400;
        Self {
            connections: self.connections.min(MOST),
            watchers: self.watchers.min(MOST),
            registrations: self.registrations.min(MOST),
            selections: self.selections.min(MOST),
            header_bytes: self.header_bytes.max(8192),
            body_bytes: self.body_bytes,
            header_seconds: self.header_seconds.min(DAY),
            stall_seconds: self.stall_seconds.min(DAY),
        }
    }
}

/// Peers over the limit that are being told so at the same time; more are disconnected without a word.
const REFUSALS: usize = 16;
/// Time to tell them.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// Time for requests under way to end when the tracker stops.
const SHUTDOWN_TIME: Duration = Duration::from_secs(2);
/// Pause after an accept that failed, for want of file descriptors as a rule: what frees one is another's end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The peer of a connection, as the kernel told when it connected (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Effective uid, in the tracker's own user namespace.
    pub uid: u32,
    /// Pid in the tracker's own pid namespace; absent when the peer cannot be seen there.
    pub pid: Option<u32>,
}

/// Serves `router` on `listener` until `cancel`, within `limits`. `admit` decides about each peer when it connects.
///
/// Every request carries its [`Peer`] as an extension. Returns when all connections have ended, at the latest
/// two seconds after `cancel`.
pub(super) async fn serve(
    listener: UnixListener,
    router: Router,
    limits: Limits,
    admit: impl Fn(Peer) -> Result<(), Refused>,
    cancel: CancellationToken,
) {
    let router = router.layer(DefaultBodyLimit::max(limits.body_bytes));
    let slots = Arc::new(Semaphore::new(limits.connections));
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection to the debug socket could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without credentials nothing is known about the peer: it is let go like one that is not there any more.
        let Some(peer) = peer(&stream) else { continue };
        let refused = match admit(peer) {
            Err(refused) => refused,
            Ok(()) => match Arc::clone(&slots).try_acquire_owned() {
                Ok(slot) => {
                    let router = router.clone();
                    let cancel = cancel.clone();
                    connections.spawn(async move {
                        converse(stream, peer, router, limits, cancel).await;
                        drop(slot);
                    });
                    continue;
                }
                Err(_) => Refused::busy(format!("all {} connections are in use", limits.connections)),
            },
        };
        if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
            let cancel = cancel.clone();
            let router = Router::new().fallback(move || async move { refused.into_response() });
            connections.spawn(async move {
                let _ = tokio::time::timeout(REFUSAL_TIME, converse(stream, peer, router, limits, cancel)).await;
                drop(permit);
            });
        }
    }
    connections.close();
    let _ = tokio::time::timeout(SHUTDOWN_TIME, connections.wait()).await;
}

/// One connection from its first request to its end.
async fn converse(stream: UnixStream, peer: Peer, router: Router, limits: Limits, cancel: CancellationToken) {
    let service = tower_service(router, peer);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(limits.header_seconds))
        .max_buf_size(limits.header_bytes)
        .serve_connection(TokioIo::new(Impatient::new(stream, Duration::from_secs(limits.stall_seconds))), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, uid = peer.uid, "a connection to the debug socket broke off");
    }
}

/// The router as hyper calls it, with the peer put into each request.
fn tower_service(
    router: Router,
    peer: Peer,
) -> impl hyper::service::Service<
    hyper::Request<hyper::body::Incoming>,
    Response = Response,
    Error = std::convert::Infallible,
    Future = impl Send,
> {
    let service = TowerToHyperService::new(router);
    hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        hyper::service::Service::call(&service, request)
    })
}

fn peer(stream: &UnixStream) -> Option<Peer> {
    let credentials = stream.peer_cred().ok()?;
    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
    Some(Peer { uid: credentials.uid(), pid })
}

/// A stream that fails once a write has waited `patience` for its peer to read.
struct Impatient {
    stream: UnixStream,
    patience: Duration,
    /// Runs from the first write that had to wait until one that got through.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn new(stream: UnixStream, patience: Duration) -> Self {
        Self { stream, patience, waiting: None }
    }

    fn judge<T>(&mut self, poll: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.waiting = None;
            return poll;
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(self.patience)));
        ready!(waiting.as_mut().poll(cx));
        waiting.as_mut().reset(Instant::now() + self.patience);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.judge(poll, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.judge(poll, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use axum::routing::{get, post};
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A server with a route for each way to be a burden, on a socket of its own.
    struct Served {
        path: PathBuf,
        cancel: CancellationToken,
        done: JoinHandle<()>,
        _directory: TempDir,
    }

    impl Served {
        fn start(limits: Limits, admit: fn(Peer) -> Result<(), Refused>) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("s");
            let listener = UnixListener::bind(&path).unwrap();
            let router = Router::new()
                .route("/short", get(|| async { "short" }))
                .route("/long", get(|| async { vec![b'x'; 16 << 20] }))
                .route("/echo", post(|body: String| async move { body }));
            let cancel = CancellationToken::new();
            let done = tokio::spawn(serve(listener, router, limits.in_reason(), admit, cancel.clone()));
            Self { path, cancel, done, _directory: directory }
        }

        async fn connect(&self) -> UnixStream {
            UnixStream::connect(&self.path).await.unwrap()
        }

        /// Sends `request` and reads until the server closes.
        async fn ask(&self, request: &[u8]) -> String {
            let mut stream = self.connect().await;
            // A server that refuses need not read all: what counts is its answer.
            let _ = stream.write_all(request).await;
            read_all(&mut stream).await
        }
    }

    async fn read_all(stream: &mut UnixStream) -> String {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server closes");
        // A reset after the answer is an end like another.
        drop(read);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn anyone(_: Peer) -> Result<(), Refused> {
        Ok(())
    }

    const SHORT: &[u8] = b"GET /short HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn headers_beyond_the_limit_are_answered_431() {
        let served = Served::start(Limits::default(), anyone);
        let request = format!("GET /short HTTP/1.1\r\nhost: t\r\nx: {}\r\n\r\n", "x".repeat(20_000));
        let answer = served.ask(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        assert!(served.ask(SHORT).await.ends_with("short"));
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_answered_413() {
        let served = Served::start(Limits::default(), anyone);
        let body = "x".repeat(65 * 1024);
        let head =
            format!("POST /echo HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        let answer = served.ask((head + &body).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }

    #[tokio::test]
    async fn limits_of_any_size_are_served() {
        let most = usize::MAX;
        let widest = Limits {
            connections: most,
            watchers: most,
            registrations: most,
            selections: most,
            header_bytes: most,
            body_bytes: most,
            header_seconds: u64::MAX,
            stall_seconds: u64::MAX,
        };
        let narrowest =
            Limits { connections: 1, header_bytes: 0, body_bytes: 0, stall_seconds: 0, ..Limits::default() };
        for limits in [widest, narrowest] {
            let served = Served::start(limits, anyone);
            assert!(served.ask(SHORT).await.ends_with("short"), "{limits:?}");
        }
    }

    #[tokio::test]
    async fn a_request_that_trickles_in_is_cut_off() {
        let served = Served::start(Limits { header_seconds: 1, ..Limits::default() }, anyone);
        let mut stream = served.connect().await;
        stream.write_all(b"GET /short HTTP/1.1\r\nhost:").await.unwrap();
        let answer = read_all(&mut stream).await;
        assert!(!answer.contains("short"), "{answer}");
    }

    #[tokio::test]
    async fn a_connection_that_never_asks_is_cut_off() {
        let served = Served::start(Limits { header_seconds: 1, ..Limits::default() }, anyone);
        let mut idle = served.connect().await;
        assert_eq!(read_all(&mut idle).await, "");
    }

    #[tokio::test]
    async fn a_connection_too_many_is_told_so_and_a_free_one_is_served_again() {
        let served = Served::start(Limits { connections: 2, header_seconds: 60, ..Limits::default() }, anyone);
        let (mut first, _second) = (served.connect().await, served.connect().await);
        let answer = served.ask(SHORT).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"remedy\""), "{answer}");

        // The end of one frees its place: its answer ends before the place is free, so ask until it is.
        first.write_all(SHORT).await.unwrap();
        assert!(read_all(&mut first).await.ends_with("short"));
        let again = async {
            while !served.ask(SHORT).await.ends_with("short") {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, again).await.expect("the place is free again");
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_cut_off() {
        let served = Served::start(Limits { stall_seconds: 1, ..Limits::default() }, anyone);
        let mut stream = served.connect().await;
        stream.write_all(b"GET /long HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
        // Writing to a socket that its peer has closed is the one thing to see from here without reading.
        let closed = async {
            while stream.write_all(b"\r\n").await.is_ok() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, closed).await.expect("the server gives up");
        assert!(read_all(&mut stream).await.len() < 16 << 20);
    }

    #[tokio::test]
    async fn a_peer_that_is_not_admitted_learns_why() {
        let served = Served::start(Limits::default(), |_| Err(Refused::forbidden("not you")));
        let answer = served.ask(SHORT).await;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("not you"), "{answer}");
    }

    #[tokio::test]
    async fn cancelling_ends_it_although_peers_stay() {
        let served = Served::start(Limits::default(), anyone);
        let _idle = served.connect().await;
        assert!(served.ask(SHORT).await.ends_with("short"));
        served.cancel.cancel();
        tokio::time::timeout(PATIENCE, served.done).await.expect("it ends").unwrap();
    }

    #[tokio::test]
    async fn garbage_is_answered_400_and_nothing_breaks() {
        let served = Served::start(Limits::default(), anyone);
        for garbage in [&b"\0\0\0\0\r\n\r\n"[..], b"GET", b"\xff\xfe\xfd \r\n\r\n", b"GET /\x80 HTTP/9.9\r\n\r\n"] {
            let mut stream = served.connect().await;
            stream.write_all(garbage).await.unwrap();
            stream.shutdown().await.unwrap();
            let answer = read_all(&mut stream).await;
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
        }
        assert!(served.ask(SHORT).await.ends_with("short"));
    }
}
