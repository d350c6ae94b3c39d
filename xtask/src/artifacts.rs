//! Builds programs with cargo, and finds their paths.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The programs of one build.
pub struct Artifacts {
    messages: String,
}

/// Runs a `cargo build` or `cargo test --no-run` command.
pub fn build(mut cargo: Command) -> Result<Artifacts> {
    cargo
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit());
    let output = cargo.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo build failed: {}", output.status);
    }
    Ok(Artifacts {
        messages: String::from_utf8_lossy(&output.stdout).into_owned(),
    })
}

impl Artifacts {
    /// Returns the path of a program. `kind` is cargo's kind of target: `bin` or `test`.
    pub fn path(&self, kind: &str, name: &str) -> Result<PathBuf> {
        let found = self
            .messages
            .lines()
            .filter_map(|line| executable_of(line, kind, name))
            .next_back();
        found.with_context(|| format!("cargo did not report the path of the {kind} {name}"))
    }
}

/// Returns the path of the program that a message of cargo reports, if it is this program.
fn executable_of(message: &str, kind: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    // The unit tests of a binary also have the kind `bin`.
    let is_test = message["profile"]["test"].as_bool()?;
    let is_match = target["name"] == name && target["kind"][0] == kind && is_test == (kind == "test");
    is_match.then(|| message["executable"].as_str().map(PathBuf::from))?
}
