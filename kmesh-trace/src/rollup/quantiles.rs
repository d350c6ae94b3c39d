//! Quantiles of many values in little memory.

use std::fmt;

use sketches_ddsketch::{Config, DDSketch};

/// A quantile is off by at most this part of the value that really has its rank. While there are few values it is exact.
pub const ERROR: f64 = 0.01;

/// So many values are kept as they are: most groups of a window have no more, and 512 bytes hold them.
const FEW: usize = 64;

/// Bins of a sketch, 8 bytes each. With [`ERROR`] they span 17 powers of ten, so from a nanosecond to three years nothing
/// is ever squeezed together.
const BINS: u32 = 2048;

/// The values of one group in one window. The largest is kept exactly.
#[derive(Clone, Debug)]
pub struct Quantiles {
    values: Values,
    max: u64,
}

#[derive(Clone)]
enum Values {
    Few(Vec<u64>),
    Many(Box<DDSketch>),
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Few(few) => few.fmt(f),
            Self::Many(sketch) => write!(f, "{} values", sketch.count()),
        }
    }
}

impl Default for Quantiles {
    fn default() -> Self {
        Self {
            values: Values::Few(Vec::new()),
            max: 0,
        }
    }
}

impl Quantiles {
    /// One value more.
    pub fn add(&mut self, value: u64) {
        self.max = self.max.max(value);
        match &mut self.values {
            Values::Few(few) if few.len() < FEW => few.push(value),
            Values::Few(few) => {
                let mut sketch = Box::new(DDSketch::new(Config::new(ERROR, BINS, 1.0)));
                few.iter().chain([&value]).for_each(|&value| sketch.add(value as f64));
                self.values = Values::Many(sketch);
            }
            Values::Many(sketch) => sketch.add(value as f64),
        }
    }

    /// The median, and so on.
    pub fn summary(&self) -> Option<QuantileSummary> {
        let mut sorted = Vec::new();
        if let Values::Few(few) = &self.values {
            few.clone_into(&mut sorted);
            sorted.sort_unstable();
        }
        Some(QuantileSummary {
            p50: self.at(&sorted, 0.50)?,
            p95: self.at(&sorted, 0.95)?,
            p99: self.at(&sorted, 0.99)?,
            max: self.max,
        })
    }

    /// The least value that so large a part of all do not exceed.
    fn at(&self, sorted: &[u64], part: f64) -> Option<u64> {
        let rank = |count: usize| ((part * count as f64).ceil() as usize).clamp(1, count.max(1)) - 1;
        match &self.values {
            Values::Few(_) => sorted.get(rank(sorted.len())).copied(),
            Values::Many(sketch) => {
                // The sketch rounds a part of all but one down to a rank; half a rank more leads to ours.
                let count = sketch.count();
                let part = (rank(count) as f64 + 0.5) / (count - 1) as f64;
                let value = sketch.quantile(part.min(1.0)).ok()??;
                Some((value.round() as u64).min(self.max))
            }
        }
    }
}

/// What is told of a group's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantileSummary {
    /// Half of the values are not larger.
    pub p50: u64,
    /// 95 of 100 are not larger.
    pub p95: u64,
    /// 99 of 100 are not larger.
    pub p99: u64,
    /// The largest, exactly.
    pub max: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing;

    fn summary(values: &[u64]) -> Option<QuantileSummary> {
        let mut quantiles = Quantiles::default();
        values.iter().for_each(|&value| quantiles.add(value));
        quantiles.summary()
    }

    #[test]
    fn few_values_are_exact() {
        let cases: [(&[u64], [u64; 4]); 6] = [
            (&[0], [0, 0, 0, 0]),
            (&[7], [7, 7, 7, 7]),
            (&[1, 2], [1, 2, 2, 2]),
            (&[3, 1, 2], [2, 3, 3, 3]),
            (&[10, 9, 8, 7, 6, 5, 4, 3, 2, 1], [5, 10, 10, 10]),
            (&[u64::MAX, 0], [0, u64::MAX, u64::MAX, u64::MAX]),
        ];
        assert_eq!(summary(&[]), None);
        for (values, [p50, p95, p99, max]) in cases {
            let expected = QuantileSummary { p50, p95, p99, max };
            assert_eq!(summary(values), Some(expected), "{values:?}");
        }
    }

    #[test]
    fn many_values_are_within_the_stated_error() {
        let mut next = testing::random(7);
        let mut distributions: Vec<Vec<u64>> = vec![
            (0..=FEW as u64).collect(),
            (1..=10_000).collect(),
            vec![0; 1000],
            vec![u64::MAX; 1000],
            (0..1000).map(|at| 1 << (at % 64)).collect(),
        ];
        // From nanoseconds to hours, as connections last.
        distributions.push((0..50_000).map(|_| 1 << (next() % 44)).collect());
        distributions.push((0..50_000).map(|_| next() >> (next() % 64)).collect());
        for mut values in distributions {
            let found = summary(&values).unwrap();
            values.sort_unstable();
            assert_eq!(found.max, values[values.len() - 1]);
            for (part, quantile) in [(0.50, found.p50), (0.95, found.p95), (0.99, found.p99)] {
                let rank = (part * values.len() as f64).ceil() as usize - 1;
                let exact = values[rank] as f64;
                let off = (quantile as f64 - exact).abs();
                assert!(
                    off <= exact * ERROR + 0.5,
                    "{part} of {}: {quantile}, not {exact}",
                    values.len()
                );
            }
        }
    }

    /// The order in which they come changes nothing, so a replay tells the same.
    #[test]
    fn the_order_of_values_does_not_matter() {
        let mut next = testing::random(3);
        let mut values: Vec<u64> = (0..5000).map(|_| next() >> (next() % 50)).collect();
        let forwards = summary(&values);
        values.reverse();
        assert_eq!(summary(&values), forwards);
    }
}
