//! `cargo xtask bench NAME`: how fast, how small, and what the tool costs, measured on this machine. Figures are ratios from one
//! run, since absolute ones change from machine to machine. None of it is a test.

mod cost;
mod empty;
mod filter;
mod names;
mod replay;
mod rollup;
mod traced;
mod traffic;
mod walk;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::host;

/// What `cargo xtask bench` takes.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    bench: Bench,
}

/// How much traffic, and how often.
#[derive(clap::Args)]
struct Rounds {
    /// Connections a round
    #[arg(long, default_value_t = 20_000)]
    connections: usize,
    /// Rounds of each
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// BPF time of a connection, beside libbpf-tools' tcplife and an empty program
    Cost(Rounds),
    /// BPF time of a connection that the filter sorts out, beside an empty program's on the same hook
    Filter(Rounds),
    /// Names: what a large cluster takes, look-ups in it and news of it
    Names(names::Args),
    /// Captures: replay to JSON and log beside the JSON library alone, and bytes a record
    Replay(replay::Args),
    /// Rollups: records a second and memory when each is of a group of its own
    Rollup(rollup::Args),
    /// The time of a walk over many open sockets, and what is lost meanwhile
    Walk(walk::Args),
    /// Hold connections open for `walk`, until standard input ends
    #[command(hide = true)]
    Hold(walk::Hold),
}

/// Runs one.
pub fn run(args: &Args) -> Result<ExitCode> {
    let traced = |bench: &dyn Fn() -> Result<()>| {
        ensure!(host::is_root(), "a tracer is measured: run this as root");
        bench()?;
        Ok(ExitCode::SUCCESS)
    };
    match &args.bench {
        Bench::Cost(args) => traced(&|| cost::run(args)),
        Bench::Filter(args) => traced(&|| filter::run(args)),
        Bench::Names(args) => names::run(args),
        Bench::Replay(args) => replay::run(args),
        Bench::Rollup(args) => rollup::run(args),
        Bench::Walk(args) => traced(&|| walk::run(args)),
        Bench::Hold(args) => traced(&|| walk::hold(args)),
    }
}

/// What the kernel says of this process' memory, MiB: `VmRSS` is resident, `VmHWM` the most there has been.
fn memory_mib(field: &str) -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    let value = lines.find_map(|(name, value)| (name == field).then_some(value));
    let kib: f64 = value
        .and_then(|value| value.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("no {field} in /proc/self/status"))?;
    Ok(kib / 1024.0)
}

/// The same numbers in each run: SplitMix64.
fn random() -> impl FnMut() -> u64 {
    let mut state = 0_u64;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Prints a line of a table of times.
fn line(name: &str, times: &mut [f64], base: f64) {
    let middle = median(times);
    let range = format!("{:.0} to {:.0}", times[0], times[times.len() - 1]);
    println!("{name:<20} {middle:>10.0} {range:>22} {:>8.2}", middle / base);
}

/// Sorts, too.
fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
