//! Looking for containers in the OCI runtimes' root directories.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstat, fstatat};

use super::invocation::{self, Invoked};
use super::owner::{self, Owner};
use super::state_file::{self, StateFile};
use super::{Config, Stats};
use crate::container::{Cgroup, ContainerId, ContainerKey, Domain, Namespaces, State, Str, TaskId};
use crate::enrich::recognise::{Parent, Shown, recognise};
use crate::enrich::{oci, scope};
use crate::fact::{Birth, Look, Statement};
use crate::source::file::{self, Walk};
use crate::source::task::{Task, TaskView, host_namespaces, own_namespaces};

const USUAL_ROOTS: [&str; 4] = ["/run/runc", "/run/crun", "/run/containerd/runc/*", "/run/docker/runtime-runc/*"];
/// Where containerd's runc shim keeps runc's state when its options name no other place.
const SHIMS_RUNC_ROOT: &str = "/run/containerd/runc";

/// Root directories that are remembered because a running process named them.
const MAX_LEARNT_ROOTS: usize = 64;
/// Directories that a `/*` may stand for.
const MAX_EXPANSION: usize = 256;
/// Containers that are looked at in one root directory.
const MAX_CONTAINERS: usize = 16_384;
/// A command line of a shim or conmon is a few hundred bytes.
const MAX_ARGUMENTS_LEN: u64 = 64 << 10;

/// Of the command of an init process that nobody describes: bytes that are read, and words that are kept.
const MAX_COMMAND_LEN: u64 = 4 << 10;
const MAX_COMMAND_WORDS: usize = 32;

/// The answer for one birth.
#[derive(Debug)]
pub(super) enum Found {
    /// Its container.
    Container {
        /// As its runtime names it.
        key: ContainerKey,
        /// All that could be read.
        statement: Box<Statement>,
    },
    /// The process has ended.
    Gone,
    /// No state directory knows it; what it shows of itself, if that could be read.
    Nothing(Option<Box<Look>>),
}

/// Searches, and remembers what it read.
pub(super) struct Finder {
    roots: Vec<PathBuf>,
    learnt_roots: BTreeSet<PathBuf>,
    read: HashMap<PathBuf, Remembered>,
    own: Option<Namespaces>,
    stats: Arc<Stats>,
}

/// A state file as of its last change.
struct Remembered {
    version: Version,
    content: Option<StateFile>,
}

/// Runtimes replace their files by renaming, and change them in place only where no newer time could be missed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    inode: u64,
    len: i64,
    changed: (i64, i64),
}

/// Where a container is described.
struct Place {
    domain: Domain,
    root: PathBuf,
    id: ContainerId,
    state: State,
    file: StateFile,
}

/// A birth that is still alive, and what is above it.
struct Candidate {
    task: Task,
    view: TaskView,
    owner: Option<Owner>,
}

impl Finder {
    pub(super) fn new(config: &Config, stats: Arc<Stats>) -> Self {
        let mut roots = config.roots.clone();
        if config.usual_roots {
            roots.extend(USUAL_ROOTS.map(PathBuf::from));
        }
        Self { roots, learnt_roots: BTreeSet::new(), read: HashMap::new(), own: own_namespaces().ok(), stats }
    }

    /// One answer for each birth, in their order.
    pub(super) fn look(&mut self, births: &[Birth]) -> Vec<Found> {
        let candidates: Vec<Result<Candidate, Found>> = births.iter().map(|birth| self.candidate(birth)).collect();
        let alive = || candidates.iter().flatten();
        let places = self.places(alive());
        let find = |candidate: Candidate| match places.get(&candidate.view.task) {
            // The birth's own uid is what binds a user's word to it.
            Some(place) if place.domain == Domain::Host || place.domain == Domain::User(candidate.view.uid) => {
                self.state(candidate, place)
            }
            _ => match self.told_by_command_line(&candidate) {
                Some(place) => self.state(candidate, &place),
                // A tracker in a container of its own sees other files than the host, and the same processes.
                None => Found::Nothing(
                    host_namespaces().or(self.own).and_then(|host| looked(&candidate, host)).map(Box::new),
                ),
            },
        };
        candidates.into_iter().map(|candidate| candidate.map_or_else(|without| without, find)).collect()
    }

    /// The process, or the answer without it.
    fn candidate(&mut self, birth: &Birth) -> Result<Candidate, Found> {
        let task = Task::open(birth.task.pid).map_err(unseen)?;
        let view = task.view().map_err(unseen)?;
        if view.task != birth.task {
            return Err(Found::Gone);
        }
        let owner = view.parent.and_then(|parent| self.owner(parent));
        Ok(Candidate { task, view, owner })
    }

    /// What the process above a container says, when it is one of the host's root.
    fn owner(&mut self, parent: TaskId) -> Option<Owner> {
        let task = Task::open(parent.pid).ok()?;
        let namespaces = task.namespaces();
        let own = self.own?;
        let is_host_root = task.uid().ok()? == 0 && namespaces.mnt == own.mnt && namespaces.user == own.user;
        if !is_host_root || !task.is(parent) {
            return None;
        }
        let owner = owner::read(&task.arguments(MAX_ARGUMENTS_LEN).ok()?)?;
        let root = match &owner {
            Owner::Shim { namespace } => ContainerId::new(namespace).ok().map(|namespace| {
                let root = task.cwd().ok().and_then(|bundle| shims_root(&bundle));
                root.unwrap_or_else(|| SHIMS_RUNC_ROOT.into()).join(namespace.as_str())
            }),
            Owner::Conmon { root, .. } => root.clone(),
            Owner::Runtime { root } => Some(root.clone()),
        };
        if let Some(root) = root
            && self.learnt_roots.len() < MAX_LEARNT_ROOTS
        {
            self.learnt_roots.insert(root);
        }
        Some(owner)
    }

    /// Every container that a state directory describes and that may be one of `candidates`.
    fn places<'a>(&mut self, candidates: impl Iterator<Item = &'a Candidate>) -> HashMap<TaskId, Place> {
        let mut wanted = BTreeSet::new();
        let mut users = BTreeSet::new();
        for candidate in candidates {
            wanted.insert(candidate.view.task);
            if candidate.view.uid != 0 {
                users.insert(candidate.view.uid);
            }
        }
        let mut places = HashMap::new();
        if wanted.is_empty() {
            return places;
        }
        let mut seen = HashMap::new();
        for root in self.expanded_roots() {
            self.search(&root, &wanted, &mut seen, &mut places);
        }
        for uid in users {
            for runtime in ["runc", "crun"] {
                self.search(Path::new(&format!("/run/user/{uid}/{runtime}")), &wanted, &mut seen, &mut places);
            }
        }
        // What was not seen this time has been deleted: forgetting it bounds the memory.
        self.read = seen;
        places
    }

    fn expanded_roots(&self) -> BTreeSet<PathBuf> {
        let mut expanded = BTreeSet::new();
        for root in self.roots.iter().chain(&self.learnt_roots) {
            if root.file_name().is_some_and(|name| name == "*") {
                let parent = root.parent().unwrap_or(root);
                let below = file::open_dir(parent).map(|dir| names(&dir, MAX_EXPANSION)).unwrap_or_default();
                expanded.extend(below.iter().map(|name| parent.join(name)));
            } else {
                expanded.insert(root.clone());
            }
        }
        expanded
    }

    /// Searches one root directory. One that is not there, or that may not be believed, says nothing.
    fn search(
        &mut self,
        root: &Path,
        wanted: &BTreeSet<TaskId>,
        seen: &mut HashMap<PathBuf, Remembered>,
        places: &mut HashMap<TaskId, Place>,
    ) {
        let Ok(dir) = file::open_dir(root) else { return };
        let Some(domain) = fstat(&dir).ok().and_then(|stat| speaks_for(&stat)) else { return };
        for name in names(&dir, MAX_CONTAINERS) {
            let Ok(id) = ContainerId::new(&name) else { continue };
            for (file_name, parse) in state_file::FORMATS {
                let below = Path::new(&name).join(file_name);
                let path = root.join(&below);
                let Ok((opened, stat)) = file::open_regular(&dir, &below, Walk::Beneath, state_file::MAX_LEN) else {
                    continue;
                };
                let version = Version::of(&stat);
                let remembered = self.read.remove(&path).filter(|remembered| remembered.version == version);
                let remembered = remembered.unwrap_or_else(|| {
                    let content = file::read_all(opened, state_file::MAX_LEN).ok();
                    Remembered { version, content: content.and_then(|bytes| parse(&bytes)) }
                });
                if let Some(file) = remembered.content.clone().filter(|file| wanted.contains(&file.task)) {
                    // Both runtimes remove the FIFO that init waits on when the container starts.
                    let waits = fstatat(&dir, &Path::new(&name).join("exec.fifo"), AtFlags::AT_SYMLINK_NOFOLLOW);
                    let state = if waits.is_ok() { State::Created } else { State::Running };
                    let id = id.clone();
                    places.insert(file.task, Place { domain, root: root.to_owned(), id, state, file });
                }
                seen.insert(path, remembered);
            }
        }
    }

    /// What the runtime above it was told, where no state directory knows it.
    fn told_by_command_line(&self, candidate: &Candidate) -> Option<Place> {
        let (host, namespaces) = (self.own?, candidate.view.namespaces);
        let Invoked { root, id, file } = invocation::above(&candidate.view, host)?;
        let bundle = read_bundle(Domain::Host, &file.bundle).ok()?;
        let place = Place { domain: Domain::Host, root, id, state: State::Running, file };
        invocation::can_be_init(&bundle, namespaces, host).then_some(place)
    }

    /// All that is known of a container that was found.
    fn state(&self, candidate: Candidate, place: &Place) -> Found {
        let Candidate { task, view, owner } = candidate;
        let Place { domain, root, id, state, file } = place;
        let key = ContainerKey { domain: *domain, scope: scope::of(&file.bundle, root, id), id: id.clone() };
        let mut statement = Statement {
            task: Some(view.task),
            namespaces: Some(view.namespaces),
            state: Some(*state),
            runtime: Some(scope::runtime(&file.bundle, id, &file.oci)),
            cgroup: Some(view.cgroup).filter(|cgroup| *cgroup != Cgroup::default()),
            bundle: Some(file.bundle.to_string_lossy().into()),
            ..Statement::default()
        };
        let conmon_s = match owner {
            Some(Owner::Conmon { id: named, name, .. }) if named == id.as_str() => name,
            _ => None,
        };
        match read_bundle(*domain, &file.bundle) {
            Ok(facts) => {
                // CRI-O's conmons are given a name of CRI-O's own making, and the bundle has the container's.
                let is_cri_o_s = facts.manager.as_deref() == Some("cri-o");
                statement.name = conmon_s.filter(|_| !is_cri_o_s);
                facts.apply(&mut statement);
            }
            Err(reason) => {
                self.stats.unreadable_bundles.fetch_add(1, Ordering::Relaxed);
                statement.name = conmon_s;
                statement.missing.push(("annotations", reason));
            }
        }
        // What was read belongs to this process only if it is still the same one.
        if task.is(view.task) { Found::Container { key, statement: Box::new(statement) } } else { Found::Gone }
    }
}

/// What a process that could not be looked at means: that it has ended, or (for want of descriptors, say) nothing yet.
fn unseen(error: io::Error) -> Found {
    match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::ENOENT | Errno::ESRCH => Found::Gone,
        _ => Found::Nothing(None),
    }
}

/// What a process shows that no state directory knows.
fn looked(candidate: &Candidate, host: Namespaces) -> Option<Look> {
    let Candidate { task, view, .. } = candidate;
    let above = view.parent.and_then(|parent| Above::of(parent, host));
    let cgroup = view.cgroup.path.as_deref().filter(|path| *path != "/").or(view.cgroup.v1_path.as_deref());
    let recognised = recognise(&Shown {
        cgroup: cgroup.unwrap_or_default(),
        uid: view.uid,
        has_host_pids: view.namespaces.pid == host.pid,
        has_host_users: view.namespaces.user == host.user,
        parent: above.as_ref().map(|above| Parent {
            pid: above.pid,
            program: &above.program,
            arguments: &above.arguments,
        }),
    });
    let command = task.arguments(MAX_COMMAND_LEN).ok().map(|words| {
        let words = words.iter().take(MAX_COMMAND_WORDS).map(|word| Str::from(word.to_string_lossy()));
        words.collect::<Arc<[Str]>>()
    });
    let look = Look { recognised, cgroup: view.cgroup.clone(), command: command.filter(|words| !words.is_empty()) };
    task.is(view.task).then_some(look)
}

/// The process above another one, as far as the host's root answers for it.
struct Above {
    pid: u32,
    program: String,
    arguments: Vec<String>,
}

impl Above {
    /// Absent where it is not in the host's mount ns, or anybody but root could have made its program.
    fn of(parent: TaskId, host: Namespaces) -> Option<Above> {
        if parent.pid == 1 {
            // The host's first process, whatever it is: it need not let itself be looked at.
            return Some(Above { pid: 1, program: String::new(), arguments: Vec::new() });
        }
        let task = Task::open(parent.pid).ok()?;
        let is_hosts = task.namespaces().mnt == host.mnt && task.program_is_roots();
        let program = task.exe().ok()?.file_name()?.to_str()?.to_owned();
        let arguments = task.arguments(MAX_ARGUMENTS_LEN).unwrap_or_default();
        let arguments = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        // All of that is about this process only if it is still the same one.
        (is_hosts && task.is(parent)).then_some(Above { pid: parent.pid, program, arguments })
    }
}

/// Reads a bundle. A user's is left alone: its file system may be one that never answers.
fn read_bundle(domain: Domain, bundle: &Path) -> Result<oci::OciFacts, Str> {
    if domain != Domain::Host {
        return Err("bundles of users' containers are not read".into());
    }
    let path = bundle.join("config.json");
    let read = file::open_dir(bundle)
        .and_then(|dir| file::read_regular(&dir, Path::new("config.json"), Walk::Free, oci::MAX_LEN as u64));
    let bytes = read.map_err(|error| Str::from(format!("read `{}`: {error}", path.display())))?;
    oci::parse(&bytes).map_err(|error| error.to_string().into())
}

/// The OCI runtime's root directory, where the shim's options name one: Docker's do.
fn shims_root(bundle: &Path) -> Option<PathBuf> {
    #[derive(serde::Deserialize)]
    struct Options {
        root: PathBuf,
    }
    let dir = file::open_dir(bundle).ok()?;
    let bytes = file::read_regular(&dir, Path::new("options.json"), Walk::Beneath, 64 << 10).ok()?;
    let options: Options = serde_json::from_slice(&bytes).ok()?;
    options.root.is_absolute().then_some(options.root)
}

/// Whose word a directory is: its owner's, when nobody else can write to it.
fn speaks_for(stat: &FileStat) -> Option<Domain> {
    match stat.st_uid {
        _ if stat.st_mode & 0o022 != 0 => None,
        0 => Some(Domain::Host),
        uid => Some(Domain::User(uid)),
    }
}

/// Names in a directory, without the dots.
fn names(dir: impl AsFd, max: usize) -> Vec<String> {
    let again: Option<OwnedFd> = file::open_dir_at(dir, Path::new("."), Walk::Beneath).ok();
    let Some(mut entries) = again.and_then(|dir| Dir::from_fd(dir).ok()) else { return Vec::new() };
    let names = entries.iter().flatten().filter_map(|entry| {
        let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
        Some(name.to_str()?.to_owned())
    });
    names.filter(|name| name != "." && name != "..").take(max).collect()
}

impl Version {
    fn of(stat: &FileStat) -> Self {
        Self { inode: stat.st_ino, len: stat.st_size, changed: (stat.st_ctime, stat.st_ctime_nsec) }
    }
}
