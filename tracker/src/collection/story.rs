//! A container's story, for people: who saw it when, whose word each field is, what is missing and why.

use std::sync::Arc;

use serde::Serialize;

use super::state::State;
use super::view::{ById, Lookup, Reader, Row};
use crate::container::{Container, Kind, Str};
use crate::fact::Source;
use crate::time::BootTime;

/// Whose story is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// An id or the beginning of one, or a name.
    Id(Str),
    /// This very run ([`Container::instance`]).
    Instance(u64),
    /// The holder of an init pid.
    Pid(u32),
    /// The holder of a mount namespace.
    Mntns(u32),
}

/// What `explain` tells.
#[derive(Clone, Debug)]
pub struct Story {
    /// The container as it is published.
    pub container: Arc<Container>,
    /// The rule of the configuration's filter by which it is not published.
    pub excluded: Option<Str>,
    /// What happened, in the order in which it happened.
    pub lines: Vec<StoryLine>,
    /// Lines from the middle of its life that were not kept.
    pub lines_left_out: u32,
    /// Whose word each known field is.
    pub provenance: Vec<(&'static str, Source)>,
    /// Fields that one would expect and that are not known, each with the reason.
    pub missing: Vec<(&'static str, Str)>,
}

/// One line of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoryLine {
    /// When it was so.
    pub at: BootTime,
    /// Who said so.
    pub source: Source,
    /// What, in words.
    pub text: String,
}

/// Tells the story of one instance.
pub(super) fn tell(state: &State, instance: u64) -> Option<Story> {
    let (container, mut provenance, run) = state.story(instance)?;
    let excluded = run.row.as_ref().and_then(|row| row.excluded.clone());
    let lines = run.journal.lines().iter();
    let lines = lines.map(|line| StoryLine { at: line.at, source: line.source, text: line.event.text() }).collect();
    provenance.dedup();
    // Why one source does not know what others told is of no interest. One that told a part of it may say what is missing.
    let told = |field: &str, by: Source| {
        let is_of = |of: &str| of.strip_prefix(field).is_some_and(|part| part.is_empty() || part.starts_with('.'));
        let mut tellers = provenance.iter().filter(|(of, _)| is_of(of)).map(|(_, teller)| *teller).peekable();
        tellers.peek().is_some() && tellers.all(|teller| teller != by)
    };
    let missing = state.missing(instance).into_iter().filter(|(by, field, _)| !told(field, *by));
    let mut missing: Vec<(&'static str, Str)> = missing.map(|(_, field, reason)| (field, reason)).collect();
    // A reason that somebody gave is better than ours.
    let unknown = unknown(&container).into_iter().filter(|(field, _)| missing.iter().all(|(of, _)| of != field));
    missing.extend(unknown.collect::<Vec<_>>());
    Some(Story { container, excluded, lines, lines_left_out: run.journal.left_out(), provenance, missing })
}

/// Which instance is meant: the latest where it is not one alone. What is excluded is found where nothing else is meant.
pub(super) fn find(reader: &mut Reader, who: &Who) -> Option<u64> {
    find_published(reader, who).or_else(|| find_excluded(reader, who))
}

fn find_excluded(reader: &mut Reader, who: &Who) -> Option<u64> {
    let is_meant = |row: &&Row| {
        let container = &row.container;
        match who {
            Who::Instance(instance) => container.instance == *instance,
            Who::Pid(pid) => container.pid() == Some(*pid) && row.init.is_open(),
            Who::Mntns(ns) => container.namespaces.mnt == *ns && row.here.is_open(),
            Who::Id(id) => container.id.starts_with(&**id) || container.name.as_ref() == Some(id),
        }
    };
    let mut meant = reader.excluded_rows().filter(is_meant).map(|row| &row.container);
    let first = meant.next()?;
    // The runs of one container; several containers are nobody.
    meant.try_fold(first, |former, next| (former.id == next.id).then_some(next)).map(|latest| latest.instance)
}

fn find_published(reader: &mut Reader, who: &Who) -> Option<u64> {
    let instance = |lookup: Lookup<'_>| lookup.container().map(|container| container.instance);
    match who {
        Who::Instance(instance) => Some(*instance),
        Who::Pid(pid) => instance(reader.by_pid(*pid)),
        Who::Mntns(ns) => instance(reader.by_mntns(*ns)),
        Who::Id(id) => {
            let by_id = match reader.by_id(id) {
                ById::Found(container) => Some(container.instance),
                ById::Ambiguous(_) | ById::Unknown => None,
            };
            by_id.or_else(|| reader.by_name(id).last().map(|container| container.instance))
        }
    }
}

/// What nobody said, and why that is so as far as the state can tell.
fn unknown(container: &Container) -> Vec<(&'static str, Str)> {
    let nobody: Str = match container.awaiting.iter().next() {
        // Two daemons may share a host; one that is not asked cannot be told from one that is slow.
        Some(source) => {
            let otherwise = "if it never does, the container is another daemon's, whose socket is not configured";
            format!("{source} has not said anything about it yet; {otherwise}").into()
        }
        None if container.kind.is_vouched_for() => "no source that reports on this host states it".into(),
        None => "nobody vouches for it: no runtime was seen to make it".into(),
    };
    let mut missing = Vec::new();
    let mut expect = |field, known: bool| {
        if !known {
            missing.push((field, Str::clone(&nobody)));
        }
    };
    // A sandbox has none.
    expect("name", container.name.is_some() || container.kind == Kind::Sandbox);
    expect("image", container.image.is_some());
    expect("bundle", container.bundle.is_some());
    expect("cgroup", container.cgroup.id.is_some() || container.cgroup.v1_path.is_some());
    if container.task.is_none() {
        missing.push(("pid", "it has no process yet, or never had one that was seen".into()));
    }
    missing
}
