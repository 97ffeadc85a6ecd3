//! One line of `GET /libpod/events`. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::container::{ContainerId, Str};
use crate::enrich::caps;
use crate::time::BootTime;

/// Something that happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) id: ContainerId,
    pub(super) at: BootTime,
    pub(super) what: Happened,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Happened {
    /// It was made, and may be about to be started.
    Made,
    /// Its init waits for its start.
    Initialized,
    /// It runs.
    Started,
    Paused,
    Unpaused,
    /// Its init has ended.
    Died {
        code: Option<i64>,
    },
    Renamed(Option<Str>),
    /// Its health check begins, by podman 4: what the event says of the result is that of the check before. Newer ones
    /// tell of its end.
    Checked,
    /// It is no more.
    Removed,
    /// A process that somebody executed in it has ended, which may be its health check: not the container.
    ExecDied,
}

/// Reads a line; `Ok(None)` for what is of no interest.
pub(super) fn decode(line: &[u8]) -> serde_json::Result<Option<Event>> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "Type", default)]
        kind: String,
        #[serde(rename = "Action", default)]
        action: String,
        #[serde(rename = "Actor", default)]
        actor: Actor,
        #[serde(default, rename = "timeNano")]
        time_nano: u64,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Actor {
        #[serde(rename = "ID")]
        id: String,
        #[serde(rename = "Attributes")]
        attributes: Option<BTreeMap<String, String>>,
    }
    let line: Line = serde_json::from_slice(line)?;
    if line.kind != "container" {
        return Ok(None);
    }
    let attribute = |name: &str| line.actor.attributes.as_ref()?.get(name).map(String::as_str);
    let what = match line.action.as_str() {
        "create" => Happened::Made,
        "init" => Happened::Initialized,
        "start" | "restart" | "restore" => Happened::Started,
        "pause" => Happened::Paused,
        "unpause" => Happened::Unpaused,
        "died" => Happened::Died { code: attribute("containerExitCode").and_then(|code| code.parse().ok()) },
        "rename" => Happened::Renamed(attribute("name").and_then(caps::name)),
        "health_status" => Happened::Checked,
        "remove" => Happened::Removed,
        "exec_died" => Happened::ExecDied,
        _ => return Ok(None),
    };
    let Ok(id) = ContainerId::new(&line.actor.id) else { return Ok(None) };
    let at = BootTime::from_unix(Duration::from_nanos(line.time_nano)).min(BootTime::now());
    Ok(Some(Event { id, at, what }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn what(action: &str, attributes: &str) -> Option<Happened> {
        let line = format!(
            r#"{{"status":"{action}","id":"6d","from":"docker.io/bb:1","Type":"container","Action":"{action}",
            "Actor":{{"ID":"6d","Attributes":{{{attributes}}}}},"scope":"local","time":1795266013,"timeNano":1795266013318876655}}"#
        );
        decode(line.as_bytes()).unwrap().map(|event| event.what)
    }

    #[test]
    fn what_ends_an_exec_does_not_end_the_container() {
        assert_eq!(what("exec_died", r#""containerExitCode":"0""#), Some(Happened::ExecDied));
        assert_eq!(what("died", r#""containerExitCode":"137""#), Some(Happened::Died { code: Some(137) }));
        assert_eq!(what("died", ""), Some(Happened::Died { code: None }));
        assert_eq!(what("rename", r#""name":"new""#), Some(Happened::Renamed(Some("new".into()))));
        assert_eq!(what("health_status", r#""health_status":"healthy""#), Some(Happened::Checked));
        assert_eq!(what("mount", ""), None);
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line: Vec<u8>) {
            let _ = decode(&line);
        }
    }
}
