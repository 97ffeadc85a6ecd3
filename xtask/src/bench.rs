//! `bench`: measurements, each with its baseline in the same run. The tables in `docs/benchmarks.md` are made of these.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::workspace::{cargo, succeed};

#[derive(Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Clone, Subcommand)]
enum What {
    /// Look-ups, publishing, a container's life through the collection; no root needed
    Micro {
        /// Only benchmarks whose name contains this
        filter: Option<String>,
    },
}

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        match self.what.clone().unwrap_or(What::Micro { filter: None }) {
            What::Micro { filter } => {
                succeed(cargo(&["bench", "--package", "tracker", "--benches", "--"]).args(filter.iter()))
            }
        }
    }
}
