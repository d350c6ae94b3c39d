//! What a process holds in the kernel's BPF side, and whether it is still there.

use std::os::fd::{FromRawFd as _, OwnedFd};

use nix::libc;
use nix::unistd::Pid;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A loaded program.
    Program,
    /// A map.
    Map,
    /// An attachment.
    Link,
}

/// One object of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub kind: Kind,
    /// The kernel's number for it; a number is not given again soon.
    pub id: u32,
}

/// All that the descriptors of a process lead to.
pub fn objects_of(pid: Pid) -> Vec<Object> {
    let mut objects = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("fdinfo of the tracer") {
        // A descriptor may be closed between the listing and the look.
        let text = entry.and_then(|entry| std::fs::read_to_string(entry.path())).unwrap_or_default();
        for line in text.lines() {
            let Some((key, id)) = line.split_once(':') else { continue };
            let kind = match key {
                "prog_id" => Kind::Program,
                "map_id" => Kind::Map,
                "link_id" => Kind::Link,
                _ => continue,
            };
            let object = Object { kind, id: id.trim().parse().expect("an id") };
            if !objects.contains(&object) {
                objects.push(object);
            }
        }
    }
    objects
}

/// Those that still exist.
pub fn alive(objects: &[Object]) -> Vec<Object> {
    objects.iter().copied().filter(|object| exists(*object)).collect()
}

fn exists(object: Object) -> bool {
    let command: libc::c_long = match object.kind {
        Kind::Program => 13,
        Kind::Map => 14,
        Kind::Link => 30,
    };
    // BPF_*_GET_FD_BY_ID: the id first, zeros for the rest.
    let attr = [object.id, 0, 0, 0];
    // SAFETY: the kernel reads the given number of bytes from `attr`, which lives through the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(&attr)) };
    match i32::try_from(fd) {
        Ok(fd) if fd >= 0 => {
            // SAFETY: the kernel has just made this descriptor, and nobody else knows its number.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            true
        }
        _ => {
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "bpf({command}): {error}");
            false
        }
    }
}
