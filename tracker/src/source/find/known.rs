//! Where runtimes listen, and what they are called: the table of usual places and names.

use std::path::{Path, PathBuf};

use super::Api;

/// Usual paths. A `*` stands for each directory entry in its place: the uids in `/run/user`.
const PATHS: &[(&str, Api)] = &[
    ("/run/containerd/containerd.sock", Api::Containerd),
    ("/run/docker/containerd/containerd.sock", Api::Containerd),
    // k3s and rke2.
    ("/run/k3s/containerd/containerd.sock", Api::Containerd),
    ("/run/k0s/containerd.sock", Api::Containerd),
    ("/var/snap/microk8s/common/run/containerd.sock", Api::Containerd),
    ("/run/user/*/containerd/containerd.sock", Api::Containerd),
    ("/run/user/*/docker/containerd/containerd.sock", Api::Containerd),
    ("/run/docker.sock", Api::Docker),
    ("/run/snap.docker/docker.sock", Api::Docker),
    ("/run/user/*/docker.sock", Api::Docker),
    ("/run/podman/podman.sock", Api::Podman),
    ("/run/user/*/podman/podman.sock", Api::Podman),
    ("/run/crio/crio.sock", Api::Cri),
    ("/run/cri-dockerd.sock", Api::Cri),
];

/// Most entries that a `*` stands for.
const MAX_ENTRIES: usize = 256;

/// The usual paths of one kind, for people.
pub(super) fn paths_of(api: Api) -> impl Iterator<Item = &'static str> {
    PATHS.iter().filter(move |(_, of)| *of == api).map(|(path, _)| *path)
}

/// The usual paths as they are below `root` at present, whether there is something or not.
pub(super) fn paths_below(root: &Path) -> Vec<(PathBuf, Api)> {
    let mut all = Vec::new();
    for (path, api) in PATHS {
        match path.split_once("/*/") {
            None => all.push((below(root, Path::new(path)), *api)),
            Some((directory, rest)) => {
                let entries = std::fs::read_dir(below(root, Path::new(directory))).into_iter().flatten().flatten();
                all.extend(entries.take(MAX_ENTRIES).map(|entry| (entry.path().join(rest), *api)));
            }
        }
    }
    all
}

/// Those among them that are not users'.
pub(super) fn hosts_paths_below(root: &Path) -> Vec<(PathBuf, Api)> {
    let hosts = PATHS.iter().filter(|(path, _)| !path.contains('*'));
    hosts.map(|(path, api)| (below(root, Path::new(path)), *api)).collect()
}

/// An absolute path as it is below `root`.
pub(super) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// What is spoken on a socket of this name, as far as names go.
pub(super) fn by_file_name(path: &[u8]) -> Option<Api> {
    match path.rsplit(|byte| *byte == b'/').next()? {
        b"containerd.sock" => Some(Api::Containerd),
        b"docker.sock" => Some(Api::Docker),
        b"podman.sock" => Some(Api::Podman),
        b"crio.sock" | b"cri-dockerd.sock" => Some(Api::Cri),
        _ => None,
    }
}

/// What a program of this name speaks on one of its sockets. Those that have a runtime within (k3s, k0s, rke2, microk8s)
/// run it as a process of its own, under its own name.
pub(super) fn by_program(name: &[u8]) -> Option<Api> {
    match name {
        b"containerd" | b"docker-containerd" => Some(Api::Containerd),
        b"dockerd" => Some(Api::Docker),
        b"podman" => Some(Api::Podman),
        b"crio" | b"cri-dockerd" => Some(Api::Cri),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_paths_are_below_another_root_and_those_of_users_are_theirs() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("run/user/1000")).unwrap();
        let all = paths_below(root.path());
        let has = |path: &str, api| all.contains(&(root.path().join(path), api));
        assert!(has("run/docker.sock", Api::Docker) && has("run/k3s/containerd/containerd.sock", Api::Containerd));
        assert!(has("run/user/1000/docker.sock", Api::Docker) && has("run/user/1000/podman/podman.sock", Api::Podman));
        assert!(!all.iter().any(|(path, _)| path.display().to_string().contains('*')));
        let hosts = hosts_paths_below(root.path());
        assert!(hosts.contains(&(root.path().join("run/docker.sock"), Api::Docker)));
        assert!(!hosts.iter().any(|(path, _)| path.starts_with(root.path().join("run/user"))));
    }

    #[test]
    fn a_name_is_the_last_part_of_a_path() {
        assert_eq!(by_file_name(b"/srv/x/containerd.sock"), Some(Api::Containerd));
        assert_eq!(by_file_name(b"/srv/docker.sock/x"), None);
        assert_eq!(by_file_name(b"/srv/containerd.sock.ttrpc"), None);
        assert_eq!(by_program(b"containerd-shim"), None);
    }
}
