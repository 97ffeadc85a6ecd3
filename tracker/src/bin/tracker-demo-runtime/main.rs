//! A tiny OCI-shaped runtime: what `tracker demo` shows containers with on a host that has no container runtime, and
//! what the fault tests use to delay, crash or lie at each step of a start.
//!
//! To the tracker it is a runtime like any other: the same command lines, pid file, state file and order of steps as
//! runc, marked by configuration. What it leaves out is an image and a network: a container has namespaces of its own
//! and sees the host's files.
//!
//! ```text
//! create ─▶ clone(namespaces) ─▶ init: mounts, host name, cgroup ─▶ waits at exec.fifo ─┐
//!    └────▶ state file ─▶ pid file ─▶ end                                               │
//! start ──▶ opens exec.fifo ───────────────────────────────────────────────────────────▶ execve(process.args)
//! delete ─▶ removes state, cgroup
//! ```
//!
//! Without `process.args` (or with `["init"]`) a container's entrypoint is this program itself, which sleeps until it
//! is asked to end. What goes wrong, and where, is chosen by the variable `TRACKER_DEMO_FAULT`: see [`fault`].

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

mod bundle;
mod create;
mod fault;
mod lifecycle;
mod state;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracker::ContainerId;

use crate::fault::{Faults, Step};
use crate::state::{Failure, StateDir};

/// A tiny OCI-shaped runtime for demonstrations and fault tests: namespaces, no image, no network.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    /// Directory of the containers' state.
    #[arg(long, global = true, default_value = "/run/tracker-demo-runtime", value_name = "DIR")]
    root: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Makes a container, whose init waits for `start`.
    Create {
        /// Directory with the container's `config.json`.
        #[arg(short, long, default_value = ".", value_name = "DIR")]
        bundle: PathBuf,
        /// Where to write the pid of its init process.
        #[arg(long, value_name = "FILE")]
        pid_file: Option<PathBuf>,
        #[arg(value_parser = id)]
        id: ContainerId,
    },
    /// Lets the init of a created container run its entrypoint.
    Start {
        #[arg(value_parser = id)]
        id: ContainerId,
    },
    /// Prints the state of a container, as JSON of the OCI runtime specification.
    State {
        #[arg(value_parser = id)]
        id: ContainerId,
    },
    /// Sends a signal to the init of a container.
    Kill {
        #[arg(value_parser = id)]
        id: ContainerId,
        /// A signal's name or number.
        #[arg(default_value = "TERM")]
        signal: String,
    },
    /// Removes a container that has ended.
    Delete {
        /// Kills it first.
        #[arg(short, long)]
        force: bool,
        #[arg(value_parser = id)]
        id: ContainerId,
    },
    /// The entrypoint of containers that have none: sleeps until it is told to end.
    #[command(hide = true)]
    Init {
        /// Ends by itself after this time.
        #[arg(long)]
        seconds: Option<NonZeroU32>,
        /// The exit code when it ends by itself.
        #[arg(long, default_value_t = 0)]
        exit_code: u8,
    },
}

fn id(text: &str) -> Result<ContainerId, tracker::container::InvalidId> {
    ContainerId::new(text)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("tracker-demo-runtime: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let Arguments { root, verb } = arguments;
    let faults = Faults::from_environment()?;
    match verb {
        Verb::Create { bundle, pid_file, id } => {
            faults.reach(Step::CreateBegins)?;
            create::create(&root, &id, &bundle, pid_file.as_deref(), &faults)?;
            faults.reach(Step::CreateEnds)?;
        }
        Verb::Start { id } => {
            faults.reach(Step::StartBegins)?;
            lifecycle::start(&StateDir::open(&root, &id)?)?;
            faults.reach(Step::StartEnds)?;
        }
        Verb::State { id } => {
            println!("{}", lifecycle::state(&StateDir::open(&root, &id)?)?);
        }
        Verb::Kill { id, signal } => lifecycle::kill(&StateDir::open(&root, &id)?, &signal)?,
        Verb::Delete { force, id } => {
            faults.reach(Step::DeleteBegins)?;
            lifecycle::delete(&StateDir::open(&root, &id)?, force)?;
        }
        Verb::Init { seconds, exit_code } => return lifecycle::init(seconds, exit_code),
    }
    Ok(ExitCode::SUCCESS)
}
