//! Which members of the kernel's structures the programs read, and where the running kernel has them.

use kmesh_trace_common::{ABSENT, Offsets, Settings};

use super::btf::{Bit, Btf, BtfError};
use super::system_calls;

/// The structures that [`find`] looks into.
pub const STRUCTURES: &[&str] = &[
    "sock",
    "net",
    "user_namespace",
    "sk_buff",
    "sk_buff_head",
    "sock_exterr_skb",
    "cgroup",
    "kernfs_node",
    "tcp_sock",
    "socket",
    "task_struct",
    "srcu_data",
    "pt_regs",
    TCP_ITERATOR,
];

/// The state of the iterator over the TCP sockets of a network namespace, since it locks each of them.
const TCP_ITERATOR: &str = "bpf_tcp_iter_state";

/// What guards the calls of programs at tracepoints, where these are not called with preemption off.
const TRACEPOINT_GUARD: &str = "tracepoint_srcu_srcu_data";

/// The variables that [`preempts_programs`] looks for.
pub const VARIABLES: &[&str] = &[TRACEPOINT_GUARD];

/// The bit of `inet_sock.inet_flags` for IP_TRANSPARENT, since that is no bit-field any more (6.6).
const TRANSPARENT: &str = "INET_FLAGS_TRANSPARENT";

/// The helper that finds a task's registers (5.15).
const TASK_REGISTERS: &str = "BPF_FUNC_task_pt_regs";

/// The enumerators that [`find`] looks for.
pub const ENUMERATORS: &[&str] = &[TRANSPARENT, TASK_REGISTERS];

/// Whether this kernel may preempt a program at a tracepoint (7.0). Earlier kernels had a variable of that name for another
/// use, but no such kind of reader.
pub fn preempts_programs(btf: &Btf<'_>) -> bool {
    btf.has_variable(TRACEPOINT_GUARD) && btf.offset("srcu_data", "srcu_reader_flavor", 4).is_ok()
}

/// Returns whether the iterator over the TCP sockets of a network namespace locks each socket that it lists (5.15).
pub fn locks_listed_sockets(btf: &Btf<'_>) -> bool {
    btf.low_byte(TCP_ITERATOR, "cur_sk").is_ok()
}

/// Fills each field of [`Offsets`] from `structure`, `path`, size in bytes. Every field is named here, or this does not
/// compile.
macro_rules! offsets {
    (
        $btf:expr;
        { $($field:ident: $structure:literal, $path:literal, $size:literal;)* }
        { $($other:ident: $value:expr;)* }
    ) => {
        Ok(Offsets { $($field: $btf.offset($structure, $path, $size)?,)* $($other: $value,)* })
    };
}

/// The layout of this kernel's structures.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The offsets of the members that the programs read.
    pub offsets: Offsets,
    fastopen_connect: Option<Bit>,
    transparent: Option<Bit>,
    compat: Option<Bit>,
}

impl Layout {
    /// Writes the bits and the system calls into the programs' settings.
    pub fn complete(&self, settings: &mut Settings) {
        let mask = |bit: Option<Bit>| bit.map_or(0, |bit| bit.mask);
        settings.fastopen_connect_bit = mask(self.fastopen_connect);
        settings.transparent_bit = mask(self.transparent);
        settings.compat_bit = mask(self.compat);
        settings.closing_calls = system_calls::CLOSING;
        settings.compat_closing_calls = system_calls::COMPAT_CLOSING;
    }
}

/// Looks all of them up in the kernel's BTF. Fails with the first that this kernel lacks and that records cannot do without.
pub fn find(btf: &Btf<'_>) -> Result<Layout, BtfError> {
    let transparent = match btf.enumerator(TRANSPARENT) {
        Some(number) => btf
            .low_byte("tcp_sock", "inet_conn.icsk_inet.inet_flags")
            .map(|offset| Bit::of_number(offset, number)),
        None => btf.bit("tcp_sock", "inet_conn.icsk_inet.transparent"),
    };
    let fastopen_connect = btf.bit("tcp_sock", "fastopen_connect").ok();
    let compat = btf
        .low_byte("task_struct", system_calls::COMPAT_MEMBER)
        .map(|offset| Bit::of_number(offset, system_calls::COMPAT_BIT));
    let (transparent, compat) = (transparent.ok(), compat.ok());
    let offset = |bit: Option<Bit>| bit.map_or(ABSENT, |bit| bit.offset);
    let offsets = find_offsets(btf, offset(fastopen_connect), offset(transparent), offset(compat))?;
    Ok(Layout {
        offsets,
        fastopen_connect,
        transparent,
        compat,
    })
}

fn find_offsets(btf: &Btf<'_>, fastopen_connect: u32, transparent: u32, compat: u32) -> Result<Offsets, BtfError> {
    let cb = btf.offset("sk_buff", "cb", 48)?;
    // Kernels without cgroups have none of these.
    let cgroup = btf.offset("sock", "sk_cgrp_data.cgroup", 8);
    offsets! { btf; {
        skc_family: "sock", "__sk_common.skc_family", 2;
        skc_state: "sock", "__sk_common.skc_state", 1;
        skc_num: "sock", "__sk_common.skc_num", 2;
        skc_dport: "sock", "__sk_common.skc_dport", 2;
        skc_cookie: "sock", "__sk_common.skc_cookie", 8;
        skc_daddr: "sock", "__sk_common.skc_daddr", 4;
        skc_rcv_saddr: "sock", "__sk_common.skc_rcv_saddr", 4;
        skc_v6_daddr: "sock", "__sk_common.skc_v6_daddr", 16;
        skc_v6_rcv_saddr: "sock", "__sk_common.skc_v6_rcv_saddr", 16;
        skc_net: "sock", "__sk_common.skc_net.net", 8;
        skc_flags: "sock", "__sk_common.skc_flags", 8;
        net_inum: "net", "ns.inum", 4;
        net_user_ns: "net", "user_ns", 8;
        user_ns_level: "user_namespace", "level", 4;
        sk_protocol: "sock", "sk_protocol", 2;
        sk_err: "sock", "sk_err", 4;
        sk_shutdown: "sock", "sk_shutdown", 1;
        sk_max_ack_backlog: "sock", "sk_max_ack_backlog", 4;
        sk_err_soft: "sock", "sk_err_soft", 4;
        sk_socket: "sock", "sk_socket", 8;
        sk_buff_head_prev: "sk_buff_head", "prev", 8;
        inet_sport: "tcp_sock", "inet_conn.icsk_inet.inet_sport", 2;
        icsk_retransmits: "tcp_sock", "inet_conn.icsk_retransmits", 1;
        bytes_acked: "tcp_sock", "bytes_acked", 8;
        bytes_received: "tcp_sock", "bytes_received", 8;
        bytes_sent: "tcp_sock", "bytes_sent", 8;
        bytes_retrans: "tcp_sock", "bytes_retrans", 8;
        write_seq: "tcp_sock", "write_seq", 4;
        snd_wl1: "tcp_sock", "snd_wl1", 4;
        snd_una: "tcp_sock", "snd_una", 4;
        snd_nxt: "tcp_sock", "snd_nxt", 4;
        rcv_nxt: "tcp_sock", "rcv_nxt", 4;
        linger2: "tcp_sock", "linger2", 4;
        srtt_us: "tcp_sock", "srtt_us", 4;
        rtt_min_us: "tcp_sock", "rtt_min.s.v", 4;
        mss: "tcp_sock", "mss_cache", 4;
        snd_cwnd: "tcp_sock", "snd_cwnd", 4;
        snd_ssthresh: "tcp_sock", "snd_ssthresh", 4;
        ecn_flags: "tcp_sock", "ecn_flags", 1;
        rate_delivered: "tcp_sock", "rate_delivered", 4;
        rate_interval_us: "tcp_sock", "rate_interval_us", 4;
        packets_out: "tcp_sock", "packets_out", 4;
        retrans_out: "tcp_sock", "retrans_out", 4;
        total_retrans: "tcp_sock", "total_retrans", 4;
        segs_in: "tcp_sock", "segs_in", 4;
        data_segs_in: "tcp_sock", "data_segs_in", 4;
        segs_out: "tcp_sock", "segs_out", 4;
        data_segs_out: "tcp_sock", "data_segs_out", 4;
        lost: "tcp_sock", "lost", 4;
        lost_out: "tcp_sock", "lost_out", 4;
        sacked_out: "tcp_sock", "sacked_out", 4;
        dsack_dups: "tcp_sock", "dsack_dups", 4;
        delivered: "tcp_sock", "delivered", 4;
        delivered_ce: "tcp_sock", "delivered_ce", 4;
        retrans_stamp: "tcp_sock", "retrans_stamp", 4;
        sk_lock_owned: "sock", "sk_lock.owned", 4;
        socket_sk: "socket", "sk", 8;
        task_flags: "task_struct", "flags", 4;
        task_pid: "task_struct", "pid", 4;
        task_tgid: "task_struct", "tgid", 4;
        task_group_leader: "task_struct", "group_leader", 8;
        task_comm: "task_struct", "comm", 16;
    } {
        fastopen_connect: fastopen_connect;
        transparent: transparent;
        task_compat: compat;
        // The helper that finds the registers came later than the oldest kernel that works.
        system_call: match btf.enumerator(TASK_REGISTERS) {
            Some(_) => btf.low_byte("pt_regs", system_calls::NUMBER_MEMBER).unwrap_or(ABSENT),
            None => ABSENT,
        };
        sysctl_tcp_fastopen: btf.low_byte("net", "ipv4.sysctl_tcp_fastopen")?;
        // Its size depends on the kind of lock in it.
        sk_error_queue: btf.low_byte("sock", "sk_error_queue")?;
        // Kernels with PREEMPT_RT have another kind of lock there.
        sk_lock_slock: btf.offset("sock", "sk_lock.slock.rlock.raw_lock", 4).unwrap_or(ABSENT);
        skb_ee_errno: cb + btf.offset("sock_exterr_skb", "ee.ee_errno", 4)?;
        skb_ee_origin: cb + btf.offset("sock_exterr_skb", "ee.ee_origin", 1)?;
        // Only a saving.
        tcp_clock_cache: btf.offset("tcp_sock", "tcp_clock_cache", 8).unwrap_or(ABSENT);
        sk_cgroup: cgroup.clone().unwrap_or(ABSENT);
        cgroup_kn: if cgroup.is_ok() { btf.offset("cgroup", "kn", 8)? } else { ABSENT };
        kn_id: if cgroup.is_ok() { btf.offset("kernfs_node", "id", 8)? } else { ABSENT };
    } }
}
