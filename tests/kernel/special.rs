//! Sockets with more than one life, Fast Open, MPTCP, a connection to itself, and what gives no record.

mod handshake;

use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::{Protocol, SockAddr, Socket};

use crate::Table;
use crate::support::expect::{Proc, Scene};
use crate::support::net;
use crate::support::probe::Need;
use crate::support::sock::{
    ClosedPort, Pair, Span, Truth, V, address, bound, dial, dissolve, drain, errno_of, error_of, exchange, flushed,
    free_port, give, listen, reset, set_tcp_option, stream_socket, take, tcp_info, timed, wait_error,
};
use crate::support::store::Rec;
use crate::support::tracer::{Sums, Tracer};

/// The trials.
pub fn table() -> Table {
    Table::new("special")
        .both("again_after_refusal", &[], again_after_refusal)
        .both("dissolved_and_again", &[], dissolved_and_again)
        .both("restored", &[], restored)
        .both("dissolved_while_connecting", &[Need::Nft], dissolved_while_connecting)
        .both("to_itself", &[], to_itself)
        .both("fast_open", &[], fast_open)
        .both("fast_open_connect", &[], fast_open_connect)
        .both("fast_open_dies_in_syn_recv", &[Need::Nft], fast_open_dies_in_syn_recv)
        .own(
            "fast_open_children_that_are_filtered_out",
            &[Need::Nft],
            fast_open_children_that_are_filtered_out,
        )
        .both("deferred_accept_reset", &[], deferred_accept_reset)
        .both("mptcp", &[Need::Mptcp], mptcp)
        .both("mptcp_falls_back", &[Need::Mptcp], mptcp_falls_back)
        .shared("two_processors_one_handshake", &[Need::Nft], handshake::two_processors)
        .shared("listener_goes_in_a_handshake", &[Need::Nft], handshake::listener_goes)
        .shared("syn_for_syn", &[Need::Nft], handshake::syn_for_syn)
        .shared("half_open_ends", &[Need::Nft, Need::Kill], handshake::half_open_ends)
        .shared("data_beyond_the_fin", &[Need::Nft], handshake::data_beyond_the_fin)
        .both("no_free_port", &[], no_free_port)
        .both("no_free_port_after_refusal", &[], no_free_port_after_refusal)
        .both("closed_with_an_old_error", &[Need::Nft], closed_with_an_old_error)
        .both("reset_of_an_earlier_life", &[], reset_of_an_earlier_life)
        .own("a_write_that_never_came", &[], a_write_that_never_came)
        .shared("not_tcp", &[], not_tcp)
        .shared("security_policy", &[], security_policy)
}

/// Accepts what has just connected from `src`.
fn accepted(listener: &TcpListener, client: TcpStream, connect: Span) -> Pair {
    let (src, dst) = (client.local_addr().unwrap(), listener.local_addr().unwrap());
    let (server, peer) = listener.accept().unwrap();
    assert_eq!(peer, src);
    let open = Span {
        before: connect.before,
        after: SystemTime::now(),
    };
    Pair {
        client,
        server,
        truth: Truth {
            src,
            dst,
            connect,
            open,
        },
    }
}

fn finish(scene: &Scene, pair: Pair, up: u64, down: u64) {
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    scene.expect(&[
        pair.truth.outbound().bytes(up, down).ok("local"),
        pair.truth.inbound().bytes(down, up).ok("peer"),
    ]);
}

/// One socket, two associations, two records, two ids.
fn again_after_refusal(scene: &Scene, v: V) {
    let port = ClosedPort::new();
    let to = port.at(v);
    let socket = bound(v.at(0));
    let src = address(&socket);
    let (said, refused) = timed(|| errno_of(socket.connect(&to.into())));
    assert_eq!(said, Errno::ECONNREFUSED);
    let first = Truth {
        src,
        dst: to,
        connect: refused,
        open: refused,
    };
    let first = scene.expect(&[first.outbound().failed("refused", Some("ECONNREFUSED"), Some("peer"))]);
    drop(port);
    let listener = TcpListener::bind(to).unwrap();
    let (said, connect) = timed(|| errno_of(socket.connect(&to.into())));
    assert_eq!(said, Errno::from_raw(0));
    let pair = accepted(&listener, socket.into(), connect);
    exchange(&pair, 1000, 300);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    let second = scene.expect(&[
        pair.truth.outbound().bytes(1000, 300).ok("local"),
        pair.truth.inbound().bytes(300, 1000).ok("peer"),
    ]);
    assert!(first[0]["id"] != second[0]["id"], "one id for two associations");
}

/// A socket whose first life was reset by AF_UNSPEC, its listener, and the id of that life.
fn dissolved(scene: &Scene, v: V) -> (Socket, TcpListener, Value) {
    let listener = listen(v);
    let dst = listener.local_addr().unwrap();
    let socket = bound(v.at(0));
    let (said, connect) = timed(|| errno_of(socket.connect(&dst.into())));
    assert_eq!(said, Errno::from_raw(0));
    let first = accepted(&listener, socket.into(), connect);
    exchange(&first, 1000, 300);
    flushed(&first.server);
    dissolve(&first.client);
    assert_eq!(error_of(&first.server), Errno::ECONNRESET);
    // The kernel puts ECONNRESET on the socket only after the change of state that the record is made of.
    let mut outbound = first.truth.outbound().bytes(1000, 300).reset_by_local();
    outbound.errno = &[None, Some("ECONNRESET")];
    let told = scene.expect(&[
        outbound,
        first.truth.inbound().bytes(300, 1000).reset_by_peer().by(&["listener"]),
    ]);
    let socket = Socket::from(first.client);
    let _ = socket.take_error();
    (socket, listener, told[0]["id"].clone())
}

fn dissolved_and_again(scene: &Scene, v: V) {
    let (socket, listener, id) = dissolved(scene, v);
    let dst = listener.local_addr().unwrap();
    // The second life has another length and other bytes.
    let (said, connect) = timed(|| errno_of(socket.connect(&dst.into())));
    assert_eq!(said, Errno::from_raw(0));
    let second = accepted(&listener, socket.into(), connect);
    exchange(&second, 77, 88);
    drop(second.client);
    assert_eq!(drain(&second.server), 0);
    drop(second.server);
    let more = scene.expect(&[
        second.truth.outbound().bytes(77, 88).ok("local"),
        second.truth.inbound().bytes(88, 77).ok("peer"),
    ]);
    assert!(id != more[0]["id"], "one id for two associations");
}

/// TCP_REPAIR connects and closes without a segment: what the socket keeps of its last one is of its life before.
fn restored(scene: &Scene, v: V) {
    let (socket, listener, _) = dissolved(scene, v);
    let dst = listener.local_addr().unwrap();
    set_tcp_option(&socket, libc::TCP_REPAIR, 1);
    let (said, connect) = timed(|| errno_of(socket.connect(&dst.into())));
    assert_eq!(said, Errno::from_raw(0));
    let src = address(&socket);
    drop(socket);
    let truth = Truth {
        src,
        dst,
        connect,
        open: connect,
    };
    scene.expect(&[truth.outbound().reset_by_local().states(&["ESTABLISHED"])]);
}

fn dissolved_while_connecting(scene: &Scene, v: V) {
    let port = ClosedPort::new();
    let to = port.at(v);
    net::rules(&[&format!("tcp dport {} drop", to.port())]);
    let attempt = dial(v.at(0), to);
    dissolve(&attempt.socket);
    let mut want = attempt.truth.outbound().failed("connect_aborted", None, Some("local"));
    want.errno = &[None, Some("ECONNRESET")];
    scene.expect(&[want]);
}

/// A socket whose SYN meets itself: one socket, one record, what it sent is what it received.
fn to_itself(scene: &Scene, v: V) {
    let socket = bound(v.at(0));
    let own = address(&socket);
    let (said, connect) = timed(|| errno_of(socket.connect(&own.into())));
    assert_eq!(said, Errno::from_raw(0));
    let stream = TcpStream::from(socket);
    give(&stream, 500);
    take(&stream, 500);
    drop(stream);
    let truth = Truth {
        src: own,
        dst: own,
        connect,
        open: connect,
    };
    // Its own FIN comes before the acknowledgement of it.
    scene.expect(&[truth
        .outbound()
        .bytes(500, 500)
        .ok("local")
        .states(&["CLOSING", "FIN_WAIT2"])]);
}

/// Fast Open at both ends of this namespace, and a listener that allows it.
fn fast_listener(v: V) -> TcpListener {
    net::sysctl("net.ipv4.tcp_fastopen", "3");
    let listener = listen(v);
    set_tcp_option(&listener, libc::TCP_FASTOPEN, 16);
    listener
}

/// sendto() with MSG_FASTOPEN: connects and sends at once.
fn fast_send(socket: &Socket, to: &TcpListener, count: usize) -> Errno {
    let to = SockAddr::from(to.local_addr().unwrap());
    errno_of(
        socket
            .send_to_with_flags(&vec![1; count], &to, libc::MSG_FASTOPEN)
            .map(|sent| assert_eq!(sent, count)),
    )
}

const SYN_DATA: u8 = 32;
/// TCP_SYN_RECV.
const SYN_RECV: u32 = 3;

/// The first connection asks for a cookie, the second sends its data with the SYN.
fn fast_open(scene: &Scene, v: V) {
    let listener = fast_listener(v);
    for (count, in_syn) in [(400, false), (500, true)] {
        let socket = v.socket();
        let (said, connect) = timed(|| fast_send(&socket, &listener, count));
        assert_eq!(said, Errno::from_raw(0));
        let pair = accepted(&listener, socket.into(), connect);
        take(&pair.server, count);
        assert_eq!(
            tcp_info(&pair.client).tcpi_options & SYN_DATA != 0,
            in_syn,
            "data in the SYN"
        );
        give(&pair.client, 70);
        take(&pair.server, 70);
        give(&pair.server, 200);
        take(&pair.client, 200);
        finish(scene, pair, count as u64 + 70, 200);
    }
}

/// How long a scenario leaves between two moments that a record must not confuse.
const A_WHILE: Duration = Duration::from_millis(50);

/// With TCP_FASTOPEN_CONNECT the first write sends the SYN, and the attempt begins then. Without a cookie, connect() sends the SYN.
fn fast_open_connect(scene: &Scene, v: V) {
    let listener = fast_listener(v);
    let dst = listener.local_addr().unwrap();
    for (count, in_syn) in [(400, false), (500, true)] {
        let socket = v.socket();
        set_tcp_option(&socket, libc::TCP_FASTOPEN_CONNECT, 1);
        let ((), by_connect) = timed(|| socket.connect(&dst.into()).unwrap());
        let client = TcpStream::from(socket);
        if in_syn {
            sleep(A_WHILE);
        }
        let ((), by_write) = timed(|| give(&client, count));
        let connect = if in_syn { by_write } else { by_connect };
        let pair = accepted(&listener, client, connect);
        take(&pair.server, count);
        assert_eq!(
            tcp_info(&pair.client).tcpi_options & SYN_DATA != 0,
            in_syn,
            "data in the SYN"
        );
        finish(scene, pair, count as u64, 0);
    }
}

/// The server has the data and closes before the handshake is over, which its SYN-ACK never let happen.
fn fast_open_dies_in_syn_recv(scene: &Scene, v: V) {
    let listener = fast_listener(v);
    let socket = v.socket();
    let (said, connect) = timed(|| fast_send(&socket, &listener, 10));
    assert_eq!(said, Errno::from_raw(0));
    let cookie = accepted(&listener, socket.into(), connect);
    take(&cookie.server, 10);
    finish(scene, cookie, 10, 0);

    // From here on without cookies (4: the client sends none, 512: the server wants none): the kernel may forget the first one.
    net::sysctl("net.ipv4.tcp_fastopen", "519");
    let port = listener.local_addr().unwrap().port();
    net::rules(&[&format!("tcp sport {port} tcp flags & (syn | ack) == (syn | ack) drop")]);
    let socket = bound(v.at(0));
    socket.set_nonblocking(true).unwrap();
    let (said, connect) = timed(|| fast_send(&socket, &listener, 500));
    assert!(said == Errno::from_raw(0) || said == Errno::EINPROGRESS, "{said}");
    let pair = accepted(&listener, socket.into(), connect);
    // Its start lies that long before its end.
    sleep(A_WHILE);
    drop(pair.server);
    // RST in SYN_SENT.
    assert_eq!(error_of(&pair.client), Errno::ECONNREFUSED);
    let mut inbound = pair
        .truth
        .inbound()
        .bytes(0, 500)
        .reset_by_local()
        .states(&["SYN_RECV"]);
    inbound.established = false;
    scene.expect(&[
        pair.truth
            .outbound()
            .undelivered(500)
            .failed("refused", Some("ECONNREFUSED"), Some("peer")),
        inbound,
    ]);
}

/// A Fast Open server's socket gets its addresses only after it was made. One that the filter rejects by its addresses is never
/// counted as open, and one that passes is, once it is established.
fn fast_open_children_that_are_filtered_out() {
    let listener = fast_listener(V::Four);
    net::sysctl("net.ipv4.tcp_fastopen", "519");
    let server = listener.local_addr().unwrap();
    let tracer_for = |to: IpAddr| {
        let tracer = Tracer::json(&["--to-ip", &to.to_string()]);
        tracer.store.keep(net::inode());
        tracer
    };
    let (passing, rejecting) = (tracer_for(server.ip()), tracer_for(net::address(9).into()));
    let open = |tracer: &Tracer, asked: usize| {
        tracer.signal(Signal::SIGUSR1);
        let summaries = tracer.store.wait_summaries(asked).unwrap();
        let sums = Sums::of(&summaries[asked - 1]);
        sums.check();
        sums.open
    };
    let connect = || {
        let socket = bound(V::Four.at(0));
        socket.set_nonblocking(true).unwrap();
        let (said, connect) = timed(|| fast_send(&socket, &listener, 100));
        assert!(said == Errno::from_raw(0) || said == Errno::EINPROGRESS, "{said}");
        accepted(&listener, socket.into(), connect)
    };
    let established = connect();
    assert_eq!(open(&rejecting, 1), 0, "a child that is established");
    assert_eq!(open(&passing, 1), 2, "both ends");
    let port = server.port();
    net::rules(&[&format!("tcp sport {port} tcp flags & (syn | ack) == (syn | ack) drop")]);
    let half_open = connect();
    assert_eq!(u32::from(tcp_info(&half_open.server).tcpi_state), SYN_RECV);
    assert_eq!(open(&rejecting, 2), 0, "a child in SYN_RECV");
    // The filter has not judged the new child yet.
    assert_eq!(open(&passing, 2), 3, "the new client");
    for pair in [established, half_open] {
        drop(pair.server);
        drop(pair.client);
    }
    let ended = |records: &[Rec]| (records.len() == 4).then_some(());
    passing.store.wait(net::inode(), ended).unwrap();
    assert_eq!(open(&passing, 3), 0, "all have ended");
    let sums = passing.interrupt().check_whole();
    assert_eq!((sums.delivered, sums.open), (4, 0), "{sums:?}");
    let sums = rejecting.interrupt().check_whole();
    assert_eq!((sums.delivered, sums.open), (0, 0), "{sums:?}");
}

/// A deferred connect() without a write sends no SYN, so it is no attempt and has no record, although its state is SYN_SENT.
fn a_write_that_never_came() {
    let tracer = Tracer::json(&["--events", "open,update,close", "--interval", "200ms"]);
    let scene = Scene::new(&tracer.store);
    for v in [V::Four, V::Six] {
        let listener = fast_listener(v);
        let first = v.socket();
        let (said, connect) = timed(|| fast_send(&first, &listener, 10));
        assert_eq!(said, Errno::from_raw(0));
        let cookie = accepted(&listener, first.into(), connect);
        take(&cookie.server, 10);
        let socket = v.socket();
        set_tcp_option(&socket, libc::TCP_FASTOPEN_CONNECT, 1);
        socket.connect(&listener.local_addr().unwrap().into()).unwrap();
        let port = address(&socket).port();
        // Others have updates meanwhile.
        let twice = |records: &[Rec]| {
            let updates = records.iter().filter(|rec| rec.value["event"] == "update");
            (updates.count() >= 8).then_some(())
        };
        tracer.store.wait(scene.netns(), twice).unwrap();
        drop(socket);
        drop(cookie.client);
        assert_eq!(drain(&cookie.server), 0);
        drop(cookie.server);
        let closed = |records: &[Rec]| {
            let closes = records
                .iter()
                .filter(|rec| rec.value["event"] == "close" && rec.value["family"] == v.name());
            (closes.count() == 2).then(|| records.to_vec())
        };
        let records = tracer.store.wait(scene.netns(), closed).unwrap();
        for Rec { value, .. } in records {
            assert!(value["src"]["port"] != 0 && value["src"]["port"] != port, "{value}");
        }
    }
    drop(scene);
    assert!(tracer.interrupt().status.success());
}

/// Leaves one port to connections from this namespace, and connects from it, so that the next connection there finds none.
fn last_port(v: V, listener: &TcpListener) -> Pair {
    let port = free_port(v);
    net::sysctl("net.ipv4.ip_local_port_range", &format!("{port} {port}"));
    crate::support::sock::pair_with(listener)
}

/// connect() that finds no free port sends nothing: no record, though its life before was reset and nobody asked why.
fn no_free_port(scene: &Scene, v: V) {
    let listener = listen(v);
    let socket = v.socket();
    let (said, connect) = timed(|| errno_of(socket.connect(&listener.local_addr().unwrap().into())));
    assert_eq!(said, Errno::from_raw(0));
    let first = accepted(&listener, socket.into(), connect);
    dissolve(&first.client);
    assert_eq!(error_of(&first.server), Errno::ECONNRESET);
    let mut outbound = first.truth.outbound().reset_by_local();
    outbound.errno = &[None, Some("ECONNRESET")];
    scene.expect(&[outbound, first.truth.inbound().reset_by_peer().by(&["listener"])]);
    let last = last_port(v, &listener);
    let again = Socket::from(first.client);
    let said = errno_of(again.connect(&listener.local_addr().unwrap().into()));
    assert_eq!(said, Errno::EADDRNOTAVAIL);
    drop(again);
    net::sysctl("net.ipv4.ip_local_port_range", "32768 60999");
    finish(scene, last, 0, 0);
}

/// connect() that finds no free port gives no record, even if the socket has an error that its program has not read.
fn no_free_port_after_refusal(scene: &Scene, v: V) {
    let closed = ClosedPort::new();
    let to = closed.at(v);
    // A port that the kernel chose would not outlive the attempt.
    let attempt = dial(v.at(free_port(v)), to);
    // POLLERR says that the answer is in, and leaves the error where it is.
    wait_error(&attempt.socket);
    scene.expect(&[attempt
        .truth
        .outbound()
        .failed("refused", Some("ECONNREFUSED"), Some("peer"))]);
    dissolve(&attempt.socket);
    let listener = listen(v);
    let dst = listener.local_addr().unwrap();
    // This connection has the four numbers that the next one would need.
    let taken = bound(attempt.truth.src);
    let (said, connect) = timed(|| errno_of(taken.connect(&dst.into())));
    assert_eq!(said, Errno::from_raw(0));
    let pair = accepted(&listener, taken.into(), connect);
    let again = Socket::from(attempt.socket);
    let said = errno_of(again.connect(&dst.into()));
    assert_eq!(said, Errno::EADDRNOTAVAIL);
    drop(again);
    finish(scene, pair, 0, 0);
}

/// An attempt that its program closes has not ended by the error of the one before, which nobody has read.
fn closed_with_an_old_error(scene: &Scene, v: V) {
    let closed = ClosedPort::new();
    let attempt = dial(v.at(0), closed.at(v));
    wait_error(&attempt.socket);
    scene.expect(&[attempt
        .truth
        .outbound()
        .failed("refused", Some("ECONNREFUSED"), Some("peer"))]);
    dissolve(&attempt.socket);
    net::rules(&[&format!("tcp dport {} drop", closed.number())]);
    let socket = Socket::from(attempt.socket);
    let (said, connect) = timed(|| errno_of(socket.connect(&closed.at(v).into())));
    assert_eq!(said, Errno::EINPROGRESS);
    let src = address(&socket);
    drop(socket);
    let truth = Truth {
        src,
        dst: closed.at(v),
        connect,
        open: connect,
    };
    scene.expect(&[truth.outbound().failed("connect_aborted", None, Some("local"))]);
}

/// A life that ends cleanly is `ok`, though the one before was reset and nobody has read that error.
fn reset_of_an_earlier_life(scene: &Scene, v: V) {
    let listener = listen(v);
    let dst = listener.local_addr().unwrap();
    let socket = v.socket();
    let (said, connect) = timed(|| errno_of(socket.connect(&dst.into())));
    assert_eq!(said, Errno::from_raw(0));
    let first = accepted(&listener, socket.into(), connect);
    dissolve(&first.client);
    assert_eq!(error_of(&first.server), Errno::ECONNRESET);
    let mut outbound = first.truth.outbound().reset_by_local();
    outbound.errno = &[None, Some("ECONNRESET")];
    scene.expect(&[outbound, first.truth.inbound().reset_by_peer().by(&["listener"])]);
    let again = Socket::from(first.client);
    let (said, connect) = timed(|| errno_of(again.connect(&dst.into())));
    assert_eq!(said, Errno::from_raw(0));
    let second = accepted(&listener, again.into(), connect);
    finish(scene, second, 0, 0);
}

/// The server waits for data before it makes a socket of the handshake. The client resets before that: the server's end
/// never was.
fn deferred_accept_reset(scene: &Scene, v: V) {
    let listener = listen(v);
    set_tcp_option(&listener, libc::TCP_DEFER_ACCEPT, 30);
    let dst = listener.local_addr().unwrap();
    let (client, connect) = timed(|| TcpStream::connect(dst).unwrap());
    let truth = Truth {
        src: client.local_addr().unwrap(),
        dst,
        connect,
        open: connect,
    };
    reset(client);
    drop(listener);
    scene.expect(&[truth.outbound().reset_by_local()]);
}

/// The subflow is what is traced: plain TCP, with the payload as its bytes. A kernel worker closes it, at which end first is
/// its affair.
fn mptcp(scene: &Scene, v: V) {
    mptcp_with(scene, v, Protocol::MPTCP);
}

/// The client speaks MPTCP, the server does not.
fn mptcp_falls_back(scene: &Scene, v: V) {
    mptcp_with(scene, v, Protocol::TCP);
}

fn mptcp_with(scene: &Scene, v: V, server: Protocol) {
    let listener = stream_socket(v.at(0), server);
    listener.bind(&v.at(0).into()).unwrap();
    listener.listen(8).unwrap();
    let listener = TcpListener::from(listener);
    let dst = listener.local_addr().unwrap();
    let socket = stream_socket(dst, Protocol::MPTCP);
    let (said, connect) = timed(|| errno_of(socket.connect(&dst.into())));
    assert_eq!(said, Errno::from_raw(0));
    let pair = accepted(&listener, socket.into(), connect);
    exchange(&pair, 1000, 300);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    let me = Proc::NobodyOr(std::process::id());
    let mut wants = [
        pair.truth.outbound().bytes(1000, 300).ok("local"),
        pair.truth.inbound().bytes(300, 1000).ok("peer"),
    ];
    for want in &mut wants {
        want.process = me.clone();
        if server == Protocol::MPTCP {
            want.old_state = &[];
            want.any_closer = true;
        }
    }
    scene.expect(&wants);
}

/// Only TCP, and only connections: UDP, Unix sockets and listeners come and go unseen.
fn not_tcp(scene: &Scene) {
    for v in [V::Four, V::Six] {
        let (one, other) = (UdpSocket::bind(v.at(0)).unwrap(), UdpSocket::bind(v.at(0)).unwrap());
        one.connect(other.local_addr().unwrap()).unwrap();
        one.send(b"hello").unwrap();
        other.recv(&mut [0; 5]).unwrap();
        drop(listen(v));
        // Bound, never connected.
        drop(bound(v.at(0)));
        drop(v.socket());
    }
    drop(UnixStream::pair().unwrap());
    scene.expect_nothing();
}

/// Known only by HBONE's port.
fn security_policy(scene: &Scene) {
    let listener = TcpListener::bind(V::Four.at(15008)).unwrap();
    let pair = crate::support::sock::pair_with(&listener);
    exchange(&pair, 1, 2);
    finish(scene, pair, 1, 2);
}
