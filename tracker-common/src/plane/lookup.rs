//! Looking up in the plane's words, wherever they are: in a mapped file, in plain memory, or in a model checker's.
//!
//! No system call, no allocation, no waiting without an end. The writer may be at work, may have ended in the middle of
//! its work, or may be somebody else entirely: whatever the words are, nothing outside of them is read, and a look-up
//! ends after as many steps as an index has entries.
//!
//! An index only says where to look. What makes an answer is the row, read whole under its lock: it is in use, has the
//! number that was asked for, and had it at that time. So an index that is being changed, or is broken, can make an
//! answer late or missing, and never wrong.

use core::fmt;
use core::mem::offset_of;
use core::ops::Range;
use core::str;

use super::word::{self, Word};
use super::{
    Entry, Geometry, Header, Index, MAGIC, OPEN, Row, SCHEMA, TEXT_INLINE, TEXT_MAX, TEXTS, VERSION, WORD_LEN, Words,
    half,
};

/// How often one look-up tries again before it says [`Answer::Busy`]. Some ten microseconds.
pub const RETRIES: u32 = 1_000;

/// The time that a look-up asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// As it is now.
    Now,
    /// As it was at a time, in ns of `CLOCK_BOOTTIME`.
    At(u64),
}

impl When {
    /// Whether an interval with these ends is meant.
    #[inline]
    pub const fn is_within(self, opened: u64, closed: u64) -> bool {
        match self {
            When::Now => closed == OPEN,
            When::At(time) => opened <= time && time < closed,
        }
    }
}

/// What a number that belongs to one container at a time means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// This container.
    Container(T),
    /// The host itself.
    Host,
    /// Nothing that the plane knows.
    Unknown,
    /// It cannot be said now: the row is being changed, or was, when its owner ended.
    Busy,
}

impl<T> Answer<T> {
    /// The container, if it is one.
    pub fn container(self) -> Option<T> {
        match self {
            Answer::Container(container) => Some(container),
            Answer::Host | Answer::Unknown | Answer::Busy => None,
        }
    }

    /// The same answer with something else about the container.
    pub fn map<U>(self, about: impl FnOnce(T) -> U) -> Answer<U> {
        match self {
            Answer::Container(container) => Answer::Container(about(container)),
            Answer::Host => Answer::Host,
            Answer::Unknown => Answer::Unknown,
            Answer::Busy => Answer::Busy,
        }
    }
}

/// What a number that several containers may share means.
#[derive(Clone, Debug)]
pub enum Group<'a, W> {
    /// These containers. None, where the plane knows nothing of the number.
    Containers(Members<'a, W>),
    /// The host itself.
    Host,
}

/// The beginning of a row as it was at one moment: one cache line, which a look-up has to read anyhow.
///
/// [`Tables::whole`] and [`Tables::texts`] read the rest, if the row is still the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Number of the row.
    pub number: u32,
    /// See [`Row::lock`]; what tells whether the row has changed since.
    pub lock: u64,
    /// See [`Row::flags`].
    pub flags: u32,
    /// See [`Row::uses`]: together with the number it names the container, for as long as the plane's epoch lasts.
    pub uses: u32,
    /// See [`Row::mntns`].
    pub mntns: u32,
    /// See [`Row::netns`].
    pub netns: u32,
    /// See [`Row::pidns`].
    pub pidns: u32,
    /// See [`Row::pid`].
    pub pid: u32,
    /// See [`Row::opened`].
    pub opened: u64,
    /// See [`Row::closed`].
    pub closed: u64,
    /// See [`Row::generation`].
    pub generation: u64,
    /// See [`Row::kind`].
    pub kind: u8,
    /// See [`Row::state`].
    pub state: u8,
    /// See [`Row::grade`].
    pub grade: u8,
    /// See [`Row::exit_code`].
    pub exit_code: u32,
}

impl Found {
    /// From the first words of a row.
    #[inline]
    fn from_head(number: u32, head: [u64; HEAD_WORDS]) -> Self {
        let [lock, flags, net, pid, opened, closed, generation, rest] = head;
        Found {
            number,
            lock,
            flags: flags as u32,
            uses: (flags >> 32) as u32,
            mntns: net as u32,
            netns: (net >> 32) as u32,
            pidns: pid as u32,
            pid: (pid >> 32) as u32,
            opened,
            closed,
            generation,
            kind: rest as u8,
            state: (rest >> 8) as u8,
            grade: (rest >> 16) as u8,
            exit_code: (rest >> 32) as u32,
        }
    }

    /// Whether a runtime or a machine manager says that this is a container.
    pub fn is_vouched_for(&self) -> bool {
        matches!(self.kind, 1 | 2)
    }

    /// Whether the owner's configuration leaves it out of answers.
    pub fn is_excluded(&self) -> bool {
        self.flags & Row::EXCLUDED != 0
    }
}

/// Room for the texts of one row.
#[derive(Clone, Debug)]
pub struct TextBuffer([u8; TEXT_MAX]);

impl TextBuffer {
    /// Empty room.
    pub const fn new() -> Self {
        TextBuffer([0; TEXT_MAX])
    }

    /// The texts of a row whose bytes were copied here; `None` where they are not text.
    fn cut(&self, row: &Row) -> Option<Texts<'_>> {
        let lens = row.text_lens();
        let len: usize = lens.iter().map(|len| usize::from(*len)).sum();
        let mut rest = str::from_utf8(self.0.get(..len)?).ok()?;
        let mut texts = [""; TEXTS];
        for (text, len) in texts.iter_mut().zip(lens) {
            (*text, rest) = rest.split_at_checked(len.into())?;
        }
        let [id, name, pod, pod_namespace, image, runtime] = texts;
        Some(Texts { id, name, pod, pod_namespace, image, runtime })
    }
}

impl Default for TextBuffer {
    fn default() -> Self {
        Self::new()
    }
}

/// The texts of one row; empty where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Texts<'a> {
    /// The container's id.
    pub id: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its pod's name.
    pub pod: &'a str,
    /// Its pod's namespace.
    pub pod_namespace: &'a str,
    /// Its image's name.
    pub image: &'a str,
    /// Its runtime's name.
    pub runtime: &'a str,
}

/// Why words are not a plane that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// There is less than a header.
    TooShort {
        /// Bytes that there are.
        len: u64,
    },
    /// It begins with something else.
    NoPlane,
    /// Another version of the layout.
    Version {
        /// Its version; ours is [`VERSION`].
        theirs: u32,
    },
    /// The same version, but other fields.
    Schema {
        /// Its schema; ours is [`SCHEMA`].
        theirs: u64,
    },
    /// The header says what cannot be.
    Header {
        /// Which of its fields.
        field: &'static str,
        /// What it says.
        says: u64,
    },
    /// There is less than the header says.
    Cut {
        /// Bytes that there are.
        len: u64,
        /// Bytes that there should be.
        file_len: u64,
    },
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::TooShort { len } => {
                write!(f, "{len} bytes are too few for a plane: start the tracker, which makes a new one")
            }
            Unreadable::NoPlane => f.write_str("this is no plane: it does not begin with `TRKPLANE`; check the path"),
            Unreadable::Version { theirs } => write!(
                f,
                "the plane has layout version {theirs}, and this reader reads version {VERSION}: use a reader of the same \
                 release as the tracker that writes the plane"
            ),
            Unreadable::Schema { theirs } => write!(
                f,
                "the plane has schema {theirs:#018x}, and this reader reads {SCHEMA:#018x}: use a reader of the same \
                 release as the tracker that writes the plane"
            ),
            Unreadable::Header { field, says } => write!(
                f,
                "the plane is broken: its header has {field} = {says}; restart the tracker, which makes a new one"
            ),
            Unreadable::Cut { len, file_len } => write!(
                f,
                "the plane was cut: {len} of {file_len} bytes are left; restart the tracker, which makes a new one"
            ),
        }
    }
}

impl core::error::Error for Unreadable {}

/// Where everything is, as a header says and as has been checked. In words, not bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    rows: Range<usize>,
    indexes: [Range<usize>; 4],
    texts: Range<usize>,
    entries: u32,
    len: usize,
}

impl Places {
    /// Checks that words begin with a header of this version, and that all that it names lies within `len` bytes.
    ///
    /// `words` may be the header alone; places and sizes do not change while a plane lives.
    pub fn check<W: Word>(words: Words<'_, W>, len: u64) -> Result<Places, Unreadable> {
        if words.len() < Header::LEN / WORD_LEN || len < Header::LEN as u64 {
            return Err(Unreadable::TooShort { len });
        }
        let long = |at: usize| words[at / WORD_LEN].load_relaxed();
        if long(offset_of!(Header, magic)) != u64::from_le_bytes(MAGIC) {
            return Err(Unreadable::NoPlane);
        }
        let theirs = half(words, offset_of!(Header, version));
        if theirs != VERSION {
            return Err(Unreadable::Version { theirs });
        }
        let theirs = long(offset_of!(Header, schema));
        if theirs != SCHEMA {
            return Err(Unreadable::Schema { theirs });
        }
        macro_rules! exactly {
            ($($field:ident == $wanted:expr;)*) => {
                $(let says = half(words, offset_of!(Header, $field));
                if says as usize != $wanted {
                    return Err(Unreadable::Header { field: stringify!($field), says: says.into() });
                })*
            };
        }
        exactly! {
            header_len == Header::LEN;
            row_len == Row::LEN;
            entry_len == Entry::LEN;
        }
        let file_len = long(offset_of!(Header, file_len));
        if file_len > len {
            return Err(Unreadable::Cut { len, file_len });
        }
        let capacity = half(words, offset_of!(Header, capacity));
        if capacity == 0 || capacity as usize > Geometry::MAX_CAPACITY {
            return Err(Unreadable::Header { field: "capacity", says: capacity.into() });
        }
        let entries = half(words, offset_of!(Header, entries));
        if !entries.is_power_of_two() || entries as usize > 4 * Geometry::MAX_CAPACITY {
            return Err(Unreadable::Header { field: "entries", says: entries.into() });
        }
        let section = |field: &'static str, at: usize, size: u64| {
            let begin = long(at);
            let is_inside = begin >= Header::LEN as u64
                && begin.is_multiple_of(WORD_LEN as u64)
                && size.is_multiple_of(WORD_LEN as u64)
                && begin.checked_add(size).is_some_and(|end| end <= file_len);
            match is_inside {
                true => Ok((begin / WORD_LEN as u64) as usize..((begin + size) / WORD_LEN as u64) as usize),
                false => Err(Unreadable::Header { field, says: begin }),
            }
        };
        let index_len = u64::from(entries) * Entry::LEN as u64;
        Ok(Places {
            rows: section("rows_at", offset_of!(Header, rows_at), u64::from(capacity) * Row::LEN as u64)?,
            indexes: [
                section("mntns_at", offset_of!(Header, mntns_at), index_len)?,
                section("netns_at", offset_of!(Header, netns_at), index_len)?,
                section("cgroups_at", offset_of!(Header, cgroups_at), index_len)?,
                section("pids_at", offset_of!(Header, pids_at), index_len)?,
            ],
            texts: section("texts_at", offset_of!(Header, texts_at), long(offset_of!(Header, texts_len)))?,
            entries,
            len: (file_len / WORD_LEN as u64) as usize,
        })
    }

    /// How many rows there are.
    pub fn capacity(&self) -> u32 {
        (self.rows.len() / ROW_WORDS) as u32
    }

    /// How many bytes there are to read: what the header says, which is not more than there are.
    pub fn file_len(&self) -> usize {
        self.len * WORD_LEN
    }
}

const ROW_WORDS: usize = Row::LEN / WORD_LEN;
const ENTRY_WORDS: usize = Entry::LEN / WORD_LEN;
/// What a [`Found`] is made of.
const HEAD_WORDS: usize = 8;

/// A plane's words, to look up in.
#[derive(Debug)]
pub struct Tables<'a, W> {
    words: Words<'a, W>,
    places: &'a Places,
}

impl<W> Clone for Tables<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Tables<'_, W> {}

impl<'a, W: Word> Tables<'a, W> {
    /// Of the words that `places` were checked for; `None` where there are fewer.
    #[inline]
    pub fn new(words: Words<'a, W>, places: &'a Places) -> Option<Self> {
        (words.len() >= places.len).then_some(Tables { words, places })
    }

    /// What `key` means in the index by mount ns or by init pid, where it is one container's at a time.
    #[inline]
    pub fn one(&self, index: Index, key: u64, when: When) -> Answer<Found> {
        if self.is_host(index, key) {
            return Answer::Host;
        }
        let mut walk = self.walk(index, key, when);
        match walk.next() {
            // Nobody else holds the number at that time, so it is nobody that may be told of.
            Some(found) if found.is_excluded() => Answer::Unknown,
            Some(found) => Answer::Container(found),
            None if walk.busy > 0 => Answer::Busy,
            None => Answer::Unknown,
        }
    }

    /// All who share `key` in the index by net ns or by cgroup id.
    ///
    /// A container's own sub-namespaces, and others that nobody vouches for, are left out of a cgroup where somebody
    /// vouches for another.
    pub fn all(&self, index: Index, key: u64, when: When) -> Group<'a, W> {
        if self.is_host(index, key) {
            return Group::Host;
        }
        let mut walk = self.walk(index, key, when);
        let only_vouched = index == Index::Cgroup && walk.clone().any(|found| found.is_vouched_for());
        // Its retries are the look-up's own.
        walk.retries = RETRIES;
        Group::Containers(Members { walk, only_vouched, excluded: 0 })
    }

    /// The row with this number as it is now: [`Answer::Unknown`] where it is free.
    pub fn row(&self, number: u32) -> Answer<Row> {
        for _ in 0..RETRIES {
            match self.read(number) {
                Read::Row(row) if row.flags & Row::IN_USE == 0 => return Answer::Unknown,
                Read::Row(row) => return Answer::Container(row),
                Read::Outside => return Answer::Unknown,
                Read::Changing => W::pause(),
            }
        }
        Answer::Busy
    }

    /// The whole row, if it is still as it was found: else look it up again.
    pub fn whole(&self, found: &Found) -> Option<Row> {
        match self.read(found.number) {
            Read::Row(row) => (row.lock == found.lock).then_some(row),
            Read::Changing | Read::Outside => None,
        }
    }

    /// Copies the texts of a row, if it is still as it was found; `None` where it is not, or where its texts are broken:
    /// look it up again.
    pub fn texts<'t>(&self, found: &Found, buffer: &'t mut TextBuffer) -> Option<(Row, Texts<'t>)> {
        let row = self.whole(found)?;
        Some((row, self.texts_of(found.number, &row, buffer)?))
    }

    /// The texts of a row that was read whole, if it is still as it was.
    pub fn texts_of<'t>(&self, number: u32, row: &Row, buffer: &'t mut TextBuffer) -> Option<Texts<'t>> {
        self.copy_texts(number, row, buffer)?;
        buffer.cut(row)
    }

    /// Looks up, and copies the whole row and the texts of what it finds: all of one moment.
    pub fn one_with_texts<'t>(
        &self,
        index: Index,
        key: u64,
        when: When,
        buffer: &'t mut TextBuffer,
    ) -> Answer<(Row, Texts<'t>)> {
        for _ in 0..RETRIES {
            let found = match self.one(index, key, when) {
                Answer::Container(found) => found,
                other => return other.map(|_| unreachable!("the container is in the arm above")),
            };
            let row = self.whole(&found).filter(|row| self.copy_texts(found.number, row, buffer).is_some());
            if let Some(row) = row {
                return buffer.cut(&row).map_or(Answer::Busy, |texts| Answer::Container((row, texts)));
            }
            W::pause();
        }
        Answer::Busy
    }

    /// A field of the header that is a `u32`.
    #[inline]
    pub fn header_half(&self, at: usize) -> u32 {
        half(self.words, at)
    }

    /// A field of the header that is a `u64`.
    #[inline]
    pub fn header_word(&self, at: usize) -> u64 {
        self.words[at / WORD_LEN].load_relaxed()
    }

    #[inline]
    fn is_host(&self, index: Index, key: u64) -> bool {
        let own = match index {
            Index::Mntns => self.header_half(offset_of!(Header, host_mntns)).into(),
            Index::Netns => self.header_half(offset_of!(Header, host_netns)).into(),
            Index::Cgroup => self.header_word(offset_of!(Header, host_cgroup)),
            Index::Pid => 0,
        };
        key == own && key != 0
    }

    #[inline]
    fn walk(&self, index: Index, key: u64, when: When) -> Walk<'a, W> {
        // 0 is nobody's number, and what free places have.
        Walk { tables: *self, index, key, when, at: 0, is_over: key == 0, retries: RETRIES, busy: 0 }
    }

    #[inline]
    fn row_words(&self, number: u32) -> Option<&'a [W]> {
        let at = self.places.rows.start + number as usize * ROW_WORDS;
        if number >= self.places.capacity() {
            return None;
        }
        self.words.get(at..at + Row::WORDS)
    }

    /// Reads a row once.
    fn read(&self, number: u32) -> Read<Row> {
        let Some(words) = self.row_words(number) else { return Read::Outside };
        let Some(noted) = word::begin_read(&words[0]) else { return Read::Changing };
        let mut copy = [noted; Row::WORDS];
        for (copy, word) in copy.iter_mut().zip(words).skip(1) {
            *copy = word.load_relaxed();
        }
        match word::end_read(&words[0], noted) {
            true => Read::Row(Row::from_words(copy)),
            false => Read::Changing,
        }
    }

    /// Reads the beginning of a row once, and what it says of an index: its key and interval there. `also` is asked
    /// while the row is known not to change.
    #[inline]
    fn read_head(&self, number: u32, index: Index, also: impl FnOnce() -> bool) -> Read<(Found, u64, u64, u64)> {
        let Some(words) = self.row_words(number) else { return Read::Outside };
        let Some(noted) = word::begin_read(&words[0]) else { return Read::Changing };
        let is_so = also();
        let mut head = [noted; HEAD_WORDS];
        for (head, word) in head.iter_mut().zip(words).skip(1) {
            *head = word.load_relaxed();
        }
        let found = Found::from_head(number, head);
        // Only what is needed: the second cache line stays untouched for the namespaces.
        let long = |at: usize| words[at / WORD_LEN].load_relaxed();
        let (key, opened, closed) = match index {
            Index::Mntns => (found.mntns.into(), found.opened, found.closed),
            Index::Netns => (found.netns.into(), found.opened, found.closed),
            Index::Cgroup => (long(offset_of!(Row, cgroup)), found.opened, found.closed),
            Index::Pid => (found.pid.into(), long(offset_of!(Row, init_opened)), long(offset_of!(Row, init_closed))),
        };
        match word::end_read(&words[0], noted) && is_so {
            true => Read::Row((found, key, opened, closed)),
            false => Read::Changing,
        }
    }

    /// `None` where the row has changed since, or where its texts are nowhere that texts may be.
    fn copy_texts(&self, number: u32, row: &Row, buffer: &mut TextBuffer) -> Option<()> {
        let len = row.text_lens().iter().map(|len| usize::from(*len)).sum();
        word::copy_bytes(self.text_words(number, row, len)?, 0, &mut buffer.0[..len]);
        let lock = self.row_words(number)?.first()?;
        word::end_read(lock, row.lock).then_some(())
    }

    /// Where the texts of a row are, if that is a place where texts may be.
    fn text_words(&self, number: u32, row: &Row, len: usize) -> Option<&'a [W]> {
        if len > TEXT_MAX || row.text_len as usize != len || !row.text_at.is_multiple_of(WORD_LEN as u64) {
            return None;
        }
        let at = usize::try_from(row.text_at / WORD_LEN as u64).ok()?;
        let end = at.checked_add(len.div_ceil(WORD_LEN))?;
        let inline = self.places.rows.start + number as usize * ROW_WORDS + Row::WORDS;
        let is_inline = at == inline && len <= TEXT_INLINE;
        let is_slot = at >= self.places.texts.start && end <= self.places.texts.end;
        (is_inline || is_slot || len == 0).then(|| self.words.get(at..end))?
    }
}

enum Read<T> {
    Row(T),
    Changing,
    Outside,
}

/// Everything that an index has for one key and time.
#[derive(Debug)]
struct Walk<'a, W> {
    tables: Tables<'a, W>,
    index: Index,
    key: u64,
    when: When,
    at: u32,
    is_over: bool,
    retries: u32,
    /// Rows that could not be read.
    busy: u32,
}

impl<W> Clone for Walk<'_, W> {
    fn clone(&self) -> Self {
        Walk { ..*self }
    }
}

impl<W: Word> Walk<'_, W> {
    /// Whether to try again.
    fn may_retry(&mut self) -> bool {
        let may = self.retries > 0;
        self.retries = self.retries.saturating_sub(1);
        W::pause();
        may
    }
}

impl<W: Word> Iterator for Walk<'_, W> {
    type Item = Found;

    #[inline]
    fn next(&mut self) -> Option<Found> {
        let Tables { words, places } = self.tables;
        let index = words.get(places.indexes[self.index as usize].clone())?;
        while !self.is_over {
            let place = Entry::place(self.key, self.at, places.entries) as usize * ENTRY_WORDS;
            let [key, opened, closed, tail] = index.get(place..place + ENTRY_WORDS)? else { return None };
            let mut found = None;
            // Again, while what is at this place changes.
            loop {
                let (number, passed) = split(tail.load_relaxed());
                self.is_over = passed == 0;
                // Both may be of two states. But an interval that is wanted before and after a change looks so meanwhile.
                if key.load_relaxed() != self.key || !self.when.is_within(opened.load_relaxed(), closed.load_relaxed())
                {
                    break;
                }
                // Of entries, only those of the row cannot change while the row does not.
                let is_still = || key.load_relaxed() == self.key && split(tail.load_relaxed()).0 == number;
                match self.tables.read_head(number, self.index, is_still) {
                    Read::Row((row, key, opened, closed)) => {
                        if row.flags & Row::IN_USE == 0 || key != self.key {
                            // No writer of ours leaves an entry for another row.
                            self.busy += 1;
                        } else if self.when.is_within(opened, closed) {
                            found = Some(row);
                        }
                        break;
                    }
                    Read::Changing if self.may_retry() => {}
                    Read::Changing | Read::Outside => {
                        self.busy += 1;
                        break;
                    }
                }
            }
            self.at += 1;
            self.is_over |= self.at >= places.entries;
            if found.is_some() {
                return found;
            }
        }
        None
    }
}

/// An entry's last word: its row, and how many entries were put further along.
#[inline]
fn split(tail: u64) -> (u32, u32) {
    (tail as u32, (tail >> 32) as u32)
}

/// The containers that share a number, in no order. Each is as it was at one moment; they need not be of the same one.
#[derive(Debug)]
pub struct Members<'a, W> {
    walk: Walk<'a, W>,
    only_vouched: bool,
    excluded: u32,
}

impl<W> Clone for Members<'_, W> {
    fn clone(&self) -> Self {
        Members { walk: self.walk.clone(), ..*self }
    }
}

impl<W> Members<'_, W> {
    /// How many were passed that share the number, too, but that the owner's configuration excludes: an event with this
    /// number may be theirs.
    pub fn excluded(&self) -> u32 {
        self.excluded
    }

    /// How many were passed that could not be read.
    pub fn busy(&self) -> u32 {
        self.walk.busy
    }
}

impl<W: Word> Iterator for Members<'_, W> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            let found = self.walk.next()?;
            if self.only_vouched && !found.is_vouched_for() {
                continue;
            }
            if !found.is_excluded() {
                return Some(found);
            }
            self.excluded += 1;
        }
    }
}

const _: () = {
    // `Found::from_head` and the layout say the same.
    assert!(offset_of!(Row, flags) == 8 && offset_of!(Row, uses) == 12);
    assert!(offset_of!(Row, mntns) == 16 && offset_of!(Row, netns) == 20);
    assert!(offset_of!(Row, pidns) == 24 && offset_of!(Row, pid) == 28);
    assert!(offset_of!(Row, opened) == 32 && offset_of!(Row, closed) == 40 && offset_of!(Row, generation) == 48);
    assert!(offset_of!(Row, kind) == 56 && offset_of!(Row, state) == 57 && offset_of!(Row, grade) == 58);
    assert!(offset_of!(Row, exit_code) == 60);
    // One cache line.
    assert!(HEAD_WORDS * WORD_LEN == 64 && Row::LEN.is_multiple_of(64) && Header::LEN.is_multiple_of(64));
};
