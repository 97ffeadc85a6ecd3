//! From statements to one container: a pure function, and the table that says whose word counts for which field.
//!
//! Conflicts are decided per field, never by who spoke last. Zero, empty and `false` are values when a source states
//! them; "unknown" never beats a known value.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::pause::PauseImages;
use super::run::{Run, Statements};
use super::timeline::Interval;
use super::view::{Host, Row};
use crate::container::{
    Cgroup, Container, Details, Domain, Exit, Grade, Image, Kind, Labels, Namespaces, Parent, Pod, Runtime, State, Str,
    TaskId,
};
use crate::fact::{Look, Source, SourceSet, Statement};
use crate::time::BootTime;

use Source::{Barrier, Containerd, Cri, Docker, Kernel, Kubernetes, Manual, Podman, Proc};

/// What the runtime decides.
const RUNTIME_FIRST: &[Source] = &[Docker, Podman, Cri, Containerd, Barrier, Proc, Kubernetes, Manual, Kernel];
/// What Kubernetes decides where it knows.
const KUBERNETES_FIRST: &[Source] = &[Kubernetes, Docker, Podman, Cri, Containerd, Barrier, Proc, Manual, Kernel];
/// What was read from the bundle, the command line and `/proc` while the container stood still.
const BUNDLE_FIRST: &[Source] = &[Kernel, Barrier, Proc, Docker, Podman, Cri, Containerd, Kubernetes, Manual];

/// Which OCI runtime ran: the barrier saw it; containerd, CRI and Docker know which binary they meant to run; a state file
/// shows only whose form it has; Podman knows it by a name that somebody gave it.
const BINARY_FIRST: &[Source] = &[Kernel, Barrier, Containerd, Cri, Docker, Proc, Podman, Kubernetes, Manual];

/// The table. A field of [`Statement`] without a row does not compile.
macro_rules! table {
    ($($field:ident => $order:expr),* $(,)?) => {
        #[derive(Clone, Copy)]
        #[allow(non_camel_case_types, reason = "named as the fields are")]
        #[allow(dead_code, reason = "what identifies a run is joined by the state, not merged")]
        enum Field { $($field),* }

        impl Field {
            fn order(self) -> &'static [Source] {
                match self { $(Field::$field => $order),* }
            }

            fn name(self) -> &'static str {
                match self { $(Field::$field => stringify!($field)),* }
            }
        }

        #[allow(dead_code, reason = "exists to be compiled")]
        fn every_field_has_a_row(statement: &Statement) {
            let Statement { $($field: _),* } = statement;
        }
    };
}

table! {
    kind => RUNTIME_FIRST,
    task => BUNDLE_FIRST,
    creator => BUNDLE_FIRST,
    namespaces => BUNDLE_FIRST,
    state => RUNTIME_FIRST,
    name => KUBERNETES_FIRST,
    runtime => RUNTIME_FIRST,
    image => RUNTIME_FIRST,
    pod => KUBERNETES_FIRST,
    labels => RUNTIME_FIRST,
    annotations => RUNTIME_FIRST,
    details => RUNTIME_FIRST,
    host_network => BUNDLE_FIRST,
    cgroup => BUNDLE_FIRST,
    bundle => BUNDLE_FIRST,
    created_at => RUNTIME_FIRST,
    started_at => RUNTIME_FIRST,
    exited_at => RUNTIME_FIRST,
    exit => RUNTIME_FIRST,
    missing => RUNTIME_FIRST,
}

/// What a container is derived in: the same for all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub host: Host,
    /// Sources that report at present.
    pub live: SourceSet,
    /// Path of a cgroup, and when its last task left it.
    pub cgroup: Option<&'a CgroupSeen>,
    /// Leaves out all statements but this source's.
    pub only: Option<Source>,
    /// Images that sandboxes are made of.
    pub pauses: &'a PauseImages,
    /// The container that it was started in.
    pub parent: Option<&'a Parent>,
}

/// What the kernel told about a cgroup.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CgroupSeen {
    pub path: Option<Str>,
    emptied: BTreeSet<BootTime>,
}

impl CgroupSeen {
    /// Notes that its last task left it. One that fills again and again keeps the last few times.
    pub(crate) fn emptied(&mut self, at: BootTime) {
        const MAX_TIMES: usize = 8;
        self.emptied.insert(at);
        if self.emptied.len() > MAX_TIMES {
            self.emptied.pop_first();
        }
    }

    /// When it was empty for the first time after the end of `run`'s init: later times are those of other runs in it, or
    /// of its removal.
    pub(crate) fn emptied_after(&self, run: &Run, opened: BootTime, ended_at: BootTime) -> Option<BootTime> {
        let first = self.emptied.range(ended_at..).next().copied();
        // An end that a scan or a runtime told may have been told late.
        let is_exact = run.shown.ended.is_some_and(|(_, exit)| exit.is_some());
        let last = || self.emptied.range(opened..ended_at).next_back().copied().filter(|_| !is_exact);
        first.or_else(last)
    }
}

/// Whose word each field is.
pub(crate) type Provenance = Vec<(&'static str, Source)>;

/// The statements that count for one run: its own, and where a source has none about this very run, its container's.
struct Said<'a> {
    run: &'a Statements,
    container: Option<&'a Statements>,
    only: Option<Source>,
    over: bool,
    provenance: Option<&'a mut Provenance>,
}

impl<'a> Said<'a> {
    fn by(&self, source: Source) -> Option<&'a Statement> {
        if self.only.is_some_and(|only| only != source) {
            return None;
        }
        // The container may have been made anew since a run of it was over.
        let of_container = self.container.filter(|_| !self.over || !self.run.all().contains(source));
        self.run.of(source, self.over).or_else(|| of_container?.of(source, self.over))
    }

    fn in_order(&self, order: &'static [Source]) -> impl Iterator<Item = (Source, &'a Statement)> {
        order.iter().filter_map(|source| Some((*source, self.by(*source)?)))
    }

    /// What a look at the process showed.
    fn seen<T>(&mut self, field: &'static str, value: Option<T>) -> Option<T> {
        if value.is_some() {
            self.note(field, Proc);
        }
        value
    }

    fn note(&mut self, field: &'static str, source: Source) {
        if let Some(provenance) = &mut self.provenance {
            provenance.push((field, source));
        }
    }

    /// The first known value by the order of `field`, and whose it is.
    fn of<T>(&self, field: Field, get: impl Fn(&'a Statement) -> Option<T>) -> Option<(Source, T)> {
        self.in_order(field.order()).find_map(|(source, said)| Some((source, get(said)?)))
    }

    /// What the kernel showed, else the first known value by the order of `field`.
    fn shown_or<T>(&mut self, shown: Option<T>, field: Field, get: impl Fn(&'a Statement) -> Option<T>) -> Option<T> {
        match shown {
            Some(shown) => {
                self.note(field.name(), Kernel);
                Some(shown)
            }
            None => self.pick(field, get),
        }
    }

    /// The first known value by an order of its own: for a part of a field, called `name` in explanations.
    fn pick_in<T>(
        &mut self,
        order: &'static [Source],
        name: &'static str,
        get: impl Fn(&'a Statement) -> Option<T>,
    ) -> Option<T> {
        let (source, value) = self.in_order(order).find_map(|(source, said)| Some((source, get(said)?)))?;
        self.note(name, source);
        Some(value)
    }

    fn pick<T>(&mut self, field: Field, get: impl Fn(&'a Statement) -> Option<T>) -> Option<T> {
        self.pick_in(field.order(), field.name(), get)
    }

    /// All maps together; for a key that several state, the order decides.
    fn union(&mut self, field: Field, get: impl Fn(&'a Statement) -> Option<&'a Labels>) -> Labels {
        let mut union: Option<Labels> = None;
        let stated: Vec<(Source, &Labels)> =
            self.in_order(field.order()).filter_map(|(source, said)| Some((source, get(said)?))).collect();
        for (source, labels) in stated.into_iter().filter(|(_, labels)| !labels.is_empty()) {
            self.note(field.name(), source);
            union = Some(union.map_or_else(|| labels.clone(), |union| union.or(labels)));
        }
        union.unwrap_or_default()
    }
}

/// Where in its life the kernel shows a run to be.
fn kernel_state(run: &Run, kernel_is_live: bool) -> Option<State> {
    let birth = run.shown.birth.filter(|_| kernel_is_live || run.shown.ended.is_some())?;
    Some(match run.shown.executed_at {
        _ if run.shown.ended.is_some() => State::Exited,
        Some(_) => State::Running,
        None if birth.executed => State::Running,
        None if run.keys.is_empty() => State::Provisional,
        None => State::Created,
    })
}

/// Derives what is published of a run, but for its sequence number; `None` where nothing is known that is worth showing.
pub(crate) fn derive(
    run: &Run,
    container: Option<&Statements>,
    context: Context<'_>,
    provenance: Option<&mut Provenance>,
) -> Option<Row> {
    let standing = standing(run, container);
    let over = run.aborted.is_some() || run.shown.ended.is_some() || (!run.keys.is_empty() && standing.is_empty());
    let mut said = Said { run: &run.statements, container, only: context.only, over, provenance };
    if context.only.is_some_and(|only| only != Kernel && said.by(only).is_none()) {
        return None;
    }

    // What is seen of a process counts only as long as nobody says what it is.
    let look = run.look.as_deref().filter(|_| run.keys.is_empty());
    let birth = run.shown.birth;
    let settled = birth.filter(|birth| birth.executed || run.shown.executed_at.is_some());
    let kernel_is_live = context.live.contains(Kernel);
    let shown_state = kernel_state(run, kernel_is_live);
    let stated = said.of(Field::state, |said| said.state);
    let state = match (shown_state, stated.map(|(_, state)| state)) {
        _ if run.aborted.is_some() && birth.is_none() => State::Aborted,
        // The kernel does not see a freezer; everything else it sees first and best.
        (Some(State::Running), Some(State::Paused)) => State::Paused,
        (Some(shown), _) => shown,
        (None, _) if over => State::Exited,
        (None, Some(stated)) => stated,
        (None, None) => State::Created,
    };

    match (shown_state, stated) {
        (Some(shown), _) if shown == state => said.note("state", Kernel),
        (_, Some((source, stated))) if stated == state => said.note("state", source),
        _ => {}
    }

    // Who speaks for a user or a container may name a process that is somebody else's. Its numbers are not looked up under
    // that name before the kernel has shown whose it is.
    let is_proven = birth.is_some() || run.keys.iter().all(|key| key.domain == Domain::Host);
    // Before the entrypoint runs, a runtime may still move the task to other namespaces and to its final cgroup, and
    // only a witness that looked while it stood still may say which; its mount ns and pid ns are fixed at birth.
    let namespaces = match settled {
        Some(birth) => {
            said.note("namespaces", Kernel);
            birth.namespaces
        }
        None if !is_proven => Namespaces::default(),
        None => said.pick(Field::namespaces, |said| said.namespaces).unwrap_or_else(|| {
            birth.map_or(Namespaces::default(), |birth| Namespaces {
                mnt: birth.namespaces.mnt,
                pid: birth.namespaces.pid,
                ..Namespaces::default()
            })
        }),
    };
    let mut cgroup = merged_cgroup(&mut said, settled.and_then(|birth| birth.cgroup_id), context.cgroup);
    cgroup.id = cgroup.id.filter(|_| is_proven);
    if let Some(look) = look {
        cgroup.path = cgroup.path.or_else(|| said.seen("cgroup.path", look.cgroup.path.clone()));
        cgroup.v1_path = cgroup.v1_path.or_else(|| said.seen("cgroup.v1_path", look.cgroup.v1_path.clone()));
    }
    let host_network = match namespaces.net {
        0 => said.pick(Field::host_network, |said| said.host_network),
        net => Some(net == context.host.namespaces.net),
    };

    let grade = run.grade.or(match run.task {
        Some(_) if run.shown.seen_live => Some(Grade::FirstExec),
        Some(_) => Some(Grade::Observed),
        None => None,
    });
    let exit = merged_exit(&mut said, run.shown.ended.and_then(|(_, exit)| exit));
    let ended_at = run.shown.ended.map(|(at, _)| at);
    let exited_at = said.shown_or(ended_at, Field::exited_at, |said| said.exited_at);
    let born_at = birth.map(|birth| birth.born_at);
    let created_at = said.shown_or(born_at, Field::created_at, |said| said.created_at);
    let executed_at = run.shown.executed_at.filter(|at| *at != BootTime::ZERO);
    let started_at = said.shown_or(executed_at, Field::started_at, |said| said.started_at);

    let mut name = said.pick(Field::name, |said| said.name.clone());
    let mut runtime = merged_runtime(&mut said);
    if let Some(look) = look {
        name = name.or_else(|| said.seen("name", look.recognised.name.clone()));
        runtime.name = runtime.name.or_else(|| said.seen("runtime.name", look.recognised.runtime.clone()));
    }
    let image = merged_image(&mut said);
    let pod = merged_pod(&mut said);
    let kind = match run.keys.is_empty() {
        true => look.and_then(|look| said.seen("kind", Some(look.recognised.kind))).unwrap_or(Kind::Unmanaged),
        false => said.pick(Field::kind, |said| said.kind).unwrap_or(Kind::Container),
    };
    // Of what is in a pod a label or an annotation has told which it is.
    let is_pause = || image.as_ref()?.name.as_deref().filter(|name| context.pauses.contain(name));
    let kind = if kind == Kind::Container && pod.is_none() && is_pause().is_some() { Kind::Sandbox } else { kind };
    let bundle = said.pick(Field::bundle, |said| said.bundle.clone());
    let awaiting = awaited(run, &runtime, pod.is_some(), bundle.as_deref());
    let is_outstanding =
        |source: &Source| context.live.contains(*source) && !standing.contains(*source) && !state.is_over();
    let awaiting = awaiting.iter().filter(is_outstanding).collect();
    let container = Container {
        id: made_up_or_stated_id(run),
        domain: run.keys.first().map_or_else(|| domain_of(run, context.host), |key| key.domain),
        instance: run.instance,
        name,
        kind,
        state,
        grade,
        sequence: 0,
        awaiting,
        sources: sources(run, container),
        runtime,
        image,
        pod,
        labels: said.union(Field::labels, |said| said.labels.as_ref()),
        annotations: said.union(Field::annotations, |said| said.annotations.as_ref()),
        details: merged_details(&mut said, look, run.row.as_ref().map(|row| &row.container.details)),
        parent: context.parent.cloned(),
        task: run.task,
        namespaces,
        generation: birth.and_then(|birth| birth.generation),
        host_network,
        cgroup,
        bundle,
        created_at,
        started_at,
        exited_at: exited_at.filter(|_| state.is_over()),
        exit: exit.filter(|_| state.is_over()),
    };
    let (here, init) = intervals(run, &container, context);
    Some(Row { container: Arc::new(container), here, init, excluded: None })
}

fn standing(run: &Run, container: Option<&Statements>) -> SourceSet {
    let of_container = container.map_or(SourceSet::EMPTY, Statements::standing);
    run.statements.standing().iter().chain(of_container.iter()).collect()
}

fn sources(run: &Run, container: Option<&Statements>) -> SourceSet {
    let kernel = run.shown.birth.map(|_| if run.shown.seen_live { Kernel } else { Proc });
    let of_container = container.map_or(SourceSet::EMPTY, Statements::all);
    run.statements.all().iter().chain(of_container.iter()).chain(kernel).collect()
}

/// Who will say something yet: containerd of a container under it, Docker of one in the namespace that it uses there, a CRI
/// server of one that is of a pod, and the podman source of podman's, as long as they answer.
fn awaited(run: &Run, runtime: &Runtime, is_of_pod: bool, bundle: Option<&str>) -> SourceSet {
    let under = |scope: &str| run.keys.iter().any(|key| key.domain == Domain::Host && key.scope.starts_with(scope));
    let is_host_s = run.keys.iter().any(|key| key.domain == Domain::Host);
    let managed_by = |manager: &str| runtime.name.as_deref() == Some(manager);
    let of_cri = is_of_pod && (under(CRI_SCOPE) || is_host_s && managed_by("cri-o"));
    // What a user's bundle says is not read by those who state it; where it lies tells enough to have a look.
    let is_user_s = run.keys.first().is_some_and(|key| matches!(key.domain, Domain::User(_)));
    let lies_there = |bundle: &str| bundle.contains("-containers/") && bundle.ends_with("/userdata");
    let of_podman = is_host_s && managed_by("podman") || is_user_s && bundle.is_some_and(lies_there);
    let of_docker = under("containerd/moby");
    let expected = [(Containerd, under("containerd/")), (Docker, of_docker), (Cri, of_cri), (Podman, of_podman)];
    expected.into_iter().filter(|(_, is_its)| *is_its).map(|(source, _)| source).collect()
}

/// The scope of the pods of a containerd.
const CRI_SCOPE: &str = "containerd/k8s.io";

fn made_up_or_stated_id(run: &Run) -> Str {
    match (run.keys.first(), run.shown.birth) {
        (Some(key), _) => key.id.shared(),
        (None, Some(birth)) => match birth.generation {
            Some(generation) => format!("mntns-{generation}").into(),
            None => format!("mntns-{}-{}", birth.namespaces.mnt, birth.born_at.0).into(),
        },
        (None, None) => format!("instance-{}", run.instance).into(),
    }
}

/// Whose a container is that nobody vouches for: its creator's, by what the kernel showed at birth.
fn domain_of(run: &Run, host: Host) -> Domain {
    match run.shown.birth {
        Some(birth) if birth.uid != 0 || birth.namespaces.user != host.namespaces.user => Domain::User(birth.uid),
        _ => Domain::Host,
    }
}

/// The times for which its numbers are its own: of its namespaces and cgroup, and of its init pid.
fn intervals(run: &Run, container: &Container, context: Context<'_>) -> (Interval, Interval) {
    // A start time in ticks is up to 10 ms early: too early for a number that another just left. So it is taken late.
    let task_start = run.task.map(TaskId::started_by);
    let opened = run.shown.birth.map(|birth| birth.born_at).or(task_start).unwrap_or(run.first_fact_at);
    let init_opened = task_start.map_or(opened, |start| start.min(opened));
    let ended_at = container.exited_at.filter(|_| container.state.is_over());
    // Init's end does not close the namespaces for the others in its cgroup; when the cgroup is empty all have gone.
    // Where no cgroup of its own tells, the end of a pid namespace's init takes everybody along.
    let has_cgroup = container.cgroup.id.is_some_and(|id| id != context.host.cgroup_id);
    // An end is an event of the container's own, so its moment still belongs to it; another's birth does not.
    let after = |end: BootTime| BootTime(end.0.saturating_add(1));
    let told = match ended_at {
        Some(ended_at) if has_cgroup && context.live.contains(Kernel) => {
            let seen = context.cgroup.and_then(|cgroup| cgroup.emptied_after(run, opened, ended_at));
            run.shown.emptied_at.into_iter().chain(seen).min().map(|emptied_at| emptied_at.max(ended_at))
        }
        ended_at => ended_at,
    };
    let closed = told.map(after).into_iter().chain(run.shown.gone_at).min().unwrap_or(BootTime::MAX);
    let init_closed = ended_at.map(after).into_iter().chain(run.shown.pid_reused_at).min().unwrap_or(BootTime::MAX);
    (Interval { opened, closed }, Interval { opened: init_opened, closed: init_closed })
}

/// How it ended is the kernel's word; that the out-of-memory killer did it, others may know better.
fn merged_exit(said: &mut Said<'_>, shown: Option<Exit>) -> Option<Exit> {
    let exit = said.shown_or(shown, Field::exit, |said| said.exit)?;
    let oom = exit.oom.or_else(|| said.pick_in(Field::exit.order(), "exit.oom", |said| said.exit.as_ref()?.oom));
    Some(Exit { oom, ..exit })
}

fn merged_cgroup(said: &mut Said<'_>, shown: Option<u64>, seen: Option<&CgroupSeen>) -> Cgroup {
    let stated_id = said.pick(Field::cgroup, |said| said.cgroup.as_ref()?.id);
    let id = shown.or(stated_id);
    if shown.is_some() {
        said.note("cgroup.id", Kernel);
    }
    Cgroup {
        id,
        path: seen
            .and_then(|seen| seen.path.clone())
            .or_else(|| said.pick_in(BUNDLE_FIRST, "cgroup.path", |said| said.cgroup.as_ref()?.path.clone())),
        v1_path: said.pick_in(BUNDLE_FIRST, "cgroup.v1_path", |said| said.cgroup.as_ref()?.v1_path.clone()),
    }
}

fn merged_runtime(said: &mut Said<'_>) -> Runtime {
    let order = Field::runtime.order();
    let name = said.pick_in(order, "runtime.name", |said| said.runtime.as_ref()?.name.clone());
    let namespace = said.pick_in(order, "runtime.namespace", |said| said.runtime.as_ref()?.namespace.clone());
    let handler = said.pick_in(order, "runtime.handler", |said| said.runtime.as_ref()?.handler.clone());
    let oci = said.pick_in(BINARY_FIRST, "runtime.oci", |said| said.runtime.as_ref()?.oci.clone());
    // Who manages a container is in its bundle: where nobody is, it was run by hand.
    Runtime { name: name.or_else(|| oci.clone()), namespace, handler, oci }
}

fn merged_image(said: &mut Said<'_>) -> Option<Image> {
    let image = Image {
        name: said.pick_in(KUBERNETES_FIRST, "image.name", |said| said.image.as_ref()?.name.clone()),
        id: said.pick_in(Field::image.order(), "image.id", |said| said.image.as_ref()?.id.clone()),
        digest: said.pick_in(Field::image.order(), "image.digest", |said| said.image.as_ref()?.digest.clone()),
    };
    (image != Image::default()).then_some(image)
}

fn merged_details(said: &mut Said<'_>, look: Option<&Look>, former: Option<&Arc<Details>>) -> Arc<Details> {
    let runtimes = Field::details.order();
    let details = Details {
        hostname: said.pick_in(runtimes, "hostname", |said| said.details.as_ref()?.hostname.clone()),
        restart_count: said.pick_in(KUBERNETES_FIRST, "restart_count", |said| said.details.as_ref()?.restart_count),
        health: said.pick_in(KUBERNETES_FIRST, "health", |said| said.details.as_ref()?.health),
        privileged: said.pick_in(runtimes, "privileged", |said| said.details.as_ref()?.privileged),
        ports: said.pick_in(KUBERNETES_FIRST, "ports", |said| said.details.as_ref()?.ports.clone()),
        addresses: said.pick_in(runtimes, "addresses", |said| said.details.as_ref()?.addresses.clone()),
        mounts: said.pick_in(runtimes, "mounts", |said| said.details.as_ref()?.mounts.clone()),
        resources: said.pick_in(KUBERNETES_FIRST, "resources", |said| said.details.as_ref()?.resources.clone()),
        command: look.and_then(|look| said.seen("command", look.command.clone())),
        env: said.pick_in(runtimes, "env", |said| said.details.as_ref()?.env.clone()),
    };
    // Most changes of a container change nothing here.
    match former {
        Some(former) if **former == details => Arc::clone(former),
        _ if details == Details::default() => Details::nothing(),
        _ => Arc::new(details),
    }
}

fn merged_pod(said: &mut Said<'_>) -> Option<Pod> {
    let order = Field::pod.order();
    let pod = Pod {
        name: said.pick_in(order, "pod.name", |said| said.pod.as_ref()?.name.clone()),
        namespace: said.pick_in(order, "pod.namespace", |said| said.pod.as_ref()?.namespace.clone()),
        uid: said.pick_in(order, "pod.uid", |said| said.pod.as_ref()?.uid.clone()),
        sandbox_id: said.pick_in(RUNTIME_FIRST, "pod.sandbox_id", |said| said.pod.as_ref()?.sandbox_id.clone()),
        labels: said.pick_in(order, "pod.labels", |said| said.pod.as_ref()?.labels.clone()),
        annotations: said.pick_in(order, "pod.annotations", |said| said.pod.as_ref()?.annotations.clone()),
        owner: said.pick_in(order, "pod.owner", |said| said.pod.as_ref()?.owner.clone()),
    };
    (pod != Pod::default()).then_some(pod)
}
