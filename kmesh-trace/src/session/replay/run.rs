//! The thread that reads captures and feeds the engine.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::live::{LiveStreams, MAX_HOLD};
use super::merge::{Merge, Next};
use super::merged_info;
use super::stream::{self, Stream};
use crate::capture::lines::Limits;
use crate::capture::parse::Line;
use crate::config::{TimeRange, Verbosity};
use crate::engine::{Engine, Selection, Tally};
use crate::filter::KnownNames;
use crate::join::{Join, Tagged};
use crate::names::offline::OfflineNames;
use crate::output::stderr::{status, warn};
use crate::record::{Event, Header, Record, RunInfo, Subject, Summary, WallTime};
use crate::session::end_after;
use crate::session::exit::Exit;

/// The number of records that may wait for names.
const MAX_WAITING: usize = 100_000;

/// A request of the user to the replay thread.
pub enum Request {
    End,
    /// Other groups or another filter need all records again.
    Reread,
}

/// The replay thread: feeds the engine with the lines of the streams, in the order of their times.
pub struct Replay {
    pub merge: Merge,
    /// The numbers of records of each stream.
    pub tallies: Vec<Tally>,
    /// Whether the node of each stream is known to the outputs.
    pub is_identified: Vec<bool>,
    pub nodes: Nodes,
    /// Joins both ends of connections, with `--join`.
    pub join: Option<Join>,
    /// Whether there is more than one stream.
    pub is_merged: bool,
    /// Records that wait for the names of their local end, and the index of their stream.
    pub waiting: VecDeque<(Instant, usize, Record)>,
    /// The names of the pods file, or of sources.
    pub offline: Option<OfflineNames>,
    pub engine: Engine,
    /// The part of the captures that is replayed.
    pub range: TimeRange<WallTime>,
    pub duration: Option<Duration>,
    pub stop: Arc<AtomicBool>,
    /// The requests of the user at the table on the terminal. `None` without such a table.
    pub requests: Option<Receiver<Request>>,
    /// The files, to read them again.
    pub inputs: Vec<stream::Input>,
    pub selection: Selection,
    /// The first instant that was traced, if it is known.
    pub traced_from: Option<WallTime>,
    /// The time of the first replayed record.
    pub start: Option<WallTime>,
    /// The start of the captures.
    pub header_start: WallTime,
    /// The time of the last replayed line.
    pub latest: WallTime,
    /// The number of closes of each stream outside of `range`.
    pub skipped: Vec<u64>,
    /// The names in the captures, if the filter has names.
    pub known: Option<KnownNames>,
    pub verbosity: Verbosity,
}

impl Replay {
    pub fn run(mut self) -> Result<Exit> {
        match self.replay() {
            Err(Failure::Output(error)) => return end_after(error, &mut self.engine),
            Err(Failure::Input(error)) => return Err(error),
            Ok(()) => {}
        }
        self.warn_of_unknown_names();
        let mut exit = Exit::Ok;
        for stream in &self.merge.streams {
            match stream.report_end() {
                Ok(false) => continue,
                Ok(true) => {}
                Err(error) if self.is_merged => status(&format!("{error:#}")),
                Err(error) => return Err(error),
            }
            exit = Exit::Failed;
        }
        Ok(exit)
    }

    fn replay(&mut self) -> Result<(), Failure> {
        self.read_all()?;
        self.engine.finish()?;
        while self.is_rereading_requested() {
            self.reread()?;
        }
        Ok(())
    }

    /// Waits for a request of the user, if there is a screen.
    fn is_rereading_requested(&self) -> bool {
        // Receiving fails if the screen is gone.
        let request = self.requests.as_ref().and_then(|requests| requests.recv().ok());
        matches!(request, Some(Request::Reread)) && !self.stop.load(Ordering::Relaxed)
    }

    /// Reads the files again for the table on the terminal, which is the first sink. The other sinks have all records.
    fn reread(&mut self) -> Result<(), Failure> {
        let mut sinks = self.engine.take_sinks();
        sinks.truncate(1);
        self.engine = Engine::new(self.selection.clone(), sinks);
        let restarted = self.inputs.iter().filter_map(stream::Input::restarted);
        self.merge = start(restarted.collect(), MAX_HOLD).map_err(Failure::Input)?;
        self.tallies.fill(Tally::default());
        self.join = self.join.is_some().then(Join::default);
        self.skipped.fill(0);
        (self.start, self.latest) = (None, self.header_start);
        self.read_all()?;
        Ok(self.engine.finish()?)
    }

    /// Feeds the engine with all lines.
    fn read_all(&mut self) -> Result<(), Failure> {
        let mut ends_with_summary = false;
        if let Some(start) = self.traced_from {
            self.engine.watermark(start)?;
        }
        loop {
            let index = match self.merge.next() {
                Next::Line(index) => index,
                Next::Idle if self.is_over_while_idle() => break self.merge.stop(),
                Next::Idle => {
                    self.idle()?;
                    continue;
                }
                Next::End => break,
            };
            self.identify(index);
            let stream = &mut self.merge.streams[index];
            let Some(line) = stream.take() else { continue };
            let time = stream.time();
            match line {
                Line::Record(record) => {
                    ends_with_summary = false;
                    if self.is_over(&record) {
                        break self.merge.stop();
                    }
                    self.latest = self.latest.max(time);
                    self.record(index, *record)?;
                }
                Line::Lost(lost) => {
                    self.latest = self.latest.max(time);
                    self.engine.lost(&lost)?;
                }
                Line::Summary(summary, info) => {
                    self.latest = self.latest.max(time);
                    // Several streams have their summaries at the end.
                    if !self.is_merged && self.join.is_none() {
                        ends_with_summary = true;
                        self.only_summary(&summary, &info)?;
                    }
                }
                Line::Header(_) => {}
            }
        }
        self.release(true)?;
        if let Some(join) = &mut self.join {
            join.finish();
            ends_with_summary = false;
        }
        self.deliver_joined()?;
        if !ends_with_summary {
            self.end_windows()?;
            self.summaries()?;
        }
        Ok(())
    }

    /// Takes a summary of the only stream.
    fn only_summary(&mut self, summary: &Summary, info: &RunInfo) -> io::Result<()> {
        let recorded = self.merge.streams[0].summary();
        self.merge.settle();
        let stream = &self.merge.streams[0];
        if stream.is_summary_next() {
            // The saved output of merged streams has a summary of each before the one of all.
            return match self.is_whole() {
                true => self.engine.stream_summary(summary, info),
                false => Ok(()),
            };
        }
        if !stream.has_line() {
            self.end_windows()?;
        }
        // Saved output has no header, so the kernel and the version are in its summary only.
        self.engine.set_info(info);
        let summary = self.with_tally(recorded, self.engine.tally(), self.skipped.iter().sum());
        self.engine.summary(&summary)
    }

    /// Reports the summaries of all streams.
    fn summaries(&mut self) -> io::Result<()> {
        if self.is_merged {
            for index in 0..self.merge.streams.len() {
                let stream = &self.merge.streams[index];
                let recorded = stream.summary();
                let info = stream.info().cloned().unwrap_or_else(|| Header::unknown().info);
                let summary = self.with_tally(recorded, self.tallies[index], self.skipped[index]);
                self.engine.stream_summary(&summary, &info)?;
            }
        }
        let mut merged = self.merged_summary();
        let start = self.start.unwrap_or(self.latest);
        if merged.elapsed_ns == 0 {
            merged.elapsed_ns = self.latest.0.saturating_sub(start.0).try_into().unwrap_or(0);
        }
        let merged = self.with_tally(merged, self.engine.tally(), self.skipped.iter().sum());
        let merged = Summary {
            join: self.join.as_ref().map(Join::counts),
            ..merged
        };
        if self.merge.streams.iter().any(|stream| stream.info().is_some()) {
            self.engine.set_info(&merged_info(&self.merge.streams));
        }
        self.engine.summary(&merged)
    }

    /// Returns the sum of the summaries of all streams. A connection that was open when a run ended may have been open
    /// in later runs on the same node too, so only the last of successive runs counts it.
    fn merged_summary(&self) -> Summary {
        let streams = &self.merge.streams;
        // The node of each stream, with the start and the end of its run. A run without a summary has no start.
        let runs: Vec<_> = streams
            .iter()
            .map(|stream| {
                let summary = stream.summary();
                let has_summary = summary.elapsed_ns > 0;
                let until = if has_summary { summary.time.0 } else { stream.time().0 };
                let elapsed = i64::try_from(summary.elapsed_ns).unwrap_or(i64::MAX);
                let node = stream.info().map(|info| &info.node);
                (node, has_summary.then(|| until.saturating_sub(elapsed)), until)
            })
            .collect();
        let mut merged = Summary::zero(self.latest);
        for (stream, (node, _, until)) in streams.iter().zip(&runs) {
            let mut recorded = stream.summary();
            let is_later =
                |(other, from, _): &(_, Option<i64>, i64)| other == node && from.is_some_and(|from| from >= *until);
            if node.is_some() && runs.iter().any(is_later) {
                (recorded.open, recorded.not_scanned) = (0, None);
            }
            merged.add(&recorded);
        }
        // From the first start to the last end: the runs need not have been at the same time.
        let first = runs.iter().filter_map(|(_, from, _)| *from).min();
        let last = runs.iter().map(|(_, _, until)| *until).max();
        if let (Some(first), Some(last)) = (first, last) {
            merged.elapsed_ns = last.saturating_sub(first).try_into().unwrap_or(0);
        }
        merged
    }

    /// Flushes the outputs and waits for a live stream.
    fn idle(&mut self) -> io::Result<()> {
        self.release(false)?;
        if let Some(until) = self.merge.watermark()
            && self.start.is_some()
        {
            let waiting = self.waiting.front().map_or(until, |(_, _, record)| record.time);
            let until = until.min(waiting);
            self.latest = self.latest.max(until);
            if let Some(join) = &mut self.join {
                join.advance(until);
            }
            self.deliver_joined()?;
            self.engine.watermark(until)?;
        }
        self.engine.flush()?;
        self.merge.wait();
        Ok(())
    }

    /// Tells the outputs the node of a stream when it becomes known.
    fn identify(&mut self, index: usize) {
        if !self.is_merged || self.is_identified[index] || self.merge.streams[index].info().is_none() {
            return;
        }
        self.is_identified[index] = true;
        self.engine.set_info(&merged_info(&self.merge.streams));
    }

    fn record(&mut self, index: usize, mut record: Record) -> io::Result<()> {
        record.id.node = self.nodes.number(&record.node);
        if let Some(other) = record.joined.as_mut().and_then(|joined| joined.other.as_mut()) {
            other.id.node = self.nodes.number(&other.node);
        }
        self.merge.streams[index].count(&record);
        if !self.range.contains(record.time) {
            self.skipped[index] += u64::from(record.event == Event::Close);
            return Ok(());
        }
        self.start.get_or_insert(record.time);
        if self.merge.streams[index].is_baseline(&record) {
            return self.engine.baseline(&record);
        }
        if !self.offline.as_ref().is_some_and(OfflineNames::has_sources) {
            return self.annotate(index, record);
        }
        self.waiting.push_back((Instant::now(), index, record));
        self.release(false)
    }

    /// Passes the records on that wait no longer for names; at the end, all records.
    fn release(&mut self, is_end: bool) -> io::Result<()> {
        if let Some(offline) = &mut self.offline {
            offline.refresh();
            if self.verbosity > Verbosity::Quiet
                && let Some(warning) = offline.memory_warning()
            {
                warn(&warning);
            }
        }
        while let Some((arrived, _, record)) = self.waiting.front() {
            let awaits = self.offline.as_ref().is_some_and(|offline| offline.awaits(record));
            let may_wait = !is_end && arrived.elapsed() < MAX_HOLD && self.waiting.len() <= MAX_WAITING;
            if awaits && may_wait {
                break;
            }
            if let Some((_, index, record)) = self.waiting.pop_front() {
                self.annotate(index, record)?;
            }
        }
        Ok(())
    }

    fn annotate(&mut self, index: usize, record: Record) -> io::Result<()> {
        let annotated = self.offline.as_mut().map(|offline| offline.annotate(&record));
        let record = annotated.unwrap_or(record);
        if let Some(known) = &mut self.known {
            known.add_record(&record);
        }
        let tag = u32::try_from(index).unwrap_or(u32::MAX);
        match &mut self.join {
            Some(join) if record.subject == Subject::Connection => join.take(record, tag),
            _ => {
                let tags = [Some(tag), None];
                return self.deliver(&Tagged { record, tags });
            }
        }
        self.deliver_joined()
    }

    /// Delivers the records that were joined, or wait no longer.
    fn deliver_joined(&mut self) -> io::Result<()> {
        while let Some(joined) = self.join.as_mut().and_then(Join::pop) {
            self.deliver(&joined)?;
        }
        Ok(())
    }

    /// Gives a record to the outputs, and counts it in the streams of its ends.
    fn deliver(&mut self, Tagged { record, tags }: &Tagged) -> io::Result<()> {
        let before = self.engine.tally();
        self.engine.record(record, false)?;
        let counted = self.engine.tally().since(before);
        for (end, index) in [Some(record), record.other()].into_iter().zip(tags) {
            if let Some(end) = end
                && let Some(index) = index
            {
                // The tag of a record that was joined before stands for both ends.
                let closes = if tags[1].is_some() {
                    end.closes().min(1)
                } else {
                    record.closes()
                };
                self.tallies[*index as usize].add(counted.of_closes(closes));
            }
        }
        Ok(())
    }

    /// Warns of names in the filter that no record of the captures has.
    fn warn_of_unknown_names(&self) {
        if self.verbosity > Verbosity::Quiet
            && let Some(known) = &self.known
        {
            let warnings = known.warnings(self.engine.filter());
            warnings.iter().for_each(|warning| warn(warning));
        }
    }

    fn is_over(&self, record: &Record) -> bool {
        self.is_after_end(record.time) || self.engine.is_full() || self.stop.load(Ordering::Relaxed)
    }

    /// Returns whether the run is over before the next record arrives.
    fn is_over_while_idle(&self) -> bool {
        let is_late = self.merge.watermark().is_some_and(|until| self.is_after_end(until));
        is_late || self.engine.is_full() || self.stop.load(Ordering::Relaxed)
    }

    fn is_after_end(&self, time: WallTime) -> bool {
        let is_late = self
            .duration
            .zip(self.start)
            .is_some_and(|(duration, start)| i128::from(time.0) - i128::from(start.0) > duration.as_nanos() as i128);
        is_late || self.range.is_after(time)
    }

    /// Ends the windows of rollups at the same times as the live run did.
    fn end_windows(&mut self) -> io::Result<()> {
        self.engine.watermark(self.latest)?;
        self.engine.watermark(WallTime::MAX)
    }

    /// Returns whether the run delivers every close of its only stream.
    fn is_whole(&self) -> bool {
        let tally = self.engine.tally();
        tally.filtered + tally.after_limit + self.skipped.iter().sum::<u64>() == 0
    }

    /// Returns `recorded`, the summary of streams, with the counts of this replay's filters and limits.
    fn with_tally(&self, recorded: Summary, tally: Tally, skipped: u64) -> Summary {
        let is_whole = tally.filtered + tally.after_limit + skipped == 0;
        Summary {
            delivered: tally.delivered,
            filtered: recorded.filtered.saturating_add(tally.filtered).saturating_add(skipped),
            after_limit: recorded.after_limit.saturating_add(tally.after_limit),
            // Lines do not contain which records are unresolved, so the number for a part of a capture is an estimate.
            unresolved: if is_whole {
                recorded.unresolved
            } else {
                tally.unresolved
            },
            ..recorded
        }
    }
}

/// Numbers the nodes of a replay, because the IDs of connections are unique only within a node.
#[derive(Debug, Default)]
pub struct Nodes {
    numbers: HashMap<Arc<str>, u32>,
    last: Option<(Arc<str>, u32)>,
}

impl Nodes {
    fn number(&mut self, node: &Arc<str>) -> u32 {
        if let Some((last, number)) = &self.last
            && last == node
        {
            return *number;
        }
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(Arc::clone(node)).or_insert(next);
        self.last = Some((Arc::clone(node), number));
        number
    }
}

/// The side of the replay that failed.
enum Failure {
    Input(anyhow::Error),
    Output(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Starts to read all inputs. Waits for the first lines of live ones for at most `max_wait`.
pub fn start(inputs: Vec<stream::Input>, max_wait: Duration) -> Result<Merge> {
    let live = Arc::new(LiveStreams::default());
    let limits = Limits::of_each(inputs.len());
    let streams = inputs.into_iter().map(|input| Stream::new(input, limits, &live));
    Ok(Merge::new(streams.collect::<Result<_>>()?, live, max_wait))
}
