//! The reader on real files: which it refuses and with which words, how it lives through one that is cut, and how it
//! waits. What is written here is the least that a plane can be; the tracker's own writer is tested where it is.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, File, OpenOptions};
use std::mem::offset_of;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tracker_common::plane::{Entry, Geometry, Header, Index, MAGIC, OPEN, Row, SCHEMA, VERSION};
use tracker_common::reader::{Answer, Condition, Group, Plane, TextBuffer, When, now_ns};

const CAPACITY: usize = 64;
const MNTNS: u32 = 4_026_532_200;

/// A file with one container, which is long enough for its last row to be on another page than its header.
struct Fixture {
    directory: TempDir,
    file: File,
    geometry: Geometry,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plane");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
        let geometry = Geometry::of(CAPACITY);
        file.set_len(geometry.file_len as u64).unwrap();
        let fixture = Fixture { directory, file, geometry };
        fixture.write_header();
        fixture.write_row(40, MNTNS, "web-1");
        fixture
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("plane")
    }

    fn set(&self, at: usize, bytes: &[u8]) {
        self.file.write_all_at(bytes, at as u64).unwrap();
    }

    fn set32(&self, at: usize, value: usize) {
        self.set(at, &u32::try_from(value).unwrap().to_le_bytes());
    }

    fn set64(&self, at: usize, value: u64) {
        self.set(at, &value.to_le_bytes());
    }

    fn write_header(&self) {
        let geometry = self.geometry;
        self.set(0, &MAGIC);
        self.set32(offset_of!(Header, version), VERSION as usize);
        self.set32(offset_of!(Header, header_len), Header::LEN);
        self.set64(offset_of!(Header, schema), SCHEMA);
        self.set64(offset_of!(Header, file_len), geometry.file_len as u64);
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().replace('-', "");
        self.set(offset_of!(Header, boot_id), &u128::from_str_radix(&boot, 16).unwrap().to_be_bytes());
        self.set32(offset_of!(Header, capacity), geometry.capacity);
        self.set32(offset_of!(Header, row_len), Row::LEN);
        self.set64(offset_of!(Header, rows_at), geometry.rows_at as u64);
        self.set32(offset_of!(Header, entries), geometry.entries);
        self.set32(offset_of!(Header, entry_len), Entry::LEN);
        let places = [
            offset_of!(Header, mntns_at),
            offset_of!(Header, netns_at),
            offset_of!(Header, cgroups_at),
            offset_of!(Header, pids_at),
        ];
        for (place, at) in places.into_iter().zip(geometry.indexes_at) {
            self.set64(place, at as u64);
        }
        self.set64(offset_of!(Header, texts_at), geometry.texts_at[0] as u64);
        self.set64(offset_of!(Header, texts_len), (geometry.file_len - geometry.texts_at[0]) as u64);
        self.set32(offset_of!(Header, rows_used), 41);
        self.set64(offset_of!(Header, heartbeat), now_ns());
        self.set32(offset_of!(Header, owner_pid), std::process::id() as usize);
        self.set64(offset_of!(Header, owner_start), start_ticks());
    }

    fn write_row(&self, number: usize, mntns: u32, name: &str) {
        let at = self.geometry.inline_text_at(number);
        let len = name.len();
        let row = Row { mntns, netns: 7, opened: 100, closed: OPEN, kind: 1, flags: Row::IN_USE, ..Row::FREE };
        let row = Row { lock: 2, text_at: at as u64, text_len: len as u32, name_len: len as u16, ..row };
        let bytes: Vec<u8> = row.to_words().into_iter().flat_map(u64::to_le_bytes).collect();
        self.set(self.geometry.row_at(number), &bytes);
        self.set(at, name.as_bytes());
        for (index, key) in [(Index::Mntns, u64::from(mntns)), (Index::Netns, 7)] {
            let place = Entry::place(key, 0, self.geometry.entries as u32) as usize;
            let entry = self.geometry.indexes_at[index as usize] + place * Entry::LEN;
            self.set64(entry, key);
            self.set64(entry + offset_of!(Entry, opened), 100);
            self.set64(entry + offset_of!(Entry, closed), OPEN);
            self.set32(entry + offset_of!(Entry, row), number);
        }
    }

    fn refusal(&self) -> String {
        refusal(&self.path())
    }
}

fn refusal(path: &Path) -> String {
    Plane::open(path).unwrap_err().to_string()
}

fn start_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap().parse().unwrap()
}

fn name_of(plane: &Plane, mntns: u32, when: When) -> Answer<String> {
    plane.by_mntns_with_texts(mntns, when, &mut TextBuffer::new()).map(|(_, texts)| texts.name.to_owned())
}

#[test]
fn a_container_is_found_now_and_at_a_time_and_among_all() {
    let fixture = Fixture::new();
    let plane = Plane::open(fixture.path()).unwrap();
    let web = Answer::Container("web-1".to_owned());
    assert_eq!(name_of(&plane, MNTNS, When::Now), web);
    assert_eq!(name_of(&plane, MNTNS, When::At(100)), web);
    assert_eq!(name_of(&plane, MNTNS, When::At(99)), Answer::Unknown);
    assert_eq!(name_of(&plane, MNTNS + 1, When::Now), Answer::Unknown);
    assert_eq!(name_of(&plane, 0, When::Now), Answer::Unknown);
    assert_eq!(plane.rows().map(|(number, _)| number).collect::<Vec<_>>(), [40]);
    let Group::Containers(group) = plane.by_netns(7, When::Now) else { panic!("not the host") };
    assert_eq!(group.map(|found| found.number).collect::<Vec<_>>(), [40]);
    assert_eq!(plane.status().condition, Condition::Fresh);
}

#[test]
fn what_changed_since_it_was_found_is_not_completed() {
    let fixture = Fixture::new();
    let plane = Plane::open(fixture.path()).unwrap();
    let found = plane.by_mntns(MNTNS, When::Now).container().unwrap();
    let mut buffer = TextBuffer::new();
    assert!(plane.texts(&found, &mut buffer).is_some());
    fixture.set64(fixture.geometry.row_at(40), 4);
    assert!(plane.texts(&found, &mut buffer).is_none() && plane.whole(&found).is_none());
    fixture.set64(fixture.geometry.row_at(40), 5);
    assert_eq!(plane.by_mntns(MNTNS, When::Now), Answer::Busy);
    let mut all = plane.rows();
    assert_eq!((all.next(), all.busy()), (None, 1));
}

#[test]
fn what_is_no_plane_is_refused_with_what_to_do() {
    let fixture = Fixture::new();
    let check = |changed: &dyn Fn(), words: &[&str]| {
        changed();
        let refusal = fixture.refusal();
        fixture.write_header();
        for word in words {
            assert!(refusal.contains(word), "`{word}` is not in: {refusal}");
        }
    };
    let version = format!("version {VERSION}");
    check(&|| fixture.set32(offset_of!(Header, version), 9), &["version 9", &version, "same release"]);
    check(&|| fixture.set64(offset_of!(Header, schema), 1), &["0x0000000000000001", &format!("{SCHEMA:#x}")]);
    check(&|| fixture.set(0, b"ELF"), &["no plane", "check the path"]);
    check(&|| fixture.set64(offset_of!(Header, boot_id), 1), &["earlier boot", "tracker run"]);
    for field in [offset_of!(Header, rows_at), offset_of!(Header, netns_at), offset_of!(Header, texts_len)] {
        for says in [u64::MAX, 1, 0x7FFF_FFFF_FFFF_F000] {
            check(&|| fixture.set64(field, says), &["broken", "restart the tracker"]);
        }
    }
    for field in [offset_of!(Header, capacity), offset_of!(Header, entries), offset_of!(Header, row_len)] {
        check(&|| fixture.set32(field, u32::MAX as usize), &["broken"]);
    }
    check(&|| fixture.set64(offset_of!(Header, file_len), 1 << 40), &["was cut", "1099511627776"]);
    Plane::open(fixture.path()).unwrap();
}

#[test]
fn what_is_no_plane_file_is_refused_with_what_to_do() {
    let fixture = Fixture::new();
    let beside = |name: &str| fixture.directory.path().join(name);
    assert!(refusal(&beside("missing")).contains("tracker run"));
    File::create(beside("empty")).unwrap();
    assert!(refusal(&beside("empty")).contains("0 bytes are too few"));
    symlink(fixture.path(), beside("link")).unwrap();
    assert!(refusal(&beside("link")).contains("not a regular file"));
    assert!(refusal(fixture.directory.path()).contains("not a regular file"));
    let fifo = std::ffi::CString::new(beside("fifo").to_str().unwrap()).unwrap();
    // SAFETY: a path that ends with a zero byte.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    assert!(refusal(&beside("fifo")).contains("not a regular file"), "and it does not wait for a writer");
    // Shorter than its header says, from the beginning.
    fixture.file.set_len(8192).unwrap();
    assert!(fixture.refusal().contains("8192 of"));
    fixture.file.set_len(100).unwrap();
    assert!(fixture.refusal().contains("100 bytes are too few"));
}

#[test]
fn a_file_that_is_cut_under_readers_is_noticed_and_never_an_answer() {
    let fixture = Fixture::new();
    let plane = Plane::open(fixture.path()).unwrap();
    let other = Fixture::new();
    let untouched = Plane::open(other.path()).unwrap();
    let is_cut = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let was_cut = is_cut.load(Ordering::Acquire);
                    match name_of(&plane, MNTNS, When::Now) {
                        Answer::Container(name) => assert!(name == "web-1" && !was_cut),
                        Answer::Busy => return,
                        other => panic!("{other:?} is not what the file said"),
                    }
                }
            });
        }
        fixture.file.set_len(4096).unwrap();
        is_cut.store(true, Ordering::Release);
    });
    assert!(plane.is_broken());
    assert_eq!(plane.status().condition, Condition::Broken);
    assert_eq!((plane.rows().next(), plane.row(40)), (None, Answer::Busy));
    plane.wait(plane.changes(), Duration::from_secs(60)).unwrap_err();
    // Others are as they were, and a new file can be opened.
    assert_eq!(name_of(&untouched, MNTNS, When::Now), Answer::Container("web-1".to_owned()));
    let mut plane = plane;
    assert!(plane.reopen_if_superseded().unwrap_err().to_string().contains("was cut"));
    fs::rename(other.path(), fixture.path()).unwrap();
    assert!(plane.reopen_if_superseded().unwrap());
    assert_eq!(name_of(&plane, MNTNS, When::Now), Answer::Container("web-1".to_owned()));
    assert!(!plane.reopen_if_superseded().unwrap());
}

#[test]
fn old_gone_stopped_and_superseded_are_told_apart() {
    let fixture = Fixture::new();
    let plane = Plane::open(fixture.path()).unwrap();
    let condition = || plane.status().condition;
    assert_eq!(condition(), Condition::Fresh);
    fixture.set64(offset_of!(Header, heartbeat), now_ns() - 6_000_000_000);
    assert_eq!(condition(), Condition::Old, "the owner, this process, is there");
    assert!(plane.status().age >= Duration::from_secs(6));
    fixture.set64(offset_of!(Header, owner_start), start_ticks() + 1);
    assert_eq!(condition(), Condition::Gone, "another process has the owner's pid");
    fixture.set32(offset_of!(Header, flags), Header::STOPPED as usize);
    assert_eq!(condition(), Condition::Stopped);
    fixture.set32(offset_of!(Header, flags), (Header::STOPPED | Header::SUPERSEDED) as usize);
    assert_eq!(condition(), Condition::Superseded);
    assert_eq!(name_of(&plane, MNTNS, When::Now), Answer::Container("web-1".to_owned()), "what it said, it says");
}

#[test]
fn who_waits_is_woken_by_the_owner() {
    let fixture = Fixture::new();
    let plane = Plane::open(fixture.path()).unwrap();
    let seen = plane.changes();
    assert_eq!(plane.wait(seen, Duration::from_millis(20)).unwrap(), seen, "the time was over");
    thread::scope(|scope| {
        let waiter = scope.spawn(|| plane.wait(seen, Duration::from_secs(60)).unwrap());
        // The owner maps the file writably; whether somebody waits already is not known, which is all the same.
        let map = WritableHeader::of(&fixture.file);
        map.changes().fetch_add(1, Ordering::Release);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !waiter.is_finished() && Instant::now() < deadline {
            map.wake();
            thread::yield_now();
        }
        assert_eq!(waiter.join().unwrap(), seen + 1);
    });
    assert_eq!(plane.wait(seen, Duration::from_secs(60)).unwrap(), seen + 1, "what was is not waited for");
}

/// The owner's side of the futex.
struct WritableHeader(*mut libc::c_void);

impl WritableHeader {
    fn of(file: &File) -> Self {
        use std::os::fd::AsRawFd;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of an open file.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), Header::LEN, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(start, libc::MAP_FAILED);
        WritableHeader(start)
    }

    fn changes(&self) -> &AtomicU32 {
        let at = self.0.wrapping_byte_add(offset_of!(Header, changes));
        // SAFETY: within the mapping, aligned, and only accessed atomically.
        unsafe { &*at.cast::<AtomicU32>() }
    }

    fn wake(&self) {
        // SAFETY: wakes who waits on a word that is mapped.
        unsafe { libc::syscall(libc::SYS_futex, self.changes().as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
    }
}

impl Drop for WritableHeader {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nothing of it is lent any more.
        unsafe { libc::munmap(self.0, Header::LEN) };
    }
}
