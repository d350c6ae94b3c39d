//! The replay session (`--read`): feeds the records of captures to the same [`Engine`] as a live trace. It runs on any
//! system.

mod live;
mod merge;
mod run;
mod stream;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::oneshot;

use self::live::MAX_HOLD;
use self::run::{Nodes, Replay, Request, start};
use self::stream::Stream;
use crate::capture::Target;
use crate::config::{Config, Origin, TimeRange, Verbosity};
use crate::engine::{Engine, Selection, Tally};
use crate::filter::KnownNames;
use crate::findings::Abilities;
use crate::join::Join;
use crate::names::objects::file;
use crate::names::offline::OfflineNames;
use crate::output::stderr::status;
use crate::output::table::view::UiCommand;
use crate::output::term::{self, JobControl};
use crate::output::{NameSourceStatus, Sink};
use crate::record::{Header, RunInfo, WallTime};
use crate::session::exit::Exit;
use crate::session::signals::EndSignals;
use crate::session::{event_loop, outputs};

/// The open files of a replay. Nothing of them has been parsed yet.
pub struct Files {
    inputs: Vec<stream::Input>,
    target: Option<Target>,
    /// The header of all streams, if it is known before their first lines.
    header: Option<Header>,
}

impl Files {
    /// Returns the outputs of tracers on these nodes, and the file that they are written to.
    pub fn of_nodes(pipes: Vec<(Arc<str>, File)>, target: Option<Target>, header: Header) -> Self {
        Self {
            inputs: pipes
                .into_iter()
                .map(|(node, pipe)| stream::Input::of_node(&node, pipe))
                .collect(),
            target,
            header: Some(header),
        }
    }
}

/// Opens the captures, and creates the file that the replay is written to.
pub fn open(config: &Config) -> Result<Files> {
    allow_many_files();
    let inputs = config.read.iter().map(stream::Input::open).collect::<Result<_>>()?;
    Ok(Files {
        inputs,
        target: outputs::create_target(config)?,
        header: None,
    })
}

/// Raises the limit of open files as far as that needs no privilege. The usual limit is 1,024, and each stream is one.
pub fn allow_many_files() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        // If this fails, opening a file says so.
        _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                ..limit
            },
        );
    }
}

/// Replays captures, and adds the names of a pods file to their records.
pub fn replay(config: &Config, files: Files, offline: Option<OfflineNames>) -> Result<Exit> {
    let names = NameSourceStatus::default();
    let of_file: &[&str] = if offline.is_some() { &["the file"] } else { &[] };
    names.set(&[&["the capture"], of_file].concat(), false);
    let running = begin(config, files, offline, &names, Vec::new())?;
    let runtime = event_loop()?;
    let listen = || io::Result::Ok((EndSignals::new()?, JobControl::new(running.screen)?));
    let (signals, jobs) = {
        let _context = runtime.enter();
        listen().context("cannot listen for signals")?
    };
    runtime.block_on(wait(running.end, &running.stop, &running.requests, signals, jobs))
}

/// A replay whose thread runs.
pub struct Running {
    /// The result of the replay thread.
    pub end: oneshot::Receiver<Result<Exit>>,
    pub screen: Option<term::SignalHandle>,
    stop: Arc<AtomicBool>,
    requests: Sender<Request>,
}

/// Starts to replay captures or the outputs of tracers. `more` are sinks beside those of `config`.
pub fn begin(
    config: &Config,
    files: Files,
    offline: Option<OfflineNames>,
    names: &NameSourceStatus,
    more: Vec<Box<dyn Sink>>,
) -> Result<Running> {
    let range = stream::resolve(&config.range, &files.inputs)?;
    let inputs: Vec<_> = files.inputs.iter().filter_map(stream::Input::restarted).collect();
    let may_be_late = config.join || files.inputs.len() > 1 || files.inputs.iter().any(stream::Input::is_live);
    let max_wait = if files.header.is_some() {
        Duration::ZERO
    } else {
        MAX_HOLD
    };
    let merge = start(files.inputs, max_wait)?;
    // A file that is no capture is an error before `--write` creates a header.
    if let [stream] = &merge.streams[..]
        && (stream.has_line() || stream.has_ended())
    {
        stream.check_content()?;
    }
    let mut config = config.clone();
    if let Some(rollup) = &mut config.rollup {
        rollup.may_be_late = may_be_late;
    }
    let config = &config;
    let header = files.header.unwrap_or_else(|| merged_header(&merge.streams));
    if config.verbosity == Verbosity::Verbose {
        status(&format!(
            "{}: written by kmesh-trace {:?}, kernel {:?}",
            header.info.node, header.info.version, header.info.kernel
        ));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (requests, received) = channel();
    let capture = files.target.map(|target| (target, header.clone()));
    let mut outputs = outputs::open(config, &header.info, names, capture, Abilities::default(), {
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
    outputs.sinks.extend(more);
    let selection = Selection::of(config);
    let count = merge.streams.len();
    let replay = Replay {
        is_merged: count > 1,
        tallies: vec![Tally::default(); count],
        is_identified: merge.streams.iter().map(|stream| stream.info().is_some()).collect(),
        nodes: Nodes::default(),
        join: config.join.then(Join::default),
        merge,
        waiting: VecDeque::new(),
        offline,
        engine: Engine::new(selection.clone(), outputs.sinks),
        selection,
        inputs,
        range,
        duration: config.duration,
        stop: Arc::clone(&stop),
        requests: outputs.screen.is_some().then_some(received),
        traced_from: traced_from(&header, range),
        start: None,
        header_start: header.start,
        latest: header.start,
        skipped: vec![0; count],
        known: config.filter.has_names().then(KnownNames::default),
        verbosity: config.verbosity,
    };
    let (ended, end) = oneshot::channel();
    thread::Builder::new()
        .name("replay".to_owned())
        // The receiver is dropped only when the process is about to end.
        .spawn(move || _ = ended.send(replay.run()))
        .context("cannot start the replay thread")?;
    Ok(Running {
        end,
        screen: outputs.screen,
        stop,
        requests,
    })
}

/// Replays captures into one sink, and waits for the end.
pub fn feed(config: &Config, files: Files, offline: Option<OfflineNames>, sink: Box<dyn Sink>) -> Result<Exit> {
    let running = begin(config, files, offline, &NameSourceStatus::default(), vec![sink])?;
    running.end.blocking_recv().context("the replay thread panicked")?
}

/// Returns the header of the merged streams: all nodes, and the earliest start.
fn merged_header(streams: &[Stream]) -> Header {
    let start = streams.iter().filter(|stream| stream.info().is_some());
    let start = start.map(|stream| stream.header().start).min();
    match streams {
        [stream] => stream.header(),
        _ => Header {
            info: merged_info(streams),
            start: start.unwrap_or(WallTime(0)),
            ..Header::unknown()
        },
    }
}

/// Returns the nodes of all streams as far as they are known, and the versions of the first one.
fn merged_info(streams: &[Stream]) -> RunInfo {
    /// The maximum number of nodes that are listed by their names.
    const MAX_NAMED: usize = 8;
    let mut infos = streams.iter().filter_map(Stream::info);
    let first = infos.clone().next().cloned();
    let mut nodes: Vec<&str> = Vec::new();
    for info in infos.by_ref() {
        if !nodes.contains(&&*info.node) {
            nodes.push(&info.node);
        }
    }
    match first {
        None => Header::unknown().info,
        Some(first) => RunInfo {
            node: match nodes.len() {
                0..=MAX_NAMED => nodes.join(","),
                count => format!("{count} nodes"),
            },
            ..first
        },
    }
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

/// Handles signals until the replay thread ends, and returns the exit status.
async fn wait(
    mut end: oneshot::Receiver<Result<Exit>>,
    stop: &AtomicBool,
    requests: &Sender<Request>,
    mut signals: EndSignals,
    mut jobs: JobControl,
) -> Result<Exit> {
    loop {
        tokio::select! {
            ended = &mut end => return ended.context("the replay thread panicked")?,
            () = jobs.handle_next() => {}
            () = signals.next() => {
                stop.store(true, Ordering::Relaxed);
                // This fails if the replay has already ended.
                _ = requests.send(Request::End);
            }
        }
    }
}
