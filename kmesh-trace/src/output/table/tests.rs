//! Tests of the screen as text, and of what keys do to it.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::view::{View, ViewOptions};
use super::*;
use crate::config::parse_prompt_filter;
use crate::output::testing;
use crate::record::{ConnId, Direction, Event, Names, Outcome, WallTime};
use crate::rollup::{RollupSettings, SortKey};
use crate::track::delta::Deltas;

const SECOND: i64 = 1_000_000_000;
/// 2024-09-14T08:19:25Z, the start of a window.
const START: i64 = 1_726_301_965 * SECOND;

fn config(by: &[Key]) -> RollupConfig {
    RollupConfig {
        settings: RollupSettings {
            by: By::new(by),
            interval: Some(Duration::from_secs(5)),
            max_groups: 100,
        },
        by: by.to_vec(),
        sort: Sort::default(),
        top: None,
        on_terminal: true,
        totals: false,
    }
}

fn options() -> ViewOptions {
    ViewOptions {
        by: vec![Key::Workload],
        sort: Sort::default(),
        top: None,
        color: false,
        totals: false,
        parse_filter: parse_prompt_filter,
    }
}

/// Returns the close of a connection to `server` in window `window`.
fn close(cookie: u64, window: i64, server: &str, outcome: Outcome, sent_bytes: u64) -> Record {
    Record {
        id: ConnId { cookie, attempt: 1 },
        time: WallTime(START + window * 5 * SECOND + 1),
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

/// A sink with a screen that nobody draws.
struct Table {
    sink: TuiTable,
    deltas: Deltas,
    history: SharedHistory,
    commands: Sender<UiCommand>,
}

struct NoScreen;

impl Screen for NoScreen {
    fn refresh(&mut self) {}
}

impl Table {
    fn new(by: &[Key]) -> Self {
        let history = SharedHistory::new(100);
        let (commands, received) = channel();
        Self {
            sink: TuiTable::new(
                &config(by),
                &testing::info(),
                &NameSourceStatus::default(),
                history.clone(),
                received,
                Box::new(NoScreen),
            ),
            deltas: Deltas::default(),
            history,
            commands,
        }
    }

    fn records(&mut self, records: &[Record]) {
        for record in records {
            let delta = self.deltas.take(record);
            self.sink.record(record, &delta).unwrap();
        }
    }

    /// Ends window `window`.
    fn end_window(&mut self, window: i64) {
        let end = WallTime(START + (window + 1) * 5 * SECOND);
        self.sink.watermark(end).unwrap();
    }

    fn view(&self, size: (u16, u16)) -> View {
        let mut view = View::new(options(), self.history.clone(), size);
        view.refresh();
        view
    }
}

/// Returns the records of two windows. One group stays, one goes quiet, two come.
fn incident() -> Vec<Record> {
    let mut connecting = close(9, 1, "10.96.0.1:443", Outcome::Refused, 0);
    (connecting.event, connecting.outcome) = (Event::Update, None);
    let mut records = vec![
        close(1, 0, "10.244.0.13:9080", Outcome::Ok, 5 << 20),
        close(2, 0, "10.244.0.14:5432", Outcome::Ok, 100),
        close(7, 0, "10.244.0.15:6379", Outcome::ResetByPeer, 100),
        close(3, 1, "10.244.0.13:9080", Outcome::Ok, 62 << 20),
        connecting,
    ];
    records.extend((10..22).map(|cookie| close(cookie, 1, "10.96.0.1:443", Outcome::Refused, 0)));
    let mut named = testing::in_pods();
    named.time = WallTime(START + 5 * SECOND + 2);
    records.push(named);
    records
}

/// Returns the table after both windows of the incident.
fn table() -> Table {
    let mut table = Table::new(&[Key::Workload]);
    table.sink.watermark(WallTime(START)).unwrap();
    table.records(&incident());
    table.end_window(1);
    table
}

fn view(size: (u16, u16)) -> View {
    table().view(size)
}

fn press(view: &mut View, keys: &[KeyCode]) -> Option<UiCommand> {
    keys.iter()
        .filter_map(|&key| view.key(KeyEvent::new(key, KeyModifiers::NONE)))
        .last()
}

fn control(view: &mut View, char: char) -> Option<UiCommand> {
    view.key(KeyEvent::new(KeyCode::Char(char), KeyModifiers::CONTROL))
}

fn type_text(view: &mut View, text: &str) -> Option<UiCommand> {
    let keys: Vec<_> = text
        .chars()
        .map(|char| match char {
            '\n' => KeyCode::Enter,
            char => KeyCode::Char(char),
        })
        .collect();
    press(view, &keys)
}

/// Returns the rows on the screen.
fn rows(view: &mut View) -> Vec<String> {
    let lines = view.lines();
    let rows = lines[3..lines.len() - 1].iter().map(|line| line.trim_end().to_owned());
    rows.filter(|line| !line.is_empty()).collect()
}

/// Returns the line about the state of the view.
fn state(view: &mut View) -> String {
    view.lines()[1].clone()
}

fn last_line(view: &mut View) -> String {
    view.lines().pop().unwrap()
}

/// Compares a screen with a golden file. `KMESH_TRACE_UPDATE_GOLDEN=1` writes the file instead.
fn assert_golden(name: &str, lines: &[String]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/data/table")
        .join(name);
    let screen: String = lines.iter().map(|line| format!("{}\n", line.trim_end())).collect();
    if std::env::var_os("KMESH_TRACE_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &screen).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(screen == expected, "{name} differs:\n{screen}");
}

#[test]
fn screens_match_the_golden_files() {
    for (columns, lines) in [(80, 24), (120, 40), (200, 50), (40, 8)] {
        let mut view = view((columns, lines));
        assert_golden(&format!("{columns}x{lines}.txt"), &view.lines());
        type_text(&mut view, "?");
        assert_golden(&format!("help-{columns}x{lines}.txt"), &view.lines());
    }
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
                let is_narrow = columns < 40;
                assert!(
                    is_narrow || text::width(&line) <= usize::from(columns),
                    "{columns}×{lines} {line:?}"
                );
            }
        }
    }
}

#[test]
fn help_page_fits_eighty_columns_and_24_lines() {
    assert!(help::HELP.len() <= 23);
    for line in help::HELP {
        assert!(text::width(line) <= 80, "{line}");
    }
    let mut narrow = view((40, 8));
    type_text(&mut narrow, "?");
    press(&mut narrow, &[KeyCode::Down, KeyCode::Down]);
    assert!(
        narrow.lines()[0].starts_with("g          next grouping"),
        "{:?}",
        narrow.lines()
    );
    press(&mut narrow, &[KeyCode::End]);
    assert!(narrow.lines()[6].starts_with("RETRANS"), "{:?}", narrow.lines());
    press(&mut narrow, &[KeyCode::Esc]);
    assert!(narrow.lines()[1].starts_with("by workload"), "{:?}", narrow.lines());
}

#[test]
fn q_and_control_c_quit_and_esc_does_not() {
    assert_eq!(type_text(&mut view((80, 24)), "q"), Some(UiCommand::Quit));
    let mut view = view((80, 24));
    assert_eq!(control(&mut view, 'z'), Some(UiCommand::Suspend));
    assert_eq!(press(&mut view, &[KeyCode::Esc, KeyCode::Esc]), None);
    assert_eq!(type_text(&mut view, "\n"), None);
    assert_eq!(press(&mut view, &[KeyCode::Esc, KeyCode::Esc]), None);
    let alt = |char| KeyEvent::new(KeyCode::Char(char), KeyModifiers::ALT);
    type_text(&mut view, "\n");
    assert_eq!(view.key(alt('q')), Some(UiCommand::Quit), "Esc and then q");
    type_text(&mut view, "/");
    assert_eq!(view.key(alt('q')), None);
    assert_eq!(control(&mut view, 'c'), None, "it leaves the prompt");
    assert!(last_line(&mut view).starts_with("q quit"));
    for keys in ["", "?"] {
        type_text(&mut view, keys);
        assert_eq!(control(&mut view, 'c'), Some(UiCommand::Quit), "{keys}");
    }
}

#[test]
fn new_and_quiet_groups_are_marked() {
    let mut table = Table::new(&[Key::Workload]);
    table.sink.watermark(WallTime(START)).unwrap();
    table.records(&incident());
    let mut view = table.view((120, 40));
    assert!(rows(&mut view).iter().all(|row| row.starts_with([' ', '>'])));
    table.end_window(1);
    view.refresh();
    press(&mut view, &[KeyCode::End]);
    let screen = rows(&mut view);
    let marks: String = screen.iter().map(|row| row.chars().next().unwrap_or(' ')).collect();
    assert_eq!(marks, " ++->", "{screen:#?}");
    assert!(screen[3].contains("10.244.0.14:5432"), "{screen:#?}");
    assert!(screen[4].contains("10.244.0.15:6379"), "{screen:#?}");
}

#[test]
fn failed_group_stays_for_12_quiet_windows_and_another_for_2() {
    let mut table = Table::new(&[Key::Port]);
    let at_window = |window: i64| close(100 + window as u64, window, "10.0.0.9:80", Outcome::Ok, 1);
    table.records(&[
        close(1, 0, "10.0.0.1:81", Outcome::Refused, 0),
        close(2, 0, "10.0.0.2:82", Outcome::Ok, 0),
    ]);
    let mut view = table.view((200, 50));
    for window in 1..=14 {
        table.records(&[at_window(window)]);
        table.end_window(window);
        view.refresh();
        let screen = rows(&mut view);
        let has = |port: &str| screen.iter().find(|row| row.contains(port));
        assert_eq!(has("*:82").is_some(), window <= 2, "window {window}: {screen:#?}");
        assert_eq!(has("*:81").is_some(), window <= 12, "window {window}: {screen:#?}");
        if let Some(row) = has("*:81") {
            let age = window * 5 + 4;
            let age = if age < 60 {
                format!("{age}s")
            } else {
                format!("{}m", age / 60)
            };
            assert!(row.contains(&format!("refused by peer {age} ago")), "{row}");
        }
    }
    // A group that comes back is new.
    table.records(&[
        close(3, 15, "10.0.0.1:81", Outcome::Ok, 0),
        close(4, 15, "10.0.0.1:80", Outcome::Ok, 1000),
    ]);
    table.end_window(15);
    view.refresh();
    let screen = rows(&mut view);
    assert!(
        screen.iter().any(|row| row.starts_with('+') && row.contains("*:81")),
        "{screen:#?}"
    );
}

#[test]
fn pause_freezes_the_screen_until_it_ends() {
    let mut table = Table::new(&[Key::Workload]);
    table.records(&incident());
    let mut view = table.view((120, 40));
    let before = rows(&mut view);
    type_text(&mut view, "p");
    table.end_window(1);
    view.refresh();
    assert_eq!(rows(&mut view), before);
    assert!(
        state(&mut view).starts_with("PAUSED at window 1 of 1"),
        "{}",
        state(&mut view)
    );
    type_text(&mut view, " ");
    assert_ne!(rows(&mut view), before);
}

#[test]
fn brackets_step_through_windows() {
    let mut table = Table::new(&[Key::Port]);
    for window in 0..4 {
        let server = format!("10.0.0.1:{}", 80 + window);
        table.records(&[close(1 + window as u64, window, &server, Outcome::Ok, 1)]);
        table.end_window(window);
    }
    let mut view = table.view((120, 40));
    let shown = |view: &mut View| {
        let rows = rows(view);
        let row = rows.iter().find(|row| !row.starts_with('-')).unwrap();
        row.split_whitespace().nth(2).unwrap().to_owned()
    };
    assert_eq!(shown(&mut view), "*:83");
    type_text(&mut view, "[[");
    assert_eq!(shown(&mut view), "*:81");
    assert!(state(&mut view).starts_with("PAUSED at window 2 of 4"));
    table.records(&[close(9, 4, "10.0.0.1:84", Outcome::Ok, 1)]);
    table.end_window(4);
    view.refresh();
    assert_eq!(shown(&mut view), "*:81", "a step back pauses");
    type_text(&mut view, "]");
    assert_eq!(shown(&mut view), "*:82");
    type_text(&mut view, "[[[[[[");
    assert_eq!(shown(&mut view), "*:80");
    type_text(&mut view, "]]]]]]]]]");
    assert_eq!(shown(&mut view), "*:84");
    type_text(&mut view, "[p");
    assert_eq!(shown(&mut view), "*:84", "the end of the pause shows the latest window");
}

#[test]
fn old_windows_are_dropped_beyond_the_limit() {
    let mut table = Table::new(&[Key::Connection]);
    for window in 0..700 {
        let base = window as u64 * 100;
        let records: Vec<_> = (0..90)
            .map(|at| close(base + at, window, "10.0.0.1:80", Outcome::Ok, 1))
            .collect();
        table.records(&records);
        table.end_window(window);
    }
    let (_, count) = table.history.lock().position(0);
    assert!((50..120).contains(&count), "{count}");
}

#[test]
fn totals_add_up_all_windows() {
    let mut view = view((120, 40));
    type_text(&mut view, "t");
    let screen = rows(&mut view);
    assert!(
        state(&mut view).starts_with("totals since 08:19:25Z  by workload"),
        "{}",
        state(&mut view)
    );
    // 67 MiB in 10 s.
    assert!(screen[0].contains("6.7 MiB/s"), "{screen:#?}");
    assert!(screen.iter().any(|row| row.contains("10.244.0.14:5432")), "{screen:#?}");
    assert!(screen.iter().all(|row| row.starts_with([' ', '>'])), "{screen:#?}");
    let opened = screen[0].split_whitespace().nth(4).unwrap().to_owned();
    assert_eq!(opened, "2", "{screen:#?}");
    type_text(&mut view, "t");
    assert!(rows(&mut view)[0].contains("12.4 MiB/s"));
    let options = ViewOptions {
        totals: true,
        ..options()
    };
    let mut view = View::new(options, table().history, (120, 40));
    view.refresh();
    assert!(state(&mut view).starts_with("totals since"));
}

#[test]
fn f_shows_only_failures() {
    let mut view = view((120, 40));
    type_text(&mut view, "f");
    let screen = rows(&mut view);
    assert_eq!(screen.len(), 2, "{screen:#?}");
    assert!(screen[0].contains("12 refused by peer"), "{screen:#?}");
    assert!(
        screen[1].contains("10.244.0.15:6379") && screen[1].contains("9s ago"),
        "{screen:#?}"
    );
    assert!(state(&mut view).contains("failures only"));
    type_text(&mut view, "f");
    assert_eq!(rows(&mut view).len(), 5);
}

#[test]
fn s_sorts_by_the_next_column_and_capital_s_reverses() {
    let mut view = view((80, 24));
    let sort = |view: &mut View| {
        let line = state(view);
        let key = line.split("sorted by ").nth(1).unwrap();
        key.split("  ").next().unwrap().to_owned()
    };
    let mut seen = vec![sort(&mut view)];
    for _ in 0..4 {
        type_text(&mut view, "s");
        seen.push(sort(&mut view));
    }
    assert_eq!(seen, ["-bytes", "group", "-open", "-failed", "-bytes"]);
    type_text(&mut view, "sssS");
    assert_eq!(sort(&mut view), "failed");
    type_text(&mut view, "S");
    let screen = rows(&mut view);
    assert!(screen[0].contains("12 refused by peer"), "{screen:#?}");
    let mut wide = self::view((200, 50));
    for _ in 0..11 {
        type_text(&mut wide, "s");
    }
    assert_eq!(sort(&mut wide), "-retransmits");
    type_text(&mut wide, "ss");
    assert_eq!(sort(&mut wide), "-bytes");
}

#[test]
fn prompt_filters_like_the_command_line() {
    let mut view = view((120, 40));
    assert_eq!(type_text(&mut view, "/--port x"), None);
    assert_eq!(last_line(&mut view), "filter: --port x▏");
    assert_eq!(type_text(&mut view, "\n"), None);
    let lines = view.lines();
    assert!(lines[38].contains("--port"), "{}", lines[38]);
    assert_eq!(lines[39], "filter: --port x▏");
    press(&mut view, &[KeyCode::Backspace]);
    assert!(!view.lines()[38].contains("--port"), "a key removes the error");
    let expected = parse_prompt_filter("--port 443").unwrap();
    assert_eq!(
        type_text(&mut view, "443\n"),
        Some(UiCommand::Filter(Box::new(expected)))
    );
    assert!(state(&mut view).contains("only --port 443"), "{}", state(&mut view));
    press(&mut view, &[KeyCode::Char('/'), KeyCode::Esc]);
    assert!(state(&mut view).contains("only --port 443"), "Esc changes nothing");
    type_text(&mut view, "/");
    control(&mut view, 'u');
    assert_eq!(type_text(&mut view, "\n"), Some(UiCommand::Filter(Box::default())));
    type_text(&mut view, "/");
    press(&mut view, &[KeyCode::Up]);
    assert_eq!(last_line(&mut view), "filter: --port 443▏", "the history");
}

#[test]
fn filter_and_grouping_apply_from_the_next_window() {
    let mut table = table();
    let mut view = table.view((120, 40));
    let Some(command) = type_text(&mut view, "/--port 443\n") else {
        panic!("a command")
    };
    table.commands.send(command).unwrap();
    table.sink.watermark(WallTime(START + 10 * SECOND + 1)).unwrap();
    view.refresh();
    assert!(
        state(&mut view).starts_with("from the next window on:"),
        "{}",
        state(&mut view)
    );
    table.records(&[
        close(51, 2, "10.96.0.1:443", Outcome::Ok, 1),
        close(52, 2, "10.96.0.1:80", Outcome::Ok, 1),
    ]);
    table.end_window(2);
    view.refresh();
    let screen = rows(&mut view);
    assert_eq!(screen.len(), 1, "{screen:#?}");
    assert!(screen[0].contains("10.96.0.1:443"), "{screen:#?}");
    assert!(state(&mut view).starts_with("by workload"), "{}", state(&mut view));
    let Some(command) = type_text(&mut view, "g") else {
        panic!("a command")
    };
    table.commands.send(command).unwrap();
    table.sink.watermark(WallTime(START + 15 * SECOND + 1)).unwrap();
    table.records(&[close(53, 3, "10.96.0.1:443", Outcome::Ok, 1)]);
    table.end_window(3);
    view.refresh();
    assert!(state(&mut view).starts_with("by service"), "{}", state(&mut view));
    assert_eq!(rows(&mut view).len(), 1);
}

#[test]
fn complete_replay_refuses_other_groups_and_filters() {
    let mut table = table();
    table.sink.finish().unwrap();
    let mut view = table.view((120, 40));
    assert_eq!(type_text(&mut view, "g"), None);
    assert!(
        last_line(&mut view).contains("run again with --by KEY"),
        "{}",
        last_line(&mut view)
    );
    view.set_notice(None);
    assert_eq!(type_text(&mut view, "/--port 443\n"), None);
    assert!(
        last_line(&mut view).contains("run again with --port 443"),
        "{}",
        last_line(&mut view)
    );
    view.set_notice(None);
    assert_eq!(type_text(&mut view, "/--nonsense\n"), None);
    assert!(last_line(&mut view).starts_with("filter: "), "an error stays an error");
}

#[test]
fn g_cycles_through_all_groupings() {
    let mut view = view((120, 40));
    let mut seen = Vec::new();
    for _ in 0..11 {
        let Some(UiCommand::Regroup(by)) = type_text(&mut view, "g") else {
            panic!("a grouping")
        };
        assert!(!seen.contains(&by));
        seen.push(by);
    }
    assert_eq!(seen[0], By::new(&[Key::Service]));
    assert_eq!(seen[10], By::new(&[Key::Workload]));
}

#[test]
fn enter_shows_the_connections_of_a_group_and_esc_goes_back() {
    let mut view = view((200, 60));
    press(&mut view, &[KeyCode::Down, KeyCode::Enter]);
    let screen = rows(&mut view);
    let title = state(&mut view);
    assert!(
        title.starts_with("13 of 13 connections of 10.244.0.17 to 10.96.0.1:443"),
        "{title}"
    );
    assert!(
        !screen.is_empty() && screen.iter().all(|row| row.contains("10.244.0.17:51842")),
        "{screen:#?}"
    );
    assert!(last_line(&mut view).starts_with("Esc back"));
    assert_eq!(press(&mut view, &[KeyCode::Esc]), None);
    let back = rows(&mut view);
    assert!(back[1].starts_with('>'), "{back:#?}");
}

#[test]
fn connections_of_a_quiet_group_stay_on_its_page() {
    let mut table = table();
    let mut view = table.view((200, 60));
    press(&mut view, &[KeyCode::Down, KeyCode::Enter]);
    let before = rows(&mut view).len();
    table.records(&[close(60, 2, "10.244.0.13:9080", Outcome::Ok, 1)]);
    let mut connecting = close(9, 2, "10.96.0.1:443", Outcome::ConnectAborted, 0);
    connecting.time = WallTime(START + 5 * SECOND + 3);
    table.records(&[connecting]);
    table.end_window(2);
    table.records(&[close(61, 3, "10.244.0.13:9080", Outcome::Ok, 1)]);
    table.end_window(3);
    view.refresh();
    let screen = rows(&mut view);
    assert!(!screen.is_empty() && before > 0, "{screen:#?}");
    let title = state(&mut view);
    assert!(
        title.starts_with("the last connections of 10.244.0.17 to 10.96.0.1:443, which is quiet"),
        "{title}"
    );
}

#[test]
fn cursor_follows_its_group_and_scrolls() {
    let records: Vec<_> = (0..50_u8)
        .map(|at| close(at.into(), 0, &format!("10.0.0.{at}:80"), Outcome::Ok, u64::from(at)))
        .collect();
    let mut table = Table::new(&[Key::Workload]);
    table.records(&records);
    table.end_window(0);
    let mut view = table.view((80, 24));
    assert!(rows(&mut view)[0].contains("10.0.0.49:80"));
    press(&mut view, &[KeyCode::PageDown, KeyCode::PageDown]);
    let screen = rows(&mut view);
    let selected = screen.iter().find(|row| row.starts_with('>')).unwrap().clone();
    assert!(selected.contains("10.0.0.9:80"), "{screen:#?}");
    assert!(state(&mut view).ends_with("row 41 of 50"), "{}", state(&mut view));
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
    assert!(state(&mut view).ends_with("row 49 of 50"));
}

#[test]
fn notice_replaces_the_keys_until_it_is_removed() {
    let mut view = view((80, 24));
    view.set_notice(Some("lost 3 records\u{1b}".to_owned()));
    assert_eq!(last_line(&mut view), "lost 3 records\u{fffd}");
    view.set_notice(None);
    assert!(last_line(&mut view).starts_with("q quit"));
}

#[test]
fn last_window_stays_after_the_end() {
    let mut view = view((80, 24));
    type_text(&mut view, "?");
    let lines = view.final_lines();
    assert!(lines[0].starts_with("worker-1"), "{lines:#?}");
    assert_eq!(lines.len(), 8, "{lines:#?}");
    let nothing = Table::new(&[Key::Workload]).view((80, 24)).final_lines();
    assert!(nothing.is_empty(), "{nothing:#?}");
}

#[test]
fn columns_do_not_move_between_windows() {
    let mut largest = testing::largest();
    largest.time = WallTime(START);
    for width in [40, 60, 80, 120, 160, 200, 300] {
        let mut lines = Vec::new();
        for records in [incident(), vec![largest.clone()]] {
            let mut table = Table::new(&[Key::Workload]);
            table.records(&records);
            table.end_window(1);
            let history = table.history.lock();
            let frame = history.latest().unwrap();
            let shown: Vec<_> = frame
                .rows
                .iter()
                .map(|row| ShownRow::new(row.into(), &frame.span))
                .collect();
            lines.extend(Layout::new(width, false).lines(&shown, Sort::default(), false));
        }
        let widths: Vec<_> = lines.iter().map(|line| text::width(line)).collect();
        assert!(
            widths.iter().all(|&other| other == widths[0] && other <= width),
            "{width}: {lines:#?}"
        );
    }
}

#[test]
fn outcomes_and_addresses_are_never_shortened() {
    for (width, address) in [(40, "10.244.0.13:9080"), (80, "10.244.0.13:9080")] {
        for &outcome in Outcome::ALL.iter().filter(|outcome| **outcome != Outcome::Ok) {
            let records: Vec<_> = (0..12).map(|cookie| close(cookie, 0, address, outcome, 0)).collect();
            let mut table = Table::new(&[Key::Workload]);
            table.records(&records);
            table.end_window(0);
            let screen = rows(&mut table.view((width, 24)));
            assert!(screen[0].contains(address), "{screen:#?}");
            assert!(screen[0].contains("10.244.0.17"), "{screen:#?}");
            let text = crate::output::outcome_text::outcome_text(outcome);
            let failed = if width == 40 {
                "12".to_owned()
            } else {
                format!("12 {text}")
            };
            assert!(screen[0].contains(&failed), "{screen:#?}");
        }
    }
}

#[test]
fn outcome_has_a_column_when_connections_are_grouped_by_it() {
    let mut table = Table::new(&[Key::Outcome]);
    table.records(&incident());
    table.end_window(1);
    let mut view = View::new(
        ViewOptions {
            by: vec![Key::Outcome],
            ..options()
        },
        table.history.clone(),
        (80, 24),
    );
    view.refresh();
    assert!(view.lines()[2].contains("OUTCOME"), "{:#?}", view.lines());
    let screen = rows(&mut view);
    for outcome in ["ok", "refused by peer"] {
        assert!(screen.iter().any(|row| row.contains(outcome)), "{screen:#?}");
    }
}

#[test]
fn process_stands_at_the_traced_end() {
    let mut inbound = testing::example();
    inbound.time = WallTime(START);
    let outbound = close(1, 0, "10.0.0.2:82", Outcome::Ok, 1);
    let cases: [(&[Key], &str); 4] = [
        (&[Key::Process], "in - python3:9080"),
        (&[Key::Pid], "out python3/4711 *:82"),
        (&[Key::Process, Key::Port], "out python3 *:82"),
        (&[Key::Ip, Key::Pid], "out 10.244.0.17 python3/4711 10.0.0.2:82"),
    ];
    for (by, expected) in cases {
        let mut table = Table::new(by);
        table.records(&[inbound.clone(), outbound.clone()]);
        table.end_window(0);
        let screen = rows(&mut table.view((200, 50)));
        let words = |row: &String| row[1..].split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            screen.iter().any(|row| words(row).starts_with(expected)),
            "{by:?}: {screen:#?}"
        );
    }
}

#[test]
fn service_without_a_pod_is_named() {
    let mut record = close(1, 0, "10.96.0.9:80", Outcome::Refused, 0);
    record.names.service = testing::in_pods().names.service;
    let mut table = Table::new(&[Key::Workload]);
    table.records(&[record]);
    table.end_window(0);
    let screen = rows(&mut table.view((200, 24)));
    assert!(screen[0].contains("echo-1-27855/productpage:80"), "{screen:#?}");
}

#[test]
fn wide_and_hostile_names_keep_lines_aligned() {
    let rename = |record: &mut Record, name: &str| {
        let pod = record.names.dst.pod.as_mut().map(Arc::make_mut).unwrap();
        pod.name = name.into();
        pod.workload = None;
        record.names.service = None;
        record.time = WallTime(START);
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
        let mut table = Table::new(&[Key::Workload]);
        table.records(&records);
        table.end_window(0);
        let lines = table.view(size).lines();
        let width = text::width(&lines[2]);
        for line in lines[3..40].iter().filter(|line| !line.is_empty()) {
            assert!(testing::is_harmless(line), "{line:?}");
            assert_eq!(text::width(line), width, "{line:?}");
        }
    }
}

/// Returns what the table without a terminal prints.
fn printed(config: &RollupConfig, start: WallTime, records: &[Record]) -> String {
    let out = testing::Shared::default();
    let mut table = TextTable::new(
        config,
        false,
        &testing::info(),
        &NameSourceStatus::default(),
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

#[test]
fn color_is_never_the_only_sign() {
    let table = table();
    let mut plain = table.view((120, 40));
    let options = ViewOptions {
        color: true,
        ..options()
    };
    let mut colored = View::new(options, table.history.clone(), (120, 40));
    colored.refresh();
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
fn sort_keys_are_those_of_the_line_and_the_titles() {
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
    for (title, key) in columns::sorted_titles() {
        let descending = false;
        assert_eq!(title.to_lowercase().parse(), Ok(Sort { key, descending }), "{title}");
    }
}
