//! The thread that walks over the open sockets each interval and tells how they stand, off the draining path.
//!
//! Intervals are aligned to the wall clock, and a walk is made just before each ends: so what it tells belongs to that
//! interval, and a rollup's windows end with what was open then.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use crate::privileges;

use super::loader::{StartError, Walker};
use super::monotonic_ns;
use super::netns::OtherNamespaces;
use super::reader::{Control, Message};
use super::time::processor_time;

/// How long before the end of an interval a walk begins at least: some for the machine to wake up, some for the walk.
const AHEAD: Duration = Duration::from_millis(50);

/// The share of the update interval that socket scans may take of one processor: one part in so many, 5 %. What a scan takes
/// grows with the descriptors of all processes, so any of them could make it the node's main work.
const MAX_SHARE: u32 = 20;

/// The thread that scans, which waits for its task. It begins before the others give up the capabilities that only it keeps.
#[derive(Debug)]
pub struct Scanner(Sender<Scans>);

/// What a [`Scanner`] scans, when and for whom.
pub struct Scans {
    /// The programs in the kernel.
    pub walker: Walker,
    /// The time between scans.
    pub interval: Duration,
    /// Ends the thread.
    pub control: Arc<Control>,
    /// Get what the scans report.
    pub messages: SyncSender<Message>,
}

impl Scanner {
    /// Starts the thread.
    pub fn start() -> anyhow::Result<Self> {
        let (sender, receiver) = channel::<Scans>();
        let (started, start) = channel();
        thread::Builder::new()
            .name("kmesh-scan".to_owned())
            .spawn(move || {
                let kept = privileges::limit_to_scans();
                let is_limited = kept.is_ok();
                // The starting thread waits for it.
                _ = started.send(kept);
                if is_limited && let Ok(scans) = receiver.recv() {
                    run(scans.walker, scans.interval, &scans.control, &scans.messages);
                }
            })
            .context("cannot start a thread")?;
        start
            .recv()
            .context("the scanning thread died")?
            .context("cannot give up privileges")?;
        Ok(Self(sender))
    }

    /// Lets the thread scan.
    pub fn run(self, scans: Scans) {
        // The thread waits until this is dropped.
        _ = self.0.send(scans);
    }
}

/// Scans the sockets at the end of each `interval` until [`Control::stop`] or until nobody reads `messages`; less often if scans
/// take too long for that. A scan that comes too late delays the next one; none is made up for.
fn run(mut walker: Walker, interval: Duration, control: &Control, messages: &SyncSender<Message>) {
    let mut took = Duration::ZERO;
    let mut scan_interval = interval;
    let mut is_reported = false;
    // Without CAP_SYS_ADMIN there is only the tool's own.
    let mut namespaces = OtherNamespaces::new().ok();
    loop {
        // Where the last scan took long, the next one begins the earlier.
        let ahead = (AHEAD + took * 2).min(interval / 4);
        let now = wall_clock();
        thread::sleep(
            until_end(interval, now)
                .checked_sub(ahead)
                .unwrap_or_else(|| until_end(interval, now) + interval - ahead),
        );
        if control.stopped() {
            return;
        }
        let began = Instant::now();
        let now = wall_clock();
        if until_end(scan_interval, now) <= until_end(interval, now) {
            let used = processor_time();
            // What the ring tells of later than this waits for what the walk tells of.
            control.walk_began(monotonic_ns());
            let deadline = used.saturating_add(scan_interval / MAX_SHARE);
            let others = namespaces.as_mut().map(|namespaces| (namespaces, deadline));
            let scanned = scan(&mut walker, others, |bytes| {
                if messages.send(Message::Walked(bytes)).is_ok() {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            });
            if let Ok(Some(not_scanned)) = scanned {
                control.scanned_all_but(not_scanned);
            }
            control.walk_ended();
            if let Err(error) = scanned
                && messages.send(Message::WalkFailed(error.to_string())).is_err()
            {
                return;
            }
            let used = processor_time().saturating_sub(used);
            scan_interval = interval_for(interval, used);
            if scan_interval > interval && !std::mem::replace(&mut is_reported, true) {
                let message = Message::ScanIsSlow { used, scan_interval };
                if messages.send(message).is_err() {
                    return;
                }
            }
        }
        took = began.elapsed();
        if took < ahead {
            // The interval's end is told even where nothing else is.
            thread::sleep(until_end(interval, wall_clock()).min(ahead));
            control.interval_ended();
        }
    }
}

/// Returns the time between socket scans that use so much processor time each: the least multiple of `interval` of which that
/// is no more than one part in [`MAX_SHARE`]. Scans thus still come at the ends of intervals.
fn interval_for(interval: Duration, used: Duration) -> Duration {
    let least = used.as_nanos() * u128::from(MAX_SHARE);
    let multiple = least.div_ceil(interval.as_nanos().max(1)).max(1);
    interval.saturating_mul(u32::try_from(multiple).unwrap_or(u32::MAX))
}

fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The time from `now` until the present interval ends, by the wall clock.
fn until_end(interval: Duration, now: Duration) -> Duration {
    let passed = now.as_nanos() % interval.as_nanos().max(1);
    // A remainder is less than the interval, which fits.
    interval.saturating_sub(Duration::from_nanos(passed.try_into().unwrap_or(u64::MAX)))
}

/// Scans all open connections once: those with a descriptor, then the others of the tool's own network namespace, then those of
/// other namespaces, as far as the thread's processor time stays below a deadline. Skips what cannot find any more. Returns the
/// number of open connections that the scan did not reach, unless `take` ended it.
pub fn scan(
    walker: &mut Walker,
    others: Option<(&mut OtherNamespaces, Duration)>,
    mut take: impl FnMut(Vec<u8>) -> ControlFlow<()>,
) -> Result<Option<u64>, StartError> {
    walker.begin()?;
    if walker.scan_descriptors(&mut take)?.is_break() {
        return Ok(None);
    }
    if walker.lists_netns() {
        // Connections from before the tracer do not count as open until a scan has found them.
        let is_due = walker.is_first_scan() || walker.unvisited()? > 0;
        if is_due && walker.scan_netns(&mut take)?.is_break() {
            return Ok(None);
        }
        if let Some((namespaces, deadline)) = others
            && namespaces.scan(walker, deadline, &mut take)?.is_break()
        {
            return Ok(None);
        }
    }
    walker.unvisited().map(Some)
}

/// How the open connections stand, as in [`Message::Walked`].
pub fn standing(walker: &mut Walker) -> Result<Vec<u8>, StartError> {
    let mut all = Vec::new();
    scan(walker, None, |bytes| {
        all.extend_from_slice(&bytes);
        ControlFlow::Continue(())
    })?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scan_takes_at_most_five_percent_of_its_interval() {
        let ms = Duration::from_millis;
        // (interval, processor time of a scan, time between scans)
        let cases = [
            (ms(5000), ms(0), ms(5000)),
            (ms(5000), ms(250), ms(5000)),
            (ms(5000), ms(251), ms(10_000)),
            (ms(5000), ms(1250), ms(25_000)),
            (ms(2000), ms(900), ms(18_000)),
            (ms(100), ms(5), ms(100)),
            (ms(100), ms(14), ms(300)),
            (Duration::MAX, ms(900), Duration::MAX),
            (ms(100), Duration::MAX, ms(100) * u32::MAX),
        ];
        for (interval, used, expected) in cases {
            assert_eq!(interval_for(interval, used), expected, "{interval:?}, {used:?}");
        }
    }

    #[test]
    fn longer_interval_ends_with_a_short_one() {
        let short = Duration::from_secs(5);
        let due: Vec<_> = (0..40)
            .filter(|second| {
                let now = Duration::from_millis(second * 1000 + 950);
                until_end(short * 4, now) <= until_end(short, now)
            })
            .collect();
        assert_eq!(due, [15, 16, 17, 18, 19, 35, 36, 37, 38, 39]);
    }
}
