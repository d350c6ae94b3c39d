//! Records as text.
//!
//! A renderer is told what there is and where to write it; it knows no clock, looks nothing up, and hands on each line
//! with a single write. Its scratch memory is its own, so that in the steady state a record allocates nothing.

#[cfg(test)]
pub(crate) mod allocations;
mod json;
mod line;
mod log;
#[cfg(test)]
mod replay;
mod rollup;
pub mod sanitize;
pub mod table;
pub mod term;
#[cfg(test)]
pub(crate) mod testing;
pub mod words;

pub use json::Json;
pub use log::Log;
pub use rollup::RollupJson;

use crate::config::{Output, RollupConfig};
use crate::note::NamesFrom;
use crate::record::{ConnId, Lost, Record, RunInfo, Summary, WallTime};
use std::io::{self, Write};

/// A format of standard output. Errors are those of `out`.
pub trait Render {
    /// Writes one record.
    fn record(&mut self, record: &Record, out: &mut dyn Write) -> io::Result<()>;

    /// Takes note of a connection that ended by a close that the filter does not pass. For formats that count what is open.
    fn ended(&mut self, _id: ConnId) {}

    /// All records of what happened before `until` have come; at the end that is all of time. For formats that print
    /// windows of time.
    fn complete(&mut self, _until: WallTime, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    /// Writes that records were lost, if the format has lines for it. If not ([`Output::has_reports`]), it is for the
    /// caller to say so on standard error, in [`words`].
    fn lost(&mut self, lost: &Lost, out: &mut dyn Write) -> io::Result<()>;

    /// Writes the closing sums; as with [`Render::lost`].
    fn summary(&mut self, summary: &Summary, out: &mut dyn Write) -> io::Result<()>;
}

/// `-o none`: no data at all.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl Render for Nothing {
    fn record(&mut self, _: &Record, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    fn lost(&mut self, _: &Lost, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    fn summary(&mut self, _: &Summary, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

/// The renderer of `output`, but for a table on a terminal. `color` is for formats that have some.
pub fn renderer(
    output: Output,
    rolled: Option<&RollupConfig>,
    color: bool,
    info: &RunInfo,
    names: &NamesFrom,
) -> Box<dyn Render + Send> {
    match (output, rolled) {
        (Output::Log, _) => Box::new(Log::new(color)),
        (Output::Json, Some(rolled)) => Box::new(RollupJson::new(rolled.settings, info)),
        (Output::Json, None) => Box::new(Json::new(info)),
        (Output::Table, Some(rolled)) => {
            let RollupConfig {
                settings, sort, top, ..
            } = rolled;
            Box::new(table::Blocks::new(*settings, *sort, *top, color, info, names))
        }
        (Output::None | Output::Table, _) => Box::new(Nothing),
    }
}
