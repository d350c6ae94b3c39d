//! `cargo xtask setup`: installs the Debian packages that the tests need. Afterwards, tasks can run in parallel.

use std::process::ExitCode;

use anyhow::Result;

use crate::host;
use crate::{dist, man, vm};

/// Installs the missing packages, or returns an error that names them.
pub fn run() -> Result<ExitCode> {
    let needs = [
        host::TEST_TOOLS,
        host::SERVERS,
        host::SHELLS,
        host::EXAMPLES,
        host::PROMETHEUS,
        host::CLUSTER,
        man::LINTERS,
        dist::TEST_TOOLS,
    ];
    host::ensure(needs.into_iter().flatten().chain(vm::needs()))?;
    Ok(ExitCode::SUCCESS)
}
