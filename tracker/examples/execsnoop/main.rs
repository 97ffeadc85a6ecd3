//! `execsnoop`: every exec on the host, with the container that it happens in.
//!
//! An example of a tracer. Its kernel half knows numbers only: a mount namespace and a moment. The library, running
//! inside of this process, turns them into a container, pod and image. Copy what is useful:
//!
//! - `event.rs`: the bytes that the kernel half sends, and how they are taken apart;
//! - this file: what the kernel half has to know of this kernel, and what a line looks like;
//! - `../common/`: what it shares with the other examples, above all asking the tracker at the right moment.

#![allow(clippy::print_stderr, reason = "a command speaks to its terminal")]

#[path = "../common/mod.rs"]
mod common;
mod event;

use std::borrow::Cow;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;
use tracker::Enrichment;

use common::follow::{self, Options, Subject};
use common::head;
use common::probe::{MOUNT_NS, Object, offsets};
use common::text::{self, Cell, Format, Where};
use event::Exec;

/// Shows every exec on this host and the container that it happens in, until Ctrl-C. Needs root.
#[derive(Parser)]
#[command(name = "execsnoop")]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    // First of all: the keeper, the small process that holds containers' starts, is this program once more. Without this
    // line everything else works, but no start is held.
    tracker::barrier::keeper_entry();
    follow::exit_code("execsnoop", run(&Arguments::parse().options))
}

fn run(options: &Options) -> Result<()> {
    let [a, b, c, d] = MOUNT_NS;
    let offsets = offsets([a, b, c, d, ("BINPRM_FILENAME", "linux_binprm", "filename")])?.to_vec();
    let object = Object {
        bytes: aya::include_bytes_aligned!("../../bpf/execsnoop.bpf.o"),
        program: "on_exec",
        tracepoint: "sched_process_exec",
        offsets,
    };
    let subject = Subject { name: "execsnoop", events: "execs", decode: Exec::decode, head: |exec: &Exec| &exec.head };
    let format = options.output;
    follow::run(subject, options, &object, |_, out| {
        if format == Format::Table {
            let own = [Cell(24, "IMAGE".into()), Cell(15, "COMM".into())];
            text::row(out, Where::CELLS.into_iter().chain(own), "FILENAME")?;
        }
        Ok(move |out: &mut dyn Write, exec: &Exec, known: &Enrichment<'_>| show(out, format, exec, known))
    })
}

/// What a line tells.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    at: Where<'a>,
    comm: Cow<'a, str>,
    filename: Cow<'a, str>,
}

fn show(out: &mut dyn Write, format: Format, exec: &Exec, known: &Enrichment<'_>) -> io::Result<()> {
    let (comm, filename) = (String::from_utf8_lossy(exec.head.comm()), String::from_utf8_lossy(exec.filename()));
    let line = Line { at: Where::new(&exec.head, known), comm, filename };
    match format {
        Format::Json => text::json(out, &line),
        Format::Table => {
            let own = [Cell(24, line.at.image.unwrap_or("-").into()), Cell(15, line.comm.as_ref().into())];
            text::row(out, line.at.cells().into_iter().chain(own), &line.filename)
        }
    }
}
