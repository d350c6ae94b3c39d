//! Changes of direction on a connection, and how long the answers took.

use kmesh_trace_common::{self as common, TURN_BUCKETS, bucket};

/// The turns of a connection: this end sent (a client) or received (a server), then the other direction began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// The number of turns.
    pub count: u64,
    /// The sum of all waits, ns. A client waits for the first byte of the answer; a server's process for its own
    /// answer.
    pub wait_ns: u64,
    /// The longest wait, ns.
    pub max_wait_ns: u64,
    /// The number of waits by powers of two of microseconds: below 1 µs, below 2 µs, below 4 µs, …
    pub histogram: [u64; TURN_BUCKETS],
    /// The turns without a wait, because both directions moved at once.
    pub overlapped: u64,
}

impl Turns {
    /// Returns the turns that the programs counted, and the one that only the next arrival would count.
    pub fn new(counted: &common::Turns) -> Self {
        let mut turns = Self {
            count: counted.count.into(),
            wait_ns: counted.wait_ns,
            max_wait_ns: counted.max_wait_ns,
            histogram: counted.histogram.map(u64::from),
            overlapped: counted.overlapped.into(),
        };
        match counted.pending() {
            Some(Some(wait_ns)) => turns.add(wait_ns),
            Some(None) => {
                turns.count += 1;
                turns.overlapped += 1;
            }
            None => {}
        }
        turns
    }

    fn add(&mut self, wait_ns: u64) {
        self.count += 1;
        self.wait_ns = self.wait_ns.saturating_add(wait_ns);
        self.max_wait_ns = self.max_wait_ns.max(wait_ns);
        self.histogram[bucket(wait_ns)] += 1;
    }

    /// Returns what `self` has more than `before`. The maximum is exact if it rose, else the bound of the last bucket.
    pub fn since(&self, before: &Self) -> Self {
        let mut histogram = self.histogram;
        for (count, before) in histogram.iter_mut().zip(before.histogram) {
            *count = count.saturating_sub(before);
        }
        let last = histogram.iter().rposition(|&count| count > 0);
        let max_wait_ns = match last {
            Some(_) if self.max_wait_ns > before.max_wait_ns => self.max_wait_ns,
            Some(last) => bucket_bounds_ns(last).1.min(self.max_wait_ns),
            None => 0,
        };
        Self {
            count: self.count.saturating_sub(before.count),
            wait_ns: self.wait_ns.saturating_sub(before.wait_ns),
            max_wait_ns,
            histogram,
            overlapped: self.overlapped.saturating_sub(before.overlapped),
        }
    }

    /// Returns the number of waits in each bucket and their estimated sum, ns. The sums are those of the middles of the
    /// buckets, scaled to the sum of all waits. Exact if all waits are in one bucket.
    pub fn buckets(&self) -> impl Iterator<Item = (usize, u64, f64)> {
        let estimate = |bucket: usize, count: u64| {
            let (low, high) = bucket_bounds_ns(bucket);
            (low as f64 + high as f64) / 2.0 * count as f64
        };
        let numbered = || {
            self.histogram
                .iter()
                .copied()
                .enumerate()
                .filter(|&(_, count)| count > 0)
        };
        let total: f64 = numbered().map(|(bucket, count)| estimate(bucket, count)).sum();
        let scale = if total > 0.0 { self.wait_ns as f64 / total } else { 0.0 };
        numbered().map(move |(bucket, count)| {
            let (low, high) = bucket_bounds_ns(bucket);
            let mean = estimate(bucket, count) * scale / count as f64;
            (bucket, count, mean.clamp(low as f64, high as f64) * count as f64)
        })
    }
}

/// Returns the bounds of the waits in a bucket, ns. The last bucket has no upper bound.
pub fn bucket_bounds_ns(bucket: usize) -> (u64, u64) {
    let low = if bucket == 0 { 0 } else { 1000 << (bucket - 1) };
    let high = if bucket + 1 < TURN_BUCKETS {
        1000 << bucket
    } else {
        u64::MAX
    };
    (low, high)
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    fn of(waits: &[u64]) -> Turns {
        let mut turns = Turns::default();
        waits.iter().for_each(|&wait_ns| turns.add(wait_ns));
        turns
    }

    #[test]
    fn bounds_of_buckets_are_where_waits_count() {
        for number in 0..TURN_BUCKETS {
            let (low, high) = bucket_bounds_ns(number);
            assert_eq!((bucket(low), bucket(high - 1)), (number, number));
        }
    }

    #[test]
    fn answer_that_has_begun_counts() {
        let counted = common::Turns {
            count: 1,
            wait_ns: 5_000,
            max_wait_ns: 5_000,
            arrival_ns: 10,
            send_ns: 9_010,
            ..common::Turns::zeroed()
        };
        let turns = Turns::new(&counted);
        assert_eq!(
            (turns.count, turns.wait_ns, turns.max_wait_ns, turns.overlapped),
            (2, 14_000, 9_000, 0)
        );
        let overlapped = Turns::new(&common::Turns {
            request_overlaps: 1,
            ..counted
        });
        assert_eq!(
            (overlapped.count, overlapped.wait_ns, overlapped.overlapped),
            (2, 5_000, 1)
        );
    }

    #[test]
    fn difference_has_the_later_waits() {
        let (before, after) = (of(&[5_000, 70_000]), of(&[5_000, 70_000, 6_000, 90_000]));
        let difference = after.since(&before);
        assert_eq!(difference, of(&[6_000, 90_000]));
        // The longest of all waits is known, not the longest of the later ones.
        assert_eq!(of(&[70_000, 6_000]).since(&of(&[70_000])).max_wait_ns, 8_000);
        assert_eq!(before.since(&before), Turns::default());
    }

    #[test]
    fn sums_of_buckets_add_up_to_all_waits() {
        for waits in [&[50_100_000; 20][..], &[0], &[3_000, 3_000, 50_000_000]] {
            let turns = of(waits);
            let sum: f64 = turns.buckets().map(|(.., sum_ns)| sum_ns).sum();
            let exact = turns.wait_ns as f64;
            assert!((sum - exact).abs() <= 0.35 * exact, "{sum}, not {exact}");
            if turns.buckets().count() == 1 {
                assert!((sum - exact).abs() < 1.0, "{sum}, not {exact}");
            }
        }
    }
}
