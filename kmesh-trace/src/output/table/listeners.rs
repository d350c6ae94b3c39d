//! The page of the listening sockets.

use std::collections::HashMap;

use comfy_table::{Attribute, Cell, Color};

use super::columns::grid;
use super::{Span, text, units};
use crate::filter::Filter;
use crate::output::short::{Owner, Server};
use crate::record::{AcceptQueue, ConnId, Record, Subject, WallTime};

/// The maximum number of listeners.
const MAX_LISTENERS: usize = 5_000;

/// The listeners that were reported and are not gone.
#[derive(Debug, Default)]
pub struct Listeners {
    records: HashMap<ConnId, Record>,
    has_reports: bool,
}

impl Listeners {
    /// Takes a record, if it is that of a listener.
    pub fn report(&mut self, record: &Record) {
        let is_listener = matches!(record.subject, Subject::Listener(_));
        self.has_reports |= is_listener;
        if is_listener && (self.records.len() < MAX_LISTENERS || self.records.contains_key(&record.id)) {
            self.records.insert(record.id, record.clone());
        }
    }

    /// Returns whether any listener was reported, even if it is gone.
    pub fn has_reports(&self) -> bool {
        self.has_reports
    }

    pub fn remove(&mut self, id: ConnId) {
        self.records.remove(&id);
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns the listeners that pass the filter, at the end of the window `span`. Full queues and drops come first.
    pub fn rows(&self, filter: &Filter, span: &Span) -> Vec<ListenerRow> {
        let listeners = self.records.values().filter(|record| filter.passes(record));
        let mut rows: Vec<_> = listeners
            .filter_map(|record| ListenerRow::new(record, span.from))
            .collect();
        rows.sort_unstable_by(|one, two| {
            two.urgency()
                .cmp(&one.urgency())
                .then_with(|| one.server.cmp(&two.server))
        });
        rows
    }
}

/// A listener on the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerRow {
    /// The name and the address.
    server: String,
    process: String,
    queue: AcceptQueue,
}

impl ListenerRow {
    fn new(record: &Record, window_start: WallTime) -> Option<Self> {
        let Subject::Listener(mut queue) = record.subject else {
            return None;
        };
        // A listener without a report in this window has dropped nothing in it.
        if record.time < window_start {
            queue.dropped = 0;
        }
        Some(Self {
            server: Server(record).to_string(),
            process: Owner(record.process.as_ref()).to_string(),
            queue,
        })
    }

    /// Returns whether the kernel drops further SYNs.
    pub fn is_full(&self) -> bool {
        self.queue.backlog > self.queue.max_backlog
    }

    /// Returns whether clients do not get in.
    pub fn has_failures(&self) -> bool {
        self.is_full() || self.queue.dropped > 0
    }

    fn urgency(&self) -> impl Ord + use<> {
        let queue = self.queue;
        (self.is_full(), queue.dropped, queue.backlog, queue.half_open)
    }

    fn cell(&self, column: Column, width: usize) -> Cell {
        let AcceptQueue {
            backlog,
            max_backlog,
            half_open,
            dropped,
            dropped_total,
        } = self.queue;
        let count = |number: u32| units::count(number.into());
        let (text, color) = match column {
            Column::Listener => (self.server.clone(), None),
            Column::Process => (self.process.clone(), None),
            Column::Backlog => {
                let mark = if self.is_full() { "full " } else { "" };
                let [backlog, limit] = [backlog, max_backlog].map(|number| units::brief(number.into()));
                (format!("{mark}{backlog}/{limit}"), self.is_full().then_some(Color::Red))
            }
            Column::HalfOpen => (count(half_open), None),
            Column::Dropped => (count(dropped), (dropped > 0).then_some(Color::Yellow)),
            Column::Total => (count(dropped_total), None),
        };
        let cell = Cell::new(text::shorten(&text, width));
        match color {
            Some(color) => cell.fg(color),
            None => cell,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Listener,
    Process,
    Backlog,
    HalfOpen,
    Dropped,
    Total,
}

/// The columns beside the name, with their titles and widths, and the width that they leave to the name. The most
/// important come first.
const COLUMNS: [(Column, &str, usize, usize); 5] = [
    (Column::Backlog, "BACKLOG", 14, 15),
    (Column::Dropped, "DROPPED", 7, 15),
    (Column::Process, "PROCESS", 20, 30),
    (Column::Total, "TOTAL", 7, 30),
    (Column::HalfOpen, "HALF-OPEN", 9, 30),
];
/// The order on the screen.
const ORDER: [Column; 6] = [
    Column::Listener,
    Column::Process,
    Column::Backlog,
    Column::HalfOpen,
    Column::Dropped,
    Column::Total,
];
const MAX_NAME: usize = 70;

/// Returns the line of titles and the lines of `rows`.
pub fn lines<'a>(rows: impl Iterator<Item = &'a ListenerRow>, width: usize, color: bool) -> Vec<String> {
    let mut left = width.saturating_sub(1);
    let mut columns = Vec::new();
    for (column, title, width, name) in COLUMNS {
        if left < width + 1 + name {
            break;
        }
        left -= width + 1;
        columns.push((column, title, width));
    }
    columns.push((Column::Listener, "LISTENER", left.min(MAX_NAME)));
    columns.sort_by_key(|(column, ..)| ORDER.iter().position(|other| other == column));
    let is_text = |column| matches!(column, Column::Listener | Column::Process);
    let shapes: Vec<_> = columns
        .iter()
        .map(|&(column, _, width)| (width, is_text(column)))
        .collect();
    let titles = columns
        .iter()
        .map(|(_, title, _)| Cell::new(title).add_attribute(Attribute::Bold));
    let rows = rows.map(|row| {
        let cells = columns.iter().map(|&(column, _, width)| row.cell(column, width));
        cells.collect()
    });
    grid(&shapes, titles.collect(), rows, color)
}
