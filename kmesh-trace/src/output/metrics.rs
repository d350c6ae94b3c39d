//! Metrics for Prometheus: what records add to which series, and who may ask for them.
//!
//! [`Metrics`] is told of every record that passes the filters, in the thread that delivers them, and adds to values that
//! [`exposition`] reads and [`server`] serves, in a thread of its own. In the steady state a record costs one look-up, one
//! lock that nobody else holds but for a scrape a second, and no allocation.

mod encode;
pub mod exposition;
pub mod labels;
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
use crate::record::{ConnId, Direction, Event, Outcome, Pod, Record, RunInfo, Service, WallTime};
use crate::track::delta::Delta;
use exposition::Values;
use labels::{Labels, Pair};
use series::{Group, Room, Table, Timing, Traffic};

/// Pairs of ends whose series are remembered. Then all are looked up anew.
const MOST_ROUTES: usize = 1 << 15;

type TrafficGroup = Arc<Group<Labels, Traffic>>;

/// Whatever decides about the labels of a record, compared by address: names are shared, and the same as long as they live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Route {
    direction: Direction,
    src: Option<usize>,
    dst: Option<(usize, IpAddr)>,
    service: Option<usize>,
    is_mutual_tls: bool,
}

/// Where the records of a route count.
#[derive(Debug)]
struct Place {
    /// These keep the addresses of the route from being given to another, and tell when the pods are gone.
    src: Option<Weak<Pod>>,
    dst: Option<Weak<Pod>>,
    service: Option<Weak<Service>>,
    traffic: [Option<TrafficGroup>; 2],
    timing: Arc<Group<Pair, Timing>>,
    /// Some of it in the series of all the rest.
    is_folded: bool,
}

impl Place {
    fn lives(&self) -> bool {
        let pods = [&self.src, &self.dst].into_iter().flatten();
        let service = self.service.iter().map(Weak::strong_count);
        pods.map(Weak::strong_count).chain(service).all(|owners| owners > 0)
    }
}

/// Counts records.
#[derive(Debug)]
pub struct Metrics {
    settings: SeriesConfig,
    values: Arc<Values>,
    routes: HashMap<Route, Place>,
    /// The series of the connections that are open, at [`Level::Connection`].
    connections: HashMap<ConnId, TrafficGroup>,
    tidied: WallTime,
}

impl Metrics {
    /// Nothing is counted yet.
    pub fn new(settings: SeriesConfig, info: &RunInfo) -> Self {
        let compat = settings.common.compat;
        let values = Arc::new(Values {
            turn: Mutex::new(()),
            room: Room::new(settings.max_series),
            compat,
            version: info.version.clone(),
            workload: Table::new(exposition::series_of_workload(compat)),
            service: Table::new(exposition::series_of_service(compat)),
            connection: Table::new(exposition::SERIES_OF_CONNECTION),
            pairs: Table::new(Timing::SERIES),
            outcomes: [const { AtomicU64::new(0) }; Outcome::ALL.len()],
            lost: AtomicU64::new(0),
            unresolved: AtomicU64::new(0),
            folded: AtomicU64::new(0),
            open: AtomicI64::new(0),
            pods: AtomicI64::new(0),
        });
        Self {
            settings,
            values,
            routes: HashMap::new(),
            connections: HashMap::new(),
            tidied: WallTime(i64::MIN),
        }
    }

    /// What is counted, for whoever scrapes it.
    pub fn values(&self) -> Arc<Values> {
        Arc::clone(&self.values)
    }

    fn close(&self, record: &Record) {
        let outcome = Outcome::ALL.iter().position(|one| Some(*one) == record.outcome);
        if let Some(count) = outcome.and_then(|outcome| self.values.outcomes.get(outcome)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if record.names.unresolved {
            self.values.unresolved.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn place(&self, record: &Record) -> Place {
        let Values {
            room,
            workload,
            service,
            pairs,
            ..
        } = &*self.values;
        let mut is_folded = false;
        let mut traffic = |table: &Table<Labels, Traffic>, level| {
            self.settings.levels.contains(&level).then(|| {
                let labels = Labels::new(record, level, &self.settings.common);
                table.group(labels, room).unwrap_or_else(|| {
                    is_folded = true;
                    table.folded(Labels::folded(record.direction, level))
                })
            })
        };
        let traffic = [traffic(workload, Level::Workload), traffic(service, Level::Service)];
        let timing = pairs.group(Pair::new(record), room).unwrap_or_else(|| {
            is_folded = true;
            pairs.folded(Pair::folded(record.direction))
        });
        let names = &record.names;
        Place {
            src: names.src.pod.as_ref().map(Arc::downgrade),
            dst: names.dst.pod.as_ref().map(Arc::downgrade),
            service: names.service.as_ref().map(|called| Arc::downgrade(&called.service)),
            traffic,
            timing,
            is_folded,
        }
    }

    /// Counts a record in the series of its own connection, and tells whether that had no room.
    fn one_by_one(&mut self, record: &Record, delta: &Delta) -> bool {
        let table = &self.values.connection;
        let known = self.connections.remove(&record.id);
        let group = known.or_else(|| {
            let labels = Labels::new(record, Level::Connection, &self.settings.common);
            table.group(labels, &self.values.room)
        });
        let is_folded = group.is_none();
        let group = group.unwrap_or_else(|| table.folded(Labels::folded(record.direction, Level::Connection)));
        group.values.add(record, delta);
        group.told(record.time);
        if !is_folded && record.event != Event::Close {
            self.connections.insert(record.id, group);
        }
        is_folded
    }
}

impl Sink for Metrics {
    fn needs_deltas(&self) -> bool {
        true
    }

    fn record(&mut self, record: &Record, delta: &Delta) -> io::Result<()> {
        // What it moved before tracing, another tracer may have counted.
        let delta = match delta.is_past {
            true => Delta::default(),
            false => *delta,
        };
        let values = Arc::clone(&self.values);
        let _turn = values.turn();
        if record.event == Event::Close {
            self.close(record);
        }
        let route = route(record);
        if !self.routes.contains_key(&route) {
            let place = self.place(record);
            if self.routes.len() >= MOST_ROUTES {
                self.routes.clear();
            }
            self.routes.insert(route, place);
        }
        let mut is_folded = false;
        if let Some(place) = self.routes.get(&route) {
            for group in place.traffic.iter().flatten() {
                group.values.add(record, &delta);
                group.told(record.time);
            }
            place.timing.values.add(record, &delta);
            place.timing.told(record.time);
            is_folded = place.is_folded;
        }
        if self.settings.levels.contains(&Level::Connection) {
            is_folded |= self.one_by_one(record, &delta);
        }
        if is_folded {
            self.values.folded.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn watermark(&mut self, now: WallTime) -> io::Result<()> {
        let idle_ns = i64::try_from(self.settings.idle.as_nanos()).unwrap_or(i64::MAX);
        let every_ns = (idle_ns / 8).min(5_000_000_000);
        if now.0.saturating_sub(self.tidied.0) < every_ns {
            return Ok(());
        }
        self.tidied = now;
        let since = WallTime(now.0.saturating_sub(idle_ns));
        // What had no room may have some now.
        self.routes.retain(|_, place| place.lives() && !place.is_folded);
        // Its close was lost: what is open is told of each interval.
        self.connections.retain(|_, group| group.last_told() >= since);
        let Values {
            room,
            workload,
            service,
            connection,
            pairs,
            ..
        } = &*self.values;
        for table in [workload, service, connection] {
            table.expire(since, room);
        }
        pairs.expire(since, room);
        Ok(())
    }
}

fn route(record: &Record) -> Route {
    let names = &record.names;
    Route {
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
