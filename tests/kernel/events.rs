//! `open` and `update` events: the records of a connection before it ends.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::SystemTime;

use nix::errno::Errno;
use serde_json::Value;

use crate::Topic;
use crate::support::expect::{CLOCK_ERROR, parse_time};
use crate::support::net;
use crate::support::output::ReceivedRecord;
use crate::support::probe::Need;
use crate::support::sock::{
    ClosedPort, IpVersion, connect_nonblocking, drain, exchange, exchanged_pair, listen, pair, pair_with, send,
    wait_acknowledged,
};
use crate::support::tracer::Tracer;

pub fn topic() -> Topic {
    Topic::new("events")
        .standalone_both_versions("open_matches_close", &[], open_matches_close)
        .standalone("refused_attempt_has_no_open", &[], refused_attempt_has_no_open)
        .standalone("updates_equal_the_bytes_so_far", &[], updates_equal_the_bytes_so_far)
        .standalone("updates_under_load_never_fall", &[], updates_under_load_never_fall)
        .standalone("connecting_has_updates", &[Need::Nft], connecting_has_updates)
        .standalone("preexisting_has_updates", &[], preexisting_has_updates)
        .standalone("two_descriptors_make_one_update", &[], two_descriptors_make_one_update)
        .standalone("updates_without_closes", &[], updates_without_closes)
}

const ALL_EVENTS: [&str; 4] = ["--events", "open,update,close", "--interval", "200ms"];

/// Starts a tracer that watches the calling thread's namespace.
fn start(args: &[&str]) -> Tracer {
    let tracer = Tracer::json(args);
    tracer.output.watch(net::current_netns());
    tracer
}

fn is_event(value: &Value, event: &str, direction: &str) -> bool {
    value["event"] == event && value["direction"] == direction
}

/// The records of one event and one direction.
fn of_event(records: &[ReceivedRecord], event: &str, direction: &str) -> Vec<Value> {
    let values = records.iter().map(|record| &record.value);
    values
        .filter(|value| is_event(value, event, direction))
        .cloned()
        .collect()
}

/// Waits for this number of updates of one direction, and returns all of them.
fn wait_updates(tracer: &Tracer, count: usize, direction: &str) -> Vec<Value> {
    let netns = net::current_netns();
    let is_update = |value: &Value| is_event(value, "update", direction);
    tracer.output.wait_matching(netns, count, is_update)
}

fn number(value: &Value, member: &str) -> u64 {
    value[member].as_u64().unwrap_or_else(|| panic!("{member} of {value}"))
}

/// Waits until both ends of a connection have closed, and returns all records.
fn wait_closed(tracer: &Tracer) -> Vec<ReceivedRecord> {
    let netns = net::current_netns();
    tracer.output.wait_matching(netns, 2, |value| value["event"] == "close");
    tracer.output.records(netns)
}

/// The only record of one event and one direction.
fn only(records: &[ReceivedRecord], event: &str, direction: &str) -> Value {
    let mut found = of_event(records, event, direction);
    assert_eq!(found.len(), 1, "{event}, {direction}: {found:?}");
    found.remove(0)
}

fn open_matches_close(version: IpVersion) {
    let tracer = start(&["--events", "open,close"]);
    let truth = exchanged_pair(version).close_client_first();
    let records = wait_closed(&tracer);
    assert_eq!(records.len(), 4, "two ends, two events each");
    for (direction, old_state) in [("outbound", "SYN_SENT"), ("inbound", "SYN_RECV")] {
        let open = only(&records, "open", direction);
        let close = only(&records, "close", direction);
        for member in [
            "id",
            "src",
            "dst",
            "start",
            "connect_ns",
            "local",
            "direction",
            "preexisting",
        ] {
            assert_eq!(open[member], close[member], "{member}");
        }
        for member in ["outcome", "errno", "closed_by"] {
            assert_eq!(open[member], Value::Null, "{member}");
        }
        assert_eq!(open["established"], true);
        assert_eq!(open["tcp"]["state"], "ESTABLISHED");
        assert_eq!(open["tcp"]["old_state"], old_state);
        for member in ["sent_bytes", "received_bytes"] {
            assert_eq!(open[member], 0, "{member}");
        }
        for member in ["last_send_ms", "last_receive_ms"] {
            // The client's kernel sets both times a moment later.
            let is_right = match direction {
                "outbound" => open["tcp"][member].is_null(),
                _ => open["tcp"][member].as_u64().is_some_and(|age| age < 1_000),
            };
            assert!(is_right, "{member}: {open}");
        }
        let time = parse_time(&open["time"]).unwrap();
        let span = truth.open;
        assert!(
            time >= span.before - CLOCK_ERROR && time <= span.after + CLOCK_ERROR,
            "opened at {time:?}, not in {span:?}"
        );
    }
    tracer.interrupt().check_lossless();
}

fn refused_attempt_has_no_open() {
    let tracer = start(&["--events", "open,close"]);
    let closed = ClosedPort::new();
    let attempt = connect_nonblocking(IpVersion::V4.at(0), closed.at(IpVersion::V4));
    assert_eq!(attempt.errno, Errno::EINPROGRESS);
    drop(pair(IpVersion::V4));
    // The attempt's close, and two events of each end of the later connection.
    let records = tracer.output.wait_matching(net::current_netns(), 5, |_| true);
    let port = attempt.truth.dst.port();
    let of_attempt: Vec<_> = records.iter().filter(|value| value["dst"]["port"] == port).collect();
    let [record] = of_attempt[..] else {
        panic!("records of the attempt: {of_attempt:?}")
    };
    assert_eq!(
        (&record["event"], &record["outcome"]),
        (&"close".into(), &"refused".into())
    );
    tracer.interrupt().check_lossless();
}

/// Bytes move in ten steps. The first update after a step, before the next one, has exactly the sum so far.
fn updates_equal_the_bytes_so_far() {
    let tracer = start(&ALL_EVENTS);
    let pair = pair(IpVersion::V4);
    let (mut up, mut down) = (0, 0);
    for step in 1..=10_u64 {
        let (more_up, more_down) = (1000 * step, 77 * step);
        exchange(&pair, more_up as usize, more_down as usize);
        (up, down) = (up + more_up, down + more_down);
        wait_acknowledged(&pair.client);
        wait_acknowledged(&pair.server);
        let acknowledged = SystemTime::now();
        for (direction, bytes) in [("outbound", (up, down)), ("inbound", (down, up))] {
            let is_later = |value: &Value| {
                let time = parse_time(&value["time"]);
                is_event(value, "update", direction) && time.is_some_and(|time| time > acknowledged + CLOCK_ERROR)
            };
            let update = &tracer.output.wait_matching(net::current_netns(), 1, is_later)[0];
            let actual = (number(update, "sent_bytes"), number(update, "received_bytes"));
            assert_eq!(actual, bytes, "step {step}");
            assert_eq!(update["tcp"]["state"], "ESTABLISHED");
            assert_eq!(update["tcp"]["old_state"], Value::Null);
        }
    }
    pair.close_client_first();
    let records = wait_closed(&tracer);
    for direction in ["outbound", "inbound"] {
        check_counters_never_fall(&records, direction);
    }
    tracer.interrupt().check_lossless();
}

/// Checks that the counters of updates never fall, that none is above the close's, and that all have the same id.
/// Returns the number of updates.
fn check_counters_never_fall(records: &[ReceivedRecord], direction: &str) -> usize {
    let updates = of_event(records, "update", direction);
    let close = only(records, "close", direction);
    let mut last = [0; 3];
    for value in updates.iter().chain([&close]) {
        let counters = ["sent_bytes", "received_bytes", "duration_ns"].map(|member| number(value, member));
        let never_falls = counters.iter().zip(last).all(|(now, last)| *now >= last);
        assert!(never_falls, "{last:?} then {counters:?}: {value}");
        assert_eq!(value["id"], close["id"]);
        assert_eq!(value["start"], close["start"]);
        last = counters;
    }
    updates.len()
}

/// Bytes move all the time, as fast as possible, until the connection ends.
fn updates_under_load_never_fall() {
    let tracer = start(&["--events", "update,close", "--interval", "100ms"]);
    let pair = pair(IpVersion::V4);
    let is_enough = AtomicBool::new(false);
    thread::scope(|threads| {
        let reader = threads.spawn(|| drain(&pair.server));
        let writer = threads.spawn(|| {
            let mut written = 0;
            while !is_enough.load(Ordering::Relaxed) {
                send(&pair.client, 60_000);
                written += 60_000;
            }
            pair.client.shutdown(Shutdown::Write).unwrap();
            written
        });
        wait_updates(&tracer, 10, "outbound");
        is_enough.store(true, Ordering::Relaxed);
        let written: usize = writer.join().unwrap();
        assert_eq!(reader.join().unwrap(), written);
    });
    drop(pair);
    let records = wait_closed(&tracer);
    for direction in ["outbound", "inbound"] {
        assert!(check_counters_never_fall(&records, direction) >= 9);
    }
    tracer.interrupt().check_lossless();
}

/// An unanswered attempt has updates until it ends.
fn connecting_has_updates() {
    let tracer = start(&ALL_EVENTS);
    let closed = ClosedPort::blackhole();
    let attempt = connect_nonblocking(IpVersion::V4.at(0), closed.at(IpVersion::V4));
    let updates = wait_updates(&tracer, 2, "outbound");
    drop(attempt.socket);
    let is_close = |value: &Value| is_event(value, "close", "outbound");
    let close = &tracer.output.wait_matching(net::current_netns(), 1, is_close)[0];
    assert_eq!(close["outcome"], "connect_aborted");
    for update in updates {
        assert_eq!(update["established"], false);
        assert_eq!(update["tcp"]["state"], "SYN_SENT");
        assert_eq!(update["id"], close["id"]);
        assert_eq!(update["outcome"], Value::Null);
    }
    tracer.interrupt().check_lossless();
}

fn preexisting_has_updates() {
    let pair = exchanged_pair(IpVersion::V4);
    let tracer = start(&ALL_EVENTS);
    let outbound = wait_updates(&tracer, 1, "outbound").remove(0);
    let inbound = wait_updates(&tracer, 1, "inbound").remove(0);
    for (update, sent, received) in [(&outbound, 1000, 300), (&inbound, 300, 1000)] {
        let bytes = (number(update, "sent_bytes"), number(update, "received_bytes"));
        assert_eq!(bytes, (sent, received));
        assert_eq!((&update["preexisting"], &update["start"]), (&true.into(), &Value::Null));
        assert_eq!(update["process"]["pid"], std::process::id());
    }
    pair.close_client_first();
    let close = only(&wait_closed(&tracer), "close", "outbound");
    assert_eq!(outbound["id"], close["id"]);
    tracer.interrupt().check_lossless();
}

/// Two descriptors lead to each client and one to each server. A scan reports each of them once.
fn two_descriptors_make_one_update() {
    const PAIRS: usize = 50;
    let tracer = start(&ALL_EVENTS);
    let listener = listen(IpVersion::V4);
    let pairs: Vec<_> = (0..PAIRS).map(|_| pair_with(&listener)).collect();
    let copies: Vec<_> = pairs
        .iter()
        .map(|pair| pair.client.as_fd().try_clone_to_owned().unwrap())
        .collect();
    let opened = SystemTime::now() + CLOCK_ERROR;
    // The number of updates of the client and of the server since all were open, by the client's port.
    let count_updates = |records: &[ReceivedRecord]| {
        let mut updates: HashMap<u64, [usize; 2]> = HashMap::new();
        for value in records.iter().map(|record| &record.value) {
            if value["event"] == "update" && parse_time(&value["time"]).unwrap() > opened {
                let end = usize::from(value["direction"] == "inbound");
                updates.entry(number(&value["src"], "port")).or_default()[end] += 1;
            }
        }
        let servers = updates.values().map(|[_, server]| *server);
        (servers.filter(|&count| count >= 4).count() == PAIRS).then_some(updates)
    };
    let updates = tracer.output.wait(net::current_netns(), count_updates).unwrap();
    drop((pairs, copies));
    assert_eq!(updates.len(), PAIRS);
    for (port, [client, server]) in updates {
        // The first and the last scan may have reported only one end so far.
        assert!(
            client.abs_diff(server) <= 1,
            "port {port}: {client} updates of the client, {server} of the server"
        );
    }
    tracer.interrupt().check_lossless();
}

/// With `--events update` no close is delivered, and the summary counts the closes as filtered.
fn updates_without_closes() {
    let tracer = start(&["--events", "update", "--interval", "100ms"]);
    let pair = pair(IpVersion::V4);
    exchange(&pair, 10, 0);
    wait_updates(&tracer, 1, "outbound");
    drop(pair);
    let totals = tracer.interrupt().check();
    assert_eq!(totals.delivered, 0);
    assert!(totals.filtered >= 2, "{totals:?}");
    assert_eq!(totals.closes, totals.filtered + totals.lost);
}
