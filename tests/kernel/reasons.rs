//! The kernel's own reasons: why it sent a RST, which packets it dropped, which SYNs found no socket, which queues are
//! full. The truth is the packet filter's counters, `ss`, the counters of the network namespace and what the scenario
//! does.

mod drops;

use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use nix::errno::Errno;
use serde_json::{Value, json};

use crate::Topic;
use crate::support::expect::is_address;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::sock::{
    ClosedPort, IpVersion, bound_socket, connect_blocking, connect_nonblocking_with, listen, local_address, pair_with,
    reset, send, set_tcp_option, take_error, wait_acknowledged, wait_pending_error, wait_until,
};
use crate::support::tracer::{Tracer, binary};

pub fn topic() -> Topic {
    drops::add(Topic::new("reasons"))
        .standalone_both_versions("closed_port_is_reported", &[Need::ResetReasons], closed_port)
        .standalone(
            "port_scan_is_bounded",
            &[Need::ResetReasons, Need::FullSize, Need::Exclusive],
            port_scan,
        )
        .standalone_both_versions("reset_reasons_of_this_end", &[Need::ResetReasons], reset_reasons)
        .standalone("reset_of_a_stub_is_a_reject", &[Need::ResetReasons], reset_of_a_stub)
        .standalone(
            "reset_reason_of_a_killed_connection",
            &[Need::ResetReasons, Need::SocketDestroy],
            killed,
        )
        .standalone(
            "rejects_need_a_kernel_with_reasons",
            &[Need::NoResetReasons],
            rejects_need_reasons,
        )
        .standalone_both_versions("full_accept_queue", &[], full_accept_queue)
}

fn start_tracer(args: &[&str]) -> Tracer {
    let tracer = Tracer::json(&[&["--drops", "--interval", "200ms"], args].concat());
    tracer.output.watch(net::current_netns());
    tracer
}

/// Waits for the close of a connection from this client.
fn close_of(tracer: &Tracer, direction: &str, client: SocketAddr) -> Value {
    let is_it = |value: &Value| {
        value["event"] == "close" && value["direction"] == direction && is_address(&value["src"], client)
    };
    tracer.output.wait_matching(net::current_netns(), 1, is_it).remove(0)
}

fn drops(direction: &str, reason: &str, packets: u64) -> Value {
    json!([{"direction": direction, "reason": reason, "packets": packets}])
}

fn closed_port(version: IpVersion) {
    const ATTEMPTS: u64 = 5;
    let tracer = start_tracer(&["--events", "close,reject"]);
    let port = ClosedPort::new();
    let to = port.at(version);
    let mut clients = Vec::new();
    for _ in 0..ATTEMPTS {
        let (errno, truth) = connect_blocking(version.at(0), to, |_| ());
        assert_eq!(errno, Errno::ECONNREFUSED);
        clients.push(truth.src);
    }
    for client in &clients {
        let record = close_of(&tracer, "outbound", *client);
        assert_eq!(record["drops"], drops("sent", "NO_SOCKET", 1), "{record}");
    }
    let mut count = 0;
    wait_until("all RSTs are reported", || {
        let lines = tracer.output.reports("reject");
        count = lines.iter().map(|line| line["count"].as_u64().unwrap()).sum();
        count >= ATTEMPTS
    });
    assert_eq!(count, ATTEMPTS);
    for line in tracer.output.reports("reject") {
        assert!(is_address(&line["dst"], to), "{line}");
        assert_eq!(line["src"], json!({"ip": clients[0].ip()}), "{line}");
        assert_eq!(
            (&line["reason"], &line["netns"]),
            (&json!("NO_SOCKET"), &json!(net::current_netns())),
            "{line}"
        );
    }
    tracer.interrupt().check_lossless();
}

/// A scan of many ports: each connection has its record, and no RST is reported twice.
fn port_scan() {
    const PORTS: std::ops::Range<u16> = 2_000..12_000;
    let tracer = start_tracer(&["--events", "close,reject"]);
    let mut refused = 0;
    for port in PORTS {
        let (errno, _) = connect_blocking(IpVersion::V4.at(0), IpVersion::V4.at(port), |_| ());
        refused += u64::from(errno == Errno::ECONNREFUSED);
    }
    let end = tracer.interrupt();
    assert_eq!(end.check_lossless().delivered, refused);
    let count: u64 = end
        .output
        .reports("reject")
        .iter()
        .map(|line| line["count"].as_u64().unwrap())
        .sum();
    assert!((1..=refused).contains(&count), "{count} of {refused}");
}

fn reset_reasons(version: IpVersion) {
    let tracer = start_tracer(&[]);
    let listener = listen(version);
    let unread = pair_with(&listener);
    send(&unread.client, 10);
    wait_acknowledged(&unread.client);
    drop(unread.server);
    assert_eq!(take_error(&unread.client), Errno::ECONNRESET);
    let lingering = pair_with(&listener);
    reset(lingering.server);
    assert_eq!(take_error(&lingering.client), Errno::ECONNRESET);
    let to = listener.local_addr().unwrap();
    let queued = TcpStream::connect(to).unwrap();
    let queued_from = queued.local_addr().unwrap();
    drop(listener);
    wait_pending_error(&queued);
    for (client, reason) in [
        (unread.truth.src, "TCP_ABORT_ON_CLOSE"),
        (lingering.truth.src, "TCP_STATE"),
        (queued_from, "TCP_STATE"),
    ] {
        let server = close_of(&tracer, "inbound", client);
        assert_eq!(
            (&server["outcome"], &server["reset_reason"]),
            (&json!("reset_by_local"), &json!(reason)),
            "{server}"
        );
        let client = close_of(&tracer, "outbound", client);
        assert_eq!(
            (&client["outcome"], &client["reset_reason"]),
            (&json!("reset_by_peer"), &Value::Null),
            "{client}"
        );
    }
    tracer.interrupt().check_lossless();
}

/// Data arrives when only the time-wait stub is left of the end that closed first.
fn reset_of_a_stub() {
    let tracer = start_tracer(&["--events", "close,reject"]);
    let listener = listen(IpVersion::V4);
    let pair = pair_with(&listener);
    // The kernel puts a stub in place of an orphan in FIN_WAIT2 whose wait is short.
    set_tcp_option(&pair.client, nix::libc::TCP_LINGER2, 1);
    let client = pair.truth.src;
    drop(pair.client);
    let record = close_of(&tracer, "outbound", client);
    send(&pair.server, 5);
    assert_eq!(take_error(&pair.server), Errno::EPIPE);
    assert_eq!(
        (&record["outcome"], &record["reset_reason"]),
        (&json!("ok"), &Value::Null),
        "{record}"
    );
    // The stub's address is what the segment was for.
    tracer.output.wait_report("reject", |line| {
        (line["reason"] == "TCP_TIMEWAIT_SOCKET" && is_address(&line["dst"], client)).then_some(())
    });
    tracer.interrupt().check_lossless();
}

fn killed() {
    let tracer = start_tracer(&[]);
    let pair = pair_with(&listen(IpVersion::V4));
    net::run(
        "ss",
        &["-K", "-t", "-n", &format!("dport = :{}", pair.truth.dst.port())],
    );
    let record = close_of(&tracer, "outbound", pair.truth.src);
    assert_eq!(
        (&record["outcome"], &record["reset_reason"]),
        (&json!("reset_by_local"), &json!("TCP_STATE")),
        "{record}"
    );
    tracer.interrupt().check_lossless();
}

fn rejects_need_reasons() {
    let output = Command::new(binary())
        .args(["--no-resolve", "--events", "reject"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("--events reject needs a kernel that says why it sends a RST"),
        "{stderr}"
    );
}

/// Clients of a server that does not accept: its queue is full, and SYNs are dropped.
fn full_accept_queue(version: IpVersion) {
    const LIMIT: i32 = 2;
    let tracer = start_tracer(&["--events", "close,listener"]);
    let socket = bound_socket(version.at(0));
    let to = local_address(&socket);
    socket.listen(LIMIT).unwrap();
    // The kernel's limit is one above what listen() asks for.
    let queued: Vec<_> = (0..=LIMIT).map(|_| TcpStream::connect(to).unwrap()).collect();
    let late = connect_nonblocking_with(version.at(0), to, |_| ());
    let truth = |column: usize| {
        let shown = net::run("ss", &["-ltnH", "sport", "=", &format!(":{}", to.port())]);
        shown.split_whitespace().nth(column).unwrap().parse::<u64>().unwrap()
    };
    let (backlog, max_backlog) = (truth(1), truth(2));
    assert_eq!((backlog, max_backlog), (queued.len() as u64, LIMIT as u64));
    let full = |line: &Value| {
        let drops = line["dropped_total"].as_u64().unwrap();
        (is_address(&line["dst"], to) && line["backlog"] == backlog && drops > 0).then(|| line.clone())
    };
    let line = tracer.output.wait_report("listener", full);
    assert_eq!(
        (&line["max_backlog"], &line["half_open"]),
        (&json!(max_backlog), &json!(0)),
        "{line}"
    );
    assert_eq!(line["process"]["pid"], std::process::id(), "{line}");
    assert_eq!(line["local"]["netns"], net::current_netns(), "{line}");
    drop(late.socket);
    // No more SYNs come, so the last line has all drops, which the namespace has counted too.
    let dropped = || {
        tracer
            .output
            .reports("listener")
            .into_iter()
            .filter_map(|line| is_address(&line["dst"], to).then(|| line["dropped_total"].as_u64().unwrap()))
            .max()
    };
    wait_until("the drops are those that the namespace counted", || {
        dropped() == Some(listen_drops())
    });
    // In the sum of the lines, each drop counts once.
    let lines = tracer.output.reports("listener");
    let of_it = lines.iter().filter(|line| is_address(&line["dst"], to));
    let sum: u64 = of_it.map(|line| line["dropped"].as_u64().unwrap()).sum();
    assert!(sum <= listen_drops());
    drop((queued, socket));
    tracer.interrupt().check_lossless();
}

/// `TcpExtListenDrops` of the namespace.
fn listen_drops() -> u64 {
    kernel_count("netstat", "TcpExt", "ListenDrops")
}

/// Returns a counter of the calling thread's network namespace, from `/proc/net/FILE`.
fn kernel_count(file: &str, group: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with(&format!("{group}:")))
        .collect();
    let index = lines[0].split(' ').position(|known| known == name).unwrap();
    lines[1].split(' ').nth(index).unwrap().parse().unwrap()
}
