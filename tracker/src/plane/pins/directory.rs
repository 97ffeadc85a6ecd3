//! The directory of pins: in a BPF file system, root's alone, and locked by whoever owns what is pinned in it.
//!
//! The lock is `flock` on the directory itself. It ends with its holder, however that ends, and a holder that is only
//! slow keeps it: two trackers never write the same maps.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, fstatfs, statfs};
use nix::unistd::{AccessFlags, access, geteuid};

use super::PinsError;

/// Where a BPF file system is mounted when there is none.
const BPFFS: &str = "/sys/fs/bpf";
/// Pins that the probes have for themselves.
pub(crate) const OWN: &str = "own";
/// Pins of the probes' links.
pub(crate) const LINKS: &str = "links";
/// What may lie in the directory: everything else is somebody else's.
const NAMES: [&str; 7] = ["owner", "mount_namespaces", "cgroups", "rows", OWN, LINKS, SELECTIONS];
/// Pins of selections.
pub(crate) const SELECTIONS: &str = "selections";
/// What a pin's name begins with until it takes its predecessor's place. A BPF file system allows no dots.
const NEW: &str = "new_";

/// The directory, locked.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Directory {
    /// Makes it if it is missing, in a BPF file system that is mounted if it is missing, and takes its lock.
    pub(crate) fn own(path: &Path) -> Result<Directory, PinsError> {
        mount_if_missing(path)?;
        make(path).map_err(|error| PinsError::Make { path: path.to_owned(), error })?;
        let lock = Self::lock(path)?;
        Ok(Directory { path: path.to_owned(), _lock: lock })
    }

    /// Takes the lock of one that is there; `None` where nothing is.
    pub(crate) fn own_existing(path: &Path) -> Result<Option<Directory>, PinsError> {
        match Self::lock(path) {
            Ok(lock) => Ok(Some(Directory { path: path.to_owned(), _lock: lock })),
            Err(PinsError::Make { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn lock(path: &Path) -> Result<Flock<File>, PinsError> {
        match Flock::lock(open(path)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) => Err(PinsError::Owned { path: path.to_owned() }),
            Err((_, errno)) => Err(PinsError::Make { path: path.to_owned(), error: errno.into() }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where something of this name is pinned; a name may be below [`OWN`] or [`LINKS`].
    pub(crate) fn pin(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where the successor of a pin is pinned until [`replace`](Directory::replace). What an earlier try left there is
    /// removed.
    pub(crate) fn new_pin(&self, name: &str) -> PathBuf {
        let pin = self.pin(name);
        let file = pin.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let new = pin.with_file_name(format!("{NEW}{file}"));
        let _ = fs::remove_file(&new);
        new
    }

    /// Puts the successor of a pin in its place, in one step.
    pub(crate) fn replace(&self, name: &str) -> io::Result<()> {
        let pin = self.pin(name);
        let file = pin.file_name().unwrap_or_default().to_string_lossy().into_owned();
        fs::rename(pin.with_file_name(format!("{NEW}{file}")), pin)
    }

    /// Makes a directory in it.
    pub(crate) fn make(&self, name: &str) -> io::Result<()> {
        make_one(&self.path.join(name))
    }

    /// Removes one of the directories in it and what is pinned there; returns how many pins that were.
    pub(crate) fn remove(&self, name: &str) -> io::Result<usize> {
        Ok(clear(&self.path.join(name))?.len())
    }
}

/// Removes every pin of ours below a directory, and that directory if nothing else is in it. What is in the directory has
/// been looked at, by taking its lock or trying to.
pub(crate) fn remove_pins(path: &Path) -> io::Result<Removed> {
    let mut removed = Removed::default();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !NAMES.contains(&name.strip_prefix(NEW).unwrap_or(&name)) {
            removed.left.push(entry.path());
        } else if entry.file_type()?.is_dir() {
            removed.pins.extend(clear(&entry.path())?);
        } else {
            fs::remove_file(entry.path())?;
            removed.pins.push(entry.path());
        }
    }
    removed.pins.sort();
    if removed.left.is_empty() {
        fs::remove_dir(path)?;
    }
    Ok(removed)
}

/// What `remove_pins` did.
#[derive(Debug, Default)]
pub struct Removed {
    /// Pins that are gone.
    pub pins: Vec<PathBuf>,
    /// What is not the tracker's and was left where it is.
    pub left: Vec<PathBuf>,
}

/// Opens the directory, and makes sure that it is one that nobody but root has had a hand in.
pub(crate) fn open(path: &Path) -> Result<File, PinsError> {
    let failed = |error| PinsError::Make { path: path.to_owned(), error };
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let directory = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let kind = fstatfs(&directory).map_err(|errno| failed(errno.into()))?;
    if kind.filesystem_type() != BPF_FS_MAGIC {
        return Err(PinsError::NotBpf { path: path.to_owned() });
    }
    let metadata = directory.metadata().map_err(failed)?;
    // At the root of the file system are everybody's pins.
    let parent = path.parent().map(fs::metadata).transpose().map_err(failed)?;
    if parent.is_none_or(|parent| parent.dev() != metadata.dev()) {
        return Err(PinsError::Root { path: path.to_owned() });
    }
    if metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err(PinsError::NotOurs { path: path.to_owned(), uid: metadata.uid(), mode: metadata.mode() & 0o7777 });
    }
    Ok(directory)
}

/// Whether a directory that is missing can be made; `false` where a BPF file system has to be mounted first.
pub(crate) fn can_be_made(path: &Path) -> Result<bool, PinsError> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    let failed = |errno: Errno| PinsError::Make { path: existing.to_owned(), error: errno.into() };
    let is_bpf = is_below_bpf(path, existing)?;
    access(existing, AccessFlags::W_OK).map_err(failed)?;
    Ok(is_bpf)
}

/// Whether `existing`, above `path`, is in a BPF file system; an error where that is not to be mounted.
fn is_below_bpf(path: &Path, existing: &Path) -> Result<bool, PinsError> {
    let kind = statfs(existing).map_err(|errno| PinsError::Make { path: existing.to_owned(), error: errno.into() })?;
    if kind.filesystem_type() == BPF_FS_MAGIC {
        return Ok(true);
    }
    if !path.starts_with(BPFFS) || path == Path::new(BPFFS) {
        return Err(PinsError::NotBpf { path: path.to_owned() });
    }
    Ok(false)
}

/// Mounts a BPF file system where they are mounted, if `path` is to be below that and there is none.
fn mount_if_missing(path: &Path) -> Result<(), PinsError> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    if is_below_bpf(path, existing)? {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), BPFFS, Some("bpf"), flags, Some("mode=700"))
        .map_err(|errno| PinsError::Mount { path: BPFFS.into(), error: errno.into() })
}

fn make(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    missing.into_iter().rev().try_for_each(make_one)
}

fn make_one(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Removes a directory of pins and the directories in it; returns what was removed, pins alone. One that is not there
/// is as good as removed.
fn clear(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut removed = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            removed.extend(clear(&entry.path())?);
        } else {
            fs::remove_file(entry.path())?;
            removed.push(entry.path());
        }
    }
    fs::remove_dir(path)?;
    Ok(removed)
}
