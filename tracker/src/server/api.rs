//! The debug socket's wire types: what the server writes and the client reads, as JSON.
//!
//! What is not known is absent, never empty; times are RFC 3339 with nanoseconds. Where a value of [`crate::container`]
//! already has the right shape, it is used as it is. Readers ignore fields that they do not know, so fields may be
//! added; none changes its meaning.

pub mod image;
pub mod route;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::clock::{Wall, WallClock};
use crate::container::{
    self, Cgroup, Details, Domain, Exit, Grade, Image, Kind, Labels, Parent, Pod, Runtime, State, Str,
};
use crate::fact::Source;
use crate::source::health::{Condition, Health};
use crate::time::BootTime;

/// One container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// The runtime's id.
    pub id: Str,
    /// Human name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Str>,
    /// What it is.
    pub kind: Kind,
    /// Where in its life it is.
    pub state: State,
    /// How early it was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grade: Option<Grade>,
    /// Sequence number of the change that made this value.
    pub sequence: u64,
    /// Name of the node it runs on.
    pub node: Str,
    /// Who vouches for it, when that is not the host's root.
    #[serde(default, skip_serializing_if = "is_host")]
    pub domain: Domain,
    /// Sources that will say something about it and have not yet.
    #[serde(default)]
    pub awaiting: Vec<Source>,
    /// What manages it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub runtime: Runtime,
    /// What it was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// The pod it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Of a sandbox: the ids of its pod's containers that are not over. Not told where changes are followed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<Str>,
    /// Labels of the container.
    #[serde(default)]
    pub labels: Labels,
    /// Annotations of the OCI bundle and of the runtime.
    #[serde(default)]
    pub annotations: Labels,
    /// How its runtime set it up, as fields of the container's own.
    #[serde(flatten)]
    pub details: Arc<Details>,
    /// The container that it was started in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Init pid in the host's pid namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Inode number of its mount namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mntns: Option<u32>,
    /// Inode number of its net namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<u32>,
    /// Inode number of its pid namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pidns: Option<u32>,
    /// Whether it shares the host's net namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_network: Option<bool>,
    /// Its cgroup.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cgroup: Cgroup,
    /// Directory of its OCI bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<Str>,
    /// Birth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Wall>,
    /// First exec by the init process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Wall>,
    /// End of the init process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exited_at: Option<Wall>,
    /// How the init process ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_host(domain: &Domain) -> bool {
    *domain == Domain::Host
}

impl Container {
    /// `container` as it goes over the wire of the node named `node`.
    pub fn new(container: &container::Container, node: &Str, clock: &WallClock) -> Self {
        let known = |inode: u32| (inode != 0).then_some(inode);
        let wall = |moment: Option<BootTime>| moment.map(|moment| clock.wall(moment));
        Self {
            id: container.id.clone(),
            name: container.name.clone(),
            kind: container.kind,
            state: container.state,
            grade: container.grade,
            sequence: container.sequence,
            node: node.clone(),
            domain: container.domain,
            awaiting: container.awaiting.iter().collect(),
            runtime: container.runtime.clone(),
            image: container.image.clone(),
            pod: container.pod.clone(),
            containers: Vec::new(),
            labels: container.labels.clone(),
            annotations: container.annotations.clone(),
            details: Arc::clone(&container.details),
            pid: container.pid(),
            mntns: known(container.namespaces.mnt),
            netns: known(container.namespaces.net),
            pidns: known(container.namespaces.pid),
            host_network: container.host_network,
            cgroup: container.cgroup.clone(),
            parent: container.parent.clone(),
            bundle: container.bundle.clone(),
            created_at: wall(container.created_at),
            started_at: wall(container.started_at),
            exited_at: wall(container.exited_at),
            exit: container.exit,
        }
    }
}

/// What a number means, at a moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lookup {
    /// Which of the three it is.
    pub answer: Answer,
    /// The moment that was asked about.
    pub at: Wall,
    /// Whose number it is: one container, or all that share a net ns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<Container>,
    /// The pod that all of them belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Containers that have the number, too, but that the filter excludes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub excluded: usize,
}

/// The three answers of a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// One or more containers had that number.
    Containers,
    /// The host itself has that number.
    Host,
    /// Nobody had that number at that moment, or it is not known who had.
    Unknown,
}

/// One line of `GET /v1/watch`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum WatchLine {
    /// Everything that matches; comes first, and again after each `lagged`.
    Bundle {
        /// The collection's sequence number.
        sequence: u64,
        /// All that match, as of then.
        containers: Vec<Container>,
    },
    /// A container came, or came to match.
    Added {
        /// The change's sequence number.
        sequence: u64,
        /// What it is now.
        after: Box<Container>,
    },
    /// A container changed.
    Updated {
        /// The change's sequence number.
        sequence: u64,
        /// What it was.
        before: Box<Container>,
        /// What it is now.
        after: Box<Container>,
    },
    /// A container went, or no longer matches.
    Removed {
        /// The change's sequence number.
        sequence: u64,
        /// What it was.
        before: Box<Container>,
    },
    /// The reader was too slow and missed changes; a bundle follows.
    Lagged {
        /// How many changes it missed.
        missed: u64,
    },
}

/// One source's condition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceLine {
    /// The source.
    pub source: Source,
    /// Which one of its kind.
    pub what: Str,
    /// What it is doing.
    pub condition: Condition,
    /// How it came to be asked: by the configuration, or how it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Str>,
    /// For people: what was tried, what came back, what to do about it.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub detail: Str,
    /// Since when.
    pub since: Wall,
    /// How often its condition changed.
    pub changes: u64,
}

impl SourceLine {
    /// `health` as it goes over the wire.
    pub fn new(health: &Health, clock: &WallClock) -> Self {
        Self {
            source: health.source,
            what: health.what.clone(),
            condition: health.condition,
            origin: health.origin.clone(),
            detail: health.detail.clone(),
            since: clock.wall(health.since),
            changes: health.changes,
        }
    }
}

/// A container's story: who saw it when, whose word each field is, what is missing and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Story {
    /// The container as it is now.
    pub container: Container,
    /// The rule of the filter by which it is left out of every list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excluded: Option<Str>,
    /// What happened, in the order in which it happened.
    pub timeline: Vec<StoryLine>,
    /// Lines from the middle of its life that were not kept.
    pub left_out: u32,
    /// Whose word each known field is.
    pub fields: Vec<Provenance>,
    /// What one would expect to know and does not.
    pub missing: Vec<Missing>,
}

/// One line of a story.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoryLine {
    /// When it was so.
    pub at: Wall,
    /// The same in nanoseconds since boot.
    pub boot_ns: u64,
    /// Who said so.
    pub source: Source,
    /// What, in words.
    pub text: String,
}

/// Whose word a field is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The field.
    pub field: Str,
    /// Whose word it is.
    pub source: Source,
}

/// A field that is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// The field.
    pub field: Str,
    /// Why it is not known.
    pub reason: Str,
}

/// The body of every answer that is not 2xx.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was asked for and why it is refused.
    pub error: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Where in the selector it went wrong: the column, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// The ids that an ambiguous prefix could mean.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Str>,
}

/// One registration, as `/v1/registrations` lists it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    /// Its id.
    pub id: Str,
    /// The process with whose end it ends.
    pub owner: u32,
    /// Since when.
    pub since: Wall,
    /// What was registered, as it was written.
    pub registration: serde_json::Value,
}

/// One selection, as `/v1/selections` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selected {
    /// Its name.
    pub name: Str,
    /// Which containers it holds.
    pub selector: String,
    /// The process with whose end it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
    /// Whether it stays until it is removed, and is adopted by the next tracker.
    pub keep: bool,
    /// Since when it is kept up by this tracker.
    pub since: Wall,
    /// The directory in which its maps are pinned as `mntns` and `cgroups`.
    pub pins: String,
    /// Containers that are picked and there.
    pub containers: u64,
    /// Keys in the map of mount namespaces.
    pub mount_namespaces: u64,
    /// Keys in the map of cgroups.
    pub cgroups: u64,
    /// Whether it is incomplete, for want of room.
    pub full: bool,
    /// Numbers that should be in a map and are not.
    pub missing: u64,
    /// How often the set of containers has changed.
    pub changes: u64,
}

/// What `GET /livez` and `/readyz` answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Whether it is so.
    pub ok: bool,
    /// What is still missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::container::{Namespaces, TaskId};
    use crate::fact::SourceSet;

    /// A container of which nothing is known but its id.
    pub(crate) fn bare(id: &str) -> container::Container {
        container::Container {
            id: id.into(),
            domain: Domain::Host,
            instance: 1,
            name: None,
            kind: Kind::Container,
            state: State::Provisional,
            grade: None,
            sequence: 42,
            awaiting: SourceSet::EMPTY,
            sources: SourceSet::EMPTY,
            runtime: Runtime::default(),
            image: None,
            pod: None,
            labels: Labels::default(),
            annotations: Labels::default(),
            details: Default::default(),
            parent: None,
            task: None,
            namespaces: Namespaces::default(),
            generation: None,
            host_network: None,
            cgroup: Cgroup::default(),
            bundle: None,
            created_at: None,
            started_at: None,
            exited_at: None,
            exit: None,
        }
    }

    fn on_the_wire(container: &container::Container) -> Container {
        Container::new(container, &"node-1".into(), &WallClock::new())
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let wire = serde_json::to_value(on_the_wire(&bare("c1"))).unwrap();
        let expected = json!({
            "id": "c1", "kind": "container", "state": "provisional", "sequence": 42, "node": "node-1",
            "awaiting": [], "labels": {}, "annotations": {},
        });
        assert_eq!(wire, expected);
    }

    #[test]
    fn a_full_container_has_the_documented_shape_and_survives_the_way_back() {
        let mut container = bare("c1");
        container.name = Some("web".into());
        container.state = State::Exited;
        container.grade = Some(Grade::LetGo);
        container.awaiting = [Source::Containerd].into_iter().collect();
        container.runtime = Runtime { name: Some("containerd".into()), oci: Some("runc".into()), ..Runtime::default() };
        container.image = Some(Image { name: Some("busybox".into()), ..Image::default() });
        container.pod = Some(Pod { name: Some("p".into()), namespace: Some("default".into()), ..Pod::default() });
        container.labels = [("app", "web")].into_iter().collect();
        container.task = Some(TaskId { pid: 7466, start_ticks: 5 });
        container.namespaces = Namespaces { mnt: 4026532253, net: 4026532257, pid: 4026532256, cgroup: 0, user: 0 };
        container.host_network = Some(false);
        container.cgroup = Cgroup { id: Some(1234), path: Some("/c".into()), v1_path: None };
        container.exit = Some(Exit { code: 137, signal: Some(9), oom: Some(false) });
        container.exited_at = Some(BootTime(1_000_000_000));

        let wire = on_the_wire(&container);
        let value = serde_json::to_value(&wire).unwrap();
        for (pointer, expected) in [
            ("/grade", json!("let-go")),
            ("/awaiting", json!(["containerd"])),
            ("/runtime", json!({"name": "containerd", "oci": "runc"})),
            ("/pid", json!(7466)),
            ("/mntns", json!(4026532253_u32)),
            ("/pidns", json!(4026532256_u32)),
            ("/host_network", json!(false)),
            ("/cgroup", json!({"id": 1234, "path": "/c"})),
            ("/exit", json!({"code": 137, "signal": 9, "oom": false})),
        ] {
            assert_eq!(value.pointer(pointer), Some(&expected), "{pointer}");
        }
        assert_eq!(serde_json::from_value::<Container>(value).unwrap(), wire);
    }

    #[test]
    fn another_domain_than_the_hosts_shows() {
        let mut container = bare("c1");
        container.domain = Domain::User(1000);
        assert_eq!(serde_json::to_value(on_the_wire(&container)).unwrap()["domain"], json!({"user": 1000}));
    }

    #[test]
    fn lines_of_a_watch_name_their_type() {
        let bundle = WatchLine::Bundle { sequence: 3, containers: vec![] };
        assert_eq!(serde_json::to_string(&bundle).unwrap(), r#"{"type":"bundle","sequence":3,"containers":[]}"#);
        let lagged = WatchLine::Lagged { missed: 7 };
        assert_eq!(serde_json::to_string(&lagged).unwrap(), r#"{"type":"lagged","missed":7}"#);
        let removed = WatchLine::Removed { sequence: 4, before: Box::new(on_the_wire(&bare("c1"))) };
        let text = serde_json::to_string(&removed).unwrap();
        assert_eq!(serde_json::from_str::<WatchLine>(&text).unwrap(), removed);
    }
}
