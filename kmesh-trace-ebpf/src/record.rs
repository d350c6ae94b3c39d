//! The records, written into the ring or the scan buffer field by field.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ringbuf_reserve, bpf_ringbuf_submit};
use kmesh_trace_common::{
    FLAG_ACTIVE, FLAG_PREEXISTING, FLAG_RESET_SENT, FLAG_ROOT_NETNS, KIND_CLOSE, KIND_LISTENER, KIND_OPEN, KIND_RESET,
    KIND_UPDATE, Listener, Reset, Snapshot, Turns, TurnsSnapshot, state, tcp_fields,
};

use crate::clock::now;
use crate::conn_state::{ConnState, ScanView, owner_words, phase};
use crate::iterator::IteratorOutput;
use crate::layout::put_words;
use crate::maps::{
    KMESH_EVENTS, count, counts_turns, has_capacity, listener_buffer, reports_opens, scan_buffer, tick_ns,
};
use crate::sock::{Sock, Tcp, error_details};
use crate::storage;

/// The maximum number of times that a scan reads the counters of a socket that is in use.
const MAX_READS: u32 = 24;

/// Writes fields of a record.
macro_rules! put {
    ($record:expr; $($field:ident: $value:expr,)*) => {
        $(
            let value = $value;
            // SAFETY: a field of a whole record.
            unsafe { ptr::write_volatile(&raw mut (*$record).$field, value) };
        )*
    };
}

/// The fields of a record that do not come from the socket or its state alone.
struct EventFields {
    kind: u32,
    old_state: u8,
    flags: u8,
    sk_err: u32,
    ee_errno: u32,
    ee_origin: u8,
}

/// The close of a connection attempt, not reported yet.
pub struct Close {
    sock: Sock,
    tcp: Tcp,
    event: EventFields,
}

/// Reads the close of an attempt; `None` if no SYN was sent, so that there was no attempt. `segs_out_before`:
/// [`ConnState::segs_out_before`].
#[inline(always)]
pub fn read_close(sock: Sock, stale_error: u64, segs_out_before: u32, old_state: u8, flags: u8) -> Option<Close> {
    let tcp = sock.tcp()?;
    // Any other cause ends the connection at once, so an error that is still pending at close() is not the cause.
    let sk_err = if sock.is_ended_by_close(old_state) {
        0
    } else {
        sock.sk_err()
    };
    let (mut ee_errno, mut ee_origin) = (0, 0);
    if old_state == state::SYN_SENT {
        if tcp.segs_out() == segs_out_before {
            return None;
        }
        if sk_err == 0 {
            // If ICMP arrived while a system call held the socket, only the error queue has the error.
            let newest = sock.newest_error();
            if newest != 0 && newest != stale_error {
                (ee_errno, ee_origin) = error_details(newest);
            }
        }
    }
    Some(Close {
        sock,
        tcp,
        event: EventFields {
            kind: KIND_CLOSE,
            old_state,
            flags,
            sk_err,
            ee_errno,
            ee_origin,
        },
    })
}

/// A snapshot in the ring that is not submitted yet. If the programs measure turns, it is the start of a
/// [`TurnsSnapshot`].
struct Reserved(*mut Snapshot);

impl Reserved {
    /// Reserves space in the ring; `None` if the ring is full.
    #[inline(always)]
    fn new() -> Option<Self> {
        if !has_capacity() {
            return None;
        }
        let map = (&raw const KMESH_EVENTS).cast_mut().cast::<c_void>();
        // SAFETY: the map is a ring. The verifier checks that the record is submitted.
        let record = unsafe { bpf_ringbuf_reserve(map, record_size() as u64, 0) }.cast::<Snapshot>();
        if record.is_null() { None } else { Some(Self(record)) }
    }

    /// Submits the record. The kernel then wakes the reader only if it has read all earlier records: once for each
    /// batch.
    #[inline(always)]
    fn submit(self) {
        // SAFETY: the record is reserved, and submitted once.
        unsafe { bpf_ringbuf_submit(self.0.cast(), 0) };
    }
}

/// Returns the size of a snapshot in the ring, with its turns if the programs measure them.
#[inline(always)]
fn record_size() -> usize {
    if counts_turns() {
        size_of::<TurnsSnapshot>()
    } else {
        size_of::<Snapshot>()
    }
}

/// Submits the record of a close, or counts it as lost. Also counts that the connection is no longer open.
#[inline(always)]
pub fn report_close(close: &Close, conn: &ConnState, program: u32) {
    let Some(reserved) = Reserved::new() else {
        return count(program, |counters| {
            counters.open -= 1;
            counters.closes += 1;
            counters.lost_ring += 1;
        });
    };
    fill(reserved.0, close.sock, close.tcp, conn, &close.event);
    put! { reserved.0; time_ns: now(), }
    reserved.submit();
    count(program, |counters| {
        counters.open -= 1;
        counters.closes += 1;
        counters.submitted += 1;
    });
}

/// Reports that a connection was established, if the configuration says so.
#[inline(always)]
pub fn report_open(sock: Sock, conn: &ConnState, old_state: u8, program: u32) {
    if !reports_opens() {
        return;
    }
    let Some(tcp) = sock.tcp() else { return };
    let Some(reserved) = Reserved::new() else {
        return count(program, |counters| counters.lost_opens += 1);
    };
    let event = EventFields {
        kind: KIND_OPEN,
        old_state,
        flags: 0,
        sk_err: sock.sk_err(),
        ee_errno: 0,
        ee_origin: 0,
    };
    fill(reserved.0, sock, tcp, conn, &event);
    put! { reserved.0; time_ns: now(), }
    reserved.submit();
    count(program, |counters| counters.opens += 1);
}

/// Writes the update of a connection to the output of a scan, and marks the connection as visited.
///
/// Unless the scan holds the socket's lock (`is_locked`), it reads the counters of the payload again until the socket
/// was unlocked before and after, and no counter changed. Otherwise a FIN that is already counted, but not yet in the
/// state, would pass for a byte of payload.
#[inline(always)]
pub fn report_update(output: IteratorOutput, sock: Sock, conn: ScanView, scan: u32, is_locked: bool) {
    let (Some(tcp), Some(buffer)) = (sock.tcp(), scan_buffer()) else {
        return;
    };
    // SAFETY: this CPU's buffer.
    let record = unsafe {
        (*buffer).length = record_size() as u64;
        &raw mut (*buffer).record.snapshot
    };
    let event = EventFields {
        kind: KIND_UPDATE,
        old_state: 0,
        flags: 0,
        sk_err: sock.sk_err(),
        ee_errno: 0,
        ee_origin: 0,
    };
    fill(record, sock, tcp, conn.as_ptr(), &event);
    for _ in 0..MAX_READS {
        let locked = sock.lock();
        let state = sock.skc_state();
        fill_payload(record, sock, tcp);
        // SAFETY: this CPU's buffer.
        let read = unsafe {
            (*record).old_state = state;
            &*record
        };
        // One number, because the verifier checks each way out of each read.
        let changed = read.bytes_acked ^ tcp.bytes_acked()
            | read.bytes_received ^ tcp.bytes_received()
            | u64::from(read.snd_una ^ tcp.snd_una())
            | u64::from(read.write_seq ^ tcp.write_seq())
            | u64::from(read.sk_flags ^ sock.skc_flags() as u8)
            | u64::from(state ^ sock.skc_state());
        if is_locked || changed | locked | sock.lock() == 0 {
            break;
        }
    }
    // Read the clock after the state, so that the time of the change to this state is earlier.
    put! { record; time_ns: now(), }
    // SAFETY: this CPU's buffer.
    if unsafe { (*record).old_state } == state::CLOSE {
        // The program at the state change reports the close.
        return;
    }
    // A second look-up, so that the verifier does not check the code above once for each kind of storage.
    let Some(conn) = storage::get_for_scan(sock) else {
        return;
    };
    // The kernel changes the state after it runs the programs. So a socket that looks open may already be reported as
    // closed, and one that looks as if it were connecting as established. The programs store the phase before they read
    // the clock, and the scan reads the clock before the phase. So the scan sees the new phase and skips the update. If
    // the connection is still open, the next scan reports it.
    let (phase_now, attempt, established_ns) = (conn.phase(), conn.attempt(), conn.established_ns());
    // SAFETY: this CPU's buffer.
    let (record_attempt, is_connecting) = unsafe {
        let is_connecting = matches!((*record).old_state, state::SYN_SENT | state::SYN_RECV);
        ((*record).attempt, is_connecting)
    };
    if phase_now != phase::LIVE || attempt != record_attempt {
        return;
    }
    if !(is_connecting && established_ns != 0) {
        // SAFETY: this CPU's buffer.
        let is_written = unsafe {
            (*record).established_ns = established_ns;
            output.write_bytes(buffer.cast(), size_of::<u64>() + record_size())
        };
        if !is_written {
            // The buffer of the output is full. The kernel visits the same socket again.
            return;
        }
    }
    conn.set_visited(scan);
}

/// Writes a listener to the output of a scan. Returns false if the output is full: the kernel visits the socket again.
#[inline(always)]
pub fn report_listener(output: IteratorOutput, sock: Sock, conn: ScanView) -> bool {
    let (Some(tcp), Some(buffer)) = (sock.tcp(), listener_buffer()) else {
        return true;
    };
    let owner = owner_words(conn.as_ptr());
    // SAFETY: this CPU's buffer.
    let listener = unsafe {
        (*buffer).length = size_of::<Listener>() as u64;
        &raw mut (*buffer).listener
    };
    put! { listener;
        kind: KIND_LISTENER,
        netns: tcp.sock().netns(),
        time_ns: now(),
        cookie: sock.cookie(),
        cgroup_id: tcp.sock().cgroup_id(),
        backlog: sock.sk_ack_backlog(),
        max_backlog: sock.sk_max_ack_backlog(),
        half_open: tcp.accept_queue_len(),
        drops: sock.sk_drops(),
        local_port: sock.local_port(),
        flags: if tcp.sock().is_netns_of_root() { FLAG_ROOT_NETNS } else { 0 },
    }
    // SAFETY: fields of this CPU's buffer, each at a multiple of 8.
    unsafe {
        let to = (&raw mut (*listener).owner).cast::<u64>();
        ptr::write_volatile(to, owner[0]);
        ptr::write_volatile(to.add(1), owner[1]);
        ptr::write_volatile(to.add(2), owner[2]);
        put_words(&raw mut (*listener).local_addr, sock.local_address().0);
        output.write(&*buffer)
    }
}

/// Reports a RST that this end sent after the close.
#[inline(always)]
pub fn report_reset(sock: Sock, conn: &ConnState, reason: u32, decides: bool, program: u32) {
    let Some(mut entry) = KMESH_EVENTS.reserve_untyped::<Reset>(0) else {
        // `has_capacity` reserves space for it.
        return;
    };
    entry.write(Reset {
        kind: KIND_RESET,
        attempt: conn.attempt,
        cookie: sock.cookie(),
        reason,
        decides: decides.into(),
    });
    entry.submit(0);
    count(program, |counters| counters.resets += 1);
}

/// Writes the turns of a connection behind its snapshot.
#[inline(always)]
fn fill_turns(record: *mut Snapshot, sock: Sock) {
    // SAFETY: the record is the start of a `TurnsSnapshot`.
    let to = unsafe { &raw mut (*record.cast::<TurnsSnapshot>()).turns }.cast::<u64>();
    let from = storage::turns(sock).map(<*mut Turns>::cast::<u64>);
    for word in 0..size_of::<Turns>() / 8 {
        // SAFETY: words of whole values at multiples of 8. Another CPU may be writing the one that is read.
        unsafe {
            let value = match from {
                Some(from) => ptr::read_volatile(from.add(word)),
                None => 0,
            };
            ptr::write_volatile(to.add(word), value);
        }
    }
}

/// Writes all fields but the time. If the programs measure turns, the record is the start of a [`TurnsSnapshot`].
#[inline(always)]
fn fill(record: *mut Snapshot, sock: Sock, tcp: Tcp, conn: *const ConnState, event: &EventFields) {
    let root_netns = if tcp.sock().is_netns_of_root() {
        FLAG_ROOT_NETNS
    } else {
        0
    };
    // Read the stored state first, and only once. The verifier then does not check the rest once for each kind of
    // storage.
    let owner = owner_words(conn);
    // SAFETY: a field of a whole record: three words at multiples of 8.
    unsafe {
        let to = (&raw mut (*record).owner).cast::<u64>();
        ptr::write_volatile(to, owner[0]);
        ptr::write_volatile(to.add(1), owner[1]);
        ptr::write_volatile(to.add(2), owner[2]);
    }
    // SAFETY: fields of a value that lives as long as the socket, longer than this run of the program. Volatile,
    // because a scan reads them while another CPU writes them.
    let (start_ns, established_ns, attempt, flags, reset_reason) = unsafe {
        (
            ptr::read_volatile(&raw const (*conn).start_ns),
            ptr::read_volatile(&raw const (*conn).established_ns),
            ptr::read_volatile(&raw const (*conn).attempt),
            ptr::read_volatile(&raw const (*conn).flags),
            ptr::read_volatile(&raw const (*conn).reset_reason),
        )
    };
    put! { record;
        start_ns: start_ns,
        established_ns: established_ns,
        attempt: attempt,
        reset_reason: reset_reason,
        flags: flags & (FLAG_ACTIVE | FLAG_PREEXISTING | FLAG_RESET_SENT) | event.flags | root_netns,
    }
    if counts_turns() {
        fill_turns(record, tcp.sock());
    }
    put_tcp(record, tcp);
    put! { record;
        chrono_type: tcp.chrono_type(),
        // SAFETY: the helper has no arguments.
        jiffies: unsafe { bpf_jiffies64() } as u32,
        tick_ns: tick_ns(),
        kind: event.kind,
        netns: tcp.sock().netns(),
        cookie: sock.cookie(),
        cgroup_id: tcp.sock().cgroup_id(),
        local_port: u16::from_be(tcp.inet_sport()),
        peer_port: sock.peer_port(),
        family: sock.skc_family(),
        old_state: event.old_state,
        sk_err: event.sk_err,
        ee_errno: event.ee_errno,
        linger2: tcp.linger2(),
        ee_origin: event.ee_origin,
        sk_flags: sock.skc_flags() as u8,
        write_seq: tcp.write_seq(),
        sk_err_soft: sock.sk_err_soft(),
    }
    // SAFETY: fields of a whole record, each at a multiple of 8.
    unsafe {
        put_words(&raw mut (*record).local_addr, sock.local_address().0);
        put_words(&raw mut (*record).peer_addr, sock.peer_address().0);
        put_words(&raw mut (*record).congestion, tcp.congestion());
        let chrono_stat = (&raw mut (*record).chrono_stat).cast::<u32>();
        for index in 0..3 {
            ptr::write_volatile(chrono_stat.add(index as usize), tcp.chrono_stat(index));
        }
    }
}

/// Defines the function that writes the members of `tcp_sock` that records report.
macro_rules! put_tcp {
    (
        reported { $($name:ident: $width:ident, $path:literal, $unit:ident, $description:literal;)* }
        derived { $($derived:tt)* }
        carried { $($carried:ident: $carried_width:ident, $carried_path:literal, $carried_description:literal;)* }
        internal { $($internal:tt)* }
    ) => {
        #[inline(always)]
        fn put_tcp(record: *mut Snapshot, tcp: Tcp) {
            put! { record; $($name: tcp.$name(),)* $($carried: tcp.$carried(),)* }
        }
    };
}

tcp_fields!(put_tcp);

/// Writes the fields from which the payload in both directions is computed.
#[inline(always)]
fn fill_payload(record: *mut Snapshot, sock: Sock, tcp: Tcp) {
    put! { record;
        bytes_acked: tcp.bytes_acked(),
        bytes_received: tcp.bytes_received(),
        sk_flags: sock.skc_flags() as u8,
        write_seq: tcp.write_seq(),
        snd_una: tcp.snd_una(),
        snd_nxt: tcp.snd_nxt(),
        rcv_nxt: tcp.rcv_nxt(),
    }
}
