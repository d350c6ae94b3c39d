//! The tool and its kernel tests, statically linked: a test machine has no libraries of the system that built them.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::host;

/// Naming the target keeps these apart from the ordinary build, and the flags away from build scripts and macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What was built.
pub struct Build {
    pub tool: PathBuf,
    pub tests: PathBuf,
}

impl Build {
    /// Builds both; cargo knows when there is nothing to do.
    pub fn make() -> Result<Self> {
        let mut cargo = host::cargo();
        cargo.args([
            "test",
            "--release",
            "--target",
            TARGET,
            "--package",
            "kmesh-trace",
            "--bin",
            "kmesh-trace",
            "--test",
            "kernel",
        ]);
        cargo.args(["--no-run", "--message-format=json-render-diagnostics"]);
        cargo
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            // Emulation wants optimised programs, but not the last of it: these build in half the time.
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
            .stderr(Stdio::inherit());
        let output = cargo.output().context("cannot run cargo")?;
        if !output.status.success() {
            bail!("the static build failed");
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        let executable = |kind: &str, name: &str| {
            let found = messages
                .lines()
                .filter_map(|line| executable_of(line, kind, name))
                .next_back();
            found.with_context(|| format!("cargo did not say where the {kind} {name} is"))
        };
        Ok(Self {
            tool: executable("bin", "kmesh-trace")?,
            tests: executable("test", "kernel")?,
        })
    }
}

/// The program in one of cargo's messages, if that is about this one.
fn executable_of(message: &str, kind: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    // The unit tests of a binary are a `bin` too.
    let as_test = message["profile"]["test"].as_bool()?;
    let is_it = target["name"] == name && target["kind"][0] == kind && as_test == (kind == "test");
    is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
}
