//! What the eBPF programs and user space tell each other, defined once.
//!
//! Every type here is `#[repr(C)]`, free of implicit padding (`bytemuck::Pod` refuses any) and of a size asserted at
//! compile time. Numbers are in the CPU's byte order, which both sides share, unless a field says otherwise.
#![no_std]

mod tcp;

use bytemuck::{Pod, Zeroable};

pub use tcp::{TcpOffsets, unit};

/// `Snapshot::kind`: the association ended.
pub const KIND_CLOSE: u32 = 1;
/// `Reset::kind` of a [`Reset`].
pub const KIND_RESET: u32 = 2;
/// `Snapshot::kind`: the association was established.
pub const KIND_OPEN: u32 = 3;
/// `Snapshot::kind`: a walk met the association, connecting, connected or closing.
pub const KIND_UPDATE: u32 = 4;

/// `Snapshot::flags`: this socket called connect().
pub const FLAG_ACTIVE: u8 = 1 << 0;
/// `Snapshot::flags`: the association began before the tracer did, so its times are not known.
pub const FLAG_PREEXISTING: u8 = 1 << 1;
/// `Snapshot::flags`: the kernel skipped the program at the change to CLOSE, and the socket's destruction made it good.
/// `Snapshot::old_state` is then the state last noted, not the state before CLOSE.
pub const FLAG_SECOND_CHANCE: u8 = 1 << 2;
/// `Snapshot::flags`: the initial user namespace owns the socket's network namespace, so only root chose its addresses.
pub const FLAG_ROOT_NETNS: u8 = 1 << 3;
/// `Snapshot::flags`: this end sent a RST in FIN_WAIT2, before the change to CLOSE.
pub const FLAG_RESET_SENT: u8 = 1 << 4;
/// `Snapshot::flags`, with [`FLAG_SECOND_CHANCE`]: no system call ended the connection, and a program held the socket then. So the
/// kernel set an error, unless both ends had closed, and the program may have read it.
pub const FLAG_HELD: u8 = 1 << 5;

/// How the owner of a socket is known. A later finding replaces an earlier one only if its number is higher.
pub mod owner {
    /// Nobody is known.
    pub const NONE: u8 = 0;
    /// The owner of the listening socket that this one was accepted from.
    pub const LISTENER: u8 = 1;
    /// A process that held a descriptor of the socket when all were walked.
    pub const SCAN: u8 = 2;
    /// The process that closed or shut down this end.
    pub const CLOSE: u8 = 3;
    /// The process that called connect().
    pub const CONNECT: u8 = 4;
}

/// TCP states, with the kernel's numbers (`include/net/tcp_states.h`, stable since they are user API).
pub mod state {
    /// Data can flow both ways.
    pub const ESTABLISHED: u8 = 1;
    /// A SYN was sent.
    pub const SYN_SENT: u8 = 2;
    /// A SYN was received.
    pub const SYN_RECV: u8 = 3;
    /// This end closed; its FIN is not acknowledged.
    pub const FIN_WAIT1: u8 = 4;
    /// This end closed; its FIN is acknowledged.
    pub const FIN_WAIT2: u8 = 5;
    /// The stub that remains for a minute.
    pub const TIME_WAIT: u8 = 6;
    /// No connection.
    pub const CLOSE: u8 = 7;
    /// The peer closed.
    pub const CLOSE_WAIT: u8 = 8;
    /// The peer closed, then this end; its FIN is not acknowledged.
    pub const LAST_ACK: u8 = 9;
    /// Listening.
    pub const LISTEN: u8 = 10;
    /// Both closed at once.
    pub const CLOSING: u8 = 11;
}

/// `Snapshot::sk_flags`, bit 0: the socket has no process any more (SOCK_DEAD).
pub const SK_DEAD: u8 = 1 << 0;
/// `Snapshot::sk_flags`, bit 1: the peer's FIN was received (SOCK_DONE).
pub const SK_DONE: u8 = 1 << 1;

/// The process that owns a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Owner {
    /// The process id (the kernel's tgid) in the initial pid namespace; 0 when nobody is known.
    pub pid: u32,
    /// How it is known: a number of [`owner`].
    pub by: u8,
    /// Always 0.
    pub pad: [u8; 3],
    /// The name of the thread-group leader, NUL-terminated, not necessarily UTF-8.
    pub comm: [u8; 16],
}

/// The bytes of all fields of [`Snapshot`] that are not generated. A wrong number does not compile: `Pod` forbids padding.
const FIXED_BYTES: usize = 138;

/// Returns the number of fields that have these paths.
const fn count(paths: &[&str]) -> usize {
    paths.len()
}

/// Defines the snapshot, with a field for each member of `tcp_sock` that records report. The fields of one width stand
/// together, so that no padding is between them.
macro_rules! snapshot {
    (
        reported {$(
            $name:ident:
            $(u64, $path64:literal)? $(u32, $path32:literal)? $(u16, $path16:literal)? $(u8, $path8:literal)?,
            $unit:ident, $description:literal;
        )*}
        internal { $($internal:tt)* }
    ) => {
        const GENERATED_BYTES: usize = 8 * count(&[$($($path64,)?)*])
            + 4 * count(&[$($($path32,)?)*])
            + 2 * count(&[$($($path16,)?)*])
            + count(&[$($($path8,)?)*]);

        const PAD_BYTES: usize = (FIXED_BYTES + GENERATED_BYTES).next_multiple_of(8) - FIXED_BYTES - GENERATED_BYTES;

        /// An association as the kernel saw it at an event: just before the change to CLOSE, for one that ended.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
        pub struct Snapshot {
            /// [`KIND_CLOSE`], [`KIND_OPEN`] or [`KIND_UPDATE`].
            pub kind: u32,
            /// Inode number of the socket's network namespace.
            pub netns: u32,
            /// When it happened: CLOCK_MONOTONIC, ns.
            pub time_ns: u64,
            /// When connect() sent the SYN, or the accepted socket was established: CLOCK_MONOTONIC, ns; 0 when not known.
            pub start_ns: u64,
            /// When it was established: CLOCK_MONOTONIC, ns; 0 when never or not known.
            pub established_ns: u64,
            /// The socket's cookie, as `ss -e` shows it.
            pub cookie: u64,
            /// The id of the socket's cgroup (v2); 0 when not known.
            pub cgroup_id: u64,
            /// This end's address as IPv6, IPv4-mapped for IPv4; network order.
            pub local_addr: [u8; 16],
            /// The peer's address, likewise.
            pub peer_addr: [u8; 16],
            /// This end's port.
            pub local_port: u16,
            /// The peer's port.
            pub peer_port: u16,
            /// AF_INET (2) or AF_INET6 (10).
            pub family: u16,
            /// The state before the event: a number of [`state`]. Of an update, the present one.
            pub old_state: u8,
            /// `FLAG_*`.
            pub flags: u8,
            /// Which association of this socket it is, from 1 (a refused socket may connect again).
            pub association: u32,
            /// `sock.sk_err`; 0 where close() itself ended the association, since a pending error is then not the cause.
            pub sk_err: u32,
            /// `ee_errno` of the newest buffer on the error queue; 0 when there is none.
            pub ee_errno: u32,
            /// `tcp_sock.linger2`, ticks; negative: do not wait for the peer's FIN.
            pub linger2: i32,
            /// Who owns the socket.
            pub owner: Owner,
            /// `tcp_sock.write_seq`: one past the last byte that the program handed over.
            pub write_seq: u32,
            /// `sock.sk_err_soft`: the error that retransmission gives up with.
            pub sk_err_soft: u32,
            $($(
                #[doc = concat!("`tcp_sock.", $path64, "`: ", $description)]
                pub $name: u64,
            )?)*
            $($(
                #[doc = concat!("`tcp_sock.", $path32, "`: ", $description)]
                pub $name: u32,
            )?)*
            $($(
                #[doc = concat!("`tcp_sock.", $path16, "`: ", $description)]
                pub $name: u16,
            )?)*
            $($(
                #[doc = concat!("`tcp_sock.", $path8, "`: ", $description)]
                pub $name: u8,
            )?)*
            /// `sock.sk_flags`, the low byte: `SK_*`.
            pub sk_flags: u8,
            /// `ee_origin` of the newest buffer on the error queue: 2 ICMP, 3 ICMPv6.
            pub ee_origin: u8,
            /// Padding; not written.
            pub pad: [u8; PAD_BYTES],
        }
    };
}

tcp_fields!(snapshot);

/// What a walk tells of one association.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Walked {
    /// Of the snapshot, bytes.
    pub length: u64,
    /// [`KIND_UPDATE`].
    pub snapshot: Snapshot,
}

/// A RST that this end sent because of the segment that closed it. It follows the [`Snapshot`] of that, which alone cannot tell.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Reset {
    /// [`KIND_RESET`].
    pub kind: u32,
    /// [`Snapshot::association`].
    pub association: u32,
    /// [`Snapshot::cookie`].
    pub cookie: u64,
}

/// Which program counts: each has counters of its own on each CPU. The kernel never runs a program on top of itself on
/// one CPU, but it does run one on top of another; so nothing has to be added atomically.
pub mod counter {
    /// The program at `inet_sock_set_state`.
    pub const STATE: u32 = 0;
    /// The program at `tcp_destroy_sock`.
    pub const DESTROY: u32 = 1;
    /// The program at `tcp_send_reset`.
    pub const RESET: u32 = 2;
    /// The socket scans, over descriptors and over the sockets of network namespaces: never at the same time.
    pub const WALK: u32 = 3;
    /// The second program at `inet_sock_set_state`.
    pub const STATE_AGAIN: u32 = 4;
    /// The second program at `tcp_destroy_sock`.
    pub const DESTROY_AGAIN: u32 = 5;
    /// The program at `inet_sk_error_report`.
    pub const ERROR: u32 = 6;
    /// How many there are.
    pub const SLOTS: usize = 7;
}

/// What one program counted on one CPU. Each number stands for itself: none is computed from another.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counters {
    /// Associations that ended while tracing.
    pub closes: u64,
    /// [`Snapshot`] records of closes handed to the ring.
    pub submitted: u64,
    /// Closes that the ring had no room for.
    pub lost_ring: u64,
    /// Closes of associations that no socket storage could be had for.
    pub lost_storage: u64,
    /// Closes that the kernel skipped the programs for, found out when the same socket connected again, or went without any
    /// program having been run for it.
    pub lost_skipped: u64,
    /// Closes found only at the socket's destruction: the kernel had skipped the program at the change to CLOSE.
    pub second_chances: u64,
    /// Closes that the kernel half of the filters sorted out.
    pub filtered: u64,
    /// [`Snapshot`] records of associations established, handed to the ring.
    pub opens: u64,
    /// The same, that the ring had no room for.
    pub lost_opens: u64,
    /// [`Reset`] records handed to the ring.
    pub resets: u64,
    /// Associations begun or found, less those ended: a gauge, in which one CPU's part may be negative.
    pub open: i64,
    /// Visits of socket scans to associations that [`Self::open`] counts, each association once a scan.
    pub visited: u64,
}

/// Byte offsets into the kernel's structures, found in the running kernel's BTF. All are plain byte offsets from the
/// start of the structure named, with every enclosing member added up; [`ABSENT`] where the kernel has no such member.
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
    /// `sock_common.skc_cookie` in `sock` (u64): 0 in a socket whose cookie nobody has asked for.
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
    /// `net.ipv4.sysctl_tcp_fastopen` in `net`, its low byte.
    pub sysctl_tcp_fastopen: u32,
    /// `net.user_ns` in `net` (pointer to `user_namespace`).
    pub net_user_ns: u32,
    /// `user_namespace.level` (int): 0 for the initial one.
    pub user_ns_level: u32,
    /// `sock.sk_protocol` (u16).
    pub sk_protocol: u32,
    /// `sock.sk_err` (int).
    pub sk_err: u32,
    /// `sock.sk_err_soft` (int): the error that retransmission gives up with.
    pub sk_err_soft: u32,
    /// `sock.sk_socket` (pointer to `socket`): null in a socket that no program has, or not yet.
    pub sk_socket: u32,
    /// `sock.sk_shutdown` (u8).
    pub sk_shutdown: u32,
    /// `sock.sk_max_ack_backlog` (u32): above 0 in a socket that was accepted.
    pub sk_max_ack_backlog: u32,
    /// `sock.sk_error_queue` (the list's head).
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
    /// `kernfs_node.id` (u64).
    pub kn_id: u32,
    /// `tcp_sock.tcp_clock_cache` (u64, ns of CLOCK_MONOTONIC): when the kernel began with the last segment.
    pub tcp_clock_cache: u32,
    /// The byte of `tcp_sock` with the bit [`Settings::fastopen_connect_bit`]. [`ABSENT`] where BTF does not show it.
    pub fastopen_connect: u32,
    /// The byte of `tcp_sock` with the bit [`Settings::transparent_bit`]. [`ABSENT`] where BTF does not show it.
    pub transparent: u32,
    /// `sock.sk_lock.owned` (int): a program is inside the socket.
    pub sk_lock_owned: u32,
    /// `sock.sk_lock.slock` (u32): the kernel's receive path is inside the socket. [`ABSENT`] where it is no plain lock.
    pub sk_lock_slock: u32,
    /// `socket.sk` (pointer to `sock`).
    pub socket_sk: u32,
    /// `task_struct.flags` (u32).
    pub task_flags: u32,
    /// `task_struct.pid` (int), of the thread.
    pub task_pid: u32,
    /// `task_struct.tgid` (int).
    pub task_tgid: u32,
    /// `task_struct.group_leader` (pointer to `task_struct`).
    pub task_group_leader: u32,
    /// `task_struct.comm` (16 bytes).
    pub task_comm: u32,
    /// The byte of `task_struct` with the bit [`Settings::compat_bit`]. [`ABSENT`] where all system calls have the same numbers.
    pub task_compat: u32,
    /// The number of the system call in `pt_regs` (int). [`ABSENT`] where it is not known.
    pub system_call: u32,
    /// Members of `tcp_sock`.
    pub tcp: TcpOffsets,
}

/// What is settled before loading: the verifier sees constants, and drops what they rule out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// Whether to tell that associations were established.
    pub opens: u32,
    /// Which checks of a [`Prefilter`] there are: `CHECK_*`; 0 when all passes.
    pub checks: u32,
    /// 1 where the kernel may put a program aside with its task.
    pub preempted: u32,
    /// The bytes of the ring that [`Snapshot`] records may fill. The rest is for [`Reset`] records: each belongs to a [`Snapshot`]
    /// that is in the ring already.
    pub snapshot_limit: u32,
    /// The bit of `tcp_sock.fastopen_connect` in its byte: connect() has not sent the SYN, the first write does.
    pub fastopen_connect_bit: u8,
    /// The bit of IP_TRANSPARENT in its byte.
    pub transparent_bit: u8,
    /// The bit of its byte that a task has whose system calls have the numbers of [`Settings::compat_closing_calls`].
    pub compat_bit: u8,
    /// Padding; always 0.
    pub pad: [u8; 5],
    /// Which system calls can close a file of the process that makes them: bit `number % 64` of word `number / 64`.
    pub closing_calls: SystemCalls,
    /// The same set by the numbers that 32-bit programs use.
    pub compat_closing_calls: SystemCalls,
}

/// A set of system calls, of numbers below 512.
pub type SystemCalls = [u64; 8];

/// `Settings::checks`: the family.
pub const CHECK_FAMILY: u32 = 1 << 0;
/// `Settings::checks`: the direction.
pub const CHECK_DIRECTION: u32 = 1 << 1;
/// `Settings::checks`: the server's port.
pub const CHECK_SERVER_PORT: u32 = 1 << 2;
/// `Settings::checks`: the client's port.
pub const CHECK_CLIENT_PORT: u32 = 1 << 3;
/// `Settings::checks`: addresses.
pub const CHECK_ADDRESS: u32 = 1 << 4;

/// `Prefilter::families`: IPv4, IPv4-mapped sockets included.
pub const FAMILY_IPV4: u32 = 1 << 0;
/// `Prefilter::families`: IPv6.
pub const FAMILY_IPV6: u32 = 1 << 1;
/// `Prefilter::directions`: sockets that were accepted.
pub const DIRECTION_INBOUND: u32 = 1 << 0;
/// `Prefilter::directions`: sockets that connected.
pub const DIRECTION_OUTBOUND: u32 = 1 << 1;

/// What a network says about the addresses in it, in bits: which terms of the filter contain it. A trie finds only the
/// longest prefix that an address has, so each network says what all networks around it say as well.
pub mod term {
    /// A value of the flag for either end.
    pub const EITHER: u32 = 1 << 0;
    /// One of the flag for the client.
    pub const CLIENT: u32 = 1 << 1;
    /// One of the flag for the server.
    pub const SERVER: u32 = 1 << 2;
    /// How far to the left the same bits of negated values stand.
    pub const NEGATED: u32 = 3;
}

/// A network: a key of a longest-prefix trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct Prefix {
    /// Bits of `address` that count: 0 to 128.
    pub bits: u32,
    /// As IPv6, IPv4-mapped for IPv4; network order.
    pub address: [u8; 16],
}

/// The kernel half of the filters: an association is sorted out when it is certain that the filters will. Only the parts
/// that [`Settings::checks`] names count.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Prefilter {
    /// `FAMILY_*`.
    pub families: u32,
    /// `DIRECTION_*`.
    pub directions: u32,
    /// Which flags about addresses have values that are not negated, so that one must match: bits of [`term`].
    pub must_match: u32,
    /// Always 0.
    pub pad: u32,
    /// Bit `port % 64` of word `port / 64`: the server's port passes.
    pub server_ports: [u64; 1024],
    /// Likewise for the client's.
    pub client_ports: [u64; 1024],
}

/// An offset of a member that the running kernel does not have.
pub const ABSENT: u32 = u32::MAX;

const _: () = {
    assert!(size_of::<Owner>() == 24);
    assert!(size_of::<Snapshot>() == 264);
    assert!(size_of::<Reset>() == 16);
    assert!(size_of::<Prefix>() == 20);
    assert!(size_of::<Prefilter>() == 16 + 2 * 8192);
    assert!(size_of::<Counters>() == 96);
};
