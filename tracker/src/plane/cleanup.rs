//! Removing what a tracker leaves for its successor, where there will be none: pins, and the plane's file.
//!
//! Only what is a tracker's is removed, and nothing that a running tracker writes, unless that is forced.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tracker_common::plane::MAGIC;

use super::pins::{Directory, PinsError, Removed, SELECTIONS, remove_pins};

/// Why something was not removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The directory of pins is not what it should be, or is in use.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A running tracker writes the file.
    #[error("the plane `{}` is written by a tracker that is running", path.display())]
    Owned {
        /// The file.
        path: PathBuf,
    },
    /// It is something else.
    #[error("`{}` is not a plane", path.display())]
    NotPlane {
        /// The file.
        path: PathBuf,
    },
    /// The system refused something.
    #[error("remove `{}`: {error}", path.display())]
    Remove {
        /// What.
        path: PathBuf,
        /// What came back.
        error: io::Error,
    },
}

impl CleanupError {
    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            CleanupError::Pins(PinsError::Owned { .. }) | CleanupError::Owned { .. } => {
                "stop the tracker first; `--force` takes it away all the same"
            }
            CleanupError::Pins(PinsError::NotOurs { .. }) => "look what it is; nothing in it was touched",
            CleanupError::Pins(error) => error.remedy(),
            CleanupError::NotPlane { .. } => "name the file that `path` under `[plane]` names",
            CleanupError::Remove { .. } => "run as root",
        }
    }
}

/// Removes every pin of a tracker's below `directory`: maps, links of its probes, which end with them, and selections. One
/// that is not there is as good as removed. `force`: although a tracker runs, which then goes on without.
pub fn pins(directory: &Path, force: bool) -> Result<Removed, CleanupError> {
    let lock = |path: &Path| match Directory::own_existing(path) {
        Err(PinsError::Owned { .. }) if force => Ok(None),
        locked => locked,
    };
    let whole = lock(directory)?;
    let selections = lock(&directory.join(SELECTIONS))?;
    if whole.is_none() && selections.is_none() && !directory.exists() {
        return Ok(Removed::default());
    }
    remove_pins(directory).map_err(|error| CleanupError::Remove { path: directory.to_owned(), error })
}

/// Removes the plane's file; whether it was there. Who has it mapped keeps what is in it.
pub fn file(path: &Path, force: bool) -> Result<bool, CleanupError> {
    let failed = |error| CleanupError::Remove { path: path.to_owned(), error };
    let mut file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    let mut magic = [0; MAGIC.len()];
    if !file.metadata().map_err(failed)?.is_file() || file.read_exact(&mut magic).is_err() || magic != MAGIC {
        return Err(CleanupError::NotPlane { path: path.to_owned() });
    }
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Err((_, Errno::EWOULDBLOCK)) if !force => Err(CleanupError::Owned { path: path.to_owned() }),
        Err((_, errno)) if errno != Errno::EWOULDBLOCK => Err(failed(errno.into())),
        _lock => fs::remove_file(path).map(|()| true).map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_removed_if_it_is_a_plane_that_nobody_writes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plane");
        assert!(!file(&path, false).unwrap());
        fs::write(&path, "TRKPLAN? and more").unwrap();
        assert!(matches!(file(&path, true), Err(CleanupError::NotPlane { .. })));
        assert!(matches!(file(directory.path(), true), Err(CleanupError::NotPlane { .. })));

        fs::write(&path, [&MAGIC[..], &[0; 100]].concat()).unwrap();
        let writer = Flock::lock(fs::File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        assert!(matches!(file(&path, false), Err(CleanupError::Owned { .. })));
        assert!(file(&path, true).unwrap());
        drop(writer);
        fs::write(&path, MAGIC).unwrap();
        assert!(file(&path, false).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn pins_elsewhere_than_in_a_bpf_file_system_are_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("owner"), "").unwrap();
        assert!(matches!(pins(directory.path(), true), Err(CleanupError::Pins(PinsError::NotBpf { .. }))));
        assert!(directory.path().join("owner").exists());
        assert_eq!(pins(&directory.path().join("none"), false).unwrap().pins, Vec::<PathBuf>::new());
    }
}
