//! What has no runtime: shown as `unmanaged` with what it shows of itself, or kept apart as a `sandboxed-process`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tempfile::TempDir;
use tracker_tests::bundle::RootFs;
use tracker_tests::daemon::Daemon;
use tracker_tests::process::{self, Process};
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

/// Nobody: whoever has this uid has no rights.
const NOBODY: u32 = 65_534;

fn directory() -> Result<TempDir> {
    let directory = tempfile::tempdir().context("create a directory")?;
    // For the user without rights, too.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    Ok(directory)
}

/// The container whose init is in this mount ns, excluded or not, once a look at it has been told.
#[track_caller]
fn looked_at(daemon: &Daemon, pid: u32) -> Value {
    let mntns = kernel::namespace(pid, "mnt").expect("it lives").to_string();
    eventually(&format!("process {pid} has been looked at"), || {
        let story = daemon.ask_json(&["explain", "--mntns", &mntns, "-o", "json"]).ok()?;
        let timeline = story["timeline"].as_array()?;
        let is_look = |line: &Value| line["text"].as_str().is_some_and(|text| text.starts_with("no runtime knows it"));
        timeline.iter().any(is_look).then_some(story)
    })
}

/// The one child of a process, once that is in a mount ns of its own.
#[track_caller]
fn child_apart(parent: u32) -> u32 {
    let own = kernel::namespace(std::process::id(), "mnt").expect("the test lives");
    eventually(&format!("process {parent} has a child in a mount ns of its own"), || {
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        let child = children.split_whitespace().next()?.parse().ok()?;
        let is_sleep = fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim() == "sleep");
        kernel::namespace(child, "mnt").ok().filter(|mntns| *mntns != own && is_sleep).map(|_| child)
    })
}

#[test]
fn what_unshare_makes_is_unmanaged_with_its_command() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), kernel::btf(), requirement::program("unshare"));
    let directory = directory()?;
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "/bin/sleep", "123456"]);
        Process::start(&mut command, &directory.path().join("log"))
    };
    let before = unshare()?;
    let early = child_apart(before.pid());
    let daemon = Daemon::start("")?;
    let after = unshare()?;
    for (pid, grade) in [(early, "observed"), (child_apart(after.pid()), "first-exec")] {
        let story = looked_at(&daemon, pid);
        let known = &story["container"];
        assert_eq!((&known["kind"], &known["grade"], &known["pid"]), (&json!("unmanaged"), &json!(grade), &json!(pid)));
        assert_eq!(known["command"], json!(["/bin/sleep", "123456"]), "{known}");
        assert_eq!(known["mntns"], kernel::namespace(pid, "mnt")?);
        assert_eq!(known["netns"], kernel::namespace(pid, "net")?);
        assert_eq!(known["pidns"], kernel::namespace(pid, "pid")?);
        let id = known["id"].as_str().context("an id")?;
        assert!(id.starts_with("mntns-"), "{id}");
        assert!(known["created_at"].is_string() && known.get("name").is_none() && story.get("excluded").is_none());
        assert!(daemon.find(id).is_some());
    }
    Ok(())
}

/// A machine of systemd-nspawn's or an LXC container, which sleeps.
fn machine(runtime: &str, name: &str, root: &RootFs, directory: &Path) -> Result<Process> {
    let (at, place, log) = (root.path().display().to_string(), directory.display().to_string(), directory.join("log"));
    let words = match runtime {
        "systemd-nspawn" => ["--quiet", "--register=no", "--keep-unit", "-M", name, "-D", &at].map(str::to_owned),
        _ => {
            let config = directory.join("lxc.conf");
            let lines =
                ["net.0.type = none", "mount.auto = proc:mixed", "apparmor.profile = unconfined", "pty.max = 0"];
            let lines = lines.map(|line| format!("lxc.{line}\n")).concat();
            fs::write(&config, format!("lxc.rootfs.path = dir:{at}\n{lines}"))?;
            let config = config.display().to_string();
            ["-F", "-n", name, "-P", &place, "-f", &config].map(str::to_owned)
        }
    };
    let program = if runtime == "lxc" { "lxc-start" } else { runtime };
    // Both make cgroups beside or below the one that they are in.
    let within = "for procs in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do test -e $procs &&
        mkdir -p \"${procs%/*}/$0\" && echo 0 > \"${procs%/*}/$0/cgroup.procs\"; done 2>/dev/null; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", within, &cgroup(), program]).args(words);
    let end: &[&str] = if runtime == "lxc" { &["--"] } else { &[] };
    Process::start(command.args(end).args(["/bin/sleep", "123456"]), &log)
}

/// The cgroup of this test's machines.
fn cgroup() -> String {
    format!("kinds-machines-{}", std::process::id())
}

/// Ends who is left in it, and removes it.
struct Cgroup;

/// Who is in a cgroup, and below it.
fn members(cgroup: &Path) -> Vec<u32> {
    let own = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten().map(|entry| entry.path());
    let below = below.filter(|path| path.is_dir()).flat_map(|path| members(&path));
    own.lines().filter_map(|pid| pid.parse().ok()).chain(below).collect()
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for pid in hierarchies.flat_map(|hierarchy| members(&hierarchy.join(cgroup()))) {
            let _ = kill(process::pid(pid), Signal::SIGKILL);
        }
        kernel::remove_cgroup(&cgroup());
        // LXC leaves it behind, empty.
        kernel::remove_cgroup("lxc.pivot");
    }
}

#[test]
fn machines_of_nspawn_and_lxc_are_told_by_name_with_what_runs_in_them_and_end() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), kernel::btf(), requirement::program("busybox"));
    require!(requirement::program("systemd-nspawn"), requirement::program("lxc-start"));
    let _cgroup = Cgroup;
    let directory = directory()?;
    let start = |runtime: &str, when: &str| -> Result<(Process, u32, String)> {
        let name = format!("kinds-{when}-{}", std::process::id());
        let place = directory.path().join(format!("{runtime}-{when}"));
        fs::create_dir(&place)?;
        // Each wants its root file system for itself, and that it looks like one.
        let root = RootFs::create(&place)?;
        fs::create_dir(root.path().join("usr"))?;
        fs::write(root.path().join("etc/os-release"), "ID=test\n")?;
        let machine = machine(runtime, &name, &root, &place)?;
        let pid = child_apart(machine.pid());
        Ok((machine, pid, name))
    };
    for runtime in ["systemd-nspawn", "lxc"] {
        let early = start(runtime, "before")?;
        let daemon = Daemon::start("")?;
        let late = start(runtime, "after")?;
        for ((mut machine, pid, name), grade) in [(early, "observed"), (late, "first-exec")] {
            // Its first process was looked at before, when it was still its maker's.
            let known = eventually("its command is known", || {
                let story = looked_at(&daemon, pid);
                Some(story["container"].clone()).filter(|known| known["command"] == json!(["/bin/sleep", "123456"]))
            });
            assert_eq!((&known["kind"], &known["grade"]), (&json!("unmanaged"), &json!(grade)), "{known}");
            assert_eq!((&known["runtime"]["name"], &known["name"]), (&json!(runtime), &json!(name)), "{known}");
            assert_eq!((&known["pid"], &known["state"]), (&json!(pid), &json!("running")), "{known}");
            for (field, namespace) in [("mntns", "mnt"), ("pidns", "pid"), ("netns", "net")] {
                assert_eq!(known[field], kernel::namespace(pid, namespace)?, "{field} of {known}");
            }
            kill(process::pid(pid), Signal::SIGKILL)?;
            machine.wait(tracker_tests::wait::PATIENCE)?;
            let id = known["id"].as_str().context("an id")?;
            let over = eventually("its end is told", || daemon.in_state(id, "exited"));
            assert_eq!((&over["exit"]["code"], &over["name"]), (&json!(137), &json!(name)), "{over}");
        }
    }
    Ok(())
}

/// A cgroup of the host's, removed with its processes when dropped; its path below the hierarchy's root.
struct HostCgroup(PathBuf, String);

impl HostCgroup {
    fn make(path: &str) -> Result<HostCgroup> {
        let unified = tracker::source::task::v2_mount_point().context("find where cgroup v2 is mounted")?;
        let directory = unified.join(path.trim_start_matches('/'));
        fs::create_dir_all(&directory).with_context(|| format!("make the cgroup `{path}`"))?;
        Ok(HostCgroup(directory, path.to_owned()))
    }

    fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for HostCgroup {
    fn drop(&mut self) {
        let pids = fs::read_to_string(self.procs()).unwrap_or_default();
        for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
            let _ = kill(process::pid(pid), Signal::SIGKILL);
        }
        let _ = tracker_tests::wait::within(tracker_tests::wait::PATIENCE, || fs::remove_dir(&self.0).ok());
        // The slice above it, if nobody else uses it.
        let _ = self.0.parent().map(fs::remove_dir);
    }
}

/// A process with private mounts in this cgroup, whose maker has ended: the host's first process is above it.
fn orphan(cgroup: &HostCgroup, directory: &Path) -> Result<u32> {
    let pid_file = directory.join("orphan");
    let _ = fs::remove_file(&pid_file);
    let script = format!(
        "echo 0 > {:?} && (exec setsid unshare --mount sh -c 'echo $$ > {:?}; exec /bin/sleep 123456') &",
        cgroup.procs(),
        pid_file
    );
    process::run(Command::new("sh").args(["-c", &script]))?;
    let pid = eventually("the orphan says who it is", || fs::read_to_string(&pid_file).ok()?.trim().parse().ok());
    eventually("it sleeps", || {
        fs::read_to_string(format!("/proc/{pid}/comm")).ok().filter(|name| name.trim() == "sleep")
    });
    Ok(pid)
}

#[test]
fn a_service_with_private_mounts_is_kept_apart_and_a_cgroup_that_only_looks_like_one_is_not() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), kernel::btf(), requirement::program("unshare"));
    require!(tracker::source::task::v2_mount_point().map(drop).ok_or_else(|| "cgroup v2 is not mounted".to_owned()));
    let directory = directory()?;
    let own = std::process::id();
    let service = HostCgroup::make(&format!("/system.slice/kinds-{own}.service"))?;
    let disguised = HostCgroup::make(&format!("/kinds-{own}/x.service"))?;
    let (quiet, open) = (Daemon::start("")?, Daemon::start("[collection]\nsandboxed-processes = true")?);

    let pid = orphan(&service, directory.path())?;
    let story = looked_at(&quiet, pid);
    let known = &story["container"];
    let unit = format!("kinds-{own}.service");
    assert_eq!((&known["kind"], &known["name"]), (&json!("sandboxed-process"), &json!(unit)), "{story}");
    assert_eq!(known["cgroup"]["path"], service.1.as_str());
    assert!(story["excluded"].as_str().is_some_and(|why| why.contains("sandboxed-processes")), "{story}");
    let id = known["id"].as_str().context("an id")?;
    assert!(quiet.find(id).is_none());
    looked_at(&open, pid);
    let shown = open.find(id).context("it is shown where that is wanted")?;
    assert_eq!((&shown["kind"], &shown["runtime"]["name"]), (&json!("sandboxed-process"), &json!("systemd")));
    assert!(!open.ask(&["ps"])?.out.contains(id), "its kind decides that it is not listed unasked");

    let pid = orphan(&disguised, directory.path())?;
    let story = looked_at(&quiet, pid);
    assert_eq!((&story["container"]["kind"], story.get("excluded")), (&json!("unmanaged"), None), "{story}");
    assert!(quiet.find(story["container"]["id"].as_str().context("an id")?).is_some());
    Ok(())
}

#[test]
fn a_users_bubblewrap_is_kept_apart_and_one_that_the_user_wrote_is_not() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), kernel::btf(), requirement::program("bwrap"));
    let directory = directory()?;
    let real = requirement::program("bwrap").map_err(anyhow::Error::msg)?;
    let own = directory.path().join("bwrap");
    fs::copy(&real, &own).context("copy bwrap")?;
    std::os::unix::fs::chown(&own, Some(NOBODY), None).context("give bwrap to somebody else")?;
    let daemon = Daemon::start("")?;
    for (program, kind) in [(&real, "sandboxed-process"), (&own, "unmanaged")] {
        let mut command = Command::new(program);
        command.args(["--ro-bind", "/", "/", "--dev", "/dev", "/bin/sleep", "123456"]).uid(NOBODY).gid(NOBODY);
        let bwrap = Process::start(&mut command, &directory.path().join("log"))?;
        let pid = child_apart(bwrap.pid());
        let story = looked_at(&daemon, pid);
        assert_eq!(story["container"]["kind"], kind, "{}: {story}", program.display());
        let id = story["container"]["id"].as_str().context("an id")?;
        assert_eq!(daemon.find(id).is_some(), kind == "unmanaged");
        let _ = kill(process::pid(pid), Signal::SIGKILL);
    }
    Ok(())
}
