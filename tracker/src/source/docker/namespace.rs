//! In which containerd namespace a dockerd keeps its containers: part of their keys.
//!
//! It is `moby`, unless a second dockerd was told otherwise (`--containerd-namespace`). Daemons from version 27 on say so
//! themselves; of older ones the command line does. What says so in a file of the daemon's alone has to be configured.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use super::client::Client;
use crate::container::{ContainerId, Str};
use crate::source::task::Task;

/// Bytes of a daemon's command line that are read.
const MAX_LINE_LEN: u64 = 64 << 10;

/// Docker's own name for it.
pub(super) const USUAL: &str = "moby";

/// Finds it out.
pub(super) async fn find(client: &Client) -> Str {
    // One that does not answer this is asked for more soon.
    if let Ok(Some(told)) = client.containerd_namespace().await {
        return told;
    }
    let listener = client.listener().await;
    let line = listener.and_then(|pid| Task::open(pid).ok()?.arguments(MAX_LINE_LEN).ok());
    line.as_deref().and_then(in_command_line).unwrap_or_else(|| USUAL.into())
}

/// The value of the option in a dockerd's command line.
fn in_command_line(line: &[OsString]) -> Option<Str> {
    const OPTION: &[u8] = b"--containerd-namespace";
    let mut words = line.iter().map(|word| word.as_bytes());
    let is_dockerd = words.next().is_some_and(|program| program.ends_with(b"dockerd"));
    let mut found = None;
    // As Go's flags have it: the last one counts.
    while let Some(word) = words.next() {
        match word.strip_prefix(OPTION) {
            Some([]) => found = words.next(),
            Some([b'=', value @ ..]) => found = Some(value),
            _ => {}
        }
    }
    let namespace = std::str::from_utf8(found.filter(|_| is_dockerd)?).ok()?;
    ContainerId::new(namespace).is_ok().then(|| namespace.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_read_as_dockerd_reads_it() {
        for (line, expected) in [
            ("/usr/sbin/dockerd -H fd://", None),
            ("/usr/sbin/dockerd --containerd-namespace other", Some("other")),
            ("dockerd --containerd-namespace=a --containerd-namespace=b", Some("b")),
            ("dockerd --containerd-namespace=../x", None),
            ("dockerd --containerd-namespace", None),
            ("systemd --containerd-namespace=a", None),
            ("", None),
        ] {
            let line: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(in_command_line(&line).as_deref(), expected, "{line:?}");
        }
    }
}
