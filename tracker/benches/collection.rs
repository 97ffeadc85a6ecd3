//! The collection's speeds: look-ups, publishing, a container's whole life, many on one net ns, memory. Each beside its
//! baseline in the same run: for look-ups a `RwLock<HashMap>`, for publishing a copy of the indexes.

#![allow(clippy::print_stdout, reason = "its figures are what it is for")]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use tracker::collection::view::Host;
use tracker::container::{Cgroup, Domain, Exit, Image, Namespaces, Pod, Runtime, State, TaskId};
use tracker::fact::{Birth, End, Execution, Fact, Source, Statement, What};
use tracker::{BootTime, Config, Container, ContainerId, ContainerKey, FeedItem, FeedOptions, Tracker};

const HOST: Host = Host { namespaces: Namespaces { mnt: 1, net: 2, pid: 3, cgroup: 4, user: 5 }, cgroup_id: 1 };
const FIRST_MNTNS: u32 = 4_026_532_000;

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let benches: [(&str, fn()); 6] = [
        ("lookup", lookups),
        ("lookup_past", past_lookups),
        ("publish", publishing),
        ("life", lives),
        ("netns", shared_netns),
        ("memory", memory),
    ];
    for (name, bench) in benches.iter().filter(|(name, _)| name.contains(&filter)) {
        println!("\n== {name}");
        bench();
    }
}

fn tracker() -> Tracker {
    let mut config = Config::default();
    config.collection.max_containers = 1 << 20;
    config.collection.tombstone_bytes = 1 << 30;
    // The lives are told with times of long ago: none of them may be forgotten meanwhile.
    config.collection.linger_ms = 1_000_000_000;
    Tracker::without_sources(&config, HOST).expect("it needs no privilege")
}

/// Container `n` in its `run`th life.
fn birth(n: u32, run: u32) -> Birth {
    let start = 1_000_000_000 + u64::from(run) * 1_000_000_000;
    Birth {
        task: TaskId { pid: 1_000 + n, start_ticks: start / 10_000_000 },
        parent: Some(TaskId { pid: 2_000_000 + n, start_ticks: start / 10_000_000 - 1 }),
        namespaces: Namespaces { mnt: FIRST_MNTNS + n, net: 3_000_000 + n, pid: 5_000_000 + n, cgroup: 4, user: 5 },
        generation: Some(u64::from(run) << 32 | u64::from(n)),
        cgroup_id: Some(1_000_000 + (u64::from(run) << 32) + u64::from(n)),
        uid: 0,
        born_at: BootTime(start),
        executed: false,
    }
}

fn key(n: u32) -> ContainerKey {
    let id = ContainerId::new(&format!("{n:064x}")).expect("hexadecimal digits are valid");
    ContainerKey { domain: Domain::Host, scope: "containerd/k8s.io".into(), id }
}

fn statement(n: u32, birth: &Birth, state: State, with_task: bool) -> Statement {
    let labels = (0..12).map(|l| (format!("example.org/label-{l}").into(), format!("value-{l}-{n}").into()));
    Statement {
        task: with_task.then_some(birth.task),
        creator: birth.parent,
        namespaces: with_task.then_some(birth.namespaces),
        state: Some(state),
        name: Some(format!("container-{n}").into()),
        runtime: Some(Runtime {
            name: Some("containerd".into()),
            namespace: Some("k8s.io".into()),
            ..Runtime::default()
        }),
        image: Some(Image { name: Some("registry.example/app:1.2".into()), ..Image::default() }),
        pod: Some(Pod {
            name: Some(format!("pod-{}", n / 2).into()),
            namespace: Some("shop".into()),
            ..Pod::default()
        }),
        labels: Some(Arc::new(labels.collect())),
        cgroup: Some(Cgroup { path: Some(format!("/kubepods/{n}").into()), ..Cgroup::default() }),
        bundle: Some(format!("/run/bundles/{n:064x}").into()),
        ..Statement::default()
    }
}

fn fact(source: Source, at: BootTime, what: What) -> Fact {
    Fact { source, at, what }
}

fn stated(source: Source, n: u32, birth: &Birth, state: State, with_task: bool) -> Fact {
    let statement = Box::new(statement(n, birth, state, with_task));
    fact(source, birth.born_at, What::Stated { key: key(n), statement })
}

/// The facts of a start as the sources state them: two of the barrier's, two of containerd's, two of the kernel's.
fn start(n: u32, run: u32) -> Vec<Fact> {
    let birth = birth(n, run);
    let executed = Birth { executed: true, ..birth };
    vec![
        stated(Source::Barrier, n, &birth, State::Created, false),
        fact(Source::Kernel, birth.born_at, What::Born(birth)),
        stated(Source::Containerd, n, &birth, State::Created, true),
        stated(Source::Barrier, n, &birth, State::Running, true),
        fact(Source::Kernel, birth.born_at, What::Executed(Execution { task: executed, by_init: true })),
        stated(Source::Containerd, n, &birth, State::Running, true),
    ]
}

fn end(n: u32, run: u32) -> Vec<Fact> {
    let birth = birth(n, run);
    let at = BootTime(birth.born_at.0 + 500_000_000);
    let ended = End {
        task: birth.task,
        mntns: birth.namespaces.mnt,
        generation: birth.generation,
        exit: Exit { code: 137, signal: Some(9), oom: None },
    };
    vec![
        fact(Source::Kernel, at, What::Ended(ended)),
        fact(Source::Kernel, at, What::CgroupEmptied { id: birth.cgroup_id.unwrap_or(0) }),
    ]
}

/// Waits until everything stated so far is published: a feed's bundle comes after it.
fn settle(tracker: &Tracker) {
    let mut feed = tracker.subscribe_blocking(FeedOptions::new("settle")).expect("the collection runs");
    feed.next_blocking().expect("the collection runs");
}

fn filled(containers: u32, tombstones: u32) -> Tracker {
    let tracker = tracker();
    tracker.facts().state_blocking(vec![fact(Source::Kernel, BootTime::ZERO, What::Live(true))]).expect("it runs");
    for n in 0..tombstones {
        let facts = start(n % containers, n / containers).into_iter().chain(end(n % containers, n / containers));
        tracker.facts().state_blocking(facts.collect()).expect("it runs");
    }
    for n in 0..containers {
        tracker.facts().state_blocking(start(n, tombstones / containers + 1)).expect("it runs");
    }
    settle(&tracker);
    tracker
}

/// Runs `step` on `threads` threads for a while, each with what `make` gives it; returns nanoseconds per step.
fn measure<T>(threads: usize, make: impl Fn() -> T + Sync, step: impl Fn(&mut T, u32) + Sync) -> f64 {
    const STEPS: u32 = 4_096;
    const FOR: Duration = Duration::from_millis(300);
    let (begin, over) = (Barrier::new(threads + 1), AtomicBool::new(false));
    let (steps, time) = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let (begin, over, make, step) = (&begin, &over, &make, &step);
                scope.spawn(move || {
                    let mut own = make();
                    let mut next = worker as u32 * 7_919;
                    begin.wait();
                    let (started, mut steps) = (Instant::now(), 0u64);
                    while !over.load(Ordering::Relaxed) {
                        for _ in 0..STEPS {
                            step(&mut own, next);
                            next = next.wrapping_add(7_919);
                        }
                        steps += u64::from(STEPS);
                    }
                    (steps, started.elapsed())
                })
            })
            .collect();
        begin.wait();
        thread::sleep(FOR);
        over.store(true, Ordering::Relaxed);
        let done = workers.into_iter().map(|worker| worker.join().expect("a worker only measures"));
        done.fold((0, Duration::ZERO), |(steps, time), (own, elapsed)| (steps + own, time + elapsed))
    });
    time.as_nanos() as f64 / steps as f64
}

fn lookups() {
    println!(
        "| containers | tombstones | threads | hit, ns | hit at a time, ns | miss, ns | RwLock<HashMap> hit, ns | miss, ns |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for containers in [100, 10_000, 100_000] {
        for tombstones in [0, 1_000, 10_000] {
            let tracker = filled(containers, tombstones);
            let all = tracker
                .reader()
                .all()
                .map(|c| (c.namespaces.mnt, Arc::clone(c)))
                .collect::<HashMap<u32, Arc<Container>>>();
            let map = RwLock::new(all);
            let now = BootTime::now().max(BootTime(u64::MAX / 2));
            for threads in [1, 2] {
                let ns = |step: u32| FIRST_MNTNS + step % containers;
                let reader = || tracker.reader();
                let hit = measure(threads, reader, |reader, step| {
                    black_box(reader.by_mntns(ns(step)).container().expect("it is there") as *const _);
                });
                let hit_at = measure(threads, reader, |reader, step| {
                    black_box(reader.by_mntns_at(ns(step), now).container().expect("it is there") as *const _);
                });
                let miss = measure(threads, reader, |reader, step| {
                    black_box(reader.by_mntns(ns(step) - 1_000_000_000).container().is_none());
                });
                let map_hit = measure(
                    threads,
                    || (),
                    |(), step| {
                        let map = map.read().expect("nobody panics");
                        black_box(Arc::as_ptr(&map[&ns(step)]));
                    },
                );
                let map_miss = measure(
                    threads,
                    || (),
                    |(), step| {
                        let map = map.read().expect("nobody panics");
                        black_box(map.get(&(ns(step) - 1_000_000_000)).is_none());
                    },
                );
                println!(
                    "| {containers} | {tombstones} | {threads} | {hit:.1} | {hit_at:.1} | {miss:.1} | {map_hit:.1} | {map_miss:.1} |"
                );
            }
        }
    }
}

fn past_lookups() {
    const DEAD: u32 = 5_000;
    let tracker = filled(1, DEAD);
    let times: Vec<BootTime> = (0..DEAD).map(|run| BootTime(birth(0, run).born_at.0 + 250_000_000)).collect();
    let at = |step: u32| times[(step % DEAD) as usize];
    let past = measure(
        1,
        || tracker.reader(),
        |reader, step| {
            black_box(reader.by_mntns_at(FIRST_MNTNS, at(step)).container().expect("it lived then") as *const _);
        },
    );
    let lives: RwLock<Vec<(BootTime, Arc<Container>)>> =
        RwLock::new(tracker.reader().all().map(|c| (c.created_at.unwrap_or_default(), Arc::clone(c))).collect());
    lives.write().expect("nobody panics").sort_by_key(|(from, _)| *from);
    let sorted = measure(
        1,
        || (),
        |(), step| {
            let lives = lives.read().expect("nobody panics");
            let place = lives.partition_point(|(from, _)| *from <= at(step));
            black_box(Arc::as_ptr(&lives[place - 1].1));
        },
    );
    println!("| dead entries on one key | at a past time, ns | RwLock<sorted Vec>, ns |\n|---|---|---|");
    println!("| {DEAD} | {past:.1} | {sorted:.1} |");
}

/// From a fact being stated to its change being delivered, and how much of that is the collection's own work.
fn publishing() {
    println!("| containers | one change, stated to delivered, µs | copying four indexes, µs |\n|---|---|---|");
    for containers in [100, 10_000, 100_000] {
        let tracker = filled(containers, 0);
        let mut feed = tracker.subscribe_blocking(FeedOptions::new("bench")).expect("it runs");
        feed.next_blocking();
        let changes = 2_000;
        let begun = Instant::now();
        for change in 0..changes {
            let n = change * 7_919 % containers;
            let birth = birth(n, 1);
            let mut statement = statement(n, &birth, State::Running, true);
            statement.name = Some(format!("renamed-{change}").into());
            let at = BootTime(birth.born_at.0 + 1_000 + u64::from(change));
            let what = What::Stated { key: key(n), statement: Box::new(statement) };
            tracker.facts().state_blocking(vec![fact(Source::Containerd, at, what)]).expect("it runs");
            assert!(matches!(feed.next_blocking(), Some(FeedItem::Change(_))));
        }
        let published = begun.elapsed().as_secs_f64() * 1e6 / f64::from(changes);

        let all: Vec<Arc<Container>> = tracker.reader().all().cloned().collect();
        let indexes: [HashMap<u64, Arc<Container>>; 4] = [
            all.iter().map(|c| (c.namespaces.mnt.into(), Arc::clone(c))).collect(),
            all.iter().map(|c| (c.namespaces.net.into(), Arc::clone(c))).collect(),
            all.iter().map(|c| (c.instance, Arc::clone(c))).collect(),
            all.iter().map(|c| (u64::from(c.pid().unwrap_or(0)), Arc::clone(c))).collect(),
        ];
        let copies = if containers > 50_000 { 10 } else { 100 };
        let begun = Instant::now();
        (0..copies).for_each(|_| drop(black_box(indexes.clone())));
        let copied = begun.elapsed().as_secs_f64() * 1e6 / f64::from(copies);
        println!("| {containers} | {published:.1} | {copied:.1} |");
    }
}

fn lives() {
    let tracker = filled(1, 0);
    let containers = 20_000;
    let begun = Instant::now();
    for n in 1..=containers {
        tracker.facts().state_blocking(start(n, 1)).expect("it runs");
        tracker.facts().state_blocking(end(n, 1)).expect("it runs");
    }
    settle(&tracker);
    let life = begun.elapsed().as_secs_f64() * 1e6 / f64::from(containers);
    let begun = Instant::now();
    let made: usize = (1..=containers).map(|n| black_box(start(n, 1)).len() + black_box(end(n, 1)).len()).sum();
    let making = begun.elapsed().as_secs_f64() * 1e6 / f64::from(containers);
    println!(
        "| one container's whole life, µs | of which making its {} facts, µs |\n|---|---|",
        made as u32 / containers
    );
    println!("| {life:.1} | {making:.1} |");
}

fn shared_netns() {
    println!("| containers on one net ns | all stated to all published, ms | on a net ns each, ms |\n|---|---|---|");
    for containers in [1_000, 10_000] {
        let time = |shared: bool| {
            let tracker = tracker();
            let facts: Vec<Fact> = (0..containers)
                .map(|n| {
                    let mut task = Birth { executed: true, ..birth(n, 1) };
                    if shared {
                        task.namespaces.net = 9;
                    }
                    fact(Source::Kernel, task.born_at, What::Executed(Execution { task, by_init: true }))
                })
                .collect();
            let begun = Instant::now();
            tracker.facts().state_blocking(facts).expect("it runs");
            settle(&tracker);
            let time = begun.elapsed();
            let net = if shared { 9 } else { 3_000_000 };
            assert_eq!(
                tracker.reader().by_netns(net).containers().count(),
                if shared { containers as usize } else { 1 }
            );
            time.as_secs_f64() * 1e3
        };
        println!("| {containers} | {:.1} | {:.1} |", time(true), time(false));
    }
}

fn memory() {
    let containers = 10_000;
    let base = resident();
    let tracker = filled(containers, 0);
    let after = resident();
    assert_eq!(tracker.reader().all().count(), containers as usize);
    let plain: u64 = (0..containers)
        .map(|n| {
            serde_json::to_vec(&(0..12).map(|l| format!("example.org/label-{l}: value-{l}-{n}")).collect::<Vec<_>>())
        })
        .map(|json| json.map_or(0, |json| json.len() as u64))
        .sum::<u64>()
        / u64::from(containers);
    println!("| per container with 12 labels and all statements, bytes | its labels as JSON, bytes |\n|---|---|");
    println!("| {} | {plain} |", (after - base) / u64::from(containers));
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc is there");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("field 2 counts pages");
    pages * 4_096
}
