//! The few calls into the kernel that no safe crate of ours offers.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, madvise};

/// Closes every fd from `first` on: what a program that started us left open by mistake must not stay open in us.
///
/// To be called while nothing but fds below `first` is owned by any value.
pub(crate) fn close_fds_from(first: u32) {
    // SAFETY: no value of this process owns an fd from `first` on; the callers' first act is this call.
    unsafe { libc::close_range(first, u32::MAX, 0) };
}

/// Puts the calling thread before all ordinary ones, as is everything on the way from a held start to its answer: the
/// collection's writer and the synchronous subscribers, too. Real-time priority where that is allowed (`CAP_SYS_NICE`), else
/// a low nice value; returns whether it is real-time. Children of the thread do not inherit it.
pub fn raise_priority() -> bool {
    set_priority(1, libc::SCHED_RESET_ON_FORK)
}

/// The same with another real-time priority, which new threads of this thread begin with: one that had to raise itself first
/// would wait behind everybody else to do so.
pub(crate) fn raise_priority_with_children(priority: i32) -> bool {
    set_priority(priority, 0)
}

fn set_priority(priority: i32, flags: i32) -> bool {
    // SAFETY: `sched_param` consists of integers, for which zero is a value.
    let mut parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    parameter.sched_priority = priority;
    // SAFETY: 0 means the calling thread, and the kernel only reads `parameter`, which outlives the call.
    let refused = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | flags, &parameter) };
    if refused == 0 {
        return true;
    }
    // SAFETY: takes integers only; 0 means the calling thread on Linux.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
    false
}

/// Asks for large pages behind `len` bytes that are read at random: the processor then finds each of them at once rather
/// than by a walk through its page tables. As good as nothing where the kernel has none to give.
pub(crate) fn advise_large_pages(at: NonNull<c_void>, len: usize) {
    // SAFETY: whosever memory that is, this advice changes neither what is in it nor who may use it.
    let _ = unsafe { madvise(at, len, MmapAdvise::MADV_HUGEPAGE) };
}

/// An fd that becomes readable when the process `pid` ends (Linux 5.3).
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)? as i32;
    // SAFETY: the kernel has just put this fd into our table for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A mount namespace's never-reused id (Linux 6.12).
pub(crate) fn mount_namespace_id(namespace: impl AsFd) -> io::Result<u64> {
    let mut id = 0;
    // SAFETY: the request writes one u64 to the pointer, which lives until the call returns.
    unsafe { ns_get_mntns_id(namespace.as_fd().as_raw_fd(), &mut id) }?;
    Ok(id)
}

/// The namespace above a pid or user namespace, unless that is outside of our own.
pub(crate) fn parent_namespace(namespace: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument.
    let fd = unsafe { ns_get_parent(namespace.as_fd().as_raw_fd()) }?;
    // SAFETY: the kernel has just put this fd into our table for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

nix::ioctl_none! {
    /// `NS_GET_PARENT` of `linux/nsfs.h`.
    ns_get_parent, 0xb7, 0x2
}

nix::ioctl_read! {
    /// `NS_GET_MNTNS_ID` of `linux/nsfs.h`.
    ns_get_mntns_id, 0xb7, 0x5, u64
}

/// Wakes every thread, of any process, that waits on the lower half of `word` as a futex in shared memory.
pub(crate) fn wake_waiters(word: &AtomicU64) {
    // SAFETY: the kernel takes the address as a name and reads four bytes there, which live as long as `word`.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
