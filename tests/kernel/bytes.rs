//! Payload, exact to the byte.

use std::net::{SocketAddr, TcpStream};
use std::thread;

use nix::sys::socket::{MsgFlags, send};

use crate::Table;
use crate::support::expect::Scene;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::sock::{
    Pair, Span, TcpInfo, Truth, V, drain, exchange, flushed, give, listen, pair, set_tcp_option, take, timed,
};

/// The trials.
pub fn table() -> Table {
    Table::new("bytes")
        .both("none", &[], |scene, v| amounts(scene, v, 0, 0))
        .both("one", &[], |scene, v| amounts(scene, v, 1, 1))
        .both("up_only", &[], |scene, v| amounts(scene, v, 100_000, 0))
        .both("down_only", &[], |scene, v| amounts(scene, v, 0, 100_000))
        .both("mebibytes_64", &[], |scene, v| amounts(scene, v, 64 << 20, 64 << 20))
        // Past 32 bits, where every counter of the kernel's that is a sequence number has wrapped.
        .shared("gibibytes_4_4", &[Need::Big], |scene| {
            amounts(scene, V::Four, 4_724_464_026, 12_345)
        })
        .both("lossy", &[Need::Nft], lossy)
        .both("sent_again", &[Need::Nft], sent_again)
        .both("urgent", &[], urgent)
        .both("zero_copy", &[], zero_copy)
        .both("gathered_and_corked", &[], corked)
        .shared("mapped", &[], mapped)
        .shared("mapped_server", &[], mapped_server)
}

/// Both directions at once, then the client closes.
fn amounts(scene: &Scene, v: V, up: usize, down: usize) {
    let pair = pair(v);
    thread::scope(|scope| {
        scope.spawn(|| give(&pair.client, up));
        scope.spawn(|| give(&pair.server, down));
        scope.spawn(|| take(&pair.client, down));
        take(&pair.server, up);
    });
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    scene.expect(&[
        pair.truth.outbound().bytes(up as u64, down as u64).ok("local"),
        pair.truth.inbound().bytes(down as u64, up as u64).ok("peer"),
    ]);
}

/// A fifth of all packets is lost, each way; what is sent again counts once.
fn lossy(scene: &Scene, v: V) {
    let pair = pair(v);
    let port = pair.truth.dst.port();
    net::rules(&[
        &format!("tcp dport {port} numgen random mod 100 < 20 drop"),
        &format!("tcp sport {port} numgen random mod 100 < 20 drop"),
    ]);
    // Over and back, so that there are many packets however the kernel would like to join them.
    const ROUNDS: usize = 40;
    for _ in 0..ROUNDS {
        exchange(&pair, 700, 500);
    }
    net::rules(&[]);
    flushed(&pair.server);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    let (up, down) = (700 * ROUNDS as u64, 500 * ROUNDS as u64);
    let records = scene.expect(&[
        pair.truth.outbound().bytes(up, down).ok("local"),
        pair.truth.inbound().bytes(down, up).ok("peer"),
    ]);
    let again: u64 = records
        .iter()
        .filter_map(|record| record["tcp"]["total_retrans"].as_u64())
        .sum();
    // Eighty packets and their acknowledgements, one in five lost: none sent again is less likely than one in ten million.
    assert!(again > 0, "nothing was sent again: {records:?}");
}

/// Each fifth packet is lost, each way. What was sent, and sent again, is what TCP_INFO says just before the close.
fn sent_again(scene: &Scene, v: V) {
    let pair = pair(v);
    let port = pair.truth.dst.port();
    net::rules(&[
        &format!("tcp dport {port} numgen inc mod 5 == 4 drop"),
        &format!("tcp sport {port} numgen inc mod 5 == 4 drop"),
    ]);
    const ROUNDS: usize = 20;
    for _ in 0..ROUNDS {
        exchange(&pair, 700, 500);
    }
    net::rules(&[]);
    // With all of it acknowledged, only the FINs are left to send. They have no payload.
    flushed(&pair.client);
    flushed(&pair.server);
    let truths = [TcpInfo::of(&pair.client), TcpInfo::of(&pair.server)];
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    let (up, down) = (700 * ROUNDS as u64, 500 * ROUNDS as u64);
    let records = scene.expect(&[
        pair.truth.outbound().bytes(up, down).ok("local"),
        pair.truth.inbound().bytes(down, up).ok("peer"),
    ]);
    for ((record, truth), payload) in records.iter().zip(truths).zip([up, down]) {
        let (sent, again) = (truth.bytes_sent(), truth.bytes_retrans());
        assert!(again > 0 && sent == payload + again, "{sent} bytes sent, {again} again");
        assert_eq!(record["tcp"]["bytes_sent"], sent, "{record}");
        assert_eq!(record["tcp"]["bytes_retrans"], again, "{record}");
    }
}

/// One byte out of band each way, which the other end never reads.
fn urgent(scene: &Scene, v: V) {
    use std::os::fd::AsRawFd as _;
    let pair = pair(v);
    for socket in [&pair.client, &pair.server] {
        assert_eq!(send(socket.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap(), 1);
    }
    exchange(&pair, 100, 50);
    close_both(scene, pair, 101, 51);
}

/// MSG_ZEROCOPY. (The loopback copies all the same, and says so in the error queue, which is not an error.)
fn zero_copy(scene: &Scene, v: V) {
    use std::os::fd::AsRawFd as _;
    let pair = pair(v);
    set_zero_copy(&pair.client);
    let flag = MsgFlags::from_bits_retain(nix::libc::MSG_ZEROCOPY);
    let data = vec![7; 50_000];
    let mut sent = 0;
    while sent < data.len() {
        sent += send(pair.client.as_raw_fd(), &data[sent..], flag).unwrap();
    }
    take(&pair.server, data.len());
    close_both(scene, pair, 50_000, 0);
}

fn set_zero_copy(socket: &TcpStream) {
    use std::os::fd::AsRawFd as _;
    let on: i32 = 1;
    // SAFETY: the descriptor is open while `socket` is borrowed, and `on` is an int that lives through the call.
    let done = unsafe {
        nix::libc::setsockopt(
            socket.as_raw_fd(),
            nix::libc::SOL_SOCKET,
            nix::libc::SO_ZEROCOPY,
            (&raw const on).cast(),
            4,
        )
    };
    assert_eq!(done, 0, "SO_ZEROCOPY: {}", std::io::Error::last_os_error());
}

/// What waits in the socket for more to come leaves with the FIN.
fn corked(scene: &Scene, v: V) {
    let pair = pair(v);
    set_tcp_option(&pair.client, nix::libc::TCP_CORK, 1);
    give(&pair.client, 333);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 333);
    drop(pair.server);
    scene.expect(&[
        pair.truth.outbound().bytes(333, 0).ok("local"),
        pair.truth.inbound().bytes(0, 333).ok("peer"),
    ]);
}

/// The program uses IPv6 sockets, the wire IPv4.
fn mapped(scene: &Scene) {
    let listener = listen(V::Four);
    let dst = listener.local_addr().unwrap();
    let socket = V::Six.socket();
    let mapped = SocketAddr::from((net::address(0).to_ipv6_mapped(), dst.port()));
    let (client, connect) = timed(|| {
        socket.connect(&mapped.into()).unwrap();
        TcpStream::from(socket)
    });
    let (server, src) = listener.accept().unwrap();
    let open = Span {
        before: connect.before,
        after: std::time::SystemTime::now(),
    };
    let pair = Pair {
        client,
        server,
        truth: Truth {
            src,
            dst,
            connect,
            open,
        },
    };
    exchange(&pair, 1000, 300);
    close_both(scene, pair, 1000, 300);
}

/// As most servers do it: one socket at [::] for both.
fn mapped_server(scene: &Scene) {
    let listener = std::net::TcpListener::bind("[::]:0").unwrap();
    let dst = V::Four.at(listener.local_addr().unwrap().port());
    let (client, connect) = timed(|| TcpStream::connect(dst).unwrap());
    let (server, peer) = listener.accept().unwrap();
    assert!(peer.is_ipv6(), "not a mapped socket: {peer}");
    let src = client.local_addr().unwrap();
    let open = Span {
        before: connect.before,
        after: std::time::SystemTime::now(),
    };
    let pair = Pair {
        client,
        server,
        truth: Truth {
            src,
            dst,
            connect,
            open,
        },
    };
    exchange(&pair, 1000, 300);
    close_both(scene, pair, 1000, 300);
}

fn close_both(scene: &Scene, pair: Pair, up: u64, down: u64) {
    flushed(&pair.client);
    flushed(&pair.server);
    drop(pair.client);
    drain(&pair.server);
    drop(pair.server);
    scene.expect(&[
        pair.truth.outbound().bytes(up, down).ok("local"),
        pair.truth.inbound().bytes(down, up).ok("peer"),
    ]);
}
