//! The eBPF programs of kmesh-trace: the attach points, each a short function.
//!
//! `inet_sock_set_state` carries the life of a connection ([`connection`]). The programs at `tcp_destroy_sock` and
//! `inet_sk_error_report` report closes for which the kernel skipped the state program ([`fallback`]). The program at
//! `tcp_send_reset` reports the RST that decides how a connection ended. The iterators `task_file` and `tcp` scan the
//! open sockets ([`scan`], [`holders`]).
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod clock;
#[cfg(target_arch = "bpf")]
mod conn_state;
#[cfg(target_arch = "bpf")]
mod connection;
#[cfg(target_arch = "bpf")]
mod drops;
#[cfg(target_arch = "bpf")]
mod fallback;
#[cfg(target_arch = "bpf")]
mod filter;
#[cfg(target_arch = "bpf")]
mod holders;
#[cfg(target_arch = "bpf")]
mod iterator;
#[cfg(target_arch = "bpf")]
mod layout;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod record;
#[cfg(target_arch = "bpf")]
mod rejects;
#[cfg(target_arch = "bpf")]
mod scan;
#[cfg(target_arch = "bpf")]
mod skb;
#[cfg(target_arch = "bpf")]
mod sock;
#[cfg(target_arch = "bpf")]
mod storage;
#[cfg(target_arch = "bpf")]
mod task;
#[cfg(target_arch = "bpf")]
mod turns;

#[cfg(target_arch = "bpf")]
mod programs {
    use core::ffi::c_void;

    use aya_ebpf::macros::btf_tracepoint;
    use aya_ebpf::programs::BtfTracePointContext;

    use kmesh_trace_common::{counter, state};

    use crate::conn_state::Holder;
    use crate::iterator::{NetnsSock, TaskFile};
    use crate::maps::{
        counts_rejects, has_reset_reasons, is_drop_counted, is_state_program_running, run_state_program,
    };
    use crate::skb::Skb;
    use crate::sock::Sock;
    use crate::{connection, drops, fallback, holders, rejects, scan, turns};

    #[btf_tracepoint(function = "inet_sock_set_state")]
    fn kmesh_state(ctx: BtfTracePointContext) -> i32 {
        run_state_program(|| state(&ctx, counter::STATE))
    }

    /// Reports errors in a softirq that interrupts `kmesh_state`. The kernel then skips `kmesh_state` for the change to
    /// CLOSE: see [`fallback::error_reported`].
    #[btf_tracepoint(function = "inet_sk_error_report")]
    fn kmesh_error(ctx: BtfTracePointContext) -> i32 {
        if is_state_program_running() {
            // SAFETY: the hook's only argument is a `const struct sock *`, never null.
            let sock = unsafe { Sock::from_pointer(ctx.arg::<*const c_void>(0)) };
            if sock.is_tcp() {
                fallback::error_reported(sock);
            }
        }
        0
    }

    /// The first backup of `kmesh_state`, for kernels that preempt programs: see [`connection::state_changed`].
    #[btf_tracepoint(function = "inet_sock_set_state")]
    fn kmesh_state_2(ctx: BtfTracePointContext) -> i32 {
        state(&ctx, counter::STATE_2)
    }

    /// The second backup of `kmesh_state`.
    #[btf_tracepoint(function = "inet_sock_set_state")]
    fn kmesh_state_3(ctx: BtfTracePointContext) -> i32 {
        state(&ctx, counter::STATE_3)
    }

    #[inline(always)]
    fn state(ctx: &BtfTracePointContext, program: u32) -> i32 {
        // SAFETY: the hook's first argument is a `const struct sock *`, never null.
        let sock = unsafe { Sock::from_pointer(ctx.arg::<*const c_void>(0)) };
        let (old, new) = (ctx.arg::<i32>(1) as u8, ctx.arg::<i32>(2) as u8);
        if connection::is_relevant(old, new) && sock.is_tcp() {
            connection::state_changed(sock, old, new, program);
        }
        0
    }

    #[btf_tracepoint(function = "tcp_destroy_sock")]
    fn kmesh_destroy(ctx: BtfTracePointContext) -> i32 {
        destroy(&ctx, counter::DESTROY)
    }

    /// The first backup of `kmesh_destroy`, for kernels that preempt programs.
    #[btf_tracepoint(function = "tcp_destroy_sock")]
    fn kmesh_destroy_2(ctx: BtfTracePointContext) -> i32 {
        destroy(&ctx, counter::DESTROY_2)
    }

    /// The second backup of `kmesh_destroy`.
    #[btf_tracepoint(function = "tcp_destroy_sock")]
    fn kmesh_destroy_3(ctx: BtfTracePointContext) -> i32 {
        destroy(&ctx, counter::DESTROY_3)
    }

    #[inline(always)]
    fn destroy(ctx: &BtfTracePointContext, program: u32) -> i32 {
        // SAFETY: the hook's only argument is a `struct sock *`, never null.
        fallback::socket_destroyed(unsafe { Sock::from_pointer(ctx.arg::<*const c_void>(0)) }, program);
        0
    }

    #[btf_tracepoint(function = "tcp_send_reset")]
    fn kmesh_reset(ctx: BtfTracePointContext) -> i32 {
        reset(&ctx, counter::RESET)
    }

    /// The first backup of `kmesh_reset`, for kernels that preempt programs.
    #[btf_tracepoint(function = "tcp_send_reset")]
    fn kmesh_reset_2(ctx: BtfTracePointContext) -> i32 {
        reset(&ctx, counter::RESET_2)
    }

    /// The second backup of `kmesh_reset`.
    #[btf_tracepoint(function = "tcp_send_reset")]
    fn kmesh_reset_3(ctx: BtfTracePointContext) -> i32 {
        reset(&ctx, counter::RESET_3)
    }

    #[inline(always)]
    fn reset(ctx: &BtfTracePointContext, program: u32) -> i32 {
        let argument = ctx.arg::<*const c_void>(0);
        let reason = if has_reset_reasons() { ctx.arg::<u32>(2) } else { 0 };
        if !argument.is_null() {
            // SAFETY: the hook's first argument is a `const struct sock *`, not null here.
            let sock = unsafe { Sock::from_pointer(argument) };
            // A stub has the cookie of its connection. A RST that the stub sends is no part of the connection.
            if !matches!(sock.skc_state(), state::TIME_WAIT | state::NEW_SYN_RECV) {
                connection::reset_sent(sock, reason, program);
                return 0;
            }
        }
        // A backup program cannot know whether the first program has counted the RST.
        if counts_rejects()
            && !counter::is_backup(program)
            && let Some(skb) = Skb::from_argument(ctx.arg::<*const c_void>(1))
        {
            rejects::rejected(skb, reason);
        }
        0
    }

    /// Counts dropped packets. Attached only if the user asks for it.
    #[btf_tracepoint(function = "kfree_skb")]
    fn kmesh_drop(ctx: BtfTracePointContext) -> i32 {
        let reason = ctx.arg::<u32>(2);
        if is_drop_counted(reason)
            && let Some(skb) = Skb::from_argument(ctx.arg::<*const c_void>(0))
        {
            drops::dropped(skb, reason);
        }
        0
    }

    /// Measures turns. Attached only if the user asks for it.
    #[btf_tracepoint(function = "sk_data_ready")]
    fn kmesh_data_ready(ctx: BtfTracePointContext) -> i32 {
        // SAFETY: the hook's only argument is a `const struct sock *`, never null.
        turns::data_arrived(unsafe { Sock::from_pointer(ctx.arg::<*const c_void>(0)) });
        0
    }

    /// Measures turns. Attached only if the user asks for it.
    #[btf_tracepoint(function = "sock_send_length")]
    fn kmesh_send(ctx: BtfTracePointContext) -> i32 {
        if ctx.arg::<i32>(1) > 0 {
            // SAFETY: the hook's first argument is a `struct sock *`, never null.
            turns::data_sent(unsafe { Sock::from_pointer(ctx.arg::<*const c_void>(0)) });
        }
        0
    }

    // aya has no attribute for iterators. The loader finds the program's type by the section's name.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/task_file")]
    fn kmesh_scan_fds(ctx: *mut c_void) -> i32 {
        // SAFETY: the kernel calls a program of this section with a `struct bpf_iter__task_file *`.
        let visit = unsafe { TaskFile::from_context(ctx) };
        if let (Some(task), Some(sock)) = (visit.task(), visit.tcp_sock()) {
            scan::visit_descriptor(visit, sock, Holder::of(task));
        }
        0
    }

    /// Finds the processes that hold sockets, on a kernel that refuses `kmesh_scan_fds`.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/task_file")]
    fn kmesh_holders(ctx: *mut c_void) -> i32 {
        // SAFETY: the kernel calls a program of this section with a `struct bpf_iter__task_file *`.
        let visit = unsafe { TaskFile::from_context(ctx) };
        if let Some(task) = visit.task() {
            holders::find(visit, task);
        }
        0
    }

    /// Scans the sockets of a network namespace, which finds sockets without a descriptor too.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/tcp")]
    fn kmesh_scan_netns(ctx: *mut c_void) -> i32 {
        // SAFETY: the kernel calls a program of this section with a `struct bpf_iter__tcp *`.
        let visit = unsafe { NetnsSock::from_context(ctx) };
        if let Some(sock) = visit.tcp_sock() {
            scan::visit_netns_socket(visit, sock);
        }
        0
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
