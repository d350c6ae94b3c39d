//! The metrics as text. The names and help texts of all metrics are here.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::encode::{counter, gauge, value};
use super::labels::{Labels, LabelsWithFlags, PairLabels};
use super::listeners::{self, ListenerLabels, Queues};
#[cfg(target_os = "linux")]
use super::process;
use super::series::{ResponseTimes, SeriesBudget, SeriesGroup, SeriesTable, Timing, Traffic};
use crate::record::{Outcome, Record};

/// The content type of the response. Prometheus prefers this format.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All values, shared between the sink and the exposition. The lock guards no data: the sink holds it while it counts a
/// record, and a scrape while it reads, so that a scrape sees a record in all its series or in none.
#[derive(Debug)]
pub struct Values {
    pub(super) lock: Mutex<()>,
    pub(super) budget: SeriesBudget,
    pub(super) compat: bool,
    pub(super) version: String,
    pub(super) workload: SeriesTable<Labels, Traffic>,
    pub(super) service: SeriesTable<Labels, Traffic>,
    pub(super) connection: SeriesTable<Labels, Traffic>,
    pub(super) pairs: SeriesTable<PairLabels, Timing>,
    pub(super) responses: SeriesTable<PairLabels, ResponseTimes>,
    pub(super) listeners: SeriesTable<ListenerLabels, Queues>,
    /// In the order of [`Outcome::ALL`].
    pub(super) outcomes: [AtomicU64; Outcome::ALL.len()],
    pub(super) lost: AtomicU64,
    pub(super) unresolved: AtomicU64,
    pub(super) overflow: AtomicU64,
    pub(super) open: AtomicI64,
    pub(super) pods: AtomicI64,
    pub(super) reasons: Mutex<ReasonTotals>,
}

/// The totals by the kernel's reason.
#[derive(Debug, Default)]
pub(super) struct ReasonTotals {
    drops: Vec<(Arc<str>, u64)>,
    rejects: Vec<(Arc<str>, u64)>,
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

    /// Sets the numbers of packets that the kernel dropped and of RSTs that it sent without a socket, by reason.
    pub fn set_reasons(&self, drops: Vec<(Arc<str>, u64)>, rejects: Vec<(Arc<str>, u64)>) {
        *self.reasons.lock().unwrap_or_else(PoisonError::into_inner) = ReasonTotals { drops, rejects };
    }

    /// Sets the number of pods that the name sources know.
    pub fn set_pods(&self, known: usize) {
        self.pods
            .store(i64::try_from(known).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

/// Renders the values as text. Remembers the size of the last text for the next buffer.
#[derive(Debug)]
pub struct Exposition {
    values: Arc<Values>,
    registry: Registry,
    size: usize,
}

impl Exposition {
    /// Returns an exposition of `values`.
    pub fn new(values: Arc<Values>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&values)));
        Self {
            values,
            registry,
            size: 0,
        }
    }

    /// Returns all metrics as OpenMetrics text.
    pub fn text(&mut self) -> String {
        let mut text = String::with_capacity(self.size + self.size / 8);
        let _guard = self.values.lock();
        // Writing to a string cannot fail.
        _ = encode(&mut text, &self.registry);
        self.size = text.len();
        text
    }
}

/// Selects a counter of a group.
type Count = fn(&Traffic) -> &AtomicU64;

/// A counter metric: its name, its help, and its value.
type Family = (&'static str, &'static str, Count);

const WORKLOAD: [Family; 6] = [
    (
        "kmesh_tcp_workload_connections_opened",
        "Connections established, to a workload",
        |traffic| &traffic.opened,
    ),
    (
        "kmesh_tcp_workload_connections_closed",
        "Established connections that ended, to a workload",
        |traffic| &traffic.closed,
    ),
    (
        "kmesh_tcp_workload_received_bytes",
        "Payload received at the reporter's end, bytes",
        |traffic| &traffic.received_bytes,
    ),
    (
        "kmesh_tcp_workload_sent_bytes",
        "Payload sent from the reporter's end and acknowledged, bytes",
        |traffic| &traffic.sent_bytes,
    ),
    (
        "kmesh_tcp_retrans",
        "Segments sent again by the reporter's end",
        |traffic| &traffic.retransmits,
    ),
    (
        "kmesh_tcp_packet_loss",
        "Segments that the reporter's end marked lost",
        |traffic| &traffic.lost_segments,
    ),
];
const SERVICE: [Family; 4] = [
    (
        "kmesh_tcp_connections_opened",
        "Connections established, to a Service",
        |traffic| &traffic.opened,
    ),
    (
        "kmesh_tcp_connections_closed",
        "Established connections that ended, to a Service",
        |traffic| &traffic.closed,
    ),
    (
        "kmesh_tcp_received_bytes",
        "Payload received at the reporter's end, bytes",
        |traffic| &traffic.received_bytes,
    ),
    (
        "kmesh_tcp_sent_bytes",
        "Payload sent from the reporter's end and acknowledged, bytes",
        |traffic| &traffic.sent_bytes,
    ),
];
const CONNECTION: [Family; 4] = [
    (
        "kmesh_tcp_connection_sent_bytes",
        "Payload sent from the reporter's end and acknowledged, bytes",
        |traffic| &traffic.sent_bytes,
    ),
    (
        "kmesh_tcp_connection_received_bytes",
        "Payload received at the reporter's end, bytes",
        |traffic| &traffic.received_bytes,
    ),
    (
        "kmesh_tcp_connection_packet_lost",
        "Segments that the reporter's end marked lost",
        |traffic| &traffic.lost_segments,
    ),
    (
        "kmesh_tcp_connection_retrans",
        "Segments sent again by the reporter's end",
        |traffic| &traffic.retransmits,
    ),
];
/// The two series of failures: attempts that never connected, and connections that ended with a reset or a timeout.
const FAILED: [(&str, Count); 2] = [
    ("UF", |traffic| &traffic.failed_connecting),
    ("UC", |traffic| &traffic.failed_connected),
];
const FAILED_HELP: &str =
    "Attempts that never connected (UF) and connections that ended with a reset or a timeout (UC)";

/// Returns the number of series of one label set at the workload level.
pub(super) fn series_of_workload(compat: bool) -> usize {
    WORKLOAD.len() + FAILED.len() * (1 + usize::from(compat))
}

/// Returns the number of series of one label set at the service level.
pub(super) fn series_of_service(compat: bool) -> usize {
    SERVICE.len() + FAILED.len() * (1 + usize::from(compat))
}

/// The number of series of one connection.
pub(super) const SERIES_OF_CONNECTION: usize = CONNECTION.len();

type Groups = [Arc<SeriesGroup<Labels, Traffic>>];

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
        self.encode_histograms(to)?;
        listeners::encode(to, &self.listeners)?;
        self.encode_own(to)?;
        #[cfg(target_os = "linux")]
        process::encode(to)?;
        Ok(())
    }
}

impl Values {
    /// Returns the times to the answers for the labels of a record. Sets `is_overflow` if the budget is exhausted.
    pub(super) fn responses_of(
        &self,
        record: &Record,
        is_overflow: &mut bool,
    ) -> Arc<SeriesGroup<PairLabels, ResponseTimes>> {
        let group = self.responses.group(PairLabels::new(record), &self.budget);
        group.unwrap_or_else(|| {
            *is_overflow = true;
            self.responses.overflow(PairLabels::overflow(record.direction))
        })
    }

    /// Locks out the sink and all other scrapes.
    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn encode_histograms(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let pairs = self.pairs.all();
        let mut encode = |name, help, histogram: fn(&Timing) -> &Histogram, has_it: fn(&PairLabels) -> bool| {
            let mut family = to.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for pair in pairs.iter().filter(|pair| has_it(&pair.labels)) {
                histogram(&pair.values).encode(family.encode_family(&*pair.labels)?)?;
            }
            Ok(())
        };
        let help = "From sending the SYN to the established connection, at the client's end, seconds";
        encode(
            "kmesh_trace_connect_duration_seconds",
            help,
            |timing| &timing.connect,
            PairLabels::is_of_client,
        )?;
        let help = "From the start of a connection to its close, seconds";
        encode(
            "kmesh_trace_connection_duration_seconds",
            help,
            |timing| &timing.duration,
            |_| true,
        )?;
        let help =
            "The time to the first byte of each answer (source) or until the server began it (destination), seconds";
        let mut family = to.encode_descriptor("kmesh_trace_response_seconds", help, None, MetricType::Histogram)?;
        for responses in self.responses.all() {
            responses.values.0.encode(family.encode_family(&*responses.labels)?)?;
        }
        Ok(())
    }

    /// Encodes the metrics about the tracer itself.
    fn encode_own(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Connections and attempts that ended, by outcome";
        let mut outcomes = to.encode_descriptor("kmesh_trace_outcomes", help, None, MetricType::Counter)?;
        for (outcome, count) in Outcome::ALL.iter().zip(&self.outcomes) {
            value(&mut outcomes, &[("outcome", outcome.name())], count)?;
        }
        let counters = [
            ("kmesh_trace_lost_records", "Records lost, for any reason", &self.lost),
            (
                "kmesh_trace_unresolved",
                "Records with an end that belongs to a pod of this node and has no name",
                &self.unresolved,
            ),
            (
                "kmesh_trace_metrics_folded",
                "Records counted in overflow series, because the limit on series was reached",
                &self.overflow,
            ),
        ];
        for (name, help, count) in counters {
            counter(to, name, help, count.load(Ordering::Relaxed))?;
        }
        let gauges = [
            (
                "kmesh_trace_open_connections",
                "Connections and attempts that have not ended",
                &self.open,
            ),
            ("kmesh_trace_pods", "Pods that the name sources know", &self.pods),
        ];
        for (name, help, count) in gauges {
            gauge(to, name, help, count.load(Ordering::Relaxed) as f64)?;
        }
        let reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, help, totals) in [
            (
                "kmesh_trace_drops",
                "TCP packets that the kernel dropped, by its reason",
                &reasons.drops,
            ),
            (
                "kmesh_trace_rejects",
                "RSTs that the kernel sent without a socket, by its reason",
                &reasons.rejects,
            ),
        ] {
            let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (reason, total) in totals {
                value(&mut family, &[("reason", &**reason)], &AtomicU64::new(*total))?;
            }
        }
        let labels = [("version", &*self.version)];
        let mut build = to.encode_descriptor(
            "kmesh_trace_build_info",
            "The version of kmesh-trace",
            None,
            MetricType::Gauge,
        )?;
        build.encode_family(&labels)?.encode_gauge(&1_i64)
    }
}

fn families(to: &mut DescriptorEncoder<'_>, families: &[Family], groups: &Groups) -> fmt::Result {
    for (name, help, count) in families {
        let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
        for group in groups {
            let labels = LabelsWithFlags {
                labels: &group.labels,
                flags: "-",
            };
            value(&mut family, &labels, count(&group.values))?;
        }
    }
    Ok(())
}

fn failed(to: &mut DescriptorEncoder<'_>, name: &str, groups: &Groups) -> fmt::Result {
    let mut family = to.encode_descriptor(name, FAILED_HELP, None, MetricType::Counter)?;
    for group in groups {
        if group.labels.is_overflow() {
            let both = FAILED
                .iter()
                .map(|(_, count)| count(&group.values).load(Ordering::Relaxed));
            let both = AtomicU64::new(both.sum());
            let labels = LabelsWithFlags {
                labels: &group.labels,
                flags: "-",
            };
            value(&mut family, &labels, &both)?;
            continue;
        }
        for (flags, count) in FAILED {
            let labels = LabelsWithFlags {
                labels: &group.labels,
                flags,
            };
            value(&mut family, &labels, count(&group.values))?;
        }
    }
    Ok(())
}
