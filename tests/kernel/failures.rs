//! Connection attempts that fail, and established connections that the network breaks.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use nix::errno::Errno;
use socket2::{SockRef, TcpKeepalive};

use crate::Topic;
use crate::support::expect::Expected;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::record_view::RecordView;
use crate::support::sock::{
    ClosedPort, IpVersion, Pair, Truth, connect_blocking, connect_errno, connect_nonblocking, connect_nonblocking_with,
    errno_of, exchanged_pair, pair_with, reset, send, set_tcp_option, take_error,
};
use crate::support::tcp_info::TcpInfo;

pub fn topic() -> Topic {
    const NFT: &[Need] = &[Need::Nft];
    Topic::new("failures")
        .both_versions("connect_refused_by_rst", &[], connect_refused_by_rst)
        .both_versions(
            "nonblocking_connect_refused_by_rst",
            &[],
            nonblocking_connect_refused_by_rst,
        )
        .both_versions(
            "connect_of_unbound_socket_refused",
            &[],
            connect_of_unbound_socket_refused,
        )
        .both_versions("icmp_port_unreachable", NFT, |view, version| {
            icmp(view, version, "port-unreachable", "port-unreachable");
        })
        .both_versions("icmp_host_unreachable", NFT, |view, version| {
            icmp(view, version, "host-unreachable", "addr-unreachable");
        })
        .both_versions("icmp_net_unreachable", NFT, |view, version| {
            icmp(view, version, "net-unreachable", "no-route");
        })
        .both_versions("icmp_admin_prohibited", NFT, |view, version| {
            icmp(view, version, "admin-prohibited", "admin-prohibited");
        })
        .both_versions(
            "program_closes_unanswered_attempt",
            NFT,
            program_closes_unanswered_attempt,
        )
        .both_versions("unanswered_attempt_times_out", NFT, unanswered_attempt_times_out)
        .both_versions(
            "user_timeout_of_unanswered_attempt",
            NFT,
            user_timeout_of_unanswered_attempt,
        )
        .both_versions("no_neighbor", &[Need::Veth], no_neighbor)
        .shared("no_route_is_no_attempt", &[], no_route_is_no_attempt)
        .shared("no_free_port_is_no_attempt", &[], no_free_port_is_no_attempt)
        .both_versions("peer_vanishes", NFT, peer_vanishes)
        .both_versions("peer_vanishes_after_close", NFT, peer_vanishes_after_close)
        .both_versions("keepalive_times_out", NFT, keepalive_times_out)
        .both_versions("peer_becomes_unreachable", NFT, peer_becomes_unreachable)
}

fn refused(truth: &Truth) -> Expected {
    truth
        .outbound()
        .connect_failed("refused", Some("ECONNREFUSED"), Some("peer"))
}

fn connect_refused_by_rst(view: &RecordView, version: IpVersion) {
    let port = ClosedPort::new();
    let (errno, truth) = connect_blocking(version.at(0), port.at(version), |_| ());
    assert_eq!(errno, Errno::ECONNREFUSED);
    view.expect(&[refused(&truth)]);
}

fn nonblocking_connect_refused_by_rst(view: &RecordView, version: IpVersion) {
    let port = ClosedPort::new();
    let attempt = connect_nonblocking(version.at(0), port.at(version));
    assert_eq!(attempt.errno, Errno::EINPROGRESS);
    assert_eq!(take_error(&attempt.socket), Errno::ECONNREFUSED);
    view.expect(&[refused(&attempt.truth)]);
    drop(attempt.socket);
    view.expect_nothing();
}

/// The kernel chooses the client's port, and releases it before connect() returns.
fn connect_of_unbound_socket_refused(view: &RecordView, version: IpVersion) {
    let port = ClosedPort::new();
    let to = port.at(version);
    let (errno, connect) = connect_errno(&version.socket(), to);
    assert_eq!(errno, Errno::ECONNREFUSED);
    // For any address of 127.0.0.0/8 the kernel chooses this source address.
    let from = match version {
        IpVersion::V4 => Ipv4Addr::LOCALHOST.into(),
        IpVersion::V6 => to.ip(),
    };
    view.expect(&[refused(&Truth::not_accepted(SocketAddr::new(from, 0), to, connect))]);
}

/// An ICMP error answers the SYN of a blocking and of a non-blocking connect(). Both have the socket locked when it
/// arrives, since the loopback answers immediately. The blocking one sleeps until the next SYN, a second later, gets
/// another. The non-blocking one reads it from the error queue (IPv4) or gets the next one, too (IPv6), and closes.
fn icmp(view: &RecordView, version: IpVersion, code_v4: &str, code_v6: &str) {
    let port = ClosedPort::new();
    let to = port.at(version);
    let reject = match version {
        IpVersion::V4 => format!("icmp type {code_v4}"),
        IpVersion::V6 => format!("icmpv6 type {code_v6}"),
    };
    net::set_packet_filter(&[&format!("tcp dport {} reject with {reject}", to.port())]);
    let (outcome, errno, name, closed_by) = match (version, code_v4) {
        (_, "port-unreachable") => ("refused", Errno::ECONNREFUSED, "ECONNREFUSED", Some("peer")),
        (_, "net-unreachable") => ("unreachable", Errno::ENETUNREACH, "ENETUNREACH", None),
        // With IPv4 the kernel maps both codes to the same error.
        (IpVersion::V6, "admin-prohibited") => ("unreachable", Errno::EACCES, "EACCES", None),
        _ => ("unreachable", Errno::EHOSTUNREACH, "EHOSTUNREACH", None),
    };
    let expected = |truth: &Truth| truth.outbound().connect_failed(outcome, Some(name), closed_by);
    let (blocking_errno, blocking) = connect_blocking(version.at(0), to, |_| ());
    assert_eq!(blocking_errno, errno);
    view.expect(&[expected(&blocking)]);
    let attempt = connect_nonblocking(version.at(0), to);
    assert_eq!(attempt.errno, Errno::EINPROGRESS);
    assert_eq!(take_error(&attempt.socket), errno);
    drop(attempt.socket);
    view.expect(&[expected(&attempt.truth)]);
}

fn program_closes_unanswered_attempt(view: &RecordView, version: IpVersion) {
    const SYN_SENT: u8 = 2;
    let port = ClosedPort::blackhole();
    let attempt = connect_nonblocking(version.at(0), port.at(version));
    assert_eq!(attempt.errno, Errno::EINPROGRESS);
    assert_eq!(TcpInfo::read(&attempt.socket).state(), SYN_SENT);
    drop(attempt.socket);
    view.expect(&[attempt
        .truth
        .outbound()
        .connect_failed("connect_aborted", None, Some("local"))]);
}

fn connect_timeout(truth: &Truth) -> Expected {
    truth
        .outbound()
        .connect_failed("connect_timeout", Some("ETIMEDOUT"), None)
}

/// The kernel retransmits the SYN once: TCP_SYNCNT limits one attempt, a sysctl the other.
fn unanswered_attempt_times_out(view: &RecordView, version: IpVersion) {
    // Since Linux 6.5 the first four retransmissions do not count. Before, there is no such setting.
    let linear = "/proc/sys/net/ipv4/tcp_syn_linear_timeouts";
    if std::fs::exists(linear).unwrap() {
        std::fs::write(linear, "0").unwrap();
    }
    let port = ClosedPort::blackhole();
    let to = port.at(version);
    let by_option = connect_nonblocking_with(version.at(0), to, |socket| {
        set_tcp_option(socket, nix::libc::TCP_SYNCNT, 1);
    });
    net::set_sysctl("net.ipv4.tcp_syn_retries", "1");
    let by_sysctl = connect_nonblocking(version.at(0), to);
    view.expect(&[by_option, by_sysctl].map(|attempt| {
        assert_eq!(take_error(&attempt.socket), Errno::ETIMEDOUT);
        connect_timeout(&attempt.truth)
    }));
}

fn user_timeout_of_unanswered_attempt(view: &RecordView, version: IpVersion) {
    let port = ClosedPort::blackhole();
    let (errno, truth) = connect_blocking(version.at(0), port.at(version), |socket| {
        socket.set_tcp_user_timeout(Some(Duration::from_millis(1500))).unwrap();
    });
    assert_eq!(errno, Errno::ETIMEDOUT);
    view.expect(&[connect_timeout(&truth)]);
}

fn no_neighbor(view: &RecordView, version: IpVersion) {
    net::unanswered_veth();
    let (from, to) = match version {
        IpVersion::V4 => ("10.9.0.1:0", "10.9.0.2:80"),
        IpVersion::V6 => ("[fd09::1]:0", "[fd09::2]:80"),
    };
    let (errno, truth) = connect_blocking(from.parse().unwrap(), to.parse().unwrap(), |_| ());
    assert_eq!(errno, Errno::EHOSTUNREACH);
    view.expect(&[truth
        .outbound()
        .connect_failed("unreachable", Some("EHOSTUNREACH"), None)]);
}

/// A destination without a route fails before connect() sends a SYN.
fn no_route_is_no_attempt(view: &RecordView) {
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
        let version = if to.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
        assert_eq!(errno_of(version.socket().connect(&to.into())), errno, "{to}");
    }
    view.expect_nothing();
}

/// connect() that finds no free port sends no SYN, although the socket is in SYN_SENT for a moment.
fn no_free_port_is_no_attempt(view: &RecordView) {
    net::set_sysctl("net.ipv4.ip_local_port_range", "40000 40001");
    let to = IpVersion::V4.at(9000);
    let listener = TcpListener::bind(to).unwrap();
    let pairs = [(); 2].map(|()| pair_with(&listener));
    let (errno, _) = connect_errno(&IpVersion::V4.socket(), to);
    assert_eq!(errno, Errno::EADDRNOTAVAIL);
    let expected = pairs.map(|pair| {
        let truth = pair.close_client_first();
        [truth.outbound().ok("local"), truth.inbound().ok("peer")]
    });
    net::set_sysctl("net.ipv4.ip_local_port_range", "40000 50000");
    view.expect(&expected.concat());
}

fn set_user_timeout(pair: &Pair, millis: u64) {
    let timeout = Some(Duration::from_millis(millis));
    SockRef::from(&pair.client).set_tcp_user_timeout(timeout).unwrap();
}

/// Drops all packets of the connection.
fn cut_off(pair: &Pair) {
    let port = pair.truth.dst.port();
    net::set_packet_filter(&[&format!("tcp dport {port} drop"), &format!("tcp sport {port} drop")]);
}

/// The client sends data that gets lost, until TCP_USER_TIMEOUT. Later the server can reach it again and closes: the
/// client's kernel answers with a RST, which the server gets in FIN_WAIT1.
fn peer_vanishes(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    set_user_timeout(&pair, 500);
    cut_off(&pair);
    send(&pair.client, 500);
    assert_eq!(take_error(&pair.client), Errno::ETIMEDOUT);
    net::set_packet_filter(&[]);
    drop(pair.server);
    view.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .undelivered(500)
            .ended("timeout", Some("ETIMEDOUT"), None)
            .old_states(&["ESTABLISHED"]),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .ended("reset_by_peer", Some("ECONNRESET"), Some("local"))
            .old_states(&["FIN_WAIT1"]),
    ]);
}

/// The client has closed. Its kernel retransmits until TCP_USER_TIMEOUT.
fn peer_vanishes_after_close(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    set_user_timeout(&pair, 500);
    cut_off(&pair);
    send(&pair.client, 500);
    drop(pair.client);
    view.expect(&[pair
        .truth
        .outbound()
        .bytes(1000, 300)
        .undelivered(500)
        .ended("timeout", Some("ETIMEDOUT"), Some("local"))
        .old_states(&["FIN_WAIT1"])]);
    reset(pair.server);
    view.expect(&[pair.truth.inbound().bytes(300, 1000).reset_by_local()]);
}

fn keepalive_times_out(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    cut_off(&pair);
    let second = Duration::from_secs(1);
    let probes = TcpKeepalive::new()
        .with_time(second)
        .with_interval(second)
        .with_retries(1);
    SockRef::from(&pair.server).set_tcp_keepalive(&probes).unwrap();
    assert_eq!(take_error(&pair.server), Errno::ETIMEDOUT);
    reset(pair.client);
    view.expect(&[
        pair.truth.outbound().bytes(1000, 300).reset_by_local(),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .ended("timeout", Some("ETIMEDOUT"), None)
            .found_by(&["listener"]),
    ]);
}

/// The kernel only notes ICMP errors of an established connection. When retransmission ends, the error becomes the
/// reason.
fn peer_becomes_unreachable(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    set_user_timeout(&pair, 1500);
    let reject = match version {
        IpVersion::V4 => "icmp type host-unreachable",
        IpVersion::V6 => "icmpv6 type addr-unreachable",
    };
    net::set_packet_filter(&[&format!("tcp dport {} reject with {reject}", pair.truth.dst.port())]);
    send(&pair.client, 500);
    assert_eq!(take_error(&pair.client), Errno::EHOSTUNREACH);
    reset(pair.server);
    view.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .undelivered(500)
            .ended("unreachable", Some("EHOSTUNREACH"), None)
            .old_states(&["ESTABLISHED"]),
        pair.truth.inbound().bytes(300, 1000).reset_by_local(),
    ]);
}
