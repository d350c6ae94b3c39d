//! Connections whose sender waits for a window or a buffer instead of the network.

use super::other_end;
use crate::findings::subject;
use crate::findings::text::{share, span};
use crate::findings::watch::{Pair, Watch};
use crate::findings::{Finding, Rule, Severity};

pub const RULE: Rule = Rule {
    name: "held_back",
    looks_for: "senders that a window or a buffer holds back",
    find,
    basis,
};

/// The minimum share of the busy time, in percent, at which the limit dominates the transfer time.
const MIN_PERCENT: u64 = 30;
/// The minimum busy time of the connections of a pair worth reporting, µs.
const MIN_BUSY_US: u64 = 1_000_000;

fn basis(watch: &Watch) -> Result<u64, &'static str> {
    match watch.pairs.iter().any(|pair| pair.stats.limits.is_some()) {
        true => Ok(watch.attempts),
        false => Err("the records do not say what limited the senders"),
    }
}

fn find(watch: &Watch) -> Vec<Finding> {
    watch.pairs.iter().filter_map(|pair| of_pair(watch, pair)).collect()
}

fn of_pair(watch: &Watch, pair: &Pair) -> Option<Finding> {
    let limits = pair.stats.limits.filter(|limits| limits.busy_us >= MIN_BUSY_US)?;
    let is_window = limits.rwnd_us >= limits.sndbuf_us;
    let limited_us = limits.rwnd_us.max(limits.sndbuf_us);
    if limited_us * 100 < limits.busy_us * MIN_PERCENT {
        return None;
    }
    let (client, server) = (subject::client(pair), subject::server(pair));
    let (sender, receiver) = if pair.is_outbound() {
        ("client", &server)
    } else {
        ("server", &client)
    };
    let what = if is_window {
        "the receiver's window"
    } else {
        "its own send buffer"
    };
    let mut finding = Finding::of(
        RULE.name,
        Severity::Warning,
        pair,
        (limited_us / 1_000, limits.busy_us / 1_000),
    );
    finding.title = format!(
        "{client} → {server}: the {sender} waits for {what}, {} of the {} with data to send",
        share(limited_us, limits.busy_us),
        span(limits.busy_us * 1_000)
    );
    finding.evidence.push(match is_window {
        true => {
            let process = other_end(watch, pair).and_then(|other| other.processes.main());
            let process = process.map_or_else(|| receiver.clone(), subject::process);
            format!("{process} does not read fast enough. The network is not the limit.")
        }
        false => "The process has a small send buffer (SO_SNDBUF) for this distance.".to_owned(),
    });
    finding.flags = finding.flags.with("output", "json");
    (finding.first, finding.last) = watch.began.zip(watch.ended)?;
    Some(finding)
}
