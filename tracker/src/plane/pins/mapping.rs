//! The value of a BPF array, mapped: read and written without a call into the kernel.

use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use tracker_common::plane::WORD_LEN;

/// The items of an array that was made with `BPF_F_MMAPABLE`, as words. Other processes write them, too: nothing in
/// them is believed.
pub(crate) struct Mapping<T> {
    at: NonNull<AtomicU64>,
    items: usize,
    len: NonZeroUsize,
    item: PhantomData<T>,
}

// SAFETY: owns the mapping, which is there for all threads; access to it is atomic.
unsafe impl<T> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapping<T> {}

impl<T> Mapping<T> {
    /// Words of an item, from one to the next.
    pub(crate) const WORDS: usize = size_of::<T>() / WORD_LEN;

    /// Maps all of an array with that many items. The caller has compared its shape.
    pub(crate) fn new(map: impl AsFd, items: u32) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(WORD_LEN) && size_of::<T>() > 0) };
        let items = items as usize;
        let len = NonZeroUsize::new((items * size_of::<T>()).next_multiple_of(page_len()))
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at =
            unsafe { mmap(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, map, 0) }?;
        Ok(Self { at: at.cast(), items, len, item: PhantomData })
    }

    /// How many items there are.
    pub(crate) fn items(&self) -> usize {
        self.items
    }

    /// The words of an item; `None` where there is no such item.
    pub(crate) fn item(&self, number: usize) -> Option<&[AtomicU64]> {
        if number >= self.items {
            return None;
        }
        // SAFETY: within the mapping, whose items lie one after the other.
        let at = unsafe { self.at.add(number * Self::WORDS) };
        // SAFETY: so many words are there for as long as the mapping is, they are aligned as pages are, and only accessed
        // atomically.
        Some(unsafe { std::slice::from_raw_parts(at.as_ptr(), Self::WORDS) })
    }

    /// Reads one word of an item, by its place in bytes.
    pub(crate) fn load(&self, number: usize, place: usize) -> u64 {
        self.item(number).map_or(0, |words| words[place / WORD_LEN].load(Ordering::Relaxed))
    }

    /// Writes one word of an item, by its place in bytes.
    pub(crate) fn store(&self, number: usize, place: usize, value: u64) {
        if let Some(words) = self.item(number) {
            words[place / WORD_LEN].store(value, Ordering::Relaxed);
        }
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nobody has a reference into it any more.
        let _ = unsafe { munmap(self.at.cast(), self.len.get()) };
    }
}

fn page_len() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |len| len as usize)
}
