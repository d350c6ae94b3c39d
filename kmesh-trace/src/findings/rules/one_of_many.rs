//! One pod of a workload that behaves differently from its siblings.

use std::collections::BTreeMap;

use crate::findings::stats::Stats;
use crate::findings::subject::{self, Flags};
use crate::findings::text::{plural, share, span};
use crate::findings::watch::{Pair, Watch};
use crate::findings::{Finding, Rule, Severity};
use crate::rollup::GroupEnd;

pub const RULE: Rule = Rule {
    name: "one_of_many",
    looks_for: "pods that differ from their siblings",
    find,
    basis,
};

/// The minimum number of pods, the odd one included.
const MIN_PODS: usize = 3;
/// The minimum number of connections of a pod that is compared.
const MIN_CONNECTIONS: u64 = 20;
/// The minimum number of failures of an odd pod.
const MIN_FAILURES: u64 = 5;
/// The minimum share of failures of an odd pod, in percent.
const MIN_FAILED_PERCENT: u64 = 10;
/// How many times larger the failed share, or the median duration, must be than that of every sibling.
const MIN_TIMES: u64 = 3;
/// The number of standard deviations between the failed shares. By chance it is one in 30,000.
const MIN_DEVIATIONS: f64 = 4.0;
/// The minimum difference of medians that users notice.
const MIN_DIFFERENCE_NS: u64 = 20_000_000;

/// The pods of one end of a pair. Only pods with the same peer are compared: another peer asks for other things.
struct Siblings<'a> {
    pair: &'a Pair,
    is_server: bool,
    pods: BTreeMap<&'a GroupEnd, &'a Stats>,
}

fn siblings(watch: &Watch) -> impl Iterator<Item = Siblings<'_>> {
    let of_pair = |pair| [true, false].map(|is_server| Siblings::new(pair, is_server));
    let all = watch.pairs.iter().flat_map(of_pair);
    all.filter(|siblings| siblings.pods.len() >= MIN_PODS)
}

impl<'a> Siblings<'a> {
    fn new(pair: &'a Pair, is_server: bool) -> Self {
        let members = if is_server { &pair.servers } else { &pair.clients };
        let pods = members.iter().filter(|(_, stats)| stats.attempts >= MIN_CONNECTIONS);
        Self {
            pair,
            is_server,
            pods: pods.collect(),
        }
    }
}

fn basis(watch: &Watch) -> Result<u64, &'static str> {
    let attempts = siblings(watch).map(|siblings| siblings.pods.values().map(|stats| stats.attempts).sum::<u64>());
    match attempts.sum::<u64>() {
        0 => Err("no workload has three pods with 20 connections each"),
        attempts => Ok(attempts.min(watch.attempts)),
    }
}

fn find(watch: &Watch) -> Vec<Finding> {
    let mut found: Vec<_> = siblings(watch)
        .filter_map(|siblings| odd_one(watch, &siblings))
        .collect();
    // A pod that is odd to several peers is one finding.
    found.sort_by_key(|finding| std::cmp::Reverse(finding.count));
    let mut unique: Vec<Finding> = Vec::new();
    for finding in found {
        if !unique.iter().any(|known| known.flags == finding.flags) {
            unique.push(finding);
        }
    }
    unique
}

fn odd_one(watch: &Watch, siblings: &Siblings<'_>) -> Option<Finding> {
    let failing = siblings.pods.iter().filter(|(pod, _)| fails_more(siblings, pod));
    let worst = failing.max_by_key(|(_, stats)| stats.failed * 1_000 / stats.attempts.max(1));
    let (title, pod, counts) = match worst {
        Some((pod, stats)) => {
            let others = others(siblings, pod);
            let text = format!(
                "{} of its connections fail, {} of those of {}",
                share(stats.failed, stats.attempts),
                share(others.failed, others.attempts),
                plural(siblings.pods.len() as u64 - 1, "sibling")
            );
            (text, *pod, (stats.failed, stats.attempts))
        }
        None => {
            let (pod, own, slowest) = siblings.pods.keys().find_map(|pod| slower(siblings, pod))?;
            let stats = siblings.pods[pod];
            let text = format!(
                "its median connection takes {}, that of every sibling {} at most",
                span(own),
                span(slowest)
            );
            (text, pod, (stats.established / 2, stats.established))
        }
    };
    Some(finding(watch, siblings, pod, &title, counts))
}

fn finding(watch: &Watch, siblings: &Siblings<'_>, pod: &GroupEnd, title: &str, (count, of): (u64, u64)) -> Finding {
    let pair = siblings.pair;
    let name = subject::end(pod);
    let (side, workload) = match siblings.is_server {
        true => ("to", &pair.group.dst),
        false => ("from", &pair.group.src),
    };
    let mut finding = Finding::of(RULE.name, Severity::Warning, pair, (count, of));
    let odd_end = match siblings.is_server {
        true => &mut finding.subject.dst,
        false => &mut finding.subject.src,
    };
    odd_end.pod.clone_from(&pod.pod);
    (finding.first, finding.last) = watch.began.zip(watch.ended).unwrap_or((finding.first, finding.last));
    let workload = match &workload.workload {
        Some(workload) => &workload.name,
        None => "its Service",
    };
    finding.title = format!("{name} differs from the other pods of {workload}: {title}");
    let others: Vec<_> = siblings
        .pods
        .keys()
        .filter(|other| **other != pod)
        .map(|other| subject::end(other))
        .collect();
    finding.evidence.push(format!(
        "Compared with {} on the same connections ({} → {}): look at this pod's node, version and load.",
        others[..others.len().min(4)].join(", "),
        subject::client(pair),
        subject::server(pair)
    ));
    finding.flags = Flags::default().with(&format!("{side}-pod"), &name);
    finding
}

/// Returns the sum over the siblings of a pod.
fn others(siblings: &Siblings<'_>, pod: &GroupEnd) -> Stats {
    let mut sum = Stats::default();
    let others = siblings.pods.iter().filter(|(other, _)| **other != pod);
    others.for_each(|(_, stats)| sum.merge(stats));
    sum
}

fn fails_more(siblings: &Siblings<'_>, pod: &GroupEnd) -> bool {
    let own = siblings.pods[pod];
    let others = others(siblings, pod);
    if own.failed < MIN_FAILURES || own.failed * 100 < own.attempts * MIN_FAILED_PERCENT {
        return false;
    }
    let (own_share, others_share) = (
        own.failed as f64 / own.attempts as f64,
        others.failed as f64 / others.attempts.max(1) as f64,
    );
    let pooled = (own.failed + others.failed) as f64 / (own.attempts + others.attempts) as f64;
    let deviation =
        (pooled * (1.0 - pooled) * (1.0 / own.attempts as f64 + 1.0 / others.attempts.max(1) as f64)).sqrt();
    own_share >= MIN_TIMES as f64 * others_share && own_share - others_share >= MIN_DEVIATIONS * deviation
}

/// Returns the median durations of a pod and of its slowest sibling, if the pod is much slower.
fn slower<'a>(siblings: &Siblings<'_>, pod: &'a GroupEnd) -> Option<(&'a GroupEnd, u64, u64)> {
    let median = |stats: &Stats| {
        stats
            .durations
            .summary()
            .filter(|_| stats.established >= MIN_CONNECTIONS)
            .map(|found| found.p50)
    };
    let own = median(siblings.pods[pod])?;
    let others = siblings.pods.iter().filter(|(other, _)| **other != pod);
    let medians: Vec<_> = others.filter_map(|(_, stats)| median(stats)).collect();
    let slowest = *medians.iter().max()?;
    let is_slower = medians.len() + 1 >= MIN_PODS && own >= MIN_TIMES * slowest && own - slowest >= MIN_DIFFERENCE_NS;
    is_slower.then_some((pod, own, slowest))
}
