//! `tracker doctor`: what works on this machine.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use tracker::doctor::{self, Check, Verdict};

use super::error::Failure;
use super::output::{self, Format, escape};

/// Tell what works on this machine, what the rest costs, and what to do about it. Needs no running tracker.
///
/// Exit code 1 when the tracker could not do its work here.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// How to print: `table` for people, `name` only the subjects that are not ok.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// The configuration that the tracker would run with.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(crate) fn run(doctor: &Doctor, socket: Option<PathBuf>, out: &mut impl Write) -> Result<(), Failure> {
    let config = super::configuration(doctor.config.as_deref(), socket)?;
    let checks = doctor::examine(&config);
    match doctor.output {
        Format::Json => output::json(out, &checks)?,
        Format::Yaml => output::yaml(out, &checks)?,
        Format::Name => {
            let lacking = checks.iter().filter(|check| check.verdict != Verdict::Ok);
            lacking.map(|check| &check.subject).try_for_each(|subject| writeln!(out, "{}", escape(subject)))?;
        }
        Format::Table | Format::Wide => checks.iter().try_for_each(|check| print(out, check))?,
    }
    match doctor::worst(&checks) {
        Verdict::Fail => Err(Failure::Said),
        Verdict::Ok | Verdict::Warn => Ok(()),
    }
}

fn print(out: &mut impl Write, check: &Check) -> std::io::Result<()> {
    let Check { subject, verdict, found, costs, remedy } = check;
    writeln!(out, "{:<4}  {}: {}", verdict.name(), escape(subject), escape(found))?;
    if let Some(costs) = costs {
        writeln!(out, "      costs: {costs}")?;
    }
    if let Some(remedy) = remedy {
        writeln!(out, "      remedy: {remedy}")?;
    }
    Ok(())
}
