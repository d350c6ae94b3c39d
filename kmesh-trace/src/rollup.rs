//! Windows of time: what groups of connections did in each. Pure: time is that of the records.
//!
//! Windows are aligned to the wall clock: with 5 s they begin at seconds 0, 5, 10. What a record tells counts in the window
//! of its time. Of a connection that is told of more than once (`open`, `update`s, `close`) each record adds what is more
//! than in the one before, so that a connection's windows add up to its close, and nothing counts twice.
//!
//! Records come in the order of the kernel's clock, so that a window is over as soon as something later is told. What the
//! wall clock may do to this:
//! - A record up to one window earlier than the present window counts in the present one: it is late, or the clock was set
//!   back a little. No window is ever opened again.
//! - One that is earlier still shows that the clock was set back: the present window ends and one at the earlier time
//!   begins, which may so come twice.
//! - Windows of which nothing is told (the machine slept, the clock was set forward) have no groups, whatever is open then.
//!   What an open connection moved meanwhile counts where it is next told of.

mod group;
mod groups;
mod open;
mod quantiles;
mod sort;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use group::{By, Group, GroupEnd, Key};
pub use groups::{Common, Row, Sums};
pub use quantiles::{ERROR, QuantileSummary, Quantiles};
pub use sort::{Sort, SortKey};

use crate::record::{ConnId, Event, Record, WallTime};
use crate::track::delta::Delta;
use groups::Groups;
use open::OpenConnections;

/// What there is to roll up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Into which groups.
    pub by: By,
    /// Length of a window.
    pub interval: Duration,
    /// Groups of a window; the rest folds into one.
    pub max_groups: usize,
}

/// A window that is over.
#[derive(Clone, Debug)]
pub struct Window {
    /// When it began.
    pub start: WallTime,
    /// How long it was, ns.
    pub length_ns: u64,
    /// Its groups, each once, in their order; the one of all others last.
    pub rows: Vec<Row>,
    /// Its connections one by one, if they are wanted.
    pub connections: Vec<Row>,
}

impl Window {
    /// When it ended.
    pub fn end(&self) -> WallTime {
        WallTime(self.start.0.saturating_add_unsigned(self.length_ns))
    }
}

/// Turns records into windows.
#[derive(Debug)]
pub struct Rollup {
    length_ns: i64,
    max_groups: usize,
    /// The present window's start, once there is one.
    start_ns: Option<i64>,
    /// Whether the present window had a record.
    has_records: bool,
    /// The number of windows so far that had updates. It tells what is recent, where neither the wall clock can (it may be
    /// set) nor the number of windows (socket scans may be less frequent).
    number: u64,
    /// Whether the present window had an update.
    has_updates: bool,
    groups: Groups,
    connections: Option<Groups>,
    open: OpenConnections,
}

impl Rollup {
    /// Nothing is told yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            length_ns: i64::try_from(settings.interval.as_nanos()).unwrap_or(i64::MAX).max(1),
            max_groups: settings.max_groups,
            start_ns: None,
            has_records: false,
            number: 0,
            has_updates: false,
            groups: Groups::new(settings.by, settings.max_groups),
            connections: None,
            open: OpenConnections::default(),
        }
    }

    /// Tells of at most so many connections of a window one by one, too.
    pub fn with_connections(mut self, most: usize) -> Self {
        self.connections = Some(Groups::new(By::new(&[Key::Connection]), most));
        self
    }

    /// Takes a record and what it adds. Returns the windows that are over by that, as [`Self::watermark`] does.
    pub fn take(&mut self, record: &Record, delta: &Delta) -> Vec<Window> {
        self.take_if(record, delta, |_| true)
    }

    /// Takes a record, and counts it only if it is wanted.
    pub fn take_if(&mut self, record: &Record, delta: &Delta, is_wanted: impl FnOnce(&Record) -> bool) -> Vec<Window> {
        let over = self.advance(record.time);
        let start_ns = self.window_of(record.time);
        self.start_ns.get_or_insert(start_ns);
        self.has_records = true;
        self.has_updates |= record.event == Event::Update;
        self.open.take(record, self.number);
        let group = is_wanted(record).then(|| {
            let row = self.groups.add(record, delta);
            if let Some(connections) = &mut self.connections {
                connections.list(record, delta, row);
            }
            Arc::clone(&row.group)
        });
        self.open.counted_in(record.id, group);
        over
    }

    /// Takes that all records before `until` have come. Returns the windows that are over by that: the present one, and of
    /// those after it, in which nothing happened, the first. It shows which groups went quiet.
    pub fn watermark(&mut self, until: WallTime) -> Vec<Window> {
        self.advance(until)
    }

    /// Forgets a connection that no longer passes the filter.
    pub fn exclude(&mut self, id: ConnId) {
        self.open.remove(id);
    }

    /// Takes a loss of closes: silent connections may have ended.
    pub fn lost(&mut self, closes: u64) {
        self.open.lost(closes);
    }

    /// Groups otherwise from now on. The present window begins anew.
    pub fn regroup(&mut self, by: By) {
        self.groups = Groups::new(by, self.max_groups);
        self.restart();
    }

    /// The present window begins anew, with nothing counted in it.
    pub fn restart(&mut self) {
        self.groups.take();
        if let Some(connections) = &mut self.connections {
            connections.take();
        }
        self.open.forget_groups();
    }

    fn window_of(&self, time: WallTime) -> i64 {
        time.0.saturating_sub(time.0.rem_euclid(self.length_ns))
    }

    fn advance(&mut self, now: WallTime) -> Vec<Window> {
        let Some(start_ns) = self.start_ns else {
            return Vec::new();
        };
        let next_ns = start_ns.saturating_add(self.length_ns);
        let is_set_back = now.0 < start_ns.saturating_sub(self.length_ns);
        if now.0 < next_ns && !is_set_back {
            return Vec::new();
        }
        self.start_ns = Some(self.window_of(now));
        let mut windows = vec![self.close(start_ns)];
        if now.0 >= next_ns.saturating_add(self.length_ns) && now < WallTime::MAX {
            windows.push(self.close(next_ns));
        }
        windows
    }

    fn close(&mut self, start_ns: i64) -> Window {
        if std::mem::take(&mut self.has_records) {
            self.open.tidy(self.number);
            self.groups.add_open(self.open.groups());
            self.number += u64::from(std::mem::take(&mut self.has_updates));
        }
        let mut connections = Vec::new();
        if let Some(groups) = &mut self.connections {
            for row in groups.rows_mut() {
                let established = row.group.id.and_then(|id| self.open.is_established(id));
                row.sums.open = u64::from(established == Some(true));
                row.sums.connecting = u64::from(established == Some(false));
            }
            connections = groups.take();
        }
        Window {
            start: WallTime(start_ns),
            length_ns: self.length_ns.unsigned_abs(),
            rows: self.groups.take(),
            connections,
        }
    }
}
