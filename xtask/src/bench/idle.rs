//! Measures an idle tracer, and its memory after full rate.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::traced::{self, Traced};
use super::traffic::Exchanges;

#[derive(clap::Args)]
pub struct Args {
    /// The idle time in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// The number of connections at full rate
    #[arg(long, default_value_t = 100_000)]
    connections: usize,
}

/// Prints wake-ups, CPU time and memory.
pub fn run(args: &Args) -> Result<()> {
    let tool = traced::build()?;
    let traced = Traced::start(&tool, &["--no-resolve"])?;
    // By then, the start is complete.
    thread::sleep(Duration::from_secs(1));
    let (wakeups, processor) = (traced.wakeups()?, traced.processor_ns()?);
    thread::sleep(Duration::from_secs(args.seconds.into()));
    let seconds = f64::from(args.seconds);
    println!(
        "{:<32} {:>10.1}",
        "wake-ups per second, idle",
        (traced.wakeups()? - wakeups) as f64 / seconds
    );
    println!(
        "{:<32} {:>10.3}",
        "CPU time idle, ms/s",
        (traced.processor_ns()? - processor) as f64 / 1e6 / seconds
    );
    println!("{:<32} {:>10.1}", "memory idle, MiB", traced.memory_mib()?);
    let traffic = Exchanges {
        count: args.connections,
        refused: 0,
    };
    let rate = traffic.run(&mut 0)?;
    println!("{:<32} {:>10.1}", "memory after full rate, MiB", traced.memory_mib()?);
    let summary = traced.finish()?;
    println!(
        "memory of the process and of its BPF maps; JSON to a file, {} connections at {rate:.0} per second, {} records \
         lost",
        args.connections, summary["lost_records"]
    );
    Ok(())
}
