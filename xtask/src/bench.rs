//! `bench`: measurements, each with its baseline in the same run. The tables in `docs/benchmarks.md` are made of these.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::packages;
use crate::workspace::{as_root, cargo, is_root, succeed, target};

#[derive(Args)]
pub(crate) struct Bench {
    /// One of them; all, one after the other, where none is named: about an hour
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
    /// Routes: hits by thread, first look-ups beside bare exchanges, flows, changes; needs root, iproute2
    Routes {
        /// Net namespaces, then changes
        numbers: Vec<u32>,
    },
    /// The plane: look-ups from another process beside `bpf()` and the debug socket, what a change costs; needs root
    Plane {
        /// Containers, then changes
        numbers: Vec<u32>,
    },
    /// Containers come and go at the machine's maximum rate, with and without the tracker; needs root and the runtimes
    Churn {
        /// Handed to the bench: `--scale 0.01` for a quick run, `--help` for all
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// How soon containers that were there before are known with all their fields; needs root and the runtimes
    Present {
        /// Handed to the bench: `--scale 0.1` for a quick run, `--help` for all
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

/// The benchmarks of the package `tracker` that need nothing.
const MICRO: [&str; 3] = ["collection", "memory", "parsing"];

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
    fn all() -> [What; 8] {
        [
            What::Micro { filter: None },
            What::Exec { spawns: None },
            What::Plane { numbers: Vec::new() },
            What::Routes { numbers: Vec::new() },
            What::Barrier { rounds: None },
            What::Idle { numbers: Vec::new() },
            What::Present { arguments: Vec::new() },
            What::Churn { arguments: Vec::new() },
        ]
    }

    fn run(&self) -> Result<()> {
        match self {
            What::Micro { filter } => {
                let benches = MICRO.map(|bench| ["--bench", bench]);
                let benches = benches.as_flattened();
                succeed(cargo(&["bench", "--package", "tracker"]).args(benches).arg("--").args(filter.iter()))
            }
            What::Routes { numbers } => {
                packages::ensure(packages::RUNTIMES)?;
                // Cargo builds as whoever we are, and runs what it has built as root.
                let runner = ["--config", "target.'cfg(all())'.runner='sudo'"];
                let runner = if is_root() { &[][..] } else { &runner };
                succeed(cargo(runner).args(["bench", "--package", "tracker", "--bench", "routes"]))?;
                program("bench_routes", &words(numbers))
            }
            What::Plane { numbers } => program("bench_plane", &words(numbers)),
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
            What::Present { arguments } => {
                packages::ensure(packages::RUNTIMES)?;
                program("bench_present", arguments)
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
