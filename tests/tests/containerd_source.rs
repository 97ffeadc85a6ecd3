//! The containerd source against the real containerd of the distribution: its own root, state, socket and image.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tracker::container::State;
use tracker::source::containerd::{self, Stats};
use tracker::source::find;
use tracker::source::health::{Condition, Health};
use tracker::{Config, Container, Reader, Tracker};
use tracker_tests::containerd::{Containerd, IMAGE};
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

/// A tracker that asks this containerd and no other.
struct Source {
    tracker: Tracker,
    reader: Reader,
}

impl Source {
    fn start(containerd: &Containerd) -> Result<Source> {
        let containerd = containerd::Config {
            sockets: vec![containerd.socket()],
            sockets_if_present: vec![],
            alive_interval_ms: 500,
            call_deadline_ms: 1_000,
            backoff_cap_ms: 500,
            ..Default::default()
        };
        let find = find::Config { enabled: false, ..find::Config::default() };
        let env_allow = ["STAGE"].into_iter().collect();
        let tracker = Tracker::start(Config { containerd, find, env_allow, ..Config::default() })?;
        let mut source = Source { reader: tracker.reader(), tracker };
        source.until_line("it is live", |line| line.condition == Condition::Live);
        Ok(source)
    }

    #[track_caller]
    fn until_line(&mut self, what: &str, is_so: impl Fn(&Health) -> bool) -> Health {
        let of_containerd = |line: &Health| line.source == tracker::fact::Source::Containerd && is_so(line);
        eventually(what, || self.tracker.health().into_iter().find(of_containerd))
    }

    /// Waits until a container is as it should be.
    #[track_caller]
    fn until(&mut self, id: &str, what: &str, is_so: impl Fn(&Container) -> bool) -> Container {
        let told = format!("{id}: {what}");
        eventually(&told, || {
            let mut all = self.reader.all();
            let found = all.find(|container| &*container.id == id && is_so(container));
            found.map(|container| Container::clone(container))
        })
    }

    #[track_caller]
    fn until_state(&mut self, id: &str, state: State) -> Container {
        self.until(id, &format!("{state:?}"), |container| container.state == state)
    }

    fn stats(&self) -> &Stats {
        &self.tracker.stats().containerd
    }

    /// Calls that containers' lives cost.
    fn calls(&self) -> u64 {
        self.stats().calls_container.load(Relaxed) + self.stats().calls_image.load(Relaxed)
    }
}

/// An id that no test beside this one has: the kernel shows them all to every tracker.
fn id(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

fn start() -> Result<Containerd> {
    let containerd = Containerd::start()?;
    containerd.import_image("default")?;
    Ok(containerd)
}

macro_rules! require_containerd {
    () => {
        require!(
            requirement::root(),
            requirement::program("containerd"),
            requirement::program("ctr"),
            requirement::program("runc")
        );
    };
}

const SLEEP: &[&str] = &["/bin/sleep", "1000"];

/// What both ways of meeting a container must agree on.
fn alike(container: &Container) -> impl PartialEq + std::fmt::Debug + use<> {
    let annotations: BTreeMap<_, _> = container.annotations.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    (
        (container.kind, container.state, container.name.clone(), container.runtime.clone(), container.image.clone()),
        (container.pod.clone(), container.labels.clone(), annotations, container.host_network),
    )
}

#[test]
fn containers_from_before_and_new_ones_are_told_alike_and_truly() -> Result<()> {
    require_containerd!();
    let alike_before = id("alike-before");
    let alike_after = id("alike-after");
    let containerd = start()?;
    let digest = containerd.import_image("default")?;
    let options = ["--label", "tier=test", "--annotation", "color=red", "--env", "STAGE=test", "--env", "TOKEN=secret"];
    containerd.run("default", &alike_before, &options, SLEEP)?;
    let mut source = Source::start(&containerd)?;
    // What its bundle and the kernel say can be there before containerd's own word.
    let told = |container: &Container| container.state == State::Running && container.image.is_some();
    let before = source.until(&alike_before, "containerd told of it", told);

    containerd.run("default", &alike_after, &options, SLEEP)?;
    let after = source.until(&alike_after, "containerd told of it", told);
    assert_eq!(alike(&before), alike(&after));

    for container in [&before, &after] {
        let pid = containerd.pid("default", &container.id)?;
        let task = container.task.context("an init process")?;
        assert_eq!((task.pid, task.start_ticks), (pid, kernel::start_ticks(pid)?));
        assert_eq!(container.namespaces.mnt, kernel::namespace(pid, "mnt")?);
        assert_eq!(container.namespaces.net, kernel::namespace(pid, "net")?);
        assert!(container.created_at.is_some());
    }
    assert_eq!(after.labels.get("tier").map(|label| &**label), Some("test"));
    assert_eq!(after.annotations.get("color").map(|annotation| &**annotation), Some("red"));
    for container in [&before, &after] {
        assert_eq!(container.details.env, Some([("STAGE", "test")].into_iter().collect()), "what is allowed");
    }
    let runtime = &after.runtime;
    assert_eq!(runtime.name.as_deref(), Some("containerd"));
    assert_eq!(runtime.namespace.as_deref(), Some("default"));
    assert_eq!(runtime.handler.as_deref(), Some("io.containerd.runc.v2"));
    assert_eq!(runtime.oci.as_deref(), containerd.runtime().program().file_name().and_then(|name| name.to_str()));
    let image = after.image.as_ref().context("an image")?;
    assert_eq!((image.name.as_deref(), image.digest.as_deref()), (Some(IMAGE), Some(&*digest)));
    assert!(image.id.as_deref().is_some_and(|id| id.starts_with("sha256:") && id != digest));
    assert!(after.bundle.as_deref().is_some_and(|bundle| bundle.ends_with(&format!("/default/{alike_after}"))));
    assert!(after.started_at >= after.created_at);
    Ok(())
}

#[test]
fn a_life_is_followed_to_its_end_for_at_most_two_calls() -> Result<()> {
    require_containerd!();
    let life_first = id("life-first");
    let life = id("life");
    let life_next = id("life-next");
    let containerd = start()?;
    let mut source = Source::start(&containerd)?;
    containerd.run("default", &life_first, &[], SLEEP)?;
    source.until_state(&life_first, State::Running);

    let before = source.calls();
    containerd.run("default", &life, &[], SLEEP)?;
    source.until_state(&life, State::Running);
    let exec = ["tasks", "exec", "--exec-id", "look", &life, "/bin/sh", "-c", "exit 7"];
    containerd.ctr("default", &exec).expect_err("ctr passes the exit code on");
    eventually("the exec's exit is seen", || (source.stats().exec_exits.load(Relaxed) == 1).then_some(()));
    assert_eq!(source.until_state(&life, State::Running).exit, None);
    containerd.ctr("default", &["tasks", "pause", &life])?;
    source.until_state(&life, State::Paused);
    containerd.ctr("default", &["tasks", "resume", &life])?;
    source.until_state(&life, State::Running);
    containerd.ctr("default", &["tasks", "kill", "--signal", "SIGKILL", &life])?;
    let exited = source.until_state(&life, State::Exited);
    assert_eq!(exited.exit.context("an exit")?.code, 137);
    assert!(exited.exited_at > exited.started_at);
    eventually("its task can be deleted", || containerd.ctr("default", &["tasks", "delete", &life]).ok());
    containerd.ctr("default", &["containers", "delete", &life])?;
    containerd.run("default", &life_next, &[], SLEEP)?;
    source.until_state(&life_next, State::Running);
    let calls = source.calls() - before;
    assert!(calls <= 2 * 2, "{calls} calls for two lives");
    Ok(())
}

#[test]
fn one_id_in_two_namespaces_is_two_containers_before_and_after() -> Result<()> {
    require_containerd!();
    let twin = id("twin");
    let containerd = start()?;
    let mut source = Source::start(&containerd)?;
    let namespaces = ["default", "later"];
    // The second namespace is not there before.
    containerd.import_image("later")?;
    for namespace in namespaces {
        containerd.run(namespace, &twin, &["--label", &format!("of={namespace}")], SLEEP)?;
    }
    let mut later = Source::start(&containerd)?;
    let is_of = |container: &Container, namespace: &str| container.runtime.namespace.as_deref() == Some(namespace);
    let mut pids = vec![];
    for namespace in namespaces {
        let pid = containerd.pid(namespace, &twin)?;
        for source in [&mut source, &mut later] {
            let told = source.until(&twin, namespace, |container| {
                is_of(container, namespace) && container.state == State::Running && !container.labels.is_empty()
            });
            assert_eq!(told.pid(), Some(pid));
            assert_eq!(told.namespaces.mnt, kernel::namespace(pid, "mnt")?);
            assert_eq!(told.labels.get("of").map(|label| &**label), Some(namespace));
            assert!(told.bundle.as_deref().is_some_and(|bundle| bundle.ends_with(&format!("/{namespace}/{twin}"))));
            let found = source.reader.by_mntns(told.namespaces.mnt);
            assert!(found.container().is_some_and(|container| is_of(container, namespace)), "{namespace}");
        }
        pids.push(pid);
    }
    assert_ne!(pids[0], pids[1]);

    // The end of one is not the other's, and leaves it as it is.
    containerd.ctr("later", &["tasks", "kill", "--signal", "SIGKILL", &twin])?;
    for source in [&mut source, &mut later] {
        let ended = source.until(&twin, "the end of one", |container| container.state == State::Exited);
        assert_eq!((ended.pid(), is_of(&ended, "later")), (Some(pids[1]), true));
        let other = source.until_state(&twin, State::Running);
        assert_eq!((other.pid(), is_of(&other, "default")), (Some(pids[0]), true));
        assert_eq!(source.reader.all().filter(|container| *container.id == *twin).count(), 2);
    }
    Ok(())
}

#[test]
fn a_killed_daemon_comes_back_with_what_changed_meanwhile() -> Result<()> {
    require_containerd!();
    let kill_stays = id("kill-stays");
    let kill_ends = id("kill-ends");
    let kill_comes = id("kill-comes");
    let mut containerd = start()?;
    containerd.run("default", &kill_stays, &[], SLEEP)?;
    containerd.run("default", &kill_ends, &[], SLEEP)?;
    let ends = containerd.pid("default", &kill_ends)?;
    let mut source = Source::start(&containerd)?;
    source.until_state(&kill_stays, State::Running);
    source.until_state(&kill_ends, State::Running);

    containerd.kill();
    source.until_line("its absence is noticed", |line| line.condition == Condition::Waiting);
    source.until_state(&kill_stays, State::Running);
    nix::sys::signal::kill(tracker_tests::process::pid(ends), Signal::SIGKILL)?;
    containerd.restart()?;
    source.until_line("it is live again", |line| line.condition == Condition::Live);
    let ended = source.until_state(&kill_ends, State::Exited);
    assert_eq!(ended.exit.map(|exit| exit.code), Some(137), "its shim remembered");
    containerd.run("default", &kill_comes, &[], SLEEP)?;
    source.until_state(&kill_comes, State::Running);
    source.until_state(&kill_stays, State::Running);
    Ok(())
}

#[test]
fn a_stopped_daemon_is_noticed_and_picked_up_again() -> Result<()> {
    require_containerd!();
    let stop_stays = id("stop-stays");
    let stop_comes = id("stop-comes");
    let containerd = start()?;
    containerd.run("default", &stop_stays, &[], SLEEP)?;
    let mut source = Source::start(&containerd)?;
    source.until_state(&stop_stays, State::Running);
    let daemon = containerd.daemon().context("a daemon")?;
    daemon.signal(Signal::SIGSTOP)?;
    let line = source.until_line("it is noticed", |line| line.condition == Condition::Waiting);
    assert!(line.detail.contains("no answer within"), "{}", line.detail);
    daemon.signal(Signal::SIGCONT)?;
    source.until_line("it is live again", |line| line.condition == Condition::Live);
    containerd.run("default", &stop_comes, &[], SLEEP)?;
    source.until_state(&stop_comes, State::Running);
    Ok(())
}

#[test]
fn a_shim_that_hangs_hides_nothing_but_its_own_task() -> Result<()> {
    require_containerd!();
    let (hangs, works) = (id("shim-hangs"), id("shim-works"));
    let containerd = start()?;
    containerd.run("default", &hangs, &["--label", "tier=hung"], SLEEP)?;
    containerd.run("default", &works, &[], SLEEP)?;
    let shim = Stopped::parent_of(containerd.pid("default", &hangs)?)?;
    let mut source = Source::start(&containerd)?;
    // Its container is known all the same; the other one's task comes when containerd has given up on the shim.
    source.until(&hangs, "its labels", |container| container.labels.contains_key("tier"));
    source.until_state(&works, State::Running);
    drop(shim);
    source.until_line("it is live", |line| line.condition == Condition::Live);
    source.until_state(&hangs, State::Running);
    Ok(())
}

#[test]
fn a_listener_that_is_not_root_is_refused() -> Result<()> {
    require!(requirement::root());
    const NOBODY: libc::uid_t = 65_534;
    let directory = tempfile::tempdir()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777))?;
    let socket = directory.path().join("sock");
    let bound = socket.clone();
    let listen = std::thread::spawn(move || {
        // SAFETY: the bare system call, other than libc's wrapper, changes this thread alone, which ends here.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1, NOBODY, -1) };
        assert_eq!(changed, 0);
        UnixListener::bind(bound)
    });
    let _listener = listen.join().expect("the thread does not panic")?;

    let containerd = containerd::Config { sockets: vec![socket], sockets_if_present: vec![], ..Default::default() };
    let find = find::Config { enabled: false, ..find::Config::default() };
    let tracker = Tracker::start(Config { containerd, find, ..Config::default() })?;
    let mut source = Source { reader: tracker.reader(), tracker };
    let line = source.until_line("it is refused", |line| line.condition == Condition::Refused);
    assert!(line.detail.contains("uid 65534"), "{}", line.detail);
    Ok(())
}

/// A process that stands still until this is dropped.
struct Stopped(nix::unistd::Pid);

impl Stopped {
    fn parent_of(pid: u32) -> Result<Stopped> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        let parent = nix::unistd::Pid::from_raw(parent.context("a parent")?);
        nix::sys::signal::kill(parent, Signal::SIGSTOP)?;
        Ok(Stopped(parent))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.0, Signal::SIGCONT);
    }
}
