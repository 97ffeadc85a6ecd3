//! What OCI runtimes write about a container into their state directory: `state.json` (runc) and `status` (crun).
//!
//! Only the fields that say which process is the container's init, and where its bundle lies. Pure: bytes in, values out.

use std::path::PathBuf;

use serde::Deserialize;

use crate::container::TaskId;

/// Larger files are not read: runc repeats the whole bundle in its own, and a bundle has at most 16 MiB.
pub(super) const MAX_LEN: u64 = 16 << 20;

/// A state file's name, and how it is read.
type Format = (&'static str, fn(&[u8]) -> Option<StateFile>);

/// The state files that are known, to be looked for below `<root>/<id>`.
pub(super) const FORMATS: [Format; 2] = [("state.json", runc), ("status", crun)];

/// What a state file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StateFile {
    /// The init process, with the start time by which the runtime knows it again.
    pub(super) init: TaskId,
    /// Where the bundle is.
    pub(super) bundle: Option<PathBuf>,
}

fn runc(bytes: &[u8]) -> Option<StateFile> {
    #[derive(Deserialize)]
    struct State {
        init_process_pid: u32,
        init_process_start: u64,
        config: Config,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        labels: Option<Vec<String>>,
    }
    let state: State = serde_json::from_slice(bytes).ok()?;
    let labels = state.config.labels.unwrap_or_default();
    let bundle = labels.iter().find_map(|label| label.strip_prefix("bundle="));
    Some(StateFile {
        init: TaskId { pid: state.init_process_pid, start_ticks: state.init_process_start },
        bundle: bundle.map(PathBuf::from),
    })
}

fn crun(bytes: &[u8]) -> Option<StateFile> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Status {
        pid: u32,
        process_start_time: u64,
        #[serde(default)]
        bundle: Option<PathBuf>,
    }
    let status: Status = serde_json::from_slice(bytes).ok()?;
    Some(StateFile { init: TaskId { pid: status.pid, start_ticks: status.process_start_time }, bundle: status.bundle })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_runtimes_name_the_init_process_and_the_bundle() {
        let expected = StateFile { init: TaskId { pid: 42, start_ticks: 7 }, bundle: Some("/b".into()) };
        let state =
            br#"{"id":"c1","init_process_pid":42,"init_process_start":7,"config":{"labels":["x=y","bundle=/b"]}}"#;
        assert_eq!(runc(state), Some(expected.clone()));
        assert_eq!(runc(br#"{"init_process_pid":42,"init_process_start":7}"#), None);
        let status = br#"{"pid":42,"process-start-time":7,"cgroup-path":"/x","bundle":"/b","created":"now"}"#;
        assert_eq!(crun(status), Some(expected));
        assert_eq!(crun(br#"{"pid":-1,"process-start-time":7}"#), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            for (_, read) in FORMATS {
                read(&bytes);
            }
        }
    }
}
