//! Which binaries are marked: the known ones, the configured ones, and those learnt from containers that nothing held.
//!
//! A mark belongs to an inode, so an upgraded binary (a new inode under the old name) has none. The directories of
//! all candidates are watched, and a change of a candidate's name marks what is there now, at once. A scan every
//! [`RESCAN`] finds what no watch could tell (a directory that was made, a mount). A new keeper begins with no marks.
//!
//! Learnt binaries: at most [`MOST_LEARNT`], only files that root alone can write, dropped after
//! [`MOST_STRANGE`] executions in a row that were no OCI command line.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, openat2};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::line::Line;
use super::wire::Message;

/// Most binaries learnt from what they started.
const MOST_LEARNT: usize = 16;
/// Executions in a row without an OCI verb after which a learnt binary is dropped.
const MOST_STRANGE: u8 = 3;
/// How often all candidates are looked at without a cause.
pub(super) const RESCAN: Duration = Duration::from_secs(30);

/// Where distributions and installers put OCI runtimes.
pub(crate) const KNOWN: &[&str] = &[
    "/usr/sbin/runc",
    "/usr/bin/runc",
    "/usr/local/sbin/runc",
    "/usr/local/bin/runc",
    "/usr/bin/crun",
    "/usr/sbin/crun",
    "/usr/local/bin/crun",
    "/usr/local/sbin/crun",
    "/usr/bin/krun",
    "/usr/bin/youki",
    "/usr/local/bin/youki",
    "/usr/libexec/crio/runc",
    "/usr/libexec/crio/crun",
    "/usr/lib/cri-o-runc/sbin/runc",
    "/usr/bin/docker-runc",
    "/usr/libexec/docker/docker-runc",
    "/var/lib/rancher/k3s/data/current/bin/runc",
    "/var/lib/rancher/rke2/bin/runc",
    "/snap/docker/current/bin/runc",
    "/opt/bin/runc",
    "/opt/containerd/bin/runc",
];

/// A file, whatever its name: device and inode number.
pub(super) type Identity = (u64, u64);

/// One marked binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marked {
    /// The name under which it was found.
    pub(super) path: PathBuf,
    learnt: bool,
    strange: u8,
}

/// The book of marks.
#[derive(Debug)]
pub(super) struct Marks {
    // Protects the book; held for moments, never while a file is opened.
    book: Mutex<Book>,
    watches: Option<Inotify>,
}

#[derive(Debug, Default)]
struct Book {
    candidates: Vec<PathBuf>,
    learnt: Vec<PathBuf>,
    marked: HashMap<Identity, Marked>,
    /// Marks asked for and not yet confirmed.
    asked: HashMap<u64, (Identity, Marked)>,
    requests: u64,
}

/// Why a binary is not learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unlearnt {
    /// It is marked already, or others write to it, or it has no name.
    Unfit,
    /// There are enough.
    Full,
}

impl Marks {
    /// The book for these additional binaries.
    pub(super) fn new(configured: &[PathBuf], known_paths: bool) -> Self {
        let known = KNOWN.iter().filter(|_| known_paths).map(PathBuf::from);
        let candidates = configured.iter().cloned().chain(known).collect();
        // Without watches an upgraded binary is marked by the next scan.
        let watches = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        Self { book: Mutex::new(Book { candidates, ..Book::default() }), watches }
    }

    /// Readable when something in a watched directory changed.
    pub(super) fn watches(&self) -> Option<&Inotify> {
        self.watches.as_ref()
    }

    /// Whether what the watches tell concerns a candidate.
    pub(super) fn is_concerned(&self) -> bool {
        let Some(watches) = &self.watches else { return false };
        let book = self.book();
        let names: HashSet<_> = book.paths().filter_map(|(path, _)| path.file_name()).collect();
        let mut concerned = false;
        while let Ok(events) = watches.read_events() {
            concerned |= events.iter().any(|event| match &event.name {
                Some(name) => names.contains(name.as_os_str()),
                // The directory itself changed, or the queue ran over.
                None => true,
            });
        }
        concerned
    }

    /// Asks the keeper to mark every candidate that has no mark. Opens files: not for a thread that must go on.
    pub(super) fn scan(&self, line: &Line) {
        let paths: Vec<(PathBuf, bool)> = self.book().paths().map(|(path, learnt)| (path.clone(), learnt)).collect();
        let asked: Vec<(u64, File)> = paths
            .into_iter()
            .filter_map(|(path, learnt)| {
                self.watch(&path);
                let (binary, identity) = open(&path).ok()?;
                Some((self.book().ask(identity, path, learnt)?, binary))
            })
            .collect();
        // Not before all are in the book: the last answer is known to be the last one then.
        for (request, binary) in asked {
            self.send(request, &binary, line);
        }
    }

    /// The keeper's answer to a request. Returns what was refused, and why.
    pub(super) fn answered(&self, request: u64, errno: i32) -> Option<(PathBuf, Errno)> {
        let mut book = self.book();
        let (identity, marked) = book.asked.remove(&request)?;
        if errno != 0 {
            return Some((marked.path, Errno::from_raw(errno)));
        }
        book.marked.insert(identity, marked);
        None
    }

    /// Whether the keeper has been asked for a mark and has not answered yet.
    pub(super) fn is_asking(&self) -> bool {
        !self.book().asked.is_empty()
    }

    /// The keeper has gone, and all marks with it.
    pub(super) fn forget(&self) {
        let mut book = self.book();
        book.marked.clear();
        book.asked.clear();
    }

    /// The name of a marked binary.
    pub(super) fn path(&self, identity: Identity) -> Option<PathBuf> {
        self.book().marked.get(&identity).map(|marked| marked.path.clone())
    }

    /// All marked binaries' names, sorted, each with whether it was learnt.
    pub(super) fn list(&self) -> Vec<(PathBuf, bool)> {
        let mut list: Vec<_> = self.book().marked.values().map(|marked| (marked.path.clone(), marked.learnt)).collect();
        list.sort();
        list
    }

    /// Notes whether an execution of a binary was an OCI command line. Returns a request's number when its mark is to be
    /// taken off, and its name.
    pub(super) fn saw(&self, identity: Identity, oci: bool) -> Option<(u64, PathBuf)> {
        let mut book = self.book();
        let marked = book.marked.get_mut(&identity)?;
        marked.strange = if oci { 0 } else { marked.strange.saturating_add(1) };
        if !marked.learnt || marked.strange < MOST_STRANGE {
            return None;
        }
        let path = book.marked.remove(&identity)?.path;
        book.learnt.retain(|learnt| *learnt != path);
        book.requests += 1;
        Some((book.requests, path))
    }

    /// Adds a binary that was seen to start a container, and asks the keeper to mark it.
    pub(super) fn learn(&self, path: &Path, line: &Line) -> Result<(), Unlearnt> {
        let (binary, identity) = open(path).map_err(|_| Unlearnt::Unfit)?;
        let fit =
            binary.metadata().is_ok_and(|file| file.uid() == 0 && file.mode() & 0o022 == 0 && file.mode() & 0o111 != 0);
        if !fit || !path.is_absolute() {
            return Err(Unlearnt::Unfit);
        }
        let request = {
            let mut book = self.book();
            if book.marked.contains_key(&identity) || book.learnt.iter().any(|learnt| learnt == path) {
                return Err(Unlearnt::Unfit);
            }
            if book.learnt.len() >= MOST_LEARNT {
                return Err(Unlearnt::Full);
            }
            book.learnt.push(path.to_owned());
            book.ask(identity, path.to_owned(), true)
        };
        self.watch(path);
        if let Some(request) = request {
            self.send(request, &binary, line);
        }
        Ok(())
    }

    fn send(&self, request: u64, binary: &File, line: &Line) {
        if line.send(Message::Mark { request }, Some(binary.as_fd())).is_err() {
            // Nobody will answer: the next scan asks again.
            self.book().asked.remove(&request);
        }
    }

    fn watch(&self, path: &Path) {
        let (Some(watches), Some(directory)) = (&self.watches, path.parent()) else { return };
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        let _ = watches.add_watch(directory, flags);
        // A link's target is replaced in another directory.
        if let Ok(target) = path.canonicalize()
            && let Some(directory) = target.parent()
        {
            let _ = watches.add_watch(directory, flags);
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn paths(&self) -> impl Iterator<Item = (&PathBuf, bool)> {
        self.candidates.iter().map(|path| (path, false)).chain(self.learnt.iter().map(|path| (path, true)))
    }

    /// A request for this binary; `None` when it is marked or asked for already.
    fn ask(&mut self, identity: Identity, path: PathBuf, learnt: bool) -> Option<u64> {
        if self.marked.contains_key(&identity) || self.asked.values().any(|(asked, _)| *asked == identity) {
            return None;
        }
        // What had this name before has lost it; its mark goes with its last user.
        self.marked.retain(|_, marked| marked.path != path);
        self.requests += 1;
        self.asked.insert(self.requests, (identity, Marked { path, learnt, strange: 0 }));
        Some(self.requests)
    }
}

/// Opens a binary to mark it: a regular file, links followed, since `/usr/bin/runc` may be one.
fn open(path: &Path) -> Result<(File, Identity), Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = File::from(openat2(AT_FDCWD, path, OpenHow::new().flags(flags))?);
    let metadata = file.metadata().map_err(|_| Errno::EIO)?;
    if !metadata.is_file() {
        return Err(Errno::EINVAL);
    }
    Ok((file, (metadata.dev(), metadata.ino())))
}
