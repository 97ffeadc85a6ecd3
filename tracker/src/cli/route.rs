//! `tracker route`: where does this packet go? Reads like `ip route get`, for each net ns on the way.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use tracker::route::{Hop, Kind};
use tracker::server::api::route::{RouteAnswer, RouteLine};
use tracker::server::client::Client;

use super::error::Failure;
use super::output::{self, Format, escape};

/// Tell by which interfaces, gateways and subnets a packet leaves the host.
///
/// Each line is one net ns on the way, as `ip route get` would say it there.
#[derive(Debug, Args)]
pub(crate) struct Route {
    /// Where to: an IPv4 or IPv6 address.
    #[arg(value_name = "DST")]
    destination: String,
    #[command(flatten)]
    start: Start,
    /// From which address; the kernel's choice by default.
    #[arg(long, value_name = "ADDRESS")]
    src: Option<String>,
    /// What the destination is translated to before it is routed (NAT).
    #[arg(long, value_name = "ADDRESS")]
    translated: Option<String>,
    /// The interface by which the packet comes in, for one that is forwarded: a name or an index.
    #[arg(long, value_name = "INTERFACE")]
    iif: Option<String>,
    /// The interface that the sender is bound to: a name or an index.
    #[arg(long, value_name = "INTERFACE")]
    oif: Option<String>,
    /// The packet's mark.
    #[arg(long, value_parser = clap_num)]
    mark: Option<u32>,
    /// The sender's uid.
    #[arg(long)]
    uid: Option<u32>,
    /// Type of service.
    #[arg(long)]
    tos: Option<u8>,
    /// IP protocol, by its number.
    #[arg(long, value_name = "NUMBER")]
    proto: Option<u8>,
    /// Source port.
    #[arg(long, value_name = "PORT")]
    sport: Option<u16>,
    /// Destination port.
    #[arg(long, value_name = "PORT")]
    dport: Option<u16>,
    /// Ask the kernel, whatever is known already.
    #[arg(long)]
    fresh: bool,
    /// Go on with each change of the answer, until interrupted.
    #[arg(long)]
    watch: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// In which net ns the way begins; the host's by default.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct Start {
    /// A container: its id, the beginning of it, or its name.
    #[arg(long, value_name = "ID")]
    container: Option<String>,
    /// A process.
    #[arg(long)]
    pid: Option<u32>,
    /// A net ns: its inode number, or a file that it is mounted on, such as /run/netns/blue.
    #[arg(long, value_name = "INODE|PATH")]
    netns: Option<String>,
}

/// A number as `ip` takes it: decimal, or hexadecimal with 0x.
fn clap_num(text: &str) -> Result<u32, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

impl Route {
    fn query(&self) -> Vec<(&'static str, String)> {
        let number = |name, number: Option<u32>| number.map(|number| (name, number.to_string()));
        let text = |name, text: &Option<String>| text.clone().map(|text| (name, text));
        let Start { container, pid, netns } = &self.start;
        let netns = netns.as_ref().map(|netns| match netns.parse::<u32>() {
            Ok(_) => ("netns", netns.clone()),
            // Relative to where the command runs, not to where the tracker does.
            Err(_) => {
                ("path", std::path::absolute(netns).unwrap_or_else(|_| PathBuf::from(netns)).display().to_string())
            }
        });
        let parameters = [
            Some(("dst", self.destination.clone())),
            netns,
            text("container", container),
            number("pid", *pid),
            text("src", &self.src),
            text("translated", &self.translated),
            text("iif", &self.iif),
            text("oif", &self.oif),
            number("mark", self.mark),
            number("uid", self.uid),
            number("tos", self.tos.map(u32::from)),
            number("proto", self.proto.map(u32::from)),
            number("sport", self.sport.map(u32::from)),
            number("dport", self.dport.map(u32::from)),
            self.fresh.then(|| ("fresh", "true".to_owned())),
            self.watch.then(|| ("watch", "true".to_owned())),
        ];
        parameters.into_iter().flatten().collect()
    }
}

pub(crate) async fn run(route: Route, client: &Client, out: &mut impl Write) -> Result<(), Failure> {
    let query = route.query();
    let query: Vec<(&str, &str)> = query.iter().map(|(name, value)| (*name, value.as_str())).collect();
    if route.watch {
        return watch(client, &query, route.output, out).await;
    }
    let answer: RouteAnswer = client.get("/v1/route", &query).await?;
    print(out, &answer, route.output)
}

async fn watch(client: &Client, query: &[(&str, &str)], format: Format, out: &mut impl Write) -> Result<(), Failure> {
    let mut lines = client.lines("/v1/route", query).await?;
    while let Some(text) = lines.next_text().await? {
        let line: RouteLine = match (format, serde_json::from_slice(&text)) {
            // One value in each line, as it came.
            (Format::Json, _) => {
                out.write_all(&text)?;
                out.flush()?;
                continue;
            }
            (_, line) => line.map_err(Failure::other)?,
        };
        let now = jiff::Timestamp::now().strftime("%H:%M:%S%.3f").to_string();
        match line {
            RouteLine::Route(answer) => {
                if matches!(format, Format::Table | Format::Wide) {
                    writeln!(out, "{now}")?;
                }
                print(out, &answer, format)?;
            }
            RouteLine::Error(refusal) => writeln!(out, "{now} no answer: {}", escape(&refusal.error))?,
        }
        out.flush()?;
    }
    Err(Failure::other("the tracker ended the stream"))
}

fn print(out: &mut impl Write, answer: &RouteAnswer, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(out, answer)?,
        Format::Yaml => output::yaml(out, answer)?,
        Format::Name => {
            let leaves = answer.route.hops.last().and_then(|hop| hop.interface.as_ref());
            if let Some(interface) = leaves {
                writeln!(out, "{}", escape(&interface.name))?;
            }
        }
        Format::Table | Format::Wide => people(out, answer, format == Format::Wide)?,
    }
    Ok(())
}

fn people(out: &mut impl Write, answer: &RouteAnswer, wide: bool) -> std::io::Result<()> {
    for hop in &answer.route.hops {
        writeln!(out, "net ns {}: {}", hop.netns, describe(answer, hop, wide))?;
        for way in &hop.nexthops {
            let via = way.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
            let (chosen, dead) = (if way.chosen { " chosen" } else { "" }, if way.dead { " dead" } else { "" });
            writeln!(out, "    nexthop{via} interface {} weight {}{chosen}{dead}", way.interface, way.weight)?;
        }
    }
    if let Some(why) = &answer.route.unfinished {
        writeln!(out, "unfinished: {}", escape(why))?;
    }
    if let Some(via) = &answer.route.via {
        let subnet = via.subnet.as_ref().map(|subnet| {
            let cloud = subnet.cloud.as_ref().map(|cloud| format!(" ({})", escape(cloud))).unwrap_or_default();
            format!(" in {}{cloud}", subnet.cidr)
        });
        writeln!(out, "leaves via {}{}", via.gateway, subnet.unwrap_or_default())?;
    }
    Ok(())
}

/// A hop on one line, in the words and the order of `ip route get`.
fn describe(answer: &RouteAnswer, hop: &Hop, wide: bool) -> String {
    let mut words = Vec::new();
    if hop.kind != Kind::Unicast {
        words.push(hop.kind.name().to_owned());
    }
    words.push(answer.dst.to_string());
    if let Some(input) = &hop.input {
        if let Some(source) = hop.source {
            words.push(format!("from {source}"));
        }
        words.push(format!("iif {}", escape(&input.name)));
    }
    if let Some(gateway) = hop.gateway {
        words.push(format!("via {gateway}"));
    }
    if let Some(interface) = &hop.interface {
        words.push(format!("dev {}", escape(&interface.name)));
    }
    words.extend(hop.table.map(|table| format!("table {}", table_name(table))));
    if let Some(source) = hop.source.filter(|_| hop.input.is_none()) {
        words.push(format!("src {source}"));
    }
    words.extend(hop.metric.map(|metric| format!("metric {metric}")));
    words.extend(hop.subnet.as_ref().map(|subnet| format!("subnet {}", subnet.cidr)));
    if wide {
        words.extend(hop.prefix.map(|prefix| format!("route {prefix}")));
        words.extend(hop.protocol.as_ref().map(|protocol| format!("proto {}", escape(protocol))));
        let interface = hop.interface.as_ref();
        words.extend(interface.and_then(|interface| interface.mac).map(|mac| format!("mac {mac}")));
        words.extend(interface.and_then(|interface| interface.mtu).map(|mtu| format!("mtu {mtu}")));
    }
    words.join(" ")
}

/// The three tables that every host has, by name.
fn table_name(table: u32) -> String {
    match table {
        253 => "default".into(),
        254 => "main".into(),
        255 => "local".into(),
        table => table.to_string(),
    }
}
