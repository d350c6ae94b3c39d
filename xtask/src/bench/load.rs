//! Runs full rate with all features for minutes. Checks that each end of each connection is printed or counted as lost,
//! and prints the memory.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::ChildStdout;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::traced::{self, Traced};
use super::traffic::Exchanges;
use crate::host;

#[derive(clap::Args)]
pub struct Args {
    /// The time in minutes
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
}

/// The connections between two checks of the time.
const BATCH: Exchanges = Exchanges {
    count: 50_000,
    refused: 500,
};
const METRICS: &str = "127.0.0.1:15099";

/// Prints a line per minute, and the counts at the end.
pub fn run(args: &Args) -> Result<()> {
    let tool = traced::build()?;
    let captures = host::target_dir().join("bench-load");
    _ = std::fs::remove_dir_all(&captures);
    std::fs::create_dir_all(&captures).with_context(|| format!("cannot create {}", captures.display()))?;
    let capture = captures.join("load.jsonl.zst");
    let capture = capture.to_str().context("the path of the folder is not UTF-8")?;
    let everything = [
        &["--no-resolve", "--events", "open,update,close", "--interval", "5s"][..],
        &["--metrics", METRICS, "--write", capture, "--rotate", "64M,2"],
    ];
    let (traced, output) = Traced::piped(&tool, &everything.concat())?;
    let printed = thread::spawn(move || read(output));
    let over = Arc::new(AtomicBool::new(false));
    let scrapes = Arc::new(AtomicU64::new(0));
    let scraper = {
        let (over, scrapes) = (Arc::clone(&over), Arc::clone(&scrapes));
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                scrapes.fetch_add(u64::from(scrape().is_ok()), Ordering::Relaxed);
                thread::sleep(Duration::from_secs(1));
            }
        })
    };
    let began = Instant::now();
    let mut next = Duration::from_secs(60);
    let (mut made, mut addresses) = (0, 0);
    println!("{:>8} {:>14} {:>12} {:>8}", "seconds", "ends made", "conn/s", "MiB");
    loop {
        let rate = BATCH.run(&mut addresses)?;
        made += (2 * BATCH.count + BATCH.refused) as u64;
        let elapsed = began.elapsed();
        let is_over = elapsed.as_secs_f64() >= args.minutes * 60.0;
        if elapsed >= next || is_over {
            next += Duration::from_secs(60);
            println!(
                "{:>8} {made:>14} {rate:>12.0} {:>8.1}",
                elapsed.as_secs(),
                traced.memory_mib()?
            );
        }
        if is_over {
            break;
        }
    }
    over.store(true, Ordering::Relaxed);
    scraper.join().map_err(|_| anyhow!("the scraper panicked"))?;
    traced.end()?;
    let printed = printed.join().map_err(|_| anyhow!("the reader panicked"))??;
    std::fs::remove_dir_all(&captures)?;
    let count = |name: &str| printed.summary[name].as_u64().unwrap_or(0);
    let scrapes = scrapes.load(Ordering::Relaxed);
    println!(
        "{made} ends and {scrapes} scrapes; {} closes counted, {} delivered, {} lost; {} close lines, {} other lines",
        count("closes"),
        count("delivered"),
        count("lost_records"),
        printed.closes,
        printed.others
    );
    ensure!(
        count("closes") == count("delivered") + count("lost_records") && printed.closes == count("delivered"),
        "the counts do not add up: {}",
        printed.summary
    );
    ensure!(
        count("closes") >= made,
        "some ends are not counted: {}",
        printed.summary
    );
    println!(
        "JSON to a pipe, open and update events, metrics scraped each second, a rotated capture; {}",
        super::peers::machine()
    );
    Ok(())
}

struct Printed {
    closes: u64,
    others: u64,
    summary: Value,
}

fn read(output: ChildStdout) -> Result<Printed> {
    let mut output = BufReader::with_capacity(1 << 20, output);
    let (mut line, mut last) = (Vec::new(), Vec::new());
    let (mut closes, mut others) = (0, 0);
    while output
        .read_until(b'\n', &mut line)
        .context("cannot read the output of the tracer")?
        > 0
    {
        // The event is near the start of the line.
        let head = &line[..line.len().min(120)];
        let is_close = head.windows(15).any(|word| word == b"\"event\":\"close\"");
        if is_close {
            closes += 1
        } else {
            others += 1
        }
        std::mem::swap(&mut line, &mut last);
        line.clear();
    }
    let summary = serde_json::from_slice(&last).context("the last line is not a summary")?;
    Ok(Printed {
        closes,
        others,
        summary,
    })
}

fn scrape() -> Result<()> {
    let mut stream = TcpStream::connect(METRICS)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    ensure!(all.starts_with(b"HTTP/1.1 200"), "the scrape failed");
    Ok(())
}
