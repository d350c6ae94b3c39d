//! Flags of the command line that need real sockets: short lines, attempts that wait, own connections, unknown names.

use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Topic;
use crate::support::expect::own_comm;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::scrape::{address as metrics_address, scrape};
use crate::support::sock::{ClosedPort, IpVersion, connect_nonblocking, exchanged_pair, pair, wait_until};
use crate::support::tracer::{Tracer, TracerCommand};
use crate::support::write_scratch_file;

pub fn topic() -> Topic {
    Topic::new("command_line")
        .standalone("short_lines_show_both_ends_and_failures", &[], short_lines)
        .standalone("connecting_matches_waiting_attempts", &[Need::Nft], connecting)
        .standalone(
            "failed_includes_attempts_after_one_second",
            &[Need::Nft],
            failed_includes_waiting,
        )
        .standalone("own_connections_are_filtered_out", &[], own_connections)
        .standalone("scrapers_wait_to_be_accepted", &[], scrapers_wait_to_be_accepted)
        .standalone("unknown_names_are_reported", &[], unknown_names)
}

fn short_lines() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let tracer = TracerCommand::new(&["-o", "short"])
        .on_line({
            let lines = Arc::clone(&lines);
            move |line| lines.lock().unwrap().push(String::from_utf8(line.to_vec()).unwrap())
        })
        .start();
    let truth = exchanged_pair(IpVersion::V4).close_client_first();
    let closed = ClosedPort::new();
    let refused = connect_nonblocking(IpVersion::V4.at(0), closed.at(IpVersion::V4));
    wait_until("three lines", || lines.lock().unwrap().len() == 3);
    tracer.interrupt();
    let lines = lines.lock().unwrap();
    let process = format!("({}/{})", own_comm(), std::process::id());
    let (client, server) = (truth.src.ip(), truth.dst);
    let expected = [
        (
            format!("{client} {process} → {server}  ok  "),
            "  sent 1.0 KiB  received 300 B",
        ),
        (
            format!("{client} → {server} {process}  ok  "),
            "  sent 300 B  received 1.0 KiB",
        ),
        (
            format!(
                "{} {process} → {}  refused by peer  ",
                refused.truth.src.ip(),
                refused.truth.dst
            ),
            "ms",
        ),
    ];
    for (start, end) in expected {
        // Each line begins with the time of day and two spaces.
        let matches = |line: &&String| line[12..].trim_start().starts_with(&start) && line.trim_end().contains(end);
        assert_eq!(lines.iter().filter(matches).count(), 1, "{start}…{end}: {lines:?}");
    }
}

/// Starts a tracer of updates and closes that watches the calling thread's namespace.
fn start(filter: &str) -> Tracer {
    let tracer = Tracer::json(&["--events", "update,close", "--interval", "200ms", filter]);
    tracer.output.watch(net::current_netns());
    tracer
}

fn is_update(value: &Value) -> bool {
    value["event"] == "update"
}

/// Waiting attempts pass, an established connection and any close do not.
fn connecting() {
    let tracer = start("--connecting");
    let closed = ClosedPort::blackhole();
    let established = pair(IpVersion::V4);
    let attempt = connect_nonblocking(IpVersion::V4.at(0), closed.at(IpVersion::V4));
    let netns = net::current_netns();
    tracer.output.wait_matching(netns, 2, is_update);
    drop((attempt.socket, established));
    tracer.interrupt();
    let port = attempt.truth.dst.port();
    for record in tracer_records(&tracer, netns) {
        assert_eq!(
            (&record["event"], &record["dst"]["port"]),
            (&"update".into(), &port.into())
        );
        assert_eq!(
            (&record["established"], &record["outcome"]),
            (&false.into(), &Value::Null)
        );
    }
}

fn tracer_records(tracer: &Tracer, netns: u64) -> Vec<Value> {
    let records = tracer.output.records(netns);
    records.into_iter().map(|record| record.value).collect()
}

/// The first update comes after one second. The close of the attempt is a failure, too.
fn failed_includes_waiting() {
    let tracer = start("--failed");
    let closed = ClosedPort::blackhole();
    let established = pair(IpVersion::V4);
    let attempt = connect_nonblocking(IpVersion::V4.at(0), closed.at(IpVersion::V4));
    let netns = net::current_netns();
    let updates = tracer.output.wait_matching(netns, 1, is_update);
    assert!(
        updates[0]["duration_ns"].as_u64().unwrap() > 1_000_000_000,
        "{updates:?}"
    );
    assert_eq!(updates[0]["dst"]["port"], attempt.truth.dst.port());
    drop((attempt.socket, established));
    let closes = tracer.output.wait_matching(netns, 1, |value| value["event"] == "close");
    assert_eq!(closes[0]["outcome"], "connect_aborted");
    tracer.interrupt();
    let closes = tracer_records(&tracer, netns);
    assert_eq!(closes.iter().filter(|value| !is_update(value)).count(), 1, "{closes:?}");
}

/// A scrape of the tracer's metrics has no record by default, on neither end, and two with `--include-self`.
fn own_connections() {
    for (flags, ends) in [(&[][..], 0), (&["--include-self"][..], 2)] {
        let address = format!("{}:0", net::loopback_v4(0));
        let tracer = Tracer::json(&[&["--metrics", address.as_str()], flags].concat());
        let netns = net::current_netns();
        tracer.output.watch(netns);
        let metrics = metrics_address(&tracer);
        scrape(metrics);
        // The records of this connection follow those of the scrape.
        let truth = exchanged_pair(IpVersion::V4).close_client_first();
        let is_last = |value: &Value| value["dst"]["port"] == truth.dst.port();
        tracer.output.wait_matching(netns, 2, is_last);
        tracer.interrupt();
        let records = tracer_records(&tracer, netns);
        let of_scrape = records.iter().filter(|value| value["dst"]["port"] == metrics.port());
        assert_eq!(of_scrape.count(), ends, "{flags:?}: {records:?}");
    }
}

/// The tracer is stopped while scrapers connect. Then it reads their opens while it accepts them. They close after a
/// hundred more have connected. None has a record.
fn scrapers_wait_to_be_accepted() {
    let address = format!("{}:0", net::loopback_v4(0));
    let tracer = Tracer::json(&["--events", "open,close", "--metrics", &address]);
    let netns = net::current_netns();
    tracer.output.watch(netns);
    let metrics = metrics_address(&tracer);
    let mut earlier = Vec::new();
    for _ in 0..10 {
        tracer.signal(Signal::SIGSTOP);
        // The queue of the listener may be full.
        let connect = |_| connect_nonblocking(IpVersion::V4.at(0), metrics);
        let scrapers: Vec<_> = (0..100).map(connect).collect();
        tracer.signal(Signal::SIGCONT);
        let truth = pair(IpVersion::V4).close_client_first();
        let is_close = |value: &Value| value["dst"]["port"] == truth.dst.port() && value["event"] == "close";
        tracer.output.wait_matching(netns, 2, is_close);
        earlier = scrapers;
    }
    drop(earlier);
    tracer.interrupt();
    let records = tracer_records(&tracer, netns);
    let of_scraper = records.iter().find(|value| value["dst"]["port"] == metrics.port());
    assert_eq!(of_scraper, None);
}

fn unknown_names() {
    let pods = write_scratch_file("unknown-names.json", include_bytes!("../data/shop.json"));
    let arguments = [
        "-o",
        "json",
        "--pods-file",
        pods.to_str().unwrap(),
        "-n",
        "shpo,shop",
        "--workload",
        "nothing-like-this",
    ];
    let tracer = TracerCommand::with_names(&arguments).start();
    let warning = tracer.wait_stderr("kmesh-trace: warning: no pod is in namespace shpo; known: ");
    assert!(warning.contains("shop"), "{warning}");
    tracer.wait_stderr("kmesh-trace: warning: no workload is named nothing-like-this; known: ");
    tracer.interrupt();
}
