//! What the managers of containers write into annotations, and what it means here.
//!
//! | | containerd's CRI plugin | CRI-O | podman |
//! |---|---|---|---|
//! | recognised by | `io.kubernetes.cri.*` | `io.kubernetes.cri-o.SandboxID` and others | `io.container.manager` = `libpod` |
//! | kind | `container-type` | `ContainerType` | `io.kubernetes.cri-o.ContainerType`, in pods only |
//! | name | `container-name` | kubelet's label, `Metadata`, `ContainerName` | (only its command line tells) |
//! | pod | `sandbox-name`, `-namespace`, `-uid`, `-id` | kubelet's labels, `KubeName`, `Namespace`, `SandboxName`, `SandboxID` | `io.kubernetes.cri-o.SandboxID` |
//! | image | `image-name` | `ImageName`, `Image`, `ImageRef` | (only its API tells) |
//!
//! Kubelet's own labels (`io.kubernetes.pod.name`, `io.kubernetes.container.name`, …) are understood as annotations
//! whoever wrote them, and nerdctl's `nerdctl/name` is a name. Docker writes no annotations.

use super::json::{Config, Texts, read_texts};
use super::{MAX_ENTRIES, MAX_VALUE_LEN, OciFacts, OciNamespace, setup};
use crate::container::{Image, Kind, Labels, Pod, Str};

/// More entries of `linux.namespaces` than there are types say nothing.
const MAX_NAMESPACES: usize = 16;

const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// Turns the file's own words into the tracker's.
pub(super) fn interpret(config: Config<'_>) -> OciFacts {
    let details = setup::details(&config);
    let annotations = config.annotations.unwrap_or_default();
    let labels = annotations.get("io.kubernetes.cri-o.Labels").and_then(read_texts);
    let said = Said { annotations: &annotations, labels: labels.as_ref() };
    let mut facts = match said.manager() {
        Some(Manager::Containerd) => said.by_containerd(),
        Some(Manager::CriO) => said.by_cri_o(),
        Some(Manager::Podman) => said.by_podman(),
        None => said.by_nobody(),
    };

    let text = |text: Option<super::json::Text<'_>>| text.and_then(|text| bounded(&text.0));
    facts.details = details;
    facts.root = config.root.and_then(|root| text(root.path));
    if let Some(linux) = config.linux {
        facts.cgroups_path = text(linux.cgroups_path);
        let entry = |namespace: super::json::Namespace<'_>| {
            let kind = namespace.kind()?;
            // An empty path makes a new namespace, as no path does. One too long to keep still joins one.
            let path = namespace.path.filter(|path| !path.0.is_empty());
            Some(OciNamespace { kind, path: path.map(|path| bounded(&path.0).unwrap_or_default()) })
        };
        let namespaces = linux.namespaces.unwrap_or_default();
        facts.namespaces = Some(namespaces.into_iter().filter_map(entry).take(MAX_NAMESPACES).collect());
    }
    let mut left_out = 0;
    facts.labels = labels.map(|labels| keep(labels, &mut left_out));
    facts.annotations = keep(annotations, &mut left_out);
    facts.left_out = left_out;
    facts
}

#[derive(Clone, Copy)]
enum Manager {
    Containerd,
    CriO,
    Podman,
}

/// The annotations, and the labels that one of them holds.
struct Said<'a> {
    annotations: &'a Texts<'a>,
    labels: Option<&'a Texts<'a>>,
}

impl Said<'_> {
    fn manager(&self) -> Option<Manager> {
        let manager = self.annotations.get("io.container.manager");
        let has = |key| self.annotations.get(key).is_some();
        // Podman borrows some of CRI-O's keys, so that it has to be asked for first.
        match manager {
            Some("libpod") => Some(Manager::Podman),
            Some("cri-o") => Some(Manager::CriO),
            _ if has("io.kubernetes.cri.container-type") || has("io.kubernetes.cri.sandbox-id") => {
                Some(Manager::Containerd)
            }
            _ if has("io.kubernetes.cri-o.ContainerID") || has("io.kubernetes.cri-o.SandboxID") => Some(Manager::CriO),
            _ => None,
        }
    }

    fn by_containerd(&self) -> OciFacts {
        OciFacts {
            kind: self.kind("io.kubernetes.cri.container-type"),
            manager: Some("containerd".into()),
            name: self.text("io.kubernetes.cri.container-name"),
            image: image(self.text("io.kubernetes.cri.image-name"), None),
            pod: pod(Pod {
                name: self.text("io.kubernetes.cri.sandbox-name"),
                namespace: self.text("io.kubernetes.cri.sandbox-namespace"),
                uid: self.text("io.kubernetes.cri.sandbox-uid"),
                sandbox_id: self.text("io.kubernetes.cri.sandbox-id"),
                ..Pod::default()
            }),
            ..OciFacts::default()
        }
    }

    fn by_cri_o(&self) -> OciFacts {
        let kind = self.kind("io.kubernetes.cri-o.ContainerType");
        // `k8s_<pod>_<pod namespace>_<uid>_<attempt>`; no part can contain an underscore.
        let sandbox_name: Vec<&str> = match self.annotations.get("io.kubernetes.cri-o.SandboxName") {
            Some(name) => name.strip_prefix("k8s_").map(|name| name.split('_').collect()).unwrap_or_default(),
            None => Vec::new(),
        };
        let part = |index: usize| sandbox_name.get(index).filter(|_| sandbox_name.len() == 4).and_then(|s| bounded(s));
        OciFacts {
            kind,
            manager: Some("cri-o".into()),
            name: (kind == Kind::Container).then(|| self.cri_o_name()).flatten(),
            image: image(
                self.text("io.kubernetes.cri-o.ImageName").or_else(|| self.text("io.kubernetes.cri-o.Image")),
                self.annotations.get("io.kubernetes.cri-o.ImageRef"),
            ),
            pod: pod(Pod {
                name: self.label(POD_NAME).or_else(|| self.text("io.kubernetes.cri-o.KubeName")).or_else(|| part(0)),
                namespace: self
                    .label(POD_NAMESPACE)
                    .or_else(|| self.text("io.kubernetes.cri-o.Namespace"))
                    .or_else(|| part(1)),
                uid: self.label(POD_UID).or_else(|| part(2)),
                sandbox_id: self.text("io.kubernetes.cri-o.SandboxID"),
                ..Pod::default()
            }),
            ..OciFacts::default()
        }
    }

    fn cri_o_name(&self) -> Option<Str> {
        let of_metadata = || {
            #[derive(serde::Deserialize)]
            struct Metadata {
                name: String,
            }
            let metadata = self.annotations.get("io.kubernetes.cri-o.Metadata")?;
            bounded(&serde_json::from_str::<Metadata>(metadata).ok()?.name).filter(|name| !name.is_empty())
        };
        let of_container_name = || {
            let name = self.annotations.get("io.kubernetes.cri-o.ContainerName")?;
            bounded(name.strip_prefix("k8s_").and_then(|name| name.split('_').next()).unwrap_or(name))
        };
        self.label(CONTAINER_NAME).or_else(of_metadata).or_else(of_container_name)
    }

    fn by_podman(&self) -> OciFacts {
        OciFacts {
            manager: Some("podman".into()),
            kind: self.kind("io.kubernetes.cri-o.ContainerType"),
            pod: pod(Pod { sandbox_id: self.text("io.kubernetes.cri-o.SandboxID"), ..Pod::default() }),
            ..OciFacts::default()
        }
    }

    fn by_nobody(&self) -> OciFacts {
        OciFacts {
            kind: Kind::Container,
            name: self.label(CONTAINER_NAME).or_else(|| self.text("nerdctl/name")),
            pod: pod(Pod {
                name: self.label(POD_NAME),
                namespace: self.label(POD_NAMESPACE),
                uid: self.label(POD_UID),
                ..Pod::default()
            }),
            ..OciFacts::default()
        }
    }

    fn kind(&self, key: &str) -> Kind {
        if self.annotations.get(key) == Some("sandbox") { Kind::Sandbox } else { Kind::Container }
    }

    fn text(&self, key: &str) -> Option<Str> {
        self.annotations.get(key).and_then(bounded)
    }

    /// One of kubelet's labels, which are annotations too in some versions.
    fn label(&self, key: &str) -> Option<Str> {
        self.labels.and_then(|labels| labels.get(key)).and_then(bounded).or_else(|| self.text(key))
    }
}

/// Text that is worth keeping. What is longer is no name of anything.
pub(super) fn bounded(text: &str) -> Option<Str> {
    (text.len() <= MAX_VALUE_LEN).then(|| text.into())
}

/// A pod of which something is known.
fn pod(pod: Pod) -> Option<Pod> {
    (pod != Pod::default()).then_some(pod)
}

/// `reference` is an image's id (64 hexadecimal digits), or `name@digest`.
fn image(name: Option<Str>, reference: Option<&str>) -> Option<Image> {
    let is_id = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let reference = reference.unwrap_or_default();
    let id = reference.strip_prefix("sha256:").unwrap_or(reference);
    let image = Image {
        name,
        id: is_id(id).then(|| format!("sha256:{id}").into()),
        digest: reference.split_once('@').and_then(|(_, digest)| bounded(digest)),
    };
    (image != Image::default()).then_some(image)
}

/// What is kept of a map.
fn keep(texts: Texts<'_>, left_out: &mut usize) -> Labels {
    let mut kept = Vec::<(Str, Str)>::new();
    *left_out += texts.left_out;
    for (key, value) in texts.entries {
        if kept.len() < MAX_ENTRIES && value.len() <= MAX_VALUE_LEN {
            kept.push((key.into(), value.into()));
        } else {
            *left_out += 1;
        }
    }
    kept.into_iter().collect()
}
