//! `tracker inspect`: all that is known about one container.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use nix::fcntl::OFlag;
use tracker::container::Domain;
use tracker::server::api::Container;
use tracker::server::client::{Client, encode_segment};

use super::columns::CONTAINER;
use super::error::Failure;
use super::output::{self, Format, ListOptions};

/// Show all that is known about one container.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Its id, the beginning of its id, or its name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    id: String,
    /// Show its OCI bundle's config.json, as it is on the disk now.
    #[arg(long, conflicts_with_all = ["columns", "no_headers"])]
    oci: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "json")]
    output: Format,
    /// Columns of the table, in this order.
    #[arg(long, value_delimiter = ',', value_name = "COLUMN,…")]
    columns: Vec<String>,
    /// Leave the table's first line out.
    #[arg(long)]
    no_headers: bool,
}

/// A larger config.json is not read.
const MAX_CONFIG: u64 = 16 << 20;

pub(crate) async fn run(inspect: Inspect, client: &Client, out: &mut impl Write) -> Result<(), Failure> {
    let path = format!("/v1/containers/{}", encode_segment(&inspect.id));
    let container: Container = client.get(&path, &[]).await?;
    if inspect.oci {
        let config = read_config(&container)?;
        let print = if inspect.output == Format::Yaml { output::yaml } else { output::json };
        return Ok(print(out, &config)?);
    }
    match inspect.output {
        Format::Json => Ok(output::json(out, &container)?),
        Format::Yaml => Ok(output::yaml(out, &container)?),
        output => {
            let options = ListOptions { output, columns: inspect.columns, sort: None, no_headers: inspect.no_headers };
            output::list(out, vec![container], CONTAINER, |container| &container.id, &options)
        }
    }
}

fn read_config(container: &Container) -> Result<serde_json::Value, Failure> {
    let Some(bundle) = &container.bundle else {
        return Err(Failure::NotFound {
            error: format!("the bundle of {} is not known", output::escape(&container.id)),
            remedy: "`tracker explain` tells why",
        });
    };
    if let Domain::Container(outer) = container.domain {
        let what = "its bundle is inside another container and means another file here: look below";
        return Err(Failure::other(format!("{what} `/proc/{}/root`", outer.pid)));
    }
    let path = Path::new(&**bundle).join("config.json");
    let failed = |error: &dyn std::fmt::Display| Failure::other(format!("read {}: {error}", path.display()));
    // A bundle belongs to whoever made it: neither a link nor a FIFO in its place is followed or waited for.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    let file = options.open(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Failure::NotFound {
            error: format!("there is no {} any more", path.display()),
            remedy: "a runtime removes a bundle with its container",
        },
        _ => failed(&error),
    })?;
    let metadata = file.metadata().map_err(|error| failed(&error))?;
    if !metadata.is_file() || metadata.len() > MAX_CONFIG {
        return Err(failed(&"not a regular file of at most 16 MiB"));
    }
    let mut text = Vec::new();
    file.take(MAX_CONFIG).read_to_end(&mut text).map_err(|error| failed(&error))?;
    serde_json::from_slice(&text).map_err(|error| failed(&error))
}
