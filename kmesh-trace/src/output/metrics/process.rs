//! The standard `process_*` metrics of this process.

use std::fs;
use std::io;
use std::sync::LazyLock;

use prometheus_client::encoding::DescriptorEncoder;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::encode::{counter, gauge};

/// The start of this process in Unix seconds. It is read once, because `/proc/stat` grows with the processors and the
/// interrupts of the node.
static START_TIME: LazyLock<Option<f64>> = LazyLock::new(|| {
    let kernel = fs::read_to_string("/proc/stat").ok()?;
    let since_boot = Stat::read()?.start_ticks as f64 / clock_ticks_per_second() as f64;
    Some(boot_time(&kernel)? as f64 + since_boot)
});

/// Writes the metrics. Leaves out each one that cannot be read.
pub fn encode(to: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
    // `/proc/self/stat` counts processor time in ticks of 10 ms, and the tracer of a quiet node takes minutes to use
    // one.
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let used = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
    counter(to, "process_cpu_seconds", "Processor time used, user and system", used)?;
    if let Some(stat) = Stat::read() {
        let resident = stat.resident_pages.saturating_mul(page_size() as u64);
        gauge(to, "process_resident_memory_bytes", "Resident memory", resident as f64)?;
        gauge(
            to,
            "process_virtual_memory_bytes",
            "Virtual memory",
            stat.virtual_bytes as f64,
        )?;
        gauge(to, "process_threads", "Threads", stat.threads as f64)?;
    }
    if let Some(started) = *START_TIME {
        gauge(to, "process_start_time_seconds", "Start time, Unix seconds", started)?;
    }
    if let Ok(open) = open_descriptors() {
        gauge(to, "process_open_fds", "Open descriptors", open as f64)?;
    }
    match getrlimit(Resource::Nofile).current {
        Some(limit) => gauge(to, "process_max_fds", "Limit of open descriptors", limit as f64),
        None => Ok(()),
    }
}

/// The fields of `/proc/self/stat` that the metrics use.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&String::from_utf8_lossy(&fs::read("/proc/self/stat").ok()?))
    }

    /// Parses the fields by their numbers in proc_pid_stat(5).
    fn parse(text: &str) -> Option<Self> {
        // Field 2 is the command's name in parentheses. The name may contain spaces and parentheses itself.
        let (_, from_field_3) = text.rsplit_once(')')?;
        let fields: Vec<&str> = from_field_3.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse().ok();
        Some(Self {
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// Finds the time of boot in `/proc/stat`, in Unix seconds.
fn boot_time(kernel_stat: &str) -> Option<u64> {
    let seconds = kernel_stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    seconds.trim().parse().ok()
}

/// Counts the open descriptors, without the one that reads them.
fn open_descriptors() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/fd")?.count().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_fields_are_counted_after_the_command_name() {
        let line = "2871 (a b) S 1) R 1 2871 2871 34816 2871 4194304 95 0 0 0 3 2 0 0 20 0 7 0 36402 3133440 449 \
                    18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0\n";
        let expected = Stat {
            threads: 7,
            start_ticks: 36402,
            virtual_bytes: 3_133_440,
            resident_pages: 449,
        };
        assert_eq!(Stat::parse(line), Some(expected));
        for broken in ["", "2871 (sh) R 1 2871", "2871 (sh"] {
            assert_eq!(Stat::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn boot_time_is_in_a_line_of_its_own() {
        let kernel = "cpu  1 2 3\nintr 5 0\nctxt 7\nbtime 1726301966\nprocesses 9\n";
        assert_eq!(boot_time(kernel), Some(1_726_301_966));
        assert_eq!(boot_time("cpu  1 2 3\n"), None);
    }

    #[test]
    fn this_process_started_between_boot_and_now() {
        let boot = boot_time(&fs::read_to_string("/proc/stat").unwrap()).unwrap() as f64;
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        let started = START_TIME.unwrap();
        // The time of boot is rounded to seconds.
        assert!(boot <= started && started <= now + 1.0, "{boot} {started} {now}");
    }
}
