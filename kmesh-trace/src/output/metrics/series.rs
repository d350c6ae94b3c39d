//! Series, kept while somebody may still add to them. Whoever adds holds a series itself and needs no lock; a scrape takes
//! the lock of a table for as long as it takes to copy pointers.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::histogram::Histogram;

use crate::record::{Event, Outcome, Record, WallTime};
use crate::track::delta::Delta;

/// What has one label set.
#[derive(Debug)]
pub struct Group<L, V> {
    /// It.
    pub labels: Arc<L>,
    /// Its values.
    pub values: V,
    /// When it was last added to: [`WallTime`].
    told: AtomicI64,
}

impl<L, V> Group<L, V> {
    /// It is added to.
    pub fn told(&self, at: WallTime) {
        self.told.store(at.0, Ordering::Relaxed);
    }

    /// When it was last added to.
    pub fn last_told(&self) -> WallTime {
        WallTime(self.told.load(Ordering::Relaxed))
    }
}

/// How many series there may be, of all tables together.
#[derive(Debug)]
pub struct Room {
    most: usize,
    used: AtomicUsize,
}

impl Room {
    /// For so many.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            used: AtomicUsize::new(0),
        }
    }

    fn take(&self, series: usize) -> bool {
        let take = |used: usize| used.checked_add(series).filter(|used| *used <= self.most);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }

    /// Whether nothing takes any.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.used.load(Ordering::Relaxed) == 0
    }

    fn give(&self, series: usize) {
        self.used.fetch_sub(series, Ordering::Relaxed);
    }
}

/// The groups of one kind, each once.
#[derive(Debug)]
pub struct Table<L, V> {
    groups: Mutex<Groups<L, V>>,
    /// Series a group.
    series: usize,
}

#[derive(Debug)]
struct Groups<L, V> {
    known: HashMap<Arc<L>, Arc<Group<L, V>>>,
    /// Those of all the rest: one a reporter. They stay.
    rest: Vec<Arc<Group<L, V>>>,
}

fn new<L, V: Default>(labels: Arc<L>) -> Arc<Group<L, V>> {
    Arc::new(Group {
        labels,
        values: V::default(),
        told: AtomicI64::new(0),
    })
}

impl<L: Eq + Hash, V: Default> Table<L, V> {
    /// An empty one. A group of it makes so many series.
    pub fn new(series: usize) -> Self {
        Self {
            groups: Mutex::new(Groups {
                known: HashMap::new(),
                rest: Vec::new(),
            }),
            series,
        }
    }

    /// The group of these labels, if there is one or there is room for it.
    pub fn group(&self, labels: L, room: &Room) -> Option<Arc<Group<L, V>>> {
        let mut groups = self.lock();
        if let Some(group) = groups.known.get(&labels) {
            return Some(Arc::clone(group));
        }
        if !room.take(self.series) {
            return None;
        }
        let labels = Arc::new(labels);
        let group = new(Arc::clone(&labels));
        groups.known.insert(labels, Arc::clone(&group));
        Some(group)
    }

    /// The group of these labels, which are those of all the rest.
    pub fn folded(&self, labels: L) -> Arc<Group<L, V>> {
        let mut groups = self.lock();
        if let Some(group) = groups.rest.iter().find(|group| *group.labels == labels) {
            return Arc::clone(group);
        }
        let group = new(Arc::new(labels));
        groups.rest.push(Arc::clone(&group));
        group
    }

    /// All there are.
    pub fn all(&self) -> Vec<Arc<Group<L, V>>> {
        let groups = self.lock();
        groups.known.values().chain(&groups.rest).cloned().collect()
    }

    /// Drops what nobody holds and what has not been added to since then.
    pub fn expire(&self, since: WallTime, room: &Room) {
        let mut groups = self.lock();
        let before = groups.known.len();
        let stays = |group: &Arc<Group<L, V>>| Arc::strong_count(group) > 1 || group.last_told() >= since;
        groups.known.retain(|_, group| stays(group));
        room.give((before - groups.known.len()) * self.series);
    }

    fn lock(&self) -> MutexGuard<'_, Groups<L, V>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the connections of a group did.
#[derive(Debug, Default)]
pub struct Traffic {
    pub opened: AtomicU64,
    pub closed: AtomicU64,
    pub sent_bytes: AtomicU64,
    pub received_bytes: AtomicU64,
    /// Never connected.
    pub failed_connecting: AtomicU64,
    /// Ended by a reset or a time limit.
    pub failed_connected: AtomicU64,
    pub retransmits: AtomicU64,
    pub lost_segments: AtomicU64,
}

impl Traffic {
    /// Adds what a record adds.
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
    // Nearly all of these are zero nearly always.
    if more > 0 {
        counter.fetch_add(more, Ordering::Relaxed);
    }
}

/// Seconds: a handshake is a round trip, on this node or across the world, or a SYN sent again after 1, 3, 7 s.
const CONNECT: [f64; 14] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0,
];
/// Seconds: from a request to a stream of a day.
const DURATION: [f64; 14] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3_600.0, 86_400.0,
];

/// How long the connections of a group took.
#[derive(Debug)]
pub struct Timing {
    /// To connect, s.
    pub connect: Histogram,
    /// From beginning to end, s.
    pub duration: Histogram,
}

impl Timing {
    /// Series that one makes: buckets, the one without a bound, sum and count.
    pub const SERIES: usize = CONNECT.len() + DURATION.len() + 6;

    /// Adds what a record adds.
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
