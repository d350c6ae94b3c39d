//! The members of the kernel's structures that the programs read, and their offsets in the running kernel.

use kmesh_trace_common::unit::{self, Unit};
use kmesh_trace_common::{ABSENT, Offsets, ProgramConfig, TcpOffsets, tcp_fields};

use super::btf::{Bits, Btf, BtfError};
use super::system_calls;

/// The structures in which [`find`] looks up members.
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
    "tcp_congestion_ops",
    "socket",
    "task_struct",
    "srcu_data",
    "pt_regs",
    "net_device",
    CONNTRACK,
    CONNTRACK_TUPLE,
    TCP_ITERATOR,
];

/// The conntrack entry of a packet, and one of its two tuples. Their BTF may be in a module.
const CONNTRACK: &str = "nf_conn";
const CONNTRACK_TUPLE: &str = "nf_conntrack_tuple_hash";

/// The state of the iterator over the TCP sockets of a network namespace, in kernels whose iterator locks each socket.
const TCP_ITERATOR: &str = "bpf_tcp_iter_state";

/// The per-CPU variable that guards the calls of programs at tracepoints, in kernels that do not disable preemption for
/// them.
const TRACEPOINT_GUARD: &str = "tracepoint_srcu_srcu_data";

/// The variables that [`preempts_programs`] looks up.
pub const VARIABLES: &[&str] = &[TRACEPOINT_GUARD];

/// The bit of IP_TRANSPARENT in `inet_sock.inet_flags` (6.6). Older kernels have a bit-field instead.
const TRANSPARENT: &str = "INET_FLAGS_TRANSPARENT";

/// The helper that returns a task's registers (5.15).
const TASK_REGISTERS: &str = "BPF_FUNC_task_pt_regs";

/// The enumerators that [`find`] looks up.
pub const ENUMERATORS: &[&str] = &[TRANSPARENT, TASK_REGISTERS];

/// Returns whether this kernel may preempt a program at a tracepoint (7.0). Earlier kernels use a variable of the same
/// name for something else, but have no `srcu_reader_flavor`.
pub fn preempts_programs(btf: &Btf<'_>) -> bool {
    btf.has_variable(TRACEPOINT_GUARD) && btf.offset("srcu_data", "srcu_reader_flavor", 4).is_ok()
}

/// Returns whether the iterator over the TCP sockets of a network namespace locks each socket (5.15).
pub fn locks_listed_sockets(btf: &Btf<'_>) -> bool {
    btf.low_byte(TCP_ITERATOR, "cur_sk").is_ok()
}

/// Fills each field of [`Offsets`]. A line of the first block looks up a structure, a path and a size in bytes; a line
/// of the second block is an expression. Names every field, so that a new one does not compile without its line here.
macro_rules! offsets {
    (
        $btf:expr;
        { $($field:ident: $structure:literal, $path:literal, $size:literal;)* }
        { $($other:ident: $value:expr;)* }
    ) => {
        Ok(Offsets { $($field: $btf.offset($structure, $path, $size)?,)* $($other: $value,)* })
    };
}

/// The layout of the running kernel's structures.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub offsets: Offsets,
    fastopen_connect: Option<Bits>,
    chrono_type: Option<Bits>,
    transparent: Option<Bits>,
    compat: Option<Bits>,
}

impl Layout {
    /// Writes the masks of the bits, and the system calls, into the programs' configuration.
    pub fn complete(&self, config: &mut ProgramConfig) {
        let mask = |bits: Option<Bits>| bits.map_or(0, |bits| bits.mask);
        config.fastopen_connect_bit = mask(self.fastopen_connect);
        config.chrono_type_mask = mask(self.chrono_type);
        config.transparent_bit = mask(self.transparent);
        config.compat_bit = mask(self.compat);
        config.closing_calls = system_calls::CLOSING;
        config.compat_closing_calls = system_calls::COMPAT_CLOSING;
    }
}

/// Looks up all members in the kernel's BTF. Fails if the kernel lacks one that records need.
pub fn find(btf: &Btf<'_>) -> Result<Layout, BtfError> {
    let transparent = match btf.enumerator(TRANSPARENT) {
        Some(number) => btf
            .low_byte("tcp_sock", "inet_conn.icsk_inet.inet_flags")
            .map(|offset| Bits::of_number(offset, number)),
        None => btf.bits("tcp_sock", "inet_conn.icsk_inet.transparent", 1),
    };
    let fastopen_connect = btf.bits("tcp_sock", "fastopen_connect", 1).ok();
    let chrono_type = btf.bits("tcp_sock", "chrono_type", 2).ok();
    let compat = btf
        .low_byte("task_struct", system_calls::COMPAT_MEMBER)
        .map(|offset| Bits::of_number(offset, system_calls::COMPAT_BIT));
    let (transparent, compat) = (transparent.ok(), compat.ok());
    let offset = |bits: Option<Bits>| bits.map_or(ABSENT, |bits| bits.offset);
    let offsets = find_offsets(
        btf,
        BitOffsets {
            fastopen_connect: offset(fastopen_connect),
            chrono_type: offset(chrono_type),
            transparent: offset(transparent),
            compat: offset(compat),
        },
    )?;
    Ok(Layout {
        offsets,
        fastopen_connect,
        chrono_type,
        transparent,
        compat,
    })
}

/// The offsets of the bytes with bits; [`ABSENT`] for bits that BTF does not show.
struct BitOffsets {
    fastopen_connect: u32,
    chrono_type: u32,
    transparent: u32,
    compat: u32,
}

fn find_offsets(btf: &Btf<'_>, bits: BitOffsets) -> Result<Offsets, BtfError> {
    let cb = btf.offset("sk_buff", "cb", 48)?;
    // Records do without these: they are for dropped packets, rejected connections and listeners.
    let optional = |structure, path, size| btf.offset(structure, path, size).unwrap_or(ABSENT);
    let conntrack = |member: &str| {
        let path = format!("tuplehash.tuple.{member}");
        btf.low_byte(CONNTRACK, &path).unwrap_or(ABSENT)
    };
    // A kernel without cgroups has none of the three members.
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
        sk_type: "sock", "sk_type", 2;
        sk_err: "sock", "sk_err", 4;
        sk_shutdown: "sock", "sk_shutdown", 1;
        sk_max_ack_backlog: "sock", "sk_max_ack_backlog", 4;
        sk_err_soft: "sock", "sk_err_soft", 4;
        sk_socket: "sock", "sk_socket", 8;
        sk_buff_head_prev: "sk_buff_head", "prev", 8;
        sk_lock_owned: "sock", "sk_lock.owned", 4;
        socket_sk: "socket", "sk", 8;
        task_flags: "task_struct", "flags", 4;
        task_pid: "task_struct", "pid", 4;
        task_tgid: "task_struct", "tgid", 4;
        task_group_leader: "task_struct", "group_leader", 8;
        task_comm: "task_struct", "comm", 16;
    } {
        fastopen_connect: bits.fastopen_connect;
        transparent: bits.transparent;
        task_compat: bits.compat;
        // The oldest supported kernel lacks the helper.
        system_call: match btf.enumerator(TASK_REGISTERS) {
            Some(_) => btf.low_byte("pt_regs", system_calls::NUMBER_MEMBER).unwrap_or(ABSENT),
            None => ABSENT,
        };
        sysctl_tcp_fastopen: btf.low_byte("net", "ipv4.sysctl_tcp_fastopen")?;
        // Its size depends on the lock in it.
        sk_error_queue: btf.low_byte("sock", "sk_error_queue")?;
        // A kernel with PREEMPT_RT has another kind of lock.
        sk_lock_slock: btf.offset("sock", "sk_lock.slock.rlock.raw_lock", 4).unwrap_or(ABSENT);
        skb_ee_errno: cb + btf.offset("sock_exterr_skb", "ee.ee_errno", 4)?;
        skb_ee_origin: cb + btf.offset("sock_exterr_skb", "ee.ee_origin", 1)?;
        // Without it, the programs read the clock instead.
        tcp_wstamp_ns: optional("tcp_sock", "tcp_wstamp_ns", 8);
        tcp_clock_cache: btf.offset("tcp_sock", "tcp_clock_cache", 8).unwrap_or(ABSENT);
        sk_cgroup: cgroup.clone().unwrap_or(ABSENT);
        cgroup_kn: if cgroup.is_ok() { btf.offset("cgroup", "kn", 8)? } else { ABSENT };
        kn_id: if cgroup.is_ok() { btf.offset("kernfs_node", "id", 8)? } else { ABSENT };
        sk_ack_backlog: optional("sock", "sk_ack_backlog", 4);
        sk_drops: optional("sock", "sk_drops", 4);
        congestion_ops: optional("tcp_sock", "inet_conn.icsk_ca_ops", 8);
        congestion_name: optional("tcp_congestion_ops", "name", 16);
        chrono_stat: optional("tcp_sock", "chrono_stat", 12);
        chrono_type: bits.chrono_type;
        accept_queue_len: optional("tcp_sock", "inet_conn.icsk_accept_queue.qlen", 4);
        skb_head: optional("sk_buff", "head", 8);
        skb_network_header: optional("sk_buff", "network_header", 2);
        skb_protocol: optional("sk_buff", "protocol", 2);
        skb_dev: optional("sk_buff", "dev", 8);
        skb_sk: optional("sk_buff", "sk", 8);
        net_device_net: optional("net_device", "nd_net.net", 8);
        skb_nfct: optional("sk_buff", "_nfct", 8);
        conntrack_family: conntrack("src.l3num");
        conntrack_src: conntrack("src.u3");
        conntrack_dst: conntrack("dst.u3");
        conntrack_sport: conntrack("src.u");
        conntrack_dport: conntrack("dst.u");
        conntrack_reply: btf.struct_size(CONNTRACK_TUPLE).unwrap_or(ABSENT);
        pad: 0;
        tcp: find_tcp_offsets(btf)?;
    } }
}

/// Defines the function that looks up all members of the table of `tcp_sock`.
macro_rules! find_tcp_offsets {
    (
        reported { $($name:ident: $width:ident, $path:literal, $unit:ident, $description:literal;)* }
        derived { $($derived:tt)* }
        carried { $($carried:ident: $carried_width:ident, $carried_path:literal, $carried_description:literal;)* }
        internal { $($internal:ident: $internal_width:ident, $internal_path:literal, $internal_description:literal;)* }
    ) => {
        fn find_tcp_offsets(btf: &Btf<'_>) -> Result<TcpOffsets, BtfError> {
            Ok(TcpOffsets {
                $($name: find_reported::<$width, unit::$unit>(btf, $path)?,)*
                $($carried: find_optional::<$carried_width>(btf, $carried_path),)*
                $($internal: btf.offset("tcp_sock", $internal_path, size_of::<$internal_width>() as u32)?,)*
            })
        }
    };
}

tcp_fields!(find_tcp_offsets);

/// Looks up a member of `tcp_sock` that records report; [`ABSENT`] if the kernel lacks it and may.
fn find_reported<Raw, U: Unit<Raw>>(btf: &Btf<'_>, path: &str) -> Result<u32, BtfError> {
    if U::IS_OPTIONAL {
        Ok(find_optional::<Raw>(btf, path))
    } else {
        btf.offset("tcp_sock", path, size_of::<Raw>() as u32)
    }
}

/// Looks up a member of `tcp_sock`; [`ABSENT`] if the kernel lacks it.
fn find_optional<Raw>(btf: &Btf<'_>, path: &str) -> u32 {
    btf.offset("tcp_sock", path, size_of::<Raw>() as u32).unwrap_or(ABSENT)
}
