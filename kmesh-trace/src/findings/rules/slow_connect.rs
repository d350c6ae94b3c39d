//! Connections that are slow to be established.

use super::{MIN_FAILURES, MIN_PERCENT, at, frequency};
use crate::findings::stats::Symptom;
use crate::findings::subject;
use crate::findings::text::{plural, share, span};
use crate::findings::watch::{Pair, Watch};
use crate::findings::{Finding, Rule, Severity};

pub const RULE: Rule = Rule {
    name: "slow_connect",
    looks_for: "frequently slow handshakes",
    find,
    basis,
};

/// The minimum number of handshakes for a meaningful p95.
const MIN_CONNECTS: u64 = 20;
/// The minimum p95, in round-trip times, of a slow handshake. A handshake takes one.
const MIN_ROUND_TRIPS: u64 = 10;
/// The minimum p95 that users notice.
const MIN_P95_NS: u64 = 50_000_000;

fn basis(watch: &Watch) -> Result<u64, &'static str> {
    let outbound = watch.pairs.iter().filter(|pair| pair.is_outbound());
    match outbound.map(|pair| pair.stats.established).sum() {
        0 => Err("no handshake of a client on this node"),
        connects => Ok(connects),
    }
}

fn find(watch: &Watch) -> Vec<Finding> {
    watch
        .pairs
        .iter()
        .filter(|pair| pair.is_outbound())
        .filter_map(of_pair)
        .collect()
}

fn of_pair(pair: &Pair) -> Option<Finding> {
    let stats = &pair.stats;
    let late = stats.symptom(Symptom::LateAnswer);
    let connect = stats.connects.summary()?;
    let rtt_ns = stats.rtts.summary().map_or(0, |rtt| rtt.p50 * 1_000);
    let is_late = late.count >= MIN_FAILURES && late.count * 100 >= stats.established * MIN_PERCENT;
    let is_slow = stats.established >= MIN_CONNECTS && connect.p95 >= MIN_P95_NS.max(MIN_ROUND_TRIPS * rtt_ns);
    if !is_late && !is_slow {
        return None;
    }
    let (client, server) = (subject::client(pair), subject::server(pair));
    let (count, of, text) = frequency(late, pair, "attempt");
    let p95 = format!(
        "p95 {}, where the path's own round trip takes {}",
        span(connect.p95),
        span(rtt_ns)
    );
    let mut finding = Finding::of(RULE.name, Severity::Warning, pair, (count, of));
    finding.title = match is_late {
        true => format!("{client} → {server} connects only after a repeated SYN: {text}"),
        false => {
            (finding.count, finding.of) = (stats.established / 20, stats.established);
            format!(
                "{client} → {server} is slow to connect: {} of {}",
                p95,
                plural(stats.established, "handshake")
            )
        }
    };
    finding.evidence = match is_late {
        true => vec![
            format!("The handshake took {p95}."),
            "The first SYN or its answer was lost: loss on the path, a full accept queue, or a rate limit.".to_owned(),
        ],
        false => vec![format!(
            "No more than {} of the attempts had to send their SYN again, so something delays the answer: the server's \
             host, or a proxy in between.",
            share(late.count, stats.attempts)
        )],
    };
    finding.flags = finding.flags.with_switch("established-only").with("output", "log");
    Some(at(finding, late))
}
