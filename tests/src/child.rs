//! Children made by `clone` itself, in namespaces of their own, that do exactly what the test says and nothing else.
//!
//! A child is a copy of the test with one thread, at a moment when others may hold any lock: what it runs may only call
//! the kernel. It waits for a byte first, so that the test can look at it while it lives.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{pipe, write};
use tracker::container::TaskId;

use crate::{kernel, process};

/// A child; killed and waited for when dropped.
pub struct Child {
    pid: u32,
    // Both ends: children of the same test hold copies of them, so that an end that is closed says nothing.
    pipe: (OwnedFd, OwnedFd),
    waited: bool,
}

impl Child {
    /// Clones a child with these `CLONE_NEW…` flags. Told to [`go`](Child::go), it runs `action` with the pipe's end to
    /// read from, and exits with what that returns.
    ///
    /// # Safety
    ///
    /// `action` may call the kernel, and nothing that takes a lock or allocates.
    pub unsafe fn clone(flags: i32, action: impl FnOnce(RawFd) -> i32) -> io::Result<Child> {
        let (read, write) = pipe()?;
        let flags = libc::c_long::from(flags | libc::SIGCHLD);
        // SAFETY: without a stack of its own the child goes on like one of `fork`.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                die_with_parent();
                wait_for_byte(read.as_raw_fd());
                let code = action(read.as_raw_fd());
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(code) }
            }
            pid => Ok(Child { pid: pid as u32, pipe: (read, write), waited: false }),
        }
    }

    /// One that exits with this code.
    pub fn exiting(flags: i32, code: u8) -> io::Result<Child> {
        // SAFETY: calls nothing.
        unsafe { Child::clone(flags, |_| i32::from(code)) }
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its identity, read while it lives.
    pub fn task(&self) -> io::Result<TaskId> {
        Ok(TaskId { pid: self.pid, start_ticks: kernel::start_ticks(self.pid)? })
    }

    /// Lets it go on; each call is one byte.
    pub fn go(&self) -> io::Result<()> {
        write(&self.pipe.1, b"!")?;
        Ok(())
    }

    /// Lets it go on and waits for its end.
    pub fn finish(mut self) -> io::Result<WaitStatus> {
        self.go()?;
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> io::Result<WaitStatus> {
        let status = waitpid(process::pid(self.pid), None)?;
        self.waited = true;
        Ok(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.waited {
            // It cannot be gone: nobody has waited for it.
            let _ = nix::sys::signal::kill(process::pid(self.pid), nix::sys::signal::Signal::SIGKILL);
            let _ = waitpid(process::pid(self.pid), None);
        }
    }
}

/// For a child: waits for the next byte.
pub fn wait_for_byte(pipe: RawFd) {
    let mut byte = 0_u8;
    // SAFETY: reads into a byte of its own.
    unsafe { libc::read(pipe, (&raw mut byte).cast(), 1) };
}

/// A test that fails leaves nobody behind who holds its output open.
fn die_with_parent() {
    // SAFETY: takes numbers.
    unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
}

/// For a child: becomes another user, all the way.
pub fn become_user(uid: u32) {
    let uid = libc::c_long::from(uid);
    // The system call itself: the library's function would look for the test's threads, which are not there.
    // SAFETY: takes numbers.
    unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
}

/// For a child: clones a child of its own that runs `action`, waits for it, and returns its exit code; -1 when it could
/// not be cloned.
pub fn run_inner(flags: i32, action: impl FnOnce() -> i32) -> i32 {
    let flags = libc::c_long::from(flags | libc::SIGCHLD);
    // SAFETY: without a stack of its own the child goes on like one of `fork`.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid == 0 {
        die_with_parent();
        let code = action();
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(code) }
    }
    let mut status = 0;
    // SAFETY: writes into a number of its own.
    match unsafe { libc::waitpid(pid as libc::pid_t, &mut status, 0) } {
        -1 => -1,
        _ => libc::WEXITSTATUS(status),
    }
}

/// Room for a thread that only calls the kernel.
static mut STACK: [u8; 16384] = [0; 16384];

extern "C" fn last_thread(pipe: *mut libc::c_void) -> libc::c_int {
    wait_for_byte(pipe as RawFd);
    // SAFETY: ends all threads of the child.
    unsafe { libc::syscall(libc::SYS_exit_group, 42) };
    0
}

/// For a child: starts a thread that waits for the next byte and then ends the process with code 42, and ends the first
/// thread alone.
pub fn leave_a_thread(pipe: RawFd) -> i32 {
    let flags = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    let top = (&raw mut STACK).wrapping_add(1).cast::<libc::c_void>();
    let argument = pipe as *mut libc::c_void;
    // SAFETY: the stack is this process's own copy, and used by one thread.
    let started = unsafe { libc::clone(last_thread, top, flags, argument) };
    if started == -1 {
        return 99;
    }
    // SAFETY: ends this thread alone.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    98
}
