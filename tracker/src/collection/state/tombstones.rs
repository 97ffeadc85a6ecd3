//! What is over stays for late events, for a while and within a bound; then it is forgotten.

use std::time::Duration;

use super::State;
use crate::collection::view::Row;
use crate::container::{Domain, Grade};
use crate::fact::{Source, SourceSet};
use crate::time::BootTime;

/// A rough size of a tombstone without its maps: the row, the run, its index entries.
const TOMBSTONE_BASE_BYTES: usize = 2_048;
/// How long an announced container may take to come to life before it is forgotten.
const ANNOUNCED_FOR: Duration = Duration::from_secs(600);

impl State {
    /// Notes when a row may be forgotten, if it is over.
    pub(super) fn schedule(&mut self, instance: u64, row: &Row) {
        let Some(expiry) = self.expiry(row).filter(|expiry| self.expiries.insert((*expiry, instance))) else { return };
        let bytes = tombstone_bytes(row);
        self.tombstone_bytes += bytes;
        if is_guest(row) {
            self.guest_expiries.insert((expiry, instance));
            self.guest_bytes += bytes;
        }
    }

    /// Takes back what [`State::schedule`] noted of the same row.
    pub(super) fn unschedule(&mut self, expiry: BootTime, instance: u64, row: &Row) {
        if !self.expiries.remove(&(expiry, instance)) {
            return;
        }
        let bytes = tombstone_bytes(row);
        self.tombstone_bytes -= bytes;
        if self.guest_expiries.remove(&(expiry, instance)) {
            self.guest_bytes -= bytes;
        }
    }

    /// When a row that is over may be forgotten, as far as the row tells.
    pub(super) fn expiry(&self, row: &Row) -> Option<BootTime> {
        let container = &row.container;
        let linger = self.config.linger();
        let add = |at: BootTime, time: Duration| BootTime(at.0.saturating_add(time.as_nanos() as u64));
        match (container.state.is_over(), container.task) {
            // While its last processes have not gone, its numbers are its own; ten times the linger bounds that.
            (true, Some(_)) if row.here.is_open() => container.exited_at.map(|at| add(at, linger * 10)),
            (true, Some(_)) => Some(add(row.here.closed.max(container.exited_at.unwrap_or_default()), linger)),
            (true, None) => Some(add(row.here.opened.max(container.exited_at.unwrap_or_default()), linger)),
            (false, None) => Some(add(row.here.opened, ANNOUNCED_FOR)),
            (false, Some(_)) => None,
        }
    }

    /// The next moment at which [`State::expire`] has something to do.
    pub(crate) fn next_expiry(&self) -> Option<BootTime> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// Forgets what has been over for long enough, and the oldest of that where it is too much. What is said inside
    /// containers, and by users, has an eighth of the room: it does not push out what is the host's.
    pub(crate) fn expire(&mut self, now: BootTime) {
        let room = self.config.tombstone_bytes;
        loop {
            let crowded_by_guests = self.guest_bytes > room / 8;
            let oldest = if crowded_by_guests { self.guest_expiries.first() } else { self.expiries.first() };
            let Some((at, instance)) = oldest.copied() else { return };
            let crowded = crowded_by_guests || self.tombstone_bytes > room;
            if at > now && !crowded {
                return;
            }
            let row = self.runs.get(&instance).and_then(|run| run.row.clone());
            let row = row.expect("what is scheduled is published, and taken back with its row");
            self.unschedule(at, instance, &row);
            if self.is_vouched_elsewhere(instance) && !crowded {
                continue;
            }
            self.counts.tombstones_evicted += u64::from(at > now);
            self.bury(instance);
        }
    }

    /// Whether a runtime still lists the container whose latest run this is.
    fn is_vouched_elsewhere(&self, instance: u64) -> bool {
        let run = &self.runs[&instance];
        let runtime = |set: SourceSet| {
            set.iter().any(|source| !matches!(source, Source::Kernel | Source::Barrier | Source::Proc))
        };
        run.keys.iter().any(|key| {
            self.latest(key) == Some(instance)
                && (runtime(run.statements.standing())
                    || self.claims.get(key).is_some_and(|claim| runtime(claim.statements.standing())))
        })
    }

    fn bury(&mut self, instance: u64) {
        self.count_missing_witnesses(instance);
        let run = self.forget(instance);
        for key in run.keys {
            if let Some(claim) = self.claims.get_mut(&key) {
                claim.runs.retain(|run| *run != instance);
                if claim.runs.is_empty() {
                    self.claims.remove(&key);
                }
            }
        }
    }

    fn count_missing_witnesses(&mut self, instance: u64) {
        let run = &self.runs[&instance];
        let Some(row) = run.row.as_ref().filter(|row| row.container.kind.is_vouched_for()) else { return };
        let container = &row.container;
        let mut missed = container.awaiting;
        if container.task.is_some() && !run.shown.seen_live && container.grade != Some(Grade::Observed) {
            missed.insert(Source::Kernel);
        }
        if run.shown.seen_live && !container.is_stated_by(Source::Barrier) && self.live.contains(Source::Barrier) {
            missed.insert(Source::Barrier);
        }
        missed.iter().for_each(|source| self.counts.missed_by[source as usize] += 1);
    }
}

/// Whether it is not the host's word that it is described by.
fn is_guest(row: &Row) -> bool {
    row.container.domain != Domain::Host
}

fn tombstone_bytes(row: &Row) -> usize {
    let maps = [&row.container.labels, &row.container.annotations];
    let of_maps = maps.iter().flat_map(|map| map.iter()).map(|(key, value)| key.len() + value.len() + 64);
    TOMBSTONE_BASE_BYTES + of_maps.sum::<usize>()
}
