//! Parses lines of the JSON contract into records.
//!
//! [`crate::output::json::contract`] writes the same members. Unknown members are ignored, and a missing optional
//! member counts as null, so that the saved output of other versions can be replayed.

mod shared_names;

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use kmesh_trace_common::TURN_BUCKETS;
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;

use self::shared_names::SharedNames;
use crate::output::json::contract::VERSION;
use crate::record::Header;
use crate::record::errno::Errno;
use crate::record::{
    self, AcceptQueue, ClosedBy, Comm, ConnId, ContainerId, Direction, Event, Family, JoinCounts, Joined, LossReason,
    Lost, Names, Outcome, PacketDirection, PacketDrops, ProcessBy, Record, RunInfo, ServiceBy, Subject, Summary, Tcp,
    Turns, WallTime,
};

/// A line of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    Header(Header),
    Record(Box<Record>),
    Lost(Lost),
    /// The summary of the run, and the node and versions of its tracer.
    Summary(Box<Summary>, RunInfo),
}

/// Parses lines. Records with the same pod or Service share its names.
#[derive(Debug, Default)]
pub struct Parser {
    shared: SharedNames,
}

impl Parser {
    /// Parses a line. The error is the reason why the line is skipped.
    pub fn parse(&mut self, line: &[u8]) -> Result<Line, String> {
        let text = str::from_utf8(line).map_err(|_| "not UTF-8".to_owned())?;
        // A fast path for the lines of this tool. A JSON object of another program may have its type anywhere.
        if text.starts_with(r#"{"type":"conn""#) {
            return self.record(text);
        }
        let Kind { kind, v } = serde_json::from_str(text).map_err(|_| "not a line of kmesh-trace".to_owned())?;
        check_version(v)?;
        match &*kind.0 {
            "conn" => self.record(text),
            "reject" => {
                let line: Reject<'_> = parse(text)?;
                Ok(Line::Record(Box::new(line.into_record(&mut self.shared)?)))
            }
            "listener" => {
                let line: Listener<'_> = parse(text)?;
                Ok(Line::Record(Box::new(line.into_record(&mut self.shared)?)))
            }
            "pair" => {
                let line: Pair<'_> = parse(text)?;
                Ok(Line::Record(Box::new(line.into_record(&mut self.shared)?)))
            }
            "header" => parse::<HeaderIn<'_>>(text).map(|line| Line::Header(line.into())),
            "lost" => parse::<LostIn<'_>>(text).map(|line| Line::Lost(line.into())),
            "summary" => parse::<SummaryIn<'_>>(text).map(|line| line.into_line()),
            other => Err(format!("a line of type {other:?} cannot be replayed")),
        }
    }

    fn record(&mut self, text: &str) -> Result<Line, String> {
        let line: Conn<'_> = parse(text)?;
        check_version(line.v)?;
        Ok(Line::Record(Box::new(line.into_record(&mut self.shared)?)))
    }
}

fn check_version(version: u8) -> Result<(), String> {
    if version == VERSION {
        return Ok(());
    }
    Err(format!(
        "version {version} is not supported: this program reads version {VERSION}"
    ))
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// A string that borrows from the line unless it has escapes.
#[derive(Debug, Default)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(rename = "type", borrow)]
    kind: Text<'a>,
    v: u8,
}

#[derive(Deserialize)]
struct HeaderIn<'a> {
    start: WallTime,
    #[serde(borrow)]
    node: Text<'a>,
    #[serde(borrow)]
    kernel: Text<'a>,
    #[serde(borrow)]
    version: Text<'a>,
    part: u32,
    #[serde(default)]
    closes_before: u64,
}

impl From<HeaderIn<'_>> for Header {
    fn from(line: HeaderIn<'_>) -> Self {
        Self {
            info: RunInfo {
                node: line.node.0.into_owned(),
                kernel: line.kernel.0.into_owned(),
                version: line.version.0.into_owned(),
            },
            start: line.start,
            part: line.part,
            closes_before: line.closes_before,
        }
    }
}

#[derive(Deserialize)]
struct LostIn<'a> {
    time: WallTime,
    lost_records: u64,
    lost_records_total: u64,
    #[serde(borrow, default)]
    reason: Option<Text<'a>>,
}

impl From<LostIn<'_>> for Lost {
    fn from(line: LostIn<'_>) -> Self {
        Self {
            time: line.time,
            lost_records: line.lost_records,
            lost_records_total: line.lost_records_total,
            reasons: reasons(line.reason),
        }
    }
}

/// Parses reasons separated by commas. Ignores unknown reasons, which other versions may have.
fn reasons(text: Option<Text<'_>>) -> Vec<LossReason> {
    let text = text.unwrap_or_default().0;
    let mut reasons: Vec<_> = text.split(',').filter_map(LossReason::from_name).collect();
    reasons.sort_unstable();
    reasons.dedup();
    reasons
}

#[derive(Deserialize)]
struct SummaryIn<'a> {
    time: WallTime,
    closes: u64,
    delivered: u64,
    filtered: u64,
    lost_records: u64,
    after_limit: u64,
    unresolved: u64,
    open: u64,
    #[serde(default)]
    not_scanned: Option<u64>,
    #[serde(default)]
    drops_evicted: Option<u64>,
    elapsed_ns: u64,
    #[serde(borrow)]
    node: Text<'a>,
    #[serde(borrow)]
    kernel: Text<'a>,
    #[serde(borrow)]
    version: Text<'a>,
    #[serde(default)]
    lost_at_most: u64,
    #[serde(borrow, default)]
    reason: Option<Text<'a>>,
    #[serde(default)]
    join: Option<JoinIn>,
}

#[derive(Deserialize)]
struct JoinIn {
    pairs: u64,
    one_ended: u64,
    ambiguous: u64,
    early: u64,
}

impl From<JoinIn> for JoinCounts {
    fn from(line: JoinIn) -> Self {
        Self {
            pairs: line.pairs,
            one_ended: line.one_ended,
            ambiguous: line.ambiguous,
            early: line.early,
        }
    }
}

impl SummaryIn<'_> {
    fn into_line(self) -> Line {
        let info = RunInfo {
            node: self.node.0.into_owned(),
            kernel: self.kernel.0.into_owned(),
            version: self.version.0.into_owned(),
        };
        let summary = Summary {
            time: self.time,
            closes: self.closes,
            delivered: self.delivered,
            filtered: self.filtered,
            lost_records: self.lost_records,
            lost_at_most: self.lost_at_most,
            reasons: reasons(self.reason),
            after_limit: self.after_limit,
            unresolved: self.unresolved,
            open: self.open,
            not_scanned: self.not_scanned,
            drops_evicted: self.drops_evicted,
            elapsed_ns: self.elapsed_ns,
            join: self.join.map(JoinCounts::from),
        };
        Line::Summary(Box::new(summary), info)
    }
}

#[derive(Deserialize)]
struct Conn<'a> {
    v: u8,
    #[serde(borrow)]
    id: Text<'a>,
    event: Event,
    time: WallTime,
    start: Option<WallTime>,
    duration_ns: Option<u64>,
    connect_ns: Option<u64>,
    preexisting: bool,
    observed_ns: u64,
    #[serde(borrow)]
    node: Text<'a>,
    direction: Direction,
    family: Family,
    #[serde(borrow)]
    src: End<'a, u16>,
    #[serde(borrow)]
    dst: End<'a, u16>,
    #[serde(borrow)]
    service: Option<Service<'a>>,
    original_dst: Option<Address>,
    #[serde(borrow)]
    process: Option<Process<'a>>,
    #[serde(borrow)]
    local: Local<'a>,
    sent_bytes: u64,
    received_bytes: u64,
    undelivered_bytes: u64,
    established: bool,
    outcome: Option<Outcome>,
    errno: Option<Errno>,
    closed_by: Option<ClosedBy>,
    #[serde(borrow, default)]
    reset_reason: Option<Text<'a>>,
    #[serde(borrow, default)]
    drops: Option<Vec<PacketDropsIn<'a>>>,
    #[serde(default)]
    turns: Option<TurnsIn>,
    tcp: Tcp,
}

/// The other members follow from the records of the ends.
#[derive(Deserialize)]
struct Pair<'a> {
    #[serde(borrow)]
    client: Option<Conn<'a>>,
    #[serde(borrow)]
    server: Option<Conn<'a>>,
}

impl Pair<'_> {
    fn into_record(self, shared: &mut SharedNames) -> Result<Record, String> {
        let mut record = |end: Option<Conn<'_>>, direction: Direction| match end {
            Some(end) if end.direction != direction || end.event != Event::Close => {
                Err(format!("an end is no {} close", direction.name()))
            }
            end => end.map(|end| end.into_record(shared)).transpose(),
        };
        let client = record(self.client, Direction::Outbound)?;
        let server = record(self.server, Direction::Inbound)?;
        let (mut this, other) = match (client, server) {
            (Some(client), server) => (client, server),
            (None, Some(server)) => (server, None),
            (None, None) => return Err("a pair without ends".to_owned()),
        };
        this.joined = Some(Box::new(Joined { other }));
        Ok(this)
    }
}

#[derive(Deserialize)]
struct PacketDropsIn<'a> {
    direction: PacketDirection,
    #[serde(borrow)]
    reason: Text<'a>,
    packets: u64,
}

#[derive(Deserialize)]
struct TurnsIn {
    count: u64,
    wait_ns: u64,
    max_wait_ns: u64,
    histogram: Vec<u64>,
    overlapped: u64,
}

impl From<TurnsIn> for Turns {
    fn from(turns: TurnsIn) -> Self {
        let mut histogram = [0; TURN_BUCKETS];
        histogram
            .iter_mut()
            .zip(turns.histogram)
            .for_each(|(to, count)| *to = count);
        Self {
            count: turns.count,
            wait_ns: turns.wait_ns,
            max_wait_ns: turns.max_wait_ns,
            histogram,
            overlapped: turns.overlapped,
        }
    }
}

#[derive(Deserialize)]
struct Address {
    ip: IpAddr,
    port: u16,
}

/// One end of a connection. `P` is an option in an end without a port.
#[derive(Deserialize)]
struct End<'a, P> {
    ip: IpAddr,
    port: P,
    #[serde(borrow, default)]
    namespace: Option<Text<'a>>,
    #[serde(borrow, default)]
    pod: Option<Text<'a>>,
    #[serde(borrow, default)]
    pod_uid: Option<Text<'a>>,
    #[serde(borrow, default)]
    workload: Option<Text<'a>>,
    #[serde(borrow, default)]
    workload_kind: Option<Text<'a>>,
    #[serde(borrow, default)]
    service_account: Option<Text<'a>>,
    #[serde(borrow, default)]
    node: Option<Text<'a>>,
    #[serde(default)]
    host_network: Option<bool>,
    /// The unparsed object. It is parsed only if it differs from the labels of the shared pod.
    #[serde(borrow, default)]
    labels: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Service<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    namespace: Text<'a>,
    #[serde(borrow)]
    host: Text<'a>,
    by: ServiceBy,
    #[serde(default)]
    ambiguous: bool,
}

#[derive(Deserialize)]
struct Process<'a> {
    pid: u32,
    #[serde(borrow)]
    comm: Text<'a>,
    by: ProcessBy,
}

#[derive(Deserialize)]
struct Local<'a> {
    netns: u32,
    cgroup_id: Option<u64>,
    #[serde(borrow, default)]
    container_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    container: Option<Text<'a>>,
}

impl From<Process<'_>> for record::Process {
    fn from(process: Process<'_>) -> Self {
        Self {
            pid: process.pid,
            comm: Comm::from_text(&process.comm.0),
            by: process.by,
        }
    }
}

impl Local<'_> {
    fn container_id(&self) -> Option<ContainerId> {
        ContainerId::new(&self.container_id.as_ref()?.0)
    }
}

#[derive(Deserialize)]
struct Reject<'a> {
    time: WallTime,
    #[serde(borrow)]
    src: End<'a, Option<u16>>,
    #[serde(borrow)]
    dst: End<'a, u16>,
    #[serde(borrow)]
    reason: Option<Text<'a>>,
    count: u64,
    netns: u32,
}

impl Reject<'_> {
    fn into_record(self, shared: &mut SharedNames) -> Result<Record, String> {
        let dst = SocketAddr::new(self.dst.ip, self.dst.port);
        let mut record = Record::report(Subject::Reject(self.count), self.time, dst);
        record.src = SocketAddr::new(self.src.ip, 0);
        record.names.src = shared.end(&self.src)?;
        record.names.dst = shared.end(&self.dst)?;
        record.reset_reason = self.reason.map(|reason| shared.text(&reason.0));
        record.netns = self.netns;
        Ok(record)
    }
}

#[derive(Deserialize)]
struct Listener<'a> {
    time: WallTime,
    #[serde(borrow)]
    dst: End<'a, u16>,
    #[serde(borrow)]
    process: Option<Process<'a>>,
    #[serde(borrow)]
    local: Local<'a>,
    #[serde(borrow)]
    id: Text<'a>,
    backlog: u32,
    max_backlog: u32,
    half_open: u32,
    dropped: u32,
    dropped_total: u32,
}

impl Listener<'_> {
    fn into_record(self, shared: &mut SharedNames) -> Result<Record, String> {
        let queue = AcceptQueue {
            backlog: self.backlog,
            max_backlog: self.max_backlog,
            half_open: self.half_open,
            dropped: self.dropped,
            dropped_total: self.dropped_total,
        };
        let dst = SocketAddr::new(self.dst.ip, self.dst.port);
        let mut record = Record::report(Subject::Listener(queue), self.time, dst);
        record.id = self.id.0.parse()?;
        record.names.dst = shared.end(&self.dst)?;
        record.process = self.process.map(record::Process::from);
        (record.netns, record.cgroup_id) = (self.local.netns, self.local.cgroup_id);
        record.container_id = self.local.container_id();
        record.names.container = self.local.container.map(|name| shared.text(&name.0));
        Ok(record)
    }
}

impl Conn<'_> {
    fn into_record(self, shared: &mut SharedNames) -> Result<Record, String> {
        let id = self.id.0.parse()?;
        let container_id = self.local.container_id();
        let (src_ip, dst_ip) = ((self.src.ip, self.src.port), (self.dst.ip, self.dst.port));
        let src = shared.end(&self.src)?;
        let dst = shared.end(&self.dst)?;
        let local_pod = match self.direction {
            Direction::Outbound => &src.pod,
            Direction::Inbound => &dst.pod,
        };
        // Lines do not contain this. A socket in a container belongs to a pod of its node.
        let unresolved = container_id.is_some() && local_pod.is_none();
        let names = Names {
            src,
            dst,
            service: self.service.map(|service| shared.service(&service)),
            original_dst: self
                .original_dst
                .map(|address| SocketAddr::new(address.ip, address.port)),
            container: self.local.container.map(|name| shared.text(&name.0)),
            unresolved,
        };
        Ok(Record {
            id,
            event: self.event,
            time: self.time,
            start: self.start,
            duration_ns: self.duration_ns,
            connect_ns: self.connect_ns,
            preexisting: self.preexisting,
            observed_ns: self.observed_ns,
            node: shared.text(&self.node.0),
            direction: self.direction,
            family: self.family,
            src: src_ip.into(),
            dst: dst_ip.into(),
            names,
            process: self.process.map(record::Process::from),
            netns: self.local.netns,
            is_netns_of_root: true,
            cgroup_id: self.local.cgroup_id,
            container_id,
            sent_bytes: self.sent_bytes,
            received_bytes: self.received_bytes,
            undelivered_bytes: self.undelivered_bytes,
            established: self.established,
            outcome: self.outcome,
            errno: self.errno.map(|errno| errno.0),
            closed_by: self.closed_by,
            reset_reason: self.reset_reason.map(|reason| shared.text(&reason.0)),
            drops: self.drops.map(|drops| {
                drops
                    .into_iter()
                    .map(|drop| PacketDrops {
                        direction: drop.direction,
                        reason: shared.text(&drop.reason.0),
                        packets: drop.packets,
                    })
                    .collect()
            }),
            dropped_to: None,
            turns: self.turns.map(|turns| Box::new(turns.into())),
            subject: Subject::Connection,
            joined: None,
            tcp: self.tcp,
        })
    }
}

impl std::str::FromStr for ConnId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text
            .split_once('-')
            .and_then(|(cookie, attempt)| Some((u64::from_str_radix(cookie, 16).ok()?, attempt.parse().ok()?)));
        let (cookie, attempt) = parts.ok_or_else(|| format!("{text:?} is not the id of a connection"))?;
        Ok(Self {
            cookie,
            attempt,
            node: 0,
        })
    }
}
