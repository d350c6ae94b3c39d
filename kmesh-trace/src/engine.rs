//! Finished records → sinks: limits, the filter, tallies, and what each record adds.
//!
//! Live tracing and replay feed the same engine. It has no clock and no kernel: time comes in as a value.

use std::io;
use std::num::NonZeroU64;
use std::time::Instant;

use crate::config::Events;
use crate::filter::Filter;
use crate::output::Sink;
use crate::record::{Event, Lost, Record, Summary, WallTime};
use crate::track::delta::{Delta, Deltas};

/// The records that a run is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The events that count as delivered.
    pub events: Events,
    /// The filter that connections must pass.
    pub filter: Filter,
    /// The maximum number of delivered records.
    pub count: Option<NonZeroU64>,
}

/// The number of records by what happened to them. All but `printed` count closes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Delivered records of every event.
    pub printed: u64,
    /// Delivered to the sinks.
    pub delivered: u64,
    /// Filtered out, or of an event that was not asked for.
    pub filtered: u64,
    /// After `--count` or `--duration` was reached.
    pub after_limit: u64,
    /// Delivered with an end that belongs to a pod of this node and has no name.
    pub unresolved: u64,
}

impl Tally {
    /// Returns the number of all closes.
    pub fn closes(self) -> u64 {
        self.delivered + self.filtered + self.after_limit
    }
}

/// Feeds the sinks.
pub struct Engine {
    selection: Selection,
    /// No filter was given.
    passes_all: bool,
    /// What each record adds, if a sink needs it.
    deltas: Option<Deltas>,
    sinks: Vec<Box<dyn Sink>>,
    tally: Tally,
}

impl Engine {
    /// Returns an engine that feeds `sinks`, in this order.
    pub fn new(selection: Selection, sinks: Vec<Box<dyn Sink>>) -> Self {
        Self {
            passes_all: selection.filter == Filter::default(),
            selection,
            deltas: sinks.iter().any(|sink| sink.needs_deltas()).then(Deltas::default),
            sinks,
            tally: Tally::default(),
        }
    }

    /// Returns what the records so far came to.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Returns whether `--count` is reached.
    pub fn is_full(&self) -> bool {
        self.selection
            .count
            .is_some_and(|count| self.tally.printed >= count.get())
    }

    /// Takes the counters of a connection that was open when tracing began, as an update at that time.
    pub fn baseline(&mut self, record: &Record) -> io::Result<()> {
        if !self.passes(record) {
            return Ok(());
        }
        if let Some(deltas) = &mut self.deltas {
            deltas.baseline(record);
        }
        self.for_each(|sink| sink.baseline(record))
    }

    /// Takes the next record in the order of time. `is_late`: it happened after `--duration` was over.
    pub fn record(&mut self, record: &Record, is_late: bool) -> io::Result<()> {
        let close = u64::from(record.event == Event::Close);
        // The limit comes first: what would have been filtered out counts as `after_limit` too.
        if self.is_full() || is_late {
            self.tally.after_limit += close;
            return Ok(());
        }
        if !self.passes(record) {
            self.tally.filtered += close;
            return match record.event {
                Event::Close => self.filtered_close(record),
                _ => Ok(()),
            };
        }
        let delta = self
            .deltas
            .as_mut()
            .map_or_else(Delta::default, |deltas| deltas.take(record));
        self.for_each(|sink| sink.record(record, &delta))?;
        if self.selection.events.has(record.event) {
            self.tally.printed += 1;
            self.tally.delivered += close;
            self.tally.unresolved += close & u64::from(record.names.unresolved);
        } else {
            self.tally.filtered += close;
        }
        Ok(())
    }

    fn passes(&self, record: &Record) -> bool {
        self.passes_all || self.selection.filter.passes(record)
    }

    fn filtered_close(&mut self, record: &Record) -> io::Result<()> {
        if let Some(deltas) = &mut self.deltas {
            deltas.forget(record.id);
        }
        self.for_each(|sink| {
            sink.filtered_close(record.id);
            Ok(())
        })
    }

    /// Takes that all records of what happened before `until` have come.
    pub fn watermark(&mut self, until: WallTime) -> io::Result<()> {
        self.for_each(|sink| sink.watermark(until))
    }

    /// Takes a loss of records.
    pub fn lost(&mut self, lost: &Lost) -> io::Result<()> {
        self.for_each(|sink| sink.lost(lost))?;
        self.flush()
    }

    /// Takes the sums of the run, at its end or so far.
    pub fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        self.flush()?;
        self.for_each(|sink| sink.summary(summary))?;
        self.flush()
    }

    /// Lets no output wait for more.
    pub fn flush(&mut self) -> io::Result<()> {
        self.for_each(|sink| sink.flush())
    }

    /// Returns when [`Self::flush`] must be called, if nothing else calls it until then.
    pub fn flush_due(&self) -> Option<Instant> {
        self.sinks.iter().filter_map(|sink| sink.flush_due()).min()
    }

    /// Ends every output, also after one of them has failed. Returns the first error.
    pub fn finish(&mut self) -> io::Result<()> {
        let results: Vec<_> = self.sinks.iter_mut().map(|sink| sink.finish()).collect();
        results.into_iter().collect()
    }

    fn for_each(&mut self, mut call: impl FnMut(&mut dyn Sink) -> io::Result<()>) -> io::Result<()> {
        self.sinks.iter_mut().try_for_each(|sink| call(&mut **sink))
    }
}
