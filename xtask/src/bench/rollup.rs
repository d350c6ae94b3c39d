//! Measures the records per second and the memory of rollups on one core, if each record has a separate group.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kmesh_trace::record::{Event, Record, WallTime};
use kmesh_trace::rollup::{By, Key, Rollup, RollupSettings, Window};
use kmesh_trace::track::delta::Deltas;

#[derive(clap::Args)]
pub struct Args {
    /// The capture with the sample record
    #[arg(long, value_name = "FILE", default_value = "tests/data/incident.jsonl.zst")]
    capture: PathBuf,
    /// The number of distinct groups
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    groups: u32,
    /// The value of --max-groups
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    max_groups: usize,
    /// The number of runs; the fastest counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
}

/// Prints the rate and the memory.
pub fn run(args: &Args) -> Result<ExitCode> {
    let bytes = fs::read(&args.capture).with_context(|| format!("cannot read {}", args.capture.display()))?;
    let (_, sample) = super::replay::read(&bytes)?;
    let record = sample.iter().find(|record| record.event == Event::Close);
    let record = record.context("the capture has no close")?;
    let before = super::memory_mib("VmHWM")?;
    let mut best = Duration::MAX;
    let mut output = Output::default();
    for _ in 0..args.runs.max(1) {
        let began = Instant::now();
        output = run_once(record, args);
        best = best.min(began.elapsed());
    }
    println!(
        "{} records with separate groups, --max-groups {}, the fastest of {} runs, one core",
        args.groups, args.max_groups, args.runs
    );
    let rate = f64::from(args.groups) / best.as_secs_f64();
    println!("{:<24} {rate:>12.0} records/s", "rate");
    println!(
        "{:<24} {:>12.1} MiB",
        "maximum memory",
        (super::memory_mib("VmHWM")? - before).max(0.0)
    );
    println!(
        "{:<24} {:>12} in {} windows with {} closes",
        "lines", output.rows, output.windows, output.closed
    );
    Ok(ExitCode::SUCCESS)
}

#[derive(Default)]
struct Output {
    windows: usize,
    rows: usize,
    closed: u64,
}

impl Output {
    fn add(&mut self, windows: Vec<Window>) {
        for window in windows {
            self.windows += 1;
            self.rows += window.rows.len();
            self.closed += window.rows.iter().map(|row| row.sums.closed).sum::<u64>();
        }
    }
}

/// Gives all records to a rollup, within five windows.
fn run_once(record: &Record, args: &Args) -> Output {
    let mut record = record.clone();
    let interval = Duration::from_secs(5);
    let mut rollup = Rollup::new(RollupSettings {
        by: By::new(&[Key::Workload, Key::Ip]),
        interval: Some(interval),
        max_groups: args.max_groups,
    });
    let (mut output, mut deltas) = (Output::default(), Deltas::default());
    let step = 5 * interval.as_nanos() as i64 / i64::from(args.groups.max(1));
    for at in 0..args.groups {
        record.id.cookie = u64::from(at) + 1;
        record.src.set_ip(Ipv4Addr::from(at).into());
        record.time = WallTime(i64::from(at) * step);
        output.add(rollup.take(&record, &deltas.take(&record)));
    }
    output.add(rollup.watermark(WallTime::MAX));
    output
}
