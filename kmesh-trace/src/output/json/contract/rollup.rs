//! `rollup` lines.

use std::net::IpAddr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use std::borrow::Cow;

use super::VERSION;
use super::values::{Text, ip_schema};
use crate::output::sanitize::Lossy;
use crate::record::{self, Direction, Outcome, WallTime};
use crate::rollup::{self, QuantileSummary, Quantiles, Row, Sums, Window};

/// What one group of connections did in one window of time.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "rollup")]
pub struct RollupLine<'a> {
    /// The line's type.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "rollup"))]
    kind: &'static str,
    /// Version of the contract.
    #[schemars(extend("const" = VERSION))]
    v: u8,
    /// When the window ended.
    time: WallTime,
    /// When it began.
    window_start: WallTime,
    /// How long it was.
    window_ns: u64,
    /// What the connections have in common.
    group: Group<'a>,
    /// Established and not closed when the window ended.
    open: u64,
    /// Attempts that were neither established nor over when it ended.
    connecting: u64,
    /// Became established.
    opened: u64,
    /// Ended, attempts that failed included.
    closed: u64,
    /// Ended with any outcome but ok.
    failed: u64,
    /// How many ended how.
    outcomes: Outcomes<'a>,
    /// Payload that the peers acknowledged in the window, of connections that stay open, too.
    sent_bytes: u64,
    /// Payload that arrived in it.
    received_bytes: u64,
    /// Of those that ended and whose beginning was seen: from start to end. Within 1 %, exact up to 64 of them.
    duration_quantiles_ns: Option<QuantilesNs>,
    /// Of those that became established at the client's end: SYN sent to ESTABLISHED. Likewise.
    connect_quantiles_ns: Option<QuantilesNs>,
    /// Of those that were updated or ended: smoothed round-trip time. Likewise.
    srtt_quantiles_us: Option<QuantilesNs>,
    /// Segments sent again in the window.
    retransmits: u64,
    /// Segments marked lost in it.
    lost_segments: u64,
}

impl<'a> RollupLine<'a> {
    /// The line of a row of `window`.
    pub fn new(window: &Window, row: &'a Row) -> Self {
        let sums = &row.sums;
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
            retransmits: sums.retransmits,
            lost_segments: sums.lost_segments,
        }
    }
}

fn quantiles(quantiles: &Quantiles) -> Option<QuantilesNs> {
    quantiles.summary().map(QuantilesNs::from)
}

/// Half of the values, 95 and 99 of 100 are not larger; and the largest, exactly.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "quantiles")]
struct QuantilesNs {
    p50: u64,
    p95: u64,
    p99: u64,
    max: u64,
}

impl From<QuantileSummary> for QuantilesNs {
    fn from(QuantileSummary { p50, p95, p99, max }: QuantileSummary) -> Self {
        Self { p50, p95, p99, max }
    }
}

/// A conn of which only the grouped facts are there, null where they are not known.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "group")]
struct Group<'a> {
    /// The connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Text<record::ConnId>>,
    /// Which end was traced; null only in the group of all others.
    direction: Option<Direction>,
    /// The client; what is grouped of it.
    src: Place<'a>,
    /// The server, likewise.
    dst: Place<'a>,
    /// The Service that was called.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<Option<Service<'a>>>,
    /// The process that the sockets belong to.
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Option<Process<'a>>>,
    /// How they ended; null while they have not.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Option<Outcome>>,
    /// True in the group of all that --max-groups had no room for.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("const" = true))]
    other: bool,
}

impl<'a> From<&'a rollup::Group> for Group<'a> {
    fn from(group: &'a rollup::Group) -> Self {
        Self {
            id: group.id.map(Text),
            direction: group.direction,
            src: Place::from(&group.src),
            dst: Place::from(&group.dst),
            service: group.service.as_ref().map(|service| {
                service.as_deref().map(|service| Service {
                    name: &service.name,
                    namespace: &service.namespace,
                    host: &service.host,
                })
            }),
            process: group.process.as_ref().map(|comm| {
                comm.as_ref().map(|comm| Process {
                    comm: Text(Lossy(comm.as_bytes())),
                })
            }),
            outcome: group.outcome,
            other: group.is_other(),
        }
    }
}

/// What is grouped of one end. The address, or the node whose address it is, stands for a pod or workload that is none.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "place")]
struct Place<'a> {
    /// Its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "ip_schema")]
    ip: Option<IpAddr>,
    /// Its port.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// The pod's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    /// The pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    /// The controller that people name.
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<&'a str>,
    /// Its kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    workload_kind: Option<&'a str>,
    /// The node.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
}

impl<'a> From<&'a rollup::Place> for Place<'a> {
    fn from(place: &'a rollup::Place) -> Self {
        let workload = place.workload.as_ref();
        Self {
            ip: place.ip,
            port: place.port,
            namespace: place.namespace.as_deref(),
            pod: place.pod.as_deref(),
            workload: workload.map(|workload| &*workload.name),
            workload_kind: workload.map(|workload| &*workload.kind),
            node: place.node.as_deref(),
        }
    }
}

/// The Service that was called.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "group_service")]
struct Service<'a> {
    /// Its name.
    name: &'a str,
    /// Its namespace.
    namespace: &'a str,
    /// Its DNS name.
    host: &'a str,
}

/// Processes of one name.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "group_process")]
struct Process<'a> {
    /// Of the thread-group leader; chosen by the process itself.
    comm: Text<Lossy<'a>>,
}

/// How many ended how, in one object; what there was none of is not in it.
#[derive(Debug)]
struct Outcomes<'a>(&'a Sums);

impl Serialize for Outcomes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (outcome, count) in self.0.by_outcome() {
            map.serialize_entry(outcome.name(), &count)?;
        }
        map.end()
    }
}

impl JsonSchema for Outcomes<'_> {
    fn schema_name() -> Cow<'static, str> {
        "outcomes".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let names = generator.subschema_for::<Outcome>();
        json_schema!({
            "type": "object",
            "propertyNames": names,
            "additionalProperties": {"type": "integer", "minimum": 1},
        })
    }
}
