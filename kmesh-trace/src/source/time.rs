//! Reading the clocks, and being told when somebody steps the wall clock.

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};

/// The monotonic clock, ns: what `bpf_ktime_get_ns` reads.
pub fn monotonic_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic)) as u64
}

/// Measures the wall clock less the monotonic one, ns.
///
/// The two cannot be read at one instant, so the wall clock is read between two readings of the other, several times, and
/// the closest pair counts: an error of some tens of nanoseconds.
pub fn measure_difference() -> i64 {
    let reading = || {
        let before = nanoseconds(clock_gettime(ClockId::Monotonic));
        let wall = nanoseconds(clock_gettime(ClockId::Realtime));
        let after = nanoseconds(clock_gettime(ClockId::Monotonic));
        (after - before, wall - (before + (after - before) / 2))
    };
    (0..16).map(|_| reading()).min().map_or(0, |(_, difference)| difference)
}

fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// A descriptor that becomes readable when the wall clock is stepped; [`rearm`] it then.
pub fn step_alarm() -> io::Result<OwnedFd> {
    let alarm = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    rearm(&alarm)?;
    Ok(alarm)
}

/// Waits for the next step. The time itself is of no interest, only that the kernel cancels the wait at a step; so it is
/// as late as can be.
pub fn rearm(alarm: &OwnedFd) -> io::Result<()> {
    let never = Timespec {
        tv_sec: i32::MAX.into(),
        tv_nsec: 0,
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    // The kernel reports a step between the last arming and this one as ECANCELED, and arms all the same.
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
    use crate::clock::Clock;

    /// The wall clock at the same moment lies between two readings. A second covers its adjustment, not time that passes.
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
