//! Filters, as the kernel applies them.

mod kernel_filter;

use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::process::Command;

use serde_json::Value;
use socket2::{Protocol, SockAddr};

use crate::Topic;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::record_view::RecordView;
use crate::support::sock::{Truth, bound_socket, local_address, recv, reset, send, stream_socket, timed, wait_closed};
use crate::support::tracer::Tracer;

pub fn topic() -> Topic {
    Topic::new("filters")
        .standalone(RANDOM_FILTERS, &[Need::Exclusive], || run_alone(RANDOM_FILTERS))
        .standalone(LISTENER, &[Need::Exclusive, Need::RoleChange], || run_alone(LISTENER))
        .standalone(
            "simultaneous_open_has_two_outbound_ends",
            &[Need::Nft],
            simultaneous_open_has_two_outbound_ends,
        )
        .standalone(
            "transparent_proxy_is_filtered_by_original_port",
            &[Need::Tproxy],
            transparent_proxy_is_filtered_by_original_port,
        )
}

const RANDOM_FILTERS: &str = "kernel_filter_equals_the_rule";
const LISTENER: &str = "listener_that_connects_is_filtered_by_peer_port";

/// The hidden argument with which this program runs the scenario of the next argument.
pub const ARGUMENT: &str = "__filters";

/// Runs a scenario in a separate process: to load the programs, a process closes all its other descriptors for a
/// moment. No other scenario runs at the same time, since a socket that connects after it has listened counts as open
/// for each tracer, whatever its filter.
fn run_alone(scenario: &str) {
    let output = Command::new("/proc/self/exe")
        .args([ARGUMENT, scenario])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    print!("{}", String::from_utf8_lossy(&output.stdout));
}

/// The main function of the process that [`run_alone`] starts.
pub fn main(scenario: &str) {
    net::claim_addresses(0);
    match scenario {
        RANDOM_FILTERS => kernel_filter::kernel_filter_equals_the_rule(),
        LISTENER => kernel_filter::listener_that_connects_is_filtered_by_peer_port(),
        _ => unreachable!("no scenario {scenario}"),
    }
}

/// In a simultaneous open both ends are clients: a port filter compares the peer's port, and `--direction inbound`
/// passes neither record. The same rules apply to a socket that connects to itself.
fn simultaneous_open_has_two_outbound_ends() {
    let [one, other] = [1, 2].map(|number| bound_socket((net::loopback_v4(number), 0).into()));
    let own = bound_socket((net::loopback_v4(3), 0).into());
    let ports = [&one, &other, &own].map(|socket| local_address(socket).port());
    let [to_other, to_one, to_own] = [ports[1], ports[0], ports[2]].map(|port| port.to_string());
    let tracers = [
        (vec!["--direction", "inbound"], 0),
        (vec!["--direction", "outbound"], 3),
        (vec!["--port", &to_other], 1),
        (vec!["--port", &to_one], 1),
        (vec!["--port", &to_own], 1),
        (vec!["--port", "1"], 0),
    ]
    .map(|(args, count)| (Tracer::json(&args), args.join(" "), count));
    tracers
        .iter()
        .for_each(|(tracer, ..)| tracer.output.watch(net::current_netns()));
    let (first, second) = (local_address(&one), local_address(&other));
    // The first one's SYN is lost, and the second one's SYN arrives during its attempt.
    net::set_packet_filter(&[&format!(
        "tcp sport {} tcp dport {} tcp flags & (syn | ack) == syn drop",
        first.port(),
        second.port()
    )]);
    one.set_nonblocking(true).expect("O_NONBLOCK");
    assert!(one.connect(&SockAddr::from(second)).is_err());
    other.connect(&SockAddr::from(first)).expect("connect");
    let (one, other) = (TcpStream::from(one), TcpStream::from(other));
    one.set_nonblocking(false).expect("O_NONBLOCK");
    send(&one, 10);
    recv(&other, 10);
    reset(one);
    wait_closed(&other);
    drop(other);
    own.connect(&SockAddr::from(local_address(&own))).expect("connect");
    reset(own.into());
    for (tracer, args, count) in &tracers {
        let exit = tracer.interrupt();
        assert!(exit.status.success(), "{args}");
        let records: Vec<Value> = exit
            .output
            .records(net::current_netns())
            .into_iter()
            .map(|record| record.value)
            .collect();
        assert_eq!(records.len(), *count, "{args}: {records:#?}");
        for value in records {
            let sent = if value["src"]["port"] == ports[0] { 10 } else { 0 };
            assert_eq!(
                (&value["direction"], &value["sent_bytes"]),
                (&"outbound".into(), &sent.into()),
                "{args}: {value}"
            );
        }
    }
}

/// A transparent proxy (TPROXY) accepts connections to another port than its own. A port filter compares the port that
/// the client used, and the records name the proxy's process.
fn transparent_proxy_is_filtered_by_original_port() {
    const ORIGINAL_PORT: u16 = 80;
    let at = net::loopback_v4(1);
    let tracer = Tracer::json(&[
        "--port",
        &ORIGINAL_PORT.to_string(),
        "--pid",
        &std::process::id().to_string(),
    ]);
    let socket = stream_socket((at, 0).into(), Protocol::TCP);
    socket.set_ip_transparent_v4(true).expect("IP_TRANSPARENT");
    socket.bind(&SockAddr::from(SocketAddr::from((at, 0)))).expect("bind");
    socket.listen(16).expect("listen");
    let proxy = TcpListener::from(socket);
    let port = proxy.local_addr().expect("an address").port();
    net::transparent_proxy(ORIGINAL_PORT, SocketAddrV4::new(at, port)).expect("TPROXY");
    let view = RecordView::new(&tracer.output);
    let dst = SocketAddr::from((at, ORIGINAL_PORT));
    let (client, connect) = timed(|| TcpStream::connect(dst).expect("connect"));
    let (server, src) = proxy.accept().expect("accept");
    assert_eq!(server.local_addr().expect("an address"), dst);
    let truth = Truth::accepted_now(src, dst, connect);
    send(&client, 10);
    recv(&server, 10);
    reset(client);
    wait_closed(&server);
    drop(server);
    let inbound = truth.inbound().bytes(0, 10).reset_by_peer().found_by(&["listener"]);
    view.expect_among_others(&[truth.outbound().bytes(10, 0).reset_by_local(), inbound]);
}
