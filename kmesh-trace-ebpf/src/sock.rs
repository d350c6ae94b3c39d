//! The `sock` and `tcp_sock` of a connection behind typed getters.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_jiffies64, bpf_skc_to_tcp_sock};
use kmesh_trace_common::{ABSENT, SK_DEAD, SK_DONE, state, tcp_fields};

use crate::layout::{OFFSETS, load, members, offset, read_kernel, read_offset};
use crate::maps::{chrono_type_mask, fastopen_connect_bit, transparent_bit};

/// Defines getters of all members in the table of `tcp_sock`; all ones if the kernel has no such member.
macro_rules! tcp_members {
    (
        reported { $($name:ident: $width:ident, $path:literal, $unit:ident, $description:literal;)* }
        derived { $($derived:tt)* }
        carried { $($carried:ident: $carried_width:ident, $carried_path:literal, $carried_description:literal;)* }
        internal { $($internal:ident: $internal_width:ident, $internal_path:literal, $internal_description:literal;)* }
    ) => {
        tcp_members! { $($name: $width,)* $($carried: $carried_width,)* $($internal: $internal_width,)* }
    };
    ($($member:ident: $type:ty,)*) => {
        $(
            #[inline(always)]
            pub fn $member(self) -> $type {
                let offset = read_offset(&OFFSETS.tcp.$member);
                if offset == ABSENT {
                    return !0;
                }
                // SAFETY: a load within `struct tcp_sock`, which the verifier checks.
                unsafe { load(self.0, offset) }
            }
        )*
    };
}

const IPPROTO_TCP: u16 = 6;
const SOCK_STREAM: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// A bit of `sysctl_tcp_fastopen`: listeners may accept data with the SYN.
const TFO_SERVER_ENABLE: u8 = 2;
/// `sk_shutdown` of a socket that is shut down in both directions. close() sets it before it does anything else.
const SHUTDOWN_MASK: u8 = 3;

/// An IPv6 address, or an IPv4 address in IPv4-mapped form, as two 64-bit words in memory order.
#[derive(Clone, Copy)]
pub struct Address(pub [u64; 2]);

impl Address {
    /// The third 32-bit word of an IPv4-mapped address, in the low half of a little-endian word.
    const MAPPED: u64 = 0xffff_0000;

    /// Returns an IPv4 address in network order as an IPv4-mapped one.
    #[inline(always)]
    pub fn from_ipv4(address: u32) -> Self {
        Self([0, Self::MAPPED | u64::from(address) << 32])
    }

    #[inline(always)]
    pub fn is_ipv4(self) -> bool {
        self.0[0] == 0 && self.0[1] as u32 == Self::MAPPED as u32
    }

    #[inline(always)]
    pub fn is_unspecified(self) -> bool {
        self.0[0] == 0 && (self.0[1] == 0 || self.0[1] == Self::MAPPED)
    }
}

/// A `struct sock` whose members the verifier lets a program load. Helpers take it if the pointer is typed: see
/// [`crate::iterator::TaskFile::untyped_sock`].
#[derive(Clone, Copy)]
pub struct Sock(*const c_void);

impl Sock {
    /// # Safety
    ///
    /// The pointer is a typed `struct sock *`, such as an argument of the program; not null.
    #[inline(always)]
    pub unsafe fn from_pointer(sock: *const c_void) -> Self {
        Self(sock)
    }

    #[inline(always)]
    pub fn as_ptr(self) -> *mut c_void {
        self.0.cast_mut()
    }

    members! {
        skc_family: u16,
        skc_state: u8,
        skc_flags: u64,
        skc_num: u16,
        skc_dport: u16,
        skc_cookie: u64,
        sk_lock_owned: u32,
        sk_lock_slock: u32,
        sk_err: u32,
        sk_err_soft: u32,
        sk_socket: u64,
        sk_protocol: u16,
        sk_type: u16,
        sk_shutdown: u8,
        sk_ack_backlog: u32,
        sk_max_ack_backlog: u32,
        sk_drops: u32,
    }

    /// Returns whether this is a socket of TCP. A raw socket may have the same protocol, and that of another family has
    /// another meaning.
    #[inline(always)]
    pub fn is_tcp_over_ip(self) -> bool {
        self.is_tcp() && self.sk_type() == SOCK_STREAM && matches!(self.skc_family(), AF_INET | AF_INET6)
    }

    #[inline(always)]
    pub fn is_tcp(self) -> bool {
        self.sk_protocol() == IPPROTO_TCP
    }

    /// Returns the `tcp_sock`; `None` if this is no full socket of protocol 6. The kernel's check does not look at the
    /// type: see [`Self::is_tcp_over_ip`].
    #[inline(always)]
    pub fn tcp(self) -> Option<Tcp> {
        // SAFETY: the socket is a typed pointer. The helper returns null unless it is a full TCP socket.
        unsafe { Tcp::from_pointer(bpf_skc_to_tcp_sock(self.as_ptr()).cast()) }
    }

    /// Returns the cookie, which no other socket ever has. The kernel assigns it when a program first asks for it.
    #[inline(always)]
    pub fn cookie(self) -> u64 {
        match self.skc_cookie() {
            // SAFETY: the socket is a typed pointer.
            0 => unsafe { bpf_get_socket_cookie(self.as_ptr()) },
            cookie => cookie,
        }
    }

    /// Returns whether a system call holds the socket's lock, so that the running task causes the event. Segments and
    /// timers only hold the spinlock, and the running task is unrelated.
    #[inline(always)]
    pub fn is_in_system_call(self) -> bool {
        self.sk_lock_owned() != 0
    }

    /// Returns whether close() is running: it has shut down both directions and not orphaned the socket yet.
    #[inline(always)]
    pub fn is_being_closed(self) -> bool {
        self.sk_shutdown() == SHUTDOWN_MASK && !self.is_dead() && self.is_in_system_call()
    }

    /// Returns whether close() itself, or shutdown() of an attempt, ends the connection that was in state `old`. Any
    /// other cause ends a connection in these states before close() begins.
    #[inline(always)]
    pub fn is_ended_by_close(self, old: u8) -> bool {
        matches!(
            old,
            state::SYN_SENT | state::SYN_RECV | state::ESTABLISHED | state::CLOSE_WAIT
        ) && self.is_being_closed()
    }

    /// Returns whether a process holds the socket: not a child before accept(), nor an orphan.
    #[inline(always)]
    pub fn has_socket(self) -> bool {
        self.sk_socket() != 0
    }

    /// Returns whether listeners of the network namespace may accept data with the SYN (Fast Open).
    #[inline(always)]
    pub fn allows_fast_open(self) -> bool {
        // SAFETY: every socket points to its network namespace.
        unsafe {
            let net: *const c_void = load(self.0, offset!(skc_net));
            load::<u8>(net, offset!(sysctl_tcp_fastopen)) & TFO_SERVER_ENABLE != 0
        }
    }

    /// Returns whether the socket has IP_TRANSPARENT: its children may have other ports and addresses.
    #[inline(always)]
    pub fn is_transparent(self) -> bool {
        let offset = offset!(transparent);
        if offset == ABSENT {
            return false;
        }
        self.tcp()
            // SAFETY: a load within `struct tcp_sock`.
            .is_some_and(|tcp| unsafe { load::<u8>(tcp.0, offset) } & transparent_bit() != 0)
    }

    /// Returns whether no process holds the socket, or ever held it.
    #[inline(always)]
    fn is_dead(self) -> bool {
        self.skc_flags() as u8 & SK_DEAD != 0
    }

    /// Returns whether this end received the peer's FIN.
    #[inline(always)]
    pub fn is_done(self) -> bool {
        self.skc_flags() as u8 & SK_DONE != 0
    }

    /// Returns whether a socket that changes from SYN_RECV to CLOSE was never in the kernel's hash table of
    /// connections. A socket that was there has lost its port by now, unless bind() set the port. A child that lost the
    /// race for its slot still has its port. A child that the kernel gave up earlier has no port, but is dead and
    /// unlocked; other sockets become so only after this change. (A subflow that MPTCP refuses is dead before, but
    /// locked.)
    #[inline(always)]
    pub fn was_never_hashed(self) -> bool {
        self.skc_num() != 0 || (self.is_dead() && self.lock() == 0)
    }

    #[inline(always)]
    pub fn netns(self) -> u32 {
        // SAFETY: every socket points to its network namespace.
        unsafe {
            let net: *const c_void = load(self.0, offset!(skc_net));
            load(net, offset!(net_inum))
        }
    }

    /// Returns whether the initial user namespace owns the socket's network namespace.
    #[inline(always)]
    pub fn is_netns_of_root(self) -> bool {
        // SAFETY: every socket points to its network namespace, which points to the user namespace that owns it.
        unsafe {
            let net: *const c_void = load(self.0, offset!(skc_net));
            let user_ns: *const c_void = load(net, offset!(net_user_ns));
            load::<i32>(user_ns, offset!(user_ns_level)) == 0
        }
    }

    /// Returns the id of the socket's cgroup; 0 if the kernel has no cgroups.
    #[inline(always)]
    pub fn cgroup_id(self) -> u64 {
        if offset!(sk_cgroup) == ABSENT {
            return 0;
        }
        // SAFETY: each pointer is null or valid, and a tracing program reads 0 through a null pointer.
        unsafe {
            let cgroup: *const c_void = load(self.0, offset!(sk_cgroup));
            if cgroup.is_null() {
                return 0;
            }
            let node: *const c_void = load(cgroup, offset!(cgroup_kn));
            if node.is_null() { 0 } else { load(node, offset!(kn_id)) }
        }
    }

    #[inline(always)]
    pub fn local_address(self) -> Address {
        self.address(offset!(skc_rcv_saddr), offset!(skc_v6_rcv_saddr))
    }

    #[inline(always)]
    pub fn peer_address(self) -> Address {
        self.address(offset!(skc_daddr), offset!(skc_v6_daddr))
    }

    #[inline(always)]
    fn address(self, v4: u32, v6: u32) -> Address {
        // SAFETY: loads within `struct sock`, which the verifier checks.
        unsafe {
            if self.skc_family() == AF_INET6 {
                Address([load(self.0, v6), load(self.0, v6 + 8)])
            } else {
                Address::from_ipv4(load(self.0, v4))
            }
        }
    }

    /// Returns the port of this end; 0 while connect() has not chosen one.
    #[inline(always)]
    pub fn local_port(self) -> u16 {
        match self.skc_num() {
            // The kernel clears this copy before the change to CLOSE.
            0 => self.tcp().map_or(0, |tcp| u16::from_be(tcp.inet_sport())),
            port => port,
        }
    }

    #[inline(always)]
    pub fn peer_port(self) -> u16 {
        u16::from_be(self.skc_dport())
    }

    /// Returns a number that is not 0 while the socket is locked, so that its counters may be changing.
    #[inline(always)]
    pub fn lock(self) -> u64 {
        u64::from(self.sk_lock_owned() | self.sk_lock_slock())
    }

    /// Returns the address of the newest buffer on the error queue; 0 if the queue is empty.
    #[inline(always)]
    pub fn newest_error(self) -> u64 {
        let queue = self.0 as u64 + u64::from(offset!(sk_error_queue));
        let prev = read_kernel::<u64>(queue + u64::from(offset!(sk_buff_head_prev)));
        // An empty list's head points to itself.
        if prev == queue { 0 } else { prev }
    }
}

/// Returns `ee_errno` and `ee_origin` of a buffer on the error queue.
#[inline(always)]
pub fn error_details(buffer: u64) -> (u32, u8) {
    (
        read_kernel(buffer + u64::from(offset!(skb_ee_errno))),
        read_kernel(buffer + u64::from(offset!(skb_ee_origin))),
    )
}

#[derive(Clone, Copy)]
pub struct Tcp(*const c_void);

impl Tcp {
    /// # Safety
    ///
    /// The pointer is null or a typed `struct tcp_sock *`.
    #[inline(always)]
    pub unsafe fn from_pointer(tcp: *const c_void) -> Option<Self> {
        if tcp.is_null() { None } else { Some(Self(tcp)) }
    }

    /// Returns the `sock` by this pointer. Loads of pointers to other structures then cost the verifier little. At each
    /// such load from an argument of the program, the verifier searches all types of the kernel by name, several times.
    #[inline(always)]
    pub fn sock(self) -> Sock {
        Sock(self.0)
    }

    /// Returns whether this end sent a FIN, for a socket that has sent everything that the program wrote. The sequence
    /// numbers then count one more than the payload, and than the SYN of connect(). `connected`: this end called
    /// connect().
    #[inline(always)]
    pub fn sent_fin(self, connected: bool) -> bool {
        let acked = self.bytes_acked();
        let sent = acked + u64::from(self.write_seq().wrapping_sub(self.snd_una()));
        let payload = self.bytes_sent().wrapping_sub(self.bytes_retrans());
        self.snd_nxt() == self.write_seq() && sent > payload + u64::from(connected && acked > 0)
    }

    /// Returns the client's first sequence number. The counters include the SYN that this end sent, but not the peer's.
    /// `connected`: this end called connect().
    #[inline(always)]
    pub fn client_isn(self, connected: bool) -> u32 {
        if connected {
            self.snd_una().wrapping_sub(self.bytes_acked() as u32)
        } else {
            self.rcv_nxt()
                .wrapping_sub(self.bytes_received() as u32)
                .wrapping_sub(1)
        }
    }

    /// Returns whether connect() left the SYN to the first write (TCP_FASTOPEN_CONNECT).
    #[inline(always)]
    pub fn defers_connect(self) -> bool {
        let offset = offset!(fastopen_connect);
        // SAFETY: a load within `struct tcp_sock`.
        offset != ABSENT && unsafe { load::<u8>(self.0, offset) } & fastopen_connect_bit() != 0
    }

    /// Returns the name of the congestion control algorithm as two words in memory order; 0 if unknown.
    #[inline(always)]
    pub fn congestion(self) -> [u64; 2] {
        if offset!(congestion_ops) == ABSENT {
            return [0; 2];
        }
        // SAFETY: the pointer is null or valid, and a tracing program reads 0 through a null pointer. The name is 16
        // bytes.
        unsafe {
            let ops: *const c_void = load(self.0, offset!(congestion_ops));
            if ops.is_null() {
                return [0; 2];
            }
            let name = offset!(congestion_name);
            [load(ops, name), load(ops, name + 8)]
        }
    }

    /// Returns a word of `chrono_stat`; all ones if the kernel has no such member.
    #[inline(always)]
    pub fn chrono_stat(self, index: u32) -> u32 {
        let offset = offset!(chrono_stat);
        if offset == ABSENT {
            return !0;
        }
        // SAFETY: a load within `struct tcp_sock`: the array has three words.
        unsafe { load(self.0, offset + 4 * index) }
    }

    /// Returns the limit of the current period of activity.
    #[inline(always)]
    pub fn chrono_type(self) -> u8 {
        let offset = offset!(chrono_type);
        if offset == ABSENT {
            return 0;
        }
        let mask = chrono_type_mask();
        // SAFETY: a load within `struct tcp_sock`.
        let bits = unsafe { load::<u8>(self.0, offset) } & mask;
        bits / (mask & mask.wrapping_neg()).max(1)
    }

    /// Returns the time so far in which this end had data to send, ticks.
    #[inline(always)]
    pub fn busy_ticks(self) -> u32 {
        let ended = self
            .chrono_stat(0)
            .wrapping_add(self.chrono_stat(1))
            .wrapping_add(self.chrono_stat(2));
        if self.chrono_type() == 0 {
            return ended;
        }
        // SAFETY: the helper has no arguments.
        let jiffies = unsafe { bpf_jiffies64() } as u32;
        ended.wrapping_add(jiffies.wrapping_sub(self.chrono_start()))
    }

    members! {
        tcp_clock_cache: u64,
        tcp_wstamp_ns: u64,
        accept_queue_len: u32,
    }

    tcp_fields!(tcp_members);
}
