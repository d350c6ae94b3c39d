//! Every query of every dashboard, executed by a Prometheus that has scraped known traffic, and its number compared.

use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};

use serde_json::Value;

use crate::folder;
use crate::prometheus::Prometheus;
use crate::rates::{send, tracer};
use crate::support::net;
use crate::support::scrape::address;
use crate::support::sock::{V, drain, exchange, free_port, give, pair_with, wait_until};

const SERVER: &str = "127.77.11.1";
/// What happens in the window, at each end.
const OK: f64 = 30.0;
const UP: f64 = 1_000.0;
const DOWN: f64 = 4_000.0;
const REFUSED: f64 = 7.0;
const RESET: f64 = 5.0;
/// Bytes that a connection that is reset brought across before.
const RESET_UP: f64 = 10.0;
/// Opened in the window and not closed.
const OPEN: f64 = 3.0;

/// What a query must give.
enum Want {
    /// A rate that makes up this much in the window.
    Total(f64),
    /// This value.
    Value(f64),
    /// At least this.
    AtLeast(f64),
}
use Want::{AtLeast, Total, Value as Exactly};

/// By title; what is in two dashboards means the same in both.
fn wanted(title: &str) -> Want {
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
        _ => panic!("no number is known for the panel {title:?}"),
    }
}

/// Panels that show increases, where others show rates.
fn is_increase(query: &str) -> bool {
    query.contains("increase(")
}

fn reset(listener: &TcpListener) {
    let pair = pair_with(listener);
    give(&pair.client, RESET_UP as usize);
    drop(pair.server);
    wait_until("the reset", || (&pair.client).read(&mut [0]).is_err());
}

fn refuse() {
    let closed = TcpListener::bind((SERVER, 0)).unwrap().local_addr().unwrap();
    TcpStream::connect(closed).unwrap_err();
}

/// Keeps the kernel from retransmitting in this network namespace, however late a busy machine acknowledges a segment.
fn never_retransmit() {
    net::sysctl("net.ipv4.tcp_early_retrans", "0");
    for destination in ["127.0.0.0/8", "127.0.0.1"] {
        let change = ["route", "change", "table", "local", "local", destination, "dev", "lo"];
        net::run("ip", &[&change[..], &["src", "127.0.0.1", "rto_min", "60s"]].concat());
    }
}

/// Traffic of every kind that the panels show; no names, so that all is one group.
pub fn show_what_was_sent() {
    never_retransmit();
    let listener = TcpListener::bind((SERVER, 0)).unwrap();
    let tracer = tracer(free_port(V::Four), SERVER);
    let prometheus = Prometheus::scraping(address(&tracer));
    let ends = "sum(kmesh_trace_outcomes_total)";
    // Series begin before the window does.
    send(&listener, 1, 100);
    reset(&listener);
    refuse();
    prometheus.until(ends, 5.0);
    let from = prometheus.until("kmesh_trace_build_info", 1.0);

    for _ in 0..OK as usize {
        let pair = pair_with(&listener);
        exchange(&pair, UP as usize, DOWN as usize);
        drop(pair.client);
        assert_eq!(drain(&pair.server), 0);
    }
    (0..RESET as usize).for_each(|_| reset(&listener));
    (0..REFUSED as usize).for_each(|_| refuse());
    let open: Vec<_> = (0..OPEN as usize).map(|_| pair_with(&listener)).collect();
    prometheus.until(ends, 5.0 + 2.0 * (OK + RESET) + REFUSED);
    let opened = r#"sum(kmesh_tcp_connections_opened_total{reporter="source"})"#;
    prometheus.until(opened, 2.0 + OK + RESET + OPEN);
    let opened = r#"sum(kmesh_tcp_connections_opened_total{reporter="destination"})"#;
    prometheus.until(opened, 2.0 + OK + RESET + OPEN);
    let until = prometheus.until("kmesh_trace_build_info", 1.0);

    let window = ((until - from) * 1000.0).round();
    let mut queries = 0;
    for name in ["workload", "service", "node"] {
        let text = fs::read_to_string(folder().join(format!("grafana/{name}.json"))).unwrap();
        let dashboard: Value = serde_json::from_str(&text).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            for target in panel["targets"].as_array().unwrap() {
                let query = resolved(target["expr"].as_str().unwrap(), window);
                let samples = prometheus.query(&query, Some(until));
                assert!(!samples.is_empty(), "{name}, {title}: nothing: {query}");
                // Of a histogram's buckets the last has all.
                let is_it = |labels: &Value| labels.get("le").is_none_or(|bound| bound == "+Inf");
                let got: f64 = samples
                    .iter()
                    .filter(|(labels, _)| is_it(labels))
                    .map(|(_, value)| value)
                    .sum();
                let seconds = if is_increase(&query) { 1.0 } else { window / 1000.0 };
                let (is_right, want) = match wanted(title) {
                    Total(total) => ((got * seconds - total).abs() < 1e-6 * total.max(1.0), total),
                    Exactly(value) => ((got - value).abs() < 1e-9, value),
                    AtLeast(least) => (got >= least, least),
                };
                assert!(
                    is_right,
                    "{name}, {title}: {got} in place of {want} (window {window} ms): {query}\n{samples:?}"
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

/// A query with what Grafana would put in place of its variables.
fn resolved(query: &str, window: f64) -> String {
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
