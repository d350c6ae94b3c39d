//! The session of `diff`: replays two captures into samples, and prints what changed.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::compare::{Sample, compare};
use crate::config::{Config, DiffConfig};
use crate::names::offline::OfflineNames;
use crate::output::{Sink, Stdout, print_changes};
use crate::record::{Record, WallTime};
use crate::rollup::By;
use crate::session::exit::Exit;
use crate::session::replay::{self, Files};
use crate::track::delta::Delta;

/// The open captures of a comparison. Nothing of them has been parsed yet.
pub struct Captures {
    before: Files,
    after: Files,
}

/// Opens both captures without reading them.
pub fn open(config: &DiffConfig) -> Result<Captures> {
    Ok(Captures {
        before: replay::open(&config.before)?,
        after: replay::open(&config.after)?,
    })
}

/// Compares two captures. Returns whether they differ, or whether one is damaged.
pub fn run(
    config: &DiffConfig,
    captures: Captures,
    names: (Option<OfflineNames>, Option<OfflineNames>),
) -> Result<Exit> {
    let (mut before, before_exit) = sample(&config.before, captures.before, names.0, config.by)?;
    let (mut after, after_exit) = sample(&config.after, captures.after, names.1, config.by)?;
    let changes = compare(&mut before, &mut after);
    print_changes(&changes, (&before, &after), config.format, Stdout::new())
        .context("cannot write to standard output")?;
    Ok(match (before_exit, after_exit) {
        (Exit::Ok, Exit::Ok) if changes.changes.is_empty() => Exit::Ok,
        (Exit::Ok, Exit::Ok) => Exit::DIFFERENT,
        _ => Exit::TROUBLE,
    })
}

fn sample(config: &Config, files: Files, names: Option<OfflineNames>, by: By) -> Result<(Sample, Exit)> {
    let sample = Arc::new(Mutex::new(Sample::new(by)));
    let exit = replay::feed(config, files, names, Box::new(Collector(Arc::clone(&sample))))?;
    let mut sample = sample.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((std::mem::replace(&mut sample, Sample::new(by)), exit))
}

/// The sink that collects a sample, which outlives the engine.
struct Collector(Arc<Mutex<Sample>>);

impl Collector {
    fn with(&self, call: impl FnOnce(&mut Sample)) -> io::Result<()> {
        call(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

impl Sink for Collector {
    fn record(&mut self, record: &Record, delta: &Delta) -> io::Result<()> {
        self.with(|sample| sample.record(record, delta))
    }

    fn needs_deltas(&self) -> bool {
        true
    }

    fn watermark(&mut self, until: WallTime) -> io::Result<()> {
        self.with(|sample| sample.cover(until))
    }
}
