//! Families of samples, read at the moment of a scrape, as OpenMetrics text.
//!
//! The tracker counts in plain atomics beside the code that does the work; nothing is registered anywhere, and what is
//! not scraped costs nothing.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// The media type of what [`Families::encode`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Label names and values of one sample.
type Labels = Vec<(&'static str, String)>;

/// All that one scrape shows.
#[derive(Debug, Default)]
pub(super) struct Families(Vec<Family>);

#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    samples: Samples,
}

#[derive(Debug)]
enum Samples {
    Counters(Vec<(Labels, u64)>),
    Gauges(Vec<(Labels, f64)>),
    Histogram { sum: f64, buckets: Vec<(f64, u64)> },
}

impl Families {
    /// A counter without labels; its name gets `_total`.
    pub(super) fn counter(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.counters(name, help, [(Labels::new(), value)]);
    }

    /// A counter for each set of labels.
    pub(super) fn counters(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, u64)>,
    ) {
        self.0.push(Family { name, help, samples: Samples::Counters(samples.into_iter().collect()) });
    }

    /// A gauge without labels.
    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.gauges(name, help, [(Labels::new(), value)]);
    }

    /// A gauge for each set of labels.
    pub(super) fn gauges(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        self.0.push(Family { name, help, samples: Samples::Gauges(samples.into_iter().collect()) });
    }

    /// A histogram. `buckets` are upper bounds and how many fell between a bound and the one before it; the last bound
    /// is infinite.
    pub(super) fn histogram(&mut self, name: &'static str, help: &'static str, sum: f64, buckets: Vec<(f64, u64)>) {
        self.0.push(Family { name, help, samples: Samples::Histogram { sum, buckets } });
    }

    /// The text of one scrape.
    pub(super) fn encode(self) -> String {
        let mut registry = Registry::with_prefix("tracker");
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        encode(&mut text, &registry).expect("writing to a string does not fail");
        text
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for Family { name, help, samples } in &self.0 {
            match samples {
                Samples::Counters(samples) => {
                    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                    for (labels, value) in samples {
                        // Without this distinction there would be empty braces, which some readers refuse.
                        match labels.as_slice() {
                            [] => family.encode_counter::<NoLabelSet, u64, u64>(value, None)?,
                            _ => family.encode_family(labels)?.encode_counter::<NoLabelSet, u64, u64>(value, None)?,
                        }
                    }
                }
                Samples::Gauges(samples) => {
                    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                    for (labels, value) in samples {
                        match labels.as_slice() {
                            [] => family.encode_gauge(value)?,
                            _ => family.encode_family(labels)?.encode_gauge(value)?,
                        }
                    }
                }
                Samples::Histogram { sum, buckets } => {
                    let count = buckets.iter().map(|(_, count)| count).sum();
                    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
                    family.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_sample_has_its_text() {
        let mut families = Families::default();
        families.counter("wakes", "Wake-ups", 3);
        families.gauges("containers", "Containers", [(vec![("state", "running".to_owned())], 2.0)]);
        families.histogram("hold_seconds", "Holds", 0.5, vec![(0.001, 2), (f64::INFINITY, 1)]);
        let expected = "\
# HELP tracker_wakes Wake-ups
# TYPE tracker_wakes counter
tracker_wakes_total 3
# HELP tracker_containers Containers
# TYPE tracker_containers gauge
tracker_containers{state=\"running\"} 2.0
# HELP tracker_hold_seconds Holds
# TYPE tracker_hold_seconds histogram
tracker_hold_seconds_sum 0.5
tracker_hold_seconds_count 3
tracker_hold_seconds_bucket{le=\"0.001\"} 2
tracker_hold_seconds_bucket{le=\"+Inf\"} 3
# EOF
";
        assert_eq!(families.encode(), expected);
    }

    #[test]
    fn label_values_cannot_break_a_line() {
        let mut families = Families::default();
        families.counters("x", "X", [(vec![("what", "a\"b\\c\nd".to_owned())], 1)]);
        let text = families.encode();
        assert!(text.contains(r#"{what="a\"b\\c\nd"}"#), "{text}");
    }
}
