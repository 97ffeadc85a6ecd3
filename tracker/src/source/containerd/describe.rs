//! What containerd's record of a container says, as a statement: labels, image, runtime, pod.
//!
//! Pure. The OCI specification inside the record fills what labels leave open. Input from outside is capped as a bundle's is,
//! and what is left out is named in the statement's `missing`: a label that is cut short would be a wrong label, so it is
//! left out whole. Control characters are data here; whoever prints them escapes.

use std::collections::HashMap;
use std::sync::Arc;

use containerd_client::services::v1::Container;
use prost::Message;
use prost_types::Any;

use super::events::{MAX_IMAGE_NAME_LEN, boot_time};
use crate::container::{ContainerId, Image, Kind, Labels, Pod, Runtime, Str};
use crate::enrich::caps::{self, MAX_NAME_LEN};
use crate::enrich::env::EnvAllow;
use crate::enrich::kubelet::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID, pod_labels};
use crate::enrich::{oci, scope};
use crate::fact::Statement;

/// The CRI plugin's label that tells sandboxes from containers.
const KIND: &str = "io.cri-containerd.kind";

/// dockerd keeps notes in the record's labels. The container's own it keeps to itself.
const NOTES_OF_DOCKERD: &str = "com.docker/engine.";

/// What a container's record says.
#[derive(Clone, Debug, Default)]
pub(super) struct Description {
    /// All but what only tasks and images can tell.
    pub statement: Statement,
    /// Labels that were left out.
    pub left_out: u64,
}

/// Reads a container's record, and those of its environment variables that are allowed.
pub(super) fn describe(
    namespace: &Str,
    id: &ContainerId,
    mut container: Container,
    env_allow: &EnvAllow,
) -> Description {
    let mut statement = Statement::default();
    container.labels.retain(|key, _| !key.starts_with(NOTES_OF_DOCKERD));
    let (labels, left_out) = caps::labels(container.labels);
    if left_out > 0 {
        statement.missing.push(("labels", format!("{left_out} left out: too many or too long").into()));
    }
    let label = |key: &str| labels.get(key).cloned();

    statement.kind = match labels.get(KIND).map(|kind| &**kind) {
        Some("sandbox") => Some(Kind::Sandbox),
        Some("container") => Some(Kind::Container),
        _ => None,
    };
    statement.name = label(CONTAINER_NAME).or_else(|| label("nerdctl/name"));
    statement.pod = pod(&labels, statement.kind, id, &container.sandbox);
    statement.runtime = Some(runtime(namespace, container.runtime));
    if !container.image.is_empty() && container.image.len() <= MAX_IMAGE_NAME_LEN {
        statement.image = Some(Image { name: Some(container.image.into()), id: None, digest: None });
    }
    if scope::manager(namespace) == "docker" {
        for field in ["name", "image", "labels"] {
            statement.missing.push((field, "dockerd does not tell containerd".into()));
        }
    }
    statement.created_at = container.created_at.as_ref().and_then(boot_time);
    statement.labels = Some(labels);
    let spec = container.spec.map(|spec| spec.value);
    let env = spec.as_ref().and_then(|spec| oci::env(spec, env_allow));
    match spec.map(|spec| oci::parse(&spec)) {
        Some(Ok(facts)) => {
            if let (Some(pod), Some(from_spec)) = (&mut statement.pod, &facts.pod) {
                pod.sandbox_id = pod.sandbox_id.take().or_else(|| from_spec.sandbox_id.clone());
            }
            facts.apply(&mut statement);
        }
        Some(Err(error)) => statement.missing.push(("annotations", error.to_string().into())),
        None => {}
    }
    if env.is_some() {
        statement.details.get_or_insert_default().env = env;
    }
    statement.kind = statement.kind.or(Some(Kind::Container));
    Description { statement, left_out }
}

/// What a container's record says after a change that told only its labels: the rest is as `former` has it. `None` where
/// that is not so: the image is another one.
///
/// Saves the call for the whole record, which some programs would cost us several times in a container's life: they keep
/// their own notes in labels. What a label said that is gone now stays until the next list.
pub(super) fn relabel(
    namespace: &Str,
    id: &ContainerId,
    former: &Statement,
    image: String,
    labels: HashMap<String, String>,
) -> Option<Description> {
    let former_image = former.image.as_ref().and_then(|image| image.name.as_deref());
    if former_image.unwrap_or_default() != image {
        return None;
    }
    let record = Container { labels, image, ..Default::default() };
    // What the specification says stays as it was.
    let mut description = describe(namespace, id, record, &EnvAllow::default());
    let statement = &mut description.statement;
    statement.runtime.clone_from(&former.runtime);
    statement.image.clone_from(&former.image);
    statement.annotations.clone_from(&former.annotations);
    statement.details.clone_from(&former.details);
    statement.host_network = former.host_network;
    statement.created_at = former.created_at;
    statement.name = statement.name.take().or_else(|| former.name.clone());
    if !statement.labels.as_ref().is_some_and(|labels| labels.contains_key(KIND)) {
        statement.kind = former.kind;
    }
    match (&mut statement.pod, &former.pod) {
        (Some(pod), Some(former)) => {
            pod.sandbox_id = pod.sandbox_id.take().or_else(|| former.sandbox_id.clone());
            pod.labels = pod.labels.take().or_else(|| former.labels.clone());
        }
        (pod @ None, former) => pod.clone_from(former),
        (Some(_), None) => {}
    }
    let of_labels = |field: &str| field == "labels";
    statement.missing.extend(former.missing.iter().filter(|(field, _)| !of_labels(field)).cloned());
    statement.missing.sort_unstable();
    statement.missing.dedup();
    Some(description)
}

/// The pod, from the labels that the CRI plugin puts on sandboxes and containers alike.
fn pod(labels: &Labels, kind: Option<Kind>, id: &ContainerId, sandbox: &str) -> Option<Pod> {
    let label = |key: &str| labels.get(key).cloned();
    let sandbox_id = match kind {
        Some(Kind::Sandbox) => Some(id.as_str().into()),
        // Filled by containerd 1.7 and later; before, only the OCI bundle's annotations tell.
        _ => ContainerId::new(sandbox).is_ok().then(|| sandbox.into()),
    };
    let pod = Pod {
        name: label(POD_NAME),
        namespace: label(POD_NAMESPACE),
        uid: label(POD_UID),
        sandbox_id,
        labels: (kind == Some(Kind::Sandbox)).then(|| pod_labels(labels)),
        ..Pod::default()
    };
    (pod != Pod::default()).then_some(pod)
}

fn runtime(namespace: &Str, runtime: Option<containerd_client::services::v1::container::Runtime>) -> Runtime {
    let (handler, options) = runtime.map(|runtime| (runtime.name, runtime.options)).unwrap_or_default();
    let oci = options.as_ref().and_then(oci_binary).or_else(|| {
        // The shim's own default, where its options do not name another.
        handler.starts_with("io.containerd.runc.").then(|| "runc".into())
    });
    let handler = (!handler.is_empty() && handler.len() <= MAX_NAME_LEN).then(|| handler.into());
    Runtime { name: Some(scope::manager(namespace).into()), namespace: Some(Arc::clone(namespace)), handler, oci }
}

/// The two fields of `containerd.runc.v1.Options` that tell which OCI runtime the shim calls. The type belongs to the
/// shim, not to containerd's API; its field numbers are fixed since containerd 1.2.
#[derive(Clone, PartialEq, Message)]
struct RuncOptions {
    #[prost(string, tag = "6")]
    binary_name: String,
}

/// File name of the OCI runtime's binary, if the shim's options name one.
fn oci_binary(options: &Any) -> Option<Str> {
    if options.type_url.rsplit('/').next() != Some("containerd.runc.v1.Options") {
        return None;
    }
    let binary = RuncOptions::decode(options.value.as_slice()).ok()?.binary_name;
    let name = binary.rsplit('/').next().filter(|name| !name.is_empty() && name.len() <= MAX_NAME_LEN)?;
    Some(name.into())
}

#[cfg(test)]
mod tests {
    use containerd_client::services::v1::container;

    use super::*;

    fn record(namespace: &str, pairs: &[(&str, &str)], runtime: Option<container::Runtime>) -> Description {
        let labels = pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        describe(
            &namespace.into(),
            &ContainerId::new("c1").unwrap(),
            Container { labels, runtime, ..Default::default() },
            &EnvAllow::default(),
        )
    }

    #[test]
    fn pods_and_sandboxes_are_read_from_the_cri_labels() {
        let labels = [("io.kubernetes.pod.name", "web"), ("io.kubernetes.pod.namespace", "shop")];
        let of = |kind| {
            let more = [("io.cri-containerd.kind", kind), ("io.kubernetes.pod.uid", "u"), ("app", "web")];
            [&labels[..], &more].concat()
        };
        let sandbox = record("k8s.io", &of("sandbox"), None).statement;
        assert_eq!(sandbox.kind, Some(Kind::Sandbox));
        let pod = sandbox.pod.unwrap();
        assert_eq!((pod.name.as_deref(), pod.sandbox_id.as_deref()), (Some("web"), Some("c1")));
        assert_eq!(pod.labels, Some([("app", "web")].into_iter().collect()));
        let container = record("k8s.io", &of("container"), None).statement;
        assert_eq!((container.kind, container.pod.unwrap().sandbox_id), (Some(Kind::Container), None));
        assert_eq!(record("default", &[], None).statement.pod, None);
    }

    #[test]
    fn the_specification_fills_what_labels_leave_open() {
        let spec = |json: &str| Some(Any { type_url: "runtime-spec/1/Spec".into(), value: json.as_bytes().to_vec() });
        let labels = HashMap::from([("io.kubernetes.pod.name".to_owned(), "web".to_owned())]);
        let json = r#"{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"s1",
            "io.kubernetes.cri.sandbox-name":"other","color":"red"},"process":{"env":["STAGE=test","TOKEN=x"]},"linux":{"namespaces":[{"type":"mount"}]}}"#;
        let container = Container { labels, spec: spec(json), ..Default::default() };
        let id = ContainerId::new("c1").unwrap();
        let statement = describe(&"k8s.io".into(), &id, container, &["STAGE"].into_iter().collect()).statement;
        let pod = statement.pod.unwrap();
        assert_eq!((pod.name.as_deref(), pod.sandbox_id.as_deref()), (Some("web"), Some("s1")));
        assert_eq!(statement.annotations.unwrap().get("color").map(|value| &**value), Some("red"));
        assert_eq!(statement.host_network, Some(true));
        assert_eq!(statement.details.unwrap().env, Some([("STAGE", "test")].into_iter().collect()));

        let broken = Container { spec: spec("{"), ..Default::default() };
        let statement = describe(&"default".into(), &id, broken, &EnvAllow::default()).statement;
        assert_eq!((statement.kind, statement.missing.len()), (Some(Kind::Container), 1));
    }

    #[test]
    fn the_oci_runtime_is_the_options_binary_or_the_shim_s_default() {
        let options = |binary_name: &str| Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: RuncOptions { binary_name: binary_name.into() }.encode_to_vec(),
        };
        let garbage = Any { type_url: "containerd.runc.v1.Options".into(), value: vec![0xff; 9] };
        for (name, options, expected) in [
            ("io.containerd.runc.v2", None, Some("runc")),
            ("io.containerd.runc.v2", Some(options("/usr/bin/crun")), Some("crun")),
            ("io.containerd.runc.v2", Some(options("")), Some("runc")),
            ("io.containerd.runc.v2", Some(garbage), Some("runc")),
            ("io.containerd.kata.v2", None, None),
        ] {
            let runtime =
                record("default", &[], Some(container::Runtime { name: name.into(), options })).statement.runtime;
            assert_eq!(runtime.unwrap().oci.as_deref(), expected, "{name}");
        }
        assert_eq!(record("moby", &[], None).statement.runtime.unwrap().name.as_deref(), Some("docker"));
    }

    #[test]
    fn new_labels_change_what_labels_say_and_nothing_else() {
        const SPEC: &[u8] = br#"{"annotations":{"color":"red"},"process":{"env":["STAGE=test"]},"linux":{}}"#;
        let spec = Any { type_url: "Spec".into(), value: SPEC.to_vec() };
        let allow = ["STAGE"].into_iter().collect();
        let labelled = |value: &str| HashMap::from([("nerdctl/name".to_owned(), value.to_owned())]);
        let (namespace, id) = ("default".into(), ContainerId::new("c1").unwrap());
        let record = |name| Container {
            labels: labelled(name),
            spec: Some(spec.clone()),
            image: "bb".into(),
            ..Default::default()
        };
        let former = describe(&namespace, &id, record("old"), &allow).statement;
        let relabelled = relabel(&namespace, &id, &former, "bb".into(), labelled("new")).unwrap().statement;
        assert_eq!(relabelled, describe(&namespace, &id, record("new"), &allow).statement);
        assert!(relabel(&namespace, &id, &former, "other".into(), labelled("new")).is_none());
    }
}
