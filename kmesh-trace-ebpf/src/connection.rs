//! The life of a connection, from the state changes of its socket.
//!
//! Most changes are irrelevant, and the program returns at once. The state of a connection is stored while the socket
//! lives ([`crate::storage`]), unless the filter is certain to drop the connection: then the programs store nothing and
//! only count the close.

use kmesh_trace_common::{FLAG_ACTIVE, FLAG_PREEXISTING, FLAG_RESET_SENT, counter, owner, state};

use crate::clock::now;
use crate::conn_state::{CREATED_BY_SCAN, ConnState, FILTER_PENDING, phase};
use crate::drops;
use crate::filter::{is_decided_by_listener, rejects, rejects_children, rejects_either_way};
use crate::maps::{count, counts_drops, counts_turns, preempts_programs};
use crate::record;
use crate::sock::{Sock, Tcp};
use crate::storage;
use crate::task::Task;
use crate::turns;

/// Returns whether a state change is relevant. The counters at the close show what the other changes would add.
#[inline(always)]
pub fn is_relevant(old: u8, new: u8) -> bool {
    match new {
        state::SYN_RECV => old == state::LISTEN,
        state::CLOSE => !matches!(old, state::LISTEN | state::CLOSE),
        _ => matches!(
            new,
            state::SYN_SENT | state::ESTABLISHED | state::FIN_WAIT1 | state::LAST_ACK | state::LISTEN
        ),
    }
}

/// Handles a relevant state change: `inet_sock_set_state`.
///
/// The kernel skips a program on a CPU where the program is running already. Since 7.0 the kernel may also preempt a
/// program. It would then skip the program for all other tasks on that CPU until the preempted program continues. On
/// such a kernel two backup programs are attached too: each handles the changes for which the kernel skipped the
/// programs before it.
#[inline(always)]
pub fn state_changed(sock: Sock, old: u8, new: u8, program: u32) {
    if new == state::CLOSE && old == state::SYN_RECV && sock.was_never_hashed() && discard_unhashed_child(sock, program)
    {
        return;
    }
    // A rejected connection has no state, so no look-up is needed. At its first change it lacks one of its ports.
    if !matches!(new, state::SYN_SENT | state::SYN_RECV | state::LISTEN) && rejects_either_way(sock) {
        if new == state::CLOSE {
            count_filtered(sock, old, program);
        }
        return;
    }
    if counter::is_backup(program) && storage::get(sock).is_some_and(|conn| conn.last_seen_state == new) {
        return;
    }
    match new {
        state::SYN_SENT => connecting(sock, program),
        state::SYN_RECV => child_created(sock, program),
        state::ESTABLISHED => established(sock, old, program),
        state::FIN_WAIT1 | state::LAST_ACK => fin_sent(sock, new, program),
        state::CLOSE => closed(sock, old, program),
        state::LISTEN => listening(sock, Task::current(), program),
        _ => {}
    }
}

/// The running task calls connect().
#[inline(always)]
fn connecting(sock: Sock, program: u32) {
    let is_rejected = rejects(sock, true);
    // If the socket still shows at its close that it connected, it needs no state until then.
    if is_rejected && looks_connected(sock) {
        return;
    }
    let Some(conn) = storage::get_or_create_client(sock) else {
        return storage::mark_storage_failed(sock);
    };
    if conn.phase == phase::LIVE {
        count_lost_attempt(conn, program);
    }
    if is_rejected {
        conn.phase = phase::FILTERED;
        conn.last_seen_state = state::SYN_SENT;
        return;
    }
    conn.attempt += 1;
    conn.phase = phase::LIVE;
    conn.flags = FLAG_ACTIVE;
    conn.last_state = state::SYN_SENT;
    conn.last_seen_state = state::SYN_SENT;
    conn.start_ns = now();
    conn.established_ns = 0;
    conn.reset_reason = 0;
    // The error queue is empty at the first attempt.
    conn.stale_error = if conn.attempt > 1 { sock.newest_error() } else { 0 };
    conn.segs_out_before = sock.tcp().map_or(0, Tcp::segs_out);
    conn.clear_owner();
    conn.set_owner(Task::current(), owner::CONNECT);
    count(program, |counters| counters.open += 1);
}

/// Counts an earlier attempt of this socket as lost. It ended, but the kernel skipped the programs at its close, and
/// the socket no longer has the data of its record.
#[inline(always)]
pub fn count_lost_attempt(conn: &ConnState, program: u32) {
    let counted = i64::from(conn.is_counted());
    count(program, |counters| {
        counters.closes += 1;
        counters.lost_skipped += 1;
        counters.open -= counted;
    });
}

/// Counts a child as open if it was not counted when it was created.
#[inline(always)]
pub fn count_pending_child(conn: &mut ConnState, program: u32) {
    if !conn.is_counted() {
        conn.flags &= !FILTER_PENDING;
        count(program, |counters| counters.open += 1);
    }
}

/// Filters a live child that had no addresses when it was created. Returns whether it passes.
#[inline(always)]
fn passes_pending_filter(sock: Sock, conn: &mut ConnState, program: u32) -> bool {
    if !conn.is_counted() && rejects(sock, false) {
        conn.phase = phase::FILTERED;
        return false;
    }
    count_pending_child(conn, program);
    true
}

/// The kernel created a child of a listener. With Fast Open the child may live, and die, before its handshake ends.
/// Without, the same segment establishes it, so `established` handles it.
#[inline(always)]
fn child_created(sock: Sock, program: u32) {
    // The child is still a copy of its listener, without addresses of its own.
    if sock.allows_fast_open()
        && !rejects_children(sock)
        && let Some(conn) = storage::get_or_create_inherited(sock)
    {
        begin_accepted(conn, state::SYN_RECV, now());
        conn.flags = FILTER_PENDING;
        if is_decided_by_listener(sock) {
            count_pending_child(conn, program);
        }
    }
}

/// Discards a child that the kernel gave up before it was in the hash table of connections. No segment ever found it,
/// so it was no connection: two CPUs processed segments of one handshake, and the other CPU's child won; or the
/// listener was closed at that moment. Returns false, without any effect, for a client that chose its port and received
/// a SYN for its SYN.
#[inline(always)]
fn discard_unhashed_child(sock: Sock, program: u32) -> bool {
    match storage::get(sock) {
        Some(conn) if conn.phase == phase::LIVE => {
            if conn.flags & FLAG_ACTIVE != 0 {
                return false;
            }
            conn.phase = phase::ENDED;
            if conn.is_counted() {
                count(program, |counters| counters.open -= 1);
            }
            true
        }
        Some(conn) if conn.phase == phase::LISTENER => {
            conn.phase = phase::ENDED;
            true
        }
        Some(conn) if conn.phase == phase::FILTERED => false,
        _ => !looks_connected(sock),
    }
}

/// The handshake ends, so the connection is established.
#[inline(always)]
fn established(sock: Sock, old: u8, program: u32) {
    let conn = match storage::get(sock) {
        Some(conn) if conn.phase == phase::LIVE => {
            if !passes_pending_filter(sock, conn, program) {
                return;
            }
            conn
        }
        Some(conn) if conn.phase == phase::FILTERED => return,
        // A client without a live attempt: it was connecting when tracing began and no scan has visited it, or the
        // filter rejected it, or the kernel skipped the program at its connect(). A client that received a SYN for its
        // SYN (from itself, or because both ends connect at the same time) is in SYN_RECV.
        stored if old == state::SYN_SENT || is_client(sock, stored.as_deref()) => {
            if rejects(sock, true) {
                return;
            }
            match track_preexisting(sock, stored, program) {
                Some(conn) => conn,
                None => return,
            }
        }
        // An accepted socket, with a copy of its listener's storage if the listener has any.
        copied => {
            if !looks_connected(sock) && rejects(sock, false) {
                return;
            }
            match copied.or_else(|| storage::get_or_create_inherited(sock)) {
                Some(conn) => {
                    begin_accepted(conn, state::ESTABLISHED, segment_time(sock, 0));
                    count(program, |counters| counters.open += 1);
                    conn
                }
                None => return storage::mark_storage_failed(sock),
            }
        }
    };
    conn.established_ns = segment_time(sock, conn.start_ns);
    if conn.flags & FLAG_ACTIVE != 0
        && let Some(tcp) = sock.tcp()
        && tcp.defers_connect()
    {
        conn.start_ns = syn_time(tcp, conn);
    }
    conn.last_state = state::ESTABLISHED;
    conn.last_seen_state = state::ESTABLISHED;
    if counts_drops() {
        drops::forget_earlier(sock, conn.flags & FLAG_ACTIVE != 0);
    }
    if counts_turns() {
        turns::begin(sock, conn.flags & FLAG_ACTIVE != 0, true);
    }
    record::report_open(sock, conn, old, program);
}

/// Returns whether a socket that was in SYN_RECV called connect(). A child is not accepted yet, and begins with a copy
/// of its listener's storage, if there is one. `stored`: the state of the socket.
#[inline(always)]
fn is_client(sock: Sock, stored: Option<&ConnState>) -> bool {
    looks_connected(sock) && sock.has_socket() && stored.is_none_or(|conn| conn.phase != phase::LISTENER)
}

/// Returns the time when a connection that was just established sent its first SYN: CLOCK_MONOTONIC, ns. If it sent the
/// SYN only once, the kernel has just measured the round trip. Else the kernel no longer knows, and the time is that of
/// connect(), although a later write may have sent the SYN.
#[inline(always)]
fn syn_time(tcp: Tcp, conn: &ConnState) -> u64 {
    let round_trip_us = tcp.srtt_us() >> 3;
    if tcp.total_retrans() != 0 || round_trip_us == 0 {
        return conn.start_ns;
    }
    conn.established_ns.wrapping_sub(u64::from(round_trip_us) * 1_000)
}

/// Initializes the state of a child. It starts with its listener's state, of which only the owner remains.
#[inline(always)]
fn begin_accepted(conn: &mut ConnState, state: u8, now: u64) {
    conn.start_ns = now;
    conn.established_ns = 0;
    conn.reset_reason = 0;
    conn.attempt = 1;
    conn.phase = phase::LIVE;
    conn.flags = 0;
    conn.last_state = state;
    conn.last_seen_state = state;
    conn.clear_inherited();
}

/// This end sends its FIN: the running task calls close() or shutdown(). Or the listener of the socket is closed while
/// the last segment of the handshake arrives: the child inherits the listener's shutdown, and sends a FIN at once.
#[inline(always)]
fn fin_sent(sock: Sock, new: u8, program: u32) {
    let conn = match storage::get(sock) {
        Some(conn) if conn.phase == phase::LIVE => {
            if !passes_pending_filter(sock, conn, program) {
                return;
            }
            conn
        }
        Some(conn) if conn.phase == phase::FILTERED => return,
        stored => {
            if rejects(sock, looks_connected(sock)) {
                return;
            }
            match track_preexisting(sock, stored, program) {
                Some(conn) => conn,
                None => return,
            }
        }
    };
    conn.last_state = new;
    conn.last_seen_state = new;
    if sock.is_in_system_call() {
        conn.set_owner(Task::current(), owner::CLOSE);
    }
}

/// The connection, or the attempt, ends.
#[inline(always)]
fn closed(sock: Sock, old: u8, program: u32) {
    let conn = match storage::get(sock) {
        Some(conn) if conn.phase == phase::LIVE => {
            // The socket may have addresses and ports now that it lacked at its beginning.
            if rejects(sock, conn.flags & FLAG_ACTIVE != 0) {
                conn.phase = phase::ENDED;
                conn.last_state = state::CLOSE;
                conn.last_seen_state = state::CLOSE;
                if conn.is_counted() {
                    count(program, |counters| counters.open -= 1);
                }
                return count_filtered(sock, old, program);
            }
            count_pending_child(conn, program);
            conn
        }
        Some(conn) if conn.phase == phase::FILTERED => {
            conn.last_seen_state = state::CLOSE;
            return count_filtered(sock, old, program);
        }
        // Only an attempt for whose beginning the kernel skipped the programs can end after another one ended.
        Some(conn) if conn.phase == phase::ENDED && old != state::SYN_SENT => return,
        stored => {
            if rejects(sock, looks_connected(sock)) {
                return count_filtered(sock, old, program);
            }
            match stored {
                // A child that died before its handshake ended.
                Some(conn) if conn.phase == phase::LISTENER && old == state::SYN_RECV => {
                    begin_accepted(conn, state::SYN_RECV, now());
                    count(program, |counters| counters.open += 1);
                    conn
                }
                stored => match track_preexisting(sock, stored, program) {
                    Some(conn) => conn,
                    // A backup program cannot know whether the first program has counted the close.
                    None if counter::is_backup(program) => return,
                    None => {
                        // When the kernel destroys the socket, it must not pass for one that no program has seen.
                        if preempts_programs() {
                            storage::mark_storage_failed(sock);
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
    // If close() causes the state change itself, the running task is the owner. Later changes are caused by segments.
    if sock.is_ended_by_close(old) {
        conn.set_owner(Task::current(), owner::CLOSE);
    }
    end(sock, conn, old, 0, program);
}

/// Counts a close that the filter drops. Only the first program counts it, since a backup program cannot know whether
/// the first one did.
#[inline(always)]
fn count_filtered(sock: Sock, old: u8, program: u32) {
    if counter::is_backup(program) {
        return;
    }
    // A connect() that sent no SYN is no attempt. The errors before the attempt do not matter here.
    if old != state::SYN_SENT || record::read_close(sock, 0, 0, old, 0).is_some() {
        count(program, |counters| {
            counters.closes += 1;
            counters.filtered += 1;
        });
    }
}

/// This end sends a RST: `tcp_send_reset`. The kernel usually sends it after the change to CLOSE that the same segment,
/// or close(), causes. If a timer ends the wait for the peer's FIN, or a process kills the connection, the kernel sends
/// it before. `reason`: the kernel's reason; 0 if unknown. After one program reported the RST, a backup program finds
/// nothing to report.
#[inline(always)]
pub fn reset_sent(sock: Sock, reason: u32, program: u32) {
    let Some(conn) = storage::get(sock) else { return };
    let reason = reason.min(u8::MAX.into()) as u8;
    match conn.phase {
        phase::LIVE => {
            conn.reset_reason = reason;
            if sock.skc_state() == state::FIN_WAIT2 {
                conn.flags |= FLAG_RESET_SENT;
            }
        }
        phase::ENDED => {
            let decides = reset_decides(sock, conn.last_state);
            // At most one record for each close: the ring has reserved no more space.
            if decides || reason != 0 && conn.reset_reason == 0 {
                conn.last_state = state::CLOSE;
                conn.reset_reason = reason.max(1);
                record::report_reset(sock, conn, reason.into(), decides, program);
            }
        }
        _ => {}
    }
}

/// Returns whether a RST that this end sends after the close, which came in `last_state`, decides how the connection
/// ended. The kernel answers data with a RST after close() or after the peer's FIN, and sets the error as if it had
/// received the RST.
#[inline(always)]
fn reset_decides(sock: Sock, last_state: u8) -> bool {
    match last_state {
        state::FIN_WAIT1 | state::FIN_WAIT2 => true,
        state::CLOSE_WAIT | state::CLOSING | state::LAST_ACK => sock.sk_err() != 0,
        _ => false,
    }
}

/// The running task calls listen().
#[inline(always)]
fn listening(sock: Sock, task: Task, program: u32) {
    if let Some(conn) = storage::get(sock)
        && conn.phase == phase::LIVE
    {
        count_lost_attempt(conn, program);
        conn.phase = phase::ENDED;
    }
    if rejects_children(sock) {
        return;
    }
    if let Some(conn) = storage::get_or_create_inherited(sock) {
        conn.phase = phase::LISTENER;
        conn.last_seen_state = state::LISTEN;
        conn.set_listener(task);
    }
}

/// Ends a tracked attempt and reports its close. `flags`: `FLAG_*` of the record.
#[inline(always)]
pub fn end(sock: Sock, conn: &mut ConnState, old: u8, flags: u8, program: u32) {
    conn.phase = phase::ENDED;
    conn.last_state = old;
    conn.last_seen_state = state::CLOSE;
    match record::read_close(sock, conn.stale_error, conn.segs_out_before, old, flags) {
        Some(close) => record::report_close(&close, conn, program),
        None => count(program, |counters| counters.open -= 1),
    }
}

/// Starts to track a socket whose beginning no program has seen. It is older than the tracer and no scan has visited it
/// (it is in a listener's queue, or an orphan), or the kernel skipped the program. `stored`: the state of the socket,
/// without a live attempt. Returns `None` if the kernel cannot allocate storage, or could not when the connection
/// began.
#[inline(always)]
fn track_preexisting(
    sock: Sock,
    stored: Option<&'static mut ConnState>,
    program: u32,
) -> Option<&'static mut ConnState> {
    if let Some(conn) = stored {
        // The copy of a listener's state has the owner. After an earlier attempt the owner is unknown.
        if conn.phase == phase::ENDED {
            conn.clear_owner();
            conn.attempt += 1;
        } else {
            conn.attempt = 1;
            conn.clear_inherited();
        }
        conn.phase = phase::LIVE;
        conn.flags = preexisting_state(sock).flags & !CREATED_BY_SCAN;
        conn.start_ns = 0;
        conn.established_ns = 0;
        conn.reset_reason = 0;
        conn.stale_error = 0;
        conn.segs_out_before = 0;
        conn.visited_scan = 0;
        count(program, |counters| counters.open += 1);
        return Some(conn);
    }
    if storage::has_storage_failed(sock) {
        return None;
    }
    let mut initial = preexisting_state(sock);
    initial.flags &= !CREATED_BY_SCAN;
    let conn = storage::get_or_create(sock, &initial)?;
    if conn.flags & CREATED_BY_SCAN == 0 {
        count(program, |counters| counters.open += 1);
    }
    Some(conn)
}

/// Returns the first state of a socket that is older than the tracer.
#[inline(always)]
pub fn preexisting_state(sock: Sock) -> ConnState {
    let active = if looks_connected(sock) { FLAG_ACTIVE } else { 0 };
    let mut conn = ConnState::NEW;
    conn.attempt = 1;
    conn.phase = phase::LIVE;
    conn.flags = FLAG_PREEXISTING | CREATED_BY_SCAN | active;
    conn
}

/// Returns whether the socket shows that it called connect(). An accepted socket has its listener's backlog; a socket
/// that connected never called listen(). (Only the children of `listen(fd, 0)` look the same.)
#[inline(always)]
pub fn looks_connected(sock: Sock) -> bool {
    sock.sk_max_ack_backlog() == 0
}

/// Returns the time when the segment arrived that causes this run of the program. The kernel has just read its clock
/// for the segment; two more clock reads for each connection would cost 4 % of the time of all programs. A time before
/// `begin` is not that of a segment: a restored socket (TCP_REPAIR) is connected without any.
#[inline(always)]
fn segment_time(sock: Sock, begin: u64) -> u64 {
    match sock.tcp().map(Tcp::tcp_clock_cache) {
        Some(arrived) if arrived != 0 && arrived >= begin => arrived,
        _ => now(),
    }
}
