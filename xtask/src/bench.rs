//! `cargo xtask bench NAME`: what the tool costs, measured on this machine. Figures are ratios from one run, since absolute
//! ones change from machine to machine.

mod empty;
mod filter;
mod traced;
mod traffic;
mod walk;

use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::host;

/// What `cargo xtask bench` takes.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// BPF time of a connection that the filter sorts out, beside an empty program's on the same hook
    Filter(filter::Args),
    /// The time of a walk over many open sockets, and what is lost meanwhile
    Walk(walk::Args),
    /// Hold connections open for `walk`, until standard input ends
    #[command(hide = true)]
    Hold(walk::Hold),
}

/// Runs one.
pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(host::is_root(), "a tracer is measured: run this as root");
    match &args.bench {
        Bench::Filter(args) => filter::run(args),
        Bench::Walk(args) => walk::run(args),
        Bench::Hold(args) => walk::hold(args),
    }?;
    Ok(ExitCode::SUCCESS)
}
