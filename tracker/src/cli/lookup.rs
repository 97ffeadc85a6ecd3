//! `tracker lookup`: whose number is this, and what is in this pod?

use std::io::Write;

use clap::Args;
use tracker::server::api::{Answer, Lookup};
use tracker::server::client::Client;

use super::columns::CONTAINER;
use super::error::Failure;
use super::output::{self, Format, ListOptions};

/// Tell whose a mount ns, net ns, cgroup or pid is, or was; or what containers a pod has, or had.
#[derive(Debug, Args)]
pub(crate) struct Ask {
    #[command(flatten)]
    subject: Subject,
    /// The moment to ask about: RFC 3339, or nanoseconds since boot.
    #[arg(long, value_name = "MOMENT")]
    at: Option<String>,
    #[command(flatten)]
    list: ListOptions,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Subject {
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
    /// A pod: its containers, and its sandbox.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pod: Option<String>,
}

impl Subject {
    fn parameter(&self) -> (&'static str, String) {
        let Subject { mntns, netns, cgroup, pid, pod } = self;
        let value = |name, value: &dyn ToString| (name, value.to_string());
        match (mntns, netns, cgroup, pod, pid) {
            (Some(ns), ..) => value("mntns", ns),
            (_, Some(ns), ..) => value("netns", ns),
            (_, _, Some(id), ..) => value("cgroup", id),
            (_, _, _, Some(pod), _) => value("pod", pod),
            (.., pid) => value("pid", &pid.unwrap_or_default()),
        }
    }
}

pub(crate) async fn run(ask: Ask, client: &Client, out: &mut impl Write) -> Result<(), Failure> {
    let (name, value) = ask.subject.parameter();
    let mut query = vec![(name, value.as_str())];
    query.extend(ask.at.as_deref().map(|at| ("at", at)));
    let found: Lookup = client.get("/v1/lookup", &query).await?;
    let (answer, excluded) = (found.answer, found.excluded);
    match (ask.list.output, answer) {
        (Format::Json, _) => output::json(out, &found)?,
        (Format::Yaml, _) => output::yaml(out, &found)?,
        (_, Answer::Host) => writeln!(out, "host")?,
        (_, Answer::Unknown) => {}
        (_, Answer::Containers) => output::list(out, found.containers, CONTAINER, |c| &c.id, &ask.list)?,
    }
    match answer {
        Answer::Unknown => Err(Failure::NotFound {
            error: format!("{name} {}: unknown at {}", output::escape(&value), found.at),
            remedy: match name {
                _ if excluded > 0 => "the configuration leaves it out: `tracker explain` tells by which rule",
                "pid" => {
                    "by pid, only a container's init is known; of any process: --mntns $(stat -Lc %i /proc/PID/ns/mnt)"
                }
                _ => "what is over is kept for a while only; `tracker sources` tells whether something was missed",
            },
        }),
        Answer::Host | Answer::Containers => Ok(()),
    }
}
