//! The process above a container: a shim of containerd, a conmon, or an OCI runtime in the foreground. Its command
//! line tells where the OCI runtime keeps its state, and conmon's tells the container's name.
//!
//! Pure: command lines in, hints out. A hint is only a place to look at, never an answer.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::container::Str;

/// What a command line tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// `containerd-shim-runc-v2 -namespace N -id ID …`, in the bundle of its first container.
    Shim {
        /// The containerd namespace.
        namespace: String,
    },
    /// `conmon -c ID -n NAME … --runtime-arg --root --runtime-arg DIR`.
    Conmon {
        /// The container's id.
        id: String,
        /// Its human name.
        name: Option<Str>,
        /// The OCI runtime's root directory.
        root: Option<PathBuf>,
    },
    /// Something that takes `--root DIR`, as OCI runtimes do.
    Runtime {
        /// Its root directory.
        root: PathBuf,
    },
}

/// Reads a command line; absent when it tells nothing.
pub(crate) fn read(arguments: &[OsString]) -> Option<Owner> {
    // What is not Unicode is no name of anything here, and no other argument's place depends on it.
    let arguments: Vec<&str> = arguments.iter().map(|argument| argument.to_str().unwrap_or("\u{fffd}")).collect();
    let (program, arguments) = arguments.split_first()?;
    let program = Path::new(program).file_name()?.to_str()?;
    if program.starts_with("containerd-shim") {
        return Some(Owner::Shim { namespace: option(arguments, &["-namespace", "--namespace"])?.to_owned() });
    }
    if program == "conmon" {
        let runtime_arguments: Vec<&str> = values(arguments, &["--runtime-arg"]).collect();
        return Some(Owner::Conmon {
            id: option(arguments, &["-c", "--cid"])?.to_owned(),
            name: option(arguments, &["-n", "--name"]).filter(|name| name.len() <= 256).map(Str::from),
            root: root(&runtime_arguments),
        });
    }
    root(arguments).map(|root| Owner::Runtime { root })
}

fn root(arguments: &[&str]) -> Option<PathBuf> {
    option(arguments, &["--root", "-root"]).map(PathBuf::from).filter(|root| root.is_absolute())
}

fn option<'a>(arguments: &[&'a str], names: &[&str]) -> Option<&'a str> {
    values(arguments, names).next()
}

/// The values of an option, written as `--name value` or `--name=value`.
fn values<'a>(arguments: &[&'a str], names: &[&str]) -> impl Iterator<Item = &'a str> {
    let next = arguments.iter().skip(1).map(Some).chain([None]);
    arguments.iter().zip(next).filter_map(move |(argument, next)| {
        if names.contains(argument) {
            return next.copied();
        }
        let (name, value) = argument.split_once('=')?;
        names.contains(&name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(command_line: &str, expected: Option<Owner>) {
        let arguments: Vec<OsString> = command_line.split(' ').map(OsString::from).collect();
        assert_eq!(read(&arguments), expected, "{command_line}");
    }

    #[test]
    fn each_owner_tells_what_it_knows() {
        check(
            "/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id 5a -address /run/containerd/containerd.sock",
            Some(Owner::Shim { namespace: "k8s.io".into() }),
        );
        check(
            "/usr/bin/conmon --api-version 1 -c 5b -u 5b -r /usr/bin/crun -b /b -p /p -n web --exit-command /usr/bin/podman",
            Some(Owner::Conmon { id: "5b".into(), name: Some("web".into()), root: None }),
        );
        check(
            "conmon -c 5b --runtime-arg --root=/run/crun -n web",
            Some(Owner::Conmon { id: "5b".into(), name: Some("web".into()), root: Some("/run/crun".into()) }),
        );
        check(
            "conmon -c 5b --runtime-arg --root --runtime-arg /run/crun",
            Some(Owner::Conmon { id: "5b".into(), name: None, root: Some("/run/crun".into()) }),
        );
        check("runc --root /tmp/state run web", Some(Owner::Runtime { root: "/tmp/state".into() }));
    }

    #[test]
    fn other_command_lines_tell_nothing() {
        for command_line in
            ["", "bash", "/", "containerd-shim-runc-v2 -namespace", "conmon -n web", "x --root relative"]
        {
            check(command_line, None);
        }
    }
}
