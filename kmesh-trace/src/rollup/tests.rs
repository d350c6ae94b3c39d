//! Windows and groups, by tables of cases.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::output::testing;
use crate::record::{ConnId, Direction, Event, Outcome, Tcp};
use crate::track::delta::Deltas;

const SECOND: i64 = 1_000_000_000;

fn settings(keys: &[Key]) -> Settings {
    Settings {
        by: By::new(keys),
        interval: Duration::from_secs(5),
        max_groups: 100,
    }
}

/// A record of a connection at so many seconds, with so much sent so far.
fn told(cookie: u64, event: Event, second: f64, sent_bytes: u64) -> Record {
    let example = testing::example();
    Record {
        id: ConnId { cookie, attempt: 1 },
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
        ..told(cookie, Event::Update, second, 0)
    }
}

fn failed(cookie: u64, second: f64, outcome: Outcome) -> Record {
    Record {
        established: false,
        connect_ns: None,
        outcome: Some(outcome),
        ..told(cookie, Event::Close, second, 0)
    }
}

/// A rollup with the deltas of its records.
struct Run {
    rollup: Rollup,
    deltas: Deltas,
}

impl Run {
    fn new(settings: Settings) -> Self {
        Self::of(Rollup::new(settings))
    }

    fn of(rollup: Rollup) -> Self {
        Self {
            rollup,
            deltas: Deltas::default(),
        }
    }

    /// Returns the window that is over by the record. What is empty after it does not matter here.
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

/// All windows of these records.
fn windows(rollup: &mut Run, records: &[Record]) -> Vec<Window> {
    let mut windows: Vec<_> = records.iter().filter_map(|record| rollup.take(record)).collect();
    windows.extend(rollup.watermark(WallTime(i64::MAX)));
    windows
}

fn all(records: &[Record]) -> Vec<Window> {
    windows(&mut Run::new(settings(&[Key::Workload])), records)
}

/// Start in seconds, sent, received, opened, closed, open, connecting.
type Brief = (i64, u64, u64, u64, u64, u64, u64);

/// Of a window with one group.
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
fn a_stream_counts_in_each_window_by_what_it_moved_there() {
    use Event::{Close, Open, Update};
    let cases: [(&str, Vec<Record>, Vec<Brief>); 9] = [
        (
            "a short connection, told of when it closes only",
            vec![told(1, Close, 1.0, 7)],
            vec![(0, 7, 14, 1, 1, 0, 0)],
        ),
        (
            "opened and closed in one window",
            vec![told(1, Open, 1.0, 0), told(1, Close, 2.0, 7)],
            vec![(0, 7, 14, 1, 1, 0, 0)],
        ),
        (
            "a stream over three windows",
            vec![
                told(1, Open, 3.0, 0),
                told(1, Update, 4.9, 100),
                told(1, Update, 9.9, 250),
                told(1, Close, 12.0, 251),
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
                told(1, Update, 1.0, 10),
                told(1, Update, 2.0, 15),
                told(1, Close, 3.0, 15),
            ],
            vec![(0, 15, 30, 1, 1, 0, 0)],
        ),
        (
            "a walk met it before its opening was told",
            vec![told(1, Update, 1.0, 0), told(1, Open, 1.0, 0), told(1, Close, 6.0, 5)],
            vec![(0, 0, 0, 1, 0, 1, 0), (5, 5, 10, 0, 1, 0, 0)],
        ),
        (
            "an attempt that hangs, and then connects",
            vec![connecting(1, 1.0), connecting(1, 6.0), told(1, Open, 11.0, 0)],
            vec![(0, 0, 0, 0, 0, 0, 1), (5, 0, 0, 0, 0, 0, 1), (10, 0, 0, 1, 0, 1, 0)],
        ),
        (
            "an attempt that never connects",
            vec![connecting(1, 1.0), failed(1, 6.0, Outcome::ConnectTimeout)],
            vec![(0, 0, 0, 0, 0, 0, 1), (5, 0, 0, 0, 1, 0, 0)],
        ),
        (
            "the machine slept for an hour, and what moved meanwhile is told of afterwards",
            vec![
                told(1, Update, 4.9, 100),
                told(1, Update, 3604.9, 300),
                told(1, Close, 3605.0, 300),
            ],
            vec![
                (0, 100, 200, 1, 0, 1, 0),
                (3600, 200, 400, 0, 0, 1, 0),
                (3605, 0, 0, 0, 1, 0, 0),
            ],
        ),
        (
            "before the epoch",
            vec![told(1, Close, -0.5, 1)],
            vec![(-5, 1, 2, 1, 1, 0, 0)],
        ),
    ];
    for (name, records, expected) in cases {
        let found: Vec<_> = all(&records).iter().map(sums).collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn what_the_wall_clock_does_is_defined() {
    use Event::Close;
    type Case<'a> = (&'a str, &'a [f64], &'a [(i64, u64)]);
    let cases: [Case<'_>; 7] = [
        ("windows are aligned", &[12.0, 14.999, 15.0], &[(10, 2), (15, 1)]),
        ("on the boundary", &[5.0, 10.0], &[(5, 1), (10, 1)]),
        ("late by less than a window", &[7.0, 4.0, 9.0], &[(5, 3)]),
        ("late by just a window", &[5.0, 0.0, 9.0], &[(5, 3)]),
        (
            "set back by an hour",
            &[3605.0, 5.5, 10.5],
            &[(3605, 1), (5, 1), (10, 1)],
        ),
        (
            "set back and on again",
            &[100.0, 50.0, 101.0],
            &[(100, 1), (50, 1), (100, 1)],
        ),
        ("set forward by an hour", &[1.0, 3601.0], &[(0, 1), (3600, 1)]),
    ];
    for (name, seconds, expected) in cases {
        let records: Vec<_> = (1..)
            .zip(seconds)
            .map(|(cookie, &second)| told(cookie, Close, second, 1))
            .collect();
        let found: Vec<_> = all(&records)
            .iter()
            .map(|window| (window.start.0 / SECOND, window.rows[0].sums.closed))
            .collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_window_ends_when_all_of_it_is_told_whether_anything_follows() {
    let mut rollup = Run::new(settings(&[Key::Workload]));
    let at = |second: i64| WallTime(second * SECOND);
    assert!(rollup.watermark(at(3)).is_none(), "nothing has begun");
    assert!(rollup.take(&told(1, Event::Update, 4.0, 5)).is_none());
    assert!(rollup.watermark(WallTime(5 * SECOND - 1)).is_none());
    let window = rollup.watermark(at(5)).unwrap();
    assert_eq!(sums(&window), (0, 5, 10, 1, 0, 1, 0));
    assert_eq!(window.end(), at(5));
    assert!(rollup.watermark(at(9)).is_none());
    let window = rollup.watermark(at(10)).unwrap();
    assert_eq!((window.start, window.rows.len()), (at(5), 0), "nothing was told of it");
    // The clock was set back, and nothing happens.
    let window = rollup.watermark(at(2)).unwrap();
    assert_eq!((window.start, window.rows.len()), (at(10), 0));
    assert!(rollup.take(&told(1, Event::Close, 3.0, 6)).is_none());
    let window = rollup.watermark(WallTime(i64::MAX)).unwrap();
    assert_eq!(sums(&window), (0, 1, 2, 0, 1, 0, 0));
}

/// Two connections that nobody accepts, so that no scan reaches them, and one that scans do reach.
fn silent() -> Vec<Record> {
    let mut records = vec![told(1, Event::Open, 1.0, 0), told(3, Event::Open, 6.0, 0)];
    records.extend((0..7).map(|window| told(2, Event::Update, f64::from(window) * 5.0 + 4.0, 0)));
    records.sort_by_key(|record| record.time);
    records
}

fn open_in(windows: &[Window]) -> Vec<u64> {
    windows.iter().map(|window| window.rows[0].sums.open).collect()
}

#[test]
fn silent_connections_stay_open() {
    let mut records = silent();
    assert_eq!(open_in(&all(&records)), [2, 3, 3, 3, 3, 3, 3]);
    records.push(told(1, Event::Close, 36.0, 9));
    let windows = all(&records);
    assert_eq!(sums(&windows[7]), (35, 9, 18, 0, 1, 2, 0));
}

#[test]
fn lost_close_is_that_of_the_longest_silent_connection() {
    let mut rollup = Run::new(settings(&[Key::Workload]));
    rollup.rollup.lost(1);
    assert_eq!(open_in(&windows(&mut rollup, &silent())), [2, 3, 3, 2, 2, 2, 2]);
    let mut rollup = Run::new(settings(&[Key::Workload]));
    rollup.rollup.lost(9);
    assert_eq!(open_in(&windows(&mut rollup, &silent())), [2, 3, 3, 2, 1, 1, 1]);
}

#[test]
fn close_that_a_filter_drops_ends_the_connection() {
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
            records.push(told(1, Event::Update, second + 1.0, 0));
        }
        records.push(told(100 + window, Event::Close, second + 2.0, 0));
    }
    let open: Vec<u64> = all(&records)
        .iter()
        .map(|window| window.rows.iter().map(|row| row.sums.open).sum())
        .collect();
    assert_eq!(open, [1; 12]);
}

#[test]
fn what_was_open_before_counts_and_makes_no_rate() {
    let before = |event, second, sent| Record {
        preexisting: true,
        duration_ns: None,
        ..told(1, event, second, sent)
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
fn failures_are_counted_by_how() {
    let windows = all(&[
        failed(1, 1.0, Outcome::Refused),
        failed(2, 1.0, Outcome::ConnectTimeout),
        failed(3, 1.0, Outcome::ConnectTimeout),
        told(4, Event::Close, 1.0, 1),
    ]);
    let sums = &windows[0].rows[0].sums;
    assert_eq!((sums.closed, sums.failed(), sums.opened), (4, 3, 1));
    assert_eq!(sums.main_failure(), Some((Outcome::ConnectTimeout, 2)));
    let by_outcome: Vec<_> = sums.by_outcome().collect();
    assert_eq!(
        by_outcome,
        [(Outcome::Ok, 1), (Outcome::Refused, 1), (Outcome::ConnectTimeout, 2)]
    );
    assert_eq!(sums.connects.summary().map(|summary| summary.max), Some(1_000_000));
}

#[test]
fn too_many_groups_fold_into_one() {
    let mut rollup = Run::new(Settings {
        max_groups: 3,
        ..settings(&[Key::Connection])
    });
    let mut records: Vec<_> = (1..=10)
        .map(|cookie| told(cookie, Event::Update, 1.0, cookie))
        .collect();
    records.extend((1..=10).map(|cookie| told(cookie, Event::Close, 6.0, cookie + 1)));
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
fn groups_have_what_they_are_grouped_by() {
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
        (&[Key::Node], from_a_node(), "worker-2 > "),
        (&[Key::Process], example(), " >  process true"),
        (&[Key::Process], testing::refused(), " >  process false"),
        (&[Key::Ip], in_pods(), "10.244.0.17 > 10.244.0.13"),
        (&[Key::Port], in_pods(), " > :9080"),
        (&[Key::Outcome], testing::refused(), " >  outcome Some(Refused)"),
        (&[Key::Outcome], told(1, Event::Update, 0.0, 0), " >  outcome None"),
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

/// Traffic at random: of each connection perhaps an opening, some updates, a close; in the order of time.
fn traffic(seed: u64, connections: u64) -> Vec<Record> {
    let mut next = testing::random(seed);
    let mut records = Vec::new();
    for cookie in 0..connections {
        let mut at = (next() % 60_000) as f64 / 1000.0;
        let mut sent = 0;
        let mut one = |event, at: f64, sent| {
            let mut record = told(cookie, event, at, sent);
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
fn sums_over_windows_and_groups_are_those_over_records() {
    let keys: [&[Key]; 4] = [
        &[Key::Workload],
        &[Key::Port, Key::Outcome],
        &[Key::Connection],
        &[Key::Process],
    ];
    for (seed, keys) in (1..).zip(keys) {
        let records = traffic(seed, 2000);
        let mut rollup = Run::new(Settings {
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
        // Of those from before, the ones that are seen to open.
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
fn each_connections_windows_add_up_to_its_close() {
    let records = traffic(9, 300);
    let mut rollup = Run::new(Settings {
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

/// How often it is told that time has passed changes nothing.
#[test]
fn the_speed_of_the_machine_does_not_matter() {
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
fn what_is_not_wanted_is_followed_and_not_counted() {
    let mut rollup = Run::of(Rollup::new(settings(&[Key::Workload])).with_connections(10));
    assert!(rollup.take_if(&told(1, Event::Update, 1.0, 100), |_| false).is_none());
    let window = rollup.take(&told(1, Event::Update, 6.0, 107)).unwrap();
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

/// A crowd of short connections in one group leaves room for those of another, and for what stays open.
#[test]
fn of_each_group_some_connections_are_listed() {
    let mut rollup = Run::of(Rollup::new(settings(&[Key::Port])).with_connections(1000));
    let at_port = |mut record: Record, port| {
        record.dst.set_port(port);
        record
    };
    for cookie in 0..5000 {
        rollup.take(&at_port(told(cookie, Event::Close, 1.0, 1), 80));
    }
    rollup.take(&at_port(told(6000, Event::Close, 2.0, 1), 81));
    rollup.take(&at_port(told(6001, Event::Update, 2.0, 1), 80));
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
fn another_grouping_begins_the_window_anew() {
    let mut rollup = Run::new(settings(&[Key::Workload]));
    assert!(rollup.take(&told(1, Event::Update, 1.0, 100)).is_none());
    rollup.rollup.regroup(By::new(&[Key::Port]));
    assert!(rollup.take(&told(1, Event::Update, 2.0, 101)).is_none());
    let window = rollup.watermark(WallTime(5 * SECOND)).unwrap();
    assert_eq!(sums(&window), (0, 1, 2, 0, 0, 1, 0));
    assert_eq!(window.rows[0].group.dst.port, Some(9080));
}

#[test]
fn first_quiet_window_is_shown_once() {
    let mut rollup = Rollup::new(settings(&[Key::Workload]));
    let starts = |windows: Vec<Window>| -> Vec<_> {
        let brief = |window: &Window| (window.start.0 / SECOND, window.rows.len());
        windows.iter().map(brief).collect()
    };
    let delta = Delta::default();
    assert_eq!(starts(rollup.take(&told(1, Event::Close, 1.0, 1), &delta)), []);
    assert_eq!(
        starts(rollup.take(&told(2, Event::Close, 31.0, 1), &delta)),
        [(0, 1), (5, 0)]
    );
    assert_eq!(starts(rollup.watermark(WallTime(35 * SECOND))), [(30, 1)]);
    assert_eq!(starts(rollup.watermark(WallTime(40 * SECOND))), [(35, 0)]);
    // The end of the run is no quiet window.
    assert_eq!(starts(rollup.watermark(WallTime::MAX)), [(40, 0)]);
}
