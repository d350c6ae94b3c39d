//! Tests of windows and groups.

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

#[test]
fn connection_counts_in_each_window_by_its_delta() {
    use Event::{Close, Open, Update};
    let cases: [(&str, Vec<Record>, Vec<Brief>); 9] = [
        (
            "a short connection with a close only",
            vec![record(1, Close, 1.0, 7)],
            vec![(0, 7, 14, 1, 1, 0, 0)],
        ),
        (
            "opened and closed in one window",
            vec![record(1, Open, 1.0, 0), record(1, Close, 2.0, 7)],
            vec![(0, 7, 14, 1, 1, 0, 0)],
        ),
        (
            "a stream over three windows",
            vec![
                record(1, Open, 3.0, 0),
                record(1, Update, 4.9, 100),
                record(1, Update, 9.9, 250),
                record(1, Close, 12.0, 251),
            ],
            vec![
                (0, 100, 200, 1, 0, 1, 0),
                (5, 150, 300, 0, 0, 1, 0),
                (10, 1, 2, 0, 1, 0, 0),
            ],
        ),
        (
            "updated twice in a window",
            vec![
                record(1, Update, 1.0, 10),
                record(1, Update, 2.0, 15),
                record(1, Close, 3.0, 15),
            ],
            vec![(0, 15, 30, 1, 1, 0, 0)],
        ),
        (
            "a socket scan before the open event",
            vec![
                record(1, Update, 1.0, 0),
                record(1, Open, 1.0, 0),
                record(1, Close, 6.0, 5),
            ],
            vec![(0, 0, 0, 1, 0, 1, 0), (5, 5, 10, 0, 1, 0, 0)],
        ),
        (
            "an attempt that waits and then connects",
            vec![connecting(1, 1.0), connecting(1, 6.0), record(1, Open, 11.0, 0)],
            vec![(0, 0, 0, 0, 0, 0, 1), (5, 0, 0, 0, 0, 0, 1), (10, 0, 0, 1, 0, 1, 0)],
        ),
        (
            "an attempt that never connects",
            vec![connecting(1, 1.0), failed(1, 6.0, Outcome::ConnectTimeout)],
            vec![(0, 0, 0, 0, 0, 0, 1), (5, 0, 0, 0, 1, 0, 0)],
        ),
        (
            "the machine slept for an hour",
            vec![
                record(1, Update, 4.9, 100),
                record(1, Update, 3604.9, 300),
                record(1, Close, 3605.0, 300),
            ],
            vec![
                (0, 100, 200, 1, 0, 1, 0),
                (3600, 200, 400, 0, 0, 1, 0),
                (3605, 0, 0, 0, 1, 0, 0),
            ],
        ),
        (
            "before the epoch",
            vec![record(1, Close, -0.5, 1)],
            vec![(-5, 1, 2, 1, 1, 0, 0)],
        ),
    ];
    for (name, records, expected) in cases {
        let found: Vec<_> = all(&records).iter().map(sums).collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn wall_clock_steps_are_handled() {
    use Event::Close;
    type Case<'a> = (&'a str, &'a [f64], &'a [(i64, u64)]);
    let cases: [Case<'_>; 7] = [
        ("windows are aligned", &[12.0, 14.999, 15.0], &[(10, 2), (15, 1)]),
        ("on the boundary", &[5.0, 10.0], &[(5, 1), (10, 1)]),
        ("late by less than a window", &[7.0, 4.0, 9.0], &[(5, 3)]),
        ("late by exactly a window", &[5.0, 0.0, 9.0], &[(5, 3)]),
        (
            "set back by an hour",
            &[3605.0, 5.5, 10.5],
            &[(3605, 1), (5, 1), (10, 1)],
        ),
        (
            "set back and forward again",
            &[100.0, 50.0, 101.0],
            &[(100, 1), (50, 1), (100, 1)],
        ),
        ("set forward by an hour", &[1.0, 3601.0], &[(0, 1), (3600, 1)]),
    ];
    for (name, seconds, expected) in cases {
        let records: Vec<_> = (1..)
            .zip(seconds)
            .map(|(cookie, &second)| record(cookie, Close, second, 1))
            .collect();
        let found: Vec<_> = all(&records)
            .iter()
            .map(|window| (window.start.0 / SECOND, window.rows[0].sums.closed))
            .collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn watermark_ends_a_window_without_later_records() {
    let mut rollup = Run::new(settings(&[Key::Workload]));
    let at = |second: i64| WallTime(second * SECOND);
    assert!(rollup.watermark(at(3)).is_none(), "the first window has just opened");
    assert!(rollup.take(&record(1, Event::Update, 4.0, 5)).is_none());
    assert!(rollup.watermark(WallTime(5 * SECOND - 1)).is_none());
    let window = rollup.watermark(at(5)).unwrap();
    assert_eq!(sums(&window), (0, 5, 10, 1, 0, 1, 0));
    assert_eq!(window.end(), at(5));
    assert!(rollup.watermark(at(9)).is_none());
    let window = rollup.watermark(at(10)).unwrap();
    assert_eq!((window.start, window.rows.len()), (at(5), 0), "it has no records");
    // The clock was set back.
    let window = rollup.watermark(at(2)).unwrap();
    assert_eq!((window.start, window.rows.len()), (at(10), 0));
    assert!(rollup.take(&record(1, Event::Close, 3.0, 6)).is_none());
    let window = rollup.watermark(WallTime(i64::MAX)).unwrap();
    assert_eq!(sums(&window), (0, 1, 2, 0, 1, 0, 0));
}

/// Returns the records of two connections that were never accepted, so that no scan reaches them, and of one that scans
/// reach.
fn silent() -> Vec<Record> {
    let mut records = vec![record(1, Event::Open, 1.0, 0), record(3, Event::Open, 6.0, 0)];
    records.extend((0..7).map(|window| record(2, Event::Update, f64::from(window) * 5.0 + 4.0, 0)));
    records.sort_by_key(|record| record.time);
    records
}

fn open_in(windows: &[Window]) -> Vec<u64> {
    windows.iter().map(|window| window.rows[0].sums.open).collect()
}

#[test]
fn silent_connection_stays_open() {
    let mut records = silent();
    assert_eq!(open_in(&all(&records)), [2, 3, 3, 3, 3, 3, 3]);
    records.push(record(1, Event::Close, 36.0, 9));
    let windows = all(&records);
    assert_eq!(sums(&windows[7]), (35, 9, 18, 0, 1, 2, 0));
}

#[test]
fn lost_close_removes_the_longest_silent_connection() {
    let mut rollup = Run::new(settings(&[Key::Workload]));
    rollup.rollup.lost(1);
    assert_eq!(open_in(&windows(&mut rollup, &silent())), [2, 3, 3, 2, 2, 2, 2]);
    let mut rollup = Run::new(settings(&[Key::Workload]));
    rollup.rollup.lost(9);
    assert_eq!(open_in(&windows(&mut rollup, &silent())), [2, 3, 3, 2, 1, 1, 1]);
}

#[test]
fn excluded_connection_is_not_open() {
    let records = silent();
    let mut rollup = Run::new(settings(&[Key::Workload]));
    for record in &records[..2] {
        rollup.take(record);
    }
    rollup.rollup.exclude(records[0].id);
    assert_eq!(open_in(&windows(&mut rollup, &records[2..])), [1, 2, 2, 2, 2, 2, 2]);
}

#[test]
fn connection_stays_open_through_windows_without_a_socket_scan() {
    // Scans come in every fourth window, other connections close in all of them.
    let mut records = Vec::new();
    for window in 0..12_u64 {
        let second = window as f64 * 5.0;
        if window % 4 == 0 {
            records.push(record(1, Event::Update, second + 1.0, 0));
        }
        records.push(record(100 + window, Event::Close, second + 2.0, 0));
    }
    let open: Vec<u64> = all(&records)
        .iter()
        .map(|window| window.rows.iter().map(|row| row.sums.open).sum())
        .collect();
    assert_eq!(open, [1; 12]);
}

#[test]
fn bytes_from_before_tracing_count_in_no_rate() {
    let before = |event, second, sent| Record {
        preexisting: true,
        duration_ns: None,
        ..record(1, event, second, sent)
    };
    let windows = all(&[
        before(Event::Update, 4.0, 1_000_000),
        before(Event::Update, 9.0, 1_000_010),
        before(Event::Close, 11.0, 1_000_011),
    ]);
    let found: Vec<_> = windows.iter().map(sums).collect();
    assert_eq!(
        found,
        [
            (0, 1_000_000, 2_000_000, 0, 0, 1, 0),
            (5, 10, 20, 0, 0, 1, 0),
            (10, 1, 2, 0, 1, 0, 0)
        ]
    );
    let past: Vec<_> = windows
        .iter()
        .map(|window| window.rows[0].sums.past_sent_bytes)
        .collect();
    assert_eq!(past, [1_000_000, 0, 0]);
    assert!(
        windows
            .iter()
            .all(|window| window.rows[0].sums.durations.summary().is_none())
    );
}

#[test]
fn failures_are_counted_by_outcome() {
    let windows = all(&[
        failed(1, 1.0, Outcome::Refused),
        failed(2, 1.0, Outcome::ConnectTimeout),
        failed(3, 1.0, Outcome::ConnectTimeout),
        record(4, Event::Close, 1.0, 1),
    ]);
    let sums = &windows[0].rows[0].sums;
    assert_eq!((sums.closed, sums.failed(), sums.opened), (4, 3, 1));
    assert_eq!(sums.main_failure(), Some(EndOutcomes::Same(Outcome::ConnectTimeout)));
    let by_outcome: Vec<_> = sums.by_outcome().collect();
    assert_eq!(
        by_outcome,
        [(Outcome::Ok, 1), (Outcome::Refused, 1), (Outcome::ConnectTimeout, 2)]
            .map(|(outcome, count)| (EndOutcomes::Same(outcome), count))
    );
    assert_eq!(sums.connects.summary().map(|summary| summary.max), Some(1_000_000));
}

#[test]
fn groups_beyond_the_maximum_count_in_other() {
    let mut rollup = Run::new(RollupSettings {
        max_groups: 3,
        ..settings(&[Key::Connection])
    });
    let mut records: Vec<_> = (1..=10)
        .map(|cookie| record(cookie, Event::Update, 1.0, cookie))
        .collect();
    records.extend((1..=10).map(|cookie| record(cookie, Event::Close, 6.0, cookie + 1)));
    let windows = windows(&mut rollup, &records);
    assert_eq!(windows.len(), 2);
    for (window, sent) in windows.iter().zip([55, 10]) {
        assert_eq!(window.rows.len(), 4);
        let other = &window.rows[3];
        assert!(other.group.is_other());
        assert!(window.rows[..3].iter().all(|row| !row.group.is_other()));
        let all: u64 = window.rows.iter().map(|row| row.sums.sent_bytes).sum();
        assert_eq!(all, sent);
    }
    assert_eq!(windows[0].rows[3].sums.open, 7);
}

#[test]
fn group_has_only_the_grouped_facts() {
    use crate::output::testing::{example, from_a_node, in_pods};
    let show = |keys: &[Key], record: &Record| {
        let place = |place: &GroupEnd| {
            let workload = place.workload.as_ref().map(|workload| Arc::clone(&workload.name));
            let parts = [place.namespace.clone(), workload, place.pod.clone(), place.node.clone()];
            let mut parts: Vec<_> = parts.into_iter().flatten().map(|part| part.to_string()).collect();
            parts.extend(place.ip.map(|ip| ip.to_string()));
            parts.extend(place.port.map(|port| format!(":{port}")));
            parts.join(" ")
        };
        let group = By::new(keys).group(record);
        assert_eq!(group.direction, Some(record.direction));
        let mut text = format!("{} > {}", place(&group.src), place(&group.dst));
        if let Some(service) = group.service {
            text += &format!(
                " service {}",
                service.map_or("-".into(), |service| service.name.to_string())
            );
        }
        if let Some(comm) = group.process {
            text += &format!(" process {}", comm.is_some());
        }
        if let Some(pid) = group.pid {
            text += &format!(" pid {pid:?}");
        }
        if let Some(outcome) = group.outcome {
            text += &format!(" outcome {outcome:?}");
        }
        if let Some(id) = group.id {
            text += &format!(" id {id}");
        }
        text
    };
    let cases = [
        (
            &[Key::Workload][..],
            in_pods(),
            "istio-system prometheus-5fb7f6f8d8-h9cts > echo-1-27855 productpage-v1",
        ),
        (&[Key::Workload], from_a_node(), "worker-2 > 10.244.0.13"),
        (&[Key::Workload], example(), "10.244.0.17 > 10.244.0.13"),
        (
            &[Key::Pod],
            in_pods(),
            "istio-system prometheus-5fb7f6f8d8-h9cts > echo-1-27855 productpage-v1-8499c849b9-bz9t9",
        ),
        (&[Key::Pod], from_a_node(), "worker-2 > 10.244.0.13"),
        (&[Key::Service], in_pods(), " >  service productpage"),
        (&[Key::Service], example(), " > 10.244.0.13 service -"),
        (&[Key::Namespace], in_pods(), "istio-system > echo-1-27855"),
        (&[Key::Namespace], example(), " > "),
        (&[Key::Node], in_pods(), "worker-1 > worker-1"),
        (&[Key::Node], from_a_node(), "worker-2 > worker-1"),
        (&[Key::Process], example(), " >  process true"),
        (&[Key::Process], testing::refused(), " >  process false"),
        (&[Key::Pid], example(), " >  pid Some(4711)"),
        (&[Key::Pid], testing::refused(), " >  pid None"),
        (&[Key::Ip], in_pods(), "10.244.0.17 > 10.244.0.13"),
        (&[Key::Port], in_pods(), " > :9080"),
        (&[Key::Outcome], testing::refused(), " >  outcome Some(Same(Refused))"),
        (&[Key::Outcome], record(1, Event::Update, 0.0, 0), " >  outcome None"),
        (
            &[Key::Connection],
            example(),
            "10.244.0.17 :51842 > 10.244.0.13 :9080 id 5f2c81-1",
        ),
        (
            &[Key::Namespace, Key::Port],
            in_pods(),
            "istio-system > echo-1-27855 :9080",
        ),
        (
            &[Key::Workload, Key::Ip],
            in_pods(),
            "istio-system prometheus-5fb7f6f8d8-h9cts 10.244.0.17 > echo-1-27855 productpage-v1 10.244.0.13",
        ),
    ];
    for (keys, record, expected) in cases {
        assert_eq!(show(keys, &record), expected, "{keys:?}");
    }
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

#[test]
fn windows_and_groups_add_up_to_the_records() {
    let keys: [&[Key]; 4] = [
        &[Key::Workload],
        &[Key::Port, Key::Outcome],
        &[Key::Connection],
        &[Key::Process],
    ];
    for (seed, keys) in (1..).zip(keys) {
        let records = traffic(seed, 2000);
        let mut rollup = Run::new(RollupSettings {
            max_groups: 500,
            ..settings(keys)
        });
        let windows = windows(&mut rollup, &records);
        let rows = || windows.iter().flat_map(|window| &window.rows).map(|row| &row.sums);
        let closes = || records.iter().filter(|record| record.event == Event::Close);
        let sum = |of: fn(&Sums) -> u64| rows().map(of).sum::<u64>();
        assert_eq!(
            sum(|sums| sums.sent_bytes),
            closes().map(|record| record.sent_bytes).sum::<u64>()
        );
        assert_eq!(
            sum(|sums| sums.received_bytes),
            closes().map(|record| record.received_bytes).sum::<u64>()
        );
        assert_eq!(
            sum(|sums| sums.retransmits),
            closes().map(|record| u64::from(record.tcp.total_retrans)).sum::<u64>()
        );
        assert_eq!(
            sum(|sums| sums.lost_segments),
            closes().map(|record| u64::from(record.tcp.lost)).sum::<u64>()
        );
        assert_eq!(sum(|sums| sums.closed), 2000);
        let failed = closes().filter(|record| record.outcome != Some(Outcome::Ok)).count();
        assert_eq!(sum(Sums::failed), failed as u64);
        // A connection from before tracing counts only if it opens while tracing.
        let opened: std::collections::HashSet<_> = records
            .iter()
            .filter(|record| !record.preexisting || record.event == Event::Open)
            .map(|record| record.id)
            .collect();
        assert_eq!(sum(|sums| sums.opened), opened.len() as u64);
        assert_eq!(
            windows
                .last()
                .map(|window| window.rows.iter().map(|row| row.sums.open).sum::<u64>()),
            Some(0)
        );
    }
}

#[test]
fn windows_of_a_connection_add_up_to_its_close() {
    let records = traffic(9, 300);
    let mut rollup = Run::new(RollupSettings {
        max_groups: 10_000,
        ..settings(&[Key::Connection])
    });
    let mut moved: HashMap<_, u64> = HashMap::new();
    for window in windows(&mut rollup, &records) {
        for row in &window.rows {
            *moved.entry(row.group.id.unwrap()).or_default() += row.sums.sent_bytes;
        }
    }
    for close in records.iter().filter(|record| record.event == Event::Close) {
        assert_eq!(moved[&close.id], close.sent_bytes, "{}", close.id);
    }
}

#[test]
fn number_of_watermarks_does_not_matter() {
    let records = traffic(4, 500);
    let render = |every: usize| {
        let mut rollup = Run::new(settings(&[Key::Workload, Key::Port]));
        let mut text = String::new();
        let mut show = |window: Option<Window>| {
            if let Some(window) = window.filter(|window| !window.rows.is_empty()) {
                text += &format!("{:?} {:?}\n", window.start, window.rows);
            }
        };
        for (at, record) in records.iter().enumerate() {
            show(rollup.take(record));
            if let Some(next) = records.get(at + 1).filter(|_| at % every == 0) {
                show(rollup.watermark(next.time));
            }
        }
        show(rollup.watermark(WallTime(i64::MAX)));
        text
    };
    let once = render(usize::MAX);
    assert!(once.lines().count() > 10);
    assert_eq!(render(1), once);
    assert_eq!(render(7), once);
}

#[test]
fn unwanted_record_updates_deltas_and_is_not_counted() {
    let mut rollup = Run::of(Rollup::new(settings(&[Key::Workload])).with_connections(10));
    assert!(rollup.take_if(&record(1, Event::Update, 1.0, 100), |_| false).is_none());
    let window = rollup.take(&record(1, Event::Update, 6.0, 107)).unwrap();
    assert_eq!((window.rows.len(), window.connections.len()), (0, 0));
    let window = rollup.watermark(WallTime(10 * SECOND)).unwrap();
    assert_eq!(sums(&window), (5, 7, 14, 0, 0, 1, 0));
    let [connection] = &window.connections[..] else {
        panic!("one connection")
    };
    assert_eq!(connection.sums.sent_bytes, 7);
    assert_eq!(connection.sums.open, 1);
    assert_eq!(connection.parent.as_ref(), Some(&window.rows[0].group));
}

/// Many short connections of one group leave capacity for those of another group, and for open connections.
#[test]
fn connections_of_every_group_are_listed() {
    let mut rollup = Run::of(Rollup::new(settings(&[Key::Port])).with_connections(1000));
    let at_port = |mut record: Record, port| {
        record.dst.set_port(port);
        record
    };
    for cookie in 0..5000 {
        rollup.take(&at_port(record(cookie, Event::Close, 1.0, 1), 80));
    }
    rollup.take(&at_port(record(6000, Event::Close, 2.0, 1), 81));
    rollup.take(&at_port(record(6001, Event::Update, 2.0, 1), 80));
    let window = rollup.watermark(WallTime(5 * SECOND)).unwrap();
    let listed: Vec<_> = window.rows.iter().map(|row| row.listed).collect();
    assert_eq!(listed, [101, 1]);
    assert_eq!(window.connections.len(), 102);
    for (row, listed) in window.rows.iter().zip(listed) {
        let of_row = window
            .connections
            .iter()
            .filter(|one| one.parent.as_ref() == Some(&row.group));
        assert_eq!(of_row.count() as u32, listed);
    }
    assert_eq!(window.connections.iter().map(|row| row.sums.open).sum::<u64>(), 1);
}

#[test]
fn regrouping_restarts_the_window() {
    let mut rollup = Run::new(settings(&[Key::Workload]));
    assert!(rollup.take(&record(1, Event::Update, 1.0, 100)).is_none());
    rollup.rollup.regroup(By::new(&[Key::Port]));
    assert!(rollup.take(&record(1, Event::Update, 2.0, 101)).is_none());
    let window = rollup.watermark(WallTime(5 * SECOND)).unwrap();
    assert_eq!(sums(&window), (0, 1, 2, 0, 0, 1, 0));
    assert_eq!(window.rows[0].group.dst.port, Some(9080));
}

#[test]
fn first_window_without_records_is_reported_once() {
    let mut rollup = Rollup::new(settings(&[Key::Workload]));
    let starts = |windows: Vec<Window>| -> Vec<_> {
        let brief = |window: &Window| (window.start.0 / SECOND, window.rows.len());
        windows.iter().map(brief).collect()
    };
    let delta = Delta::default();
    assert_eq!(starts(rollup.take(&record(1, Event::Close, 1.0, 1), &delta)), []);
    assert_eq!(
        starts(rollup.take(&record(2, Event::Close, 31.0, 1), &delta)),
        [(0, 1), (5, 0)]
    );
    assert_eq!(starts(rollup.watermark(WallTime(35 * SECOND))), [(30, 1)]);
    assert_eq!(starts(rollup.watermark(WallTime(40 * SECOND))), [(35, 0)]);
    // The end of the run adds no window without records.
    assert_eq!(starts(rollup.watermark(WallTime::MAX)), []);
}

/// Returns the seconds that each window covers, and whether it is partial.
fn coverage(windows: &[Window]) -> Vec<(f64, f64, bool)> {
    let seconds = |time: WallTime| time.0 as f64 / 1e9;
    windows
        .iter()
        .map(|window| {
            (
                seconds(window.covered_from),
                seconds(window.covered_until),
                window.is_partial(),
            )
        })
        .collect()
}

#[test]
fn first_and_last_window_cover_only_the_traced_time() {
    let mut rollup = Run::new(settings(&[Key::Workload]));
    assert!(rollup.watermark(WallTime(2 * SECOND)).is_none());
    let mut windows = windows(
        &mut rollup,
        &[
            record(1, Event::Close, 3.0, 1),
            record(2, Event::Close, 7.0, 1),
            record(3, Event::Close, 11.0, 1),
        ],
    );
    assert_eq!(
        coverage(&windows),
        [(2.0, 5.0, true), (5.0, 10.0, false), (10.0, 11.0, true)]
    );
    assert_eq!(windows.remove(0).covered_ns(), 3_000_000_000);
    let mut rollup = Run::new(settings(&[Key::Workload]));
    rollup.take(&record(1, Event::Close, 61.0, 1));
    let before = rollup.take(&record(2, Event::Close, 7.0, 1)).unwrap();
    let after = rollup.watermark(WallTime(10 * SECOND)).unwrap();
    assert_eq!(
        coverage(&[before, after]),
        [(61.0, 61.0, true), (7.0, 10.0, true)],
        "the clock was set back"
    );
}

#[test]
fn window_of_the_whole_run_ends_with_the_run() {
    let mut rollup = Run::new(RollupSettings {
        interval: None,
        ..settings(&[Key::Workload])
    });
    assert!(rollup.watermark(WallTime(2 * SECOND)).is_none());
    for (cookie, second) in [(1, 3.0), (2, 700.0), (3, 1.0), (4, 90_000.0)] {
        assert!(rollup.take(&record(cookie, Event::Close, second, 1)).is_none());
    }
    assert!(rollup.watermark(WallTime(90_001 * SECOND)).is_none());
    let window = rollup.watermark(WallTime::MAX).unwrap();
    assert_eq!(sums(&window), (2, 4, 8, 4, 4, 0, 0));
    assert_eq!((window.end().0 / SECOND, window.is_partial()), (90_001, false));
    assert_eq!(window.length_ns, 89_999 * SECOND as u64);
}

#[test]
fn open_group_without_records_keeps_its_port_and_process() {
    let mut rollup = Run::new(settings(&[Key::Workload]));
    rollup.take(&record(1, Event::Open, 1.0, 0));
    let mut other = record(2, Event::Close, 6.0, 0);
    other.direction = Direction::Inbound;
    rollup.take(&other);
    let window = rollup.watermark(WallTime(10 * SECOND)).unwrap();
    let row = window.rows.iter().find(|row| row.sums.open == 1).unwrap();
    assert_eq!(row.port.get(), Some(&9080));
    let comm = testing::example().process.map(|process| process.comm);
    assert_eq!(row.comm.get(), Some(&comm));
}

#[test]
fn open_groups_are_in_windows_without_records_if_asked_for() {
    let rows = |rollup: Rollup| {
        let mut rollup = Run::of(rollup);
        rollup.take(&record(1, Event::Update, 1.0, 10));
        rollup.watermark(WallTime(5 * SECOND));
        rollup.watermark(WallTime(10 * SECOND)).unwrap().rows
    };
    assert!(rows(Rollup::new(settings(&[Key::Workload]))).is_empty());
    let rows = rows(Rollup::new(settings(&[Key::Workload])).with_open_groups());
    assert_eq!((rows.len(), rows[0].sums.open, rows[0].sums.sent_bytes), (1, 1, 0));
}

#[test]
fn last_failure_is_the_latest_one() {
    let windows = all(&[
        failed(1, 1.0, Outcome::Refused),
        failed(2, 2.0, Outcome::ConnectTimeout),
        record(3, Event::Close, 3.0, 0),
        record(4, Event::Close, 6.0, 0),
    ]);
    let failures: Vec<_> = windows.iter().map(|window| window.rows[0].last_failure).collect();
    let expected = Failure {
        time: WallTime(2 * SECOND),
        outcomes: EndOutcomes::Same(Outcome::ConnectTimeout),
    };
    assert_eq!(failures, [Some(expected), None]);
}

#[test]
fn totals_are_the_sums_of_all_windows() {
    let records = traffic(12, 800);
    let by = [Key::Port, Key::Outcome];
    let mut totals = Totals::new(1000);
    for window in windows(&mut Run::new(settings(&by)), &records) {
        totals.add(&window);
    }
    let mut whole = Run::new(RollupSettings {
        interval: None,
        ..settings(&by)
    });
    let expected = windows(&mut whole, &records).remove(0);
    let mut rows = totals.rows().to_vec();
    rows.sort_by(|one, two| one.group.cmp(&two.group));
    assert_eq!(rows.len(), expected.rows.len());
    for (row, expected) in rows.iter().zip(&expected.rows) {
        assert_eq!(format!("{row:?}"), format!("{expected:?}"));
    }
}

#[test]
fn totals_beyond_the_maximum_count_in_other() {
    let records: Vec<_> = (1..=10)
        .map(|cookie| record(cookie, Event::Close, f64::from(cookie as u32), 1))
        .collect();
    let mut totals = Totals::new(3);
    for window in windows(&mut Run::new(settings(&[Key::Connection])), &records) {
        totals.add(&window);
    }
    assert_eq!(totals.rows().len(), 4);
    let other = totals.rows().iter().find(|row| row.group.is_other()).unwrap();
    assert_eq!(other.sums.closed, 7);
}
