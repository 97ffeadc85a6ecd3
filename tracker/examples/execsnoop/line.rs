//! One line for each exec: columns for people, JSON for programs.
//!
//! Names of containers, tasks and files are whatever somebody chose. In the table nothing of them can move the cursor,
//! break the line or turn the direction of text.

use std::fmt::{self, Write as _};
use std::io::{self, Write};

use clap::ValueEnum;
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use tracker::container::{Grade, Kind, State};
use tracker::{BootTime, Enrichment, Verdict};

use crate::event::Exec;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table
    Table,
    /// One JSON object in each line
    Json,
}

/// What a line tells. Borrowed: nothing is copied before it is written.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(serialize_with = "as_text")]
    time: Timestamp,
    answer: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<Name<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Pod<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
    pid: u32,
    mntns: u32,
    cgroup: u64,
    comm: &'a str,
    filename: &'a str,
}

#[derive(Serialize)]
struct Name<'a> {
    id: &'a str,
    name: &'a str,
    kind: Kind,
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    grade: Option<Grade>,
}

#[derive(Serialize)]
struct Pod<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

impl Format {
    /// What comes before the first line.
    pub(crate) fn head(self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Format::Table => row(out, ["TIME", "CONTAINER", "POD", "IMAGE", "PID", "COMM"], "FILENAME"),
            Format::Json => Ok(()),
        }
    }

    /// One exec, and what is known about where it happened.
    pub(crate) fn line(self, out: &mut impl Write, exec: &Exec, known: &Enrichment<'_>) -> io::Result<()> {
        let since_epoch = BootTime(exec.time).to_unix().as_nanos();
        let time = i128::try_from(since_epoch).ok().and_then(|nanos| Timestamp::from_nanosecond(nanos).ok());
        let (comm, filename) = (String::from_utf8_lossy(exec.comm()), String::from_utf8_lossy(exec.filename()));
        let line = Line {
            time: time.unwrap_or_default(),
            answer: match known.verdict {
                Verdict::Host => "host",
                Verdict::Unknown => "unknown",
                // A mount namespace is never shared between containers.
                Verdict::Container | Verdict::Shared => "container",
            },
            container: known.container.map(|container| Name {
                id: &container.id,
                name: container.display_name(),
                kind: container.kind,
                state: container.state,
                grade: container.grade,
            }),
            pod: known.pod.map(|pod| Pod { namespace: pod.namespace.as_deref(), name: pod.name.as_deref() }),
            image: known.container.and_then(|container| container.image.as_ref()?.name.as_deref()),
            pid: exec.pid,
            mntns: exec.mntns,
            cgroup: exec.cgroup,
            comm: &comm,
            filename: &filename,
        };
        match self {
            Format::Table => line.row(out),
            Format::Json => {
                serde_json::to_writer(&mut *out, &line)?;
                writeln!(out)
            }
        }
    }
}

impl Line<'_> {
    fn row(&self, out: &mut impl Write) -> io::Result<()> {
        let container = self.container.as_ref().map_or(self.answer, |container| container.name);
        let pod = self.pod.as_ref().and_then(|pod| pod.name).unwrap_or("-");
        let (time, pid) = (self.time.strftime("%H:%M:%S%.3f").to_string(), self.pid.to_string());
        row(out, [&time, container, pod, self.image.unwrap_or("-"), &pid, self.comm], self.filename)
    }
}

fn as_text<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

/// Cells of a fixed width, longer text cut, so that the columns of a list without an end stay columns.
fn row(out: &mut impl Write, cells: [&str; 6], last: &str) -> io::Result<()> {
    const WIDTHS: [usize; 6] = [12, 20, 20, 24, 7, 15];
    for (cell, width) in cells.into_iter().zip(WIDTHS) {
        let text = Printable(cell).to_string();
        write!(out, "{text:<width$.width$} ")?;
    }
    writeln!(out, "{}", Printable(last))
}

/// Text in which what a terminal would obey or hide is spelt out.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '"' | '\'' => f.write_char(c),
            // Control characters, and those that are invisible or change the direction of text.
            c => write!(f, "{}", c.escape_debug()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_speak_to_the_terminal() {
        let said = |text: &str| Printable(text).to_string();
        assert_eq!(said("/bin/it's \"ä\""), "/bin/it's \"ä\"");
        assert_eq!(said("a\nb\r\x1b[2J\\"), r"a\nb\r\u{1b}[2J\\");
        assert_eq!(said("\u{202e}gpj"), r"\u{202e}gpj");
    }

    #[test]
    fn cells_keep_their_width() {
        let mut out = Vec::new();
        row(&mut out, ["12:00:00.000", "a-name-that-is-too-long-for-it", "-", "-", "7", "sh"], "/bin/sh").unwrap();
        let line = String::from_utf8(out).unwrap();
        assert!(line.starts_with("12:00:00.000 a-name-that-is-too-l - "), "{line}");
        assert!(line.ends_with("sh              /bin/sh\n"), "{line}");
    }
}
