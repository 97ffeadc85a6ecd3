//! The maps, and how records leave.

use core::intrinsics::{AtomicOrdering, atomic_or, atomic_xadd};
use core::mem::size_of;

use aya_ebpf::bindings::{
    BPF_ANY, BPF_F_MMAPABLE, BPF_NOEXIST, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP,
};
use aya_ebpf::helpers::{bpf_ringbuf_query, bpf_ringbuf_reserve, bpf_ringbuf_submit};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use tracker_common::life::{Inserted, Tables};
use tracker_common::table::{Known, Loss, Owner, Shared, Slot};
use tracker_ebpf::setting;

/// All records, in one order. Its size is the loader's choice.
#[map]
pub static RECORDS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// [`Known`] by unique mount namespace id. Its size is the loader's choice.
#[map]
pub static KNOWN: HashMap<u64, Known> = HashMap::with_max_entries(32_768, 0);

/// [`Slot`] by mount namespace inode number, for everyone. Its size is the loader's choice.
#[map]
pub static MOUNT_NAMESPACES: HashMap<u32, Slot> = HashMap::with_max_entries(32_768, 0);

/// One [`Shared`].
#[map]
pub static SHARED: Array<Shared> = Array::with_max_entries(1, 0);

/// One [`Owner`], which user space writes through a mapping.
#[map]
pub static OWNER: Array<Owner> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Whether nobody has read records for so long that nobody will: the probes may outlive the tracker, but not for ever.
#[inline(always)]
pub fn is_abandoned(now: u64) -> bool {
    let keep_ns = setting!(keep_ns);
    if keep_ns == 0 {
        return false;
    }
    let Some(owner) = OWNER.get_ptr(0) else { return true };
    // SAFETY: points into the map's value, which user space writes.
    let heartbeat = unsafe { core::ptr::read_volatile(&raw const (*owner).heartbeat) };
    now > heartbeat && now - heartbeat > keep_ns
}

/// The maps as the decisions see them.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn known(&self, key: u64) -> Option<Known> {
        // SAFETY: a value that is removed meanwhile may be another's: then the insert or the removal that decides fails,
        // or the process does not match.
        unsafe { KNOWN.get(key) }.copied()
    }

    #[inline(always)]
    fn insert(&self, key: u64, known: &Known) -> Inserted {
        const EXISTS: i32 = -17;
        match KNOWN.insert(key, known, u64::from(BPF_NOEXIST)) {
            Ok(()) => Inserted::New,
            Err(EXISTS) => Inserted::Known,
            Err(_) => Inserted::Full,
        }
    }

    #[inline(always)]
    fn count_exec(&self, key: u64) -> Option<u64> {
        let known = KNOWN.get_ptr_mut(key)?;
        // SAFETY: points into the map's value.
        Some(count(unsafe { &raw mut (*known).execs }, 1))
    }

    #[inline(always)]
    fn init_executed(&self, key: u64) {
        if let Some(known) = KNOWN.get_ptr_mut(key) {
            // SAFETY: points into the map's value; only this process, which is executing, writes the field.
            unsafe { (*known).init_executed = Known::INIT_EXECUTED };
        }
    }

    #[inline(always)]
    fn remove(&self, key: u64) -> bool {
        KNOWN.remove(key).is_ok()
    }

    #[inline(always)]
    fn slot(&self, mntns: u32) -> Option<Slot> {
        // SAFETY: the number's present holder is alive, and so nobody replaces its slot.
        unsafe { MOUNT_NAMESPACES.get(mntns) }.copied()
    }

    #[inline(always)]
    fn set_slot(&self, mntns: u32, slot: &Slot) -> bool {
        MOUNT_NAMESPACES.insert(mntns, slot, u64::from(BPF_ANY)).is_ok()
    }

    #[inline(always)]
    fn end_slot(&self, mntns: u32, generation: u64) {
        if let Some(slot) = MOUNT_NAMESPACES.get_ptr_mut(mntns) {
            // SAFETY: points into the map's value.
            if unsafe { (*slot).generation } == generation {
                // User space may fill in the row at the same time.
                // SAFETY: as above, and aligned.
                unsafe { atomic_or::<u32, u32, { AtomicOrdering::SeqCst }>(&raw mut (*slot).flags, Slot::ENDED) };
            }
        }
    }

    #[inline(always)]
    fn lost(&self, loss: Loss) {
        lost(loss);
    }

    #[inline(always)]
    fn host_userns(&self) -> u32 {
        setting!(host_userns) as u32
    }

    #[inline(always)]
    fn take_foreign(&self) -> bool {
        let Some(shared) = SHARED.get_ptr_mut(0) else { return false };
        // SAFETY: points into the map's value.
        let foreign = unsafe { &raw mut (*shared).foreign };
        if count(foreign, 1) < setting!(foreign_max) {
            return true;
        }
        count(foreign, u64::MAX);
        false
    }

    #[inline(always)]
    fn give_foreign(&self) {
        if let Some(shared) = SHARED.get_ptr_mut(0) {
            // SAFETY: points into the map's value.
            count(unsafe { &raw mut (*shared).foreign }, u64::MAX);
        }
    }

    #[inline(always)]
    fn may_foreign_wake(&self, now: u64) -> bool {
        let Some(shared) = SHARED.get_ptr_mut(0) else { return false };
        // Two processors at the same moment may both find it due: that is one wake-up too many, not a flood.
        // SAFETY: points into the map's value.
        let last = unsafe { &mut (*shared).foreign_wake };
        if now.wrapping_sub(*last) < setting!(foreign_wake_ns) {
            return false;
        }
        *last = now;
        true
    }
}

/// Counts a loss.
#[inline(always)]
pub fn lost(loss: Loss) {
    if let Some(shared) = SHARED.get_ptr_mut(0) {
        // SAFETY: points into the map's value, and a `Loss` is an index of the array.
        count(unsafe { (&raw mut (*shared).lost).cast::<u64>().add(loss as usize) }, 1);
    }
}

/// Counts a process's record.
#[inline(always)]
pub fn count_process_record() {
    if let Some(shared) = SHARED.get_ptr_mut(0) {
        // SAFETY: points into the map's value.
        count(unsafe { &raw mut (*shared).process_records }, 1);
    }
}

/// Counts a cgroup's record.
#[inline(always)]
pub fn count_cgroup_record() {
    if let Some(shared) = SHARED.get_ptr_mut(0) {
        // SAFETY: points into the map's value.
        count(unsafe { &raw mut (*shared).cgroup_records }, 1);
    }
}

/// Reserves a record, lets `fill` write all of it, and submits it.
///
/// `wake` forces a wake-up: an unread record without one swallows the default wake-up of the next. Without it user space
/// drains by its timer, or is woken when much is unread.
#[inline(always)]
pub fn emit<T>(wake: bool, loss: Loss, fill: impl FnOnce(*mut T)) {
    let ring = (&raw const RECORDS).cast_mut().cast();
    // SAFETY: `ring` is a ring buffer map; the size is a constant.
    let record = unsafe { bpf_ringbuf_reserve(ring, size_of::<T>() as u64, 0) };
    if record.is_null() {
        lost(loss);
        return;
    }
    fill(record.cast());
    let mut wake = wake;
    if !wake {
        // SAFETY: as above.
        wake = unsafe { bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA)) } > setting!(ring_wake_bytes);
    }
    let flags = if wake { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    // SAFETY: `record` was reserved above and is submitted once.
    unsafe { bpf_ringbuf_submit(record, u64::from(flags)) };
}

/// Adds atomically and returns the value before. Sequentially consistent: with a weaker order LLVM emits an addition
/// that does not return it.
#[inline(always)]
fn count(counter: *mut u64, step: u64) -> u64 {
    // SAFETY: callers pass an aligned counter in a map's value.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(counter, step) }
}
