//! The life of a connection, told by the changes of its socket's state.
//!
//! Most changes need nothing and leave at once. What is noted is kept while the socket lives ([`kept`]), unless the filter is
//! certain to sort the connection out: then nothing is kept at all, and its end is only counted.

use core::ptr;

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use kmesh_trace_common::{
    FLAG_ACTIVE, FLAG_HELD, FLAG_PREEXISTING, FLAG_RESET_SENT, FLAG_SECOND_CHANCE, counter, owner, state,
};

use crate::filter::{is_known_of_children, rejects, rejects_children, rejects_either_way};
use crate::kept::{self, Connection, SEEDED, Scanned, UNJUDGED, phase};
use crate::maps::{began_ns, checks, count, is_preempted, is_unstored, note_unstored, scan_number};
use crate::record;
use crate::sock::{IteratorOutput, NetnsSock, Sock, Task, TaskFile, Tcp};

/// Whether a change of state needs anything. What the others would add can be told from the counters at the end.
#[inline(always)]
pub fn matters(old: u8, new: u8) -> bool {
    match new {
        state::SYN_RECV => old == state::LISTEN,
        state::CLOSE => !matches!(old, state::LISTEN | state::CLOSE),
        _ => matches!(
            new,
            state::SYN_SENT | state::ESTABLISHED | state::FIN_WAIT1 | state::LAST_ACK | state::LISTEN
        ),
    }
}

/// A change of state that matters: `inet_sock_set_state`.
///
/// The kernel skips a program on a CPU where it is running already. Since 7.0 it may also preempt one in the middle, and
/// then the changes of all other tasks there would be missed until that goes on. So there the same is attached twice: the
/// second `program` ([`counter::STATE_AGAIN`]) does what the first was skipped for, and leaves at once otherwise.
#[inline(always)]
pub fn changed(sock: Sock, old: u8, new: u8, program: u32) {
    if new == state::CLOSE && old == state::SYN_RECV && sock.never_was_there() && superfluous(sock, program) {
        return;
    }
    // Then nothing is kept of it, and nothing need be looked up. What begins has not both its ports yet.
    if !matches!(new, state::SYN_SENT | state::SYN_RECV | state::LISTEN) && rejects_either_way(sock) {
        if new == state::CLOSE {
            filtered(sock, old, program);
        }
        return;
    }
    if program == counter::STATE_AGAIN && kept::get(sock).is_some_and(|connection| connection.seen == new) {
        return;
    }
    match new {
        state::SYN_SENT => connecting(sock, program),
        state::SYN_RECV => born(sock, program),
        state::ESTABLISHED => established(sock, old, program),
        state::FIN_WAIT1 | state::LAST_ACK => closing(sock, new, program),
        state::CLOSE => closed(sock, old, program),
        state::LISTEN => listening(sock, Task::current(), program),
        _ => {}
    }
}

/// connect(), in the system call of the program itself.
#[inline(always)]
fn connecting(sock: Sock, program: u32) {
    let is_rejected = rejects(sock, true);
    // A socket that will be seen to have connected when it ends can do without storage until then.
    if is_rejected && looks_connected(sock) {
        return;
    }
    let Some(connection) = kept::get_or_create_client(sock) else {
        return note_unstored(sock);
    };
    if connection.phase == phase::LIVE {
        lose(connection, program);
    }
    if is_rejected {
        connection.phase = phase::FILTERED;
        connection.seen = state::SYN_SENT;
        return;
    }
    connection.association += 1;
    connection.phase = phase::LIVE;
    connection.flags = FLAG_ACTIVE;
    connection.last_state = state::SYN_SENT;
    connection.seen = state::SYN_SENT;
    connection.start_ns = now();
    connection.established_ns = 0;
    // A socket's first association has an empty error queue.
    connection.stale_error = if connection.association > 1 {
        sock.newest_error()
    } else {
        0
    };
    connection.segs_before = sock.tcp().map_or(0, Tcp::segs_out);
    connection.clear_owner();
    connection.set_owner(Task::current(), owner::CONNECT);
    count(program, |counters| counters.open += 1);
}

/// Counts an earlier connection attempt of this socket as lost: it ended, the kernel skipped the programs then, and nothing is left to
/// report of it.
#[inline(always)]
fn lose(connection: &Connection, program: u32) {
    let counted = i64::from(is_counted(connection));
    count(program, |counters| {
        counters.closes += 1;
        counters.lost_skipped += 1;
        counters.open -= counted;
    });
}

/// Returns whether a live connection is part of the count of open ones.
#[inline(always)]
fn is_counted(connection: &Connection) -> bool {
    connection.flags & UNJUDGED == 0
}

/// Counts a child as open that was not counted when it was made.
#[inline(always)]
fn count_late(connection: &mut Connection, program: u32) {
    if !is_counted(connection) {
        connection.flags &= !UNJUDGED;
        count(program, |counters| counters.open += 1);
    }
}

/// Asks the filter about a live child that had no addresses yet when it was made. Returns whether it passes.
#[inline(always)]
fn passes_late(sock: Sock, connection: &mut Connection, program: u32) -> bool {
    if !is_counted(connection) && rejects(sock, false) {
        connection.phase = phase::FILTERED;
        return false;
    }
    count_late(connection, program);
    true
}

/// A listener's child was made. With Fast Open it may live, and die, before its handshake is over; without, it is
/// established within this very segment.
#[inline(always)]
fn born(sock: Sock, program: u32) {
    // The child still is a copy of its listener, with no addresses of its own.
    if sock.allows_fast_open()
        && !rejects_children(sock)
        && let Some(connection) = kept::get_or_create_inherited(sock)
    {
        begin_accepted(connection, state::SYN_RECV, now());
        connection.flags = UNJUDGED;
        if is_known_of_children(sock) {
            count_late(connection, program);
        }
    }
}

/// A child that the kernel made and gave up before it was in the table of connections, so that no segment ever found it: it was no
/// connection. Two processors had segments of one handshake in hand, and the other one's child came first; or the listener
/// was closed in that very moment. False for what only looks so, and nothing is done: a client that chose its port itself,
/// and that got a SYN for its SYN.
#[inline(always)]
fn superfluous(sock: Sock, program: u32) -> bool {
    match kept::get(sock) {
        Some(connection) if connection.phase == phase::LIVE => {
            if connection.flags & FLAG_ACTIVE != 0 {
                return false;
            }
            connection.phase = phase::ENDED;
            if is_counted(connection) {
                count(program, |counters| counters.open -= 1);
            }
            true
        }
        Some(connection) if connection.phase == phase::LISTENER => {
            connection.phase = phase::ENDED;
            true
        }
        Some(connection) if connection.phase == phase::FILTERED => false,
        _ => !looks_connected(sock),
    }
}

/// The handshake is over.
#[inline(always)]
fn established(sock: Sock, old: u8, program: u32) {
    let connection = match kept::get(sock) {
        Some(connection) if connection.phase == phase::LIVE => {
            if !passes_late(sock, connection, program) {
                return;
            }
            connection
        }
        Some(connection) if connection.phase == phase::FILTERED => return,
        // It was connecting when tracing began and no walk has met it, or it is filtered out, or its beginning was skipped. What
        // gets a SYN for its SYN (from itself, or because both ends connect at once) is in SYN_RECV.
        known if old == state::SYN_SENT || is_client(sock, known.as_deref()) => {
            if rejects(sock, true) {
                return;
            }
            match adopt(sock, known, program) {
                Some(connection) => connection,
                None => return,
            }
        }
        // Accepted. The listener's storage was copied to it, if there is any.
        copied => {
            if !looks_connected(sock) && rejects(sock, false) {
                return;
            }
            match copied.or_else(|| kept::get_or_create_inherited(sock)) {
                Some(connection) => {
                    begin_accepted(connection, state::ESTABLISHED, arrived(sock, 0));
                    count(program, |counters| counters.open += 1);
                    connection
                }
                None => return note_unstored(sock),
            }
        }
    };
    connection.established_ns = arrived(sock, connection.start_ns);
    if connection.flags & FLAG_ACTIVE != 0
        && let Some(tcp) = sock.tcp()
        && tcp.defers_connect()
    {
        connection.start_ns = syn_sent(tcp, connection.established_ns);
    }
    connection.last_state = state::ESTABLISHED;
    connection.seen = state::ESTABLISHED;
    record::open(sock, connection, old, program);
}

/// Returns whether a socket that was in SYN_RECV connected, by what is `known` of it. A child is not accepted yet, and begins with
/// a copy of its listener's storage, if there is one.
#[inline(always)]
fn is_client(sock: Sock, known: Option<&Connection>) -> bool {
    looks_connected(sock) && sock.has_socket() && known.is_none_or(|connection| connection.phase != phase::LISTENER)
}

/// Returns when the first SYN was sent, CLOCK_MONOTONIC, ns, of a connection that was `established` just now. The kernel keeps the
/// time in milliseconds, but it has just measured the round trip if the SYN was sent only once.
#[inline(always)]
fn syn_sent(tcp: Tcp, established: u64) -> u64 {
    let round_trip_us = tcp.srtt_us() >> 3;
    if tcp.total_retrans() == 0 && round_trip_us != 0 {
        return established.wrapping_sub(u64::from(round_trip_us) * 1_000);
    }
    let now_ms = (established / 1_000_000) as u32;
    let ago_ms = now_ms.wrapping_sub(tcp.retrans_stamp());
    established.wrapping_sub(u64::from(ago_ms) * 1_000_000)
}

/// A child starts with its listener's storage, so all but the owner is set anew.
#[inline(always)]
fn begin_accepted(connection: &mut Connection, state: u8, now: u64) {
    connection.start_ns = now;
    connection.established_ns = 0;
    connection.association = 1;
    connection.phase = phase::LIVE;
    connection.flags = 0;
    connection.last_state = state;
    connection.seen = state;
    connection.be_accepted();
}

/// This end sends its FIN: close() or shutdown(), in the system call of the program itself. Or its listener is being closed just
/// when the last segment of its handshake comes: it begins with its listener's shutdown, and heeds it at once.
#[inline(always)]
fn closing(sock: Sock, new: u8, program: u32) {
    let connection = match kept::get(sock) {
        Some(connection) if connection.phase == phase::LIVE => {
            if !passes_late(sock, connection, program) {
                return;
            }
            connection
        }
        Some(connection) if connection.phase == phase::FILTERED => return,
        known => {
            if rejects(sock, looks_connected(sock)) {
                return;
            }
            match adopt(sock, known, program) {
                Some(connection) => connection,
                None => return,
            }
        }
    };
    connection.last_state = new;
    connection.seen = new;
    if sock.is_in_system_call() {
        connection.set_owner(Task::current(), owner::CLOSE);
    }
}

/// It is over.
#[inline(always)]
fn closed(sock: Sock, old: u8, program: u32) {
    let connection = match kept::get(sock) {
        Some(connection) if connection.phase == phase::LIVE => {
            // More may be known now than when it began.
            if rejects(sock, connection.flags & FLAG_ACTIVE != 0) {
                connection.phase = phase::ENDED;
                connection.last_state = state::CLOSE;
                connection.seen = state::CLOSE;
                if is_counted(connection) {
                    count(program, |counters| counters.open -= 1);
                }
                return filtered(sock, old, program);
            }
            count_late(connection, program);
            connection
        }
        Some(connection) if connection.phase == phase::FILTERED => {
            connection.seen = state::CLOSE;
            return filtered(sock, old, program);
        }
        // Only an attempt whose beginning was skipped can end after an end.
        Some(connection) if connection.phase == phase::ENDED && old != state::SYN_SENT => return,
        known => {
            if rejects(sock, looks_connected(sock)) {
                return filtered(sock, old, program);
            }
            match known {
                // A child that died before its handshake was over.
                Some(connection) if connection.phase == phase::LISTENER && old == state::SYN_RECV => {
                    begin_accepted(connection, state::SYN_RECV, now());
                    count(program, |counters| counters.open += 1);
                    connection
                }
                known => match adopt(sock, known, program) {
                    Some(connection) => connection,
                    // Nothing tells the second program that the first has counted it.
                    None if program == counter::STATE_AGAIN => return,
                    None => {
                        // Its socket still has to go, and there it must not pass for one that no program was run for.
                        if is_preempted() {
                            note_unstored(sock);
                        }
                        return count(program, |counters| {
                            counters.closes += 1;
                            counters.lost_storage += 1;
                        });
                    }
                },
            }
        }
    };
    // The first change of state is close()'s own: the program is the one running. Later ones come with segments.
    if sock.is_ended_by_close(old) {
        connection.set_owner(Task::current(), owner::CLOSE);
    }
    end(sock, connection, old, 0, program);
}

/// What the filter sorts out is counted as it would have been told; by the first program alone, since nothing tells the
/// second one that it was.
#[inline(always)]
fn filtered(sock: Sock, old: u8, program: u32) {
    if program == counter::STATE_AGAIN {
        return;
    }
    // Only a failed connect() may be none at all; what its error queue held before does not matter.
    if old != state::SYN_SENT || record::ended(sock, 0, 0, old, 0).is_some() {
        count(program, |counters| {
            counters.closes += 1;
            counters.filtered += 1;
        });
    }
}

/// The kernel gives a connection up in a softirq on top of the program at `inet_sock_set_state`, and skips that program for it:
/// `inet_sk_error_report` comes just before the change to CLOSE (timeouts, ICMP) or just after it (RST). The program of the
/// connection may keep its socket for long and read the error, so the destroy fallback would come late and know less.
#[inline(always)]
pub fn failed(sock: Sock) {
    let Some(connection) = kept::get(sock) else {
        return;
    };
    if connection.phase != phase::LIVE || sock.sk_err() == 0 {
        return;
    }
    match sock.skc_state() {
        // An attempt with an error is over. An established connection may go on after an ICMP error.
        old @ (state::SYN_SENT | state::SYN_RECV) => end(sock, connection, old, 0, counter::ERROR),
        state::CLOSE => {
            note_fin(sock, connection);
            count(counter::ERROR, |counters| counters.second_chances += 1);
            end(
                sock,
                connection,
                connection.last_state,
                FLAG_SECOND_CHANCE,
                counter::ERROR,
            );
        }
        _ => {}
    }
}

/// The socket goes: `tcp_destroy_sock`. If its end has not been told, the kernel skipped the programs at its close. Attached twice
/// as well where [`changed`] is: the second `program` ([`counter::DESTROY_AGAIN`]) finds an end where the first was run.
#[inline(always)]
pub fn destroyed(sock: Sock, program: u32) {
    match kept::get(sock) {
        // The program dissolved the connection (AF_UNSPEC) after its end: its address and its counters are gone.
        Some(connection) if connection.phase == phase::LIVE && sock.peer_port() == 0 => {
            lose(connection, program);
            connection.phase = phase::ENDED;
        }
        Some(connection) if connection.phase == phase::LIVE => {
            count_late(connection, program);
            note_fin(sock, connection);
            // SAFETY: a read through a reference. Volatile, so that the verifier goes through the rest once, whatever was noted.
            let last = unsafe { ptr::read_volatile(&raw const connection.last_state) };
            count(program, |counters| counters.second_chances += 1);
            // Without preemption the kernel skips a program only in a softirq, so no system call ended the connection. If one
            // destroys the socket now, a program held the socket, and may have read its error.
            let held = if !is_preempted() && sock.is_in_system_call() {
                FLAG_HELD
            } else {
                0
            };
            end(sock, connection, last, FLAG_SECOND_CHANCE | held, program);
        }
        Some(connection) if matches!(connection.phase, phase::ENDED | phase::FILTERED) => {}
        known => {
            if is_preempted() && was_never_seen(sock, known.is_some()) {
                count(program, |counters| {
                    counters.closes += 1;
                    counters.lost_skipped += 1;
                });
                if let Some(connection) = kept::get_or_create_inherited(sock) {
                    connection.phase = phase::ENDED;
                }
            }
        }
    }
    if program == counter::DESTROY_AGAIN || !is_preempted() {
        kept::free(sock);
    }
}

/// Notes the state that followed the last one noted, if the programs were skipped there too: the FIN that was sent shows.
#[inline(always)]
fn note_fin(sock: Sock, connection: &mut Connection) {
    let Some(tcp) = sock.tcp() else { return };
    if connection.last_state != state::ESTABLISHED || !tcp.sent_fin(connection.flags & FLAG_ACTIVE != 0) {
        return;
    }
    if !sock.is_done() {
        connection.last_state = state::FIN_WAIT1;
    } else if tcp.snd_una() == tcp.write_seq() {
        // Both ends sent one. What acknowledged this end's was the last to move the window, and stood behind the peer's only if
        // that had come before. (Without an acknowledgement nothing shows which was first.)
        connection.last_state = if tcp.snd_wl1() == tcp.rcv_nxt() {
            state::LAST_ACK
        } else {
            state::FIN_WAIT1
        };
    }
}

/// Whether a connection, or an attempt, ended of which nothing is kept, or only what is `inherited`, because the kernel skipped the
/// programs from its beginning to its end. Others of which nothing is kept: the filter sorted it out, there was no storage, or
/// it was over before the programs were attached, and then nothing has come or gone since.
#[inline(always)]
fn was_never_seen(sock: Sock, inherited: bool) -> bool {
    if !sock.is_tcp() || is_unstored(sock) {
        return false;
    }
    // An attempt's peer may be forgotten by now; then the filter cannot be asked. A listener has none, and what its children
    // inherit.
    if sock.peer_port() == 0 && (inherited || checks() != 0 || !looks_connected(sock)) {
        return false;
    }
    sock.tcp().is_some_and(|tcp| tcp.tcp_clock_cache() >= began_ns()) && !rejects(sock, looks_connected(sock))
}

/// A RST was sent: `tcp_send_reset`. The kernel mostly sends it after the change to CLOSE that the same segment caused; where a
/// timer ends the wait for the peer's FIN, before.
#[inline(always)]
pub fn reset_sent(sock: Sock) {
    let state = sock.skc_state();
    // What is left of a connection in TIME_WAIT has its cookie. What that answers is no part of the connection.
    if state != state::CLOSE && state != state::FIN_WAIT2 {
        return;
    }
    let Some(connection) = kept::get(sock) else { return };
    match connection.phase {
        phase::LIVE if state == state::FIN_WAIT2 => connection.flags |= FLAG_RESET_SENT,
        phase::ENDED if reset_decides(sock, connection.last_state) => {
            connection.last_state = state::CLOSE;
            record::reset(sock, connection);
        }
        _ => {}
    }
}

/// Returns whether a RST that is sent after the end, in `last_state`, decides how it ended. Data that comes after close() or after
/// the peer's own FIN is answered by one, and the kernel sets the error as if it had received it.
#[inline(always)]
fn reset_decides(sock: Sock, last_state: u8) -> bool {
    match last_state {
        state::FIN_WAIT1 | state::FIN_WAIT2 => true,
        state::CLOSE_WAIT | state::CLOSING | state::LAST_ACK => sock.sk_err() != 0,
        _ => false,
    }
}

/// The scan found the socket among the descriptors of a process: `iter/task_file`. It holds no lock of the socket, so a program
/// at a change of state may run on another CPU meanwhile: see [`Scanned`].
#[inline(always)]
pub fn met(visit: TaskFile, sock: Sock, task: Task) {
    let state = sock.skc_state();
    if state == state::LISTEN {
        return listener_found(sock, task);
    }
    if state == state::CLOSE {
        return;
    }
    let connection = match kept::scanned(sock) {
        Some(connection) => {
            if connection.found().1 < owner::SCAN {
                connection.set_found(task, owner::SCAN, scan_number());
            }
            connection
        }
        None => match seed(sock, Some(task), state) {
            Some(connection) => connection,
            None => return,
        },
    };
    visit_connection(visit.output(), sock, state, connection, false);
}

/// The scan found the socket among those of a network namespace: `iter/tcp`. No descriptor need lead to it: nobody has accepted
/// it yet, its program has closed it, it is on its way to another process, or it never had a descriptor. The iterator holds the
/// socket's lock.
#[inline(always)]
pub fn found_in_netns(visit: NetnsSock, sock: Sock) {
    let state = sock.skc_state();
    if matches!(state, state::LISTEN | state::CLOSE) {
        return;
    }
    if let Some(connection) = kept::scanned(sock).or_else(|| seed(sock, None, state)) {
        visit_connection(visit.output(), sock, state, connection, true);
    }
}

/// Reports a connection that counts as open, and counts the visit, both once a scan: a socket may be held by several descriptors.
#[inline(always)]
fn visit_connection(output: IteratorOutput, sock: Sock, state: u8, connection: Scanned, is_locked: bool) {
    let scan = scan_number();
    if connection.phase() != phase::LIVE || connection.walk() == scan {
        return;
    }
    // The first scan only stores. An attempt begins when its SYN is sent.
    if scan > 1
        && (state != state::SYN_SENT || sock.tcp().is_some_and(|tcp| tcp.segs_out() != connection.segs_before()))
    {
        record::update(output, sock, connection, scan, is_locked);
    } else {
        connection.set_visited(scan);
    }
}

/// Begins to track a socket that was open before the tracer. `task`: a process that has a descriptor of it.
#[inline(always)]
fn seed(sock: Sock, task: Option<Task>, state: u8) -> Option<Scanned> {
    if is_unstored(sock) {
        return None;
    }
    let is_active = state == state::SYN_SENT || looks_connected(sock);
    let is_rejected = rejects(sock, is_active);
    // One that will be seen to have connected when it ends can do without storage until then.
    if is_rejected && (!is_active || looks_connected(sock)) {
        return None;
    }
    let mut seeded = unseen(sock);
    if is_active {
        seeded.flags |= FLAG_ACTIVE;
    }
    if is_rejected {
        seeded.phase = phase::FILTERED;
        seeded.flags &= !SEEDED;
    }
    seeded.last_state = state;
    if let Some(task) = task {
        Scanned::new(&mut seeded).set_found(task, owner::SCAN, scan_number());
    }
    // Whoever makes the storage first, a change of state or this scan, the other one finds it.
    let connection = kept::scanned_or_create(sock, &seeded)?;
    if connection.flags() & SEEDED != 0 {
        count(counter::WALK, |counters| counters.open += 1);
    }
    Some(connection)
}

/// The scan found a listening socket. Its children inherit the owner.
#[inline(always)]
fn listener_found(sock: Sock, task: Task) {
    if rejects_children(sock) {
        return;
    }
    let mut initial = Connection::NEW;
    initial.phase = phase::LISTENER;
    initial.seen = state::LISTEN;
    if let Some(connection) = kept::scanned_or_create(sock, &initial) {
        let scan = scan_number();
        let ((pid, by), is_first) = (connection.found(), connection.found_scan() != scan);
        // Of several processes that hold a listener, the one that called listen() counts, else the first found. Process 1 listens
        // for others, and hands the listener on.
        if is_first || by != owner::LISTENER || pid == 1 || connection.owner_pid() == task.task_tgid() {
            connection.set_found(task, owner::LISTENER, scan);
        }
    }
}

/// A socket begins to listen: listen(), in the system call of the program itself.
#[inline(always)]
fn listening(sock: Sock, task: Task, program: u32) {
    if let Some(connection) = kept::get(sock)
        && connection.phase == phase::LIVE
    {
        lose(connection, program);
        connection.phase = phase::ENDED;
    }
    if rejects_children(sock) {
        return;
    }
    if let Some(connection) = kept::get_or_create_inherited(sock) {
        connection.phase = phase::LISTENER;
        connection.seen = state::LISTEN;
        connection.set_listener(task);
    }
}

/// The end of an association that is kept track of.
#[inline(always)]
fn end(sock: Sock, connection: &mut Connection, old: u8, flags: u8, slot: u32) {
    connection.phase = phase::ENDED;
    connection.last_state = old;
    connection.seen = state::CLOSE;
    match record::ended(sock, connection.stale_error, connection.segs_before, old, flags) {
        Some(ended) => record::close(&ended, connection, slot),
        None => count(slot, |counters| counters.open -= 1),
    }
}

/// Begins to keep track of a socket whose beginning was not seen: it was open before the tracer and no walk has met it (in
/// a listener's queue, or orphaned), or the kernel skipped the program then. `known`: what is kept on it, of no association
/// that lives. None when there is no storage, or when there was none when it began.
#[inline(always)]
fn adopt(sock: Sock, known: Option<&'static mut Connection>, program: u32) -> Option<&'static mut Connection> {
    if let Some(connection) = known {
        // Its listener's copy knows whose it is; after an end there is nothing to be had.
        if connection.phase == phase::ENDED {
            connection.clear_owner();
            connection.association += 1;
        } else {
            connection.association = 1;
            connection.be_accepted();
        }
        connection.phase = phase::LIVE;
        connection.flags = unseen(sock).flags & !SEEDED;
        connection.start_ns = 0;
        connection.established_ns = 0;
        connection.stale_error = 0;
        connection.segs_before = 0;
        connection.walk = 0;
        count(program, |counters| counters.open += 1);
        return Some(connection);
    }
    if is_unstored(sock) {
        return None;
    }
    let mut initial = unseen(sock);
    initial.flags &= !SEEDED;
    let connection = kept::get_or_create(sock, &initial)?;
    if connection.flags & SEEDED == 0 {
        count(program, |counters| counters.open += 1);
    }
    Some(connection)
}

/// A socket that the tracer knows nothing of: it was open before.
#[inline(always)]
fn unseen(sock: Sock) -> Connection {
    let active = if looks_connected(sock) { FLAG_ACTIVE } else { 0 };
    let mut connection = Connection::NEW;
    connection.association = 1;
    connection.phase = phase::LIVE;
    connection.flags = FLAG_PREEXISTING | SEEDED | active;
    connection
}

/// Whether it connected, as far as the socket itself tells: one that was accepted has its listener's backlog, one that
/// connected never called listen(). (Only `listen(fd, 0)` looks the same.)
#[inline(always)]
fn looks_connected(sock: Sock) -> bool {
    sock.sk_max_ack_backlog() == 0
}

/// When the segment came in that this run of the program is about. The kernel has read its clock for it a moment ago; to read it
/// twice more a connection costs 4 % of all that the programs take. What is older than `begun` is of no segment: a socket that is
/// restored (TCP_REPAIR) is connected without any.
#[inline(always)]
fn arrived(sock: Sock, begun: u64) -> u64 {
    match sock.tcp().map(Tcp::tcp_clock_cache) {
        Some(arrived) if arrived != 0 && arrived >= begun => arrived,
        _ => now(),
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}
