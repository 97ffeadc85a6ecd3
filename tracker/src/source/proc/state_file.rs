//! What an OCI runtime keeps about one container in its root directory: `<root>/<id>/state.json` of runc (and of
//! others that are built on its library), `<root>/<id>/status` of crun.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::container::{Str, TaskId};

/// More is not read. runc repeats most of `config.json` in its file.
pub(crate) const MAX_LEN: u64 = 16 << 20;

/// The names of the files, with their parsers.
pub(crate) const FORMATS: [(&str, Parse); 2] = [("state.json", runc), ("status", crun)];

/// A parser of one of the files.
pub(crate) type Parse = fn(&[u8]) -> Option<StateFile>;

/// What is read of such a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StateFile {
    /// The container's init process.
    pub(crate) task: TaskId,
    /// The OCI bundle's directory.
    pub(crate) bundle: PathBuf,
    /// The runtime that wrote it.
    pub(crate) oci: Str,
}

/// Reads runc's file: libcontainer's `State`.
fn runc(json: &[u8]) -> Option<StateFile> {
    #[derive(Deserialize)]
    struct State {
        init_process_pid: u32,
        init_process_start: u64,
        config: Config,
        /// runc does not name itself; who writes its form without being runc does.
        runtime: Option<String>,
    }
    #[derive(Deserialize)]
    struct Config {
        labels: Vec<String>,
    }
    let state: State = serde_json::from_slice(json).ok()?;
    let bundle = state.config.labels.iter().find_map(|label| label.strip_prefix("bundle="))?;
    state_file(state.init_process_pid, state.init_process_start, bundle, state.runtime.as_deref().unwrap_or("runc"))
}

/// Reads crun's file.
fn crun(json: &[u8]) -> Option<StateFile> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Status {
        pid: u32,
        process_start_time: u64,
        bundle: String,
    }
    let status: Status = serde_json::from_slice(json).ok()?;
    state_file(status.pid, status.process_start_time, &status.bundle, "crun")
}

fn state_file(pid: u32, start_ticks: u64, bundle: &str, oci: &str) -> Option<StateFile> {
    let bundle = Path::new(bundle);
    (pid != 0 && bundle.is_absolute() && oci.len() <= 64).then(|| StateFile {
        task: TaskId { pid, start_ticks },
        bundle: bundle.components().collect(),
        oci: oci.into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_runtimes_name_the_init_process_and_the_bundle() {
        let expected = |oci: &str| {
            Some(StateFile { task: TaskId { pid: 7, start_ticks: 42 }, bundle: "/b/web".into(), oci: oci.into() })
        };
        let of_runc = br#"{"id":"web","init_process_pid":7,"init_process_start":42,"created":"-",
            "config":{"no_pivot_root":false,"labels":["a=b","bundle=/b/web/"]},"rootless":false}"#;
        assert_eq!(runc(of_runc), expected("runc"));
        let of_crun = br#"{"pid":7,"process-start-time":42,"cgroup-path":"/x","bundle":"/b/web","owner":"root"}"#;
        assert_eq!(crun(of_crun), expected("crun"));
        assert_eq!(runc(of_crun), None);
        assert_eq!(crun(of_runc), None);
    }

    #[test]
    fn what_proves_nothing_is_refused() {
        for text in [
            r#"{"pid":0,"process-start-time":42,"bundle":"/b"}"#,
            r#"{"pid":7,"process-start-time":42,"bundle":"b"}"#,
            r#"{"pid":7,"bundle":"/b"}"#,
            r#"{"pid":-7,"process-start-time":42,"bundle":"/b"}"#,
            "",
        ] {
            assert_eq!(crun(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(json: Vec<u8>) {
            runc(&json);
            crun(&json);
        }
    }
}
