//! Requests whose answer takes long, measured by `--turns`.

use super::other_end;
use crate::findings::subject;
use crate::findings::text::{plural, span};
use crate::findings::watch::{Pair, Watch};
use crate::findings::{Finding, Rule, Severity};

pub const RULE: Rule = Rule {
    name: "slow_answers",
    looks_for: "slow answers",
    find,
    basis,
};

/// The minimum number of answers for a meaningful p95.
const MIN_ANSWERS: u64 = 20;
/// The minimum p95 that users notice.
const MIN_P95_NS: u64 = 500_000_000;
/// The minimum p95, in round-trip times, that distance does not explain.
const MIN_ROUND_TRIPS: u64 = 10;

fn basis(watch: &Watch) -> Result<u64, &'static str> {
    match watch.pairs.iter().any(|pair| pair.stats.answers.summary().is_some()) {
        true => Ok(watch.attempts),
        false => Err("no answer was measured (needs --turns)"),
    }
}

fn find(watch: &Watch) -> Vec<Finding> {
    watch.pairs.iter().filter_map(|pair| of_pair(watch, pair)).collect()
}

fn of_pair(watch: &Watch, pair: &Pair) -> Option<Finding> {
    let stats = &pair.stats;
    let answers = stats.answers.summary()?;
    let rtt_ns = stats.rtts.summary().map_or(0, |rtt| rtt.p50 * 1_000);
    if stats.answers.count() < MIN_ANSWERS || answers.p95 < MIN_P95_NS.max(MIN_ROUND_TRIPS * rtt_ns) {
        return None;
    }
    let mut finding = Finding::of(
        RULE.name,
        Severity::Warning,
        pair,
        (stats.answers.count() / 20, stats.answers.count()),
    );
    finding.title = format!(
        "{} → {} answers slowly: p95 {} (median {}) of {}",
        subject::client(pair),
        subject::server(pair),
        span(answers.p95),
        span(answers.p50),
        plural(stats.answers.count(), "answer")
    );
    let other = other_end(watch, pair).and_then(|other| other.stats.answers.summary());
    finding.evidence.push(match (pair.is_outbound(), other) {
        (true, Some(server)) => format!(
            "The server's process took p95 {} of that; the rest is the network and queues.",
            span(server.p95)
        ),
        (true, None) => format!("A round trip takes {}: the rest is the server's.", span(rtt_ns)),
        (false, _) => "The server's own process took this long to begin its answers.".to_owned(),
    });
    finding.flags = finding.flags.with("output", "json");
    (finding.first, finding.last) = watch.began.zip(watch.ended)?;
    Some(finding)
}
