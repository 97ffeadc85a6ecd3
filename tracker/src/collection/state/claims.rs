//! What sources state: which run a claim is about, and what is withdrawn.

use std::collections::HashSet;
use std::sync::Arc;

use super::State;
use crate::collection::journal::Event;
use crate::collection::news::News;
use crate::collection::run::{Run, Statements};
use crate::container::{ContainerKey, Domain, TaskId};
use crate::fact::{Source, Statement};
use crate::time::BootTime;

impl State {
    pub(super) fn stated(&mut self, source: Source, at: BootTime, key: ContainerKey, statement: Arc<Statement>) {
        let mut former = self.claims.get(&key).and_then(|claim| claim.statements.shared(source));
        let told = Arc::clone(&statement);
        let run = match (statement.task, statement.creator) {
            (None, None) => {
                self.hand_down(source, &key, &statement);
                let claim = self.claims.entry(key.clone()).or_default();
                claim.statements.put(source, at, statement);
                let runs = claim.runs.clone();
                runs.iter().for_each(|run| self.touch(*run));
                match self.latest(&key) {
                    Some(run) => run,
                    None => self.new_claimed_run(&key, at),
                }
            }
            (task, creator) => {
                let run = self.claimed_run(&key, at, task, creator);
                former = self.runs[&run].statements.shared(source).or(former);
                if self.run(run).statements.put(source, at, Arc::clone(&statement)) {
                    self.touch(run);
                }
                run
            }
        };
        // A restart's story begins anew, whatever its source said in the one before.
        let former = former.filter(|_| self.runs[&run].journal.tells_of(source));
        let news = News::of(&told, former.as_deref());
        if !news.is_empty() {
            self.tell(run, source, at, Event::Stated(news));
        }
    }

    /// A container was made anew under the id of one that had been deleted: what was said of that one stays with its runs.
    fn hand_down(&mut self, source: Source, key: &ContainerKey, anew: &Statement) {
        let Some(claim) = self.claims.get(key) else { return };
        let Some((at, former)) = claim.statements.replaced_by(source, anew) else { return };
        for run in claim.runs.clone() {
            let run = self.run(run);
            let maker = run.task.or(run.creator);
            if maker.is_some_and(|maker| maker.started_by() <= at) && !run.statements.all().contains(source) {
                run.statements.put(source, at, Arc::clone(&former));
                run.statements.withdraw(source, at);
            }
        }
    }

    /// The run of `key` with this init process or maker; joins what turns out to be the same, makes one where none is.
    fn claimed_run(&mut self, key: &ContainerKey, at: BootTime, task: Option<TaskId>, creator: Option<TaskId>) -> u64 {
        let own = |state: &Self, wanted: &dyn Fn(&Run) -> bool| {
            state.claims.get(key)?.runs.iter().copied().find(|run| wanted(&state.runs[run]))
        };
        let with_task = task.and_then(|task| self.by_task.get(&task).copied());
        let with_task = with_task.filter(|run| {
            let admitted = self.admits(key.domain, self.runs[run].shown.birth.as_ref(), creator);
            self.counts.foreign_claims += u64::from(!admitted);
            admitted
        });
        let with_creator = creator.and_then(|creator| self.by_creator.get(&creator).copied());
        let with_creator = with_creator.map(|run| match (task, self.runs[&run].task) {
            (Some(task), Some(guess)) if task != guess => self.take_back(run, key, at),
            _ => run,
        });
        // Who is named need not be guessed.
        let child = creator.filter(|_| task.is_none()).and_then(|creator| {
            let unclaimed = |run: &u64| {
                let run = &self.runs[run];
                self.admits(key.domain, run.shown.birth.as_ref(), Some(creator)) && run.creator.is_none()
            };
            self.by_parent.get(&creator)?.iter().copied().find(unclaimed)
        });
        // A container that was only announced has come to life.
        let announced =
            own(self, &|run: &Run| run.task.is_none() && run.creator.is_none() && run.unproven_task.is_none());
        let waiting = || {
            task?;
            own(self, &|run: &Run| {
                run.task.is_none() && run.aborted.is_none() && run.creator.is_none_or(|made| Some(made) == creator)
            })
        };
        let found = with_task.or(with_creator).or(child).or_else(waiting).or(announced);
        let mut run = match found {
            Some(run) => run,
            None => self.new_run(at),
        };
        for same in [with_task, with_creator, child, announced] {
            run = self.join(run, same);
        }
        if let (Some(task), None) = (task, self.runs[&run].task) {
            match key.domain {
                Domain::Host => self.set_task(run, task),
                _ => {
                    self.run(run).unproven_task = Some(task);
                    self.by_unproven_task.entry(task).or_insert(run);
                }
            }
        }
        if let (Some(creator), None) = (creator, self.runs[&run].creator) {
            self.run(run).creator = Some(creator);
            self.by_creator.insert(creator, run);
        }
        self.add_claim(run, key);
        run
    }

    /// A child of the container's maker was taken for its init, and now another process is named: takes the claim and
    /// what was said by it off that run. Returns a run of its own for them.
    fn take_back(&mut self, guess: u64, key: &ContainerKey, at: BootTime) -> u64 {
        let claimed = self.new_run(at);
        let helper = self.run(guess);
        helper.keys.retain(|of| of != key);
        let named = helper.task;
        let statements = helper.statements.extract(|said| said.task.is_none() || said.task != named);
        let (creator, grade) = (helper.creator.take(), helper.grade.take());
        let start_announced = std::mem::take(&mut helper.start_announced);
        let uid = helper.shown.birth.filter(|_| helper.keys.is_empty()).map(|birth| birth.uid);
        helper.unvouched_uid = uid;
        uid.into_iter().for_each(|uid| *self.unvouched_by_uid.entry(uid).or_default() += 1);
        if let Some(claim) = self.claims.get_mut(key) {
            claim.runs.retain(|run| *run != guess);
        }
        let run = self.run(claimed);
        (run.statements, run.creator, run.grade, run.start_announced) = (statements, creator, grade, start_announced);
        creator.into_iter().for_each(|creator| _ = self.by_creator.insert(creator, claimed));
        let note = Event::Noted("taken for a container whose maker had made it; the container is another".into());
        self.tell(guess, Source::Kernel, at, note);
        self.add_claim(claimed, key);
        claimed
    }

    pub(super) fn withdrawn(&mut self, source: Source, at: BootTime, key: &ContainerKey) {
        let Some(claim) = self.claims.get_mut(key) else { return };
        let of_container = claim.statements.withdraw(source, at);
        for run in claim.runs.clone() {
            // What was stated since is newer than a list that was asked for before.
            if self.run(run).statements.withdraw(source, at) || of_container {
                self.tell(run, source, at, Event::Withdrawn);
            }
        }
    }

    pub(super) fn listed(&mut self, source: Source, at: BootTime, scope: &str, keys: &HashSet<ContainerKey>) {
        let missing: Vec<ContainerKey> = self
            .claims
            .iter()
            // Only the host's sources list: the same scope inside a container is another one.
            .filter(|(key, _)| key.domain == Domain::Host && &*key.scope == scope && !keys.contains(*key))
            .filter(|(_, claim)| {
                let stands = |statements: &Statements| statements.standing().contains(source);
                stands(&claim.statements) || claim.runs.iter().any(|run| stands(&self.runs[run].statements))
            })
            .map(|(key, _)| key.clone())
            .collect();
        missing.iter().for_each(|key| self.withdrawn(source, at, key));
    }

    pub(super) fn set_live(&mut self, source: Source, live: bool) {
        if live == self.live.contains(source) {
            return;
        }
        match live {
            true => self.live.insert(source),
            false => self.live.remove(source),
        }
        let all: Vec<u64> = self.runs.keys().copied().collect();
        all.into_iter().for_each(|run| self.touch(run));
    }
}
