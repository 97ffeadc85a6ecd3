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

#[test]
fn an_end_that_only_a_scan_saw_closes_although_the_cgroup_emptied_before() {
    let scan = WEB.kernel(900, What::Scanned { inits: vec![], tasks: vec![] });
    let lost_end = WEB.all().into_iter().filter(|fact| !matches!(fact.what, What::Ended(_)));
    let rows = picture(&with(lost_end.chain([scan])));
    assert_eq!(rows["web Some(7)"].0.state, LifeState::Exited);
    assert!(rows["web Some(7)"].1.1 <= ms(1_901));
}

#[test]
fn what_the_kernel_never_showed_has_its_numbers_until_it_was_last_known_to_be_there() {
    // It was held, and ended before the probes were there: a scan misses it long afterwards.
    let scan = WEB.kernel(5_000, What::Scanned { inits: vec![], tasks: vec![] });
    let rows = picture(&with([WEB.creating(), WEB.starting(), scan]));
    let (container, (_, closed), _) = rows.values().next().unwrap();
    assert_eq!((container.state, *closed), (LifeState::Exited, BootTime(ms(1_050).0 + 1)));
}

#[test]
fn an_exec_by_another_process_is_no_picture_of_a_container_whose_birth_was_lost() {
    let worker = Birth { task: task(150, 140), executed: false, ..WEB.birth() };
    let exec = WEB.kernel(70, What::Executed(Execution { task: worker, by_init: false }));
    let init = Birth { executed: true, ..WEB.birth() };
    let audit = WEB.kernel(400, What::Scanned { inits: vec![init], tasks: vec![init.task, worker.task] });
    let again = Fact { at: ms(60_000), ..audit.clone() };
    let container = only(&with([exec, audit, WEB.starting(), again]));
    assert_eq!((&*container.id, container.pid(), container.state), ("web", Some(100), LifeState::Running));
}

#[test]
fn a_container_in_the_mount_ns_of_another_lives_as_long_as_its_process() {
    let guest =
        Statement { task: Some(task(150, 120)), namespaces: Some(WEB.birth().namespaces), ..Statement::default() };
    let what = What::Stated { key: key("guest"), statement: Box::new(guest) };
    let guest = Fact { source: Source::Manual, at: ms(1_300), what };
    let init = Birth { executed: true, ..WEB.birth() };
    let scan =
        |at, tasks| Fact { source: Source::Kernel, at: ms(at), what: What::Scanned { inits: vec![init], tasks } };
    let both = vec![init.task, task(150, 120)];
    let life = WEB.all().into_iter().take(6);
    let mut state = with(life.chain([guest, scan(30_000, both)]));
    let of_guest = |state: &State| picture(state)["guest None"].0.clone();
    assert!(!of_guest(&state).state.is_over());
    state.apply(scan(60_000, vec![init.task]));
    state.settle();
    assert_eq!(of_guest(&state).state, LifeState::Exited);
    assert_eq!(picture(&state)["web Some(7)"].0.state, LifeState::Running);
}

/// A child of the maker's that is not the container: a helper in a mount namespace of its own.
fn helper() -> Fact {
    let namespaces = Namespaces { mnt: 40, ..WEB.birth().namespaces };
    let helper = Birth { task: task(95, 101), generation: Some(6), namespaces, born_at: ms(1_015), ..WEB.birth() };
    WEB.kernel(15, What::Born(helper))
}

#[test]
fn a_maker_s_other_child_is_not_taken_for_the_container_once_the_init_is_named() {
    let orders: [&[Fact]; 5] = [
        &[WEB.creating(), helper(), WEB.born(), WEB.starting()],
        &[WEB.creating(), WEB.starting(), helper(), WEB.born()],
        &[helper(), WEB.born(), WEB.creating(), WEB.starting()],
        &[helper(), WEB.born(), WEB.starting()],
        &[helper(), WEB.creating(), WEB.starting(), WEB.born()],
    ];
    for facts in orders {
        for settle_every in [1, facts.len()] {
            let mut state = state();
            for batch in facts.chunks(settle_every) {
                batch.iter().cloned().for_each(|fact| state.apply(fact));
                state.settle();
            }
            let rows = picture(&state);
            assert_eq!(rows.keys().collect::<Vec<_>>(), ["mntns-6 Some(6)", "web Some(7)"], "{facts:#?}");
            let web = &rows["web Some(7)"].0;
            assert_eq!((web.pid(), web.namespaces.mnt), (Some(100), 50));
            assert_eq!(web.bundle.as_deref(), Some("/bundles/web"));
            let helper = &rows["mntns-6 Some(6)"].0;
            assert_eq!((helper.kind, helper.pid(), helper.bundle.as_deref()), (Kind::Unmanaged, Some(95), None));
        }
    }
}

#[test]
fn a_container_made_anew_under_an_old_id_does_not_describe_the_old_one() {
    let withdrawn = Fact { source: Source::Containerd, at: ms(1_600), what: What::Withdrawn { key: key("web") } };
    let image = Some(Image { name: Some("img:2".into()), ..Image::default() });
    let anew = WEB.stated(Source::Containerd, 1_000, Statement { image, ..Statement::default() });
    let next = Life { pid: 200, creator: 190, mnt: 51, generation: 8, cgroup: 71, from_ms: 2_100, ..WEB };
    let life = WEB.all().into_iter().chain([withdrawn, anew, next.creating(), next.born()]);
    let rows = picture(&with(life));
    let image = |row: &str| rows[row].0.image.clone().unwrap().name;
    assert_eq!(image("web Some(7)").as_deref(), Some("img:1"), "what it was made from");
    assert_eq!(image("web Some(8)").as_deref(), Some("img:2"));
}

#[test]
fn a_pid_is_nobody_s_before_its_process_was_forked() {
    // Start times are told in hundredths of a second: this one began somewhere within the one that ends at 1,030 ms.
    let state = with([WEB.creating(), WEB.born(), WEB.starting()]);
    let id = |at| reader(&state).by_pid_at(WEB.pid, at).container().map(|container| container.id.clone());
    assert_eq!(id(BootTime(ms(1_025).0 - 1)), None);
    assert_eq!(id(ms(1_025)).as_deref(), Some("web"));
}

#[test]
fn a_number_that_says_nothing_is_not_the_host_s() {
    use super::super::super::view::{Group, Lookup, Published, Reader, View};
    let mut reader = Reader::new(Published::new(View::new(Host::default())));
    assert_eq!(reader.by_mntns(0), Lookup::Unknown);
    assert_eq!(reader.by_mntns_at(0, ms(1)), Lookup::Unknown);
    assert!(matches!(reader.by_netns(0), Group::Unknown), "the host's could not be read");
    assert!(matches!(reader.by_cgroup(0), Group::Unknown), "cgroup v2 is not mounted");
    assert!(matches!(reader.by_cgroup_at(0, ms(1)), Group::Unknown));
}

#[test]
fn an_id_a_name_and_a_selector_mean_who_was_there_at_the_moment() {
    use super::super::super::view::ById;
    let again = Life { pid: 200, creator: 190, mnt: 51, generation: 8, cgroup: 71, from_ms: 3_000, ..WEB };
    let state = with(WEB.all().into_iter().chain(again.all()));
    let mut reader = reader(&state);
    let selector = "name=name-of-*".parse().unwrap();
    for (at, generation) in [(500, None), (1_300, Some(7)), (2_000, None), (3_300, Some(8)), (4_000, None)] {
        let at = ms(at);
        let by_id = match reader.by_id_at("we", at) {
            ById::Found(container) => container.generation,
            ById::Unknown => None,
            ById::Ambiguous(several) => panic!("{several:?}"),
        };
        assert_eq!(by_id, generation, "{at:?}");
        let generations: Vec<_> = reader.by_name_at("name-of-web", at).iter().map(|c| c.generation).collect();
        assert_eq!(generations, generation.map(Some).into_iter().collect::<Vec<_>>(), "{at:?}");
        let generations: Vec<_> = reader.select_at(&selector, at).map(|c| c.generation).collect();
        assert_eq!(generations, generation.map(Some).into_iter().collect::<Vec<_>>(), "{at:?}");
    }
    assert!(matches!(reader.by_id("web"), ById::Found(latest) if latest.generation == Some(8)));
}
