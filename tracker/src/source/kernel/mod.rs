//! The kernel source: probes that see containers being born, executing and ending, and cgroups coming and going.
//!
//! Owns the BPF programs and their maps. Promises that what the kernel side saw arrives as facts in the kernel's order,
//! that loss is counted by cause and answered with an audit, and that an unusable kernel is an error that says what was
//! tried and what to do. Leaves to others: finding what was there before ([`scan`](super::scan)), and what a namespace means.
//!
//! ```text
//!  probes ──▶ ring buffer ──▶ Kernel::run: epoll ──▶ decode ──▶ translate ──▶ Facts
//!     └─────▶ counters ─────────┘ loss ──▶ AuditRequest ──▶ scan::run
//! ```
//!
//! Lifecycle records wake this thread at once. Cgroup records do not: they are drained with the others, and by a timer
//! that runs only while containers come and go ([`Pace`](pace::Pace)).

use std::io;
use std::time::Duration;

use aya::maps::{Map, MapData, MapError, RingBuf};
use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, BtfError, Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;
use serde::Deserialize;
use tracing::level_filters::LevelFilter;
use tracker_common::layout::Setup;

mod run;

pub mod setup;

pub mod btf;

mod keep;

mod pace;

mod stats;

pub(crate) mod tables;

pub(crate) mod translate;

pub use keep::KeepError;
pub use setup::{Machine, offsets};
pub use stats::Stats;
pub use tables::{KnownTable, SlotTable};

use keep::{Heritage, Keep};
use tables::{Plain, SharedTable};

use crate::plane::pins::Pinning;

/// The probes, as `cargo xtask ebpf` built them.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../bpf/tracker.bpf.o");

/// Births are attached last: whatever is born while we attach also has its end seen.
const PROGRAMS: [(&str, &str); 6] = [
    ("on_exit", "sched_process_exit"),
    ("on_cgroup_mkdir", "cgroup_mkdir"),
    ("on_cgroup_rmdir", "cgroup_rmdir"),
    ("on_cgroup_populated", "cgroup_notify_populated"),
    ("on_exec", "sched_process_exec"),
    ("on_fork", "sched_process_fork"),
];

/// How the kernel source is set up.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Size of the ring buffer, from a page to 1 GiB, rounded up to a power of two. A full one is a counted loss and an
    /// audit.
    pub ring_bytes: u32,
    /// Mount namespaces that can be known at one time. Of those made outside the initial user namespace, where anybody may
    /// make them, the probes take in an eighth of that, and scans as many again.
    pub max_namespaces: u32,
    /// How often in a second processes outside the initial user namespace may wake this thread; what they do beyond that
    /// is seen up to 20 ms later.
    pub foreign_wakes_per_second: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { ring_bytes: 1 << 20, max_namespaces: 32_768, foreign_wakes_per_second: 50 }
    }
}

impl Config {
    /// The ring buffer's size within its limits.
    fn ring_bytes(&self) -> u32 {
        self.ring_bytes.clamp(4096, 1 << 30)
    }

    fn foreign_max(&self) -> u64 {
        u64::from(self.max_namespaces / 8)
    }
}

/// Why the probes cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel has no type information.
    #[error("read the kernel's type information `{path}`")]
    NoBtf {
        /// Where it would be.
        path: &'static str,
        /// What came back.
        source: io::Error,
    },
    /// The type information tells too little.
    #[error(transparent)]
    Fields(#[from] btf::BtfError),
    /// The loader cannot use the type information.
    #[error("parse the kernel's type information")]
    Types(#[from] BtfError),
    /// Something about the host could not be read.
    #[error("read `{path}`")]
    Read {
        /// What was read.
        path: &'static str,
        /// What came back.
        source: io::Error,
    },
    /// The maps could not be made.
    #[error("make the maps of the BPF object")]
    Maps(#[source] Box<EbpfError>),
    /// A map could not be used.
    #[error("use the BPF map `{name}`")]
    Map {
        /// Which.
        name: &'static str,
        /// What came back.
        source: Box<MapError>,
    },
    /// The kernel refused a program.
    #[error("load the BPF program `{program}` for `{tracepoint}`")]
    Load {
        /// Which.
        program: &'static str,
        /// What it is for.
        tracepoint: &'static str,
        /// What came back; with the verifier's log, where there is one.
        source: Box<ProgramError>,
    },
    /// The object lacks something that it should have: it is not the one that this program was built with.
    #[error("the BPF object has no `{0}`")]
    Object(&'static str),
    /// What was pinned before, or is to be.
    #[error("pin the probes")]
    Keep(#[source] Box<KeepError>),
    /// The thread's own files.
    #[error("{what}")]
    Wait {
        /// What was tried.
        what: &'static str,
        /// What came back.
        source: io::Error,
    },
}

impl KernelError {
    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            KernelError::NoBtf { .. } | KernelError::Types(_) => {
                "use a kernel built with CONFIG_DEBUG_INFO_BTF (Linux 5.8 or later), and mount sysfs on /sys"
            }
            KernelError::Fields(_) => "this kernel is newer or older than the tracker knows: please report its version",
            KernelError::Read { .. } => "run in the host's pid namespace, as root, with /proc mounted",
            KernelError::Maps(_) | KernelError::Map { .. } | KernelError::Load { .. }
                if !nix::unistd::geteuid().is_root() =>
            {
                "run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN"
            }
            KernelError::Maps(_) | KernelError::Map { .. } | KernelError::Load { .. } => {
                "give the tracker CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN; kernel lockdown must not be at `confidentiality`"
            }
            KernelError::Keep(_) => {
                "`tracker cleanup` removes what is pinned; without `keep` nothing of this is needed"
            }
            KernelError::Object(_) => "rebuild the tracker: `cargo xtask ebpf`, then `cargo xtask build`",
            KernelError::Wait { .. } => "raise the limit of open files",
        }
    }
}

/// What one probe has cost, by the kernel's own run-time statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Its name.
    pub probe: &'static str,
    /// What it is attached to.
    pub tracepoint: &'static str,
    /// How often it ran.
    pub runs: u64,
    /// How long all runs took together.
    pub time: Duration,
}

/// The loaded and attached probes. They detach when this is dropped, unless they are kept.
pub struct Kernel {
    heritage: Option<Heritage>,
    // Holds the programs and their links.
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    shared: SharedTable,
    known: KnownTable,
    slots: MapData,
    known_map: MapData,
    // Hands what the probes logged to `log`, and so to `tracing`.
    flush_log: Box<dyn FnMut() + Send>,
    machine: Machine,
    foreign_max: u64,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("machine", &self.machine).finish_non_exhaustive()
    }
}

impl Kernel {
    /// Loads and attaches the probes. Needs CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN, and Linux 6.1 or later.
    ///
    /// What happens from now on is recorded; [`Kernel::run`] reports it. Scan afterwards for what was there before.
    pub fn load(config: &Config, machine: &Machine) -> Result<Self, KernelError> {
        Self::load_pinned(config, machine, None)
    }

    /// The same with maps that others have, too, and that outlive us: those of a former owner are taken over. Call
    /// [`Kernel::catch_up`] before anything else then.
    pub fn load_pinned(config: &Config, machine: &Machine, pinning: Option<&Pinning>) -> Result<Self, KernelError> {
        let btf = Btf::from_sys_fs()?;
        let keep_ns = pinning.map_or(0, |pinning| pinning.keep_ns);
        let setup = Plain(Setup { keep_ns, ..machine.setup(config) });
        let log_level = log_level();
        let keep_error = |error: KeepError| KernelError::Keep(Box::new(error));
        let keep = pinning.map(|pinning| Keep::prepare(pinning, config)).transpose().map_err(keep_error)?;
        let mut loader = EbpfLoader::new();
        keep.iter().for_each(|keep| keep.set_paths(&mut loader));
        let mut ebpf = loader
            .btf(Some(&btf))
            .override_global("SETUP", &setup, true)
            .override_global("AYA_LOG_LEVEL", &log_level, false)
            .map_max_entries("RECORDS", config.ring_bytes())
            .map_max_entries("KNOWN", config.max_namespaces)
            .map_max_entries("MOUNT_NAMESPACES", config.max_namespaces)
            .load(OBJECT)
            .map_err(|error| KernelError::Maps(Box::new(error)))?;
        let mut links = Vec::new();
        for (program, tracepoint) in PROGRAMS {
            links.push((program, attach(&mut ebpf, program, tracepoint, &btf)?));
        }
        let layout = &machine.found.layout;
        let heritage = keep.map(|keep| keep.settle(&mut ebpf, links, layout)).transpose().map_err(keep_error)?;
        let ring = take(&mut ebpf, "RECORDS")?;
        let ring = RingBuf::try_from(ring).map_err(|source| map_error("RECORDS", source))?;
        let shared = SharedTable::open(take(&mut ebpf, "SHARED")?).map_err(|source| map_error("SHARED", source))?;
        let known_map = hash(take(&mut ebpf, "KNOWN")?, "KNOWN")?;
        let slots = hash(take(&mut ebpf, "MOUNT_NAMESPACES")?, "MOUNT_NAMESPACES")?;
        let known = KnownTable::open(&known_map).map_err(|source| map_error("KNOWN", source))?;
        let flush_log = log_reader(&mut ebpf);
        let (machine, foreign_max) = (machine.clone(), config.foreign_max());
        Ok(Self { heritage, ebpf, ring, shared, known, slots, known_map, flush_log, machine, foreign_max })
    }

    /// How many namespaces from outside the initial user namespace the probes take in.
    pub(crate) fn foreign_max(&self) -> u64 {
        self.foreign_max
    }

    /// What was found out about the machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The namespaces that the kernel side knows, for the scan to compare with and to add to.
    pub fn known(&self) -> Result<KnownTable, KernelError> {
        KnownTable::open(&self.known_map).map_err(|source| map_error("KNOWN", source))
    }

    /// What each probe has cost so far, by its own name. Zeros unless `kernel.bpf_stats_enabled` is on.
    pub fn costs(&self) -> Vec<Cost> {
        let cost = |(probe, tracepoint): (&'static str, &'static str)| {
            let info = self.ebpf.program(probe)?.info().ok()?;
            Some(Cost { probe, tracepoint, runs: info.run_count(), time: info.run_time() })
        };
        PROGRAMS.into_iter().filter_map(cost).collect()
    }

    /// The table that other BPF programs look up.
    pub fn slots(&self) -> Result<SlotTable, KernelError> {
        let since = self.heritage.as_ref().map_or(0, |heritage| heritage.since);
        SlotTable::open(&self.slots, since).map_err(|source| map_error("MOUNT_NAMESPACES", source))
    }
}

/// What hands on the lines that the probes logged. The subscriber bridges `log` into `tracing`.
fn log_reader(ebpf: &mut Ebpf) -> Box<dyn FnMut() + Send> {
    match EbpfLogger::init(ebpf) {
        Ok(mut logger) => Box::new(move || logger.flush()),
        Err(error) => {
            tracing::debug!(%error, "the probes' own log cannot be read");
            Box::new(|| {})
        }
    }
}

/// The level up to which the probes log, as `aya-log` numbers them: what nobody would read is not emitted.
fn log_level() -> u8 {
    match LevelFilter::current().into_level() {
        None => 0,
        Some(tracing::Level::ERROR) => 1,
        Some(tracing::Level::WARN) => 2,
        Some(tracing::Level::INFO) => 3,
        Some(tracing::Level::DEBUG) => 4,
        Some(tracing::Level::TRACE) => 5,
    }
}

fn attach(
    ebpf: &mut Ebpf,
    program: &'static str,
    tracepoint: &'static str,
    btf: &Btf,
) -> Result<BtfTracePointLinkId, KernelError> {
    let failed = |source| KernelError::Load { program, tracepoint, source: Box::new(source) };
    let found = ebpf.program_mut(program).ok_or(KernelError::Object(program))?;
    let probe: &mut BtfTracePoint = found.try_into().map_err(failed)?;
    probe.load(tracepoint, btf).map_err(failed)?;
    probe.attach().map_err(failed)
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, KernelError> {
    ebpf.take_map(name).ok_or(KernelError::Object(name))
}

fn hash(map: Map, name: &'static str) -> Result<MapData, KernelError> {
    match map {
        Map::HashMap(data) => Ok(data),
        _ => Err(KernelError::Object(name)),
    }
}

fn map_error(name: &'static str, source: MapError) -> KernelError {
    KernelError::Map { name, source: Box::new(source) }
}

/// Gives back to the system what start-up needed once: the kernel's type information takes 30 MB while it is read.
pub(crate) fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer, and only touches memory that the allocator knows to be free.
    unsafe {
        libc::malloc_trim(0);
    }
}
