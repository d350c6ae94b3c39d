//! The outputs. Each one is a [`Sink`]: it consumes records, and has no clock and no access to other outputs.

#[cfg(test)]
pub(crate) mod allocations;
mod changes;
mod findings;
pub mod json;
mod log;
#[cfg(unix)]
pub mod metrics;
mod name_source_status;
pub mod outcome_text;
mod rollup;
#[cfg(test)]
mod rollup_golden;
pub mod sanitize;
mod short;
pub mod stderr;
mod stdout;
pub mod summary_text;
pub mod table;
pub mod term;
#[cfg(test)]
pub(crate) mod testing;
mod time_text;

use std::io;
use std::time::Instant;

pub use changes::print_changes;
pub use findings::Findings;
pub use json::{Json, append_line};
pub use log::Log;
pub use name_source_status::NameSourceStatus;
pub use rollup::RollupJson;
pub use short::Short;
pub use stdout::Stdout;

use crate::config::{Config, Output};
use crate::record::{ConnId, Lost, Record, RunInfo, Summary, WallTime};
use crate::track::delta::Delta;

/// Consumes records. In the steady state, a record must not allocate.
pub trait Sink: Send {
    /// Consumes a record that passes the filter. `delta` is the difference to the last record of the connection; it is
    /// zero if no sink [needs deltas](Self::needs_deltas).
    fn record(&mut self, record: &Record, delta: &Delta) -> io::Result<()>;

    /// Returns whether the sink uses deltas. They use memory for each open connection.
    fn needs_deltas(&self) -> bool {
        false
    }

    /// Consumes the counters of a connection that was open when tracing began.
    fn baseline(&mut self, _record: &Record) -> io::Result<()> {
        Ok(())
    }

    /// Forgets a connection whose close does not pass the filter, or whose attempt to connect no longer does; or a
    /// listening socket that is gone.
    fn exclude(&mut self, _id: ConnId) {}

    /// Reports that all records before `until` were delivered. At the end of the run, `until` is [`WallTime::MAX`].
    fn watermark(&mut self, _until: WallTime) -> io::Result<()> {
        Ok(())
    }

    /// Takes a record whose [subject](Record::subject) is no connection, and which passes the filter.
    fn report(&mut self, _record: &Record) -> io::Result<()> {
        Ok(())
    }

    /// Consumes a report of lost records.
    fn lost(&mut self, _lost: &Lost) -> io::Result<()> {
        Ok(())
    }

    /// Consumes the totals of the run, at its end or so far.
    fn summary(&mut self, _summary: &Summary) -> io::Result<()> {
        Ok(())
    }

    /// Consumes the totals of one of several streams, before the summary of all.
    fn stream_summary(&mut self, _summary: &Summary, _info: &RunInfo) -> io::Result<()> {
        Ok(())
    }

    /// Replaces what the sink knows about the run: the nodes of several streams become known while it runs.
    fn set_info(&mut self, _info: &RunInfo) {}

    /// Writes buffered output that must not wait.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Returns the time by which [`Self::flush`] must be called, if nothing else calls it before.
    fn flush_due(&self) -> Option<Instant> {
        None
    }

    /// Ends the output. No other call follows.
    fn finish(&mut self) -> io::Result<()> {
        self.flush()
    }
}

/// Returns the sink that writes to standard output, if there is one. A table on a terminal is a separate sink.
pub fn stdout_sink(config: &Config, info: &RunInfo, names: &NameSourceStatus) -> Option<Box<dyn Sink>> {
    sink(config, info, names, Stdout::new())
}

fn sink(config: &Config, info: &RunInfo, names: &NameSourceStatus, out: Stdout) -> Option<Box<dyn Sink>> {
    Some(match (config.output, &config.rollup) {
        (Output::Log, _) => Box::new(Log::new(config.events, config.color, config.time_format, out)),
        (Output::Short, _) => Box::new(Short::new(config.events, config.color, config.time_format, out)),
        (Output::Json, Some(rollup)) => {
            Box::new(RollupJson::new(rollup.settings, info, out).with_late_records(rollup.may_be_late))
        }
        (Output::Json, None) => Box::new(Json::new(config.events, info, out)),
        (Output::Table, Some(rollup)) => {
            let session = table::Session::new(info, names, config.time_format);
            Box::new(table::TextTable::new(rollup, config.color, session, out))
        }
        (Output::None | Output::Table, _) => return None,
    })
}
