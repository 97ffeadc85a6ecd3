//! A container's bundle, read while its runtime is held.

use std::path::{Component, Path, PathBuf};

use super::caller::Root;
use crate::container::ContainerId;
use crate::enrich::{oci, scope};
use crate::fact::Statement;

/// What the bundle below `root` says about the container; `config` is the file to read instead of its `config.json`. One
/// that cannot be read leaves a reason.
pub(super) fn statement(
    root: &Root,
    bundle: &Path,
    config: Option<&Path>,
    id: &ContainerId,
    oci_runtime: &str,
) -> Statement {
    let mut statement = Statement {
        bundle: Some(bundle.to_string_lossy().into()),
        runtime: Some(scope::runtime(bundle, id, oci_runtime)),
        ..Statement::default()
    };
    let file = bundle.join(config.unwrap_or(Path::new("config.json")));
    match root.read(&file, oci::MAX_LEN as u64) {
        Err(error) => statement.missing.push(("bundle", format!("read `{}`: {error}", file.display()).into())),
        Ok(bytes) => match oci::parse(&bytes) {
            Ok(facts) => facts.apply(&mut statement),
            Err(error) => statement.missing.push(("bundle", format!("{error}").into())),
        },
    }
    statement
}

/// Whether a bundle's `config.json` is there to be read and makes sense.
pub(super) fn is_readable(bundle: &Path) -> bool {
    Root::Host.read(&bundle.join("config.json"), oci::MAX_LEN as u64).is_ok_and(|bytes| oci::parse(&bytes).is_ok())
}

/// An absolute path without `.` and `..`, taken by their letter as Go's `filepath.Abs` does.
pub(super) fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => tidy.push(name),
            Component::ParentDir => {
                tidy.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    tidy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_their_dots_and_never_leave_the_root() {
        for (path, expected) in [("/a/./b/../c", "/a/c"), ("/../..", "/"), ("//x//", "/x"), ("/", "/")] {
            assert_eq!(tidy(Path::new(path)), Path::new(expected), "{path}");
        }
    }

    #[test]
    fn a_bundle_without_a_config_is_stated_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let id = ContainerId::new("c1").unwrap();
        let stated = statement(&Root::Host, directory.path(), None, &id, "runc");
        assert_eq!(stated.missing[0].0, "bundle");
        std::fs::write(directory.path().join("config.json"), "{").unwrap();
        assert_eq!(statement(&Root::Host, directory.path(), None, &id, "runc").missing.len(), 1);
        assert!(!is_readable(directory.path()));
        std::fs::write(directory.path().join("config.json"), r#"{"linux":{}}"#).unwrap();
        let stated = statement(&Root::Host, directory.path(), None, &id, "runc");
        assert!(stated.missing.is_empty() && stated.host_network == Some(true));
        assert!(is_readable(directory.path()));
    }
}
