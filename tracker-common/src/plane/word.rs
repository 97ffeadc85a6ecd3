//! How one process writes the plane while others read it, without a lock that either could wait for.
//!
//! All memory is words, read and written atomically. The writer of a row makes its sequence lock odd, changes the row and
//! its index entries, and makes the lock even again, to a number it never had. A reader notes an even lock, reads, and
//! looks whether the lock is still the same; if not, it begins again, a bounded number of times.
//!
//! ```text
//!  writer: lock = 2n+1 ┃ release ┃ change, change, …  ┃ lock = 2n+2 (release)
//!  reader: lock (acquire) even? ┃ read, read, …  ┃ acquire ┃ lock the same?
//! ```
//!
//! That a reader never takes a mixture of two states for one state: a word that it read while the writer changed the row
//! was written after the odd lock; by the two fences the reader's second look at the lock then sees the odd one, or a
//! later one.
//!
//! A writer that ends in the middle leaves an odd lock: readers of that one row say "busy" until the next owner has
//! repaired it.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use super::WORD_LEN;

/// A word of the plane. A trait, so that the protocol can be checked with words that show all that hardware may do.
pub trait Word {
    /// Reads, in any order.
    fn load_relaxed(&self) -> u64;
    /// Reads; what is read afterwards is at least as new.
    fn load_acquire(&self) -> u64;
    /// Writes, in any order.
    fn store_relaxed(&self, value: u64);
    /// Writes after all that was written before.
    fn store_release(&self, value: u64);
    /// Nothing read before it is read after what follows.
    fn fence_acquire();
    /// Nothing written after it is seen before what came before it.
    fn fence_release();
    /// Who calls it is about to read the same again.
    fn pause() {
        core::hint::spin_loop();
    }
}

impl Word for AtomicU64 {
    #[inline]
    fn load_relaxed(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }

    #[inline]
    fn load_acquire(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    #[inline]
    fn store_relaxed(&self, value: u64) {
        self.store(value, Ordering::Relaxed);
    }

    #[inline]
    fn store_release(&self, value: u64) {
        self.store(value, Ordering::Release);
    }

    #[inline]
    fn fence_acquire() {
        fence(Ordering::Acquire);
    }

    #[inline]
    fn fence_release() {
        fence(Ordering::Release);
    }
}

/// Notes the lock; `None` while it is odd.
#[inline]
pub fn begin_read<W: Word>(lock: &W) -> Option<u64> {
    let noted = lock.load_acquire();
    (noted & 1 == 0).then_some(noted)
}

/// Whether what was read since the lock was noted is one state.
#[inline]
pub fn end_read<W: Word>(lock: &W, noted: u64) -> bool {
    W::fence_acquire();
    lock.load_relaxed() == noted
}

/// Makes the lock odd. What a writer that ended left odd stays so.
pub fn begin_write<W: Word>(lock: &W) {
    lock.store_relaxed(lock.load_relaxed() | 1);
    W::fence_release();
}

/// Makes the lock even again.
pub fn end_write<W: Word>(lock: &W) {
    lock.store_release(lock.load_relaxed().wrapping_add(1));
}

/// Copies bytes out of words. `at` is a multiple of [`WORD_LEN`].
pub fn copy_bytes<W: Word>(words: &[W], at: usize, into: &mut [u8]) {
    let words = &words[at / WORD_LEN..];
    let (whole, rest) = into.as_chunks_mut::<WORD_LEN>();
    for (chunk, word) in whole.iter_mut().zip(words) {
        *chunk = word.load_relaxed().to_le_bytes();
    }
    if let Some(word) = words.get(whole.len()) {
        rest.copy_from_slice(&word.load_relaxed().to_le_bytes()[..rest.len()]);
    }
}

/// Writes bytes into words, the last one filled up with zeros. `at` is a multiple of [`WORD_LEN`].
pub fn write_bytes<W: Word>(words: &[W], at: usize, bytes: &[u8]) {
    let words = &words[at / WORD_LEN..];
    for (chunk, word) in bytes.chunks(WORD_LEN).zip(words) {
        let mut whole = [0; WORD_LEN];
        whole[..chunk.len()].copy_from_slice(chunk);
        word.store_relaxed(u64::from_le_bytes(whole));
    }
}
