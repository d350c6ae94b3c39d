//! Metrics of real traffic, scraped: the counters equal what was moved. Each tracer looks at one server address only, so that
//! nothing of the other scenarios is in its sums.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use crate::Table;
use crate::support::expect::Scene;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::scrape::{Scrape, address, request, scrape};
use crate::support::sock::{ClosedPort, Pair, V, drain, exchange, flushed, give, pair, pair_with, take, wait_until};
use crate::support::tracer::{Start, Tracer};

/// The trials.
pub fn table() -> Table {
    Table::new("metrics")
        .own("equal_what_was_moved", &[], equal_what_was_moved)
        .own("open_connections_count", &[], open_connections_count)
        .own(
            "never_fall_and_never_count_twice",
            &[],
            never_fall_and_never_count_twice,
        )
        .own("what_was_before_is_not_counted", &[], what_was_before_is_not_counted)
        .own("one_by_one_and_folded", &[], one_by_one_and_folded)
        .own("filters_hold", &[], filters_hold)
        .own("beside_records", &[], beside_records)
        .own("http", &[], || http("127.0.0.1:0"))
        .own("http_ipv6", &[], || http("[::1]:0"))
        .own("taken_port", &[], taken_port)
        .own("hostile_scrapers", &[Need::Big], hostile_scrapers)
}

/// The server address of a scenario, and a tracer that counts what goes there.
struct Watched {
    tracer: Tracer,
    scraped: SocketAddr,
    listener: TcpListener,
}

/// Long enough that it is open when it is looked at, for the many connections of a busy machine's walk.
const INTERVAL: &str = "200ms";

impl Watched {
    fn new(more: &[&str]) -> Self {
        Self::at(net::address(0), more)
    }

    fn at(server: Ipv4Addr, more: &[&str]) -> Self {
        let only = server.to_string();
        let base = ["-o", "none", "--metrics", "0", "--interval", INTERVAL, "--to-ip", &only];
        let tracer = Start::new(&[&base, more].concat()).lines(|_| ()).tracing();
        Self {
            scraped: address(&tracer),
            listener: TcpListener::bind((server, 0)).unwrap(),
            tracer,
        }
    }

    fn pair(&self) -> Pair {
        pair_with(&self.listener)
    }

    fn scrape(&self) -> Scrape {
        scrape(self.scraped)
    }

    /// Scrapes until `is_so`, and gives what it saw then.
    fn until(&self, what: &str, is_so: impl Fn(&Scrape) -> bool) -> Scrape {
        let mut last = None;
        wait_until(what, || {
            let seen = self.scrape();
            let so = is_so(&seen);
            last = Some(seen);
            so
        });
        last.unwrap()
    }
}

fn end(pair: Pair) {
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
}

const CLIENT: (&str, &str) = ("reporter", "source");
const SERVER: (&str, &str) = ("reporter", "destination");

/// `kmesh_tcp_workload_…` and `kmesh_tcp_…`, which must agree.
fn both(scrape: &Scrape, family: &str, labels: &[(&str, &str)]) -> f64 {
    let sums = ["kmesh_tcp_workload_", "kmesh_tcp_"].map(|level| scrape.sum(&format!("{level}{family}_total"), labels));
    assert_eq!(sums[0], sums[1], "{family}");
    sums[0]
}

fn equal_what_was_moved() {
    const COUNT: usize = 50;
    let server = net::address(0);
    let watched = Watched::at(server, &["--metrics-compat"]);
    for _ in 0..COUNT {
        let pair = watched.pair();
        exchange(&pair, 1000, 300);
        end(pair);
    }
    // Of another address, which is not watched.
    let port = watched.listener.local_addr().unwrap().port();
    drop(TcpStream::connect((net::address(1), port)).unwrap_err());
    let closed = ClosedPort::new();
    for _ in 0..3 {
        TcpStream::connect((server, closed.number())).unwrap_err();
    }
    // One whose server resets it.
    let pair = watched.pair();
    give(&pair.client, 10);
    flushed(&pair.client);
    drop(pair.server);
    wait_until("the reset", || (&pair.client).read(&mut [0]).is_err());
    drop(pair.client);

    let ends = (2 * COUNT + 2 + 3) as f64;
    let seen = watched.until("all that ended", |seen| {
        seen.sum("kmesh_trace_outcomes_total", &[]) == ends
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
        assert_eq!(both(&seen, family, &[reporter]), expected, "{family} {reporter:?}");
    }
    let (never, cut) = (("response_flags", "UF"), ("response_flags", "UC"));
    for family in ["connections_failed", "conntections_failed"] {
        assert_eq!(both(&seen, family, &[CLIENT, never]), 3.0);
        assert_eq!(both(&seen, family, &[SERVER, never]), 0.0);
        assert_eq!(both(&seen, family, &[CLIENT, cut]), 1.0);
        assert_eq!(both(&seen, family, &[SERVER, cut]), 1.0);
    }
    let outcomes = [
        ("ok", 2.0 * count),
        ("refused", 3.0),
        ("reset_by_peer", 1.0),
        ("reset_by_local", 1.0),
    ];
    for (outcome, expected) in outcomes {
        assert_eq!(
            seen.sum("kmesh_trace_outcomes_total", &[("outcome", outcome)]),
            expected,
            "{outcome}"
        );
    }
    let took = |what: &str, labels: &[(&str, &str)]| {
        seen.sum(&format!("kmesh_trace_{what}_duration_seconds_{}", "count"), labels)
    };
    assert_eq!(took("connect", &[]), count + 1.0);
    assert_eq!(took("connection", &[CLIENT]), count + 1.0);
    assert_eq!(took("connection", &[SERVER]), count + 1.0);
    let all = ("le", "+Inf");
    assert_eq!(
        seen.sum("kmesh_trace_connect_duration_seconds_bucket", &[all]),
        count + 1.0
    );
    assert!(
        seen.of("kmesh_tcp_sent_bytes_total", &[])
            .all(|one| one.labels["connection_security_policy"] == "mutual_tls")
    );
    assert_eq!(seen.sum("kmesh_trace_lost_records_total", &[]), 0.0);
    assert_eq!(watched.tracer.interrupt().status.code(), Some(0));
}

fn open_connections_count() {
    let watched = Watched::new(&[]);
    let pair = watched.pair();
    exchange(&pair, 1000, 300);
    let told =
        |seen: &Scrape| both(seen, "sent_bytes", &[CLIENT]) == 1000.0 && both(seen, "sent_bytes", &[SERVER]) == 300.0;
    let seen = watched.until("the bytes of an open connection", told);
    assert_eq!(both(&seen, "connections_opened", &[CLIENT]), 1.0);
    assert_eq!(both(&seen, "connections_closed", &[CLIENT]), 0.0);
    assert!(seen.sum("kmesh_trace_open_connections", &[]) >= 2.0);
    exchange(&pair, 77, 0);
    watched.until("more bytes", |seen| both(seen, "sent_bytes", &[CLIENT]) == 1077.0);
    end(pair);
    let seen = watched.until("the end", |seen| both(seen, "connections_closed", &[]) == 2.0);
    assert_eq!(both(&seen, "sent_bytes", &[CLIENT]), 1077.0);
    assert_eq!(both(&seen, "received_bytes", &[SERVER]), 1077.0);
    watched.tracer.interrupt();
}

/// Streams that are scraped while they run: at no time more than was sent, at no time less than before.
fn never_fall_and_never_count_twice() {
    let watched = Watched::new(&[]);
    let pairs: Vec<_> = (0..20).map(|_| watched.pair()).collect();
    let (mut sent, mut seen_before, mut rises) = (0.0, 0.0, 0);
    wait_until("three scrapes have shown more than the one before", || {
        for pair in &pairs {
            give(&pair.client, 333);
            take(&pair.server, 333);
            sent += 333.0;
        }
        let seen = both(&watched.scrape(), "received_bytes", &[SERVER]);
        assert!(
            seen >= seen_before && seen <= sent,
            "{seen_before}, then {seen} of {sent}"
        );
        rises += u32::from(seen > seen_before);
        seen_before = seen;
        rises == 3
    });
    pairs.into_iter().for_each(end);
    let seen = watched.until("the end", |seen| both(seen, "connections_closed", &[]) == 40.0);
    assert_eq!(both(&seen, "received_bytes", &[SERVER]), sent);
    assert_eq!(both(&seen, "sent_bytes", &[CLIENT]), sent);
    watched.tracer.interrupt();
}

/// A tracer that is started again must not count once more what one before it counted.
fn what_was_before_is_not_counted() {
    let server = net::address(0);
    let listener = TcpListener::bind((server, 0)).unwrap();
    let (pair, silent) = (pair_with(&listener), pair_with(&listener));
    exchange(&pair, 100_000, 300);
    exchange(&silent, 5_000, 0);
    let watched = Watched::at(server, &[]);
    exchange(&pair, 7, 5);
    let seen = watched.until("what came after", |seen| both(seen, "sent_bytes", &[CLIENT]) >= 7.0);
    assert_eq!(both(&seen, "sent_bytes", &[CLIENT]), 7.0);
    exchange(&pair, 3, 0);
    end(pair);
    end(silent);
    let seen = watched.until("the end", |seen| both(seen, "connections_closed", &[]) == 4.0);
    assert_eq!(both(&seen, "sent_bytes", &[CLIENT]), 10.0);
    assert_eq!(both(&seen, "sent_bytes", &[SERVER]), 5.0);
    assert_eq!(both(&seen, "connections_opened", &[]), 0.0);
    watched.tracer.interrupt();
}

fn one_by_one_and_folded() {
    let watched = Watched::new(&["--metrics-level", "connection", "--metrics-max-series", "80"]);
    let pairs: Vec<_> = (0..60).map(|_| watched.pair()).collect();
    pairs.iter().for_each(|pair| exchange(pair, 11, 0));
    let known: Vec<String> = pairs.iter().map(|pair| pair.truth.src.to_string()).collect();
    pairs.into_iter().for_each(end);
    let ended = |seen: &Scrape| seen.sum("kmesh_trace_outcomes_total", &[]) == 120.0;
    let seen = watched.until("all that ended", ended);
    let family = "kmesh_tcp_connection_sent_bytes_total";
    assert_eq!(seen.sum(family, &[CLIENT]), 660.0);
    let rest = ("source_address", "other");
    assert_eq!(seen.of(family, &[CLIENT, rest]).count(), 1);
    assert!(seen.sum(family, &[CLIENT, rest]) >= 11.0);
    assert!(seen.sum("kmesh_trace_metrics_folded_total", &[]) > 0.0);
    for series in seen
        .of(family, &[CLIENT])
        .filter(|series| series.labels["source_address"] != "other")
    {
        assert!(known.contains(&series.labels["source_address"]), "{series:?}");
        assert_eq!(series.value, 11.0);
    }
    let levels = seen.0.iter().filter(|series| series.labels.contains_key("reporter"));
    assert!(levels.clone().count() <= 80 + 2 * 4 + 2 * 34, "{}", levels.count());
    assert_eq!(seen.of("kmesh_tcp_sent_bytes_total", &[]).count(), 0);
    watched.tracer.interrupt();
}

/// What the filters sort out is in no sum.
fn filters_hold() {
    let watched = Watched::new(&["--failed"]);
    let pair = watched.pair();
    exchange(&pair, 1000, 300);
    end(pair);
    let pair = watched.pair();
    give(&pair.client, 10);
    flushed(&pair.client);
    drop(pair.server);
    wait_until("the reset", || (&pair.client).read(&mut [0]).is_err());
    drop(pair.client);
    let seen = watched.until("the failures", |seen| {
        seen.sum("kmesh_trace_outcomes_total", &[]) >= 2.0
    });
    assert_eq!(seen.sum("kmesh_trace_outcomes_total", &[("outcome", "ok")]), 0.0);
    assert_eq!(both(&seen, "connections_closed", &[]), 2.0);
    watched.tracer.interrupt();
}

/// Metrics change nothing about what is printed.
fn beside_records() {
    let tracer = Tracer::json(&["--metrics", "0", "--interval", INTERVAL]);
    let scraped = address(&tracer);
    let scene = Scene::new(&tracer.store);
    let pair = pair(V::Four);
    exchange(&pair, 1000, 300);
    wait_until("a walk", || {
        scrape(scraped).sum("kmesh_trace_open_connections", &[]) >= 2.0
    });
    let truth = pair.truth;
    end(pair);
    // Such as the scrapes.
    scene.expect_among_others(&[
        truth.outbound().bytes(1000, 300).ok("local"),
        truth.inbound().bytes(300, 1000).ok("peer"),
    ]);
    let end = tracer.interrupt();
    end.check_whole();
    assert!(
        end.store
            .records(scene.netns())
            .iter()
            .all(|record| record.value["event"] == "close")
    );
}

fn http(at: &str) {
    let tracer = Start::new(&["-o", "none", "--metrics", at]).lines(|_| ()).tracing();
    let to = address(&tracer);
    let answer = request(to, "GET", "/status/metric");
    assert!(answer.head.starts_with("HTTP/1.1 200 OK"), "{}", answer.head);
    let content = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(answer.head.contains(content), "{}", answer.head);
    assert!(answer.body.contains("# TYPE kmesh_tcp_workload_sent_bytes counter"));
    assert!(answer.body.contains("kmesh_trace_build_info{version="));
    let cases = [
        ("GET", "/metrics?name[]=x", "200 OK"),
        ("HEAD", "/metrics", "200 OK"),
        ("POST", "/metrics", "405 Method Not Allowed"),
        ("GET", "/", "404 Not Found"),
        ("GET", "/metrics/", "404 Not Found"),
        ("\0", "/", "400 Bad Request"),
    ];
    for (method, path, status) in cases {
        let answer = request(to, method, path);
        assert!(
            answer.head.starts_with(&format!("HTTP/1.1 {status}")),
            "{method} {path}: {}",
            answer.head
        );
        assert!(method != "HEAD" || answer.body.is_empty());
    }
    tracer.interrupt();
}

fn taken_port() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let end = Start::new(&["--metrics", &port]).spawn().wait();
    assert_eq!(end.status.code(), Some(1));
    let said = end.stderr.join("\n");
    for part in [&format!("127.0.0.1:{port}"), "in use", "try: another port", "ss -ltnp"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let end = Start::new(&["--metrics", "192.0.2.1:15020"]).spawn().wait();
    assert_eq!(end.status.code(), Some(1));
    assert!(
        end.stderr.join("\n").contains("an address of this machine"),
        "{:?}",
        end.stderr
    );
}

/// Thousands that never finish their request, and hundreds that ask and never read: whoever asks properly is answered, and
/// nothing is lost.
fn hostile_scrapers() {
    let watched = Watched::new(&[]);
    let pair = watched.pair();
    exchange(&pair, 1000, 300);
    let mut silent = Vec::new();
    for number in 0..3_000 {
        let mut stream = TcpStream::connect(watched.scraped).unwrap();
        match number % 3 {
            0 => {}
            1 => stream.write_all(b"GET /metrics HT").unwrap_or_default(),
            // Asks and never reads.
            _ => stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                .unwrap_or_default(),
        }
        silent.push(stream);
        // Answered, with all of these around.
        if number % 300 == 299 {
            watched.scrape();
        }
    }
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", watched.tracer.pid))
        .unwrap()
        .count();
    assert!(descriptors < 400, "{descriptors} descriptors");
    end(pair);
    let seen = watched.until("the end", |seen| both(seen, "connections_closed", &[]) == 2.0);
    assert_eq!(both(&seen, "sent_bytes", &[CLIENT]), 1000.0);
    assert_eq!(seen.sum("kmesh_trace_lost_records_total", &[]), 0.0);
    let resident = seen.sum("process_resident_memory_bytes", &[]);
    assert!(resident < 128e6, "{resident}");
    drop(silent);
    watched.tracer.interrupt();
}
