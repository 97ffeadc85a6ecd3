//! `tracker lookup`: whose number is this?

use std::io::Write;

use clap::Args;
use tracker::server::api::{Answer, Lookup};
use tracker::server::client::Client;

use super::columns::CONTAINER;
use super::error::Failure;
use super::output::{self, Format, ListOptions};

/// Tell whose a mount ns, net ns, cgroup or pid is, or was.
#[derive(Debug, Args)]
pub(crate) struct Ask {
    #[command(flatten)]
    number: Number,
    /// The moment to ask about: RFC 3339, or nanoseconds since boot.
    #[arg(long, value_name = "MOMENT")]
    at: Option<String>,
    #[command(flatten)]
    list: ListOptions,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Number {
    /// Inode number of a mount namespace, as in `readlink /proc/PID/ns/mnt`.
    #[arg(long, value_name = "INODE")]
    mntns: Option<u32>,
    /// Inode number of a net namespace.
    #[arg(long, value_name = "INODE")]
    netns: Option<u32>,
    /// Id of a cgroup: the inode number of its directory.
    #[arg(long, value_name = "ID")]
    cgroup: Option<u64>,
    /// Pid of a container's init process.
    #[arg(long)]
    pid: Option<u32>,
}

impl Number {
    fn parameter(&self) -> (&'static str, String) {
        let Number { mntns, netns, cgroup, pid } = self;
        let number = |name, number: &dyn ToString| (name, number.to_string());
        match (mntns, netns, cgroup, pid) {
            (Some(ns), ..) => number("mntns", ns),
            (_, Some(ns), ..) => number("netns", ns),
            (_, _, Some(id), _) => number("cgroup", id),
            (.., pid) => number("pid", &pid.unwrap_or_default()),
        }
    }
}

pub(crate) async fn run(ask: Ask, client: &Client, out: &mut impl Write) -> Result<(), Failure> {
    let (name, number) = ask.number.parameter();
    let mut query = vec![(name, number.as_str())];
    query.extend(ask.at.as_deref().map(|at| ("at", at)));
    let found: Lookup = client.get("/v1/lookup", &query).await?;
    let answer = found.answer;
    match (ask.list.output, answer) {
        (Format::Json, _) => output::json(out, &found)?,
        (Format::Yaml, _) => output::yaml(out, &found)?,
        (_, Answer::Host) => writeln!(out, "host")?,
        (_, Answer::Unknown) => {}
        (_, Answer::Containers) => output::list(out, found.containers, CONTAINER, |c| &c.id, &ask.list)?,
    }
    match answer {
        Answer::Unknown => Err(Failure::NotFound(format!("{name} {number}: unknown at {}", found.at))),
        Answer::Host | Answer::Containers => Ok(()),
    }
}
