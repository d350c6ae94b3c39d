//! The rules. Each is a pure function over a watch, with its thresholds beside it.

mod accept_queue;
mod churn;
mod held_back;
mod loss;
mod no_answer;
mod not_closed;
mod one_of_many;
mod refused;
mod resets;
mod slow_answers;
mod slow_connect;

use super::stats::Occurrences;
use super::text::{clock, plural};
use super::watch::{Pair, Watch};
use super::{Finding, Rule};

/// All rules. Of two findings with equal severity and weight, the one of the earlier rule comes first.
pub const RULES: &[Rule] = &[
    refused::RULE,
    no_answer::RULE,
    resets::RULE,
    accept_queue::RULE,
    slow_connect::RULE,
    loss::RULE,
    slow_answers::RULE,
    held_back::RULE,
    not_closed::RULE,
    churn::RULE,
    one_of_many::RULE,
];

/// The minimum number of failures that is not chance, for symptoms that a healthy pair does not have.
const MIN_FAILURES: u64 = 3;
/// The share of failures since the first one, in percent. Fewer are the rest of a restart or of a single bad request.
const MIN_PERCENT: u64 = 5;

/// Returns the share rule of all failures: at least `MIN_FAILURES`, and `MIN_PERCENT` of the attempts since the first.
fn is_frequent(failures: &Occurrences, attempts: u64) -> bool {
    let of = attempts.saturating_sub(failures.attempts_before);
    failures.count >= MIN_FAILURES && failures.count * 100 >= of * MIN_PERCENT
}

/// Returns the number of failures, the number of attempts since the first failure, and a text with both:
/// `40 of 52 attempts since 03:19:40, none of the 9 before`.
fn frequency(failures: &Occurrences, pair: &Pair, noun: &str) -> (u64, u64, String) {
    let of = pair
        .stats
        .attempts
        .saturating_sub(failures.attempts_before)
        .max(failures.count);
    let since = failures.first.map(clock).unwrap_or_default();
    let before = match failures.attempts_before {
        0 => "and no earlier one was seen".to_owned(),
        before => format!("none of the {before} before"),
    };
    let text = format!("{} of {} since {since}, {before}", failures.count, plural(of, noun));
    (failures.count, of, text)
}

/// Sets the times of a finding.
fn at(mut finding: Finding, failures: &Occurrences) -> Finding {
    finding.first = failures.first.unwrap_or(finding.first);
    finding.last = failures.last.unwrap_or(finding.first);
    finding
}

/// Returns all attempts as the basis of a rule.
fn all_attempts(watch: &Watch) -> Result<u64, &'static str> {
    match watch.attempts {
        0 => Err("no connection ended"),
        attempts => Ok(attempts),
    }
}

/// Returns the pair of the other end of the same connections, if this node traced it, too.
fn other_end<'a>(watch: &'a Watch, pair: &Pair) -> Option<&'a Pair> {
    watch.pairs.iter().find(|other| {
        other.group.direction != pair.group.direction
            && other.server == pair.server
            && (&other.group.src.workload, &other.group.src.pod, other.group.src.ip)
                == (&pair.group.src.workload, &pair.group.src.pod, pair.group.src.ip)
    })
}
