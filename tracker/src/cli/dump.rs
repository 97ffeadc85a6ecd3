//! `tracker dump`: the tracker's whole state, for a bug report.

use std::io::Write;

use clap::Args;
use tracker::server::client::Client;

use super::error::Failure;
use super::output;

/// Print the tracker's whole state as JSON, for a bug report. It names images, labels and paths.
#[derive(Debug, Args)]
pub(crate) struct Dump {}

pub(crate) async fn run(Dump {}: Dump, client: &Client, out: &mut impl Write) -> Result<(), Failure> {
    let state: serde_json::Value = client.get("/v1/dump", &[]).await?;
    Ok(output::json(out, &state)?)
}
