//! How lives begin: each beginning is a way to establish a connection, or an attempt that fails.
//!
//! All random choices follow from one seed, so the order in which they are drawn matters.

use std::time::Duration;

use nix::errno::Errno;
use nix::libc;

use super::call::{Handover, SocketId};
use super::exchange::{Handshake, close_both, random_options, random_steps, report_icmp_errors, run_connection};
use super::life::Life;
use super::state;
use super::world::{Side, Verdict};
use crate::support::probe::{self, Need};
use crate::support::random::Random;

/// A function that runs a life.
pub type Run = fn(&mut Life<'_>, &mut Random);

/// The beginnings: the name, the weight in the random choice, and the function that runs the life.
const BEGINNINGS: [(&str, u64, Run); 15] = [
    ("connect", 28, normal_connect),
    ("Fast Open", 12, fast_open),
    ("deferred Fast Open", 8, deferred_fast_open),
    ("deferred accept", 5, deferred_accept),
    ("refused", 5, refused),
    ("rejected by the packet filter", 6, rejected),
    ("dropped by the packet filter", 7, dropped),
    ("first SYN lost", 3, first_syn_lost),
    ("self-connect", 5, self_connect),
    ("simultaneous open", 5, simultaneous_open),
    ("unfinished simultaneous open", 4, unfinished_simultaneous_open),
    ("connect() fails without a SYN", 5, connect_without_syn),
    (ROLE_CHANGE, 4, connected_socket_listens),
    ("reconnect", 3, reconnect),
    ("Fast Open with a lost SYN-ACK", 6, fast_open_lost_syn_ack),
];

const ROLE_CHANGE: &str = "connected socket becomes a listener";

const SERVER_PORT: u16 = 0;
const CLIENT_PORT: u16 = 1;
const CLOSED_PORT: u16 = 2;
/// The port of a second listener on the server's side.
const SECOND_SERVER_PORT: u16 = 3;
/// The port of a listener on the client's side.
const REVERSE_PORT: u16 = 4;

const BOTH_SIDES: [(Side, Side); 3] = [
    (Side::Near, Side::Far),
    (Side::Far, Side::Near),
    (Side::Near, Side::Near),
];

/// Chooses a beginning by its weight. Returns its name and its function.
pub fn random_beginning(random: &mut Random) -> (&'static str, Run) {
    // Some kernels refuse listen() on a socket that was connected.
    let can_change_role = probe::check(&[Need::RoleChange]).is_ok();
    let possible = BEGINNINGS
        .iter()
        .filter(|(name, ..)| can_change_role || *name != ROLE_CHANGE);
    let total = possible.clone().map(|(_, weight, _)| weight).sum();
    let mut at = random.below(total);
    for &(name, weight, run) in possible {
        if at < weight {
            return (name, run);
        }
        at -= weight;
    }
    unreachable!("a number below the sum of the weights")
}

/// Chooses the sides of the client and of the server.
fn random_sides(random: &mut Random) -> (Side, Side) {
    *random.pick(&[
        (Side::Near, Side::Far),
        (Side::Near, Side::Far),
        (Side::Far, Side::Near),
        (Side::Near, Side::Near),
    ])
}

fn listener(life: &mut Life<'_>, random: &mut Random, side: Side) -> SocketId {
    let listener = life.socket(side);
    life.bind(listener, life.address(side, SERVER_PORT));
    random_options(life, random, listener);
    life.listen(listener);
    listener
}

/// Creates a listener that accepts Fast Open.
fn fast_open_listener(life: &mut Life<'_>, random: &mut Random, side: Side) -> SocketId {
    let listener = listener(life, random, side);
    life.tcp_option(listener, "TCP_FASTOPEN", libc::TCP_FASTOPEN, 16);
    listener
}

/// Creates a client's socket, which is bound to [`CLIENT_PORT`] in half of the cases.
fn client(life: &mut Life<'_>, random: &mut Random, side: Side) -> SocketId {
    let client = life.socket(side);
    if random.one_in(2) {
        life.bind(client, life.address(side, CLIENT_PORT));
    }
    random_options(life, random, client);
    client
}

/// Connects to the listener of a side, and waits until the connection is established.
fn connect(life: &mut Life<'_>, random: &mut Random, client: SocketId, side: Side) {
    let blocking = random.one_in(2);
    let to = life.address(side, SERVER_PORT);
    let result = life.connect(client, to, blocking);
    assert!(
        result == Ok(0) || !blocking && result == Err(Errno::EINPROGRESS),
        "{result:?}"
    );
    life.wait_state(client, &[state::ESTABLISHED]);
}

/// Connects with Fast Open, whose first segment carries a random number of bytes.
fn connect_fast_open(life: &mut Life<'_>, random: &mut Random, client: SocketId, side: Side) {
    let count = 1 + random.below(1200) as usize;
    let result = life.fast_open(client, life.address(side, SERVER_PORT), count);
    assert_eq!(result, Ok(count as u64));
}

fn normal_connect(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = random_sides(random);
    let listener = listener(life, random, to);
    let client = client(life, random, from);
    connect(life, random, client, to);
    run_connection(life, random, Handshake::not_accepted(listener, client));
}

/// Fast Open with sendto(). One in four listeners does not accept it, so the handshake is a normal one.
fn fast_open(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = random_sides(random);
    let listener = listener(life, random, to);
    if !random.one_in(4) {
        life.tcp_option(listener, "TCP_FASTOPEN", libc::TCP_FASTOPEN, 16);
    }
    let client = client(life, random, from);
    connect_fast_open(life, random, client, to);
    life.wait_state(client, &[state::ESTABLISHED]);
    run_connection(life, random, Handshake::not_accepted(listener, client));
}

/// TCP_FASTOPEN_CONNECT: connect() sends nothing, and the first write sends the SYN.
fn deferred_fast_open(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = random_sides(random);
    let listener = fast_open_listener(life, random, to);
    let client = client(life, random, from);
    life.tcp_option(client, "TCP_FASTOPEN_CONNECT", libc::TCP_FASTOPEN_CONNECT, 1);
    let blocking = random.one_in(2);
    let result = life.connect(client, life.address(to, SERVER_PORT), blocking);
    assert_eq!(result, Ok(0));
    let pause = *random.pick(&[0, 5, 30, 300]);
    life.sleep(client, Duration::from_millis(pause));
    if random.one_in(4) {
        // Without a write there is no SYN, so there is no attempt.
        if random.one_in(2) {
            life.disconnect(client);
        }
        life.close(client);
        life.close(listener);
        return;
    }
    let count = 1 + random.below(1200) as usize;
    let result = life.write(client, count);
    assert_eq!(result, Ok(count as u64));
    life.wait_state(client, &[state::ESTABLISHED]);
    run_connection(life, random, Handshake::not_accepted(listener, client));
}

/// TCP_DEFER_ACCEPT: the kernel creates the server's socket when the first data arrives.
fn deferred_accept(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = random_sides(random);
    let listener = listener(life, random, to);
    life.tcp_option(listener, "TCP_DEFER_ACCEPT", libc::TCP_DEFER_ACCEPT, 30);
    life.sockets[listener].deferred = true;
    let client = client(life, random, from);
    connect(life, random, client, to);
    if random.one_in(3) {
        // Without data, the server gets no connection.
        life.set_linger_zero(client);
        life.close(client);
        life.close(listener);
        return;
    }
    let count = 1 + random.below(5000) as usize;
    life.write(client, count).expect("write");
    life.wait_acknowledged(client);
    let server = life.accept(listener);
    run_connection(life, random, Handshake::accepted(listener, client, server));
}

/// Attempts to connect to a port without a listener.
fn refused(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = random_sides(random);
    let client = client(life, random, from);
    let closed = life.address(to, SERVER_PORT);
    for _ in 0..1 + random.below(2) {
        let result = if random.one_in(4) {
            let result = life.fast_open(client, closed, 300);
            assert!(
                result == Ok(300)
                    || [Errno::EINPROGRESS, Errno::ECONNREFUSED, Errno::ECONNABORTED]
                        .map(Err)
                        .contains(&result),
                "{result:?}"
            );
            result
        } else {
            let blocking = random.one_in(2);
            life.connect(client, closed, blocking)
        };
        if result != Err(Errno::ECONNREFUSED) {
            life.wait_state(client, &[state::CLOSE]);
            if random.one_in(2) {
                life.wait_error(client);
            } else {
                life.disconnect(client);
            }
        }
    }
    life.close(client);
}

const REJECTIONS: [Verdict; 5] = [
    Verdict::Reset,
    Verdict::PortUnreachable,
    Verdict::HostUnreachable,
    Verdict::NetUnreachable,
    Verdict::Prohibited,
];

/// The packet filter rejects the SYN.
fn rejected(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = random_sides(random);
    let listener = listener(life, random, to);
    let client = client(life, random, from);
    let verdict = *random.pick(&REJECTIONS);
    life.set_verdict(client, verdict);
    if random.one_in(3) {
        report_icmp_errors(life, client);
    }
    let blocking = random.one_in(2);
    let result = life.connect(client, life.address(to, SERVER_PORT), blocking);
    assert!(result.is_err());
    if result == Err(Errno::EINPROGRESS) {
        life.wait_error(client);
    }
    if life.state(client) == state::CLOSE && random.one_in(3) {
        life.set_verdict(client, Verdict::Pass);
        life.disconnect(client);
        connect(life, random, client, to);
        return run_connection(life, random, Handshake::not_accepted(listener, client));
    }
    life.close(client);
    life.close(listener);
}

/// The packet filter drops each SYN.
fn dropped(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = random_sides(random);
    let client = client(life, random, from);
    life.set_verdict(client, Verdict::Drop);
    let times_out = random.one_in(2);
    if times_out {
        life.tcp_option(client, "TCP_USER_TIMEOUT", libc::TCP_USER_TIMEOUT, 700);
    }
    let server = life.address(to, SERVER_PORT);
    if random.one_in(3) {
        _ = life.fast_open(client, server, 200);
    } else {
        let blocking = times_out && random.one_in(2);
        if life.connect(client, server, blocking) == Err(Errno::ETIMEDOUT) {
            return life.close(client);
        }
    }
    match random.below(3) {
        _ if times_out => {
            life.wait_error(client);
            life.close(client);
        }
        0 => {
            life.disconnect(client);
            life.close(client);
        }
        1 => life.close_in_other_process(client, *random.pick(&Handover::ALL)),
        _ => life.close(client),
    }
}

/// The first SYN is lost, and the retransmitted SYN arrives.
fn first_syn_lost(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = random_sides(random);
    let listener = listener(life, random, to);
    let client = client(life, random, from);
    life.set_verdict(client, Verdict::Drop);
    let result = life.connect(client, life.address(to, SERVER_PORT), false);
    assert_eq!(result, Err(Errno::EINPROGRESS));
    life.set_verdict(client, Verdict::Pass);
    life.wait_state(client, &[state::ESTABLISHED]);
    run_connection(life, random, Handshake::not_accepted(listener, client));
}

/// The server receives the data of a Fast Open, but its SYN-ACK is lost. So the server's socket is in SYN_RECV, where
/// it may time out.
fn fast_open_lost_syn_ack(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = random_sides(random);
    let listener = fast_open_listener(life, random, to);
    life.tcp_option(listener, "TCP_SYNCNT", libc::TCP_SYNCNT, 1);
    life.set_verdict(listener, Verdict::Drop);
    let client = client(life, random, from);
    life.tcp_option(client, "TCP_USER_TIMEOUT", libc::TCP_USER_TIMEOUT, 900);
    connect_fast_open(life, random, client, to);
    let server = life.accept(listener);
    life.sleep(server, Duration::from_millis(*random.pick(&[0, 5, 30])));
    if random.one_in(3) {
        // The retransmitted SYN-ACK arrives.
        life.set_verdict(listener, Verdict::Pass);
        life.set_verdict(server, Verdict::Pass);
        life.tcp_option(client, "TCP_USER_TIMEOUT", libc::TCP_USER_TIMEOUT, 0);
        life.wait_state(client, &[state::ESTABLISHED]);
        life.wait_state(server, &[state::ESTABLISHED]);
        random_steps(life, random, client, server);
        close_both(life, random, client, server);
        return life.close(listener);
    }
    if random.one_in(2) {
        life.read(server, 10_000).expect("read");
    }
    if random.one_in(3) {
        life.write(server, 1 + random.below(300) as usize).expect("write");
    }
    if random.one_in(3) {
        life.set_linger_zero(server);
    }
    life.close(server);
    life.close(client);
    life.close(listener);
}

/// A socket connects to its own address.
fn self_connect(life: &mut Life<'_>, random: &mut Random) {
    let socket = life.socket(Side::Near);
    let address = life.address(Side::Near, CLIENT_PORT);
    life.bind(socket, address);
    random_options(life, random, socket);
    let blocking = random.one_in(2);
    _ = life.connect(socket, address, blocking);
    life.wait_state(socket, &[state::ESTABLISHED]);
    for _ in 0..random.below(3) {
        life.write(socket, 1 + random.below(3000) as usize).expect("write");
        life.wait_delivered(socket, socket);
        if !random.one_in(4) {
            life.read(socket, 100_000).expect("read");
        }
    }
    if random.one_in(4) {
        life.set_linger_zero(socket);
    }
    life.close(socket);
}

/// Creates two sockets that will connect to each other. The first one has sent its SYN, which is lost: a SYN that
/// arrived before the other socket sends its own would be refused.
fn start_simultaneous_open(life: &mut Life<'_>, random: &mut Random) -> (SocketId, SocketId) {
    let (from, to) = *random.pick(&BOTH_SIDES);
    let [first, second] = [from, to].map(|side| life.socket(side));
    let (first_address, second_address) = (life.address(from, CLIENT_PORT), life.address(to, SERVER_PORT));
    life.bind(first, first_address);
    life.bind(second, second_address);
    random_options(life, random, first);
    life.set_verdict(first, Verdict::Drop);
    let result = life.connect(first, second_address, false);
    assert_eq!(result, Err(Errno::EINPROGRESS));
    (first, second)
}

fn simultaneous_open(life: &mut Life<'_>, random: &mut Random) {
    let (first, second) = start_simultaneous_open(life, random);
    life.set_verdict(first, Verdict::Pass);
    let to = life.sockets[first].local.expect("the socket is bound");
    let result = life.connect(second, to, false);
    assert_eq!(result, Err(Errno::EINPROGRESS));
    life.wait_state(first, &[state::ESTABLISHED]);
    life.wait_state(second, &[state::ESTABLISHED]);
    random_steps(life, random, first, second);
    close_both(life, random, first, second);
}

/// The first socket receives the second one's SYN, but its SYN-ACK is lost, so it stays in SYN_RECV.
fn unfinished_simultaneous_open(life: &mut Life<'_>, random: &mut Random) {
    let (first, second) = start_simultaneous_open(life, random);
    for socket in [first, second] {
        life.tcp_option(socket, "TCP_USER_TIMEOUT", libc::TCP_USER_TIMEOUT, 900);
    }
    let to = life.sockets[first].local.expect("the socket is bound");
    let result = life.connect(second, to, false);
    assert_eq!(result, Err(Errno::EINPROGRESS));
    life.wait_state(first, &[state::SYN_RECV]);
    // From now on, all packets in both directions are lost.
    life.set_verdict(second, Verdict::Drop);
    match random.below(4) {
        0 => life.close(first),
        1 => {
            life.disconnect(first);
            life.close(first);
        }
        2 => {
            life.set_linger_zero(first);
            life.close(first);
        }
        _ => {
            life.wait_error(first);
            life.close(first);
        }
    }
    life.close(second);
}

/// connect() fails before the kernel sends a SYN, because another connection has the same addresses. The socket is new,
/// or was used for another connection or attempt before.
fn connect_without_syn(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = (Side::Near, Side::Far);
    let listener = listener(life, random, to);
    let first = life.socket(from);
    life.bind(first, life.address(from, CLIENT_PORT));
    let second = life.socket(from);
    life.bind(second, life.address(from, CLIENT_PORT));
    match random.below(4) {
        0 => {}
        1 => {
            // The attempt fails, and the program does not read its error.
            let closed = life.address(to, CLOSED_PORT);
            life.connect(second, closed, false).expect_err("the port is closed");
            life.wait_state(second, &[state::CLOSE]);
        }
        choice => {
            let second_listener = life.socket(to);
            let address = life.address(to, SECOND_SERVER_PORT);
            life.bind(second_listener, address);
            life.listen(second_listener);
            _ = life.connect(second, address, false);
            life.wait_state(second, &[state::ESTABLISHED]);
            let accepted = life.accept(second_listener);
            if choice == 3 {
                life.write(second, 500).expect("write");
                life.wait_delivered(second, accepted);
            }
            life.disconnect(second);
            life.wait_state(accepted, &[state::CLOSE]);
            life.close(accepted);
            life.close(second_listener);
        }
    }
    let server = life.address(to, SERVER_PORT);
    life.connect(first, server, true).expect("connect");
    let accepted = life.accept(listener);
    for _ in 0..2 {
        let blocking = random.one_in(2);
        let result = life.connect(second, server, blocking);
        assert!(result.is_err());
    }
    life.close(second);
    close_both(life, random, first, accepted);
    life.close(listener);
}

/// A socket that was connected, or accepted, becomes a listener.
fn connected_socket_listens(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = random_sides(random);
    let listener = if random.one_in(3) && !life.is_mapped {
        let first_listener = listener(life, random, to);
        let peer = life.socket(from);
        connect(life, random, peer, to);
        let accepted = life.accept(first_listener);
        life.close(first_listener);
        disconnect_from(life, accepted, peer);
        // An accepted socket was never bound, so AF_UNSPEC has removed its port.
        life.bind(accepted, life.address(to, SERVER_PORT));
        accepted
    } else {
        let first_listener = life.socket(from);
        let reverse = life.address(from, REVERSE_PORT);
        life.bind(first_listener, reverse);
        life.listen(first_listener);
        let connected = life.socket(to);
        life.bind(connected, life.address(to, SERVER_PORT));
        life.connect(connected, reverse, true).expect("connect");
        let peer = life.accept(first_listener);
        life.close(first_listener);
        disconnect_from(life, connected, peer);
        connected
    };
    if random.one_in(2) {
        life.listen_in_other_process(listener);
    } else {
        life.listen(listener);
    }
    let client = client(life, random, from);
    connect(life, random, client, to);
    run_connection(life, random, Handshake::not_accepted(listener, client));
}

/// Resets the connection by AF_UNSPEC, and closes the peer's socket.
fn disconnect_from(life: &mut Life<'_>, socket: SocketId, peer: SocketId) {
    life.disconnect(socket);
    life.wait_state(peer, &[state::CLOSE]);
    life.close(peer);
}

/// A socket whose connection is reset connects again.
fn reconnect(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = random_sides(random);
    let listener = listener(life, random, to);
    // The socket is not bound, so it gets another port for each connection.
    let client = life.socket(from);
    random_options(life, random, client);
    for _ in 0..1 + random.below(2) {
        connect(life, random, client, to);
        let server = life.accept(listener);
        random_steps(life, random, client, server);
        if random.one_in(2) {
            life.disconnect(client);
        } else {
            life.set_linger_zero(server);
            life.close(server);
        }
        life.wait_state(client, &[state::CLOSE]);
        if life.is_open(server) {
            if life.state(server) != state::CLOSE && life.sockets[server].verdict == Verdict::Pass {
                life.wait_state(server, &[state::CLOSE]);
            }
            life.close(server);
        }
        if random.one_in(2) {
            life.wait_error(client);
        }
        life.disconnect(client);
    }
    connect(life, random, client, to);
    run_connection(life, random, Handshake::not_accepted(listener, client));
}
