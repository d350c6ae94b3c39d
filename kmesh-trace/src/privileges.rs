//! What this process may do: no more than it needs, and from the moment on when it traces, less.

use rustix::io;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities, set_no_new_privs,
};

/// A capability that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Which.
    pub capability: CapabilitySet,
    /// Its name.
    pub name: &'static str,
    /// What for.
    pub purpose: &'static str,
    /// Not only to begin with.
    pub stays: bool,
}

/// All that are.
pub const NEEDS: [Need; 2] = [
    Need {
        capability: CapabilitySet::BPF,
        name: "CAP_BPF",
        purpose: "loads the eBPF programs, reads their counters, walks the open sockets",
        stays: true,
    },
    Need {
        capability: CapabilitySet::PERFMON,
        name: "CAP_PERFMON",
        purpose: "lets the programs read the kernel's sockets; given up once they are attached",
        stays: false,
    },
];

/// Whether this process has it. CAP_SYS_ADMIN stands for both, as in the kernel. None if the kernel does not tell.
pub fn has(need: &Need) -> Option<bool> {
    let effective = capabilities(None).ok()?.effective;
    Some(effective.intersects(need.capability | CapabilitySet::SYS_ADMIN))
}

/// Gives up every capability of the calling thread, and of those that it starts from now on, but those that are still
/// needed, and lets no program that is started have more.
pub fn give_up() -> io::Result<()> {
    let held = capabilities(None)?.permitted;
    let keep = NEEDS
        .iter()
        .filter(|need| need.stays)
        .fold(CapabilitySet::empty(), |keep, need| {
            // Whoever came with CAP_SYS_ADMIN in its place keeps that.
            keep | if held.contains(need.capability) {
                need.capability
            } else {
                CapabilitySet::SYS_ADMIN
            }
        });
    let keep = keep & held;
    set_no_new_privs(true)?;
    // A kernel that has no ambient capabilities has none to clear.
    _ = clear_ambient_capability_set();
    set_capabilities(
        None,
        CapabilitySets {
            effective: keep,
            permitted: keep,
            inheritable: CapabilitySet::empty(),
        },
    )
}
