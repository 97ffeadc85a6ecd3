//! The plane's rows, indexes and texts in memory, whosever that is: what is written where, and in which order.
//!
//! Owns which rows and which places for long texts are free. Promises that who reads at any moment, also after the writer
//! ended between two stores, finds each row whole or busy; `docs/plane.md` tells readers' side. Leaves to others what a
//! row says and when it is given up.

use std::array::from_fn;
use std::collections::{HashMap, HashSet, VecDeque};
use std::mem::offset_of;
use std::ops::Deref;

use tracker_common::plane::word::{Word, begin_write, end_write, write_bytes};
use tracker_common::plane::{
    Entry, Geometry, Header, Index, MAGIC, OPEN, Row, SCHEMA, TEXT_CLASSES, TEXT_INLINE, TEXTS, VERSION, WORD_LEN,
};

/// What one row is to say: its fields, but for lock, uses and texts, and its texts in their order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Image<'a> {
    pub row: Row,
    pub texts: [&'a str; TEXTS],
}

/// The host's own numbers, which are in no index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostNumbers {
    pub mntns: u32,
    pub netns: u32,
    pub cgroup: u64,
}

/// See the module. `M` is the memory: as many words as the [`Geometry`] says.
pub(crate) struct Table<M> {
    memory: M,
    geometry: Geometry,
    host: HostNumbers,
    /// Rows that were used before, the one that was given up first in front.
    free: VecDeque<u32>,
    /// Rows from here on were never used.
    used: u32,
    /// Free slots of each class.
    free_texts: [Vec<u32>; 3],
    /// Rows whose texts were cut.
    truncated: u64,
}

/// Rows that rest before one of them is given out again, while there are others that were never used.
const RESTING: usize = 64;

/// The order in which texts are given up where there is no room: the last ones first.
const BY_IMPORTANCE: [usize; TEXTS] = [0, 1, 2, 3, 5, 4];

impl<W: Word, M: Deref<Target = [W]>> Table<M> {
    /// A plane in memory that is all zeros, for the host with these numbers.
    pub(crate) fn create(memory: M, capacity: usize, boot_id: [u8; 16], host: HostNumbers) -> Self {
        let geometry = Geometry::of(capacity);
        assert_eq!(memory.len() * WORD_LEN, geometry.file_len, "the memory is as large as the plane");
        let free_texts = from_fn(|class| (0..TEXT_CLASSES[class].slots(capacity) as u32).rev().collect());
        let table = Table { memory, geometry, host, free: Default::default(), used: 0, free_texts, truncated: 0 };
        table.write_header(boot_id);
        table
    }

    fn write_header(&self, boot_id: [u8; 16]) {
        let Geometry { capacity, rows_at, entries, indexes_at, texts_at, file_len } = self.geometry;
        self.set32(offset_of!(Header, version), VERSION);
        self.set32(offset_of!(Header, header_len), Header::LEN as u32);
        self.set64(offset_of!(Header, schema), SCHEMA);
        self.set64(offset_of!(Header, file_len), file_len as u64);
        write_bytes(&self.memory, offset_of!(Header, boot_id), &boot_id);
        self.set32(offset_of!(Header, capacity), capacity as u32);
        self.set32(offset_of!(Header, row_len), Row::LEN as u32);
        self.set64(offset_of!(Header, rows_at), rows_at as u64);
        self.set32(offset_of!(Header, entries), entries as u32);
        self.set32(offset_of!(Header, entry_len), Entry::LEN as u32);
        self.set64(offset_of!(Header, mntns_at), indexes_at[0] as u64);
        self.set64(offset_of!(Header, netns_at), indexes_at[1] as u64);
        self.set64(offset_of!(Header, cgroups_at), indexes_at[2] as u64);
        self.set64(offset_of!(Header, pids_at), indexes_at[3] as u64);
        self.set64(offset_of!(Header, texts_at), texts_at[0] as u64);
        self.set64(offset_of!(Header, texts_len), (file_len - texts_at[0]) as u64);
        self.set_host();
        // Last: who sees it finds the rest.
        self.memory[0].store_release(u64::from_le_bytes(MAGIC));
    }

    fn set_host(&self) {
        self.set32(offset_of!(Header, host_mntns), self.host.mntns);
        self.set32(offset_of!(Header, host_netns), self.host.netns);
        self.set64(offset_of!(Header, host_cgroup), self.host.cgroup);
    }

    /// Takes over a plane of the same geometry that another writer left, at whatever instruction it ended: rows that it
    /// was changing are freed, and what does not fit together is put right. Returns the rows in use.
    pub(crate) fn adopt(memory: M, capacity: usize, host: HostNumbers) -> (Self, Vec<(u32, Row)>) {
        let geometry = Geometry::of(capacity);
        assert_eq!(memory.len() * WORD_LEN, geometry.file_len, "the memory is as large as the plane");
        let mut table = Table {
            memory,
            geometry,
            host,
            free: Default::default(),
            used: 0,
            free_texts: Default::default(),
            truncated: 0,
        };
        table.truncated = table.get64(offset_of!(Header, truncated));
        table.used = table.get32(offset_of!(Header, rows_used)).min(capacity as u32);
        table.set_host();
        let mut rows = Vec::new();
        let mut taken = HashSet::new();
        for number in 0..table.used {
            let row = table.row(number);
            let is_whole = row.lock & 1 == 0 && row.flags & Row::IN_USE != 0;
            if is_whole && table.has_sound_texts(number, &row) && taken.insert(row.text_at) {
                rows.push((number, row));
            } else {
                table.store(number, Row { lock: row.lock, uses: row.uses, ..Row::FREE });
                table.free.push_back(number);
            }
        }
        table.free_texts = from_fn(|class| {
            let slots = 0..TEXT_CLASSES[class].slots(capacity) as u32;
            slots.rev().filter(|slot| !taken.contains(&(table.slot_at(class, *slot) as u64))).collect()
        });
        table.repair_indexes(&rows);
        (table, rows)
    }

    /// Whether a row's texts are in its own place or in a slot, and as long as it says.
    fn has_sound_texts(&self, number: u32, row: &Row) -> bool {
        let sum: u32 = row.text_lens().into_iter().map(u32::from).sum();
        let at = row.text_at as usize;
        let room = match self.slot_of(at) {
            Some((class, slot)) if self.slot_at(class, slot) == at => TEXT_CLASSES[class].len,
            _ if at == self.geometry.inline_text_at(number as usize) => TEXT_INLINE,
            _ => return false,
        };
        sum == row.text_len && sum as usize <= room
    }

    /// Makes the indexes what `rows` say, without taking a right entry out in between.
    fn repair_indexes(&self, rows: &[(u32, Row)]) {
        let by_number: HashMap<u32, &Row> = rows.iter().map(|(number, row)| (*number, row)).collect();
        for index in Index::ALL {
            let mut there = HashSet::new();
            for place in 0..self.geometry.entries as u32 {
                let entry = self.entry(index, place);
                if entry.key == 0 {
                    continue;
                }
                let wanted = by_number.get(&entry.row).and_then(|row| self.key(index, row).zip(Some(row)));
                let is_right = wanted
                    .is_some_and(|((key, interval), _)| key == entry.key && interval == (entry.opened, entry.closed));
                if !is_right || self.find(index, entry.key, entry.row) != Some(place) || !there.insert(entry.row) {
                    // Nobody relies on it: what it says is no row's.
                    self.word(self.entry_at(index, place)).store_release(0);
                }
            }
            for (number, row) in rows.iter().filter(|(number, _)| !there.contains(number)) {
                if let Some((key, interval)) = self.key(index, row) {
                    self.change(*number, || self.insert(index, key, interval, *number));
                }
            }
            self.recount(index);
        }
    }

    /// Writes how many entries passed each place.
    fn recount(&self, index: Index) {
        let mut passed = vec![0_u32; self.geometry.entries];
        for place in 0..self.geometry.entries as u32 {
            let entry = self.entry(index, place);
            if entry.key != 0 {
                let way = (0..).map(|at| Entry::place(entry.key, at, self.geometry.entries as u32));
                way.take_while(|at| *at != place).for_each(|at| passed[at as usize] += 1);
            }
        }
        for (place, passed) in passed.into_iter().enumerate() {
            if self.entry(index, place as u32).passed != passed {
                self.set32(self.entry_at(index, place as u32) + offset_of!(Entry, passed), passed);
            }
        }
    }

    /// A free row, if there is one. It is taken once something was [`put`](Table::put) into it.
    pub(crate) fn take(&mut self) -> Option<u32> {
        // The one that has rested longest: a number that somebody noted a moment ago should mean nothing, rather than
        // another. Others are begun only as they are needed: each takes memory for good.
        let is_begun = (self.used as usize) < self.geometry.capacity && self.free.len() <= RESTING;
        if !is_begun {
            return self.free.pop_front();
        }
        self.used += 1;
        self.set32(offset_of!(Header, rows_used), self.used);
        Some(self.used - 1)
    }

    /// Writes a row; `anew` where another container had it before. Whether its texts had room.
    pub(crate) fn put(&mut self, number: u32, image: &Image<'_>, anew: bool) -> bool {
        let former = self.row(number);
        let (at, texts) = self.place_texts(number, &former, &image.texts);
        let lens: [u16; TEXTS] = texts.map(|text| text.len() as u16);
        let [id_len, name_len, pod_len, pod_namespace_len, image_len, runtime_len] = lens;
        let was_cut = texts != image.texts;
        let row = Row {
            lock: former.lock,
            uses: former.uses.wrapping_add(anew.into()),
            flags: image.row.flags | if was_cut { Row::TRUNCATED } else { 0 },
            text_at: at as u64,
            text_len: lens.into_iter().map(u32::from).sum(),
            id_len,
            name_len,
            pod_len,
            pod_namespace_len,
            image_len,
            runtime_len,
            ..image.row
        };
        if was_cut && (former.flags & Row::TRUNCATED == 0 || anew) {
            self.truncated += 1;
            self.set64(offset_of!(Header, truncated), self.truncated);
        }
        self.change(number, || {
            self.enter(number, &former, &row);
            write_bytes(&self.memory, at, texts.concat().as_bytes());
            self.store_fields(number, &row);
        });
        if former.flags & Row::IN_USE != 0 && former.text_at != row.text_at {
            self.free_text(former.text_at as usize);
        }
        !was_cut
    }

    /// Changes a row's flags and intervals alone.
    pub(crate) fn amend(&mut self, number: u32, amend: impl FnOnce(&mut Row)) {
        let former = self.row(number);
        let mut row = former;
        amend(&mut row);
        self.change(number, || {
            self.enter(number, &former, &row);
            self.store_fields(number, &row);
        });
    }

    /// Frees a row.
    pub(crate) fn free(&mut self, number: u32) {
        let former = self.row(number);
        let row = Row { uses: former.uses, ..Row::FREE };
        self.change(number, || {
            self.enter(number, &former, &row);
            self.store_fields(number, &row);
        });
        self.free_text(former.text_at as usize);
        self.free.push_back(number);
    }

    /// Another row that holds the same number at the same time, in an index where that cannot be.
    pub(crate) fn rival(&self, index: Index, number: u32, row: &Row) -> Option<(u32, Row)> {
        let (key, (_, closed)) = self.key(index, row)?;
        if closed != OPEN {
            return None;
        }
        let mut is_last = false;
        let held = self.way(index, key).take_while(|(_, entry)| {
            let is_beyond = is_last;
            is_last = entry.passed == 0;
            !is_beyond
        });
        let others = held.filter(|(_, entry)| entry.key == key && entry.row != number);
        let mut open = others.filter(|(_, entry)| entry.closed == OPEN).map(|(_, entry)| entry.row);
        open.next().map(|other| (other, self.row(other)))
    }

    /// A row as it is.
    pub(crate) fn row(&self, number: u32) -> Row {
        let first = self.geometry.row_at(number as usize) / WORD_LEN;
        Row::from_words(from_fn(|word| self.memory[first + word].load_relaxed()))
    }

    /// Writes a number of the header.
    pub(crate) fn set64(&self, at: usize, value: u64) {
        self.word(at).store_relaxed(value);
    }

    /// Writes half of a word. There is one writer: nobody changes the other half meanwhile.
    pub(crate) fn set32(&self, at: usize, value: u32) {
        let (word, shift) = (self.word(at), at % WORD_LEN * 8);
        let kept = word.load_relaxed() & !(u64::from(u32::MAX) << shift);
        word.store_release(kept | u64::from(value) << shift);
    }

    pub(crate) fn get64(&self, at: usize) -> u64 {
        self.word(at).load_relaxed()
    }

    pub(crate) fn get32(&self, at: usize) -> u32 {
        (self.word(at).load_relaxed() >> (at % WORD_LEN * 8)) as u32
    }

    /// The memory itself.
    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }

    fn word(&self, at: usize) -> &W {
        &self.memory[at / WORD_LEN]
    }

    /// Does something to a row or its entries while its lock is odd.
    fn change(&self, number: u32, change: impl FnOnce()) {
        let lock = self.word(self.geometry.row_at(number as usize));
        begin_write(lock);
        change();
        end_write(lock);
    }

    /// Frees a row that nobody can have relied on.
    fn store(&self, number: u32, row: Row) {
        self.change(number, || self.store_fields(number, &row));
    }

    /// Everything but the lock.
    fn store_fields(&self, number: u32, row: &Row) {
        let first = self.geometry.row_at(number as usize) / WORD_LEN;
        for (word, value) in self.memory[first..].iter().zip(row.to_words()).skip(1) {
            word.store_relaxed(value);
        }
    }

    /// The number under which a row is in an index, and for which time.
    fn key(&self, index: Index, row: &Row) -> Option<(u64, (u64, u64))> {
        let is_shared = matches!(index, Index::Netns | Index::Cgroup);
        let is_hidden = row.flags & Row::IN_USE == 0 || row.flags & Row::EXCLUDED != 0 && !is_shared;
        let hosts: u64 = match index {
            Index::Mntns => self.host.mntns.into(),
            Index::Netns => self.host.netns.into(),
            Index::Cgroup => self.host.cgroup,
            Index::Pid => 0,
        };
        let (key, interval) = (index.key(row), index.interval(row));
        let is_in = !is_hidden && key != 0 && key != hosts && interval.0 < interval.1;
        is_in.then_some((key, interval))
    }

    /// Makes the indexes say of a row what it is going to be.
    fn enter(&self, number: u32, former: &Row, row: &Row) {
        for index in Index::ALL {
            match (self.key(index, former), self.key(index, row)) {
                (before, after) if before == after => {}
                (Some((key, _)), Some((same, interval))) if key == same => self.correct(index, key, interval, number),
                (before, after) => {
                    if let Some((key, _)) = before {
                        self.remove(index, key, number);
                    }
                    if let Some((key, interval)) = after {
                        self.insert(index, key, interval, number);
                    }
                }
            }
        }
    }

    fn correct(&self, index: Index, key: u64, (opened, closed): (u64, u64), number: u32) {
        let place = self.find(index, key, number).expect("what is in a row is in its index");
        let at = self.entry_at(index, place);
        self.set64(at + offset_of!(Entry, opened), opened);
        self.set64(at + offset_of!(Entry, closed), closed);
    }

    fn insert(&self, index: Index, key: u64, (opened, closed): (u64, u64), number: u32) {
        // First that something is further along, then what is there: a reader that finds the one finds the other.
        for (place, entry) in self.way(index, key) {
            let at = self.entry_at(index, place);
            if entry.key == 0 {
                self.set64(at + offset_of!(Entry, opened), opened);
                self.set64(at + offset_of!(Entry, closed), closed);
                self.set32(at + offset_of!(Entry, row), number);
                self.word(at).store_release(key);
                return;
            }
            self.set32(at + offset_of!(Entry, passed), entry.passed + 1);
        }
        unreachable!("there are twice as many places as rows");
    }

    fn remove(&self, index: Index, key: u64, number: u32) {
        let last = self.find(index, key, number).expect("what is in a row is in its index");
        self.word(self.entry_at(index, last)).store_release(0);
        for (place, entry) in self.way(index, key).take_while(|(place, _)| *place != last) {
            let at = self.entry_at(index, place);
            self.set32(at + offset_of!(Entry, passed), entry.passed.saturating_sub(1));
        }
    }

    fn find(&self, index: Index, key: u64, number: u32) -> Option<u32> {
        let mut way = self.way(index, key);
        way.find(|(_, entry)| entry.key == key && entry.row == number).map(|(place, _)| place)
    }

    /// The places where a key may be, one after the other.
    fn way(&self, index: Index, key: u64) -> impl Iterator<Item = (u32, Entry)> {
        let entries = self.geometry.entries as u32;
        (0..entries).map(move |at| {
            let place = Entry::place(key, at, entries);
            (place, self.entry(index, place))
        })
    }

    fn entry(&self, index: Index, place: u32) -> Entry {
        let at = self.entry_at(index, place) / WORD_LEN;
        let [key, opened, closed, rest] = from_fn(|word| self.memory[at + word].load_relaxed());
        Entry { key, opened, closed, row: rest as u32, passed: (rest >> 32) as u32 }
    }

    fn entry_at(&self, index: Index, place: u32) -> usize {
        self.geometry.indexes_at[index as usize] + place as usize * Entry::LEN
    }

    /// Where a row's texts are to be, and what of them has room there.
    fn place_texts<'a>(&mut self, number: u32, former: &Row, texts: &[&'a str; TEXTS]) -> (usize, [&'a str; TEXTS]) {
        let len: usize = texts.iter().map(|text| text.len()).sum();
        let inline = self.geometry.inline_text_at(number as usize);
        if len <= TEXT_INLINE {
            return (inline, *texts);
        }
        let longest = TEXT_CLASSES[TEXT_CLASSES.len() - 1].len;
        let fits = TEXT_CLASSES.iter().position(|class| len.min(longest) <= class.len).unwrap_or(0);
        let held = self.slot_of(former.text_at as usize).filter(|_| former.flags & Row::IN_USE != 0);
        // The slot that the row has will do, as long as it is not larger than need be.
        if let Some((class, slot)) = held.filter(|(class, _)| *class == fits) {
            return (self.slot_at(class, slot), cut(texts, TEXT_CLASSES[class].len));
        }
        let class = (fits..TEXT_CLASSES.len()).find(|class| !self.free_texts[*class].is_empty());
        if let Some((class, slot)) = class.and_then(|class| Some((class, self.free_texts[class].pop()?))) {
            return (self.slot_at(class, slot), cut(texts, TEXT_CLASSES[class].len));
        }
        match held {
            Some((class, slot)) => (self.slot_at(class, slot), cut(texts, TEXT_CLASSES[class].len)),
            None => (inline, cut(texts, TEXT_INLINE)),
        }
    }

    fn free_text(&mut self, at: usize) {
        if let Some((class, slot)) = self.slot_of(at) {
            self.free_texts[class].push(slot);
        }
    }

    fn slot_at(&self, class: usize, slot: u32) -> usize {
        self.geometry.texts_at[class] + slot as usize * TEXT_CLASSES[class].len
    }

    /// The slot that a place is in; `None` for a row's own.
    fn slot_of(&self, at: usize) -> Option<(usize, u32)> {
        let class = self.geometry.texts_at.iter().rposition(|first| *first <= at)?;
        let slot = (at - self.geometry.texts_at[class]) / TEXT_CLASSES[class].len;
        (slot < TEXT_CLASSES[class].slots(self.geometry.capacity)).then_some((class, slot as u32))
    }
}

/// As much of the texts as has room, the important ones first, cut between characters.
fn cut<'a>(texts: &[&'a str; TEXTS], room: usize) -> [&'a str; TEXTS] {
    let mut left = room;
    let mut kept = *texts;
    for text in BY_IMPORTANCE {
        let most = left.min(texts[text].len());
        let end = (0..=most).rev().find(|end| texts[text].is_char_boundary(*end)).unwrap_or(0);
        kept[text] = &texts[text][..end];
        left -= kept[text].len();
    }
    kept
}
