//! Which container another one was started in: by the mount namespace of the process that made it.
//!
//! Facts come in any order, so that the inner one may be shown before the one around it. And who is around may not be a
//! container: a service with private mounts, for example. Such a run is looked through: what counts is the nearest that a
//! runtime vouches for.

use super::State;
use crate::collection::run::Run;
use crate::collection::view::Row;
use crate::container::{Domain, Parent, TaskId};
use crate::fact::Birth;
use crate::time::BootTime;

/// How many runs may lie around one another.
const MAX_DEPTH: usize = 16;

impl State {
    /// Whether a source that speaks for `domain` may say what the kernel shows; `creator` is who it says made the container.
    pub(super) fn admits(&self, domain: Domain, birth: Option<&Birth>, creator: Option<TaskId>) -> bool {
        match domain {
            Domain::Host => true,
            Domain::User(uid) => birth.is_some_and(|birth| birth.uid == uid),
            // What a process inside the container made is inside it, too; a number that such a process names proves nothing.
            Domain::Container(init) => birth.is_some_and(|birth| {
                let is_made_by_creator = creator.is_some() && birth.parent == creator;
                is_made_by_creator || self.is_inside(birth, init)
            }),
        }
    }

    /// Whether what was born was made by a process inside the container with this init, or inside one that is in there.
    fn is_inside(&self, birth: &Birth, init: TaskId) -> bool {
        let around = self.around(birth).and_then(|outer| self.runs.get(&outer));
        self.outwards(around.map(|run| &**run)).any(|run| run.task == Some(init))
    }

    /// A run and those around it, from the inside to the outside.
    fn outwards<'a>(&'a self, innermost: Option<&'a Run>) -> impl Iterator<Item = &'a Run> {
        let around = |run: &&'a Run| self.runs.get(&run.outer?).map(|run| &**run);
        std::iter::successors(innermost, around).take(MAX_DEPTH)
    }

    /// Who had the maker's mount namespace when this was born.
    fn around(&self, birth: &Birth) -> Option<u64> {
        let mntns = birth.outer.filter(|outer| *outer != birth.namespaces.mnt && *outer != self.host.namespaces.mnt)?;
        let holder = *self.by_mntns.get(&mntns)?;
        let holder_born_at = self.runs.get(&holder)?.shown.birth.map_or(BootTime::ZERO, |birth| birth.born_at);
        (holder_born_at <= birth.born_at).then_some(holder)
    }

    /// The container that a run was started in, as it is to be published.
    pub(super) fn parent_of(&self, run: &Run) -> Option<Parent> {
        let outer = self.runs.get(&run.outer?).map(|run| &**run);
        if outer.is_none() {
            // It was forgotten before what it had inside.
            return run.row.as_ref()?.container.parent.clone();
        }
        let vouched_for = self.outwards(outer).find(|run| !run.keys.is_empty())?;
        Some(Parent { id: vouched_for.keys.first()?.id.shared(), instance: vouched_for.instance })
    }

    /// Finds out who is around a run that has just been shown, and for whom it is the one around.
    pub(super) fn enclose(&mut self, run: u64) {
        let Some(birth) = self.runs[&run].shown.birth else { return };
        if let Some(outer) = birth.outer {
            let inner = self.by_outer.entry(outer).or_insert_with(|| Vec::with_capacity(1));
            if !inner.contains(&run) {
                inner.push(run);
            }
        }
        let shown_before = self.by_outer.get(&birth.namespaces.mnt).cloned().unwrap_or_default();
        for inner in shown_before.into_iter().chain([run]) {
            let Some(birth) = self.runs.get(&inner).filter(|run| run.outer.is_none()).and_then(|run| run.shown.birth)
            else {
                continue;
            };
            if let Some(outer) = self.around(&birth).filter(|outer| *outer != inner) {
                self.run(inner).outer = Some(outer);
                self.touch(inner);
                self.prove(inner, &birth);
            }
        }
    }

    /// What a runtime in there said about a process, before it was known that this process is in there, too, is about it.
    fn prove(&mut self, run: u64, birth: &Birth) {
        let said = self.by_unproven_task.get(&birth.task).copied().filter(|said| *said != run);
        let admitted = said.filter(|said| {
            let said = &self.runs[said];
            said.keys.iter().all(|key| self.admits(key.domain, Some(birth), said.creator))
        });
        self.join(run, admitted);
    }

    /// A run is being forgotten: it is in nobody any more.
    pub(super) fn leave_outer(&mut self, run: u64, birth: &Birth) {
        let Some(outer) = birth.outer else { return };
        if let Some(inner) = self.by_outer.get_mut(&outer) {
            inner.retain(|inner| *inner != run);
            if inner.is_empty() {
                self.by_outer.remove(&outer);
            }
        }
    }

    /// A run turned out to be another one: what is in it is in that one.
    pub(super) fn inherit_inner(&mut self, run: u64, heir: u64, birth: Option<&Birth>) {
        let inner = birth.and_then(|birth| self.by_outer.get(&birth.namespaces.mnt)).cloned().unwrap_or_default();
        for inner in inner.into_iter().filter(|inner| *inner != heir) {
            if self.runs.get(&inner).is_some_and(|inner| inner.outer == Some(run)) {
                self.run(inner).outer = Some(heir);
                self.touch(inner);
            }
        }
    }

    /// A run is published under another name, or in another container, than before: so is what is in it.
    pub(super) fn touch_inner(&mut self, run: u64, before: Option<&Row>, after: &Row) {
        let name = |row: &Row| (row.container.id.clone(), row.container.kind, row.container.parent.clone());
        if before.map(name) == Some(name(after)) {
            return;
        }
        let inner = self.by_outer.get(&after.container.namespaces.mnt).cloned().unwrap_or_default();
        for inner in inner {
            if self.runs.get(&inner).is_some_and(|inner| inner.outer == Some(run)) {
                self.touch(inner);
            }
        }
    }
}
