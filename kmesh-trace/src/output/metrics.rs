//! Prometheus metrics: counts records in series, and serves the series over HTTP.
//!
//! [`Metrics`] is a sink, so it runs in the writer thread. It updates [`Values`], which [`exposition`] renders as text
//! and [`server`] serves in a separate thread. In the steady state a record costs one map look-up, one lock that only a
//! scrape contends for, and no allocation.

mod encode;
pub mod exposition;
pub mod labels;
pub mod listeners;
#[cfg(target_os = "linux")]
mod process;
pub mod series;
pub mod server;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::config::{Level, SeriesConfig};
use crate::output::Sink;
use crate::record::{ConnId, Direction, Event, Outcome, Pod, Record, RunInfo, Service, Subject, WallTime};
use crate::track::delta::Delta;
use exposition::Values;
use labels::{Labels, PairLabels};
use listeners::{Listeners, Queues};
use series::{ResponseTimes, SeriesBudget, SeriesGroup, SeriesTable, Timing, Traffic};

/// The maximum number of label keys whose series are cached. Beyond it the cache is emptied.
const MAX_CACHED_KEYS: usize = 1 << 15;

type TrafficGroup = Arc<SeriesGroup<Labels, Traffic>>;

/// The properties of a record that decide its labels. Names are compared by their addresses in memory, since they are
/// shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct LabelKey {
    direction: Direction,
    src: Option<usize>,
    dst: Option<(usize, IpAddr)>,
    service: Option<usize>,
    is_mutual_tls: bool,
}

/// The series that records with one [`LabelKey`] count in.
#[derive(Debug)]
struct CachedSeries {
    /// Weak references keep the allocator from reusing the addresses in the key, and show when a pod is gone.
    src: Option<Weak<Pod>>,
    dst: Option<Weak<Pod>>,
    service: Option<Weak<Service>>,
    traffic: [Option<TrafficGroup>; 2],
    timing: Arc<SeriesGroup<PairLabels, Timing>>,
    /// Created with the first turns.
    responses: Option<Arc<SeriesGroup<PairLabels, ResponseTimes>>>,
    /// Whether a series is the overflow series, because the budget was exhausted.
    is_overflow: bool,
}

impl CachedSeries {
    fn is_alive(&self) -> bool {
        let pods = [&self.src, &self.dst].into_iter().flatten();
        let service = self.service.iter().map(Weak::strong_count);
        pods.map(Weak::strong_count).chain(service).all(|owners| owners > 0)
    }
}

/// The sink that counts records in series.
#[derive(Debug)]
pub struct Metrics {
    settings: SeriesConfig,
    values: Arc<Values>,
    cached: HashMap<LabelKey, CachedSeries>,
    /// The series of open connections, at [`Level::Connection`].
    connections: HashMap<ConnId, TrafficGroup>,
    listeners: Listeners,
    expired_at: WallTime,
}

impl Metrics {
    /// Returns a sink whose series are all empty.
    pub fn new(settings: SeriesConfig, info: &RunInfo) -> Self {
        let compat = settings.common.compat;
        let values = Arc::new(Values {
            lock: Mutex::new(()),
            budget: SeriesBudget::new(settings.max_series),
            compat,
            version: info.version.clone(),
            workload: SeriesTable::new(exposition::series_of_workload(compat)),
            service: SeriesTable::new(exposition::series_of_service(compat)),
            connection: SeriesTable::new(exposition::SERIES_OF_CONNECTION),
            pairs: SeriesTable::new(Timing::SERIES),
            responses: SeriesTable::new(ResponseTimes::SERIES),
            listeners: SeriesTable::new(Queues::SERIES),
            outcomes: [const { AtomicU64::new(0) }; Outcome::ALL.len()],
            lost: AtomicU64::new(0),
            unresolved: AtomicU64::new(0),
            overflow: AtomicU64::new(0),
            open: AtomicI64::new(0),
            pods: AtomicI64::new(0),
            reasons: Mutex::default(),
        });
        Self {
            settings,
            values,
            cached: HashMap::new(),
            connections: HashMap::new(),
            listeners: Listeners::default(),
            expired_at: WallTime(i64::MIN),
        }
    }

    /// Returns the values, shared with the exposition.
    pub fn values(&self) -> Arc<Values> {
        Arc::clone(&self.values)
    }

    fn count_close(&self, record: &Record) {
        let outcome = Outcome::ALL.iter().position(|one| Some(*one) == record.outcome);
        if let Some(count) = outcome.and_then(|outcome| self.values.outcomes.get(outcome)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if record.names.unresolved {
            self.values.unresolved.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn series(&self, record: &Record) -> CachedSeries {
        let Values {
            budget,
            workload,
            service,
            pairs,
            ..
        } = &*self.values;
        let mut is_overflow = false;
        let mut traffic = |table: &SeriesTable<Labels, Traffic>, level| {
            self.settings.levels.contains(&level).then(|| {
                let labels = Labels::new(record, level, &self.settings.common);
                table.group(labels, budget).unwrap_or_else(|| {
                    is_overflow = true;
                    table.overflow(Labels::overflow(record.direction, level))
                })
            })
        };
        let traffic = [traffic(workload, Level::Workload), traffic(service, Level::Service)];
        let timing = pairs.group(PairLabels::new(record), budget).unwrap_or_else(|| {
            is_overflow = true;
            pairs.overflow(PairLabels::overflow(record.direction))
        });
        let names = &record.names;
        CachedSeries {
            src: names.src.pod.as_ref().map(Arc::downgrade),
            dst: names.dst.pod.as_ref().map(Arc::downgrade),
            service: names.service.as_ref().map(|called| Arc::downgrade(&called.service)),
            traffic,
            timing,
            responses: None,
            is_overflow,
        }
    }

    /// Counts a record in the series of its connection. Returns whether that is the overflow series.
    fn count_connection(&mut self, record: &Record, delta: &Delta) -> bool {
        let table = &self.values.connection;
        let existing = self.connections.remove(&record.id);
        let group = existing.or_else(|| {
            let labels = Labels::new(record, Level::Connection, &self.settings.common);
            table.group(labels, &self.values.budget)
        });
        let is_overflow = group.is_none();
        let group = group.unwrap_or_else(|| table.overflow(Labels::overflow(record.direction, Level::Connection)));
        group.values.add(record, delta);
        group.touch(record.time);
        if !is_overflow && record.event != Event::Close {
            self.connections.insert(record.id, group);
        }
        is_overflow
    }
}

impl Sink for Metrics {
    fn needs_deltas(&self) -> bool {
        true
    }

    fn record(&mut self, record: &Record, delta: &Delta) -> io::Result<()> {
        // Another tracer may have counted the bytes from before tracing.
        let none = Delta::default();
        let delta = if delta.has_no_baseline { &none } else { delta };
        let values = Arc::clone(&self.values);
        let _guard = values.lock();
        if record.event == Event::Close {
            self.count_close(record);
        }
        let key = label_key(record);
        if !self.cached.contains_key(&key) {
            let series = self.series(record);
            if self.cached.len() >= MAX_CACHED_KEYS {
                self.cached.clear();
            }
            self.cached.insert(key, series);
        }
        let mut is_overflow = false;
        if let Some(series) = self.cached.get_mut(&key) {
            for group in series.traffic.iter().flatten() {
                group.values.add(record, delta);
                group.touch(record.time);
            }
            series.timing.values.add(record, delta);
            series.timing.touch(record.time);
            if let Some(turns) = &delta.turns {
                let responses = series
                    .responses
                    .get_or_insert_with(|| values.responses_of(record, &mut series.is_overflow));
                responses.values.add(turns);
                responses.touch(record.time);
            }
            is_overflow = series.is_overflow;
        }
        if self.settings.levels.contains(&Level::Connection) {
            is_overflow |= self.count_connection(record, delta);
        }
        if is_overflow {
            self.values.overflow.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn report(&mut self, record: &Record) -> io::Result<()> {
        if let Subject::Listener(queue) = record.subject {
            let _guard = self.values.lock();
            let Values {
                listeners,
                budget,
                overflow,
                ..
            } = &*self.values;
            self.listeners.report(record, queue, listeners, budget, overflow);
        }
        Ok(())
    }

    fn exclude(&mut self, id: ConnId) {
        let _guard = self.values.lock();
        self.listeners.remove(id);
    }

    fn watermark(&mut self, now: WallTime) -> io::Result<()> {
        let idle_ns = i64::try_from(self.settings.idle.as_nanos()).unwrap_or(i64::MAX);
        let every_ns = (idle_ns / 8).min(5_000_000_000);
        if now.0.saturating_sub(self.expired_at.0) < every_ns {
            return Ok(());
        }
        self.expired_at = now;
        let since = WallTime(now.0.saturating_sub(idle_ns));
        // Overflow keys are looked up again, since the budget may have series left now.
        self.cached.retain(|_, series| series.is_alive() && !series.is_overflow);
        // An open connection has an update each interval. If this one has none, its close was lost.
        self.connections.retain(|_, group| group.last_touched() >= since);
        let Values {
            budget,
            workload,
            service,
            connection,
            pairs,
            responses,
            listeners,
            ..
        } = &*self.values;
        for table in [workload, service, connection] {
            table.expire(since, budget);
        }
        pairs.expire(since, budget);
        responses.expire(since, budget);
        listeners.expire(since, budget);
        Ok(())
    }
}

fn label_key(record: &Record) -> LabelKey {
    let names = &record.names;
    LabelKey {
        direction: record.direction,
        src: names.src.pod.as_ref().map(|pod| Arc::as_ptr(pod).addr()),
        dst: names
            .dst
            .pod
            .as_ref()
            .map(|pod| (Arc::as_ptr(pod).addr(), record.dst.ip())),
        service: names.service.as_ref().map(|called| Arc::as_ptr(&called.service).addr()),
        is_mutual_tls: record.is_mutual_tls(),
    }
}
