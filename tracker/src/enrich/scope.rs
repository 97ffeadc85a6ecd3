//! Whose container it is, from where its bundle and its OCI runtime's state lie.
//!
//! Several sources meet the same container without knowing of each other: the barrier in a command line, the `proc`
//! source in a state directory, a runtime's source in its API. They agree on its [`ContainerKey::scope`] because they
//! all ask here.
//!
//! [`ContainerKey::scope`]: crate::ContainerKey#structfield.scope

use std::path::{Component, Path, PathBuf};

use crate::container::{ContainerId, Runtime, Str};

/// The directory in which containerd's shims keep bundles, as `<containerd namespace>/<id>`.
const CONTAINERD_TASKS: &str = "io.containerd.runtime.v2.task";

/// The containerd namespace of the container `id`, when `bundle` is one of containerd's:
/// `…/io.containerd.runtime.v2.task/<namespace>/<id>`.
pub fn containerd_namespace<'a>(bundle: &'a Path, id: &ContainerId) -> Option<&'a str> {
    let mut parts = bundle.components().rev().map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let mut part = || parts.next().flatten();
    // The id has to agree: anybody may start `runc` on a bundle of containerd's under another name.
    part().filter(|last| *last == id.as_str())?;
    let namespace = part().filter(|namespace| ContainerId::new(namespace).is_ok())?;
    (part()? == CONTAINERD_TASKS).then_some(namespace)
}

/// The scope of the ids of a containerd namespace.
///
/// ```
/// assert_eq!(&*tracker::enrich::scope::containerd("k8s.io"), "containerd/k8s.io");
/// ```
pub fn containerd(namespace: &str) -> Str {
    format!("containerd/{namespace}").into()
}

/// The scope of the container `id` with this bundle, whose OCI runtime keeps its state in `root`.
///
/// ```
/// use std::path::Path;
/// use tracker::{ContainerId, enrich::scope};
/// let id = ContainerId::new("web")?;
/// let bundle = Path::new("/run/containerd/io.containerd.runtime.v2.task/default/web");
/// assert_eq!(&*scope::of(bundle, Path::new("/run/containerd/runc/default"), &id), "containerd/default");
/// assert_eq!(&*scope::of(Path::new("/tmp/web"), Path::new("/run/runc/"), &id), "oci/run/runc");
/// # Ok::<(), tracker::container::InvalidId>(())
/// ```
pub fn of(bundle: &Path, root: &Path, id: &ContainerId) -> Str {
    match containerd_namespace(bundle, id) {
        Some(namespace) => containerd(namespace),
        None => oci(root),
    }
}

/// The scope of containers whose OCI runtime keeps its state in `root`, and that are not containerd's.
pub fn oci(root: &Path) -> Str {
    format!("oci{}", tidy(root).display()).into()
}

/// What manages the container `id`, as far as the place of its bundle tells; `oci` is the OCI runtime's name.
pub fn runtime(bundle: &Path, id: &ContainerId, oci: &str) -> Runtime {
    let namespace = containerd_namespace(bundle, id);
    Runtime {
        name: namespace.map(|namespace| manager(namespace).into()),
        namespace: namespace.map(Str::from),
        handler: None,
        oci: Some(oci.into()),
    }
}

/// Who manages the containers of a containerd namespace: Docker uses `moby`.
pub fn manager(containerd_namespace: &str) -> &'static str {
    if containerd_namespace == "moby" { "docker" } else { "containerd" }
}

/// One spelling for each directory: no `.`, no doubled or final slash, and `/run` for its old name `/var/run`.
fn tidy(root: &Path) -> PathBuf {
    let root: PathBuf = root.components().collect();
    match root.strip_prefix("/var/run") {
        Ok(below) => Path::new("/run").join(below).components().collect(),
        Err(_) => root,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASKS: &str = "/run/containerd/io.containerd.runtime.v2.task";

    #[track_caller]
    fn check(bundle: &str, root: &str, expected: &str) {
        let id = ContainerId::new("web").unwrap();
        assert_eq!(&*of(Path::new(bundle), Path::new(root), &id), expected, "{bundle} {root}");
    }

    #[test]
    fn a_bundle_of_containerds_belongs_to_its_namespace_wherever_the_state_is() {
        check(&format!("{TASKS}/k8s.io/web"), "/run/containerd/runc/k8s.io", "containerd/k8s.io");
        check(&format!("{TASKS}/moby/web/"), "/var/run/docker/runtime-runc/moby", "containerd/moby");
        check("/run/k3s/io.containerd.runtime.v2.task/k8s.io/web", "/x", "containerd/k8s.io");
    }

    #[test]
    fn other_bundles_belong_to_their_runtimes_root_in_one_spelling() {
        check("/tmp/web", "/run/runc", "oci/run/runc");
        check("/tmp/web", "/run//./runc/", "oci/run/runc");
        check("/tmp/web", "/var/run/runc", "oci/run/runc");
        check(&format!("{TASKS}/k8s.io/other"), "/run/runc", "oci/run/runc");
        check(&format!("{TASKS}/web"), "/run/runc", "oci/run/runc");
        check(&format!("{TASKS}/../web"), "/run/runc", "oci/run/runc");
        check("web", "/run/runc", "oci/run/runc");
    }

    #[test]
    fn dockers_containers_are_called_dockers() {
        let id = ContainerId::new("web").unwrap();
        let runtime = runtime(Path::new(&format!("{TASKS}/moby/web")), &id, "runc");
        assert_eq!((runtime.name.as_deref(), runtime.namespace.as_deref()), (Some("docker"), Some("moby")));
    }
}
