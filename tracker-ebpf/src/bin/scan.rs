//! The task iterator: writes [`TaskFacts`] of every process that is not in the host's mount namespace.
//!
//! Each read of the iterator's file runs it over all tasks. A process is reported by its first thread, or by all its
//! living threads once that has ended: the reader keeps one.
#![no_std]
#![no_main]

use core::ffi::c_void;

use aya_ebpf::bindings::seq_file;
use aya_ebpf::helpers::bpf_seq_write;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use tracker_common::record::{COMM_LEN, TaskFacts};
use tracker_ebpf::task::Task;

/// `struct bpf_iter__task`.
#[repr(C)]
pub struct TaskIteration {
    meta: *const IterMeta,
    task: *const u8,
}

/// `struct bpf_iter_meta`.
#[repr(C)]
pub struct IterMeta {
    seq: *mut seq_file,
}

/// Runs once per task, and once more at the end, without one.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn scan(iteration: *const TaskIteration) -> i32 {
    // SAFETY: the kernel calls with a context of this type.
    let (meta, task) = unsafe { ((*iteration).meta, (*iteration).task) };
    if task.is_null() {
        return 0;
    }
    let task = Task::new(task);
    if !task.is_contained() || (task.pid() != task.tgid() && !task.is_leader_gone()) {
        return 0;
    }
    let mut facts = task.facts();
    // A name that cannot be read stays empty.
    // SAFETY: the helper checks the address, and writes at most `COMM_LEN` bytes.
    unsafe { bpf_probe_read_kernel_str(facts.comm.as_mut_ptr().cast(), COMM_LEN as u32, task.comm().cast()) };
    let bytes = (&raw const facts).cast::<c_void>();
    // When the file's buffer is full the kernel empties it and calls again for the same task.
    // SAFETY: `bytes` are that many, and `seq` is the kernel's.
    unsafe { bpf_seq_write((*meta).seq, bytes.cast_mut(), size_of::<TaskFacts>() as u32) };
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are for programs under the GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
