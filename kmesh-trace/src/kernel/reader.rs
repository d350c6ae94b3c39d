//! The thread that drains the kernel's ring into a bounded queue, and does nothing else: it waits for nobody.
//!
//! When the queue is full, records stay on the ring; when the ring is full too, the kernel counts each one lost. So all
//! buffers are used before anything is lost, and there is one place that counts losses.
//!
//! The ring wakes this thread only for the first record after it has read all before. While records come, it looks by
//! the clock instead, and so takes many at each look; a quiet node costs no look but the one every [`IDLE`].

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use kmesh_trace_common::Counters;

use crate::record::Counts;

use crate::names::update::SourceUpdate;

use super::loader::Kernel;
use super::time::{measure_difference, monotonic_ns, rearm, step_alarm};

/// Between looks at the ring while records come. Short enough to be felt by nobody, long enough to make a wake-up rare
/// beside the records it brings.
const TICK: Duration = Duration::from_millis(5);
/// Between looks at the counters when nothing comes: a loss may leave nothing on the ring.
const IDLE: Duration = Duration::from_secs(5);
/// Between looks at the counters while records come.
const COUNTING: Duration = Duration::from_secs(1);
/// How long the end waits for records that the counters promise. It is over at once unless a CPU stands still.
const LAST_RECORDS: Duration = Duration::from_secs(2);
/// How often the counters are read in the hope that they agree.
const READS: usize = 1000;
/// Bytes of records in one message.
const BATCH: usize = 64 << 10;
/// Messages in the queue: 4 MiB of records.
pub const QUEUE: usize = 64;

/// What the reader tells, in order.
#[derive(Debug)]
pub enum Message {
    /// Records from the ring, each behind its length in bytes (u64).
    Records {
        /// See [`records`].
        bytes: Vec<u8>,
        /// How far the telling has come.
        complete: Complete,
    },
    /// Records from a walk, likewise. How far they go is told by what follows from the ring.
    Walked(Vec<u8>),
    /// A walk came to no end.
    WalkFailed(String),
    /// Socket scans are made less often than the update interval says: one takes too long. Sent once.
    ScanIsSlow {
        /// The processor time that the scan used.
        used: Duration,
        /// The time between scans from now on.
        scan_interval: Duration,
    },
    /// The wall clock was stepped: from `since_ns` (CLOCK_MONOTONIC) on, it is `difference_ns` ahead of the monotonic one.
    ClockStepped {
        /// CLOCK_MONOTONIC, ns.
        since_ns: u64,
        /// ns.
        difference_ns: i64,
    },
    /// A source of names tells.
    Names(Vec<SourceUpdate>),
    /// More was lost.
    Lost(Counts),
    /// What was counted by the end of a walk.
    Counted(Counts),
    /// [`Control::summarize`] was called.
    Asked(Counts),
    /// The program that reads standard output has gone.
    OutputClosed,
    /// [`Control::stop`] was called, and these are the last counts; nothing follows.
    Ended(Counts),
}

/// Until when (CLOCK_MONOTONIC, ns) all that happened has been told, but for what a CPU was still writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complete {
    /// When the ring was last seen empty; none while it is not, and then its records go as far as the latest of them.
    pub ring_empty_ns: Option<u64>,
    /// Since when a walk has been under way, of which more is to come.
    pub walk_began_ns: Option<u64>,
}

/// The records of a [`Message::Records`].
pub fn records(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk()?;
        let (record, rest) = rest.split_at_checked(u64::from_ne_bytes(*length) as usize)?;
        bytes = rest;
        Some(record)
    })
}

/// What the rest of the program asks of the reader, from any thread.
#[derive(Debug)]
pub struct Control {
    wake: OwnedFd,
    stop: AtomicBool,
    summarize: AtomicBool,
    /// CLOCK_MONOTONIC, ns; 0 when no walk is under way.
    walk_began_ns: AtomicU64,
    /// A walk or an interval has ended, and what was told until then has still to settle.
    walked: AtomicBool,
    /// How many open connections the last scan did not reach; [`NO_SCAN`] before the first one.
    not_scanned: AtomicU64,
}

/// No scan has come to its end yet.
const NO_SCAN: u64 = u64::MAX;

impl Control {
    /// Nothing is asked yet.
    pub fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            wake,
            stop: AtomicBool::new(false),
            summarize: AtomicBool::new(false),
            walk_began_ns: AtomicU64::new(0),
            walked: AtomicBool::new(false),
            not_scanned: AtomicU64::new(NO_SCAN),
        })
    }

    /// Detach, tell what the kernel has recorded until then, and end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Tell the counts so far.
    pub fn summarize(&self) {
        self.summarize.store(true, Ordering::Release);
        self.wake();
    }

    /// A walk tells of nothing before `now_ns`.
    pub(super) fn walk_began(&self, now_ns: u64) {
        self.walk_began_ns.store(now_ns, Ordering::Release);
    }

    /// All that the walk had to tell is in the queue.
    pub(super) fn walk_ended(&self) {
        self.walk_began_ns.store(0, Ordering::Release);
        self.interval_ended();
    }

    /// A scan has come to its end, and did not reach so many of the open connections.
    pub(super) fn scanned_all_but(&self, not_scanned: u64) {
        self.not_scanned.store(not_scanned, Ordering::Release);
    }

    /// What happened until now is to be told even if it is nothing.
    pub(super) fn interval_ended(&self) {
        self.walked.store(true, Ordering::Release);
        self.wake();
    }

    fn walk_under_way(&self) -> Option<u64> {
        Some(self.walk_began_ns.load(Ordering::Acquire)).filter(|&began_ns| began_ns != 0)
    }

    fn not_scanned(&self) -> Option<u64> {
        Some(self.not_scanned.load(Ordering::Acquire)).filter(|&not_scanned| not_scanned != NO_SCAN)
    }

    fn wake(&self) {
        // It fails only if it would overflow, and then the reader is being woken already.
        _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Whether [`Self::stop`] was called.
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// The reader's side of the queue.
#[derive(Debug)]
pub struct Queue {
    /// To the rest.
    pub messages: SyncSender<Message>,
    /// Buffers that come back empty.
    pub spare: Receiver<Vec<u8>>,
}

/// Nobody reads the queue any more.
struct Abandoned;

/// The thread's state.
pub struct Reader {
    kernel: Kernel,
    control: Arc<Control>,
    queue: Queue,
    /// Told of when its reader goes.
    output: Option<OwnedFd>,
    step_alarm: Option<OwnedFd>,
    batch: Vec<u8>,
    /// Records taken from the ring.
    taken: u64,
    /// The losses last told.
    lost: u64,
    detached: bool,
}

/// Whether records were taken that the writer cannot know to be settled.
#[derive(Debug, Default)]
struct Unsettled {
    until_ns: Option<u64>,
}

impl Unsettled {
    fn any(&self) -> bool {
        self.until_ns.is_some()
    }

    /// Records were taken that will all be settled at `until_ns`.
    fn took(&mut self, until_ns: u64) {
        self.until_ns = Some(until_ns);
    }

    /// The writer was told of a look at the ring. That it has become late does not settle anything: only such a look does.
    fn looked(&mut self, now_ns: u64) {
        self.until_ns = self.until_ns.filter(|&until_ns| now_ns < until_ns);
    }
}

impl Reader {
    /// `output`: standard output, if the program writes to it.
    pub fn new(kernel: Kernel, control: Arc<Control>, queue: Queue, output: Option<OwnedFd>) -> Self {
        // Without an alarm the wall clock is taken to run evenly.
        let step_alarm = step_alarm().ok();
        Self {
            kernel,
            control,
            queue,
            output,
            step_alarm,
            batch: Vec::new(),
            taken: 0,
            lost: 0,
            detached: false,
        }
    }

    /// Runs until [`Control::stop`], or until nobody reads the queue. A record is complete `settle_ns` after it was made.
    pub fn run(mut self, settle_ns: u64) {
        // An error here means that the other end has gone, and knows why.
        if self.read(settle_ns).is_ok() {
            _ = self.finish();
        }
    }

    fn read(&mut self, settle_ns: u64) -> Result<(), Abandoned> {
        let mut unsettled = Unsettled::default();
        let mut counted_ns = monotonic_ns();
        let mut active = true;
        while !self.control.stopped() {
            let settling = unsettled.any();
            if settling {
                self.wait(false, TICK)?;
            } else {
                self.wait(true, if active { COUNTING } else { IDLE })?;
            }
            if self.control.summarize.swap(false, Ordering::AcqRel) {
                let counts = self.counts();
                self.send(Message::Asked(counts))?;
            }
            let now_ns = monotonic_ns();
            let before = self.taken;
            self.drain(now_ns, settling)?;
            unsettled.looked(now_ns);
            // The last walk's end is only now known to be followed by a look at the ring.
            let walked = self.control.walked.swap(false, Ordering::AcqRel);
            if walked {
                let counts = self.counts();
                self.send(Message::Counted(counts))?;
            }
            if self.taken != before || walked {
                unsettled.took(now_ns + settle_ns + TICK.as_nanos() as u64);
                active = true;
            }
            let due = if active { COUNTING } else { IDLE };
            if now_ns.saturating_sub(counted_ns) >= due.as_nanos() as u64 {
                counted_ns = now_ns;
                active = self.taken != before;
                self.tell_losses()?;
            }
        }
        Ok(())
    }

    /// Detaches, and tells what the kernel has recorded until then.
    fn finish(&mut self) -> Result<(), Abandoned> {
        self.detach();
        let deadline = monotonic_ns() + LAST_RECORDS.as_nanos() as u64;
        loop {
            let counted = self.kernel.counters().unwrap_or_default();
            self.drain(monotonic_ns(), false)?;
            if self.taken >= counted.submitted + counted.resets || monotonic_ns() > deadline {
                break;
            }
            std::thread::yield_now();
        }
        let counts = self.counts();
        self.send(Message::Ended(counts))
    }

    fn detach(&mut self) {
        if !self.detached {
            self.detached = true;
            self.kernel.detach();
        }
    }

    /// Waits for anything to do, at most so long. Takes note of a stepped wall clock and of an output that nobody reads.
    fn wait(&mut self, for_records: bool, at_most: Duration) -> Result<(), Abandoned> {
        let nothing = || PollFlags::empty();
        let ring = self.kernel.ring_fd();
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
            // Only that it is broken is of interest, which is always told.
            PollFd::from_borrowed_fd(self.output.as_ref().map_or(control, AsFd::as_fd), nothing()),
        ];
        let timeout = Timespec {
            tv_sec: at_most.as_secs() as i64,
            tv_nsec: at_most.subsec_nanos().into(),
        };
        // Interrupted, or whatever: the next look tells.
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

    /// Sends all records on the ring. `even_if_none`: that there are none is news, since some are waiting to settle.
    fn drain(&mut self, now_ns: u64, even_if_none: bool) -> Result<(), Abandoned> {
        loop {
            let (batch, taken) = (&mut self.batch, &mut self.taken);
            let empty = self.kernel.drain(|record| {
                *taken += 1;
                batch.extend_from_slice(&(record.len() as u64).to_ne_bytes());
                batch.extend_from_slice(record);
                batch.len() < BATCH
            });
            if self.batch.is_empty() && !even_if_none {
                return Ok(());
            }
            let spare = self.queue.spare.try_recv().unwrap_or_default();
            let bytes = std::mem::replace(&mut self.batch, spare);
            let walk_began_ns = self.control.walk_under_way();
            let complete = Complete {
                ring_empty_ns: empty.then_some(now_ns),
                walk_began_ns,
            };
            self.send(Message::Records { bytes, complete })?;
            if empty {
                return Ok(());
            }
        }
    }

    fn tell_losses(&mut self) -> Result<(), Abandoned> {
        let counts = self.counts();
        let lost = counts.ring_full + counts.no_storage + counts.skipped + counts.lost_opens;
        if lost != self.lost {
            self.lost = lost;
            self.send(Message::Lost(counts))?;
        }
        Ok(())
    }

    fn counts(&self) -> Counts {
        let counted = self.settled_counters();
        let open = counted.open.try_into().unwrap_or(0);
        Counts {
            at_ns: monotonic_ns(),
            closes: counted.closes,
            submitted: counted.submitted,
            filtered: counted.filtered,
            lost_opens: counted.lost_opens,
            ring_full: counted.lost_ring,
            no_storage: counted.lost_storage,
            skipped: counted.lost_skipped,
            skipped_at_most: self.kernel.closes_skipped(&counted),
            open,
            // Some of them may have ended since.
            not_scanned: self.control.not_scanned().map(|not_scanned| not_scanned.min(open)),
        }
    }

    /// The counters, of which each adds one close in more than one place, and not at one instant: read until they agree.
    fn settled_counters(&self) -> Counters {
        let read = || self.kernel.counters().unwrap_or_default();
        let agree = |counted: &Counters| {
            let parts = [
                counted.submitted,
                counted.lost_ring,
                counted.lost_storage,
                counted.lost_skipped,
                counted.filtered,
            ];
            counted.closes == parts.iter().sum::<u64>()
        };
        (0..READS).map(|_| read()).find(agree).unwrap_or_else(read)
    }

    /// Waits for room in the queue. Meanwhile records stay on the ring.
    fn send(&mut self, mut message: Message) -> Result<(), Abandoned> {
        loop {
            message = match self.queue.messages.try_send(message) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(Abandoned),
                Err(TrySendError::Full(message)) => message,
            };
            if self.control.stopped() {
                self.detach();
            }
            std::thread::sleep(TICK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_settled_by_a_look_however_late() {
        let mut unsettled = Unsettled::default();
        assert!(!unsettled.any());
        unsettled.took(150);
        unsettled.looked(149);
        assert!(unsettled.any());
        unsettled.looked(90_000);
        assert!(!unsettled.any());
    }
}
