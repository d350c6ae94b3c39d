//! The turns of many connections: quantiles of a rollup, a column of the table and its order, and a histogram.

use std::collections::HashMap;
use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Bounds, serve};
use crate::support::scrape::{Scrape, address as metrics_address, scrape};
use crate::support::sock::{IpVersion, listen, pair_with, wait_until};
use crate::support::tracer::{TracerCommand, binary};
use crate::support::{schema, scratch_dir};

/// How long the servers think, one port each.
const THINK: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(50)];
/// The number of requests to each.
const ROUNDS: u64 = 20;

/// What the clocks of the programs say about the waits at one port: those of the client and of the server.
struct Port {
    think: Duration,
    bounds: [Bounds; 2],
}

/// Captures the traffic to two servers, and compares all that adds turns up with the clocks of the programs.
pub fn all_outputs() {
    let capture = scratch_dir().join(format!("turns-{}.jsonl.zst", std::process::id()));
    _ = fs::remove_file(&capture);
    let capture = capture.to_str().expect("a path in UTF-8");
    let listeners = THINK.map(|_| listen(IpVersion::V4));
    // Sockets of earlier scenarios may still end.
    let ports = listeners
        .each_ref()
        .map(|listener| listener.local_addr().unwrap().port());
    let to_ports = format!("--to-port={},{}", ports[0], ports[1]);
    let args = ["-o", "none", "--turns", "--metrics", "0", "--write", capture, &to_ports];
    let tracer = TracerCommand::new(&args).on_line(|_| ()).start();
    let scraped = metrics_address(&tracer);
    let served = listeners
        .iter()
        .zip(THINK)
        .map(|(listener, think)| serve_on(listener, think));
    let ports: HashMap<u16, Port> = ports.into_iter().zip(served).collect();
    wait_until("the metrics have all answers", || {
        REPORTERS
            .iter()
            .all(|(_, reporter)| answers(&scrape(scraped), reporter) == 2 * ROUNDS)
    });
    check_metrics(&scrape(scraped), &ports);
    assert!(tracer.interrupt().status.success());
    check_rollup(capture, &ports);
    check_table(capture, &ports);
    fs::remove_file(capture).unwrap();
}

/// Makes requests to the port of a listener.
fn serve_on(listener: &TcpListener, think: Duration) -> Port {
    let pair = pair_with(listener);
    let bounds = serve(&pair, think, ROUNDS as usize);
    pair.close_client_first();
    Port { think, bounds }
}

/// The directions, and their names in metrics.
const REPORTERS: [(&str, &str); 2] = [("outbound", "source"), ("inbound", "destination")];
const HISTOGRAM: &str = "kmesh_trace_response_seconds";

fn answers(scrape: &Scrape, reporter: &str) -> u64 {
    scrape.sum(&format!("{HISTOGRAM}_count"), &[("reporter", reporter)]) as u64
}

fn check_metrics(scrape: &Scrape, ports: &HashMap<u16, Port>) {
    for (end, (_, reporter)) in REPORTERS.iter().enumerate() {
        let labels = [("reporter", *reporter)];
        let sum = scrape.sum(&format!("{HISTOGRAM}_sum"), &labels);
        let of = |bound: fn(&Bounds) -> Duration| -> f64 {
            ports.values().map(|port| bound(&port.bounds[end]).as_secs_f64()).sum()
        };
        let (least, most) = (of(|bounds| bounds.least), of(|bounds| bounds.most));
        assert!(
            least * 0.99 <= sum && sum <= most * 1.01,
            "{sum}, not {least} to {most}"
        );
        // The answers below a bound: none below the shorter time, only those of one server below the longer one.
        let name = format!("{HISTOGRAM}_bucket");
        let buckets: Vec<_> = scrape.of(&name, &labels).collect();
        assert!(buckets.len() > 5, "{scrape:?}");
        for bucket in buckets {
            let bound = bucket.labels["le"].parse::<f64>().unwrap_or(f64::INFINITY);
            let most = THINK.iter().filter(|think| think.as_secs_f64() < bound).count() as u64 * ROUNDS;
            assert!(bucket.value <= most as f64, "{bucket:?}");
            if bound.is_infinite() {
                assert_eq!(bucket.value, most as f64, "{bucket:?}");
            }
        }
    }
}

/// Replays the capture, and returns standard output.
fn replay(capture: &str, args: &[&str]) -> String {
    let output = Command::new(binary())
        .args(["--read", capture, "--interval", "all", "--by", "port", "-q"])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns whether an estimate from a histogram with powers of two can be of a time from `think` to `longest`.
fn is_estimate_of(estimate: Duration, think: Duration, longest: Duration) -> bool {
    think / 2 <= estimate && estimate <= 2 * longest
}

fn check_rollup(capture: &str, ports: &HashMap<u16, Port>) {
    let lines = replay(capture, &["--rollup", "-o", "json"]);
    let mut rows = 0;
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        schema::check(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let Some(port) = line["group"]["dst"]["port"].as_u64() else {
            continue;
        };
        let port = ports
            .get(&(port as u16))
            .unwrap_or_else(|| panic!("another port: {line}"));
        let end = REPORTERS
            .iter()
            .position(|(name, _)| line["group"]["direction"] == *name);
        let longest = port.bounds[end.unwrap()].longest;
        let [p50, p95, p99, max] = ["p50", "p95", "p99", "max"]
            .map(|name| Duration::from_nanos(line["response_quantiles_ns"][name].as_u64().unwrap()));
        println!(
            "think {:?}: p50 {p50:?}, p95 {p95:?}, max {max:?}, longest by the clocks {longest:?}",
            port.think
        );
        assert!(port.think <= max && max <= longest, "{longest:?}: {line}");
        assert!(p50 <= p95 && p95 <= p99, "{line}");
        for quantile in [p50, p95, p99] {
            assert!(is_estimate_of(quantile, port.think, longest), "{longest:?}: {line}");
        }
        rows += 1;
    }
    assert_eq!(rows, 4, "both ends of both ports: {lines}");
}

fn check_table(capture: &str, ports: &HashMap<u16, Port>) {
    for (sort, slowest_first) in [("-response", true), ("response", false)] {
        let table = replay(capture, &["-o", "table", "--sort", sort]);
        let title = if slowest_first { "RESP95▼" } else { "RESP95▲" };
        let titles = table.lines().find(|line| line.contains(title));
        let titles = titles.unwrap_or_else(|| panic!("{table}"));
        let width = titles[..titles.find(title).unwrap()].chars().count() + title.chars().count();
        let mut order = Vec::new();
        for row in table.lines().filter(|line| line.contains("*:")) {
            let port = row.split("*:").nth(1).and_then(|rest| rest.split(' ').next());
            let port = &ports[&port.unwrap().parse().unwrap()];
            let end = usize::from(!row.trim_start().starts_with("out"));
            let left: String = row.chars().take(width).collect();
            let value = left.split_whitespace().next_back().unwrap();
            let p95 = parse_span(value);
            assert!(
                is_estimate_of(p95, port.think, port.bounds[end].longest),
                "{value}: {table}"
            );
            order.push(p95);
        }
        assert_eq!(order.len(), 4, "{table}");
        assert!(
            order.is_sorted_by(|one, two| if slowest_first { one >= two } else { one <= two }),
            "{table}"
        );
    }
}

/// Parses a time of the table, such as `5.1ms`.
fn parse_span(text: &str) -> Duration {
    let at = text
        .find(char::is_alphabetic)
        .unwrap_or_else(|| panic!("no time: {text:?}"));
    let unit = match &text[at..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        other => panic!("the unit {other} of {text}"),
    };
    Duration::from_secs_f64(text[..at].parse::<f64>().unwrap() * unit)
}
