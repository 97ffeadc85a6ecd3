//! Randomly drawn net namespaces and questions: what we say is what `ip route get` says in the same net ns, hop by hop.
//!
//! The seed is printed; `ROUTES_SEED` repeats it.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::Value;
use tracker::route::{Hop, Kind, Route, RouteError, RouteQuery};
use tracker_tests::net::{Net, veth};
use tracker_tests::require;
use tracker_tests::requirement::{program, root};
use tracker_tests::routes::Listened;

const QUESTIONS: usize = 40;

/// How many are drawn; fewer where each takes half a minute, in an emulated machine.
fn topologies() -> usize {
    if is_emulated() { 3 } else { 12 }
}

fn is_emulated() -> bool {
    std::env::var_os("TRACKER_TESTS_IN_MACHINE").is_some()
}

/// A net ns with some interfaces, addresses, routes and rules, and another that its veths lead to.
struct Topology {
    net: Net,
    next: Net,
    interfaces: Vec<&'static str>,
    /// What was done, for who reads a failure.
    lines: Vec<String>,
}

const VETHS: [&str; 3] = ["d0", "d1", "d2"];

impl Topology {
    fn draw(rng: &mut Rng) -> Result<Topology> {
        let (net, next) = (Net::new("drawn")?, Net::new("next")?);
        let count = rng.usize(1..=3);
        let mut topology = Topology { net, next, interfaces: VETHS[..count].to_vec(), lines: Vec::new() };
        topology.net.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
        topology.next.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
        if rng.bool() {
            topology.net.run("sysctl -qw net.ipv4.conf.all.rp_filter=1")?;
        }
        for (number, end) in VETHS[..count].iter().enumerate() {
            let other = format!("n{number}");
            veth(&topology.net, end, &topology.next, &other)?;
            let on_bridge = rng.bool();
            let carrier = if on_bridge { format!("br{number}") } else { other.clone() };
            if on_bridge {
                topology.next.ip(&format!("link add br{number} type bridge"))?;
                topology.next.ip(&format!("link set {other} master br{number}"))?;
                topology.next.ip(&format!("link set br{number} up"))?;
            }
            topology.next.ip(&format!("addr add 10.{number}.0.1/16 dev {carrier}"))?;
            topology.next.ip(&format!("-6 addr add fd{number}0::1/64 dev {carrier} nodad"))?;
            topology.add(&format!("addr add 10.{number}.0.2/16 dev {end}"));
            topology.add(&format!("-6 addr add fd{number}0::2/64 dev {end} nodad"));
        }
        if rng.bool() {
            topology.add("link add mv0 link d0 type macvlan mode bridge");
            topology.add("link set mv0 up");
            topology.add("addr add 10.40.0.2/24 dev mv0");
            topology.interfaces.push("mv0");
        }
        // One of each, and at random.
        for (number, kind) in ["unreachable", "blackhole", "prohibit", "throw"].into_iter().enumerate() {
            topology.add(&format!("route add {kind} 10.11{number}.0.0/16"));
        }
        for _ in 0..rng.usize(4..12) {
            let line = route(rng, count);
            topology.add(&line);
        }
        if rng.bool() {
            topology.add("nexthop add id 10 via 10.0.0.1 dev d0");
            topology.add("nexthop add id 11 via 10.0.0.9 dev d0");
            topology.add("nexthop add id 12 group 10,2/11");
            topology.add("route add 10.130.0.0/16 nhid 12");
            topology.add("nexthop add id 20 via fd00::1 dev d0");
            topology.add("route add 10.131.0.0/16 nhid 20");
        }
        for _ in 0..rng.usize(0..5) {
            let line = rule(rng);
            topology.add(&line);
        }
        if count > 1 && rng.u8(0..4) == 0 {
            topology.add("link set d1 down");
        }
        Ok(topology)
    }

    /// Does what was drawn; what makes no sense there (a gateway that is not reached, a route that exists) is left out.
    fn add(&mut self, line: &str) {
        if self.net.ip(line).is_ok() {
            self.lines.push(line.to_owned());
        }
    }
}

fn pick<'a>(rng: &mut Rng, among: &[&'a str]) -> &'a str {
    among[rng.usize(0..among.len())]
}

fn route(rng: &mut Rng, interfaces: usize) -> String {
    let number = rng.usize(0..interfaces);
    let table = pick(rng, &["", "", "table 100", "table 2000"]);
    let metric = pick(rng, &["", "", "metric 50"]);
    if rng.u8(0..3) == 0 {
        let prefix = pick(rng, &["default", "fd77::/32", "fd77:1::/48", "fd78::/32"]);
        return match rng.u8(0..4) {
            0 => format!(
                "-6 route add {} {prefix} {table} {metric}",
                pick(rng, &["blackhole", "unreachable", "prohibit"])
            ),
            1 => format!(
                "-6 route add {prefix} {table} {metric} nexthop via fd{number}0::1 weight 2 nexthop via fd00::9"
            ),
            _ => format!("-6 route add {prefix} via fd{number}0::1 {table} {metric}"),
        };
    }
    let prefix = pick(
        rng,
        &["default", "default", "10.100.0.0/16", "10.100.1.0/24", "10.101.0.0/16", "8.8.0.0/16", "10.102.0.0/15"],
    );
    match rng.u8(0..7) {
        0 => {
            let kind = pick(rng, &["blackhole", "unreachable", "prohibit", "throw"]);
            format!("route add {kind} {prefix} {table} {metric}")
        }
        1 => format!(
            "route add {prefix} {table} {metric} nexthop via 10.{number}.0.1 weight {} nexthop via 10.0.0.9",
            rng.u8(1..5)
        ),
        2 => format!("route add {prefix} via inet6 fd{number}0::1 dev d{number} {table} {metric}"),
        3 => format!("route add {prefix} dev d{number} {table} {metric}"),
        4 => format!("route add {prefix} via 10.{number}.0.1 src 10.{number}.0.2 {table} {metric}"),
        _ => format!("route add {prefix} via 10.{number}.0.1 {table} {metric}"),
    }
}

fn rule(rng: &mut Rng) -> String {
    let family = pick(rng, &["", "", "-6"]);
    let from = if family == "-6" { "fd00::/16" } else { "10.0.0.0/16" };
    let condition = match rng.u8(0..6) {
        0 => "fwmark 7".to_owned(),
        1 => format!("from {from}"),
        2 => "iif d0".to_owned(),
        3 => "ipproto 6 dport 443".to_owned(),
        4 => "oif d1".to_owned(),
        _ => "uidrange 1000-1000".to_owned(),
    };
    let action = pick(rng, &["table 100", "table 2000", "table 100", "prohibit", "blackhole", "unreachable"]);
    format!("{family} rule add pref {} {condition} {action}", rng.u16(100..30_000))
}

/// A question, as we ask it and as `ip route get` does.
fn question(rng: &mut Rng, topology: &Topology) -> Result<(RouteQuery, String)> {
    let is_v6 = rng.u8(0..3) == 0;
    let destination = if is_v6 {
        pick(
            rng,
            &["fd77::5", "fd77:1::5", "fd78::5", "fd00::1", "fd00::77", "2001:db8::1", "fd00::2", "::1", "ff02::1"],
        )
    } else {
        let all = [
            "8.8.8.8",
            "10.100.0.5",
            "10.100.1.5",
            "10.101.3.3",
            "10.102.0.1",
            "10.103.9.9",
            "10.130.0.5",
            "10.131.0.5",
            "10.0.0.1",
            "10.0.0.77",
            "10.110.0.1",
            "10.111.0.1",
            "10.112.0.1",
            "10.113.0.1",
            "10.0.0.2",
            "10.0.255.255",
            "127.0.0.1",
            "224.0.0.5",
            "255.255.255.255",
            "10.40.0.9",
            "172.31.0.1",
        ];
        pick(rng, &all)
    };
    let mut query = RouteQuery::to(destination.parse()?);
    let mut words = vec![destination.to_owned()];
    match rng.u8(0..6) {
        // Sent from one of its own, or from another's.
        0 => {
            let source = match is_v6 {
                true => "fd00::2",
                false => pick(rng, &["10.0.0.2", "10.0.0.2", "10.200.0.1"]),
            };
            query.source = Some(source.parse()?);
            words.push(format!("from {source}"));
        }
        // Forwarded.
        1 | 2 => {
            let interface = topology.interfaces[rng.usize(0..topology.interfaces.len())];
            let source = match is_v6 {
                true => pick(rng, &["fd00::77", "fd99::1"]),
                false => pick(rng, &["10.0.0.77", "10.1.0.77", "10.200.0.1", "10.0.0.2"]),
            };
            query.source = Some(source.parse()?);
            query.input = Some(topology.net.index(interface)?);
            words.push(format!("from {source} iif {interface}"));
        }
        3 => {
            let interface = topology.interfaces[rng.usize(0..topology.interfaces.len())];
            query.output = Some(topology.net.index(interface)?);
            words.push(format!("oif {interface}"));
        }
        _ => {}
    }
    if rng.bool() {
        query.mark = Some(7);
        words.push("mark 7".to_owned());
    }
    if rng.u8(0..3) == 0 {
        (query.protocol, query.source_port, query.destination_port) = (Some(6), Some(33_000), Some(443));
        words.push("ipproto 6 sport 33000 dport 443".to_owned());
    }
    if query.input.is_none() && rng.u8(0..4) == 0 {
        query.uid = Some(1_000);
        words.push("uid 1000".to_owned());
    }
    Ok((query, words.join(" ")))
}

/// What `ip route get` says: an answer, or the kernel's complaint.
fn oracle(net: &Net, words: &str) -> Result<Value, String> {
    let said = net.ip_json(&format!("route get {words}")).map_err(|error| format!("{error:#}"))?;
    Ok(said[0].clone())
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// Compares a hop with the oracle's word about the same question in the same net ns.
fn compare(hop: &Hop, net: &Net, words: &str) -> Result<()> {
    let said = match oracle(net, words) {
        Ok(said) => said,
        Err(complaint) => {
            let expected: &[Kind] = match &*complaint {
                c if c.contains("Invalid argument") => &[Kind::Blackhole, Kind::Refused],
                c if c.contains("No route to host") => &[Kind::Unreachable],
                c if c.contains("Permission denied") => &[Kind::Prohibit],
                c if c.contains("Network is unreachable") => &[Kind::NoRoute],
                c if c.contains("Resource temporarily unavailable") => &[Kind::Throw],
                c if c.contains("cross-device") => &[Kind::Refused],
                c => anyhow::bail!("an unknown complaint: {c}"),
            };
            anyhow::ensure!(expected.contains(&hop.kind), "{:?}, where `ip` complains: {complaint}", hop.kind);
            return Ok(());
        }
    };
    let kind = text(&said["type"]).unwrap_or_else(|| "unicast".into());
    let kind = if kind == "anycast" { "local".into() } else { kind };
    let gateway = text(&said["gateway"]).or_else(|| text(&said["via"]["host"]));
    let gateway = gateway.filter(|_| said["dev"] != "lo");
    let theirs = (kind.clone(), text(&said["dev"]), gateway, text(&said["prefsrc"]), table(&said["table"]));
    let source = hop.source.map(|source| source.to_string()).filter(|_| said["prefsrc"].is_string());
    let ours = (
        hop.kind.name().to_owned(),
        hop.interface.as_ref().map(|interface| interface.name.to_string()),
        hop.gateway.map(|gateway| gateway.to_string()),
        source,
        hop.table.unwrap_or(0),
    );
    anyhow::ensure!(ours == theirs, "{ours:?}, where `ip` says {theirs:?}: {said:#}");
    let Ok(matched) = oracle(net, &format!("fibmatch {words}")) else {
        anyhow::ensure!(hop.prefix.is_none(), "a route {:?}, where `ip` has none", hop.prefix);
        return Ok(());
    };
    let prefix = hop.prefix.with_context(|| format!("a route, where `ip` has {matched:#}"))?;
    let theirs = text(&matched["dst"]).unwrap_or_default();
    let ours = prefix.to_string();
    let is_same = match &*theirs {
        "default" => prefix.length == 0,
        address if !address.contains('/') => prefix.address.to_string() == address,
        prefix => ours == prefix,
    };
    anyhow::ensure!(is_same, "{ours}, where `ip` says {theirs}");
    anyhow::ensure!(hop.metric.map(u64::from) == matched["metric"].as_u64(), "{:?}: {matched:#}", hop.metric);
    let theirs: Vec<_> =
        matched["nexthops"].as_array().into_iter().flatten().map(|way| way["weight"].as_u64()).collect();
    let ours: Vec<_> = hop.nexthops.iter().map(|way| Some(u64::from(way.weight))).collect();
    anyhow::ensure!(ours == theirs, "{ours:?}: {matched:#}");
    // What goes to everybody goes to no gateway.
    let is_one = hop.nexthops.is_empty() || hop.kind != Kind::Unicast;
    anyhow::ensure!(is_one || hop.nexthops.iter().filter(|way| way.chosen).count() == 1, "{hop:#?}");
    Ok(())
}

/// A table's number. An interface that nobody has a route for is answered without any.
fn table(said: &Value) -> u32 {
    match said {
        Value::Number(number) => number.as_u64().unwrap_or_default() as u32,
        Value::String(name) => match &**name {
            "main" => 254,
            "local" => 255,
            "default" => 253,
            other => other.parse().unwrap_or_default(),
        },
        _ => 0,
    }
}

/// Compares all hops, each in its own net ns.
fn compare_all(route: &Route, topology: &Topology, query: &RouteQuery, words: &str) -> Result<()> {
    compare(&route.hops[0], &topology.net, words)?;
    for hop in route.hops[1..].iter().filter(|hop| hop.kind != Kind::Switched) {
        let net =
            [&topology.net, &topology.next].into_iter().find(|net| net.inode() == hop.netns).context("its net ns")?;
        let input = hop.input.as_ref().context("a packet that comes in")?;
        let source: IpAddr = route.hops[0].source.or(query.source).context("a source")?;
        let mut words = format!("{} from {source} iif {}", query.destination, input.name);
        if query.protocol.is_some() {
            words.push_str(" ipproto 6 sport 33000 dport 443");
        }
        compare(hop, net, &words).with_context(|| format!("hop into {}: `{words}`", hop.netns))?;
    }
    Ok(())
}

#[test]
#[expect(clippy::print_stdout, reason = "the harness shows it when the test fails")]
fn what_we_say_is_what_ip_route_get_says() -> Result<()> {
    require!(root(), program("ip"));
    let seed = std::env::var("ROUTES_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed =
        seed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64));
    println!("ROUTES_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let house = Listened::start()?;
    let (mut compared, mut kinds) = (0, std::collections::BTreeMap::new());
    for number in 0..topologies() {
        let topology = Topology::draw(&mut rng)?;
        let netns = house.netns(&topology.net)?;
        for _ in 0..QUESTIONS {
            let (query, words) = question(&mut rng, &topology)?;
            let about = || format!("ROUTES_SEED={seed} topology {number} `{words}`\n{}", topology.lines.join("\n"));
            // Twice, so that what is kept is compared, too.
            for found in [house.routes.ask_blocking(&netns, &query), house.routes.lookup_blocking(&netns, &query)] {
                match found {
                    Ok(found) => {
                        *kinds.entry(found.hops[0].kind.name()).or_insert(0) += 1;
                        compare_all(&found, &topology, &query.normal(), &words)
                            .with_context(|| format!("{found:#?}"))
                            .with_context(about)?;
                    }
                    Err(RouteError::NotItsAddress { .. }) => {
                        assert!(oracle(&topology.net, &words).is_err(), "{}", about());
                        *kinds.entry("not its address").or_insert(0) += 1;
                    }
                    // What the kernel itself cannot answer, such as for some multicast that is forwarded.
                    Err(RouteError::Refused { error, .. }) => {
                        let complaint = oracle(&topology.net, &words).err().unwrap_or_default();
                        let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0));
                        assert!(complaint.contains(errno.desc()), "{error}, not `{complaint}`: {}", about());
                        *kinds.entry("refused").or_insert(0) += 1;
                    }
                    Err(error) => return Err(error).with_context(about),
                }
                compared += 1;
            }
        }
    }
    println!("{compared} answers compared: {kinds:?}");
    if is_emulated() {
        // Too few to have some of each.
        return Ok(());
    }
    // It would be no comparison if most of what was drawn made no sense.
    for kind in ["unicast", "local", "no-route", "blackhole", "unreachable", "prohibit", "broadcast", "multicast"] {
        assert!(kinds.contains_key(kind), "no {kind} among {kinds:?}, ROUTES_SEED={seed}");
    }
    Ok(())
}
