//! The example tracer names the container on the very first exec of every container, and the host on the host's.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;
use tracker_tests::bundle::{Bundle, RootFs};
use tracker_tests::example::{Example, config};
use tracker_tests::kernel::is_alive;
use tracker_tests::process::copy_program;
use tracker_tests::runc::{Container, Kind as Oci, Runtime};
use tracker_tests::wait::eventually;
use tracker_tests::{require, requirement};

/// How many are made by `create` and `start`, which is held, and by `run`, which nothing can hold.
fn counts() -> (usize, usize) {
    // In an emulated machine each takes seconds, and what there is to show is that the probe works on its kernel.
    if std::env::var_os("TRACKER_TESTS_IN_MACHINE").is_some() { (3, 1) } else { (20, 5) }
}

/// The mount ns of a process that lives.
fn mount_ns(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/ns/mnt");
    Ok(fs::metadata(&path).with_context(|| format!("look at `{path}`"))?.ino())
}

/// What the test made: the id by pid and mount ns of the init.
#[derive(Default)]
struct Truth(HashMap<(u64, u64), String>);

impl Truth {
    fn note(&mut self, container: &Container<'_>) -> Result<()> {
        let key = (container.pid().into(), mount_ns(container.pid())?);
        self.0.insert(key, container.id().to_owned());
        Ok(())
    }
}

#[test]
fn the_first_exec_of_every_container_names_it() -> Result<()> {
    require!(Oci::Runc.requirement(), requirement::example("execsnoop"));
    let temp = TempDir::new()?;
    let (root, runtime) = (RootFs::create(temp.path())?, Runtime::copy(Oci::Runc, temp.path())?);
    let execsnoop = Example::start("execsnoop", &config(&runtime), &["-o", "json"])?;

    let ((held, run), mut truth) = (counts(), Truth::default());
    for number in 0..held {
        let id = format!("held-{number}");
        let container = runtime.create(&Bundle::create(temp.path(), &id, &root, &["true"])?, &id)?;
        truth.note(&container)?;
        container.start()?;
        // `start` returns before the entrypoint executes; deleted earlier, it never would. The next one may get the same
        // mount ns number then.
        eventually("the entrypoint ends", || (!is_alive(container.pid())).then_some(()));
    }
    let mut alive = Vec::new();
    for number in 0..run {
        let id = format!("run-{number}");
        // It lives until it has been looked at: by then it may have executed or not.
        let container = runtime.run(&Bundle::create(temp.path(), &id, &root, &["sleep", "100"])?, &id)?;
        truth.note(&container)?;
        let name = || fs::read_to_string(format!("/proc/{}/comm", container.pid())).unwrap_or_default();
        eventually("the entrypoint executes", || (name() == "sleep\n").then_some(()));
        alive.push(container);
    }
    let mut hosts = Vec::new();
    for _ in 0..run {
        let mut child = Command::new("true").stdin(Stdio::null()).spawn()?;
        hosts.push(u64::from(child.id()));
        child.wait()?;
    }
    let said = execsnoop.stop()?;
    drop(alive);

    let mut first: HashMap<(u64, u64), Value> = HashMap::new();
    for line in said.lines().filter(|line| line.starts_with('{')) {
        let line: Value = serde_json::from_str(line).with_context(|| format!("understand `{line}`"))?;
        let number = |field: &str| line[field].as_u64().with_context(|| format!("`{field}` in {line}"));
        first.entry((number("pid")?, number("mntns")?)).or_insert(line);
    }
    let mut wrong = Vec::new();
    for (key, id) in &truth.0 {
        match first.get(key) {
            Some(line) if line["answer"] == "container" && line["container"]["id"] == id.as_str() => {
                assert!(line["filename"].as_str().is_some_and(|name| name.starts_with("/bin/")), "{line}");
            }
            line => wrong.push(format!("{id}: {line:?}")),
        }
    }
    let host_ns = mount_ns(std::process::id())?;
    for pid in hosts {
        match first.get(&(pid, host_ns)) {
            Some(line) if line["answer"] == "host" && line["container"].is_null() => {}
            line => wrong.push(format!("`true` on the host: {line:?}")),
        }
    }
    assert_eq!(truth.0.len(), held + run, "each has a pid of its own");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// A program in the container that executes another, which its first process waits for.
const TWICE: [&str; 3] = ["sh", "-c", "/bin/true; exec /bin/true"];

#[test]
fn a_selection_shows_exactly_the_selected_containers_from_their_first_exec_on() -> Result<()> {
    require!(Oci::Runc.requirement(), requirement::example("execsnoop"));
    let temp = TempDir::new()?;
    let (root, runtime) = (RootFs::create(temp.path())?, Runtime::copy(Oci::Runc, temp.path())?);
    let options = ["-o", "json", "--stats", "--select", "id in (picked-*,chosen-*)"];
    let execsnoop = Example::start("execsnoop", &config(&runtime), &options)?;
    let (held, _) = counts();
    let mut truth = HashMap::new();
    for number in 0..2 * held {
        let id = format!("{}-{number}", ["picked", "other", "chosen", "left"][number % 4]);
        let container = runtime.create(&Bundle::create(temp.path(), &id, &root, &TWICE)?, &id)?;
        if number % 2 == 0 {
            truth.insert(id, u64::from(container.pid()));
        }
        container.start()?;
        eventually("the entrypoint ends", || (!is_alive(container.pid())).then_some(()));
    }
    let mut child = Command::new("true").stdin(Stdio::null()).spawn()?;
    child.wait()?;
    let said = execsnoop.stop()?;

    let mut shown: HashMap<String, Vec<(u64, String)>> = HashMap::new();
    for line in said.lines().filter(|line| line.starts_with('{')) {
        let line: Value = serde_json::from_str(line).with_context(|| format!("understand `{line}`"))?;
        let id = line["container"]["id"].as_str().with_context(|| format!("a container in {line}"))?;
        let exec = (line["pid"].as_u64().unwrap_or(0), line["filename"].as_str().unwrap_or_default().to_owned());
        shown.entry(id.to_owned()).or_default().push(exec);
    }
    let ids = |map: Vec<&String>| map.into_iter().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(ids(shown.keys().collect()), ids(truth.keys().collect()), "{said}");
    for (id, init) in truth {
        let execs = &shown[&id];
        assert!(execs.len() == 3 && execs[0].0 == init && execs[0].1.ends_with("/sh"), "{id}: {execs:?}");
        assert!(
            execs[1].1 == "/bin/true" && execs[1].0 != init && execs[2] == (init, "/bin/true".to_owned()),
            "{execs:?}"
        );
    }
    assert!(said.contains("the probe ran ") && !said.contains("for 0 ns each"), "{said}");
    Ok(())
}

#[test]
fn a_selector_that_does_not_parse_is_told() -> Result<()> {
    require!(requirement::example("execsnoop"));
    let program = requirement::example("execsnoop").map_err(anyhow::Error::msg)?;
    let output = Command::new(program).args(["--select", "id=x,nme=y"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("nme"), "{said}");
    Ok(())
}

#[test]
fn nothing_in_a_name_reaches_the_terminal() -> Result<()> {
    require!(requirement::root(), requirement::program("busybox"), requirement::example("execsnoop"));
    let temp = TempDir::new()?;
    let hostile = temp.path().join("a\n\x1b[2J\u{202e}b");
    copy_program(&requirement::program("busybox").map_err(anyhow::Error::msg)?, &hostile)?;
    let execsnoop = Example::start("execsnoop", "[barrier]\nenabled = false\n", &[])?;
    let pid = execute(&hostile)?;
    let said = execsnoop.stop()?;
    let line = said.lines().find(|line| line.split_whitespace().any(|word| word == pid.to_string()));
    let line = line.with_context(|| format!("a line of process {pid} in {said}"))?;
    assert!(line.ends_with(r"/a\n\u{1b}[2J\u{202e}b"), "{line}");
    assert!(line.split_whitespace().nth(1) == Some("host"), "{line}");
    assert!(!said.contains('\x1b'), "{said}");
    Ok(())
}

/// Executes a program and returns the pid that it had.
fn execute(program: &Path) -> Result<u32> {
    // Just written: somebody who was forked meanwhile may still have it open for writing.
    let mut child = eventually("the program can be executed", || {
        Command::new(program).arg("true").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
    });
    let pid = child.id();
    child.wait()?;
    Ok(pid)
}
