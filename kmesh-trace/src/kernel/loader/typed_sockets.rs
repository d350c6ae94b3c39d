//! Finds out whether the kernel gives a program a typed pointer to the socket behind a descriptor, which helpers need.
//!
//! aya can load a program only from an object whose maps it has all created. So this module loads the test's program
//! itself. The program has no map, and a refusal costs no memory.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_TRACE_ITER: u32 = 28;

/// The offset of the file in `struct bpf_iter__task_file`.
const FILE: u64 = 24;
/// The number of the helper `bpf_skc_to_tcp_sock`.
const BPF_SKC_TO_TCP_SOCK: u64 = 137;
/// The number of the helper `bpf_sock_from_file`.
const BPF_SOCK_FROM_FILE: u64 = 162;

/// The start of `union bpf_attr` for BPF_PROG_LOAD. The kernel reads the rest as zero.
#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
    btf: u32,
    function_info_size: u32,
    function_info: u64,
    function_info_count: u32,
    line_info_size: u32,
    line_info: u64,
    line_info_count: u32,
    attach_btf_id: u32,
}

/// Returns the program `bpf_skc_to_tcp_sock(bpf_sock_from_file(file)->sk)`. `sk`: the offset of the member.
fn program(sk: u32) -> [u64; 9] {
    // `r1 = *(u64 *)(rN + offset)`, `if rN == 0 goto +offset`, `call helper`, `r0 = 0`, `exit`.
    let load = |from: u64, offset: u64| 0x79 | from << 12 | 1 << 8 | offset << 16;
    let exit_if_zero = |register: u64, skipped: u64| 0x15 | register << 8 | skipped << 16;
    let call = |helper: u64| 0x85 | helper << 32;
    [
        load(1, FILE),
        exit_if_zero(1, 5),
        call(BPF_SOCK_FROM_FILE),
        exit_if_zero(0, 3),
        load(0, u64::from(sk)),
        exit_if_zero(1, 1),
        call(BPF_SKC_TO_TCP_SOCK),
        0xb7,
        0x95,
    ]
}

/// Returns whether the kernel accepts the program. `iterator`: the BTF id of the function `bpf_iter_task_file`. `sk`:
/// the offset of `socket.sk`.
pub fn has_typed_sockets(iterator: u32, sk: u32) -> bool {
    let program = program(sk);
    let attributes = Load {
        program_type: BPF_PROG_TYPE_TRACING,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"kmesh_typed\0\0\0\0\0",
        interface: 0,
        expected_attach_type: BPF_TRACE_ITER,
        btf: 0,
        function_info_size: 0,
        function_info: 0,
        function_info_count: 0,
        line_info_size: 0,
        line_info: 0,
        line_info_count: 0,
        attach_btf_id: iterator,
    };
    // SAFETY: the kernel reads the attributes, whose size is the argument, and the program and the licence that they
    // point to. All of it outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            std::ptr::from_ref(&attributes),
            size_of::<Load>(),
        )
    };
    if result >= 0 {
        // SAFETY: the command returns a new descriptor, which nothing else owns.
        drop(unsafe { OwnedFd::from_raw_fd(result as i32) });
        return true;
    }
    // The verifier refuses with EACCES or EINVAL. Other errors are the same for every program, which then reports them.
    !matches!(
        io::Error::last_os_error().raw_os_error(),
        Some(libc::EACCES | libc::EINVAL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_consists_of_the_kernels_instructions() {
        // struct bpf_insn: the code, the registers (destination in the low half), the offset, the immediate.
        let instruction = |bytes: u64| bytes.to_le_bytes();
        let program = program(24);
        assert_eq!(instruction(program[0]), [0x79, 0x11, 24, 0, 0, 0, 0, 0]);
        assert_eq!(instruction(program[1]), [0x15, 0x01, 5, 0, 0, 0, 0, 0]);
        assert_eq!(instruction(program[2]), [0x85, 0, 0, 0, 162, 0, 0, 0]);
        assert_eq!(instruction(program[4]), [0x79, 0x01, 24, 0, 0, 0, 0, 0]);
        assert_eq!(size_of::<Load>(), 112);
    }
}
