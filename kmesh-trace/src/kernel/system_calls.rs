//! The numbers of the system calls that can close a file of the calling process (`asm/unistd.h` of each architecture).
//!
//! Other system calls that drop the last reference to a file, such as `readlink` of `/proc/PID/fd/N`, have only
//! inspected a file of another process. The programs recognize an exiting process by its flags.

use kmesh_trace_common::SystemCalls;

const fn set(numbers: &[u32]) -> SystemCalls {
    let mut set = [0; 8];
    let mut index = 0;
    while index < numbers.len() {
        set[numbers[index] as usize / 64] |= 1 << (numbers[index] % 64);
        index += 1;
    }
    set
}

#[cfg(target_arch = "x86_64")]
mod numbers {
    use super::{SystemCalls, set};

    /// The member of `pt_regs` with the system call number.
    pub const NUMBER_MEMBER: &str = "orig_ax";
    /// The member of `task_struct` with the bit of a 32-bit system call (`TS_COMPAT`).
    pub const COMPAT_MEMBER: &str = "thread_info.status";
    /// The number of that bit.
    pub const COMPAT_BIT: u32 = 1;
    /// The numbers of close, dup2, connect, shutdown, execve, dup3, execveat, io_uring_enter, close_range.
    pub const CLOSING: SystemCalls = set(&[3, 33, 42, 48, 59, 292, 322, 426, 436]);
    /// The i386 numbers of close, execve, dup2, socketcall, dup3, execveat, connect, shutdown, io_uring_enter,
    /// close_range.
    pub const COMPAT_CLOSING: SystemCalls = set(&[6, 11, 63, 102, 330, 358, 362, 373, 426, 436]);
}

#[cfg(target_arch = "aarch64")]
mod numbers {
    use super::{SystemCalls, set};

    /// The member of `pt_regs` with the system call number.
    pub const NUMBER_MEMBER: &str = "syscallno";
    /// The member of `task_struct` with the bit of a 32-bit program (`TIF_32BIT`).
    pub const COMPAT_MEMBER: &str = "thread_info.flags";
    /// The number of that bit.
    pub const COMPAT_BIT: u32 = 22;
    /// The numbers of dup3, close, connect, shutdown, execve, execveat, io_uring_enter, close_range.
    pub const CLOSING: SystemCalls = set(&[24, 57, 203, 210, 221, 281, 426, 436]);
    /// The arm numbers of close, execve, dup2, connect, shutdown, dup3, execveat, io_uring_enter, close_range.
    pub const COMPAT_CLOSING: SystemCalls = set(&[6, 11, 63, 283, 293, 358, 387, 426, 436]);
}

pub use numbers::*;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn numbers_match_the_c_library() {
        use nix::libc;
        let has = |number: i64| CLOSING[number as usize / 64] >> (number % 64) & 1 == 1;
        for number in [
            libc::SYS_close,
            libc::SYS_dup2,
            libc::SYS_dup3,
            libc::SYS_connect,
            libc::SYS_shutdown,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_io_uring_enter,
            libc::SYS_close_range,
        ] {
            assert!(has(number), "{number}");
        }
        assert!(!has(libc::SYS_readlink) && !has(libc::SYS_read) && !has(libc::SYS_newfstatat));
    }
}
