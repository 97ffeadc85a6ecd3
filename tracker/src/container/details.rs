//! What a runtime set up around a container: plain values that are shown, and by which nothing is found.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};

use super::{Labels, Str};

/// How a container is set up. A field that no source stated is absent; an empty list means that there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Details {
    /// Its host name, in its own UTS namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Str>,
    /// How often its runtime has started it again by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_count: Option<u32>,
    /// What its health check says; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Whether it was started with all privileges, by its runtime's own word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub privileged: Option<bool>,
    /// Ports that it exposes, and where the host publishes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Arc<[Port]>>,
    /// Addresses in its net namespace, of each network that its runtime joined it to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Arc<[Address]>>,
    /// What is mounted into it from outside its image; the file systems that every container has are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounts: Option<Arc<[Mount]>>,
    /// Limits of its resources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// The command of its init process, of a container that nobody describes: the first words, none of them cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Arc<[Str]>>,
    /// Environment variables that the configuration allows to be read; never others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Labels>,
}

impl Details {
    /// Nothing at all: what most containers of a bare OCI runtime have, and share.
    pub(crate) fn nothing() -> Arc<Details> {
        static NOTHING: LazyLock<Arc<Details>> = LazyLock::new(Arc::default);
        Arc::clone(&NOTHING)
    }
}

/// What a health check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Not checked often enough yet.
    Starting,
    /// Passed.
    Healthy,
    /// Failed as often as it may.
    Unhealthy,
}

/// A port that a container exposes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Port {
    /// Its number inside the container.
    pub container: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: Str,
    /// The host's number that leads to it; absent when it is not published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<u16>,
    /// The host's address on which it is published; absent for all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// One address of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// The runtime's name for the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Str>,
    /// The address.
    pub ip: IpAddr,
    /// Length of the network's prefix, in bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix_len: Option<u8>,
}

/// Something that is mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mount {
    /// Path in the container.
    pub destination: Str,
    /// Path on the host, or the name of a volume where that is all that is known; absent for `tmpfs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Str>,
    /// Whether it can only be read.
    pub read_only: bool,
}

/// Limits of a container's resources. Absent means not limited, or not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Processor time it may use, in thousandths of one processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Its weight among others that want the processor: `cpu.shares` of cgroup v1, 1024 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// Processors it may run on, as `cpuset.cpus` spells them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<Str>,
    /// Memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
}
