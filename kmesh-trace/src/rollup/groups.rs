//! The groups of one window.

use std::collections::HashMap;
use std::sync::Arc;

use super::group::{By, Group};
use super::quantiles::Quantiles;
use crate::record::{Event, Outcome, Record, Service};
use crate::track::delta::Delta;

/// Connections of a group that are told of one by one although they were not open at the window's end.
const LISTED: u32 = 100;

/// Sums over what was told of a group in a window.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// Established and not closed at the window's end.
    pub open: u64,
    /// Attempts that are neither established nor over at the window's end.
    pub connecting: u64,
    /// Became established.
    pub opened: u64,
    /// Ended, attempts included.
    pub closed: u64,
    /// How, by [`Outcome::ALL`].
    pub outcomes: [u64; Outcome::ALL.len()],
    /// Payload that the peers acknowledged.
    pub sent_bytes: u64,
    /// Payload that arrived.
    pub received_bytes: u64,
    /// Of `sent_bytes`, what may have moved long before the window.
    pub past_sent_bytes: u64,
    /// Of `received_bytes`, likewise.
    pub past_received_bytes: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Segments marked lost.
    pub lost_segments: u64,
    /// Of those that ended: from start to end, ns.
    pub durations: Quantiles,
    /// Of those that became established: SYN sent to ESTABLISHED, ns.
    pub connects: Quantiles,
    /// Of all that were updated or ended: smoothed round-trip time, µs.
    pub srtts: Quantiles,
}

impl Sums {
    /// Ended with any outcome but `ok`.
    pub fn failed(&self) -> u64 {
        self.by_outcome()
            .filter(|(outcome, _)| *outcome != Outcome::Ok)
            .map(|(_, count)| count)
            .sum()
    }

    /// How many ended how; outcomes that there were none of are not among them.
    pub fn by_outcome(&self) -> impl Iterator<Item = (Outcome, u64)> {
        let counts = Outcome::ALL.iter().copied().zip(self.outcomes);
        counts.filter(|(_, count)| *count > 0)
    }

    /// The most frequent failure; of several, the first by [`Outcome::ALL`].
    pub fn main_failure(&self) -> Option<(Outcome, u64)> {
        self.by_outcome()
            .filter(|(outcome, _)| *outcome != Outcome::Ok)
            .reduce(|most, next| if next.1 > most.1 { next } else { most })
    }

    fn add(&mut self, record: &Record, delta: &Delta) {
        self.opened += u64::from(delta.opened);
        self.sent_bytes = self.sent_bytes.saturating_add(delta.sent_bytes);
        self.received_bytes = self.received_bytes.saturating_add(delta.received_bytes);
        if delta.is_past {
            self.past_sent_bytes = self.past_sent_bytes.saturating_add(delta.sent_bytes);
            self.past_received_bytes = self.past_received_bytes.saturating_add(delta.received_bytes);
        }
        self.retransmits += delta.retransmits;
        self.lost_segments += delta.lost_segments;
        if delta.opened
            && let Some(connect_ns) = record.connect_ns
        {
            self.connects.add(connect_ns);
        }
        if record.event != Event::Open
            && let Some(srtt_us) = record.tcp.srtt_us
        {
            self.srtts.add(srtt_us.into());
        }
        if record.event == Event::Close {
            self.closed += 1;
            if let Some(outcome) = record.outcome {
                self.outcomes[outcome as usize] += 1;
            }
            if let Some(duration_ns) = record.duration_ns {
                self.durations.add(duration_ns);
            }
        }
    }
}

/// What all of a group have in common without being grouped by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Common<T> {
    /// Nothing has come yet.
    #[default]
    None,
    /// All have this.
    All(T),
    /// They differ.
    Mixed,
}

impl<T: PartialEq + Clone> Common<T> {
    fn add(&mut self, value: &T) {
        match self {
            Self::None => *self = Self::All(value.clone()),
            Self::All(common) if common == value => {}
            Self::All(_) => *self = Self::Mixed,
            Self::Mixed => {}
        }
    }

    /// What they have in common.
    pub fn get(&self) -> Option<&T> {
        match self {
            Self::All(common) => Some(common),
            Self::None | Self::Mixed => None,
        }
    }
}

/// One group in one window.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub group: Arc<Group>,
    /// In the rollup by connection: the group that the connection is counted in.
    pub parent: Option<Arc<Group>>,
    /// So many of its connections are told of one by one.
    pub listed: u32,
    /// Its sums.
    pub sums: Sums,
    /// The server's port.
    pub port: Common<u16>,
    /// The Service called.
    pub service: Common<Option<Arc<Service>>>,
}

/// The groups of the present window, in the order in which they came.
#[derive(Debug)]
pub(super) struct Groups {
    by: By,
    most: usize,
    rows: Vec<Row>,
    index: HashMap<Arc<Group>, usize>,
    /// Where all are that there is no room for.
    other: Option<usize>,
}

impl Groups {
    /// At most `most` groups, and the one of all others.
    pub(super) fn new(by: By, most: usize) -> Self {
        Self {
            by,
            most,
            rows: Vec::new(),
            index: HashMap::new(),
            other: None,
        }
    }

    /// Adds what a record tells to its group.
    pub(super) fn add(&mut self, record: &Record, delta: &Delta) -> &mut Row {
        let group = self.by.group(record);
        let at = match self.index.get(&group) {
            Some(&at) => at,
            None => self.insert(group),
        };
        let row = &mut self.rows[at];
        row.sums.add(record, delta);
        row.port.add(&record.dst.port());
        match (&row.service, &record.names.service) {
            (Common::All(Some(common)), Some(called)) if Arc::ptr_eq(common, &called.service) => {}
            (_, called) => row
                .service
                .add(&called.as_ref().map(|called| Arc::clone(&called.service))),
        }
        row
    }

    /// Adds what a record tells to its connection, if that is told of one by one: what is open then always is while there is
    /// room, of the many that may come and go in a window the first of each group, so that no group is without.
    pub(super) fn list(&mut self, record: &Record, delta: &Delta, parent: &mut Row) {
        let is_listed = self.index.contains_key(&self.by.group(record));
        if !is_listed {
            let is_wanted = record.event == Event::Update || parent.listed < LISTED;
            if !is_wanted || self.index.len() >= self.most {
                return;
            }
            parent.listed += 1;
        }
        let row = self.add(record, delta);
        row.parent.get_or_insert_with(|| Arc::clone(&parent.group));
    }

    fn insert(&mut self, group: Group) -> usize {
        if self.index.len() < self.most {
            let group = Arc::new(group);
            self.index.insert(Arc::clone(&group), self.rows.len());
            self.push(group)
        } else {
            self.other()
        }
    }

    fn other(&mut self) -> usize {
        if let Some(other) = self.other {
            return other;
        }
        let other = self.push(Arc::new(Group::other()));
        self.other = Some(other);
        other
    }

    fn push(&mut self, group: Arc<Group>) -> usize {
        self.rows.push(Row {
            group,
            parent: None,
            listed: 0,
            sums: Sums::default(),
            port: Common::None,
            service: Common::None,
        });
        self.rows.len() - 1
    }

    /// Adds what is open in groups that something else may have been told of, or nothing.
    pub(super) fn add_open<'a>(&mut self, open: impl Iterator<Item = (&'a Arc<Group>, bool)>) {
        let mut gauges: HashMap<&Arc<Group>, (u64, u64)> = HashMap::new();
        for (group, established) in open {
            let gauge = gauges.entry(group).or_default();
            gauge.0 += u64::from(established);
            gauge.1 += u64::from(!established);
        }
        // Which ones there is room for must not depend on how a table of hashes is ordered.
        let mut gauges: Vec<_> = gauges.into_iter().collect();
        gauges.sort_unstable_by_key(|(group, _)| *group);
        for (group, (open, connecting)) in gauges {
            let at = match self.index.get(group) {
                Some(&at) => at,
                None if group.is_other() => self.other(),
                None => self.insert(Group::clone(group)),
            };
            let sums = &mut self.rows[at].sums;
            sums.open += open;
            sums.connecting += connecting;
        }
    }

    pub(super) fn rows_mut(&mut self) -> &mut [Row] {
        &mut self.rows
    }

    /// The window is over: its groups in their order, that of all others last.
    pub(super) fn take(&mut self) -> Vec<Row> {
        self.index.clear();
        self.other = None;
        let mut rows = std::mem::take(&mut self.rows);
        rows.sort_unstable_by(|one, two| (one.group.is_other(), &one.group).cmp(&(two.group.is_other(), &two.group)));
        rows
    }
}
