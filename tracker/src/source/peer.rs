//! Who listens on a socket.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tokio::net::UnixStream;

/// Which file a path led to.
pub(crate) type FileId = (u64, u64);

/// The socket file's device and inode; `None` when there is none.
pub(crate) fn file_id(path: &Path) -> Option<FileId> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Whether the listener may speak for the host. The kernel recorded who called `listen`: what the socket file looks like
/// does not matter, nor does it matter who replaces it between a look and the connect.
pub(crate) fn check_peer(stream: &UnixStream) -> Result<(), String> {
    let peer = stream.peer_cred().map_err(|error| format!("ask who listens: {error}"))?;
    // Who runs the tracker as another user than root, to try it out, may use that user's daemons.
    let ours = nix::unistd::geteuid().as_raw();
    if peer.uid() != 0 && peer.uid() != ours {
        return Err(format!("its listener runs as uid {}, only root may speak for the host", peer.uid()));
    }
    let pid_ns = |process: String| std::fs::metadata(format!("/proc/{process}/ns/pid")).ok().map(|ns| ns.ino());
    let listener = peer.pid().and_then(|pid| pid_ns(pid.to_string()));
    if listener.is_some() && listener != pid_ns("self".into()) {
        return Err("its listener lives in another pid namespace: its pids are not the host's".into());
    }
    Ok(())
}
