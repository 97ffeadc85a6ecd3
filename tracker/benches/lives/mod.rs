//! Containers for benchmarks: what the sources state of each, in its whole life, made up and always the same.

use tracker::collection::view::Host;
use tracker::container::{Cgroup, Domain, Exit, Image, Namespaces, Pod, Runtime, State, TaskId};
use tracker::fact::{Birth, End, Execution, Fact, Source, Statement, What};
use tracker::{BootTime, Config, ContainerId, ContainerKey, FeedOptions, Tracker};

const HOST: Host = Host { namespaces: Namespaces { mnt: 1, net: 2, pid: 3, cgroup: 4, user: 5 }, cgroup_id: 1 };
/// The mount ns of container 0; the next have the next numbers.
pub(crate) const FIRST_MNTNS: u32 = 4_026_532_000;

/// A collection that nothing states anything to by itself.
pub(crate) fn tracker() -> Tracker {
    let mut config = Config::default();
    config.collection.max_containers = 1 << 20;
    config.collection.tombstone_bytes = 1 << 30;
    // The lives are told with times of long ago: none of them may be forgotten meanwhile.
    config.collection.linger_ms = 1_000_000_000;
    Tracker::without_sources(&config, HOST).expect("it needs no privilege")
}

/// Container `n` in its `run`th life.
pub(crate) fn birth(n: u32, run: u32) -> Birth {
    let start = 1_000_000_000 + u64::from(run) * 1_000_000_000;
    Birth {
        task: TaskId { pid: 1_000 + n, start_ticks: start / 10_000_000 },
        parent: Some(TaskId { pid: 2_000_000 + n, start_ticks: start / 10_000_000 - 1 }),
        outer: None,
        namespaces: Namespaces { mnt: FIRST_MNTNS + n, net: 3_000_000 + n, pid: 5_000_000 + n, cgroup: 4, user: 5 },
        generation: Some(u64::from(run) << 32 | u64::from(n)),
        cgroup_id: Some(1_000_000 + (u64::from(run) << 32) + u64::from(n)),
        uid: 0,
        born_at: BootTime(start),
        executed: false,
    }
}

/// What a runtime calls it.
pub(crate) fn key(n: u32) -> ContainerKey {
    let id = ContainerId::new(&format!("{n:064x}")).expect("hexadecimal digits are valid");
    ContainerKey { domain: Domain::Host, scope: "containerd/k8s.io".into(), id }
}

/// What one source says of it.
pub(crate) fn statement(n: u32, birth: &Birth, state: State, with_task: bool) -> Statement {
    let labels = (0..12).map(|l| (format!("example.org/label-{l}"), format!("value-{l}-{n}")));
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
        labels: Some(labels.collect()),
        cgroup: Some(Cgroup { path: Some(format!("/kubepods/{n}").into()), ..Cgroup::default() }),
        bundle: Some(format!("/run/bundles/{n:064x}").into()),
        ..Statement::default()
    }
}

/// One fact.
pub(crate) fn fact(source: Source, at: BootTime, what: What) -> Fact {
    Fact { source, at, what }
}

fn stated(source: Source, n: u32, birth: &Birth, state: State, with_task: bool) -> Fact {
    let statement = Box::new(statement(n, birth, state, with_task));
    fact(source, birth.born_at, What::Stated { key: key(n), statement })
}

/// The facts of a start as the sources state them: two of the barrier's, two of containerd's, two of the kernel's.
pub(crate) fn start(n: u32, run: u32) -> Vec<Fact> {
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

/// The facts of its end.
pub(crate) fn end(n: u32, run: u32) -> Vec<Fact> {
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
pub(crate) fn settle(tracker: &Tracker) {
    let mut feed = tracker.subscribe_blocking(FeedOptions::new("settle")).expect("the collection runs");
    feed.next_blocking().expect("the collection runs");
}

/// One with so many containers that live, and so many lives that are over on the same numbers.
pub(crate) fn filled(containers: u32, tombstones: u32) -> Tracker {
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
