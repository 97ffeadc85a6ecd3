//! What is known about every container of podman's: pure, no IO.
//!
//! There are two witnesses. Podman's *service* tells all there is, while it runs, which mostly it does not. Podman's
//! *files* (conmon's command line, its store, the bundle) tell of each container that runs, at any time. Both speak about
//! the same container, under one key and by one statement: what the service says, and where it says nothing, what the
//! files say.
//!
//! ```text
//!  files    ── found ──────────────────────────▶ ┐
//!  service  ── listed, event, inspected ───────▶ ├─ one entry per container ─▶ facts, and wishes to inspect
//!                                                ┘
//! ```
//!
//! A container is not stated before its scope is known, which an event does not tell. The ledger outlives connections:
//! a service that ends takes nothing back.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::answer::{self, Told};
use super::event::{Event, Happened};
use crate::container::{
    ContainerId, ContainerKey, Details, Domain, Image, Kind, Namespaces, Pod, Runtime, State, Str, TaskId,
};
use crate::fact::{Fact, Source, Statement, What};
use crate::time::BootTime;

/// A container that was made is about to be started, mostly. Podman holds its lock meanwhile, so that whoever asks waits
/// for whatever the start waits for; only a container that nobody starts for so long is asked about.
pub(super) const AFTER_CREATION: Duration = Duration::from_secs(2);
/// Podman writes down what came of a health check after the check has ended.
const AFTER_CHECK: Duration = Duration::from_millis(500);
/// Containers that are remembered. More are left out: they are known to the kernel and by their bundle.
const MAX_ENTRIES: usize = 100_000;

/// A container of podman's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) domain: Domain,
    pub(super) id: ContainerId,
}

/// A process that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Init {
    pub(super) task: TaskId,
    pub(super) namespaces: Namespaces,
}

/// What podman's files told about a running container.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Found {
    pub(super) scope: Str,
    pub(super) statement: Statement,
}

/// A running container of which podman's files told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) name: Name,
    pub(super) task: TaskId,
    pub(super) bundle: Str,
    /// Its human name.
    pub(super) called: Option<Str>,
}

/// Ask the service about a container, after a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inspect {
    pub(super) name: Name,
    pub(super) after: Duration,
}

/// The containers.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: HashMap<Name, Entry>,
    /// Pods by their podman ids, as far as they were told: what belongs to a pod's containers, too.
    pods: HashMap<(Domain, Str), Pod>,
}

#[derive(Debug, Default)]
struct Entry {
    found: Option<Found>,
    served: Option<Served>,
    stated: Option<(Str, Statement)>,
    /// Whether a health check may be under way.
    is_checked: bool,
    /// The latest moment that was stated; what is stated last must never look older than what it replaces.
    at: BootTime,
}

/// What a service told.
#[derive(Debug)]
struct Served {
    by: Arc<Path>,
    scope: Option<Str>,
    pid: Option<u32>,
    is_inspected: bool,
    statement: Statement,
}

impl Ledger {
    /// Podman's files told about a container.
    pub(super) fn found(&mut self, name: Name, at: BootTime, found: Found) -> Vec<Fact> {
        if !self.has_room(&name) {
            return vec![];
        }
        self.entries.entry(name.clone()).or_default().found = Some(found);
        self.state(&name, at)
    }

    /// The containers whose files were read, with their init processes.
    pub(super) fn all_found(&self) -> Vec<(Name, TaskId)> {
        let found = self.entries.iter().filter_map(|(name, entry)| {
            let task = entry.found.as_ref()?.statement.task?;
            Some((name.clone(), task))
        });
        found.collect()
    }

    /// Root's containers whose files were read, with what they are called.
    pub(super) fn all_named(&self) -> Vec<Named> {
        let named = self.entries.iter().filter(|(name, _)| name.domain == Domain::Host).filter_map(|(name, entry)| {
            let Statement { task, bundle, name: called, .. } = &entry.found.as_ref()?.statement;
            Some(Named { name: name.clone(), task: (*task)?, bundle: bundle.clone()?, called: called.clone() })
        });
        named.collect()
    }

    /// Whether there is any container of which files told: root's, or users'.
    pub(super) fn has_found(&self, of_users: bool) -> bool {
        let is_wanted = |name: &Name| matches!(name.domain, Domain::User(_)) == of_users;
        self.entries.iter().any(|(name, entry)| is_wanted(name) && entry.found.is_some())
    }

    /// A process has ended: what its container's files told is forgotten. Nothing is taken back, for its end does not make
    /// it untrue.
    pub(super) fn forget(&mut self, task: TaskId) {
        let is_its = |found: &Found| found.statement.task == Some(task);
        self.entries.retain(|_, entry| {
            if entry.found.as_ref().is_some_and(is_its) {
                entry.found = None;
            }
            entry.found.is_some() || entry.served.is_some()
        });
    }

    /// A service's whole list, for its domain. `init` finds the process with a pid.
    pub(super) fn listed(
        &mut self,
        by: &Arc<Path>,
        domain: Domain,
        at: BootTime,
        rows: Vec<(ContainerId, Told)>,
        mut init: impl FnMut(u32) -> Option<Init>,
    ) -> (Vec<Fact>, Vec<Inspect>) {
        self.learn_pods(domain, &rows);
        let (mut facts, mut wishes) = (vec![], vec![]);
        let mut present = std::collections::HashSet::with_capacity(rows.len());
        for (id, told) in rows {
            let name = Name { domain, id };
            if !self.has_room(&name) {
                continue;
            }
            let entry = self.entries.entry(name.clone()).or_default();
            let known = entry.served.take();
            let served = match known {
                // The list tells less than what is known, but what it tells is newer.
                Some(known) if known.is_inspected && known.pid == told.pid && !known.began_anew(&told) => {
                    known.refreshed(by, told)
                }
                _ => {
                    wishes.push(Inspect { name: name.clone(), after: Duration::ZERO });
                    Served::new(by, told, &mut init)
                }
            };
            entry.served = Some(served);
            facts.extend(self.state(&name, at));
            present.insert(name);
        }
        let mine = |name: &Name, entry: &Entry| {
            name.domain == domain && entry.served.as_ref().is_some_and(|served| served.by == *by)
        };
        let gone: Vec<Name> = self
            .entries
            .iter()
            .filter(|(name, entry)| mine(name, entry) && !present.contains(*name))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            facts.extend(self.removed(&name, at));
        }
        (facts, wishes)
    }

    /// The service told all about a container. Nothing to do if it has been removed meanwhile.
    pub(super) fn inspected(
        &mut self,
        by: &Arc<Path>,
        name: &Name,
        at: BootTime,
        told: Told,
        mut init: impl FnMut(u32) -> Option<Init>,
    ) -> Vec<Fact> {
        let Some(entry) = self.entries.get_mut(name) else { return vec![] };
        let former = entry.served.take();
        let mut served = Served::new(by, told, &mut init);
        served.is_inspected = true;
        if let Some(former) = former {
            // A list tells a pod's name, which an inspection does not.
            fill_pod(&mut served.statement.pod, former.statement.pod.as_ref());
            if former.pid == served.pid {
                served.statement.task = served.statement.task.or(former.statement.task);
                served.statement.namespaces = served.statement.namespaces.or(former.statement.namespaces);
            }
        }
        entry.served = Some(served);
        self.state(name, at)
    }

    /// Asking about a container brought nothing but a reason.
    pub(super) fn not_inspected(&mut self, name: &Name, at: BootTime, reason: Str) -> Vec<Fact> {
        let Some(served) = self.entries.get_mut(name).and_then(|entry| entry.served.as_mut()) else { return vec![] };
        served.statement.missing.retain(|(field, _)| *field != "details");
        served.statement.missing.push(("details", reason));
        self.state(name, at)
    }

    /// Something happened.
    pub(super) fn happened(&mut self, by: &Arc<Path>, domain: Domain, event: Event) -> (Vec<Fact>, Option<Inspect>) {
        let Event { id, at, what } = event;
        let name = Name { domain, id };
        let wish = |after| Some(Inspect { name: name.clone(), after });
        if what == Happened::Removed {
            return (self.removed(&name, at), None);
        }
        if !self.has_room(&name) {
            return (vec![], None);
        }
        let entry = self.entries.entry(name.clone()).or_default();
        let known = entry.served.is_some();
        let served = entry.served.get_or_insert_with(|| Served::unknown(by));
        let statement = &mut served.statement;
        match what {
            Happened::Made => return (vec![], wish(AFTER_CREATION)),
            Happened::Initialized => return (vec![], wish(AFTER_CREATION)),
            Happened::Started => return (vec![], wish(Duration::ZERO)),
            Happened::Paused => statement.state = Some(State::Paused),
            Happened::Unpaused => statement.state = Some(State::Running),
            Happened::Died { code } => {
                // Told of a former run when the present one was seen already.
                if statement.started_at.is_some_and(|started| started > at) {
                    return (vec![], None);
                }
                statement.state = Some(State::Exited);
                statement.exited_at = Some(at);
                statement.exit = code.map(|code| answer::exit(code, None));
                served.pid = None;
            }
            Happened::Renamed(new) => statement.name = new.or(statement.name.take()),
            // Its end is the end of something executed, if it takes any time at all.
            Happened::Checked => {
                entry.is_checked = true;
                return (vec![], wish(AFTER_CHECK));
            }
            Happened::ExecDied if std::mem::take(&mut entry.is_checked) => return (vec![], wish(AFTER_CHECK)),
            Happened::Removed | Happened::ExecDied => return (vec![], None),
        }
        // Of one that nobody heard of, an event alone tells too little.
        let inspect = if known { None } else { wish(Duration::ZERO) };
        (self.state(&name, at), inspect)
    }

    /// Whether a pod is still to be asked for.
    pub(super) fn lacks_pod(&self, domain: Domain, id: &str) -> bool {
        !self.pods.contains_key(&(domain, id.into()))
    }

    /// A pod was asked for. Returns statements about its containers.
    pub(super) fn pod_told(&mut self, domain: Domain, id: Str, at: BootTime, pod: Pod) -> Vec<Fact> {
        if self.pods.len() >= MAX_ENTRIES {
            self.pods.clear();
        }
        self.pods.insert((domain, Str::clone(&id)), pod);
        let of_pod = |entry: &Entry| {
            let pod = entry.served.as_ref().and_then(|served| served.statement.pod.as_ref());
            pod.is_some_and(|pod| pod.uid.as_ref() == Some(&id))
        };
        let names: Vec<Name> = self
            .entries
            .iter()
            .filter(|(name, entry)| name.domain == domain && of_pod(entry))
            .map(|(name, _)| name.clone())
            .collect();
        names.iter().flat_map(|name| self.state(name, at)).collect()
    }

    /// A pod's labels are those of its infra container, whose id is what its other containers call their sandbox.
    fn learn_pods(&mut self, domain: Domain, rows: &[(ContainerId, Told)]) {
        for (id, told) in rows {
            if told.statement.kind == Some(Kind::Sandbox)
                && let Some(pod) = &told.statement.pod
                && let Some(uid) = &pod.uid
                && self.pods.len() < MAX_ENTRIES
            {
                let pod =
                    Pod { sandbox_id: Some(id.as_str().into()), labels: told.statement.labels.clone(), ..pod.clone() };
                self.pods.insert((domain, Str::clone(uid)), pod);
            }
        }
    }

    fn removed(&mut self, name: &Name, at: BootTime) -> Vec<Fact> {
        let Some(entry) = self.entries.remove(name) else { return vec![] };
        let withdrawn = entry.stated.map(|(scope, _)| withdrawn(name, scope, at.max(entry.at)));
        withdrawn.into_iter().collect()
    }

    fn has_room(&self, name: &Name) -> bool {
        self.entries.len() < MAX_ENTRIES || self.entries.contains_key(name)
    }

    /// States what is known about a container, if that is new.
    fn state(&mut self, name: &Name, at: BootTime) -> Vec<Fact> {
        let pods = &self.pods;
        let Some(entry) = self.entries.get_mut(name) else { return vec![] };
        let Some(scope) = entry.scope() else { return vec![] };
        let mut statement = entry.statement();
        if let Some(uid) = statement.pod.as_ref().and_then(|pod| pod.uid.clone()) {
            fill_pod(&mut statement.pod, pods.get(&(name.domain, uid)));
        }
        entry.at = entry.at.max(at);
        let mut facts = vec![];
        match &entry.stated {
            Some((former_scope, former)) if *former_scope == scope && *former == statement => return vec![],
            Some((former, _)) if *former != scope => facts.push(withdrawn(name, Str::clone(former), entry.at)),
            _ => {}
        }
        let key = ContainerKey { domain: name.domain, scope: Str::clone(&scope), id: name.id.clone() };
        entry.stated = Some((scope, statement.clone()));
        facts.push(fact(entry.at, What::Stated { key, statement: Box::new(statement) }));
        facts
    }
}

impl Entry {
    /// conmon was told where the runtime keeps its state; the service knows only which runtime it is.
    fn scope(&self) -> Option<Str> {
        let found = self.found.as_ref().map(|found| Str::clone(&found.scope));
        let stated = || Some(Str::clone(&self.stated.as_ref()?.0));
        // Files are forgotten with their process, and the key stays.
        found.or_else(stated).or_else(|| self.served.as_ref()?.scope.clone())
    }

    fn statement(&self) -> Statement {
        let (found, served) = (self.found.as_ref().map(|found| &found.statement), &self.served);
        let Some(served) = served else { return found.cloned().unwrap_or_default() };
        let mut statement = served.statement.clone();
        let Some(found) = found else { return statement };
        if served.is_before(found) {
            // The files are of a later run.
            statement.task = None;
            statement.namespaces = None;
            statement.state = None;
            statement.started_at = None;
            statement.exited_at = None;
            statement.exit = None;
        }
        fill(&mut statement, found);
        statement
    }
}

impl Served {
    fn unknown(by: &Arc<Path>) -> Self {
        Served { by: Arc::clone(by), scope: None, pid: None, is_inspected: false, statement: Statement::default() }
    }

    fn new(by: &Arc<Path>, told: Told, init: &mut impl FnMut(u32) -> Option<Init>) -> Self {
        let Told { scope, pid, mut statement, .. } = told;
        let init = pid.and_then(init);
        statement.task = init.map(|init| init.task);
        statement.namespaces = init.map(|init| init.namespaces);
        Served { by: Arc::clone(by), scope, pid, is_inspected: false, statement }
    }

    /// Whether it was started again since: a list tells this to the second.
    fn began_anew(&self, told: &Told) -> bool {
        let second = |at: Option<BootTime>| at.map(|at| at.to_unix().as_secs());
        second(self.statement.started_at).is_some_and(|known| Some(known) < second(told.statement.started_at))
    }

    /// With what a list tells of the same run.
    fn refreshed(mut self, by: &Arc<Path>, told: Told) -> Self {
        let told = told.statement;
        self.by = Arc::clone(by);
        let known = &mut self.statement;
        known.state = told.state.or(known.state);
        known.name = told.name.or(known.name.take());
        known.exited_at = if told.exited_at.is_some() { known.exited_at.or(told.exited_at) } else { None };
        known.exit = known.exit.filter(|exit| told.exit.is_some_and(|told| told.code == exit.code)).or(told.exit);
        fill_pod(&mut known.pod, told.pod.as_ref());
        self
    }

    /// Whether this is about a run before the one whose files were found.
    fn is_before(&self, found: &Statement) -> bool {
        let Some(task) = found.task else { return false };
        match (self.statement.task, self.statement.exited_at) {
            (Some(known), _) => known.start_ticks < task.start_ticks,
            (None, Some(exited_at)) => exited_at < task.started_from(),
            (None, None) => false,
        }
    }
}

/// Fills what `statement` leaves open. A new field does not compile until it has its line here.
fn fill(statement: &mut Statement, from: &Statement) {
    let Statement {
        kind,
        task,
        creator,
        namespaces,
        state,
        name,
        runtime,
        image,
        pod,
        labels,
        annotations,
        details,
        host_network,
        cgroup,
        bundle,
        created_at,
        started_at,
        exited_at,
        exit,
        missing,
    } = from.clone();
    let into = statement;
    into.kind = into.kind.or(kind);
    into.task = into.task.or(task);
    into.creator = into.creator.or(creator);
    into.namespaces = into.namespaces.or(namespaces);
    into.state = into.state.or(state);
    into.name = into.name.take().or(name);
    into.labels = into.labels.take().or(labels);
    into.annotations = into.annotations.take().or(annotations);
    into.host_network = into.host_network.or(host_network);
    into.cgroup = into.cgroup.take().or(cgroup);
    into.bundle = into.bundle.take().or(bundle);
    into.created_at = into.created_at.or(created_at);
    into.started_at = into.started_at.or(started_at);
    into.exited_at = into.exited_at.or(exited_at);
    into.exit = into.exit.or(exit);
    fill_pod(&mut into.pod, pod.as_ref());
    if let Some(image) = image {
        let Image { name, id, digest } = into.image.get_or_insert_default();
        *name = name.take().or(image.name);
        *id = id.take().or(image.id);
        *digest = digest.take().or(image.digest);
    }
    if let Some(runtime) = runtime {
        let Runtime { name, namespace, handler, oci } = into.runtime.get_or_insert_default();
        *name = name.take().or(runtime.name);
        *namespace = namespace.take().or(runtime.namespace);
        *handler = handler.take().or(runtime.handler);
        *oci = oci.take().or(runtime.oci);
    }
    if let Some(details) = details {
        fill_details(into.details.get_or_insert_default(), *details);
    }
    // What the service told is not missing, though the files lack it.
    if into.labels.is_none() {
        into.missing.extend(missing);
    }
}

fn fill_details(into: &mut Details, from: Details) {
    let Details { hostname, restart_count, health, privileged, ports, addresses, mounts, resources, command, env } =
        from;
    into.hostname = into.hostname.take().or(hostname);
    into.restart_count = into.restart_count.or(restart_count);
    into.health = into.health.or(health);
    into.privileged = into.privileged.or(privileged);
    into.ports = into.ports.take().or(ports);
    into.addresses = into.addresses.take().or(addresses);
    into.mounts = into.mounts.take().or(mounts);
    into.resources = into.resources.take().or(resources);
    into.command = into.command.take().or(command);
    into.env = into.env.take().or(env);
}

fn fill_pod(into: &mut Option<Pod>, from: Option<&Pod>) {
    let Some(from) = from else { return };
    let Pod { name, namespace, uid, sandbox_id, labels, annotations, owner } = from.clone();
    let into = into.get_or_insert_default();
    into.name = into.name.take().or(name);
    into.namespace = into.namespace.take().or(namespace);
    into.uid = into.uid.take().or(uid);
    into.sandbox_id = into.sandbox_id.take().or(sandbox_id);
    into.labels = into.labels.take().or(labels);
    into.annotations = into.annotations.take().or(annotations);
    into.owner = into.owner.take().or(owner);
}

fn withdrawn(name: &Name, scope: Str, at: BootTime) -> Fact {
    fact(at, What::Withdrawn { key: ContainerKey { domain: name.domain, scope, id: name.id.clone() } })
}

fn fact(at: BootTime, what: What) -> Fact {
    Fact { source: Source::Podman, at, what }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOST: Domain = Domain::Host;

    fn by() -> Arc<Path> {
        Path::new("/run/podman/podman.sock").into()
    }

    fn id() -> ContainerId {
        ContainerId::new("c1").unwrap()
    }

    fn name() -> Name {
        Name { domain: HOST, id: id() }
    }

    fn task(pid: u32) -> TaskId {
        TaskId { pid, start_ticks: u64::from(pid) * 100 }
    }

    fn init(pid: u32) -> Option<Init> {
        Some(Init { task: task(pid), namespaces: Namespaces { mnt: pid, ..Namespaces::default() } })
    }

    fn seconds(seconds: u64) -> BootTime {
        BootTime(seconds * 1_000_000_000)
    }

    fn found(pid: u32, scope: &str) -> Found {
        let missing = vec![("labels", "nobody".into())];
        let statement =
            Statement { name: Some("of files".into()), task: Some(task(pid)), missing, ..Statement::default() };
        Found { scope: scope.into(), statement }
    }

    fn told(pid: u32, started_at: u64) -> Told {
        let statement = Statement {
            name: Some("of the service".into()),
            state: Some(State::Running),
            labels: Some([(Str::from("app"), Str::from("web"))].into_iter().collect()),
            started_at: Some(seconds(started_at)),
            ..Statement::default()
        };
        Told { scope: Some("oci/run/crun".into()), pid: Some(pid), statement, left_out: 0 }
    }

    fn event(at: u64, what: Happened) -> Event {
        Event { id: id(), at: seconds(at), what }
    }

    #[track_caller]
    fn stated(facts: &[Fact]) -> (&str, &Statement) {
        match facts {
            [Fact { what: What::Stated { key, statement }, .. }] => (&key.scope, statement),
            other => panic!("one statement, not {other:?}"),
        }
    }

    fn inspected(ledger: &mut Ledger, at: u64, told: Told) -> Vec<Fact> {
        ledger.inspected(&by(), &name(), seconds(at), told, init)
    }

    #[test]
    fn both_witnesses_speak_with_one_voice() {
        let mut ledger = Ledger::default();
        let facts = ledger.found(name(), seconds(1), found(7, "oci/x"));
        assert_eq!(stated(&facts).1.missing.len(), 1);
        assert_eq!(ledger.found(name(), seconds(2), found(7, "oci/x")), [], "nothing new");
        // conmon knows better where the runtime keeps its state, so that the key stays.
        let (_, wish) = ledger.happened(&by(), HOST, event(2, Happened::Started));
        assert_eq!(wish.map(|wish| wish.after), Some(Duration::ZERO));
        let facts = inspected(&mut ledger, 3, told(7, 1));
        let (scope, statement) = stated(&facts);
        assert_eq!((scope, statement.name.as_deref()), ("oci/x", Some("of the service")));
        assert!(statement.labels.is_some() && statement.missing.is_empty(), "{statement:?}");
        // Files are forgotten with their process; what the service tells stays, and so does the key.
        ledger.forget(task(7));
        let (facts, _) = ledger.happened(&by(), HOST, event(4, Happened::Died { code: Some(3) }));
        let (scope, statement) = stated(&facts);
        assert_eq!((scope, statement.exit.map(|exit| exit.code)), ("oci/x", Some(3)));
        let (facts, _) = ledger.happened(&by(), HOST, event(1, Happened::Removed));
        assert!(
            matches!(&facts[..], [Fact { what: What::Withdrawn { .. }, at, .. }] if *at == seconds(4)),
            "{facts:?}"
        );
    }

    #[test]
    fn files_of_a_later_run_outdo_what_the_service_told_of_a_former_one() {
        let mut ledger = Ledger::default();
        ledger.happened(&by(), HOST, event(1, Happened::Started));
        inspected(&mut ledger, 2, told(7, 1));
        ledger.happened(&by(), HOST, event(5, Happened::Died { code: Some(0) }));
        let facts = ledger.found(name(), seconds(9), found(8, "oci/run/crun"));
        let (_, statement) = stated(&facts);
        assert_eq!((statement.task, statement.state, statement.exit), (Some(task(8)), None, None));
        assert!(statement.labels.is_some(), "a container keeps its labels");
        // The service catches up.
        let facts = inspected(&mut ledger, 10, told(8, 8));
        assert_eq!(stated(&facts).1.state, Some(State::Running));
        // What comes late about the former run is not this one's end.
        let (facts, _) = ledger.happened(&by(), HOST, event(5, Happened::Died { code: Some(0) }));
        assert_eq!(facts, []);
    }

    #[test]
    fn a_container_that_is_being_made_is_asked_about_later() {
        let mut ledger = Ledger::default();
        for (what, after) in [
            (Happened::Made, AFTER_CREATION),
            (Happened::Initialized, AFTER_CREATION),
            (Happened::Started, Duration::ZERO),
        ] {
            let (facts, wish) = ledger.happened(&by(), HOST, event(1, what));
            assert_eq!((facts, wish), (vec![], Some(Inspect { name: name(), after })));
        }
        assert_eq!(ledger.happened(&by(), HOST, event(1, Happened::ExecDied)), (vec![], None));
    }

    #[test]
    fn a_list_is_stated_at_once_and_each_container_inspected_once() {
        let mut ledger = Ledger::default();
        let rows = |pid| vec![(id(), Told { scope: None, ..told(pid, u64::from(pid)) })];
        let (facts, wishes) = ledger.listed(&by(), HOST, seconds(1), rows(7), init);
        assert_eq!((facts, wishes.len()), (vec![], 1), "where its runtime keeps its state is not known yet");
        inspected(&mut ledger, 2, told(7, 7));
        let (facts, wishes) = ledger.listed(&by(), HOST, seconds(3), rows(7), init);
        assert_eq!((facts, wishes.len()), (vec![], 0), "nothing new");
        let (facts, wishes) = ledger.listed(&by(), HOST, seconds(4), rows(8), init);
        assert_eq!((stated(&facts).1.task, wishes.len()), (Some(task(8)), 1), "started again while nobody listened");
        // Another service's list, or another domain's, says nothing about this one's.
        let other: Arc<Path> = Path::new("/other").into();
        assert_eq!(ledger.listed(&other, HOST, seconds(5), vec![], init).0, []);
        assert_eq!(ledger.listed(&by(), Domain::User(7), seconds(5), vec![], init).0, []);
        let (facts, _) = ledger.listed(&by(), HOST, seconds(6), vec![], init);
        assert!(matches!(&facts[..], [Fact { what: What::Withdrawn { .. }, .. }]), "{facts:?}");
    }

    #[test]
    fn a_pods_name_reaches_its_containers() {
        let mut ledger = Ledger::default();
        ledger.happened(&by(), HOST, event(1, Happened::Started));
        let of_pod = Some(Pod { uid: Some("p1".into()), ..Pod::default() });
        let in_pod = Told { statement: Statement { pod: of_pod, ..told(7, 1).statement }, ..told(7, 1) };
        inspected(&mut ledger, 2, in_pod);
        assert!(ledger.lacks_pod(HOST, "p1") && ledger.lacks_pod(Domain::User(1), "p1"));
        let pod = Pod { name: Some("front".into()), uid: Some("p1".into()), ..Pod::default() };
        let facts = ledger.pod_told(HOST, "p1".into(), seconds(3), pod);
        let pod = stated(&facts).1.pod.clone().unwrap();
        assert_eq!(pod.name.as_deref(), Some("front"));
        assert!(!ledger.lacks_pod(HOST, "p1"));
    }

    proptest! {
        /// Whatever the order: moments never go back, and there is never more than one key.
        #[test]
        fn any_order_is_survived(steps in prop::collection::vec((0..12_u8, 1..4_u32, 0..50_u64), 0..60)) {
            let mut ledger = Ledger::default();
            let (mut last, mut standing) = (BootTime::ZERO, None);
            for (step, pid, at) in steps {
                let happened = |what| event(at, what);
                let facts = match step {
                    0 => ledger.found(name(), seconds(at), found(pid, if pid == 1 { "oci/x" } else { "oci/y" })),
                    1 => ledger.listed(&by(), HOST, seconds(at), vec![(id(), told(pid, at))], init).0,
                    2 => ledger.listed(&by(), HOST, seconds(at), vec![], init).0,
                    3 => inspected(&mut ledger, at, told(pid, at)),
                    4 => ledger.happened(&by(), HOST, happened(Happened::Started)).0,
                    5 => ledger.happened(&by(), HOST, happened(Happened::Died { code: Some(1) })).0,
                    6 => ledger.happened(&by(), HOST, happened(Happened::Paused)).0,
                    7 => ledger.happened(&by(), HOST, happened(Happened::Renamed(None))).0,
                    8 => ledger.not_inspected(&name(), seconds(at), "because".into()),
                    9 => {
                        ledger.forget(task(pid));
                        if ledger.entries.is_empty() {
                            // What was stated stays, and is the collection's to forget.
                            (last, standing) = (BootTime::ZERO, None);
                        }
                        vec![]
                    }
                    10 => ledger.happened(&by(), HOST, happened(Happened::Removed)).0,
                    _ => ledger.happened(&by(), HOST, happened(Happened::Made)).0,
                };
                for fact in facts {
                    let key = match &fact.what {
                        What::Stated { key, .. } => {
                            prop_assert!(standing.as_ref().is_none_or(|standing| standing == key), "two keys stand");
                            prop_assert!(standing.is_none() || fact.at >= last);
                            last = fact.at;
                            Some(key.clone())
                        }
                        What::Withdrawn { key } => {
                            prop_assert_eq!(standing.as_ref(), Some(key));
                            None
                        }
                        other => panic!("{other:?}"),
                    };
                    standing = key;
                }
            }
        }
    }
}
