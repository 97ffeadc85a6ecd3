//! Which container has which row: who gets one, who keeps one, and who gives one up when there are too few.
//!
//! ```text
//!            row free, or taken from a tombstone                    life over, forgotten
//!  no row ─────────────────────────────────────▶ row n ──────────────────────────────────▶ row free
//!     └── none: waits, and gets the next one ───▶
//!
//!  of an earlier owner: inherited ── its process is seen again, and somebody vouches for it: row n
//!                                │        └── nobody does, for a while: row n, of what it shows of itself
//!                                └── it is not: a tombstone, kept for as long as any
//! ```
//!
//! Room is made by the oldest tombstone. What nobody vouches for has an eighth of all rows and takes rows from its like
//! alone.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::mem::offset_of;
use std::ops::Deref;

use tracker_common::plane::word::Word;
use tracker_common::plane::{Geometry, Header, Index, OPEN, Row};

use super::image;
use super::table::Table;
use crate::collection::view;
use crate::container::{Kind, State, TaskId};
use crate::time::BootTime;

/// For how many heartbeats an earlier owner's word on a container stands that nobody vouches for yet.
pub(super) const BEATS_TO_BE_TOLD: u32 = 10;

/// What happened to a row, for those who mirror it.
#[derive(Clone, Debug)]
pub(crate) enum Touched {
    /// This is what it says now.
    Put(u32, view::Row),
    /// It is free.
    Freed(u32),
}

/// See the module.
pub(crate) struct Rows<M> {
    table: Table<M>,
    capacity: usize,
    linger_ns: u64,
    holders: HashMap<u64, Holder>,
    /// Tombstones, the oldest first, by whether somebody vouches for them.
    tombstones: [BTreeSet<(BootTime, u64)>; 2],
    unvouched: usize,
    /// Rows of an earlier owner whose containers have not been seen yet.
    inherited: HashMap<TaskId, u32>,
    /// Containers that were seen again in rows of an earlier owner, which say more than is known of them by now; and for how
    /// many more heartbeats those say it.
    less_known: HashMap<u64, (view::Row, u32)>,
    /// Rows of an earlier owner whose containers are over, with the time at which they are freed.
    orphans: VecDeque<(u64, u32)>,
    /// Containers without a row.
    waiting: BTreeMap<u64, view::Row>,
    touched: Vec<Touched>,
    refused: u64,
    evicted: u64,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    row: u32,
    is_vouched: bool,
    /// When its life was over, if it is.
    over: Option<BootTime>,
}

impl<W: Word, M: Deref<Target = [W]>> Rows<M> {
    /// Rows of a table that nobody had before.
    pub(crate) fn new(table: Table<M>, geometry: Geometry, linger_ns: u64) -> Self {
        Rows {
            table,
            capacity: geometry.capacity,
            linger_ns,
            holders: HashMap::new(),
            tombstones: Default::default(),
            unvouched: 0,
            inherited: HashMap::new(),
            less_known: HashMap::new(),
            orphans: VecDeque::new(),
            waiting: BTreeMap::new(),
            touched: Vec::new(),
            refused: 0,
            evicted: 0,
        }
    }

    /// Takes over an earlier owner's rows. Those whose process `is_alive` stay as they are until it is seen; of the others
    /// nothing is known since `last_seen`, the earlier owner's last heartbeat.
    pub(crate) fn inherit(
        &mut self,
        rows: Vec<(u32, Row)>,
        last_seen: u64,
        now: u64,
        is_alive: impl Fn(TaskId, &Row) -> bool,
    ) {
        (self.refused, self.evicted) =
            (self.table.get64(offset_of!(Header, refused)), self.table.get64(offset_of!(Header, evicted)));
        let was_adopting = self.table.get32(offset_of!(Header, flags)) & Header::ADOPTING != 0;
        for (number, row) in rows {
            let task = TaskId { pid: row.pid, start_ticks: row.start_ticks };
            // Its last owner had it from another one, and ended before it had seen it: since when it is over, nobody knows.
            let is_hearsay = was_adopting && row.flags & Row::INHERITED != 0 && row.closed == OPEN;
            let last_seen = if is_hearsay { row.opened.min(last_seen) } else { last_seen };
            if row.pid != 0 && row.closed == OPEN && is_alive(task, &row) {
                self.table.amend(number, |row| row.flags |= Row::INHERITED);
                self.inherited.insert(task, number);
            } else {
                self.bury_inherited(number, last_seen, now);
            }
        }
    }

    /// All that lives has been seen: what of the earlier owner's was not, is over.
    pub(crate) fn end_inheritance(&mut self, last_seen: u64, now: u64) {
        for number in std::mem::take(&mut self.inherited).into_values() {
            self.bury_inherited(number, last_seen, now);
        }
    }

    /// Between the earlier owner's last heartbeat and now its numbers may have passed to anybody.
    fn bury_inherited(&mut self, number: u32, last_seen: u64, now: u64) {
        self.table.amend(number, |row| {
            row.flags |= Row::INHERITED;
            row.closed = row.closed.min(last_seen);
            row.init_closed = row.init_closed.min(last_seen);
            if ![State::Exited, State::Aborted].map(image::state).contains(&row.state) {
                row.state = image::state(State::Exited);
            }
        });
        self.orphans.push_back((now.saturating_add(self.linger_ns), number));
        // Without times a number means nobody.
        self.touched.push(Touched::Freed(number));
    }

    /// Whether there are rows of an earlier owner that have not been seen.
    pub(crate) fn is_adopting(&self) -> bool {
        !self.inherited.is_empty()
    }

    /// Whether no row stands on an earlier owner's word alone.
    pub(crate) fn is_told(&self) -> bool {
        self.inherited.is_empty() && self.less_known.is_empty()
    }

    /// Frees what an earlier owner left and nobody may ask for any more.
    pub(crate) fn expire(&mut self, now: u64) {
        while let Some((_, number)) = self.orphans.front().copied().filter(|(at, _)| *at <= now) {
            self.orphans.pop_front();
            self.release(number);
        }
        // Nobody told: it is what it shows of itself.
        let still_less = self.less_known.iter_mut().filter_map(|(instance, (_, beats))| {
            *beats = beats.saturating_sub(1);
            (*beats == 0).then_some(*instance)
        });
        for instance in still_less.collect::<Vec<u64>>() {
            if let (Some((row, _)), Some(holder)) =
                (self.less_known.remove(&instance), self.holders.get(&instance).copied())
            {
                self.note(instance, Some(Holder { is_vouched: false, ..holder }));
                self.write(holder.row, &row, false);
            }
        }
        self.serve();
    }

    /// A container as it is now.
    pub(crate) fn enter(&mut self, row: &view::Row) {
        let instance = row.container.instance;
        let is_vouched = row.container.kind.is_vouched_for();
        let over = row.container.state.is_over().then(|| row.container.exited_at.unwrap_or(row.here.opened));
        let (number, is_anew) = match self.holders.get(&instance) {
            Some(holder) => (Some(holder.row), false),
            None => match self.inherited_row(row) {
                Some(number) => (Some(number), false),
                None => (self.room_for(is_vouched, over.is_some()), true),
            },
        };
        let Some(number) = number else {
            // Nobody waits for a tombstone.
            let waits = over.is_none();
            let was_waiting = match waits {
                true => self.waiting.insert(instance, row.clone()).is_some(),
                false => self.waiting.remove(&instance).is_some(),
            };
            self.refused += u64::from(waits && !was_waiting);
            return;
        };
        self.waiting.remove(&instance);
        let (told, is_over) = (self.table.row(number), over.is_some());
        // Runtimes have not told yet, which they will in a moment: its name is not taken away for so long.
        let was_vouched = [Kind::Container, Kind::Sandbox].map(image::kind).contains(&told.kind);
        if told.flags & Row::INHERITED != 0 && was_vouched && !is_vouched && !is_over {
            self.note(instance, Some(Holder { row: number, is_vouched: true, over }));
            let (less, _) = self.less_known.entry(instance).or_insert_with(|| (row.clone(), BEATS_TO_BE_TOLD));
            less.clone_from(row);
            return;
        }
        self.less_known.remove(&instance);
        let former = self.note(instance, Some(Holder { row: number, is_vouched, over }));
        self.write(number, row, is_anew);
        // A tombstone is room for somebody who lives.
        if over.is_some() && former.is_some_and(|former| former.over.is_none()) {
            self.serve();
        }
    }

    fn write(&mut self, number: u32, row: &view::Row, is_anew: bool) {
        let mut image = image::of(row);
        let told = self.table.row(number);
        // A number with one holder at a time has been reused where two claim it: the later one has it.
        for index in [Index::Mntns, Index::Pid] {
            let of = |row: &Row| (row.flags & (Row::IN_USE | Row::EXCLUDED), index.key(row), index.interval(row));
            // Whoever had taken the number since would have ended this row's time.
            if of(&told) == of(&image.row) {
                continue;
            }
            let Some((other, other_row)) = self.table.rival(index, number, &image.row) else { continue };
            let opened = index.interval(&image.row).0;
            let other_opened = index.interval(&other_row).0;
            if other_opened <= opened {
                self.table.amend(other, |row| *closed(index, row) = opened);
            } else {
                *closed(index, &mut image.row) = other_opened;
            }
        }
        self.table.put(number, &image, is_anew);
        self.touched.push(Touched::Put(number, row.clone()));
    }

    /// A container that is not to be found any more.
    pub(crate) fn leave(&mut self, instance: u64) {
        self.waiting.remove(&instance);
        self.less_known.remove(&instance);
        if let Some(holder) = self.note(instance, None) {
            self.release(holder.row);
            self.serve();
        }
    }

    /// What happened to rows since it was asked last.
    pub(crate) fn take_touched(&mut self) -> Vec<Touched> {
        std::mem::take(&mut self.touched)
    }

    /// How many containers wait for room.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many never found any, and how many tombstones made room.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.refused, self.evicted)
    }

    /// Writes the counts into the header.
    pub(crate) fn write_counts(&self) {
        let tombstones = self.orphans.len() + self.tombstones.iter().map(BTreeSet::len).sum::<usize>();
        let rows = self.holders.len() + self.inherited.len() + self.orphans.len();
        self.table.set32(offset_of!(Header, rows), rows as u32);
        self.table.set32(offset_of!(Header, tombstones), tombstones as u32);
        self.table.set32(offset_of!(Header, waiting), self.waiting.len() as u32);
        self.table.set64(offset_of!(Header, refused), self.refused);
        self.table.set64(offset_of!(Header, evicted), self.evicted);
    }

    /// The table, for what the header says of its owner.
    pub(crate) fn table(&self) -> &Table<M> {
        &self.table
    }

    fn inherited_row(&mut self, row: &view::Row) -> Option<u32> {
        let number = *self.inherited.get(&row.container.task?)?;
        let is_same = self.table.row(number).mntns == row.container.namespaces.mnt;
        is_same.then(|| self.inherited.remove(&row.container.task?)).flatten()
    }

    fn room_for(&mut self, is_vouched: bool, is_over: bool) -> Option<u32> {
        if !is_vouched && self.is_share_used_up() {
            return if is_over { None } else { self.evict([1]) };
        }
        match self.table.take() {
            Some(number) => Some(number),
            // A tombstone takes nobody's place.
            None if is_over => None,
            None if is_vouched => self.evict([0, 1]),
            None => self.evict([1]),
        }
    }

    /// Takes the row of the oldest tombstone of these kinds.
    fn evict<const N: usize>(&mut self, kinds: [usize; N]) -> Option<u32> {
        if kinds.contains(&0)
            && let Some((_, number)) = self.orphans.pop_front()
        {
            self.release(number);
        } else {
            let oldest = kinds.into_iter().filter_map(|kind| self.tombstones[kind].first().copied()).min();
            let holder = self.note(oldest?.1, None)?;
            self.release(holder.row);
        }
        self.evicted += 1;
        self.table.take()
    }

    fn release(&mut self, number: u32) {
        self.table.free(number);
        self.touched.push(Touched::Freed(number));
    }

    /// Gives rows to those who wait, while there are any.
    fn serve(&mut self) {
        // They are counted already.
        let refused = self.refused;
        for instance in self.waiting.keys().copied().collect::<Vec<u64>>() {
            let Some(row) = self.waiting.get(&instance).cloned() else { continue };
            let is_vouched = row.container.kind.is_vouched_for();
            if !is_vouched && self.is_share_used_up() && self.tombstones[1].is_empty() {
                continue;
            }
            self.waiting.remove(&instance);
            self.enter(&row);
            if is_vouched && self.waiting.contains_key(&instance) {
                break;
            }
        }
        self.refused = refused;
    }

    /// Whether nobody else whom nobody vouches for gets a row of those that are free.
    fn is_share_used_up(&self) -> bool {
        self.unvouched >= (self.capacity / 8).max(1)
    }

    /// Notes who has a row, or that somebody has none any more; returns what was noted before.
    fn note(&mut self, instance: u64, holder: Option<Holder>) -> Option<Holder> {
        let former = match holder {
            Some(holder) => self.holders.insert(instance, holder),
            None => self.holders.remove(&instance),
        };
        let of = |holder: Holder| usize::from(!holder.is_vouched);
        if let Some(former) = former {
            self.unvouched -= of(former);
            former.over.map(|over| self.tombstones[of(former)].remove(&(over, instance)));
        }
        if let Some(holder) = holder {
            self.unvouched += of(holder);
            holder.over.map(|over| self.tombstones[of(holder)].insert((over, instance)));
        }
        former
    }
}

fn closed(index: Index, row: &mut Row) -> &mut u64 {
    match index {
        Index::Mntns | Index::Netns | Index::Cgroup => &mut row.closed,
        Index::Pid => &mut row.init_closed,
    }
}
