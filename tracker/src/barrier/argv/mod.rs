//! The command lines of OCI runtimes, read as the runtimes read them. Pure: bytes in, values out, no IO, never a panic.
//!
//! [`parse`] promises: what it accepts names the same container, bundle, root and pid file as the runtime would use, and
//! what the runtime refuses to run comes out as an error. It leaves to others what relative paths mean
//! ([`Invocation`] keeps them as spelt) and whether anything named exists.
//!
//! runc parses with Go's `flag` package behind urfave/cli ([`go`]), crun with glibc's argp ([`argp`]). They agree on little:
//! `-bundle X` is a bundle for runc and the bundle `undle` for crun; `ID --bundle X` is fine for runc and an
//! error for crun; `--bund X` is the reverse. Ids are held to [`ContainerId`]'s rules, which are stricter than crun's (it
//! forbids only `/`) and than runc's before 1.2 (it lets a comma pass): a start with such an id is not held.

mod argp;
mod go;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::container::{ContainerId, InvalidId};

/// Most arguments that are looked at; a command line with more is not an OCI runtime's.
pub const MAX_ARGUMENTS: usize = 1024;
/// Most bytes of one command line, terminators included.
pub const MAX_BYTES: usize = 128 * 1024;

/// How a runtime reads its command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// runc, and all who imitate it: Go flags.
    Go,
    /// crun and krun: GNU argp.
    Argp,
}

impl Dialect {
    /// The dialect of a binary, by its file name: `crun` and `krun`, also with a suffix such as `crun-wasm`, are argp;
    /// everything else imitates runc.
    pub fn of(binary: &Path) -> Self {
        let name = binary.file_name().unwrap_or_default().as_bytes();
        if name.starts_with(b"crun") || name.starts_with(b"krun") { Dialect::Argp } else { Dialect::Go }
    }

    /// Where the runtime keeps its state for root when `--root` does not say.
    pub fn default_root(self) -> &'static Path {
        match self {
            Dialect::Go => Path::new("/run/runc"),
            Dialect::Argp => Path::new("/run/crun"),
        }
    }
}

/// A verb that makes, starts or ends a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Make it, up to the moment before its entrypoint.
    Create,
    /// Let its entrypoint run.
    Start,
    /// Both at once.
    Run,
    /// Like `run`, from a checkpoint.
    Restore,
    /// Forget it.
    Delete,
    /// Signal it.
    Kill,
}

impl Verb {
    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Create => "create",
            Verb::Start => "start",
            Verb::Run => "run",
            Verb::Restore => "restore",
            Verb::Delete => "delete",
            Verb::Kill => "kill",
        }
    }
}

/// What a command line asks of a runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Something about one container.
    Container(Invocation),
    /// The runtime executing itself inside a container that it makes (`runc init`).
    Itself,
    /// A verb or flag of OCI runtimes that changes no container's life: `state`, `exec`, `list`, `--version`, …
    Other,
}

/// One container's step, as spelt on the command line: paths may be relative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// The step.
    pub verb: Verb,
    /// The container.
    pub id: ContainerId,
    /// `--root`, where given.
    pub root: Option<PathBuf>,
    /// `--bundle`, where given; else the bundle is the caller's working directory.
    pub bundle: Option<PathBuf>,
    /// `--pid-file`, where given.
    pub pid_file: Option<PathBuf>,
    /// crun's `--config`, where given: the file to read instead of the bundle's `config.json`.
    pub config: Option<PathBuf>,
}

/// Why a command line asks nothing that we understand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgvError {
    /// Beyond [`MAX_ARGUMENTS`] or [`MAX_BYTES`].
    #[error("a command line longer than an OCI runtime takes")]
    TooLong,
    /// No verb of OCI runtimes.
    #[error("no verb of an OCI runtime")]
    NotOci,
    /// The runtime would refuse it.
    #[error("the runtime refuses this: {0}")]
    Usage(&'static str),
    /// An id that is none.
    #[error("{0}")]
    Id(#[from] InvalidId),
}

/// Reads a command line, `argv[0]` included, as a runtime of this dialect does.
pub fn parse(dialect: Dialect, argv: &[OsString]) -> Result<Command, ArgvError> {
    if argv.len() > MAX_ARGUMENTS || argv.iter().map(|a| a.len() + 1).sum::<usize>() > MAX_BYTES {
        return Err(ArgvError::TooLong);
    }
    let arguments: Vec<&[u8]> = argv.iter().skip(1).map(|argument| argument.as_bytes()).collect();
    match dialect {
        Dialect::Go => parse_go(&arguments),
        Dialect::Argp => parse_argp(&arguments),
    }
}

fn parse_go(arguments: &[&[u8]]) -> Result<Command, ArgvError> {
    let global = go::parse(GO_GLOBAL, arguments)?;
    let Some((verb, rest)) = global.operands.split_first() else { return no_verb(&global) };
    if global.has("help") || global.has("version") {
        return Ok(Command::Other);
    }
    if *verb == b"init" {
        return Ok(Command::Itself);
    }
    let Some((verb, flags)) = find_verb(verb, GO_VERBS) else { return other_verb(verb) };
    let local = go::parse(flags, &go::reorder(flags, rest))?;
    invocation(verb, &global, &local)
}

fn parse_argp(arguments: &[&[u8]]) -> Result<Command, ArgvError> {
    let global = argp::parse(ARGP_GLOBAL, arguments)?;
    let Some((verb, rest)) = global.operands.split_first() else { return no_verb(&global) };
    let Some((verb, flags)) = find_verb(verb, ARGP_VERBS) else { return other_verb(verb) };
    let local = argp::parse(flags, rest)?;
    // crun changes into the bundle before it opens its state directory: what a relative root means is an accident.
    if global.value("root").is_some_and(|root| !root.starts_with(b"/")) {
        return Err(ArgvError::Usage("a relative --root"));
    }
    if local.value("bundle").is_some_and(<[u8]>::is_empty) {
        return Err(ArgvError::Usage("an empty --bundle"));
    }
    invocation(verb, &global, &local)
}

fn invocation(verb: Verb, global: &Parsed<'_>, local: &Parsed<'_>) -> Result<Command, ArgvError> {
    if local.has("help") || local.has("version") || local.has("regex") {
        return Ok(Command::Other);
    }
    let most = if verb == Verb::Kill { 2 } else { 1 };
    let id = match local.operands.as_slice() {
        [] => return Err(ArgvError::Usage("no container id")),
        [id, more @ ..] if more.len() < most => *id,
        _ => return Err(ArgvError::Usage("too many operands")),
    };
    // No valid id is outside UTF-8, so what the replacement character stands for is refused as well.
    let id = ContainerId::new(&String::from_utf8_lossy(id))?;
    let path = |parsed: &Parsed<'_>, name| parsed.value(name).filter(|v| !v.is_empty()).map(to_path);
    Ok(Command::Container(Invocation {
        verb,
        id,
        root: path(global, "root"),
        bundle: path(local, "bundle"),
        pid_file: path(local, "pid-file"),
        config: path(local, "config"),
    }))
}

fn no_verb(global: &Parsed<'_>) -> Result<Command, ArgvError> {
    if global.has("help") || global.has("version") { Ok(Command::Other) } else { Err(ArgvError::NotOci) }
}

fn find_verb(word: &[u8], verbs: &'static [(Verb, &'static [Flag])]) -> Option<(Verb, &'static [Flag])> {
    verbs.iter().copied().find(|(verb, _)| verb.name().as_bytes() == word)
}

fn other_verb(word: &[u8]) -> Result<Command, ArgvError> {
    if OTHER_VERBS.iter().any(|verb| verb.as_bytes() == word) { Ok(Command::Other) } else { Err(ArgvError::NotOci) }
}

fn to_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// A flag that a runtime knows: its names, the canonical one first, and what it takes.
#[derive(Clone, Copy, Debug)]
struct Flag {
    names: &'static [&'static str],
    takes: Takes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Nothing,
    Text,
    Integer,
}

/// One level of a command line, taken apart.
#[derive(Debug, Default)]
struct Parsed<'a> {
    options: Vec<(&'static str, &'a [u8])>,
    operands: Vec<&'a [u8]>,
}

impl<'a> Parsed<'a> {
    /// The last value given: both runtimes let a later flag replace an earlier one.
    fn value(&self, name: &str) -> Option<&'a [u8]> {
        self.options.iter().rev().find(|(option, _)| *option == name).map(|(_, value)| *value)
    }

    fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }
}

/// Takes the first of `rest`.
fn take<'a>(rest: &mut &[&'a [u8]]) -> Option<&'a [u8]> {
    let (first, behind) = rest.split_first()?;
    *rest = behind;
    Some(first)
}

const fn switch(names: &'static [&'static str]) -> Flag {
    Flag { names, takes: Takes::Nothing }
}

const fn text(names: &'static [&'static str]) -> Flag {
    Flag { names, takes: Takes::Text }
}

const fn integer(names: &'static [&'static str]) -> Flag {
    Flag { names, takes: Takes::Integer }
}

/// Verbs that change no container's life, of runc, crun and those who imitate them.
const OTHER_VERBS: &[&str] = &[
    "checkpoint",
    "events",
    "exec",
    "features",
    "help",
    "h",
    "list",
    "mounts",
    "pause",
    "ps",
    "resume",
    "spec",
    "state",
    "update",
];

const GO_GLOBAL: &[Flag] = &[
    switch(&["debug"]),
    text(&["log"]),
    text(&["log-format"]),
    text(&["root"]),
    text(&["criu"]),
    switch(&["systemd-cgroup"]),
    text(&["rootless"]),
    switch(&["help", "h"]),
    switch(&["version", "v"]),
];

// `keep` and `pidfd-socket` came with runc 1.2; older ones refuse them, and then nothing is made.
const GO_CREATE: &[Flag] = &[
    text(&["bundle", "b"]),
    text(&["console-socket"]),
    text(&["pidfd-socket"]),
    text(&["pid-file"]),
    switch(&["no-pivot"]),
    switch(&["no-new-keyring"]),
    integer(&["preserve-fds"]),
    switch(&["help", "h"]),
];

const GO_RUN: &[Flag] = &[
    text(&["bundle", "b"]),
    text(&["console-socket"]),
    text(&["pidfd-socket"]),
    switch(&["detach", "d"]),
    switch(&["keep"]),
    text(&["pid-file"]),
    switch(&["no-subreaper"]),
    switch(&["no-pivot"]),
    switch(&["no-new-keyring"]),
    integer(&["preserve-fds"]),
    switch(&["help", "h"]),
];

const GO_RESTORE: &[Flag] = &[
    text(&["console-socket"]),
    text(&["image-path"]),
    text(&["work-path"]),
    switch(&["tcp-established"]),
    switch(&["ext-unix-sk"]),
    switch(&["shell-job"]),
    switch(&["file-locks"]),
    text(&["manage-cgroups-mode"]),
    text(&["bundle", "b"]),
    switch(&["detach", "d"]),
    text(&["pid-file"]),
    switch(&["no-subreaper"]),
    switch(&["no-pivot"]),
    text(&["empty-ns"]),
    switch(&["auto-dedup"]),
    switch(&["lazy-pages"]),
    text(&["lsm-profile"]),
    text(&["lsm-mount-context"]),
    switch(&["link-remap"]),
    switch(&["help", "h"]),
];

const GO_VERBS: &[(Verb, &[Flag])] = &[
    (Verb::Create, GO_CREATE),
    (Verb::Start, &[switch(&["help", "h"])]),
    (Verb::Run, GO_RUN),
    (Verb::Restore, GO_RESTORE),
    (Verb::Delete, &[switch(&["force", "f"]), switch(&["help", "h"])]),
    (Verb::Kill, &[switch(&["all", "a"]), switch(&["help", "h"])]),
];

const ARGP_HELP: Flag = switch(&["help", "?"]);
const ARGP_USAGE: Flag = switch(&["help", "usage"]);
const ARGP_VERSION: Flag = switch(&["version", "V"]);

const ARGP_GLOBAL: &[Flag] = &[
    switch(&["debug"]),
    text(&["cgroup-manager"]),
    text(&["log"]),
    text(&["log-format"]),
    text(&["log-level"]),
    // Not a slip of ours: crun takes `--rootless VALUE` for another name of `--root` (seen with crun 1.8.1).
    text(&["root", "rootless"]),
    switch(&["systemd-cgroup"]),
    switch(&["version", "v"]),
    ARGP_HELP,
    ARGP_USAGE,
    ARGP_VERSION,
];

const ARGP_CREATE: &[Flag] = &[
    text(&["bundle", "b"]),
    text(&["config", "f"]),
    text(&["console-socket"]),
    text(&["preserve-fds"]),
    switch(&["no-pivot"]),
    text(&["pid-file"]),
    switch(&["no-subreaper"]),
    switch(&["no-new-keyring"]),
    ARGP_HELP,
    ARGP_USAGE,
    ARGP_VERSION,
];

const ARGP_RUN: &[Flag] = &[
    text(&["bundle", "b"]),
    text(&["config", "f"]),
    text(&["console-socket"]),
    text(&["preserve-fds"]),
    switch(&["detach", "d"]),
    switch(&["no-pivot"]),
    text(&["pid-file"]),
    switch(&["no-subreaper"]),
    switch(&["no-new-keyring"]),
    ARGP_HELP,
    ARGP_USAGE,
    ARGP_VERSION,
];

const ARGP_RESTORE: &[Flag] = &[
    text(&["bundle", "b"]),
    text(&["console-socket"]),
    switch(&["detach", "d"]),
    text(&["image-path"]),
    text(&["work-path"]),
    switch(&["tcp-established"]),
    switch(&["ext-unix-sk"]),
    switch(&["shell-job"]),
    switch(&["file-locks"]),
    text(&["manage-cgroups-mode"]),
    text(&["pid-file"]),
    text(&["lsm-profile"]),
    text(&["lsm-mount-context"]),
    ARGP_HELP,
    ARGP_USAGE,
    ARGP_VERSION,
];

const ARGP_VERBS: &[(Verb, &[Flag])] = &[
    (Verb::Create, ARGP_CREATE),
    (Verb::Start, &[ARGP_HELP, ARGP_USAGE, ARGP_VERSION]),
    (Verb::Run, ARGP_RUN),
    (Verb::Restore, ARGP_RESTORE),
    (Verb::Delete, &[switch(&["force", "f"]), switch(&["regex", "r"]), ARGP_HELP, ARGP_USAGE, ARGP_VERSION]),
    (Verb::Kill, &[switch(&["all", "a"]), switch(&["regex", "r"]), ARGP_HELP, ARGP_USAGE, ARGP_VERSION]),
];

/// Splits NUL-terminated strings, as `/proc/<pid>/cmdline` has them.
pub fn split_nul(bytes: &[u8]) -> Vec<OsString> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|byte| *byte == 0).map(|word| OsStr::from_bytes(word).to_owned()).collect()
}

#[cfg(test)]
mod tests;
