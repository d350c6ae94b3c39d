//! The thread that walks over the open sockets each interval and tells how they stand, off the draining path.
//!
//! Intervals are aligned to the wall clock, and a walk is made just before each ends: so what it tells belongs to that
//! interval, and a rollup's windows end with what was open then.

use std::ops::ControlFlow;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::kernel::{StartError, Walker};
use super::monotonic_ns;
use super::reader::{Control, Message};

/// How long before the end of an interval a walk begins at least: some for the machine to wake up, some for the walk.
const AHEAD: Duration = Duration::from_millis(50);

/// Walks in every `interval` until [`Control::stop`] or until nobody reads `messages`. A walk that comes too late puts off
/// the next one; none is made up for.
pub fn run(mut walker: Walker, interval: Duration, control: &Control, messages: &SyncSender<Message>) {
    let mut took = Duration::ZERO;
    loop {
        // Where the last walk took long, the next one begins the earlier.
        let ahead = (AHEAD + took * 2).min(interval / 4);
        thread::sleep(
            until_end(interval)
                .checked_sub(ahead)
                .unwrap_or_else(|| until_end(interval) + interval - ahead),
        );
        if control.stopped() {
            return;
        }
        let began = Instant::now();
        // What the ring tells of later than this waits for what the walk tells of.
        control.walk_began(monotonic_ns());
        let walked = walk(&mut walker, messages);
        control.walk_ended();
        if let Err(error) = walked
            && messages.send(Message::WalkFailed(error.to_string())).is_err()
        {
            return;
        }
        took = began.elapsed();
        if took < ahead {
            // The interval's end is told even where nothing else is.
            thread::sleep(until_end(interval).min(ahead));
            control.interval_ended();
        }
    }
}

/// Until the present interval is over, by the wall clock.
fn until_end(interval: Duration) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let passed = now.as_nanos() % interval.as_nanos().max(1);
    // A remainder is less than the interval, which fits.
    interval.saturating_sub(Duration::from_nanos(passed.try_into().unwrap_or(u64::MAX)))
}

fn walk(walker: &mut Walker, messages: &SyncSender<Message>) -> Result<(), StartError> {
    walker.walk(|bytes| {
        if messages.send(Message::Walked(bytes)).is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })
}

/// How the open connections stand, as in [`Message::Walked`].
pub fn standing(walker: &mut Walker) -> Result<Vec<u8>, StartError> {
    let mut all = Vec::new();
    walker.walk(|bytes| {
        all.extend_from_slice(&bytes);
        ControlFlow::Continue(())
    })?;
    Ok(all)
}
