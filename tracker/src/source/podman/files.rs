//! Containers of podman's when nobody answers: finds them from their first processes, and keeps what was found true.
//!
//! The collection wishes for a closer look at each container that podman may know something about. Looks are taken aside,
//! root's and users' in lanes of their own, and one user at a time: a user whose files do not answer delays nobody
//! else's for longer than one look. What was found is looked at again now and then, for names and images change; root's
//! soon after its store has.
//!
//! ```text
//! wishes ─▶ wanted ─▶ a look, aside ─▶ ledger ─▶ facts
//!              ▲            │ no conmon above it: its OCI runtime may not have left yet
//!              └── later ◀──┘
//! ```

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Shared;
use super::ledger::{Found, Named};
use super::look::{Looked, Looker};
use super::watch::{Changes, Watcher, watch};
use crate::container::{Domain, TaskId};
use crate::fact::{Birth, Fact};
use crate::source::aside::{Aside, NoResult};
use crate::source::supervise::Line;
use crate::time::BootTime;

/// When a process is looked at again that has no conmon above it.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(400), Duration::from_secs(3)];
/// Processes that are looked at in one go.
const BATCH_LEN: usize = 256;
/// Processes that wait for a look. More are dropped and counted; the next scan brings them again.
const MAX_WANTED: usize = 4096;
/// Wishes that wait for a lane. More are dropped likewise.
pub(super) const MAX_WISHES: usize = 1024;
/// A look that takes longer stays behind.
const PATIENCE: Duration = Duration::from_secs(5);
/// Looks of one lane that may have stayed behind.
const MAX_LOST: usize = 4;
/// How long a user whose files do not answer is let alone.
const LEFT_ALONE: Duration = Duration::from_secs(60);

/// A process that may be a container's first.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    task: TaskId,
    uid: u32,
    due: Instant,
    looks: usize,
}

/// After a change of a store it is given this time to change further: one look for all that one command writes.
const SETTLE: Duration = Duration::from_millis(500);

/// Root's lane, or that of all users.
struct Lane<'a> {
    shared: &'a Shared,
    is_users: bool,
    line: Line,
    aside: Aside,
    /// Absent after a look that stayed behind with it.
    looker: Option<Looker>,
    /// Root's stores, as far as they can be watched.
    watch: Option<(Watcher, Changes)>,
    wanted: HashMap<TaskId, Wanted>,
    left_alone: HashMap<u32, Instant>,
}

/// Takes looks until `cancel`, or until nobody can wish for one any more.
pub(super) async fn run(shared: &Shared, mut wishes: mpsc::Receiver<Birth>, cancel: &CancellationToken) {
    let (of_root, for_root) = mpsc::channel(MAX_WISHES);
    let (of_users, for_users) = mpsc::channel(MAX_WISHES);
    let relay = async {
        while let Some(birth) = wishes.recv().await {
            let lane = if birth.uid == 0 { &of_root } else { &of_users };
            if lane.try_send(birth).is_err() {
                shared.stats.looks_dropped.fetch_add(1, Relaxed);
            }
        }
        drop((of_root, of_users));
    };
    let lanes = async { tokio::join!(Lane::new(shared, false).run(for_root), Lane::new(shared, true).run(for_users)) };
    tokio::select! {
        () = cancel.cancelled() => {}
        _ = async { tokio::join!(relay, lanes) } => {}
    }
}

impl<'a> Lane<'a> {
    fn new(shared: &'a Shared, is_users: bool) -> Self {
        let what = if is_users { "conmon, of users" } else { "conmon" };
        Self {
            shared,
            is_users,
            line: shared.line(what),
            aside: Aside::new("tracker-podman", PATIENCE, MAX_LOST),
            looker: None,
            watch: if is_users { None } else { watch().ok() },
            wanted: HashMap::new(),
            left_alone: HashMap::new(),
        }
    }

    async fn run(mut self, mut wishes: mpsc::Receiver<Birth>) {
        // Users' containers are worth a line when there are any.
        if !self.is_users {
            self.line.live("");
        }
        let interval = self.shared.config.audit_interval();
        let mut audit_at = Instant::now() + interval;
        let mut incoming = vec![];
        let mut changed_at: Option<Instant> = None;
        loop {
            let due = self.wanted.values().map(|wanted| wanted.due).min();
            // Where nothing was found, nothing changes: no timer.
            let audited = self.shared.ledger().has_found(self.is_users).then_some(audit_at);
            let settled = changed_at.map(|at| at + SETTLE);
            let wake = due.into_iter().chain(audited).chain(settled).min();
            tokio::select! {
                count = wishes.recv_many(&mut incoming, BATCH_LEN) => {
                    if count == 0 {
                        return;
                    }
                    for birth in incoming.drain(..) {
                        self.want(Wanted { task: birth.task, uid: birth.uid, due: Instant::now(), looks: 0 });
                    }
                }
                () = next_change(&mut self.watch) => {
                    changed_at.get_or_insert_with(Instant::now);
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
            if Instant::now() >= audit_at {
                audit_at = Instant::now() + interval;
                self.audit();
            }
            if changed_at.is_some_and(|at| at + SETTLE <= Instant::now()) {
                changed_at = None;
                self.renamed().await;
            }
            let batch = self.take_due();
            if batch.is_empty() {
                continue;
            }
            let facts = self.look(batch).await;
            if !facts.is_empty() && self.shared.facts.state(facts).await.is_err() {
                return;
            }
        }
    }

    /// A process that is wanted already is wanted once.
    fn want(&mut self, wanted: Wanted) {
        if self.wanted.len() < MAX_WANTED || self.wanted.contains_key(&wanted.task) {
            self.wanted.entry(wanted.task).or_insert(wanted);
        } else {
            self.shared.stats.looks_dropped.fetch_add(1, Relaxed);
        }
    }

    /// Wants all again that were found.
    fn audit(&mut self) {
        let found = self.shared.ledger().all_found();
        for (name, task) in found {
            let uid = match name.domain {
                Domain::User(uid) => uid,
                _ => 0,
            };
            if (uid != 0) == self.is_users {
                self.want(Wanted { task, uid, due: Instant::now(), looks: PAUSES.len() });
            }
        }
    }

    /// Wants those again that podman calls otherwise by now.
    async fn renamed(&mut self) {
        let found = self.shared.ledger().all_named();
        let mut looker = self.take_looker();
        let look = move || {
            let renamed = looker.renamed(found);
            (looker, renamed)
        };
        // A store that does not answer is told of by whoever looks at a container of it.
        let Ok((looker, renamed)) = self.aside.run(look).await else { return };
        self.looker = Some(looker);
        for Named { task, .. } in renamed {
            self.want(Wanted { task, uid: 0, due: Instant::now(), looks: PAUSES.len() });
        }
    }

    fn take_looker(&mut self) -> Looker {
        let watcher = self.watch.as_ref().map(|(watcher, _)| watcher.clone());
        self.looker.take().unwrap_or_else(|| Looker::new(self.shared.env_allow.clone(), watcher))
    }

    /// Those whose time has come, all of one user.
    fn take_due(&mut self) -> Vec<Wanted> {
        let now = Instant::now();
        self.left_alone.retain(|_, until| *until > now);
        let is_due = |wanted: &&Wanted| wanted.due <= now;
        let Some(uid) = self.wanted.values().filter(is_due).min_by_key(|wanted| wanted.due).map(|wanted| wanted.uid)
        else {
            return vec![];
        };
        let mut room = BATCH_LEN;
        let batch = self.wanted.extract_if(|_, wanted| {
            let take = wanted.uid == uid && wanted.due <= now && room > 0;
            room -= usize::from(take);
            take
        });
        let batch: Vec<Wanted> = batch.map(|(_, wanted)| wanted).collect();
        if self.left_alone.contains_key(&uid) {
            self.shared.stats.looks_dropped.fetch_add(batch.len() as u64, Relaxed);
            return vec![];
        }
        batch
    }

    async fn look(&mut self, batch: Vec<Wanted>) -> Vec<Fact> {
        let stats = &self.shared.stats;
        let at = BootTime::now();
        let mut looker = self.take_looker();
        let tasks: Vec<TaskId> = batch.iter().map(|wanted| wanted.task).collect();
        let look = move || {
            let looked: Vec<Looked> = tasks.into_iter().map(|task| looker.look(task)).collect();
            (looker, looked)
        };
        stats.looks.fetch_add(batch.len() as u64, Relaxed);
        let looked = match self.aside.run(look).await {
            Ok((looker, looked)) => {
                self.looker = Some(looker);
                self.line.live("");
                looked
            }
            Err(error) => {
                stats.looks_lost.fetch_add(1, Relaxed);
                self.line.degraded(&error.to_string());
                if error == NoResult::Late
                    && let Some(wanted) = batch.first().filter(|_| self.is_users)
                {
                    self.left_alone.insert(wanted.uid, Instant::now() + LEFT_ALONE);
                }
                return vec![];
            }
        };
        let mut facts = vec![];
        for (wanted, looked) in batch.into_iter().zip(looked) {
            match looked {
                Looked::Found(name, found) => {
                    stats.found.fetch_add(1, Relaxed);
                    let Found { scope, statement } = *found;
                    facts.extend(self.shared.ledger().found(name, at, Found { scope, statement }));
                }
                Looked::NoConmon => {
                    if let Some(pause) = PAUSES.get(wanted.looks) {
                        self.want(Wanted { due: Instant::now() + *pause, looks: wanted.looks + 1, ..wanted });
                    }
                }
                Looked::NotPodmans => {
                    stats.refused.fetch_add(1, Relaxed);
                    if self.shared.complaints.due("conmon") {
                        warn!(pid = wanted.task.pid, "a conmon that tells of no container of podman's");
                    }
                }
                Looked::Gone => self.shared.ledger().forget(wanted.task),
            }
        }
        facts
    }
}

/// Waits for a change of a store; for ever where none is watched.
async fn next_change(watch: &mut Option<(Watcher, Changes)>) {
    match watch {
        Some((_, changes)) => changes.next().await,
        None => std::future::pending().await,
    }
}
