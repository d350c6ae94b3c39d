//! Compares the tool with other connection tracers, in alternating rounds of the same traffic: the remaining connection
//! rate, the cost, and the correctness of the output.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::traced::{self, Stats, Traced};
use super::traffic::{self, Exchanges};
use super::{Rounds, median};
use crate::host::{self, Need};

/// A bpftrace script that prints the bytes of each closed connection.
const SCRIPT: &str = include_str!("peers.bt");

/// The number of refused attempts per round.
const REFUSED: usize = 200;
/// The time in which a tracer completes its start.
const START_TIME: Duration = Duration::from_secs(1);
/// The time in which a tracer prints its last lines.
const PRINT_TIME: Duration = Duration::from_secs(2);

struct Peer {
    name: &'static str,
    need: Option<Need>,
    /// `None` measures the traffic without a tracer.
    command: Option<fn(&Path) -> Command>,
    /// Adds the content of an output line.
    read: fn(&str, &mut Reported),
}

/// The traffic of a round, as the tracer reports it.
#[derive(Default)]
struct Reported {
    /// The number of closed ends.
    closes: u64,
    /// The sent and received bytes of all ends. `None` if the tracer does not report bytes.
    bytes: Option<u64>,
    /// The number of refused attempts.
    refused: u64,
}

const PEERS: [Peer; 5] = [
    Peer {
        name: "nothing",
        need: None,
        command: None,
        read: |_, _| {},
    },
    Peer {
        name: "kmesh-trace",
        need: None,
        command: Some(|tool| {
            let mut command = Command::new(tool);
            command.args(["--no-resolve", "-o", "json"]);
            command
        }),
        read: ours,
    },
    Peer {
        name: "tcplife",
        need: Some(Need {
            program: "tcplife",
            package: "libbpf-tools",
        }),
        command: Some(|_| Command::new("tcplife")),
        read: tcplife,
    },
    Peer {
        name: "tcplife-bpfcc",
        need: Some(Need {
            program: "tcplife-bpfcc",
            package: "bpfcc-tools",
        }),
        command: Some(|_| Command::new("tcplife-bpfcc")),
        read: tcplife,
    },
    Peer {
        name: "bpftrace",
        need: Some(Need {
            program: "bpftrace",
            package: "bpftrace",
        }),
        command: Some(|_| {
            let mut command = Command::new("bpftrace");
            command.args(["-e", SCRIPT]);
            command
        }),
        read: script,
    },
];

fn ours(line: &str, reported: &mut Reported) {
    let Ok(line) = serde_json::from_str::<Value>(line) else {
        return;
    };
    if line["type"] != "conn" {
        return;
    }
    if line["outcome"] == "refused" {
        reported.refused += 1;
    } else {
        reported.closes += 1;
        let bytes = |name: &str| line[name].as_u64().unwrap_or(0);
        *reported.bytes.get_or_insert(0) += bytes("sent_bytes") + bytes("received_bytes");
    }
}

/// Parses `PID COMM LADDR LPORT RADDR RPORT TX_KB RX_KB MS`.
fn tcplife(line: &str, reported: &mut Reported) {
    let columns: Vec<_> = line.split_whitespace().collect();
    let [_, .., sent, received, _] = columns[..] else {
        return;
    };
    let (Ok(sent), Ok(received)) = (sent.parse::<f64>(), received.parse::<f64>()) else {
        return;
    };
    reported.closes += 1;
    *reported.bytes.get_or_insert(0) += ((sent + received) * 1024.0) as u64;
}

fn script(line: &str, reported: &mut Reported) {
    let columns: Vec<_> = line.split_whitespace().collect();
    let ["closed", sent, received] = columns[..] else {
        return;
    };
    reported.closes += 1;
    let bytes = sent.parse::<u64>().unwrap_or(0) + received.parse::<u64>().unwrap_or(0);
    *reported.bytes.get_or_insert(0) += bytes;
}

/// The figures of one tracer in one round.
struct Round {
    rate: f64,
    bpf_ns: f64,
    user_us: f64,
    memory_mib: f64,
    reported: Reported,
}

/// Prints a line for each tracer.
pub fn run(args: &Rounds) -> Result<()> {
    traced::mount_tracefs()?;
    let tool = traced::build()?;
    let present: Vec<_> = PEERS
        .iter()
        .filter(|peer| match &peer.need {
            None => true,
            Some(need) => {
                let there = host::ensure(std::slice::from_ref(need));
                if let Err(error) = &there {
                    println!("{}: skipped: {error:#}", peer.name);
                }
                there.is_ok()
            }
        })
        .collect();
    let exchanges = Exchanges {
        count: args.connections,
        refused: REFUSED,
    };
    let mut addresses = 0;
    let mut rounds: Vec<(&Peer, Result<Vec<Round>>)> = present.into_iter().map(|peer| (peer, Ok(Vec::new()))).collect();
    for _ in 0..args.rounds {
        for (peer, done) in &mut rounds {
            // A tracer that fails does not run again.
            if let Ok(so_far) = done {
                match round(peer, &tool, &exchanges, &mut addresses) {
                    Ok(one) => so_far.push(one),
                    Err(error) => *done = Err(error),
                }
            }
        }
    }
    table(&rounds, &exchanges, args.rounds);
    Ok(())
}

fn round(peer: &Peer, tool: &Path, exchanges: &Exchanges, addresses: &mut u8) -> Result<Round> {
    let Some(command) = peer.command else {
        return Ok(Round {
            rate: exchanges.run(addresses)?,
            bpf_ns: 0.0,
            user_us: 0.0,
            memory_mib: 0.0,
            reported: Reported::default(),
        });
    };
    let start = || -> Result<Traced> { Traced::peer(&mut command(tool)) };
    // Two runs: the rate is measured without BPF statistics, which slow programs down, and the BPF time with them. The
    // start needs statistics, because they show that the programs of a peer run.
    let stats = Stats::on()?;
    let traced = start()?;
    drop(stats);
    // The first program runs before the start is complete.
    std::thread::sleep(START_TIME);
    let user_before = traced.processor_ns()?;
    let rate = exchanges.run(addresses)?;
    std::thread::sleep(PRINT_TIME);
    let ends = 2.0 * exchanges.count as f64;
    let user_us = (traced.processor_ns()? - user_before) as f64 / 1e3 / (ends / 2.0);
    let memory_mib = traced.memory_mib()?;
    let output = traced.end()?;
    let reported = reported(&output, peer)?;

    let _stats = Stats::on()?;
    let traced = start()?;
    let before = traced.programs_ns()?;
    exchanges.run(addresses)?;
    let bpf_ns = (traced.programs_ns()? - before) as f64 / exchanges.count as f64;
    traced.end()?;
    Ok(Round {
        rate,
        bpf_ns,
        user_us,
        memory_mib,
        reported,
    })
}

fn reported(output: &Path, peer: &Peer) -> Result<Reported> {
    let mut reported = Reported::default();
    for line in BufReader::new(File::open(output).context("cannot read the output")?).split(b'\n') {
        let line = line.context("cannot read the output")?;
        let line = String::from_utf8_lossy(&line);
        // Ignore other connections of this machine.
        if line.contains(traffic::NETWORK) || line.starts_with("closed") {
            (peer.read)(&line, &mut reported);
        }
    }
    Ok(reported)
}

fn table(rounds: &[(&Peer, Result<Vec<Round>>)], exchanges: &Exchanges, count: usize) {
    println!(
        "{:<14} {:>10} {:>15} {:>6} {:>10} {:>10} {:>8} {:>8} {:>10} {:>8}",
        "tracer", "conn/s", "range", "rate", "BPF ns", "user µs", "MiB", "lost", "bytes", "refused"
    );
    let mut base = None;
    for (peer, done) in rounds {
        let done = match done {
            Ok(done) if !done.is_empty() => done,
            Ok(_) => continue,
            Err(error) => {
                println!("{:<14} not run: {error:#}", peer.name);
                continue;
            }
        };
        let figure = |of: fn(&Round) -> f64| median(&mut done.iter().map(of).collect::<Vec<_>>());
        let rate = figure(|round| round.rate);
        let base = *base.get_or_insert(rate);
        let mut rates: Vec<_> = done.iter().map(|round| round.rate).collect();
        rates.sort_by(f64::total_cmp);
        let range = format!("{:.0} to {:.0}", rates[0], rates[rates.len() - 1]);
        print!(
            "{:<14} {rate:>10.0} {range:>15} {:>5.0}%",
            peer.name,
            100.0 * rate / base
        );
        if peer.command.is_none() {
            println!();
            continue;
        }
        let ends = 2 * exchanges.count as u64;
        let lost: u64 = done
            .iter()
            .map(|round| ends.saturating_sub(round.reported.closes))
            .sum();
        let exact = done.iter().all(|round| round.reported.bytes == Some(exchanges.bytes()));
        let bytes: Vec<_> = done.iter().filter_map(|round| round.reported.bytes).collect();
        let bytes = match bytes.first() {
            None => "none".to_owned(),
            Some(_) if exact => "exact".to_owned(),
            Some(&one) => format!("{:.1} %", 100.0 * one as f64 / exchanges.bytes() as f64),
        };
        let refused: u64 = done.iter().map(|round| round.reported.refused).sum();
        println!(
            " {:>10.0} {:>10.2} {:>8.1} {lost:>8} {bytes:>10} {:>7.0}%",
            figure(|round| round.bpf_ns),
            figure(|round| round.user_us),
            figure(|round| round.memory_mib),
            100.0 * refused as f64 / (exchanges.refused * done.len()) as f64,
        );
    }
    println!(
        "{count} alternating rounds of {} connections (both ends on one core) and {} refused attempts; medians. rate: \
         relative to no tracer; BPF ns and user µs: per connection; MiB: memory of the process and its BPF maps; lost: \
         ends without a line, all rounds; bytes: sum of all lines; refused: attempts reported as refused.\n{}",
        exchanges.count,
        exchanges.refused,
        machine()
    );
}

/// Returns the processor, the kernel and the date.
pub fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let model = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model
        .lines()
        .find_map(|line| Some(line.strip_prefix("model name")?.split_once(": ")?.1.to_owned()));
    let day = host::text(Command::new("date").args(["-u", "+%Y-%m-%d"])).unwrap_or_default();
    format!(
        "{}, {processors} processors, kernel {}, {}",
        model.as_deref().unwrap_or("an unnamed processor"),
        kernel.trim(),
        day.trim()
    )
}
