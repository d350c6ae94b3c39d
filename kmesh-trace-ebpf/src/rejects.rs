//! RSTs that this node sent without a socket, counted by client and dialled port: `tcp_send_reset`.

use core::ptr;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::{Array, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use kmesh_trace_common::{MAX_RESET_REASONS, RejectKey};

use crate::skb::{Segment, Skb};
use crate::storage::atomic_add;

/// The counts. User space takes them once a second. A port scan only pushes out counts: the totals have them.
#[btf_map]
static KMESH_REJECTS: LruHashMap<RejectKey, u64, 4096> = LruHashMap::new();

/// The number of the current report, which user space writes.
#[btf_map]
static KMESH_REJECT_REPORT: Array<u32, 1> = Array::new();

/// The memory of one run of the program, which is too large for the stack.
#[btf_map]
static KMESH_REJECT_SCRATCH: PerCpuArray<Segment, 1> = PerCpuArray::new();

/// All RSTs sent without a socket, by reason.
#[btf_map]
static KMESH_REJECTS_TOTAL: PerCpuArray<u64, MAX_RESET_REASONS> = PerCpuArray::new();

/// The kernel answers a packet with a RST, since no socket is there, or only what is left of one in TIME_WAIT.
#[inline(always)]
pub fn rejected(skb: Skb, reason: u32) {
    let Some(segment) = KMESH_REJECT_SCRATCH.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's memory, and this program does not run on top of itself.
    let segment = unsafe { &mut *segment };
    if !skb.read_segment(segment) {
        return;
    }
    let last = MAX_RESET_REASONS as u32 - 1;
    if let Some(total) = KMESH_REJECTS_TOTAL.get_ptr_mut(reason.min(last)) {
        // SAFETY: this CPU's number, and this program does not run on top of itself.
        unsafe { *total += 1 };
    }
    let key = RejectKey {
        client: segment.flow.from.0,
        dialled: segment.flow.to.0,
        port: segment.flow.to_port,
        reason: reason as u16,
        netns: skb.netns(),
        // SAFETY: an aligned word of an array that lives as long as the program.
        report: KMESH_REJECT_REPORT
            .get_ptr(0)
            .map_or(0, |report| unsafe { ptr::read_volatile(report) }),
        pad: 0,
    };
    if KMESH_REJECTS.get_ptr_mut(&key).is_none() {
        // It fails where another CPU was first.
        _ = KMESH_REJECTS.insert(&key, &0, BPF_NOEXIST.into());
    }
    if let Some(count) = KMESH_REJECTS.get_ptr_mut(&key) {
        // SAFETY: the value of an entry, which stays memory of the map as long as the program runs.
        unsafe { atomic_add(count, 1) };
    }
}
