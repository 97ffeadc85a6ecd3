//! `bench`: measurements, each with its baseline in the same run. The tables in `docs/benchmarks.md` are made of these.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::packages;
use crate::workspace::{as_root, cargo, succeed, target};

#[derive(Args)]
pub(crate) struct Bench {
    /// One of them; all, one after the other, where none is named: about half an hour
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand)]
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
    /// How long starts are held, one at a time and fifty at once, without the collection; needs root, crun
    Barrier {
        /// Rounds of each
        rounds: Option<u32>,
    },
    /// Context switches and memory while nothing happens; needs root, runc
    Idle {
        /// Containers that sleep, then seconds
        numbers: Vec<u32>,
    },
    /// Cost per fork, exec and exit of an unrelated process, by the kernel's own statistics; needs root
    Exec {
        /// Spawns per round
        spawns: Option<u32>,
    },
}

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        match &self.what {
            Some(what) => what.run(),
            None => What::all().iter().try_for_each(What::run),
        }
    }
}

impl What {
    /// Each at its full scale, the shortest first.
    fn all() -> [What; 5] {
        [
            What::Micro { filter: None },
            What::Exec { spawns: None },
            What::Barrier { rounds: None },
            What::Idle { numbers: Vec::new() },
            What::Churn { arguments: Vec::new() },
        ]
    }

    fn run(&self) -> Result<()> {
        match self {
            What::Micro { filter } => {
                succeed(cargo(&["bench", "--package", "tracker", "--bench", "*", "--"]).args(filter.iter()))
            }
            What::Exec { spawns } => program("bench_exec", &words(spawns)),
            What::Barrier { rounds } => {
                packages::ensure(packages::RUNTIMES)?;
                for helper in ["holder", "keeper"] {
                    build(&["--package", "tracker-tests", "--bin", helper])?;
                }
                program("bench_barrier", &words(rounds))
            }
            What::Idle { numbers } => {
                packages::ensure(packages::RUNTIMES)?;
                build(&["--package", "tracker", "--bins"])?;
                program("bench_idle", &words(numbers))
            }
            What::Churn { arguments } => {
                packages::ensure(packages::RUNTIMES)?;
                program("churn", arguments)
            }
        }
    }
}

/// A benchmark that is a program of `tracker-tests`, optimized, run as root.
fn program(name: &str, arguments: &[String]) -> Result<()> {
    build(&["--package", "tracker-tests", "--bin", name])?;
    succeed(as_root(target().join("release").join(name), &[])?.args(arguments))
}

fn build(what: &[&str]) -> Result<()> {
    succeed(cargo(&["build", "--release"]).args(what))
}

fn words<'a>(numbers: impl IntoIterator<Item = &'a u32>) -> Vec<String> {
    numbers.into_iter().map(u32::to_string).collect()
}
