//! A running example tracer, with a tracker of its own inside.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::Process;
use crate::requirement;
use crate::runc::Runtime;
use crate::wait::{PATIENCE, within};

/// Ends when dropped.
pub struct Example {
    process: Process,
    directory: TempDir,
}

impl Example {
    /// Starts one by its name, with this configuration (TOML), and waits until it watches.
    pub fn start(name: &str, config: &str, options: &[&str]) -> Result<Example> {
        let program = requirement::example(name).map_err(anyhow::Error::msg)?;
        let directory = TempDir::new()?;
        let (file, log) = (directory.path().join("config.toml"), directory.path().join("log"));
        fs::write(&file, config)?;
        let process = Process::start(Command::new(program).arg("--config").arg(&file).args(options), &log)?;
        let mut example = Example { process, directory };
        // In an emulated machine it reads the kernel's types for half a minute.
        let watches = within(4 * PATIENCE, || {
            assert!(example.process.ended().is_ok_and(|ended| ended.is_none()), "{}", example.said());
            example.said().contains(&format!("{name}: watching")).then_some(())
        });
        watches.with_context(|| format!("see it watch: {}", example.said()))?;
        Ok(example)
    }

    /// All that it has printed.
    pub fn said(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The lines of JSON among that, as far as they are whole.
    pub fn lines(&self) -> Vec<Value> {
        lines(&self.said())
    }

    /// Ends it as a person does; what happened before is printed by then.
    pub fn stop(mut self) -> Result<String> {
        self.process.signal(Signal::SIGINT)?;
        let status = self.process.wait(PATIENCE)?;
        let said = self.said();
        assert!(status.success(), "{status}: {said}");
        assert!(said.contains(" 0 lost"), "{said}");
        Ok(said)
    }
}

/// The lines of JSON in what was printed.
pub fn lines(said: &str) -> Vec<Value> {
    said.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(Value::is_object).collect()
}

/// A tracker that knows of one runtime, and can learn a container's name from nothing but its start.
pub fn config(runtime: &Runtime) -> String {
    // The budget is for a machine that does other things as well.
    format!(
        "[barrier]\nruntimes = [{:?}]\nknown-paths = false\nlearn = false\nbudget-ms = 5000\n\
         [proc]\nusual-roots = false\n[containerd]\nenabled = false\n",
        runtime.program()
    )
}
