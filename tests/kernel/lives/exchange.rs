//! What happens on an established connection: data, options, outages of the network, and the two closes.

use std::time::Duration;

use nix::libc;

use super::call::{Handover, SocketId};
use super::life::Life;
use super::state;
use super::world::Verdict;
use crate::support::random::Random;

/// The states in which a program can send data.
const WRITABLE: [u8; 2] = [state::ESTABLISHED, state::CLOSE_WAIT];

/// A connection after its handshake.
pub struct Handshake {
    listener: SocketId,
    client: SocketId,
    /// `None` if the server has not called accept().
    server: Option<SocketId>,
}

impl Handshake {
    pub fn not_accepted(listener: SocketId, client: SocketId) -> Self {
        Self {
            listener,
            client,
            server: None,
        }
    }

    pub fn accepted(listener: SocketId, client: SocketId, server: SocketId) -> Self {
        Self {
            listener,
            client,
            server: Some(server),
        }
    }
}

/// Sets random options that do not change what the records say.
pub fn random_options(life: &mut Life<'_>, random: &mut Random, socket: SocketId) {
    if random.one_in(3) {
        life.tcp_option(socket, "TCP_NODELAY", libc::TCP_NODELAY, 1);
    }
    if random.one_in(6) {
        life.tcp_option(socket, "TCP_QUICKACK", libc::TCP_QUICKACK, random.below(2) as i32);
    }
    if random.one_in(6) {
        life.option(socket, "SO_KEEPALIVE", libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    }
}

/// Sets IP_RECVERR, so that the program gets an ICMP error at once. IPv4-mapped addresses have no such option.
pub fn report_icmp_errors(life: &mut Life<'_>, socket: SocketId) {
    if life.is_ipv6 {
        life.option(socket, "IPV6_RECVERR", libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1);
    } else if !life.is_mapped {
        life.option(socket, "IP_RECVERR", libc::IPPROTO_IP, libc::IP_RECVERR, 1);
    }
}

/// Runs a connection from its handshake until both ends are closed.
pub fn run_connection(life: &mut Life<'_>, random: &mut Random, handshake: Handshake) {
    let Handshake {
        listener,
        client,
        server,
    } = handshake;
    let server = match server {
        Some(server) => server,
        None if random.one_in(10) => return close_listener_unaccepted(life, random, listener, client),
        None => {
            if random.one_in(4) {
                // The client sends before the server accepts.
                _ = life.write(client, 1 + random.below(3000) as usize);
                life.wait_acknowledged(client);
                if random.one_in(3) {
                    life.shutdown(client, false, true);
                    life.wait_acknowledged(client);
                }
            }
            life.accept(listener)
        }
    };
    if random.one_in(3) {
        life.close(listener);
    }
    random_steps(life, random, client, server);
    close_both(life, random, client, server);
    if life.is_open(listener) {
        life.close(listener);
    }
}

/// Closes the listener while the connection is in its accept queue.
fn close_listener_unaccepted(life: &mut Life<'_>, random: &mut Random, listener: SocketId, client: SocketId) {
    if random.one_in(2) {
        _ = life.write(client, 1 + random.below(3000) as usize);
    }
    life.wait_acknowledged(client);
    match random.below(3) {
        0 => {
            life.shutdown(client, false, true);
            life.wait_acknowledged(client);
        }
        1 => {
            life.set_linger_zero(client);
            life.close(client);
        }
        _ => {}
    }
    life.close(listener);
    if life.is_open(client) {
        life.wait_state(client, &[state::CLOSE]);
        life.close(client);
    }
}

/// Whether both sockets are open and connected, and the packets of `from` arrive.
fn can_send(life: &Life<'_>, from: SocketId, to: SocketId) -> bool {
    life.is_open(from)
        && life.is_open(to)
        && life.sockets[from].verdict == Verdict::Pass
        && life.state(from) != state::CLOSE
        && life.state(to) != state::CLOSE
}

/// Makes up to six random calls on an established connection.
pub fn random_steps(life: &mut Life<'_>, random: &mut Random, one: SocketId, other: SocketId) {
    for _ in 0..random.below(7) {
        let (from, to) = if random.one_in(2) { (one, other) } else { (other, one) };
        if !can_send(life, from, to) || !can_send(life, to, from) {
            return;
        }
        let can_write = WRITABLE.contains(&life.state(from));
        match random.below(12) {
            0..=4 if can_write => {
                let count = 1 + random.below(6000) as usize;
                life.write(from, count).expect("write");
                life.wait_delivered(from, to);
                if random.one_in(2) {
                    life.wait_acknowledged(from);
                }
            }
            5..=7 => _ = life.read(from, 100_000),
            8 => _ = life.read(from, 1 + random.below(1000) as usize),
            9 if random.one_in(3) && life.state(to) != state::CLOSE_WAIT => {
                let before = life.state(from);
                life.shutdown(from, random.one_in(4), true);
                if before == state::ESTABLISHED {
                    life.wait_state(to, &[state::CLOSE_WAIT, state::CLOSE, state::LAST_ACK]);
                }
            }
            10 if can_write && life.state(from) == state::ESTABLISHED && random.one_in(2) => {
                let has_error = short_outage(life, random, from, to);
                if has_error {
                    // The next call would return the error.
                    return;
                }
            }
            11 if can_write => {
                // recv() returns urgent data in its place only with this option.
                life.option(to, "SO_OOBINLINE", libc::SOL_SOCKET, libc::SO_OOBINLINE, 1);
                life.write_with(from, 1, libc::MSG_OOB).expect("write");
                life.wait_delivered(from, to);
            }
            _ => random_options(life, random, from),
        }
    }
}

/// Makes the network lose data for a moment, so that the kernel retransmits it. Returns whether the outage leaves an
/// error for the next call.
fn short_outage(life: &mut Life<'_>, random: &mut Random, from: SocketId, to: SocketId) -> bool {
    let reports_errors = random.one_in(2);
    if reports_errors {
        report_icmp_errors(life, from);
    }
    let verdict = *random.pick(&[
        Verdict::Drop,
        Verdict::HostUnreachable,
        Verdict::NetUnreachable,
        Verdict::PortUnreachable,
    ]);
    let before = life.retransmits(from);
    life.set_verdict(from, verdict);
    let count = 1 + random.below(2000) as usize;
    life.write(from, count).expect("write");
    if reports_errors {
        // The first ICMP error can arrive while send() owns the socket; then the kernel does not report it. The next
        // error arrives later.
        life.wait_retransmit(from, before + 1);
    }
    life.set_verdict(from, Verdict::Pass);
    life.wait_delivered(from, to);
    life.wait_acknowledged(from);
    reports_errors
}

/// Closes both ends, one after the other.
pub fn close_both(life: &mut Life<'_>, random: &mut Random, one: SocketId, other: SocketId) {
    let (first, last) = if random.one_in(2) { (one, other) } else { (other, one) };
    for socket in [first, last] {
        if life.is_open(socket) && random.one_in(2) {
            _ = life.read(socket, 1 << 20);
        }
    }
    if random.one_in(8) && can_send(life, first, last) {
        return close_during_outage(life, random, first, last);
    }
    let sends_reset = close_one(life, random, first);
    if !life.is_open(last) {
        return;
    }
    if sends_reset {
        life.wait_state(last, &[state::CLOSE]);
    } else {
        life.wait_state(last, &[state::CLOSE_WAIT, state::LAST_ACK, state::CLOSE]);
    }
    if !life.is_open(first) && random.one_in(3) {
        // The data reaches a closed socket, or its time-wait socket, and is answered with a RST.
        let pause = *random.pick(&[0, 0, 1, 20]);
        life.sleep(last, Duration::from_millis(pause));
        if life.write(last, 1 + random.below(500) as usize).is_ok() {
            life.wait_state(last, &[state::CLOSE]);
        }
    }
    if random.one_in(2) {
        _ = life.read(last, 1 << 20);
    }
    close_one(life, random, last);
}

/// Closes a socket in a random way. Returns whether the peer gets a RST.
fn close_one(life: &mut Life<'_>, random: &mut Random, socket: SocketId) -> bool {
    if !life.is_open(socket) {
        return false;
    }
    let before = life.state(socket);
    let has_unread = life.has_unread(socket);
    let mut sends_reset = has_unread && before != state::CLOSE;
    match random.below(8) {
        0 => {
            life.set_linger_zero(socket);
            life.close(socket);
            sends_reset = true;
        }
        1 => {
            life.disconnect(socket);
            life.close(socket);
            sends_reset = true;
        }
        2 if WRITABLE.contains(&before) => {
            life.shutdown(socket, random.one_in(3), true);
            if random.one_in(2) {
                life.close(socket);
            } else {
                life.close_in_other_process(socket, *random.pick(&Handover::ALL));
            }
        }
        3 => life.close_in_other_process(socket, *random.pick(&Handover::ALL)),
        4 if !has_unread && WRITABLE.contains(&before) => {
            life.tcp_option(socket, "TCP_LINGER2", libc::TCP_LINGER2, -1);
            life.sockets[socket].no_fin_wait2 = true;
            life.close(socket);
            // The kernel answers the acknowledgement of its FIN with a RST.
            sends_reset = before == state::ESTABLISHED;
        }
        _ => life.close(socket),
    }
    sends_reset
}

/// Closes both ends while the network loses all packets of the first end, so that its kernel gives up.
fn close_during_outage(life: &mut Life<'_>, random: &mut Random, first: SocketId, last: SocketId) {
    life.tcp_option(first, "TCP_USER_TIMEOUT", libc::TCP_USER_TIMEOUT, 500);
    let verdict = *random.pick(&[Verdict::Drop, Verdict::Drop, Verdict::HostUnreachable]);
    life.set_verdict(first, verdict);
    if WRITABLE.contains(&life.state(first)) {
        // The write can fail with the error of an earlier outage.
        let is_sent = life.write(first, 1 + random.below(2000) as usize).is_ok();
        if is_sent && random.one_in(2) {
            life.wait_error(first);
        }
    }
    life.close(first);
    if random.one_in(2) {
        life.set_verdict(last, Verdict::Drop);
    }
    life.set_linger_zero(last);
    life.close(last);
}
