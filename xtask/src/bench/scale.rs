//! Measures whether the cost per connection grows with the number of earlier connections.

use anyhow::Result;

use super::traced::{self, Stats, Traced};
use super::traffic;

#[derive(clap::Args)]
pub struct Args {
    /// The number of all connections
    #[arg(long, default_value_t = 1_000_000)]
    connections: usize,
}

/// The number of connections per measurement.
const SAMPLE: usize = 1_000;

/// Prints BPF time and CPU time per connection after 1, 10, 100 … thousand connections of one run.
pub fn run(args: &Args) -> Result<()> {
    let tool = traced::build()?;
    let _stats = Stats::on()?;
    let traced = Traced::start(&tool, &["--no-resolve"])?;
    let mut addresses = 0;
    let mut made = 0;
    let mut point = SAMPLE;
    println!("{:<16} {:>12} {:>16} {:>12}", "connections", "BPF ns", "CPU µs", "MiB");
    while point <= args.connections {
        traffic::churn(point - made - SAMPLE, &mut addresses)?;
        let (kernel, user) = (traced.programs_ns()?, traced.processor_ns()?);
        // The last connections before the point.
        traffic::churn(SAMPLE, &mut addresses)?;
        made = point;
        println!(
            "{point:<16} {:>12.0} {:>16.2} {:>12.1}",
            (traced.programs_ns()? - kernel) as f64 / SAMPLE as f64,
            (traced.processor_ns()? - user) as f64 / 1e3 / SAMPLE as f64,
            traced.memory_mib()?
        );
        point *= 10;
    }
    let summary = traced.finish()?;
    println!(
        "per connection, of the last {SAMPLE} connections before each point; {} ends, {} without a record",
        2 * made,
        traced::missing(&summary, 2 * made)
    );
    Ok(())
}
