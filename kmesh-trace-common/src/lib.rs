//! The types that the eBPF programs and user space exchange.
//!
//! Every type is `#[repr(C)]` without implicit padding (`bytemuck::Pod` refuses any), and its size is asserted at
//! compile time. Numbers are in the CPU's byte order unless a field says otherwise.
#![no_std]
#![deny(missing_docs)]

mod config;
mod drops;
mod filter;
mod scan;
mod tcp;
mod turns;

use bytemuck::{Pod, Zeroable};

pub use config::{ABSENT, Offsets, ProgramConfig, SystemCalls};
pub use drops::{DROP_SLOTS, DropKind, DropSlot, Drops, MAX_DROP_REASONS, MAX_RESET_REASONS, RejectKey, Tuple};
pub use filter::{
    CHECK_ADDRESS, CHECK_CLIENT_PORT, CHECK_DIRECTION, CHECK_FAMILY, CHECK_SERVER_PORT, DIRECTION_INBOUND,
    DIRECTION_OUTBOUND, FAMILY_IPV4, FAMILY_IPV6, FilterRules, Prefix, term,
};
pub use scan::{FoundHolder, FoundNamespace, Listener, ListenerScanRecord, ScanRecord};
pub use tcp::{TcpOffsets, unit};
pub use turns::{TURN_BUCKETS, Turns, bucket};

/// `Snapshot::kind`: the connection attempt ended.
pub const KIND_CLOSE: u32 = 1;
/// `Reset::kind` of every [`Reset`].
pub const KIND_RESET: u32 = 2;
/// `Snapshot::kind`: the connection was established.
pub const KIND_OPEN: u32 = 3;
/// `Snapshot::kind`: a socket scan found the connection, which may be connecting, connected or closing.
pub const KIND_UPDATE: u32 = 4;
/// `Listener::kind` of every [`Listener`].
pub const KIND_LISTENER: u32 = 5;

/// `Snapshot::flags`: this socket called connect().
pub const FLAG_ACTIVE: u8 = 1 << 0;
/// `Snapshot::flags`: the connection attempt is older than the tracer, so its start time is unknown.
pub const FLAG_PREEXISTING: u8 = 1 << 1;
/// `Snapshot::flags`: the kernel skipped the state program at the change to CLOSE, and a fallback program reported the
/// close: the one at `tcp_destroy_sock` or at `inet_sk_error_report`. `Snapshot::old_state` is then the last state that
/// a program stored, not necessarily the state before CLOSE.
pub const FLAG_FALLBACK: u8 = 1 << 2;
/// `Snapshot::flags`: the initial user namespace owns the socket's network namespace, so only root chose its addresses.
pub const FLAG_ROOT_NETNS: u8 = 1 << 3;
/// `Snapshot::flags`: this end sent a RST in FIN_WAIT2, before the change to CLOSE.
pub const FLAG_RESET_SENT: u8 = 1 << 4;
/// `Snapshot::flags`, with [`FLAG_FALLBACK`]: no system call ended the connection, and a process held the socket until
/// a system call destroyed it. So the kernel set an error, unless both ends had closed, and the process may have read
/// the error.
pub const FLAG_HELD_BY_PROCESS: u8 = 1 << 5;

/// How the owner of a socket was found. A higher number replaces a lower one.
pub mod owner {
    /// The owner is unknown.
    pub const NONE: u8 = 0;
    /// The process that owns the listening socket that accepted this one.
    pub const LISTENER: u8 = 1;
    /// A process that held a descriptor of the socket during a socket scan.
    pub const SCAN: u8 = 2;
    /// The process that closed or shut down this end.
    pub const CLOSE: u8 = 3;
    /// The process that called connect().
    pub const CONNECT: u8 = 4;
}

/// TCP states, with the kernel's numbers (`include/net/tcp_states.h`, part of the stable user API).
pub mod state {
    /// Data can flow in both directions.
    pub const ESTABLISHED: u8 = 1;
    /// This end sent a SYN.
    pub const SYN_SENT: u8 = 2;
    /// This end received a SYN.
    pub const SYN_RECV: u8 = 3;
    /// This end closed first; its FIN is not acknowledged.
    pub const FIN_WAIT1: u8 = 4;
    /// This end closed first; its FIN is acknowledged.
    pub const FIN_WAIT2: u8 = 5;
    /// The stub that the kernel keeps for a minute after the close.
    pub const TIME_WAIT: u8 = 6;
    /// The socket has no connection.
    pub const CLOSE: u8 = 7;
    /// The peer closed; this end did not.
    pub const CLOSE_WAIT: u8 = 8;
    /// The peer closed, then this end closed; this end's FIN is not acknowledged.
    pub const LAST_ACK: u8 = 9;
    /// The socket is a listener.
    pub const LISTEN: u8 = 10;
    /// Both ends closed at the same time.
    pub const CLOSING: u8 = 11;
    /// The stub of a connection that a listener has not created yet.
    pub const NEW_SYN_RECV: u8 = 12;
}

/// `Snapshot::sk_flags`, bit 0: no process holds the socket any more (SOCK_DEAD).
pub const SK_DEAD: u8 = 1 << 0;
/// `Snapshot::sk_flags`, bit 1: this end received the peer's FIN (SOCK_DONE).
pub const SK_DONE: u8 = 1 << 1;

/// The process that owns a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Owner {
    /// The process id (the kernel's tgid) in the initial pid namespace; 0 when the owner is unknown.
    pub pid: u32,
    /// How the owner was found: a number of [`owner`].
    pub by: u8,
    /// Padding that is always 0.
    pub pad: [u8; 3],
    /// The name of the thread-group leader, NUL-terminated, not necessarily UTF-8.
    pub comm: [u8; 16],
}

/// The total size of the fields of [`Snapshot`] that are not generated. A wrong number does not compile: `Pod` forbids
/// padding.
const FIXED_BYTES: usize = 176;

const fn count(paths: &[&str]) -> usize {
    paths.len()
}

/// Defines [`Snapshot`], with a field for each member of `tcp_sock` that records report. Fields of the same width stand
/// together, so that there is no padding between them.
macro_rules! snapshot {
    (
        reported {$(
            $name:ident:
            $(u64, $path64:literal)? $(u32, $path32:literal)? $(u16, $path16:literal)? $(u8, $path8:literal)?,
            $unit:ident, $description:literal;
        )*}
        derived { $($derived:tt)* }
        carried {$(
            $carried:ident: $(u32, $carried32:literal)? $(u16, $carried16:literal)?, $carried_description:literal;
        )*}
        internal { $($internal:tt)* }
    ) => {
        const GENERATED_BYTES: usize = 8 * count(&[$($($path64,)?)*])
            + 4 * count(&[$($($path32,)?)* $($($carried32,)?)*])
            + 2 * count(&[$($($path16,)?)* $($($carried16,)?)*])
            + count(&[$($($path8,)?)*]);

        const PAD_BYTES: usize = (FIXED_BYTES + GENERATED_BYTES).next_multiple_of(8) - FIXED_BYTES - GENERATED_BYTES;

        /// The state of a connection attempt at an event. A close shows the state just before the change to CLOSE.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
        pub struct Snapshot {
            /// [`KIND_CLOSE`], [`KIND_OPEN`] or [`KIND_UPDATE`].
            pub kind: u32,
            /// Inode number of the socket's network namespace.
            pub netns: u32,
            /// The time of the event: CLOCK_MONOTONIC, ns.
            pub time_ns: u64,
            /// The time when connect() sent the SYN, or when the accepted socket was established: CLOCK_MONOTONIC, ns;
            /// 0 if unknown.
            pub start_ns: u64,
            /// The time when the connection was established: CLOCK_MONOTONIC, ns; 0 if never, or unknown.
            pub established_ns: u64,
            /// The socket's cookie, as `ss -e` shows it.
            pub cookie: u64,
            /// The id of the socket's cgroup (v2); 0 if unknown.
            pub cgroup_id: u64,
            /// The address of this end as IPv6, IPv4-mapped for IPv4; network order.
            pub local_addr: [u8; 16],
            /// The address of the peer as IPv6, IPv4-mapped for IPv4; network order.
            pub peer_addr: [u8; 16],
            /// The port of this end.
            pub local_port: u16,
            /// The port of the peer.
            pub peer_port: u16,
            /// The family of the socket: AF_INET (2) or AF_INET6 (10).
            pub family: u16,
            /// The state before the event: a number of [`state`]. The current state for an update.
            pub old_state: u8,
            /// The flags of the connection, as bits `FLAG_*`.
            pub flags: u8,
            /// The number of the connection attempt of this socket, from 1. A refused socket may connect again.
            pub attempt: u32,
            /// `sock.sk_err`; 0 if close() itself ended the attempt, since a pending error is then not the cause.
            pub sk_err: u32,
            /// `ee_errno` of the newest buffer on the error queue; 0 if the queue is empty.
            pub ee_errno: u32,
            /// `tcp_sock.linger2`, ticks; negative: do not wait for the peer's FIN.
            pub linger2: i32,
            /// The process that owns the socket.
            pub owner: Owner,
            /// `tcp_sock.write_seq`: the sequence number after the last byte that the program wrote.
            pub write_seq: u32,
            /// `sock.sk_err_soft`: the error that the kernel sets when it gives up retransmitting.
            pub sk_err_soft: u32,
            /// `tcp_congestion_ops.name`: the congestion control algorithm, NUL-terminated.
            pub congestion: [u8; 16],
            /// `tcp_sock.chrono_stat[]`: the time in which this end had data to send, in periods that are over and
            /// limited by nothing, by the peer's window, and by the send buffer; ticks. All ones if unknown.
            pub chrono_stat: [u32; 3],
            /// The low half of the kernel's counter of ticks (jiffies) at the event.
            pub jiffies: u32,
            $($(
                #[doc = concat!("`tcp_sock.", $path64, "`: ", $description)]
                pub $name: u64,
            )?)*
            /// The length of a tick, ns.
            pub tick_ns: u32,
            $($(
                #[doc = concat!("`tcp_sock.", $path32, "`: ", $description)]
                pub $name: u32,
            )?)*
            $($(
                #[doc = concat!("`tcp_sock.", $carried32, "`: ", $carried_description)]
                pub $carried: u32,
            )?)*
            $($(
                #[doc = concat!("`tcp_sock.", $path16, "`: ", $description)]
                pub $name: u16,
            )?)*
            $($(
                #[doc = concat!("`tcp_sock.", $carried16, "`: ", $carried_description)]
                pub $carried: u16,
            )?)*
            $($(
                #[doc = concat!("`tcp_sock.", $path8, "`: ", $description)]
                pub $name: u8,
            )?)*
            /// The low byte of `sock.sk_flags`: bits `SK_*`.
            pub sk_flags: u8,
            /// `ee_origin` of the newest buffer on the error queue: 2 is ICMP, 3 is ICMPv6.
            pub ee_origin: u8,
            /// A number of the kernel's `enum sk_rst_reason`, for the last RST that this end sent; 0 if none, or
            /// unknown.
            pub reset_reason: u8,
            /// `tcp_sock.chrono_type`: the limit of the current period of activity, which counts from 1 as
            /// `chrono_stat`; 0 while this end has nothing to send.
            pub chrono_type: u8,
            /// Padding that is not written.
            pub pad: [u8; PAD_BYTES],
        }
    };
}

tcp_fields!(snapshot);

/// A [`Snapshot`] with the turns of its connection. If the programs measure turns, every snapshot has this form.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TurnsSnapshot {
    /// The same record as without `--turns`.
    pub snapshot: Snapshot,
    /// The turns; all zero if there were none.
    pub turns: Turns,
}

/// A RST that this end sent after the [`Snapshot`] of its close. The close alone does not show why the kernel sent it,
/// and not always how the connection ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Reset {
    /// The kind of record: [`KIND_RESET`].
    pub kind: u32,
    /// [`Snapshot::attempt`] of the close.
    pub attempt: u32,
    /// [`Snapshot::cookie`] of the close.
    pub cookie: u64,
    /// A number of the kernel's `enum sk_rst_reason`; 0 if unknown.
    pub reason: u32,
    /// 1 if the RST decides how the connection ended.
    pub decides: u32,
}

/// The programs that count. Each has its own [`Counters`] on each CPU, so no addition has to be atomic: the kernel may
/// run one program on top of another on a CPU, but never a program on top of itself.
pub mod counter {
    /// The program at `inet_sock_set_state`.
    pub const STATE: u32 = 0;
    /// The program at `tcp_destroy_sock`.
    pub const DESTROY: u32 = 1;
    /// The program at `tcp_send_reset`.
    pub const RESET: u32 = 2;
    /// The programs of a socket scan: over descriptors, and over the sockets of network namespaces. They never run at
    /// the same time.
    pub const SCAN: u32 = 3;
    /// The program at `inet_sk_error_report`.
    pub const ERROR: u32 = 4;
    /// The first backup program at `inet_sock_set_state`.
    pub const STATE_2: u32 = 5;
    /// The first backup program at `tcp_destroy_sock`.
    pub const DESTROY_2: u32 = 6;
    /// The first backup program at `tcp_send_reset`.
    pub const RESET_2: u32 = 7;
    /// The second backup program at `inet_sock_set_state`.
    pub const STATE_3: u32 = 8;
    /// The second backup program at `tcp_destroy_sock`. It runs last.
    pub const DESTROY_3: u32 = 9;
    /// The second backup program at `tcp_send_reset`.
    pub const RESET_3: u32 = 10;
    /// The number of programs that count.
    pub const PROGRAMS: usize = 11;

    /// Returns whether a program is a backup of another one.
    #[inline(always)]
    pub const fn is_backup(program: u32) -> bool {
        program >= STATE_2
    }
}

/// The counters of one program on one CPU. No counter is computed from another.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counters {
    /// Connection attempts that ended while tracing.
    pub closes: u64,
    /// [`Snapshot`] records of closes that were submitted to the ring.
    pub submitted: u64,
    /// Closes that were lost because the ring was full.
    pub lost_ring: u64,
    /// Closes that were lost because the kernel could not allocate socket storage.
    pub lost_storage: u64,
    /// Closes that were lost because the kernel skipped the programs. A program counts such a close when the same
    /// socket connects again, or when a socket that no program has seen is destroyed.
    pub lost_skipped: u64,
    /// Closes that a fallback program found, since the kernel had skipped the state program at the change to CLOSE.
    pub fallback_closes: u64,
    /// Closes that the kernel filter filtered out.
    pub filtered: u64,
    /// [`Snapshot`] records of established connections that were submitted to the ring.
    pub opens: u64,
    /// Records of established connections that were lost because the ring was full.
    pub lost_opens: u64,
    /// [`Reset`] records that were submitted to the ring.
    pub resets: u64,
    /// A gauge of the open connections: attempts that began or were found, minus attempts that ended. The part of one
    /// CPU may be negative.
    pub open: i64,
    /// Visits of socket scans to connections that [`Self::open`] counts, at most one visit for each connection and
    /// scan.
    pub visited: u64,
}

const _: () = {
    assert!(size_of::<Owner>() == 24);
    assert!(size_of::<Snapshot>() == 360);
    assert!(size_of::<Reset>() == 24);
    assert!(size_of::<Prefix>() == 20);
    assert!(size_of::<FilterRules>() == 16 + 2 * 8192);
    assert!(size_of::<Counters>() == 96);
};
