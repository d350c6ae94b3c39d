//! Sockets that are older than the tracer, and sockets that outlive it.

use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::Table;
use crate::support::actor::Actor;
use crate::support::expect::{Proc, Scene};
use crate::support::net;
use crate::support::probe::Need;
use crate::support::sock::{
    ClosedPort, Span, Truth, V, dial, drain, error_of, exchange, flushed, give, listen, pair, pair_with, reset, timed,
};
use crate::support::store::Rec;
use crate::support::tracer::{Sums, Tracer};

/// The trials.
pub fn table() -> Table {
    Table::new("before")
        .own("open_ipv4", &[], || open(V::Four))
        .own("open_ipv6", &[], || open(V::Six))
        .own("server_closes", &[], server_closes)
        .own("reset", &[], ended_by_reset)
        .own("half_closed", &[], half_closed)
        .own("held_by_another", &[], held_by_another)
        .own("listener", &[], listener)
        .own("waiting_in_the_queue", &[], waiting_in_the_queue)
        .own("connecting", &[Need::Nft], connecting)
        .own("orphan", &[Need::Nft], orphan)
        .own("many_open", &[], many_open)
        .own("open_at_the_end", &[Need::Nft], open_at_the_end)
}

/// Totals from the connection's beginning, both ends the right way round, and no invented times.
fn open(v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    let started = Instant::now();
    let tracer = Tracer::json(&[]);
    let scene = Scene::new(&tracer.store);
    exchange(&pair, 50, 60);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    let records = scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1050, 360)
            .ok("local")
            .preexisting()
            .by(&["scan", "close"]),
        pair.truth.inbound().bytes(360, 1050).ok("peer").preexisting(),
    ]);
    for record in records {
        let observed = u128::from(record["observed_ns"].as_u64().unwrap());
        assert!(
            observed <= started.elapsed().as_nanos(),
            "observed for longer than the tracer lived: {record}"
        );
    }
    tracer.interrupt().check_whole();
}

fn server_closes() {
    let pair = pair(V::Four);
    exchange(&pair, 1000, 300);
    let tracer = Tracer::json(&[]);
    let scene = Scene::new(&tracer.store);
    drop(pair.server);
    assert_eq!(drain(&pair.client), 0);
    drop(pair.client);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .ok("peer")
            .preexisting()
            .by(&["scan", "close"]),
        pair.truth.inbound().bytes(300, 1000).ok("local").preexisting(),
    ]);
    tracer.interrupt().check_whole();
}

/// Nobody closes the server's end; it was found in the walk.
fn ended_by_reset() {
    let pair = pair(V::Four);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    let tracer = Tracer::json(&[]);
    let scene = Scene::new(&tracer.store);
    reset(pair.client);
    assert_eq!(error_of(&pair.server), Errno::ECONNRESET);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .reset_by_local()
            .preexisting()
            .by(&["scan", "close"]),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .reset_by_peer()
            .preexisting()
            .by(&["scan"]),
    ]);
    tracer.interrupt().check_whole();
}

/// The first FIN was before the tracer, the second after it.
fn half_closed() {
    let pair = pair(V::Four);
    exchange(&pair, 1000, 300);
    pair.client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.server), 0);
    let tracer = Tracer::json(&[]);
    let scene = Scene::new(&tracer.store);
    give(&pair.server, 40);
    drop(pair.server);
    assert_eq!(drain(&pair.client), 40);
    drop(pair.client);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 340)
            .ok("local")
            .preexisting()
            .by(&["scan", "close"]),
        pair.truth.inbound().bytes(340, 1000).ok("peer").preexisting(),
    ]);
    tracer.interrupt().check_whole();
}

/// Both ends held by other processes, which end without a word.
fn held_by_another() {
    let (client, server) = (Actor::start(), Actor::start());
    let dst = server.listen("l", V::Four.at(0));
    let (src, connect) = timed(|| client.connect("s", dst));
    server.ask("accept l s");
    client.ask("write s 10");
    server.ask("read s 10");
    let truth = Truth {
        src,
        dst,
        connect,
        open: connect,
    };
    let tracer = Tracer::json(&[]);
    let scene = Scene::new(&tracer.store);
    let is = |actor: &Actor, by| Proc::Is(actor.pid(), String::from_utf8(actor.comm()).unwrap(), by);
    let (by_client, by_server) = (is(&client, &["scan", "close"]), is(&server, &["close"]));
    client.kill();
    assert_eq!(server.ask("eof s"), "0");
    server.exit();
    scene.expect(&[
        truth
            .outbound()
            .bytes(10, 0)
            .ok("local")
            .preexisting()
            .process(by_client),
        truth.inbound().bytes(0, 10).ok("peer").preexisting().process(by_server),
    ]);
    tracer.interrupt().check_whole();
}

/// Only the listener is older: what it accepts is new, and belongs to its owner when a RST ends it.
fn listener() {
    let listener = listen(V::Four);
    let tracer = Tracer::json(&[]);
    let scene = Scene::new(&tracer.store);
    let pair = pair_with(&listener);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    reset(pair.client);
    assert_eq!(error_of(&pair.server), Errno::ECONNRESET);
    scene.expect(&[
        pair.truth.outbound().bytes(1000, 300).reset_by_local(),
        pair.truth.inbound().bytes(300, 1000).reset_by_peer().by(&["listener"]),
    ]);
    tracer.interrupt().check_whole();
}

/// Connected before, accepted after: no descriptor leads to it when the tracer starts.
fn waiting_in_the_queue() {
    let listener = listen(V::Four);
    let dst = listener.local_addr().unwrap();
    let (client, connect) = timed(|| TcpStream::connect(dst).unwrap());
    give(&client, 20);
    flushed(&client);
    let tracer = Tracer::json(&[]);
    let scene = Scene::new(&tracer.store);
    let (server, src) = listener.accept().unwrap();
    let truth = Truth {
        src,
        dst,
        connect,
        open: Span {
            after: std::time::SystemTime::now(),
            ..connect
        },
    };
    drop(client);
    assert_eq!(drain(&server), 20);
    drop(server);
    scene.expect(&[
        truth
            .outbound()
            .bytes(20, 0)
            .ok("local")
            .preexisting()
            .by(&["scan", "close"]),
        truth.inbound().bytes(0, 20).ok("peer").preexisting(),
    ]);
    tracer.interrupt().check_whole();
}

fn connecting() {
    let closed = ClosedPort::new();
    net::rules(&[&format!("tcp dport {} drop", closed.number())]);
    let attempt = dial(V::Four.at(0), closed.at(V::Four));
    let tracer = Tracer::json(&[]);
    let scene = Scene::new(&tracer.store);
    drop(attempt.socket);
    scene.expect(&[attempt
        .truth
        .outbound()
        .failed("connect_aborted", None, Some("local"))
        .preexisting()
        .by(&["scan", "close"])]);
    tracer.interrupt().check_whole();
}

/// The program had closed before the tracer came; its kernel was still at it. No process has it.
fn orphan() {
    let pair = pair(V::Four);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    net::rules(&[&format!("tcp dport {} drop", pair.truth.dst.port())]);
    give(&pair.client, 70);
    drop(pair.client);
    let tracer = Tracer::json(&[]);
    let scene = Scene::new(&tracer.store);
    net::rules(&[]);
    assert_eq!(drain(&pair.server), 70);
    drop(pair.server);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1070, 300)
            .ok("local")
            .preexisting()
            .process(Proc::Nobody),
        pair.truth.inbound().bytes(300, 1070).ok("peer").preexisting(),
    ]);
    tracer.interrupt().check_whole();
}

/// Five hundred at once, some closing while the tracer starts: each is recorded once or was over before.
fn many_open() {
    let listener = listen(V::Four);
    let mut pairs: Vec<_> = (0..500).map(|_| pair_with(&listener)).collect();
    for (at, pair) in pairs.iter().enumerate() {
        exchange(pair, at, 500 - at);
    }
    let tracer = Tracer::json(&[]);
    let scene = Scene::new(&tracer.store);
    let mut wants = Vec::new();
    for (at, pair) in pairs.drain(..).enumerate() {
        let (up, down) = (at as u64, 500 - at as u64);
        drop(pair.client);
        assert_eq!(drain(&pair.server), 0);
        drop(pair.server);
        wants.push(
            pair.truth
                .outbound()
                .bytes(up, down)
                .ok("local")
                .preexisting()
                .by(&["scan", "close"]),
        );
        wants.push(pair.truth.inbound().bytes(down, up).ok("peer").preexisting());
    }
    scene.expect(&wants);
    tracer.interrupt().check_whole();
}

/// Fourteen ends and one attempt are open when the summary is made: counted, and no record of them.
fn open_at_the_end() {
    const ALL: u64 = 15;
    let server = net::address(0);
    let tracer = Tracer::json(&["--to-ip", &server.to_string()]);
    tracer.store.keep(net::inode());
    let closed = ClosedPort::new();
    net::rules(&[&format!("tcp dport {} drop", closed.number())]);
    let attempt = dial(V::Four.at(0), (server, closed.number()).into());
    let listener = TcpListener::bind((server, 0)).unwrap();
    let mut pairs: Vec<_> = (0..7).map(|_| pair_with(&listener)).collect();
    let mut asked = 0;
    let mut summary = || {
        asked += 1;
        tracer.signal(Signal::SIGUSR1);
        let summaries = tracer.store.wait_summaries(asked).unwrap();
        let sums = Sums::of(&summaries[asked - 1]);
        sums.check();
        sums
    };
    let open = summary();
    assert_eq!((open.open, open.delivered, open.lost), (ALL, 0, 0), "{open:?}");
    // Three of them end.
    drop((attempt.socket, pairs.pop()));
    let ended = |records: &[Rec]| (records.len() == 3).then_some(());
    tracer.store.wait(net::inode(), ended).unwrap();
    let open = summary();
    assert_eq!((open.open, open.delivered), (ALL - 3, 3), "{open:?}");
    let sums = tracer.interrupt().check_whole();
    assert_eq!((sums.open, sums.delivered), (ALL - 3, 3), "{sums:?}");
    drop(pairs);
}
