//! The report of `diff`: what changed between two captures.

use std::fmt::Write as _;
use std::io;

use super::table::units;
use super::{Stdout, append_line};
use crate::compare::{CONFIDENCE, Change, Changes, Estimate, Metric, Sample};
use crate::config::ReportFormat;
use crate::findings::with_port;
use crate::output::json::contract::ChangeLine;
use crate::output::sanitize::one_line;
use crate::record::Direction;
use crate::rollup::{Group, GroupEnd};

/// Prints the changes from the first to the second sample.
pub fn print_changes(
    changes: &Changes,
    (before, after): (&Sample, &Sample),
    format: ReportFormat,
    mut out: Stdout,
) -> io::Result<()> {
    match format {
        ReportFormat::Text => {
            let text = text(changes, before, after);
            out.text().extend_from_slice(text.as_bytes());
        }
        ReportFormat::Json => {
            for change in &changes.changes {
                append_line(out.text(), &ChangeLine::new(change, after.ended()))?;
            }
        }
    }
    out.flush()
}

fn text(changes: &Changes, before: &Sample, after: &Sample) -> String {
    let mut text = String::new();
    let ending = if changes.changes.len() == 1 { "" } else { "s" };
    let count = match changes.changes.len() {
        0 => "no change".to_owned(),
        count => format!("{count} change{ending}"),
    };
    _ = writeln!(
        text,
        "{count} beyond chance ({:.1} %) from {} to {} connections, in {} comparisons of {} and {} groups",
        CONFIDENCE * 100.0,
        before.connections,
        after.connections,
        changes.comparisons,
        changes.groups.0,
        changes.groups.1
    );
    for change in &changes.changes {
        _ = writeln!(
            text,
            "{}  {}",
            one_line(&group_text(&change.group)),
            change_text(change)
        );
    }
    let beyond = before.beyond_groups.max(after.beyond_groups);
    if beyond > 0 {
        _ = writeln!(
            text,
            "unknown: {beyond} records of further groups, beyond the maximum number of groups"
        );
    }
    text
}

fn change_text(change: &Change) -> String {
    let (before, after) = (change.before, change.after);
    if change.metric == Metric::Connections {
        return match before.samples {
            0 => format!("is new: {} connections", after.samples),
            samples => format!("is gone: {samples} connections before"),
        };
    }
    let what = match change.metric {
        Metric::Connections => "connections",
        Metric::FailedShare => "failed",
        Metric::ConnectP50 => "handshake p50",
        Metric::ConnectP95 => "handshake p95",
        Metric::ResponseP50 => "response p50",
        Metric::ResponseP95 => "response p95",
        Metric::DurationP50 => "duration p50",
        Metric::DurationP95 => "duration p95",
        Metric::Rate => "connections",
        Metric::ByteRate => "payload",
    };
    let of = |estimate| interval_text(change.metric, estimate);
    format!("{what} {}, was {}", of(after), of(before))
}

/// Returns a figure with its interval and sample size.
fn interval_text(metric: Metric, estimate: Estimate) -> String {
    let unit = |value: f64| match metric {
        Metric::FailedShare => format!("{:.1} %", value * 100.0),
        Metric::Rate | Metric::Connections => format!("{value:.1}/s"),
        Metric::ByteRate => format!("{}/s", units::size(value)),
        _ => units::time(value as u64),
    };
    let Estimate {
        value,
        low,
        high,
        samples,
    } = estimate;
    format!("{} ({} to {}, n {samples})", unit(value), unit(low), unit(high))
}

/// Returns the name of a group: `out shop/checkout → shop/payments`, and what else is grouped.
fn group_text(group: &Group) -> String {
    let direction = match group.direction {
        Some(Direction::Inbound) => "in ",
        _ => "out",
    };
    let server = match &group.service {
        Some(Some(service)) => format!("{}/{}", service.namespace, service.name),
        _ => end(&group.dst),
    };
    let server = with_port(server, group.dst.port);
    let mut text = format!("{direction} {} → {server}", end(&group.src));
    if let Some(Some(comm)) = &group.process {
        text += &format!(" {}", String::from_utf8_lossy(comm.as_bytes()));
    }
    if let Some(Some(pid)) = &group.pid {
        text += &format!(" pid {pid}");
    }
    if let Some(Some(outcome)) = &group.outcome {
        text += &format!(" {outcome}");
    }
    text
}

fn end(end: &GroupEnd) -> String {
    let name = end
        .pod
        .clone()
        .or_else(|| end.workload.as_ref().map(|workload| workload.name.clone()));
    match (&end.namespace, name, &end.node, end.ip) {
        (Some(namespace), Some(name), ..) => format!("{namespace}/{name}"),
        (Some(namespace), None, ..) => namespace.to_string(),
        (None, Some(name), ..) => name.to_string(),
        (None, None, _, Some(ip)) => ip.to_string(),
        (None, None, Some(node), None) => format!("node {node}"),
        (None, None, None, None) => "*".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_address_with_a_port_has_brackets() {
        let group = |ip: &str, port| Group {
            src: GroupEnd {
                ip: Some(ip.parse().unwrap()),
                ..GroupEnd::default()
            },
            dst: GroupEnd {
                ip: Some(ip.parse().unwrap()),
                port,
                ..GroupEnd::default()
            },
            ..Group::default()
        };
        assert_eq!(group_text(&group("::1", Some(18081))), "out ::1 → [::1]:18081");
        assert_eq!(group_text(&group("::1", None)), "out ::1 → ::1");
        assert_eq!(group_text(&group("10.0.0.1", Some(80))), "out 10.0.0.1 → 10.0.0.1:80");
    }
}
