//! The tool and its kernel tests, statically linked: a test machine has no libraries of the system that built them.

use std::path::PathBuf;

use anyhow::Result;

use crate::{host, static_build};

/// What was built.
pub struct Build {
    pub tool: PathBuf,
    pub tests: PathBuf,
}

impl Build {
    /// Builds both; cargo knows when there is nothing to do.
    pub fn make() -> Result<Self> {
        let mut cargo = host::cargo();
        cargo.args(["test", "--no-run", "--release", "--package", "kmesh-trace"]);
        cargo.args(["--bin", "kmesh-trace", "--test", "kernel"]);
        // Emulation wants optimised programs, but not the last of it: these build in half the time.
        cargo
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
        let programs = static_build::build(cargo, [])?;
        Ok(Self {
            tool: programs.path("bin", "kmesh-trace")?,
            tests: programs.path("test", "kernel")?,
        })
    }
}
