//! The plane: tables that other programs look up in, without asking the tracker and even while it restarts.
//!
//! For user space it is one file, mapped read-only by readers; `docs/plane.md` tells all that somebody needs who writes
//! a reader. For BPF programs it is a set of pinned maps with the same row numbers ([`BpfRow`], and
//! [`Slot`](crate::table::Slot) by mount namespace).
//!
//! ```text
//!  header │ rows: one per container │ index by mount ns │ by net ns │ by cgroup id │ by init pid │ texts
//! ```
//!
//! Everything is little-endian, aligned to its size, without padding and without pointers: places in the file are byte
//! offsets from its beginning. All of it is written by one process, in units of [`WORD_LEN`] bytes.
//!
//! A row is under a *sequence lock*, its first word: odd while the row or one of its index entries is being changed, and
//! never the same again afterwards. An index entry never moves while it is valid. See [`word`] for the protocol.

use core::mem::{offset_of, size_of};

use word::Word;

pub mod lookup;
pub mod word;

/// What a plane begins with.
pub const MAGIC: [u8; 8] = *b"TRKPLANE";

/// The version of this layout. A reader refuses any other.
pub const VERSION: u32 = 1;

/// Where the plane is by default.
pub const PATH: &str = "/run/tracker/plane";

/// The unit in which the plane is read and written, atomically.
pub const WORD_LEN: usize = 8;

/// `closed` of an interval that has not ended.
pub const OPEN: u64 = u64::MAX;

/// How often the owner writes its heartbeat.
pub const HEARTBEAT_NS: u64 = 1_000_000_000;

/// After this long without a heartbeat the owner counts as gone: what the plane says is *old*. It may be stopped, or slow.
pub const OLD_NS: u64 = 5 * HEARTBEAT_NS;

macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty = $about:literal,)* })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub struct $name { $(#[doc = $about] pub $field: $type,)* }

            impl $name {
                /// Its fields, in order, without holes.
                pub const FIELDS: &'static [Field] = &[
                    $(Field {
                        name: stringify!($field),
                        at: offset_of!($name, $field),
                        len: size_of::<$type>(),
                        about: $about,
                    },)*
                ];

                const fn is_whole() -> bool {
                    covers(Self::FIELDS, size_of::<Self>())
                }
            }
        )*
    };
}

/// A field of one of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Bytes from the beginning of its table's item.
    pub at: usize,
    /// Its size in bytes.
    pub len: usize,
    /// What it is.
    pub about: &'static str,
}

tables! {
    /// What the plane begins with: one page.
    ///
    /// Places and sizes do not change while the file lives; the rest does.
    Header {
        magic: [u8; 8] = "`TRKPLANE`.",
        version: u32 = "Version of the layout.",
        header_len: u32 = "Size of this header.",
        schema: u64 = "Hash over names, places and sizes of all fields.",
        file_len: u64 = "Size of the file.",
        boot_id: [u8; 16] = "The boot that all times belong to: `/proc/sys/kernel/random/boot_id` as 16 bytes.",
        capacity: u32 = "How many rows there are.",
        row_len: u32 = "Bytes from one row to the next.",
        rows_at: u64 = "Where rows begin.",
        entries: u32 = "Entries of each index; a power of two.",
        entry_len: u32 = "Bytes from one entry to the next.",
        mntns_at: u64 = "Where the index by mount ns begins.",
        netns_at: u64 = "Where the index by net ns begins.",
        cgroups_at: u64 = "Where the index by cgroup id begins.",
        pids_at: u64 = "Where the index by init pid begins.",
        texts_at: u64 = "Where texts begin that are too long for their row.",
        texts_len: u64 = "Size of all of those.",
        owner_pid: u32 = "The owner: the process that writes.",
        epoch: u32 = "Raised by each new owner.",
        owner_start: u64 = "Start time of the owner, in clock ticks since boot (field 22 of `/proc/PID/stat`).",
        heartbeat: u64 = "When the owner was last seen, in ns of `CLOCK_BOOTTIME`: written each second.",
        sequence: u64 = "Number of the last change of the owner's collection; begins anew with each epoch.",
        changes: u32 = "Counts publications, and wraps: the futex that readers wait on.",
        flags: u32 = "See the constants `Header::…`.",
        host_mntns: u32 = "The host's own mount ns.",
        host_netns: u32 = "The host's own net ns.",
        host_cgroup: u64 = "The root of the host's cgroup v2 hierarchy; 0 where there is none.",
        rows_used: u32 = "Rows from here on have never been used.",
        rows: u32 = "Rows in use.",
        tombstones: u32 = "Rows in use of containers that have exited.",
        waiting: u32 = "Containers that found no room and wait for it.",
        refused: u64 = "Containers that found no room, ever.",
        evicted: u64 = "Tombstones that made room before their time.",
        truncated: u64 = "Rows whose texts were cut, ever.",
    }

    /// One container, or one that has exited and may still be asked for. Followed by [`TEXT_INLINE`] bytes for its texts.
    Row {
        lock: u64 = "The sequence lock: odd while the row is being changed.",
        flags: u32 = "See the constants `Row::…`; 0 where the row is free.",
        uses: u32 = "How many containers have had this row.",
        mntns: u32 = "Inode number of its mount ns; 0 is unknown, as in all that follow.",
        netns: u32 = "Inode number of its net ns.",
        pidns: u32 = "Inode number of its pid ns.",
        pid: u32 = "Its first process, in the host's pid ns.",
        opened: u64 = "Mount ns, net ns and cgroup are its own from this time on, in ns of `CLOCK_BOOTTIME`, as all times.",
        closed: u64 = "… and before this time; all ones while it lasts.",
        generation: u64 = "Never-reused id of its mount ns; 0 where the kernel has none.",
        kind: u8 = "What it is: 1 container, 2 sandbox, 3 unmanaged, 4 sandboxed-process.",
        state: u8 = "Where in its life it is: 1 provisional, 2 created, 3 running, 4 paused, 5 exited, 6 aborted.",
        grade: u8 = "How early it was known: 1 held, 2 let-go, 3 first-exec, 4 observed.",
        reserved: u8 = "0.",
        exit_code: u32 = "What its first process ended with, where `Row::EXIT_KNOWN` is set; 128 + signal when signalled.",
        init_opened: u64 = "`pid` is its own from this time on.",
        init_closed: u64 = "… and before this time; all ones while it lasts.",
        cgroup: u64 = "Id of its cgroup in the v2 hierarchy.",
        start_ticks: u64 = "Start time of its first process, in clock ticks since boot (field 22 of `/proc/PID/stat`).",
        born: u64 = "When it was born.",
        started: u64 = "When its first process executed its entrypoint.",
        died: u64 = "When its first process ended.",
        sequence: u64 = "Number of the change that made this row what it is.",
        instance: u64 = "Which run of the container it is; unique within one epoch.",
        text_at: u64 = "Where in the file its texts are: one after the other, in the order of the lengths that follow, UTF-8.",
        text_len: u32 = "Bytes of all its texts.",
        id_len: u16 = "Bytes of its id.",
        name_len: u16 = "Bytes of its name.",
        pod_len: u16 = "Bytes of its pod's name.",
        pod_namespace_len: u16 = "Bytes of its pod's namespace.",
        image_len: u16 = "Bytes of its image's name.",
        runtime_len: u16 = "Bytes of its runtime's name.",
        reserved_end: [u64; 4] = "0.",
    }

    /// One place of an index.
    ///
    /// A key may have several: those who held the number one after the other, or who share it.
    Entry {
        key: u64 = "The number; 0 where the place is free.",
        opened: u64 = "It means the row from this time on.",
        closed: u64 = "… and before this time; all ones while it lasts.",
        row: u32 = "The row.",
        passed: u32 = "How many entries were put further along because this place was taken. 0: there is nothing further along.",
    }

    /// A row as BPF programs see it: value of the pinned array `rows`, whose keys are the plane's row numbers.
    BpfRow {
        lock: u64 = "The sequence lock: odd while the row is being changed.",
        generation: u64 = "Never-reused id of its mount ns, else its birth: the same as `Slot::generation` where the row is meant.",
        cgroup: u64 = "Id of its cgroup in the v2 hierarchy.",
        flags: u32 = "See the constants `Row::…`; 0 where the row is free.",
        uses: u32 = "How many containers have had this row.",
        kind: u8 = "As in the file.",
        state: u8 = "As in the file.",
        grade: u8 = "As in the file.",
        id_len: u8 = "Bytes of the id.",
        name_len: u8 = "Bytes of the name.",
        pod_len: u8 = "Bytes of the pod's name.",
        pod_namespace_len: u8 = "Bytes of the pod's namespace.",
        reserved: u8 = "0.",
        id: [u8; 64] = "Its id, cut where it is longer (`Row::TRUNCATED`).",
        name: [u8; 64] = "Its name, likewise.",
        pod: [u8; 64] = "Its pod's name, likewise.",
        pod_namespace: [u8; 64] = "Its pod's namespace, likewise.",
    }
}

impl Header {
    /// Size of the header in the file.
    pub const LEN: usize = 4096;

    /// In [`Header::flags`]: another file has taken this one's place; open the path again.
    pub const SUPERSEDED: u32 = 1;
    /// In [`Header::flags`]: the owner ended in an orderly way.
    pub const STOPPED: u32 = 2;
    /// In [`Header::flags`]: a new owner has not yet compared all rows with what it found.
    pub const ADOPTING: u32 = 4;
}

impl Row {
    /// Bytes from one row to the next: the fields, and room for texts.
    pub const LEN: usize = 512;

    /// In [`Row::flags`]: the row is in use.
    pub const IN_USE: u32 = 1;
    /// In [`Row::flags`]: a text was cut.
    pub const TRUNCATED: u32 = 2;
    /// In [`Row::flags`]: left out of answers by the owner's configuration, and without texts. It shares its net ns or
    /// cgroup with others, so an event with that number may be its.
    pub const EXCLUDED: u32 = 4;
    /// In [`Row::flags`]: written by an earlier owner, and not seen yet by this one.
    pub const INHERITED: u32 = 8;
    /// In [`Row::flags`]: `exit_code` is known.
    pub const EXIT_KNOWN: u32 = 16;

    /// A free row.
    pub const FREE: Row = Row {
        lock: 0,
        flags: 0,
        uses: 0,
        mntns: 0,
        netns: 0,
        pidns: 0,
        pid: 0,
        opened: 0,
        closed: 0,
        generation: 0,
        kind: 0,
        state: 0,
        grade: 0,
        reserved: 0,
        exit_code: 0,
        init_opened: 0,
        init_closed: 0,
        cgroup: 0,
        start_ticks: 0,
        born: 0,
        started: 0,
        died: 0,
        sequence: 0,
        instance: 0,
        text_at: 0,
        text_len: 0,
        id_len: 0,
        name_len: 0,
        pod_len: 0,
        pod_namespace_len: 0,
        image_len: 0,
        runtime_len: 0,
        reserved_end: [0; 4],
    };

    /// Words of the fields.
    pub const WORDS: usize = size_of::<Row>() / WORD_LEN;

    /// A row from its words.
    pub fn from_words(words: [u64; Self::WORDS]) -> Row {
        // SAFETY: both have the same size and alignment, and consist of integers, for which every bit pattern is a value.
        unsafe { core::mem::transmute(words) }
    }

    /// Its words.
    pub fn to_words(self) -> [u64; Self::WORDS] {
        // SAFETY: as above; there is no padding.
        unsafe { core::mem::transmute(self) }
    }

    /// Lengths of its texts, in their order: id, name, pod, pod namespace, image, runtime.
    pub fn text_lens(&self) -> [u16; TEXTS] {
        [self.id_len, self.name_len, self.pod_len, self.pod_namespace_len, self.image_len, self.runtime_len]
    }

    /// The name of [`Row::kind`].
    pub fn kind_name(&self) -> Option<&'static str> {
        KINDS.get(usize::from(self.kind).checked_sub(1)?).copied()
    }

    /// The name of [`Row::state`].
    pub fn state_name(&self) -> Option<&'static str> {
        STATES.get(usize::from(self.state).checked_sub(1)?).copied()
    }

    /// The name of [`Row::grade`].
    pub fn grade_name(&self) -> Option<&'static str> {
        GRADES.get(usize::from(self.grade).checked_sub(1)?).copied()
    }
}

/// Texts of a row.
pub const TEXTS: usize = 6;
/// Names of [`Row::kind`], from 1 on.
pub const KINDS: [&str; 4] = ["container", "sandbox", "unmanaged", "sandboxed-process"];
/// Names of [`Row::state`], from 1 on.
pub const STATES: [&str; 6] = ["provisional", "created", "running", "paused", "exited", "aborted"];
/// Names of [`Row::grade`], from 1 on.
pub const GRADES: [&str; 4] = ["held", "let-go", "first-exec", "observed"];

/// Bytes in a row for its texts.
pub const TEXT_INLINE: usize = Row::LEN - size_of::<Row>();

/// The longest texts of one row, taken together. Longer ones are cut.
pub const TEXT_MAX: usize = 4096;

impl Entry {
    /// Size in the file.
    pub const LEN: usize = size_of::<Entry>();

    /// The `at`-th place to look for `key` in an index of `entries` places, a power of two. The first 2^n places of a key
    /// are different from each other; keys that share one place part at the next.
    #[inline]
    pub const fn place(key: u64, at: u32, entries: u32) -> u32 {
        let hash = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let (first, step) = ((hash >> 32) as u32, hash as u32 | 1);
        first.wrapping_add(at.wrapping_mul(step)) & (entries - 1)
    }
}

/// The four indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// By mount ns: one container at a time.
    Mntns,
    /// By net ns: all that share it.
    Netns,
    /// By cgroup id: all that share it.
    Cgroup,
    /// By init pid: one container at a time.
    Pid,
}

impl Index {
    /// All of them, in the order in which they lie in the file.
    pub const ALL: [Index; 4] = [Index::Mntns, Index::Netns, Index::Cgroup, Index::Pid];

    /// A row's number in this index; 0 where it has none.
    pub fn key(self, row: &Row) -> u64 {
        match self {
            Index::Mntns => row.mntns.into(),
            Index::Netns => row.netns.into(),
            Index::Cgroup => row.cgroup,
            Index::Pid => row.pid.into(),
        }
    }

    /// The time for which the number is the row's own.
    pub fn interval(self, row: &Row) -> (u64, u64) {
        match self {
            Index::Mntns | Index::Netns | Index::Cgroup => (row.opened, row.closed),
            Index::Pid => (row.init_opened, row.init_closed),
        }
    }
}

/// Texts too long for their row lie in slots of these sizes; the number of each is a share of the capacity.
pub const TEXT_CLASSES: [TextClass; 3] =
    [TextClass { len: 512, share: 8 }, TextClass { len: 1024, share: 32 }, TextClass { len: TEXT_MAX, share: 64 }];

/// Slots of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextClass {
    /// Bytes of a slot.
    pub len: usize,
    /// There is one slot for so many rows, and at least one.
    pub share: usize,
}

impl TextClass {
    /// How many slots of it there are.
    pub const fn slots(&self, capacity: usize) -> usize {
        let slots = capacity / self.share;
        if slots == 0 { 1 } else { slots }
    }
}

/// Where everything is in a plane of a capacity. What readers learn from the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Rows.
    pub capacity: usize,
    /// Where they begin.
    pub rows_at: usize,
    /// Entries of each index.
    pub entries: usize,
    /// Where each index begins, in the order of [`Index::ALL`].
    pub indexes_at: [usize; 4],
    /// Where the slots of each class begin, in the order of [`TEXT_CLASSES`].
    pub texts_at: [usize; 3],
    /// Size of the whole.
    pub file_len: usize,
}

impl Geometry {
    /// The most rows that a plane can have.
    pub const MAX_CAPACITY: usize = 1 << 20;

    /// Of a plane with `capacity` rows: at least one, at most [`Geometry::MAX_CAPACITY`].
    pub const fn of(capacity: usize) -> Geometry {
        assert!(capacity >= 1 && capacity <= Self::MAX_CAPACITY);
        let rows_at = Header::LEN;
        // At most half full, so that places are found soon.
        let entries = (2 * capacity).next_power_of_two();
        let index_len = entries * Entry::LEN;
        let first = rows_at + capacity * Row::LEN;
        let indexes_at = [first, first + index_len, first + 2 * index_len, first + 3 * index_len];
        let mut texts_at = [0; 3];
        let mut at = first + 4 * index_len;
        let mut class = 0;
        while class < TEXT_CLASSES.len() {
            texts_at[class] = at;
            at += TEXT_CLASSES[class].len * TEXT_CLASSES[class].slots(capacity);
            class += 1;
        }
        Geometry { capacity, rows_at, entries, indexes_at, texts_at, file_len: at }
    }

    /// Where a row begins.
    pub const fn row_at(&self, row: usize) -> usize {
        self.rows_at + row * Row::LEN
    }

    /// Where a row has room for texts of its own.
    pub const fn inline_text_at(&self, row: usize) -> usize {
        self.row_at(row) + size_of::<Row>()
    }
}

/// Hash over names, places and sizes of all fields: planes with the same one are read the same way.
pub const SCHEMA: u64 = {
    let mut hash = fold_bytes(0xCBF2_9CE4_8422_2325, &MAGIC);
    hash = fold(hash, "header", Header::FIELDS);
    hash = fold(hash, "row", Row::FIELDS);
    hash = fold(hash, "entry", Entry::FIELDS);
    hash = fold(hash, "bpf_row", BpfRow::FIELDS);
    let sizes = [Header::LEN, Row::LEN, Entry::LEN, TEXT_MAX];
    let mut at = 0;
    while at < sizes.len() {
        hash = fold_bytes(hash, &(sizes[at] as u64).to_le_bytes());
        at += 1;
    }
    hash
};

/// FNV-1a.
pub(crate) const fn fold_bytes(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01B3);
        at += 1;
    }
    hash
}

const fn fold(mut hash: u64, table: &str, fields: &[Field]) -> u64 {
    hash = fold_bytes(hash, table.as_bytes());
    let mut at = 0;
    while at < fields.len() {
        hash = fold_bytes(hash, fields[at].name.as_bytes());
        hash = fold_bytes(hash, &(fields[at].at as u64).to_le_bytes());
        hash = fold_bytes(hash, &(fields[at].len as u64).to_le_bytes());
        at += 1;
    }
    hash
}

/// Whether fields lie one after the other, aligned, and fill `len` bytes.
const fn covers(fields: &[Field], len: usize) -> bool {
    let mut end = 0;
    let mut at = 0;
    while at < fields.len() {
        if fields[at].at != end {
            return false;
        }
        end += fields[at].len;
        at += 1;
    }
    end == len && len.is_multiple_of(WORD_LEN)
}

/// The words of a plane, or of a part of it.
pub type Words<'a, W> = &'a [W];

/// Reads a `u32` that is half of a word.
#[inline]
pub fn half<W: Word>(words: Words<'_, W>, at: usize) -> u32 {
    let word = words[at / WORD_LEN].load_relaxed();
    (word >> (at % WORD_LEN * 8)) as u32
}

const _: () = {
    assert!(cfg!(target_endian = "little"), "the plane is little-endian");
    assert!(Header::is_whole() && Row::is_whole() && Entry::is_whole() && BpfRow::is_whole());
    assert!(size_of::<Header>() <= Header::LEN && size_of::<Row>() == 192 && Entry::LEN == 32);
    assert!(TEXT_INLINE == 320 && size_of::<BpfRow>() == 296);
    // Waited on as a futex, and so a `u32` at a multiple of four.
    assert!(offset_of!(Header, changes) % 4 == 0);
    assert!(Geometry::of(16_384).file_len <= 16 << 20);
};
