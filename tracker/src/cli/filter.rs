//! `tracker filter test`: what a filter would do, to the containers of this host or to those of a file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use tracker::Config;
use tracker::filter::{Decision, Filter, Subject, Why};
use tracker::server::api::Container;
use tracker::server::client::Client;

use super::columns::short;
use super::error::Failure;
use super::output::{self, Cell, Column, ListOptions, escape};

/// Try out which containers a configuration leaves out.
#[derive(Debug, Args)]
pub(crate) struct FilterCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Test(Test),
}

/// Say for each container whether the [filter] of a configuration keeps it, and by which rule.
///
/// Asks the running tracker for its containers, those included that its own filter leaves out; with --containers it needs
/// none. Warnings go to standard error. Exit code 1 when a pattern is bad: all of those are listed.
#[derive(Debug, Args)]
struct Test {
    /// The configuration, a file of TOML; `-` for standard input.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Containers as `tracker ps -a -o json` prints them, instead of the running tracker's; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    containers: Option<PathBuf>,
    #[command(flatten)]
    list: ListOptions,
}

/// What becomes of one container.
#[derive(Debug, Serialize)]
struct Fate {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_namespace: Option<String>,
    decision: &'static str,
    /// The rule that decided it.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    /// Why it is kept where no rule says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

const FATE: &[Column<Fate>] = &[
    Column { name: "decision", wide: false, cell: |fate| Cell::text(fate.decision) },
    Column { name: "rule", wide: false, cell: |fate| fate.rule.as_deref().into() },
    Column { name: "id", wide: false, cell: |fate| Cell::text(&*fate.id).shown_as(short(&fate.id).to_owned()) },
    Column { name: "name", wide: false, cell: |fate| fate.name.as_deref().into() },
    Column { name: "image", wide: false, cell: |fate| fate.image.as_deref().into() },
    Column { name: "pod-namespace", wide: false, cell: |fate| fate.pod_namespace.as_deref().into() },
    Column { name: "kind", wide: true, cell: |fate| Cell::text(fate.kind) },
    Column { name: "reason", wide: true, cell: |fate| fate.reason.into() },
];

/// More than the containers of any host.
const MAX_CONTAINERS_LEN: u64 = 256 << 20;

pub(crate) async fn run(command: FilterCommand, client: &Client, out: &mut impl Write) -> Result<(), Failure> {
    let Verb::Test(test) = command.verb;
    let is_input = |path: &Path| path == Path::new("-");
    if is_input(&test.file) && test.containers.as_deref().is_some_and(is_input) {
        return Err(Failure::Usage {
            error: "standard input is asked for twice".into(),
            remedy: "name a file for one of --file and --containers".into(),
        });
    }
    let config = match is_input(&test.file) {
        true => Config::read_from(io::stdin().lock(), Path::new("-")),
        false => Config::read(&test.file),
    };
    let filter = Filter::new(&config.map_err(Failure::other)?.filter).map_err(Failure::other)?;
    for warning in filter.warnings() {
        let _ = writeln!(io::stderr().lock(), "warning: {}", escape(&warning.to_string()));
    }
    let containers: Vec<Container> = match &test.containers {
        None => client.get("/v1/containers", &[("all", "true"), ("excluded", "true")]).await?,
        Some(path) => read_containers(path)?,
    };
    let fates = containers.iter().map(|container| fate(&filter, container)).collect();
    output::list(out, fates, FATE, |fate| &fate.id, &test.list)
}

fn read_containers(path: &Path) -> Result<Vec<Container>, Failure> {
    let file = || -> io::Result<Box<dyn Read>> {
        Ok(if path == Path::new("-") { Box::new(io::stdin().lock()) } else { Box::new(File::open(path)?) })
    };
    let failed = |error: &dyn std::fmt::Display| Failure::Other {
        error: format!("read the containers in `{}`: {error}", path.display()),
        remedy: Some("make the file by `tracker ps -a -o json`".into()),
    };
    let mut text = Vec::new();
    let read = file().and_then(|file| file.take(MAX_CONTAINERS_LEN).read_to_end(&mut text));
    read.map_err(|error| failed(&error))?;
    serde_json::from_slice(&text).map_err(|error| failed(&error))
}

fn subject(container: &Container) -> Subject<'_> {
    let pod = container.pod.as_ref();
    Subject {
        domain: container.domain,
        kind: container.kind,
        name: container.name.as_deref(),
        image: container.image.as_ref().and_then(|image| image.name.as_deref()),
        pod_namespace: pod.and_then(|pod| pod.namespace.as_deref()),
        pod_annotations: pod.and_then(|pod| pod.annotations.as_ref()),
        annotations: &container.annotations,
        is_awaited: !container.awaiting.is_empty(),
    }
}

fn fate(filter: &Filter, container: &Container) -> Fate {
    let subject = subject(container);
    let (decision, rule, reason) = match filter.decide(&subject) {
        Decision::Excluded(rule) => ("excluded", Some(rule), None),
        Decision::Kept(Why::Included(rule)) => ("kept", Some(rule), None),
        Decision::Kept(Why::Undecided(rule)) => ("kept", Some(rule), Some("it looks at what is not known yet")),
        Decision::Kept(Why::NoRule) => ("kept", None, Some("no rule matches")),
        Decision::Kept(Why::NotTheHosts) => ("kept", None, Some("what it is called is not the host's word")),
    };
    Fate {
        id: container.id.to_string(),
        name: subject.name.map(str::to_owned),
        kind: container.kind.name(),
        image: subject.image.map(str::to_owned),
        pod_namespace: subject.pod_namespace.map(str::to_owned),
        decision,
        rule: rule.map(|rule| rule.to_string()),
        reason,
    }
}
