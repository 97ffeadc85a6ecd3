//! What podman's REST service answers, made into statements. Pure.
//!
//! Only the fields that are stated are read, and `null` is as good as nothing, for Go writes it for every empty list.
//! A process's arguments are never kept, and its environment only as far as the configuration allows.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

use super::store::{digest, image_id};
use crate::container::{
    Address, ContainerId, Details, Domain, Exit, Health, Image, Kind, Mount, Pod, Port, Resources, Runtime, State, Str,
};
use crate::enrich::env::EnvAllow;
use crate::enrich::{caps, scope};
use crate::fact::Statement;
use crate::time::BootTime;

/// More ports, addresses or mounts of one container are left out.
const MAX_LIST: usize = 256;
/// Weight that podman shows for "not set" besides 0.
const DEFAULT_SHARES: u64 = 1024;

/// What the service told about one container.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Told {
    /// [`crate::ContainerKey::scope`], as far as the answer tells it.
    pub(super) scope: Option<Str>,
    /// Its init process's pid, while it has one.
    pub(super) pid: Option<u32>,
    pub(super) statement: Statement,
    /// Labels that were left out.
    pub(super) left_out: u64,
}

/// `GET /libpod/info`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Info {
    pub(super) version: Version,
}

/// A part of [`Info`].
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Version {
    pub(super) version: String,
}

/// An entry of `GET /libpod/containers/json`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Row {
    pub(super) id: String,
    #[serde(deserialize_with = "nullable")]
    names: Vec<String>,
    image: String,
    #[serde(rename = "ImageID")]
    image_id: String,
    is_infra: bool,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    pid: i64,
    pub(super) pod: String,
    pod_name: String,
    state: String,
    created: String,
    /// Seconds since the epoch.
    started_at: i64,
    exited_at: i64,
    exit_code: i64,
}

/// `GET /libpod/containers/{id}/json`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Inspection {
    created: String,
    state: Condition,
    image: String,
    image_digest: String,
    image_name: String,
    pub(super) pod: String,
    #[serde(rename = "OCIConfigPath")]
    oci_config_path: String,
    #[serde(rename = "OCIRuntime")]
    oci_runtime: String,
    name: String,
    restart_count: u32,
    is_infra: bool,
    #[serde(deserialize_with = "nullable")]
    mounts: Vec<Mounted>,
    network_settings: Networks,
    config: Settings,
    host_config: HostSettings,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Condition {
    status: String,
    pid: i64,
    exit_code: i64,
    #[serde(rename = "OOMKilled")]
    oom_killed: bool,
    started_at: String,
    finished_at: String,
    #[serde(alias = "Healthcheck", deserialize_with = "nullable")]
    health: Checked,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Checked {
    status: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Mounted {
    #[serde(rename = "Type")]
    kind: String,
    name: String,
    source: String,
    destination: String,
    #[serde(rename = "RW")]
    writable: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Networks {
    #[serde(flatten)]
    of_default: Joined,
    #[serde(deserialize_with = "nullable")]
    networks: BTreeMap<String, Joined>,
    #[serde(deserialize_with = "nullable")]
    ports: BTreeMap<String, Option<Vec<Published>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Joined {
    #[serde(rename = "IPAddress")]
    ip: String,
    #[serde(rename = "IPPrefixLen")]
    prefix_len: u8,
    #[serde(rename = "GlobalIPv6Address")]
    ip6: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    prefix6_len: u8,
    #[serde(rename = "SecondaryIPAddresses", deserialize_with = "nullable")]
    more: Vec<Secondary>,
    #[serde(rename = "SecondaryIPv6Addresses", deserialize_with = "nullable")]
    more6: Vec<Secondary>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Secondary {
    #[serde(rename = "Addr")]
    ip: String,
    #[serde(rename = "PrefixLength")]
    prefix_len: u8,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Published {
    #[serde(rename = "HostIp")]
    host_ip: String,
    host_port: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Settings {
    hostname: String,
    #[serde(deserialize_with = "nullable")]
    env: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostSettings {
    network_mode: String,
    privileged: bool,
    cpu_shares: u64,
    cpu_period: i64,
    cpu_quota: i64,
    nano_cpus: i64,
    cpuset_cpus: String,
    memory: i64,
    pids_limit: i64,
}

/// `GET /libpod/pods/{id}/json`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct PodAnswer {
    id: String,
    name: String,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    #[serde(rename = "InfraContainerID")]
    infra: String,
}

fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl PodAnswer {
    /// The pod.
    pub(super) fn pod(self) -> Pod {
        Pod {
            name: caps::name(&self.name),
            uid: hex(&self.id),
            sandbox_id: hex(&self.infra),
            labels: Some(caps::labels(self.labels).0),
            ..Pod::default()
        }
    }
}

impl Row {
    /// What the list alone tells.
    pub(super) fn told(self) -> Told {
        let state = state(&self.state);
        let pid = u32::try_from(self.pid).ok().filter(|pid| *pid != 0 && !state.is_some_and(State::is_over));
        let (labels, left_out) = caps::labels(self.labels);
        let seconds = |seconds: i64| u64::try_from(seconds).ok().filter(|seconds| *seconds != 0);
        let moment = |at: i64| seconds(at).map(|at| BootTime::from_unix(Duration::from_secs(at)));
        let image = Image { name: caps::name(&self.image), id: image_id(Some(&self.image_id)), digest: None };
        let over = state == Some(State::Exited);
        let statement = Statement {
            kind: Some(kind(self.is_infra)),
            state,
            name: self.names.first().and_then(|name| caps::name(name)),
            runtime: Some(Runtime { name: Some("podman".into()), ..Runtime::default() }),
            image: (image != Image::default()).then_some(image),
            pod: hex(&self.pod).map(|uid| Pod { name: caps::name(&self.pod_name), uid: Some(uid), ..Pod::default() }),
            labels: Some(labels),
            created_at: boot_time(&self.created),
            started_at: moment(self.started_at),
            exited_at: moment(self.exited_at).filter(|_| over),
            exit: over.then(|| exit(self.exit_code, None)),
            ..Statement::default()
        };
        Told { scope: None, pid, statement, left_out }
    }
}

impl Inspection {
    /// All that is told of the container.
    pub(super) fn told(self, domain: Domain, env_allow: &EnvAllow) -> Told {
        let state = state(&self.state.status);
        let over = state == Some(State::Exited);
        let pid = u32::try_from(self.state.pid).ok().filter(|pid| *pid != 0 && !over);
        let (labels, left_out) = caps::labels(self.config.labels);
        let (annotations, left_out_too) = caps::labels(self.config.annotations);
        let sandbox_id = annotations.get("io.kubernetes.cri-o.SandboxID").and_then(|id| hex(id));
        let image = Image {
            name: caps::name(&self.image_name),
            id: image_id(Some(&self.image)),
            digest: digest(&self.image_digest),
        };
        let oci = Path::new(&self.oci_runtime).file_name().and_then(|name| name.to_str()).and_then(caps::name);
        let bundle = Path::new(&self.oci_config_path).parent().filter(|bundle| bundle.is_absolute());
        let is_host_network = self.host_config.network_mode == "host";
        let details = Details {
            hostname: caps::name(&self.config.hostname),
            restart_count: Some(self.restart_count),
            health: health(&self.state.health.status),
            privileged: Some(self.host_config.privileged),
            ports: Some(self.network_settings.ports()),
            addresses: Some(self.network_settings.addresses()),
            mounts: Some(mounts(self.mounts)),
            resources: Some(self.host_config.resources()),
            command: None,
            env: env_allow.pick(self.config.env.iter().map(String::as_str)),
        };
        let statement = Statement {
            kind: Some(kind(self.is_infra)),
            state,
            name: caps::name(&self.name),
            runtime: Some(Runtime { name: Some("podman".into()), oci: oci.clone(), ..Runtime::default() }),
            image: (image != Image::default()).then_some(image),
            pod: hex(&self.pod).map(|uid| Pod { uid: Some(uid), sandbox_id, ..Pod::default() }),
            labels: Some(labels),
            annotations: Some(annotations),
            details: Some(Box::new(details)),
            host_network: is_host_network.then_some(true),
            bundle: bundle.map(|bundle| bundle.to_string_lossy().into()),
            created_at: boot_time(&self.created),
            started_at: boot_time(&self.state.started_at),
            exited_at: boot_time(&self.state.finished_at).filter(|_| over),
            // Where conmon was called from elsewhere, podman does not find its note: that there is none says nothing.
            exit: over.then(|| exit(self.state.exit_code, self.state.oom_killed.then_some(true))),
            ..Statement::default()
        };
        let scope = oci.map(|oci| scope::oci(&default_root(domain, &oci)));
        Told { scope, pid, statement, left_out: left_out + left_out_too }
    }
}

/// Where an OCI runtime keeps its state when podman does not say: for root as for everybody who calls it, for users in
/// their runtime directory.
pub(super) fn default_root(domain: Domain, oci: &str) -> PathBuf {
    match domain {
        Domain::User(uid) => Path::new("/run/user").join(uid.to_string()).join(oci),
        _ => crate::barrier::argv::Dialect::of(Path::new(oci)).default_root().to_owned(),
    }
}

/// Podman's word for where in its life a container is.
pub(super) fn state(word: &str) -> Option<State> {
    Some(match word {
        "created" | "configured" | "initialized" => State::Created,
        "running" | "stopping" => State::Running,
        "paused" => State::Paused,
        "exited" | "stopped" => State::Exited,
        _ => return None,
    })
}

/// A health check's result.
pub(super) fn health(word: &str) -> Option<Health> {
    Some(match word {
        "starting" => Health::Starting,
        "healthy" => Health::Healthy,
        "unhealthy" => Health::Unhealthy,
        _ => return None,
    })
}

/// How a container ended. Whether a code above 128 was a signal or the program's own choice, podman does not tell.
pub(super) fn exit(code: i64, oom: Option<bool>) -> Exit {
    Exit { code: u32::try_from(code).unwrap_or(u32::MAX), signal: None, oom }
}

/// A full id of podman's.
fn hex(id: &str) -> Option<Str> {
    ContainerId::new(id).ok().filter(|_| id.len() == 64).map(|id| id.as_str().into())
}

fn kind(is_infra: bool) -> Kind {
    if is_infra { Kind::Sandbox } else { Kind::Container }
}

/// A moment of podman's, which writes the year 1 for "never".
fn boot_time(at: &str) -> Option<BootTime> {
    let at: Timestamp = at.parse().ok()?;
    let nanoseconds = u64::try_from(at.as_nanosecond()).ok().filter(|nanoseconds| *nanoseconds != 0)?;
    Some(BootTime::from_unix(Duration::from_nanos(nanoseconds)))
}

impl Networks {
    fn addresses(&self) -> Arc<[Address]> {
        let named = self.networks.iter().flat_map(|(name, joined)| joined.addresses(caps::name(name)));
        // The default network has no name here; with a name it is among the others, too.
        let nameless = self.of_default.addresses(None).filter(|_| self.networks.is_empty());
        let mut all: Vec<Address> = named.chain(nameless).take(MAX_LIST).collect();
        all.sort();
        all.into()
    }

    fn ports(&self) -> Arc<[Port]> {
        let ports = self.ports.iter().filter_map(|(name, published)| {
            let (number, protocol) = name.split_once('/').unwrap_or((name, "tcp"));
            let container: u16 = number.parse().ok()?;
            let protocol: Str = caps::name(protocol)?;
            let at = |published: &Published| Port {
                container,
                protocol: Str::clone(&protocol),
                host: published.host_port.parse().ok(),
                host_ip: published.host_ip.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified()),
            };
            let published: Vec<Port> = published.iter().flatten().take(MAX_LIST).map(at).collect();
            let exposed = || Port { container, protocol: Str::clone(&protocol), host: None, host_ip: None };
            Some(if published.is_empty() { vec![exposed()] } else { published })
        });
        let mut all: Vec<Port> = ports.flatten().take(MAX_LIST).collect();
        all.sort();
        all.into()
    }
}

impl Joined {
    fn addresses(&self, network: Option<Str>) -> impl Iterator<Item = Address> {
        let first = [(&self.ip, self.prefix_len), (&self.ip6, self.prefix6_len)];
        let more = self.more.iter().chain(&self.more6).map(|address| (&address.ip, address.prefix_len));
        first.into_iter().chain(more).filter_map(move |(ip, prefix_len)| {
            let prefix_len = Some(prefix_len).filter(|len| *len != 0);
            Some(Address { network: network.clone(), ip: ip.parse().ok()?, prefix_len })
        })
    }
}

fn mounts(mounts: Vec<Mounted>) -> Arc<[Mount]> {
    let mount = |mount: Mounted| {
        let source = match mount.kind.as_str() {
            "tmpfs" => None,
            _ => caps::name(&mount.source).or_else(|| caps::name(&mount.name)),
        };
        Some(Mount { destination: caps::name(&mount.destination)?, source, read_only: !mount.writable })
    };
    let mut all: Vec<Mount> = mounts.into_iter().filter_map(mount).take(MAX_LIST).collect();
    all.sort();
    all.into()
}

impl HostSettings {
    fn resources(&self) -> Resources {
        let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number != 0);
        let of_quota =
            || positive(self.cpu_quota)?.saturating_mul(1000).checked_div(positive(self.cpu_period).unwrap_or(100_000));
        Resources {
            cpu_millis: positive(self.nano_cpus).map(|nanos| nanos / 1_000_000).or_else(of_quota),
            cpu_shares: Some(self.cpu_shares).filter(|shares| !matches!(*shares, 0 | DEFAULT_SHARES)),
            cpuset: caps::name(&self.cpuset_cpus),
            memory: positive(self.memory),
            pids: positive(self.pids_limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::container::Labels;

    /// What podman 4.3 answers about a container on two networks, shortened to what is read and its neighbours.
    const INSPECTION: &str = include_str!("inspection.json");

    fn inspection(domain: Domain) -> Told {
        let inspection: Inspection = serde_json::from_str(INSPECTION).unwrap();
        inspection.told(domain, &["COLOUR"].into_iter().collect())
    }

    #[test]
    fn an_inspection_tells_everything() {
        let Told { scope, pid, statement, left_out } = inspection(Domain::Host);
        assert_eq!((scope.as_deref(), pid, left_out), (Some("oci/run/runc"), Some(9206), 0));
        assert_eq!(inspection(Domain::User(7)).scope.as_deref(), Some("oci/run/user/7/runc"));
        assert_eq!((statement.name.as_deref(), statement.state), (Some("lim"), Some(State::Running)));
        assert_eq!(statement.bundle.as_deref(), Some("/s/overlay-containers/5f23/userdata"));
        assert_eq!((statement.exited_at, statement.exit), (None, None), "the year 1 is no moment");
        assert!(statement.started_at.is_some() && statement.created_at.is_some());
        let details = statement.details.unwrap();
        assert_eq!((details.hostname.as_deref(), details.health), (Some("hh"), Some(Health::Healthy)));
        assert_eq!((details.privileged, details.restart_count), (Some(true), Some(2)));
        let resources = Resources {
            cpu_millis: Some(500),
            memory: Some(64 << 20),
            pids: Some(50),
            cpuset: Some("0-1".into()),
            cpu_shares: None,
        };
        assert_eq!(details.resources, Some(resources));
        let address = |network: &str, ip: &str, prefix_len| Address {
            network: Some(network.into()),
            ip: ip.parse().unwrap(),
            prefix_len: Some(prefix_len),
        };
        let addresses = [
            address("back", "10.89.1.7", 24),
            address("front", "10.89.0.5", 24),
            address("front", "10.89.0.6", 24),
            address("front", "fd00::5", 64),
        ];
        assert_eq!(details.addresses.as_deref(), Some(&addresses[..]));
        let port = |container, protocol: &str, host, host_ip: Option<&str>| Port {
            container,
            protocol: protocol.into(),
            host,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        };
        let ports = [
            port(53, "udp", None, None),
            port(80, "tcp", Some(8080), None),
            port(80, "tcp", Some(8081), Some("127.0.0.1")),
        ];
        assert_eq!(details.ports.as_deref(), Some(&ports[..]));
        let mounts = [
            Mount { destination: "/data".into(), source: Some("/s/volumes/data/_data".into()), read_only: false },
            Mount { destination: "/mnt".into(), source: Some("/tmp/img".into()), read_only: true },
            Mount { destination: "/scratch".into(), source: None, read_only: false },
        ];
        assert_eq!(details.mounts.as_deref(), Some(&mounts[..]));
        assert_eq!(details.env.unwrap().get("COLOUR").map(|value| &**value), Some("blue"));
    }

    #[test]
    fn that_podman_knows_of_no_oom_killer_says_nothing() {
        for (oom_killed, oom) in [(true, Some(true)), (false, None)] {
            let text = format!(r#"{{"State":{{"Status":"exited","ExitCode":137,"OOMKilled":{oom_killed}}}}}"#);
            let told = serde_json::from_str::<Inspection>(&text).unwrap().told(Domain::Host, &EnvAllow::default());
            assert_eq!(told.statement.exit, Some(Exit { code: 137, signal: None, oom }));
        }
    }

    #[test]
    fn a_row_tells_what_it_can() {
        let row = |state: &str| -> Told {
            let text = format!(
                r#"{{"Id":"2a","Names":["web"],"Image":"docker.io/bb:1","ImageID":"{0}","IsInfra":true,"Labels":null,
                "Pid":7,"Pod":"{0}","PodName":"front","State":"{state}","Created":"2026-11-21T12:55:45.035169902Z",
                "StartedAt":1795265745,"ExitedAt":-62135596800,"ExitCode":3,"Ports":null}}"#,
                "ab".repeat(32)
            );
            serde_json::from_str::<Row>(&text).unwrap().told()
        };
        let Told { pid, statement, .. } = row("running");
        assert_eq!((pid, statement.kind, statement.state), (Some(7), Some(Kind::Sandbox), Some(State::Running)));
        assert_eq!(statement.pod.unwrap().name.as_deref(), Some("front"));
        assert_eq!((statement.exit, statement.labels), (None, Some(Labels::default())));
        let Told { pid, statement, .. } = row("exited");
        assert_eq!((pid, statement.exit.map(|exit| exit.code), statement.exited_at), (None, Some(3), None));
        assert_eq!(row("unheard of").statement.state, None);
    }

    proptest! {
        #[test]
        fn any_answer_is_read_without_panic(
            number in any::<i64>(), text in ".{0,20}", short in any::<u8>(), is in any::<bool>()
        ) {
            let text = serde_json::to_string(&text).unwrap();
            let row = format!(r#"{{"Id":{text},"Names":[{text}],"Image":{text},"ImageID":{text},"Pid":{number},"Pod":{text},
                "State":"exited","Created":{text},"StartedAt":{number},"ExitedAt":{number},"ExitCode":{number}}}"#);
            serde_json::from_str::<Row>(&row).unwrap().told();
            let inspection = format!(r#"{{"Created":{text},"Image":{text},"OCIConfigPath":{text},"OCIRuntime":{text},
                "State":{{"Pid":{number},"StartedAt":{text},"Status":{text}}},"Mounts":[{{"Type":{text},"Destination":{text}}}],
                "NetworkSettings":{{"IPAddress":{text},"IPPrefixLen":{short},"Ports":{{{text}:[{{"HostPort":{text}}}]}}}},
                "HostConfig":{{"CpuPeriod":{number},"CpuQuota":{number},"Memory":{number},"Privileged":{is}}}}}"#);
            serde_json::from_str::<Inspection>(&inspection).unwrap().told(Domain::Host, &EnvAllow::default());
        }
    }
}
