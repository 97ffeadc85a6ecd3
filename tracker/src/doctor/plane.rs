//! The plane's file: whether there is one, who writes it, and whether everybody has room in it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{AccessFlags, access};
use tracker_common::reader::{Condition, Plane, Status};

use super::{Check, Verdict};
use crate::plane::Config;

const SUBJECT: &str = "plane";
const COSTS: &str = "other programs cannot look up containers in a file";
const REMEDY: &str = "set `plane.path` to a place in a tmpfs that root can write";

pub(super) fn check(config: &Config) -> Check {
    let path = &config.path;
    if config.enabled == Some(false) {
        return Check::ok(SUBJECT, "off, by `plane.enabled`");
    }
    let lacking = |found: String| Check::lacking(Verdict::Warn, SUBJECT, found, COSTS, REMEDY);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match place(path) {
            Ok(found) => Check::ok(SUBJECT, format!("none yet at `{}`; {found}", path.display())),
            Err(found) => lacking(found),
        },
        Err(error) => lacking(format!("look at `{}`: {error}", path.display())),
        Ok(file) if !file.is_file() || file.uid() != 0 => {
            lacking(format!("`{}` is no regular file of root's", path.display()))
        }
        Ok(_) => match Plane::open(path) {
            Ok(plane) => written(&plane.status()),
            // It takes whatever is no plane of this version's away.
            Err(error) => Check::ok(SUBJECT, format!("to be made anew at the next start: {error}")),
        },
    }
}

fn written(status: &Status) -> Check {
    let Status { condition, age, owner_pid, epoch, capacity, rows, waiting, .. } = status;
    if *waiting > 0 {
        return Check::lacking(
            Verdict::Warn,
            SUBJECT,
            format!("full: {waiting} containers wait for one of {capacity} rows"),
            "other programs cannot look up those that wait",
            "raise `plane.capacity` and start the tracker again",
        );
    }
    let by = match condition {
        Condition::Fresh => format!("written by the process {owner_pid}"),
        condition => {
            format!("{}: last written {:.0} s ago by the process {owner_pid}", condition.name(), age.as_secs_f64())
        }
    };
    Check::ok(SUBJECT, format!("{by}, {rows} of {capacity} rows in use, epoch {epoch}"))
}

/// Whether a file can be made there.
fn place(path: &Path) -> Result<&'static str, String> {
    let mut directories = path.ancestors().skip(1);
    let there = directories.find(|directory| directory.as_os_str().is_empty() || directory.exists());
    let directory = there.filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match access(directory, AccessFlags::W_OK) {
        Ok(()) => Ok("it can be made"),
        Err(errno) => Err(format!("write to `{}`: {}", directory.display(), errno.desc())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &Path) -> Check {
        check(&Config { path: path.to_owned(), ..Config::default() })
    }

    #[test]
    fn what_lies_there_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        assert!(of(&directory.path().join("made/on/the/way/plane")).found.contains("it can be made"));
        assert!(of(directory.path()).found.contains("no regular file"));
        assert_eq!(of(Path::new("/dev/null/plane")).verdict, Verdict::Warn);
        let off = Config { enabled: Some(false), ..Config::default() };
        assert!(check(&off).found.contains("off"));
    }
}
