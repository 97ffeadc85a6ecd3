//! Registrations that are wrong, too many, too large, or about what never answers, through the real daemon's socket: each is
//! refused with a reason, leaves nothing behind, and those that are right stay.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tracker_tests::child::Child;
use tracker_tests::daemon::Daemon;
use tracker_tests::house::{House, PATIENT};
use tracker_tests::process::Process;
use tracker_tests::runc::Kind;
use tracker_tests::silent_fs::{self, SilentFs};
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

const PLACE: &str = "/v1/registrations";

macro_rules! require_daemon {
    () => {
        require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    };
}

/// Registers, and returns the status.
fn register(daemon: &Daemon, about: &Value) -> Result<u16> {
    Ok(daemon.request("POST", PLACE, &about.to_string())?.0)
}

/// The ids that are registered now.
fn registered(daemon: &Daemon) -> Result<Vec<String>> {
    let (status, answer) = daemon.request("GET", PLACE, "")?;
    let list = answer.split_once("\r\n\r\n").with_context(|| format!("{status}: {answer}"))?.1;
    let list: Vec<Value> = serde_json::from_str(list).with_context(|| format!("a list, not {list}"))?;
    Ok(list.iter().filter_map(|line| Some(line["id"].as_str()?.to_owned())).collect())
}

/// A process in a mount namespace of its own, that no runtime knows.
fn stranger() -> Result<Child> {
    Ok(Child::exiting(libc::CLONE_NEWNS, 0)?)
}

#[test]
fn what_is_wrong_is_refused_and_leaves_nothing() -> Result<()> {
    require_daemon!();
    let house = House::new(Kind::Runc)?;
    let daemon = Daemon::start(&house.config(PATIENT, "[server]\nlimits = { registrations = 2 }\n"))?;
    let (stranger, own) = (stranger()?, std::process::id());
    let file = house.path("file");
    fs::write(&file, "")?;
    assert_eq!(register(&daemon, &json!({ "id": "right", "pid": stranger.pid() }))?, 201);
    eventually("it is known", || daemon.find("right"));
    let many: Value =
        (0..65).map(|number| (format!("key-{number}"), json!(""))).collect::<serde_json::Map<_, _>>().into();
    for (about, status) in [
        (json!({ "id": "of-the-host", "pid": own }), 400),
        (json!({ "id": "gone", "pid": (1 << 22) + 1 }), 400),
        (json!({ "id": "none", "pid": 0 }), 400),
        (json!({ "id": "twice", "pid": stranger.pid() }), 400),
        (json!({ "id": "the-hosts-net", "netns": format!("/proc/{own}/ns/net") }), 400),
        (json!({ "id": "a-file", "netns": file }), 400),
        (json!({ "id": "absent", "netns": house.path("absent") }), 400),
        (json!({ "id": "no-cgroup", "cgroup": "/no/such/cgroup" }), 400),
        (json!({ "id": "a-cgroup", "cgroup": "/" }), 400),
        (json!({ "id": "left-behind", "pid": stranger.pid(), "owner": (1 << 22) + 1 }), 400),
        (json!({ "id": "..", "pid": stranger.pid() }), 400),
        (json!({ "id": "line\nbreak", "pid": stranger.pid() }), 400),
        (json!({ "id": "", "pid": stranger.pid() }), 400),
        (json!({ "id": "l".repeat(1_100), "pid": stranger.pid() }), 400),
        (json!({ "id": "labels", "pid": stranger.pid(), "labels": many }), 400),
        (json!({ "id": "name", "pid": stranger.pid(), "name": "n".repeat(2_000) }), 400),
        (json!({ "id": "large", "pid": stranger.pid(), "name": "n".repeat(1 << 17) }), 413),
        (json!({ "id": "both", "pid": stranger.pid(), "netns": "/x" }), 400),
        (json!([]), 400),
    ] {
        assert_eq!(register(&daemon, &about)?, status, "{about}");
        assert_eq!(registered(&daemon)?, ["right"], "after {about}");
    }

    let other = self::stranger()?;
    assert_eq!(register(&daemon, &json!({ "id": "second", "pid": other.pid() }))?, 201);
    assert_eq!(register(&daemon, &json!({ "id": "third", "pid": other.pid() }))?, 503);
    // In the place of one that is there; and what cannot be is not taken for one that could.
    assert_eq!(register(&daemon, &json!({ "id": "second", "pid": other.pid(), "name": "again" }))?, 201);
    assert_eq!(register(&daemon, &json!({ "id": "second", "pid": own }))?, 400);
    assert_eq!(registered(&daemon)?, ["right", "second"]);
    eventually("it has its new name", || daemon.find("second").filter(|known| known["name"] == "again"));

    for (id, status) in [("second", 200), ("second", 404), ("never", 404), ("..%2Fright", 404), ("%ff", 400)] {
        assert_eq!(daemon.request("DELETE", &format!("{PLACE}/{id}"), "")?.0, status, "{id}");
    }
    assert_eq!(registered(&daemon)?, ["right"]);
    Ok(())
}

#[test]
fn it_ends_with_its_owner_and_what_it_stands_for() -> Result<()> {
    require_daemon!();
    let house = House::new(Kind::Runc)?;
    let daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let mut owner = Process::start(Command::new("sleep").arg("1000"), &house.path("owner.log"))?;
    let (owned, ended) = (stranger()?, stranger()?);
    assert_eq!(register(&daemon, &json!({ "id": "owned", "pid": owned.pid(), "owner": owner.pid() }))?, 201);
    assert_eq!(register(&daemon, &json!({ "id": "ended", "pid": ended.pid(), "owner": std::process::id() }))?, 201);
    owner.signal(nix::sys::signal::Signal::SIGKILL)?;
    owner.wait(PATIENT)?;
    eventually("its owner has gone", || (registered(&daemon).ok()? == ["ended"]).then_some(()));
    eventually("nobody says so any more", || daemon.in_state("owned", "running").is_none().then_some(()));

    ended.finish()?;
    let over = eventually("its process has ended", || daemon.in_state("ended", "exited"));
    assert_eq!(over["exit"]["code"], 0, "{over}");
    assert_eq!(daemon.request("DELETE", &format!("{PLACE}/ended"), "")?.0, 200);
    Ok(())
}

#[test]
fn what_never_answers_is_refused_and_the_socket_serves_others() -> Result<()> {
    require_daemon!();
    require!(silent_fs::requirement());
    let house = House::new(Kind::Runc)?;
    let daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let fs = SilentFs::mount(env!("CARGO_BIN_EXE_silent_fs"), house.directory())?;
    let silent: PathBuf = fs.path("nowhere");
    let about = json!({ "id": "silent", "netns": silent });
    std::thread::scope(|scope| -> Result<()> {
        // Both are under way at the same time, and neither stands for what the other was refused.
        let asking = [(); 2].map(|()| scope.spawn(|| register(&daemon, &about)));
        assert_eq!(fs.next_question()?.name, "nowhere");
        // It is one of the two that sleeps now, and not the socket.
        assert_eq!(daemon.ask(&["ps"])?.code, 0);
        for asking in asking {
            assert_eq!(asking.join().expect("no panic")?, 400);
        }
        Ok(())
    })?;
    assert_eq!(registered(&daemon)?, [""; 0]);
    let container = house.started("silent-bystander")?;
    let known = eventually("it runs", || daemon.in_state("silent-bystander", "running"));
    assert_eq!((&known["grade"], &known["pid"]), (&Value::from("held"), &Value::from(container.pid())), "{known}");
    drop(fs);
    assert_eq!(daemon.stop()?, Some(0));
    Ok(())
}
