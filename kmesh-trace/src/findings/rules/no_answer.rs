//! Attempts to connect that get no answer, and connections whose peer stops answering.

use super::{MIN_PERCENT, all_attempts, at, frequency, is_frequent};
use crate::findings::stats::{Occurrences, Symptom};
use crate::findings::subject;
use crate::findings::text::plural;
use crate::findings::watch::{Pair, Watch};
use crate::findings::{Finding, Rule, Severity};

pub const RULE: Rule = Rule {
    name: "no_answer",
    looks_for: "frequently unanswered attempts",
    find,
    basis: all_attempts,
};

/// The minimum number of unanswered attempts that is reported. At a loss of 1 %, an attempt loses its first two SYNs
/// once in 10,000 times.
const MIN_UNANSWERED: u64 = 2;

fn find(watch: &Watch) -> Vec<Finding> {
    let of_pair = |pair: &Pair| {
        let stats = &pair.stats;
        let unanswered = stats.symptom(Symptom::Unanswered);
        let of = stats.attempts.saturating_sub(unanswered.attempts_before);
        let is_unanswered = unanswered.count >= MIN_UNANSWERED && unanswered.count * 100 >= of * MIN_PERCENT;
        let frequent = |symptom| Some(stats.symptom(symptom)).filter(|found| is_frequent(found, stats.attempts));
        let found = [
            is_unanswered.then(|| no_answer(pair, unanswered)),
            frequent(Symptom::Unreachable).map(|found| unreachable(pair, found)),
            frequent(Symptom::Stopped).map(|found| stopped(pair, found)),
        ];
        found.into_iter().flatten().collect::<Vec<_>>()
    };
    watch.pairs.iter().flat_map(of_pair).collect()
}

fn no_answer(pair: &Pair, unanswered: &Occurrences) -> Finding {
    let (count, of, text) = frequency(unanswered, pair, "attempt");
    let mut finding = Finding::of(RULE.name, Severity::Critical, pair, (count, of));
    finding.title = format!(
        "{} → {} gets no answer to its SYNs: {text}",
        subject::client(pair),
        subject::server(pair)
    );
    finding.evidence = dropped(pair);
    let answering = pair.servers.iter().filter(|(_, stats)| stats.established > 0).count() as u64;
    if answering > 0 {
        finding
            .evidence
            .push(format!("{} of the server answered.", plural(answering, "pod")));
    }
    let has_ended = pair.stats.failed > 0 && (pair.stats.drops_known + pair.stats.drops_unknown) > 0;
    finding.flags = match has_ended {
        true => finding.flags.with("outcome", "connect_timeout,connect_aborted"),
        false => finding.flags.with("events", "update").with_switch("connecting"),
    };
    at(finding, unanswered)
}

/// Returns where this node dropped packets of the attempts, if it is known.
fn dropped(pair: &Pair) -> Vec<String> {
    let stats = &pair.stats;
    let sent = stats.sent_drops.main().map(|(reason, packets)| {
        let packets = plural(packets, "packet");
        format!("This node dropped {packets} that the client sent: {reason}.")
    });
    let received = stats.received_drops.main().map(|(reason, packets)| {
        let packets = plural(packets, "packet");
        format!("This node dropped {packets} of the answer: {reason}.")
    });
    let nowhere = match (
        sent.is_some() || received.is_some(),
        stats.drops_known,
        stats.drops_unknown,
    ) {
        (true, ..) => None,
        (false, 1.., 0) => Some(
            "This node dropped none of their packets: the server is down, or a firewall or route beyond this node \
             loses them."
                .to_owned(),
        ),
        (false, ..) => Some("It is unknown whether this node dropped their packets.".to_owned()),
    };
    [sent, received, nowhere].into_iter().flatten().collect()
}

fn unreachable(pair: &Pair, failures: &Occurrences) -> Finding {
    let (count, of, text) = frequency(failures, pair, "attempt");
    let mut finding = Finding::of(RULE.name, Severity::Critical, pair, (count, of));
    finding.title = format!(
        "{} → {} is unreachable: {text}",
        subject::client(pair),
        subject::server(pair)
    );
    if let Some(errno) = pair.stats.main_errno() {
        finding.evidence.push(format!(
            "The kernel reported {errno}: an ICMP message, or no neighbor has the address. Check the route and \
             whether the server's host is up."
        ));
    }
    finding.flags = finding.flags.with("outcome", "unreachable");
    at(finding, failures)
}

fn stopped(pair: &Pair, failures: &Occurrences) -> Finding {
    let (count, of, text) = frequency(failures, pair, "connection");
    let mut finding = Finding::of(RULE.name, Severity::Critical, pair, (count, of));
    let (client, server) = (subject::client(pair), subject::server(pair));
    let silent = if pair.is_outbound() { &server } else { &client };
    finding.title = format!("{client} → {server}: the peer stopped answering: {text}");
    finding.evidence.push(format!(
        "{silent} acknowledged nothing until this end gave up: its host or the path went away without closing."
    ));
    finding.flags = finding.flags.with("outcome", "timeout,unreachable");
    at(finding, failures)
}
