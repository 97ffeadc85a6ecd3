//! The finder: where runtimes listen. Looks for their sockets at the usual paths, by their names and by the processes that
//! listen on them, and tells each runtime's source which there are.
//!
//! Owns what is found and what is refused, and says so on the health board. Promises that a runtime which starts after the
//! tracker is used within [`Config::interval_ms`], sooner on a hint, and at once where root's was before or usually is; that
//! what is configured is used whatever is found; that a file system which does not answer costs it a thread and no more.
//! Leaves to others: connecting, and checking there who it is that answers ([`peer`](super::peer)); a name alone gives nobody
//! a say.
//!
//! | file | what it is |
//! |---|---|
//! | `eyes` | one look at the host |
//! | `listening` | a line of the kernel's list of sockets; pure |
//! | `doorbell` | rings when something appears where a runtime may listen |
//! | `known` | usual paths and names |
//! | `book` | what is used and what is refused; pure |
//! | `ask` | which API a socket speaks, where its name does not tell |

mod ask;
mod book;
mod doorbell;
mod eyes;
mod known;
mod listening;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use ask::{Answer, ask};
use book::{Book, Place, Verdict, judge, shown};
use doorbell::Doorbell;
use eyes::{Eyes, Scope, Sighting};

use crate::container::{Domain, TaskId};
use crate::fact::Source;
use crate::source::endpoint::{Endpoint, Endpoints};
use crate::source::health::{Condition, HealthBoard};
use crate::source::peer::{FileId, file_id};

/// How runtimes are looked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Whether to look at all. Without, the sources use the sockets of their own configuration and no others.
    pub enabled: bool,
    /// Time between two looks, in milliseconds.
    pub interval_ms: u64,
    /// How long a socket that has gone stays in the list, in milliseconds.
    pub forget_ms: u64,
    /// Whether runtimes inside containers are asked, too. What they say is about containers inside those.
    pub nested: bool,
    /// Where the host's root directory is: elsewhere than at `/` for a tracker that runs in a container of its own.
    pub host_root: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true, interval_ms: 10_000, forget_ms: 60_000, nested: false, host_root: "/".into() }
    }
}

impl Config {
    fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms.max(100))
    }
}

/// The least time between two looks, however many hints there are. A hint that brought nothing doubles it, up to the
/// interval.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// How long a look may take before it is left behind.
const PATIENCE: Duration = Duration::from_secs(2);
/// Looks that may be left behind before only the host's usual paths are looked at, which nobody but root can put a file
/// system in the way of; and before none is, until one of them comes back.
const MANY_LOST: usize = 4;
const MAX_LOST: usize = 8;
/// Sockets that are asked in one look which API they speak.
const MAX_ASKED: usize = 16;

/// Findings that people are told.
const MAX_FINDINGS: usize = 32;

/// What a kind's line on the health board is called as long as none of it is found.
const SEARCH: &str = "search";

/// And that about files at which looks stay behind.
const LOST: &str = "search of silent files";

/// What is spoken on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Api {
    /// containerd's own.
    Containerd,
    /// Docker's.
    Docker,
    /// Podman's, which is Docker's and more.
    Podman,
    /// The CRI.
    Cri,
}

impl Api {
    /// All of them.
    pub const ALL: [Api; 4] = [Api::Containerd, Api::Docker, Api::Podman, Api::Cri];

    /// The source that speaks it.
    pub fn source(self) -> Source {
        match self {
            Api::Containerd => Source::Containerd,
            Api::Docker => Source::Docker,
            Api::Podman => Source::Podman,
            Api::Cri => Source::Cri,
        }
    }

    fn is_grpc(self) -> bool {
        matches!(self, Api::Containerd | Api::Cri)
    }
}

/// How a socket was found; the more telling ways come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    UsualPath,
    Process(u32),
    Name,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::UsualPath => f.write_str("usual path"),
            Origin::Process(pid) => write!(f, "process {pid}"),
            Origin::Name => f.write_str("name"),
        }
    }
}

/// The sockets of each kind of runtime, as they are known at present.
#[derive(Clone, Debug)]
pub struct Sockets {
    /// Where containerds listen.
    pub containerd: Endpoints,
    /// Where Docker listens.
    pub docker: Endpoints,
    /// Where Podman's service listens.
    pub podman: Endpoints,
    /// Where somebody speaks the CRI.
    pub cri: Endpoints,
}

/// What the finder has done.
#[derive(Debug, Default)]
pub struct Stats {
    /// Looks at the host.
    pub looks: AtomicU64,
    /// How long the last one took, in microseconds.
    pub last_micros: AtomicU64,
    /// Looks that stayed behind at a file that does not answer.
    pub lost: AtomicU64,
    /// Those that have not come back yet.
    pub lost_now: AtomicU64,
    /// Sockets that are used because they were found.
    pub used: AtomicU64,
    /// Sockets that were found and are refused.
    pub refused: AtomicU64,
}

/// What is configured for one kind of runtime.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Whether its source is switched on.
    pub enabled: bool,
    /// The sockets of its configuration.
    pub configured: Vec<Endpoint>,
    /// Whether every containerd that is found is asked, too.
    pub containerds: bool,
}

/// What a look brought, and what looked.
type Look = (Eyes, Vec<Sighting>);

/// The init process of the container that has a mount namespace.
pub type Whose = Box<dyn Fn(u32) -> Option<TaskId> + Send + Sync>;

/// A socket that one look found.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) api: Api,
    pub(crate) path: String,
    /// How it was found.
    pub(crate) how: String,
    /// Whether a tracker would ask it, as far as that can be told without: else the reason.
    pub(crate) verdict: Result<(), String>,
}

/// One look, for people: what a tracker with this configuration would find. Asks nobody anything, so that a daemon's other
/// sockets are left out, unless their names tell what they are. Blocks as long as the files that are looked at do.
pub(crate) fn look_once(config: &Config) -> Vec<Finding> {
    if !config.enabled {
        return Vec::new();
    }
    // Whose a mount namespace is, only a running tracker knows.
    let nested = |_| match config.nested {
        true => Ok(Domain::Host),
        false => Err("its listener lives in a mount namespace of its own: see `find.nested`".to_owned()),
    };
    let mut files = HashSet::new();
    let sightings = Eyes::new(&config.host_root, &Api::ALL).look(&[]).into_iter();
    let sightings = sightings.filter(|sighting| sighting.has_telling_name && files.insert(sighting.file.id));
    let findings = sightings.map(|sighting| Finding {
        api: sighting.api,
        path: shown(&sighting.path),
        how: sighting.origin.to_string(),
        verdict: judge(&sighting, nested).map(drop),
    });
    findings.take(MAX_FINDINGS).collect()
}

/// Looks for runtimes. To be run as a task ([`Finder::run`]).
pub struct Finder {
    config: Config,
    kinds: HashMap<Api, Kind>,
    health: HealthBoard,
    stats: Arc<Stats>,
    whose: Whose,
    book: Book,
    /// What was asked: whether this file's listener speaks what its program's name promises.
    asked: HashMap<(Api, PathBuf, FileId), bool>,
    /// Looks that have not come back, and where they are.
    lost: Vec<(PathBuf, JoinHandle<Look>)>,
    /// Rings for what appears; absent where the host has none to spare.
    doorbell: Option<Doorbell>,
}

struct Kind {
    wanted: Wanted,
    tell: watch::Sender<Arc<[Endpoint]>>,
}

impl Finder {
    /// One that knows what is configured and has not looked yet, and what it tells.
    pub fn new(
        config: Config,
        mut wanted: impl FnMut(Api) -> Wanted,
        whose: Whose,
        health: HealthBoard,
        stats: Arc<Stats>,
    ) -> (Self, Sockets) {
        let mut kinds = HashMap::new();
        let mut kind = |api| {
            let wanted = wanted(api);
            let (tell, told) = watch::channel(wanted.configured.clone().into());
            for endpoint in &wanted.configured {
                health.set_origin(api.source(), &shown(&endpoint.path), "configuration");
            }
            kinds.insert(api, Kind { wanted, tell });
            told
        };
        let sockets = Sockets {
            containerd: kind(Api::Containerd),
            docker: kind(Api::Docker),
            podman: kind(Api::Podman),
            cri: kind(Api::Cri),
        };
        let book = Book::new(Duration::from_millis(config.forget_ms));
        let (asked, lost, doorbell) = Default::default();
        (Self { config, kinds, health, stats, whose, book, asked, lost, doorbell }, sockets)
    }

    /// Looks every now and then, and soon after a hint, until `cancel`. Hints that come while it looks are one.
    pub async fn run(mut self, hints: Arc<Notify>, cancel: CancellationToken) {
        let wanted: Vec<Api> = Api::ALL.into_iter().filter(|api| self.kinds[api].wanted.enabled).collect();
        if !self.config.enabled || wanted.is_empty() {
            return;
        }
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.look_for_ever(&wanted, &hints) => {}
        }
    }

    async fn look_for_ever(&mut self, wanted: &[Api], hints: &Notify) {
        self.doorbell =
            Doorbell::new().inspect_err(|error| warn!(%error, "what appears is found by looking only")).ok();
        let ear = self.doorbell.as_ref().and_then(|doorbell| doorbell.ear().ok());
        let ring = || async {
            match &ear {
                Some(ear) => ear.rings().await,
                None => std::future::pending().await,
            }
        };
        let interval = self.config.interval();
        let least = LEAST_PAUSE.min(interval);
        // How long no hint counts, and whether a ring brought the look.
        let (mut pause, mut is_rung) = (least, false);
        let mut eyes = None;
        loop {
            let (looked, found) = self.look_once(wanted, eyes.take()).await;
            eyes = looked;
            sleep(least).await;
            // Who makes a socket listens on it a moment later.
            if std::mem::take(&mut is_rung) && !found {
                continue;
            }
            let hint = async {
                sleep(pause.saturating_sub(least)).await;
                hints.notified().await;
            };
            pause = tokio::select! {
                () = sleep(interval.saturating_sub(least)) => least,
                () = ring() => {
                    is_rung = true;
                    pause
                }
                () = hint => if found { least } else { (pause * 2).min(interval) },
            };
        }
    }

    /// Looks with these eyes, or with new ones, and takes in what they saw. Returns them, unless they are lost, and whether
    /// anything is used that was not.
    async fn look_once(&mut self, wanted: &[Api], eyes: Option<Eyes>) -> (Option<Eyes>, bool) {
        let lost = self.lost.len();
        self.lost.retain(|(_, look)| !look.is_finished());
        let is_same = lost == self.lost.len();
        if !is_same {
            self.report_lost(wanted);
        }
        if self.lost.len() >= MAX_LOST {
            return (None, false);
        }
        let eyes = eyes.filter(|_| is_same).unwrap_or_else(|| self.eyes(wanted));
        match self.look(eyes).await {
            Some((eyes, sightings)) => (Some(eyes), self.take_in(sightings).await),
            None => {
                self.report_lost(wanted);
                (None, false)
            }
        }
    }

    fn eyes(&self, wanted: &[Api]) -> Eyes {
        let scope = if self.lost.len() < MANY_LOST { Scope::Everything } else { Scope::UsualPaths };
        let avoided = self.lost.iter().map(|(path, _)| path.clone()).collect();
        Eyes::new(&self.config.host_root, wanted).careful(scope, avoided).with_doorbell(self.doorbell.clone())
    }

    /// One look, in a thread that is left behind when a file does not answer.
    async fn look(&mut self, mut eyes: Eyes) -> Option<Look> {
        let (began, attention, known) = (Instant::now(), eyes.attention(), self.book.hosts_places());
        let mut look = tokio::task::spawn_blocking(move || {
            let sightings = eyes.look(&known);
            (eyes, sightings)
        });
        let looked = loop {
            if let Ok(looked) = timeout(PATIENCE, &mut look).await {
                break Some(looked.expect("a look does not panic"));
            }
            // As long as it gets from one file to the next it is only slow.
            if let Some(path) = attention.stays_at(PATIENCE) {
                self.stats.lost.fetch_add(1, Relaxed);
                warn!(path = shown(&path), "a file does not answer; it is not looked at until it does");
                self.lost.push((path, look));
                break None;
            }
        };
        self.stats.looks.fetch_add(1, Relaxed);
        self.stats.last_micros.store(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), Relaxed);
        looked
    }

    /// Says at which files looks stay behind, and what is not looked at because of them.
    fn report_lost(&self, wanted: &[Api]) {
        self.stats.lost_now.store(self.lost.len() as u64, Relaxed);
        let less = match self.lost.len() {
            0 => {
                wanted.iter().for_each(|api| self.health.forget(api.source(), LOST));
                return;
            }
            MAX_LOST.. => "nothing is looked for until one does",
            MANY_LOST.. => "only the host's usual paths are looked at until one does",
            _ => "all others are looked at",
        };
        let paths: Vec<String> = self.lost.iter().map(|(path, _)| shown(path)).collect();
        let detail = format!("these files do not answer: {}; {less}", paths.join(", "));
        wanted.iter().for_each(|api| _ = self.health.report(api.source(), LOST, Condition::Waiting, &detail));
    }

    /// Takes in what a look brought. Returns whether anything is used that was not.
    async fn take_in(&mut self, sightings: Vec<Sighting>) -> bool {
        let configured = self.configured_files();
        let nested = |mntns| match (self.config.nested, (self.whose)(mntns)) {
            (true, Some(init)) => Ok(Domain::Container(init)),
            (true, None) => {
                Err("its listener lives in a mount namespace of its own, which is no known container's".into())
            }
            (false, _) => Err("its listener lives in a mount namespace of its own: see `find.nested`".to_owned()),
        };
        let judged = sightings.into_iter().map(|sighting| (judge(&sighting, nested), sighting));
        let mut judged: Vec<(Verdict, Sighting)> = judged.collect();
        self.ask_what_they_speak(&mut judged).await;
        let gone = self.book.look(Instant::now(), &configured, judged);
        self.report(&gone);
        self.tell()
    }

    /// Asks those whose name does not tell what they speak, each file once. Those that speak something else are left out.
    async fn ask_what_they_speak(&mut self, judged: &mut Vec<(Verdict, Sighting)>) {
        let mut former = std::mem::take(&mut self.asked);
        let key = |sighting: &Sighting| (sighting.api, sighting.path.clone(), sighting.file.id);
        let unclear = judged.iter().filter(|(_, sighting)| !sighting.has_telling_name);
        let mut to_ask = Vec::new();
        for (verdict, sighting) in unclear {
            match (former.remove(&key(sighting)), verdict) {
                (Some(speaks), _) => _ = self.asked.insert(key(sighting), speaks),
                (None, Ok(domain)) if to_ask.len() < MAX_ASKED => to_ask.push((sighting, *domain)),
                (None, _) => {}
            }
        }
        let answers =
            join_all(to_ask.iter().map(|(sighting, domain)| ask(&sighting.path, *domain, sighting.api))).await;
        let mut silent = HashMap::new();
        for ((sighting, _), answer) in to_ask.iter().zip(answers) {
            match answer {
                Answer::Speaks => _ = self.asked.insert(key(sighting), true),
                Answer::SpeaksNot => _ = self.asked.insert(key(sighting), false),
                Answer::Silent(why) => _ = silent.insert(key(sighting), (sighting.origin, why)),
            }
        }
        // Some protocols wait for more than they are told. Where the same process answers elsewhere, it is well, and this
        // is another of its sockets.
        let is_well = |origin: Origin| {
            let mut others = judged.iter().filter(|(_, sighting)| sighting.origin == origin);
            others.any(|(_, sighting)| sighting.has_telling_name || self.asked.get(&key(sighting)) == Some(&true))
        };
        let of_others: Vec<_> = silent.extract_if(|_, (origin, _)| is_well(*origin)).map(|(key, _)| key).collect();
        self.asked.extend(of_others.into_iter().map(|key| (key, false)));
        judged.retain_mut(|(verdict, sighting)| {
            if sighting.has_telling_name || verdict.is_err() {
                return true;
            }
            let speaks = self.asked.get(&key(sighting));
            if speaks.is_none() {
                let why = silent.remove(&key(sighting)).map(|(_, why)| why);
                *verdict = Err(why.unwrap_or_else(|| "too many others are asked what they speak".into()));
            }
            speaks != Some(&false)
        });
    }

    fn configured_files(&self) -> HashSet<(Api, FileId)> {
        let configured = self.kinds.iter().flat_map(|(api, kind)| kind.wanted.configured.iter().map(|one| (*api, one)));
        configured.filter_map(|(api, endpoint)| Some((api, file_id(&endpoint.path)?))).collect()
    }

    fn report(&self, gone: &[Place]) {
        for (api, _) in self.kinds.iter().filter(|(_, kind)| kind.wanted.enabled) {
            let (source, is_found) = (api.source(), !self.book.used(*api).is_empty());
            if is_found || self.health.is_reporting(source) {
                self.health.forget(source, SEARCH);
            } else {
                let paths: Vec<&str> = known::paths_of(*api).collect();
                let tried = format!("no socket by its name or its process, and none at {}", paths.join(", "));
                self.health.report(source, SEARCH, Condition::Waiting, &tried);
            }
        }
        for ((api, path), origin) in self.book.origins() {
            self.sources_of(*api).for_each(|of| self.health.set_origin(of, &shown(path), &origin.to_string()));
        }
        for (api, path) in gone {
            self.sources_of(*api).for_each(|source| self.health.forget(source, &shown(path)));
        }
        for ((api, path), refused) in self.book.refused() {
            let (source, what) = (api.source(), shown(path));
            self.health.set_origin(source, &what, &refused.origin.to_string());
            if self.health.report(source, &what, Condition::Refused, &refused.why) {
                warn!(%source, what, why = refused.why, "refused");
            }
        }
        self.stats.used.store(self.book.origins().count() as u64, Relaxed);
        self.stats.refused.store(self.book.refused().count() as u64, Relaxed);
    }

    /// The sources that ask a socket of this kind.
    fn sources_of(&self, api: Api) -> impl Iterator<Item = Source> {
        let and_cri = api == Api::Containerd && self.kinds[&Api::Cri].wanted.containerds;
        [api.source()].into_iter().chain(and_cri.then_some(Source::Cri))
    }

    /// Tells the sources which sockets there are. Returns whether there are any that were not.
    fn tell(&self) -> bool {
        let mut is_anything_new = false;
        for (api, kind) in &self.kinds {
            let found = self.book.used(*api);
            let mut all: Vec<Endpoint> = kind.wanted.configured.iter().cloned().chain(found).collect();
            let containerds = if kind.wanted.containerds { self.book.used(Api::Containerd) } else { Vec::new() };
            // Many do not speak it, and nobody has to know.
            all.extend(containerds.into_iter().map(|endpoint| Endpoint { is_expected: false, ..endpoint }));
            kind.tell.send_if_modified(|told| {
                let new: Vec<&Endpoint> = all.iter().filter(|endpoint| !told.contains(endpoint)).collect();
                for endpoint in &new {
                    info!(source = %api.source(), path = shown(&endpoint.path), domain = ?endpoint.domain, "found");
                }
                is_anything_new |= !new.is_empty();
                let differs = **told != *all;
                if differs {
                    *told = all.as_slice().into();
                }
                differs
            });
        }
        is_anything_new
    }
}
