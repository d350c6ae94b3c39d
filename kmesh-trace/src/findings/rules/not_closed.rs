//! Connections that a process forgets to close.

use std::collections::BTreeMap;

use crate::findings::subject::{self, Flags};
use crate::findings::text::{plural, span};
use crate::findings::watch::{OpenConnection, Pair, Watch};
use crate::findings::{Finding, Rule, Severity};
use crate::record::{Comm, WallTime};

pub const RULE: Rule = Rule {
    name: "not_closed",
    looks_for: "connections that are not closed",
    find,
    basis,
};

/// The minimum number of connections in CLOSE_WAIT that shows a leak. One or two may be slow.
const MIN_CLOSE_WAIT: u64 = 3;
/// The time in CLOSE_WAIT after which a process has had time to read the peer's FIN: two socket scans of 5 s.
const MIN_CLOSE_WAIT_NS: i64 = 9_500_000_000;
/// The minimum number of idle connections that shows an oversized pool.
const MIN_IDLE: u64 = 50;
/// The time without a byte after which a connection is idle.
const MIN_IDLE_NS: i64 = 9_500_000_000;
/// The connections that pile up for each one that is closed.
const MIN_OPEN_PER_CLOSED: u64 = 10;

fn basis(watch: &Watch) -> Result<u64, &'static str> {
    // Only a run that is live knows what it scans.
    let has_scans = watch.abilities.listeners.is_some() || watch.has_updates;
    match watch.open.len() as u64 {
        0 if has_scans => Err("no connection was open at the end"),
        0 => Err(
            "no update of an open connection: none was open at a socket scan, or the trace lacked --write or was \
             shorter than --interval",
        ),
        open => Ok(open),
    }
}

/// The open connections of one pair and one process.
#[derive(Default)]
struct Held {
    close_wait: Vec<WallTime>,
    idle: Vec<WallTime>,
    all: u64,
}

fn find(watch: &Watch) -> Vec<Finding> {
    let Some(ended) = watch.ended else { return Vec::new() };
    let mut held: BTreeMap<(usize, Option<(u32, Comm)>), Held> = BTreeMap::new();
    for open in watch.open.values() {
        let Some(pair) = open.pair.filter(|_| open.established) else {
            continue;
        };
        let held = held.entry((pair, open.process)).or_default();
        held.all += 1;
        sort(open, ended, held);
    }
    held.into_iter()
        .flat_map(|((pair, process), held)| {
            let pair = &watch.pairs[pair];
            [
                close_wait(pair, process, &held, ended),
                idle(pair, process, &held, ended),
            ]
        })
        .flatten()
        .collect()
}

fn sort(open: &OpenConnection, ended: WallTime, held: &mut Held) {
    match open.close_wait_since {
        Some(since) if ended.0 - since.0 >= MIN_CLOSE_WAIT_NS => held.close_wait.push(since),
        Some(_) => {}
        None if !open.preexisting && open.last.0 - open.moved.0 >= MIN_IDLE_NS => held.idle.push(open.start),
        None => {}
    }
}

fn finding(pair: &Pair, process: Option<(u32, Comm)>, since: &[WallTime], all: u64, ended: WallTime) -> Finding {
    let mut finding = Finding::of(RULE.name, Severity::Warning, pair, (since.len() as u64, all));
    finding.first = since.iter().copied().min().unwrap_or(ended);
    finding.last = ended;
    finding.flags = match process {
        Some((pid, _)) => Flags::default().with("events", "update").with("pid", pid),
        None => finding.flags.with("events", "update"),
    };
    finding.flags = finding.flags.with("output", "log");
    finding
}

fn holder(process: Option<(u32, Comm)>, pair: &Pair) -> String {
    match process {
        Some(process) => subject::process(process),
        None => format!("the {}'s process", if pair.is_outbound() { "client" } else { "server" }),
    }
}

fn close_wait(pair: &Pair, process: Option<(u32, Comm)>, held: &Held, ended: WallTime) -> Option<Finding> {
    let count = held.close_wait.len() as u64;
    if count < MIN_CLOSE_WAIT {
        return None;
    }
    let mut found = finding(pair, process, &held.close_wait, held.all, ended);
    let holder = holder(process, pair);
    found.title = format!(
        "{holder} does not close {count} of {} ({} → {}), though the peer has",
        plural(held.all, "open connection"),
        subject::client(pair),
        subject::server(pair)
    );
    found.evidence.push(format!(
        "They are in CLOSE_WAIT for up to {}. Each holds a file descriptor until {holder} closes it: it ignores the \
         end of its input.",
        span((ended.0 - found.first.0).unsigned_abs())
    ));
    Some(found)
}

fn idle(pair: &Pair, process: Option<(u32, Comm)>, held: &Held, ended: WallTime) -> Option<Finding> {
    let count = held.idle.len() as u64;
    if count < MIN_IDLE || count < MIN_OPEN_PER_CLOSED * pair.stats.established {
        return None;
    }
    let mut found = finding(pair, process, &held.idle, held.all, ended);
    found.title = format!(
        "{} piles up idle connections: {count} of {} opened during the watch ({} → {})",
        holder(process, pair),
        plural(held.all, "open connection"),
        subject::client(pair),
        subject::server(pair)
    );
    found.evidence.push(format!(
        "They moved no byte for 10 s or more, and only {} closed: the client does not reuse or close them.",
        plural(pair.stats.established, "connection")
    ));
    Some(found)
}
