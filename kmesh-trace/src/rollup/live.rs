//! Connections that are open, or connecting, and what has been counted of each so far.

use std::collections::HashMap;
use std::sync::Arc;

use super::group::Group;
use crate::deltas::{Moved, Totals};
use crate::record::{ConnId, Event, Record};

/// Connections kept. What there is no room for is counted whole when it ends.
const MOST: usize = 1 << 19;

/// The number of windows with updates after which a connection without any is not open any more: its close was lost, or
/// never seen. A socket scan that fails now and then makes nothing vanish.
pub(super) const UNTOLD: u64 = 3;

#[derive(Debug)]
struct Entry {
    totals: Totals,
    /// The window in which it was last told of.
    window: u64,
    /// The group that it was counted in, if any.
    group: Option<Arc<Group>>,
}

/// The connections that have been told of and have not ended.
#[derive(Debug, Default)]
pub(super) struct Live {
    entries: HashMap<ConnId, Entry>,
}

impl Live {
    /// What `record`, told in this window, adds.
    pub(super) fn take(&mut self, record: &Record, window: u64) -> Moved {
        let totals = Totals::of(record);
        if record.event == Event::Close {
            let before = self.entries.remove(&record.id);
            return before.map_or_else(
                || totals.first(record),
                |before| totals.most(before.totals).since(before.totals),
            );
        }
        if let Some(entry) = self.entries.get_mut(&record.id) {
            let before = entry.totals;
            entry.totals = totals.most(before);
            entry.window = window;
            return entry.totals.since(before);
        }
        if self.entries.len() >= MOST {
            return Moved::default();
        }
        let moved = totals.first(record);
        self.entries.insert(
            record.id,
            Entry {
                totals,
                window,
                group: None,
            },
        );
        moved
    }

    /// It is counted in this group.
    pub(super) fn counted_in(&mut self, id: ConnId, group: Option<Arc<Group>>) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.group = group;
        }
    }

    /// Whether it is established, if it has not ended.
    pub(super) fn is_established(&self, id: ConnId) -> Option<bool> {
        self.entries.get(&id).map(|entry| entry.totals.established)
    }

    /// The groups of all that are taken to be open after `window`, and whether they are established.
    pub(super) fn open(&self, window: u64) -> impl Iterator<Item = (&Arc<Group>, bool)> {
        self.entries
            .values()
            .filter(move |entry| window - entry.window < UNTOLD)
            .filter_map(|entry| Some((entry.group.as_ref()?, entry.totals.established)))
    }

    /// Makes room if there is none, of what will hardly be told of again.
    pub(super) fn tidy(&mut self, window: u64) {
        if self.entries.len() >= MOST {
            self.entries.retain(|_, entry| window - entry.window < UNTOLD);
        }
    }

    /// None of them is counted in any group.
    pub(super) fn forget_groups(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.group = None);
    }
}
