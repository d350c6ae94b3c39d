//! The series of listening sockets.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::MetricType;

use super::encode::value;
use super::labels::{DESTINATION, OTHER, put, workload_and_namespace};
use super::series::{SeriesBudget, SeriesGroup, SeriesTable};
use crate::record::{AcceptQueue, ConnId, Record};

/// The labels of listeners: their workload and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListenerLabels {
    workload: (Arc<str>, Arc<str>),
    port: Arc<str>,
}

impl ListenerLabels {
    fn new(record: &Record) -> Self {
        Self {
            workload: workload_and_namespace(record.names.dst.pod.as_deref()),
            port: record.dst.port().to_string().into(),
        }
    }

    fn overflow() -> Self {
        Self {
            workload: (OTHER.into(), OTHER.into()),
            port: OTHER.into(),
        }
    }
}

impl EncodeLabelSet for ListenerLabels {
    fn encode(&self, to: &mut LabelSetEncoder<'_>) -> fmt::Result {
        put(to, DESTINATION.workload, &self.workload.0)?;
        put(to, DESTINATION.namespace, &self.workload.1)?;
        put(to, "port", &self.port)
    }
}

/// The sums over the listeners with the same labels.
#[derive(Debug, Default)]
pub struct Queues {
    backlog: AtomicU64,
    dropped: AtomicU64,
}

impl Queues {
    /// The number of series of one label set.
    pub const SERIES: usize = 2;
}

/// The listeners that were reported and are not gone, each with its series and its last backlog.
#[derive(Debug, Default)]
pub struct Listeners(HashMap<ConnId, (Arc<SeriesGroup<ListenerLabels, Queues>>, u32)>);

impl Listeners {
    /// Counts a report of a listener in `table`. Its pod may have been unknown when it was reported before. `overflow`
    /// counts the reports for which `budget` has no series left.
    pub fn report(
        &mut self,
        record: &Record,
        queue: AcceptQueue,
        table: &SeriesTable<ListenerLabels, Queues>,
        budget: &SeriesBudget,
        overflow: &AtomicU64,
    ) {
        self.remove(record.id);
        let group = table.group(ListenerLabels::new(record), budget).unwrap_or_else(|| {
            overflow.fetch_add(1, Ordering::Relaxed);
            table.overflow(ListenerLabels::overflow())
        });
        group.values.backlog.fetch_add(queue.backlog.into(), Ordering::Relaxed);
        group.values.dropped.fetch_add(queue.dropped.into(), Ordering::Relaxed);
        group.touch(record.time);
        self.0.insert(record.id, (group, queue.backlog));
    }

    /// Forgets a listener that is gone.
    pub fn remove(&mut self, id: ConnId) {
        if let Some((group, backlog)) = self.0.remove(&id) {
            group.values.backlog.fetch_sub(backlog.into(), Ordering::Relaxed);
        }
    }
}

/// Encodes the series of all listeners.
pub fn encode(to: &mut DescriptorEncoder<'_>, table: &SeriesTable<ListenerLabels, Queues>) -> fmt::Result {
    let groups = table.all();
    let help = "Connections that no process has accepted yet, at the last socket scan";
    let mut family = to.encode_descriptor("kmesh_trace_listener_backlog", help, None, MetricType::Gauge)?;
    for group in &groups {
        let backlog = group.values.backlog.load(Ordering::Relaxed);
        family.encode_family(&*group.labels)?.encode_gauge(&backlog)?;
    }
    let help = "Packets that listening sockets dropped since a socket scan found them";
    let mut family = to.encode_descriptor("kmesh_trace_listener_dropped", help, None, MetricType::Counter)?;
    for group in &groups {
        value(&mut family, &*group.labels, &group.values.dropped)?;
    }
    Ok(())
}
