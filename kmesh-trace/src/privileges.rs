//! Limits the privileges of this process: on Linux its capabilities, elsewhere nothing. At each stage, the process has
//! only the capabilities that the rest of the run needs.
//!
//! 1. [`Stage::Start`] is before the arguments are parsed.
//! 2. A live trace limits itself ([`limit_to_remaining`]) when the programs are loaded and all protected files and
//!    sockets are open. Only then does the process parse files that other users may have written (kubeconfig, pods
//!    file). The thread that scans sockets retains more ([`limit_to_scans`]), because it parses nothing.
//! 3. The other stages are those of a replay, of `nodes` and of `check`.

#[cfg(target_os = "linux")]
mod capabilities;

use anyhow::Result;

#[cfg(target_os = "linux")]
pub use self::capabilities::{
    NEEDS, Need, NeededUntil, OPTIONAL_NEEDS, Remaining, has, limit_to_remaining, limit_to_scans,
};

/// A stage of a run that needs fewer privileges than the stage before.
#[derive(Clone, Copy)]
pub enum Stage {
    /// Parses arguments, and opens files and sockets.
    Start,
    /// Reads files of the user: a pods file for a replay, or the kubeconfig of `nodes`.
    UserFiles { is_rotated: bool },
    /// Processes records of open files. Rotation creates files until the end of the run.
    Replay { is_rotated: bool },
    /// Requests names from each source once, for `check`.
    CheckNames,
}

/// Drops the privileges that this stage does not need.
#[cfg(target_os = "linux")]
pub fn limit(stage: Stage) -> Result<()> {
    use anyhow::Context as _;
    use rustix::thread::CapabilitySet;

    use self::capabilities::{limit_to, limit_to_possible_needs};

    let rotation = |is_rotated| match is_rotated {
        true => CapabilitySet::DAC_OVERRIDE,
        false => CapabilitySet::empty(),
    };
    match stage {
        Stage::Start => limit_to_possible_needs(),
        Stage::UserFiles { is_rotated } => limit_to(CapabilitySet::DAC_READ_SEARCH | rotation(is_rotated)),
        Stage::Replay { is_rotated } => limit_to(rotation(is_rotated)),
        Stage::CheckNames => limit_to(CapabilitySet::DAC_READ_SEARCH | CapabilitySet::SYS_PTRACE),
    }
    .context("cannot give up privileges")
}

/// Does nothing: only Linux has capabilities.
#[cfg(not(target_os = "linux"))]
pub fn limit(_: Stage) -> Result<()> {
    Ok(())
}
