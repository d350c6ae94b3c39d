//! The `task_struct` behind typed getters.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
use kmesh_trace_common::ABSENT;

use crate::layout::{load, members, offset, read_kernel};
use crate::maps::{can_close, compat_bit};

/// `task_struct.flags` of a kernel thread.
const PF_KTHREAD: u32 = 0x0020_0000;
/// `task_struct.flags` of a task that exits, and so closes its files.
const PF_EXITING: u32 = 0x0000_0004;
/// `task_struct.flags` of an io_uring worker, which does I/O for a process without a system call.
const PF_IO_WORKER: u32 = 0x0000_0010;

#[derive(Clone, Copy)]
pub struct Task(*const c_void);

impl Task {
    /// # Safety
    ///
    /// The pointer is a typed `struct task_struct *`, not null.
    #[inline(always)]
    pub unsafe fn from_pointer(task: *const c_void) -> Self {
        Self(task)
    }

    /// Returns the running task. It is related to a socket only inside its own system call on that socket.
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: the helper has no arguments and never returns null.
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

    /// Returns whether the running task can close a file of its own process: by its system call, or because it exits.
    /// Other system calls hold a file of another process for a moment, and may drop its last reference.
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
        // SAFETY: loads within `struct task_struct`, and within the registers of the running task.
        unsafe {
            let is_compat = compat != ABSENT && load::<u8>(self.0, compat) & compat_bit() != 0;
            let registers = bpf_task_pt_regs(self.0.cast_mut().cast()) as *const c_void;
            can_close(load(registers, offset), is_compat)
        }
    }

    /// Returns the name of the thread as two words in memory order.
    #[inline(always)]
    pub fn comm(self) -> [u64; 2] {
        let comm = offset!(task_comm);
        // SAFETY: `comm` is 16 bytes.
        unsafe { [load(self.0, comm), load(self.0, comm + 8)] }
    }

    /// Returns the name of the thread-group leader as two words in memory order.
    #[inline(always)]
    pub fn leader_comm(self) -> [u64; 2] {
        if self.task_pid() == self.task_tgid() {
            return self.comm();
        }
        // A load through a typed pointer would cost the verifier more: see `Tcp::sock`.
        let leader = read_kernel::<u64>(self.0 as u64 + u64::from(offset!(task_group_leader)));
        read_kernel(leader + u64::from(offset!(task_comm)))
    }
}
