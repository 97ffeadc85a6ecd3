//! Looking up and filling an event allocate nothing. A program of its own, because it counts every allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use tracker::collection::view::Host;
use tracker::container::{Namespaces, TaskId};
use tracker::fact::{Birth, Execution, Fact, Source, What};
use tracker::{BootTime, Config, FeedOptions, Tracker, Verdict};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations_of(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn filling_an_event_allocates_nothing() {
    let host = Host { namespaces: Namespaces { mnt: 1, net: 2, pid: 3, cgroup: 4, user: 5 }, cgroup_id: 1 };
    let tracker = Tracker::without_sources(&Config::default(), host).unwrap();
    let births = (0..500).map(|n| Birth {
        task: TaskId { pid: 1_000 + n, start_ticks: 100 },
        parent: None,
        outer: None,
        namespaces: Namespaces { mnt: 10_000 + n, net: 9, pid: 20_000 + n, cgroup: 4, user: 5 },
        generation: Some(u64::from(n) + 1),
        cgroup_id: None,
        uid: 0,
        born_at: BootTime(1_000_000_000),
        executed: true,
    });
    let facts = births.map(|task| Fact {
        source: Source::Kernel,
        at: BootTime(1_000_000_000),
        what: What::Executed(Execution { task, by_init: true }),
    });
    tracker.facts().state_blocking(facts.collect()).unwrap();
    // Its bundle comes after everything that was stated before it was asked for.
    tracker.subscribe_blocking(FeedOptions::new("test")).unwrap().next_blocking().unwrap();

    assert_ne!(allocations_of(|| drop(Vec::<u8>::with_capacity(1))), 0, "the counter counts");
    let mut enrich = tracker.enrich();
    let now = BootTime::now();
    let allocated = allocations_of(|| {
        for n in 0..500 {
            assert_eq!(enrich.by_mntns_at(10_000 + n, now).verdict, Verdict::Container);
            assert_eq!(enrich.by_mntns_at(90_000 + n, now).verdict, Verdict::Unknown);
        }
        assert_eq!(enrich.by_netns_at(9, now).verdict, Verdict::Shared);
    });
    assert_eq!(allocated, 0);
}
