//! Pinned selections of a real daemon: they end with their owner, the kept ones go on with the next daemon, and what
//! cannot be pinned is said.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use aya::maps::IterableMap;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tracker_tests::bpffs::{BpfFs, content, open};
use tracker_tests::daemon::Daemon;
use tracker_tests::process::Process;
use tracker_tests::wait::{PATIENCE, eventually};
use tracker_tests::{require, requirement};

/// A daemon that holds no starts and pins here.
fn daemon(pins: &Path) -> Result<Daemon> {
    let file = std::env::temp_dir().join(format!("trk-plane-{}-{}", std::process::id(), fastrand::u32(..)));
    Daemon::start(&format!(
        "[barrier]\nknown-paths = false\nlearn = false\n[containerd]\nenabled = false\n[server.limits]\nselections = 3\n\
         [plane]\nenabled = false\npath = '{}'\npins = '{}'\n",
        file.display(),
        pins.display()
    ))
}

/// A process in a mount ns of its own, registered as a container; ended and reaped when dropped.
struct Inhabitant {
    process: Child,
    mntns: u32,
}

impl Inhabitant {
    fn start(daemon: &Daemon, name: &str) -> Result<Inhabitant> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sleep", "1000"]).stdin(Stdio::null());
        let process = command.spawn().with_context(|| format!("start {command:?}"))?;
        let mut inhabitant = Inhabitant { process, mntns: 0 };
        let ns = |pid: u32| fs::metadata(format!("/proc/{pid}/ns/mnt")).map_or(0, |ns| ns.ino());
        let pid = inhabitant.process.id();
        let comm = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        eventually("it sleeps in its own mount ns", || (comm() == "sleep\n").then_some(()));
        assert_ne!(ns(pid), ns(std::process::id()));
        inhabitant.mntns = u32::try_from(ns(pid))?;
        let about = json!({"id": format!("{name}-{pid}"), "name": name, "pid": pid}).to_string();
        let (status, answer) = daemon.request("POST", "/v1/registrations", &about)?;
        ensure!(status == 201, "{answer}");
        Ok(inhabitant)
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn post(daemon: &Daemon, wish: &Value) -> Result<(u16, Value)> {
    ask(daemon, "POST", "/v1/selections", &wish.to_string())
}

fn ask(daemon: &Daemon, method: &str, path: &str, body: &str) -> Result<(u16, Value)> {
    let (status, answer) = daemon.request(method, path, body)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("find the answer's body")?;
    Ok((status, serde_json::from_str(body).with_context(|| format!("understand `{body}`"))?))
}

fn listed(daemon: &Daemon) -> Result<Vec<Value>> {
    let (_, lines) = ask(daemon, "GET", "/v1/selections", "")?;
    lines.as_array().cloned().context("a list")
}

/// Starts a process that only is.
fn sleeper() -> Result<Inhabitant> {
    Ok(Inhabitant { process: Command::new("sleep").arg("1000").spawn()?, mntns: 0 })
}

#[test]
fn a_pinned_selection_follows_and_ends_with_its_owner() -> Result<()> {
    require!(requirement::root());
    let bpf = BpfFs::mount()?;
    let daemon = daemon(&bpf.path("trk"))?;
    let (before, owner) = (Inhabitant::start(&daemon, "blue")?, sleeper()?);
    let wish = json!({"name": "blue", "selector": "name=blue", "owner": owner.process.id()});
    let (status, made) = post(&daemon, &wish)?;
    ensure!(status == 201, "{made}");
    let directory = bpf.path("trk/selections/blue");
    assert_eq!(made["pins"], json!(directory));
    assert_eq!((&made["containers"], &made["keep"], &made["full"]), (&json!(1), &json!(false), &json!(false)));
    assert_eq!(fs::metadata(&directory)?.permissions().mode() & 0o777, 0o700);
    let map = open::<u32>(&directory.join("mntns"))?;
    assert!(open::<u64>(&directory.join("mntns")).is_err() && open::<u64>(&directory.join("cgroups")).is_ok());
    assert!(content(&map)?.keys().eq([&before.mntns]));
    let overlapping = json!({"name": "both", "selector": "name in (blue,green)", "owner": owner.process.id()});
    ensure!(post(&daemon, &overlapping)?.0 == 201);
    let both = open::<u32>(&bpf.path("trk/selections/both/mntns"))?;

    let (green, more) = (Inhabitant::start(&daemon, "green")?, Inhabitant::start(&daemon, "blue")?);
    eventually("both come in, where they are picked", || {
        let (mut blue, mut all) = ([before.mntns, more.mntns], [before.mntns, more.mntns, green.mntns]);
        blue.sort_unstable();
        all.sort_unstable();
        let is = |map, truth: &[u32]| content(map).is_ok_and(|content| content.keys().eq(truth));
        (is(&map, &blue) && is(&both, &all)).then_some(())
    });
    drop(before);
    eventually("who ended goes", || content(&map).ok()?.keys().eq([&more.mntns]).then_some(()));

    drop(owner);
    eventually("they end with their owner", || listed(&daemon).ok()?.is_empty().then_some(()));
    eventually("the pins go, too", || (!directory.exists()).then_some(()));
    assert!(content(&map)?.is_empty() && content(&both)?.is_empty(), "nobody keeps them up any more");
    // The name is free, and nothing of the other is left.
    let (status, made) =
        post(&daemon, &json!({"name": "blue", "selector": "name=green", "owner": std::process::id()}))?;
    ensure!(status == 201, "{made}");
    assert!(content(&open::<u32>(&directory.join("mntns"))?)?.keys().eq([&green.mntns]));
    let (status, _) = ask(&daemon, "DELETE", "/v1/selections/blue", "")?;
    ensure!(status == 200 && !directory.exists());
    ensure!(ask(&daemon, "DELETE", "/v1/selections/blue", "")?.0 == 404);
    ensure!(daemon.stop()? == Some(0));
    Ok(())
}

#[test]
fn what_makes_no_sense_is_refused() -> Result<()> {
    require!(requirement::root());
    let bpf = BpfFs::mount()?;
    let tracker = daemon(&bpf.path("trk"))?;
    let wish = |name: &str| json!({"name": name, "selector": "name=x", "owner": std::process::id()});
    ensure!(post(&tracker, &wish("a"))?.0 == 201);
    let long = "n".repeat(65);
    for (wrong, status) in [
        (wish("a"), 409),
        (wish(""), 400),
        (wish("a/b"), 400),
        (wish(".."), 400),
        (wish("a.b"), 400),
        (wish(&long), 400),
        (json!({"name": "b", "selector": "name=x,,"}), 400),
        (json!({"name": "b", "selector": "", "owner": 0}), 400),
        (json!({"name": "b", "selector": "", "owner": 4_194_305}), 400),
    ] {
        let (answered, said) = post(&tracker, &wrong)?;
        assert_eq!(answered, status, "{wrong}: {said}");
    }
    ensure!(post(&tracker, &wish("b"))?.0 == 201 && post(&tracker, &wish("c"))?.0 == 201);
    let (status, said) = post(&tracker, &wish("d"))?;
    assert_eq!(status, 503, "{said}");
    assert_eq!(fs::read_dir(bpf.path("trk/selections"))?.count(), 3);

    // What lies there already is somebody's.
    fs::create_dir(bpf.path("trk/selections/theirs"))?;
    ensure!(ask(&tracker, "DELETE", "/v1/selections/c", "")?.0 == 200);
    let (status, said) = post(&tracker, &wish("theirs"))?;
    assert!(status == 409 && bpf.path("trk/selections/theirs").exists(), "{said}");
    fs::remove_dir(bpf.path("trk/selections/theirs"))?;
    ensure!(post(&tracker, &wish("c"))?.0 == 201);

    // A second daemon may not have the same pins, nor touch them.
    let second = daemon(&bpf.path("trk"))?;
    let (status, said) = post(&second, &wish("e"))?;
    assert!(status == 409 && said["error"].as_str().is_some_and(|said| said.contains("running")), "{said}");
    assert_eq!(fs::read_dir(bpf.path("trk/selections"))?.count(), 3);

    // Nor is there anything to pin in: none is wanted, it is no BPF file system, or one that is read-only.
    let (temp, read_only) = (TempDir::new()?, BpfFs::mount_read_only()?);
    for pins in [PathBuf::new(), temp.path().join("trk"), read_only.path("trk")] {
        let daemon = daemon(&pins)?;
        let (status, said) = post(&daemon, &wish("a"))?;
        assert!(status == 409 && said["remedy"].is_string(), "{}: {status} {said}", pins.display());
        assert!(listed(&daemon)?.is_empty());
        assert!(daemon.find("nobody").is_none(), "it lives");
    }
    assert_eq!(fs::read_dir(temp.path())?.count(), 0);
    Ok(())
}

#[test]
fn a_kept_selection_goes_on_with_the_next_daemon_and_others_do_not() -> Result<()> {
    require!(requirement::root());
    let bpf = BpfFs::mount()?;
    let mut daemon = daemon(&bpf.path("trk"))?;
    let stays = Inhabitant::start(&daemon, "kept")?;
    let goes = Inhabitant::start(&daemon, "kept")?;
    let path = |name: &str| bpf.path("trk/selections").join(name);
    for (name, keep) in [("kept", true), ("owned", false)] {
        let (status, said) =
            post(&daemon, &json!({"name": name, "selector": "kind in (unmanaged,container)", "keep": keep}))?;
        ensure!(status == 201, "{said}");
    }
    let (status, said) = post(&daemon, &json!({"name": "named", "selector": "name=kept", "keep": true}))?;
    ensure!(status == 201 && said["owner"].is_null(), "{said}");
    let named = open::<u32>(&path("named/mntns"))?;
    assert_eq!(content(&named)?.len(), 2);
    let owned = open::<u32>(&path("owned/mntns"))?;
    let id = |map: &aya::maps::HashMap<_, u32, u64>| map.map().info().map(|info| info.id());

    // Killed, so that it removes nothing.
    daemon.process().signal(Signal::SIGKILL)?;
    daemon.process().wait(PATIENCE)?;
    assert!(path("owned/mntns").exists() && content(&named)?.len() == 2, "as it was");
    drop(goes);
    daemon.restart()?;
    // What nobody keeps up is removed before anything is answered, and emptied for who has it open.
    assert!(!path("owned").exists() && content(&owned)?.is_empty());
    let names = |lines: Vec<Value>| -> Vec<String> {
        lines.iter().filter_map(|line| line["name"].as_str().map(str::to_owned)).collect()
    };
    let all = open::<u32>(&path("kept/mntns"))?;
    eventually("those to be kept are kept up again", || {
        // It has no gap for who is there all the time.
        assert!(content(&all).is_ok_and(|content| content.contains_key(&stays.mntns)));
        (listed(&daemon).map(names).is_ok_and(|names| names == ["kept", "named"])).then_some(())
    });
    assert_eq!(id(&open::<u32>(&path("named/mntns"))?)?, id(&named)?, "the same map");
    // Registrations have ended with the daemon: what was registered is again what nobody vouches for.
    assert!(content(&named)?.is_empty(), "{:?}", content(&named)?);
    assert!(content(&all)?.contains_key(&stays.mntns));
    let more = Inhabitant::start(&daemon, "kept")?;
    eventually("and who comes", || content(&named).ok()?.keys().eq([&more.mntns]).then_some(()));

    // In order, it leaves the kept ones as they are as well.
    daemon.process().signal(Signal::SIGTERM)?;
    daemon.process().wait(PATIENCE)?;
    assert!(content(&named)?.keys().eq([&more.mntns]) && path("named/mntns").exists());
    daemon.restart()?;
    eventually("they are kept up once more", || (listed(&daemon).ok()?.len() == 2).then_some(()));
    for name in ["named", "kept"] {
        ensure!(ask(&daemon, "DELETE", &format!("/v1/selections/{name}"), "")?.0 == 200);
        assert!(!path(name).exists());
    }
    Ok(())
}

#[test]
fn the_command_pins_until_it_is_interrupted() -> Result<()> {
    require!(requirement::root());
    let bpf = BpfFs::mount()?;
    let (daemon, temp) = (daemon(&bpf.path("trk"))?, TempDir::new()?);
    let start = |name: &str| -> Result<(Process, PathBuf)> {
        let log = temp.path().join(name);
        let mut command = Command::new(requirement::tracker().map_err(anyhow::Error::msg)?);
        command.arg("--socket").arg(daemon.socket()).args(["select", "--pin", name, "name=cli"]);
        let process = Process::start(&mut command, &log)?;
        eventually("it is pinned", || fs::read_to_string(&log).ok()?.contains("0 containers").then_some(()));
        Ok((process, log))
    };
    let (mut interrupted, log) = start("interrupted")?;
    let said = fs::read_to_string(&log)?;
    assert!(said.starts_with("pinned ") && said.contains("/interrupted/mntns"), "{said}");
    let inhabitant = Inhabitant::start(&daemon, "cli")?;
    eventually("it tells", || fs::read_to_string(&log).ok()?.contains("  1 containers").then_some(()));
    drop(inhabitant);
    eventually("of the end, too", || fs::read_to_string(&log).ok()?.ends_with("  0 containers\n").then_some(()));
    interrupted.signal(Signal::SIGINT)?;
    assert!(interrupted.wait(PATIENCE)?.success());
    assert!(!bpf.path("trk/selections/interrupted").exists(), "gone when the command is");
    let (mut killed, _) = start("killed")?;
    killed.signal(Signal::SIGKILL)?;
    killed.wait(PATIENCE)?;
    eventually("it is gone", || (!bpf.path("trk/selections/killed").exists()).then_some(()));

    let kept = daemon.ask(&["select", "--pin", "kept", "name=cli", "--keep"])?;
    assert_eq!((kept.code, kept.err.as_str()), (0, ""));
    let lines = daemon.ask_json(&["select", "--list", "-o", "json"])?;
    assert_eq!(
        (&lines[0]["name"], &lines[0]["keep"], lines.as_array().map(Vec::len)),
        (&json!("kept"), &json!(true), Some(1))
    );
    let again = daemon.ask(&["select", "--pin", "kept", "name=cli"])?;
    assert!(again.code == 1 && again.err.contains("already"), "{again:?}");
    let wrong = daemon.ask(&["select", "--pin", "other", "name=cli,nme=x"])?;
    assert!(wrong.code == 2 && wrong.err.contains("column 10"), "{wrong:?}");
    assert_eq!(daemon.ask(&["select", "--remove", "kept"])?.code, 0);
    assert_eq!(daemon.ask(&["select", "--remove", "kept"])?.code, 3);
    assert_eq!(daemon.ask(&["select", "--list", "-o", "name"])?.out, "");
    Ok(())
}
