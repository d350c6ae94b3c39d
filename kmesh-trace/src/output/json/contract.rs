//! The JSON contract: one type for each line type, with members in the order in which they are printed.
//!
//! These types are separate from the domain types, so that the domain can change without changing the contract. Only
//! the kernel's counters are shared, as [`record::Tcp`]: one table in `kmesh-trace-common` lists them.
//! [`crate::output::json::schema`] is generated from the same types, so the output always matches the schema.

mod findings;
mod pair;
mod reports;
mod rollup;
mod values;

pub use findings::{ChangeLine, FindingLine};
pub use pair::PairLine;
pub use reports::{ListenerLine, RejectLine};
pub use rollup::RollupLine;

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use crate::output::sanitize::Lossy;
use crate::record::Header;
use crate::record::errno::Errno;
use crate::record::{
    self, ClosedBy, Direction, Event, Family, Lost, Outcome, ProcessBy, Record, RunInfo, ServiceBy, Summary, WallTime,
};
use reports::{PacketDropsList, Turns};
use values::{Reasons, Text, ip_schema};

/// The version of the contract. It increases when a member changes or is removed, not when one is added.
pub const VERSION: u8 = 1;

/// One event of one end of one TCP connection.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "conn")]
pub struct ConnLine<'a> {
    /// The type of the line.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "conn"))]
    kind: &'static str,
    /// The version of the contract.
    #[schemars(extend("const" = VERSION))]
    v: u8,
    /// The ID of the connection: unique within a run, the same in all events of a connection.
    #[schemars(length(min = 1))]
    id: Text<record::ConnId>,
    /// The kind of event.
    event: Event,
    /// The time of the event.
    time: WallTime,
    /// The time of connect() for outbound, of ESTABLISHED for inbound; null if the connection began before tracing.
    start: Option<WallTime>,
    /// The time from start to time; null if the connection began before tracing.
    duration_ns: Option<u64>,
    /// The time from sending the SYN to ESTABLISHED, outbound only.
    connect_ns: Option<u64>,
    /// The connection began before tracing.
    preexisting: bool,
    /// duration_ns, or if that is null, the time since tracing began.
    observed_ns: u64,
    /// The node of the socket.
    node: &'a str,
    /// The end that was traced: inbound is the server's, outbound the client's.
    direction: Direction,
    /// The transport protocol, always tcp.
    #[schemars(extend("const" = "tcp"))]
    protocol: &'static str,
    /// The address family on the wire. An IPv4-mapped IPv6 socket is ipv4.
    family: Family,
    /// The client's end of the connection.
    src: End<'a>,
    /// The server's end of the connection.
    dst: End<'a>,
    /// The Service that the client called.
    service: Option<Service<'a>>,
    /// The address that the client dialled, if it was translated.
    original_dst: Option<DialledAddress>,
    /// The process that owns the socket; null if it is not certain.
    process: Option<Process<'a>>,
    /// The network namespace, cgroup and container of the socket.
    local: Local<'a>,
    /// The payload that the peer acknowledged.
    sent_bytes: u64,
    /// The payload that arrived in order.
    received_bytes: u64,
    /// The payload that the program wrote and the peer did not acknowledge.
    undelivered_bytes: u64,
    /// The connection reached ESTABLISHED.
    established: bool,
    /// How the connection ended; null while it is open or connecting.
    outcome: Option<Outcome>,
    /// The socket's error, by its symbolic name.
    errno: Option<Errno>,
    /// The end that closed first or sent the RST.
    closed_by: Option<ClosedBy>,
    /// The kernel's own reason for the RST that this end sent; null if it sent none, or the kernel gives no reason.
    reset_reason: Option<&'a str>,
    /// The packets of the connection that this node's kernel dropped; null without --drops.
    drops: Option<PacketDropsList<'a>>,
    /// How often the direction changed, and how long the answers took; null without --turns.
    turns: Option<Turns<'a>>,
    /// Whether the connection is certainly encrypted and authenticated.
    security_policy: SecurityPolicy,
    /// The kernel's counters of the socket.
    tcp: &'a record::Tcp,
}

impl<'a> ConnLine<'a> {
    /// Returns the line of `record`.
    pub fn new(record: &'a Record) -> Self {
        Self {
            kind: "conn",
            v: VERSION,
            id: Text(record.id),
            event: record.event,
            time: record.time,
            start: record.start,
            duration_ns: record.duration_ns,
            connect_ns: record.connect_ns,
            preexisting: record.preexisting,
            observed_ns: record.observed_ns,
            node: &record.node,
            direction: record.direction,
            protocol: "tcp",
            family: record.family,
            src: End::new(record.src, &record.names.src),
            dst: End::new(record.dst, &record.names.dst),
            service: record.names.service.as_ref().map(Service::from),
            original_dst: record.names.original_dst.map(DialledAddress::from),
            process: record.process.as_ref().map(Process::from),
            local: Local::new(record),
            sent_bytes: record.sent_bytes,
            received_bytes: record.received_bytes,
            undelivered_bytes: record.undelivered_bytes,
            established: record.established,
            outcome: record.outcome,
            errno: record.errno.map(Errno),
            closed_by: record.closed_by,
            reset_reason: record.reset_reason.as_deref(),
            drops: record.drops.as_deref().map(PacketDropsList),
            turns: record.turns.as_deref().map(Turns::from),
            security_policy: SecurityPolicy::of(record),
            tcp: &record.tcp,
        }
    }
}

/// One end of a connection. Members about a pod exist only if the end is a pod; they are null if unknown.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "end", extend("required" = ["ip", "port"]))]
struct End<'a> {
    /// The address of this end.
    #[schemars(schema_with = "ip_schema")]
    ip: IpAddr,
    /// The port of this end. Only the client of a `reject` line has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u16")]
    port: Option<u16>,
    /// The namespace of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    /// The pod that had the address when the connection began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    /// The UID of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_uid: Option<&'a str>,
    /// The controller that users know, such as the Deployment; the pod itself if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<Option<&'a str>>,
    /// The kind of the workload: Deployment, StatefulSet, Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    workload_kind: Option<Option<&'a str>>,
    /// The service account of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account: Option<Option<&'a str>>,
    /// The node of the pod. If the end is not a pod, the node that has this address.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Option<&'a str>>,
    /// Whether the pod uses its node's network.
    #[serde(skip_serializing_if = "Option::is_none")]
    host_network: Option<Option<bool>>,
    /// The labels of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Option<Labels<'a>>>,
}

impl<'a> End<'a> {
    fn new(address: SocketAddr, names: &'a record::End) -> Self {
        Self {
            port: Some(address.port()),
            ..Self::without_port(address.ip(), names)
        }
    }

    fn without_port(ip: IpAddr, names: &'a record::End) -> Self {
        let pod = names.pod.as_deref();
        let workload = |pod: &'a record::Pod| pod.workload.as_ref();
        Self {
            ip,
            port: None,
            namespace: pod.map(|pod| &*pod.namespace),
            pod: pod.map(|pod| &*pod.name),
            pod_uid: pod.map(|pod| &*pod.uid),
            workload: pod.map(|pod| workload(pod).map(|workload| &*workload.name)),
            workload_kind: pod.map(|pod| workload(pod).map(|workload| &*workload.kind)),
            service_account: pod.map(|pod| pod.service_account.as_deref()),
            node: match pod {
                Some(pod) => Some(pod.node.as_deref()),
                None => names.node.as_deref().map(Some),
            },
            host_network: pod.map(|pod| pod.host_network),
            labels: pod.map(|pod| pod.labels.as_ref().map(Labels)),
        }
    }
}

/// The labels of a pod, as one object.
#[derive(Debug)]
struct Labels<'a>(&'a record::Labels);

impl Serialize for Labels<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter())
    }
}

impl JsonSchema for Labels<'_> {
    fn schema_name() -> Cow<'static, str> {
        "labels".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "object", "additionalProperties": {"type": "string"}})
    }
}

/// The Service that the client called.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "service")]
struct Service<'a> {
    /// The name of the Service.
    name: &'a str,
    /// The namespace of the Service.
    namespace: &'a str,
    /// The DNS name of the Service.
    host: &'a str,
    /// vip: the client dialled the ClusterIP, which is certain. target_port: the server's pod is a backend of the
    /// Service with this target port. headless: the server's pod is a backend of this headless Service.
    by: ServiceBy,
    /// Several Services match, and this one is the alphabetically first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("const" = true))]
    ambiguous: bool,
}

impl<'a> From<&'a record::ServiceMatch> for Service<'a> {
    fn from(called: &'a record::ServiceMatch) -> Self {
        Self {
            name: &called.service.name,
            namespace: &called.service.namespace,
            host: &called.service.host,
            by: called.by,
            ambiguous: called.ambiguous,
        }
    }
}

/// The address that the client dialled.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "dialled")]
struct DialledAddress {
    /// The address that the client dialled.
    #[schemars(schema_with = "ip_schema")]
    ip: IpAddr,
    /// The port that the client dialled.
    port: u16,
}

impl From<SocketAddr> for DialledAddress {
    fn from(address: SocketAddr) -> Self {
        Self {
            ip: address.ip(),
            port: address.port(),
        }
    }
}

/// The process that owns the socket.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "process")]
struct Process<'a> {
    /// The process ID in the initial pid namespace.
    pid: u32,
    /// The name of the thread-group leader, which the process itself chooses.
    comm: Text<Lossy<'a>>,
    /// How the process was found.
    by: ProcessBy,
}

impl<'a> From<&'a record::Process> for Process<'a> {
    fn from(process: &'a record::Process) -> Self {
        Self {
            pid: process.pid,
            comm: Text(Lossy(process.comm.as_bytes())),
            by: process.by,
        }
    }
}

/// The network namespace, cgroup and container of a socket.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "local")]
struct Local<'a> {
    /// The inode number of the network namespace.
    netns: u32,
    /// The kernel's ID of the cgroup.
    cgroup_id: Option<u64>,
    /// The ID of the container.
    container_id: Option<Text<record::ContainerId>>,
    /// The name of the container.
    container: Option<&'a str>,
}

impl<'a> Local<'a> {
    fn new(record: &'a Record) -> Self {
        Self {
            netns: record.netns,
            cgroup_id: record.cgroup_id,
            container_id: record.container_id.map(Text),
            container: record.names.container.as_deref(),
        }
    }
}

/// Whether a connection is certainly encrypted and authenticated.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "security_policy")]
enum SecurityPolicy {
    /// The connection is an HBONE tunnel, which is mutual TLS by definition.
    MutualTls,
    /// It is unknown whether the connection is encrypted.
    Unknown,
}

impl SecurityPolicy {
    fn of(record: &Record) -> Self {
        if record.is_mutual_tls() {
            Self::MutualTls
        } else {
            Self::Unknown
        }
    }
}

/// A report of lost records, at most once a second.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "lost")]
pub struct LostLine<'a> {
    /// The type of the line.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "lost"))]
    kind: &'static str,
    /// The version of the contract.
    #[schemars(extend("const" = VERSION))]
    v: u8,
    /// The time when the tracer noticed the loss.
    time: WallTime,
    /// The records lost since the last such line.
    lost_records: u64,
    /// The records lost since tracing began.
    lost_records_total: u64,
    /// The reasons, separated by commas.
    reason: Reasons<'a>,
}

impl<'a> From<&'a Lost> for LostLine<'a> {
    fn from(lost: &'a Lost) -> Self {
        Self {
            kind: "lost",
            v: VERSION,
            time: lost.time,
            lost_records: lost.lost_records,
            lost_records_total: lost.lost_records_total,
            reason: Reasons(&lost.reasons),
        }
    }
}

/// The first line of a capture.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "header")]
pub struct HeaderLine<'a> {
    /// The type of the line.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "header"))]
    kind: &'static str,
    /// The version of the contract.
    #[schemars(extend("const" = VERSION))]
    v: u8,
    /// The time when tracing began.
    time: WallTime,
    /// The time when tracing began. An update at exactly this time has the counters from before tracing.
    start: WallTime,
    /// The name of the node.
    node: &'a str,
    /// The release of the kernel.
    kernel: &'a str,
    /// The version of kmesh-trace.
    version: &'a str,
    /// The index of this file in a rotated capture, from 0.
    part: u32,
    /// The number of closes in the parts before this one.
    closes_before: u64,
}

impl<'a> From<&'a Header> for HeaderLine<'a> {
    fn from(header: &'a Header) -> Self {
        Self {
            kind: "header",
            v: VERSION,
            time: header.start,
            start: header.start,
            node: &header.info.node,
            kernel: &header.info.kernel,
            version: &header.info.version,
            part: header.part,
            closes_before: header.closes_before,
        }
    }
}

/// The totals of a run, at its end or so far. At the end, closes = delivered + filtered + lost_records + after_limit.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "summary")]
pub struct SummaryLine<'a> {
    /// The type of the line.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "summary"))]
    kind: &'static str,
    /// The version of the contract.
    #[schemars(extend("const" = VERSION))]
    v: u8,
    /// The time at which the totals were taken.
    time: WallTime,
    /// The connections that the kernel saw close while tracing.
    closes: u64,
    /// The closes that were printed.
    delivered: u64,
    /// The closes that the filters rejected.
    filtered: u64,
    /// The lost closes, for all reasons.
    lost_records: u64,
    /// The closes after --count or --duration was reached.
    after_limit: u64,
    /// The delivered closes with an end that belongs to a pod of this node and has no name.
    unresolved: u64,
    /// The connections that have not closed.
    open: u64,
    /// The part of open that the last socket scan did not reach; null without a scan.
    not_scanned: Option<u64>,
    /// The counts of dropped packets that did not fit into the kernel's map; null without --drops.
    drops_evicted: Option<u64>,
    /// The time since tracing began.
    elapsed_ns: u64,
    /// The name of the node.
    node: &'a str,
    /// The release of the kernel.
    kernel: &'a str,
    /// The version of kmesh-trace.
    version: &'a str,
    /// The part of lost_records that is only an upper bound: the kernel may have skipped the tracer.
    lost_at_most: u64,
    /// The reasons for lost_records, separated by commas; null if nothing was lost.
    reason: Option<Reasons<'a>>,
    /// What --join did with the closes; only with --join.
    #[serde(skip_serializing_if = "Option::is_none")]
    join: Option<JoinCounts>,
}

/// The numbers of connections that --join joined, and of closes that it left single or found ambiguous.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "join")]
struct JoinCounts {
    /// The connections whose two ends are known.
    pairs: u64,
    /// The closes whose other end no stream has.
    one_ended: u64,
    /// The closes that several other closes fit, so that none is joined.
    ambiguous: u64,
    /// The closes that waited less for the other end, because too many closes were waiting.
    early: u64,
}

impl From<record::JoinCounts> for JoinCounts {
    fn from(counts: record::JoinCounts) -> Self {
        let record::JoinCounts {
            pairs,
            one_ended,
            ambiguous,
            early,
        } = counts;
        Self {
            pairs,
            one_ended,
            ambiguous,
            early,
        }
    }
}

impl<'a> SummaryLine<'a> {
    /// Returns the line of `summary`.
    pub fn new(summary: &'a Summary, info: &'a RunInfo) -> Self {
        Self {
            kind: "summary",
            v: VERSION,
            time: summary.time,
            closes: summary.closes,
            delivered: summary.delivered,
            filtered: summary.filtered,
            lost_records: summary.lost_records,
            after_limit: summary.after_limit,
            unresolved: summary.unresolved,
            open: summary.open,
            not_scanned: summary.not_scanned,
            drops_evicted: summary.drops_evicted,
            elapsed_ns: summary.elapsed_ns,
            node: &info.node,
            kernel: &info.kernel,
            version: &info.version,
            lost_at_most: summary.lost_at_most,
            reason: (!summary.reasons.is_empty()).then_some(Reasons(&summary.reasons)),
            join: summary.join.map(JoinCounts::from),
        }
    }
}
