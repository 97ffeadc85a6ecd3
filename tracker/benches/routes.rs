//! Look-ups of routes, each beside what one would do without. Needs root: the host's net ns is listened to.
//!
//! Keys that are in the cache are many destinations in the host's own net ns, whose routes they do not change.
//!
//! What takes nanoseconds is done a thousand times per iteration: microseconds per iteration are nanoseconds each.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use nix::sys::eventfd::EventFd;
use tracker::route::{Config, Netns, RouteQuery, Routes, Stats};

/// Look-ups per iteration.
const THOUSAND: usize = 1_000;
/// Keys that are kept.
const SIZES: [usize; 2] = [1_000, 100_000];

fn main() {
    divan::main();
}

/// Listens until the process ends.
fn routes() -> &'static (Routes, Netns) {
    static ROUTES: OnceLock<(Routes, Netns)> = OnceLock::new();
    ROUTES.get_or_init(|| {
        let config = Config { cache_bytes: 64 << 20, oldest_ms: u64::MAX, ..Config::default() };
        let (routes, listening) = Routes::start(config, None, Arc::<Stats>::default()).expect("root's privileges");
        std::thread::spawn(move || {
            let never = EventFd::new().expect("a descriptor");
            listening.run(never.as_fd());
        });
        let host = routes.host();
        (routes, host)
    })
}

/// Queries in an order that no prefetcher guesses; read one after the other, as events are.
fn queries(count: usize) -> Vec<RouteQuery> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut numbers = HashSet::new();
    while numbers.len() < count {
        numbers.insert(rng.u32(0..1 << 24));
    }
    let mut queries: Vec<_> =
        numbers.into_iter().map(|number| RouteQuery::to(IpAddr::V4((0x0a00_0000 + number).into()))).collect();
    rng.shuffle(&mut queries);
    queries
}

/// The same, all of them kept: asked for until nothing changed for as long as that takes.
fn kept(count: usize) -> Vec<RouteQuery> {
    let (routes, netns) = routes();
    let queries = queries(count);
    while queries.iter().any(|query| routes.lookup_cached(netns, query).is_none()) {
        for query in &queries {
            routes.lookup_blocking(netns, query).expect("an answer");
        }
    }
    queries
}

/// A thousand of them, others each time.
struct Turns(AtomicUsize);

impl Turns {
    fn next<'q>(&self, queries: &'q [RouteQuery]) -> &'q [RouteQuery] {
        let turn = self.0.fetch_add(1, Ordering::Relaxed) % (queries.len() / THOUSAND);
        &queries[turn * THOUSAND..][..THOUSAND]
    }
}

mod hit {
    use super::*;

    fn measure(bencher: Bencher<'_, '_>, queries: &[RouteQuery], look: impl Fn(&RouteQuery) -> bool + Sync) {
        let turns = Turns(AtomicUsize::new(0));
        // Each thread remembers by itself: its first time is not what is measured.
        thread_local!(static KNOWN: Cell<*const RouteQuery> = const { Cell::new(std::ptr::null()) });
        let input = || {
            if KNOWN.replace(queries.as_ptr()) != queries.as_ptr() {
                let _ = queries.iter().filter(|query| look(query)).count();
            }
            turns.next(queries)
        };
        bencher.counter(ItemsCount::new(THOUSAND)).with_inputs(input).bench_values(|queries| {
            let found = queries.iter().filter(|query| look(black_box(query))).count();
            assert_eq!(found, THOUSAND, "something changed in the host's net ns");
        });
    }

    /// One thread's reader.
    #[divan::bench(args = SIZES, threads = [1, 2])]
    fn by_a_reader(bencher: Bencher<'_, '_>, count: usize) {
        let (routes, netns) = routes();
        let queries = kept(count);
        thread_local!(static READER: std::cell::RefCell<Option<tracker::route::Reader>> = const { std::cell::RefCell::new(None) });
        measure(bencher, &queries, |query| {
            READER.with_borrow_mut(|reader| {
                let reader = reader.get_or_insert_with(|| routes.reader());
                black_box(reader.lookup_cached(netns, query)).is_some()
            })
        });
    }

    /// The cache that all threads share.
    #[divan::bench(args = SIZES, threads = [1, 2])]
    fn shared(bencher: Bencher<'_, '_>, count: usize) {
        let (routes, netns) = routes();
        measure(bencher, &kept(count), |query| black_box(routes.lookup_cached(netns, query)).is_some());
    }

    /// Baseline: what one would write first, a map and the order of use behind a mutex.
    #[divan::bench(args = SIZES, threads = [1, 2])]
    fn mutex_and_lru(bencher: Bencher<'_, '_>, count: usize) {
        let queries = queries(count);
        let mut lru = Lru::default();
        for (number, query) in queries.iter().enumerate() {
            lru.map.insert(*query, (Arc::new(number), number));
            lru.order.insert(number, *query);
        }
        lru.clock = count;
        let lru = Mutex::new(lru);
        measure(bencher, &queries, |query| black_box(lru.lock().expect("nobody panics").get(query)).is_some());
    }

    #[derive(Default)]
    struct Lru {
        map: HashMap<RouteQuery, (Arc<usize>, usize)>,
        order: BTreeMap<usize, RouteQuery>,
        clock: usize,
    }

    impl Lru {
        fn get(&mut self, query: &RouteQuery) -> Option<Arc<usize>> {
            let (answer, used) = self.map.get_mut(query)?;
            self.order.remove(used);
            *used = self.clock;
            self.order.insert(self.clock, *query);
            self.clock += 1;
            Some(Arc::clone(answer))
        }
    }
}
