//! Configurations as the managers of containers write them, what runtimes put up with, and the `oci-spec` crate as
//! the reference for everything in between.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxBuilder, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxResourcesBuilder, Spec, SpecBuilder,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

#[track_caller]
fn facts(config: Value) -> OciFacts {
    parse(config.to_string().as_bytes()).unwrap()
}

fn some(text: &str) -> Option<Str> {
    Some(text.into())
}

#[test]
fn a_container_of_containerds_cri_plugin_names_its_pod_and_image() {
    let facts = facts(json!({
        "ociVersion": "1.0.2-dev",
        "hostname": "web",
        "root": {"path": "rootfs"},
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": "nginx",
            "io.kubernetes.cri.image-name": "docker.io/library/nginx:1",
            "io.kubernetes.cri.sandbox-id": "5a",
            "io.kubernetes.cri.sandbox-name": "web-0",
            "io.kubernetes.cri.sandbox-namespace": "shop",
            "io.kubernetes.cri.sandbox-uid": "u1"
        },
        "linux": {
            "cgroupsPath": "/kubepods/besteffort/podu1/5b",
            "namespaces": [{"type": "mount"}, {"type": "network", "path": "/proc/7/ns/net"}]
        }
    }));
    assert_eq!(facts.kind, Kind::Container);
    assert_eq!(facts.manager, some("containerd"));
    assert_eq!(facts.name, some("nginx"));
    assert_eq!(facts.image.as_ref().unwrap().name, some("docker.io/library/nginx:1"));
    let pod = facts.pod.as_ref().unwrap();
    assert_eq!((&pod.name, &pod.namespace), (&some("web-0"), &some("shop")));
    assert_eq!((&pod.uid, &pod.sandbox_id), (&some("u1"), &some("5a")));
    assert_eq!(facts.cgroups_path, some("/kubepods/besteffort/podu1/5b"));
    assert_eq!(facts.root, some("rootfs"));
    assert_eq!(facts.host_network(), None, "a joined namespace may be any");
}

#[test]
fn a_sandbox_says_so_under_each_manager() {
    for key in ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"] {
        let facts = facts(
            json!({"annotations": {key: "sandbox", "io.kubernetes.cri-o.SandboxID": "5a", "io.kubernetes.cri-o.ContainerName": "k8s_POD_web_shop_u1_0"}}),
        );
        assert_eq!(facts.kind, Kind::Sandbox, "{key}");
        assert_eq!(facts.name, None, "a sandbox has its pod's name, none of its own");
    }
}

#[test]
fn a_container_of_cri_o_is_named_by_its_labels_else_by_its_metadata_else_by_its_long_name() {
    let labels = json!({"io.kubernetes.container.name": "nginx", "io.kubernetes.pod.name": "web-0",
        "io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.uid": "u1", "app": "web"});
    let mut annotations = json!({
        "io.container.manager": "cri-o",
        "io.kubernetes.cri-o.ContainerType": "container",
        "io.kubernetes.cri-o.ContainerName": "k8s_long_pod_namespace_uid_0",
        "io.kubernetes.cri-o.SandboxName": "k8s_pod_namespace_uid_0",
        "io.kubernetes.cri-o.Metadata": "{\"name\":\"metadata\",\"attempt\":1}",
        "io.kubernetes.cri-o.Labels": labels.to_string(),
        "io.kubernetes.cri-o.SandboxID": "5a",
        "io.kubernetes.cri-o.ImageName": "quay.io/nginx:1",
        "io.kubernetes.cri-o.ImageRef": "a".repeat(64),
    });
    let by_labels = facts(json!({"annotations": annotations}));
    assert_eq!(by_labels.name, some("nginx"));
    assert_eq!(by_labels.labels.as_ref().unwrap().get("app"), Some(&"web".into()));
    assert_eq!(by_labels.pod.as_ref().unwrap().name, some("web-0"));
    assert_eq!(by_labels.image.as_ref().unwrap().id, Some(format!("sha256:{}", "a".repeat(64)).into()));

    annotations["io.kubernetes.cri-o.Labels"] = json!("not JSON");
    let by_metadata = facts(json!({"annotations": annotations}));
    assert_eq!(by_metadata.name, some("metadata"));
    let pod = by_metadata.pod.unwrap();
    assert_eq!((pod.name, pod.namespace, pod.uid), (some("pod"), some("namespace"), some("uid")));

    annotations["io.kubernetes.cri-o.Metadata"] = json!(null);
    assert_eq!(facts(json!({"annotations": annotations})).name, some("long"));
}

#[test]
fn podman_is_not_taken_for_cri_o_though_it_uses_its_keys() {
    let facts = facts(json!({"annotations": {
        "io.container.manager": "libpod",
        "io.kubernetes.cri-o.Created": "2024-01-01T00:00:00Z",
        "io.kubernetes.cri-o.SandboxID": "5a",
        "io.podman.annotations.autoremove": "FALSE"
    }}));
    assert_eq!(facts.manager, some("podman"));
    assert_eq!(facts.pod.unwrap().sandbox_id, some("5a"));
}

#[test]
fn without_a_network_namespace_the_container_is_on_the_hosts_network() {
    let with = |namespaces: Value| facts(json!({"linux": {"namespaces": namespaces}})).host_network();
    assert_eq!(with(json!([{"type": "mount"}])), Some(true));
    assert_eq!(with(json!([{"type": "network"}])), Some(false));
    assert_eq!(with(json!([{"type": "network", "path": ""}])), Some(false));
    assert_eq!(with(json!([{"type": "network", "path": "/run/netns/a"}])), None);
    assert_eq!(with(json!([{"type": "network", "path": "/".repeat(5000)}])), None);
    assert_eq!(facts(json!({})).host_network(), None);
}

#[test]
fn what_runc_accepts_is_accepted() {
    let cases: &[(&str, &[u8])] = &[
        ("nulls", br#"{"hostname":null,"annotations":{"a":null},"linux":null,"root":null,"process":null}"#),
        ("text after the document", br#"{"annotations":{"a":""}} and so on"#),
        (
            "a capability of tomorrow",
            br#"{"annotations":{"a":""},"process":{"capabilities":{"bounding":["CAP_NEW"]}}}"#,
        ),
        (
            "a seccomp action of tomorrow",
            br#"{"annotations":{"a":""},"linux":{"seccomp":{"defaultAction":"SCMP_ACT_NEW"}}}"#,
        ),
        ("a namespace of tomorrow", br#"{"annotations":{"a":""},"linux":{"namespaces":[{"type":"new"}]}}"#),
        ("environment without =", br#"{"annotations":{"a":""},"process":{"env":["A","","=","A=B=C"]}}"#),
        ("a key twice", br#"{"annotations":{"a":"first","a":""}}"#),
        ("no Unicode", b"{\"hostname\":\"\xff\xfe\",\"annotations\":{\"a\":\"\",\"b\xff\":\"\xff\"}}"),
        ("half a surrogate", br#"{"hostname":"\ud800","annotations":{"a":""}}"#),
    ];
    for (name, bytes) in cases {
        let facts = parse(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(facts.annotations.get("a"), Some(&"".into()), "{name}");
    }
}

#[test]
fn what_is_no_configuration_is_refused_with_a_short_reason() {
    for bytes in [&b""[..], b"[]", b"7", b"{", b"{\"annotations\":[]}", b"{\"annotations\":{\"a\":1}}", b"\xff"] {
        parse(bytes).unwrap_err();
    }
    let long = format!("{{\"annotations\":\"{}\"}}", "x".repeat(100_000));
    assert!(parse(long.as_bytes()).unwrap_err().to_string().len() < 400);
    assert!(parse(br#"{"hostname":"a","hostname":"b"}"#).unwrap_err().to_string().contains("duplicate"));
    assert_eq!(parse(&vec![b' '; MAX_LEN + 1]), Err(OciError::TooLarge { len: MAX_LEN + 1 }));
}

#[test]
fn thirty_thousand_environment_entries_are_skipped() {
    let env: Vec<String> = (0..30_000).map(|n| format!("SECRET_{n}=hunter2")).collect();
    let facts = facts(json!({"hostname": "a", "process": {"env": env}}));
    assert_eq!(facts.details.as_ref().unwrap().hostname, some("a"));
    assert!(!format!("{facts:?}").contains("hunter2"));
}

#[test]
fn annotations_are_bounded_and_what_is_left_out_is_counted_and_told() {
    let mut annotations: BTreeMap<String, String> = (0..10_000).map(|n| (format!("k{n:05}"), n.to_string())).collect();
    annotations.insert("a-large-one".into(), "x".repeat(MAX_VALUE_LEN + 1));
    annotations.insert("y".repeat(MAX_KEY_LEN + 1), String::new());
    let facts = facts(json!({"annotations": annotations}));
    assert_eq!(facts.annotations.len(), MAX_ENTRIES);
    assert_eq!(facts.left_out, 10_002 - MAX_ENTRIES);

    let mut statement = Statement::default();
    facts.apply(&mut statement);
    assert_eq!(statement.missing.len(), 1);
}

#[test]
fn applying_leaves_what_the_source_already_said() {
    let facts = facts(json!({"annotations": {"io.container.manager": "libpod"}, "linux": {}}));
    let mut statement = Statement {
        name: some("from conmon"),
        runtime: Some(Runtime { oci: some("crun"), ..Runtime::default() }),
        ..Statement::default()
    };
    facts.apply(&mut statement);
    assert_eq!(statement.name, some("from conmon"));
    let runtime = statement.runtime.unwrap();
    assert_eq!((runtime.name, runtime.oci), (some("podman"), some("crun")));
    assert_eq!(statement.kind, Some(Kind::Container));
    assert_eq!(statement.host_network, Some(true));
}

#[test]
fn what_is_mounted_from_outside_and_what_is_limited_is_told() {
    let facts = facts(json!({
        "hostname": "web",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=65536k"]},
            {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "ro"]},
            {"destination": "/logs", "type": "none", "source": "/var/log/web", "options": ["bind"]},
            {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/nowhere", "type": "bind"}
        ],
        "linux": {"resources": {
            "cpu": {"shares": 512, "quota": 150_000, "period": 100_000, "cpus": "0-1"},
            "memory": {"limit": 1 << 30},
            "pids": {"limit": -1}
        }}
    }));
    let details = facts.details.unwrap();
    let mounts: Vec<_> = details
        .mounts
        .iter()
        .flat_map(|mounts| &**mounts)
        .map(|mount| (&*mount.destination, mount.source.as_deref(), mount.read_only))
        .collect();
    let expected =
        [("/data", Some("/srv/data"), true), ("/logs", Some("/var/log/web"), false), ("/scratch", None, false)];
    assert_eq!(mounts, expected);
    let resources = details.resources.unwrap();
    assert_eq!(
        (resources.cpu_millis, resources.cpu_shares, resources.cpuset.as_deref()),
        (Some(1500), Some(512), Some("0-1"))
    );
    assert_eq!((resources.memory, resources.pids), (Some(1 << 30), None));
}

#[test]
fn what_is_not_said_of_the_setup_is_absent() {
    assert_eq!(facts(json!({"hostname": "", "linux": {"resources": {}}})).details, None);
    let none = facts(json!({"mounts": []})).details.unwrap();
    assert_eq!(none.mounts.map(|mounts| mounts.len()), Some(0));
    // Go refuses a fraction here; the name of a running container is not lost for it.
    let odd = facts(json!({"hostname": "a", "linux": {"resources": {"memory": {"limit": 1.5}}}})).details.unwrap();
    assert_eq!((odd.hostname.as_deref(), odd.resources), (Some("a"), None));
}

fn any_spec() -> impl Strategy<Value = Spec> {
    let kind = prop::sample::select(vec![
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Uts,
    ]);
    let namespace = (kind, prop::option::of("/[a-z/]{1,20}")).prop_map(|(kind, path)| {
        let builder = LinuxNamespaceBuilder::default().typ(kind);
        path.into_iter().fold(builder, |builder, path| builder.path(path)).build().unwrap()
    });
    let namespaces = prop::collection::vec(namespace, 0..5);
    let annotations = prop::collection::hash_map(any::<String>(), any::<String>(), 0..8);
    let limits = (any::<i64>(), any::<u64>());
    (any::<String>(), annotations, "/[a-z/:]{0,20}", namespaces, limits).prop_map(
        |(hostname, annotations, cgroups_path, namespaces, (memory, shares))| {
            let memory = LinuxMemoryBuilder::default().limit(memory).build().unwrap();
            let cpu = LinuxCpuBuilder::default().shares(shares).build().unwrap();
            let resources = LinuxResourcesBuilder::default().memory(memory).cpu(cpu).build().unwrap();
            let linux = LinuxBuilder::default().cgroups_path(cgroups_path).namespaces(namespaces).resources(resources);
            let linux = linux.build().unwrap();
            SpecBuilder::default().hostname(hostname).annotations(annotations).linux(linux).build().unwrap()
        },
    )
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
        let _ = parse(&bytes);
    }

    /// Bytes that are nearly a configuration reach further than random ones.
    #[test]
    fn a_damaged_configuration_is_read_without_panic(spec in any_spec(), at: prop::sample::Index, byte: u8) {
        let mut bytes = serde_json::to_vec(&spec).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = parse(&bytes);
        let _ = parse(&bytes[..at]);
    }

    #[test]
    fn a_configuration_means_the_same_as_to_oci_spec(spec in any_spec()) {
        let facts = parse(&serde_json::to_vec(&spec).unwrap()).unwrap();
        let details = facts.details.unwrap_or_default();
        prop_assert_eq!(details.hostname.as_deref(), spec.hostname().as_deref().filter(|name| !name.is_empty()));
        let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
        let told = details.resources.unwrap_or_default();
        let memory = resources.memory().as_ref().unwrap().limit();
        prop_assert_eq!(told.memory, memory.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0));
        prop_assert_eq!(told.cpu_shares, resources.cpu().as_ref().unwrap().shares().filter(|shares| *shares > 0));
        let annotations: BTreeMap<Str, Str> =
            spec.annotations().iter().flatten().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
        prop_assert_eq!(facts.annotations, annotations.into_iter().collect());
        let linux = spec.linux().as_ref().unwrap();
        prop_assert_eq!(facts.cgroups_path.as_deref(), linux.cgroups_path().as_ref().and_then(|path| path.to_str()));
        let expected: Vec<_> = linux.namespaces().iter().flatten().map(|namespace| {
            let kind = serde_json::to_value(namespace.typ()).unwrap().as_str().unwrap().to_owned();
            (kind, namespace.path().as_ref().map(|path| path.to_str().unwrap().into()))
        }).collect();
        let found: Vec<_> = facts.namespaces.unwrap().into_iter().map(|namespace| {
            (format!("{:?}", namespace.kind).to_lowercase(), namespace.path)
        }).collect();
        prop_assert_eq!(found, expected);
    }
}
