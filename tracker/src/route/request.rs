//! Requests to the kernel as bytes. Pure: what a request says is decided here, sending it is for [`super::socket`].
//!
//! All sockets ask for strict checking, so a request that the kernel does not understand is an error with words instead
//! of an answer to another question.

use std::net::{Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::query::RouteQuery;

/// One request, its sequence number left open.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
}

impl Request {
    /// What the kernel would do with this packet: the chosen way.
    pub(super) fn route(query: &RouteQuery) -> Self {
        // The table that had the answer; IPv6 tells it anyway and refuses the flag.
        let flags = if query.destination.is_ipv4() { RouteFlags::LookupTable } else { RouteFlags::empty() };
        Self::get_route(query, flags)
    }

    /// Which route it takes: its prefix, metric and all of its ways.
    pub(super) fn matching_route(query: &RouteQuery) -> Self {
        Self::get_route(query, RouteFlags::FibMatch)
    }

    fn get_route(query: &RouteQuery, flags: RouteFlags) -> Self {
        let mut message = RouteMessage::default();
        let (family, bits) = match query.destination.is_ipv4() {
            true => (AddressFamily::Inet, Ipv4Addr::BITS as u8),
            false => (AddressFamily::Inet6, Ipv6Addr::BITS as u8),
        };
        message.header.address_family = family;
        message.header.destination_prefix_length = bits;
        message.header.source_prefix_length = if query.source.is_some() { bits } else { 0 };
        message.header.tos = query.tos;
        message.header.flags = flags;
        let given = [
            query.source.map(|source| RouteAttribute::Source(source.into())),
            query.input.map(RouteAttribute::Iif),
            query.output.map(RouteAttribute::Oif),
            query.mark.map(RouteAttribute::Mark),
            query.uid.map(RouteAttribute::Uid),
            query.protocol.map(RouteAttribute::IpProto),
            query.source_port.map(RouteAttribute::Sport),
            query.destination_port.map(RouteAttribute::Dport),
        ];
        message.attributes.push(RouteAttribute::Destination(query.destination.into()));
        message.attributes.extend(given.into_iter().flatten());
        Self { message: RouteNetlinkMessage::GetRoute(message), flags: NLM_F_REQUEST }
    }

    /// An interface, by its index.
    pub(super) fn link(index: u32) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        // Counters are half of an answer and nobody reads them.
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        Self { message: RouteNetlinkMessage::GetLink(message), flags: NLM_F_REQUEST }
    }

    /// An interface, by its name.
    pub(super) fn link_named(name: &str) -> Self {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        Self { message: RouteNetlinkMessage::GetLink(message), flags: NLM_F_REQUEST }
    }

    /// All interfaces below a bridge.
    pub(super) fn ports(bridge: u32) -> Self {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Controller(bridge));
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        Self { message: RouteNetlinkMessage::GetLink(message), flags: NLM_F_REQUEST | NLM_F_DUMP }
    }

    /// All addresses of an interface.
    pub(super) fn addresses(index: u32) -> Self {
        let mut message = AddressMessage::default();
        message.header.index = index;
        Self { message: RouteNetlinkMessage::GetAddress(message), flags: NLM_F_REQUEST | NLM_F_DUMP }
    }

    /// Gives the net ns that a descriptor stands for a number in the socket's own net ns, if it has none.
    pub(super) fn assign_nsid(netns: u32) -> Self {
        Self::nsid(netns, RouteNetlinkMessage::NewNsId, Some(NsidAttribute::Id(UNASSIGNED)))
    }

    /// The number that the net ns which a descriptor stands for has in the socket's own net ns.
    pub(super) fn nsid_of(netns: u32) -> Self {
        Self::nsid(netns, RouteNetlinkMessage::GetNsId, None)
    }

    fn nsid(netns: u32, kind: impl FnOnce(NsidMessage) -> RouteNetlinkMessage, more: Option<NsidAttribute>) -> Self {
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(netns));
        message.attributes.extend(more);
        let message = kind(message);
        // An order has no reply but this.
        let acknowledged = if matches!(message, RouteNetlinkMessage::NewNsId(_)) { NLM_F_ACK } else { 0 };
        Self { message, flags: NLM_F_REQUEST | acknowledged }
    }

    /// The numbers that net namespaces have in the net ns with number `target`, and the ones that they have here.
    pub(super) fn nsids_in(target: i32) -> Self {
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::TargetNsid(target));
        Self { message: RouteNetlinkMessage::GetNsId(message), flags: NLM_F_REQUEST | NLM_F_DUMP }
    }

    /// Appends the request's bytes.
    pub(super) fn write(&self, sequence: u32, bytes: &mut Vec<u8>) {
        let mut header = NetlinkHeader::default();
        header.flags = self.flags;
        header.sequence_number = sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(self.message.clone()));
        message.finalize();
        let begin = bytes.len();
        // Attributes and headers are multiples of four bytes long, so the next message is aligned as it has to be.
        bytes.resize(begin + message.buffer_len(), 0);
        message.serialize(&mut bytes[begin..]);
    }
}

/// "Choose one", and "has none".
pub(super) const UNASSIGNED: i32 = -1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_follow_each_other_on_the_bytes_where_the_kernel_looks_for_them() {
        let query =
            RouteQuery { protocol: Some(6), source_port: Some(1), ..RouteQuery::to("10.0.0.1".parse().unwrap()) };
        let mut bytes = Vec::new();
        let requests = [Request::route(&query), Request::link_named("eth0"), Request::nsid_of(3)];
        for (sequence, request) in requests.iter().enumerate() {
            assert_eq!(bytes.len() % 4, 0);
            let begin = bytes.len();
            request.write(sequence as u32, &mut bytes);
            let length = u32::from_ne_bytes(bytes[begin..begin + 4].try_into().unwrap());
            assert_eq!(length as usize, bytes.len() - begin);
            let parsed = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes[begin..]).unwrap();
            assert_eq!(parsed.header.sequence_number, sequence as u32);
        }
    }
}
