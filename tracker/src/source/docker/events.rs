//! Docker's event messages, decoded: one closed list of what can have happened. Pure.
//!
//! A message that is of no interest is `None`; one that cannot be read is an error, which the caller counts. What is
//! not asked for does not even arrive: [`FILTERS`].

use std::collections::BTreeMap;
use std::time::Duration;

use super::describe::{container_name, parse_health};
use super::wire::Message;
use crate::container::{ContainerId, Health, InvalidId, Str};
use crate::time::BootTime;

/// What is asked for. Values of `event` are prefixes here, since `health_status` is among them (Docker's own rule). The
/// execs of health checks, every second on some hosts, stay out, and with them every exec's exit, which is not its
/// container's.
pub(super) const FILTERS: &str = r#"{"type":["container","image","network","daemon"],"event":["create","start","die","oom","pause","unpause","rename","update","destroy","health_status","connect","disconnect","pull","load","import","tag","untag","delete","reload"]}"#;

/// Something that happened under a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// To a container.
    Container {
        id: ContainerId,
        /// When, by the daemon's clock, which is the host's; never later than now.
        at: BootTime,
        what: Happened,
    },
    /// To an image: what is known about images may be so no longer.
    ImagesChanged,
    /// To the daemon: it has read its configuration again.
    Reloaded,
}

/// What happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Happened {
    /// It was made, with these labels, name and image among them.
    Created(BTreeMap<String, String>),
    /// Its entrypoint runs.
    Started,
    /// Its init process ended. The code is 128 + signal where a signal ended it.
    Died(Option<u32>),
    /// The OOM killer took a process of it: not necessarily its init.
    OutOfMemory,
    /// It is frozen.
    Paused,
    /// It goes on.
    Unpaused,
    /// It has another name.
    Renamed(Str),
    /// Its health check says something else; `None` for what is not known here.
    Health(Option<Health>),
    /// Its limits were changed, or its networks: to what, nobody tells.
    Changed,
    /// It was removed.
    Destroyed,
}

/// Why an event could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Garbled {
    #[error("an event of more bytes than an event has")]
    TooLong,
    #[error("an event that is no event: {0}")]
    Json(#[from] serde_json::Error),
    #[error("an event without an actor")]
    Actor,
    #[error("an event of a container whose id is not one: {0}")]
    Id(#[from] InvalidId),
}

/// Reads a message.
pub(super) fn decode(message: Message) -> Result<Option<Event>, Garbled> {
    let now = BootTime::now();
    let at = message.time_nano.and_then(|nanos| u64::try_from(nanos).ok());
    let at = at.map_or(now, |nanos| BootTime::from_unix(Duration::from_nanos(nanos)).min(now));
    let (kind, action) = (message.kind.unwrap_or_default(), message.action.unwrap_or_default());
    let actor = message.actor.ok_or(Garbled::Actor)?;
    let mut attributes = actor.attributes.unwrap_or_default();
    let (name, detail) = action.split_once(':').unwrap_or((&action, ""));
    let what = match (&*kind, name) {
        ("image", _) => return Ok(Some(Event::ImagesChanged)),
        ("daemon", "reload") => return Ok(Some(Event::Reloaded)),
        ("network", "connect" | "disconnect") => {
            let id = attributes.remove("container").ok_or(Garbled::Actor)?;
            return Ok(Some(Event::Container { id: ContainerId::new(&id)?, at, what: Happened::Changed }));
        }
        ("container", "create") => Happened::Created(attributes),
        ("container", "start") => Happened::Started,
        ("container", "die") => Happened::Died(attributes.get("exitCode").and_then(|code| code.parse().ok())),
        ("container", "oom") => Happened::OutOfMemory,
        ("container", "pause") => Happened::Paused,
        ("container", "unpause") => Happened::Unpaused,
        ("container", "rename") => match attributes.get("name").and_then(|name| container_name(name)) {
            Some(name) => Happened::Renamed(name),
            None => return Ok(None),
        },
        ("container", "health_status") => Happened::Health(parse_health(detail.trim())),
        ("container", "update") => Happened::Changed,
        ("container", "destroy") => Happened::Destroyed,
        _ => return Ok(None),
    };
    let id = ContainerId::new(&actor.id.ok_or(Garbled::Actor)?)?;
    Ok(Some(Event::Container { id, at, what }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Option<Event>, Garbled> {
        decode(serde_json::from_str(text)?)
    }

    #[track_caller]
    fn check(kind: &str, action: &str, attributes: &str, expected: Option<Happened>) {
        let text = format!(
            r#"{{"status":"x","Type":"{kind}","Action":"{action}","Actor":{{"ID":"c1","Attributes":{attributes}}},"scope":"local","time":1,"timeNano":1}}"#
        );
        let what = read(&text).unwrap().map(|event| match event {
            Event::Container { id, what, .. } => {
                assert_eq!(id.as_str(), "c1");
                what
            }
            Event::ImagesChanged | Event::Reloaded => panic!("of no container"),
        });
        assert_eq!(what, expected, "{action}");
    }

    #[test]
    fn each_action_means_one_thing() {
        check("container", "start", "{}", Some(Happened::Started));
        check("container", "die", r#"{"exitCode":"137"}"#, Some(Happened::Died(Some(137))));
        check("container", "die", r#"{"exitCode":"-1"}"#, Some(Happened::Died(None)));
        check("container", "exec_die", r#"{"exitCode":"3"}"#, None);
        check("container", "exec_create: start", "{}", None);
        check("container", "health_status: healthy", "null", Some(Happened::Health(Some(Health::Healthy))));
        check("container", "rename", r#"{"name":"new","oldName":"/old"}"#, Some(Happened::Renamed("new".into())));
        check("network", "connect", r#"{"container":"c1"}"#, Some(Happened::Changed));
        check("volume", "create", "{}", None);
    }

    #[test]
    fn what_is_no_event_is_refused() {
        for text in [r#"{"Type":"container","Action":"start"}"#, r#"{"Actor":{}, "Type":"container","Action":"die"}"#] {
            read(text).unwrap_err();
        }
        read(r#"{"Type":"container","Action":"start","Actor":{"ID":"../x"}}"#).unwrap_err();
        read("{}").unwrap_err();
    }

    #[test]
    fn the_filters_are_json() {
        serde_json::from_str::<BTreeMap<String, Vec<String>>>(FILTERS).unwrap();
    }

    proptest! {
        #[test]
        fn an_event_is_never_from_the_future(nanos: i64, action in "\\PC{0,20}") {
            let text = serde_json::json!({
                "Type": "container", "Action": action, "Actor": { "ID": "c1" }, "timeNano": nanos,
            });
            if let Ok(Some(Event::Container { at, .. })) = read(&text.to_string()) {
                prop_assert!(at <= BootTime::now());
            }
        }
    }
}
