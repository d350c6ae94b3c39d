//! The connections that are open or connecting, and the group that each counts in.

use std::collections::HashMap;
use std::sync::Arc;

use super::group::Group;
use crate::record::{Comm, ConnId, Event, Record};

/// The maximum number of connections. Those beyond are not counted as open.
const MAX_CONNECTIONS: usize = 1 << 19;

/// The number of windows with updates after which a connection without an update is silent. A silent connection may
/// still be open: no socket scan reaches a connection that was never accepted. But if closes were lost, silent
/// connections are the likely ones.
pub(super) const SILENT_AFTER: u64 = 3;

/// The group of an open connection, and the facts that its row shows.
#[derive(Clone, Debug)]
pub(super) struct CountedIn {
    pub(super) group: Arc<Group>,
    pub(super) port: u16,
    pub(super) comm: Option<Comm>,
}

impl CountedIn {
    pub(super) fn new(group: &Arc<Group>, record: &Record) -> Self {
        Self {
            group: Arc::clone(group),
            port: record.dst.port(),
            comm: record.process.as_ref().map(|process| process.comm),
        }
    }
}

#[derive(Debug)]
struct Entry {
    is_established: bool,
    /// The number of scanned windows at the last record.
    window: u64,
    /// `None` if the connection is not counted.
    counted_in: Option<CountedIn>,
}

/// The connections that have records and have not ended.
#[derive(Debug, Default)]
pub(super) struct OpenConnections {
    entries: HashMap<ConnId, Entry>,
    /// The number of lost closes for which no connection was removed yet.
    lost_closes: u64,
}

impl OpenConnections {
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
                counted_in: None,
            };
            self.entries.insert(record.id, entry);
        }
    }

    pub(super) fn set_counted_in(&mut self, id: ConnId, counted_in: Option<CountedIn>) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.counted_in = counted_in;
        }
    }

    /// Returns whether a connection is established. `None` if it has ended.
    pub(super) fn is_established(&self, id: ConnId) -> Option<bool> {
        self.entries.get(&id).map(|entry| entry.is_established)
    }

    pub(super) fn remove(&mut self, id: ConnId) {
        self.entries.remove(&id);
    }

    pub(super) fn lost(&mut self, closes: u64) {
        self.lost_closes = self.lost_closes.saturating_add(closes);
    }

    /// Iterates over the groups of all open connections. `bool`: whether the connection is established.
    pub(super) fn groups(&self) -> impl Iterator<Item = (&CountedIn, bool)> {
        self.entries
            .values()
            .filter_map(|entry| Some((entry.counted_in.as_ref()?, entry.is_established)))
    }

    /// Removes one silent connection for each lost close, the longest silent ones first. At the maximum number of
    /// connections, removes all silent ones.
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

    /// Removes all connections from their groups.
    pub(super) fn reset_groups(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.counted_in = None);
    }
}
