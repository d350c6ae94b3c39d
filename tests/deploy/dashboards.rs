//! Each query of each dashboard has the right result in a Prometheus that has scraped known traffic.

use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};

use serde_json::Value;

use crate::folder;
use crate::prometheus::Prometheus;
use crate::rates::{make_connections, start_tracer};
use crate::support::net;
use crate::support::scrape::address;
use crate::support::sock::{IpVersion, exchange, free_port, pair_with, send, wait_until};

const SERVER: &str = "127.77.11.1";
/// Connections that end cleanly in the window, and the bytes of each.
const OK: f64 = 30.0;
const UP: f64 = 1_000.0;
const DOWN: f64 = 4_000.0;
const REFUSED: f64 = 7.0;
const RESET: f64 = 5.0;
/// Bytes of each connection that is reset.
const RESET_UP: f64 = 10.0;
/// Connections that are opened in the window and not closed.
const OPEN: f64 = 3.0;

/// The expected result of a query.
enum Expected {
    /// A rate, or an increase, with this total over the window.
    Total(f64),
    Exactly(f64),
    AtLeast(f64),
}
use Expected::{AtLeast, Exactly, Total};

/// Returns the expected result of the queries of a panel. A title means the same in all dashboards.
fn expected_result(title: &str) -> Expected {
    let opened = OK + RESET + OPEN;
    match title {
        "Connections opened" | "Handshakes" => Total(opened),
        "Failures" => Total(REFUSED + RESET),
        "Sent" => Total(OK * UP + RESET * RESET_UP),
        "Received" => Total(OK * DOWN),
        "Failed attempts, share" => Exactly(REFUSED / (REFUSED + opened)),
        "Open now, as counted" => Exactly(OPEN),
        "Durations" => Total(OK + RESET),
        "Retransmissions, share" | "Segments lost" => Exactly(0.0),
        "Top talkers" | "Top clients" => Total(OK * (UP + DOWN) + RESET * RESET_UP),
        "How connections end" => Total(2.0 * (OK + RESET) + REFUSED),
        "Failures by node" => Total(2.0 * RESET + REFUSED),
        "Top talkers by node" => Total(OK * (UP + DOWN) + RESET * RESET_UP),
        "Open connections" => AtLeast(2.0 * OPEN),
        "Pods known" | "Records lost" | "Without names" | "Folded" => Exactly(0.0),
        "Tracer: processor" => AtLeast(1e-6),
        "Tracer: memory" => AtLeast(1e6),
        "Tracer: series" => AtLeast(60.0),
        _ => panic!("no expected result for the panel {title:?}"),
    }
}

/// Whether a query computes an increase, as opposed to a rate.
fn is_increase(query: &str) -> bool {
    query.contains("increase(")
}

fn reset(listener: &TcpListener) {
    let pair = pair_with(listener);
    send(&pair.client, RESET_UP as usize);
    drop(pair.server);
    wait_until("the RST arrives", || (&pair.client).read(&mut [0]).is_err());
}

fn refuse() {
    let closed = TcpListener::bind((SERVER, 0)).unwrap().local_addr().unwrap();
    TcpStream::connect(closed).unwrap_err();
}

/// Keeps the kernel from retransmitting in this network namespace, however late a busy machine acknowledges a segment.
fn never_retransmit() {
    net::set_sysctl("net.ipv4.tcp_early_retrans", "0");
    for destination in ["127.0.0.0/8", "127.0.0.1"] {
        let change = ["route", "change", "table", "local", "local", destination, "dev", "lo"];
        net::run("ip", &[&change[..], &["src", "127.0.0.1", "rto_min", "60s"]].concat());
    }
}

/// Makes traffic of each kind that the panels show. The tracer has no names, so all of it is one group.
pub fn queries_equal_traffic() {
    never_retransmit();
    let listener = TcpListener::bind((SERVER, 0)).unwrap();
    let tracer = start_tracer(free_port(IpVersion::V4), SERVER);
    let prometheus = Prometheus::scraping(address(&tracer));
    let ends = "sum(kmesh_trace_outcomes_total)";
    // The series must exist before the window.
    make_connections(&listener, 1, 100);
    reset(&listener);
    refuse();
    prometheus.wait_for(ends, 5.0);
    let from = prometheus.wait_for("kmesh_trace_build_info", 1.0);

    for _ in 0..OK as usize {
        let pair = pair_with(&listener);
        exchange(&pair, UP as usize, DOWN as usize);
        pair.close_client_first();
    }
    (0..RESET as usize).for_each(|_| reset(&listener));
    (0..REFUSED as usize).for_each(|_| refuse());
    let open: Vec<_> = (0..OPEN as usize).map(|_| pair_with(&listener)).collect();
    prometheus.wait_for(ends, 5.0 + 2.0 * (OK + RESET) + REFUSED);
    let opened = r#"sum(kmesh_tcp_connections_opened_total{reporter="source"})"#;
    prometheus.wait_for(opened, 2.0 + OK + RESET + OPEN);
    let opened = r#"sum(kmesh_tcp_connections_opened_total{reporter="destination"})"#;
    prometheus.wait_for(opened, 2.0 + OK + RESET + OPEN);
    let until = prometheus.wait_for("kmesh_trace_build_info", 1.0);

    let window = ((until - from) * 1000.0).round();
    let mut queries = 0;
    for name in ["workload", "service", "node"] {
        let text = fs::read_to_string(folder().join(format!("grafana/{name}.json"))).unwrap();
        let dashboard: Value = serde_json::from_str(&text).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            for target in panel["targets"].as_array().unwrap() {
                let query = replace_variables(target["expr"].as_str().unwrap(), window);
                let samples = prometheus.query(&query, Some(until));
                assert!(!samples.is_empty(), "{name}, {title}: no samples: {query}");
                // The last bucket of a histogram counts everything.
                let is_total = |labels: &Value| labels.get("le").is_none_or(|bound| bound == "+Inf");
                let got: f64 = samples
                    .iter()
                    .filter(|(labels, _)| is_total(labels))
                    .map(|(_, value)| value)
                    .sum();
                let seconds = if is_increase(&query) { 1.0 } else { window / 1000.0 };
                let (is_right, expected) = match expected_result(title) {
                    Total(total) => ((got * seconds - total).abs() < 1e-6 * total.max(1.0), total),
                    Exactly(value) => ((got - value).abs() < 1e-9, value),
                    AtLeast(min) => (got >= min, min),
                };
                assert!(
                    is_right,
                    "{name}, {title}: {got} instead of {expected} (window {window} ms): {query}\n{samples:?}"
                );
                queries += 1;
            }
        }
    }
    assert!(queries >= 30, "{queries}");
    drop(open);
    for rule in prometheus.api("/rules")["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
    {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    tracer.interrupt();
}

/// Replaces the variables of a query as Grafana does.
fn replace_variables(query: &str, window: f64) -> String {
    let query = query
        .replace("$__rate_interval", &format!("{window}ms"))
        .replace("$reporter", "source")
        .replace("$namespace", ".*")
        .replace("$workload", ".*")
        .replace("$service", ".*")
        .replace("$instance", ".*");
    assert!(!query.contains('$'), "an unknown variable: {query}");
    query
}
