//! Measures the BPF time per connection that the kernel filter rejects, compared with an empty program, in alternating
//! rounds.

use anyhow::Result;

use super::empty::Empty;
use super::traced::{self, Stats, Traced};
use super::{Rounds, line, median, traffic};

/// The filters, with their names in the table. The first two match none of the traffic.
const FILTERS: &[(&str, &[&str])] = &[
    ("--port 1", &["--port", "1"]),
    ("--ip 192.0.2.0/24", &["--ip", "192.0.2.0/24"]),
    ("all passes", &[]),
];

/// Prints the ns of BPF time per connection.
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
    println!("{:<20} {:>10} {:>22} {:>8}", "", "median", "range", "ratio");
    let base = median(&mut empty);
    line("empty program", &mut empty, base);
    for ((name, _), times) in FILTERS.iter().zip(&mut times) {
        line(name, times, base);
    }
    println!(
        "ns of BPF time per connection (both ends, all programs), {} rounds of {}",
        args.rounds, args.connections
    );
    Ok(())
}
