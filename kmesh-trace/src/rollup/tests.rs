//! Tests of windows and groups.

mod groups;
mod open;
mod windows;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::output::testing;
use crate::record::{ConnId, Direction, EndOutcomes, Event, Outcome, Tcp};
use crate::track::delta::Deltas;

const SECOND: i64 = 1_000_000_000;

fn settings(keys: &[Key]) -> RollupSettings {
    RollupSettings {
        by: By::new(keys),
        interval: Some(Duration::from_secs(5)),
        max_groups: 100,
    }
}

/// Returns a record at `second` of a connection that has sent `sent_bytes` so far.
fn record(cookie: u64, event: Event, second: f64, sent_bytes: u64) -> Record {
    let example = testing::example();
    Record {
        id: ConnId {
            cookie,
            attempt: 1,
            node: 0,
        },
        event,
        time: WallTime((second * 1e9) as i64),
        direction: Direction::Outbound,
        sent_bytes,
        received_bytes: sent_bytes * 2,
        established: true,
        connect_ns: Some(1_000_000),
        outcome: (event == Event::Close).then_some(Outcome::Ok),
        tcp: Tcp {
            total_retrans: (sent_bytes / 10) as u32,
            lost: (sent_bytes / 20) as u32,
            ..example.tcp
        },
        ..example
    }
}

fn connecting(cookie: u64, second: f64) -> Record {
    Record {
        established: false,
        connect_ns: None,
        ..record(cookie, Event::Update, second, 0)
    }
}

fn failed(cookie: u64, second: f64, outcome: Outcome) -> Record {
    Record {
        established: false,
        connect_ns: None,
        outcome: Some(outcome),
        ..record(cookie, Event::Close, second, 0)
    }
}

/// A rollup with the deltas of its records.
struct Run {
    rollup: Rollup,
    deltas: Deltas,
}

impl Run {
    fn new(settings: RollupSettings) -> Self {
        Self::of(Rollup::new(settings))
    }

    fn of(rollup: Rollup) -> Self {
        Self {
            rollup,
            deltas: Deltas::default(),
        }
    }

    /// Returns the window that the record ends, without the quiet window after it.
    fn take(&mut self, record: &Record) -> Option<Window> {
        self.take_if(record, |_| true)
    }

    fn take_if(&mut self, record: &Record, is_wanted: impl FnOnce(&Record) -> bool) -> Option<Window> {
        let delta = self.deltas.take(record);
        self.rollup.take_if(record, &delta, is_wanted).into_iter().next()
    }

    fn watermark(&mut self, until: WallTime) -> Option<Window> {
        self.rollup.watermark(until).into_iter().next()
    }
}

/// Returns all windows of `records`.
fn windows(rollup: &mut Run, records: &[Record]) -> Vec<Window> {
    let mut windows: Vec<_> = records.iter().filter_map(|record| rollup.take(record)).collect();
    windows.extend(rollup.watermark(WallTime(i64::MAX)));
    windows
}

fn all(records: &[Record]) -> Vec<Window> {
    windows(&mut Run::new(settings(&[Key::Workload])), records)
}

/// Start in seconds, bytes sent, bytes received, opened, closed, open, connecting.
type Brief = (i64, u64, u64, u64, u64, u64, u64);

/// Returns the sums of a window with one group.
fn sums(window: &Window) -> Brief {
    let [row] = &window.rows[..] else {
        panic!("one group, not {}", window.rows.len())
    };
    let Sums {
        sent_bytes,
        received_bytes,
        opened,
        closed,
        open,
        connecting,
        ..
    } = row.sums;
    let start = window.start.0 / SECOND;
    (start, sent_bytes, received_bytes, opened, closed, open, connecting)
}

/// Returns random records in the order of time: for each connection perhaps an open event, some updates, and a close.
fn traffic(seed: u64, connections: u64) -> Vec<Record> {
    let mut next = testing::random(seed);
    let mut records = Vec::new();
    for cookie in 0..connections {
        let mut at = (next() % 60_000) as f64 / 1000.0;
        let mut sent = 0;
        let mut one = |event, at: f64, sent| {
            let mut record = record(cookie, event, at, sent);
            record.dst.set_port(1000 + (cookie % 7) as u16);
            record.preexisting = cookie % 11 == 0;
            if event == Event::Close && cookie % 5 == 0 {
                record.outcome = Some(Outcome::ResetByPeer);
            }
            records.push(record);
        };
        if !next().is_multiple_of(3) {
            one(Event::Open, at, 0);
        }
        for _ in 0..next() % 4 {
            at += (next() % 6000) as f64 / 1000.0;
            sent += next() % 10_000;
            one(Event::Update, at, sent);
        }
        at += (next() % 6000) as f64 / 1000.0;
        one(Event::Close, at, sent + next() % 100);
    }
    records.sort_by_key(|record| record.time);
    records
}
