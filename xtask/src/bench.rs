//! `cargo xtask bench NAME`: measures the speed, the memory and the cost of the tool on this machine. Compare only
//! figures of one run, because absolute figures differ between machines. Benchmarks are not tests.

mod cost;
mod drops;
mod empty;
mod filter;
mod findings;
mod idle;
mod load;
mod names;
mod peers;
mod replay;
mod rollup;
mod scale;
mod scan;
mod start;
mod streams;
mod traced;
mod traffic;
mod turns;

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::host;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(clap::Args)]
struct Rounds {
    /// The number of connections per round
    #[arg(long, default_value_t = 20_000)]
    connections: usize,
    /// The number of rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// Run all benchmarks except load and findings
    All,
    /// Measure the BPF time per connection, compared with tcplife of libbpf-tools and an empty program
    Cost(cost::Args),
    /// Trace connections with --drops while the kernel drops packets as fast as a thread sends them
    Drops(drops::Args),
    /// Measure the BPF time per filtered-out connection, compared with an empty program
    Filter(Rounds),
    /// Measure the precision and the recall of explain on generated captures
    Findings(findings::Args),
    /// Measure wake-ups and memory of an idle tracer, and memory after full rate
    Idle(idle::Args),
    /// Run full rate with all features for ten minutes, and check losses and memory
    Load(load::Args),
    /// Measure memory, look-ups and updates of the names of a large cluster
    Names(names::Args),
    /// Compare the tool with tcplife, tcplife-bpfcc and a bpftrace script on the same traffic
    Peers(Rounds),
    /// Measure replays of captures, and the bytes per record
    Replay(replay::Args),
    /// Measure rollups whose records all have separate groups
    Rollup(rollup::Args),
    /// Measure the cost per connection after a thousand and after a million connections
    Scale(scale::Args),
    /// Measure the time from exec to tracing, and the verifier's part
    Start(start::Args),
    /// Measure the time of socket scans, and losses meanwhile
    Scan(scan::Args),
    /// Measure rate, memory and delay of a replay of many streams
    Streams(streams::Args),
    /// Measure what --turns costs Redis and PostgreSQL
    Turns(turns::Args),
    /// Hold connections open for the benchmark of scans, until standard input ends
    #[command(hide = true)]
    Hold(scan::Hold),
}

/// Runs each benchmark in a separate process, because the maximum memory of a process includes all earlier work.
fn all() -> Result<ExitCode> {
    let this = std::env::current_exe().context("cannot find the path of this program")?;
    let mut failed = Vec::new();
    for name in [
        "peers", "cost", "drops", "turns", "filter", "start", "idle", "scale", "scan", "replay", "streams", "rollup",
        "names",
    ] {
        println!("\n=== {name}");
        if !Command::new(&this).args(["bench", name]).status()?.success() {
            failed.push(name);
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(ExitCode::SUCCESS)
}

/// Runs a benchmark, or all.
pub fn run(args: &Args) -> Result<ExitCode> {
    let traced = |bench: &dyn Fn() -> Result<()>| {
        ensure!(host::is_root(), "this benchmark runs a tracer: run it as root");
        bench()?;
        Ok(ExitCode::SUCCESS)
    };
    match &args.bench {
        Bench::All => all(),
        Bench::Cost(args) => traced(&|| cost::run(args)),
        Bench::Drops(args) => traced(&|| drops::run(args)),
        Bench::Filter(args) => traced(&|| filter::run(args)),
        Bench::Findings(args) => findings::run(args),
        Bench::Idle(args) => traced(&|| idle::run(args)),
        Bench::Load(args) => traced(&|| load::run(args)),
        Bench::Names(args) => names::run(args),
        Bench::Peers(args) => traced(&|| peers::run(args)),
        Bench::Replay(args) => replay::run(args),
        Bench::Rollup(args) => rollup::run(args),
        Bench::Scale(args) => traced(&|| scale::run(args)),
        Bench::Start(args) => traced(&|| start::run(args)),
        Bench::Streams(args) => streams::run(args),
        Bench::Scan(args) => traced(&|| scan::run(args)),
        Bench::Turns(args) => traced(&|| turns::run(args)),
        Bench::Hold(args) => traced(&|| scan::hold(args)),
    }
}

/// Returns the memory of this process in MiB: `VmRSS` is the resident memory, `VmHWM` its maximum so far.
fn memory_mib(field: &str) -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    let value = lines.find_map(|(name, value)| (name == field).then_some(value));
    let kib: f64 = value
        .and_then(|value| value.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("no {field} in /proc/self/status"))?;
    Ok(kib / 1024.0)
}

/// Returns a generator of random numbers (SplitMix64), with the same numbers in each run.
fn random() -> impl FnMut() -> u64 {
    let mut state = 0_u64;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Prints a table line with the median, the range, and the ratio to `base`.
fn line(name: &str, times: &mut [f64], base: f64) {
    let median = median(times);
    let range = format!("{:.0} to {:.0}", times[0], times[times.len() - 1]);
    println!("{name:<20} {median:>10.0} {range:>22} {:>8.2}", median / base);
}

/// Returns the median, and sorts `times`.
fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
