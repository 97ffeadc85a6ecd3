//! The project's verbs. Everything a person or a CI machine does here is one of them: `cargo xtask --help`.
//!
//! Each verb lives in the file of its name. What they share: [`workspace`] starts cargo with what our builds need,
//! [`packages`] installs what tests need, [`layers`] runs a test layer and counts, [`vm`] boots other kernels.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its terminal")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod check;
mod ebpf;
mod test;

mod layers;
mod packages;
mod vm;
mod workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The project's verbs", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the workspace
    Build(build::Build),
    /// Build the tracker, then run it as root with a live list of containers
    Run(build::Run),
    /// Run the tests, every layer unless told otherwise; ends with `N passed, N failed`
    Test(test::Test),
    /// Build the kernel side into `tracker/bpf/`
    Ebpf {
        /// Compare with what is committed instead of replacing it
        #[arg(long)]
        check: bool,
    },
    /// What to do before pushing: fmt, clippy, docs, tidy tests
    Check,
    /// Measure; results go into docs/benchmarks.md
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::Build(build) => build.run(),
        Verb::Run(run) => run.run(),
        Verb::Test(test) => test.run(),
        Verb::Ebpf { check } => ebpf::ebpf(check),
        Verb::Check => check::check(),
        Verb::Bench(bench) => bench.run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
