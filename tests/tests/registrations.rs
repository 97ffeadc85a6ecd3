//! Registrations through the debug socket: made by root, listed, answered by number, and gone with their owner.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tracker_tests::daemon::Daemon;
use tracker_tests::wait::eventually;
use tracker_tests::{require, requirement};

/// A daemon that holds no starts and may have two registrations.
const CONFIG: &str = "[barrier]\nknown-paths = false\nlearn = false\n[containerd]\nenabled = false\n\
                      [server.limits]\nregistrations = 2\n";

/// Ends and reaps the process when the test is over.
struct Ends(Child);

impl Ends {
    fn start(command: &mut Command) -> Result<Ends> {
        Ok(Ends(command.spawn().with_context(|| format!("start {command:?}"))?))
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cgroup of the v2 hierarchy without processes; removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make() -> Result<Cgroup> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).context("find cgroup v2")?;
        let root = line.split(' ').nth(4).context("read where it is mounted")?;
        let path = PathBuf::from(format!("{root}/tracker-registration-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("make `{}`", path.display()))?;
        Ok(Cgroup(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Asks the debug socket as any HTTP client does; the status, and what it answered.
fn request(daemon: &Daemon, method: &str, body: &Value) -> Result<(u16, Value)> {
    let mut stream = UnixStream::connect(daemon.socket()).context("connect to the tracker")?;
    let body = if method == "GET" { String::new() } else { body.to_string() };
    let len = body.len();
    write!(
        stream,
        "{method} /v1/registrations HTTP/1.1\r\nhost: tracker\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {len}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("find the answer's body")?;
    let status = head.split(' ').nth(1).context("find the status")?.parse()?;
    Ok((status, serde_json::from_str(body).with_context(|| format!("understand `{body}`"))?))
}

fn register(daemon: &Daemon, about: Value) -> Result<(u16, Value)> {
    request(daemon, "POST", &about)
}

#[test]
fn a_registration_is_listed_and_ends_with_its_owner() -> Result<()> {
    require!(requirement::root());
    let daemon = Daemon::start(CONFIG)?;
    let cgroup = Cgroup::make()?;
    let owner = Ends::start(Command::new("sleep").arg("1000"))?;
    let about = |id: &str| json!({"id": id, "name": "blue", "cgroup": cgroup.0, "owner": owner.0.id()});
    let (status, made) = register(&daemon, about("vm-1"))?;
    ensure!((status, &made["owner"]) == (201, &json!(owner.0.id())), "{status} {made}");
    ensure!(register(&daemon, about("vm-2"))?.0 == 201);
    let (status, refused) = register(&daemon, about("vm-3"))?;
    ensure!(status == 503, "{refused}");
    let (_, listed) = request(&daemon, "GET", &Value::Null)?;
    let ids: Vec<&Value> = listed.as_array().context("a list")?.iter().map(|line| &line["id"]).collect();
    assert_eq!(ids, ["vm-1", "vm-2"]);
    eventually("it is a container", || {
        daemon.in_state("vm-1", "running").filter(|vm| vm["name"] == "blue").map(|_| ())
    });

    drop(owner);
    eventually("its owner's end is its own", || {
        let (_, listed) = request(&daemon, "GET", &Value::Null).ok()?;
        listed.as_array()?.is_empty().then_some(())
    });
    eventually("it is over", || daemon.find("vm-1").is_none_or(|vm| vm["state"] == "exited").then_some(()));
    Ok(())
}

#[test]
fn a_process_stands_for_its_mount_namespace_which_has_one_container() -> Result<()> {
    require!(requirement::root());
    let daemon = Daemon::start(CONFIG)?;
    let script = "sleep 1000 & echo $!; read line";
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--fork", "--pid", "--mount-proc", "--kill-child", "sh", "-c", script]);
    let mut shell = Ends::start(shell.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let mut line = String::new();
    BufReader::new(shell.0.stdout.take().context("take its output")?).read_line(&mut line)?;
    // Its own number for the process is of its own pid namespace: ours is its parent's only other child.
    let init = children(shell.0.id())?.first().copied().context("find the init")?;
    let other = children(init)?.first().copied().context("find the other process")?;
    let mntns = eventually("its birth is known", || {
        let found = daemon.ask_json(&["lookup", "--pid", &init.to_string(), "-o", "json"]).ok()?;
        found["containers"][0]["mntns"].as_u64()
    });

    let (status, answer) = register(&daemon, json!({"id": "box", "name": "box", "pid": other}))?;
    ensure!(status == 201, "{answer}");
    let mntns = mntns.to_string();
    let by_mntns = || daemon.ask_json(&["lookup", "--mntns", &mntns, "-o", "json"]);
    eventually("the namespace is that container's", || {
        let found = by_mntns().ok()?;
        let container = &found["containers"][0];
        (container["id"] == "box" && container["pid"] == init).then_some(())
    });
    let (status, refused) = register(&daemon, json!({"id": "second", "pid": other}))?;
    ensure!(status == 400 && refused.to_string().contains("`box`"), "{status} {refused}");
    ensure!(register(&daemon, json!({"id": "box", "name": "renamed", "pid": other}))?.0 == 201, "it may be replaced");
    eventually("the new name is known", || (by_mntns().ok()?["containers"][0]["name"] == "renamed").then_some(()));
    Ok(())
}

fn children(pid: u32) -> Result<Vec<u32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    text.split_ascii_whitespace().map(|pid| Ok(pid.parse()?)).collect()
}
