//! Ways in which a number, a claim or a moment could come to name the wrong container.

use super::*;

/// A view of everything that the state has published, as readers find it.
fn reader(state: &State) -> super::super::super::view::Reader {
    use super::super::super::view::{Published, Reader, View};
    let mut view = View::new(HOST);
    state.runs.values().for_each(|run| view.change(None, run.row.as_ref()));
    Reader::new(Published::new(view))
}

fn in_netns(state: &State, netns: u32, at: BootTime) -> Vec<Str> {
    reader(state).by_netns_at(netns, at).containers().map(|container| container.id.clone()).collect()
}

#[test]
fn a_cgroup_that_is_removed_long_after_it_emptied_does_not_lengthen_a_life() {
    // Removal is told as an emptying too. Meanwhile the net ns's number has gone to another.
    let removed = WEB.kernel(5_000, What::CgroupEmptied { id: WEB.cgroup });
    let heir = Life { id: "heir", pid: 300, creator: 290, generation: 9, cgroup: 72, from_ms: 3_000, ..WEB };
    let numbers = Namespaces { mnt: 60, ..heir.birth().namespaces };
    let executed = Birth { namespaces: numbers, executed: true, ..heir.birth() };
    let heir_runs = heir.kernel(60, What::Executed(Execution { task: executed, by_init: true }));
    let state = with(WEB.all().into_iter().chain([heir_runs, removed]));
    assert_eq!(in_netns(&state, 1050, ms(4_000)), ["mntns-9".into()]);
    assert_eq!(in_netns(&state, 1050, ms(2_000)), [], "nobody had it in between");
}

#[test]
fn a_cgroup_used_again_by_a_later_run_does_not_lengthen_the_former_s_life() {
    let again = Life { pid: 200, creator: 190, mnt: 51, generation: 8, from_ms: 3_000, ..WEB };
    let facts: Vec<Fact> = WEB.all().into_iter().chain(again.all()).collect();
    for settle_every in [1, facts.len()] {
        let mut state = state();
        for batch in facts.chunks(settle_every) {
            batch.iter().cloned().for_each(|fact| state.apply(fact));
            state.settle();
        }
        let rows = picture(&state);
        assert_eq!(rows["web Some(7)"].1.1, BootTime(ms(1_502).0 + 1));
        assert_eq!(rows["web Some(8)"].1.1, BootTime(ms(3_502).0 + 1));
    }
}
