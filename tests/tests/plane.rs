//! The plane's owner: what others find in the file while a tracker runs, after it was killed, and when somebody meddles.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use serde_json::json;
use tracker::source::kernel::setup::host_namespace;
use tracker_common::plane::Row;
use tracker_common::reader::{Answer, Condition, Plane, TextBuffer, When};
use tracker_tests::daemon::Daemon;
use tracker_tests::process::Process;
use tracker_tests::wait::{PATIENCE, eventually};
use tracker_tests::{require, requirement};

/// A daemon that holds no starts and asks no runtimes: what it knows it sees, or is told by the test.
const QUIET: &str = "[barrier]\nknown-paths = false\nlearn = false\n[containerd]\nenabled = false\n";

/// A process in a mount ns of its own, which a person vouches for.
struct Known {
    process: Process,
    mntns: u32,
    name: String,
}

impl Known {
    fn start(daemon: &Daemon, name: &str) -> Result<Known> {
        let known = Known::unknown(name)?;
        known.tell(daemon)?;
        Ok(known)
    }

    fn unknown(name: &str) -> Result<Known> {
        let mut command = Command::new("sleep");
        command.arg("600");
        // SAFETY: one system call, between fork and exec.
        unsafe { command.pre_exec(|| unshare(CloneFlags::CLONE_NEWNS).map_err(Into::into)) };
        let process = Process::start(&mut command, Path::new("/dev/null"))?;
        let mntns = u32::try_from(fs::metadata(format!("/proc/{}/ns/mnt", process.pid()))?.ino())?;
        Ok(Known { process, mntns, name: name.to_owned() })
    }

    /// Ends its process.
    fn end(mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait(PATIENCE)?;
        Ok(())
    }

    fn tell(&self, daemon: &Daemon) -> Result<()> {
        let id = &self.name[..self.name.len().min(64)];
        let about = json!({"id": id, "name": self.name, "pid": self.process.pid(), "owner": std::process::id()});
        let (status, answer) = daemon.request("POST", "/v1/registrations", &about.to_string())?;
        ensure!(status == 201, "the registration is taken: {answer}");
        Ok(())
    }

    /// What a plane says of it.
    fn said(&self, plane: &Plane) -> Option<(Row, String)> {
        named(plane, self.mntns)
    }

    /// Waits until a plane has its name.
    fn until_said(&self, plane: &Plane) -> Row {
        let is_said = || self.said(plane).filter(|(_, name)| *name == self.name);
        eventually("the plane names the container", is_said).0
    }
}

/// The row and the name that a mount ns has in a plane now.
fn named(plane: &Plane, mntns: u32) -> Option<(Row, String)> {
    let mut texts = TextBuffer::new();
    let (row, texts) = plane.by_mntns_with_texts(mntns, When::Now, &mut texts).container()?;
    Some((row, texts.name.to_string()))
}

/// The plane as soon as it is there and somebody writes it.
fn opened(path: &Path) -> Plane {
    eventually("there is a plane", || {
        Plane::open(path).ok().filter(|plane| plane.status().condition == Condition::Fresh)
    })
}

#[test]
fn what_is_known_is_found_also_after_the_tracker_was_killed_and_by_its_successor() -> Result<()> {
    require!(requirement::root());
    let mut daemon = Daemon::start(QUIET)?;
    let (web, gone) = (Known::start(&daemon, "web")?, Known::start(&daemon, "gone")?);
    let plane = opened(&daemon.plane());
    let row = web.until_said(&plane);
    gone.until_said(&plane);
    assert_eq!((row.pid, row.kind_name(), row.state_name()), (web.process.pid(), Some("container"), Some("running")));
    assert!(matches!(plane.by_mntns(host_namespace("mnt")?, When::Now), Answer::Host));
    let epoch = plane.status().epoch;

    daemon.process().signal(Signal::SIGKILL)?;
    eventually("the tracker has ended", || daemon.process().ended().ok()?);
    assert_eq!(web.said(&plane).context("it is found without a tracker")?.1, "web");
    eventually("nobody is seen to write the plane", || {
        Some(()).filter(|()| plane.status().condition == Condition::Gone)
    });
    // What ends now nobody sees.
    let (mntns, seen) = (gone.mntns, plane.status());
    gone.end()?;

    daemon.restart()?;
    eventually("a successor writes the same file", || Some(()).filter(|()| plane.status().epoch == epoch + 1));
    eventually("it has compared all", || Some(()).filter(|()| !plane.status().is_adopting));
    // Its name is the former owner's word until the sources tell anew, and it has its row.
    let (later, _) = web.said(&plane).context("it is found by the same mapping")?;
    assert_eq!((later.uses, later.mntns, later.pid), (row.uses, row.mntns, row.pid));
    // Its number may have passed to anybody.
    assert!(named(&plane, mntns).is_none_or(|(_, name)| name != "gone"), "who ended meanwhile is not there now");
    let last = tracker_common::reader::now_ns() - u64::try_from(seen.age.as_nanos())?;
    let mut texts = TextBuffer::new();
    let answer = plane.by_mntns_with_texts(mntns, When::At(last), &mut texts);
    assert!(
        answer.container().is_none(),
        "nor was it since the former owner's last heartbeat, as far as anybody knows"
    );
    web.tell(&daemon)?;
    web.until_said(&plane);

    daemon.stop()?;
    assert_eq!(plane.status().condition, Condition::Stopped);
    assert_eq!(web.said(&plane).context("it is found after the end")?.1, "web");
    Ok(())
}

#[test]
fn a_second_tracker_does_without_until_the_first_has_stopped_beating() -> Result<()> {
    require!(requirement::root());
    let mut first = Daemon::start(QUIET)?;
    let path = first.plane();
    let same = format!("{QUIET}[plane]\npath = '{}'\npins = ''\n", path.display());
    let plane = opened(&path);
    let second = Daemon::start(&same)?;
    let log = second.log();
    let pid = first.process().pid();
    assert!(log.contains(&format!("is written by the process {pid}")), "the one who has it is named: {log}");
    assert_eq!(second.metric("tracker_plane_written")?, 0.0);
    assert_eq!(plane.status().owner_pid, pid);

    // Stopped, it keeps the file, and a successor makes one of its own beside it.
    first.process().signal(Signal::SIGSTOP)?;
    eventually("the second one has a plane", || second.metric("tracker_plane_written").ok().filter(|has| *has == 1.0));
    assert_eq!(plane.status().condition, Condition::Superseded);
    let web = Known::start(&second, "web")?;
    let later = opened(&path);
    web.until_said(&later);

    // Going on, it writes into its own, finds that nobody opens that any more, and leaves the new one alone.
    let (owner, epoch) = (later.status().owner_pid, later.status().epoch);
    first.process().signal(Signal::SIGCONT)?;
    eventually("the first one notices", || first.metric("tracker_plane_written").ok().filter(|has| *has == 0.0));
    assert_eq!((later.status().owner_pid, later.status().epoch), (owner, epoch));
    web.until_said(&opened(&path));
    Ok(())
}

#[test]
fn a_plane_that_is_removed_or_cut_is_made_anew_with_all_that_is_known() -> Result<()> {
    require!(requirement::root());
    let daemon = Daemon::start(QUIET)?;
    let web = Known::start(&daemon, "web")?;
    let path = daemon.plane();
    let mut plane = opened(&path);
    web.until_said(&plane);
    let cut = |path: &Path, len| OpenOptions::new().write(true).open(path)?.set_len(len);
    type Meddle<'a> = &'a dyn Fn(&Path) -> std::io::Result<()>;
    let meddle: [(&str, Meddle<'_>); 4] = [
        ("removed", &|path| fs::remove_file(path)),
        // A tracker that writes finds no memory where the file was.
        ("cut", &|path| cut(path, 100)),
        ("cut behind its header", &|path| cut(path, 4096)),
        ("replaced", &|path| {
            let other = path.with_extension("other");
            fs::write(&other, b"nonsense")?;
            fs::rename(other, path)
        }),
    ];
    for (how, meddle) in meddle {
        meddle(&path).with_context(|| format!("a plane that is {how}"))?;
        // Written at once, not at the next heartbeat.
        let meanwhile = Known::start(&daemon, &how.replace(' ', "-"))?;
        eventually(&format!("readers of a plane that is {how} are told"), || {
            Some(()).filter(|()| matches!(plane.status().condition, Condition::Superseded | Condition::Broken))
        });
        eventually("there is another", || plane.reopen_if_superseded().ok().filter(|reopened| *reopened));
        let row = web.until_said(&plane);
        assert_eq!(row.mntns, web.mntns, "after it was {how}");
        meanwhile.until_said(&plane);
    }
    Ok(())
}

#[test]
fn where_there_can_be_no_plane_the_tracker_says_so_and_runs_without() -> Result<()> {
    require!(requirement::root());
    let directory = tempfile::tempdir()?;
    let read_only = directory.path().join("read-only");
    let others = directory.path().join("others");
    let open = directory.path().join("open");
    for directory in [&read_only, &others, &open] {
        fs::create_dir(directory)?;
    }
    mount(Some("none"), &read_only, Some("tmpfs"), MsFlags::MS_RDONLY, Option::<&str>::None)?;
    let _mounted = Mounted(&read_only);
    fs::write(others.join("plane"), b"")?;
    std::os::unix::fs::chown(others.join("plane"), Some(1000), None)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777))?;
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(others.join("plane"), &link)?;
    for (path, says) in [
        (read_only.join("plane"), "Read-only file system"),
        (others.join("plane"), "another user's"),
        (open.join("plane"), "a directory that others can write"),
        (link, "a symbolic link"),
        (directory.path().into(), "Is a directory"),
    ] {
        let daemon = Daemon::start(&format!("{QUIET}[plane]\npath = '{}'\npins = ''\n", path.display()))?;
        let log = daemon.log();
        assert!(log.contains(says) && log.contains(path.parent().unwrap().to_str().unwrap()), "{log}");
        assert_eq!(daemon.metric("tracker_plane_written")?, 0.0);
        let web = Known::start(&daemon, "web")?;
        eventually("the rest works", || daemon.in_state("web", "running"));
        drop(web);
    }
    Ok(())
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = umount(self.0);
    }
}

#[test]
fn a_group_may_read_it_and_nobody_else() -> Result<()> {
    require!(requirement::root());
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("plane");
    let of = |group: &str| format!("{QUIET}[plane]\npath = '{}'\npins = ''\n{group}", path.display());
    for (group, wanted) in [("", (0o600, 0)), ("group = 'daemon'\n", (0o640, 1)), ("", (0o600, 0))] {
        let daemon = Daemon::start(&of(group))?;
        opened(&path);
        let file = fs::metadata(&path)?;
        assert_eq!((file.mode() & 0o777, file.gid()), wanted, "also of a file that was there before");
        daemon.stop()?;
    }
    let daemon = Daemon::start(&of("group = 'nobody-has-this-name'\n"))?;
    assert!(daemon.log().contains("there is no group named `nobody-has-this-name`"));
    Ok(())
}

#[test]
fn a_full_plane_says_so_and_takes_in_who_waits_as_soon_as_there_is_room() -> Result<()> {
    require!(requirement::root());
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("plane");
    let limits = "[server.limits]\nregistrations = 100\n";
    let daemon = Daemon::start(&format!(
        "{QUIET}{limits}[collection]\nlinger-ms = 600000\n[plane]\npath = '{}'\npins = ''\ncapacity = 16\n",
        path.display()
    ))?;
    let plane = opened(&path);
    let mut all: Vec<Known> = Vec::new();
    // Others' containers on this machine may have rows, too: so go on until somebody waits.
    while plane.status().waiting == 0 {
        ensure!(all.len() < 40, "{:?}", plane.status());
        let known = Known::start(&daemon, &format!("full-{}", all.len()))?;
        eventually("it has a row or waits for one", || daemon.find(&known.name));
        all.push(known);
    }
    let status = plane.status();
    assert_eq!((status.capacity, status.rows), (16, 16));
    eventually("it is said", || daemon.log().contains("the plane is full").then_some(()));
    assert!(daemon.metric("tracker_plane_waiting")? >= 1.0 && daemon.metric("tracker_plane_refused_total")? >= 1.0);
    // Whoever exits leaves a tombstone, which makes room for who lives.
    let waiting = all.pop().context("the last one waits")?;
    assert!(waiting.said(&plane).is_none_or(|(_, name)| name != waiting.name));
    all.remove(0).end()?;
    waiting.until_said(&plane);
    assert!(plane.status().evicted >= 1);
    Ok(())
}

#[test]
fn texts_of_any_length_are_whole_or_flagged() -> Result<()> {
    require!(requirement::root());
    let daemon = Daemon::start(QUIET)?;
    let plane = opened(&daemon.plane());
    for len in [1, 60, 300, 321, 900, 1024] {
        let known = Known::start(&daemon, &"n".repeat(len))?;
        let row = known.until_said(&plane);
        assert_eq!(row.flags & Row::TRUNCATED, 0, "{len} bytes");
    }
    Ok(())
}
