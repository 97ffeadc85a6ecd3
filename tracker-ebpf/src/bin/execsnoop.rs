//! The kernel half of the example `execsnoop`: one record for each exec on the host.
//!
//! It knows nothing of containers. It says when and in which mount namespace; the library turns that into a name. Which of
//! them are wanted a selection tells, which the library keeps up.
#![no_std]
#![no_main]

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_ktime_get_boot_ns, bpf_probe_read_kernel_str};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{HashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::BtfTracePointContext;

#[path = "../../../tracker/examples/execsnoop/event.rs"]
mod event;

use event::{Exec, FILENAME_LEN};

/// Where the running kernel keeps the fields that are read here. The loader finds out and writes it over these; frozen
/// then, they are constants to the verifier, which checks the loads by the kernel's own types.
#[unsafe(no_mangle)]
static TASK_NSPROXY: Global<u64> = Global::new(u64::MAX);
#[unsafe(no_mangle)]
static NSPROXY_MNT_NS: Global<u64> = Global::new(u64::MAX);
#[unsafe(no_mangle)]
static MNT_NAMESPACE_NS: Global<u64> = Global::new(u64::MAX);
#[unsafe(no_mangle)]
static NS_COMMON_INUM: Global<u64> = Global::new(u64::MAX);
#[unsafe(no_mangle)]
static BINPRM_FILENAME: Global<u64> = Global::new(u64::MAX);

/// Whether only execs in the mount namespaces of `SELECTED` are recorded. Frozen as well: where it is 0, the verifier leaves
/// the look-up out of the program.
#[unsafe(no_mangle)]
static IS_SELECTING: Global<u64> = Global::new(0);

/// The selection: inode numbers of mount namespaces, each with its never-reused number. The loader gives it its size.
#[map]
static SELECTED: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);

/// Room for some 3,000 execs that nobody has read yet.
#[map]
static EXECS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// How many execs found no room. Each processor counts its own, so that none waits for another.
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// `sched_process_exec(task, old_pid, bprm)`: the task is the current one.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn on_exec(ctx: BtfTracePointContext) -> i32 {
    let (task, program): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(2));
    let nsproxy: *const u8 = load(task, TASK_NSPROXY.load());
    let mount_ns: *const u8 = load(nsproxy, NSPROXY_MNT_NS.load());
    let mntns: u32 = load(mount_ns, MNT_NAMESPACE_NS.load() + NS_COMMON_INUM.load());
    let mut selected = 0;
    if IS_SELECTING.load() != 0 {
        let Some(generation) = SELECTED.get_ptr(&mntns) else { return 0 };
        // SAFETY: a value of the map, which stays where it is until this program has ended.
        selected = unsafe { generation.read_volatile() };
    }
    let Some(mut record) = EXECS.reserve::<Exec>(0) else {
        count_lost();
        return 0;
    };
    let filename: *const u8 = load(program, BINPRM_FILENAME.load());
    let exec = record.as_mut_ptr();
    // SAFETY: `exec` is reserved; the helper writes at most `FILENAME_LEN` bytes into its last field.
    let copied =
        unsafe { bpf_probe_read_kernel_str((&raw mut (*exec).filename).cast(), FILENAME_LEN as u32, filename.cast()) };
    // SAFETY: `exec` is reserved with the size of its type, and aligned to 8 bytes.
    unsafe {
        if copied <= 0 {
            (*exec).filename[0] = 0;
        }
        (*exec).time = bpf_ktime_get_boot_ns();
        (*exec).cgroup = bpf_get_current_cgroup_id();
        (*exec).pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*exec).mntns = mntns;
        (*exec).selected = selected;
        (*exec).comm = bpf_get_current_comm().unwrap_or_default();
    }
    record.submit(0);
    0
}

/// Loads a field of one of the kernel's structs. Where the pointer is null the kernel gives 0 instead of a fault.
#[inline(always)]
fn load<T>(structure: *const u8, offset: u64) -> T {
    // SAFETY: the verifier knows the struct's type, and accepts the program only if a `T` may be read there.
    unsafe { core::ptr::read_volatile(structure.add(offset as usize).cast()) }
}

#[inline(always)]
fn count_lost() {
    if let Some(lost) = LOST.get_ptr_mut(0) {
        // SAFETY: this processor's counter, and a tracepoint's program is not interrupted by another exec.
        unsafe { *lost += 1 };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are for programs under the GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
