//! What is answered: the way of a packet, hop by hop. Plain values; their JSON is what the debug socket says.

use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::memory::Held;
use crate::container::Str;

/// What a net namespace does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It is sent on, to the gateway or directly to the destination.
    Unicast,
    /// The destination is an address of this net ns.
    Local,
    /// It goes to everybody on a link.
    Broadcast,
    /// It goes to a group.
    Multicast,
    /// It is dropped without a word.
    Blackhole,
    /// It is dropped, and its sender is told that there is no way.
    Unreachable,
    /// It is dropped, and its sender is told that it is forbidden.
    Prohibit,
    /// The look-up ended in a table that sends it back, and no other rule had an answer.
    Throw,
    /// No rule and no table knows a way.
    NoRoute,
    /// It came in and is dropped before it is routed: its source cannot have come in there (as an address of this net
    /// ns, or by the reverse path filter).
    Refused,
    /// It leaves by this interface without being looked at by the net ns's routing: below a macvlan or a vlan, or through a
    /// bridge.
    Switched,
}

impl Kind {
    /// Its name, as printed and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Unicast => "unicast",
            Kind::Local => "local",
            Kind::Broadcast => "broadcast",
            Kind::Multicast => "multicast",
            Kind::Blackhole => "blackhole",
            Kind::Unreachable => "unreachable",
            Kind::Prohibit => "prohibit",
            Kind::Throw => "throw",
            Kind::NoRoute => "no-route",
            Kind::Refused => "refused",
            Kind::Switched => "switched",
        }
    }
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Interface {
    /// Its index in its net ns.
    pub index: u32,
    /// Its name.
    pub name: Str,
    /// Its hardware address, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// The largest packet that it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// A hardware address, written `02:42:ac:11:00:02`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
        let mut mac = [0; 6];
        for byte in &mut mac {
            *byte =
                bytes.next().and_then(Result::ok).ok_or_else(|| serde::de::Error::custom("not a hardware address"))?;
        }
        Ok(Mac(mac))
    }
}

/// One of the ways that a multipath route has.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NextHop {
    /// Index of its interface.
    pub interface: u32,
    /// Its gateway; absent where the destination is on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Its share, relative to the others'.
    pub weight: u16,
    /// Whether it is the one that the kernel chose for this query.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chosen: bool,
    /// Whether the kernel does not use it: its interface is down or has no carrier.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dead: bool,
}

/// The network that a packet leaves into.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Subnet {
    /// Its addresses, such as `172.17.0.0/16`.
    pub cidr: Prefix,
    /// What the cloud calls it, such as `subnet-0a1b2c`; absent where there is no cloud, or nobody asks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud: Option<Str>,
}

/// An address and how many of its bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The address; bits that do not count are zero.
    pub address: IpAddr,
    /// How many bits count.
    pub length: u8,
}

impl Prefix {
    /// The prefix of an address; `None` where it has not so many bits.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if length <= 32 => {
                IpAddr::V4((v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)).into())
            }
            IpAddr::V6(v6) if length <= 128 => {
                IpAddr::V6((v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)).into())
            }
            _ => return None,
        };
        Some(Self { address, length })
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Prefix::new(address, self.length) == Some(*self)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let parts =
            text.split_once('/').and_then(|(address, length)| Some((address.parse().ok()?, length.parse().ok()?)));
        let prefix = parts.and_then(|(address, length)| Prefix::new(address, length));
        prefix.ok_or_else(|| serde::de::Error::custom("not a prefix"))
    }
}

/// What one net namespace does with the packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hop {
    /// Inode number of the net ns.
    pub netns: u32,
    /// What it does.
    pub kind: Kind,
    /// The interface by which the packet came in; absent in the net ns that it begins in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Interface>,
    /// The interface by which it leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    /// The gateway that it is sent to; an IPv6 one also for IPv4, where the route says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The source address that the kernel prefers; the query's where it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// The table that had the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The prefix of the route that matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Prefix>,
    /// Who made the route: a name as in `ip route`, or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Str>,
    /// The route's metric; lower ones win.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
    /// All ways of a multipath route; empty for a route with one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nexthops: Vec<NextHop>,
    /// The network of the interface by which it leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Subnet>,
}

/// The gateway by which a packet leaves the host, and the network that it does so in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Via {
    /// The gateway.
    pub gateway: IpAddr,
    /// The network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Subnet>,
}

/// The way of a packet, from the net ns that was asked about to where it leaves the host, arrives, or is dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Route {
    /// What each net ns does with it; never empty.
    pub hops: Vec<Hop>,
    /// The last hop's gateway; absent where the destination is local, on the link, or not reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Via>,
    /// Why the way is not followed further, where it goes on: for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<Str>,
}

impl Route {
    /// Writes what the cloud calls the subnet that it leaves into.
    pub(super) fn name_subnet(&mut self, name: Option<Str>) {
        let last = self.hops.last_mut().and_then(|hop| hop.subnet.as_mut());
        let via = self.via.as_mut().and_then(|via| via.subnet.as_mut());
        for subnet in last.into_iter().chain(via) {
            subnet.cloud = name.clone();
        }
    }
}

/// An answer and where it is from.
#[derive(Clone, Debug)]
pub struct Found {
    pub(super) held: Held,
    /// Whether it is from the cache.
    pub cached: bool,
    /// How long ago the kernel said so; good to some milliseconds.
    pub age: Duration,
    /// Whether a net ns on the way changes so often that answers about it are not kept.
    pub muted: bool,
}

impl Deref for Found {
    type Target = Route;

    fn deref(&self) -> &Route {
        &self.held.route
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_holds_what_begins_like_it() {
        let prefix = |text: &str| serde_json::from_value::<Prefix>(text.into()).unwrap();
        for (outer, address, held) in [
            ("172.17.0.0/16", "172.17.255.1", true),
            ("172.17.0.0/16", "172.18.0.1", false),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "8.8.8.8", false),
            ("fe80::/64", "fe80::1", true),
            ("10.0.0.1/32", "10.0.0.1", true),
            ("10.0.0.1/32", "10.0.0.2", false),
        ] {
            assert_eq!(prefix(outer).contains(address.parse().unwrap()), held, "{address} in {outer}");
        }
        assert_eq!(prefix("172.17.3.4/16").to_string(), "172.17.0.0/16");
        assert!(Prefix::new("10.0.0.1".parse().unwrap(), 33).is_none());
    }

    #[test]
    fn a_hardware_address_survives_json() {
        let mac = Mac([2, 0x42, 0xac, 0x11, 0, 2]);
        let text = serde_json::to_string(&mac).unwrap();
        assert_eq!(text, "\"02:42:ac:11:00:02\"");
        assert_eq!(serde_json::from_str::<Mac>(&text).unwrap(), mac);
        assert!(serde_json::from_str::<Mac>("\"02:42\"").is_err());
    }
}
