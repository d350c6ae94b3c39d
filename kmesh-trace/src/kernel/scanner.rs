//! The thread that scans the open sockets: at the start, and at each interval. It has its own thread because a scan
//! waits for the lock of each socket, which another process may hold.
//!
//! Intervals are aligned to the wall clock, and a scan runs just before an interval ends. So its updates belong to that
//! interval, and a rollup's window ends with the connections that are open then.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, Sender, SyncSender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use crate::clocks::{monotonic_ns, processor_time};
use crate::privileges;

use super::loader::{ScanMode, ScanPrograms, StartError, Take};
use super::message::Message;
use super::netns::OtherNamespaces;
use super::reader::Control;

/// The minimum time before the end of an interval at which its scan begins: for the machine to wake up, and for the
/// scan.
const MIN_LEAD: Duration = Duration::from_millis(50);

/// The maximum share of one processor that scans may take: 1 / 20, or 5 %. The time of a scan grows with the
/// descriptors of all processes, so any process could make the scan the node's main work.
const MAX_SHARE: u32 = 20;

/// The maximum time that the start waits for the first scan.
const FIRST_SCAN_TIMEOUT: Duration = Duration::from_secs(10);
/// The message if the first scan takes longer.
pub const FIRST_SCAN_IS_LATE: &str = "the first socket scan has not ended after 10 s: connections that were open \
                                      before have no process and no updates until it ends";

/// The scanner thread, which waits for requests. It starts before the tool gives up the capabilities that only this
/// thread keeps.
pub struct Scanner(Sender<Request>);

enum Request {
    First {
        programs: Box<ScanPrograms>,
        /// Whether to scan a second time, for the counters of open connections.
        baseline: bool,
        /// Receives the result of the scan.
        done: Sender<Result<Vec<u8>, StartError>>,
    },
    Run(ScanTask),
}

/// The task of a [`Scanner`].
pub struct ScanTask {
    /// The time between scans.
    pub interval: Duration,
    /// Whether to scan once more at the stop.
    pub scans_at_stop: bool,
    pub control: Arc<Control>,
    /// Receives the records of the scans.
    pub messages: SyncSender<Message>,
}

impl Scanner {
    /// Starts the thread, with at most the privileges of the calling one.
    pub fn start() -> anyhow::Result<Self> {
        let (sender, receiver) = channel();
        let (started, start) = channel();
        thread::Builder::new()
            .name("kmesh-scan".to_owned())
            .spawn(move || {
                let limited = privileges::limit_to_scans();
                let is_limited = limited.is_ok();
                // The receiver exists: its thread is waiting.
                _ = started.send(limited);
                if is_limited {
                    handle(&receiver);
                }
            })
            .context("cannot start the scanner thread")?;
        start
            .recv()
            .context("the scanner thread panicked")?
            .context("cannot give up privileges")?;
        Ok(Self(sender))
    }

    /// Makes the first scan, which stores what was open before the tracer, and with `baseline` a second one. Returns
    /// the records of the second one as in [`Message::ScanRecords`], or `None` if the scan takes so long that tracing
    /// should begin without it. The thread owns the programs from now on.
    pub fn first_scan(&self, programs: ScanPrograms, baseline: bool) -> Result<Option<Vec<u8>>, StartError> {
        let (done, result) = channel();
        // The thread receives until this sender is dropped.
        _ = self.0.send(Request::First {
            programs: Box::new(programs),
            baseline,
            done,
        });
        match result.recv_timeout(FIRST_SCAN_TIMEOUT) {
            Ok(scanned) => scanned.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(StartError::Failed {
                action: "scan the open sockets",
                reason: "the scanner thread panicked".to_owned(),
            }),
        }
    }

    /// Makes the thread run `task`.
    pub fn run(self, task: ScanTask) {
        task.control.set_awaits_final_scan(task.scans_at_stop);
        // The thread receives until this sender is dropped.
        _ = self.0.send(Request::Run(task));
    }
}

/// Handles the requests to a [`Scanner`]. The first one brings the programs.
fn handle(requests: &Receiver<Request>) {
    let mut first = None;
    for request in requests {
        match request {
            Request::First {
                mut programs,
                baseline,
                done,
            } => {
                let began = Instant::now();
                let scanned = first_scan(&mut programs, baseline);
                let took = began.elapsed() / (1 + u32::from(baseline));
                // Sending fails if nobody waits any more.
                _ = done.send(scanned);
                first = Some((programs, took));
            }
            Request::Run(task) => {
                if let Some((programs, took)) = &mut first {
                    // The writer that closed the queue reports the error.
                    _ = task.run(programs, *took);
                }
                task.control.set_awaits_final_scan(false);
            }
        }
    }
}

impl ScanTask {
    /// Scans the sockets at the end of each interval, until [`Control::stop`] or until no thread reads the messages. If
    /// scans take too long, scans less often. A scan that is late delays the next one; missed scans are not repeated.
    /// `took`: the time that the first scan took.
    fn run(&self, programs: &mut ScanPrograms, mut took: Duration) -> Result<(), SendError<Message>> {
        let mut scan_interval = self.interval;
        let mut is_reported = false;
        // Without CAP_SYS_ADMIN, scans of other network namespaces are not possible: see [`scan`].
        let mut namespaces = OtherNamespaces::new().ok();
        loop {
            // The longer the last scan took, the earlier the next one begins.
            let lead = (MIN_LEAD + took * 2).min(self.interval / 4);
            self.sleep_until_before_end(lead);
            if self.control.is_stopped() {
                if self.scans_at_stop {
                    self.scan(programs, scan_interval, namespaces.as_mut())?;
                }
                return Ok(());
            }
            let began = Instant::now();
            let now = wall_clock();
            if until_end(scan_interval, now) <= until_end(self.interval, now) {
                let used = self.scan(programs, scan_interval, namespaces.as_mut())?;
                scan_interval = interval_for(self.interval, used);
                if scan_interval > self.interval && !std::mem::replace(&mut is_reported, true) {
                    self.messages.send(Message::ScanIsSlow { used, scan_interval })?;
                }
            }
            took = began.elapsed();
            if took < lead {
                // The reader reports the end of the interval even without records.
                self.control
                    .wait_for_stop(until_end(self.interval, wall_clock()).min(lead));
                self.control.interval_ended();
            }
        }
    }

    /// Sleeps until `lead` before the end of an interval: the current one, or the next one if it is too late for the
    /// current one. The stop of the run ends the sleep.
    fn sleep_until_before_end(&self, lead: Duration) {
        let remaining = until_end(self.interval, wall_clock());
        let sleep = remaining.checked_sub(lead);
        self.control
            .wait_for_stop(sleep.unwrap_or_else(|| remaining + self.interval - lead));
    }

    /// Scans the sockets once, and reports the end of the scan. Returns the processor time that it used.
    fn scan(
        &self,
        programs: &mut ScanPrograms,
        scan_interval: Duration,
        namespaces: Option<&mut OtherNamespaces>,
    ) -> Result<Duration, SendError<Message>> {
        let began = processor_time();
        let deadline = began.saturating_add(scan_interval / MAX_SHARE);
        let others = namespaces.map(|namespaces| (namespaces, deadline));
        let (messages, control) = (&self.messages, &self.control);
        let mut is_first = true;
        // Until the scan ends, the writer holds events from the ring that are later than both this and the newest
        // record of the scan.
        let part_begins = || control.scan_began(monotonic_ns());
        let scanned = scan(programs, others, &part_begins, |bytes| {
            if messages.send(Message::ScanRecords(bytes)).is_err() {
                return ControlFlow::Break(());
            }
            if std::mem::take(&mut is_first) {
                control.scan_found_connections();
            }
            ControlFlow::Continue(())
        });
        if let Ok(Some(not_scanned)) = scanned {
            self.control.set_not_scanned(not_scanned);
        }
        self.control.scan_ended();
        if let Err(error) = scanned {
            self.messages.send(Message::ScanFailed(error.to_string()))?;
        }
        Ok(processor_time().saturating_sub(began))
    }
}

/// Returns the time between scans that use this much processor time each: the smallest multiple of `interval` that
/// keeps them within [`MAX_SHARE`]. So scans still run at the ends of intervals.
fn interval_for(interval: Duration, used: Duration) -> Duration {
    let minimum = used.as_nanos() * u128::from(MAX_SHARE);
    let multiple = minimum.div_ceil(interval.as_nanos().max(1)).max(1);
    interval.saturating_mul(u32::try_from(multiple).unwrap_or(u32::MAX))
}

fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Returns the time from `now`, a time of the wall clock, until the current interval ends.
fn until_end(interval: Duration, now: Duration) -> Duration {
    let passed = now.as_nanos() % interval.as_nanos().max(1);
    // The remainder is less than the interval, so it fits.
    interval.saturating_sub(Duration::from_nanos(passed.try_into().unwrap_or(u64::MAX)))
}

/// Scans all open connections once. Returns the number of open connections that the scan did not visit; `None` if
/// `take` ended the scan. `part_begins` is called before the first record, and where the records so far are all that
/// are earlier than now.
///
/// In [`ScanMode::Descriptors`] these are the connections with a descriptor, in [`ScanMode::Namespaces`] those of each
/// namespace that has a descriptor. Then come the other connections of the tool's own network namespace, and those of
/// `others`, until the thread's processor time reaches the deadline. Skips scans that cannot find more connections.
fn scan(
    programs: &mut ScanPrograms,
    mut others: Option<(&mut OtherNamespaces, Duration)>,
    part_begins: &dyn Fn(),
    mut take: impl FnMut(Vec<u8>) -> ControlFlow<()>,
) -> Result<Option<u64>, StartError> {
    programs.begin()?;
    part_begins();
    if let Some((others, _)) = &mut others {
        others.begin()?;
    }
    let scanned = match programs.mode() {
        ScanMode::Descriptors => programs.scan_descriptors(&mut take)?,
        ScanMode::Namespaces => {
            let others = others.as_mut().map(|(others, _)| &mut **others);
            let scanned = scan_held(programs, others, part_begins, &mut take);
            programs.remove_old_holders()?;
            scanned?
        }
    };
    if scanned.is_break() {
        return Ok(None);
    }
    if programs.scans_netns() {
        // A connection that is older than the tracer does not count as open until a scan has found it.
        let is_needed = programs.is_first_scan() || programs.unvisited()? > 0;
        let is_scanned = programs.mode() == ScanMode::Namespaces;
        if is_needed && !is_scanned && programs.scan_netns(&mut take)?.is_break() {
            return Ok(None);
        }
        if let Some((namespaces, deadline)) = others
            && namespaces.scan(programs, deadline, part_begins, &mut take)?.is_break()
        {
            return Ok(None);
        }
    }
    programs.unvisited().map(Some)
}

/// Scans all sockets of the tool's own network namespace, and of each other one that needs it.
fn scan_held(
    programs: &mut ScanPrograms,
    others: Option<&mut OtherNamespaces>,
    part_begins: &dyn Fn(),
    take: Take<'_>,
) -> Result<ControlFlow<()>, StartError> {
    let found = programs.find_holders()?;
    part_begins();
    let scanned = programs.scan_netns(take)?;
    match others {
        Some(others) if scanned.is_continue() => others.scan_each(programs, &found, part_begins, take),
        _ => Ok(scanned),
    }
}

/// Scans once, or twice with `baseline`, as [`Scanner::first_scan`] describes.
fn first_scan(programs: &mut ScanPrograms, baseline: bool) -> Result<Vec<u8>, StartError> {
    // In ScanMode::Descriptors the first scan enters no other namespace, so that tracing begins sooner.
    let mut others = match programs.mode() {
        ScanMode::Descriptors => None,
        ScanMode::Namespaces => OtherNamespaces::new().ok(),
    };
    let mut all = Vec::new();
    for is_baseline in [false, true].into_iter().take(1 + usize::from(baseline)) {
        let others = others.as_mut().map(|others| (others, Duration::ZERO));
        scan(programs, others, &|| (), |bytes| {
            if is_baseline {
                all.extend_from_slice(&bytes);
            }
            ControlFlow::Continue(())
        })?;
    }
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
    fn longer_scan_interval_ends_with_an_update_interval() {
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
