//! Handshakes that no client of this machine makes on request. The test writes the client's segments byte by byte.

use std::hint::spin_loop;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use crate::Topic;
use crate::support::expect::Expected;
use crate::support::probe::Need;
use crate::support::record_view::RecordView;
use crate::support::sock::{
    Attempt, IpVersion, Truth, connect_nonblocking, drain, listen, set_tcp_option, take_error, timed,
};
use crate::support::{is_small_vm, net, test_timeout};

pub fn add(topic: Topic) -> Topic {
    const NFT: &[Need] = &[Need::Nft];
    const DESTROY: &[Need] = &[Need::Nft, Need::SocketDestroy];
    topic
        .shared("duplicate_ack_is_one_connection", NFT, duplicate_ack_is_one_connection)
        .shared(
            "listener_closes_during_handshake",
            NFT,
            listener_closes_during_handshake,
        )
        .shared("reset_after_simultaneous_syn", NFT, reset_after_simultaneous_syn)
        .shared("half_open_attempt_ends", DESTROY, half_open_attempt_ends)
        .shared("data_after_fin_is_reset", NFT, data_after_fin_is_reset)
}

const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const FIRST_PORT: u16 = 20_000;
/// The client's initial sequence number.
const ISN: u32 = 1000;
/// Distinguishes the test's segments from the kernel's in the packet filter.
const TTL: u8 = 63;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A segment of the client.
struct Segment {
    from: SocketAddrV4,
    to: SocketAddrV4,
    seq: u32,
    ack: u32,
    flags: u8,
    /// Bytes of payload, an even number.
    payload: usize,
}

impl Segment {
    /// Returns the IPv4 packet. The kernel sets the length and the checksum of the IPv4 header.
    fn packet(&self) -> Vec<u8> {
        let mut packet = vec![0; 40 + self.payload];
        packet[0] = 0x45;
        packet[8] = TTL;
        packet[9] = 6;
        packet[12..16].copy_from_slice(&self.from.ip().octets());
        packet[16..20].copy_from_slice(&self.to.ip().octets());
        let tcp = &mut packet[20..];
        tcp[0..2].copy_from_slice(&self.from.port().to_be_bytes());
        tcp[2..4].copy_from_slice(&self.to.port().to_be_bytes());
        tcp[4..8].copy_from_slice(&self.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.ack.to_be_bytes());
        tcp[12] = 5 << 4;
        tcp[13] = self.flags;
        tcp[14..16].copy_from_slice(&8192_u16.to_be_bytes());
        // The checksum includes the addresses, the protocol and the length.
        let words = packet[12..]
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
        let sum: u32 = words.sum::<u32>() + 6 + 20 + self.payload as u32;
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        packet[36..38].copy_from_slice(&sum.to_be_bytes());
        packet
    }
}

/// Returns a function that creates the segments (sequence number, acknowledgement, flags) of the client of a round.
fn client(round: u16, to: SocketAddrV4) -> impl Fn(u32, u32, u8) -> Segment {
    move |seq, ack, flags| Segment {
        from: SocketAddrV4::new(CLIENT, FIRST_PORT + round),
        to,
        seq,
        ack,
        flags,
        payload: 0,
    }
}

/// The ACK that ends a handshake arrives twice at the same time, on two processors. Each creates a socket, and the
/// kernel drops one of them: there is one connection and one record.
fn duplicate_ack_is_one_connection(view: &RecordView) {
    let rounds = if is_small_vm() { 40 } else { 400 };
    let listener = listen(IpVersion::V4);
    let to = v4(listener.local_addr().unwrap());
    let wire = Wire::new();
    let expected: Vec<Expected> = (0..rounds)
        .map(|round| {
            let segment = client(round, to);
            let syn = segment(ISN, 0, SYN);
            let ((server, src), span) = timed(|| {
                wire.send(&syn);
                let ack = segment(ISN + 1, wire.wait_syn_ack(syn.from) + 1, ACK);
                at_the_same_time(|| wire.send(&ack), || wire.send(&ack));
                listener.accept().unwrap()
            });
            assert_eq!(src, syn.from.into());
            wire.send(&segment(ISN + 1, 0, RST));
            assert_eq!(take_error(&server), Errno::ECONNRESET);
            let truth = Truth::not_accepted(src, to.into(), span);
            truth.inbound().reset_by_peer().found_by(&["listener"])
        })
        .collect();
    view.expect(&expected);
}

/// The ACK that ends a handshake arrives while the listener closes. If the client gets a RST in the sequence of the
/// connection, there was a connection. Otherwise the kernel made none of the ACK.
fn listener_closes_during_handshake(view: &RecordView) {
    let rounds = if is_small_vm() { 100 } else { 2000 };
    let wire = Wire::new();
    let expected: Vec<Expected> = (0..rounds)
        .filter_map(|round| {
            let listener = listen(IpVersion::V4);
            let to = v4(listener.local_addr().unwrap());
            let segment = client(round, to);
            let syn = segment(ISN, 0, SYN);
            wire.send(&syn);
            let ack = segment(ISN + 1, wire.wait_syn_ack(syn.from) + 1, ACK);
            // Either of the two may take longer to the point where they meet.
            let delay = round / 2 % 64 * 32;
            let (send_delay, close_delay) = if round % 2 == 0 { (delay, 0) } else { (0, delay) };
            let spin = |turns| (0..turns).for_each(|_| spin_loop());
            let ((), span) = timed(|| {
                at_the_same_time(
                    || {
                        spin(send_delay);
                        wire.send(&ack);
                    },
                    || {
                        spin(close_delay);
                        drop(listener);
                    },
                );
            });
            // No socket has the port now: the kernel answers with a RST that acknowledges nothing.
            wire.send(&ack);
            let was_connected = wire.wait_rst(syn.from) == RST | ACK;
            was_connected.then(|| {
                let truth = Truth::not_accepted(syn.from.into(), to.into(), span);
                // Only the kernel knows whether the handshake ended.
                let inbound = truth.inbound().reset_by_local().any_established();
                inbound.found_by(&["listener"])
            })
        })
        .collect();
    view.expect(&expected);
}

/// Runs two functions in two threads that start as simultaneously as possible.
fn at_the_same_time(one: impl FnOnce() + Send, other: impl FnOnce()) {
    let ready = AtomicUsize::new(0);
    let wait_for_both = || {
        ready.fetch_add(1, Ordering::AcqRel);
        while ready.load(Ordering::Acquire) < 2 {
            spin_loop();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            wait_for_both();
            one();
        });
        wait_for_both();
        other();
    });
}

/// The peer of [`half_open`].
const PEER: SocketAddrV4 = SocketAddrV4::new(CLIENT, FIRST_PORT);

/// A segment from [`PEER`] to the client of an attempt.
fn peer_segment(attempt: &Attempt, seq: u32, flags: u8) -> Segment {
    Segment {
        from: PEER,
        to: v4(attempt.truth.src),
        seq,
        ack: 0,
        flags,
        payload: 0,
    }
}

/// An attempt in SYN_RECV: its SYN was answered by a SYN, and nothing follows.
fn half_open(wire: &Wire) -> Attempt {
    let attempt = connect_nonblocking(IpVersion::V4.at(0), PEER.into());
    assert_eq!(attempt.errno, Errno::EINPROGRESS);
    wire.send(&peer_segment(&attempt, ISN, SYN));
    wire.wait_syn_ack(PEER);
    attempt
}

/// The peer answers a SYN with a SYN, then with a RST. The attempt chose its port itself, and keeps it to the end, as
/// does a child socket that the kernel drops.
fn reset_after_simultaneous_syn(view: &RecordView) {
    let wire = Wire::new();
    let attempt = half_open(&wire);
    wire.send(&peer_segment(&attempt, ISN + 1, RST));
    assert_eq!(take_error(&attempt.socket), Errno::ECONNRESET);
    let expected = attempt
        .truth
        .outbound()
        .connect_failed("reset_by_peer", Some("ECONNRESET"), Some("peer"));
    view.expect(&[expected.old_states(&["SYN_RECV"])]);
}

/// An attempt in SYN_RECV is still an attempt, whether its program closes it, `ss -K` destroys it, or the kernel gives
/// up.
fn half_open_attempt_ends(view: &RecordView) {
    let wire = Wire::new();
    let closed = half_open(&wire);
    // The kernel sends a FIN that nobody acknowledges. A RST avoids the wait until it gives up.
    let rst = peer_segment(&closed, ISN + 1, RST);
    drop(closed.socket);
    wire.send(&rst);
    let aborted = closed
        .truth
        .outbound()
        .connect_failed("connect_aborted", None, Some("local"));
    view.expect(&[aborted.old_states(&["FIN_WAIT1"])]);

    let destroyed = half_open(&wire);
    let filter = format!("sport = :{}", destroyed.truth.src.port());
    net::run("ss", &["-K", "-t", "-n", "-a", &filter]);
    assert_eq!(take_error(&destroyed.socket), Errno::ECONNABORTED);
    let aborted = destroyed
        .truth
        .outbound()
        .connect_failed("connect_aborted", Some("ECONNABORTED"), Some("local"));
    view.expect(&[aborted.old_states(&["SYN_RECV"])]);

    let timed_out = half_open(&wire);
    set_tcp_option(&timed_out.socket, libc::TCP_USER_TIMEOUT, 100);
    assert_eq!(take_error(&timed_out.socket), Errno::ETIMEDOUT);
    let timeout = timed_out
        .truth
        .outbound()
        .connect_failed("connect_timeout", Some("ETIMEDOUT"), None);
    view.expect(&[timeout.old_states(&["SYN_RECV"])]);
}

/// The client sends data after its FIN, and the server answers with a RST.
fn data_after_fin_is_reset(view: &RecordView) {
    let listener = listen(IpVersion::V4);
    let to = v4(listener.local_addr().unwrap());
    let wire = Wire::new();
    let segment = client(0, to);
    let syn = segment(ISN, 0, SYN);
    let ((server, src, ack), span) = timed(|| {
        wire.send(&syn);
        let ack = wire.wait_syn_ack(syn.from) + 1;
        wire.send(&segment(ISN + 1, ack, ACK));
        let (server, src) = listener.accept().unwrap();
        (server, src, ack)
    });
    wire.send(&segment(ISN + 1, ack, FIN | ACK));
    assert_eq!(drain(&server), 0);
    wire.send(&Segment {
        payload: 10,
        ..segment(ISN + 1, ack, ACK)
    });
    assert_ne!(wire.wait_rst(syn.from) & RST, 0);
    assert_eq!(take_error(&server), Errno::EPIPE);
    let inbound = Truth::not_accepted(src, to.into(), span).inbound();
    view.expect(&[inbound
        .ended("reset_by_local", Some("EPIPE"), Some("peer"))
        .old_states(&["CLOSE_WAIT"])
        .found_by(&["listener"])]);
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => unreachable!("an IPv4 address"),
    }
}

/// Raw sockets: one sends the test's segments, the other receives all segments of the namespace.
struct Wire {
    sender: Socket,
    receiver: Socket,
}

impl Wire {
    fn new() -> Self {
        // The kernel has no sockets of these clients, and would send RSTs for them.
        net::set_packet_filter(&[&format!(
            "ip saddr {CLIENT} ip ttl != {TTL} tcp flags & rst == rst drop"
        )]);
        let raw_socket = |protocol| Socket::new(Domain::IPV4, Type::RAW, Some(protocol)).unwrap();
        let receiver = raw_socket(Protocol::TCP);
        receiver.set_read_timeout(Some(test_timeout())).unwrap();
        Self {
            sender: raw_socket(Protocol::from(255)),
            receiver,
        }
    }

    fn send(&self, segment: &Segment) {
        let packet = segment.packet();
        let sent = self.sender.send_to(&packet, &segment.to.into()).unwrap();
        assert_eq!(sent, packet.len());
    }

    /// Waits for the SYN-ACK to this address, and returns its sequence number.
    fn wait_syn_ack(&self, to: SocketAddrV4) -> u32 {
        self.wait_segment(to, |flags| flags == SYN | ACK).0
    }

    /// Waits for a RST to this address, and returns its flags.
    fn wait_rst(&self, to: SocketAddrV4) -> u8 {
        self.wait_segment(to, |flags| flags & RST != 0).1
    }

    /// Waits for a segment to this address whose flags match, and returns its sequence number and flags.
    fn wait_segment(&self, to: SocketAddrV4, matches: impl Fn(u8) -> bool) -> (u32, u8) {
        let (mut receiver, mut packet) = (&self.receiver, [0; 256]);
        loop {
            let length = receiver.read(&mut packet).unwrap();
            // The IPv4 header has no options.
            let tcp = &packet[20..length];
            if tcp[2..4] == to.port().to_be_bytes() && matches(tcp[13]) {
                return (u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]), tcp[13]);
            }
        }
    }
}
