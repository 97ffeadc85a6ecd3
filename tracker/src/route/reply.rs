//! The kernel's replies: bytes from outside, turned into the few values that we need. Pure.
//!
//! Attributes are walked one by one, and those that nobody here needs are skipped unread: a kernel that is newer than
//! every library has more of them, or longer ones, and that must not cost an answer. One that is needed and has not the
//! length that it must have is an error, never a guess.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NetlinkBuffer, NlaBuffer, NlasIterator};
use netlink_packet_route::route::RouteProtocol;

use super::answer::{Kind, Mac, NextHop, Prefix};
use super::request::UNASSIGNED;
use crate::container::Str;

// What `linux/netlink.h`, `linux/rtnetlink.h`, `linux/if_link.h`, `linux/if_addr.h` and `linux/net_namespace.h` say.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSG_ALIGN: usize = 4;
const RTMSG_LEN: usize = 12;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
const RTA_DST: u16 = 1;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTNEXTHOP_LEN: usize = 8;
const RTNH_F_DEAD: u8 = 1;
const RTNH_F_LINKDOWN: u8 = 16;
const IFINFOMSG_LEN: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFF_LOOPBACK: u32 = 8;
const ARPHRD_ETHER: u16 = 1;
const IFADDRMSG_LEN: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTGENMSG_LEN: usize = 4;
const NETNSA_NSID: u16 = 1;
const NETNSA_CURRENT_NSID: u16 = 5;

/// More ways than a route can have.
const MAX_NEXTHOPS: usize = 1_024;

/// Bytes that are no reply to what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Garbled(pub(super) &'static str);

/// One message out of a datagram.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Message<'b> {
    /// The end of a list; whether it changed while it was made.
    Done { sequence: u32, interrupted: bool },
    /// Errno, 0 for "done as asked", and the kernel's words if it had any.
    Error { sequence: u32, errno: i32, words: Option<String> },
    /// What was asked for.
    Reply { sequence: u32, kind: u16, interrupted: bool, payload: &'b [u8] },
}

/// The messages of a datagram, up to the first that is garbled.
pub(super) fn messages(bytes: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Garbled>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Ok(message) = NetlinkBuffer::new_checked(rest) else {
            rest = &[];
            return Some(Err(Garbled("a message is longer than its datagram")));
        };
        let aligned = (message.length() as usize).next_multiple_of(NLMSG_ALIGN);
        rest = rest.get(aligned..).unwrap_or_default();
        Some(decode(&message))
    })
}

fn decode<'b>(message: &NetlinkBuffer<&'b [u8]>) -> Result<Message<'b>, Garbled> {
    let (sequence, flags, payload) = (message.sequence_number(), message.flags(), message.payload());
    let interrupted = flags & NLM_F_DUMP_INTR != 0;
    match message.message_type() {
        NLMSG_DONE => {
            // A list that could not be made ends with its errno.
            match number(payload.get(..4).unwrap_or(&[0; 4]))? as i32 {
                0.. => Ok(Message::Done { sequence, interrupted }),
                errno => Ok(Message::Error { sequence, errno: errno.saturating_neg(), words: None }),
            }
        }
        NLMSG_ERROR => {
            let errno = number(payload.get(..4).ok_or(Garbled("an error without a number"))?)? as i32;
            Ok(Message::Error { sequence, errno: errno.saturating_neg(), words: words(payload, flags) })
        }
        kind => Ok(Message::Reply { sequence, kind, interrupted, payload }),
    }
}

/// What the kernel says about an error, behind the request's header, or the whole of it.
fn words(payload: &[u8], flags: u16) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let request = payload.get(4..)?;
    let length = match flags & NLM_F_CAPPED {
        0 => (number(request.get(..4)?).ok()? as usize).checked_next_multiple_of(NLMSG_ALIGN)?,
        _ => 16,
    };
    let attributes = NlasIterator::new(request.get(length..)?);
    let text = attributes.flatten().find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(text.value()).trim_end_matches('\0').to_owned();
    Some(text.chars().take(200).collect())
}

/// The reply to a look-up: what the net ns does with the packet.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chosen {
    pub(super) kind: Kind,
    pub(super) interface: Option<u32>,
    pub(super) gateway: Option<IpAddr>,
    pub(super) source: Option<IpAddr>,
    pub(super) table: u32,
}

impl Chosen {
    pub(super) fn decode(payload: &[u8]) -> Result<Self, Garbled> {
        let route = Rtmsg::decode(payload)?;
        let mut chosen =
            Chosen { kind: route.kind, interface: None, gateway: None, source: None, table: route.table.into() };
        for attribute in attributes(payload, RTMSG_LEN) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                RTA_OIF => chosen.interface = Some(number(value)?),
                RTA_TABLE => chosen.table = number(value)?,
                RTA_GATEWAY => chosen.gateway = Some(address(value)?),
                RTA_VIA => chosen.gateway = Some(via(value)?),
                RTA_PREFSRC => chosen.source = Some(address(value)?),
                _ => {}
            }
        }
        Ok(chosen)
    }
}

/// The reply to a look-up for the route itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matched {
    pub(super) prefix: Prefix,
    pub(super) protocol: Str,
    pub(super) metric: Option<u32>,
    pub(super) nexthops: Vec<NextHop>,
}

impl Matched {
    pub(super) fn decode(payload: &[u8]) -> Result<Self, Garbled> {
        let route = Rtmsg::decode(payload)?;
        let anywhere = match route.is_ipv4 {
            true => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            false => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let (mut to, mut metric, mut nexthops) = (anywhere, None, Vec::new());
        for attribute in attributes(payload, RTMSG_LEN) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                RTA_DST => to = address(value)?,
                RTA_PRIORITY => metric = Some(number(value)?),
                RTA_MULTIPATH => nexthops = multipath(value)?,
                _ => {}
            }
        }
        let prefix = Prefix::new(to, route.prefix_length).ok_or(Garbled("a prefix of too many bits"))?;
        let protocol = RouteProtocol::from(route.protocol).to_string().into();
        Ok(Matched { prefix, protocol, metric, nexthops })
    }
}

struct Rtmsg {
    is_ipv4: bool,
    prefix_length: u8,
    table: u8,
    protocol: u8,
    kind: Kind,
}

impl Rtmsg {
    fn decode(payload: &[u8]) -> Result<Self, Garbled> {
        let Some([family, prefix_length, _, _, table, protocol, _, kind]) = payload.first_chunk::<8>().copied() else {
            return Err(Garbled("a route shorter than its header"));
        };
        let is_ipv4 = match i32::from(family) {
            libc::AF_INET => true,
            libc::AF_INET6 => false,
            _ => return Err(Garbled("a route of another family")),
        };
        let kind = match kind {
            1 => Kind::Unicast,
            2 => Kind::Local,
            // An address that several hosts have, this one among them.
            4 => Kind::Local,
            3 => Kind::Broadcast,
            5 => Kind::Multicast,
            6 => Kind::Blackhole,
            7 => Kind::Unreachable,
            8 => Kind::Prohibit,
            9 => Kind::Throw,
            _ => return Err(Garbled("a route of another kind")),
        };
        Ok(Self { is_ipv4, prefix_length, table, protocol, kind })
    }
}

fn multipath(mut bytes: &[u8]) -> Result<Vec<NextHop>, Garbled> {
    let mut nexthops = Vec::new();
    while let Some(&[low, high, flags, hops, a, b, c, d]) = bytes.first_chunk::<RTNEXTHOP_LEN>() {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let Some(nexthop) = bytes.get(..length).filter(|nexthop| nexthop.len() >= RTNEXTHOP_LEN) else {
            return Err(Garbled("a nexthop that is longer than its route"));
        };
        let mut gateway = None;
        for attribute in attributes(nexthop, RTNEXTHOP_LEN) {
            let attribute = attribute?;
            match attribute.kind() {
                RTA_GATEWAY => gateway = Some(address(attribute.value())?),
                RTA_VIA => gateway = Some(via(attribute.value())?),
                _ => {}
            }
        }
        nexthops.push(NextHop {
            interface: u32::from_ne_bytes([a, b, c, d]),
            gateway,
            weight: u16::from(hops) + 1,
            chosen: false,
            dead: flags & (RTNH_F_DEAD | RTNH_F_LINKDOWN) != 0,
        });
        if nexthops.len() > MAX_NEXTHOPS {
            return Err(Garbled("a route with too many nexthops"));
        }
        bytes = bytes.get(length.next_multiple_of(NLMSG_ALIGN)..).unwrap_or_default();
    }
    Ok(nexthops)
}

/// An interface, as its net ns describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: Str,
    pub(super) mac: Option<Mac>,
    pub(super) mtu: Option<u32>,
    /// `veth`, `bridge`, …; none for a card.
    pub(super) kind: Option<Str>,
    pub(super) is_loopback: bool,
    /// The bridge, or the like, that it belongs to.
    pub(super) master: Option<u32>,
    /// A veth's other end, or what it lies on.
    pub(super) below: Option<u32>,
    /// The net ns of `below`, as numbered here; its own where there is none.
    pub(super) below_nsid: Option<i32>,
}

impl Link {
    pub(super) fn decode(payload: &[u8]) -> Result<Self, Garbled> {
        let header = payload.first_chunk::<IFINFOMSG_LEN>().ok_or(Garbled("a link shorter than its header"))?;
        let is_ethernet = u16::from_ne_bytes([header[2], header[3]]) == ARPHRD_ETHER;
        let mut link = Link {
            index: number(&header[4..8])?,
            name: "".into(),
            mac: None,
            mtu: None,
            kind: None,
            is_loopback: number(&header[8..12])? & IFF_LOOPBACK != 0,
            master: None,
            below: None,
            below_nsid: None,
        };
        for attribute in attributes(payload, IFINFOMSG_LEN) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                IFLA_IFNAME => link.name = text(value)?,
                IFLA_ADDRESS if is_ethernet => link.mac = value.try_into().ok().map(Mac),
                IFLA_MTU => link.mtu = Some(number(value)?),
                IFLA_MASTER => link.master = Some(number(value)?),
                IFLA_LINK => link.below = Some(number(value)?).filter(|index| *index != 0),
                IFLA_LINK_NETNSID => link.below_nsid = Some(number(value)? as i32),
                IFLA_LINKINFO => link.kind = link_kind(value)?,
                _ => {}
            }
        }
        if link.index == 0 || link.name.is_empty() {
            return Err(Garbled("a link without index or name"));
        }
        Ok(link)
    }

    pub(super) fn is(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }
}

fn link_kind(info: &[u8]) -> Result<Option<Str>, Garbled> {
    for attribute in attributes(info, 0) {
        let attribute = attribute?;
        if attribute.kind() == IFLA_INFO_KIND {
            return text(attribute.value()).map(Some);
        }
    }
    Ok(None)
}

/// One address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) interface: u32,
    /// The address that is its own.
    pub(super) local: IpAddr,
    /// The network that it is in; of a point-to-point link, the other end's.
    pub(super) prefix: Prefix,
}

impl Address {
    pub(super) fn decode(payload: &[u8]) -> Result<Self, Garbled> {
        let header = payload.first_chunk::<IFADDRMSG_LEN>().ok_or(Garbled("an address shorter than its header"))?;
        let (mut own, mut other) = (None, None);
        for attribute in attributes(payload, IFADDRMSG_LEN) {
            let attribute = attribute?;
            match attribute.kind() {
                IFA_LOCAL => own = Some(address(attribute.value())?),
                IFA_ADDRESS => other = Some(address(attribute.value())?),
                _ => {}
            }
        }
        // IPv6 says both in one, unless there is another end.
        let other = other.or(own).ok_or(Garbled("an address message without an address"))?;
        let prefix = Prefix::new(other, header[1]).ok_or(Garbled("an address of too many bits"))?;
        Ok(Address { interface: number(&header[4..8])?, local: own.unwrap_or(other), prefix })
    }
}

/// A net ns's number, where it was asked about, and where it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nsid {
    pub(super) number: Option<i32>,
    pub(super) here: Option<i32>,
}

impl Nsid {
    pub(super) fn decode(payload: &[u8]) -> Result<Self, Garbled> {
        let mut nsid = Nsid { number: None, here: None };
        for attribute in attributes(payload, RTGENMSG_LEN) {
            let attribute = attribute?;
            let assigned = |value: &[u8]| Ok(Some(number(value)? as i32).filter(|number| *number != UNASSIGNED));
            match attribute.kind() {
                NETNSA_NSID => nsid.number = assigned(attribute.value())?,
                NETNSA_CURRENT_NSID => nsid.here = assigned(attribute.value())?,
                _ => {}
            }
        }
        Ok(nsid)
    }
}

fn attributes(payload: &[u8], header: usize) -> impl Iterator<Item = Result<NlaBuffer<&[u8]>, Garbled>> {
    // A header alone is as short as a message can be; less was refused before, or has no attributes.
    let attributes = NlasIterator::new(payload.get(header..).unwrap_or_default());
    attributes.map(|attribute| attribute.map_err(|_| Garbled("an attribute is longer than its message")))
}

fn number(value: &[u8]) -> Result<u32, Garbled> {
    value.try_into().map(u32::from_ne_bytes).map_err(|_| Garbled("a number that is not four bytes long"))
}

fn address(value: &[u8]) -> Result<IpAddr, Garbled> {
    if let Ok(bytes) = <[u8; 4]>::try_from(value) {
        return Ok(IpAddr::from(bytes));
    }
    <[u8; 16]>::try_from(value).map(IpAddr::from).map_err(|_| Garbled("an address that is neither IPv4 nor IPv6"))
}

/// A gateway of another family: the family, then the address.
fn via(value: &[u8]) -> Result<IpAddr, Garbled> {
    address(value.get(2..).unwrap_or_default())
}

fn text(value: &[u8]) -> Result<Str, Garbled> {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    match value.get(..end) {
        Some(text) if text.len() <= 64 => Ok(String::from_utf8_lossy(text).into()),
        _ => Err(Garbled("a name that is too long")),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable, NetlinkHeader, NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteNextHop, RouteType, RouteVia};
    use proptest::prelude::*;

    use super::*;

    fn route() -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = netlink_packet_route::AddressFamily::Inet;
        route.header.destination_prefix_length = 16;
        route.header.table = 254;
        route.header.kind = RouteType::Unicast;
        route.header.protocol = RouteProtocol::Static;
        let mut ways = [RouteNextHop::default(), RouteNextHop::default()];
        ways[0].interface_index = 3;
        ways[0].attributes.push(RouteAttribute::Gateway(Ipv4Addr::new(10, 0, 0, 1).into()));
        ways[1].interface_index = 4;
        ways[1].hops = 2;
        ways[1].attributes.push(RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap())));
        route.attributes = vec![
            RouteAttribute::Table(1_000),
            RouteAttribute::Destination(Ipv4Addr::new(172, 16, 0, 0).into()),
            RouteAttribute::Oif(3),
            RouteAttribute::Gateway(Ipv4Addr::new(10, 0, 0, 1).into()),
            RouteAttribute::PrefSource(Ipv4Addr::new(10, 0, 0, 5).into()),
            RouteAttribute::Priority(20),
            RouteAttribute::MultiPath(ways.to_vec()),
        ];
        route
    }

    fn bytes(route: &RouteMessage) -> Vec<u8> {
        let mut bytes = vec![0; route.buffer_len()];
        route.emit(&mut bytes);
        bytes
    }

    #[test]
    fn a_route_is_read_as_a_library_writes_it() {
        let bytes = bytes(&route());
        let chosen = Chosen::decode(&bytes).unwrap();
        let gateway = Some("10.0.0.1".parse().unwrap());
        let source = Some("10.0.0.5".parse().unwrap());
        assert_eq!(chosen, Chosen { kind: Kind::Unicast, interface: Some(3), gateway, source, table: 1_000 });
        let matched = Matched::decode(&bytes).unwrap();
        assert_eq!(
            (matched.prefix.to_string(), &*matched.protocol, matched.metric),
            ("172.16.0.0/16".into(), "static", Some(20))
        );
        let via = Some("fe80::1".parse().unwrap());
        assert_eq!(
            matched.nexthops,
            [
                NextHop { interface: 3, gateway, weight: 1, chosen: false, dead: false },
                NextHop { interface: 4, gateway: via, weight: 3, chosen: false, dead: false },
            ]
        );
    }

    #[test]
    fn an_error_comes_with_the_kernels_words() {
        let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
        payload.extend([0; 16]);
        payload.extend(14_u16.to_ne_bytes());
        payload.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
        payload.extend(b"bad thing\0\0\0");
        let mut message = ((payload.len() + 16) as u32).to_ne_bytes().to_vec();
        message.extend(NLMSG_ERROR.to_ne_bytes());
        message.extend((NLM_F_CAPPED | NLM_F_ACK_TLVS).to_ne_bytes());
        message.extend(7_u32.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(&payload);
        let read: Vec<_> = messages(&message).collect();
        let words = Some("bad thing".to_owned());
        assert_eq!(read, [Ok(Message::Error { sequence: 7, errno: libc::EINVAL, words })]);
    }

    fn decode_all(bytes: &[u8]) {
        for message in messages(bytes).flatten() {
            if let Message::Reply { payload, .. } = message {
                decode_each(payload);
            }
        }
        decode_each(bytes);
    }

    fn decode_each(payload: &[u8]) {
        let _ = (Chosen::decode(payload), Matched::decode(payload), Link::decode(payload));
        let _ = (Address::decode(payload), Nsid::decode(payload));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            decode_all(&bytes);
        }

        #[test]
        fn no_reply_that_is_cut_or_changed_panics(
            cut in 0_usize..300,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut header = NetlinkHeader::default();
            header.sequence_number = 1;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::NewRoute(route())));
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.max(1));
            decode_all(&bytes);
        }

        #[test]
        fn every_length_that_lies_is_noticed_or_harmless(at in any::<prop::sample::Index>(), length in any::<u16>()) {
            let mut payload = bytes(&route());
            // Attributes begin at multiples of four, their lengths with them.
            let at = RTMSG_LEN + at.index((payload.len() - RTMSG_LEN) / 4) * 4;
            payload[at..at + 2].copy_from_slice(&length.to_ne_bytes());
            decode_each(&payload);
        }
    }
}
