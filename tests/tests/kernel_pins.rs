//! The pinned maps, as anybody's BPF program or `bpf()` finds them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tracker::BootTime;
use tracker::plane::Config;
use tracker::plane::pins::{Pins, PinsError, Stats};
use tracker_common::plane::{BpfRow, Row};
use tracker_common::table::{CgroupSlot, Owner, Slot};
use tracker_tests::bpf::{PinDirectory, Pinned};
use tracker_tests::{require, requirement};

const NAMESPACES: u32 = 64;
const SLOT_LEN: usize = size_of::<Slot>();
const ROW_LEN: usize = size_of::<BpfRow>();
const OWNER_LEN: usize = size_of::<Owner>();

fn config(path: &Path) -> Config {
    Config { pins: path.into(), capacity: 32, ..Config::default() }
}

fn open(path: &Path) -> Result<Pins, PinsError> {
    Pins::open(&config(path), NAMESPACES, Arc::default())
}

fn row(generation: u64, id: &str) -> BpfRow {
    let mut bytes = [0; 64];
    bytes[..id.len()].copy_from_slice(id.as_bytes());
    BpfRow {
        lock: 0,
        generation,
        cgroup: 77,
        flags: Row::IN_USE,
        uses: 1,
        kind: 1,
        state: 3,
        grade: 1,
        id_len: id.len() as u8,
        name_len: 0,
        pod_len: 0,
        pod_namespace_len: 0,
        reserved: 0,
        id: bytes,
        name: [0; 64],
        pod: [0; 64],
        pod_namespace: [0; 64],
    }
}

fn slot_bytes(slot: Slot) -> [u8; SLOT_LEN] {
    let mut bytes = [0; SLOT_LEN];
    bytes[..8].copy_from_slice(&slot.generation.to_ne_bytes());
    bytes[8..16].copy_from_slice(&slot.born.to_ne_bytes());
    bytes[16..20].copy_from_slice(&slot.row.to_ne_bytes());
    bytes[20..].copy_from_slice(&slot.flags.to_ne_bytes());
    bytes
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 bytes are 8 bytes"))
}

#[test]
fn what_is_written_is_what_anybody_finds() -> Result<()> {
    require!(requirement::root());
    let directory = PinDirectory::new();
    let mut pins = open(directory.path())?;
    assert_eq!(directory.names(), ["cgroups", "mount_namespaces", "owner", "rows"]);
    let metadata = fs::metadata(directory.path())?;
    assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (0, 0o700));

    pins.write(3, &row(5, "abc"));
    pins.set_cgroup(77, CgroupSlot { generation: 5, row: 3, flags: 0 });
    pins.set_cgroup(78, CgroupSlot { generation: 0, row: Slot::NO_ROW, flags: CgroupSlot::SHARED });
    pins.heartbeat(BootTime(42));
    // Past the end: nothing of anybody's.
    pins.write(32, &row(6, "past"));

    let rows = Pinned::open(&directory.path().join("rows"))?;
    let found: [u8; ROW_LEN] = rows.lookup(&3_u32.to_ne_bytes())?;
    assert_eq!((word(&found, 0), word(&found, 8), word(&found, 16)), (2, 5, 77), "lock, generation, cgroup");
    assert_eq!(&found[40..44], b"abc\0");
    let cgroups = Pinned::open(&directory.path().join("cgroups"))?;
    let found: [u8; 16] = cgroups.lookup(&77_u64.to_ne_bytes())?;
    assert_eq!((word(&found, 0), word(&found, 8)), (5, 3));
    let shared: [u8; 16] = cgroups.lookup(&78_u64.to_ne_bytes())?;
    assert_eq!(word(&shared, 8), u64::from(u32::MAX) | u64::from(CgroupSlot::SHARED) << 32);
    pins.remove_cgroup(78);
    assert!(cgroups.lookup::<16>(&78_u64.to_ne_bytes()).is_err());
    let owner: [u8; OWNER_LEN] = Pinned::open(&directory.path().join("owner"))?.lookup(&0_u32.to_ne_bytes())?;
    assert_eq!(word(&owner, 16), 42, "the heartbeat");
    Ok(())
}

#[test]
fn a_row_is_filled_in_for_the_generation_it_was_meant_for_and_no_other() -> Result<()> {
    require!(requirement::root());
    let directory = PinDirectory::new();
    let stats = Arc::new(Stats::default());
    let mut pins = Pins::open(&config(directory.path()), NAMESPACES, Arc::clone(&stats))?;
    let slots = Pinned::open(&directory.path().join("mount_namespaces"))?;
    let key = 4_026_532_000_u32.to_ne_bytes();
    let mut slot = Slot { generation: 9, born: 1, row: Slot::NO_ROW, flags: Slot::PROVISIONAL | Slot::ENDED };
    slots.update(&key, &slot_bytes(slot))?;

    // The number's former holder.
    pins.fill(4_026_532_000, 8, Some(7), false);
    assert_eq!(slots.lookup(&key)?, slot_bytes(slot));
    pins.fill(4_026_532_000, 9, Some(7), false);
    slot = Slot { row: 7, flags: Slot::ENDED, ..slot };
    assert_eq!(slots.lookup(&key)?, slot_bytes(slot));
    pins.fill(4_026_532_000, 9, None, true);
    slot = Slot { row: Slot::NO_ROW, flags: Slot::PROVISIONAL | Slot::ENDED, ..slot };
    assert_eq!(slots.lookup(&key)?, slot_bytes(slot));
    // Nobody's number: user space inserts no slot.
    pins.fill(4_026_532_001, 9, Some(7), false);
    assert!(slots.lookup::<SLOT_LEN>(&4_026_532_001_u32.to_ne_bytes()).is_err());
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!((count(&stats.filled), count(&stats.others), count(&stats.absent), count(&stats.refused)), (2, 1, 1, 0));
    Ok(())
}

#[test]
fn the_next_owner_takes_over_what_is_pinned_and_a_second_one_is_refused() -> Result<()> {
    require!(requirement::root());
    let directory = PinDirectory::new();
    let mut first = open(directory.path())?;
    assert!(!first.is_inherited());
    first.write(3, &row(5, "abc"));
    first.set_cgroup(77, CgroupSlot { generation: 5, row: 3, flags: 0 });
    let rows = Pinned::open(&directory.path().join("rows"))?;
    let refused = open(directory.path()).err().context("a second owner is refused")?;
    assert!(matches!(refused, PinsError::Owned { .. }), "{refused}");
    drop(first);

    let mut second = open(directory.path())?;
    assert!(second.is_inherited());
    let found: [u8; ROW_LEN] = rows.lookup(&3_u32.to_ne_bytes())?;
    assert_eq!(word(&found, 8), 5);
    // Who opened the maps before sees what the new owner writes.
    second.write(3, &row(6, "def"));
    let found: [u8; ROW_LEN] = rows.lookup(&3_u32.to_ne_bytes())?;
    assert_eq!((word(&found, 0), word(&found, 8)), (4, 6), "lock, generation");
    second.begin_anew();
    let found: [u8; ROW_LEN] = rows.lookup(&3_u32.to_ne_bytes())?;
    assert_eq!((word(&found, 0), word(&found, 8), word(&found, 24)), (6, 0, 0), "lock, generation, flags");
    assert!(Pinned::open(&directory.path().join("cgroups"))?.lookup::<16>(&77_u64.to_ne_bytes()).is_err());
    Ok(())
}

#[test]
fn maps_of_another_shape_or_schema_are_replaced_and_marked() -> Result<()> {
    require!(requirement::root());
    let directory = PinDirectory::new();
    let pin = |name| Pinned::open(&directory.path().join(name));
    let mut first = open(directory.path())?;
    first.write(3, &row(5, "abc"));
    let (rows, owner) = (pin("rows")?, pin("owner")?);
    drop(first);

    let larger = Config { capacity: 64, ..config(directory.path()) };
    let second = Pins::open(&larger, NAMESPACES, Arc::default())?;
    assert!(!second.is_inherited());
    assert_eq!(directory.names(), ["cgroups", "mount_namespaces", "owner", "rows"]);
    let old: [u8; OWNER_LEN] = owner.lookup(&0_u32.to_ne_bytes())?;
    assert_eq!(word(&old, 8), Owner::SUPERSEDED);
    // Who has the old ones open still reads what was in them.
    assert_eq!(word(&rows.lookup::<ROW_LEN>(&3_u32.to_ne_bytes())?, 8), 5);
    assert_eq!(word(&pin("rows")?.lookup::<ROW_LEN>(&3_u32.to_ne_bytes())?, 8), 0);
    assert_eq!(word(&pin("owner")?.lookup::<OWNER_LEN>(&0_u32.to_ne_bytes())?, 8), 0);
    pin("rows")?.lookup::<ROW_LEN>(&63_u32.to_ne_bytes()).context("the new ones have as many rows as they should")?;
    drop(second);

    // A schema of its own: as if another version had written it.
    let owner = pin("owner")?;
    let mut foreign: [u8; OWNER_LEN] = owner.lookup(&0_u32.to_ne_bytes())?;
    foreign[0] ^= 1;
    owner.update(&0_u32.to_ne_bytes(), &foreign)?;
    let third = Pins::open(&larger, NAMESPACES, Arc::default())?;
    assert!(!third.is_inherited());
    assert_eq!(word(&owner.lookup::<OWNER_LEN>(&0_u32.to_ne_bytes())?, 8), Owner::SUPERSEDED);
    assert_ne!(word(&pin("owner")?.lookup::<OWNER_LEN>(&0_u32.to_ne_bytes())?, 0), word(&foreign, 0));
    Ok(())
}

#[test]
fn a_directory_that_is_not_ours_alone_is_refused() -> Result<()> {
    require!(requirement::root());
    let error = |path: &Path| open(path).err().map(|error| (error.to_string(), error.remedy()));
    let elsewhere = tempfile::tempdir()?;
    let (said, _) = error(&elsewhere.path().join("pins")).context("a directory on a disk")?;
    assert!(said.ends_with("is not in a BPF file system"), "{said}");
    assert!(!elsewhere.path().join("pins").exists());
    assert!(matches!(open(Path::new("/sys/fs/bpf")), Err(PinsError::Root { .. })));

    let directory = PinDirectory::new();
    fs::create_dir(directory.path())?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o770))?;
    let (said, _) = error(directory.path()).context("a directory that others may write to")?;
    assert!(said.contains("is not ours alone: it belongs to uid 0, with mode 770"), "{said}");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700))?;
    std::os::unix::fs::chown(directory.path(), Some(1234), None)?;
    assert!(matches!(open(directory.path()), Err(PinsError::NotOurs { uid: 1234, .. })));
    Ok(())
}

/// A thread in a mount ns of its own: what it mounts, nobody else sees.
fn apart<T: Send>(action: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("root may unshare");
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .expect("mounts can be made private");
            action()
        });
        thread.join().expect("the thread ends")
    })
}

#[test]
fn a_missing_bpf_file_system_is_mounted() {
    require!(requirement::root());
    let opened = apart(|| {
        while umount2("/sys/fs/bpf", MntFlags::MNT_DETACH).is_ok() {}
        open(Path::new("/sys/fs/bpf/tracker"))
    });
    let pins = opened.expect("it is mounted");
    assert_eq!(pins.path(), Path::new("/sys/fs/bpf/tracker"));
}

#[test]
fn a_read_only_bpf_file_system_is_an_error_that_says_so() -> Result<()> {
    require!(requirement::root());
    let place = tempfile::tempdir()?;
    let error = apart(|| {
        mount(Some("bpf"), place.path(), Some("bpf"), MsFlags::MS_RDONLY, None::<&str>).expect("root may mount");
        open(&place.path().join("tracker")).err()
    });
    let error = error.context("nothing can be pinned there")?;
    assert!(error.to_string().contains("Read-only file system"), "{error}");
    assert_eq!(error.remedy(), "run as root, with the BPF file system mounted read-write");
    Ok(())
}
