//! The plane: what other programs look up in, without asking us and even while we restart.
//!
//! Written by the collection's writer in its publish step, before anybody is told: who asks the plane about a container
//! whose start was held finds it. A plane that cannot be had is said and missed; everything else works without.
//!
//! ```text
//!  changes ─▶ Rows: who has which row ─▶ Table: what is stored where, in which order ─▶ the file, mapped by readers
//!                 └── the same row numbers ─▶ pinned maps, for BPF programs
//! ```
//!
//! The layout is `tracker_common::plane`; `docs/plane.md` tells it to those who write a reader.

use std::mem::offset_of;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tracker_common::plane::{Geometry, HEARTBEAT_NS, Header, Row, WORD_LEN};

use crate::collection::RowChange;
use crate::collection::view::{self, Host};
use crate::container::TaskId;
use crate::source::task::Task;
use crate::sys;
use crate::time::BootTime;

pub mod config;

pub mod pins;

pub mod cleanup;

mod file;
mod image;
mod mirror;
mod rows;
mod table;

#[cfg(test)]
#[path = "tests/readers.rs"]
mod readers;
pub mod selection;

pub use config::Config;
pub use file::FileError;

use file::{Mapping, PlaneFile};
use mirror::Mirror;
use pins::{Pinning, Pins};
use rows::Rows;
use table::{HostNumbers, Table};

/// A file that was lost is looked for again after so many heartbeats.
const RETRY_BEATS: u32 = 10;

/// What the plane counts; read by metrics.
#[derive(Debug, Default)]
pub struct Stats {
    /// Whether there is a file, and it is ours.
    pub is_written: AtomicBool,
    /// Raised by each owner of the file.
    pub epoch: AtomicU64,
    /// Rows there are.
    pub capacity: AtomicU64,
    /// Rows in use.
    pub rows: AtomicU64,
    /// Containers that wait for room.
    pub waiting: AtomicU64,
    /// Containers that found no room, ever.
    pub refused: AtomicU64,
    /// Tombstones that made room before their time.
    pub evicted: AtomicU64,
    /// Rows whose texts were cut, ever.
    pub truncated: AtomicU64,
    /// Rows of an earlier owner that were taken over.
    pub adopted: AtomicU64,
    /// Changes that were written, and how long that took altogether, in nanoseconds: rows, indexes, pinned maps and the
    /// wake-up of who waits.
    pub changes: AtomicU64,
    /// See `changes`.
    pub write_ns: AtomicU64,
    /// Whether maps are pinned for BPF programs.
    pub is_pinned: AtomicBool,
    /// The pinned maps'.
    pub pins: Arc<pins::Stats>,
}

/// See the module.
pub(crate) struct Plane {
    config: Config,
    host: HostNumbers,
    linger: Duration,
    rows: Rows<Memory>,
    file: Option<PlaneFile>,
    mirror: Option<Mirror>,
    /// When the last owner of the file was seen last.
    last_seen: u64,
    /// Whether all that lives has been published once.
    has_scanned: bool,
    next_beat: u64,
    beats_to_retry: u32,
    /// Whether it was said why there is no file.
    said_why: bool,
    /// Whether it was said that there is no room.
    said_full: bool,
    stats: Arc<Stats>,
}

/// What the table is in: the file, or memory of our own that keeps the row numbers while there is none.
enum Memory {
    Shared(Arc<Mapping>),
    Private(Box<[AtomicU64]>),
}

impl Deref for Memory {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        match self {
            Memory::Shared(mapping) => mapping,
            Memory::Private(words) => words,
        }
    }
}

impl Plane {
    /// Opens the plane, or keeps its place where it cannot be had. For the collection's writer alone.
    ///
    /// `max_namespaces` is how many the probes can know.
    pub(crate) fn open(config: &Config, host: Host, linger: Duration, max_namespaces: u32, stats: Arc<Stats>) -> Plane {
        let host = HostNumbers { mntns: host.namespaces.mnt, netns: host.namespaces.net, cgroup: host.cgroup_id };
        let geometry = Geometry::of(config.rows());
        stats.capacity.store(geometry.capacity as u64, Ordering::Relaxed);
        let mut plane = Plane {
            config: config.clone(),
            host,
            linger,
            rows: Rows::new(private_table(geometry, host), geometry, nanos(linger)),
            file: None,
            mirror: open_pins(config, max_namespaces, &stats).map(|pins| Mirror::new(pins, host.cgroup)),
            last_seen: 0,
            has_scanned: false,
            next_beat: 0,
            beats_to_retry: 0,
            said_why: false,
            said_full: false,
            stats,
        };
        let is_attached = plane.attach();
        let is_adopted = is_attached && plane.file.as_ref().is_some_and(|file| file.is_adopted);
        if let Some(mirror) = plane.mirror.as_mut().filter(|mirror| mirror.is_inherited() && !is_adopted) {
            mirror.begin_anew();
        }
        // There is nothing yet that a new file could want.
        let _ = plane.beat();
        plane
    }

    /// Makes the file the memory of the table. Whether there is one; what was in the table is then gone from it.
    fn attach(&mut self) -> bool {
        let now = BootTime::now().0;
        let mut file = match PlaneFile::open(&self.config, now) {
            Ok(file) => file,
            Err(error) => return self.do_without(&error),
        };
        let geometry = Geometry::of(self.config.rows());
        let memory = Memory::Shared(Arc::clone(&file.memory));
        let rows = if file.is_adopted {
            self.adopt(memory, geometry, now)
        } else {
            let table = Table::create(memory, geometry.capacity, file.boot_id, self.host);
            Rows::new(table, geometry, nanos(self.linger))
        };
        let table = rows.table();
        let epoch = table.get32(offset_of!(Header, epoch)).wrapping_add(1);
        let owner = std::process::id();
        let start = Task::open(owner).and_then(|task| task.id()).map_or(0, |task| task.start_ticks);
        table.set32(offset_of!(Header, owner_pid), owner);
        table.set64(offset_of!(Header, owner_start), start);
        table.set64(offset_of!(Header, heartbeat), now);
        table.set64(offset_of!(Header, sequence), 0);
        table.set32(offset_of!(Header, flags), if rows.is_adopting() { Header::ADOPTING } else { 0 });
        table.set32(offset_of!(Header, epoch), epoch);
        if let Err(error) = file.put_in_place() {
            return self.do_without(&error);
        }
        self.said_why = false;
        self.stats.epoch.store(epoch.into(), Ordering::Relaxed);
        self.stats.is_written.store(true, Ordering::Relaxed);
        tracing::info!(path = %file.path().display(), epoch, "other programs can look up in the plane");
        (self.rows, self.file) = (rows, Some(file));
        true
    }

    /// Goes on without a file, and says once why.
    fn do_without(&mut self, error: &FileError) -> bool {
        self.stats.is_written.store(false, Ordering::Relaxed);
        self.beats_to_retry = RETRY_BEATS;
        if !std::mem::replace(&mut self.said_why, true) {
            tracing::warn!(%error, remedy = error.remedy(), "other programs cannot look up in a file");
        }
        false
    }

    /// Takes over what an earlier owner left: rows of processes that live stay as they are until their containers are seen.
    fn adopt(&mut self, memory: Memory, geometry: Geometry, now: u64) -> Rows<Memory> {
        let (table, left) = Table::adopt(memory, geometry.capacity, self.host);
        self.last_seen = table.get64(offset_of!(Header, heartbeat)).min(now);
        self.stats.adopted.store(left.len() as u64, Ordering::Relaxed);
        let mut rows = Rows::new(table, geometry, nanos(self.linger));
        rows.inherit(left, self.last_seen, now, is_alive);
        rows
    }

    /// What the collection has just published: after this every reader finds it.
    pub(crate) fn publish(&mut self, changes: &[RowChange], sequence: u64) {
        let begun = Instant::now();
        // Those that leave, and those whose time is over, before those that may have their numbers now.
        for change in changes.iter().filter(|change| change.after.is_none()) {
            change.before.iter().for_each(|row| self.rows.leave(row.container.instance));
        }
        let (over, open): (Vec<&view::Row>, Vec<&view::Row>) =
            changes.iter().filter_map(|change| change.after.as_ref()).partition(|row| !row.here.is_open());
        over.into_iter().chain(open).for_each(|row| self.rows.enter(row));
        self.rows.table().set64(offset_of!(Header, sequence), sequence);
        self.tell();
        self.stats.changes.fetch_add(changes.len() as u64, Ordering::Relaxed);
        self.stats.write_ns.fetch_add(nanos(begun.elapsed()), Ordering::Relaxed);
    }

    /// All that lives has been published once: what an earlier owner knew and nobody has seen is over.
    pub(crate) fn scanned(&mut self) {
        if self.rows.is_adopting() {
            self.rows.end_inheritance(self.last_seen, BootTime::now().0);
            self.tell();
        }
        let flags = self.rows.table().get32(offset_of!(Header, flags));
        self.rows.table().set32(offset_of!(Header, flags), flags & !Header::ADOPTING);
        self.has_scanned = true;
        self.end_inheritance();
    }

    /// Once all that lives has been seen and told of, what is pinned about others is an earlier owner's.
    fn end_inheritance(&mut self) {
        if self.has_scanned && self.rows.is_told() {
            self.mirror.iter_mut().for_each(Mirror::end_inheritance);
        }
    }

    /// What the probes share with the pinned maps, if there are any.
    pub(crate) fn pinning(&self) -> Option<Pinning> {
        self.mirror.as_ref().map(Mirror::pinning)
    }

    /// When [`Plane::beat`] is due.
    pub(crate) fn next_beat(&self) -> BootTime {
        BootTime(self.next_beat)
    }

    /// A sign of life, once a second. Whether a new file wants everything that there is: [`Plane::fill`] it.
    #[must_use]
    pub(crate) fn beat(&mut self) -> bool {
        let now = BootTime::now().0;
        self.next_beat = now + HEARTBEAT_NS;
        let is_lost = self.file.as_ref().is_some_and(|file| !file.is_current());
        if is_lost && let Some(file) = self.file.take() {
            tracing::warn!(path = %file.path().display(), "the plane was removed or replaced by another");
            file.supersede();
            let geometry = Geometry::of(self.config.rows());
            self.rows = Rows::new(private_table(geometry, self.host), geometry, nanos(self.linger));
            self.beats_to_retry = 0;
        }
        let is_new = match self.file {
            Some(_) => false,
            None if self.beats_to_retry > 0 => {
                self.beats_to_retry -= 1;
                false
            }
            None => self.attach(),
        };
        self.rows.expire(now);
        self.end_inheritance();
        self.rows.table().set64(offset_of!(Header, heartbeat), now);
        if let Some(mirror) = &mut self.mirror {
            mirror.heartbeat(now);
            if is_new || is_lost {
                mirror.begin_anew();
            }
        }
        self.tell();
        is_new || is_lost
    }

    /// Writes all that there is.
    pub(crate) fn fill<'a>(&mut self, rows: impl Iterator<Item = &'a view::Row>) {
        rows.for_each(|row| self.rows.enter(row));
        self.tell();
    }

    /// Tells readers that something is different, and counts.
    fn tell(&mut self) {
        let touched = self.rows.take_touched();
        self.rows.write_counts();
        let table = self.rows.table();
        self.mirror.iter_mut().for_each(|mirror| mirror.follow(&touched, |row| table.row(row).uses));
        if !touched.is_empty() {
            let changes = offset_of!(Header, changes);
            table.set32(changes, table.get32(changes).wrapping_add(1));
            sys::wake_waiters(&table.memory()[changes / WORD_LEN]);
        }
        let (refused, evicted) = self.rows.counts();
        let is_full = self.rows.waiting() > 0;
        if is_full && !std::mem::replace(&mut self.said_full, true) {
            let rows = self.config.rows();
            tracing::warn!(rows, "the plane is full: raise `plane.capacity`; containers wait for a row");
        }
        let Stats { rows, waiting, refused: refused_ever, evicted: evicted_ever, truncated, .. } = &*self.stats;
        rows.store(table.get32(offset_of!(Header, rows)).into(), Ordering::Relaxed);
        waiting.store(self.rows.waiting() as u64, Ordering::Relaxed);
        refused_ever.store(refused, Ordering::Relaxed);
        evicted_ever.store(evicted, Ordering::Relaxed);
        truncated.store(table.get64(offset_of!(Header, truncated)), Ordering::Relaxed);
    }
}

impl Drop for Plane {
    /// What is there stays for readers, who are told that nobody keeps it up to date.
    fn drop(&mut self) {
        if self.file.is_some() {
            let table = self.rows.table();
            let flags = table.get32(offset_of!(Header, flags));
            table.set32(offset_of!(Header, flags), flags | Header::STOPPED);
        }
    }
}

/// Opens the pinned maps, or says why there are none.
fn open_pins(config: &Config, max_namespaces: u32, stats: &Stats) -> Option<Pins> {
    if config.pins.as_os_str().is_empty() {
        return None;
    }
    if config.pins.as_os_str().is_empty() {
        return None;
    }
    match Pins::open(config, max_namespaces, Arc::clone(&stats.pins)) {
        Ok(pins) => {
            stats.is_pinned.store(true, Ordering::Relaxed);
            tracing::info!(path = %pins.path().display(), "BPF programs can look up in pinned maps");
            Some(pins)
        }
        Err(error) => {
            let source = std::error::Error::source(&error).map_or_else(String::new, |source| format!(": {source}"));
            tracing::warn!(%error, source, remedy = error.remedy(), "BPF programs cannot look up in pinned maps");
            None
        }
    }
}

/// A table that nobody else sees.
fn private_table(geometry: Geometry, host: HostNumbers) -> Table<Memory> {
    // Pages that the kernel gives out as they are used.
    let words = vec![0_u64; geometry.file_len / WORD_LEN].into_boxed_slice();
    // SAFETY: nobody else has the words, and an `AtomicU64` is one `u64` in memory.
    let words = unsafe { Box::from_raw(Box::into_raw(words) as *mut [AtomicU64]) };
    Table::create(Memory::Private(words), geometry.capacity, [0; 16], host)
}

/// Whether a row's process is still there, and where it was.
fn is_alive(task: TaskId, row: &Row) -> bool {
    Task::open(task.pid).is_ok_and(|found| found.is(task) && found.namespaces().mnt == row.mntns)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
