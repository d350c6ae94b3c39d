//! Connections that are open, or connecting, and what has been counted of each so far.

use std::collections::HashMap;
use std::sync::Arc;

use super::group::Group;
use crate::record::{ConnId, Event, Record};

/// Connections kept. What there is no room for is counted whole when it ends.
const MOST: usize = 1 << 19;

/// One that has not been told of for so many windows is not open any more: its close was lost, or never seen. A walk that
/// fails now and then makes nothing vanish.
pub(super) const UNTOLD: u64 = 3;

/// What a record adds to what has been told of its connection before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// It is now first known to be established, while tracing.
    pub opened: bool,
    /// Payload, bytes.
    pub sent_bytes: u64,
    /// Payload, bytes.
    pub received_bytes: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Segments marked lost.
    pub lost_segments: u64,
    /// The connection began before tracing did and is told of for the first time: it may have moved all this in a year, and
    /// no rate can be made of it.
    pub is_past: bool,
}

/// The totals of a connection as last told.
#[derive(Debug, Default)]
struct Totals {
    sent_bytes: u64,
    received_bytes: u64,
    retransmits: u32,
    lost_segments: u32,
    established: bool,
}

impl Totals {
    fn of(record: &Record) -> Self {
        Self {
            sent_bytes: record.sent_bytes,
            received_bytes: record.received_bytes,
            retransmits: record.tcp.total_retrans,
            lost_segments: record.tcp.lost,
            established: record.established,
        }
    }

    /// What is more than `before`. The kernel's counters never fall; if one did, it would count as standing still.
    fn since(&self, before: Option<&Self>, record: &Record) -> Moved {
        let none = Self::default();
        let known = before.unwrap_or(&none);
        // Whoever was open already when tracing began did not open while it was told of.
        let opens = before.is_some() || !record.preexisting || record.event == Event::Open;
        Moved {
            opened: self.established && !known.established && opens,
            sent_bytes: self.sent_bytes.saturating_sub(known.sent_bytes),
            received_bytes: self.received_bytes.saturating_sub(known.received_bytes),
            retransmits: self.retransmits.saturating_sub(known.retransmits).into(),
            lost_segments: self.lost_segments.saturating_sub(known.lost_segments).into(),
            is_past: record.preexisting && before.is_none(),
        }
    }
}

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
            return totals.since(before.as_ref().map(|entry| &entry.totals), record);
        }
        if let Some(entry) = self.entries.get_mut(&record.id) {
            let moved = totals.since(Some(&entry.totals), record);
            // A walk may have met a socket just before its `open` was told.
            let established = totals.established || entry.totals.established;
            entry.totals = Totals { established, ..totals };
            entry.window = window;
            return moved;
        }
        if self.entries.len() >= MOST {
            return Moved::default();
        }
        let moved = totals.since(None, record);
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
