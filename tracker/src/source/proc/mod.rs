//! The `proc` source: says which container an init process is that nobody told us about.
//!
//! Containers that were there before the tracker, and those whose start nothing held, are known to the collection by
//! their first process alone. It asks for a closer look at such a [`Birth`], and this source searches the state
//! directories of the OCI runtimes for the container whose init has the same pid *and* the same start time. A state
//! directory speaks for its owner: root for every container, a user for containers that run as this user. Where none knows
//! it, the command line of a runtime of root's above the process tells its id and bundle.
//! The bundle's `config.json`, the shim or conmon above the process, and the process itself tell the rest, which is
//! stated under the same key as the barrier and the runtimes' sources use.
//!
//! ```text
//! requests ─▶ wanted ─▶ a look, in a thread that may be lost ─▶ facts
//!                ▲                 │ not found: a runtime writes its state after its container's birth
//!                └─── again later ◀┘
//! ```
//!
//! Looking is slow (files of others), so that it never happens on the caller's thread: a look that takes longer than
//! five seconds is left behind. What finds the queue or the wanted list full is dropped and counted; the next
//! audit brings it again.

mod finder;
mod invocation;
pub(crate) mod owner;
pub(crate) mod state_file;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use self::finder::{Finder, Found};
use super::health::{Condition, HealthBoard};
use crate::collection::door::Facts;
use crate::fact::{Birth, Fact, Source, What};
use crate::time::BootTime;

/// When a container is looked for again that was not found: its runtime may not have written its state yet.
const PAUSES: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(3)];
/// Births that are looked for in one go.
const BATCH_LEN: usize = 256;
/// Births that wait for another look. More are dropped, and counted.
const MAX_WANTED: usize = 4096;
/// A look that takes longer stays behind.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// After a look there is none for this many times as long as it took: whatever is born, and however many containers
/// there are, looking costs a fifth of one processor at most.
const REST: u32 = 4;
/// Looks that may have stayed behind at the same time; there are no further ones until one comes back.
const MAX_LOST: usize = 4;

/// Where the runtimes keep what they know.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Root directories of OCI runtimes, in addition to the usual ones and to those that running shims and conmons
    /// name. A final `/*` stands for every directory in there.
    pub roots: Vec<PathBuf>,
    /// Whether the usual ones are looked into: those of runc, crun, containerd and Docker, and the ones in
    /// `/run/user/<uid>`.
    pub usual_roots: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { roots: Vec::new(), usual_roots: true }
    }
}

/// What the source has done so far.
#[derive(Debug, Default)]
pub struct Stats {
    /// Births that were to be looked for.
    pub requested: AtomicU64,
    /// Births whose container was found.
    pub found: AtomicU64,
    /// Births that no state directory knows, after the last attempt.
    pub unknown: AtomicU64,
    /// Births that ended before they were looked for.
    pub gone: AtomicU64,
    /// Births that were dropped: too many, or a look that never ended.
    pub dropped: AtomicU64,
    /// Bundles whose `config.json` could not be read.
    pub unreadable_bundles: AtomicU64,
    /// Looks that stayed behind at a file that does not answer.
    pub lost_looks: AtomicU64,
}

/// Looks for what is requested until `cancel`, or until nobody can request any more.
pub async fn run(
    config: Config,
    mut requests: mpsc::Receiver<Birth>,
    facts: Facts,
    health: HealthBoard,
    stats: Arc<Stats>,
    cancel: CancellationToken,
) {
    let mut looker = Looker {
        config,
        finder: None,
        lost: Arc::default(),
        health,
        stats: Arc::clone(&stats),
        rests_until: Instant::now(),
    };
    looker.report(Condition::Live, "");
    let mut wanted = Wanted::default();
    let mut incoming = Vec::new();
    loop {
        let due = wanted.next_due().map(|due| due.max(looker.rests_until));
        tokio::select! {
            () = cancel.cancelled() => return,
            count = requests.recv_many(&mut incoming, BATCH_LEN) => {
                if count == 0 {
                    return;
                }
                stats.requested.fetch_add(count as u64, Ordering::Relaxed);
                let now = Instant::now();
                let refused = incoming.drain(..).filter(|birth| !wanted.add(*birth, now, 0)).count();
                stats.dropped.fetch_add(refused as u64, Ordering::Relaxed);
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        let now = Instant::now();
        let batch = if now < looker.rests_until { Vec::new() } else { wanted.take_due(now) };
        if batch.is_empty() {
            continue;
        }
        let births = batch.iter().map(|(birth, _)| *birth).collect();
        let answers = tokio::select! {
            () = cancel.cancelled() => return,
            answers = looker.look(births) => answers,
        };
        let Some(answers) = answers else {
            stats.dropped.fetch_add(batch.len() as u64, Ordering::Relaxed);
            continue;
        };
        let mut stated = Vec::new();
        for ((birth, attempts), found) in batch.into_iter().zip(answers) {
            match found {
                Found::Container { key, statement } => {
                    stats.found.fetch_add(1, Ordering::Relaxed);
                    let what = What::Stated { key, statement };
                    stated.push(Fact { source: Source::Proc, at: BootTime::now(), what });
                }
                Found::Gone => {
                    stats.gone.fetch_add(1, Ordering::Relaxed);
                }
                Found::Nothing(look) => {
                    let task = birth.task;
                    let what = look.map(|look| What::Looked { task, look });
                    stated.extend(what.map(|what| Fact { source: Source::Proc, at: BootTime::now(), what }));
                    match PAUSES.get(attempts) {
                        Some(pause) if wanted.add(birth, Instant::now() + *pause, attempts + 1) => {}
                        Some(_) => {
                            stats.dropped.fetch_add(1, Ordering::Relaxed);
                        }
                        None => {
                            stats.unknown.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
        }
        if !stated.is_empty() && facts.state(stated).await.is_err() {
            return;
        }
    }
}

/// Births to look for, with the number of looks so far.
#[derive(Default)]
struct Wanted {
    births: Vec<(Instant, Birth, usize)>,
}

impl Wanted {
    /// Whether there was room for it. A process that is wanted already is wanted once, and no later.
    fn add(&mut self, birth: Birth, due: Instant, attempts: usize) -> bool {
        if let Some((known, ..)) = self.births.iter_mut().find(|(_, other, _)| other.task == birth.task) {
            *known = due.min(*known);
            return true;
        }
        let has_room = self.births.len() < MAX_WANTED;
        if has_room {
            self.births.push((due, birth, attempts));
        }
        has_room
    }

    fn next_due(&self) -> Option<Instant> {
        self.births.iter().map(|(due, ..)| *due).min()
    }

    fn take_due(&mut self, now: Instant) -> Vec<(Birth, usize)> {
        let mut room = BATCH_LEN;
        let due = self.births.extract_if(.., |(due, ..)| {
            let take = *due <= now && room > 0;
            room -= usize::from(take);
            take
        });
        due.map(|(_, birth, attempts)| (birth, attempts)).collect()
    }
}

/// Runs looks in threads of their own.
struct Looker {
    config: Config,
    /// What former looks learnt; absent after one that stayed behind with it.
    finder: Option<Finder>,
    /// Threads that have not come back.
    lost: Arc<AtomicUsize>,
    health: HealthBoard,
    stats: Arc<Stats>,
    /// When the next look may begin.
    rests_until: Instant,
}

impl Looker {
    /// One answer for each birth, or none when there cannot be a look, or when it took too long.
    async fn look(&mut self, births: Vec<Birth>) -> Option<Vec<Found>> {
        if self.lost.load(Ordering::Relaxed) >= MAX_LOST {
            self.report(Condition::Degraded, "files of container runtimes do not answer: no further ones are read");
            return None;
        }
        let mut finder = self.finder.take().unwrap_or_else(|| Finder::new(&self.config, Arc::clone(&self.stats)));
        let (sender, answer) = oneshot::channel();
        let lost = Arc::clone(&self.lost);
        lost.fetch_add(1, Ordering::Relaxed);
        let look = move || {
            let found = finder.look(&births);
            lost.fetch_sub(1, Ordering::Relaxed);
            // The one who asked may have gone on without us.
            let _ = sender.send((finder, found));
        };
        if let Err(error) = thread::Builder::new().name("tracker-proc".into()).spawn(look) {
            self.lost.fetch_sub(1, Ordering::Relaxed);
            self.report(Condition::Degraded, &format!("start a thread: {error}"));
            return None;
        }
        let began = Instant::now();
        let answer = timeout(LOOK_TIMEOUT, answer).await;
        self.rests_until = Instant::now() + began.elapsed() * REST;
        match answer {
            Ok(Ok((finder, found))) => {
                self.finder = Some(finder);
                self.report(Condition::Live, "");
                Some(found)
            }
            Ok(Err(_)) | Err(_) => {
                self.stats.lost_looks.fetch_add(1, Ordering::Relaxed);
                self.report(Condition::Degraded, "a file of a container runtime does not answer");
                None
            }
        }
    }

    fn report(&self, condition: Condition, detail: &str) {
        if self.health.report(Source::Proc, "state directories", condition, detail) && !detail.is_empty() {
            tracing::warn!(source = %Source::Proc, "{detail}");
        }
    }
}

#[cfg(test)]
mod tests;
