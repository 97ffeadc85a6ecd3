//! Which runtimes are here, and whether a tracker runs.

use std::fs;
use std::io;
#[cfg(feature = "containerd")]
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Check, Verdict};
use crate::config::Config;

/// Where distributions and runtimes' own packages put OCI runtimes.
const DIRECTORIES: [&str; 5] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/usr/libexec"];
const OCI_RUNTIMES: [&str; 4] = ["runc", "crun", "youki", "nvidia-container-runtime"];

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let mut checks = oci_runtimes();
    checks.extend(containerd(config));
    checks
}

fn oci_runtimes() -> Vec<Check> {
    let candidates = OCI_RUNTIMES.iter().flat_map(|name| DIRECTORIES.map(|directory| Path::new(directory).join(name)));
    let found: Vec<Check> = candidates.filter_map(|path| oci_runtime(&path)).collect();
    if !found.is_empty() {
        return found;
    }
    vec![Check::lacking(
        Verdict::Warn,
        "OCI runtime",
        format!("no {} in {}", OCI_RUNTIMES.join(", "), DIRECTORIES.join(", ")),
        "starts by a runtime that is elsewhere are held only after the first one was seen",
        "name its binary in the configuration",
    )]
}

fn oci_runtime(path: &Path) -> Option<Check> {
    // In merged-/usr systems one file has several names: a link is not another runtime.
    let metadata = fs::symlink_metadata(path).ok().filter(|metadata| metadata.is_file())?;
    let subject = format!("OCI runtime {}", path.display());
    if metadata.uid() == 0 && metadata.permissions().mode() & 0o022 == 0 {
        return Some(Check::ok(subject, "owned by root, writable by root alone"));
    }
    Some(Check::lacking(
        Verdict::Warn,
        subject,
        format!("owned by uid {}, mode {:o}", metadata.uid(), metadata.permissions().mode() & 0o7777),
        "it is not marked: containers that it starts are not held",
        "chown root and chmod go-w",
    ))
}

const NO_CONTAINERD: &str = "image names and labels that are in no bundle are not known; all else is";

#[cfg(not(feature = "containerd"))]
fn containerd(_: &Config) -> Vec<Check> {
    let found = "this tracker was built without the containerd source";
    vec![Check::lacking(Verdict::Warn, "containerd", found, NO_CONTAINERD, "build it with the feature `containerd`")]
}

#[cfg(feature = "containerd")]
fn containerd(config: &Config) -> Vec<Check> {
    let config = &config.containerd;
    if !config.enabled {
        let remedy = "set `containerd.enabled` in the configuration";
        return vec![Check::lacking(Verdict::Warn, "containerd", "switched off", NO_CONTAINERD, remedy)];
    }
    let sockets = config.sockets.iter().chain(&config.sockets_if_present);
    let found: Vec<Check> = sockets.filter_map(|path| containerd_at(path)).collect();
    if !found.is_empty() {
        return found;
    }
    let sockets: Vec<_> = config.sockets.iter().map(|path| path.display().to_string()).collect();
    vec![Check::lacking(
        Verdict::Warn,
        "containerd",
        format!("no socket at {}", sockets.join(", ")),
        NO_CONTAINERD,
        "nothing, where containerd is not used; else name its socket in the configuration",
    )]
}

#[cfg(feature = "containerd")]
fn containerd_at(path: &Path) -> Option<Check> {
    let metadata = fs::symlink_metadata(path).ok()?;
    let subject = format!("containerd {}", path.display());
    if !metadata.file_type().is_socket() || metadata.uid() != 0 {
        let found = format!("not a socket of root's (uid {})", metadata.uid());
        return Some(Check::lacking(Verdict::Warn, subject, found, NO_CONTAINERD, "see who made it: it is not asked"));
    }
    Some(match UnixStream::connect(path) {
        Ok(_) => Check::ok(subject, "accepts connections"),
        Err(error) => {
            let found = format!("connect: {error}");
            let remedy = "start containerd; the tracker connects when it is there";
            Check::lacking(Verdict::Warn, subject, found, NO_CONTAINERD, remedy)
        }
    })
}

/// Whether a tracker runs: a line for people, not a lack.
pub(super) fn tracker(socket: &Path) -> Check {
    let subject = "tracker";
    match UnixStream::connect(socket) {
        Ok(_) => Check::ok(subject, format!("runs and listens at {}", socket.display())),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Check::ok(subject, format!("{} is not for this user", socket.display()))
        }
        Err(_) => Check::ok(subject, format!("none listens at {}", socket.display())),
    }
}
