//! `cargo xtask bench findings`: measures the precision and the recall of `explain` on generated captures, and writes
//! the table in docs/findings.md.

mod faults;
mod shop;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use kmesh_trace::capture::parse::{Line, Parser};
use kmesh_trace::config::Events;
use kmesh_trace::findings::{Abilities, Finding, Watch, examine};
use kmesh_trace::output::{Json, Sink as _, Stdout};
use kmesh_trace::record::{Record, RunInfo, Subject};
use kmesh_trace::track::delta::Delta;

use crate::host;
use faults::{FAULTS, Fault};
use shop::{ROUTES, Random, Shop};

/// The page with the table, and the lines around the table.
const PAGE: &str = "docs/findings.md";
const BEGIN: &str = "<!-- made by cargo xtask bench findings -->\n";
const END: &str = "<!-- end -->\n";

#[derive(clap::Args)]
pub struct Args {
    /// The number of captures with planted faults
    #[arg(long, default_value_t = 330)]
    faulty: u64,
    /// The number of captures without a fault
    #[arg(long, default_value_t = 100)]
    quiet: u64,
    /// Print the table without writing it to docs/findings.md
    #[arg(long)]
    print: bool,
}

/// What the captures showed.
#[derive(Default)]
struct Score {
    /// By rule: planted, found, found at rank 1 or 2, found at a later rank.
    planted: BTreeMap<&'static str, [u64; 4]>,
    /// By rule: findings in captures with faults that no planted fault explains.
    surplus: BTreeMap<&'static str, u64>,
    /// By rule: findings in captures without a fault.
    false_alarms: BTreeMap<&'static str, u64>,
    missed: Vec<String>,
    /// The findings that no planted fault explains.
    notes: Vec<String>,
}

/// Measures, and writes the table.
pub fn run(args: &Args) -> Result<ExitCode> {
    let score = measure(args.faulty, args.quiet)?;
    let table = table(&score, args);
    print!("{table}");
    score
        .missed
        .iter()
        .chain(&score.notes)
        .for_each(|missed| println!("{missed}"));
    if !args.print {
        let path = host::root().join(PAGE);
        let page = fs::read_to_string(&path).with_context(|| format!("cannot read {PAGE}"))?;
        let (before, rest) = page
            .split_once(BEGIN)
            .with_context(|| format!("{PAGE} has no line {BEGIN}"))?;
        let (_, after) = rest
            .split_once(END)
            .with_context(|| format!("{PAGE} has no line {END}"))?;
        fs::write(&path, format!("{before}{BEGIN}\n{table}\n{END}{after}"))?;
    }
    check(&score)?;
    Ok(ExitCode::SUCCESS)
}

fn check(score: &Score) -> Result<()> {
    ensure!(score.missed.is_empty(), "not every fault was found");
    let false_alarms: u64 = score.false_alarms.values().sum();
    ensure!(false_alarms <= 1, "{false_alarms} findings in captures without a fault");
    Ok(())
}

fn measure(faulty: u64, quiet: u64) -> Result<Score> {
    let mut score = Score::default();
    for seed in 0..faulty {
        let (records, planted) = with_faults(seed);
        let findings = examined(records)?;
        judge(&mut score, seed, &findings, &planted);
    }
    for seed in 0..quiet {
        for finding in examined(Shop::healthy(1_000_000 + seed).records)? {
            score
                .notes
                .push(format!("quiet {seed}: {}: {}", finding.rule, finding.title));
            *score.false_alarms.entry(finding.rule).or_default() += 1;
        }
    }
    Ok(score)
}

/// Returns a capture with one to three faults on different routes. The faults take turns, so that each is planted
/// equally often as the first one.
fn with_faults(seed: u64) -> (Vec<Record>, Vec<(&'static Fault, usize)>) {
    let mut shop = Shop::healthy(seed);
    let mut random = Random(seed ^ 0xfa17);
    let count = 1 + (seed as usize / FAULTS.len()) % 3;
    let mut planted: Vec<(&Fault, usize)> = Vec::new();
    // Routes with different servers, so that the faults are separate.
    let mut routes = vec![0, 2, 4, 1];
    for number in 0..count {
        let fault = match number {
            0 => &FAULTS[seed as usize % FAULTS.len()],
            _ => &FAULTS[random.pick(FAULTS.len())],
        };
        let route = routes.remove(random.pick(routes.len()));
        (fault.plant)(&mut shop, route);
        planted.push((fault, route));
    }
    (shop.records, planted)
}

/// Writes the records as a capture, reads it, and returns the findings.
fn examined(mut records: Vec<Record>) -> Result<Vec<Finding>> {
    records.sort_by_key(|record| record.time);
    let info = RunInfo {
        node: "worker-1".to_owned(),
        kernel: "6.18.0".to_owned(),
        version: "0".to_owned(),
    };
    let (writer, lines) = Memory::new();
    let mut json = Json::new(Events::ALL, &info, Stdout::to(writer));
    for record in &records {
        match record.subject {
            Subject::Connection => json.record(record, &Delta::default())?,
            _ => json.report(record)?,
        }
    }
    json.flush()?;
    let mut parser = Parser::default();
    let mut watch = Watch::new(Abilities::default());
    for line in lines
        .take()
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        if let Line::Record(record) = parser.parse(line).map_err(anyhow::Error::msg)? {
            match record.subject {
                Subject::Connection => watch.record(&record),
                _ => watch.report(&record),
            }
        }
    }
    watch.end();
    Ok(examine(&watch).findings)
}

/// Counts which planted faults were found, and at which rank.
fn judge(score: &mut Score, seed: u64, findings: &[Finding], planted: &[(&'static Fault, usize)]) {
    let mut explained = vec![false; findings.len()];
    for (fault, route) in planted {
        let route = ROUTES[*route];
        let is_found = |finding: &Finding| {
            let is_server = finding.server.is_some_and(|server| server.port() == route.port);
            finding.rule == fault.rule && is_server
        };
        let rank = findings.iter().position(is_found);
        for (at, finding) in findings.iter().enumerate() {
            explained[at] |= is_found(finding);
        }
        let [all, found, soon, later] = score.planted.entry(fault.rule).or_default();
        *all += 1;
        match rank {
            // Three faults cannot all be first or second.
            Some(rank) if rank < planted.len().max(2) => (*found, *soon) = (*found + 1, *soon + 1),
            Some(_) => (*found, *later) = (*found + 1, *later + 1),
            None => {}
        }
        if rank.is_none_or(|rank| rank >= planted.len().max(2)) {
            let rules: Vec<_> = findings.iter().map(|finding| finding.rule).collect();
            score.missed.push(format!(
                "seed {seed}: {} on {} → {}:{} has rank {rank:?} of {rules:?}",
                fault.rule, route.client, route.server, route.port
            ));
        }
    }
    for (finding, _) in findings
        .iter()
        .zip(&explained)
        .filter(|(_, is_explained)| !**is_explained)
    {
        score
            .notes
            .push(format!("seed {seed}: also {}: {}", finding.rule, finding.title));
        *score.surplus.entry(finding.rule).or_default() += 1;
    }
}

fn table(score: &Score, args: &Args) -> String {
    let mut text = String::from("| rule | planted | found | among the first | other findings | in quiet captures |\n");
    text += "|---|---|---|---|---|---|\n";
    let of = |counts: &BTreeMap<&str, u64>, rule: &str| counts.get(rule).copied().unwrap_or(0);
    let mut sums = [0; 5];
    for fault in FAULTS {
        let [planted, found, soon, _] = score.planted.get(fault.rule).copied().unwrap_or_default();
        let row = [
            planted,
            found,
            soon,
            of(&score.surplus, fault.rule),
            of(&score.false_alarms, fault.rule),
        ];
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        let [planted, found, soon, surplus, quiet] = row;
        _ = writeln!(
            text,
            "| `{}` | {planted} | {found} | {soon} | {surplus} | {quiet} |",
            fault.rule
        );
    }
    let [planted, found, soon, surplus, quiet] = sums;
    _ = writeln!(text, "| all | {planted} | {found} | {soon} | {surplus} | {quiet} |");
    _ = writeln!(
        text,
        "\n{} captures with one to three faults, {} without.",
        args.faulty, args.quiet
    );
    text
}

/// A writer into memory that can be read afterwards.
#[derive(Clone, Default)]
struct Memory(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Memory {
    fn new() -> (Self, Self) {
        let memory = Self::default();
        (memory.clone(), memory)
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl std::io::Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_found_and_quiet_captures_are_quiet() {
        let score = measure(66, 20).unwrap();
        assert!(score.missed.is_empty(), "{:#?}", score.missed);
        assert!(
            score.false_alarms.values().sum::<u64>() == 0,
            "{:?}",
            score.false_alarms
        );
    }
}
