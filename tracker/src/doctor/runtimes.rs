//! Which runtimes are here, and whether a tracker runs.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
#[cfg(any(feature = "containerd", feature = "docker"))]
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, socket};

use super::{Check, Verdict};
use crate::barrier::{self, KNOWN_RUNTIMES};
use crate::config::Config;
use crate::source::find::{self, Finding};

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let mut checks = oci_runtimes(&config.barrier);
    checks.extend(containerd(config));
    checks.extend(cri(config));
    #[cfg(feature = "docker")]
    checks.extend(docker(config));
    let found = found(config, &checks);
    checks.extend(found);
    checks
}

/// Sockets that no configuration names: those that are not `told` yet.
fn found(config: &Config, told: &[Check]) -> Vec<Check> {
    let is_told = |finding: &Finding| told.iter().any(|check| check.subject.ends_with(&format!(" {}", finding.path)));
    let findings = find::look_once(&config.find).into_iter().filter(|finding| !is_told(finding));
    let check = |finding| {
        let Finding { api, path, how, verdict } = finding;
        let subject = format!("{} {path}", api.source());
        match verdict {
            Ok(()) => Check::ok(subject, format!("is there (found by {how})")),
            Err(why) => Check::lacking(
                Verdict::Warn,
                subject,
                format!("{why} (found by {how})"),
                "what only it knows of its containers; the kernel shows them all the same",
                "see who listens there: it is not asked",
            ),
        }
    };
    findings.map(check).collect()
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
    // Where `/usr` is merged, and elsewhere by links, one file has several names.
    let mut files: HashSet<PathBuf> = config.runtimes.iter().filter_map(|path| path.canonicalize().ok()).collect();
    let known = known.filter(|path| path.canonicalize().is_ok_and(|file| files.insert(file)));
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
    let metadata = fs::metadata(path).ok().filter(|metadata| metadata.is_file())?;
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
    let found: Vec<Check> = sockets.filter_map(|path| listens("containerd", path, NO_CONTAINERD)).collect();
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

/// Where Docker is not used nothing is said of it: most hosts have either Docker or something else.
#[cfg(feature = "docker")]
fn docker(config: &Config) -> Vec<Check> {
    let config = &config.docker;
    let costs = "names, images and labels of Docker's containers are not known: dockerd alone has them";
    let found = |path: &PathBuf| listens("docker", path, costs);
    let sockets = config.sockets.iter().chain(&config.sockets_if_present);
    let mut checks: Vec<Check> = sockets.filter_map(found).collect();
    if !config.enabled && !checks.is_empty() {
        let remedy = "set `docker.enabled` in the configuration";
        return vec![Check::lacking(Verdict::Warn, "docker", "switched off", costs, remedy)];
    }
    let absent = config.sockets.iter().filter(|path| fs::symlink_metadata(path).is_err());
    checks.extend(absent.map(|path| {
        let remedy = "start dockerd, or correct `docker.sockets` in the configuration";
        Check::lacking(Verdict::Warn, format!("docker {}", path.display()), "no such socket", costs, remedy)
    }));
    checks
}

/// A daemon at a socket, if there is one.
#[cfg(any(feature = "containerd", feature = "docker"))]
fn listens(daemon: &str, path: &Path, costs: &'static str) -> Option<Check> {
    let metadata = fs::symlink_metadata(path).ok()?;
    let subject = format!("{daemon} {}", path.display());
    if !metadata.file_type().is_socket() || metadata.uid() != 0 {
        let found = format!("not a socket of root's (uid {})", metadata.uid());
        return Some(Check::lacking(Verdict::Warn, subject, found, costs, "see who made it: it is not asked"));
    }
    Some(match connect(path) {
        Ok(_) => Check::ok(subject, "accepts connections"),
        Err(error) => {
            let found = format!("connect: {error}");
            let remedy = "start the daemon; the tracker connects when it is there";
            Check::lacking(Verdict::Warn, subject, found, costs, remedy)
        }
    })
}

#[cfg(not(feature = "cri"))]
fn cri(_: &Config) -> Vec<Check> {
    let found = "this tracker was built without the CRI source";
    vec![Check::lacking(Verdict::Warn, "CRI", found, NO_CRI, "build it with the feature `cri`")]
}

const NO_CRI: &str = "addresses, tries and ports of pods are not known";

/// Asks each socket that is there; that there is none, or no CRI on it, is no lack where there are no pods.
#[cfg(feature = "cri")]
fn cri(config: &Config) -> Vec<Check> {
    use crate::source::cri::probe;

    if !config.cri.enabled {
        let remedy = "set `cri.enabled` in the configuration";
        return vec![Check::lacking(Verdict::Warn, "CRI", "switched off", NO_CRI, remedy)];
    }
    #[cfg(feature = "containerd")]
    let containerds = if config.containerd.enabled { config.containerd.endpoints() } else { Vec::new() };
    #[cfg(not(feature = "containerd"))]
    let containerds = Vec::new();
    let endpoints = config.cri.endpoints(&containerds);
    let there = endpoints.into_iter().filter(|endpoint| endpoint.is_expected || endpoint.path.exists());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = there.map(|endpoint| {
        let path = endpoint.path;
        let answer = match &runtime {
            Ok(runtime) => runtime.block_on(probe(&path, PATIENCE)),
            Err(error) => Err(error.to_string()),
        };
        let subject = format!("CRI {}", path.display());
        match answer {
            Ok(Some(server)) => Check::ok(subject, format!("answers: {server}")),
            Ok(None) => Check::ok(subject, "is not spoken there, so there are no pods of a kubelet's"),
            Err(error) => {
                let remedy = "start it, or see what keeps it; the tracker connects when it answers";
                Check::lacking(Verdict::Warn, subject, error, NO_CRI, remedy)
            }
        }
    });
    asked.collect()
}

/// Whether a tracker runs: that none does is a line for people, not a lack.
pub(super) fn tracker(socket: &Path) -> Check {
    let subject = "tracker";
    let silent = |found: String| {
        Check::lacking(
            Verdict::Warn,
            subject,
            format!("{} is listened at, but {found}", socket.display()),
            "nobody can ask it, and each start is held for the whole of its budget, or not at all",
            "see whether it is stopped (`T` in `ps -o stat`) or starved of processor time; else restart it",
        )
    };
    match connect(socket).map(is_alive) {
        Ok(Ok(true)) => Check::ok(subject, format!("runs, and answers at {}", socket.display())),
        Ok(Ok(false)) => silent("what answers there is no tracker that is well".to_owned()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
            silent(format!("nobody answered within {} s", PATIENCE.as_secs()))
        }
        Ok(Err(error)) => silent(format!("nobody answered: {error}")),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            silent("nobody takes the connections that wait".to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Check::ok(subject, format!("{} is not for this user", socket.display()))
        }
        Err(_) => Check::ok(subject, format!("none listens at {}", socket.display())),
    }
}

/// How long one that is well may take to say so.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks `/livez`: a process that is stopped still accepts connections, for it is the kernel that does.
fn is_alive(mut stream: UnixStream) -> io::Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: tracker\r\nConnection: close\r\n\r\n")?;
    let expected = b"HTTP/1.1 200 ";
    let mut answer = [0; 13];
    stream.read_exact(&mut answer)?;
    Ok(answer == *expected)
}

/// Connects without waiting: a listener that is stopped has a queue, and that may be full.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_runtime_may_be_a_link_and_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("runtime"), directory.path().join("link"));
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let config = barrier::Config { runtimes: vec![link.clone()], known_paths: false, ..Default::default() };
        let [check] = &oci_runtimes(&config)[..] else { panic!("one check") };
        assert!(check.subject.ends_with("link") && check.found != "no such file", "{check:?}");

        let config = barrier::Config { runtimes: vec![directory.path().join("none")], ..config };
        assert_eq!(oci_runtimes(&config)[0].found, "no such file");
    }

    #[test]
    fn only_what_answers_well_runs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert!(tracker(&path).found.starts_with("none listens at"));
        let listener = UnixListener::bind(&path).unwrap();
        for (answer, verdict) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Verdict::Ok),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", Verdict::Warn),
            ("220 mail.example ESMTP\r\n", Verdict::Warn),
            ("", Verdict::Warn),
        ] {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = listener.accept().unwrap();
                    // The whole request first: closing on bytes that were not read would be a reset.
                    let _ = stream.read(&mut [0; 1024]).unwrap();
                    stream.write_all(answer.as_bytes()).unwrap();
                });
                let check = tracker(&path);
                assert_eq!(check.verdict, verdict, "{answer:?}: {}", check.found);
            });
        }
        // Nobody accepts: the kernel takes some, and then no more.
        let waiting: Vec<_> = std::iter::from_fn(|| connect(&path).ok()).take(10_000).collect();
        assert!(waiting.len() < 10_000);
        assert!(tracker(&path).found.ends_with("nobody takes the connections that wait"));
    }
}
