//! The tool beside what else traces the lives of connections, in turns on the same traffic: what each leaves of the rate, costs
//! the node, and gets right.

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

/// Our own script for bpftrace: what it can tell of a close by the tracepoint and the kernel's types.
const SCRIPT: &str = include_str!("peers.bt");

/// Attempts a round that are refused.
const REFUSED: usize = 200;
/// What a tracer has to print what it has.
const SETTLE: Duration = Duration::from_secs(2);

/// Who is compared.
struct Peer {
    name: &'static str,
    need: Option<Need>,
    /// None: nothing traces.
    command: Option<fn(&Path) -> Command>,
    /// What its lines tell of the traffic.
    read: fn(&str, &mut Seen),
}

/// What was told of a round's traffic.
#[derive(Default)]
struct Seen {
    /// Ends of connections that were told to have closed.
    closes: u64,
    /// Sent and received, all ends. None: it does not tell.
    bytes: Option<u64>,
    /// Attempts that were told to have been refused.
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

fn ours(line: &str, seen: &mut Seen) {
    let Ok(line) = serde_json::from_str::<Value>(line) else {
        return;
    };
    if line["type"] != "conn" {
        return;
    }
    if line["outcome"] == "refused" {
        seen.refused += 1;
    } else {
        seen.closes += 1;
        let bytes = |name: &str| line[name].as_u64().unwrap_or(0);
        *seen.bytes.get_or_insert(0) += bytes("sent_bytes") + bytes("received_bytes");
    }
}

/// PID COMM LADDR LPORT RADDR RPORT TX_KB RX_KB MS
fn tcplife(line: &str, seen: &mut Seen) {
    let columns: Vec<_> = line.split_whitespace().collect();
    let [_, .., sent, received, _] = columns[..] else {
        return;
    };
    let (Ok(sent), Ok(received)) = (sent.parse::<f64>(), received.parse::<f64>()) else {
        return;
    };
    seen.closes += 1;
    *seen.bytes.get_or_insert(0) += ((sent + received) * 1024.0) as u64;
}

fn script(line: &str, seen: &mut Seen) {
    let columns: Vec<_> = line.split_whitespace().collect();
    let ["closed", sent, received] = columns[..] else {
        return;
    };
    seen.closes += 1;
    let bytes = sent.parse::<u64>().unwrap_or(0) + received.parse::<u64>().unwrap_or(0);
    *seen.bytes.get_or_insert(0) += bytes;
}

/// One round's figures of one peer.
struct Round {
    rate: f64,
    bpf_ns: f64,
    user_us: f64,
    memory_mib: f64,
    seen: Seen,
}

/// Prints a line for each.
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
                    println!("{}: not here: {error:#}", peer.name);
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
            // One that cannot run here is said once, and not asked again.
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
            seen: Seen::default(),
        });
    };
    let start = || -> Result<Traced> { Traced::peer(&mut command(tool)) };
    // The rate without the kernel's clock around each run; the time of the programs on its own. It is by that clock that one
    // sees a peer's programs at work.
    let stats = Stats::on()?;
    let traced = start()?;
    drop(stats);
    let user_before = traced.processor_ns()?;
    let rate = exchanges.run(addresses)?;
    std::thread::sleep(SETTLE);
    let ends = 2.0 * exchanges.count as f64;
    let user_us = (traced.processor_ns()? - user_before) as f64 / 1e3 / (ends / 2.0);
    let memory_mib = traced.memory_mib()?;
    let output = traced.end()?;
    let seen = seen(&output, peer)?;

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
        seen,
    })
}

fn seen(output: &Path, peer: &Peer) -> Result<Seen> {
    let mut seen = Seen::default();
    for line in BufReader::new(File::open(output).context("cannot read what was printed")?).split(b'\n') {
        let line = line.context("cannot read what was printed")?;
        let line = String::from_utf8_lossy(&line);
        // What else happens on this machine is not asked for.
        if line.contains(traffic::NETWORK) || line.starts_with("closed") {
            (peer.read)(&line, &mut seen);
        }
    }
    Ok(seen)
}

fn table(rounds: &[(&Peer, Result<Vec<Round>>)], exchanges: &Exchanges, count: usize) {
    println!(
        "{:<14} {:>10} {:>15} {:>6} {:>10} {:>10} {:>8} {:>8} {:>10} {:>8}",
        "tracer", "conn/s", "least to most", "kept", "BPF ns", "user µs", "MiB", "lost", "bytes", "refused"
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
        let lost: u64 = done.iter().map(|round| ends.saturating_sub(round.seen.closes)).sum();
        let exact = done.iter().all(|round| round.seen.bytes == Some(exchanges.bytes()));
        let told: Vec<_> = done.iter().filter_map(|round| round.seen.bytes).collect();
        let bytes = match told.first() {
            None => "not told".to_owned(),
            Some(_) if exact => "exact".to_owned(),
            Some(&one) => format!("{:.1} %", 100.0 * one as f64 / exchanges.bytes() as f64),
        };
        let refused: u64 = done.iter().map(|round| round.seen.refused).sum();
        println!(
            " {:>10.0} {:>10.2} {:>8.1} {lost:>8} {bytes:>10} {:>7.0}%",
            figure(|round| round.bpf_ns),
            figure(|round| round.user_us),
            figure(|round| round.memory_mib),
            100.0 * refused as f64 / (exchanges.refused * done.len()) as f64,
        );
    }
    println!(
        "{count} rounds, in turns, of {} connections (both ends on one core) and {} refused attempts: medians. BPF ns and user µs \
         a connection; MiB: memory of its own and BPF maps; lost: ends not told, all rounds; refused: attempts told \
         as such.\n{}",
        exchanges.count,
        exchanges.refused,
        machine()
    );
}

/// On what and when.
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
