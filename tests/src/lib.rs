//! What behaviour tests are made of: real runtimes in places of their own, processes that end with the test, and
//! waiting that ends.
//!
//! Three rules. A test looks only at what it started itself, for others may start containers on the same machine. What
//! a test changes in the kernel is undone in `Drop`, also when it panics. A test that needs something of the machine
//! says so with [`require!`] first, so that nothing passes by not running.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stderr, reason = "a test that cannot run says so")]

pub mod kernel;
pub mod requirement;
pub mod wait;

pub mod barrier;
pub mod bpffs;
pub mod buckets;
pub mod bundle;
pub mod containerd;
pub mod daemon;
pub mod demo;
pub mod docker;
pub mod example;
pub mod house;
pub mod image;
pub mod kubelet;
pub mod lives;
pub mod process;
pub mod runc;
pub mod silent_fs;

pub mod bpf;
pub mod child;
pub mod net;
pub mod plane;
pub mod podman;
pub mod probes;
pub mod routes;
