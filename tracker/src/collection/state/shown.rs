//! What the kernel shows: births, execs, ends, and scans of what is alive.

use std::collections::HashSet;

use super::State;
use crate::collection::journal::Event;
use crate::container::TaskId;
use crate::fact::{Birth, End, Execution, Source};
use crate::time::BootTime;

impl State {
    pub(super) fn born(&mut self, source: Source, at: BootTime, birth: Birth, event: Event) -> Option<u64> {
        let known = birth.generation.and_then(|generation| self.by_generation.get(&generation).copied());
        if let Some(run) = known.filter(|run| self.has_other_init(*run, &birth)) {
            self.tell(run, source, at, event);
            return Some(run);
        }
        let of_task = self.by_task.get(&birth.task).copied();
        let made = birth.parent.and_then(|parent| self.by_creator.get(&parent).copied());
        let made = made.filter(|run| self.runs[run].task.is_none_or(|task| task == birth.task));
        let unproven = self.by_unproven_task.get(&birth.task).copied();
        let proven = unproven.filter(|run| {
            let run = &self.runs[run];
            run.keys.iter().all(|key| self.admits(key.domain, Some(&birth), run.creator))
        });
        let run = match known.or(of_task).or(made).or(proven) {
            Some(run) => run,
            None if !self.admits_unvouched(birth.uid) => {
                self.counts.unvouched_refused += 1;
                return None;
            }
            None => {
                let run = self.new_run(at);
                *self.unvouched_by_uid.entry(birth.uid).or_default() += 1;
                self.run(run).unvouched_uid = Some(birth.uid);
                run
            }
        };
        let seen_live = event != Event::Scanned && source == Source::Kernel && self.runs[&run].shown.birth.is_none();
        self.tell(run, source, at, event);
        let run = self.join(run, of_task);
        let run = self.join(run, made);
        let run = self.join(run, proven);
        self.show(run, birth);
        let shown = &mut self.run(run).shown;
        shown.seen_live |= seen_live;
        if birth.executed {
            shown.executed_at.get_or_insert(BootTime::ZERO);
        }
        Some(run)
    }

    pub(super) fn executed(&mut self, source: Source, at: BootTime, execution: Execution) {
        let event = Event::Executed { by_init: execution.by_init };
        if !execution.by_init {
            // What another process than init shows is not a picture of the container: where the birth was lost, and that
            // was counted, the audit brings the init.
            let known = execution.task.generation.and_then(|generation| self.by_generation.get(&generation).copied());
            known.into_iter().for_each(|run| self.tell(run, source, at, event.clone()));
            return;
        }
        let run = self.born(source, at, Birth { executed: true, ..execution.task }, event);
        if let Some(run) = run {
            let executed_at = &mut self.run(run).shown.executed_at;
            // The first one counts; one that a scan inferred has no time.
            *executed_at = match *executed_at {
                Some(first) if first != BootTime::ZERO => Some(first.min(at)),
                _ => Some(at),
            };
        }
    }

    pub(super) fn ended(&mut self, source: Source, at: BootTime, end: End) {
        let Some(run) = self.by_task.get(&end.task).copied() else {
            return;
        };
        let shown = &mut self.run(run).shown;
        // A scan may have missed it first, without knowing how it ended.
        shown.ended = match shown.ended {
            Some((missed_at, None)) => Some((missed_at.min(at), Some(end.exit))),
            Some(ended) => Some(ended),
            None => Some((at, Some(end.exit))),
        };
        self.tell(run, source, at, Event::Ended(end.exit));
    }

    /// Compares what is alive with what the state believes, and corrects the state.
    pub(super) fn scanned(&mut self, source: Source, at: BootTime, births: &[Birth], tasks: &HashSet<TaskId>) {
        let before: HashSet<u64> = self.runs.keys().copied().collect();
        let alive: HashSet<u64> =
            births.iter().filter_map(|birth| self.born(source, at, *birth, Event::Scanned)).collect();
        let first_scan = before.is_empty();
        if !first_scan && self.live.contains(Source::Kernel) {
            // Whoever was born after the scan was read is not new to the probes, only not yet told.
            self.counts.corrections += alive.difference(&before).count() as u64;
        }
        let gone: Vec<u64> = self
            .runs
            .values()
            .filter(|run| run.task.is_some_and(|task| task.started_by() < at && !tasks.contains(&task)))
            .filter(|run| run.shown.birth.is_none_or(|birth| birth.born_at < at))
            .map(|run| run.instance)
            .collect();
        for run in gone {
            if let Some(until) = self.unwatched_since(run) {
                let shown = &mut self.run(run).shown;
                shown.gone_at = Some(shown.gone_at.unwrap_or(until).min(until));
                shown.pid_reused_at = Some(shown.pid_reused_at.unwrap_or(until).min(until));
            }
            if self.runs[&run].shown.ended.is_none() {
                self.run(run).shown.ended = Some((at, None));
                self.counts.corrections += 1;
                self.tell(run, source, at, Event::Missing);
            }
            // Others of its mount namespace may live on; they were found under its generation.
            if !alive.contains(&run) && self.runs[&run].shown.gone_at.is_none() && self.is_open(run) {
                self.run(run).shown.gone_at = Some(at);
                self.tell(run, source, at, Event::Gone);
            }
        }
    }

    /// From when on nobody watched a container's numbers: it was told of while the probes were not there yet, or its birth
    /// was lost, and the kernel has never shown it. Its end was not seen either, and since then its numbers may have been
    /// others', whom nobody saw.
    fn unwatched_since(&self, run: u64) -> Option<BootTime> {
        let run = &self.runs[&run];
        if run.shown.birth.is_some() || run.shown.ended.is_some() {
            return None;
        }
        // What a runtime says may be old. Who was held was there.
        let held_at = run.statements.stated_at(Source::Barrier);
        let alive_at = run.task.map(TaskId::started_by).max(held_at)?;
        Some(BootTime(alive_at.0.saturating_add(1)))
    }

    /// Puts a picture of the kernel's into a run, and closes whoever had its numbers before.
    pub(super) fn show(&mut self, run: u64, birth: Birth) {
        if self.runs[&run].task.is_none() {
            self.set_task(run, birth.task);
        }
        if self.has_other_init(run, &birth) {
            return;
        }
        let shown = &mut self.run(run).shown;
        shown.show(birth);
        let born_at = shown.birth.map_or(birth.born_at, |birth| birth.born_at);
        if let Some(generation) = birth.generation {
            self.by_generation.insert(generation, run);
        }
        if let Some(parent) = birth.parent {
            let children = self.by_parent.entry(parent).or_insert_with(|| Vec::with_capacity(1));
            if !children.contains(&run) {
                children.push(run);
            }
        }
        self.succeed(run, birth.namespaces.mnt, born_at);
        self.enclose(run);
    }

    /// Whether the namespace was born on another process: who joined it, or lives on after its init, is not a picture of
    /// the container.
    fn has_other_init(&self, run: u64, birth: &Birth) -> bool {
        let shown = self.runs[&run].shown.birth;
        shown.is_some_and(|former| former.task != birth.task && former.born_at <= birth.born_at)
    }

    /// A mount namespace's number is on `run` since `born_at`: whoever had it before has gone by then.
    fn succeed(&mut self, run: u64, mntns: u32, born_at: BootTime) {
        let before =
            self.by_mntns.get(&mntns).copied().filter(|before| *before != run && self.runs.contains_key(before));
        let Some(other) = before else {
            self.by_mntns.insert(mntns, run);
            return;
        };
        let other_born_at = self.runs[&other].shown.birth.map_or(BootTime::ZERO, |birth| birth.born_at);
        let (old, close_at) = if other_born_at <= born_at { (other, born_at) } else { (run, other_born_at) };
        let gone_at = &mut self.run(old).shown.gone_at;
        *gone_at = Some(gone_at.map_or(close_at, |gone_at| gone_at.min(close_at)));
        // The heir in a timeline would close it, too; but one that is excluded is in none.
        self.touch(old);
        if old == other {
            self.by_mntns.insert(mntns, run);
        }
    }

    /// Whether there is room for one more that nobody vouches for: they share an eighth, a user has a quarter of that, and
    /// all users together leave a quarter to root. What a user makes is never the reason why root's is not seen.
    fn admits_unvouched(&self, uid: u32) -> bool {
        let share = self.config.max_containers / 8;
        let of = |wanted: &dyn Fn(u32) -> bool| -> usize {
            self.unvouched_by_uid.iter().filter(|(uid, _)| wanted(**uid)).map(|(_, count)| count).sum()
        };
        let has_room = of(&|_| true) < share;
        has_room && (uid == 0 || of(&|other| other == uid) < share / 4 && of(&|other| other != 0) < share / 4 * 3)
    }
}
