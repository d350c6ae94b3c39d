//! The back half: from finished records to output. Limits, filter, tallies, and what of them is told.
//!
//! It knows no clock and no kernel: what happens when comes in as a value. So a replay goes through it just as a live trace does.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::time::Instant;

use anyhow::{Error, anyhow};

use crate::capture::{Keep, KeepError};
use crate::config::Events;
use crate::filter::Filter;
use crate::record::{Counts, Event, LossReason, Lost, Record, Summary, WallTime};
use crate::render::Render;

/// Bytes of output that are written at once.
const WRITE: usize = 64 << 10;

/// Which records go to the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Of these events.
    pub events: Events,
    /// Of connections that pass this.
    pub filter: Filter,
    /// At most so many records.
    pub count: Option<NonZeroU64>,
}

/// What counts records.
pub trait Meter: Send {
    /// How a connection stood when tracing began.
    fn base(&mut self, record: &Record);

    /// Counts a record.
    fn record(&mut self, record: &Record);

    /// So many records were lost so far, and so many connections are open.
    fn told(&self, lost: u64, open: u64);

    /// So many pods are known.
    fn pods(&self, known: usize);

    /// All records of what happened before `now` have come.
    fn tidy(&mut self, now: WallTime);
}

/// A moment of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// By the wall clock.
    pub time: WallTime,
    /// Since tracing began, ns.
    pub elapsed_ns: u64,
}

/// What became of the closes that were told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    /// Records of whatever event.
    printed: u64,
    delivered: u64,
    filtered: u64,
    after_limit: u64,
    undecodable: u64,
    unresolved: u64,
}

impl Tally {
    /// All that were told.
    fn closes(self) -> u64 {
        self.delivered + self.filtered + self.after_limit + self.undecodable
    }
}

/// The state between finished records and output.
pub struct Delivery<W> {
    choice: Choice,
    /// No filter was given.
    passes_all: bool,
    render: Box<dyn Render + Send>,
    /// Counts what passes the filter, whatever of it is printed.
    metrics: Option<Box<dyn Meter>>,
    /// Also gets all that is rendered.
    keep: Option<Keep>,
    /// Lines not written yet.
    lines: Vec<u8>,
    out: W,
    tally: Tally,
    /// As of the last `lost` line.
    told: Losses,
    /// Why records were lost and how many, as a replay was told.
    told_again: (Vec<LossReason>, u64),
    /// Summaries asked for meanwhile, each to be made when all closes counted until then have been dealt with.
    asked: VecDeque<(Counts, Moment)>,
    /// Summaries made, for the caller to say in words.
    made: Vec<Summary>,
}

/// Losses by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Losses {
    ring_full: u64,
    no_storage: u64,
    skipped: u64,
    undecodable: u64,
}

impl Losses {
    fn total(self) -> u64 {
        self.ring_full + self.no_storage + self.skipped + self.undecodable
    }

    fn since(self, before: Self) -> Self {
        Self {
            ring_full: self.ring_full - before.ring_full,
            no_storage: self.no_storage - before.no_storage,
            skipped: self.skipped - before.skipped,
            undecodable: self.undecodable - before.undecodable,
        }
    }

    fn reasons(self) -> Vec<LossReason> {
        let all = [
            (self.ring_full, LossReason::RingFull),
            (self.no_storage, LossReason::NoSocketStorage),
            (self.skipped, LossReason::ProgramSkipped),
            (self.undecodable, LossReason::Undecodable),
        ];
        all.into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(_, reason)| reason)
            .collect()
    }
}

impl<W: Write> Delivery<W> {
    /// Nothing has been told yet.
    pub fn new(choice: Choice, render: Box<dyn Render + Send>, out: W) -> Self {
        Self {
            passes_all: choice.filter == Filter::default(),
            choice,
            render,
            metrics: None,
            keep: None,
            lines: Vec::new(),
            out,
            tally: Tally::default(),
            told: Losses::default(),
            told_again: (Vec::new(), 0),
            asked: VecDeque::new(),
            made: Vec::new(),
        }
    }

    /// Counts them, too.
    pub fn with_metrics(mut self, metrics: Box<dyn Meter>) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// How a connection stood when tracing began. It is no record, and is not printed.
    pub fn base(&mut self, record: &Record) {
        if let Some(metrics) = &mut self.metrics {
            metrics.base(record);
        }
    }

    /// So many pods are known.
    pub fn pods(&self, known: usize) {
        if let Some(metrics) = &self.metrics {
            metrics.pods(known);
        }
    }

    /// What the kernel half has counted so far.
    pub fn counted(&self, counts: &Counts) {
        if let Some(metrics) = &self.metrics {
            metrics.told(self.losses(counts).total(), counts.open);
        }
    }

    /// All that is rendered goes there, too.
    pub fn with_keep(mut self, keep: Keep) -> Self {
        self.keep = Some(keep);
        self
    }

    /// When [`Self::keep_up`] must be called, if nothing else is until then.
    pub fn due(&self) -> Option<Instant> {
        self.keep.as_ref().and_then(Keep::due)
    }

    /// Lets nothing that is to be kept wait for longer than it may.
    pub fn keep_up(&mut self) -> io::Result<()> {
        self.keep.as_mut().map_or(Ok(()), Keep::write_due)
    }

    /// Nothing more will come, neither to the output nor to what is kept.
    pub fn end(&mut self) -> io::Result<()> {
        self.flush()?;
        self.end_keep()
    }

    /// The same when there is no output any more.
    pub fn end_keep(&mut self) -> io::Result<()> {
        self.keep.as_mut().map_or(Ok(()), Keep::end)
    }

    /// Whether `--count` is reached.
    pub fn is_full(&self) -> bool {
        self.choice.count.is_some_and(|count| self.tally.printed >= count.get())
    }

    /// The next record, in the order of time. `too_late`: it happened after `--duration` was over.
    pub fn record(&mut self, record: &Record, too_late: bool) -> io::Result<()> {
        self.deliver(record, too_late)?;
        if self.asked.is_empty() { Ok(()) } else { self.answer() }
    }

    /// Something was told that cannot be understood.
    pub fn undecodable(&mut self) {
        self.tally.undecodable += 1;
    }

    /// All records of what happened before `until` have come.
    pub fn complete(&mut self, until: WallTime) -> io::Result<()> {
        self.render.complete(until, &mut self.lines)?;
        if let Some(metrics) = &mut self.metrics {
            metrics.tidy(until);
        }
        if let Some(keep) = &mut self.keep {
            keep.complete(until)?;
        }
        self.flush()
    }

    fn deliver(&mut self, record: &Record, too_late: bool) -> io::Result<()> {
        // The sums are over closes; an `open` or an `update` more or less changes none.
        let close = u64::from(record.event == Event::Close);
        // The limit comes first: what would have been sorted out counts as `after_limit`, too. And what is sorted out
        // does not count against `--count`.
        if self.is_full() || too_late {
            self.tally.after_limit += close;
            return Ok(());
        }
        let is_chosen = self.choice.events.has(record.event);
        if !((is_chosen || self.metrics.is_some()) && (self.passes_all || self.choice.filter.passes(record))) {
            self.tally.filtered += close;
            if record.event == Event::Close {
                self.render.ended(record.id);
            }
            return Ok(());
        }
        if let Some(metrics) = &mut self.metrics {
            metrics.record(record);
        }
        if !is_chosen {
            self.tally.filtered += close;
            return Ok(());
        }
        self.render.record(record, &mut self.lines)?;
        if let Some(keep) = &mut self.keep {
            keep.record(record)?;
        }
        self.tally.printed += 1;
        self.tally.delivered += close;
        self.tally.unresolved += close & u64::from(record.names.unresolved);
        if self.lines.len() >= WRITE {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// What was lost since this was last called, if anything was: a `lost` line is written. For formats that have none
    /// the caller says it in words.
    pub fn lost(&mut self, counts: &Counts, at: Moment) -> io::Result<Option<Lost>> {
        self.counted(counts);
        let losses = self.losses(counts);
        let new = losses.since(self.told);
        if new.total() == 0 {
            return Ok(None);
        }
        self.told = losses;
        let lost = Lost {
            time: at.time,
            lost_records: new.total(),
            lost_records_total: losses.total(),
            reasons: new.reasons(),
        };
        self.tell_lost(&lost)?;
        Ok(Some(lost))
    }

    /// What was lost, as a capture has it.
    pub fn lost_again(&mut self, lost: &Lost) -> io::Result<()> {
        let (reasons, total) = &mut self.told_again;
        reasons.extend(&lost.reasons);
        reasons.sort_unstable();
        reasons.dedup();
        *total = lost.lost_records_total;
        self.tell_lost(lost)
    }

    fn tell_lost(&mut self, lost: &Lost) -> io::Result<()> {
        self.render.lost(lost, &mut self.lines)?;
        if let Some(keep) = &mut self.keep {
            keep.lost(lost)?;
        }
        self.flush()
    }

    /// A summary is wanted of these counts. It is made between the records that were counted and those that were not, and
    /// comes out of [`Self::summaries`].
    pub fn ask(&mut self, counts: Counts, at: Moment) -> io::Result<()> {
        self.asked.push_back((counts, at));
        self.answer()
    }

    /// The summaries made since this was last called.
    pub fn summaries(&mut self) -> Vec<Summary> {
        std::mem::take(&mut self.made)
    }

    fn answer(&mut self) -> io::Result<()> {
        while self
            .asked
            .front()
            .is_some_and(|(counts, _)| counts.told <= self.tally.closes())
            && let Some((counts, at)) = self.asked.pop_front()
        {
            let summary = self.summary(&counts, at)?;
            self.made.push(summary);
        }
        Ok(())
    }

    /// How many of what so far: a `summary` line is written. For formats that have none the caller says it in words.
    pub fn summary(&mut self, counts: &Counts, at: Moment) -> io::Result<Summary> {
        let losses = self.losses(counts);
        let mut reasons = losses.reasons();
        if counts.skipped_at_most > 0 && !reasons.contains(&LossReason::ProgramSkipped) {
            reasons.push(LossReason::ProgramSkipped);
            reasons.sort_unstable();
        }
        let summary = Summary {
            time: at.time,
            closes: counts.closes + counts.skipped_at_most,
            delivered: self.tally.delivered,
            filtered: counts.filtered + self.tally.filtered,
            lost_records: losses.total() + counts.skipped_at_most,
            lost_at_most: counts.skipped_at_most,
            reasons,
            after_limit: self.tally.after_limit,
            unresolved: self.tally.unresolved,
            open: counts.open,
            elapsed_ns: at.elapsed_ns,
        };
        self.tell_summary(&summary)?;
        Ok(summary)
    }

    /// The sums of a replay from those of the run, of which an earlier part of the capture had so many closes. What is not in
    /// the capture any more counts as lost.
    pub fn summary_again(&mut self, of_run: &Summary, closes_before: u64) -> io::Result<Summary> {
        let here = of_run.delivered.saturating_sub(closes_before);
        let missing = here.saturating_sub(self.tally.closes());
        let mut reasons = of_run.reasons.clone();
        if missing > 0 && !reasons.contains(&LossReason::Undecodable) {
            reasons.push(LossReason::Undecodable);
        }
        let summary = Summary {
            closes: of_run.closes.saturating_sub(closes_before),
            delivered: self.tally.delivered,
            filtered: of_run.filtered.saturating_add(self.tally.filtered),
            lost_records: of_run.lost_records.saturating_add(missing),
            reasons,
            after_limit: of_run.after_limit.saturating_add(self.tally.after_limit),
            unresolved: self.tally.unresolved,
            ..of_run.clone()
        };
        self.tell_summary(&summary)?;
        Ok(summary)
    }

    /// The sums of a replay that did not come to those of the run.
    pub fn summary_so_far(&mut self, at: Moment) -> io::Result<Summary> {
        let (reasons, lost_records) = self.told_again.clone();
        let summary = Summary {
            time: at.time,
            closes: self.tally.closes().saturating_add(lost_records),
            delivered: self.tally.delivered,
            filtered: self.tally.filtered,
            lost_records,
            lost_at_most: 0,
            reasons,
            after_limit: self.tally.after_limit,
            unresolved: self.tally.unresolved,
            open: 0,
            elapsed_ns: at.elapsed_ns,
        };
        self.tell_summary(&summary)?;
        Ok(summary)
    }

    fn tell_summary(&mut self, summary: &Summary) -> io::Result<()> {
        self.render.summary(summary, &mut self.lines)?;
        if let Some(keep) = &mut self.keep {
            keep.summary(summary)?;
        }
        self.flush()
    }

    fn losses(&self, counts: &Counts) -> Losses {
        Losses {
            ring_full: counts.ring_full,
            no_storage: counts.no_storage,
            skipped: counts.skipped,
            undecodable: self.tally.undecodable,
        }
    }

    /// Writes what there is.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        self.out.write_all(&self.lines)?;
        self.lines.clear();
        self.out.flush()
    }
}

/// What to say of an error of [`Delivery`].
pub fn explain(error: io::Error) -> Error {
    if error.get_ref().is_some_and(|inner| inner.is::<KeepError>()) {
        return error.into();
    }
    anyhow!("cannot write to standard output: {error}\n  try: a place with room, or -o none")
}

#[cfg(test)]
impl Delivery<Vec<u8>> {
    /// What has been written.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }
}
