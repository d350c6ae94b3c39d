//! Rolls saved records up, and compares the lines with a golden file.

use std::time::Duration;

use super::{RollupJson, Sink, Stdout, testing};
use crate::capture::parse::{Line, Parser};
use crate::record::{Record, WallTime};
use crate::rollup::{By, Key, RollupSettings};
use crate::track::delta::Deltas;

/// Output of `-o json --events open,update,close` on a node with a web server, its clients, a closed port and a port
/// that did not answer.
const RECORDS: &str = include_str!("../../../tests/data/rollup/records.jsonl");
/// The expected output of `-o json --rollup --by port,process --interval 1s`.
const ROLLUPS: &str = include_str!("../../../tests/data/rollup/rollups.jsonl");

fn records() -> Vec<Record> {
    let mut parser = Parser::default();
    RECORDS
        .lines()
        .map(|line| match parser.parse(line.as_bytes()) {
            Ok(Line::Record(record)) => *record,
            other => panic!("{line}: {other:?}"),
        })
        .collect()
}

/// Returns the rollups of the records, with a watermark before each `every`th record.
fn rolled_up(records: &[Record], every: usize) -> String {
    let settings = RollupSettings {
        by: By::new(&[Key::Port, Key::Process]),
        interval: Some(Duration::from_secs(1)),
        max_groups: 10_000,
    };
    let out = testing::Shared::default();
    let mut sink = RollupJson::new(settings, &testing::info(), Stdout::to(out.clone()));
    let mut deltas = Deltas::default();
    for (at, record) in records.iter().enumerate() {
        if at % every == 0 {
            sink.watermark(record.time).unwrap();
        }
        sink.record(record, &deltas.take(record)).unwrap();
    }
    sink.watermark(WallTime::MAX).unwrap();
    sink.flush().unwrap();
    out.text()
}

#[test]
fn saved_records_roll_up_to_the_golden_lines() {
    let records = records();
    for every in [1, 7, usize::MAX] {
        let lines = rolled_up(&records, every);
        for (at, (line, expected)) in lines.lines().zip(ROLLUPS.lines()).enumerate() {
            assert_eq!(line, expected, "line {at}");
        }
        assert_eq!(lines, ROLLUPS, "a watermark every {every} records");
    }
}
