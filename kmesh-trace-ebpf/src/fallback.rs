//! Closes for which the kernel skipped the state program.
//!
//! The kernel skips a program in a softirq that interrupts the same program on that CPU. Then `inet_sk_error_report`
//! reports the close at once, if an error caused it; else `tcp_destroy_sock` reports it (the destroy fallback).

use core::ptr;

use kmesh_trace_common::{FLAG_ACTIVE, FLAG_FALLBACK, FLAG_HELD_BY_PROCESS, counter, state};

use crate::conn_state::{ConnState, phase};
use crate::connection::{count_lost_attempt, count_pending_child, end, looks_connected};
use crate::filter::rejects;
use crate::maps::{attached_ns, count, filter_checks, preempts_programs};
use crate::sock::Sock;
use crate::storage;

/// The kernel reports an error that ends the connection, in a softirq that interrupts `kmesh_state`, so that the kernel
/// skips `kmesh_state` for the change to CLOSE: `inet_sk_error_report`. The error is reported just before that change
/// (timeouts, ICMP) or just after it (RST). A process may keep the socket for long and read the error, so the destroy
/// fallback would come late and know less.
#[inline(always)]
pub fn error_reported(sock: Sock) {
    let Some(conn) = storage::get(sock) else {
        return;
    };
    if conn.phase != phase::LIVE || sock.sk_err() == 0 {
        return;
    }
    match sock.skc_state() {
        // An error ends an attempt. An established connection may survive an ICMP error.
        old @ (state::SYN_SENT | state::SYN_RECV) => end(sock, conn, old, 0, counter::ERROR),
        state::CLOSE => {
            infer_sent_fin(sock, conn);
            count(counter::ERROR, |counters| counters.fallback_closes += 1);
            end(sock, conn, conn.last_state, FLAG_FALLBACK, counter::ERROR);
        }
        _ => {}
    }
}

/// Reports the close of a socket that the kernel destroys (`tcp_destroy_sock`) if no program has reported it: the
/// kernel skipped the programs at the change to CLOSE.
///
/// On a kernel that preempts programs, two backup programs also call this function, after the main program. A backup
/// program reports the close only if the kernel skipped the programs before it.
#[inline(always)]
pub fn socket_destroyed(sock: Sock, program: u32) {
    match storage::get(sock) {
        // The process disconnected the socket after the close (connect() to AF_UNSPEC), which cleared the address and
        // the counters.
        Some(conn) if conn.phase == phase::LIVE && sock.peer_port() == 0 => {
            count_lost_attempt(conn, program);
            conn.phase = phase::ENDED;
        }
        Some(conn) if conn.phase == phase::LIVE => {
            count_pending_child(conn, program);
            infer_sent_fin(sock, conn);
            // SAFETY: a read through a reference. Volatile, so that the verifier checks the rest once for all states.
            let last = unsafe { ptr::read_volatile(&raw const conn.last_state) };
            count(program, |counters| counters.fallback_closes += 1);
            // Without preemption the kernel skips a program only in a softirq, so no system call ended the connection.
            // If a system call destroys the socket now, a process held the socket until now and may have read its
            // error.
            let held = if !preempts_programs() && sock.is_in_system_call() {
                FLAG_HELD_BY_PROCESS
            } else {
                0
            };
            end(sock, conn, last, FLAG_FALLBACK | held, program);
        }
        Some(conn) if matches!(conn.phase, phase::ENDED | phase::FILTERED) => {}
        stored => {
            if preempts_programs() && was_skipped_throughout(sock, stored.is_some()) {
                count(program, |counters| {
                    counters.closes += 1;
                    counters.lost_skipped += 1;
                });
                if let Some(conn) = storage::get_or_create_inherited(sock) {
                    conn.phase = phase::ENDED;
                }
            }
        }
    }
    if program == counter::DESTROY_3 || !preempts_programs() {
        storage::free(sock);
    }
}

/// Updates `last_state` if this end sent a FIN at a change for which the kernel skipped the programs. The counters show
/// the FIN.
#[inline(always)]
fn infer_sent_fin(sock: Sock, conn: &mut ConnState) {
    let Some(tcp) = sock.tcp() else { return };
    if conn.last_state != state::ESTABLISHED || !tcp.sent_fin(conn.flags & FLAG_ACTIVE != 0) {
        return;
    }
    if !sock.is_done() {
        conn.last_state = state::FIN_WAIT1;
    } else if tcp.snd_una() == tcp.write_seq() {
        // Both ends sent a FIN. The acknowledgement of this end's FIN was the last segment to update the window. It
        // follows the peer's FIN only if the peer closed first. (Without an acknowledgement the order is unknown.)
        conn.last_state = if tcp.snd_wl1() == tcp.rcv_nxt() {
            state::LAST_ACK
        } else {
            state::FIN_WAIT1
        };
    }
}

/// Returns whether a connection, or an attempt, ended of which there is no state, or only `inherited` state, because
/// the kernel skipped the programs from its beginning to its end. Other sockets have no state because the filter
/// dropped them, because storage failed, or because they closed before the programs were attached. The last kind had no
/// segments since then.
#[inline(always)]
fn was_skipped_throughout(sock: Sock, inherited: bool) -> bool {
    if !sock.is_tcp() || storage::has_storage_failed(sock) {
        return false;
    }
    // The peer of an attempt may be cleared by now, and then the filter cannot decide. A listener has no peer, only the
    // state that its children inherit.
    if sock.peer_port() == 0 && (inherited || filter_checks() != 0 || !looks_connected(sock)) {
        return false;
    }
    sock.tcp().is_some_and(|tcp| tcp.tcp_clock_cache() >= attached_ns()) && !rejects(sock, looks_connected(sock))
}
