//! Turns a kernel event's numbers (mount ns, net ns, cgroup id, pid) into the right container: early, for
//! nanoseconds, and truthfully.

pub mod barrier;
pub mod collection;
pub mod container;
pub mod doctor;
pub mod enrich;
pub mod fact;
pub mod selector;
pub mod server;
pub mod source;
pub mod time;

pub use container::{Container, ContainerId, ContainerKey};
pub use time::BootTime;
