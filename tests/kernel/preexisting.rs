//! Connections that are older than the tracer, and connections that are open when it stops.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Instant;

use nix::errno::Errno;
use serde_json::Value;

use crate::Topic;
use crate::support::actor::Actor;
use crate::support::expect::{Expected, Owner};
use crate::support::net;
use crate::support::probe::Need;
use crate::support::record_view::RecordView;
use crate::support::sock::{
    ClosedPort, IpVersion, Truth, accept, connect_nonblocking, drain, exchange, exchanged_pair, listen, pair_with,
    reset, send, take_error, timed, wait_acknowledged,
};
use crate::support::tracer::{Totals, Tracer};

pub fn topic() -> Topic {
    Topic::new("preexisting")
        .standalone_both_versions("open_connection", &[], open_connection)
        .standalone("server_closes_first", &[], server_closes_first)
        .standalone("reset", &[], ended_by_reset)
        .standalone("half_closed", &[], half_closed)
        .standalone("owned_by_other_processes", &[], owned_by_other_processes)
        .standalone("listener", &[], listener)
        .standalone("in_accept_queue", &[], in_accept_queue)
        .standalone("connecting", &[Need::Nft], connecting)
        .standalone("orphan", &[Need::Nft], orphan)
        .standalone("many_connections", &[], many_connections)
        .standalone("open_at_the_end", &[Need::Nft], open_at_the_end)
}

/// The client's record of a connection that is older than the tracer.
fn outbound(truth: &Truth) -> Expected {
    truth.outbound().preexisting().found_by(&["scan", "close"])
}

/// The server's record of a connection that is older than the tracer.
fn inbound(truth: &Truth) -> Expected {
    truth.inbound().preexisting()
}

/// The bytes are counted since the connection began, the direction is right, and no time is invented.
fn open_connection(version: IpVersion) {
    let pair = exchanged_pair(version);
    let started = Instant::now();
    let tracer = Tracer::json(&[]);
    let view = RecordView::new(&tracer.output);
    exchange(&pair, 50, 60);
    let truth = pair.close_client_first();
    let records = view.expect(&[
        outbound(&truth).bytes(1050, 360).ok("local"),
        inbound(&truth).bytes(360, 1050).ok("peer"),
    ]);
    for record in records {
        let observed = u128::from(record["observed_ns"].as_u64().unwrap());
        assert!(
            observed <= started.elapsed().as_nanos(),
            "observed for longer than the tracer runs: {record}"
        );
    }
    tracer.interrupt().check_lossless();
}

fn server_closes_first() {
    let pair = exchanged_pair(IpVersion::V4);
    let tracer = Tracer::json(&[]);
    let view = RecordView::new(&tracer.output);
    let truth = pair.close_server_first();
    view.expect(&[
        outbound(&truth).bytes(1000, 300).ok("peer"),
        inbound(&truth).bytes(300, 1000).ok("local"),
    ]);
    tracer.interrupt().check_lossless();
}

/// No process closes the server's end, so only the first scan finds its owner.
fn ended_by_reset() {
    let pair = exchanged_pair(IpVersion::V4);
    let tracer = Tracer::json(&[]);
    let view = RecordView::new(&tracer.output);
    reset(pair.client);
    assert_eq!(take_error(&pair.server), Errno::ECONNRESET);
    view.expect(&[
        outbound(&pair.truth).bytes(1000, 300).reset_by_local(),
        inbound(&pair.truth)
            .bytes(300, 1000)
            .reset_by_peer()
            .found_by(&["scan"]),
    ]);
    tracer.interrupt().check_lossless();
}

/// The first FIN comes before the tracer starts, the second one after.
fn half_closed() {
    let pair = exchanged_pair(IpVersion::V4);
    pair.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.server), 0);
    let tracer = Tracer::json(&[]);
    let view = RecordView::new(&tracer.output);
    send(&pair.server, 40);
    drop(pair.server);
    assert_eq!(drain(&pair.client), 40);
    drop(pair.client);
    view.expect(&[
        outbound(&pair.truth).bytes(1000, 340).ok("local"),
        inbound(&pair.truth).bytes(340, 1000).ok("peer"),
    ]);
    tracer.interrupt().check_lossless();
}

/// Other processes own both ends, and exit without closing them.
fn owned_by_other_processes() {
    let (client, server) = (Actor::start(), Actor::start());
    let dst = server.listen("l", IpVersion::V4.at(0));
    let (src, connect) = timed(|| client.connect("s", dst));
    server.run("accept l s");
    client.run("write s 10");
    server.run("read s 10");
    let truth = Truth::not_accepted(src, dst, connect);
    let tracer = Tracer::json(&[]);
    let view = RecordView::new(&tracer.output);
    let owner = |actor: &Actor, by| Owner::Process(actor.pid(), String::from_utf8(actor.comm()).unwrap(), by);
    let (client_owner, server_owner) = (owner(&client, &["scan", "close"]), owner(&server, &["close"]));
    client.kill();
    assert_eq!(server.run("eof s"), "0");
    server.exit();
    view.expect(&[
        outbound(&truth).bytes(10, 0).ok("local").process(client_owner),
        inbound(&truth).bytes(0, 10).ok("peer").process(server_owner),
    ]);
    tracer.interrupt().check_lossless();
}

/// Only the listener is older than the tracer. A connection that it accepts is new, and names the listener's owner if a
/// RST ends it.
fn listener() {
    let listener = listen(IpVersion::V4);
    let tracer = Tracer::json(&[]);
    let view = RecordView::new(&tracer.output);
    let pair = pair_with(&listener);
    exchange(&pair, 1000, 300);
    wait_acknowledged(&pair.server);
    reset(pair.client);
    assert_eq!(take_error(&pair.server), Errno::ECONNRESET);
    view.expect(&[
        pair.truth.outbound().bytes(1000, 300).reset_by_local(),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .reset_by_peer()
            .found_by(&["listener"]),
    ]);
    tracer.interrupt().check_lossless();
}

/// The server's end is in the accept queue when the tracer starts: no process has a descriptor of it.
fn in_accept_queue() {
    let listener = listen(IpVersion::V4);
    let dst = listener.local_addr().unwrap();
    let (client, connect) = timed(|| TcpStream::connect(dst).unwrap());
    send(&client, 20);
    wait_acknowledged(&client);
    let tracer = Tracer::json(&[]);
    let view = RecordView::new(&tracer.output);
    let pair = accept(&listener, client, connect);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 20);
    drop(pair.server);
    view.expect(&[
        outbound(&pair.truth).bytes(20, 0).ok("local"),
        inbound(&pair.truth).bytes(0, 20).ok("peer"),
    ]);
    tracer.interrupt().check_lossless();
}

fn connecting() {
    let closed = ClosedPort::blackhole();
    let attempt = connect_nonblocking(IpVersion::V4.at(0), closed.at(IpVersion::V4));
    let tracer = Tracer::json(&[]);
    let view = RecordView::new(&tracer.output);
    drop(attempt.socket);
    view.expect(&[outbound(&attempt.truth).connect_failed("connect_aborted", None, Some("local"))]);
    tracer.interrupt().check_lossless();
}

/// The client has closed before the tracer starts, and its kernel still retransmits. No process owns the socket.
fn orphan() {
    let pair = exchanged_pair(IpVersion::V4);
    net::set_packet_filter(&[&format!("tcp dport {} drop", pair.truth.dst.port())]);
    send(&pair.client, 70);
    drop(pair.client);
    let tracer = Tracer::json(&[]);
    let view = RecordView::new(&tracer.output);
    net::set_packet_filter(&[]);
    assert_eq!(drain(&pair.server), 70);
    drop(pair.server);
    view.expect(&[
        outbound(&pair.truth)
            .bytes(1070, 300)
            .ok("local")
            .process(Owner::Unknown),
        inbound(&pair.truth).bytes(300, 1070).ok("peer"),
    ]);
    tracer.interrupt().check_lossless();
}

/// Five hundred connections are open when the tracer starts. Each end has one record.
fn many_connections() {
    let listener = listen(IpVersion::V4);
    let pairs: Vec<_> = (0..500).map(|_| pair_with(&listener)).collect();
    for (at, pair) in pairs.iter().enumerate() {
        exchange(pair, at, 500 - at);
    }
    let tracer = Tracer::json(&[]);
    let view = RecordView::new(&tracer.output);
    let mut expected = Vec::new();
    for (at, pair) in pairs.into_iter().enumerate() {
        let (up, down) = (at as u64, 500 - at as u64);
        let truth = pair.close_client_first();
        expected.push(outbound(&truth).bytes(up, down).ok("local"));
        expected.push(inbound(&truth).bytes(down, up).ok("peer"));
    }
    let records = view.expect(&expected);
    // Scans of other tracers hide only single calls of close().
    let is_found = |record: &&Value| record["direction"] == "inbound" && record["process"]["by"] == "close";
    let found = records.iter().filter(is_found).count();
    assert!(found >= 490, "close() showed the owner of {found} of 500 connections");
    tracer.interrupt().check_lossless();
}

/// Fourteen ends and one attempt are open at a summary: they are counted as open, and have no records.
fn open_at_the_end() {
    const ALL: u64 = 15;
    let server = net::loopback_v4(0);
    let tracer = Tracer::json(&["--to-ip", &server.to_string()]);
    tracer.output.watch(net::current_netns());
    let closed = ClosedPort::blackhole();
    let attempt = connect_nonblocking(IpVersion::V4.at(0), (server, closed.number()).into());
    let listener = TcpListener::bind((server, 0)).unwrap();
    let mut pairs: Vec<_> = (0..7).map(|_| pair_with(&listener)).collect();
    let totals = || {
        let totals = Totals::from_summary(&tracer.request_summary());
        totals.check();
        totals
    };
    let before = totals();
    assert_eq!((before.open, before.delivered, before.lost), (ALL, 0, 0), "{before:?}");
    // Three of them end.
    drop((attempt.socket, pairs.pop()));
    tracer.output.wait_matching(net::current_netns(), 3, |_| true);
    let after = totals();
    assert_eq!((after.open, after.delivered), (ALL - 3, 3), "{after:?}");
    let end = tracer.interrupt().check_lossless();
    assert_eq!((end.open, end.delivered), (ALL - 3, 3), "{end:?}");
    drop(pairs);
}
