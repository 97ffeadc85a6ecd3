//! One look at the host: which sockets runtimes may be listening on. Blocking.
//!
//! ```text
//!  usual paths ───────────────────────────────────┐
//!  /proc/1/net/unix ── a name that tells ─────────┼─▶ what file is there, and whose? ─▶ Sighting
//!    └─ whose descriptor is it? ◀── processes with a runtime's name ┘
//! ```
//!
//! Names only say where to look. A look is cheap when nothing changed: descriptors are read of processes with a runtime's
//! name alone, and only when somebody began to listen since; names of processes likewise, or when they are new.
//!
//! A path may lead to a file system that does not answer. [`Attention`] says at which one a look is, and since when, so
//! that the next one can do without.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::doorbell::Doorbell;
use super::{Api, Origin, known, listening};
use crate::container::Namespaces;
use crate::source::mounts;
use crate::source::peer::FileId;
use crate::source::task::{Task, host_namespaces};

/// Bytes that are read of a list of sockets: some hundred thousand of them.
const MAX_LIST: u64 = 64 << 20;
/// Processes that are remembered; a host has at most 2^22.
const MAX_PROCESSES: usize = 1 << 17;
/// Descriptors of one process that are looked at.
const MAX_DESCRIPTORS: usize = 1 << 16;
/// How often a new process's name is read: it may not have executed its program yet when it is seen first.
const LOOKS_AT_A_NAME: u8 = 2;

/// Something at a place where a runtime may listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sighting {
    pub(super) api: Api,
    pub(super) path: PathBuf,
    pub(super) origin: Origin,
    /// What its name says that it is, whoever listens.
    pub(super) has_telling_name: bool,
    pub(super) file: SocketFile,
    /// Where its listener is, if that is known to be in a mount namespace of its own.
    pub(super) apart: Option<Apart>,
}

/// A socket's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketFile {
    pub(super) id: FileId,
    /// Its owner.
    pub(super) uid: u32,
}

/// A process that sees other files than the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Apart {
    /// Its real uid.
    pub(super) uid: u32,
    pub(super) mntns: u32,
}

/// At which path a look is at present.
#[derive(Clone, Debug, Default)]
pub(super) struct Attention(
    // Protects one path; held for moments.
    Arc<Mutex<Option<(PathBuf, Instant)>>>,
);

impl Attention {
    /// The path at which a look has been for as long as this.
    pub(super) fn stays_at(&self, for_long: Duration) -> Option<PathBuf> {
        let at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.as_ref().filter(|(_, since)| since.elapsed() >= for_long).map(|(path, _)| path.clone())
    }

    /// Looks at a path.
    fn at<T>(&self, path: &Path, look: impl FnOnce(&Path) -> T) -> T {
        let set = |at| *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
        set(Some((path.to_owned(), Instant::now())));
        let seen = look(path);
        set(None);
        seen
    }
}

/// What a look looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Everything,
    /// The host's usual paths, which are root's: there are others at which nobody answers.
    UsualPaths,
}

/// What looks, and remembers what it need not look at again.
#[derive(Debug)]
pub(super) struct Eyes {
    /// Where the host's root directory is.
    root: PathBuf,
    wanted: Vec<Api>,
    scope: Scope,
    /// Paths that are not looked at: they did not answer.
    avoided: HashSet<PathBuf>,
    attention: Attention,
    doorbell: Option<Doorbell>,
    processes: HashMap<u32, Seen>,
    /// Inodes of the host's listening sockets.
    listening: HashSet<u64>,
}

/// A process that was there at the last look.
#[derive(Clone, Debug, Default)]
struct Seen {
    looks: u8,
    api: Option<Api>,
    sockets: Vec<Found>,
}

/// A socket of a process.
#[derive(Clone, Debug)]
struct Found {
    path: PathBuf,
    has_telling_name: bool,
    apart: Option<Apart>,
}

impl Eyes {
    pub(super) fn new(root: &Path, wanted: &[Api]) -> Self {
        Self {
            root: root.to_owned(),
            wanted: wanted.to_vec(),
            scope: Scope::Everything,
            avoided: HashSet::new(),
            attention: Attention::default(),
            doorbell: None,
            processes: HashMap::new(),
            listening: HashSet::new(),
        }
    }

    /// The same, which look at less.
    pub(super) fn careful(self, scope: Scope, avoided: HashSet<PathBuf>) -> Self {
        Self { scope, avoided, ..self }
    }

    /// The same, which have the doorbell ring for what is not there yet.
    pub(super) fn with_doorbell(self, doorbell: Option<Doorbell>) -> Self {
        Self { doorbell, ..self }
    }

    /// Tells where a look is.
    pub(super) fn attention(&self) -> Attention {
        self.attention.clone()
    }

    /// Looks once. What is more trustworthy comes first. At `known` there was something before.
    pub(super) fn look(&mut self, known: &[PathBuf]) -> Vec<Sighting> {
        let usual = match self.scope {
            Scope::Everything => self.attention.at(&self.root, known::paths_below),
            Scope::UsualPaths => known::hosts_paths_below(&self.root),
        };
        // Before anything is looked at: what appears from now on is either seen or rings.
        if let Some(doorbell) = &self.doorbell {
            let usual = usual.iter().filter(|(_, api)| self.wanted.contains(api)).map(|(path, _)| path);
            let known = known.iter().filter(|_| self.scope == Scope::Everything);
            let all = usual.chain(known).filter(|path| !self.avoided.contains(*path));
            all.for_each(|path| self.attention.at(path, |path| doorbell.watch(path)));
        }
        let mut sightings = Vec::new();
        if self.scope == Scope::Everything {
            sightings = self.look_at_listeners();
        }
        let usual = usual.into_iter().filter_map(|(path, api)| self.sight(api, path, Origin::UsualPath, true, None));
        usual.chain(sightings).collect()
    }

    /// Who listens, by process and by name.
    fn look_at_listeners(&mut self) -> Vec<Sighting> {
        let host = host_namespaces().unwrap_or_default();
        let sockets = listening_sockets(1);
        let now: HashSet<u64> = sockets.iter().map(|(inode, _)| *inode).collect();
        let anew = now.difference(&self.listening).next().is_some();
        self.listening = now;
        self.look_at_processes(host, &sockets, anew);

        let mut sightings = Vec::new();
        for (pid, seen) in &self.processes {
            for found in &seen.sockets {
                let Some(api) = seen.api else { continue };
                let (path, origin) = (found.path.clone(), Origin::Process(*pid));
                sightings.extend(self.sight(api, path, origin, found.has_telling_name, found.apart));
            }
        }
        for (_, path) in &sockets {
            let Some(api) = known::by_file_name(path) else { continue };
            let path = known::below(&self.root, Path::new(std::ffi::OsStr::from_bytes(path)));
            sightings.extend(self.sight(api, path, Origin::Name, true, None));
        }
        sightings
    }

    fn sight(
        &self,
        api: Api,
        path: PathBuf,
        origin: Origin,
        has_telling_name: bool,
        apart: Option<Apart>,
    ) -> Option<Sighting> {
        if !self.wanted.contains(&api) || self.avoided.contains(&path) {
            return None;
        }
        let metadata = self.attention.at(&path, |path| fs::metadata(path));
        let metadata = metadata.ok().filter(|metadata| metadata.file_type().is_socket())?;
        let file = SocketFile { id: (metadata.dev(), metadata.ino()), uid: metadata.uid() };
        Some(Sighting { api, path, origin, has_telling_name, file, apart })
    }

    fn look_at_processes(&mut self, host: Namespaces, sockets: &[(u64, Box<[u8]>)], anew: bool) {
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let mut former = std::mem::take(&mut self.processes);
        for pid in pids.take(MAX_PROCESSES) {
            let mut seen = former.remove(&pid).unwrap_or_default();
            let is_new = seen.looks < LOOKS_AT_A_NAME;
            if anew || is_new {
                seen.looks = seen.looks.saturating_add(1);
                seen.api = program(pid).filter(|api| self.wanted.contains(api));
                seen.sockets.clear();
                if seen.api.is_some() {
                    seen.sockets = sockets_of(pid, host, &self.root, sockets).unwrap_or_default();
                }
            }
            self.processes.insert(pid, seen);
        }
        self.processes.shrink_to(self.processes.len() * 2);
    }
}

/// What a process would speak, by the name of its program.
fn program(pid: u32) -> Option<Api> {
    // Its own choice, and the kernel cuts it off at 15 bytes; but it is what a program that is many in one goes by.
    let task = Task::open(pid).ok()?;
    let by_name = task.name().ok().and_then(|name| known::by_program(&name));
    by_name.or_else(|| known::by_program(task.exe().ok()?.file_name()?.as_bytes()))
}

/// The sockets that a process listens on, as paths that lead there from here. `None` when it has ended.
fn sockets_of(pid: u32, host: Namespaces, root: &Path, hosts: &[(u64, Box<[u8]>)]) -> Option<Vec<Found>> {
    let task = Task::open(pid).ok()?;
    let (id, namespaces) = (task.id().ok()?, task.namespaces());
    let own: HashSet<u64> = fs::read_dir(format!("/proc/{pid}/fd"))
        .ok()?
        .flatten()
        .take(MAX_DESCRIPTORS)
        .filter_map(|entry| socket_inode(fs::read_link(entry.path()).ok()?.as_os_str().as_bytes()))
        .collect();
    let elsewhere = (namespaces.net != host.net).then(|| listening_sockets(pid));
    let listed = elsewhere.as_deref().unwrap_or(hosts);
    let uid = task.uid().ok()?;
    // A service of the host's, or a snap, may have mounts of its own.
    let is_hosts = || uid == 0 && namespaces.user == host.user && mounts::are_hosts(pid, namespaces.mnt);
    let is_apart = namespaces.mnt != host.mnt && !is_hosts();
    let apart = is_apart.then_some(Apart { uid, mntns: namespaces.mnt });
    let root = if is_apart { PathBuf::from(format!("/proc/{pid}/root")) } else { root.to_owned() };
    let found = listed.iter().filter(|(inode, _)| own.contains(inode)).map(|(_, path)| Found {
        path: known::below(&root, Path::new(std::ffi::OsStr::from_bytes(path))),
        has_telling_name: known::by_file_name(path).is_some(),
        apart,
    });
    let found = found.collect();
    task.is(id).then_some(found)
}

/// The inode in what a descriptor of a socket links to: `socket:[42]`.
fn socket_inode(link: &[u8]) -> Option<u64> {
    std::str::from_utf8(link).ok()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The sockets that are listened on in the net namespace of a process.
fn listening_sockets(pid: u32) -> Vec<(u64, Box<[u8]>)> {
    let Ok(list) = File::open(format!("/proc/{pid}/net/unix")) else { return Vec::new() };
    let mut list = BufReader::with_capacity(64 << 10, list.take(MAX_LIST));
    let (mut sockets, mut line) = (Vec::new(), Vec::new());
    while matches!(list.read_until(b'\n', &mut line), Ok(len) if len > 0) {
        let found = listening::parse(line.strip_suffix(b"\n").unwrap_or(&line));
        sockets.extend(found.map(|found| (found.inode, Box::from(found.path))));
        line.clear();
    }
    sockets
}
