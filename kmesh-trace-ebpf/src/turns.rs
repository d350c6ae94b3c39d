//! Turns: this end sent (a client) or received (a server), then the other direction began.
//!
//! `sk_data_ready` runs when data has arrived, under the socket's lock. `sock_send_length` runs after a system call has
//! sent, without the lock, so an answer to what it sent may have arrived before. An arrival therefore compares sequence
//! numbers: if the program has sent something that no send has reported yet, the kernel's own time of the last
//! transmission counts.
//!
//! A turn overlaps, so that it has no wait, if a direction begins before the other end has received all of the other
//! direction, or if this end sends while data is unread.

use core::ptr;

use kmesh_trace_common::{TURN_BUCKETS, Turns, bucket, state};

use crate::clock::now;
use crate::maps::tick_ns;
use crate::sock::{Sock, Tcp};
use crate::storage;

/// Reads a field that another program may be writing.
macro_rules! read {
    ($turns:expr, $field:ident) => {
        // SAFETY: a field of a value that lives as long as the socket, longer than this run of the program.
        unsafe { ptr::read_volatile(&raw const (*$turns).$field) }
    };
}

/// Writes a field that another program may be reading.
macro_rules! write {
    ($turns:expr; $($field:ident: $value:expr,)*) => {
        $(
            let value = $value;
            // SAFETY: a field of a value that lives as long as the socket, longer than this run of the program.
            unsafe { ptr::write_volatile(&raw mut (*$turns).$field, value) };
        )*
    };
}

/// Begins to measure the turns of a connection that is established, or that a scan found. `is_new`: the connection has
/// just been established, and what it has sent already (Fast Open) is its first request.
#[inline(always)]
pub fn begin(sock: Sock, is_client: bool, is_new: bool) {
    let (Some(turns), Some(tcp)) = (storage::get_or_create_turns(sock), sock.tcp()) else {
        return;
    };
    let arrived = arrived(sock, tcp);
    let sent = if is_new && is_client {
        tcp.client_isn(true).wrapping_add(1)
    } else {
        sent(sock, tcp)
    };
    for word in 0..TURN_BUCKETS / 2 {
        // SAFETY: words of a field whose address and size are multiples of 8.
        unsafe { ptr::write_volatile((&raw mut (*turns).histogram).cast::<u64>().add(word), 0) };
    }
    write! { turns;
        wait_ns: 0,
        max_wait_ns: 0,
        arrival_ns: 0,
        send_ns: 0,
        count: 0,
        overlapped: 0,
        send_before_read: 0,
        request_overlaps: 0,
        busy_ticks: 0,
        pad: 0,
        is_client: is_client.into(),
        sent_seq: sent,
        // Without a request there is no answer yet.
        send_seq: if is_client { sent } else { arrived },
        arrival_seq: arrived,
    }
}

/// Data has arrived: `sk_data_ready`.
#[inline(always)]
pub fn data_arrived(sock: Sock) {
    let Some(turns) = storage::turns(sock) else { return };
    let Some(tcp) = sock.tcp() else { return };
    let arrived = arrived(sock, tcp);
    let previous = read!(turns, arrival_seq);
    // A FIN alone is no data, and some protocols on top of TCP report the same data twice.
    if arrived == previous {
        return;
    }
    let sent = sent(sock, tcp);
    let is_turn = sent != read!(turns, sent_seq);
    let arrival_ns = arrival_time(tcp);
    if read!(turns, is_client) != 0 {
        if is_turn {
            let is_reported = read!(turns, send_seq) == sent;
            let overlaps = is_before(tcp.snd_una(), sent) || is_reported && read!(turns, send_before_read) != 0;
            let begin_ns = if is_reported {
                read!(turns, send_ns)
            } else {
                tcp.tcp_wstamp_ns()
            };
            count(turns, overlaps, begin_ns, arrival_ns);
        }
    } else {
        if is_turn {
            let request_ns = read!(turns, arrival_ns);
            if request_ns != 0 {
                let is_reported = read!(turns, send_seq) == previous;
                let overlaps =
                    read!(turns, request_overlaps) != 0 || is_reported && read!(turns, send_before_read) != 0;
                let answer_ns = if is_reported {
                    read!(turns, send_ns)
                } else {
                    tcp.tcp_wstamp_ns()
                };
                count(turns, overlaps, request_ns, answer_ns);
            }
            write! { turns; request_overlaps: is_before(tcp.snd_una(), sent).into(), }
        }
        write! { turns;
            arrival_ns: arrival_ns,
            busy_ticks: tcp.busy_ticks(),
        }
    }
    // In this order: a send that finds the new request also finds that its answer is counted.
    write! { turns;
        sent_seq: sent,
        arrival_seq: arrived,
    }
}

/// A system call has sent data: `sock_send_length`.
#[inline(always)]
pub fn data_sent(sock: Sock) {
    let Some(turns) = storage::turns(sock) else { return };
    let Some(tcp) = sock.tcp() else { return };
    let arrived = read!(turns, arrival_seq);
    let sent = tcp.write_seq();
    // An arrival has counted this send.
    if sent == read!(turns, sent_seq) {
        return;
    }
    let (send_seq, send_ns) = if read!(turns, is_client) != 0 {
        (sent, now())
    } else if read!(turns, send_seq) != arrived {
        (arrived, answer_time(turns, tcp))
    } else {
        // More of an answer that has begun.
        return;
    };
    write! { turns;
        send_ns: send_ns,
        send_before_read: is_before(tcp.copied_seq(), arrived).into(),
        send_seq: send_seq,
    }
}

/// Returns the time when the process began to answer. If its call has waited for space in the send buffer, that is the
/// time for which the connection has been busy since then, to a tick.
#[inline(always)]
fn answer_time(turns: *mut Turns, tcp: Tcp) -> u64 {
    let now = now();
    let busy = tcp.busy_ticks().wrapping_sub(read!(turns, busy_ticks));
    // The current tick may have begun before the call.
    if busy < 2 {
        return now;
    }
    let begun = now.saturating_sub(u64::from(busy) * u64::from(tick_ns()));
    begun.max(read!(turns, arrival_ns))
}

/// Counts a turn with its wait, or as overlapped without a wait.
#[inline(always)]
fn count(turns: *mut Turns, overlaps: bool, begin_ns: u64, end_ns: u64) {
    write! { turns; count: read!(turns, count).wrapping_add(1), }
    if overlaps {
        write! { turns; overlapped: read!(turns, overlapped).wrapping_add(1), }
        return;
    }
    let wait_ns = end_ns.saturating_sub(begin_ns);
    write! { turns; wait_ns: read!(turns, wait_ns).wrapping_add(wait_ns), }
    if wait_ns > read!(turns, max_wait_ns) {
        write! { turns; max_wait_ns: wait_ns, }
    }
    let bucket = bucket(wait_ns);
    if bucket < TURN_BUCKETS {
        // SAFETY: an element of a field of a value that lives as long as the socket.
        unsafe {
            let number = (&raw mut (*turns).histogram).cast::<u32>().add(bucket);
            ptr::write_volatile(number, ptr::read_volatile(number).wrapping_add(1));
        }
    }
}

/// Returns the sequence number after the data that has arrived in order.
#[inline(always)]
fn arrived(sock: Sock, tcp: Tcp) -> u32 {
    tcp.rcv_nxt().wrapping_sub(sock.is_done().into())
}

/// Returns the sequence number after the data that the program has sent.
#[inline(always)]
fn sent(sock: Sock, tcp: Tcp) -> u32 {
    let has_fin = matches!(
        sock.skc_state(),
        state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING | state::LAST_ACK
    );
    tcp.write_seq().wrapping_sub(has_fin.into())
}

/// Returns the time when the kernel began to process the segment that arrived.
#[inline(always)]
fn arrival_time(tcp: Tcp) -> u64 {
    match tcp.tcp_clock_cache() {
        0 => now(),
        arrived => arrived,
    }
}

/// Compares sequence numbers, which wrap.
#[inline(always)]
fn is_before(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}
