//! The writer thread: runs the pipeline and the sinks. No other thread waits for the reader of standard output.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::end_after;
use crate::clocks::monotonic_ns;
use crate::config::Verbosity;
use crate::kernel::message::Message;
use crate::kernel::reader::Control;
use crate::output::stderr::{status, warn};
use crate::output::summary_text;
use crate::record::Counts;
use crate::session::exit::Exit;
use crate::session::pipeline::Pipeline;

/// The state of the writer thread.
pub struct Writer {
    pub pipeline: Pipeline,
    pub verbosity: Verbosity,
    /// Stops the run when `--count` is reached.
    pub control: Arc<Control>,
    /// Returns empty buffers to the reader.
    pub spare: Sender<Vec<u8>>,
    /// The number of lost `open` events that messages already reported.
    pub lost_opens: u64,
}

impl Writer {
    /// Runs until the last message of the queue, or until an output fails.
    pub fn write(mut self, queue: &Receiver<Message>) -> Result<Exit> {
        match self.write_all(queue) {
            Err(error) => end_after(error, &mut self.pipeline.engine),
            Ok(()) => Ok(Exit::Ok),
        }
    }

    fn write_all(&mut self, queue: &Receiver<Message>) -> io::Result<()> {
        while let Some(message) = self.next(queue)? {
            match message {
                Message::Records { mut bytes, progress } => {
                    self.pipeline.take(&bytes, progress, monotonic_ns())?;
                    bytes.clear();
                    // The reader may have ended.
                    _ = self.spare.send(bytes);
                }
                Message::ClockStepped {
                    since_ns,
                    difference_ns,
                } => self.pipeline.clock_stepped(since_ns, difference_ns),
                Message::Names(updates) => {
                    self.pipeline.apply(&updates, monotonic_ns())?;
                    self.warn_of_memory();
                }
                Message::NamesSettled => self.warn_of_unknown_names(),
                Message::Lost(counts) => self.lost(&counts)?,
                Message::IntervalEnded(counts) => {
                    self.pipeline.end_scan()?;
                    self.pipeline.count(&counts);
                }
                Message::Rejects(counts) => self.pipeline.take_rejects(&counts, monotonic_ns())?,
                Message::SummaryRequested(counts) => self.pipeline.request_summary(counts)?,
                Message::ScanRecords(bytes) => self.pipeline.hold(&bytes),
                Message::ScanFailed(error) => {
                    warn(&format!("{error}: this interval has no updates for open connections"))
                }
                Message::ScanIsSlow { used, scan_interval } => status(&slow_scan_text(used, scan_interval)),
                Message::OutputClosed => return Err(ErrorKind::BrokenPipe.into()),
                Message::Ended(counts) => return self.end(queue, &counts),
            }
            self.stop_if_full();
        }
        Ok(())
    }

    fn stop_if_full(&self) {
        if self.pipeline.engine.is_full() {
            self.control.stop();
        }
    }

    /// Returns the next message. Meanwhile, emits records whose time to wait for names is over, and flushes outputs
    /// when due.
    fn next(&mut self, queue: &Receiver<Message>) -> io::Result<Option<Message>> {
        loop {
            let release = (self.pipeline.waits_until_ns())
                .map(|until_ns| Duration::from_nanos(until_ns.saturating_sub(monotonic_ns())));
            let flush = (self.pipeline.engine.flush_due()).map(|due| due.saturating_duration_since(Instant::now()));
            let Some(left) = release.into_iter().chain(flush).min() else {
                return Ok(queue.recv().ok());
            };
            match queue.recv_timeout(left) {
                Ok(message) => return Ok(Some(message)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {
                    self.pipeline.release(monotonic_ns())?;
                    self.stop_if_full();
                }
            }
        }
    }

    /// Ends the run. Waits for names as long as records wait for them; the reader sends nothing more.
    fn end(&mut self, queue: &Receiver<Message>, counts: &Counts) -> io::Result<()> {
        self.pipeline.settle(monotonic_ns())?;
        while let Some(until_ns) = self.pipeline.waits_until_ns() {
            let left = Duration::from_nanos(until_ns.saturating_sub(monotonic_ns()));
            match queue.recv_timeout(left) {
                Ok(Message::Names(updates)) => self.pipeline.apply(&updates, monotonic_ns())?,
                Ok(Message::OutputClosed) => return Err(ErrorKind::BrokenPipe.into()),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => self.pipeline.release(monotonic_ns())?,
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.report_lost_opens(counts.lost_opens);
        self.pipeline.finish(counts)?;
        let wait_ns = self.pipeline.longest_wait_ns();
        if wait_ns > 0 && self.verbosity == Verbosity::Verbose {
            let wait_ms = wait_ns as f64 / 1e6;
            status(&format!("records waited up to {wait_ms:.1} ms for names"));
        }
        self.pipeline.engine.finish()
    }

    /// Warns of names in the filter that no source knows.
    fn warn_of_unknown_names(&mut self) {
        if self.verbosity > Verbosity::Quiet {
            self.pipeline.unknown_names().iter().for_each(|warning| warn(warning));
        }
    }

    fn warn_of_memory(&mut self) {
        if self.verbosity > Verbosity::Quiet
            && let Some(warning) = self.pipeline.memory_warning()
        {
            warn(&warning);
        }
    }

    fn lost(&mut self, counts: &Counts) -> io::Result<()> {
        self.pipeline.lost(counts)?;
        self.report_lost_opens(counts.lost_opens);
        Ok(())
    }

    /// Reports lost `open` events on standard error, because no output has a line for them.
    fn report_lost_opens(&mut self, since_start: u64) {
        let reported = std::mem::replace(&mut self.lost_opens, since_start);
        if since_start > reported {
            status(&summary_text::lost_opens(since_start - reported, since_start));
        }
    }
}

fn slow_scan_text(used: Duration, scan_interval: Duration) -> String {
    format!(
        "socket scan took {} of processor time: the update interval is now {}",
        duration_text(used),
        duration_text(scan_interval)
    )
}

/// Formats seconds with at most one decimal, or milliseconds below 0.1 s.
fn duration_text(duration: Duration) -> String {
    if duration < Duration::from_millis(100) {
        return format!("{} ms", duration.as_millis());
    }
    let seconds = format!("{:.1}", duration.as_secs_f64());
    format!("{} s", seconds.trim_end_matches(".0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_scan_message_has_plain_units() {
        let cases = [
            (
                900,
                18_000,
                "socket scan took 0.9 s of processor time: the update interval is now 18 s",
            ),
            (
                14,
                300,
                "socket scan took 14 ms of processor time: the update interval is now 0.3 s",
            ),
            (
                12_340,
                250_000,
                "socket scan took 12.3 s of processor time: the update interval is now 250 s",
            ),
        ];
        for (used, interval, expected) in cases {
            let text = slow_scan_text(Duration::from_millis(used), Duration::from_millis(interval));
            assert_eq!(text, expected);
        }
    }
}
