//! The contexts of the iterator programs: one visit of a socket scan each.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::generated::{bpf_seq_write, bpf_skc_to_tcp_sock, bpf_sock_from_file};

use crate::layout::{load, offset, read_kernel};
use crate::sock::{Sock, Tcp};
use crate::task::Task;

/// A `struct bpf_iter__task_file`: the visit of one descriptor of a process.
#[derive(Clone, Copy)]
pub struct TaskFile(*const TaskFileContext);

#[repr(C)]
struct TaskFileContext {
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

    /// Returns the process; `None` at the end of the scan.
    #[inline(always)]
    pub fn task(self) -> Option<Task> {
        // SAFETY: a member of the context.
        let task = unsafe { ptr::read_volatile(&raw const (*self.0).task) };
        if task.is_null() {
            None
        } else {
            // SAFETY: the kernel passes a typed pointer.
            Some(unsafe { Task::from_pointer(task) })
        }
    }

    #[inline(always)]
    pub fn output(self) -> IteratorOutput {
        IteratorOutput(self.0.cast())
    }

    /// Returns the socket behind the descriptor if it is a TCP socket.
    #[inline(always)]
    pub fn tcp_sock(self) -> Option<Sock> {
        // SAFETY: a load within `struct socket`.
        let sk: *const c_void = unsafe { load(self.socket()?, offset!(socket_sk)) };
        if sk.is_null() {
            return None;
        }
        // SAFETY: a typed pointer, not null.
        let sock = unsafe { Sock::from_pointer(sk) };
        if !sock.is_tcp_over_ip() {
            return None;
        }
        sock.tcp().map(|_| sock)
    }

    /// Returns the `struct sock` behind the descriptor if it is a socket, and its address as a number. On some kernels
    /// a program may load members of this socket, but not pass it to helpers.
    #[inline(always)]
    pub fn untyped_sock(self) -> Option<(Sock, u64)> {
        let socket = self.socket()?;
        // SAFETY: a load within `struct socket`.
        let sk: *const c_void = unsafe { load(socket, offset!(socket_sk)) };
        if sk.is_null() {
            return None;
        }
        let address: u64 = read_kernel(socket as u64 + u64::from(offset!(socket_sk)));
        // close() may have removed the socket meanwhile.
        if address != sk as u64 {
            return None;
        }
        // SAFETY: a pointer whose type the verifier knows, not null.
        Some((unsafe { Sock::from_pointer(sk) }, address))
    }

    /// Returns the `struct socket` behind the descriptor; `None` if it is no socket.
    #[inline(always)]
    fn socket(self) -> Option<*const c_void> {
        // SAFETY: a member of the context.
        let file = unsafe { ptr::read_volatile(&raw const (*self.0).file) };
        if file.is_null() {
            return None;
        }
        // SAFETY: the file is a typed pointer.
        let socket = unsafe { bpf_sock_from_file(file.cast()) }.cast::<c_void>();
        if socket.is_null() { None } else { Some(socket) }
    }
}

/// A `struct bpf_iter__tcp`: the visit of one TCP socket of a network namespace.
#[derive(Clone, Copy)]
pub struct NetnsSock(*const NetnsSockContext);

#[repr(C)]
struct NetnsSockContext {
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

    #[inline(always)]
    pub fn output(self) -> IteratorOutput {
        IteratorOutput(self.0.cast())
    }

    /// Returns the socket unless it is a request or a time-wait stub; `None` at the end of the scan.
    #[inline(always)]
    pub fn tcp_sock(self) -> Option<Sock> {
        // SAFETY: a member of the context.
        let common = unsafe { ptr::read_volatile(&raw const (*self.0).sk_common) };
        if common.is_null() {
            return None;
        }
        // SAFETY: a typed `struct sock_common *`. The helper returns null unless it is a full TCP socket.
        unsafe { Tcp::from_pointer(bpf_skc_to_tcp_sock(common).cast()) }.map(Tcp::sock)
    }
}

/// The file through which a process reads an iterator. Every iterator's context begins with the same member.
#[derive(Clone, Copy)]
pub struct IteratorOutput(*const *const c_void);

impl IteratorOutput {
    /// Writes to the file. Returns false if the file's buffer is full; the kernel then visits the same object again.
    #[inline(always)]
    pub fn write<T>(self, value: &T) -> bool {
        // SAFETY: `value` is a whole value.
        unsafe { self.write_bytes(ptr::from_ref(value).cast(), size_of::<T>()) }
    }

    /// Writes bytes to the file, as [`Self::write`].
    ///
    /// # Safety
    ///
    /// `bytes` points to at least `length` bytes.
    #[inline(always)]
    pub unsafe fn write_bytes(self, bytes: *const u8, length: usize) -> bool {
        // SAFETY: the first member of the context is a `struct bpf_iter_meta *`, and the first member of that the
        // `struct seq_file *`. The caller promises the bytes.
        unsafe {
            let meta = ptr::read_volatile(self.0);
            let file: *mut c_void = load(meta, 0);
            bpf_seq_write(file.cast(), bytes.cast(), length as u32) == 0
        }
    }
}
