//! How answers are printed: tables for people, JSON, YAML and names for programs.
//!
//! What containers bring along (names, images, labels, paths) is not trusted: nothing in a table can move the cursor,
//! break a line or turn the direction of text.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::io::{self, Write};

use clap::{Args, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Serialize;
use tracker::server::clock::Wall;

use super::error::Failure;

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table with the columns that fit a terminal.
    #[default]
    Table,
    /// A table with all columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Identifiers alone, one in each line, for other commands.
    Name,
}

/// Options of every command that prints a list.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ListOptions {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
    /// Columns of the table, in this order.
    #[arg(long, value_delimiter = ',', value_name = "COLUMN,…")]
    pub(crate) columns: Vec<String>,
    /// Sort by this column; with `-` before it, from high to low.
    #[arg(long, value_name = "[-]COLUMN", allow_hyphen_values = true)]
    pub(crate) sort: Option<String>,
    /// Leave the table's first line out.
    #[arg(long)]
    pub(crate) no_headers: bool,
}

/// One column of a table of `T`s.
pub(crate) struct Column<T> {
    /// Its name, in capitals in the table's head.
    pub(crate) name: &'static str,
    /// Whether only `-o wide` shows it.
    pub(crate) wide: bool,
    /// What it shows.
    pub(crate) cell: fn(&T) -> Cell,
}

/// What one cell shows, and how it sorts. Absent values sort last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    rank: Rank,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Number(i128),
    Text(String),
    Absent,
}

impl Cell {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        let text = text.into();
        if text.is_empty() { Self::absent() } else { Self { rank: Rank::Text(text.clone()), text } }
    }

    pub(crate) fn number(number: impl Into<i128>) -> Self {
        let number = number.into();
        Self { text: number.to_string(), rank: Rank::Number(number) }
    }

    /// A moment, shown as the time since it.
    pub(crate) fn age(moment: Wall) -> Self {
        let moment = moment.0.as_nanosecond();
        let seconds = (Timestamp::now().as_nanosecond() - moment).max(0) / 1_000_000_000;
        Self { text: format!("{} ago", span(seconds)), rank: Rank::Number(moment) }
    }

    pub(crate) fn absent() -> Self {
        Self { text: "-".to_owned(), rank: Rank::Absent }
    }

    /// The same sorting, another text.
    pub(crate) fn shown_as(mut self, text: String) -> Self {
        self.text = text;
        self
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or_else(Cell::absent, Into::into)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Cell::text(text)
    }
}

impl From<u32> for Cell {
    fn from(number: u32) -> Self {
        Cell::number(number)
    }
}

/// Seconds as people say them: the largest unit that is at least two, else the next smaller one.
pub(crate) fn span(seconds: i128) -> String {
    match seconds {
        ..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Prints `rows` as `options` want them. `name` is what `-o name` prints of a row.
pub(crate) fn list<T: Serialize>(
    out: &mut impl Write,
    mut rows: Vec<T>,
    columns: &[Column<T>],
    name: fn(&T) -> &str,
    options: &ListOptions,
) -> Result<(), Failure> {
    if let Some(sort) = &options.sort {
        sort_rows(&mut rows, columns, sort)?;
    }
    match options.output {
        Format::Json => json(out, &rows)?,
        Format::Yaml => yaml(out, &rows)?,
        Format::Name => rows.iter().try_for_each(|row| writeln!(out, "{}", escape(name(row))))?,
        Format::Table | Format::Wide => {
            let chosen = choose(columns, options)?;
            table(out, &rows, &chosen, !options.no_headers)?;
        }
    }
    Ok(())
}

/// Pretty JSON, one value, one line break at its end.
pub(crate) fn json<T: Serialize>(out: &mut impl Write, value: &T) -> io::Result<()> {
    writeln!(out, "{}", escape_json(&serde_json::to_string_pretty(value)?))
}

/// JSON text without anything that a terminal would act upon: the same value. JSON itself spells out the lower control
/// characters alone, and what is spelt out here stands nowhere but in strings.
pub(crate) fn escape_json(text: &str) -> Cow<'_, str> {
    spell_out(text, |c| c != '\n' && acts(c), |c, to| to.push_str(&format!("\\u{:04x}", u32::from(c))))
}

/// YAML, one document.
pub(crate) fn yaml<T: Serialize>(out: &mut impl Write, value: &T) -> io::Result<()> {
    let text = serde_saphyr::to_string(value).map_err(io::Error::other)?;
    writeln!(out, "{}", text.trim_end_matches('\n'))
}

/// A table without lines, as `kubectl` and `docker` print it.
pub(crate) fn table<T>(
    out: &mut impl Write,
    rows: &[T],
    columns: &[&Column<T>],
    headers: bool,
) -> Result<(), io::Error> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if headers {
        table.set_header(columns.iter().map(|column| column.name.to_uppercase()));
    }
    for row in rows {
        table.add_row(columns.iter().map(|column| escape(&(column.cell)(row).text).into_owned()));
    }
    // The first column begins at the edge, and columns are two blanks apart.
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn choose<'c, T>(columns: &'c [Column<T>], options: &ListOptions) -> Result<Vec<&'c Column<T>>, Failure> {
    if options.columns.is_empty() {
        let wide = options.output == Format::Wide;
        return Ok(columns.iter().filter(|column| wide || !column.wide).collect());
    }
    options.columns.iter().map(|name| find(columns, name)).collect()
}

fn sort_rows<T>(rows: &mut [T], columns: &[Column<T>], sort: &str) -> Result<(), Failure> {
    let (name, descending) = sort.strip_prefix('-').map_or((sort, false), |name| (name, true));
    let column = find(columns, name)?;
    rows.sort_by_cached_key(|row| {
        let rank = (column.cell)(row).rank;
        if descending { Ranked::High(rank) } else { Ranked::Low(rank) }
    });
    Ok(())
}

fn find<'c, T>(columns: &'c [Column<T>], name: &str) -> Result<&'c Column<T>, Failure> {
    columns.iter().find(|column| column.name.eq_ignore_ascii_case(name.trim())).ok_or_else(|| {
        let known: Vec<_> = columns.iter().map(|column| column.name).collect();
        Failure::Usage {
            error: format!("there is no column `{}`", escape(name)),
            remedy: format!("the columns are {}", known.join(", ")),
        }
    })
}

/// A rank in one of two directions; what is absent is last in both.
#[derive(PartialEq, Eq)]
enum Ranked {
    Low(Rank),
    High(Rank),
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Ranked::High(a), Ranked::High(b)) if *a != Rank::Absent && *b != Rank::Absent => b.cmp(a),
            (Ranked::Low(a) | Ranked::High(a), Ranked::Low(b) | Ranked::High(b)) => a.cmp(b),
        }
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// `text` without anything that a terminal would act upon instead of showing it.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    spell_out(text, acts, |c, to| to.extend(c.escape_default()))
}

/// Whether a terminal does something else than to show it: control characters, and those that turn the direction of text.
fn acts(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn spell_out(text: &str, which: fn(char) -> bool, how: fn(char, &mut String)) -> Cow<'_, str> {
    if !text.contains(which) {
        return Cow::Borrowed(text);
    }
    let mut spelt = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if which(c) { how(c, &mut spelt) } else { spelt.push(c) }
    }
    Cow::Owned(spelt)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Serialize)]
    struct Row {
        id: &'static str,
        pid: Option<u32>,
    }

    const COLUMNS: &[Column<Row>] = &[
        Column { name: "id", wide: false, cell: |row| row.id.into() },
        Column { name: "pid", wide: false, cell: |row| row.pid.into() },
        Column { name: "length", wide: true, cell: |row| Cell::number(row.id.len() as i128) },
    ];

    fn print(options: &ListOptions) -> String {
        let rows =
            vec![Row { id: "b", pid: Some(10) }, Row { id: "long\x1b[2J", pid: None }, Row { id: "a", pid: Some(9) }];
        let mut out = Vec::new();
        list(&mut out, rows, COLUMNS, |row| row.id, options).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn tables_are_aligned_and_cannot_be_broken_by_their_content() {
        let expected = [
            "ID             PID", //
            "b              10",
            r"long\u{1b}[2J  -",
            "a              9",
        ];
        assert_eq!(print(&ListOptions::default()).lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn columns_and_headers_are_chosen() {
        let options =
            ListOptions { columns: vec!["LENGTH".into(), "id".into()], no_headers: true, ..Default::default() };
        assert!(print(&options).starts_with("1  b\n"), "{}", print(&options));
        let wide = ListOptions { output: Format::Wide, ..Default::default() };
        assert!(print(&wide).lines().next().unwrap().ends_with("LENGTH"));
    }

    #[test]
    fn numbers_sort_as_numbers_and_absent_ones_last() {
        for (sort, expected) in [("pid", ["a", "b", "long"]), ("-pid", ["b", "a", "long"]), ("ID", ["a", "b", "long"])]
        {
            let options = ListOptions { sort: Some(sort.into()), output: Format::Name, ..Default::default() };
            let printed = print(&options);
            let matches = printed.lines().zip(expected).all(|(line, id)| line.starts_with(id));
            assert!(matches, "{sort}: {printed}");
        }
    }

    #[test]
    fn a_column_that_does_not_exist_is_a_usage_error_that_lists_those_that_do() {
        let options = ListOptions { sort: Some("size".into()), ..Default::default() };
        let error = list(&mut Vec::new(), vec![], COLUMNS, |row: &Row| row.id, &options).unwrap_err();
        let Failure::Usage { remedy, .. } = error else { panic!("{error}") };
        assert!(remedy.contains("id, pid, length"), "{remedy}");
    }

    #[test]
    fn programs_get_one_value() {
        let json = print(&ListOptions { output: Format::Json, ..Default::default() });
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value.as_array().unwrap().len(), 3);
        let yaml = print(&ListOptions { output: Format::Yaml, ..Default::default() });
        assert!(yaml.contains("id: a") && yaml.contains("pid: 10"), "{yaml}");
    }

    #[test]
    fn spans_read_like_speech() {
        let spans = [0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(span);
        assert_eq!(spans, ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]);
    }

    proptest! {
        #[test]
        fn no_text_acts_on_a_terminal(text in any::<String>()) {
            prop_assert!(!escape(&text).chars().any(acts));
        }

        #[test]
        fn json_says_the_same_and_acts_on_no_terminal(text in "(\\PC|[\u{0}-\u{9f}\u{2028}-\u{202e}])*") {
            let mut out = Vec::new();
            json(&mut out, &text).unwrap();
            let printed = String::from_utf8(out).unwrap();
            prop_assert!(!printed.trim_end_matches('\n').chars().any(acts), "{printed:?}");
            prop_assert_eq!(serde_json::from_str::<String>(&printed).unwrap(), text);
        }
    }
}
