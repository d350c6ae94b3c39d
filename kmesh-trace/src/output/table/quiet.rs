//! Groups that went quiet: the table shows them for some more windows.

use std::collections::HashMap;
use std::sync::Arc;

use crate::rollup::{Group, Row, Sums};

/// The number of windows for which a group that failed stays in the table after it went quiet.
const FAILED_WINDOWS: u32 = 12;
/// The number of windows for which any other group stays.
const WINDOWS: u32 = 2;
/// The maximum number of quiet groups.
const MAX_QUIET: usize = 10_000;

/// A row of the table.
#[derive(Clone, Debug)]
pub struct TableRow {
    pub row: Row,
    pub state: RowState,
}

/// A reference to a row of the table.
#[derive(Clone, Copy, Debug)]
pub struct RowRef<'a> {
    pub row: &'a Row,
    pub state: RowState,
}

impl<'a> From<&'a TableRow> for RowRef<'a> {
    fn from(TableRow { row, state }: &'a TableRow) -> Self {
        Self { row, state: *state }
    }
}

/// The difference of a row to the window before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowState {
    /// The group was in the window before.
    Active,
    /// The group was not in the window before.
    New,
    /// The group has no record in this window. Its sums are zero.
    Quiet,
}

#[derive(Debug)]
struct Known {
    /// The last row, without its sums.
    row: Row,
    /// The number of windows without a record.
    quiet_windows: u32,
}

/// The groups of the last windows.
#[derive(Debug, Default)]
pub struct KnownGroups {
    groups: HashMap<Arc<Group>, Known>,
    has_windows: bool,
}

impl KnownGroups {
    /// Adds the rows of a window. Returns them with the rows of quiet groups.
    pub fn add(&mut self, rows: Vec<Row>) -> Vec<TableRow> {
        let mut quiet = std::mem::take(&mut self.groups);
        let mut all: Vec<_> = rows
            .into_iter()
            .map(|mut row| {
                let known = quiet.remove(&row.group);
                let was_active = known.as_ref().is_some_and(|known| known.quiet_windows == 0);
                row.last_failure = row.last_failure.or(known.and_then(|known| known.row.last_failure));
                let last = Known {
                    row: Row {
                        sums: Sums::default(),
                        ..row.clone()
                    },
                    quiet_windows: 0,
                };
                self.groups.insert(Arc::clone(&row.group), last);
                let state = match self.has_windows && !was_active {
                    true => RowState::New,
                    false => RowState::Active,
                };
                TableRow { row, state }
            })
            .collect();
        self.has_windows = true;
        let mut quiet: Vec<_> = quiet.into_values().filter_map(Known::next_quiet).collect();
        quiet
            .sort_unstable_by(|one, two| (one.quiet_windows, &one.row.group).cmp(&(two.quiet_windows, &two.row.group)));
        quiet.truncate(MAX_QUIET);
        for known in quiet {
            all.push(TableRow {
                row: known.row.clone(),
                state: RowState::Quiet,
            });
            self.groups.insert(Arc::clone(&known.row.group), known);
        }
        all
    }

    /// Forgets all groups, because others will follow.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Known {
    /// Returns the group after one more quiet window. `None` if it leaves the table.
    fn next_quiet(mut self) -> Option<Self> {
        self.quiet_windows += 1;
        let max = match self.row.last_failure {
            Some(_) => FAILED_WINDOWS,
            None => WINDOWS,
        };
        (self.quiet_windows <= max).then_some(self)
    }
}
