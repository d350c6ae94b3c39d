//! Tests of the table: its screen as text, its keys, and its blocks without a terminal.

mod blocks;
mod keys;
mod reasons;
mod screen;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::columns::Contents;
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
        joins: false,
        may_be_late: false,
    }
}

fn options() -> ViewOptions {
    ViewOptions {
        by: vec![Key::Workload],
        sort: Sort::default(),
        top: None,
        color: false,
        totals: false,
        can_reread: false,
        is_replay: false,
        joins: false,
        parse_filter: parse_prompt_filter,
    }
}

/// Returns the close of a connection to `server` in window `window`.
fn close(cookie: u64, window: i64, server: &str, outcome: Outcome, sent_bytes: u64) -> Record {
    Record {
        id: ConnId {
            cookie,
            attempt: 1,
            node: 0,
        },
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
                Session::new(&testing::info(), &NameSourceStatus::default(), TimeFormat::Utc),
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

    /// Reports that window `window` has ended.
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
