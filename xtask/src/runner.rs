//! Between cargo and each test program when the person is not root: the kernel tests go through sudo, if there is one.
//! Without it they start as they are, and show as skipped.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Result, anyhow};

use crate::host;

/// What cargo gives a runner: the test program and its arguments.
#[derive(clap::Args)]
pub struct Args {
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Whether there is anything for it to do.
pub fn is_needed() -> bool {
    !host::is_root() && sudo_is_usable()
}

/// The `--config` argument that makes cargo use it.
pub fn cargo_setting(this: &Path) -> String {
    format!(
        "target.'cfg(unix)'.runner = [{:?}, \"runner\", \"--\"]",
        this.display().to_string()
    )
}

/// Becomes the test program.
pub fn run(args: &Args) -> Result<ExitCode> {
    let (program, rest) = args
        .command
        .split_first()
        .ok_or_else(|| anyhow!("no test program was named"))?;
    // Cargo names the program of a suite by the suite and a hash.
    let is_kernel_suite = Path::new(program)
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("kernel-"));
    let mut command = if is_kernel_suite {
        let mut sudo = Command::new("sudo");
        // sudo drops the environment, and many configurations refuse to keep it: hand over what the tests read.
        sudo.args(["--", "env"]);
        sudo.args(env::vars_os().filter_map(|(name, value)| {
            let known = name.to_str()?;
            let handed = known == "PATH"
                || known == "RUST_BACKTRACE"
                || ["KMESH_TRACE_", "CARGO_"].iter().any(|p| known.starts_with(p));
            handed.then(|| {
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

/// sudo may ask for a password where someone can type it; elsewhere it must need none.
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
