//! The tool and its kernel tests, for the test machines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{built, host, test};

/// What was built, without debug information: a machine holds it in memory.
pub struct Build {
    pub tool: PathBuf,
    pub tests: PathBuf,
}

impl Build {
    /// Builds both in `folder`. They are those of `cargo xtask test`, so that nothing is built for the machines alone.
    pub fn make(folder: &Path) -> Result<Self> {
        let mut cargo = host::cargo();
        cargo.args(["test", "--no-run"]).args(test::EVERYTHING);
        let programs = built::build(cargo)?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self {
            tool: stripped(&programs.path("bin", "kmesh-trace")?, &folder.join("kmesh-trace"))?,
            tests: stripped(&programs.path("test", "kernel")?, &folder.join("kernel-tests"))?,
        })
    }
}

fn stripped(program: &Path, copy: &Path) -> Result<PathBuf> {
    host::succeed(Command::new("strip").arg("-o").arg(copy).arg(program))?;
    Ok(copy.to_owned())
}
