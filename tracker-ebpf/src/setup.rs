//! What user space wrote over the object's read-only global before it froze it.

use core::ptr::{addr_of, read_volatile};

use tracker_common::layout::Setup;

/// Replaced by the loader. Only ever read through [`setting`]: the compiler must not see this value.
#[unsafe(no_mangle)]
pub static SETUP: Setup = Setup::UNSET;

/// Reads one number of the setup.
///
/// # Safety
///
/// `choose` has to point to a field.
#[inline(always)]
pub unsafe fn setting(choose: impl FnOnce(*const Setup) -> *const u64) -> u64 {
    // SAFETY: a field of `SETUP`, by contract.
    unsafe { read_volatile(choose(addr_of!(SETUP))) }
}

/// `setting!(host_mntns)` reads one number of the setup, `setting!(layout.task_pid)` one offset.
#[macro_export]
macro_rules! setting {
    ($($field:ident).+) => {{
        #[allow(unused_unsafe, reason = "also used inside of unsafe blocks")]
        // SAFETY: points to a field.
        let number = unsafe { $crate::setup::setting(|setup| core::ptr::addr_of!((*setup).$($field).+)) };
        number
    }};
}
