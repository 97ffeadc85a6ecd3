//! `bench`: measurements, each with its baseline in the same run. The tables in `docs/benchmarks.md` are made of these.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::packages;
use crate::workspace::{as_root, cargo, succeed, target};

#[derive(Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Clone, Subcommand)]
enum What {
    /// Look-ups, publishing, a container's life through the collection; no root needed
    Micro {
        /// Only benchmarks whose name contains this
        filter: Option<String>,
    },
    /// Containers come and go at the machine's maximum rate, with and without the tracker; needs root, runc, containerd
    Churn {
        /// Handed to the bench: `--scale 0.01` for a quick run, `--help` for all
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Cost per fork, exec and exit of an unrelated process, by the kernel's own statistics; needs root
    Exec {
        /// Spawns per round
        spawns: Option<u32>,
    },
}

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        match self.what.clone().unwrap_or(What::Micro { filter: None }) {
            What::Micro { filter } => {
                succeed(cargo(&["bench", "--package", "tracker", "--bench", "*", "--"]).args(filter.iter()))
            }
            What::Exec { spawns } => {
                let spawns: Vec<String> = spawns.iter().map(u32::to_string).collect();
                program("bench_exec", &spawns)
            }
            What::Churn { arguments } => {
                packages::ensure(packages::RUNTIMES)?;
                program("churn", &arguments)
            }
        }
    }
}

/// A benchmark that is a program of `tracker-tests`, optimized, run as root.
fn program(name: &str, arguments: &[String]) -> Result<()> {
    succeed(&mut cargo(&["build", "--release", "--package", "tracker-tests", "--bin", name]))?;
    succeed(as_root(target().join("release").join(name), &[])?.args(arguments))
}
