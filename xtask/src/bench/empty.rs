//! A program that does nothing, at the hook that carries the life of a connection: what the kernel itself takes to call one.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
/// `r0 = 0; exit`
const NOTHING: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];
const HOOK: &CStr = c"inet_sock_set_state";

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD; the rest is zero for the kernel.
#[repr(C)]
struct Load {
    program_type: u32,
    instructions: u32,
    code: u64,
    license: u64,
}

/// The same for BPF_RAW_TRACEPOINT_OPEN.
#[repr(C)]
struct Open {
    name: u64,
    program: u32,
    pad: u32,
}

/// Attached until dropped.
pub struct Empty {
    program: OwnedFd,
    _link: OwnedFd,
}

impl Empty {
    /// Loads and attaches it. A raw tracepoint is called, and its time is taken, by the same code of the kernel as `tp_btf`.
    pub fn attach() -> Result<Self> {
        let program = call(
            BPF_PROG_LOAD,
            &Load {
                program_type: BPF_PROG_TYPE_RAW_TRACEPOINT,
                instructions: NOTHING.len() as u32,
                code: NOTHING.as_ptr() as u64,
                license: c"GPL".as_ptr() as u64,
            },
        )
        .context("cannot load an empty program")?;
        let link = call(
            BPF_RAW_TRACEPOINT_OPEN,
            &Open {
                name: HOOK.as_ptr() as u64,
                program: program.as_raw_fd() as u32,
                pad: 0,
            },
        )
        .context("cannot attach an empty program")?;
        Ok(Self { program, _link: link })
    }

    /// The time that it has run for, ns.
    pub fn time_ns(&self) -> u64 {
        super::traced::time_ns("self", self.program.as_raw_fd())
    }
}

fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads the attributes, of the size given, and what they point to, all of which outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands return a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
