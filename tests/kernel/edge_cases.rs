//! Sockets that are used several times, Fast Open, MPTCP, a socket that connects to itself, and what has no record.

mod handshake;

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread::{self, sleep};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use serde_json::Value;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::Topic;
use crate::support::expect::Owner;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::record_view::RecordView;
use crate::support::sock::{
    ClosedPort, IpVersion, Pair, Span, Truth, accept, bound_socket, connect, connect_errno, connect_nonblocking,
    disconnect, errno_of, exchange, free_port, listen, local_address, pair, pair_with, recv, reset, send,
    set_tcp_option, stream_socket, take_error, timed, wait_acknowledged, wait_pending_error, wait_until,
};
use crate::support::tcp_info::TcpInfo;
use crate::support::tracer::{Totals, Tracer};

pub fn topic() -> Topic {
    const NFT: &[Need] = &[Need::Nft];
    let topic = Topic::new("edge_cases")
        .both_versions("reused_after_refusal", &[], reused_after_refusal)
        .both_versions("reused_after_disconnect", &[], reused_after_disconnect)
        .both_versions("tcp_repair_after_disconnect", &[], tcp_repair_after_disconnect)
        .both_versions("disconnected_while_connecting", NFT, disconnected_while_connecting)
        .both_versions("self_connect_is_one_record", &[], self_connect_is_one_record)
        .both_versions("fast_open", &[], fast_open)
        .both_versions("fast_open_connect", &[], fast_open_connect)
        .both_versions(
            "fast_open_connect_whose_syn_is_lost",
            NFT,
            fast_open_connect_whose_syn_is_lost,
        )
        .standalone(
            "connected_raw_socket_is_no_connection",
            &[],
            connected_raw_socket_is_no_connection,
        )
        .both_versions(
            "fast_open_server_closes_in_syn_recv",
            NFT,
            fast_open_server_closes_in_syn_recv,
        )
        .standalone(
            "filtered_fast_open_children_are_not_open",
            NFT,
            filtered_fast_open_children_are_not_open,
        )
        .standalone("deferred_connect_without_write", &[], deferred_connect_without_write)
        .both_versions("reset_before_deferred_accept", &[], reset_before_deferred_accept)
        .both_versions("mptcp", &[Need::Mptcp], mptcp)
        .both_versions("mptcp_falls_back", &[Need::Mptcp], mptcp_falls_back);
    handshake::add(topic)
        .both_versions("no_free_port_after_reset", &[], no_free_port_after_reset)
        .both_versions("no_free_port_after_refusal", &[], no_free_port_after_refusal)
        .both_versions(
            "pending_error_of_earlier_attempt",
            NFT,
            pending_error_of_earlier_attempt,
        )
        .both_versions(
            "pending_error_of_earlier_connection",
            &[],
            pending_error_of_earlier_connection,
        )
        .shared(
            "only_tcp_connections_have_records",
            &[],
            only_tcp_connections_have_records,
        )
        .shared("hbone_port_is_mutual_tls", &[], hbone_port_is_mutual_tls)
}

/// Connects a socket to `listener` and accepts.
fn connect_and_accept(listener: &TcpListener, socket: Socket) -> Pair {
    let connect = connect(&socket, listener.local_addr().unwrap());
    accept(listener, socket.into(), connect)
}

fn expect_refused(view: &RecordView, truth: &Truth) -> Value {
    let refused = truth
        .outbound()
        .connect_failed("refused", Some("ECONNREFUSED"), Some("peer"));
    view.expect(&[refused]).remove(0)
}

/// One socket, an attempt and a connection, with different ids.
fn reused_after_refusal(view: &RecordView, version: IpVersion) {
    let port = ClosedPort::new();
    let to = port.at(version);
    let socket = bound_socket(version.at(0));
    let src = local_address(&socket);
    let (errno, connect) = connect_errno(&socket, to);
    assert_eq!(errno, Errno::ECONNREFUSED);
    let first = expect_refused(view, &Truth::not_accepted(src, to, connect));
    drop(port);
    let listener = TcpListener::bind(to).unwrap();
    let pair = connect_and_accept(&listener, socket);
    exchange(&pair, 1000, 300);
    let second = view.expect_clean_close(pair, 1000, 300);
    assert!(first["id"] != second[0]["id"], "the same id twice");
}

/// Makes a connection, exchanges data, and disconnects the client. Returns the client's socket, the listener and the
/// id.
fn disconnected(view: &RecordView, version: IpVersion) -> (Socket, TcpListener, Value) {
    let listener = listen(version);
    let pair = connect_and_accept(&listener, bound_socket(version.at(0)));
    exchange(&pair, 1000, 300);
    wait_acknowledged(&pair.server);
    disconnect(&pair.client);
    assert_eq!(take_error(&pair.server), Errno::ECONNRESET);
    // The kernel sets ECONNRESET on the socket after the change of state that makes the record.
    let outbound = pair.truth.outbound().bytes(1000, 300).reset_by_local();
    let inbound = pair.truth.inbound().bytes(300, 1000).reset_by_peer();
    let records = view.expect(&[outbound.or_errno("ECONNRESET"), inbound.found_by(&["listener"])]);
    let socket = Socket::from(pair.client);
    let _ = socket.take_error();
    (socket, listener, records[0]["id"].clone())
}

/// The second connection of a socket has its own id, duration and bytes.
fn reused_after_disconnect(view: &RecordView, version: IpVersion) {
    let (socket, listener, id) = disconnected(view, version);
    let pair = connect_and_accept(&listener, socket);
    exchange(&pair, 77, 88);
    let records = view.expect_clean_close(pair, 77, 88);
    assert!(id != records[0]["id"], "the same id twice");
}

/// TCP_REPAIR connects and closes without a segment. The record has nothing of the socket's connection before.
fn tcp_repair_after_disconnect(view: &RecordView, version: IpVersion) {
    let (socket, listener, _) = disconnected(view, version);
    let dst = listener.local_addr().unwrap();
    set_tcp_option(&socket, libc::TCP_REPAIR, 1);
    let connect = connect(&socket, dst);
    let truth = Truth::not_accepted(local_address(&socket), dst, connect);
    drop(socket);
    view.expect(&[truth.outbound().reset_by_local().old_states(&["ESTABLISHED"])]);
}

fn disconnected_while_connecting(view: &RecordView, version: IpVersion) {
    let port = ClosedPort::blackhole();
    let attempt = connect_nonblocking(version.at(0), port.at(version));
    disconnect(&attempt.socket);
    let expected = attempt
        .truth
        .outbound()
        .connect_failed("connect_aborted", None, Some("local"));
    view.expect(&[expected.or_errno("ECONNRESET")]);
}

/// A socket that connects to its own address makes one record: what it sent is what it received.
fn self_connect_is_one_record(view: &RecordView, version: IpVersion) {
    let socket = bound_socket(version.at(0));
    let own = local_address(&socket);
    let connect = connect(&socket, own);
    let stream = TcpStream::from(socket);
    send(&stream, 500);
    recv(&stream, 500);
    drop(stream);
    // Its own FIN arrives before the ACK of it.
    view.expect(&[Truth::not_accepted(own, own, connect)
        .outbound()
        .bytes(500, 500)
        .ok("local")
        .old_states(&["CLOSING", "FIN_WAIT2"])]);
}

/// Enables Fast Open for clients and servers of this namespace, and listens with Fast Open.
fn fast_open_listener(version: IpVersion) -> TcpListener {
    net::set_sysctl("net.ipv4.tcp_fastopen", "3");
    let listener = listen(version);
    set_tcp_option(&listener, libc::TCP_FASTOPEN, 16);
    listener
}

/// Connects and sends with one call (MSG_FASTOPEN).
fn fast_open_send(socket: &Socket, to: &TcpListener, count: usize) -> (Errno, Span) {
    let to = SockAddr::from(to.local_addr().unwrap());
    timed(|| {
        errno_of(
            socket
                .send_to_with_flags(&vec![1; count], &to, libc::MSG_FASTOPEN)
                .map(|sent| assert_eq!(sent, count)),
        )
    })
}

/// Connects with Fast Open and accepts.
fn fast_open_pair(listener: &TcpListener, socket: Socket, count: usize) -> Pair {
    let (errno, connect) = fast_open_send(&socket, listener, count);
    assert!([Errno::from_raw(0), Errno::EINPROGRESS].contains(&errno), "{errno}");
    accept(listener, socket.into(), connect)
}

/// Whether the client's SYN had data: `TCPI_OPT_SYN_DATA`.
fn has_data_in_syn(client: &TcpStream) -> bool {
    const SYN_DATA: u8 = 32;
    TcpInfo::read(client).options() & SYN_DATA != 0
}

/// The first connection gets a cookie, the second sends its data with the SYN.
fn fast_open(view: &RecordView, version: IpVersion) {
    let listener = fast_open_listener(version);
    for (count, in_syn) in [(400, false), (500, true)] {
        let pair = fast_open_pair(&listener, version.socket(), count);
        recv(&pair.server, count);
        assert_eq!(has_data_in_syn(&pair.client), in_syn);
        exchange(&pair, 70, 200);
        view.expect_clean_close(pair, count as u64 + 70, 200);
    }
}

/// A pause between two events whose times a record must not confuse.
const PAUSE: Duration = Duration::from_millis(50);

/// With TCP_FASTOPEN_CONNECT the first write sends the SYN, and the attempt begins then. Without a cookie, connect()
/// sends the SYN.
fn fast_open_connect(view: &RecordView, version: IpVersion) {
    let listener = fast_open_listener(version);
    let dst = listener.local_addr().unwrap();
    for (count, in_syn) in [(400, false), (500, true)] {
        let socket = version.socket();
        set_tcp_option(&socket, libc::TCP_FASTOPEN_CONNECT, 1);
        let by_connect = connect(&socket, dst);
        let client = TcpStream::from(socket);
        if in_syn {
            sleep(PAUSE);
        }
        let ((), by_write) = timed(|| send(&client, count));
        let connect = if in_syn { by_write } else { by_connect };
        let pair = accept(&listener, client, connect);
        recv(&pair.server, count);
        assert_eq!(has_data_in_syn(&pair.client), in_syn);
        view.expect_clean_close(pair, count as u64, 0);
    }
}

/// The attempt begins with the first SYN, which is lost, not with the second one.
fn fast_open_connect_whose_syn_is_lost(view: &RecordView, version: IpVersion) {
    let listener = fast_open_listener(version);
    let dst = listener.local_addr().unwrap();
    let socket = version.socket();
    set_tcp_option(&socket, libc::TCP_FASTOPEN_CONNECT, 1);
    net::set_packet_filter_at("input", &[&format!("tcp dport {} counter drop", dst.port())]);
    let connect = thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("a SYN is dropped", || net::packet_filter_count("input") > 0);
            net::set_packet_filter_at("input", &[]);
        });
        connect(&socket, dst)
    });
    let pair = accept(&listener, socket.into(), connect);
    assert!(TcpInfo::read(&pair.client).total_retrans() > 0);
    exchange(&pair, 70, 200);
    view.expect_clean_close(pair, 70, 200);
}

/// The protocol of a raw socket may be that of TCP, and connect() sets its state to ESTABLISHED.
fn connected_raw_socket_is_no_connection() {
    let [local, peer] = [0, 1].map(|number| SocketAddr::from((net::loopback_v4(number), 0)));
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
    raw.bind(&local.into()).unwrap();
    raw.connect(&peer.into()).unwrap();
    let tracer = Tracer::json(&["--events", "update", "--interval", "200ms"]);
    let netns = net::current_netns();
    tracer.output.watch(netns);
    let open = pair(IpVersion::V4);
    let port = open.truth.dst.port();
    // Two scans have found it.
    tracer
        .output
        .wait_matching(netns, 4, |value| value["dst"]["port"] == port);
    let exit = tracer.interrupt();
    let others: Vec<_> = exit
        .output
        .records(netns)
        .into_iter()
        .map(|record| record.value)
        .collect();
    let others: Vec<_> = others.iter().filter(|value| value["dst"]["port"] != port).collect();
    assert!(others.is_empty(), "{others:#?}");
    assert_eq!(exit.check_lossless().open, 2);
    drop((raw, open));
}

/// Makes a first Fast Open connection, which gets a cookie. Then disables cookies, since the kernel may forget this
/// one: with 4 the client sends no cookie, with 512 the server needs none.
fn fast_open_without_cookies(view: &RecordView, listener: &TcpListener, version: IpVersion) {
    let pair = fast_open_pair(listener, version.socket(), 10);
    recv(&pair.server, 10);
    view.expect_clean_close(pair, 10, 0);
    net::set_sysctl("net.ipv4.tcp_fastopen", "519");
}

fn drop_syn_acks(listener: &TcpListener) {
    let port = listener.local_addr().unwrap().port();
    net::set_packet_filter(&[&format!("tcp sport {port} tcp flags & (syn | ack) == (syn | ack) drop")]);
}

fn nonblocking_socket(version: IpVersion) -> Socket {
    let socket = bound_socket(version.at(0));
    socket.set_nonblocking(true).unwrap();
    socket
}

/// The server has the data of the SYN, and closes before the handshake ends: its SYN-ACK is lost.
fn fast_open_server_closes_in_syn_recv(view: &RecordView, version: IpVersion) {
    let listener = fast_open_listener(version);
    fast_open_without_cookies(view, &listener, version);
    drop_syn_acks(&listener);
    let pair = fast_open_pair(&listener, nonblocking_socket(version), 500);
    // The start is this long before the end.
    sleep(PAUSE);
    drop(pair.server);
    // A RST in SYN_SENT.
    assert_eq!(take_error(&pair.client), Errno::ECONNREFUSED);
    view.expect(&[
        pair.truth
            .outbound()
            .undelivered(500)
            .connect_failed("refused", Some("ECONNREFUSED"), Some("peer")),
        pair.truth
            .inbound()
            .bytes(0, 500)
            .reset_by_local()
            .old_states(&["SYN_RECV"])
            .not_established(),
    ]);
}

/// The kernel sets the addresses of a Fast Open server's socket after it has created the socket. A socket that the
/// filter rejects by its addresses never counts as open. One that passes counts once it is established.
fn filtered_fast_open_children_are_not_open() {
    const SYN_RECV: u8 = 3;
    let listener = fast_open_listener(IpVersion::V4);
    net::set_sysctl("net.ipv4.tcp_fastopen", "519");
    let server = listener.local_addr().unwrap();
    let tracer_for = |to: IpAddr| {
        let tracer = Tracer::json(&["--to-ip", &to.to_string()]);
        tracer.output.watch(net::current_netns());
        tracer
    };
    let (passing, rejecting) = (tracer_for(server.ip()), tracer_for(net::loopback_v4(9).into()));
    let open = |tracer: &Tracer| {
        let totals = Totals::from_summary(&tracer.request_summary());
        totals.check();
        totals.open
    };
    let connect = || fast_open_pair(&listener, nonblocking_socket(IpVersion::V4), 100);
    let established = connect();
    assert_eq!(open(&rejecting), 0, "an established child");
    assert_eq!(open(&passing), 2, "both ends");
    drop_syn_acks(&listener);
    let half_open = connect();
    assert_eq!(TcpInfo::read(&half_open.server).state(), SYN_RECV);
    assert_eq!(open(&rejecting), 0, "a child in SYN_RECV");
    // The filter has not decided about the new child yet.
    assert_eq!(open(&passing), 3, "the new client");
    for pair in [established, half_open] {
        drop(pair.server);
        drop(pair.client);
    }
    passing.output.wait_matching(net::current_netns(), 4, |_| true);
    assert_eq!(open(&passing), 0, "all have ended");
    for (tracer, delivered) in [(passing, 4), (rejecting, 0)] {
        let totals = tracer.interrupt().check_lossless();
        assert_eq!((totals.delivered, totals.open), (delivered, 0), "{totals:?}");
    }
}

/// A deferred connect() without a write sends no SYN. It is not an attempt and has no record, although its state is
/// SYN_SENT.
fn deferred_connect_without_write() {
    let tracer = Tracer::json(&["--events", "open,update,close", "--interval", "200ms"]);
    let view = RecordView::new(&tracer.output);
    for version in [IpVersion::V4, IpVersion::V6] {
        let listener = fast_open_listener(version);
        let with_cookie = fast_open_pair(&listener, version.socket(), 10);
        recv(&with_cookie.server, 10);
        let socket = version.socket();
        set_tcp_option(&socket, libc::TCP_FASTOPEN_CONNECT, 1);
        connect(&socket, listener.local_addr().unwrap());
        let port = local_address(&socket).port();
        // The other connection has updates meanwhile.
        let is_update = |value: &Value| value["event"] == "update";
        tracer.output.wait_matching(view.netns(), 8, is_update);
        drop(socket);
        with_cookie.close_client_first();
        let is_close = |value: &Value| value["event"] == "close" && value["family"] == version.name();
        tracer.output.wait_matching(view.netns(), 2, is_close);
        for record in tracer.output.records(view.netns()) {
            let src_port = &record.value["src"]["port"];
            assert!(*src_port != 0 && *src_port != port, "{}", record.value);
        }
    }
    drop(view);
    assert!(tracer.interrupt().status.success());
}

/// With TCP_DEFER_ACCEPT the server creates a socket only when data arrives. The client resets before, so the server
/// has no record.
fn reset_before_deferred_accept(view: &RecordView, version: IpVersion) {
    let listener = listen(version);
    set_tcp_option(&listener, libc::TCP_DEFER_ACCEPT, 30);
    let dst = listener.local_addr().unwrap();
    let (client, connect) = timed(|| TcpStream::connect(dst).unwrap());
    let truth = Truth::not_accepted(client.local_addr().unwrap(), dst, connect);
    reset(client);
    drop(listener);
    view.expect(&[truth.outbound().reset_by_local()]);
}

/// The subflow is a plain TCP connection with the payload. A kernel worker closes it, at either end first.
fn mptcp(view: &RecordView, version: IpVersion) {
    mptcp_with(view, version, Protocol::MPTCP);
}

/// The client uses MPTCP, the server does not.
fn mptcp_falls_back(view: &RecordView, version: IpVersion) {
    mptcp_with(view, version, Protocol::TCP);
}

fn mptcp_with(view: &RecordView, version: IpVersion, server: Protocol) {
    let listener = stream_socket(version.at(0), server);
    listener.bind(&version.at(0).into()).unwrap();
    listener.listen(8).unwrap();
    let listener = TcpListener::from(listener);
    let client = stream_socket(listener.local_addr().unwrap(), Protocol::MPTCP);
    let pair = connect_and_accept(&listener, client);
    exchange(&pair, 1000, 300);
    let truth = pair.close_client_first();
    let ends = [
        truth.outbound().bytes(1000, 300).ok("local"),
        truth.inbound().bytes(300, 1000).ok("peer"),
    ];
    view.expect(&ends.map(|end| {
        let end = end.process(Owner::UnknownOr(std::process::id()));
        if server == Protocol::MPTCP {
            end.old_states(&[]).any_closed_by()
        } else {
            end
        }
    }));
}

/// Makes a connection that is reset by a disconnect, and leaves the error on the client's socket.
fn disconnected_with_pending_error(view: &RecordView, listener: &TcpListener, version: IpVersion) -> Socket {
    let pair = connect_and_accept(listener, version.socket());
    disconnect(&pair.client);
    assert_eq!(take_error(&pair.server), Errno::ECONNRESET);
    view.expect(&[
        pair.truth.outbound().reset_by_local().or_errno("ECONNRESET"),
        pair.truth.inbound().reset_by_peer().found_by(&["listener"]),
    ]);
    pair.client.into()
}

/// connect() that finds no free port sends no SYN and has no record, even after a connection whose error was not read.
fn no_free_port_after_reset(view: &RecordView, version: IpVersion) {
    let listener = listen(version);
    let socket = disconnected_with_pending_error(view, &listener, version);
    // The namespace has one port for connections, and this connection uses it.
    let port = free_port(version);
    net::set_sysctl("net.ipv4.ip_local_port_range", &format!("{port} {port}"));
    let last = pair_with(&listener);
    let (errno, _) = connect_errno(&socket, listener.local_addr().unwrap());
    assert_eq!(errno, Errno::EADDRNOTAVAIL);
    drop(socket);
    net::set_sysctl("net.ipv4.ip_local_port_range", "32768 60999");
    view.expect_clean_close(last, 0, 0);
}

/// connect() that finds no free port has no record, even after a refused attempt whose error was not read.
fn no_free_port_after_refusal(view: &RecordView, version: IpVersion) {
    let closed = ClosedPort::new();
    // The kernel would release a port that it chose when the attempt ends.
    let attempt = connect_nonblocking(version.at(free_port(version)), closed.at(version));
    wait_pending_error(&attempt.socket);
    expect_refused(view, &attempt.truth);
    disconnect(&attempt.socket);
    let listener = listen(version);
    // This connection has the addresses and ports that the next one would need.
    let pair = connect_and_accept(&listener, bound_socket(attempt.truth.src));
    let socket = Socket::from(attempt.socket);
    let (errno, _) = connect_errno(&socket, listener.local_addr().unwrap());
    assert_eq!(errno, Errno::EADDRNOTAVAIL);
    drop(socket);
    view.expect_clean_close(pair, 0, 0);
}

/// An attempt that its program closes has no errno, although the error of the attempt before was not read.
fn pending_error_of_earlier_attempt(view: &RecordView, version: IpVersion) {
    let closed = ClosedPort::new();
    let attempt = connect_nonblocking(version.at(0), closed.at(version));
    wait_pending_error(&attempt.socket);
    expect_refused(view, &attempt.truth);
    disconnect(&attempt.socket);
    net::set_packet_filter(&[&format!("tcp dport {} drop", closed.number())]);
    let socket = Socket::from(attempt.socket);
    let (errno, connect) = connect_errno(&socket, closed.at(version));
    assert_eq!(errno, Errno::EINPROGRESS);
    let truth = Truth::not_accepted(local_address(&socket), closed.at(version), connect);
    drop(socket);
    view.expect(&[truth.outbound().connect_failed("connect_aborted", None, Some("local"))]);
}

/// A connection that ends cleanly is `ok`, although the one before was reset and its error was not read.
fn pending_error_of_earlier_connection(view: &RecordView, version: IpVersion) {
    let listener = listen(version);
    let socket = disconnected_with_pending_error(view, &listener, version);
    let pair = connect_and_accept(&listener, socket);
    view.expect_clean_close(pair, 0, 0);
}

/// UDP sockets, Unix sockets, listeners and sockets that never connect have no records.
fn only_tcp_connections_have_records(view: &RecordView) {
    for version in [IpVersion::V4, IpVersion::V6] {
        let (one, other) = (
            UdpSocket::bind(version.at(0)).unwrap(),
            UdpSocket::bind(version.at(0)).unwrap(),
        );
        one.connect(other.local_addr().unwrap()).unwrap();
        one.send(b"hello").unwrap();
        other.recv(&mut [0; 5]).unwrap();
        drop(listen(version));
        drop(bound_socket(version.at(0)));
        drop(version.socket());
    }
    drop(UnixStream::pair().unwrap());
    view.expect_nothing();
}

/// Only the port of HBONE shows that a connection uses mutual TLS.
fn hbone_port_is_mutual_tls(view: &RecordView) {
    let listener = TcpListener::bind(IpVersion::V4.at(15008)).unwrap();
    let pair = pair_with(&listener);
    exchange(&pair, 1, 2);
    view.expect_clean_close(pair, 1, 2);
}
