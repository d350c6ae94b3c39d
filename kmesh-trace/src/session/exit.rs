//! The exit statuses, as `spec/cli.md` promises them to scripts.

use std::process::ExitCode;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It ran and ended as asked: Ctrl-C, SIGTERM, a limit, a closed pipe.
    Ok = 0,
    /// It failed while running.
    Failed = 1,
    /// The command line is wrong. `clap` exits with the same status on its own.
    Usage = 2,
    /// This system cannot trace: privileges, the kernel, or its BTF.
    CannotTrace = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_the_contract() {
        let cases = [
            (Exit::Ok, 0),
            (Exit::Failed, 1),
            (Exit::Usage, 2),
            (Exit::CannotTrace, 3),
        ];
        for (exit, status) in cases {
            // ExitCode has no way to ask for its number but to compare.
            assert_eq!(ExitCode::from(exit), ExitCode::from(status), "{exit:?}");
        }
    }
}
