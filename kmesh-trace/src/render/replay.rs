//! Records that were printed once, read again and rolled up: the same lines each time, byte for byte.

use std::net::SocketAddr;
use std::time::Duration;

use chrono::DateTime;
use serde_json::Value;

use super::{Render, RollupJson, testing};
use crate::record::{ConnId, Direction, Event, Outcome, Process, ProcessBy, Record, Tcp, WallTime};
use crate::rollup::{By, Key, Settings};

/// What `-o json --events open,update,close` printed of a web server, its clients, a port where nobody listened and one
/// where nobody answered.
const RECORDS: &str = include_str!("../../../tests/data/rollup/records.jsonl");
/// What `-o json --rollup --by port,process --interval 1s` must make of it.
const ROLLUPS: &str = include_str!("../../../tests/data/rollup/rollups.jsonl");

/// A `conn` line as far as rollups look at it.
fn record(line: &str) -> Record {
    let value: Value = serde_json::from_str(line).unwrap();
    let number = |pointer: &str| value.pointer(pointer).and_then(Value::as_u64);
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let address = |end: &str| {
        let ip = text(&format!("/{end}/ip")).unwrap().parse().unwrap();
        SocketAddr::new(ip, number(&format!("/{end}/port")).unwrap() as u16)
    };
    let (cookie, association) = text("/id").unwrap().split_once('-').unwrap();
    let named = |name: &str, all: &[&'static str]| all.iter().position(|one| *one == name).unwrap();
    let outcome =
        |name: &str| Outcome::ALL[named(name, &Outcome::ALL.iter().map(|one| one.name()).collect::<Vec<_>>())];
    let event = text("/event").unwrap();
    let example = testing::example();
    Record {
        id: ConnId {
            cookie: u64::from_str_radix(cookie, 16).unwrap(),
            association: association.parse().unwrap(),
        },
        event: Event::ALL[named(event, &Event::ALL.iter().map(|one| one.name()).collect::<Vec<_>>())],
        time: WallTime(
            DateTime::parse_from_rfc3339(text("/time").unwrap())
                .unwrap()
                .timestamp_nanos_opt()
                .unwrap(),
        ),
        duration_ns: number("/duration_ns"),
        connect_ns: number("/connect_ns"),
        preexisting: value["preexisting"] == true,
        direction: if value["direction"] == "inbound" {
            Direction::Inbound
        } else {
            Direction::Outbound
        },
        src: address("src"),
        dst: address("dst"),
        process: text("/process/comm").map(|comm| Process {
            pid: 1,
            comm: testing::comm(comm.as_bytes()),
            by: ProcessBy::Close,
        }),
        sent_bytes: number("/sent_bytes").unwrap(),
        received_bytes: number("/received_bytes").unwrap(),
        established: value["established"] == true,
        outcome: text("/outcome").map(outcome),
        tcp: Tcp {
            srtt_us: number("/tcp/srtt_us").map(|srtt_us| srtt_us as u32),
            total_retrans: number("/tcp/total_retrans").unwrap() as u32,
            lost: number("/tcp/lost").unwrap() as u32,
            ..example.tcp
        },
        ..example
    }
}

/// Rolled up, with word of the passing time before each `every`th record.
fn rolled_up(records: &[Record], every: usize) -> String {
    let settings = Settings {
        by: By::new(&[Key::Port, Key::Process]),
        interval: Duration::from_secs(1),
        max_groups: 10_000,
    };
    let mut render = RollupJson::new(settings, &testing::info());
    let mut out = Vec::new();
    for (at, record) in records.iter().enumerate() {
        if at % every == 0 {
            render.complete(record.time, &mut out).unwrap();
        }
        render.record(record, &mut out).unwrap();
    }
    render.complete(WallTime(i64::MAX), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn what_was_printed_once_rolls_up_the_same_each_time() {
    let records: Vec<_> = RECORDS.lines().map(record).collect();
    for every in [1, 7, usize::MAX] {
        let lines = rolled_up(&records, every);
        for (at, (line, expected)) in lines.lines().zip(ROLLUPS.lines()).enumerate() {
            assert_eq!(line, expected, "line {at}");
        }
        assert_eq!(lines, ROLLUPS, "told of time every {every}");
    }
}
