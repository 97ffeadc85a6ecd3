//! What the parser makes of a command line is what the real runtime makes of it.
//!
//! Each spelling goes to the parser and to the real binary. `create` is given bundles that do not exist, which the runtime
//! names in its complaint; `start` finds, in the root and under the id that are meant, a state file that is broken
//! in a way of its own. Nothing is ever made.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command as Program, Stdio};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tracker::barrier::argv::{self, ArgvError, Command, Dialect, Verb};
use tracker_tests::require;
use tracker_tests::runc::{Kind, Runtime};

/// What came of a command line, as far as both sides can tell.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Refused as such.
    Usage,
    /// It asks for help, or for nothing that concerns a container's life.
    Other,
    /// `create` in this bundle; none: in the working directory.
    Create(Option<String>),
    /// `start` of the container whose state file was planted.
    StartPlanted,
    /// `start` of another container, or in another root.
    StartElsewhere,
    /// No id by the runtime's rules.
    Id,
}

fn parsed(dialect: Dialect, line: &[String], root: &Path) -> Outcome {
    let argv: Vec<OsString> = line.iter().map(OsString::from).collect();
    match argv::parse(dialect, &argv) {
        Ok(Command::Container(invocation)) if invocation.verb == Verb::Create => {
            Outcome::Create(invocation.bundle.map(|bundle| bundle.display().to_string()))
        }
        Ok(Command::Container(invocation)) => {
            let planted = invocation.id.as_str() == "c1" && invocation.root.as_deref() == Some(root);
            if planted { Outcome::StartPlanted } else { Outcome::StartElsewhere }
        }
        Ok(_) => Outcome::Other,
        Err(ArgvError::Id(_)) => Outcome::Id,
        Err(_) => Outcome::Usage,
    }
}

fn real(runtime: &Runtime, line: &[String], cwd: &Path) -> Result<Outcome> {
    let output = Program::new(runtime.program())
        .args(&line[1..])
        .current_dir(cwd)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {line:?}"))?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let between = |left: &str, right: &str| Some(said.split_once(left)?.1.split_once(right)?.0.to_owned());
    let refusals =
        ["Incorrect Usage", "No help topic", "requires a", "Try `", "please specify a ID", "unknown command"];
    Ok(if says(&refusals) {
        Outcome::Usage
    } else if output.status.success() {
        Outcome::Other
    } else if says(&["invalid container ID format", "container id cannot be empty"]) {
        Outcome::Id
    } else if let Some(bundle) = between("chdir ", ": no such").or_else(|| between("chdir `", "` failed")) {
        Outcome::Create(Some(bundle))
    } else if says(&["realpath `` failed"]) {
        Outcome::Usage
    } else if let Some(bundle) = between("realpath `", "` failed") {
        Outcome::Create(Some(bundle))
    } else if says(&["config.json"]) {
        Outcome::Create(None)
    } else if says(&["does not exist", "error opening file"]) {
        Outcome::StartElsewhere
    } else if says(&["unexpected end of JSON", "unexpected EOF", "parse error", "cannot parse"]) {
        Outcome::StartPlanted
    } else {
        anyhow::bail!("{line:?}: {said}")
    })
}

fn check(kind: Kind, dialect: Dialect, lines: &[&str]) -> Result<()> {
    let temp = TempDir::new()?;
    let runtime = Runtime::copy(kind, temp.path())?;
    let (root, cwd) = (runtime.root(), temp.path().join("cwd"));
    fs::create_dir_all(root.join("c1"))?;
    fs::write(root.join("c1/state.json"), "{")?;
    fs::write(root.join("c1/status"), "{")?;
    fs::create_dir(&cwd)?;
    let mut differences = Vec::new();
    for line in lines {
        let spelt = line.split(' ').map(|word| {
            let elsewhere = temp.path().join("elsewhere").display().to_string();
            word.replace("ROOT", &root.display().to_string()).replace("ELSEWHERE", &elsewhere).replace("EMPTY", "")
        });
        let line: Vec<String> = std::iter::once(kind.name().to_owned()).chain(spelt).collect();
        let (ours, theirs) = (parsed(dialect, &line, root), real(&runtime, &line, &cwd)?);
        if ours != theirs {
            differences.push(format!("{line:?}: we say {ours:?}, {} says {theirs:?}", kind.name()));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert_eq!(fs::read_dir(root)?.count(), 1, "nothing was made");
    Ok(())
}

#[test]
fn runc_reads_each_spelling_as_the_parser_does() -> Result<()> {
    require!(Kind::Runc.requirement());
    let lines = [
        "--root ROOT create -b /nope c9",
        "--root ROOT create --b /nope c9",
        "--root ROOT create -bundle /nope c9",
        "--root ROOT create --bundle=/nope c9",
        "--root ROOT create -b=/nope c9",
        "--root ROOT create -b/nope c9",
        "--root ROOT create --bund /nope c9",
        "--root ROOT create c9 --bundle /nope",
        "--root ROOT create c9",
        "--root ROOT create --bundle= c9",
        "--root ROOT create --bundle",
        "--root ROOT create",
        "--root ROOT create -b /nope",
        "--root ROOT create -b /nope c9 c8",
        "--root ROOT create -b /nope -b /nope2 c9",
        "--root ROOT create -b /nope --bundle /nope2 c9",
        "--root ROOT create --no-pivot --bundle /nope c9",
        "--root ROOT create --no-pivot c9 --bundle /nope",
        "--root ROOT create --no-pivot=false --bundle /nope c9",
        "--root ROOT create --no-pivot=T --bundle /nope c9",
        "--root ROOT create --no-pivot=maybe --bundle /nope c9",
        "--root ROOT create --preserve-fds 0x10 --bundle /nope c9",
        "--root ROOT create --preserve-fds 010 --bundle /nope c9",
        "--root ROOT create --preserve-fds x --bundle /nope c9",
        "--root ROOT create --pid-file /p --console-socket /s --bundle /nope c9",
        "--root ROOT create --bundle /nope -- c9",
        "--root ROOT create --bundle /nope -- -c9",
        "--root ROOT create c9 -- --bundle /nope",
        "--root ROOT create -b --no-pivot c9",
        "--root ROOT create -b - c9",
        "--root ROOT create ---b /nope c9",
        "--root ROOT create -= /nope c9",
        "--root ROOT create -b /nope c9 -h",
        "--root ROOT create --help",
        "--root ROOT -- create -b /nope c9",
        "--root=ROOT --debug --log /dev/null start c1",
        "-root ROOT -systemd-cgroup --log-format=json --rootless auto --criu x start c1",
        "--root ROOT --root ELSEWHERE start c1",
        "--root ELSEWHERE --root ROOT start c1",
        "--root ROOT start c1",
        "--root ROOT start c1 --",
        "--root ROOT start -- c1",
        "--root ROOT start c2",
        "--root ROOT start c1 c2",
        "--root ROOT start -x c1",
        "--root ROOT start ..",
        "--root ROOT start .",
        "--root ROOT start a/b",
        "--root ROOT start a\nb",
        "--root ROOT start EMPTY",
        "--root ROOT start ä",
        "--root ROOT kill c1 KILL",
        "--root ROOT kill c1 -9",
        "--root ROOT kill -9 c1",
        "--root ROOT kill -a c1 KILL",
        "--root ROOT -x start c1",
        "--root",
        "-h create -b /nope c9",
        "--version",
        "creat -b /nope c9",
        "STATE",
    ];
    check(Kind::Runc, Dialect::Go, &lines)
}

#[test]
fn crun_reads_each_spelling_as_the_parser_does() -> Result<()> {
    require!(Kind::Crun.requirement());
    let lines = [
        "--root ROOT create -b /nope c9",
        "--root ROOT create -b/nope c9",
        "--root ROOT create --bundle=/nope c9",
        "--root ROOT create --bund /nope c9",
        "--root ROOT create --bundle= c9",
        "--root ROOT create -bundle c9",
        "--root ROOT create c9 --bundle /nope",
        "--root ROOT create --bundle",
        "--root ROOT create",
        "--root ROOT create -b /nope c9 c8",
        "--root ROOT create -b /nope -b /nope2 c9",
        "--root ROOT create --no-pivot -b /nope c9",
        "--root ROOT create --no-pivot=1 -b /nope c9",
        "--root ROOT create --no-piv -b /nope c9",
        "--root ROOT create --no-p -b /nope c9",
        "--root ROOT create --no -b /nope c9",
        "--root ROOT create --pid-file /p --console-s /s -b /nope c9",
        "--root ROOT create -b /nope -- c9",
        "--root ROOT create -f /c.json -b /nope c9",
        "--root ROOT -- create -b /nope c9",
        "--root ROOT create --help",
        "--root ROOT create -x c9",
        "--root=ROOT --debug --log /dev/null start c1",
        "--roo ROOT --systemd --cgroup-man cgroupfs --log-format=text start c1",
        "--lo /dev/null --root ROOT start c1",
        "--rootless=ROOT start c1",
        "--root ROOT --root ELSEWHERE start c1",
        "--root ELSEWHERE --root ROOT start c1",
        "--root ROOT start c1",
        "--root ROOT start -- c1",
        "--root ROOT start c2",
        "--root ROOT start c1 c2",
        "--root ROOT kill c1 KILL",
        "--root ROOT kill -a c1 KILL",
        "-root ROOT start c1",
        "--root",
        "--version",
        "creat -b /nope c9",
        "STATE",
    ];
    check(Kind::Crun, Dialect::Argp, &lines)
}
