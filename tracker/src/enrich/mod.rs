//! Pure parsers of what enriches a container: bytes in, values out.
//!
//! Nothing here opens a file, asks a clock or makes a system call; who reads the bytes, and whether their author may
//! be believed, is decided by the sources. Every parser takes any bytes without panicking, and bounds what it keeps.

pub mod caps;
pub mod cgroup;
pub mod env;
#[cfg(any(feature = "containerd", feature = "cri", feature = "docker"))]
pub(crate) mod kubelet;
pub mod oci;
pub mod recognise;
pub mod scope;
pub mod task;
