//! Feeds the sinks with finished records: applies the limits and the filter, counts, and computes the delta of each
//! record.
//!
//! Live tracing and replay use the same engine. The engine is pure: time is an argument.

use std::io;
use std::num::NonZeroU64;
use std::time::Instant;

use crate::config::{Config, Events};
use crate::filter::Filter;
use crate::output::Sink;
use crate::record::{ConnId, Event, Lost, Record, RunInfo, Subject, Summary, WallTime};
use crate::track::delta::{Delta, Deltas};

/// The records that a run delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The events that count as delivered. Sinks get the other events, too.
    pub events: Events,
    /// The filter that connections must pass.
    pub filter: Filter,
    /// The maximum number of delivered records.
    pub count: Option<NonZeroU64>,
}

impl Selection {
    /// Returns the records that `config` asks for.
    pub fn of(config: &Config) -> Self {
        Self {
            events: config.events,
            filter: config.filter.clone(),
            count: config.count,
        }
    }
}

/// The number of records by their fate. All fields except `printed` count closes only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The delivered records of every event.
    pub printed: u64,
    /// The closes that were delivered.
    pub delivered: u64,
    /// The closes that the filter rejects, or that the selected events exclude.
    pub filtered: u64,
    /// The closes after `--count` or `--duration` was reached.
    pub after_limit: u64,
    /// The delivered closes with a pod of this node whose name is unknown.
    pub unresolved: u64,
}

impl Tally {
    /// Returns the number of all closes.
    pub fn closes(self) -> u64 {
        self.delivered + self.filtered + self.after_limit
    }

    /// Returns the records that were counted since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            printed: self.printed - before.printed,
            delivered: self.delivered - before.delivered,
            filtered: self.filtered - before.filtered,
            after_limit: self.after_limit - before.after_limit,
            unresolved: self.unresolved - before.unresolved,
        }
    }

    /// Returns the part of one record's tally that is about `closes` of its closes.
    pub fn of_closes(self, closes: u64) -> Self {
        Self {
            printed: self.printed,
            delivered: self.delivered.min(closes),
            filtered: self.filtered.min(closes),
            after_limit: self.after_limit.min(closes),
            unresolved: self.unresolved.min(closes),
        }
    }

    /// Adds the numbers of other records.
    pub fn add(&mut self, more: Self) {
        self.printed += more.printed;
        self.delivered += more.delivered;
        self.filtered += more.filtered;
        self.after_limit += more.after_limit;
        self.unresolved += more.unresolved;
    }
}

/// The stage that filters and counts records, and feeds the sinks.
pub struct Engine {
    selection: Selection,
    /// Whether the filter passes every record.
    passes_all: bool,
    /// Computes the delta of each record, if a sink needs deltas.
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

    /// Returns the numbers of records so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Returns the filter that records must pass.
    pub fn filter(&self) -> &Filter {
        &self.selection.filter
    }

    /// Returns whether `--count` is reached.
    pub fn is_full(&self) -> bool {
        self.selection
            .count
            .is_some_and(|count| self.tally.printed >= count.get())
    }

    /// Takes the counters of a connection that was open when tracing began. `record` is an update at that time.
    pub fn baseline(&mut self, record: &Record) -> io::Result<()> {
        // Even if the record does not pass: no name is known at the start, and the next record may pass.
        if let Some(deltas) = &mut self.deltas {
            deltas.baseline(record);
        }
        if !self.passes(record) {
            return Ok(());
        }
        self.for_each(|sink| sink.baseline(record))
    }

    /// Takes the next record in the order of time. `is_late` is true for a record after the end of `--duration`.
    pub fn record(&mut self, record: &Record, is_late: bool) -> io::Result<()> {
        if record.subject != Subject::Connection {
            return self.report(record, is_late);
        }
        if !self.passes(record) {
            return self.reject(record, is_late);
        }
        let close = record.closes();
        if self.is_full() || is_late {
            self.tally.after_limit += close;
            return Ok(());
        }
        let delta = self
            .deltas
            .as_mut()
            .map_or_else(Delta::default, |deltas| deltas.take(record));
        self.for_each(|sink| sink.record(record, &delta))?;
        if self.selection.events.has(record.event) {
            self.tally.printed += 1;
            self.tally.delivered += close;
            let ends = [Some(record), record.other()].into_iter().flatten();
            let unresolved = ends.filter(|end| end.event == Event::Close && end.names.unresolved);
            self.tally.unresolved += unresolved.count() as u64;
        } else {
            self.tally.filtered += close;
        }
        Ok(())
    }

    /// Takes a record that is about no connection.
    fn report(&mut self, record: &Record, is_late: bool) -> io::Result<()> {
        if is_late || self.is_full() || !self.passes(record) {
            return Ok(());
        }
        self.for_each(|sink| sink.report(record))?;
        self.tally.printed += u64::from(self.selection.events.has_subject(record.subject));
        Ok(())
    }

    /// Takes the next record as [`Self::record`] does, but as one that the filter rejects. Closes after a limit count
    /// as such.
    pub fn reject(&mut self, record: &Record, is_late: bool) -> io::Result<()> {
        let close = record.closes();
        if self.is_full() || is_late {
            self.tally.after_limit += close;
            return Ok(());
        }
        self.tally.filtered += close;
        if record.event == Event::Close || self.selection.filter.is_revocable() {
            self.exclude(record.id)?;
        }
        Ok(())
    }

    fn passes(&self, record: &Record) -> bool {
        let passes = |record| self.selection.filter.passes(record);
        self.passes_all || passes(record) || record.other().is_some_and(passes)
    }

    /// Makes the deltas and the sinks forget a connection that no longer passes the filter, or a listening socket that
    /// is gone.
    pub fn exclude(&mut self, id: ConnId) -> io::Result<()> {
        if let Some(deltas) = &mut self.deltas {
            deltas.forget(id);
        }
        self.for_each(|sink| {
            sink.exclude(id);
            Ok(())
        })
    }

    /// Returns the sinks, which get nothing more from this engine.
    pub fn take_sinks(&mut self) -> Vec<Box<dyn Sink>> {
        std::mem::take(&mut self.sinks)
    }

    /// Tells the sinks that no more records before `until` follow.
    pub fn watermark(&mut self, until: WallTime) -> io::Result<()> {
        self.for_each(|sink| sink.watermark(until))
    }

    /// Reports a loss of records to the sinks.
    pub fn lost(&mut self, lost: &Lost) -> io::Result<()> {
        self.for_each(|sink| sink.lost(lost))?;
        self.flush()
    }

    /// Gives a summary to the sinks, at the end of the run or on request.
    pub fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        self.flush()?;
        self.for_each(|sink| sink.summary(summary))?;
        self.flush()
    }

    /// Gives the summary of one of several streams to the sinks.
    pub fn stream_summary(&mut self, summary: &Summary, info: &RunInfo) -> io::Result<()> {
        self.for_each(|sink| sink.stream_summary(summary, info))
    }

    /// Tells the sinks what is known about the streams of the run.
    pub fn set_info(&mut self, info: &RunInfo) {
        self.sinks.iter_mut().for_each(|sink| sink.set_info(info));
    }

    /// Flushes the unwritten data of every sink.
    pub fn flush(&mut self) -> io::Result<()> {
        self.for_each(|sink| sink.flush())
    }

    /// Returns the deadline of the next [`Self::flush`], if a sink has unwritten data.
    pub fn flush_due(&self) -> Option<Instant> {
        self.sinks.iter().filter_map(|sink| sink.flush_due()).min()
    }

    /// Finishes every sink, even if one fails. Returns the first error.
    pub fn finish(&mut self) -> io::Result<()> {
        let results: Vec<_> = self.sinks.iter_mut().map(|sink| sink.finish()).collect();
        results.into_iter().collect()
    }

    fn for_each(&mut self, mut call: impl FnMut(&mut dyn Sink) -> io::Result<()>) -> io::Result<()> {
        self.sinks.iter_mut().try_for_each(|sink| call(&mut **sink))
    }
}
