//! The capabilities of Linux that the tool needs, and how it drops the others.

use std::sync::OnceLock;

use rustix::io;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

/// The stage at which a capability is no longer needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeededUntil {
    /// The programs are loaded, and all files and sockets are open.
    Loaded,
    /// The end of tracing.
    End,
    /// The end of tracing, if there are name sources.
    NamesResolved,
    /// The end of tracing, if the tool reads connection tracking.
    Translated,
    /// The end of tracing, if the capture is rotated.
    Rotated,
}

/// A capability and its purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    pub capability: CapabilitySet,
    pub name: &'static str,
    /// The purpose as a verb phrase, for the messages of `check`.
    pub purpose: &'static str,
    pub until: NeededUntil,
}

/// The capabilities that tracing requires.
pub const NEEDS: [Need; 2] = [
    Need {
        capability: CapabilitySet::BPF,
        name: "CAP_BPF",
        purpose: "loads the eBPF programs, reads their counters, scans the open sockets",
        until: NeededUntil::End,
    },
    Need {
        capability: CapabilitySet::PERFMON,
        name: "CAP_PERFMON",
        purpose: "lets the programs read the kernel's sockets; dropped after they are loaded",
        until: NeededUntil::Loaded,
    },
];

/// The capabilities that only some features require.
pub const OPTIONAL_NEEDS: [Need; 5] = [
    Need {
        capability: CapabilitySet::SYS_PTRACE,
        name: "CAP_SYS_PTRACE",
        purpose: "finds the owner of a network namespace: the node, or a pod by its processes",
        until: NeededUntil::NamesResolved,
    },
    Need {
        capability: CapabilitySet::NET_ADMIN,
        name: "CAP_NET_ADMIN",
        purpose: "reads from connection tracking which pod is behind a Service's address",
        until: NeededUntil::Translated,
    },
    Need {
        capability: CapabilitySet::SYS_ADMIN,
        name: "CAP_SYS_ADMIN",
        purpose: "reads connection tracking from outside the node's network namespace; with CAP_SYS_PTRACE, also scans \
                  connections that no process holds, in all network namespaces",
        until: NeededUntil::Loaded,
    },
    Need {
        capability: CapabilitySet::DAC_READ_SEARCH,
        name: "CAP_DAC_READ_SEARCH",
        purpose: "reads files of other users for name sources, and finds cgroups by id",
        until: NeededUntil::NamesResolved,
    },
    Need {
        capability: CapabilitySet::DAC_OVERRIDE,
        name: "CAP_DAC_OVERRIDE",
        purpose: "rotates a capture in another user's folder",
        until: NeededUntil::Rotated,
    },
];

/// The features of the rest of a run that need optional capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remaining {
    /// Whether there are name sources.
    pub names: bool,
    /// Whether the tool reads connection tracking.
    pub conntrack: bool,
    /// Whether the capture is rotated.
    pub rotation: bool,
}

impl Remaining {
    fn needs(self, need: &Need) -> bool {
        match need.until {
            NeededUntil::Loaded => false,
            NeededUntil::End => true,
            NeededUntil::NamesResolved => self.names,
            NeededUntil::Translated => self.conntrack,
            NeededUntil::Rotated => self.rotation,
        }
    }
}

/// Allows a port below 1024 for `--metrics`.
const FOR_PORT: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// The capabilities that a child process (the credential plugin of a kubeconfig) may have. It may need to read the
/// files of the user who wrote the kubeconfig.
const FOR_CHILDREN: CapabilitySet = CapabilitySet::DAC_READ_SEARCH;

/// The effective capabilities at the start of this process.
static AT_START: OnceLock<CapabilitySet> = OnceLock::new();

/// Returns whether this process was started with the capability, or `None` if the kernel does not report capabilities.
/// As in the kernel, CAP_SYS_ADMIN includes the capabilities of [`NEEDS`].
pub fn has(need: &Need) -> Option<bool> {
    let stand_in = if NEEDS.contains(need) {
        CapabilitySet::SYS_ADMIN
    } else {
        CapabilitySet::empty()
    };
    let at_start = AT_START.get().copied();
    let effective = match at_start {
        Some(effective) => effective,
        None => capabilities(None).ok()?.effective,
    };
    Some(effective.intersects(need.capability | stand_in))
}

/// Drops the capabilities that no run needs, and limits child processes to `FOR_CHILDREN`. Call this function before
/// any thread starts.
pub fn limit_to_possible_needs() -> io::Result<()> {
    let current = capabilities(None)?;
    AT_START.get_or_init(|| current.effective);
    set_no_new_privs(true)?;
    // This fails on a kernel without ambient capabilities, which has none to clear.
    _ = clear_ambient_capability_set();
    for capability in CapabilitySet::all().difference(FOR_CHILDREN).iter() {
        // This fails without CAP_SETPCAP. Then only no-new-privileges limits child processes.
        _ = remove_capability_from_bounding_set(capability);
    }
    let all = NEEDS.iter().chain(&OPTIONAL_NEEDS).map(|need| need.capability);
    limit_to(all.collect::<CapabilitySet>() | FOR_PORT)
}

/// Drops the capabilities that the rest of a live trace does not need, in this thread and in the threads that it starts
/// later.
pub fn limit_to_remaining(remaining: Remaining) -> io::Result<()> {
    let permitted = capabilities(None)?.permitted;
    let needs = NEEDS.iter().filter(|need| remaining.needs(need)).map(|need| {
        // CAP_SYS_ADMIN may have replaced the capability at the start.
        if permitted.contains(need.capability) {
            need.capability
        } else {
            CapabilitySet::SYS_ADMIN
        }
    });
    let optional_needs = OPTIONAL_NEEDS
        .iter()
        .filter(|need| remaining.needs(need))
        .map(|need| need.capability);
    limit_to(needs.chain(optional_needs).collect())
}

/// Drops the capabilities that scans of sockets in all network namespaces do not need, in this thread alone. This does
/// not stop an attacker who controls the process, because threads share their memory.
pub fn limit_to_scans() -> io::Result<()> {
    limit_to(CapabilitySet::BPF | CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE)
}

/// Drops all capabilities except `allowed`, in this thread and in the threads that it starts later.
pub fn limit_to(allowed: CapabilitySet) -> io::Result<()> {
    let remaining = capabilities(None)?.permitted & allowed;
    set_capabilities(
        None,
        CapabilitySets {
            effective: remaining,
            permitted: remaining,
            inheritable: CapabilitySet::empty(),
        },
    )
}
