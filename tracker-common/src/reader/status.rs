//! Who writes a plane, and whether what it says is still true.

use std::format;
use std::fs;
use std::mem::offset_of;
use std::time::Duration;

use super::Plane;
use crate::plane::{Header, OLD_NS};

/// Whether somebody keeps a plane true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Its owner was seen within the last seconds.
    Fresh,
    /// Its owner has not been seen for a while, but is there: stopped, or starved. What the plane says was true then.
    Old,
    /// Its owner is no more, and did not say so: it was killed, or crashed. What the plane says was true then.
    Gone,
    /// Its owner ended in an orderly way. What the plane says was true then.
    Stopped,
    /// Another file has taken its place: open the path again.
    Superseded,
    /// The file was cut under this reader: open the path again.
    Broken,
}

impl Condition {
    /// The name of it.
    pub fn name(self) -> &'static str {
        match self {
            Condition::Fresh => "fresh",
            Condition::Old => "old",
            Condition::Gone => "gone",
            Condition::Stopped => "stopped",
            Condition::Superseded => "superseded",
            Condition::Broken => "broken",
        }
    }
}

/// What the header says, at one moment but for what changed meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Whether somebody keeps the plane true.
    pub condition: Condition,
    /// Since when its owner was not seen.
    pub age: Duration,
    /// The process that writes, in the pid namespace that it has seen itself in.
    pub owner_pid: u32,
    /// Its start time, in clock ticks since boot.
    pub owner_start: u64,
    /// Raised by each new owner.
    pub epoch: u32,
    /// Whether a new owner has not yet compared all rows with what it found.
    pub is_adopting: bool,
    /// Number of the last change of the owner's collection.
    pub sequence: u64,
    /// How many rows there are.
    pub capacity: u32,
    /// How many of them are in use.
    pub rows: u32,
    /// How many of those have exited.
    pub tombstones: u32,
    /// Containers that wait for room.
    pub waiting: u32,
    /// Containers that found no room, ever.
    pub refused: u64,
    /// Tombstones that made room before their time.
    pub evicted: u64,
    /// Rows whose texts were cut, ever.
    pub truncated: u64,
}

impl Plane {
    /// Who writes this plane, and whether what it says is still true. Looks at the path, and reads one or two small files
    /// of `/proc` where the owner was not seen.
    pub fn status(&self) -> Status {
        let tables = self.tables();
        let half = |at| tables.header_half(at);
        let long = |at| tables.header_word(at);
        let flags = half(offset_of!(Header, flags));
        let age_ns = now_ns().saturating_sub(long(offset_of!(Header, heartbeat)));
        let owner_pid = half(offset_of!(Header, owner_pid));
        let owner_start = long(offset_of!(Header, owner_start));
        let condition = match () {
            () if flags & Header::SUPERSEDED != 0 || self.is_replaced() => Condition::Superseded,
            () if flags & Header::STOPPED != 0 => Condition::Stopped,
            () if age_ns < OLD_NS => Condition::Fresh,
            () if is_there(owner_pid, owner_start) => Condition::Old,
            () => Condition::Gone,
        };
        let status = Status {
            condition,
            age: Duration::from_nanos(age_ns),
            owner_pid,
            owner_start,
            epoch: half(offset_of!(Header, epoch)),
            is_adopting: flags & Header::ADOPTING != 0,
            sequence: long(offset_of!(Header, sequence)),
            capacity: self.places.capacity(),
            rows: half(offset_of!(Header, rows)),
            tombstones: half(offset_of!(Header, tombstones)),
            waiting: half(offset_of!(Header, waiting)),
            refused: long(offset_of!(Header, refused)),
            evicted: long(offset_of!(Header, evicted)),
            truncated: long(offset_of!(Header, truncated)),
        };
        // After all reads, any of which may have found that there is nothing any more. What was cut within a page reads as
        // zeros there.
        let there = self.there();
        let is_cut =
            there.as_ref().is_some_and(|there| self.is_same(there) && there.len() < self.places.file_len() as u64);
        match is_cut || self.is_broken() {
            true => Status { condition: Condition::Broken, ..status },
            false => status,
        }
    }
}

/// The time that planes speak of: ns of `CLOCK_BOOTTIME`.
pub fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for writes; the clock is there since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Whether the process that started then is still running. A zombie is not: it will never write again.
fn is_there(pid: u32, start_ticks: u64) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The program's name stands in parentheses and may contain anything, further ones too.
    let Some((_, after_name)) = stat.rsplit_once(')') else { return false };
    let mut fields = after_name.split_ascii_whitespace();
    let is_alive = !matches!(fields.next(), Some("Z" | "X") | None);
    // The third field is the first after the name; the start time is the 22nd.
    is_alive && fields.nth(18).and_then(|ticks| ticks.parse().ok()) == Some(start_ticks)
}
