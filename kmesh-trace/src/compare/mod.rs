//! Compares two captures group by group. Pure: time is the time of the records.
//!
//! [`Sample`] collects one capture, [`compare`] returns what changed. A change is reported only if the confidence
//! intervals of before and after do not overlap. Together, all intervals of a comparison hold with [`CONFIDENCE`]: each
//! of n comparisons gets the n-th part of the error probability (Bonferroni). `docs/findings.md` describes the method.

pub mod intervals;
mod sample;
#[cfg(test)]
mod tests;

pub use sample::Sample;

use std::collections::BTreeSet;

use crate::rollup::Group;
use sample::Values;

/// The probability that nothing is reported if nothing changed.
pub const CONFIDENCE: f64 = 0.999;

/// The relative difference below which a change of a time or a rate is not worth a line, however certain it is.
const MIN_DIFFERENCE: f64 = 0.05;

/// A figure that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Whether the group exists: its number of connections.
    Connections,
    /// The share of connections that failed.
    FailedShare,
    ConnectP50,
    ConnectP95,
    ResponseP50,
    ResponseP95,
    DurationP50,
    DurationP95,
    /// The ended connections a second.
    Rate,
    /// The payload of both directions, in bytes a second.
    ByteRate,
}

impl Metric {
    /// All values, in the order in which changes of a group are printed.
    pub const ALL: &'static [Self] = &[
        Self::Connections,
        Self::FailedShare,
        Self::ConnectP50,
        Self::ConnectP95,
        Self::ResponseP50,
        Self::ResponseP95,
        Self::DurationP50,
        Self::DurationP95,
        Self::Rate,
        Self::ByteRate,
    ];

    /// Returns the text in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::FailedShare => "failed_share",
            Self::ConnectP50 => "connect_p50_ns",
            Self::ConnectP95 => "connect_p95_ns",
            Self::ResponseP50 => "response_p50_ns",
            Self::ResponseP95 => "response_p95_ns",
            Self::DurationP50 => "duration_p50_ns",
            Self::DurationP95 => "duration_p95_ns",
            Self::Rate => "connections_per_s",
            Self::ByteRate => "bytes_per_s",
        }
    }
}

/// A figure of one capture, with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
    /// The number of connections, or of time windows, behind it.
    pub samples: u64,
}

/// Something that differs between two captures beyond chance.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub group: Group,
    pub metric: Metric,
    pub before: Estimate,
    pub after: Estimate,
}

/// The result of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub changes: Vec<Change>,
    /// The number of comparisons that were made.
    pub comparisons: u64,
    /// The number of groups in each capture.
    pub groups: (usize, usize),
}

/// The two sides of one comparison, before the interval is known.
struct Comparison<'a> {
    group: &'a Group,
    metric: Metric,
    before: Values,
    after: Values,
}

/// Returns what changed from `before` to `after`.
pub fn compare(before: &mut Sample, after: &mut Sample) -> Changes {
    sample::align(before, after);
    let groups: BTreeSet<_> = before.groups().chain(after.groups()).cloned().collect();
    let comparisons: Vec<_> = groups
        .iter()
        .flat_map(|group| comparisons(group, before, after))
        .collect();
    let alpha = (1.0 - CONFIDENCE) / comparisons.len().max(1) as f64;
    let mut changes: Vec<_> = comparisons
        .iter()
        .filter_map(|comparison| changed(comparison, alpha))
        .collect();
    changes.sort_by_key(|change| change.metric > Metric::FailedShare);
    Changes {
        changes,
        comparisons: comparisons.len() as u64,
        groups: (before.groups().count(), after.groups().count()),
    }
}

/// Returns the comparisons of a group. A group that one capture lacks is compared by its number of connections alone.
fn comparisons<'a>(group: &'a Group, before: &Sample, after: &Sample) -> Vec<Comparison<'a>> {
    let counts = (before.connections(group), after.connections(group));
    let metrics = match counts {
        (0, _) | (_, 0) => &Metric::ALL[..1],
        _ => &Metric::ALL[1..],
    };
    let comparison = |&metric| {
        let (before, after) = (before.values(group, metric)?, after.values(group, metric)?);
        Some(Comparison {
            group,
            metric,
            before,
            after,
        })
    };
    metrics.iter().filter_map(comparison).collect()
}

/// Returns the change, if the intervals of both sides do not overlap.
fn changed(comparison: &Comparison<'_>, alpha: f64) -> Option<Change> {
    // Each side may err with half of the probability.
    let (before, after) = match (&comparison.before, &comparison.after) {
        (
            Values::Count {
                count: before,
                ns: before_ns,
            },
            Values::Count {
                count: after,
                ns: after_ns,
            },
        ) => {
            return new_or_gone(comparison, (*before, *before_ns), (*after, *after_ns), alpha);
        }
        (before, after) => (estimate(before, alpha / 2.0)?, estimate(after, alpha / 2.0)?),
    };
    let is_apart = before.high < after.low || after.high < before.low;
    let larger = before.value.max(after.value);
    let is_large =
        comparison.metric == Metric::FailedShare || (before.value - after.value).abs() >= MIN_DIFFERENCE * larger;
    (is_apart && is_large).then(|| Change {
        group: comparison.group.clone(),
        metric: comparison.metric,
        before,
        after,
    })
}

fn estimate(values: &Values, alpha: f64) -> Option<Estimate> {
    match values {
        Values::Share { count, of } => {
            let (low, high) = intervals::share(*count, *of, alpha);
            let value = *count as f64 / *of as f64;
            Some(Estimate {
                value,
                low,
                high,
                samples: *of,
            })
        }
        Values::Quantile { sorted, part } => {
            let (low, high) = intervals::quantile(sorted, *part, alpha)?;
            let rank = ((part * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1;
            Some(Estimate {
                value: sorted[rank],
                low,
                high,
                samples: sorted.len() as u64,
            })
        }
        Values::Count { .. } => None,
    }
}

/// Returns the change of a group that one capture lacks. By chance, all connections of a group are in one of two
/// captures of the same load with the probability (that capture's part of the time) ^ (number of connections).
fn new_or_gone(
    comparison: &Comparison<'_>,
    (before, before_ns): (u64, u64),
    (after, after_ns): (u64, u64),
    alpha: f64,
) -> Option<Change> {
    let (count, own_ns) = if before > 0 {
        (before, before_ns)
    } else {
        (after, after_ns)
    };
    let part = own_ns as f64 / (before_ns + after_ns).max(1) as f64;
    // Twice, since a group can be new or gone.
    if 2.0 * part.powf(count as f64) > alpha {
        return None;
    }
    let exact = |count: u64| Estimate {
        value: count as f64,
        low: count as f64,
        high: count as f64,
        samples: count,
    };
    Some(Change {
        group: comparison.group.clone(),
        metric: comparison.metric,
        before: exact(before),
        after: exact(after),
    })
}
