//! Ways of packets through real net namespaces, compared with what `ip route get` says in each of them.

use anyhow::Result;
use tracker::route::{Config, Interface, Kind, Place, Route, RouteQuery};
use tracker_tests::net::{Net, veth};
use tracker_tests::require;
use tracker_tests::requirement::{program, root};
use tracker_tests::routes::{Listened, to};

fn kinds(route: &Route) -> Vec<Kind> {
    route.hops.iter().map(|hop| hop.kind).collect()
}

#[test]
fn a_container_behind_a_bridge_has_two_hops() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, outer, world) = (Net::new("inner")?, Net::new("outer")?, Net::new("world")?);
    veth(&inner, "eth0", &outer, "veth0")?;
    veth(&outer, "ens0", &world, "w0")?;
    outer.ip("link add br0 type bridge")?;
    outer.ip("link set br0 up")?;
    outer.ip("link set veth0 master br0")?;
    outer.ip("addr add 172.30.0.1/16 dev br0")?;
    outer.ip("addr add 10.77.0.5/24 dev ens0")?;
    outer.ip("route add default via 10.77.0.1")?;
    outer.run("sysctl -qw net.ipv4.ip_forward=1")?;
    inner.ip("addr add 172.30.0.2/16 dev eth0")?;
    inner.ip("route add default via 172.30.0.1")?;
    world.ip("addr add 10.77.0.1/24 dev w0")?;
    let house = Listened::start()?;
    let found = house.ask(&inner, &to("8.8.8.8"))?;
    let route = &*found;
    assert_eq!(kinds(route)[..2], [Kind::Unicast, Kind::Unicast], "{route:#?}");
    let [first, second, third] = &route.hops[..] else { panic!("three net namespaces: {route:#?}") };
    let name = |interface: &Option<Interface>| interface.as_ref().map(|interface| interface.name.to_string());
    let text = |name: &str| Some(name.to_owned());
    assert_eq!((first.netns, name(&first.interface)), (inner.inode(), text("eth0")));
    assert_eq!(first.gateway, Some("172.30.0.1".parse()?));
    assert_eq!(first.source, Some("172.30.0.2".parse()?));
    assert_eq!(
        (second.netns, name(&second.input), name(&second.interface)),
        (outer.inode(), text("br0"), text("ens0"))
    );
    assert_eq!(second.gateway, Some("10.77.0.1".parse()?));
    assert_eq!(second.subnet.as_ref().map(|subnet| subnet.cidr.to_string()), text("10.77.0.0/24"));
    // It knows no way, and forwards for nobody.
    assert_eq!((third.netns, name(&third.input)), (world.inode(), text("w0")));
    assert!(matches!(third.kind, Kind::NoRoute | Kind::Unreachable), "{third:#?}");
    assert_eq!((&route.via, &route.unfinished), (&None, &None));
    Ok(())
}

/// A net ns `inner` with `eth0` (10.60.0.2/24, default via .1) whose other end is `veth0` of `outer`.
fn pair() -> Result<(Net, Net)> {
    let (inner, outer) = (Net::new("inner")?, Net::new("outer")?);
    veth(&inner, "eth0", &outer, "veth0")?;
    inner.ip("addr add 10.60.0.2/24 dev eth0")?;
    inner.ip("route add default via 10.60.0.1")?;
    outer.run("sysctl -qw net.ipv4.ip_forward=1")?;
    Ok((inner, outer))
}

#[test]
fn a_gateway_beyond_a_bridge_is_reached_without_the_hosts_routes() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, outer) = pair()?;
    outer.batch("link add br0 type bridge\nlink set br0 up\nlink set veth0 master br0\n")?;
    // Nowhere to go but to others like it.
    let house = Listened::start()?;
    let found = house.ask(&inner, &to("8.8.8.8"))?;
    assert_eq!(kinds(&found), [Kind::Unicast]);
    assert!(found.unfinished.as_deref().is_some_and(|why| why.contains("br0")) && found.via.is_none(), "{found:#?}");
    // One port that leads out: that is where it leaves.
    outer.batch(
        "link add low type veth peer name far\nlink add link low name up0 type macvlan mode passthru\n\
         link set up0 up\nlink set up0 master br0\n",
    )?;
    let found = house.ask(&inner, &to("8.8.8.8"))?;
    assert_eq!(kinds(&found)[..2], [Kind::Unicast, Kind::Switched], "{found:#?}");
    assert_eq!(found.hops[1].interface.as_ref().map(|interface| &*interface.name), Some("up0"));
    Ok(())
}

#[test]
fn a_macvlan_leaves_by_the_card_that_it_lies_on() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, outer) = (Net::new("inner")?, Net::new("outer")?);
    outer.batch("link add br0 type bridge\nlink set br0 up\nlink add link br0 name mv0 type macvlan mode bridge\n")?;
    outer.ip(&format!("link set mv0 netns {}", inner.name()))?;
    inner.batch("link set mv0 up\naddr add 10.60.0.2/24 dev mv0\nroute add default via 10.60.0.1\n")?;
    let house = Listened::start()?;
    let found = house.ask(&inner, &to("8.8.8.8"))?;
    assert_eq!(kinds(&found), [Kind::Unicast, Kind::Switched], "{found:#?}");
    let hop = &found.hops[1];
    assert_eq!((hop.netns, hop.interface.as_ref().map(|interface| &*interface.name)), (outer.inode(), Some("br0")));
    let via = found.via.as_ref().expect("it leaves by a gateway");
    assert_eq!(via.gateway, "10.60.0.1".parse::<std::net::IpAddr>()?);
    assert_eq!(via.subnet.as_ref().map(|subnet| subnet.cidr.to_string()).as_deref(), Some("10.60.0.0/24"));
    Ok(())
}

#[test]
fn a_veth_into_a_net_ns_that_nobody_knows_is_said_so() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, outer) = pair()?;
    outer.ip("addr add 10.60.0.1/24 dev veth0")?;
    // No directory to look in, and nobody who knows a way.
    let nowhere = Config { directories: Vec::new(), ..Config::default() };
    let house = Listened::start_with(nowhere.clone(), None)?;
    let found = house.ask(&inner, &to("8.8.8.8"))?;
    assert_eq!(found.hops.len(), 1);
    assert!(found.unfinished.as_deref().is_some_and(|why| why.contains("eth0")) && found.via.is_none(), "{found:#?}");
    // As soon as somebody does, it is followed.
    let path = outer.path();
    let house = Listened::start_with(nowhere, Some(Box::new(move || vec![Place::Path(path.clone())])))?;
    assert_eq!(house.ask(&inner, &to("8.8.8.8"))?.hops.len(), 2);
    Ok(())
}

#[test]
fn a_loop_ends_after_eight_hops() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, outer) = pair()?;
    outer.batch("addr add 10.60.0.1/24 dev veth0\nroute add default via 10.60.0.2\n")?;
    inner.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0")?;
    outer.run("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.veth0.rp_filter=0")?;
    let house = Listened::start()?;
    let (source, input) = (Some("10.70.0.1".parse()?), Some(outer.index("veth0")?));
    let found = house.ask(&outer, &RouteQuery { source, input, ..to("8.8.8.8") })?;
    assert_eq!(found.hops.len(), 8, "{found:#?}");
    assert!(found.unfinished.as_deref().is_some_and(|why| why.contains("8 hops")), "{found:#?}");
    Ok(())
}

#[test]
fn what_is_translated_is_what_is_routed() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, outer) = pair()?;
    outer.ip("addr add 10.60.0.1/24 dev veth0")?;
    inner.ip("route add blackhole 203.0.113.0/24")?;
    let house = Listened::start()?;
    let query = RouteQuery { translated: Some("10.60.0.1".parse()?), ..to("203.0.113.5") };
    let found = house.ask(&inner, &query)?;
    assert_eq!(kinds(&found), [Kind::Unicast, Kind::Local], "{found:#?}");
    assert_eq!((found.hops[0].gateway, &found.via), (None, &None), "it is on the link");
    assert_eq!(kinds(&*house.ask(&inner, &to("203.0.113.5"))?), [Kind::Blackhole]);
    assert_eq!(house.ask(&inner, &to("::ffff:10.60.0.1"))?.hops, found.hops);
    Ok(())
}

#[test]
fn ipv6_is_followed_as_ipv4_is() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, outer) = pair()?;
    outer.run("sysctl -qw net.ipv6.conf.all.forwarding=1")?;
    outer.batch(
        "link add br0 type bridge\nlink set br0 up\nlink set veth0 master br0\n\
         addr add fe80::1/64 dev br0 nodad\naddr add fd60::1/64 dev br0 nodad\n",
    )?;
    inner.batch("addr add fd60::2/64 dev eth0 nodad\nroute add default via fe80::1 dev eth0\n")?;
    let house = Listened::start()?;
    let found = house.ask(&inner, &to("2001:db8::1"))?;
    let hop = &found.hops[0];
    assert_eq!(hop.gateway, Some("fe80::1".parse()?), "{found:#?}");
    assert_eq!(hop.subnet.as_ref().map(|subnet| subnet.cidr.to_string()).as_deref(), Some("fe80::/64"));
    assert_eq!(found.hops[1].input.as_ref().map(|interface| &*interface.name), Some("br0"), "{found:#?}");
    Ok(())
}
