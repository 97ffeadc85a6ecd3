//! What the collection does with a container that the configuration's filter excludes: facts in; look-ups, feeds, hooks and
//! stories out. Needs no privilege.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::mpsc;
use std::time::{Duration, Instant};

use tracker::collection::door::{HeldOutcome, HeldStep};
use tracker::collection::view::Host;
use tracker::container::{Cgroup, Domain, Image, Kind, Labels, Namespaces, Pod, Runtime, Str, TaskId};
use tracker::enrich::recognise::Recognised;
use tracker::fact::{Birth, Execution, Fact, Look, Source, Statement, What};
use tracker::{
    BootTime, ById, ChangeKind, Config, ContainerId, ContainerKey, Feed, FeedItem, FeedOptions, Group, Lookup,
    Selector, Tracker, Verdict, Who,
};

const HOST: Host = Host { namespaces: Namespaces { mnt: 1, net: 2, pid: 3, cgroup: 4, user: 5 }, cgroup_id: 1 };
const POD_NET: u32 = 200_000;

fn excluding(rules: &[&str]) -> Tracker {
    let mut config = Config::default();
    config.filter.exclude = rules.iter().map(|rule| (*rule).to_owned()).collect();
    Tracker::without_sources(&config, HOST).unwrap()
}

fn birth(n: u32) -> Birth {
    Birth {
        task: TaskId { pid: 10_000 + n, start_ticks: u64::from(n) + 100 },
        parent: None,
        outer: None,
        namespaces: Namespaces { mnt: 100_000 + n, net: POD_NET, pid: 300_000 + n, cgroup: 4, user: 5 },
        generation: Some(u64::from(n) + 1),
        cgroup_id: Some(700 + u64::from(n)),
        uid: 0,
        born_at: BootTime(u64::from(n) * 10_000_000 + 1_000_000_000),
        executed: true,
    }
}

fn key(n: u32) -> ContainerKey {
    let id = ContainerId::new(&format!("c{n}")).unwrap();
    ContainerKey { domain: Domain::Host, scope: "oci/run/runc".into(), id }
}

fn fact(source: Source, what: What) -> Fact {
    Fact { source, at: BootTime::now(), what }
}

fn executed(n: u32) -> Fact {
    fact(Source::Kernel, What::Executed(Execution { task: birth(n), by_init: true }))
}

/// All that is said of container `n`; its image is `image`.
fn statement(n: u32, image: Option<&str>) -> Statement {
    Statement {
        task: Some(birth(n).task),
        name: Some(format!("web-{n}").into()),
        runtime: Some(Runtime { oci: Some("runc".into()), ..Runtime::default() }),
        image: image.map(|image| Image { name: Some(image.into()), ..Image::default() }),
        pod: Some(Pod { namespace: Some("shop".into()), name: Some("p".into()), ..Pod::default() }),
        cgroup: Some(Cgroup { id: birth(n).cgroup_id, ..Cgroup::default() }),
        ..Statement::default()
    }
}

fn stated(n: u32, image: Option<&str>) -> Fact {
    fact(Source::Barrier, What::Stated { key: key(n), statement: Box::new(statement(n, image)) })
}

fn follow(tracker: &Tracker) -> Feed {
    let mut feed = tracker.subscribe_blocking(FeedOptions::new("test")).unwrap();
    assert!(matches!(feed.next_blocking(), Some(FeedItem::Bundle { .. })));
    feed
}

fn next(feed: &mut Feed) -> (ChangeKind, String) {
    match feed.next_blocking().expect("the collection runs") {
        FeedItem::Change(change) => {
            (change.kind, change.after.or(change.before).map(|container| container.id.to_string()).unwrap())
        }
        other => panic!("expected a change: {other:?}"),
    }
}

fn state(tracker: &Tracker, facts: Vec<Fact>) {
    let all = vec![fact(Source::Kernel, What::Live(true))].into_iter().chain(facts).collect();
    tracker.facts().state_blocking(all).unwrap();
}

#[test]
fn an_excluded_container_is_in_no_answer_and_its_story_says_why() {
    let tracker = excluding(&["image:nginx"]);
    let mut feed = follow(&tracker);
    state(&tracker, vec![executed(1), stated(1, Some("nginx:1")), executed(2), stated(2, Some("redis:7"))]);
    assert_eq!(next(&mut feed), (ChangeKind::Added, "c2".into()));

    let mut reader = tracker.reader();
    assert_eq!(reader.by_mntns(100_001), Lookup::Unknown);
    assert_eq!(reader.by_mntns_at(100_001, BootTime::now()), Lookup::Unknown);
    assert_eq!(reader.by_pid(10_001), Lookup::Unknown);
    assert!(matches!(reader.by_cgroup(701), Group::Unknown));
    assert!(matches!(reader.by_id("c1"), ById::Unknown));
    assert!(reader.by_name("web-1").is_empty());
    assert_eq!(reader.by_pod("shop", "p").len(), 1);
    assert_eq!(reader.all().count(), 1);
    assert!(matches!(reader.by_mntns(100_002), Lookup::Container(_)));
    let told: Vec<_> = reader.excluded().map(|each| (each.container.id.to_string(), each.rule.to_string())).collect();
    assert_eq!(told, [("c1".to_owned(), "exclude `image:nginx`".to_owned())]);

    for who in [Who::Id("c1".into()), Who::Id("web-1".into()), Who::Pid(10_001), Who::Mntns(100_001)] {
        let story = tracker.explain_blocking(who.clone()).unwrap().unwrap();
        assert_eq!(story.excluded.as_deref(), Some("exclude `image:nginx`"), "{who:?}");
        assert_eq!(&*story.container.id, "c1");
    }
    let story = tracker.explain_blocking(Who::Id("c2".into())).unwrap().unwrap();
    assert_eq!(story.excluded, None);
    tracker.shutdown();
}

#[test]
fn who_shares_a_number_with_an_excluded_container_is_not_taken_for_its_only_holder() {
    let tracker = excluding(&["image:nginx"]);
    let mut feed = follow(&tracker);
    state(&tracker, vec![executed(1), stated(1, Some("nginx:1")), executed(2), stated(2, Some("redis:7"))]);
    next(&mut feed);

    let mut reader = tracker.reader();
    let Group::Containers(containers) = reader.by_netns(POD_NET) else { panic!("the other one is there") };
    assert_eq!(containers.clone().map(|container| &*container.id).collect::<Vec<_>>(), ["c2"]);
    assert_eq!(containers.excluded().map(|container| &*container.id).collect::<Vec<_>>(), ["c1"]);

    let mut enrich = tracker.enrich();
    let event = enrich.by_netns_at(POD_NET, BootTime::now());
    assert_eq!((event.verdict, event.container), (Verdict::Shared, None));
    assert_eq!(event.pod.unwrap().name.as_deref(), Some("p"));
    tracker.shutdown();
}

#[test]
fn a_sub_namespace_does_not_inherit_the_cgroup_of_an_excluded_container() {
    let tracker = excluding(&["image:nginx"]);
    let mut feed = follow(&tracker);
    let inner = Birth { cgroup_id: birth(1).cgroup_id, ..birth(3) };
    let inner = fact(Source::Kernel, What::Executed(Execution { task: inner, by_init: true }));
    state(&tracker, vec![executed(1), stated(1, Some("nginx:1")), inner]);
    assert_eq!(next(&mut feed).0, ChangeKind::Added);
    assert!(matches!(tracker.reader().by_cgroup(701), Group::Unknown));
    assert!(matches!(tracker.reader().by_mntns(100_003), Lookup::Container(_)), "its own numbers are its own");
    tracker.shutdown();
}

#[test]
fn what_becomes_known_later_removes_a_container_and_brings_it_back() {
    let tracker = excluding(&["image:nginx"]);
    let mut feed = follow(&tracker);
    state(&tracker, vec![executed(1), stated(1, None)]);
    assert_eq!(next(&mut feed), (ChangeKind::Added, "c1".into()));
    state(&tracker, vec![stated(1, Some("nginx:1"))]);
    assert_eq!(next(&mut feed), (ChangeKind::Removed, "c1".into()));
    assert_eq!(tracker.reader().by_mntns(100_001), Lookup::Unknown);
    // Nothing of what happens meanwhile is told.
    let labelled =
        Statement { labels: Some([("a", "b")].into_iter().collect::<Labels>()), ..statement(1, Some("nginx:1")) };
    state(&tracker, vec![fact(Source::Barrier, What::Stated { key: key(1), statement: Box::new(labelled) })]);
    state(&tracker, vec![stated(1, Some("redis:7"))]);
    assert_eq!(next(&mut feed), (ChangeKind::Added, "c1".into()));
    let mut reader = tracker.reader();
    assert!(matches!(reader.by_mntns(100_001), Lookup::Container(_)));
    assert_eq!(reader.excluded().count(), 0);
    assert!(
        matches!(reader.by_netns(POD_NET), Group::Containers(group) if group.clone().count() == 1 && group.excluded().count() == 0)
    );
    tracker.shutdown();
}

#[test]
fn a_number_that_passes_to_an_excluded_container_is_no_longer_its_former_holders() {
    let tracker = excluding(&["image:nginx"]);
    let mut feed = follow(&tracker);
    state(&tracker, vec![executed(2), stated(2, Some("redis:7"))]);
    next(&mut feed);
    let heir = Birth { namespaces: birth(2).namespaces, ..birth(5) };
    let heir = fact(Source::Kernel, What::Executed(Execution { task: heir, by_init: true }));
    state(&tracker, vec![stated(5, Some("nginx:1")), heir]);
    let story = tracker.explain_blocking(Who::Mntns(100_002)).unwrap().unwrap();
    assert_eq!((&*story.container.id, story.excluded.is_some()), ("c5", true));
    let mut reader = tracker.reader();
    assert_eq!(reader.by_mntns(100_002), Lookup::Unknown);
    assert!(matches!(reader.by_mntns_at(100_002, BootTime(birth(5).born_at.0 - 1)), Lookup::Container(_)));
    assert_eq!(reader.by_mntns_at(100_002, birth(5).born_at), Lookup::Unknown);
    tracker.shutdown();
}

#[test]
fn nobody_is_called_for_the_start_of_an_excluded_container_and_nobody_waits() {
    let tracker = excluding(&["image:nginx"]);
    let (called, calls) = mpsc::sync_channel(2);
    let hook = move |container: &std::sync::Arc<tracker::Container>| called.send(container.id.to_string()).unwrap();
    tracker.on_start("test", Selector::everything(), Duration::from_secs(5), hook).unwrap();
    let soon = || Instant::now() + Duration::from_secs(10);
    for (n, image) in [(1, "nginx:1"), (2, "redis:7")] {
        let outcome = tracker.facts().hold(vec![executed(n), stated(n, Some(image))], key(n), HeldStep::Start, soon());
        assert_eq!(outcome, HeldOutcome::Done);
    }
    assert_eq!(calls.recv_timeout(Duration::from_secs(10)).unwrap(), "c2");
    assert!(calls.try_recv().is_err());
    tracker.shutdown();
}

#[test]
fn a_sandboxed_process_is_not_told_unless_a_runtime_says_what_it_is() {
    let tracker = excluding(&[]);
    let mut feed = follow(&tracker);
    state(&tracker, vec![executed(1)]);
    assert_eq!(next(&mut feed), (ChangeKind::Added, "mntns-2".into()));
    let recognised =
        Recognised { kind: Kind::SandboxedProcess, runtime: Some("systemd".into()), name: Some("x.service".into()) };
    let command = Some([Str::from("/bin/x")].into_iter().collect());
    let look = Box::new(Look { recognised, cgroup: Cgroup::default(), command });
    state(&tracker, vec![fact(Source::Proc, What::Looked { task: birth(1).task, look })]);
    assert_eq!(next(&mut feed), (ChangeKind::Removed, "mntns-2".into()));
    assert_eq!(tracker.reader().by_mntns(100_001), Lookup::Unknown);
    let story = tracker.explain_blocking(Who::Mntns(100_001)).unwrap().unwrap();
    assert_eq!(story.container.kind, Kind::SandboxedProcess);
    assert_eq!(story.container.name.as_deref(), Some("x.service"));
    // What was seen of it no longer counts then.
    state(&tracker, vec![stated(1, None)]);
    assert_eq!(next(&mut feed), (ChangeKind::Added, "c1".into()));
    let story = tracker.explain_blocking(Who::Id("c1".into())).unwrap().unwrap();
    assert_eq!((story.container.kind, story.container.name.as_deref()), (Kind::Container, Some("web-1")));
    assert_eq!(story.container.details.command, None);
    tracker.shutdown();
}

#[test]
fn a_tracker_with_bad_patterns_does_not_start() {
    let mut config = Config::default();
    config.filter.exclude = vec!["name:(".into(), "image:[".into()];
    let error = Tracker::without_sources(&config, HOST).unwrap_err();
    let told = error.to_string();
    assert!(told.contains("exclude, rule 1 `name:(`") && told.contains("exclude, rule 2 `image:[`"), "{told}");
    assert!(error.remedy().contains("filter test"));
}
