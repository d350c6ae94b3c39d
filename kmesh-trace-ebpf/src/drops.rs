//! Dropped packets, counted by connection: `kfree_skb`.
//!
//! A flood of dropped packets must not push records out of the ring, so the program reports nothing. User space reads
//! the counts of a connection when it makes a record of it. A full map drops the oldest counts.

use core::ptr;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::{Array, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use kmesh_trace_common::{DROP_SLOTS, DropKind, DropSlot, Drops, MAX_DROP_REASONS, Tuple};

use crate::skb::{Flow, Segment, Skb};
use crate::sock::{Address, Sock};
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

/// The kernel drops a packet.
#[inline(always)]
pub fn dropped(skb: Skb, reason: u32) {
    let Some(segment) = skb.segment() else { return };
    add_to(KMESH_DROPS_TOTAL.get_ptr_mut(reason));
    let netns = skb.netns();
    let has_sender = skb.sk() != 0;
    let count = |flow: Flow| {
        let (tuple, is_from_lesser) = flow.tuple();
        let kind = DropKind {
            netns,
            reason: reason as u16,
            is_from_lesser,
            has_sender,
        };
        count(&tuple, kind, &segment);
        tuple
    };
    let own = count(segment.flow);
    if let Some(translation) = skb.translation() {
        let (client, server) = (translation.client.tuple().0, translation.server.tuple().0);
        if client != own {
            count(translation.client);
        }
        if server != own && server != client {
            count(translation.server);
        }
        if server != client {
            set_backend(&client, translation.backend, netns);
        }
    }
}

/// Stores where a network namespace translates what the client sends. With a dropped SYN the kernel forgets it.
#[inline(always)]
fn set_backend(client: &Tuple, (address, port): (Address, u16), netns: u32) {
    let Some(drops) = KMESH_DROPS.get_ptr_mut(client) else {
        return;
    };
    // SAFETY: fields of an entry, which stays memory of the map as long as the program runs.
    unsafe {
        ptr::write_volatile(&raw mut (*drops).backend, address.0);
        ptr::write_volatile(&raw mut (*drops).backend_port, port);
        ptr::write_volatile(&raw mut (*drops).backend_netns, netns);
    }
}

/// Counts a packet of one connection.
#[inline(always)]
fn count(tuple: &Tuple, kind: DropKind, segment: &Segment) {
    let Some(drops) = find_or_create(tuple) else { return };
    let (word, isn) = (kind.to_word(), segment.client_isn());
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
