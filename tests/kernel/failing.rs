//! Attempts that never connect, and connections that the network takes away.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use nix::errno::Errno;
use socket2::{SockRef, TcpKeepalive};

use crate::Table;
use crate::support::expect::Scene;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::sock::{
    ClosedPort, Truth, V, dial, dial_blocking, dial_with, errno_of, error_of, exchange, flushed, give, pair, pair_with,
    reset, set_tcp_option, tcp_info, timed,
};

/// The trials.
pub fn table() -> Table {
    Table::new("failing")
        .both("refused_by_reset", &[], refused_by_reset)
        .both("refused_by_reset_nonblocking", &[], refused_by_reset_nonblocking)
        .both("refused_unbound", &[], refused_unbound)
        .both("icmp_port", &[Need::Nft], |scene, v| {
            icmp(scene, v, "port-unreachable", "port-unreachable")
        })
        .both("icmp_host", &[Need::Nft], |scene, v| {
            icmp(scene, v, "host-unreachable", "addr-unreachable")
        })
        .both("icmp_net", &[Need::Nft], |scene, v| {
            icmp(scene, v, "net-unreachable", "no-route")
        })
        .both("icmp_prohibited", &[Need::Nft], |scene, v| {
            icmp(scene, v, "admin-prohibited", "admin-prohibited")
        })
        .both("blackholed_program_gives_up", &[Need::Nft], blackholed_program_gives_up)
        .both("blackholed_kernel_gives_up", &[Need::Nft], blackholed_kernel_gives_up)
        .both("blackholed_user_timeout", &[Need::Nft], blackholed_user_timeout)
        .both("no_neighbour", &[Need::Veth], no_neighbour)
        .shared("no_route", &[], no_route)
        .shared("no_port", &[], no_port)
        .both("peer_vanished", &[Need::Nft], peer_vanished)
        .both("peer_vanished_after_close", &[Need::Nft], peer_vanished_after_close)
        .both("keepalive", &[Need::Nft], keepalive)
        .both("unreachable_once_connected", &[Need::Nft], unreachable_once_connected)
}

fn refused_by_reset(scene: &Scene, v: V) {
    let port = ClosedPort::new();
    let (said, truth) = dial_blocking(v.at(0), port.at(v), |_| ());
    assert_eq!(said, Errno::ECONNREFUSED);
    scene.expect(&[truth.outbound().failed("refused", Some("ECONNREFUSED"), Some("peer"))]);
}

fn refused_by_reset_nonblocking(scene: &Scene, v: V) {
    let port = ClosedPort::new();
    let attempt = dial(v.at(0), port.at(v));
    assert_eq!(attempt.said, Errno::EINPROGRESS);
    assert_eq!(error_of(&attempt.socket), Errno::ECONNREFUSED);
    scene.expect(&[attempt
        .truth
        .outbound()
        .failed("refused", Some("ECONNREFUSED"), Some("peer"))]);
    drop(attempt.socket);
    scene.expect_nothing();
}

/// The port is the kernel's choice, and forgotten when the program has its answer.
fn refused_unbound(scene: &Scene, v: V) {
    let port = ClosedPort::new();
    let to = port.at(v);
    let socket = v.socket();
    let (said, connect) = timed(|| errno_of(socket.connect(&to.into())));
    assert_eq!(said, Errno::ECONNREFUSED);
    // To whichever address of the loopback network, it connects from this one.
    let from = if v == V::Four {
        Ipv4Addr::LOCALHOST.into()
    } else {
        to.ip()
    };
    let truth = Truth {
        src: SocketAddr::new(from, 0),
        dst: to,
        connect,
        open: connect,
    };
    scene.expect(&[truth.outbound().failed("refused", Some("ECONNREFUSED"), Some("peer"))]);
}

/// ICMP in answer to the SYN, to a blocking and to a non-blocking connect(). Both have the socket locked when the answer
/// comes (loopback answers at once). The blocking one sleeps until the next SYN, a second later, gets another; the
/// non-blocking one learns of it from the error queue (IPv4) or from the next SYN too (IPv6), and closes.
fn icmp(scene: &Scene, v: V, four: &str, six: &str) {
    let port = ClosedPort::new();
    let to = port.at(v);
    let answer = match v {
        V::Four => format!("tcp dport {} reject with icmp type {four}", to.port()),
        V::Six => format!("tcp dport {} reject with icmpv6 type {six}", to.port()),
    };
    net::rules(&[&answer]);
    let (outcome, errno, name, closed_by) = match (v, four) {
        (_, "port-unreachable") => ("refused", Errno::ECONNREFUSED, "ECONNREFUSED", Some("peer")),
        (_, "net-unreachable") => ("unreachable", Errno::ENETUNREACH, "ENETUNREACH", None),
        // For IPv4 the kernel tells a host that may not be reached from one that cannot be by the code alone.
        (V::Six, "admin-prohibited") => ("unreachable", Errno::EACCES, "EACCES", None),
        _ => ("unreachable", Errno::EHOSTUNREACH, "EHOSTUNREACH", None),
    };
    let (said, blocking) = dial_blocking(v.at(0), to, |_| ());
    assert_eq!(said, errno);
    scene.expect(&[blocking.outbound().failed(outcome, Some(name), closed_by)]);
    let attempt = dial(v.at(0), to);
    assert_eq!(attempt.said, Errno::EINPROGRESS);
    assert_eq!(error_of(&attempt.socket), errno);
    drop(attempt.socket);
    scene.expect(&[attempt.truth.outbound().failed(outcome, Some(name), closed_by)]);
}

/// A port whose SYNs get no answer.
fn blackhole() -> ClosedPort {
    let port = ClosedPort::new();
    net::rules(&[&format!("tcp dport {} drop", port.number())]);
    port
}

fn blackholed_program_gives_up(scene: &Scene, v: V) {
    const SYN_SENT: u8 = 2;
    let port = blackhole();
    let attempt = dial(v.at(0), port.at(v));
    assert_eq!(attempt.said, Errno::EINPROGRESS);
    assert_eq!(tcp_info(&attempt.socket).tcpi_state, SYN_SENT);
    drop(attempt.socket);
    scene.expect(&[attempt.truth.outbound().failed("connect_aborted", None, Some("local"))]);
}

/// One repetition of the SYN, by sysctl and by TCP_SYNCNT.
fn blackholed_kernel_gives_up(scene: &Scene, v: V) {
    // Since 6.5 the first four repetitions do not count; before, there is no such setting.
    let linear = "/proc/sys/net/ipv4/tcp_syn_linear_timeouts";
    if std::fs::exists(linear).unwrap() {
        std::fs::write(linear, "0").unwrap();
    }
    let port = blackhole();
    let to = port.at(v);
    let by_option = dial_with(v.at(0), to, |socket| set_tcp_option(socket, nix::libc::TCP_SYNCNT, 1));
    net::sysctl("net.ipv4.tcp_syn_retries", "1");
    let by_sysctl = dial(v.at(0), to);
    let wants = [by_option, by_sysctl].map(|attempt| {
        assert_eq!(error_of(&attempt.socket), Errno::ETIMEDOUT);
        attempt
            .truth
            .outbound()
            .failed("connect_timeout", Some("ETIMEDOUT"), None)
    });
    scene.expect(&wants);
}

fn blackholed_user_timeout(scene: &Scene, v: V) {
    let port = blackhole();
    let (said, truth) = dial_blocking(v.at(0), port.at(v), |socket| {
        socket.set_tcp_user_timeout(Some(Duration::from_millis(1500))).unwrap();
    });
    assert_eq!(said, Errno::ETIMEDOUT);
    scene.expect(&[truth.outbound().failed("connect_timeout", Some("ETIMEDOUT"), None)]);
}

fn no_neighbour(scene: &Scene, v: V) {
    net::dead_wire();
    let (from, to): (SocketAddr, SocketAddr) = match v {
        V::Four => ("10.9.0.1:0".parse().unwrap(), "10.9.0.2:80".parse().unwrap()),
        V::Six => ("[fd09::1]:0".parse().unwrap(), "[fd09::2]:80".parse().unwrap()),
    };
    let (said, truth) = dial_blocking(from, to, |_| ());
    assert_eq!(said, Errno::EHOSTUNREACH);
    scene.expect(&[truth.outbound().failed("unreachable", Some("EHOSTUNREACH"), None)]);
}

/// What the local routing table refuses never becomes an attempt.
fn no_route(scene: &Scene) {
    net::run("ip", &["route", "add", "unreachable", "10.7.0.0/24"]);
    net::run("ip", &["route", "add", "prohibit", "10.8.0.0/24"]);
    net::run("ip", &["route", "add", "blackhole", "10.9.0.0/24"]);
    for (to, errno) in [
        ("10.6.0.1:80", Errno::ENETUNREACH),
        ("10.7.0.1:80", Errno::EHOSTUNREACH),
        ("10.8.0.1:80", Errno::EACCES),
        ("10.9.0.1:80", Errno::EINVAL),
        ("[fd06::1]:80", Errno::ENETUNREACH),
    ] {
        let to: SocketAddr = to.parse().unwrap();
        let v = if to.is_ipv4() { V::Four } else { V::Six };
        assert_eq!(errno_of(v.socket().connect(&to.into())), errno, "{to}");
    }
    scene.expect_nothing();
}

/// connect() that finds no free port never sends a SYN, though the socket was in SYN_SENT for a moment.
fn no_port(scene: &Scene) {
    net::sysctl("net.ipv4.ip_local_port_range", "40000 40001");
    let listener = std::net::TcpListener::bind(V::Four.at(9000)).unwrap();
    let pairs = [(); 2].map(|()| pair_with(&listener));
    assert_eq!(
        errno_of(V::Four.socket().connect(&V::Four.at(9000).into())),
        Errno::EADDRNOTAVAIL
    );
    let mut wants = Vec::new();
    for pair in pairs {
        drop(pair.client);
        drop(pair.server);
        wants.push(pair.truth.outbound().ok("local"));
        wants.push(pair.truth.inbound().ok("peer"));
    }
    net::sysctl("net.ipv4.ip_local_port_range", "40000 50000");
    scene.expect(&wants);
}

fn cut_off(port: u16) {
    net::rules(&[&format!("tcp dport {port} drop"), &format!("tcp sport {port} drop")]);
}

/// The client writes into the void until TCP_USER_TIMEOUT. The server, back in reach, closes: a port with nobody answers
/// RST, which meets it in FIN_WAIT1.
fn peer_vanished(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    SockRef::from(&pair.client)
        .set_tcp_user_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    cut_off(pair.truth.dst.port());
    give(&pair.client, 500);
    assert_eq!(error_of(&pair.client), Errno::ETIMEDOUT);
    net::rules(&[]);
    drop(pair.server);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .undelivered(500)
            .ended("timeout", Some("ETIMEDOUT"), None)
            .states(&["ESTABLISHED"]),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .ended("reset_by_peer", Some("ECONNRESET"), Some("local"))
            .states(&["FIN_WAIT1"]),
    ]);
}

/// The program has closed and gone on; its kernel still tries to deliver, in vain.
fn peer_vanished_after_close(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    SockRef::from(&pair.client)
        .set_tcp_user_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    cut_off(pair.truth.dst.port());
    give(&pair.client, 500);
    drop(pair.client);
    scene.expect(&[pair
        .truth
        .outbound()
        .bytes(1000, 300)
        .undelivered(500)
        .ended("timeout", Some("ETIMEDOUT"), Some("local"))
        .states(&["FIN_WAIT1"])]);
    reset(pair.server);
    scene.expect(&[pair.truth.inbound().bytes(300, 1000).reset_by_local()]);
}

fn keepalive(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    cut_off(pair.truth.dst.port());
    let second = Duration::from_secs(1);
    let probes = TcpKeepalive::new()
        .with_time(second)
        .with_interval(second)
        .with_retries(1);
    SockRef::from(&pair.server).set_tcp_keepalive(&probes).unwrap();
    assert_eq!(error_of(&pair.server), Errno::ETIMEDOUT);
    reset(pair.client);
    scene.expect(&[
        pair.truth.outbound().bytes(1000, 300).reset_by_local(),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .ended("timeout", Some("ETIMEDOUT"), None)
            .by(&["listener"]),
    ]);
}

/// Once connected, ICMP is only noted; when retransmission gives up, it is the reason.
fn unreachable_once_connected(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    SockRef::from(&pair.client)
        .set_tcp_user_timeout(Some(Duration::from_millis(1500)))
        .unwrap();
    let answer = if v == V::Four {
        "icmp type host-unreachable"
    } else {
        "icmpv6 type addr-unreachable"
    };
    net::rules(&[&format!("tcp dport {} reject with {answer}", pair.truth.dst.port())]);
    give(&pair.client, 500);
    assert_eq!(error_of(&pair.client), Errno::EHOSTUNREACH);
    reset(pair.server);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .undelivered(500)
            .ended("unreachable", Some("EHOSTUNREACH"), None)
            .states(&["ESTABLISHED"]),
        pair.truth.inbound().bytes(300, 1000).reset_by_local(),
    ]);
}
