//! The CRI source: every pod's sandbox and container, by the word of who runs them for a kubelet: containerd's CRI plugin,
//! or CRI-O.
//!
//! Owns the connections, what is known from them and how it becomes facts. Promises that a server which is absent, hung,
//! killed, restarted, upgraded or hostile is a line on the health board and never an end; that no call lacks a deadline; that
//! at most four calls are under way at a time; and that a container's life costs two calls, one while it runs and one when it
//! is over, and a sandbox's one. Leaves to others what happens between its looks: the kernel, the barrier and containerd's
//! own events say it sooner, and what the collection hears from them is this source's hint to look.
//!
//! | file | what it is |
//! |---|---|
//! | `session` | one connection's life: list, ask, follow |
//! | `client` | the connection and its calls |
//! | `ledger` | what is known about everything, and what is still to be asked; pure |
//! | `describe`, `info` | the server's messages and its JSON, made into ours; pure |
//! | `server` | who answers, and what follows from that |
//! | `hints` | what the collection has heard from others |

mod client;
mod describe;
pub mod hints;
mod info;
mod ledger;
mod server;
mod session;

#[cfg(test)]
mod component_tests;
#[cfg(test)]
mod fake;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{Mutex, broadcast};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::collection::door::Facts;
use crate::collection::feed::Feed;
use crate::enrich::env::EnvAllow;
use crate::fact::Source;
use crate::source::complaints::Complaints;
use crate::source::endpoint::{Endpoint, Endpoints, follow_all};
use crate::source::grpc::CallError;
use crate::source::health::HealthBoard;
use crate::source::peer::FileId;
use crate::source::roster::Roster;
use crate::source::supervise::{Backoff, Line, supervise};

/// Where CRI servers are looked for, and how patiently.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Whether to look for CRI servers at all.
    pub enabled: bool,
    /// Sockets that are expected: one that is absent is reported as such.
    pub sockets: Vec<PathBuf>,
    /// Sockets that are used when they appear, and not mentioned before.
    pub sockets_if_present: Vec<PathBuf>,
    /// Whether each containerd that is looked for is asked for its CRI plugin, too.
    pub containerds: bool,
    /// How long one call may take, in milliseconds.
    pub call_deadline_ms: u64,
    /// How long a list may take, in milliseconds.
    pub list_deadline_ms: u64,
    /// How often everything is listed where the server has no events for us, in milliseconds.
    pub poll_interval_ms: u64,
    /// How often everything is listed again where the server has events, in milliseconds.
    pub audit_interval_ms: u64,
    /// How long nothing may be heard before the server is asked whether it is alive, in milliseconds.
    pub alive_interval_ms: u64,
    /// The first wait before another attempt, in milliseconds; each further one is twice as long.
    pub backoff_first_ms: u64,
    /// The longest wait before another attempt, in milliseconds.
    pub backoff_cap_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            sockets: vec![],
            sockets_if_present: vec!["/run/crio/crio.sock".into()],
            containerds: true,
            call_deadline_ms: 2_000,
            list_deadline_ms: 10_000,
            poll_interval_ms: 10_000,
            audit_interval_ms: 300_000,
            alive_interval_ms: 5_000,
            backoff_first_ms: 100,
            backoff_cap_ms: 2_000,
        }
    }
}

impl Config {
    /// The sockets that are configured, `containerds` among them: those where a containerd is looked for.
    pub fn endpoints(&self, containerds: &[Endpoint]) -> Vec<Endpoint> {
        let mut all = Endpoint::configured(&self.sockets, &self.sockets_if_present);
        for containerd in containerds.iter().filter(|_| self.containerds) {
            // Many a containerd has no CRI plugin, and its absence is told by who needs it.
            if !all.iter().any(|known| known.path == containerd.path) {
                all.push(Endpoint { is_expected: false, ..containerd.clone() });
            }
        }
        all
    }

    fn deadline(&self) -> Duration {
        Duration::from_millis(self.call_deadline_ms.max(1))
    }

    fn list_deadline(&self) -> Duration {
        Duration::from_millis(self.list_deadline_ms.max(1))
    }

    fn poll_interval(&self) -> Duration {
        Duration::from_millis(self.poll_interval_ms.max(100))
    }

    fn audit_interval(&self) -> Duration {
        Duration::from_millis(self.audit_interval_ms.max(1_000))
    }

    fn alive_interval(&self) -> Duration {
        Duration::from_millis(self.alive_interval_ms.max(1))
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(
            Duration::from_millis(self.backoff_first_ms.max(1)),
            Duration::from_millis(self.backoff_cap_ms.max(1)),
        )
    }
}

/// What the source has done and met, since it began; all servers together.
#[derive(Debug, Default)]
pub struct Stats {
    /// Events received.
    pub events: AtomicU64,
    /// Hints from the collection that made the source look.
    pub hints: AtomicU64,
    /// Calls for the status of a container or sandbox.
    pub calls_status: AtomicU64,
    /// Calls that list something.
    pub calls_list: AtomicU64,
    /// Calls that ask whether the server is alive.
    pub calls_alive: AtomicU64,
    /// Calls without an answer within their deadline.
    pub calls_late: AtomicU64,
    /// Calls answered by an error, or by what could not be read; "not found" is neither.
    pub calls_failed: AtomicU64,
    /// Answers that were behind what others had seen, so that the server was asked once more.
    pub behind: AtomicU64,
    /// Labels and annotations that were left out because there were too many, or because they were too long.
    pub left_out: AtomicU64,
    /// Times that everything was listed.
    pub lists: AtomicU64,
    /// Connections that worked and then ended.
    pub sessions_lost: AtomicU64,
}

/// What one server's sessions share.
struct Peer {
    path: PathBuf,
    /// Not mentioned before it was seen.
    is_optional: bool,
    was_seen: bool,
    /// The socket on which nobody knows the CRI.
    without_cri: Option<(FileId, i64, i64)>,
    config: Config,
    env_allow: EnvAllow,
    facts: Facts,
    health: HealthBoard,
    line: Line,
    stats: Arc<Stats>,
    complaints: Arc<Complaints>,
    roster: Arc<Roster>,
    hints: broadcast::Sender<hints::Heard>,
    ledger: ledger::Ledger,
    server: Option<server::Server>,
}

/// Follows all CRI servers until `cancel`, or until the collection has ended. `others` is what the collection hears from
/// the other sources ([`hints::options`]); without it, what is new is found by polling alone. To be spawned on a runtime
/// with IO and time enabled.
#[expect(clippy::too_many_arguments, reason = "each is somebody else's, and this is called once")]
pub async fn run(
    config: Config,
    env_allow: EnvAllow,
    endpoints: Endpoints,
    others: Option<Feed>,
    facts: Facts,
    health: HealthBoard,
    stats: Arc<Stats>,
    cancel: CancellationToken,
) {
    if !config.enabled {
        return;
    }
    let complaints = Arc::new(Complaints::default());
    let roster = Arc::new(Roster::default());
    let (hints, _) = broadcast::channel(hints::QUEUE_LEN);
    let peer = |Endpoint { path, domain, is_expected }: Endpoint| Peer {
        line: Line::new(health.clone(), Source::Cri, &path.display().to_string()),
        health: health.clone(),
        path,
        is_optional: !is_expected,
        was_seen: false,
        without_cri: None,
        config: config.clone(),
        env_allow: env_allow.clone(),
        facts: facts.clone(),
        stats: Arc::clone(&stats),
        complaints: Arc::clone(&complaints),
        roster: Arc::clone(&roster),
        hints: hints.clone(),
        ledger: ledger::Ledger::new(domain),
        server: None,
    };
    let follow = follow_all(endpoints, &cancel, |endpoint, cancel| keep(peer(endpoint), cancel));
    tokio::select! {
        () = follow => {}
        never = hints::pass_on(others, &hints) => match never {},
    }
}

/// Who answers the CRI on this socket, for people; `None` where somebody else does. Waits at most for two deadlines.
pub async fn probe(path: &Path, deadline: Duration) -> Result<Option<String>, String> {
    let client = client::Client::connect(path, deadline, deadline, Arc::default()).await;
    let version = match client {
        Ok(client) => client.version().await,
        Err(error) => return Err(error.to_string()),
    };
    match version {
        Ok(version) => Ok(Some(server::Server::new(&version.runtime_name, &version.runtime_version).shown())),
        Err(CallError::Answer { code: Code::Unimplemented, .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

async fn keep(peer: Peer, cancel: CancellationToken) {
    let line = peer.line.clone();
    let backoff = peer.config.backoff();
    // Never contended: one session after the other. It lets each session borrow what they share.
    let peer = Mutex::new(peer);
    supervise(&line, backoff, &cancel, || async { session::run(&mut *peer.lock().await).await }).await;
}
