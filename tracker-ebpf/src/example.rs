//! What the kernel halves of the examples share. Included by each of them, since the maps and globals in here are a
//! program's own.

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_ktime_get_boot_ns};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray, RingBuf};

use super::head::Head;

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

/// Whether only events in the mount namespaces of `SELECTED` are recorded. Frozen as well: where it is 0, the verifier
/// leaves the look-up out of the program.
#[unsafe(no_mangle)]
static IS_SELECTING: Global<u64> = Global::new(0);

/// The selection: inode numbers of mount namespaces, each with its never-reused number. The loader gives it its size.
#[map]
static SELECTED: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);

/// Room for some thousand events that nobody has read yet.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// How many events found no room. Each processor counts its own, so that none waits for another.
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Where an event happens, and what stands there in the selection.
#[derive(Clone, Copy)]
pub struct Here {
    mntns: u32,
    selected: u64,
}

/// Looks where the task is; `None` where that is not selected.
#[inline(always)]
pub fn here(task: *const u8) -> Option<Here> {
    let nsproxy: *const u8 = load(task, TASK_NSPROXY.load());
    let mount_ns: *const u8 = load(nsproxy, NSPROXY_MNT_NS.load());
    let mntns: u32 = inum(mount_ns, MNT_NAMESPACE_NS.load());
    if IS_SELECTING.load() == 0 {
        return Some(Here { mntns, selected: 0 });
    }
    // SAFETY: a value of the map, which stays where it is until this program has ended.
    let selected = unsafe { SELECTED.get_ptr(&mntns)?.read_volatile() };
    Some(Here { mntns, selected })
}

/// The inode number of a namespace, whose `ns_common` is at `offset` in its own struct.
#[inline(always)]
pub fn inum(namespace: *const u8, offset: u64) -> u32 {
    load(namespace, offset + NS_COMMON_INUM.load())
}

/// Writes what every event begins with, about the current task.
///
/// # Safety
/// `head` may be written.
#[inline(always)]
pub unsafe fn write_head(head: *mut Head, here: Here) {
    // SAFETY: as the caller promises.
    unsafe {
        (*head).time = bpf_ktime_get_boot_ns();
        (*head).cgroup = bpf_get_current_cgroup_id();
        (*head).selected = here.selected;
        (*head).pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*head).mntns = here.mntns;
        (*head).comm = bpf_get_current_comm().unwrap_or_default();
    }
}

/// Loads a field of one of the kernel's structs. Where the pointer is null the kernel gives 0 instead of a fault.
#[inline(always)]
pub fn load<T>(structure: *const u8, offset: u64) -> T {
    // SAFETY: the verifier knows the struct's type, and accepts the program only if a `T` may be read there.
    unsafe { core::ptr::read_volatile(structure.add(offset as usize).cast()) }
}

/// Counts an event that found no room.
#[inline(always)]
pub fn count_lost() {
    if let Some(lost) = LOST.get_ptr_mut(0) {
        // SAFETY: this processor's counter; an event of this kind is not interrupted by another on the same one.
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
