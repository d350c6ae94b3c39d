//! `-o table`: what groups of connections do, window by window.
//!
//! On a terminal, [`TuiTable`] adds each window to the [`History`](history::History), which the thread of
//! [`super::term`] shows. Otherwise [`TextTable`] prints it. Neither waits for the user.

mod columns;
mod draw;
mod header;
mod help;
pub mod history;
mod listeners;
mod prompt;
mod quiet;
#[cfg(test)]
mod tests;
mod text;
pub(super) mod units;
pub mod view;

use std::io::{self, Write};
use std::sync::mpsc::Receiver;

use super::{Sink, Stdout};
use crate::config::{RollupConfig, TimeFormat};
use crate::filter::Filter;
use crate::output::NameSourceStatus;
use crate::record::{ConnId, Lost, Record, RunInfo, WallTime};
use crate::rollup::{By, Key, Rollup, RollupSettings, Row, Sort, Window};
use crate::track::delta::Delta;
use columns::{Contents, Layout, PLAIN_JOINED_WIDTH, PLAIN_WIDTH, ShownRow};
use history::SharedHistory;
use listeners::{ListenerRow, Listeners};
use quiet::{KnownGroups, RowRef, TableRow};
use view::UiCommand;

/// The maximum number of connections of a window that are listed for the page of a group.
const MAX_CONNECTIONS: usize = 5_000;

/// The time that rates refer to.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub from: WallTime,
    pub until: WallTime,
    /// Whether tracing began or ended within the window.
    pub is_partial: bool,
}

impl Span {
    fn of(window: &Window) -> Self {
        Self {
            from: window.covered_from,
            until: window.covered_until,
            is_partial: window.is_partial(),
        }
    }

    fn covered_ns(&self) -> u64 {
        self.until.0.saturating_sub(self.from.0).try_into().unwrap_or(0)
    }

    /// Returns the time that rates are computed over, ns. A connection that closes right after the start of a window
    /// moved its bytes before, so a shorter time would give absurd rates.
    fn rate_ns(&self) -> u64 {
        const MIN_RATE_NS: u64 = 100_000_000;
        self.covered_ns().max(MIN_RATE_NS)
    }
}

/// A window as the table shows it.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The number of the frame in the run.
    number: u64,
    span: Span,
    rows: Vec<TableRow>,
    /// The connections of the window, for the pages of groups.
    connections: Vec<Row>,
    listeners: Vec<ListenerRow>,
    /// Whether any listener was reported so far.
    has_listener_reports: bool,
    node: String,
    /// The text about the name sources.
    names: String,
    /// The time since tracing began, ns.
    elapsed_ns: u64,
    /// The number of records lost since tracing began.
    lost_records: u64,
    time_format: TimeFormat,
    /// Whether turns are measured: there were some so far.
    has_turns: bool,
}

impl Frame {
    /// Returns the number of all rows.
    fn len(&self) -> usize {
        self.rows.len() + self.connections.len() + self.listeners.len()
    }
}

/// The state of a table that spans its windows.
#[derive(Debug)]
pub struct Session {
    node: String,
    names: NameSourceStatus,
    /// The first instant that was traced.
    began: Option<WallTime>,
    lost_records: u64,
    has_turns: bool,
    groups: KnownGroups,
    time_format: TimeFormat,
}

impl Session {
    /// Returns the state before the first window.
    pub fn new(info: &RunInfo, names: &NameSourceStatus, time_format: TimeFormat) -> Self {
        Self {
            node: info.node.clone(),
            names: names.clone(),
            began: None,
            lost_records: 0,
            has_turns: false,
            groups: KnownGroups::default(),
            time_format,
        }
    }

    fn frame(&mut self, window: Window) -> Frame {
        let span = Span::of(&window);
        let began = *self.began.get_or_insert(span.from);
        self.has_turns |= window.rows.iter().any(|row| row.sums.responses.is_some());
        Frame {
            number: 0,
            span,
            rows: self.groups.add(window.rows),
            connections: window.connections,
            listeners: Vec::new(),
            has_listener_reports: false,
            node: self.node.clone(),
            names: self.names.text(),
            elapsed_ns: span.until.0.saturating_sub(began.0).try_into().unwrap_or(0),
            lost_records: self.lost_records,
            time_format: self.time_format,
            has_turns: self.has_turns,
        }
    }
}

/// The table without a terminal: one block of lines per window.
pub struct TextTable {
    rollup: Rollup,
    session: Session,
    sort: Sort,
    max_rows: usize,
    by: By,
    joins: bool,
    color: bool,
    out: Stdout,
}

impl TextTable {
    pub fn new(config: &RollupConfig, color: bool, session: Session, out: Stdout) -> Self {
        Self {
            rollup: Rollup::new(config.settings)
                .with_open_groups()
                .with_late_records(config.may_be_late),
            session,
            sort: config.sort,
            max_rows: config.top.unwrap_or(usize::MAX),
            by: config.settings.by,
            joins: config.joins,
            color,
            out,
        }
    }

    fn print(&mut self, windows: Vec<Window>) -> io::Result<()> {
        windows.into_iter().try_for_each(|window| self.print_block(window))
    }

    fn print_block(&mut self, window: Window) -> io::Result<()> {
        let frame = self.session.frame(window);
        if frame.rows.is_empty() {
            return Ok(());
        }
        let width = match self.joins {
            true => PLAIN_JOINED_WIDTH,
            false => PLAIN_WIDTH,
        };
        let text = self.out.text();
        writeln!(text, "{}", header::dated_line(&frame, width))?;
        let mut rows: Vec<RowRef<'_>> = frame.rows.iter().map(RowRef::from).collect();
        rows.sort_by(|&one, &two| columns::order(one, two, self.sort));
        rows.truncate(self.max_rows);
        let shown: Vec<_> = rows.into_iter().map(|row| ShownRow::new(row, &frame.span)).collect();
        let contents = Contents {
            joins: self.joins,
            has_turns: frame.has_turns,
        };
        let layout = Layout::new(width, self.by.has(Key::Outcome), contents);
        for line in layout.lines(&shown, self.sort, self.color) {
            writeln!(text, "{}", line.trim_end())?;
        }
        writeln!(text)?;
        self.out.appended()
    }
}

impl Sink for TextTable {
    fn record(&mut self, record: &Record, delta: &Delta) -> io::Result<()> {
        let windows = self.rollup.take(record, delta);
        self.print(windows)
    }

    fn needs_deltas(&self) -> bool {
        true
    }

    fn exclude(&mut self, id: ConnId) {
        self.rollup.exclude(id);
    }

    fn watermark(&mut self, until: WallTime) -> io::Result<()> {
        let windows = self.rollup.watermark(until);
        self.print(windows)
    }

    fn lost(&mut self, lost: &Lost) -> io::Result<()> {
        self.rollup.lost(lost.lost_records);
        self.session.lost_records = lost.lost_records_total;
        Ok(())
    }

    fn set_info(&mut self, info: &RunInfo) {
        self.session.node.clone_from(&info.node);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Returns the rollup of a table on a terminal.
fn rollup(settings: RollupSettings, may_be_late: bool) -> Rollup {
    Rollup::new(settings)
        .with_connections(MAX_CONNECTIONS)
        .with_open_groups()
        .with_late_records(may_be_late)
}

/// Draws the history of a table.
pub trait Screen: Send {
    /// Draws the history anew, because it has changed. Does not wait.
    fn refresh(&mut self);
}

/// The table on a terminal.
pub struct TuiTable {
    settings: RollupSettings,
    may_be_late: bool,
    rollup: Rollup,
    session: Session,
    /// Whether a pass over the records has ended. A replay may pass over them again, for other groups or another
    /// filter.
    is_pass_over: bool,
    /// The filter that the user typed at the prompt.
    filter: Filter,
    listeners: Listeners,
    history: SharedHistory,
    commands: Receiver<UiCommand>,
    screen: Box<dyn Screen>,
}

impl TuiTable {
    /// Returns the sink that fills `history`, which `screen` shows, and follows the commands of the user.
    pub fn new(
        config: &RollupConfig,
        session: Session,
        history: SharedHistory,
        commands: Receiver<UiCommand>,
        screen: Box<dyn Screen>,
    ) -> Self {
        Self {
            settings: config.settings,
            may_be_late: config.may_be_late,
            rollup: rollup(config.settings, config.may_be_late),
            session,
            is_pass_over: false,
            filter: Filter::default(),
            listeners: Listeners::default(),
            history,
            commands,
            screen,
        }
    }

    fn show(&mut self, windows: Vec<Window>) {
        if windows.is_empty() {
            return;
        }
        for window in windows {
            self.history.lock().add_to_totals(&window);
            let mut frame = self.session.frame(window);
            frame.listeners = self.listeners.rows(&self.filter, &frame.span);
            frame.has_listener_reports = self.listeners.has_reports();
            self.history.lock().push(frame);
        }
        self.screen.refresh();
    }

    /// Forgets the last pass over the records, if there was one.
    fn start_pass(&mut self) {
        if !std::mem::take(&mut self.is_pass_over) {
            return;
        }
        self.follow_commands();
        self.rollup = rollup(self.settings, self.may_be_late);
        self.session.began = None;
        self.listeners.clear();
        self.session.groups.clear();
        self.history.lock().clear();
    }

    fn follow_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                UiCommand::Regroup(by) => {
                    self.settings.by = by;
                    self.rollup.regroup(by);
                }
                UiCommand::Filter(filter) => {
                    self.filter = *filter;
                    self.rollup.restart();
                }
                // The screen's thread handles these itself.
                UiCommand::Quit | UiCommand::Suspend => continue,
            }
            self.session.groups.clear();
            self.history.lock().clear();
        }
    }
}

impl Sink for TuiTable {
    fn record(&mut self, record: &Record, delta: &Delta) -> io::Result<()> {
        self.start_pass();
        let windows = self.rollup.take_if(record, delta, |record| self.filter.passes(record));
        self.show(windows);
        Ok(())
    }

    fn needs_deltas(&self) -> bool {
        true
    }

    fn exclude(&mut self, id: ConnId) {
        self.rollup.exclude(id);
        self.listeners.remove(id);
    }

    fn report(&mut self, record: &Record) -> io::Result<()> {
        self.start_pass();
        self.listeners.report(record);
        Ok(())
    }

    fn watermark(&mut self, until: WallTime) -> io::Result<()> {
        self.start_pass();
        let windows = self.rollup.watermark(until);
        self.show(windows);
        self.follow_commands();
        Ok(())
    }

    fn lost(&mut self, lost: &Lost) -> io::Result<()> {
        self.rollup.lost(lost.lost_records);
        self.session.lost_records = lost.lost_records_total;
        Ok(())
    }

    fn set_info(&mut self, info: &RunInfo) {
        self.session.node.clone_from(&info.node);
    }

    fn finish(&mut self) -> io::Result<()> {
        self.is_pass_over = true;
        self.history.lock().complete();
        self.screen.refresh();
        Ok(())
    }
}
