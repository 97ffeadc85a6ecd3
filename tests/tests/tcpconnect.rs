//! The example tracer of connections: which container connects where, and how that leaves the host, as `ip route get` says.

use std::io::Read;
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result};
use serde_json::Value;
use tracker_tests::bundle::Bundle;
use tracker_tests::example::{Example, config, lines};
use tracker_tests::house::House;
use tracker_tests::net::{Bridge, host, host_route};
use tracker_tests::require;
use tracker_tests::requirement::{example, program, root};
use tracker_tests::runc::Kind;
use tracker_tests::wait::eventually;

/// A container that connects to each of these, and sleeps then.
fn bundle(house: &House, id: &str, to: &[(&str, u16)]) -> Result<Bundle> {
    let connect =
        |(address, port): &(&str, u16)| format!("busybox nc -w 1 {address} {port} </dev/null >/dev/null 2>&1; ");
    let script = to.iter().map(connect).collect::<String>() + "exec sleep 1000";
    house.bundle_with(id, &["sh", "-c", &script], |_| ())
}

/// The line about a connection of this container to this place.
fn find(lines: &[Value], id: &str, to: &str) -> Option<Value> {
    lines.iter().find(|line| line["container"]["id"] == id && line["to"] == to).cloned()
}

#[test]
fn a_connection_has_its_container_and_its_way() -> Result<()> {
    require!(
        root(),
        program("ip"),
        program("nsenter"),
        program("busybox"),
        Kind::Runc.requirement(),
        example("tcpconnect")
    );
    let house = House::new(Kind::Runc)?;
    let bridge = Bridge::new(75)?;
    // Beyond a gateway that nobody has, so that nobody answers.
    host(&format!("route add 198.19.75.0/24 via 198.18.75.9 dev {}", bridge.name))?;
    let listener = TcpListener::bind("198.18.75.1:0").context("listen on the bridge")?;
    let port = listener.local_addr()?.port();
    let tracer = Example::start("tcpconnect", &config(house.runtime()), &["-o", "json"])?;

    let to = [("198.18.75.1", port), ("198.19.75.5", 80), ("::1", 81)];
    let container = house.runtime().create(&bundle(&house, "connects", &to)?, "connects")?;
    bridge.connect(container.pid())?;
    container.start()?;
    let (mut accepted, peer) = listener.accept().context("accept the container")?;
    // It goes on when its input and the connection have ended.
    let _ = accepted.read(&mut [0]);
    drop(accepted);
    drop(TcpStream::connect(("198.18.75.1", port))?);
    let own = u64::from(std::process::id());
    let lines = eventually("all are shown", || {
        let lines = tracer.lines();
        let is_there = find(&lines, "connects", "[::1]:81").is_some() && lines.iter().any(|line| line["pid"] == own);
        is_there.then_some(lines)
    });

    // What the test knows: the listener saw the container come.
    let line = find(&lines, "connects", &format!("198.18.75.1:{port}")).context("the accepted one")?;
    assert_eq!(line["from"], peer.ip().to_string(), "{line}");
    assert_eq!((&line["answer"], &line["comm"]), (&"container".into(), &"busybox".into()), "{line}");
    let route = &line["route"];
    assert_eq!(
        (&route["kind"], &route["hops"], &route["gateway"]),
        (&"local".into(), &2.into(), &Value::Null),
        "{line}"
    );
    // What the host's own `ip` says of what is forwarded.
    let line = find(&lines, "connects", "198.19.75.5:80").context("the forwarded one")?;
    match host_route(&format!("198.19.75.5 from 198.18.75.2 iif {}", bridge.name))? {
        Some(said) => {
            assert_eq!(
                (&line["route"]["gateway"], &said["gateway"]),
                (&"198.18.75.9".into(), &"198.18.75.9".into()),
                "{line}"
            );
            assert_eq!(line["route"]["subnet"], "198.18.75.0/24", "{line}");
        }
        // A host that forwards nothing.
        None => assert_ne!(line["route"]["kind"], "unicast", "{line}"),
    }
    let line = find(&lines, "connects", "[::1]:81").context("the one of IPv6")?;
    assert_eq!((&line["route"]["kind"], &line["from"]), (&"local".into(), &"::1".into()), "{line}");
    // The test's own, in the host's net ns.
    let line = lines.iter().find(|line| line["pid"] == own).context("the host's")?;
    assert_eq!((&line["answer"], &line["route"]["hops"]), (&"host".into(), &1.into()), "{line}");
    assert_eq!(line["to"], format!("198.18.75.1:{port}"));
    tracer.stop()?;
    Ok(())
}

#[test]
fn a_selection_shows_the_selected_containers_connections_alone() -> Result<()> {
    require!(root(), program("busybox"), Kind::Runc.requirement(), example("tcpconnect"));
    let house = House::new(Kind::Runc)?;
    let options = ["-o", "json", "--select", "id=picked-*"];
    let tracer = Example::start("tcpconnect", &config(house.runtime()), &options)?;
    let mut containers = Vec::new();
    // The last is picked: when it is shown, the others have connected.
    for number in 0..6 {
        let id = format!("{}-{number}", ["other", "picked"][number % 2]);
        // Without an interface that is up: refused, once it is begun.
        let container = house.runtime().create(&bundle(&house, &id, &[("127.0.0.1", 9)])?, &id)?;
        let pid = container.pid().to_string();
        let up =
            std::process::Command::new("nsenter").args(["-t", &pid, "-n", "ip", "link", "set", "lo", "up"]).status()?;
        assert!(up.success());
        container.start()?;
        let name = || std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        eventually("it has connected", || (name() == "sleep\n").then_some(()));
        containers.push((id, container));
    }
    let said = tracer.stop()?;
    let shown: Vec<String> =
        lines(&said).iter().filter_map(|line| line["container"]["id"].as_str().map(str::to_owned)).collect();
    assert_eq!(
        (shown, lines(&said).len()),
        (vec!["picked-1".into(), "picked-3".into(), "picked-5".into()], 3),
        "{said}"
    );
    Ok(())
}
