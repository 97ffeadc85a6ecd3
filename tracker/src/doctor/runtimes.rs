//! Which runtimes are here, and whether a tracker runs.

use std::fs;
use std::io;
#[cfg(feature = "containerd")]
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Check, Verdict};
use crate::barrier::{self, KNOWN_RUNTIMES};
use crate::config::Config;

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let mut checks = oci_runtimes(&config.barrier);
    checks.extend(containerd(config));
    checks
}

fn oci_runtimes(config: &barrier::Config) -> Vec<Check> {
    let costs = "starts are not held (grade first-exec at best)";
    if !config.enabled {
        let remedy = "set `barrier.enabled` in the configuration";
        return vec![Check::lacking(Verdict::Warn, "barrier", "switched off", costs, remedy)];
    }
    let configured = config.runtimes.iter().map(|path| {
        oci_runtime(path).unwrap_or_else(|| {
            let remedy = "correct `barrier.runtimes` in the configuration";
            Check::lacking(Verdict::Warn, format!("OCI runtime {}", path.display()), "no such file", costs, remedy)
        })
    });
    let known = KNOWN_RUNTIMES.iter().filter(|_| config.known_paths).map(Path::new);
    let found: Vec<Check> = configured.chain(known.filter_map(oci_runtime)).collect();
    if !found.is_empty() {
        return found;
    }
    vec![Check::lacking(
        Verdict::Warn,
        "OCI runtime",
        "neither runc nor crun nor their like at any of the usual paths",
        "the first start by a runtime that is elsewhere is not held; the next ones are, if it can be learnt",
        "name its binary in the configuration, as `barrier.runtimes`",
    )]
}

fn oci_runtime(path: &Path) -> Option<Check> {
    // In merged-/usr systems one file has several names: a link is not another runtime.
    let metadata = fs::symlink_metadata(path).ok().filter(|metadata| metadata.is_file())?;
    let subject = format!("OCI runtime {}", path.display());
    if metadata.uid() == 0 && metadata.permissions().mode() & 0o022 == 0 {
        return Some(Check::ok(subject, "is there"));
    }
    Some(Check::lacking(
        Verdict::Warn,
        subject,
        format!("owned by uid {}, mode {:o}", metadata.uid(), metadata.permissions().mode() & 0o7777),
        "nothing to the tracker; but whoever may write it runs as root at the next start",
        "chown root and chmod go-w, or find out who put it there",
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
