//! The sums over several windows.

use std::collections::HashMap;
use std::sync::Arc;

use super::Window;
use super::group::Group;
use super::groups::Row;

/// The sums of the windows added so far.
#[derive(Clone, Debug)]
pub struct Totals {
    max_groups: usize,
    rows: Vec<Row>,
    index: HashMap<Arc<Group>, usize>,
}

impl Totals {
    /// Returns totals without a window. Beyond `max_groups`, groups are added up in the group `other`.
    pub fn new(max_groups: usize) -> Self {
        Self {
            max_groups,
            rows: Vec::new(),
            index: HashMap::new(),
        }
    }

    /// Adds a window. Open connections are not summed up: the last window with records counts them.
    pub fn add(&mut self, window: &Window) {
        if window.rows.is_empty() {
            return;
        }
        for row in &mut self.rows {
            (row.sums.open, row.sums.connecting) = (0, 0);
        }
        for row in &window.rows {
            let at = self.slot(&row.group);
            self.rows[at].merge(row);
        }
    }

    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    fn slot(&mut self, group: &Arc<Group>) -> usize {
        if let Some(&at) = self.index.get(group) {
            return at;
        }
        if self.index.len() >= self.max_groups && !group.is_other() {
            return self.slot(&Arc::new(Group::other()));
        }
        self.index.insert(Arc::clone(group), self.rows.len());
        self.rows.push(Row::new(Arc::clone(group)));
        self.rows.len() - 1
    }
}
