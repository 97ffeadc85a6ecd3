//! The probes: lives of processes in mount namespaces of their own, and lives of cgroups.
//!
//! Each reads a task or a cgroup, lets `tracker_common::life` decide, and emits at most one record. Nothing here waits;
//! what finds no room is counted, and an audit repairs it.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod process;

mod cgroup;

mod maps;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are for programs under the GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
