//! Quantiles of many values in bounded memory.

use std::fmt;

use sketches_ddsketch::{Config, DDSketch};

/// The maximum relative error of a quantile. Quantiles of up to `MAX_EXACT` values are exact.
pub const ERROR: f64 = 0.01;

/// The number of values that are stored exactly, in 512 bytes. Most groups of a window have no more.
const MAX_EXACT: usize = 64;

/// The number of bins of a sketch, 8 bytes each. With [`ERROR`] they span 17 powers of ten, from a nanosecond to three
/// years.
const BINS: u32 = 2048;

/// The values of one group in one window.
#[derive(Clone, Debug)]
pub struct Quantiles {
    values: Values,
    max: u64,
}

#[derive(Clone)]
enum Values {
    Exact(Vec<u64>),
    Sketch(Box<DDSketch>),
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(values) => values.fmt(f),
            Self::Sketch(sketch) => write!(f, "{} values", sketch.count()),
        }
    }
}

impl Default for Quantiles {
    fn default() -> Self {
        Self {
            values: Values::Exact(Vec::new()),
            max: 0,
        }
    }
}

impl Quantiles {
    pub fn add(&mut self, value: u64) {
        self.max = self.max.max(value);
        match &mut self.values {
            Values::Exact(values) if values.len() < MAX_EXACT => values.push(value),
            Values::Exact(_) => self.sketch().add(value as f64),
            Values::Sketch(sketch) => sketch.add(value as f64),
        }
    }

    /// Adds all values of `other`.
    pub fn merge(&mut self, other: &Self) {
        match &other.values {
            Values::Exact(values) => values.iter().for_each(|&value| self.add(value)),
            Values::Sketch(sketch) => {
                self.max = self.max.max(other.max);
                let merged = self.sketch().merge(sketch);
                debug_assert!(merged.is_ok(), "all sketches have the same bins");
            }
        }
    }

    /// Returns the sketch, which is created from the exact values if needed.
    fn sketch(&mut self) -> &mut DDSketch {
        if let Values::Exact(values) = &self.values {
            let mut sketch = Box::new(DDSketch::new(Config::new(ERROR, BINS, 1.0)));
            values.iter().for_each(|&value| sketch.add(value as f64));
            self.values = Values::Sketch(sketch);
        }
        match &mut self.values {
            Values::Sketch(sketch) => sketch,
            Values::Exact(_) => unreachable!("replaced above"),
        }
    }

    /// Returns the quantiles. `None` without values.
    pub fn summary(&self) -> Option<QuantileSummary> {
        let mut sorted = Vec::new();
        if let Values::Exact(values) = &self.values {
            values.clone_into(&mut sorted);
            sorted.sort_unstable();
        }
        Some(QuantileSummary {
            p50: self.at(&sorted, 0.50)?,
            p95: self.at(&sorted, 0.95)?,
            p99: self.at(&sorted, 0.99)?,
            max: self.max,
        })
    }

    /// Returns the smallest value such that at least `part` of all values are not larger.
    fn at(&self, sorted: &[u64], part: f64) -> Option<u64> {
        let rank = |count: usize| ((part * count as f64).ceil() as usize).clamp(1, count.max(1)) - 1;
        match &self.values {
            Values::Exact(_) => sorted.get(rank(sorted.len())).copied(),
            Values::Sketch(sketch) => {
                // The sketch computes a rank as `part * (count - 1)`, rounded down. Half a rank more gives our rank.
                let count = sketch.count();
                let part = (rank(count) as f64 + 0.5) / (count - 1) as f64;
                let value = sketch.quantile(part.min(1.0)).ok()??;
                Some((value.round() as u64).min(self.max))
            }
        }
    }
}

/// The quantiles of a set of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantileSummary {
    pub p50: u64,
    pub p95: u64,
    pub p99: u64,
    /// The maximum, which is always exact.
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
    fn quantiles_of_few_values_are_exact() {
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
    fn quantiles_of_many_values_are_within_the_error() {
        let mut next = testing::random(7);
        let mut distributions: Vec<Vec<u64>> = vec![
            (0..=MAX_EXACT as u64).collect(),
            (1..=10_000).collect(),
            vec![0; 1000],
            vec![u64::MAX; 1000],
            (0..1000).map(|at| 1 << (at % 64)).collect(),
        ];
        // From nanoseconds to hours, like the durations of connections.
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

    #[test]
    fn merged_quantiles_are_those_of_all_values() {
        let mut next = testing::random(5);
        for (one, two) in [(0, 3), (40, 20), (64, 1), (10, 500), (500, 10), (700, 900)] {
            let values: Vec<u64> = (0..one + two).map(|_| next() >> (next() % 50)).collect();
            let (mut first, mut second) = (Quantiles::default(), Quantiles::default());
            values[..one].iter().for_each(|&value| first.add(value));
            values[one..].iter().for_each(|&value| second.add(value));
            first.merge(&second);
            assert_eq!(first.summary(), summary(&values), "{one} and {two}");
        }
    }

    /// A replay of merged captures may have another order.
    #[test]
    fn order_of_values_does_not_matter() {
        let mut next = testing::random(3);
        let mut values: Vec<u64> = (0..5000).map(|_| next() >> (next() % 50)).collect();
        let forwards = summary(&values);
        values.reverse();
        assert_eq!(summary(&values), forwards);
    }
}
