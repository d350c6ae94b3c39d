//! The ways in which an established connection ends, by FIN or RST of either end.

use std::net::{Shutdown, TcpListener, TcpStream};

use nix::errno::Errno;
use nix::libc;

use crate::Topic;
use crate::support::expect::Expected;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::record_view::RecordView;
use crate::support::sock::{
    IpVersion, Pair, Truth, accept, bound_socket, connect, drain, exchange, exchanged_pair, listen, pair, recv, reset,
    send, set_option, set_tcp_option, take_error, timed, wait_acknowledged, wait_fin_acknowledged, wait_pending_error,
    wait_until,
};
use crate::support::tcp_info::TcpInfo;

pub fn topic() -> Topic {
    const NFT: &[Need] = &[Need::Nft];
    Topic::new("closing")
        .both_versions("client_closes_first", &[], client_closes_first)
        .both_versions("server_closes_first", &[], server_closes_first)
        .both_versions("both_close_at_once", NFT, both_close_at_once)
        .both_versions("client_half_closes", &[], client_half_closes)
        .both_versions("server_half_closes", &[], server_half_closes)
        .both_versions("shutdown_of_both_ends", &[], shutdown_of_both_ends)
        .both_versions("client_resets", &[], client_resets)
        .both_versions("server_resets", &[], server_resets)
        .both_versions("client_has_unread_data", &[], client_has_unread_data)
        .both_versions("server_has_unread_data", &[], server_has_unread_data)
        .both_versions("rst_to_time_wait", &[], rst_to_time_wait)
        .both_versions("rst_in_fin_wait2", &[], rst_in_fin_wait2)
        .both_versions("rst_in_fin_wait1", NFT, rst_in_fin_wait1)
        .both_versions("rst_in_close_wait", &[], rst_in_close_wait)
        .both_versions("undelivered_bytes_at_reset", NFT, undelivered_bytes_at_reset)
        .both_versions("data_to_time_wait", &[], data_to_time_wait)
        .both_versions("data_to_time_wait_at_once", &[], data_to_time_wait_at_once)
        .both_versions("pending_icmp_error", NFT, pending_icmp_error)
        .both_versions("data_before_fin_is_sent", &[], data_before_fin_is_sent)
        .both_versions("data_before_fin_arrives", NFT, data_before_fin_arrives)
        .both_versions("data_with_ack_of_fin", NFT, data_with_ack_of_fin)
        .both_versions("listener_closes", &[], listener_closes)
        .both_versions("listener_closes_after_client", &[], listener_closes_after_client)
        .both_versions("same_addresses_50_times", &[], same_addresses_50_times)
        .both_versions("fin_wait2_without_linger", &[], fin_wait2_without_linger)
}

/// The expected records of both ends of [`exchanged_pair`].
fn ends(truth: &Truth) -> (Expected, Expected) {
    (truth.outbound().bytes(1000, 300), truth.inbound().bytes(300, 1000))
}

fn client_closes_first(view: &RecordView, version: IpVersion) {
    let (client, server) = ends(&exchanged_pair(version).close_client_first());
    view.expect(&[client.ok("local").old_states(&["FIN_WAIT2"]), server.ok("peer")]);
}

fn server_closes_first(view: &RecordView, version: IpVersion) {
    let (client, server) = ends(&exchanged_pair(version).close_server_first());
    view.expect(&[client.ok("peer"), server.ok("local").old_states(&["FIN_WAIT2"])]);
}

/// Each end closes before it receives the other's FIN: both FINs are lost at first, and cross when they are
/// retransmitted.
fn both_close_at_once(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    let port = pair.truth.dst.port();
    net::set_packet_filter(&[
        &format!("tcp dport {port} tcp flags & fin == fin drop"),
        &format!("tcp sport {port} tcp flags & fin == fin drop"),
    ]);
    let (client, server) = ends(&pair.truth);
    drop((pair.client, pair.server));
    net::set_packet_filter(&[]);
    view.expect(&[client.ok("local"), server.ok("local")]);
}

fn client_half_closes(view: &RecordView, version: IpVersion) {
    let pair = pair(version);
    send(&pair.client, 1000);
    pair.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.server), 1000);
    send(&pair.server, 300);
    drop(pair.server);
    assert_eq!(drain(&pair.client), 300);
    drop(pair.client);
    let (client, server) = ends(&pair.truth);
    view.expect(&[client.ok("local"), server.ok("peer")]);
}

fn server_half_closes(view: &RecordView, version: IpVersion) {
    let pair = pair(version);
    send(&pair.server, 300);
    pair.server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.client), 300);
    send(&pair.client, 1000);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 1000);
    drop(pair.server);
    let (client, server) = ends(&pair.truth);
    view.expect(&[client.ok("peer"), server.ok("local")]);
}

/// Both ends shut down long before they close. The connection ends with the second FIN, and the records do not wait for
/// close().
fn shutdown_of_both_ends(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    pair.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.server), 0);
    pair.server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.client), 0);
    let (client, server) = ends(&pair.truth);
    view.expect(&[client.ok("local"), server.ok("peer")]);
    drop((pair.client, pair.server));
    view.expect_nothing();
}

/// SO_LINGER of zero: a RST instead of a FIN.
fn client_resets(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    reset(pair.client);
    assert_eq!(take_error(&pair.server), Errno::ECONNRESET);
    let (client, server) = ends(&pair.truth);
    view.expect(&[
        client.reset_by_local().old_states(&["ESTABLISHED"]),
        server
            .reset_by_peer()
            .old_states(&["ESTABLISHED"])
            .found_by(&["listener"]),
    ]);
}

fn server_resets(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    reset(pair.server);
    assert_eq!(take_error(&pair.client), Errno::ECONNRESET);
    let (client, server) = ends(&pair.truth);
    view.expect(&[
        client.reset_by_peer().old_states(&["ESTABLISHED"]),
        server.reset_by_local().old_states(&["ESTABLISHED"]),
    ]);
}

/// close() with unread data sends a RST. The data had arrived, and counts as received.
fn client_has_unread_data(view: &RecordView, version: IpVersion) {
    let pair = pair(version);
    exchange(&pair, 1000, 0);
    send(&pair.server, 300);
    wait_acknowledged(&pair.client);
    wait_acknowledged(&pair.server);
    drop(pair.client);
    assert_eq!(take_error(&pair.server), Errno::ECONNRESET);
    let (client, server) = ends(&pair.truth);
    view.expect(&[
        client.reset_by_local().old_states(&["ESTABLISHED"]),
        server.reset_by_peer().found_by(&["listener"]),
    ]);
}

fn server_has_unread_data(view: &RecordView, version: IpVersion) {
    let pair = pair(version);
    send(&pair.client, 1000);
    wait_acknowledged(&pair.client);
    drop(pair.server);
    assert_eq!(take_error(&pair.client), Errno::ECONNRESET);
    view.expect(&[
        pair.truth.outbound().bytes(1000, 0).reset_by_peer(),
        pair.truth
            .inbound()
            .bytes(0, 1000)
            .reset_by_local()
            .old_states(&["ESTABLISHED"]),
    ]);
}

/// The server answers the client's FIN with a RST. By then the client's socket is a time-wait socket, and its record is
/// printed. (The ACK of a FIN may be delayed by 40 ms, so the test waits for the record.)
fn rst_to_time_wait(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    let (client, server) = ends(&pair.truth);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    view.expect(&[client.ok("local")]);
    reset(pair.server);
    view.expect(&[server
        .ended("reset_by_local", None, Some("peer"))
        .old_states(&["CLOSE_WAIT"])]);
}

/// The server answers the client's FIN with a RST while the client, which has only shut down, is in FIN_WAIT2.
fn rst_in_fin_wait2(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    pair.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.server), 0);
    wait_fin_acknowledged(&pair.client);
    reset(pair.server);
    assert_eq!(take_error(&pair.client), Errno::ECONNRESET);
    expect_reset_after_fin(view, &pair.truth, &["FIN_WAIT2"]);
}

/// The server's RST arrives instead of the ACK of the client's FIN. The client is an orphan in FIN_WAIT1.
fn rst_in_fin_wait1(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    drop_bare_acks(&pair);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    reset(pair.server);
    expect_reset_after_fin(view, &pair.truth, &["FIN_WAIT1"]);
}

/// The server resets after the client's FIN, which the client sees in this state.
fn expect_reset_after_fin(view: &RecordView, truth: &Truth, client_states: &'static [&'static str]) {
    let (client, server) = ends(truth);
    view.expect(&[
        client
            .ended("reset_by_peer", Some("ECONNRESET"), Some("local"))
            .old_states(client_states),
        server
            .ended("reset_by_local", None, Some("peer"))
            .old_states(&["CLOSE_WAIT"]),
    ]);
}

/// Drops the server's segments that have no data, FIN or RST.
fn drop_bare_acks(pair: &Pair) {
    // The length of the headers: 20 or 40, and 32.
    let headers = if pair.truth.dst.is_ipv4() { 52 } else { 72 };
    let port = pair.truth.dst.port();
    net::set_packet_filter(&[&format!(
        "tcp sport {port} tcp flags & (fin | rst | ack) == ack meta length {headers} drop"
    )]);
}

/// The client shuts down, then closes with unread data. The RST arrives at the server in CLOSE_WAIT, where the kernel
/// sets EPIPE.
fn rst_in_close_wait(view: &RecordView, version: IpVersion) {
    let pair = pair(version);
    pair.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.server), 0);
    send(&pair.server, 300);
    wait_acknowledged(&pair.server);
    drop(pair.client);
    assert_eq!(take_error(&pair.server), Errno::EPIPE);
    view.expect(&[
        pair.truth
            .outbound()
            .bytes(0, 300)
            .reset_by_local()
            .old_states(&["FIN_WAIT2"]),
        pair.truth
            .inbound()
            .bytes(300, 0)
            .ended("reset_by_peer", Some("EPIPE"), Some("peer"))
            .old_states(&["CLOSE_WAIT"])
            .found_by(&["listener"]),
    ]);
}

/// Bytes that were written and never acknowledged count as `undelivered_bytes`, at both ends.
fn undelivered_bytes_at_reset(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    let port = pair.truth.dst.port();
    net::set_packet_filter(&[&format!("tcp dport {port} drop"), &format!("tcp sport {port} drop")]);
    send(&pair.client, 5000);
    send(&pair.server, 7000);
    reset(pair.client);
    reset(pair.server);
    let (client, server) = ends(&pair.truth);
    view.expect(&[
        client.undelivered(5000).reset_by_local(),
        server.undelivered(7000).reset_by_local(),
    ]);
}

/// The server sends data after the client has closed cleanly. The client's time-wait socket answers with a RST. The
/// client's record was complete before, and stays `ok`.
fn data_to_time_wait(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    let (client, server) = ends(&pair.truth);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    view.expect(&[client.ok("local")]);
    send(&pair.server, 100);
    assert_eq!(take_error(&pair.server), Errno::EPIPE);
    view.expect(&[data_after_fin(server).found_by(&["listener"])]);
}

/// The record of an end that sent 100 bytes to a time-wait socket.
fn data_after_fin(end: Expected) -> Expected {
    end.undelivered(100).ended("reset_by_peer", Some("EPIPE"), Some("peer"))
}

/// The data follows before the record of the end that closed first can have come. The RST of the time-wait socket must
/// not be part of that record, however soon it follows. Either end closes first.
fn data_to_time_wait_at_once(view: &RecordView, version: IpVersion) {
    for round in 0..50 {
        let client_closes_first = round % 2 == 0;
        let pair = pair(version);
        let (first, second) = if client_closes_first {
            (pair.client, pair.server)
        } else {
            (pair.server, pair.client)
        };
        // Data that carries the ACK of the FIN would still reach the socket.
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(drain(&second), 0);
        wait_fin_acknowledged(&first);
        drop(first);
        send(&second, 100);
        assert_eq!(take_error(&second), Errno::EPIPE);
        let (client, server) = (pair.truth.outbound(), pair.truth.inbound());
        view.expect(&if client_closes_first {
            [client.ok("local"), data_after_fin(server).found_by(&["listener"])]
        } else {
            [data_after_fin(client), server.ok("local")]
        });
    }
}

/// An ICMP error on an established connection whose client has set IP_RECVERR: the error is pending, and ends nothing.
/// Both ends then close cleanly.
fn pending_icmp_error(view: &RecordView, version: IpVersion) {
    const CLOSE_WAIT: u8 = 8;
    let pair = exchanged_pair(version);
    let (level, option, reject) = match version {
        IpVersion::V4 => (libc::IPPROTO_IP, libc::IP_RECVERR, "icmp type host-unreachable"),
        IpVersion::V6 => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, "icmpv6 type addr-unreachable"),
    };
    set_option(&pair.client, level, option, 1);
    net::set_packet_filter(&[&format!("tcp dport {} reject with {reject}", pair.truth.dst.port())]);
    // The answer to the first segment finds the socket locked, the answer to its retransmission does not.
    send(&pair.client, 10);
    wait_pending_error(&pair.client);
    net::set_packet_filter(&[]);
    recv(&pair.server, 10);
    drop(pair.server);
    // A read would take the error.
    wait_until("the FIN has arrived", || {
        TcpInfo::read(&pair.client).state() == CLOSE_WAIT
    });
    drop(pair.client);
    view.expect(&[
        pair.truth.outbound().bytes(1010, 300).ok("peer"),
        pair.truth.inbound().bytes(300, 1010).ok("local"),
    ]);
}

/// The client closes while the server's window is full, so its FIN waits behind data. The server's data then reaches a
/// socket that no process reads, and the client's kernel resets: `reset_by_local`, although it sets ECONNRESET on its
/// socket.
fn data_before_fin_is_sent(view: &RecordView, version: IpVersion) {
    let pair = pair(version);
    pair.client.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(count) = std::io::Write::write(&mut &pair.client, &[1; 65536]) {
        written += count as u64;
    }
    // The server's kernel acknowledges what fits into its window. Then nothing moves.
    wait_until("the window is full", || TcpInfo::read(&pair.client).unacked() == 0);
    drop(pair.client);
    send(&pair.server, 100);
    // The error shows that the RST has arrived. The server can still read the data before it.
    assert_eq!(take_error(&pair.server), Errno::ECONNRESET);
    let arrived = drain(&pair.server) as u64;
    assert!(arrived < written, "the window was never full");
    view.expect(&[
        pair.truth
            .outbound()
            .bytes(arrived, 0)
            .undelivered(written - arrived)
            .ended("reset_by_local", Some("ECONNRESET"), Some("local"))
            .old_states(&["FIN_WAIT1"]),
        pair.truth
            .inbound()
            .bytes(0, arrived)
            .undelivered(100)
            .reset_by_peer()
            .found_by(&["listener"]),
    ]);
}

/// The client's FIN is lost, and the server sends data to a socket that no process reads: the client's kernel resets.
fn data_before_fin_arrives(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    net::set_packet_filter(&[&format!(
        "tcp dport {} tcp flags & fin == fin drop",
        pair.truth.dst.port()
    )]);
    drop(pair.client);
    send(&pair.server, 100);
    assert_eq!(take_error(&pair.server), Errno::ECONNRESET);
    let (client, server) = ends(&pair.truth);
    view.expect(&[
        client
            .ended("reset_by_local", Some("ECONNRESET"), Some("local"))
            .old_states(&["FIN_WAIT1"]),
        server.undelivered(100).reset_by_peer().found_by(&["listener"]),
    ]);
}

/// The ACK of the client's FIN carries data. The kernel enters FIN_WAIT2, closes the socket without an error, and sends
/// a RST.
fn data_with_ack_of_fin(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    drop_bare_acks(&pair);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    send(&pair.server, 100);
    assert_eq!(take_error(&pair.server), Errno::EPIPE);
    let (client, server) = ends(&pair.truth);
    view.expect(&[
        client.reset_by_local().old_states(&["FIN_WAIT2"]),
        data_after_fin(server).found_by(&["listener"]),
    ]);
}

/// Three connections wait in the accept queue when their listener closes: they are reset. The server's ends have
/// records although no process accepted them.
fn listener_closes(view: &RecordView, version: IpVersion) {
    let listener = listen(version);
    let dst = listener.local_addr().unwrap();
    let mut expected = Vec::new();
    let clients: Vec<TcpStream> = [0, 100, 200]
        .into_iter()
        .map(|bytes| {
            let (client, connect) = timed(|| TcpStream::connect(dst).unwrap());
            send(&client, bytes);
            wait_acknowledged(&client);
            let truth = Truth::not_accepted(client.local_addr().unwrap(), dst, connect);
            expected.push(truth.outbound().bytes(bytes as u64, 0).reset_by_peer());
            // The process that closes the listener ends the connections, although it never had them.
            expected.push(
                truth
                    .inbound()
                    .bytes(0, bytes as u64)
                    .reset_by_local()
                    .found_by(&["close", "listener"]),
            );
            client
        })
        .collect();
    drop(listener);
    for client in &clients {
        assert_eq!(take_error(client), Errno::ECONNRESET);
    }
    view.expect(&expected);
}

/// The client connects, sends and closes before the listener closes.
fn listener_closes_after_client(view: &RecordView, version: IpVersion) {
    let listener = listen(version);
    let dst = listener.local_addr().unwrap();
    let (client, connect) = timed(|| TcpStream::connect(dst).unwrap());
    let truth = Truth::not_accepted(client.local_addr().unwrap(), dst, connect);
    send(&client, 100);
    drop(client);
    view.expect(&[truth.outbound().bytes(100, 0).ok("local")]);
    drop(listener);
    view.expect(&[truth
        .inbound()
        .bytes(0, 100)
        .ended("reset_by_local", None, Some("peer"))
        .old_states(&["CLOSE_WAIT"])
        .found_by(&["close", "listener"])]);
}

/// Fifty connections with the same addresses and ports, one right after another. Each record has the bytes of its
/// connection.
fn same_addresses_50_times(view: &RecordView, version: IpVersion) {
    let listener: TcpListener = listen(version);
    let dst = listener.local_addr().unwrap();
    let mut src = version.at(0);
    let mut expected = Vec::new();
    for round in 1..=50 {
        let socket = bound_socket(src);
        let connect = connect(&socket, dst);
        let pair = accept(&listener, socket.into(), connect);
        src = pair.truth.src;
        exchange(&pair, round, 1000 - round);
        wait_acknowledged(&pair.client);
        wait_acknowledged(&pair.server);
        let (up, down) = (round as u64, 1000 - round as u64);
        expected.push(pair.truth.outbound().bytes(up, down).reset_by_local());
        let server = pair.truth.inbound().bytes(down, up).reset_by_peer();
        expected.push(server.found_by(&["listener"]));
        reset(pair.client);
        assert_eq!(take_error(&pair.server), Errno::ECONNRESET);
    }
    view.expect(&expected);
}

/// With a negative TCP_LINGER2, the client does not wait for the server's FIN in FIN_WAIT2, but sends a RST.
fn fin_wait2_without_linger(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    set_tcp_option(&pair.client, libc::TCP_LINGER2, -1);
    drop(pair.client);
    assert_eq!(take_error(&pair.server), Errno::EPIPE);
    let (client, server) = ends(&pair.truth);
    view.expect(&[
        client.reset_by_local().old_states(&["FIN_WAIT2"]),
        server
            .ended("reset_by_peer", Some("EPIPE"), Some("peer"))
            .found_by(&["listener"]),
    ]);
}
