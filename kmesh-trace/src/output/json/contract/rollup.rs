//! The JSON contract of `rollup` lines.

use std::net::IpAddr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use std::borrow::Cow;

use super::VERSION;
use super::values::{Text, ip_schema};
use crate::output::sanitize::Lossy;
use crate::record::{self, Direction, EndOutcomes, ReasonSums, WallTime};
use crate::rollup::{self, QuantileSummary, Quantiles, Responses, Row, Sums, Window};

/// What one group of connections did in one window of time.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "rollup")]
pub struct RollupLine<'a> {
    /// The type of the line.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "rollup"))]
    kind: &'static str,
    /// The version of the contract.
    #[schemars(extend("const" = VERSION))]
    v: u8,
    /// The end of the window.
    time: WallTime,
    /// The start of the window.
    window_start: WallTime,
    /// The length of the window.
    window_ns: u64,
    /// The facts that the connections of the group share.
    group: Group<'a>,
    /// Connections that were established and not closed when the window ended.
    open: u64,
    /// Attempts that were waiting for an answer when the window ended.
    connecting: u64,
    /// Connections that were established in the window.
    opened: u64,
    /// Connections and attempts that ended in the window.
    closed: u64,
    /// Connections and attempts that ended with an outcome other than ok.
    failed: u64,
    /// The number of ended connections by outcome.
    outcomes: Outcomes<'a>,
    /// The payload that the peers acknowledged in the window. Open connections count, too.
    sent_bytes: u64,
    /// The payload that arrived in the window.
    received_bytes: u64,
    /// The duration of the connections that ended and whose start was traced. Quantiles are exact for up to 64 values,
    /// then within 1 %.
    duration_quantiles_ns: Option<QuantileValues>,
    /// The time from sending the SYN to ESTABLISHED, of outbound connections that were established. Quantiles are exact
    /// for up to 64 values, then within 1 %.
    connect_quantiles_ns: Option<QuantileValues>,
    /// The smoothed round-trip time of the connections with an update or a close. Quantiles are exact for up to 64
    /// values, then within 1 %.
    srtt_quantiles_us: Option<QuantileValues>,
    /// The time to each answer: outbound until its first byte arrives, inbound until this end begins it. Estimated from
    /// histograms, near the middle when waits are similar; null without --turns.
    response_quantiles_ns: Option<QuantileValues>,
    /// The share of the time with data to send in which the peer's receive window was the limit; null if no data was
    /// sent.
    #[schemars(range(min = 0.0, max = 1.0))]
    rwnd_limited: Option<f64>,
    /// The share of the time with data to send in which the send buffer was the limit; null if no data was sent.
    #[schemars(range(min = 0.0, max = 1.0))]
    sndbuf_limited: Option<f64>,
    /// The number of ended connections whose traced end sent a RST, by the kernel's reason.
    reset_reasons: Reasons<'a>,
    /// The packets that this node dropped in the window, by the kernel's reason; empty without --drops.
    drops: Reasons<'a>,
    /// The segments that were retransmitted in the window.
    retransmits: u64,
    /// The segments that were marked lost in the window.
    lost_segments: u64,
}

impl<'a> RollupLine<'a> {
    /// Returns the line of a row of `window`.
    pub fn new(window: &Window, row: &'a Row) -> Self {
        let sums = &row.sums;
        let responses = sums.responses.as_deref();
        Self {
            kind: "rollup",
            v: VERSION,
            time: window.end(),
            window_start: window.start,
            window_ns: window.length_ns,
            group: Group::from(&*row.group),
            open: sums.open,
            connecting: sums.connecting,
            opened: sums.opened,
            closed: sums.closed,
            failed: sums.failed(),
            outcomes: Outcomes(sums),
            sent_bytes: sums.sent_bytes,
            received_bytes: sums.received_bytes,
            duration_quantiles_ns: quantiles(&sums.durations),
            connect_quantiles_ns: quantiles(&sums.connects),
            srtt_quantiles_us: quantiles(&sums.srtts),
            response_quantiles_ns: responses.and_then(Responses::summary).map(QuantileValues::from),
            rwnd_limited: sums.rwnd_limited(),
            sndbuf_limited: sums.sndbuf_limited(),
            reset_reasons: Reasons(&sums.reset_reasons),
            drops: Reasons(&sums.drops),
            retransmits: sums.retransmits,
            lost_segments: sums.lost_segments,
        }
    }
}

fn quantiles(quantiles: &Quantiles) -> Option<QuantileValues> {
    quantiles.summary().map(QuantileValues::from)
}

/// The median, the 95th and 99th percentile, and the exact maximum.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "quantiles")]
struct QuantileValues {
    p50: u64,
    p95: u64,
    p99: u64,
    max: u64,
}

impl From<QuantileSummary> for QuantileValues {
    fn from(QuantileSummary { p50, p95, p99, max }: QuantileSummary) -> Self {
        Self { p50, p95, p99, max }
    }
}

/// The shape of a conn line with only the grouped facts. Unknown facts are null.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "group")]
pub(super) struct Group<'a> {
    /// The ID of the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Text<record::ConnId>>,
    /// The end that was traced; null only in the group other.
    direction: Option<Direction>,
    /// The grouped facts of the client.
    src: GroupEnd<'a>,
    /// The grouped facts of the server.
    dst: GroupEnd<'a>,
    /// The Service that the clients called.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<Option<Service<'a>>>,
    /// The process that owns the sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Option<Process<'a>>>,
    /// How the connections ended; null while they have not.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Option<EndOutcomes>>,
    /// True for the group that counts the connections beyond --max-groups.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("const" = true))]
    other: bool,
}

impl<'a> From<&'a rollup::Group> for Group<'a> {
    fn from(group: &'a rollup::Group) -> Self {
        Self {
            id: group.id.map(Text),
            direction: group.direction,
            src: GroupEnd::from(&group.src),
            dst: GroupEnd::from(&group.dst),
            service: group.service.as_ref().map(|service| {
                service.as_deref().map(|service| Service {
                    name: &service.name,
                    namespace: &service.namespace,
                    host: &service.host,
                })
            }),
            process: Process::of(group),
            outcome: group.outcome,
            other: group.is_other(),
        }
    }
}

/// The grouped facts of one end. An end without a pod or workload is grouped by its node or address.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "group_end")]
struct GroupEnd<'a> {
    /// The address of this end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "ip_schema")]
    ip: Option<IpAddr>,
    /// The port of this end.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// The namespace of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    /// The name of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    /// The controller that users know, such as the Deployment.
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<&'a str>,
    /// The kind of the workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    workload_kind: Option<&'a str>,
    /// The name of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
}

impl<'a> From<&'a rollup::GroupEnd> for GroupEnd<'a> {
    fn from(end: &'a rollup::GroupEnd) -> Self {
        let workload = end.workload.as_ref();
        Self {
            ip: end.ip,
            port: end.port,
            namespace: end.namespace.as_deref(),
            pod: end.pod.as_deref(),
            workload: workload.map(|workload| &*workload.name),
            workload_kind: workload.map(|workload| &*workload.kind),
            node: end.node.as_deref(),
        }
    }
}

/// The Service that the clients called.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "group_service")]
struct Service<'a> {
    /// The name of the Service.
    name: &'a str,
    /// The namespace of the Service.
    namespace: &'a str,
    /// The DNS name of the Service.
    host: &'a str,
}

/// The process, or the processes with one name.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "group_process")]
struct Process<'a> {
    /// The name of the thread-group leader, which the process itself chooses.
    #[serde(skip_serializing_if = "Option::is_none")]
    comm: Option<Text<Lossy<'a>>>,
    /// The process ID in the initial pid namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
}

impl<'a> Process<'a> {
    /// Returns `Some(None)` if the group is one of unknown processes.
    fn of(group: &'a rollup::Group) -> Option<Option<Self>> {
        if group.process.is_none() && group.pid.is_none() {
            return None;
        }
        let comm = group.process.as_ref().and_then(Option::as_ref);
        let pid = group.pid.flatten();
        Some((comm.is_some() || pid.is_some()).then(|| Self {
            comm: comm.map(|comm| Text(Lossy(comm.as_bytes()))),
            pid,
        }))
    }
}

/// The number of ended connections by outcome, as one object. Outcomes that did not occur are left out.
#[derive(Debug)]
struct Outcomes<'a>(&'a Sums);

impl Serialize for Outcomes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (outcomes, count) in self.0.by_outcome() {
            map.serialize_entry(&outcomes, &count)?;
        }
        map.end()
    }
}

impl JsonSchema for Outcomes<'_> {
    fn schema_name() -> Cow<'static, str> {
        "outcomes".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let names = generator.subschema_for::<EndOutcomes>();
        json_schema!({
            "type": "object",
            "propertyNames": names,
            "additionalProperties": {"type": "integer", "minimum": 1},
        })
    }
}

/// Counts by the kernel's reason, as one object. Reasons that did not occur are left out.
#[derive(Debug)]
struct Reasons<'a>(&'a ReasonSums);

impl Serialize for Reasons<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter())
    }
}

impl JsonSchema for Reasons<'_> {
    fn schema_name() -> Cow<'static, str> {
        "reason_counts".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}})
    }
}
