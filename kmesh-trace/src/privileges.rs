//! The capabilities of this process: at each stage no more than the rest of the run needs.
//!
//! [`keep_for_start`] comes before the arguments are parsed. Once the programs are loaded and everything that others protect is
//! open, [`keep_remaining`] leaves what tracing needs; only then are files parsed that others may have written (kubeconfig,
//! pods file). The thread that scans open sockets keeps more ([`keep_for_scans`]): it parses nothing. A replay needs no capability
//! once its files are open ([`keep_only`]).

use std::sync::OnceLock;

use rustix::io;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

/// The stage up to which a capability is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeededUntil {
    /// The programs are loaded, and all files and sockets open.
    Loaded,
    /// The end of tracing.
    End,
    /// The end of tracing, with name sources.
    NamesResolved,
    /// The end of tracing, if connection tracking can be asked.
    Translated,
    /// The end of tracing, if captures are rotated.
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
    /// The stage up to which it is needed.
    pub until: NeededUntil,
}

/// Without these there is no tracing.
pub const NEEDS: [Need; 2] = [
    Need {
        capability: CapabilitySet::BPF,
        name: "CAP_BPF",
        purpose: "loads the eBPF programs, reads their counters, walks the open sockets",
        until: NeededUntil::End,
    },
    Need {
        capability: CapabilitySet::PERFMON,
        name: "CAP_PERFMON",
        purpose: "lets the programs read the kernel's sockets; given up once they are loaded",
        until: NeededUntil::Loaded,
    },
];

/// Without these something else is missing, which may not be wanted.
pub const HELPS: [Need; 5] = [
    Need {
        capability: CapabilitySet::SYS_PTRACE,
        name: "CAP_SYS_PTRACE",
        purpose: "tells whose a network namespace is: the node's own, or a pod's by its processes",
        until: NeededUntil::NamesResolved,
    },
    Need {
        capability: CapabilitySet::NET_ADMIN,
        name: "CAP_NET_ADMIN",
        purpose: "asks connection tracking which pod is behind a Service's address",
        until: NeededUntil::Translated,
    },
    Need {
        capability: CapabilitySet::SYS_ADMIN,
        name: "CAP_SYS_ADMIN",
        purpose: "asks that from outside of the node's network namespace; and, with CAP_SYS_PTRACE, lets updates tell of \
                  connections that no process holds, in all network namespaces",
        until: NeededUntil::Loaded,
    },
    Need {
        capability: CapabilitySet::DAC_READ_SEARCH,
        name: "CAP_DAC_READ_SEARCH",
        purpose: "reads what sources of names have in other users' files, and finds cgroups by id",
        until: NeededUntil::NamesResolved,
    },
    Need {
        capability: CapabilitySet::DAC_OVERRIDE,
        name: "CAP_DAC_OVERRIDE",
        purpose: "rotates captures in another user's folder",
        until: NeededUntil::Rotated,
    },
];

/// The parts of the rest of the run that need capabilities, besides tracing itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remaining {
    /// Name sources are asked.
    pub names: bool,
    /// Connection tracking is asked.
    pub conntrack: bool,
    /// Captures are rotated.
    pub captures: bool,
}

impl Remaining {
    fn needs(self, need: &Need) -> bool {
        match need.until {
            NeededUntil::Loaded => false,
            NeededUntil::End => true,
            NeededUntil::NamesResolved => self.names,
            NeededUntil::Translated => self.conntrack,
            NeededUntil::Rotated => self.captures,
        }
    }
}

/// Binds a port below 1024 for `--metrics`.
const FOR_PORT: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// What a program that this one starts (a kubeconfig's credential plugin) can have, where it has a use for it: it reads the
/// files of the user who wrote the kubeconfig.
const FOR_CHILDREN: CapabilitySet = CapabilitySet::DAC_READ_SEARCH;

/// The effective capabilities that this process was started with.
static AT_START: OnceLock<CapabilitySet> = OnceLock::new();

/// Returns whether this process was started with the capability. CAP_SYS_ADMIN stands for those in [`NEEDS`], as in the
/// kernel. None if the kernel does not tell.
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

/// Keeps the capabilities that some run could need, and lets no program that is started have more than [`FOR_CHILDREN`].
/// To be called before anything else, while this is the only thread.
pub fn keep_for_start() -> io::Result<()> {
    let held = capabilities(None)?;
    AT_START.get_or_init(|| held.effective);
    set_no_new_privs(true)?;
    // A kernel that has no ambient capabilities has none to clear.
    _ = clear_ambient_capability_set();
    for capability in CapabilitySet::all().difference(FOR_CHILDREN).iter() {
        // Without CAP_SETPCAP the bounding set stays, and no-new-privileges alone limits other programs.
        _ = remove_capability_from_bounding_set(capability);
    }
    let all = NEEDS.iter().chain(&HELPS).map(|need| need.capability);
    keep_only(all.collect::<CapabilitySet>() | FOR_PORT)
}

/// Keeps what the rest of a run that traces needs, in this thread and in those that it starts from now on.
pub fn keep_remaining(remaining: Remaining) -> io::Result<()> {
    let held = capabilities(None)?.permitted;
    let needs = NEEDS.iter().filter(|need| remaining.needs(need)).map(|need| {
        // A process that was started with CAP_SYS_ADMIN in its place keeps that.
        if held.contains(need.capability) {
            need.capability
        } else {
            CapabilitySet::SYS_ADMIN
        }
    });
    let helps = HELPS
        .iter()
        .filter(|need| remaining.needs(need))
        .map(|need| need.capability);
    keep_only(needs.chain(helps).collect())
}

/// Keeps what the scan of open sockets in all network namespaces takes, in this thread alone. It is no barrier to an attacker who
/// takes over the process, since threads share their memory.
pub fn keep_for_scans() -> io::Result<()> {
    keep_only(CapabilitySet::BPF | CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE)
}

/// Keeps these capabilities at most, in this thread and in those that it starts from now on.
pub fn keep_only(capabilities_to_keep: CapabilitySet) -> io::Result<()> {
    let keep = capabilities(None)?.permitted & capabilities_to_keep;
    set_capabilities(
        None,
        CapabilitySets {
            effective: keep,
            permitted: keep,
            inheritable: CapabilitySet::empty(),
        },
    )
}
