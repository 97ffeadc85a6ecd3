//! Routes in real net namespaces: first look-ups beside bare exchanges, many flows, changes, and an exchange that is held
//! up. Prints tables for docs/benchmarks.md. Hits are measured by the micro-benchmarks of the package `tracker`.
//!
//! `bench_routes [net namespaces] [changes]`, 1,000 and 10,000 by default; needs root.
#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

mod raw;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracker::route::{Config, Netns, RouteQuery};
use tracker_tests::net::{Net, veth};
use tracker_tests::routes::{Listened, to};
use tracker_tests::wait::eventually;

use raw::Raw;

/// First look-ups, and bare exchanges.
const FIRST: u32 = 20_000;
/// Flows over all net namespaces together, and look-ups of them.
const FLOWS: usize = 100_000;
const LOOKUPS: usize = 2_000_000;

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<usize>());
    let namespaces = numbers.next().transpose().context("a number of net namespaces")?.unwrap_or(1_000);
    let changes = numbers.next().transpose().context("a number of changes")?.unwrap_or(10_000);
    first()?;
    held_up()?;
    changed(changes)?;
    flows(namespaces)
}

/// A net ns whose way out is a bridge without ports: one hop.
fn alone(label: &str) -> Result<Net> {
    let net = Net::new(label)?;
    net.batch(
        "link add br0 type bridge\nlink set br0 up\naddr add 10.9.0.2/16 dev br0\nroute add default via 10.9.0.1\n",
    )?;
    Ok(net)
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0b00_0000 + number)
}

fn first() -> Result<()> {
    let (one, inner, outer) = (alone("one")?, Net::new("inner")?, Net::new("outer")?);
    veth(&inner, "eth0", &outer, "veth0")?;
    inner.batch("addr add 10.8.0.2/16 dev eth0\nroute add default via 10.8.0.1\n")?;
    outer.run("sysctl -qw net.ipv4.ip_forward=1")?;
    outer.batch(
        "addr add 10.8.0.1/16 dev veth0\nlink add br0 type bridge\nlink set br0 up\naddr add 10.9.0.2/16 dev br0\n\
         route add default via 10.9.0.1\n",
    )?;
    let house = Listened::start()?;
    let mut bare = Raw::open(&one)?;
    println!("| first look-up | p50 | p99 | exchanges each | bare exchange p50 | times |\n|---|---|---|---|---|---|");
    for (name, net) in [("one hop", &one), ("two hops", &inner)] {
        let netns = house.netns(net)?;
        house.until_kept(&netns, &to("8.8.8.8"));
        let before = house.stats.exchanges.sum();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for number in 0..FIRST {
            // By turns, so that whatever else the machine does meets both.
            let query = RouteQuery::to(IpAddr::V4(address(number)));
            ours.push(timed(|| Ok(house.routes.lookup_blocking(&netns, &query).map(drop)?))?);
            theirs.push(timed(|| bare.get(address(number)))?);
        }
        let exchanges = (house.stats.exchanges.sum() - before) as f64 / f64::from(FIRST);
        let (p50, p99, bare) = (quantile(&mut ours, 0.5), quantile(&mut ours, 0.99), quantile(&mut theirs, 0.5));
        let times = p50.as_secs_f64() / bare.as_secs_f64();
        println!("| {name} | {} | {} | {exchanges:.2} | {} | {times:.1} |", micros(p50), micros(p99), micros(bare));
    }
    Ok(())
}

/// Hits while one exchange waits 50 ms for somebody.
fn held_up() -> Result<()> {
    let (calm, slow, hidden) = (alone("calm")?, Net::new("slow")?, Net::new("hidden")?);
    veth(&slow, "eth0", &hidden, "veth0")?;
    slow.batch("addr add 10.8.0.2/16 dev eth0\nroute add default via 10.8.0.1\n")?;
    let held = Duration::from_millis(50);
    // What waits: a way out is asked for, to find the other end of the veth.
    let ways = Box::new(move || {
        std::thread::sleep(held);
        Vec::new()
    });
    let house = Listened::start_with(Config { directories: Vec::new(), ..Config::default() }, Some(ways))?;
    let (calm, slow) = (house.netns(&calm)?, house.netns(&slow)?);
    house.until_kept(&calm, &to("8.8.8.8"));
    let is_done = AtomicBool::new(false);
    let (mut hits, asked) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let begun = Instant::now();
            for number in 0..20 {
                // Others each time, so that each is held up.
                let _ = house.routes.lookup_blocking(&slow, &RouteQuery::to(IpAddr::V4(address(number))));
            }
            is_done.store(true, Ordering::Relaxed);
            begun.elapsed()
        });
        let mut hits = Vec::new();
        while !is_done.load(Ordering::Relaxed) {
            let begun = Instant::now();
            if house.routes.lookup_cached(&calm, &to("8.8.8.8")).is_some() {
                hits.push(begun.elapsed());
            }
        }
        (hits, asking.join().unwrap_or_default())
    });
    println!(
        "\n| while exchanges are held up for {} | hits | p50 | p99.99 | max |\n|---|---|---|---|---|",
        micros(held)
    );
    let count = hits.len();
    let values = [0.5, 0.999_9, 1.0].map(|q| micros(quantile(&mut hits, q)));
    println!("| 20 exchanges, {} in all | {count} | {} |", micros(asked), values.join(" | "));
    Ok(())
}

/// From the return of a change to the look-up that tells it.
fn changed(changes: usize) -> Result<()> {
    let net = alone("changes")?;
    let house = Listened::start()?;
    let netns = house.netns(&net)?;
    let mut raw = Raw::open(&net)?;
    let (mut delays, mut stale, mut stale_fresh) = (Vec::new(), 0, 0);
    for number in 0..changes {
        // Kept, or there is nothing that could be stale.
        house.until_kept(&netns, &to("8.8.8.8"));
        let gateway = Ipv4Addr::new(10, 9, 1, (number % 2) as u8 + 1);
        raw.replace_default(gateway)?;
        let begun = Instant::now();
        let is_right = |found: &tracker::route::Found| found.hops[0].gateway == Some(gateway.into());
        if number % 2 == 0 {
            stale_fresh += usize::from(!is_right(&house.routes.ask_blocking(&netns, &to("8.8.8.8"))?));
            continue;
        }
        let mut is_first = true;
        while !is_right(&house.routes.lookup_blocking(&netns, &to("8.8.8.8"))?) {
            stale += usize::from(is_first);
            is_first = false;
        }
        delays.push(begun.elapsed());
    }
    println!(
        "\n| from a change's return to a right look-up | p50 | p99 | max | first look-up stale |\n|---|---|---|---|---|"
    );
    let count = delays.len();
    let values = [0.5, 0.99, 1.0].map(|q| micros(quantile(&mut delays, q)));
    println!(
        "| {count} changes | {} | {stale} |\n| {} changes, fresh | – | – | – | {stale_fresh} |",
        values.join(" | "),
        changes - count
    );
    Ok(())
}

/// Many flows over many net namespaces: each net ns's first ones together, then all of them at random.
fn flows(namespaces: usize) -> Result<()> {
    let nets: Vec<Net> = (0..namespaces).map(|_| alone("flows")).collect::<Result<_>>()?;
    let config = Config { cache_bytes: 64 << 20, oldest_ms: u64::MAX, ..Config::default() };
    let house = Listened::start_with(config, None)?;
    let netns: Vec<Netns> = nets.iter().map(|net| Ok(house.netns(net)?)).collect::<Result<_>>()?;
    let mut rng = fastrand::Rng::with_seed(7);
    let flows: Vec<(usize, RouteQuery)> = (0..FLOWS)
        .map(|number| {
            let query = RouteQuery {
                source_port: Some(rng.u16(..)),
                destination_port: Some(443),
                protocol: Some(6),
                ..RouteQuery::to(IpAddr::V4(address(rng.u32(0..1 << 20))))
            };
            (number * namespaces / FLOWS, query)
        })
        .collect();
    let (memory, exchanges, entered) =
        (resident(), house.stats.exchanges.sum(), house.stats.entered.load(Ordering::Relaxed));
    let begun = Instant::now();
    for (at, query) in &flows {
        house.routes.lookup_blocking(&netns[*at], query)?;
    }
    let filled = begun.elapsed();
    let (entries, bytes) = house.routes.cache_size();
    eventually("all sockets are closed", || (house.stats.open.load(Ordering::Relaxed) == 0).then_some(()));
    let grown = resident().saturating_sub(memory);
    let entered = house.stats.entered.load(Ordering::Relaxed) - entered;
    let begun = Instant::now();
    for _ in 0..LOOKUPS {
        let (at, query) = &flows[rng.usize(0..FLOWS)];
        house.routes.lookup_blocking(&netns[*at], query)?;
    }
    let looked = begun.elapsed();
    let each = (house.stats.exchanges.sum() - exchanges) as f64 / (FLOWS + LOOKUPS) as f64;
    println!("\n| {FLOWS} flows over {namespaces} net namespaces | |\n|---|---|");
    println!(
        "| first look-ups per second | {:.0} (net namespaces entered {entered} times) |",
        FLOWS as f64 / filled.as_secs_f64()
    );
    println!("| look-ups per second, one thread, at random | {:.0} |", LOOKUPS as f64 / looked.as_secs_f64());
    println!("| exchanges per look-up, first ones included | {each:.4} |");
    println!("| keys kept | {entries} |");
    println!(
        "| bytes per key, as the cache counts · as the process grew | {} · {} |",
        bytes / entries.max(1),
        grown / entries.max(1)
    );
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<(), anyhow::Error>) -> Result<Duration> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed())
}

fn quantile(times: &mut [Duration], quantile: f64) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get((last as f64 * quantile).round() as usize).copied().unwrap_or_default()
}

fn micros(time: Duration) -> String {
    format!("{:.2} µs", time.as_secs_f64() * 1e6)
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4_096
}
