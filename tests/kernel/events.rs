//! `open` and `update` events: what is told of a connection before it ends.

use std::collections::HashMap;
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::SystemTime;

use nix::errno::Errno;
use serde_json::Value;

use crate::Table;
use crate::support::expect::{CLOCK_ERROR, Scene, moment};
use crate::support::net;
use crate::support::probe::Need;
use crate::support::sock::{ClosedPort, V, dial, drain, exchange, flushed, give, listen, pair, pair_with, take};
use crate::support::store::Rec;
use crate::support::tracer::Tracer;

/// The trials.
pub fn table() -> Table {
    Table::new("events")
        .own("open_then_close_ipv4", &[], || open_then_close(V::Four))
        .own("open_then_close_ipv6", &[], || open_then_close(V::Six))
        .own("refused_never_opens", &[], refused_never_opens)
        .own("watched_for_ten_windows", &[], watched_for_ten_windows)
        .own("watched_under_load", &[], watched_under_load)
        .own("still_connecting", &[Need::Nft], still_connecting)
        .own("open_before", &[], open_before)
        .own("many_descriptors", &[], many_descriptors)
        .own("only_updates", &[], only_updates)
}

const ALL: [&str; 4] = ["--events", "open,update,close", "--interval", "200ms"];

fn named(records: &[Rec], event: &str, direction: &str) -> Vec<Value> {
    let is_it = |rec: &&Rec| rec.value["event"] == event && rec.value["direction"] == direction;
    records.iter().filter(is_it).map(|rec| rec.value.clone()).collect()
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("{field} of {value}"))
}

/// Waits for the close of both ends, and gives all records.
fn until_closed(scene: &Scene, tracer: &Tracer) -> Vec<Rec> {
    let both = |records: &[Rec]| {
        let closed = records.iter().filter(|rec| rec.value["event"] == "close").count();
        (closed == 2).then(|| records.to_vec())
    };
    tracer.store.wait(scene.netns(), both).unwrap()
}

fn open_then_close(v: V) {
    let tracer = Tracer::json(&["--events", "open,close"]);
    let scene = Scene::new(&tracer.store);
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    let records = until_closed(&scene, &tracer);
    assert_eq!(records.len(), 4, "two ends, two events each");
    for (direction, old_state) in [("outbound", "SYN_SENT"), ("inbound", "SYN_RECV")] {
        let [open] = &named(&records, "open", direction)[..] else {
            panic!("one open, {direction}")
        };
        let [close] = &named(&records, "close", direction)[..] else {
            panic!("one close, {direction}")
        };
        for field in [
            "id",
            "src",
            "dst",
            "start",
            "connect_ns",
            "local",
            "direction",
            "preexisting",
        ] {
            assert_eq!(open[field], close[field], "{field}");
        }
        for field in ["outcome", "errno", "closed_by"] {
            assert_eq!(open[field], Value::Null, "{field}");
        }
        assert_eq!(open["established"], true);
        assert_eq!(
            (&open["tcp"]["state"], &open["tcp"]["old_state"]),
            (&"ESTABLISHED".into(), &old_state.into())
        );
        for field in ["sent_bytes", "received_bytes"] {
            assert_eq!(open[field], 0, "{field}");
        }
        let at = moment(&open["time"]).unwrap();
        let open = pair.truth.open;
        assert!(
            at >= open.before - CLOCK_ERROR && at <= open.after + CLOCK_ERROR,
            "opened at {at:?}, not in {open:?}"
        );
    }
    tracer.interrupt().check_whole();
}

fn refused_never_opens() {
    let tracer = Tracer::json(&["--events", "open,close"]);
    let scene = Scene::new(&tracer.store);
    let closed = ClosedPort::new();
    let attempt = dial(V::Four.at(0), closed.at(V::Four));
    assert_eq!(attempt.said, Errno::EINPROGRESS);
    let after = pair(V::Four);
    drop(after);
    let five = |records: &[Rec]| (records.len() >= 5).then(|| records.to_vec());
    let records = tracer.store.wait(scene.netns(), five).unwrap();
    let port = attempt.truth.dst.port();
    let told: Vec<_> = records.iter().filter(|rec| rec.value["dst"]["port"] == port).collect();
    let [only] = &told[..] else {
        panic!("one record of the attempt: {}", told.len())
    };
    assert_eq!(
        (&only.value["event"], &only.value["outcome"]),
        (&"close".into(), &"refused".into())
    );
    tracer.interrupt().check_whole();
}

/// In each window some bytes move; what is told after that and before the next bytes is exactly the sum so far.
fn watched_for_ten_windows() {
    let tracer = Tracer::json(&ALL);
    let scene = Scene::new(&tracer.store);
    let pair = pair(V::Four);
    let (mut up, mut down) = (0, 0);
    for step in 1..=10_u64 {
        let (more_up, more_down) = (1000 * step, 77 * step);
        exchange(&pair, more_up as usize, more_down as usize);
        (up, down) = (up + more_up, down + more_down);
        flushed(&pair.client);
        flushed(&pair.server);
        let settled = SystemTime::now();
        let told = |records: &[Rec]| {
            let later = |direction| {
                let all = named(records, "update", direction);
                all.into_iter()
                    .find(|value| moment(&value["time"]).is_some_and(|time| time > settled + CLOCK_ERROR))
            };
            Some((later("outbound")?, later("inbound")?))
        };
        let (outbound, inbound) = tracer.store.wait(scene.netns(), told).unwrap();
        assert_eq!(
            (number(&outbound, "sent_bytes"), number(&outbound, "received_bytes")),
            (up, down),
            "step {step}"
        );
        assert_eq!(
            (number(&inbound, "sent_bytes"), number(&inbound, "received_bytes")),
            (down, up),
            "step {step}"
        );
        assert_eq!(
            (&outbound["tcp"]["state"], &outbound["tcp"]["old_state"]),
            (&"ESTABLISHED".into(), &Value::Null)
        );
    }
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    let records = until_closed(&scene, &tracer);
    for direction in ["outbound", "inbound"] {
        in_step(&records, direction);
    }
    tracer.interrupt().check_whole();
}

/// Totals never fall, never exceed those of the close, and all events are of one id.
fn in_step(records: &[Rec], direction: &str) -> usize {
    let updates = named(records, "update", direction);
    let [close] = &named(records, "close", direction)[..] else {
        panic!("one close, {direction}")
    };
    let mut last = (0, 0, 0);
    for value in updates.iter().chain([close]) {
        let now = (
            number(value, "sent_bytes"),
            number(value, "received_bytes"),
            number(value, "duration_ns"),
        );
        assert!(
            now.0 >= last.0 && now.1 >= last.1 && now.2 >= last.2,
            "{last:?} then {now:?}: {value}"
        );
        assert_eq!(value["id"], close["id"]);
        assert_eq!(value["start"], close["start"]);
        last = now;
    }
    updates.len()
}

/// Bytes move all the time, as fast as they can, and the connection ends in the midst of it.
fn watched_under_load() {
    let tracer = Tracer::json(&["--events", "update,close", "--interval", "100ms"]);
    let scene = Scene::new(&tracer.store);
    let pair = pair(V::Four);
    let enough = AtomicBool::new(false);
    thread::scope(|threads| {
        let reading = threads.spawn(|| drain(&pair.server));
        let writing = threads.spawn(|| {
            let mut written = 0;
            while !enough.load(Ordering::Relaxed) {
                give(&pair.client, 60_000);
                written += 60_000;
            }
            pair.client.shutdown(std::net::Shutdown::Write).unwrap();
            written
        });
        let ten = |records: &[Rec]| (named(records, "update", "outbound").len() >= 10).then_some(());
        tracer.store.wait(scene.netns(), ten).unwrap();
        enough.store(true, Ordering::Relaxed);
        let written: usize = writing.join().unwrap();
        assert_eq!(reading.join().unwrap(), written);
    });
    drop(pair);
    let records = until_closed(&scene, &tracer);
    for direction in ["outbound", "inbound"] {
        assert!(in_step(&records, direction) >= 9);
    }
    tracer.interrupt().check_whole();
}

/// An attempt that nothing answers is told of while it hangs.
fn still_connecting() {
    let tracer = Tracer::json(&ALL);
    let scene = Scene::new(&tracer.store);
    let port = ClosedPort::new();
    net::rules(&[&format!("tcp dport {} drop", port.number())]);
    let attempt = dial(V::Four.at(0), port.at(V::Four));
    let two = |records: &[Rec]| (named(records, "update", "outbound").len() >= 2).then(|| records.to_vec());
    let hanging = tracer.store.wait(scene.netns(), two).unwrap();
    drop(attempt.socket);
    let ended = |records: &[Rec]| named(records, "close", "outbound").pop();
    let close = tracer.store.wait(scene.netns(), ended).unwrap();
    assert_eq!(close["outcome"], "connect_aborted");
    for update in named(&hanging, "update", "outbound") {
        assert_eq!(
            (&update["established"], &update["tcp"]["state"]),
            (&false.into(), &"SYN_SENT".into())
        );
        assert_eq!(update["id"], close["id"]);
        assert_eq!(update["outcome"], Value::Null);
    }
    tracer.interrupt().check_whole();
}

fn open_before() {
    let pair = pair(V::Four);
    exchange(&pair, 1000, 300);
    let tracer = Tracer::json(&ALL);
    let scene = Scene::new(&tracer.store);
    let told = |records: &[Rec]| {
        Some((
            named(records, "update", "outbound").pop()?,
            named(records, "update", "inbound").pop()?,
        ))
    };
    let (outbound, inbound) = tracer.store.wait(scene.netns(), told).unwrap();
    for (value, sent, received) in [(&outbound, 1000, 300), (&inbound, 300, 1000)] {
        assert_eq!(
            (number(value, "sent_bytes"), number(value, "received_bytes")),
            (sent, received)
        );
        assert_eq!((&value["preexisting"], &value["start"]), (&true.into(), &Value::Null));
        assert_eq!(value["process"]["pid"], std::process::id());
    }
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    let records = until_closed(&scene, &tracer);
    let close = named(&records, "close", "outbound").pop().unwrap();
    assert_eq!(outbound["id"], close["id"]);
    tracer.interrupt().check_whole();
}

/// Each client is held by two descriptors, each server by one: both are told once a walk, so as often as each other.
fn many_descriptors() {
    const PAIRS: usize = 50;
    let tracer = Tracer::json(&ALL);
    let scene = Scene::new(&tracer.store);
    let listener = listen(V::Four);
    let pairs: Vec<_> = (0..PAIRS).map(|_| pair_with(&listener)).collect();
    let copies: Vec<_> = pairs
        .iter()
        .map(|pair| pair.client.as_fd().try_clone_to_owned().unwrap())
        .collect();
    let opened = SystemTime::now() + CLOCK_ERROR;
    // By the client's port: the updates of the client's end and of the server's end, since all were open.
    let updates = |records: &[Rec]| {
        let mut updates: HashMap<u64, [usize; 2]> = HashMap::new();
        for value in records.iter().map(|rec| &rec.value) {
            if value["event"] == "update" && moment(&value["time"]).unwrap() > opened {
                let end = usize::from(value["direction"] == "inbound");
                updates.entry(number(&value["src"], "port")).or_default()[end] += 1;
            }
        }
        let servers = updates.values().map(|[_, server]| *server);
        (servers.filter(|&count| count >= 4).count() == PAIRS).then_some(updates)
    };
    let updates = tracer.store.wait(scene.netns(), updates).unwrap();
    drop((pairs, copies));
    assert_eq!(updates.len(), PAIRS);
    for (port, [client, server]) in updates {
        // The first walk and the last one may have met only one of them.
        assert!(
            client.abs_diff(server) <= 1,
            "port {port}: {client} updates of the client, {server} of the server"
        );
    }
    tracer.interrupt().check_whole();
}

/// Who asks for updates only gets no close, and the sum says so.
fn only_updates() {
    let tracer = Tracer::json(&["--events", "update", "--interval", "100ms"]);
    let scene = Scene::new(&tracer.store);
    let pair = pair(V::Four);
    talk(&pair.client, &pair.server);
    let some = |records: &[Rec]| (!named(records, "update", "outbound").is_empty()).then_some(());
    tracer.store.wait(scene.netns(), some).unwrap();
    drop(pair);
    let end = tracer.interrupt();
    let sums = end.check();
    assert_eq!(sums.delivered, 0);
    assert!(sums.filtered >= 2, "{sums:?}");
    assert_eq!(sums.closes, sums.filtered + sums.lost);
}

fn talk(client: &TcpStream, server: &TcpStream) {
    give(client, 10);
    take(server, 10);
}
