//! The thread that drains the kernel's ring into a bounded queue.
//!
//! If the queue is full, records stay in the ring; if the ring is full too, the kernel counts each record as lost. So
//! all buffers are used before a record is lost, and only the kernel counts losses.
//!
//! The ring wakes this thread only for the first record after the thread has read all earlier ones. While records come,
//! the thread polls the ring by a timer instead, and so reads many records at each poll. On a quiet node it polls every
//! `IDLE`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use kmesh_trace_common::Counters;

use super::loader::Programs;
use super::message::{Message, Progress};
use crate::clocks::{measure_difference, monotonic_ns, rearm, step_alarm};
use crate::record::Counts;

/// The time between polls of the ring while records come: too short to notice, but long enough that each wake-up brings
/// many records.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The time between polls of the counters while no records come. A loss may leave no record in the ring.
const IDLE: Duration = Duration::from_secs(5);
/// The time between polls of the counters while records come.
const ACTIVE: Duration = Duration::from_secs(1);
/// The maximum time to wait at the end for submitted records. The wait is long only if a CPU stands still.
const LAST_RECORDS_TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum time to wait at the stop for the last scan.
const FINAL_SCAN_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum number of times that the counters are read until they agree.
const MAX_COUNTER_READS: usize = 1000;
/// The number of bytes of records that fill one message.
const BATCH_BYTES: usize = 64 << 10;
/// The capacity of the queue in messages: 4 MiB of records.
pub const QUEUE_CAPACITY: usize = 64;

/// The requests of other threads to the reader.
#[derive(Debug)]
pub struct Control {
    wake: OwnedFd,
    stop: AtomicBool,
    summary_requested: AtomicBool,
    /// CLOCK_MONOTONIC, ns; 0 while no scan runs.
    scan_began_ns: AtomicU64,
    /// Whether an interval, or a scan, ended whose events have still to settle.
    interval_ended: AtomicBool,
    /// The number of open connections that the last scan did not visit; [`NO_SCAN`] before the first one ends.
    not_scanned: AtomicU64,
    /// Whether the scanner will scan once more at the stop.
    awaits_final_scan: AtomicBool,
    /// With `stop_signal`, wakes the scanner at the stop.
    stop_lock: Mutex<()>,
    stop_signal: Condvar,
}

const NO_SCAN: u64 = u64::MAX;

/// The maximum time that the writer waits for a part of a socket scan. A process can hold the lock of its socket for as
/// long as it likes, and a scan waits for the lock. Updates that come later are left out.
const MAX_SCAN_HOLD_NS: u64 = 2_000_000_000;

impl Control {
    pub fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            wake,
            stop: AtomicBool::new(false),
            summary_requested: AtomicBool::new(false),
            scan_began_ns: AtomicU64::new(0),
            interval_ended: AtomicBool::new(false),
            not_scanned: AtomicU64::new(NO_SCAN),
            awaits_final_scan: AtomicBool::new(false),
            stop_lock: Mutex::new(()),
            stop_signal: Condvar::new(),
        })
    }

    /// Makes the scanner scan once more if it does so at the stop, and the reader detach the programs, send the records
    /// that the kernel has, and end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        drop(self.lock_stop());
        self.stop_signal.notify_all();
        self.wake();
    }

    /// Waits until [`Self::stop`] is called, but not longer than `timeout`.
    pub(super) fn wait_for_stop(&self, timeout: Duration) {
        let wait = self
            .stop_signal
            .wait_timeout_while(self.lock_stop(), timeout, |()| !self.is_stopped());
        drop(wait);
    }

    fn lock_stop(&self) -> MutexGuard<'_, ()> {
        self.stop_lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets whether the reader waits for a scan at the stop before it ends.
    pub(super) fn set_awaits_final_scan(&self, awaits: bool) {
        self.awaits_final_scan.store(awaits, Ordering::Release);
        self.wake();
    }

    /// Makes the reader send [`Message::SummaryRequested`].
    pub fn request_summary(&self) {
        self.summary_requested.store(true, Ordering::Release);
        self.wake();
    }

    /// Reports that a scan, or a part of one, begins. Its records are later than `now_ns`, and those of the parts
    /// before are in the queue.
    pub(super) fn scan_began(&self, now_ns: u64) {
        self.scan_began_ns.store(now_ns, Ordering::Release);
    }

    /// Reports that the scan has found connections. From now until it ends, the reader reports its progress, so that
    /// the writer can emit what the scan has found so far.
    pub(super) fn scan_found_connections(&self) {
        self.wake();
    }

    /// Reports that all records of the scan are in the queue.
    pub(super) fn scan_ended(&self) {
        self.scan_began_ns.store(0, Ordering::Release);
        self.interval_ended();
    }

    /// Sets the number of open connections that the last scan did not visit.
    pub(super) fn set_not_scanned(&self, not_scanned: u64) {
        self.not_scanned.store(not_scanned, Ordering::Release);
    }

    /// Makes the reader report its progress, even if there are no records.
    pub(super) fn interval_ended(&self) {
        self.interval_ended.store(true, Ordering::Release);
        self.wake();
    }

    fn current_scan_began_ns(&self) -> Option<u64> {
        let began_ns = self.scan_began_ns.load(Ordering::Acquire);
        let is_current = began_ns != 0 && monotonic_ns().saturating_sub(began_ns) < MAX_SCAN_HOLD_NS;
        is_current.then_some(began_ns)
    }

    fn not_scanned(&self) -> Option<u64> {
        Some(self.not_scanned.load(Ordering::Acquire)).filter(|&not_scanned| not_scanned != NO_SCAN)
    }

    fn wake(&self) {
        // This fails only if the counter would overflow, and then the reader is awake.
        _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Returns whether [`Self::stop`] was called.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// The reader's end of the queue.
#[derive(Debug)]
pub struct Queue {
    pub messages: SyncSender<Message>,
    /// Empty buffers that the writer returns.
    pub spare: Receiver<Vec<u8>>,
}

/// The writer has ended, so no thread reads the queue.
struct QueueClosed;

pub struct Reader {
    programs: Programs,
    control: Arc<Control>,
    queue: Queue,
    /// Standard output, to notice that its reader closed it.
    output: Option<OwnedFd>,
    /// A descriptor that reports steps of the wall clock.
    step_alarm: Option<OwnedFd>,
    batch: Vec<u8>,
    /// The number of records taken from the ring.
    taken: u64,
    /// The number of losses in the last [`Message::Lost`].
    lost: u64,
    /// The time (CLOCK_MONOTONIC, ns) until which the reader waits for the scan at the stop. `None` before the stop.
    final_scan_deadline_ns: Option<u64>,
    is_detached: bool,
}

/// The time when the records sent so far settle, until the writer knows that this time has passed.
#[derive(Debug, Default)]
struct Unsettled {
    until_ns: Option<u64>,
}

impl Unsettled {
    fn is_pending(&self) -> bool {
        self.until_ns.is_some()
    }

    /// All records sent so far settle at `until_ns`.
    fn set(&mut self, until_ns: u64) {
        self.until_ns = Some(until_ns);
    }

    /// The writer has the progress of a poll of the ring at `now_ns`. Only such a poll settles records, not the passing
    /// of time.
    fn polled(&mut self, now_ns: u64) {
        self.until_ns = self.until_ns.filter(|&until_ns| now_ns < until_ns);
    }
}

impl Reader {
    /// Creates the reader. `output`: standard output, if the tool writes to it.
    pub fn new(programs: Programs, control: Arc<Control>, queue: Queue, output: Option<OwnedFd>) -> Self {
        // Without the alarm, steps of the wall clock go unnoticed.
        let step_alarm = step_alarm().ok();
        Self {
            programs,
            control,
            queue,
            output,
            step_alarm,
            batch: Vec::new(),
            taken: 0,
            lost: 0,
            final_scan_deadline_ns: None,
            is_detached: false,
        }
    }

    /// Runs until [`Control::stop`], or until the writer ends. A record settles `settle_ns` after its event.
    pub fn run(mut self, settle_ns: u64) {
        // The writer that closed the queue reports the error.
        if self.read(settle_ns).is_ok() {
            _ = self.finish();
        }
    }

    fn read(&mut self, settle_ns: u64) -> Result<(), QueueClosed> {
        let mut unsettled = Unsettled::default();
        let mut counted_ns = monotonic_ns();
        let mut is_active = true;
        while self.is_running() {
            let is_settling = unsettled.is_pending() || self.control.current_scan_began_ns().is_some();
            if is_settling || self.control.is_stopped() {
                self.wait(false, POLL_INTERVAL)?;
            } else {
                let is_counting = is_active || self.programs.rejects.is_some();
                self.wait(true, if is_counting { ACTIVE } else { IDLE })?;
            }
            if self.control.summary_requested.swap(false, Ordering::AcqRel) {
                let counts = self.counts();
                self.send(Message::SummaryRequested(counts))?;
            }
            let now_ns = monotonic_ns();
            let before = self.taken;
            self.drain(now_ns, is_settling)?;
            unsettled.polled(now_ns);
            // The writer can settle a scan only by a poll of the ring after the scan.
            let interval_ended = self.control.interval_ended.swap(false, Ordering::AcqRel);
            if interval_ended {
                let counts = self.counts();
                self.send(Message::IntervalEnded(counts))?;
            }
            if self.taken != before || interval_ended {
                unsettled.set(now_ns + settle_ns + POLL_INTERVAL.as_nanos() as u64);
                is_active = true;
            }
            let count_interval = if is_active || self.programs.rejects.is_some() {
                ACTIVE
            } else {
                IDLE
            };
            if now_ns.saturating_sub(counted_ns) >= count_interval.as_nanos() as u64 {
                counted_ns = now_ns;
                is_active = self.taken != before;
                self.report_losses()?;
                self.report_rejects()?;
            }
        }
        Ok(())
    }

    /// Returns whether the run goes on: it was not stopped, or the scan at the stop has still to end.
    fn is_running(&mut self) -> bool {
        if !self.control.is_stopped() {
            return true;
        }
        let now_ns = monotonic_ns();
        let timeout_ns = FINAL_SCAN_TIMEOUT.as_nanos() as u64;
        let deadline_ns = *self.final_scan_deadline_ns.get_or_insert(now_ns + timeout_ns);
        self.control.awaits_final_scan.load(Ordering::Acquire) && now_ns < deadline_ns
    }

    /// Detaches the programs, and sends the records that the kernel has.
    fn finish(&mut self) -> Result<(), QueueClosed> {
        self.detach();
        let deadline = monotonic_ns() + LAST_RECORDS_TIMEOUT.as_nanos() as u64;
        loop {
            let counters = self.programs.counters().unwrap_or_default();
            self.drain(monotonic_ns(), false)?;
            // A record that a program has not completed yet hides those behind it.
            let submitted = counters.submitted + counters.opens + counters.resets;
            if self.taken >= submitted || monotonic_ns() > deadline {
                break;
            }
            std::thread::yield_now();
        }
        self.report_rejects()?;
        let counts = self.counts();
        self.send(Message::Ended(counts))
    }

    fn detach(&mut self) {
        if !self.is_detached {
            self.is_detached = true;
            self.programs.detach();
        }
    }

    /// Waits for a request, or for records if `for_records`; at most for `timeout`. Reports a step of the wall clock
    /// and a closed output.
    fn wait(&mut self, for_records: bool, timeout: Duration) -> Result<(), QueueClosed> {
        let nothing = || PollFlags::empty();
        let ring = self.programs.ring_fd();
        let control = self.control.wake.as_fd();
        let mut fds = [
            PollFd::from_borrowed_fd(control, PollFlags::IN),
            PollFd::from_borrowed_fd(ring, if for_records { PollFlags::IN } else { nothing() }),
            PollFd::from_borrowed_fd(
                self.step_alarm.as_ref().map_or(control, AsFd::as_fd),
                if self.step_alarm.is_some() {
                    PollFlags::IN
                } else {
                    nothing()
                },
            ),
            // poll() always reports that the other end is closed.
            PollFd::from_borrowed_fd(self.output.as_ref().map_or(control, AsFd::as_fd), nothing()),
        ];
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // After an error, such as EINTR, the next poll finds what this one missed.
        if poll(&mut fds, Some(&timeout)).unwrap_or(0) == 0 {
            return Ok(());
        }
        let [control, _, alarm, output] = fds.map(|fd| fd.revents());
        if control.contains(PollFlags::IN) {
            _ = rustix::io::read(&self.control.wake, &mut [0_u8; 8]);
        }
        if alarm.contains(PollFlags::IN)
            && let Some(alarm) = &self.step_alarm
        {
            _ = rearm(alarm);
            let message = Message::ClockStepped {
                since_ns: monotonic_ns(),
                difference_ns: measure_difference(),
            };
            self.send(message)?;
        }
        if self.output.is_some() && output.intersects(PollFlags::ERR | PollFlags::HUP) {
            self.output = None;
            self.send(Message::OutputClosed)?;
        }
        Ok(())
    }

    /// Sends all records of the ring. `even_if_empty`: also reports the progress of an empty ring, because sent records
    /// or those of a scan have still to settle.
    fn drain(&mut self, now_ns: u64, even_if_empty: bool) -> Result<(), QueueClosed> {
        loop {
            let (batch, taken) = (&mut self.batch, &mut self.taken);
            let is_empty = self.programs.drain(|record| {
                *taken += 1;
                batch.extend_from_slice(&(record.len() as u64).to_ne_bytes());
                batch.extend_from_slice(record);
                batch.len() < BATCH_BYTES
            });
            if self.batch.is_empty() && !even_if_empty {
                return Ok(());
            }
            let spare = self.queue.spare.try_recv().unwrap_or_default();
            let bytes = std::mem::replace(&mut self.batch, spare);
            let progress = Progress {
                ring_empty_ns: is_empty.then_some(now_ns),
                scan_began_ns: self.control.current_scan_began_ns(),
            };
            self.send(Message::Records { bytes, progress })?;
            if is_empty {
                return Ok(());
            }
        }
    }

    fn report_rejects(&mut self) -> Result<(), QueueClosed> {
        let Some(rejects) = &mut self.programs.rejects else {
            return Ok(());
        };
        // What cannot be read now is read the next time.
        let counts = match self.is_detached {
            true => rejects.take_all(),
            false => rejects.take(),
        };
        let counts = counts.unwrap_or_default();
        if counts.is_empty() {
            return Ok(());
        }
        self.send(Message::Rejects(counts))
    }

    fn report_losses(&mut self) -> Result<(), QueueClosed> {
        let counts = self.counts();
        let lost = counts.ring_full + counts.no_storage + counts.skipped + counts.lost_opens;
        if lost != self.lost {
            self.lost = lost;
            self.send(Message::Lost(counts))?;
        }
        Ok(())
    }

    fn counts(&self) -> Counts {
        let counters = self.consistent_counters();
        let open = counters.open.try_into().unwrap_or(0);
        Counts {
            at_ns: monotonic_ns(),
            closes: counters.closes,
            submitted: counters.submitted,
            filtered: counters.filtered,
            lost_opens: counters.lost_opens,
            ring_full: counters.lost_ring,
            no_storage: counters.lost_storage,
            skipped: counters.lost_skipped,
            skipped_at_most: self.programs.closes_skipped(&counters),
            open,
            // Some of these connections may have ended since the scan.
            not_scanned: self.control.not_scanned().map(|not_scanned| not_scanned.min(open)),
        }
    }

    /// Returns the counters. Each close changes several of them, not at the same instant, so they are read until they
    /// agree.
    fn consistent_counters(&self) -> Counters {
        let read = || self.programs.counters().unwrap_or_default();
        let agree = |counters: &Counters| {
            let parts = [
                counters.submitted,
                counters.lost_ring,
                counters.lost_storage,
                counters.lost_skipped,
                counters.filtered,
            ];
            counters.closes == parts.iter().sum::<u64>()
        };
        (0..MAX_COUNTER_READS).map(|_| read()).find(agree).unwrap_or_else(read)
    }

    /// Sends a message. Waits while the queue is full; meanwhile records stay in the ring.
    fn send(&mut self, mut message: Message) -> Result<(), QueueClosed> {
        loop {
            message = match self.queue.messages.try_send(message) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(QueueClosed),
                Err(TrySendError::Full(message)) => message,
            };
            if self.control.is_stopped() {
                self.detach();
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_poll_settles_records() {
        let mut unsettled = Unsettled::default();
        assert!(!unsettled.is_pending());
        unsettled.set(150);
        unsettled.polled(149);
        assert!(unsettled.is_pending());
        unsettled.polled(90_000);
        assert!(!unsettled.is_pending());
    }
}
