//! All knowledge of kernel layouts, and the unsafe it takes, behind typed getters.
//!
//! Field offsets differ from kernel to kernel. User space finds them in the running kernel's BTF and writes them into
//! [`OFFSETS`] before loading; the verifier then sees constants, and checks each load against the kernel's types. A wrong
//! offset is thus refused at load time, or reads a wrong field of the same structure, never anything else.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_get_socket_cookie, bpf_probe_read_kernel, bpf_seq_write, bpf_skc_to_tcp_sock,
    bpf_sock_from_file, bpf_task_pt_regs,
};
use kmesh_trace_common::{ABSENT, Offsets, state, tcp_fields};

use crate::maps::{can_close, compat_bit, fastopen_connect_bit, transparent_bit};

/// Written by user space before loading.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets { ..ZERO };

// SAFETY: Offsets is a structure of plain numbers.
const ZERO: Offsets = unsafe { core::mem::zeroed() };

/// The offset of a member.
macro_rules! offset {
    ($member:ident) => {
        as_written(&OFFSETS.$member)
    };
}

/// Volatile, because what the compiler sees there is not what user space wrote.
#[inline(always)]
fn as_written(offset: &'static u32) -> u32 {
    // SAFETY: a read through a reference.
    unsafe { ptr::read_volatile(offset) }
}

/// Getters that load one member at its offset; 0 where the kernel has no such member.
macro_rules! members {
    ($($member:ident: $type:ty,)*) => {
        $(
            #[inline(always)]
            pub fn $member(self) -> $type {
                let offset = offset!($member);
                if offset == ABSENT {
                    return 0;
                }
                // SAFETY: a load within the structure, which the verifier checks.
                unsafe { load(self.0, offset) }
            }
        )*
    };
}

/// Getters of all members in the table of `tcp_sock`; all ones where the kernel has no such member.
macro_rules! tcp_members {
    (
        reported { $($name:ident: $width:ident, $path:literal, $unit:ident, $description:literal;)* }
        internal { $($internal:ident: $internal_width:ident, $internal_path:literal, $internal_description:literal;)* }
    ) => {
        tcp_members! { $($name: $width,)* $($internal: $internal_width,)* }
    };
    ($($member:ident: $type:ty,)*) => {
        $(
            #[inline(always)]
            pub fn $member(self) -> $type {
                let offset = as_written(&OFFSETS.tcp.$member);
                if offset == ABSENT {
                    return !0;
                }
                // SAFETY: a load within `struct tcp_sock`, which the verifier checks.
                unsafe { load(self.0, offset) }
            }
        )*
    };
}

#[inline(always)]
unsafe fn load<T: Copy>(base: *const c_void, offset: u32) -> T {
    // SAFETY: the caller's promise. Volatile, so that each load stays as wide as its member.
    unsafe { ptr::read_volatile(base.byte_add(offset as usize).cast::<T>()) }
}

const IPPROTO_TCP: u16 = 6;
const AF_INET6: u16 = 10;
/// `task_struct.flags` of a thread of the kernel.
const PF_KTHREAD: u32 = 0x0020_0000;
/// `task_struct.flags` of a task that closes its files because it ends.
const PF_EXITING: u32 = 0x0000_0004;
/// `task_struct.flags` of a thread that does I/O for a process, without a system call (io_uring).
const PF_IO_WORKER: u32 = 0x0000_0010;
/// `sysctl_tcp_fastopen`: listeners may accept data with the SYN.
const TFO_SERVER_ENABLE: u8 = 2;
/// `sk_shutdown` when both ways are shut: what close() sets before it does anything else.
const SHUTDOWN_MASK: u8 = 3;

/// An address as IPv6, IPv4-mapped for IPv4; two halves in memory order.
#[derive(Clone, Copy)]
pub struct Address(pub [u64; 2]);

impl Address {
    /// The third word of an IPv4-mapped address, in memory order, in a little-endian half.
    const MAPPED: u64 = 0xffff_0000;

    #[inline(always)]
    pub fn is_ipv4(self) -> bool {
        self.0[0] == 0 && self.0[1] as u32 == Self::MAPPED as u32
    }

    #[inline(always)]
    pub fn is_unspecified(self) -> bool {
        self.0[0] == 0 && (self.0[1] == 0 || self.0[1] == Self::MAPPED)
    }
}

/// A `struct sock` that the kernel handed to the program.
#[derive(Clone, Copy)]
pub struct Sock(*const c_void);

impl Sock {
    /// # Safety
    ///
    /// The pointer is a `struct sock *` argument of the program, not null.
    #[inline(always)]
    pub unsafe fn from_argument(sock: *const c_void) -> Self {
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
        sk_shutdown: u8,
        sk_max_ack_backlog: u32,
    }

    #[inline(always)]
    pub fn is_tcp(self) -> bool {
        self.sk_protocol() == IPPROTO_TCP
    }

    /// The whole `tcp_sock`; none for what is no TCP socket.
    #[inline(always)]
    pub fn tcp(self) -> Option<Tcp> {
        // SAFETY: the socket is a typed pointer.
        let tcp = unsafe { bpf_skc_to_tcp_sock(self.as_ptr()) }.cast::<c_void>();
        if tcp.is_null() { None } else { Some(Tcp(tcp)) }
    }

    /// What no other socket has or has had; given to it now, if nobody has asked before.
    #[inline(always)]
    pub fn cookie(self) -> u64 {
        match self.skc_cookie() {
            // SAFETY: the socket is a typed pointer.
            0 => unsafe { bpf_get_socket_cookie(self.as_ptr()) },
            cookie => cookie,
        }
    }

    /// Whether a system call has it, so that what happens is the doing of the program that runs. Segments and timers only hold
    /// the spinlock, whoever runs meanwhile.
    #[inline(always)]
    pub fn is_in_system_call(self) -> bool {
        self.sk_lock_owned() != 0
    }

    /// Whether close() is running on this socket: it has shut both ways and not yet orphaned it.
    #[inline(always)]
    pub fn is_being_closed(self) -> bool {
        self.sk_shutdown() == SHUTDOWN_MASK && !self.is_dead() && self.is_in_system_call()
    }

    /// Returns whether close() itself, or shutdown() of an attempt, ends the association that was in state `old`. What else
    /// ends one in these states does so before close() begins.
    #[inline(always)]
    pub fn is_ended_by_close(self, old: u8) -> bool {
        matches!(
            old,
            state::SYN_SENT | state::SYN_RECV | state::ESTABLISHED | state::CLOSE_WAIT
        ) && self.is_being_closed()
    }

    /// Returns whether a program has it: a child that was not accepted has none, an orphan has none any more.
    #[inline(always)]
    pub fn has_socket(self) -> bool {
        self.sk_socket() != 0
    }

    /// Returns whether listeners of its network namespace may accept data with the SYN (Fast Open).
    #[inline(always)]
    pub fn allows_fast_open(self) -> bool {
        // SAFETY: every socket points to its network namespace.
        unsafe {
            let net: *const c_void = load(self.0, offset!(skc_net));
            load::<u8>(net, offset!(sysctl_tcp_fastopen)) & TFO_SERVER_ENABLE != 0
        }
    }

    /// Returns whether it has IP_TRANSPARENT: its children may have other ports and addresses than it has.
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

    /// Whether no program has it any more, or ever had.
    #[inline(always)]
    fn is_dead(self) -> bool {
        self.skc_flags() as u8 & kmesh_trace_common::SK_DEAD != 0
    }

    /// Whether the peer's FIN has come.
    #[inline(always)]
    pub fn is_done(self) -> bool {
        self.skc_flags() as u8 & kmesh_trace_common::SK_DONE != 0
    }

    /// Of a socket that changes from SYN_RECV to CLOSE: whether it never was in the table of connections. Whatever was there has
    /// lost its port by now, unless bind() gave it. What comes second to a place there still has it; what is given up
    /// earlier has none, but is dead and no longer locked, which others become only after this change. (A subflow that MPTCP
    /// refuses is dead before, and locked.)
    #[inline(always)]
    pub fn never_was_there(self) -> bool {
        self.skc_num() != 0 || (self.is_dead() && self.lock() == 0)
    }

    #[inline(always)]
    pub fn netns(self) -> u32 {
        // SAFETY: every socket points to its namespace.
        unsafe {
            let net: *const c_void = load(self.0, offset!(skc_net));
            load(net, offset!(net_inum))
        }
    }

    /// Returns whether the initial user namespace owns the socket's network namespace.
    #[inline(always)]
    pub fn is_netns_of_root(self) -> bool {
        // SAFETY: every socket points to its network namespace, and that to the user namespace that owns it.
        unsafe {
            let net: *const c_void = load(self.0, offset!(skc_net));
            let user_ns: *const c_void = load(net, offset!(net_user_ns));
            load::<i32>(user_ns, offset!(user_ns_level)) == 0
        }
    }

    /// The id of the socket's cgroup; 0 where the kernel keeps none.
    #[inline(always)]
    pub fn cgroup_id(self) -> u64 {
        if offset!(sk_cgroup) == ABSENT {
            return 0;
        }
        // SAFETY: each pointer is null or valid; a load through null reads 0 in a tracing program.
        unsafe {
            let cgroup: *const c_void = load(self.0, offset!(sk_cgroup));
            if cgroup.is_null() {
                return 0;
            }
            let node: *const c_void = load(cgroup, offset!(cgroup_kn));
            if node.is_null() { 0 } else { load(node, offset!(kn_id)) }
        }
    }

    /// This end's address.
    #[inline(always)]
    pub fn local_address(self) -> Address {
        self.address(offset!(skc_rcv_saddr), offset!(skc_v6_rcv_saddr))
    }

    /// The peer's address.
    #[inline(always)]
    pub fn peer_address(self) -> Address {
        self.address(offset!(skc_daddr), offset!(skc_v6_daddr))
    }

    #[inline(always)]
    fn address(self, v4: u32, v6: u32) -> Address {
        // SAFETY: as in `members!`.
        unsafe {
            if self.skc_family() == AF_INET6 {
                Address([load(self.0, v6), load(self.0, v6 + 8)])
            } else {
                Address([0, Address::MAPPED | u64::from(load::<u32>(self.0, v4)) << 32])
            }
        }
    }

    /// This end's port; 0 while connect() has chosen none.
    #[inline(always)]
    pub fn local_port(self) -> u16 {
        match self.skc_num() {
            // It is put back before the change to CLOSE; the other copy stays.
            0 => self.tcp().map_or(0, |tcp| u16::from_be(tcp.inet_sport())),
            port => port,
        }
    }

    /// The peer's port.
    #[inline(always)]
    pub fn peer_port(self) -> u16 {
        u16::from_be(self.skc_dport())
    }

    /// Not 0 when anything is inside the socket and may be changing its counters.
    #[inline(always)]
    pub fn lock(self) -> u64 {
        u64::from(self.sk_lock_owned() | self.sk_lock_slock())
    }

    /// The newest buffer on the error queue, as a number; 0 when the queue is empty.
    #[inline(always)]
    pub fn newest_error(self) -> u64 {
        let queue = self.0 as u64 + u64::from(offset!(sk_error_queue));
        let prev = read_kernel::<u64>(queue + u64::from(offset!(sk_buff_head_prev)));
        // An empty list's head points to itself.
        if prev == queue { 0 } else { prev }
    }
}

/// What a buffer of the error queue tells: `ee_errno` and `ee_origin`.
#[inline(always)]
pub fn error_details(buffer: u64) -> (u32, u8) {
    (
        read_kernel(buffer + u64::from(offset!(skb_ee_errno))),
        read_kernel(buffer + u64::from(offset!(skb_ee_origin))),
    )
}

/// Reads kernel memory that no typed pointer leads to; zero where it cannot be read.
#[inline(always)]
fn read_kernel<T: Copy + Default>(address: u64) -> T {
    let mut value = T::default();
    // SAFETY: the helper writes at most the size of the value, and checks the address. On failure it writes zeros.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, address as *const c_void) };
    value
}

/// A `struct tcp_sock`.
#[derive(Clone, Copy)]
pub struct Tcp(*const c_void);

impl Tcp {
    /// The socket once more, by this pointer. To go from it to other structures costs the verifier little; from a pointer that
    /// the kernel handed to the program, it searches all of the kernel's types several times by name, at each such load.
    #[inline(always)]
    pub fn sock(self) -> Sock {
        Sock(self.0)
    }

    /// Whether the last that this end sent is a FIN, for a socket that has sent all it was given: then there is one more to be
    /// acknowledged than its payload, and than the SYN if it connected.
    #[inline(always)]
    pub fn sent_fin(self, connected: bool) -> bool {
        let acked = self.bytes_acked();
        let sent = acked + u64::from(self.write_seq().wrapping_sub(self.snd_una()));
        let payload = self.bytes_sent().wrapping_sub(self.bytes_retrans());
        self.snd_nxt() == self.write_seq() && sent > payload + u64::from(connected && acked > 0)
    }

    /// Returns whether connect() left the SYN to the first write (TCP_FASTOPEN_CONNECT).
    #[inline(always)]
    pub fn defers_connect(self) -> bool {
        let offset = offset!(fastopen_connect);
        // SAFETY: a load within `struct tcp_sock`.
        offset != ABSENT && unsafe { load::<u8>(self.0, offset) } & fastopen_connect_bit() != 0
    }

    members! {
        tcp_clock_cache: u64,
    }

    tcp_fields!(tcp_members);
}

/// A `struct task_struct`.
#[derive(Clone, Copy)]
pub struct Task(*const c_void);

impl Task {
    /// Who is running. Whom that is says something about a socket only inside the program's own system call.
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: no arguments; there always is one.
        Self(unsafe { bpf_get_current_task_btf() }.cast())
    }

    members! {
        task_flags: u32,
        task_pid: u32,
        task_tgid: u32,
    }

    #[inline(always)]
    pub fn is_kernel_thread(self) -> bool {
        self.task_flags() & PF_KTHREAD != 0
    }

    /// Returns whether what it does can close a file of its own: its system call can, or it ends. A system call that only looks
    /// at files of others holds each for a moment, and may be the last to let go of it.
    #[inline(always)]
    pub fn can_close(self) -> bool {
        if self.task_flags() & (PF_EXITING | PF_IO_WORKER) != 0 {
            return true;
        }
        let offset = offset!(system_call);
        if offset == ABSENT {
            return true;
        }
        let compat = offset!(task_compat);
        // SAFETY: loads within `struct task_struct`, and within the registers of a task that is running.
        unsafe {
            let is_compat = compat != ABSENT && load::<u8>(self.0, compat) & compat_bit() != 0;
            let registers = bpf_task_pt_regs(self.0.cast_mut().cast()) as *const c_void;
            can_close(load(registers, offset), is_compat)
        }
    }

    /// The thread's own name, as two halves in memory order.
    #[inline(always)]
    pub fn comm(self) -> [u64; 2] {
        let comm = offset!(task_comm);
        // SAFETY: `comm` is 16 bytes.
        unsafe { [load(self.0, comm), load(self.0, comm + 8)] }
    }

    /// The name of the thread-group leader, likewise.
    #[inline(always)]
    pub fn leader_comm(self) -> [u64; 2] {
        if self.task_pid() == self.task_tgid() {
            return self.comm();
        }
        // Not by a typed pointer: see `Tcp::sock`.
        let leader = read_kernel::<u64>(self.0 as u64 + u64::from(offset!(task_group_leader)));
        read_kernel(leader + u64::from(offset!(task_comm)))
    }
}

/// `struct bpf_iter__task_file`: one visit of the walk over all descriptors.
#[derive(Clone, Copy)]
pub struct TaskFile(*const Visit);

#[repr(C)]
struct Visit {
    meta: *const c_void,
    task: *const c_void,
    fd: u64,
    file: *mut c_void,
}

impl TaskFile {
    /// # Safety
    ///
    /// The pointer is the context of a program of section `iter/task_file`.
    #[inline(always)]
    pub unsafe fn from_context(ctx: *mut c_void) -> Self {
        Self(ctx.cast())
    }

    /// None at the end of the walk.
    #[inline(always)]
    pub fn task(self) -> Option<Task> {
        // SAFETY: the context's member.
        let task = unsafe { ptr::read_volatile(&raw const (*self.0).task) };
        if task.is_null() { None } else { Some(Task(task)) }
    }

    /// Where the program writes to.
    #[inline(always)]
    pub fn output(self) -> IteratorOutput {
        IteratorOutput(self.0.cast())
    }

    /// The socket behind the descriptor, if it is a TCP one.
    #[inline(always)]
    pub fn tcp_sock(self) -> Option<Sock> {
        // SAFETY: the context's member.
        let file = unsafe { ptr::read_volatile(&raw const (*self.0).file) };
        if file.is_null() {
            return None;
        }
        // SAFETY: the file is a typed pointer.
        let socket = unsafe { bpf_sock_from_file(file.cast()) }.cast::<c_void>();
        if socket.is_null() {
            return None;
        }
        // SAFETY: a load within `struct socket`.
        let sk: *const c_void = unsafe { load(socket, offset!(socket_sk)) };
        if sk.is_null() {
            return None;
        }
        let sock = Sock(sk);
        // A raw socket can be of protocol 6 too: only the kernel's own check tells.
        sock.tcp().map(|_| sock)
    }
}

/// `struct bpf_iter__tcp`: one visit of the scan of a network namespace's TCP sockets.
#[derive(Clone, Copy)]
pub struct NetnsSock(*const NetnsVisit);

#[repr(C)]
struct NetnsVisit {
    meta: *const c_void,
    sk_common: *mut c_void,
}

impl NetnsSock {
    /// # Safety
    ///
    /// The pointer is the context of a program of section `iter/tcp`.
    #[inline(always)]
    pub unsafe fn from_context(ctx: *mut c_void) -> Self {
        Self(ctx.cast())
    }

    /// Where the program writes to.
    #[inline(always)]
    pub fn output(self) -> IteratorOutput {
        IteratorOutput(self.0.cast())
    }

    /// The socket, unless it is a request or a time-wait stub; none at the end of the scan.
    #[inline(always)]
    pub fn tcp_sock(self) -> Option<Sock> {
        // SAFETY: the context's member.
        let common = unsafe { ptr::read_volatile(&raw const (*self.0).sk_common) };
        if common.is_null() {
            return None;
        }
        // SAFETY: the socket is a typed pointer, a `struct sock_common *`. The helper returns null for what is no full socket.
        let tcp = unsafe { bpf_skc_to_tcp_sock(common) }.cast::<c_void>();
        if tcp.is_null() { None } else { Some(Tcp(tcp).sock()) }
    }
}

/// The file of the process that reads an iterator. Every iterator's context begins with the same member.
#[derive(Clone, Copy)]
pub struct IteratorOutput(*const *const c_void);

impl IteratorOutput {
    /// Writes to the file. False when there is no room now: the kernel then calls again for the same object.
    #[inline(always)]
    pub fn write<T>(self, value: &T) -> bool {
        // SAFETY: the context's first member, a `struct bpf_iter_meta`, whose first is the `struct seq_file`; and a whole value.
        unsafe {
            let meta = ptr::read_volatile(self.0);
            let file: *mut c_void = load(meta, 0);
            bpf_seq_write(file.cast(), ptr::from_ref(value).cast(), size_of::<T>() as u32) == 0
        }
    }
}
