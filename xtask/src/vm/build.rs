//! Builds the tool and the kernel tests for the VMs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{artifacts, host, test};

/// The programs without debug information, because a VM has its files in memory.
pub struct Build {
    pub tool: PathBuf,
    pub tests: PathBuf,
}

impl Build {
    /// Builds both programs, and copies them to `folder`. `cargo xtask test` builds the same programs.
    pub fn new(folder: &Path) -> Result<Self> {
        let mut cargo = host::cargo();
        cargo.args(["test", "--no-run"]).args(test::EVERYTHING);
        let programs = artifacts::build(cargo)?;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self {
            tool: stripped(&programs.path("bin", "kmesh-trace")?, &folder.join("kmesh-trace"))?,
            tests: stripped(&programs.path("test", "kernel")?, &folder.join("kernel-tests"))?,
        })
    }
}

fn stripped(program: &Path, copy: &Path) -> Result<PathBuf> {
    host::run(Command::new("strip").arg("-o").arg(copy).arg(program))?;
    Ok(copy.to_owned())
}
