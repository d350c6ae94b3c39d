//! The columns of the table: what each tells, and which of them a terminal of some width has room for.

use std::cmp::Ordering;

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, Table, Width};

use super::text::{self, Name};
use super::units;
use crate::record::Direction;
use crate::rollup::{Row, Sort, SortKey};

/// Width of a table that nobody looks at in a terminal: all columns, and names as long as they come.
pub const PLAIN_WIDTH: usize = 200;

/// What a column tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// New, gone or selected; and which end was traced.
    Mark,
    Client,
    Server,
    /// Open now, and attempts that hang.
    Open,
    Opened,
    Closed,
    /// How many failed, and mostly how.
    Failed,
    Sent,
    Received,
    Median,
    Slow,
    Connect,
    Srtt,
    Retransmitted,
    Lost,
}

impl Column {
    /// In the order of the screen: the title, the width besides names, the sort key, and at which place it gives way: the
    /// highest first, 0 never.
    const ALL: [(Self, &'static str, usize, Option<SortKey>, u8); 15] = [
        (Self::Mark, "END", 4, None, 0),
        (Self::Client, "CLIENT", 0, Some(SortKey::Group), 0),
        (Self::Server, "SERVER", 0, None, 0),
        (Self::Open, "OPEN+TRY", 8, Some(SortKey::Open), 0),
        (Self::Opened, "OPENED", 6, Some(SortKey::Opened), 4),
        (Self::Closed, "CLOSED", 6, Some(SortKey::Closed), 3),
        (Self::Failed, "FAILED", 12, Some(SortKey::Failed), 0),
        (Self::Sent, "SENT", 10, Some(SortKey::SentBytes), 1),
        (Self::Received, "RECEIVED", 10, Some(SortKey::ReceivedBytes), 2),
        (Self::Median, "P50", 6, None, 7),
        (Self::Slow, "P95", 6, Some(SortKey::DurationQuantilesNs), 5),
        (Self::Connect, "HSHK95", 6, Some(SortKey::ConnectQuantilesNs), 6),
        (Self::Srtt, "SRTT", 6, Some(SortKey::SrttQuantilesUs), 8),
        (Self::Retransmitted, "RETR", 5, Some(SortKey::Retransmits), 10),
        (Self::Lost, "LOST", 5, Some(SortKey::LostSegments), 9),
    ];
}

/// The columns that there is room for, and how wide each is. It depends on nothing but the room, so that columns stay where
/// they are whatever comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    columns: Vec<(Column, usize)>,
}

/// The least room for the client and the server together.
const NAMES: usize = 26;
/// Room for both that is enough for most names: then failures get what they need in full.
const COMFORTABLE: usize = 44;
/// The most room for a name.
const LONGEST: usize = 52;
/// The widest failure: `12345 unreachable`.
const FAILED: usize = 17;

impl Layout {
    /// For so many columns of a terminal.
    pub fn new(room: usize) -> Self {
        // Names get a third of a wide screen before any further column.
        let names = NAMES.max(room / 3);
        let (mut keep, mut names_room) = (0, 0);
        for rank in 0..=10 {
            let others: usize = Self::ranked(rank).map(|(_, width)| width + 1).sum();
            let left = (room + 1).saturating_sub(others);
            if rank > 0 && left < if rank <= 3 { NAMES } else { names } {
                break;
            }
            (keep, names_room) = (rank, left);
        }
        let failed_more = names_room.saturating_sub(COMFORTABLE).min(FAILED - 12);
        names_room -= failed_more;
        let server = (names_room * 11 / 20).min(LONGEST);
        let client = (names_room - server).min(LONGEST);
        let mut columns: Vec<_> = Self::ranked(keep).collect();
        for (column, width) in &mut columns {
            match column {
                Column::Client => *width = client,
                Column::Server => *width = server,
                Column::Failed => *width += failed_more,
                _ => {}
            }
        }
        Self { columns }
    }

    fn ranked(most: u8) -> impl Iterator<Item = (Column, usize)> {
        Column::ALL
            .iter()
            .filter(move |(_, _, _, _, rank)| *rank <= most)
            .map(|&(column, _, width, _, _)| (column, width))
    }

    /// The sort keys of these columns, in their order.
    pub fn sort_keys(&self) -> impl Iterator<Item = SortKey> {
        let of = |column| Column::ALL.iter().find(move |(one, ..)| *one == column)?.3;
        self.columns.iter().filter_map(move |&(column, _)| of(column))
    }

    /// The lines of the titles and of `rows`.
    pub fn lines(&self, rows: &[Shown<'_>], sort: Sort, color: bool) -> Vec<String> {
        let mut table = Table::new();
        table.load_style(NOTHING);
        if color {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(
            self.columns
                .iter()
                .map(|&(column, width)| self.title(column, width, sort)),
        );
        for row in rows {
            table.add_row(self.columns.iter().map(|&(column, width)| row.cell(column, width)));
        }
        for (at, &(column, width)) in self.columns.iter().enumerate() {
            if let Some(shaped) = table.column_mut(at) {
                let gap = u16::from(at + 1 < self.columns.len());
                shaped.set_padding((0, gap));
                shaped.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width as u16 + gap)));
                let is_text = matches!(column, Column::Mark | Column::Client | Column::Server | Column::Failed);
                shaped.set_cell_alignment(if is_text {
                    CellAlignment::Left
                } else {
                    CellAlignment::Right
                });
            }
        }
        table.lines().collect()
    }

    fn title(&self, column: Column, width: usize, sort: Sort) -> Cell {
        let found = Column::ALL.iter().find(|(one, ..)| *one == column);
        let (title, key) = found.map_or(("", None), |(_, title, _, key, _)| (*title, *key));
        let is_sorted = match sort.key {
            SortKey::Bytes => matches!(key, Some(SortKey::SentBytes | SortKey::ReceivedBytes)),
            key_of_sort => key == Some(key_of_sort),
        };
        let mark = if sort.descending { "▼" } else { "▲" };
        let title = if is_sorted {
            text::shorten(title, width.saturating_sub(1)) + mark
        } else {
            text::shorten(title, width)
        };
        Cell::new(title).add_attribute(Attribute::Bold)
    }
}

/// What became of a group since the last window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was there, too.
    None,
    /// It was not there.
    New,
    /// It is not there any more.
    Gone,
}

/// A row as it is shown.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// What of.
    pub row: &'a Row,
    /// Marked for one window.
    pub change: Change,
    /// Whether keys are about this one.
    pub selected: bool,
    /// Length of the window, ns.
    pub window_ns: u64,
}

impl Shown<'_> {
    fn cell(&self, column: Column, width: usize) -> Cell {
        let (text, color) = self.content(column, width);
        let mut cell = Cell::new(text::shorten(&text, width));
        if self.selected {
            cell = cell.add_attribute(Attribute::Reverse);
        }
        match color {
            Some(color) => cell.fg(color),
            None if self.change == Change::Gone => cell.fg(Color::DarkGrey),
            None => cell,
        }
    }

    fn content(&self, column: Column, width: usize) -> (String, Option<Color>) {
        let sums = &self.row.sums;
        let fit = |name: Name| (name.fit(width), None);
        let per_second = |bytes: u64, past: u64| (units::rate(bytes - past, self.window_ns), None);
        let quantile = |value: Option<u64>| (value.map_or_else(|| "-".to_owned(), units::time), None);
        let alarm = |number: u64| (units::count(number), (number > 0).then_some(Color::Yellow));
        if self.change == Change::Gone && !matches!(column, Column::Mark | Column::Client | Column::Server) {
            return ("-".to_owned(), None);
        }
        match column {
            Column::Mark => {
                let mark = match (self.selected, self.change) {
                    (true, _) => '>',
                    (false, Change::None) => ' ',
                    (false, Change::New) => '+',
                    (false, Change::Gone) => '-',
                };
                let end = match self.row.group.direction {
                    Some(Direction::Outbound) => "out",
                    Some(Direction::Inbound) => "in",
                    None => "all",
                };
                (
                    format!("{mark}{end}"),
                    (self.change == Change::New).then_some(Color::Green),
                )
            }
            Column::Client => fit(text::client(self.row)),
            Column::Server => fit(text::server(self.row)),
            Column::Open if sums.connecting > 0 => {
                let open = if sums.open == 0 {
                    "0".to_owned()
                } else {
                    units::count(sums.open)
                };
                (format!("{open}+{}", units::count(sums.connecting)), Some(Color::Yellow))
            }
            Column::Open => (units::count(sums.open), None),
            Column::Opened => (units::count(sums.opened), None),
            Column::Closed => (units::count(sums.closed), None),
            Column::Failed => match sums.main_failure() {
                Some((outcome, _)) => {
                    let how = text::failure(outcome);
                    let exact = format!("{} {how}", units::count(sums.failed()));
                    let fits = text::width(&exact) <= width;
                    let failed = if fits {
                        exact
                    } else {
                        format!("{} {how}", units::brief(sums.failed()))
                    };
                    (text::cut(&failed, width), Some(Color::Red))
                }
                None => ("-".to_owned(), None),
            },
            Column::Sent => per_second(sums.sent_bytes, sums.past_sent_bytes),
            Column::Received => per_second(sums.received_bytes, sums.past_received_bytes),
            Column::Median => quantile(sums.durations.summary().map(|summary| summary.p50)),
            Column::Slow => quantile(sums.durations.summary().map(|summary| summary.p95)),
            Column::Connect => quantile(sums.connects.summary().map(|summary| summary.p95)),
            Column::Srtt => quantile(sums.srtts.summary().map(|summary| summary.p50.saturating_mul(1000))),
            Column::Retransmitted => alarm(sums.retransmits),
            Column::Lost => alarm(sums.lost_segments),
        }
    }
}

/// Orders rows by `sort`, and those that are equal in that by their groups.
pub fn order(one: &Row, two: &Row, sort: Sort) -> Ordering {
    let by_key = sort.key.compare(&one.sums, &two.sums);
    let by_group = || (one.group.is_other(), &one.group).cmp(&(two.group.is_other(), &two.group));
    match (sort.key, sort.descending) {
        (SortKey::Group, false) => by_group(),
        (SortKey::Group, true) => by_group().reverse(),
        (_, false) => by_key.then_with(by_group),
        (_, true) => by_key.reverse().then_with(by_group),
    }
}
