//! The plane's half in the kernel: pinned maps in which BPF programs, anybody's, find the container of an event.
//!
//! ```text
//!  /sys/fs/bpf/tracker/            0700, locked by the owner
//!    owner                         Owner: schema, heartbeat, what a successor has to know
//!    mount_namespaces              mount ns → Slot: the probes insert, the owner only fills in the row
//!    cgroups                       cgroup id → CgroupSlot
//!    rows                          row → BpfRow, written through a mapping
//!    own/ links/                   of the probes, where they go on without a tracker
//! ```
//!
//! A reader goes from slot to row and compares the generations: a slot that is behind is "not known yet", never a wrong
//! answer. So maps may be taken over from a former owner at any time, whatever state they are in; those of another shape
//! or schema are replaced, and marked as superseded for who still has them open.
//!
//! All calls but [`Pins::open`] are cheap and do not fail: what the kernel refuses is counted.

use std::io;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{HashMap, Map, MapData, MapError};
use aya::programs::{ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun};
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use tracker_common::plane::{BpfRow, word};
use tracker_common::table::{CgroupSlot, Filled, Owner, SCHEMA, Slot};

use super::Config;
use crate::source::kernel::tables::Plain;
use crate::time::BootTime;

mod directory;

mod mapping;

mod shape;

pub use directory::{Directory, Removed};
pub(crate) use directory::{LINKS, OWN, SELECTIONS, remove_pins};
pub(crate) use mapping::Mapping;
pub(crate) use shape::{Place, Shape};

/// The maps and the program that fills in rows, as `cargo xtask ebpf` built them.
static OBJECT: &[u8] = include_bytes_aligned!("../../../bpf/plane.bpf.o");

/// `BPF_F_MMAPABLE`: user space may map the values.
pub(crate) const MMAPABLE: u32 = 1 << 10;

/// Why there are no pinned maps.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// There is no BPF file system, and none may be mounted.
    #[error("mount a BPF file system on `{path}`: {error}")]
    Mount {
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It is somewhere else.
    #[error("`{path}` is not in a BPF file system")]
    NotBpf {
        /// The directory.
        path: PathBuf,
    },
    /// It is where everybody's pins are.
    #[error("`{path}` is the root of its file system")]
    Root {
        /// The directory.
        path: PathBuf,
    },
    /// It cannot be made or opened.
    #[error("use the directory of pins `{path}`: {error}")]
    Make {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Others may write to it.
    #[error("the directory of pins `{path}` is not ours alone: it belongs to uid {uid}, with mode {mode:o}")]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
        /// Its mode.
        mode: u32,
    },
    /// Another tracker runs.
    #[error("the pins in `{path}` belong to a tracker that is running")]
    Owned {
        /// The directory.
        path: PathBuf,
    },
    /// The maps could not be made.
    #[error("make the pinned maps")]
    Maps(#[source] Box<EbpfError>),
    /// A map could not be used.
    #[error("use the pinned map `{name}`")]
    Map {
        /// Which.
        name: &'static str,
        /// What came back.
        source: Box<MapError>,
    },
    /// The kernel refused the program that fills in rows.
    #[error("load the BPF program `fill`")]
    Program(#[source] Box<ProgramError>),
    /// A map could not be mapped, or put into its place.
    #[error("{what} `{name}`: {error}")]
    Pin {
        /// What was tried.
        what: &'static str,
        /// Which.
        name: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

impl PinsError {
    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            PinsError::Mount { .. } => "run as root, or mount it before: `mount -t bpf bpf /sys/fs/bpf`",
            PinsError::NotBpf { .. } | PinsError::Root { .. } => {
                "set `pins` under `[plane]` to a directory below /sys/fs/bpf"
            }
            PinsError::Make { .. } => "run as root, with the BPF file system mounted read-write",
            PinsError::NotOurs { .. } => "remove the directory, or set `pins` under `[plane]` to another one",
            PinsError::Owned { .. } => "stop the other tracker, or set `pins` under `[plane]` to another directory",
            PinsError::Maps(_) | PinsError::Map { .. } | PinsError::Program(_) | PinsError::Pin { .. } => {
                "run as root with CAP_BPF and CAP_SYS_ADMIN, on Linux 6.1 or later"
            }
        }
    }
}

/// What is counted about the pinned maps. Read by the metrics.
#[derive(Debug, Default)]
pub struct Stats {
    /// Rows of slots that were filled in.
    pub filled: AtomicU64,
    /// Slots that were not there to be filled in: the number is not in a mount ns of its own, or there was no room.
    pub absent: AtomicU64,
    /// Slots that were another holder's by then.
    pub others: AtomicU64,
    /// What the kernel refused.
    pub refused: AtomicU64,
}

/// The pinned maps, owned.
pub struct Pins {
    ebpf: Ebpf,
    owner: Mapping<Owner>,
    rows: Mapping<BpfRow>,
    cgroups: HashMap<MapData, u64, Plain<CgroupSlot>>,
    pinning: Pinning,
    inherited: bool,
    stats: Arc<Stats>,
}

impl std::fmt::Debug for Pins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pins").field("pinning", &self.pinning).finish_non_exhaustive()
    }
}

/// Where the probes' maps are pinned, and what the former owner left: for [`Kernel::load`](crate::source::kernel::Kernel).
/// Cheap to clone; the directory stays locked until the last clone is gone.
#[derive(Clone, Debug)]
pub struct Pinning {
    pub(crate) directory: Arc<Directory>,
    /// What the former owner wrote last, if there was one whose maps are understood.
    pub(crate) former: Option<Owner>,
    /// When this owner came.
    pub(crate) since: u64,
    /// For how long the probes go on without an owner; 0: not at all.
    pub(crate) keep_ns: u64,
}

impl Pinning {
    /// Whether the former owner's probes can have gone on recording until now.
    pub(crate) fn was_kept(&self) -> bool {
        self.former
            .is_some_and(|former| former.keep_ns != 0 && self.since.saturating_sub(former.heartbeat) <= former.keep_ns)
    }
}

impl Pins {
    /// Takes over what is pinned, or pins new maps: with a row for each of the plane's, and a slot for each mount ns that the
    /// probes can know. Takes about as long as reading the kernel's type information does.
    pub fn open(config: &Config, max_namespaces: u32, stats: Arc<Stats>) -> Result<Pins, PinsError> {
        let directory = Directory::own(&config.pins)?;
        let capacity = config.rows() as u32;
        let former = former(&directory);
        let is_understood = former.is_some_and(|former| former.schema == SCHEMA);
        let shapes = [
            ("owner", Shape::array::<Owner>(1, MMAPABLE)),
            ("mount_namespaces", Shape::hash::<u32, Slot>(max_namespaces)),
            ("cgroups", Shape::hash::<u64, CgroupSlot>(capacity)),
            ("rows", Shape::array::<BpfRow>(capacity, MMAPABLE)),
        ];
        // All or none: who has one of the old maps open learns from the old owner's flags that it is.
        let inherited = is_understood && shapes.iter().all(|(name, shape)| shape.is_pinned(&directory, name));
        let places = shapes.map(|(name, _)| Place::of(&directory, name, inherited));
        let [owner, namespaces, cgroups, rows] = &places;

        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .map_pin_path("OWNER", owner.path.as_path())
            .map_pin_path("MOUNT_NAMESPACES", namespaces.path.as_path())
            .map_pin_path("CGROUPS", cgroups.path.as_path())
            .map_pin_path("ROWS", rows.path.as_path())
            .map_max_entries("MOUNT_NAMESPACES", max_namespaces)
            .map_max_entries("CGROUPS", capacity)
            .map_max_entries("ROWS", capacity)
            .load(OBJECT)
            .map_err(|error| PinsError::Maps(Box::new(error)))?;
        fill_of(&mut ebpf)?.load().map_err(|source| PinsError::Program(Box::new(source)))?;

        let owner = map_array(&mut ebpf, "OWNER", 1)?;
        let rows = map_array(&mut ebpf, "ROWS", capacity)?;
        let cgroups = ebpf.take_map("CGROUPS").expect("the object has it");
        let cgroups = HashMap::try_from(cgroups).map_err(|source| map_error("cgroups", source))?;
        if !inherited {
            supersede(&directory);
        }
        // From here on whoever opens the pins finds an owner that is alive.
        let since = BootTime::now().0;
        let keep_ns = config.keep_ns();
        for (place, value) in [
            (offset_of!(Owner, heartbeat), since),
            (offset_of!(Owner, keep_ns), keep_ns),
            (offset_of!(Owner, flags), 0),
            (offset_of!(Owner, schema), SCHEMA),
        ] {
            owner.store(0, place, value);
        }
        for place in &places {
            let failed = |error| PinsError::Pin { what: "put into place the map", name: place.name, error };
            place.settle(&directory).map_err(failed)?;
        }
        let former = former.filter(|_| is_understood);
        let pinning = Pinning { directory: Arc::new(directory), former, since, keep_ns };
        Ok(Pins { ebpf, owner, rows, cgroups, pinning, inherited, stats })
    }

    /// For the probes: what they share with these maps.
    pub fn pinning(&self) -> Pinning {
        self.pinning.clone()
    }

    /// Where everything is pinned.
    pub fn path(&self) -> &Path {
        self.pinning.directory.path()
    }

    /// Whether all maps are a former owner's, with what it wrote in them.
    pub fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// Forgets what a former owner wrote: for an owner whose rows begin anew. Slots keep the rows' numbers until they are
    /// filled in again, and the rows then are not theirs.
    pub fn begin_anew(&mut self) {
        for row in 0..self.rows.items() {
            // Most have never been used.
            if self.rows.item(row).is_some_and(|words| words.iter().any(|word| word.load(Ordering::Relaxed) != 0)) {
                self.clear(row as u32);
            }
        }
        self.retain_cgroups(|_| false);
    }

    /// Forgets the cgroups that are not `kept`.
    pub fn retain_cgroups(&mut self, kept: impl Fn(u64) -> bool) {
        for cgroup in self.cgroups.keys().flatten().filter(|id| !kept(*id)).collect::<Vec<u64>>() {
            self.remove_cgroup(cgroup);
        }
    }

    /// Frees a row. 0 calls into the kernel.
    pub fn clear(&mut self, row: u32) {
        self.write(row, &FREE);
    }

    /// Writes a row under its sequence lock, whose value in `value` does not count. 0 calls into the kernel.
    pub fn write(&mut self, row: u32, value: &BpfRow) {
        let Some((lock, words)) = self.rows.item(row as usize).and_then(|words| words.split_first()) else { return };
        word::begin_write(lock);
        for (word, value) in words.iter().zip(&words_of(value)[1..]) {
            word.store(*value, Ordering::Relaxed);
        }
        word::end_write(lock);
    }

    /// Fills in the row of a mount ns, and whether nobody has vouched for it yet, if its slot is of this generation: the
    /// never-reused id, else the time of its birth. `None` says that it has no row any more. Whether it was. One call into the
    /// kernel.
    pub fn fill(&mut self, mntns: u32, generation: u64, row: Option<u32>, provisional: bool) -> bool {
        let row = row.unwrap_or(Slot::NO_ROW);
        let mut options = RawTracePointRunOptions::new();
        options.args[..4].copy_from_slice(&[mntns.into(), generation, row.into(), provisional.into()]);
        let done = fill_of(&mut self.ebpf).ok().and_then(|fill| fill.test_run(options).ok());
        let counter = match done.map(|done| done.return_value) {
            Some(value) if value == Filled::Done as u32 => &self.stats.filled,
            Some(value) if value == Filled::Absent as u32 => &self.stats.absent,
            Some(_) => &self.stats.others,
            None => &self.stats.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        std::ptr::eq(counter, &self.stats.filled)
    }

    /// Says which container is in a cgroup. One call into the kernel.
    pub fn set_cgroup(&mut self, id: u64, slot: CgroupSlot) {
        if self.cgroups.insert(id, Plain(slot), 0).is_err() {
            self.stats.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Says that no container is in a cgroup any more. One call into the kernel.
    pub fn remove_cgroup(&mut self, id: u64) {
        // It may not have been there.
        let _ = self.cgroups.remove(&id);
    }

    /// The sign of life, each second. 0 calls into the kernel.
    pub fn heartbeat(&self, now: BootTime) {
        self.owner.store(0, offset_of!(Owner, heartbeat), now.0);
    }
}

/// What is there, for people; changes nothing.
#[derive(Debug)]
pub(crate) enum Look {
    /// There is no BPF file system; one can be mounted.
    Mountable,
    /// Nothing is pinned; it can be.
    Absent,
    /// There are pins.
    There {
        /// Whose, if it is of a size that is understood.
        owner: Option<Owner>,
        /// Whether probes are among them.
        kept: bool,
    },
}

/// Looks without taking the lock, which a tracker that starts at this moment would miss.
pub(crate) fn look(path: &Path) -> Result<Look, PinsError> {
    if !path.exists() {
        return Ok(if directory::can_be_made(path)? { Look::Absent } else { Look::Mountable });
    }
    directory::open(path)?;
    let owner = owner_at(&path.join("owner"));
    Ok(Look::There { owner, kept: path.join(LINKS).exists() })
}

/// A row that nobody has.
const FREE: BpfRow = BpfRow {
    lock: 0,
    generation: 0,
    cgroup: 0,
    flags: 0,
    uses: 0,
    kind: 0,
    state: 0,
    grade: 0,
    id_len: 0,
    name_len: 0,
    pod_len: 0,
    pod_namespace_len: 0,
    reserved: 0,
    id: [0; 64],
    name: [0; 64],
    pod: [0; 64],
    pod_namespace: [0; 64],
};

const ROW_WORDS: usize = Mapping::<BpfRow>::WORDS;

fn words_of(row: &BpfRow) -> [u64; ROW_WORDS] {
    // SAFETY: both have the same size, and consist of integers without padding, for which every bit pattern is a value.
    unsafe { std::mem::transmute(*row) }
}

/// What the pinned `owner` says, whoever that was. One of another layout says that there was somebody, and no more.
fn former(directory: &Directory) -> Option<Owner> {
    let pin = directory.pin("owner");
    owner_at(&pin).or_else(|| pin.exists().then(Owner::default))
}

fn owner_at(pin: &Path) -> Option<Owner> {
    let map = MapData::from_pin(pin).ok()?;
    if Shape::of(&map)? != Shape::array::<Owner>(1, MMAPABLE) {
        return None;
    }
    let owner = Mapping::<Owner>::new(map.fd(), 1).ok()?;
    let load = |place| owner.load(0, place);
    Some(Owner {
        schema: load(offset_of!(Owner, schema)),
        flags: load(offset_of!(Owner, flags)),
        heartbeat: load(offset_of!(Owner, heartbeat)),
        keep_ns: load(offset_of!(Owner, keep_ns)),
        newest_mntns: load(offset_of!(Owner, newest_mntns)),
        taken_process_records: load(offset_of!(Owner, taken_process_records)),
        taken_cgroup_records: load(offset_of!(Owner, taken_cgroup_records)),
        taken_lost: std::array::from_fn(|cause| load(offset_of!(Owner, taken_lost) + cause * size_of::<u64>())),
    })
}

/// Tells those who have the present maps open that others take their place.
fn supersede(directory: &Directory) {
    let Ok(map) = MapData::from_pin(directory.pin("owner")) else { return };
    if Shape::of(&map) == Some(Shape::array::<Owner>(1, MMAPABLE))
        && let Ok(owner) = Mapping::<Owner>::new(map.fd(), 1)
    {
        owner.store(0, offset_of!(Owner, flags), Owner::SUPERSEDED);
    }
}

fn fill_of(ebpf: &mut Ebpf) -> Result<&mut RawTracePoint, PinsError> {
    let fill = ebpf.program_mut("fill").expect("the object has it");
    fill.try_into().map_err(|source| PinsError::Program(Box::new(source)))
}

fn map_array<T>(ebpf: &mut Ebpf, name: &'static str, items: u32) -> Result<Mapping<T>, PinsError> {
    let Some(Map::Array(map)) = ebpf.map_mut(name) else { unreachable!("the object has the array `{name}`") };
    Mapping::new(map.fd(), items).map_err(|error| PinsError::Pin { what: "map the array", name, error })
}

fn map_error(name: &'static str, source: MapError) -> PinsError {
    PinsError::Map { name, source: Box::new(source) }
}
