//! `build` and `run`.

use anyhow::Result;
use clap::Args;

use crate::workspace::{as_root, become_it, cargo, succeed, target};

#[derive(Args)]
pub(crate) struct Build {
    /// With optimizations
    #[arg(long)]
    release: bool,
}

impl Build {
    pub(crate) fn run(&self) -> Result<()> {
        let mut build = cargo(&["build"]);
        if self.release {
            build.arg("--release");
        }
        succeed(&mut build)
    }
}

#[derive(Args)]
pub(crate) struct Run {
    /// With optimizations
    #[arg(long)]
    release: bool,
    /// Run this example of the library instead of the daemon
    #[arg(long)]
    example: Option<String>,
    /// Handed to `tracker run --live`, or to the example
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Run {
    pub(crate) fn run(&self) -> Result<()> {
        let mut build = cargo(&["build", "--package", "tracker"]);
        if self.release {
            build.arg("--release");
        }
        let mut program = target().join(if self.release { "release" } else { "debug" });
        match &self.example {
            Some(example) => {
                build.args(["--example", example]);
                program.extend(["examples", example]);
            }
            None => {
                build.arg("--bins");
                program.push("tracker");
            }
        }
        succeed(&mut build)?;

        let mut run = as_root(program, &[])?;
        if self.example.is_none() {
            run.args(["run", "--live"]);
        }
        become_it(run.args(&self.arguments))
    }
}
