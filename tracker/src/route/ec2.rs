//! What EC2 calls the subnet of an interface, from the instance metadata service (IMDSv2).
//!
//! A token first (`PUT /latest/api/token`), then the name (`GET …/macs/<mac>/subnet-id`) with it; a token that is no longer
//! taken is replaced once. All of it together has one deadline. Nothing here remembers names: [`super::subnet`] does.

use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use super::answer::Mac;
use crate::container::Str;

/// Asking EC2. In the config file under `[route.ec2]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Whether it is asked; not by default.
    pub enabled: bool,
    /// Address and port of the metadata service; `169.254.169.254:80` by default.
    pub endpoint: String,
    /// Milliseconds that it may take; 500 by default. A first look-up waits for it.
    pub timeout_ms: u64,
    /// Milliseconds until it is asked again for what it did not know or did not tell; 60,000 by default.
    pub retry_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: false, endpoint: "169.254.169.254:80".into(), timeout_ms: 500, retry_ms: 60_000 }
    }
}

/// Why EC2 tells no name.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ec2Error {
    #[error("ask {endpoint} for {path}: {what}")]
    Failed { endpoint: String, path: String, what: String },
    #[error("ask {endpoint}: no answer within {} ms", time.as_millis())]
    TooSlow { endpoint: String, time: Duration },
}

/// How long a token lasts, and how long before its end another is asked for.
const TOKEN_SECONDS: u64 = 21_600;
const TOKEN_SPARE: Duration = Duration::from_secs(60);
/// The largest answer; a token has 56 characters.
const MAX_ANSWER: usize = 1_024;

#[derive(Debug)]
pub(super) struct Ec2 {
    config: Config,
    // Protects the token; held for a copy.
    token: Mutex<Option<(String, Instant)>>,
}

impl Ec2 {
    pub(super) fn new(config: Config) -> Self {
        Self { config, token: Mutex::new(None) }
    }

    /// The name; `None` where EC2 knows no such interface. Not to be called from a task.
    pub(super) fn subnet_of(&self, mac: Mac) -> Result<Option<Str>, Ec2Error> {
        let path = format!("/latest/meta-data/network/interfaces/macs/{mac}/subnet-id");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| self.failed(&path, error))?;
        let time = Duration::from_millis(self.config.timeout_ms);
        let asked = runtime.block_on(async { tokio::time::timeout(time, self.ask(&path)).await });
        asked.map_err(|_| Ec2Error::TooSlow { endpoint: self.config.endpoint.clone(), time })?
    }

    async fn ask(&self, path: &str) -> Result<Option<Str>, Ec2Error> {
        let mut token = self.known_token();
        for _ in 0..2 {
            let with = match token.take() {
                Some(token) => token,
                None => self.new_token().await?,
            };
            let (status, body) = self.send(Method::GET, path, ("x-aws-ec2-metadata-token", &with)).await?;
            match status {
                StatusCode::OK => return name(&body).map(Some).ok_or_else(|| self.failed(path, "it is no name")),
                StatusCode::NOT_FOUND => return Ok(None),
                StatusCode::UNAUTHORIZED => *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None,
                status => return Err(self.failed(path, status)),
            }
        }
        Err(self.failed(path, "two tokens were refused"))
    }

    fn known_token(&self) -> Option<String> {
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        token.as_ref().filter(|(_, until)| Instant::now() < *until).map(|(token, _)| token.clone())
    }

    async fn new_token(&self) -> Result<String, Ec2Error> {
        let path = "/latest/api/token";
        let lasting = TOKEN_SECONDS.to_string();
        let asked = Instant::now();
        let (status, token) = self.send(Method::PUT, path, ("x-aws-ec2-metadata-token-ttl-seconds", &lasting)).await?;
        if status != StatusCode::OK || token.is_empty() {
            return Err(self.failed(path, status));
        }
        let until = asked + Duration::from_secs(TOKEN_SECONDS) - TOKEN_SPARE;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some((token.clone(), until));
        Ok(token)
    }

    async fn send(&self, method: Method, path: &str, with: (&str, &str)) -> Result<(StatusCode, String), Ec2Error> {
        let stream = TcpStream::connect(&self.config.endpoint).await.map_err(|error| self.failed(path, error))?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.failed(path, error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.config.endpoint)
            .header(header::CONTENT_LENGTH, 0)
            .header(with.0, with.1)
            .body(Empty::<Bytes>::new());
        let request = request.map_err(|error| self.failed(path, error))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| self.failed(path, error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| self.failed(path, error))?.to_bytes();
            Ok((status, String::from_utf8_lossy(&body).trim().to_owned()))
        };
        // The connection is driven by whoever waits for its answer. It may end first, with the answer handed over.
        let (mut answer, mut connection) = (pin!(answer), pin!(connection));
        tokio::select! {
            answered = &mut answer => return answered,
            _ = &mut connection => {}
        }
        answer.await
    }

    fn failed(&self, path: &str, what: impl ToString) -> Ec2Error {
        Ec2Error::Failed { endpoint: self.config.endpoint.clone(), path: path.to_owned(), what: what.to_string() }
    }
}

/// What may be a subnet's name: whatever answers there is not believed to be EC2.
fn name(text: &str) -> Option<Str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (text.starts_with("subnet-") && text.len() <= 64 && text.bytes().all(is_plain)).then(|| text.into())
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use axum::Router;
    use axum::extract::{Path, State};
    use axum::http::HeaderMap;
    use axum::routing::{get, put};
    use tokio::runtime::Runtime;

    use super::*;

    pub(crate) const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    /// A metadata service that speaks version 2 only.
    #[derive(Debug, Default)]
    pub(crate) struct Service {
        pub(crate) tokens: AtomicU64,
        pub(crate) asked: AtomicU64,
        /// Milliseconds that an answer takes.
        pub(crate) delay: AtomicU64,
        /// What the one interface's subnet is called; nothing where there is no such interface.
        pub(crate) name: Mutex<Option<&'static str>>,
    }

    /// A running one, and how to ask it.
    pub(crate) struct Stand {
        pub(crate) service: Arc<Service>,
        pub(crate) config: Config,
        _runtime: Runtime,
    }

    impl Stand {
        pub(crate) fn start() -> Stand {
            let service = Arc::new(Service { name: Mutex::new(Some("subnet-0a1b2c")), ..Service::default() });
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
            let endpoint = listener.local_addr().unwrap().to_string();
            let router = Router::new()
                .route("/latest/api/token", put(token))
                .route("/latest/meta-data/network/interfaces/macs/{mac}/subnet-id", get(subnet))
                .with_state(Arc::clone(&service));
            runtime.spawn(async move { axum::serve(listener, router).await });
            let config = Config { enabled: true, endpoint, timeout_ms: 10_000, ..Config::default() };
            Stand { service, config, _runtime: runtime }
        }
    }

    async fn token(State(service): State<Arc<Service>>, headers: HeaderMap) -> (StatusCode, String) {
        let lasting = headers.get("x-aws-ec2-metadata-token-ttl-seconds").and_then(|value| value.to_str().ok());
        match lasting.and_then(|seconds| seconds.parse::<u64>().ok()) {
            Some(1..=21_600) => {
                let number = service.tokens.fetch_add(1, Ordering::SeqCst) + 1;
                (StatusCode::OK, format!("token-{number}"))
            }
            _ => (StatusCode::BAD_REQUEST, String::new()),
        }
    }

    async fn subnet(
        State(service): State<Arc<Service>>,
        Path(mac): Path<String>,
        headers: HeaderMap,
    ) -> (StatusCode, String) {
        service.asked.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(service.delay.load(Ordering::SeqCst))).await;
        // Only the latest token is good.
        let expected = format!("token-{}", service.tokens.load(Ordering::SeqCst));
        if headers.get("x-aws-ec2-metadata-token").is_none_or(|token| token.as_bytes() != expected.as_bytes()) {
            return (StatusCode::UNAUTHORIZED, String::new());
        }
        let name = *service.name.lock().unwrap();
        match name.filter(|_| mac == MAC.to_string()) {
            Some(name) => (StatusCode::OK, name.to_owned()),
            None => (StatusCode::NOT_FOUND, "<html>404</html>".to_owned()),
        }
    }

    #[test]
    fn a_subnet_has_a_name_and_a_token_serves_more_than_once() {
        let stand = Stand::start();
        let ec2 = Ec2::new(stand.config.clone());
        assert_eq!(ec2.subnet_of(MAC).unwrap().as_deref(), Some("subnet-0a1b2c"));
        assert_eq!(ec2.subnet_of(MAC).unwrap().as_deref(), Some("subnet-0a1b2c"));
        assert_eq!(stand.service.tokens.load(Ordering::SeqCst), 1);
        assert_eq!(ec2.subnet_of(Mac([0; 6])).unwrap(), None);
        // It forgets the token, as it does when it is started anew.
        stand.service.tokens.fetch_add(1, Ordering::SeqCst);
        assert_eq!(ec2.subnet_of(MAC).unwrap().as_deref(), Some("subnet-0a1b2c"));
    }

    #[test]
    fn what_is_no_name_is_an_error() {
        let stand = Stand::start();
        let ec2 = Ec2::new(stand.config.clone());
        for nonsense in ["", "captive portal", "subnet-\x1b[31m", "subnet-<b>"] {
            *stand.service.name.lock().unwrap() = Some(nonsense);
            let error = ec2.subnet_of(MAC).unwrap_err().to_string();
            assert!(error.contains("subnet-id") && error.contains(&stand.config.endpoint), "{error}");
        }
    }

    #[test]
    fn silence_and_absence_are_errors_that_name_where_it_was_asked() {
        let stand = Stand::start();
        stand.service.delay.store(60_000, Ordering::SeqCst);
        let ec2 = Ec2::new(Config { timeout_ms: 50, ..stand.config.clone() });
        let error = ec2.subnet_of(MAC).unwrap_err().to_string();
        assert!(error.contains("50 ms") && error.contains(&stand.config.endpoint), "{error}");
        // A port that was free a moment ago, and refuses.
        let endpoint = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let error = Ec2::new(Config { endpoint: endpoint.clone(), ..stand.config.clone() }).subnet_of(MAC).unwrap_err();
        assert!(error.to_string().contains(&endpoint), "{error}");
    }
}
