//! The containerd source: every container in every namespace of every containerd on the host, by containerd's own word.
//!
//! Owns the connections, what is known from them and how it becomes facts. Promises that a daemon which is absent, hung,
//! killed, restarted or hostile is a line on the health board and never an end; that no call lacks a deadline; and that a
//! container's life costs one call for its record, and calls for its image only when the image is new. Leaves to others
//! what containerd does not know: Docker's names, namespaces of processes that have gone, bundles of containers that were
//! there before.
//!
//! | file | what it is |
//! |---|---|
//! | `session` | one connection's life: subscribe, list, reconcile, follow |
//! | `client` | the connection and its calls |
//! | `catalog` | reads images: what a name stands for, and all that are stored |
//! | `ledger` | what is known about every container; pure |
//! | `events`, `describe`, `images` | bytes and records of containerd's, made into ours; pure |

mod catalog;
mod client;
mod describe;
mod events;
mod images;
mod ledger;
mod session;

#[cfg(test)]
mod component_tests;
#[cfg(test)]
mod fake;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::collection::door::Facts;
use crate::container::{Domain, Str};
use crate::enrich::env::EnvAllow;
use crate::fact::Source;
use crate::source::complaints::Complaints;
use crate::source::endpoint::{Endpoint, Endpoints, follow_all};
use crate::source::health::HealthBoard;
use crate::source::images::Images;
use crate::source::roster::Roster;
use crate::source::supervise::{Backoff, Line, supervise};

/// Where containerds are looked for, and how patiently.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Whether to look for containerds at all.
    pub enabled: bool,
    /// Sockets that are expected: one that is absent is reported as such.
    pub sockets: Vec<PathBuf>,
    /// Sockets that are used when they appear, and not mentioned before.
    pub sockets_if_present: Vec<PathBuf>,
    /// How long one call may take, in milliseconds.
    pub call_deadline_ms: u64,
    /// How long one list of a namespace may take, in milliseconds.
    pub list_deadline_ms: u64,
    /// How long nothing may be heard before the daemon is asked whether it is alive, in milliseconds.
    pub alive_interval_ms: u64,
    /// How often everything is listed again, in milliseconds.
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
            sockets: vec!["/run/containerd/containerd.sock".into()],
            sockets_if_present: vec![
                "/run/k3s/containerd/containerd.sock".into(),
                "/run/docker/containerd/containerd.sock".into(),
            ],
            call_deadline_ms: 2_000,
            list_deadline_ms: 10_000,
            alive_interval_ms: 5_000,
            audit_interval_ms: 300_000,
            backoff_first_ms: 100,
            backoff_cap_ms: 2_000,
        }
    }
}

impl Config {
    /// The sockets that are configured.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        Endpoint::configured(&self.sockets, &self.sockets_if_present)
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

/// What the source has done and met, since it began; all containerds together.
#[derive(Debug, Default)]
pub struct Stats {
    /// Events received.
    pub events: AtomicU64,
    /// Events that could not be read and were left out.
    pub events_garbled: AtomicU64,
    /// Exits of processes that somebody executed in a container: not the container's end.
    pub exec_exits: AtomicU64,
    /// Calls for a container's record.
    pub calls_container: AtomicU64,
    /// Calls for the name or the manifest of a container's image.
    pub calls_image: AtomicU64,
    /// Calls for manifests and configs of stored images, whether or not containers use them.
    pub calls_catalog: AtomicU64,
    /// Calls that list something.
    pub calls_list: AtomicU64,
    /// Calls that ask whether the daemon is alive.
    pub calls_alive: AtomicU64,
    /// Calls without an answer within their deadline.
    pub calls_late: AtomicU64,
    /// Calls answered by an error, or by what could not be read; "not found" is neither.
    pub calls_failed: AtomicU64,
    /// Labels that were left out because there were too many, or because they were too long.
    pub left_out: AtomicU64,
    /// Times that everything was listed.
    pub lists: AtomicU64,
    /// Connections that worked and then ended.
    pub sessions_lost: AtomicU64,
}

/// What one containerd's sessions share.
struct Peer {
    path: PathBuf,
    /// Whom it may speak for.
    domain: Domain,
    /// The same for people.
    shown: Str,
    /// Not mentioned before it was seen.
    is_optional: bool,
    was_seen: bool,
    config: Config,
    env_allow: EnvAllow,
    facts: Facts,
    line: Line,
    stats: Arc<Stats>,
    complaints: Arc<Complaints>,
    roster: Arc<Roster>,
    ledger: ledger::Ledger,
    images: images::Images,
    catalog: catalog::Catalog,
    /// Where what it has stored is told.
    stored: Images,
}

/// Follows all containerds until `cancel`, or until the collection has ended. To be spawned on a runtime with IO and
/// time enabled.
#[expect(clippy::too_many_arguments, reason = "each is somebody else's, and this is called once")]
pub async fn run(
    config: Config,
    env_allow: EnvAllow,
    endpoints: Endpoints,
    facts: Facts,
    health: HealthBoard,
    stored: Images,
    stats: Arc<Stats>,
    cancel: CancellationToken,
) {
    if !config.enabled {
        return;
    }
    let complaints = Arc::new(Complaints::default());
    let roster = Arc::new(Roster::default());
    let peer = |Endpoint { path, domain, is_expected }: Endpoint| Peer {
        line: Line::new(health.clone(), Source::Containerd, &path.display().to_string()),
        shown: path.display().to_string().into(),
        path,
        domain,
        is_optional: !is_expected,
        was_seen: false,
        config: config.clone(),
        env_allow: env_allow.clone(),
        facts: facts.clone(),
        stats: Arc::clone(&stats),
        complaints: Arc::clone(&complaints),
        roster: Arc::clone(&roster),
        ledger: ledger::Ledger::default(),
        images: images::Images::default(),
        catalog: catalog::Catalog::default(),
        stored: stored.clone(),
    };
    follow_all(endpoints, &cancel, |endpoint, cancel| keep(peer(endpoint), cancel)).await;
}

async fn keep(peer: Peer, cancel: CancellationToken) {
    let (line, shown, stored) = (peer.line.clone(), Str::clone(&peer.shown), peer.stored.clone());
    let backoff = peer.config.backoff();
    // Never contended: one session after the other. It lets each session borrow what they share.
    let peer = Mutex::new(peer);
    supervise(&line, backoff, &cancel, || async { session::run(&mut *peer.lock().await).await }).await;
    // After the end of the collection there is nobody to tell.
    let _ = session::leave(&*peer.lock().await).await;
    stored.forget(Source::Containerd, &shown);
}
