//! The podman source: every container of podman's, root's and each user's, whether podman itself runs or not.
//!
//! Owns what podman knows and others do not: names, images, labels, pods, networks. Mostly no podman runs: it starts a
//! conmon for each container and leaves. So there are two ways, and one ledger in which they meet: podman's files, read
//! for each container that comes to life, and its REST service where one answers. Promises that neither ever asks
//! podman about a container that is being created or started, that no call lacks a deadline, and that what a user's
//! process says is said of that user's containers alone. Leaves to others what the kernel shows.
//!
//! | file | what it is |
//! |---|---|
//! | `ledger` | what is known about every container, by both ways; pure |
//! | `files` | wishes for a closer look, and when they are granted |
//! | `look` | one look: init, conmon, store, bundle |
//! | `conmon`, `store` | a command line, and podman's files; what is in them |
//! | `watch` | which of root's stores change |
//! | `session` | one service's life: subscribe, list, reconcile, follow |
//! | `client` | its socket and the calls |
//! | `answer`, `event` | what it answers, made into statements; pure |

mod answer;
mod client;
mod conmon;
mod event;
mod files;
mod ledger;
mod look;
mod session;
mod store;
mod watch;

#[cfg(test)]
mod component_tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::collection::door::Facts;
use crate::container::Domain;
use crate::enrich::env::EnvAllow;
use crate::fact::{Birth, Fact, Source, What};
use crate::source::complaints::Complaints;
use crate::source::endpoint::{Endpoint, Endpoints, follow_all};
use crate::source::health::HealthBoard;
use crate::source::supervise::{Backoff, Line, supervise};
use crate::time::BootTime;

/// Where podman's service is looked for, and how patiently.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Whether podman is asked, and its files are read, at all.
    pub enabled: bool,
    /// Sockets that are expected: one that is absent is reported as such. One below `/run/user/<uid>` speaks for that user.
    pub sockets: Vec<PathBuf>,
    /// Sockets that are used when they appear, and not mentioned before.
    pub sockets_if_present: Vec<PathBuf>,
    /// How long one call may take, in milliseconds.
    pub call_deadline_ms: u64,
    /// How long one list may take, in milliseconds.
    pub list_deadline_ms: u64,
    /// How long nothing may be heard before the service is asked whether it is alive, in milliseconds.
    pub alive_interval_ms: u64,
    /// How often everything is listed, and files are looked at, again, in milliseconds.
    pub audit_interval_ms: u64,
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
            sockets_if_present: vec!["/run/podman/podman.sock".into()],
            call_deadline_ms: 5_000,
            list_deadline_ms: 10_000,
            alive_interval_ms: 5_000,
            audit_interval_ms: 60_000,
            backoff_first_ms: 100,
            backoff_cap_ms: 2_000,
        }
    }
}

impl Config {
    /// The sockets that are configured.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let configured = Endpoint::configured(&self.sockets, &self.sockets_if_present);
        configured.into_iter().map(|endpoint| Endpoint { domain: whose(&endpoint.path), ..endpoint }).collect()
    }

    fn deadline(&self) -> Duration {
        Duration::from_millis(self.call_deadline_ms.max(1))
    }

    fn list_deadline(&self) -> Duration {
        Duration::from_millis(self.list_deadline_ms.max(1))
    }

    fn alive_interval(&self) -> Duration {
        Duration::from_millis(self.alive_interval_ms.max(1))
    }

    fn audit_interval(&self) -> Duration {
        Duration::from_millis(self.audit_interval_ms.max(1_000))
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(
            Duration::from_millis(self.backoff_first_ms.max(1)),
            Duration::from_millis(self.backoff_cap_ms.max(1)),
        )
    }
}

/// Whom a socket speaks for, by its place.
fn whose(path: &Path) -> Domain {
    let below = path.strip_prefix("/run/user").or_else(|_| path.strip_prefix("/var/run/user")).ok();
    let uid = below.and_then(|below| below.components().next()?.as_os_str().to_str()?.parse().ok());
    uid.map_or(Domain::Host, Domain::User)
}

/// What the source has done and met, since it began; all services, and all files, together.
#[derive(Debug, Default)]
pub struct Stats {
    /// Events received.
    pub events: AtomicU64,
    /// Events that could not be read and were left out.
    pub events_garbled: AtomicU64,
    /// Exits of processes that somebody executed in a container: not the container's end.
    pub exec_exits: AtomicU64,
    /// Calls about one container.
    pub calls_inspect: AtomicU64,
    /// Calls about one pod.
    pub calls_pod: AtomicU64,
    /// Calls that list all containers.
    pub calls_list: AtomicU64,
    /// Calls that ask whether, and which, a service is alive.
    pub calls_alive: AtomicU64,
    /// Calls without an answer within their deadline.
    pub calls_late: AtomicU64,
    /// Calls answered by an error, or by what could not be read; "not found" is neither.
    pub calls_failed: AtomicU64,
    /// Labels that were left out because there were too many, or because they were too long.
    pub left_out: AtomicU64,
    /// Times that everything was listed.
    pub lists: AtomicU64,
    /// Services that worked and then ended.
    pub sessions_lost: AtomicU64,
    /// Looks at processes that may be containers of podman's.
    pub looks: AtomicU64,
    /// Looks that found a container.
    pub found: AtomicU64,
    /// Looks at a conmon that tells of no container of podman's.
    pub refused: AtomicU64,
    /// Looks that could not be taken: too many, or a user whose files do not answer.
    pub looks_dropped: AtomicU64,
    /// Looks that stayed behind at a file that does not answer.
    pub looks_lost: AtomicU64,
}

/// What both ways share.
struct Shared {
    config: Config,
    env_allow: EnvAllow,
    facts: Facts,
    health: HealthBoard,
    stats: Arc<Stats>,
    complaints: Complaints,
    // Protects what is known; never held across an await.
    ledger: Mutex<ledger::Ledger>,
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, ledger::Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, what: &str) -> Line {
        Line::new(self.health.clone(), Source::Podman, what)
    }
}

/// What one service's sessions share.
struct Peer {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    path: Arc<Path>,
    line: Line,
    was_seen: bool,
}

/// Follows all services, and looks at each of `wishes`, until `cancel` or until the collection has ended. To be spawned on
/// a runtime with IO and time enabled.
#[expect(clippy::too_many_arguments, reason = "each is somebody else's, and this is called once")]
pub async fn run(
    config: Config,
    env_allow: EnvAllow,
    endpoints: Endpoints,
    wishes: mpsc::Receiver<Birth>,
    facts: Facts,
    health: HealthBoard,
    stats: Arc<Stats>,
    cancel: CancellationToken,
) {
    if !config.enabled {
        return;
    }
    let (complaints, ledger) = (Complaints::default(), Mutex::default());
    let shared = Arc::new(Shared { config, env_allow, facts, health, stats, complaints, ledger });
    // Files are read at any time: there is always something to come.
    let live = Fact { source: Source::Podman, at: BootTime::now(), what: What::Live(true) };
    if shared.facts.state(vec![live]).await.is_err() {
        return;
    }
    let follow = |endpoint: Endpoint, cancel| {
        let peer = Peer {
            line: shared.line(&endpoint.path.display().to_string()),
            path: endpoint.path.as_path().into(),
            shared: Arc::clone(&shared),
            endpoint,
            was_seen: false,
        };
        keep(peer, cancel)
    };
    tokio::join!(follow_all(endpoints, &cancel, follow), files::run(&shared, wishes, &cancel));
}

async fn keep(peer: Peer, cancel: CancellationToken) {
    let (line, backoff) = (peer.line.clone(), peer.shared.config.backoff());
    // Never contended: one session after the other. It lets each session borrow what they share.
    let peer = tokio::sync::Mutex::new(peer);
    supervise(&line, backoff, &cancel, || async { session::run(&mut *peer.lock().await).await }).await;
}
