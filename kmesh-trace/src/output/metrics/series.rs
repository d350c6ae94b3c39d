//! Series and the tables that hold them. The sink holds series by `Arc` and adds to them without a lock. A scrape locks
//! a table only to copy the pointers.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::histogram::Histogram;

use crate::record::{Event, Outcome, Record, Turns, WallTime};
use crate::track::delta::Delta;

/// The series that share one label set.
#[derive(Debug)]
pub struct SeriesGroup<L, V> {
    pub labels: Arc<L>,
    pub values: V,
    /// The [`WallTime`] of the last record.
    touched: AtomicI64,
}

impl<L, V> SeriesGroup<L, V> {
    /// Sets the time of the last record.
    pub fn touch(&self, at: WallTime) {
        self.touched.store(at.0, Ordering::Relaxed);
    }

    /// Returns the time of the last record.
    pub fn last_touched(&self) -> WallTime {
        WallTime(self.touched.load(Ordering::Relaxed))
    }
}

/// The limit on the number of series of all tables together.
#[derive(Debug)]
pub struct SeriesBudget {
    max: usize,
    used: AtomicUsize,
}

impl SeriesBudget {
    /// Returns a budget of `max` series.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            used: AtomicUsize::new(0),
        }
    }

    /// Reserves `series`. Returns whether the budget allows them.
    fn reserve(&self, series: usize) -> bool {
        let reserve = |used: usize| used.checked_add(series).filter(|used| *used <= self.max);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve)
            .is_ok()
    }

    /// Returns whether nothing is reserved.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.used.load(Ordering::Relaxed) == 0
    }

    fn release(&self, series: usize) {
        self.used.fetch_sub(series, Ordering::Relaxed);
    }
}

/// The series groups of one kind, by their labels.
#[derive(Debug)]
pub struct SeriesTable<L, V> {
    groups: Mutex<Groups<L, V>>,
    /// The number of series in each group.
    series: usize,
}

#[derive(Debug)]
struct Groups<L, V> {
    by_labels: HashMap<Arc<L>, Arc<SeriesGroup<L, V>>>,
    /// The overflow groups, one for each reporter. They never expire.
    overflow: Vec<Arc<SeriesGroup<L, V>>>,
}

fn new_group<L, V: Default>(labels: Arc<L>) -> Arc<SeriesGroup<L, V>> {
    Arc::new(SeriesGroup {
        labels,
        values: V::default(),
        touched: AtomicI64::new(0),
    })
}

impl<L: Eq + Hash, V: Default> SeriesTable<L, V> {
    /// Returns an empty table, whose groups have `series` series each.
    pub fn new(series: usize) -> Self {
        Self {
            groups: Mutex::new(Groups {
                by_labels: HashMap::new(),
                overflow: Vec::new(),
            }),
            series,
        }
    }

    /// Returns the group with `labels`, created if needed. `None` if the budget does not allow another group.
    pub fn group(&self, labels: L, budget: &SeriesBudget) -> Option<Arc<SeriesGroup<L, V>>> {
        let mut groups = self.lock();
        if let Some(group) = groups.by_labels.get(&labels) {
            return Some(Arc::clone(group));
        }
        if !budget.reserve(self.series) {
            return None;
        }
        let labels = Arc::new(labels);
        let group = new_group(Arc::clone(&labels));
        groups.by_labels.insert(labels, Arc::clone(&group));
        Some(group)
    }

    /// Returns the overflow group with `labels`. It is not part of the budget.
    pub fn overflow(&self, labels: L) -> Arc<SeriesGroup<L, V>> {
        let mut groups = self.lock();
        if let Some(group) = groups.overflow.iter().find(|group| *group.labels == labels) {
            return Arc::clone(group);
        }
        let group = new_group(Arc::new(labels));
        groups.overflow.push(Arc::clone(&group));
        group
    }

    /// Returns all groups, including the overflow groups.
    pub fn all(&self) -> Vec<Arc<SeriesGroup<L, V>>> {
        let groups = self.lock();
        groups.by_labels.values().chain(&groups.overflow).cloned().collect()
    }

    /// Drops the groups that nobody holds and that have no record since `since`.
    pub fn expire(&self, since: WallTime, budget: &SeriesBudget) {
        let mut groups = self.lock();
        let before = groups.by_labels.len();
        let stays = |group: &Arc<SeriesGroup<L, V>>| Arc::strong_count(group) > 1 || group.last_touched() >= since;
        groups.by_labels.retain(|_, group| stays(group));
        budget.release((before - groups.by_labels.len()) * self.series);
    }

    fn lock(&self) -> MutexGuard<'_, Groups<L, V>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The counters of a group of connections.
#[derive(Debug, Default)]
pub struct Traffic {
    pub opened: AtomicU64,
    pub closed: AtomicU64,
    pub sent_bytes: AtomicU64,
    pub received_bytes: AtomicU64,
    /// Attempts that never connected.
    pub failed_connecting: AtomicU64,
    /// Connections that ended with a reset or a timeout.
    pub failed_connected: AtomicU64,
    pub retransmits: AtomicU64,
    pub lost_segments: AtomicU64,
}

impl Traffic {
    pub fn add(&self, record: &Record, delta: &Delta) {
        add(&self.opened, delta.opened.into());
        add(&self.sent_bytes, delta.sent_bytes);
        add(&self.received_bytes, delta.received_bytes);
        add(&self.retransmits, delta.retransmits);
        add(&self.lost_segments, delta.lost_segments);
        if record.event == Event::Close {
            add(&self.closed, record.established.into());
            if record.outcome != Some(Outcome::Ok) {
                let failed = if record.established {
                    &self.failed_connected
                } else {
                    &self.failed_connecting
                };
                add(failed, 1);
            }
        }
    }
}

fn add(counter: &AtomicU64, more: u64) {
    // Most deltas are zero, and an atomic addition costs more than this check.
    if more > 0 {
        counter.fetch_add(more, Ordering::Relaxed);
    }
}

/// Bucket bounds in seconds. A handshake takes one round trip (local or intercontinental), or longer if the SYN is sent
/// again after 1, 3 or 7 s.
const CONNECT: [f64; 14] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0,
];
/// Bucket bounds in seconds, from a single request to a stream of one day.
const DURATION: [f64; 14] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3_600.0, 86_400.0,
];

/// Bucket bounds in seconds. They are bounds of the buckets in which the kernel's programs count waits.
const RESPONSE: [f64; 12] = [
    0.000_064, 0.000_256, 0.001_024, 0.004_096, 0.008_192, 0.016_384, 0.032_768, 0.065_536, 0.131_072, 0.524_288,
    2.097_152, 8.388_608,
];

/// The histograms of a group of connections.
#[derive(Debug)]
pub struct Timing {
    /// The duration of the handshake, in seconds.
    pub connect: Histogram,
    /// The duration of the connection, in seconds.
    pub duration: Histogram,
}

impl Timing {
    /// The number of series: for each histogram its buckets, the `+Inf` bucket, the sum and the count.
    pub const SERIES: usize = CONNECT.len() + DURATION.len() + 6;

    pub fn add(&self, record: &Record, delta: &Delta) {
        let seconds = |ns: u64| ns as f64 / 1e9;
        if let Some(ns) = record.connect_ns.filter(|_| delta.opened) {
            self.connect.observe(seconds(ns));
        }
        if let Some(ns) = record
            .duration_ns
            .filter(|_| record.event == Event::Close && record.established)
        {
            self.duration.observe(seconds(ns));
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Histogram::new(CONNECT),
            duration: Histogram::new(DURATION),
        }
    }
}

/// The times to the answers in a group of connections whose turns are measured, in seconds.
#[derive(Debug)]
pub struct ResponseTimes(pub Histogram);

impl ResponseTimes {
    /// The number of series: the buckets, the `+Inf` bucket, the sum and the count.
    pub const SERIES: usize = RESPONSE.len() + 3;

    pub fn add(&self, turns: &Turns) {
        for (_, count, sum_ns) in turns.buckets() {
            let wait = sum_ns / count as f64 / 1e9;
            (0..count).for_each(|_| self.0.observe(wait));
        }
    }
}

impl Default for ResponseTimes {
    fn default() -> Self {
        Self(Histogram::new(RESPONSE))
    }
}
