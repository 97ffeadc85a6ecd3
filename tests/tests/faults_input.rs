//! Hostile and broken input through real runtimes, with the whole daemon watching: it survives, says what it could not use,
//! and nobody else's container is told any differently.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use tracker_tests::bundle;
use tracker_tests::daemon::Daemon;
use tracker_tests::house::{House, PATIENT};
use tracker_tests::process::run;
use tracker_tests::runc::{Container, Kind};
use tracker_tests::wait::{PATIENCE, eventually, within};
use tracker_tests::{kernel, require, requirement};

const NOBODY: &str = "65534";

macro_rules! require_daemon {
    () => {
        require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    };
}

/// A daemon, and an honest container that must stay what it is.
struct Watched<'a> {
    daemon: Daemon,
    bystander: Container<'a>,
}

impl<'a> Watched<'a> {
    fn start(house: &'a House, bystander: &str, more: &str) -> Result<Watched<'a>> {
        let daemon = Daemon::start(&house.config(PATIENT, more))?;
        let bystander = house.started(bystander)?;
        let watched = Watched { daemon, bystander };
        watched.goes_on()?;
        Ok(watched)
    }

    /// The daemon lives, and the bystander is told truly by its id and each of its numbers.
    #[track_caller]
    fn goes_on(&self) -> Result<()> {
        let (id, pid) = (self.bystander.id(), self.bystander.pid());
        // `start` returns while init is about to execute its entrypoint.
        let known = eventually(&format!("{id} runs"), || self.daemon.in_state(id, "running"));
        assert_eq!((&known["pid"], &known["grade"]), (&Value::from(pid), &Value::from("held")), "{known}");
        let mntns = kernel::namespace(pid, "mnt")?;
        for number in [["--pid", &pid.to_string()], ["--mntns", &mntns.to_string()]] {
            let answer = self.daemon.ask_json(&["lookup", number[0], number[1], "-o", "json"])?;
            assert_eq!(answer["containers"][0]["id"], id, "{answer}");
        }
        Ok(())
    }

    fn all(&self) -> Result<Vec<Value>> {
        let all = self.daemon.ask_json(&["ps", "--all", "-o", "json"])?;
        Ok(all.as_array().context("a list")?.clone())
    }
}

/// Writes a bundle whose config is whatever `write` makes of its path.
fn bundle_of(house: &House, name: &str, write: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<PathBuf> {
    let directory = house.path(name);
    fs::create_dir(&directory)?;
    write(&directory.join("config.json")).with_context(|| format!("make the bundle `{name}`"))?;
    Ok(directory)
}

#[test]
fn configs_that_cannot_be_used_harm_nobody() -> Result<()> {
    require_daemon!();
    let house = House::new(Kind::Runc)?;
    let watched = Watched::start(&house, "config-bystander", "")?;
    let good = bundle::config(house.root(), &["sleep", "1000"]);
    // Of the right form and one byte too long.
    let huge = format!("{}{good}", " ".repeat((16 << 20) + 1 - good.to_string().len()));
    type Write = Box<dyn FnOnce(&Path) -> std::io::Result<()>>;
    let text = |text: String| -> Write { Box::new(move |path| fs::write(path, text)) };
    let unusable: Vec<(&str, Write)> = vec![
        ("none", Box::new(|_| Ok(()))),
        ("empty", text(String::new())),
        ("cut", text(good.to_string()[..100].to_owned())),
        ("bytes", Box::new(|path| fs::write(path, (0..=255).collect::<Vec<u8>>()))),
        ("wrong-types", text(json!({"annotations": [1], "linux": "yes", "process": {"args": 7}}).to_string())),
        ("deep", text("[".repeat(200_000))),
        ("deep-inside", text(format!("{{\"annotations\":{}", "{\"a\":".repeat(100_000)))),
        ("endless", Box::new(|path| symlink("/dev/zero", path))),
        ("directory", Box::new(|path| fs::create_dir(path))),
        ("huge", text(huge)),
    ];
    let names: Vec<&str> = unusable.iter().map(|(name, _)| *name).collect();
    for (name, write) in unusable {
        let directory = bundle_of(&house, &format!("config-{name}"), write)?;
        let mut command = house.runtime().command();
        command.args(["create", "--bundle"]).arg(&directory).arg(format!("config-{name}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // runc itself would read `/dev/zero` for ever: what counts is that it was let go, and is then ended.
        let mut child = Ended(command.spawn().with_context(|| format!("`{name}` was denied"))?);
        if name != "endless" {
            within(PATIENCE, || child.0.try_wait().transpose()).with_context(|| format!("`{name}` hangs"))??;
        } else {
            let seen = || watched.daemon.ask(&["explain", "config-endless"]).ok().filter(|said| said.code == 0);
            eventually("`endless` is seen", seen);
        }
        watched.goes_on().with_context(|| name.to_owned())?;
    }
    // One that a runtime takes although we do not read it is a container all the same: its bundle is what is missing.
    let taken = watched.daemon.find("config-huge").context("runc takes a config of any length")?;
    assert_eq!(taken["state"], "created", "{taken}");
    run(house.runtime().command().args(["delete", "--force", "config-huge"]))?;
    for name in names {
        let id = format!("config-{name}");
        let over = |known: Value| known["state"] == "aborted" || known["state"] == "exited";
        eventually(&format!("{id} is over or gone"), || watched.daemon.find(&id).is_none_or(over).then_some(()));
    }
    let refused = watched.daemon.ask(&["explain", "config-huge"])?.out;
    assert!(refused.contains("larger than what is read"), "the reason is told: {refused}");
    Ok(())
}

/// A child that is killed and waited for in the end.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn hostile_annotations_of_a_container_that_runs_are_capped_and_printed_harmlessly() -> Result<()> {
    require_daemon!();
    let house = House::new(Kind::Runc)?;
    let watched = Watched::start(&house, "label-bystander", "")?;
    let bundle = house.bundle_with("label-hostile", &["sleep", "1000"], |config| {
        let mut annotations: serde_json::Map<String, Value> =
            (0..5_000).map(|number| (format!("key-{number}"), "x".repeat(200).into())).collect();
        annotations.insert("huge".into(), "y".repeat(4 << 20).into());
        annotations.insert("io.kubernetes.container.name".into(), "\u{1b}[2Jweb\nconfig-forged  running".into());
        annotations.insert("io.kubernetes.cri.sandbox-id".into(), "../../etc".into());
        annotations.insert("line\nbreak".into(), "\u{1b}]0;title\u{7}".into());
        config["annotations"] = annotations.into();
    })?;
    let container = house.runtime().create(&bundle, "label-hostile")?;
    container.start()?;
    let known = eventually("it is known", || watched.daemon.in_state("label-hostile", "running"));
    assert_eq!(known["pid"], container.pid());
    let size = known.to_string().len();
    assert!(size < 1 << 20, "{size} bytes of JSON for one container");
    let listed = watched.daemon.ask(&["ps", "--all"])?.out;
    assert!(!listed.contains('\u{1b}'), "a terminal's escape sequence is printed as such");
    assert!(!listed.lines().any(|line| line.starts_with("config-forged")), "a line is forged: {listed}");
    watched.goes_on()
}

#[test]
fn long_command_lines_are_read_or_let_go_and_what_they_start_is_known() -> Result<()> {
    require_daemon!();
    let house = House::new(Kind::Runc)?;
    let watched = Watched::start(&house, "argv-bystander", "")?;

    // 400 arguments, nearly all of them repetitions that the runtime accepts.
    let bundle = house.bundle("argv-many")?;
    let mut create = Command::new(house.runtime().program());
    for _ in 0..195 {
        create.arg("--root").arg(house.runtime().root());
    }
    create.args(["create", "--bundle"]).arg(bundle.path()).args(["--pid-file"]).arg(bundle.path().join("pid"));
    create.arg("argv-many");
    assert!(create.get_args().count() >= 395);
    run(&mut create)?;
    run(house.runtime().command().args(["start", "argv-many"]))?;
    let known = eventually("it is known", || watched.daemon.in_state("argv-many", "running"));
    let pid: u32 = fs::read_to_string(bundle.path().join("pid"))?.trim().parse()?;
    assert_eq!((&known["pid"], &known["grade"]), (&Value::from(pid), &Value::from("held")), "{known}");
    assert_eq!(known["bundle"], bundle.path().to_string_lossy().into_owned(), "{known}");
    run(house.runtime().command().args(["delete", "--force", "argv-many"]))?;

    // A path as long as the kernel allows; PATH_MAX counts the NUL and the file's name in it.
    let mut long = house.directory().to_owned();
    while long.as_os_str().len() < 4096 - 300 {
        long.push("d".repeat(200));
    }
    fs::create_dir_all(&long)?;
    let config = bundle::config(house.root(), &["sleep", "1000"]);
    fs::write(long.join("config.json"), config.to_string())?;
    let mut create = house.runtime().command();
    create.args(["create", "--bundle"]).arg(&long).arg("--pid-file").arg(long.join("pid")).arg("argv-long");
    run(&mut create)?;
    run(house.runtime().command().args(["start", "argv-long"]))?;
    let known = eventually("it is known", || watched.daemon.in_state("argv-long", "running"));
    let pid: u32 = fs::read_to_string(long.join("pid"))?.trim().parse()?;
    assert_eq!((&known["pid"], &known["grade"]), (&Value::from(pid), &Value::from("held")), "{known}");
    assert_eq!(known["bundle"], long.to_string_lossy().into_owned(), "{known}");
    run(house.runtime().command().args(["delete", "--force", "argv-long"]))?;

    // Beyond what is read: a start that nobody can understand is not held, and not denied.
    let mut start = house.runtime().command();
    start.arg("start").args((0..2_000).map(|number| format!("{number}-{}", "x".repeat(1_000))));
    let start = start.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = start.status().context("the execution was denied")?;
    assert_eq!(status.code(), Some(1), "the runtime itself says that there is no such container");
    watched.goes_on()
}

#[test]
fn ids_that_are_none_leave_nothing_in_the_collection() -> Result<()> {
    require_daemon!();
    let house = House::new(Kind::Runc)?;
    let watched = Watched::start(&house, "id-bystander", "")?;
    let bundle = house.bundle("id-bundle")?;
    let before = watched.daemon.metric("tracker_barrier_events_total")?;
    let long = "l".repeat(1_100);
    let bytes = std::ffi::OsString::from_vec(vec![b'i', 0xff, 0xfe]);
    let ids = ["..", ".", "", "id/../id-bystander", "id\nforged  running", "id\u{1b}[2J", " ", "/etc", &long];
    let ids: Vec<&std::ffi::OsStr> = ids.iter().map(|id| (*id).as_ref()).chain([bytes.as_os_str()]).collect();
    for verb in ["create", "start"] {
        for id in &ids {
            let mut command = house.runtime().command();
            command.arg(verb);
            if verb == "create" {
                command.arg("--bundle").arg(bundle.path());
            }
            let command = command.arg(id).stdin(Stdio::null()).stderr(Stdio::null());
            let status = command.status().with_context(|| format!("`{verb}` of {id:?} was denied"))?;
            assert_eq!(status.code(), Some(1), "runc takes no such id: {id:?}");
        }
    }
    assert!(watched.daemon.metric("tracker_barrier_events_total")? >= before + 2.0 * ids.len() as f64, "all were seen");
    for container in watched.all()? {
        let id = container["id"].as_str().context("an id")?;
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte);
        assert!(id.bytes().all(sound) && id != ".." && id != "." && id.len() <= 1_024, "{id:?}");
    }
    watched.goes_on()
}

#[test]
fn a_fifo_in_place_of_a_config_holds_up_nobody() -> Result<()> {
    require_daemon!();
    let house = House::new(Kind::Runc)?;
    let watched = Watched::start(&house, "fifo-bystander", "")?;
    let directory = bundle_of(&house, "fifo", |path| Ok(mkfifo(path, Mode::S_IRWXU)?))?;
    let mut command = house.runtime().command();
    command.args(["create", "--bundle"]).arg(&directory).arg("fifo").stdin(Stdio::null()).stderr(Stdio::null());
    // The runtime itself waits for a writer that never comes.
    let _waiting = Ended(command.spawn().context("the execution was denied")?);
    let told = eventually("the reason", || {
        let said = watched.daemon.ask(&["explain", "fifo"]).ok()?;
        (said.code == 0).then_some(said.out)
    });
    assert!(told.contains("regular"), "{told}");
    watched.goes_on()
}

/// A process of nobody's, in namespaces of its own, until dropped. It runs `script`.
fn as_nobody(script: &str) -> Result<Ended> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "sh", "-c", script]);
    // It ends with this, whatever becomes of the test.
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Ended(command.spawn().context("start setpriv")?))
}

/// That users may make namespaces of their own here.
fn user_namespaces() -> Result<(), String> {
    requirement::program("setpriv")?;
    requirement::program("unshare")?;
    let made = as_nobody("exec unshare -Um true").and_then(|mut child| Ok(child.0.wait()?));
    match made {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("needs user namespaces for users: {other:?}")),
    }
}

#[test]
fn a_user_who_loops_unshare_gets_a_bounded_share_and_roots_containers_stay_right() -> Result<()> {
    require_daemon!();
    require!(user_namespaces());
    const MOST: usize = 512;
    let house = House::new(Kind::Runc)?;
    let config = format!("[collection]\nmax-containers = {MOST}\nlinger-ms = 600000\n");
    let watched = Watched::start(&house, "loop-bystander", &config)?;
    // 2,000 that end at once, and 100 that stay.
    let spin = "i=0; while [ $i -lt 500 ]; do unshare -Um true; i=$((i+1)); done";
    let mut spinning = (0..4).map(|_| as_nobody(spin)).collect::<Result<Vec<_>>>()?;
    let stay = (0..100).map(|_| as_nobody("exec unshare -Um cat")).collect::<Result<Vec<_>>>()?;
    let amid = house.started("loop-amid")?;
    let known = eventually("it runs", || watched.daemon.in_state("loop-amid", "running"));
    assert_eq!((&known["grade"], &known["pid"]), (&Value::from("held"), &Value::from(amid.pid())), "{known}");
    watched.goes_on()?;
    for child in &mut spinning {
        child.0.wait()?;
    }
    let unvouched = watched.all()?.iter().filter(|container| container["kind"] == "unmanaged").count();
    assert!(unvouched <= MOST / 8, "{unvouched} that nobody vouches for");
    assert!(watched.daemon.metric("tracker_unvouched_refused_total")? > 0.0, "what was refused is counted");
    let after = house.started("loop-after")?;
    let known = eventually("it runs", || watched.daemon.in_state("loop-after", "running"));
    assert_eq!(known["pid"], after.pid(), "{known}");
    drop(stay);
    watched.goes_on()
}

#[test]
fn a_user_cannot_pass_for_roots_container() -> Result<()> {
    require_daemon!();
    require!(user_namespaces());
    let house = House::new(Kind::Runc)?;
    let watched = Watched::start(&house, "pass-bystander", "[scan]\naudit-seconds = 1\n")?;

    // The same id, from the same binary, by a bundle and a state directory of the user's own.
    let own = house.path("own");
    fs::create_dir(&own)?;
    fs::set_permissions(&own, fs::Permissions::from_mode(0o777))?;
    let bundle = house.bundle_with("pass-bundle", &["sleep", "1000"], |config| {
        let map = |id: u32| json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
        config["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({ "type": "user" }));
        config["linux"]["namespaces"].as_array_mut().expect("a list").retain(|ns| ns["type"] != "network");
        config["linux"]["uidMappings"] = map(65_534);
        config["linux"]["gidMappings"] = map(65_534);
        config["annotations"] = json!({ "io.kubernetes.container.name": "forged" });
    })?;
    let claim = format!(
        "{} --rootless true --root {}/state run --detach --bundle {} pass-bystander",
        house.runtime().program().display(),
        own.display(),
        bundle.path().display(),
    );
    // Whether a runtime can do that for a user depends on the machine; what it may not do is the same.
    let status = as_nobody(&claim)?.0.wait()?;
    watched.goes_on()?;
    let known = eventually("it runs", || watched.daemon.in_state("pass-bystander", "running"));
    assert_ne!(known["name"], "forged", "after {status}: {known}");

    // A cgroup whose path says that it is root's container.
    let hierarchy = if kernel::only_cgroup2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/unified" };
    let top = format!("tracker-pass-{}", std::process::id());
    let cgroup = Path::new(hierarchy).join(&top).join("pass-bystander");
    if fs::create_dir_all(&cgroup).is_ok() {
        let _removed = Removed(top);
        let process = as_nobody("exec unshare -Um sh -c 'cat; exit'")?;
        fs::write(cgroup.join("cgroup.procs"), process.0.id().to_string())?;
        let pid = process.0.id();
        let host = kernel::namespace(std::process::id(), "mnt")?;
        let mntns = eventually("it is in a mount ns of its own", || {
            kernel::namespace(pid, "mnt").ok().filter(|mntns| *mntns != host)
        });
        let answer = eventually("it is known as somebody else", || {
            let answer = watched.daemon.ask_json(&["lookup", "--mntns", &mntns.to_string(), "-o", "json"]).ok()?;
            (answer["answer"] == "containers").then_some(answer)
        });
        assert_eq!(answer["containers"][0]["kind"], "unmanaged", "{answer}");
        assert_ne!(answer["containers"][0]["id"], "pass-bystander", "{answer}");
        watched.goes_on()?;
        drop(process);
    }
    Ok(())
}

/// A top-level cgroup that is removed when dropped.
struct Removed(String);

impl Drop for Removed {
    fn drop(&mut self) {
        kernel::remove_cgroup(&self.0);
    }
}
