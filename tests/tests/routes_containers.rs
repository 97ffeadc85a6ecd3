//! Routes of real containers on a bridge of the host's, through the daemon: what the container and the host say, as
//! `ip route get` says it in both.

use std::net::IpAddr;
use std::process::Command;

use anyhow::Result;
use serde_json::Value;
use tracker_tests::daemon::Daemon;
use tracker_tests::house::{House, PATIENT};
use tracker_tests::net::{Bridge, host, host_route, run};
use tracker_tests::require;
use tracker_tests::requirement::{program, root};
use tracker_tests::runc::Kind;
use tracker_tests::wait::eventually;

#[test]
fn a_container_on_a_bridge_has_its_own_hop_and_the_hosts() -> Result<()> {
    require!(root(), program("ip"), program("nsenter"), Kind::Runc.requirement());
    let house = House::new(Kind::Runc)?;
    let bridge = Bridge::new(71)?;
    let daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let container = house.started("routes-bridge")?;
    bridge.connect(container.pid())?;
    eventually("the container is known", || daemon.in_state("routes-bridge", "running"));

    let answer = daemon.ask_json(&["route", "8.8.8.8", "--container", "routes-bridge", "-o", "json"])?;
    let first = &answer["hops"][0];
    assert_eq!(first["kind"], "unicast", "{answer:#}");
    assert_eq!((&first["interface"]["name"], &first["gateway"]), (&"eth0".into(), &"198.18.71.1".into()));
    assert_eq!((&first["source"], &first["subnet"]["cidr"]), (&"198.18.71.2".into(), &"198.18.71.0/24".into()));
    let second = &answer["hops"][1];
    assert_eq!(second["input"]["name"], bridge.name.as_str(), "{answer:#}");
    let said = host_route(&format!("8.8.8.8 from 198.18.71.2 iif {}", bridge.name))?;
    match said {
        Some(said) => {
            assert_eq!(second["interface"]["name"], said["dev"], "{answer:#} {said:#}");
            assert_eq!(second["gateway"], said["gateway"], "{answer:#} {said:#}");
            assert_eq!(answer["via"]["gateway"], said["gateway"]);
            let gateway: IpAddr = said["gateway"].as_str().unwrap_or("0.0.0.0").parse()?;
            assert!(answer["via"]["subnet"]["cidr"].is_string(), "the subnet of {gateway}: {answer:#}");
        }
        // A host without a way out, or that forwards nothing.
        None => {
            assert!(["no-route", "unreachable"].contains(&second["kind"].as_str().unwrap_or_default()), "{answer:#}")
        }
    }
    // By whatever it is named, it is the same.
    let pid = container.pid().to_string();
    let inode = first["netns"].to_string();
    for way in [["--pid", &pid], ["--netns", &inode], ["--netns", &format!("/proc/{pid}/ns/net")]] {
        let other = daemon.ask_json(&["route", "8.8.8.8", way[0], way[1], "-o", "json"])?;
        assert_eq!(other["hops"], answer["hops"], "{way:?}");
    }
    let text = daemon.ask(&["route", "8.8.8.8", "--container", "routes-bridge"])?;
    assert!(text.out.contains("via 198.18.71.1 dev eth0") && text.out.lines().count() >= 2, "{}", text.out);

    // A change shows in the very next fresh look-up, and soon in all.
    host(&format!("route add 8.8.8.8/32 via 198.18.71.9 dev {}", bridge.name))?;
    let changed = daemon.ask_json(&["route", "8.8.8.8", "--container", "routes-bridge", "--fresh", "-o", "json"]);
    let gone = host("route del 8.8.8.8/32");
    assert_eq!(changed?["hops"][1]["gateway"], "198.18.71.9");
    gone
}

#[test]
fn a_container_that_ends_frees_its_net_ns_within_a_second_or_so() -> Result<()> {
    require!(root(), program("ip"), program("nsenter"), Kind::Runc.requirement());
    let house = House::new(Kind::Runc)?;
    let bridge = Bridge::new(72)?;
    let daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let container = house.started("routes-ends")?;
    let end = bridge.connect(container.pid())?;
    eventually("the container is known", || daemon.in_state("routes-ends", "running"));
    let known = || daemon.metric("tracker_route_netns_known").expect("a metric");
    let before = known();
    daemon.ask_json(&["route", "8.8.8.8", "--container", "routes-ends", "-o", "json"])?;
    assert_eq!((known() - before, daemon.metric("tracker_route_netns_open")? >= 1.0), (1.0, true));
    drop(container);
    // Its veth goes with the net ns: as long as that is there, something keeps it.
    eventually("the net ns has gone", || host(&format!("link show {end}")).is_err().then_some(()));
    eventually("and is forgotten", || (known() == before).then_some(()));
    let said = daemon.ask(&["route", "8.8.8.8", "--container", "routes-ends"])?;
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(said.err.contains("routes-ends"), "{}", said.err);
    Ok(())
}

#[test]
fn watching_prints_each_change() -> Result<()> {
    require!(root(), program("ip"), program("nsenter"), Kind::Runc.requirement());
    let house = House::new(Kind::Runc)?;
    let bridge = Bridge::new(73)?;
    let daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let container = house.started("routes-watch")?;
    bridge.connect(container.pid())?;
    eventually("the container is known", || daemon.in_state("routes-watch", "running"));
    let log = house.path("watched");
    let mut command = Command::new(tracker_tests::requirement::tracker().map_err(anyhow::Error::msg)?);
    command.arg("--socket").arg(daemon.socket());
    command.args(["route", "198.18.73.77", "--container", "routes-watch", "--watch", "-o", "json"]);
    let _watching = tracker_tests::process::Process::start(&mut command, &log)?;
    let lines = || -> Vec<Value> {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    eventually("the first answer", || (lines().len() == 1).then_some(()));
    assert!(lines()[0]["hops"][0]["gateway"].is_null(), "it is on the link: {:#}", lines()[0]);
    let pid = container.pid().to_string();
    run(Command::new("nsenter").args([
        "-t",
        &pid,
        "-n",
        "ip",
        "route",
        "add",
        "198.18.73.77/32",
        "via",
        "198.18.73.1",
    ]))?;
    eventually("the change", || {
        lines().last().is_some_and(|line| line["hops"][0]["gateway"] == "198.18.73.1").then_some(())
    });
    drop(container);
    eventually("its end", || lines().last().is_some_and(|line| line["type"] == "error").then_some(()));
    Ok(())
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() -> Result<()> {
    require!(root());
    let house = tempfile::tempdir()?;
    let config = format!(
        "[barrier]\nenabled = false\n[proc]\nroots = [{:?}]\nusual-roots = false\n[containerd]\nenabled = false\n",
        house.path()
    );
    let daemon = Daemon::start(&config)?;
    for (arguments, code, expected) in [
        (&["route", "8.8.8.300"][..], 2, "column 9"),
        (&["route", "8.8.8.8", "--container", "no-such-container"], 3, "no-such-container"),
        (&["route", "8.8.8.8", "--pid", "4194304"], 3, "4194304"),
        (&["route", "8.8.8.8", "--netns", "1"], 3, "net ns 1"),
        (&["route", "8.8.8.8", "--netns", "/run/netns/no-such-ns"], 3, "no-such-ns"),
        (&["route", "8.8.8.8", "--src", "::1"], 2, "two kinds of IP"),
        (&["route", "8.8.8.8", "--src", "203.0.113.77"], 2, "203.0.113.77"),
        (&["route", "8.8.8.8", "--oif", "no-such-if"], 2, "no-such-if"),
        (&["route", "8.8.8.8", "--oif", "99999"], 2, "8.8.8.8"),
        (&["route", "8.8.8.8", "--pid", "1", "--netns", "1"], 2, "--netns"),
    ] {
        let said = daemon.ask(arguments)?;
        assert_eq!(said.code, code, "{arguments:?}: {}", said.err);
        assert!(said.err.contains(expected), "{arguments:?}: {}", said.err);
    }
    let host = daemon.ask_json(&["route", "127.0.0.1", "-o", "json"])?;
    assert_eq!((&host["hops"][0]["kind"], &host["via"]), (&"local".into(), &Value::Null));
    Ok(())
}
