//! The plane's file: found or made, locked, mapped.
//!
//! One process writes it: the one that holds its lock, which the kernel lets go with the process. A file is never emptied
//! or made anew where it lies, since others have it mapped: a new one is made beside it and renamed over it, and the old
//! one then says so ([`Header::SUPERSEDED`]).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::mem::offset_of;
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, OFlag, fallocate};
use nix::unistd::{Group, geteuid};
use tracker_common::plane::word::Word;
use tracker_common::plane::{Geometry, Header, MAGIC, OLD_NS, SCHEMA, VERSION, WORD_LEN};
use tracker_common::reader::mapping::{self, Access};

use super::Config;

/// Where the kernel tells which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Why there is no file that others could look up in.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Another process writes it.
    #[error("the plane `{}` is written by the process {pid}, whose last heartbeat was {} ms ago", path.display(), age_ns / 1_000_000)]
    Taken {
        /// The file.
        path: PathBuf,
        /// Who holds it.
        pid: u32,
        /// Nanoseconds since its heartbeat.
        age_ns: u64,
    },
    /// What lies there is not ours to write, or others could write it.
    #[error("`{}` is {what}", path.display())]
    NotOurs {
        /// What it is about.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// There is no such group.
    #[error("there is no group named `{name}` that could read the plane")]
    NoGroup {
        /// Its name.
        name: String,
    },
    /// The system refused something.
    #[error("{what} `{}`: {error}", path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What came back.
        error: io::Error,
    },
}

impl FileError {
    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            FileError::Taken { .. } => "there is one plane on a host: stop the other tracker, or set `plane.path`",
            FileError::NotOurs { .. } => "remove it, or set `plane.path` to a place that only root can write",
            FileError::NoGroup { .. } => "make the group, or correct `plane.group`",
            FileError::System { error, .. } if error.kind() == io::ErrorKind::StorageFull => {
                "make the tmpfs larger, or `plane.capacity` smaller: 1 KiB is needed for each row"
            }
            FileError::System { .. } => "set `plane.path` to a place in a tmpfs that root can write",
        }
    }
}

/// A file of the plane that this process writes.
pub(super) struct PlaneFile {
    pub memory: Arc<Mapping>,
    pub boot_id: [u8; 16],
    /// What another process wrote, where it was taken over.
    pub is_adopted: bool,
    /// To be put in place, and what it takes the place of.
    temporary: Option<(PathBuf, Option<Mapping>)>,
    path: PathBuf,
    lock: Flock<File>,
}

impl PlaneFile {
    /// Takes over the file, if it is of this boot, version and size and nobody writes it; else makes another, which is
    /// [`put in place`](PlaneFile::put_in_place) later. `now` is in boot time.
    pub(super) fn open(config: &Config, now: u64) -> Result<PlaneFile, FileError> {
        let path = config.path.as_path();
        let geometry = Geometry::of(config.rows());
        let group = config.group.as_deref().map(find_group).transpose()?;
        let boot_id = boot_id()?;
        prepare_directory(path)?;
        // Of two that begin at the same time one renames; the other then finds the new file.
        for _ in 0..8 {
            let Some(found) = open_existing(path)? else {
                return Self::make(path, geometry, boot_id, group, None);
            };
            let lock = match Flock::lock(found, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((file, Errno::EWOULDBLOCK)) => {
                    let held = Mapping::of_header(&file, path)?;
                    let (pid, age_ns) = (held.get32(offset_of!(Header, owner_pid)), held.heartbeat_age(now));
                    if age_ns < OLD_NS {
                        return Err(FileError::Taken { path: path.to_owned(), pid, age_ns });
                    }
                    // Its writer is stopped, or stuck: it may go on at any time, in a file that nobody opens any more.
                    return Self::make(path, geometry, boot_id, group, Some(held));
                }
                Err((_, errno)) => return Err(system("lock", path)(errno.into())),
            };
            if !is_still_there(&lock, path)? {
                continue;
            }
            let len = lock.metadata().map_err(system("look at", path))?.len();
            if len == geometry.file_len as u64 {
                let memory = Arc::new(Mapping::of(&lock, geometry.file_len, path)?);
                if memory.is_plane(&geometry, &boot_id) {
                    protect(&lock, group, path)?;
                    let path = path.to_owned();
                    return Ok(PlaneFile { memory, boot_id, is_adopted: true, temporary: None, path, lock });
                }
            }
            let former = if len >= Header::LEN as u64 { Some(Mapping::of_header(&lock, path)?) } else { None };
            return Self::make(path, geometry, boot_id, group, former);
        }
        Err(system("agree about", path)(io::ErrorKind::WouldBlock.into()))
    }

    fn make(
        path: &Path,
        geometry: Geometry,
        boot_id: [u8; 16],
        group: Option<u32>,
        former: Option<Mapping>,
    ) -> Result<PlaneFile, FileError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let temporary = path.with_file_name(name);
        match fs::remove_file(&temporary) {
            // Left behind by a process that had our number.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(system("remove", &temporary)(error)),
        }
        let file = options().create_new(true).mode(0o600).open(&temporary).map_err(system("make", &temporary))?;
        let made = || {
            // All of it now: a tmpfs that is full later would end us at the store that finds no page.
            let len = i64::try_from(geometry.file_len).map_err(|_| io::ErrorKind::FileTooLarge)?;
            fallocate(&file, FallocateFlags::empty(), 0, len)?;
            Ok(())
        };
        let make = || {
            made().map_err(system("make room for", &temporary))?;
            protect(&file, group, &temporary)?;
            Mapping::of(&file, geometry.file_len, &temporary)
        };
        let memory = match make() {
            Ok(memory) => Arc::new(memory),
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                return Err(error);
            }
        };
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| system("lock", &temporary)(errno.into()))?;
        let temporary = Some((temporary, former));
        Ok(PlaneFile { memory, boot_id, is_adopted: false, temporary, path: path.to_owned(), lock })
    }

    /// Makes a new file the one that is found, now that it is complete.
    pub(super) fn put_in_place(&mut self) -> Result<(), FileError> {
        let Some((temporary, former)) = self.temporary.take() else { return Ok(()) };
        if let Err(error) = fs::rename(&temporary, &self.path) {
            let _ = fs::remove_file(&temporary);
            return Err(system("put in place", &self.path)(error));
        }
        if let Some(former) = former {
            former.raise(Header::SUPERSEDED);
        }
        Ok(())
    }

    /// Whether it is still the file that is found, and as large as it was.
    pub(super) fn is_current(&self) -> bool {
        let is_whole = self.lock.metadata().is_ok_and(|file| file.len() == (self.memory.len() * WORD_LEN) as u64);
        is_whole && is_still_there(&self.lock, &self.path).unwrap_or(false)
    }

    /// Tells readers to open the path again, if they can be told: of a file that was cut our own mapping may be theirs no more.
    pub(super) fn supersede(&self) {
        if let Ok(header) = Mapping::of_header(&self.lock, &self.path) {
            header.raise(Header::SUPERSEDED);
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Memory shared with whoever maps the file. Also where somebody cuts the file: stores then reach nobody.
pub(super) struct Mapping(mapping::Mapping);

impl Mapping {
    fn of_header(file: &File, path: &Path) -> Result<Mapping, FileError> {
        let len = file.metadata().map_err(system("look at", path))?.len();
        if len < Header::LEN as u64 {
            return Err(FileError::NotOurs { path: path.to_owned(), what: "held by a process, and no plane" });
        }
        Self::of(file, Header::LEN, path)
    }

    fn of(file: &File, len: usize, path: &Path) -> Result<Mapping, FileError> {
        mapping::Mapping::of(file, len, Access::Write).map(Mapping).map_err(system("map", path))
    }

    fn get32(&self, at: usize) -> u32 {
        (self[at / WORD_LEN].load_relaxed() >> (at % WORD_LEN * 8)) as u32
    }

    fn get64(&self, at: usize) -> u64 {
        self[at / WORD_LEN].load_relaxed()
    }

    fn heartbeat_age(&self, now: u64) -> u64 {
        now.saturating_sub(self.get64(offset_of!(Header, heartbeat)))
    }

    /// Whether it is a plane as we would make it, of this boot.
    fn is_plane(&self, geometry: &Geometry, boot_id: &[u8; 16]) -> bool {
        let boot = offset_of!(Header, boot_id) / WORD_LEN;
        let of_this_boot =
            boot_id.chunks(WORD_LEN).zip(&self[boot..]).all(|(bytes, word)| word.load_relaxed().to_le_bytes() == bytes);
        // Places follow from version, schema and capacity.
        of_this_boot
            && self[0].load_acquire().to_le_bytes() == MAGIC
            && self.get32(offset_of!(Header, version)) == VERSION
            && self.get64(offset_of!(Header, schema)) == SCHEMA
            && self.get32(offset_of!(Header, capacity)) as usize == geometry.capacity
            && self.get64(offset_of!(Header, file_len)) == geometry.file_len as u64
            && self.get32(offset_of!(Header, flags)) & Header::SUPERSEDED == 0
    }

    /// Sets flags in the header. Of a plane that another process may be writing, too: flags share their word with the
    /// count of changes, so that a change at this very moment may take them back; then readers learn it from the heartbeat.
    fn raise(&self, flags: u32) {
        let word = &self[offset_of!(Header, flags) / WORD_LEN];
        word.fetch_or(u64::from(flags) << 32, Ordering::AcqRel);
    }
}

impl Deref for Mapping {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        self.0.words()
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits());
    options
}

/// The file that lies there, if it is ours.
fn open_existing(path: &Path) -> Result<Option<File>, FileError> {
    let file = match options().open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(FileError::NotOurs { path: path.to_owned(), what: "a symbolic link" });
        }
        Err(error) => return Err(system("open", path)(error)),
    };
    let metadata = file.metadata().map_err(system("look at", path))?;
    let not_ours = |what| Err(FileError::NotOurs { path: path.to_owned(), what });
    if !metadata.is_file() {
        return not_ours("no regular file");
    }
    if metadata.uid() != geteuid().as_raw() {
        return not_ours("another user's");
    }
    if metadata.mode() & 0o022 != 0 {
        return not_ours("writable for others");
    }
    Ok(Some(file))
}

/// The directory, made where it is missing, must be one in which nobody else can put a file in the plane's place.
fn prepare_directory(path: &Path) -> Result<(), FileError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(system("make the directory", directory))?;
    let metadata = fs::metadata(directory).map_err(system("look at", directory))?;
    let not_ours = |what| Err(FileError::NotOurs { path: directory.to_owned(), what });
    if metadata.uid() != geteuid().as_raw() && metadata.uid() != 0 {
        return not_ours("another user's directory");
    }
    // In a sticky directory others make files, and cannot replace ours.
    if metadata.mode() & 0o022 != 0 && metadata.mode() & 0o1000 == 0 {
        return not_ours("a directory that others can write");
    }
    Ok(())
}

fn is_still_there(file: &File, path: &Path) -> Result<bool, FileError> {
    let ours = file.metadata().map_err(system("look at", path))?;
    Ok(fs::symlink_metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())))
}

/// For root, and for a group to read.
fn protect(file: &File, group: Option<u32>, path: &Path) -> Result<(), FileError> {
    let gid = group.unwrap_or(0);
    let metadata = file.metadata().map_err(system("look at", path))?;
    if metadata.gid() != gid && (group.is_some() || geteuid().is_root()) {
        fchown(file, None, Some(gid)).map_err(system("give to its group", path))?;
    }
    let mode = if group.is_some() { 0o640 } else { 0o600 };
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(system("set the mode of", path))
}

fn find_group(name: &str) -> Result<u32, FileError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(FileError::NoGroup { name: name.to_owned() }),
        Err(errno) => Err(system("look for the group of", Path::new(name))(errno.into())),
    }
}

fn boot_id() -> Result<[u8; 16], FileError> {
    let path = Path::new(BOOT_ID);
    let text = fs::read_to_string(path).map_err(system("read", path))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id =
        u128::from_str_radix(&digits, 16).map_err(|_| system("understand", path)(io::ErrorKind::InvalidData.into()))?;
    Ok(id.to_be_bytes())
}

fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |error| FileError::System { what, path, error }
}
