//! Forks, execs and exits. The host's own leave after a few loads and two compares.

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_ktime_get_boot_ns};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::debug;
use tracker_common::life::{self, Report};
use tracker_common::record::{Kind, ProcessRecord, TaskFacts};
use tracker_common::table::Loss;
use tracker_ebpf::setting;
use tracker_ebpf::task::Task;

use crate::maps::{Maps, count_process_record, emit, is_abandoned};

/// `sched_process_fork(parent, child)`: the child is complete, and has not run.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn on_fork(ctx: BtfTracePointContext) -> i32 {
    let child = Task::new(ctx.arg(1));
    if !child.is_contained() || child.pid() != child.tgid() {
        return 0;
    }
    let now = now();
    if is_abandoned(now) {
        return 0;
    }
    let facts = child.facts();
    if let Some(report) = life::forked(&Maps, &facts, now) {
        debug!(&ctx, "mount ns {} born by fork of {}", facts.mntns, facts.tgid);
        emit_process(Kind::Fork, &facts, now, report, 0, 0);
    }
    0
}

/// `sched_process_exec(task, old_pid, bprm)`: the new program has not run.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn on_exec(ctx: BtfTracePointContext) -> i32 {
    let task = Task::new(ctx.arg(0));
    if !task.is_contained() {
        return 0;
    }
    let now = now();
    if is_abandoned(now) {
        return 0;
    }
    let facts = task.facts();
    if let Some(report) = life::executed(&Maps, &facts, now) {
        emit_process(Kind::Exec, &facts, now, report, 0, 0);
    }
    0
}

/// `sched_process_exit(task[, group_dead])`: the task still has its namespaces.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn on_exit(ctx: BtfTracePointContext) -> i32 {
    let task = Task::new(ctx.arg(0));
    if !task.is_contained() {
        return 0;
    }
    // Decided while verifying: kernels without the argument never see it read.
    let last = if setting!(exit_tells_group_dead) == 1 { ctx.arg::<u64>(1) & 0xff != 0 } else { task.is_last_thread() };
    if !last {
        return 0;
    }
    let now = now();
    if is_abandoned(now) {
        return 0;
    }
    let facts = task.facts();
    if let Some(report) = life::ended(&Maps, &facts, now) {
        let oom = match task.is_oom_victim() {
            Some(true) => ProcessRecord::OOM_KNOWN | ProcessRecord::OOM,
            Some(false) => ProcessRecord::OOM_KNOWN,
            None => 0,
        };
        emit_process(Kind::Exit, &facts, now, report, oom, task.exit_status());
    }
    0
}

#[inline(always)]
fn emit_process(kind: Kind, facts: &TaskFacts, now: u64, report: Report, flags: u32, status: u32) {
    count_process_record();
    // A child's name is its parent's, and that is the current task.
    let comm = bpf_get_current_comm().unwrap_or([0; 16]);
    emit(report.wake, Loss::ProcessRecord, |record: *mut ProcessRecord| {
        let record_value = ProcessRecord {
            kind: kind as u32,
            flags: report.flags | flags,
            time: now,
            born: report.born,
            task: TaskFacts { comm, ..*facts },
            status,
            reserved: 0,
        };
        // SAFETY: `record` is reserved with the size of its type, and aligned to 8 bytes.
        unsafe { record.write(record_value) };
    });
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}
