//! Lines: columns for people, JSON for programs.
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

use super::head::Head;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table
    Table,
    /// One JSON object in each line
    Json,
}

/// Where an event happened. Borrowed: nothing is copied before it is written.
#[derive(Serialize)]
pub(crate) struct Where<'a> {
    #[serde(serialize_with = "as_text")]
    pub(crate) time: Timestamp,
    pub(crate) answer: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) container: Option<Name<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Pod<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<&'a str>,
    pub(crate) pid: u32,
    pub(crate) mntns: u32,
    pub(crate) cgroup: u64,
}

#[derive(Serialize)]
pub(crate) struct Name<'a> {
    id: &'a str,
    name: &'a str,
    kind: Kind,
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    grade: Option<Grade>,
}

#[derive(Serialize)]
pub(crate) struct Pod<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

impl<'a> Where<'a> {
    pub(crate) fn new(head: &Head, known: &Enrichment<'a>) -> Self {
        let since_epoch = BootTime(head.time).to_unix().as_nanos();
        let time = i128::try_from(since_epoch).ok().and_then(|nanos| Timestamp::from_nanosecond(nanos).ok());
        Where {
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
            pid: head.pid,
            mntns: head.mntns,
            cgroup: head.cgroup,
        }
    }

    /// The first cells of its line in a table.
    pub(crate) fn cells(&self) -> [Cell<'_>; 4] {
        let container = self.container.as_ref().map_or(self.answer, |container| container.name);
        let pod = self.pod.as_ref().and_then(|pod| pod.name).unwrap_or("-");
        [
            Cell(12, self.time.strftime("%H:%M:%S%.3f").to_string().into()),
            Cell(20, container.into()),
            Cell(20, pod.into()),
            Cell(7, self.pid.to_string().into()),
        ]
    }

    /// Their names.
    pub(crate) const CELLS: [Cell<'static>; 4] = [
        Cell(12, std::borrow::Cow::Borrowed("TIME")),
        Cell(20, std::borrow::Cow::Borrowed("CONTAINER")),
        Cell(20, std::borrow::Cow::Borrowed("POD")),
        Cell(7, std::borrow::Cow::Borrowed("PID")),
    ];
}

fn as_text<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

/// A cell of a fixed width: longer text is cut, so that the columns of a list without an end stay columns.
pub(crate) struct Cell<'a>(pub(crate) usize, pub(crate) std::borrow::Cow<'a, str>);

/// One line of a table; its last text is as long as it is.
pub(crate) fn row<'a>(out: &mut dyn Write, cells: impl IntoIterator<Item = Cell<'a>>, last: &str) -> io::Result<()> {
    for Cell(width, cell) in cells {
        let text = Printable(&cell).to_string();
        write!(out, "{text:<width$.width$} ")?;
    }
    writeln!(out, "{}", Printable(last))
}

/// One line of JSON.
pub(crate) fn json(out: &mut dyn Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    writeln!(out)
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
        let cells = [Cell(4, "12:00".into()), Cell(5, "a-name-that-is-too-long".into()), Cell(3, "7".into())];
        row(&mut out, cells, "/bin/sh").unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "12:0 a-nam 7   /bin/sh\n");
    }
}
