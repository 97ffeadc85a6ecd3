//! `tracker ps`: the containers.

use std::io::Write;

use clap::Args;
use tracker::server::api::Container;
use tracker::server::client::Client;

use super::columns::CONTAINER;
use super::error::Failure;
use super::output::{self, ListOptions};

/// List containers, newest first.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Every kind: also sandboxes, and what nobody vouches for.
    #[arg(short, long)]
    all: bool,
    /// Only this kind: container, sandbox, unmanaged, sandboxed-process.
    #[arg(long)]
    kind: Option<String>,
    /// Only what this selector picks, for example `label:app=web,state in (running,paused)`.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    #[command(flatten)]
    list: ListOptions,
}

pub(crate) async fn run(ps: Ps, client: &Client, out: &mut impl Write) -> Result<(), Failure> {
    let mut query = Vec::new();
    if ps.all {
        query.push(("all", "true"));
    }
    query.extend(ps.kind.as_deref().map(|kind| ("kind", kind)));
    query.extend(ps.selector.as_deref().map(|selector| ("selector", selector)));
    let containers: Vec<Container> = client.get("/v1/containers", &query).await?;
    output::list(out, containers, CONTAINER, |container| &container.id, &ps.list)
}
