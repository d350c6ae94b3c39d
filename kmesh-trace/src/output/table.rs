//! `-o table`: what groups of connections do, window by window.
//!
//! On a terminal, [`Feed`] hands each window to [`super::term`]'s thread and takes what its keys ask for; otherwise
//! [`Blocks`] prints it. Neither ever waits for a person.

mod columns;
mod header;
#[cfg(test)]
mod tests;
mod text;
mod units;
pub mod view;

use std::io::{self, Write};
use std::sync::mpsc::Receiver;

use super::{Sink, Stdout};
use crate::filter::Filter;
use crate::output::NameSourceStatus;
use crate::record::rfc3339::Rfc3339;
use crate::record::{ConnId, Lost, Record, RunInfo, WallTime};
use crate::rollup::{Rollup, Row, Settings, Sort, Window};
use crate::track::delta::Delta;
use columns::{Change, Layout, PLAIN_WIDTH, Shown};
use view::{Ask, compared};

/// Connections that are told of one by one in a window, for who looks at those of a group.
const CONNECTIONS: usize = 5_000;

/// A window, and what the header says besides.
#[derive(Clone, Debug)]
pub struct Told {
    /// The window.
    pub window: Window,
    /// The node's name.
    pub node: String,
    /// Where names come from.
    pub names: String,
    /// Since the first window began, ns.
    pub elapsed_ns: u64,
    /// Since the start.
    pub lost_records: u64,
}

/// What of a table outlives its windows.
#[derive(Debug)]
struct Course {
    node: String,
    began: Option<WallTime>,
    lost_records: u64,
    names: NameSourceStatus,
}

impl Course {
    fn new(info: &RunInfo, names: &NameSourceStatus) -> Self {
        Self {
            node: info.node.clone(),
            began: None,
            lost_records: 0,
            names: names.clone(),
        }
    }

    fn tell(&mut self, window: Window) -> Told {
        let began = *self.began.get_or_insert(window.start);
        Told {
            elapsed_ns: window.end().0.saturating_sub(began.0).try_into().unwrap_or(0),
            window,
            node: self.node.clone(),
            names: self.names.text(),
            lost_records: self.lost_records,
        }
    }
}

/// The table without a terminal: a block of lines a window, the same for the same records.
pub struct Blocks {
    rollup: Rollup,
    course: Course,
    sort: Sort,
    top: usize,
    color: bool,
    before: Vec<Row>,
    out: Stdout,
}

impl Blocks {
    /// Blocks of at most `top` rows.
    pub fn new(
        settings: Settings,
        sort: Sort,
        top: Option<usize>,
        color: bool,
        info: &RunInfo,
        names: &NameSourceStatus,
        out: Stdout,
    ) -> Self {
        Self {
            rollup: Rollup::new(settings),
            course: Course::new(info, names),
            out,
            sort,
            top: top.unwrap_or(usize::MAX),
            color,
            before: Vec::new(),
        }
    }

    fn print(&mut self, windows: Vec<Window>) -> io::Result<()> {
        windows.into_iter().try_for_each(|window| self.print_block(window))
    }

    fn print_block(&mut self, window: Window) -> io::Result<()> {
        if window.rows.is_empty() && self.before.is_empty() {
            return Ok(());
        }
        let told = self.course.tell(window);
        let text = self.out.text();
        writeln!(
            text,
            "{} {}",
            Rfc3339::new(told.window.start).date(),
            header::first(&told, PLAIN_WIDTH)
        )?;
        let mut rows = compared(&told.window.rows, &self.before);
        rows.sort_by(|(one, change), (two, other)| {
            let gone = |change: &Change| *change == Change::Gone;
            gone(change)
                .cmp(&gone(other))
                .then_with(|| columns::order(one, two, self.sort))
        });
        let shown: Vec<_> = rows
            .iter()
            .take(self.top)
            .map(|&(row, change)| Shown {
                row,
                change,
                selected: false,
                window_ns: told.window.length_ns,
            })
            .collect();
        for line in Layout::new(PLAIN_WIDTH).lines(&shown, self.sort, self.color) {
            writeln!(text, "{}", line.trim_end())?;
        }
        writeln!(text)?;
        self.before = told.window.rows;
        self.out.appended()
    }
}

impl Sink for Blocks {
    fn record(&mut self, record: &Record, delta: &Delta) -> io::Result<()> {
        let windows = self.rollup.take(record, delta);
        self.print(windows)
    }

    fn needs_deltas(&self) -> bool {
        true
    }

    fn filtered_close(&mut self, id: ConnId) {
        self.rollup.filtered_close(id);
    }

    fn watermark(&mut self, until: WallTime) -> io::Result<()> {
        let windows = self.rollup.watermark(until);
        self.print(windows)
    }

    fn lost(&mut self, lost: &Lost) -> io::Result<()> {
        self.rollup.lost(lost.lost_records);
        self.course.lost_records = lost.lost_records_total;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Where windows go that a person looks at.
pub trait Screen: Send {
    /// Shows this one from now on. Does not wait.
    fn show(&mut self, told: Told);
}

/// The table on a terminal.
pub struct Feed {
    rollup: Rollup,
    course: Course,
    /// What was typed at the prompt.
    filter: Filter,
    asks: Receiver<Ask>,
    screen: Box<dyn Screen>,
}

impl Feed {
    /// Feeds `screen`, and does what it asks for.
    pub fn new(
        settings: Settings,
        info: &RunInfo,
        names: &NameSourceStatus,
        asks: Receiver<Ask>,
        screen: Box<dyn Screen>,
    ) -> Self {
        Self {
            rollup: Rollup::new(settings).with_connections(CONNECTIONS),
            course: Course::new(info, names),
            filter: Filter::default(),
            asks,
            screen,
        }
    }

    fn show(&mut self, windows: Vec<Window>) {
        for window in windows {
            self.screen.show(self.course.tell(window));
        }
    }

    fn obey(&mut self) {
        for ask in self.asks.try_iter() {
            match ask {
                Ask::Regroup(by) => self.rollup.regroup(by),
                Ask::Filter(filter) => {
                    self.filter = *filter;
                    self.rollup.restart();
                }
                // These are the screen's own.
                Ask::Quit | Ask::Suspend => {}
            }
        }
    }
}

impl Sink for Feed {
    fn record(&mut self, record: &Record, delta: &Delta) -> io::Result<()> {
        let windows = self.rollup.take_if(record, delta, |record| self.filter.passes(record));
        self.show(windows);
        Ok(())
    }

    fn needs_deltas(&self) -> bool {
        true
    }

    fn filtered_close(&mut self, id: ConnId) {
        self.rollup.filtered_close(id);
    }

    fn watermark(&mut self, until: WallTime) -> io::Result<()> {
        let windows = self.rollup.watermark(until);
        self.show(windows);
        self.obey();
        Ok(())
    }

    fn lost(&mut self, lost: &Lost) -> io::Result<()> {
        self.rollup.lost(lost.lost_records);
        self.course.lost_records = lost.lost_records_total;
        Ok(())
    }
}
