//! An OCI bundle's `config.json`: what it says about its container.
//!
//! [`parse`] reads the few fields that name a container or tell how it is set up (annotations, host name, root, mounts,
//! limits, cgroups path, namespaces) and skips the rest without storing it: a process's arguments are never kept, and of its
//! environment only what [`EnvAllow`](super::env::EnvAllow) names, by a reading of its own. It accepts what OCI runtimes
//! accept. `runc` reads with Go's `encoding/json`, so `null` means absent, text that is not Unicode is repaired, and whatever
//! follows the document is ignored. The full model of the `oci-spec` crate refuses a whole file for a capability, a seccomp
//! action or an architecture that is younger than the crate, which would leave a running container without its name; it
//! therefore serves as the reference in this module's tests instead. One thing is refused although `runc` takes it: a field
//! given twice, which runtimes resolve differently.
//!
//! Which annotations mean what is in `oci/convention.rs`.

mod convention;
mod env;
mod json;
mod setup;

use crate::container::{Details, Image, Kind, Labels, Pod, Runtime, Str};
use crate::fact::Statement;

pub(crate) use env::env;

/// A larger file is not read at all.
pub const MAX_LEN: usize = 16 << 20;
/// Annotations, and labels, that are kept: the first ones in the order of their keys.
pub const MAX_ENTRIES: usize = 256;
/// Longer keys are left out, in bytes. Kubernetes allows 317.
pub const MAX_KEY_LEN: usize = 512;
/// Longer values of annotations and labels are left out, in bytes.
pub const MAX_VALUE_LEN: usize = 4096;

/// What a `config.json` says about its container. Absent means that it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OciFacts {
    /// [`Kind::Sandbox`] where an annotation says so, else [`Kind::Container`].
    pub kind: Kind,
    /// The manager whose annotations these are: `containerd`, `cri-o` or `podman`.
    pub manager: Option<Str>,
    /// Human name.
    pub name: Option<Str>,
    /// Image.
    pub image: Option<Image>,
    /// Pod.
    pub pod: Option<Pod>,
    /// Labels, where the manager repeats them in an annotation (CRI-O).
    pub labels: Option<Labels>,
    /// Annotations, within this module's limits.
    pub annotations: Labels,
    /// Host name, mounts and limits.
    pub details: Option<Box<Details>>,
    /// `root.path` as written: absolute, or relative to the bundle.
    pub root: Option<Str>,
    /// `linux.cgroupsPath` as written: a path, or `slice:prefix:name` for systemd.
    pub cgroups_path: Option<Str>,
    /// `linux.namespaces`; absent without a `linux` section.
    pub namespaces: Option<Vec<OciNamespace>>,
    /// Annotations and labels that exceeded a limit and were left out.
    pub left_out: usize,
}

/// One entry of `linux.namespaces`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciNamespace {
    /// Its type.
    pub kind: NamespaceKind,
    /// The namespace to join; a new one is made where there is no path.
    pub path: Option<Str>,
}

/// Types of namespaces that the OCI specification knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum NamespaceKind {
    Cgroup,
    Ipc,
    Mount,
    Network,
    Pid,
    Time,
    User,
    Uts,
}

/// Why a `config.json` says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OciError {
    /// More than [`MAX_LEN`] bytes.
    #[error("config.json has {len} bytes, more than the {MAX_LEN} that are read")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
    },
    /// Not JSON, or a field that is needed has another type than the OCI specification gives it.
    #[error("parse config.json: {0}")]
    Json(String),
}

/// Reads the bytes of a `config.json`.
///
/// ```
/// let facts = tracker::enrich::oci::parse(br#"{"hostname": "web", "linux": {"namespaces": [{"type": "mount"}]}}"#)?;
/// assert_eq!(facts.details.as_ref().unwrap().hostname.as_deref(), Some("web"));
/// assert_eq!(facts.host_network(), Some(true));
/// # Ok::<(), tracker::enrich::oci::OciError>(())
/// ```
pub fn parse(config_json: &[u8]) -> Result<OciFacts, OciError> {
    if config_json.len() > MAX_LEN {
        return Err(OciError::TooLarge { len: config_json.len() });
    }
    json::read(config_json).map(convention::interpret).map_err(|error| {
        // The message may quote the file: it is cut to what a log line bears.
        OciError::Json(error.to_string().chars().take(200).collect())
    })
}

impl OciFacts {
    /// Whether the container shares the host's net namespace. Absent when it joins one by path, which may be any, or
    /// when there is no `linux` section.
    pub fn host_network(&self) -> Option<bool> {
        match self.namespaces.as_ref()?.iter().find(|namespace| namespace.kind == NamespaceKind::Network) {
            None => Some(true),
            Some(OciNamespace { path: None, .. }) => Some(false),
            Some(_) => None,
        }
    }

    /// Fills what `statement` leaves open; what its source already said stays.
    pub fn apply(&self, statement: &mut Statement) {
        fill(&mut statement.kind, &Some(self.kind));
        fill(&mut statement.name, &self.name);
        fill(&mut statement.image, &self.image);
        fill(&mut statement.pod, &self.pod);
        fill(&mut statement.labels, &self.labels);
        fill(&mut statement.annotations, &Some(Labels::clone(&self.annotations)));
        fill(&mut statement.details, &self.details);
        fill(&mut statement.host_network, &self.host_network());
        if self.manager.is_some() {
            let runtime = statement.runtime.get_or_insert_with(Runtime::default);
            fill(&mut runtime.name, &self.manager);
        }
        if self.left_out > 0 {
            let reason = format!("{} of the bundle's annotations exceed the limits and were left out", self.left_out);
            statement.missing.push(("annotations", reason.into()));
        }
    }
}

fn fill<T: Clone>(open: &mut Option<T>, value: &Option<T>) {
    if open.is_none() {
        open.clone_from(value);
    }
}

#[cfg(test)]
mod tests;
