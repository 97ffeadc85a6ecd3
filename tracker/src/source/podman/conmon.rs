//! conmon's command line: the one place that tells a running container's name when podman itself does not run.
//!
//! Podman starts one conmon for each container and leaves. What is in its command line is whatever its starter wrote
//! there: text in, hints out, and whose word it is decides the one who calls. Pure.
//!
//! ```text
//! conmon --api-version 1 -c ID -u ID -r /usr/bin/crun -b BUNDLE -p PIDFILE -n NAME --exit-dir DIR
//!        --runtime-arg --log --runtime-arg=FILE … --exit-command /usr/bin/podman --exit-command-arg ARG …
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::container::{ContainerId, Str};
use crate::enrich::caps;

/// A command line of conmon's has two or three thousand bytes.
pub(super) const MAX_LEN: u64 = 64 << 10;

/// Options without a value, of conmon 2.0 and 2.1. All others have one.
const SWITCHES: [&str; 18] = [
    "-e",
    "--exec",
    "--exec-attach",
    "--full-attach",
    "-i",
    "--stdin",
    "--leave-stdin-open",
    "--no-container-partial-message",
    "--no-new-keyring",
    "--no-pivot",
    "--no-sync-log",
    "--replace-listen-pid",
    "-s",
    "--systemd-cgroup",
    "--sync",
    "--syslog",
    "-t",
    "--terminal",
];

/// What conmon was told about its container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conmon {
    /// The container's id.
    pub(super) id: ContainerId,
    /// Its human name.
    pub(super) name: Option<Str>,
    /// The OCI runtime's program.
    pub(super) runtime: PathBuf,
    /// The OCI runtime's root directory, where it was told one.
    pub(super) root: Option<PathBuf>,
    /// The OCI bundle's directory.
    pub(super) bundle: PathBuf,
    /// Whether podman is to be called when the container ends. CRI-O's conmon calls nobody, or CRI-O.
    pub(super) calls_podman: bool,
}

impl Conmon {
    /// The OCI runtime's name.
    pub(super) fn oci(&self) -> Option<&str> {
        self.runtime.file_name()?.to_str().filter(|name| name.len() <= 64)
    }

    /// Podman's directory of containers, which the bundle lies in: `<store>/<driver>-containers/<id>/userdata`.
    pub(super) fn containers_dir(&self) -> Option<&Path> {
        let container = self.bundle.parent().filter(|_| self.bundle.ends_with("userdata"))?;
        if container.file_name()? != self.id.as_str() {
            return None;
        }
        let containers = container.parent()?;
        containers.file_name()?.to_str()?.ends_with("-containers").then_some(containers)
    }
}

/// Reads the command line of a process called conmon; absent when it is none of a container, such as that of a process
/// executed in one.
pub(super) fn read(arguments: &[OsString]) -> Option<Conmon> {
    let mut arguments = arguments.iter().skip(1).map(|argument| argument.to_str().unwrap_or("\u{fffd}"));
    let (mut id, mut name, mut runtime, mut bundle) = (None, None, None, None);
    let (mut calls_podman, mut runtime_arguments) = (false, vec![]);
    while let Some(argument) = arguments.next() {
        if SWITCHES.contains(&argument) {
            if matches!(argument, "-e" | "--exec") {
                return None;
            }
            continue;
        }
        let (option, value) = match argument.split_once('=').filter(|_| argument.starts_with("--")) {
            Some(both) => both,
            None => (argument, arguments.next()?),
        };
        match option {
            "-c" | "--cid" => id = Some(value),
            "-n" | "--name" => name = Some(value),
            "-r" | "--runtime" => runtime = Some(value),
            "-b" | "--bundle" => bundle = Some(value),
            "--runtime-arg" => runtime_arguments.push(value),
            "--exit-command" => calls_podman = Path::new(value).file_name().is_some_and(|name| name == "podman"),
            _ => {}
        }
    }
    let absolute = |path: &str| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    Some(Conmon {
        id: ContainerId::new(id?).ok()?,
        name: name.and_then(caps::name),
        runtime: absolute(runtime?)?,
        root: root(&runtime_arguments).and_then(absolute),
        bundle: absolute(bundle?)?.components().collect(),
        calls_podman,
    })
}

/// The root directory among the arguments that every call of the runtime gets.
fn root<'a>(arguments: &[&'a str]) -> Option<&'a str> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.split_once('=') {
            Some(("--root" | "-root", value)) => return Some(value),
            None if matches!(*argument, "--root" | "-root") => return arguments.next().copied(),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "2a6a1fb60bca";

    fn parse(line: &str) -> Option<Conmon> {
        read(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn podmans_own_line_tells_all_there_is() {
        let line = format!(
            "/usr/bin/conmon --api-version 1 -c {ID} -u {ID} -r /usr/bin/crun -b /s/overlay-containers/{ID}/userdata -p /p \
             -n web --exit-dir /run/libpod/exits --full-attach -l k8s-file:/s/ctr.log --log-level warning --runtime-arg \
             --log-format=json --runtime-arg --log --runtime-arg=/r/oci-log --exit-command /usr/bin/podman \
             --exit-command-arg --root --exit-command-arg /s --exit-command-arg cleanup"
        );
        let conmon = parse(&line).unwrap();
        assert_eq!((conmon.id.as_str(), conmon.name.as_deref(), conmon.oci()), (ID, Some("web"), Some("crun")));
        assert_eq!(conmon.containers_dir(), Some(Path::new("/s/overlay-containers")));
        assert_eq!((conmon.root, conmon.calls_podman), (None, true));
    }

    #[test]
    fn the_runtimes_root_is_read_in_every_spelling() {
        for arguments in
            ["--runtime-arg --root --runtime-arg /x", "--runtime-arg=--root=/x", "--runtime-arg --root=/x -t"]
        {
            let conmon = parse(&format!("conmon -c {ID} -r /crun -b /b {arguments}")).unwrap();
            assert_eq!(conmon.root.as_deref(), Some(Path::new("/x")), "{arguments}");
        }
    }

    #[test]
    fn a_value_is_never_taken_for_an_option() {
        let conmon = parse(&format!("conmon -n -c -c {ID} -r /crun -b /b --exit-command-arg -n")).unwrap();
        assert_eq!((conmon.id.as_str(), conmon.name.as_deref()), (ID, Some("-c")));
    }

    #[test]
    fn what_is_no_container_of_podmans_tells_nothing() {
        for line in [
            "conmon",
            "conmon -c",
            "conmon -c x/y -r /crun -b /b",
            "conmon -c x -r crun -b /b",
            "conmon -c x -r /crun -b b",
            "conmon -c x -r /crun -b /b -e --exec-process-spec /s",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
        for bundle in ["/b", "/s/overlay-containers/other/userdata", "/s/containers/x/userdata", "/userdata"] {
            let conmon = parse(&format!("conmon -c x -r /crun -b {bundle}")).unwrap();
            assert_eq!(conmon.containers_dir(), None, "{bundle}");
        }
    }

    proptest! {
        #[test]
        fn any_command_line_is_survived(words in prop::collection::vec("-{0,2}[a-z=/.-]{0,9}", 0..20)) {
            let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
            if let Some(conmon) = read(&words) {
                conmon.containers_dir();
            }
        }
    }
}
