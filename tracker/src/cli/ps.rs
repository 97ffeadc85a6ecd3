//! `tracker ps`: the containers.

use std::io::Write;

use clap::Args;
use tracker::server::api::Container;
use tracker::server::client::Client;

use super::columns::CONTAINER;
use super::error::Failure;
use super::output::{self, ListOptions};
use super::picked::Picked;

/// List containers, newest first.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    #[command(flatten)]
    picked: Picked,
    #[command(flatten)]
    list: ListOptions,
}

pub(crate) async fn run(ps: Ps, client: &Client, out: &mut impl Write) -> Result<(), Failure> {
    let containers: Vec<Container> = client.get("/v1/containers", &ps.picked.query()).await?;
    output::list(out, containers, CONTAINER, |container| &container.id, &ps.list)
}
