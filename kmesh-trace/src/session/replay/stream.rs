//! One capture of a replay: the stream of its lines, and the damage that the stream contains.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek};

use anyhow::{Context, Result, anyhow, bail};

use crate::blocking_io::Blocking;
use crate::capture::lines::{Damage, Lines, Step};
use crate::capture::parse::{Line, Parser};
use crate::config::{CapturePath, TimeBound, TimeRange};
use crate::output::stderr::status;
use crate::record::Header;
use crate::record::{Event, LossReason, Record, Summary, WallTime};

/// The number of damaged places that are reported one by one.
const MAX_REPORTED: u64 = 10;

pub struct Input {
    name: String,
    source: Source,
}

enum Source {
    Pipe(Box<dyn Read + Send>),
    File(File),
}

impl Input {
    /// Opens the capture at `path`.
    pub fn open(path: &CapturePath) -> Result<Self> {
        Ok(match path {
            CapturePath::Pipe => Self {
                name: "standard input".to_owned(),
                source: Source::Pipe(Box::new(Blocking(io::stdin()))),
            },
            CapturePath::File(path) => {
                let name = path.display().to_string();
                let file = File::open(path).map_err(|error| cannot_read(&name, &error))?;
                Self {
                    source: Source::File(file),
                    name,
                }
            }
        })
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

/// A capture that is being replayed.
pub struct Stream {
    name: String,
    lines: Lines<Box<dyn Read + Send>>,
    parser: Parser,
    header: Option<Header>,
    next: Option<Line>,
    /// The time of the last line that [`Self::advance`] read.
    time: WallTime,
    has_ended: bool,
    /// Whether the rest of the capture is ignored.
    is_stopped: bool,
    /// The number of damaged places.
    damages: u64,
    is_cut_off: bool,
    /// The number of valid lines so far.
    valid_lines: u64,
    /// The number of closes so far.
    closes: u64,
    lost: u64,
    lost_reasons: Vec<LossReason>,
    summary: Option<Summary>,
}

impl Stream {
    /// Starts to read a capture.
    pub fn new(input: Input) -> Result<Self> {
        let Input { name, source } = input;
        let source: Box<dyn Read + Send> = match source {
            Source::Pipe(pipe) => pipe,
            Source::File(file) => Box::new(Blocking(file)),
        };
        let lines = Lines::new(source).with_context(|| format!("cannot read {name}"))?;
        Ok(Self {
            name,
            lines,
            parser: Parser::default(),
            header: None,
            next: None,
            time: WallTime(i64::MIN),
            has_ended: false,
            is_stopped: false,
            damages: 0,
            is_cut_off: false,
            valid_lines: 0,
            closes: 0,
            lost: 0,
            lost_reasons: Vec::new(),
            summary: None,
        })
    }

    /// Reads the next valid line that is not a header.
    pub fn advance(&mut self) -> Result<()> {
        self.next = None;
        while self.next.is_none() && !self.has_ended {
            let step = self.lines.next_line();
            let damage = match step.with_context(|| format!("cannot read {}", self.name))? {
                Step::Line(line) => match self.parser.parse(line) {
                    Ok(line) => {
                        self.valid_lines += 1;
                        self.store(line);
                        continue;
                    }
                    Err(problem) => Damage::Line {
                        number: self.lines.number(),
                        problem,
                    },
                },
                Step::Damage(damage) => damage,
                Step::End => {
                    self.has_ended = true;
                    continue;
                }
            };
            self.report(&damage);
        }
        Ok(())
    }

    fn store(&mut self, line: Line) {
        // A line of a merged capture may be slightly earlier than its predecessor. Streams are merged by the latest
        // time.
        self.time = self.time.max(time_of(&line));
        match line {
            Line::Header(header) => {
                self.header.get_or_insert(header);
            }
            line => self.next = Some(line),
        }
    }

    fn report(&mut self, damage: &Damage) {
        self.is_cut_off |= *damage == Damage::CutOff;
        self.damages += 1;
        if self.damages <= MAX_REPORTED {
            status(&format!("{}: {damage}", self.name));
        }
    }

    /// Returns the header, or a header with the node and time of the first line.
    pub fn header(&self) -> Header {
        if let Some(header) = &self.header {
            return header.clone();
        }
        let mut header = Header::unknown();
        match &self.next {
            Some(Line::Record(record)) => header.info.node = record.node.to_string(),
            Some(Line::Summary(_, info)) => header.info.clone_from(info),
            _ => {}
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

    /// Returns the time of the latest line that was read.
    pub fn time(&self) -> WallTime {
        self.time
    }

    /// Takes the line that [`Self::advance`] read.
    pub fn take(&mut self) -> Option<Line> {
        let line = self.next.take();
        match &line {
            Some(Line::Lost(lost)) => {
                self.lost = lost.lost_records_total;
                self.lost_reasons.extend(&lost.reasons);
                self.lost_reasons.sort_unstable();
                self.lost_reasons.dedup();
            }
            Some(Line::Summary(summary, _)) => self.summary = Some(Summary::clone(summary)),
            _ => {}
        }
        line
    }

    /// Counts `record` if it is a close.
    pub fn count(&mut self, record: &Record) {
        self.closes += u64::from(record.event == Event::Close);
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
                "{}: {} more damaged places",
                self.name,
                self.damages - MAX_REPORTED
            ));
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
