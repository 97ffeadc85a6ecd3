//! What Docker's API says, as far as it is of interest: the shapes of its JSON, and nothing more.
//!
//! Every field may be absent or `null`, and fields and values that are not known are skipped: daemons are older and newer
//! than this list. A field of another type than it has always had makes the whole object unreadable, which is counted.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A container in a list (`/containers/json`).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Summary {
    pub id: String,
    pub names: Option<Vec<String>>,
    pub image: Option<String>,
    #[serde(rename = "ImageID")]
    pub image_id: Option<String>,
    pub created: Option<i64>,
    pub state: Option<String>,
    pub status: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
    pub ports: Option<Vec<ListedPort>>,
    pub mounts: Option<Vec<Mount>>,
    pub host_config: Option<ListedHostConfig>,
    pub network_settings: Option<NetworkSettings>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ListedHostConfig {
    pub network_mode: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ListedPort {
    #[serde(rename = "IP")]
    pub ip: Option<String>,
    pub private_port: u16,
    pub public_port: Option<u16>,
    #[serde(rename = "Type")]
    pub protocol: Option<String>,
}

/// All about one container (`/containers/ID/json`).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Inspection {
    pub id: String,
    pub name: Option<String>,
    pub created: Option<String>,
    pub image: Option<String>,
    pub restart_count: Option<u32>,
    pub state: Option<ContainerState>,
    pub host_config: Option<HostConfig>,
    pub config: Option<Config>,
    pub mounts: Option<Vec<Mount>>,
    pub network_settings: Option<NetworkSettings>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ContainerState {
    pub status: Option<String>,
    pub pid: Option<u32>,
    pub exit_code: Option<i64>,
    #[serde(rename = "OOMKilled")]
    pub oom_killed: Option<bool>,
    pub started_at: Option<String>,
    pub finished_at: Option<String>,
    pub health: Option<Health>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Health {
    pub status: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Config {
    pub hostname: Option<String>,
    pub image: Option<String>,
    pub env: Option<Vec<String>>,
    pub labels: Option<BTreeMap<String, String>>,
    pub exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct HostConfig {
    pub network_mode: Option<String>,
    pub privileged: Option<bool>,
    pub runtime: Option<String>,
    pub port_bindings: Option<Bindings>,
    pub annotations: Option<BTreeMap<String, String>>,
    pub tmpfs: Option<BTreeMap<String, String>>,
    pub cpu_shares: Option<i64>,
    pub nano_cpus: Option<i64>,
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<i64>,
    pub cpuset_cpus: Option<String>,
    pub memory: Option<i64>,
    pub pids_limit: Option<i64>,
}

/// Where on the host each port (`80/tcp`) is published; `null` for one that is only exposed.
pub(super) type Bindings = BTreeMap<String, Option<Vec<Binding>>>;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Binding {
    pub host_ip: Option<String>,
    pub host_port: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Mount {
    pub name: Option<String>,
    pub source: Option<String>,
    pub destination: Option<String>,
    #[serde(rename = "RW")]
    pub rw: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct NetworkSettings {
    pub ports: Option<Bindings>,
    pub networks: Option<BTreeMap<String, Option<Network>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Network {
    #[serde(rename = "IPAddress")]
    pub ip_address: Option<String>,
    #[serde(rename = "IPPrefixLen")]
    pub ip_prefix_len: Option<u8>,
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: Option<String>,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub global_ipv6_prefix_len: Option<u8>,
}

/// An image, in a list (`/images/json`) or by itself (`/images/ID/json`).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Image {
    pub id: Option<String>,
    pub repo_tags: Option<Vec<String>>,
    pub repo_digests: Option<Vec<String>>,
    pub size: Option<i64>,
    pub created: Option<Created>,
    /// These three in an inspection alone.
    pub os: Option<String>,
    pub architecture: Option<String>,
    pub variant: Option<String>,
}

/// When an image was made: a list says it in seconds, an inspection as text.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Created {
    Seconds(i64),
    Text(String),
}

/// What a daemon says of itself (`/info`).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Info {
    /// From version 27 on.
    pub containerd: Option<Containerd>,
    pub runtimes: Option<BTreeMap<String, Runtime>>,
}

/// What a name for a runtime means; its keys are in small letters.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Runtime {
    pub path: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Containerd {
    pub namespaces: Option<ContainerdNamespaces>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ContainerdNamespaces {
    pub containers: Option<String>,
}

/// Something that happened (`/events`).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Message {
    #[serde(rename = "Type")]
    pub kind: Option<String>,
    pub action: Option<String>,
    pub actor: Option<Actor>,
    #[serde(rename = "timeNano")]
    pub time_nano: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Actor {
    #[serde(rename = "ID")]
    pub id: Option<String>,
    pub attributes: Option<BTreeMap<String, String>>,
}
