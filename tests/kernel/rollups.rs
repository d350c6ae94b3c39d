//! Rollups of real traffic: the windows add up to what the test wrote and read.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::Topic;
use crate::support::probe::Need;
use crate::support::sock::{ClosedPort, IpVersion, connect_nonblocking, exchange, pair_with};
use crate::support::tracer::{Tracer, TracerCommand};
use crate::support::traffic::random_traffic_to_all;
use crate::support::{is_small_vm, large_buffer, net, schema, test_timeout};

pub fn topic() -> Topic {
    Topic::new("rollups")
        .standalone("windows_add_up_to_the_traffic", &[], windows_add_up_to_the_traffic)
        .standalone(
            "connecting_counts_as_connecting",
            &[Need::Nft],
            connecting_counts_as_connecting,
        )
        .standalone("never_accepted_stays_open", &[], never_accepted_stays_open)
        .standalone(
            "table_has_open_connections_in_every_window",
            &[Need::Nft, Need::Exclusive],
            table_has_open_connections_in_every_window,
        )
        .standalone("one_window_of_the_whole_run", &[], one_window_of_the_whole_run)
        .standalone("50_000_connections", &[], fifty_thousand_connections)
}

/// The `rollup` lines of a tracer.
#[derive(Default)]
pub struct RollupLines {
    lines: Mutex<Vec<Value>>,
    /// The `lost` and `summary` lines.
    reports: Mutex<Vec<Value>>,
    changed: Condvar,
}

impl RollupLines {
    fn push(&self, line: Value) {
        self.lines.lock().unwrap().push(line);
        self.changed.notify_all();
    }

    /// Waits until `find` returns something, as long as lines come.
    pub fn wait<T>(&self, find: impl Fn(&[Value]) -> Option<T>) -> T {
        let mut lines = self.lines.lock().unwrap();
        loop {
            if let Some(value) = find(&lines) {
                return value;
            }
            let (now, result) = self.changed.wait_timeout(lines, test_timeout()).unwrap();
            let reports = self.reports.lock().unwrap();
            assert!(
                !result.timed_out(),
                "no line for {:?}: {reports:?} {now:#?}",
                test_timeout()
            );
            lines = now;
        }
    }

    /// Waits until a member's sum over all lines is `expected`.
    fn wait_sum(&self, member: &str, expected: u64) {
        self.wait(|lines| (sum(lines, member) == expected).then_some(()));
    }

    fn sum(&self, member: &str) -> u64 {
        sum(&*self.lines.lock().unwrap(), member)
    }
}

/// Returns a number of a line.
pub fn number(line: &Value, member: &str) -> u64 {
    line[member].as_u64().unwrap_or_else(|| panic!("{member} of {line}"))
}

fn sum<'a>(lines: impl IntoIterator<Item = &'a Value>, member: &str) -> u64 {
    lines.into_iter().map(|line| number(line, member)).sum()
}

/// Starts a tracer that prints rollups, and collects them.
pub fn start_rollup(args: &[&str]) -> (Tracer, Arc<RollupLines>) {
    let lines = Arc::new(RollupLines::default());
    let tracer = TracerCommand::new(&[&["-o", "json", "--rollup"], args].concat())
        .on_line({
            let lines = Arc::clone(&lines);
            move |line| {
                let value: Value = serde_json::from_slice(line).expect("JSON");
                schema::check(&value).unwrap_or_else(|error| panic!("{error}: {value}"));
                match value["type"].as_str() {
                    Some("rollup") => lines.push(value),
                    _ => lines.reports.lock().unwrap().push(value),
                }
            }
        })
        .start();
    (tracer, lines)
}

/// The traffic of an open connection is in the windows before it closes: the test waits for the bytes of each exchange.
fn windows_add_up_to_the_traffic() {
    let server = net::loopback_v4(0);
    let listener = TcpListener::bind((server, 0)).unwrap();
    // The default windows of five seconds.
    let (tracer, lines) = start_rollup(&["--by", "connection", "--to-ip", &server.to_string()]);
    let window = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 5;
    let earliest = window();
    let pair = pair_with(&listener);
    let (mut up, mut down) = (0, 0);
    for _ in 0..3 {
        exchange(&pair, 12_345, 77);
        (up, down) = (up + 12_345, down + 77);
        lines.wait_sum("sent_bytes", up + down);
    }
    pair.close_client_first();
    let latest = window();
    lines.wait_sum("closed", 2);
    assert!(tracer.interrupt().status.success());
    for (direction, sent, received) in [("outbound", up, down), ("inbound", down, up)] {
        let all = lines.lines.lock().unwrap();
        let windows: Vec<_> = all
            .iter()
            .filter(|line| line["group"]["direction"] == direction)
            .collect();
        let sum = |member: &str| sum(windows.iter().copied(), member);
        assert_eq!(
            (sum("sent_bytes"), sum("received_bytes")),
            (sent, received),
            "{direction}"
        );
        assert_eq!((sum("opened"), sum("closed"), sum("failed")), (1, 1, 0));
        // A scan that is late on a busy machine leaves a window without records, and so without a line.
        let most = latest - earliest + 1;
        assert!(
            (4..=most).contains(&(windows.len() as u64)),
            "{} windows of {most}",
            windows.len()
        );
        let starts: Vec<_> = windows
            .iter()
            .map(|line| line["window_start"].as_str().unwrap())
            .collect();
        assert!(starts.is_sorted_by(|one, two| one < two), "{starts:?}");
        let (last, before) = windows.split_last().unwrap();
        assert!(before.iter().all(|line| number(line, "open") == 1), "{before:#?}");
        assert_eq!(number(last, "open"), 0);
        let with_traffic = before.iter().filter(|line| number(line, "sent_bytes") > 0).count();
        assert!(with_traffic >= 3, "three exchanges in three windows: {before:#?}");
    }
}

fn connecting_counts_as_connecting() {
    let closed = ClosedPort::blackhole();
    let port = closed.number().to_string();
    let (tracer, lines) = start_rollup(&["--interval", "200ms", "--by", "port", "--port", &port]);
    let attempt = connect_nonblocking(IpVersion::V4.at(0), closed.at(IpVersion::V4));
    lines.wait(|lines| {
        let connecting = lines.iter().filter(|line| number(line, "connecting") == 1);
        (connecting.count() >= 2).then_some(())
    });
    drop(attempt.socket);
    let line = lines.wait(|lines| lines.iter().find(|line| number(line, "closed") == 1).cloned());
    assert_eq!((number(&line, "failed"), number(&line, "connecting")), (1, 0), "{line}");
    assert_eq!(line["outcomes"], json!({"connect_aborted": 1}));
    assert_eq!(line["group"]["dst"]["port"], closed.number());
    assert_eq!(lines.sum("opened") + lines.sum("open"), 0);
    assert!(tracer.interrupt().status.success());
}

/// A stream and an attempt from before tracing are in every block of a printed table, with a rate and a port. A scan at
/// the stop fills the last block.
fn table_has_open_connections_in_every_window() {
    let listener = TcpListener::bind(IpVersion::V4.at(0)).unwrap();
    let closed = ClosedPort::blackhole();
    let stream = pair_with(&listener);
    // The bytes from before tracing make no rate.
    (0..20).for_each(|_| exchange(&stream, 1_000_000, 0));
    let attempt = connect_nonblocking(IpVersion::V4.at(0), closed.at(IpVersion::V4));
    let (port, waiting) = (stream.truth.dst.port().to_string(), closed.number().to_string());
    let ports = format!("{port},{waiting}");
    let trace = |interval: &str, traffic: &dyn Fn(&dyn Fn() -> usize)| -> Vec<String> {
        let text = Arc::new(Mutex::new(String::new()));
        let args = ["-o", "table", "--by", "ip", "--interval", interval, "--port", &ports];
        let tracer = TracerCommand::new(&args)
            .on_line({
                let text = Arc::clone(&text);
                move |line| *text.lock().unwrap() += &String::from_utf8_lossy(line)
            })
            .start();
        traffic(&|| blocks(&text.lock().unwrap()).len());
        assert!(tracer.interrupt().status.success());
        let text = text.lock().unwrap();
        blocks(&text)
    };
    let row = |block: &str, port: &str| -> String {
        let is_row = |line: &&str| line.contains("out ") && line.contains(&format!(":{port}"));
        let row = block.lines().find(is_row);
        row.unwrap_or_else(|| panic!("no row with port {port}: {block}"))
            .to_owned()
    };
    let check = |block: &str| {
        let stream = row(block, &port);
        let words: Vec<_> = stream.split_whitespace().collect();
        assert!(words.contains(&"1"), "not open: {block}");
        // 20 MB from before tracing would be more, and the stream less, however late a scan is.
        if let Some(unit) = words.iter().position(|word| word.ends_with("iB/s")) {
            let rate: f64 = words[unit - 1].parse().unwrap();
            assert!(
                words[unit] == "KiB/s" || rate < 4.0,
                "bytes from before tracing: {block}"
            );
        }
        assert!(row(block, &waiting).contains(" 0+1 "), "{block}");
    };

    let windows = trace("1s", &|count| {
        while count() < 3 {
            exchange(&stream, 1_000, 100);
            thread::sleep(Duration::from_millis(10));
        }
    });
    windows.iter().for_each(|block| check(block));
    // Only the scan at the stop finds the bytes of a window that ends with the run.
    let whole_run = trace("all", &|_| exchange(&stream, 10_000, 100));
    let [block] = whole_run.as_slice() else {
        panic!("not one block: {whole_run:?}");
    };
    check(block);
    assert!(row(block, &port).contains("B/s"), "{block}");
    drop(attempt);
}

/// Returns the blocks of a printed table.
fn blocks(text: &str) -> Vec<String> {
    let blocks = text.split("\n\n").filter(|block| !block.trim().is_empty());
    blocks.map(str::to_owned).collect()
}

fn one_window_of_the_whole_run() {
    let listener = TcpListener::bind(IpVersion::V4.at(0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let stream = pair_with(&listener);
    let (tracer, lines) = start_rollup(&["--interval", "all", "--by", "pid", "--port", &port]);
    let pair = pair_with(&listener);
    exchange(&pair, 1000, 50);
    drop(pair);
    exchange(&stream, 333, 22);
    let exit = tracer.interrupt();
    assert!(exit.status.success());
    let lines = lines.lines.lock().unwrap();
    assert_eq!(lines.len(), 2, "one for each end: {lines:#?}");
    for line in lines.iter() {
        assert_eq!(line["group"]["process"], json!({"pid": std::process::id()}), "{line}");
        assert_eq!(
            (number(line, "open"), number(line, "closed"), number(line, "opened")),
            (1, 1, 1),
            "{line}"
        );
        assert_eq!(
            number(line, "sent_bytes") + number(line, "received_bytes"),
            1405,
            "{line}"
        );
    }
}

/// A server that never accepts: no descriptor leads to its ends. They are open in every window until they end.
fn never_accepted_stays_open() {
    const CLIENTS: u64 = 10;
    let listener = TcpListener::bind((net::loopback_v4(0), 0)).unwrap();
    let to = listener.local_addr().unwrap();
    let port = to.port().to_string();
    let (tracer, lines) = start_rollup(&["--interval", "300ms", "--by", "port", "--port", &port]);
    let clients: Vec<_> = (0..CLIENTS).map(|_| TcpStream::connect(to).unwrap()).collect();
    // The windows of a direction: when each starts, and its open connections.
    let windows = |lines: &[Value], direction: &str| -> Vec<(String, u64)> {
        let of_direction = lines.iter().filter(|line| line["group"]["direction"] == direction);
        of_direction
            .map(|line| (line["window_start"].as_str().unwrap().to_owned(), number(line, "open")))
            .collect()
    };
    let all_open = |windows: Vec<(String, u64)>| -> Vec<(String, u64)> {
        windows.into_iter().filter(|(_, open)| *open == CLIENTS).collect()
    };
    // Updates of the clients' ends make windows. The server's ends are in more than three windows.
    let lines_so_far = lines.wait(|lines| {
        let windows = all_open(windows(lines, "outbound"));
        (windows.len() >= 10).then(|| lines.to_vec())
    });
    let outbound = all_open(windows(&lines_so_far, "outbound"));
    let inbound = windows(&lines_so_far, "inbound");
    // The inbound group of the last window may not be printed yet.
    for window in &outbound[1..outbound.len() - 1] {
        assert!(inbound.contains(window), "{window:?} of {inbound:?}");
    }
    drop((clients, listener));
    lines.wait(|lines| {
        let inbound = lines.iter().filter(|line| line["group"]["direction"] == "inbound");
        (sum(inbound, "closed") == CLIENTS).then_some(())
    });
    assert!(tracer.interrupt().status.success());
    let last = windows(&lines.lines.lock().unwrap(), "inbound").pop();
    assert!(last.as_ref().is_some_and(|(_, open)| *open == 0), "{last:?}");
}

/// Starts a tracer that prints all events, and collects what a rollup counts of each.
fn start_all_events(only: &[&str]) -> (Tracer, Arc<RollupLines>) {
    let args = [
        "-o",
        "json",
        "--events",
        "open,update,close",
        "--interval",
        "1s",
        "--buffer",
        large_buffer(),
    ];
    let events = Arc::new(RollupLines::default());
    let tracer = TracerCommand::new(&[&args[..], only].concat())
        .on_line({
            let events = Arc::clone(&events);
            move |line| {
                let line: Value = serde_json::from_slice(line).expect("JSON");
                let (sent, received) = (&line["sent_bytes"], &line["received_bytes"]);
                events.push(match line["event"].as_str() {
                    Some("open") => json!({"opened": 1, "closed": 0, "sent_bytes": 0, "received_bytes": 0}),
                    Some("close") => json!({"opened": 0, "closed": 1, "sent_bytes": sent, "received_bytes": received}),
                    Some(_) => return,
                    None => return events.reports.lock().unwrap().push(line),
                });
            }
        })
        .start();
    (tracer, events)
}

/// The sums over all groups and windows equal the sums over all records, and the traffic.
fn fifty_thousand_connections() {
    let servers: [Ipv4Addr; 4] = std::array::from_fn(|number| net::loopback_v4(number as u8));
    let only = ["--to-ip", &net::comma_separated(&servers)];
    let (tracer, events) = start_all_events(&only);
    let args = [
        "--by",
        "ip,process",
        "--interval",
        "1s",
        "--max-groups",
        "3",
        "--buffer",
        large_buffer(),
    ];
    let (rollup, lines) = start_rollup(&[&args[..], &only].concat());
    let per_server = if is_small_vm() { 500 } else { 12_500 };
    let ends = random_traffic_to_all(&servers, per_server);
    let count = ends.len() as u64;
    // All connections have ended, and the kernel has recorded that, so the tracers print all records before they stop.
    assert!(tracer.interrupt().status.success());
    assert!(rollup.interrupt().status.success());
    let sent: u64 = ends.iter().map(|end| end.sent).sum();
    let received: u64 = ends.iter().map(|end| end.received).sum();
    for lines in [&events, &lines] {
        let reports = lines.reports.lock().unwrap();
        assert_eq!(
            (lines.sum("closed"), lines.sum("opened")),
            (count, count),
            "{reports:?}"
        );
        assert_eq!((lines.sum("sent_bytes"), lines.sum("received_bytes")), (sent, received));
    }
    assert_eq!(lines.sum("failed"), 0);
    let lines = lines.lines.lock().unwrap();
    // Three groups of eight: four addresses at each end.
    assert!(lines.iter().any(|line| line["group"]["other"] == true));
    assert_eq!(number(lines.last().unwrap(), "open"), 0);
}
