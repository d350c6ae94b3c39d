//! Measures the CPU time of socket scans over many open sockets, and the losses of records meanwhile.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::traced::{self, Traced};
use super::traffic;

/// The number of connections per process. Each has two descriptors, and the limit is 20,000 descriptors.
const PER_PROCESS: usize = 9_000;

#[derive(clap::Args)]
pub struct Args {
    /// The number of open sockets: both ends of each connection
    #[arg(long, default_value_t = 100_000)]
    sockets: usize,
    /// The number of scans, one per second
    #[arg(long, default_value_t = 10)]
    scans: u32,
}

#[derive(clap::Args)]
pub struct Hold {
    connections: usize,
    /// The last byte of the address, which differs between processes
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

/// Prints the CPU time per scan with many sockets and, for comparison, with few.
pub fn run(args: &Args) -> Result<()> {
    let tool = traced::build()?;
    let few = measure(&tool, args.scans)?;
    let mut holders = Vec::new();
    let mut left = args.sockets / 2;
    while left > 0 {
        holders.push(holder(left.min(PER_PROCESS), holders.len() as u8 + 1)?);
        left = left.saturating_sub(PER_PROCESS);
    }
    let many = measure(&tool, args.scans);
    for mut holder in holders {
        drop(holder.stdin.take());
        holder.wait()?;
    }
    let many = many?;
    println!(
        "{:<16} {:>12} {:>12} {:>12} {:>10} {:>8}",
        "sockets", "open", "ms per scan", "closes", "delivered", "lost"
    );
    for (sockets, figures) in [("few", few), (&*args.sockets.to_string(), many)] {
        println!(
            "{sockets:<16} {:>12} {:>12.1} {:>12} {:>10} {:>8}",
            figures.open, figures.ms, figures.closes, figures.delivered, figures.lost
        );
    }
    println!(
        "CPU time of the scanner thread over {} scans, while connections open and close",
        args.scans
    );
    Ok(())
}

struct Figures {
    open: u64,
    ms: f64,
    closes: u64,
    delivered: u64,
    lost: u64,
}

fn measure(tool: &std::path::Path, scans: u32) -> Result<Figures> {
    // No record passes this filter, which the kernel does not check, so that printing is not measured.
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
    let before = scanner_ns(traced.pid())?.unwrap_or(0);
    let mut addresses = 100;
    while began.elapsed() < Duration::from_secs(scans.into()) {
        traffic::churn(500, &mut addresses)?;
        thread::sleep(Duration::from_millis(50));
    }
    let after = scanner_ns(traced.pid())?.context("the tracer has no scanner thread")?;
    let ms = (after - before) as f64 / 1e6 / f64::from(scans);
    let summary = traced.finish()?;
    let count = |name: &str| {
        summary[name]
            .as_u64()
            .with_context(|| format!("no {name} in {summary}"))
    };
    Ok(Figures {
        open: count("open")?,
        ms,
        closes: count("closes")?,
        delivered: count("delivered")? + count("filtered")?,
        lost: count("lost_records")?,
    })
}

/// Returns the processor time of the scanner thread, ns. `None` until the thread starts, which is after the tracer
/// reports that it traces.
fn scanner_ns(pid: u32) -> Result<Option<u64>> {
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
        .context("cannot start a process that holds connections")?;
    let mut line = String::new();
    let output = child.stdout.as_mut().context("no standard output")?;
    BufReader::new(output).read_line(&mut line)?;
    ensure!(
        line.trim() == "ready",
        "the process that holds connections ended: {}",
        child.wait()?
    );
    Ok(child)
}
