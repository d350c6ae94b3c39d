//! The connections that are open or connecting, and the group that each counts in.

use std::collections::HashMap;
use std::sync::Arc;

use super::group::Group;
use crate::record::{ConnId, Event, Record};

/// The maximum number of connections. Those beyond are not counted as open.
const MAX_CONNECTIONS: usize = 1 << 19;

/// The number of windows with updates after which a connection without any is silent. Silence is no end: no socket scan
/// reaches a connection that nobody has accepted. But where closes were lost, those of silent connections are the likely ones.
pub(super) const SILENT_AFTER: u64 = 3;

#[derive(Debug)]
struct Entry {
    is_established: bool,
    /// The window of its last record.
    window: u64,
    /// The group that it was counted in, if any.
    group: Option<Arc<Group>>,
}

/// The connections that have records and have not ended.
#[derive(Debug, Default)]
pub(super) struct OpenConnections {
    entries: HashMap<ConnId, Entry>,
    /// The number of lost closes that no connection has been taken for.
    lost_closes: u64,
}

impl OpenConnections {
    /// Takes a record of this window.
    pub(super) fn take(&mut self, record: &Record, window: u64) {
        if record.event == Event::Close {
            self.entries.remove(&record.id);
        } else if let Some(entry) = self.entries.get_mut(&record.id) {
            // A scan may have visited a socket just before its `open` was reported.
            entry.is_established |= record.established;
            entry.window = window;
        } else if self.entries.len() < MAX_CONNECTIONS {
            let entry = Entry {
                is_established: record.established,
                window,
                group: None,
            };
            self.entries.insert(record.id, entry);
        }
    }

    /// Sets the group that a connection counts in.
    pub(super) fn counted_in(&mut self, id: ConnId, group: Option<Arc<Group>>) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.group = group;
        }
    }

    /// Whether it is established, if it has not ended.
    pub(super) fn is_established(&self, id: ConnId) -> Option<bool> {
        self.entries.get(&id).map(|entry| entry.is_established)
    }

    /// Forgets a connection that has ended without a record here.
    pub(super) fn remove(&mut self, id: ConnId) {
        self.entries.remove(&id);
    }

    /// Takes note of closes that were lost.
    pub(super) fn lost(&mut self, closes: u64) {
        self.lost_closes = self.lost_closes.saturating_add(closes);
    }

    /// The groups of all that are open, and whether they are established.
    pub(super) fn groups(&self) -> impl Iterator<Item = (&Arc<Group>, bool)> {
        self.entries
            .values()
            .filter_map(|entry| Some((entry.group.as_ref()?, entry.is_established)))
    }

    /// Takes as many silent connections for ended as closes were lost, the longest silent ones first. Where there is no room,
    /// forgets all that are silent.
    pub(super) fn tidy(&mut self, window: u64) {
        let is_silent = |entry: &Entry| window - entry.window >= SILENT_AFTER;
        if self.entries.len() >= MAX_CONNECTIONS {
            self.entries.retain(|_, entry| !is_silent(entry));
        }
        if self.lost_closes == 0 {
            return;
        }
        let silent = self.entries.iter().filter(|(_, entry)| is_silent(entry));
        let mut silent: Vec<_> = silent.map(|(id, entry)| (entry.window, *id)).collect();
        silent.sort_unstable_by_key(|(window, _)| *window);
        for (_, id) in silent
            .into_iter()
            .take(usize::try_from(self.lost_closes).unwrap_or(usize::MAX))
        {
            self.lost_closes -= 1;
            self.entries.remove(&id);
        }
    }

    /// None of them is counted in any group.
    pub(super) fn forget_groups(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.group = None);
    }
}
