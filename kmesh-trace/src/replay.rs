//! `--read`: a capture goes through the same [`Delivery`] as a live trace. Nothing here knows of Linux.

use std::fs::File;
use std::future::pending;
use std::io::{self, ErrorKind, Read, Write};
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::sync::oneshot;

use crate::blocking_io::Blocking;
use crate::capture::{Damage, Item, Reader, Target};
use crate::config::{CaptureConfig, CapturePath, Config, Origin, Verbosity};
use crate::delivery::{Choice, Delivery, Moment};
use crate::exit::Exit;
use crate::names::objects::file;
use crate::names::offline::OfflineNames;
use crate::note::{NamesFrom, Notes, say};
use crate::outlet;
use crate::record::WallTime;
use crate::render::term::{self, Jobs};

/// Damage that is told of one by one.
const TOLD: u64 = 10;

/// The files of a replay, open; none of them is read or written yet.
pub struct Files {
    name: String,
    capture: Box<dyn Read + Send>,
    target: Option<Target>,
}

/// Opens the capture at `from`, and creates the file that the replay is written to.
pub fn open(config: &Config, from: &CapturePath) -> Result<Files> {
    let (name, capture): (String, Box<dyn Read + Send>) = match from {
        CapturePath::Pipe => ("standard input".to_owned(), Box::new(Blocking(io::stdin()))),
        CapturePath::File(path) => {
            let name = path.display().to_string();
            let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
            (name, Box::new(Blocking(file)))
        }
    };
    let target = config.capture.as_ref();
    let target = target.map(|CaptureConfig { path, rotation }| Target::create(path, *rotation));
    Ok(Files {
        name,
        capture,
        target: target.transpose()?,
    })
}

/// Replays a capture, with what the pods file names besides.
pub fn replay(config: &Config, files: Files, offline: Option<OfflineNames>) -> Result<Exit> {
    let Files { name, capture, target } = files;
    let reader = Reader::new(capture).map_err(|why| anyhow!("cannot read {name}: {why}"))?;
    let info = reader.header.info.clone();
    if config.verbosity == Verbosity::Verbose {
        say(&format!(
            "{name}: of kmesh-trace {:?}, kernel {:?}",
            info.version, info.kernel
        ));
    }
    let choice = Choice {
        events: config.events,
        filter: config.filter.clone(),
        count: config.count,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let (quit, quits) = channel();
    let names = NamesFrom::default();
    let of_file: &[&str] = if offline.is_some() { &["the file"] } else { &[] };
    names.set(&[&["the capture"], of_file].concat(), false);
    let outlet = outlet::open(config, &info, &names, {
        let (stop, quit) = (Arc::clone(&stop), quit.clone());
        move || {
            stop.store(true, Ordering::Relaxed);
            _ = quit.send(());
        }
    })?;
    let looked_at = outlet.screen.is_some().then_some(quits);
    let mut delivery = Delivery::new(choice, outlet.render, Blocking(io::stdout()));
    if let Some(target) = target {
        delivery = delivery.with_keep(target.begin(reader.header.clone())?);
    }
    let replay = Replay {
        name,
        reader,
        offline,
        delivery,
        notes: Notes::new(config, info),
        duration: config.duration,
        stop: Arc::clone(&stop),
        looked_at,
        damages: 0,
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
        Jobs::of(outlet.screen).context("cannot listen for signals")?
    };
    runtime.block_on(wait(end, &stop, &quit, jobs))
}

/// Reads `--pods-file`. Nobody knows when it was saved: of the capture's time it tells only when pods started.
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

/// Until all is told. Interrupted, it ends in order; at the second time, at once.
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
                // It fails when all has been told already.
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

/// What the capture has been found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// All of it, to its end.
    Whole,
    /// As much as was wanted.
    Enough,
    /// It has no end.
    Endless,
}

struct Replay<R, W> {
    name: String,
    reader: Reader<R>,
    /// What can be named besides.
    offline: Option<OfflineNames>,
    delivery: Delivery<W>,
    notes: Notes,
    duration: Option<Duration>,
    stop: Arc<AtomicBool>,
    /// A person looks at a screen, and this tells when enough has been seen.
    looked_at: Option<Receiver<()>>,
    damages: u64,
}

impl<R: Read, W: Write> Replay<R, W> {
    fn run(mut self) -> Result<Exit> {
        let told = match self.tell() {
            Ok(told) => told,
            // Whoever read it has gone, which is no failure.
            Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => {
                self.delivery.end_keep()?;
                return Ok(Exit::Ok);
            }
            Err(Failure::Output(error)) => return Err(crate::delivery::explain(error)),
            Err(Failure::Input(error)) => bail!("cannot read {}: {error}", self.name),
        };
        if self.damages > TOLD {
            say(&format!("{}: and {} more such places", self.name, self.damages - TOLD));
        }
        if told == Told::Endless && self.damages == 0 {
            say(&format!(
                "{}: it has no end: its tracer was killed, or is still writing",
                self.name
            ));
        }
        Ok(if self.damages > 0 || told == Told::Endless {
            Exit::Failed
        } else {
            Exit::Ok
        })
    }

    fn tell(&mut self) -> Result<Told, Failure> {
        let header = &self.reader.header;
        // A later part begins whenever it begins.
        let mut began = (header.part == 0).then_some(header.began);
        let mut latest = header.began;
        let closes_before = header.closes_before;
        let mut summed = false;
        let mut told = Told::Endless;
        while let Some(item) = self.reader.next_item().map_err(Failure::Input)? {
            match item {
                Item::Record(record) => {
                    let began = *began.get_or_insert(record.time);
                    let over = self.duration.is_some_and(|duration| {
                        i128::from(record.time.0) - i128::from(began.0) > duration.as_nanos() as i128
                    });
                    if over || self.delivery.is_full() || self.stop.load(Ordering::Relaxed) {
                        (told, summed) = (Told::Enough, false);
                        break;
                    }
                    latest = record.time;
                    summed = false;
                    match &mut self.offline {
                        Some(offline) => self.delivery.record(&offline.annotate(record), false)?,
                        None => self.delivery.record(record, false)?,
                    }
                }
                Item::Lost(lost) => {
                    latest = lost.time;
                    self.delivery.lost_again(&lost)?;
                    self.notes.lost(&lost);
                }
                Item::Summary(of_run) => {
                    latest = of_run.time;
                    summed = true;
                    let summary = self.delivery.summary_again(&of_run, closes_before)?;
                    self.notes.summary(&summary);
                }
                Item::Complete(until) => self.delivery.complete(until)?,
                Item::End { .. } => told = Told::Whole,
                Item::Damage(damage) => self.damaged(damage),
            }
        }
        if !summed {
            let began = began.unwrap_or(latest);
            self.delivery.complete(WallTime(i64::MAX))?;
            let at = Moment {
                time: latest,
                elapsed_ns: latest.0.saturating_sub(began.0).try_into().unwrap_or(0),
            };
            let summary = self.delivery.summary_so_far(at)?;
            self.notes.summary(&summary);
        }
        self.delivery.end()?;
        if let Some(quits) = &self.looked_at {
            // It fails when there is no screen any more.
            _ = quits.recv();
        }
        Ok(told)
    }

    fn damaged(&mut self, damage: Damage) {
        self.damages += 1;
        if self.damages <= TOLD {
            say(&format!("{}: {damage}", self.name));
        }
    }
}

/// Which side failed.
enum Failure {
    Input(io::Error),
    Output(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}
