//! The table without a terminal.

use super::*;

/// Returns what the table without a terminal prints.
fn printed(config: &RollupConfig, start: WallTime, records: &[Record]) -> String {
    let out = testing::Shared::default();
    let mut table = TextTable::new(
        config,
        false,
        Session::new(&testing::info(), &NameSourceStatus::default(), TimeFormat::Utc),
        Stdout::to(out.clone()),
    );
    table.watermark(start).unwrap();
    testing::deliver(Box::new(table), records);
    out.text()
}

#[test]
fn blocks_are_printed_without_a_terminal() {
    let config = RollupConfig {
        sort: "-failed".parse().unwrap(),
        top: Some(2),
        ..config(&[Key::Workload])
    };
    let servers = ["10.0.0.1:80", "10.0.0.2:81", "10.0.0.3:82"];
    let mut records: Vec<_> = servers
        .iter()
        .map(|server| close(1, 0, server, Outcome::Ok, 10))
        .collect();
    records.push(close(2, 0, "10.0.0.3:82", Outcome::ConnectTimeout, 0));
    records.push(close(3, 1, "10.0.0.3:82", Outcome::ConnectTimeout, 0));
    let text = printed(&config, WallTime(START), &records);
    assert_eq!(text, printed(&config, WallTime(START), &records));
    assert!(!text.contains('\x1b'));
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[0].starts_with("worker-1  2024-09-14 08:19:30Z  up 5s  6 B/s sent"),
        "{text}"
    );
    assert!(
        lines[2].contains("10.0.0.3:82") && lines[2].contains("1 connect timeout"),
        "{text}"
    );
    assert!(lines[4].is_empty(), "{text}");
    assert_eq!(lines.len(), 10, "{text}");
}

#[test]
fn joined_connection_shows_both_outcomes() {
    let config = RollupConfig {
        joins: true,
        ..config(&[Key::Outcome])
    };
    let joined = testing::joined();
    let text = printed(&config, joined[0].time, &joined[..1]);
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.contains("reset by peer / ok"), "{text}");
}

#[test]
fn failures_of_a_group_show_both_outcomes() {
    let config = RollupConfig {
        joins: true,
        ..config(&[Key::Workload])
    };
    let joined = testing::joined();
    let text = printed(&config, joined[0].time, &joined[..1]);
    assert!(text.contains(" 1 reset by peer / ok "), "{text}");

    let mut table = Table::new(&[Key::Workload]);
    table.records(&joined[..1]);
    table.sink.watermark(WallTime(joined[0].time.0 + 5 * SECOND)).unwrap();
    let options = ViewOptions {
        joins: true,
        ..options()
    };
    for (columns, expected) in [(60, "1   "), (100, "1 reset by…er / ok"), (300, "1 reset by peer / ok")] {
        let mut view = View::new(options.clone(), table.history.clone(), (columns, 24));
        view.refresh();
        let screen = rows(&mut view);
        assert!(screen[0].contains(expected), "{columns}: {screen:#?}");
    }
}

#[test]
fn partial_window_has_rates_of_the_covered_time() {
    // Tracing starts 2 s before the end of the window.
    let start = WallTime(START + 3 * SECOND);
    let records: Vec<_> = (0..4)
        .map(|at| {
            let mut record = close(at, 0, "10.0.0.1:80", Outcome::Ok, 1000);
            record.time = WallTime(START + 4 * SECOND);
            record
        })
        .chain([close(9, 1, "10.0.0.1:80", Outcome::Ok, 1)])
        .collect();
    let text = printed(&config(&[Key::Workload]), start, &records);
    let headers: Vec<_> = text.lines().filter(|line| line.starts_with("worker-1")).collect();
    assert!(
        headers[0].starts_with("worker-1  2024-09-14 08:19:30Z  up 2s  partial 2.0s  2.0 KiB/s sent"),
        "{text}"
    );
    assert!(headers[0].contains("2.0/s opened"), "{text}");
    assert!(headers[1].contains("up 2s  partial 1ns  10 B/s sent"), "{text}");
}

#[test]
fn header_has_the_date_and_time_of_one_instant() {
    // The window from 23:59:55 ends on the next day.
    let midnight = 1_726_358_400 * SECOND;
    let mut record = close(1, 0, "10.0.0.1:80", Outcome::Ok, 1);
    record.time = WallTime(midnight - SECOND);
    let mut next = record.clone();
    (next.id.cookie, next.time) = (2, WallTime(midnight));
    let text = printed(&config(&[Key::Workload]), record.time, &[record, next]);
    assert!(
        text.starts_with("worker-1  2024-09-15 00:00:00Z  up 1s  partial 1.0s"),
        "{text}"
    );
}

#[test]
fn interval_all_prints_one_block() {
    let mut config = config(&[Key::Workload]);
    config.settings.interval = None;
    let text = printed(&config, WallTime(START), &incident());
    assert_eq!(
        text.lines().filter(|line| line.starts_with("worker-1")).count(),
        1,
        "{text}"
    );
    assert!(
        text.contains("10.244.0.14:5432") && text.contains("10.96.0.1:443"),
        "{text}"
    );
    assert!(
        text.starts_with("worker-1  2024-09-14 08:19:30Z  up 5s  13.4 MiB/s sent"),
        "{text}"
    );
}
