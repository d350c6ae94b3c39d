//! The thread that may have to wait for whoever reads standard output: it runs the pipeline and says on standard error
//! what a format has no line for.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::delivery;
use crate::exit::Exit;
use crate::note::{Notes, say};
use crate::pipeline::Pipeline;
use crate::record::Counts;
use crate::source::monotonic_ns;
use crate::source::reader::{Control, Message};

/// The thread's state.
pub struct Writer<W> {
    /// Where the queue leads.
    pub pipeline: Pipeline<W>,
    /// For what is said in words.
    pub notes: Notes,
    /// Told when `--count` is reached.
    pub control: Arc<Control>,
    /// Takes emptied buffers back to the reader.
    pub spare: Sender<Vec<u8>>,
}

impl<W: Write> Writer<W> {
    /// Runs until the last message, or until standard output fails.
    pub fn write(mut self, queue: &Receiver<Message>) -> Result<Exit> {
        match self.write_all(queue) {
            // Whoever read it has gone, which is no failure.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                // That is no reason to leave a capture without its end; and if it was the capture, there is nothing to end.
                _ = self.pipeline.end_keep();
                Ok(Exit::Ok)
            }
            Err(error) => Err(delivery::explain(error)),
            Ok(()) => Ok(Exit::Ok),
        }
    }

    fn write_all(&mut self, queue: &Receiver<Message>) -> io::Result<()> {
        while let Some(message) = self.next(queue)? {
            match message {
                Message::Records { mut bytes, complete } => {
                    self.pipeline.take(&bytes, complete, monotonic_ns())?;
                    bytes.clear();
                    // The reader may have ended.
                    _ = self.spare.send(bytes);
                }
                Message::ClockStepped {
                    since_ns,
                    difference_ns,
                } => self.pipeline.clock_stepped(since_ns, difference_ns),
                Message::Names(told) => self.pipeline.learn(&told, monotonic_ns())?,
                Message::Lost(counts) => self.lost(&counts)?,
                Message::Counted(counts) => self.pipeline.counted(&counts),
                Message::Asked(counts) => self.pipeline.ask(counts)?,
                Message::Walked(bytes) => self.pipeline.hold(&bytes),
                Message::WalkFailed(why) => say(&format!("warning: {why}; open connections are not told of this time")),
                Message::ScanIsSlow { used, scan_interval } => say(&slow_scan_text(used, scan_interval)),
                Message::OutputClosed => return self.pipeline.end_keep(),
                Message::Ended(counts) => return self.end(queue, &counts),
            }
            self.after_records();
        }
        Ok(())
    }

    fn after_records(&mut self) {
        if self.pipeline.is_full() {
            self.control.stop();
        }
        self.say_made();
    }

    /// The next message. Until it comes, what has waited for its name for long enough goes out, and what is to be kept is.
    fn next(&mut self, queue: &Receiver<Message>) -> io::Result<Option<Message>> {
        loop {
            self.pipeline.keep_up()?;
            let release = (self.pipeline.waits_until_ns())
                .map(|until_ns| Duration::from_nanos(until_ns.saturating_sub(monotonic_ns())));
            let keep = (self.pipeline.due()).map(|due| due.saturating_duration_since(Instant::now()));
            let Some(left) = release.into_iter().chain(keep).min() else {
                return Ok(queue.recv().ok());
            };
            match queue.recv_timeout(left) {
                Ok(message) => return Ok(Some(message)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {
                    self.pipeline.release(monotonic_ns())?;
                    self.after_records();
                }
            }
        }
    }

    /// Nothing comes any more but names, for as long as records wait for them.
    fn end(&mut self, queue: &Receiver<Message>, counts: &Counts) -> io::Result<()> {
        self.pipeline.settle(monotonic_ns())?;
        while let Some(until_ns) = self.pipeline.waits_until_ns() {
            let left = Duration::from_nanos(until_ns.saturating_sub(monotonic_ns()));
            match queue.recv_timeout(left) {
                Ok(Message::Names(told)) => self.pipeline.learn(&told, monotonic_ns())?,
                Ok(Message::OutputClosed) => return self.pipeline.end_keep(),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => self.pipeline.release(monotonic_ns())?,
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.pipeline.finish()?;
        self.say_made();
        self.lost(counts)?;
        let summary = self.pipeline.summary(counts)?;
        self.notes.summary(&summary);
        self.notes.longest_wait(self.pipeline.longest_wait_ns());
        self.pipeline.end()
    }

    fn lost(&mut self, counts: &Counts) -> io::Result<()> {
        let lost = self.pipeline.lost(counts)?;
        lost.iter().for_each(|lost| self.notes.lost(lost));
        self.notes.lost_opens(counts.lost_opens);
        Ok(())
    }

    fn say_made(&mut self) {
        for summary in self.pipeline.summaries() {
            self.notes.summary(&summary);
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

/// Seconds with one decimal at most; milliseconds where those would say too little.
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
    fn slow_scan_is_reported_in_plain_units() {
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
