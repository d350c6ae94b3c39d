//! What user space sets before it loads the programs: offsets in the kernel's structures, and the configuration.

use bytemuck::{Pod, Zeroable};

use crate::{MAX_DROP_REASONS, TcpOffsets};

/// The offset of a member that the running kernel does not have.
pub const ABSENT: u32 = u32::MAX;

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
    /// `sock.sk_type` (u16): SOCK_STREAM, SOCK_RAW and others.
    pub sk_type: u32,
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
    /// The enabled checks of [`FilterRules`](crate::FilterRules), as bits `CHECK_*`; 0 if every connection passes.
    pub filter_checks: u32,
    /// 1 if the kernel may preempt a program at a tracepoint (since 7.0).
    pub preempts_programs: u32,
    /// The number of bytes of the ring that records of a [`Snapshot`](crate::Snapshot) may fill. The rest is reserved
    /// for those of a [`Reset`](crate::Reset): each belongs to a snapshot in the ring.
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
