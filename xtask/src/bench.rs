//! `cargo xtask bench NAME`: how fast, how small, and what the tool costs, measured on this machine. Figures are ratios from one
//! run, since absolute ones change from machine to machine. None of it is a test.

mod cost;
mod empty;
mod filter;
mod idle;
mod load;
mod names;
mod peers;
mod replay;
mod rollup;
mod scale;
mod start;
mod traced;
mod traffic;
mod walk;

use std::fs;
use std::process::{Command, ExitCode};

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
    /// All of them, one after another
    All,
    /// BPF time of a connection, beside libbpf-tools' tcplife and an empty program
    Cost(Rounds),
    /// BPF time of a connection that the filter sorts out, beside an empty program's on the same hook
    Filter(Rounds),
    /// Wake-ups and memory while nothing happens, and memory after full rate
    Idle(idle::Args),
    /// Ten minutes of the hardest load with everything on: what is told, what is lost, and whether memory stays flat
    Load(load::Args),
    /// Names: what a large cluster takes, look-ups in it and news of it
    Names(names::Args),
    /// The tool, tcplife, its bcc form and a bpftrace script on the same traffic: rate kept, costs, losses, what is exact
    Peers(Rounds),
    /// Captures: replay to JSON and log beside the JSON library alone, and bytes a record
    Replay(replay::Args),
    /// Rollups: records a second and memory when each is of a group of its own
    Rollup(rollup::Args),
    /// What a connection costs after a thousand of them, and after a million
    Scale(scale::Args),
    /// From exec to capturing, and the verifier's share
    Start(start::Args),
    /// The time of a walk over many open sockets, and what is lost meanwhile
    Walk(walk::Args),
    /// Hold connections open for `walk`, until standard input ends
    #[command(hide = true)]
    Hold(walk::Hold),
}

/// Each as a process of its own: the most memory that one had says nothing of another.
fn all() -> Result<ExitCode> {
    let this = std::env::current_exe().context("cannot tell where this program is")?;
    let mut failed = Vec::new();
    for name in [
        "peers", "cost", "filter", "start", "idle", "scale", "walk", "replay", "rollup", "names",
    ] {
        println!("\n=== {name}");
        if !Command::new(&this).args(["bench", name]).status()?.success() {
            failed.push(name);
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(ExitCode::SUCCESS)
}

/// Runs one, or all.
pub fn run(args: &Args) -> Result<ExitCode> {
    let traced = |bench: &dyn Fn() -> Result<()>| {
        ensure!(host::is_root(), "a tracer is measured: run this as root");
        bench()?;
        Ok(ExitCode::SUCCESS)
    };
    match &args.bench {
        Bench::All => all(),
        Bench::Cost(args) => traced(&|| cost::run(args)),
        Bench::Filter(args) => traced(&|| filter::run(args)),
        Bench::Idle(args) => traced(&|| idle::run(args)),
        Bench::Load(args) => traced(&|| load::run(args)),
        Bench::Names(args) => names::run(args),
        Bench::Peers(args) => traced(&|| peers::run(args)),
        Bench::Replay(args) => replay::run(args),
        Bench::Rollup(args) => rollup::run(args),
        Bench::Scale(args) => traced(&|| scale::run(args)),
        Bench::Start(args) => traced(&|| start::run(args)),
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
