//! The kernel half, seen from here: loaded with what it has to know of this kernel, attached, and read.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, PerCpuArray, RingBuf};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use tracker::source::kernel;

use crate::event::Exec;

/// `cargo xtask ebpf` builds it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/execsnoop.bpf.o");

/// The probe's name in the object.
const PROGRAM: &str = "on_exec";

/// The loaded probe. It detaches when this is dropped.
pub(crate) struct Probe {
    // Holds the program and its link.
    ebpf: Ebpf,
    execs: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
}

impl Probe {
    /// Loads it: for every exec, or for those in the mount namespaces of a selection of at most so many.
    pub(crate) fn load(selection: Option<u32>) -> Result<Self> {
        // Kernels differ in where they keep their fields, and rustc leaves a loader nothing to correct that by. So the
        // program reads each offset from a global, and gets it from the running kernel's own type information.
        let [nsproxy, mnt_ns, ns, inum, filename] = kernel::offsets([
            ("task_struct", "nsproxy"),
            ("nsproxy", "mnt_ns"),
            ("mnt_namespace", "ns"),
            ("ns_common", "inum"),
            ("linux_binprm", "filename"),
        ])?;
        let btf = Btf::from_sys_fs()?;
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("TASK_NSPROXY", &nsproxy, true)
            .override_global("NSPROXY_MNT_NS", &mnt_ns, true)
            .override_global("MNT_NAMESPACE_NS", &ns, true)
            .override_global("NS_COMMON_INUM", &inum, true)
            .override_global("BINPRM_FILENAME", &filename, true)
            .override_global("IS_SELECTING", &u64::from(selection.is_some()), true)
            .map_max_entries("SELECTED", selection.unwrap_or(1))
            .load(OBJECT)
            .context("load the probe: it needs root")?;
        program(&mut ebpf)?.load("sched_process_exec", &btf).context("load the probe")?;
        let execs = RingBuf::try_from(ebpf.take_map("EXECS").context("find the ring buffer")?)?;
        let lost = PerCpuArray::try_from(ebpf.take_map("LOST").context("find the counters")?)?;
        Ok(Self { ebpf, execs, lost })
    }

    /// The map that the selection is to be kept up in.
    pub(crate) fn selected(&self) -> Result<OwnedFd> {
        match self.ebpf.map("SELECTED") {
            Some(Map::HashMap(map)) => map.fd().as_fd().try_clone_to_owned().context("share the selection's map"),
            _ => anyhow::bail!("the object has no map for a selection"),
        }
    }

    /// Attaches it: every exec from now on is in the ring buffer.
    pub(crate) fn attach(&mut self) -> Result<()> {
        program(&mut self.ebpf)?.attach().context("attach the probe")?;
        Ok(())
    }

    /// How often it ran, and how long all runs took together; zeros unless the kernel counts that.
    pub(crate) fn cost(&self) -> Result<(u64, Duration)> {
        let info = self.ebpf.program(PROGRAM).context("find the probe")?.info().context("look at the probe")?;
        Ok((info.run_count(), info.run_time()))
    }

    /// The oldest exec that has not been read. Does not wait.
    pub(crate) fn next(&mut self) -> Option<Exec> {
        // Too short never happens with the object that this was built with.
        self.execs.next().and_then(|bytes| Exec::decode(&bytes))
    }

    /// How many execs found the ring buffer full.
    pub(crate) fn lost(&self) -> Result<u64> {
        let counters = self.lost.get(&0, 0).context("read the counters")?;
        Ok(counters.iter().sum())
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut BtfTracePoint> {
    Ok(ebpf.program_mut(PROGRAM).context("find the probe")?.try_into()?)
}

impl AsFd for Probe {
    /// Readable while there is an exec to read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.execs.as_fd()
    }
}
