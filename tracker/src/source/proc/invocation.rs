//! A container by the command line of the OCI runtime above it: `anything run --bundle B ID`, in the foreground.
//!
//! For runtimes whose state nobody here can read, or finds. What a command line says is believed of the host's root alone, and
//! of a program that only root could have written; and it has to name a bundle that can be read. It is the last word that is
//! asked for: a state directory names the process, and a command line does not.

use std::path::{Component, Path, PathBuf};

use super::state_file::StateFile;
use crate::barrier::argv::{Command, Dialect, Invocation, Verb, parse};
use crate::container::{ContainerId, Namespaces, TaskId};
use crate::enrich::oci::{NamespaceKind, OciFacts};
use crate::source::task::{Task, TaskView};

/// A command line of an OCI runtime is a few hundred bytes.
const MAX_ARGUMENTS_LEN: u64 = 64 << 10;

/// What it says.
#[derive(Debug)]
pub(super) struct Invoked {
    /// The runtime's root directory: as it says, else where one of its name usually has it.
    pub(super) root: PathBuf,
    pub(super) id: ContainerId,
    /// As a state directory would have it.
    pub(super) file: StateFile,
}

/// What the process above `init` was told, where that is an OCI runtime of the host's root.
pub(super) fn above(init: &TaskView, host: Namespaces) -> Option<Invoked> {
    let parent = init.parent?;
    let task = Task::open(parent.pid).ok()?;
    let namespaces = task.namespaces();
    let is_hosts = namespaces.mnt == host.mnt && namespaces.user == host.user && namespaces.pid == host.pid;
    if !is_hosts || task.uid().ok()? != 0 || !task.program_is_roots() {
        return None;
    }
    let (program, cwd) = (task.exe().ok()?, task.cwd().ok()?);
    let arguments = task.arguments(MAX_ARGUMENTS_LEN).ok()?;
    let command = parse(Dialect::of(&program), &arguments).ok()?;
    // All of that is about this process only if it is still the same one.
    task.is(parent).then(|| read(command, &program, &cwd, init.task)).flatten()
}

fn read(command: Command, program: &Path, cwd: &Path, task: TaskId) -> Option<Invoked> {
    let Command::Container(Invocation { verb: Verb::Run | Verb::Restore, id, root, bundle, config: None, .. }) =
        command
    else {
        return None;
    };
    let name = program.file_name()?.to_str()?;
    let known = ["runc", "crun", "krun"].iter().any(|known| name.starts_with(known));
    let usual = if known { Dialect::of(program).default_root().to_owned() } else { Path::new("/run").join(name) };
    // Runtimes change into the bundle, so that where they were started shows only where that is named from there.
    let (bundle, started_in) = match bundle {
        None => (cwd.to_owned(), Some(cwd)),
        Some(bundle) if bundle.is_absolute() => (bundle.clone(), Some(cwd).filter(|cwd| **cwd != bundle)),
        Some(bundle) => match before(cwd, &bundle) {
            Some(started_in) => (cwd.to_owned(), Some(started_in)),
            None => (cwd.join(bundle), Some(cwd)),
        },
    };
    let root = match root {
        Some(root) if root.is_absolute() => root,
        Some(root) => started_in?.join(root),
        None => usual,
    };
    Some(Invoked { root, id, file: StateFile { task, bundle, oci: name.into() } })
}

/// Where a process was that has changed into `relative` and is in `cwd` now.
fn before<'a>(cwd: &'a Path, relative: &Path) -> Option<&'a Path> {
    let steps: Vec<Component<'_>> = relative.components().filter(|step| *step != Component::CurDir).collect();
    let mut left = cwd;
    for step in steps.into_iter().rev() {
        let Component::Normal(name) = step else { return None };
        left = left.parent().filter(|_| left.file_name() == Some(name))?;
    }
    Some(left).filter(|left| *left != cwd)
}

/// Whether a process can be the init of a container with this bundle: others, such as hooks, have the same process above them.
pub(super) fn can_be_init(bundle: &OciFacts, init: Namespaces, host: Namespaces) -> bool {
    let Some(namespaces) = &bundle.namespaces else { return false };
    namespaces.iter().filter(|namespace| namespace.path.is_none()).all(|namespace| match namespace.kind {
        NamespaceKind::Mount => init.mnt != host.mnt,
        NamespaceKind::Pid => init.pid != host.pid,
        NamespaceKind::Network => init.net != host.net,
        NamespaceKind::User => init.user != host.user,
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(program: &str, line: &str, expected: Option<(&str, &str, &str)>) {
        let line: Vec<_> = line.split(' ').map(Into::into).collect();
        let task = TaskId { pid: 7, start_ticks: 70 };
        let command = parse(Dialect::of(Path::new(program)), &line).ok();
        let invoked = command.and_then(|command| read(command, Path::new(program), Path::new("/cwd"), task));
        let said =
            invoked.as_ref().map(|it| (it.id.as_str(), it.root.to_str().unwrap(), it.file.bundle.to_str().unwrap()));
        assert_eq!(said, expected, "{line:?}");
    }

    #[test]
    fn command_lines_name_container_root_and_bundle() {
        check("/opt/myrt", "myrt run -b /b web", Some(("web", "/run/myrt", "/b")));
        check("/opt/myrt", "myrt --root state run --bundle b web", Some(("web", "/cwd/state", "/cwd/b")));
        check("/opt/myrt", "myrt --root state run --bundle ./cwd web", Some(("web", "/state", "/cwd")));
        check("/opt/myrt", "myrt --root state run --bundle ../cwd web", Some(("web", "/cwd/state", "/cwd/../cwd")));
        check("/opt/myrt", "myrt --root state run --bundle /cwd web", None);
        check("/usr/bin/runc", "runc run web", Some(("web", "/run/runc", "/cwd")));
        check("/usr/bin/crun", "crun --root=/r run -b /b web", Some(("web", "/r", "/b")));
        for line in ["myrt create -b /b web", "myrt start web", "myrt run", "myrt run a/b", "bash -c true", "myrt"] {
            check("/opt/myrt", line, None);
        }
        // Its bundle would not tell what it runs.
        check("/usr/bin/crun", "crun run --config /c -b /b web", None);
    }

    #[test]
    fn where_a_process_was_shows_by_where_it_went() {
        for (cwd, relative, expected) in [
            ("/a/b", "b", Some("/a")),
            ("/a/b/c", "./b/c/", Some("/a")),
            ("/a/b", "c", None),
            ("/a/b", ".", None),
            ("/a/b", "../b", None),
            ("/b", "a/b", None),
            ("/", "b", None),
        ] {
            assert_eq!(before(Path::new(cwd), Path::new(relative)), expected.map(Path::new), "{cwd} {relative}");
        }
    }

    #[test]
    fn a_hook_is_not_the_container() {
        let host = Namespaces { mnt: 1, net: 2, pid: 3, cgroup: 4, user: 5 };
        let parse = |namespaces: &str| {
            crate::enrich::oci::parse(format!(r#"{{"linux": {{"namespaces": [{namespaces}]}}}}"#).as_bytes()).unwrap()
        };
        let usual = parse(r#"{"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "/n"}"#);
        let init = Namespaces { mnt: 9, pid: 8, ..host };
        assert!(can_be_init(&usual, init, host));
        assert!(!can_be_init(&usual, Namespaces { pid: host.pid, ..init }, host));
        assert!(!can_be_init(&parse(r#"{"type": "mount"}, {"type": "user"}"#), init, host));
        assert!(!can_be_init(&crate::enrich::oci::parse(b"{}").unwrap(), init, host));
    }
}
