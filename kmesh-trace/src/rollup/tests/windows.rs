//! Tests of windows: their limits in time, and what adds up over them.

use super::*;

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
