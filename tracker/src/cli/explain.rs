//! `tracker explain`: a container's story.

use std::io::Write;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use tracker::server::api::{Story, StoryLine};
use tracker::server::client::{Client, encode_segment};

use super::columns::CONTAINER;
use super::error::Failure;
use super::output::{self, Format, ListOptions, escape};

/// Tell who saw a container when, whose word each field is, and why something is missing.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    #[command(flatten)]
    who: Who,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Who {
    /// Its id, the beginning of its id, or its name.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    id: Option<String>,
    /// Its init pid.
    #[arg(long)]
    pid: Option<u32>,
    /// Inode number of its mount namespace.
    #[arg(long, value_name = "INODE")]
    mntns: Option<u32>,
}

pub(crate) async fn run(explain: Explain, client: &Client, out: &mut impl Write) -> Result<(), Failure> {
    let story: Story = match explain.who {
        Who { id: Some(id), .. } => client.get(&format!("/v1/explain/{}", encode_segment(&id)), &[]).await?,
        Who { pid: Some(pid), .. } => client.get("/v1/explain", &[("pid", &pid.to_string())]).await?,
        Who { mntns, .. } => {
            let ns = mntns.unwrap_or_default().to_string();
            client.get("/v1/explain", &[("mntns", &ns)]).await?
        }
    };
    match explain.output {
        Format::Json => output::json(out, &story)?,
        Format::Yaml => output::yaml(out, &story)?,
        Format::Name => writeln!(out, "{}", escape(&story.container.id))?,
        Format::Table | Format::Wide => tell(out, story, explain.output)?,
    }
    Ok(())
}

fn tell(out: &mut impl Write, story: Story, output: Format) -> Result<(), Failure> {
    let Story { container, excluded, timeline, left_out, fields, missing } = story;
    let options = ListOptions { output, ..ListOptions::default() };
    output::list(out, vec![container], CONTAINER, |container| &container.id, &options)?;

    if let Some(rule) = excluded {
        writeln!(out, "\nLeft out of every list and look-up by {}", escape(&rule))?;
    }
    writeln!(out, "\nWhat happened")?;
    print_timeline(out, &timeline)?;
    if left_out > 0 {
        writeln!(out, "  ({left_out} lines from the middle of its life were not kept)")?;
    }
    if !fields.is_empty() {
        writeln!(out, "\nWhose word each field is")?;
        // One line for each source: there are few sources and many fields.
        let mut sources: Vec<_> = fields.iter().map(|field| field.source).collect();
        sources.sort_unstable();
        sources.dedup();
        for source in sources {
            let its: Vec<_> = fields.iter().filter(|field| field.source == source).map(|field| &*field.field).collect();
            writeln!(out, "  {:<11} {}", source.name(), escape(&its.join(", ")))?;
        }
    }
    if !missing.is_empty() {
        writeln!(out, "\nWhat is missing, and why")?;
        for missing in missing {
            writeln!(out, "  {:<12} {}", escape(&missing.field), escape(&missing.reason))?;
        }
    }
    Ok(())
}

/// The first line's moment in full, the others by the time since the first.
fn print_timeline(out: &mut impl Write, timeline: &[StoryLine]) -> std::io::Result<()> {
    let Some(first) = timeline.first() else { return writeln!(out, "  nothing was noted") };
    writeln!(out, "  {}", first.at)?;
    for line in timeline {
        let after = after(line.boot_ns.saturating_sub(first.boot_ns));
        writeln!(out, "  {after:>12}  {:<11} {}", line.source.name(), escape(&line.text))?;
    }
    Ok(())
}

/// A time between two lines, with three digits behind the point.
fn after(nanoseconds: u64) -> String {
    match nanoseconds {
        ..1_000_000_000 => format!("+{}.{:03} ms", nanoseconds / 1_000_000, nanoseconds / 1_000 % 1_000),
        _ => format!("+{}.{:03} s", nanoseconds / 1_000_000_000, nanoseconds / 1_000_000 % 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::after;

    #[test]
    fn short_times_are_told_in_milliseconds() {
        let told = [0, 1_000, 12_345_678, 999_999_999, 1_000_000_000, 3_600_000_000_000].map(after);
        assert_eq!(told, ["+0.000 ms", "+0.001 ms", "+12.345 ms", "+999.999 ms", "+1.000 s", "+3600.000 s"]);
    }
}
