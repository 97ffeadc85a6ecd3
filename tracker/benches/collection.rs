//! The collection's speeds: look-ups, publishing, a container's whole life, many on one net ns. Each beside its baseline:
//! for look-ups a `RwLock<HashMap>`, for publishing a copy of the indexes.
//!
//! What takes nanoseconds is done a thousand times per iteration: microseconds per iteration are nanoseconds each.

#[allow(dead_code, reason = "each benchmark needs a part of it")]
mod lives;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use tracker::container::State;
use tracker::fact::{Birth, Execution, Fact, Source, What};
use tracker::{BootTime, Container, Feed, FeedItem, FeedOptions, Tracker};

use lives::{FIRST_MNTNS, birth, end, fact, filled, key, settle, start, statement};

/// Look-ups per iteration.
const THOUSAND: u32 = 1_000;

fn main() {
    divan::main();
}

/// A size of the collection.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Case {
    containers: u32,
    tombstones: u32,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} containers, {} tombstones", self.containers, self.tombstones)
    }
}

/// What a case is measured on, made once.
#[derive(Clone, Copy)]
struct Place {
    tracker: &'static Tracker,
    map: &'static RwLock<HashMap<u32, Arc<Container>>>,
}

const CASES: [Case; 9] = {
    let mut cases = [Case { containers: 0, tombstones: 0 }; 9];
    let (containers, tombstones) = ([100, 10_000, 100_000], [0, 1_000, 10_000]);
    let mut case = 0;
    while case < cases.len() {
        cases[case] = Case { containers: containers[case / 3], tombstones: tombstones[case % 3] };
        case += 1;
    }
    cases
};

impl Case {
    fn place(self) -> Place {
        static MADE: Mutex<Vec<(Case, Place)>> = Mutex::new(Vec::new());
        let mut made = MADE.lock().expect("nobody panics");
        if let Some((_, place)) = made.iter().find(|(case, _)| *case == self) {
            return *place;
        }
        // Kept to the end: filling takes longer than measuring.
        let tracker: &'static Tracker = Box::leak(Box::new(filled(self.containers, self.tombstones)));
        let map = tracker.reader().all().map(|container| (container.namespaces.mnt, Arc::clone(container))).collect();
        let place = Place { tracker, map: Box::leak(Box::new(RwLock::new(map))) };
        made.push((self, place));
        place
    }

    /// Mount namespaces of its for one iteration: all over the collection, and others each time.
    fn mntnses(self) -> Vec<u32> {
        steps().map(|step| FIRST_MNTNS + step % self.containers).collect()
    }
}

/// A thousand numbers, all over the place; no two iterations have the same.
fn steps() -> impl Iterator<Item = u32> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = NEXT.fetch_add(THOUSAND.wrapping_mul(STRIDE), Ordering::Relaxed);
    (0..THOUSAND).map(move |step| first.wrapping_add(step.wrapping_mul(STRIDE)))
}

/// Prime, and larger than what a cache would fetch along.
const STRIDE: u32 = 7_919;

mod lookup {
    use super::*;

    #[divan::bench(args = CASES, threads = [1, 2])]
    fn hit(bencher: Bencher<'_, '_>, case: Case) {
        let Place { tracker, .. } = case.place();
        let inputs = || (tracker.reader(), case.mntnses());
        bencher.counter(ItemsCount::new(THOUSAND)).with_inputs(inputs).bench_refs(|(reader, mntnses)| {
            for mntns in &*mntnses {
                black_box(reader.by_mntns(*mntns).container().expect("it is there") as *const _);
            }
        });
    }

    #[divan::bench(args = CASES, threads = [1, 2])]
    fn hit_baseline_rwlock_hashmap(bencher: Bencher<'_, '_>, case: Case) {
        let Place { map, .. } = case.place();
        bencher.counter(ItemsCount::new(THOUSAND)).with_inputs(|| case.mntnses()).bench_refs(|mntnses| {
            for mntns in &*mntnses {
                let map = map.read().expect("nobody panics");
                black_box(Arc::as_ptr(&map[mntns]));
            }
        });
    }

    #[divan::bench(args = CASES, threads = [1, 2])]
    fn hit_at_a_moment(bencher: Bencher<'_, '_>, case: Case) {
        let Place { tracker, .. } = case.place();
        let now = BootTime(u64::MAX / 2);
        let inputs = || (tracker.reader(), case.mntnses());
        bencher.counter(ItemsCount::new(THOUSAND)).with_inputs(inputs).bench_refs(|(reader, mntnses)| {
            for mntns in &*mntnses {
                black_box(reader.by_mntns_at(*mntns, now).container().expect("it is there") as *const _);
            }
        });
    }

    #[divan::bench(args = CASES, threads = [1, 2])]
    fn miss(bencher: Bencher<'_, '_>, case: Case) {
        let Place { tracker, .. } = case.place();
        let inputs = || (tracker.reader(), case.mntnses());
        bencher.counter(ItemsCount::new(THOUSAND)).with_inputs(inputs).bench_refs(|(reader, mntnses)| {
            for mntns in &*mntnses {
                black_box(reader.by_mntns(*mntns - 1_000_000_000).container().is_none());
            }
        });
    }

    #[divan::bench(args = CASES, threads = [1, 2])]
    fn miss_baseline_rwlock_hashmap(bencher: Bencher<'_, '_>, case: Case) {
        let Place { map, .. } = case.place();
        bencher.counter(ItemsCount::new(THOUSAND)).with_inputs(|| case.mntnses()).bench_refs(|mntnses| {
            for mntns in &*mntnses {
                let map = map.read().expect("nobody panics");
                black_box(map.get(&(*mntns - 1_000_000_000)).is_none());
            }
        });
    }

    /// The container, its names and its pod, attached to an event.
    #[divan::bench(args = CASES, threads = [1, 2])]
    fn enrich(bencher: Bencher<'_, '_>, case: Case) {
        let Place { tracker, .. } = case.place();
        let now = BootTime(u64::MAX / 2);
        let inputs = || (tracker.enrich(), case.mntnses());
        bencher.counter(ItemsCount::new(THOUSAND)).with_inputs(inputs).bench_refs(|(enrich, mntnses)| {
            for mntns in &*mntnses {
                black_box(enrich.by_mntns_at(*mntns, now));
            }
        });
    }
}

/// One mount ns that was 5,000 containers', one after the other.
mod lookup_past {
    use super::*;

    const DEAD: u32 = 5_000;
    const CASE: Case = Case { containers: 1, tombstones: DEAD };

    /// In the midst of lives, for one iteration.
    fn moments() -> Vec<BootTime> {
        steps().map(|step| BootTime(birth(0, step % DEAD).born_at.0 + 250_000_000)).collect()
    }

    #[divan::bench]
    fn hit(bencher: Bencher<'_, '_>) {
        let Place { tracker, .. } = CASE.place();
        let inputs = || (tracker.reader(), moments());
        bencher.counter(ItemsCount::new(THOUSAND)).with_inputs(inputs).bench_refs(|(reader, moments)| {
            for at in &*moments {
                black_box(reader.by_mntns_at(FIRST_MNTNS, *at).container().expect("it lived then") as *const _);
            }
        });
    }

    #[divan::bench]
    fn hit_baseline_rwlock_sorted_vec(bencher: Bencher<'_, '_>) {
        let Place { tracker, .. } = CASE.place();
        let mut lives: Vec<(BootTime, Arc<Container>)> =
            tracker.reader().all().map(|c| (c.created_at.unwrap_or_default(), Arc::clone(c))).collect();
        lives.sort_by_key(|(from, _)| *from);
        let lives = RwLock::new(lives);
        bencher.counter(ItemsCount::new(THOUSAND)).with_inputs(moments).bench_refs(|moments| {
            for at in &*moments {
                let lives = lives.read().expect("nobody panics");
                let place = lives.partition_point(|(from, _)| from <= at);
                black_box(Arc::as_ptr(&lives[place - 1].1));
            }
        });
    }
}

mod publish {
    use super::*;

    const SIZES: [u32; 3] = [100, 10_000, 100_000];

    fn subscribed(tracker: &Tracker) -> Feed {
        let mut feed = tracker.subscribe_blocking(FeedOptions::new("bench")).expect("it runs");
        feed.next_blocking().expect("everything at first");
        feed
    }

    /// From a fact's being stated to its change's being delivered to another thread.
    #[divan::bench(args = SIZES, sample_count = 1_000)]
    fn one_change(bencher: Bencher<'_, '_>, containers: u32) {
        let Place { tracker, .. } = Case { containers, tombstones: 0 }.place();
        let mut feed = subscribed(tracker);
        // Goes on from where the last case stopped: nothing is stated twice.
        static CHANGES: AtomicU32 = AtomicU32::new(0);
        let renamed = || {
            let change = CHANGES.fetch_add(1, Ordering::Relaxed);
            let n = change.wrapping_mul(STRIDE) % containers;
            let birth = birth(n, 1);
            let mut statement = statement(n, &birth, State::Running, true);
            statement.name = Some(format!("renamed-{change}").into());
            let at = BootTime(birth.born_at.0 + 1_000 + u64::from(change));
            vec![fact(Source::Containerd, at, What::Stated { key: key(n), statement: Box::new(statement) })]
        };
        bencher.with_inputs(renamed).bench_local_values(|facts| {
            tracker.facts().state_blocking(facts).expect("it runs");
            let delivered = feed.next_blocking();
            assert!(matches!(delivered, Some(FeedItem::Change(_))));
            delivered
        });
    }

    #[divan::bench(args = SIZES)]
    fn baseline_copy_four_indexes(bencher: Bencher<'_, '_>, containers: u32) {
        let Place { tracker, .. } = Case { containers, tombstones: 0 }.place();
        let all: Vec<Arc<Container>> = tracker.reader().all().cloned().collect();
        let index = |number: fn(&Container) -> u64| -> HashMap<u64, Arc<Container>> {
            all.iter().map(|container| (number(container), Arc::clone(container))).collect()
        };
        let indexes = [
            index(|container| container.namespaces.mnt.into()),
            index(|container| container.namespaces.net.into()),
            index(|container| container.instance),
            index(|container| container.pid().unwrap_or(0).into()),
        ];
        bencher.bench(|| indexes.clone());
    }
}

/// A thousand whole lives, eight facts each: milliseconds per iteration are microseconds each.
mod life {
    use super::*;

    #[divan::bench(sample_count = 20, sample_size = 1)]
    fn thousand(bencher: Bencher<'_, '_>) {
        let tracker = filled(1, 0);
        let mut first = 1;
        bencher.counter(ItemsCount::new(THOUSAND)).bench_local(|| {
            for n in first..first + THOUSAND {
                tracker.facts().state_blocking(start(n, 1)).expect("it runs");
                tracker.facts().state_blocking(end(n, 1)).expect("it runs");
            }
            settle(&tracker);
            first += THOUSAND;
        });
    }

    #[divan::bench(sample_count = 20, sample_size = 1)]
    fn thousand_baseline_making_the_facts() -> usize {
        (1..=THOUSAND).map(|n| black_box(start(n, 1)).len() + black_box(end(n, 1)).len()).sum()
    }
}

/// From a scan's stating them all to their all being published.
mod netns {
    use super::*;

    const SIZES: [u32; 2] = [1_000, 10_000];

    fn published(bencher: Bencher<'_, '_>, containers: u32, net_of: fn(u32) -> u32) {
        let inputs = || {
            let facts = (0..containers).map(|n| {
                let mut task = Birth { executed: true, ..birth(n, 1) };
                task.namespaces.net = net_of(n);
                fact(Source::Kernel, task.born_at, What::Executed(Execution { task, by_init: true }))
            });
            (lives::tracker(), facts.collect::<Vec<Fact>>())
        };
        bencher.counter(ItemsCount::new(containers)).with_inputs(inputs).bench_local_values(|(tracker, facts)| {
            tracker.facts().state_blocking(facts).expect("it runs");
            settle(&tracker);
            let on_first = tracker.reader().by_netns(net_of(0)).containers().count() as u32;
            assert_eq!(on_first, if net_of(0) == net_of(1) { containers } else { 1 });
            tracker
        });
    }

    #[divan::bench(args = SIZES, sample_count = 10, sample_size = 1)]
    fn all_on_one(bencher: Bencher<'_, '_>, containers: u32) {
        published(bencher, containers, |_| 9);
    }

    #[divan::bench(args = SIZES, sample_count = 10, sample_size = 1)]
    fn baseline_each_on_its_own(bencher: Bencher<'_, '_>, containers: u32) {
        published(bencher, containers, |n| 3_000_000 + n);
    }
}
