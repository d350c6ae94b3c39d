//! One capture of a replay: the stream of its lines, and the damage that the stream contains.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};

use super::live::{Arrival, Held, Item, LiveStreams, next_item};
use crate::blocking_io::{Blocking, wait_until_readable};
use crate::capture::lines::{Damage, Limits, Lines, Step};
use crate::capture::parse::{Line, Parser};
use crate::config::{CapturePath, TimeBound, TimeRange};
use crate::output::stderr::status;
use crate::record::{Event, Header, LossReason, Record, RunInfo, Subject, Summary, WallTime};

/// The number of damaged parts that are reported one by one.
const MAX_REPORTED: u64 = 10;

pub struct Input {
    name: String,
    source: Source,
}

enum Source {
    StandardInput,
    /// Anything that is no regular file. It may still grow, and it cannot be read twice.
    Pipe(File),
    /// The output of a tracer on another node. The task of `session::nodes` that writes to the pipe reports how the
    /// tracer ends.
    Node(File),
    File(File),
}

impl Input {
    /// Opens the capture at `path`.
    pub fn open(path: &CapturePath) -> Result<Self> {
        Ok(match path {
            CapturePath::Pipe => Self {
                name: "standard input".to_owned(),
                source: Source::StandardInput,
            },
            CapturePath::File(path) => {
                let name = path.display().to_string();
                let metadata = fs::metadata(path).map_err(|error| cannot_read(&name, &error))?;
                let is_file = metadata.is_file() || metadata.is_dir();
                let file = if is_file { File::open(path) } else { open_pipe(path) };
                let file = file.map_err(|error| cannot_read(&name, &error))?;
                Self {
                    source: if is_file {
                        Source::File(file)
                    } else {
                        Source::Pipe(file)
                    },
                    name,
                }
            }
        })
    }

    /// Returns the output of a tracer on another node, which comes through a pipe.
    pub fn of_node(node: &str, pipe: File) -> Self {
        Self {
            name: format!("node {node}"),
            source: Source::Node(pipe),
        }
    }

    /// Returns whether the input may still grow.
    pub fn is_live(&self) -> bool {
        !matches!(self.source, Source::File(_))
    }

    /// Returns an input that reads the file from its start. `None` for a pipe.
    pub fn restarted(&self) -> Option<Self> {
        let Source::File(file) = &self.source else {
            return None;
        };
        let mut file = file.try_clone().ok()?;
        file.rewind().ok()?;
        Some(Self {
            name: self.name.clone(),
            source: Source::File(file),
        })
    }

    /// Returns the time of the last line. Reads the whole file, and rewinds the file afterwards.
    fn last_time(&self) -> Result<Option<WallTime>> {
        let Source::File(file) = &self.source else {
            bail!(
                "{}: the end of a pipe is unknown, so --since and --until cannot count from it\n  \
                 try: a time such as 2026-01-02T03:04:05Z",
                self.name
            );
        };
        let context = || {
            format!(
                "cannot find the end of {}, from which --since or --until counts",
                self.name
            )
        };
        let mut file = file.try_clone().with_context(context)?;
        let start = file.stream_position().with_context(context)?;
        let mut lines = Lines::new(Blocking(&file)).with_context(context)?;
        let mut parser = Parser::default();
        let mut last = None;
        loop {
            match lines.next_line().with_context(context)? {
                Step::Line(line) => {
                    if let Ok(line) = parser.parse(line) {
                        last = last.max(Some(time_of(&line)));
                    }
                }
                Step::Damage(_) => {}
                Step::End => break,
            }
        }
        file.seek(io::SeekFrom::Start(start)).with_context(context)?;
        Ok(last)
    }
}

/// Opens a pipe without waiting for its writer.
fn open_pipe(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    }
    options.read(true).open(path)
}

/// Returns the error of a capture that cannot be opened. Only its owner can read the file that `--write` created.
fn cannot_read(name: &str, error: &io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => format!("\n  try: sudo cat {name} | kmesh-trace --read -"),
        _ => String::new(),
    };
    anyhow!("cannot read {name}: {error}{remedy}")
}

/// Returns `range` with each duration before the end of the captures replaced by its time.
pub fn resolve(range: &TimeRange<TimeBound>, inputs: &[Input]) -> Result<TimeRange<WallTime>> {
    let mut end = None;
    if range.is_relative() {
        for input in inputs {
            end = end.max(input.last_time()?);
        }
    }
    let end = end.unwrap_or(WallTime::MAX);
    Ok(range.map(|bound| match *bound {
        TimeBound::At(time) => time,
        TimeBound::BeforeEnd(duration) => WallTime(
            end.0
                .saturating_sub(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)),
        ),
    }))
}

/// Where the lines of a stream come from.
enum Reader {
    File {
        lines: Box<Lines<Blocking<File>>>,
        parser: Parser,
        /// The time since which the lines are there.
        start: Instant,
    },
    Live {
        streams: Arc<LiveStreams>,
        /// The index of the stream's queue.
        queue: usize,
    },
}

/// A capture that is being replayed.
pub struct Stream {
    name: String,
    /// Whether the input is [`Source::Node`], so that `session::nodes` reports how the stream ends.
    is_of_node: bool,
    reader: Reader,
    header: Option<Header>,
    /// The node and the versions of its tracer, as far as they are known.
    info: Option<RunInfo>,
    next: Option<(Line, Held)>,
    /// The time of the last line that [`Self::advance`] read.
    time: WallTime,
    has_ended: bool,
    /// Whether reading failed, or a live stream ended without a summary.
    is_broken: bool,
    /// Whether the rest of the capture is ignored.
    is_stopped: bool,
    /// The number of damaged parts.
    damages: u64,
    is_cut_off: bool,
    /// Whether the last line that was read is a summary.
    has_summary: bool,
    /// The number of valid lines so far.
    valid_lines: u64,
    /// The number of closes so far.
    closes: u64,
    lost: u64,
    lost_reasons: Vec<LossReason>,
    summary: Option<Summary>,
}

impl Stream {
    /// Starts to read a capture within `limits`. A live one is read by a thread, which adds its lines to `live`.
    pub fn new(input: Input, limits: Limits, live: &Arc<LiveStreams>) -> Result<Self> {
        let Input { name, source } = input;
        let context = || format!("cannot read {name}");
        let live_reader = |queue: io::Result<usize>| {
            Ok::<_, anyhow::Error>(Reader::Live {
                streams: Arc::clone(live),
                queue: queue.with_context(context)?,
            })
        };
        let is_of_node = matches!(source, Source::Node(_));
        let reader = match source {
            Source::StandardInput => live_reader(live.start(limits, || Ok(Blocking(io::stdin()))))?,
            Source::Pipe(pipe) | Source::Node(pipe) => live_reader(live.start(limits, move || {
                // Before its writer opens a named pipe, reading it would return its end.
                wait_until_readable(&pipe)?;
                Ok(Blocking(pipe))
            }))?,
            Source::File(file) => Reader::File {
                lines: Box::new(Lines::with_limits(Blocking(file), limits).with_context(context)?),
                parser: Parser::default(),
                start: Instant::now(),
            },
        };
        Ok(Self {
            name,
            is_of_node,
            reader,
            header: None,
            info: None,
            next: None,
            time: WallTime(i64::MIN),
            has_ended: false,
            is_broken: false,
            is_stopped: false,
            damages: 0,
            is_cut_off: false,
            has_summary: false,
            valid_lines: 0,
            closes: 0,
            lost: 0,
            lost_reasons: Vec::new(),
            summary: None,
        })
    }

    /// Reads the next valid line that is not a header. A live stream may have none yet.
    pub fn advance(&mut self) {
        self.next = None;
        while self.next.is_none() && !self.has_ended {
            let Some((item, held)) = self.next_item() else { return };
            match item {
                Item::Line(line) => {
                    self.valid_lines += 1;
                    self.store(line, held);
                }
                Item::Damage(damage) => self.report(&damage),
                Item::End => {
                    self.has_ended = true;
                    self.check_end();
                }
                Item::Failed(error) => {
                    self.has_ended = true;
                    self.break_off(&format!("cannot read {}: {error}", self.name));
                }
            }
        }
    }

    fn next_item(&mut self) -> Option<(Item, Held)> {
        match &mut self.reader {
            Reader::Live { streams, queue } => {
                let arrival = streams.take(*queue)?;
                let held = Held::from(&arrival);
                let Arrival { item, .. } = arrival;
                Some((item, held))
            }
            Reader::File { lines, parser, start } => {
                let item = next_item(lines, parser).0;
                Some((item, Held::from_start(*start)))
            }
        }
    }

    fn store(&mut self, line: Line, held: Held) {
        // A line of a merged capture may be slightly earlier than its predecessor. Streams are merged by the latest
        // time.
        self.time = self.time.max(time_of(&line));
        self.has_summary = matches!(line, Line::Summary(..));
        self.identify(&line);
        match line {
            Line::Header(header) => {
                self.header.get_or_insert(header);
            }
            line => self.next = Some((line, held)),
        }
    }

    /// Stores what `line` says about the node.
    fn identify(&mut self, line: &Line) {
        match line {
            Line::Header(header) => self.info = Some(header.info.clone()),
            Line::Summary(_, info) if self.header.is_none() => self.info = Some(info.clone()),
            Line::Record(record) if self.info.is_none() && record.subject == Subject::Connection => {
                self.info = Some(RunInfo {
                    node: record.node.to_string(),
                    ..Header::unknown().info
                });
            }
            _ => {}
        }
    }

    fn report(&mut self, damage: &Damage) {
        self.is_cut_off |= *damage == Damage::CutOff;
        self.damages += 1;
        // The end of a live stream is reported in other words.
        let is_end = self.is_live() && *damage == Damage::CutOff;
        if self.damages <= MAX_REPORTED && !is_end {
            status(&format!("{}: {damage}", self.name));
        }
    }

    /// Reports a live stream that ended without a summary.
    fn check_end(&mut self) {
        if self.is_live() && !self.is_of_node && !self.has_summary && !self.is_stopped && self.valid_lines > 0 {
            let place = if self.is_cut_off {
                "in the middle of a line"
            } else {
                "without a summary"
            };
            self.break_off(&format!("{place}, so its last records may be missing"));
        }
    }

    fn break_off(&mut self, reason: &str) {
        self.is_broken = true;
        let name = match &self.info {
            Some(info) => format!("node {}", info.node),
            None => self.name.clone(),
        };
        status(&format!("{name}: the stream ended: {reason}"));
    }

    /// Returns whether the stream may still grow.
    pub fn is_live(&self) -> bool {
        matches!(self.reader, Reader::Live { .. })
    }

    /// Returns whether no line follows the one that [`Self::advance`] read.
    pub fn has_ended(&self) -> bool {
        self.has_ended || self.is_stopped
    }

    /// Returns the index of the live stream's queue.
    pub fn queue(&self) -> Option<usize> {
        match &self.reader {
            Reader::Live { queue, .. } => Some(*queue),
            Reader::File { .. } => None,
        }
    }

    /// Returns the node and the versions of its tracer, as far as they are known.
    pub fn info(&self) -> Option<&RunInfo> {
        self.info.as_ref()
    }

    /// Returns the header, or a header with the node and time of the first line.
    pub fn header(&self) -> Header {
        if let Some(header) = &self.header {
            return header.clone();
        }
        let mut header = Header::unknown();
        if let Some(info) = &self.info {
            header.info.clone_from(info);
        }
        if self.next.is_some() {
            header.start = self.time;
        }
        header
    }

    /// Returns whether [`Self::take`] returns a line.
    pub fn has_line(&self) -> bool {
        self.next.is_some() && !self.is_stopped
    }

    /// Returns whether the next line is a summary.
    pub fn is_summary_next(&self) -> bool {
        matches!(self.next, Some((Line::Summary(..), _)))
    }

    /// Returns the time of the latest line that was read.
    pub fn time(&self) -> WallTime {
        self.time
    }

    /// Returns the time since which the next line is held back.
    pub fn held(&self) -> Option<Held> {
        self.next.as_ref().map(|(_, held)| *held)
    }

    /// Takes the line that [`Self::advance`] read.
    pub fn take(&mut self) -> Option<Line> {
        let (line, _) = self.next.take()?;
        match &line {
            Line::Lost(lost) => {
                self.lost = lost.lost_records_total;
                self.lost_reasons.extend(&lost.reasons);
                self.lost_reasons.sort_unstable();
                self.lost_reasons.dedup();
            }
            Line::Summary(summary, _) => self.summary = Some(Summary::clone(summary)),
            _ => {}
        }
        Some(line)
    }

    /// Counts the closes that `record` stands for.
    pub fn count(&mut self, record: &Record) {
        self.closes += record.closes();
    }

    /// Ignores the rest of the capture.
    pub fn stop(&mut self) {
        self.is_stopped = true;
    }

    /// Returns whether `record` is the baseline of a connection: an update at the time when tracing began.
    pub fn is_baseline(&self, record: &Record) -> bool {
        let start = self.header.as_ref().map(|header| header.start);
        record.event == Event::Update && record.preexisting && Some(record.time) == start
    }

    /// Returns the summary of the capture. Records that are missing from the capture count as lost. The records of
    /// earlier parts of a rotated capture do not count.
    pub fn summary(&self) -> Summary {
        let closes = self.closes;
        let Some(recorded) = self.summary.as_ref().filter(|_| !self.is_stopped) else {
            return Summary {
                closes: closes.saturating_add(self.lost),
                lost_records: self.lost,
                reasons: self.lost_reasons.clone(),
                ..Summary::zero(self.time)
            };
        };
        let closes_before = self.header.as_ref().map_or(0, |header| header.closes_before);
        let missing = recorded.delivered.saturating_sub(closes_before).saturating_sub(closes);
        let mut reasons = recorded.reasons.clone();
        if missing > 0 && !reasons.contains(&LossReason::Undecodable) {
            reasons.push(LossReason::Undecodable);
        }
        Summary {
            closes: recorded.closes.saturating_sub(closes_before),
            lost_records: recorded.lost_records.saturating_add(missing),
            reasons,
            ..recorded.clone()
        }
    }

    /// Returns an error if no line so far is a line of a capture.
    pub fn check_content(&self) -> Result<()> {
        if self.valid_lines == 0 {
            bail!(
                "{}: not a capture: no line of the file is a record\n  \
                 try: a file that -w wrote, or saved output of -o json",
                self.name
            );
        }
        Ok(())
    }

    /// Reports problems of the whole capture. Returns whether the replay counts as failed.
    pub fn report_end(&self) -> Result<bool> {
        if self.damages > MAX_REPORTED {
            status(&format!(
                "{}: {} more damaged parts",
                self.name,
                self.damages - MAX_REPORTED
            ));
        }
        if self.is_broken {
            return Ok(true);
        }
        if self.is_of_node {
            return Ok(self.damages > 0);
        }
        self.check_content()?;
        if self.summary.is_none() && !self.is_cut_off && !self.is_stopped && self.header.is_some() {
            status(&format!(
                "{}: no summary: the tracer was killed, it still writes, or the file is an older part of a rotated \
                 capture",
                self.name
            ));
        }
        Ok(self.damages > 0)
    }
}

fn time_of(line: &Line) -> WallTime {
    match line {
        Line::Header(header) => header.start,
        Line::Record(record) => record.time,
        Line::Lost(lost) => lost.time,
        Line::Summary(summary, _) => summary.time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_of_another_user_has_a_remedy() {
        let denied = cannot_read("incident.jsonl.zst", &ErrorKind::PermissionDenied.into()).to_string();
        assert!(
            denied.ends_with("\n  try: sudo cat incident.jsonl.zst | kmesh-trace --read -"),
            "{denied}"
        );
        let absent = cannot_read("x", &ErrorKind::NotFound.into()).to_string();
        assert!(!absent.contains("try:"), "{absent}");
    }
}
