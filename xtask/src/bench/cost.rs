//! Measures the BPF time per connection, compared with `tcplife` of libbpf-tools and an empty program, in alternating
//! rounds of the same traffic. Checks that no record is lost.

use std::process::Command;

use anyhow::{Result, ensure};

use super::empty::Empty;
use super::traced::{self, Stats, Traced};
use super::{Rounds, line, median, traffic};
use crate::host::{self, Need};

const TCPLIFE: &[Need] = &[Need {
    program: "tcplife",
    package: "libbpf-tools",
}];

/// Prints the ns of BPF time per connection, and the ratios.
pub fn run(args: &Rounds) -> Result<()> {
    host::ensure(TCPLIFE)?;
    traced::mount_tracefs()?;
    let tool = traced::build()?;
    let _stats = Stats::on()?;
    let mut addresses = 0;
    let [mut empty, mut ours, mut theirs] = [const { Vec::new() }; 3];
    let per_connection = |ns: u64| ns as f64 / args.connections as f64;
    for _ in 0..args.rounds {
        let program = Empty::attach()?;
        traffic::churn(args.connections, &mut addresses)?;
        empty.push(per_connection(program.time_ns()));
        drop(program);

        let traced = Traced::start(&tool, &["--no-resolve"])?;
        let before = traced.programs_ns()?;
        traffic::churn(args.connections, &mut addresses)?;
        ours.push(per_connection(traced.programs_ns()? - before));
        let summary = traced.finish()?;
        let (delivered, lost) = (summary["delivered"].as_u64(), summary["lost_records"].as_u64());
        ensure!(
            delivered >= Some(2 * args.connections as u64) && lost == Some(0),
            "records are missing: {summary}"
        );

        let traced = Traced::peer(&mut Command::new("tcplife"))?;
        let before = traced.programs_ns()?;
        traffic::churn(args.connections, &mut addresses)?;
        theirs.push(per_connection(traced.programs_ns()? - before));
        traced.end()?;
    }
    println!("{:<20} {:>10} {:>22} {:>8}", "", "median", "range", "ratio");
    let base = median(&mut ours);
    line("empty program", &mut empty, base);
    line("kmesh-trace", &mut ours, base);
    line("tcplife", &mut theirs, base);
    println!(
        "ns of BPF time per connection (both ends, all programs), {} rounds of {}; none lost",
        args.rounds, args.connections
    );
    Ok(())
}
