//! The tracker's own figures, as OpenMetrics text for Prometheus. docs/operating.md lists them for operators.

mod process;
mod source;
mod text;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use self::text::CONTENT_TYPE;
use self::text::Families;
use crate::collection::writer::Figures;
use crate::fact::Source;
use crate::histogram::{BOUNDS_US, Histogram};
use crate::tracker::Handle;

/// How long the collection's writer may take for its own figures; a scrape without them is better than none.
const FIGURES_TIME: Duration = Duration::from_secs(2);

/// One scrape. Asks the collection's writer for what only it knows.
pub async fn encode(tracker: &Handle) -> String {
    let mut families = Families::default();
    containers(&mut families, tracker);
    collection(&mut families, tracker);
    if let Ok(Ok(figures)) = tokio::time::timeout(FIGURES_TIME, tracker.figures()).await {
        writer(&mut families, figures);
    }
    sources(&mut families, tracker);
    source::add(&mut families, tracker.stats());
    process::add(&mut families);
    families.encode()
}

fn containers(families: &mut Families, tracker: &Handle) {
    let mut reader = tracker.reader();
    let mut counts: BTreeMap<(&str, &str, &str), u64> = BTreeMap::new();
    for container in reader.all() {
        let grade = container.grade.map_or("none", |grade| grade.name());
        *counts.entry((container.kind.name(), container.state.name(), grade)).or_default() += 1;
    }
    let samples = counts.into_iter().map(|((kind, state, grade), count)| {
        (vec![("kind", kind.to_owned()), ("state", state.to_owned()), ("grade", grade.to_owned())], count as f64)
    });
    families.gauges("containers", "Containers in the collection, those that are over included", samples);
    let mut excluded: BTreeMap<&str, u64> = BTreeMap::new();
    let mut reader = tracker.reader();
    reader.excluded().for_each(|each| *excluded.entry(each.rule).or_default() += 1);
    let excluded = excluded.into_iter().map(|(rule, count)| (vec![("rule", rule.to_owned())], count as f64));
    families.gauges("excluded", "Containers that a rule of the filter leaves out", excluded);
    families.gauge("sequence", "Sequence number of the newest published change", reader.sequence() as f64);
}

fn collection(families: &mut Families, tracker: &Handle) {
    let stats = &tracker.stats().collection;
    let facts = Source::ALL
        .iter()
        .map(|source| (vec![("source", source.name().to_owned())], read(&stats.facts[*source as usize])));
    families.counters("facts", "Facts applied", facts);
    families.counter("publications", "Times that the collection was published", read(&stats.publications));
    families.counter("changes", "Changes published", read(&stats.changes));
    let help = "Time from the end of a container's init process to its publication";
    families.histogram("end_seconds", help, stats.end_times.sum().as_secs_f64(), buckets(&stats.end_times));
    families.counter("feed_missed_changes", "Changes that a feed was too slow for", read(&stats.feed_lags));
    families.counter(
        "closer_looks_dropped",
        "Requests for a closer look at a container that found their queue full",
        read(&stats.closer_looks_dropped),
    );
}

fn writer(families: &mut Families, figures: Figures) {
    let by_witness =
        figures.missed_by.into_iter().map(|(source, count)| (vec![("witness", source.name().to_owned())], count));
    families.counters("witness_misses", "Containers that this witness missed and another saw", by_witness);
    families.counter("scan_corrections", "Births and ends that only a scan brought to light", figures.corrections);
    families.counter(
        "unvouched_refused",
        "Births that were not taken in, since the share of those whom nobody vouches for was used up",
        figures.unvouched_refused,
    );
    families.counter(
        "foreign_claims",
        "Claims on an init process outside of the claim's domain",
        figures.foreign_claims,
    );
    families.counter("tombstones_evicted", "Tombstones dropped early for want of room", figures.tombstones_evicted);
    // Several feeds may bear one name: their backlogs add up.
    let mut backlogs: BTreeMap<String, f64> = BTreeMap::new();
    for (name, backlog) in figures.feed_backlogs {
        *backlogs.entry(name.to_string()).or_default() += backlog as f64;
    }
    let backlogs = backlogs.into_iter().map(|(feed, backlog)| (vec![("feed", feed)], backlog));
    families.gauges("feed_backlog", "Items that wait for a feed's subscriber", backlogs);
    // As above.
    let mut selections: BTreeMap<String, [f64; 2]> = BTreeMap::new();
    for (name, figures) in figures.selections {
        let [containers, missing] = selections.entry(name.to_string()).or_default();
        *containers += figures.containers as f64;
        *missing += figures.missing as f64;
    }
    let of = |place: usize| {
        let sample = move |(name, figures): (&String, &[f64; 2])| (vec![("selection", name.clone())], figures[place]);
        selections.iter().map(sample).collect::<Vec<_>>()
    };
    families.gauges("selection_containers", "Containers in a selection", of(0));
    families.gauges("selection_missing", "Numbers that should be in a selection's maps and find no room", of(1));
    families.gauge("fact_backlog", "Deliveries that wait for the collection's writer", figures.queue_backlog as f64);
}

fn sources(families: &mut Families, tracker: &Handle) {
    let health = tracker.health();
    let labels = |source: Source, what: &str| vec![("source", source.name().to_owned()), ("what", what.to_owned())];
    let conditions = health.iter().map(|line| {
        let mut labels = labels(line.source, &line.what);
        labels.push(("condition", line.condition.name().to_owned()));
        (labels, 1.0)
    });
    families.gauges("source_condition", "The condition that a source is in", conditions);
    let changes = health.iter().map(|line| (labels(line.source, &line.what), line.changes));
    families.counters("source_condition_changes", "Times that a source's condition changed", changes);
}

/// Bounds in seconds, the last one infinite, and what lies between each and the one before it.
fn buckets(histogram: &Histogram) -> Vec<(f64, u64)> {
    let bounds = BOUNDS_US.map(|micros| micros as f64 / 1e6).into_iter().chain([f64::INFINITY]);
    bounds.zip(histogram.counts()).collect()
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
