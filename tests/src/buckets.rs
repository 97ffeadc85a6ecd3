//! What the tracker's histograms say, as benchmarks print it.

use tracker::histogram::BOUNDS_US;

/// Counts of a histogram, by bucket.
#[derive(Clone, Default)]
pub struct Buckets(pub Vec<u64>);

impl Buckets {
    /// All that were counted.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// What was added since.
    pub fn since(&self, before: &Buckets) -> Buckets {
        Buckets(self.0.iter().zip(&before.0).map(|(now, before)| now - before).collect())
    }

    /// Counts these, too.
    pub fn add(&mut self, other: &Buckets) {
        self.0.resize(other.0.len(), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(sum, more)| *sum += more);
    }

    /// The bound below which this share lies: all a histogram knows.
    pub fn at(&self, share: f64) -> String {
        let wanted = (self.total() as f64 * share).ceil() as u64;
        let mut sum = 0;
        let bucket = self.0.iter().position(|count| {
            sum += count;
            wanted > 0 && sum >= wanted
        });
        match bucket {
            None => "-".into(),
            Some(bucket) => match BOUNDS_US.get(bucket) {
                Some(bound) => format!("≤ {} ms", *bound as f64 / 1_000.0),
                None => format!("> {} ms", BOUNDS_US[BOUNDS_US.len() - 1] / 1_000),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_lies_below_the_bound_of_the_bucket_that_fills_it() {
        let mut buckets = Buckets(vec![0; BOUNDS_US.len() + 1]);
        assert_eq!(buckets.at(0.5), "-");
        (buckets.0[0], buckets.0[2]) = (98, 2);
        assert_eq!(
            [0.5, 0.98, 0.99, 1.0].map(|share| buckets.at(share)),
            ["≤ 0.05 ms", "≤ 0.05 ms", "≤ 0.2 ms", "≤ 0.2 ms"]
        );
        buckets.0[BOUNDS_US.len()] = 1;
        assert_eq!(buckets.at(1.0), "> 300 ms");
    }
}
