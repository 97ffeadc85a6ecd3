//! A kernel half, seen from here: loaded with what it has to know of this kernel, attached, and read.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, PerCpuArray, RingBuf};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use tracker::source::kernel;

/// What `cargo xtask ebpf` built.
pub(crate) struct Object {
    /// Its bytes, aligned.
    pub(crate) bytes: &'static [u8],
    /// The program in it.
    pub(crate) program: &'static str,
    /// The BTF-typed tracepoint that it is for.
    pub(crate) tracepoint: &'static str,
    /// Where the running kernel keeps the fields that it reads, by the names of its globals.
    ///
    /// Kernels differ in that, and rustc leaves a loader nothing to correct it by. So the program reads each offset from a
    /// global, and gets it from the running kernel's own type information.
    pub(crate) offsets: Vec<(&'static str, u64)>,
}

/// A global of the program's, and the field of the kernel's whose offset it wants: struct and field.
pub(crate) type Wanted = (&'static str, &'static str, &'static str);

/// Where a task's mount namespace is found: for every example.
pub(crate) const MOUNT_NS: [Wanted; 4] = [
    ("TASK_NSPROXY", "task_struct", "nsproxy"),
    ("NSPROXY_MNT_NS", "nsproxy", "mnt_ns"),
    ("MNT_NAMESPACE_NS", "mnt_namespace", "ns"),
    ("NS_COMMON_INUM", "ns_common", "inum"),
];

/// Finds all of them, in one pass over the kernel's type information.
pub(crate) fn offsets<const N: usize>(wanted: [Wanted; N]) -> Result<[(&'static str, u64); N]> {
    let mut offsets = kernel::offsets(wanted.map(|(_, structure, field)| (structure, field)))?.into_iter();
    Ok(wanted.map(|(global, ..)| (global, offsets.next().expect("one for each"))))
}

/// A loaded probe. It detaches when this is dropped.
pub(crate) struct Probe {
    // Holds the program and its link.
    ebpf: Ebpf,
    program: &'static str,
    events: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
}

impl Probe {
    /// Loads it: for every event, or for those in the mount namespaces of a selection of at most so many.
    pub(crate) fn load(object: &Object, selection: Option<u32>) -> Result<Self> {
        let btf = Btf::from_sys_fs()?;
        let is_selecting = u64::from(selection.is_some());
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf)).override_global("IS_SELECTING", &is_selecting, true);
        loader.map_max_entries("SELECTED", selection.unwrap_or(1));
        for (name, offset) in &object.offsets {
            loader.override_global(name, offset, true);
        }
        let mut ebpf = loader.load(object.bytes).context("load the probe: it needs root")?;
        program(&mut ebpf, object.program)?.load(object.tracepoint, &btf).context("load the probe")?;
        let events = RingBuf::try_from(ebpf.take_map("EVENTS").context("find the ring buffer")?)?;
        let lost = PerCpuArray::try_from(ebpf.take_map("LOST").context("find the counters")?)?;
        Ok(Self { ebpf, program: object.program, events, lost })
    }

    /// The map that the selection is to be kept up in.
    pub(crate) fn selected(&self) -> Result<OwnedFd> {
        match self.ebpf.map("SELECTED") {
            Some(Map::HashMap(map)) => map.fd().as_fd().try_clone_to_owned().context("share the selection's map"),
            _ => anyhow::bail!("the object has no map for a selection"),
        }
    }

    /// Attaches it: every event from now on is in the ring buffer.
    pub(crate) fn attach(&mut self) -> Result<()> {
        program(&mut self.ebpf, self.program)?.attach().context("attach the probe")?;
        Ok(())
    }

    /// The oldest event that has not been read, as `decode` understands its bytes. Does not wait.
    pub(crate) fn next<E>(&mut self, decode: fn(&[u8]) -> Option<E>) -> Option<E> {
        // Too short never happens with the object that this was built with.
        self.events.next().and_then(|bytes| decode(&bytes))
    }

    /// How many events found the ring buffer full.
    pub(crate) fn lost(&self) -> Result<u64> {
        let counters = self.lost.get(&0, 0).context("read the counters")?;
        Ok(counters.iter().sum())
    }

    /// How often it ran, and how long all runs took together; zeros unless the kernel counts that.
    pub(crate) fn cost(&self) -> Result<(u64, Duration)> {
        let info = self.ebpf.program(self.program).context("find the probe")?.info().context("look at the probe")?;
        Ok((info.run_count(), info.run_time()))
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint> {
    Ok(ebpf.program_mut(name).context("find the probe")?.try_into()?)
}

impl AsFd for Probe {
    /// Readable while there is an event to read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}
