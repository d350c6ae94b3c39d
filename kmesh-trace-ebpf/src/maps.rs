//! The maps that all programs share: the ring that carries records, the filter, and the counters.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::BPF_RB_AVAIL_DATA;
use aya_ebpf::btf_maps::{Array, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_ringbuf_query};
use aya_ebpf::macros::btf_map;
use kmesh_trace_common::{Counters, Prefilter, Settings, Snapshot, Walked, counter};

use crate::sock::{Address, Sock};

/// The records. User space sets the size.
#[btf_map]
pub static KMESH_EVENTS: RingBuf<Snapshot, 4096> = RingBuf::new();

/// Written by user space before attaching.
#[btf_map]
pub static KMESH_FILTER: Array<Prefilter, 1> = Array::new();

/// What the filter's networks say; written likewise. User space sets the size.
#[btf_map]
static KMESH_NETWORKS: LpmTrie<[u8; 16], u32, 1> = LpmTrie::new();

/// A key of the networks, its address where words can be written.
#[repr(C)]
struct Whole {
    pad: u32,
    bits: u32,
    address: [u64; 2],
}

/// Which terms of the filter contain an address: bits of [`kmesh_trace_common::term`].
#[inline(always)]
pub fn terms_of(address: Address) -> u32 {
    let key = Whole {
        pad: 0,
        bits: 128,
        address: address.0,
    };
    let map = (&raw const KMESH_NETWORKS).cast_mut().cast::<c_void>();
    // SAFETY: a map whose keys are 20 bytes, which `bits` and `address` are, and whose values are `u32`; the kernel returns
    // null or a value, which stays readable for as long as the program runs.
    unsafe {
        let terms = bpf_map_lookup_elem(map, (&raw const key.bits).cast()).cast::<u32>();
        if terms.is_null() { 0 } else { ptr::read_volatile(terms) }
    }
}

/// Where a walk puts together what it tells: too large for the stack.
#[btf_map]
static KMESH_SCRATCH: PerCpuArray<Walked, 1> = PerCpuArray::new();

/// Written by user space before loading.
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings { ..ZERO };

// SAFETY: Settings is a structure of plain numbers.
const ZERO: Settings = unsafe { core::mem::zeroed() };

/// Which checks of the filter there are: `CHECK_*`.
#[inline(always)]
pub fn checks() -> u32 {
    // SAFETY: a read of a static. Volatile, because what the compiler sees there is not what user space wrote.
    unsafe { ptr::read_volatile(&raw const SETTINGS.checks) }
}

/// Whether to tell that associations were established.
#[inline(always)]
pub fn tells_opens() -> bool {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&raw const SETTINGS.opens) != 0 }
}

/// Whether the kernel may put a program aside with its task, so that there are second ones.
#[inline(always)]
pub fn is_preempted() -> bool {
    // SAFETY: as above. The verifier knows it, and drops what is only for the other kernels.
    unsafe { ptr::read_volatile(&raw const SETTINGS.preempted) != 0 }
}

/// The bit of `tcp_sock.fastopen_connect` in its byte.
#[inline(always)]
pub fn fastopen_connect_bit() -> u8 {
    // SAFETY: a volatile read of a static.
    unsafe { ptr::read_volatile(&raw const SETTINGS.fastopen_connect_bit) }
}

/// The bit of IP_TRANSPARENT in its byte.
#[inline(always)]
pub fn transparent_bit() -> u8 {
    // SAFETY: a volatile read of a static.
    unsafe { ptr::read_volatile(&raw const SETTINGS.transparent_bit) }
}

/// The bit of a task whose system calls have other numbers.
#[inline(always)]
pub fn compat_bit() -> u8 {
    // SAFETY: a volatile read of a static.
    unsafe { ptr::read_volatile(&raw const SETTINGS.compat_bit) }
}

/// Returns whether a system call can close a file of the process that makes it.
#[inline(always)]
pub fn can_close(system_call: u32, compat: bool) -> bool {
    if system_call >= 512 {
        return false;
    }
    let calls = if compat {
        (&raw const SETTINGS.compat_closing_calls).cast::<u64>()
    } else {
        (&raw const SETTINGS.closing_calls).cast::<u64>()
    };
    // SAFETY: a number below 512 divided by 64 is below 8.
    let word = unsafe { ptr::read_volatile(calls.add(system_call as usize >> 6)) };
    word >> (system_call & 63) & 1 != 0
}

/// Returns whether the ring has room for one more [`Snapshot`], and beyond it for the [`Reset`]s of those that it has.
///
/// [`Reset`]: kmesh_trace_common::Reset
#[inline(always)]
pub fn has_room() -> bool {
    // SAFETY: a volatile read of a static.
    let limit = unsafe { ptr::read_volatile(&raw const SETTINGS.snapshot_limit) };
    let map = (&raw const KMESH_EVENTS).cast_mut().cast::<c_void>();
    // SAFETY: a map of this kind.
    unsafe { bpf_ringbuf_query(map, BPF_RB_AVAIL_DATA.into()) <= u64::from(limit) }
}

/// Where this CPU's walk puts together what it tells.
#[inline(always)]
pub fn scratch() -> Option<*mut Walked> {
    KMESH_SCRATCH.get_ptr_mut(0)
}

/// Not 0 while the program at `inet_sock_set_state` runs on this CPU.
#[btf_map]
static KMESH_RUNNING: PerCpuArray<u32, 1> = PerCpuArray::new();

/// Runs the program at `inet_sock_set_state`, and notes meanwhile that it runs on this CPU.
#[inline(always)]
pub fn running(program: impl FnOnce() -> i32) -> i32 {
    let running = KMESH_RUNNING.get_ptr_mut(0);
    let set = |value| {
        if let Some(running) = running {
            // SAFETY: this CPU's word, which lives as long as the program. Volatile, so that an interrupt sees it.
            unsafe { ptr::write_volatile(running, value) };
        }
    };
    set(1);
    let result = program();
    set(0);
    result
}

/// Returns whether the caller interrupts the program at `inet_sock_set_state`.
#[inline(always)]
pub fn is_running() -> bool {
    KMESH_RUNNING.get_ptr(0).is_some_and(|running| {
        // SAFETY: this CPU's word, which lives as long as the program.
        unsafe { ptr::read_volatile(running) != 0 }
    })
}

#[btf_map]
static KMESH_COUNTS: PerCpuArray<Counters, { counter::SLOTS }> = PerCpuArray::new();

/// Counts for one program; see [`counter`].
#[inline(always)]
pub fn count(slot: u32, add: impl FnOnce(&mut Counters)) {
    if let Some(counters) = KMESH_COUNTS.get_ptr_mut(slot) {
        // SAFETY: this CPU's slot of this program, which cannot run on top of itself.
        add(unsafe { &mut *counters });
    }
}

/// The number of the present socket scan, from 1; user space writes it between scans. The first scan only stores what it
/// finds; all others also report it.
#[btf_map]
static KMESH_WALK: Array<u32, 1> = Array::new();

/// Returns the number of the present socket scan.
#[inline(always)]
pub fn scan_number() -> u32 {
    // SAFETY: a slot of an array that lives as long as the program, and a whole word.
    KMESH_WALK
        .get_ptr(0)
        .map_or(0, |slot| unsafe { ptr::read_volatile(slot) })
}

/// The cookies of sockets whose connection began when no storage could be had. Such a socket looks like one that was open
/// before the tracer. The map forgets the oldest when it is full: whoever fills it only hides sockets without storage, which are
/// the filler's own.
#[btf_map]
static KMESH_UNSTORED: LruHashMap<u64, u32, 4096> = LruHashMap::new();

/// Remembers that the connection of this socket has no storage.
#[inline(always)]
pub fn note_unstored(sock: Sock) {
    // Where this fails, its end counts as that of a connection from before the tracer.
    _ = KMESH_UNSTORED.insert(sock.cookie(), 1, 0);
}

/// Returns whether the connection of this socket began without storage.
#[inline(always)]
pub fn is_unstored(sock: Sock) -> bool {
    let cookie = sock.skc_cookie();
    // Noting it gave the socket its cookie.
    cookie != 0 && KMESH_UNSTORED.get_ptr(cookie).is_some()
}

/// Since when all programs are attached (CLOCK_MONOTONIC, ns); 0 before. Written by user space.
#[btf_map]
static KMESH_BEGAN: Array<u64, 1> = Array::new();

/// Since when a socket that any segment came or went for can only be missed where the kernel skips the programs.
#[inline(always)]
pub fn began_ns() -> u64 {
    // SAFETY: a slot of an array that lives as long as the program, and a whole word.
    match KMESH_BEGAN.get_ptr(0).map(|slot| unsafe { ptr::read_volatile(slot) }) {
        None | Some(0) => u64::MAX,
        Some(began) => began,
    }
}
