//! The exit statuses, which are a promise to scripts.

use std::process::ExitCode;

#[cfg(unix)]
use crate::names::sources::Status;
#[cfg(unix)]
use crate::output::stderr::status;

/// The exit status of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The run ended as requested: Ctrl-C, SIGTERM, SIGHUP, a limit, a closed pipe.
    Ok = 0,
    Failed = 1,
    /// The command line is wrong. `clap` itself exits with the same status.
    Usage = 2,
    /// This system cannot be traced: privileges, the kernel, or its BTF.
    CannotTrace = 3,
}

impl Exit {
    /// The captures of `diff` differ, as in diff(1).
    pub const DIFFERENT: Self = Self::Failed;
    /// `diff` could not compare the captures, or not all of their lines, as in diff(1).
    pub const TROUBLE: Self = Self::Usage;
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Returns the status of a run that ended as requested, and prints why a source of names fails the run. The error comes
/// after the last output, because a source may answer until then.
#[cfg(unix)]
pub(super) fn of_names(names: &Status) -> Exit {
    match names.unreported() {
        Some(errors) => {
            errors.iter().for_each(|error| status(error));
            Exit::Failed
        }
        None => Exit::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_match_the_contract() {
        let cases = [
            (Exit::Ok, 0),
            (Exit::Failed, 1),
            (Exit::Usage, 2),
            (Exit::CannotTrace, 3),
        ];
        for (exit, status) in cases {
            // ExitCode does not expose its number, but it can be compared.
            assert_eq!(ExitCode::from(exit), ExitCode::from(status), "{exit:?}");
        }
    }
}
