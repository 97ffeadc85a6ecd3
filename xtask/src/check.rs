//! `check`: what has to be true before a change is pushed, without the tests that need root or minutes.

use anyhow::Result;

use crate::workspace::{cargo, succeed};

pub(crate) fn check() -> Result<()> {
    succeed(&mut cargo(&["fmt", "--all", "--check"]))?;
    for features in [&[][..], &["--no-default-features"]] {
        let mut clippy = cargo(&["clippy", "--workspace", "--all-targets"]);
        succeed(clippy.args(features).args(["--", "--deny", "warnings"]))?;
    }
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    // Private items are documented, too: links to them lead somewhere.
    succeed(doc.env("RUSTDOCFLAGS", "--deny warnings --allow rustdoc::private-intra-doc-links"))?;
    succeed(&mut cargo(&["test", "--package", "tracker-tests", "--test", "tidy"]))
}
