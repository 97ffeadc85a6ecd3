//! `tracker completions`: what a shell needs to complete our command lines.

use std::io::Write;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Arguments;
use super::error::Failure;

/// Print a shell's completion script; for bash: `source <(tracker completions bash)`.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell.
    shell: Shell,
}

pub(crate) fn run(completions: &Completions, out: &mut impl Write) -> Result<(), Failure> {
    // Into memory first: the generator panics when what it writes to fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(completions.shell, &mut Arguments::command(), "tracker", &mut script);
    Ok(out.write_all(&script)?)
}
