//! The usual `process_*` metrics, of this process.

use std::fmt;

use procfs::process::{LimitValue, Process};
use prometheus_client::encoding::DescriptorEncoder;

use super::exposition::{counter, gauge};

/// Writes what `/proc/self` tells; of what cannot be read, nothing.
pub fn encode(to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let Ok(process) = Process::myself() else { return Ok(()) };
    if let Ok(stat) = process.stat() {
        let second = procfs::ticks_per_second() as f64;
        let used = (stat.utime + stat.stime) as f64 / second;
        counter(to, "process_cpu_seconds", "Processor time used, user and system", used)?;
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
