//! Segments that had to be sent again.

use crate::findings::subject;
use crate::findings::text::{plural, share};
use crate::findings::watch::{Pair, Watch};
use crate::findings::{Finding, Rule, Severity};

pub const RULE: Rule = Rule {
    name: "loss",
    looks_for: "frequent loss of segments",
    find,
    basis,
};

/// The minimum share of retransmitted segments, in per mille, that costs throughput: at 1 % one connection with 50 ms
/// of round-trip time reaches no more than about 2.9 Mbit/s (Mathis).
const MIN_PER_MILLE: u64 = 10;
/// The minimum number of retransmitted segments for a meaningful share.
const MIN_RETRANSMITS: u64 = 20;
/// The number of segments with which another path counts as one without loss.
const MIN_SEGMENTS: u64 = 200;

fn basis(watch: &Watch) -> Result<u64, &'static str> {
    match watch.pairs.iter().map(|pair| pair.stats.segments).sum::<u64>() {
        0 => Err("no segment with data was sent"),
        _ => Ok(watch.attempts),
    }
}

fn has_loss(pair: &Pair) -> bool {
    let stats = &pair.stats;
    stats.retransmits >= MIN_RETRANSMITS && stats.retransmits * 1_000 >= stats.segments * MIN_PER_MILLE
}

fn find(watch: &Watch) -> Vec<Finding> {
    watch
        .pairs
        .iter()
        .filter(|pair| has_loss(pair))
        .map(|pair| of_pair(watch, pair))
        .collect()
}

fn of_pair(watch: &Watch, pair: &Pair) -> Finding {
    let stats = &pair.stats;
    let mut finding = Finding::of(RULE.name, Severity::Warning, pair, (stats.retransmits, stats.segments));
    let sender = if pair.is_outbound() { "the client" } else { "the server" };
    finding.title = format!(
        "{} → {} loses segments: {sender} sent {} of {} again ({})",
        subject::client(pair),
        subject::server(pair),
        stats.retransmits,
        plural(stats.segments, "segment"),
        share(stats.retransmits, stats.segments)
    );
    let others = watch.pairs.iter().filter(|other| {
        let is_other_path = other.group.src != pair.group.src || other.group.dst != pair.group.dst;
        is_other_path && other.stats.segments >= MIN_SEGMENTS
    });
    let (lossy, clean): (Vec<_>, Vec<_>) = others.partition(|other| has_loss(other));
    finding.evidence.push(match (lossy.len() as u64, clean.len() as u64) {
        (0, 0) => "No other pair sent enough to compare.".to_owned(),
        (0, clean) => format!("The other {} without loss: it is this path or peer.", plural_are(clean)),
        (lossy, 0) => format!(
            "The other {} segments, too: it is this node or its link.",
            plural_lose(lossy)
        ),
        (lossy, clean) => format!("{} segments, too; {clean} do not.", plural_lose(lossy)),
    });
    finding.flags = finding.flags.with("output", "log");
    (finding.first, finding.last) = watch.began.zip(watch.ended).unwrap_or((finding.first, finding.last));
    finding
}

fn plural_are(pairs: u64) -> String {
    let verb = if pairs == 1 { "is" } else { "are" };
    format!("{} {verb}", plural(pairs, "pair"))
}

fn plural_lose(pairs: u64) -> String {
    let verb = if pairs == 1 { "loses" } else { "lose" };
    format!("{} {verb}", plural(pairs, "pair"))
}
