//! A private runtime, a root file system, and a daemon that is told of nothing else: what a test of the whole tracker
//! lives in. The kernel shows every container of the machine to every tracker, so ids carry the test's own name.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tracker::{Config, Tracker};

use crate::bundle::{Bundle, RootFs};
use crate::runc::{Container, Kind, Runtime};
use crate::wait::eventually;

/// Long enough that nothing is let go on a machine that does other things as well.
pub const PATIENT: Duration = Duration::from_secs(10);

/// The place.
pub struct House {
    temp: TempDir,
    root: RootFs,
    runtime: Runtime,
}

impl House {
    /// One with a private copy of this runtime.
    pub fn new(kind: Kind) -> Result<House> {
        let temp = tempfile::Builder::new().prefix("house-").tempdir().context("create a directory for a test")?;
        // Other users are to come in where a test has any.
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).context("open a directory to others")?;
        let (root, runtime) = (RootFs::create(temp.path())?, Runtime::copy(kind, temp.path())?);
        Ok(House { temp, root, runtime })
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        self.temp.path()
    }

    /// Its root file system.
    pub fn root(&self) -> &RootFs {
        &self.root
    }

    /// Its runtime.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The configuration (TOML) of a tracker that holds this runtime's starts for at most `budget`, and looks nowhere
    /// else; `more` are further sections.
    pub fn config(&self, budget: Duration, more: &str) -> String {
        let containerd = if more.contains("[containerd]") { "" } else { "[containerd]\nenabled = false\n" };
        format!(
            "[barrier]\nbudget-ms = {}\nruntimes = [{:?}]\nknown-paths = false\nlearn = false\n\
             [proc]\nroots = [{:?}]\nusual-roots = false\n{containerd}{more}",
            budget.as_millis(),
            self.runtime.program(),
            self.runtime.root(),
        )
    }

    /// A tracker in this process with such a configuration and a patient budget, which starts this keeper; it holds starts
    /// already.
    pub fn tracker(&self, keeper: &str, more: &str) -> Result<Tracker> {
        let mut config: Config = toml::from_str(&self.config(PATIENT, more)).context("understand a configuration")?;
        // Others may run runtimes on this machine.
        config.find.enabled = false;
        config.barrier.keeper_program = Some(keeper.into());
        let tracker = Tracker::start(config).context("start a tracker")?;
        let program = self.runtime.program().display().to_string();
        let is_held = || tracker.health().iter().any(|line| line.detail.contains(&program)).then_some(());
        eventually("starts are held", is_held);
        Ok(tracker)
    }

    /// A bundle that sleeps for longer than any test takes.
    pub fn bundle(&self, id: &str) -> Result<Bundle> {
        self.bundle_with(id, &["sleep", "1000"], |_| ())
    }

    /// A bundle of another entrypoint and with another config.
    pub fn bundle_with(&self, id: &str, arguments: &[&str], change: impl FnOnce(&mut Value)) -> Result<Bundle> {
        Bundle::create_with(self.temp.path(), id, &self.root, arguments, change)
    }

    /// A running container that sleeps: `create`, then `start`.
    pub fn started(&self, id: &str) -> Result<Container<'_>> {
        let container = self.runtime.create(&self.bundle(id)?, id)?;
        container.start()?;
        Ok(container)
    }

    /// An execution that is held only if its caller is looked at: `start` of a container that does not exist.
    pub fn start_of_nothing(&self) -> Command {
        let mut command = self.runtime.command();
        command.args(["start", "nothing"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Executes the runtime to no effect and returns how long it took. A denied execution cannot even be spawned.
    pub fn execute(&self) -> Result<Duration> {
        let begun = Instant::now();
        let status = self.start_of_nothing().status().context("the execution was denied")?;
        ensure!(status.code() == Some(1), "the runtime itself says that there is no such container, not: {status}");
        Ok(begun.elapsed())
    }
}
