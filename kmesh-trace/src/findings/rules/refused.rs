//! Attempts to connect that are answered by RST.

use super::{all_attempts, at, frequency, is_frequent};
use crate::findings::stats::{Stats, Symptom};
use crate::findings::subject::{self, Flags};
use crate::findings::text::{clock, plural};
use crate::findings::watch::{Pair, Reject, Watch};
use crate::findings::{Finding, Rule, Severity};
use crate::record::Outcome;
use crate::rollup::Group;

pub const RULE: Rule = Rule {
    name: "refused",
    looks_for: "frequent refusals",
    find,
    basis: all_attempts,
};

/// The minimum number of RSTs to one client of another node. A port scan tries a port once or twice.
const MIN_REJECTS: u64 = 5;
/// The kernel's reason for a RST because nothing listens on the port.
const NO_SOCKET: &str = "NO_SOCKET";

fn find(watch: &Watch) -> Vec<Finding> {
    let pairs = watch.pairs.iter().filter(|pair| {
        let refused = pair.stats.symptom(Symptom::Refused);
        pair.is_outbound() && is_frequent(refused, pair.stats.attempts)
    });
    let mut findings: Vec<_> = pairs.map(|pair| of_pair(watch, pair)).collect();
    findings.extend(of_other_nodes(watch));
    findings
}

fn of_pair(watch: &Watch, pair: &Pair) -> Finding {
    let refused = pair.stats.symptom(Symptom::Refused);
    let (count, of, text) = frequency(refused, pair, "attempt");
    let mut finding = Finding::of(RULE.name, Severity::Critical, pair, (count, of));
    finding.title = format!(
        "{} → {} is refused: {text}",
        subject::client(pair),
        subject::server(pair)
    );
    finding.evidence = evidence(watch, pair);
    finding.flags = finding.flags.with("outcome", Outcome::Refused.name());
    at(finding, refused)
}

fn evidence(watch: &Watch, pair: &Pair) -> Vec<String> {
    let rejects = |address| watch.rejects.iter().filter(move |((_, server), _)| *server == address);
    let is_rejected = |address| rejects(address).any(|(_, reject)| reject.reason.as_deref() == Some(NO_SOCKET));
    let mut evidence: Vec<_> = pair
        .refusing
        .iter()
        .take(3)
        .map(|refusing| {
            let port = refusing.server.port();
            let name = match &refusing.pod {
                Some(pod) => format!("{}/{}", pod.namespace, pod.name),
                None => refusing.server.ip().to_string(),
            };
            match is_rejected(refusing.server) {
                true => format!("Nothing listens on port {port} of {name}: this node answered RST, {NO_SOCKET}."),
                false => format!("{name} answered RST for port {port}."),
            }
        })
        .collect();
    // The kernel also counts the SYN that it refuses as dropped.
    let drops = pair.stats.sent_drops.iter().filter(|(reason, _)| *reason != NO_SOCKET);
    if let Some((reason, packets)) = drops.max_by_key(|(_, packets)| *packets) {
        let packets = plural(packets, "SYN");
        evidence.push(format!(
            "This node dropped {packets} ({reason}): a rule of its firewall rejects the connections."
        ));
    } else if !pair.refusing.iter().any(|refusing| is_rejected(refusing.server)) {
        let is_known = watch.abilities.rejects == Some(true) || !watch.rejects.is_empty();
        evidence.push(match is_known {
            true => "This node did not send the RST: check that the server listens, and what is in between.".to_owned(),
            false => "Who sent the RST is unknown: there is no line about a reject (needs --events reject).".to_owned(),
        });
    }
    let refuses = |stats: &Stats| stats.symptom(Symptom::Refused).count > 0;
    let (refusing, others): (Vec<_>, Vec<_>) = pair.servers.iter().partition(|(_, stats)| refuses(stats));
    let refusing = refusing.len();
    let answering = others.iter().filter(|(_, stats)| stats.established > 0).count() as u64;
    match answering {
        0 if refusing > 1 => evidence.push(format!("All {refusing} server pods refuse.")),
        0 => {}
        _ => evidence.push(format!(
            "{} of the server answered all the time.",
            plural(answering, "other pod")
        )),
    }
    evidence
}

/// Returns findings about clients of other nodes, whose attempts only this node's RSTs show.
fn of_other_nodes(watch: &Watch) -> Vec<Finding> {
    let is_of_pair = |server| {
        let refuses = |pair: &Pair| pair.refusing.iter().any(|refusing| refusing.server == server);
        watch.pairs.iter().any(refuses)
    };
    let mut rejects: Vec<_> = watch
        .rejects
        .iter()
        .filter(|((_, server), reject)| {
            let is_closed_port = reject.reason.as_deref() == Some(NO_SOCKET);
            reject.count >= MIN_REJECTS && is_closed_port && !is_of_pair(*server)
        })
        .collect();
    rejects.sort_unstable_by_key(|(key, _)| **key);
    rejects
        .into_iter()
        .map(|((client, server), reject)| of_reject(*client, *server, reject))
        .collect()
}

fn of_reject(client: std::net::IpAddr, server: std::net::SocketAddr, reject: &Reject) -> Finding {
    let mut group: Group = subject::server_group(&reject.server, server);
    let named = reject
        .client
        .pod
        .as_ref()
        .map(|pod| format!("{}/{}", pod.namespace, pod.name));
    group.src.ip = Some(client);
    let target = match &group.dst.pod {
        Some(_) => format!("{}:{}", subject::end(&group.dst), server.port()),
        None => server.to_string(),
    };
    Finding {
        rule: RULE.name,
        severity: Severity::Critical,
        title: format!(
            "{} → {target} is refused: this node sent {} since {}",
            named.unwrap_or_else(|| client.to_string()),
            plural(reject.count, "RST"),
            clock(reject.first)
        ),
        subject: group,
        server: Some(server),
        count: reject.count,
        of: reject.count,
        first: reject.first,
        last: reject.last,
        evidence: vec![format!(
            "Nothing listens on port {} of that address ({NO_SOCKET}).",
            server.port()
        )],
        flags: Flags::default()
            .with("events", "reject")
            .with("from-ip", client)
            .with("to-ip", server.ip())
            .with("to-port", server.port()),
    }
}
