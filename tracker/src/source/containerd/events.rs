//! containerd's event envelopes, decoded: bytes from outside become one closed list of what can have happened.
//!
//! An event that is of no interest is `None`; one that cannot be read is an error, which the caller counts. Nothing here
//! asks anybody anything.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::types::Envelope;
use prost::Message;
use prost_types::Timestamp;

use crate::container::{ContainerId, InvalidId, Str};
use crate::time::BootTime;

/// containerd itself allows 76 bytes for an identifier.
const MAX_NAMESPACE_LEN: usize = 256;
/// Linux's `PATH_MAX`.
const MAX_PATH_LEN: usize = 4096;
/// Distribution references are at most some 384 bytes; names of images are otherwise free.
pub(super) const MAX_IMAGE_NAME_LEN: usize = 4096;

/// Something that happened under a containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// When, by containerd's clock; never later than now.
    pub at: BootTime,
    /// In which containerd namespace.
    pub namespace: Str,
    /// What.
    pub what: Happened,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Happened {
    /// A container's record was made.
    Made(ContainerId),
    /// A container's record was changed. These are its labels and its image now; what else it says is not told.
    Changed { id: ContainerId, image: String, labels: HashMap<String, String> },
    /// A container's record was removed.
    Deleted(ContainerId),
    /// Something about a container's own process: not about one of its execs.
    Task(ContainerId, TaskEvent),
    /// The exit of a process that somebody executed in a container.
    ExecExited,
    /// An image's name points elsewhere now, or nowhere.
    ImageChanged(Str),
    /// A namespace was removed; containerd lets only empty ones go.
    NamespaceDeleted,
}

/// What happened to a container's init process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TaskEvent {
    /// It exists, and waits to execute the entrypoint.
    Created { pid: u32, bundle: Option<Str> },
    /// It was told to execute the entrypoint.
    Started { pid: u32 },
    /// It ended. The status is 128 + signal where a signal ended it.
    Exited { pid: u32, status: u32, at: Option<BootTime> },
    /// The OOM killer took a process of the container: not necessarily this one.
    OutOfMemory,
    /// It is frozen.
    Paused,
    /// It goes on.
    Resumed,
    /// containerd forgot it.
    Deleted { pid: u32, status: u32, at: Option<BootTime> },
}

/// Why an event could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Garbled {
    #[error("an event without a body")]
    Empty,
    #[error("decode {kind}")]
    Body { kind: &'static str, source: prost::DecodeError },
    #[error("{kind} of a container whose id is not one")]
    Id { kind: &'static str, source: InvalidId },
    #[error("{what} of {len} bytes")]
    TooLong { what: &'static str, len: usize },
}

/// Reads an envelope. `None` for what is of no interest: snapshots, content, execs that begin.
pub(super) fn decode(envelope: Envelope) -> Result<Option<Event>, Garbled> {
    use containerd_client::events as on;
    use containerd_client::services::v1 as on_image;

    let body = envelope.event.ok_or(Garbled::Empty)?;
    // containerd writes the bare type name; the specification of `Any` has it after a `/`.
    let kind = body.type_url.rsplit('/').next().unwrap_or_default();
    let bytes = body.value.as_slice();
    let what = match kind {
        "containerd.events.ContainerCreate" => {
            Happened::Made(id("ContainerCreate", &read::<on::ContainerCreate>("ContainerCreate", bytes)?.id)?)
        }
        "containerd.events.ContainerUpdate" => {
            let event: on::ContainerUpdate = read("ContainerUpdate", bytes)?;
            let id = id("ContainerUpdate", &event.id)?;
            Happened::Changed { id, image: event.image, labels: event.labels }
        }
        "containerd.events.ContainerDelete" => {
            Happened::Deleted(id("ContainerDelete", &read::<on::ContainerDelete>("ContainerDelete", bytes)?.id)?)
        }
        "containerd.events.TaskCreate" => {
            let event: on::TaskCreate = read("TaskCreate", bytes)?;
            let bundle = bounded("a bundle path", event.bundle, MAX_PATH_LEN)?;
            Happened::Task(id("TaskCreate", &event.container_id)?, TaskEvent::Created { pid: event.pid, bundle })
        }
        "containerd.events.TaskStart" => {
            let event: on::TaskStart = read("TaskStart", bytes)?;
            Happened::Task(id("TaskStart", &event.container_id)?, TaskEvent::Started { pid: event.pid })
        }
        "containerd.events.TaskExit" => {
            let event: on::TaskExit = read("TaskExit", bytes)?;
            if event.id != event.container_id && !event.id.is_empty() {
                Happened::ExecExited
            } else {
                let at = event.exited_at.as_ref().and_then(boot_time);
                let exited = TaskEvent::Exited { pid: event.pid, status: event.exit_status, at };
                Happened::Task(id("TaskExit", &event.container_id)?, exited)
            }
        }
        "containerd.events.TaskDelete" => {
            let event: on::TaskDelete = read("TaskDelete", bytes)?;
            if event.id != event.container_id && !event.id.is_empty() {
                return Ok(None);
            }
            let at = event.exited_at.as_ref().and_then(boot_time);
            let deleted = TaskEvent::Deleted { pid: event.pid, status: event.exit_status, at };
            Happened::Task(id("TaskDelete", &event.container_id)?, deleted)
        }
        "containerd.events.TaskOOM" => {
            Happened::Task(id("TaskOOM", &read::<on::TaskOom>("TaskOOM", bytes)?.container_id)?, TaskEvent::OutOfMemory)
        }
        "containerd.events.TaskPaused" => Happened::Task(
            id("TaskPaused", &read::<on::TaskPaused>("TaskPaused", bytes)?.container_id)?,
            TaskEvent::Paused,
        ),
        "containerd.events.TaskResumed" => Happened::Task(
            id("TaskResumed", &read::<on::TaskResumed>("TaskResumed", bytes)?.container_id)?,
            TaskEvent::Resumed,
        ),
        // Their package is that of the images service, though they are events like the others.
        "containerd.services.images.v1.ImageCreate" => {
            image(read::<on_image::ImageCreate>("ImageCreate", bytes)?.name)?
        }
        "containerd.services.images.v1.ImageUpdate" => {
            image(read::<on_image::ImageUpdate>("ImageUpdate", bytes)?.name)?
        }
        "containerd.services.images.v1.ImageDelete" => {
            image(read::<on_image::ImageDelete>("ImageDelete", bytes)?.name)?
        }
        "containerd.events.NamespaceDelete" => {
            // Here the envelope's namespace is whatever the caller was in; the body names the one that went.
            let name = read::<on::NamespaceDelete>("NamespaceDelete", bytes)?.name;
            return event(envelope.timestamp, name, Happened::NamespaceDeleted).map(Some);
        }
        _ => return Ok(None),
    };
    event(envelope.timestamp, envelope.namespace, what).map(Some)
}

fn event(timestamp: Option<Timestamp>, namespace: String, what: Happened) -> Result<Event, Garbled> {
    let now = BootTime::now();
    let at = timestamp.as_ref().and_then(boot_time).map_or(now, |at| at.min(now));
    let namespace = bounded("a namespace's name", namespace, MAX_NAMESPACE_LEN)?.ok_or(Garbled::Empty)?;
    Ok(Event { at, namespace, what })
}

/// A moment of containerd's, on the clock of all facts. `None` for Go's zero time, for what is not a moment, and for what
/// was before this boot: it has no place on that clock.
pub(super) fn boot_time(timestamp: &Timestamp) -> Option<BootTime> {
    let seconds = u64::try_from(timestamp.seconds).ok()?;
    let nanos = u32::try_from(timestamp.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(BootTime::from_unix(Duration::new(seconds, nanos))).filter(|at| *at > BootTime::ZERO)
}

fn read<M: Message + Default>(kind: &'static str, bytes: &[u8]) -> Result<M, Garbled> {
    M::decode(bytes).map_err(|source| Garbled::Body { kind, source })
}

fn id(kind: &'static str, id: &str) -> Result<ContainerId, Garbled> {
    ContainerId::new(id).map_err(|source| Garbled::Id { kind, source })
}

fn image(name: String) -> Result<Happened, Garbled> {
    let name = bounded("an image's name", name, MAX_IMAGE_NAME_LEN)?.ok_or(Garbled::Empty)?;
    Ok(Happened::ImageChanged(name))
}

/// Text of a bounded length; `None` when there is none.
fn bounded(what: &'static str, text: String, max: usize) -> Result<Option<Str>, Garbled> {
    match text.len() {
        0 => Ok(None),
        len if len > max => Err(Garbled::TooLong { what, len }),
        _ => Ok(Some(text.into())),
    }
}

#[cfg(test)]
mod tests {
    use containerd_client::events::{TaskCreate, TaskExit};
    use proptest::prelude::*;
    use prost_types::Any;

    use super::*;

    fn envelope(kind: &str, value: Vec<u8>) -> Envelope {
        let event = Some(Any { type_url: kind.into(), value });
        Envelope { timestamp: None, namespace: "default".into(), topic: "/any".into(), event }
    }

    #[test]
    fn the_exit_of_an_exec_is_not_the_container_s() {
        let exit = |id: &str| TaskExit { container_id: "web".into(), id: id.into(), pid: 7, ..Default::default() };
        let what = |exit: TaskExit| {
            decode(envelope("containerd.events.TaskExit", exit.encode_to_vec())).unwrap().unwrap().what
        };
        assert_eq!(what(exit("shell-1")), Happened::ExecExited);
        let own = TaskEvent::Exited { pid: 7, status: 0, at: None };
        assert_eq!(what(exit("web")), Happened::Task(ContainerId::new("web").unwrap(), own));
    }

    #[test]
    fn ids_and_lengths_are_checked() {
        for (container_id, bundle) in [("..", "/b".to_owned()), ("a/b", "/b".to_owned()), ("a", "b".repeat(5000))] {
            let event = TaskCreate { container_id: container_id.into(), bundle, ..Default::default() };
            decode(envelope("containerd.events.TaskCreate", event.encode_to_vec())).unwrap_err();
        }
    }

    #[test]
    fn moments_that_are_none_are_absent() {
        for (seconds, nanos) in [(-62_135_596_800, 0), (1, 0), (2_000_000_000, 1_000_000_000), (2_000_000_000, -1)] {
            assert_eq!(boot_time(&Timestamp { seconds, nanos }), None, "{seconds}.{nanos}");
        }
        assert!(boot_time(&Timestamp { seconds: i64::MAX, nanos: 0 }).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            kind in "containerd\\.(events|services\\.images\\.v1)\\.(Container|Task|Image|Namespace)(Create|Update|Delete|Exit|OOM|Start)",
            value in prop::collection::vec(any::<u8>(), 0..200),
            seconds in any::<i64>(), nanos in any::<i32>(),
        ) {
            let timestamp = Some(Timestamp { seconds, nanos });
            if let Ok(Some(event)) = decode(Envelope { timestamp, ..envelope(&kind, value) }) {
                prop_assert!(event.at <= BootTime::now());
            }
        }
    }
}
