//! Measures how fast, how large and how late the tool is when it merges the streams of many nodes.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kmesh_trace::capture::{Capture, Compression};
use kmesh_trace::output::json::contract::ConnLine;
use kmesh_trace::output::{Sink, append_line};
use kmesh_trace::record::{Event, Header, Record, Summary, WallTime};
use kmesh_trace::track::delta::Delta;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::{median, replay, traced};

#[derive(clap::Args)]
pub struct Args {
    /// The capture with the sample records
    #[arg(long, value_name = "FILE", default_value = "tests/data/incident.jsonl.zst")]
    capture: PathBuf,
    /// The number of streams
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    streams: usize,
    /// The number of records of each stream
    #[arg(long, value_name = "N", default_value_t = 500)]
    records: usize,
    /// The tool; without it, a release build
    #[arg(long, value_name = "FILE")]
    tool: Option<PathBuf>,
}

/// Prints the rates, the memory and the delays.
pub fn run(args: &Args) -> Result<ExitCode> {
    let tool = args.tool.clone().map_or_else(traced::build, Ok)?;
    let bytes = fs::read(&args.capture).with_context(|| format!("cannot read {}", args.capture.display()))?;
    let (header, sample) = replay::read(&bytes)?;
    let folder = std::env::temp_dir().join(format!("kmesh-trace-streams-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let result = measure(args, &tool, &header, &sample, &folder);
    fs::remove_dir_all(&folder)?;
    result.map(|()| ExitCode::SUCCESS)
}

fn measure(args: &Args, tool: &Path, header: &Header, sample: &[Record], folder: &Path) -> Result<()> {
    let total = args.streams * args.records;
    println!(
        "{} captures of {} records each, both ends of {} connections",
        args.streams,
        args.records,
        total / 2
    );
    write_captures(args, header, sample, folder)?;
    let mut reads = Vec::new();
    for number in 0..args.streams {
        reads.push("--read".into());
        reads.push(folder.join(format!("{number}.jsonl.zst")));
    }
    for (what, flags) in [
        ("merge only", &["-o", "none"][..]),
        ("to JSON", &["-o", "json"]),
        ("to a rollup", &["-o", "json", "--rollup", "--by", "node"]),
        ("joined, to JSON", &["-o", "json", "--join"]),
    ] {
        let child = Command::new(tool)
            .args(&reads)
            .args(flags)
            .arg("--quiet")
            .stdout(Stdio::null())
            .spawn()?;
        let (processor, peak_mib) = wait(child)?;
        let rate = total as f64 / processor.as_secs_f64();
        println!("{what:<24} {rate:>12.0} records per second of processor time {peak_mib:>10.1} MiB");
    }
    measure_delay(args, tool, sample, folder)
}

/// Waits for the end of a process, which must succeed. Returns its processor time and the maximum of its resident
/// memory in MiB.
fn wait(child: Child) -> Result<(Duration, f64)> {
    let pid = i32::try_from(child.id())?;
    let mut status = 0;
    // SAFETY: all bytes of a rusage may be zero.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the child is not waited for elsewhere, and both pointers live through the call.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    let status = std::process::ExitStatus::from_raw(status);
    ensure!(waited == pid && status.success(), "the tool failed: {status}");
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    Ok((
        time(usage.ru_utime) + time(usage.ru_stime),
        usage.ru_maxrss as f64 / 1024.0,
    ))
}

/// Returns record `number` of a stream: one end of a connection whose other end is in the next or the last stream.
fn record(sample: &Record, streams: usize, stream: usize, number: usize) -> Record {
    let is_client = stream.is_multiple_of(2);
    let (client, server) = match is_client {
        true => (stream, (stream + 1) % streams),
        false => (stream - 1, stream),
    };
    let address = |node: usize, port: u16| {
        let [high, low] = (node as u16).to_be_bytes();
        std::net::SocketAddr::from(([10, high, low, 1], port))
    };
    let mut record = sample.clone();
    record.direction = match is_client {
        true => kmesh_trace::record::Direction::Outbound,
        false => kmesh_trace::record::Direction::Inbound,
    };
    record.node = format!("node-{stream}").into();
    record.id.cookie = number as u64 + 1;
    record.src = address(client, 32_768 + (number % 28_000) as u16);
    record.dst = address(server, 80);
    record.names.original_dst = None;
    record.time = WallTime(sample.time.0 + number as i64 * 10_000_000 + stream as i64 * 1_000);
    record.start = Some(WallTime(record.time.0 - 1_000_000));
    let sequences = [1_000_000 + number as u32 * 7_919, 2_000_000 + number as u32 * 104_729];
    let (sent, received) = if is_client { (0, 1) } else { (1, 0) };
    record.tcp.snd_nxt = sequences[sent];
    record.tcp.snd_una = sequences[sent];
    record.tcp.rcv_nxt = sequences[received];
    record
}

fn first_close(sample: &[Record]) -> Result<&Record> {
    let close = sample
        .iter()
        .find(|record| record.event == Event::Close && record.established);
    close.context("the capture has no close of an established connection")
}

fn write_captures(args: &Args, header: &Header, sample: &[Record], folder: &Path) -> Result<()> {
    let sample = first_close(sample)?;
    for stream in 0..args.streams {
        let mut header = header.clone();
        header.info.node = format!("node-{stream}");
        let file = File::create(folder.join(format!("{stream}.jsonl.zst")))?;
        let mut capture = Capture::to(file, Compression::Zstd, header)?;
        let mut summary = Summary::zero(sample.time);
        for number in 0..args.records {
            let record = record(sample, args.streams, stream, number);
            summary.time = record.time;
            capture.record(&record, &Delta::default())?;
        }
        (summary.closes, summary.delivered) = (args.records as u64, args.records as u64);
        capture.summary(&summary)?;
        capture.finish()?;
    }
    Ok(())
}

/// Measures the time from writing a line to a live stream until the tool prints it, with one silent stream, and with
/// none.
fn measure_delay(args: &Args, tool: &Path, sample: &[Record], folder: &Path) -> Result<()> {
    const ROUNDS: usize = 20;
    let sample = first_close(sample)?;
    let mut command = Command::new(tool);
    let mut paths = Vec::new();
    for number in 0..args.streams {
        let path = folder.join(format!("{number}.pipe"));
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        command.arg("--read").arg(&path);
        paths.push(path);
    }
    let mut child = command
        .args(["-o", "json", "-q"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no pipe")?).lines();
    let open = |path: &PathBuf| File::options().write(true).open(path);
    let mut pipes = paths.iter().map(open).collect::<std::io::Result<Vec<_>>>()?;
    for (what, is_silent) in [("no silent stream", false), ("one silent stream", true)] {
        let mut delays = Vec::new();
        for round in 0..ROUNDS {
            let mut written = Instant::now();
            let last = args.streams - usize::from(is_silent);
            for (stream, pipe) in pipes.iter_mut().enumerate().take(last) {
                let number = round + if is_silent { ROUNDS } else { 0 };
                let mut line = Vec::new();
                append_line(&mut line, &ConnLine::new(&record(sample, args.streams, stream, number)))?;
                pipe.write_all(&line)?;
                written = Instant::now();
            }
            // The streams' lines of this round come in order, except the last ones, which wait for the next round.
            for _ in 0..last {
                lines.next().context("the tool ended")??;
            }
            delays.push(written.elapsed().as_secs_f64() * 1e3);
        }
        let maximum = delays.iter().copied().fold(0.0, f64::max);
        println!(
            "{what:<24} {:>12.0} ms from the last line's write to its output, median of {ROUNDS}; at most {maximum:.0} ms",
            median(&mut delays)
        );
    }
    let peak = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    let peak = peak
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap_or("?")
        .trim()
        .to_owned();
    println!("{:<24} {peak:>12}", "memory, live");
    drop(pipes);
    // Without a summary, each stream counts as broken.
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait()?.is_none() {
        ensure!(Instant::now() < deadline, "the tool does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
