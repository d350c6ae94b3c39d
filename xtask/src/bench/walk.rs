//! How long a walk over many open sockets takes, and what happens to records meanwhile.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::traced::{self, Traced};
use super::traffic;

/// Connections a process: two descriptors each, under the usual limit of 20,000.
const EACH: usize = 9_000;

/// What `bench walk` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Sockets held open, both ends of each connection
    #[arg(long, default_value_t = 100_000)]
    sockets: usize,
    /// Walks to measure, one a second
    #[arg(long, default_value_t = 10)]
    walks: u32,
}

/// What `bench hold` takes.
#[derive(clap::Args)]
pub struct Hold {
    connections: usize,
    /// Sets its addresses apart from those of other processes
    number: u8,
}

/// Holds connections until standard input ends.
pub fn hold(args: &Hold) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::new(127, 98, 0, args.number), 0)).context("cannot listen")?;
    let address = listener.local_addr()?;
    let held: Vec<_> = (0..args.connections)
        .map(|_| traffic::connect(&listener, address))
        .collect::<Result<_>>()?;
    println!("ready");
    _ = std::io::stdin().read(&mut [0])?;
    drop(held);
    Ok(())
}

/// Prints the walker's time a walk, with sockets and, for comparison, with hardly any.
pub fn run(args: &Args) -> Result<()> {
    let tool = traced::build()?;
    let few = measure(&tool, args.walks)?;
    let mut holders = Vec::new();
    let mut left = args.sockets / 2;
    while left > 0 {
        holders.push(holder(left.min(EACH), holders.len() as u8 + 1)?);
        left = left.saturating_sub(EACH);
    }
    let many = measure(&tool, args.walks);
    for mut holder in holders {
        drop(holder.stdin.take());
        holder.wait()?;
    }
    let many = many?;
    println!(
        "{:<16} {:>12} {:>12} {:>12} {:>10} {:>8}",
        "sockets", "open", "ms a walk", "closes", "delivered", "lost"
    );
    for (sockets, walked) in [("few", few), (&*args.sockets.to_string(), many)] {
        println!(
            "{sockets:<16} {:>12} {:>12.1} {:>12} {:>10} {:>8}",
            walked.open, walked.ms, walked.closes, walked.delivered, walked.lost
        );
    }
    println!(
        "processor time of the walking thread, over {} walks, while connections were made and closed",
        args.walks
    );
    Ok(())
}

struct Walked {
    open: u64,
    ms: f64,
    closes: u64,
    delivered: u64,
    lost: u64,
}

fn measure(tool: &std::path::Path, walks: u32) -> Result<Walked> {
    // What passes is counted by the summary; each update is filtered late, so that no printing is measured.
    let filter = [
        "--events",
        "update,close",
        "--interval",
        "1s",
        "--min-bytes",
        "1000000000",
    ];
    let traced = Traced::start(tool, &filter)?;
    let began = Instant::now();
    let before = walker_ns(traced.pid())?.unwrap_or(0);
    let mut addresses = 100;
    while began.elapsed() < Duration::from_secs(walks.into()) {
        traffic::churn(500, &mut addresses)?;
        thread::sleep(Duration::from_millis(50));
    }
    let after = walker_ns(traced.pid())?.context("the tracer has no thread that walks")?;
    let ms = (after - before) as f64 / 1e6 / f64::from(walks);
    let summary = traced.finish()?;
    let count = |name: &str| {
        summary[name]
            .as_u64()
            .with_context(|| format!("no {name} in {summary}"))
    };
    Ok(Walked {
        open: count("open")?,
        ms,
        closes: count("closes")?,
        delivered: count("delivered")? + count("filtered")?,
        lost: count("lost_records")?,
    })
}

/// The processor time of the thread that walks, ns. None while there is none: it begins after the tracer says that it traces.
fn walker_ns(pid: u32) -> Result<Option<u64>> {
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("cannot list the tracer's threads")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() == "kmesh-scan" {
            let text = fs::read_to_string(task.join("schedstat"))?;
            let first = text.split_whitespace().next().context("an empty schedstat")?;
            return Ok(Some(first.parse()?));
        }
    }
    Ok(None)
}

fn holder(connections: usize, number: u8) -> Result<Child> {
    let this = std::env::current_exe()?;
    let mut child = Command::new("prlimit")
        .arg("--nofile=20000")
        .arg(this)
        .args(["bench", "hold", &connections.to_string(), &number.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start a holder of connections")?;
    let mut line = String::new();
    let output = child.stdout.as_mut().context("no standard output")?;
    BufReader::new(output).read_line(&mut line)?;
    ensure!(
        line.trim() == "ready",
        "a holder of connections ended: {}",
        child.wait()?
    );
    Ok(child)
}
