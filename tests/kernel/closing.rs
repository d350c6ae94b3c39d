//! Every way in which a connection ends that both ends have made.

use std::net::{Shutdown, TcpListener, TcpStream};

use nix::errno::Errno;
use nix::libc;

use crate::Table;
use crate::support::expect::{Scene, Want};
use crate::support::net;
use crate::support::probe::Need;
use crate::support::sock::{
    Pair, Span, Truth, V, bound, drain, error_of, exchange, fin_acknowledged, flushed, give, in_flight, listen, pair,
    pair_with, reset, set_linger2, set_option, take, tcp_info, timed, wait_error, wait_until,
};

/// The trials.
pub fn table() -> Table {
    Table::new("closing")
        .both("client_first", &[], client_first)
        .both("server_first", &[], server_first)
        .both("at_once", &[Need::Nft], at_once)
        .both("client_half", &[], client_half)
        .both("server_half", &[], server_half)
        .both("shutdown_only", &[], shutdown_only)
        .both("client_reset", &[], client_reset)
        .both("server_reset", &[], server_reset)
        .both("client_unread", &[], client_unread)
        .both("server_unread", &[], server_unread)
        .both("reset_after_fin", &[], reset_after_fin)
        .both("reset_meets_half", &[], reset_meets_half)
        .both("reset_for_fin", &[Need::Nft], reset_for_fin)
        .both("unread_after_half", &[], unread_after_half)
        .both("reset_undelivered", &[Need::Nft], reset_undelivered)
        .both("data_meets_stub", &[], data_meets_stub)
        .both("data_meets_stub_at_once", &[], data_meets_stub_at_once)
        .both("pending_icmp_error", &[Need::Nft], pending_icmp_error)
        .both("data_meets_unsent_fin", &[], data_meets_unsent_fin)
        .both("data_meets_unanswered_fin", &[Need::Nft], data_meets_unanswered_fin)
        .both("data_carries_last_ack", &[Need::Nft], data_carries_last_ack)
        .both("listener_closed", &[], listener_closed)
        .both("listener_closed_after_client", &[], listener_closed_after_client)
        .both("same_addresses", &[], same_addresses)
        .shared("fin_wait2_given_up", &[], fin_wait2_given_up)
}

fn client_first(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .ok("local")
            .states(&["FIN_WAIT2"]),
        pair.truth.inbound().bytes(300, 1000).ok("peer"),
    ]);
}

fn server_first(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    drop(pair.server);
    assert_eq!(drain(&pair.client), 0);
    drop(pair.client);
    scene.expect(&[
        pair.truth.outbound().bytes(1000, 300).ok("peer"),
        pair.truth.inbound().bytes(300, 1000).ok("local").states(&["FIN_WAIT2"]),
    ]);
}

/// Each has closed before it sees the other's FIN: both FINs are lost at first, and cross when they are sent again.
fn at_once(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    let port = pair.truth.dst.port();
    net::rules(&[
        &format!("tcp dport {port} tcp flags & fin == fin drop"),
        &format!("tcp sport {port} tcp flags & fin == fin drop"),
    ]);
    drop((pair.client, pair.server));
    net::rules(&[]);
    scene.expect(&[
        pair.truth.outbound().bytes(1000, 300).ok("local"),
        pair.truth.inbound().bytes(300, 1000).ok("local"),
    ]);
}

fn client_half(scene: &Scene, v: V) {
    let pair = pair(v);
    give(&pair.client, 1000);
    pair.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.server), 1000);
    give(&pair.server, 300);
    drop(pair.server);
    assert_eq!(drain(&pair.client), 300);
    drop(pair.client);
    scene.expect(&[
        pair.truth.outbound().bytes(1000, 300).ok("local"),
        pair.truth.inbound().bytes(300, 1000).ok("peer"),
    ]);
}

fn server_half(scene: &Scene, v: V) {
    let pair = pair(v);
    give(&pair.server, 300);
    pair.server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.client), 300);
    give(&pair.client, 1000);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 1000);
    drop(pair.server);
    scene.expect(&[
        pair.truth.outbound().bytes(1000, 300).ok("peer"),
        pair.truth.inbound().bytes(300, 1000).ok("local"),
    ]);
}

/// Both directions are shut down long before the descriptors are closed: the connection is over at the second FIN, and the
/// records do not wait for close().
fn shutdown_only(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 10, 20);
    pair.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.server), 0);
    pair.server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.client), 0);
    scene.expect(&[
        pair.truth.outbound().bytes(10, 20).ok("local"),
        pair.truth.inbound().bytes(20, 10).ok("peer"),
    ]);
    drop((pair.client, pair.server));
    scene.expect_nothing();
}

/// SO_LINGER with zero: RST in place of FIN.
fn client_reset(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    reset(pair.client);
    assert_eq!(error_of(&pair.server), Errno::ECONNRESET);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .reset_by_local()
            .states(&["ESTABLISHED"]),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .reset_by_peer()
            .states(&["ESTABLISHED"])
            .by(&["listener"]),
    ]);
}

fn server_reset(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    reset(pair.server);
    assert_eq!(error_of(&pair.client), Errno::ECONNRESET);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .reset_by_peer()
            .states(&["ESTABLISHED"]),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .reset_by_local()
            .states(&["ESTABLISHED"]),
    ]);
}

/// close() with data that the program never read says RST. The data had arrived, and counts.
fn client_unread(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 0);
    give(&pair.server, 300);
    flushed(&pair.client);
    flushed(&pair.server);
    drop(pair.client);
    assert_eq!(error_of(&pair.server), Errno::ECONNRESET);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .reset_by_local()
            .states(&["ESTABLISHED"]),
        pair.truth.inbound().bytes(300, 1000).reset_by_peer().by(&["listener"]),
    ]);
}

fn server_unread(scene: &Scene, v: V) {
    let pair = pair(v);
    give(&pair.client, 1000);
    flushed(&pair.client);
    drop(pair.server);
    assert_eq!(error_of(&pair.client), Errno::ECONNRESET);
    scene.expect(&[
        pair.truth.outbound().bytes(1000, 0).reset_by_peer(),
        pair.truth
            .inbound()
            .bytes(0, 1000)
            .reset_by_local()
            .states(&["ESTABLISHED"]),
    ]);
}

/// The server answers the client's FIN with RST. The client's socket has left for a time-wait stub by then and never knows.
/// (The acknowledgement of a FIN may wait for 40 ms, so the test waits for the record.)
fn reset_after_fin(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    scene.expect(&[pair.truth.outbound().bytes(1000, 300).ok("local")]);
    reset(pair.server);
    scene.expect(&[pair
        .truth
        .inbound()
        .bytes(300, 1000)
        .ended("reset_by_local", None, Some("peer"))
        .states(&["CLOSE_WAIT"])]);
}

/// As before, but the client has only shut down and is there to be reset.
fn reset_meets_half(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    pair.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.server), 0);
    fin_acknowledged(&pair.client);
    reset(pair.server);
    assert_eq!(error_of(&pair.client), Errno::ECONNRESET);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .ended("reset_by_peer", Some("ECONNRESET"), Some("local"))
            .states(&["FIN_WAIT2"]),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .ended("reset_by_local", None, Some("peer"))
            .states(&["CLOSE_WAIT"]),
    ]);
}

/// As before, but the RST comes in place of the acknowledgement: the client is still in FIN_WAIT1, and an orphan.
fn reset_for_fin(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    no_bare_acknowledgements(&pair);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    reset(pair.server);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .ended("reset_by_peer", Some("ECONNRESET"), Some("local"))
            .states(&["FIN_WAIT1"]),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .ended("reset_by_local", None, Some("peer"))
            .states(&["CLOSE_WAIT"]),
    ]);
}

/// What the server sends without data, FIN or RST is lost from now on.
fn no_bare_acknowledgements(pair: &Pair) {
    // Headers alone: 20 or 40, and 32.
    let bare = if pair.truth.dst.is_ipv4() { 52 } else { 72 };
    let port = pair.truth.dst.port();
    net::rules(&[&format!(
        "tcp sport {port} tcp flags & (fin | rst | ack) == ack meta length {bare} drop"
    )]);
}

/// The client shuts down, then closes with unread data: RST, which meets the server in CLOSE_WAIT, where its name is EPIPE.
fn unread_after_half(scene: &Scene, v: V) {
    let pair = pair(v);
    pair.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.server), 0);
    give(&pair.server, 300);
    flushed(&pair.server);
    drop(pair.client);
    assert_eq!(error_of(&pair.server), Errno::EPIPE);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(0, 300)
            .reset_by_local()
            .states(&["FIN_WAIT2"]),
        pair.truth
            .inbound()
            .bytes(300, 0)
            .ended("reset_by_peer", Some("EPIPE"), Some("peer"))
            .states(&["CLOSE_WAIT"])
            .by(&["listener"]),
    ]);
}

/// What was handed to the kernel and never acknowledged is `undelivered`, at the client's end and at the server's.
fn reset_undelivered(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    let port = pair.truth.dst.port();
    net::rules(&[&format!("tcp dport {port} drop"), &format!("tcp sport {port} drop")]);
    give(&pair.client, 5000);
    give(&pair.server, 7000);
    reset(pair.client);
    reset(pair.server);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .undelivered(5000)
            .reset_by_local(),
        pair.truth.inbound().bytes(300, 1000).undelivered(7000).reset_by_local(),
    ]);
}

/// Data for a client that has closed cleanly and left for a time-wait stub. The stub answers RST; the client's own record
/// was complete before, and stays `ok`.
fn data_meets_stub(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    scene.expect(&[pair.truth.outbound().bytes(1000, 300).ok("local")]);
    give(&pair.server, 100);
    assert_eq!(error_of(&pair.server), Errno::EPIPE);
    scene.expect(&[pair
        .truth
        .inbound()
        .bytes(300, 1000)
        .undelivered(100)
        .ended("reset_by_peer", Some("EPIPE"), Some("peer"))
        .by(&["listener"])]);
}

/// The same before the client's record can have come: the RST of the stub is no part of it, however soon it follows. And with the
/// client's end on the other side: the server closes first, and the client sends.
fn data_meets_stub_at_once(scene: &Scene, v: V) {
    for round in 0..50 {
        let pair = pair(v);
        let (first, second) = match round % 2 {
            0 => (pair.client, pair.server),
            _ => (pair.server, pair.client),
        };
        // Data that carried the acknowledgement of the FIN would still meet the socket.
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(drain(&second), 0);
        fin_acknowledged(&first);
        drop(first);
        give(&second, 100);
        assert_eq!(error_of(&second), Errno::EPIPE);
        let (outbound, inbound) = (pair.truth.outbound(), pair.truth.inbound());
        let reset = |end: Want| end.undelivered(100).ended("reset_by_peer", Some("EPIPE"), Some("peer"));
        scene.expect(&match round % 2 {
            0 => [outbound.ok("local"), reset(inbound).by(&["listener"])],
            _ => [reset(outbound), inbound.ok("local")],
        });
    }
}

/// ICMP in the middle of a connection whose client wants to know (IP_RECVERR): an error is pending, nothing has ended. Both ends
/// close as if it had not been.
fn pending_icmp_error(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    const CLOSE_WAIT: u8 = 8;
    let (level, option) = match v {
        V::Four => (libc::IPPROTO_IP, libc::IP_RECVERR),
        V::Six => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    };
    set_option(&pair.client, level, option, 1);
    let kind = match v {
        V::Four => "icmp type host-unreachable",
        V::Six => "icmpv6 type addr-unreachable",
    };
    net::rules(&[&format!("tcp dport {} reject with {kind}", pair.truth.dst.port())]);
    // What is on its way when the answer comes has the socket locked; what the timer sends again has not.
    give(&pair.client, 10);
    wait_error(&pair.client);
    net::rules(&[]);
    take(&pair.server, 10);
    drop(pair.server);
    // To read would take the error away.
    wait_until("the FIN is here", || tcp_info(&pair.client).tcpi_state == CLOSE_WAIT);
    drop(pair.client);
    scene.expect(&[
        pair.truth.outbound().bytes(1010, 300).ok("peer"),
        pair.truth.inbound().bytes(300, 1010).ok("local"),
    ]);
}

/// The client closes while the server's window is full: its FIN waits behind data. Data of the server meets a socket that
/// nobody reads any more, and the kernel resets: `reset_by_local`, though it puts ECONNRESET on the socket as if it had
/// received the RST.
fn data_meets_unsent_fin(scene: &Scene, v: V) {
    let pair = pair(v);
    pair.client.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(got) = std::io::Write::write(&mut &pair.client, &[1; 65536]) {
        written += got as u64;
    }
    // The server's kernel takes what its window allows and acknowledges it; then nothing moves.
    wait_until("the window is full", || in_flight(&pair.client) == 0);
    drop(pair.client);
    give(&pair.server, 100);
    // The error says that the RST is in. What came before is still there to be read.
    assert_eq!(error_of(&pair.server), Errno::ECONNRESET);
    let arrived = drain(&pair.server) as u64;
    assert!(arrived < written, "the window was never full");
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(arrived, 0)
            .undelivered(written - arrived)
            .ended("reset_by_local", Some("ECONNRESET"), Some("local"))
            .states(&["FIN_WAIT1"]),
        pair.truth
            .inbound()
            .bytes(0, arrived)
            .undelivered(100)
            .reset_by_peer()
            .by(&["listener"]),
    ]);
}

/// As before, but the FIN was sent and lost.
fn data_meets_unanswered_fin(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    net::rules(&[&format!(
        "tcp dport {} tcp flags & fin == fin drop",
        pair.truth.dst.port()
    )]);
    drop(pair.client);
    give(&pair.server, 100);
    assert_eq!(error_of(&pair.server), Errno::ECONNRESET);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .ended("reset_by_local", Some("ECONNRESET"), Some("local"))
            .states(&["FIN_WAIT1"]),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .undelivered(100)
            .reset_by_peer()
            .by(&["listener"]),
    ]);
}

/// The acknowledgement of the client's FIN comes with data: the kernel enters FIN_WAIT2, closes without an error as if all
/// were well, and sends RST.
fn data_carries_last_ack(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    no_bare_acknowledgements(&pair);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    give(&pair.server, 100);
    assert_eq!(error_of(&pair.server), Errno::EPIPE);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .reset_by_local()
            .states(&["FIN_WAIT2"]),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .undelivered(100)
            .ended("reset_by_peer", Some("EPIPE"), Some("peer"))
            .by(&["listener"]),
    ]);
}

/// Three connections wait in a listener's queue when it closes: they are reset. Server ends exist without accept().
fn listener_closed(scene: &Scene, v: V) {
    let listener = listen(v);
    let dst = listener.local_addr().unwrap();
    let mut wants = Vec::new();
    let clients: Vec<TcpStream> = (0..3)
        .map(|at| {
            let (client, connect) = timed(|| TcpStream::connect(dst).unwrap());
            let src = client.local_addr().unwrap();
            give(&client, at * 100);
            flushed(&client);
            let truth = Truth {
                src,
                dst,
                connect,
                open: connect,
            };
            wants.push(truth.outbound().bytes(at as u64 * 100, 0).reset_by_peer());
            // The closing program has never held them, and yet it is who ended them.
            wants.push(
                truth
                    .inbound()
                    .bytes(0, at as u64 * 100)
                    .reset_by_local()
                    .by(&["close", "listener"]),
            );
            client
        })
        .collect();
    drop(listener);
    for client in &clients {
        assert_eq!(error_of(client), Errno::ECONNRESET);
    }
    scene.expect(&wants);
}

/// The client has been and gone before anybody accepted it.
fn listener_closed_after_client(scene: &Scene, v: V) {
    let listener = listen(v);
    let dst = listener.local_addr().unwrap();
    let (client, connect) = timed(|| TcpStream::connect(dst).unwrap());
    let truth = Truth {
        src: client.local_addr().unwrap(),
        dst,
        connect,
        open: connect,
    };
    give(&client, 100);
    drop(client);
    scene.expect(&[truth.outbound().bytes(100, 0).ok("local")]);
    drop(listener);
    scene.expect(&[truth
        .inbound()
        .bytes(0, 100)
        .ended("reset_by_local", None, Some("peer"))
        .states(&["CLOSE_WAIT"])
        .by(&["close", "listener"])]);
}

/// One pair of addresses and ports, fifty connections through it, one right after another: each record with its own bytes.
fn same_addresses(scene: &Scene, v: V) {
    let listener: TcpListener = listen(v);
    let dst = listener.local_addr().unwrap();
    let mut src = v.at(0);
    let mut wants = Vec::new();
    for round in 1..=50 {
        let socket = bound(src);
        let (client, connect) = timed(|| {
            socket.connect(&dst.into()).unwrap();
            TcpStream::from(socket)
        });
        src = client.local_addr().unwrap();
        let (server, _) = listener.accept().unwrap();
        let open = Span {
            before: connect.before,
            after: std::time::SystemTime::now(),
        };
        give(&client, round);
        take(&server, round);
        give(&server, 1000 - round);
        take(&client, 1000 - round);
        flushed(&client);
        flushed(&server);
        let truth = Truth {
            src,
            dst,
            connect,
            open,
        };
        let (up, down) = (round as u64, 1000 - round as u64);
        wants.push(truth.outbound().bytes(up, down).reset_by_local());
        wants.push(truth.inbound().bytes(down, up).reset_by_peer().by(&["listener"]));
        reset(client);
        assert_eq!(error_of(&server), Errno::ECONNRESET);
    }
    scene.expect(&wants);
}

/// The client gives up waiting for the server's FIN (TCP_LINGER2 below zero: at once, with RST).
fn fin_wait2_given_up(scene: &Scene) {
    let pair = pair_with(&listen(V::Four));
    exchange(&pair, 1000, 300);
    set_linger2(&pair.client, -1);
    drop(pair.client);
    assert_eq!(error_of(&pair.server), Errno::EPIPE);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .reset_by_local()
            .states(&["FIN_WAIT2"]),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .ended("reset_by_peer", Some("EPIPE"), Some("peer"))
            .by(&["listener"]),
    ]);
}
