//! The kernel half, seen from here: loaded with what it has to know of this kernel, attached, and read.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use tracker::source::kernel;

use crate::event::Exec;

/// `cargo xtask ebpf` builds it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/execsnoop.bpf.o");

/// The attached probe. It detaches when this is dropped.
pub(crate) struct Probe {
    // Holds the program and its link.
    _ebpf: Ebpf,
    execs: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
}

impl Probe {
    /// Loads and attaches it: every exec from now on is in the ring buffer.
    pub(crate) fn attach() -> Result<Self> {
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
            .load(OBJECT)
            .context("load the probe: it needs root")?;
        let probe: &mut BtfTracePoint = ebpf.program_mut("on_exec").context("find the probe")?.try_into()?;
        probe.load("sched_process_exec", &btf).context("load the probe")?;
        probe.attach().context("attach the probe")?;
        let execs = RingBuf::try_from(ebpf.take_map("EXECS").context("find the ring buffer")?)?;
        let lost = PerCpuArray::try_from(ebpf.take_map("LOST").context("find the counters")?)?;
        Ok(Self { _ebpf: ebpf, execs, lost })
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

impl AsFd for Probe {
    /// Readable while there is an exec to read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.execs.as_fd()
    }
}
