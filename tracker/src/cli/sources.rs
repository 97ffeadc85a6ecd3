//! `tracker sources`: how each source is doing.

use std::io::Write;

use clap::Args;
use tracker::server::api::SourceLine;
use tracker::server::client::Client;

use super::error::Failure;
use super::output::{self, Cell, Column, ListOptions};

/// Show how each source is doing, and what is refused and why.
#[derive(Debug, Args)]
pub(crate) struct Sources {
    #[command(flatten)]
    list: ListOptions,
}

const COLUMNS: &[Column<SourceLine>] = &[
    Column { name: "source", wide: false, cell: |line| Cell::text(line.source.name()) },
    Column { name: "what", wide: false, cell: |line| Cell::text(&*line.what) },
    Column { name: "condition", wide: false, cell: |line| Cell::text(line.condition.name()) },
    Column { name: "since", wide: false, cell: |line| Cell::age(line.since) },
    Column { name: "origin", wide: false, cell: |line| Cell::text(line.origin.as_deref().unwrap_or_default()) },
    Column { name: "changes", wide: true, cell: |line| Cell::number(line.changes) },
    Column { name: "detail", wide: false, cell: |line| Cell::text(&*line.detail) },
];

pub(crate) async fn run(sources: Sources, client: &Client, out: &mut impl Write) -> Result<(), Failure> {
    let lines: Vec<SourceLine> = client.get("/v1/sources", &[]).await?;
    output::list(out, lines, COLUMNS, |line| line.source.name(), &sources.list)
}
