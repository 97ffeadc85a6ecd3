//! Look-ups in a plane that another process writes: a few memory reads, without a system call, whether its owner runs or
//! not.
//!
//! ```no_run
//! use tracker_common::reader::{Answer, Plane, TextBuffer, When};
//!
//! # fn main() -> Result<(), tracker_common::reader::OpenError> {
//! let plane = Plane::open(tracker_common::plane::PATH)?;
//! let mut texts = TextBuffer::new();
//! match plane.by_mntns_with_texts(4_026_532_281, When::Now, &mut texts) {
//!     Answer::Container((row, texts)) => println!("{} ({})", texts.name, row.pid),
//!     Answer::Host => println!("the host itself"),
//!     Answer::Unknown => println!("nothing that the tracker knows"),
//!     Answer::Busy => println!("just being changed: try again"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A look-up gives a copy of the beginning of the container's row ([`Found`]), for one cache line of the index and one of
//! the row. The rest and the names are copied in a second step, for those who want them, and only if the row is still the
//! same: [`Plane::texts`]. The `…_with_texts` functions do both.
//!
//! All functions can be called by any number of threads at once. None panics, whatever the file contains and whatever
//! becomes of it; the reader bounds every place that it reads in the file, and outlives that the file is cut (see
//! [`mapping`], and the signal that it handles).
//!
//! To hold a plane for long, ask [`Plane::reopen_if_superseded`] now and then: a new tracker goes on with the same file
//! where it can, and else puts another one in its place.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::mem::offset_of;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use mapping::{Access, Mapping};

use crate::plane::lookup::{Group as AnyGroup, Members as AnyMembers, Places, Tables};
use crate::plane::{Geometry, Header, Index, Row, WORD_LEN};

pub use crate::plane::lookup::{Answer, Found, TextBuffer, Texts, Unreadable, When};
pub use error::{Cause, OpenError};
pub use status::{Condition, Status, now_ns};

mod error;
pub mod mapping;
mod status;

const CHANGES: usize = offset_of!(Header, changes);

/// What a number that several containers may share means.
pub type Group<'a> = AnyGroup<'a, AtomicU64>;

/// The containers that share a number.
pub type Members<'a> = AnyMembers<'a, AtomicU64>;

/// A plane, mapped read-only.
pub struct Plane {
    path: PathBuf,
    /// Device and inode of the file.
    file: (u64, u64),
    mapping: Mapping,
    places: Places,
}

impl Plane {
    /// Opens and checks the plane at a path.
    pub fn open(path: impl AsRef<Path>) -> Result<Plane, OpenError> {
        let path = path.as_ref();
        Self::open_inner(path).map_err(|cause| OpenError { path: path.into(), cause })
    }

    fn open_inner(path: &Path) -> Result<Plane, Cause> {
        let mut options = OpenOptions::new();
        // Neither follows what somebody else may have put there, nor waits for the other end of a pipe.
        options.read(true).custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(path).map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP | libc::ENXIO) => Cause::NotAFile,
            _ => Cause::Io(error),
        })?;
        let metadata = file.metadata().map_err(Cause::Io)?;
        if !metadata.is_file() {
            return Err(Cause::NotAFile);
        }
        let (len, places) = Self::check(&file, metadata.len())?;
        let mapping = Mapping::of(&file, len, Access::Read).map_err(Cause::Io)?;
        let plane = Plane { path: path.into(), file: (metadata.dev(), metadata.ino()), mapping, places };
        match plane.is_of_this_boot() {
            true => Ok(plane),
            false => Err(Cause::OtherBoot),
        }
    }

    /// Reads the header, and how much there is to be mapped.
    fn check(file: &File, len: u64) -> Result<(usize, Places), Cause> {
        if len < Header::LEN as u64 {
            return Err(Cause::Unreadable(Unreadable::TooShort { len }));
        }
        let header = Mapping::of(file, Header::LEN, Access::Read).map_err(Cause::Io)?;
        let checked = Places::check(header.words(), len);
        if header.is_broken() {
            return Err(Cause::Unreadable(Unreadable::TooShort { len: 0 }));
        }
        let places = checked.map_err(Cause::Unreadable)?;
        // `Places` bounds each part by the most that a plane can have, but not the space between them.
        let most = 2 * Geometry::of(Geometry::MAX_CAPACITY).file_len;
        match places.file_len() {
            len if len <= most => Ok((len, places)),
            len => Err(Cause::Unreadable(Unreadable::Header { field: "file_len", says: len as u64 })),
        }
    }

    /// What `ns`, inode number of a mount ns, means.
    #[inline]
    pub fn by_mntns(&self, ns: u32, when: When) -> Answer<Found> {
        self.unless_broken(self.tables().one(Index::Mntns, ns.into(), when))
    }

    /// What `pid`, of a container's first process in the host's pid ns, means.
    #[inline]
    pub fn by_pid(&self, pid: u32, when: When) -> Answer<Found> {
        self.unless_broken(self.tables().one(Index::Pid, pid.into(), when))
    }

    /// All containers that share the net ns with inode number `ns`.
    #[inline]
    pub fn by_netns(&self, ns: u32, when: When) -> Group<'_> {
        self.tables().all(Index::Netns, ns.into(), when)
    }

    /// All containers in the cgroup with this id of the v2 hierarchy; those that nobody vouches for only where they are
    /// alone.
    #[inline]
    pub fn by_cgroup(&self, id: u64, when: When) -> Group<'_> {
        self.tables().all(Index::Cgroup, id, when)
    }

    /// [`Plane::by_mntns`], with the container's texts.
    pub fn by_mntns_with_texts<'t>(&self, ns: u32, when: When, texts: &'t mut TextBuffer) -> Answer<(Row, Texts<'t>)> {
        self.unless_broken(self.tables().one_with_texts(Index::Mntns, ns.into(), when, texts))
    }

    /// [`Plane::by_pid`], with the container's texts.
    pub fn by_pid_with_texts<'t>(&self, pid: u32, when: When, texts: &'t mut TextBuffer) -> Answer<(Row, Texts<'t>)> {
        self.unless_broken(self.tables().one_with_texts(Index::Pid, pid.into(), when, texts))
    }

    /// The whole row that was found, if it has not changed since: else look it up again.
    pub fn whole(&self, found: &Found) -> Option<Row> {
        self.tables().whole(found).filter(|_| !self.is_broken())
    }

    /// The whole row that was found, and its texts; `None` where the row has changed since: look it up again.
    pub fn texts<'t>(&self, found: &Found, texts: &'t mut TextBuffer) -> Option<(Row, Texts<'t>)> {
        self.tables().texts(found, texts).filter(|_| !self.is_broken())
    }

    /// The texts of one of [`Plane::rows`]; `None` where the row has changed since.
    pub fn texts_of<'t>(&self, number: u32, row: &Row, texts: &'t mut TextBuffer) -> Option<Texts<'t>> {
        self.tables().texts_of(number, row, texts).filter(|_| !self.is_broken())
    }

    /// The row with this number as it is now; [`Answer::Unknown`] where it is free.
    pub fn row(&self, number: u32) -> Answer<Row> {
        self.unless_broken(self.tables().row(number))
    }

    /// All rows in use, but for those that the owner's configuration excludes.
    pub fn rows(&self) -> Rows<'_> {
        let used = self.tables().header_half(offset_of!(Header, rows_used));
        Rows { plane: self, next: 0, end: used.min(self.places.capacity()), busy: 0 }
    }

    /// How often something was published, for [`Plane::wait`]. Wraps.
    pub fn changes(&self) -> u32 {
        let changes = self.tables().header_half(CHANGES);
        // What is looked up afterwards is at least as new.
        fence(Ordering::Acquire);
        changes
    }

    /// Waits until something is published after [`Plane::changes`] was `seen`, and returns the new number, or the same
    /// one when the time is over. Fails where the file was cut.
    pub fn wait(&self, seen: u32, timeout: Duration) -> io::Result<u32> {
        let deadline = Instant::now() + timeout;
        loop {
            let changes = self.changes();
            if self.is_broken() {
                return Err(io::Error::other("the plane was cut: open it again"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if changes != seen || left.is_zero() {
                return Ok(changes);
            }
            let left = libc::timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(libc::time_t::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            // Not private: who wakes is another process.
            // SAFETY: the word is in our mapping, which outlives the call; `left` is a valid time.
            let waited = unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.changes_at(),
                    libc::FUTEX_WAIT,
                    seen,
                    &raw const left,
                    ptr::null::<u32>(),
                    0,
                )
            };
            if waited != 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::EINTR | libc::ETIMEDOUT) => {}
                    _ => return Err(error),
                }
            }
        }
    }

    /// Opens the path again where another file has taken this one's place, or where this one was cut, and says whether
    /// it did. Where there is no other plane to open, this one stays, with what it says.
    pub fn reopen_if_superseded(&mut self) -> Result<bool, OpenError> {
        let flags = self.tables().header_half(offset_of!(Header, flags));
        if flags & Header::SUPERSEDED == 0 && !self.is_replaced() && !self.is_broken() {
            return Ok(false);
        }
        *self = Plane::open(&self.path)?;
        Ok(true)
    }

    /// Whether the file was found to be cut under this reader: every answer is then [`Answer::Busy`] or empty.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.mapping.is_broken()
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that lies at the path now.
    fn there(&self) -> Option<Metadata> {
        std::fs::symlink_metadata(&self.path).ok()
    }

    fn is_same(&self, there: &Metadata) -> bool {
        (there.dev(), there.ino()) == self.file
    }

    /// Whether it is another one.
    fn is_replaced(&self) -> bool {
        self.there().is_some_and(|there| !self.is_same(&there))
    }

    #[inline]
    fn tables(&self) -> Tables<'_, AtomicU64> {
        Tables::new(self.mapping.words(), &self.places)
            .expect("so many words were mapped as the places were checked for")
    }

    /// Zeros are no answer.
    #[inline]
    fn unless_broken<T>(&self, answer: Answer<T>) -> Answer<T> {
        match self.is_broken() {
            true => Answer::Busy,
            false => answer,
        }
    }

    /// Where the futex is: half of a word of the header.
    fn changes_at(&self) -> *const u32 {
        let word = self.mapping.words()[CHANGES / WORD_LEN].as_ptr().cast_const();
        word.cast::<u32>().wrapping_byte_add(CHANGES % WORD_LEN)
    }

    fn is_of_this_boot(&self) -> bool {
        let Ok(text) = std::fs::read_to_string("/proc/sys/kernel/random/boot_id") else { return true };
        let Ok(ours) = u128::from_str_radix(&text.trim().replace('-', ""), 16) else { return true };
        let tables = self.tables();
        let at = offset_of!(Header, boot_id);
        let mut theirs = [0; 16];
        theirs[..8].copy_from_slice(&tables.header_word(at).to_le_bytes());
        theirs[8..].copy_from_slice(&tables.header_word(at + WORD_LEN).to_le_bytes());
        u128::from_be_bytes(theirs) == ours
    }
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plane").field("path", &self.path).field("is_broken", &self.is_broken()).finish_non_exhaustive()
    }
}

/// All rows in use with their numbers, each as it was at one moment.
#[derive(Debug)]
pub struct Rows<'a> {
    plane: &'a Plane,
    next: u32,
    end: u32,
    busy: u32,
}

impl Rows<'_> {
    /// How many were passed that could not be read.
    pub fn busy(&self) -> u32 {
        self.busy
    }
}

impl Iterator for Rows<'_> {
    type Item = (u32, Row);

    fn next(&mut self) -> Option<(u32, Row)> {
        while self.next < self.end {
            let number = self.next;
            self.next += 1;
            match self.plane.row(number) {
                Answer::Container(row) if row.flags & Row::EXCLUDED == 0 => return Some((number, row)),
                Answer::Busy => self.busy += 1,
                _ => {}
            }
        }
        None
    }
}
