//! The few calls into the kernel that no safe crate of ours offers.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Closes every fd from `first` on: what a program that started us left open by mistake must not stay open in us.
///
/// To be called while nothing but fds below `first` is owned by any value.
pub(super) fn close_fds_from(first: u32) {
    // SAFETY: no value of this process owns an fd from `first` on; the callers' first act is this call.
    unsafe { libc::close_range(first, u32::MAX, 0) };
}

/// Puts the calling thread before all ordinary ones: real-time priority `priority` where allowed, else a low nice value.
/// Returns whether it is real-time. Children do not inherit it.
pub(crate) fn raise_priority(priority: i32) -> bool {
    // SAFETY: `sched_param` consists of integers, for which zero is a value.
    let mut parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    parameter.sched_priority = priority;
    // SAFETY: 0 means the calling thread, and the kernel only reads `parameter`, which outlives the call.
    let refused = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &parameter) };
    if refused == 0 {
        return true;
    }
    // SAFETY: takes integers only; 0 means the calling thread on Linux.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
    false
}

/// An fd that becomes readable when the process `pid` ends (Linux 5.3).
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)? as i32;
    // SAFETY: the kernel has just put this fd into our table for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
