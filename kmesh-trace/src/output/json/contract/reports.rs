//! The lines that are about no connection, and the dropped packets of one.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, Serializer};

use super::{End, Local, Process, VERSION};
use crate::record::{self, AcceptQueue, PacketDirection, Record, WallTime};

use super::values::Text;

/// The packets of a connection that the kernel dropped for one reason.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "packet_drops")]
struct PacketDrops<'a> {
    /// Whether the traced end sent or received the packets.
    direction: PacketDirection,
    /// The kernel's reason, as its BTF spells it.
    reason: &'a str,
    /// The number of packets.
    packets: u64,
}

impl<'a> From<&'a record::PacketDrops> for PacketDrops<'a> {
    fn from(drops: &'a record::PacketDrops) -> Self {
        Self {
            direction: drops.direction,
            reason: &drops.reason,
            packets: drops.packets,
        }
    }
}

/// The packets of a connection that the kernel dropped, for all reasons.
#[derive(Debug)]
pub struct PacketDropsList<'a>(pub &'a [record::PacketDrops]);

impl Serialize for PacketDropsList<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(PacketDrops::from))
    }
}

impl JsonSchema for PacketDropsList<'_> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "packet_drops_list".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        <[PacketDrops<'_>]>::json_schema(generator)
    }
}

/// The changes of direction of a connection, and how long the answers took.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "turns")]
pub struct Turns<'a> {
    /// The number of turns: this end sent (outbound) or received (inbound), then the other direction began.
    count: u64,
    /// The sum of all waits: outbound for the first byte of the answer, inbound until this end began to answer.
    wait_ns: u64,
    /// The longest of these waits, ns.
    max_wait_ns: u64,
    /// The number of waits below 1, 2, 4, 8, … microseconds, each without the shorter ones. Ends with the last that is
    /// not 0.
    histogram: &'a [u64],
    /// The turns without a wait, because both directions moved at once.
    overlapped: u64,
}

impl<'a> From<&'a record::Turns> for Turns<'a> {
    fn from(turns: &'a record::Turns) -> Self {
        let length = turns.histogram.iter().rposition(|&count| count > 0);
        Self {
            count: turns.count,
            wait_ns: turns.wait_ns,
            max_wait_ns: turns.max_wait_ns,
            histogram: &turns.histogram[..length.map_or(0, |last| last + 1)],
            overlapped: turns.overlapped,
        }
    }
}

/// RSTs that this node sent because no socket was there; at most one line a second for each client, dialled port and
/// reason.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "reject")]
pub struct RejectLine<'a> {
    /// The type of the line.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "reject"))]
    kind: &'static str,
    /// The version of the contract.
    #[schemars(extend("const" = VERSION))]
    v: u8,
    /// The time of the report.
    time: WallTime,
    /// The client, without its port.
    #[schemars(schema_with = "client_schema")]
    src: End<'a>,
    /// The address and port that the client dialled.
    dst: End<'a>,
    /// The kernel's reason, as its BTF spells it.
    reason: Option<&'a str>,
    /// The number of RSTs since the last such line.
    count: u64,
    /// The inode number of the network namespace that sent them.
    netns: u32,
}

impl<'a> RejectLine<'a> {
    /// Returns the line of a record whose subject is a reject.
    pub fn new(record: &'a Record, count: u64) -> Self {
        Self {
            kind: "reject",
            v: VERSION,
            time: record.time,
            src: End::without_port(record.src.ip(), &record.names.src),
            dst: End::new(record.dst, &record.names.dst),
            reason: record.reset_reason.as_deref(),
            count,
            netns: record.netns,
        }
    }
}

/// Returns the schema of an end without its port.
fn client_schema(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = End::json_schema(generator);
    schema.insert("required".to_owned(), serde_json::json!(["ip"]));
    if let Some(properties) = schema
        .pointer_mut("/properties")
        .and_then(|value| value.as_object_mut())
    {
        properties.remove("port");
    }
    schema
}

/// The state of a listening socket. The first interval has all listeners, later ones those with connections that wait,
/// a drop or a change.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "listener")]
pub struct ListenerLine<'a> {
    /// The type of the line.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "listener"))]
    kind: &'static str,
    /// The version of the contract.
    #[schemars(extend("const" = VERSION))]
    v: u8,
    /// The time of the socket scan.
    time: WallTime,
    /// The address that the socket listens on.
    dst: End<'a>,
    /// The process that listens; null if unknown.
    process: Option<Process<'a>>,
    /// The network namespace, cgroup and container of the socket.
    local: Local<'a>,
    /// The ID of the socket, unique within a run.
    #[schemars(length(min = 1))]
    id: Text<record::ConnId>,
    /// The number of connections that no process has accepted yet.
    backlog: u32,
    /// The limit of `backlog`: the kernel drops SYNs once `backlog` exceeds it.
    max_backlog: u32,
    /// The number of connections in the middle of their handshake.
    half_open: u32,
    /// The number of packets that the socket dropped since the last such line.
    dropped: u32,
    /// The number of packets that the socket dropped since it was made.
    dropped_total: u32,
}

impl<'a> ListenerLine<'a> {
    /// Returns the line of a record whose subject is a listener.
    pub fn new(record: &'a Record, queue: AcceptQueue) -> Self {
        Self {
            kind: "listener",
            v: VERSION,
            time: record.time,
            dst: End::new(record.dst, &record.names.dst),
            process: record.process.as_ref().map(Process::from),
            local: Local::new(record),
            id: Text(record.id),
            backlog: queue.backlog,
            max_backlog: queue.max_backlog,
            half_open: queue.half_open,
            dropped: queue.dropped,
            dropped_total: queue.dropped_total,
        }
    }
}
