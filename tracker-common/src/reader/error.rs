//! Why a plane cannot be opened, and what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::plane::lookup::Unreadable;

/// Why a plane cannot be opened.
#[derive(Debug)]
pub struct OpenError {
    /// Which plane.
    pub path: PathBuf,
    /// Why.
    pub cause: Cause,
}

/// What is in the way.
#[derive(Debug)]
pub enum Cause {
    /// The file cannot be opened or mapped.
    Io(io::Error),
    /// It is no regular file: a link, a directory, a device.
    NotAFile,
    /// It is no plane, or none that this reader reads.
    Unreadable(Unreadable),
    /// It was written before this machine was started last: all of its times, pids and namespaces are another boot's.
    OtherBoot,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "open the plane `{}`: ", self.path.display())?;
        match &self.cause {
            Cause::Io(error) => match error.kind() {
                io::ErrorKind::NotFound => {
                    f.write_str("there is none: start `tracker run`, or name the path of its `[plane]`")
                }
                io::ErrorKind::PermissionDenied => f.write_str(
                    "permission denied: run as root, or as a member of the group that `group` in the tracker's `[plane]` names",
                ),
                _ => write!(f, "{error}"),
            },
            Cause::NotAFile => f.write_str("not a regular file: name the plane itself, not a link to it"),
            Cause::Unreadable(unreadable) => write!(f, "{unreadable}"),
            Cause::OtherBoot => f.write_str("it is of an earlier boot of this machine: start `tracker run`"),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            Cause::Io(error) => Some(error),
            Cause::Unreadable(unreadable) => Some(unreadable),
            Cause::NotAFile | Cause::OtherBoot => None,
        }
    }
}
