//! Groups connections by window of time. Pure: time is the time of the records.
//!
//! Windows are aligned to the wall clock: with 5 s they start at seconds 0, 5 and 10. A record counts in the window of
//! its time. If a connection has several records (`open`, `update`s, `close`), each adds the difference to the one
//! before. The windows of a connection thus add up to its close, and nothing counts twice.
//!
//! Records arrive in the order of the kernel's clock, so a window ends as soon as a later time is reported. The wall
//! clock may be set, though:
//! - A record up to one window before the current window counts in the current window: it is late, or the clock was set
//!   back a little. A window that ended never opens again.
//! - An earlier record shows that the clock was set back. The current window ends, and a window at the earlier time
//!   starts. There may thus be two windows of the same time.
//! - Windows without records (the machine slept, the clock was set forward, or a socket scan was late) have no groups,
//!   except with [`Rollup::with_open_groups`]. The bytes that an open connection moved in such a window count at its
//!   next record.

mod group;
mod groups;
mod open;
mod quantiles;
mod responses;
mod sort;
#[cfg(test)]
mod tests;
mod totals;

use std::time::Duration;

pub use group::{By, Group, GroupEnd, Key};
pub use groups::{Common, Failure, Row, Sums};
pub use quantiles::{ERROR, QuantileSummary, Quantiles};
pub use responses::Responses;
pub use sort::{Sort, SortKey};
pub use totals::Totals;

use crate::record::{ConnId, Event, Record, WallTime};
use crate::track::delta::Delta;
use groups::Groups;
use open::{CountedIn, OpenConnections};

/// The settings of a [`Rollup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RollupSettings {
    pub by: By,
    /// The length of a window. `None`: one window for the whole run.
    pub interval: Option<Duration>,
    /// The maximum number of groups in a window. Further connections count in the group `other`.
    pub max_groups: usize,
}

/// A window that has ended.
#[derive(Clone, Debug)]
pub struct Window {
    pub start: WallTime,
    /// The length of the whole window, ns.
    pub length_ns: u64,
    /// The first instant that was traced, at `start` or later.
    pub covered_from: WallTime,
    /// The last instant that was traced, at [`Self::end`] or before.
    pub covered_until: WallTime,
    /// The groups in their order. The group `other` is the last one.
    pub rows: Vec<Row>,
    /// The connections, if [`Rollup::with_connections`] asks for them.
    pub connections: Vec<Row>,
}

impl Window {
    pub fn end(&self) -> WallTime {
        WallTime(self.start.0.saturating_add_unsigned(self.length_ns))
    }

    /// Returns the time that was traced, ns. Rates refer to it.
    pub fn covered_ns(&self) -> u64 {
        let covered = self.covered_until.0.saturating_sub(self.covered_from.0);
        covered.try_into().unwrap_or(0)
    }

    /// Returns whether tracing began or ended within the window.
    pub fn is_partial(&self) -> bool {
        self.covered_ns() < self.length_ns
    }
}

/// The window that records count in now.
#[derive(Clone, Copy, Debug)]
struct Current {
    start_ns: i64,
    covered_from: WallTime,
    /// The latest time that was reported in this window.
    latest: WallTime,
    has_records: bool,
    has_updates: bool,
}

/// Groups records by window.
#[derive(Debug)]
pub struct Rollup {
    /// `None`: one window for the whole run.
    length_ns: Option<i64>,
    max_groups: usize,
    /// `None` before the first time is reported.
    current: Option<Current>,
    /// The number of windows with updates so far. It measures how long a connection has had no update. Neither the wall
    /// clock, which may be set, nor the number of all windows can: socket scans may be less frequent than windows.
    scanned_windows: u64,
    groups: Groups,
    connections: Option<Groups>,
    open: OpenConnections,
    /// Whether a window without records has the groups of open connections.
    has_open_groups: bool,
    /// Whether an early record is always late, and never shows that the clock was set back.
    may_be_late: bool,
}

impl Rollup {
    pub fn new(settings: RollupSettings) -> Self {
        let length_ns = |interval: Duration| i64::try_from(interval.as_nanos()).unwrap_or(i64::MAX).max(1);
        Self {
            length_ns: settings.interval.map(length_ns),
            max_groups: settings.max_groups,
            current: None,
            scanned_windows: 0,
            groups: Groups::new(settings.by, settings.max_groups),
            connections: None,
            open: OpenConnections::default(),
            has_open_groups: false,
            may_be_late: false,
        }
    }

    /// Also lists up to `max` connections of each window.
    pub fn with_connections(mut self, max: usize) -> Self {
        self.connections = Some(Groups::new(By::new(&[Key::Connection]), max));
        self
    }

    /// Counts open connections in windows without records, too.
    pub fn with_open_groups(mut self) -> Self {
        self.has_open_groups = true;
        self
    }

    /// Sets whether records may be late by more than a window. They count in the current window, then.
    pub fn with_late_records(mut self, may_be_late: bool) -> Self {
        self.may_be_late = may_be_late;
        self
    }

    /// Counts a record and its delta. Returns the windows that this ends, as [`Self::watermark`] does.
    pub fn take(&mut self, record: &Record, delta: &Delta) -> Vec<Window> {
        self.take_if(record, delta, |_| true)
    }

    /// Takes a record, and counts it if `is_wanted`.
    pub fn take_if(&mut self, record: &Record, delta: &Delta, is_wanted: impl FnOnce(&Record) -> bool) -> Vec<Window> {
        let ended = self.advance(record.time);
        if let Some(current) = &mut self.current {
            current.has_records = true;
            current.has_updates |= record.event == Event::Update;
        }
        self.open.take(record, self.scanned_windows);
        let counted_in = is_wanted(record).then(|| {
            let row = self.groups.add(record, delta);
            if let Some(connections) = &mut self.connections {
                connections.list(record, delta, row);
            }
            CountedIn::new(&row.group, record)
        });
        self.open.set_counted_in(record.id, counted_in);
        ended
    }

    /// Reports that all records before `until` were taken. Returns the windows that this ends: the current one and, of
    /// the windows without records after it, only the first, which shows which groups went quiet. [`WallTime::MAX`]
    /// ends the run.
    pub fn watermark(&mut self, until: WallTime) -> Vec<Window> {
        self.advance(until)
    }

    /// Forgets a connection: its close or its attempt does not pass the filter.
    pub fn exclude(&mut self, id: ConnId) {
        self.open.remove(id);
    }

    /// Reports lost closes. Open connections without updates may have closed.
    pub fn lost(&mut self, closes: u64) {
        self.open.lost(closes);
    }

    /// Groups by other keys from now on, and restarts the current window.
    pub fn regroup(&mut self, by: By) {
        self.groups = Groups::new(by, self.max_groups);
        self.restart();
    }

    /// Restarts the current window: everything counted in it is dropped.
    pub fn restart(&mut self) {
        self.groups.take();
        if let Some(connections) = &mut self.connections {
            connections.take();
        }
        self.open.reset_groups();
        if let Some(current) = &mut self.current {
            current.covered_from = current.latest;
        }
    }

    /// Returns the start of the window that contains `time`.
    fn window_start(&self, time: WallTime) -> i64 {
        match self.length_ns {
            Some(length_ns) => time.0.saturating_sub(time.0.rem_euclid(length_ns)),
            None => time.0,
        }
    }

    fn advance(&mut self, now: WallTime) -> Vec<Window> {
        let is_run_end = now == WallTime::MAX;
        let Some(current) = &mut self.current else {
            if !is_run_end {
                self.open_window(now);
            }
            return Vec::new();
        };
        let length_ns = self.length_ns.unwrap_or(i64::MAX);
        let next_ns = current.start_ns.saturating_add(length_ns);
        let is_set_back = !self.may_be_late && now.0 < current.start_ns.saturating_sub(length_ns);
        if now.0 < next_ns && !is_set_back {
            current.latest = current.latest.max(now);
            return Vec::new();
        }
        let mut current = *current;
        if !is_set_back && !is_run_end {
            current.latest = WallTime(next_ns);
        }
        self.current = None;
        if is_run_end {
            // Without records, a rest of a window shows nothing.
            return if current.has_records {
                vec![self.close(current)]
            } else {
                Vec::new()
            };
        }
        let mut windows = vec![self.close(current)];
        if now.0 >= next_ns.saturating_add(length_ns) {
            windows.push(self.close(Current {
                start_ns: next_ns,
                covered_from: WallTime(next_ns),
                latest: WallTime(next_ns.saturating_add(length_ns)),
                has_records: false,
                has_updates: false,
            }));
        }
        self.open_window(now);
        if !is_set_back && let Some(current) = &mut self.current {
            current.covered_from = WallTime(current.start_ns);
        }
        windows
    }

    fn open_window(&mut self, now: WallTime) {
        self.current = Some(Current {
            start_ns: self.window_start(now),
            covered_from: now,
            latest: now,
            has_records: false,
            has_updates: false,
        });
    }

    fn close(&mut self, current: Current) -> Window {
        if current.has_records || self.has_open_groups {
            self.open.tidy(self.scanned_windows);
            self.groups.add_open(self.open.groups());
            self.scanned_windows += u64::from(current.has_updates);
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
        let Current {
            start_ns,
            covered_from,
            latest,
            ..
        } = current;
        let covered_ns = latest.0.saturating_sub(covered_from.0).unsigned_abs();
        Window {
            start: WallTime(start_ns),
            length_ns: self.length_ns.map_or(covered_ns, i64::unsigned_abs),
            covered_from,
            covered_until: latest,
            rows: self.groups.take(),
            connections,
        }
    }
}
