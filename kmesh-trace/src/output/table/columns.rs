//! The columns of the table, and the choice of those that fit.

use std::cmp::Ordering;

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, Table, Width};

use super::quiet::{RowRef, RowState};
use super::text::{self, Name};
use super::{Span, units};
use crate::output::outcome_text::end_outcomes_text;
use crate::record::{Direction, EndOutcomes};
use crate::rollup::{Responses, Row, Sort, SortKey, Sums};

/// The width of a table without a terminal. All columns fit.
pub const PLAIN_WIDTH: usize = 210;
/// The width of a table without a terminal if `--join` may show two outcomes.
pub const PLAIN_JOINED_WIDTH: usize = 225;

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// The state of the row, and the end that was traced.
    Mark,
    Client,
    Server,
    Outcome,
    /// Open connections and waiting attempts.
    Open,
    Opened,
    Closed,
    /// The number of failures and the most frequent outcome.
    Failed,
    Bytes,
    Sent,
    Received,
    P50,
    P95,
    Connect,
    /// The time to an answer.
    Response,
    Srtt,
    /// The main reason of dropped packets, else of resets.
    Reason,
    Retrans,
    Lost,
}

impl Column {
    /// The order on the screen.
    const ORDER: [Self; 19] = [
        Self::Mark,
        Self::Client,
        Self::Server,
        Self::Outcome,
        Self::Open,
        Self::Opened,
        Self::Closed,
        Self::Failed,
        Self::Reason,
        Self::Bytes,
        Self::Sent,
        Self::Received,
        Self::P50,
        Self::P95,
        Self::Connect,
        Self::Response,
        Self::Srtt,
        Self::Retrans,
        Self::Lost,
    ];

    /// Returns the title and the key that sorts by this column. The title in lower case is a name of the key.
    fn heading(self) -> (&'static str, Option<SortKey>) {
        match self {
            Self::Mark => ("END", None),
            Self::Client => ("CLIENT", Some(SortKey::Group)),
            Self::Server => ("SERVER", None),
            Self::Outcome => ("OUTCOME", None),
            Self::Open => ("OPEN", Some(SortKey::Open)),
            Self::Opened => ("OPENED", Some(SortKey::Opened)),
            Self::Closed => ("CLOSED", Some(SortKey::Closed)),
            Self::Failed => ("FAILED", Some(SortKey::Failed)),
            Self::Bytes => ("BYTES", Some(SortKey::Bytes)),
            Self::Sent => ("SENT", Some(SortKey::SentBytes)),
            Self::Received => ("RECEIVED", Some(SortKey::ReceivedBytes)),
            Self::P50 => ("P50", None),
            Self::P95 => ("P95", Some(SortKey::DurationQuantilesNs)),
            Self::Connect => ("CONNECT", Some(SortKey::ConnectQuantilesNs)),
            Self::Response => ("RESP95", Some(SortKey::ResponseQuantilesNs)),
            Self::Srtt => ("SRTT", Some(SortKey::SrttQuantilesUs)),
            Self::Reason => ("REASON", Some(SortKey::Drops)),
            Self::Retrans => ("RETRANS", Some(SortKey::Retransmits)),
            Self::Lost => ("LOST", Some(SortKey::LostSegments)),
        }
    }

    fn is_text(self) -> bool {
        matches!(
            self,
            Self::Mark | Self::Client | Self::Server | Self::Outcome | Self::Failed | Self::Reason
        )
    }
}

/// A change of the layout, for which there may be space.
enum Step {
    Add(Column, usize),
    Widen(Column, usize),
    /// Shows both directions in place of their sum.
    SplitBytes,
    /// Makes space for the number of failures and two outcomes.
    WidenJoined,
}

/// The steps from the narrowest to the widest table.
const STEPS: [Step; 17] = [
    Step::Add(Column::Bytes, 10),
    Step::Add(Column::Open, 7),
    Step::Widen(Column::Mark, 4),
    // Early, because `--turns` asks for it.
    Step::Add(Column::Response, 7),
    Step::Widen(Column::Failed, 18),
    Step::SplitBytes,
    Step::Add(Column::Closed, 7),
    Step::Add(Column::Opened, 7),
    Step::Add(Column::P95, 6),
    Step::Add(Column::Connect, 8),
    Step::Add(Column::Reason, REASON_WIDTH),
    Step::Add(Column::P50, 6),
    Step::Add(Column::Srtt, 6),
    Step::Add(Column::Lost, 5),
    Step::Widen(Column::Failed, 23),
    Step::Add(Column::Retrans, 8),
    Step::WidenJoined,
];
/// The width of `refused by peer`.
const OUTCOME_WIDTH: usize = 15;
/// The width of `reset by local / reset by peer`, which `--join` may show.
const JOINED_OUTCOMES_WIDTH: usize = 30;
/// The minimum width of two shortened outcomes, such as `reset…timeout`.
const MIN_OUTCOMES: usize = 13;
/// The width of `TCP_ABORT_ON_CLOSE`.
const REASON_WIDTH: usize = 18;
/// The number of steps that may narrow the names to [`MIN_NAMES`]. The further ones leave a third of the width to them.
const FIRST_STEPS: usize = 5;
/// The minimum width of the client and the server together: two IPv4 addresses and a port.
const MIN_NAMES: usize = 30;
/// The maximum width of a name.
const MAX_NAME: usize = 52;

/// The optional contents of a table, which need more space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Whether both ends of a connection are one record, with two outcomes.
    pub joins: bool,
    /// Whether there are times of responses.
    pub has_turns: bool,
}

/// The columns that fit, with their widths. They depend only on the width of the table and on its [`Contents`], so that
/// columns do not move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    columns: Vec<(Column, usize)>,
}

impl Layout {
    /// Returns the layout of a table of `width` columns. `by_outcome`: whether connections are grouped by outcomes.
    pub fn new(width: usize, by_outcome: bool, contents: Contents) -> Self {
        let mut columns = vec![(Column::Mark, 1), (Column::Failed, 7)];
        if by_outcome {
            let width = match contents.joins {
                true => JOINED_OUTCOMES_WIDTH,
                false => OUTCOME_WIDTH,
            };
            columns.push((Column::Outcome, width));
        }
        Self::with(columns, width, contents)
    }

    /// Returns the layout of the connections of a group. Their reasons come first.
    pub fn of_connections(width: usize, contents: Contents) -> Self {
        let reason = (Column::Reason, REASON_WIDTH);
        let columns = vec![(Column::Mark, 4), (Column::Failed, 18), reason];
        match names_width(&columns, width) < MIN_NAMES {
            true => Self::new(width, false, contents),
            false => Self::with(columns, width, contents),
        }
    }

    /// Returns a layout of `columns` and those that fit beside them.
    fn with(mut columns: Vec<(Column, usize)>, width: usize, contents: Contents) -> Self {
        let has = |columns: &[(Column, usize)], column| columns.iter().any(|(other, _)| *other == column);
        for (at, step) in STEPS.iter().enumerate() {
            let is_done = match *step {
                Step::Add(Column::Response, _) => !contents.has_turns,
                Step::Add(column, _) => has(&columns, column),
                // The column of outcomes has the text.
                Step::Widen(Column::Failed, _) => has(&columns, Column::Outcome),
                Step::WidenJoined => !contents.joins || has(&columns, Column::Outcome),
                _ => false,
            };
            if is_done {
                continue;
            }
            let wider = step.apply(&columns);
            let min = if at < FIRST_STEPS {
                MIN_NAMES
            } else {
                MIN_NAMES.max(width / 3)
            };
            if names_width(&wider, width) < min {
                break;
            }
            columns = wider;
        }
        let names = names_width(&columns, width);
        let server = (names * 11).div_ceil(20).min(MAX_NAME);
        let client = (names - server).min(MAX_NAME);
        columns.extend([(Column::Client, client), (Column::Server, server)]);
        let position = |column: Column| Column::ORDER.iter().position(|&other| other == column);
        columns.sort_by_key(|&(column, _)| position(column));
        Self { columns }
    }

    /// Returns the sort keys of the columns, in their order.
    pub fn sort_keys(&self) -> impl Iterator<Item = SortKey> {
        self.columns.iter().filter_map(|(column, _)| column.heading().1)
    }

    /// Returns the line of titles and the lines of `rows`.
    pub fn lines(&self, rows: &[ShownRow<'_>], sort: Sort, color: bool) -> Vec<String> {
        let columns = self.columns.iter();
        let shapes: Vec<_> = columns.map(|&(column, width)| (width, column.is_text())).collect();
        let titles = self.columns.iter().map(|&(column, width)| title(column, width, sort));
        let has_open = self.columns.iter().any(|(column, _)| *column == Column::Open);
        let rows = rows.iter().map(|row| {
            let cells = self
                .columns
                .iter()
                .map(|&(column, width)| row.cell(column, width, has_open));
            cells.collect()
        });
        grid(&shapes, titles.collect(), rows, color)
    }
}

/// Returns the width that `columns` leave to the names.
fn names_width(columns: &[(Column, usize)], width: usize) -> usize {
    let others: usize = columns.iter().map(|(_, width)| width + 1).sum();
    width.saturating_sub(others + 1)
}

/// Returns the lines of a table. Each column has a width, and is aligned to the left if it has text.
pub fn grid(
    columns: &[(usize, bool)],
    titles: Vec<Cell>,
    rows: impl Iterator<Item = Vec<Cell>>,
    color: bool,
) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(NOTHING);
    if color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(titles);
    for row in rows {
        table.add_row(row);
    }
    for (at, &(width, is_text)) in columns.iter().enumerate() {
        if let Some(shape) = table.column_mut(at) {
            let gap = u16::from(at + 1 < columns.len());
            shape.set_padding((0, gap));
            shape.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width as u16 + gap)));
            shape.set_cell_alignment(match is_text {
                true => CellAlignment::Left,
                false => CellAlignment::Right,
            });
        }
    }
    table.lines().collect()
}

impl Step {
    fn apply(&self, columns: &[(Column, usize)]) -> Vec<(Column, usize)> {
        let mut columns = columns.to_vec();
        match *self {
            Self::Add(column, width) => columns.push((column, width)),
            Self::Widen(column, to) => widen(&mut columns, column, to),
            Self::WidenJoined => widen(&mut columns, Column::Failed, JOINED_OUTCOMES_WIDTH + 5),
            Self::SplitBytes => {
                columns.retain(|(column, _)| *column != Column::Bytes);
                columns.extend([(Column::Sent, 10), (Column::Received, 10)]);
            }
        }
        columns
    }
}

fn widen(columns: &mut [(Column, usize)], widened: Column, to: usize) {
    for (column, width) in columns {
        if *column == widened {
            *width = to;
        }
    }
}

fn title(column: Column, width: usize, sort: Sort) -> Cell {
    let (title, key) = column.heading();
    let is_sorted = match (sort.key, key) {
        (SortKey::Bytes, Some(SortKey::SentBytes | SortKey::ReceivedBytes)) => true,
        (sort_key, key) => key == Some(sort_key),
    };
    let mark = if sort.descending { "▼" } else { "▲" };
    let title = if is_sorted {
        text::cut(title, width.saturating_sub(1)) + mark
    } else if text::width(title) <= width {
        title.to_owned()
    } else {
        String::new()
    };
    Cell::new(title).add_attribute(Attribute::Bold)
}

/// A row on the screen.
#[derive(Clone, Copy, Debug)]
pub struct ShownRow<'a> {
    row: &'a Row,
    state: RowState,
    span: &'a Span,
    is_selected: bool,
}

impl<'a> ShownRow<'a> {
    pub fn new(RowRef { row, state }: RowRef<'a>, span: &'a Span) -> Self {
        Self {
            row,
            state,
            span,
            is_selected: false,
        }
    }

    /// Marks the row that keys refer to.
    pub fn selected(self, is_selected: bool) -> Self {
        Self { is_selected, ..self }
    }

    /// Returns a cell of the row. `has_open`: whether the table has a column of open connections.
    fn cell(&self, column: Column, width: usize, has_open: bool) -> Cell {
        let (text, color) = match (column, self.row.sums.connecting) {
            // A narrow table has no other column for attempts that wait, and these may fail only minutes later.
            (Column::Failed, 1..) if !has_open && self.row.sums.failed() == 0 => open(&self.row.sums),
            _ => self.content(column, width),
        };
        let mut cell = Cell::new(text::shorten(&text, width));
        if self.is_selected {
            cell = cell.add_attribute(Attribute::Reverse);
        }
        match color {
            Some(color) => cell.fg(color),
            None if self.state == RowState::Quiet => cell.fg(Color::DarkGrey),
            None => cell,
        }
    }

    fn content(&self, column: Column, width: usize) -> (String, Option<Color>) {
        let sums = &self.row.sums;
        let fit = |name: Name| (name.fit(width), None);
        let rate = |bytes: u64| (units::rate(bytes, self.span.rate_ns()), None);
        let quantile = |value: Option<u64>| (value.map_or_else(|| "-".to_owned(), units::time), None);
        let alarm = |number: u64| (units::count(number), (number > 0).then_some(Color::Yellow));
        match column {
            Column::Mark => (self.mark(width), (self.state == RowState::New).then_some(Color::Green)),
            Column::Client => fit(text::client(self.row)),
            Column::Server => fit(text::server(self.row)),
            Column::Outcome => {
                let outcomes = self.row.group.outcome.flatten();
                (outcomes.map_or("-".into(), end_outcomes_text).into_owned(), None)
            }
            Column::Open => open(sums),
            Column::Opened => (units::count(sums.opened), None),
            Column::Closed => (units::count(sums.closed), None),
            Column::Failed => self.failed(width),
            Column::Bytes => rate(sums.rated_sent_bytes().saturating_add(sums.rated_received_bytes())),
            Column::Sent => rate(sums.rated_sent_bytes()),
            Column::Received => rate(sums.rated_received_bytes()),
            Column::P50 => quantile(sums.durations.summary().map(|summary| summary.p50)),
            Column::P95 => quantile(sums.durations.summary().map(|summary| summary.p95)),
            Column::Connect => quantile(sums.connects.summary().map(|summary| summary.p95)),
            Column::Response => {
                let responses = sums.responses.as_deref().and_then(Responses::summary);
                quantile(responses.map(|summary| summary.p95))
            }
            Column::Srtt => quantile(sums.srtts.summary().map(|summary| summary.p50.saturating_mul(1000))),
            Column::Reason => reason(sums, width),
            Column::Retrans => alarm(sums.retransmits),
            Column::Lost => alarm(sums.lost_segments),
        }
    }

    fn mark(&self, width: usize) -> String {
        let mark = match (self.is_selected, self.state) {
            (true, _) => '>',
            (false, RowState::Active) => ' ',
            (false, RowState::New) => '+',
            (false, RowState::Quiet) => '-',
        };
        let end = match self.row.group.direction {
            Some(Direction::Outbound) => "out",
            Some(Direction::Inbound) => "in",
            None => "all",
        };
        text::cut(&format!("{mark}{end}"), width)
    }

    /// Returns the longest text about the failures that fits.
    fn failed(&self, width: usize) -> (String, Option<Color>) {
        let first_fit = |texts: &[String]| first_fit(texts, width);
        if let Some(outcomes) = self.row.sums.main_failure() {
            let (failed, outcome) = (self.row.sums.failed(), end_outcomes_text(outcomes));
            let (exact, brief) = (units::count(failed), units::brief(failed));
            let mut texts = vec![format!("{exact} {outcome}"), format!("{brief} {outcome}")];
            // One outcome is short enough, or the column has space for the number only.
            let available = width.saturating_sub(text::width(&brief) + 1);
            if available >= MIN_OUTCOMES && matches!(outcomes, EndOutcomes::Different { .. }) {
                texts.push(format!("{brief} {}", text::shorten(&outcome, available)));
            }
            texts.extend([exact, brief]);
            return (first_fit(&texts), Some(Color::Red));
        }
        match self.row.last_failure {
            Some(failure) if self.state == RowState::Quiet => {
                let age_ns = self.span.until.0.saturating_sub(failure.time.0);
                let age = units::age(age_ns.try_into().unwrap_or(0));
                let texts = [
                    format!("{} {age} ago", end_outcomes_text(failure.outcomes)),
                    format!("{age} ago"),
                ];
                (first_fit(&texts), None)
            }
            _ => ("-".to_owned(), None),
        }
    }
}

/// Returns the first text that fits, else the last.
fn first_fit(texts: &[String], width: usize) -> String {
    let fit = texts.iter().find(|text| text::width(text) <= width);
    fit.or(texts.last()).cloned().unwrap_or_default()
}

/// Returns the main reason of dropped packets, else of resets, with its number if it fits.
fn reason(sums: &Sums, width: usize) -> (String, Option<Color>) {
    let Some((reason, count)) = sums.drops.main().or(sums.reset_reasons.main()) else {
        return ("-".to_owned(), None);
    };
    let reason = text::harmless(reason);
    let texts = [
        format!("{} {reason}", units::count(count)),
        format!("{} {reason}", units::brief(count)),
        reason,
    ];
    (first_fit(&texts, width), Some(Color::Yellow))
}

/// Returns the number of open connections, with the waiting attempts behind a `+`.
fn open(sums: &Sums) -> (String, Option<Color>) {
    if sums.connecting == 0 {
        return (units::count(sums.open), None);
    }
    let text = format!("{}+{}", units::brief(sums.open), units::brief(sums.connecting));
    (text, Some(Color::Yellow))
}

/// Orders rows by `sort`. Rows that are equal are ordered by their groups, and quiet rows come last.
pub fn order(one: RowRef<'_>, two: RowRef<'_>, sort: Sort) -> Ordering {
    let (one_group, two_group) = (&one.row.group, &two.row.group);
    let by_group = || (one_group.is_other(), one_group).cmp(&(two_group.is_other(), two_group));
    let by_key = sort.key.compare(&one.row.sums, &two.row.sums);
    let ordering = match (sort.key, sort.descending) {
        (SortKey::Group, false) => by_group(),
        (SortKey::Group, true) => by_group().reverse(),
        (_, false) => by_key.then_with(by_group),
        (_, true) => by_key.reverse().then_with(by_group),
    };
    let is_quiet = |row: RowRef<'_>| row.state == RowState::Quiet;
    is_quiet(one).cmp(&is_quiet(two)).then(ordering)
}

/// Returns the titles of the columns that have a sort key.
#[cfg(test)]
pub fn sorted_titles() -> impl Iterator<Item = (&'static str, SortKey)> {
    let headings = Column::ORDER.into_iter().map(Column::heading);
    headings.filter_map(|(title, key)| Some((title, key?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_fit_with_the_mark_of_the_order() {
        for width in MIN_NAMES..=PLAIN_JOINED_WIDTH {
            for (joins, has_turns) in [(false, false), (false, true), (true, true)] {
                let contents = Contents { joins, has_turns };
                let layouts = [
                    Layout::new(width, false, contents),
                    Layout::new(width, true, contents),
                    Layout::of_connections(width, contents),
                ];
                for (column, width) in layouts.into_iter().flat_map(|layout| layout.columns) {
                    let (title, key) = column.heading();
                    let is_cut = key.is_some() && column != Column::Client && title.len() + 1 > width;
                    assert!(!is_cut, "{title} in {width} columns");
                }
            }
        }
    }

    #[test]
    fn with_turns_80_columns_have_the_time_to_an_answer() {
        for has_turns in [false, true] {
            let joins = false;
            let layout = Layout::new(80, false, Contents { joins, has_turns });
            let has_response = layout.columns.iter().any(|(column, _)| *column == Column::Response);
            assert_eq!(has_response, has_turns);
        }
    }
}
