//! The demo runtime in a place of its own, and what goes wrong with it on purpose.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tempfile::TempDir;
use tracker::source::task::Task;

use crate::process::{copy_program, pid};
use crate::requirement::demo_runtime;

/// A place for containers of the demo runtime. What is in it when the test ends is killed and removed.
pub struct Place {
    temp: TempDir,
    program: PathBuf,
}

impl Place {
    /// A place with a private copy of the runtime: a barrier may mark it without holding anybody else's containers.
    pub fn new() -> Place {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let program = temp.path().join("tracker-demo-runtime");
        copy_program(&demo_runtime().expect("built"), &program).expect("a copy of the demo runtime");
        Place { temp, program }
    }

    /// The private copy.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its state directory.
    pub fn root(&self) -> PathBuf {
        self.path("state")
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Makes a bundle whose config was changed by `change`.
    pub fn bundle(&self, name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        let namespaces = ["mount", "pid", "network", "ipc", "uts"].map(|kind| json!({ "type": kind }));
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": { "user": { "uid": 0, "gid": 0 }, "args": ["init"], "cwd": "/" },
            "root": { "path": "/" },
            "hostname": name,
            "linux": { "namespaces": namespaces },
        });
        change(&mut config);
        let path = self.path(name);
        fs::create_dir_all(&path).expect("a bundle's directory");
        fs::write(path.join("config.json"), config.to_string()).expect("a bundle's config");
        path
    }

    /// Runs the runtime with a fault.
    pub fn run(&self, fault: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.env("TRACKER_DEMO_FAULT", fault).arg("--root").arg(self.root()).args(arguments);
        command.stdin(Stdio::null()).output().expect("the demo runtime can be started")
    }

    /// Runs the runtime, which must succeed, and returns what it printed.
    #[track_caller]
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run("", arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs the runtime with a fault, which must fail, and returns what it complained.
    #[track_caller]
    pub fn fail(&self, fault: &str, arguments: &[&str]) -> String {
        let output = self.run(fault, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).expect("text")
    }

    /// `create` with a pid file.
    pub fn create(&self, fault: &str, bundle: &Path, id: &str) -> Output {
        let (bundle, pid_file) = (bundle.to_str().expect("text"), self.pid_file(id));
        self.run(fault, &["create", "--bundle", bundle, "--pid-file", pid_file.to_str().expect("text"), id])
    }

    /// Where the pid file of a container is.
    pub fn pid_file(&self, id: &str) -> PathBuf {
        self.path(&format!("{id}.pid"))
    }

    /// The init of a new container, whose bundle was changed by `change`.
    #[track_caller]
    pub fn created(&self, id: &str, change: impl FnOnce(&mut Value)) -> u32 {
        let output = self.create("", &self.bundle(id, change), id);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read_to_string(self.pid_file(id)).expect("a pid file").parse().expect("a pid")
    }

    /// A container's status.
    pub fn status(&self, id: &str) -> String {
        let state: Value = serde_json::from_str(&self.succeed(&["state", id])).expect("JSON");
        state["status"].as_str().expect("a status").to_owned()
    }

    /// Processes of this place that are not their entrypoints yet: their command lines still name it.
    pub fn waiting(&self) -> Vec<u32> {
        let place = self.temp.path().to_str().expect("text");
        processes().filter(|pid| arguments(*pid).contains(place)).collect()
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for id in fs::read_dir(self.root()).into_iter().flatten().flatten() {
            if let Some(id) = id.file_name().to_str() {
                self.run("", &["delete", "--force", id]);
            }
        }
        // Whatever the runtime lost sight of still runs its program.
        for lost in
            processes().filter(|pid| Task::open(*pid).and_then(|task| task.exe()).is_ok_and(|exe| exe == self.program))
        {
            // It may have ended since.
            let _ = kill(pid(lost), Signal::SIGKILL);
        }
    }
}

/// The arguments that a process shows, or nothing when it has ended.
pub fn arguments(pid: u32) -> String {
    let arguments = Task::open(pid).and_then(|task| task.arguments(65_536)).unwrap_or_default();
    arguments.join(" ".as_ref()).to_string_lossy().into_owned()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
