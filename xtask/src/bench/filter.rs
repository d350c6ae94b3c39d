//! What a connection costs that the kernel half of the filters sorts out: beside an empty program, in turns.

use anyhow::Result;

use super::empty::Empty;
use super::traced::{self, Stats, Traced};
use super::{Rounds, line, median, traffic};

/// What is asked of the tool. None of it matches the traffic.
const FILTERS: &[(&str, &[&str])] = &[
    ("--port 1", &["--port", "1"]),
    ("--ip 192.0.2.0/24", &["--ip", "192.0.2.0/24"]),
    ("all passes", &[]),
];

/// Prints ns of BPF time a connection, both ends, all programs.
pub fn run(args: &Rounds) -> Result<()> {
    let tool = traced::build()?;
    let _stats = Stats::on()?;
    let mut addresses = 0;
    let mut empty = Vec::new();
    let mut times = vec![Vec::new(); FILTERS.len()];
    for _ in 0..args.rounds {
        let program = Empty::attach()?;
        traffic::churn(args.connections, &mut addresses)?;
        empty.push(program.time_ns() as f64 / args.connections as f64);
        drop(program);
        for ((_, filter), times) in FILTERS.iter().zip(&mut times) {
            let traced = Traced::start(&tool, &[&["--count", "1000000000"], *filter].concat())?;
            let before = traced.programs_ns()?;
            traffic::churn(args.connections, &mut addresses)?;
            times.push((traced.programs_ns()? - before) as f64 / args.connections as f64);
            traced.finish()?;
        }
    }
    println!("{:<20} {:>10} {:>22} {:>8}", "", "median", "least to most", "ratio");
    let base = median(&mut empty);
    line("empty program", &mut empty, base);
    for ((name, _), times) in FILTERS.iter().zip(&mut times) {
        line(name, times, base);
    }
    println!(
        "ns of BPF time a connection (both ends, all programs), {} rounds of {}",
        args.rounds, args.connections
    );
    Ok(())
}
