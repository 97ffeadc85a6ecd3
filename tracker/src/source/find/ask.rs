//! Asks a socket which API it speaks, where its name does not tell: a daemon has more than one.
//!
//! Costs a connection and a few bytes. Who listens is checked before a byte is sent, and is refused what is no answer.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Api;
use crate::container::Domain;
use crate::source::peer;

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 4096;

/// What HTTP/2 begins with, and an empty `SETTINGS` frame (RFC 9113, section 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Docker and what is like it.
const PING: &[u8] = b"GET /_ping HTTP/1.1\r\nHost: runtime\r\nConnection: close\r\n\r\n";

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It speaks this.
    Speaks,
    /// It speaks something else.
    SpeaksNot,
    /// It may not be asked, or does not answer: with the reason.
    Silent(String),
}

/// Whether who listens at `path` may speak for `domain` and speaks `api`.
pub(super) async fn ask(path: &Path, domain: Domain, api: Api) -> Answer {
    match timeout(PATIENCE, exchange(path, domain, api)).await {
        Ok(Ok(true)) => Answer::Speaks,
        Ok(Ok(false)) => Answer::SpeaksNot,
        Ok(Err(reason)) => Answer::Silent(reason),
        Err(_) => Answer::Silent(format!("it does not say within {PATIENCE:?} what it speaks")),
    }
}

async fn exchange(path: &Path, domain: Domain, api: Api) -> Result<bool, String> {
    let told = |error: std::io::Error| error.to_string();
    let mut stream = UnixStream::connect(path).await.map_err(told)?;
    peer::check(&stream, domain)?;
    let question = if api.is_grpc() { HTTP2 } else { PING };
    // Who hangs up on a question does not understand it.
    if stream.write_all(question).await.is_err() {
        return Ok(false);
    }
    let mut answer = Vec::new();
    loop {
        let is_over = matches!(stream.read_buf(&mut answer).await, Ok(0) | Err(_)) || answer.len() > MAX_ANSWER;
        match speaks(api, &answer) {
            Some(speaks) => return Ok(speaks),
            None if is_over => return Ok(false),
            None => {}
        }
    }
}

/// Whether the beginning of an answer is one of `api`; `None` where it does not tell yet.
fn speaks(api: Api, answer: &[u8]) -> Option<bool> {
    if api.is_grpc() {
        // Length, type, flags, stream: the first frame is `SETTINGS`, of stream 0.
        let frame = answer.first_chunk::<9>()?;
        return Some(frame[3] == 4 && frame[5..] == [0; 4]);
    }
    if answer.len() > MAX_ANSWER || !b"HTTP/1.1 200 ".starts_with(&answer[..answer.len().min(13)]) {
        return Some(false);
    }
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let has = |name: &str| head.lines().any(|line| line.split(':').next() == Some(name));
    Some(has("api-version") && has("libpod-api-version") == (api == Api::Podman))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_tell_what_is_spoken() {
        let docker = b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nServer: Docker/20.10\r\n\r\nOK".as_slice();
        let podman = b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nLibpod-Api-Version: 4.3.1\r\n\r\n".as_slice();
        let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0".as_slice();
        for (api, answer, expected) in [
            (Api::Docker, docker, Some(true)),
            (Api::Podman, docker, Some(false)),
            (Api::Docker, podman, Some(false)),
            (Api::Podman, podman, Some(true)),
            (Api::Docker, &docker[..20], None),
            (Api::Docker, b"HTTP/1.1 404 Not Found\r\n\r\n", Some(false)),
            (Api::Docker, b"220 mail.example", Some(false)),
            (Api::Docker, settings, Some(false)),
            (Api::Containerd, settings, Some(true)),
            (Api::Cri, settings, Some(true)),
            (Api::Containerd, &settings[..8], None),
            (Api::Containerd, docker, Some(false)),
            (Api::Containerd, b"\0\0\0\0\0\0\0\0\0", Some(false)),
        ] {
            assert_eq!(speaks(api, answer), expected, "{api:?} {}", String::from_utf8_lossy(answer));
        }
    }

    #[tokio::test]
    async fn who_hangs_up_speaks_something_else_and_who_keeps_quiet_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert!(matches!(ask(&path, Domain::Host, Api::Docker).await, Answer::Silent(_)));
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let (answer, _) = tokio::join!(ask(&path, Domain::Host, Api::Docker), async {
            drop(listener.accept().await.unwrap());
        });
        assert_eq!(answer, Answer::SpeaksNot);
        let Answer::Silent(reason) = ask(&path, Domain::Host, Api::Containerd).await else { panic!() };
        assert!(reason.contains("does not say"), "{reason}");
        let other = nix::unistd::geteuid().as_raw() + 1;
        assert!(matches!(ask(&path, Domain::User(other), Api::Docker).await, Answer::Silent(_)));
    }
}
