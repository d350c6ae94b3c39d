//! The kernel's own reasons: why it sent a RST, which packets it dropped, which SYNs found no socket, which queues are
//! full. The truth is the packet filter's counters, `ss`, `/proc/net/netstat` and what the scenario does.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use nix::errno::Errno;
use serde_json::{Value, json};

use crate::Topic;
use crate::support::expect::is_address;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::sock::{
    ClosedPort, IpVersion, bound_socket, connect_blocking, connect_nonblocking, connect_nonblocking_with, listen,
    local_address, pair_with, recv, reset, send, set_tcp_option, take_error, wait_acknowledged, wait_pending_error,
    wait_until,
};
use crate::support::tracer::{Tracer, binary};

pub fn topic() -> Topic {
    Topic::new("reasons")
        .standalone_both_versions("drops_equal_the_counter_of_output", &[Need::Nft], |version| {
            drops_equal_the_counter("output", version);
        })
        .standalone_both_versions("drops_equal_the_counter_of_input", &[Need::Nft], |version| {
            drops_equal_the_counter("input", version);
        })
        .standalone_both_versions("rejected_by_packet_filter", &[Need::Nft], rejected_by_packet_filter)
        .standalone_both_versions("dropped_data_counts_at_both_ends", &[Need::Nft], dropped_data)
        .standalone(
            "drops_of_an_earlier_user_of_the_ports_do_not_count",
            &[Need::Nft],
            earlier_user,
        )
        .standalone(
            "same_tuple_in_two_namespaces",
            &[Need::Nft],
            same_tuple_in_two_namespaces,
        )
        .standalone("connections_without_drops_have_none", &[], connections_without_drops)
        .standalone(
            "drops_of_a_flood_are_evicted_and_reported",
            &[Need::Nft, Need::FullSize, Need::Exclusive],
            flood,
        )
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

/// Waits until the packet filter has dropped this many packets.
fn wait_dropped(hook: &str, count: u64) {
    wait_until("the packet filter drops", || net::packet_filter_count(hook) >= count);
}

fn drop_to(port: u16) -> String {
    format!("tcp dport {port} counter drop")
}

fn drops_equal_the_counter(hook: &str, version: IpVersion) {
    let tracer = start_tracer(&[]);
    let port = ClosedPort::new();
    net::set_packet_filter_at(hook, &[&drop_to(port.number())]);
    let attempt = connect_nonblocking(version.at(0), port.at(version));
    wait_dropped(hook, 1);
    drop(attempt.socket);
    let record = close_of(&tracer, "outbound", attempt.truth.src);
    assert_eq!(record["outcome"], "connect_aborted");
    assert_eq!(
        record["drops"],
        drops("sent", "NETFILTER_DROP", net::packet_filter_count(hook))
    );
    assert_eq!(record["reset_reason"], Value::Null);
    tracer.interrupt().check_lossless();
}

fn rejected_by_packet_filter(version: IpVersion) {
    let tracer = start_tracer(&[]);
    let port = ClosedPort::new();
    net::set_packet_filter_at(
        "input",
        &[&format!("tcp dport {} counter reject with tcp reset", port.number())],
    );
    let (errno, truth) = connect_blocking(version.at(0), port.at(version), |_| ());
    assert_eq!(errno, Errno::ECONNREFUSED);
    let record = close_of(&tracer, "outbound", truth.src);
    assert_eq!(record["outcome"], "refused");
    assert_eq!(record["drops"], drops("sent", "NETFILTER_DROP", 1));
    tracer.interrupt().check_lossless();
}

/// The client's data is dropped for a while. Both ends are on this node, and both records count the packets.
fn dropped_data(version: IpVersion) {
    const SEGMENTS: u64 = 3;
    let tracer = start_tracer(&[]);
    let listener = listen(version);
    let pair = pair_with(&listener);
    send(&pair.client, 100);
    recv(&pair.server, 100);
    wait_acknowledged(&pair.client);
    net::set_packet_filter_at("output", &[&drop_to(pair.truth.dst.port())]);
    // A segment for each call.
    pair.client.set_nodelay(true).unwrap();
    (0..SEGMENTS).for_each(|_| send(&pair.client, 100));
    wait_dropped("output", SEGMENTS);
    // The rule stays for the counter, and drops nothing more.
    let count = net::packet_filter_count("output");
    net::set_packet_filter_at("output", &[]);
    recv(&pair.server, 100 * SEGMENTS as usize);
    wait_acknowledged(&pair.client);
    let truth = pair.close_client_first();
    let [client, server] = ["outbound", "inbound"].map(|direction| close_of(&tracer, direction, truth.src));
    let counted = |record: &Value, direction: &str| {
        let drops = &record["drops"][0];
        assert_eq!(
            (&drops["direction"], &drops["reason"]),
            (&json!(direction), &json!("NETFILTER_DROP")),
            "{record}"
        );
        drops["packets"].as_u64().unwrap()
    };
    let (sent, received) = (counted(&client, "sent"), counted(&server, "received"));
    assert_eq!(sent, received);
    // A packet may have been dropped between the last look at the counter and the end of the rule.
    assert!(
        (count..=count + 1).contains(&sent),
        "{count} dropped, {sent} in {client}"
    );
    tracer.interrupt().check_lossless();
}

/// One connection after another with the same addresses and ports.
fn earlier_user() {
    let tracer = start_tracer(&[]);
    let version = IpVersion::V4;
    let port = ClosedPort::new();
    let to = port.at(version);
    net::set_packet_filter_at("output", &[&drop_to(to.port())]);
    let first = connect_nonblocking(version.at(0), to);
    wait_dropped("output", 1);
    let client = first.truth.src;
    drop(first.socket);
    assert_eq!(
        close_of(&tracer, "outbound", client)["drops"],
        drops("sent", "NETFILTER_DROP", 1)
    );
    let closes = |count: usize| {
        let is_close = |value: &Value| value["event"] == "close" && is_address(&value["src"], client);
        tracer
            .output
            .wait_matching(net::current_netns(), count, is_close)
            .pop()
            .unwrap()
    };
    // Another attempt.
    net::set_packet_filter_at("output", &[&drop_to(to.port())]);
    let second = connect_nonblocking(client, to);
    wait_dropped("output", 1);
    drop(second.socket);
    assert_eq!(closes(2)["drops"], drops("sent", "NETFILTER_DROP", 1));
    // One that is answered.
    net::set_packet_filter_at("output", &[]);
    drop(port);
    let listener = TcpListener::bind(to).unwrap();
    let socket = bound_socket(client);
    socket.connect(&to.into()).unwrap();
    let (server, _) = listener.accept().unwrap();
    reset(socket.into());
    assert_eq!(take_error(&server), Errno::ECONNRESET);
    drop(server);
    let records = {
        let is_last = |value: &Value| {
            value["event"] == "close" && value["established"] == true && is_address(&value["src"], client)
        };
        tracer.output.wait_matching(net::current_netns(), 2, is_last)
    };
    for record in records {
        assert_eq!(record["drops"], json!([]), "{record}");
    }
    tracer.interrupt().check_lossless();
}

/// Two namespaces have the same address, and a client in each has the same port. Each record has the packets of its
/// own.
fn same_tuple_in_two_namespaces() {
    const CLIENT: &str = "10.77.0.1:40000";
    const SERVER: &str = "10.77.0.1:9";
    let tracer = Tracer::json(&["--drops", "--interval", "200ms", "--ip", "10.77.0.1"]);
    let connect = || {
        net::run("ip", &["addr", "add", "10.77.0.1/32", "dev", "lo"]);
        tracer.output.watch(net::current_netns());
        net::set_packet_filter_at("output", &[&drop_to(9)]);
        let attempt = connect_nonblocking(CLIENT.parse().unwrap(), SERVER.parse().unwrap());
        wait_dropped("output", 1);
        (attempt, net::current_netns())
    };
    let (first, netns) = connect();
    let (count, other_count) = net::in_namespace("other", || {
        let (other, _) = connect();
        drop(other.socket);
        let record = close_of(&tracer, "outbound", other.truth.src);
        (
            record["drops"][0]["packets"].as_u64(),
            net::packet_filter_count("output"),
        )
    })
    .unwrap();
    assert_eq!(count, Some(other_count));
    drop(first.socket);
    let record = close_of(&tracer, "outbound", first.truth.src);
    assert_eq!(record["local"]["netns"], netns);
    assert_eq!(
        record["drops"],
        drops("sent", "NETFILTER_DROP", net::packet_filter_count("output"))
    );
    tracer.interrupt().check_lossless();
}

/// What ordinary connections discard is no drop.
fn connections_without_drops() {
    let tracer = start_tracer(&[]);
    let listener = listen(IpVersion::V4);
    for round in 0..60 {
        let pair = pair_with(&listener);
        send(&pair.client, 1000);
        recv(&pair.server, 1000);
        match round % 3 {
            0 => drop(pair.close_client_first()),
            1 => drop(pair.close_server_first()),
            // With unread data.
            _ => {
                send(&pair.client, 1000);
                wait_acknowledged(&pair.client);
                drop(pair.server);
                wait_pending_error(&pair.client);
            }
        }
    }
    let is_close = |value: &Value| value["event"] == "close";
    for record in tracer.output.wait_matching(net::current_netns(), 120, is_close) {
        assert_eq!(record["drops"], json!([]), "{record}");
    }
    tracer.interrupt().check_lossless();
}

/// More connections with dropped packets than the kernel's map holds: the counts of the oldest go, and no record.
fn flood() {
    const ATTEMPTS: usize = 20_000;
    let tracer = start_tracer(&[]);
    let port = ClosedPort::new();
    net::set_packet_filter_at("output", &[&drop_to(port.number())]);
    // Each attempt has its own port, and so its own count.
    for client in (10_000..).take(ATTEMPTS).filter(|client| *client != port.number()) {
        drop(connect_nonblocking(IpVersion::V4.at(client), port.at(IpVersion::V4)));
    }
    let end = tracer.interrupt();
    let totals = end.check_lossless();
    assert!(totals.delivered >= ATTEMPTS as u64 - 1, "{totals:?}");
    let evicted = end.output.summaries().last().unwrap()["drops_evicted"]
        .as_u64()
        .unwrap();
    // The kernel's map has 16,384 counts.
    assert!(evicted >= totals.delivered - 16_384, "{evicted} evicted");
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
    let netstat = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let lines: Vec<_> = netstat.lines().filter(|line| line.starts_with("TcpExt:")).collect();
    let index = lines[0].split(' ').position(|name| name == "ListenDrops").unwrap();
    lines[1].split(' ').nth(index).unwrap().parse().unwrap()
}
