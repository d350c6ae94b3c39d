//! The maps that all programs share: the ring of records, the kernel filter, the counters; and the configuration.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::BPF_RB_AVAIL_DATA;
use aya_ebpf::btf_maps::{Array, PerCpuArray, RingBuf};
use aya_ebpf::helpers::generated::bpf_ringbuf_query;
use aya_ebpf::macros::btf_map;
use kmesh_trace_common::{
    Counters, FilterRules, ListenerScanRecord, MAX_DROP_REASONS, ProgramConfig, ScanRecord, Snapshot, counter,
};

/// The ring of records. User space sets the size.
#[btf_map]
pub static KMESH_EVENTS: RingBuf<Snapshot, 4096> = RingBuf::new();

/// The rules of the kernel filter. User space writes them before it attaches the programs.
#[btf_map]
pub static KMESH_FILTER: Array<FilterRules, 1> = Array::new();

/// The buffer in which a socket scan builds a record, which is too large for the stack.
#[btf_map]
static KMESH_SCRATCH: PerCpuArray<ScanRecord, 1> = PerCpuArray::new();

/// The buffer in which a socket scan builds the record of a listener.
#[btf_map]
static KMESH_LISTENER_BUFFER: PerCpuArray<ListenerScanRecord, 1> = PerCpuArray::new();

/// The configuration, which user space writes before it loads the programs.
#[unsafe(no_mangle)]
static CONFIG: ProgramConfig = ProgramConfig { ..ZERO };

// SAFETY: ProgramConfig consists of plain numbers.
const ZERO: ProgramConfig = unsafe { core::mem::zeroed() };

/// Reads a field of [`CONFIG`]. Volatile, because the compiler sees zeros instead of the values that user space writes.
macro_rules! config {
    ($field:ident) => {
        // SAFETY: a volatile read of a field of a static.
        unsafe { ptr::read_volatile(&raw const CONFIG.$field) }
    };
}

/// Returns the enabled checks of the kernel filter, as bits `CHECK_*`.
#[inline(always)]
pub fn filter_checks() -> u32 {
    config!(filter_checks)
}

/// Returns whether the programs report established connections.
#[inline(always)]
pub fn reports_opens() -> bool {
    config!(reports_opens) != 0
}

/// Returns whether the kernel may preempt a program, so that backup programs are attached. The verifier knows the value
/// and removes the code for other kernels.
#[inline(always)]
pub fn preempts_programs() -> bool {
    config!(preempts_programs) != 0
}

/// Returns whether `tcp_send_reset` has the kernel's reason as its third argument.
#[inline(always)]
pub fn has_reset_reasons() -> bool {
    config!(has_reset_reasons) != 0
}

/// Returns whether the programs count the RSTs that the kernel sends without a socket.
#[inline(always)]
pub fn counts_rejects() -> bool {
    config!(counts_rejects) != 0
}

/// Returns whether the programs count dropped packets.
#[inline(always)]
pub fn counts_drops() -> bool {
    config!(counts_drops) != 0
}

/// Returns whether the programs measure turns.
#[inline(always)]
pub fn counts_turns() -> bool {
    config!(counts_turns) != 0
}

/// Returns whether a packet that the kernel drops for this reason counts.
#[inline(always)]
pub fn is_drop_counted(reason: u32) -> bool {
    if reason >= MAX_DROP_REASONS as u32 {
        return false;
    }
    let reasons = (&raw const CONFIG.drop_reasons).cast::<u64>();
    // SAFETY: a number below 256 divided by 64 is below 4.
    let word = unsafe { ptr::read_volatile(reasons.add(reason as usize >> 6)) };
    word >> (reason & 63) & 1 != 0
}

/// Returns whether socket scans report listeners.
#[inline(always)]
pub fn reports_listeners() -> bool {
    config!(reports_listeners) != 0
}

/// Returns the mask of `tcp_sock.fastopen_connect` in its byte.
#[inline(always)]
pub fn fastopen_connect_bit() -> u8 {
    config!(fastopen_connect_bit)
}

/// Returns the mask of IP_TRANSPARENT in its byte.
#[inline(always)]
pub fn transparent_bit() -> u8 {
    config!(transparent_bit)
}

/// Returns the mask of `tcp_sock.chrono_type` in its byte.
#[inline(always)]
pub fn chrono_type_mask() -> u8 {
    config!(chrono_type_mask)
}

/// Returns the length of a tick, ns.
#[inline(always)]
pub fn tick_ns() -> u32 {
    config!(tick_ns)
}

/// Returns the mask of the bit that marks a task with 32-bit system call numbers.
#[inline(always)]
pub fn compat_bit() -> u8 {
    config!(compat_bit)
}

/// Returns whether a system call can close a file of the calling process. `compat`: the number is a 32-bit one.
#[inline(always)]
pub fn can_close(system_call: u32, compat: bool) -> bool {
    if system_call >= 512 {
        return false;
    }
    let calls = if compat {
        (&raw const CONFIG.compat_closing_calls).cast::<u64>()
    } else {
        (&raw const CONFIG.closing_calls).cast::<u64>()
    };
    // SAFETY: a number below 512 divided by 64 is below 8.
    let word = unsafe { ptr::read_volatile(calls.add(system_call as usize >> 6)) };
    word >> (system_call & 63) & 1 != 0
}

/// Returns whether the ring has capacity for one more [`Snapshot`]. The rest of the ring is reserved for [`Reset`]
/// records.
///
/// [`Reset`]: kmesh_trace_common::Reset
#[inline(always)]
pub fn has_capacity() -> bool {
    let limit = config!(snapshot_limit);
    let map = (&raw const KMESH_EVENTS).cast_mut().cast::<c_void>();
    // SAFETY: the map is a ring buffer.
    unsafe { bpf_ringbuf_query(map, BPF_RB_AVAIL_DATA.into()) <= u64::from(limit) }
}

/// Returns this CPU's buffer for the record of a socket scan.
#[inline(always)]
pub fn scan_buffer() -> Option<*mut ScanRecord> {
    KMESH_SCRATCH.get_ptr_mut(0)
}

/// Returns this CPU's buffer for the record of a listener.
#[inline(always)]
pub fn listener_buffer() -> Option<*mut ListenerScanRecord> {
    KMESH_LISTENER_BUFFER.get_ptr_mut(0)
}

/// Not 0 while `kmesh_state` runs on this CPU.
#[btf_map]
static KMESH_RUNNING: PerCpuArray<u32, 1> = PerCpuArray::new();

/// Runs `kmesh_state`, and marks it as running on this CPU meanwhile.
#[inline(always)]
pub fn run_state_program(program: impl FnOnce() -> i32) -> i32 {
    let running = KMESH_RUNNING.get_ptr_mut(0);
    let set = |value| {
        if let Some(running) = running {
            // SAFETY: this CPU's word, which lives as long as the program. Volatile, so that an interrupt sees the
            // value.
            unsafe { ptr::write_volatile(running, value) };
        }
    };
    set(1);
    let result = program();
    set(0);
    result
}

/// Returns whether the caller interrupts `kmesh_state`.
#[inline(always)]
pub fn is_state_program_running() -> bool {
    KMESH_RUNNING.get_ptr(0).is_some_and(|running| {
        // SAFETY: this CPU's word, which lives as long as the program.
        unsafe { ptr::read_volatile(running) != 0 }
    })
}

#[btf_map]
static KMESH_COUNTERS: PerCpuArray<Counters, { counter::PROGRAMS }> = PerCpuArray::new();

/// Changes the counters of `program`, a number of [`counter`], on this CPU.
#[inline(always)]
pub fn count(program: u32, add: impl FnOnce(&mut Counters)) {
    if let Some(counters) = KMESH_COUNTERS.get_ptr_mut(program) {
        // SAFETY: this CPU's counters of this program, which cannot run on top of itself.
        add(unsafe { &mut *counters });
    }
}

/// The number of the current socket scan, from 1, which user space writes between scans. The first scan only stores the
/// connections that it finds; the others also report them.
#[btf_map]
static KMESH_SCAN: Array<u32, 1> = Array::new();

/// Returns the number of the current socket scan.
#[inline(always)]
pub fn scan_number() -> u32 {
    // SAFETY: an aligned word of an array that lives as long as the program.
    KMESH_SCAN
        .get_ptr(0)
        .map_or(0, |slot| unsafe { ptr::read_volatile(slot) })
}

/// The time when all programs were attached (CLOCK_MONOTONIC, ns), which user space writes; 0 before.
#[btf_map]
static KMESH_ATTACHED: Array<u64, 1> = Array::new();

/// Returns the time when all programs were attached; `u64::MAX` before. A socket that sent or received a segment since
/// then can be unknown only because the kernel skipped the programs.
#[inline(always)]
pub fn attached_ns() -> u64 {
    // SAFETY: an aligned word of an array that lives as long as the program.
    match KMESH_ATTACHED
        .get_ptr(0)
        .map(|slot| unsafe { ptr::read_volatile(slot) })
    {
        None | Some(0) => u64::MAX,
        Some(attached) => attached,
    }
}
