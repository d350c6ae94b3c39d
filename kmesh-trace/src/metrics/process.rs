//! The usual `process_*` metrics, of this process.

use std::fmt;

use procfs::process::{LimitValue, Process};
use prometheus_client::encoding::DescriptorEncoder;
use rustix::time::{ClockId, clock_gettime};

use super::exposition::{counter, gauge};

/// Writes what `/proc/self` tells; of what cannot be read, nothing.
pub fn encode(to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    // Of the clock, not of the file: its ticks are of 10 ms, which a quiet node's tracer takes minutes to use.
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let used = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
    counter(to, "process_cpu_seconds", "Processor time used, user and system", used)?;
    let Ok(process) = Process::myself() else { return Ok(()) };
    if let Ok(stat) = process.stat() {
        let second = procfs::ticks_per_second() as f64;
        let resident = stat.rss.saturating_mul(procfs::page_size());
        gauge(to, "process_resident_memory_bytes", "Resident memory", resident as f64)?;
        gauge(to, "process_virtual_memory_bytes", "Virtual memory", stat.vsize as f64)?;
        gauge(to, "process_threads", "Threads", stat.num_threads as f64)?;
        if let Ok(boot) = procfs::boot_time_secs() {
            let started = boot as f64 + stat.starttime as f64 / second;
            gauge(to, "process_start_time_seconds", "When it started, Unix time", started)?;
        }
    }
    if let Ok(open) = process.fd_count() {
        gauge(to, "process_open_fds", "Open descriptors", open as f64)?;
    }
    match process.limits().map(|limits| limits.max_open_files.soft_limit) {
        Ok(LimitValue::Value(most)) => gauge(to, "process_max_fds", "Most descriptors", most as f64),
        _ => Ok(()),
    }
}
