//! Finds what is wrong in a watch over connections: a table of rules over pairs of client and server, listeners and
//! open connections. Pure: time is the time of the records.
//!
//! [`Watch`] collects, [`examine`] applies [`RULES`]. `docs/findings.md` gives the reason of each threshold.

mod limits;
mod rules;
mod stats;
mod subject;
#[cfg(test)]
mod tests;
mod text;
mod watch;

pub use rules::RULES;
pub use subject::{Flags, with_port};
pub use watch::{Abilities, Watch};

use std::net::SocketAddr;

use crate::record::{Direction, WallTime};
use crate::rollup::{Group, GroupEnd};
use stats::Symptom;
use watch::Pair;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Requests fail because of it.
    Critical,
    /// Requests are slow, or will fail soon.
    Warning,
    /// Something costs more than it must.
    Notice,
}

impl Severity {
    /// All values, the worst first.
    pub const ALL: &'static [Self] = &[Self::Critical, Self::Warning, Self::Notice];

    /// Returns the text in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Notice => "notice",
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The name of the rule that found it.
    pub rule: &'static str,
    pub severity: Severity,
    /// The client and the server, or the server alone.
    pub subject: Group,
    /// The server's address after translation. `None`: the finding is about a client alone.
    pub server: Option<SocketAddr>,
    /// How often it happened: connections, segments, scans or milliseconds, by the rule.
    pub count: u64,
    /// The total that `count` is a part of.
    pub of: u64,
    /// When it happened first and last.
    pub first: WallTime,
    pub last: WallTime,
    /// One sentence: what happens, between whom, how often (such as 40 of 52 attempts), since when.
    pub title: String,
    /// Sentences: on whose side it is, and what supports that.
    pub evidence: Vec<String>,
    /// The flags of the command that shows the lines.
    pub flags: Flags,
}

impl Finding {
    fn of(rule: &'static str, severity: Severity, pair: &Pair, (count, of): (u64, u64)) -> Self {
        Self {
            rule,
            severity,
            subject: pair.group.clone(),
            server: Some(pair.server),
            count,
            of,
            first: WallTime(0),
            last: WallTime(0),
            title: String::new(),
            evidence: Vec::new(),
            flags: Flags::of(pair),
        }
    }

    /// Returns whether both are about the same connections, seen from both ends.
    fn is_other_end_of(&self, other: &Self) -> bool {
        let is_same_end = |one: &GroupEnd, two: &GroupEnd| {
            (&one.workload, &one.pod, &one.namespace) == (&two.workload, &two.pod, &two.namespace)
                && (one.workload.is_some() || one.pod.is_some() || one.ip == two.ip)
        };
        self.rule == other.rule
            && self.subject.direction != other.subject.direction
            && is_same_end(&self.subject.src, &other.subject.src)
            && self.server.map(|server| server.port()) == other.server.map(|server| server.port())
            && (is_same_end(&self.subject.dst, &other.subject.dst) || self.server == other.server)
    }

    /// Returns whether the cause `other` explains this finding.
    fn is_effect_of(&self, other: &Self) -> bool {
        let (Some(own), Some(others)) = (self.server, other.server) else {
            return false;
        };
        let workload = |finding: &Self| finding.subject.dst.workload.clone();
        let is_same_server = own.port() == others.port()
            && (own.ip() == others.ip()
                || others.ip().is_unspecified()
                || workload(self).is_some() && workload(self) == workload(other));
        let explains: &[&str] = match other.rule {
            "accept_queue" => &["no_answer", "slow_connect", "one_of_many"],
            "loss" => &["slow_connect", "one_of_many", "held_back"],
            "refused" | "no_answer" | "resets" | "slow_connect" | "slow_answers" => &["one_of_many"],
            _ => &[],
        };
        is_same_server && explains.contains(&self.rule)
    }
}

/// A rule that finds one kind of fault in a watch.
pub struct Rule {
    /// The name in JSON and in the documentation.
    pub name: &'static str,
    /// The problem that the rule detects, as a noun phrase.
    pub looks_for: &'static str,
    /// Finds what is wrong.
    find: fn(&Watch) -> Vec<Finding>,
    /// Returns the number of connections that the rule could judge, or why it could judge none.
    basis: fn(&Watch) -> Result<u64, &'static str>,
}

/// The result of a watch.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The most important finding first.
    pub findings: Vec<Finding>,
    /// The problems that were not found, with the number of connections that the rule judged.
    pub absent: Vec<(&'static str, u64)>,
    /// What could not be checked, and why.
    pub unknown: Vec<String>,
    /// The connections and attempts that ended.
    pub connections: u64,
    /// The connections that were open at the end.
    pub open: u64,
    /// Whether no connection and no listener was seen, so that no rule could check anything.
    pub is_empty: bool,
    /// The kinds of failures that no finding includes, with their numbers.
    pub further_failures: Vec<(&'static str, u64)>,
}

/// Applies all rules to a watch that has ended.
pub fn examine(watch: &Watch) -> Report {
    let mut report = Report {
        connections: watch.attempts,
        open: watch.open.len() as u64,
        is_empty: watch.is_empty(),
        ..Report::default()
    };
    if report.is_empty {
        report.unknown = limits(watch);
        return report;
    }
    let mut findings = Vec::new();
    for rule in RULES {
        let found = (rule.find)(watch);
        match (rule.basis)(watch) {
            _ if !found.is_empty() => findings.extend(found),
            Ok(connections) => report.absent.push((rule.looks_for, connections)),
            Err(reason) => report.unknown.push(format!("{}: {reason}", rule.looks_for)),
        }
    }
    report.further_failures = further_failures(watch, &findings);
    report.findings = sorted(without_duplicates(findings));
    report.unknown.extend(limits(watch));
    report
}

/// Returns the kinds of failures that none of `findings` includes: those below the thresholds of the rules.
fn further_failures(watch: &Watch, findings: &[Finding]) -> Vec<(&'static str, u64)> {
    let is_included = |rule: &str, pair: &Pair| {
        let mut findings = findings.iter();
        findings.any(|finding| finding.rule == rule && finding.subject == pair.group)
    };
    let count = |rule: &str, symptom| {
        let pairs = watch.pairs.iter().filter(|pair| !is_included(rule, pair));
        pairs.map(|pair| pair.stats.symptom(symptom).count).sum::<u64>()
    };
    let failures = [
        ("refused", Symptom::Refused, "refused"),
        ("no_answer", Symptom::Unanswered, "unanswered"),
        ("no_answer", Symptom::Unreachable, "unreachable"),
        ("no_answer", Symptom::Stopped, "timed out"),
        ("resets", Symptom::ResetByPeer, "reset by peer"),
        ("resets", Symptom::ResetByLocal, "reset by local"),
    ];
    let counts = failures.map(|(rule, symptom, kind)| (kind, count(rule, symptom)));
    counts.into_iter().filter(|(_, count)| *count > 0).collect()
}

/// Removes findings that another finding explains, and those that the client's end reports, too.
fn without_duplicates(findings: Vec<Finding>) -> Vec<Finding> {
    let is_redundant = |at: usize, finding: &Finding| {
        findings.iter().enumerate().any(|(other_at, other)| {
            let is_better = other.subject.direction == Some(Direction::Outbound);
            at != other_at && (finding.is_effect_of(other) || is_better && finding.is_other_end_of(other))
        })
    };
    let redundant: Vec<_> = findings
        .iter()
        .enumerate()
        .map(|(at, finding)| is_redundant(at, finding))
        .collect();
    let pairs = findings.into_iter().zip(redundant);
    pairs
        .filter(|(_, is_redundant)| !is_redundant)
        .map(|(finding, _)| finding)
        .collect()
}

/// Sorts findings: the worst severity first, then by the share and the number of affected connections.
fn sorted(mut findings: Vec<Finding>) -> Vec<Finding> {
    let weight = |finding: &Finding| {
        let share = finding.count as f64 / finding.of.max(1) as f64;
        share * (finding.count as f64 + 1.0).ln()
    };
    findings.sort_by(|one, two| (one.severity.cmp(&two.severity)).then(weight(two).total_cmp(&weight(one))));
    findings
}

/// Returns what limits all findings of a watch.
fn limits(watch: &Watch) -> Vec<String> {
    let mut limits = Vec::new();
    if watch.lost_records > 0 {
        limits.push(format!("{} connections: their records were lost", watch.lost_records));
    }
    if watch.attempts > 0 && watch.named == 0 {
        limits.push("pods and Services: no record has a name, so ends are addresses".to_owned());
    }
    if watch.attempts > 0 && watch.with_drops == 0 {
        limits.push("packets that this node dropped: they were not counted (--drops)".to_owned());
    }
    if watch.beyond_pairs > 0 {
        let beyond = watch.beyond_pairs;
        limits.push(format!(
            "{beyond} connections of further pairs of client and server: too many pairs"
        ));
    }
    limits
}
