//! Measures the BPF time per connection, compared with `tcplife` of libbpf-tools and an empty program, in alternating
//! rounds of the same traffic. Counts the ends without a record.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::empty::Empty;
use super::traced::{self, Stats, Traced};
use super::{Rounds, line, median, traffic};
use crate::host::{self, Need};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    rounds: Rounds,
    /// Also measure another build of the tool
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
}

const TCPLIFE: &[Need] = &[Need {
    program: "tcplife",
    package: "libbpf-tools",
}];

/// What runs beside the traffic of a row of the table.
enum Tracer<'a> {
    Empty,
    Tool(&'a Path, &'static [&'static str]),
    Tcplife,
}

/// Prints the ns of BPF time per connection, and the ratios.
pub fn run(Args { rounds, against }: &Args) -> Result<()> {
    host::ensure(TCPLIFE)?;
    traced::mount_tracefs()?;
    let tool = traced::build()?;
    let _stats = Stats::on()?;
    let mut rows = vec![
        ("empty program", Tracer::Empty, Vec::new()),
        ("kmesh-trace", Tracer::Tool(&tool, &[]), Vec::new()),
        ("kmesh-trace --drops", Tracer::Tool(&tool, &["--drops"]), Vec::new()),
        ("kmesh-trace --turns", Tracer::Tool(&tool, &["--turns"]), Vec::new()),
        ("tcplife", Tracer::Tcplife, Vec::new()),
    ];
    let against = against.as_deref().map(|path| Tracer::Tool(path, &[]));
    rows.extend(against.map(|tracer| ("the other build", tracer, Vec::new())));
    let mut addresses = 0;
    let mut missing = 0;
    for _ in 0..rounds.rounds {
        for (_, tracer, times) in &mut rows {
            let ns = tracer.round(rounds.connections, &mut addresses, &mut missing)?;
            times.push(ns as f64 / rounds.connections as f64);
        }
    }
    println!("{:<20} {:>10} {:>22} {:>8}", "", "median", "range", "ratio");
    let base = median(&mut rows[1].2);
    for (name, _, times) in &mut rows {
        line(name, times, base);
    }
    println!(
        "ns of BPF time per connection (both ends, all programs), {} rounds of {}; {missing} ends \
         without a record",
        rounds.rounds, rounds.connections
    );
    Ok(())
}

impl Tracer<'_> {
    /// Makes connections, and returns the BPF time of all of them in ns. Adds the ends without a record to `missing`.
    fn round(&self, connections: usize, addresses: &mut u8, missing: &mut u64) -> Result<u64> {
        let traced = match self {
            Self::Empty => {
                let program = Empty::attach()?;
                traffic::churn(connections, addresses)?;
                return Ok(program.time_ns());
            }
            Self::Tool(tool, args) => Traced::start(tool, &[&["--no-resolve"], *args].concat())?,
            Self::Tcplife => Traced::peer(&mut Command::new("tcplife"))?,
        };
        let before = traced.programs_ns()?;
        traffic::churn(connections, addresses)?;
        let ns = traced.programs_ns()? - before;
        if matches!(self, Self::Tcplife) {
            traced.end()?;
            return Ok(ns);
        }
        let summary = traced.finish()?;
        *missing += traced::missing(&summary, 2 * connections);
        Ok(ns)
    }
}
