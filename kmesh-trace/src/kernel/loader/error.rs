//! The reasons why tracing cannot start.

use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::iter::successors;

use aya::programs::ProgramError;
use rustix::io::Errno;

use super::{BTF_PATH, OPEN_OBJECT};
use crate::kernel::btf::BtfError;

/// The reason why tracing cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot read the kernel's type information ({BTF_PATH}): {0}")]
    NoBtf(#[source] io::Error),
    /// The kernel's BTF lacks something that records need.
    #[error("{0}")]
    Btf(#[from] BtfError),
    /// The kernel returned EPERM.
    #[error("the kernel does not permit loading eBPF programs")]
    NotPermitted,
    /// `--drops` on a kernel before 5.17.
    #[error("--drops needs a kernel that says why it drops a packet (Linux 5.17 or newer)")]
    NoDropReasons,
    /// `--turns` on a kernel before 6.3.
    #[error("--turns needs a kernel with the tracepoints sk_data_ready and sock_send_length (Linux 6.3 or newer)")]
    NoTurnTracepoints,
    /// `--events reject` on a kernel before 6.10.
    #[error("--events reject needs a kernel that says why it sends a RST (Linux 6.10 or newer)")]
    NoResetReasons,
    /// The verifier, or the system call, refused a program.
    #[error("the kernel refuses the eBPF program at {hook}: {reason}")]
    Refused { hook: String, reason: String },
    #[error("cannot {action}: {reason}")]
    Failed {
        /// The action as a verb phrase.
        action: &'static str,
        reason: String,
    },
}

pub fn missing_program(name: &str) -> StartError {
    StartError::Failed {
        action: OPEN_OBJECT,
        reason: format!("it has no program {name}"),
    }
}

/// Returns the error of loading or attaching the program at `hook`.
pub fn refused(hook: &str, error: &ProgramError) -> StartError {
    if is_because(error, &[Errno::PERM]) {
        return StartError::NotPermitted;
    }
    if is_because(error, &[Errno::MFILE, Errno::NFILE, Errno::NOMEM]) {
        // The program is not the cause.
        return failed("load and attach the eBPF programs", error);
    }
    let reason = match error {
        ProgramError::LoadError { verifier_log, io_error } => {
            verifier_reason(&verifier_log.to_string()).map_or_else(|| io_error.to_string(), str::to_owned)
        }
        other => with_causes(other),
    };
    StartError::Refused {
        hook: hook.to_owned(),
        reason,
    }
}

/// Returns the last line of the verifier's log before the statistics: the reason why it rejected the program.
fn verifier_reason(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 3] = ["stack depth", "processed ", "verification time"];
    log.lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start)))
}

/// Returns the error of an action, which is a verb phrase.
pub fn failed(action: &'static str, error: &(dyn Error + 'static)) -> StartError {
    if is_because(error, &[Errno::PERM]) {
        StartError::NotPermitted
    } else {
        StartError::Failed {
            action,
            reason: with_causes(error),
        }
    }
}

/// Returns whether one of these numbers is among the causes.
fn is_because(error: &(dyn Error + 'static), numbers: &[Errno]) -> bool {
    causes(error)
        .filter_map(|cause| Errno::from_io_error(cause.downcast_ref()?))
        .any(|number| numbers.contains(&number))
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |&error| error.source())
}

/// Returns the text of an error and of its causes. A cause that the text before already ends with is left out.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        let cause = Cow::from(cause.to_string());
        if !text.ends_with(&*cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verifier_reason_is_last_line_before_statistics() {
        let log = "0: R1\ninvalid access to memory\nverification time 12 usec\nstack depth 8+0\nprocessed 3 insns\n\n";
        assert_eq!(verifier_reason(log), Some("invalid access to memory"));
        assert_eq!(verifier_reason("processed 3 insns\n"), None);
    }

    #[test]
    fn each_cause_is_named_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("loading failed: {0}")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::Error::other("no memory"));
        assert_eq!(with_causes(&error), "loading failed: no memory");
    }
}
