//! Tests of connections that stay open over windows.

use super::*;

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
