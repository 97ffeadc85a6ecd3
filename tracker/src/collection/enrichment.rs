//! What a tracer adds to its events: names for a number, by the event's own time, without allocating.

use super::view::{Group, Lookup, Reader};
use crate::container::{Container, Pod, Str};
use crate::time::BootTime;

/// Fills events. One per thread.
#[derive(Clone, Debug)]
pub struct Enrich {
    node: Str,
    reader: Reader,
}

/// What is known about where an event came from. References into the collection: copy what outlives the next question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enrichment<'a> {
    /// Name of this node.
    pub node: &'a str,
    /// How much the number says.
    pub verdict: Verdict,
    /// The runtime that manages the container, or all of the containers.
    pub runtime: Option<&'a str>,
    /// The container; absent where several share the number.
    pub container: Option<&'a Container>,
    /// The pod of the container, or of all of the containers.
    pub pod: Option<&'a Pod>,
    /// Whether it shares the host's net namespace.
    pub host_network: Option<bool>,
}

/// How much a number says about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is this container's.
    Container,
    /// Several containers share it: what is filled in holds for each of them.
    Shared,
    /// It is the host's own.
    Host,
    /// The tracker does not know: it missed the container, or it is long gone.
    Unknown,
}

impl Enrich {
    pub(crate) fn new(node: Str, reader: Reader) -> Self {
        Enrich { node, reader }
    }

    /// What mount namespace `ns` says about an event at `at`.
    #[inline]
    pub fn by_mntns_at(&mut self, ns: u32, at: BootTime) -> Enrichment<'_> {
        let nothing = Enrichment::nothing(&self.node);
        match self.reader.by_mntns_at(ns, at) {
            Lookup::Container(container) => nothing.of(container),
            Lookup::Host => Enrichment { verdict: Verdict::Host, ..nothing },
            Lookup::Unknown => nothing,
        }
    }

    /// What net namespace `ns` says about an event at `at`. Containers of one pod share theirs: then the pod is known
    /// and the container is not.
    pub fn by_netns_at(&mut self, ns: u32, at: BootTime) -> Enrichment<'_> {
        let nothing = Enrichment::nothing(&self.node);
        let mut containers = match self.reader.by_netns_at(ns, at) {
            Group::Containers(containers) => containers,
            Group::Host => return Enrichment { verdict: Verdict::Host, host_network: Some(true), ..nothing },
            Group::Unknown => return nothing,
        };
        // An event may be of one that the filter excludes: then none of the others is it.
        let excluded = containers.excluded();
        let Some(first) = containers.next() else { return nothing };
        containers.chain(excluded).fold(nothing.of(first), |common, other| common.shared_with(other))
    }
}

impl<'a> Enrichment<'a> {
    fn nothing(node: &'a str) -> Self {
        Enrichment { node, verdict: Verdict::Unknown, runtime: None, container: None, pod: None, host_network: None }
    }

    fn of(self, container: &'a Container) -> Self {
        Enrichment {
            verdict: Verdict::Container,
            runtime: container.runtime.name.as_deref(),
            container: Some(container),
            pod: container.pod.as_ref(),
            host_network: container.host_network,
            ..self
        }
    }

    /// What holds for both.
    fn shared_with(self, other: &'a Container) -> Self {
        let same_pod = |pod: &&Pod| {
            other
                .pod
                .as_ref()
                .is_some_and(|of| (&of.namespace, &of.name, &of.uid) == (&pod.namespace, &pod.name, &pod.uid))
        };
        Enrichment {
            verdict: Verdict::Shared,
            container: None,
            runtime: self.runtime.filter(|runtime| other.runtime.name.as_deref() == Some(runtime)),
            pod: self.pod.filter(same_pod),
            host_network: self.host_network.filter(|host| other.host_network == Some(*host)),
            ..self
        }
    }
}
