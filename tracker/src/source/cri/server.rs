//! Who answers a CRI socket, and what follows from that: whose ids its are, and whether its events may be asked for.
//!
//! **Events are asked for only where everybody gets all of them.** containerd before 2.0 and CRI-O before 1.29 take each
//! event from one channel, whoever asks: a second caller takes events away from the kubelet. Such a server is polled.

use std::path::Path;

use crate::container::{ContainerId, Runtime, Str, TaskId};
use crate::enrich::{caps, scope};
use crate::source::proc::owner::{self, Owner};
use crate::source::task::Task;

/// The containerd namespace of the CRI plugin.
pub(super) const NAMESPACE: &str = "k8s.io";
/// That of Docker's containers.
const DOCKERS_NAMESPACE: &str = "moby";
/// A command line of a conmon is a few hundred bytes.
const MAX_ARGUMENTS_LEN: u64 = 64 << 10;
/// Where CRI-O has runc keep its state unless it is told otherwise.
const USUAL_ROOT: &str = "/run/runc";

/// A CRI server, as it calls itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    name: String,
    version: String,
}

impl Server {
    pub(super) fn new(name: &str, version: &str) -> Self {
        let short = |text: &str| text.chars().take(64).collect();
        Self { name: short(name), version: short(version) }
    }

    /// For people.
    pub(super) fn shown(&self) -> String {
        format!("{} {}", self.name, self.version)
    }

    fn is_containerd(&self) -> bool {
        self.name == "containerd"
    }

    fn is_cri_o(&self) -> bool {
        matches!(self.name.as_str(), "cri-o" | "crio")
    }

    /// Docker, by the service that speaks the CRI for it: its ids are Docker's.
    fn is_docker(&self) -> bool {
        self.name == "docker"
    }

    /// Whether asking for its events takes none away from others.
    pub(super) fn has_events_for_all(&self) -> bool {
        let mut numbers = self.version.trim_start_matches('v').split(['.', '-', '+', '~']).map(str::parse::<u32>);
        let mut number = || numbers.next().and_then(Result::ok).unwrap_or(0);
        let version = (number(), number());
        match self {
            _ if self.is_containerd() => version >= (2, 0),
            _ if self.is_cri_o() => version >= (1, 29),
            _ => false,
        }
    }

    /// What manages its containers; `handler` is a CRI runtime class's handler, or empty.
    pub(super) fn runtime(&self, handler: &str) -> Runtime {
        let namespace = self.containerd_namespace();
        Runtime {
            name: caps::name(if self.is_cri_o() { "cri-o" } else { &self.name }),
            // containerd's own record, and its verbose information, name the shim instead.
            handler: caps::name(handler).filter(|_| namespace.is_none()),
            namespace: namespace.map(Str::from),
            oci: None,
        }
    }

    /// The containerd namespace of all its containers.
    fn containerd_namespace(&self) -> Option<&'static str> {
        match self {
            _ if self.is_containerd() => Some(NAMESPACE),
            _ if self.is_docker() => Some(DOCKERS_NAMESPACE),
            _ => None,
        }
    }

    /// Whose ids all of its are, where they are in one scope: those under a containerd.
    pub(super) fn common_scope(&self) -> Option<Str> {
        self.containerd_namespace().map(scope::containerd)
    }

    /// Whose id this is, where each OCI runtime has its own: the conmon above the process names the runtime's root
    /// directory. `None` where nobody tells.
    pub(super) fn scope(&self, id: &ContainerId, process: Option<TaskId>) -> Option<Str> {
        if self.containerd_namespace().is_some() {
            return None;
        }
        let parent = Task::open(process?.pid).ok()?.parent()?;
        let arguments = Task::open(parent.pid).ok()?.arguments(MAX_ARGUMENTS_LEN).ok()?;
        let Some(Owner::Conmon { id: of, root, .. }) = owner::read(&arguments) else { return None };
        let root = root.unwrap_or_else(|| USUAL_ROOT.into());
        // The bundle is not one of containerd's: its path plays no part.
        (of == id.as_str()).then(|| scope::of(Path::new("/"), &root, id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_asked_for_where_everybody_gets_them() {
        for (name, version, expected) in [
            ("containerd", "1.6.20~ds1", false),
            ("containerd", "v1.7.27", false),
            ("containerd", "v2.0.0-rc.1", true),
            ("containerd", "2.1.4", true),
            ("cri-o", "1.28.1", false),
            ("cri-o", "1.30.0", true),
            ("other", "9.9.9", false),
            ("containerd", "", false),
        ] {
            assert_eq!(Server::new(name, version).has_events_for_all(), expected, "{name} {version}");
        }
    }

    #[test]
    fn ids_of_a_containerd_s_are_in_one_scope_and_others_need_a_process() {
        let id = ContainerId::new("c1").unwrap();
        assert_eq!(Server::new("containerd", "2").common_scope().as_deref(), Some("containerd/k8s.io"));
        assert_eq!(Server::new("docker", "28.0.1").common_scope().as_deref(), Some("containerd/moby"));
        assert_eq!(Server::new("cri-o", "1.30.0").common_scope(), None);
        assert_eq!(Server::new("cri-o", "1.30.0").scope(&id, None), None);
        let own = Task::open(std::process::id()).unwrap().id().unwrap();
        assert_eq!(Server::new("cri-o", "1.30.0").scope(&id, Some(own)), None, "no conmon is above it");
    }
}
