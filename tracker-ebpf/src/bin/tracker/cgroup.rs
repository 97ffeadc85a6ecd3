//! Cgroups made, removed and emptied, in one hierarchy. The path is the tracepoint's own argument.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use tracker_common::record::{CgroupRecord, Kind, PATH_LEN};
use tracker_common::table::Loss;
use tracker_ebpf::setting;
use tracker_ebpf::task::{Kernel, cgroup_hierarchy, cgroup_id};

use crate::maps::{count_cgroup_record, emit, is_abandoned};

/// `cgroup_mkdir(cgroup, path)`.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn on_cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    emit_cgroup(&ctx, Kind::CgroupMade)
}

/// `cgroup_rmdir(cgroup, path)`.
#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn on_cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    emit_cgroup(&ctx, Kind::CgroupRemoved)
}

/// `cgroup_notify_populated(cgroup, path, populated)`.
#[btf_tracepoint(function = "cgroup_notify_populated")]
pub fn on_cgroup_populated(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<u32>(2) != 0 {
        return 0;
    }
    emit_cgroup(&ctx, Kind::CgroupEmptied)
}

#[inline(always)]
fn emit_cgroup(ctx: &BtfTracePointContext, kind: Kind) -> i32 {
    let cgroup = Kernel(ctx.arg(0));
    let path: *const u8 = ctx.arg(1);
    let hierarchy = cgroup_hierarchy(cgroup);
    if hierarchy != setting!(hierarchy) as u32 {
        return 0;
    }
    // SAFETY: a helper without arguments.
    let time = unsafe { bpf_ktime_get_boot_ns() };
    if is_abandoned(time) {
        return 0;
    }
    count_cgroup_record();
    let id = cgroup_id(cgroup);
    emit(false, Loss::CgroupRecord, |record: *mut CgroupRecord| {
        // SAFETY: `record` is reserved; the helper writes at most `PATH_LEN` bytes into its last field.
        let copied =
            unsafe { bpf_probe_read_kernel_str((&raw mut (*record).path).cast(), PATH_LEN as u32, path.cast()) };
        // With the closing NUL; negative when the path could not be read.
        let path_len = if copied > 0 { copied as u32 - 1 } else { 0 };
        let flags = if path_len as usize == PATH_LEN - 1 { CgroupRecord::TRUNCATED } else { 0 };
        // SAFETY: `record` is reserved with the size of its type, and aligned to 8 bytes.
        unsafe {
            (*record).kind = kind as u32;
            (*record).path_len = path_len;
            (*record).time = time;
            (*record).id = id;
            (*record).hierarchy = hierarchy;
            (*record).flags = flags;
        }
    });
    0
}
