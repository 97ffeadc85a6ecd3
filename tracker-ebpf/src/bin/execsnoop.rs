//! The kernel half of the example `execsnoop`: one record for each exec on the host.
//!
//! It knows nothing of containers. It says when and in which mount namespace; the library turns that into a name. Which of
//! them are wanted a selection tells, which the library keeps up.
#![no_std]
#![no_main]

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

#[path = "../../../tracker/examples/execsnoop/event.rs"]
mod event;
#[path = "../example.rs"]
mod example;
#[path = "../../../tracker/examples/common/head.rs"]
mod head;

use event::{Exec, FILENAME_LEN};
use example::{EVENTS, count_lost, here, load, write_head};

/// Where the running kernel keeps a field; see `example.rs`.
#[unsafe(no_mangle)]
static BINPRM_FILENAME: Global<u64> = Global::new(u64::MAX);

/// `sched_process_exec(task, old_pid, bprm)`: the task is the current one.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn on_exec(ctx: BtfTracePointContext) -> i32 {
    let (task, program): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(2));
    let Some(here) = here(task) else { return 0 };
    let Some(mut record) = EVENTS.reserve::<Exec>(0) else {
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
        write_head(&raw mut (*exec).head, here);
    }
    record.submit(0);
    0
}
