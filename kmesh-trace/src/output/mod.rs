//! Outputs. Each is a [`Sink`]: it takes records, has no clock, looks nothing up and knows no other output.

#[cfg(test)]
pub(crate) mod allocations;
pub mod json;
mod log;
#[cfg(target_os = "linux")]
pub mod metrics;
mod name_source_status;
mod rollup;
#[cfg(test)]
mod rollup_golden;
pub mod sanitize;
pub mod stderr;
mod stdout;
pub mod summary_text;
pub mod table;
pub mod term;
#[cfg(test)]
pub(crate) mod testing;

use std::io;
use std::time::Instant;

pub use json::{Json, append_line};
pub use log::Log;
pub use name_source_status::NameSourceStatus;
pub use rollup::RollupJson;
pub use stdout::Stdout;

use crate::config::{Config, Output, RollupConfig};
use crate::record::{ConnId, Lost, Record, RunInfo, Summary, WallTime};
use crate::track::delta::Delta;

/// Consumes records. In the steady state a record allocates nothing.
pub trait Sink: Send {
    /// Takes a record that passes the filter, and what it adds to the last one of its connection: nothing, if no sink
    /// [needs deltas](Self::needs_deltas).
    fn record(&mut self, record: &Record, delta: &Delta) -> io::Result<()>;

    /// Returns whether the sink uses deltas. They cost memory for each open connection.
    fn needs_deltas(&self) -> bool {
        false
    }

    /// Takes the counters of a connection that was open when tracing began.
    fn baseline(&mut self, _record: &Record) -> io::Result<()> {
        Ok(())
    }

    /// Takes that a connection ended by a close that does not pass the filter.
    fn filtered_close(&mut self, _id: ConnId) {}

    /// Takes that all records of what happened before `until` have come. At the end that is [`WallTime::MAX`].
    fn watermark(&mut self, _until: WallTime) -> io::Result<()> {
        Ok(())
    }

    /// Takes a loss of records.
    fn lost(&mut self, _lost: &Lost) -> io::Result<()> {
        Ok(())
    }

    /// Takes the sums of the run, at its end or so far.
    fn summary(&mut self, _summary: &Summary) -> io::Result<()> {
        Ok(())
    }

    /// Writes what must not wait for more.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Returns when [`Self::flush`] must be called, if nothing else calls it until then.
    fn flush_due(&self) -> Option<Instant> {
        None
    }

    /// Ends the output. Nothing else comes.
    fn finish(&mut self) -> io::Result<()> {
        self.flush()
    }
}

/// Returns the sink that writes to standard output, if any does. A table on a terminal is another one.
pub fn stdout_sink(config: &Config, info: &RunInfo, names: &NameSourceStatus) -> Option<Box<dyn Sink>> {
    sink(config, info, names, Stdout::new())
}

fn sink(config: &Config, info: &RunInfo, names: &NameSourceStatus, out: Stdout) -> Option<Box<dyn Sink>> {
    Some(match (config.output, &config.rollup) {
        (Output::Log, _) => Box::new(Log::new(config.events, config.color, out)),
        (Output::Json, Some(rolled)) => Box::new(RollupJson::new(rolled.settings, info, out)),
        (Output::Json, None) => Box::new(Json::new(config.events, info, out)),
        (Output::Table, Some(rolled)) => {
            let RollupConfig {
                settings, sort, top, ..
            } = rolled;
            Box::new(table::Blocks::new(
                *settings,
                *sort,
                *top,
                config.color,
                info,
                names,
                out,
            ))
        }
        (Output::None | Output::Table, _) => return None,
    })
}
