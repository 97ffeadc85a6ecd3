//! `tracker cleanup`: removes what a tracker leaves for its successor.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use tracker::plane::cleanup::{self, CleanupError};

use super::error::Failure;
use super::output::{self, Format, escape};

/// Remove what a tracker leaves for its successor: every pin below its directory in the BPF file system, and with them
/// probes that were kept attached.
///
/// For when no tracker is to follow. Refused while one runs. Nothing is removed that is not a tracker's.
#[derive(Debug, Args)]
pub(crate) struct Cleanup {
    /// The directory of pins; default: what the configuration says.
    #[arg(long, value_name = "DIRECTORY")]
    pins: Option<PathBuf>,
    /// The configuration that the tracker ran with.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Remove the plane's file as well.
    #[arg(long)]
    plane: bool,
    /// Remove it from under a tracker that runs, which goes on without.
    #[arg(long)]
    force: bool,
    /// How to print: `name` the paths alone.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Done {
    /// Pins that were removed.
    pins: Vec<PathBuf>,
    /// What is in the directory and not a tracker's.
    left: Vec<PathBuf>,
    /// The plane's file, if it was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    plane: Option<PathBuf>,
}

pub(crate) fn run(cleanup: &Cleanup, out: &mut impl Write) -> Result<(), Failure> {
    let config = super::configuration(cleanup.config.as_deref(), None)?;
    let mut done = Done::default();
    let directory = cleanup.pins.clone().unwrap_or(config.plane.pins);
    // The file first: a tracker that writes it keeps its pins, too.
    if cleanup.plane && cleanup::file(&config.plane.path, cleanup.force).map_err(failure)? {
        done.plane = Some(config.plane.path);
    }
    if !directory.as_os_str().is_empty() {
        let removed = cleanup::pins(&directory, cleanup.force).map_err(failure)?;
        (done.pins, done.left) = (removed.pins, removed.left);
    }
    match cleanup.output {
        Format::Json => output::json(out, &done)?,
        Format::Yaml => output::yaml(out, &done)?,
        Format::Name => done.pins.iter().chain(&done.plane).try_for_each(|path| line(out, "", path))?,
        Format::Table | Format::Wide => {
            done.pins.iter().chain(&done.plane).try_for_each(|path| line(out, "removed ", path))?;
            done.left.iter().try_for_each(|path| line(out, "left, for it is not a tracker's: ", path))?;
            if done.pins.is_empty() && done.plane.is_none() {
                writeln!(out, "nothing to remove")?;
            }
        }
    }
    Ok(())
}

fn line(out: &mut impl Write, what: &str, path: &Path) -> std::io::Result<()> {
    writeln!(out, "{what}{}", escape(&path.display().to_string()))
}

fn failure(error: CleanupError) -> Failure {
    Failure::Other { remedy: Some(error.remedy().to_owned()), error: error.to_string() }
}
