//! What happens while a task is held in `execve` of an OCI runtime: who it is, what it is about to do, and what the
//! collection is told before it goes on.
//!
//! ```text
//!  held task ─▶ host's root, or root in a known container? ─no─▶ let go, counted
//!                  │ yes
//!             command line ─▶ create          state the bundle, wait for subscribers, let go ─▶ … its end: the init
//!                             start           find the init, state it, wait for subscribers, let go, grade
//!                             run, restore    state the bundle, let go ─▶ … its end: the init
//!                             delete, kill    let go, note
//!                             anything else   let go
//! ```
//!
//! Promises: the task is let go on every path, a panic included ([`HeldTask`]'s drop); nothing waits past the deadline but
//! what a lost thread waits for ([`pool`](super::pool)); a pid is believed only with proof ([`init`]).

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Stats;
use super::argv::{self, Command, Dialect, Invocation, Verb};
use super::book::{Book, Entry, Phase, Place};
use super::bundle;
use super::caller::{Caller, Host, Identity, Outers, Root, Stranger};
use super::init::{self, Doubt, Init};
use super::line::HeldTask;
use super::marks::{self, Marks};
use super::nested::{self, Turns};
use super::watch::Watch;
use crate::collection::door::{Facts, HeldOutcome, HeldStep};
use crate::container::{ContainerKey, Domain, Grade, State, Str, TaskId};
use crate::enrich::scope;
use crate::fact::{Fact, Source, Statement, What};
use crate::source::health::{Condition, HealthBoard};
use crate::sys;
use crate::time::BootTime;

/// We stop waiting this long before the keeper does: an answer of ours is better than its.
const MARGIN: Duration = Duration::from_millis(10);

/// How long the end of a nested caller waits for the kernel's record of what it made, and for the collection.
const RECORD_PATIENCE: Duration = Duration::from_millis(100);
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// All that the held path works with. Shared by the pool's threads.
pub(super) struct HeldPath {
    pub(super) facts: Facts,
    pub(super) stats: Arc<Stats>,
    pub(super) health: HealthBoard,
    pub(super) host: Host,
    pub(super) outers: Box<Outers>,
    pub(super) turns: Turns,
    pub(super) budget: Duration,
    pub(super) marks: Marks,
    pub(super) book: Book,
    pub(super) watch: Watch,
}

/// One understood command line: who runs it, and what its relative paths and defaults come out as.
#[derive(Debug)]
struct Request {
    invocation: Invocation,
    /// File name of the runtime's binary.
    oci: Str,
    place: Place,
    root: Root,
    bundle: PathBuf,
    pid_file: Option<PathBuf>,
    config: Option<PathBuf>,
    creator: TaskId,
    /// When the keeper read the event: whatever the command makes is younger.
    seen: BootTime,
    deadline: Instant,
}

impl HeldPath {
    /// Looks at a held task and lets it go.
    pub(super) fn handle(&self, mut held: HeldTask) {
        self.stats.events.fetch_add(1, Ordering::Relaxed);
        let refuse = |mut held: HeldTask, stranger| {
            self.count_stranger(stranger);
            held.dismiss();
        };
        let caller = match Caller::identify(held.tid, &self.host, &*self.outers) {
            Ok(Identity::Root(caller)) => caller,
            Ok(Identity::Stranger(stranger)) => return refuse(held, stranger),
            Err(error) => return self.count_unread(&error),
        };
        let (budget, _turn) = match caller.domain {
            Domain::Host => (self.budget, None),
            _ if !self.knows_births() => return refuse(held, Stranger::Nested),
            _ => match self.turns.take_for(held.deputy(), held.since, self.budget) {
                None => return refuse(held, Stranger::Nested),
                turn => {
                    self.stats.nested.fetch_add(1, Ordering::Relaxed);
                    (nested::budget_of(self.budget), turn)
                }
            },
        };
        let deadline = held.since + budget.saturating_sub(MARGIN);
        let binary = held.binary.as_ref().and_then(identity_of);
        let request = match self.understand(&held, caller, binary, deadline) {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => return self.count_unread(&error),
        };
        match request.invocation.verb {
            Verb::Create => self.create(request, &mut held),
            Verb::Start => self.start(request, &mut held),
            Verb::Run | Verb::Restore => self.run(request, &mut held),
            Verb::Delete | Verb::Kill => {
                held.dismiss();
                self.note(request);
            }
        }
    }

    /// What the caller is about to do; `None` when that is nothing to us.
    fn understand(
        &self,
        held: &HeldTask,
        caller: Caller,
        binary: Option<marks::Identity>,
        deadline: Instant,
    ) -> io::Result<Option<Request>> {
        let path = binary.and_then(|binary| self.marks.path(binary));
        let program_now = || path_identity(&format!("/proc/{}/exe", caller.id.pid));
        let argv = match caller.arguments_to_be(deadline)? {
            Some(argv) => {
                // crun executes itself once more with the same arguments: that start is known already.
                if binary.is_some() && program_now() == binary && caller.arguments_now().is_ok_and(|now| now == argv) {
                    self.stats.itself.fetch_add(1, Ordering::Relaxed);
                    return Ok(None);
                }
                argv
            }
            // It was let go before we came to look, and runs the program by now.
            None if binary.is_some() && program_now() == binary => caller.arguments_now()?,
            None => return Err(io::Error::other("the task executes nothing any more")),
        };
        let path = path.unwrap_or_else(|| argv.first().map(PathBuf::from).unwrap_or_default());
        let dialect = Dialect::of(&path);
        let command = argv::parse(dialect, &argv);
        // What a nested caller does with a binary of the host's says nothing about the binary.
        if let Some(binary) = binary.filter(|_| caller.domain == Domain::Host) {
            self.count_use(held, binary, command != Err(argv::ArgvError::NotOci));
        }
        match command {
            Ok(Command::Container(invocation)) => {
                self.place(invocation, &path, dialect, caller, held.since, deadline).map(Some)
            }
            Ok(Command::Itself) => {
                self.stats.itself.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
            Ok(Command::Other) => Ok(None),
            Err(error) => {
                self.stats.argv_errors.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%error, binary = %path.display(), "a command line that no OCI runtime takes");
                Ok(None)
            }
        }
    }

    fn place(
        &self,
        invocation: Invocation,
        binary: &Path,
        dialect: Dialect,
        caller: Caller,
        since: Instant,
        deadline: Instant,
    ) -> io::Result<Request> {
        let cwd = caller.cwd()?;
        let absolute = |path: &Path| bundle::tidy(&cwd.join(path));
        let root = absolute(invocation.root.as_deref().unwrap_or_else(|| dialect.default_root()));
        let bundle = invocation.bundle.as_deref().map_or_else(|| bundle::tidy(&cwd), absolute);
        // runc makes the pid file's path absolute first; crun opens it after it has gone into the bundle.
        let pid_file = invocation.pid_file.as_deref().map(|path| match dialect {
            Dialect::Go => absolute(path),
            Dialect::Argp => bundle::tidy(&bundle.join(path)),
        });
        let name = binary.file_name().unwrap_or_default().to_string_lossy();
        Ok(Request {
            place: Place { domain: caller.domain, root, id: invocation.id.clone() },
            root: caller.root,
            oci: name.as_ref().into(),
            bundle,
            pid_file,
            config: invocation.config.as_deref().map(absolute),
            creator: caller.id,
            seen: BootTime(BootTime::now().0.saturating_sub(since.elapsed().as_nanos() as u64)),
            deadline,
            invocation,
        })
    }

    fn create(&self, request: Request, held: &mut HeldTask) {
        let deadline = request.deadline;
        let entry = self.remember(request);
        if !self.watch(&entry) {
            return held.dismiss();
        }
        let statement = Statement { state: Some(State::Created), ..entry.statement.clone() };
        let phase = entry.phase();
        self.hold(&entry.key, statement, HeldStep::Create, deadline);
        drop(phase);
        held.release();
    }

    fn run(&self, request: Request, held: &mut HeldTask) {
        let entry = self.remember(request);
        if !self.watch(&entry) {
            return held.dismiss();
        }
        let mut phase = entry.phase();
        *phase = Phase::Running;
        self.state(&entry.key, entry.statement.clone());
        drop(phase);
        held.dismiss();
    }

    fn start(&self, request: Request, held: &mut HeldTask) {
        let deadline = request.deadline;
        let entry = match self.book.get(&request.place) {
            Some(entry) => entry,
            None => match self.adopt(&request) {
                Some(entry) => entry,
                None => {
                    self.stats.unproven.fetch_add(1, Ordering::Relaxed);
                    return held.dismiss();
                }
            },
        };
        let mut phase = entry.phase();
        *phase = Phase::Started;
        // Half of what is left, so that there is time for those who are told.
        let patience = deadline.saturating_duration_since(Instant::now()) / 2;
        let init = match self.find_init(&entry, patience, deadline) {
            Ok(init) => init,
            Err(doubt) => {
                self.stats.unproven.fetch_add(1, Ordering::Relaxed);
                held.dismiss();
                drop(phase);
                return self.say(&entry.key, format!("`start` was not held: {doubt}"));
            }
        };
        let mut statement = entry.statement.clone();
        init.apply(&mut statement);
        statement.state = Some(State::Running);
        let outcome = self.hold(&entry.key, statement, HeldStep::Start, deadline);
        drop(phase);
        let in_time = held.release();
        let grade = if in_time && outcome == HeldOutcome::Done { Grade::Held } else { Grade::LetGo };
        self.tell(What::Graded { key: entry.key.clone(), grade });
    }

    fn note(&self, request: Request) {
        let verb = request.invocation.verb;
        let known = match verb {
            Verb::Delete => self.book.remove(&request.place),
            _ => self.book.get(&request.place),
        };
        if let Some(entry) = known {
            if verb == Verb::Delete {
                *entry.phase() = Phase::Gone;
            }
            self.say(&entry.key, format!("`{} {}`", request.oci, verb.name()));
        }
    }

    /// The runtime that made this container has ended: what it made can be read now.
    pub(super) fn creator_ended(&self, entry: &Entry) {
        let phase = entry.phase();
        let is_nested = entry.key.domain != Domain::Host;
        if is_nested && !self.knows_births() {
            return;
        }
        // Patience is for those who do not crowd: for the others it is asked once.
        let turn = is_nested.then(|| self.turns.take()).flatten();
        let patience = turn.as_ref().map_or(Duration::ZERO, |_| RECORD_PATIENCE);
        match (*phase, self.find_init(entry, patience, Instant::now() + ANSWER_PATIENCE)) {
            // The `start` has stated it, or `delete` came.
            (Phase::Gone, _) => {}
            (phase, Ok(init)) => {
                let mut statement = entry.statement.clone();
                init.apply(&mut statement);
                statement.state = Some(if phase == Phase::Created { State::Created } else { State::Running });
                self.state(&entry.key, statement);
            }
            // It was there when its `start` came, and has ended since: the kernel tells how.
            (Phase::Started, Err(_)) => {}
            // A `run` in the foreground ends with its container: if that ever lived, the kernel's word counts.
            (Phase::Created | Phase::Running, Err(doubt)) => {
                let reason = format!("what made it ended and left no container: {doubt}").into();
                self.tell(What::Aborted { key: entry.key.clone(), reason });
                drop(phase);
                self.book.remove(&entry.place);
            }
        }
    }

    /// Reads the bundle and remembers the container.
    fn remember(&self, request: Request) -> Arc<Entry> {
        let Request { place: Place { domain, root, id }, bundle, .. } = &request;
        let key = ContainerKey { domain: *domain, scope: scope::of(bundle, root, id), id: id.clone() };
        let mut statement = bundle::statement(&request.root, bundle, request.config.as_deref(), id, &request.oci);
        statement.creator = Some(request.creator);
        let creator = Some((request.creator, request.seen));
        let entry = Entry::new(key, request.place, request.pid_file, creator, statement);
        if let Some(former) = self.book.insert(&entry) {
            *former.phase() = Phase::Gone;
        }
        entry
    }

    /// A container of the host's that was created before we were there: its runtime's state file says where its bundle is.
    /// A nested caller's cannot be bound to a process that the kernel saw its `create` give birth to.
    fn adopt(&self, request: &Request) -> Option<Arc<Entry>> {
        let Place { domain: domain @ Domain::Host, root, id } = &request.place else { return None };
        let bundle = init::state_file(&request.place)?.bundle;
        let key = ContainerKey { domain: *domain, scope: scope::of(&bundle, root, id), id: id.clone() };
        let statement = bundle::statement(&Root::Host, &bundle, None, id, &request.oci);
        let entry = Entry::new(key, request.place.clone(), None, None, statement);
        self.book.insert(&entry);
        Some(entry)
    }

    fn find_init(&self, entry: &Entry, patience: Duration, deadline: Instant) -> Result<Init, Doubt> {
        match entry.key.domain {
            Domain::Host => init::find(entry, &self.host),
            _ => init::shown(&entry.key, &self.facts, &self.host, patience, deadline),
        }
    }

    /// Whether the kernel shows births: without them no process could be bound to what a nested caller says.
    fn knows_births(&self) -> bool {
        self.health.is_reporting(Source::Kernel)
    }

    /// Waits for the end of what makes a container. `false` when nothing is to be said of it: what is said inside a container
    /// has to be taken back when nothing came of it.
    fn watch(&self, entry: &Arc<Entry>) -> bool {
        let Some((creator, _)) = entry.creator else { return true };
        let watched = sys::pidfd_open(creator.pid).is_ok_and(|pidfd| self.watch.add(pidfd, Arc::clone(entry)));
        if !watched {
            self.stats.unwatched.fetch_add(1, Ordering::Relaxed);
        }
        if !watched && entry.place.is_nested() {
            self.book.remove(&entry.place);
            return false;
        }
        true
    }

    fn hold(&self, key: &ContainerKey, statement: Statement, step: HeldStep, deadline: Instant) -> HeldOutcome {
        self.stats.holds.fetch_add(1, Ordering::Relaxed);
        let facts = vec![fact(What::Stated { key: key.clone(), statement: Box::new(statement) })];
        self.facts.hold(facts, key.clone(), step, deadline)
    }

    fn state(&self, key: &ContainerKey, statement: Statement) {
        self.tell(What::Stated { key: key.clone(), statement: Box::new(statement) });
    }

    fn say(&self, key: &ContainerKey, note: String) {
        self.tell(What::Noted { key: key.clone(), note: note.into() });
    }

    fn tell(&self, what: What) {
        // When the collection has ended, so have we.
        let _ = self.facts.state_blocking(vec![fact(what)]);
    }

    fn count_use(&self, held: &HeldTask, binary: marks::Identity, oci: bool) {
        if let Some((request, path)) = self.marks.saw(binary, oci) {
            held.unmark(request);
            let detail = "not an OCI runtime after all: what it executes is not held any more";
            self.health.report(Source::Barrier, &path.display().to_string(), Condition::Refused, detail);
            tracing::info!(binary = %path.display(), detail);
        }
    }

    fn count_stranger(&self, stranger: Stranger) {
        let counter = match stranger {
            Stranger::User => &self.stats.refused_user,
            Stranger::UserNamespace => &self.stats.refused_user_namespace,
            Stranger::Nested => &self.stats.refused_nested,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn count_unread(&self, error: &io::Error) {
        self.stats.unread.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(%error, "a held task could not be read");
    }
}

fn fact(what: What) -> Fact {
    Fact { source: Source::Barrier, at: BootTime::now(), what }
}

fn identity_of(file: &std::fs::File) -> Option<marks::Identity> {
    use std::os::unix::fs::MetadataExt;
    file.metadata().ok().map(|file| (file.dev(), file.ino()))
}

fn path_identity(path: &str) -> Option<marks::Identity> {
    super::caller::identity(Path::new(path)).ok()
}

/// Whether a process's command line makes a container, and where its bundle is: for learning what started one.
pub(super) fn makes_container(binary: &Path, argv: &[OsString], cwd: &Path) -> Option<PathBuf> {
    let Ok(Command::Container(invocation)) = argv::parse(Dialect::of(binary), argv) else { return None };
    match invocation.verb {
        Verb::Create | Verb::Run | Verb::Restore => Some(cwd.join(invocation.bundle.unwrap_or_default())),
        _ => None,
    }
}
