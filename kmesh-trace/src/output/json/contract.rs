//! The JSON contract: one type a line type, its members in the order in which they are printed.
//!
//! These are types of their own, so that the domain can change without the contract noticing. Only the kernel's counters are
//! the domain's own, [`record::Tcp`]: one table in `kmesh-trace-common` lists them. Members that a later release fills are null
//! by type until then. [`crate::output::json::schema`] is made from the same types: what is printed and what
//! is promised cannot drift apart.

mod rollup;
mod values;

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
use values::{Reasons, Text, ip_schema};

/// Raised when a member changes or goes; a new member is compatible.
pub const VERSION: u8 = 1;

/// One event of one end of one TCP connection.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "conn")]
pub struct ConnLine<'a> {
    /// The line's type.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "conn"))]
    kind: &'static str,
    /// Version of the contract.
    #[schemars(extend("const" = VERSION))]
    v: u8,
    /// Unique within a run, the same in all events of a connection.
    #[schemars(length(min = 1))]
    id: Text<record::ConnId>,
    /// What happened.
    event: Event,
    /// When it happened.
    time: WallTime,
    /// connect() for outbound, ESTABLISHED for inbound; null when it began before tracing did.
    start: Option<WallTime>,
    /// From start to time; null when it began before tracing did.
    duration_ns: Option<u64>,
    /// SYN sent to ESTABLISHED, outbound only.
    connect_ns: Option<u64>,
    /// It began before tracing did.
    preexisting: bool,
    /// duration_ns, or the time since tracing began.
    observed_ns: u64,
    /// The node that the socket is on.
    node: &'a str,
    /// Which end was traced.
    direction: Direction,
    /// The transport.
    #[schemars(extend("const" = "tcp"))]
    protocol: &'static str,
    /// On the wire: an IPv4-mapped socket is ipv4.
    family: Family,
    /// The client.
    src: End<'a>,
    /// The server.
    dst: End<'a>,
    /// The Service that was called.
    service: Option<Service<'a>>,
    /// What the client dialled, where that was translated on the way.
    original_dst: Option<Dialled>,
    /// Whom the socket belongs to; null where nobody is known for certain.
    process: Option<Process<'a>>,
    /// Where the socket lives.
    local: Local<'a>,
    /// Payload that the peer acknowledged.
    sent_bytes: u64,
    /// Payload that arrived in order.
    received_bytes: u64,
    /// Payload handed to the kernel and never acknowledged.
    undelivered_bytes: u64,
    /// It reached ESTABLISHED.
    established: bool,
    /// How it ended.
    outcome: Option<Outcome>,
    /// The socket's error.
    errno: Option<Errno>,
    /// Which end closed first, or reset.
    closed_by: Option<ClosedBy>,
    /// Known to be encrypted and authenticated, or not known.
    security_policy: SecurityPolicy,
    /// The kernel's own counters.
    tcp: &'a record::Tcp,
}

impl<'a> ConnLine<'a> {
    /// The line of `record`.
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
            original_dst: record.names.original_dst.map(Dialled::from),
            process: record.process.as_ref().map(Process::from),
            local: Local {
                netns: record.netns,
                cgroup_id: record.cgroup_id,
                container_id: record.container_id.map(Text),
                container: record.names.container.as_deref(),
            },
            sent_bytes: record.sent_bytes,
            received_bytes: record.received_bytes,
            undelivered_bytes: record.undelivered_bytes,
            established: record.established,
            outcome: record.outcome,
            errno: record.errno.map(Errno),
            closed_by: record.closed_by,
            security_policy: SecurityPolicy::of(record),
            tcp: &record.tcp,
        }
    }
}

/// One end of a connection. What is about a pod is there only where there is one; null where it is not known.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "end")]
struct End<'a> {
    /// Its address.
    #[schemars(schema_with = "ip_schema")]
    ip: IpAddr,
    /// Its port.
    port: u16,
    /// The pod's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    /// The pod there, when the connection began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    /// The pod's UID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_uid: Option<&'a str>,
    /// The controller that people name; the pod itself where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<Option<&'a str>>,
    /// Its kind: Deployment, StatefulSet, Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    workload_kind: Option<Option<&'a str>>,
    /// The pod's service account.
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account: Option<Option<&'a str>>,
    /// The pod's node; of an end that is no pod, the node whose own address this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Option<&'a str>>,
    /// Whether the pod shares its node's network.
    #[serde(skip_serializing_if = "Option::is_none")]
    host_network: Option<Option<bool>>,
    /// The pod's labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Option<Labels<'a>>>,
}

impl<'a> End<'a> {
    fn new(address: SocketAddr, names: &'a record::End) -> Self {
        let pod = names.pod.as_deref();
        let workload = |pod: &'a record::Pod| pod.workload.as_ref();
        Self {
            ip: address.ip(),
            port: address.port(),
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

/// A pod's labels, as one object.
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

/// The Service that was called.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "service")]
struct Service<'a> {
    /// Its name.
    name: &'a str,
    /// Its namespace.
    namespace: &'a str,
    /// Its DNS name.
    host: &'a str,
    /// vip: its address was dialled, which is certain. target_port: the server's pod is behind it, with that port.
    /// headless: the server's pod is one of its.
    by: ServiceBy,
    /// Several match, and this is the alphabetically first.
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

/// An address that was dialled.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "dialled")]
struct Dialled {
    /// The address.
    #[schemars(schema_with = "ip_schema")]
    ip: IpAddr,
    /// The port.
    port: u16,
}

impl From<SocketAddr> for Dialled {
    fn from(address: SocketAddr) -> Self {
        Self {
            ip: address.ip(),
            port: address.port(),
        }
    }
}

/// The process that a socket belongs to.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "process")]
struct Process<'a> {
    /// In the initial pid namespace.
    pid: u32,
    /// Of the thread-group leader; chosen by the process itself.
    comm: Text<Lossy<'a>>,
    /// How it is known.
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

/// What the socket itself tells of where it lives.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "local")]
struct Local<'a> {
    /// Inode number of its network namespace.
    netns: u32,
    /// The kernel's id of its cgroup.
    cgroup_id: Option<u64>,
    /// The container's id.
    container_id: Option<Text<record::ContainerId>>,
    /// The container's name.
    container: Option<&'a str>,
}

/// Whether a connection is known to be encrypted and authenticated.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "security_policy")]
enum SecurityPolicy {
    /// It is: HBONE.
    MutualTls,
    /// Nothing is known.
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

/// Records were lost; at most one such line a second.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "lost")]
pub struct LostLine<'a> {
    /// The line's type.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "lost"))]
    kind: &'static str,
    /// Version of the contract.
    #[schemars(extend("const" = VERSION))]
    v: u8,
    /// When it was found out.
    time: WallTime,
    /// Since the last such line.
    lost_records: u64,
    /// Since the start.
    lost_records_total: u64,
    /// Why, joined by commas.
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
    /// The line's type.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "header"))]
    kind: &'static str,
    /// Version of the contract.
    #[schemars(extend("const" = VERSION))]
    v: u8,
    /// When tracing began.
    time: WallTime,
    /// When tracing began. An update at this very time says what a connection had moved before.
    start: WallTime,
    /// The node's name.
    node: &'a str,
    /// The kernel's release.
    kernel: &'a str,
    /// The version of kmesh-trace.
    version: &'a str,
    /// The number of the file among those of a rotated capture, from 0.
    part: u32,
    /// The number of closes in the parts before.
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

/// How many of what, at the end or so far: closes = delivered + filtered + lost_records + after_limit at the end.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "summary")]
pub struct SummaryLine<'a> {
    /// The line's type.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "summary"))]
    kind: &'static str,
    /// Version of the contract.
    #[schemars(extend("const" = VERSION))]
    v: u8,
    /// When it was made.
    time: WallTime,
    /// All that the kernel saw end while tracing.
    closes: u64,
    /// Printed.
    delivered: u64,
    /// Sorted out by filters.
    filtered: u64,
    /// Lost, for every reason.
    lost_records: u64,
    /// Came after --count or --duration was reached.
    after_limit: u64,
    /// Delivered with an end that belongs to a pod of this node and has no name.
    unresolved: u64,
    /// Known and not closed.
    open: u64,
    /// How many of them the last socket scan did not reach; null when none was made.
    not_scanned: Option<u64>,
    /// Since tracing began.
    elapsed_ns: u64,
    /// The node's name.
    node: &'a str,
    /// The kernel's release.
    kernel: &'a str,
    /// The version of kmesh-trace.
    version: &'a str,
    /// How many of lost_records are an upper bound only: the kernel may have skipped the tracer there, and does not
    /// tell of what.
    lost_at_most: u64,
    /// Why records were lost, joined by commas; null when none was.
    reason: Option<Reasons<'a>>,
}

impl<'a> SummaryLine<'a> {
    /// The line of `summary`.
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
            elapsed_ns: summary.elapsed_ns,
            node: &info.node,
            kernel: &info.kernel,
            version: &info.version,
            lost_at_most: summary.lost_at_most,
            reason: (!summary.reasons.is_empty()).then_some(Reasons(&summary.reasons)),
        }
    }
}
