//! What is written about the layout in other places than `plane.rs`: the page that readers are written from, and the
//! readers in other languages.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fmt::Write;
use std::fs;
use std::path::Path;

use tracker_common::plane::{
    BpfRow, Entry, Field, GRADES, Geometry, Header, KINDS, OLD_NS, Row, SCHEMA, STATES, TEXT_CLASSES, TEXT_MAX, VERSION,
};

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(root.join(path)).unwrap()
}

fn table(fields: &[Field]) -> String {
    let mut table = String::from("| offset | bytes | field | what it is |\n|---|---|---|---|\n");
    for Field { name, at, len, about } in fields {
        writeln!(table, "| {at} | {len} | `{name}` | {about} |").unwrap();
    }
    table
}

#[track_caller]
fn check_contains(path: &str, wanted: &[String]) {
    let text = read(path);
    for wanted in wanted {
        assert!(text.contains(wanted.as_str()), "{path} does not contain:\n{wanted}");
    }
}

#[test]
fn the_page_has_every_field_where_it_is() {
    let tables = [Header::FIELDS, Row::FIELDS, Entry::FIELDS, BpfRow::FIELDS].map(table);
    check_contains("docs/plane.md", &tables);
}

#[test]
fn the_page_has_the_numbers() {
    let numbers = [
        format!("version {VERSION} "),
        format!("`{SCHEMA:#018x}`"),
        format!("`{}`", Row::LEN),
        format!("{TEXT_MAX} bytes"),
        format!("{} seconds", OLD_NS / 1_000_000_000),
        format!("{} bytes at 16,384 rows", Geometry::of(16_384).file_len),
        format!("2^{}", Geometry::MAX_CAPACITY.ilog2()),
    ];
    check_contains("docs/plane.md", &numbers);
    let classes = TEXT_CLASSES.map(|class| format!("| {} | capacity / {} |", class.len, class.share));
    check_contains("docs/plane.md", &classes);
}

#[test]
fn readers_in_other_languages_read_this_schema() {
    let c = [
        format!("#define TRACKER_PLANE_VERSION {VERSION}u\n"),
        format!("#define TRACKER_PLANE_SCHEMA {SCHEMA:#018x}ull\n"),
        format!("#define TRACKER_TEXT_MAX {TEXT_MAX}u\n"),
    ];
    check_contains("tracker-common/readers/c/tracker_plane.h", &c);
    let python = [format!("\nVERSION = {VERSION}\n"), format!("\nSCHEMA = 0x{SCHEMA:016X}\n")];
    check_contains("tracker-common/readers/python/tracker_plane.py", &python);
    for reader in ["tracker-common/readers/c/tracker_plane.h", "tracker-common/readers/python/tracker_plane.py"] {
        for names in [&KINDS[..], &STATES, &GRADES] {
            check_contains(reader, &[format!("\"unknown\", \"{}\"", names.join("\", \""))]);
        }
    }
}
