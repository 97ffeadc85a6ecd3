//! Look-ups of routes, each beside what one would do without. Needs root: the host's net ns is listened to.
//!
//! Keys that are in the cache are many destinations in the host's own net ns, whose routes they do not change.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock};

use divan::{Bencher, black_box};
use nix::sys::eventfd::EventFd;
use tracker::route::{Config, Netns, RouteQuery, Routes, Stats};

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

fn query(number: usize) -> RouteQuery {
    let address = 0x0a00_0000_u32 + number as u32;
    RouteQuery::to(IpAddr::V4(address.into()))
}

/// Looked up in an order that no prefetcher guesses.
fn scattered(count: usize) -> Vec<RouteQuery> {
    let mut queries: Vec<_> = (0..count).map(query).collect();
    fastrand::Rng::with_seed(7).shuffle(&mut queries);
    queries
}

const SIZES: [usize; 2] = [1_000, 100_000];

mod hit {
    use super::*;

    /// One look-up that the cache answers.
    #[divan::bench(args = SIZES, threads = [1, 2], sample_count = 200, sample_size = 10_000)]
    fn cached(bencher: Bencher<'_, '_>, count: usize) {
        let (routes, netns) = routes();
        let queries = scattered(count);
        // Until nothing has changed for as long as it takes to ask for all of them.
        while queries.iter().filter(|query| routes.lookup_cached(netns, query).is_none()).count() > 0 {
            for query in &queries {
                routes.lookup_blocking(netns, query).expect("an answer");
            }
        }
        let next = std::sync::atomic::AtomicUsize::new(0);
        bencher
            .with_inputs(|| {
                let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                &queries[at.wrapping_mul(7919) % count]
            })
            .bench_values(|query| black_box(routes.lookup_cached(netns, query).is_some()));
    }

    /// The same as one would write it first: a map behind a mutex, with the order of use.
    #[divan::bench(args = SIZES, threads = [1, 2], sample_count = 200, sample_size = 10_000)]
    fn mutex_and_lru(bencher: Bencher<'_, '_>, count: usize) {
        let queries = scattered(count);
        let map: HashMap<RouteQuery, (Arc<u64>, u64)> =
            queries.iter().enumerate().map(|(at, query)| (*query, (Arc::new(at as u64), 0))).collect();
        let map = Mutex::new((map, 0_u64));
        let next = std::sync::atomic::AtomicUsize::new(0);
        bencher
            .with_inputs(|| {
                let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                &queries[at.wrapping_mul(7919) % count]
            })
            .bench_values(|query| {
                let mut map = map.lock().expect("nobody panics");
                let (map, clock) = &mut *map;
                *clock += 1;
                let found = map.get_mut(query).map(|(answer, used)| {
                    *used = *clock;
                    Arc::clone(answer)
                });
                black_box(found.is_some())
            });
    }
}
