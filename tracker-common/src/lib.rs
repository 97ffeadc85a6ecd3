//! What the kernel side and the user side agree on.
//!
//! - [`record`]: the bytes that travel from the kernel to user space, and how they are decoded.
//! - [`table`]: keys and values of the BPF maps, among them the one that other BPF programs may look up.
//! - [`layout`]: where the running kernel keeps the fields that the probes read.
//! - [`plane`]: the tables that other programs look up in.
//! - `reader` (feature of that name): the tables of another process, mapped and looked up in.
//! - [`life`]: what the probes decide once a task has been read; plain functions, tested without a kernel.
#![no_std]

#[cfg(any(test, feature = "reader"))]
extern crate std;

pub mod record;

pub mod table;

pub mod layout;

pub mod plane;

#[cfg(feature = "reader")]
pub mod reader;

pub mod life;
