//! Measures the records per second of a replay on one core, compared with the JSON library alone, and the bytes per
//! record of a capture.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use kmesh_trace::capture::lines::{Lines, Step};
use kmesh_trace::capture::parse::{Line, Parser};
use kmesh_trace::capture::{Capture, Compression};
use kmesh_trace::config::{Events, TimeFormat};
use kmesh_trace::engine::{Engine, Selection};
use kmesh_trace::filter::Filter;
use kmesh_trace::output::json::contract::ConnLine;
use kmesh_trace::output::{Json, Log, RollupJson, Sink, Stdout};
use kmesh_trace::record::{Header, Record, WallTime};
use kmesh_trace::rollup::{By, Key, RollupSettings};
use kmesh_trace::track::delta::Delta;

const ALL: Events = Events {
    close: true,
    open: true,
    update: true,
    reject: false,
    listener: false,
};

#[derive(clap::Args)]
pub struct Args {
    /// The capture with the sample records
    #[arg(long, value_name = "FILE", default_value = "tests/data/incident.jsonl.zst")]
    capture: PathBuf,
    /// The number of generated records, each a sample with other numbers
    #[arg(long, value_name = "N", default_value_t = 500_000)]
    records: usize,
    /// The number of runs; the fastest counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
}

/// Prints the rates and sizes.
pub fn run(args: &Args) -> Result<ExitCode> {
    let bytes = fs::read(&args.capture).with_context(|| format!("cannot read {}", args.capture.display()))?;
    let (header, sample) = read(&bytes)?;
    let info = header.info.clone();
    print_sizes("as recorded", &sample, &bytes)?;
    let records = generate(&sample, args.records);
    let capture = capture(&header, &records)?;
    print_sizes("generated", &records, &capture)?;

    let parse = best(args.runs, || each(&capture, |_| Ok(())))?;
    let json_alone = best(args.runs, || {
        let mut line = Vec::new();
        for record in &records {
            line.clear();
            serde_json::to_writer(&mut line, &ConnLine::new(record))?;
            line.push(b'\n');
            std::hint::black_box(&line);
        }
        Ok(())
    })?;
    let out = || Stdout::to(io::sink());
    let rollup = RollupSettings {
        by: By::new(&[Key::Workload]),
        interval: Some(Duration::from_secs(5)),
        max_groups: 10_000,
    };
    let json = best(args.runs, || replay(&capture, Box::new(Json::new(ALL, &info, out()))))?;
    let log = best(args.runs, || {
        replay(&capture, Box::new(Log::new(ALL, false, TimeFormat::Utc, out())))
    })?;
    let table = best(args.runs, || {
        replay(&capture, Box::new(RollupJson::new(rollup, &info, out())))
    })?;
    println!(
        "\n{} records, the fastest of {} runs, one core",
        records.len(),
        args.runs
    );
    for (what, time) in [
        ("capture → records", parse),
        ("the JSON library alone", json_alone),
        ("capture → JSON", json),
        ("capture → log", log),
        ("capture → rollup", table),
    ] {
        println!(
            "{what:<24} {:>12.0} records/s",
            records.len() as f64 / time.as_secs_f64()
        );
    }
    let ratio = json_alone.as_secs_f64() / json.as_secs_f64();
    println!(
        "capture → JSON has {:.0} % of the rate of the JSON library alone",
        ratio * 100.0
    );
    Ok(ExitCode::SUCCESS)
}

fn each(capture: &[u8], mut take: impl FnMut(&Record) -> io::Result<()>) -> Result<()> {
    let (mut lines, mut parser) = (Lines::new(capture)?, Parser::default());
    loop {
        match lines.next_line()? {
            Step::Line(line) => {
                if let Line::Record(record) = parser.parse(line).map_err(|problem| anyhow!(problem))? {
                    take(&record)?;
                }
            }
            Step::Damage(damage) => return Err(anyhow!("{damage}")),
            Step::End => return Ok(()),
        }
    }
}

/// Returns the header and all records of a capture.
pub fn read(capture: &[u8]) -> Result<(Header, Vec<Record>)> {
    let mut records = Vec::new();
    each(capture, |record| {
        records.push(record.clone());
        Ok(())
    })?;
    let mut lines = Lines::new(capture)?;
    let first = match lines.next_line()? {
        Step::Line(line) => Parser::default().parse(line).map_err(|problem| anyhow!(problem))?,
        _ => return Err(anyhow!("the capture is empty")),
    };
    match first {
        Line::Header(header) => Ok((header, records)),
        _ => Err(anyhow!("the capture has no header")),
    }
}

fn replay(capture: &[u8], sink: Box<dyn Sink>) -> Result<()> {
    let selection = Selection {
        events: ALL,
        filter: Filter::default(),
        count: None,
    };
    let mut engine = Engine::new(selection, vec![sink]);
    each(capture, |record| engine.record(record, false))?;
    Ok(engine.finish()?)
}

fn best(runs: usize, mut run: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..runs.max(1) {
        let began = Instant::now();
        run()?;
        best = best.min(began.elapsed());
    }
    Ok(best)
}

/// Returns `count` copies of sample records with other times, cookies, ports, sequence numbers and bytes.
fn generate(sample: &[Record], count: usize) -> Vec<Record> {
    let mut next = super::random();
    let mut time = sample.first().map_or(0, |record| record.time.0);
    (0..count)
        .map(|_| {
            let mut record = sample[next() as usize % sample.len()].clone();
            time += (next() % 20_000) as i64;
            let shift = time - record.time.0;
            record.time = WallTime(time);
            record.start = record
                .start
                .map(|start| WallTime(start.0 + shift - (next() % 100_000) as i64));
            let duration = |start: WallTime| time.abs_diff(start.0);
            record.duration_ns = record.start.map(duration);
            record.observed_ns = record.duration_ns.unwrap_or(record.observed_ns);
            record.id.cookie = record.id.cookie.wrapping_add(next() % 1000);
            record.src.set_port(32768 + (next() % 28232) as u16);
            record.tcp.snd_nxt = record.tcp.snd_nxt.wrapping_add(next() as u32);
            record.tcp.snd_una = record.tcp.snd_nxt;
            record.tcp.srtt_us = record.tcp.srtt_us.map(|srtt| srtt + (next() % 40) as u32);
            record.sent_bytes += next() % 500;
            record.received_bytes += next() % 500;
            record
        })
        .collect()
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Ok(mut all) = self.0.lock() {
            all.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn capture(header: &Header, records: &[Record]) -> Result<Vec<u8>> {
    let out = Shared::default();
    let mut capture = Capture::to(out.clone(), Compression::Zstd, header.clone())?;
    let began = Instant::now();
    for record in records {
        capture.record(record, &Delta::default())?;
    }
    capture.finish()?;
    let rate = records.len() as f64 / began.elapsed().as_secs_f64();
    println!("\nrecords → capture        {rate:>12.0} records/s, once");
    let bytes = out.0.lock().map_err(|_| anyhow!("poisoned"))?.clone();
    Ok(bytes)
}

fn print_sizes(name: &str, records: &[Record], capture: &[u8]) -> Result<()> {
    let mut json = Vec::new();
    for record in records {
        serde_json::to_writer(&mut json, &ConnLine::new(record))?;
        json.push(b'\n');
    }
    let per_record = |bytes: usize| bytes as f64 / records.len() as f64;
    println!("{} records, {name}; bytes per record:", records.len());
    println!("{:<24} {:>12.1}", "capture", per_record(capture.len()));
    println!("{:<24} {:>12.1}", "JSON", per_record(json.len()));
    match gzip(&json) {
        Ok(bytes) => println!("{:<24} {:>12.1}", "JSON, gzip", per_record(bytes)),
        Err(error) => println!("{:<24} not measured: {error:#}", "JSON, gzip"),
    }
    Ok(())
}

fn gzip(bytes: &[u8]) -> Result<usize> {
    let mut child = Command::new("gzip")
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run gzip")?;
    let mut into = child.stdin.take().context("no pipe")?;
    std::thread::scope(|scope| {
        scope.spawn(move || into.write_all(bytes));
        Ok(child.wait_with_output()?.stdout.len())
    })
}
