//! Records and helpers for the tests of all sinks.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use bytemuck::{Zeroable, bytes_of_mut};
use kmesh_trace_common::Snapshot;

use super::Sink;
use crate::config::Events;
use crate::engine::{Engine, Selection};
use crate::filter::Filter;
use crate::record::{
    AcceptQueue, ClosedBy, Comm, ConnId, ContainerId, Direction, End, Event, Family, Joined, LossReason, Lost, Names,
    Outcome, PacketDirection, PacketDrops, Pod, Process, ProcessBy, Record, RunInfo, Service, ServiceBy, ServiceMatch,
    Subject, Summary, Tcp, TcpState, WallTime, Workload,
};

pub(crate) const ALL_EVENTS: Events = Events::ALL;

/// A writer into memory. Clones share the bytes.
#[derive(Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.bytes()).unwrap()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Delivers records to a sink through the engine, as a whole run does.
pub(crate) fn deliver(sink: Box<dyn Sink>, records: &[Record]) {
    let selection = Selection {
        events: ALL_EVENTS,
        filter: Filter::default(),
        count: None,
    };
    let mut engine = Engine::new(selection, vec![sink]);
    for record in records {
        engine.record(record, false).unwrap();
    }
    engine.watermark(WallTime::MAX).unwrap();
    engine.finish().unwrap();
}

/// 2024-09-14T08:19:26.552709932Z, the time in the contract's example.
pub(crate) const TIME: WallTime = WallTime(1_726_301_966_552_709_932);

/// Returns the connection of the contract's examples.
pub(crate) fn example() -> Record {
    Record {
        id: ConnId {
            cookie: 0x005f_2c81,
            attempt: 1,
            node: 0,
        },
        event: Event::Close,
        time: TIME,
        start: Some(WallTime(TIME.0 - 2_733_902)),
        duration_ns: Some(2_733_902),
        connect_ns: None,
        preexisting: false,
        observed_ns: 2_733_902,
        node: "worker-1".into(),
        direction: Direction::Inbound,
        family: Family::Ipv4,
        src: "10.244.0.17:51842".parse().unwrap(),
        dst: "10.244.0.13:9080".parse().unwrap(),
        names: Names::default(),
        process: Some(Process {
            pid: 4711,
            comm: comm(b"python3"),
            by: ProcessBy::Close,
        }),
        netns: 4_026_532_291,
        is_netns_of_root: true,
        cgroup_id: Some(8123),
        container_id: None,
        sent_bytes: 5,
        received_bytes: 292,
        undelivered_bytes: 0,
        established: true,
        outcome: Some(Outcome::Ok),
        errno: None,
        closed_by: Some(ClosedBy::Peer),
        reset_reason: None,
        drops: None,
        dropped_to: None,
        turns: None,
        subject: Subject::Connection,
        joined: None,
        tcp: Tcp {
            srtt_us: Some(120),
            rtt_min_us: Some(98),
            mss: 1448,
            snd_cwnd: 10,
            snd_ssthresh: 2_147_483_647,
            segs_in: 6,
            data_segs_in: 1,
            segs_out: 5,
            data_segs_out: 1,
            bytes_received: 293,
            bytes_acked: 6,
            delivered: 2,
            bytes_sent: 5,
            ..Tcp::new(TcpState::Close, Some(TcpState::LastAck), &Snapshot::zeroed())
        },
    }
}

/// Returns an attempt that was refused, of an unknown process.
pub(crate) fn refused() -> Record {
    let example = example();
    Record {
        id: ConnId {
            cookie: 0x1000,
            attempt: 2,
            node: 0,
        },
        direction: Direction::Outbound,
        family: Family::Ipv6,
        src: "[fd00::1]:40000".parse().unwrap(),
        dst: "[2001:db8::2]:443".parse().unwrap(),
        process: None,
        cgroup_id: None,
        sent_bytes: 0,
        received_bytes: 0,
        established: false,
        outcome: Some(Outcome::Refused),
        errno: Some(111),
        closed_by: Some(ClosedBy::Peer),
        tcp: Tcp {
            old_state: Some(TcpState::SynSent),
            srtt_us: None,
            rtt_min_us: None,
            ..example.tcp
        },
        ..example
    }
}

/// Returns a connection from before the tracer, in which every optional fact is missing.
pub(crate) fn preexisting() -> Record {
    let example = example();
    Record {
        start: None,
        duration_ns: None,
        preexisting: true,
        observed_ns: 5_000_000_000,
        process: None,
        cgroup_id: None,
        outcome: Some(Outcome::Timeout),
        errno: Some(110),
        closed_by: None,
        tcp: Tcp {
            old_state: None,
            srtt_us: None,
            rtt_min_us: None,
            ..example.tcp
        },
        ..example
    }
}

fn every_bit_set() -> Snapshot {
    let mut snapshot = Snapshot::zeroed();
    bytes_of_mut(&mut snapshot).fill(u8::MAX);
    snapshot
}

/// Returns a record in which every number is the maximum.
pub(crate) fn largest() -> Record {
    const MAX: u32 = u32::MAX;
    Record {
        id: ConnId {
            cookie: u64::MAX,
            attempt: MAX,
            node: 0,
        },
        time: WallTime(i64::MAX),
        start: Some(WallTime(i64::MIN)),
        duration_ns: Some(u64::MAX),
        connect_ns: Some(u64::MAX),
        observed_ns: u64::MAX,
        direction: Direction::Outbound,
        src: "255.255.255.255:65535".parse().unwrap(),
        dst: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:15008".parse().unwrap(),
        process: Some(Process {
            pid: MAX,
            comm: Comm([b'z'; 16]),
            by: ProcessBy::Scan,
        }),
        netns: MAX,
        is_netns_of_root: true,
        cgroup_id: Some(u64::MAX),
        container_id: ContainerId::new(&"f".repeat(ContainerId::DIGITS)),
        sent_bytes: u64::MAX,
        received_bytes: u64::MAX,
        undelivered_bytes: u64::MAX,
        outcome: Some(Outcome::Unknown),
        errno: Some(MAX),
        tcp: Tcp {
            srtt_us: Some(MAX),
            rtt_min_us: Some(MAX),
            ..Tcp::new(TcpState::Closing, Some(TcpState::SynRecv), &every_bit_set())
        },
        ..example()
    }
}

/// Returns the connection of the contract's examples with all its names.
pub(crate) fn in_pods() -> Record {
    let pod = |namespace: &str, name: &str, workload: Option<&str>, labels: Option<&[(&str, &str)]>| Pod {
        uid: format!("uid-of-{name}").into(),
        namespace: namespace.into(),
        name: name.into(),
        workload: workload.map(|workload| Workload {
            kind: "Deployment".into(),
            name: workload.into(),
        }),
        service_account: workload.map(Into::into),
        node: Some("worker-1".into()),
        host_network: labels.map(|_| false),
        labels: labels.map(|labels| labels.iter().copied().collect()),
    };
    let server = [("version", "v1"), ("app", "productpage")];
    let server = pod(
        "echo-1-27855",
        "productpage-v1-8499c849b9-bz9t9",
        Some("productpage-v1"),
        Some(&server),
    );
    Record {
        names: Names {
            src: End {
                pod: Some(Arc::new(pod("istio-system", "prometheus-5fb7f6f8d8-h9cts", None, None))),
                node: None,
            },
            dst: End {
                pod: Some(Arc::new(server)),
                node: None,
            },
            service: Some(ServiceMatch {
                service: Arc::new(Service {
                    namespace: "echo-1-27855".into(),
                    name: "productpage".into(),
                    host: "productpage.echo-1-27855.svc.cluster.local".into(),
                }),
                by: ServiceBy::TargetPort,
                ambiguous: true,
            }),
            original_dst: Some("10.96.0.9:80".parse().unwrap()),
            container: Some("productpage".into()),
            unresolved: false,
        },
        ..example()
    }
}

/// Returns a record in which all Kubernetes names are `name`.
pub(crate) fn in_pods_called(name: &str) -> Record {
    let mut record = in_pods();
    let pod = Pod {
        uid: name.into(),
        namespace: name.into(),
        name: name.into(),
        workload: Some(Workload {
            kind: name.into(),
            name: name.into(),
        }),
        service_account: Some(name.into()),
        node: Some(name.into()),
        host_network: None,
        labels: Some([(name, name)].into_iter().collect()),
    };
    record.names.src.pod = Some(Arc::new(pod));
    record.names.dst.pod = record.names.src.pod.clone();
    record.names.container = Some(name.into());
    if let Some(called) = &mut record.names.service {
        called.service = Arc::new(Service {
            namespace: name.into(),
            name: name.into(),
            host: name.into(),
        });
    }
    record
}

/// Returns a connection from a node's address to an unknown address.
pub(crate) fn from_a_node() -> Record {
    let mut record = example();
    record.names.src.node = Some("worker-2".into());
    record
}

pub(crate) fn drops(direction: PacketDirection, reason: &str, packets: u64) -> PacketDrops {
    PacketDrops {
        direction,
        reason: reason.into(),
        packets,
    }
}

/// Returns an attempt whose SYNs were dropped on this node until the program gave up.
pub(crate) fn dropped() -> Record {
    let refused = refused();
    Record {
        id: ConnId {
            cookie: 0x2000,
            attempt: 1,
            node: 0,
        },
        duration_ns: Some(250_000_000),
        observed_ns: 250_000_000,
        outcome: Some(Outcome::ConnectAborted),
        errno: None,
        closed_by: Some(ClosedBy::Local),
        drops: Some(vec![drops(PacketDirection::Sent, "NETFILTER_DROP", 6)]),
        tcp: Tcp {
            total_retrans: 5,
            ..refused.tcp
        },
        ..refused
    }
}

/// Returns a connection that this end aborted, and of which no packet was dropped.
pub(crate) fn aborted() -> Record {
    Record {
        id: ConnId {
            cookie: 0x3000,
            attempt: 1,
            node: 0,
        },
        outcome: Some(Outcome::ResetByLocal),
        closed_by: Some(ClosedBy::Local),
        reset_reason: Some("TCP_ABORT_ON_CLOSE".into()),
        drops: Some(Vec::new()),
        ..example()
    }
}

/// Returns all connections of this file.
pub(crate) fn all() -> Vec<Record> {
    vec![
        example(),
        refused(),
        preexisting(),
        largest(),
        in_pods(),
        from_a_node(),
        dropped(),
        aborted(),
    ]
}

/// Returns connections that `--join` joined: with both ends, whose outcomes differ, and with one end.
pub(crate) fn joined() -> Vec<Record> {
    let mut client = in_pods();
    client.direction = Direction::Outbound;
    client.outcome = Some(Outcome::ResetByPeer);
    (client.sent_bytes, client.received_bytes, client.undelivered_bytes) = (292, 5, 7);
    let with = |record: Record, other| Record {
        joined: Some(Box::new(Joined { other })),
        ..record
    };
    vec![
        with(client, Some(example())),
        with(refused(), None),
        with(example(), None),
    ]
}

/// Returns a record that is about no connection.
fn report(subject: Subject) -> Record {
    Record {
        event: Event::Update,
        start: None,
        duration_ns: None,
        observed_ns: 0,
        outcome: None,
        closed_by: None,
        sent_bytes: 0,
        received_bytes: 0,
        subject,
        ..in_pods()
    }
}

/// Returns a report of RSTs to a pod that dialled a port of another pod on which nobody listens.
pub(crate) fn rejected() -> Record {
    let mut record = report(Subject::Reject(12));
    record.src.set_port(0);
    record.dst.set_port(9_081);
    (record.names.service, record.names.original_dst, record.names.container) = (None, None, None);
    Record {
        reset_reason: Some("NO_SOCKET".into()),
        process: None,
        cgroup_id: None,
        ..record
    }
}

/// Returns a report of a listening socket whose queue is full.
pub(crate) fn listening() -> Record {
    let queue = AcceptQueue {
        backlog: 129,
        max_backlog: 128,
        half_open: 3,
        dropped: 5,
        dropped_total: 40,
    };
    let mut record = report(Subject::Listener(queue));
    record.id.attempt = 0;
    record.dst.set_ip("0.0.0.0".parse().unwrap());
    record.src = "0.0.0.0:0".parse().unwrap();
    (record.names.src, record.names.service, record.names.original_dst) = (End::default(), None, None);
    record
}

/// Returns all records of this file that are about no connection.
pub(crate) fn reports() -> Vec<Record> {
    let mut quiet = listening();
    quiet.id.cookie += 1;
    quiet.names = Names::default();
    (quiet.dst, quiet.process) = ("[::]:22".parse().unwrap(), None);
    quiet.subject = Subject::Listener(AcceptQueue {
        max_backlog: 4_096,
        ..AcceptQueue::default()
    });
    let mut unnamed = rejected();
    unnamed.names = Names::default();
    unnamed.reset_reason = None;
    (unnamed.src, unnamed.dst) = ("[fd00::1]:0".parse().unwrap(), "[fd00::2]:81".parse().unwrap());
    unnamed.subject = Subject::Reject(1);
    vec![rejected(), listening(), quiet, unnamed]
}

pub(crate) fn lost() -> Lost {
    Lost {
        time: TIME,
        lost_records: 12,
        lost_records_total: 40,
        reasons: vec![LossReason::RingFull, LossReason::ProgramSkipped],
    }
}

pub(crate) fn summary() -> Summary {
    Summary {
        time: TIME,
        closes: 100,
        delivered: 80,
        filtered: 7,
        lost_records: 12,
        lost_at_most: 2,
        reasons: vec![LossReason::RingFull, LossReason::ProgramSkipped],
        after_limit: 1,
        unresolved: 3,
        open: 9,
        not_scanned: Some(4),
        drops_evicted: Some(2),
        elapsed_ns: 12_345_678_901,
        join: None,
    }
}

/// Returns the summary of a run without losses.
pub(crate) fn clean_summary() -> Summary {
    Summary {
        delivered: 100,
        filtered: 0,
        closes: 100,
        lost_records: 0,
        lost_at_most: 0,
        reasons: Vec::new(),
        after_limit: 0,
        unresolved: 0,
        not_scanned: None,
        drops_evicted: None,
        ..summary()
    }
}

pub(crate) fn info() -> RunInfo {
    RunInfo {
        node: "worker-1".to_owned(),
        kernel: "6.18.0".to_owned(),
        version: "0.1.0".to_owned(),
    }
}

/// Returns the process name that the kernel stores of `bytes`: the first fifteen bytes.
pub(crate) fn comm(bytes: &[u8]) -> Comm {
    let mut comm = [0; 16];
    let length = bytes.len().min(15);
    comm[..length].copy_from_slice(&bytes[..length]);
    Comm(comm)
}

/// Returns the example with the process name `bytes`.
pub(crate) fn named(bytes: &[u8]) -> Record {
    Record {
        process: Some(Process {
            pid: 4711,
            comm: comm(bytes),
            by: ProcessBy::Close,
        }),
        ..example()
    }
}

/// Returns a random number generator (SplitMix64). The same seed gives the same numbers.
pub(crate) fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Returns random names from a fixed seed. Bytes with a meaning in a log, in JSON or on a terminal are frequent.
pub(crate) fn hostile_names() -> impl Iterator<Item = Vec<u8>> {
    const PIECES: [&[u8]; 16] = [
        b"\n",
        b"\x1b[31m",
        b"\"",
        b"\\",
        b", ",
        b"=",
        b"/",
        b"\r",
        b"\x7f",
        b"\xc2\x9b",
        b"\xe2\x80\xae",
        b"\xd8\x9c",
        b"\xe2\x81\xa6",
        b"\xf0\x9f\xa6\x80",
        b" ",
        b"errno=-",
    ];
    let mut next = random(0x6b6d_6573_6874_7263);
    std::iter::repeat_with(move || {
        let mut name = Vec::new();
        while name.len() < 15 {
            let [piece, byte, kind, ..] = next().to_le_bytes();
            match kind % 4 {
                0 => name.extend_from_slice(PIECES[usize::from(piece) % PIECES.len()]),
                1 => name.push(b'a' + byte % 26),
                _ => name.push(byte.max(1)),
            }
        }
        name.truncate(15);
        name
    })
    .take(20_000)
}

/// Returns hostile names as text, and a very long one.
pub(crate) fn hostile_texts() -> impl Iterator<Item = String> {
    let long = "\u{202e}\u{1b}]0;".repeat(10_000);
    let texts = hostile_names().map(|name| String::from_utf8_lossy(&name).into_owned());
    texts.take(2_000).chain([long])
}

/// Returns whether `text` is harmless except for its line end.
pub(crate) fn is_harmless(text: &str) -> bool {
    !text.trim_end_matches('\n').contains(super::sanitize::is_harmful)
}
