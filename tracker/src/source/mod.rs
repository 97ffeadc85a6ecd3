//! One file per source of facts.

mod aside;
pub mod complaints;
#[cfg(feature = "containerd")]
pub mod containerd;
#[cfg(feature = "cri")]
pub mod cri;
#[cfg(feature = "docker")]
pub mod docker;
pub mod endpoint;
pub mod file;
pub mod find;
#[cfg(any(feature = "containerd", feature = "cri"))]
mod grpc;
pub mod health;
#[cfg(feature = "docker")]
mod http;
pub mod images;
pub mod manual;
mod mounts;
mod peer;
pub mod podman;
pub mod proc;
mod process;
#[cfg(any(feature = "containerd", feature = "cri", feature = "docker"))]
mod roster;
pub mod supervise;
pub mod task;

pub mod kernel;

pub mod scan;
