//! `tracker watch`: every change, as it happens.

use std::collections::BTreeSet;
use std::io::Write;

use clap::Args;
use serde_json::Value;
use tracker::server::api::{Container, WatchLine};
use tracker::server::client::Client;

use super::columns::short;
use super::error::Failure;
use super::output::{Format, escape, escape_json};
use super::picked::Picked;

/// Print every change as it happens, until interrupted.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    #[command(flatten)]
    picked: Picked,
    /// How to print: `table` for people, `json` one value in each line, `name` ids alone.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) async fn run(watch: Watch, client: &Client, out: &mut impl Write) -> Result<(), Failure> {
    let mut lines = client.watch(&watch.picked.query()).await?;
    if watch.output == Format::Json {
        while let Some(line) = lines.next_text().await? {
            out.write_all(escape_json(&String::from_utf8_lossy(&line)).as_bytes())?;
            out.flush()?;
        }
        return Err(ended());
    }
    while let Some(line) = lines.next().await? {
        match watch.output {
            Format::Yaml => {
                writeln!(out, "---")?;
                super::output::yaml(out, &line)?;
            }
            Format::Name => names(out, &line)?,
            _ => people(out, &line)?,
        }
        out.flush()?;
    }
    Err(ended())
}

fn ended() -> Failure {
    Failure::Other {
        error: "the tracker ended the stream".into(),
        remedy: Some("it was stopped, or is being restarted: try again".into()),
    }
}

fn names(out: &mut impl Write, line: &WatchLine) -> std::io::Result<()> {
    match line {
        WatchLine::Bundle { containers, .. } => containers.iter().try_for_each(|c| writeln!(out, "{}", escape(&c.id))),
        WatchLine::Added { after: container, .. }
        | WatchLine::Updated { after: container, .. }
        | WatchLine::Removed { before: container, .. } => writeln!(out, "{}", escape(&container.id)),
        WatchLine::Lagged { .. } => Ok(()),
    }
}

fn people(out: &mut impl Write, line: &WatchLine) -> std::io::Result<()> {
    let now = jiff::Timestamp::now().strftime("%H:%M:%S%.3f").to_string();
    let mut print = |what: &str, container: &Container, more: &str| {
        let name = container.name.as_deref().unwrap_or("-");
        let (id, state) = (short(&container.id), container.state.name());
        let grade = container.grade.map_or("-", |grade| grade.name());
        let line = format!("{now}  {what:<8} {:<14} {:<20} {state:<12} {grade:<11} {more}", escape(id), escape(name));
        writeln!(out, "{}", line.trim_end())
    };
    match line {
        WatchLine::Bundle { containers, .. } => containers.iter().try_for_each(|c| print("present", c, &image(c))),
        WatchLine::Added { after, .. } => print("added", after, &image(after)),
        WatchLine::Updated { before, after, .. } => print("updated", after, &difference(before, after)),
        WatchLine::Removed { before, .. } => print("removed", before, ""),
        WatchLine::Lagged { missed } => {
            writeln!(out, "{now}  lagged   {missed} changes were missed; what is there now follows")
        }
    }
}

fn image(container: &Container) -> String {
    let name = container.image.as_ref().and_then(|image| image.name.as_deref());
    escape(name.unwrap_or_default()).into_owned()
}

/// The fields that changed, as `field: before -> after` where both are short.
fn difference(before: &Container, after: &Container) -> String {
    let (Ok(Value::Object(before)), Ok(Value::Object(after))) =
        (serde_json::to_value(before), serde_json::to_value(after))
    else {
        return String::new();
    };
    let fields: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = fields.into_iter().filter(|field| *field != "sequence" && before.get(*field) != after.get(*field));
    let described =
        changed.map(|field| match (before.get(field).and_then(scalar), after.get(field).and_then(scalar)) {
            (Some(before), Some(after)) => format!("{field}: {before} -> {after}"),
            (None, Some(after)) => format!("{field}: {after}"),
            _ => field.clone(),
        });
    escape(&described.collect::<Vec<_>>().join(", ")).into_owned()
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Object(fields) => fields.get("code").map(Value::to_string),
        _ => None,
    }
}
