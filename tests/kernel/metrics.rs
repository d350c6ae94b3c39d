//! Metrics of real traffic: the scraped counters equal the traffic. Each tracer counts connections to one server
//! address alone, so that no other scenario changes its counters.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use crate::Topic;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::record_view::RecordView;
use crate::support::scrape::{Scrape, address as metrics_address, request, scrape};
use crate::support::sock::{
    ClosedPort, IpVersion, Pair, exchange, pair, pair_with, recv, send, wait_acknowledged, wait_until,
};
use crate::support::tracer::{Tracer, TracerCommand};

pub fn topic() -> Topic {
    Topic::new("metrics")
        .standalone("counters_equal_traffic", &[], counters_equal_traffic)
        .standalone("open_connections_are_counted", &[], open_connections_are_counted)
        .standalone("counters_never_fall", &[], counters_never_fall)
        .standalone(
            "bytes_before_the_start_are_not_counted",
            &[],
            bytes_before_the_start_are_not_counted,
        )
        .standalone("connection_series_are_limited", &[], connection_series_are_limited)
        .standalone(
            "filtered_connections_are_not_counted",
            &[],
            filtered_connections_are_not_counted,
        )
        .standalone("metrics_do_not_change_records", &[], metrics_do_not_change_records)
        .standalone("http_requests_ipv4", &[], || http_requests("127.0.0.1:0"))
        .standalone("http_requests_ipv6", &[], || http_requests("[::1]:0"))
        .standalone("port_in_use_is_an_error", &[], port_in_use_is_an_error)
        .standalone(
            "idle_scrapers_block_no_one",
            &[Need::FullSize],
            idle_scrapers_block_no_one,
        )
}

/// A server, and a tracer that counts its connections.
struct CountedServer {
    tracer: Tracer,
    scraped: SocketAddr,
    listener: TcpListener,
}

const INTERVAL: &str = "200ms";

impl CountedServer {
    fn new(more: &[&str]) -> Self {
        Self::at(net::loopback_v4(0), more)
    }

    fn at(address: Ipv4Addr, more: &[&str]) -> Self {
        let only = address.to_string();
        let base = ["-o", "none", "--metrics", "0", "--interval", INTERVAL, "--to-ip", &only];
        let tracer = TracerCommand::new(&[&base, more].concat()).on_line(|_| ()).start();
        Self {
            scraped: metrics_address(&tracer),
            listener: TcpListener::bind((address, 0)).unwrap(),
            tracer,
        }
    }

    fn pair(&self) -> Pair {
        pair_with(&self.listener)
    }

    fn scrape(&self) -> Scrape {
        scrape(self.scraped)
    }

    /// Scrapes until a scrape meets the condition, and returns it.
    fn scrape_until(&self, condition: &str, is_met: impl Fn(&Scrape) -> bool) -> Scrape {
        let mut last = None;
        wait_until(condition, || {
            let scrape = self.scrape();
            let is_it = is_met(&scrape);
            last = Some(scrape);
            is_it
        });
        last.unwrap()
    }
}

fn close_client_first(pair: Pair) {
    pair.close_client_first();
}

/// Makes a connection that the server resets, with 10 bytes that the client has sent.
fn reset_by_server(server: &CountedServer) {
    let pair = server.pair();
    send(&pair.client, 10);
    wait_acknowledged(&pair.client);
    drop(pair.server);
    wait_until("the RST arrives", || (&pair.client).read(&mut [0]).is_err());
}

const CLIENT: (&str, &str) = ("reporter", "source");
const SERVER: (&str, &str) = ("reporter", "destination");

/// Returns the sum of `kmesh_tcp_workload_…` and of `kmesh_tcp_…`, which must be equal.
fn tcp_sum(scrape: &Scrape, family: &str, labels: &[(&str, &str)]) -> f64 {
    let totals =
        ["kmesh_tcp_workload_", "kmesh_tcp_"].map(|level| scrape.sum(&format!("{level}{family}_total"), labels));
    assert_eq!(totals[0], totals[1], "{family}");
    totals[0]
}

fn counters_equal_traffic() {
    const COUNT: usize = 50;
    let address = net::loopback_v4(0);
    let server = CountedServer::at(address, &["--metrics-compat"]);
    for _ in 0..COUNT {
        let pair = server.pair();
        exchange(&pair, 1000, 300);
        pair.close_client_first();
    }
    // Another address, which is not counted.
    let port = server.listener.local_addr().unwrap().port();
    drop(TcpStream::connect((net::loopback_v4(1), port)).unwrap_err());
    let closed = ClosedPort::new();
    for _ in 0..3 {
        TcpStream::connect((address, closed.number())).unwrap_err();
    }
    reset_by_server(&server);

    let ends = (2 * COUNT + 2 + 3) as f64;
    let metrics = server.scrape_until("all closes", |metrics| {
        metrics.sum("kmesh_trace_outcomes_total", &[]) == ends
    });
    let count = COUNT as f64;
    let cases = [
        ("connections_opened", CLIENT, count + 1.0),
        ("connections_opened", SERVER, count + 1.0),
        ("connections_closed", CLIENT, count + 1.0),
        ("connections_closed", SERVER, count + 1.0),
        ("sent_bytes", CLIENT, count * 1000.0 + 10.0),
        ("received_bytes", CLIENT, count * 300.0),
        ("sent_bytes", SERVER, count * 300.0),
        ("received_bytes", SERVER, count * 1000.0 + 10.0),
    ];
    for (family, reporter, expected) in cases {
        assert_eq!(
            tcp_sum(&metrics, family, &[reporter]),
            expected,
            "{family} {reporter:?}"
        );
    }
    let (never_connected, reset) = (("response_flags", "UF"), ("response_flags", "UC"));
    for family in ["connections_failed", "conntections_failed"] {
        assert_eq!(tcp_sum(&metrics, family, &[CLIENT, never_connected]), 3.0);
        assert_eq!(tcp_sum(&metrics, family, &[SERVER, never_connected]), 0.0);
        assert_eq!(tcp_sum(&metrics, family, &[CLIENT, reset]), 1.0);
        assert_eq!(tcp_sum(&metrics, family, &[SERVER, reset]), 1.0);
    }
    let outcomes = [
        ("ok", 2.0 * count),
        ("refused", 3.0),
        ("reset_by_peer", 1.0),
        ("reset_by_local", 1.0),
    ];
    for (outcome, expected) in outcomes {
        assert_eq!(
            metrics.sum("kmesh_trace_outcomes_total", &[("outcome", outcome)]),
            expected,
            "{outcome}"
        );
    }
    let durations = |what: &str, labels: &[(&str, &str)]| {
        metrics.sum(&format!("kmesh_trace_{what}_duration_seconds_count"), labels)
    };
    assert_eq!(durations("connect", &[]), count + 1.0);
    assert_eq!(durations("connection", &[CLIENT]), count + 1.0);
    assert_eq!(durations("connection", &[SERVER]), count + 1.0);
    let infinity = ("le", "+Inf");
    assert_eq!(
        metrics.sum("kmesh_trace_connect_duration_seconds_bucket", &[infinity]),
        count + 1.0
    );
    assert!(
        metrics
            .of("kmesh_tcp_sent_bytes_total", &[])
            .all(|one| one.labels["connection_security_policy"] == "mutual_tls")
    );
    assert_eq!(metrics.sum("kmesh_trace_lost_records_total", &[]), 0.0);
    assert_eq!(server.tracer.interrupt().status.code(), Some(0));
}

fn open_connections_are_counted() {
    let server = CountedServer::new(&[]);
    let pair = server.pair();
    exchange(&pair, 1000, 300);
    // The number of open connections follows at the end of the scan that brings the bytes.
    let is_counted = |metrics: &Scrape| {
        tcp_sum(metrics, "sent_bytes", &[CLIENT]) == 1000.0
            && tcp_sum(metrics, "sent_bytes", &[SERVER]) == 300.0
            && metrics.sum("kmesh_trace_open_connections", &[]) >= 2.0
    };
    let metrics = server.scrape_until("the bytes of an open connection", is_counted);
    assert_eq!(tcp_sum(&metrics, "connections_opened", &[CLIENT]), 1.0);
    assert_eq!(tcp_sum(&metrics, "connections_closed", &[CLIENT]), 0.0);
    exchange(&pair, 77, 0);
    server.scrape_until("more bytes", |metrics| {
        tcp_sum(metrics, "sent_bytes", &[CLIENT]) == 1077.0
    });
    pair.close_client_first();
    let metrics = server.scrape_until("the closes", |metrics| {
        tcp_sum(metrics, "connections_closed", &[]) == 2.0
    });
    assert_eq!(tcp_sum(&metrics, "sent_bytes", &[CLIENT]), 1077.0);
    assert_eq!(tcp_sum(&metrics, "received_bytes", &[SERVER]), 1077.0);
    server.tracer.interrupt();
}

/// A counter is never more than what was sent, and never less than in the scrape before.
fn counters_never_fall() {
    let server = CountedServer::new(&[]);
    let pairs: Vec<_> = (0..20).map(|_| server.pair()).collect();
    let (mut sent, mut last, mut rises) = (0.0, 0.0, 0);
    wait_until("three scrapes have shown more than the one before", || {
        for pair in &pairs {
            send(&pair.client, 333);
            recv(&pair.server, 333);
            sent += 333.0;
        }
        let metrics = tcp_sum(&server.scrape(), "received_bytes", &[SERVER]);
        assert!(metrics >= last && metrics <= sent, "{last}, then {metrics} of {sent}");
        rises += u32::from(metrics > last);
        last = metrics;
        rises == 3
    });
    pairs.into_iter().for_each(close_client_first);
    let metrics = server.scrape_until("the closes", |metrics| {
        tcp_sum(metrics, "connections_closed", &[]) == 40.0
    });
    assert_eq!(tcp_sum(&metrics, "received_bytes", &[SERVER]), sent);
    assert_eq!(tcp_sum(&metrics, "sent_bytes", &[CLIENT]), sent);
    server.tracer.interrupt();
}

/// A restarted tracer does not count again what the tracer before it has counted.
fn bytes_before_the_start_are_not_counted() {
    let address = net::loopback_v4(0);
    let listener = TcpListener::bind((address, 0)).unwrap();
    let (pair, silent) = (pair_with(&listener), pair_with(&listener));
    exchange(&pair, 100_000, 300);
    exchange(&silent, 5_000, 0);
    let server = CountedServer::at(address, &[]);
    exchange(&pair, 7, 5);
    let metrics = server.scrape_until("the bytes after the start", |metrics| {
        tcp_sum(metrics, "sent_bytes", &[CLIENT]) >= 7.0
    });
    assert_eq!(tcp_sum(&metrics, "sent_bytes", &[CLIENT]), 7.0);
    exchange(&pair, 3, 0);
    pair.close_client_first();
    silent.close_client_first();
    let metrics = server.scrape_until("the closes", |metrics| {
        tcp_sum(metrics, "connections_closed", &[]) == 4.0
    });
    assert_eq!(tcp_sum(&metrics, "sent_bytes", &[CLIENT]), 10.0);
    assert_eq!(tcp_sum(&metrics, "sent_bytes", &[SERVER]), 5.0);
    assert_eq!(tcp_sum(&metrics, "connections_opened", &[]), 0.0);
    server.tracer.interrupt();
}

/// `--metrics-level connection` has series for each connection up to `--metrics-max-series`, and adds the others up in
/// `other`.
fn connection_series_are_limited() {
    let server = CountedServer::new(&["--metrics-level", "connection", "--metrics-max-series", "80"]);
    let pairs: Vec<_> = (0..60).map(|_| server.pair()).collect();
    pairs.iter().for_each(|pair| exchange(pair, 11, 0));
    let clients: Vec<String> = pairs.iter().map(|pair| pair.truth.src.to_string()).collect();
    pairs.into_iter().for_each(close_client_first);
    let ended = |metrics: &Scrape| metrics.sum("kmesh_trace_outcomes_total", &[]) == 120.0;
    let metrics = server.scrape_until("all closes", ended);
    let family = "kmesh_tcp_connection_sent_bytes_total";
    assert_eq!(metrics.sum(family, &[CLIENT]), 660.0);
    let other = ("source_address", "other");
    assert_eq!(metrics.of(family, &[CLIENT, other]).count(), 1);
    assert!(metrics.sum(family, &[CLIENT, other]) >= 11.0);
    assert!(metrics.sum("kmesh_trace_metrics_folded_total", &[]) > 0.0);
    for series in metrics
        .of(family, &[CLIENT])
        .filter(|series| series.labels["source_address"] != "other")
    {
        assert!(clients.contains(&series.labels["source_address"]), "{series:?}");
        assert_eq!(series.value, 11.0);
    }
    let with_reporter = metrics.0.iter().filter(|series| series.labels.contains_key("reporter"));
    let series = with_reporter.count();
    assert!(series <= 80 + 2 * 4 + 2 * 34, "{series}");
    assert_eq!(metrics.of("kmesh_tcp_sent_bytes_total", &[]).count(), 0);
    server.tracer.interrupt();
}

fn filtered_connections_are_not_counted() {
    let server = CountedServer::new(&["--failed"]);
    let pair = server.pair();
    exchange(&pair, 1000, 300);
    pair.close_client_first();
    reset_by_server(&server);
    let metrics = server.scrape_until("the failures", |metrics| {
        metrics.sum("kmesh_trace_outcomes_total", &[]) >= 2.0
    });
    assert_eq!(metrics.sum("kmesh_trace_outcomes_total", &[("outcome", "ok")]), 0.0);
    assert_eq!(tcp_sum(&metrics, "connections_closed", &[]), 2.0);
    server.tracer.interrupt();
}

fn metrics_do_not_change_records() {
    let tracer = Tracer::json(&["--metrics", "0", "--interval", INTERVAL]);
    let scraped = metrics_address(&tracer);
    let view = RecordView::new(&tracer.output);
    let pair = pair(IpVersion::V4);
    exchange(&pair, 1000, 300);
    wait_until("a scan has ended", || {
        scrape(scraped).sum("kmesh_trace_open_connections", &[]) >= 2.0
    });
    let truth = pair.close_client_first();
    // The scrapes also have records.
    view.expect_among_others(&[
        truth.outbound().bytes(1000, 300).ok("local"),
        truth.inbound().bytes(300, 1000).ok("peer"),
    ]);
    let exit = tracer.interrupt();
    exit.check_lossless();
    assert!(
        exit.output
            .records(view.netns())
            .iter()
            .all(|record| record.value["event"] == "close")
    );
}

fn http_requests(at: &str) {
    let tracer = TracerCommand::new(&["-o", "none", "--metrics", at])
        .on_line(|_| ())
        .start();
    let to = metrics_address(&tracer);
    let response = request(to, "GET", "/status/metric");
    assert!(response.head.starts_with("HTTP/1.1 200 OK"), "{}", response.head);
    let content = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(response.head.contains(content), "{}", response.head);
    assert!(response.body.contains("# TYPE kmesh_tcp_workload_sent_bytes counter"));
    assert!(response.body.contains("kmesh_trace_build_info{version="));
    let cases = [
        ("GET", "/metrics?name[]=x", "200 OK"),
        ("HEAD", "/metrics", "200 OK"),
        ("POST", "/metrics", "405 Method Not Allowed"),
        ("GET", "/", "404 Not Found"),
        ("GET", "/metrics/", "404 Not Found"),
        ("\0", "/", "400 Bad Request"),
    ];
    for (method, path, status) in cases {
        let response = request(to, method, path);
        assert!(
            response.head.starts_with(&format!("HTTP/1.1 {status}")),
            "{method} {path}: {}",
            response.head
        );
        assert!(method != "HEAD" || response.body.is_empty());
    }
    tracer.interrupt();
}

fn port_in_use_is_an_error() {
    let in_use = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = in_use.local_addr().unwrap().port().to_string();
    let exit = TracerCommand::new(&["--metrics", &port]).spawn().wait();
    assert_eq!(exit.status.code(), Some(1));
    let stderr = exit.stderr.join("\n");
    for part in [&format!("127.0.0.1:{port}"), "in use", "try: another port", "ss -ltnp"] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    let exit = TracerCommand::new(&["--metrics", "192.0.2.1:15020"]).spawn().wait();
    assert_eq!(exit.status.code(), Some(1));
    assert!(
        exit.stderr.join("\n").contains("an address of this machine"),
        "{:?}",
        exit.stderr
    );
}

/// Thousands of scrapers never finish their request, or never read the response. Other scrapers get responses, and no
/// record is lost.
fn idle_scrapers_block_no_one() {
    let server = CountedServer::new(&[]);
    let pair = server.pair();
    exchange(&pair, 1000, 300);
    let mut idle = Vec::new();
    for number in 0..3_000 {
        let mut stream = TcpStream::connect(server.scraped).unwrap();
        match number % 3 {
            0 => {}
            1 => stream.write_all(b"GET /metrics HT").unwrap_or_default(),
            // Never reads the response.
            _ => stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                .unwrap_or_default(),
        }
        idle.push(stream);
        // Gets a response while all of these are connected.
        if number % 300 == 299 {
            server.scrape();
        }
    }
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", server.tracer.pid))
        .unwrap()
        .count();
    assert!(descriptors < 400, "{descriptors} descriptors");
    pair.close_client_first();
    let metrics = server.scrape_until("the closes", |metrics| {
        tcp_sum(metrics, "connections_closed", &[]) == 2.0
    });
    assert_eq!(tcp_sum(&metrics, "sent_bytes", &[CLIENT]), 1000.0);
    assert_eq!(metrics.sum("kmesh_trace_lost_records_total", &[]), 0.0);
    let resident = metrics.sum("process_resident_memory_bytes", &[]);
    assert!(resident < 128e6, "{resident}");
    drop(idle);
    server.tracer.interrupt();
}
