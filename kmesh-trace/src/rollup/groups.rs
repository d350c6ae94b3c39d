//! The groups of one window.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::group::{By, Group};
use super::open::CountedIn;
use super::quantiles::Quantiles;
use super::responses::Responses;
use crate::record::{Comm, EndOutcomes, Event, Outcome, ReasonSums, Record, Service, WallTime};
use crate::track::delta::Delta;

/// The number of connections of a group that are listed although they have no update.
const MAX_LISTED: u32 = 100;

/// The sums over the records of a group in a window.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// Connections that were established and not closed at the end of the window.
    pub open: u64,
    /// Attempts that were waiting for an answer at the end of the window.
    pub connecting: u64,
    /// Connections that were established.
    pub opened: u64,
    /// Connections and attempts that ended.
    pub closed: u64,
    /// `closed` by outcome, in the order of [`Outcome::ALL`].
    pub outcomes: [u64; Outcome::ALL.len()],
    /// The part of `closed` whose ends had different outcomes.
    pub different_outcomes: BTreeMap<EndOutcomes, u64>,
    /// The connections that ended and whose traced end sent a RST, by the kernel's reason.
    pub reset_reasons: ReasonSums,
    /// The packets that this node dropped, by the kernel's reason.
    pub drops: ReasonSums,
    /// The payload that the peers acknowledged.
    pub sent_bytes: u64,
    /// The payload that arrived in order.
    pub received_bytes: u64,
    /// The part of `sent_bytes` that may have moved long before the window.
    pub past_sent_bytes: u64,
    /// The part of `received_bytes` that may have moved long before the window.
    pub past_received_bytes: u64,
    pub retransmits: u64,
    pub lost_segments: u64,
    /// The durations of the connections that ended, ns.
    pub durations: Quantiles,
    /// The durations of the handshakes of the connections that were established, ns.
    pub connects: Quantiles,
    /// The smoothed round-trip times of the connections with an update or a close, µs.
    pub srtts: Quantiles,
    /// The waits for answers, if there were any.
    pub responses: Option<Box<Responses>>,
    /// The time with data to send, and its parts in which the peer's window and the send buffer were the limit, µs.
    pub busy_us: u64,
    pub rwnd_limited_us: u64,
    pub sndbuf_limited_us: u64,
}

impl Sums {
    /// Returns the number of connections and attempts that ended with an outcome other than `ok`.
    pub fn failed(&self) -> u64 {
        self.by_outcome()
            .filter(|(outcomes, _)| outcomes.is_failure())
            .map(|(_, count)| count)
            .sum()
    }

    /// Iterates over the outcomes that occurred.
    pub fn by_outcome(&self) -> impl Iterator<Item = (EndOutcomes, u64)> {
        let counts = Outcome::ALL
            .iter()
            .map(|&outcome| EndOutcomes::Same(outcome))
            .zip(self.outcomes);
        let different = self
            .different_outcomes
            .iter()
            .map(|(&outcomes, &count)| (outcomes, count));
        counts.filter(|(_, count)| *count > 0).chain(different)
    }

    /// Returns the most frequent failure. If several are equally frequent, the first in [`Outcome::ALL`].
    pub fn main_failure(&self) -> Option<EndOutcomes> {
        self.by_outcome()
            .filter(|(outcomes, _)| outcomes.is_failure())
            .reduce(|most, next| if next.1 > most.1 { next } else { most })
            .map(|(outcomes, _)| outcomes)
    }

    /// Returns the bytes sent that count in a rate.
    pub fn rated_sent_bytes(&self) -> u64 {
        self.sent_bytes - self.past_sent_bytes
    }

    /// Returns the bytes received that count in a rate.
    pub fn rated_received_bytes(&self) -> u64 {
        self.received_bytes - self.past_received_bytes
    }

    /// Returns the share of the busy time in which the peer's window was the limit; `None` without busy time.
    pub fn rwnd_limited(&self) -> Option<f64> {
        share(self.rwnd_limited_us, self.busy_us)
    }

    /// Returns the share of the busy time in which the send buffer was the limit; `None` without busy time.
    pub fn sndbuf_limited(&self) -> Option<f64> {
        share(self.sndbuf_limited_us, self.busy_us)
    }

    fn add(&mut self, record: &Record, delta: &Delta) {
        self.opened += u64::from(delta.opened);
        self.sent_bytes = self.sent_bytes.saturating_add(delta.sent_bytes);
        self.received_bytes = self.received_bytes.saturating_add(delta.received_bytes);
        if delta.has_no_baseline {
            self.past_sent_bytes = self.past_sent_bytes.saturating_add(delta.sent_bytes);
            self.past_received_bytes = self.past_received_bytes.saturating_add(delta.received_bytes);
        }
        self.retransmits += delta.retransmits;
        self.lost_segments += delta.lost_segments;
        self.drops.merge(&delta.drops);
        if let Some(turns) = &delta.turns {
            self.responses.get_or_insert_default().add(turns);
        }
        if !delta.has_no_baseline {
            self.busy_us = self.busy_us.saturating_add(delta.busy_us);
            self.rwnd_limited_us = self.rwnd_limited_us.saturating_add(delta.rwnd_limited_us);
            self.sndbuf_limited_us = self.sndbuf_limited_us.saturating_add(delta.sndbuf_limited_us);
        }
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
            match record.end_outcomes() {
                Some(EndOutcomes::Same(outcome)) => self.outcomes[outcome as usize] += 1,
                Some(outcomes) => *self.different_outcomes.entry(outcomes).or_default() += 1,
                None => {}
            }
            for end in [Some(record), record.other()].into_iter().flatten() {
                if let Some(reason) = &end.reset_reason {
                    self.reset_reasons.add(reason, 1);
                }
            }
            if let Some(duration_ns) = record.duration_ns {
                self.durations.add(duration_ns);
            }
        }
    }

    /// Adds the sums of a later window. `open` and `connecting` are those of the later window.
    fn merge(&mut self, later: &Self) {
        (self.open, self.connecting) = (later.open, later.connecting);
        for (count, more) in self.outcomes.iter_mut().zip(later.outcomes) {
            *count += more;
        }
        for (outcomes, count) in &later.different_outcomes {
            *self.different_outcomes.entry(*outcomes).or_default() += count;
        }
        for (sum, more) in [
            (&mut self.opened, later.opened),
            (&mut self.closed, later.closed),
            (&mut self.sent_bytes, later.sent_bytes),
            (&mut self.received_bytes, later.received_bytes),
            (&mut self.past_sent_bytes, later.past_sent_bytes),
            (&mut self.past_received_bytes, later.past_received_bytes),
            (&mut self.retransmits, later.retransmits),
            (&mut self.lost_segments, later.lost_segments),
            (&mut self.busy_us, later.busy_us),
            (&mut self.rwnd_limited_us, later.rwnd_limited_us),
            (&mut self.sndbuf_limited_us, later.sndbuf_limited_us),
        ] {
            *sum = sum.saturating_add(more);
        }
        self.reset_reasons.merge(&later.reset_reasons);
        self.drops.merge(&later.drops);
        self.durations.merge(&later.durations);
        self.connects.merge(&later.connects);
        self.srtts.merge(&later.srtts);
        if let Some(later) = &later.responses {
            self.responses.get_or_insert_default().merge(later);
        }
    }
}

/// Returns a share with four decimals.
fn share(part_us: u64, busy_us: u64) -> Option<f64> {
    (busy_us > 0).then(|| (part_us as f64 / busy_us as f64 * 10_000.0).round() / 10_000.0)
}

/// A fact that the connections of a row may share although they are not grouped by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Common<T> {
    /// No connection was added.
    #[default]
    None,
    /// All connections have this value.
    All(T),
    /// The connections have different values.
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

    fn merge(&mut self, other: &Self) {
        match other {
            Self::None => {}
            Self::All(value) => self.add(value),
            Self::Mixed => *self = Self::Mixed,
        }
    }

    /// Returns the value that all connections have.
    pub fn get(&self) -> Option<&T> {
        match self {
            Self::All(common) => Some(common),
            Self::None | Self::Mixed => None,
        }
    }
}

/// A connection that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub time: WallTime,
    pub outcomes: EndOutcomes,
}

/// One group in one window.
#[derive(Clone, Debug)]
pub struct Row {
    pub group: Arc<Group>,
    /// In a row of a single connection: the group that the connection counts in.
    pub parent: Option<Arc<Group>>,
    /// The number of connections of this group in [`super::Window::connections`].
    pub listed: u32,
    pub sums: Sums,
    pub last_failure: Option<Failure>,
    /// The port of the server.
    pub port: Common<u16>,
    /// The name of the process.
    pub comm: Common<Option<Comm>>,
    /// The Service that the clients called.
    pub service: Common<Option<Arc<Service>>>,
}

impl Row {
    pub(super) fn new(group: Arc<Group>) -> Self {
        Self {
            group,
            parent: None,
            listed: 0,
            sums: Sums::default(),
            last_failure: None,
            port: Common::None,
            comm: Common::None,
            service: Common::None,
        }
    }

    fn add(&mut self, record: &Record, delta: &Delta) {
        self.sums.add(record, delta);
        if let Some(outcomes) = record.end_outcomes()
            && outcomes.is_failure()
        {
            self.last_failure = Some(Failure {
                time: record.time,
                outcomes,
            });
        }
        self.port.add(&record.dst.port());
        self.comm.add(&record.process.as_ref().map(|process| process.comm));
        match (&self.service, record.service()) {
            (Common::All(Some(common)), Some(found)) if Arc::ptr_eq(common, &found.service) => {}
            (_, found) => self.service.add(&found.map(|found| Arc::clone(&found.service))),
        }
    }

    /// Adds the row of the same group in a later window.
    pub(super) fn merge(&mut self, later: &Self) {
        self.sums.merge(&later.sums);
        self.listed = later.listed;
        self.last_failure = later.last_failure.or(self.last_failure);
        self.port.merge(&later.port);
        self.comm.merge(&later.comm);
        self.service.merge(&later.service);
    }
}

/// The groups of the current window, in the order of their first records.
#[derive(Debug)]
pub(super) struct Groups {
    by: By,
    max: usize,
    rows: Vec<Row>,
    index: HashMap<Arc<Group>, usize>,
    /// The index of the row `other`.
    other: Option<usize>,
}

impl Groups {
    /// Returns an empty set of up to `max` groups and the group `other`.
    pub(super) fn new(by: By, max: usize) -> Self {
        Self {
            by,
            max,
            rows: Vec::new(),
            index: HashMap::new(),
            other: None,
        }
    }

    /// Adds a record to its group.
    pub(super) fn add(&mut self, record: &Record, delta: &Delta) -> &mut Row {
        let group = self.by.group(record);
        let at = match self.index.get(&group) {
            Some(&at) => at,
            None => self.insert(group),
        };
        let row = &mut self.rows[at];
        row.add(record, delta);
        row
    }

    /// Adds a record to the row of its connection, if the connection is listed. Connections with updates are listed up
    /// to the maximum, and of the others the first [`MAX_LISTED`] of each group, so that every group has some.
    pub(super) fn list(&mut self, record: &Record, delta: &Delta, parent: &mut Row) {
        let is_listed = self.index.contains_key(&self.by.group(record));
        if !is_listed {
            let is_wanted = record.event == Event::Update || parent.listed < MAX_LISTED;
            if !is_wanted || self.index.len() >= self.max {
                return;
            }
            parent.listed += 1;
        }
        let row = self.add(record, delta);
        row.parent.get_or_insert_with(|| Arc::clone(&parent.group));
    }

    fn insert(&mut self, group: Group) -> usize {
        if self.index.len() < self.max {
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
        self.rows.push(Row::new(group));
        self.rows.len() - 1
    }

    /// Counts the open connections. Their groups may have had no record in this window.
    pub(super) fn add_open<'a>(&mut self, open: impl Iterator<Item = (&'a CountedIn, bool)>) {
        let mut rows: HashMap<&Arc<Group>, Row> = HashMap::new();
        for (counted_in, is_established) in open {
            let row = rows
                .entry(&counted_in.group)
                .or_insert_with(|| Row::new(Arc::clone(&counted_in.group)));
            row.sums.open += u64::from(is_established);
            row.sums.connecting += u64::from(!is_established);
            row.port.add(&counted_in.port);
            row.comm.add(&counted_in.comm);
        }
        // Sorted, since beyond the maximum the order decides which groups become `other`.
        let mut rows: Vec<_> = rows.into_iter().collect();
        rows.sort_unstable_by_key(|(group, _)| *group);
        for (group, open) in rows {
            let at = match self.index.get(group) {
                Some(&at) => at,
                None if group.is_other() => self.other(),
                None => self.insert(Group::clone(group)),
            };
            let row = &mut self.rows[at];
            row.sums.open += open.sums.open;
            row.sums.connecting += open.sums.connecting;
            row.port.merge(&open.port);
            row.comm.merge(&open.comm);
        }
    }

    pub(super) fn rows_mut(&mut self) -> &mut [Row] {
        &mut self.rows
    }

    /// Ends the window. Returns the rows in the order of their groups, with `other` at the end.
    pub(super) fn take(&mut self) -> Vec<Row> {
        self.index.clear();
        self.other = None;
        let mut rows = std::mem::take(&mut self.rows);
        rows.sort_unstable_by(|one, two| (one.group.is_other(), &one.group).cmp(&(two.group.is_other(), &two.group)));
        rows
    }
}
