//! Records, written in place on the ring, field by field.

use core::ptr;

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use kmesh_trace_common::{Close, FLAG_ACTIVE, FLAG_PREEXISTING, KIND_CLOSE, KIND_RESET, Reset, counter, state};

use crate::maps::{Connection, KMESH_EVENTS, count};
use crate::sock::{Sock, error_details};

const AF_INET6: u16 = 10;

/// The end of an association. Counts it, and says so where it could not be told.
#[inline(always)]
pub fn close(sock: Sock, connection: &Connection, old_state: u8, flags: u8, slot: u32) {
    let Some(tcp) = sock.tcp() else { return };
    let sk_err = sock.sk_err();
    let (mut ee_errno, mut ee_origin) = (0, 0);
    if old_state == state::SYN_SENT && sk_err == 0 {
        // ICMP that met a socket in use by its program: only the error queue knows.
        let newest = sock.newest_error();
        if newest != 0 && newest != connection.stale_error {
            (ee_errno, ee_origin) = error_details(newest);
        }
        // No SYN was sent: connect() found no free port. There was no connection, nor an attempt.
        if ee_origin == 0 && (tcp.write_seq() == tcp.snd_una() || tcp.segs_out() == 0) {
            return;
        }
    }
    let Some(mut entry) = KMESH_EVENTS.reserve_untyped::<Close>(0) else {
        count(slot, |counters| {
            counters.closes += 1;
            counters.lost_ring += 1;
        });
        return;
    };
    let record = entry.as_mut_ptr();

    /// Writes one field where it stands.
    macro_rules! put {
        ($($field:ident: $value:expr,)*) => {
            $(
                // SAFETY: a field of the reserved record.
                unsafe { ptr::write_volatile(&raw mut (*record).$field, $value) };
            )*
        };
    }
    put! {
        kind: KIND_CLOSE,
        netns: sock.netns(),
        time_ns: bpf_ktime_get_ns(),
        start_ns: connection.start_ns,
        established_ns: connection.established_ns,
        cookie: sock.cookie(),
        cgroup_id: sock.cgroup_id(),
        bytes_acked: tcp.bytes_acked(),
        bytes_received: tcp.bytes_received(),
        local_port: u16::from_be(tcp.inet_sport()),
        peer_port: u16::from_be(sock.skc_dport()),
        family: sock.skc_family(),
        old_state: old_state,
        flags: connection.flags & (FLAG_ACTIVE | FLAG_PREEXISTING) | flags,
        association: connection.association,
        sk_err: sk_err,
        ee_errno: ee_errno,
        linger2: tcp.linger2(),
        sk_flags: sock.skc_flags() as u8,
        ee_origin: ee_origin,
        ecn_flags: tcp.ecn_flags(),
        icsk_retransmits: tcp.icsk_retransmits(),
        write_seq: tcp.write_seq(),
        snd_una: tcp.snd_una(),
        snd_nxt: tcp.snd_nxt(),
        rcv_nxt: tcp.rcv_nxt(),
        srtt_us: tcp.srtt_us(),
        rtt_min_us: tcp.rtt_min_us(),
        mss: tcp.mss(),
        snd_cwnd: tcp.snd_cwnd(),
        snd_ssthresh: tcp.snd_ssthresh(),
        rate_delivered: tcp.rate_delivered(),
        rate_interval_us: tcp.rate_interval_us(),
        packets_out: tcp.packets_out(),
        retrans_out: tcp.retrans_out(),
        total_retrans: tcp.total_retrans(),
        segs_in: tcp.segs_in(),
        data_segs_in: tcp.data_segs_in(),
        segs_out: tcp.segs_out(),
        data_segs_out: tcp.data_segs_out(),
        lost: tcp.lost(),
        lost_out: tcp.lost_out(),
        sacked_out: tcp.sacked_out(),
        dsack_dups: tcp.dsack_dups(),
        delivered: tcp.delivered(),
        delivered_ce: tcp.delivered_ce(),
        pad: 0,
    }
    let (local, peer) = if sock.skc_family() == AF_INET6 {
        (sock.v6_rcv_saddr(), sock.v6_daddr())
    } else {
        ([u64::from(sock.rcv_saddr()), 0], [u64::from(sock.daddr()), 0])
    };
    // SAFETY: fields of the reserved record.
    unsafe {
        put_halves(&mut (*record).local_addr, local[0], local[1]);
        put_halves(&mut (*record).peer_addr, peer[0], peer[1]);
        put_owner(&raw mut (*record).owner, &raw const connection.owner);
    }
    // Default wake-up: the reader is woken only when it has read all there was before, so once a batch.
    entry.submit(0);
    count(slot, |counters| {
        counters.closes += 1;
        counters.submitted += 1;
    });
}

/// The RST that settles how a connection ended.
#[inline(always)]
pub fn reset(sock: Sock, connection: &Connection) {
    let Some(mut entry) = KMESH_EVENTS.reserve_untyped::<Reset>(0) else {
        count(counter::RESET, |counters| counters.lost_resets += 1);
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

/// Writes 16 bytes as two words: the compiler would otherwise write them one by one.
#[inline(always)]
pub fn put_halves(bytes: &mut [u8; 16], low: u64, high: u64) {
    let halves = bytes.as_mut_ptr().cast::<u64>();
    // SAFETY: 16 bytes; every such field of ours stands at a multiple of 8.
    unsafe {
        ptr::write_volatile(halves, low);
        ptr::write_volatile(halves.add(1), high);
    }
}

/// Copies an owner as three words.
#[inline(always)]
unsafe fn put_owner(to: *mut kmesh_trace_common::Owner, from: *const kmesh_trace_common::Owner) {
    let (to, from) = (to.cast::<u64>(), from.cast::<u64>());
    // SAFETY: the caller's pointers are to whole owners of 24 bytes, aligned to 8 in a record and in a socket's storage.
    unsafe {
        ptr::write_volatile(to, ptr::read_volatile(from));
        ptr::write_volatile(to.add(1), ptr::read_volatile(from.add(1)));
        ptr::write_volatile(to.add(2), ptr::read_volatile(from.add(2)));
    }
}
