//! Encoders for single values.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Encodes a counter without labels. The encoder appends `_total` to its name.
pub(super) fn counter(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: impl prometheus_client::encoding::EncodeCounterValue,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    family.encode_counter::<NoLabelSet, _, f64>(&value, None)
}

/// Encodes a gauge without labels under its name.
pub(super) fn gauge(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    family.encode_gauge(&value)
}

/// Encodes the value of a counter.
pub(super) fn value(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, count: &AtomicU64) -> fmt::Result {
    let count = count.load(Ordering::Relaxed);
    family
        .encode_family(labels)?
        .encode_counter::<NoLabelSet, _, f64>(&count, None)
}
