//! The collection through its public doors: facts in; look-ups, feeds and hooks out. Needs no privilege.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use tracker::collection::door::{HeldOutcome, HeldStep};
use tracker::collection::view::Host;
use tracker::container::{Domain, Grade, Kind, Namespaces, Pod, State, TaskId};
use tracker::fact::{Birth, End, Execution, Fact, Source, Statement, What};
use tracker::{
    BootTime, ById, ChangeKind, Config, Container, ContainerId, ContainerKey, Feed, FeedItem, FeedOptions, Group,
    Lookup, Selector, Tracker, Verdict,
};

const HOST: Host = Host { namespaces: Namespaces { mnt: 1, net: 2, pid: 3, cgroup: 4, user: 5 }, cgroup_id: 1 };

fn tracker() -> Tracker {
    Tracker::without_sources(&Config::default(), HOST).unwrap()
}

fn key(n: u32) -> ContainerKey {
    let id = ContainerId::new(&format!("c{n}")).unwrap();
    ContainerKey { domain: Domain::Host, scope: "oci/run/runc".into(), id }
}

fn birth(n: u32) -> Birth {
    Birth {
        task: TaskId { pid: 10_000 + n, start_ticks: u64::from(n) + 100 },
        parent: Some(creator(n)),
        outer: None,
        namespaces: Namespaces { mnt: 100_000 + n, net: 200_000 + n, pid: 300_000 + n, cgroup: 4, user: 5 },
        generation: Some(u64::from(n) + 1),
        cgroup_id: None,
        uid: 0,
        born_at: BootTime(u64::from(n) * 10_000_000 + 1_000_000_000),
        executed: true,
    }
}

fn creator(n: u32) -> TaskId {
    TaskId { pid: 50_000 + n, start_ticks: u64::from(n) + 90 }
}

fn fact(source: Source, what: What) -> Fact {
    Fact { source, at: BootTime::now(), what }
}

fn stated(n: u32, statement: Statement) -> Fact {
    fact(Source::Barrier, What::Stated { key: key(n), statement: Box::new(statement) })
}

fn created(n: u32) -> Fact {
    let pod = Pod { namespace: Some("shop".into()), name: Some(format!("pod-{}", n / 2).into()), ..Pod::default() };
    stated(n, Statement { creator: Some(creator(n)), pod: Some(pod), ..Statement::default() })
}

fn running(n: u32) -> Vec<Fact> {
    let execution = Execution { task: birth(n), by_init: true };
    vec![created(n), fact(Source::Kernel, What::Live(true)), fact(Source::Kernel, What::Executed(execution))]
}

fn ended(n: u32) -> Fact {
    let Birth { task, namespaces, generation, .. } = birth(n);
    let end = End { task, mntns: namespaces.mnt, generation, exit: Default::default() };
    fact(Source::Kernel, What::Ended(end))
}

fn next_change(feed: &mut Feed) -> tracker::Change {
    match feed.next_blocking().expect("the collection runs") {
        FeedItem::Change(change) => change,
        other => panic!("expected a change: {other:?}"),
    }
}

fn bundle(feed: &mut Feed) -> (u64, Vec<Arc<Container>>) {
    match feed.next_blocking().expect("the collection runs") {
        FeedItem::Bundle { sequence, containers } => (sequence, containers),
        other => panic!("expected a bundle: {other:?}"),
    }
}

#[test]
fn every_number_leads_to_its_container() {
    let tracker = tracker();
    let mut feed = tracker.subscribe_blocking(FeedOptions::new("test")).unwrap();
    bundle(&mut feed);
    for n in 0..3 {
        tracker.facts().state_blocking(running(n)).unwrap();
    }
    (0..3).for_each(|_| drop(next_change(&mut feed)));

    let mut reader = tracker.reader();
    let is = |lookup: Lookup<'_>, n: u32| lookup.container().is_some_and(|c| *c.id == *format!("c{n}"));
    assert!(is(reader.by_mntns(100_001), 1));
    assert!(is(reader.by_mntns_at(100_001, BootTime::now()), 1));
    assert!(is(reader.by_pid(10_002), 2));
    assert_eq!(reader.by_mntns(1), Lookup::Host);
    assert_eq!(reader.by_mntns(77), Lookup::Unknown);
    assert_eq!(reader.by_mntns_at(100_001, BootTime(5)), Lookup::Unknown);
    assert!(matches!(reader.by_netns(2), Group::Host));
    assert_eq!(reader.by_netns(200_000).containers().map(|c| &*c.id).collect::<Vec<_>>(), ["c0"]);
    assert!(matches!(reader.by_id("c1"), ById::Found(found) if &*found.id == "c1"));
    assert!(matches!(reader.by_id("c"), ById::Ambiguous(found) if found.len() == 3));
    assert!(matches!(reader.by_id("d"), ById::Unknown));
    assert_eq!(reader.by_pod("shop", "pod-0").iter().map(|c| &*c.id).collect::<Vec<_>>(), ["c0", "c1"]);
    let selector: Selector = "pod=pod-1".parse().unwrap();
    assert_eq!(reader.select(&selector).map(|c| &*c.id).collect::<Vec<_>>(), ["c2"]);
    assert_eq!(reader.all().count(), 3);
}

#[test]
fn an_event_is_filled_with_what_holds_for_all_who_share_its_net_ns() {
    let tracker = tracker();
    let mut feed = tracker.subscribe_blocking(FeedOptions::new("test")).unwrap();
    bundle(&mut feed);
    for n in 0..2 {
        let mut task = birth(n);
        task.namespaces.net = 200_000;
        let executed = fact(Source::Kernel, What::Executed(Execution { task, by_init: true }));
        tracker.facts().state_blocking(vec![created(n), fact(Source::Kernel, What::Live(true)), executed]).unwrap();
        next_change(&mut feed);
    }
    let mut enrich = tracker.enrich();
    let now = BootTime::now();
    let shared = enrich.by_netns_at(200_000, now);
    assert_eq!((shared.verdict, shared.container, shared.host_network), (Verdict::Shared, None, Some(false)));
    assert_eq!(shared.pod.and_then(|pod| pod.name.as_deref()), Some("pod-0"));
    assert_eq!(enrich.by_mntns_at(100_001, now).container.map(|c| &*c.id), Some("c1"));
    assert_eq!(enrich.by_mntns_at(1, now).verdict, Verdict::Host);
    assert_eq!(enrich.by_netns_at(9, now).verdict, Verdict::Unknown);
}

#[test]
fn a_feed_delivers_every_change_once_and_in_order() {
    const CONTAINERS: u32 = 400;
    let tracker = tracker();
    for n in 0..10 {
        tracker.facts().state_blocking(running(n)).unwrap();
    }
    let mut options = FeedOptions::new("follower");
    options.queue_len = 4 * CONTAINERS as usize;
    let mut feed = tracker.subscribe_blocking(options).unwrap();
    let facts = tracker.facts().clone();
    let writer = thread::spawn(move || {
        for n in 10..CONTAINERS {
            facts.state_blocking(running(n)).unwrap();
            facts.state_blocking(vec![ended(n - 10)]).unwrap();
        }
    });
    let (mut last, seen) = bundle(&mut feed);
    let mut mirror: std::collections::HashMap<u64, Arc<Container>> =
        seen.into_iter().map(|container| (container.instance, container)).collect();
    let over = |mirror: &std::collections::HashMap<u64, Arc<Container>>| {
        mirror.values().filter(|container| container.state == State::Exited).count()
    };
    while mirror.len() < CONTAINERS as usize || over(&mirror) < CONTAINERS as usize - 10 {
        let change = next_change(&mut feed);
        assert!(change.sequence > last, "{} after {last}", change.sequence);
        last = change.sequence;
        let after = change.after.expect("nothing is removed here");
        let before = mirror.insert(after.instance, after);
        assert_eq!(before, change.before);
    }
    writer.join().unwrap();
    let mut reader = tracker.reader();
    assert!(reader.all().all(|container| mirror[&container.instance] == *container));
}

#[test]
fn a_slow_feed_is_told_that_it_lags_and_gets_everything_anew() {
    let tracker = tracker();
    let mut options = FeedOptions::new("slow");
    options.queue_len = 8;
    let mut feed = tracker.subscribe_blocking(options).unwrap();
    let mut watcher = tracker.subscribe_blocking(FeedOptions::new("quick")).unwrap();
    for n in 0..100 {
        tracker.facts().state_blocking(running(n)).unwrap();
    }
    // Nobody waits for the slow one.
    bundle(&mut watcher);
    (0..100).for_each(|_| drop(next_change(&mut watcher)));

    assert_eq!(bundle(&mut feed).1.len(), 0);
    let mut delivered = 0;
    let missed = loop {
        match feed.next_blocking().unwrap() {
            FeedItem::Change(_) => delivered += 1,
            FeedItem::Lagged { missed } => break missed,
            FeedItem::Bundle { .. } => panic!("a bundle without a reason"),
        }
    };
    assert_eq!(delivered + missed, 100);
    assert!(missed > 0);
    assert_eq!(bundle(&mut feed).1.len(), 100);
    tracker.facts().state_blocking(running(100)).unwrap();
    assert_eq!(next_change(&mut feed).kind, ChangeKind::Added);
}

#[test]
fn a_container_that_ceases_to_match_is_removed_from_the_feed() {
    let tracker = tracker();
    let mut options = FeedOptions::new("running only");
    options.selector = "state=running".parse().unwrap();
    let mut feed = tracker.subscribe_blocking(options).unwrap();
    bundle(&mut feed);
    tracker.facts().state_blocking(running(1)).unwrap();
    assert_eq!(next_change(&mut feed).kind, ChangeKind::Added);
    tracker.facts().state_blocking(vec![ended(1)]).unwrap();
    let change = next_change(&mut feed);
    assert_eq!((change.kind, change.after), (ChangeKind::Removed, None));
}

#[test]
fn one_sources_own_view_hears_nothing_of_others() {
    let tracker = tracker();
    let mut options = FeedOptions::new("docker's own");
    options.source = Some(Source::Docker);
    options.kinds = vec![Kind::Container];
    let mut feed = tracker.subscribe_blocking(options).unwrap();
    bundle(&mut feed);
    tracker.facts().state_blocking(running(1)).unwrap();
    let named = Statement { name: Some("web".into()), ..Statement::default() };
    let what = What::Stated { key: key(1), statement: Box::new(named) };
    tracker.facts().state_blocking(vec![fact(Source::Docker, what)]).unwrap();
    let change = next_change(&mut feed);
    let after = change.after.unwrap();
    assert_eq!((change.kind, after.name.as_deref(), after.pod.as_ref()), (ChangeKind::Added, Some("web"), None));
}

const BUDGET: Duration = Duration::from_secs(20);

fn hold(tracker: &Tracker, n: u32) -> HeldOutcome {
    let statement = Statement { creator: Some(creator(n)), task: Some(birth(n).task), ..Statement::default() };
    tracker.facts().hold(vec![stated(n, statement)], key(n), HeldStep::Start, Instant::now() + BUDGET)
}

#[test]
fn a_held_start_waits_for_its_subscribers_and_they_find_it_published() {
    let tracker = tracker();
    let (sender, called) = mpsc::sync_channel::<String>(16);
    let mut reader = tracker.reader();
    tracker
        .on_start("test", Selector::default(), BUDGET, move |container| {
            let ById::Found(found) = reader.by_id(&container.id) else { panic!("not published") };
            assert_eq!(found.grade, Some(Grade::Held));
            sender.send(container.id.to_string()).unwrap();
        })
        .unwrap();
    assert_eq!(hold(&tracker, 1), HeldOutcome::Done);
    // It was called before the hold was over, so the channel has it already.
    assert_eq!(called.try_recv().as_deref(), Ok("c1"));
    assert_eq!(hold(&tracker, 1), HeldOutcome::Done);
}

#[test]
fn a_late_subscriber_is_skipped_and_holds_nobody() {
    let tracker = tracker();
    let stuck = Arc::new(Barrier::new(2));
    let mut release = Some(Arc::clone(&stuck));
    let late = tracker
        .on_start("late", Selector::default(), Duration::from_millis(20), move |_| {
            if let Some(release) = release.take() {
                release.wait();
            }
        })
        .unwrap();
    let on_time = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&on_time);
    tracker
        .on_start("on time", Selector::default(), BUDGET, move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
        })
        .unwrap();
    for n in 1..=3 {
        assert_eq!(hold(&tracker, n), HeldOutcome::Done);
        assert_eq!(on_time.load(Ordering::SeqCst), u64::from(n));
    }
    assert_eq!(late.late.load(Ordering::SeqCst), 1, "the first hold went on when its budget was over");
    assert_eq!(late.skipped.load(Ordering::SeqCst), 2, "the others did not wait for who is late already");
    stuck.wait();
    // It is back: further containers are told again.
    let deadline = Instant::now() + BUDGET;
    for n in 4.. {
        assert_eq!(hold(&tracker, n), HeldOutcome::Done);
        if late.called.load(Ordering::SeqCst) == 2 {
            break;
        }
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn a_panicking_subscriber_is_contained_and_goes_on() {
    let tracker = tracker();
    let stats = tracker.on_start("panics", Selector::default(), BUDGET, |_| panic!("on purpose")).unwrap();
    for n in 1..=3 {
        assert_eq!(hold(&tracker, n), HeldOutcome::Done);
    }
    assert_eq!(stats.panicked.load(Ordering::SeqCst), 3);
}

#[test]
fn a_start_that_nothing_held_is_told_once_when_it_runs() {
    let tracker = tracker();
    let (sender, called) = mpsc::sync_channel::<String>(16);
    tracker
        .on_start("test", Selector::default(), BUDGET, move |container| {
            sender.send(container.id.to_string()).unwrap();
        })
        .unwrap();
    tracker.facts().state_blocking(running(1)).unwrap();
    tracker.facts().state_blocking(running(1)).unwrap();
    tracker.facts().state_blocking(running(2)).unwrap();
    assert_eq!(called.recv_timeout(BUDGET).as_deref(), Ok("c1"));
    assert_eq!(called.recv_timeout(BUDGET).as_deref(), Ok("c2"));
}
