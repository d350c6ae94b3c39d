//! The families as text. What they are called and what they say is in one place, here.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::encode::{counter, gauge};
use super::labels::{Flagged, Labels, Pair};
use super::process;
use super::series::{Group, Room, Table, Timing, Traffic};
use crate::record::Outcome;

/// How the response calls it: what Prometheus asks for first.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All values, shared between whoever counts and whoever scrapes. Nothing is behind the lock: it is held while a record is
/// added and while all is read, so that a scrape sees all of a record or nothing, in every family.
#[derive(Debug)]
pub struct Values {
    pub(super) turn: Mutex<()>,
    pub(super) room: Room,
    pub(super) compat: bool,
    pub(super) version: String,
    pub(super) workload: Table<Labels, Traffic>,
    pub(super) service: Table<Labels, Traffic>,
    pub(super) connection: Table<Labels, Traffic>,
    pub(super) pairs: Table<Pair, Timing>,
    /// In the order of [`Outcome::ALL`].
    pub(super) outcomes: [AtomicU64; Outcome::ALL.len()],
    pub(super) lost: AtomicU64,
    pub(super) unresolved: AtomicU64,
    pub(super) folded: AtomicU64,
    pub(super) open: AtomicI64,
    pub(super) pods: AtomicI64,
}

impl Values {
    /// Sets the number of records lost so far.
    pub fn set_lost(&self, lost: u64) {
        self.lost.fetch_max(lost, Ordering::Relaxed);
    }

    /// Sets the number of open connections.
    pub fn set_open(&self, open: u64) {
        self.open
            .store(i64::try_from(open).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Sets the number of pods that the name sources know.
    pub fn set_pods(&self, known: usize) {
        self.pods
            .store(i64::try_from(known).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

/// Encodes them, and keeps how large that was.
#[derive(Debug)]
pub struct Exposition {
    values: Arc<Values>,
    registry: Registry,
    size: usize,
}

impl Exposition {
    /// Of these values.
    pub fn new(values: Arc<Values>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&values)));
        Self {
            values,
            registry,
            size: 0,
        }
    }

    /// All families, as OpenMetrics text.
    pub fn text(&mut self) -> String {
        let mut text = String::with_capacity(self.size + self.size / 8);
        let _turn = self.values.turn();
        // Writing to a string cannot fail.
        _ = encode(&mut text, &self.registry);
        self.size = text.len();
        text
    }
}

/// One count of what was seen.
type Count = fn(&Traffic) -> &AtomicU64;

/// A family of counters: its name, its help, and where its value is.
type Family = (&'static str, &'static str, Count);

const WORKLOAD: [Family; 6] = [
    (
        "kmesh_tcp_workload_connections_opened",
        "Connections established, to a workload",
        |of| &of.opened,
    ),
    (
        "kmesh_tcp_workload_connections_closed",
        "Established connections that ended, to a workload",
        |of| &of.closed,
    ),
    (
        "kmesh_tcp_workload_received_bytes",
        "Payload received at the reporter's end, bytes",
        |of| &of.received_bytes,
    ),
    (
        "kmesh_tcp_workload_sent_bytes",
        "Payload sent from the reporter's end and acknowledged, bytes",
        |of| &of.sent_bytes,
    ),
    ("kmesh_tcp_retrans", "Segments sent again by the reporter's end", |of| {
        &of.retransmits
    }),
    (
        "kmesh_tcp_packet_loss",
        "Segments that the reporter's end marked lost",
        |of| &of.lost_segments,
    ),
];
const SERVICE: [Family; 4] = [
    (
        "kmesh_tcp_connections_opened",
        "Connections established, to a Service",
        |of| &of.opened,
    ),
    (
        "kmesh_tcp_connections_closed",
        "Established connections that ended, to a Service",
        |of| &of.closed,
    ),
    (
        "kmesh_tcp_received_bytes",
        "Payload received at the reporter's end, bytes",
        |of| &of.received_bytes,
    ),
    (
        "kmesh_tcp_sent_bytes",
        "Payload sent from the reporter's end and acknowledged, bytes",
        |of| &of.sent_bytes,
    ),
];
const CONNECTION: [Family; 4] = [
    (
        "kmesh_tcp_connection_sent_bytes",
        "Payload sent from the reporter's end and acknowledged, bytes",
        |of| &of.sent_bytes,
    ),
    (
        "kmesh_tcp_connection_received_bytes",
        "Payload received at the reporter's end, bytes",
        |of| &of.received_bytes,
    ),
    (
        "kmesh_tcp_connection_packet_lost",
        "Segments that the reporter's end marked lost",
        |of| &of.lost_segments,
    ),
    (
        "kmesh_tcp_connection_retrans",
        "Segments sent again by the reporter's end",
        |of| &of.retransmits,
    ),
];
/// Two series each: never connected, and ended by a reset or a time limit.
const FAILED: [(&str, Count); 2] = [("UF", |of| &of.failed_connecting), ("UC", |of| &of.failed_connected)];
const FAILED_HELP: &str =
    "Attempts that never connected (UF) and connections that ended by a reset or a time limit (UC)";

/// Series that a workload or a Service makes.
pub(super) fn series_of_workload(compat: bool) -> usize {
    WORKLOAD.len() + FAILED.len() * (1 + usize::from(compat))
}

/// Likewise.
pub(super) fn series_of_service(compat: bool) -> usize {
    SERVICE.len() + FAILED.len() * (1 + usize::from(compat))
}

/// Likewise, of one connection.
pub(super) const SERIES_OF_CONNECTION: usize = CONNECTION.len();

type Groups = [Arc<Group<Labels, Traffic>>];

impl Collector for Values {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let to = &mut to;
        let workload = self.workload.all();
        families(to, &WORKLOAD, &workload)?;
        failed(to, "kmesh_tcp_workload_connections_failed", &workload)?;
        if self.compat {
            failed(to, "kmesh_tcp_workload_conntections_failed", &workload)?;
        }
        let service = self.service.all();
        families(to, &SERVICE, &service)?;
        failed(to, "kmesh_tcp_connections_failed", &service)?;
        if self.compat {
            failed(to, "kmesh_tcp_conntections_failed", &service)?;
        }
        families(to, &CONNECTION, &self.connection.all())?;
        self.histograms(to)?;
        self.own(to)?;
        process::encode(to)
    }
}

impl Values {
    /// Held, nobody else adds or reads.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn histograms(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let pairs = self.pairs.all();
        let mut one = |name, help, which: fn(&Timing) -> &Histogram, is_of: fn(&Pair) -> bool| {
            let mut family = to.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for pair in pairs.iter().filter(|pair| is_of(&pair.labels)) {
                which(&pair.values).encode(family.encode_family(&*pair.labels)?)?;
            }
            Ok(())
        };
        let help = "From the SYN sent to the connection established, at the client's end, seconds";
        one(
            "kmesh_trace_connect_duration_seconds",
            help,
            |of| &of.connect,
            Pair::is_of_client,
        )?;
        let help = "From the beginning of a connection to its end, seconds";
        one(
            "kmesh_trace_connection_duration_seconds",
            help,
            |of| &of.duration,
            |_| true,
        )
    }

    fn own(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Connections and attempts that ended, by how";
        let mut outcomes = to.encode_descriptor("kmesh_trace_outcomes", help, None, MetricType::Counter)?;
        for (outcome, count) in Outcome::ALL.iter().zip(&self.outcomes) {
            value(&mut outcomes, &[("outcome", outcome.name())], count)?;
        }
        let counters = [
            (
                "kmesh_trace_lost_records",
                "Records lost, for whatever reason",
                &self.lost,
            ),
            (
                "kmesh_trace_unresolved",
                "Records with an end that is a pod of this node and has no name",
                &self.unresolved,
            ),
            (
                "kmesh_trace_metrics_folded",
                "Records counted in series of all the rest, for want of room",
                &self.folded,
            ),
        ];
        for (name, help, count) in counters {
            counter(to, name, help, count.load(Ordering::Relaxed))?;
        }
        let gauges = [
            (
                "kmesh_trace_open_connections",
                "Connections and attempts known and not ended",
                &self.open,
            ),
            ("kmesh_trace_pods", "Pods known", &self.pods),
        ];
        for (name, help, count) in gauges {
            gauge(to, name, help, count.load(Ordering::Relaxed) as f64)?;
        }
        let labels = [("version", &*self.version)];
        let mut build = to.encode_descriptor("kmesh_trace_build_info", "This program", None, MetricType::Gauge)?;
        build.encode_family(&labels)?.encode_gauge(&1_i64)
    }
}

fn families(to: &mut DescriptorEncoder<'_>, families: &[Family], groups: &Groups) -> fmt::Result {
    for (name, help, which) in families {
        let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
        for group in groups {
            let labels = Flagged {
                labels: &group.labels,
                flags: "-",
            };
            value(&mut family, &labels, which(&group.values))?;
        }
    }
    Ok(())
}

fn failed(to: &mut DescriptorEncoder<'_>, name: &str, groups: &Groups) -> fmt::Result {
    let mut family = to.encode_descriptor(name, FAILED_HELP, None, MetricType::Counter)?;
    for group in groups {
        if group.labels.is_folded() {
            let both = FAILED
                .iter()
                .map(|(_, which)| which(&group.values).load(Ordering::Relaxed));
            let both = AtomicU64::new(both.sum());
            let labels = Flagged {
                labels: &group.labels,
                flags: "-",
            };
            value(&mut family, &labels, &both)?;
            continue;
        }
        for (flags, which) in FAILED {
            let labels = Flagged {
                labels: &group.labels,
                flags,
            };
            value(&mut family, &labels, which(&group.values))?;
        }
    }
    Ok(())
}

fn value(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, count: &AtomicU64) -> fmt::Result {
    let count = count.load(Ordering::Relaxed);
    family
        .encode_family(labels)?
        .encode_counter::<NoLabelSet, _, f64>(&count, None)
}
