//! Which container another one was started in.

use super::*;
use crate::container::Parent;

const OUTER: Life = Life { id: "outer", pid: 10, creator: 9, mnt: 30, generation: 3, cgroup: 31, from_ms: 500 };

/// Its first life, made by a process in the mount namespace `outer`.
fn born_in(life: &Life, outer: u32) -> Fact {
    life.kernel(25, What::Born(Birth { outer: Some(outer), ..life.birth() }))
}

fn parent(state: &State, id: &str) -> Option<Parent> {
    let mut rows = state.runs.values().filter_map(|run| run.row.as_ref());
    rows.find(|row| &*row.container.id == id).unwrap().container.parent.clone()
}

/// All orders of these facts.
fn orders(facts: &[Fact]) -> Vec<Vec<Fact>> {
    let Some((first, rest)) = facts.split_first() else { return vec![vec![]] };
    let mut all = Vec::new();
    for order in orders(rest) {
        for place in 0..=order.len() {
            let mut order = order.clone();
            order.insert(place, first.clone());
            all.push(order);
        }
    }
    all
}

#[test]
fn a_container_is_in_the_one_whose_mount_namespace_its_maker_had_in_whatever_order_that_is_told() {
    for facts in orders(&[OUTER.born(), OUTER.starting(), born_in(&WEB, OUTER.mnt), WEB.starting()]) {
        let mut state = state();
        for fact in facts {
            state.apply(fact);
            state.settle();
        }
        let parent_of_web = parent(&state, "web").unwrap();
        let outer = state.runs.values().find(|run| run.task == Some(OUTER.task())).unwrap();
        assert_eq!((&*parent_of_web.id, parent_of_web.instance), ("outer", outer.instance));
        assert_eq!(parent(&state, "outer"), None);
    }
}

#[test]
fn who_is_around_without_a_runtime_is_looked_through() {
    let service = Life { id: "-", pid: 20, creator: 19, mnt: 40, generation: 4, cgroup: 41, from_ms: 700 };
    let facts = [OUTER.born(), OUTER.starting(), born_in(&service, OUTER.mnt), born_in(&WEB, service.mnt)];
    for facts in orders(&facts) {
        let mut state = with(facts);
        state.apply(WEB.starting());
        state.settle();
        assert_eq!(parent(&state, "web").map(|parent| parent.id), Some("outer".into()));
        assert_eq!(parent(&state, "mntns-4").map(|parent| parent.id), Some("outer".into()));
    }
    let state = with([service.born(), born_in(&WEB, service.mnt), WEB.starting()]);
    assert_eq!(parent(&state, "web"), None, "a service of the host's");
}

#[test]
fn a_number_s_next_holder_is_nobody_s_parent() {
    let heir = Life { id: "heir", pid: 12, creator: 11, generation: 5, cgroup: 33, from_ms: 2_000, ..OUTER };
    let inner = [OUTER.born(), OUTER.starting(), born_in(&WEB, OUTER.mnt), WEB.starting()];
    let mut state = with(inner);
    for fact in [OUTER.ended(), OUTER.emptied(), heir.born(), heir.starting()] {
        state.apply(fact);
    }
    state.settle();
    assert_eq!(parent(&state, "web").map(|parent| parent.id), Some("outer".into()));
    let state = with([heir.born(), heir.starting(), born_in(&WEB, OUTER.mnt), WEB.starting()]);
    assert_eq!(parent(&state, "web"), None);
}

#[test]
fn who_was_born_from_the_host_or_from_its_own_namespace_has_no_parent() {
    for outer in [HOST.namespaces.mnt, WEB.mnt, 4_711] {
        assert_eq!(parent(&with([OUTER.born(), born_in(&WEB, outer), WEB.starting()]), "web"), None);
    }
}

#[test]
fn a_runtime_inside_a_container_speaks_for_what_is_inside_it_and_for_nothing_else() {
    let said = |init: TaskId| {
        let key = ContainerKey { domain: Domain::Container(init), ..key("said") };
        let statement = Statement { task: Some(WEB.task()), name: Some("inner".into()), ..Statement::default() };
        let what = What::Stated { key, statement: Box::new(statement) };
        Fact { source: Source::Containerd, at: ms(1_100), what }
    };
    for facts in orders(&[OUTER.born(), OUTER.starting(), born_in(&WEB, OUTER.mnt), said(OUTER.task())]) {
        let state = with(facts);
        let rows = state.runs.values().filter_map(|run| run.row.as_ref());
        let inner: Vec<_> = rows.filter(|row| row.container.name.as_deref() == Some("inner")).collect();
        let [inner] = &inner[..] else { panic!("{inner:#?}") };
        assert_eq!((inner.container.task, &*inner.container.id), (Some(WEB.task()), "said"));
        assert_eq!(inner.container.parent.as_ref().map(|parent| &*parent.id), Some("outer"));
    }
    for facts in orders(&[OUTER.born(), OUTER.starting(), WEB.born(), said(OUTER.task())]) {
        let state = with(facts);
        let web = state.runs.values().find(|run| run.task == Some(WEB.task())).unwrap();
        assert_eq!(web.row.as_ref().unwrap().container.name, None, "it is the host's");
    }
}
