//! `--read`: captures go through the same [`Engine`] as a live trace. Nothing here needs Linux.

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
use crate::names::objects::file;
use crate::names::offline::OfflineNames;
use crate::output::NameSourceStatus;
use crate::output::stderr::say;
use crate::output::term::{self, Jobs};
use crate::record::{Event, Header, Record, Summary, WallTime};
use crate::session::exit::Exit;
use crate::session::outputs;

/// The files of a replay: open, and nothing of them is parsed yet.
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

/// Replays captures, and adds the names of a pods file.
pub fn replay(config: &Config, files: Files, offline: Option<OfflineNames>) -> Result<Exit> {
    let range = stream::resolve(&config.range, &files.inputs)?;
    let mut streams = files.inputs.into_iter().map(Stream::new).collect::<Result<Vec<_>>>()?;
    for stream in &mut streams {
        stream.advance()?;
    }
    // A capture of a replay begins only if there is something to replay.
    if let [stream] = &streams[..] {
        stream.check_content()?;
    }
    let header = merged_header(&streams);
    if config.verbosity == Verbosity::Verbose {
        say(&format!(
            "{}: of kmesh-trace {:?}, kernel {:?}",
            header.info.node, header.info.version, header.info.kernel
        ));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (quit, quits) = channel();
    let names = NameSourceStatus::default();
    let of_file: &[&str] = if offline.is_some() { &["the file"] } else { &[] };
    names.set(&[&["the capture"], of_file].concat(), false);
    let capture = files.target.map(|target| (target, header.clone()));
    let outputs = outputs::open(config, &header.info, &names, capture, {
        let (stop, quit) = (Arc::clone(&stop), quit.clone());
        move || {
            stop.store(true, Ordering::Relaxed);
            _ = quit.send(());
        }
    })?;
    let selection = Selection {
        events: config.events,
        filter: config.filter.clone(),
        count: config.count,
    };
    let replay = Replay {
        is_merged: streams.len() > 1,
        streams,
        offline,
        engine: Engine::new(selection, outputs.sinks),
        range,
        duration: config.duration,
        stop: Arc::clone(&stop),
        quits: outputs.screen.is_some().then_some(quits),
        began: None,
        latest: header.start,
        skipped: 0,
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
        Jobs::of(outputs.screen).context("cannot listen for signals")?
    };
    runtime.block_on(wait(end, &stop, &quit, jobs))
}

/// Returns the header for what the streams make together.
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

/// Reads `--pods-file`. It was saved at an unknown time, so its pods count by when they started.
pub fn offline_names(config: &Config) -> Result<Option<OfflineNames>> {
    let file = config.sources.iter().find_map(|source| match &source.origin {
        Origin::File(path) => Some(path),
        _ => None,
    });
    let Some(path) = file else { return Ok(None) };
    let file = file::read(path)?;
    if config.verbosity > Verbosity::Quiet {
        say(&format!("names come from {} ({file})", path.display()));
    }
    Ok(Some(OfflineNames::new(file.objects)))
}

/// Waits for the end. The first interrupt ends the replay in order, the second one at once.
async fn wait(
    mut end: oneshot::Receiver<Result<Exit>>,
    stop: &AtomicBool,
    quit: &Sender<()>,
    mut jobs: Jobs,
) -> Result<Exit> {
    loop {
        tokio::select! {
            ended = &mut end => return ended.context("the replaying thread died")?,
            () = jobs.obey() => {}
            () = interrupted() => {
                if stop.swap(true, Ordering::Relaxed) {
                    term::leave();
                    exit(Exit::Ok as i32);
                }
                // It fails when the replay has ended already.
                _ = quit.send(());
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

/// Feeds the engine with the lines of the streams, in the order of their times.
struct Replay {
    streams: Vec<Stream>,
    /// There is more than one stream.
    is_merged: bool,
    /// The names of the pods file.
    offline: Option<OfflineNames>,
    engine: Engine,
    /// The part that is replayed.
    range: TimeRange<WallTime>,
    duration: Option<Duration>,
    stop: Arc<AtomicBool>,
    /// Says when the user at the screen quits, if there is a screen.
    quits: Option<Receiver<()>>,
    /// When the replayed part began.
    began: Option<WallTime>,
    /// The time of the last line.
    latest: WallTime,
    /// The number of closes outside of the range.
    skipped: u64,
}

impl Replay {
    fn run(mut self) -> Result<Exit> {
        match self.replay() {
            // The reader of standard output is gone, which is no failure.
            Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => {
                _ = self.engine.finish();
                return Ok(Exit::Ok);
            }
            Err(Failure::Output(error)) => return Err(explain(error)),
            Err(Failure::Input(error)) => return Err(error),
            Ok(()) => {}
        }
        let mut exit = Exit::Ok;
        for stream in &self.streams {
            if stream.report_end()? {
                exit = Exit::Failed;
            }
        }
        Ok(exit)
    }

    fn replay(&mut self) -> Result<(), Failure> {
        let mut is_summed = false;
        while let Some(index) = self.first_stream() {
            let stream = &mut self.streams[index];
            let Some(line) = stream.take() else { break };
            let time = stream.time();
            match line {
                Line::Record(record) => {
                    if self.is_over(&record) {
                        self.streams.iter_mut().for_each(Stream::stop);
                        is_summed = false;
                        break;
                    }
                    self.latest = time;
                    is_summed = false;
                    self.record(index, &record)?;
                }
                Line::Lost(lost) => {
                    self.latest = time;
                    self.engine.lost(&lost)?;
                }
                Line::Summary(..) => {
                    self.latest = time;
                    self.streams[index].advance().map_err(Failure::Input)?;
                    // The sums of several streams come at the end, in one.
                    if !self.is_merged {
                        if !self.streams[index].has_line() {
                            self.end_windows()?;
                        }
                        is_summed = true;
                        let summary = self.with_tally(self.streams[index].summary());
                        self.engine.summary(&summary)?;
                    }
                    continue;
                }
                Line::Header(_) => {}
            }
            self.streams[index].advance().map_err(Failure::Input)?;
        }
        if !is_summed {
            self.end_windows()?;
            let summary = self.merged_summary();
            self.engine.summary(&summary)?;
        }
        self.engine.finish()?;
        if let Some(quits) = &self.quits {
            // It fails when there is no screen any more.
            _ = quits.recv();
        }
        Ok(())
    }

    fn record(&mut self, index: usize, record: &Record) -> io::Result<()> {
        if !self.range.contains(record.time) {
            self.skipped += u64::from(record.event == Event::Close);
            self.streams[index].count(record);
            return Ok(());
        }
        self.began.get_or_insert(record.time);
        self.streams[index].count(record);
        if self.streams[index].is_baseline(record) {
            return self.engine.baseline(record);
        }
        match &mut self.offline {
            Some(offline) => self.engine.record(&offline.annotate(record), false),
            None => self.engine.record(record, false),
        }
    }

    /// Returns the stream with the earliest line.
    fn first_stream(&self) -> Option<usize> {
        let streams = self.streams.iter().enumerate().filter(|(_, stream)| stream.has_line());
        streams.min_by_key(|(_, stream)| stream.time()).map(|(index, _)| index)
    }

    fn is_over(&self, record: &Record) -> bool {
        let is_late = self.duration.zip(self.began).is_some_and(|(duration, began)| {
            i128::from(record.time.0) - i128::from(began.0) > duration.as_nanos() as i128
        });
        is_late || self.engine.is_full() || self.stop.load(Ordering::Relaxed) || self.range.is_after(record.time)
    }

    /// Ends the windows as the live run did.
    fn end_windows(&mut self) -> io::Result<()> {
        self.engine.watermark(self.latest)?;
        self.engine.watermark(WallTime::MAX)
    }

    /// Adds what became of the records here to the sums of a stream.
    fn with_tally(&self, of_run: Summary) -> Summary {
        let tally = self.engine.tally();
        let is_whole = tally.filtered + tally.after_limit + self.skipped == 0;
        Summary {
            delivered: tally.delivered,
            filtered: of_run
                .filtered
                .saturating_add(tally.filtered)
                .saturating_add(self.skipped),
            after_limit: of_run.after_limit.saturating_add(tally.after_limit),
            // Lines do not say which records are unresolved, so that a part of them can only be estimated.
            unresolved: if is_whole { of_run.unresolved } else { tally.unresolved },
            ..of_run
        }
    }

    /// Returns the sums of all streams, with what there is of a stream that has no summary.
    fn merged_summary(&self) -> Summary {
        let mut merged = Summary::zero(self.latest);
        for summary in self.streams.iter().map(Stream::summary) {
            merged.add(&summary);
        }
        let began = self.began.unwrap_or(self.latest);
        if merged.elapsed_ns == 0 {
            merged.elapsed_ns = self.latest.0.saturating_sub(began.0).try_into().unwrap_or(0);
        }
        self.with_tally(merged)
    }
}

/// The side that failed.
enum Failure {
    Input(anyhow::Error),
    Output(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}
