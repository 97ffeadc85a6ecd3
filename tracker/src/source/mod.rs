//! One file per source of facts.

pub mod complaints;
#[cfg(feature = "containerd")]
pub mod containerd;
pub mod endpoint;
pub mod file;
pub mod health;
pub mod manual;
pub mod proc;
pub mod supervise;
pub mod task;

pub mod kernel;

pub mod scan;
