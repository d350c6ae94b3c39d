//! Socket scans: the visits of the iterators to open sockets.
//!
//! [`visit_descriptor`] finds each socket together with a process that holds it, in all network namespaces at once.
//! [`visit_netns_socket`] finds the sockets of one namespace, also those without a descriptor. On a kernel without
//! typed pointers behind descriptors, it visits every socket, after [`holders::find`].

use kmesh_trace_common::state::ESTABLISHED;
use kmesh_trace_common::{FLAG_ACTIVE, counter, owner, state};

use crate::conn_state::{CREATED_BY_SCAN, ConnState, Holder, ScanView, phase};
use crate::connection::{looks_connected, preexisting_state};
use crate::filter::{rejects, rejects_children};
use crate::holders;
use crate::iterator::{IteratorOutput, NetnsSock, TaskFile};
use crate::maps::{count, counts_turns, reports_listeners, scan_number};
use crate::record;
use crate::sock::Sock;
use crate::storage;
use crate::turns;

/// Visits a socket among the descriptors of a process: `iter/task_file`. The iterator does not hold the socket's lock,
/// so a program may handle a state change of the socket on another CPU at the same time: see [`ScanView`].
#[inline(always)]
pub fn visit_descriptor(visit: TaskFile, sock: Sock, holder: Holder) {
    match sock.skc_state() {
        state::CLOSE => {}
        state::LISTEN => visit_listener(visit.output(), sock, holder),
        state => visit_found(visit.output(), sock, state, holder, false),
    }
}

/// Visits a socket of a network namespace: `iter/tcp`. It may have no descriptor: no process has accepted it yet, its
/// process has closed it, it is on its way to another process, or the kernel uses it itself. The iterator holds the
/// socket's lock.
#[inline(always)]
pub fn visit_netns_socket(visit: NetnsSock, sock: Sock) {
    match sock.skc_state() {
        state::CLOSE => {}
        state::LISTEN => {
            let conn = storage::get_for_scan(sock);
            let holder = holders::of_listener(sock, conn.map_or(0, ScanView::owner_pid));
            if holder.is_process() || conn.is_some() && reports_listeners() {
                visit_listener(visit.output(), sock, holder);
            }
        }
        state => visit_found(visit.output(), sock, state, holders::of(sock), true),
    }
}

/// Visits a socket that does not listen. `holder`: a process that has a descriptor of it.
#[inline(always)]
fn visit_found(output: IteratorOutput, sock: Sock, state: u8, holder: Holder, is_locked: bool) {
    let conn = match storage::get_for_scan(sock) {
        Some(conn) => {
            if holder.is_process() && conn.found_owner().1 < owner::SCAN {
                conn.set_found_owner(holder, owner::SCAN, scan_number());
            }
            conn
        }
        None => match track_found(sock, holder, state) {
            Some(conn) => conn,
            None => return,
        },
    };
    visit_connection(output, sock, state, conn, is_locked);
}

/// Reports an open connection and counts the visit. A scan does this once for each connection, which may have several
/// descriptors.
#[inline(always)]
fn visit_connection(output: IteratorOutput, sock: Sock, state: u8, conn: ScanView, is_locked: bool) {
    let scan = scan_number();
    if conn.phase() != phase::LIVE || conn.visited_scan() == scan {
        return;
    }
    if counts_turns() && state == ESTABLISHED && storage::turns(sock).is_none() {
        turns::begin(sock, conn.flags() & FLAG_ACTIVE != 0, false);
    }
    // The first scan only stores what it finds. An attempt begins when its SYN is sent.
    if scan > 1 && (state != state::SYN_SENT || sock.tcp().is_some_and(|tcp| tcp.segs_out() != conn.segs_out_before()))
    {
        record::report_update(output, sock, conn, scan, is_locked);
    } else {
        conn.set_visited(scan);
    }
}

/// Starts to track a socket that is older than the tracer. `holder`: a process that has a descriptor of it.
#[inline(always)]
fn track_found(sock: Sock, holder: Holder, state: u8) -> Option<ScanView> {
    if storage::has_storage_failed(sock) {
        return None;
    }
    let is_active = state == state::SYN_SENT || looks_connected(sock);
    let is_rejected = rejects(sock, is_active);
    // If the socket still shows at its close that it connected, or was accepted, it needs no state until then.
    if is_rejected && (!is_active || looks_connected(sock)) {
        return None;
    }
    let mut initial = preexisting_state(sock);
    if is_active {
        initial.flags |= FLAG_ACTIVE;
    }
    if is_rejected {
        initial.phase = phase::FILTERED;
        initial.flags &= !CREATED_BY_SCAN;
    }
    initial.last_state = state;
    if holder.is_process() {
        ScanView::new(&mut initial).set_found_owner(holder, owner::SCAN, scan_number());
    }
    // A state change may create the storage at the same time. The kernel then returns the same storage to both.
    let conn = storage::get_or_create_for_scan(sock, &initial)?;
    if conn.flags() & CREATED_BY_SCAN != 0 {
        count(counter::SCAN, |counters| counters.open += 1);
    }
    Some(conn)
}

/// Stores the owner of a listening socket, which its children inherit. Reports the listener, once a scan.
#[inline(always)]
fn visit_listener(output: IteratorOutput, sock: Sock, holder: Holder) {
    if rejects_children(sock) {
        return;
    }
    let mut initial = ConnState::NEW;
    initial.phase = phase::LISTENER;
    initial.last_seen_state = state::LISTEN;
    if let Some(conn) = storage::get_or_create_for_scan(sock, &initial) {
        let scan = scan_number();
        let ((pid, by), is_first) = (conn.found_owner(), conn.found_owner_scan() != scan);
        // If several processes hold a listener, its owner is the one that called listen(), else the first one found.
        // Process 1 listens for other processes and hands the listener on, so any other process replaces it.
        if holder.is_process() && (is_first || by != owner::LISTENER || pid == 1 || conn.owner_pid() == holder.pid) {
            conn.set_found_owner(holder, owner::LISTENER, scan);
        }
        if reports_listeners() && scan > 1 && conn.visited_scan() != scan && record::report_listener(output, sock, conn)
        {
            conn.mark_visited(scan);
        }
    }
}
