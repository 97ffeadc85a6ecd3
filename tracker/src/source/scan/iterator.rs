//! The BPF task iterator: one read sees every task (10,000 in some 10 ms).

use std::io::{self, Read};

use aya::programs::Iter;
use aya::{Btf, Ebpf, EbpfLoader};
use tracker_common::record::TaskFacts;

use super::ScanError;
use crate::source::kernel::tables::Plain;
use crate::source::kernel::{Config, KernelError, Machine};

/// The iterator, as `cargo xtask ebpf` built it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../bpf/scan.bpf.o");

/// A read that sees only tasks of no interest for too long comes back with `EAGAIN`, to be repeated.
const MAX_RETRIES: u32 = 1000;

/// The loaded iterator; each read runs it afresh.
pub(super) struct TaskIterator {
    ebpf: Ebpf,
}

impl TaskIterator {
    pub(super) fn load(machine: &Machine) -> Result<Self, KernelError> {
        let failed = |source| KernelError::Load { program: "scan", tracepoint: "iter/task", source: Box::new(source) };
        let btf = Btf::from_sys_fs()?;
        let setup = Plain(machine.setup(&Config::default()));
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("SETUP", &setup, true)
            .load(OBJECT)
            .map_err(|error| KernelError::Maps(Box::new(error)))?;
        let found = ebpf.program_mut("scan").ok_or(KernelError::Object("scan"))?;
        let program: &mut Iter = found.try_into().map_err(failed)?;
        program.load("task", &btf).map_err(failed)?;
        Ok(Self { ebpf })
    }

    pub(super) fn read(&mut self) -> Result<Vec<TaskFacts>, ScanError> {
        let failed = |error| ScanError::Attach(Box::new(error));
        let program = self.ebpf.program_mut("scan").expect("`load` found it");
        let program: &mut Iter = program.try_into().map_err(failed)?;
        // A link makes one file; it is released with it.
        let id = program.attach().map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        let mut file = link.into_file().map_err(|error| ScanError::Iterator(io::Error::other(error)))?;
        let bytes = read_all(&mut file).map_err(ScanError::Iterator)?;
        Ok(bytes.chunks_exact(size_of::<TaskFacts>()).filter_map(TaskFacts::decode).collect())
    }
}

fn read_all(file: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut retries = 0;
    loop {
        // Keeps what was read before an error.
        match file.read_to_end(&mut bytes) {
            Ok(_) => return Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && retries < MAX_RETRIES => retries += 1,
            Err(error) => return Err(error),
        }
    }
}
