//! An empty eBPF program at the main hook of the tool. Its time is the kernel's own cost of calling a program.

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

/// The start of `union bpf_attr` for BPF_PROG_LOAD. The kernel reads the rest as zero.
#[repr(C)]
struct Load {
    program_type: u32,
    instructions: u32,
    code: u64,
    license: u64,
}

/// The start of `union bpf_attr` for BPF_RAW_TRACEPOINT_OPEN.
#[repr(C)]
struct Open {
    name: u64,
    program: u32,
    pad: u32,
}

/// An attached empty program. Dropping it detaches it.
pub struct Empty {
    program: OwnedFd,
    _link: OwnedFd,
}

impl Empty {
    /// Loads and attaches the program. The kernel calls and times a raw tracepoint with the same code as `tp_btf`.
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

    /// Returns the run time of the program in ns.
    pub fn time_ns(&self) -> u64 {
        super::traced::time_ns("self", self.program.as_raw_fd())
    }
}

fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads the attributes, whose size is the argument, and the data that they point to. All of it
    // outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands return a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
