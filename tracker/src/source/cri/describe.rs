//! What a CRI server says about a sandbox or a container, as a statement.
//!
//! Pure. A list's row says less than a status, and a status says less than one with verbose information; what is said
//! later replaces what was said before, but for the few things that only a row has. Input from outside is capped, and
//! what is left out is named in the statement's `missing`. Control characters are data here; whoever prints them
//! escapes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::{
    Container, ContainerState, ContainerStatus, LinuxContainerResources, NamespaceMode, PodSandbox, PodSandboxState,
    PodSandboxStatus,
};

use super::info::{Info, Limits};
use super::ledger::{OfPod, Phase};
use super::server::Server;
use crate::container::{
    Address, ContainerId, Details, Exit, Image, Kind, Labels, Mount, Pod, Resources, Runtime, State, Str,
};
use crate::enrich::caps;
use crate::enrich::env::EnvAllow;
use crate::enrich::kubelet::pod_labels;
use crate::fact::Statement;
use crate::time::BootTime;

/// Mounts of one container that are kept.
const MAX_MOUNTS: usize = 256;
/// Addresses of one pod that are kept.
const MAX_ADDRESSES: usize = 64;
/// What containerd says of a container whose end it did not see.
const UNKNOWN_REASON: &str = "Unknown";
/// What servers say of a container that the out-of-memory killer ended.
const OOM_REASON: &str = "OOMKilled";

/// What was said about one container or sandbox.
#[derive(Clone, Debug, Default)]
pub(super) struct Description {
    /// All but what only others know: its process, its scope and, of a container, its pod's.
    pub statement: Statement,
    /// How far in its life it is.
    pub phase: Phase,
    /// Its init process in the server's pid ns.
    pub pid: Option<u32>,
    /// What a sandbox knows for the containers of its pod.
    pub of_pod: Option<OfPod>,
    /// Labels and annotations that were left out.
    pub left_out: u64,
}

/// A row of the list of sandboxes.
pub(super) fn pod_row(server: &Server, id: &ContainerId, row: PodSandbox) -> Description {
    let PodSandbox { metadata, state, created_at, labels, annotations, runtime_handler, .. } = row;
    let mut description = Description { phase: pod_phase(state), ..Description::default() };
    let statement = &mut description.statement;
    let labels = texts(statement, "labels", labels, &mut description.left_out);
    let annotations = texts(statement, "annotations", annotations, &mut description.left_out);
    let metadata = metadata.unwrap_or_default();
    let pod = Pod {
        name: caps::name(&metadata.name),
        namespace: caps::name(&metadata.namespace),
        uid: caps::name(&metadata.uid),
        sandbox_id: Some(id.as_str().into()),
        labels: Some(pod_labels(&labels)),
        annotations: Some(annotations.clone()),
        owner: None,
    };
    description.of_pod = Some(OfPod { pod: pod.clone(), ..OfPod::default() });
    statement.kind = Some(Kind::Sandbox);
    statement.pod = Some(pod);
    statement.labels = Some(labels);
    statement.annotations = Some(annotations);
    statement.state = Some(description.phase.state());
    statement.created_at = moment(created_at);
    statement.runtime = Some(server.runtime(&runtime_handler));
    description
}

/// A sandbox's status.
pub(super) fn pod_status(
    server: &Server,
    id: &ContainerId,
    status: PodSandboxStatus,
    info: &HashMap<String, String>,
) -> Description {
    let PodSandboxStatus { metadata, state, created_at, network, linux, labels, annotations, runtime_handler, .. } =
        status;
    let row = PodSandbox { metadata, state, created_at, labels, annotations, runtime_handler, ..Default::default() };
    let mut description = pod_row(server, id, row);
    let info = read_info(info, &mut description);
    let options = linux.and_then(|linux| linux.namespaces).and_then(|namespaces| namespaces.options);
    let host_network = options.map(|options| options.network == NamespaceMode::Node as i32);
    // Those of a host network are the host's.
    let network = network.filter(|_| host_network != Some(true));
    let addresses = network.map(|network| {
        let all = network.additional_ips.into_iter().map(|other| other.ip);
        let all = [network.ip].into_iter().chain(all).filter_map(|ip| ip.parse::<IpAddr>().ok());
        let address = |ip| Address { network: None, ip, prefix_len: None };
        all.map(address).take(MAX_ADDRESSES).collect::<Arc<[Address]>>()
    });
    let hostname = info.hostname();
    let statement = &mut description.statement;
    statement.host_network = host_network;
    statement.details = Some(Box::new(Details {
        hostname: hostname.clone(),
        privileged: info.privileged(),
        ports: info.ports().map(Arc::from),
        addresses: addresses.clone(),
        ..Details::default()
    }));
    if let Some(of_pod) = &mut description.of_pod {
        (of_pod.addresses, of_pod.hostname, of_pod.host_network) = (addresses, hostname, host_network);
    }
    description
}

/// A row of the list of containers.
pub(super) fn container_row(server: &Server, row: Container) -> Description {
    let Container {
        pod_sandbox_id, metadata, image, image_ref, state, created_at, labels, annotations, image_id, ..
    } = row;
    let phase = container_phase(state);
    let mut description = Description { phase, ..Description::default() };
    let statement = &mut description.statement;
    statement.labels = Some(texts(statement, "labels", labels, &mut description.left_out));
    statement.annotations = Some(texts(statement, "annotations", annotations, &mut description.left_out));
    let metadata = metadata.unwrap_or_default();
    statement.kind = Some(Kind::Container);
    statement.name = caps::name(&metadata.name);
    let sandbox_id = ContainerId::new(&pod_sandbox_id).is_ok().then(|| pod_sandbox_id.into());
    statement.pod = Some(Pod { sandbox_id, ..Pod::default() });
    statement.image = image_of([image_id, image_ref, image.unwrap_or_default().image]);
    statement.state = (state != ContainerState::ContainerUnknown as i32).then(|| phase.state());
    statement.created_at = moment(created_at);
    statement.runtime = Some(server.runtime(""));
    statement.details = Some(Box::new(Details { restart_count: Some(metadata.attempt), ..Details::default() }));
    description
}

/// A container's status.
pub(super) fn container_status(
    server: &Server,
    status: ContainerStatus,
    info: &HashMap<String, String>,
    env_allow: &EnvAllow,
) -> Description {
    let ContainerStatus {
        metadata,
        state,
        created_at,
        started_at,
        finished_at,
        exit_code,
        image,
        image_ref,
        reason,
        labels,
        annotations,
        mounts,
        resources,
        image_id,
        ..
    } = status;
    let row = Container {
        metadata,
        image,
        image_ref,
        state,
        created_at,
        labels,
        annotations,
        image_id,
        ..Container::default()
    };
    let mut description = container_row(server, row);
    let info = read_info(info, &mut description);
    let statement = &mut description.statement;
    if let Some(pod) = &mut statement.pod {
        pod.sandbox_id = ContainerId::new(&info.sandbox_id).is_ok().then(|| info.sandbox_id.as_str().into());
    }
    if let Some(image) = info.config.as_ref().and_then(|config| image_of([config.image.image.clone()])) {
        let told = statement.image.get_or_insert_with(Image::default);
        told.id = told.id.take().or(image.id);
        told.name = told.name.take().or(image.name);
    }
    statement.started_at = moment(started_at);
    if description.phase == Phase::Over && reason != UNKNOWN_REASON {
        statement.exited_at = moment(finished_at);
        let oom = (reason == OOM_REASON).then_some(true);
        // Whether 137 was a signal or the program's own choice, it does not tell.
        statement.exit = u32::try_from(exit_code).ok().map(|code| Exit { code, signal: None, oom });
    }
    let mounts = mounts.into_iter().take(MAX_MOUNTS).filter_map(|mount| {
        let destination = path(mount.container_path)?;
        Some(Mount { destination, source: path(mount.host_path), read_only: mount.readonly })
    });
    let limits = resources.and_then(|resources| resources.linux).map(limits);
    let limits = limits.or_else(|| info.config.as_ref()?.linux.resources.clone());
    let details = statement.details.get_or_insert_default();
    details.privileged = info.privileged();
    details.env = info.env(env_allow);
    details.mounts = Some(mounts.collect());
    details.resources = limits.map(|limits| self::resources(&limits));
    description
}

/// Reads the verbose part, and takes over what it says about anything.
fn read_info(info: &HashMap<String, String>, description: &mut Description) -> Info {
    let info = Info::read(info).unwrap_or_else(|reason| {
        description.statement.missing.push(("pid", format!("verbose information: {reason}").into()));
        Info::default()
    });
    description.pid = Some(info.pid).filter(|pid| *pid != 0);
    if let Some(handler) = caps::name(&info.runtime_type) {
        description.statement.runtime.get_or_insert_with(Runtime::default).handler = Some(handler);
    }
    info
}

fn pod_phase(state: i32) -> Phase {
    match PodSandboxState::try_from(state) {
        Ok(PodSandboxState::SandboxReady) => Phase::Running,
        Ok(PodSandboxState::SandboxNotready) => Phase::Over,
        Err(_) => Phase::Created,
    }
}

fn container_phase(state: i32) -> Phase {
    match ContainerState::try_from(state) {
        Ok(ContainerState::ContainerRunning) => Phase::Running,
        Ok(ContainerState::ContainerExited) => Phase::Over,
        Ok(ContainerState::ContainerCreated | ContainerState::ContainerUnknown) | Err(_) => Phase::Created,
    }
}

impl Phase {
    /// What it is called in a statement.
    pub(super) fn state(self) -> State {
        match self {
            Phase::Created => State::Created,
            Phase::Running => State::Running,
            Phase::Over => State::Exited,
        }
    }
}

fn texts(statement: &mut Statement, field: &'static str, texts: HashMap<String, String>, left_out: &mut u64) -> Labels {
    let (kept, too_much) = caps::labels(texts);
    if too_much > 0 {
        statement.missing.push((field, format!("{too_much} left out: too many or too long").into()));
        *left_out += too_much;
    }
    kept
}

/// The image by all that names it: an id is `sha256:…`, a digest what follows an `@`, a name anything else.
fn image_of<const N: usize>(references: [String; N]) -> Option<Image> {
    let mut image = Image::default();
    for reference in references {
        let Some(reference) = caps::name(&reference) else { continue };
        if reference.starts_with("sha256:") {
            image.id.get_or_insert(reference);
        } else if let Some((_, digest)) = reference.split_once('@') {
            image.digest.get_or_insert(digest.into());
        } else if reference.len() == 64 && reference.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            image.id.get_or_insert(format!("sha256:{reference}").into());
        } else {
            image.name.get_or_insert(reference);
        }
    }
    (image != Image::default()).then_some(image)
}

fn path(path: String) -> Option<Str> {
    // A path has at most 4095 bytes.
    (!path.is_empty() && path.len() < 4096).then(|| path.into())
}

fn limits(linux: LinuxContainerResources) -> Limits {
    Limits {
        cpu_period: linux.cpu_period,
        cpu_quota: linux.cpu_quota,
        cpu_shares: linux.cpu_shares,
        memory_limit_in_bytes: linux.memory_limit_in_bytes,
        cpuset_cpus: linux.cpuset_cpus,
    }
}

fn resources(limits: &Limits) -> Resources {
    let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
    let quota = positive(limits.cpu_quota).zip(positive(limits.cpu_period));
    Resources {
        cpu_millis: quota.map(|(quota, period)| (u128::from(quota) * 1000 / u128::from(period)) as u64),
        cpu_shares: positive(limits.cpu_shares),
        cpuset: caps::name(&limits.cpuset_cpus),
        memory: positive(limits.memory_limit_in_bytes),
        pids: None,
    }
}

/// A moment of the server's, in nanoseconds of the wall clock. `None` for zero, and for what was before this boot.
fn moment(nanoseconds: i64) -> Option<BootTime> {
    let nanoseconds = u64::try_from(nanoseconds).ok().filter(|nanoseconds| *nanoseconds > 0)?;
    Some(BootTime::from_unix(Duration::from_nanos(nanoseconds))).filter(|at| *at > BootTime::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_s_references_are_told_apart() {
        let id = "a".repeat(64);
        let references = [format!("sha256:{id}"), format!("reg/bb@sha256:{id}"), "reg/bb:1".into()];
        let image = image_of(references).unwrap();
        assert_eq!(image.id, Some(format!("sha256:{id}").into()));
        assert_eq!(image.digest, Some(format!("sha256:{id}").into()));
        assert_eq!(image.name.as_deref(), Some("reg/bb:1"));
        assert_eq!(image_of([id.clone()]).unwrap().id, Some(format!("sha256:{id}").into()));
        assert_eq!(image_of([String::new(), "x".repeat(2000)]), None);
    }

    #[test]
    fn limits_that_are_none_are_absent() {
        let all = Limits { cpu_period: 100_000, cpu_quota: -1, cpu_shares: 2, ..Limits::default() };
        let expected = Resources { cpu_shares: Some(2), ..Resources::default() };
        assert_eq!(resources(&all), expected);
        let half = Limits { cpu_period: 100_000, cpu_quota: 50_000, memory_limit_in_bytes: i64::MAX, ..all };
        assert_eq!((resources(&half).cpu_millis, resources(&half).memory), (Some(500), Some(i64::MAX as u64)));
        assert_eq!(resources(&Limits { cpu_quota: i64::MAX, cpu_period: 1, ..half }).cpu_shares, Some(2));
    }

    #[test]
    fn moments_that_are_none_are_absent() {
        for nanoseconds in [0, -1, 1, i64::MIN] {
            assert_eq!(moment(nanoseconds), None, "{nanoseconds}");
        }
        assert!(moment(i64::MAX).is_some());
    }

    #[test]
    fn an_end_that_the_server_did_not_see_has_no_code() {
        let server = Server::new("containerd", "1.6.20");
        let ended = |reason: &str| ContainerStatus {
            state: ContainerState::ContainerExited as i32,
            exit_code: 137,
            finished_at: i64::MAX,
            reason: reason.into(),
            ..Default::default()
        };
        let of = |reason| container_status(&server, ended(reason), &HashMap::new(), &EnvAllow::default()).statement;
        assert_eq!(of("Error").exit, Some(Exit { code: 137, signal: None, oom: None }));
        assert_eq!(of("OOMKilled").exit.unwrap().oom, Some(true));
        assert_eq!((of("Unknown").exit, of("Unknown").state), (None, Some(State::Exited)));
    }

    #[test]
    fn a_host_network_has_no_addresses_of_its_own() {
        use k8s_cri::v1::{LinuxPodSandboxStatus, Namespace, NamespaceOption, PodIp, PodSandboxNetworkStatus};
        let server = Server::new("containerd", "1.6.20");
        let status = |mode: NamespaceMode| PodSandboxStatus {
            network: Some(PodSandboxNetworkStatus {
                ip: "10.0.0.7".into(),
                additional_ips: vec![PodIp { ip: "fd00::7".into() }, PodIp { ip: "nonsense".into() }],
            }),
            linux: Some(LinuxPodSandboxStatus {
                namespaces: Some(Namespace {
                    options: Some(NamespaceOption { network: mode as i32, ..Default::default() }),
                }),
            }),
            ..Default::default()
        };
        let id = ContainerId::new("s").unwrap();
        let of = |mode| pod_status(&server, &id, status(mode), &HashMap::new()).statement;
        let own = of(NamespaceMode::Pod);
        let ips: Vec<_> = own.details.unwrap().addresses.unwrap().iter().map(|one| one.ip.to_string()).collect();
        assert_eq!((own.host_network, ips), (Some(false), vec!["10.0.0.7".to_owned(), "fd00::7".to_owned()]));
        let host = of(NamespaceMode::Node);
        assert_eq!((host.host_network, host.details.unwrap().addresses), (Some(true), None));
    }
}
