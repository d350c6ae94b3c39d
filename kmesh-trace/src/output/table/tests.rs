//! The screen as text, and what keys do to it.

use std::sync::Arc;
use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::view::{Begin, View};
use super::*;
use crate::config::parse_prompt_filter;
use crate::output::testing;
use crate::record::{ConnId, Direction, Event, Names, Outcome, WallTime};
use crate::rollup::{By, Key, SortKey};
use crate::track::delta::Deltas;

const SECOND: i64 = 1_000_000_000;
/// 2024-09-14T08:19:25Z, the beginning of a window.
const BEGIN: i64 = 1_726_301_965 * SECOND;

fn settings(by: &[Key]) -> Settings {
    Settings {
        by: By::new(by),
        interval: Duration::from_secs(5),
        max_groups: 100,
    }
}

fn begin() -> Begin {
    Begin {
        by: vec![Key::Workload],
        sort: Sort::default(),
        top: None,
        color: false,
        parse: parse_prompt_filter,
    }
}

/// A close of a connection to `server`, so many windows after the first began.
fn close(cookie: u64, window: i64, server: &str, outcome: Outcome, sent_bytes: u64) -> Record {
    Record {
        id: ConnId { cookie, attempt: 1 },
        time: WallTime(BEGIN + window * 5 * SECOND + 1),
        direction: Direction::Outbound,
        src: "10.244.0.17:51842".parse().unwrap(),
        dst: server.parse().unwrap(),
        names: Names::default(),
        outcome: Some(outcome),
        established: outcome == Outcome::Ok,
        connect_ns: (outcome == Outcome::Ok).then_some(140_000),
        sent_bytes,
        ..testing::example()
    }
}

fn told(records: &[Record]) -> Vec<Arc<Told>> {
    let mut rollup = Rollup::new(settings(&[Key::Workload])).with_connections(100);
    let mut course = Course::new(&testing::info(), &NameSourceStatus::default());
    let mut deltas = Deltas::default();
    let mut windows = Vec::new();
    for record in records {
        windows.extend(rollup.take(record, &deltas.take(record)).into_iter().next());
    }
    windows.extend(rollup.watermark(WallTime::MAX));
    windows
        .into_iter()
        .map(|window| Arc::new(course.tell(window)))
        .collect()
}

/// Three groups in two windows: one stays, one goes, one comes.
fn incident() -> Vec<Arc<Told>> {
    let mut hanging = close(9, 1, "10.96.0.1:443", Outcome::Refused, 0);
    (hanging.event, hanging.outcome) = (Event::Update, None);
    let mut records = vec![
        close(1, 0, "10.244.0.13:9080", Outcome::Ok, 5 << 20),
        close(2, 0, "10.244.0.14:5432", Outcome::Ok, 100),
        close(3, 1, "10.244.0.13:9080", Outcome::Ok, 62 << 20),
        hanging,
    ];
    records.extend((10..22).map(|cookie| close(cookie, 1, "10.96.0.1:443", Outcome::Refused, 0)));
    records.push(testing::in_pods());
    let last = records.len() - 1;
    records[last].time = WallTime(BEGIN + 5 * SECOND + 2);
    told(&records)
}

fn view(size: (u16, u16)) -> View {
    let mut view = View::new(begin(), size);
    incident().into_iter().for_each(|told| view.window(told));
    view
}

fn press(view: &mut View, keys: &[KeyCode]) -> Option<Ask> {
    keys.iter()
        .filter_map(|&key| view.key(KeyEvent::new(key, KeyModifiers::NONE)))
        .last()
}

fn type_text(view: &mut View, text: &str) -> Option<Ask> {
    let keys: Vec<_> = text
        .chars()
        .map(|char| {
            if char == '\n' {
                KeyCode::Enter
            } else {
                KeyCode::Char(char)
            }
        })
        .collect();
    press(view, &keys)
}

fn rows(view: &mut View) -> Vec<String> {
    let lines = view.lines();
    let rows = lines[3..lines.len() - 1].iter().map(|line| line.trim_end().to_owned());
    rows.filter(|line| !line.is_empty()).collect()
}

#[test]
fn screens_are_as_wide_and_high_as_the_terminal() {
    for (columns, lines) in [
        (80, 24),
        (120, 40),
        (200, 60),
        (60, 10),
        (40, 6),
        (20, 3),
        (1, 1),
        (300, 100),
    ] {
        let mut view = view((columns, lines));
        for keys in ["", "?", " s", "\n", "/--port x\n"] {
            type_text(&mut view, keys);
            let screen = view.lines();
            if columns >= 20 {
                assert_eq!(screen.len(), usize::from(lines), "{columns}×{lines} {keys:?}");
            }
            for line in screen {
                let is_narrow = columns < 60;
                assert!(
                    is_narrow || text::width(&line) <= usize::from(columns),
                    "{columns}×{lines} {line:?}"
                );
            }
        }
    }
}

#[test]
fn eighty_columns_tell_what_fails() {
    let screen = view((80, 24)).lines();
    let expected = [
        "worker-1  up 10s  12.4 MiB/s sent  876 B/s recv  2.4/s failed  0 lost  no names",
        "by workload, sorted by -bytes",
        "END  CLIENT         SERVER           OPEN+TRY FAILED            SENT▼  RECEIVED▼",
        ">out 10.244.0.17    10.244.0.13:9080        - -            12.4 MiB/s     58 B/s",
        "+out 10.244.0.17    10.96.0.1:443         0+1 12 refused            -    759 B/s",
        "+in  istio-s…-h9cts echo-…tpage:9080        - -                 1 B/s     58 B/s",
        "-out 10.244.0.17    10.244.0.14:5432        - -                     -          -",
    ];
    for (line, expected) in screen.iter().zip(expected) {
        assert_eq!(line.trim_end(), expected, "{screen:#?}");
    }
}

#[test]
fn quitting_is_asked_for_by_four_keys() {
    for key in [KeyCode::Char('q'), KeyCode::Esc] {
        assert_eq!(press(&mut view((80, 24)), &[key]), Some(Ask::Quit));
    }
    let control = |char| KeyEvent::new(KeyCode::Char(char), KeyModifiers::CONTROL);
    let mut view = view((80, 24));
    assert_eq!(view.key(control('z')), Some(Ask::Suspend));
    for keys in ["", "?", "/"] {
        type_text(&mut view, keys);
        assert_eq!(view.key(control('c')), Some(Ask::Quit), "{keys}");
    }
}

#[test]
fn new_and_gone_groups_are_marked_for_one_window() {
    let all = incident();
    let mut view = View::new(begin(), (120, 40));
    view.window(Arc::clone(&all[0]));
    assert!(rows(&mut view).iter().all(|row| row.starts_with([' ', '>'])));
    view.window(Arc::clone(&all[1]));
    press(&mut view, &[KeyCode::End]);
    let screen = rows(&mut view);
    let marks: String = screen.iter().map(|row| row.chars().next().unwrap_or(' ')).collect();
    assert_eq!(marks, " ++>", "{screen:#?}");
    assert!(
        screen[3].contains("10.244.0.14:5432") && !screen[3].contains("/s"),
        "{screen:#?}"
    );
    view.window(Arc::clone(&all[1]));
    let screen = rows(&mut view);
    assert_eq!(screen.len(), 3, "{screen:#?}");
    assert!(!screen.iter().any(|row| row.starts_with(['+', '-'])));
}

#[test]
fn a_pause_keeps_the_screen_and_going_on_shows_the_latest() {
    let all = incident();
    let mut view = View::new(begin(), (120, 40));
    view.window(Arc::clone(&all[0]));
    let before = rows(&mut view);
    type_text(&mut view, "p");
    view.window(Arc::clone(&all[1]));
    assert_eq!(rows(&mut view), before);
    assert!(view.lines()[1].starts_with("PAUSED"));
    type_text(&mut view, " ");
    assert_ne!(rows(&mut view), before);
}

#[test]
fn sorting_goes_from_column_to_column_and_turns() {
    let mut view = view((80, 24));
    let sorted = |view: &mut View| view.lines()[1].clone();
    let mut seen = vec![sorted(&mut view)];
    for _ in 0..6 {
        type_text(&mut view, "s");
        seen.push(sorted(&mut view));
    }
    let keys: Vec<_> = seen.iter().filter_map(|line| line.split(' ').next_back()).collect();
    assert_eq!(
        keys,
        [
            "-bytes",
            "group",
            "-open",
            "-failed",
            "-sent_bytes",
            "-received_bytes",
            "-bytes"
        ]
    );
    type_text(&mut view, "sssS");
    assert!(sorted(&mut view).ends_with("failed") && !sorted(&mut view).ends_with("-failed"));
    type_text(&mut view, "S");
    let screen = rows(&mut view);
    assert!(screen[0].contains("12 refused"), "{screen:#?}");
}

#[test]
fn a_filter_is_typed_as_on_the_command_line() {
    let mut view = view((120, 40));
    assert_eq!(type_text(&mut view, "/--port x"), None);
    assert!(view.lines()[39].contains("filter: --port x_"));
    assert_eq!(type_text(&mut view, "\n"), None);
    assert!(view.lines()[39].contains("--port"), "{}", view.lines()[39]);
    press(&mut view, &[KeyCode::Backspace]);
    let expected = parse_prompt_filter("--port 443").unwrap();
    assert_eq!(type_text(&mut view, "443\n"), Some(Ask::Filter(Box::new(expected))));
    assert!(view.lines()[1].ends_with("only --port 443"), "{}", view.lines()[1]);
    press(&mut view, &[KeyCode::Char('/'), KeyCode::Esc]);
    assert!(view.lines()[1].ends_with("only --port 443"), "Esc changes nothing");
    type_text(&mut view, "/");
    view.key(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::CONTROL));
    assert_eq!(type_text(&mut view, "\n"), Some(Ask::Filter(Box::default())));
}

#[test]
fn g_goes_through_all_groupings_and_back() {
    let mut view = view((120, 40));
    let mut seen = Vec::new();
    for _ in 0..10 {
        let Some(Ask::Regroup(by)) = type_text(&mut view, "g") else {
            panic!("a grouping")
        };
        assert!(!seen.contains(&by));
        seen.push(by);
    }
    assert_eq!(seen[0], By::new(&[Key::Service]));
    assert_eq!(seen[9], By::new(&[Key::Workload]));
}

#[test]
fn enter_shows_a_groups_connections_and_esc_leads_back() {
    let mut view = view((200, 60));
    press(&mut view, &[KeyCode::Down, KeyCode::Enter]);
    let screen = rows(&mut view);
    let title = view.lines()[1].clone();
    assert!(
        title.starts_with("13 of 13 connections of 10.244.0.17 to 10.96.0.1:443"),
        "{title}"
    );
    assert!(
        !screen.is_empty() && screen.iter().all(|row| row.contains("10.244.0.17:51842")),
        "{screen:#?}"
    );
    assert_eq!(press(&mut view, &[KeyCode::Esc]), None);
    let back = rows(&mut view);
    assert!(back[1].starts_with('>'), "{back:#?}");
}

#[test]
fn the_cursor_follows_its_group_and_scrolls() {
    let records: Vec<_> = (0..50_u8)
        .map(|at| close(at.into(), 0, &format!("10.0.0.{at}:80"), Outcome::Ok, u64::from(at)))
        .collect();
    let all = told(&records);
    let mut view = View::new(begin(), (80, 24));
    view.window(Arc::clone(&all[0]));
    assert!(rows(&mut view)[0].contains("10.0.0.49:80"));
    press(&mut view, &[KeyCode::PageDown, KeyCode::PageDown]);
    let screen = rows(&mut view);
    let selected = screen.iter().find(|row| row.starts_with('>')).unwrap().clone();
    assert!(selected.contains("10.0.0.9:80"), "{screen:#?}");
    assert!(view.lines()[23].starts_with("41/50"), "{}", view.lines()[23]);
    type_text(&mut view, "S");
    let screen = rows(&mut view);
    assert!(
        screen
            .iter()
            .any(|row| row.starts_with('>') && row.contains("10.0.0.9:80"))
    );
    press(&mut view, &[KeyCode::Home]);
    assert!(rows(&mut view)[0].starts_with('>'));
    press(&mut view, &[KeyCode::End, KeyCode::Up]);
    assert!(view.lines()[23].starts_with("49/50"));
}

#[test]
fn columns_stay_where_they_are_whatever_comes() {
    let titles = |told: &Told, room| {
        let rows: Vec<_> = told.window.rows.iter().collect();
        let shown: Vec<_> = rows
            .iter()
            .map(|&row| Shown {
                row,
                change: Change::None,
                selected: false,
                window_ns: 1,
            })
            .collect();
        Layout::new(room).lines(&shown, Sort::default(), false)
    };
    let mut largest = testing::largest();
    largest.time = WallTime(BEGIN);
    let large = told(&[largest]);
    for room in [60, 80, 120, 160, 200, 300] {
        let lines: Vec<_> = incident()
            .iter()
            .chain(&large)
            .flat_map(|told| titles(told, room))
            .collect();
        let widths: Vec<_> = lines.iter().map(|line| text::width(line)).collect();
        assert!(
            widths.iter().all(|&width| width == widths[0] && width <= room),
            "{room}: {lines:#?}"
        );
    }
}

#[test]
fn wide_characters_and_hostile_names_keep_lines_straight() {
    let rename = |record: &mut Record, name: &str| {
        let pod = record.names.dst.pod.as_mut().map(Arc::make_mut).unwrap();
        pod.name = name.into();
        pod.workload = None;
        record.names.service = None;
    };
    let names = [
        "日本語の名前がとても長いポッド",
        "a\u{1b}[2J\nb",
        "\u{202e}evil",
        "e\u{301}\u{301}",
        "👨‍👩‍👧",
    ];
    let mut records = Vec::new();
    for name in names {
        let mut record = testing::in_pods();
        rename(&mut record, name);
        records.push(record);
    }
    for name in testing::hostile_names().take(40) {
        let mut record = testing::in_pods();
        rename(&mut record, &String::from_utf8_lossy(&name));
        record.process = testing::named(&name).process;
        records.push(record);
    }
    for size in [(80, 60), (120, 60), (200, 60)] {
        let mut view = View::new(begin(), size);
        told(&records).into_iter().for_each(|told| view.window(told));
        let lines = view.lines();
        let width = text::width(&lines[2]);
        for line in lines[3..40].iter().filter(|line| !line.is_empty()) {
            assert!(testing::is_harmless(line), "{line:?}");
            assert_eq!(text::width(line), width, "{line:?}");
        }
    }
}

#[test]
fn without_a_terminal_blocks_are_printed_the_same_each_time() {
    let block = || {
        let out = testing::Shared::default();
        let blocks = Blocks::new(
            settings(&[Key::Workload]),
            "-failed".parse().unwrap(),
            Some(2),
            false,
            &testing::info(),
            &NameSourceStatus::default(),
            Stdout::to(out.clone()),
        );
        let servers = ["10.0.0.1:80", "10.0.0.2:81", "10.0.0.3:82"];
        let mut records: Vec<_> = servers
            .iter()
            .map(|server| close(1, 0, server, Outcome::Ok, 10))
            .collect();
        records.push(close(2, 0, "10.0.0.3:82", Outcome::ConnectTimeout, 0));
        testing::deliver(Box::new(blocks), &records);
        out.text()
    };
    let text = block();
    assert_eq!(text, block());
    assert!(!text.contains('\x1b'));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert!(lines[0].starts_with("2024-09-14 worker-1  08:19:30Z  up 5s"), "{text}");
    assert!(
        lines[2].contains("10.0.0.3:82") && lines[2].contains("1 no answer"),
        "{text}"
    );
    assert!(lines[4].is_empty());
}

#[test]
fn colour_is_never_the_only_sign() {
    let mut plain = View::new(begin(), (120, 40));
    let mut colored = View::new(Begin { color: true, ..begin() }, (120, 40));
    for told in incident() {
        plain.window(Arc::clone(&told));
        colored.window(told);
    }
    let (plain, colored) = (plain.lines().join("\n"), colored.lines().join("\n"));
    assert!(colored.contains("\x1b["));
    let mut bare = String::new();
    let mut rest = colored.as_str();
    while let Some((before, after)) = rest.split_once("\x1b[") {
        bare += before;
        rest = after.split_once('m').unwrap().1;
    }
    bare += rest;
    assert_eq!(bare, plain);
}

#[test]
fn sort_keys_are_those_of_the_line() {
    for (text, key, descending) in [
        ("-failed", SortKey::Failed, true),
        ("bytes", SortKey::Bytes, false),
        ("-duration_quantiles_ns", SortKey::DurationQuantilesNs, true),
        ("-srtt", SortKey::SrttQuantilesUs, true),
        ("lost_segments", SortKey::LostSegments, false),
    ] {
        assert_eq!(text.parse(), Ok(Sort { key, descending }), "{text}");
    }
    for text in ["", "-", "--failed", "Failed", "latency"] {
        let error = text.parse::<Sort>().unwrap_err();
        assert!(error.contains("sent_bytes"), "{text}: {error}");
    }
}
