//! What Docker says of a container, as a statement: from a list, from an inspection, from an event's attributes.
//!
//! Pure. Texts and lists are capped; a label that is cut short would be a wrong label, so it is left out whole, and the
//! statement's `missing` says so. Control characters are data here; whoever prints them escapes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::runtimes::Named;
use super::wire::{self, Bindings, Inspection, NetworkSettings, Summary};
use crate::container::{
    Address, ContainerId, Details, Health, Image, Kind, Labels, Mount, Pod, Port, Resources, Runtime, State, Str,
};
use crate::enrich::caps;
use crate::enrich::env::EnvAllow;
use crate::enrich::kubelet::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use crate::fact::Statement;
use crate::time::BootTime;

/// Ports, mounts and addresses that are kept, of each.
const MAX_ITEMS: usize = 256;
/// Bytes of a path.
const MAX_PATH_LEN: usize = 4096;
/// What Docker's Kubernetes shim calls a pod's sandbox, and where it names it.
const POD_PART: &str = "io.kubernetes.docker.type";
const SANDBOX_ID: &str = "io.kubernetes.sandbox.id";

/// What is the same for all containers of one daemon.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    /// The containerd namespace in which the daemon keeps its containers.
    pub namespace: Str,
    /// Environment variables that may be told.
    pub env_allow: EnvAllow,
}

/// What does not change from one run of a container to the next, or only by a person's hand.
#[derive(Clone, Debug, Default)]
pub(super) struct Description {
    pub statement: Statement,
    /// Labels that were left out.
    pub left_out: u64,
    /// The daemon's own name for the OCI runtime, where nobody else can tell what it means.
    pub alias: Option<Str>,
}

/// What is so at present.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Present {
    pub state: Option<State>,
    /// The init process, while there is one.
    pub pid: Option<u32>,
    pub started_at: Option<BootTime>,
    pub finished_at: Option<BootTime>,
    pub exit_code: Option<u32>,
    pub oom: Option<bool>,
}

/// Reads an entry of a list.
pub(super) fn summary(id: &ContainerId, summary: Summary, frame: &Frame) -> (Description, Present) {
    // Links of other containers give it names with two slashes.
    let own = |name: &&String| name.trim_start_matches('/').find('/').is_none();
    let name = summary.names.iter().flatten().find(own).and_then(|name| container_name(name));
    let mut description = basics(id, name, summary.labels.unwrap_or_default(), frame);
    let statement = &mut description.statement;
    statement.image = image(summary.image.as_deref(), summary.image_id.as_deref());
    let created = summary.created.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    statement.created_at = created.map(BootTime::from_unix).filter(|at| *at > BootTime::ZERO);
    let mode = summary.host_config.and_then(|config| config.network_mode);
    statement.host_network = mode.as_deref().map(|mode| mode == "host");
    let ports = summary.ports.map(|ports| {
        let port = |port: wire::ListedPort| Port {
            container: port.private_port,
            protocol: port.protocol.as_deref().and_then(caps::name).unwrap_or_else(|| "tcp".into()),
            host: port.public_port.filter(|host| *host != 0),
            host_ip: port.ip.and_then(|ip| specific(&ip)),
        };
        sorted(ports.into_iter().map(port))
    });
    statement.details = Some(Box::new(Details {
        health: summary.status.as_deref().and_then(health_in_status),
        ports,
        addresses: addresses(mode.as_deref(), summary.network_settings.as_ref()),
        mounts: summary.mounts.map(|all| mounts(all, None)),
        ..Details::default()
    }));
    let state = summary.state.as_deref().and_then(state);
    (description, Present { state, ..Present::default() })
}

/// Reads an inspection.
pub(super) fn inspection(id: &ContainerId, inspection: Inspection, frame: &Frame) -> (Description, Present) {
    let config = inspection.config.unwrap_or_default();
    let mut host = inspection.host_config.unwrap_or_default();
    let present = inspection.state.unwrap_or_default();
    let name = inspection.name.as_deref().and_then(container_name);
    let mut description = basics(id, name, config.labels.unwrap_or_default(), frame);
    let statement = &mut description.statement;
    statement.image = image(config.image.as_deref(), inspection.image.as_deref());
    statement.created_at = inspection.created.as_deref().and_then(boot_time);
    let mode = host.network_mode.as_deref();
    statement.host_network = mode.map(|mode| mode == "host");
    if let Some(runtime) = &mut statement.runtime {
        match host.runtime.as_deref().and_then(Named::read) {
            Some(Named::Shim(handler, oci)) => (runtime.handler, runtime.oci) = (Some(handler), oci),
            Some(Named::Program(oci)) => runtime.oci = Some(oci),
            Some(Named::Alias(alias)) => description.alias = Some(alias),
            None => {}
        }
    }
    if let Some(annotations) = host.annotations.take() {
        let (annotations, left_out) = caps::labels(annotations);
        statement.annotations = Some(annotations);
        note_left_out(statement, "annotations", left_out);
        description.left_out += left_out;
    }
    let statement = &mut description.statement;
    let network = inspection.network_settings.as_ref();
    let bound = network.and_then(|network| network.ports.as_ref()).filter(|ports| !ports.is_empty());
    let published = bound.or(host.port_bindings.as_ref());
    let exposed = config.exposed_ports.iter().flat_map(BTreeMap::keys);
    statement.details = Some(Box::new(Details {
        hostname: config.hostname.as_deref().and_then(caps::name),
        restart_count: inspection.restart_count,
        health: present.health.and_then(|health| parse_health(health.status.as_deref()?)),
        privileged: host.privileged,
        ports: Some(ports(exposed, published)),
        addresses: addresses(mode, network),
        mounts: inspection.mounts.map(|all| mounts(all, host.tmpfs.as_ref())),
        resources: Some(resources(&host)),
        command: None,
        env: frame.env_allow.pick(config.env.iter().flatten().map(String::as_str)),
    }));
    let present = Present {
        state: present.status.as_deref().and_then(state),
        pid: present.pid.filter(|pid| *pid != 0),
        started_at: present.started_at.as_deref().and_then(boot_time),
        finished_at: present.finished_at.as_deref().and_then(boot_time),
        exit_code: present.exit_code.and_then(|code| u32::try_from(code).ok()),
        oom: present.oom_killed,
    };
    (description, present)
}

/// What the attributes of the event of its creation say: its labels, with its name and image among them.
pub(super) fn attributes(id: &ContainerId, mut attributes: BTreeMap<String, String>, frame: &Frame) -> Description {
    let name = attributes.remove("name").as_deref().and_then(container_name);
    let asked_for = attributes.remove("image");
    let mut description = basics(id, name, attributes, frame);
    description.statement.image = image(asked_for.as_deref(), None);
    description
}

fn basics(id: &ContainerId, name: Option<Str>, labels: BTreeMap<String, String>, frame: &Frame) -> Description {
    let (labels, left_out) = caps::labels(labels);
    let (kind, pod) = pod(id, &labels);
    let in_pod = pod.as_ref().and_then(|_| labels.get(CONTAINER_NAME).filter(|_| kind == Kind::Container).cloned());
    let mut statement = Statement {
        kind: Some(kind),
        name: in_pod.or(name),
        runtime: Some(Runtime {
            name: Some("docker".into()),
            namespace: Some(frame.namespace.clone()),
            ..Runtime::default()
        }),
        pod,
        labels: Some(labels),
        ..Statement::default()
    };
    note_left_out(&mut statement, "labels", left_out);
    Description { statement, left_out, alias: None }
}

fn note_left_out(statement: &mut Statement, field: &'static str, left_out: u64) {
    if left_out > 0 {
        statement.missing.push((field, format!("{left_out} left out: too many or too long").into()));
    }
}

/// Pods that a kubelet runs by Docker carry the kubelet's labels.
fn pod(id: &ContainerId, labels: &Labels) -> (Kind, Option<Pod>) {
    let label = |key: &str| labels.get(key).cloned();
    let is_sandbox = label(POD_PART).is_some_and(|part| &*part == "podsandbox");
    let kind = if is_sandbox { Kind::Sandbox } else { Kind::Container };
    if !labels.contains_key(POD_NAME) {
        return (kind, None);
    }
    let sandbox_id = if is_sandbox { Some(id.shared()) } else { label(SANDBOX_ID) };
    let (name, namespace, uid) = (label(POD_NAME), label(POD_NAMESPACE), label(POD_UID));
    (kind, Some(Pod { name, namespace, uid, sandbox_id, ..Pod::default() }))
}

pub(super) fn container_name(name: &str) -> Option<Str> {
    caps::name(name.strip_prefix('/').unwrap_or(name))
}

/// `asked_for` is a name, unless the name was taken from the image since: then a list says the id in its place.
fn image(asked_for: Option<&str>, id: Option<&str>) -> Option<Image> {
    let name = asked_for.filter(|name| !name.starts_with("sha256:")).and_then(caps::name);
    let image = Image { name, id: id.and_then(caps::name), digest: None };
    (image != Image::default()).then_some(image)
}

fn state(state: &str) -> Option<State> {
    Some(match state {
        "created" => State::Created,
        "running" => State::Running,
        "paused" => State::Paused,
        // Between two runs; being removed; could not be removed.
        "restarting" | "exited" | "removing" | "dead" => State::Exited,
        _ => return None,
    })
}

/// What a health check says, by its name.
pub(super) fn parse_health(health: &str) -> Option<Health> {
    match health {
        "starting" => Some(Health::Starting),
        "healthy" => Some(Health::Healthy),
        "unhealthy" => Some(Health::Unhealthy),
        _ => None,
    }
}

/// `Up 2 minutes (healthy)`, `Up 2 seconds (health: starting)`
fn health_in_status(status: &str) -> Option<Health> {
    let (_, inside) = status.strip_suffix(')')?.rsplit_once('(')?;
    parse_health(inside.strip_prefix("health: ").unwrap_or(inside))
}

/// Ports that are published, then those that are only exposed.
fn ports<'a>(exposed: impl Iterator<Item = &'a String>, published: Option<&Bindings>) -> Arc<[Port]> {
    let published = published.into_iter().flatten();
    let published = published.flat_map(|(port, bindings)| {
        let bindings = bindings.as_deref().unwrap_or_default();
        let host = bindings.iter().map(|binding| {
            let host = binding.host_port.as_deref().and_then(|port| port.parse().ok()).filter(|port| *port != 0);
            (host, binding.host_ip.as_deref().and_then(specific))
        });
        let none = bindings.is_empty().then_some((None, None));
        host.chain(none).filter_map(|(host, host_ip)| port_of(port, host, host_ip))
    });
    let mut all: Vec<Port> = published.take(MAX_ITEMS).collect();
    let exposed: Vec<Port> = exposed
        .filter_map(|port| port_of(port, None, None))
        .filter(|port| !all.iter().any(|known| (known.container, &known.protocol) == (port.container, &port.protocol)))
        .collect();
    all.extend(exposed);
    sorted(all.into_iter())
}

fn port_of(port: &str, host: Option<u16>, host_ip: Option<IpAddr>) -> Option<Port> {
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    Some(Port { container: number.parse().ok()?, protocol: caps::name(protocol)?, host, host_ip })
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Arc<[T]> {
    let mut items: Vec<T> = items.take(MAX_ITEMS).collect();
    items.sort_unstable();
    items.dedup();
    items.into()
}

/// An address, unless it stands for all of them.
fn specific(ip: &str) -> Option<IpAddr> {
    ip.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified())
}

/// `None` where the net namespace is another container's, whose addresses they are.
fn addresses(mode: Option<&str>, network: Option<&NetworkSettings>) -> Option<Arc<[Address]>> {
    if mode.is_some_and(|mode| mode.starts_with("container:")) {
        return None;
    }
    let networks = network?.networks.as_ref()?.iter();
    let networks = networks.filter_map(|(name, network)| Some((caps::name(name), network.as_ref()?)));
    let all = networks.flat_map(|(name, network)| {
        let v4 = (&network.ip_address, network.ip_prefix_len);
        let v6 = (&network.global_ipv6_address, network.global_ipv6_prefix_len);
        [v4, v6].into_iter().filter_map(move |(ip, prefix_len)| {
            let ip = ip.as_deref()?.parse().ok()?;
            Some(Address { network: name.clone(), ip, prefix_len: prefix_len.filter(|len| *len > 0) })
        })
    });
    Some(sorted(all))
}

fn mounts(mounts: Vec<wire::Mount>, tmpfs: Option<&BTreeMap<String, String>>) -> Arc<[Mount]> {
    let path = |text: Option<String>| text.filter(|text| !text.is_empty() && text.len() <= MAX_PATH_LEN);
    let mounted = mounts.into_iter().filter_map(|mount| {
        Some(Mount {
            destination: path(mount.destination)?.into(),
            source: path(mount.source).or_else(|| path(mount.name)).map(Str::from),
            read_only: mount.rw == Some(false),
        })
    });
    let in_memory = tmpfs.into_iter().flatten().filter_map(|(destination, options)| {
        Some(Mount {
            destination: path(Some(destination.clone()))?.into(),
            source: None,
            read_only: options.split(',').any(|option| option == "ro"),
        })
    });
    sorted(mounted.chain(in_memory))
}

/// Zero and below mean that there is no limit.
fn resources(host: &wire::HostConfig) -> Resources {
    let limit = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok()).filter(|n| *n > 0);
    let quota = || {
        let period = limit(host.cpu_period).unwrap_or(100_000);
        u64::try_from(u128::from(limit(host.cpu_quota)?) * 1000 / u128::from(period)).ok()
    };
    Resources {
        cpu_millis: limit(host.nano_cpus).map(|nano| nano / 1_000_000).or_else(quota),
        cpu_shares: limit(host.cpu_shares),
        cpuset: host.cpuset_cpus.as_deref().and_then(caps::name),
        memory: limit(host.memory),
        pids: limit(host.pids_limit),
    }
}

/// A moment as Docker writes it. `None` for Go's zero time, for what is not a moment, and for what was before this boot.
fn boot_time(text: &str) -> Option<BootTime> {
    let since_epoch = text.parse::<Timestamp>().ok()?.duration_since(Timestamp::UNIX_EPOCH);
    let since_epoch = Duration::try_from(since_epoch).ok()?;
    Some(BootTime::from_unix(since_epoch)).filter(|at| *at > BootTime::ZERO)
}
