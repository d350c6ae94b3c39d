//! Runs test programs for cargo when the user is not root. The kernel tests run with sudo, if it is installed. Without
//! sudo they run as they are, and show as skipped.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Result, anyhow};

use crate::host;

/// The test program and its arguments, as cargo passes them to a runner.
#[derive(clap::Args)]
pub struct Args {
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Returns whether test programs need a runner.
pub fn is_needed() -> bool {
    !host::is_root() && sudo_is_usable()
}

/// Returns the `--config` argument that makes cargo use this runner.
pub fn cargo_setting(this: &Path) -> String {
    format!(
        "target.'cfg(unix)'.runner = [{:?}, \"runner\", \"--\"]",
        this.display().to_string()
    )
}

/// Replaces this process by the test program.
pub fn run(args: &Args) -> Result<ExitCode> {
    let (program, rest) = args
        .command
        .split_first()
        .ok_or_else(|| anyhow!("the test program is missing"))?;
    // The name of the program is the suite's name and a hash.
    let is_kernel_suite = Path::new(program)
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("kernel-"));
    let mut command = if is_kernel_suite {
        let mut sudo = Command::new("sudo");
        // sudo drops the environment, so the variables that the tests read are arguments of env.
        sudo.args(["--", "env"]);
        sudo.args(env::vars_os().filter_map(|(name, value)| {
            let known = name.to_str()?;
            let is_passed = known == "PATH"
                || known == "RUST_BACKTRACE"
                || ["KMESH_TRACE_", "CARGO_"].iter().any(|p| known.starts_with(p));
            is_passed.then(|| {
                let mut pair = name.clone();
                pair.push("=");
                pair.push(value);
                pair
            })
        }));
        sudo.arg(program);
        sudo
    } else {
        Command::new(program)
    };
    let error = command.args(rest).exec();
    Err(anyhow!("cannot run {}: {error}", Path::new(program).display()))
}

/// Returns whether sudo works: with a terminal, it may ask for a password; without one, it must not need any.
fn sudo_is_usable() -> bool {
    let silent = || {
        Command::new("sudo")
            .args(["-n", "true"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    host::find("sudo").is_some() && (io::stdin().is_terminal() || silent())
}
