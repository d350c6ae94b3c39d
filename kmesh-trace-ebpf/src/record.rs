//! Records, written where they are to stand, field by field.

use core::ptr;

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use kmesh_trace_common::{
    FLAG_ACTIVE, FLAG_PREEXISTING, FLAG_RESET_SENT, FLAG_ROOT_NETNS, KIND_CLOSE, KIND_OPEN, KIND_RESET, KIND_UPDATE,
    Reset, Snapshot, counter, state, tcp_fields,
};

use crate::kept::{self, Connection, Scanned, owner_words, phase};
use crate::maps::{KMESH_EVENTS, count, has_room, scratch, tells_opens};
use crate::sock::{IteratorOutput, Sock, Tcp, error_details};

/// How often a walk tries to read a socket that is in use before it takes what it has.
const TRIES: u32 = 24;

/// Writes fields where they are to stand.
macro_rules! put {
    ($record:expr; $($field:ident: $value:expr,)*) => {
        $(
            let value = $value;
            // SAFETY: a field of a whole record.
            unsafe { ptr::write_volatile(&raw mut (*$record).$field, value) };
        )*
    };
}

/// What a record tells besides the socket's own fields.
struct Event {
    kind: u32,
    old_state: u8,
    flags: u8,
    sk_err: u32,
    ee_errno: u32,
    ee_origin: u8,
}

/// The end of an association.
pub struct Ended {
    sock: Sock,
    tcp: Tcp,
    event: Event,
}

/// What ended; none if it was no association: no SYN was sent. `segs_before`: [`Connection::segs_before`].
#[inline(always)]
pub fn ended(sock: Sock, stale_error: u64, segs_before: u32, old_state: u8, flags: u8) -> Option<Ended> {
    let tcp = sock.tcp()?;
    // What ends it otherwise does so at once, so what is pending when close() does is not the cause.
    let sk_err = if sock.is_ended_by_close(old_state) {
        0
    } else {
        sock.sk_err()
    };
    let (mut ee_errno, mut ee_origin) = (0, 0);
    if old_state == state::SYN_SENT {
        if tcp.segs_out() == segs_before {
            return None;
        }
        if sk_err == 0 {
            // ICMP that met a socket in use by its program: only the error queue knows.
            let newest = sock.newest_error();
            if newest != 0 && newest != stale_error {
                (ee_errno, ee_origin) = error_details(newest);
            }
        }
    }
    Some(Ended {
        sock,
        tcp,
        event: Event {
            kind: KIND_CLOSE,
            old_state,
            flags,
            sk_err,
            ee_errno,
            ee_origin,
        },
    })
}

#[inline(always)]
fn reserve() -> Option<RingBufEntry<Snapshot>> {
    if has_room() {
        KMESH_EVENTS.reserve_untyped::<Snapshot>(0)
    } else {
        None
    }
}

/// Tells of the end of an association, or counts that it could not be told; and that it is not open any more.
#[inline(always)]
pub fn close(ended: &Ended, connection: &Connection, slot: u32) {
    let Some(mut entry) = reserve() else {
        return count(slot, |counters| {
            counters.open -= 1;
            counters.closes += 1;
            counters.lost_ring += 1;
        });
    };
    fill(entry.as_mut_ptr(), ended.sock, ended.tcp, connection, &ended.event);
    put! { entry.as_mut_ptr(); time_ns: now(), }
    // Default wake-up: the reader is woken only when it has read all there was before, so once a batch.
    entry.submit(0);
    count(slot, |counters| {
        counters.open -= 1;
        counters.closes += 1;
        counters.submitted += 1;
    });
}

/// Tells that an association was established, if that is wanted.
#[inline(always)]
pub fn open(sock: Sock, connection: &Connection, old_state: u8, slot: u32) {
    if !tells_opens() {
        return;
    }
    let Some(tcp) = sock.tcp() else { return };
    let Some(mut entry) = reserve() else {
        return count(slot, |counters| counters.lost_opens += 1);
    };
    let event = Event {
        kind: KIND_OPEN,
        old_state,
        flags: 0,
        sk_err: sock.sk_err(),
        ee_errno: 0,
        ee_origin: 0,
    };
    fill(entry.as_mut_ptr(), sock, tcp, connection, &event);
    put! { entry.as_mut_ptr(); time_ns: now(), }
    entry.submit(0);
    count(slot, |counters| counters.opens += 1);
}

/// Tells a walk, once, how an association stands.
///
/// Unless the scan holds the socket's lock (`is_locked`), what its bytes are computed from is read until nothing was inside the
/// socket before or after and nothing moved; a FIN that is counted already but not yet noted would otherwise pass for a byte of
/// payload.
#[inline(always)]
pub fn update(output: IteratorOutput, sock: Sock, connection: Scanned, walk: u32, is_locked: bool) {
    let (Some(tcp), Some(walked)) = (sock.tcp(), scratch()) else {
        return;
    };
    // SAFETY: this CPU's own.
    let record = unsafe {
        (*walked).length = size_of::<Snapshot>() as u64;
        &raw mut (*walked).snapshot
    };
    let event = Event {
        kind: KIND_UPDATE,
        old_state: 0,
        flags: 0,
        sk_err: sock.sk_err(),
        ee_errno: 0,
        ee_origin: 0,
    };
    fill(record, sock, tcp, connection.as_ptr(), &event);
    for _ in 0..TRIES {
        let locked = sock.lock();
        let state = sock.skc_state();
        fill_bytes(record, sock, tcp);
        // SAFETY: this CPU's own.
        let read = unsafe {
            (*record).old_state = state;
            &*record
        };
        // In one number: the verifier goes through each way out of each try.
        let moved = read.bytes_acked ^ tcp.bytes_acked()
            | read.bytes_received ^ tcp.bytes_received()
            | u64::from(read.snd_una ^ tcp.snd_una())
            | u64::from(read.write_seq ^ tcp.write_seq())
            | u64::from(read.sk_flags ^ sock.skc_flags() as u8)
            | u64::from(state ^ sock.skc_state());
        if is_locked || moved | locked | sock.lock() == 0 {
            break;
        }
    }
    // Timed after the state was read: whatever it came from has its time, too.
    put! { record; time_ns: now(), }
    // SAFETY: this CPU's own.
    if unsafe { (*record).old_state } == state::CLOSE {
        // Its end is told elsewhere.
        return;
    }
    // Looked up again, so that the verifier need not go through all of the above for each place where it may be kept.
    let Some(connection) = kept::scanned(sock) else { return };
    // The kernel changes the state only once the programs have been run: what looks open may have been told as ended before
    // this was read, and what looks as if it were connecting as established. Both are noted first and timed then; here it is
    // the other way round. The next walk tells what is left of it.
    let (phase_now, association, established_ns) = (
        connection.phase(),
        connection.association(),
        connection.established_ns(),
    );
    // SAFETY: this CPU's own.
    let (told, is_connecting) = unsafe {
        let told = (*record).association;
        (told, matches!((*record).old_state, state::SYN_SENT | state::SYN_RECV))
    };
    if phase_now != phase::LIVE || association != told {
        return;
    }
    if !(is_connecting && established_ns != 0) {
        // SAFETY: this CPU's own.
        let is_written = unsafe {
            (*record).established_ns = established_ns;
            output.write(&*walked)
        };
        if !is_written {
            // There is no room now. The kernel calls again for the same socket.
            return;
        }
    }
    connection.set_visited(walk);
}

/// Tells of the RST that settles how a connection ended.
#[inline(always)]
pub fn reset(sock: Sock, connection: &Connection) {
    let Some(mut entry) = KMESH_EVENTS.reserve_untyped::<Reset>(0) else {
        // `has_room` kept some for it.
        return;
    };
    entry.write(Reset {
        kind: KIND_RESET,
        association: connection.association,
        cookie: sock.cookie(),
    });
    entry.submit(0);
    count(counter::RESET, |counters| counters.resets += 1);
}

/// All but the time.
#[inline(always)]
fn fill(record: *mut Snapshot, sock: Sock, tcp: Tcp, connection: *const Connection, event: &Event) {
    let root_netns = if tcp.sock().is_netns_of_root() {
        FLAG_ROOT_NETNS
    } else {
        0
    };
    // What is kept comes first, and is not asked again: all else the verifier then need not go through for each place where
    // that may be.
    let owner = owner_words(connection);
    // SAFETY: a field of a whole record, three words at a multiple of 8.
    unsafe {
        let to = (&raw mut (*record).owner).cast::<u64>();
        ptr::write_volatile(to, owner[0]);
        ptr::write_volatile(to.add(1), owner[1]);
        ptr::write_volatile(to.add(2), owner[2]);
    }
    // SAFETY: fields of what is stored of a socket, which lives longer than this run of the program. Volatile, because a scan
    // reads them while another CPU writes them.
    let (start_ns, established_ns, association, flags) = unsafe {
        (
            ptr::read_volatile(&raw const (*connection).start_ns),
            ptr::read_volatile(&raw const (*connection).established_ns),
            ptr::read_volatile(&raw const (*connection).association),
            ptr::read_volatile(&raw const (*connection).flags),
        )
    };
    put! { record;
        start_ns: start_ns,
        established_ns: established_ns,
        association: association,
        flags: flags & (FLAG_ACTIVE | FLAG_PREEXISTING | FLAG_RESET_SENT) | event.flags | root_netns,
    }
    put_tcp(record, tcp);
    put! { record;
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
        put_halves(&raw mut (*record).local_addr, sock.local_address().0);
        put_halves(&raw mut (*record).peer_addr, sock.peer_address().0);
    }
}

/// Defines the function that writes what records report of `tcp_sock`.
macro_rules! put_tcp {
    (
        reported { $($name:ident: $width:ident, $path:literal, $unit:ident, $description:literal;)* }
        internal { $($internal:tt)* }
    ) => {
        #[inline(always)]
        fn put_tcp(record: *mut Snapshot, tcp: Tcp) {
            put! { record; $($name: tcp.$name(),)* }
        }
    };
}

tcp_fields!(put_tcp);

/// Writes again what the bytes of both ways are computed from.
#[inline(always)]
fn fill_bytes(record: *mut Snapshot, sock: Sock, tcp: Tcp) {
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

/// Writes 16 bytes as two words: the compiler would otherwise write them one by one.
///
/// # Safety
///
/// `bytes` stands at a multiple of 8.
#[inline(always)]
pub unsafe fn put_halves(bytes: *mut [u8; 16], halves: [u64; 2]) {
    let to = bytes.cast::<u64>();
    // SAFETY: the caller's promise.
    unsafe {
        ptr::write_volatile(to, halves[0]);
        ptr::write_volatile(to.add(1), halves[1]);
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}
