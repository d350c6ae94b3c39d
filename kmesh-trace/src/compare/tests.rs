//! Comparisons of generated loads.

use super::*;
use crate::output::testing;
use crate::record::{ConnId, Event, Outcome, Record, WallTime};
use crate::rollup::{By, Key};
use crate::track::delta::Delta;

/// What a load is like.
#[derive(Clone, Copy)]
struct Load {
    /// The connections in 60 s.
    connections: u64,
    failed_percent: u64,
    median_ns: f64,
    ports: &'static [u16],
}

const LOAD: Load = Load {
    connections: 2_000,
    failed_percent: 2,
    median_ns: 5e6,
    ports: &[80, 443, 5432],
};

fn sample(load: Load, seed: u64) -> Sample {
    let mut random = testing::random(seed);
    let mut unit = move || (random() >> 11) as f64 / (1_u64 << 53) as f64;
    let mut records: Vec<Record> = (0..load.connections)
        .map(|number| {
            let mut record = testing::example();
            record.id = ConnId {
                node: 0,
                cookie: number,
                attempt: 1,
            };
            record.event = Event::Close;
            record.time = WallTime(testing::TIME.0 + (unit() * 60e9) as i64);
            record
                .dst
                .set_port(load.ports[(unit() * load.ports.len() as f64) as usize]);
            // Exponential, with its median.
            record.duration_ns = Some((-unit().max(1e-9).ln() * load.median_ns / std::f64::consts::LN_2) as u64);
            record.connect_ns = Some((100_000.0 + 100_000.0 * unit()) as u64);
            let fails = unit() * 100.0 < load.failed_percent as f64;
            record.outcome = Some(if fails { Outcome::ResetByPeer } else { Outcome::Ok });
            record
        })
        .collect();
    records.sort_by_key(|record| record.time);
    let mut sample = Sample::new(By::new(&[Key::Port]));
    sample.cover(testing::TIME);
    for record in &records {
        let delta = Delta {
            sent_bytes: (unit() * 3_000.0) as u64,
            ..Delta::default()
        };
        sample.record(record, &delta);
    }
    sample.cover(WallTime(testing::TIME.0 + 60_000_000_000));
    sample
}

fn metrics(before: Load, after: Load) -> Vec<Metric> {
    let changes = compare(&mut sample(before, 1), &mut sample(after, 2)).changes;
    let mut metrics: Vec<_> = changes.iter().map(|change| change.metric).collect();
    metrics.dedup();
    metrics
}

#[test]
fn same_load_does_not_differ_in_any_of_100_pairs() {
    for pair in 0..100 {
        let changes = compare(&mut sample(LOAD, 2 * pair + 10), &mut sample(LOAD, 2 * pair + 11));
        assert_eq!(changes.comparisons, 21);
        assert_eq!(changes.changes, [], "pair {pair}");
    }
}

#[test]
fn each_planted_change_is_found() {
    let failing = Load {
        failed_percent: 15,
        ..LOAD
    };
    assert_eq!(metrics(LOAD, failing), [Metric::FailedShare]);
    assert_eq!(metrics(failing, LOAD), [Metric::FailedShare]);
    let slow = Load {
        median_ns: 10e6,
        ..LOAD
    };
    assert!(metrics(LOAD, slow).contains(&Metric::DurationP50));
    assert!(metrics(LOAD, slow).contains(&Metric::DurationP95));
    let busy = Load {
        connections: 6_000,
        ..LOAD
    };
    let found = metrics(LOAD, busy);
    assert!(
        found.contains(&Metric::Rate) && found.contains(&Metric::ByteRate),
        "{found:?}"
    );
    let more = Load {
        ports: &[80, 443, 5432, 6379],
        ..LOAD
    };
    let changes = compare(&mut sample(LOAD, 1), &mut sample(more, 2)).changes;
    let new: Vec<_> = changes
        .iter()
        .filter(|change| change.metric == Metric::Connections)
        .collect();
    assert_eq!(new.len(), 1);
    assert_eq!((new[0].group.dst.port, new[0].before.value), (Some(6379), 0.0));
}

#[test]
fn few_connections_of_a_new_group_are_chance() {
    let few = Load {
        connections: 5,
        ports: &[80],
        ..LOAD
    };
    let other = Load {
        connections: 5,
        ports: &[81],
        ..LOAD
    };
    assert_eq!(metrics(few, other), []);
}

#[test]
fn empty_captures_do_not_differ() {
    let empty = || Sample::new(By::new(&[Key::Port]));
    let changes = compare(&mut empty(), &mut empty());
    assert_eq!((changes.changes, changes.comparisons), (Vec::new(), 0));
}
