//! `increase()` and `rate()` of counters equal the traffic.

use std::net::TcpListener;

use crate::prometheus::Prometheus;
use crate::support::scrape::address;
use crate::support::sock::{IpVersion, drain, free_port, pair_with, send};
use crate::support::tracer::{Tracer, TracerCommand};

/// Starts a tracer that counts the connections to this server.
pub fn start_tracer(port: u16, server: &str) -> Tracer {
    let port = port.to_string();
    let args = [
        "-o",
        "none",
        "--metrics",
        &port,
        "--interval",
        "200ms",
        "--to-ip",
        server,
    ];
    TracerCommand::new(&args).on_line(|_| ()).start()
}

/// Makes connections, each of which sends this number of bytes to the server.
pub fn make_connections(listener: &TcpListener, connections: usize, bytes: usize) {
    for _ in 0..connections {
        let pair = pair_with(listener);
        send(&pair.client, bytes);
        drop(pair.client);
        assert_eq!(drain(&pair.server), bytes);
    }
}

/// The tracer restarts, and so does Prometheus, while traffic goes on.
pub fn equal_traffic_over_restarts() {
    const SERVER: &str = "127.77.10.1";
    const SENT: &str = r#"kmesh_tcp_workload_sent_bytes_total{reporter="source"}"#;
    let listener = TcpListener::bind((SERVER, 0)).unwrap();
    let port = free_port(IpVersion::V4);
    let first = start_tracer(port, SERVER);
    let mut prometheus = Prometheus::scraping(address(&first));
    // A new series has no increase for its first sample.
    make_connections(&listener, 1, 500_000);
    let from = prometheus.wait_for(SENT, 500_000.0);

    make_connections(&listener, 20, 40_000);
    prometheus.wait_for(SENT, 1_300_000.0);
    first.interrupt();
    let second = start_tracer(port, SERVER);
    make_connections(&listener, 1, 1_000);
    prometheus.wait_for(SENT, 1_000.0);
    make_connections(&listener, 10, 5_000);
    prometheus.wait_for(SENT, 51_000.0);
    prometheus.stop();
    make_connections(&listener, 5, 2_000);
    prometheus.restart();
    let until = prometheus.wait_for(SENT, 61_000.0);

    // The window is between two scrapes, to the millisecond, so that Prometheus extrapolates nothing.
    let sent = 20.0 * 40_000.0 + 1_000.0 + 10.0 * 5_000.0 + 5.0 * 2_000.0;
    let window = ((until - from) * 1000.0).round();
    let increase = prometheus.sum(&format!("increase({SENT}[{window}ms])"), Some(until));
    assert!((increase - sent).abs() < 1e-3, "{increase} of {sent}");
    let rate = prometheus.sum(&format!("rate({SENT}[{window}ms])"), Some(until));
    assert!((rate * window / 1000.0 - sent).abs() < 1e-3, "{rate} for {window} ms");
    let received = r#"kmesh_tcp_workload_received_bytes_total{reporter="destination"}"#;
    let increase = prometheus.sum(&format!("increase({received}[{window}ms])"), Some(until));
    assert!((increase - sent).abs() < 1e-3, "{increase} of {sent}");
    second.interrupt();
}
