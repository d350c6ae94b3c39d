//! The eBPF programs of kmesh-trace: attach points only, one short function each.
//!
//! A connection's life is carried by one hook, `inet_sock_set_state`; [`connection`] tells that story. `tcp_destroy_sock`
//! is the second chance for closes that the kernel skipped the first program for, `tcp_send_reset` settles what a close
//! alone cannot tell, and the iterators `task_file` and `tcp` seed the sockets that were open before.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod connection;
#[cfg(target_arch = "bpf")]
mod filter;
#[cfg(target_arch = "bpf")]
mod kept;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod record;
#[cfg(target_arch = "bpf")]
mod sock;

#[cfg(target_arch = "bpf")]
mod programs {
    use core::ffi::c_void;

    use aya_ebpf::macros::btf_tracepoint;
    use aya_ebpf::programs::BtfTracePointContext;

    use kmesh_trace_common::counter;

    use crate::connection;
    use crate::maps::{is_running, running};
    use crate::sock::{NetnsSock, Sock, TaskFile};

    #[btf_tracepoint(function = "inet_sock_set_state")]
    fn kmesh_state(ctx: BtfTracePointContext) -> i32 {
        running(|| state(&ctx, counter::STATE))
    }

    /// The kernel reports an error of a socket, and gives the connection up. For errors in a softirq on top of the program at
    /// `inet_sock_set_state`, which the kernel then skips: see [`connection::failed`].
    #[btf_tracepoint(function = "inet_sk_error_report")]
    fn kmesh_error(ctx: BtfTracePointContext) -> i32 {
        if is_running() {
            // SAFETY: the hook's only argument is a `const struct sock *`, never null.
            let sock = unsafe { Sock::from_argument(ctx.arg::<*const c_void>(0)) };
            if sock.is_tcp() {
                connection::failed(sock);
            }
        }
        0
    }

    /// For kernels that preempt programs at tracepoints: see [`connection::changed`].
    #[btf_tracepoint(function = "inet_sock_set_state")]
    fn kmesh_state_again(ctx: BtfTracePointContext) -> i32 {
        state(&ctx, counter::STATE_AGAIN)
    }

    #[inline(always)]
    fn state(ctx: &BtfTracePointContext, program: u32) -> i32 {
        // SAFETY: the hook's first argument is a `const struct sock *`, never null.
        let sock = unsafe { Sock::from_argument(ctx.arg::<*const c_void>(0)) };
        let (old, new) = (ctx.arg::<i32>(1) as u8, ctx.arg::<i32>(2) as u8);
        if connection::matters(old, new) && sock.is_tcp() {
            connection::changed(sock, old, new, program);
        }
        0
    }

    #[btf_tracepoint(function = "tcp_destroy_sock")]
    fn kmesh_destroy(ctx: BtfTracePointContext) -> i32 {
        destroy(&ctx, counter::DESTROY)
    }

    /// As above.
    #[btf_tracepoint(function = "tcp_destroy_sock")]
    fn kmesh_destroy_again(ctx: BtfTracePointContext) -> i32 {
        destroy(&ctx, counter::DESTROY_AGAIN)
    }

    #[inline(always)]
    fn destroy(ctx: &BtfTracePointContext, program: u32) -> i32 {
        // SAFETY: the hook's only argument is a `struct sock *`, never null.
        connection::destroyed(unsafe { Sock::from_argument(ctx.arg::<*const c_void>(0)) }, program);
        0
    }

    #[btf_tracepoint(function = "tcp_send_reset")]
    fn kmesh_reset(ctx: BtfTracePointContext) -> i32 {
        let argument = ctx.arg::<*const c_void>(0);
        if !argument.is_null() {
            // SAFETY: the hook's first argument is a `const struct sock *`, not null here.
            connection::reset_sent(unsafe { Sock::from_argument(argument) });
        }
        0
    }

    /// aya has no attribute for iterators: the section's name tells the loader what this is.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/task_file")]
    fn kmesh_walk(ctx: *mut c_void) -> i32 {
        // SAFETY: the kernel calls a program of this section with a `struct bpf_iter__task_file *`.
        let visit = unsafe { TaskFile::from_context(ctx) };
        if let (Some(task), Some(sock)) = (visit.task(), visit.tcp_sock()) {
            connection::met(visit, sock, task);
        }
        0
    }

    /// For the sockets that no descriptor of a process leads to.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/tcp")]
    fn kmesh_netns(ctx: *mut c_void) -> i32 {
        // SAFETY: the kernel calls a program of this section with a `struct bpf_iter__tcp *`.
        let visit = unsafe { NetnsSock::from_context(ctx) };
        if let Some(sock) = visit.tcp_sock() {
            connection::found_in_netns(visit, sock);
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
