//! The thread that may have to wait for whoever reads standard output: it runs the pipeline and says on standard error
//! what a format has no line for.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use anyhow::{Result, bail};

use crate::config::{Config, Verbosity};
use crate::exit::Exit;
use crate::pipeline::Pipeline;
use crate::record::{Lost, RunInfo, Summary};
use crate::render::words;
use crate::source::reader::{Control, Message};

/// The thread's state.
pub struct Writer<W> {
    /// Where the queue leads.
    pub pipeline: Pipeline<W>,
    /// For the summary in words.
    pub info: RunInfo,
    /// What to say where.
    pub config: Config,
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
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Exit::Ok),
            Err(error) => bail!("cannot write to standard output: {error}\n  try: a place with room, or -o none"),
            Ok(()) => Ok(Exit::Ok),
        }
    }

    fn write_all(&mut self, queue: &Receiver<Message>) -> io::Result<()> {
        for message in queue {
            match message {
                Message::Records { mut bytes, complete } => {
                    self.pipeline.take(&bytes, complete)?;
                    bytes.clear();
                    // The reader may have ended.
                    _ = self.spare.send(bytes);
                    if self.pipeline.is_full() {
                        self.control.stop();
                    }
                }
                Message::ClockStepped {
                    since_ns,
                    difference_ns,
                } => self.pipeline.clock_stepped(since_ns, difference_ns),
                Message::Lost(counts) => {
                    let lost = self.pipeline.lost(&counts)?;
                    self.say_lost(lost);
                }
                Message::Counted(counts) => self.pipeline.counted(&counts),
                Message::Asked(counts) => self.pipeline.ask(counts)?,
                Message::Walked(bytes) => self.pipeline.hold(&bytes),
                Message::WalkFailed(why) => say(&format!("warning: {why}; open connections are not told of this time")),
                Message::OutputClosed => return Ok(()),
                Message::Ended(counts) => {
                    self.pipeline.finish()?;
                    self.say_made();
                    let lost = self.pipeline.lost(&counts)?;
                    self.say_lost(lost);
                    let summary = self.pipeline.summary(&counts)?;
                    self.say_summary(&summary);
                    return Ok(());
                }
            }
            self.say_made();
        }
        Ok(())
    }

    fn say_made(&mut self) {
        for summary in self.pipeline.summaries() {
            self.say_summary(&summary);
        }
    }

    fn say_lost(&self, lost: Option<Lost>) {
        if let Some(lost) = lost
            && !self.config.output.has_reports()
        {
            say(&words::lost_words(&lost));
        }
    }

    fn say_summary(&self, summary: &Summary) {
        if !self.config.output.has_reports() && self.config.verbosity > Verbosity::Quiet {
            say(&words::summary_words(summary, &self.info));
        }
    }
}

/// One note on standard error. That nobody reads it is no reason to stop.
pub fn say(text: &str) {
    _ = writeln!(io::stderr(), "kmesh-trace: {text}");
}
