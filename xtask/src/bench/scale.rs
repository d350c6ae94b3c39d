//! Whether a connection costs the same after many others as after few: what grows in the kernel or in the tool would show.

use anyhow::{Result, ensure};

use super::traced::{self, Stats, Traced};
use super::traffic;

/// What `bench scale` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Connections in all
    #[arg(long, default_value_t = 1_000_000)]
    connections: usize,
}

/// How many connections are measured at each point.
const SAMPLE: usize = 1_000;

/// Prints BPF ns and processor µs a connection after 1, 10, 100 … thousand of them, in one run.
pub fn run(args: &Args) -> Result<()> {
    let tool = traced::build()?;
    let _stats = Stats::on()?;
    let traced = Traced::start(&tool, &["--no-resolve"])?;
    let mut addresses = 0;
    let mut made = 0;
    let mut point = SAMPLE;
    println!(
        "{:<16} {:>12} {:>16} {:>12}",
        "connections", "BPF ns", "processor µs", "MiB"
    );
    while point <= args.connections {
        traffic::churn(point - made - SAMPLE, &mut addresses)?;
        let (kernel, user) = (traced.programs_ns()?, traced.processor_ns()?);
        // The stretch up to the point.
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
    let (delivered, lost) = (summary["delivered"].as_u64(), summary["lost_records"].as_u64());
    ensure!(
        delivered >= Some(2 * made as u64) && lost == Some(0),
        "not each end was told: {summary}"
    );
    println!(
        "of the last {SAMPLE} connections before each point, both ends, one run; {} ends told, none lost",
        2 * made
    );
    Ok(())
}
