//! Ways of packets through real net namespaces, compared with what `ip route get` says in each of them.

use anyhow::Result;
use tracker::route::{Interface, Kind, Route};
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
