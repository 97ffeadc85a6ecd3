//! Masquerade is done after routing: the way of a packet stays what it was.

use anyhow::Result;
use tracker_tests::net::{Net, veth};
use tracker_tests::require;
use tracker_tests::requirement::{program, root};
use tracker_tests::routes::{Listened, to};

#[test]
fn masquerade_changes_no_route() -> Result<()> {
    require!(root(), program("ip"), program("iptables"));
    let (inner, outer) = (Net::new("inner")?, Net::new("outer")?);
    veth(&inner, "eth0", &outer, "veth0")?;
    inner.batch("addr add 10.60.0.2/24 dev eth0\nroute add default via 10.60.0.1\n")?;
    outer.run("sysctl -qw net.ipv4.ip_forward=1")?;
    outer.batch(
        "addr add 10.60.0.1/24 dev veth0\nlink add out0 type bridge\nlink set out0 up\n\
         addr add 10.61.0.2/24 dev out0\nroute add default via 10.61.0.1\n",
    )?;
    let house = Listened::start()?;
    let before = house.ask(&inner, &to("8.8.8.8"))?;
    assert_eq!(before.hops.len(), 2);
    outer.run("iptables -t nat -A POSTROUTING -o out0 -j MASQUERADE")?;
    let after = house.ask(&inner, &to("8.8.8.8"))?;
    assert_eq!(after.hops, before.hops);
    assert_eq!(after.via.as_ref().map(|via| via.gateway.to_string()).as_deref(), Some("10.61.0.1"));
    Ok(())
}
