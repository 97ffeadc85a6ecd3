//! What readers look up in: the whole collection at one sequence number.
//!
//! A [`Reader`] holds a view and, at each look-up, makes sure by one atomic load that it is the newest. Look-ups never
//! lock and never allocate, and return references into the view, which live as long as the reader is not asked again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use imbl::OrdMap;

use super::table::Table;
use super::timeline::{Containers, Interval, Membership, Timeline};
use crate::container::{Container, Namespaces, Str};
use crate::selector::Selector;
use crate::time::BootTime;

/// What a number that belongs to one container at a time means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// This container.
    Container(&'a Container),
    /// The host itself.
    Host,
    /// Nothing that the tracker knows: a container that it missed, or one long gone.
    Unknown,
}

impl<'a> Lookup<'a> {
    /// The container, if it is one.
    pub fn container(self) -> Option<&'a Container> {
        match self {
            Lookup::Container(container) => Some(container),
            Lookup::Host | Lookup::Unknown => None,
        }
    }
}

/// What a number that several containers may share means.
#[derive(Clone, Debug)]
pub enum Group<'a> {
    /// These containers, never none.
    Containers(Containers<'a>),
    /// The host itself.
    Host,
    /// Nothing that the tracker knows.
    Unknown,
}

impl<'a> Group<'a> {
    /// The containers; none for the host and the unknown.
    pub fn containers(self) -> impl Iterator<Item = &'a Container> {
        match self {
            Group::Containers(containers) => Some(containers).into_iter().flatten(),
            Group::Host | Group::Unknown => None.into_iter().flatten(),
        }
    }

    fn of(containers: Containers<'a>) -> Self {
        match containers.clone().next() {
            Some(_) => Group::Containers(containers),
            None => Group::Unknown,
        }
    }
}

/// What an id or the beginning of one means.
#[derive(Clone, Debug)]
pub enum ById<'a> {
    /// The latest run of the one container with this id or prefix.
    Found(&'a Container),
    /// More than one container: these.
    Ambiguous(Vec<&'a Container>),
    /// None.
    Unknown,
}

/// The host's own namespaces: what answers [`Lookup::Host`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Of pid 1 in the host's pid namespace.
    pub namespaces: Namespaces,
    /// Root of the cgroup v2 hierarchy; 0 where it is not mounted.
    pub cgroup_id: u64,
}

/// The collection at one sequence number. Cloning shares everything.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) sequence: u64,
    host: Host,
    mntns: Table<Timeline>,
    pids: Table<Timeline>,
    netns: Table<Membership>,
    cgroups: Table<Membership>,
    containers: OrdMap<u64, Arc<Container>>,
    ids: OrdMap<(Str, u64), Arc<Container>>,
    names: OrdMap<(Str, u64), Arc<Container>>,
    pods: OrdMap<(Str, Str, u64), Arc<Container>>,
    /// What the filter leaves out of all of the above, but for the groups, where it is marked.
    excluded: OrdMap<u64, Row>,
}

/// A container and the times for which its numbers are its own.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub container: Arc<Container>,
    /// Of its mount ns, net ns and cgroup.
    pub here: Interval,
    /// Of its init pid, which is free for others as soon as init has ended.
    pub init: Interval,
    /// The rule by which it is left out of what is published.
    pub excluded: Option<Str>,
}

impl Row {
    /// The container, unless it is left out.
    pub(crate) fn published(&self) -> Option<&Arc<Container>> {
        self.excluded.is_none().then_some(&self.container)
    }
}

/// A container that the configuration's filter leaves out of what is published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Excluded<'a> {
    /// The container.
    pub container: &'a Arc<Container>,
    /// The rule, as people are told: `exclude` and the rule's text.
    pub rule: &'a Str,
}

impl View {
    pub(crate) fn new(host: Host) -> Self {
        View {
            sequence: 0,
            host,
            mntns: Table::new(),
            pids: Table::new(),
            netns: Table::new(),
            cgroups: Table::new(),
            containers: OrdMap::new(),
            ids: OrdMap::new(),
            names: OrdMap::new(),
            pods: OrdMap::new(),
            excluded: OrdMap::new(),
        }
    }

    /// Replaces the row `before` by `after`; either may be missing.
    pub(crate) fn change(&mut self, before: Option<&Row>, after: Option<&Row>) {
        let is_published = |row: &&Row| row.excluded.is_none();
        match before {
            Some(before) if is_published(&before) => self.take_out(before, after.filter(is_published)),
            Some(excluded) => self.take_out_excluded(excluded),
            None => {}
        }
        match after {
            Some(after) if is_published(&after) => self.put_in(after),
            Some(excluded) => self.put_in_excluded(excluded),
            None => {}
        }
    }

    fn take_out(&mut self, row: &Row, after: Option<&Row>) {
        let container = &row.container;
        let instance = container.instance;
        // What stays under its key is overwritten in place, which spares half of the work of an update.
        let stays = |same: fn(&Container) -> u64, interval: fn(&Row) -> Interval| {
            after.is_some_and(|after| {
                same(&after.container) == same(container) && interval(after).opened == interval(row).opened
            })
        };
        if !stays(|c| c.namespaces.mnt.into(), |row| row.here) {
            leave_timeline(&mut self.mntns, container.namespaces.mnt.into(), instance, row.here.opened);
        }
        if !stays(|c| c.pid().unwrap_or(0).into(), |row| row.init) {
            leave_timeline(&mut self.pids, container.pid().unwrap_or(0).into(), instance, row.init.opened);
        }
        if !stays(|c| c.namespaces.net.into(), |row| row.here) {
            leave_group(&mut self.netns, container.namespaces.net.into(), instance);
        }
        if !stays(|c| c.cgroup.id.unwrap_or(0), |row| row.here) {
            leave_group(&mut self.cgroups, container.cgroup.id.unwrap_or(0), instance);
        }
        let after = after.map(|after| &after.container);
        if after.is_none() {
            self.containers.remove(&instance);
        }
        if after.is_none_or(|after| after.id != container.id) {
            self.ids.remove(&(container.id.clone(), instance));
        }
        if let Some(name) = container.name.clone().filter(|name| after.is_none_or(|a| a.name.as_ref() != Some(name))) {
            self.names.remove(&(name, instance));
        }
        if let Some((namespace, name)) =
            pod_key(container).filter(|key| after.and_then(|a| pod_key(a)).as_ref() != Some(key))
        {
            self.pods.remove(&(namespace, name, instance));
        }
    }

    fn put_in(&mut self, row: &Row) {
        let container = &row.container;
        let instance = container.instance;
        if container.namespaces.mnt != self.host.namespaces.mnt {
            enter_timeline(&mut self.mntns, container.namespaces.mnt.into(), row.here, container);
        }
        enter_timeline(&mut self.pids, container.pid().unwrap_or(0).into(), row.init, container);
        self.enter_groups(row);
        self.containers.insert(instance, Arc::clone(container));
        self.ids.insert((container.id.clone(), instance), Arc::clone(container));
        if let Some(name) = container.name.clone() {
            self.names.insert((name, instance), Arc::clone(container));
        }
        if let Some((namespace, name)) = pod_key(container) {
            self.pods.insert((namespace, name, instance), Arc::clone(container));
        }
    }

    /// Whoever shares a number with an excluded container must not be taken for its only holder.
    fn put_in_excluded(&mut self, row: &Row) {
        self.enter_groups(row);
        self.excluded.insert(row.container.instance, row.clone());
    }

    fn take_out_excluded(&mut self, row: &Row) {
        let Container { instance, namespaces, cgroup, .. } = &*row.container;
        leave_group(&mut self.netns, namespaces.net.into(), *instance);
        leave_group(&mut self.cgroups, cgroup.id.unwrap_or(0), *instance);
        self.excluded.remove(instance);
    }

    fn enter_groups(&mut self, row: &Row) {
        let container = &row.container;
        if container.namespaces.net != self.host.namespaces.net {
            enter_group(&mut self.netns, container.namespaces.net.into(), row);
        }
        if container.cgroup.id != Some(self.host.cgroup_id) {
            enter_group(&mut self.cgroups, container.cgroup.id.unwrap_or(0), row);
        }
    }

    /// Whose mount namespace has inode number `ns` now, unless it is the host's.
    pub(crate) fn holder_of_mntns(&self, ns: u32) -> Option<&Arc<Container>> {
        self.mntns.get(ns.into())?.now()
    }

    /// Who is in a cgroup now; none in the host's root. See [`Reader::by_cgroup`].
    pub(crate) fn holders_of_cgroup(&self, id: u64) -> impl Iterator<Item = &Container> {
        self.cgroups.get(id).into_iter().flat_map(|group| group.now().vouched())
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Container>> {
        self.containers.values()
    }

    pub(crate) fn excluded(&self) -> impl Iterator<Item = &Row> {
        self.excluded.values()
    }
}

fn pod_key(container: &Container) -> Option<(Str, Str)> {
    let pod = container.pod.as_ref()?;
    Some((pod.namespace.clone().unwrap_or_default(), pod.name.clone()?))
}

fn enter_timeline(table: &mut Table<Timeline>, key: u64, interval: Interval, container: &Arc<Container>) {
    if key != 0 {
        table.change(key, |timeline| {
            timeline.enter(interval, Arc::clone(container));
            !timeline.is_empty()
        });
    }
}

fn leave_timeline(table: &mut Table<Timeline>, key: u64, instance: u64, opened: BootTime) {
    if table.get(key).is_some() {
        table.change(key, |timeline| {
            timeline.leave(instance, opened);
            !timeline.is_empty()
        });
    }
}

fn enter_group(table: &mut Table<Membership>, key: u64, row: &Row) {
    if key != 0 {
        table.change(key, |group| {
            group.enter(row.here, Arc::clone(&row.container), row.excluded.is_some());
            true
        });
    }
}

fn leave_group(table: &mut Table<Membership>, key: u64, instance: u64) {
    if table.get(key).is_some() {
        table.change(key, |group| {
            group.leave(instance);
            !group.is_empty()
        });
    }
}

/// Where the writer puts views and readers find them.
#[derive(Debug)]
pub(crate) struct Published {
    // The readers' one load; stored after `view`, so that who sees the number finds that view or a later one.
    sequence: AtomicU64,
    view: ArcSwap<View>,
}

impl Published {
    pub(crate) fn new(view: View) -> Arc<Self> {
        Arc::new(Published { sequence: AtomicU64::new(view.sequence), view: ArcSwap::from_pointee(view) })
    }

    pub(crate) fn publish(&self, view: View) {
        let sequence = view.sequence;
        self.view.store(Arc::new(view));
        self.sequence.store(sequence, Ordering::Release);
    }

    pub(crate) fn load(&self) -> Arc<View> {
        self.view.load_full()
    }
}

/// One thread's look-ups. Cheap to clone: give each thread its own.
///
/// A reader that is never asked keeps the view of its last question alive; drop readers that are no longer used.
#[derive(Clone, Debug)]
pub struct Reader {
    published: Arc<Published>,
    view: Arc<View>,
}

impl Reader {
    pub(crate) fn new(published: Arc<Published>) -> Self {
        let view = published.load();
        Reader { published, view }
    }

    #[inline]
    fn view(&mut self) -> &View {
        if self.published.sequence.load(Ordering::Acquire) != self.view.sequence {
            self.refresh();
        }
        &self.view
    }

    #[cold]
    fn refresh(&mut self) {
        self.view = self.published.load();
    }

    /// Sequence number of the newest published change.
    pub fn sequence(&mut self) -> u64 {
        self.view().sequence
    }

    /// The container whose mount namespace has inode number `ns` now: also one that exited, until its last process
    /// has gone.
    #[inline]
    pub fn by_mntns(&mut self, ns: u32) -> Lookup<'_> {
        let view = self.view();
        if is_host(ns, view.host.namespaces.mnt) {
            return Lookup::Host;
        }
        found(view.mntns.get(ns.into()).and_then(Timeline::now))
    }

    /// The container whose mount namespace had inode number `ns` at an event's time.
    #[inline]
    pub fn by_mntns_at(&mut self, ns: u32, at: BootTime) -> Lookup<'_> {
        let view = self.view();
        if is_host(ns, view.host.namespaces.mnt) {
            return Lookup::Host;
        }
        found(view.mntns.get(ns.into()).and_then(|timeline| timeline.at(at)))
    }

    /// The container whose init process, in the host's pid namespace, is `pid` now.
    pub fn by_pid(&mut self, pid: u32) -> Lookup<'_> {
        found(self.view().pids.get(pid.into()).and_then(Timeline::now))
    }

    /// The container whose init process, in the host's pid namespace, was `pid` at an event's time.
    pub fn by_pid_at(&mut self, pid: u32, at: BootTime) -> Lookup<'_> {
        found(self.view().pids.get(pid.into()).and_then(|timeline| timeline.at(at)))
    }

    /// All containers that share the net namespace with inode number `ns` now.
    pub fn by_netns(&mut self, ns: u32) -> Group<'_> {
        let view = self.view();
        if is_host(ns, view.host.namespaces.net) {
            return Group::Host;
        }
        view.netns.get(ns.into()).map_or(Group::Unknown, |group| Group::of(group.now()))
    }

    /// All containers that shared the net namespace with inode number `ns` at an event's time.
    pub fn by_netns_at(&mut self, ns: u32, at: BootTime) -> Group<'_> {
        let view = self.view();
        if is_host(ns, view.host.namespaces.net) {
            return Group::Host;
        }
        view.netns.get(ns.into()).map_or(Group::Unknown, |group| Group::of(group.at(at)))
    }

    /// The containers in the cgroup with this id of the v2 hierarchy. Usually one; a container's own sub-namespaces
    /// that nobody vouches for are left out where somebody vouches for another.
    pub fn by_cgroup(&mut self, id: u64) -> Group<'_> {
        let view = self.view();
        if is_host(id, view.host.cgroup_id) {
            return Group::Host;
        }
        view.cgroups.get(id).map_or(Group::Unknown, |group| Group::of(group.now().vouched()))
    }

    /// [`Reader::by_cgroup`] at an event's time.
    pub fn by_cgroup_at(&mut self, id: u64, at: BootTime) -> Group<'_> {
        let view = self.view();
        if is_host(id, view.host.cgroup_id) {
            return Group::Host;
        }
        view.cgroups.get(id).map_or(Group::Unknown, |group| Group::of(group.at(at).vouched()))
    }

    /// The container with this id, or the only one whose id begins so; the latest run where it was restarted.
    pub fn by_id(&mut self, prefix: &str) -> ById<'_> {
        self.by_id_where(prefix, |_| true)
    }

    /// [`Reader::by_id`] among those that were there at an event's time: born, and their init not ended.
    pub fn by_id_at(&mut self, prefix: &str, at: BootTime) -> ById<'_> {
        self.by_id_where(prefix, |container| container.was_there(at))
    }

    fn by_id_where(&mut self, prefix: &str, wanted: impl Fn(&Container) -> bool) -> ById<'_> {
        let from: Str = prefix.into();
        let runs = self.view().ids.range((from, 0)..).take_while(|((id, _), _)| id.starts_with(prefix));
        let mut found: Vec<&Container> = Vec::new();
        for container in runs.map(|(_, container)| &**container).filter(|container| wanted(container)) {
            let is_same = |other: &&&mut &Container| {
                other.domain == container.domain && other.runtime.namespace == container.runtime.namespace
            };
            // Runs of one id stand side by side, the latest last; one id may mean several containers.
            let mut of_id = found.iter_mut().rev().take_while(|other| other.id == container.id);
            match of_id.find(|other| is_same(&other)) {
                Some(earlier) => *earlier = container,
                None => found.push(container),
            }
        }
        // An id that is also the beginning of others means itself.
        let exact: Vec<&Container> = found.iter().copied().filter(|container| &*container.id == prefix).collect();
        match (exact.as_slice(), found.as_slice()) {
            ([container], _) | ([], [container]) => ById::Found(container),
            ([], []) => ById::Unknown,
            ([], _) => ById::Ambiguous(found),
            _ => ById::Ambiguous(exact),
        }
    }

    /// All containers with this name, earlier runs first.
    pub fn by_name(&mut self, name: &str) -> Vec<&Container> {
        let from: Str = name.into();
        let same = self.view().names.range((from, 0)..).take_while(|((of, _), _)| **of == *name);
        same.map(|(_, container)| &**container).collect()
    }

    /// [`Reader::by_name`] among those that were there at an event's time.
    pub fn by_name_at(&mut self, name: &str, at: BootTime) -> Vec<&Container> {
        let mut containers = self.by_name(name);
        containers.retain(|container| container.was_there(at));
        containers
    }

    /// The containers of a pod, its sandbox included, that were there at an event's time.
    pub fn by_pod_at(&mut self, namespace: &str, name: &str, at: BootTime) -> Vec<&Container> {
        let mut containers = self.by_pod(namespace, name);
        containers.retain(|container| container.was_there(at));
        containers
    }

    /// All containers of a pod, its sandbox included, earlier runs first; those that are over too, while they linger.
    pub fn by_pod(&mut self, namespace: &str, name: &str) -> Vec<&Container> {
        let from: (Str, Str, u64) = (namespace.into(), name.into(), 0);
        let same = self.view().pods.range(from..).take_while(|((ns, of, _), _)| **ns == *namespace && **of == *name);
        same.map(|(_, container)| &**container).collect()
    }

    /// All containers that `selector` picks, in the order in which they were first seen.
    pub fn select<'a>(&'a mut self, selector: &'a Selector) -> impl Iterator<Item = &'a Arc<Container>> {
        self.view().all().filter(|container| selector.matches(container))
    }

    /// All containers that were there at an event's time and that `selector` picks, by what is known of them now.
    pub fn select_at<'a>(
        &'a mut self,
        selector: &'a Selector,
        at: BootTime,
    ) -> impl Iterator<Item = &'a Arc<Container>> {
        self.select(selector).filter(move |container| container.was_there(at))
    }

    /// All containers, tombstones included, in the order in which they were first seen.
    pub fn all(&mut self) -> impl Iterator<Item = &Arc<Container>> {
        self.view().all()
    }

    /// What the configuration's filter leaves out of every other answer, tombstones included, in the order in which they
    /// were first seen.
    pub fn excluded(&mut self) -> impl Iterator<Item = Excluded<'_>> {
        let rows = self.view().excluded();
        rows.filter_map(|row| Some(Excluded { container: &row.container, rule: row.excluded.as_ref()? }))
    }

    /// The same with the times for which their numbers are their own.
    pub(crate) fn excluded_rows(&mut self) -> impl Iterator<Item = &Row> {
        self.view().excluded()
    }

    /// Whose mount namespace has inode number `ns` now, excluded or not: for what is decided by where a process is, not for
    /// what is told.
    pub(crate) fn holder_of_mntns(&mut self, ns: u32) -> Option<&Container> {
        // Asked twice, since the borrow of a first answer that is returned would last.
        if self.by_mntns(ns).container().is_some() {
            return self.by_mntns(ns).container();
        }
        let has = |row: &&Row| row.container.namespaces.mnt == ns && row.here.is_open();
        self.excluded_rows().find(has).map(|row| &*row.container)
    }

    /// The host's own namespaces.
    pub fn host(&self) -> Host {
        self.view.host
    }
}

/// Whether a number is the host's own. 0 is nobody's: it stands for what is unknown, on either side.
#[inline]
fn is_host<N: Default + PartialEq>(number: N, host: N) -> bool {
    number == host && number != N::default()
}

#[inline]
fn found(container: Option<&Arc<Container>>) -> Lookup<'_> {
    container.map_or(Lookup::Unknown, |container| Lookup::Container(container))
}
