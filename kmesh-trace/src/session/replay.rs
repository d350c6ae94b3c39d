//! The replay session (`--read`): feeds the records of captures to the same [`Engine`] as a live trace. It runs on any
//! system.

mod stream;

use std::future::pending;
use std::io::{self, ErrorKind};
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::oneshot;

use self::stream::Stream;
use super::explain;
use crate::capture::Target;
use crate::capture::parse::Line;
use crate::config::{CaptureConfig, Config, Origin, TimeRange, Verbosity};
use crate::engine::{Engine, Selection};
use crate::filter::KnownNames;
use crate::findings::Abilities;
use crate::names::objects::file;
use crate::names::offline::OfflineNames;
use crate::output::stderr::{status, warn};
use crate::output::table::view::UiCommand;
use crate::output::term::{self, JobControl};
use crate::output::{NameSourceStatus, Sink};
use crate::record::{Event, Header, Record, Summary, WallTime};
use crate::session::exit::Exit;
use crate::session::outputs;

/// The open files of a replay. Nothing of them has been parsed yet.
pub struct Files {
    inputs: Vec<stream::Input>,
    target: Option<Target>,
}

/// Opens the captures, and creates the file that the replay is written to.
pub fn open(config: &Config) -> Result<Files> {
    let inputs = config.read.iter().map(stream::Input::open).collect::<Result<_>>()?;
    let target = config.capture.as_ref();
    let target = target.map(|CaptureConfig { path, rotation }| Target::create(path, *rotation));
    Ok(Files {
        inputs,
        target: target.transpose()?,
    })
}

/// Replays captures, and adds the names of a pods file to their records.
pub fn replay(config: &Config, files: Files, offline: Option<OfflineNames>) -> Result<Exit> {
    let range = stream::resolve(&config.range, &files.inputs)?;
    let inputs: Vec<_> = files.inputs.iter().filter_map(stream::Input::restarted).collect();
    let mut streams = files.inputs.into_iter().map(Stream::new).collect::<Result<Vec<_>>>()?;
    for stream in &mut streams {
        stream.advance()?;
    }
    // A file that is no capture is an error before `--write` creates a header.
    if let [stream] = &streams[..] {
        stream.check_content()?;
    }
    let header = merged_header(&streams);
    if config.verbosity == Verbosity::Verbose {
        status(&format!(
            "{}: written by kmesh-trace {:?}, kernel {:?}",
            header.info.node, header.info.version, header.info.kernel
        ));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (requests, received) = channel();
    let names = NameSourceStatus::default();
    let of_file: &[&str] = if offline.is_some() { &["the file"] } else { &[] };
    names.set(&[&["the capture"], of_file].concat(), false);
    let capture = files.target.map(|target| (target, header.clone()));
    let outputs = outputs::open(config, &header.info, &names, capture, Abilities::default(), {
        let (stop, requests) = (Arc::clone(&stop), requests.clone());
        move |command| {
            // Sending fails when the replay has ended.
            _ = requests.send(match command {
                UiCommand::Quit => {
                    stop.store(true, Ordering::Relaxed);
                    Request::End
                }
                _ => Request::Reread,
            });
        }
    })?;
    let replay = Replay {
        inputs,
        requests: outputs.screen.is_some().then_some(received),
        ..replay_of(
            config,
            streams,
            offline,
            outputs.sinks,
            range,
            &header,
            Arc::clone(&stop),
        )
    };
    let (ended, end) = oneshot::channel();
    thread::Builder::new()
        .name("replay".to_owned())
        // The receiver is dropped only when the process is about to end.
        .spawn(move || _ = ended.send(replay.run()))
        .context("cannot start a thread")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let jobs = {
        let _context = runtime.enter();
        JobControl::new(outputs.screen).context("cannot listen for signals")?
    };
    runtime.block_on(wait(end, &stop, &requests, jobs))
}

/// Replays captures into one sink, on this thread.
pub fn feed(config: &Config, files: Files, offline: Option<OfflineNames>, sink: Box<dyn Sink>) -> Result<Exit> {
    let range = stream::resolve(&config.range, &files.inputs)?;
    let mut streams = files.inputs.into_iter().map(Stream::new).collect::<Result<Vec<_>>>()?;
    for stream in &mut streams {
        stream.advance()?;
    }
    if let [stream] = &streams[..] {
        stream.check_content()?;
    }
    let header = merged_header(&streams);
    let stop = Arc::new(AtomicBool::new(false));
    replay_of(config, streams, offline, vec![sink], range, &header, stop).run()
}

/// Returns a replay without a screen.
fn replay_of(
    config: &Config,
    streams: Vec<Stream>,
    offline: Option<OfflineNames>,
    sinks: Vec<Box<dyn Sink>>,
    range: TimeRange<WallTime>,
    header: &Header,
    stop: Arc<AtomicBool>,
) -> Replay {
    let selection = Selection {
        events: config.events,
        filter: config.filter.clone(),
        count: config.count,
    };
    Replay {
        is_merged: streams.len() > 1,
        streams,
        offline,
        engine: Engine::new(selection.clone(), sinks),
        selection,
        inputs: Vec::new(),
        range,
        duration: config.duration,
        stop,
        requests: None,
        traced_from: traced_from(header, range),
        start: None,
        header_start: header.start,
        latest: header.start,
        skipped: 0,
        known: config.filter.has_names().then(KnownNames::default),
        verbosity: config.verbosity,
    }
}

/// Returns the header of the merged streams: all nodes, and the earliest start.
fn merged_header(streams: &[Stream]) -> Header {
    let mut headers = streams.iter().map(Stream::header);
    let mut merged = headers.next().unwrap_or_else(Header::unknown);
    for header in headers {
        if !merged.info.node.split(',').any(|node| node == header.info.node) {
            merged.info.node = format!("{},{}", merged.info.node, header.info.node);
        }
        merged.start = merged.start.min(header.start);
    }
    merged
}

/// Returns the first instant of `range` that was traced. A capture without a header does not say it, and a later part
/// of a rotated capture has the start of the first part.
fn traced_from(header: &Header, range: TimeRange<WallTime>) -> Option<WallTime> {
    let is_known = header.part == 0 && header.start > WallTime(0);
    is_known.then(|| range.since.map_or(header.start, |since| since.max(header.start)))
}

/// Reads `--pods-file`. The time at which the file was saved is unknown, so a pod owns its address from its start time
/// on.
pub fn offline_names(config: &Config) -> Result<Option<OfflineNames>> {
    let file = config.sources.iter().find_map(|source| match &source.origin {
        Origin::File(path) => Some(path),
        _ => None,
    });
    let Some(path) = file else { return Ok(None) };
    let file = file::read(path)?;
    if config.verbosity > Verbosity::Quiet {
        status(&format!("names come from {} ({file})", path.display()));
    }
    Ok(Some(OfflineNames::new(file.objects)))
}

/// Waits for the end of the replay. The first interrupt stops the replay in order, the second one exits at once.
async fn wait(
    mut end: oneshot::Receiver<Result<Exit>>,
    stop: &AtomicBool,
    requests: &Sender<Request>,
    mut jobs: JobControl,
) -> Result<Exit> {
    loop {
        tokio::select! {
            ended = &mut end => return ended.context("the replay thread panicked")?,
            () = jobs.handle_next() => {}
            () = interrupted() => {
                if stop.swap(true, Ordering::Relaxed) {
                    term::leave();
                    exit(Exit::Ok as i32);
                }
                // This fails if the replay has already ended.
                _ = requests.send(Request::End);
            }
        }
    }
}

#[cfg(unix)]
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = || Ok::<_, io::Error>((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?));
    match listen() {
        Ok((mut interrupt, mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        Err(_) => pending().await,
    }
}

#[cfg(not(unix))]
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        pending().await
    }
}

/// A request of the user to the replay thread.
enum Request {
    End,
    /// Other groups or another filter need all records again.
    Reread,
}

/// The replay thread: feeds the engine with the lines of the streams, in the order of their times.
struct Replay {
    streams: Vec<Stream>,
    /// Whether there is more than one stream.
    is_merged: bool,
    /// The names of the pods file.
    offline: Option<OfflineNames>,
    engine: Engine,
    /// The part of the captures that is replayed.
    range: TimeRange<WallTime>,
    duration: Option<Duration>,
    stop: Arc<AtomicBool>,
    /// The requests of the user at the table on the terminal. `None` without such a table.
    requests: Option<Receiver<Request>>,
    /// The files, to read them again.
    inputs: Vec<stream::Input>,
    selection: Selection,
    /// The first instant that was traced, if it is known.
    traced_from: Option<WallTime>,
    /// The time of the first replayed record.
    start: Option<WallTime>,
    /// The start of the captures.
    header_start: WallTime,
    /// The time of the last replayed line.
    latest: WallTime,
    /// The number of closes outside of `range`.
    skipped: u64,
    /// The names in the captures, if the filter has names.
    known: Option<KnownNames>,
    verbosity: Verbosity,
}

impl Replay {
    fn run(mut self) -> Result<Exit> {
        match self.replay() {
            // The reader of standard output closed it, which is a normal end.
            Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => {
                _ = self.engine.finish();
                return Ok(Exit::Ok);
            }
            Err(Failure::Output(error)) => return Err(explain(error)),
            Err(Failure::Input(error)) => return Err(error),
            Ok(()) => {}
        }
        self.warn_of_unknown_names();
        let mut exit = Exit::Ok;
        for stream in &self.streams {
            if stream.report_end()? {
                exit = Exit::Failed;
            }
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
        let streams = restarted.map(Stream::new).collect::<Result<Vec<_>>>();
        self.streams = streams.map_err(Failure::Input)?;
        for stream in &mut self.streams {
            stream.advance().map_err(Failure::Input)?;
        }
        (self.start, self.latest, self.skipped) = (None, self.header_start, 0);
        self.read_all()?;
        Ok(self.engine.finish()?)
    }

    /// Feeds the engine with all lines.
    fn read_all(&mut self) -> Result<(), Failure> {
        let mut ends_with_summary = false;
        if let Some(start) = self.traced_from {
            self.engine.watermark(start)?;
        }
        while let Some(index) = self.first_stream() {
            let stream = &mut self.streams[index];
            let Some(line) = stream.take() else { break };
            let time = stream.time();
            match line {
                Line::Record(record) => {
                    if self.is_over(&record) {
                        self.streams.iter_mut().for_each(Stream::stop);
                        ends_with_summary = false;
                        break;
                    }
                    self.latest = time;
                    ends_with_summary = false;
                    self.record(index, &record)?;
                }
                Line::Lost(lost) => {
                    self.latest = time;
                    self.engine.lost(&lost)?;
                }
                Line::Summary(..) => {
                    self.latest = time;
                    self.streams[index].advance().map_err(Failure::Input)?;
                    // Several streams have one merged summary at the end.
                    if !self.is_merged {
                        if !self.streams[index].has_line() {
                            self.end_windows()?;
                        }
                        ends_with_summary = true;
                        let summary = self.with_tally(self.streams[index].summary());
                        self.engine.summary(&summary)?;
                    }
                    continue;
                }
                Line::Header(_) => {}
            }
            self.streams[index].advance().map_err(Failure::Input)?;
        }
        if !ends_with_summary {
            self.end_windows()?;
            let summary = self.merged_summary();
            self.engine.summary(&summary)?;
        }
        Ok(())
    }

    fn record(&mut self, index: usize, record: &Record) -> io::Result<()> {
        if !self.range.contains(record.time) {
            self.skipped += u64::from(record.event == Event::Close);
            self.streams[index].count(record);
            return Ok(());
        }
        self.start.get_or_insert(record.time);
        self.streams[index].count(record);
        if self.streams[index].is_baseline(record) {
            return self.engine.baseline(record);
        }
        let annotated = self.offline.as_mut().map(|offline| offline.annotate(record));
        let record = annotated.as_ref().unwrap_or(record);
        if let Some(known) = &mut self.known {
            known.add_record(record);
        }
        self.engine.record(record, false)
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

    /// Returns the stream with the earliest line.
    fn first_stream(&self) -> Option<usize> {
        let streams = self.streams.iter().enumerate().filter(|(_, stream)| stream.has_line());
        streams.min_by_key(|(_, stream)| stream.time()).map(|(index, _)| index)
    }

    fn is_over(&self, record: &Record) -> bool {
        let is_late = self.duration.zip(self.start).is_some_and(|(duration, start)| {
            i128::from(record.time.0) - i128::from(start.0) > duration.as_nanos() as i128
        });
        is_late || self.engine.is_full() || self.stop.load(Ordering::Relaxed) || self.range.is_after(record.time)
    }

    /// Ends the windows of rollups at the same times as the live run did.
    fn end_windows(&mut self) -> io::Result<()> {
        self.engine.watermark(self.latest)?;
        self.engine.watermark(WallTime::MAX)
    }

    /// Returns `recorded`, the summary of a stream, with the counts of this replay's filters and limits.
    fn with_tally(&self, recorded: Summary) -> Summary {
        let tally = self.engine.tally();
        let is_whole = tally.filtered + tally.after_limit + self.skipped == 0;
        Summary {
            delivered: tally.delivered,
            filtered: recorded
                .filtered
                .saturating_add(tally.filtered)
                .saturating_add(self.skipped),
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

    /// Returns the sum of the summaries of all streams.
    fn merged_summary(&self) -> Summary {
        let mut merged = Summary::zero(self.latest);
        for summary in self.streams.iter().map(Stream::summary) {
            merged.add(&summary);
        }
        let start = self.start.unwrap_or(self.latest);
        if merged.elapsed_ns == 0 {
            merged.elapsed_ns = self.latest.0.saturating_sub(start.0).try_into().unwrap_or(0);
        }
        self.with_tally(merged)
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
