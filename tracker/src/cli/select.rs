//! `tracker select`: live sets of containers as pinned BPF maps, for tracers that filter in the kernel.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tracker::server::api::Selected;
use tracker::server::client::{Client, ClientError, encode_segment, is_not_found};

use super::error::Failure;
use super::output::{self, Cell, Column, Format, ListOptions, escape};

/// Pin a live set of containers as BPF maps, by which tracers filter in the kernel.
///
/// It is pinned until this command is interrupted, which prints each change of the number of its containers; with --keep
/// until it is removed. The maps are hashes with the inode numbers of mount namespaces (`mntns`) and ids of cgroups (`cgroups`).
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("verb").required(true).args(["pin", "list_all", "remove"]))]
pub(crate) struct Select {
    /// Pin one of this name: letters, digits, `-` and `_`.
    #[arg(long, value_name = "NAME", requires = "selector")]
    pin: Option<String>,
    /// Which containers, for example `image=*nginx*,kind=container`.
    #[arg(value_name = "SELECTOR", requires = "pin", conflicts_with_all = ["list_all", "remove"])]
    selector: Option<String>,
    /// Return at once, and leave it pinned, also over restarts of the tracker, until it is removed.
    #[arg(long, requires = "pin", conflicts_with_all = ["list_all", "remove"])]
    keep: bool,
    /// List all.
    #[arg(long = "list")]
    list_all: bool,
    /// Remove the one of this name.
    #[arg(long, value_name = "NAME")]
    remove: Option<String>,
    #[command(flatten)]
    list: ListOptions,
}

const COLUMNS: &[Column<Selected>] = &[
    Column { name: "name", wide: false, cell: |line| Cell::text(&*line.name) },
    Column { name: "containers", wide: false, cell: |line| Cell::number(line.containers) },
    Column { name: "missing", wide: false, cell: |line| Cell::number(line.missing) },
    Column { name: "owner", wide: false, cell: |line| line.owner.map_or_else(|| Cell::text("kept"), Cell::from) },
    Column { name: "since", wide: false, cell: |line| Cell::age(line.since) },
    Column { name: "selector", wide: false, cell: |line| Cell::text(&*line.selector) },
    Column { name: "changes", wide: true, cell: |line| Cell::number(line.changes) },
    Column { name: "mntns", wide: true, cell: |line| Cell::number(line.mount_namespaces) },
    Column { name: "cgroups", wide: true, cell: |line| Cell::number(line.cgroups) },
    Column { name: "pins", wide: true, cell: |line| Cell::text(&*line.pins) },
];

/// Between two looks at the number of containers.
const PAUSE: Duration = Duration::from_millis(250);

pub(crate) async fn run(select: Select, client: &Client, out: &mut impl Write) -> Result<(), Failure> {
    let Select { pin, selector, keep, remove, list, .. } = select;
    match (pin, remove) {
        (Some(name), _) => {
            let wish = json!({"name": name, "selector": selector.unwrap_or_default(), "keep": keep});
            let mut ended = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
            let made: Selected = client.post("/v1/selections", &wish).await?;
            begin(out, &made, list.output)?;
            out.flush()?;
            if keep {
                return Ok(());
            }
            let [interrupt, terminate] = &mut ended;
            tokio::select! {
                failed = follow(client, made, out, list.output) => failed,
                _ = interrupt.recv() => end(client, &name).await,
                _ = terminate.recv() => end(client, &name).await,
            }
        }
        (None, Some(name)) => {
            let removed: Selected = client.delete(&path(&name)).await?;
            match list.output {
                Format::Table | Format::Wide => Ok(writeln!(out, "removed {}", escape(&removed.name))?),
                _ => one(out, &removed, list.output),
            }
        }
        (None, None) => {
            let all: Vec<Selected> = client.get("/v1/selections", &[]).await?;
            output::list(out, all, COLUMNS, |line| &line.name, &list)
        }
    }
}

fn path(name: &str) -> String {
    format!("/v1/selections/{}", encode_segment(name))
}

/// Says what has been pinned.
fn begin(out: &mut impl Write, made: &Selected, format: Format) -> Result<(), Failure> {
    if !matches!(format, Format::Table | Format::Wide) {
        return one(out, made, format);
    }
    let pins = escape(&made.pins);
    writeln!(out, "pinned {pins}/mntns and {pins}/cgroups: {}", escape(&made.selector))?;
    one(out, made, format)
}

/// One line about its containers.
fn one(out: &mut impl Write, line: &Selected, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => {
            Ok(writeln!(out, "{}", output::escape_json(&serde_json::to_string(line).map_err(Failure::other)?))?)
        }
        Format::Yaml => {
            writeln!(out, "---")?;
            Ok(output::yaml(out, line)?)
        }
        Format::Name => Ok(writeln!(out, "{}", escape(&line.name))?),
        Format::Table | Format::Wide => {
            let now = jiff::Timestamp::now().strftime("%H:%M:%S%.3f").to_string();
            let missing = if line.full { format!(", {} numbers find no room", line.missing) } else { String::new() };
            Ok(writeln!(out, "{now}  {} containers{missing}", line.containers)?)
        }
    }
}

/// Prints each change that it sees, until it is gone.
async fn follow(client: &Client, mut last: Selected, out: &mut impl Write, format: Format) -> Result<(), Failure> {
    loop {
        tokio::time::sleep(PAUSE).await;
        let now: Selected = match client.get(&path(&last.name), &[]).await {
            Ok(now) => now,
            Err(error) => return Err(gone(error)),
        };
        // Of the same name, but made by another.
        if now.owner != last.owner || now.since != last.since {
            return Err(Failure::other("the selection was removed"));
        }
        if (now.changes, now.missing) != (last.changes, last.missing) && format != Format::Name {
            one(out, &now, format)?;
            out.flush()?;
        }
        last = now;
    }
}

fn gone(error: ClientError) -> Failure {
    match error {
        error if is_not_found(&error) => Failure::other("the selection was removed"),
        ClientError::NotThere { .. } => Failure::Other {
            error: "the tracker has ended, and the selection with it".into(),
            remedy: Some("start it again; a selection with --keep outlives it".into()),
        },
        error => error.into(),
    }
}

/// Removes it before this process ends, so that whoever waits for that finds it gone.
async fn end(client: &Client, name: &str) -> Result<(), Failure> {
    match client.delete::<Selected>(&path(name)).await {
        Err(ClientError::NotThere { .. }) => Ok(()),
        Err(error) if !is_not_found(&error) => Err(error.into()),
        _ => Ok(io::stdout().flush()?),
    }
}
