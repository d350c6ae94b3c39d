//! The types that the eBPF programs and user space exchange.
//!
//! Every type is `#[repr(C)]` without implicit padding (`bytemuck::Pod` refuses any), and its size is asserted at
//! compile time. Numbers are in the CPU's byte order unless a field says otherwise.
#![no_std]
#![deny(missing_docs)]

mod drops;
mod tcp;
mod turns;

use bytemuck::{Pod, Zeroable};

pub use drops::{DROP_SLOTS, DropKind, DropSlot, Drops, MAX_DROP_REASONS, MAX_RESET_REASONS, RejectKey, Tuple};
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
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The turns; all zero if there were none.
    pub turns: Turns,
}

/// The update of one connection that a socket scan writes to its output.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ScanRecord {
    /// The size of the record behind it, bytes: a [`Snapshot`] or a [`TurnsSnapshot`].
    pub length: u64,
    /// A snapshot of [`KIND_UPDATE`]. Written without its turns if the programs do not measure them.
    pub record: TurnsSnapshot,
}

/// A listening socket, as a socket scan found it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Listener {
    /// The kind of record: [`KIND_LISTENER`].
    pub kind: u32,
    /// Inode number of the socket's network namespace.
    pub netns: u32,
    /// The time of the visit: CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// The socket's cookie, as `ss -e` shows it.
    pub cookie: u64,
    /// The id of the socket's cgroup (v2); 0 if unknown.
    pub cgroup_id: u64,
    /// The address as IPv6, IPv4-mapped for IPv4; network order.
    pub local_addr: [u8; 16],
    /// The process that owns the socket.
    pub owner: Owner,
    /// `sock.sk_ack_backlog`: the number of connections that no process has accepted yet.
    pub backlog: u32,
    /// `sock.sk_max_ack_backlog`: the limit of `backlog`.
    pub max_backlog: u32,
    /// `inet_connection_sock.icsk_accept_queue.qlen`: the number of connections in the middle of their handshake.
    pub half_open: u32,
    /// `sock.sk_drops`: the number of packets that the socket dropped.
    pub drops: u32,
    /// The port that the socket listens on.
    pub local_port: u16,
    /// The flags of the socket: [`FLAG_ROOT_NETNS`] or 0.
    pub flags: u8,
    /// Padding that is always 0.
    pub pad: [u8; 5],
}

/// The record of one listener that a socket scan writes to its output.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ListenerScanRecord {
    /// The size of `listener`, bytes.
    pub length: u64,
    /// A listener of [`KIND_LISTENER`].
    pub listener: Listener,
}

/// A network namespace with TCP sockets, as a socket scan writes it to its output.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FoundNamespace {
    /// The size of the fields behind it, bytes.
    pub length: u64,
    /// The inode number of the namespace.
    pub netns: u32,
    /// A process that holds a socket of the namespace, in the initial pid namespace.
    pub pid: u32,
}

/// The process that a socket scan found to hold a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FoundHolder {
    /// The process id (the kernel's tgid) in the initial pid namespace.
    pub pid: u32,
    /// The number of the scan.
    pub scan: u32,
    /// The inode number of the socket's network namespace.
    pub netns: u32,
    /// The ports of the socket as the kernel stores them, by which it differs from an earlier socket at its address.
    pub ports: u32,
    /// The process that called listen(), as an earlier scan knew it; 0 if unknown.
    pub listening_pid: u32,
    /// The holder at the last visit of the socket, for a listener; 0 before.
    pub visited_pid: u32,
    /// The name of the thread-group leader, as two words in memory order.
    pub comm: [u64; 2],
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
    /// The backup program at `inet_sock_set_state`.
    pub const STATE_BACKUP: u32 = 4;
    /// The backup program at `tcp_destroy_sock`.
    pub const DESTROY_BACKUP: u32 = 5;
    /// The program at `inet_sk_error_report`.
    pub const ERROR: u32 = 6;
    /// The number of programs that count.
    pub const PROGRAMS: usize = 7;
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

/// Byte offsets of members in the kernel's structures, found in the running kernel's BTF. Each offset counts from the
/// start of the named structure, not from an enclosing member. [`ABSENT`] stands for a member that the kernel lacks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Offsets {
    /// `sock_common.skc_family` in `sock` (u16).
    pub skc_family: u32,
    /// `sock_common.skc_state` in `sock` (u8).
    pub skc_state: u32,
    /// `sock_common.skc_num` in `sock` (u16).
    pub skc_num: u32,
    /// `sock_common.skc_dport` in `sock` (be16).
    pub skc_dport: u32,
    /// `sock_common.skc_cookie` in `sock` (u64): 0 until a program asks for the cookie.
    pub skc_cookie: u32,
    /// `sock_common.skc_daddr` in `sock` (be32).
    pub skc_daddr: u32,
    /// `sock_common.skc_rcv_saddr` in `sock` (be32).
    pub skc_rcv_saddr: u32,
    /// `sock_common.skc_v6_daddr` in `sock` (16 bytes).
    pub skc_v6_daddr: u32,
    /// `sock_common.skc_v6_rcv_saddr` in `sock` (16 bytes).
    pub skc_v6_rcv_saddr: u32,
    /// `sock_common.skc_net.net` in `sock` (pointer to `net`).
    pub skc_net: u32,
    /// `sock_common.skc_flags` in `sock` (unsigned long).
    pub skc_flags: u32,
    /// `net.ns.inum` in `net` (u32).
    pub net_inum: u32,
    /// The low byte of `net.ipv4.sysctl_tcp_fastopen` in `net`.
    pub sysctl_tcp_fastopen: u32,
    /// `net.user_ns` in `net` (pointer to `user_namespace`).
    pub net_user_ns: u32,
    /// `user_namespace.level` (int): 0 for the initial namespace.
    pub user_ns_level: u32,
    /// `sock.sk_protocol` (u16): the IP protocol.
    pub sk_protocol: u32,
    /// `sock.sk_err` (int): the pending error.
    pub sk_err: u32,
    /// `sock.sk_err_soft` (int): the error that the kernel sets when it gives up retransmitting.
    pub sk_err_soft: u32,
    /// `sock.sk_socket` (pointer to `socket`): null if no process holds the socket.
    pub sk_socket: u32,
    /// `sock.sk_shutdown` (u8): the directions that are shut down.
    pub sk_shutdown: u32,
    /// `sock.sk_max_ack_backlog` (u32): above 0 in an accepted socket.
    pub sk_max_ack_backlog: u32,
    /// `sock.sk_error_queue` (the head of the list).
    pub sk_error_queue: u32,
    /// `sk_buff_head.prev` (pointer to `sk_buff`).
    pub sk_buff_head_prev: u32,
    /// `sk_buff.cb[]` plus `sock_exterr_skb.ee.ee_errno` (u32).
    pub skb_ee_errno: u32,
    /// `sk_buff.cb[]` plus `sock_exterr_skb.ee.ee_origin` (u8).
    pub skb_ee_origin: u32,
    /// `sock.sk_cgrp_data.cgroup` (pointer to `cgroup`).
    pub sk_cgroup: u32,
    /// `cgroup.kn` (pointer to `kernfs_node`).
    pub cgroup_kn: u32,
    /// `kernfs_node.id` (u64): the id of the cgroup.
    pub kn_id: u32,
    /// `tcp_sock.tcp_wstamp_ns` (u64, CLOCK_MONOTONIC, ns): the time when the kernel sent the last segment.
    pub tcp_wstamp_ns: u32,
    /// `tcp_sock.tcp_clock_cache` (u64, CLOCK_MONOTONIC, ns): the time when the kernel began to process the last
    /// segment.
    pub tcp_clock_cache: u32,
    /// The byte of `tcp_sock` with the bit [`ProgramConfig::fastopen_connect_bit`]. [`ABSENT`] if BTF does not show it.
    pub fastopen_connect: u32,
    /// The byte of `tcp_sock` with the bit [`ProgramConfig::transparent_bit`]. [`ABSENT`] if BTF does not show it.
    pub transparent: u32,
    /// `sock.sk_lock.owned` (int): not 0 while a system call holds the socket's lock.
    pub sk_lock_owned: u32,
    /// `sock.sk_lock.slock` (u32): not 0 while the receive path or a timer holds the spinlock. [`ABSENT`] if it is no
    /// plain spinlock.
    pub sk_lock_slock: u32,
    /// `socket.sk` (pointer to `sock`).
    pub socket_sk: u32,
    /// `task_struct.flags` (u32): bits `PF_*`.
    pub task_flags: u32,
    /// `task_struct.pid` (int): the id of the thread.
    pub task_pid: u32,
    /// `task_struct.tgid` (int): the id of the process.
    pub task_tgid: u32,
    /// `task_struct.group_leader` (pointer to `task_struct`).
    pub task_group_leader: u32,
    /// `task_struct.comm` (16 bytes): the name of the thread.
    pub task_comm: u32,
    /// The byte of `task_struct` with the bit [`ProgramConfig::compat_bit`]. [`ABSENT`] if all tasks use the same
    /// system call numbers.
    pub task_compat: u32,
    /// The number of the system call in `pt_regs` (int). [`ABSENT`] if unknown.
    pub system_call: u32,
    /// `sock.sk_ack_backlog` (u32): the connections of a listener that no process has accepted yet.
    pub sk_ack_backlog: u32,
    /// `sock.sk_drops` (atomic_t).
    pub sk_drops: u32,
    /// `inet_connection_sock.icsk_accept_queue.qlen` in `tcp_sock` (atomic_t).
    pub accept_queue_len: u32,
    /// `inet_connection_sock.icsk_ca_ops` in `tcp_sock` (pointer to `tcp_congestion_ops`).
    pub congestion_ops: u32,
    /// `tcp_congestion_ops.name` (16 bytes).
    pub congestion_name: u32,
    /// `tcp_sock.chrono_stat` (three u32).
    pub chrono_stat: u32,
    /// The byte of `tcp_sock` with the bits [`ProgramConfig::chrono_type_mask`]. [`ABSENT`] if BTF does not show it.
    pub chrono_type: u32,
    /// `sk_buff.head` (pointer).
    pub skb_head: u32,
    /// `sk_buff.network_header` (u16): from `head`.
    pub skb_network_header: u32,
    /// `sk_buff.protocol` (be16).
    pub skb_protocol: u32,
    /// `sk_buff.dev` (pointer to `net_device`).
    pub skb_dev: u32,
    /// `sk_buff.sk` (pointer to `sock`).
    pub skb_sk: u32,
    /// `sk_buff._nfct` (unsigned long). [`ABSENT`] if the kernel has no conntrack.
    pub skb_nfct: u32,
    /// `net_device.nd_net.net` (pointer to `net`).
    pub net_device_net: u32,
    /// `nf_conn.tuplehash[0].tuple.src.l3num` (u16). [`ABSENT`] if the kernel's BTF does not describe `nf_conn`.
    pub conntrack_family: u32,
    /// `nf_conn.tuplehash[0].tuple.src.u3` (16 bytes).
    pub conntrack_src: u32,
    /// `nf_conn.tuplehash[0].tuple.dst.u3` (16 bytes).
    pub conntrack_dst: u32,
    /// `nf_conn.tuplehash[0].tuple.src.u` (be16).
    pub conntrack_sport: u32,
    /// `nf_conn.tuplehash[0].tuple.dst.u` (be16).
    pub conntrack_dport: u32,
    /// The distance from `nf_conn.tuplehash[0]` to `nf_conn.tuplehash[1]`.
    pub conntrack_reply: u32,
    /// Padding that is always 0.
    pub pad: u32,
    /// The offsets of the members of `tcp_sock`.
    pub tcp: TcpOffsets,
}

/// The configuration of the programs, which user space sets before loading. The verifier sees constants and removes the
/// code that they rule out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ProgramConfig {
    /// 1 if the programs report established connections.
    pub reports_opens: u32,
    /// The enabled checks of [`FilterRules`], as bits `CHECK_*`; 0 if every connection passes.
    pub filter_checks: u32,
    /// 1 if the kernel may preempt a program at a tracepoint (since 7.0).
    pub preempts_programs: u32,
    /// The number of bytes of the ring that [`Snapshot`] records may fill. The rest is reserved for [`Reset`] records,
    /// each of which belongs to a [`Snapshot`] in the ring.
    pub snapshot_limit: u32,
    /// The mask of `tcp_sock.fastopen_connect` in its byte: connect() has not sent the SYN, the first write does.
    pub fastopen_connect_bit: u8,
    /// The mask of IP_TRANSPARENT in its byte.
    pub transparent_bit: u8,
    /// The mask of the bit of a task whose system calls have the numbers of [`Self::compat_closing_calls`].
    pub compat_bit: u8,
    /// 1 if `tcp_send_reset` has the kernel's reason as its third argument (since 6.10).
    pub has_reset_reasons: u8,
    /// 1 if the programs count RSTs that the kernel sends without a socket.
    pub counts_rejects: u8,
    /// 1 if the programs count dropped packets.
    pub counts_drops: u8,
    /// 1 if socket scans report listeners.
    pub reports_listeners: u8,
    /// The mask of `tcp_sock.chrono_type` in its byte.
    pub chrono_type_mask: u8,
    /// The length of a tick (jiffy), ns.
    pub tick_ns: u32,
    /// 1 if the programs measure turns.
    pub counts_turns: u32,
    /// The reasons that count as a drop: bit `reason % 64` of word `reason / 64`.
    pub drop_reasons: [u64; MAX_DROP_REASONS / 64],
    /// The system calls that can close a file of the calling process: bit `number % 64` of word `number / 64`.
    pub closing_calls: SystemCalls,
    /// The same system calls by their numbers in 32-bit programs.
    pub compat_closing_calls: SystemCalls,
}

/// A set of system call numbers below 512.
pub type SystemCalls = [u64; 8];

/// `ProgramConfig::filter_checks`: check the family.
pub const CHECK_FAMILY: u32 = 1 << 0;
/// `ProgramConfig::filter_checks`: check the direction.
pub const CHECK_DIRECTION: u32 = 1 << 1;
/// `ProgramConfig::filter_checks`: check the server's port.
pub const CHECK_SERVER_PORT: u32 = 1 << 2;
/// `ProgramConfig::filter_checks`: check the client's port.
pub const CHECK_CLIENT_PORT: u32 = 1 << 3;
/// `ProgramConfig::filter_checks`: check the addresses.
pub const CHECK_ADDRESS: u32 = 1 << 4;

/// `FilterRules::families`: IPv4, IPv4-mapped sockets included.
pub const FAMILY_IPV4: u32 = 1 << 0;
/// `FilterRules::families`: IPv6 without IPv4-mapped sockets.
pub const FAMILY_IPV6: u32 = 1 << 1;
/// `FilterRules::directions`: sockets that a listener accepted.
pub const DIRECTION_INBOUND: u32 = 1 << 0;
/// `FilterRules::directions`: sockets that called connect().
pub const DIRECTION_OUTBOUND: u32 = 1 << 1;

/// The filter terms that contain a network, as bits: the value of a [`Prefix`] in the trie. The trie returns only the
/// longest prefix of an address, so each value also has the bits of all networks around its own.
pub mod term {
    /// Set if a value of the flag for either end contains the network.
    pub const EITHER: u32 = 1 << 0;
    /// Set if a value of the flag for the client's address contains the network.
    pub const CLIENT: u32 = 1 << 1;
    /// Set if a value of the flag for the server's address contains the network.
    pub const SERVER: u32 = 1 << 2;
    /// The left shift of these bits for negated values.
    pub const NEGATED: u32 = 3;
}

/// A network: a key of a longest-prefix trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct Prefix {
    /// The length of the prefix in bits: 0 to 128.
    pub bits: u32,
    /// The address as IPv6, IPv4-mapped for IPv4; network order.
    pub address: [u8; 16],
}

/// The connections that the kernel filter passes. It drops a connection only if the filter in user space is certain to
/// drop it. The programs ignore the fields that [`ProgramConfig::filter_checks`] does not enable.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FilterRules {
    /// The families that pass, as bits `FAMILY_*`.
    pub families: u32,
    /// The directions that pass, as bits `DIRECTION_*`.
    pub directions: u32,
    /// The address flags with values that are not negated, as bits of [`term`]. Each of these flags must have a value
    /// that matches.
    pub must_match: u32,
    /// Padding that is always 0.
    pub pad: u32,
    /// The server ports that pass: bit `port % 64` of word `port / 64`.
    pub server_ports: [u64; 1024],
    /// The client ports that pass: bit `port % 64` of word `port / 64`.
    pub client_ports: [u64; 1024],
}

/// The offset of a member that the running kernel does not have.
pub const ABSENT: u32 = u32::MAX;

const _: () = {
    assert!(size_of::<Owner>() == 24);
    assert!(size_of::<Snapshot>() == 360);
    assert!(size_of::<Reset>() == 24);
    assert!(size_of::<Prefix>() == 20);
    assert!(size_of::<FilterRules>() == 16 + 2 * 8192);
    assert!(size_of::<Counters>() == 96);
};
