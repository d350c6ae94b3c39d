//! Dropped packets, counted by connection: `kfree_skb`.
//!
//! A flood of dropped packets must not push records out of the ring, so the program reports nothing. User space reads
//! the counts of a connection when it makes a record of it. A full map drops the oldest counts.

use core::ptr;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::{Array, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use kmesh_trace_common::{DROP_SLOTS, DropKind, DropSlot, Drops, MAX_DROP_REASONS, Tuple};

use crate::skb::{Flow, Segment, Skb, read_original, read_reply};
use crate::sock::Sock;
use crate::storage::atomic_add;

/// The counts. User space sets the size.
#[btf_map]
static KMESH_DROPS: LruHashMap<Tuple, Drops, 1> = LruHashMap::new();

/// Not 0 once there is an entry in [`KMESH_DROPS`]. Without dropped packets, a connection then costs no look-up.
#[btf_map]
static KMESH_ANY_DROPS: Array<u32, 1> = Array::new();

/// The number of entries made in [`KMESH_DROPS`], and of packets that an entry had no slot for.
#[btf_map]
static KMESH_DROPS_MADE: PerCpuArray<u64, 2> = PerCpuArray::new();
const ENTRIES: u32 = 0;
const UNSLOTTED: u32 = 1;

/// All packets of TCP that were dropped, by reason.
#[btf_map]
static KMESH_DROPS_TOTAL: PerCpuArray<u64, MAX_DROP_REASONS> = PerCpuArray::new();

/// The memory of one run of the program, which is too large for the stack.
#[repr(C)]
struct Scratch {
    segment: Segment,
    /// The packet's connection, as the client sees it and as the server sees it.
    client: Flow,
    server: Flow,
    /// The keys of the three.
    own_key: Tuple,
    client_key: Tuple,
    server_key: Tuple,
}

#[btf_map]
static KMESH_DROP_SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// The kernel drops a packet.
#[inline(always)]
pub fn dropped(skb: Skb, reason: u32) {
    let Some(scratch) = KMESH_DROP_SCRATCH.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's memory, and this program does not run on top of itself.
    let scratch = unsafe { &mut *scratch };
    if !skb.read_segment(&mut scratch.segment) {
        return;
    }
    add_to(KMESH_DROPS_TOTAL.get_ptr_mut(reason));
    let netns = skb.netns();
    let kind = DropKind {
        netns,
        reason: reason as u16,
        is_from_lesser: false,
        has_sender: skb.sk() != 0,
    };
    let isn = scratch.segment.client_isn();
    let is_from_lesser;
    (scratch.own_key, is_from_lesser) = scratch.segment.flow.tuple();
    count(&scratch.own_key, DropKind { is_from_lesser, ..kind }, isn);
    let Some((entry, is_reply)) = skb.conntrack() else {
        return;
    };
    if !read_original(entry, &mut scratch.client) || !read_reply(entry, &mut scratch.server) {
        return;
    }
    // The one is from the client, the other from the server.
    let (is_client_lesser, is_server_lesser);
    (scratch.client_key, is_client_lesser) = scratch.client.tuple();
    (scratch.server_key, is_server_lesser) = scratch.server.tuple();
    if scratch.client_key != scratch.own_key {
        let is_from_lesser = is_client_lesser != is_reply;
        count(&scratch.client_key, DropKind { is_from_lesser, ..kind }, isn);
    }
    if scratch.server_key == scratch.client_key {
        return;
    }
    if scratch.server_key != scratch.own_key {
        let is_from_lesser = is_server_lesser == is_reply;
        count(&scratch.server_key, DropKind { is_from_lesser, ..kind }, isn);
    }
    // With a dropped SYN the kernel forgets where it translates what the client sends.
    if let Some(drops) = KMESH_DROPS.get_ptr_mut(&scratch.client_key) {
        // SAFETY: fields of an entry, which stays memory of the map as long as the program runs.
        unsafe {
            ptr::write_volatile(&raw mut (*drops).backend, scratch.server.from.0);
            ptr::write_volatile(&raw mut (*drops).backend_port, scratch.server.from_port);
            ptr::write_volatile(&raw mut (*drops).backend_netns, netns);
        }
    }
}

/// Counts a packet of one connection.
#[inline(always)]
fn count(tuple: &Tuple, kind: DropKind, isn: u32) {
    let Some(drops) = find_or_create(tuple) else { return };
    let word = kind.to_word();
    // SAFETY: the value of an entry, which stays memory of the map as long as the program runs.
    unsafe {
        for index in 0..DROP_SLOTS {
            let slot = (&raw mut (*drops).slots).cast::<DropSlot>().add(index);
            if !is_taken_for(slot, word) {
                continue;
            }
            let known = ptr::read_volatile(&raw const (*slot).isn);
            if isn != 0 && isn != known {
                // The first packet of another connection with these ports.
                ptr::write_volatile(&raw mut (*slot).isn, isn);
                if known != 0 {
                    ptr::write_volatile(&raw mut (*slot).packets, 0);
                }
            }
            return atomic_add(&raw mut (*slot).packets, 1);
        }
    }
    add_to(KMESH_DROPS_MADE.get_ptr_mut(UNSLOTTED));
}

/// Returns whether a slot is that of this kind. A free one is taken, unless another CPU wants it at the same time.
///
/// # Safety
///
/// A slot of an entry.
#[inline(always)]
unsafe fn is_taken_for(slot: *mut DropSlot, word: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let kind = &raw mut (*slot).kind;
        let known = ptr::read_volatile(kind);
        if known != 0 {
            return known == word;
        }
        let claims = &raw mut (*slot).claims;
        atomic_add(claims, 1);
        if ptr::read_volatile(claims) != 1 {
            return false;
        }
        ptr::write_volatile(kind, word);
        true
    }
}

#[inline(always)]
fn find_or_create(tuple: &Tuple) -> Option<*mut Drops> {
    if let Some(drops) = KMESH_DROPS.get_ptr_mut(tuple) {
        return Some(drops);
    }
    if KMESH_DROPS.insert(tuple, &NO_DROPS, BPF_NOEXIST.into()).is_ok() {
        add_to(KMESH_DROPS_MADE.get_ptr_mut(ENTRIES));
        if let Some(any) = KMESH_ANY_DROPS.get_ptr_mut(0) {
            // SAFETY: an aligned word of an array that lives as long as the program.
            unsafe { ptr::write_volatile(any, 1) };
        }
    }
    KMESH_DROPS.get_ptr_mut(tuple)
}

/// A new entry. Too large for the stack.
static NO_DROPS: Drops = Drops {
    slots: [DropSlot {
        kind: 0,
        packets: 0,
        claims: 0,
        isn: 0,
        pad: 0,
    }; DROP_SLOTS],
    backend: [0; 2],
    backend_netns: 0,
    backend_port: 0,
    pad: 0,
};

/// Adds one to a number of this CPU.
#[inline(always)]
fn add_to(number: Option<*mut u64>) {
    if let Some(number) = number {
        // SAFETY: this CPU's number, and this program does not run on top of itself.
        unsafe { *number += 1 };
    }
}

/// Forgets the packets of an earlier connection with the same ports, since a new one was established. `connected`: this
/// end called connect().
#[inline(always)]
pub fn forget_earlier(sock: Sock, connected: bool) {
    // SAFETY: an aligned word of an array that lives as long as the program.
    if KMESH_ANY_DROPS
        .get_ptr(0)
        .is_none_or(|any| unsafe { ptr::read_volatile(any) == 0 })
    {
        return;
    }
    let Some(tcp) = sock.tcp() else { return };
    let client_isn = tcp.client_isn(connected);
    let local = sock.local_address();
    let (tuple, _) = Tuple::new(local.0, sock.local_port(), sock.peer_address().0, sock.peer_port());
    let Some(drops) = KMESH_DROPS.get_ptr_mut(&tuple) else {
        return;
    };
    for index in 0..DROP_SLOTS {
        // SAFETY: the value of an entry, which stays memory of the map as long as the program runs.
        unsafe {
            let slot = (&raw mut (*drops).slots).cast::<DropSlot>().add(index);
            if ptr::read_volatile(&raw const (*slot).isn) != client_isn {
                ptr::write_volatile(&raw mut (*slot).isn, client_isn);
                ptr::write_volatile(&raw mut (*slot).packets, 0);
            }
        }
    }
}
