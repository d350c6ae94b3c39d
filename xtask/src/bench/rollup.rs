//! Rollups: how many records a second are summed up on one core when each is of a group of its own, and what memory that takes.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kmesh_trace::record::{Event, Record, WallTime};
use kmesh_trace::rollup::{By, Key, Rollup, RollupSettings, Window};
use kmesh_trace::track::delta::Deltas;

/// What it takes.
#[derive(clap::Args)]
pub struct Args {
    /// Whose record is varied
    #[arg(long, value_name = "FILE", default_value = "tests/data/incident.jsonl.zst")]
    capture: PathBuf,
    /// How many distinct groups are offered
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    groups: u32,
    /// `--max-groups`
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    max_groups: usize,
    /// The best of how many runs counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<ExitCode> {
    let bytes = fs::read(&args.capture).with_context(|| format!("cannot read {}", args.capture.display()))?;
    let (_, sample) = super::replay::read(&bytes)?;
    let record = sample.iter().find(|record| record.event == Event::Close);
    let record = record.context("the capture has no close")?;
    let before = super::memory_mib("VmHWM")?;
    let mut best = Duration::MAX;
    let mut told = Told::default();
    for _ in 0..args.runs.max(1) {
        let began = Instant::now();
        told = offer(record, args);
        best = best.min(began.elapsed());
    }
    println!(
        "{} records of a group each, --max-groups {}, the best of {} runs, one core",
        args.groups, args.max_groups, args.runs
    );
    let rate = f64::from(args.groups) / best.as_secs_f64();
    println!("{:<24} {rate:>12.0} records/s", "rolled up");
    println!(
        "{:<24} {:>12.1} MiB",
        "memory, most",
        (super::memory_mib("VmHWM")? - before).max(0.0)
    );
    println!(
        "{:<24} {:>12} in {} windows; closes summed up: {}",
        "lines", told.rows, told.windows, told.closed
    );
    Ok(ExitCode::SUCCESS)
}

#[derive(Default)]
struct Told {
    windows: usize,
    rows: usize,
    closed: u64,
}

impl Told {
    fn add(&mut self, windows: Vec<Window>) {
        for window in windows {
            self.windows += 1;
            self.rows += window.rows.len();
            self.closed += window.rows.iter().map(|row| row.sums.closed).sum::<u64>();
        }
    }
}

/// All of them within five windows.
fn offer(record: &Record, args: &Args) -> Told {
    let mut record = record.clone();
    let interval = Duration::from_secs(5);
    let mut rollup = Rollup::new(RollupSettings {
        by: By::new(&[Key::Workload, Key::Ip]),
        interval: Some(interval),
        max_groups: args.max_groups,
    });
    let (mut told, mut deltas) = (Told::default(), Deltas::default());
    let step = 5 * interval.as_nanos() as i64 / i64::from(args.groups.max(1));
    for at in 0..args.groups {
        record.id.cookie = u64::from(at) + 1;
        record.src.set_ip(Ipv4Addr::from(at).into());
        record.time = WallTime(i64::from(at) * step);
        told.add(rollup.take(&record, &deltas.take(&record)));
    }
    told.add(rollup.watermark(WallTime::MAX));
    told
}
