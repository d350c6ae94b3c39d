//! Established connections that end with RST.

use super::{all_attempts, at, frequency, is_frequent, other_end};
use crate::findings::stats::{Resets, Symptom};
use crate::findings::subject;
use crate::findings::text::{bytes, plural, span};
use crate::findings::watch::{Pair, Watch};
use crate::findings::{Finding, Rule, Severity};

pub const RULE: Rule = Rule {
    name: "resets",
    looks_for: "frequent resets",
    find,
    basis: all_attempts,
};

/// The minimum number of resets for a warning, if they lost nothing and most connections are not reset. A healthy pair
/// sometimes has three in a short time.
const MIN_CERTAIN: u64 = 5;
/// The minimum number of resets whose times and sizes are compared. Five values within 5 % by chance are rare.
const MIN_ALIKE: usize = 5;
/// The shortest idle time that looks like a limit of a proxy or load balancer. Shorter ones are the time of a request.
const MIN_IDLE_NS: u64 = 900_000_000;

fn find(watch: &Watch) -> Vec<Finding> {
    let of_pair = |pair| {
        [Symptom::ResetByPeer, Symptom::ResetByLocal]
            .into_iter()
            .filter_map(move |symptom| of_symptom(watch, pair, symptom))
    };
    watch.pairs.iter().flat_map(of_pair).collect()
}

fn of_symptom(watch: &Watch, pair: &Pair, symptom: Symptom) -> Option<Finding> {
    let failures = pair.stats.symptom(symptom);
    if !is_frequent(failures, pair.stats.attempts) {
        return None;
    }
    let (count, of, text) = frequency(failures, pair, "connection");
    let resets = &pair.stats.resets;
    let severity = match resets.with_loss {
        0 if count < MIN_CERTAIN && count * 2 < of => Severity::Notice,
        0 => Severity::Warning,
        _ => Severity::Critical,
    };
    let (client, server) = (subject::client(pair), subject::server(pair));
    let is_by_server = pair.is_outbound() == (symptom == Symptom::ResetByPeer);
    let resetter = if is_by_server {
        "the server's end"
    } else {
        "the client's end"
    };
    let mut finding = Finding::of(RULE.name, severity, pair, (count, of));
    finding.title = format!("{client} → {server} is reset by {resetter}: {text}");
    finding.evidence = evidence(watch, pair, symptom);
    let outcome = if symptom == Symptom::ResetByPeer {
        "reset_by_peer"
    } else {
        "reset_by_local"
    };
    finding.flags = finding.flags.with("outcome", outcome);
    Some(at(finding, failures))
}

fn evidence(watch: &Watch, pair: &Pair, symptom: Symptom) -> Vec<String> {
    let resets = &pair.stats.resets;
    let sender = match symptom {
        Symptom::ResetByLocal => Some(pair),
        _ => other_end(watch, pair),
    };
    let mut evidence = Vec::new();
    if let Some((reason, count)) = sender.and_then(|sender| sender.stats.resets.reasons.main()) {
        evidence.push(format!(
            "{count} times the kernel's reason was {reason}{}.",
            meaning(reason)
        ));
    } else if sender.is_none() {
        evidence.push(
            "This node did not send the RST: it came from the other node, or from a proxy or firewall in between."
                .to_owned(),
        );
    }
    if let Some((pid, comm)) = sender.and_then(|sender| sender.processes.main()) {
        evidence.push(format!("The socket belongs to {}.", subject::process((pid, comm))));
    }
    evidence.extend(alike(resets));
    match resets.with_loss {
        0 => evidence.push("No written bytes were lost with them.".to_owned()),
        count => evidence.push(format!(
            "{} lost {} that the program had written.",
            plural(count, "connection"),
            bytes(resets.lost_bytes)
        )),
    }
    evidence
}

/// Returns what a process does that makes the kernel reset for this reason.
fn meaning(reason: &str) -> &'static str {
    match reason {
        "TCP_ABORT_ON_CLOSE" => " (the process closed with unread data)",
        "TCP_STATE" => " (SO_LINGER with time 0, a closed listener, or ss -K)",
        "TCP_ABORT_ON_DATA" => " (data arrived after the process had closed)",
        "TCP_TIMEWAIT_SOCKET" => " (data arrived for a connection that had ended)",
        _ => "",
    }
}

/// Returns whether the resets came after the same idle time or size, which points to a limit of a proxy.
fn alike(resets: &Resets) -> Option<String> {
    if let Some(idle) = common_value(&resets.idle_ns).filter(|idle| *idle >= MIN_IDLE_NS) {
        let after = if resets.is_duration { "after" } else { "when idle for" };
        let idle = span(idle);
        return Some(format!(
            "They were always reset {after} about {idle}: compare with the idle timeouts of proxies and load balancers."
        ));
    }
    let size = common_value(&resets.sizes).filter(|size| *size >= 1024)?;
    Some(format!(
        "They were always reset after about {}: look for a limit of that size.",
        bytes(size)
    ))
}

/// Returns the median if all values, but one in ten, are within 5 % of it.
fn common_value(values: &[u64]) -> Option<u64> {
    if values.len() < MIN_ALIKE {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let median = sorted[sorted.len() / 2];
    let near = sorted
        .iter()
        .filter(|value| value.abs_diff(median) <= median / 20)
        .count();
    (near * 10 >= values.len() * 9).then_some(median)
}
