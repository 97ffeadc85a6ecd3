//! `tracker images`: the images that runtimes have stored.

use std::io::Write;

use clap::Args;
use tracker::server::api::image::Image;
use tracker::server::client::Client;

use super::columns::{familiar, short};
use super::error::Failure;
use super::output::{self, Cell, Column, ListOptions};

/// List the images that runtimes have stored.
#[derive(Debug, Args)]
pub(crate) struct Images {
    #[command(flatten)]
    list: ListOptions,
}

const COLUMNS: &[Column<Image>] = &[
    Column { name: "name", wide: false, cell: name },
    Column { name: "id", wide: false, cell: id },
    Column { name: "size", wide: false, cell: size },
    Column { name: "platform", wide: false, cell: |image| image.platform.as_deref().into() },
    Column { name: "built", wide: false, cell: |image| image.created_at.map_or_else(Cell::absent, Cell::age) },
    Column { name: "containers", wide: false, cell: |image| Cell::number(image.containers as i128) },
    Column { name: "source", wide: false, cell: |image| Cell::text(image.source.name()) },
    Column { name: "namespace", wide: false, cell: |image| image.namespace.as_deref().into() },
    Column { name: "names", wide: true, cell: |image| Cell::text(image.names.join(" ")) },
    Column { name: "digests", wide: true, cell: |image| Cell::text(image.digests.join(" ")) },
    Column { name: "full-id", wide: true, cell: |image| image.id.as_deref().into() },
];

pub(crate) async fn run(images: Images, client: &Client, out: &mut impl Write) -> Result<(), Failure> {
    let stored: Vec<Image> = client.get("/v1/images", &[]).await?;
    output::list(out, stored, COLUMNS, Image::display_name, &images.list)
}

fn name(image: &Image) -> Cell {
    let name = image.display_name();
    Cell::text(name).shown_as(familiar(name).to_owned())
}

fn id(image: &Image) -> Cell {
    let Some(id) = &image.id else { return Cell::absent() };
    Cell::text(&**id).shown_as(short(id.strip_prefix("sha256:").unwrap_or(id)).to_owned())
}

/// In the units of `docker images`: powers of a thousand.
fn size(image: &Image) -> Cell {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let Some(size) = image.size else { return Cell::absent() };
    let (mut shown, mut unit) = (size as f64, 0);
    while shown >= 999.5 && unit + 1 < UNITS.len() {
        shown /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && shown < 99.95);
    Cell::number(size).shown_as(format!("{shown:.digits$} {}", UNITS[unit]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_sorted_by_their_bytes() {
        let image = |size| {
            serde_json::from_value(serde_json::json!({"source": "docker", "size": size, "containers": 0})).unwrap()
        };
        let columns = [Column { name: "size", wide: false, cell: size }];
        let images = [0_u64, 999, 1_000, 1_240_000, 77_800_000, 999_600_000, u64::MAX].map(image);
        let options = ListOptions { sort: Some("-size".into()), no_headers: true, ..ListOptions::default() };
        let mut out = Vec::new();
        assert!(output::list(&mut out, images.into(), &columns, Image::display_name, &options).is_ok());
        let shown = String::from_utf8(out).unwrap();
        let shown: Vec<&str> = shown.lines().map(str::trim_end).collect();
        assert_eq!(shown, ["18446744 TB", "1.0 GB", "77.8 MB", "1.2 MB", "1.0 kB", "999 B", "0 B"]);
    }
}
