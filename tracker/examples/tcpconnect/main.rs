//! `tcpconnect`: every TCP connection that is begun on the host, with the container that begins it, and by which gateway and
//! subnet it leaves the host.
//!
//! An example of a tracer that asks for routes, too. Its kernel half tells the net namespace of the socket; the library
//! tells where packets go that are sent in there, for nanoseconds where somebody has asked before.

#![allow(clippy::print_stderr, reason = "a command speaks to its terminal")]

#[path = "../common/mod.rs"]
mod common;
mod event;

use std::borrow::Cow;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;
use tracker::Enrichment;
use tracker::route::{Found, Kind, Place, RouteQuery, Routes};
use tracker::tracker::place_of;

use common::follow::{self, Options, Subject};
use common::head;
use common::probe::{MOUNT_NS, Object, offsets};
use common::text::{self, Cell, Format, Where};
use event::Connect;

/// Shows every TCP connection that is begun on this host, by which container, and its way, until Ctrl-C. Needs root.
#[derive(Parser)]
#[command(name = "tcpconnect")]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    // First of all: see `execsnoop`.
    tracker::barrier::keeper_entry();
    follow::exit_code("tcpconnect", run(&Arguments::parse().options))
}

fn run(options: &Options) -> Result<()> {
    let object = Object {
        bytes: aya::include_bytes_aligned!("../../bpf/tcpconnect.bpf.o"),
        program: "on_connect",
        tracepoint: "inet_sock_set_state",
        offsets: fields()?,
    };
    let subject = Subject {
        name: "tcpconnect",
        events: "connections",
        decode: Connect::decode,
        head: |connect: &Connect| &connect.head,
    };
    let format = options.output;
    follow::run(subject, options, &object, |tracker, out| {
        let routes = match tracker.routes() {
            Some(Ok(routes)) => Some(routes.clone()),
            Some(Err(error)) => {
                eprintln!("tcpconnect: routes are not told: {error}");
                None
            }
            None => None,
        };
        if format == Format::Table {
            let own = [Cell(15, "COMM".into()), Cell(28, "TO".into()), Cell(15, "GATEWAY".into())];
            text::row(out, Where::CELLS.into_iter().chain(own), "SUBNET")?;
        }
        Ok(move |out: &mut dyn Write, connect: &Connect, known: &Enrichment<'_>| {
            let found = routes.as_ref().and_then(|routes| route(routes, connect, known));
            show(out, format, connect, known, found.as_ref())
        })
    })
}

/// Where the running kernel keeps what the kernel half reads.
fn fields() -> Result<Vec<(&'static str, u64)>> {
    let [a, b, c, d] = MOUNT_NS;
    let [(_, common), of_socket @ .., nsproxy, mnt_ns, ns, inum, net_ns] = offsets([
        ("SOCK_COMMON", "sock", "__sk_common"),
        ("SOCK_FAMILY", "sock_common", "skc_family"),
        ("SOCK_DADDR", "sock_common", "skc_daddr"),
        ("SOCK_RCV_SADDR", "sock_common", "skc_rcv_saddr"),
        ("SOCK_V6_DADDR", "sock_common", "skc_v6_daddr"),
        ("SOCK_V6_RCV_SADDR", "sock_common", "skc_v6_rcv_saddr"),
        ("SOCK_DPORT", "sock_common", "skc_dport"),
        // A struct with the pointer alone in it.
        ("SOCK_NET", "sock_common", "skc_net"),
        a,
        b,
        c,
        d,
        ("NET_NS", "net", "ns"),
    ])?;
    // The program counts from the beginning of the socket.
    let of_socket: [_; 7] = of_socket;
    let of_socket = of_socket.map(|(global, offset)| (global, common + offset));
    Ok([&of_socket[..], &[nsproxy, mnt_ns, ns, inum, net_ns]].concat())
}

/// The way of a connection. Nothing is known of one whose net namespace has gone already.
fn route(routes: &Routes, connect: &Connect, known: &Enrichment<'_>) -> Option<Found> {
    // The net namespace is known if anything in it was asked about before. Else its container leads there, unless the
    // socket is not in the container's own, and else any way.
    let netns = routes.known(connect.netns).or_else(|| {
        let container = known.container.filter(|container| container.namespaces.net == connect.netns);
        let place = container.and_then(place_of).unwrap_or(Place::Inode(connect.netns));
        routes.netns(&place).ok()
    })?;
    let query = RouteQuery { source: connect.from(), ..RouteQuery::to(connect.to()) };
    routes.lookup_blocking(&netns, &query).ok()
}

/// What a line tells.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    at: Where<'a>,
    netns: u32,
    comm: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<IpAddr>,
    to: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<Way>,
}

/// What becomes of its packets.
#[derive(Serialize)]
struct Way {
    /// What the last net namespace on the way does with them.
    kind: Kind,
    hops: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subnet: Option<String>,
    /// What a cloud calls the subnet.
    #[serde(skip_serializing_if = "Option::is_none")]
    cloud: Option<String>,
}

impl Way {
    fn new(found: &Found) -> Option<Self> {
        let last = found.hops.last()?;
        let subnet = last.subnet.as_ref();
        Some(Way {
            kind: last.kind,
            hops: found.hops.len(),
            gateway: found.via.as_ref().map(|via| via.gateway),
            subnet: subnet.map(|subnet| subnet.cidr.to_string()),
            cloud: subnet.and_then(|subnet| subnet.cloud.as_ref()).map(ToString::to_string),
        })
    }
}

fn show(
    out: &mut dyn Write,
    format: Format,
    connect: &Connect,
    known: &Enrichment<'_>,
    found: Option<&Found>,
) -> io::Result<()> {
    let line = Line {
        at: Where::new(&connect.head, known),
        netns: connect.netns,
        comm: String::from_utf8_lossy(connect.head.comm()),
        from: connect.from(),
        to: SocketAddr::new(connect.to(), connect.port()),
        route: found.and_then(Way::new),
    };
    if format == Format::Json {
        return text::json(out, &line);
    }
    let gateway = line.route.as_ref().and_then(|way| way.gateway).map_or("-".to_owned(), |address| address.to_string());
    let own = [Cell(15, line.comm.as_ref().into()), Cell(28, line.to.to_string().into()), Cell(15, gateway.into())];
    let subnet = line.route.as_ref().and_then(|way| way.subnet.as_deref());
    text::row(out, line.at.cells().into_iter().chain(own), subnet.unwrap_or("-"))
}
