//! The thread that scans the open sockets at each interval, and so does not delay the reader.
//!
//! Intervals are aligned to the wall clock, and a scan runs just before an interval ends. So its updates belong to that
//! interval, and a rollup's window ends with the connections that are open then.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{SendError, Sender, SyncSender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use crate::privileges;

use super::loader::{ScanMode, ScanPrograms, StartError, Take};
use super::message::Message;
use super::monotonic_ns;
use super::netns::OtherNamespaces;
use super::reader::Control;
use super::time::processor_time;

/// The minimum time before the end of an interval at which its scan begins: for the machine to wake up, and for the
/// scan.
const MIN_LEAD: Duration = Duration::from_millis(50);

/// The maximum share of one processor that scans may take: 1 / 20, or 5 %. The time of a scan grows with the
/// descriptors of all processes, so any process could make the scan the node's main work.
const MAX_SHARE: u32 = 20;

/// The scanner thread, which waits for its task. It starts before the tool gives up the capabilities that only this
/// thread keeps.
pub struct Scanner(Sender<Request>);

enum Request {
    First {
        programs: ScanPrograms,
        /// See [`first_scan`].
        baseline: bool,
        done: Sender<Result<(ScanPrograms, Vec<u8>), StartError>>,
    },
    Run(ScanTask),
}

/// The task of a [`Scanner`].
pub struct ScanTask {
    pub programs: ScanPrograms,
    /// The time between scans.
    pub interval: Duration,
    /// Whether to scan once more at the stop.
    pub scans_at_stop: bool,
    pub control: Arc<Control>,
    /// Receives the records of the scans.
    pub messages: SyncSender<Message>,
}

impl Scanner {
    pub fn start() -> anyhow::Result<Self> {
        let (sender, receiver) = channel::<Request>();
        let (started, start) = channel();
        thread::Builder::new()
            .name("kmesh-scan".to_owned())
            .spawn(move || {
                let limited = privileges::limit_to_scans();
                let is_limited = limited.is_ok();
                // The starting thread waits for it.
                _ = started.send(limited);
                if is_limited {
                    receiver.into_iter().for_each(Request::handle);
                }
            })
            .context("cannot start a thread")?;
        start
            .recv()
            .context("the scanner thread panicked")?
            .context("cannot give up privileges")?;
        Ok(Self(sender))
    }

    /// Makes the first scan, with the privileges of the thread: see [`first_scan`].
    pub fn first_scan(&self, programs: ScanPrograms, baseline: bool) -> Result<(ScanPrograms, Vec<u8>), StartError> {
        let (done, result) = channel();
        // The thread waits until this is dropped.
        _ = self.0.send(Request::First {
            programs,
            baseline,
            done,
        });
        result.recv().unwrap_or_else(|_| {
            Err(StartError::Failed {
                action: "scan the open sockets",
                reason: "the scanner thread panicked".to_owned(),
            })
        })
    }

    /// Makes the thread run `task`.
    pub fn run(self, task: ScanTask) {
        task.control.set_awaits_final_scan(task.scans_at_stop);
        // The thread waits until this is dropped.
        _ = self.0.send(Request::Run(task));
    }
}

impl Request {
    fn handle(self) {
        match self {
            Self::First {
                mut programs,
                baseline,
                done,
            } => {
                let scanned = first_scan(&mut programs, baseline);
                // The starting thread waits for it.
                _ = done.send(scanned.map(|records| (programs, records)));
            }
            Self::Run(mut task) => {
                // The writer that closed the queue reports the error.
                _ = task.run();
                task.control.set_awaits_final_scan(false);
            }
        }
    }
}

impl ScanTask {
    /// Scans the sockets at the end of each interval, until [`Control::stop`] or until no thread reads the messages. If
    /// scans take too long, scans less often. A scan that is late delays the next one; missed scans are not repeated.
    fn run(&mut self) -> Result<(), SendError<Message>> {
        let mut took = Duration::ZERO;
        let mut scan_interval = self.interval;
        let mut is_reported = false;
        // Without CAP_SYS_ADMIN, scans reach only the tool's own network namespace.
        let mut namespaces = OtherNamespaces::new().ok();
        loop {
            // The longer the last scan took, the earlier the next one begins.
            let lead = (MIN_LEAD + took * 2).min(self.interval / 4);
            self.sleep_until_before_end(lead);
            if self.control.is_stopped() {
                if self.scans_at_stop {
                    self.scan(scan_interval, namespaces.as_mut())?;
                }
                return Ok(());
            }
            let began = Instant::now();
            let now = wall_clock();
            if until_end(scan_interval, now) <= until_end(self.interval, now) {
                let used = self.scan(scan_interval, namespaces.as_mut())?;
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
        &mut self,
        scan_interval: Duration,
        namespaces: Option<&mut OtherNamespaces>,
    ) -> Result<Duration, SendError<Message>> {
        let began = processor_time();
        // Until the scan ends, the writer holds events from the ring that are later than this and the scan's records.
        self.control.scan_began(monotonic_ns());
        let deadline = began.saturating_add(scan_interval / MAX_SHARE);
        let others = namespaces.map(|namespaces| (namespaces, deadline));
        let (messages, control) = (&self.messages, &self.control);
        let mut is_first = true;
        let scanned = scan(&mut self.programs, others, |bytes| {
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

/// Scans all open connections once: those with a descriptor, then the others of the tool's own network namespace, then
/// the others of `others`, until the thread's processor time reaches the deadline. Skips scans that cannot find more
/// connections. Returns the number of open connections that the scan did not visit; `None` if `take` ended the scan.
fn scan(
    programs: &mut ScanPrograms,
    mut others: Option<(&mut OtherNamespaces, Duration)>,
    mut take: impl FnMut(Vec<u8>) -> ControlFlow<()>,
) -> Result<Option<u64>, StartError> {
    programs.begin()?;
    let scanned = match programs.mode() {
        ScanMode::Descriptors => programs.scan_descriptors(&mut take)?,
        ScanMode::Namespaces => scan_held(programs, others.as_mut().map(|(others, _)| &mut **others), &mut take)?,
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
            && namespaces.scan(programs, deadline, &mut take)?.is_break()
        {
            return Ok(None);
        }
    }
    programs.unvisited().map(Some)
}

/// Scans the connections with a descriptor, in [`ScanMode::Namespaces`]: all sockets of each namespace that has one.
fn scan_held(
    programs: &mut ScanPrograms,
    others: Option<&mut OtherNamespaces>,
    take: Take<'_>,
) -> Result<ControlFlow<()>, StartError> {
    let found = programs.find_holders()?;
    let mut scanned = programs.scan_netns(take)?;
    if let Some(others) = others
        && scanned.is_continue()
    {
        scanned = others.scan_each(programs, &found, take)?;
    }
    programs.remove_old_holders()?;
    Ok(scanned)
}

/// Makes the first scan, which stores what was open before the tracer, and with `baseline` a second one. Returns the
/// records of the second one as in [`Message::ScanRecords`].
pub fn first_scan(programs: &mut ScanPrograms, baseline: bool) -> Result<Vec<u8>, StartError> {
    // Otherwise this would have to enter each network namespace of the node before tracing begins.
    let mut others = match programs.mode() {
        ScanMode::Descriptors => None,
        ScanMode::Namespaces => OtherNamespaces::new().ok(),
    };
    scan(programs, others.as_mut().map(|others| (others, Duration::ZERO)), |_| {
        ControlFlow::Continue(())
    })?;
    let mut all = Vec::new();
    if baseline {
        scan(
            programs,
            others.as_mut().map(|others| (others, Duration::ZERO)),
            |bytes| {
                all.extend_from_slice(&bytes);
                ControlFlow::Continue(())
            },
        )?;
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
