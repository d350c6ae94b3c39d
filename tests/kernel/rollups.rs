//! Rollups of real traffic: windows add up to what the test itself wrote and read.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::Table;
use crate::many::crowds;
use crate::support::probe::Need;
use crate::support::sock::{ClosedPort, V, dial, drain, exchange, pair_with};
use crate::support::tracer::{Start, Tracer};
use crate::support::{net, patience, schema, small};

/// The trials.
pub fn table() -> Table {
    Table::new("rollups")
        .own("a_stream_over_windows", &[], a_stream_over_windows)
        .own("still_connecting", &[Need::Nft], still_connecting)
        .own("never_accepted", &[], never_accepted)
        .own("fifty_thousand", &[], fifty_thousand)
}

/// The `rollup` lines of a tracer.
#[derive(Default)]
pub struct Lines {
    all: Mutex<Vec<Value>>,
    news: Condvar,
}

impl Lines {
    /// Waits until `found` finds what it looks for among them.
    pub fn wait<T>(&self, found: impl Fn(&[Value]) -> Option<T>) -> T {
        let mut all = self.all.lock().unwrap();
        loop {
            if let Some(value) = found(&all) {
                return value;
            }
            // For as long as they keep coming.
            let (lines, waited) = self.news.wait_timeout(all, patience()).unwrap();
            assert!(!waited.timed_out(), "nothing more in {:?}: {lines:#?}", patience());
            all = lines;
        }
    }

    fn sum(&self, field: &str) -> u64 {
        self.all.lock().unwrap().iter().map(|line| number(line, field)).sum()
    }
}

/// A field that is a number.
pub fn number(line: &Value, field: &str) -> u64 {
    line[field].as_u64().unwrap_or_else(|| panic!("{field} of {line}"))
}

/// A tracer that rolls up, and its lines. The summary is not among them.
pub fn rolling(args: &[&str]) -> (Tracer, Arc<Lines>) {
    let lines = Arc::new(Lines::default());
    let tracer = Start::new(&[&["-o", "json", "--rollup"], args].concat())
        .lines({
            let lines = Arc::clone(&lines);
            move |line| {
                let value: Value = serde_json::from_slice(line).expect("JSON");
                schema::check(&value).unwrap_or_else(|error| panic!("{error}: {value}"));
                if value["type"] == "rollup" {
                    lines.all.lock().unwrap().push(value);
                    lines.news.notify_all();
                }
            }
        })
        .tracing();
    (tracer, lines)
}

/// What moves is told while the connection is open: of each exchange before the next begins.
fn a_stream_over_windows() {
    let server = net::address(0);
    let listener = TcpListener::bind((server, 0)).unwrap();
    // In windows of five seconds, as it is without a flag.
    let (tracer, lines) = rolling(&["--by", "connection", "--to-ip", &server.to_string()]);
    let window = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 5;
    let earliest = window();
    let pair = pair_with(&listener);
    let first = window();
    let (mut up, mut down) = (0, 0);
    for _ in 0..3 {
        exchange(&pair, 12_345, 77);
        (up, down) = (up + 12_345, down + 77);
        let sum = |lines: &[Value]| lines.iter().map(|line| number(line, "sent_bytes")).sum::<u64>();
        lines.wait(|lines| (sum(lines) == up + down).then_some(()));
    }
    let last = window();
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    let latest = window();
    let both = |lines: &[Value]| (lines.iter().map(|line| number(line, "closed")).sum::<u64>() == 2).then_some(());
    lines.wait(both);
    assert!(tracer.interrupt().status.success());
    for (direction, sent, received) in [("outbound", up, down), ("inbound", down, up)] {
        let all = lines.all.lock().unwrap();
        let windows: Vec<_> = all
            .iter()
            .filter(|line| line["group"]["direction"] == direction)
            .collect();
        let sum = |field: &str| windows.iter().map(|line| number(line, field)).sum::<u64>();
        assert_eq!(
            (sum("sent_bytes"), sum("received_bytes")),
            (sent, received),
            "{direction}"
        );
        assert_eq!((sum("opened"), sum("closed"), sum("failed")), (1, 1, 0));
        let expected = last - first + 1..=latest - earliest + 1;
        assert!(expected.contains(&(windows.len() as u64)), "{} windows", windows.len());
        let starts: Vec<_> = windows
            .iter()
            .map(|line| line["window_start"].as_str().unwrap())
            .collect();
        assert!(starts.is_sorted_by(|one, two| one < two), "{starts:?}");
        let (last, before) = windows.split_last().unwrap();
        assert!(before.iter().all(|line| number(line, "open") == 1), "{before:#?}");
        assert_eq!(number(last, "open"), 0);
        let moving = before.iter().filter(|line| number(line, "sent_bytes") > 0).count();
        assert!(moving >= 3, "three exchanges, each told before the next: {before:#?}");
    }
}

fn still_connecting() {
    let closed = ClosedPort::new();
    let to = closed.at(V::Four);
    net::rules(&[&format!("tcp dport {} drop", to.port())]);
    let port = to.port().to_string();
    let (tracer, lines) = rolling(&["--interval", "200ms", "--by", "port", "--port", &port]);
    let attempt = dial(V::Four.at(0), to);
    lines.wait(|lines| (lines.iter().filter(|line| number(line, "connecting") == 1).count() >= 2).then_some(()));
    drop(attempt.socket);
    let line = lines.wait(|lines| lines.iter().find(|line| number(line, "closed") == 1).cloned());
    assert_eq!((number(&line, "failed"), number(&line, "connecting")), (1, 0), "{line}");
    assert_eq!(line["outcomes"], json!({"connect_aborted": 1}));
    assert_eq!(line["group"]["dst"]["port"], to.port());
    assert_eq!(lines.sum("opened") + lines.sum("open"), 0);
    assert!(tracer.interrupt().status.success());
}

/// A server that hangs: no descriptor leads to its ends, so no scan reaches them. They stay open in every window, until they end.
fn never_accepted() {
    const CLIENTS: u64 = 10;
    let listener = TcpListener::bind((net::address(0), 0)).unwrap();
    let to = listener.local_addr().unwrap();
    let port = to.port().to_string();
    let (tracer, lines) = rolling(&["--interval", "300ms", "--by", "port", "--port", &port]);
    let clients: Vec<_> = (0..CLIENTS).map(|_| TcpStream::connect(to).unwrap()).collect();
    let open = |lines: &[Value], direction: &str| -> Vec<(String, u64)> {
        let of_direction = lines.iter().filter(|line| line["group"]["direction"] == direction);
        of_direction
            .map(|line| (line["window_start"].as_str().unwrap().to_owned(), number(line, "open")))
            .collect()
    };
    // Scans of the clients' ends make windows. The server's ends need more than three windows.
    let all = lines.wait(|lines| {
        let full = open(lines, "outbound")
            .iter()
            .filter(|(_, open)| *open == CLIENTS)
            .count();
        (full >= 10).then(|| lines.to_vec())
    });
    let (outbound, inbound) = (open(&all, "outbound"), open(&all, "inbound"));
    let full: Vec<_> = outbound.iter().filter(|(_, open)| *open == CLIENTS).collect();
    // Of the last window the other group may not have been printed yet.
    for window in &full[1..full.len() - 1] {
        assert!(inbound.contains(window), "{window:?} of {inbound:?}");
    }
    drop((clients, listener));
    lines.wait(|lines| {
        let inbound = lines.iter().filter(|line| line["group"]["direction"] == "inbound");
        (inbound.map(|line| number(line, "closed")).sum::<u64>() == CLIENTS).then_some(())
    });
    assert!(tracer.interrupt().status.success());
    let last = open(&lines.all.lock().unwrap(), "inbound").pop();
    assert!(last.as_ref().is_some_and(|(_, open)| *open == 0), "{last:?}");
}

/// The sums over all groups and windows are those over all records, and those that the test knows.
fn fifty_thousand() {
    let servers: [Ipv4Addr; 4] = std::array::from_fn(|number| net::address(number as u8));
    let only = ["--to-ip", &net::list(&servers)];
    // A test that looks at two hundred thousand lines is slower than the tracer; what waits for it has room.
    let every = [
        "-o",
        "json",
        "--events",
        "open,update,close",
        "--interval",
        "1s",
        "--buffer",
        "256MiB",
    ];
    // Looked at lightly: what each line must be like is other tests' affair, and these are two hundred thousand.
    let records = Arc::new(Lines::default());
    let tracer = Start::new(&[&every[..], &only[..]].concat())
        .lines({
            let records = Arc::clone(&records);
            move |line| {
                let line: Value = serde_json::from_slice(line).expect("JSON");
                let kept = match line["event"].as_str() {
                    Some("open") => json!({"opened": 1, "closed": 0, "sent_bytes": 0, "received_bytes": 0}),
                    Some("close") => json!({"opened": 0, "closed": 1, "sent_bytes": line["sent_bytes"], "received_bytes": line["received_bytes"]}),
                    _ => return,
                };
                records.all.lock().unwrap().push(kept);
                records.news.notify_all();
            }
        })
        .tracing();
    let by = [
        "--by",
        "ip,process",
        "--interval",
        "1s",
        "--max-groups",
        "3",
        "--buffer",
        "256MiB",
    ];
    let (rolling, lines) = rolling(&[&by[..], &only].concat());
    let each = if small() { 500 } else { 12_500 };
    let wanted = crowds(&servers, each);
    let count = wanted.len() as u64;
    // Their ends are the test's to wait for; the sums are looked at afterwards.
    let closed = |count: u64| {
        move |lines: &[Value]| (lines.iter().map(|line| number(line, "closed")).sum::<u64>() == count).then_some(())
    };
    lines.wait(closed(count));
    assert!(tracer.interrupt().status.success());
    assert!(rolling.interrupt().status.success());
    let (sent, received): (u64, u64) = wanted.iter().fold((0, 0), |(sent, received), one| {
        (sent + one.sent, received + one.received)
    });
    for lines in [&records, &lines] {
        assert_eq!((lines.sum("closed"), lines.sum("opened")), (count, count));
        assert_eq!((lines.sum("sent_bytes"), lines.sum("received_bytes")), (sent, received));
    }
    assert_eq!(lines.sum("failed"), 0);
    let all = lines.all.lock().unwrap();
    // Eight groups were offered, four addresses from each end.
    assert!(all.iter().any(|line| line["group"]["other"] == true));
    assert_eq!(number(all.last().unwrap(), "open"), 0);
}
