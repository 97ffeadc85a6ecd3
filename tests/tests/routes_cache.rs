//! What is kept of routes is never older than what was said about them, and keeps no net ns alive.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracker::route::{Config, Found, Kind, Place, Route, RouteError};
use tracker_tests::net::{Net, veth};
use tracker_tests::require;
use tracker_tests::requirement::{program, root};
use tracker_tests::routes::{Listened, to};
use tracker_tests::wait::eventually;

/// A net ns with a default route, and where that leads.
fn two(gateway: &str) -> Result<(Net, Net)> {
    let (inner, outer) = (Net::new("inner")?, Net::new("outer")?);
    veth(&inner, "eth0", &outer, "veth0")?;
    inner.ip("addr add 10.9.0.2/16 dev eth0")?;
    outer.ip("addr add 10.9.0.1/16 dev veth0")?;
    outer.ip("addr add 10.9.0.3/16 dev veth0")?;
    inner.ip(&format!("route add default via {gateway}"))?;
    Ok((inner, outer))
}

fn gateway(found: &Found) -> Option<IpAddr> {
    found.hops[0].gateway
}

fn address(text: &str) -> Option<IpAddr> {
    Some(text.parse().expect("an address"))
}

#[test]
fn what_was_asked_once_is_not_asked_again_until_something_changes() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, _outer) = two("10.9.0.1")?;
    let house = Listened::start()?;
    let netns = house.netns(&inner)?;
    house.until_kept(&netns, &to("8.8.8.8"));
    let before = house.stats.exchanges.sum();
    let found = house.routes.lookup_blocking(&netns, &to("8.8.8.8"))?;
    assert_eq!((gateway(&found), found.cached), (address("10.9.0.1"), true));
    assert_eq!(house.stats.exchanges.sum(), before);
    inner.ip("route replace default via 10.9.0.3")?;
    eventually("the change is heard", || {
        let found = house.routes.lookup_blocking(&netns, &to("8.8.8.8")).expect("an answer");
        (gateway(&found) == address("10.9.0.3")).then_some(())
    });
    Ok(())
}

#[test]
fn a_reader_remembers_no_longer_than_the_cache_keeps() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, _outer) = two("10.9.0.1")?;
    let house = Listened::start()?;
    let (netns, mut reader) = (house.netns(&inner)?, house.routes.reader());
    assert!(reader.lookup_cached(&netns, &to("8.8.8.8")).is_none());
    house.until_kept(&netns, &to("8.8.8.8"));
    let first = |route: Option<&Route>| route.and_then(|route| route.hops[0].gateway);
    eventually("it is found", || first(reader.lookup_cached(&netns, &to("8.8.8.8"))));
    inner.ip("route replace default via 10.9.0.3")?;
    // As soon as the one has heard of it, so has the other.
    house.routes.ask_blocking(&netns, &to("8.8.8.8"))?;
    let remembered = first(reader.lookup_cached(&netns, &to("8.8.8.8")));
    assert_ne!(remembered, address("10.9.0.1"));
    house.until_kept(&netns, &to("8.8.8.8"));
    eventually("the new one is found", || {
        (first(reader.lookup_cached(&netns, &to("8.8.8.8"))) == address("10.9.0.3")).then_some(())
    });
    drop(inner);
    eventually("its end is heard", || reader.lookup_cached(&netns, &to("8.8.8.8")).is_none().then_some(()));
    Ok(())
}

#[test]
fn a_fresh_answer_is_never_stale() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, _outer) = two("10.9.0.1")?;
    let house = Listened::start()?;
    let netns = house.netns(&inner)?;
    for round in 0..200 {
        let expected = if round % 2 == 0 { "10.9.0.3" } else { "10.9.0.1" };
        inner.ip(&format!("route replace default via {expected}"))?;
        let found = house.routes.ask_blocking(&netns, &to("8.8.8.8"))?;
        assert_eq!(gateway(&found), address(expected), "round {round}");
    }
    Ok(())
}

#[test]
fn a_fresh_answer_that_contradicts_what_is_kept_ends_all_of_it() -> Result<()> {
    require!(root(), program("ip"), program("sysctl"));
    let (inner, outer) = two("10.9.0.1")?;
    outer.run("sysctl -qw net.ipv4.ip_forward=1")?;
    outer.batch(
        "link add br0 type bridge\nlink set br0 up\naddr add 10.7.0.2/16 dev br0\nroute add default via 10.7.0.1\n",
    )?;
    let house = Listened::start()?;
    let (netns, mut reader) = (house.netns(&inner)?, house.routes.reader());
    for destination in ["8.8.8.8", "9.9.9.9"].map(to) {
        assert_eq!(house.until_kept(&netns, &destination).hops[1].gateway, address("10.7.0.1"));
        eventually("it is found", || reader.lookup_cached(&netns, &destination).map(drop));
    }
    // No message says so.
    outer.run("sysctl -qw net.ipv4.ip_forward=0")?;
    assert_eq!(house.routes.ask_blocking(&netns, &to("8.8.8.8"))?.hops[1].kind, Kind::Unreachable);
    for destination in ["8.8.8.8", "9.9.9.9"].map(to) {
        for known in
            [house.routes.lookup_cached(&netns, &destination).as_deref(), reader.lookup_cached(&netns, &destination)]
        {
            assert!(known.is_none_or(|route| route.hops[1].kind == Kind::Unreachable), "{known:?}");
        }
    }
    Ok(())
}

/// Changes each thing that a route depends on, and looks whether the kept answer is dropped.
#[test]
fn every_kind_of_change_is_heard() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, outer) = two("10.9.0.1")?;
    inner.ip("-6 addr add fd09::2/64 dev eth0 nodad")?;
    inner.ip("nexthop add id 7 via 10.9.0.1 dev eth0")?;
    inner.ip("route add 10.200.0.0/16 nhid 7")?;
    let house = Listened::start()?;
    let netns = house.netns(&inner)?;
    for change in [
        "rule add fwmark 7 table 100",
        "rule del fwmark 7 table 100",
        "-6 rule add fwmark 7 table 100",
        "route add 10.20.0.0/16 via 10.9.0.3",
        "route del 10.20.0.0/16",
        "-6 route add fd20::/64 via fd09::1",
        "addr add 10.9.0.9/16 dev eth0",
        "addr del 10.9.0.9/16 dev eth0",
        "-6 addr add fd09::9/64 dev eth0 nodad",
        "nexthop del id 7",
        "link set eth0 mtu 1400",
        "link add br7 type bridge",
        "link del br7",
        "link set eth0 down",
        "link set eth0 up",
    ] {
        house.until_kept(&netns, &to("8.8.8.8"));
        inner.ip(change).with_context(|| change.to_owned())?;
        eventually(change, || house.routes.lookup_cached(&netns, &to("8.8.8.8")).is_none().then_some(()));
    }
    inner.ip("route replace default via 10.9.0.1")?;
    // What lies behind the first hop counts, too.
    house.until_kept(&netns, &to("8.8.8.8"));
    outer.ip("route add 8.8.8.0/24 via 10.9.0.2")?;
    eventually("a change in the second net ns", || {
        house.routes.lookup_cached(&netns, &to("8.8.8.8")).is_none().then_some(())
    });
    Ok(())
}

#[test]
fn a_link_that_goes_down_takes_its_routes_along_at_once() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, _outer) = two("10.9.0.1")?;
    let house = Listened::start()?;
    let netns = house.netns(&inner)?;
    house.until_kept(&netns, &to("8.8.8.8"));
    inner.ip("link set eth0 down")?;
    let found = house.routes.ask_blocking(&netns, &to("8.8.8.8"))?;
    assert_eq!(found.hops[0].kind, Kind::NoRoute);
    inner.ip("link set eth0 up")?;
    inner.ip("route add default via 10.9.0.3")?;
    assert_eq!(gateway(&house.routes.ask_blocking(&netns, &to("8.8.8.8"))?), address("10.9.0.3"));
    inner.ip("addr del 10.9.0.2/16 dev eth0")?;
    assert_eq!(house.routes.ask_blocking(&netns, &to("8.8.8.8"))?.hops[0].kind, Kind::NoRoute);
    inner.ip("link del eth0")?;
    assert_eq!(house.routes.ask_blocking(&netns, &to("8.8.8.8"))?.hops[0].kind, Kind::NoRoute);
    Ok(())
}

#[test]
fn many_who_ask_the_same_make_one_exchange() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, _outer) = two("10.9.0.1")?;
    let house = Listened::start()?;
    let netns = house.netns(&inner)?;
    let moves = || house.stats.moves.load(Ordering::Relaxed);
    let exchanges = || house.stats.exchanges.sum();
    let mut number = 0;
    let (one, sixteen) = eventually("a moment in which nothing changes", || {
        number += 1;
        let quiet = moves();
        // What was learnt a moment ago is kept: so is what follows.
        house.until_kept(&netns, &to("8.8.8.8"));
        let begun = exchanges();
        house.routes.ask_blocking(&netns, &to("8.8.4.4")).ok()?;
        let one = exchanges() - begun;
        let asked = to(&format!("9.9.9.{number}"));
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| house.routes.lookup_blocking(&netns, &asked).expect("an answer"));
            }
        });
        (moves() == quiet).then(|| (one, exchanges() - begun - one))
    });
    assert_eq!(sixteen, one, "exchanges of sixteen who ask, and of one");
    Ok(())
}

#[test]
fn a_net_ns_that_ends_is_gone_and_its_number_means_another_one() -> Result<()> {
    require!(root(), program("ip"));
    let house = Listened::start()?;
    let mut seen = Vec::new();
    // Inode numbers are reused at once, so some of these have the same.
    for round in 0..20 {
        let (inner, _outer) = two(if round % 2 == 0 { "10.9.0.1" } else { "10.9.0.3" })?;
        let netns = house.netns(&inner)?;
        let expected = if round % 2 == 0 { "10.9.0.1" } else { "10.9.0.3" };
        let found = house.routes.lookup_blocking(&netns, &to("8.8.8.8"))?;
        assert_eq!(gateway(&found), address(expected), "round {round}");
        seen.push(netns);
        // Its end is announced once the kernel has come to clean it up.
    }
    for netns in &seen {
        eventually("its end is heard", || netns.is_gone().then_some(()));
        assert!(house.routes.lookup_cached(netns, &to("8.8.8.8")).is_none());
        let error = house.routes.lookup_blocking(netns, &to("8.8.8.8")).expect_err("it has ended");
        assert!(matches!(error, RouteError::Gone { .. }), "{error}");
    }
    let mut cookies: Vec<_> = seen.iter().map(|netns| netns.identity().cookie).collect();
    cookies.dedup();
    assert_eq!(cookies.len(), 20, "ids are never reused");
    Ok(())
}

#[test]
fn nothing_keeps_a_net_ns_alive_for_longer_than_a_second() -> Result<()> {
    require!(root(), program("ip"));
    let house = Listened::start()?;
    let (inner, outer) = two("10.9.0.1")?;
    let netns = house.netns(&inner)?;
    house.until_kept(&netns, &to("8.8.8.8"));
    let identity = netns.identity();
    drop(inner);
    // Asked all the while: it would be kept alive for ever by a socket that is kept as long as it is used.
    let begun = Instant::now();
    let ended = eventually("its end is heard", || {
        let _ = house.routes.ask_blocking(&netns, &to("8.8.8.8"));
        // Its other end goes with it.
        netns.is_gone().then(|| begun.elapsed())
    });
    assert!(outer.index("veth0").is_err(), "the veth has gone with {identity:?}");
    // The kernel cleans up a moment later; how long that takes is not ours. Ten times the bound tells the two apart.
    assert!(ended < Duration::from_secs(10), "{ended:?}");
    eventually("no socket is open", || (house.stats.open.load(Ordering::Relaxed) == 0).then_some(()));
    assert_eq!(sockets_in(identity.inode), 0);
    Ok(())
}

/// Descriptors of this process that are net namespaces with this number.
fn sockets_in(inode: u32) -> usize {
    let name = PathBuf::from(format!("net:[{inode}]"));
    let descriptors = fs::read_dir("/proc/self/fd").expect("/proc is mounted").flatten();
    descriptors.filter(|descriptor| fs::read_link(descriptor.path()).is_ok_and(|target| target == name)).count()
}

#[test]
fn a_process_that_has_gone_leads_nowhere() -> Result<()> {
    require!(root(), program("ip"));
    let house = Listened::start()?;
    let error = house.routes.netns(&Place::Pid(u32::MAX / 4)).expect_err("no such process");
    assert!(error.is_not_found() && error.to_string().contains(&(u32::MAX / 4).to_string()), "{error}");
    let error = house.routes.netns(&Place::Path("/run/netns/none-such".into())).expect_err("no such file");
    assert!(error.is_not_found() && error.to_string().contains("none-such"), "{error}");
    let error = house.routes.netns(&Place::Path("/dev/null".into())).expect_err("no namespace");
    assert!(error.to_string().contains("/dev/null"), "{error}");
    let error = house.routes.netns(&Place::Path("/proc/self/ns/mnt".into())).expect_err("another namespace");
    assert!(error.to_string().contains("ns/mnt"), "{error}");
    let error = house.routes.netns(&Place::Inode(1)).expect_err("nobody's number");
    assert!(matches!(error, RouteError::Unknown { inode: 1 }), "{error}");
    Ok(())
}

#[test]
fn a_net_ns_that_talks_too_much_is_muted_and_others_are_not() -> Result<()> {
    require!(root(), program("ip"));
    let house = Listened::start()?;
    let ((loud, _outer), (quiet, _other)) = (two("10.9.0.1")?, two("10.9.0.1")?);
    let (netns, calm) = (house.netns(&loud)?, house.netns(&quiet)?);
    let routes: String =
        (0..4_000).map(|n| format!("route replace 10.{}.{}.0/24 via 10.9.0.3\n", 100 + n / 250, n % 250)).collect();
    // Again where a slow machine was not quick enough to be too much.
    let found = eventually("it is muted", || {
        loud.batch(&routes).expect("it talks");
        let found = house.routes.ask_blocking(&netns, &to("8.8.8.8")).expect("an answer");
        found.muted.then_some(found)
    });
    assert!(!found.cached, "{found:?}");
    assert!(house.stats.muted.load(Ordering::Relaxed) >= 1);
    assert!(!house.until_kept(&calm, &to("8.8.8.8")).muted);
    // It comes back by itself.
    house.until_kept(&netns, &to("8.8.8.8"));
    Ok(())
}

#[test]
fn what_is_known_only_by_age_is_asked_again() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, _outer) = two("10.9.0.1")?;
    let house = Listened::start_with(Config { oldest_ms: 100, ..Config::default() }, None)?;
    let netns = house.netns(&inner)?;
    house.until_kept(&netns, &to("8.8.8.8"));
    eventually("it is too old", || house.routes.lookup_cached(&netns, &to("8.8.8.8")).is_none().then_some(()));
    Ok(())
}
