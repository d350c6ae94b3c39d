//! `increase()` and `rate()` of what was really sent.

use std::net::TcpListener;

use crate::prometheus::Prometheus;
use crate::support::scrape::address;
use crate::support::sock::{V, drain, free_port, give, pair_with};
use crate::support::tracer::{Start, Tracer};

/// A tracer that counts what goes to this server.
pub fn tracer(port: u16, server: &str) -> Tracer {
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
    Start::new(&args).lines(|_| ()).tracing()
}

/// So many connections, each with so many bytes from client to server.
pub fn send(listener: &TcpListener, connections: usize, bytes: usize) {
    for _ in 0..connections {
        let pair = pair_with(listener);
        give(&pair.client, bytes);
        drop(pair.client);
        assert_eq!(drain(&pair.server), bytes);
    }
}

/// The tracer is started again in between, and so is Prometheus, during whose absence more is sent.
pub fn over_restarts() {
    const SERVER: &str = "127.77.10.1";
    const SENT: &str = r#"kmesh_tcp_workload_sent_bytes_total{reporter="source"}"#;
    let listener = TcpListener::bind((SERVER, 0)).unwrap();
    let port = free_port(V::Four);
    let first = tracer(port, SERVER);
    let mut prometheus = Prometheus::scraping(address(&first));
    // A series that was not there before has no increase when it comes.
    send(&listener, 1, 500_000);
    let from = prometheus.until(SENT, 500_000.0);

    send(&listener, 20, 40_000);
    prometheus.until(SENT, 1_300_000.0);
    first.interrupt();
    let second = tracer(port, SERVER);
    send(&listener, 1, 1_000);
    prometheus.until(SENT, 1_000.0);
    send(&listener, 10, 5_000);
    prometheus.until(SENT, 51_000.0);
    prometheus.stop();
    send(&listener, 5, 2_000);
    prometheus.start_again();
    let until = prometheus.until(SENT, 61_000.0);

    // Between two scrapes to the millisecond, so that nothing has to be extrapolated.
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
