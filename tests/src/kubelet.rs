//! Real pods: what a kubelet asks of containerd's CRI plugin, asked by hand.
//!
//! No CNI plugin of the distribution is needed. Most pods use the host's net ns; one that has a net ns of its own is
//! given it by containerd itself, and a plugin of three lines says that it has an address.
//!
//! Pods end with their containerd.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerStatusRequest, CreateContainerRequest, ImageSpec, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, ListContainersRequest, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, PodSandboxStatusRequest, PortMapping, RemoveContainerRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
};
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use crate::containerd::Containerd;
use crate::image::{IMAGE, PAUSE_IMAGE};
use crate::runc::Runtime as OciRuntime;

/// The containerd namespace of all pods.
pub const NAMESPACE: &str = "k8s.io";

/// The handler whose containers are made by crun, where there is one.
pub const CRUN: &str = "crun";

/// What the CRI plugin needs in containerd's configuration, and on the disk.
pub(crate) fn configure(containerd: &Containerd) -> Result<String> {
    let plugins = containerd.path("cni");
    fs::create_dir_all(&plugins).context("create a directory for CNI plugins")?;
    for plugin in ["loopback", "nothing"] {
        let file = plugins.join(plugin);
        fs::write(&file, CNI_PLUGIN).context("write a CNI plugin")?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).context("make a CNI plugin executable")?;
    }
    let network = r#"{"cniVersion": "0.3.1", "name": "test", "type": "nothing"}"#;
    fs::write(plugins.join("10-test.conf"), network).context("write a CNI network")?;
    let crun = containerd.crun().map(|crun| handler(CRUN, crun)).unwrap_or_default();
    // A sandbox's out-of-memory score is lowered otherwise, which needs CAP_SYS_RESOURCE.
    Ok(format!(
        r#"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {PAUSE_IMAGE:?}
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {plugins:?}
conf_dir = {plugins:?}
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
default_runtime_name = "runc"
{runc}{crun}"#,
        runc = handler("runc", containerd.runtime()),
    ))
}

fn handler(name: &str, runtime: &OciRuntime) -> String {
    let table = format!(r#"[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}"#);
    format!(
        r#"{table}]
runtime_type = "io.containerd.runc.v2"
pod_annotations = ["*", "*/*"]
container_annotations = ["*", "*/*"]
{table}.options]
BinaryName = {binary:?}
Root = {root:?}
"#,
        binary = runtime.program(),
        root = runtime.root(),
    )
}

/// Leaves the net ns as it is, and says of every interface that it has an address.
const CNI_PLUGIN: &str = r#"#!/bin/sh
cat >/dev/null
echo '{"cniVersion": "0.3.1", "interfaces": [{"name": "'$CNI_IFNAME'", "sandbox": "'$CNI_NETNS'"}],'
echo ' "ips": [{"version": "4", "interface": 0, "address": "192.0.2.1/32"}]}'
"#;

/// Whose net ns a pod uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    Host,
    /// One of its own.
    Pod,
}

/// How a pod is made; by default with a net ns of its own, and a pid ns for each container.
#[derive(Clone, Copy, Debug)]
pub struct PodOptions<'a> {
    /// Whose net ns it uses.
    pub network: Network,
    /// Whether its containers and its sandbox share one pid ns.
    pub shares_pids: bool,
    /// The handler: empty for the default one.
    pub handler: &'a str,
    /// A port of the host's, and the pod's port that it leads to.
    pub port: Option<(u16, u16)>,
    /// Whether its containers may have all privileges.
    pub privileged: bool,
}

impl Default for PodOptions<'_> {
    fn default() -> Self {
        Self { network: Network::Pod, shares_pids: false, handler: "", port: None, privileged: false }
    }
}

/// How a container is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct ContainerOptions<'a> {
    /// Which try it is.
    pub attempt: u32,
    /// A directory of the host's, and where it is mounted to be read only.
    pub mount: Option<(&'a str, &'a str)>,
    /// Bytes of memory.
    pub memory: i64,
    /// Microseconds of a processor in 100,000.
    pub cpu_quota: i64,
    /// Whether it has all privileges.
    pub privileged: bool,
    /// Variables of its environment.
    pub env: &'a [(&'a str, &'a str)],
}

/// A pod, and the id of its sandbox.
pub struct Pod {
    /// Id of its sandbox.
    pub id: String,
    /// Its uid.
    pub uid: String,
    config: PodSandboxConfig,
}

/// The truth about a sandbox or a container, in the CRI plugin's own words.
pub struct Status {
    /// Its init's pid, if it runs.
    pub pid: u32,
    /// Its exit code, if it is a container that has ended.
    pub exit_code: i32,
    /// Which try in its pod it is.
    pub attempt: u32,
}

/// One that asks like a kubelet.
pub struct Kubelet {
    runtime: Runtime,
    client: RuntimeServiceClient<Channel>,
    cgroup: String,
}

impl Kubelet {
    /// Connects to a daemon that was [started with CRI](Containerd::start_with_cri).
    pub fn connect(containerd: &Containerd) -> Result<Kubelet> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("build an async runtime")?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", containerd.socket().display()))?;
        let channel = runtime.block_on(endpoint.connect()).context("connect to the CRI plugin")?;
        Ok(Kubelet { runtime, client: RuntimeServiceClient::new(channel), cgroup: containerd.cgroup() })
    }

    /// Runs a pod's sandbox. Its cgroup is in that of its containerd's containers, and it has a label `app` and an
    /// annotation `note/pod`.
    pub fn run_pod(&mut self, namespace: &str, name: &str, network: Network) -> Result<Pod> {
        self.run_pod_with(namespace, name, PodOptions { network, ..PodOptions::default() })
    }

    /// The same, made as `options` say.
    pub fn run_pod_with(&mut self, namespace: &str, name: &str, options: PodOptions<'_>) -> Result<Pod> {
        let uid = format!("uid-of-{namespace}-{name}");
        let metadata =
            PodSandboxMetadata { name: name.into(), uid: uid.clone(), namespace: namespace.into(), attempt: 0 };
        let security = LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces(options)),
            privileged: options.privileged,
            ..Default::default()
        };
        let port_mappings = options.port.map(|(host, pod)| PortMapping {
            host_port: host.into(),
            container_port: pod.into(),
            ..Default::default()
        });
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            // A host name of its own needs a UTS namespace of its own.
            hostname: if options.network == Network::Host { String::new() } else { name.into() },
            labels: texts(&pod_labels(namespace, name, &uid, ("app", name))),
            annotations: texts(&[("note/pod", name)]),
            port_mappings: port_mappings.into_iter().collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}/pod{uid}", self.cgroup),
                security_context: Some(security),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: options.handler.into() };
        let answer = self.runtime.block_on(self.client.run_pod_sandbox(request)).context("run a pod's sandbox")?;
        Ok(Pod { id: answer.into_inner().pod_sandbox_id, uid, config })
    }

    /// Creates and starts a container in a pod; returns its id. `attempt` counts its restarts.
    pub fn start(&mut self, pod: &Pod, name: &str, attempt: u32, command: &[&str]) -> Result<String> {
        self.start_with(pod, name, command, ContainerOptions { attempt, ..ContainerOptions::default() })
    }

    /// The same, made as `options` say.
    pub fn start_with(
        &mut self,
        pod: &Pod,
        name: &str,
        command: &[&str],
        options: ContainerOptions<'_>,
    ) -> Result<String> {
        let of = pod.config.metadata.clone().unwrap_or_default();
        let security = pod.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let security = LinuxContainerSecurityContext {
            namespace_options: security.and_then(|security| security.namespace_options.clone()),
            privileged: options.privileged,
            ..Default::default()
        };
        let resources = LinuxContainerResources {
            memory_limit_in_bytes: options.memory,
            cpu_quota: options.cpu_quota,
            cpu_period: if options.cpu_quota == 0 { 0 } else { 100_000 },
            ..Default::default()
        };
        let mount = |(host, container): (&str, &str)| Mount {
            host_path: host.into(),
            container_path: container.into(),
            readonly: true,
            ..Default::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: options.attempt }),
            image: Some(ImageSpec { image: IMAGE.into(), ..Default::default() }),
            command: command.iter().map(|word| (*word).into()).collect(),
            labels: texts(&pod_labels(&of.namespace, &of.name, &of.uid, ("io.kubernetes.container.name", name))),
            annotations: texts(&[("note/container", name)]),
            envs: options
                .env
                .iter()
                .map(|(key, value)| KeyValue { key: (*key).into(), value: (*value).into() })
                .collect(),
            mounts: options.mount.map(mount).into_iter().collect(),
            linux: Some(LinuxContainerConfig { resources: Some(resources), security_context: Some(security) }),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let created = self.runtime.block_on(self.client.create_container(request)).context("create a container")?;
        let id = created.into_inner().container_id;
        let request = StartContainerRequest { container_id: id.clone() };
        self.runtime.block_on(self.client.start_container(request)).context("start a container")?;
        Ok(id)
    }

    /// Asks a container to end; kills it when it has not after so many seconds.
    pub fn stop(&mut self, id: &str, seconds: i64) -> Result<()> {
        let request = StopContainerRequest { container_id: id.into(), timeout: seconds };
        self.runtime.block_on(self.client.stop_container(request)).context("stop a container").map(drop)
    }

    /// Removes a container that has ended.
    pub fn remove(&mut self, id: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: id.into() };
        self.runtime.block_on(self.client.remove_container(request)).context("remove a container").map(drop)
    }

    /// Ends and removes a pod and its containers.
    pub fn remove_pod(&mut self, pod: &Pod) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.runtime.block_on(self.client.stop_pod_sandbox(request)).context("stop a pod")?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.runtime.block_on(self.client.remove_pod_sandbox(request)).context("remove a pod").map(drop)
    }

    /// The truth about a container.
    pub fn status(&mut self, id: &str) -> Result<Status> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: true };
        let answer = self.runtime.block_on(self.client.container_status(request)).context("ask about a container")?;
        let answer = answer.into_inner();
        let status = answer.status.context("a container's status")?;
        let attempt = status.metadata.unwrap_or_default().attempt;
        Ok(Status { pid: pid(&answer.info)?, exit_code: status.exit_code, attempt })
    }

    /// The id of the image that a container was made from.
    pub fn image_id(&mut self, id: &str) -> Result<String> {
        let filter = k8s_cri::v1::ContainerFilter { id: id.into(), ..Default::default() };
        let request = ListContainersRequest { filter: Some(filter) };
        let answer = self.runtime.block_on(self.client.list_containers(request)).context("list a container")?;
        let row = answer.into_inner().containers.pop().context("a container in the list")?;
        Ok(row.image_ref)
    }

    /// The pid of a sandbox's init.
    pub fn sandbox_pid(&mut self, pod: &Pod) -> Result<u32> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
        let answer = self.runtime.block_on(self.client.pod_sandbox_status(request)).context("ask about a pod")?;
        pid(&answer.into_inner().info)
    }
}

/// The labels by which kubelets find their own again, and another one.
fn pod_labels<'a>(
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
    more: (&'a str, &'a str),
) -> [(&'a str, &'a str); 4] {
    [("io.kubernetes.pod.name", name), ("io.kubernetes.pod.namespace", namespace), ("io.kubernetes.pod.uid", uid), more]
}

fn namespaces(options: PodOptions<'_>) -> NamespaceOption {
    let network = if options.network == Network::Host { NamespaceMode::Node } else { NamespaceMode::Pod };
    let pid = if options.shares_pids { NamespaceMode::Pod } else { NamespaceMode::Container };
    NamespaceOption { network: network.into(), pid: pid.into(), ipc: NamespaceMode::Pod.into(), ..Default::default() }
}

fn texts(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

/// The pid in the JSON that a verbose answer carries.
fn pid(info: &HashMap<String, String>) -> Result<u32> {
    let text = info.get("info").context("a verbose answer")?;
    let info: Value = serde_json::from_str(text).with_context(|| format!("understand `{text}`"))?;
    let pid = info["pid"].as_u64().with_context(|| format!("a pid in {info}"))?;
    u32::try_from(pid).context("a pid")
}
