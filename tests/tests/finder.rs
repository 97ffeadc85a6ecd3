//! Runtimes are found by looking, whoever was there first; and a socket's name gives nobody a say.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stderr, reason = "what was measured is told")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tempfile::TempDir;
use tracker_tests::containerd::{Containerd, IMAGE};
use tracker_tests::daemon::Daemon;
use tracker_tests::docker::Docker;
use tracker_tests::house::{House, PATIENT};
use tracker_tests::podman::Podman;
use tracker_tests::process::Process;
use tracker_tests::runc::Kind as Oci;
use tracker_tests::silent_fs::{self, SilentFs};
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

/// A tracker that looks often and knows of no socket beforehand.
fn tracker(more: &str) -> Result<Daemon> {
    Daemon::start(&format!(
        "[barrier]\nenabled = false\n[proc]\nusual-roots = false\n[containerd]\nsockets = []\nsockets-if-present = []\n\
         backoff-cap-ms = 500\n[find]\ninterval-ms = 500\n{more}",
    ))
}

/// The line of `tracker sources` about this socket, once it is so.
#[track_caller]
fn line(daemon: &Daemon, source: &str, socket: &Path, condition: &str) -> Value {
    let wanted = socket.display().to_string();
    eventually(&format!("{source} {wanted} is {condition}"), || {
        let lines = daemon.sources(source).ok()?;
        lines.into_iter().find(|line| line["what"] == *wanted && line["condition"] == condition)
    })
}

#[test]
fn a_containerd_at_an_unusual_path_is_found_by_its_process_and_forgotten_when_it_has_gone() -> Result<()> {
    require!(requirement::root(), requirement::program("containerd"), requirement::program("runc"));
    let daemon = tracker("forget-ms = 1000\n")?;
    let mut containerd = Containerd::start()?;
    let found = line(&daemon, "containerd", &containerd.socket(), "live");
    let pid = containerd.daemon().unwrap().pid();
    assert_eq!(found["origin"], format!("process {pid}"), "{found:#}");
    // The one that speaks another protocol is none.
    let lines = daemon.sources("containerd")?;
    let directory = containerd.socket().parent().unwrap().display().to_string();
    let of_ours = lines.iter().filter(|line| line["what"].as_str().unwrap().starts_with(&directory));
    assert_eq!(of_ours.count(), 1, "{lines:#?}");

    containerd.import_image("default")?;
    containerd.run("default", "found-by-looking", &[], &["sleep", "1000"])?;
    let container = eventually("its container is known", || {
        daemon.in_state("found-by-looking", "running").filter(|container| container["image"]["name"] == IMAGE)
    });
    assert_eq!(container["domain"], Value::Null);

    containerd.kill();
    fs::remove_file(containerd.socket())?;
    let wanted = containerd.socket().display().to_string();
    eventually("its line has gone", || {
        let lines = daemon.sources("containerd").ok()?;
        (!lines.iter().any(|line| line["what"] == *wanted)).then_some(())
    });
    containerd.restart()?;
    line(&daemon, "containerd", &containerd.socket(), "live");
    Ok(())
}

#[test]
fn a_daemon_with_mounts_of_its_own_is_the_hosts_and_one_with_another_root_is_not() -> Result<()> {
    require!(requirement::root(), requirement::program("containerd"), requirement::program("runc"));
    require!(requirement::program("unshare"), requirement::program("pivot_root"));
    let house = tempfile::tempdir()?;
    let path = |name: &str| house.path().join(name);
    // As a systemd unit with `PrivateTmp=` or `ProtectSystem=` has them.
    let service = Process::start(Command::new("unshare").args(["--mount", "sleep", "1000"]), &path("service.log"))?;
    // As a container has them that shares the host's pids and users.
    let contain = "set -e; mount -t tmpfs none \"$1\"; cd \"$1\"; mkdir old\n\
                   for of in bin dev etc lib lib64 proc run sbin sys tmp usr var; do\n\
                   if [ -L /$of ]; then cp -a /$of .; elif [ -e /$of ]; then mkdir $of; mount --rbind /$of $of; fi\n\
                   done; pivot_root . old; umount -l old; exec sleep 1000";
    fs::create_dir(path("root"))?;
    let mut contained = Command::new("unshare");
    contained.args(["--mount", "--propagation", "private", "sh", "-c", contain, "sh"]).arg(path("root"));
    let contained = Process::start(&mut contained, &path("contained.log"))?;
    for of in [&service, &contained] {
        let comm = format!("/proc/{}/comm", of.pid());
        eventually("it is where it is to be", || (fs::read_to_string(&comm).ok()? == "sleep\n").then_some(()));
    }
    let looking = tracker("")?;
    for (of, condition) in [(&service, "live"), (&contained, "refused")] {
        let containerd = Containerd::start_inside(of.pid())?;
        let told = Daemon::start(&format!("[containerd]\nsockets = [{:?}]\n", containerd.socket()))?;
        let named = line(&told, "containerd", &containerd.socket(), condition);
        let is_told = named["detail"].as_str().is_some_and(|detail| detail.contains("other files"));
        assert_eq!(is_told, condition == "refused", "{named:#}");
        // By the path that leads there from here, or through the process.
        let socket = containerd.socket().display().to_string();
        eventually(&format!("what is found is {condition}"), || {
            let lines = looking.sources("containerd").ok()?;
            let is_it = |line: &&Value| line["what"].as_str().is_some_and(|what| what.ends_with(&socket));
            lines.iter().find(is_it).filter(|line| line["condition"] == condition).map(drop)
        });
    }
    Ok(())
}

#[test]
fn a_daemon_that_was_forgotten_is_asked_as_soon_as_it_is_back() -> Result<()> {
    require!(requirement::root(), requirement::program("containerd"), requirement::program("runc"));
    let mut containerd = Containerd::start()?;
    // Nobody looks again in this test, but for what happens.
    let config = "[barrier]\nenabled = false\n[proc]\nusual-roots = false\n\
                  [containerd]\nsockets = []\nsockets-if-present = []\n[find]\ninterval-ms = 3600000\nforget-ms = 1\n";
    let daemon = Daemon::start(config)?;
    let socket = containerd.socket();
    line(&daemon, "containerd", &socket, "live");
    containerd.kill();
    fs::remove_file(&socket)?;
    line(&daemon, "containerd", &socket, "waiting");
    // What is no socket makes it look, and forget.
    let wanted = socket.display().to_string();
    eventually("its line has gone", || {
        fs::write(&socket, "").and_then(|()| fs::remove_file(&socket)).unwrap();
        let lines = daemon.sources("containerd").ok()?;
        (!lines.iter().any(|line| line["what"] == *wanted)).then_some(())
    });
    containerd.restart()?;
    let back = Instant::now();
    line(&daemon, "containerd", &socket, "live");
    eprintln!("asked {:?} after it is back", back.elapsed());
    Ok(())
}

#[test]
fn however_many_files_do_not_answer_looking_goes_on_when_they_do() -> Result<()> {
    require!(requirement::root(), requirement::program("containerd"), requirement::program("runc"));
    require!(silent_fs::requirement());
    // The host as this tracker sees it and no other: of its usual paths, some lead to where nobody answers.
    let root = tempfile::Builder::new().prefix("fnd-").tempdir()?;
    fs::create_dir_all(root.path().join("run"))?;
    symlink("/tmp", root.path().join("tmp"))?;
    let daemon = tracker(&format!("host-root = {:?}\n", root.path()))?;
    // Gone before the tracker is, which could not end while it waits for them.
    let silent = ["podman", "crio", "k0s", "snap.docker"].map(|name| -> Result<SilentFs> {
        let room = root.path().join(name);
        fs::create_dir(&room)?;
        let silent = SilentFs::mount(env!("CARGO_BIN_EXE_silent_fs"), &room)?;
        symlink(silent.path(""), root.path().join("run").join(name))?;
        Ok(silent)
    });
    let silent = silent.into_iter().collect::<Result<Vec<_>>>()?;
    let told = eventually("it tells that nobody answers", || {
        let mut lines = daemon.sources("containerd").ok()?.into_iter();
        lines.find(|line| line["detail"].as_str().is_some_and(|detail| detail.contains("only the host's usual paths")))
    });
    for path in ["podman/podman.sock", "crio/crio.sock", "k0s/containerd.sock", "snap.docker/docker.sock"] {
        assert!(told["detail"].as_str().unwrap().contains(path), "{told:#}");
    }
    assert_eq!(
        (daemon.metric("tracker_find_looks_behind")?, daemon.metric("tracker_find_lost_looks_total")?),
        (4.0, 4.0)
    );
    // Usual paths that do answer are used all the same, and no others.
    let usual = root.path().join("run/docker.sock");
    let _listener = UnixListener::bind(&usual)?;
    let containerd = Containerd::start()?;
    let unusual = containerd.socket().strip_prefix("/").map(|path| root.path().join(path))?;
    line(&daemon, "docker", &usual, "waiting");
    let is_unusual = |line: &Value| line["what"] == *unusual.display().to_string();
    assert!(!daemon.sources("containerd")?.iter().any(is_unusual));

    drop(silent);
    line(&daemon, "containerd", &unusual, "live");
    let lines = daemon.sources("containerd")?;
    assert!(!lines.iter().any(|line| line["what"] == told["what"]), "all is well again: {lines:#?}");
    assert_eq!(daemon.metric("tracker_find_looks_behind")?, 0.0);
    Ok(())
}

#[test]
fn each_usual_path_below_the_hosts_root_is_used_where_it_is_roots_and_refused_where_it_is_not() -> Result<()> {
    require!(requirement::root(), requirement::program("containerd"), requirement::program("ctr"));
    require!(requirement::program("dockerd"), requirement::program("docker"), Podman::requirement());
    let (docker, mut podman) = (Docker::start()?, Podman::start()?);
    podman.serve()?;
    let pods = Containerd::start_with_cri()?;
    let root = tempfile::Builder::new().prefix("fnd-").tempdir()?;
    let daemon = tracker(&format!("host-root = {:?}\nforget-ms = 1000\n", root.path()))?;
    let table = [
        ("containerd", "run/containerd/containerd.sock", docker.containerd().socket()),
        ("containerd", "run/docker/containerd/containerd.sock", docker.containerd().socket()),
        ("containerd", "run/k3s/containerd/containerd.sock", docker.containerd().socket()),
        ("containerd", "run/k0s/containerd.sock", docker.containerd().socket()),
        ("containerd", "var/snap/microk8s/common/run/containerd.sock", docker.containerd().socket()),
        ("docker", "run/docker.sock", docker.socket()),
        ("docker", "run/snap.docker/docker.sock", docker.socket()),
        ("podman", "run/podman/podman.sock", podman.socket()),
        ("cri", "run/crio/crio.sock", pods.socket()),
        ("cri", "run/cri-dockerd.sock", pods.socket()),
    ];
    let (commons, uid) = (commons()?, 4713);
    let theirs = |n: usize| commons.path().join(n.to_string());
    let _listeners = listeners_of(uid, (0..table.len()).map(theirs).collect());
    for (n, (source, path, socket)) in table.iter().enumerate() {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap())?;
        symlink(socket, &path)?;
        let live = line(&daemon, source, &path, "live");
        assert_eq!(live["origin"], "usual path", "{live:#}");
        fs::remove_file(&path)?;

        // A user's listener behind a file that is root's.
        nix::unistd::chown(&theirs(n), Some(0.into()), None)?;
        symlink(theirs(n), &path)?;
        eventually("it is refused", || {
            let lines = daemon.sources(source).ok()?.into_iter();
            let mut lines = lines.filter(|line| line["what"] == *path.display().to_string());
            lines.find(|line| line["detail"].as_str().is_some_and(|why| why.contains("uid 4713")))
        });
        fs::remove_file(&path)?;
    }
    // A user's own are asked, and speak for that user.
    let (users, listening) = (root.path().join(format!("run/user/{uid}")), self::commons()?);
    for (n, (source, path)) in [
        ("docker", "docker.sock"),
        ("containerd", "docker/containerd/containerd.sock"),
        ("containerd", "containerd/containerd.sock"),
        ("podman", "podman/podman.sock"),
    ]
    .into_iter()
    .enumerate()
    {
        let (path, socket) = (users.join(path), listening.path().join(n.to_string()));
        let _listener = listeners_of(uid, vec![socket.clone()]);
        fs::create_dir_all(path.parent().unwrap())?;
        symlink(&socket, &path)?;
        line(&daemon, source, &path, "waiting");
        let found = format!("found source={source} path={:?} domain=User({uid})", path.display().to_string());
        assert!(daemon.log().contains(&found), "{found}: {}", daemon.log());
    }
    Ok(())
}

/// The tracker as it runs in a container of its own: with another root directory, in which the host's is at `/host`.
#[test]
fn a_tracker_in_a_container_finds_the_hosts_runtimes_below_the_hosts_root() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), requirement::program("unshare"));
    require!(requirement::program("containerd"), requirement::program("runc"), requirement::program("chroot"));
    let containerd = Containerd::start()?;
    let digest = containerd.import_image("default")?;
    let ids = ["before", "after"].map(|when| format!("found-{when}-{}", std::process::id()));
    containerd.run("default", &ids[0], &[], &["sleep", "1000"])?;
    let root = tempfile::Builder::new().prefix("fnd-").tempdir()?;
    // Neither /run nor /var is the host's, and /tmp only to be configured and asked there.
    let script = "set -e; root=$0; program=$1; shift; mkdir $root/host; mount --rbind / $root/host
        for name in proc sys dev tmp usr lib lib64 etc; do
            test -d /$name && mkdir $root/$name && mount --rbind /$name $root/$name; done
        cp $program $root/tracker; exec chroot $root /tracker \"$@\"";
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script];
    let mut wrapper: Vec<&OsStr> = wrapper.iter().map(OsStr::new).collect();
    wrapper.push(root.path().as_os_str());
    let daemon = Daemon::start_by(
        &wrapper,
        "[barrier]\nenabled = false\n[containerd]\nsockets = []\nsockets-if-present = []\n\
         [find]\ninterval-ms = 500\nhost-root = '/host'\n",
    )?;
    let below = Path::new("/host").join(containerd.socket().strip_prefix("/")?);
    let found = line(&daemon, "containerd", &below, "live");
    assert_eq!(found["origin"], format!("process {}", containerd.daemon().unwrap().pid()));
    containerd.run("default", &ids[1], &[], &["sleep", "1000"])?;
    for id in &ids {
        let is_told = |container: &Value| container["image"]["digest"] == *digest && container["awaiting"] == json!([]);
        let container = eventually("all is known", || daemon.in_state(id, "running").filter(is_told));
        assert_eq!((&container["image"]["name"], &container["domain"]), (&json!(IMAGE), &Value::Null), "{container:#}");
        let pid = containerd.pid("default", id)?;
        assert_eq!((&container["pid"], &container["kind"]), (&json!(pid), &json!("container")), "{container:#}");
        assert_eq!(container["mntns"], json!(kernel::namespace(pid, "mnt")?), "{container:#}");
    }
    Ok(())
}

/// A directory that everybody may bind sockets in.
fn commons() -> Result<TempDir> {
    let directory = tempfile::Builder::new().prefix("fnd-").tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o1777))?;
    Ok(directory)
}

/// Listeners of this user's, who is not root.
fn listeners_of(uid: u32, paths: Vec<PathBuf>) -> Vec<UnixListener> {
    // The system call, unlike the library's function, is about the calling thread alone.
    let bind = move || {
        // SAFETY: takes integers only.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(done, 0);
        paths.into_iter().map(|path| UnixListener::bind(path).unwrap()).collect()
    };
    std::thread::spawn(bind).join().unwrap()
}

#[test]
fn a_users_socket_does_not_speak_for_root_whatever_it_is_called() -> Result<()> {
    require!(requirement::root());
    let (directory, uid) = (commons()?, 4711);
    let path = directory.path().join("containerd.sock");
    let _listener = listeners_of(uid, vec![path.clone()]);
    let daemon = tracker("")?;
    let of_user = line(&daemon, "containerd", &path, "waiting");
    assert_eq!(of_user["origin"], "name");
    assert!(daemon.log().contains("User(4711)"), "{}", daemon.log());

    // Root's file, by a mistake or by force, is not a listener of root's.
    nix::unistd::chown(&path, Some(0.into()), None)?;
    let refused = line(&daemon, "containerd", &path, "refused");
    assert!(refused["detail"].as_str().unwrap().contains("uid 4711"), "{refused:#}");
    Ok(())
}

#[test]
fn who_keeps_quiet_is_waited_for_and_hostile_paths_are_refused() -> Result<()> {
    require!(requirement::root());
    let directory = commons()?;
    let quiet = directory.path().join("containerd.sock");
    let hostile = directory.path().join("a\u{1b}[2Jb");
    fs::create_dir(&hostile)?;
    let _listeners = [UnixListener::bind(&quiet)?, UnixListener::bind(hostile.join("containerd.sock"))?];
    let daemon = tracker("")?;
    let waiting = line(&daemon, "containerd", &quiet, "waiting");
    assert!(waiting["detail"].as_str().unwrap().contains("no answer within"), "{waiting:#}");
    let refused = eventually("it is refused", || {
        let mut lines = daemon.sources("containerd").ok()?.into_iter();
        lines.find(|line| line["what"].as_str().is_some_and(|what| what.contains("u{1b}[2Jb")))
    });
    assert_eq!(refused["condition"], "refused", "{refused:#}");
    Ok(())
}

#[test]
fn ten_thousand_listeners_fill_no_list_and_hide_nobody() -> Result<()> {
    require!(requirement::root(), requirement::program("containerd"), requirement::program("runc"));
    let directory = commons()?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let number = usize::try_from(most)?.saturating_sub(200).min(10_000);
    let room = |n: usize| {
        let room = directory.path().join(n.to_string());
        fs::create_dir(&room)?;
        fs::set_permissions(&room, fs::Permissions::from_mode(0o1777))?;
        Ok(room.join("containerd.sock"))
    };
    let _listeners = listeners_of(4712, (0..number).map(room).collect::<Result<_>>()?);
    let containerd = Containerd::start()?;
    let daemon = tracker("")?;
    line(&daemon, "containerd", &containerd.socket(), "live");
    let told = daemon.sources("containerd")?.len();
    assert!(told < 200, "{told} lines");
    Ok(())
}

/// A runtime inside a container, with the programs and files of the host's.
#[test]
fn a_containerd_inside_a_container_speaks_for_what_is_in_there() -> Result<()> {
    require!(Oci::Runc.requirement(), requirement::program("containerd"), kernel::permission_events());
    let house = House::new(Oci::Runc)?;
    let lent = ["/usr", "/lib", "/lib64", "/tmp", "/sys", "/etc", "/run"];
    for path in lent {
        fs::create_dir_all(house.root().path().join(path.trim_start_matches('/')))?;
    }
    let outer = house.bundle_with("finder-outer", &["sleep", "1000"], |config| {
        let bind = |path| json!({"destination": path, "type": "bind", "source": path, "options": ["rbind", "rw"]});
        config["mounts"].as_array_mut().unwrap().extend(lent.map(bind));
    })?;
    let config = house.config(
        PATIENT,
        "[containerd]\nsockets = []\nsockets-if-present = []\n[find]\ninterval-ms = 500\nnested = true\n",
    );
    let daemon = Daemon::start(&config)?;
    let outer = house.runtime().create(&outer, "finder-outer")?;
    outer.start()?;
    eventually("the outer one is known", || daemon.in_state("finder-outer", "running"));

    let inner = Containerd::start_inside(outer.pid())?;
    let socket = inner.socket().display().to_string();
    let found = eventually("it is asked", || {
        let lines = daemon.sources("containerd").ok()?.into_iter();
        let mut lines = lines.filter(|line| line["what"].as_str().is_some_and(|what| what.ends_with(&socket)));
        lines.find(|line| line["condition"] == "live")
    });
    let path = Path::new(found["what"].as_str().unwrap());
    assert!(path.starts_with("/proc"), "{found:#}");
    let strict = tracker("")?;
    let refused = line(&strict, "containerd", path, "refused");
    assert!(refused["detail"].as_str().unwrap().contains("find.nested"), "{refused:#}");
    inner.import_image("default")?;
    inner.run("default", "finder-inner", &[], &["sleep", "1000"])?;
    let container = eventually("what is in there is known", || {
        daemon.in_state("finder-inner", "running").filter(|container| container["image"]["name"] == IMAGE)
    });
    let init = json!({"container": {"pid": outer.pid(), "start_ticks": kernel::start_ticks(outer.pid())?}});
    assert_eq!((&container["domain"], &container["parent"]["id"]), (&init, &json!("finder-outer")), "{container:#}");
    // Inside it has another pid, by which its runtime calls it.
    let pid = u32::try_from(container["pid"].as_u64().unwrap())?;
    assert_ne!(inner.pid("default", "finder-inner")?, pid);
    assert_eq!(container["mntns"], json!(kernel::namespace(pid, "mnt")?));
    Ok(())
}
