//! Selections: live sets of containers as BPF maps, so that a tracer filters in the kernel.
//!
//! A selection holds the numbers of exactly those containers that its selector picks and that are there: from their
//! creation, and so before the first instruction of one whose start is held, until their first process has ended. A
//! paused container is there. One with a selector on `state` is taken in when it comes into that state. What the
//! configuration's filter leaves out is in none.
//!
//! ```text
//!  publication ─▶ view ─▶ which of the changed numbers mean a picked container now? ─▶ maps ─▶ hooks, held starts
//! ```
//!
//! The collection's writer keeps it up, in its publish step: whose a number is, is what the view says then, and so a
//! number that is reused within one publication is right as well. It makes at most one `bpf()` call for each of a
//! container's two numbers, and none where nothing changes. It never waits: a [`Selection`] that was dropped is gone from
//! its list at its next publication.
//!
//! | map | key | value |
//! |---|---|---|
//! | `mntns` | inode number of a mount ns, `u32` | the namespace's never-reused number, `u64`; 0 where the kernel has none |
//! | `cgroups` | id of a cgroup of the v2 hierarchy, `u64` | the same, of one of the picked containers in that cgroup |
//!
//! Both are `BPF_MAP_TYPE_HASH`, sized to the plane. When one is full, what finds no room is counted, told once in the
//! log and shown ([`Figures::missing`]), and put in as soon as there is room. Containers that nobody vouches for have an
//! eighth of it. Maps that are no longer kept up are emptied: numbers have new holders soon.

mod keys;
mod maps;
pub(crate) mod pins;

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use aya::maps::MapError;
use aya::pin::PinError;

pub use self::maps::SelectionMaps;

use self::keys::{Keys, Member};
use self::maps::BpfTable;
use crate::collection::RowChange;
use crate::collection::door::Ended;
use crate::collection::view::{Row, View};
use crate::container::{Container, Str};
use crate::plane::pins::PinsError;
use crate::selector::Selector;

/// Why there is no selection.
#[derive(Debug, thiserror::Error)]
pub enum SelectionError {
    /// A map could not be made or opened.
    #[error("{what} a BPF map for a selection")]
    Map {
        /// What was tried.
        what: &'static str,
        /// What came back.
        source: Box<MapError>,
    },
    /// A map that was given is of another shape.
    #[error("the map for {what} is no hash with keys of {key_len} and values of 8 bytes")]
    Shape {
        /// What it was to hold.
        what: &'static str,
        /// Bytes of its keys.
        key_len: usize,
    },
    /// A map could not be pinned.
    #[error("pin a BPF map at `{}`", path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// What came back.
        source: Box<PinError>,
    },
    /// A directory could not be made.
    #[error("make the directory `{}`", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What came back.
        source: std::io::Error,
    },
    /// The configuration says that nothing is to be pinned.
    #[error("pin a selection: the configuration's `plane.pins` names no directory")]
    Unwanted,
    /// The directory of pins cannot be used.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The collection has ended.
    #[error(transparent)]
    Ended(#[from] Ended),
}

impl SelectionError {
    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            SelectionError::Map { .. } => "run as root, or with CAP_BPF",
            SelectionError::Shape { .. } => {
                "give it maps of BPF_MAP_TYPE_HASH: u32 to u64 for mount ns, u64 to u64 for cgroups"
            }
            SelectionError::Pin { .. } | SelectionError::Directory { .. } => {
                "name a directory in a BPF file system that root may write to: `mount -t bpf bpf /sys/fs/bpf`"
            }
            SelectionError::Unwanted => "name a directory in a BPF file system there",
            SelectionError::Pins(error) => error.remedy(),
            SelectionError::Ended(_) => "start the tracker again",
        }
    }
}

/// How a selection is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Containers that are picked and there.
    pub containers: u64,
    /// Keys in the map of mount namespaces.
    pub mount_namespaces: u64,
    /// Keys in the map of cgroups.
    pub cgroups: u64,
    /// Numbers that should be in a map and are not, for want of room.
    pub missing: u64,
    /// How often the set of containers has changed.
    pub changes: u64,
}

/// A live set of containers. When it is dropped its maps are emptied and no longer kept up.
#[derive(Debug)]
pub struct Selection {
    shared: Arc<Shared>,
    maps: SelectionMaps,
}

impl Selection {
    /// A selection that nobody keeps up yet, and the writer's end of it. What is in `maps` already is kept where it is
    /// right, and removed where it is not.
    pub(crate) fn new(
        name: &str,
        selector: Selector,
        maps: SelectionMaps,
    ) -> Result<(Selection, Upkept), SelectionError> {
        let (mntns, cgroups) = maps.tables()?;
        let shared = Arc::new(Shared {
            name: name.into(),
            selector,
            figures: AtomicFigures::default(),
            upkeep: Mutex::new(Some(Upkeep { mntns, cgroups, containers: HashSet::new(), was_full: false })),
        });
        Ok((Selection { shared: Arc::clone(&shared), maps }, Upkept(shared)))
    }

    /// Its name, in logs and lists.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Which containers it holds.
    pub fn selector(&self) -> &Selector {
        &self.shared.selector
    }

    /// How it is doing.
    pub fn figures(&self) -> Figures {
        self.shared.figures.read()
    }

    /// The map of mount namespaces, for a program that is loaded by this process.
    pub fn mount_namespaces(&self) -> Option<BorrowedFd<'_>> {
        self.maps.mount_namespaces()
    }

    /// The map of cgroups.
    pub fn cgroups(&self) -> Option<BorrowedFd<'_>> {
        self.maps.cgroups()
    }

    /// Pins its maps as `mntns` and `cgroups` in `directory`, which is made if it is missing and has to lie in a BPF file
    /// system. The pins are the caller's to remove.
    pub fn pin(&self, directory: &Path) -> Result<(), SelectionError> {
        self.maps.pin(directory)
    }

    /// Leaves its maps as they are, for the next tracker to adopt.
    pub(crate) fn leave(&self) {
        self.shared.lock().take();
    }
}

impl Drop for Selection {
    fn drop(&mut self) {
        if let Some(mut upkeep) = self.shared.lock().take() {
            upkeep.clear();
        }
    }
}

/// What a [`Selection`] and the writer share.
#[derive(Debug)]
struct Shared {
    name: Str,
    selector: Selector,
    figures: AtomicFigures,
    // Protects the maps' content, and is locked by the writer for the time of its own `bpf()` calls. Whoever else locks it
    // is about to end the selection, so that the writer never waits: what it finds locked or empty is over.
    upkeep: Mutex<Option<Upkeep>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Upkeep>> {
        self.upkeep.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer's end of one selection.
#[derive(Debug)]
pub(crate) struct Upkept(Arc<Shared>);

/// What is in the maps.
#[derive(Debug)]
struct Upkeep {
    mntns: Keys<u32, Option<BpfTable<u32>>>,
    cgroups: Keys<u64, Option<BpfTable<u64>>>,
    /// By their instance.
    containers: HashSet<u64>,
    was_full: bool,
}

/// All selections, as the writer has them.
#[derive(Debug, Default)]
pub(crate) struct Selections {
    list: Vec<Upkept>,
}

impl Selections {
    /// Takes one more, and brings its maps to what is published now.
    pub(crate) fn add(&mut self, upkept: Upkept, view: &View) {
        if upkept.with(|shared, upkeep| upkeep.fill(shared, view)) {
            self.list.push(upkept);
        }
    }

    /// Brings all to what `view` says, which has these `changes` in it, and forgets those that are over.
    pub(crate) fn publish(&mut self, view: &View, changes: &[RowChange]) {
        self.list.retain(|upkept| upkept.with(|shared, upkeep| upkeep.follow(shared, view, changes)));
    }
}

impl Selections {
    /// How each is doing, by its name.
    pub(crate) fn figures(&self) -> Vec<(Str, Figures)> {
        self.list.iter().map(|Upkept(shared)| (shared.name.clone(), shared.figures.read())).collect()
    }
}

impl Drop for Selections {
    /// Nobody will keep them up.
    fn drop(&mut self) {
        for upkept in &self.list {
            upkept.with(|_, upkeep| upkeep.clear());
        }
    }
}

impl Upkept {
    /// Whether it is not over; does not wait.
    fn with(&self, act: impl FnOnce(&Shared, &mut Upkeep)) -> bool {
        let mut upkeep = match self.0.upkeep.try_lock() {
            Ok(upkeep) => upkeep,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let Some(upkeep) = upkeep.as_mut() else { return false };
        act(&self.0, upkeep);
        true
    }
}

impl Upkeep {
    fn fill(&mut self, shared: &Shared, view: &View) {
        // What was in the maps before, and who is there now.
        for ns in self.mntns.keys() {
            self.look_at_mntns(shared, view, ns);
        }
        for id in self.cgroups.keys() {
            self.look_at_cgroup(shared, view, id);
        }
        for container in view.all().filter(|container| is_picked(shared, container)) {
            self.look_at_numbers(shared, view, container);
            self.containers.insert(container.instance);
        }
        self.tell(shared, 0);
    }

    fn follow(&mut self, shared: &Shared, view: &View, changes: &[RowChange]) {
        let mut changed = 0;
        for change in changes {
            let before = change.before.as_ref().map(|row| &row.container);
            let after = change.after.as_ref().map(|row| &row.container);
            // Also of those that are not picked: they may have taken the number of one that was.
            for container in before.into_iter().chain(after) {
                self.look_at_numbers(shared, view, container);
            }
            let Some(instance) = after.or(before).map(|container| container.instance) else { continue };
            let picked = change.after.as_ref().and_then(Row::published).is_some_and(|it| is_picked(shared, it));
            changed += u64::from(match picked {
                true => self.containers.insert(instance),
                false => self.containers.remove(&instance),
            });
        }
        self.mntns.repair();
        self.cgroups.repair();
        self.tell(shared, changed);
    }

    fn look_at_numbers(&mut self, shared: &Shared, view: &View, container: &Container) {
        self.look_at_mntns(shared, view, container.namespaces.mnt);
        if let Some(id) = container.cgroup.id {
            self.look_at_cgroup(shared, view, id);
        }
    }

    fn look_at_mntns(&mut self, shared: &Shared, view: &View, ns: u32) {
        let holder = view.holder_of_mntns(ns).filter(|holder| is_picked(shared, holder));
        self.mntns.set(ns, holder.map(|holder| Member::from(&**holder)));
    }

    fn look_at_cgroup(&mut self, shared: &Shared, view: &View, id: u64) {
        let first = view.holders_of_cgroup(id).find(|holder| is_picked(shared, holder));
        self.cgroups.set(id, first.map(Member::from));
    }

    fn clear(&mut self) {
        self.mntns.clear();
        self.cgroups.clear();
        self.containers.clear();
    }

    fn tell(&mut self, shared: &Shared, changed: u64) {
        let missing = self.mntns.missing() + self.cgroups.missing();
        let AtomicFigures { containers, mount_namespaces, cgroups, missing: told, changes } = &shared.figures;
        containers.store(self.containers.len() as u64, Ordering::Relaxed);
        mount_namespaces.store(self.mntns.len() as u64, Ordering::Relaxed);
        cgroups.store(self.cgroups.len() as u64, Ordering::Relaxed);
        told.store(missing as u64, Ordering::Relaxed);
        changes.fetch_add(changed, Ordering::Release);
        let is_full = missing > 0;
        if is_full && !self.was_full {
            tracing::warn!(
                selection = &*shared.name,
                missing,
                "a selection is full: some of its containers are not in it"
            );
        } else if !is_full && self.was_full {
            tracing::info!(selection = &*shared.name, "all of a selection's containers are in it again");
        }
        self.was_full = is_full;
    }
}

/// Whether a container belongs into a selection now.
fn is_picked(shared: &Shared, container: &Container) -> bool {
    !container.state.is_over() && shared.selector.matches(container)
}

impl From<&Container> for Member {
    fn from(container: &Container) -> Self {
        Member { generation: container.generation.unwrap_or(0), is_vouched: container.kind.is_vouched_for() }
    }
}

#[derive(Debug, Default)]
struct AtomicFigures {
    containers: AtomicU64,
    mount_namespaces: AtomicU64,
    cgroups: AtomicU64,
    missing: AtomicU64,
    changes: AtomicU64,
}

impl AtomicFigures {
    fn read(&self) -> Figures {
        // First what is written last.
        let changes = self.changes.load(Ordering::Acquire);
        Figures {
            containers: self.containers.load(Ordering::Relaxed),
            mount_namespaces: self.mount_namespaces.load(Ordering::Relaxed),
            cgroups: self.cgroups.load(Ordering::Relaxed),
            missing: self.missing.load(Ordering::Relaxed),
            changes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collection::feed::FeedOptions;
    use crate::collection::view::Host;
    use crate::container::{Exit, Namespaces, TaskId};
    use crate::fact::{Birth, End, Fact, Source, What};
    use crate::time::BootTime;
    use crate::tracker::Handle;

    fn birth(pid: u32, mnt: u32) -> Birth {
        Birth {
            task: TaskId { pid, start_ticks: 1 },
            parent: None,
            outer: None,
            namespaces: Namespaces { mnt, ..Namespaces::default() },
            generation: Some(pid.into()),
            cgroup_id: Some(9),
            uid: 0,
            born_at: BootTime::now(),
            executed: true,
        }
    }

    /// Without maps, which need privileges: what would be in them is counted all the same.
    #[test]
    fn who_is_there_is_counted_from_the_beginning_and_until_the_end() {
        let tracker = Handle::without_sources(Host::default());
        let tell = |what| {
            let fact = Fact { source: Source::Kernel, at: BootTime::now(), what };
            tracker.facts().state_blocking(vec![fact]).unwrap();
            drop(tracker.subscribe_blocking(FeedOptions::new("published")).unwrap());
        };
        let select = |selector: &str| {
            let maps = SelectionMaps::from_fds(None, None).unwrap();
            tracker.selection_in_blocking("test", selector.parse().unwrap(), maps).unwrap()
        };
        tell(What::Born(birth(7, 700)));
        let (all, none) = (select(""), select("name=nobody"));
        let read = |selection: &Selection| {
            let Figures { containers, mount_namespaces, cgroups, missing, changes } = selection.figures();
            (containers, mount_namespaces, cgroups, missing, changes)
        };
        assert_eq!((read(&all), read(&none)), ((1, 1, 1, 0, 0), (0, 0, 0, 0, 0)));
        tell(What::Born(birth(8, 800)));
        assert_eq!(read(&all), (2, 2, 1, 0, 1), "both are in one cgroup");
        let end = |pid: u32, mntns| {
            let (task, generation) = (birth(pid, mntns).task, Some(pid.into()));
            What::Ended(End { task, mntns, generation, exit: Exit::default() })
        };
        tell(end(7, 700));
        assert_eq!(read(&all), (1, 1, 1, 0, 2), "the cgroup is the other's, too");
        // The number has a new holder before the end of the former one is told.
        tell(What::Born(birth(9, 800)));
        tell(end(8, 800));
        assert_eq!((read(&all).0, read(&all).1), (1, 1));
        tell(end(9, 800));
        assert_eq!((read(&all).0, read(&all).1, read(&all).2), (0, 0, 0));
        assert_eq!(read(&none), (0, 0, 0, 0, 0));
    }
}
