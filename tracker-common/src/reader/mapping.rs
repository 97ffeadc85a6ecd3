//! A mapped file whose words can be read, and by its owner written, whatever becomes of the file.
//!
//! Whoever owns the file may cut it short, and a read behind its end is a SIGBUS. So there is a handler for that signal,
//! set up with the first mapping and chained to what was there before: for an address in one of our mappings it puts
//! zeros in the place of the whole mapping, and notes that it is broken. The reader goes on, finds that nothing is what
//! it was, and can say so. Faults anywhere else are the previous handler's, or the end of the process, as without us.
//!
//! A program that sets a SIGBUS handler of its own afterwards, and does not chain to ours, gives this up.

use std::format;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::slice;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::plane::WORD_LEN;

/// How many files can be mapped at once.
pub(super) const MAX_MAPPINGS: usize = 64;

/// A mapping, as the handler knows it.
struct Known {
    /// Its first byte; 0 where the place is free, 1 where it is being taken.
    start: AtomicUsize,
    len: AtomicUsize,
    is_writable: AtomicBool,
    is_broken: AtomicBool,
}

static KNOWN: [Known; MAX_MAPPINGS] = [const { Known::free() }; MAX_MAPPINGS];

impl Known {
    const fn free() -> Known {
        Known {
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            is_writable: AtomicBool::new(false),
            is_broken: AtomicBool::new(false),
        }
    }
}

/// What is done with a mapped file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A store would end the process.
    Read,
    /// Stores reach the file, as long as it is whole.
    Write,
}

impl Access {
    fn protection(self) -> libc::c_int {
        match self {
            Access::Read => libc::PROT_READ,
            Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// What was there before our handler; set before a fault can be ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// A mapped file. Unmapped when dropped.
pub struct Mapping {
    start: *mut libc::c_void,
    len: usize,
    known: &'static Known,
}

// SAFETY: the memory is only accessed atomically, and stays mapped for as long as the value lives.
unsafe impl Send for Mapping {}
// SAFETY: as above; there is nothing in it that one thread could change under another.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes, a multiple of [`WORD_LEN`] and more than none.
    pub fn of(file: &File, len: usize, access: Access) -> io::Result<Self> {
        set_up_handler()?;
        let known = KNOWN
            .iter()
            .find(|known| known.start.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok())
            .ok_or_else(|| io::Error::other(format!("{MAX_MAPPINGS} planes are open already: close some")))?;
        // SAFETY: a new mapping at a place of the kernel's choice; the descriptor is open.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                access.protection(),
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            known.start.store(0, Ordering::Release);
            return Err(error);
        }
        known.len.store(len, Ordering::Relaxed);
        known.is_writable.store(access == Access::Write, Ordering::Relaxed);
        known.is_broken.store(false, Ordering::Relaxed);
        known.start.store(start.addr(), Ordering::Release);
        Ok(Mapping { start, len, known })
    }

    /// The words; zeros, once the file was cut.
    #[inline]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: `start` is the beginning of a mapping of `len` bytes that lasts until `self` is dropped, and so aligned
        // to a page. Others change it, which atomics allow for; relaxed and acquire loads of a word need no write access
        // on the 64-bit targets that we build for. A part of it that has no file behind it reads as zeros (the handler).
        unsafe { slice::from_raw_parts(self.start.cast::<AtomicU64>(), self.len / WORD_LEN) }
    }

    /// Whether the file was found to be cut.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.known.is_broken.load(Ordering::Relaxed)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nobody else has what `words` lent.
        unsafe { libc::munmap(self.start, self.len) };
        self.known.start.store(0, Ordering::Release);
    }
}

fn set_up_handler() -> io::Result<()> {
    static IS_SET_UP: OnceLock<Result<(), i32>> = OnceLock::new();
    let done = IS_SET_UP.get_or_init(|| {
        let last_error = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
        // SAFETY: consists of integers and pointers, for all of which zero is a value.
        let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: only asks; `before` is valid for writes.
        if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &mut before) } != 0 {
            return Err(last_error());
        }
        // Before ours is in place, for it may be called at once.
        let _ = PREVIOUS.set(before);
        // SAFETY: as above.
        let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
        ours.sa_sigaction = on_bus_error as extern "C" fn(_, _, _) as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for, and calls only what a handler may.
        match unsafe { libc::sigaction(libc::SIGBUS, &ours, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(last_error()),
        }
    });
    done.map_err(io::Error::from_raw_os_error)
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid `info` to a handler with SA_SIGINFO.
    let information = unsafe { &*info };
    // SAFETY: for SIGBUS the address is there.
    let address = unsafe { information.si_addr() }.addr();
    // A positive code comes from the kernel; who else sends the signal does not mean an address.
    if information.si_code <= 0 || !put_zeros(address) {
        hand_on(signal, info, context);
    }
}

/// Puts zeros in the place of the mapping that has this address; `false` where none of ours has.
///
/// Of the whole mapping: what was read from it before the fault is never confirmed by what is read afterwards.
fn put_zeros(address: usize) -> bool {
    for known in &KNOWN {
        let start = known.start.load(Ordering::Acquire);
        let len = known.len.load(Ordering::Relaxed);
        if start <= 1 || address < start || address - start >= len {
            continue;
        }
        known.is_broken.store(true, Ordering::Relaxed);
        // SAFETY: the calling thread's own; valid for the thread's life.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: as above.
        let before = unsafe { *errno };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let access = if known.is_writable.load(Ordering::Relaxed) { Access::Write } else { Access::Read };
        let place = ptr::with_exposed_provenance_mut(start);
        // SAFETY: takes the place of exactly the mapping that is ours, which its owner, who is reading it, keeps alive.
        let mapped = unsafe { libc::mmap(place, len, access.protection(), flags, -1, 0) };
        // SAFETY: as above.
        unsafe { *errno = before };
        return mapped != libc::MAP_FAILED;
    }
    false
}

/// Does what would have been done without us.
fn hand_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let handler = PREVIOUS.get().map_or(libc::SIG_DFL, |previous| previous.sa_sigaction);
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // The faulting instruction runs again, and now it ends the process.
        // SAFETY: `signal` has the meaning that it has without a handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    let flags = PREVIOUS.get().map_or(0, |previous| previous.sa_flags);
    if flags & libc::SA_SIGINFO != 0 {
        type WithInformation = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
        // SAFETY: who set it up said that it is such a function.
        let handler = unsafe { std::mem::transmute::<usize, WithInformation>(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: as above.
        let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
        handler(signal);
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn places_for_mappings_are_given_back() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        for _ in 0..3 {
            let all: Vec<Mapping> =
                (0..MAX_MAPPINGS).map(|_| Mapping::of(&file, 4096, Access::Read).unwrap()).collect();
            assert!(all.iter().all(|mapping| mapping.words()[511].load(Ordering::Relaxed) == 0));
            let refused = Mapping::of(&file, 4096, Access::Read).err().unwrap();
            assert!(std::string::ToString::to_string(&refused).contains("close some"));
        }
        // What cannot be mapped takes no place.
        for _ in 0..2 * MAX_MAPPINGS {
            assert!(Mapping::of(&file, 0, Access::Read).is_err());
        }
        Mapping::of(&file, 4096, Access::Read).unwrap();
    }
}
