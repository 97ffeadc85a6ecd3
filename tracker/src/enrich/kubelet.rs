//! The labels by which kubelets find their own again, whichever runtime keeps them.

use crate::container::Labels;

/// The pod's name.
pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
/// The pod's namespace.
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// The pod's uid.
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
/// The container's name in its pod.
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Put on every pod's sandbox.
const ON_SANDBOXES: [&str; 4] = [POD_NAME, POD_NAMESPACE, POD_UID, CONTAINER_NAME];

/// The pod's own labels among its sandbox's: all but those by which kubelets and runtimes find it again.
pub(crate) fn pod_labels(of_sandbox: &Labels) -> Labels {
    let is_own = |key: &str| !key.starts_with("io.cri-containerd.") && !ON_SANDBOXES.contains(&key);
    of_sandbox.iter().filter(|(key, _)| is_own(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pod_s_own_labels_are_the_pod_s() {
        let of_sandbox: Labels =
            [("app", "web"), (POD_UID, "u"), ("io.cri-containerd.kind", "sandbox")].into_iter().collect();
        assert_eq!(pod_labels(&of_sandbox), [("app", "web")].into_iter().collect());
    }
}
