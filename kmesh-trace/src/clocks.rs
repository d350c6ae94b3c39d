//! Reads the clocks, and reports steps of the wall clock.
//!
//! In a time namespace (Linux 5.6), this process sees the monotonic and the boot-time clock with an offset. The times
//! of the kernel, and so those that eBPF programs write, have no offset. Only this file knows the difference.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::LazyLock;
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_getres, clock_gettime,
    timerfd_create, timerfd_settime,
};

/// The file with the clock offsets of the time namespace of this process's children.
const OFFSETS: &str = "/proc/self/timens_offsets";

/// The offset of the monotonic clock in this process's time namespace, ns. It is constant: a process stays in its
/// namespace, and the kernel does not change the offsets of a namespace that has a process.
static MONOTONIC_OFFSET_NS: LazyLock<i64> = LazyLock::new(|| {
    let namespace = |name: &str| fs::metadata(format!("/proc/self/ns/{name}")).map(|metadata| metadata.ino());
    match (namespace("time"), namespace("time_for_children")) {
        (Ok(own), Ok(of_children)) if own == of_children => {
            monotonic_offset_ns(&fs::read_to_string(OFFSETS).unwrap_or_default())
        }
        // The children are in another namespace, so their offsets do not apply to this process.
        _ => 0,
    }
});

/// Parses the offset of the monotonic clock from a line `monotonic SECONDS NANOSECONDS`. Returns 0 without such a line.
fn monotonic_offset_ns(offsets: &str) -> i64 {
    let offset = |line: &str| {
        let mut words = line.split_whitespace();
        if words.next()? != "monotonic" {
            return None;
        }
        let (seconds, nanoseconds) = (words.next()?.parse::<i64>().ok()?, words.next()?.parse::<i64>().ok()?);
        seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
    };
    offsets.lines().find_map(offset).unwrap_or(0)
}

/// Returns the processor time of the calling thread so far. Unlike elapsed time, it does not depend on the load of the
/// machine.
pub fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Returns the length of a tick of the kernel's timers (a jiffy), ns. It is the resolution of the coarse clocks.
pub fn tick_ns() -> u32 {
    let resolution = clock_getres(ClockId::MonotonicCoarse);
    u32::try_from(nanoseconds(resolution)).unwrap_or(0)
}

/// Returns the kernel's monotonic clock, ns, as `bpf_ktime_get_ns` reads it.
pub fn monotonic_ns() -> u64 {
    kernel_monotonic_ns() as u64
}

fn kernel_monotonic_ns() -> i64 {
    nanoseconds(clock_gettime(ClockId::Monotonic)) - *MONOTONIC_OFFSET_NS
}

/// Converts a time of the boot-time clock, as /proc shows it to this process, to the kernel's monotonic clock, ns.
pub fn monotonic_of_boot_time(boot_time_ns: u64) -> u64 {
    // The boot-time clock also counts while the machine is suspended, and may have an offset of its own.
    let age = nanoseconds(clock_gettime(ClockId::Boottime)).saturating_sub_unsigned(boot_time_ns);
    kernel_monotonic_ns().saturating_sub(age).max(0) as u64
}

/// Returns the wall clock minus the kernel's monotonic clock, ns.
///
/// The two clocks cannot be read at the same instant. So this function reads the wall clock between two readings of the
/// monotonic clock, several times, and uses the closest pair. The error is some tens of nanoseconds.
pub fn measure_difference() -> i64 {
    let reading = || {
        let before = kernel_monotonic_ns();
        let wall = nanoseconds(clock_gettime(ClockId::Realtime));
        let after = kernel_monotonic_ns();
        (after - before, wall - (before + (after - before) / 2))
    };
    (0..16).map(|_| reading()).min().map_or(0, |(_, difference)| difference)
}

fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Returns a descriptor that becomes readable when the wall clock is stepped. Call [`rearm`] then.
pub fn step_alarm() -> io::Result<OwnedFd> {
    let alarm = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    rearm(&alarm)?;
    Ok(alarm)
}

/// Arms the descriptor for the next step. The kernel cancels the timer at a step, so its time is as late as possible.
pub fn rearm(alarm: &OwnedFd) -> io::Result<()> {
    let never = Timespec {
        tv_sec: i32::MAX.into(),
        tv_nsec: 0,
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    // ECANCELED reports a step between the last arming and this one. The kernel arms the timer anyway.
    match timerfd_settime(
        alarm,
        flags,
        &Itimerspec {
            it_interval: Timespec::default(),
            it_value: never,
        },
    ) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::CANCELED) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::track::clock::Clock;

    #[test]
    fn offset_of_time_namespace_is_parsed() {
        let cases = [
            (
                "monotonic      86400         0\nboottime           7         0\n",
                86_400_000_000_000,
            ),
            (
                "monotonic       -600         0\nboottime           0         0\n",
                -600_000_000_000,
            ),
            (
                "boottime           7         0\nmonotonic         -1 500000000\n",
                -500_000_000,
            ),
            ("monotonic          x         0\n", 0),
            ("", 0),
        ];
        for (text, expected) in cases {
            assert_eq!(monotonic_offset_ns(text), expected, "{text}");
        }
    }

    #[test]
    fn current_boot_time_converts_to_current_monotonic_time() {
        let before = monotonic_ns();
        let now = monotonic_of_boot_time(nanoseconds(clock_gettime(ClockId::Boottime)) as u64);
        // The two clocks are not read at the same instant: allow a millisecond.
        assert!(
            before.saturating_sub(1_000_000) <= now && now <= monotonic_ns(),
            "{before} {now}"
        );
    }

    /// The converted time lies between two readings of the wall clock. The tolerance is for adjustments of the wall
    /// clock.
    #[test]
    fn measured_difference_converts_monotonic_time_to_wall_time() {
        const TOLERANCE_NS: i64 = 1_000_000_000;
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64;
        let clock = Clock::new(measure_difference());
        let before = now();
        let wall = clock.wall(monotonic_ns()).0;
        let after = now();
        assert!(
            before - TOLERANCE_NS <= wall && wall <= after + TOLERANCE_NS,
            "{wall} is not between {before} and {after}"
        );
    }
}
