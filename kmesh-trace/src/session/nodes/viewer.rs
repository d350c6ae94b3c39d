//! The thread that adds names to the records of all nodes, and feeds the engine.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use tokio::sync::{mpsc, watch};

use super::Message;
use super::arrivals::Arrivals;
use crate::capture::parse::Line;
use crate::config::Verbosity;
use crate::engine::Engine;
use crate::filter::KnownNames;
use crate::names::offline::OfflineNames;
use crate::names::update::SourceUpdate;
use crate::output::stderr::warn;
use crate::record::{Event, Record, Summary, WallTime};
use crate::session::exit::Exit;
use crate::session::explain;

/// A record may arrive this long after its event, ns. Windows end after this time.
const MAX_DELAY_NS: i64 = 2_000_000_000;
/// The bits of a socket's cookie that stay as they are. The others distinguish the nodes.
const COOKIE_BITS: u32 = 48;

/// The records of one node.
pub struct NodeStream {
    pub name: Arc<str>,
    /// The time when tracing began, if the stream says it.
    start: Option<WallTime>,
    /// The number of closes so far.
    closes: u64,
    lost: u64,
    summary: Option<Summary>,
    has_ended: bool,
}

impl NodeStream {
    pub fn new(name: Arc<str>) -> Self {
        Self {
            name,
            start: None,
            closes: 0,
            lost: 0,
            summary: None,
            has_ended: false,
        }
    }

    /// Returns the node's own summary, or what is known without one.
    fn summary(&self, now: WallTime) -> Summary {
        self.summary.clone().unwrap_or_else(|| Summary {
            closes: self.closes.saturating_add(self.lost),
            lost_records: self.lost,
            ..Summary::zero(now)
        })
    }
}

/// Feeds the engine with the records of all nodes.
pub struct Viewer {
    pub streams: Vec<NodeStream>,
    /// `None` without names.
    pub names: Option<OfflineNames>,
    /// What sources report.
    pub updates: Receiver<Vec<SourceUpdate>>,
    pub engine: Engine,
    pub arrivals: Arrivals,
    /// Ends the run when a limit is reached.
    pub stop: watch::Sender<bool>,
    pub verbosity: Verbosity,
    /// The start of the run.
    pub start: Instant,
}

impl Viewer {
    /// Runs until all nodes have ended, or until an output fails.
    pub fn run(mut self, mut messages: mpsc::Receiver<Message>) -> Result<Exit> {
        let result = self.view(&mut messages);
        self.stop.send_replace(true);
        match result {
            // The reader of standard output closed it, which is a normal end.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                _ = self.engine.finish();
                Ok(Exit::Ok)
            }
            Err(error) => Err(explain(error)),
            Ok(()) => Ok(Exit::Ok),
        }
    }

    fn view(&mut self, messages: &mut mpsc::Receiver<Message>) -> io::Result<()> {
        self.engine.watermark(now())?;
        while !self.streams.iter().all(|stream| stream.has_ended) {
            let Some(message) = messages.blocking_recv() else { break };
            match message {
                Message::Lines(node, lines) => {
                    let arrived = Instant::now();
                    lines
                        .into_iter()
                        .for_each(|line| self.arrivals.push(node, line, arrived));
                }
                Message::Ended(node) => self.streams[node].has_ended = true,
                Message::NamesArrived => {}
                Message::NamesSettled => self.warn_of_unknown_names(),
                Message::Tick => {
                    self.engine.watermark(WallTime(now().0.saturating_sub(MAX_DELAY_NS)))?;
                }
                Message::SummaryRequested => {
                    let summary = self.summary();
                    self.engine.summary(&summary)?;
                }
            }
            self.apply_names();
            self.release(false)?;
            self.engine.flush()?;
            if self.engine.is_full() {
                self.stop.send_replace(true);
            }
        }
        self.end()
    }

    fn apply_names(&mut self) {
        let Some(names) = &mut self.names else { return };
        for updates in self.updates.try_iter() {
            updates.iter().for_each(|update| names.apply(update));
        }
    }

    /// Passes the lines on that need not wait; at the end of the run, all lines.
    fn release(&mut self, is_end: bool) -> io::Result<()> {
        loop {
            let names = self.names.as_ref();
            let is_ready = |line: &Line| match (line, names) {
                (Line::Record(record), Some(names)) => is_end || names.knows_local_end(record),
                _ => true,
            };
            let Some((node, line)) = self.arrivals.pop(Instant::now(), is_ready) else {
                return Ok(());
            };
            match line {
                Line::Header(header) => self.streams[node].start = Some(header.start),
                Line::Record(record) => self.record(node, *record)?,
                Line::Lost(lost) => {
                    self.streams[node].lost = lost.lost_records_total;
                    self.engine.lost(&lost)?;
                }
                Line::Summary(summary, _) => self.streams[node].summary = Some(*summary),
            }
        }
    }

    fn record(&mut self, node: usize, mut record: Record) -> io::Result<()> {
        let stream = &mut self.streams[node];
        // A pod does not know the name of its node.
        record.node = Arc::clone(&stream.name);
        // The cookies of two nodes may be the same.
        record.id.cookie ^= (node as u64) << COOKIE_BITS;
        stream.closes += u64::from(record.event == Event::Close);
        let is_baseline = record.event == Event::Update && record.preexisting && stream.start == Some(record.time);
        if let Some(names) = &mut self.names {
            record = names.annotate_at(&record, now());
        }
        match is_baseline {
            true => self.engine.baseline(&record),
            false => self.engine.record(&record, false),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        self.release(true)?;
        self.engine.watermark(now())?;
        self.engine.watermark(WallTime::MAX)?;
        let summary = self.summary();
        self.engine.summary(&summary)?;
        self.engine.finish()
    }

    /// Returns the sum of the summaries of all nodes, with the counts of the filters and limits here.
    fn summary(&self) -> Summary {
        let mut sum = Summary::zero(now());
        for stream in &self.streams {
            sum.add(&stream.summary(sum.time));
        }
        let tally = self.engine.tally();
        Summary {
            delivered: tally.delivered,
            filtered: sum.filtered.saturating_add(tally.filtered),
            after_limit: sum.after_limit.saturating_add(tally.after_limit),
            unresolved: tally.unresolved,
            elapsed_ns: self.start.elapsed().as_nanos() as u64,
            ..sum
        }
    }

    /// Warns of names in the filter that the API server does not know.
    fn warn_of_unknown_names(&mut self) {
        let filter = self.engine.filter();
        if self.verbosity == Verbosity::Quiet || !filter.has_names() {
            return;
        }
        let mut known = KnownNames::default();
        if let Some(names) = &mut self.names {
            names.store().for_each_pod(|pod| known.add_pod(pod));
            names.store().for_each_service(|service| known.add_service(service));
        }
        known.warnings(filter).iter().for_each(|warning| warn(warning));
    }
}

fn now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
