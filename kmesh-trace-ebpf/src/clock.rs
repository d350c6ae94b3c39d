//! The clock of the records.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;

/// Returns the time now: CLOCK_MONOTONIC, ns.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no arguments.
    unsafe { bpf_ktime_get_ns() }
}
