//! The maps that are pinned for everyone, and the one program that writes to a map that the probes write to.
//!
//! It is attached to nothing: user space runs it (`BPF_PROG_TEST_RUN`). A look-up and an update from user space could
//! overwrite the slot of a number's next holder; here comparing and storing are nanoseconds apart.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features)]

use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_and, atomic_or};
use core::ptr::write_volatile;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::RawTracePointContext;
use tracker_common::plane::BpfRow;
use tracker_common::table::{CgroupSlot, Filled, Owner, Slot};

/// [`Slot`] by mount namespace inode number: the same map as the probes'.
#[map]
static MOUNT_NAMESPACES: HashMap<u32, Slot> = HashMap::with_max_entries(32_768, 0);

/// [`CgroupSlot`] by cgroup id. Its size is the loader's choice, as is that of the next.
#[map]
static CGROUPS: HashMap<u64, CgroupSlot> = HashMap::with_max_entries(16_384, 0);

/// [`BpfRow`] by the plane's row number. User space writes it through a mapping.
#[map]
static ROWS: Array<BpfRow> = Array::with_max_entries(16_384, BPF_F_MMAPABLE);

/// One [`Owner`]: the same map as the probes'.
#[map]
static OWNER: Array<Owner> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// `fill(mntns, generation, row, provisional)`: stores row and [`Slot::PROVISIONAL`], if the slot is that generation's.
///
/// A slot that is replaced in the nanoseconds between may get the row that was meant for its predecessor. Its readers
/// compare the generation with the row's, and so find that they do not know it.
// Without the crate's macro, which would return 0.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub extern "C" fn fill(ctx: *mut c_void) -> u32 {
    let ctx = RawTracePointContext::new(ctx);
    let (mntns, generation) = (ctx.arg::<u64>(0) as u32, ctx.arg::<u64>(1));
    let (row, provisional) = (ctx.arg::<u64>(2) as u32, ctx.arg::<u64>(3));
    let Some(slot) = MOUNT_NAMESPACES.get_ptr_mut(mntns) else { return Filled::Absent as u32 };
    // SAFETY: points into the map's value.
    if unsafe { (*slot).generation } != generation {
        return Filled::Other as u32;
    }
    // SAFETY: as above.
    unsafe { write_volatile(&raw mut (*slot).row, row) };
    // SAFETY: as above.
    let flags = unsafe { &raw mut (*slot).flags };
    if provisional == 0 {
        // SAFETY: as above, and aligned.
        unsafe { atomic_and::<u32, u32, { AtomicOrdering::SeqCst }>(flags, !Slot::PROVISIONAL) };
    } else {
        // SAFETY: as above, and aligned.
        unsafe { atomic_or::<u32, u32, { AtomicOrdering::SeqCst }>(flags, Slot::PROVISIONAL) };
    }
    Filled::Done as u32
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// What is in the other objects, too.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
