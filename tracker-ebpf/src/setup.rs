//! What user space wrote over the object's read-only global before it froze it.

use core::ptr::{addr_of, read_volatile};

use tracker_common::layout::Setup;

/// Replaced by the loader. Only ever read through [`setting`]: the compiler must not see this value.
#[unsafe(no_mangle)]
pub static SETUP: Setup = Setup::UNSET;

/// Reads one number of the setup.
#[inline(always)]
pub fn setting(choose: impl FnOnce(*const Setup) -> *const u64) -> u64 {
    // SAFETY: `choose` points to a field of `SETUP`.
    unsafe { read_volatile(choose(addr_of!(SETUP))) }
}

/// `setting!(host_mntns)` reads one number of the setup, `setting!(layout.task_pid)` one offset.
#[macro_export]
macro_rules! setting {
    ($($field:ident).+) => {
        // SAFETY: only the address of the field is taken.
        $crate::setup::setting(|setup| unsafe { core::ptr::addr_of!((*setup).$($field).+) })
    };
}
