//! The payload counters, exact to the byte.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::thread;

use nix::libc;
use nix::sys::socket::{self, MsgFlags};

use crate::Topic;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::record_view::RecordView;
use crate::support::sock::{
    IpVersion, Pair, Truth, connect, drain, exchange, listen, pair, recv, send, set_option, set_tcp_option, timed,
    wait_acknowledged,
};
use crate::support::tcp_info::TcpInfo;

pub fn topic() -> Topic {
    Topic::new("byte_counts")
        .both_versions("no_payload", &[], |view, version| transfer(view, version, 0, 0))
        .both_versions("one_byte", &[], |view, version| transfer(view, version, 1, 1))
        .both_versions("client_sends", &[], |view, version| transfer(view, version, 100_000, 0))
        .both_versions("server_sends", &[], |view, version| transfer(view, version, 0, 100_000))
        .both_versions("64_mib_each_way", &[], |view, version| {
            transfer(view, version, 64 << 20, 64 << 20);
        })
        // More than 32 bits: the kernel's sequence numbers have wrapped.
        .shared("more_than_4_gib", &[Need::FullSize], |view| {
            transfer(view, IpVersion::V4, 4_724_464_026, 12_345);
        })
        .both_versions("random_packet_loss", &[Need::Nft], random_packet_loss)
        .both_versions("retransmitted_bytes", &[Need::Nft], retransmitted_bytes)
        .both_versions("counters_equal_tcp_info", &[Need::Nft], counters_equal_tcp_info)
        .both_versions("out_of_band_data", &[], out_of_band_data)
        .both_versions("zero_copy", &[], zero_copy)
        .both_versions("corked_data_leaves_with_fin", &[], corked_data_leaves_with_fin)
        .shared("ipv4_mapped_client", &[], ipv4_mapped_client)
        .shared("ipv4_mapped_server", &[], ipv4_mapped_server)
}

/// Sends in both directions at the same time, then closes the client.
fn transfer(view: &RecordView, version: IpVersion, up: usize, down: usize) {
    let pair = pair(version);
    thread::scope(|scope| {
        scope.spawn(|| send(&pair.client, up));
        scope.spawn(|| send(&pair.server, down));
        scope.spawn(|| recv(&pair.client, down));
        recv(&pair.server, up);
    });
    view.expect_clean_close(pair, up as u64, down as u64);
}

/// A connection with many small packets while packets of both directions match a packet filter.
fn lossy_exchange(version: IpVersion, filter: &str, rounds: usize) -> Pair {
    let pair = pair(version);
    let port = pair.truth.dst.port();
    net::set_packet_filter(&[
        &format!("tcp dport {port} {filter} drop"),
        &format!("tcp sport {port} {filter} drop"),
    ]);
    // One direction after the other, so that the kernel cannot merge the packets.
    for _ in 0..rounds {
        exchange(&pair, 700, 500);
    }
    net::set_packet_filter(&[]);
    pair
}

/// A fifth of all packets is lost in each direction. Retransmitted payload counts once.
fn random_packet_loss(view: &RecordView, version: IpVersion) {
    const ROUNDS: usize = 40;
    let pair = lossy_exchange(version, "numgen random mod 100 < 20", ROUNDS);
    wait_acknowledged(&pair.server);
    let records = view.expect_clean_close(pair, 700 * ROUNDS as u64, 500 * ROUNDS as u64);
    let retransmissions = records
        .iter()
        .filter_map(|record| record["tcp"]["total_retrans"].as_u64());
    // Of eighty packets and their ACKs, one in five is lost: the probability of no retransmission is below one in ten
    // million.
    assert!(retransmissions.sum::<u64>() > 0, "no retransmission: {records:?}");
}

/// Every fifth packet is lost in each direction. The counters of sent and retransmitted bytes equal TCP_INFO before the
/// close.
fn retransmitted_bytes(view: &RecordView, version: IpVersion) {
    const ROUNDS: usize = 20;
    let pair = lossy_exchange(version, "numgen inc mod 5 == 4", ROUNDS);
    // Once everything is acknowledged, only the FINs follow. They have no payload.
    wait_acknowledged(&pair.client);
    wait_acknowledged(&pair.server);
    let infos = [TcpInfo::read(&pair.client), TcpInfo::read(&pair.server)];
    let (up, down) = (700 * ROUNDS as u64, 500 * ROUNDS as u64);
    let records = view.expect_clean_close(pair, up, down);
    for ((record, info), payload) in records.iter().zip(infos).zip([up, down]) {
        let (sent, retransmitted) = (info.bytes_sent(), info.bytes_retrans());
        assert!(
            retransmitted > 0 && sent == payload + retransmitted,
            "{sent} bytes sent, {retransmitted} retransmitted"
        );
        assert_eq!(record["tcp"]["bytes_sent"], sent, "{record}");
        assert_eq!(record["tcp"]["bytes_retrans"], retransmitted, "{record}");
    }
}

/// The members under `tcp` equal TCP_INFO of the same socket before it closes with a RST, which changes none of them.
/// Every fifth packet was lost, so that most are not 0, and the client has another congestion control.
fn counters_equal_tcp_info(view: &RecordView, version: IpVersion) {
    const ROUNDS: usize = 20;
    let pair = lossy_exchange(version, "numgen inc mod 5 == 4", ROUNDS);
    wait_acknowledged(&pair.client);
    wait_acknowledged(&pair.server);
    let client = socket2::SockRef::from(&pair.client);
    client.set_tcp_congestion(b"reno").unwrap();
    client.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    let algorithms = [&pair.client, &pair.server].map(|stream| {
        let name = socket2::SockRef::from(stream).tcp_congestion().unwrap();
        String::from_utf8(name).unwrap().trim_end_matches('\0').to_owned()
    });
    let (up, down) = (700 * ROUNDS as u64, 500 * ROUNDS as u64);
    let infos = [TcpInfo::read(&pair.client), TcpInfo::read(&pair.server)];
    let Pair { client, server, truth } = pair;
    drop(client);
    drop(server);
    let records = view.expect(&[
        truth.outbound().bytes(up, down).reset_by_local(),
        truth
            .inbound()
            .bytes(down, up)
            .reset_by_peer()
            .found_by(&["listener", "scan"]),
    ]);
    for ((record, info), algorithm) in records.iter().zip(infos).zip(algorithms) {
        let tcp = &record["tcp"];
        for (name, expected) in info.reported() {
            assert_eq!(tcp[name], expected, "{name} of {record}");
        }
        assert_eq!(tcp["congestion"], algorithm, "{record}");
        let rcv_rtt = info.rcv_rtt_us();
        assert_eq!(tcp["rcv_rtt_us"].as_u64().unwrap_or(0), u64::from(rcv_rtt), "{record}");
        for (name, before) in ["last_send_ms", "last_receive_ms"].into_iter().zip(info.last_data_ms()) {
            let age = tcp[name].as_u64().unwrap();
            // The record is later than TCP_INFO, by less than a loaded machine stops a thread.
            assert!(
                (before.into()..u64::from(before) + 5_000).contains(&age),
                "{name} {before}: {record}"
            );
        }
    }
    let sum = |name: &str| {
        records
            .iter()
            .filter_map(|record| record["tcp"][name].as_u64())
            .sum::<u64>()
    };
    assert!(sum("busy_us") > 0, "{records:?}");
}

/// Each end sends a byte of out-of-band data that the other never reads.
fn out_of_band_data(view: &RecordView, version: IpVersion) {
    let pair = pair(version);
    for stream in [&pair.client, &pair.server] {
        assert_eq!(socket::send(stream.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap(), 1);
    }
    exchange(&pair, 100, 50);
    expect_after_acknowledgement(view, pair, 101, 51);
}

/// MSG_ZEROCOPY. (On the loopback the kernel copies anyway, and says so in the error queue, which is not an error.)
fn zero_copy(view: &RecordView, version: IpVersion) {
    let pair = pair(version);
    set_option(&pair.client, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1);
    let flag = MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY);
    let data = vec![7; 50_000];
    let mut sent = 0;
    while sent < data.len() {
        sent += socket::send(pair.client.as_raw_fd(), &data[sent..], flag).unwrap();
    }
    recv(&pair.server, data.len());
    expect_after_acknowledgement(view, pair, 50_000, 0);
}

/// With TCP_CORK, the kernel holds a partial segment back until the FIN.
fn corked_data_leaves_with_fin(view: &RecordView, version: IpVersion) {
    let pair = pair(version);
    set_tcp_option(&pair.client, libc::TCP_CORK, 1);
    send(&pair.client, 333);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 333);
    drop(pair.server);
    view.expect(&[
        pair.truth.outbound().bytes(333, 0).ok("local"),
        pair.truth.inbound().bytes(0, 333).ok("peer"),
    ]);
}

/// The client's socket is IPv6, the packets are IPv4.
fn ipv4_mapped_client(view: &RecordView) {
    let listener = listen(IpVersion::V4);
    let dst = listener.local_addr().unwrap();
    let socket = IpVersion::V6.socket();
    let mapped = SocketAddr::from((net::loopback_v4(0).to_ipv6_mapped(), dst.port()));
    let connect = connect(&socket, mapped);
    let client = TcpStream::from(socket);
    let (server, src) = listener.accept().unwrap();
    let truth = Truth::accepted_now(src, dst, connect);
    expect_after_exchange(view, Pair { client, server, truth });
}

/// A server with one socket at [::] for both IP versions, as most servers have.
fn ipv4_mapped_server(view: &RecordView) {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let dst = IpVersion::V4.at(listener.local_addr().unwrap().port());
    let (client, connect) = timed(|| TcpStream::connect(dst).unwrap());
    let (server, peer) = listener.accept().unwrap();
    assert!(peer.is_ipv6(), "not a mapped socket: {peer}");
    let truth = Truth::accepted_now(client.local_addr().unwrap(), dst, connect);
    expect_after_exchange(view, Pair { client, server, truth });
}

fn expect_after_exchange(view: &RecordView, pair: Pair) {
    exchange(&pair, 1000, 300);
    expect_after_acknowledgement(view, pair, 1000, 300);
}

/// Closes the client first once everything is acknowledged. The server may have unread data.
fn expect_after_acknowledgement(view: &RecordView, pair: Pair, up: u64, down: u64) {
    wait_acknowledged(&pair.client);
    wait_acknowledged(&pair.server);
    drop(pair.client);
    drain(&pair.server);
    drop(pair.server);
    view.expect(&[
        pair.truth.outbound().bytes(up, down).ok("local"),
        pair.truth.inbound().bytes(down, up).ok("peer"),
    ]);
}
