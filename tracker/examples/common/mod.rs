//! What the example tracers share: copy what is useful.
//!
//! - `head.rs`: the bytes that every event begins with;
//! - `probe.rs`: loading a kernel half without knowing the kernel's version, and with a selection in it;
//! - `follow.rs`: asking the tracker at the right moment, from the start to Ctrl-C;
//! - `text.rs`: lines for people and for programs.

pub(crate) mod follow;
pub(crate) mod head;
pub(crate) mod probe;
pub(crate) mod text;
