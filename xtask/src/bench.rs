//! `cargo xtask bench NAME`: how fast and how small, measured side by side in one run. None of it is a test.

mod replay;

use std::process::ExitCode;

use anyhow::Result;

/// What `cargo xtask bench` takes.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Captures: replay to JSON and log beside the JSON library alone, and bytes a record
    Replay(replay::Args),
}

/// Runs it.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Replay(args) => replay::run(args),
    }
}
