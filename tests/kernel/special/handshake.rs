//! Handshakes that no socket of this machine makes when it is asked to: their segments are made here, byte by byte.

use std::hint::spin_loop;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use socket2::{Domain, Protocol, Socket, Type};

use crate::support::expect::{Scene, Want};
use crate::support::sock::{Dial, Span, Truth, V, dial, drain, error_of, listen, set_tcp_option};
use crate::support::{net, patience, small};
use nix::errno::Errno;
use nix::libc;

const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const FIRST_PORT: u16 = 20_000;
/// The client's initial sequence number.
const ISN: u32 = 1000;
/// By which the packet filter knows ours from the kernel's own.
const TTL: u8 = 63;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A segment of the client's.
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
    /// As it is on the wire; the kernel fills in the length and the sum of the first header.
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
        // The addresses, the protocol and the length belong to what is summed up.
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

/// What makes the segments of the client of a round.
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

/// The ACK that ends a handshake comes twice at one instant, on two processors. Each makes a socket of it, of which the kernel
/// gives up one: there is one connection, and one record.
pub fn two_processors(scene: &Scene) {
    let rounds = if small() { 40 } else { 400 };
    let listener = listen(V::Four);
    let to = of_ipv4(listener.local_addr().unwrap());
    let wire = Wire::new();
    let send = |segment: &Segment| wire.send(segment);
    let wants: Vec<Want> = (0..rounds)
        .map(|round| {
            let segment = client(round, to);
            let before = SystemTime::now();
            let connect = segment(ISN, 0, SYN);
            send(&connect);
            let ack = segment(ISN + 1, wire.answered(connect.from) + 1, ACK);
            at_once(|| send(&ack), || send(&ack));
            let (server, peer) = listener.accept().unwrap();
            assert_eq!(peer, connect.from.into());
            let open = Span {
                before,
                after: SystemTime::now(),
            };
            send(&segment(ISN + 1, 0, RST));
            assert_eq!(error_of(&server), Errno::ECONNRESET);
            let truth = Truth {
                src: peer,
                dst: to.into(),
                connect: open,
                open,
            };
            truth.inbound().reset_by_peer().by(&["listener"])
        })
        .collect();
    scene.expect(&wants);
}

/// The ACK that ends a handshake comes as the listener is being closed. Where the client is told that its connection is reset, in
/// the connection's own sequence, there was one; else whatever the kernel made of the ACK was none.
pub fn listener_goes(scene: &Scene) {
    let rounds = if small() { 100 } else { 2000 };
    let wire = Wire::new();
    let truths: Vec<Truth> = (0..rounds)
        .filter_map(|round| {
            let listener = listen(V::Four);
            let to = of_ipv4(listener.local_addr().unwrap());
            let segment = client(round, to);
            let connect = segment(ISN, 0, SYN);
            wire.send(&connect);
            let ack = segment(ISN + 1, wire.answered(connect.from) + 1, ACK);
            let before = SystemTime::now();
            // Either may be the longer way to where they meet.
            let (early, late) = (round / 2 % 64 * 32, 0);
            let (sending, closing) = if round % 2 == 0 { (early, late) } else { (late, early) };
            let wait = |turns| (0..turns).for_each(|_| spin_loop());
            at_once(
                || {
                    wait(sending);
                    wire.send(&ack);
                },
                || {
                    wait(closing);
                    drop(listener);
                },
            );
            let open = Span {
                before,
                after: SystemTime::now(),
            };
            // To nobody by now: it is answered with a RST for want of a socket, which acknowledges nothing.
            wire.send(&ack);
            let was_one = wire.refused(connect.from) == RST | ACK;
            was_one.then(|| Truth {
                src: connect.from.into(),
                dst: to.into(),
                connect: open,
                open,
            })
        })
        .collect();
    let wants: Vec<Want> = truths
        .iter()
        .map(|truth| Want {
            // How far it was, the kernel alone knows.
            any_handshake: true,
            ..truth.inbound().reset_by_local().by(&["listener"])
        })
        .collect();
    scene.expect(&wants);
}

/// Two threads do theirs as nearly at one instant as two processors can.
fn at_once(one: impl FnOnce() + Send, other: impl FnOnce()) {
    let ready = AtomicUsize::new(0);
    let together = || {
        ready.fetch_add(1, Ordering::AcqRel);
        while ready.load(Ordering::Acquire) < 2 {
            spin_loop();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            together();
            one();
        });
        together();
        other();
    });
}

/// A SYN for a SYN: the client answers, and gets a RST. It chose its port itself, which it keeps to the end, as a superfluous
/// child does.
pub fn syn_for_syn(scene: &Scene) {
    let wire = Wire::new();
    let peer = SocketAddrV4::new(CLIENT, FIRST_PORT);
    let attempt = dial(V::Four.at(0), peer.into());
    assert_eq!(attempt.said, Errno::EINPROGRESS);
    let segment = |seq, flags| Segment {
        from: peer,
        to: of_ipv4(attempt.truth.src),
        seq,
        ack: 0,
        flags,
        payload: 0,
    };
    wire.send(&segment(ISN, SYN));
    wire.answered(peer);
    wire.send(&segment(ISN + 1, RST));
    assert_eq!(error_of(&attempt.socket), Errno::ECONNRESET);
    let told = attempt
        .truth
        .outbound()
        .failed("reset_by_peer", Some("ECONNRESET"), Some("peer"));
    scene.expect(&[told.states(&["SYN_RECV"])]);
}

/// The client of [`syn_for_syn`] in SYN_RECV, which nobody answers any more.
fn half_open(wire: &Wire) -> Dial {
    let peer = SocketAddrV4::new(CLIENT, FIRST_PORT);
    let attempt = dial(V::Four.at(0), peer.into());
    assert_eq!(attempt.said, Errno::EINPROGRESS);
    wire.send(&Segment {
        from: peer,
        to: of_ipv4(attempt.truth.src),
        seq: ISN,
        ack: 0,
        flags: SYN,
        payload: 0,
    });
    wire.answered(peer);
    attempt
}

/// An attempt that got a SYN for its SYN and nothing more is one still, however it ends: closed by its program, killed, given up.
pub fn half_open_ends(scene: &Scene) {
    let wire = Wire::new();
    let closed = half_open(&wire);
    let peer = SocketAddrV4::new(CLIENT, FIRST_PORT);
    drop(closed.socket);
    // What it has sent ends with a FIN that nobody acknowledges. A RST spares the wait until the kernel gives up.
    wire.send(&Segment {
        from: peer,
        to: of_ipv4(closed.truth.src),
        seq: ISN + 1,
        ack: 0,
        flags: RST,
        payload: 0,
    });
    let aborted = closed.truth.outbound().failed("connect_aborted", None, Some("local"));
    scene.expect(&[aborted.states(&["FIN_WAIT1"])]);

    let killed = half_open(&wire);
    net::run(
        "ss",
        &["-K", "-t", "-n", "-a", &format!("sport = :{}", killed.truth.src.port())],
    );
    assert_eq!(error_of(&killed.socket), Errno::ECONNABORTED);
    let aborted = killed
        .truth
        .outbound()
        .failed("connect_aborted", Some("ECONNABORTED"), Some("local"));
    scene.expect(&[aborted.states(&["SYN_RECV"])]);

    let given_up = half_open(&wire);
    set_tcp_option(&given_up.socket, libc::TCP_USER_TIMEOUT, 100);
    assert_eq!(error_of(&given_up.socket), Errno::ETIMEDOUT);
    let timeout = given_up
        .truth
        .outbound()
        .failed("connect_timeout", Some("ETIMEDOUT"), None);
    scene.expect(&[timeout.states(&["SYN_RECV"])]);
}

/// A server whose client has sent its FIN, and then sends more: the server answers with a RST.
pub fn data_beyond_the_fin(scene: &Scene) {
    let listener = listen(V::Four);
    let to = of_ipv4(listener.local_addr().unwrap());
    let wire = Wire::new();
    let segment = client(0, to);
    let before = SystemTime::now();
    let connect = segment(ISN, 0, SYN);
    wire.send(&connect);
    let ack = wire.answered(connect.from) + 1;
    wire.send(&segment(ISN + 1, ack, ACK));
    let (server, src) = listener.accept().unwrap();
    let open = Span {
        before,
        after: SystemTime::now(),
    };
    wire.send(&segment(ISN + 1, ack, FIN | ACK));
    assert_eq!(drain(&server), 0);
    wire.send(&Segment {
        payload: 10,
        ..segment(ISN + 1, ack, ACK)
    });
    assert_ne!(wire.refused(connect.from) & RST, 0);
    assert_eq!(error_of(&server), Errno::EPIPE);
    let truth = Truth {
        src,
        dst: to.into(),
        connect: open,
        open,
    };
    scene.expect(&[truth
        .inbound()
        .ended("reset_by_local", Some("EPIPE"), Some("peer"))
        .states(&["CLOSE_WAIT"])
        .by(&["listener"])]);
}

fn of_ipv4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => unreachable!("an address of IPv4"),
    }
}

/// Raw sockets: one to send ours, and one that gets all that is sent.
struct Wire {
    sender: Socket,
    answers: Socket,
}

impl Wire {
    fn new() -> Self {
        // The kernel's own client knows nothing of these connections.
        net::rules(&[&format!(
            "ip saddr {CLIENT} ip ttl != {TTL} tcp flags & rst == rst drop"
        )]);
        let raw = |protocol| Socket::new(Domain::IPV4, Type::RAW, Some(protocol)).unwrap();
        let answers = raw(Protocol::TCP);
        answers.set_read_timeout(Some(patience())).unwrap();
        Self {
            sender: raw(Protocol::from(255)),
            answers,
        }
    }

    fn send(&self, segment: &Segment) {
        let packet = segment.packet();
        let sent = self.sender.send_to(&packet, &segment.to.into()).unwrap();
        assert_eq!(sent, packet.len());
    }

    /// The sequence number of the SYN-ACK to this address.
    fn answered(&self, to: SocketAddrV4) -> u32 {
        self.answer(to, |flags| flags == SYN | ACK).0
    }

    /// The flags of the first RST to this address.
    fn refused(&self, to: SocketAddrV4) -> u8 {
        self.answer(to, |flags| flags & RST != 0).1
    }

    /// The sequence number and the flags of the first segment to this address that is `wanted`.
    fn answer(&self, to: SocketAddrV4, wanted: impl Fn(u8) -> bool) -> (u32, u8) {
        let (mut answers, mut packet) = (&self.answers, [0; 256]);
        loop {
            let length = answers.read(&mut packet).unwrap();
            // The kernel's own segments have options, but its first header has none.
            let tcp = &packet[20..length];
            if tcp[2..4] == to.port().to_be_bytes() && wanted(tcp[13]) {
                return (u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]), tcp[13]);
            }
        }
    }
}
