//! What each path answers. Handlers look up, convert and return; whatever takes longer is a stream of its own.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::answer::{Refused, json};
use super::api::image::Image;
use super::api::{self, Answer, Missing, Probe, Provenance, SourceLine, StoryLine};
use super::clock::WallClock;
use super::limits::Limits;
use super::query::{self, ListQuery, LookupQuery, Moment, Number, Subject};
use super::registrations::{self, Registrations};
use super::route;
use super::selections::{self, Selections};
use super::watch;
use crate::collection::story::{Story, Who};
use crate::collection::view::{ById, Excluded, Group, Lookup, Reader, Row};
use crate::container::{Container, Domain, Kind, Pod, Str};
use crate::metrics;
use crate::selector::Selector;
use crate::source::health::Condition;
use crate::time::BootTime;
use crate::tracker::Handle;

/// What all requests share.
pub(super) struct Face {
    pub(super) tracker: Handle,
    pub(super) node: Str,
    pub(super) clock: WallClock,
    pub(super) watchers: Arc<Semaphore>,
    pub(super) registrations: Registrations,
    pub(super) selections: Selections,
    pub(super) limits: Limits,
    pub(super) cancel: CancellationToken,
}

pub(super) type Shared = State<Arc<Face>>;

pub(super) fn router(face: Arc<Face>) -> Router {
    Router::new()
        .route("/v1/containers", get(containers))
        .route("/v1/containers/{id}", get(container))
        .route("/v1/lookup", get(lookup))
        .route("/v1/watch", get(watch::watch))
        .route("/v1/explain", get(explain_number))
        .route("/v1/explain/{id}", get(explain))
        .route("/v1/route", get(route::route))
        .route("/v1/images", get(images))
        .route("/v1/sources", get(sources))
        .route("/v1/dump", get(dump))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .merge(registrations::router())
        .merge(selections::router())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(face)
}

impl Face {
    pub(super) fn wire(&self, container: &Container) -> api::Container {
        api::Container::new(container, &self.node, &self.clock)
    }

    /// Containers as they go over the wire, those of sandboxes named.
    fn wire_all<'c>(&self, containers: impl IntoIterator<Item = &'c Container>) -> Vec<api::Container> {
        let mut all: Vec<_> = containers.into_iter().map(|container| self.wire(container)).collect();
        if all.iter().any(|container| container.kind == Kind::Sandbox) {
            let mut of_sandboxes = HashMap::<(Domain, Str), Vec<Str>>::new();
            for container in self.reader().all().filter(|one| one.kind == Kind::Container && !one.state.is_over()) {
                if let Some(sandbox) = container.pod.as_ref().and_then(|pod| pod.sandbox_id.clone()) {
                    of_sandboxes.entry((container.domain, sandbox)).or_default().push(container.id.clone());
                }
            }
            for sandbox in all.iter_mut().filter(|container| container.kind == Kind::Sandbox) {
                let of_it = of_sandboxes.get(&(sandbox.domain, sandbox.id.clone()));
                sandbox.containers = of_it.cloned().unwrap_or_default();
            }
        }
        all
    }

    pub(super) fn reader(&self) -> Reader {
        self.tracker.reader()
    }
}

async fn containers(State(face): Shared, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    let query = query::list(&query.unwrap_or_default())?;
    let (kinds, selector) = (shown(&query), selector(&query)?);
    let mut reader = face.reader();
    let wanted = |container: &&Arc<Container>| {
        (kinds.is_empty() || kinds.contains(&container.kind)) && selector.matches(container)
    };
    let mut containers: Vec<_> = reader.all().filter(wanted).cloned().collect();
    if query.excluded {
        containers.extend(reader.excluded().map(|excluded| excluded.container).filter(wanted).cloned());
    }
    // Newest first, as `docker ps` has it; those of whom the birth is not known last.
    containers.sort_by_key(|container| std::cmp::Reverse((container.created_at, container.instance)));
    Ok(json(StatusCode::OK, &face.wire_all(containers.iter().map(|container| &**container))))
}

/// The kinds that a list shows; none for all. Without being asked for others, that is what a runtime calls a container.
pub(super) fn shown(query: &ListQuery) -> Vec<Kind> {
    match (query.kind, query.all) {
        (Some(kind), _) => vec![kind],
        (None, true) => Vec::new(),
        (None, false) => vec![Kind::Container],
    }
}

pub(super) fn selector(query: &ListQuery) -> Result<Selector, Refused> {
    let Some(text) = &query.selector else { return Ok(Selector::everything()) };
    Selector::parse(text).map_err(|error| Refused::selector(&error))
}

async fn container(State(face): Shared, id: Result<Path<String>, PathRejection>) -> Result<Response, Refused> {
    let Path(id) = id.map_err(|error| Refused::bad(error.body_text()))?;
    let mut reader = face.reader();
    let container = match find(&mut reader, &id) {
        Err(refused) if refused.status == StatusCode::NOT_FOUND => {
            Err(because_excluded(&mut face.reader(), &id, refused))
        }
        found => found,
    }?;
    Ok(json(StatusCode::OK, &face.wire_all([container]).pop()))
}

/// The container with this id, with the only id that begins so, or with this name.
pub(super) fn find<'r>(reader: &'r mut Reader, id: &str) -> Result<&'r Container, Refused> {
    if matches!(reader.by_id(id), ById::Unknown) {
        return by_name(reader, id);
    }
    match reader.by_id(id) {
        ById::Found(container) => Ok(container),
        ById::Unknown => Err(no_such_container(id)),
        ById::Ambiguous(candidates) => Err(ambiguous(id, &candidates).remedy("give more of the id")),
    }
}

/// The container with this name; one that is over only where none is left that is not.
fn by_name<'r>(reader: &'r mut Reader, name: &str) -> Result<&'r Container, Refused> {
    let mut named = reader.by_name(name);
    if named.iter().any(|container| !container.state.is_over()) {
        named.retain(|container| !container.state.is_over());
    }
    // Of one container's runs, the latest.
    let latest = named.last().copied().ok_or_else(|| no_such_container(name))?;
    let same = |one: &Container| {
        (&one.id, one.domain, &one.runtime.namespace) == (&latest.id, latest.domain, &latest.runtime.namespace)
    };
    named.retain(|container| !same(container));
    named.push(latest);
    if named.len() == 1 { Ok(latest) } else { Err(ambiguous(name, &named).remedy("give the id of one of them")) }
}

fn ambiguous(id: &str, candidates: &[&Container]) -> Refused {
    let mut refused = Refused::conflict(format!("`{}` could be {} containers", id.escape_debug(), candidates.len()));
    refused.refusal.candidates = candidates.iter().take(MAX_CANDIDATES).map(|container| container.id.clone()).collect();
    refused
}

/// Candidates that are listed when an id or a name is ambiguous.
const MAX_CANDIDATES: usize = 20;

fn no_such_container(id: &str) -> Refused {
    Refused::not_found(format!("there is no container `{}`", id.escape_debug())).remedy("see `tracker ps --all`")
}

/// Why there is no such container, where it is the filter that leaves it out.
fn because_excluded(reader: &mut Reader, id: &str, refused: Refused) -> Refused {
    let mut excluded = reader.excluded();
    match excluded.find(|excluded| &*excluded.container.id == id || excluded.container.name.as_deref() == Some(id)) {
        None => refused,
        Some(Excluded { rule, .. }) => {
            let id = id.escape_debug();
            Refused::not_found(format!("the container `{id}` is left out by {}", rule.escape_debug()))
                .remedy(format!("see `tracker explain {id}`, and the configuration's [filter]"))
        }
    }
}

async fn lookup(State(face): Shared, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    let LookupQuery { subject, at } = query::lookup(&query.unwrap_or_default())?;
    let now = BootTime::now();
    let then = at.map(|at| match at {
        Moment::Boot(at) => at,
        Moment::Wall(at) => face.clock.boot(at),
    });
    let mut reader = face.reader();
    let excluded = count_excluded(&mut reader, &subject, then);
    let (answer, containers) = match &subject {
        Subject::Number(number) => by_number(&mut reader, *number, then),
        Subject::Pod { namespace, name } => {
            let containers = reader.by_pod_at(namespace, name, then.unwrap_or(now));
            (if containers.is_empty() { Answer::Unknown } else { Answer::Containers }, containers)
        }
    };
    let lookup = api::Lookup {
        answer,
        at: face.clock.wall(then.unwrap_or(now)),
        pod: common_pod(&containers).cloned(),
        containers: face.wire_all(containers),
        excluded,
    };
    Ok(json(StatusCode::OK, &lookup))
}

/// How many of those who are meant are not in the answer, since the filter excludes them.
fn count_excluded(reader: &mut Reader, subject: &Subject, then: Option<BootTime>) -> usize {
    let has = |row: &&Row| {
        let container = &row.container;
        let (is_its, interval) = match subject {
            Subject::Number(Number::MountNs(ns)) => (container.namespaces.mnt == *ns, row.here),
            Subject::Number(Number::NetNs(ns)) => (container.namespaces.net == *ns, row.here),
            Subject::Number(Number::Cgroup(id)) => (container.cgroup.id == Some(*id), row.here),
            Subject::Number(Number::Pid(pid)) => (container.pid() == Some(*pid), row.init),
            Subject::Pod { namespace, name } => {
                let is_its = container.pod.as_ref().is_some_and(|pod| {
                    pod.name.as_deref() == Some(name) && pod.namespace.as_deref() == Some(namespace)
                });
                (is_its, row.here)
            }
        };
        is_its && then.map_or(interval.is_open(), |at| interval.contains(at))
    };
    reader.excluded_rows().filter(has).count()
}

fn by_number(reader: &mut Reader, number: Number, then: Option<BootTime>) -> (Answer, Vec<&Container>) {
    match (number, then) {
        (Number::MountNs(ns), None) => one(reader.by_mntns(ns)),
        (Number::MountNs(ns), Some(at)) => one(reader.by_mntns_at(ns, at)),
        (Number::NetNs(ns), None) => many(reader.by_netns(ns)),
        (Number::NetNs(ns), Some(at)) => many(reader.by_netns_at(ns, at)),
        (Number::Cgroup(id), None) => many(reader.by_cgroup(id)),
        (Number::Cgroup(id), Some(at)) => many(reader.by_cgroup_at(id, at)),
        (Number::Pid(pid), None) => one(reader.by_pid(pid)),
        (Number::Pid(pid), Some(at)) => one(reader.by_pid_at(pid, at)),
    }
}

fn one(lookup: Lookup<'_>) -> (Answer, Vec<&Container>) {
    match lookup {
        Lookup::Container(container) => (Answer::Containers, vec![container]),
        Lookup::Host => (Answer::Host, Vec::new()),
        Lookup::Unknown => (Answer::Unknown, Vec::new()),
    }
}

fn many(group: Group<'_>) -> (Answer, Vec<&Container>) {
    match group {
        Group::Containers(containers) => (Answer::Containers, containers.collect()),
        Group::Host => (Answer::Host, Vec::new()),
        Group::Unknown => (Answer::Unknown, Vec::new()),
    }
}

/// The pod, if all of them belong to one and the same.
fn common_pod<'c>(containers: &[&'c Container]) -> Option<&'c Pod> {
    let same = |a: &Pod, b: &Pod| (&a.uid, &a.namespace, &a.name) == (&b.uid, &b.namespace, &b.name);
    let mut pods = containers.iter().map(|container| container.pod.as_ref());
    let first = pods.next()??;
    pods.all(|pod| pod.is_some_and(|pod| same(first, pod))).then_some(first)
}

async fn explain(State(face): Shared, id: Result<Path<String>, PathRejection>) -> Result<Response, Refused> {
    let Path(id) = id.map_err(|error| Refused::bad(error.body_text()))?;
    let who = match find(&mut face.reader(), &id) {
        Ok(found) => Who::Instance(found.instance),
        // Perhaps it is excluded: that is for `explain` to tell.
        Err(refused) if refused.status == StatusCode::NOT_FOUND => Who::Id(id.as_str().into()),
        Err(refused) => return Err(refused),
    };
    let story = face.tracker.explain(who).await?;
    story.map(|story| tell(&face, &story)).ok_or_else(|| no_such_container(&id))
}

async fn explain_number(State(face): Shared, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    let number = query::explain(&query.unwrap_or_default())?;
    let (who, asked) = match number {
        Number::MountNs(ns) => (Who::Mntns(ns), format!("mount ns {ns}")),
        Number::Pid(pid) => (Who::Pid(pid), format!("init pid {pid}")),
        Number::NetNs(_) | Number::Cgroup(_) => unreachable!("the query takes no such parameters"),
    };
    let story = face.tracker.explain(who).await?;
    story.map(|story| tell(&face, &story)).ok_or_else(|| {
        Refused::not_found(format!("no container has the {asked} now"))
            .remedy("ask `tracker lookup` whether it is the host's, or `tracker explain` with the container's id")
    })
}

fn tell(face: &Face, story: &Story) -> Response {
    let timeline = story.lines.iter().map(|line| StoryLine {
        at: face.clock.wall(line.at),
        boot_ns: line.at.0,
        source: line.source,
        text: line.text.clone(),
    });
    let fields = story.provenance.iter().map(|(field, source)| Provenance { field: (*field).into(), source: *source });
    let missing =
        story.missing.iter().map(|(field, reason)| Missing { field: (*field).into(), reason: reason.clone() });
    let story = api::Story {
        container: face.wire(&story.container),
        excluded: story.excluded.clone(),
        timeline: timeline.collect(),
        left_out: story.lines_left_out,
        fields: fields.collect(),
        missing: missing.collect(),
    };
    json(StatusCode::OK, &story)
}

async fn images(State(face): Shared, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    query::none(&query.unwrap_or_default())?;
    let mut reader = face.reader();
    let mut containers: HashMap<&str, usize> = HashMap::new();
    for container in reader.all().filter(|container| !container.state.is_over()) {
        let id = container.image.as_ref().and_then(|image| image.id.as_deref());
        id.into_iter().for_each(|id| *containers.entry(id).or_default() += 1);
    }
    let images: Vec<_> = face
        .tracker
        .images()
        .into_iter()
        .map(|image| {
            let used = image.id.as_deref().and_then(|id| containers.get(id)).copied().unwrap_or(0);
            Image::new(image, used)
        })
        .collect();
    Ok(json(StatusCode::OK, &images))
}

async fn sources(State(face): Shared, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    query::none(&query.unwrap_or_default())?;
    Ok(json(StatusCode::OK, &source_lines(&face)))
}

fn source_lines(face: &Face) -> Vec<SourceLine> {
    face.tracker.health().iter().map(|health| SourceLine::new(health, &face.clock)).collect()
}

async fn livez(State(face): Shared) -> Response {
    // The writer is the heart: it lives while it answers.
    let ok = tokio::time::timeout(HEARTBEAT, face.tracker.figures()).await.is_ok_and(|figures| figures.is_ok());
    let waiting_for = if ok { Vec::new() } else { vec!["the collection's writer".to_owned()] };
    probe(Probe { ok, waiting_for })
}

/// How long a living writer may take to answer: a full queue is some 16 ms of work.
const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(2);

async fn readyz(State(face): Shared) -> Response {
    let starting = face.tracker.health().into_iter().filter(|line| line.condition == Condition::Starting);
    let waiting_for: Vec<_> = starting.map(|line| format!("{} {}", line.source, line.what)).collect();
    probe(Probe { ok: waiting_for.is_empty(), waiting_for })
}

fn probe(probe: Probe) -> Response {
    json(if probe.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &probe)
}

async fn metrics(State(face): Shared) -> Response {
    let text = metrics::encode(&face.tracker).await;
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

async fn dump(State(face): Shared, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    query::none(&query.unwrap_or_default())?;
    let mut reader = face.reader();
    let containers: Vec<_> = reader.all().map(|container| face.wire(container)).collect();
    let state = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": face.node,
        "now": face.clock.wall(BootTime::now()),
        "sequence": reader.sequence(),
        "limits": face.limits,
        "sources": source_lines(&face),
        "metrics": metrics::encode(&face.tracker).await.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>(),
        "containers": containers,
    });
    Ok(json(StatusCode::OK, &state))
}

async fn no_such_path(request: Request) -> Refused {
    Refused::not_found(format!("there is nothing at {}", request.uri().path().escape_debug())).remedy(
        "the paths begin with /v1/containers, /v1/lookup, /v1/watch, /v1/explain, /v1/route, /v1/images, /v1/sources, /v1/registrations and /v1/selections",
    )
}

async fn no_such_method(request: Request) -> Refused {
    let error = format!("{} cannot be used on {}", request.method(), request.uri().path().escape_debug());
    Refused { status: StatusCode::METHOD_NOT_ALLOWED, ..Refused::bad(error) }
}
