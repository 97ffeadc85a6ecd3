//! The command line: one file per command. Each asks the running tracker through its debug socket and prints; `run`,
//! `doctor`, `cleanup` and `completions` need none.

mod cleanup;
mod columns;
mod completions;
mod demo;
mod doctor;
mod dump;
mod error;
mod explain;
mod filter;
mod images;
mod inspect;
mod lookup;
mod output;
mod picked;
mod ps;
mod route;
mod run;
mod select;
mod sources;
mod watch;

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracker::Config;
use tracker::server::client::{Client, DEFAULT_SOCKET};

use self::error::Failure;

/// Names the containers behind mount namespaces, net namespaces, cgroups and pids, before their first instruction.
///
/// Exit codes: 0 done, 1 error, 2 wrong command line, 3 asked for one thing and there is none.
#[derive(Debug, Parser)]
#[command(name = "tracker", version, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Arguments {
    /// The tracker's debug socket.
    ///
    /// Without it: where the configuration says (`run`), else /run/tracker/tracker.sock.
    // In every command's help: behind what is the command's own.
    #[arg(long, global = true, env = "TRACKER_SOCKET", value_name = "PATH", display_order = 900)]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Ps(ps::Ps),
    Inspect(inspect::Inspect),
    Lookup(lookup::Ask),
    Watch(watch::Watch),
    Explain(explain::Explain),
    Route(route::Route),
    Images(images::Images),
    Sources(sources::Sources),
    Select(select::Select),
    Dump(dump::Dump),
    Filter(filter::FilterCommand),
    Doctor(doctor::Doctor),
    Cleanup(cleanup::Cleanup),
    Demo(demo::Demo),
    Completions(completions::Completions),
}

/// Does what the command line says.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let done = dispatch(arguments, &mut out).and_then(|()| Ok(out.flush()?));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // What was printed before it went wrong is part of the answer.
            let _ = out.flush();
            failure.report(&mut io::stderr().lock())
        }
    }
}

fn dispatch(arguments: Arguments, out: &mut impl Write) -> Result<(), Failure> {
    let Arguments { socket, command } = arguments;
    match command {
        Command::Run(run) => run::run(run, socket),
        Command::Doctor(doctor) => doctor::run(&doctor, socket, out),
        Command::Cleanup(cleanup) => cleanup::run(&cleanup, out),
        Command::Demo(demo) => demo::run(&demo, out),
        Command::Completions(completions) => completions::run(&completions, out),
        command => {
            let client = Client::new(socket.unwrap_or_else(|| DEFAULT_SOCKET.into()));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(ask(command, &client, out))
        }
    }
}

/// The configuration in `file`, or the default one; a socket on the command line wins.
fn configuration(file: Option<&Path>, socket: Option<PathBuf>) -> Result<Config, Failure> {
    let mut config = file.map(Config::read).transpose().map_err(Failure::other)?.unwrap_or_default();
    if let Some(socket) = socket {
        config.server.socket = socket;
    }
    Ok(config)
}

async fn ask(command: Command, client: &Client, out: &mut impl Write) -> Result<(), Failure> {
    match command {
        Command::Ps(ps) => ps::run(ps, client, out).await,
        Command::Inspect(inspect) => inspect::run(inspect, client, out).await,
        Command::Lookup(lookup) => lookup::run(lookup, client, out).await,
        Command::Watch(watch) => watch::run(watch, client, out).await,
        Command::Explain(explain) => explain::run(explain, client, out).await,
        Command::Route(route) => route::run(route, client, out).await,
        Command::Images(images) => images::run(images, client, out).await,
        Command::Sources(sources) => sources::run(sources, client, out).await,
        Command::Select(select) => select::run(select, client, out).await,
        Command::Dump(dump) => dump::run(dump, client, out).await,
        Command::Filter(filter) => filter::run(filter, client, out).await,
        Command::Run(_) | Command::Doctor(_) | Command::Cleanup(_) | Command::Demo(_) | Command::Completions(_) => {
            unreachable!("these need no running tracker and were done before")
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_socket_can_be_named_before_and_after_the_command() {
        for line in [["tracker", "--socket", "/s", "ps"], ["tracker", "ps", "--socket", "/s"]] {
            assert_eq!(Arguments::try_parse_from(line).unwrap().socket, Some(PathBuf::from("/s")));
        }
    }

    #[test]
    fn a_selection_is_pinned_or_listed_or_removed() {
        for (line, accepted) in [
            (&["tracker", "select", "--pin", "web", "image=x"][..], true),
            (&["tracker", "select", "--pin", "web", "image=x", "--keep", "-o", "json"], true),
            (&["tracker", "select", "--list"], true),
            (&["tracker", "select", "--remove", "web"], true),
            (&["tracker", "select"], false),
            (&["tracker", "select", "image=x"], false),
            (&["tracker", "select", "--pin", "web"], false),
            (&["tracker", "select", "--list", "image=x"], false),
            (&["tracker", "select", "--list", "--remove", "web"], false),
            (&["tracker", "select", "--list", "--keep"], false),
        ] {
            assert_eq!(Arguments::try_parse_from(line).is_ok(), accepted, "{line:?}");
        }
    }

    #[test]
    fn a_lookup_names_exactly_one_number_or_pod() {
        for (line, accepted) in [
            (&["tracker", "lookup", "--mntns", "1"][..], true),
            (&["tracker", "lookup", "--pid", "1", "--at", "5"], true),
            (&["tracker", "lookup", "--pod", "default/web"], true),
            (&["tracker", "lookup", "--pod", "default/web", "--pid", "1"], false),
            (&["tracker", "lookup"], false),
            (&["tracker", "lookup", "--pid", "1", "--mntns", "2"], false),
        ] {
            assert_eq!(Arguments::try_parse_from(line).is_ok(), accepted, "{line:?}");
        }
    }
}
