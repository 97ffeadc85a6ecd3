//! The state through its narrow door: facts in, rows out.

mod attribution;
mod nesting;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::container::{
    Cgroup, ContainerId, Domain, Exit, Image, Kind, Labels, Namespaces, Runtime, State as LifeState, Str,
};
use crate::fact::{Birth, End, Execution, Statement};
use crate::filter::Filter;

const HOST: Host = Host { namespaces: Namespaces { mnt: 1, net: 2, pid: 3, cgroup: 4, user: 5 }, cgroup_id: 1 };

fn task(pid: u32, start_ticks: u64) -> TaskId {
    TaskId { pid, start_ticks }
}

/// Milliseconds since boot.
fn ms(milliseconds: u64) -> BootTime {
    BootTime(milliseconds * 1_000_000)
}

fn key(id: &str) -> ContainerKey {
    let id = ContainerId::new(id).unwrap();
    ContainerKey { domain: Domain::Host, scope: "containerd/default".into(), id }
}

/// One run of a container as the world has it, from which each witness's facts are told.
#[derive(Clone, Copy, Debug)]
struct Life {
    id: &'static str,
    pid: u32,
    creator: u32,
    mnt: u32,
    generation: u64,
    cgroup: u64,
    /// Its creator starts here, everything else follows within 100 ms; it ends 500 ms later.
    from_ms: u64,
}

impl Life {
    fn task(&self) -> TaskId {
        task(self.pid, self.from_ms / 10 + 2)
    }

    fn creator(&self) -> TaskId {
        task(self.creator, self.from_ms / 10)
    }

    fn birth(&self) -> Birth {
        Birth {
            task: self.task(),
            parent: Some(self.creator()),
            outer: None,
            namespaces: Namespaces { mnt: self.mnt, net: self.mnt + 1000, pid: self.mnt + 2000, cgroup: 4, user: 5 },
            generation: Some(self.generation),
            cgroup_id: Some(self.cgroup),
            uid: 0,
            born_at: ms(self.from_ms + 25),
            executed: false,
        }
    }

    fn creating(&self) -> Fact {
        let statement = Statement {
            creator: Some(self.creator()),
            state: Some(LifeState::Created),
            bundle: Some(format!("/bundles/{}", self.id).into()),
            ..Statement::default()
        };
        self.stated(Source::Barrier, 10, statement)
    }

    fn starting(&self) -> Fact {
        let statement = Statement {
            creator: Some(self.creator()),
            task: Some(self.task()),
            state: Some(LifeState::Running),
            namespaces: Some(self.birth().namespaces),
            bundle: Some(format!("/bundles/{}", self.id).into()),
            ..Statement::default()
        };
        self.stated(Source::Barrier, 50, statement)
    }

    fn described(&self) -> Fact {
        let statement = Statement {
            image: Some(Image { name: Some("img:1".into()), ..Image::default() }),
            runtime: Some(Runtime { name: Some("containerd".into()), ..Runtime::default() }),
            name: Some(format!("name-of-{}", self.id).into()),
            ..Statement::default()
        };
        self.stated(Source::Containerd, 5, statement)
    }

    fn stated(&self, source: Source, after_ms: u64, statement: Statement) -> Fact {
        let what = What::Stated { key: key(self.id), statement: Box::new(statement) };
        Fact { source, at: ms(self.from_ms + after_ms), what }
    }

    fn kernel(&self, after_ms: u64, what: What) -> Fact {
        Fact { source: Source::Kernel, at: ms(self.from_ms + after_ms), what }
    }

    fn born(&self) -> Fact {
        self.kernel(25, What::Born(self.birth()))
    }

    fn executed(&self) -> Fact {
        let task = Birth { executed: true, ..self.birth() };
        self.kernel(60, What::Executed(Execution { task, by_init: true }))
    }

    fn ended(&self) -> Fact {
        let exit = Exit { code: 137, signal: Some(9), oom: None };
        let end = End { task: self.task(), mntns: self.mnt, generation: Some(self.generation), exit };
        self.kernel(500, What::Ended(end))
    }

    fn emptied(&self) -> Fact {
        self.kernel(502, What::CgroupEmptied { id: self.cgroup })
    }

    fn all(&self) -> Vec<Fact> {
        let path = format!("/pods/{}", self.generation).into();
        vec![
            self.described(),
            self.creating(),
            self.kernel(20, What::CgroupMade { id: self.cgroup, path }),
            self.born(),
            self.starting(),
            self.executed(),
            self.ended(),
            self.emptied(),
        ]
    }
}

const WEB: Life = Life { id: "web", pid: 100, creator: 90, mnt: 50, generation: 7, cgroup: 70, from_ms: 1_000 };

/// A scan that found these inits and no other process.
fn scanned(inits: Vec<Birth>) -> What {
    let tasks = inits.iter().map(|birth| birth.task).collect();
    What::Scanned { inits, tasks }
}

fn state() -> State {
    let mut state = State::new(Config::default(), Filter::default(), HOST);
    for source in [Source::Kernel, Source::Barrier, Source::Containerd] {
        state.apply(Fact { source, at: BootTime::ZERO, what: What::Live(true) });
    }
    state
}

fn with(facts: impl IntoIterator<Item = Fact>) -> State {
    let mut state = state();
    facts.into_iter().for_each(|fact| state.apply(fact));
    state.settle();
    state
}

/// A container, and the times for which its namespaces and its init pid are its own.
type Picture = (Container, (BootTime, BootTime), (BootTime, BootTime));

/// All rows, by generation or id, without what depends on the order of arrival by design.
fn picture(state: &State) -> BTreeMap<String, Picture> {
    let rows = state.runs.values().filter_map(|run| run.row.clone());
    rows.map(|row| {
        let container = Container { instance: 0, sequence: 0, ..(*row.container).clone() };
        let name = format!("{} {:?}", container.id, container.generation);
        (name, (container, (row.here.opened, row.here.closed), (row.init.opened, row.init.closed)))
    })
    .collect()
}

fn only(state: &State) -> Container {
    let rows: Vec<_> = state.runs.values().filter_map(|run| run.row.clone()).collect();
    assert_eq!(rows.len(), 1, "{rows:#?}");
    (*rows[0].container).clone()
}

#[test]
fn a_birth_from_a_create_that_was_seen_is_that_container_at_once() {
    let container = only(&with([WEB.creating(), WEB.born()]));
    assert_eq!((&*container.id, container.state, container.pid()), ("web", LifeState::Created, Some(100)));
    assert_eq!(container.grade, Some(Grade::FirstExec));
    assert_eq!(container.generation, Some(7));
    // Its net ns and cgroup may still change before its first instruction.
    assert_eq!((container.namespaces.mnt, container.namespaces.net, container.cgroup.id), (50, 0, None));
}

#[test]
fn a_birth_that_nobody_explains_is_provisional_and_then_runs_unmanaged() {
    let container = only(&with([WEB.born()]));
    assert_eq!((container.kind, container.state), (Kind::Unmanaged, LifeState::Provisional));
    assert_eq!(&*container.id, "mntns-7");
    assert_eq!(only(&with([WEB.born(), WEB.executed()])).state, LifeState::Running);
}

#[test]
fn a_creator_with_the_same_pid_and_another_start_is_another_process() {
    let mut birth = WEB.birth();
    birth.parent = Some(task(WEB.creator, 5));
    let state = with([WEB.creating(), WEB.kernel(25, What::Born(birth))]);
    let rows = picture(&state);
    assert_eq!(rows.len(), 2, "the birth must not be taken for the container: {rows:#?}");
}

#[test]
fn a_held_start_is_graded_held_until_the_barrier_takes_it_back() {
    let mut state = with([WEB.creating(), WEB.born(), WEB.starting()]);
    state.held(&key("web"), ms(1050), HeldStep::Start);
    state.settle();
    assert_eq!(only(&state).grade, Some(Grade::Held));
    let what = What::Graded { key: key("web"), grade: Grade::LetGo };
    state.apply(Fact { source: Source::Barrier, at: ms(1300), what });
    state.settle();
    assert_eq!(only(&state).grade, Some(Grade::LetGo));
}

#[test]
fn the_end_keeps_pid_and_namespaces_and_closes_only_when_the_cgroup_is_empty() {
    let life = WEB.all();
    let state = with(life[..7].iter().cloned());
    let container = only(&state);
    assert_eq!(container.exit, Some(Exit { code: 137, signal: Some(9), oom: None }));
    assert_eq!((container.state, container.pid()), (LifeState::Exited, Some(100)));
    assert_eq!((container.namespaces.net, &*container.cgroup.path.unwrap()), (1050, "/pods/7"));
    let row = |state: &State| state.runs.values().find_map(|run| run.row.clone()).unwrap();
    assert!(row(&state).here.is_open());
    assert!(!row(&state).init.is_open());
    assert_eq!(row(&with(WEB.all())).here.closed, BootTime(ms(1502).0 + 1));
}

#[test]
fn a_restart_keeps_the_container_id_and_gets_a_new_instance() {
    let again = Life { pid: 200, creator: 190, generation: 8, cgroup: 71, from_ms: 3_000, ..WEB };
    let state = with(WEB.all().into_iter().chain(again.all()));
    let rows = picture(&state);
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["web Some(7)", "web Some(8)"]);
    assert!(rows.values().all(|(container, ..)| container.name.as_deref() == Some("name-of-web")));
    // The number was the same: the first holder's time ended before the second's began.
    assert!(rows["web Some(7)"].1.1 <= rows["web Some(8)"].1.0);
}

#[test]
fn the_next_holder_of_a_mount_ns_closes_the_time_of_the_one_before_it() {
    let other = Life { id: "db", pid: 300, creator: 290, generation: 9, cgroup: 72, from_ms: 1_200, ..WEB };
    for facts in [[WEB.born(), other.born()], [other.born(), WEB.born()]] {
        let rows = picture(&with(facts));
        assert_eq!(rows["mntns-7 Some(7)"].1, (ms(1025), ms(1225)));
        assert_eq!(rows["mntns-9 Some(9)"].1, (ms(1225), BootTime::MAX));
    }
}

#[test]
fn who_withdraws_takes_back_its_own_and_only_its_own() {
    let withdrawn = Fact { source: Source::Containerd, at: ms(1400), what: What::Withdrawn { key: key("web") } };
    let alive: Vec<Fact> = WEB.all().into_iter().take(6).collect();
    let container = only(&with(alive.iter().cloned().chain([withdrawn.clone()])));
    assert_eq!((container.image, container.name), (None, None));
    assert_eq!(container.bundle.as_deref(), Some("/bundles/web"));
    // A container whose life is over keeps its description for late events.
    let container = only(&with(WEB.all().into_iter().chain([withdrawn])));
    assert_eq!(container.name.as_deref(), Some("name-of-web"));
}

#[test]
fn a_list_withdraws_what_is_not_in_it() {
    let listed = |keys| Fact {
        source: Source::Containerd,
        at: ms(1300),
        what: What::Listed { scope: "containerd/default".into(), keys },
    };
    assert!(only(&with([WEB.described(), listed(vec![key("web")])])).image.is_some());
    let gone = only(&with([WEB.described(), listed(vec![])]));
    assert_eq!(gone.state, LifeState::Exited, "nobody vouches for it any more");
    // A list that was asked for before the container was described tells nothing about it, in its story neither.
    let later = Fact { at: ms(1_400), ..WEB.described() };
    let state = with([later, listed(vec![])]);
    assert!(only(&state).image.is_some());
    let lines = state.runs.values().flat_map(|run| run.journal.lines());
    assert_eq!(lines.filter(|line| line.event == Event::Withdrawn).count(), 0);
}

#[test]
fn zero_empty_and_false_are_values_and_unknown_never_beats_a_known_one() {
    let docker = Statement { name: Some("".into()), exit: Some(Exit::default()), ..Statement::default() };
    let state = with([WEB.described(), WEB.stated(Source::Docker, 7, docker)]);
    let container = only(&state);
    assert_eq!(container.name.as_deref(), Some(""), "docker's empty name is a value");
    assert!(container.image.is_some(), "docker said nothing about the image");
}

#[test]
fn a_user_cannot_claim_roots_container() {
    let theirs = ContainerKey { domain: Domain::User(1000), ..key("web") };
    let statement = Statement { task: Some(WEB.task()), name: Some("lie".into()), ..Statement::default() };
    let what = What::Stated { key: theirs, statement: Box::new(statement) };
    let lie = Fact { source: Source::Podman, at: ms(1100), what };
    let orders = [
        [WEB.starting(), WEB.born(), lie.clone()],
        [WEB.born(), lie.clone(), WEB.starting()],
        [lie.clone(), WEB.starting(), WEB.born()],
    ];
    for facts in orders {
        let state = with(facts);
        let run = &state.runs[&state.by_task[&WEB.task()]];
        let container = &run.row.as_ref().unwrap().container;
        assert_eq!((container.domain, container.name.as_deref()), (Domain::Host, None));
    }
}

#[test]
fn a_scan_finds_what_was_there_before_and_ends_what_is_gone() {
    let scan = |at, births| Fact { source: Source::Kernel, at: ms(at), what: scanned(births) };
    let found = Birth { executed: true, ..WEB.birth() };
    let mut state = with([scan(2_000, vec![found])]);
    let container = only(&state);
    assert_eq!((container.grade, container.state), (Some(Grade::Observed), LifeState::Running));
    assert_eq!(container.started_at, None, "when it executed is not known");
    // A container born after the scan was read is not missing from it.
    let late = Life { id: "late", pid: 400, creator: 390, mnt: 60, generation: 20, cgroup: 90, from_ms: 62_000 };
    state.apply(late.born());
    state.apply(scan(62_000, vec![]));
    state.settle();
    let rows = picture(&state);
    assert_eq!(rows["mntns-7 Some(7)"].0.state, LifeState::Exited);
    assert_eq!(rows["mntns-7 Some(7)"].0.exit, None, "how it ended was not seen");
    assert_eq!(rows["mntns-20 Some(20)"].0.state, LifeState::Provisional);
    assert_eq!(state.counts.corrections, 1);
}

#[test]
fn tombstones_go_after_their_time_and_what_a_runtime_lists_stays() {
    let mut state = with(WEB.all());
    state.expire(ms(1_600));
    assert_eq!(state.settle(), []);
    state.expire(ms(70_000));
    state.settle();
    assert!(only(&state).name.is_some(), "containerd still lists it");
    state.apply(Fact { source: Source::Containerd, at: ms(70_000), what: What::Withdrawn { key: key("web") } });
    state.settle();
    state.expire(ms(70_000));
    let changes = state.settle();
    assert_eq!(changes.len(), 1);
    assert!(changes[0].after.is_none());
    assert!(
        state.runs.is_empty() && state.claims.is_empty() && state.by_task.is_empty() && state.by_creator.is_empty()
    );
    assert!(state.by_mntns.is_empty() && state.by_pid.is_empty() && state.by_generation.is_empty());
    assert!(state.by_parent.is_empty() && state.by_cgroup.is_empty() && state.expiries.is_empty());
    assert_eq!(state.tombstone_bytes, 0);
}

#[test]
fn nobody_vouching_has_a_bounded_share_and_a_claim_always_finds_room() {
    let config = Config { max_containers: 64, ..Config::default() };
    let mut state = State::new(config, Filter::default(), HOST);
    for n in 0..100 {
        let unmanaged = Life { id: "x", pid: 1000 + n, mnt: 500 + n, generation: u64::from(n) + 100, ..WEB };
        state.apply(unmanaged.kernel(25, What::Born(Birth { parent: None, ..unmanaged.birth() })));
    }
    state.settle();
    assert_eq!(state.runs.len(), 8);
    assert_eq!(state.counts.unvouched_refused, 92);
    state.apply(WEB.creating());
    state.apply(WEB.born());
    state.settle();
    assert_eq!(picture(&state)["web Some(7)"].0.pid(), Some(100));
}

#[test]
fn users_leave_room_for_what_root_makes() {
    let config = Config { max_containers: 128, ..Config::default() };
    let mut state = State::new(config, Filter::default(), HOST);
    let mut born = |n: u32, uid| {
        let life = Life { id: "x", pid: 1000 + n, mnt: 500 + n, generation: u64::from(n) + 100, ..WEB };
        state.apply(life.kernel(25, What::Born(Birth { parent: None, uid, ..life.birth() })));
        state.runs.len()
    };
    let admitted: Vec<usize> = (0..50).map(|n| born(n, 1000 + n % 10)).collect();
    assert_eq!(admitted.last(), Some(&12), "three quarters of sixteen");
    let admitted: Vec<usize> = (50..60).map(|n| born(n, 0)).collect();
    assert_eq!(admitted.last(), Some(&16));
}

#[test]
fn one_source_alone_is_seen_without_the_words_of_others() {
    let state = with(WEB.all().into_iter().take(6));
    let run = *state.by_task.get(&WEB.task()).unwrap();
    let barrier = state.derive(run, Some(Source::Barrier), None).unwrap().container;
    assert_eq!((barrier.image.as_ref(), barrier.bundle.as_deref()), (None, Some("/bundles/web")));
    assert!(state.derive(run, Some(Source::Docker), None).is_none());
}

#[test]
fn a_story_tells_who_said_what_and_whose_word_counts() {
    let mut state = with(WEB.all().into_iter().take(7));
    state.apply(WEB.emptied());
    state.settle();
    let run = *state.by_task.get(&WEB.task()).unwrap();
    let (_, provenance, run) = state.story(run).unwrap();
    use Source::{Barrier, Containerd, Kernel};
    assert!(provenance.contains(&("image.name", Containerd)));
    assert!(provenance.contains(&("bundle", Barrier)));
    let sources: Vec<Source> = run.journal.lines().iter().map(|line| line.source).collect();
    assert_eq!(sources, [Containerd, Barrier, Kernel, Barrier, Kernel, Kernel, Kernel]);
}

#[test]
fn a_user_speaks_for_what_the_kernel_shows_to_be_that_users() {
    let theirs = ContainerKey { domain: Domain::User(1000), ..key("mine") };
    let statement = Statement { task: Some(WEB.task()), name: Some("mine".into()), ..Statement::default() };
    let what = What::Stated { key: theirs, statement: Box::new(statement) };
    let said = Fact { source: Source::Podman, at: ms(1100), what };
    let born = WEB.kernel(25, What::Born(Birth { uid: 1000, ..WEB.birth() }));
    for facts in [[said.clone(), born.clone()], [born, said]] {
        let container = only(&with(facts));
        assert_eq!((container.name.as_deref(), container.generation), (Some("mine"), Some(7)));
    }
}

#[test]
fn whoever_names_another_s_process_is_not_found_by_its_numbers() {
    for domain in [Domain::User(1000), Domain::Container(task(40, 1))] {
        let statement = Statement {
            task: Some(WEB.task()),
            namespaces: Some(WEB.birth().namespaces),
            cgroup: Some(Cgroup { id: Some(WEB.cgroup), ..Cgroup::default() }),
            state: Some(LifeState::Running),
            name: Some("stolen".into()),
            ..Statement::default()
        };
        let what = What::Stated { key: ContainerKey { domain, ..key("web") }, statement: Box::new(statement) };
        let said = Fact { source: Source::Docker, at: ms(1_200), what };
        let truth = [WEB.creating(), WEB.born(), WEB.described(), WEB.starting(), WEB.executed()];
        for facts in [[vec![said.clone()], truth.to_vec()].concat(), [truth.to_vec(), vec![said]].concat()] {
            let state = with(facts);
            let mut rows: Vec<_> = state.runs.values().map(|run| &run.row.as_ref().unwrap().container).collect();
            rows.sort_by_key(|container| container.domain != Domain::Host);
            let [web, claim] = rows[..] else { panic!("{rows:?}") };
            assert_eq!((web.namespaces, web.cgroup.id), (WEB.birth().namespaces, Some(WEB.cgroup)));
            assert_eq!((web.name.as_deref(), claim.name.as_deref()), (Some("name-of-web"), Some("stolen")));
            assert_eq!((claim.namespaces, claim.cgroup.id, claim.task), (Namespaces::default(), None, None));
        }
    }
}

/// What a process inside the container `outer` says by its barrier's word.
fn inside(outer: u32, fact: Fact) -> Fact {
    let What::Stated { key, statement } = fact.what else { panic!("a statement") };
    let key = ContainerKey { domain: Domain::Container(task(outer, 1)), ..key };
    Fact { what: What::Stated { key, statement }, ..fact }
}

#[test]
fn what_a_container_says_binds_to_what_its_own_process_made() {
    let (creating, starting) = (inside(40, WEB.creating()), inside(40, WEB.starting()));
    for facts in [[creating.clone(), WEB.born(), starting.clone()], [starting, creating, WEB.born()]] {
        let state = with(facts);
        let container = only(&state);
        assert_eq!((container.domain, container.task), (Domain::Container(task(40, 1)), Some(WEB.task())));
        assert_eq!(state.shown_init(&ContainerKey { domain: container.domain, ..key("web") }), Some(WEB.task()));
    }
}

#[test]
fn a_container_cannot_claim_what_another_process_made() {
    let statement = Statement {
        creator: Some(task(60, 100)),
        task: Some(WEB.task()),
        bundle: Some("/lie".into()),
        ..Statement::default()
    };
    let lie = inside(40, WEB.stated(Source::Barrier, 30, statement));
    let theirs = ContainerKey { domain: Domain::Container(task(40, 1)), ..key("web") };
    let orders = [
        [WEB.creating(), WEB.born(), lie.clone()],
        [WEB.born(), lie.clone(), WEB.creating()],
        [lie.clone(), WEB.creating(), WEB.born()],
        [WEB.creating(), lie, WEB.born()],
    ];
    for facts in orders {
        let state = with(facts);
        let container = &state.runs[&state.by_task[&WEB.task()]].row.as_ref().unwrap().container;
        assert_eq!((container.domain, container.bundle.as_deref()), (Domain::Host, Some("/bundles/web")));
        assert_eq!(state.shown_init(&theirs), None);
    }
}

#[test]
fn one_id_in_two_containers_and_on_the_host_are_three_containers() {
    let second = Life { pid: 200, creator: 190, mnt: 51, generation: 8, cgroup: 71, ..WEB };
    let third = Life { pid: 300, creator: 290, mnt: 52, generation: 9, cgroup: 72, ..WEB };
    let list = What::Listed { scope: "containerd/default".into(), keys: vec![key("web")] };
    let mut state = with([
        WEB.described(),
        WEB.creating(),
        inside(40, second.creating()),
        inside(41, third.creating()),
        second.born(),
        third.born(),
        WEB.born(),
        Fact { source: Source::Containerd, at: ms(1_200), what: list },
        Fact { source: Source::Containerd, at: ms(1_200), what: What::Live(true) },
    ]);
    state.settle();
    let row = |life: &Life| Arc::clone(&state.runs[&state.by_task[&life.task()]].row.as_ref().unwrap().container);
    let domains = [&WEB, &second, &third].map(|life| row(life).domain);
    assert_eq!(domains, [Domain::Host, Domain::Container(task(40, 1)), Domain::Container(task(41, 1))]);
    // The host's containerd has nothing to say of those inside.
    assert!([&second, &third].iter().all(|life| row(life).name.is_none() && row(life).awaiting.is_empty()));
    assert_eq!(row(&WEB).name.as_deref(), Some("name-of-web"));
}

#[test]
fn a_container_that_nobody_manages_is_its_oci_runtime_s() {
    let oci = Runtime { oci: Some("crun".into()), ..Runtime::default() };
    let seen = |runtime| Statement { creator: Some(WEB.creator()), runtime: Some(runtime), ..Statement::default() };
    let by_hand = with([WEB.stated(Source::Barrier, 10, seen(oci.clone())), WEB.born()]);
    let managed = with([WEB.stated(Source::Barrier, 10, seen(oci)), WEB.described(), WEB.born()]);
    for (state, name) in [(by_hand, "crun"), (managed, "containerd")] {
        let run = &state.runs[&state.by_task[&WEB.task()]];
        let runtime = &run.row.as_ref().unwrap().container.runtime;
        assert_eq!((runtime.name.as_deref(), runtime.oci.as_deref()), (Some(name), Some("crun")));
    }
}

#[test]
fn what_containers_say_does_not_push_out_the_hosts_tombstones() {
    let config = Config { tombstone_bytes: 64 << 10, ..Config::default() };
    let mut state = State::new(config.clone(), Filter::default(), HOST);
    WEB.all().into_iter().for_each(|fact| state.apply(fact));
    let annotations: Labels = [("a", "x".repeat(3_000))].into_iter().collect();
    for number in 0..100 {
        let id = ContainerId::new(&format!("junk-{number}")).unwrap();
        let key = ContainerKey { domain: Domain::Container(task(40, 1)), id, ..key("web") };
        let statement = Statement {
            creator: Some(task(1_000 + number, 100)),
            annotations: Some(annotations.clone()),
            ..Statement::default()
        };
        let at = ms(1_600);
        let stated = What::Stated { key: key.clone(), statement: Box::new(statement) };
        state.apply(Fact { source: Source::Barrier, at, what: stated });
        state.apply(Fact { source: Source::Barrier, at, what: What::Aborted { key, reason: "".into() } });
        state.settle();
        state.expire(ms(1_700));
        state.settle();
    }
    let rows = || state.runs.values().filter_map(|run| run.row.as_ref());
    let (guests, hosts): (Vec<_>, Vec<_>) = rows().partition(|row| row.container.domain != Domain::Host);
    assert_eq!(hosts.len(), 1, "it is there for late events");
    assert!(!guests.is_empty() && guests.len() * 5_000 < config.tombstone_bytes / 7, "{}", guests.len());
    assert_eq!(state.counts.tombstones_evicted as usize, 100 - guests.len());
}

/// Sources interleave as they like, but each one's own facts come in the order in which it states them: they pass
/// through one queue.
fn interleaved(mut facts: Vec<Fact>) -> Vec<Fact> {
    for source in Source::ALL {
        let places: Vec<usize> = (0..facts.len()).filter(|at| facts[*at].source == source).collect();
        let mut own: Vec<Fact> = places.iter().map(|at| facts[*at].clone()).collect();
        own.sort_by_key(|fact| fact.at);
        places.into_iter().zip(own).for_each(|(at, fact)| facts[at] = fact);
    }
    facts
}

fn world() -> Vec<Fact> {
    let restarted = Life { pid: 200, creator: 190, generation: 8, cgroup: 71, from_ms: 3_000, ..WEB };
    let neighbour = Life { id: "db", pid: 300, creator: 290, mnt: 51, generation: 9, cgroup: 72, from_ms: 1_100 };
    // Same mount ns number and same pid as the first, after it.
    let heir = Life { id: "heir", creator: 490, generation: 10, cgroup: 73, from_ms: 5_000, ..restarted };
    let mut facts: Vec<Fact> = [WEB, restarted, neighbour, heir].iter().flat_map(|life| life.all()).collect();
    facts.push(Fact { source: Source::Containerd, at: ms(5_200), what: What::Withdrawn { key: key("heir") } });
    facts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(400), ..ProptestConfig::default() })]

    #[test]
    fn sources_that_interleave_in_any_way_and_repeat_themselves_give_the_same_containers(
        facts in Just(world()).prop_shuffle().prop_map(interleaved),
        repeats in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        settle_every in 1usize..40,
    ) {
        let truth = picture(&with(world()));
        let repeated: Vec<Fact> = repeats.iter().map(|at| facts[at.index(facts.len())].clone()).collect();
        let mut state = state();
        for (step, fact) in facts.into_iter().chain(repeated).enumerate() {
            state.apply(fact);
            if step % settle_every == 0 {
                state.settle();
            }
        }
        state.settle();
        prop_assert_eq!(picture(&state), truth);
    }

    #[test]
    fn a_view_made_of_changes_is_the_view_made_at_once(
        facts in Just(world()).prop_shuffle().prop_map(interleaved),
        settle_every in 1usize..10,
    ) {
        use super::super::view::{Published, Reader, View};
        let mut state = state();
        let mut view = View::new(HOST);
        for (step, fact) in facts.into_iter().enumerate() {
            state.apply(fact);
            if step % settle_every == 0 {
                state.settle().iter().for_each(|change| view.change(change.before.as_ref(), change.after.as_ref()));
            }
        }
        state.settle().iter().for_each(|change| view.change(change.before.as_ref(), change.after.as_ref()));
        let mut reader = Reader::new(Published::new(view));
        for life in [("web", 50, 1_300, 7), ("web", 50, 3_300, 8), ("db", 51, 1_300, 9), ("heir", 50, 5_300, 10)] {
            let (id, mnt, at, generation) = life;
            let found = reader.by_mntns_at(mnt, ms(at)).container().map(|c| (c.id.clone(), c.generation));
            prop_assert_eq!(found, Some((Str::from(id), Some(generation))));
            let in_netns: Vec<_> = reader.by_netns_at(mnt + 1000, ms(at)).containers().map(|c| c.generation).collect();
            prop_assert_eq!(in_netns, [Some(generation)]);
        }
        // All are over and their cgroups empty: now, the numbers mean nothing.
        prop_assert_eq!(reader.by_mntns(50), super::super::view::Lookup::Unknown);
        prop_assert_eq!(reader.by_mntns_at(50, ms(2_500)), super::super::view::Lookup::Unknown);
        prop_assert_eq!(reader.by_pid(200), super::super::view::Lookup::Unknown);
    }
}

#[test]
fn a_cgroup_that_is_only_stated_counts_until_the_kernel_shows_another() {
    let cgroup = Cgroup { id: Some(70), path: Some("/stated".into()), v1_path: None };
    let statement = Statement { cgroup: Some(cgroup), creator: Some(WEB.creator()), ..Statement::default() };
    let container = only(&with([WEB.stated(Source::Barrier, 10, statement), WEB.born()]));
    assert_eq!((container.cgroup.id, container.cgroup.path.as_deref()), (Some(70), Some("/stated")));
}

#[test]
fn a_pause_image_makes_a_sandbox_where_nobody_knows_better() {
    use crate::container::Pod;
    let said = |image: &str, kind, pod| {
        let image = Some(Image { name: Some(image.into()), ..Image::default() });
        let statement = Statement { image, kind: Some(kind), pod, ..Statement::default() };
        only(&with(WEB.all().into_iter().chain([WEB.stated(Source::Containerd, 60, statement)]))).kind
    };
    let of_pod = || Some(Pod { sandbox_id: Some("s".into()), ..Pod::default() });
    assert_eq!(said("registry.k8s.io/pause:3.9", Kind::Container, None), Kind::Sandbox);
    assert_eq!(said("registry.k8s.io/pause:3.9", Kind::Container, of_pod()), Kind::Container, "a label says so");
    assert_eq!(said("docker.io/library/busybox", Kind::Sandbox, of_pod()), Kind::Sandbox);
    assert_eq!(said("docker.io/library/busybox", Kind::Container, None), Kind::Container);
}
