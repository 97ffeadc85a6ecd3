//! What a verbose answer carries beside its message: JSON of the server's own, of which a few fields are read.
//!
//! containerd and CRI-O write it for people who debug (`crictl inspect`), and have kept these fields for years. All of
//! them are optional: a server that leaves one out, or all, costs that field alone. Nothing of the
//! arguments that are in there, too, is kept, and of the environment only what is allowed.

use std::collections::HashMap;

use k8s_cri::v1::Protocol;
use serde::Deserialize;

use crate::container::{Labels, Port, Str};
use crate::enrich::caps;
use crate::enrich::env::EnvAllow;

/// A longer text is not read: it carries the whole OCI specification, which is some ten kilobytes.
const MAX_LEN: usize = 4 << 20;
/// Ports of one pod that are kept.
const MAX_PORTS: usize = 256;

/// The fields that are read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Info {
    /// The init process, in the server's pid ns.
    pub(super) pid: u32,
    /// The sandbox of a container.
    #[serde(rename = "sandboxID")]
    pub(super) sandbox_id: String,
    /// For example `io.containerd.runc.v2`.
    #[serde(rename = "runtimeType")]
    pub(super) runtime_type: String,
    /// CRI-O's place for it.
    privileged: Option<bool>,
    /// What the kubelet asked for; containerd alone has it.
    pub(super) config: Option<Config>,
    #[serde(rename = "runtimeSpec")]
    spec: Option<Spec>,
}

/// What the kubelet asked for, of a container or of a sandbox.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Config {
    hostname: String,
    /// The image as the kubelet resolved it: its id.
    pub(super) image: Image,
    pub(super) linux: Linux,
    port_mappings: Vec<PortMapping>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Image {
    pub(super) image: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Linux {
    pub(super) resources: Option<Limits>,
    security_context: SecurityContext,
}

/// `LinuxContainerResources`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Limits {
    pub(super) cpu_period: i64,
    pub(super) cpu_quota: i64,
    pub(super) cpu_shares: i64,
    pub(super) memory_limit_in_bytes: i64,
    pub(super) cpuset_cpus: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SecurityContext {
    privileged: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PortMapping {
    protocol: i32,
    container_port: i32,
    host_port: i32,
    host_ip: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    hostname: String,
    process: Option<Process>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Process {
    env: Option<Vec<String>>,
}

impl Info {
    /// Reads it; what cannot be read is told as an error, what is not there is none.
    pub(super) fn read(info: &HashMap<String, String>) -> Result<Self, String> {
        let Some(text) = info.get("info") else { return Ok(Self::default()) };
        if text.len() > MAX_LEN {
            return Err(format!("verbose information of {} bytes", text.len()));
        }
        serde_json::from_str(text).map_err(|error| {
            // The message may quote the text: it is cut to what a log line bears.
            error.to_string().chars().take(200).collect()
        })
    }

    /// Whether it was started with all privileges, where the server says so at all.
    pub(super) fn privileged(&self) -> Option<bool> {
        self.privileged.or(self.config.as_ref().map(|config| config.linux.security_context.privileged))
    }

    /// The variables that are allowed, those of the image among them; absent where none is, or the server does not tell.
    pub(super) fn env(&self, allow: &EnvAllow) -> Option<Labels> {
        let process = self.spec.as_ref()?.process.as_ref()?;
        allow.pick(process.env.iter().flatten().map(String::as_str))
    }

    /// The host name; a host network's is the host's own, and not told.
    pub(super) fn hostname(&self) -> Option<Str> {
        let of_config = self.config.as_ref().and_then(|config| caps::name(&config.hostname));
        of_config.or_else(|| caps::name(&self.spec.as_ref()?.hostname))
    }

    /// Ports of a sandbox; absent where the server does not tell.
    pub(super) fn ports(&self) -> Option<Vec<Port>> {
        let mappings = &self.config.as_ref()?.port_mappings;
        Some(mappings.iter().take(MAX_PORTS).filter_map(port).collect())
    }
}

fn port(mapping: &PortMapping) -> Option<Port> {
    let number = |port: i32| u16::try_from(port).ok().filter(|port| *port != 0);
    let protocol = match Protocol::try_from(mapping.protocol).ok()? {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    Some(Port {
        container: number(mapping.container_port)?,
        protocol: protocol.into(),
        host: number(mapping.host_port),
        host_ip: mapping.host_ip.parse().ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Info, String> {
        Info::read(&HashMap::from([("info".to_owned(), json.to_owned())]))
    }

    #[test]
    fn a_containerd_and_a_cri_o_tell_the_same_at_their_own_places() {
        let containerd = read(
            r#"{"sandboxID":"s1","pid":7,"removing":false,"runtimeType":"io.containerd.runc.v2","config":{
                "metadata":{"name":"web"},"hostname":"h","image":{"image":"sha256:1"},"envs":[{"key":"A","value":"secret"}],
                "port_mappings":[{"container_port":80,"host_port":8080,"host_ip":"127.0.0.1"},{"protocol":1,"container_port":53}],
                "linux":{"resources":{"cpu_quota":50000,"cpu_period":100000},"security_context":{"privileged":true}}},
                "runtimeSpec":{"ociVersion":"1.0.2"}}"#,
        )
        .unwrap();
        assert_eq!((containerd.pid, &*containerd.sandbox_id, containerd.privileged()), (7, "s1", Some(true)));
        assert_eq!(containerd.hostname().as_deref(), Some("h"));
        let ports = containerd.ports().unwrap();
        let shown: Vec<_> = ports.iter().map(|port| (port.container, &*port.protocol, port.host)).collect();
        assert_eq!(shown, [(80, "tcp", Some(8080)), (53, "udp", None)]);

        let cri_o = read(
            r#"{"sandboxID":"s2","pid":8,"privileged":false,"runtimeSpec":{"hostname":"h2",
            "process":{"env":["STAGE=test","TOKEN=x"]}}}"#,
        )
        .unwrap();
        assert_eq!((cri_o.pid, cri_o.privileged(), cri_o.ports()), (8, Some(false), None));
        assert_eq!(cri_o.hostname().as_deref(), Some("h2"));
        let allow = ["STAGE"].into_iter().collect();
        assert_eq!(cri_o.env(&allow), Some([("STAGE", "test")].into_iter().collect()));
        assert_eq!((cri_o.env(&EnvAllow::default()), containerd.env(&allow)), (None, None));
    }

    #[test]
    fn what_is_not_told_or_cannot_be_read_is_survived() {
        assert_eq!(Info::read(&HashMap::new()).unwrap().pid, 0);
        assert_eq!(read("{}").unwrap().privileged(), None);
        for broken in ["", "[", r#"{"pid":"seven"}"#, r#"{"pid":-1}"#] {
            assert!(read(broken).is_err(), "{broken}");
        }
        assert!(read(&" ".repeat(MAX_LEN + 1)).unwrap_err().contains("bytes"));
    }
}
