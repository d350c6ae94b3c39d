//! The domain types: what the tracer knows about a connection, whatever the input or output format.
//!
//! A [`Record`] shares its names by `Arc`, and owns no other heap memory but the list of its dropped packets and its
//! turns, which only some runs have. So creating, queueing and sorting other records allocates nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytemuck::Zeroable as _;
use kmesh_trace_common::Snapshot;

/// Defines the text of each variant, for the log, the JSON and its schema. The `match` makes a forgotten variant a
/// compile error, so `ALL` is complete.
macro_rules! spelling {
    ($type:ident { $($variant:ident => $name:literal,)+ }) => {
        impl $type {
            /// All values, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the text of this value in the log and in JSON.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// Returns the value whose text is `name`.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.name() == name)
            }
        }
    };
}

pub mod errno;
mod joined;
mod names;
mod process;
mod reasons;
pub mod rfc3339;
mod tcp;
mod totals;
mod turns;

pub use joined::{JoinCounts, Joined, Undelivered};
pub use names::{End, Labels, Names, Pod, Service, ServiceBy, ServiceMatch, Workload};
pub use process::{Comm, ContainerId, Process, ProcessBy};
pub use reasons::{ReasonNames, ReasonSums};
pub use tcp::{Congestion, Tcp};
pub use totals::{Counts, Header, LossReason, Lost, RunInfo, Summary};
pub use turns::{Turns, bucket_bounds_ns};

/// Wall-clock time: nanoseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime(pub i64);

impl WallTime {
    /// The latest possible time, after every record.
    pub const MAX: Self = Self(i64::MAX);
}

/// Identifies a connection within a run: the socket's cookie, as `ss -e` shows it, and the number of the connection
/// attempt. Displayed as `5f2c81-1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    /// The kernel's cookie of the socket.
    pub cookie: u64,
    /// The number of the attempt on this socket, from 1. A socket that was refused and connects again has a second
    /// attempt.
    pub attempt: u32,
    /// The number of the socket's node within a replay. 0 in a live trace. No output shows it.
    pub node: u32,
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.cookie, self.attempt)
    }
}

/// The kind of event that a record reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The connection closed, or the attempt to connect failed.
    Close,
    /// The connection reached ESTABLISHED.
    Open,
    /// The counters of a connection that is still open or connecting.
    Update,
}

spelling!(Event {
    Close => "close",
    Open => "open",
    Update => "update",
});

/// The end of the connection that the traced socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The server's end: the socket was accepted.
    Inbound,
    /// The client's end: the program called connect().
    Outbound,
}

spelling!(Direction {
    Inbound => "inbound",
    Outbound => "outbound",
});

/// The address family on the wire. An IPv4-mapped IPv6 socket is IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Ipv4,
    Ipv6,
}

spelling!(Family {
    Ipv4 => "ipv4",
    Ipv6 => "ipv6",
});

/// How a connection or an attempt to connect ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// This end closed cleanly.
    Ok,
    /// The SYN was answered by RST or by ICMP port unreachable.
    Refused,
    /// Nothing answered the SYN until the kernel gave up.
    ConnectTimeout,
    /// The program closed the socket before it was connected, or the attempt was killed.
    ConnectAborted,
    /// ICMP reported the destination unreachable, or neighbor resolution failed.
    Unreachable,
    /// The peer sent a RST on an established connection.
    ResetByPeer,
    /// This end sent a RST.
    ResetByLocal,
    /// The peer of an established connection stopped answering.
    Timeout,
    /// None of the other outcomes. This is a defect of the tracer.
    Unknown,
}

spelling!(Outcome {
    Ok => "ok",
    Refused => "refused",
    ConnectTimeout => "connect_timeout",
    ConnectAborted => "connect_aborted",
    Unreachable => "unreachable",
    ResetByPeer => "reset_by_peer",
    ResetByLocal => "reset_by_local",
    Timeout => "timeout",
    Unknown => "unknown",
});

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndOutcomes {
    /// The traced end, or both ends, had this outcome.
    Same(Outcome),
    /// `--join` found both ends, and their outcomes differ. So at least one is not `ok`.
    Different { client: Outcome, server: Outcome },
}

impl EndOutcomes {
    /// Returns whether an end failed.
    pub fn is_failure(self) -> bool {
        self != Self::Same(Outcome::Ok)
    }
}

/// Displays the names of outcomes in JSON: `ok`, or `ok / reset_by_peer` if the outcomes of both ends differ.
impl fmt::Display for EndOutcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same(outcome) => f.write_str(outcome.name()),
            Self::Different { client, server } => write!(f, "{} / {}", client.name(), server.name()),
        }
    }
}

/// The end that closed first or sent the RST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedBy {
    /// The end of the traced socket.
    Local,
    /// The end on the other side.
    Peer,
}

spelling!(ClosedBy {
    Local => "local",
    Peer => "peer",
});

/// The TCP states, with the kernel's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// The handshake is complete, and no end has closed.
    Established,
    /// A SYN was sent.
    SynSent,
    /// A SYN was received.
    SynRecv,
    /// This end closed; its FIN is not acknowledged.
    FinWait1,
    /// This end closed; its FIN is acknowledged.
    FinWait2,
    /// The socket is closed.
    Close,
    /// The peer closed first, and this end is still open.
    CloseWait,
    /// The peer closed, then this end; its FIN is not acknowledged.
    LastAck,
    /// Both ends closed at the same time.
    Closing,
}

spelling!(TcpState {
    Established => "ESTABLISHED",
    SynSent => "SYN_SENT",
    SynRecv => "SYN_RECV",
    FinWait1 => "FIN_WAIT1",
    FinWait2 => "FIN_WAIT2",
    Close => "CLOSE",
    CloseWait => "CLOSE_WAIT",
    LastAck => "LAST_ACK",
    Closing => "CLOSING",
});

/// One event of one end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The ID of the connection, which all its events share.
    pub id: ConnId,
    /// The kind of event.
    pub event: Event,
    /// The time of the event.
    pub time: WallTime,
    /// The time of connect() for outbound, of ESTABLISHED for inbound. `None` if the connection began before tracing.
    pub start: Option<WallTime>,
    /// The time from `start` to `time` in ns, by the monotonic clock. `None` if the connection began before tracing.
    pub duration_ns: Option<u64>,
    /// The time from sending the SYN to ESTABLISHED in ns, outbound only.
    pub connect_ns: Option<u64>,
    /// Whether the connection began before tracing.
    pub preexisting: bool,
    /// `duration_ns`, or if that is `None`, the time since tracing began, in ns.
    pub observed_ns: u64,
    /// The name of the node that the socket is on.
    pub node: Arc<str>,
    /// The end of the connection that the traced socket is.
    pub direction: Direction,
    /// The address family of both ends.
    pub family: Family,
    /// The address of the client.
    pub src: SocketAddr,
    /// The address of the server. If [`Names::original_dst`] was translated, this is the backend.
    pub dst: SocketAddr,
    /// The Kubernetes names of both ends.
    pub names: Names,
    /// The process that owns the socket.
    pub process: Option<Process>,
    /// The inode number of the socket's network namespace.
    pub netns: u32,
    /// Whether the initial user namespace owns that network namespace, so that only root could choose its addresses.
    /// True for records from a capture, which does not store it.
    pub is_netns_of_root: bool,
    /// The kernel's ID of the socket's cgroup.
    pub cgroup_id: Option<u64>,
    /// The container that owns this cgroup.
    pub container_id: Option<ContainerId>,
    /// The payload that the peer acknowledged, in bytes.
    pub sent_bytes: u64,
    /// The payload that arrived in order, in bytes.
    pub received_bytes: u64,
    /// The payload that the program wrote and the peer has not acknowledged, in bytes.
    pub undelivered_bytes: u64,
    /// Whether the connection reached ESTABLISHED.
    pub established: bool,
    /// How the connection ended. `None` while it is open or connecting.
    pub outcome: Option<Outcome>,
    /// The socket's error, as a Linux error number.
    pub errno: Option<u32>,
    /// The end that closed first or sent the RST.
    pub closed_by: Option<ClosedBy>,
    /// The kernel's own reason for the RST that this end sent, as its BTF spells it. `None` if it sent none, or if the
    /// kernel gives no reason.
    pub reset_reason: Option<Arc<str>>,
    /// The packets of the connection that this node's kernel dropped. `None` if they were not counted.
    pub drops: Option<Vec<PacketDrops>>,
    /// The server's address to which a network namespace translated a packet that the kernel dropped, and the inode
    /// number of that namespace. A capture does not store it.
    pub dropped_to: Option<(SocketAddr, u32)>,
    /// The changes of direction. `None` if they were not measured.
    pub turns: Option<Box<Turns>>,
    /// The kernel's counters of the socket.
    pub tcp: Tcp,
    /// What the record reports.
    pub subject: Subject,
    /// What `--join` found about the other end. `None` without `--join`, and while the connection is open.
    pub joined: Option<Box<Joined>>,
}

/// What a record reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subject {
    /// A connection, or an attempt to connect.
    #[default]
    Connection,
    /// RSTs that this node sent because no socket was there: `dst` is what the client dialled, [`Record::reset_reason`]
    /// says why. `src` has no port. The number of RSTs since the last report.
    Reject(u64),
    /// A listening socket, whose address is `dst`. `src` means nothing.
    Listener(AcceptQueue),
}

/// The queues of a listening socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptQueue {
    /// The number of connections that no process has accepted yet.
    pub backlog: u32,
    /// The limit of `backlog`. The kernel drops SYNs once `backlog` exceeds it.
    pub max_backlog: u32,
    /// The number of connections in the middle of their handshake.
    pub half_open: u32,
    /// The number of packets that the socket dropped since the last report.
    pub dropped: u32,
    /// The number of packets that the socket dropped since it was made.
    pub dropped_total: u32,
}

/// The packets of a connection that the kernel dropped for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketDrops {
    /// The end that sent them, as the traced end sees it.
    pub direction: PacketDirection,
    /// The kernel's reason, as its BTF spells it.
    pub reason: Arc<str>,
    /// The number of packets.
    pub packets: u64,
}

/// The direction of a packet, as the traced end of its connection sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PacketDirection {
    /// The traced end sent it.
    Sent,
    /// The peer sent it.
    Received,
}

spelling!(PacketDirection {
    Sent => "sent",
    Received => "received",
});

impl Record {
    /// Returns a record that is about no connection, but about a server's address `dst`. Nothing else is known.
    pub fn report(subject: Subject, time: WallTime, dst: SocketAddr) -> Self {
        let unspecified = match dst {
            SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        Self {
            id: ConnId {
                cookie: 0,
                attempt: 0,
                node: 0,
            },
            event: Event::Update,
            time,
            start: None,
            duration_ns: None,
            connect_ns: None,
            preexisting: false,
            observed_ns: 0,
            node: Arc::from(""),
            direction: Direction::Inbound,
            family: if dst.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 },
            src: SocketAddr::new(unspecified, 0),
            dst,
            names: Names::default(),
            process: None,
            netns: 0,
            is_netns_of_root: false,
            cgroup_id: None,
            container_id: None,
            sent_bytes: 0,
            received_bytes: 0,
            undelivered_bytes: 0,
            established: false,
            outcome: None,
            errno: None,
            closed_by: None,
            reset_reason: None,
            drops: None,
            dropped_to: None,
            turns: None,
            subject,
            joined: None,
            tcp: Tcp::new(TcpState::Close, None, &Snapshot::zeroed()),
        }
    }

    /// Returns the server's address on the socket: what the program dialled, or the listener's own address.
    pub fn socket_dst(&self) -> SocketAddr {
        self.names.original_dst.unwrap_or(self.dst)
    }

    /// Returns whether the connection is certainly mutual TLS. An HBONE tunnel is mutual TLS by definition.
    pub fn is_mutual_tls(&self) -> bool {
        const HBONE_PORT: u16 = 15008;
        self.dst.port() == HBONE_PORT
    }

    /// Returns the record of the other end, if `--join` found it.
    pub fn other(&self) -> Option<&Self> {
        self.joined.as_ref()?.other.as_ref()
    }

    /// Returns the number of closes that this record stands for.
    pub fn closes(&self) -> u64 {
        match self.event {
            Event::Close => 1 + u64::from(self.other().is_some()),
            Event::Open | Event::Update => 0,
        }
    }

    /// Returns the records of the client's and the server's end, as far as they are known.
    pub fn both_ends(&self) -> (Option<&Self>, Option<&Self>) {
        match self.direction {
            Direction::Outbound => (Some(self), self.other()),
            Direction::Inbound => (self.other(), Some(self)),
        }
    }

    /// Returns how the connection ended. `None` while it has not.
    pub fn end_outcomes(&self) -> Option<EndOutcomes> {
        let outcome = self.outcome?;
        let (client, server) = self.both_ends();
        let outcome_of = |end: Option<&Self>| end.and_then(|end| end.outcome);
        Some(match (outcome_of(client), outcome_of(server)) {
            (Some(client), Some(server)) if client != server => EndOutcomes::Different { client, server },
            _ => EndOutcomes::Same(outcome),
        })
    }

    /// Returns what one end sent and the other one did not receive. `None` unless both ends are known.
    pub fn undelivered(&self) -> Option<Undelivered> {
        let (client, server) = self.both_ends();
        let missing = |sender: &Self, receiver: &Self| {
            let written = sender.sent_bytes.saturating_add(sender.undelivered_bytes);
            written.saturating_sub(receiver.received_bytes)
        };
        let (client, server) = (client?, server?);
        Some(Undelivered {
            sent: missing(client, server),
            received: missing(server, client),
        })
    }

    /// Returns the names of the client's and the server's end. Each end's own record knows its names best.
    pub fn end_names(&self) -> (&End, &End) {
        let (client, server) = self.both_ends();
        let src = client.map(|end| &end.names.src);
        let dst = server.map(|end| &end.names.dst);
        (
            End::better_known(src, &self.names.src),
            End::better_known(dst, &self.names.dst),
        )
    }

    /// Returns the Service that the client called. The client's end knows what it dialled.
    pub fn service(&self) -> Option<&ServiceMatch> {
        let (client, server) = self.both_ends();
        let known = |end: Option<&'_ Self>| end.is_some_and(|end| end.names.service.is_some());
        let end = if known(client) { client } else { server };
        end?.names.service.as_ref()
    }

    /// Returns the names of the end that has the traced socket.
    pub fn local_end(&self) -> &End {
        match self.direction {
            Direction::Outbound => &self.names.src,
            Direction::Inbound => &self.names.dst,
        }
    }
}
