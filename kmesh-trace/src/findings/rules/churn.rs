//! Many short connections where one would do.

use crate::findings::subject;
use crate::findings::text::{plural, share, span};
use crate::findings::watch::{Pair, Watch};
use crate::findings::{Finding, Rule, Severity};
use crate::rollup::GroupEnd;

pub const RULE: Rule = Rule {
    name: "churn",
    looks_for: "many short connections to one server",
    find,
    basis,
};

/// The minimum number of connections of a pair that is judged.
const MIN_CONNECTIONS: u64 = 100;
/// The minimum rate of connections of one pair at which their setup has a noticeable cost, per second.
const MIN_PER_SECOND: u64 = 20;
/// The share of short connections, in percent.
const MIN_SHORT_PERCENT: u64 = 90;
/// How long the end that closes first cannot use its port again.
const TIME_WAIT_NS: u64 = 60_000_000_000;
/// The size of Linux's default range of local ports, 32768 to 60999.
const PORTS: u64 = 28_232;

fn basis(watch: &Watch) -> Result<u64, &'static str> {
    let outbound = watch.pairs.iter().filter(|pair| pair.is_outbound());
    match outbound.map(|pair| pair.stats.established).sum() {
        0 => Err("no connection of a client on this node"),
        connections => Ok(connections),
    }
}

fn find(watch: &Watch) -> Vec<Finding> {
    watch
        .pairs
        .iter()
        .filter(|pair| pair.is_outbound())
        .filter_map(|pair| of_pair(watch, pair))
        .collect()
}

fn of_pair(watch: &Watch, pair: &Pair) -> Option<Finding> {
    let (stats, length_ns) = (&pair.stats, watch.length_ns());
    let per_second = u128::from(stats.established) * 1_000_000_000 / u128::from(length_ns);
    let is_short = stats.short * 100 >= stats.established * MIN_SHORT_PERCENT;
    if stats.established < MIN_CONNECTIONS || per_second < u128::from(MIN_PER_SECOND) || !is_short {
        return None;
    }
    // Each pod has an address, and so all ports, for itself.
    let busiest = pair.clients.iter().max_by_key(|(_, stats)| stats.closed_locally);
    let closed = busiest.map_or(stats.closed_locally, |(_, stats)| stats.closed_locally);
    let in_time_wait = (u128::from(closed) * u128::from(TIME_WAIT_NS) / u128::from(length_ns)) as u64;
    let runs_out = in_time_wait * 2 >= PORTS;
    let severity = if runs_out { Severity::Warning } else { Severity::Notice };
    let mut finding = Finding::of(RULE.name, severity, pair, (stats.short, stats.established));
    finding.title = format!(
        "{} → {} opens {per_second} connections a second, {} shorter than 1 s",
        subject::client(pair),
        subject::server(pair),
        share(stats.short, stats.established)
    );
    finding.evidence = evidence(pair, runs_out.then_some((in_time_wait, busiest.map(|(pod, _)| pod))));
    finding.flags = finding.flags.with_switch("established-only");
    (finding.first, finding.last) = watch.began.zip(watch.ended)?;
    Some(finding)
}

fn evidence(pair: &Pair, ports: Option<(u64, Option<&GroupEnd>)>) -> Vec<String> {
    let stats = &pair.stats;
    let mut evidence = Vec::new();
    if let Some(duration) = stats.durations.summary() {
        let connect = stats.connects.summary().map_or(0, |connect| connect.p50);
        evidence.push(format!(
            "The median connection lasts {}, and its handshake takes {} of that: the client should keep connections \
             open and reuse them.",
            span(duration.p50),
            span(connect)
        ));
    }
    if let Some((in_time_wait, pod)) = ports {
        let client = pod.map_or_else(|| "the client".to_owned(), subject::end);
        evidence.push(format!(
            "At this rate about {} of {client} stay in TIME_WAIT for 60 s, and the default range has {PORTS}: \
             connect() will fail with EADDRNOTAVAIL.",
            plural(in_time_wait, "port")
        ));
    }
    evidence
}
