//! Arguments, logging, exit code.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // The keeper is this binary under another name: nothing else may happen in it, not even the parsing of arguments.
    tracker::barrier::keeper_entry();
    cli::run(cli::Arguments::parse())
}
