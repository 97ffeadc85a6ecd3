//! The way of a packet through the net namespaces of this host, hop by hop.
//!
//! Each net ns is asked what it does with the packet. If it leaves by an interface that has another end or lies on another
//! one, it is followed there, and asked about again as a packet that comes in:
//!
//! ```text
//!  container          host
//!  eth0 ──veth──▶ veth1 ─▶ docker0 (bridge)   the gateway is the bridge's: routed in the host, coming in by docker0
//!  eth0 ──veth──▶ cali1                       no bridge: routed in the host, coming in by cali1
//!  eth0 ──veth──▶ veth1 ─▶ br0 ─▶ ens3        the gateway is not the host's: passed on below routing
//!  eth0 ──macvlan──────────────▶ ens3         never routed in the host
//! ```

use std::net::IpAddr;
use std::sync::Arc;

use super::answer::{Hop, Interface, Kind, Route, Subnet, Via};
use super::cache::Seen;
use super::error::RouteError;
use super::namespace::{Namespace, Session};
use super::query::RouteQuery;
use super::registry::Registry;
use super::reply::{Chosen, Link, Matched};
use super::socket::AskError;
use crate::container::Str;

/// Hops that are followed; a way with more of them is left unfinished.
const MAX_HOPS: usize = 8;
/// Interfaces that lie on one another.
const MAX_LAYERS: usize = 8;

/// A way, and what it is true for: each net ns on it, at the generation that it had before it was asked.
#[derive(Debug)]
pub(super) struct Walked {
    pub(super) route: Route,
    pub(super) seen: Vec<Seen>,
    /// The interface by which it leaves the host, and where that is.
    pub(super) egress: Option<(Arc<Namespace>, Interface)>,
}

/// Where a packet goes next.
enum Onward {
    /// Nowhere that we could follow: it leaves the host, or ends.
    Ends,
    /// Into a net ns, by an interface there, to be routed again.
    Routed(Arc<Namespace>, Link),
    /// Out by an interface, without being routed there.
    Passed(Arc<Namespace>, Link),
    /// Somewhere, but nobody knows.
    Unknown(Str),
}

/// Asks all the way. The query is in its one spelling.
pub(super) fn walk(registry: &Registry, start: &Arc<Namespace>, query: &RouteQuery) -> Result<Walked, RouteError> {
    let mut walk = Walk { registry, walked: Walked { route: Route::default(), seen: Vec::new(), egress: None } };
    let (mut namespace, mut query, mut input) = (Arc::clone(start), *query, None);
    loop {
        walk.enter(&namespace);
        let (hop, link) = ask(registry, &namespace, &query, input.take())?;
        let (kind, source, gateway) = (hop.kind, hop.source, hop.gateway);
        walk.walked.route.hops.push(hop);
        let Some(link) = link.filter(|_| kind == Kind::Unicast) else { break };
        match walk.follow(&namespace, link, gateway.unwrap_or(query.destination))? {
            Onward::Routed(next, by) => {
                let Some(source) = source else {
                    walk.walked.route.unfinished =
                        Some("the kernel names no source address, so nobody can be asked further".into());
                    break;
                };
                if walk.is_full() {
                    break;
                }
                input = Some(interface(&by));
                // What a packet keeps on its way through a veth: neither its mark nor its sender.
                query = RouteQuery {
                    source: Some(source),
                    input: Some(by.index),
                    output: None,
                    mark: None,
                    uid: None,
                    ..query
                };
                namespace = next;
            }
            Onward::Ends => break,
            Onward::Passed(..) => unreachable!("what is passed on has been followed to its end"),
            Onward::Unknown(why) => {
                walk.walked.route.unfinished = Some(why);
                break;
            }
        }
    }
    Ok(walk.end())
}

struct Walk<'r> {
    registry: &'r Registry,
    walked: Walked,
}

impl Walk<'_> {
    /// From here on the answer depends on this net ns, too.
    fn enter(&mut self, namespace: &Arc<Namespace>) {
        if !self.walked.seen.iter().any(|(seen, _)| Arc::ptr_eq(seen, namespace)) {
            self.walked.seen.push((Arc::clone(namespace), namespace.generation()));
        }
    }

    fn is_full(&mut self) -> bool {
        let is_full = self.walked.route.hops.len() >= MAX_HOPS;
        if is_full {
            self.walked.route.unfinished = Some(format!("not followed beyond {MAX_HOPS} hops; is it a loop?").into());
        }
        is_full
    }

    /// Follows a packet that leaves by `link` until it is routed again, leaves the host, or is lost sight of.
    fn follow(&mut self, namespace: &Arc<Namespace>, link: Link, nexthop: IpAddr) -> Result<Onward, RouteError> {
        let (mut namespace, mut link) = (Arc::clone(namespace), link);
        for _ in 0..MAX_LAYERS {
            match self.step(&namespace, &link, nexthop)? {
                Onward::Passed(next, by) => {
                    if self.is_full() {
                        return Ok(Onward::Ends);
                    }
                    let hop = self.passed(&next, &by)?;
                    self.walked.route.hops.push(hop);
                    (namespace, link) = (next, by);
                }
                Onward::Ends => {
                    self.walked.egress = Some((namespace, interface(&link)));
                    return Ok(Onward::Ends);
                }
                onward => return Ok(onward),
            }
        }
        Ok(Onward::Unknown(format!("more than {MAX_LAYERS} interfaces lie on one another").into()))
    }

    fn step(&mut self, namespace: &Arc<Namespace>, link: &Link, nexthop: IpAddr) -> Result<Onward, RouteError> {
        let Some(kind) = link.kind.as_deref() else { return Ok(Onward::Ends) };
        let is_layer = matches!(kind, "macvlan" | "macvtap" | "ipvlan" | "ipvtap" | "vlan" | "hsr" | "macsec");
        let Some(below) = link.below.filter(|_| is_layer || kind == "veth") else { return Ok(Onward::Ends) };
        let other = match link.below_nsid {
            None => Arc::clone(namespace),
            Some(nsid) => match self.registry.peer(namespace, nsid)? {
                Some(other) => other,
                None => {
                    let why = format!(
                        "`{}` of net ns {} leads into a net ns that no known process or file leads to",
                        link.name, namespace.identity.inode,
                    );
                    return Ok(Onward::Unknown(why.into()));
                }
            },
        };
        self.enter(&other);
        let mut session = self.registry.session(&other)?;
        let end = session.link(below)?;
        if is_layer {
            drop(session);
            return Ok(Onward::Passed(other, end));
        }
        // A number of an interface that is reused by another one: both of its ends have to say that they are one.
        if !end.is("veth") || end.below != Some(link.index) {
            let why = format!("`{}` of net ns {} changed its other end", link.name, namespace.identity.inode);
            return Ok(Onward::Unknown(why.into()));
        }
        let Some(master) = end.master else {
            drop(session);
            return Ok(Onward::Routed(other, end));
        };
        let master = session.link(master)?;
        let onward = match master.kind.as_deref() {
            Some("vrf") => Some(end),
            Some("bond" | "team") => Some(master),
            Some("bridge") if is_own(&mut session, &master, nexthop)? => Some(master),
            Some("bridge") => {
                let ports = session.ports(master.index)?;
                drop(session);
                return Ok(uplink(other, &master, ports));
            }
            kind => {
                let kind = kind.unwrap_or("unknown");
                let why = format!("`{}` of net ns {} decides, of kind {kind}", master.name, other.identity.inode);
                return Ok(Onward::Unknown(why.into()));
            }
        };
        drop(session);
        Ok(onward.map_or(Onward::Ends, |by| Onward::Routed(other, by)))
    }

    /// The hop of a net ns that passes the packet on unseen: its gateway stays what it was.
    fn passed(&self, namespace: &Arc<Namespace>, by: &Link) -> Result<Hop, RouteError> {
        let before = self.walked.route.hops.last().expect("the first hop is routed");
        let mut session = self.registry.session(namespace)?;
        let subnet = session.subnet(by.index, before.gateway, before.source)?.map(|cidr| Subnet { cidr, cloud: None });
        Ok(Hop {
            kind: Kind::Switched,
            interface: Some(interface(by)),
            gateway: before.gateway,
            source: before.source,
            subnet: subnet.or_else(|| before.subnet.clone()),
            ..empty(namespace, None)
        })
    }

    fn end(mut self) -> Walked {
        let route = &mut self.walked.route;
        let last = route.hops.last().filter(|hop| matches!(hop.kind, Kind::Unicast | Kind::Switched));
        if route.unfinished.is_none() {
            route.via = last.and_then(|hop| Some(Via { gateway: hop.gateway?, subnet: hop.subnet.clone() }));
        } else {
            self.walked.egress = None;
        }
        self.walked
    }
}

/// Whether an address is one of the net ns's own: on this interface, or on any, since a host answers for all of its own.
fn is_own(session: &mut Session<'_>, on: &Link, address: IpAddr) -> Result<bool, RouteError> {
    if session.addresses(on.index)?.iter().any(|own| own.local == address) {
        return Ok(true);
    }
    // One of a link is asked for on the link.
    let is_of_link = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let query = RouteQuery { output: is_of_link.then_some(on.index), ..RouteQuery::to(address) };
    Ok(session.choice(&query)?.is_ok_and(|chosen| chosen.kind == Kind::Local))
}

/// The one port of a bridge by which a packet can leave: the only one that leads to no other net ns and no guest.
fn uplink(namespace: Arc<Namespace>, bridge: &Link, ports: Vec<Link>) -> Onward {
    let mut uplinks = ports.into_iter().filter(|port| !matches!(port.kind.as_deref(), Some("veth" | "tun")));
    match (uplinks.next(), uplinks.next()) {
        (Some(uplink), None) => Onward::Passed(namespace, uplink),
        (None, _) => {
            Onward::Unknown(format!("the bridge `{}` passes it on to another of its ports", bridge.name).into())
        }
        _ => Onward::Unknown(format!("the bridge `{}` has several ports that lead out", bridge.name).into()),
    }
}

fn interface(link: &Link) -> Interface {
    Interface { index: link.index, name: link.name.clone(), mac: link.mac, mtu: link.mtu }
}

fn empty(namespace: &Namespace, input: Option<Interface>) -> Hop {
    Hop {
        netns: namespace.identity.inode,
        kind: Kind::NoRoute,
        input,
        interface: None,
        gateway: None,
        source: None,
        table: None,
        prefix: None,
        protocol: None,
        metric: None,
        nexthops: Vec::new(),
        subnet: None,
    }
}

/// One net ns's word, and the interface by which the packet leaves.
fn ask(
    registry: &Registry,
    namespace: &Arc<Namespace>,
    query: &RouteQuery,
    input: Option<Interface>,
) -> Result<(Hop, Option<Link>), RouteError> {
    let mut session = registry.session(namespace)?;
    let hop = empty(namespace, input);
    match session.route(query)? {
        (Ok(chosen), matched) => described(&mut session, hop, query, chosen, matched),
        (Err(error), _) => Ok((Hop { kind: refusal(&mut session, namespace, query, error)?, ..hop }, None)),
    }
}

fn described(
    session: &mut Session<'_>,
    hop: Hop,
    query: &RouteQuery,
    chosen: Chosen,
    matched: Option<Matched>,
) -> Result<(Hop, Option<Link>), RouteError> {
    let Chosen { kind, interface: index, gateway, source, table } = chosen;
    let source = source.or(query.source);
    let link = index.map(|index| session.link(index)).transpose()?;
    let gateway = gateway.filter(|_| link.as_ref().is_none_or(|link| !link.is_loopback));
    let cidr = match &link {
        Some(link) if kind == Kind::Unicast => session.subnet(link.index, gateway, source)?,
        _ => None,
    };
    let mut hop = Hop {
        kind,
        interface: link.as_ref().map(interface),
        gateway,
        source,
        // Zero: no table had a say, as with an interface that was asked for and that nobody has a route for.
        table: Some(table).filter(|table| *table != 0),
        subnet: cidr.map(|cidr| Subnet { cidr, cloud: None }),
        ..hop
    };
    if let Some(Matched { prefix, protocol, metric, nexthops }) = matched {
        hop.prefix = Some(prefix);
        hop.protocol = Some(protocol);
        hop.metric = metric;
        hop.nexthops = nexthops;
        let chosen = hop.nexthops.iter_mut().find(|way| Some(way.interface) == index && way.gateway == gateway);
        if let Some(chosen) = chosen {
            chosen.chosen = true;
        }
    }
    Ok((hop, link))
}

/// What it means that the kernel answers with an error: most of them are answers.
fn refusal(
    session: &mut Session<'_>,
    namespace: &Namespace,
    query: &RouteQuery,
    error: AskError,
) -> Result<Kind, RouteError> {
    let netns = namespace.identity.inode;
    let is_silent = matches!(&error, AskError::Refused { words: None, .. });
    // IPv4 sends from none but its own addresses; the errno for another one has changed over the years.
    if let (Some(libc::EINVAL | libc::ENETUNREACH), Some(address @ IpAddr::V4(_)), None) =
        (error.errno(), query.source, query.input)
        && is_silent
        && !session.choice(&RouteQuery::to(address))?.is_ok_and(|chosen| chosen.kind == Kind::Local)
    {
        return Err(RouteError::NotItsAddress { address, netns });
    }
    match error.errno() {
        Some(libc::ENETUNREACH) => Ok(Kind::NoRoute),
        Some(libc::EHOSTUNREACH) => Ok(Kind::Unreachable),
        Some(libc::EACCES) => Ok(Kind::Prohibit),
        Some(libc::EAGAIN) => Ok(Kind::Throw),
        Some(libc::EXDEV) => Ok(Kind::Refused),
        // A blackhole has the same errno as a request that makes no sense; that one comes with words.
        Some(libc::EINVAL) if is_silent => invalid(session, query),
        _ => Err(RouteError::asked(netns, format!("for the route to {}", query.destination), error)),
    }
}

/// The two meanings of a bare "invalid argument", for a packet that is forwarded; for others it has one.
fn invalid(session: &mut Session<'_>, query: &RouteQuery) -> Result<Kind, RouteError> {
    if query.input.is_none() {
        return Ok(Kind::Blackhole);
    }
    // Asked as if it were sent from here by nobody in particular, only a blackhole is left as the reason.
    let bare = RouteQuery { input: None, source: None, ..*query };
    let is_blackhole = matches!(session.choice(&bare)?, Err(error) if error.errno() == Some(libc::EINVAL));
    Ok(if is_blackhole { Kind::Blackhole } else { Kind::Refused })
}
