//! What this process may do: no more than it needs, and from the moment on when it traces, less.

use rustix::io;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities, set_no_new_privs,
};

/// Until when a capability is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// All is attached and opened.
    Begun,
    /// The end.
    Ended,
    /// The end, if there are sources of names.
    Named,
    /// The end, if connection tracking can be asked.
    Translated,
    /// The end, if captures are rotated.
    Rotated,
}

/// A capability, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Which.
    pub capability: CapabilitySet,
    /// Its name.
    pub name: &'static str,
    /// What for.
    pub purpose: &'static str,
    /// Until when.
    pub until: Until,
}

/// Without these there is no tracing.
pub const NEEDS: [Need; 2] = [
    Need {
        capability: CapabilitySet::BPF,
        name: "CAP_BPF",
        purpose: "loads the eBPF programs, reads their counters, walks the open sockets",
        until: Until::Ended,
    },
    Need {
        capability: CapabilitySet::PERFMON,
        name: "CAP_PERFMON",
        purpose: "lets the programs read the kernel's sockets; given up once they are attached",
        until: Until::Begun,
    },
];

/// Without these something else is missing, which may not be wanted.
pub const HELPS: [Need; 5] = [
    Need {
        capability: CapabilitySet::SYS_PTRACE,
        name: "CAP_SYS_PTRACE",
        purpose: "tells whose a network namespace is: the node's own, or a pod's by its processes",
        until: Until::Named,
    },
    Need {
        capability: CapabilitySet::NET_ADMIN,
        name: "CAP_NET_ADMIN",
        purpose: "asks connection tracking which pod is behind a Service's address",
        until: Until::Translated,
    },
    Need {
        capability: CapabilitySet::SYS_ADMIN,
        name: "CAP_SYS_ADMIN",
        purpose: "asks that from outside of the node's network namespace; given up once it can",
        until: Until::Begun,
    },
    Need {
        capability: CapabilitySet::DAC_READ_SEARCH,
        name: "CAP_DAC_READ_SEARCH",
        purpose: "reads what sources of names have in another user's files",
        until: Until::Named,
    },
    Need {
        capability: CapabilitySet::DAC_OVERRIDE,
        name: "CAP_DAC_OVERRIDE",
        purpose: "rotates captures in another user's folder",
        until: Until::Rotated,
    },
];

/// What is still to be done, besides tracing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Still {
    /// There are sources of names.
    pub names: bool,
    /// Connection tracking is asked.
    pub conntrack: bool,
    /// Captures are rotated.
    pub captures: bool,
}

impl Still {
    fn keeps(self, need: &Need) -> bool {
        match need.until {
            Until::Begun => false,
            Until::Ended => true,
            Until::Named => self.names,
            Until::Translated => self.conntrack,
            Until::Rotated => self.captures,
        }
    }
}

/// Whether this process has it. CAP_SYS_ADMIN stands for those in [`NEEDS`], as in the kernel. None if the kernel does not
/// tell.
pub fn has(need: &Need) -> Option<bool> {
    let stand_in = if NEEDS.contains(need) {
        CapabilitySet::SYS_ADMIN
    } else {
        CapabilitySet::empty()
    };
    let effective = capabilities(None).ok()?.effective;
    Some(effective.intersects(need.capability | stand_in))
}

/// Gives up every capability of the calling thread, and of those that it starts from now on, but those that are still
/// needed, and lets no program that is started have more.
pub fn give_up(still: Still) -> io::Result<()> {
    let held = capabilities(None)?.permitted;
    let needs = NEEDS.iter().filter(|need| still.keeps(need)).map(|need| {
        // Whoever came with CAP_SYS_ADMIN in its place keeps that.
        if held.contains(need.capability) {
            need.capability
        } else {
            CapabilitySet::SYS_ADMIN
        }
    });
    let helps = HELPS
        .iter()
        .filter(|need| still.keeps(need))
        .map(|need| need.capability);
    let keep = held & needs.chain(helps).collect();
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
