//! The waits for answers of a group in a window.

use kmesh_trace_common::TURN_BUCKETS;

use super::quantiles::QuantileSummary;
use crate::record::{Turns, bucket_bounds_ns};

/// The number and the sum of waits, by the buckets of [`Turns::histogram`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Responses {
    counts: [u64; TURN_BUCKETS],
    sums_ns: [f64; TURN_BUCKETS],
    max_ns: u64,
}

impl Responses {
    /// Adds the turns of a connection.
    pub fn add(&mut self, turns: &Turns) {
        for (bucket, count, sum_ns) in turns.buckets() {
            self.counts[bucket] = self.counts[bucket].saturating_add(count);
            self.sums_ns[bucket] += sum_ns;
        }
        self.max_ns = self.max_ns.max(turns.max_wait_ns);
    }

    /// Adds the waits of a later window.
    pub fn merge(&mut self, later: &Self) {
        for (count, more) in self.counts.iter_mut().zip(later.counts) {
            *count = count.saturating_add(more);
        }
        for (sum, more) in self.sums_ns.iter_mut().zip(later.sums_ns) {
            *sum += more;
        }
        self.max_ns = self.max_ns.max(later.max_ns);
    }

    /// Returns the number of waits.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, &count| sum.saturating_add(count))
    }

    /// Returns the estimated quantiles, ns. `None` without a wait.
    pub fn summary(&self) -> Option<QuantileSummary> {
        Some(QuantileSummary {
            p50: self.at(0.50)?,
            p95: self.at(0.95)?,
            p99: self.at(0.99)?,
            max: self.max_ns,
        })
    }

    /// Returns a quantile. The waits of a bucket count as spread evenly around their mean, within the bucket's bounds.
    fn at(&self, part: f64) -> Option<u64> {
        let rank = part * self.count() as f64;
        let mut below = 0.0;
        for (bucket, (&count, &sum_ns)) in self.counts.iter().zip(&self.sums_ns).enumerate() {
            let count = count as f64;
            if count == 0.0 || below + count < rank {
                below += count;
                continue;
            }
            let (low, high) = bucket_bounds_ns(bucket);
            let mean = sum_ns / count;
            let high = (high as f64).min(self.max_ns as f64);
            let spread = (mean - low as f64).min(high - mean).max(0.0);
            let wait = mean + spread * (2.0 * (rank - below - 0.5) / count - 1.0);
            return Some((wait.round() as u64).min(self.max_ns));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kmesh_trace_common::bucket;

    /// Returns the summary of waits, each of its own connection, as `n` connections report them.
    fn summary(waits: &[u64]) -> Option<QuantileSummary> {
        let mut responses = Responses::default();
        for &wait_ns in waits {
            let mut turns = Turns {
                count: 1,
                wait_ns,
                max_wait_ns: wait_ns,
                ..Turns::default()
            };
            turns.histogram[bucket(wait_ns)] = 1;
            responses.add(&turns);
        }
        responses.summary()
    }

    #[test]
    fn equal_waits_are_all_quantiles() {
        assert_eq!(summary(&[]), None);
        for wait in [0, 700, 50_123_456, 900_000_000_000] {
            let expected = QuantileSummary {
                p50: wait,
                p95: wait,
                p99: wait,
                max: wait,
            };
            assert_eq!(summary(&[wait; 40]), Some(expected), "{wait}");
        }
    }

    #[test]
    fn quantiles_of_two_speeds_are_near_each() {
        let waits = [vec![5_100_000; 90], vec![50_200_000; 10]].concat();
        let found = summary(&waits).unwrap();
        assert_eq!((found.p95, found.max), (50_200_000, 50_200_000));
        assert!((4_600_000..5_600_000).contains(&found.p50), "{found:?}");
    }

    #[test]
    fn quantiles_of_spread_waits_are_within_their_bucket() {
        let waits: Vec<u64> = (1..=1000).map(|wait| wait * 100_000).collect();
        let found = summary(&waits).unwrap();
        for (quantile, exact) in [(found.p50, 50e6), (found.p95, 95e6), (found.p99, 99e6)] {
            assert!((quantile as f64 - exact).abs() < 0.1 * exact, "{quantile}, not {exact}");
        }
    }
}
