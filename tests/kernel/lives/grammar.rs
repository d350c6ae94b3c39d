//! The grammar of lives: which calls may follow which. All choices follow from one number.

use std::time::Duration;

use nix::errno::Errno;
use nix::libc;

use super::run::{Elsewhere, Id, Life, state};
use super::world::{Side, Verdict};
use crate::support::random::Random;

/// Runs a life.
pub type Run = fn(&mut Life<'_>, &mut Random);

/// How a life begins: its name, its weight in the choice, and what runs the life.
const BEGINNINGS: [(&str, u64, Run); 15] = [
    ("connect", 28, plain),
    ("Fast Open", 12, fast_open),
    ("deferred Fast Open", 8, deferred_fast_open),
    ("deferred accept", 5, deferred_accept),
    ("refused", 5, refused),
    ("rejected by the firewall", 6, rejected),
    ("dropped by the firewall", 7, dropped),
    ("first SYN lost", 3, first_syn_lost),
    ("to itself", 5, to_itself),
    ("simultaneous open", 5, simultaneous),
    ("half of a simultaneous open", 4, half_simultaneous),
    ("no SYN", 5, no_syn),
    ("a listener that connected", 4, listener_that_connected),
    ("one life after the other", 3, again),
    ("Fast Open without an answer", 6, unanswered_fast_open),
];

/// The name of the beginning, and what runs it.
pub fn beginning(random: &mut Random) -> (&'static str, Run) {
    let all = BEGINNINGS.iter().map(|(_, weight, _)| weight).sum();
    let mut at = random.below(all);
    for (name, weight, run) in BEGINNINGS {
        if at < weight {
            return (name, run);
        }
        at -= weight;
    }
    unreachable!("the weights have a sum")
}

/// From where to where.
fn route(random: &mut Random) -> (Side, Side) {
    *random.pick(&[
        (Side::Near, Side::Far),
        (Side::Near, Side::Far),
        (Side::Far, Side::Near),
        (Side::Near, Side::Near),
    ])
}

const CLIENT_PORT: u16 = 1;
const SERVER_PORT: u16 = 0;

/// Options that change how segments go, and nothing of what a record says.
fn options(life: &mut Life<'_>, random: &mut Random, socket: Id) {
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

fn listener(life: &mut Life<'_>, random: &mut Random, side: Side) -> Id {
    let listener = life.socket(side);
    life.bind(listener, life.at(side, SERVER_PORT));
    options(life, random, listener);
    life.listen(listener);
    listener
}

/// A socket that is about to connect, bound or not.
fn client(life: &mut Life<'_>, random: &mut Random, side: Side) -> Id {
    let client = life.socket(side);
    if random.one_in(2) {
        life.bind(client, life.at(side, CLIENT_PORT));
    }
    options(life, random, client);
    client
}

/// An established connection of a listener's, accepted or not yet.
struct Pair {
    listener: Id,
    client: Id,
    server: Option<Id>,
}

fn connect(life: &mut Life<'_>, random: &mut Random, client: Id, side: Side) {
    let blocking = random.one_in(2);
    let to = life.at(side, SERVER_PORT);
    let result = life.connect(client, to, blocking);
    assert!(
        result == Ok(0) || !blocking && result == Err(Errno::EINPROGRESS),
        "{result:?}"
    );
    life.wait_state(client, &[state::ESTABLISHED]);
}

fn plain(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = route(random);
    let listener = listener(life, random, to);
    let client = client(life, random, from);
    connect(life, random, client, to);
    let pair = Pair {
        listener,
        client,
        server: None,
    };
    live(life, random, pair);
}

/// sendto() with MSG_FASTOPEN, to a listener that takes it or to one that does not.
fn fast_open(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = route(random);
    let listener = listener(life, random, to);
    if !random.one_in(4) {
        life.tcp_option(listener, "TCP_FASTOPEN", libc::TCP_FASTOPEN, 16);
    }
    let client = client(life, random, from);
    let count = 1 + random.below(1200) as usize;
    let result = life.fast_open(client, life.at(to, SERVER_PORT), count);
    assert_eq!(result, Ok(count as u64));
    life.wait_state(client, &[state::ESTABLISHED]);
    let pair = Pair {
        listener,
        client,
        server: None,
    };
    live(life, random, pair);
}

/// TCP_FASTOPEN_CONNECT: connect() only pretends, the first write sends the SYN.
fn deferred_fast_open(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = route(random);
    let listener = listener(life, random, to);
    life.tcp_option(listener, "TCP_FASTOPEN", libc::TCP_FASTOPEN, 16);
    let client = client(life, random, from);
    life.tcp_option(client, "TCP_FASTOPEN_CONNECT", libc::TCP_FASTOPEN_CONNECT, 1);
    let blocking = random.one_in(2);
    let result = life.connect(client, life.at(to, SERVER_PORT), blocking);
    assert_eq!(result, Ok(0));
    let wait = *random.pick(&[0, 5, 30, 300]);
    life.pass(client, Duration::from_millis(wait));
    if random.one_in(4) {
        // It has sent nothing: no attempt.
        if random.one_in(2) {
            life.dissolve(client);
        }
        life.close(client);
        life.close(listener);
        return;
    }
    let count = 1 + random.below(1200) as usize;
    let result = life.write(client, count);
    assert_eq!(result, Ok(count as u64));
    life.wait_state(client, &[state::ESTABLISHED]);
    let pair = Pair {
        listener,
        client,
        server: None,
    };
    live(life, random, pair);
}

/// The listener waits for data before it makes a socket of the handshake.
fn deferred_accept(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = route(random);
    let listener = listener(life, random, to);
    life.tcp_option(listener, "TCP_DEFER_ACCEPT", libc::TCP_DEFER_ACCEPT, 30);
    life.socks[listener].deferred = true;
    let client = client(life, random, from);
    connect(life, random, client, to);
    if random.one_in(3) {
        // The server never learns of it.
        life.linger(client);
        life.close(client);
        life.close(listener);
        return;
    }
    let count = 1 + random.below(5000) as usize;
    life.write(client, count).expect("write");
    life.acknowledged(client);
    let server = Some(life.accept(listener));
    let pair = Pair {
        listener,
        client,
        server,
    };
    live(life, random, pair);
}

/// Nobody listens.
fn refused(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = route(random);
    let client = client(life, random, from);
    let at = life.at(to, SERVER_PORT);
    for _ in 0..1 + random.below(2) {
        let result = if random.one_in(4) {
            let result = life.fast_open(client, at, 300);
            assert!(
                result == Ok(300)
                    || [Errno::EINPROGRESS, Errno::ECONNREFUSED, Errno::ECONNABORTED]
                        .map(Err)
                        .contains(&result),
                "{result:?}"
            );
            result.map(|_| ())
        } else {
            let blocking = random.one_in(2);
            life.connect(client, at, blocking).map(|_| ())
        };
        if result != Err(Errno::ECONNREFUSED) {
            life.wait_state(client, &[state::CLOSE]);
            if random.one_in(2) {
                life.error(client);
            } else {
                life.dissolve(client);
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

/// The firewall answers the SYN.
fn rejected(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = route(random);
    let listener = listener(life, random, to);
    let client = client(life, random, from);
    let verdict = *random.pick(&REJECTIONS);
    life.verdict(client, verdict);
    if random.one_in(3) {
        receive_errors(life, client);
    }
    let blocking = random.one_in(2);
    let result = life.connect(client, life.at(to, SERVER_PORT), blocking);
    assert!(result.is_err());
    if result == Err(Errno::EINPROGRESS) {
        life.error(client);
    }
    if life.state(client) == state::CLOSE && random.one_in(3) {
        life.verdict(client, Verdict::Pass);
        life.dissolve(client);
        connect(life, random, client, to);
        let pair = Pair {
            listener,
            client,
            server: None,
        };
        return live(life, random, pair);
    }
    life.close(client);
    life.close(listener);
}

/// IP_RECVERR: ICMP errors of a connection come at once.
fn receive_errors(life: &mut Life<'_>, socket: Id) {
    if life.of_ipv6 {
        life.option(socket, "IPV6_RECVERR", libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1);
    } else if !life.mapped {
        life.option(socket, "IP_RECVERR", libc::IPPROTO_IP, libc::IP_RECVERR, 1);
    }
}

/// Nothing answers the SYN.
fn dropped(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = route(random);
    let client = client(life, random, from);
    life.verdict(client, Verdict::Drop);
    let gives_up = random.one_in(2);
    if gives_up {
        life.tcp_option(client, "TCP_USER_TIMEOUT", libc::TCP_USER_TIMEOUT, 700);
    }
    let at = life.at(to, SERVER_PORT);
    if random.one_in(3) {
        _ = life.fast_open(client, at, 200);
    } else {
        let blocking = gives_up && random.one_in(2);
        if life.connect(client, at, blocking) == Err(Errno::ETIMEDOUT) {
            return life.close(client);
        }
    }
    match random.below(3) {
        _ if gives_up => {
            life.error(client);
            life.close(client);
        }
        0 => {
            life.dissolve(client);
            life.close(client);
        }
        1 => life.close_elsewhere(client, *random.pick(&Elsewhere::ALL)),
        _ => life.close(client),
    }
}

/// The kernel's second SYN gets there.
fn first_syn_lost(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = route(random);
    let listener = listener(life, random, to);
    let client = client(life, random, from);
    life.verdict(client, Verdict::Drop);
    let result = life.connect(client, life.at(to, SERVER_PORT), false);
    assert_eq!(result, Err(Errno::EINPROGRESS));
    life.verdict(client, Verdict::Pass);
    life.wait_state(client, &[state::ESTABLISHED]);
    let pair = Pair {
        listener,
        client,
        server: None,
    };
    live(life, random, pair);
}

/// The server has the data, but its SYN-ACK is lost: its end lives in SYN_RECV, and may die there.
fn unanswered_fast_open(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = route(random);
    let listener = listener(life, random, to);
    life.tcp_option(listener, "TCP_FASTOPEN", libc::TCP_FASTOPEN, 16);
    life.tcp_option(listener, "TCP_SYNCNT", libc::TCP_SYNCNT, 1);
    life.verdict(listener, Verdict::Drop);
    let client = client(life, random, from);
    life.tcp_option(client, "TCP_USER_TIMEOUT", libc::TCP_USER_TIMEOUT, 900);
    let count = 1 + random.below(1200) as usize;
    let result = life.fast_open(client, life.at(to, SERVER_PORT), count);
    assert_eq!(result, Ok(count as u64));
    let server = life.accept(listener);
    life.pass(server, Duration::from_millis(*random.pick(&[0, 5, 30])));
    if random.one_in(3) {
        // The second answer comes.
        life.verdict(listener, Verdict::Pass);
        life.verdict(server, Verdict::Pass);
        life.tcp_option(client, "TCP_USER_TIMEOUT", libc::TCP_USER_TIMEOUT, 0);
        life.wait_state(client, &[state::ESTABLISHED]);
        life.wait_state(server, &[state::ESTABLISHED]);
        steps(life, random, client, server);
        ending(life, random, client, server);
        return life.close(listener);
    }
    if random.one_in(2) {
        life.read(server, 10_000).expect("read");
    }
    if random.one_in(3) {
        life.write(server, 1 + random.below(300) as usize).expect("write");
    }
    if random.one_in(3) {
        life.linger(server);
    }
    life.close(server);
    life.close(client);
    life.close(listener);
}

/// A socket whose SYN meets itself.
fn to_itself(life: &mut Life<'_>, random: &mut Random) {
    let socket = life.socket(Side::Near);
    let own = life.at(Side::Near, CLIENT_PORT);
    life.bind(socket, own);
    options(life, random, socket);
    let blocking = random.one_in(2);
    _ = life.connect(socket, own, blocking);
    life.wait_state(socket, &[state::ESTABLISHED]);
    for _ in 0..random.below(3) {
        life.write(socket, 1 + random.below(3000) as usize).expect("write");
        life.delivered(socket, socket);
        if !random.one_in(4) {
            life.read(socket, 100_000).expect("read");
        }
    }
    if random.one_in(4) {
        life.linger(socket);
    }
    life.close(socket);
}

/// Two sockets that connect to each other. The first SYN is lost, so that neither port is closed when a SYN comes there.
fn crossing(life: &mut Life<'_>, random: &mut Random) -> (Id, Id) {
    let (from, to) = *random.pick(&[
        (Side::Near, Side::Far),
        (Side::Far, Side::Near),
        (Side::Near, Side::Near),
    ]);
    let [one, other] = [from, to].map(|side| life.socket(side));
    let (at, peer) = (life.at(from, CLIENT_PORT), life.at(to, SERVER_PORT));
    life.bind(one, at);
    life.bind(other, peer);
    options(life, random, one);
    life.verdict(one, Verdict::Drop);
    let result = life.connect(one, peer, false);
    assert_eq!(result, Err(Errno::EINPROGRESS));
    (one, other)
}

fn simultaneous(life: &mut Life<'_>, random: &mut Random) {
    let (one, other) = crossing(life, random);
    life.verdict(one, Verdict::Pass);
    let to = life.socks[one].local.expect("it is bound");
    let result = life.connect(other, to, false);
    assert_eq!(result, Err(Errno::EINPROGRESS));
    life.wait_state(one, &[state::ESTABLISHED]);
    life.wait_state(other, &[state::ESTABLISHED]);
    steps(life, random, one, other);
    ending(life, random, one, other);
}

/// The answer to the other's SYN is lost: one end stays in SYN_RECV.
fn half_simultaneous(life: &mut Life<'_>, random: &mut Random) {
    let (one, other) = crossing(life, random);
    life.tcp_option(one, "TCP_USER_TIMEOUT", libc::TCP_USER_TIMEOUT, 900);
    let to = life.socks[one].local.expect("it is bound");
    life.tcp_option(other, "TCP_USER_TIMEOUT", libc::TCP_USER_TIMEOUT, 900);
    let result = life.connect(other, to, false);
    assert_eq!(result, Err(Errno::EINPROGRESS));
    life.wait_state(one, &[state::SYN_RECV]);
    // From now on neither hears of the other.
    life.verdict(other, Verdict::Drop);
    match random.below(4) {
        0 => life.close(one),
        1 => {
            life.dissolve(one);
            life.close(one);
        }
        2 => {
            life.linger(one);
            life.close(one);
        }
        _ => {
            life.error(one);
            life.close(one);
        }
    }
    life.close(other);
}

/// connect() that fails before there is a SYN, on a socket that is new or has lived before.
fn no_syn(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = (Side::Near, Side::Far);
    let listener = listener(life, random, to);
    // It holds the addresses that the other one records_expected.
    let holder = life.socket(from);
    life.bind(holder, life.at(from, CLIENT_PORT));
    let second = life.socket(from);
    life.bind(second, life.at(from, CLIENT_PORT));
    match random.below(4) {
        0 => {}
        // It dies with an error that nobody reads.
        1 => {
            let nobody = life.at(to, 2);
            life.connect(second, nobody, false).expect_err("nobody listens");
            life.wait_state(second, &[state::CLOSE]);
        }
        choice => {
            let second_listener = life.socket(to);
            life.bind(second_listener, life.at(to, 3));
            life.listen(second_listener);
            _ = life.connect(second, life.at(to, 3), false);
            life.wait_state(second, &[state::ESTABLISHED]);
            let accepted = life.accept(second_listener);
            if choice == 3 {
                life.write(second, 500).expect("write");
                life.delivered(second, accepted);
            }
            life.dissolve(second);
            life.wait_state(accepted, &[state::CLOSE]);
            life.close(accepted);
            life.close(second_listener);
        }
    }
    let at = life.at(to, SERVER_PORT);
    life.connect(holder, at, true).expect("connect");
    let accepted = life.accept(listener);
    for _ in 0..2 {
        let blocking = random.one_in(2);
        let result = life.connect(second, at, blocking);
        assert!(result.is_err());
    }
    life.close(second);
    ending(life, random, holder, accepted);
    life.close(listener);
}

/// A socket that connected, or was accepted, and then listens.
fn listener_that_connected(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = route(random);
    let turned = if random.one_in(3) && !life.mapped {
        let first = listener(life, random, to);
        let peer = life.socket(from);
        connect(life, random, peer, to);
        let turned = life.accept(first);
        life.close(first);
        life.dissolve(turned);
        life.wait_state(peer, &[state::CLOSE]);
        life.close(peer);
        // AF_UNSPEC has taken its port, which was never its own.
        life.bind(turned, life.at(to, SERVER_PORT));
        turned
    } else {
        let first = life.socket(from);
        life.bind(first, life.at(from, 4));
        life.listen(first);
        let turned = life.socket(to);
        life.bind(turned, life.at(to, SERVER_PORT));
        life.connect(turned, life.at(from, 4), true).expect("connect");
        let peer = life.accept(first);
        life.close(first);
        life.dissolve(turned);
        life.wait_state(peer, &[state::CLOSE]);
        life.close(peer);
        turned
    };
    if random.one_in(2) {
        life.listen_elsewhere(turned);
    } else {
        life.listen(turned);
    }
    let client = client(life, random, from);
    connect(life, random, client, to);
    let pair = Pair {
        listener: turned,
        client,
        server: None,
    };
    live(life, random, pair);
}

/// A socket that is reset and connects again.
fn again(life: &mut Life<'_>, random: &mut Random) {
    let (from, to) = route(random);
    let listener = listener(life, random, to);
    // The kernel gives it another port each time.
    let client = life.socket(from);
    options(life, random, client);
    for _ in 0..1 + random.below(2) {
        connect(life, random, client, to);
        let server = life.accept(listener);
        steps(life, random, client, server);
        if random.one_in(2) {
            life.dissolve(client);
        } else {
            life.linger(server);
            life.close(server);
        }
        life.wait_state(client, &[state::CLOSE]);
        if life.is_open(server) {
            if life.state(server) != state::CLOSE && life.socks[server].verdict == Verdict::Pass {
                life.wait_state(server, &[state::CLOSE]);
            }
            life.close(server);
        }
        if random.one_in(2) {
            life.error(client);
        }
        life.dissolve(client);
    }
    connect(life, random, client, to);
    let pair = Pair {
        listener,
        client,
        server: None,
    };
    live(life, random, pair);
}

/// What a connection does from its handshake to its end.
fn live(life: &mut Life<'_>, random: &mut Random, pair: Pair) {
    let Pair {
        listener,
        client,
        server,
    } = pair;
    let server = match server {
        Some(server) => server,
        // Never accepted.
        None if random.one_in(10) => return unaccepted(life, random, listener, client),
        None => {
            // Late.
            if random.one_in(4) {
                _ = life.write(client, 1 + random.below(3000) as usize);
                life.acknowledged(client);
                if random.one_in(3) {
                    life.shutdown(client, false, true);
                    life.acknowledged(client);
                }
            }
            life.accept(listener)
        }
    };
    if random.one_in(3) {
        life.close(listener);
    }
    steps(life, random, client, server);
    ending(life, random, client, server);
    if life.is_open(listener) {
        life.close(listener);
    }
}

/// The listener goes, with the connection in its queue.
fn unaccepted(life: &mut Life<'_>, random: &mut Random, listener: Id, client: Id) {
    if random.one_in(2) {
        _ = life.write(client, 1 + random.below(3000) as usize);
    }
    life.acknowledged(client);
    match random.below(3) {
        0 => {
            life.shutdown(client, false, true);
            life.acknowledged(client);
        }
        1 => {
            life.linger(client);
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

/// Whether what one end sends comes to the other, and both are there.
fn talks(life: &Life<'_>, from: Id, to: Id) -> bool {
    life.is_open(from)
        && life.is_open(to)
        && life.socks[from].verdict == Verdict::Pass
        && life.state(from) != state::CLOSE
        && life.state(to) != state::CLOSE
}

fn steps(life: &mut Life<'_>, random: &mut Random, one: Id, other: Id) {
    for _ in 0..random.below(7) {
        let (from, to) = if random.one_in(2) { (one, other) } else { (other, one) };
        if !talks(life, from, to) || !talks(life, to, from) {
            return;
        }
        let can_write = [state::ESTABLISHED, state::CLOSE_WAIT].contains(&life.state(from));
        match random.below(12) {
            0..=4 if can_write => {
                let count = 1 + random.below(6000) as usize;
                life.write(from, count).expect("write");
                life.delivered(from, to);
                if random.one_in(2) {
                    life.acknowledged(from);
                }
            }
            5..=7 => _ = life.read(from, 100_000),
            8 => _ = life.read(from, 1 + random.below(1000) as usize),
            9 if random.one_in(3) && life.state(to) != state::CLOSE_WAIT => {
                let now = life.state(from);
                life.shutdown(from, random.one_in(4), true);
                if now == state::ESTABLISHED {
                    life.wait_state(to, &[state::CLOSE_WAIT, state::CLOSE, state::LAST_ACK]);
                }
            }
            10 if can_write && life.state(from) == state::ESTABLISHED && random.one_in(2) => {
                if blip(life, random, from, to) {
                    // The next call would get the error.
                    return;
                }
            }
            11 if can_write => {
                // Else it is never read in its place.
                life.option(to, "SO_OOBINLINE", libc::SOL_SOCKET, libc::SO_OOBINLINE, 1);
                life.write_with(from, 1, libc::MSG_OOB).expect("write");
                life.delivered(from, to);
            }
            _ => options(life, random, from),
        }
    }
}

/// The network fails for a moment: what is sent meanwhile is sent again. Whether it leaves an error for the program.
fn blip(life: &mut Life<'_>, random: &mut Random, from: Id, to: Id) -> bool {
    let errors = random.one_in(2);
    if errors {
        receive_errors(life, from);
    }
    let verdict = *random.pick(&[
        Verdict::Drop,
        Verdict::HostUnreachable,
        Verdict::NetUnreachable,
        Verdict::PortUnreachable,
    ]);
    let before = life.sent_again_so_far(from);
    life.verdict(from, verdict);
    let count = 1 + random.below(2000) as usize;
    life.write(from, count).expect("write");
    if errors {
        // The first answer may come while the program holds the socket, which makes it no error. The next one does not.
        life.sent_again(from, before + 1);
    }
    life.verdict(from, Verdict::Pass);
    life.delivered(from, to);
    life.acknowledged(from);
    errors
}

/// Both ends go, one first.
fn ending(life: &mut Life<'_>, random: &mut Random, one: Id, other: Id) {
    let (first, last) = if random.one_in(2) { (one, other) } else { (other, one) };
    // Half of them have read all.
    for socket in [first, last] {
        if life.is_open(socket) && random.one_in(2) {
            _ = life.read(socket, 1 << 20);
        }
    }
    if random.one_in(8) && talks(life, first, last) {
        return vanish(life, random, first, last);
    }
    let reset = end(life, random, first);
    if !life.is_open(last) {
        return;
    }
    if reset {
        life.wait_state(last, &[state::CLOSE]);
    } else {
        life.wait_state(last, &[state::CLOSE_WAIT, state::LAST_ACK, state::CLOSE]);
    }
    // Data that meets a closed socket, or its time-wait stub.
    if !life.is_open(first) && random.one_in(3) {
        let pause = *random.pick(&[0, 0, 1, 20]);
        life.pass(last, Duration::from_millis(pause));
        if life.write(last, 1 + random.below(500) as usize).is_ok() {
            life.wait_state(last, &[state::CLOSE]);
        }
    }
    if random.one_in(2) {
        _ = life.read(last, 1 << 20);
    }
    end(life, random, last);
}

/// One end goes. Whether the other one gets a RST.
fn end(life: &mut Life<'_>, random: &mut Random, socket: Id) -> bool {
    if !life.is_open(socket) {
        return false;
    }
    let now = life.state(socket);
    let has_unread = life.has_unread(socket);
    let mut reset = has_unread && now != state::CLOSE;
    match random.below(8) {
        0 => {
            life.linger(socket);
            life.close(socket);
            reset = true;
        }
        1 => {
            life.dissolve(socket);
            life.close(socket);
            reset = true;
        }
        2 if [state::ESTABLISHED, state::CLOSE_WAIT].contains(&now) => {
            life.shutdown(socket, random.one_in(3), true);
            if random.one_in(2) {
                life.close(socket);
            } else {
                life.close_elsewhere(socket, *random.pick(&Elsewhere::ALL));
            }
        }
        3 => life.close_elsewhere(socket, *random.pick(&Elsewhere::ALL)),
        4 if !has_unread && [state::ESTABLISHED, state::CLOSE_WAIT].contains(&now) => {
            life.tcp_option(socket, "TCP_LINGER2", libc::TCP_LINGER2, -1);
            life.socks[socket].no_fin_wait2 = true;
            life.close(socket);
            // The acknowledgement of its FIN is answered with a RST.
            reset = now == state::ESTABLISHED;
        }
        _ => life.close(socket),
    }
    reset
}

/// What one end sends is lost for good: the kernel gives up.
fn vanish(life: &mut Life<'_>, random: &mut Random, first: Id, last: Id) {
    life.tcp_option(first, "TCP_USER_TIMEOUT", libc::TCP_USER_TIMEOUT, 500);
    let verdict = *random.pick(&[Verdict::Drop, Verdict::Drop, Verdict::HostUnreachable]);
    life.verdict(first, verdict);
    let can_write = [state::ESTABLISHED, state::CLOSE_WAIT].contains(&life.state(first));
    if can_write {
        // It may get the error of an earlier failure of the network.
        let sent = life.write(first, 1 + random.below(2000) as usize).is_ok();
        if sent && random.one_in(2) {
            life.error(first);
        }
    }
    life.close(first);
    if random.one_in(2) {
        life.verdict(last, Verdict::Drop);
    }
    life.linger(last);
    life.close(last);
}
