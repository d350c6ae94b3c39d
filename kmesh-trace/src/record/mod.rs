//! The domain: what one traced connection is, whatever it is read from or printed as.
//!
//! A [`Record`] shares its names and owns no other heap memory, so that making, queueing and ordering one allocates nothing.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// Spells an enumeration, once for the log, the JSON and its schema. The `match` makes a forgotten variant a compile
/// error, so `ALL` is complete.
macro_rules! spelling {
    ($type:ident { $($variant:ident => $name:literal,)+ }) => {
        impl $type {
            /// Every value there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// As the log and the JSON spell it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// Returns the value that is spelled like this.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.name() == name)
            }
        }
    };
}

pub mod errno;
mod names;
pub mod rfc3339;
mod tcp;

pub use names::{Called, End, Labels, Names, Pod, Service, ServiceBy, Workload};
pub use tcp::Tcp;

/// Wall-clock time: nanoseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime(pub i64);

impl WallTime {
    /// After everything.
    pub const MAX: Self = Self(i64::MAX);
}

/// Names a connection for as long as the tracer runs: the socket's cookie, as `ss -e` shows it, and which association of
/// that socket it is. Displayed as `5f2c81-1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    /// The socket's cookie.
    pub cookie: u64,
    /// From 1; a socket that was refused and connects again has a second one.
    pub association: u32,
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.cookie, self.association)
    }
}

/// What a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The connection, or the attempt to connect, is over.
    Close,
    /// It reached ESTABLISHED.
    Open,
    /// How it stands, some time in between.
    Update,
}

spelling!(Event {
    Close => "close",
    Open => "open",
    Update => "update",
});

/// Which end the traced socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The server's: it was accepted.
    Inbound,
    /// The client's: it called connect().
    Outbound,
}

spelling!(Direction {
    Inbound => "inbound",
    Outbound => "outbound",
});

/// Address family on the wire; an IPv4-mapped socket is IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

spelling!(Family {
    Ipv4 => "ipv4",
    Ipv6 => "ipv6",
});

/// How a connection ended: `spec/records.md`, section 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// This end finished cleanly.
    Ok,
    /// The SYN was answered by RST or by ICMP port unreachable.
    Refused,
    /// Nothing answered the SYN until the kernel gave up.
    ConnectTimeout,
    /// The program gave up before it was connected, or the attempt was killed.
    ConnectAborted,
    /// ICMP unreachable or no neighbour.
    Unreachable,
    /// RST received after connecting.
    ResetByPeer,
    /// This end sent RST.
    ResetByLocal,
    /// Connected; the peer stopped answering.
    Timeout,
    /// None of the above: a defect to look into.
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

/// Which end closed first, or reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedBy {
    /// The traced socket's.
    Local,
    /// The other one.
    Peer,
}

spelling!(ClosedBy {
    Local => "local",
    Peer => "peer",
});

/// How a process is known to own the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessBy {
    /// It called connect().
    Connect,
    /// It closed this end.
    Close,
    /// It owns the listening socket.
    Listener,
    /// It held a descriptor of the socket when all were walked.
    Scan,
}

spelling!(ProcessBy {
    Connect => "connect",
    Close => "close",
    Listener => "listener",
    Scan => "scan",
});

/// The name of a process: at most 15 bytes that the process itself chose, so not necessarily UTF-8, nor harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Comm(pub [u8; 16]);

impl Comm {
    /// The bytes before the first NUL.
    pub fn as_bytes(&self) -> &[u8] {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap_or(self.0.len());
        &self.0[..end]
    }

    /// Returns the name that is printed as `text`. A byte that was no UTF-8 is printed as U+FFFD; which byte it was is lost.
    pub fn from_text(text: &str) -> Self {
        let mut bytes = [0; 16];
        let mut length = 0;
        for char in text.chars() {
            let mut encoded = [0; 4];
            let char = match char {
                char::REPLACEMENT_CHARACTER => &[0xff],
                char => char.encode_utf8(&mut encoded).as_bytes(),
            };
            let Some(to) = bytes.get_mut(length..length + char.len()) else {
                break;
            };
            to.copy_from_slice(char);
            length += char.len();
        }
        Self(bytes)
    }
}

/// The id of a container: hexadecimal digits, as the runtime and `kubectl` print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContainerId([u8; Self::DIGITS]);

impl ContainerId {
    /// How many digits it has.
    pub const DIGITS: usize = 64;

    /// The id that `text` spells, in lower case and nothing else.
    pub fn new(text: &str) -> Option<Self> {
        let digits: [u8; Self::DIGITS] = text.as_bytes().try_into().ok()?;
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        digits.iter().all(is_digit).then_some(Self(digits))
    }

    /// Its digits.
    pub fn as_str(&self) -> &str {
        // Digits are all that there can be.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The process that a socket belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// In the initial pid namespace.
    pub pid: u32,
    /// Of the thread-group leader.
    pub comm: Comm,
    /// How it is known.
    pub by: ProcessBy,
}

/// TCP states by the kernel's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// Data can flow both ways.
    Established,
    /// A SYN was sent.
    SynSent,
    /// A SYN was received.
    SynRecv,
    /// This end closed; its FIN is not acknowledged.
    FinWait1,
    /// This end closed; its FIN is acknowledged.
    FinWait2,
    /// Over.
    Close,
    /// The peer closed.
    CloseWait,
    /// The peer closed, then this end; its FIN is not acknowledged.
    LastAck,
    /// Both closed at once.
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

/// One event of one end of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The same in all events of a connection.
    pub id: ConnId,
    /// What happened.
    pub event: Event,
    /// When it happened.
    pub time: WallTime,
    /// connect() for outbound, ESTABLISHED for inbound; none when it began before tracing did.
    pub start: Option<WallTime>,
    /// From `start` to `time`, ns, by the monotonic clock; none when it began before tracing did.
    pub duration_ns: Option<u64>,
    /// SYN sent → ESTABLISHED, ns, outbound only.
    pub connect_ns: Option<u64>,
    /// It began before tracing did.
    pub preexisting: bool,
    /// `duration_ns`, or the time since tracing began, ns.
    pub observed_ns: u64,
    /// The name of the node that the socket is on.
    pub node: Arc<str>,
    /// Which end the traced socket is.
    pub direction: Direction,
    /// Of both addresses.
    pub family: Family,
    /// The client's end.
    pub src: SocketAddr,
    /// The server's end: the backend, where [`Names::original_dst`] was translated to it.
    pub dst: SocketAddr,
    /// What both ends are called.
    pub names: Names,
    /// Whom the socket belongs to.
    pub process: Option<Process>,
    /// Inode number of the socket's network namespace.
    pub netns: u32,
    /// Whether the initial user namespace owns that network namespace, so that only root chose its addresses. A capture does
    /// not have it, and says yes.
    pub is_netns_of_root: bool,
    /// The kernel's id of the socket's cgroup.
    pub cgroup_id: Option<u64>,
    /// The container that this cgroup is of.
    pub container_id: Option<ContainerId>,
    /// Payload that the peer acknowledged, bytes.
    pub sent_bytes: u64,
    /// Payload that arrived in order, bytes.
    pub received_bytes: u64,
    /// Payload handed to the kernel and not acknowledged, bytes.
    pub undelivered_bytes: u64,
    /// It reached ESTABLISHED.
    pub established: bool,
    /// How it ended; none while it has not.
    pub outcome: Option<Outcome>,
    /// The socket's error, Linux's number.
    pub errno: Option<u32>,
    /// Who ended it.
    pub closed_by: Option<ClosedBy>,
    /// The kernel's own counters.
    pub tcp: Tcp,
}

impl Record {
    /// The server's end as the socket has it: what the program dialled, or the listener's own address.
    pub fn socket_dst(&self) -> SocketAddr {
        self.names.original_dst.unwrap_or(self.dst)
    }

    /// Whether the link is known to be mutual TLS: an HBONE tunnel is, by definition.
    pub fn is_mutual_tls(&self) -> bool {
        const HBONE_PORT: u16 = 15008;
        self.dst.port() == HBONE_PORT
    }

    /// The traced socket's end.
    pub fn local_end(&self) -> &End {
        match self.direction {
            Direction::Outbound => &self.names.src,
            Direction::Inbound => &self.names.dst,
        }
    }
}

/// What the kernel half has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// When: CLOCK_MONOTONIC, ns.
    pub at_ns: u64,
    /// Closes that were told, sorted out or lost.
    pub closes: u64,
    /// Closes that were told: so many records of them are on the ring or have been.
    pub told: u64,
    /// Closes that the kernel half of the filters sorted out.
    pub filtered: u64,
    /// `open` events that the ring had no room for.
    pub lost_opens: u64,
    /// Closes that the ring had no room for.
    pub ring_full: u64,
    /// Closes of sockets that the kernel had no storage for.
    pub no_storage: u64,
    /// Closes that the kernel skipped the programs for, known for certain.
    pub skipped: u64,
    /// Further ones, at most.
    pub skipped_at_most: u64,
    /// Connections known and not closed.
    pub open: u64,
    /// How many of them the last socket scan did not reach. None if none has been made.
    pub not_scanned: Option<u64>,
}

/// Why records were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LossReason {
    /// The ring buffer had no room.
    RingFull,
    /// No socket storage could be had (`net.core.optmem_max`, or no memory).
    NoSocketStorage,
    /// The kernel skipped the programs (an upper bound).
    ProgramSkipped,
    /// Bytes on the ring that are no record of ours.
    Undecodable,
}

spelling!(LossReason {
    RingFull => "ring_full",
    NoSocketStorage => "no_socket_storage",
    ProgramSkipped => "program_skipped",
    Undecodable => "undecodable",
});

/// Records lost since the last such report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// When it was found out.
    pub time: WallTime,
    /// Since the last report.
    pub lost_records: u64,
    /// Since the start.
    pub lost_records_total: u64,
    /// Every reason among those since the last report, in order, without repeats.
    pub reasons: Vec<LossReason>,
}

/// How many of what, at the end or so far. `closes = delivered + filtered + lost_records + after_limit` at the end;
/// each is counted on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// When it was made.
    pub time: WallTime,
    /// All that the kernel saw end while tracing.
    pub closes: u64,
    /// Printed, or would have been but for `-o none`.
    pub delivered: u64,
    /// Sorted out by filters.
    pub filtered: u64,
    /// Lost, for every reason.
    pub lost_records: u64,
    /// Of `lost_records`, those that the kernel may have skipped without a trace: an upper bound.
    pub lost_at_most: u64,
    /// Every reason among `lost_records`.
    pub reasons: Vec<LossReason>,
    /// Came after `--count` or `--duration` was reached.
    pub after_limit: u64,
    /// Delivered with an end that belongs to a pod of this node and has no name.
    pub unresolved: u64,
    /// Connections known and not closed.
    pub open: u64,
    /// How many of them the last socket scan did not reach. None if none was made.
    pub not_scanned: Option<u64>,
    /// Since tracing began, ns.
    pub elapsed_ns: u64,
}

impl Summary {
    /// Returns the summary of nothing.
    pub fn zero(time: WallTime) -> Self {
        Self {
            time,
            closes: 0,
            delivered: 0,
            filtered: 0,
            lost_records: 0,
            lost_at_most: 0,
            reasons: Vec::new(),
            after_limit: 0,
            unresolved: 0,
            open: 0,
            not_scanned: None,
            elapsed_ns: 0,
        }
    }

    /// Adds the sums of another run. Both ran at the same time.
    pub fn add(&mut self, other: &Self) {
        for (sum, number) in [
            (&mut self.closes, other.closes),
            (&mut self.delivered, other.delivered),
            (&mut self.filtered, other.filtered),
            (&mut self.lost_records, other.lost_records),
            (&mut self.lost_at_most, other.lost_at_most),
            (&mut self.after_limit, other.after_limit),
            (&mut self.unresolved, other.unresolved),
            (&mut self.open, other.open),
        ] {
            *sum = sum.saturating_add(number);
        }
        self.not_scanned = match (self.not_scanned, other.not_scanned) {
            (Some(own), Some(others)) => Some(own.saturating_add(others)),
            (own, others) => own.or(others),
        };
        self.reasons.extend(&other.reasons);
        self.reasons.sort_unstable();
        self.reasons.dedup();
        self.elapsed_ns = self.elapsed_ns.max(other.elapsed_ns);
    }
}

/// What is the same for every line of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunInfo {
    /// The node's name (its host name, unless a source knows better).
    pub node: String,
    /// The kernel's release (`uname -r`).
    pub kernel: String,
    /// This tool's version.
    pub version: String,
}

/// The first line of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The node, its kernel and the version of the tracer.
    pub info: RunInfo,
    /// When tracing began. An update at this very time is a baseline: it says what a connection had moved before.
    pub start: WallTime,
    /// The number of the file among those of a rotated capture, from 0.
    pub part: u32,
    /// The number of closes in the parts before this one.
    pub closes_before: u64,
}

impl Header {
    /// Returns the header of a capture that has none: saved `-o json` output.
    pub fn unknown() -> Self {
        let unknown = || "unknown".to_owned();
        Self {
            info: RunInfo {
                node: unknown(),
                kernel: unknown(),
                version: unknown(),
            },
            start: WallTime(0),
            part: 0,
            closes_before: 0,
        }
    }
}
