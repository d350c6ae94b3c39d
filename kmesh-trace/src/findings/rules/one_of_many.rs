//! One pod of a workload that behaves differently from its siblings.

use std::collections::BTreeMap;

use crate::findings::subject::{self, Flags};
use crate::findings::stats::Stats;
use crate::findings::text::{plural, share, span};
use crate::findings::watch::{Pair, Watch};
use crate::findings::{Finding, Rule, Severity};
use crate::record::Direction;
use crate::rollup::{Group, GroupEnd};

pub const RULE: Rule = Rule {
    name: "one_of_many",
    looks_for: "pods that differ from their siblings",
    find,
    basis,
};

/// The number of pods, the odd one included, from which on "the others" means something.
const MIN_PODS: usize = 3;
/// The number of connections of a pod from which on it is compared.
const MIN_CONNECTIONS: u64 = 20;
/// The failures and the share of a pod, in percent, from which on it is odd.
const MIN_FAILURES: u64 = 5;
const MIN_FAILED_PERCENT: u64 = 10;
/// How many times larger the failed share, or the median duration, must be than that of every sibling.
const MIN_TIMES: u64 = 3;
/// The number of standard deviations between the failed shares. By chance it is one in 30,000.
const MIN_DEVIATIONS: f64 = 4.0;
/// The difference of medians from which on people notice.
const MIN_DIFFERENCE_NS: u64 = 20_000_000;

/// The pods of one workload as one end of its connections.
#[derive(Default)]
struct Siblings {
    pods: BTreeMap<GroupEnd, Stats>,
    servers: Vec<std::net::SocketAddr>,
}

type Key = (Direction, bool, GroupEnd);

fn siblings(watch: &Watch) -> BTreeMap<Key, Siblings> {
    let mut all: BTreeMap<Key, Siblings> = BTreeMap::new();
    let mut add = |pair: &Pair, is_server: bool, end: &GroupEnd, pods: &crate::findings::watch::Members| {
        let Some(direction) = pair.group.direction.filter(|_| end.workload.is_some()) else { return };
        let siblings = all.entry((direction, is_server, end.clone())).or_default();
        siblings.servers.push(pair.server);
        for (pod, stats) in pods.iter() {
            siblings.pods.entry(pod.clone()).or_default().merge(stats);
        }
    };
    for pair in &watch.pairs {
        add(pair, true, &pair.group.dst, &pair.servers);
        add(pair, false, &pair.group.src, &pair.clients);
    }
    all.retain(|_, siblings| {
        siblings.pods.retain(|_, stats| stats.attempts >= MIN_CONNECTIONS);
        siblings.pods.len() >= MIN_PODS
    });
    all
}

fn basis(watch: &Watch) -> Result<u64, &'static str> {
    let all = siblings(watch);
    if all.is_empty() {
        return Err("no workload has three pods with 20 connections each");
    }
    let pods = all.values().flat_map(|siblings| siblings.pods.values());
    Ok(pods.map(|stats| stats.attempts).sum::<u64>().min(watch.attempts))
}

fn find(watch: &Watch) -> Vec<Finding> {
    let all = siblings(watch);
    all.iter().filter_map(|(key, siblings)| odd_one(watch, key, siblings)).collect()
}

fn odd_one(watch: &Watch, key: &Key, siblings: &Siblings) -> Option<Finding> {
    let failing = siblings.pods.iter().filter(|(pod, _)| fails_more(siblings, pod));
    let worst = failing.max_by_key(|(_, stats)| stats.failed * 1_000 / stats.attempts.max(1));
    let (title, pod, counts) = match worst {
        Some((pod, stats)) => {
            let others = others(siblings, pod);
            let text = format!(
                "{} of its connections fail, {} of {}",
                share(stats.failed, stats.attempts),
                share(others.failed, others.attempts),
                plural(siblings.pods.len() as u64 - 1, "sibling")
            );
            (text, pod, (stats.failed, stats.attempts))
        }
        None => {
            let (pod, own, slowest) = siblings.pods.keys().find_map(|pod| slower(siblings, pod))?;
            let stats = &siblings.pods[pod];
            let text = format!("its median connection takes {}, {} at most of its siblings", span(own), span(slowest));
            (text, pod, (stats.established / 2, stats.established))
        }
    };
    Some(finding(watch, key, siblings, pod, &title, counts))
}

fn finding(
    watch: &Watch,
    (direction, is_server, workload): &Key,
    siblings: &Siblings,
    pod: &GroupEnd,
    title: &str,
    (count, of): (u64, u64),
) -> Finding {
    let name = subject::end(pod);
    let side = if *is_server { "to" } else { "from" };
    let mut subject = Group {
        direction: Some(*direction),
        ..Group::default()
    };
    *(if *is_server { &mut subject.dst } else { &mut subject.src }) = GroupEnd {
        workload: workload.workload.clone(),
        ..pod.clone()
    };
    let (first, last) = watch.began.zip(watch.ended).unwrap_or((crate::record::WallTime(0), crate::record::WallTime(0)));
    let role = if *is_server { "as a server" } else { "as a client" };
    Finding {
        rule: RULE.name,
        severity: Severity::Warning,
        subject,
        server: siblings.servers.first().copied(),
        count,
        of,
        first,
        last,
        title: format!("{name} differs from the other pods of {}: {title}", subject::end(workload)),
        evidence: vec![format!(
            "Compared {role} with {}: look at this pod's node, version and load.",
            siblings.pods.keys().filter(|other| *other != pod).take(4).map(subject::end).collect::<Vec<_>>().join(", ")
        )],
        flags: Flags::default().with(&format!("{side}-pod"), &name),
    }
}

/// Returns the sum over the siblings of a pod.
fn others(siblings: &Siblings, pod: &GroupEnd) -> Stats {
    let mut sum = Stats::default();
    let others = siblings.pods.iter().filter(|(other, _)| *other != pod);
    others.for_each(|(_, stats)| sum.merge(stats));
    sum
}

fn fails_more(siblings: &Siblings, pod: &GroupEnd) -> bool {
    let own = &siblings.pods[pod];
    let others = others(siblings, pod);
    if own.failed < MIN_FAILURES || own.failed * 100 < own.attempts * MIN_FAILED_PERCENT {
        return false;
    }
    let (own_share, others_share) = (
        own.failed as f64 / own.attempts as f64,
        others.failed as f64 / others.attempts.max(1) as f64,
    );
    let pooled = (own.failed + others.failed) as f64 / (own.attempts + others.attempts) as f64;
    let deviation = (pooled * (1.0 - pooled) * (1.0 / own.attempts as f64 + 1.0 / others.attempts.max(1) as f64)).sqrt();
    own_share >= MIN_TIMES as f64 * others_share && own_share - others_share >= MIN_DEVIATIONS * deviation
}

/// Returns the median durations of a pod and of its slowest sibling, if the pod is much slower.
fn slower<'a>(siblings: &'a Siblings, pod: &'a GroupEnd) -> Option<(&'a GroupEnd, u64, u64)> {
    let median = |stats: &Stats| stats.durations.summary().filter(|_| stats.established >= MIN_CONNECTIONS).map(|found| found.p50);
    let own = median(&siblings.pods[pod])?;
    let others = siblings.pods.iter().filter(|(other, _)| *other != pod);
    let medians: Vec<_> = others.filter_map(|(_, stats)| median(stats)).collect();
    let slowest = *medians.iter().max()?;
    let is_slower = medians.len() + 1 >= MIN_PODS && own >= MIN_TIMES * slowest && own - slowest >= MIN_DIFFERENCE_NS;
    is_slower.then_some((pod, own, slowest))
}
